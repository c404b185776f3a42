//! Three stages: for each threshold of the first stage, a tree over the second stage's margins finds
//! the second threshold that accepts most. O(n log n) for a triple of points.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::choose::Found;
use super::sweep::between;
use super::{Candidates, Choice, Gate, Mask};

/// Sums over a range of the second stage's distinct margins, from the highest down.
#[derive(Clone, Copy, Default)]
struct Node {
    /// Σ (third right - second right).
    sum: i32,
    /// The least sum of a prefix that is not empty.
    least: i32,
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
    fn put(&mut self, group: usize, gain: i32) {
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

    fn remove(&mut self, group: usize, gain: i32) {
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
        if i64::from(self.nodes[1].least) > limit {
            return None;
        }
        let (mut node, mut sum, mut count) = (1, 0_i64, 0);
        while node < self.leaves {
            let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
            if sum + i64::from(left.sum) + i64::from(right.least) <= limit {
                sum += i64::from(left.sum);
                count += left.count;
                node = 2 * node + 1;
            } else {
                node *= 2;
            }
        }
        Some((node - self.leaves, count + self.nodes[node].count))
    }
}

/// The mask's rows as one candidate sees them.
struct Ranked {
    /// Rows of the mask by falling margin.
    order: Vec<u32>,
    /// Place of each row's margin among the distinct ones, from the highest.
    group: Vec<u32>,
    /// The distinct margins, falling.
    margins: Vec<i32>,
}

impl Candidates {
    /// Offers, for each limit on the sum of drops, the cheapest policy of three stages where it is
    /// cheaper than what is there.
    pub(super) fn search_triples(
        &self,
        mask: &Mask,
        members: &[usize],
        limits: &[i64],
        best: &mut [Found],
    ) {
        let ranked: Vec<Option<Ranked>> = (0..self.all.len())
            .into_par_iter()
            .map(|index| members.contains(&index).then(|| self.rank(mask, index)))
            .collect();
        let ranked = |index: usize| ranked[index].as_ref().expect("members are ranked");
        // Threads tell each other what is too dear. Only what is dearer is left out, so the cheapest,
        // and the first of equals, is found in any order.
        let bars: Vec<AtomicU64> =
            best.iter().map(|found| AtomicU64::new(found.energy.to_bits())).collect();
        // Scores are summed in policies of two stages only.
        let members: Vec<usize> =
            members.iter().copied().filter(|&index| self.all[index].sum.is_none()).collect();
        let members = &members;
        let mut pairs: Vec<[usize; 2]> = members
            .iter()
            .flat_map(|&a| members.iter().map(move |&b| [a, b]))
            .filter(|&[a, b]| self.follows(a, b))
            .collect();
        // Cheap first stages first: they lower the bars.
        pairs.sort_by(|&[a, b], &[c, d]| {
            let energy = |a: usize, b: usize| self.pairs[a][b][0].chip_uj;
            energy(a, b).total_cmp(&energy(c, d)).then([a, b].cmp(&[c, d]))
        });
        let offers: Vec<Vec<(f64, Choice)>> = pairs
            .par_iter()
            .map_init(
                || Tree::new(mask.count),
                |tree, &[a, b]| {
                    let infinite = (f64::INFINITY, Choice::fixed(a));
                    let mut offers = vec![infinite; limits.len()];
                    for &c in members.iter().filter(|&&c| c != a && self.follows(b, c)) {
                        let triple = Triple { candidates: self, mask, stages: [a, b, c] };
                        triple.search(ranked(a), ranked(b), limits, &bars, tree, &mut offers);
                    }
                    offers
                },
            )
            .collect();
        for offers in offers {
            for (best, (energy, choice)) in best.iter_mut().zip(offers) {
                best.offer(energy, || choice);
            }
        }
    }

    fn rank(&self, mask: &Mask, index: usize) -> Ranked {
        let column = &self.all[index].margins;
        let order: Vec<u32> =
            column.order.iter().copied().filter(|&row| mask.inside[row as usize]).collect();
        let mut margins: Vec<i32> = Vec::new();
        let mut group = vec![0; column.values.len()];
        for &row in &order {
            let margin = column.values[row as usize];
            if margins.last() != Some(&margin) {
                margins.push(margin);
            }
            group[row as usize] = margins.len() as u32 - 1;
        }
        Ranked { order, group, margins }
    }
}

struct Triple<'a> {
    candidates: &'a Candidates,
    mask: &'a Mask,
    stages: [usize; 3],
}

