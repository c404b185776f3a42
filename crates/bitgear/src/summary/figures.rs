//! What stands in `summary.json`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::details::{Alternative, FrontierPoint, StageEnergy};
use crate::certify::{Demand, Test};
use crate::energy::{Evidence, Grade, Interval, Storage};
use crate::policy::{EnergyUj, LastResort};
use crate::search::Target;
use crate::sensitivity::Sensitivity;
use crate::trace::ClassMix;

/// `summary.json`. Accuracies, drops and rates are fractions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Version of this format: 1.
    pub schema_version: u32,
    /// The network.
    pub model: ModelSummary,
    /// Number of samples in each split.
    pub samples: SampleCounts,
    /// The classes in deployment, where they are not as in the data: all figures are of this mix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_mix: Option<ClassMixSummary>,
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
    /// What would be chosen if the policy had to lose no more than the best static point, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_worse: Option<Alternative>,
    /// Further policies of the bundle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<PolicyOption>,
    /// The policy's first two stages with each measure of confidence; empty for one stage.
    pub measures: Vec<MeasureSummary>,
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
    /// What would be chosen for other targets, by rising target; the one that was asked for is among
    /// them.
    #[serde(default)]
    pub frontier: Vec<FrontierPoint>,
    /// What each stage of the policy costs when it runs, the last resort included.
    #[serde(default)]
    pub stage_energies: Vec<StageEnergy>,
    /// What the profile's energy of a MAC holds.
    #[serde(default)]
    pub mac_holds: Vec<String>,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatIsland {
    /// Name of its node.
    pub node: String,
    /// `layer norm` or `softmax`.
    pub operator: String,
}

/// Number of samples in each split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SampleCounts {
    /// For quantization.
    pub calibration: usize,
    /// For choosing.
    pub search: usize,
    /// For the guarantee; where none was asked for, for choosing too.
    pub certification: usize,
    /// For the figures here, and for bounds on the drop where no guarantee was asked for.
    pub test: usize,
    /// Whether they have labels. Without, the reference's answers count as right, and every drop is a
    /// disagreement with it.
    pub labelled: bool,
}

/// The classes in deployment, and what samples of other frequencies are worth for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassMixSummary {
    /// Share of each class, relative to the sum of all.
    pub shares: ClassMix,
    /// The weighted samples that choose tell as much as so many that count alike.
    pub search: f64,
    /// So many of the samples that bound the drop are mixed in these shares; only these prove anything.
    pub certification: usize,
    /// The weighted test samples tell as much as so many that count alike.
    pub test: f64,
}

/// What the policy's costs rest on. They may be called published and measured only if this is silicon
/// and no worse than S.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EvidenceSummary {
    /// What kind of figures the profile has.
    pub kind: Evidence,
    /// The worst grade among the energies of a MAC that the policy uses: F, S, D, E or R.
    pub worst_grade: Grade,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Constraint {
    /// Target: the expected accuracy drop.
    pub max_accuracy_drop: f64,
    /// Whether the policy is expected to lose no more than the best static point for it.
    #[serde(default)]
    pub no_worse_than_static: bool,
    /// Budget of chip energy, in microjoule: with one, the policy that loses least is chosen.
    pub max_energy_uj: Option<f64>,
    /// Drop that is not exceeded, with confidence; null where none was asked for.
    pub guarantee: Option<f64>,
    /// Confidence of the guarantee.
    pub confidence: f64,
    /// How it is proved: `exact`, `betting`, `binomial` or `conformal`.
    pub test: Test,
}

impl Constraint {
    /// The same, as the decision reads it.
    pub(crate) fn demand(self) -> Demand {
        let target = Target { drop: self.max_accuracy_drop, no_worse: self.no_worse_than_static };
        let Self { max_energy_uj, guarantee, confidence, test, .. } = self;
        Demand { target, max_energy_uj, guarantee, confidence, test }
    }
}

/// What the policy is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reference {
    /// `float` or `widest`.
    pub kind: String,
    /// Its accuracy.
    pub accuracy: f64,
    /// Its accuracy with the scores of both views summed, where the task has a symmetry.
    pub accuracy_both_views: Option<f64>,
}

