//! What is still needed where one stage of a policy may go on from another: between MAC layers.

use std::collections::BTreeSet;

use super::group::{Group, groups};
use crate::graph::{Graph, Op, TensorId};
use crate::quantize::mac_numbers;

/// A tensor made before a boundary and read after it, by one of its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crossing {
    /// The tensor.
    pub tensor: TensorId,
    /// The MAC layer that reads it, or the first one after the boundary if no layer does.
    pub layer: usize,
    /// Whether it is read as anything else than the operand of a MAC layer.
    pub side: bool,
}

/// For each MAC layer everything that crosses the boundary before it. `None` where there is no
/// boundary: before the first layer, and where an earlier layer needs a later one's result.
pub fn crossings(graph: &Graph) -> Vec<Option<Vec<Crossing>>> {
    let numbers = mac_numbers(graph);
    let groups = groups(graph);
    let layers = numbers.iter().flatten().count();
    (0..layers).map(|layer| crossing(graph, &groups, &numbers, layer)).collect()
}

fn crossing(
    graph: &Graph,
    groups: &[Group],
    numbers: &[Option<usize>],
    boundary: usize,
) -> Option<Vec<Crossing>> {
    let number = |group: &Group| numbers[group.head];
    // Layers are numbered as they stand in the graph; a fused addition makes one run later.
    let in_order = groups.iter().filter_map(number).take(boundary).all(|layer| layer < boundary);
    if boundary == 0 || !in_order {
        return None;
    }
    let constants = graph.nodes.iter().filter(|node| matches!(node.op, Op::Constant(_)));
    let constants: BTreeSet<TensorId> = constants.map(|node| node.output).collect();
    let mut made: BTreeSet<TensorId> = constants.iter().copied().chain([graph.input]).collect();
    let mut crossing = BTreeSet::new();
    for group in groups {
        let inputs = &graph.nodes[group.head].inputs;
        let layer = number(group);
        let ready = inputs.iter().chain(&group.residual).all(|tensor| made.contains(tensor));
        let before = layer.map_or(ready, |layer| layer < boundary);
        if before {
            if !ready {
                return None;
            }
            made.insert(group.result);
            continue;
        }
        let operands = inputs.iter().map(|&tensor| (tensor, layer.is_none()));
        for (tensor, side) in operands.chain(group.residual.map(|tensor| (tensor, true))) {
            if made.contains(&tensor) && !constants.contains(&tensor) {
                crossing.insert(Crossing { tensor, layer: layer.unwrap_or(boundary), side });
            }
        }
    }
    Some(crossing.into_iter().collect())
}
