//! Energy of one inference: counts of actions times energies of actions.
//!
//! Per executed stage:
//!
//! - compute: Σ over MAC layers of MACs · e(mode) · (bits / mode bits)^gating exponent, less what zero
//!   operands save;
//! - memory: traffic of the on-chip memories that the energy of a MAC does not contain;
//! - leakage · time, where the energy of a MAC does not contain it;
//! - transitions: every change of mode, supply and clock in execution order, the way back to the first
//!   layer included;
//! - off chip: the network's input; weights and biases, unless those of all the policy's points stay on
//!   chip; activations of layers whose operand, result and residual do not fit.
//!
//! A stage that goes on from the one before pays for the layers that it runs, and for what is read
//! across the boundary where that has no place on chip: the stage before writes it, this one reads it.

mod memory;
mod setting;
mod sharing;

pub use sharing::{StagePoint, Storage};

use self::setting::Setting;
use super::profile::AcceleratorProfile;
use super::provenance::Grade;
use super::schema::{Quantity, Style, TransitionKind, VoltageTransition};
use super::workload::{Widths, Workload};

/// Energy in microjoule.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Energy {
    /// With the scope of the published efficiency; bottom up everything but off-chip traffic.
    pub chip_uj: f64,
    /// Traffic beyond it.
    pub offchip_uj: f64,
}

impl Energy {
    /// Chip and off-chip together.
    pub fn total_uj(self) -> f64 {
        self.chip_uj + self.offchip_uj
    }

    /// The energy times a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { chip_uj: self.chip_uj * factor, offchip_uj: self.offchip_uj * factor }
    }

    /// The sum of two energies.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            chip_uj: self.chip_uj + other.chip_uj,
            offchip_uj: self.offchip_uj + other.offchip_uj,
        }
    }
}

/// What one layer costs in one stage, without transitions.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerCost {
    /// Name of the mode it runs in.
    pub mode: String,
    /// What the energy of a MAC rests on there.
    pub grade: Grade,
    /// Everything.
    pub energy: Energy,
    /// Part of it that goes into MACs.
    pub compute_uj: f64,
    /// Part of it that goes into on-chip memories which a MAC's energy does not contain.
    pub memory_uj: f64,
    /// Part of it that leaks, where a MAC's energy does not contain that.
    pub leakage_uj: f64,
    /// How long it takes: the longest of computing and of each memory's traffic. None where the profile
    /// does not say.
    pub time_us: Option<f64>,
}

/// What one executed stage costs.
#[derive(Clone, Debug, PartialEq)]
pub struct StageCost {
    /// Everything.
    pub energy: Energy,
    /// Part of it that goes into changes of mode, supply, clock and weights.
    pub transitions_uj: f64,
    /// How long it takes, changes included.
    pub time_us: Option<f64>,
    /// Part of each layer; nothing for those that the stage before ran.
    pub layers: Vec<LayerCost>,
    /// Whether weights stay on chip between inferences.
    pub resident: bool,
}

/// The profile can't price this workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnergyError {
    /// No mode covers the widths.
    #[error(
        "layer `{layer}`: no mode of profile `{profile}` covers {weights}-bit weights with {activations}-bit activations"
    )]
    NoMode {
        /// The layer.
        layer: String,
        /// The profile.
        profile: String,
        /// Weight bits.
        weights: u8,
        /// Activation bits.
        activations: u8,
    },
    /// A number that is needed is unknown.
    #[error("profile `{profile}`: `{key}` is unknown, and without it no energy can be given")]
    Unknown {
        /// The profile.
        profile: String,
        /// The number.
        key: String,
    },
}

/// Costs of the stages of a policy, each as if it ran once, from the input and with weights of its
/// own. `points` holds the widths of every layer for each stage. A stage after the first pays for
/// switching from the one before and back to the first.
///
/// # Errors
///
/// When the profile has no mode or number for something.
pub fn policy_cost(
    profile: &AcceleratorProfile,
    workload: &Workload,
    points: &[&[Widths]],
) -> Result<Vec<StageCost>, EnergyError> {
    let stages: Vec<StagePoint<'_>> =
        points.iter().map(|widths| StagePoint { widths, shared: 0 }).collect();
    stage_costs(profile, workload, &stages, Storage::Independent)
}

