//! Tests of "the drop is larger than so much", and the bounds that they give.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tails::{binomial_cdf, binomial_pmf, bisect, lower_limit, upper_limit};
use crate::trace::Random;

/// How a policy and its reference differ on the same samples, of which none chose the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flips {
    /// Number of samples.
    pub samples: u64,
    /// Samples that the reference gets right and the policy wrong.
    pub harmful: u64,
    /// Samples that the reference gets wrong and the policy right.
    pub helpful: u64,
}

impl Flips {
    /// Accuracy of the reference minus that of the policy.
    pub fn drop(self) -> f64 {
        (self.harmful as f64 - self.helpful as f64) / self.samples.max(1) as f64
    }

    /// Share of samples whose answer is right in one of the two only.
    pub fn rate(self) -> f64 {
        (self.harmful + self.helpful) as f64 / self.samples.max(1) as f64
    }
}

/// How a bound on the drop is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Test {
    /// Exact unconditional test of the paired drop: the probability of a studentized drop as low as
    /// this one, at the least favourable rate of flips that the data allow (Berger and Boos 1994,
    /// <https://doi.org/10.1080/01621459.1994.10476836>).
    Exact,
    /// A bet against the drop (Waudby-Smith and Ramdas 2024,
    /// <https://doi.org/10.1093/jrsssb/qkad009>, predictable plug-in): holds for any dependence of
    /// later on earlier samples and at any time, and is wider for that.
    Betting,
    /// Clopper and Pearson's bound on harmful flips; helpful ones are not counted.
    Binomial,
    /// Conformal risk control of harmful flips (Angelopoulos et al. 2024,
    /// <https://arxiv.org/abs/2208.02814>): bounds their *expected* share only, without confidence.
    Conformal,
}

/// Error probability that [`Test::Exact`] spends on the rate of flips, each side.
const RATE_LEVEL: f64 = 2e-4;
/// Rates of flips that are tried between the two limits.
const RATES: usize = 12;
/// What the studentized drop adds to the number of flips, lest few flips look certain.
const EXTRA_FLIPS: f64 = 1.0;
/// Share of the largest stake that never ruins.
const LARGEST_STAKE: f64 = 0.75;

impl Test {
    /// `exact`, `betting`, `binomial` or `conformal`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Betting => "betting",
            Self::Binomial => "binomial",
            Self::Conformal => "conformal",
        }
    }

    /// The test of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Exact, Self::Betting, Self::Binomial, Self::Conformal];
        all.into_iter().find(|test| test.name() == name)
    }

    /// Upper bound on the probability of such few harmful flips if the true drop were at least `drop`
    /// (above 0, below 1). Small values speak for a drop below. `level` is the error probability that
    /// the result will be compared with or less; [`Self::Betting`] sets its stakes by it, and takes
    /// the samples in an order of its own, drawn from the counts. [`Self::Conformal`] knows no
    /// probabilities: 0 where its bound is at most `drop`, else 1.
    pub fn p_value(self, flips: Flips, drop: f64, level: f64) -> f64 {
        match self {
            Self::Exact => exact(flips, drop),
            Self::Betting => (-best_log_capital(flips, drop, level)).exp().min(1.0),
            Self::Binomial => binomial_cdf(flips.harmful as i64, flips.samples, drop),
            Self::Conformal => f64::from(u8::from(expected_harm(flips) > drop)),
        }
    }

    /// The smallest drop that is refuted at `level`; 1 where none is.
    pub fn upper_bound(self, flips: Flips, level: f64) -> f64 {
        match self {
            Self::Binomial => upper_limit(flips.harmful, flips.samples, level),
            Self::Conformal => expected_harm(flips).min(1.0),
            _ => bisect(|drop| drop <= 0.0 || self.p_value(flips, drop, level) > level),
        }
    }

    /// About how many samples would bound the drop by `drop` at `level`, with flips at these rates;
    /// none where the drop itself is too large, or ten million would not do.
    pub fn samples_needed(self, flips: Flips, drop: f64, level: f64) -> Option<u64> {
        if flips.drop() >= drop {
            return None;
        }
        let rate = |count: u64| count as f64 / flips.samples.max(1) as f64;
        let (harmful, helpful) = (rate(flips.harmful), rate(flips.helpful));
        let at = |samples: u64| Flips {
            samples,
            // Rounded against the policy.
            harmful: (harmful * samples as f64).ceil() as u64,
            helpful: (helpful * samples as f64).floor() as u64,
        };
        let enough = |samples: u64| self.p_value(at(samples), drop, level) <= level;
        let mut high = 16_u64;
        while !enough(high) {
            high *= 2;
            if high > 10_000_000 {
                return None;
            }
        }
        let mut low = high / 2;
        // To three digits: rates are not known better.
        while high - low > high / 500 + 1 {
            let middle = low.midpoint(high);
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }
}

