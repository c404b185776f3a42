//! Does a certificate still stand? A stream of inputs is compared with the certified samples, in what
//! needs no labels: how sure the first stage was, and which stage answered.
//!
//! If stream and certified samples come from one distribution, the rank of each new input among all
//! before it, ties broken at random, is uniform and independent of earlier ones (conformal prediction).
//! A gambler bets against that: with a fair bet his fortune is ever 1 / `level` times what he began with
//! only with probability `level`, however long the stream and whenever one looks (Ville). He bets on a
//! histogram of past ranks, and divides his stake among beginning now and at every power of two, so
//! that a late drift is not drowned by a long past.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::trace::Random;

/// Bins of confidences that are told apart.
const BINS: usize = 64;
/// Bins of ranks that are bet on.
const RANKS: usize = 8;

/// What the certified samples looked like, as `policy.json` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Footprint {
    /// Upper edges of the bins of the first stage's confidence but the last, rising, in its units.
    pub edges: Vec<i32>,
    /// \[bin\]\[stage that answered\]: samples.
    pub counts: Vec<Vec<u64>>,
}

impl Footprint {
    /// The footprint of samples: confidence of the first stage, and the stage that answered, of
    /// `stages`.
    pub fn new(samples: &[(i32, usize)], stages: usize) -> Self {
        let mut sorted: Vec<i32> = samples.iter().map(|&(confidence, _)| confidence).collect();
        sorted.sort_unstable();
        let mut edges: Vec<i32> = (1..BINS)
            .filter_map(|bin| sorted.get((bin * sorted.len() / BINS).checked_sub(1)?).copied())
            .collect();
        edges.dedup();
        let mut footprint = Self { counts: vec![vec![0; stages]; edges.len() + 1], edges };
        for &(confidence, stage) in samples {
            let bin = footprint.bin(confidence);
            footprint.counts[bin][stage.min(stages - 1)] += 1;
        }
        footprint
    }

    fn bin(&self, confidence: i32) -> usize {
        self.edges.partition_point(|&edge| edge < confidence)
    }

    /// Share of samples that each stage but the last handed on.
    pub fn escalation_rates(&self) -> Vec<f64> {
        rates(&self.counts)
    }

    /// Whether the counts belong to the edges and to a policy of so many stages.
    pub fn fits(&self, stages: usize) -> bool {
        let samples: u64 = self.counts.iter().flatten().fold(0, |a, &b| a.saturating_add(b));
        self.counts.len() == self.edges.len() + 1
            && self.counts.iter().all(|bin| bin.len() == stages)
            && self.edges.windows(2).all(|pair| pair[0] < pair[1])
            && (1..1 << 48).contains(&samples)
    }
}

fn rates(counts: &[Vec<u64>]) -> Vec<f64> {
    let stages = counts.first().map_or(1, Vec::len);
    let total: u64 = counts.iter().flatten().sum();
    let answered = |later: usize| -> u64 { counts.iter().flat_map(|bin| &bin[later..]).sum() };
    (1..stages).map(|later| answered(later) as f64 / total.max(1) as f64).collect()
}

/// Watches a stream.
#[derive(Clone, Debug)]
pub struct Monitor {
    footprint: Footprint,
    /// Certified samples and those of the stream so far.
    seen: Vec<Vec<u64>>,
    stream: Vec<Vec<u64>>,
    bets: Vec<Bet>,
    inputs: u64,
    random: Random,
    evidence: f64,
    strongest: f64,
    level: f64,
    noticed_at: Option<u64>,
}

/// What a monitor has found so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Number of inputs.
    pub inputs: u64,
    /// Whether the stream differs, except with probability `level`.
    pub drifted: bool,
    /// At which input that was first sure, counted from 1.
    pub noticed_at: Option<u64>,
    /// Since about which input the stream differs: where the best of the bets began.
    pub since: Option<u64>,
    /// Probability of an alarm, ever, where nothing has changed.
    pub level: f64,
    /// The gambler's fortune now.
    pub evidence: f64,
    /// The largest that it was; an alarm needs 1 / `level`.
    pub strongest_evidence: f64,
    /// Share of the stream that each stage but the last handed on.
    pub escalation_rates: Vec<f64>,
    /// Share of the certified samples that each stage but the last handed on.
    pub certified_escalation_rates: Vec<f64>,
}

/// A bet that began after `begin` inputs.
#[derive(Clone, Debug)]
struct Bet {
    begin: u64,
    ranks: [f64; RANKS],
    log_fortune: f64,
}

impl Monitor {
    /// A monitor of streams like the footprint, which raises an alarm with probability `level`, ever, where
    /// nothing has changed; ties are broken with the seed. The footprint must fit its policy.
    pub fn new(footprint: Footprint, seed: u64, level: f64) -> Self {
        let stream = footprint.counts.iter().map(|bin| vec![0; bin.len()]).collect();
        let seen = footprint.counts.clone();
        let random = Random::new(seed);
        Self {
            footprint,
            seen,
            stream,
            bets: Vec::new(),
            inputs: 0,
            random,
            evidence: 1.0,
            strongest: 1.0,
            level,
            noticed_at: None,
        }
    }

