//! Finds the cheapest policy that keeps the expected accuracy drop within a target.
//!
//! Thresholds are exact: for each chain of points, samples are sorted by the margins and every
//! boundary between distinct margins is tried. Two stages are swept (`sweep`), three with a tree over
//! the second margin (`tree`), four by branch and bound over such trees (`chain`), to within a gap that is
//! known. `price` says what they cost.
//!
//! The cheapest of thousands of candidates on a search split looks better than it is: `choose` takes
//! that off the bound. A gate may learn more than the margin (`learn`), and is judged out of fold.

mod bound;
mod chain;
mod choose;
mod hull;
mod learn;
mod measure;
mod outcome;
mod price;
mod ranked;
mod repeated;
mod sum;
mod sweep;
mod tree;

use bound::{Bound, Limit, Mask, Tally};
pub use measure::{Measure, Measured};
pub use outcome::Outcome;
use price::Price;

pub use repeated::{Drop, Repeated, repeat};
pub use sum::Sum;
pub use sweep::Tradeoff;

use crate::energy::{AcceleratorProfile, Energy, EnergyError, Widths, Workload, policy_cost};
use crate::policy::Tables;
use crate::trace::{ClassMix, Trace, View};

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
    /// The candidate that is this point alone: itself, unless its scores are summed.
    base: usize,
    /// The stage before, whose scores are added.
    sum: Option<Sum>,
    correct: Vec<bool>,
    margins: Column,
    /// The two classes with the highest scores.
    leading: Vec<[u32; 2]>,
    /// Of every input: alone, or after the stage that it is summed with.
    energy: Energy,
    /// Likewise; None where the profile does not say.
    time_us: Option<f64>,
}

/// How sure a stage is of each row.
#[derive(Clone, Debug)]
struct Column {
    values: Vec<i32>,
    /// Rows by falling value.
    order: Vec<u32>,
}

impl Column {
    fn new(values: Vec<i32>) -> Self {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by_key(|&row| (std::cmp::Reverse(values[row as usize]), row));
        Self { values, order }
    }
}

/// Everything that a choice depends on: answers of all candidates and of the reference, and what
/// each stage costs in each pair.
#[derive(Clone, Debug)]
pub struct Candidates {
    labels: Vec<u32>,
    class_mix: Option<ClassMix>,
    reference: Vec<bool>,
    all: Vec<Candidate>,
    /// \[low\]\[high\]: what the low and what the high stage costs.
    pairs: Vec<Vec<[Price; 2]>>,
    /// \[low\]\[high\]: leading layers that the high stage leaves to the low one.
    shared: Vec<Vec<usize>>,
    profile: AcceleratorProfile,
    workload: Workload,
    classes: usize,
    rules: Rules,
}

/// A policy, by the candidates' indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The stages in the order in which they run.
    pub stages: Vec<usize>,
    /// When each stage but the last is accepted.
    pub gates: Vec<Gate>,
}

/// When a stage is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// From this margin on, in units of the stage's score scale.
    pub accept_at: i32,
    /// What is taken off the margin before; `None` for the plain margin.
    pub tables: Option<Tables>,
}

impl Gate {
    /// A threshold on the plain margin.
    pub fn margin(accept_at: i32) -> Self {
        Self { accept_at, tables: None }
    }
}

/// What a choice is expected to lose at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Mean drop, as a fraction.
    pub drop: f64,
    /// Whether a policy is expected to lose no more than the single point that is chosen for the same drop, which
    /// often loses less than it may.
    pub no_worse: bool,
}

impl From<f64> for Target {
    /// A drop all of which policies may spend.
    fn from(drop: f64) -> Self {
        Self { drop, no_worse: false }
    }
}

/// What policies are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Most stages, 1 to 4.
    pub stages: usize,
    /// Gates compare the margin with a threshold, nothing else.
    pub margin_only: bool,
    /// Whether a stage's scores may be summed with those of the stage before.
    pub sums: bool,
    /// Largest share of samples that the first stage hands on.
    pub max_escalation: f64,
    /// Largest chip energy of an input that all stages run for, in microjoule.
    pub max_worst_uj: f64,
    /// Longest time of an input that all stages run for, in microseconds.
    pub max_worst_us: f64,
    /// Largest mean drop of any class on the samples that choose, of policies of one or two stages.
    pub max_class_drop: Option<f64>,
}

impl Default for Rules {
    /// Two stages with any gate and summed scores, without limits.
    fn default() -> Self {
        Self {
            stages: 2,
            margin_only: false,
            sums: true,
            max_escalation: 1.0,
            max_worst_uj: f64::INFINITY,
            max_worst_us: f64::INFINITY,
            max_class_drop: None,
        }
    }
}

impl Choice {
    /// One point for every input.
    pub fn fixed(index: usize) -> Self {
        Self { stages: vec![index], gates: Vec::new() }
    }

