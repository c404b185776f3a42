//! Three stages: for each threshold of the first stage, a tree over the second stage's values finds
//! the second threshold that accepts most. O(n log n) for a triple of points.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::choose::Found;
use super::sweep::between;
use super::{Candidates, Column, Limit, Mask, Tally};

/// A limit as a sum over samples, in whole units: each loses `unit` · drop + `flip` · flips, all
/// together at most `most`.
#[derive(Clone, Copy)]
struct Additive {
    unit: i64,
    flip: i64,
    most: i64,
}

impl Additive {
    /// Units of a drop where flips count too.
    const FINE: f64 = 1024.0;

    /// What keeps this keeps the limit, since √f ≤ (f + g) / 2√g; where there are `around` flips they
    /// are the same. Without standard errors they always are.
    fn new(limit: Limit, around: i64) -> Self {
        if limit.errors == 0.0 {
            return Self { unit: 1, flip: 0, most: limit.most.floor() as i64 };
        }
        let root = (around.max(1) as f64).sqrt();
        Self {
            unit: Self::FINE as i64,
            flip: (Self::FINE * limit.errors / (2.0 * root)).ceil() as i64,
            most: (Self::FINE * (limit.most - 0.5 * limit.errors * root)).floor() as i64,
        }
    }

    fn loss(self, Tally { drop, flips }: Tally) -> i64 {
        self.unit * drop + self.flip * flips
    }
}

/// Sums over a range of the second stage's distinct values, from the highest down.
#[derive(Clone, Copy, Default)]
struct Node {
    /// Σ (loss at the second stage - loss at the third).
    sum: i64,
    /// The least sum of a prefix that is not empty.
    least: i64,
    /// Samples.
    count: u32,
}

impl Node {
    fn join(left: Self, right: Self) -> Self {
        Self {
            sum: left.sum + right.sum,
            least: left.least.min(left.sum + right.least),
            count: left.count + right.count,
        }
    }
}

/// A binary tree; node i has children 2i and 2i + 1, leaves begin at `leaves`.
struct Tree {
    nodes: Vec<Node>,
    leaves: usize,
}

impl Tree {
    fn new(groups: usize) -> Self {
        let leaves = groups.next_power_of_two();
        Self { nodes: vec![Node::default(); 2 * leaves], leaves }
    }

    /// Takes a sample into a leaf, without the sums above.
    fn put(&mut self, group: usize, gain: i64) {
        let leaf = &mut self.nodes[self.leaves + group];
        leaf.sum += gain;
        leaf.least = leaf.sum;
        leaf.count += 1;
    }

    /// Sums up all leaves.
    fn build(&mut self) {
        for node in (1..self.leaves).rev() {
            self.nodes[node] = Node::join(self.nodes[2 * node], self.nodes[2 * node + 1]);
        }
    }

    fn clear(&mut self) {
        self.nodes.fill(Node::default());
    }

    fn remove(&mut self, group: usize, gain: i64) {
        let mut node = self.leaves + group;
        let leaf = &mut self.nodes[node];
        leaf.sum -= gain;
        leaf.least = leaf.sum;
        leaf.count -= 1;
        while node > 1 {
            node /= 2;
            self.nodes[node] = Node::join(self.nodes[2 * node], self.nodes[2 * node + 1]);
        }
    }

    /// The longest prefix whose sum is at most `limit`: its last leaf, and how many samples it has.
    fn longest(&self, limit: i64) -> Option<(usize, u32)> {
        if self.nodes[1].least > limit {
            return None;
        }
        let (mut node, mut sum, mut count) = (1, 0, 0);
        while node < self.leaves {
            let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
            if sum + left.sum + right.least <= limit {
                sum += left.sum;
                count += left.count;
                node = 2 * node + 1;
            } else {
                node *= 2;
            }
        }
        Some((node - self.leaves, count + self.nodes[node].count))
    }
}

/// The mask's rows in the order of a gate.
pub(super) struct Ranked {
    /// Rows of the mask by falling value.
    order: Vec<u32>,
    /// Place of each row's value among the distinct ones, from the highest.
    group: Vec<u32>,
    /// The distinct values, falling.
    values: Vec<i32>,
}

impl Ranked {
    pub(super) fn new(mask: &Mask, column: &Column) -> Self {
        let order: Vec<u32> =
            column.order.iter().copied().filter(|&row| mask.inside[row as usize]).collect();
        let mut values: Vec<i32> = Vec::new();
        let mut group = vec![0; column.values.len()];
        for &row in &order {
            let value = column.values[row as usize];
            if values.last() != Some(&value) {
                values.push(value);
            }
            group[row as usize] = values.len() as u32 - 1;
        }
        Self { order, group, values }
    }

    fn value(&self, row: u32) -> i32 {
        self.values[self.group[row as usize] as usize]
    }
}

/// A policy of three stages: its thresholds and its mean chip energy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Triplet {
    pub(super) energy: f64,
    pub(super) stages: [usize; 3],
    pub(super) accept_at: [i32; 2],
}

