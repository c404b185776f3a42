//! Bit-widths and the codes they give.

use core::fmt;

/// A bit-width of weights or activations: 1 to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u8", into = "u8"))]
pub struct BitWidth(u8);

/// The number is no bit-width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bit-width must be 1 to 16, got {0}")]
pub struct InvalidBitWidth(u8);

impl BitWidth {
    /// 1 bit.
    pub const MIN: Self = Self(1);
    /// 16 bits.
    pub const MAX: Self = Self(16);

    /// The bit-width of `bits` bits.
    ///
    /// # Errors
    ///
    /// When `bits` is not 1 to 16.
    pub const fn new(bits: u8) -> Result<Self, InvalidBitWidth> {
        if 1 <= bits && bits <= 16 { Ok(Self(bits)) } else { Err(InvalidBitWidth(bits)) }
    }

    /// Number of bits.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Number of codes: 2^b.
    pub const fn levels(self) -> u32 {
        1 << self.0
    }

    /// Largest unsigned code: 2^b - 1.
    pub const fn code_max(self) -> u32 {
        self.levels() - 1
    }

    /// Smallest and largest weight code: -2^(b-1) and 2^(b-1) - 1; at 1 bit -1 and +1, with
    /// nothing between them.
    pub const fn weight_range(self) -> (i32, i32) {
        if self.0 == 1 { (-1, 1) } else { (-(1 << (self.0 - 1)), (1 << (self.0 - 1)) - 1) }
    }
}

impl fmt::Display for BitWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u8> for BitWidth {
    type Error = InvalidBitWidth;

    fn try_from(bits: u8) -> Result<Self, InvalidBitWidth> {
        Self::new(bits)
    }
}

impl From<BitWidth> for u8 {
    fn from(bits: BitWidth) -> Self {
        bits.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_twos_complement_except_at_one_bit() {
        let range = |b| BitWidth::new(b).unwrap().weight_range();
        assert_eq!(range(1), (-1, 1));
        assert_eq!(range(2), (-2, 1));
        assert_eq!(range(16), (-32768, 32767));
        assert_eq!(BitWidth::MAX.code_max(), 65535);
    }

    #[test]
    fn only_one_to_sixteen_are_bit_widths() {
        assert!(BitWidth::new(0).is_err() && BitWidth::new(17).is_err());
        assert!((1..=16).all(|b| BitWidth::new(b).is_ok_and(|w| w.get() == b)));
    }
}
