//! Four stages, by branch and bound.
//!
//! A span is a chain of stages and a range of thresholds of its first one. No policy in it costs less than
//! this: rows above the range are accepted, rows below it run the other three stages, whose thresholds are
//! found exactly (`tree`), and rows inside it cost nothing more and get the best answer that any stage has.
//! Spans are opened from the most promising on, and halved at a threshold that is searched exactly, until
//! none promises to save [`TOLERANCE`], or [`SPANS`] were opened. Either way it is known how much less any
//! policy could need.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::choose::Found;
use super::ranked::Ranks;
use super::sweep::between;
use super::tree::{Tree, Triple, Triples, Triplet};
use super::{Candidates, Limit, Mask};
use crate::energy::Energy;

/// A fourth stage that saves a smaller share of energy is not looked for.
const TOLERANCE: f64 = 0.005;
/// Spans that are opened at most.
const SPANS: usize = 4000;
/// What is opened at once, whatever the number of threads.
const BATCH: usize = 32;

/// What a search for policies of four stages gives.
#[derive(Clone, Debug)]
pub(super) struct Quadruples {
    /// The cheapest that was found, if it is cheaper than what was there.
    pub(super) best: Option<Quadruple>,
    /// None needs less chip energy than this.
    pub(super) floor: f64,
}

/// A policy of four stages: its thresholds and its mean chip energy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quadruple {
    pub(super) energy: f64,
    pub(super) stages: [usize; 4],
    pub(super) accept_at: [i32; 3],
}

/// Stages that no gate, however good, could run for less.
#[derive(Clone, Copy)]
struct Chain {
    floor: f64,
    stages: [usize; 4],
}

/// A range of thresholds of a chain's first stage.
#[derive(Clone, Copy)]
struct Span {
    floor: f64,
    stages: [usize; 4],
    prices: [Energy; 4],
    /// The first and the last threshold, as indices of the first stage's boundaries.
    range: [usize; 2],
}

impl Ord for Span {
    /// The lowest floor is the greatest; equal ones by what they are.
    fn cmp(&self, other: &Self) -> Ordering {
        let order = other.floor.total_cmp(&self.floor);
        order.then_with(|| (other.stages, other.range).cmp(&(self.stages, self.range)))
    }
}

