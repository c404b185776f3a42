//! Tails of the binomial distribution.

/// ln Γ(x) for x > 0, by Stirling's series after shifting x above 10; relative error below 1e-13.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift += x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - shift
}

/// Regularized incomplete beta function I_x(a, b) for a, b > 0, by its continued fraction
/// (<https://dlmf.nist.gov/8.17.E22>), evaluated with Lentz's method.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return f64::from(u8::from(x >= 1.0));
    }
    // The fraction converges fast on this side of the mean only.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let tiny = f64::MIN_POSITIVE / f64::EPSILON;
    let away_from_zero = |v: f64| if v.abs() < tiny { tiny } else { v };
    let (mut c, mut d) = (1.0, 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..100_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    let front = a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    front.exp() * fraction / a
}

/// P(X ≤ k) for X binomial of n trials with probability p; 0 for negative k.
pub(super) fn binomial_cdf(k: i64, n: u64, p: f64) -> f64 {
    if k < 0 {
        0.0
    } else if k as u64 >= n {
        1.0
    } else {
        1.0 - incomplete_beta(k as f64 + 1.0, n as f64 - k as f64, p)
    }
}

/// P(X = k) for X binomial of n trials with probability p.
pub(super) fn binomial_pmf(k: u64, n: u64, p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return f64::from(u8::from(k == if p <= 0.0 { 0 } else { n }));
    }
    let (k, n) = (k as f64, n as f64);
    let ways = ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0);
    (ways + k * p.ln() + (n - k) * (-p).ln_1p()).exp()
}

/// The largest probability under which at most `k` of `n` still has probability `level`: the upper
/// end of a one-sided Clopper-Pearson interval.
pub(super) fn upper_limit(k: u64, n: u64, level: f64) -> f64 {
    if k >= n { 1.0 } else { bisect(|p| binomial_cdf(k as i64, n, p) > level) }
}

/// The smallest probability under which at least `k` of `n` still has probability `level`.
pub(super) fn lower_limit(k: u64, n: u64, level: f64) -> f64 {
    if k == 0 { 0.0 } else { bisect(|p| 1.0 - binomial_cdf(k as i64 - 1, n, p) < level) }
}

/// Where `below` turns from true to false between 0 and 1, rounded up.
pub(super) fn bisect(below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-11 * expected.max(1e-3), "{got} {expected}");
    }

    #[test]
    fn tails_are_the_sums_of_their_terms() {
        for (n, p) in [(1, 0.3), (10, 0.3), (57, 0.02), (400, 0.5), (3000, 0.004)] {
            let mut sum = 0.0;
            for k in 0..n.min(260) {
                sum += binomial_pmf(k, n, p);
                close(binomial_cdf(k as i64, n, p), sum);
            }
        }
        // R: pbinom(3, 10, 0.3).
        close(binomial_cdf(3, 10, 0.3), 0.649_610_718_4);
    }

    #[test]
    fn limits_are_those_of_clopper_and_pearson() {
        // Without a single event p is at most 1 - level^(1 / n).
        // To the 2^-40 of the bisection.
        assert!((upper_limit(0, 299, 0.05) - (1.0 - 0.05_f64.powf(1.0 / 299.0))).abs() < 1e-12);
        assert!((lower_limit(20, 20, 0.05) - 0.05_f64.powf(1.0 / 20.0)).abs() < 1e-12);
        // R: binom.test(4, 1000, alternative = "less")$conf.int.
        assert!((upper_limit(4, 1000, 0.05) - 0.009_131).abs() < 2e-6);
        assert_eq!((upper_limit(5, 5, 0.05), lower_limit(0, 5, 0.05)), (1.0, 0.0));
    }
}
