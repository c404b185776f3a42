//! The guarantee: which of a few policies, all chosen on the search split, are proved on the
//! certification split to lose no more than so much, except with a stated probability. Where none is asked for,
//! the samples of both choose one policy, and the test split tells the most that it loses.
//!
//! Candidates stand in a row from the one that is most likely to pass to the boldest. The error
//! probability is a stock that flows: most of it starts at the first candidate, and what passes hands
//! its share on to those that have not passed, most of it to the next bolder one, round and round (a
//! sequentially rejective graph, Bretz et al. 2009, <https://doi.org/10.1002/sim.3495>). A candidate that
//! fails keeps its share and stops nothing. Whatever passes is proved, all at once; the cheapest of it is
//! taken.

mod bounds;
mod drift;
mod tails;

pub use bounds::{Flips, Test};
pub use drift::{Finding, Footprint, Monitor};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::search::{Candidates, Choice, Pool, Target};
use crate::trace::{Split, Trace};

/// What a policy must keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// The expected drop is at most this. Candidates for a proof may spend all of it.
    pub target: Target,
    /// Where this is given, the expected drop is instead the least at such a chip energy in
    /// microjoule.
    pub max_energy_uj: Option<f64>,
    /// The drop is at most this, with confidence; `None` asks for no proof.
    pub guarantee: Option<f64>,
    /// Probability that the proof is right.
    pub confidence: f64,
    /// How it is proved.
    pub test: Test,
}

/// What was proved of a policy, as `policy.json` says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// How it was proved.
    pub test: Test,
    /// The samples it was proved with: `certification`, or `test` where no guarantee was asked for.
    pub split: String,
    /// How policy and reference differ on them.
    pub flips: Flips,
    /// The drop that was asked for; null where none was, and the bound is the smallest that holds.
    pub guarantee: Option<f64>,
    /// The drop is at most this.
    pub bound: f64,
    /// Probability that nothing that was proved along with it is wrong.
    pub confidence: f64,
    /// Error probability that was left for this policy when it passed.
    pub level: f64,
    /// Policies that were tested.
    pub tested: usize,
    /// What the samples looked like, for `bitgear monitor`.
    pub footprint: Footprint,
}

/// The policy for a demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The cheapest that was proved; where nothing was, the cheapest for the target.
    pub choice: Choice,
    /// What was proved; `None` where the guarantee that was asked for was not.
    pub certificate: Option<Certificate>,
    /// The drop of the choice is at most this, with confidence; `None` without samples to tell.
    pub bound: Option<f64>,
    /// Where the guarantee was not proved: about how many samples would prove it of this choice;
    /// `None` where it loses too much for any number.
    pub samples_needed: Option<u64>,
}

/// What share of the error probability a candidate gets, of the one before: where it starts, and where it is
/// handed on. Chosen on random splits of MNIST, ResNet-8 and ResNet-20.
const NEXT_SHARE: f64 = 0.4;

impl Demand {
    /// The trace's rows that choose, and those that tell what the choice loses, which choose nothing: of the search and
    /// the certification split with a guarantee; without, both choose, and the test split tells.
    pub fn rows(&self, trace: &Trace) -> [Vec<usize>; 2] {
        let chooses = |split| match split {
            Split::Search => true,
            Split::Certification => self.guarantee.is_none(),
            Split::Test | Split::Calibration => false,
        };
        let choosing = (0..trace.samples.len()).filter(|&row| chooses(trace.splits[row]));
        [choosing.collect(), trace.rows(self.proof())]
    }

    /// The split that tells what is lost.
    pub(crate) fn proof(&self) -> Split {
        if self.guarantee.is_some() { Split::Certification } else { Split::Test }
    }

    fn level(&self) -> f64 {
        1.0 - self.confidence
    }

    /// The certificate of a policy that passed.
    fn certificate(
        &self,
        candidates: &Candidates,
        choice: &Choice,
        proving: &[usize],
        [bound, level]: [f64; 2],
        tested: usize,
    ) -> Certificate {
        let samples: Vec<(i32, usize)> =
            proving.iter().map(|&row| candidates.first_confidence(choice, row)).collect();
        Certificate {
            footprint: Footprint::new(&samples, choice.stages.len()),
            flips: candidates.flips(choice, proving),
            test: self.test,
            split: self.proof().name().to_owned(),
            guarantee: self.guarantee,
            bound,
            confidence: self.confidence,
            level,
            tested,
        }
    }
}

