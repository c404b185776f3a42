//! Three stages: for each threshold of the first stage, a tree over the second stage's values finds
//! the second threshold that accepts most. O(n log n) for a triple of points. Four stages (`chain`) have
//! such triples after their first stage.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::bound::{Caution, UNSEEN};
use super::choose::Found;
use super::ranked::{Ranked, Ranks};
use super::{Candidates, Limit, Mask, Tally};
use crate::energy::Energy;

/// A limit as a sum over samples, in whole numbers: each loses `unit` · drop + `flip` · flips, which are 0
/// or its weight, a drop also less than 0; all together at most `most`.
#[derive(Clone, Copy)]
pub(super) struct Additive {
    unit: i64,
    flip: i64,
    pub(super) most: i64,
}

impl Additive {
    /// Units of a drop where flips count too.
    const FINE: f64 = 1024.0;

    /// What keeps this keeps the limit; where flips weigh `around`, at least a sample, and the limit is not below zero,
    /// or without caution, they are the same. The largest drop that keeps such a limit is a convex function of the
    /// flips, whose tangent lies below.
    fn new(limit: Limit, around: i64) -> Self {
        let around = (around as f64 / limit.unit).max(1.0);
        let (slope, most) = match limit.caution {
            Caution::None => {
                let most = (limit.most * limit.unit).floor() as i64;
                return Self { unit: 1, flip: 0, most };
            }
            // most - errors √f
            Caution::Errors(errors) => {
                (errors / (2.0 * around.sqrt()), limit.most - 0.5 * errors * around.sqrt())
            }
            // most (f + flips) / (f + UNSEEN) - excess; below zero that rises with f, from what it is at none.
            Caution::Prior { flips, excess } if limit.most < 0.0 => {
                (0.0, limit.most * flips / UNSEEN - excess)
            }
            Caution::Prior { flips, excess } => {
                let seen = around + UNSEEN;
                let slope = limit.most * (flips - UNSEEN) / seen.powi(2);
                (slope, limit.most * (around + flips) / seen + slope * around - excess)
            }
        };
        Self {
            unit: Self::FINE as i64,
            flip: (Self::FINE * slope).ceil() as i64,
            most: (Self::FINE * most * limit.unit).floor() as i64,
        }
    }

    pub(super) fn loss(self, Tally { drop, flips }: Tally) -> i64 {
        self.unit * drop + self.flip * flips
    }

    /// What a unit of harmful flips loses.
    pub(super) fn harm(self) -> i64 {
        self.unit + self.flip
    }

    /// What a unit of helpful flips gains at most.
    pub(super) fn help(self) -> i64 {
        (self.unit - self.flip).max(0)
    }
}

/// Sums over a range of the second stage's distinct values, from the highest down.
#[derive(Clone, Copy, Default)]
struct Node {
    /// Σ (loss at the second stage - loss at the third).
    sum: i64,
    /// The least sum of a prefix that is not empty.
    least: i64,
    /// What its samples weigh.
    weight: i64,
}

impl Node {
    fn join(left: Self, right: Self) -> Self {
        Self {
            sum: left.sum + right.sum,
            least: left.least.min(left.sum + right.least),
            weight: left.weight + right.weight,
        }
    }
}

/// A binary tree; node i has children 2i and 2i + 1, leaves begin at `leaves`.
pub(super) struct Tree {
    nodes: Vec<Node>,
    leaves: usize,
}

impl Tree {
    pub(super) fn new(groups: usize) -> Self {
        let leaves = groups.next_power_of_two();
        Self { nodes: vec![Node::default(); 2 * leaves], leaves }
    }

    /// Takes a sample into a leaf, without the sums above.
    pub(super) fn put(&mut self, group: usize, gain: i64, weight: i64) {
        let leaf = &mut self.nodes[self.leaves + group];
        leaf.sum += gain;
        leaf.least = leaf.sum;
        leaf.weight += weight;
    }

    /// Sums up all leaves.
    pub(super) fn build(&mut self) {
        for node in (1..self.leaves).rev() {
            self.nodes[node] = Node::join(self.nodes[2 * node], self.nodes[2 * node + 1]);
        }
    }

    pub(super) fn clear(&mut self) {
        self.nodes.fill(Node::default());
    }

