//! What is best at some rate of exchange between energy and drop: the lower convex hull of all policies of up to
//! three stages.
//!
//! At a rate, what a sample costs depends on the stage that answers it alone, so that for each first threshold
//! the best second one is the least prefix of a sum, which the tree of `tree` keeps. Each edge of the hull so
//! far is a rate; nothing but what lies below the edge costs less at it.

use std::sync::atomic::{AtomicI64, Ordering};

use rayon::prelude::*;

use super::choose::Found;
use super::ranked::Ranks;
use super::sweep::prune;
use super::tree::Tree;
use super::{Bound, Candidates, Choice, Gate, Mask, Pool, Tradeoff};

/// Sums of costs at a rate of exchange are at most about this.
const LARGEST: f64 = (1_i64 << 55) as f64;
/// Costs that differ by less are alike, 2⁻³⁶ of the largest, or what rounding the cost of a unit of weight may make.
const ALIKE: i64 = 1 << 19;

impl Candidates {
    /// The vertices of the lower convex hull of mean chip energy, in microjoule, and mean drop, a fraction, on
    /// `rows`, over all choices of a pool with plain margins and up to three stages, by rising energy and falling
    /// drop: what costs least at any rate of exchange between the two. Exact but for rounding; a fourth stage, and of
    /// three stages a cap on the drop of a class and the total energy, are not looked at. Empty where every point
    /// breaks a cap.
    pub fn hull(&self, rows: &[usize], pool: Pool) -> Vec<Tradeoff> {
        let mask = self.mask(rows);
        let members = self.members(pool);
        let mut found = self.frontier(rows, pool);
        let Some(surest) = found.last() else { return found };
        if pool.is_dynamic() && self.rules.stages >= 3 {
            let exchange = Exchange {
                candidates: self,
                mask: &mask,
                ranks: Ranks::new(self, &mask, &members),
                members: &members,
            };
            // The least drop of all, and the least energy at it.
            let drop = (surest.drop * mask.total() as f64).round() as i64;
            let least = exchange.cheapest(0.0, 1, drop + 1, &[]).map_or(drop, |(drop, _)| drop);
            let limit = mask.limits(&[Bound::plain(mask.share(least))])[0];
            let any = Found { energy: f64::INFINITY, floor: 0.0, choice: surest.choice.clone() };
            let triplet = self.search_triples(&mask, &members, limit, &any);
            found.extend(triplet.map(|t| self.tradeoff(t.stages, t.accept_at, rows)));
            let mut done = Vec::new();
            loop {
                convex(&mut found);
                let ends = |pair: &[Tradeoff]| {
                    [0, 1].map(|end| [pair[end].chip_uj.to_bits(), pair[end].drop.to_bits()])
                };
                let Some(pair) = found.windows(2).find(|pair| !done.contains(&ends(pair))) else {
                    break;
                };
                done.push(ends(pair));
                if let Some((stages, accept_at)) = exchange.below(&pair[0], &pair[1]) {
                    found.push(self.tradeoff(stages, accept_at, rows));
                }
            }
        }
        convex(&mut found);
        found
    }

    fn tradeoff(&self, stages: [usize; 3], accept_at: [i32; 2], rows: &[usize]) -> Tradeoff {
        let gates = accept_at.map(Gate::margin).to_vec();
        let choice = Choice { stages: stages.to_vec(), gates };
        let outcome = self.outcome(&choice, rows);
        Tradeoff { choice, chip_uj: outcome.energy.chip_uj, drop: outcome.drop }
    }
}

/// Stages, and the thresholds of the first two.
type Thresholds = ([usize; 3], [i32; 2]);

/// Policies of three stages at a rate of exchange.
struct Exchange<'a> {
    candidates: &'a Candidates,
    mask: &'a Mask,
    ranks: Ranks,
    members: &'a [usize],
}