/// The expected share of harmful flips is at most this (equation 4 of the source, losses up to 1).
fn expected_harm(flips: Flips) -> f64 {
    (flips.harmful + 1) as f64 / (flips.samples + 1) as f64
}

fn exact(flips: Flips, drop: f64) -> f64 {
    let n = flips.samples;
    if n == 0 {
        return 1.0;
    }
    let size = n as f64;
    let studentized = |harmful: f64, helpful: f64| {
        let difference = harmful - helpful;
        let variance = harmful + helpful + EXTRA_FLIPS - difference * difference / size;
        (difference - size * drop) / variance.sqrt()
    };
    let seen = studentized(flips.harmful as f64, flips.helpful as f64);
    if seen >= 0.0 {
        return 1.0;
    }
    // The most harmful flips that still look as good as what was seen.
    let most = |helpful: u64| -> i64 {
        let (mut low, mut high) = (-1_i64, (n - helpful) as i64);
        while low < high {
            let middle = low + (high - low + 1) / 2;
            // A hair of tolerance: what was seen itself belongs to the tail.
            let as_good = studentized(middle as f64, helpful as f64) <= seen + 1e-12;
            if as_good { low = middle } else { high = middle - 1 }
        }
        low
    };
    let both = flips.harmful + flips.helpful;
    let least = lower_limit(both, n, RATE_LEVEL).max(drop);
    let largest = upper_limit(both, n, RATE_LEVEL).max(drop);
    let tail = |rate: f64| -> f64 {
        let helpful = 0.5 * (rate - drop);
        let share = 0.5 * (rate + drop) / (1.0 - helpful);
        let spread = 8.0 * (size * helpful).sqrt() + 30.0;
        let first = (size * helpful - spread).max(0.0) as u64;
        let last = ((size * helpful + spread) as u64).min(n);
        let mut sum = 0.0;
        for count in first..=last {
            let probability = binomial_pmf(count, n, helpful);
            if probability > 1e-14 {
                sum += probability * binomial_cdf(most(count), n - count, share);
            }
        }
        sum
    };
    let ratio = (largest / least).powf(1.0 / (RATES - 1) as f64);
    let tails = (0..RATES).map(|i| tail((least * ratio.powi(i as i32)).min(largest)));
    (tails.fold(0.0, f64::max) + 2.0 * RATE_LEVEL).min(1.0)
}

