//! `summary.json`: what scripts and people read. All figures are of the test split.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::energy::{
    AcceleratorProfile, Energy, EnergyError, Evidence, Grade, Interval, StagePoint, Storage, Style,
    Widths, Workload, interval, mean_energy, stage_costs,
};
use crate::policy::{EnergyUj, LastResort, PolicyFile};
use crate::search::{Candidates, Choice, Pool, repeat};
use crate::sensitivity::Sensitivity;
use crate::trace::{Split, Trace};

/// `summary.json`. Accuracies, drops and rates are fractions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this format: 1.
    pub schema_version: u32,
    /// The network.
    pub model: ModelSummary,
    /// Number of samples in each split.
    pub samples: SampleCounts,
    /// Id of the profile.
    pub accelerator: String,
    /// `uJ`, or `us` for profiles of time: then all that is called energy here is in microseconds.
    pub cost_unit: String,
    /// What the policy's costs rest on.
    pub evidence: EvidenceSummary,
    /// What the profile says is unknown or out of its scope, and so is not counted.
    pub not_counted: Vec<String>,
    /// What was asked for.
    pub constraint: Constraint,
    /// What the policy is held against.
    pub reference: Reference,
    /// Every point alone.
    pub r#static: Vec<StaticPoint>,
    /// The cheapest uniform point chosen for the target.
    pub best_static_uniform: BestStatic,
    /// The cheapest point of any kind chosen for the target.
    pub best_static: BestStatic,
    /// The cheapest plainly quantized point chosen for the target.
    pub best_static_plain: BestStatic,
    /// The chosen policy.
    pub policy: PolicySummary,
    /// 1 - policy / other, of chip energy.
    pub savings: Savings,
    /// 1 - policy / other, of total energy.
    pub savings_total: Savings,
    /// How far `savings` moves within what the profile's numbers may be.
    pub savings_interval: SavingsInterval,
    /// How far `savings_total` moves, likewise.
    pub savings_total_interval: SavingsInterval,
    /// The whole choice repeated over random splits.
    pub repeated: RepeatedSummary,
    /// Weight and activation bits of every MAC layer, for points whose layers differ.
    pub tables: BTreeMap<String, Vec<[u8; 2]>>,
    /// How the policy's weights are stored, and what that costs.
    pub storage: StorageSummary,
    /// What few bits do to each layer; null where points were given and nothing was measured.
    pub sensitivity: Option<Sensitivity>,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Its name.
    pub name: String,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// Weights and biases of its MAC layers.
    pub parameters: u64,
    /// Operators that stay in float inside the integer networks; their energy is not counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub float_islands: Vec<FloatIsland>,
}

/// An operator that has no integer form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatIsland {
    /// Name of its node.
    pub node: String,
    /// `layer norm` or `softmax`.
    pub operator: String,
}

/// Number of samples in each split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleCounts {
    /// For quantization.
    pub calibration: usize,
    /// For choosing.
    pub search: usize,
    /// For the guarantee.
    pub certification: usize,
    /// For the figures here.
    pub test: usize,
}

/// What the policy's costs rest on. They may be called published and measured only if this is silicon
/// and no worse than S.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceSummary {
    /// What kind of figures the profile has.
    pub kind: Evidence,
    /// The worst grade among the energies of a MAC that the policy uses: F, S, D, E or R.
    pub worst_grade: Grade,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// Target: the expected accuracy drop.
    pub max_accuracy_drop: f64,
    /// Drop that is not exceeded, with confidence; null where none was asked for.
    pub guarantee: Option<f64>,
    /// Confidence of the guarantee.
    pub confidence: f64,
}

/// What the policy is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// `float` or `widest`.
    pub kind: String,
    /// Its accuracy.
    pub accuracy: f64,
}

/// One point alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StaticPoint {
    /// Its name.
    pub point: String,
    /// `uniform`, `mixed` or `plain`.
    pub kind: String,
    /// `as-is` or `mirror`.
    pub view: String,
    /// Its accuracy.
    pub accuracy: f64,
    /// What an inference costs.
    pub energy_uj: EnergyUj,
}

/// A static point that was chosen like the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestStatic {
    /// Its name.
    pub point: String,
    /// Its accuracy.
    pub accuracy: f64,
    /// What an inference costs.
    pub energy_uj: EnergyUj,
}

/// A stage of the chosen policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Name of its point.
    pub point: String,
    /// `as-is` or `mirror`.
    pub view: String,
    /// `replace`.
    pub scores: String,
    /// Leading MAC layers that the stage before ran for it.
    pub shared_layers: usize,
    /// Smallest accepted margin.
    pub accept_at: f64,
}

