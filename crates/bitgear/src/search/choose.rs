//! Choosing with a bound that chance has been taken off.

use super::bound::Caution;
use super::chain::Quadruples;
use super::learn::{Lesson, fit};
use super::ranked::Ranked;
use super::{Bound, Candidate, Candidates, Choice, Column, Gate, Limit, Mask, Pool, Tally, Target};
use crate::policy::Tables;
use crate::trace::{Random, deal};

/// What is taken off for chance: of 30 flips of policies 26.5, of single points 20.75 are believed to be harmful. The
/// cheapest of very many thresholds looks so much better than it is, and the cheapest of a few points half as much.
/// Chosen on random splits of a few runs (`docs/policy.md`).
const POLICIES: Caution = Caution::Prior { flips: 30.0, excess: 23.0 };
/// See [`POLICIES`].
const SINGLE_POINTS: Caution = Caution::Prior { flips: 30.0, excess: 11.5 };
/// What a [`Candidates::ladder`] is made for: parts of the target, and standard errors below it, for policies
/// and, times [`FIXED_ERRORS`], for single points.
const PARTS: [f64; 5] = [1.0, 0.8, 0.6, 0.4, 0.2];
const ERRORS: [f64; 12] = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0, 10.0];
/// See [`ERRORS`].
const FIXED_ERRORS: f64 = 0.8;
/// Folds in which gates are fitted and judged.
const FOLDS: usize = 5;
/// Pairs of stages for which gates are learned: so many of the cheapest.
const LEARNING: usize = 8;

/// The bound by which the choices of a pool are chosen for a target.
pub(super) fn careful(target: Target, pool: Pool) -> Bound {
    let caution = if pool.is_dynamic() { POLICIES } else { SINGLE_POINTS };
    Bound { drop: target.drop, caution }
}

impl Candidates {
    /// The cheapest choice of a pool whose expected drop, a fraction, keeps the target, judged on `rows` alone.
    /// Where nothing keeps it, the pool's widest point.
    pub fn choose(&self, rows: &[usize], target: Target, pool: Pool, seed: u64) -> Choice {
        let bounds = |pool| vec![careful(target, pool)];
        let found = self.candidates_for(rows, bounds, target.no_worse, pool, seed);
        let cheapest = found.into_iter().min_by(|a, b| a.energy.total_cmp(&b.energy));
        cheapest.expect("there is one for each bound").choice
    }

    /// The cheapest choice whose drop on `rows` is at most the bound; nothing is taken off for chance,
    /// and gates are plain margins. Exact up to three stages.
    pub fn choose_once(&self, rows: &[usize], bound: f64, pool: Pool) -> Choice {
        self.choose_with_floor(rows, bound, pool).0
    }

    /// The same, and a mean chip energy that no choice which keeps the bound goes below, in microjoule.
    /// Of at most three stages it is the choice's own.
    pub fn choose_with_floor(&self, rows: &[usize], bound: f64, pool: Pool) -> (Choice, f64) {
        let found = self.best(&self.mask(rows), &[Bound::plain(bound)], pool).swap_remove(0);
        (found.choice, found.floor)
    }

    /// Candidates for a proof: the cheapest choices for an expected drop of at most `drop`, a fraction, for parts
    /// of it, and with more caution; for policies single points too, chosen by their own rule. Widest first.
    pub fn ladder(&self, rows: &[usize], drop: f64, pool: Pool, seed: u64) -> Vec<Choice> {
        let mut ladder = vec![Choice::fixed(self.widest_of(pool))];
        let more_careful = |pool: Pool| {
            let scale = if pool.is_dynamic() { 1.0 } else { FIXED_ERRORS };
            let parts = PARTS.map(|part| careful((part * drop).into(), pool));
            let errors = ERRORS.map(|errors| Caution::Errors(scale * errors));
            parts.into_iter().chain(errors.map(|caution| Bound { drop, caution })).collect()
        };
        for found in self.candidates_for(rows, more_careful, false, pool, seed) {
            if !ladder.contains(&found.choice) {
                ladder.push(found.choice);
            }
        }
        ladder
    }

