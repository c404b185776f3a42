//! Products of computed matrices, and float islands.

use bitgear_core::kernels::Matrices;

use super::{Group, Lowering};
use crate::execute::{Island, IslandStep, MatMulStep, Step};
use crate::graph::Op;
use crate::quantize::Widths;

/// How rows over a tensor's last axis lie in its map: see [`layout`](super::layout).
fn matrices(shape: &[usize]) -> Option<Matrices> {
    match shape.len() {
        1 | 2 => Some(Matrices::Single),
        3 => Some(Matrices::PerChannel),
        _ => None,
    }
}

impl Lowering<'_> {
    /// Adds the step of a product of computed tensors: the first operand has the layer's width of
    /// activations, the second that of weights.
    pub(super) fn matmul(&mut self, group: &Group, scale: f32, widths: Widths) {
        let node = &self.graph.nodes[group.head];
        let Some(matrices) = matrices(self.graph.shape(node.output)) else {
            self.problem(group.head, "product of tensors of rank 4 or more");
            return;
        };
        let a = self.version(node.inputs[0], widths.activations);
        let b = self.version(node.inputs[1], widths.weights);
        // Both codes are counted in halves.
        let unit = self.maps[a].scale().scale * self.maps[b].scale().scale * f64::from(scale) / 4.0;
        let name = node.name.clone();
        let outputs = self.requantizations(group, |_| unit);
        self.steps.push(Step::MatMul(MatMulStep { name, matrices, a, b, outputs }));
    }

    /// Adds the step of an operator without an integer form.
    pub(super) fn island(&mut self, group: &Group) {
        let node = &self.graph.nodes[group.head];
        let Some(matrices) = matrices(self.graph.shape(node.output)) else {
            self.problem(group.head, "function of the rows of a tensor of rank 4 or more");
            return;
        };
        let function = match &node.op {
            Op::LayerNorm { scale, shift, epsilon } => {
                let (scale, shift) = (scale.clone(), shift.clone());
                Island::LayerNorm { scale, shift, epsilon: *epsilon }
            }
            Op::Softmax => Island::Softmax,
            op => unreachable!("`{op:?}` has an integer form"),
        };
        let name = node.name.clone();
        let input = self.side_version(node.inputs[0], node.output);
        let outputs = self.versions_of(node.output).map(|(_, map)| map).collect();
        self.steps.push(Step::Island(IslandStep { name, function, matrices, input, outputs }));
    }
}
