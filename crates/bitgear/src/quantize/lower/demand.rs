//! In which versions each tensor must be stored, found from its readers backwards.

use std::collections::BTreeSet;

use bitgear_core::bits::BitWidth;

use super::group::Group;
use crate::graph::{Graph, Op, TensorId};
use crate::quantize::{Point, Widths};

/// One version of a tensor that a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::quantize) enum Demand {
    /// Codes of this width, on the scale that fits the range of tensor `origin`: the tensor
    /// itself, or what it becomes by operators that only move codes (so that all operands of a
    /// concatenation share one scale).
    Codes {
        /// Bit-width.
        bits: BitWidth,
        /// Whose range sets the scale.
        origin: TensorId,
    },
    /// i32 scores.
    Scores,
}

/// Smallest width of what isn't read by a MAC layer: residual paths, averages, products, tables.
const SIDE_PATH_BITS: u8 = 8;

/// Whether the operator only moves codes, which keep their scale.
pub(in crate::quantize) fn moves_codes(op: &Op) -> bool {
    matches!(
        op,
        Op::MaxPool(_)
            | Op::Reshape
            | Op::Transpose { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
    )
}

/// The versions of every tensor, indexed by tensor. `mac_index` numbers the MAC layers by node.
pub(in crate::quantize) fn demands(
    graph: &Graph,
    groups: &[Group],
    point: &Point,
    mac_index: &[Option<usize>],
) -> Vec<BTreeSet<Demand>> {
    let layers = mac_index.iter().flatten().count();
    let mut demands = vec![BTreeSet::new(); graph.tensors.len()];
    demands[graph.output.0].insert(output_demand(graph, groups));
    for group in groups.iter().rev() {
        let node = &graph.nodes[group.head];
        let wanted = demands[group.result.0].clone();
        if moves_codes(&node.op) {
            for &input in &node.inputs {
                demands[input.0].extend(wanted.iter().copied());
            }
            continue;
        }
        let bits = side_path_bits(&wanted);
        if let Some(layer) = mac_index[group.head] {
            // A product's second operand stands where other layers have weights.
            let Widths { weights, activations } = point.widths(layer, layers);
            for (&input, bits) in node.inputs.iter().zip([activations, weights]) {
                demands[input.0].insert(Demand::Codes { bits, origin: input });
            }
        } else {
            for &input in &node.inputs {
                demands[input.0].insert(Demand::Codes { bits, origin: input });
            }
        }
        if let Some(residual) = group.residual {
            demands[residual.0].insert(Demand::Codes { bits, origin: residual });
        }
    }
    demands
}

/// What the graph's output is stored as: scores where its step accumulates, else codes of 16 bits
/// that a last step turns into scores.
fn output_demand(graph: &Graph, groups: &[Group]) -> Demand {
    let makes_scores = groups.iter().any(|group| {
        let op = &graph.nodes[group.head].op;
        let table = matches!(op, Op::Activation(_));
        group.result == graph.output && !moves_codes(op) && !table && op.float_island().is_none()
    });
    if makes_scores {
        Demand::Scores
    } else {
        Demand::Codes { bits: BitWidth::MAX, origin: graph.output }
    }
}

/// Width of the operands of a step that isn't a MAC layer: at least that of its widest result.
pub(in crate::quantize) fn side_path_bits(wanted: &BTreeSet<Demand>) -> BitWidth {
    let floor = BitWidth::new(SIDE_PATH_BITS).expect("8 is a bit-width");
    let bits = |demand: &Demand| match demand {
        Demand::Codes { bits, .. } => *bits,
        Demand::Scores => BitWidth::MAX,
    };
    wanted.iter().map(bits).max().unwrap_or(floor).max(floor)
}
