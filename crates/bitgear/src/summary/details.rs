//! What the report shows beyond the policy's own figures: other targets, and where the energy goes.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Constraint;
use crate::certify::{Demand, decide};
use crate::energy::{Scope, StageCost, Style, Widths};
use crate::policy::EnergyUj;
use crate::search::{Candidates, Choice, Kind, Pool, Target};

/// What would be chosen for another target, by the same rules on the same samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FrontierPoint {
    /// The target: the expected accuracy drop.
    pub max_accuracy_drop: f64,
    /// The policy.
    pub policy: Alternative,
    /// The best static point of any kind.
    pub best_static: Alternative,
}

/// What another choice does on the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alternative {
    /// Its stages in the order in which they run; `w3a3+w4a4@mirror` is `w4a4` on the mirrored input,
    /// with the scores of `w3a3` added.
    pub stages: Vec<String>,
    /// Its accuracy.
    pub accuracy: f64,
    /// Accuracy of the reference minus that.
    pub accuracy_drop: f64,
    /// What an inference costs on average.
    pub energy_uj: EnergyUj,
    /// Share of all inputs that each stage hands on.
    pub escalation_rates: Vec<f64>,
}

impl Alternative {
    fn of(candidates: &Candidates, choice: &Choice, test: &[usize]) -> Self {
        let outcome = candidates.outcome(choice, test);
        Self {
            stages: choice.stages.iter().map(|&index| candidates.name(index)).collect(),
            accuracy: outcome.accuracy,
            accuracy_drop: outcome.drop,
            energy_uj: outcome.energy.into(),
            escalation_rates: outcome.escalation_rates,
        }
    }
}

/// What a stage of the policy costs each time it runs, taken apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageEnergy {
    /// Changes of mode, supply, clock and weights; part of the chip's.
    pub transitions_uj: f64,
    /// Off-chip traffic of what goes on from one stage to the next.
    pub boundary_uj: f64,
    /// What its layers cost; nothing for those that the stage before ran.
    pub layers: Vec<LayerEnergy>,
}

/// What a MAC layer costs in one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerEnergy {
    /// Name of its node.
    pub name: String,
    /// Bits of its weights.
    pub weights: u8,
    /// Bits of its input.
    pub activations: u8,
    /// Multiply-accumulates.
    pub macs: u64,
    /// What goes into MACs, with all that the profile's energy of a MAC holds.
    pub compute_uj: f64,
    /// What goes into on-chip memories beyond that.
    pub memory_uj: f64,
    /// What leaks beyond that.
    pub leakage_uj: f64,
    /// Off-chip traffic.
    pub offchip_uj: f64,
}

/// Targets of the frontier, as multiples of the one that was asked for.
const MULTIPLES: [f64; 22] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0,
    5.0, 7.0, 10.0,
];
/// Stands for a target of 0, of which there are no multiples.
const USUAL_TARGET: f64 = 0.005;

/// Targets around the one that was asked for, rising; beyond a guarantee nothing is chosen for its
/// target.
pub(crate) fn targets_around(constraint: &Constraint) -> Vec<f64> {
    let target = constraint.max_accuracy_drop;
    let unit = if target > 0.0 { target } else { USUAL_TARGET };
    // Without the digits that binary fractions add; the one that was asked for stays as it is.
    let round = |multiple: f64| (1e9 * multiple * unit).round() / 1e9;
    let targets = MULTIPLES.iter().map(|&m| if m == 1.0 { unit } else { round(m) });
    let most = constraint.guarantee.unwrap_or(1.0).max(unit);
    targets.filter(|&target| target <= most).collect()
}

/// What would be chosen for each target, of the pool that `choice` was chosen from.
pub(super) fn frontier(
    candidates: &Candidates,
    [choosing, proving, test]: [&[usize]; 3],
    demand: Demand,
    choice: &Choice,
    targets: &[f64],
    seed: u64,
) -> Vec<FrontierPoint> {
    let chosen = |drop: f64, pool| {
        let target = Target { drop, ..demand.target };
        let demand = Demand { target, max_energy_uj: None, ..demand };
        let choice = decide(candidates, choosing, proving, &demand, pool, seed).choice;
        Alternative::of(candidates, &choice, test)
    };
    let pool = pool_of(candidates, choice);
    let point = |&max_accuracy_drop: &f64| FrontierPoint {
        max_accuracy_drop,
        policy: chosen(max_accuracy_drop, pool),
        best_static: chosen(max_accuracy_drop, Pool::Static),
    };
    targets.par_iter().map(point).collect()
}

/// What would be chosen for the same target if it had to lose no more than the best static point, where that is
/// another than `choice`.
pub(super) fn no_worse(
    candidates: &Candidates,
    [choosing, proving, test]: [&[usize]; 3],
    demand: Demand,
    choice: &Choice,
    seed: u64,
) -> Option<Alternative> {
    let target = Target { no_worse: true, ..demand.target };
    let demand = Demand { target, ..demand };
    let pool = pool_of(candidates, choice);
    let other = decide(candidates, choosing, proving, &demand, pool, seed).choice;
    (other != *choice).then(|| Alternative::of(candidates, &other, test))
}

/// The pool that a policy was chosen from.
fn pool_of(candidates: &Candidates, choice: &Choice) -> Pool {
    let nested = candidates.stages(choice).any(|info| info.kind == Kind::Nested);
    if nested { Pool::Nested } else { Pool::Policies }
}

/// The costs of a choice's stages, taken apart.
pub(super) fn stage_energies(candidates: &Candidates, choice: &Choice) -> Vec<StageEnergy> {
    let layers = |cost: &StageCost, widths: &[Widths]| {
        let of_layers = cost.layers.iter().zip(widths).zip(&candidates.workload().layers);
        of_layers
            .map(|((cost, widths), work)| LayerEnergy {
                name: work.name.clone(),
                weights: widths.weights,
                activations: widths.activations,
                macs: work.macs,
                compute_uj: cost.compute_uj,
                memory_uj: cost.memory_uj,
                leakage_uj: cost.leakage_uj,
                offchip_uj: cost.energy.offchip_uj,
            })
            .collect::<Vec<_>>()
    };
    let costs = candidates.stage_costs(choice);
    let stages = costs.iter().zip(candidates.stages(choice));
    stages
        .map(|(cost, info)| {
            let layers = layers(cost, &info.widths);
            let in_layers: f64 = layers.iter().map(|layer| layer.offchip_uj).sum();
            StageEnergy {
                transitions_uj: cost.transitions_uj,
                boundary_uj: cost.energy.offchip_uj - in_layers,
                layers,
            }
        })
        .collect()
}

/// What the energy of a MAC holds: `mac` alone, or all that the profile's scope lists.
pub(super) fn mac_holds(style: Style, scope: &Scope) -> Vec<String> {
    if style == Style::BottomUp {
        return vec!["mac".to_owned()];
    }
    let parts = [
        ("mac", scope.mac),
        ("on-chip memory", scope.onchip_sram),
        ("control", scope.control),
        ("leakage", scope.leakage),
        ("off-chip memory", scope.dram),
        ("pads", scope.io),
        ("regulator", scope.regulator),
    ];
    parts.iter().filter(|(_, held)| *held).map(|(name, _)| (*name).to_owned()).collect()
}
