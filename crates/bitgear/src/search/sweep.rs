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

/// Where a threshold may lie: samples of so much weight are handed on, and all together lose `lost`.
#[derive(Clone, Copy)]
struct Boundary {
    handed_on: i64,
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
        let members = self.members(pool);
        let mut frontier: Vec<Tradeoff> = members
            .iter()
            .map(|&only| Tradeoff {
                choice: self.always(only),
                chip_uj: self.all[only].energy.chip_uj,
                drop: mask.share(self.total(&mask, only).drop),
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
                    let rate = mask.share(boundary.handed_on);
                    let drop = boundary.lost.drop;
                    let allowed = boundary.classes_keep && rate <= self.rules.max_escalation;
                    if drop < best && allowed {
                        best = drop;
                        frontier.push(Tradeoff {
                            choice: Choice {
                                stages: vec![low, high],
                                gates: vec![Gate::margin(boundary.accept_at)],
                            },
                            chip_uj: first + rate * second,
                            drop: mask.share(drop),
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
            if let Some(Boundary { handed_on, accept_at, .. }) = *found {
                let rate = mask.share(handed_on);
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
        // Of each class its samples, which weigh the same, and what one weighs.
        let mut classes = vec![(0_usize, 0); self.classes];
        for row in mask.rows() {
            let (count, weight) = &mut classes[self.labels[row] as usize];
            *count += 1;
            *weight = mask.weights[row];
        }
        let most = classes.iter().map(|&(n, w)| (cap * n as f64 + 1e-9).floor() as i64 * w);
        let most: Vec<i64> = most.collect();
        let over = most.iter().filter(|&&most| most < 0).count();
        let mut classes = ClassDrops { drops: vec![0; self.classes], most, over };
        for row in mask.rows() {
            let lost = self.tally(mask, row, self.all[index].correct[row]);
            classes.add(self.labels[row], lost.drop);
        }
        classes
    }

    /// Visits all thresholds of a pair on a column, by falling weight of what is handed on. Accepting
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
        let mut handed_on = mask.total();
        let mut previous: Option<i32> = None;
        for &row in &column.order {
            let row = row as usize;
            if !mask.holds(row) {
                continue;
            }
            let margin = column.values[row];
            if let Some(previous) = previous
                && margin < previous
            {
                let accept_at = between(margin, previous);
                visit(Boundary { handed_on, accept_at, lost, classes_keep: classes.over == 0 });
            }
            previous = Some(margin);
            handed_on -= mask.weights[row];
            let [now, then] = [low, high].map(|stage| self.tally(mask, row, stage.correct[row]));
            lost = lost.plus(now).minus(then);
            classes.add(self.labels[row], now.drop - then.drop);
        }
    }
}

/// Sorts by energy and leaves out what something cheaper, or as cheap, beats or equals.
pub(super) fn prune(frontier: &mut Vec<Tradeoff>) {
    frontier.sort_by(|a, b| a.chip_uj.total_cmp(&b.chip_uj).then(a.drop.total_cmp(&b.drop)));
    let mut best = f64::INFINITY;
    frontier.retain(|tradeoff| {
        let better = tradeoff.drop < best;
        best = best.min(tradeoff.drop);
        better
    });
}