    /// Takes in an input: the first stage's confidence, and the stage that answered.
    pub fn observe(&mut self, confidence: i32, stage: usize) {
        let bin = self.footprint.bin(confidence);
        let stage = stage.min(self.seen[bin].len() - 1);
        self.seen[bin][stage] += 1;
        self.stream[bin][stage] += 1;
        // Rank among all that were seen, this one included; by confidence, then by stage.
        let below: u64 = self.seen[..bin].iter().flatten().sum::<u64>()
            + self.seen[bin][..stage].iter().sum::<u64>();
        let total: u64 = self.seen.iter().flatten().sum();
        let uniform = self.random.next_u64() as f64 / 2.0_f64.powi(64);
        let rank = (below as f64 + uniform * self.seen[bin][stage] as f64) / total as f64;
        let bin = ((rank * RANKS as f64) as usize).min(RANKS - 1);
        if self.inputs.is_power_of_two() || self.inputs == 0 {
            self.bets.push(Bet { begin: self.inputs, ranks: [1.0; RANKS], log_fortune: 0.0 });
        }
        for bet in &mut self.bets {
            let bets: f64 = bet.ranks.iter().sum();
            bet.log_fortune += (bet.ranks[bin] / bets * RANKS as f64).ln();
            bet.ranks[bin] += 1.0;
        }
        self.inputs += 1;
        // The k-th beginning has the stake 1 / (k (k + 1)); what has not begun keeps its stake.
        let stake = |k: usize| 1.0 / ((k + 1) as f64 * (k + 2) as f64);
        let begun = self.bets.iter().enumerate();
        let fortune: f64 = begun.map(|(k, bet)| stake(k) * bet.log_fortune.exp()).sum();
        self.evidence = fortune + 1.0 / (self.bets.len() + 1) as f64;
        self.strongest = self.strongest.max(self.evidence);
        if self.strongest >= 1.0 / self.level {
            self.noticed_at.get_or_insert(self.inputs);
        }
    }

    /// What has been found so far.
    pub fn finding(&self) -> Finding {
        let best = self.bets.iter().max_by(|a, b| a.log_fortune.total_cmp(&b.log_fortune));
        Finding {
            inputs: self.inputs,
            drifted: self.noticed_at.is_some(),
            noticed_at: self.noticed_at,
            since: self.noticed_at.and(best).map(|bet| bet.begin),
            level: self.level,
            evidence: self.evidence,
            strongest_evidence: self.strongest,
            escalation_rates: rates(&self.stream),
            certified_escalation_rates: self.footprint.escalation_rates(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Confidences around `mean`, with ties; below 10 the second stage answers.
    fn draw(random: &mut Random, mean: usize) -> (i32, usize) {
        let confidence = (random.below(mean) + random.below(mean)) as i32;
        (confidence, usize::from(confidence < 10))
    }

    fn watch(seed: u64, inputs: usize, drift_at: usize) -> Finding {
        let mut random = Random::new(seed);
        let certified: Vec<(i32, usize)> = (0..1000).map(|_| draw(&mut random, 40)).collect();
        let mut monitor = Monitor::new(Footprint::new(&certified, 2), seed, 0.05);
        for input in 0..inputs {
            let mean = if input < drift_at { 40 } else { 30 };
            let (confidence, stage) = draw(&mut random, mean);
            monitor.observe(confidence, stage);
        }
        monitor.finding()
    }

    #[test]
    fn a_stream_like_the_certified_samples_rarely_raises_an_alarm() {
        let alarms = (0..200).filter(|&seed| watch(seed, 1500, usize::MAX).drifted).count();
        // At 5 % at most 10 of 200 are expected; 19 would be three standard errors more.
        assert!(alarms < 19, "{alarms}");
    }

    #[test]
    fn a_drift_is_noticed_whenever_it_begins() {
        for drift_at in [0, 1000] {
            let mut early = 0;
            for seed in 0..20 {
                let found = watch(seed, drift_at + 1500, drift_at);
                let noticed = found.noticed_at.expect("the drift is plain");
                early += usize::from(noticed <= drift_at as u64);
                assert!(found.escalation_rates[0] > found.certified_escalation_rates[0]);
            }
            // One of 20 is expected at 5 %.
            assert!(early < 4, "{early} alarms before the drift at {drift_at}");
        }
    }

    #[test]
    fn the_footprint_counts_every_sample_once() {
        let samples: Vec<(i32, usize)> = (0..999).map(|i| (i / 7, usize::from(i < 70))).collect();
        let footprint = Footprint::new(&samples, 2);
        assert!(footprint.fits(2) && !footprint.fits(3));
        assert_eq!(footprint.counts.iter().flatten().sum::<u64>(), 999);
        assert!((footprint.escalation_rates()[0] - 70.0 / 999.0).abs() < 1e-12);
        assert!(footprint.edges.len() > BINS / 2);
    }
}
