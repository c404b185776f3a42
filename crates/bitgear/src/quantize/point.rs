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

/// An operating point. Its name is its [`Display`](fmt::Display) form:
///
/// - `w4a4`: 4-bit weights and 4-bit activations in all layers;
/// - `w3a3-f8l6`: the same, but the first MAC layer has 8 and the last 6 bits (where activations
///   are wider than that, they stay so: `w4a16-f8l8` begins with 8-bit weights and 16-bit
///   activations);
/// - `mix-007`: every layer as a table says, which only its maker knows.
///
/// All but the last parse back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point(Allocation);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Allocation {
    Uniform(Widths),
    Ends { inner: Widths, first: BitWidth, last: BitWidth },
    Table { number: u32, widths: Vec<Widths> },
}

impl Point {
    /// The point that runs all layers alike.
    pub fn uniform(weights: BitWidth, activations: BitWidth) -> Self {
        Self(Allocation::Uniform(Widths { weights, activations }))
    }

    /// This point with `first` bits in the first MAC layer and `last` bits in the last. Tables are
    /// left alone.
    #[must_use]
    pub fn with_ends(self, first: BitWidth, last: BitWidth) -> Self {
        match self.0 {
            Allocation::Uniform(inner) | Allocation::Ends { inner, .. } => {
                Self(Allocation::Ends { inner, first, last })
            }
            table @ Allocation::Table { .. } => Self(table),
        }
    }

    /// A point called `mix-` and the number, with the widths of every MAC layer in execution order.
    pub fn mixed(number: u32, widths: Vec<Widths>) -> Self {
        Self(Allocation::Table { number, widths })
    }

    /// `w16a16`, the widest point: always traced.
    pub fn widest() -> Self {
        Self::uniform(BitWidth::MAX, BitWidth::MAX)
    }

    /// Whether all layers have the same widths, by name.
    pub fn is_uniform(&self) -> bool {
        matches!(self.0, Allocation::Uniform(_))
    }

    /// Widths of MAC layer `layer` (in execution order) of a network of `layers`.
    ///
    /// # Panics
    ///
    /// When a table has no such layer.
    pub fn widths(&self, layer: usize, layers: usize) -> Widths {
        debug_assert!(layer < layers, "layer {layer} of {layers}");
        let end = |inner: Widths, bits: BitWidth| Widths {
            weights: bits,
            activations: inner.activations.max(bits),
        };
        match &self.0 {
            Allocation::Uniform(widths) => *widths,
            Allocation::Ends { inner, first, .. } if layer == 0 => end(*inner, *first),
            Allocation::Ends { inner, last, .. } if layer + 1 == layers => end(*inner, *last),
            Allocation::Ends { inner, .. } => *inner,
            Allocation::Table { widths, .. } => widths[layer],
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Allocation::Uniform(w) => write!(f, "w{}a{}", w.weights, w.activations),
            Allocation::Ends { inner: w, first, last } => {
                write!(f, "w{}a{}-f{first}l{last}", w.weights, w.activations)
            }
            Allocation::Table { number, .. } => write!(f, "mix-{number:03}"),
        }
    }
}

/// The text is no operating point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "operating point must be `wWaA` or `wWaA-fFlL` with bit-widths from 1 to 16, such as `w4a4` or `w3a3-f8l8`, got `{0}`"
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
        let pair = |text: &str, first: char, second: char| {
            let (a, b) = text.strip_prefix(first)?.split_once(second)?;
            Some((width(a)?, width(b)?))
        };
        let parse = || {
            let (inner, ends) = match text.split_once('-') {
                None => (text, None),
                Some((inner, ends)) => (inner, Some(pair(ends, 'f', 'l')?)),
            };
            let (weights, activations) = pair(inner, 'w', 'a')?;
            let point = Self::uniform(weights, activations);
            Some(match ends {
                None => point,
                Some((first, last)) => point.with_ends(first, last),
            })
        };
        parse().ok_or_else(|| InvalidPoint(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_point() {
        for w in 1..=16 {
            for a in 1..=16 {
                for name in [format!("w{w}a{a}"), format!("w4a4-f{w}l{a}")] {
                    assert_eq!(name.parse::<Point>().unwrap().to_string(), name);
                }
            }
        }
    }

    #[test]
    fn ends_are_never_narrower_in_activations_than_the_rest() {
        let names = |point: &str| {
            let point: Point = point.parse().unwrap();
            [0, 1, 2]
                .map(|l| point.widths(l, 3))
                .map(|w| format!("{}/{}", w.weights, w.activations))
        };
        assert_eq!(names("w3a3-f8l6"), ["8/8", "3/3", "6/6"]);
        assert_eq!(names("w4a16-f8l8"), ["8/16", "4/16", "8/16"]);
    }

    #[test]
    fn anything_else_is_refused_with_the_expected_form() {
        for text in [
            "",
            "w",
            "w4",
            "w4a",
            "w0a4",
            "w17a4",
            "w4a+4",
            "w04a4",
            "a4w4",
            "w4a4 ",
            "W4A4",
            "w4a4-",
            "w4a4-f8",
            "w4a4-l8f8",
            "w4a4-f8l0",
            "mix-001",
        ] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
        insta::assert_snapshot!("w0a4".parse::<Point>().unwrap_err(), @"operating point must be `wWaA` or `wWaA-fFlL` with bit-widths from 1 to 16, such as `w4a4` or `w3a3-f8l8`, got `w0a4`");
    }
}
