//! Finds the cheapest policy that keeps the expected accuracy drop within a target.
//!
//! Thresholds are exact: for each ordered pair of points, samples are sorted by the low stage's
//! margin and every boundary between distinct margins is tried.
//!
//! The cheapest of thousands of candidates on a search split looks better than it is. So the bound
//! that is searched with is tightened until, in cross-fitting, what is chosen on some folds keeps
//! the target on the others. Static points are chosen by the same rule.

mod repeated;
mod sweep;

pub use repeated::{Drop, Repeated, repeat};

use crate::energy::{
    AcceleratorProfile, Energy, EnergyError, StagePoint, Storage, Widths, Workload, policy_cost,
    stage_costs,
};
use crate::trace::{Random, Trace, View, deal};

/// What kind of point a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// All layers alike.
    Uniform,
    /// Layers differ.
    Mixed,
    /// Plain quantization: for comparison only, never a stage.
    Plain,
    /// Shares its weights with the other nested points.
    Nested,
}

impl Kind {
    /// `uniform`, `mixed` or `plain`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Mixed => "mixed",
            Self::Plain => "plain",
            Self::Nested => "nested",
        }
    }
}

/// A point and view that was traced and can be priced.
#[derive(Clone, Debug, PartialEq)]
pub struct PointInfo {
    /// Name of the point in the trace.
    pub point: String,
    /// View in the trace.
    pub view: View,
    /// What kind of point it is.
    pub kind: Kind,
    /// Widths of every layer.
    pub widths: Vec<Widths>,
    /// Number of leading layers that are made alike at all points of these widths there.
    pub alike: usize,
}

impl PointInfo {
    /// Leading layers that a stage at `high` can leave to one at this point: none when they see the
    /// input differently or their weights are made in different ways.
    fn shared_layers(&self, high: &Self, workload: &Workload) -> usize {
        if self.view != high.view || self.family() != high.family() {
            return 0;
        }
        workload.shared_layers(&self.widths, &high.widths, self.alike.min(high.alike))
    }

    /// How the weights are made, beyond their widths: the suffix of the name.
    fn family(&self) -> Option<&str> {
        ["-plain", "-nested"].into_iter().find(|suffix| self.point.ends_with(suffix))
    }
}

/// A candidate's answers, row by row of the trace.
#[derive(Clone, Debug)]
struct Candidate {
    info: PointInfo,
    correct: Vec<bool>,
    margins: Vec<i32>,
    /// Rows by falling margin.
    order: Vec<u32>,
    /// Alone, without escalation.
    energy: Energy,
}

/// Everything that a choice depends on: answers of all candidates and of the reference, and what
/// each stage costs in each pair.
#[derive(Clone, Debug)]
pub struct Candidates {
    labels: Vec<u32>,
    reference: Vec<bool>,
    all: Vec<Candidate>,
    /// \[low\]\[high\]: what the low and what the high stage costs.
    pairs: Vec<Vec<[Energy; 2]>>,
    /// \[low\]\[high\]: leading layers that the high stage leaves to the low one.
    shared: Vec<Vec<usize>>,
}

/// A policy of one or two stages, by the candidates' indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The first stage.
    pub low: usize,
    /// The margin, in units of the low stage's score scale, from which it is accepted, and who
    /// answers otherwise.
    pub escalation: Option<(i32, usize)>,
}

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// One or two stages of any points but plain ones.
    Policies,
    /// One point, uniform or mixed.
    Static,
    /// One uniform point.
    StaticUniform,
    /// One plain point.
    StaticPlain,
    /// One or two stages of nested points.
    Nested,
}

impl Pool {
    fn holds(self, kind: Kind) -> bool {
        match self {
            Self::Policies | Self::Static => kind != Kind::Plain && kind != Kind::Nested,
            Self::Nested => kind == Kind::Nested,
            Self::StaticUniform => kind == Kind::Uniform,
            Self::StaticPlain => kind == Kind::Plain,
        }
    }
}

/// What a choice does on some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Share of right answers.
    pub accuracy: f64,
    /// Accuracy of the reference minus that.
    pub drop: f64,
    /// Share of samples that the first stage hands on.
    pub escalation_rate: f64,
    /// Mean energy of a sample.
    pub energy: Energy,
}

