//! Two stages: all thresholds of all pairs.

use super::{Candidates, Choice, Column, Gate, Limit, Mask, Pool, Tally};

/// A policy on the Pareto frontier.
#[derive(Clone, Debug, PartialEq)]
pub struct Tradeoff {
    /// The policy.
    pub choice: Choice,
    /// Mean chip energy of a sample, in microjoule.
    pub chip_uj: f64,
    /// Mean drop.
    pub drop: f64,
}

/// Where a threshold may lie: so many samples are accepted, and all together lose `lost`.
#[derive(Clone, Copy)]
struct Boundary {
    accepted: usize,
    accept_at: i32,
    lost: Tally,
    /// Whether no class loses more than the rules allow.
    classes_keep: bool,
}

/// What each class has lost, against the most that it may.
struct ClassDrops {
    drops: Vec<i64>,
    most: Vec<i64>,
    /// Classes that have lost more.
    over: usize,
}

impl ClassDrops {
    fn add(&mut self, class: u32, drop: i64) {
        let class = class as usize;
        if let (Some(sum), Some(&most)) = (self.drops.get_mut(class), self.most.get(class)) {
            self.over -= usize::from(*sum > most);
            *sum += drop;
            self.over += usize::from(*sum > most);
        }
    }
}

/// The threshold between two distinct margins: in the middle, rounded up; above `below`, at most
/// `above`.
pub(super) fn between(below: i32, above: i32) -> i32 {
    let gap = i64::from(above) - i64::from(below);
    (i64::from(below) + (gap + 1) / 2) as i32
}

impl Candidates {
    /// All choices of a pool, of one or two stages with plain margins, that none other beats in both
    /// energy and drop on `rows`, by rising energy and falling drop.
    pub fn frontier(&self, rows: &[usize], pool: Pool) -> Vec<Tradeoff> {
        let mask = self.mask(rows);
        let n = mask.count.max(1) as f64;
        let members = self.members(pool);
        let mut frontier: Vec<Tradeoff> = members
            .iter()
            .map(|&only| Tradeoff {
                choice: self.always(only),
                chip_uj: self.all[only].energy.chip_uj,
                drop: self.total(&mask, only).drop as f64 / n,
            })
            .filter(|tradeoff| self.allows_always(&mask, tradeoff.choice.last()))
            .collect();
        prune(&mut frontier);
        if pool.is_dynamic() && self.rules.stages >= 2 {
            for [low, high] in self.openings(&members) {
                let prices = self.pair(low, high);
                if !self.affordable(&prices) {
                    continue;
                }
                let [first, second] = prices.map(|price| price.energy.chip_uj);
                let mut best = i64::MAX;
                let mut pair = Vec::new();
                let margins = &self.all[low].margins;
                self.boundaries(&mask, [low, high], margins, |boundary| pair.push(boundary));
                // Accepting less costs more: it must lose less than everything cheaper.
                for boundary in pair.into_iter().rev() {
                    let rate = (mask.count - boundary.accepted) as f64 / n;
                    let drop = boundary.lost.drop;
                    let allowed = boundary.classes_keep && rate <= self.rules.max_escalation;
                    if drop < best && allowed {
                        best = drop;
                        frontier.push(Tradeoff {
                            choice: Choice {
                                stages: vec![low, high],
                                gates: vec![Gate::margin(boundary.accept_at)],
                            },
                            chip_uj: first + (mask.count - boundary.accepted) as f64 / n * second,
                            drop: drop as f64 / n,
                        });
                    }
                }
            }
            prune(&mut frontier);
        }
        frontier
    }