    pub(super) fn remove(&mut self, group: usize, gain: i64, weight: i64) {
        let mut node = self.leaves + group;
        let leaf = &mut self.nodes[node];
        leaf.sum -= gain;
        leaf.least = leaf.sum;
        leaf.weight -= weight;
        while node > 1 {
            node /= 2;
            self.nodes[node] = Node::join(self.nodes[2 * node], self.nodes[2 * node + 1]);
        }
    }

    /// The longest prefix whose sum is at most `limit`: its last leaf, and its weight.
    fn longest(&self, limit: i64) -> Option<(usize, i64)> {
        if self.nodes[1].least > limit {
            return None;
        }
        let (mut node, mut sum, mut weight) = (1, 0, 0);
        while node < self.leaves {
            let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
            if sum + left.sum + right.least <= limit {
                sum += left.sum;
                weight += left.weight;
                node = 2 * node + 1;
            } else {
                node *= 2;
            }
        }
        Some((node - self.leaves, weight + self.nodes[node].weight))
    }

    /// The shortest prefix of the least sum: its last leaf, its sum and its weight.
    pub(super) fn least(&self) -> (usize, i64, i64) {
        let (mut node, mut weight) = (1, 0);
        while node < self.leaves {
            let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
            node *= 2;
            if left.sum + right.least < left.least {
                weight += left.weight;
                node += 1;
            }
        }
        (node - self.leaves, self.nodes[1].least, weight + self.nodes[node].weight)
    }
}

/// A policy of three stages: its thresholds and its mean chip energy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Triplet {
    pub(super) energy: f64,
    pub(super) stages: [usize; 3],
    pub(super) accept_at: [i32; 2],
}

/// Three stages, and the rows that reach the first of them.
#[derive(Clone, Copy)]
pub(super) struct Triple<'a> {
    pub(super) stages: [usize; 3],
    pub(super) gates: [&'a Ranked; 2],
    /// What each stage costs a row.
    pub(super) prices: [Energy; 3],
    /// The rows, by falling value of the first gate.
    pub(super) rows: &'a [u32],
    /// What they weigh.
    pub(super) weight: i64,
    /// Mean energy of what ran before.
    pub(super) before: Energy,
    /// What the rows lose that don't get here.
    pub(super) lost: i64,
    /// Largest share of all rows that the first stage may hand on.
    pub(super) max_escalation: f64,
}

/// A threshold of a triple's first stage.
#[derive(Clone, Copy)]
struct Boundary {
    /// Number of rows that are accepted, and weight of the others.
    accepted: usize,
    active: i64,
    /// What all lose where the third stage answers all the others.
    lost: i64,
}

impl Candidates {
    /// The cheapest policy of three stages with plain margins that keeps a limit and costs less than
    /// what was found, without more total energy; the first of equals.
    pub(super) fn search_triples(
        &self,
        mask: &Mask,
        members: &[usize],
        limit: Limit,
        found: &Found,
    ) -> Option<Triplet> {
        let ranks = Ranks::new(self, mask, members);
        let search = self.triples(mask, limit, found);
        let mut pairs: Vec<[usize; 2]> = self.openings(members).collect();
        // Cheap first stages first: they lower the bar.
        pairs.sort_by(|&[a, b], &[c, d]| {
            let energy = |a: usize, b: usize| self.pair(a, b)[0].energy.chip_uj;
            energy(a, b).total_cmp(&energy(c, d)).then([a, b].cmp(&[c, d]))
        });
        let triplets: Vec<Triplet> = pairs
            .par_iter()
            .map_init(
                || Tree::new(mask.count),
                |tree, &[a, b]| {
                    let mut best: Option<Triplet> = None;
                    for &c in members {
                        if self.all[c].base != self.all[a].base && self.follows(b, c) {
                            let gates = [ranks.of(a), ranks.of(b)];
                            search.whole([a, b, c], gates, tree, &mut best);
                        }
                    }
                    best
                },
            )
            .flatten()
            .collect();
        triplets.into_iter().min_by(|a, b| a.energy.total_cmp(&b.energy))
    }

