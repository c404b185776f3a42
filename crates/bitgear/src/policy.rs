//! `policy.json`: the stages of a policy, what it is expected to do, and where it comes from.

use bitgear_core::policy::Gate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::certify::Certificate;
use crate::energy::Energy;
use crate::search::{Candidates, Choice, Outcome, PointInfo, Sum};
use crate::trace::{Trace, View};

/// What an artefact depends on. Equal provenance means equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of bitgear.
    pub tool_version: String,
    /// SHA-256 of the model's file.
    pub model_sha256: String,
    /// SHA-256 of the evaluated data.
    pub data_sha256: String,
    /// SHA-256 of the calibration data.
    pub calibration_sha256: String,
    /// SHA-256 of the accelerator profile.
    pub accelerator_sha256: String,
    /// Seed of everything random.
    pub seed: u64,
}

/// Energy in microjoule per inference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnergyUj {
    /// Chip and off-chip traffic.
    pub total: f64,
    /// With the scope of the published efficiency.
    pub chip: f64,
    /// Traffic beyond it.
    pub offchip: f64,
}

impl From<Energy> for EnergyUj {
    fn from(energy: Energy) -> Self {
        Self { total: energy.total_uj(), chip: energy.chip_uj, offchip: energy.offchip_uj }
    }
}

/// What a learned gate takes off the margin, in units of the score scale.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tables {
    /// Indexed by the predicted class.
    pub predicted: Vec<i32>,
    /// Indexed by the class with the second-highest score.
    pub runner_up: Vec<i32>,
    /// Where the stage before answered otherwise; absent where that says nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disagreement: i32,
}

fn is_zero(entry: &i32) -> bool {
    *entry == 0
}

/// A threshold on the margin, less what the tables say, if there are any.
pub fn gate(accept_at: i32, tables: Option<&Tables>) -> Gate<'_> {
    match tables {
        None => Gate::margin(accept_at),
        Some(Tables { predicted, runner_up, disagreement }) => {
            Gate { accept_at, predicted, runner_up, disagreement: *disagreement }
        }
    }
}

/// How a stage's scores are summed with those of the stage before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SumFile {
    /// How much a unit of the earlier scores counts beside one of this stage's, in real units.
    pub weight: f64,
    /// The same in integer units of both: what a device multiplies by.
    pub factor: f32,
}

/// A stage that may hand on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageFile {
    /// Name of its operating point.
    pub point: String,
    /// `as-is` or `mirror`.
    pub view: String,
    /// `replace`: its scores stand alone; `sum`: those of the stage before are added.
    pub scores: String,
    /// With which weight; absent for `replace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<SumFile>,
    /// Leading MAC layers that the stage before ran for it.
    #[serde(default)]
    pub shared_layers: usize,
    /// Smallest accepted score margin, less the tables' entries, in the unit of the scores.
    pub accept_at: f64,
    /// The same in integer units: what a device compares.
    pub accept_at_code: i32,
    /// Worth of an integer unit.
    pub score_scale: f64,
    /// What a learned gate takes off the margin, in integer units; absent for the plain margin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Tables>,
}

/// The stage that always answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastResort {
    /// Name of its operating point.
    pub point: String,
    /// `as-is` or `mirror`.
    pub view: String,
    /// `replace`: its scores stand alone; `sum`: those of the stage before are added.
    pub scores: String,
    /// With which weight; absent for `replace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<SumFile>,
    /// Leading MAC layers that the stage before ran for it.
    #[serde(default)]
    pub shared_layers: usize,
}

/// What the policy did on the samples that it was chosen on: optimistic, see `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Share of right answers.
    pub accuracy: f64,
    /// Accuracy of the reference minus that.
    pub accuracy_drop: f64,
    /// Share of all inputs that each stage hands on.
    pub escalation_rates: Vec<f64>,
    /// Mean energy of an inference.
    pub energy_uj: EnergyUj,
}

/// `policy.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Version of this format: 1.
    pub schema_version: u32,
    /// What it depends on.
    pub provenance: Provenance,
    /// Stages before the last resort, in order.
    pub stages: Vec<StageFile>,
    /// The stage that always answers.
    pub last_resort: LastResort,
    /// What each stage costs when it runs, the last resort included.
    pub stage_energy_uj: Vec<EnergyUj>,
    /// What it did on the samples that chose it.
    pub expected: Expected,
    /// What was proved of its drop; null where nothing was.
    pub certificate: Option<Certificate>,
}

/// The policy contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy: {0}")]
pub struct InvalidPolicy(String);