    /// The choice of a pool that loses least on `rows` at a mean chip energy of at most `chip_uj`, of
    /// one or two stages with plain margins; the cheapest where none is that cheap.
    pub fn choose_within(&self, rows: &[usize], chip_uj: f64, pool: Pool) -> Choice {
        let frontier = self.frontier(rows, pool);
        // By rising energy and falling drop.
        let within = frontier.iter().take_while(|tradeoff| tradeoff.chip_uj <= chip_uj).last();
        let tradeoff = within.or(frontier.first());
        tradeoff.map_or_else(|| Choice::fixed(self.widest_of(pool)), |t| t.choice.clone())
    }

    /// The cheapest choice for each bound; of policies, if they are to be `no_worse`, among those that are believed to
    /// lose no more than the single point for it, each counted beyond what it is charged where nothing flips. Single
    /// points first: of equals they are taken.
    fn candidates_for(
        &self,
        rows: &[usize],
        bounds: impl Fn(Pool) -> Vec<Bound>,
        no_worse: bool,
        pool: Pool,
        seed: u64,
    ) -> Vec<Found> {
        let mask = self.mask(rows);
        let fixed = pool.fixed();
        let for_fixed = bounds(fixed);
        let mut found = self.best(&mask, &for_fixed, fixed);
        if pool.is_dynamic() {
            let mut bounds = bounds(pool);
            if no_worse {
                let without_flips = |bound| mask.charge(bound, Tally::default());
                for ((bound, for_fixed), single) in bounds.iter_mut().zip(for_fixed).zip(&found) {
                    let lost = self.total(&mask, single.choice.last());
                    let more = mask.charge(for_fixed, lost) - without_flips(for_fixed);
                    bound.drop = bound.drop.min(without_flips(*bound) + more);
                }
            }
            let mut best = self.best(&mask, &bounds, pool);
            if self.rules.stages >= 2 && !self.rules.margin_only {
                self.learn(&mask, rows, &bounds, pool, seed, &mut best);
            }
            found.extend(best);
        }
        found
    }

    /// Offers policies with learned gates, whose energy and drop are those out of fold: of the most
    /// promising pairs, and of the stages of the best policy of three.
    fn learn(
        &self,
        mask: &Mask,
        rows: &[usize],
        bounds: &[Bound],
        pool: Pool,
        seed: u64,
        best: &mut [Found],
    ) {
        let limits = mask.limits(bounds);
        for (found, &limit) in best.iter_mut().zip(&limits) {
            let [a, b, c] = found.choice.stages[..] else { continue };
            let stages = [a, b, c];
            let margins = [a, b].map(|stage| Ranked::new(mask, &self.all[stage].margins));
            let learned = [(None, [a, b]), (Some(a), [b, c])]
                .map(|(before, pair)| self.learned(rows, before, pair, seed));
            let ranked = learned
                .each_ref()
                .map(|learned| learned.as_ref().map(|(_, column)| Ranked::new(mask, column)));
            for uses in [[true, false], [false, true], [true, true]] {
                let gates = [0, 1].map(|gate| {
                    if uses[gate] { ranked[gate].as_ref() } else { Some(&margins[gate]) }
                });
                let [Some(first), Some(second)] = gates else { continue };
                let triples = self.triples(mask, limit, found);
                if let Some(triplet) = triples.gated(stages, [first, second]) {
                    found.offer(triplet.energy, || {
                        let gate = |gate: usize| Gate {
                            accept_at: triplet.accept_at[gate],
                            tables: learned[gate]
                                .as_ref()
                                .filter(|_| uses[gate])
                                .map(|(tables, _)| tables.clone()),
                        };
                        Choice { stages: stages.to_vec(), gates: [0, 1].map(gate).to_vec() }
                    });
                }
            }
        }
        for pair in self.promising_pairs(mask, &limits, pool) {
            let Some((tables, column)) = self.learned(rows, None, pair, seed) else { continue };
            self.sweep(mask, pair, &column, &limits, |index, energy, accept_at| {
                best[index].offer(energy, || Choice {
                    stages: pair.to_vec(),
                    gates: vec![Gate { accept_at, tables: Some(tables.clone()) }],
                });
            });
        }
    }

