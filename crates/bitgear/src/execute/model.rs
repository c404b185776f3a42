//! A network in integers: maps of codes and the steps between them. Made by
//! [`quantize`](crate::quantize), packed and run by an [`Engine`](super::Engine).

use bitgear_core::kernels::{ConvShape, MapLayout, PoolShape};
use serde::{Deserialize, Serialize};

use super::island::{IslandStep, MatMulStep};
use super::scale::ActivationScale;

/// Index of a map in [`IntegerModel::maps`].
pub type MapId = usize;

/// One operating point of a network: everything it takes to run, in integers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntegerModel {
    /// Name of the operating point.
    pub point: String,
    /// Shape of one input sample, as in the graph: (C, H, W), (T, D) or (F).
    pub input_shape: Vec<usize>,
    /// Every stored tensor version.
    pub maps: Vec<Map>,
    /// Maps that the float input is quantized into, all with the input's layout.
    pub inputs: Vec<MapId>,
    /// In execution order.
    pub steps: Vec<Step>,
    /// The map that holds the scores.
    pub scores: MapId,
}

/// A tensor of one sample, stored as codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// Name of the graph's tensor.
    pub name: String,
    /// Geometry in memory.
    pub layout: MapLayout,
    /// What the stored integers mean.
    pub format: Format,
    /// Codes of a constant operand in (y, x, channel) order; empty for everything computed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constant: Vec<u16>,
}

/// What the integers of a map mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Format {
    /// Unsigned codes of an activation tensor.
    Codes(ActivationScale),
    /// i32 scores: real = `scale` · score.
    Scores {
        /// Worth of one unit.
        scale: f64,
    },
}

impl Format {
    /// The real distance between two neighbouring integers.
    pub fn step(&self) -> f64 {
        match self {
            Self::Codes(scale) => scale.scale,
            Self::Scores { scale } => *scale,
        }
    }

    /// Whether the integers are nothing but signs, whose multiplier says no more than that.
    pub fn is_sign(&self) -> bool {
        matches!(self, Self::Codes(scale) if scale.is_sign())
    }
}

/// One stored version of a step's result:
/// code = clamp(round-half-even(t · multiplier) + zero, low, high).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requantization {
    /// Where it is stored.
    pub map: MapId,
    /// One per channel of the map; for averages one per number of pixels in the window.
    pub multipliers: Vec<f32>,
    /// Added after rounding.
    pub zero: i32,
    /// Smallest result.
    pub low: i32,
    /// Largest result.
    pub high: i32,
}

/// A convolution or fully connected layer with all that is fused into it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MacStep {
    /// Name of the graph's node.
    pub name: String,
    /// Operand.
    pub input: MapId,
    /// Geometry. A fully connected layer is a 1 x 1 convolution.
    pub shape: ConvShape,
    /// Bit-width of the weights.
    pub weight_bits: u8,
    /// Whether the codes are odd numbers 2p + 1: p is the leading bits of the code of a wider point,
    /// and the code the middle of all that begin with them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub odd: bool,
    /// Weight codes, (out channel, ky, kx, channel within the group). Stored apart from the rest.
    #[serde(skip)]
    pub codes: Vec<i16>,
    /// t = (acc << shift) + bias + residual multiplier · residual code
    pub shift: u32,
    /// One per output channel, zero points included.
    pub bias: Vec<i64>,
    /// Fused addition: its operand and one multiplier per channel.
    pub residual: Option<(MapId, Vec<i64>)>,
    /// Versions of the result.
    pub outputs: Vec<Requantization>,
}