/// Folds of cross-fitting.
const FOLDS: usize = 5;
/// How far below the target bounds are tried, in standard errors of the drop on the rows.
const TIGHTENING: [f64; 8] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0];

impl Candidates {
    /// Prices every candidate alone and in every pair: nested points with one copy of weights, others
    /// with weights of their own, and going on from shared layers where that is cheaper.
    ///
    /// # Errors
    ///
    /// When the profile can't price one of the points.
    ///
    /// # Panics
    ///
    /// When a point or the reference was not traced, or there is no candidate of a pool.
    pub fn new(
        trace: &Trace,
        reference: &str,
        points: Vec<PointInfo>,
        profile: &AcceleratorProfile,
        workload: &Workload,
    ) -> Result<Self, EnergyError> {
        let block = |point: &str, view| trace.block(point, view).expect("every point was traced");
        let mut candidates = Vec::with_capacity(points.len());
        for info in points {
            let block = block(&info.point, info.view);
            let margins = block.answers.margins.clone();
            let mut order: Vec<u32> = (0..margins.len() as u32).collect();
            order.sort_by_key(|&row| (std::cmp::Reverse(margins[row as usize]), row));
            let cost = policy_cost(profile, workload, &[&info.widths])?;
            let correct = trace.correct(block);
            candidates.push(Candidate { info, correct, margins, order, energy: cost[0].energy });
        }
        let count = candidates.len();
        let mut pairs = Vec::with_capacity(count);
        let mut shared = vec![vec![0; count]; count];
        for (low, from) in candidates.iter().enumerate() {
            let mut row = Vec::with_capacity(count);
            for (high, to) in candidates.iter().enumerate() {
                let nested = [from, to].iter().all(|c| c.info.kind == Kind::Nested);
                let storage = if nested { Storage::Nested } else { Storage::Independent };
                let cost = |shared: usize| {
                    let stages = [(&from.info, 0), (&to.info, shared)]
                        .map(|(info, shared)| StagePoint { widths: &info.widths, shared });
                    let cost = stage_costs(profile, workload, &stages, storage)?;
                    Ok::<_, EnergyError>([cost[0].energy, cost[1].energy])
                };
                let mut best = cost(0)?;
                // Nested points have scales of their own even where they share all bits.
                let layers = if nested { 0 } else { from.info.shared_layers(&to.info, workload) };
                if layers > 0 {
                    let resumed = cost(layers)?;
                    if resumed[1].chip_uj < best[1].chip_uj {
                        (best, shared[low][high]) = (resumed, layers);
                    }
                }
                row.push(best);
            }
            pairs.push(row);
        }
        let reference = trace.correct(block(reference, View::AsIs));
        Ok(Self { labels: trace.labels.clone(), reference, all: candidates, pairs, shared })
    }

    /// The candidates, in the order in which choices number them.
    pub fn points(&self) -> impl Iterator<Item = &PointInfo> {
        self.all.iter().map(|c| &c.info)
    }

    /// What candidate `index` costs alone.
    pub fn energy(&self, index: usize) -> Energy {
        self.all[index].energy
    }

    /// The stages of a choice.
    pub fn stages(&self, choice: Choice) -> impl Iterator<Item = &PointInfo> {
        let high = choice.escalation.map(|(_, high)| high);
        std::iter::once(choice.low).chain(high).map(|index| &self.all[index].info)
    }

    /// What each stage of a choice costs when it runs.
    pub fn stage_energies(&self, choice: Choice) -> Vec<Energy> {
        match choice.escalation {
            None => vec![self.all[choice.low].energy],
            Some((_, high)) => self.pairs[choice.low][high].to_vec(),
        }
    }

    /// Leading layers that each stage of a choice leaves to the one before.
    pub fn shared_layers(&self, choice: Choice) -> Vec<usize> {
        let second = choice.escalation.map(|(_, high)| self.shared[choice.low][high]);
        std::iter::once(0).chain(second).collect()
    }

    /// The cheapest choice of a pool whose expected drop keeps the target, judged on `rows` alone.
    /// Where nothing keeps it, the pool's widest point.
    pub fn choose(&self, rows: &[usize], target: f64, pool: Pool, seed: u64) -> Choice {
        let chosen = self.cross_fit(rows, target, pool, seed);
        if pool != Pool::Policies {
            return chosen;
        }
        // A static point that is chosen by the same rule is a policy too.
        let fixed = self.cross_fit(rows, target, Pool::Static, seed);
        let energy = |choice| self.outcome(choice, rows).energy.chip_uj;
        if energy(fixed) <= energy(chosen) { fixed } else { chosen }
    }