impl Candidates {
    /// The cheapest policy of three stages with plain margins that keeps a limit and costs less than
    /// what was found, the first of equals.
    pub(super) fn search_triples(
        &self,
        mask: &Mask,
        members: &[usize],
        limit: Limit,
        found: &Found,
    ) -> Option<Triplet> {
        let ranked: Vec<Option<Ranked>> = (0..self.all.len())
            .into_par_iter()
            .map(|index| {
                members.contains(&index).then(|| Ranked::new(mask, &self.all[index].margins))
            })
            .collect();
        let ranked = |index: usize| ranked[index].as_ref().expect("members are ranked");
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
                            search.search([a, b, c], [ranked(a), ranked(b)], tree, &mut best);
                        }
                    }
                    best
                },
            )
            .flatten()
            .collect();
        triplets.into_iter().min_by(|a, b| a.energy.total_cmp(&b.energy))
    }

    /// A search for policies of three stages that are cheaper than what was found.
    pub(super) fn triples<'a>(
        &'a self,
        mask: &'a Mask,
        limit: Limit,
        found: &Found,
    ) -> Triples<'a> {
        let rows: Vec<usize> = (0..mask.inside.len()).filter(|&row| mask.inside[row]).collect();
        let flips = self.flips(&found.choice, &rows);
        Triples {
            candidates: self,
            mask,
            limit: Additive::new(limit, (flips.harmful + flips.helpful) as i64),
            bar: AtomicU64::new(found.energy.to_bits()),
        }
    }
}

/// A search over triples of stages.
pub(super) struct Triples<'a> {
    candidates: &'a Candidates,
    mask: &'a Mask,
    limit: Additive,
    /// The least chip energy so far. Threads tell each other; only what is dearer is left out, so the
    /// cheapest, and the first of equals, is found in any order.
    bar: AtomicU64,
}

impl Triples<'_> {
    /// The best thresholds on given gates.
    pub(super) fn gated(&self, stages: [usize; 3], gates: [&Ranked; 2]) -> Option<Triplet> {
        let mut best = None;
        self.search(stages, gates, &mut Tree::new(self.mask.count), &mut best);
        best
    }

    fn search(
        &self,
        stages: [usize; 3],
        [first, second]: [&Ranked; 2],
        tree: &mut Tree,
        best: &mut Option<Triplet>,
    ) {
        let candidates = self.candidates;
        let n = self.mask.count;
        let bar = || f64::from_bits(self.bar.load(Ordering::Relaxed));
        let highest = bar();
        // What the pairs cost is not less: the second stage may have to write for the third.
        let cheapest = candidates.all[stages[0]].energy.chip_uj;
        if cheapest > highest {
            return;
        }
        let prices = candidates.price(&stages);
        if !candidates.affordable(&prices) {
            return;
        }
        let price: Vec<f64> = prices.iter().map(|price| price.energy.chip_uj).collect();
        let share = |rows: usize| rows as f64 / n as f64;
        let answers = stages.map(|index| &candidates.all[index].correct);
        let loss = |row: u32, stage: usize| {
            let row = row as usize;
            self.limit.loss(candidates.tally(row, answers[stage][row]))
        };
        let gain = |row: u32| loss(row, 1) - loss(row, 2);

        // `accepted` rows go to the first stage. Of the others at best all are answered by the better of
        // the second and the third.
        let hopeful = |row: u32| loss(row, 1).min(loss(row, 2));
        let mut least: i64 = first.order.iter().map(|&row| hopeful(row)).sum();
        // The span of boundaries that could improve on anything.
        let (mut begin, mut end) = (usize::MAX, 0);
        for (accepted, &row) in first.order.iter().enumerate() {
            if least <= self.limit.most && price[0] + share(n - accepted) * price[1] <= highest {
                begin = begin.min(accepted);
                end = accepted;
            }
            least += loss(row, 0) - hopeful(row);
        }
        if begin == usize::MAX {
            return;
        }

        // With all rows after the first `begin` in the tree: the loss if the third stage answers them.
        tree.clear();
        let (before, after) = first.order.split_at(begin);
        for &row in after {
            tree.put(second.group[row as usize] as usize, gain(row));
        }
        tree.build();
        let mut lost: i64 = before.iter().map(|&row| loss(row, 0)).sum();
        lost += after.iter().map(|&row| loss(row, 2)).sum::<i64>();
        for accepted in begin..=end {
            let row = first.order[accepted];
            let value = first.value(row);
            // A first stage that accepts nothing is only a cost.
            let above = accepted.checked_sub(1).map(|i| first.value(first.order[i]));
            let active = n - accepted;
            let base = price[0] + share(active) * price[1];
            if let Some(above) = above.filter(|&above| above > value)
                && base <= bar()
                && share(active) <= candidates.rules.max_escalation
                && let Some((last, sure)) = tree.longest(self.limit.most - lost)
                && sure as usize != active
                && let Some(&below) = second.values.get(last + 1)
            {
                let energy = base + share(active - sure as usize) * price[2];
                if energy <= bar() && best.is_none_or(|best| energy < best.energy) {
                    self.bar.fetch_min(energy.to_bits(), Ordering::Relaxed);
                    let accept_at = [between(value, above), between(below, second.values[last])];
                    *best = Some(Triplet { energy, stages, accept_at });
                }
            }
            tree.remove(second.group[row as usize] as usize, gain(row));
            lost += loss(row, 0) - loss(row, 2);
        }
    }
}