impl PartialOrd for Span {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Span {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Span {}

/// Which of the mask's rows are answered rightly, a bit each: 64 rows of equal weight to a word.
type Right = Vec<u64>;

struct Search<'a> {
    triples: Triples<'a>,
    ranks: Ranks,
    right: Vec<Right>,
    reference: Right,
    /// What a row of each word weighs.
    weights: Vec<i64>,
}

impl Candidates {
    /// The cheapest policy of four stages with plain margins that keeps a limit, to within what is
    /// promised, and costs less than what was found, without more total energy.
    pub(super) fn search_quadruples(
        &self,
        mask: &Mask,
        members: &[usize],
        limit: Limit,
        found: &Found,
    ) -> Quadruples {
        let mut rows: Vec<usize> = mask.rows().collect();
        rows.sort_by_key(|&row| mask.weights[row]);
        let alike = rows.chunk_by(|&a, &b| mask.weights[a] == mask.weights[b]);
        let words: Vec<&[usize]> = alike.flat_map(|rows| rows.chunks(64)).collect();
        let pack = |column: &[bool]| -> Right {
            let word = |rows: &&[usize]| {
                rows.iter().rev().fold(0, |bits, &row| bits << 1 | u64::from(column[row]))
            };
            words.iter().map(word).collect()
        };
        let search = Search {
            triples: self.triples(mask, limit, found),
            ranks: Ranks::new(self, mask, members),
            right: self.all.iter().map(|candidate| pack(&candidate.correct)).collect(),
            reference: pack(&self.reference),
            weights: words.iter().map(|rows| mask.weights[rows[0]]).collect(),
        };
        let target = |bar: f64| bar * (1.0 - TOLERANCE);
        let mut bar = found.energy;
        let mut best = None;
        // From the back the cheapest first.
        let mut chains = search.chains(members, target(bar));
        let mut spans: BinaryHeap<Span> = BinaryHeap::new();
        let mut opened = 0;
        while opened < SPANS {
            let mut batch = Vec::with_capacity(BATCH);
            let mut begun = Vec::with_capacity(BATCH);
            while batch.len() + begun.len() < BATCH {
                let chain = chains.last().map_or(f64::INFINITY, |chain| chain.floor);
                let span = spans.peek().map_or(f64::INFINITY, |span| span.floor);
                if chain.min(span) >= target(bar) {
                    break;
                }
                if span <= chain { batch.extend(spans.pop()) } else { begun.extend(chains.pop()) }
            }
            if batch.is_empty() && begun.is_empty() {
                break;
            }
            opened += batch.len();
            spans.par_extend(begun.par_iter().filter_map(|chain| search.begin(chain, target(bar))));
            let halves: Vec<_> = batch
                .par_iter()
                .map_init(|| Tree::new(mask.count), |tree, span| search.halve(span, bar, tree))
                .collect();
            for (quadruple, rest) in halves {
                if let Some(quadruple) = quadruple.filter(|quadruple| quadruple.energy < bar) {
                    bar = quadruple.energy;
                    best = Some(quadruple);
                }
                spans.extend(rest.into_iter().flatten());
            }
        }
        let open = [spans.peek().map(|span| span.floor), chains.last().map(|chain| chain.floor)];
        let floor = open.into_iter().flatten().fold(target(bar), f64::min);
        Quadruples { best, floor }
    }
}

impl Search<'_> {
    /// All chains that could need less than `target`, the cheapest last.
    fn chains(&self, members: &[usize], target: f64) -> Vec<Chain> {
        let candidates = self.triples.candidates;
        let openings: Vec<[usize; 2]> = candidates.openings(members).collect();
        let bases: Vec<usize> =
            (0..candidates.all.len()).filter(|&i| candidates.all[i].base == i).collect();
        let floor = |&low: &usize| -> Vec<[f64; 2]> {
            bases.iter().map(|&high| candidates.pair_floor([low, high])).collect()
        };
        let floors: Vec<Vec<[f64; 2]>> = bases.par_iter().map(floor).collect();
        let floor =
            |low: usize, high: usize| floors[candidates.all[low].base][candidates.all[high].base];
        let of_opening = |&[a, b]: &[usize; 2]| -> Vec<Chain> {
            let mut found = Vec::new();
            let base = |index: usize| candidates.all[index].base;
            let [first, second] = floor(a, b);
            for &c in members {
                if base(c) == base(a) || !candidates.follows(b, c) {
                    continue;
                }
                let third = floor(b, c)[1];
                for &d in members {
                    let again = [a, b].iter().any(|&stage| base(stage) == base(d));
                    if again || !candidates.follows(c, d) {
                        continue;
                    }
                    let stages = [a, b, c, d];
                    if let Some(least) = self.least_shares(&stages) {
                        let later = [second, third, floor(c, d)[1]];
                        let later = later.iter().zip(least).map(|(price, share)| price * share);
                        let floor = first + later.sum::<f64>();
                        if floor < target {
                            found.push(Chain { floor, stages });
                        }
                    }
                }
            }
            found
        };
        let mut chains: Vec<Chain> = openings.par_iter().flat_map_iter(of_opening).collect();
        chains.par_sort_unstable_by(|x, y| {
            y.floor.total_cmp(&x.floor).then_with(|| y.stages.cmp(&x.stages))
        });
        chains
    }

    /// The least shares of all weight that must get to the second, third and fourth stage, with the best
    /// gates that there could be; `None` where even all stages together lose too much.
    fn least_shares(&self, stages: &[usize; 4]) -> Option<[f64; 3]> {
        let right = stages.map(|stage| &self.right[stage]);
        let limit = self.triples.limit;
        // What wrong answers cost where the reference is right, and right ones gain where it is not, a unit.
        let [harm, help] = [limit.harm(), limit.help()];
        // For each number of stages: harmful and helpful flips of the best answers, and what a later stage
        // mends of the others, in units of weight.
        let mut counts = [[0_i64; 4]; 3];
        for (word, &reference) in self.reference.iter().enumerate() {
            let all = right.iter().fold(0, |bits, right| bits | right[word]);
            let mut known = 0;
            for (right, count) in right.iter().zip(&mut counts) {
                known |= right[word];
                let sets = [
                    reference & !known,
                    !reference & known,
                    reference & !known & all,
                    !reference & !known & all,
                ];
                for (count, set) in count.iter_mut().zip(sets) {
                    *count += self.weights[word] * i64::from(set.count_ones());
                }
            }
        }
        let mut shares = [0.0; 3];
        let mut most = 0;
        // The last first: what gets to a stage got to those before.
        for (share, [harmful, helpful, mended, gained]) in shares.iter_mut().zip(counts).rev() {
            let excess = harmful * harm - helpful * help - limit.most;
            let mut weight = 0;
            if excess > 0 {
                weight = mended.min((excess + harm - 1) / harm);
                let rest = excess - weight * harm;
                if rest > 0 {
                    if gained * help < rest {
                        return None;
                    }
                    weight += (rest + help - 1) / help;
                }
            }
            most = most.max(weight);
            *share = self.triples.mask.share(most);
        }
        Some(shares)
    }

    /// How many rows the thresholds of a stage accept: neither none nor all.
    fn boundaries(&self, stage: usize) -> Vec<usize> {
        let ranked = self.ranks.of(stage);
        let pairs = ranked.order.windows(2).enumerate();
        let parted = |(_, pair): &(usize, &[u32])| {
            ranked.group[pair[0] as usize] != ranked.group[pair[1] as usize]
        };
        pairs.filter(parted).map(|(i, _)| i + 1).collect()
    }