impl PolicyFile {
    /// The file of a choice.
    pub(crate) fn new(
        trace: &Trace,
        candidates: &Candidates,
        choice: &Choice,
        expected: &Outcome,
        certificate: Option<Certificate>,
        provenance: Provenance,
    ) -> Self {
        let infos: Vec<&PointInfo> = candidates.stages(choice).collect();
        let shared = candidates.shared_layers(choice);
        let sums: Vec<Option<SumFile>> = choice
            .stages
            .iter()
            .map(|&index| candidates.sum(index))
            .map(|sum| sum.map(|Sum { weight, factor, .. }| SumFile { weight, factor }))
            .collect();
        let scores =
            |sum: Option<SumFile>| if sum.is_some() { "sum" } else { "replace" }.to_owned();
        let stages = infos.iter().zip(&shared).zip(&sums).zip(&choice.gates);
        let stages = stages.map(|(((info, &shared_layers), &sum), gate)| {
            let block = trace.block(&info.point, info.view).expect("candidates were traced");
            StageFile {
                point: info.point.clone(),
                view: info.view.name().to_owned(),
                scores: scores(sum),
                sum,
                shared_layers,
                accept_at: f64::from(gate.accept_at) * block.score_scale,
                accept_at_code: gate.accept_at,
                score_scale: block.score_scale,
                tables: gate.tables.clone(),
            }
        });
        let last = infos.last().expect("a choice has a stage");
        Self {
            schema_version: 1,
            provenance,
            stages: stages.collect(),
            last_resort: LastResort {
                point: last.point.clone(),
                view: last.view.name().to_owned(),
                scores: scores(sums[sums.len() - 1]),
                sum: sums[sums.len() - 1],
                shared_layers: shared[shared.len() - 1],
            },
            stage_energy_uj: candidates
                .stage_energies(choice)
                .into_iter()
                .map(Into::into)
                .collect(),
            expected: Expected {
                accuracy: expected.accuracy,
                accuracy_drop: expected.drop,
                escalation_rates: expected.escalation_rates.clone(),
                energy_uj: expected.energy.into(),
            },
            certificate,
        }
    }

    /// Checks a policy that comes from a file.
    ///
    /// # Errors
    ///
    /// What contradicts what.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        let fail = |reason: String| Err(InvalidPolicy(reason));
        if self.schema_version != 1 {
            return fail(format!("`schema_version` must be 1, got {}", self.schema_version));
        }
        let stages = self.stages.len() + 1;
        if self.stage_energy_uj.len() != stages {
            return fail(format!(
                "expected {stages} stage energies, got {}",
                self.stage_energy_uj.len()
            ));
        }
        if let Some(&layers) = self.shared_layers().first().filter(|&&layers| layers > 0) {
            return fail(format!("the first stage shares no layers, got `shared_layers` {layers}"));
        }
        if self.certificate.as_ref().is_some_and(|c| !c.footprint.fits(stages)) {
            return fail(format!("the certificate's footprint is not one of {stages} stages"));
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let disagreement = stage.tables.as_ref().map_or(0, |tables| tables.disagreement);
            if disagreement < 0 || (index == 0 && disagreement > 0) {
                return fail(format!(
                    "`disagreement` must be at least 0, and 0 in the first stage, got {disagreement}"
                ));
            }
        }
        let views = self.stages.iter().map(|stage| &stage.view);
        if let Some(view) =
            views.chain([&self.last_resort.view]).find(|view| View::from_name(view).is_none())
        {
            return fail(format!("view must be `as-is` or `mirror`, got `{view}`"));
        }
        let scores = self.stages.iter().map(|stage| (stage.scores.as_str(), stage.sum));
        let mut before = None;
        for (scores, sum) in scores.chain([(&self.last_resort.scores[..], self.last_resort.sum)]) {
            match (scores, sum) {
                ("replace", None) => {}
                ("sum", Some(sum)) if before == Some("replace") && sum.factor.is_finite() => {}
                ("sum", Some(_)) => {
                    return fail(
                        "`sum` needs a finite factor and a stage before whose scores are `replace`"
                            .to_owned(),
                    );
                }
                _ => {
                    return fail(format!(
                        "scores must be `replace`, or `sum` with weight and factor, got `{scores}`"
                    ));
                }
            }
            before = Some(scores);
        }
        Ok(())
    }

    /// The gates of all stages but the last resort.
    pub fn gates(&self) -> impl Iterator<Item = Gate<'_>> {
        self.stages.iter().map(|stage| gate(stage.accept_at_code, stage.tables.as_ref()))
    }

    /// View and summing factor of all stages, the last resort included.
    pub fn views_and_factors(&self) -> impl Iterator<Item = (View, Option<f32>)> {
        let stages = self.stages.iter().map(|stage| (&stage.view, stage.sum));
        stages.chain([(&self.last_resort.view, self.last_resort.sum)]).map(|(view, sum)| {
            (View::from_name(view).unwrap_or(View::AsIs), sum.map(|sum| sum.factor))
        })
    }

    /// Names of the points, stage by stage, the last resort included.
    pub fn points(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().map(|s| s.point.as_str()).chain([self.last_resort.point.as_str()])
    }

    /// Leading MAC layers that each stage, the last resort included, leaves to the one before.
    pub fn shared_layers(&self) -> Vec<usize> {
        let stages = self.stages.iter().map(|stage| stage.shared_layers);
        stages.chain([self.last_resort.shared_layers]).collect()
    }
}