/// Largest logarithm over time of the capital of a gambler who bets that the drop is below `drop`.
/// With y = (1 - x) / 2 for x in {1, 0, -1} the capital is Π (1 + λ (y - (1 - drop) / 2)).
fn best_log_capital(flips: Flips, drop: f64, level: f64) -> f64 {
    let n = flips.samples as usize;
    let mut values = vec![0.5; n];
    values[..flips.harmful as usize].fill(0.0);
    values[n - flips.helpful as usize..].fill(1.0);
    Random::new(flips.samples ^ flips.harmful.rotate_left(20) ^ flips.helpful.rotate_left(40))
        .shuffle(&mut values);
    let null = 0.5 * (1.0 - drop);
    let wanted = 2.0 * (1.0 / level).ln() / n.max(1) as f64;
    let (mut capital, mut best) = (0.0_f64, 0.0_f64);
    let (mut sum, mut squares) = (0.5, 0.25);
    for (seen, y) in values.into_iter().enumerate() {
        let seen = (seen + 1) as f64;
        let stake = (wanted * seen / squares).sqrt().min(LARGEST_STAKE / null);
        capital += (stake * (y - null)).ln_1p();
        best = best.max(capital);
        sum += y;
        let mean = sum / (seen + 1.0);
        squares += (y - mean) * (y - mean);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVING: [Test; 3] = [Test::Exact, Test::Betting, Test::Binomial];

    fn flips(samples: u64, harmful: u64, helpful: u64) -> Flips {
        Flips { samples, harmful, helpful }
    }

    #[test]
    fn without_flips_all_bounds_need_as_many_samples_as_the_formula_says() {
        // (1 - drop)^n ≤ level.
        let needed = (0.05_f64.ln() / 0.99_f64.ln()).ceil() as u64;
        let got = Test::Binomial.samples_needed(flips(100, 0, 0), 0.01, 0.05).unwrap();
        assert!((needed..needed + 3).contains(&got), "{got} {needed}");
        for test in [Test::Exact, Test::Betting] {
            let got = test.samples_needed(flips(100, 0, 0), 0.01, 0.05).unwrap();
            assert!((needed..2 * needed).contains(&got), "{test:?} {got}");
        }
    }

    #[test]
    fn bounds_lie_above_the_drop_and_fall_with_more_samples() {
        for test in PROVING {
            let mut last = 1.0;
            for factor in [1, 4, 16] {
                let flips = flips(500 * factor, 15 * factor, 10 * factor);
                let bound = test.upper_bound(flips, 0.05);
                assert!(bound > flips.drop() && bound < last, "{test:?} {bound} {last}");
                last = bound;
            }
        }
    }

    #[test]
    fn helpful_flips_count_except_for_the_binomial_bound() {
        let bound = |test: Test, helpful| test.upper_bound(flips(2000, 60, helpful), 0.05);
        assert!(bound(Test::Exact, 50) < bound(Test::Exact, 0));
        assert!(bound(Test::Betting, 50) < bound(Test::Betting, 0));
        assert_eq!(bound(Test::Binomial, 50), bound(Test::Binomial, 0));
        // The exact test is the tightest of those that prove something about the drop.
        assert!(bound(Test::Exact, 50) < bound(Test::Betting, 50));
    }

    /// The whole distribution, summed: whatever the rates, a true drop passes for a smaller one no
    /// more often than the level says.
    #[test]
    fn exact_and_binomial_err_no_more_often_than_promised() {
        let (n, level) = (120, 0.05);
        for test in [Test::Exact, Test::Binomial] {
            for (drop, helpful) in
                [(0.02, 0.0), (0.02, 0.01), (0.05, 0.002), (0.05, 0.05), (0.1, 0.2)]
            {
                let harmful: f64 = drop + helpful;
                let mut error = 0.0;
                for down in 0..=n {
                    let probability = binomial_pmf(down, n, helpful);
                    if probability < 1e-9 {
                        continue;
                    }
                    for up in 0..=n - down {
                        let flips = flips(n, up, down);
                        let tail =
                            probability * binomial_pmf(up, n - down, harmful / (1.0 - helpful));
                        if tail > 1e-9 && test.p_value(flips, drop, level) <= level {
                            error += tail;
                        }
                    }
                }
                assert!(error <= level, "{test:?} {drop} {helpful}: {error}");
            }
        }
    }

    #[test]
    fn the_order_of_the_bet_depends_on_the_counts_alone() {
        let value = || Test::Betting.p_value(flips(900, 20, 18), 0.02, 0.05);
        assert_eq!(value(), value());
    }

    #[test]
    fn no_samples_prove_nothing() {
        for test in PROVING {
            assert_eq!(test.upper_bound(Flips::default(), 0.05), 1.0, "{test:?}");
        }
    }
}