    /// The thresholds of a chain that could need less than `target`.
    fn begin(&self, chain: &Chain, target: f64) -> Option<Span> {
        let Chain { floor, stages } = *chain;
        let candidates = self.triples.candidates;
        let prices = candidates.price(&stages);
        if !candidates.affordable(&prices) {
            return None;
        }
        let prices = [0, 1, 2, 3].map(|stage| prices[stage].energy);
        let shares = self.least_shares(&stages)?;
        let order = &self.ranks.of(stages[0]).order;
        let loss = |row: u32, stage: usize| self.triples.loss(row, stages[stage]);
        let best = |row: u32| loss(row, 1).min(loss(row, 2)).min(loss(row, 3));
        let mut lost: i64 = order.iter().map(|&row| best(row)).sum();
        let later = shares[1] * prices[2].chip_uj + shares[2] * prices[3].chip_uj;
        let mut range: Option<[usize; 2]> = None;
        let mut least = f64::INFINITY;
        let weight = |&row: &u32| self.triples.mask.weights[row as usize];
        let mut handed_on = self.triples.mask.total();
        let mut accepted = 0;
        for (index, boundary) in self.boundaries(stages[0]).into_iter().enumerate() {
            let newly = &order[accepted..boundary];
            lost += newly.iter().map(|&r| loss(r, 0) - best(r)).sum::<i64>();
            handed_on -= newly.iter().map(weight).sum::<i64>();
            accepted = boundary;
            let share = self.triples.mask.share(handed_on);
            let energy = prices[0].chip_uj + share * prices[1].chip_uj + later;
            if lost <= self.triples.limit.most
                && energy < target
                && share <= candidates.rules.max_escalation
            {
                range = Some([range.map_or(index, |[first, _]| first), index]);
                least = least.min(energy);
            }
        }
        Some(Span { floor: floor.max(least), stages, prices, range: range? })
    }

    /// The best policy at the threshold in the middle, and what is left on both sides.
    fn halve(
        &self,
        span: &Span,
        bar: f64,
        tree: &mut Tree,
    ) -> (Option<Quadruple>, [Option<Span>; 2]) {
        let boundaries = self.boundaries(span.stages[0]);
        let [first, last] = span.range;
        let middle = first.midpoint(last);
        let at = boundaries[middle];
        let mut found: Option<Triplet> = None;
        self.after(span, [at, at], |triple| {
            self.triples.below(bar).search(triple, tree, &mut found);
        });
        let ranked = self.ranks.of(span.stages[0]);
        let [above, below] = [at - 1, at].map(|i| ranked.value(ranked.order[i]));
        let quadruple = found.map(|Triplet { energy, accept_at: [second, third], .. }| Quadruple {
            energy,
            stages: span.stages,
            accept_at: [between(below, above), second, third],
        });
        let bar = quadruple.map_or(bar, |quadruple| quadruple.energy.min(bar));
        let target = bar * (1.0 - TOLERANCE);
        let halves = [(first, middle.checked_sub(1)), (middle + 1, Some(last))];
        let rest = halves.map(|(first, last)| {
            let last = last.filter(|&last| first <= last)?;
            let mut least = 0.0;
            self.after(span, [boundaries[first], boundaries[last]], |triple| {
                least = self.triples.least(triple, target, tree);
            });
            let floor = span.floor.max(least);
            (floor < target).then_some(Span { floor, range: [first, last], ..*span })
        });
        (quadruple, rest)
    }

    /// The last three stages of a span, where between `from` and `to` rows are accepted before: the rows
    /// between run none of them and get the best answer.
    fn after(&self, span: &Span, [from, to]: [usize; 2], visit: impl FnOnce(&Triple<'_>)) {
        let [a, b, c, d] = span.stages;
        let order = &self.ranks.of(a).order;
        let loss = |row: u32, stage: usize| self.triples.loss(row, stage);
        let best = |row: u32| [a, b, c, d].map(|stage| loss(row, stage)).into_iter().min();
        let lost = order[..from].iter().map(|&row| loss(row, a)).sum::<i64>()
            + order[from..to].iter().filter_map(|&row| best(row)).sum::<i64>();
        let gates = [b, c].map(|stage| self.ranks.of(stage));
        let mut active = vec![false; gates[0].group.len()];
        for &row in &order[to..] {
            active[row as usize] = true;
        }
        let rows = gates[0].order.iter().copied();
        let rows: Vec<u32> = rows.filter(|&row| active[row as usize]).collect();
        let [before, prices @ ..] = span.prices;
        let stages = [b, c, d];
        let weight = rows.iter().map(|&row| self.triples.mask.weights[row as usize]).sum();
        let max_escalation = 1.0;
        visit(&Triple { stages, gates, prices, rows: &rows, weight, before, lost, max_escalation });
    }
}
