//! What a choice may lose, and what it loses.

use crate::trace::effective;

/// How answers differ from the reference's, in units of weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Reference right minus answer right.
    pub(super) drop: i64,
    /// Answers of which one is right and the other wrong.
    pub(super) flips: i64,
}

impl Tally {
    /// Of a sample of this weight: what an answer loses against the reference's.
    pub(super) fn new(weight: i64, reference: bool, right: bool) -> Self {
        let drop = i64::from(reference) - i64::from(right);
        Self { drop: weight * drop, flips: weight * drop.abs() }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { drop: self.drop + other.drop, flips: self.flips + other.flips }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { drop: self.drop - other.drop, flips: self.flips - other.flips }
    }
}

/// Flips that are believed to have been missed. The mean of a rate of which f of n were seen is (f + 1/2) / (n + 1)
/// where nothing was known of it before (Jeffreys' prior); the one more in the denominator is left out.
pub(super) const UNSEEN: f64 = 0.5;

/// What is taken off for chance, which the cheapest of very many candidates owes its drop to as well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Caution {
    /// Nothing: the drop as it was seen.
    None,
    /// The drop that is expected by who has seen as many as `flips` already, at least one, `excess` more of
    /// them harmful than helpful. Of n samples with f flips and drop d in all that is
    /// (f + 1/2) (d + excess) / (f + flips) / n: [`UNSEEN`] more flips than were seen, harmful as often as the mean
    /// of a beta distribution says. It takes off all the more, the fewer flips there are to tell. Samples of
    /// different weights are counted as the samples of equal weight that would tell as much on average; where
    /// flips lie in the heavier ones, that is less than it should be.
    Prior { flips: f64, excess: f64 },
    /// So many standard errors of the drop; that of a mean of {-1, 0, 1} is taken as √f / n.
    Errors(f64),
}

/// What a choice may lose on some samples: the mean drop, with caution, is at most `drop`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    pub(super) drop: f64,
    pub(super) caution: Caution,
}

impl Bound {
    /// On the drop as it was seen.
    pub(super) fn plain(drop: f64) -> Self {
        Self { drop, caution: Caution::None }
    }
}

/// A bound on the sums over a mask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// In samples.
    pub(super) most: f64,
    pub(super) caution: Caution,
    /// Weight of a sample.
    pub(super) unit: f64,
}

impl Limit {
    pub(super) fn keeps(self, lost: Tally) -> bool {
        self.charged(lost) <= self.most
    }

    /// The drop with caution, in samples.
    fn charged(self, Tally { drop, flips: seen }: Tally) -> f64 {
        let (drop, seen) = (drop as f64 / self.unit, seen as f64 / self.unit);
        match self.caution {
            Caution::None => drop,
            Caution::Prior { flips, excess } => (seen + UNSEEN) * (drop + excess) / (seen + flips),
            Caution::Errors(errors) => drop + errors * seen.sqrt(),
        }
    }

    /// No choice that keeps the limit has a larger drop, in units of weight.
    pub(super) fn most_drop(self) -> f64 {
        let most = match self.caution {
            // That of no flip or, of a limit below zero, of very many.
            Caution::Prior { flips, excess } => {
                (self.most * flips / UNSEEN).max(self.most) - excess
            }
            Caution::None | Caution::Errors(_) => self.most,
        };
        most * self.unit
    }
}

/// A subset of the trace's rows.
pub(super) struct Mask {
    /// How much each row counts; 0 outside.
    pub(super) weights: Vec<i64>,
    /// Number of rows inside.
    pub(super) count: usize,
    total: i64,
    /// How many samples of equal weight would tell as much.
    effective: f64,
}

impl Mask {
    /// Of a trace of `rows` rows those in `inside`, which have these weights, of at least 0.
    pub(super) fn new(rows: usize, inside: &[usize], weights: &[i64]) -> Self {
        let mut all = vec![0; rows];
        for (&row, &weight) in inside.iter().zip(weights) {
            all[row] = weight;
        }
        let total = weights.iter().sum();
        let effective = effective(weights.iter().copied());
        Self { weights: all, count: inside.len(), total, effective }
    }

    pub(super) fn holds(&self, row: usize) -> bool {
        self.weights[row] > 0
    }

    /// The rows inside, ascending.
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.weights.len()).filter(|&row| self.holds(row))
    }

    /// The share of all that so much weight is.
    pub(super) fn share(&self, weight: i64) -> f64 {
        weight as f64 / self.total.max(1) as f64
    }

    /// Weight of all rows.
    pub(super) fn total(&self) -> i64 {
        self.total
    }

    /// Weight of a sample, where all counted alike.
    pub(super) fn unit(&self) -> f64 {
        if self.effective > 0.0 { self.total as f64 / self.effective } else { 1.0 }
    }

    pub(super) fn limits(&self, bounds: &[Bound]) -> Vec<Limit> {
        let limit = |bound: &Bound| Limit {
            most: bound.drop * self.effective + 1e-9,
            caution: bound.caution,
            unit: self.unit(),
        };
        bounds.iter().map(limit).collect()
    }

    /// The mean drop with a bound's caution, where the sums over all rows are `lost`.
    pub(super) fn charge(&self, bound: Bound, lost: Tally) -> f64 {
        self.limits(&[bound])[0].charged(lost) / self.effective.max(1.0)
    }
}
