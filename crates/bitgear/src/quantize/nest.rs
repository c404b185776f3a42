//! One copy of weights for several points: a narrow point reads the leading bits of a wide one's
//! codes.
//!
//! A code's leading bits p stand for the middle of all codes that begin with them, so a narrow
//! point's codes are the odd numbers 2p + 1, on a scale of their own. The narrowest point is fitted
//! first, freely; each wider one fills in the bits behind.

use bitgear_core::bits::BitWidth;

use super::fit::Grid;
use super::{LayerParameters, Point};

/// What the points that were fitted so far leave free in one layer.
#[derive(Clone, Debug)]
pub(super) struct LayerNest {
    /// The widest that any point has here: its codes are what is stored.
    widest: BitWidth,
    /// The widest that was fitted: its width, codes, and what a step between two codes is worth in
    /// each row.
    finest: Option<(BitWidth, Vec<i16>, Vec<f64>)>,
    /// Factors of the input's channels, which the codes are for.
    factors: Vec<f32>,
}

/// Bounds of a layer's codes, and the scales that go with them.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) limits: Vec<(i16, i16)>,
    pub(super) scales: Vec<f64>,
}

/// Nests of all layers, for these points.
pub(super) fn nests(points: &[&Point], layers: usize) -> Vec<LayerNest> {
    let widest = |layer| {
        let bits = points.iter().map(|point| point.widths(layer, layers).weights);
        bits.max().unwrap_or(BitWidth::MIN)
    };
    (0..layers)
        .map(|layer| LayerNest { widest: widest(layer), finest: None, factors: Vec::new() })
        .collect()
}

impl LayerNest {
    /// Whether a point of so many bits reads only leading bits.
    pub(super) fn is_odd(&self, bits: BitWidth) -> bool {
        bits < self.widest
    }

    pub(super) fn grid(&self, bits: BitWidth) -> Grid {
        if self.is_odd(bits) { Grid::odd(bits) } else { Grid::new(bits) }
    }

    /// Factors of the input's channels, none of them where they need not be even; nothing where no
    /// point was fitted yet.
    pub(super) fn factors(&self) -> Option<&[f32]> {
        self.finest.is_some().then_some(&self.factors)
    }

    /// What is left free for codes of `bits`; none where nothing was fitted yet.
    pub(super) fn bounds(&self, bits: BitWidth) -> Option<Bounds> {
        let (finest, codes, steps) = self.finest.as_ref()?;
        let odd = self.is_odd(bits);
        let shift = i32::from(bits.get()) - i32::from(finest.get());
        let limit = |&code: &i16| {
            let code = i32::from(code);
            let (low, high) = if shift >= 0 {
                (code << shift, (code << shift) + (1 << shift) - 1)
            } else {
                (code >> -shift, code >> -shift)
            };
            let on_grid = |code: i32| (if odd { 2 * code + 1 } else { code }) as i16;
            (on_grid(low), on_grid(high))
        };
        // A step of odd codes is two apart.
        let unit = 2_f64.powi(-shift) / if odd { 2.0 } else { 1.0 };
        Some(Bounds {
            limits: codes.iter().map(limit).collect(),
            scales: steps.iter().map(|step| step * unit).collect(),
        })
    }

    /// Takes in what was fitted to an input with these factors.
    pub(super) fn take(&mut self, bits: BitWidth, layer: &LayerParameters, factors: &[f32]) {
        if self.finest.as_ref().is_some_and(|(finest, ..)| *finest >= bits) {
            return;
        }
        let odd = self.is_odd(bits);
        let codes = layer.weights.codes.iter().map(|&c| if odd { c >> 1 } else { c }).collect();
        let worth = if odd { 2.0 } else { 1.0 };
        let steps = layer.weights.scales.iter().map(|scale| scale * worth).collect();
        self.finest = Some((bits, codes, steps));
        self.factors = factors.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::QuantizedWeights;

    #[test]
    fn wider_codes_begin_with_the_narrower_ones() {
        let bits = |b| BitWidth::new(b).unwrap();
        let mut nest = LayerNest { widest: bits(8), finest: None, factors: Vec::new() };
        assert!(nest.bounds(bits(2)).is_none());
        // Leading bits -1 and 1 of 2: codes -1 and 3.
        let weights = QuantizedWeights { codes: vec![-1, 3], scales: vec![0.5] };
        let layer = LayerParameters { weights, odd: true, ..LayerParameters::default() };
        nest.take(bits(2), &layer, &[0.5, 2.0]);
        assert_eq!(nest.factors(), Some(&[0.5, 2.0][..]));
        let wide = nest.bounds(bits(8)).unwrap();
        assert_eq!(wide.limits, [(-64, -1), (64, 127)]);
        // The middle of 64 … 127 is worth what code 3 is.
        assert_eq!(wide.scales, [0.5 * 2.0 / 64.0]);
        let between = nest.bounds(bits(3)).unwrap();
        assert_eq!(between.limits, [(-3, -1), (5, 7)]);
        assert_eq!(between.scales, [0.25]);
    }
}
