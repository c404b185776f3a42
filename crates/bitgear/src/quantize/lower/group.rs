//! Which nodes run together as one step: a node that accumulates takes in the addition and the
//! clamp that follow it, so that there is one rounding.

use crate::graph::{Activation, Binary, Graph, Op, TensorId};

/// Nodes that run as one step.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::quantize) struct Group {
    /// Index of the node that computes; what follows it is fused.
    pub(in crate::quantize) head: usize,
    /// What the group leaves behind.
    pub(in crate::quantize) result: TensorId,
    /// Second operand of an addition fused into a MAC layer.
    pub(in crate::quantize) residual: Option<TensorId>,
    /// Real bounds of a fused ReLU or clip.
    pub(in crate::quantize) clamp: (f32, f32),
}

/// Bounds of an activation that is nothing but a clamp.
fn bounds(activation: Activation) -> Option<(f32, f32)> {
    match activation {
        Activation::Relu => Some((0.0, f32::INFINITY)),
        Activation::Clip { low, high } => Some((low, high)),
        _ => None,
    }
}

/// The graph as groups, in an order in which operands come first. Constants belong to no group.
pub(in crate::quantize) fn groups(graph: &Graph) -> Vec<Group> {
    let mut consumers: Vec<Vec<usize>> = vec![Vec::new(); graph.tensors.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            consumers[input.0].push(index);
        }
    }
    // The only reader of a tensor that nobody else wants.
    let sole_consumer = |tensor: TensorId| match consumers[tensor.0][..] {
        [index] if tensor != graph.output => Some(index),
        _ => None,
    };
    let constant = |tensor: TensorId| {
        graph.nodes.iter().any(|n| n.output == tensor && matches!(n.op, Op::Constant(_)))
    };

    let mut fused = vec![false; graph.nodes.len()];
    let mut groups: Vec<(usize, Group)> = Vec::new();
    for (head, node) in graph.nodes.iter().enumerate() {
        if fused[head] || matches!(node.op, Op::Constant(_)) {
            continue;
        }
        let mut group = Group {
            head,
            result: node.output,
            residual: None,
            clamp: (f32::NEG_INFINITY, f32::INFINITY),
        };
        let mut last = head;
        let is_mac = matches!(node.op, Op::Conv(_) | Op::Linear(_));
        if is_mac
            && let Some(index) = sole_consumer(group.result)
            && !fused[index]
            && graph.nodes[index].op == Op::Binary(Binary::Add)
            && let Some(&other) = graph.nodes[index].inputs.iter().find(|&&t| t != group.result)
            && graph.shape(other) == graph.shape(group.result)
            && !constant(other)
        {
            fused[index] = true;
            group.residual = Some(other);
            group.result = graph.nodes[index].output;
            last = index;
        }
        let accumulates = is_mac
            || matches!(
                node.op,
                Op::MatMul { .. }
                    | Op::Affine { .. }
                    | Op::Binary(_)
                    | Op::AveragePool { .. }
                    | Op::Mean { .. }
            );
        if accumulates
            && let Some(index) = sole_consumer(group.result)
            && let Op::Activation(activation) = graph.nodes[index].op
            && let Some(clamp) = bounds(activation)
        {
            fused[index] = true;
            group.clamp = clamp;
            group.result = graph.nodes[index].output;
            last = index;
        }
        groups.push((last, group));
    }
    // A group runs where its last node stood: by then every operand is there.
    groups.sort_by_key(|&(last, _)| last);
    groups.into_iter().map(|(_, group)| group).collect()
}
