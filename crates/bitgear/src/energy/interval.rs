//! How far a figure moves within what a profile's numbers may be.

use super::model::{Energy, EnergyError, StagePoint, Storage, stage_costs};
use super::profile::AcceleratorProfile;
use super::schema::Quantity;
use super::workload::Workload;

/// A figure with the interval that the uncertainty of its profile gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// At the profile's own numbers.
    pub central: f64,
    /// Upper end.
    pub high: f64,
    /// The number that moves the figure most; none where nothing does.
    pub most: Option<String>,
}

/// A figure of a profile with its interval.
///
/// Each uncertain number goes to its lower and to its upper bound while the others stay; deviations of
/// the figure are summed up as independent ones are, by the root of their squares. Numbers without
/// bounds of their own have the profile's relative uncertainty. What is computed anew each time is
/// everything that depends on the profile, so a figure that compares two policies keeps what they have
/// in common.
///
/// # Errors
///
/// Those of the figure.
pub fn interval<E>(
    profile: &AcceleratorProfile,
    figure: impl Fn(&AcceleratorProfile) -> Result<f64, E>,
) -> Result<Interval, E> {
    let central = figure(profile)?;
    let (mut below, mut above, mut most) = (0.0, 0.0, (0.0, None));
    for (name, ends) in variants(profile) {
        let moved = [figure(&ends[0])? - central, figure(&ends[1])? - central];
        let down = moved[0].min(moved[1]).min(0.0);
        let up = moved[0].max(moved[1]).max(0.0);
        below += down * down;
        above += up * up;
        if up - down > most.0 {
            most = (up - down, Some(name));
        }
    }
    Ok(Interval {
        low: central - below.sqrt(),
        central,
        high: central + above.sqrt(),
        most: most.1,
    })
}

