//! The integers that a weight can be.

use bitgear_core::bits::BitWidth;

use crate::quantize::methods::CodeBooks;

/// Weight codes of one width: `low`, `low + step`, … `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) low: i32,
    pub(crate) high: i32,
    pub(crate) step: i32,
}

impl Grid {
    /// Two's complement; at 1 bit {-1, +1}.
    pub(crate) fn new(bits: BitWidth) -> Self {
        let (low, high) = bits.weight_range();
        Self { low, high, step: if bits.get() == 1 { 2 } else { 1 } }
    }

    /// What the hardware lets weights of `bits` bits be, at least one.
    pub(crate) fn all(bits: BitWidth, two_bit_codes: CodeBooks) -> Vec<Self> {
        let CodeBooks { twos_complement, ternary, odd } = two_bit_codes;
        if bits.get() != 2 || !(ternary || odd) {
            return vec![Self::new(bits)];
        }
        let listed = [
            (twos_complement, Self::new(bits)),
            (ternary, Self { low: -1, high: 1, step: 1 }),
            (odd, Self::odd(bits)),
        ];
        listed.into_iter().filter_map(|(listed, grid)| listed.then_some(grid)).collect()
    }

    /// Whether all codes are odd, and there are more than two.
    pub(crate) fn is_odd(&self) -> bool {
        self.step == 2 && self.high > 1
    }

    /// The odd numbers of `bits` bits, from -(2^b - 1) to 2^b - 1: what the leading bits of a wider
    /// code stand for.
    pub(crate) fn odd(bits: BitWidth) -> Self {
        let high = bits.code_max() as i32;
        Self { low: -high, high, step: 2 }
    }

    /// The code nearest to `value`, saturating; ties go to the even code or, among odd codes, to the
    /// one of even number.
    #[inline(always)]
    pub(crate) fn nearest(&self, value: f64) -> i32 {
        self.round(value) as i32
    }

    /// [`Self::nearest`] as a float.
    #[inline(always)]
    pub(crate) fn round(&self, value: f64) -> f64 {
        let nearest = if self.step == 1 {
            round_ties_even(value)
        } else {
            2.0 * round_ties_even((value - 1.0) / 2.0) + 1.0
        };
        nearest.clamp(f64::from(self.low), f64::from(self.high))
    }

    /// Whether the only codes are -1 and +1.
    pub(crate) fn is_sign(&self) -> bool {
        self.high == 1 && self.low == -1 && self.step == 2
    }

    /// The largest magnitude of a code.
    pub(crate) fn reach(&self) -> f64 {
        f64::from(self.high.max(-self.low))
    }
}

/// [`f64::round_ties_even`] up to 2^51, and far from 0 beyond; not a call, so that loops of it run on
/// vectors.
#[inline(always)]
fn round_ties_even(value: f64) -> f64 {
    /// Beside it doubles are the whole numbers.
    const WHOLE: f64 = 1.5 * (1_u64 << 52) as f64;
    (value + WHOLE) - WHOLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_codes_lie_on_the_grid_and_saturate() {
        let bits = |b| BitWidth::new(b).unwrap();
        assert_eq!([-9.0, -1.2, 0.4, 9.0].map(|v| Grid::new(bits(3)).nearest(v)), [-4, -1, 0, 3]);
        assert_eq!([-9.0, -0.1, 0.1, 9.0].map(|v| Grid::new(bits(1)).nearest(v)), [-1, -1, 1, 1]);
        assert_eq!([-9.0, -2.1, 0.1, 1.9].map(|v| Grid::odd(bits(2)).nearest(v)), [-3, -3, 1, 1]);
        for value in [0.5_f64, 1.5, -0.5, -2.5, 0.499_999_999_999_999_94, 3.2, -7.7, 1e300, -1e300]
        {
            let expected = value.round_ties_even().clamp(-8.0, 7.0);
            assert_eq!(f64::from(Grid::new(bits(4)).nearest(value)), expected, "{value}");
        }
    }
}