/// The chosen policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicySummary {
    /// Stages before the last resort.
    pub stages: Vec<StageSummary>,
    /// The stage that always answers.
    pub last_resort: LastResort,
    /// Its accuracy.
    pub accuracy: f64,
    /// Accuracy of the reference minus that.
    pub accuracy_drop: f64,
    /// What an inference costs on average.
    pub energy_uj: EnergyUj,
    /// Share of all inputs that each stage hands on.
    pub escalation_rates: Vec<f64>,
    /// Whether the guarantee was proved.
    pub certified: bool,
    /// Drop that is not exceeded, with confidence.
    pub drop_upper_bound: Option<f64>,
    /// Chip, off-chip and total energy of a gate that escalates exactly where that mends the answer.
    pub oracle_energy_uj: EnergyUj,
}

/// 1 - policy / other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Savings {
    /// Against the best uniform point.
    pub vs_best_static_uniform: f64,
    /// Against the best point of any kind.
    pub vs_best_static: f64,
    /// Against the best plainly quantized point.
    pub vs_best_static_plain: f64,
    /// Against 16 bits everywhere.
    pub vs_16_bit: f64,
}

impl Savings {
    fn from_array([uniform, any, plain, wide]: [f64; 4]) -> Self {
        Self {
            vs_best_static_uniform: uniform,
            vs_best_static: any,
            vs_best_static_plain: plain,
            vs_16_bit: wide,
        }
    }
}

/// Intervals of savings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavingsInterval {
    /// Against the best uniform point.
    pub vs_best_static_uniform: SavingInterval,
    /// Against the best point of any kind.
    pub vs_best_static: SavingInterval,
    /// Against the best plainly quantized point.
    pub vs_best_static_plain: SavingInterval,
    /// Against 16 bits everywhere.
    pub vs_16_bit: SavingInterval,
}

/// Interval of a saving, from the uncertainty of the profile alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavingInterval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The profile's number that moves the saving most; null where none does.
    pub most: Option<String>,
}

impl From<Interval> for SavingInterval {
    fn from(interval: Interval) -> Self {
        Self { low: interval.low, high: interval.high, most: interval.most }
    }
}

/// Means over random splits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepeatedSummary {
    /// Number of splits.
    pub n: usize,
    /// Mean accuracy drop on the test samples of each split.
    pub drop_mean: f64,
    /// Its standard deviation over splits, divided by the square root of their number.
    pub drop_se: f64,
    /// Mean savings of chip energy.
    pub savings_mean: Savings,
}

/// How the policy's weights are stored, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorageSummary {
    /// `independent` or `nested`.
    pub kind: Storage,
    /// Bytes of the policy's packed weights.
    pub weight_bytes: usize,
    /// The policy with weights of its own for every point.
    pub independent: IndependentSummary,
}

/// A policy with weights of its own for every point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndependentSummary {
    /// Bytes of its packed weights.
    pub weight_bytes: usize,
    /// Its accuracy.
    pub accuracy: f64,
    /// What an inference costs on average.
    pub energy_uj: EnergyUj,
}

/// What the trace does not know.
pub(crate) struct Facts<'a> {
    pub(crate) model: ModelSummary,
    pub(crate) calibration: usize,
    pub(crate) profile: &'a AcceleratorProfile,
    pub(crate) workload: &'a Workload,
    pub(crate) constraint: Constraint,
    pub(crate) reference: String,
    pub(crate) tables: BTreeMap<String, Vec<[u8; 2]>>,
    pub(crate) sensitivity: Option<Sensitivity>,
    pub(crate) storage: StorageSummary,
    pub(crate) seed: u64,
    pub(crate) repeats: usize,
}

const STATIC_POOLS: [Pool; 3] = [Pool::StaticUniform, Pool::Static, Pool::StaticPlain];

