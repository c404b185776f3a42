//! The layers that multiply and accumulate, with their sizes.

use super::{Graph, Node, Op};

/// What kind of MAC layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Every output channel reads every input channel, or those of its group.
    Convolution,
    /// Every channel is convolved by itself.
    Depthwise,
    /// Fully connected.
    Linear,
    /// Product of two computed matrices.
    MatrixProduct,
}

impl LayerKind {
    /// `convolution`, `depthwise`, `linear` or `matrix product`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Convolution => "convolution",
            Self::Depthwise => "depthwise",
            Self::Linear => "linear",
            Self::MatrixProduct => "matrix product",
        }
    }
}

/// Sizes of one MAC layer, for one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacLayer {
    /// Index of its node.
    pub node: usize,
    /// Name of its node.
    pub name: String,
    /// What kind it is.
    pub kind: LayerKind,
    /// Shape of its operand.
    pub input: Vec<usize>,
    /// Elements of the second operand of a matrix product; 0 for all other kinds.
    pub second_operand: u64,
    /// Shape of its result.
    pub output: Vec<usize>,
    /// Height and width of its window.
    pub kernel: [usize; 2],
    /// Multiply-accumulates.
    pub macs: u64,
    /// Number of weights.
    pub weights: u64,
    /// Number of weights and biases.
    pub parameters: u64,
}

impl Graph {
    /// The MAC layers in execution order. Padding counts as if it were multiplied.
    pub fn mac_layers(&self) -> Vec<MacLayer> {
        let layer = |(index, node): (usize, &Node)| {
            let output = self.shape(node.output).to_vec();
            if matches!(node.op, Op::MatMul { .. }) {
                return Some(self.matrix_product(index, node, output));
            }
            let (kind, weight, bias, kernel) = match &node.op {
                Op::Conv(conv) => {
                    let channels = self.shape(node.inputs[0])[0];
                    let single = conv.groups > 1 && conv.groups == channels;
                    let kind = if single { LayerKind::Depthwise } else { LayerKind::Convolution };
                    let shape = conv.weight.shape();
                    (kind, &conv.weight, &conv.bias, [shape[2], shape[3]])
                }
                Op::Linear(linear) => (LayerKind::Linear, &linear.weight, &linear.bias, [1, 1]),
                _ => return None,
            };
            let outputs = weight.shape()[0];
            let positions = output.iter().product::<usize>() / outputs;
            let weights = weight.values().len() as u64;
            Some(MacLayer {
                node: index,
                name: node.name.clone(),
                kind,
                input: self.shape(node.inputs[0]).to_vec(),
                second_operand: 0,
                output,
                kernel,
                macs: positions as u64 * weights,
                weights,
                parameters: weights + bias.len() as u64,
            })
        };
        self.nodes.iter().enumerate().filter_map(layer).collect()
    }

    /// A product of computed matrices has no weights: its second operand is a tensor like the first.
    fn matrix_product(&self, index: usize, node: &Node, output: Vec<usize>) -> MacLayer {
        let [a, b] = [0, 1].map(|operand| self.shape(node.inputs[operand]));
        let inner = a.last().copied().unwrap_or(1);
        MacLayer {
            node: index,
            name: node.name.clone(),
            kind: LayerKind::MatrixProduct,
            input: a.to_vec(),
            second_operand: b.iter().product::<usize>() as u64,
            kernel: [1, 1],
            macs: (output.iter().product::<usize>() * inner) as u64,
            weights: 0,
            parameters: 0,
            output,
        }
    }

    /// The operators that have no integer form and are computed in float inside an integer network:
    /// (name of the node, `layer norm` or `softmax`), in execution order.
    pub fn float_islands(&self) -> Vec<(&str, &'static str)> {
        let island = |node: &'_ Node| node.op.float_island();
        self.nodes.iter().filter_map(|n| Some((n.name.as_str(), island(n)?))).collect()
    }
}

impl Op {
    /// What the operator is called if it has no integer form: `layer norm` or `softmax`.
    pub fn float_island(&self) -> Option<&'static str> {
        match self {
            Self::LayerNorm { .. } => Some("layer norm"),
            Self::Softmax => Some("softmax"),
            _ => None,
        }
    }
}