/// Chooses a policy of the pool on the rows `choosing`, and proves what it loses on the rows `proving`, which
/// choose nothing but among policies that pass ([`Demand::rows`]). Where classes are mixed otherwise in
/// deployment, it is proved with the most of these that are mixed so.
pub fn decide(
    candidates: &Candidates,
    choosing: &[usize],
    proving: &[usize],
    demand: &Demand,
    pool: Pool,
    seed: u64,
) -> Verdict {
    let given = proving.len();
    let proving = &candidates.as_deployed(proving, seed)[..];
    let (choice, passed) = choose_on(candidates, choosing, proving, demand, pool, seed);
    let flips = candidates.flips(&choice, proving);
    let level = demand.level();
    let bound = match (demand.guarantee, passed) {
        (Some(guarantee), Some(_)) => Some(guarantee),
        _ => (flips.samples > 0).then(|| demand.test.upper_bound(flips, level)),
    };
    let certificate = bound.zip(passed).map(|(bound, Passed { level, tested })| {
        let found = [bound, level];
        demand.certificate(candidates, &choice, proving, found, tested)
    });
    let missing = demand.guarantee.filter(|_| passed.is_none());
    let flips = candidates.expected_flips(&choice, choosing);
    let samples_needed =
        missing.and_then(|guarantee| demand.test.samples_needed(flips, guarantee, level));
    let samples_needed = samples_needed.map(|n| as_given(n, proving.len(), given));
    Verdict { choice, certificate, bound, samples_needed }
}

/// How many samples like the given ones hold so many that are mixed as in deployment, if `mixed` of `given` did.
pub(crate) fn as_given(samples: u64, mixed: usize, given: usize) -> u64 {
    (samples as f64 * given.max(1) as f64 / mixed.max(1) as f64).ceil() as u64
}

/// How a candidate passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passed {
    /// Error probability that it had.
    pub level: f64,
    /// Candidates that were tested.
    pub tested: usize,
}

/// The choice of [`decide`], and whether it passed: without a guarantee to prove it always does.
pub fn choose(
    candidates: &Candidates,
    choosing: &[usize],
    proving: &[usize],
    demand: &Demand,
    pool: Pool,
    seed: u64,
) -> (Choice, Option<Passed>) {
    let proving = &candidates.as_deployed(proving, seed);
    choose_on(candidates, choosing, proving, demand, pool, seed)
}