/// One point alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BestStatic {
    /// Its name; `w3a3+w4a4@mirror` runs both for every input and sums their scores.
    pub point: String,
    /// Its accuracy.
    pub accuracy: f64,
    /// What an inference costs.
    pub energy_uj: EnergyUj,
    /// Whether the guarantee was proved, with the same test on the same samples.
    pub certified: bool,
    /// Drop that is not exceeded, with confidence.
    pub drop_upper_bound: Option<f64>,
}

/// A stage of the chosen policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageSummary {
    /// Name of its point.
    pub point: String,
    /// `as-is` or `mirror`.
    pub view: String,
    /// `replace`, or `sum` with those of the stage before.
    pub scores: String,
    /// Leading MAC layers that the stage before ran for it.
    pub shared_layers: usize,
    /// Smallest accepted margin, less the tables' entries.
    pub accept_at: f64,
    /// `margin`, or `learned`: the margin less an entry for each of the two leading classes.
    pub gate: String,
}

/// The chosen policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// About how many samples would prove the guarantee of this policy, where these did not and that
    /// many would.
    pub samples_needed: Option<u64>,
    /// Chip, off-chip and total energy of a gate that escalates exactly where that mends the answer.
    pub oracle_energy_uj: EnergyUj,
    /// The class that loses most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_class: Option<ClassDrop>,
    /// How long an inference takes; absent where the profile does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
}

/// What a class loses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassDrop {
    /// Its index.
    pub class: usize,
    /// Accuracy of the reference minus that of the policy, on its samples.
    pub accuracy_drop: f64,
}

/// How long an inference takes, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// On average.
    pub mean: f64,
    /// Of an input that all stages run for.
    pub worst: f64,
}

/// A further policy of the bundle, on the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyOption {
    /// Its name: `max-drop-` and its target.
    pub name: String,
    /// Its target.
    pub max_accuracy_drop: f64,
    /// Its stages: `w3a3`, `w4a4@mirror`, `w3a3+w4a4` where scores are summed.
    pub stages: Vec<String>,
    /// Its accuracy.
    pub accuracy: f64,
    /// Accuracy of the reference minus that.
    pub accuracy_drop: f64,
    /// What an inference costs on average.
    pub energy_uj: EnergyUj,
    /// Share of all inputs that each stage hands on.
    pub escalation_rates: Vec<f64>,
    /// Whether the guarantee was proved of it. Of several policies each proof is right with the stated
    /// probability, not all together.
    pub certified: bool,
    /// Drop that is not exceeded, with confidence.
    pub drop_upper_bound: Option<f64>,
}

/// What a measure of confidence would have done between the policy's first two stages, with the
/// threshold that loses as little on the samples that chose it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeasureSummary {
    /// `margin`, `softmax margin`, `maximum softmax`, `entropy`, `maximum logit` or `learned`.
    pub measure: String,
    /// What an inference costs on average.
    pub energy_uj: EnergyUj,
    /// Accuracy of the reference minus that of the policy.
    pub accuracy_drop: f64,
    /// Saving of chip energy against the best static point of any kind: 1 - policy / other.
    pub saving: f64,
    /// Chip energy over that of the oracle gate.
    pub times_oracle: f64,
}

/// 1 - policy / other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    pub(super) fn from_array([uniform, any, plain, wide]: [f64; 4]) -> Self {
        Self {
            vs_best_static_uniform: uniform,
            vs_best_static: any,
            vs_best_static_plain: plain,
            vs_16_bit: wide,
        }
    }
}

/// Intervals of savings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StorageSummary {
    /// `independent` or `nested`.
    pub kind: Storage,
    /// Bytes of the policy's packed weights.
    pub weight_bytes: usize,
    /// The policy with weights of its own for every point.
    pub independent: IndependentSummary,
}

/// A policy with weights of its own for every point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IndependentSummary {
    /// Bytes of its packed weights.
    pub weight_bytes: usize,
    /// Its accuracy.
    pub accuracy: f64,
    /// What an inference costs on average.
    pub energy_uj: EnergyUj,
}