impl Exchange<'_> {
    /// The policy of three stages that lies farthest below the line through two others.
    fn below(&self, left: &Tradeoff, right: &Tradeoff) -> Option<Thresholds> {
        let [uj, drop] = [left.drop - right.drop, right.chip_uj - left.chip_uj];
        let all = self.candidates.all.iter();
        let dearest = all.map(|candidate| candidate.energy.chip_uj).fold(0.0, f64::max);
        let total = self.mask.total() as f64;
        let scale = LARGEST / (total * (uj * 3.0 * dearest + drop));
        let (uj, drop) = (scale * uj, (scale * drop).round() as i64);
        let cost = |point: &Tradeoff| {
            (uj * point.chip_uj * total) as i64 + drop * (point.drop * total).round() as i64
        };
        let bar = cost(left).min(cost(right)) - ALIKE.max(self.mask.total());
        Some(self.cheapest(uj, drop, bar, &[&left.choice, &right.choice])?.1)
    }

    /// Of all triples the one of least cost below `bar`, the first of equals, and that cost: the sum over samples,
    /// times their weights, of `uj` for each microjoule and `drop` for what is lost.
    /// Triples that begin like one of the choices `first` are tried before others: they lower the bar.
    fn cheapest(
        &self,
        uj: f64,
        drop: i64,
        bar: i64,
        first: &[&Choice],
    ) -> Option<(i64, Thresholds)> {
        let Self { candidates, mask, members, .. } = *self;
        let mut pairs: Vec<[usize; 2]> = candidates.openings(members).collect();
        pairs.sort_by_key(|pair| !first.iter().any(|choice| choice.stages.starts_with(pair)));
        // Threads tell each other what they found. Only what is dearer is left out, so the cheapest, and the first
        // of equals, is found in any order.
        let bar = AtomicI64::new(bar - 1);
        let cheapest = pairs.par_iter().map_init(
            || Tree::new(mask.count),
            |tree, &[a, b]| {
                let mut best: Option<(i64, Thresholds)> = None;
                for &c in members {
                    let [first, third] = [a, c].map(|index| candidates.all[index].base);
                    if first != third && candidates.follows(b, c) {
                        let found = self.triple([a, b, c], uj, drop, &bar, tree);
                        best = match (best, found) {
                            (Some(best), Some(found)) if best.0 <= found.0 => Some(best),
                            (best, found) => found.or(best),
                        };
                    }
                }
                best
            },
        );
        let found: Vec<_> = cheapest.flatten().collect();
        found.into_iter().min_by_key(|&(cost, _)| cost)
    }

    /// The best thresholds of three stages.
    fn triple(
        &self,
        stages: [usize; 3],
        uj: f64,
        drop: i64,
        bar: &AtomicI64,
        tree: &mut Tree,
    ) -> Option<(i64, Thresholds)> {
        let Self { candidates, mask, ranks, .. } = self;
        let prices = candidates.price(&stages);
        if !candidates.affordable(&prices) {
            return None;
        }
        let mut so_far = 0.0;
        let runs: Vec<i64> = prices
            .iter()
            .map(|price| {
                so_far += uj * price.energy.chip_uj;
                so_far.round() as i64
            })
            .collect();
        let weight = |row: u32| mask.weights[row as usize];
        let cost = |row: u32, stage: usize| {
            let right = candidates.all[stages[stage]].correct[row as usize];
            weight(row) * runs[stage] + drop * candidates.tally(mask, row as usize, right).drop
        };
        let gain = |row: u32| cost(row, 1) - cost(row, 2);
        let [first, second] = [ranks.of(stages[0]), ranks.of(stages[1])];
        let rows = &first.order;
        // If the better of the second and the third stage answers all that the first hands on: the span of thresholds
        // that could cost as little as what was found.
        let hopeful = |row: u32| cost(row, 1).min(cost(row, 2));
        let mut least: i64 = rows.iter().map(|&row| hopeful(row)).sum();
        let most = bar.load(Ordering::Relaxed);
        // A stage that accepts nothing is only a cost, unless the next one sums its scores.
        let summed = [1, 2].map(|stage| candidates.all[stages[stage]].sum.is_some());
        let (mut begin, mut end) = (usize::MAX, 0);
        for (accepted, &row) in rows.iter().enumerate() {
            if least <= most && (accepted > 0 || summed[0]) {
                (begin, end) = (begin.min(accepted), accepted);
            }
            least += cost(row, 0) - hopeful(row);
        }
        if begin == usize::MAX {
            return None;
        }
        let (before, after) = rows.split_at(begin);
        tree.clear();
        for &row in after {
            tree.put(second.group[row as usize] as usize, gain(row), weight(row));
        }
        tree.build();
        let mut best: Option<(i64, Thresholds)> = None;
        // If the third stage answers all that the first hands on.
        let mut sum: i64 = before.iter().map(|&row| cost(row, 0)).sum();
        sum += after.iter().map(|&row| cost(row, 2)).sum::<i64>();
        let mut active: i64 = after.iter().map(|&row| weight(row)).sum();
        for accepted in begin..=end {
            let row = rows[accepted];
            let parts = accepted == 0 || first.value(rows[accepted - 1]) != first.value(row);
            if parts && mask.share(active) <= candidates.rules.max_escalation {
                let (last, gained, sure) = tree.least();
                let nothing = summed[1] && (gained > 0 || sure == 0);
                let (last, gained) = if nothing { (None, 0) } else { (Some(last), gained) };
                let cost = sum + gained;
                if cost <= bar.load(Ordering::Relaxed)
                    && best.is_none_or(|(least, _)| cost < least)
                    && (nothing || (0 < sure && sure < active))
                {
                    bar.fetch_min(cost, Ordering::Relaxed);
                    let accept_at = [first.accepting(accepted, rows), second.down_to(last)];
                    best = Some((cost, (stages, accept_at)));
                }
            }
            sum += cost(row, 0) - cost(row, 2);
            active -= weight(row);
            tree.remove(second.group[row as usize] as usize, gain(row), weight(row));
        }
        best
    }
}

/// Keeps the vertices of the lower convex hull, by rising energy and falling drop.
fn convex(points: &mut Vec<Tradeoff>) {
    prune(points);
    let mut hull: Vec<Tradeoff> = Vec::with_capacity(points.len());
    for point in points.drain(..) {
        while let [.., a, b] = &hull[..]
            && is_above(a, b, &point)
        {
            hull.pop();
        }
        hull.push(point);
    }
    *points = hull;
}

/// Whether `b` lies on or above the line from `a` to `c`, but for rounding.
fn is_above(a: &Tradeoff, b: &Tradeoff, c: &Tradeoff) -> bool {
    let [energy, drop] = [c.chip_uj - a.chip_uj, a.drop - c.drop];
    let on_line = (b.chip_uj - a.chip_uj) / energy * drop;
    a.drop - b.drop <= on_line + 1e-10 * drop
}
