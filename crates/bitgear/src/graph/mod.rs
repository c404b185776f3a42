//! The network as a list of operators over tensors: what import makes and everything else reads.
//!
//! Shapes are those of *one sample*: the batch axis is never written down, never touched by an
//! operator, and always the outermost one at run time. Images are (C, H, W), sequences of features
//! (T, D), vectors (F); the heads
//! of attention are (heads, T, d). One-dimensional convolutions are imported as two-dimensional ones of height 1.
//!
//! Batch norms are folded, constants and shape arithmetic are gone, and no operator outside
//! [`Op`] exists, so every reader can match exhaustively.

mod gelu;
mod layers;
mod shape;
mod simplify;

pub use layers::{LayerKind, MacLayer};
pub use shape::infer;
pub use simplify::simplify;

use crate::tensor::Tensor;

/// Index of a tensor in [`Graph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub usize);

/// A value that flows between nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the source model, or one derived from the node that makes it.
    pub name: String,
    /// Shape of one sample, without the batch axis.
    pub shape: Vec<usize>,
}

/// A network of one input and one output. Nodes are in execution order.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// All tensors; [`TensorId`] indexes here.
    pub tensors: Vec<TensorInfo>,
    /// Operators, each after the ones it reads.
    pub nodes: Vec<Node>,
    /// The network's input.
    pub input: TensorId,
    /// The scores, of shape (classes): raw, a final softmax is dropped.
    pub output: TensorId,
}

/// One operator with its operands and its single result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name in the source model, unique in the graph.
    pub name: String,
    /// What it computes, weights included.
    pub op: Op,
    /// Operands, in the order [`Op`] documents.
    pub inputs: Vec<TensorId>,
    /// Result.
    pub output: TensorId,
}

/// Two-dimensional convolution of a (C, H, W) tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// (O, C / groups, kH, kW).
    pub weight: Tensor,
    /// (O); zeros where the model has none.
    pub bias: Vec<f32>,
    /// Vertical, horizontal.
    pub strides: [usize; 2],
    /// Zeros added at top, left, bottom, right.
    pub pads: [usize; 4],
    /// Vertical, horizontal.
    pub dilations: [usize; 2],
    /// Input and output channels fall into this many independent groups.
    pub groups: usize,
}

/// Fully connected layer over the last axis: y = x · weightᵀ + bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// (O, I).
    pub weight: Tensor,
    /// (O).
    pub bias: Vec<f32>,
}

/// Element-wise function of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// min(max(x, low), high); infinite bounds are allowed.
    Clip {
        /// Lower bound.
        low: f32,
        /// Upper bound.
        high: f32,
    },
    /// x where x ≥ 0, else alpha · x
    LeakyRelu {
        /// Slope below zero.
        alpha: f32,
    },
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// min(max(alpha · x + beta, 0), 1)
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// x · min(max(x / 6 + 1/2, 0), 1)
    HardSwish,
    /// Hyperbolic tangent.
    Tanh,
    /// x / 2 · (1 + erf(x / √2))
    Gelu,
    /// Error function: 2 / √π · ∫ exp(-t²) from 0 to x.
    Erf,
}

/// Arithmetic of two tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
}

/// Window of a pooling operator over (C, H, W).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Height, width.
    pub kernel: [usize; 2],
    /// Vertical, horizontal.
    pub strides: [usize; 2],
    /// Top, left, bottom, right (with `ceil_mode` already added to bottom and right).
    pub pads: [usize; 4],
}

/// Every operator a [`Graph`] can hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// One operand (C, H, W).
    Conv(Conv),
    /// One operand (…, I).
    Linear(Linear),
    /// Two operands (…, M, K) and (…, K, N) with the same leading axes: `scale` · a · b, the product
    /// of matrices over the last two axes.
    MatMul {
        /// What the product is multiplied by: 1 / √d in attention.
        scale: f32,
    },
    /// One operand: (x - mean) / √(variance + epsilon) · scale + shift, mean and variance being those
    /// along the last axis.
    LayerNorm {
        /// (last axis).
        scale: Vec<f32>,
        /// (last axis).
        shift: Vec<f32>,
        /// Positive.
        epsilon: f32,
    },
    /// One operand: exp(x) / Σ exp(x) along the last axis.
    Softmax,
    /// One operand: x · scale + shift with one value per channel, the channel being the axis
    /// `axis` of the sample's shape. What remains of batch norms and constant arithmetic that no
    /// MAC layer could take in.
    Affine {
        /// Which axis of the sample's shape is the channel.
        axis: usize,
        /// (`shape[axis]`).
        scale: Vec<f32>,
        /// (`shape[axis]`).
        shift: Vec<f32>,
    },
    /// One operand, any shape.
    Activation(Activation),
    /// Two operands, broadcast as in ONNX over the sample's shape.
    Binary(Binary),
    /// No operand: the same value for every sample. Only as operand of [`Op::Binary`] and
    /// [`Op::Concat`].
    Constant(Tensor),
    /// One operand (C, H, W); padding never wins.
    MaxPool(Pool),
    /// One operand (C, H, W). `count_padding` divides by the full window everywhere.
    AveragePool {
        /// The window.
        pool: Pool,
        /// Whether padding counts in the divisor.
        count_padding: bool,
    },
    /// One operand; mean over `axes` of the sample's shape (sorted), which are dropped or, with
    /// `keep`, stay as 1.
    Mean {
        /// Axes of the sample's shape.
        axes: Vec<usize>,
        /// Whether the axes stay as 1.
        keep: bool,
    },
    /// One operand; the output tensor's shape says the rest. Row-major order is kept.
    Reshape,
    /// One operand; output axis `i` is input axis `permutation[i]`, of the sample's shape.
    Transpose {
        /// Axes of the sample's shape.
        permutation: Vec<usize>,
    },
    /// Any number of operands, joined along an axis of the sample's shape.
    Concat {
        /// Axis of the sample's shape.
        axis: usize,
    },
    /// One operand; per axis of the sample's shape start, count and (possibly negative) step.
    Slice {
        /// (start, count, step) of each axis.
        ranges: Vec<SliceRange>,
    },
    /// One operand, zeros (or `value`) added per axis of the sample's shape.
    Pad {
        /// (before, after) of each axis.
        pads: Vec<(usize, usize)>,
        /// What is added.
        value: f32,
    },
}

impl Op {
    /// Weights (output channel outermost) and bias of a MAC layer.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &[f32])> {
        match self {
            Self::Conv(conv) => Some((&conv.weight, &conv.bias)),
            Self::Linear(linear) => Some((&linear.weight, &linear.bias)),
            _ => None,
        }
    }

    /// The same, to write.
    pub fn weight_and_bias_mut(&mut self) -> Option<(&mut Tensor, &mut Vec<f32>)> {
        match self {
            Self::Conv(conv) => Some((&mut conv.weight, &mut conv.bias)),
            Self::Linear(linear) => Some((&mut linear.weight, &mut linear.bias)),
            _ => None,
        }
    }
}

/// Which elements of one axis a slice keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceRange {
    /// First index.
    pub start: usize,
    /// Number of indices.
    pub count: usize,
    /// Distance from one to the next; negative walks backwards.
    pub step: isize,
}

impl Graph {
    /// Shape of one sample of the tensor.
    pub fn shape(&self, id: TensorId) -> &[usize] {
        &self.tensors[id.0].shape
    }

    /// Number of classes: the length of the scores.
    pub fn classes(&self) -> usize {
        self.shape(self.output).iter().product()
    }
}
