//! Ranges of tensors on calibration data, and the activation scales that follow from them.
//!
//! Memory does not grow with the number of samples: one pass finds each tensor's smallest and
//! largest value, a second counts values into a fixed number of bins between them. Both are sums
//! or extremes of integers and floats that don't depend on order, so the result is the same at any
//! thread count.

use bitgear_core::bits::BitWidth;

use crate::execute::ActivationScale;
use crate::graph::TensorId;

/// Bins of one tensor's histogram.
const BINS: usize = 4096;
/// Candidate clipping points tried for each bit-width.
const CANDIDATES: usize = 128;

/// What calibration saw of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// How many values fell into each of the equal bins between `min` and `max`.
    bins: Vec<u64>,
}

/// Ranges of all tensors of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    tensors: Vec<Range>,
}

impl Ranges {
    /// What calibration saw of `tensor`.
    pub fn of(&self, tensor: TensorId) -> &Range {
        &self.tensors[tensor.0]
    }
}

impl Range {
    /// The scale of least expected squared error for `bits`.
    ///
    /// Errors are summed over the histogram: a value inside the representable range costs what
    /// rounding its bin's centre costs plus, where the step is finer than a bin, step² / 12; a
    /// value outside costs its distance to the range's end.
    pub fn scale(&self, bits: BitWidth) -> ActivationScale {
        let signed = self.min < 0.0;
        let largest = f64::from(self.max.max(-self.min));
        let unit = |scale| ActivationScale { bits, scale, signed };
        if largest <= 0.0 {
            return unit(1.0);
        }
        // The representable end on the wider side, in steps.
        let steps = match (signed, bits.get()) {
            (true, 1) => 0.5,
            (true, b) => f64::from((1_u32 << (b - 1)) - 1),
            (false, _) => f64::from(bits.code_max()),
        };
        let mut best = (f64::INFINITY, unit(largest / steps));
        for i in 0..CANDIDATES {
            let clip = largest * (1.0 - i as f64 / CANDIDATES as f64);
            let candidate = unit(clip / steps);
            let error = self.squared_error(&candidate);
            if error < best.0 {
                best = (error, candidate);
            }
        }
        best.1
    }

    fn squared_error(&self, scale: &ActivationScale) -> f64 {
        let width = (f64::from(self.max) - f64::from(self.min)) / self.bins.len() as f64;
        let within_bin = if scale.scale < width { scale.scale.powi(2) / 12.0 } else { 0.0 };
        let mut sum = 0.0;
        for (i, &count) in self.bins.iter().enumerate() {
            if count > 0 {
                let centre = f64::from(self.min) + (i as f64 + 0.5) * width;
                let distance = centre - scale.value(scale.code(centre));
                sum += count as f64 * (distance * distance).max(within_bin);
            }
        }
        sum
    }
}

/// First pass: the extremes of every tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Extremes {
    tensors: Vec<(f32, f32)>,
}

impl Extremes {
    /// Extremes of no data, for `tensors` tensors.
    pub fn new(tensors: usize) -> Self {
        Self { tensors: vec![(f32::INFINITY, f32::NEG_INFINITY); tensors] }
    }

    /// Takes in values of one tensor.
    pub fn observe(&mut self, tensor: TensorId, values: &[f32]) {
        let (min, max) = &mut self.tensors[tensor.0];
        for &value in values {
            *min = min.min(value);
            *max = max.max(value);
        }
    }

    /// Takes in what another thread saw.
    #[must_use]
    pub fn merge(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.tensors.iter_mut().zip(&other.tensors) {
            *mine = (mine.0.min(theirs.0), mine.1.max(theirs.1));
        }
        self
    }
}

/// Second pass: histograms between the extremes.
#[derive(Clone, Debug, PartialEq)]
pub struct Histograms {
    tensors: Vec<Range>,
}

impl Histograms {
    /// Empty histograms between `extremes`; a tensor never seen counts as constantly zero.
    pub fn new(extremes: &Extremes) -> Self {
        let range = |&(min, max): &(f32, f32)| {
            let (min, max) = if min <= max { (min, max) } else { (0.0, 0.0) };
            Range { min, max, bins: vec![0; BINS] }
        };
        Self { tensors: extremes.tensors.iter().map(range).collect() }
    }

    /// Takes in values of one tensor.
    pub fn observe(&mut self, tensor: TensorId, values: &[f32]) {
        let Range { min, max, bins } = &mut self.tensors[tensor.0];
        let per_unit = if max > min { BINS as f32 / (*max - *min) } else { 0.0 };
        for &value in values {
            let bin = ((value - *min) * per_unit) as usize;
            bins[bin.min(BINS - 1)] += 1;
        }
    }

    /// Takes in what another thread counted.
    #[must_use]
    pub fn merge(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.tensors.iter_mut().zip(&other.tensors) {
            for (a, b) in mine.bins.iter_mut().zip(&theirs.bins) {
                *a += b;
            }
        }
        self
    }

    /// The finished ranges.
    pub fn finish(self) -> Ranges {
        Ranges { tensors: self.tensors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(b: u8) -> BitWidth {
        BitWidth::new(b).unwrap()
    }

    fn range(values: &[f32]) -> Range {
        let id = TensorId(0);
        let mut extremes = Extremes::new(1);
        extremes.observe(id, values);
        let mut histograms = Histograms::new(&extremes);
        histograms.observe(id, values);
        histograms.finish().of(id).clone()
    }

    #[test]
    fn an_outlier_is_clipped_at_few_bits_and_kept_at_many() {
        // 9,999 values spread over 0 … 1 and a single 20.
        let mut values: Vec<f32> = (0..9999).map(|i| i as f32 / 9999.0).collect();
        values.push(20.0);
        let range = range(&values);
        let reach = |b: u8| range.scale(bits(b)).scale * f64::from(bits(b).code_max());
        assert!(reach(3) < 5.0, "{}", reach(3));
        assert!(reach(16) > 19.9, "{}", reach(16));
    }

    #[test]
    fn a_constant_tensor_has_a_usable_scale() {
        for value in [0.0, 3.0, -3.0] {
            let scale = range(&[value; 10]).scale(bits(8));
            assert!(scale.scale > 0.0);
            assert!((scale.value(scale.code(f64::from(value))) - f64::from(value)).abs() < 0.05);
        }
    }
}