    /// The cheapest choice under the loosest bound that keeps the target in cross-fitting.
    fn cross_fit(&self, rows: &[usize], target: f64, pool: Pool, seed: u64) -> Choice {
        let all = self.mask(rows);
        let plain = self.best(&all, &[target], pool)[0];
        // The scale of chance: standard error of the paired drop of what a naive search takes.
        let flips =
            rows.iter().filter(|&&row| self.answer(plain, row).0 != self.reference[row]).count();
        let n = rows.len() as f64;
        let error = ((flips.max(1)) as f64).sqrt() / n;
        let bounds = TIGHTENING.map(|t| target - t * error);
        let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row]).collect();
        let folds = deal(&labels, &[1.0; FOLDS], &mut Random::new(seed));
        let mut lost = [0_i64; TIGHTENING.len()];
        for fold in 0..FOLDS {
            let outside: Vec<usize> =
                rows.iter().zip(&folds).filter(|&(_, &f)| f != fold).map(|(&r, _)| r).collect();
            let choices = self.best(&self.mask(&outside), &bounds, pool);
            for (lost, choice) in lost.iter_mut().zip(choices) {
                for (&row, &of) in rows.iter().zip(&folds) {
                    if of == fold {
                        let right = self.answer(choice, row).0;
                        *lost += i64::from(self.reference[row]) - i64::from(right);
                    }
                }
            }
        }
        let kept = lost.iter().position(|&lost| lost as f64 / n <= target);
        let bound = bounds[kept.unwrap_or(TIGHTENING.len() - 1)];
        self.best(&all, &[bound], pool)[0]
    }

    /// What a choice does on `rows`.
    pub fn outcome(&self, choice: Choice, rows: &[usize]) -> Outcome {
        let n = rows.len().max(1) as f64;
        let (mut right, mut escalated, mut reference) = (0, 0, 0);
        for &row in rows {
            let (correct, handed_on) = self.answer(choice, row);
            right += usize::from(correct);
            escalated += usize::from(handed_on);
            reference += usize::from(self.reference[row]);
        }
        let rate = escalated as f64 / n;
        let stages = self.stage_energies(choice);
        let energy = stages.get(1).map_or(stages[0], |high| stages[0].plus(high.times(rate)));
        Outcome {
            accuracy: right as f64 / n,
            drop: (f64::from(reference as u32) - f64::from(right as u32)) / n,
            escalation_rate: rate,
            energy,
        }
    }

    /// Energy of a gate that escalates exactly what the first stage gets wrong and the second right:
    /// no gate between these two stages is better. Without a second stage the choice's own.
    pub fn oracle_energy(&self, choice: Choice, rows: &[usize]) -> Energy {
        let stages = self.stage_energies(choice);
        let Some((_, high)) = choice.escalation else {
            return stages[0];
        };
        let (low, high) = (&self.all[choice.low], &self.all[high]);
        let gained = rows.iter().filter(|&&row| !low.correct[row] && high.correct[row]).count();
        stages[0].plus(stages[1].times(gained as f64 / rows.len().max(1) as f64))
    }

    /// Accuracy of the reference on `rows`.
    pub fn reference_accuracy(&self, rows: &[usize]) -> f64 {
        rows.iter().filter(|&&row| self.reference[row]).count() as f64 / rows.len().max(1) as f64
    }

    /// Whether the choice answers a row rightly, and whether it escalates it.
    fn answer(&self, choice: Choice, row: usize) -> (bool, bool) {
        let low = &self.all[choice.low];
        match choice.escalation {
            Some((accept_at, high)) if low.margins[row] < accept_at => {
                (self.all[high].correct[row], true)
            }
            _ => (low.correct[row], false),
        }
    }

    fn mask(&self, rows: &[usize]) -> Mask {
        let mut mask = Mask { inside: vec![false; self.labels.len()], count: rows.len() };
        for &row in rows {
            mask.inside[row] = true;
        }
        mask
    }
}

/// A subset of the trace's rows.
struct Mask {
    inside: Vec<bool>,
    count: usize,
}

#[cfg(test)]
mod tests;
