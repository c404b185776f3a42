//! Operating points: which bit-widths every MAC layer runs at, and how a point is called.

use std::fmt;
use std::str::FromStr;

use bitgear_core::bits::BitWidth;

/// Bit-widths of one MAC layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Widths {
    /// Of its weights.
    pub weights: BitWidth,
    /// Of its input.
    pub activations: BitWidth,
}

/// An operating point. Its name, `w4a4` for 4-bit weights and 4-bit activations in all layers, is
/// its [`Display`](fmt::Display) form and parses back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    widths: Widths,
    #[cfg(test)]
    table: Option<&'static [Widths]>,
}

impl Point {
    /// The point that runs all layers alike.
    pub fn uniform(weights: BitWidth, activations: BitWidth) -> Self {
        Self {
            widths: Widths { weights, activations },
            #[cfg(test)]
            table: None,
        }
    }

    /// A point with widths of its own for every layer.
    #[cfg(test)]
    pub(crate) fn table(widths: Vec<Widths>) -> Self {
        Self { widths: widths[0], table: Some(widths.leak()) }
    }

    /// `w16a16`, the widest point: always traced.
    pub fn widest() -> Self {
        Self::uniform(BitWidth::MAX, BitWidth::MAX)
    }

    /// Widths of MAC layer `layer` (in execution order) of a network of `layers`.
    pub fn widths(&self, layer: usize, layers: usize) -> Widths {
        debug_assert!(layer < layers, "layer {layer} of {layers}");
        #[cfg(test)]
        if let Some(table) = self.table {
            return table[layer];
        }
        self.widths
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}a{}", self.widths.weights, self.widths.activations)
    }
}

/// The text is no operating point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "operating point must be `wWaA` with bit-widths W and A from 1 to 16, such as `w4a4`, got `{0}`"
)]
pub struct InvalidPoint(String);

impl FromStr for Point {
    type Err = InvalidPoint;

    fn from_str(text: &str) -> Result<Self, InvalidPoint> {
        let width = |digits: &str| {
            // `parse` alone would take `+4` and `04`, and names must be unique.
            let canonical = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            digits.parse().ok().filter(|_| canonical).and_then(|bits| BitWidth::new(bits).ok())
        };
        text.strip_prefix('w')
            .and_then(|rest| rest.split_once('a'))
            .and_then(|(w, a)| Some(Self::uniform(width(w)?, width(a)?)))
            .ok_or_else(|| InvalidPoint(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_point() {
        for w in 1..=16 {
            for a in 1..=16 {
                let name = format!("w{w}a{a}");
                assert_eq!(name.parse::<Point>().unwrap().to_string(), name);
            }
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_expected_form() {
        for text in
            ["", "w", "w4", "w4a", "w0a4", "w17a4", "w4a+4", "w04a4", "a4w4", "w4a4 ", "W4A4"]
        {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
        insta::assert_snapshot!("w0a4".parse::<Point>().unwrap_err(), @"operating point must be `wWaA` with bit-widths W and A from 1 to 16, such as `w4a4`, got `w0a4`");
    }
}