impl Triple<'_> {
    fn search(
        &self,
        first: &Ranked,
        second: &Ranked,
        limits: &[i64],
        bars: &[AtomicU64],
        tree: &mut Tree,
        offers: &mut [(f64, Choice)],
    ) {
        let candidates = self.candidates;
        let n = self.mask.count;
        let bar = |index: usize| f64::from_bits(bars[index].load(Ordering::Relaxed));
        let highest = (0..bars.len()).map(bar).fold(f64::NEG_INFINITY, f64::max);
        // What the pairs cost is not less: the second stage may have to write for the third.
        let cheapest = candidates.all[self.stages[0]].energy.chip_uj;
        if cheapest > highest {
            return;
        }
        let price: Vec<f64> = candidates.price(&self.stages).iter().map(|e| e.chip_uj).collect();
        let share = |rows: usize| rows as f64 / n as f64;
        let [a, b, c] = self.stages.map(|index| &candidates.all[index].correct);
        let loosest = limits.iter().copied().max().unwrap_or(0);
        let gain = |row: usize| i32::from(c[row]) - i32::from(b[row]);
        let drop = |row: usize, answer: &[bool]| {
            i64::from(candidates.reference[row]) - i64::from(answer[row])
        };

        // `accepted` rows go to the first stage. Of the others at best all are answered rightly that
        // the second or the third answers rightly.
        let hopeful =
            |row: usize| i64::from(candidates.reference[row]) - i64::from(b[row] || c[row]);
        let mut least: i64 = first.order.iter().map(|&row| hopeful(row as usize)).sum();
        // The span of boundaries that could improve on anything.
        let (mut begin, mut end) = (usize::MAX, 0);
        for (accepted, &row) in first.order.iter().enumerate() {
            if least <= loosest && price[0] + share(n - accepted) * price[1] <= highest {
                begin = begin.min(accepted);
                end = accepted;
            }
            least += drop(row as usize, a) - hopeful(row as usize);
        }
        if begin == usize::MAX {
            return;
        }

        // With all rows after the first `begin` in the tree: Σ drops if the third stage answers them.
        tree.clear();
        let (before, after) = first.order.split_at(begin);
        for &row in after {
            tree.put(second.group[row as usize] as usize, gain(row as usize));
        }
        tree.build();
        let mut sum: i64 = before.iter().map(|&row| drop(row as usize, a)).sum();
        sum += after.iter().map(|&row| drop(row as usize, c)).sum::<i64>();
        let margins = &candidates.all[self.stages[0]].margins.values;
        for accepted in begin..=end {
            let row = first.order[accepted] as usize;
            let above = accepted.checked_sub(1).map(|i| margins[first.order[i] as usize]);
            // A first stage that accepts nothing is only a cost.
            let active = n - accepted;
            let worst = price.iter().sum();
            let above = above.filter(|&above| above > margins[row]);
            if let Some(above) = above.filter(|_| candidates.allows(share(active), worst)) {
                let base = price[0] + share(active) * price[1];
                for (index, &limit) in limits.iter().enumerate() {
                    if base > bar(index) {
                        continue;
                    }
                    let Some((last, sure)) = tree.longest(limit - sum) else { continue };
                    let energy = base + share(active - sure as usize) * price[2];
                    if energy > bar(index) || energy >= offers[index].0 || sure as usize == active {
                        continue;
                    }
                    let Some(&below) = second.margins.get(last + 1) else { continue };
                    bars[index].fetch_min(energy.to_bits(), Ordering::Relaxed);
                    offers[index] = (
                        energy,
                        Choice {
                            stages: self.stages.to_vec(),
                            gates: vec![
                                Gate::margin(between(margins[row], above)),
                                Gate::margin(between(below, second.margins[last])),
                            ],
                        },
                    );
                }
            }
            tree.remove(second.group[row] as usize, gain(row));
            sum += drop(row, a) - drop(row, c);
        }
    }
}