    /// The stage that always answers.
    pub fn last(&self) -> usize {
        self.stages[self.stages.len() - 1]
    }
}

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Any number of stages of any points but plain ones.
    Policies,
    /// One point, uniform or mixed.
    Static,
    /// One uniform point.
    StaticUniform,
    /// One plain point.
    StaticPlain,
    /// Any number of stages of nested points.
    Nested,
    /// One nested point.
    StaticNested,
}

impl Pool {
    fn holds(self, kind: Kind) -> bool {
        match self {
            Self::Policies | Self::Static => kind != Kind::Plain && kind != Kind::Nested,
            Self::Nested | Self::StaticNested => kind == Kind::Nested,
            Self::StaticUniform => kind == Kind::Uniform,
            Self::StaticPlain => kind == Kind::Plain,
        }
    }

    /// Of the same points single ones.
    fn fixed(self) -> Self {
        match self {
            Self::Policies => Self::Static,
            Self::Nested => Self::StaticNested,
            single => single,
        }
    }

    fn is_dynamic(self) -> bool {
        matches!(self, Self::Policies | Self::Nested)
    }
}

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
        rules: Rules,
    ) -> Result<Self, EnergyError> {
        let block = |point: &str, view| trace.block(point, view).expect("every point was traced");
        let mut candidates = Vec::with_capacity(points.len());
        for info in points {
            let block = block(&info.point, info.view);
            let margins = Column::new(block.answers.margins.clone());
            let leading = (0..trace.samples.len())
                .map(|row| [block.answers.predicted[row], block.answers.runner_up(row)])
                .collect();
            let cost = policy_cost(profile, workload, &[&info.widths])?;
            let (correct, energy, time_us) =
                (trace.correct(block), cost[0].energy, cost[0].time_us);
            let base = candidates.len();
            let sum = None;
            candidates.push(Candidate {
                info,
                base,
                sum,
                correct,
                margins,
                leading,
                energy,
                time_us,
            });
        }
        let count = candidates.len();
        let mut found = Self {
            labels: trace.labels.clone(),
            class_mix: trace.class_mix.clone(),
            reference: trace.correct(block(reference, View::AsIs)),
            all: candidates,
            pairs: Vec::with_capacity(count),
            shared: vec![vec![0; count]; count],
            profile: profile.clone(),
            workload: workload.clone(),
            classes: trace.classes,
            rules,
        };
        for low in 0..count {
            let mut row = Vec::with_capacity(count);
            for high in 0..count {
                let chain = [low, high];
                let mut best = found.chain_cost(&chain, &[0, 0])?;
                let [from, to] = chain.map(|index| &found.all[index].info);
                // Nested points have scales of their own even where they share all bits.
                let nested = from.kind == Kind::Nested && to.kind == Kind::Nested;
                let layers = if nested { 0 } else { from.shared_layers(to, workload) };
                if layers > 0 {
                    let resumed = found.chain_cost(&chain, &[0, layers])?;
                    if resumed[1].energy.chip_uj < best[1].energy.chip_uj {
                        (best, found.shared[low][high]) = (resumed, layers);
                    }
                }
                row.push([best[0], best[1]]);
            }
            found.pairs.push(row);
        }
        if rules.sums {
            found.add_sums(trace, block(reference, View::AsIs));
        }
        Ok(found)
    }

    /// Whether a policy may begin with a candidate: the mirrored view has no advantage there.
    fn starts(&self, index: usize) -> bool {
        self.all[index].sum.is_none() && self.all[index].info.view == View::AsIs
    }

    /// Whether stage `high` may come right after stage `low`.
    fn follows(&self, low: usize, high: usize) -> bool {
        let (from, to) = (&self.all[low], &self.all[high]);
        to.sum.map_or(from.base != to.base, |sum| sum.first == low)
    }

    /// All pairs of stages that a policy may begin with.
    fn openings<'a>(&'a self, members: &'a [usize]) -> impl Iterator<Item = [usize; 2]> + 'a {
        let lows = members.iter().copied().filter(|&low| self.starts(low));
        lows.flat_map(move |low| members.iter().map(move |&high| [low, high]))
            .filter(|&[low, high]| self.follows(low, high))
    }

    /// The points that the candidates are made of, in the order in which choices number them;
    /// candidates with summed scores come after.
    pub fn points(&self) -> impl Iterator<Item = &PointInfo> {
        self.all.iter().filter(|c| c.sum.is_none()).map(|c| &c.info)
    }

    /// The stages of a choice.
    pub fn stages(&self, choice: &Choice) -> impl Iterator<Item = &PointInfo> {
        choice.stages.iter().map(|&index| &self.all[index].info)
    }
}

#[cfg(test)]
mod tests;
