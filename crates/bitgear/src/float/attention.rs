//! What transformers add, and functions of one row that are the same on every CPU.
//!
//! Rows are computed in doubles from additions, products, quotients and square roots in a fixed
//! order, all of which IEEE 754 rounds exactly; no mathematical library takes part. So integer
//! networks may use them, too.

use super::conv::add_product;

/// `scale` · a · b of every matrix of the operands, of shapes (…, M, K) and (…, K, N).
pub(super) fn matmul(scale: f32, operands: &[(&[usize], &[f32])], out: &mut [f32]) {
    let [(a_shape, a), (b_shape, b)] = *operands else { unreachable!("checked on import") };
    let ([.., m, k], [.., n]) = (a_shape, b_shape) else { unreachable!("checked on import") };
    out.fill(0.0);
    let matrices =
        a.chunks_exact(m * k).zip(b.chunks_exact(k * n)).zip(out.chunks_exact_mut(m * n));
    for ((a, b), out) in matrices {
        add_product(*m, *k, *n, a, b, out);
    }
    if scale != 1.0 {
        for out in out {
            *out *= scale;
        }
    }
}

/// Applies a function of rows to every row of `len` values.
pub(super) fn rows(len: usize, input: &[f32], out: &mut [f32], mut apply: impl FnMut(&mut [f64])) {
    let mut row = vec![0.0; len];
    for (input, out) in input.chunks_exact(len).zip(out.chunks_exact_mut(len)) {
        for (row, &x) in row.iter_mut().zip(input) {
            *row = f64::from(x);
        }
        apply(&mut row);
        for (out, &y) in out.iter_mut().zip(&row) {
            *out = y as f32;
        }
    }
}

/// Centres a row, divides it by its deviation, and scales and shifts each element.
pub fn layer_norm(row: &mut [f64], scale: &[f32], shift: &[f32], epsilon: f32) {
    let len = row.len() as f64;
    let mean = row.iter().sum::<f64>() / len;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / len;
    let deviation = (variance + f64::from(epsilon)).sqrt();
    for (x, (&scale, &shift)) in row.iter_mut().zip(scale.iter().zip(shift)) {
        *x = (*x - mean) / deviation * f64::from(scale) + f64::from(shift);
    }
}

/// exp(x) / Σ exp(x) over a row.
pub fn softmax(row: &mut [f64]) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for x in &mut *row {
        *x = exp(*x - largest);
    }
    let sum = row.iter().sum::<f64>();
    for x in row {
        *x /= sum;
    }
}

/// e^x for x ≤ 0, within a few units in the last place.
fn exp(x: f64) -> f64 {
    /// ln 2 in two parts, the first with zeros at its end, so that its multiples are exact.
    const LN_2: (f64, f64) = (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10);
    /// Below, the result is no normal number, and next to the row's largest element it is nothing.
    const LEAST: f64 = -708.0;
    if x < LEAST {
        return 0.0;
    }
    let halvings = (x * -std::f64::consts::LOG2_E).round_ties_even();
    let rest = (x + halvings * LN_2.0) + halvings * LN_2.1;
    // |rest| ≤ 0.35: the next term would be below 2^-63.
    let series = (1..=14).rev().fold(1.0, |sum, n| 1.0 + sum * rest / f64::from(n));
    // 2^-halvings, from its exponent: normal, for halvings of at most 1021.
    series * f64::from_bits((1023 - halvings as u64) << 52)
}

/// The error function, 2 / √π · ∫ exp(-t²) from 0 to x. Off by less than 5 · 10^-15.
pub(super) fn erf(x: f64) -> f64 {
    /// Above, it is 1 to the last place.
    const SATURATED: f64 = 6.0;
    let square = x * x;
    if x.abs() >= SATURATED {
        return x.signum();
    }
    // erf(x) = 2 / √π · exp(-x²) · Σ 2^n · x^(2n + 1) / (1 · 3 · … · (2n + 1)): no term is negative.
    let (mut term, mut sum, mut divisor) = (x, x, 1.0);
    while term.abs() > sum.abs() * 1e-17 {
        divisor += 2.0;
        term *= 2.0 * square / divisor;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * exp(-square) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= 4.0 * f64::EPSILON * expected.abs()
    }

    #[test]
    fn exp_is_right_to_the_last_places() {
        for i in 0..=7000 {
            let x = f64::from(i) * -0.1;
            assert!(close(exp(x), x.exp()), "{x}: {} and {}", exp(x), x.exp());
        }
        assert_eq!((exp(0.0), exp(-1e300), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f64::NAN).is_nan());
    }

    /// Integer networks rest on these bits: another value here is another CPU, or another function.
    #[test]
    fn rows_have_the_same_bits_everywhere() {
        let mut row: Vec<f64> = (0..97).map(|i| f64::from(i * 7919 % 997) / 61.0 - 8.0).collect();
        let mut hashes = Vec::new();
        let mut hash = |row: &[f64]| {
            let fold = |hash: u64, x: &f64| (hash ^ x.to_bits()).wrapping_mul(0x0100_0000_01b3);
            hashes.push(row.iter().fold(0xcbf2_9ce4_8422_2325, fold));
        };
        let mut shares = row.clone();
        softmax(&mut shares);
        hash(&shares);
        let scale: Vec<f32> = (0..97).map(|i| 0.5 + i as f32 / 97.0).collect();
        layer_norm(&mut row, &scale, &scale, 1e-5);
        hash(&row);
        assert_eq!(hashes, [13_566_759_916_211_156_808, 305_996_433_288_625_144]);
    }

    #[test]
    fn erf_is_right_to_fourteen_places() {
        // From tables of 16 digits.
        let known = [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
        ];
        for (x, expected) in known {
            assert!((erf(x) - expected).abs() < 5e-15, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!((erf(7.0), erf(-1e300)), (1.0, -1.0));
        // Saturation is no step.
        assert!((1.0 - erf(5.999)).abs() < 5e-15);
        assert!(erf(f64::NAN).is_nan());
    }

    #[test]
    fn a_softmax_sums_to_one_whatever_the_size_of_its_operands() {
        for row in [vec![0.0; 4], vec![-1000.0, 1000.0, 999.0], vec![1e300, -1e300], vec![-5.0]] {
            let mut out = row.clone();
            softmax(&mut out);
            assert!((out.iter().sum::<f64>() - 1.0).abs() < 1e-15, "{row:?}: {out:?}");
            assert!(out.iter().all(|p| (0.0..=1.0).contains(p)), "{row:?}: {out:?}");
        }
    }

    #[test]
    fn a_layer_norm_has_mean_shift_and_deviation_scale() {
        let mut row = [1.0, 2.0, 3.0, 6.0];
        layer_norm(&mut row, &[2.0; 4], &[0.5; 4], 1e-12);
        let mean = row.iter().sum::<f64>() / 4.0;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4.0;
        assert!((mean - 0.5).abs() < 1e-12 && (variance - 4.0).abs() < 1e-9, "{row:?}");
        let mut constant = [3.0; 4];
        layer_norm(&mut constant, &[1.0; 4], &[0.25; 4], 1e-5);
        assert_eq!(constant, [0.25; 4]);
    }
}
