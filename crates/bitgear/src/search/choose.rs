//! Choosing with a bound that chance has been taken off.

use super::{Candidates, Choice, Mask, Pool};
use crate::trace::{Random, deal};

/// Folds of cross-fitting.
const FOLDS: usize = 5;
/// How far below the target bounds are tried, in standard errors of the drop on the rows.
const TIGHTENING: [f64; 11] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0];
/// Of these so many are tried for a target alone.
const TRIED: usize = 8;

impl Candidates {
    /// The cheapest choice of a pool whose expected drop keeps the target, judged on `rows` alone.
    /// Where nothing keeps it, the pool's widest point.
    pub fn choose(&self, rows: &[usize], target: f64, pool: Pool, seed: u64) -> Choice {
        self.ladder(rows, target, &[0.0], pool, seed).swap_remove(0)
    }

    /// As [`Candidates::choose`], for targets that are so many standard errors of the drop below
    /// the given one.
    pub fn ladder(
        &self,
        rows: &[usize],
        target: f64,
        steps: &[f64],
        pool: Pool,
        seed: u64,
    ) -> Vec<Choice> {
        let chosen = self.cross_fit(rows, target, steps, pool, seed);
        if pool != Pool::Policies {
            return chosen;
        }
        // A static point that is chosen by the same rule is a policy too.
        let fixed = self.cross_fit(rows, target, steps, Pool::Static, seed);
        let energy = |choice: &Choice| self.outcome(choice, rows).energy.chip_uj;
        let cheaper = |(fixed, chosen): (Choice, Choice)| {
            if energy(&fixed) <= energy(&chosen) { fixed } else { chosen }
        };
        fixed.into_iter().zip(chosen).map(cheaper).collect()
    }

    /// For each step the cheapest choice under the loosest bound that keeps its target in
    /// cross-fitting.
    fn cross_fit(
        &self,
        rows: &[usize],
        target: f64,
        steps: &[f64],
        pool: Pool,
        seed: u64,
    ) -> Vec<Choice> {
        let all = self.mask(rows);
        let plain = self.best(&all, &[target], pool).swap_remove(0);
        // The scale of chance: standard error of the paired drop of what a naive search takes.
        let flips = self.flips(&plain, rows);
        let n = rows.len() as f64;
        let error = ((flips.harmful + flips.helpful).max(1) as f64).sqrt() / n;
        let tried = if steps == [0.0] { TRIED } else { TIGHTENING.len() };
        let bounds: Vec<f64> = TIGHTENING[..tried].iter().map(|t| target - t * error).collect();
        let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row]).collect();
        let folds = deal(&labels, &[1.0; FOLDS], &mut Random::new(seed));
        let mut lost = vec![0_i64; bounds.len()];
        for fold in 0..FOLDS {
            let part = |inside: bool| -> Vec<usize> {
                let rows = rows.iter().zip(&folds).filter(|&(_, &f)| (f == fold) == inside);
                rows.map(|(&row, _)| row).collect()
            };
            let choices = self.best(&self.mask(&part(false)), &bounds, pool);
            let held_out = part(true);
            for (lost, choice) in lost.iter_mut().zip(choices) {
                let flips = self.flips(&choice, &held_out);
                *lost += flips.harmful as i64 - flips.helpful as i64;
            }
        }
        let kept = steps.iter().map(|step| {
            let target = target - step * error;
            let kept = lost.iter().position(|&lost| lost as f64 / n <= target);
            bounds[kept.unwrap_or(bounds.len() - 1)]
        });
        self.best(&all, &kept.collect::<Vec<f64>>(), pool)
    }

    /// For each bound on the drop the choice of least chip energy whose mean drop over the mask
    /// keeps it; where none does, the pool's widest point. Equal energies go to fewer stages, then to
    /// the earlier candidate.
    pub(super) fn best(&self, mask: &Mask, bounds: &[f64], pool: Pool) -> Vec<Choice> {
        let members: Vec<usize> =
            (0..self.all.len()).filter(|&i| pool.holds(self.all[i].info.kind)).collect();
        let drops: Vec<i64> = (0..self.all.len()).map(|i| self.total_drop(mask, i)).collect();
        // The largest sum of drops that keeps each bound.
        let limits: Vec<i64> =
            bounds.iter().map(|bound| (bound * mask.count as f64 + 1e-9).floor() as i64).collect();
        let widest = Choice::fixed(self.widest_of(pool));
        let mut best = vec![Found { energy: f64::INFINITY, choice: widest }; bounds.len()];
        for &only in &members {
            for (best, &limit) in best.iter_mut().zip(&limits) {
                if drops[only] <= limit {
                    best.offer(self.all[only].energy.chip_uj, || Choice::fixed(only));
                }
            }
        }
        if pool.is_dynamic() && self.stages >= 2 {
            self.sweep_pairs(mask, &members, &drops, &limits, &mut best);
        }
        if pool.is_dynamic() && self.stages >= 3 {
            self.search_triples(mask, &members, &limits, &mut best);
        }
        best.into_iter().map(|found| found.choice).collect()
    }

    /// The pool's candidate with the most bits, the first of equals.
    pub fn widest_of(&self, pool: Pool) -> usize {
        let bits = |index: usize| -> u64 {
            let widths = &self.all[index].info.widths;
            widths.iter().map(|w| u64::from(w.weights) + u64::from(w.activations)).sum()
        };
        (0..self.all.len())
            .rev()
            .filter(|&index| pool.holds(self.all[index].info.kind))
            .max_by_key(|&index| bits(index))
            .expect("every pool has a candidate, w16a16 at least")
    }

    /// The choice with its first threshold raised until conformal risk control bounds the expected
    /// share of harmful flips by `bound`; `None` where no threshold does. Flips count from a threshold
    /// on down, so that they only become more as it falls.
    pub fn raise_first_threshold(
        &self,
        choice: &Choice,
        rows: &[usize],
        bound: f64,
    ) -> Option<Choice> {
        let harms = |right: bool, row: usize| self.reference[row] && !right;
        let rest = |row: usize| match choice.accept_at.split_first() {
            None => self.answer(choice, row).0,
            Some((_, later)) => {
                let rest =
                    Choice { stages: choice.stages[1..].to_vec(), accept_at: later.to_vec() };
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
        let Some(&accept_at) = choice.accept_at.first() else { return Some(choice.clone()) };
        let first = &self.all[choice.stages[0]];
        let mut margins: Vec<i32> = rows
            .iter()
            .filter(|&&row| harms(first.correct[row], row) && !harms(rest(row), row))
            .map(|&row| first.gate.values[row])
            .collect();
        margins.sort_unstable_by_key(|&margin| std::cmp::Reverse(margin));
        let mut raised = choice.clone();
        // The first flip that is one too many must be handed on.
        if let Some(&margin) = margins.get(spare as usize) {
            raised.accept_at[0] = accept_at.max(margin.checked_add(1)?);
        }
        Some(raised)
    }
}

/// The cheapest choice so far, and its chip energy in microjoule.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) energy: f64,
    pub(super) choice: Choice,
}

impl Found {
    /// Takes a choice that is cheaper.
    pub(super) fn offer(&mut self, energy: f64, choice: impl FnOnce() -> Choice) {
        if energy < self.energy {
            *self = Self { energy, choice: choice() };
        }
    }
}
