//! What other measures of confidence would have saved in place of the margin.

use super::{Bound, Candidates, Choice, Column, Gate, Tally};
use crate::energy::Energy;
use crate::trace::{Block, Trace};

/// A measure of how sure a stage is; all but the learned gate are computed from its kept scores alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Top-1 minus top-2 of the scores.
    Margin,
    /// The same of their softmax.
    SoftmaxMargin,
    /// The largest value of their softmax.
    MaximumSoftmax,
    /// The entropy of their softmax, negated.
    Entropy,
    /// The largest score over the 4-norm of the scores, their mean taken off
    /// (<https://doi.org/10.48550/arXiv.2305.15508>).
    MaximumLogit,
    /// The margin less table entries of the two leading classes.
    Learned,
}

impl Measure {
    /// `margin`, `softmax margin`, `maximum softmax`, `entropy`, `maximum logit` or `learned`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Margin => "margin",
            Self::SoftmaxMargin => "softmax margin",
            Self::MaximumSoftmax => "maximum softmax",
            Self::Entropy => "entropy",
            Self::MaximumLogit => "maximum logit",
            Self::Learned => "learned",
        }
    }
}

/// What a measure does between the first two stages of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The measure.
    pub measure: Measure,
    /// Mean energy of a sample.
    pub energy: Energy,
    /// Accuracy of the reference minus that of the policy.
    pub drop: f64,
}

/// A softmax of 1 as an integer.
const ONE: f64 = (1 << 30) as f64;

impl Candidates {
    /// The first two stages of a choice with every measure in turn: its threshold is the one that
    /// hands on least and loses at most `bound` on the rows `search`; energy and drop are those on
    /// the rows `test`. Nothing for a choice of one stage; a measure that can't keep the bound is left
    /// out.
    pub fn measures(
        &self,
        trace: &Trace,
        choice: &Choice,
        [search, test]: [&[usize]; 2],
        bound: f64,
        seed: u64,
    ) -> Vec<Measured> {
        let [low, high, ..] = choice.stages[..] else { return Vec::new() };
        let info = &self.all[low].info;
        let block = trace.block(&info.point, info.view).expect("every point was traced");
        let mask = self.mask(search);
        let limits = mask.limits(&[Bound::plain(bound)]);
        let threshold = |column: &Column| {
            let mut found = None;
            self.sweep(&mask, [low, high], column, &limits, |_, _, at| found = Some(at));
            found
        };
        let outcome = |measure, escalated: &dyn Fn(usize) -> bool| {
            let tested = self.mask(test);
            let (mut lost, mut handed_on) = (Tally::default(), 0);
            for &row in test {
                let stage = if escalated(row) { high } else { low };
                if stage == high {
                    handed_on += tested.weights[row];
                }
                lost = lost.plus(self.tally(&tested, row, self.all[stage].correct[row]));
            }
            let [first, second] = self.pair(low, high).map(|price| price.energy);
            let energy = first.plus(second.times(tested.share(handed_on)));
            Measured { measure, energy, drop: tested.share(lost.drop) }
        };
        let plain = [
            Measure::Margin,
            Measure::SoftmaxMargin,
            Measure::MaximumSoftmax,
            Measure::Entropy,
            Measure::MaximumLogit,
        ];
        let mut measured: Vec<Measured> = plain
            .into_iter()
            .filter_map(|measure| {
                let column = match measure {
                    Measure::Margin => self.all[low].margins.clone(),
                    _ => of_scores(block, measure),
                };
                let at = threshold(&column)?;
                Some(outcome(measure, &|row| column.values[row] < at))
            })
            .collect();
        if let Some((tables, column)) = self.learned(search, None, [low, high], seed)
            && let Some(accept_at) = threshold(&column)
        {
            let gate = Gate { accept_at, tables: Some(tables) };
            measured.push(outcome(Measure::Learned, &|row| {
                self.confidence(None, low, gate.tables.as_ref(), row) < gate.accept_at
            }));
        }
        measured
    }
}

/// A measure of each sample's kept scores, times 2^30.
fn of_scores(block: &Block, measure: Measure) -> Column {
    let answers = &block.answers;
    let kept = answers.scores.len() / answers.len().max(1);
    let value = |scores: &[i32]| -> f64 {
        let highest = scores.iter().copied().max().unwrap_or(0);
        let of = |&s: &i32| ((f64::from(s) - f64::from(highest)) * block.score_scale).exp();
        let sum: f64 = scores.iter().map(of).sum();
        let mut shares: Vec<f64> = scores.iter().map(|s| of(s) / sum).collect();
        shares.sort_by(|a, b| b.total_cmp(a));
        let second = shares.get(1).copied().unwrap_or(0.0);
        let norm = || {
            let mean = scores.iter().map(|&s| f64::from(s)).sum::<f64>() / scores.len() as f64;
            let fourth: f64 = scores.iter().map(|&s| (f64::from(s) - mean).powi(4)).sum();
            (f64::from(highest) - mean) / fourth.sqrt().sqrt().max(f64::MIN_POSITIVE)
        };
        match measure {
            Measure::MaximumLogit => norm(),
            Measure::SoftmaxMargin => shares[0] - second,
            Measure::MaximumSoftmax => shares[0],
            // Of up to 32 classes at most ln 32.
            _ => shares.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>() / 4.0,
        }
    };
    let values = answers.scores.chunks_exact(kept.max(1)).map(|s| (value(s) * ONE) as i32);
    Column::new(values.collect())
}