/// The same, proved with rows that are mixed as in deployment.
fn choose_on(
    candidates: &Candidates,
    choosing: &[usize],
    proving: &[usize],
    demand: &Demand,
    pool: Pool,
    seed: u64,
) -> (Choice, Option<Passed>) {
    let boldest = || match demand.max_energy_uj {
        Some(budget) => candidates.choose_within(choosing, budget, pool),
        None => candidates.choose(choosing, demand.target, pool, seed),
    };
    let level = demand.level();
    let Some(guarantee) = demand.guarantee else {
        return (boldest(), Some(Passed { level, tested: 1 }));
    };
    if demand.test == Test::Conformal {
        let choice = boldest();
        return match candidates.raise_first_threshold(&choice, proving, guarantee) {
            Some(raised) => (raised, Some(Passed { level, tested: 1 })),
            None => (choice, None),
        };
    }
    let ladder = match demand.max_energy_uj {
        Some(_) => vec![boldest()],
        None => candidates.ladder(choosing, demand.target.drop, pool, seed),
    };
    let energy = |choice: &Choice| candidates.outcome(choice, choosing).energy.chip_uj;
    let excess = |choice: &Choice| excess(candidates.expected_flips(choice, choosing), guarantee);
    // Of several that flip nothing, what costs more is likelier to pass.
    let mut ladder: Vec<([f64; 2], Choice)> =
        ladder.into_iter().map(|choice| ([excess(&choice), -energy(&choice)], choice)).collect();
    ladder.sort_by(|(a, _), (b, _)| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    let ladder: Vec<Choice> = ladder.into_iter().map(|(_, choice)| choice).collect();
    let p_value =
        |choice: &Choice| demand.test.p_value(candidates.flips(choice, proving), guarantee, level);
    let p_values: Vec<f64> = ladder.iter().map(p_value).collect();
    let tested = ladder.len();
    let passed = ladder.into_iter().zip(proved(&p_values, level));
    let cheapest = passed
        .filter_map(|(choice, level)| Some((choice, Passed { level: level?, tested })))
        .map(|found| (energy(&found.0), found))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    match cheapest {
        Some((_, (choice, passed))) => (choice, Some(passed)),
        None => (boldest(), None),
    }
}

/// By how many of its standard errors the drop exceeds the guarantee, with one flip more than was seen.
fn excess(flips: Flips, guarantee: f64) -> f64 {
    let samples = flips.samples as f64;
    (flips.drop() - guarantee) * samples / (flips.rate() * samples + 1.0).sqrt()
}

/// The level at which each candidate passes, if it does; `p_values` from the most likely one to pass
/// to the boldest.
fn proved(p_values: &[f64], level: f64) -> Vec<Option<f64>> {
    let count = p_values.len();
    // To how many: shares that sum to one.
    let dealt = |to: usize| {
        let sum: f64 = (0..to as i32).map(|i| NEXT_SHARE.powi(i)).sum();
        move |i: usize| NEXT_SHARE.powi(i as i32) / sum
    };
    let mut shares: Vec<f64> = (0..count).map(dealt(count)).map(|share| level * share).collect();
    let to_others = dealt(count.saturating_sub(1));
    let hands_on = |from: usize, to: usize| match (to + count - from) % count {
        0 => 0.0,
        steps => to_others(steps - 1),
    };
    let mut hands: Vec<Vec<f64>> =
        (0..count).map(|from| (0..count).map(|to| hands_on(from, to)).collect()).collect();
    let mut passed = vec![None; count];
    loop {
        let passes = |&i: &usize| passed[i].is_none() && p_values[i] <= shares[i];
        let Some(next) = (0..count).find(passes) else { return passed };
        passed[next] = Some(shares[next]);
        let left = |&i: &usize| passed[i].is_none();
        let heirs = std::mem::take(&mut hands[next]);
        for from in (0..count).filter(left) {
            shares[from] += shares[next] * heirs[from];
            // What it would hand to the one that passed goes straight to that one's heirs, itself left out.
            let through = hands[from][next];
            let kept = 1.0 - through * heirs[from];
            for to in (0..count).filter(left).filter(|&to| to != from) {
                hands[from][to] = (hands[from][to] + through * heirs[to]) / kept;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Random;

    #[test]
    fn with_one_candidate_all_of_the_level_is_its_own() {
        assert_eq!(proved(&[0.05], 0.05), [Some(0.05)]);
        assert_eq!(proved(&[0.051], 0.05), [None]);
        assert_eq!(proved(&[], 0.05), []);
    }

    #[test]
    fn what_passes_hands_its_share_on_and_what_fails_stops_nothing() {
        let bold = proved(&[0.001, 0.035, 0.045], 0.05);
        assert!(bold.iter().all(Option::is_some), "{bold:?}");
        assert!((bold[2].unwrap() - 0.05).abs() < 1e-12);
        // The first is unlucky, a later one passes with its own share, and the first gets that.
        let lucky = proved(&[0.035, 0.2, 0.004], 0.05);
        assert_eq!(lucky.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(proved(&[0.2, 0.2, 0.2], 0.05), [None, None, None]);
    }

    #[test]
    fn a_smaller_p_value_takes_nothing_from_the_others() {
        let mut random = Random::new(2);
        let mut small = || (random.next_u64() as f64 / 2.0_f64.powi(64)).powi(4);
        for _ in 0..5_000 {
            let p: Vec<f64> = (0..6).map(|_| small()).collect();
            let before = proved(&p, 0.05);
            for lower in 0..6 {
                let mut p = p.clone();
                p[lower] *= small();
                let after = proved(&p, 0.05);
                let lost = (0..6).find(|&i| before[i].is_some() && after[i].is_none());
                assert_eq!(lost, None, "{p:?}: {before:?} {after:?}");
            }
        }
    }

    /// Every mix of what is true (it may be passed by chance only) and what is not (it always passes).
    #[test]
    fn anything_true_passes_no_more_often_than_the_level_says() {
        let mut random = Random::new(1);
        let mut uniform = || random.next_u64() as f64 / 2.0_f64.powi(64);
        for pattern in 0..16_u32 {
            let is_true = |i: usize| pattern >> i & 1 == 1;
            let runs = 20_000;
            let mut errors = 0;
            for _ in 0..runs {
                let p: Vec<f64> =
                    (0..4).map(|i| if is_true(i) { uniform() } else { 0.0 }).collect();
                let passed = proved(&p, 0.05);
                errors += u32::from((0..4).any(|i| is_true(i) && passed[i].is_some()));
            }
            // Three standard errors of 5 % in 20,000 runs.
            assert!(f64::from(errors) / f64::from(runs) < 0.05 + 0.0047, "{pattern:b}: {errors}");
        }
    }
}