/// One operation between maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Multiply-accumulates with a fused epilogue.
    Mac(MacStep),
    /// A product of two computed matrices.
    MatMul(MatMulStep),
    /// A function of rows, in float.
    Island(IslandStep),
    /// t = Σ multiplier\[c\] · code + bias\[c\] over the operands, which may broadcast.
    Combine {
        /// Operands with one multiplier per channel of the result.
        operands: Vec<(MapId, Vec<i64>)>,
        /// One per channel of the result.
        bias: Vec<i64>,
        /// Versions of the result.
        outputs: Vec<Requantization>,
    },
    /// t = (a - zero a) · (b - zero b); either may broadcast.
    Product {
        /// Operand.
        a: MapId,
        /// Operand.
        b: MapId,
        /// Versions of the result.
        outputs: Vec<Requantization>,
    },
    /// t = Σ (code - zero) over the pixels of the window that lie inside the map.
    Average {
        /// Operand.
        input: MapId,
        /// The window.
        window: PoolShape,
        /// Versions of the result.
        outputs: Vec<Requantization>,
    },
    /// Largest code of the window.
    MaxPool {
        /// Operand.
        input: MapId,
        /// The window.
        window: PoolShape,
        /// Result, in the operand's format.
        output: MapId,
    },
    /// An element-wise function as a table over all codes.
    Lookup {
        /// Operand.
        input: MapId,
        /// One code per code of the operand.
        table: Vec<u16>,
        /// Result.
        output: MapId,
    },
    /// Moves codes. For each operand one index per element of the result in (y, x, channel)
    /// order: where in the operand's memory it is, or [`NOWHERE`].
    Gather {
        /// Operands, all of the result's format.
        sources: Vec<(MapId, Vec<u32>)>,
        /// Result; what no operand fills stays at the zero code.
        output: MapId,
    },
}

impl Step {
    /// Visits the maps that the step reads.
    pub(super) fn operands(&self, visit: &mut impl FnMut(MapId)) {
        match self {
            Self::Mac(mac) => {
                visit(mac.input);
                if let Some((map, _)) = &mac.residual {
                    visit(*map);
                }
            }
            Self::Combine { operands, .. } => operands.iter().for_each(|(map, _)| visit(*map)),
            Self::MatMul(MatMulStep { a, b, .. }) | Self::Product { a, b, .. } => {
                visit(*a);
                visit(*b);
            }
            Self::Average { input, .. }
            | Self::MaxPool { input, .. }
            | Self::Lookup { input, .. }
            | Self::Island(IslandStep { input, .. }) => visit(*input),
            Self::Gather { sources, .. } => sources.iter().for_each(|(map, _)| visit(*map)),
        }
    }

    /// Visits the maps that the step writes.
    pub(super) fn results(&self, visit: &mut impl FnMut(MapId)) {
        let versions = match self {
            Self::Mac(MacStep { outputs, .. })
            | Self::MatMul(MatMulStep { outputs, .. })
            | Self::Combine { outputs, .. }
            | Self::Product { outputs, .. }
            | Self::Average { outputs, .. } => outputs,
            Self::Island(step) => return step.outputs.iter().for_each(|map| visit(*map)),
            Self::MaxPool { output, .. }
            | Self::Lookup { output, .. }
            | Self::Gather { output, .. } => return visit(*output),
        };
        for version in versions {
            visit(version.map);
        }
    }
}

/// Index of an element that a gather leaves alone.
pub const NOWHERE: u32 = u32::MAX;

impl IntegerModel {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        let layout = &self.maps[self.scores].layout;
        layout.height * layout.width * layout.channels
    }

    /// Worth of one unit of the scores and of the margin.
    pub fn score_scale(&self) -> f64 {
        match self.maps[self.scores].format {
            Format::Scores { scale } => scale,
            Format::Codes(_) => unreachable!("the scores' map holds scores"),
        }
    }

    /// The MAC layers with weights in execution order.
    pub fn mac_steps(&self) -> impl Iterator<Item = &MacStep> {
        self.steps.iter().filter_map(
            |step| {
                if let Step::Mac(mac) = step { Some(mac) } else { None }
            },
        )
    }

    fn codes_mut(&mut self) -> impl Iterator<Item = &mut Vec<i16>> {
        self.steps
            .iter_mut()
            .filter_map(|step| if let Step::Mac(mac) = step { Some(&mut mac.codes) } else { None })
    }

    /// The model; what stays behind has no weights.
    pub(crate) fn take_weights(&mut self) -> Self {
        let codes: Vec<Vec<i16>> = self.codes_mut().map(std::mem::take).collect();
        let mut whole = self.clone();
        for (empty, codes) in whole.codes_mut().zip(codes) {
            *empty = codes;
        }
        whole
    }
}

impl Map {
    /// The scale of its codes.
    ///
    /// # Panics
    ///
    /// On scores.
    pub fn scale(&self) -> &ActivationScale {
        match &self.format {
            Format::Codes(scale) => scale,
            Format::Scores { .. } => unreachable!("scores are read by no step"),
        }
    }

    /// The integer that padding holds.
    pub fn fill(&self) -> u16 {
        match &self.format {
            Format::Codes(scale) => scale.zero_code(),
            Format::Scores { .. } => 0,
        }
    }
}
