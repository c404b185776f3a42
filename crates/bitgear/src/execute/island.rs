//! What a transformer computes besides layers: products of two computed matrices, in integers, and
//! float islands.

use bitgear_core::kernels::{Codes, Matrices};
use serde::{Deserialize, Serialize};

use super::model::{Map, MapId, Requantization};
use crate::float;

/// The product of two computed matrices:
/// t = Σ (2 · code a - 2 · zero a) · (2 · code b - 2 · zero b).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatMulStep {
    /// Name of the graph's node.
    pub name: String,
    /// How the matrices of operands and result lie in their maps.
    pub matrices: Matrices,
    /// Operand, whose columns are summed over.
    pub a: MapId,
    /// Operand, whose rows are summed over.
    pub b: MapId,
    /// Versions of the result.
    pub outputs: Vec<Requantization>,
}

/// A function of whole rows that has no integer form. Codes become real numbers, are computed with
/// in doubles, in a fixed order and without a mathematical library, and become the nearest codes
/// again: the same on every CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IslandStep {
    /// Name of the graph's node.
    pub name: String,
    /// What is computed.
    pub function: Island,
    /// How rows lie in the maps.
    pub matrices: Matrices,
    /// Operand.
    pub input: MapId,
    /// Versions of the result, with the operand's pixels and channels.
    pub outputs: Vec<MapId>,
}

/// What a float island computes of each row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Island {
    /// (x - mean) / √(variance + epsilon) · scale + shift
    LayerNorm {
        /// One per element of a row.
        scale: Vec<f32>,
        /// One per element of a row.
        shift: Vec<f32>,
        /// Positive.
        epsilon: f32,
    },
    /// exp(x) / Σ exp(x)
    Softmax,
}

impl IslandStep {
    /// Real values of the result in (y, x, channel) order; `map` describes the operand.
    pub(super) fn run(&self, codes: Codes<'_>, map: &Map) -> Vec<f64> {
        let (layout, scale) = (&map.layout, map.scale());
        let code = |index: usize| match codes {
            Codes::U8(codes) => u16::from(codes[index]),
            Codes::U16(codes) => codes[index],
        };
        let [count, rows, columns] = self.matrices.sizes(layout);
        let mut values = vec![0.0; count * rows * columns];
        let mut row = vec![0.0; columns];
        for matrix in 0..count {
            for index in 0..rows {
                let place = |column| self.matrices.place(layout, matrix, index, column);
                for (column, x) in row.iter_mut().enumerate() {
                    let (y, x_at, channel) = place(column);
                    *x = scale.value(code(layout.offset(y, x_at) + channel));
                }
                match &self.function {
                    Island::LayerNorm { scale, shift, epsilon } => {
                        float::layer_norm(&mut row, scale, shift, *epsilon);
                    }
                    Island::Softmax => float::softmax(&mut row),
                }
                for (column, &value) in row.iter().enumerate() {
                    let (y, x, channel) = place(column);
                    values[(y * layout.width + x) * layout.channels + channel] = value;
                }
            }
        }
        values
    }
}
