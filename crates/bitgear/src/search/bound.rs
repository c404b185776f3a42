//! What a choice may lose, and what it loses.

/// How answers differ from the reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Reference right minus answer right.
    pub(super) drop: i64,
    /// Answers of which one is right and the other wrong.
    pub(super) flips: i64,
}

impl Tally {
    pub(super) fn plus(self, other: Self) -> Self {
        Self { drop: self.drop + other.drop, flips: self.flips + other.flips }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { drop: self.drop - other.drop, flips: self.flips - other.flips }
    }
}

/// What is taken off for chance, which the cheapest of very many candidates owes its drop to as well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Caution {
    /// Nothing: the drop as it was seen.
    None,
    /// The drop that is expected by who has seen as many as `flips` already, at least one, `excess` more of
    /// them harmful than helpful. Of n samples with f flips and drop d in all that is
    /// (f + 1) (d + excess) / (f + flips) / n: one flip more than was seen, harmful as often as the mean of
    /// a beta distribution says. It takes off all the more, the fewer flips there are to tell.
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
    pub(super) most: f64,
    pub(super) caution: Caution,
}

impl Limit {
    pub(super) fn keeps(self, Tally { drop, flips: seen }: Tally) -> bool {
        let (drop, seen) = (drop as f64, seen as f64);
        match self.caution {
            Caution::None => drop <= self.most,
            Caution::Prior { flips, excess } => {
                (seen + 1.0) * (drop + excess) <= self.most * (seen + flips)
            }
            Caution::Errors(errors) => {
                let slack = self.most - drop;
                slack >= 0.0 && errors * errors * seen <= slack * slack
            }
        }
    }

    /// No choice that keeps the limit has a larger drop.
    pub(super) fn most_drop(self) -> f64 {
        let Caution::Prior { flips, excess } = self.caution else { return self.most };
        // That of no flip or, of a limit below zero, of very many.
        (self.most * flips).max(self.most) - excess
    }
}

/// A subset of the trace's rows.
pub(super) struct Mask {
    pub(super) inside: Vec<bool>,
    pub(super) count: usize,
}

impl Mask {
    pub(super) fn limits(&self, bounds: &[Bound]) -> Vec<Limit> {
        let limit = |bound: &Bound| Limit {
            most: bound.drop * self.count as f64 + 1e-9,
            caution: bound.caution,
        };
        bounds.iter().map(limit).collect()
    }
}