    /// A search for policies of more stages that are cheaper than what was found, without more total
    /// energy.
    pub(super) fn triples<'a>(
        &'a self,
        mask: &'a Mask,
        limit: Limit,
        found: &Found,
    ) -> Triples<'a> {
        let rows: Vec<usize> = mask.rows().collect();
        let lost = |&row: &usize| self.tally(mask, row, self.answer(&found.choice, row).0);
        let flips = rows.iter().map(|row| lost(row).flips).sum();
        let total = || self.outcome(&found.choice, &rows).energy.total_uj() * (1.0 + 1e-12);
        let most_total = if found.energy.is_finite() { total() } else { f64::INFINITY };
        Triples {
            candidates: self,
            mask,
            limit: Additive::new(limit, flips),
            most_total,
            bar: AtomicU64::new(found.energy.to_bits()),
        }
    }
}

/// A search over triples of stages.
pub(super) struct Triples<'a> {
    pub(super) candidates: &'a Candidates,
    pub(super) mask: &'a Mask,
    pub(super) limit: Additive,
    /// Largest mean total energy.
    pub(super) most_total: f64,
    /// The least chip energy so far. Threads tell each other; only what is dearer is left out, so the
    /// cheapest, and the first of equals, is found in any order.
    bar: AtomicU64,
}

