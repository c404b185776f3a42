//! What quantization decides: everything that lowering turns into integers.

use std::collections::BTreeMap;

use bitgear_core::bits::BitWidth;

use super::weights::QuantizedWeights;
use crate::execute::ActivationScale;
use crate::graph::{Op, TensorId};
use crate::vector::vectorized;

/// Quantization parameters of one operating point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// One per MAC layer, in execution order.
    pub layers: Vec<LayerParameters>,
    /// Scale of each stored version of a tensor, by its width. What is not listed has the scale of
    /// least squared error on its calibrated range.
    pub scales: BTreeMap<(TensorId, BitWidth), InputScale>,
}

/// Quantization parameters of one MAC layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerParameters {
    /// Weights, in the domain of the input's factors.
    pub weights: QuantizedWeights,
    /// Whether the codes are odd numbers that stand for the leading bits of a wider point's codes.
    pub odd: bool,
    /// One per output channel.
    pub bias: Vec<f32>,
    /// Squared error of the result on held-out calibration samples over the result's variance; not
    /// a number where nothing was held out.
    pub held_out_error: f64,
}

impl LayerParameters {
    /// The layer's operator with the real weights that the codes stand for.
    pub(super) fn dequantized(&self, op: &Op) -> Op {
        self.weights.dequantized(op, &self.bias)
    }
}

/// How a version of a tensor is stored: code · scale stands for value / factor of its channel.
#[derive(Clone, Debug, PartialEq)]
pub struct InputScale {
    /// The scale that all channels share.
    pub scale: ActivationScale,
    /// One per channel; empty where all are 1. The layer that makes the tensor divides by them, the
    /// one that reads it has them in its weights.
    pub factors: Vec<f32>,
}

/// Adding and subtracting 1.5 · 2^23 rounds to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

impl InputScale {
    /// All channels alike.
    pub fn plain(scale: ActivationScale) -> Self {
        Self { scale, factors: Vec::new() }
    }

    /// No channel's largest code stands for more than `high`, so that saturation does what a clamp
    /// at `high` would.
    pub(super) fn within(mut self, high: f32) -> Self {
        let reach = self.scale.value(self.scale.bits.code_max() as u16) as f32;
        for factor in &mut self.factors {
            if reach * *factor > high {
                *factor = high / reach;
            }
        }
        self
    }

    /// Quantizes one sample of a tensor of `shape` and gives back what the codes stand for, still
    /// divided by the factors.
    pub(super) fn quantize(&self, values: &[f32], shape: &[usize], out: &mut [f32]) {
        let ActivationScale { bits, scale, .. } = self.scale;
        if self.scale.is_sign() {
            for (out, &v) in out.iter_mut().zip(values) {
                *out = (if v > 0.0 { 0.5 } else { -0.5 }) * scale as f32;
            }
            return;
        }
        let zero = f32::from(self.scale.zero_code());
        let (low, high) = (-zero, bits.code_max() as f32 - zero);
        let (step, inverse) = (scale as f32, (1.0 / scale) as f32);
        let run = |out: &mut [f32], values: &[f32], inverse: f32| {
            vectorized(move || {
                for (out, &v) in out.iter_mut().zip(values) {
                    let code = (v * inverse).max(low).min(high);
                    *out = ((code + ROUND) - ROUND) * step;
                }
            });
        };
        if self.factors.is_empty() {
            run(out, values, inverse);
            return;
        }
        let inner: usize = if shape.len() == 3 { shape[1] * shape[2] } else { 1 };
        let channels = self.factors.iter().cycle();
        for ((out, values), factor) in
            out.chunks_exact_mut(inner).zip(values.chunks_exact(inner)).zip(channels)
        {
            run(out, values, inverse / factor);
        }
    }