/// As [`policy_cost`], for stages that go on from the one before.
///
/// # Errors
///
/// When the profile has no mode or number for something.
///
/// # Panics
///
/// When a stage shares layers up to where there is no boundary.
pub fn stage_costs(
    profile: &AcceleratorProfile,
    workload: &Workload,
    stages: &[StagePoint<'_>],
    storage: Storage,
) -> Result<Vec<StageCost>, EnergyError> {
    let pricing = Pricing { profile, workload, stages, storage };
    let modes = pricing.settings()?;
    let resident = pricing.is_resident();
    let mut costs: Vec<StageCost> = Vec::with_capacity(stages.len());
    for (index, (stage, settings)) in stages.iter().zip(&modes).enumerate() {
        let layers: Vec<LayerCost> = settings
            .iter()
            .enumerate()
            .map(|(layer, setting)| pricing.layer(stage, layer, setting, resident))
            .collect();
        let first = &modes[0][0];
        let mut path: Vec<&Setting<'_>> = settings[stage.shared..].iter().chain([first]).collect();
        if let Some(before) = index.checked_sub(1).and_then(|i| modes[i].last()) {
            path.insert(0, before);
        }
        let [mut transitions_uj, mut time_us] = pricing.transitions(&path);
        if !resident {
            let [energy, time] = pricing.transition(TransitionKind::Weights);
            (transitions_uj, time_us) = (transitions_uj + energy, time_us + time);
        }
        let sum = layers.iter().fold(Energy::default(), |sum, l| sum.plus(l.energy));
        let mut energy = Energy { chip_uj: sum.chip_uj + transitions_uj, ..sum };
        if stage.shared > 0 {
            let [written, read] = pricing.boundary_uj(index, resident);
            costs[index - 1].energy.offchip_uj += written;
            energy.offchip_uj += read;
        }
        let time_us = layers.iter().try_fold(time_us, |sum, l| Some(sum + l.time_us?));
        costs.push(StageCost { energy, transitions_uj, time_us, layers, resident });
    }
    Ok(costs)
}

struct Pricing<'a> {
    profile: &'a AcceleratorProfile,
    workload: &'a Workload,
    stages: &'a [StagePoint<'a>],
    storage: Storage,
}

impl Pricing<'_> {
    /// What a layer costs in a stage: nothing if the stage before ran it.
    fn layer(
        &self,
        stage: &StagePoint<'_>,
        layer: usize,
        setting: &Setting<'_>,
        resident: bool,
    ) -> LayerCost {
        let (mode, grade) = (setting.mode.clone(), setting.grade);
        if layer < stage.shared {
            let energy = Energy::default();
            let (compute_uj, memory_uj, leakage_uj, time_us) = (0.0, 0.0, 0.0, Some(0.0));
            return LayerCost { mode, grade, energy, compute_uj, memory_uj, leakage_uj, time_us };
        }
        let work = &self.workload.layers[layer];
        let [written, read] = self.offchip_bits(stage.widths, layer, resident);
        let compute_uj = work.macs as f64 * setting.mac_pj * 1e-6;
        let memory_uj = self.onchip_uj(stage.widths, layer, resident);
        let moving_us = setting.frequency_mhz.and_then(|mhz| {
            let bandwidth = self.offchip()?.bandwidth_bits_per_cycle?.known()?;
            Some((written + read) / bandwidth / mhz)
        });
        let computing_us = setting.macs_per_us.map(|rate| work.macs as f64 / rate);
        let time_us = computing_us.map(|time| time.max(moving_us.unwrap_or(0.0)));
        // Where leakage or time is not known, `not_counted` says so.
        let leakage_mw = setting.leakage_mw.unwrap_or(0.0);
        let leakage_uj = leakage_mw * time_us.unwrap_or(0.0) * 1e-3;
        let energy = Energy {
            chip_uj: compute_uj + memory_uj + leakage_uj,
            offchip_uj: self.traffic_uj(written, read).iter().sum(),
        };
        LayerCost { mode, grade, energy, compute_uj, memory_uj, leakage_uj, time_us }
    }

    /// What one change costs, in microjoule and microseconds. A kind that the profile does not list is
    /// free by its word; what it calls unknown is in its `not_counted`.
    fn transition(&self, kind: TransitionKind) -> [f64; 2] {
        let found = self.profile.transitions.iter().find(|t| t.kind == kind);
        let known = |value: Option<Quantity>| value.and_then(Quantity::known).unwrap_or(0.0);
        found.map_or([0.0; 2], |t| [known(t.energy_nj) * 1e-3, known(t.latency_us)])
    }

    /// What all changes along a path of settings cost, likewise.
    fn transitions(&self, path: &[&Setting<'_>]) -> [f64; 2] {
        let voltage = match self.profile.matching.voltage_transition {
            VoltageTransition::Onchip => Some(TransitionKind::VoltageOnchip),
            VoltageTransition::Offchip => Some(TransitionKind::VoltageOffchip),
            VoltageTransition::None => None,
        };
        let mut sum = [0.0; 2];
        for pair in path.windows(2) {
            let changes = [
                (pair[0].mode != pair[1].mode).then_some(TransitionKind::Precision),
                voltage.filter(|_| pair[0].supply != pair[1].supply),
                (pair[0].frequency_mhz != pair[1].frequency_mhz).then_some(TransitionKind::Clock),
            ];
            for kind in changes.into_iter().flatten() {
                let [energy, time] = self.transition(kind);
                sum = [sum[0] + energy, sum[1] + time];
            }
        }
        sum
    }

    fn unknown(&self, key: String) -> EnergyError {
        EnergyError::Unknown { profile: self.profile.accelerator.id.clone(), key }
    }

    fn is_bottom_up(&self) -> bool {
        self.profile.accelerator.style == Style::BottomUp
    }
}

/// Width of a layer's result: what the next layer reads.
fn result_bits(point: &[Widths], layer: usize) -> u8 {
    point.get(layer + 1).map_or(16, |next| next.activations)
}

#[cfg(test)]
mod bottom_up;
#[cfg(test)]
mod tests;
