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

/// What a choice may lose on some samples: the mean drop, and so many of its own standard errors on
/// top, are at most `drop`. The standard error of a mean of {-1, 0, 1} is taken as √flips / n.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    pub(super) drop: f64,
    pub(super) errors: f64,
}

impl Bound {
    /// On the drop as it was seen.
    pub(super) fn plain(drop: f64) -> Self {
        Self { drop, errors: 0.0 }
    }
}

/// A bound on the sums over a mask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) most: f64,
    pub(super) errors: f64,
}

impl Limit {
    pub(super) fn keeps(self, Tally { drop, flips }: Tally) -> bool {
        let slack = self.most - drop as f64;
        slack >= 0.0 && self.errors * self.errors * flips as f64 <= slack * slack
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
            errors: bound.errors,
        };
        bounds.iter().map(limit).collect()
    }
}
