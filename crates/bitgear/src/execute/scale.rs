//! What an activation code stands for.

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::Quantization;
use serde::{Deserialize, Serialize};

/// How a tensor is stored: real = `scale` · (code - zero), codes 0 … 2^b - 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivationScale {
    /// Bit-width of the codes.
    pub bits: BitWidth,
    /// Distance between two codes.
    pub scale: f64,
    /// Twice the zero point. Odd for one format only, the 1-bit sign ±`scale` / 2, whose zero lies
    /// halfway between its codes.
    pub twice_zero: u32,
}

impl ActivationScale {
    /// A scale whose zero point is 0 or, for signed values, in the middle: 2^(b-1), at 1 bit 1/2.
    pub fn symmetric(bits: BitWidth, scale: f64, signed: bool) -> Self {
        let twice_zero = match (signed, bits.get()) {
            (false, _) => 0,
            (true, 1) => 1,
            (true, _) => bits.levels(),
        };
        Self { bits, scale, twice_zero }
    }

    /// Twice the zero point: twice, since it lies between the codes at 1 bit.
    pub fn twice_zero(&self) -> i64 {
        i64::from(self.twice_zero)
    }

    /// The code that stands for zero, and fills padding. The signed 1-bit code has none; its
    /// padding holds code 0.
    pub fn zero_code(&self) -> u16 {
        (self.twice_zero() / 2) as u16
    }

    /// Whether the code is nothing but the sign of the value.
    pub fn is_sign(&self) -> bool {
        self.twice_zero % 2 == 1
    }

    /// The code nearest to `value` (ties to even), saturating.
    pub fn code(&self, value: f64) -> u16 {
        if self.is_sign() {
            return u16::from(value > 0.0);
        }
        let code = (value / self.scale).round_ties_even() + f64::from(self.zero_code());
        code.clamp(0.0, f64::from(self.bits.code_max())) as u16
    }

    /// The same for many values at once.
    pub(super) fn quantization(&self) -> Quantization {
        // Small enough that every positive float saturates.
        const SIGN: f64 = 1e-60;
        let (scale, zero) = if self.is_sign() { (SIGN, 0) } else { (self.scale, self.zero_code()) };
        Quantization { scale, zero, max: self.bits.code_max() as u16 }
    }

    /// The value that `code` stands for.
    pub fn value(&self, code: u16) -> f64 {
        self.scale * (f64::from(code) - self.twice_zero() as f64 / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use bitgear_core::kernels::{CodesMut, Kernels, MapLayout};

    use super::*;

    fn bits(b: u8) -> BitWidth {
        BitWidth::new(b).unwrap()
    }

    #[test]
    fn codes_of_values_are_monotone_and_saturate() {
        for signed in [false, true] {
            for b in 1..=16 {
                let scale = ActivationScale::symmetric(bits(b), 0.37, signed);
                let mut last = 0;
                for i in -100_000..100_000 {
                    let code = scale.code(f64::from(i) * 0.31);
                    assert!(code >= last);
                    last = code;
                }
                assert_eq!(u32::from(last), bits(b).code_max(), "{b} bits, signed {signed}");
                assert_eq!(scale.code(-1e9), 0);
            }
        }
    }

    #[test]
    fn zero_is_a_code_except_for_signs() {
        for signed in [false, true] {
            for b in 1..=16 {
                let scale = ActivationScale::symmetric(bits(b), 0.25, signed);
                let expected = if scale.is_sign() { -0.125 } else { 0.0 };
                assert_eq!(scale.value(scale.zero_code()), expected, "{b} bits, signed {signed}");
            }
        }
    }

    #[test]
    fn many_values_at_once_get_the_codes_of_each() {
        let smallest = f32::from_bits(1);
        let values =
            [0.0, -0.0, smallest, -smallest, 1e-9, -1e-9, 0.2, -0.2, 3e38, -3e38, f32::NAN];
        for kernels in Kernels::present() {
            for (b, signed) in (1..=8).flat_map(|b| [(b, false), (b, true)]) {
                let scale = ActivationScale::symmetric(bits(b), 0.37, signed);
                let mut codes = [77; 44];
                let layout = MapLayout::new(1, values.len(), 1);
                let output = CodesMut::U8(&mut codes);
                kernels.quantize(&values, false, scale.quantization(), output, &layout);
                let each = values.map(|value| scale.code(f64::from(value)) as u8);
                let all = core::array::from_fn(|i| codes[i * layout.stride()]);
                assert_eq!(each, all, "{b} bits, signed {signed}");
            }
        }
    }
}