/// Chooses the static points to compare with, and puts all figures together.
pub(crate) fn summarize(
    trace: &Trace,
    candidates: &Candidates,
    choice: Choice,
    policy: &PolicyFile,
    facts: Facts<'_>,
) -> Summary {
    let (search, test) = (trace.rows(Split::Search), trace.rows(Split::Test));
    let target = facts.constraint.max_accuracy_drop;
    let alone = |low: usize| candidates.outcome(Choice { low, escalation: None }, &test);
    let points: Vec<_> = candidates.points().collect();
    let all = points.iter().enumerate().map(|(index, info)| {
        let outcome = alone(index);
        StaticPoint {
            point: info.point.clone(),
            kind: info.kind.name().to_owned(),
            view: info.view.name().to_owned(),
            accuracy: outcome.accuracy,
            energy_uj: outcome.energy.into(),
        }
    });
    let widest = points.iter().position(|p| p.point == WIDEST).expect("w16a16 is always traced");
    let best = STATIC_POOLS.map(|pool| candidates.choose(&search, target, pool, facts.seed).low);
    let [uniform, any, plain] = best.map(|index| {
        let outcome = alone(index);
        BestStatic {
            point: points[index].point.clone(),
            accuracy: outcome.accuracy,
            energy_uj: outcome.energy.into(),
        }
    });
    let outcome = candidates.outcome(choice, &test);
    let others = [best[0], best[1], best[2], widest].map(|index| candidates.energy(index));
    let saving = |energy: fn(Energy) -> f64| {
        Savings::from_array(others.map(|other| 1.0 - energy(outcome.energy) / energy(other)))
    };
    let shared = candidates.shared_layers(choice);
    let stages: Vec<StagePoint<'_>> = candidates
        .stages(choice)
        .zip(shared)
        .map(|(info, shared)| StagePoint { widths: &info.widths, shared })
        .collect();
    let dynamic =
        Dynamic { stages: &stages, shares: [1.0, outcome.escalation_rate], facts: &facts };
    let others = [best[0], best[1], best[2], widest].map(|index| points[index].widths.as_slice());
    let savings_interval = dynamic.savings(others, |energy| energy.chip_uj);
    let savings_total_interval = dynamic.savings(others, Energy::total_uj);
    let evidence = EvidenceSummary {
        kind: facts.profile.accelerator.evidence,
        worst_grade: dynamic.worst_grade(),
    };
    let counts = [Split::Search, Split::Certification, Split::Test].map(|s| trace.rows(s).len());
    let sizes = counts.map(|count| count as f64);
    let repeated =
        repeat(candidates, target, sizes, &STATIC_POOLS, widest, facts.repeats, facts.seed);
    let savings_mean = [0, 1, 2, 3].map(|i| repeated.savings[i]);
    Summary {
        schema_version: 1,
        model: facts.model,
        samples: SampleCounts {
            calibration: facts.calibration,
            search: counts[0],
            certification: counts[1],
            test: counts[2],
        },
        accelerator: facts.profile.accelerator.id.clone(),
        cost_unit: unit(facts.profile).to_owned(),
        evidence,
        not_counted: facts.profile.not_counted.iter().map(|n| n.0.clone()).collect(),
        constraint: facts.constraint,
        reference: Reference {
            kind: facts.reference,
            accuracy: candidates.reference_accuracy(&test),
        },
        r#static: all.collect(),
        best_static_uniform: uniform,
        best_static: any,
        best_static_plain: plain,
        policy: PolicySummary {
            stages: policy
                .stages
                .iter()
                .map(|s| StageSummary {
                    point: s.point.clone(),
                    view: s.view.clone(),
                    scores: s.scores.clone(),
                    shared_layers: s.shared_layers,
                    accept_at: s.accept_at,
                })
                .collect(),
            last_resort: policy.last_resort.clone(),
            accuracy: outcome.accuracy,
            accuracy_drop: outcome.drop,
            energy_uj: outcome.energy.into(),
            escalation_rates: policy.stages.iter().map(|_| outcome.escalation_rate).collect(),
            certified: false,
            drop_upper_bound: None,
            oracle_energy_uj: candidates.oracle_energy(choice, &test).into(),
        },
        savings: saving(|e| e.chip_uj),
        savings_total: saving(Energy::total_uj),
        savings_interval,
        savings_total_interval,
        repeated: RepeatedSummary {
            n: repeated.n,
            drop_mean: repeated.policy.mean,
            drop_se: repeated.policy.standard_error,
            savings_mean: Savings::from_array(savings_mean),
        },
        tables: facts.tables,
        storage: facts.storage,
        sensitivity: facts.sensitivity,
    }
}

/// What costs are in.
pub(crate) fn unit(profile: &AcceleratorProfile) -> &'static str {
    if profile.accelerator.style == Style::Time { "us" } else { "uJ" }
}

/// A policy with the shares of inputs that reach its stages.
struct Dynamic<'a> {
    stages: &'a [StagePoint<'a>],
    shares: [f64; 2],
    facts: &'a Facts<'a>,
}

impl Dynamic<'_> {
    fn worst_grade(&self) -> Grade {
        let Facts { profile, workload, storage, .. } = self.facts;
        let costs = stage_costs(profile, workload, self.stages, storage.kind);
        let costs = costs.expect("the profile priced every point before it was traced");
        let grades = costs.iter().flat_map(|cost| cost.layers.iter().map(|layer| layer.grade));
        grades.max().expect("a policy has layers")
    }

    fn savings(&self, others: [&[Widths]; 4], energy: fn(Energy) -> f64) -> SavingsInterval {
        let [uniform, any, plain, wide] = others.map(|other| {
            let saving = interval(self.facts.profile, |profile| {
                let (workload, storage) = (self.facts.workload, self.facts.storage.kind);
                let policy = mean_energy(profile, workload, self.stages, storage, &self.shares)?;
                let other = [StagePoint { widths: other, shared: 0 }];
                let other = mean_energy(profile, workload, &other, Storage::Independent, &[1.0])?;
                Ok::<_, EnergyError>(1.0 - energy(policy) / energy(other))
            });
            saving.expect("the profile priced every point before it was traced").into()
        });
        SavingsInterval {
            vs_best_static_uniform: uniform,
            vs_best_static: any,
            vs_best_static_plain: plain,
            vs_16_bit: wide,
        }
    }
}

/// Name of the point that is always traced.
pub(crate) const WIDEST: &str = "w16a16";
