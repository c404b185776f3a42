//! Ranges of tensors on calibration data, and the activation scales that follow from them.
//!
//! Memory does not grow with the number of samples: one pass finds each tensor's smallest and
//! largest value, a second counts values into a fixed number of bins between them. Both are sums
//! or extremes of integers and floats that don't depend on order, so the result is the same at any
//! thread count.

use bitgear_core::bits::BitWidth;

use super::RangeRule;
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
    /// The range of one tensor whose values are all at hand.
    pub(super) fn of_values(values: &[f32]) -> Self {
        let id = TensorId(0);
        let mut extremes = Extremes::new(1);
        extremes.observe(id, values);
        let mut histograms = Histograms::new(&extremes);
        histograms.observe(id, values);
        histograms.tensors.swap_remove(0)
    }

    /// The scale of least expected squared error for `bits`.
    ///
    /// Errors are summed over the histogram: a value inside the representable range costs what
    /// rounding its bin's centre costs plus, where the step is finer than a bin, step² / 12; a
    /// value outside costs its distance to the range's end.
    pub fn scale(&self, bits: BitWidth) -> ActivationScale {
        self.scale_by(RangeRule::SquaredError, bits, false, false)
    }

    /// The scale that a rule gives. [`RangeRule::OutputError`] needs the layer that reads the
    /// tensor; here it is the squared error. With `zero_points` the zero of signed tensors may be
    /// any code but the outermost ones.
    pub(super) fn scale_by(
        &self,
        rule: RangeRule,
        bits: BitWidth,
        zero_points: bool,
        power_of_two: bool,
    ) -> ActivationScale {
        let signed = self.min < 0.0;
        let middle = ActivationScale::symmetric(bits, 1.0, signed);
        let largest = match rule {
            RangeRule::Percentile(share) => self.magnitude(share),
            _ => f64::from(self.max.max(-self.min)),
        };
        if largest <= 0.0 {
            return middle;
        }
        let search = matches!(rule, RangeRule::SquaredError | RangeRule::OutputError);
        let mut best = (f64::INFINITY, middle);
        let mut offer = |unit: ActivationScale, shares: &mut dyn Iterator<Item = f64>| {
            // How far the codes reach on either side, in steps.
            let steps = |code: u32| unit.value(code as u16).abs();
            let reach = if unit.twice_zero == middle.twice_zero {
                largest / steps(bits.code_max())
            } else {
                (f64::from(-self.min) / steps(0)).max(f64::from(self.max) / steps(bits.code_max()))
            };
            for share in shares {
                let mut scale = reach * share;
                if power_of_two {
                    scale = scale.log2().ceil().exp2();
                }
                let candidate = ActivationScale { scale, ..unit };
                let error = self.squared_error(&candidate);
                if error < best.0 {
                    best = (error, candidate);
                }
            }
        };
        let all = || (0..CANDIDATES).map(|i| 1.0 - i as f64 / CANDIDATES as f64);
        if search {
            offer(middle, &mut all());
        } else {
            offer(middle, &mut std::iter::once(1.0));
        }
        if signed && zero_points && bits.get() > 1 && self.max > 0.0 {
            let last = bits.code_max();
            let step = (last / 32).max(1) as usize;
            for zero in (1..last).step_by(step) {
                let unit = ActivationScale { twice_zero: 2 * zero, ..middle };
                let coarse = (0..CANDIDATES).step_by(4);
                offer(unit, &mut coarse.map(|i| 1.05 - i as f64 / CANDIDATES as f64));
            }
        }
        best.1
    }

    /// The magnitude that `share` of the values stay below, to within a bin.
    fn magnitude(&self, share: f64) -> f64 {
        let width = (f64::from(self.max) - f64::from(self.min)) / self.bins.len() as f64;
        let mut bins: Vec<(f64, u64)> = (self.bins.iter().enumerate())
            .map(|(i, &count)| {
                let (low, high) = (i as f64 * width, (i + 1) as f64 * width);
                let min = f64::from(self.min);
                ((min + low).abs().max((min + high).abs()), count)
            })
            .collect();
        bins.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: u64 = self.bins.iter().sum();
        let mut seen = 0;
        let within = bins.iter().find(|(_, count)| {
            seen += count;
            seen as f64 >= share * total as f64
        });
        within.map_or(0.0, |bin| bin.0)
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