/// Mean energy of an inference: each stage's energy times the share of inputs that reach it.
///
/// # Errors
///
/// When the profile has no mode or number for something.
pub fn mean_energy(
    profile: &AcceleratorProfile,
    workload: &Workload,
    stages: &[StagePoint<'_>],
    storage: Storage,
    shares: &[f64],
) -> Result<Energy, EnergyError> {
    let costs = stage_costs(profile, workload, stages, storage)?;
    let mean =
        |sum: Energy, (share, cost): (&f64, &super::StageCost)| sum.plus(cost.energy.times(*share));
    Ok(shares.iter().zip(&costs).fold(Energy::default(), mean))
}

type Profiles = [AcceleratorProfile; 2];

/// The profile with each uncertain number at its lower and at its upper bound.
fn variants(profile: &AcceleratorProfile) -> Vec<(String, Profiles)> {
    let rel = profile.uncertainty.unwrap_or(0.0);
    let bounds = |value: f64, lo: Option<f64>, hi: Option<f64>| match (lo, hi) {
        (None, None) => [value * (1.0 - rel), value * (1.0 + rel)],
        (lo, hi) => [lo.unwrap_or(value), hi.unwrap_or(value)],
    };
    let mut all = Vec::new();
    let mut add =
        |name: String, value: f64, ends: [f64; 2], set: &dyn Fn(&mut AcceleratorProfile, f64)| {
            if ends.iter().all(|&end| end == value) {
                return;
            }
            let moved = ends.map(|end| {
                let mut moved = profile.clone();
                set(&mut moved, end);
                moved
            });
            all.push((name, moved));
        };
    for (index, mode) in profile.modes.iter().enumerate() {
        if let Some(pj) = mode.e_mac_pj.known() {
            let ends = bounds(pj, mode.e_mac_pj_lo, mode.e_mac_pj_hi);
            add(format!("mode.{}.e_mac_pj", mode.id), pj, ends, &|profile, pj| {
                profile.modes[index].e_mac_pj = Quantity::Known(pj);
            });
        }
    }
    if let Some(table) = &profile.mac_table {
        for (row, a_bits) in table.a_bits.iter().enumerate() {
            for (column, w_bits) in table.w_bits.iter().enumerate() {
                let pj = table.e_mac_pj[row][column];
                let name = format!("mac_table.e_mac_pj of w{w_bits}a{a_bits}");
                add(name, pj, bounds(pj, None, None), &|profile, pj| {
                    if let Some(table) = &mut profile.mac_table {
                        table.e_mac_pj[row][column] = pj;
                    }
                });
            }
        }
    }
    let matching = &profile.matching;
    let exponent = matching.gating_exponent;
    let ends = [matching.gating_exponent_lo, matching.gating_exponent_hi];
    let ends = ends.map(|end| end.unwrap_or(exponent));
    add("matching.gating_exponent".to_owned(), exponent, ends, &|profile, exponent| {
        profile.matching.gating_exponent = exponent;
    });
    for (index, memory) in profile.memories.iter().enumerate() {
        let prices = [
            (memory.read_pj_per_bit, memory.read_pj_per_bit_lo, memory.read_pj_per_bit_hi),
            (memory.write_pj_per_bit, memory.write_pj_per_bit_lo, memory.write_pj_per_bit_hi),
        ];
        // What makes reading dearer makes writing dearer too: both move together, by the same factor.
        let known = prices.iter().find_map(|&(value, lo, hi)| Some((value?.known()?, lo, hi)));
        if let Some((pj, lo, hi)) = known {
            let ends = bounds(pj, lo, hi).map(|end| end / pj);
            add(format!("memory.{}", memory.name), 1.0, ends, &|profile, factor| {
                let memory = &mut profile.memories[index];
                for price in [&mut memory.read_pj_per_bit, &mut memory.write_pj_per_bit] {
                    *price = price.map(|price| price.times(factor));
                }
            });
        }
    }
    if let Some(leakage) = profile.leakage_mw.and_then(Quantity::known) {
        add(
            "static.leakage_mw".to_owned(),
            leakage,
            bounds(leakage, None, None),
            &|profile, mw| {
                profile.leakage_mw = Some(Quantity::Known(mw));
            },
        );
    }
    for (index, transition) in profile.transitions.iter().enumerate() {
        if let Some(nj) = transition.energy_nj.and_then(Quantity::known) {
            let ends = bounds(nj, transition.energy_nj_lo, transition.energy_nj_hi);
            let name = format!("transition.{:?}.energy_nj", transition.kind);
            add(name, nj, ends, &|profile, nj| {
                profile.transitions[index].energy_nj = Some(Quantity::Known(nj));
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::energy::{LayerWork, Widths};

    fn energy(bits: u8) -> impl Fn(&AcceleratorProfile) -> Result<f64, EnergyError> {
        move |profile| {
            let layer = LayerWork { macs: 1_000_000, ..LayerWork::default() };
            let widths = [Widths { weights: bits, activations: bits }];
            let stage = StagePoint { widths: &widths, shared: 0 };
            let workload = Workload { layers: vec![layer] };
            let energy = mean_energy(profile, &workload, &[stage], Storage::Independent, &[1.0])?;
            Ok(energy.chip_uj)
        }
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got}, not {expected}");
    }

    #[test]
    fn a_single_number_gives_its_own_bounds() {
        let envision = AcceleratorProfile::find("envision-28nm").unwrap();
        let wide = interval(&envision, energy(8)).unwrap();
        assert_eq!((wide.low, wide.central, wide.high), (1.3, 1.9, 2.6));
        assert_eq!(wide.most.as_deref(), Some("mode.2x8b.e_mac_pj"));
    }

    #[test]
    fn independent_numbers_add_up_by_their_squares() {
        let envision = AcceleratorProfile::find("envision-28nm").unwrap();
        let gated = interval(&envision, energy(3)).unwrap();
        let at = |pj: f64, exponent: f64| pj * 0.75_f64.powf(exponent);
        let central = at(0.474, 0.61);
        close(gated.central, central);
        let down = (at(0.20, 0.61) - central).hypot(at(0.474, 0.99) - central);
        let up = (at(0.50, 0.61) - central).hypot(at(0.474, 0.0) - central);
        close(gated.low, central - down);
        close(gated.high, central + up);
    }

    #[test]
    fn what_two_policies_have_in_common_cancels() {
        let unpu = AcceleratorProfile::find("unpu-65nm").unwrap();
        let same = interval(&unpu, |profile| {
            Ok::<_, EnergyError>(1.0 - energy(4)(profile)? / energy(4)(profile)?)
        });
        let same = same.unwrap();
        assert_eq!((same.low, same.central, same.high, same.most), (0.0, 0.0, 0.0, None));
        // Two entries of a table at 15 %: 1 - (0.172 ± 15 %) / (0.649 ± 15 %).
        let saving = interval(&unpu, |profile| {
            Ok::<_, EnergyError>(1.0 - energy(4)(profile)? / energy(16)(profile)?)
        });
        let saving = saving.unwrap();
        let ratio = 0.172 / 0.649;
        close(saving.high, 1.0 - ratio + ratio * 0.15_f64.hypot(1.0 - 1.0 / 1.15));
        close(saving.low, 1.0 - ratio - ratio * 0.15_f64.hypot(1.0 / 0.85 - 1.0));
    }
}