    /// From the gradient of what [`Self::quantize`] gave, that of `values`, in place, and that of
    /// the scale's logarithm. Rounding counts as the identity, saturation as a constant number of
    /// steps.
    pub(super) fn pull_back(&self, values: &[f32], shape: &[usize], gradient: &mut [f32]) -> f32 {
        const LANES: usize = 8;
        let step = self.scale.scale as f32;
        if self.scale.is_sign() {
            let mut slope = 0.0;
            for (gradient, &value) in gradient.iter_mut().zip(values) {
                let code = value / step;
                slope += *gradient
                    * (0.5_f32.copysign(code) - if code.abs() <= 0.5 { code } else { 0.0 });
                if code.abs() > 0.5 {
                    *gradient = 0.0;
                }
            }
            return slope * step;
        }
        let zero = f32::from(self.scale.zero_code());
        let (low, high) = (-zero, self.scale.bits.code_max() as f32 - zero);
        let mut sums = [0.0_f32; LANES];
        let mut run = |gradient: &mut [f32], values: &[f32], factor: f32| {
            let (to_code, back) = (1.0 / (step * factor), 1.0 / factor);
            let pairs = gradient.chunks_mut(LANES).zip(values.chunks(LANES));
            sums = vectorized(move || {
                let mut sums = sums;
                for (gradient, values) in pairs {
                    for ((sum, gradient), &value) in sums.iter_mut().zip(gradient).zip(values) {
                        let code = value * to_code;
                        let clamped = code.max(low).min(high);
                        let rounded = (clamped + ROUND) - ROUND;
                        let inside = if code == clamped { 1.0 } else { 0.0 };
                        *sum += *gradient * (rounded - inside * code);
                        *gradient *= inside * back;
                    }
                }
                sums
            });
        };
        if self.factors.is_empty() {
            run(gradient, values, 1.0);
        } else {
            let inner: usize = if shape.len() == 3 { shape[1] * shape[2] } else { 1 };
            let channels = self.factors.iter().cycle();
            let rows = gradient.chunks_exact_mut(inner).zip(values.chunks_exact(inner));
            for ((gradient, values), &factor) in rows.zip(channels) {
                run(gradient, values, factor);
            }
        }
        sums.iter().sum::<f32>() * step
    }

    /// Values of all samples over the factors.
    pub(super) fn divided<'v>(
        values: &'v [f32],
        shape: &[usize],
        factors: &[f32],
    ) -> std::borrow::Cow<'v, [f32]> {
        if factors.is_empty() {
            return values.into();
        }
        let inner: usize = if shape.len() == 3 { shape[1] * shape[2] } else { 1 };
        let mut divided = values.to_vec();
        for (values, factor) in divided.chunks_exact_mut(inner).zip(factors.iter().cycle()) {
            for value in values {
                *value /= factor;
            }
        }
        divided.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gradient of 1 comes back whole where codes don't saturate and not at all where they do;
    /// there the value moves with the scale, elsewhere by what rounding added.
    #[test]
    fn gradients_pass_through_rounding_and_stop_at_saturation() {
        let bits = BitWidth::new(3).unwrap();
        let scale = ActivationScale::symmetric(bits, 0.5, false);
        let input = InputScale { scale, factors: vec![1.0, 2.0] };
        // Two channels of two elements: in codes 1.2, 9, 0.6 and -4.
        let values = [0.6, 4.5, 0.6, -4.0];
        let mut gradient = [1.0; 4];
        let slope = input.pull_back(&values, &[2, 1, 2], &mut gradient);
        assert_eq!(gradient, [1.0, 0.0, 0.5, 0.0]);
        let expected = 0.5 * ((1.0 - 1.2) + 7.0 + (1.0 - 0.6) + 0.0);
        assert!((slope - expected).abs() < 1e-5, "{slope} instead of {expected}");

        let sign = ActivationScale::symmetric(BitWidth::new(1).unwrap(), 2.0, true);
        let mut gradient = [1.0; 3];
        // In steps 0.25, -0.25 and 3, of which ±0.5 are stored.
        let slope = InputScale::plain(sign).pull_back(&[0.5, -0.5, 6.0], &[3], &mut gradient);
        assert_eq!(gradient, [1.0, 1.0, 0.0]);
        assert!((slope - 2.0 * (0.25 - 0.25 + 0.5)).abs() < 1e-5, "{slope}");
    }
}
