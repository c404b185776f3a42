//! Energy of one inference: counts of actions times energies of actions.
//!
//! For `chip_total` profiles, per executed stage:
//!
//! - chip: Σ over MAC layers of MACs · e(mode) · (bits / mode bits)^gating exponent, plus every
//!   change of mode and supply in execution order, the way back to the first layer included;
//! - off chip: the network's input; weights and biases, unless those of all the policy's points and
//!   the largest live activations fit into the on-chip memory together; activations of layers whose
//!   operand, result and residual do not fit.
//!
//! A stage that goes on from the one before pays for the layers that it runs, and for what is read
//! across the boundary where that has no place on chip: the stage before writes it, this one reads it.
//!
//! The published efficiency already contains utilization, on-chip memory, control and leakage.

mod sharing;

pub use sharing::{Live, StagePoint, Storage};

use self::sharing::SIDE_PATH_BITS;
use super::profile::AcceleratorProfile;
use super::schema::{
    MacTable, Match, Memory, Mode, Quantity, Style, TransitionKind, VoltageTransition,
};

/// Bit-widths of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Widths {
    /// Of its weights.
    pub weights: u8,
    /// Of its input.
    pub activations: u8,
}

/// Counts of one MAC layer, for one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerWork {
    /// Name of the layer.
    pub name: String,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Weights.
    pub weights: u64,
    /// Biases, of 32 bits each.
    pub biases: u64,
    /// Elements of its operand.
    pub inputs: u64,
    /// Elements of its result.
    pub outputs: u64,
    /// Elements of an addition's other operand that is fused into the layer.
    pub residual: u64,
    /// What is made before this layer and read from it on; `None` where no later stage can take
    /// over.
    pub boundary: Option<Vec<Live>>,
}

/// Counts of one model, in execution order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its MAC layers.
    pub layers: Vec<LayerWork>,
}

impl Workload {
    /// All multiply-accumulates.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|l| l.macs).sum()
    }
}

/// Energy in microjoule.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Energy {
    /// With the scope of the published efficiency.
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

/// What one layer costs in one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerCost {
    /// Name of the mode it runs in.
    pub mode: String,
    /// Without transitions.
    pub energy: Energy,
}

/// What one executed stage costs.
#[derive(Clone, Debug, PartialEq)]
pub struct StageCost {
    /// Everything.
    pub energy: Energy,
    /// Part of it that goes into changes of mode and supply.
    pub transitions_uj: f64,
    /// Part of it of each layer; nothing for those that the stage before ran.
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
    /// Bottom-up profiles need an on-chip memory model.
    #[error(
        "profile `{0}` has style `bottom_up`, which can be read but not evaluated yet; use a `chip_total` profile"
    )]
    BottomUp(String),
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
    let id = || profile.accelerator.id.clone();
    if profile.accelerator.style == Style::BottomUp {
        return Err(EnergyError::BottomUp(id()));
    }
    let pricing = Pricing { profile, workload, stages, storage };
    let modes: Vec<Vec<Setting<'_>>> =
        stages.iter().map(|&stage| pricing.settings(stage)).collect::<Result<_, _>>()?;
    let resident = pricing.is_resident();
    let mut costs: Vec<StageCost> = Vec::with_capacity(stages.len());
    for (index, (stage, settings)) in stages.iter().zip(&modes).enumerate() {
        let mut layers = Vec::with_capacity(settings.len());
        for (layer, setting) in settings.iter().enumerate() {
            let mut energy = Energy::default();
            if layer >= stage.shared {
                energy.chip_uj = workload.layers[layer].macs as f64 * setting.mac_pj * 1e-6;
                energy.offchip_uj = pricing.offchip_uj(stage.widths, layer, resident);
            }
            layers.push(LayerCost { mode: setting.mode.clone(), energy });
        }
        let first = &modes[0][0];
        let mut path: Vec<&Setting<'_>> = settings[stage.shared..].iter().chain([first]).collect();
        if let Some(before) = index.checked_sub(1).and_then(|i| modes[i].last()) {
            path.insert(0, before);
        }
        let transitions_uj = pricing.transitions_uj(&path);
        let sum = layers.iter().fold(Energy::default(), |sum, l| sum.plus(l.energy));
        let mut energy = Energy { chip_uj: sum.chip_uj + transitions_uj, ..sum };
        if stage.shared > 0 {
            let [written, read] = pricing.boundary_uj(index, resident);
            costs[index - 1].energy.offchip_uj += written;
            energy.offchip_uj += read;
        }
        costs.push(StageCost { energy, transitions_uj, layers, resident });
    }
    Ok(costs)
}

/// How one layer runs.
#[derive(Clone, Debug, PartialEq)]
struct Setting<'a> {
    mode: String,
    supply: Option<&'a str>,
    mac_pj: f64,
}