    /// The gate that the rows teach a pair of stages after the stage `before`, if there is one, and what
    /// it says of each of them out of fold.
    pub(super) fn learned(
        &self,
        rows: &[usize],
        before: Option<usize>,
        pair: [usize; 2],
        seed: u64,
    ) -> Option<(Tables, Column)> {
        let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row]).collect();
        let mask = self.mask(rows);
        let folds = deal(&labels, &[1.0; FOLDS], &mut Random::new(seed));
        let tables = |fold: Option<usize>| -> Option<Tables> {
            let kept = rows.iter().zip(&folds).filter(|&(_, &f)| Some(f) != fold);
            let lessons: Vec<Lesson> =
                kept.map(|(&row, _)| self.lesson(&mask, before, pair, row)).collect();
            fit(&lessons, self.classes)
        };
        let whole = tables(None)?;
        let parts = (0..FOLDS).map(|fold| tables(Some(fold))).collect::<Option<Vec<_>>>()?;
        let mut values = vec![0; self.labels.len()];
        for (&row, &fold) in rows.iter().zip(&folds) {
            values[row] = self.confidence(before, pair[0], Some(&parts[fold]), row);
        }
        Some((whole, Column::new(values)))
    }

    /// What the gate that `rows` teach a pair of stages says of each row of the trace, out of fold; `None`
    /// where there is nothing to learn. Rows outside of `rows` have 0.
    pub fn learned_confidences(
        &self,
        rows: &[usize],
        pair: [usize; 2],
        seed: u64,
    ) -> Option<Vec<i32>> {
        Some(self.learned(rows, None, pair, seed)?.1.values)
    }

    fn lesson(
        &self,
        mask: &Mask,
        before: Option<usize>,
        [low, high]: [usize; 2],
        row: usize,
    ) -> Lesson {
        let [from, to] = [low, high].map(|index| &self.all[index]);
        let [predicted, runner_up] = from.leading[row].map(|class| class as usize);
        let gain = f64::from(u8::from(to.correct[row])) - f64::from(u8::from(from.correct[row]));
        let disagrees = before.is_some_and(|b| self.all[b].leading[row][0] as usize != predicted);
        let weight = mask.weights[row] as f64 / mask.unit();
        let margin = from.margins.values[row];
        Lesson { margin, predicted, runner_up, disagrees, gain, weight }
    }

    /// The pairs that are cheapest under some limit with plain margins.
    fn promising_pairs(&self, mask: &Mask, limits: &[Limit], pool: Pool) -> Vec<[usize; 2]> {
        let mut pairs: Vec<(f64, [usize; 2])> = Vec::new();
        let members = self.members(pool);
        for [low, high] in self.openings(&members) {
            let mut least = f64::INFINITY;
            let margins = &self.all[low].margins;
            self.sweep(mask, [low, high], margins, limits, |_, energy, _| {
                least = least.min(energy);
            });
            pairs.push((least, [low, high]));
        }
        pairs.retain(|(least, _)| least.is_finite());
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        pairs.into_iter().take(LEARNING).map(|(_, pair)| pair).collect()
    }

    pub(super) fn members(&self, pool: Pool) -> Vec<usize> {
        let sums = matches!(pool, Pool::Policies | Pool::Static);
        let holds = |c: &Candidate| pool.holds(c.info.kind) && (sums || c.sum.is_none());
        (0..self.all.len()).filter(|&index| holds(&self.all[index])).collect()
    }

    /// For each bound the choice of least chip energy that keeps it over the mask, with plain margins;
    /// where none does, the pool's widest point. Equal energies go to fewer stages, then to the earlier
    /// candidate. Exact, but that with caution a policy of three stages keeps a bound that
    /// implies the given one, and differs from it the less the closer its flips are to those of the
    /// best of two; and that one of four may cost as much more as its floor says. More than two stages are
    /// taken only where they need no more total energy than the best of fewer.
    pub(super) fn best(&self, mask: &Mask, bounds: &[Bound], pool: Pool) -> Vec<Found> {
        let members = self.members(pool);
        let limits = mask.limits(bounds);
        let widest = Choice::fixed(self.widest_of(pool));
        let (energy, floor) = (f64::INFINITY, f64::INFINITY);
        let mut best = vec![Found { energy, floor, choice: widest }; bounds.len()];
        for &only in &members {
            let lost = self.total(mask, only);
            if !self.allows_always(mask, only) {
                continue;
            }
            for (best, limit) in best.iter_mut().zip(&limits) {
                if limit.keeps(lost) {
                    best.offer(self.all[only].energy.chip_uj, || self.always(only));
                }
            }
        }
        if pool.is_dynamic() && self.rules.stages >= 2 {
            for [low, high] in self.openings(&members) {
                let margins = &self.all[low].margins;
                self.sweep(mask, [low, high], margins, &limits, |index, energy, accept_at| {
                    best[index].offer(energy, || Choice {
                        stages: vec![low, high],
                        gates: vec![Gate::margin(accept_at)],
                    });
                });
            }
        }
        if pool.is_dynamic() && self.rules.stages >= 3 {
            for (best, &limit) in best.iter_mut().zip(&limits) {
                if let Some(triplet) = self.search_triples(mask, &members, limit, best) {
                    best.offer(triplet.energy, || Choice {
                        stages: triplet.stages.to_vec(),
                        gates: triplet.accept_at.map(Gate::margin).to_vec(),
                    });
                }
            }
        }
        if pool.is_dynamic() && self.rules.stages >= 4 {
            for (best, &limit) in best.iter_mut().zip(&limits) {
                let Quadruples { best: quadruple, floor } =
                    self.search_quadruples(mask, &members, limit, best);
                if let Some(quadruple) = quadruple {
                    best.offer(quadruple.energy, || Choice {
                        stages: quadruple.stages.to_vec(),
                        gates: quadruple.accept_at.map(Gate::margin).to_vec(),
                    });
                }
                best.floor = floor;
            }
        }
        // Where nothing keeps a bound, the widest costs what it costs.
        for found in best.iter_mut().filter(|found| found.energy.is_infinite()) {
            found.energy = self.all[found.choice.last()].energy.chip_uj;
            found.floor = found.energy;
        }
        best
    }

    /// The pool's candidate with the most bits, the first of equals.
    pub fn widest_of(&self, pool: Pool) -> usize {
        let bits = |index: usize| -> u64 {
            let widths = &self.all[index].info.widths;
            widths.iter().map(|w| u64::from(w.weights) + u64::from(w.activations)).sum()
        };
        self.members(pool)
            .into_iter()
            .rev()
            .max_by_key(|&index| bits(index))
            .expect("every pool has a candidate, w16a16 at least")
    }

    /// The choice with its first threshold raised until conformal risk control on `rows`, each of which counts
    /// as one, bounds the expected share of harmful flips by `bound`; `None` where no threshold does. Flips
    /// count from a threshold on down, so that they only become more as it falls.
    pub fn raise_first_threshold(
        &self,
        choice: &Choice,
        rows: &[usize],
        bound: f64,
    ) -> Option<Choice> {
        let harms = |right: bool, row: usize| self.reference[row] && !right;
        let rest = |row: usize| match choice.gates.split_first() {
            None => self.answer(choice, row).0,
            Some((_, later)) => {
                let rest = Choice { stages: choice.stages[1..].to_vec(), gates: later.to_vec() };
                self.answer(&rest, row).0
            }
        };
        let always = rows.iter().filter(|&&row| harms(rest(row), row)).count();
        // The largest number of harmful flips that keeps the bound, less what no threshold avoids.
        let most = (bound * (rows.len() + 1) as f64 - 1.0 + 1e-9).floor();
        let spare = most as i64 - always as i64;
        if most < 0.0 || spare < 0 {
            return None;
        }
        let Some(gate) = choice.gates.first() else { return Some(choice.clone()) };
        let first = choice.stages[0];
        let mut margins: Vec<i32> = rows
            .iter()
            .filter(|&&row| harms(self.all[first].correct[row], row) && !harms(rest(row), row))
            .map(|&row| self.confidence(None, first, gate.tables.as_ref(), row))
            .collect();
        margins.sort_unstable_by_key(|&margin| std::cmp::Reverse(margin));
        let mut raised = choice.clone();
        // The first flip that is one too many must be handed on.
        if let Some(&margin) = margins.get(spare as usize) {
            raised.gates[0].accept_at = gate.accept_at.max(margin.checked_add(1)?);
        }
        Some(raised)
    }
}

/// The cheapest choice so far, and its chip energy in microjoule.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) energy: f64,
    /// No choice of those that were searched needs less.
    pub(super) floor: f64,
    pub(super) choice: Choice,
}

impl Found {
    /// Takes a choice that is cheaper.
    pub(super) fn offer(&mut self, energy: f64, choice: impl FnOnce() -> Choice) {
        if energy < self.energy {
            *self = Self { energy, floor: energy, choice: choice() };
        }
    }
}
