//! Plain weight quantization: nearest rounding with the scale of least squared error, one per output
//! channel unless the hardware asks for less.

use bitgear_core::bits::BitWidth;
use pulp::NullaryFnOnce;

use super::fit::Grid;
use super::methods::Constraints;
use crate::graph::Op;
use crate::tensor::Tensor;
use crate::vector::vectorized;

/// Weights of one layer as integers: real weight ≈ `scales[o]` · code.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedWeights {
    /// Row-major in the order of the float weights, output channel outermost.
    pub codes: Vec<i16>,
    /// One per output channel, of either sign.
    pub scales: Vec<f64>,
}

impl QuantizedWeights {
    /// A MAC layer's operator with the real weights that the codes stand for.
    pub(super) fn dequantized(&self, op: &Op, bias: &[f32]) -> Op {
        let row = self.codes.len() / self.scales.len();
        let rows = self.codes.chunks_exact(row).zip(&self.scales);
        let values = rows
            .flat_map(|(row, &scale)| row.iter().map(move |&q| (f64::from(q) * scale) as f32))
            .collect();
        let mut op = op.clone();
        let (weight, own) = op.weight_and_bias_mut().expect("only MAC layers have weights");
        *weight = Tensor::new(weight.shape().to_vec(), values);
        bias.clone_into(own);
        op
    }
}

/// Candidate scales: the largest magnitude that stays representable runs from this share of the
/// channel's largest weight up to all of it.
const SMALLEST_CLIP: f64 = 0.2;
const CANDIDATES: usize = 80;

/// A channel's scale is at least this share of the layer's largest one, so that channels of almost
/// no weight can't blow up the integer bias, which is counted in units of the scale.
const SCALE_FLOOR: f64 = 1.0 / 4096.0;

/// Rounds `weights` (`channels` rows of equal length, row-major) to `bits`, each row with the
/// scale of least squared error. Codes are two's complement; 1 bit means {-1, +1}.
///
/// Channels whose weights are all zero get code 0, or +1 at 1 bit with the smallest scale.
pub fn quantize_plain(weights: &[f32], channels: usize, bits: BitWidth) -> QuantizedWeights {
    let row = weights.len() / channels;
    quantize_rows(weights, row, Grid::new(bits), Constraints::default())
}

/// Rounds rows of `columns` weights to the nearest codes of a grid.
pub(super) fn quantize_rows(
    weights: &[f32],
    columns: usize,
    grid: Grid,
    constraints: Constraints,
) -> QuantizedWeights {
    let power_of_two = constraints.power_of_two_scales;
    let mut scales: Vec<f64> = if constraints.per_tensor_scales {
        vec![best_scale(weights, grid, power_of_two); weights.len() / columns]
    } else {
        weights.chunks_exact(columns).map(|row| best_scale(row, grid, power_of_two)).collect()
    };
    let floor = scales.iter().copied().fold(0.0, f64::max) * SCALE_FLOOR;
    let floor = if floor > 0.0 { floor } else { 1.0 };
    for scale in &mut scales {
        *scale = scale.max(floor);
    }
    let codes = weights
        .chunks_exact(columns)
        .zip(&scales)
        .flat_map(|(row, &scale)| row.iter().map(move |&w| code(w, scale, grid)))
        .collect();
    QuantizedWeights { codes, scales }
}

/// Nearest code of `weight`, ties to even, saturating; of two signs the one of the weight.
fn code(weight: f32, scale: f64, grid: Grid) -> i16 {
    if grid.is_sign() {
        return if weight < 0.0 { -1 } else { 1 };
    }
    grid.nearest(f64::from(weight) / scale) as i16
}

/// Of weights rounded at a scale, in eight interleaved sums.
struct SquaredError<'a> {
    row: &'a [f32],
    scale: f64,
    grid: Grid,
}

impl NullaryFnOnce for SquaredError<'_> {
    type Output = f64;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled for vectors only where it is inlined")]
    fn call(self) -> f64 {
        let mut sums = [0.0; 8];
        for weights in self.row.chunks(sums.len()) {
            for (sum, &w) in sums.iter_mut().zip(weights) {
                let w = f64::from(w);
                *sum += (w - self.scale * self.grid.round(w / self.scale)).powi(2);
            }
        }
        sums.iter().sum()
    }
}

/// Scale of least squared error for weights that share one.
fn best_scale(row: &[f32], grid: Grid, power_of_two: bool) -> f64 {
    let largest = row.iter().fold(0.0_f64, |max, &w| max.max(f64::from(w.abs())));
    if grid.is_sign() && !power_of_two {
        // For codes of ±1 the optimum has a closed form: the mean magnitude.
        return row.iter().map(|&w| f64::from(w.abs())).sum::<f64>() / row.len() as f64;
    }
    let levels = f64::from(grid.high);
    let error = |scale: f64| {
        if grid.is_sign() {
            let errors =
                row.iter().map(|&w| f64::from(w) - scale * f64::from(code(w, scale, grid)));
            return errors.map(|error| error.powi(2)).sum();
        }
        vectorized(SquaredError { row, scale, grid })
    };
    let mut best = (f64::INFINITY, largest / levels);
    if largest > 0.0 {
        for i in 0..=CANDIDATES {
            let clip = 1.0 - (1.0 - SMALLEST_CLIP) * i as f64 / CANDIDATES as f64;
            let mut scale = largest * clip / levels;
            if power_of_two {
                scale = scale.log2().ceil().exp2();
            }
            let error = error(scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(b: u8) -> BitWidth {
        BitWidth::new(b).unwrap()
    }

    #[test]
    fn weights_that_are_codes_come_back_exactly() {
        // -4..=3 times 0.5 fills the 3-bit range; the positive end sets the scale.
        let weights = [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5];
        let q = quantize_plain(&weights, 1, bits(3));
        assert_eq!(q.codes, [-3, -2, -1, 0, 1, 2, 3]);
        assert_eq!(q.scales, [0.5]);
    }

    #[test]
    fn one_bit_weights_are_signs_times_the_mean_magnitude() {
        let q = quantize_plain(&[-1.0, 2.0, 3.0], 1, bits(1));
        assert_eq!(q.codes, [-1, 1, 1]);
        assert_eq!(q.scales, [2.0]);
    }

    #[test]
    fn a_channel_of_zeros_stays_zero_beside_others() {
        let q = quantize_plain(&[0.0, 0.0, 1.0, -1.0], 2, bits(4));
        assert_eq!(q.codes[..2], [0, 0]);
        assert!(q.scales[0] > 0.0 && q.scales[0] < q.scales[1]);
    }

    proptest! {
        #[test]
        fn error_is_never_above_that_of_the_unclipped_scale(
            weights in prop::collection::vec(-2.0_f32..2.0, 1..40), b in 2_u8..=16,
        ) {
            let squared = |scale: f64| -> f64 {
                weights.iter().map(|&w| (f64::from(w) - scale * f64::from(code(w, scale, Grid::new(bits(b))))).powi(2)).sum()
            };
            let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            prop_assume!(largest > 0.0);
            let q = quantize_plain(&weights, 1, bits(b));
            prop_assert!(squared(q.scales[0]) <= squared(f64::from(largest) / f64::from(bits(b).weight_range().1)));
        }
    }
}
