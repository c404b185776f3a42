//! How a layer runs: mode, supply, and what a MAC costs there.

use super::{EnergyError, Pricing, StagePoint};
use crate::energy::profile::AcceleratorProfile;
use crate::energy::provenance::Grade;
use crate::energy::schema::{MacTable, Match, Mode, Quantity, SupplyPoint, VoltageTransition};
use crate::energy::workload::{LayerWork, Widths};

/// How one layer runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting<'a> {
    pub(super) mode: String,
    pub(super) supply: Option<&'a str>,
    /// With what gating and zero operands save.
    pub(super) mac_pj: f64,
    /// At the utilization of the profile.
    pub(super) macs_per_us: Option<f64>,
    pub(super) frequency_mhz: Option<f64>,
    /// Leakage that the MAC's energy does not contain.
    pub(super) leakage_mw: Option<f64>,
    /// What the energy of a MAC rests on.
    pub(super) grade: Grade,
}

/// Exponent of the supply voltage's power law: chips measured at two supplies give 1.5 to 1.8 (grade
/// D); with one published point this is the middle.
const VOLTAGE_EXPONENT: f64 = 1.7;

impl<'a> Pricing<'a> {
    /// How every layer of every stage runs.
    pub(super) fn settings(&self) -> Result<Vec<Vec<Setting<'a>>>, EnergyError> {
        let layers = self.workload.layers.len();
        let stage = |stage: &StagePoint<'_>| {
            assert_eq!(stage.widths.len(), layers, "widths of every layer");
            let works = stage.widths.iter().zip(&self.workload.layers);
            works.map(|(&widths, work)| self.setting(widths, work)).collect()
        };
        let mut settings: Vec<Vec<Setting<'a>>> =
            self.stages.iter().map(stage).collect::<Result<_, _>>()?;
        if self.profile.matching.voltage_transition == VoltageTransition::None {
            let stages = settings.iter_mut().zip(self.stages);
            let run = stages.flat_map(|(settings, stage)| &mut settings[stage.shared..]);
            self.raise_supply(run.collect())?;
        }
        Ok(settings)
    }

    fn setting(&self, widths: Widths, work: &LayerWork) -> Result<Setting<'a>, EnergyError> {
        let profile = self.profile;
        let no_mode = || EnergyError::NoMode {
            layer: work.name.clone(),
            profile: profile.accelerator.id.clone(),
            weights: widths.weights,
            activations: widths.activations,
        };
        let (mode, supply, full_pj, rate, grade) = if let Some(table) = &profile.mac_table {
            let entry = match profile.matching.rule {
                Match::RoundUp => table.cheapest(widths),
                Match::ExactWeightBits => table.exact(widths),
            };
            let entry = entry.ok_or_else(no_mode)?;
            let rate = table.macs_per_cycle.as_deref().map(|rates| entry.of(rates));
            let pj = entry.of(&table.e_mac_pj);
            (entry.mode(), table.supply_point.as_deref(), pj, rate, entry.grade(profile, table))
        } else {
            let (mode, share) = mode(profile, widths).ok_or_else(no_mode)?;
            let full = mode.e_mac_pj.known();
            let full = full.ok_or_else(|| self.unknown(format!("mode.{}.e_mac_pj", mode.id)))?;
            let gated = full * share.powf(profile.matching.gating_exponent);
            let rate = mode.macs_per_cycle.and_then(Quantity::known);
            let mut grade = grade(profile, &format!("mode.{}.e_mac_pj", mode.id));
            if gated != full {
                grade = grade.max(self::grade(profile, "matching.gating_exponent"));
            }
            (mode.id.clone(), mode.supply_point.as_deref(), gated, rate, grade)
        };
        let point = supply.and_then(|id| profile.supply_points.iter().find(|s| s.id == id));
        let known = |value: Option<Quantity>| value.and_then(Quantity::known);
        let utilization = known(profile.matching.utilization_default).unwrap_or(1.0);
        let frequency_mhz = known(point.and_then(|p| p.freq_mhz));
        let saved = known(profile.matching.sparsity_gating).unwrap_or(0.0) * work.zero_macs;
        // A chip's published efficiency contains its idle units; a MAC alone does not.
        let idle = if self.is_bottom_up() { utilization } else { 1.0 };
        Ok(Setting {
            mode,
            supply,
            mac_pj: full_pj * (1.0 - saved) / idle,
            macs_per_us: rate.zip(frequency_mhz).map(|(rate, mhz)| rate * mhz * utilization),
            frequency_mhz,
            leakage_mw: known(leakage(point, profile)).filter(|_| !profile.scope.leakage),
            grade,
        })
    }

    /// Without a way to change the supply, all stages run at that of their most demanding layer.
    fn raise_supply(&self, settings: Vec<&mut Setting<'a>>) -> Result<(), EnergyError> {
        let voltage = |supply: &str| {
            let point = self.profile.supply_points.iter().find(|s| s.id == supply);
            let volt = point.and_then(|s| s.vdd).and_then(Quantity::known);
            volt.ok_or_else(|| self.unknown(format!("supply_point.{supply}.vdd")))
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
}

/// Leakage at a supply point, which replaces the profile's.
fn leakage(point: Option<&SupplyPoint>, profile: &AcceleratorProfile) -> Option<Quantity> {
    point.and_then(|p| p.leakage_mw).or(profile.leakage_mw)
}

/// What a number rests on. All numbers that are read have a grade; a default has none.
fn grade(profile: &AcceleratorProfile, key: &str) -> Grade {
    profile.grades.get(key).copied().unwrap_or(Grade::E)
}

/// The narrowest mode that covers the widths, and the share of its width that they use.
fn mode(profile: &AcceleratorProfile, widths: Widths) -> Option<(&Mode, f64)> {
    let matching = &profile.matching;
    let widest = widths.weights.max(widths.activations);
    let [weights, activations] =
        if matching.symmetric { [widest; 2] } else { [widths.weights, widths.activations] };
    let covers = |mode: &&Mode| {
        let matches = match matching.rule {
            Match::RoundUp => mode.w_bits >= weights,
            Match::ExactWeightBits => mode.w_bits == weights,
        };
        matches && mode.a_bits >= activations
    };
    let mode = profile
        .modes
        .iter()
        .filter(covers)
        .min_by_key(|m| u32::from(m.w_bits) * u32::from(m.a_bits))?;
    Some((mode, f64::from(widest) / f64::from(mode.w_bits.max(mode.a_bits))))
}

/// A place in a MAC table: a row, and a point on the line between two of its columns.
struct Entry {
    w_bits: u8,
    a_bits: u8,
    row: usize,
    columns: [usize; 2],
    /// Where between them, 0 to 1.
    along: f64,
}

impl Entry {
    fn mode(&self) -> String {
        format!("w{}a{}", self.w_bits, self.a_bits)
    }

    /// An estimate between two columns, unless one of them is worse.
    fn grade(&self, profile: &AcceleratorProfile, table: &MacTable) -> Grade {
        let whole = grade(profile, "mac_table.e_mac_pj");
        let grades = table.grade_per_point.as_ref();
        let [low, high] = self.columns.map(|column| grades.map_or(whole, |g| g[self.row][column]));
        if self.along == 0.0 { low } else { low.max(high).max(Grade::E) }
    }

    /// A straight line in the logarithm of the table's numbers.
    fn of(&self, table: &[Vec<f64>]) -> f64 {
        let [low, high] = self.columns.map(|column| table[self.row][column]);
        if self.along == 0.0 { low } else { low * (high / low).powf(self.along) }
    }
}

impl MacTable {
    /// The cheapest entry that covers both widths.
    fn cheapest(&self, widths: Widths) -> Option<Entry> {
        let rows = self.a_bits.iter().enumerate().filter(|&(_, &a)| a >= widths.activations);
        let columns = || self.w_bits.iter().enumerate().filter(|&(_, &w)| w >= widths.weights);
        rows.flat_map(|(row, &a_bits)| {
            columns().map(move |(column, &w_bits)| Entry {
                w_bits,
                a_bits,
                row,
                columns: [column; 2],
                along: 0.0,
            })
        })
        .min_by(|a, b| a.of(&self.e_mac_pj).total_cmp(&b.of(&self.e_mac_pj)))
    }

    /// Exactly the weights' width in the narrowest row that covers the activations: between two columns
    /// on a line over the logarithm of bits, before the first one what that costs.
    fn exact(&self, widths: Widths) -> Option<Entry> {
        let row = self.a_bits.iter().position(|&a| a >= widths.activations)?;
        let above = self.w_bits.iter().position(|&w| w >= widths.weights)?;
        let below =
            if self.w_bits[above] == widths.weights { above } else { above.saturating_sub(1) };
        let ratio = |of: u8| (f64::from(of) / f64::from(self.w_bits[below])).ln();
        let between = below < above;
        let along = if between { ratio(widths.weights) / ratio(self.w_bits[above]) } else { 0.0 };
        let (w_bits, a_bits) = (widths.weights, self.a_bits[row]);
        Some(Entry { w_bits, a_bits, row, columns: [below, above], along })
    }
}
