//! The layers that multiply and accumulate, with their sizes.

use super::{Graph, Op};

/// What kind of MAC layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Every output channel reads every input channel, or those of its group.
    Convolution,
    /// Every channel is convolved by itself.
    Depthwise,
    /// Fully connected.
    Linear,
}

impl LayerKind {
    /// `convolution`, `depthwise` or `linear`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Convolution => "convolution",
            Self::Depthwise => "depthwise",
            Self::Linear => "linear",
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
        let layer = |(index, node): (usize, &super::Node)| {
            let output = self.shape(node.output).to_vec();
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
                output,
                kernel,
                macs: positions as u64 * weights,
                weights,
                parameters: weights + bias.len() as u64,
            })
        };
        self.nodes.iter().enumerate().filter_map(layer).collect()
    }
}