impl MacTable {
    /// The cheapest entry that covers both widths: (weights, activations, picojoule).
    fn cheapest(&self, widths: Widths) -> Option<(u8, u8, f64)> {
        let entries = self.a_bits.iter().zip(&self.e_mac_pj).flat_map(|(&a_bits, row)| {
            self.w_bits.iter().zip(row).map(move |(&w_bits, &pj)| (w_bits, a_bits, pj))
        });
        entries
            .filter(|&(w, a, _)| w >= widths.weights && a >= widths.activations)
            .min_by(|a, b| a.2.total_cmp(&b.2))
    }

    /// The entry of exactly the weights' width in the narrowest row that covers the activations:
    /// between columns a straight line in log(energy) over log(bits), outside the nearest column.
    fn interpolated(&self, widths: Widths) -> Option<(u8, u8, f64)> {
        let rows = self.a_bits.iter().zip(&self.e_mac_pj);
        let (&a_bits, row) =
            rows.filter(|&(&a, _)| a >= widths.activations).min_by_key(|&(&a, _)| a)?;
        let columns = || self.w_bits.iter().zip(row);
        let (&above, &high) =
            columns().filter(|&(&w, _)| w >= widths.weights).min_by_key(|&(&w, _)| w)?;
        let below = columns().filter(|&(&w, _)| w <= widths.weights).max_by_key(|&(&w, _)| w);
        let pj = match below {
            Some((&below, &low)) if below < above => {
                let ratio = |of: u8| (f64::from(of) / f64::from(below)).ln();
                low * (high / low).powf(ratio(widths.weights) / ratio(above))
            }
            _ => high,
        };
        Some((widths.weights, a_bits, pj))
    }
}

/// Share of the supply voltage's power law: chips measured at two supplies give exponents of 1.5 to
/// 1.8 (grade D); with one published point this is the middle.
const VOLTAGE_EXPONENT: f64 = 1.7;

struct Pricing<'a> {
    profile: &'a AcceleratorProfile,
    workload: &'a Workload,
    stages: &'a [StagePoint<'a>],
    storage: Storage,
}

impl<'a> Pricing<'a> {
    fn settings(&self, stage: StagePoint<'_>) -> Result<Vec<Setting<'a>>, EnergyError> {
        assert_eq!(stage.widths.len(), self.workload.layers.len(), "widths of every layer");
        let mut settings: Vec<Setting<'a>> = stage
            .widths
            .iter()
            .zip(&self.workload.layers)
            .map(|(&widths, work)| self.setting(widths, work))
            .collect::<Result<_, _>>()?;
        if self.profile.matching.voltage_transition == VoltageTransition::None {
            self.raise_supply(&mut settings[stage.shared..])?;
        }
        Ok(settings)
    }

    fn setting(&self, widths: Widths, work: &LayerWork) -> Result<Setting<'a>, EnergyError> {
        let no_mode = || EnergyError::NoMode {
            layer: work.name.clone(),
            profile: self.profile.accelerator.id.clone(),
            weights: widths.weights,
            activations: widths.activations,
        };
        if let Some(table) = &self.profile.mac_table {
            let entry = match self.profile.matching.rule {
                Match::RoundUp => table.cheapest(widths),
                Match::ExactWeightBits => table.interpolated(widths),
            };
            let (w_bits, a_bits, mac_pj) = entry.ok_or_else(no_mode)?;
            return Ok(Setting {
                mode: format!("w{w_bits}a{a_bits}"),
                supply: table.supply_point.as_deref(),
                mac_pj,
            });
        }
        let matching = &self.profile.matching;
        let widest = widths.weights.max(widths.activations);
        let needed = |mode: &Mode| {
            let weights = if matching.symmetric { widest } else { widths.weights };
            match matching.rule {
                Match::RoundUp => mode.w_bits >= weights,
                Match::ExactWeightBits => mode.w_bits == weights,
            }
        };
        let activations = if matching.symmetric { widest } else { widths.activations };
        let mode = self
            .profile
            .modes
            .iter()
            .filter(|m| needed(m) && m.a_bits >= activations)
            .min_by_key(|m| u32::from(m.w_bits) * u32::from(m.a_bits))
            .ok_or_else(no_mode)?;
        let full = mode
            .e_mac_pj
            .known()
            .ok_or_else(|| self.unknown(format!("mode.{}.e_mac_pj", mode.id)))?;
        let share = f64::from(widest) / f64::from(mode.w_bits.max(mode.a_bits));
        Ok(Setting {
            mode: mode.id.clone(),
            supply: mode.supply_point.as_deref(),
            mac_pj: full * share.powf(matching.gating_exponent),
        })
    }