    /// Offers, for each limit, the pair's threshold on a column that accepts most: index of the limit,
    /// chip energy, threshold.
    pub(super) fn sweep(
        &self,
        mask: &Mask,
        [low, high]: [usize; 2],
        column: &Column,
        limits: &[Limit],
        mut offer: impl FnMut(usize, f64, i32),
    ) {
        let prices = self.pair(low, high);
        if !self.affordable(&prices) {
            return;
        }
        let loosest =
            limits.iter().fold(f64::NEG_INFINITY, |most, limit| most.max(limit.most_drop()));
        let mut found: Vec<Option<Boundary>> = vec![None; limits.len()];
        self.boundaries(mask, [low, high], column, |boundary| {
            if boundary.lost.drop as f64 <= loosest && boundary.classes_keep {
                for (found, limit) in found.iter_mut().zip(limits) {
                    if limit.keeps(boundary.lost) {
                        *found = Some(boundary);
                    }
                }
            }
        });
        let [first, second] = prices.map(|price| price.energy.chip_uj);
        for (index, found) in found.iter().enumerate() {
            if let Some(Boundary { accepted, accept_at, .. }) = *found {
                let rate = (mask.count - accepted) as f64 / mask.count as f64;
                if rate <= self.rules.max_escalation {
                    offer(index, first + rate * second, accept_at);
                }
            }
        }
    }

    /// Whether the rules allow a candidate for every input.
    pub(super) fn allows_always(&self, mask: &Mask, index: usize) -> bool {
        self.affordable(&self.price(&[index])) && self.class_drops(mask, index).over == 0
    }

    /// What candidate `index` alone loses in each class; nothing where classes may lose anything.
    fn class_drops(&self, mask: &Mask, index: usize) -> ClassDrops {
        let Some(cap) = self.rules.max_class_drop else {
            return ClassDrops { drops: Vec::new(), most: Vec::new(), over: 0 };
        };
        let rows = || (0..mask.inside.len()).filter(|&row| mask.inside[row]);
        let mut counts = vec![0_usize; self.classes];
        for row in rows() {
            counts[self.labels[row] as usize] += 1;
        }
        let most = counts.iter().map(|&count| (cap * count as f64 + 1e-9).floor() as i64);
        let most: Vec<i64> = most.collect();
        let over = most.iter().filter(|&&most| most < 0).count();
        let mut classes = ClassDrops { drops: vec![0; self.classes], most, over };
        for row in rows() {
            let lost = self.tally(row, self.all[index].correct[row]);
            classes.add(self.labels[row], lost.drop);
        }
        classes
    }

    /// Visits all thresholds of a pair on a column, by rising number of accepted samples. Accepting
    /// everything is the low point alone, which is a candidate of its own.
    fn boundaries(
        &self,
        mask: &Mask,
        [low, high]: [usize; 2],
        column: &Column,
        mut visit: impl FnMut(Boundary),
    ) {
        let mut lost = self.total(mask, high);
        let mut classes = self.class_drops(mask, high);
        let (low, high) = (&self.all[low], &self.all[high]);
        let mut accepted = 0;
        let mut previous: Option<i32> = None;
        for &row in &column.order {
            let row = row as usize;
            if !mask.inside[row] {
                continue;
            }
            let margin = column.values[row];
            if let Some(previous) = previous
                && margin < previous
            {
                let accept_at = between(margin, previous);
                visit(Boundary { accepted, accept_at, lost, classes_keep: classes.over == 0 });
            }
            previous = Some(margin);
            accepted += 1;
            let [now, then] = [low, high].map(|stage| self.tally(row, stage.correct[row]));
            lost = lost.plus(now).minus(then);
            classes.add(self.labels[row], now.drop - then.drop);
        }
    }
}

/// Sorts by energy and leaves out what something cheaper, or as cheap, beats or equals.
fn prune(frontier: &mut Vec<Tradeoff>) {
    frontier.sort_by(|a, b| a.chip_uj.total_cmp(&b.chip_uj).then(a.drop.total_cmp(&b.drop)));
    let mut best = f64::INFINITY;
    frontier.retain(|tradeoff| {
        let better = tradeoff.drop < best;
        best = best.min(tradeoff.drop);
        better
    });
}