impl Triples<'_> {
    /// The same search with a bar of its own.
    pub(super) fn below(&self, bar: f64) -> Self {
        let Self { candidates, mask, limit, most_total, .. } = *self;
        Self { candidates, mask, limit, most_total, bar: AtomicU64::new(bar.to_bits()) }
    }

    /// The best thresholds on given gates.
    pub(super) fn gated(&self, stages: [usize; 3], gates: [&Ranked; 2]) -> Option<Triplet> {
        let mut best = None;
        self.whole(stages, gates, &mut Tree::new(self.mask.count), &mut best);
        best
    }

    /// Searches a policy of these stages.
    fn whole(
        &self,
        stages: [usize; 3],
        gates: [&Ranked; 2],
        tree: &mut Tree,
        best: &mut Option<Triplet>,
    ) {
        // What the pairs cost is not less: the second stage may have to write for the third.
        if self.candidates.all[stages[0]].energy.chip_uj > self.bar() {
            return;
        }
        let prices = self.candidates.price(&stages);
        if let [a, b, c] = prices[..]
            && self.candidates.affordable(&prices)
        {
            let triple = Triple {
                stages,
                gates,
                prices: [a, b, c].map(|price| price.energy),
                rows: &gates[0].order,
                weight: self.mask.total(),
                before: Energy::default(),
                lost: 0,
                max_escalation: self.candidates.rules.max_escalation,
            };
            self.search(&triple, tree, best);
        }
    }

    fn bar(&self) -> f64 {
        f64::from_bits(self.bar.load(Ordering::Relaxed))
    }

    /// What a row loses where a candidate answers it.
    pub(super) fn loss(&self, row: u32, index: usize) -> i64 {
        let row = row as usize;
        let right = self.candidates.all[index].correct[row];
        self.limit.loss(self.candidates.tally(self.mask, row, right))
    }

    /// The cheapest thresholds of a triple, each of which parts its rows.
    pub(super) fn search(&self, triple: &Triple<'_>, tree: &mut Tree, best: &mut Option<Triplet>) {
        let [first, second] = triple.gates;
        // A stage that accepts nothing is only a cost, unless the next one sums its scores.
        let summed = [1, 2].map(|stage| self.candidates.all[triple.stages[stage]].sum.is_some());
        self.walk(triple, self.bar(), tree, |tree, Boundary { accepted, active, lost }| {
            if accepted == 0 && !summed[0] {
                return;
            }
            let base = self.energy(triple, [active, 0]);
            let room = self.limit.most - lost;
            let longest = tree.longest(room).map(|(last, sure)| (Some(last), sure));
            if base.chip_uj <= self.bar()
                && self.mask.share(active) <= triple.max_escalation
                && let Some((last, sure)) =
                    longest.or((room >= 0 && summed[1]).then_some((None, 0)))
                && sure != active
            {
                let energy = self.energy(triple, [active, active - sure]);
                let chip = energy.chip_uj;
                if chip <= self.bar()
                    && energy.total_uj() <= self.most_total
                    && best.is_none_or(|best| chip < best.energy)
                {
                    self.bar.fetch_min(chip.to_bits(), Ordering::Relaxed);
                    let accept_at = [first.accepting(accepted, triple.rows), second.down_to(last)];
                    *best = Some(Triplet { energy: chip, stages: triple.stages, accept_at });
                }
            }
        });
    }

    /// No thresholds of a triple, though they may accept nothing or all, need less chip energy than this
    /// and keep the limit; infinite where that would not be less than `highest`.
    pub(super) fn least(&self, triple: &Triple<'_>, highest: f64, tree: &mut Tree) -> f64 {
        let mut least = f64::INFINITY;
        let all: i64 = triple.rows.iter().map(|&row| self.loss(row, triple.stages[0])).sum();
        if triple.lost + all <= self.limit.most {
            least = self.energy(triple, [0, 0]).chip_uj;
        }
        self.walk(triple, highest, tree, |tree, Boundary { active, lost, .. }| {
            let room = self.limit.most - lost;
            let sure = tree.longest(room).map(|(_, sure)| sure);
            if let Some(sure) = sure.or((room >= 0).then_some(0)) {
                least = least.min(self.energy(triple, [active, active - sure]).chip_uj);
            }
        });
        if least < highest { least } else { f64::INFINITY }
    }

    /// Mean energy of a sample, where rows of so much weight get to the second and to the third stage.
    fn energy(&self, triple: &Triple<'_>, later: [i64; 2]) -> Energy {
        let reaching = [triple.weight, later[0], later[1]].map(|weight| self.mask.share(weight));
        let stages = triple.prices.iter().zip(reaching);
        stages.fold(triple.before, |sum, (price, share)| sum.plus(price.times(share)))
    }

    /// Visits the boundaries of the first gate, from the one that accepts nothing on, that could need
    /// less than `highest`, with a tree of the rows that are handed on: by the second gate, of the loss at
    /// the second stage less that at the third.
    fn walk(
        &self,
        triple: &Triple<'_>,
        highest: f64,
        tree: &mut Tree,
        mut visit: impl FnMut(&Tree, Boundary),
    ) {
        let &Triple { stages, rows, gates: [first, second], .. } = triple;
        let loss = |row: u32, stage: usize| self.loss(row, stages[stage]);
        let gain = |row: u32| loss(row, 1) - loss(row, 2);
        // `accepted` rows go to the first stage. Of the others at best all are answered by the better of
        // the second and the third.
        let hopeful = |row: u32| loss(row, 1).min(loss(row, 2));
        let mut least = triple.lost + rows.iter().map(|&row| hopeful(row)).sum::<i64>();
        // The span of boundaries that could improve on anything.
        let (mut begin, mut end) = (usize::MAX, 0);
        let weight = |row: u32| self.mask.weights[row as usize];
        let mut active = triple.weight;
        let mut first_active = active;
        for (accepted, &row) in rows.iter().enumerate() {
            let base = || self.energy(triple, [active, 0]).chip_uj;
            if least <= self.limit.most && base() <= highest {
                if begin == usize::MAX {
                    (begin, first_active) = (accepted, active);
                }
                end = accepted;
            }
            active -= weight(row);
            least += loss(row, 0) - hopeful(row);
        }
        if begin == usize::MAX {
            return;
        }

        // With all rows after the first `begin` in the tree: the loss if the third stage answers them.
        tree.clear();
        let (before, after) = rows.split_at(begin);
        for &row in after {
            tree.put(second.group[row as usize] as usize, gain(row), weight(row));
        }
        tree.build();
        let mut lost = triple.lost + before.iter().map(|&row| loss(row, 0)).sum::<i64>();
        lost += after.iter().map(|&row| loss(row, 2)).sum::<i64>();
        let mut active = first_active;
        for accepted in begin..=end {
            let row = rows[accepted];
            // Only between distinct values.
            let parts = accepted
                .checked_sub(1)
                .is_none_or(|i| first.group[rows[i] as usize] != first.group[row as usize]);
            if parts {
                visit(tree, Boundary { accepted, active, lost });
            }
            tree.remove(second.group[row as usize] as usize, gain(row), weight(row));
            active -= weight(row);
            lost += loss(row, 0) - loss(row, 2);
        }
    }
}