    /// Without a way to change the supply, everything runs at that of the most demanding layer.
    fn raise_supply(&self, settings: &mut [Setting<'a>]) -> Result<(), EnergyError> {
        let voltage = |supply: &str| {
            self.profile
                .supply_points
                .iter()
                .find(|s| s.id == supply)
                .and_then(|s| s.vdd)
                .and_then(Quantity::known)
                .ok_or_else(|| self.unknown(format!("supply_point.{supply}.vdd")))
        };
        let mut supplies: Vec<&str> = settings.iter().filter_map(|s| s.supply).collect();
        supplies.sort_unstable();
        supplies.dedup();
        if supplies.len() < 2 {
            return Ok(());
        }
        let mut highest = (0.0, supplies[0]);
        for supply in supplies {
            let volt = voltage(supply)?;
            if volt > highest.0 {
                highest = (volt, supply);
            }
        }
        for setting in settings {
            if let Some(supply) = setting.supply {
                setting.mac_pj *= (highest.0 / voltage(supply)?).powf(VOLTAGE_EXPONENT);
                setting.supply = Some(highest.1);
            }
        }
        Ok(())
    }

    fn onchip_bits(&self) -> Option<f64> {
        let memory = self.profile.memories.iter().find(|m| m.in_mac_energy)?;
        memory.size_bytes.and_then(Quantity::known).map(|bytes| bytes * 8.0)
    }

    fn offchip(&self) -> Option<&Memory> {
        self.profile.memories.iter().find(|m| !m.in_mac_energy)
    }

    fn stored(&self, elements: u64, bits: u8) -> f64 {
        let bits = self.offchip().map_or(u64::from(bits), |m| m.packing.stored_bits(bits));
        (elements * bits) as f64
    }

    /// Bits that must be held while a layer runs; a residual keeps at least 8 bits.
    fn live_bits(&self, point: &[Widths], layer: usize) -> f64 {
        let work = &self.workload.layers[layer];
        let activations = point[layer].activations;
        self.stored(work.inputs, activations)
            + self.stored(work.outputs, result_bits(point, layer))
            + self.stored(work.residual, activations.max(SIDE_PATH_BITS))
    }

    /// The most bits that must be held while the layers from `first` on run.
    fn most_live_bits(&self, point: &[Widths], first: usize) -> f64 {
        let layers = first..self.workload.layers.len();
        layers.map(|layer| self.live_bits(point, layer)).fold(0.0, f64::max)
    }

    fn is_resident(&self) -> bool {
        let live = self.stages.iter().map(|s| self.most_live_bits(s.widths, s.shared));
        let bits = self.all_weight_bits() + live.fold(0.0, f64::max);
        self.onchip_bits().is_some_and(|capacity| bits <= capacity)
    }

    fn spills(&self, point: &[Widths], layer: usize) -> bool {
        self.onchip_bits().is_none_or(|capacity| self.live_bits(point, layer) > capacity)
    }

    fn offchip_uj(&self, point: &[Widths], layer: usize, resident: bool) -> f64 {
        let work = &self.workload.layers[layer];
        let spills = self.spills(point, layer);
        let (mut read, mut written) = (0.0, 0.0);
        if !resident {
            read += self.weight_bits(point, layer);
        }
        if spills || layer == 0 {
            read += self.stored(work.inputs, point[layer].activations);
        }
        if spills {
            read += self.stored(work.residual, point[layer].activations.max(SIDE_PATH_BITS));
            written += self.stored(work.outputs, result_bits(point, layer));
        }
        self.traffic_uj(written, read).iter().sum()
    }

    /// Energy of off-chip traffic: \[written, read\].
    fn traffic_uj(&self, written: f64, read: f64) -> [f64; 2] {
        let Some(memory) = self.offchip() else {
            return [0.0; 2];
        };
        // What is unknown is listed in the profile's `not_counted`.
        let energy = |bits: f64, value: Option<Quantity>| {
            value.and_then(Quantity::known).map_or(0.0, |pj| bits * pj * 1e-6)
        };
        [energy(written, memory.write_pj_per_bit), energy(read, memory.read_pj_per_bit)]
    }

    fn transitions_uj(&self, path: &[&Setting<'_>]) -> f64 {
        // A kind that the profile does not list is free by its word.
        let cost = |kind: TransitionKind| {
            let found = self.profile.transitions.iter().find(|t| t.kind == kind);
            found.and_then(|t| t.energy_nj).and_then(Quantity::known).unwrap_or(0.0) * 1e-3
        };
        let voltage = match self.profile.matching.voltage_transition {
            VoltageTransition::Onchip => Some(TransitionKind::VoltageOnchip),
            VoltageTransition::Offchip => Some(TransitionKind::VoltageOffchip),
            VoltageTransition::None => None,
        };
        let mut sum = 0.0;
        for pair in path.windows(2) {
            if pair[0].mode != pair[1].mode {
                sum += cost(TransitionKind::Precision);
            }
            if pair[0].supply != pair[1].supply
                && let Some(kind) = voltage
            {
                sum += cost(kind);
            }
        }
        sum
    }

    fn unknown(&self, key: String) -> EnergyError {
        EnergyError::Unknown { profile: self.profile.accelerator.id.clone(), key }
    }
}

/// Width of a layer's result: what the next layer reads.
fn result_bits(point: &[Widths], layer: usize) -> u8 {
    point.get(layer + 1).map_or(16, |next| next.activations)
}

#[cfg(test)]
mod tests;
