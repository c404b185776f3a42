//! Requantization: multiplying an integer by an exact fixed-point number, with one rounding.

/// Half-to-even rounding of `t · multiplier`, exactly.
///
/// A multiplier is an `f32` and means m · 2^-s with its 24-bit significand m; nothing is computed in
/// floating point. The result saturates to the range of `i64`. A multiplier that is not finite
/// counts as zero.
pub fn requantize(t: i64, multiplier: f32) -> i64 {
    let bits = multiplier.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32;
    let fraction = i128::from(bits & 0x7f_ffff);
    if exponent == 0xff {
        return 0;
    }
    // Subnormal numbers have no hidden bit and the exponent of the smallest normal ones.
    let significand = if exponent == 0 { fraction } else { fraction | 1 << 23 };
    let shift = 150 - exponent.max(1);
    let magnitude = i128::from(t) * significand;
    let product = if multiplier.is_sign_negative() { -magnitude } else { magnitude };
    let rounded = if shift <= 0 {
        // At most 2^63 · 2^24 · 2^104; what leaves the range saturates.
        product.checked_mul(1_i128 << (-shift).min(126)).unwrap_or(if product < 0 {
            i128::MIN
        } else {
            i128::MAX
        })
    } else {
        round_shift(product, shift as u32)
    };
    rounded.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// `value` / 2^`shift`, half to even. `shift` is positive.
fn round_shift(value: i128, shift: u32) -> i128 {
    if shift > 120 {
        // The product has at most 88 bits: less than half.
        return 0;
    }
    let floor = value >> shift;
    let rest = value - (floor << shift);
    let half = 1_i128 << (shift - 1);
    if rest > half || (rest == half && floor & 1 == 1) { floor + 1 } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_even_neighbour_on_both_sides_of_zero() {
        let rounded: [i64; 7] = [-5, -3, -1, 1, 3, 5, 7].map(|t| requantize(t, 0.5));
        assert_eq!(rounded, [-2, -2, 0, 0, 2, 2, 4]);
    }

    #[test]
    fn extremes_saturate_and_vanish() {
        assert_eq!(requantize(i64::MAX, f32::MAX), i64::MAX);
        assert_eq!(requantize(i64::MIN, f32::MAX), i64::MIN);
        assert_eq!(requantize(i64::MIN, -1.0), i64::MAX);
        assert_eq!(requantize(i64::MAX, f32::MIN_POSITIVE), 0);
        assert_eq!(requantize(1, 1e-45), 0);
        assert_eq!(requantize(5, f32::NAN), 0);
        assert_eq!(requantize(3, 1024.0), 3072);
    }

    /// The same from the definition, another way: the product as a fraction with a positive
    /// denominator of at most 2^62, divided with remainder.
    fn by_division(t: i64, significand: i128, shift: u32) -> i128 {
        let (product, denominator) = (i128::from(t) * significand, 1_i128 << shift);
        let (quotient, rest) = (product.div_euclid(denominator), product.rem_euclid(denominator));
        match (2 * rest).cmp(&denominator) {
            core::cmp::Ordering::Less => quotient,
            core::cmp::Ordering::Greater => quotient + 1,
            core::cmp::Ordering::Equal => quotient + quotient.rem_euclid(2),
        }
    }

    proptest! {
        #[test]
        fn equals_division_with_remainder_for_every_t(
            t: i64, m in 1_i64..1 << 24, negative: bool, shift in 0_u32..62,
        ) {
            let m = if negative { -m } else { m };
            // Exact: the significand has 24 bits.
            let multiplier = m as f32 * (-(shift as f32)).exp2();
            let exact = by_division(t, i128::from(m), shift);
            let exact = exact.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            prop_assert_eq!(i128::from(requantize(t, multiplier)), exact);
        }

        /// Doubles are exact here: t has 24 bits, the multiplier 24, and `fma` rounds once.
        #[test]
        fn equals_one_rounding_of_the_exact_product(t in -(1_i64 << 24)..1 << 24, m in 1e-6_f32..4.0, negative: bool) {
            let m = if negative { -m } else { m };
            let exact = t as f64 * f64::from(m);
            prop_assert_eq!(requantize(t, m), exact.round_ties_even() as i64);
        }
    }
}
