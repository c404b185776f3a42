//! Which operating points are worth tracing on a given accelerator.

use std::collections::BTreeSet;

use bitgear_core::bits::BitWidth;

use super::counts::widths;
use crate::energy::{AcceleratorProfile, Energy, EnergyError, Workload, policy_cost};
use crate::hash::sha256;
use crate::quantize::{Point, Widths};
use crate::sensitivity::Sensitivity;

/// Bit-widths that are looked at.
const BITS: [u8; 8] = [2, 3, 4, 5, 6, 7, 8, 16];
/// Up to this width the first and last layer are also tried at [`END_BITS`].
const NARROW: u8 = 4;
const END_BITS: u8 = 8;
/// Mixed points are made of widths up to this.
const WIDEST_MIXED: u8 = 8;
/// Steps of the price that allocations are found at.
const PRICES: i32 = 240;

/// The uniform points that the accelerator makes sense of: for each width the widest operands that
/// cost no more.
pub(super) fn uniform(
    profile: &AcceleratorProfile,
    workload: &Workload,
) -> Result<Vec<Point>, EnergyError> {
    let mut points = Vec::new();
    for bits in BITS.map(width) {
        let mut pair = Widths { weights: bits, activations: bits };
        let least = chip(profile, workload, pair)?;
        let free = |pair| chip(profile, workload, pair).is_ok_and(|cost| cost <= least);
        let wider = |from: BitWidth| (from.get()..=16).map(width);
        let activations = wider(bits).rfind(|&a| free(Widths { activations: a, ..pair }));
        pair.activations = activations.unwrap_or(bits);
        let weights = wider(bits).rfind(|&w| free(Widths { weights: w, ..pair }));
        pair.weights = weights.unwrap_or(bits);
        points.push(Point::uniform(pair.weights, pair.activations));
    }
    points.sort();
    points.dedup();
    Ok(points)
}

/// Narrow points with wider first and last layers.
pub(super) fn with_ends(points: &[Point]) -> Vec<Point> {
    let narrow = points.iter().filter(|p| p.widths(0, 1).weights.get() <= NARROW);
    narrow.map(|p| p.clone().with_ends(width(END_BITS), width(END_BITS))).collect()
}

/// Pairs of widths that mixed points are made of.
pub(super) fn pairs(uniform: &[Point]) -> Vec<Widths> {
    let pairs = uniform.iter().map(|p| p.widths(0, 1));
    pairs.filter(|pair| pair.weights.get() <= WIDEST_MIXED).collect()
}

/// A mixed point and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MixedPoint {
    /// The point.
    pub point: Point,
    /// Sum of the layers' divergences, each quantized alone, in nats: stands for the loss of the whole.
    pub divergence: f64,
    /// Of one inference.
    pub energy: Energy,
}

/// Mixed points along the frontier of chip energy, which policies are chosen by, against the sum of the
/// layers' divergences, cheapest first. `pairs` are the widths that `sensitivity` was measured at.
///
/// Allocations are found at many prices of energy: at each the best path through the layers'
/// widths, changes of mode included, and between neighbours one layer after another. What they cost is
/// then computed exactly.
///
/// # Errors
///
/// When the profile can't price a pair of widths.
pub fn mixed_points(
    sensitivity: &Sensitivity,
    pairs: &[Widths],
    profile: &AcceleratorProfile,
    workload: &Workload,
) -> Result<Vec<MixedPoint>, EnergyError> {
    let layers = workload.layers.len();
    if pairs.len() < 2 || layers < 2 {
        return Ok(Vec::new());
    }
    // [pair][layer]
    let mut energies: Vec<Vec<f64>> = Vec::new();
    for pair in pairs {
        let point = Point::uniform(pair.weights, pair.activations);
        let cost = policy_cost(profile, workload, &[&widths(&point, workload)])?;
        energies.push(cost[0].layers.iter().map(|layer| layer.energy.chip_uj).collect());
    }
    // Wider is never worse: noise must not say so.
    let mut losses: Vec<Vec<f64>> = sensitivity
        .layers
        .iter()
        .map(|layer| layer.widths.iter().map(|w| w.divergence.max(1e-9)).collect())
        .collect();
    for layer in &mut losses {
        for wider in 1..layer.len() {
            layer[wider] = layer[wider].min(layer[wider - 1]);
        }
    }
    let change = Changes::new(pairs, profile, workload)?;
    let scale = losses.iter().flatten().sum::<f64>() / energies.iter().flatten().sum::<f64>();
    let mut paths: Vec<Vec<usize>> = Vec::new();
    for step in 0..PRICES {
        let price = scale * 10_f64.powf(f64::from(step) / f64::from(PRICES) * 8.0 - 5.0);
        paths.push(cheapest(&losses, &energies, &change, price));
    }
    let between = paths.windows(2).flat_map(|pair| between(&pair[1], &pair[0], &losses, &energies));
    let found: BTreeSet<Vec<usize>> = between.chain(paths.iter().cloned()).collect();
    let mut priced = Vec::new();
    for path in found {
        if path.iter().all(|&pair| pair == path[0]) {
            continue;
        }
        let divergence = path.iter().enumerate().map(|(layer, &pair)| losses[layer][pair]).sum();
        let table: Vec<Widths> = path.iter().map(|&pair| pairs[pair]).collect();
        let point = Point::mixed(number(&table), table);
        let energy = policy_cost(profile, workload, &[&widths(&point, workload)])?[0].energy;
        priced.push(MixedPoint { point, divergence, energy });
    }
    let order = |a: &MixedPoint, b: &MixedPoint| {
        let energy = a.energy.chip_uj.total_cmp(&b.energy.chip_uj);
        energy.then(a.divergence.total_cmp(&b.divergence))
    };
    priced.sort_by(order);
    let mut least = f64::INFINITY;
    priced.retain(|mixed| {
        let better = mixed.divergence < least;
        least = least.min(mixed.divergence);
        better
    });
    Ok(priced)
}

/// `count` of them at most, evenly over the logarithm of their energy.
pub fn spread(priced: Vec<MixedPoint>, count: usize) -> Vec<MixedPoint> {
    if priced.len() <= count || count == 0 {
        return priced.into_iter().take(count).collect();
    }
    let logarithm = |mixed: &MixedPoint| mixed.energy.chip_uj.ln();
    let (low, high) = (logarithm(&priced[0]), logarithm(&priced[priced.len() - 1]));
    let mut chosen: Vec<usize> = (0..count)
        .map(|i| {
            let wanted = low + (high - low) * (i as f64 + 0.5) / count as f64;
            let distance = |p: &MixedPoint| (logarithm(p) - wanted).abs();
            let nearest =
                priced.iter().enumerate().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
            nearest.map_or(0, |(index, _)| index)
        })
        .collect();
    chosen.dedup();
    chosen.into_iter().map(|index| priced[index].clone()).collect()
}

/// What changing widths between two layers costs, in microjoule.
struct Changes(Vec<Vec<f64>>);

impl Changes {
    fn new(
        pairs: &[Widths],
        profile: &AcceleratorProfile,
        workload: &Workload,
    ) -> Result<Self, EnergyError> {
        // One change there and, since a point begins anew with its first layer, one back.
        let two = Workload { layers: workload.layers[..2].to_vec() };
        let cost = |a: Widths, b: Widths| -> Result<f64, EnergyError> {
            let point = Point::mixed(0, vec![a, b]);
            Ok(policy_cost(profile, &two, &[&widths(&point, &two)])?[0].transitions_uj / 2.0)
        };
        let rows = pairs.iter().map(|&a| pairs.iter().map(|&b| cost(a, b)).collect());
        Ok(Self(rows.collect::<Result<_, _>>()?))
    }
}

/// The path of least loss plus price times energy.
fn cheapest(
    losses: &[Vec<f64>],
    energies: &[Vec<f64>],
    change: &Changes,
    price: f64,
) -> Vec<usize> {
    let pairs = energies.len();
    let own = |layer: usize, pair: usize| losses[layer][pair] + price * energies[pair][layer];
    let mut best: Vec<f64> = (0..pairs).map(|pair| own(0, pair)).collect();
    let mut before: Vec<Vec<usize>> = Vec::new();
    for layer in 1..losses.len() {
        let step = |pair: usize| {
            let via = |from: usize| best[from] + price * change.0[from][pair];
            let from = (0..pairs).fold(0, |a, b| if via(b) < via(a) { b } else { a });
            (via(from) + own(layer, pair), from)
        };
        let steps: Vec<(f64, usize)> = (0..pairs).map(step).collect();
        best = steps.iter().map(|s| s.0).collect();
        before.push(steps.iter().map(|s| s.1).collect());
    }
    let last = (0..pairs).fold(0, |a, b| if best[b] < best[a] { b } else { a });
    let mut path = vec![last];
    for from in before.iter().rev() {
        path.push(from[path[path.len() - 1]]);
    }
    path.reverse();
    path
}

/// Paths from one to another, one layer changed after another: those first that gain most for their
/// energy. Prices leave them out, where layers change together.
fn between(
    from: &[usize],
    to: &[usize],
    losses: &[Vec<f64>],
    energies: &[Vec<f64>],
) -> Vec<Vec<usize>> {
    let gain = |&layer: &usize| {
        let (old, new) = (from[layer], to[layer]);
        let energy = energies[new][layer] - energies[old][layer];
        (losses[layer][old] - losses[layer][new]) / energy.max(f64::MIN_POSITIVE)
    };
    let mut layers: Vec<usize> = (0..from.len()).filter(|&l| from[l] != to[l]).collect();
    layers.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    let mut path = from.to_vec();
    let step = |layer: usize| {
        path[layer] = to[layer];
        path.clone()
    };
    layers.into_iter().map(step).collect()
}

/// A mixed point is called by what it is, so that an older run's point of another table can't be
/// taken for it.
fn number(table: &[Widths]) -> u32 {
    let bytes: Vec<u8> =
        table.iter().flat_map(|w| [w.weights.get(), w.activations.get()]).collect();
    u32::from_str_radix(&sha256(&bytes)[..6], 16).expect("a hash is hexadecimal") % 1_000_000
}

fn chip(
    profile: &AcceleratorProfile,
    workload: &Workload,
    pair: Widths,
) -> Result<f64, EnergyError> {
    let point = Point::uniform(pair.weights, pair.activations);
    Ok(policy_cost(profile, workload, &[&widths(&point, workload)])?[0].energy.chip_uj)
}

fn width(bits: u8) -> BitWidth {
    BitWidth::new(bits).expect("1 to 16")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::energy::LayerWork;
    use crate::sensitivity::{LayerSensitivity, WidthSensitivity};

    fn workload() -> Workload {
        let layer = |name: &str, macs| LayerWork {
            name: name.to_owned(),
            macs,
            weights: 100,
            biases: 10,
            inputs: 100,
            outputs: 100,
            residual: 0,
            zero_macs: 0.0,
            boundary: None,
        };
        Workload { layers: vec![layer("a", 1_000), layer("b", 100_000), layer("c", 1_000)] }
    }

    fn profile() -> AcceleratorProfile {
        AcceleratorProfile::find("envision-28nm").unwrap()
    }

    #[test]
    fn where_every_bit_costs_all_uniform_points_are_symmetric() {
        let names: Vec<String> =
            uniform(&profile(), &workload()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, BITS.map(|b| format!("w{b}a{b}")));
    }

    #[test]
    fn where_activations_have_a_fixed_width_points_differ_in_weights_only() {
        let unpu = AcceleratorProfile::find("unpu-65nm").unwrap();
        let points = uniform(&unpu, &workload()).unwrap();
        let names: Vec<String> = points.iter().map(ToString::to_string).collect();
        assert_eq!(names, BITS.map(|b| format!("w{b}a16")));
        let activations = |p: &Point| [0, 1, 2].map(|layer| p.widths(layer, 3).activations.get());
        assert!(with_ends(&points).iter().all(|p| activations(p) == [16; 3]));
        assert!(pairs(&points).iter().all(|pair| pair.activations.get() == 16));
    }

    #[test]
    fn sensitive_layers_of_few_macs_get_more_bits() {
        let bits = [2, 4, 8];
        let layer = |losses: [f64; 3]| LayerSensitivity {
            name: String::new(),
            widths: bits
                .iter()
                .zip(losses)
                .map(|(&b, divergence)| WidthSensitivity {
                    weights: b,
                    activations: b,
                    divergence,
                    snr_db: 0.0,
                    plain_snr_db: 0.0,
                })
                .collect(),
            input_peak: 1.0,
            channel_spread: 1.0,
            weight_peak: 1.0,
            bias_share: 0.0,
        };
        // The outer layers suffer, the one in the middle hardly does and costs most.
        let outer = layer([1.0, 0.1, 0.001]);
        let sensitivity =
            Sensitivity { layers: vec![outer.clone(), layer([0.02, 0.01, 0.001]), outer] };
        let pairs = bits.map(|b| Widths { weights: width(b), activations: width(b) });
        let all = mixed_points(&sensitivity, &pairs, &profile(), &workload()).unwrap();
        let points = spread(all, 4);
        assert!(!points.is_empty());
        for MixedPoint { point, .. } in points {
            let [first, middle, last] = [0, 1, 2].map(|l| point.widths(l, 3).weights.get());
            assert!(first >= middle && last >= middle, "{first} {middle} {last}");
        }
    }

    #[test]
    fn between_two_prices_one_layer_after_another_changes_its_widths() {
        // The second layer gains most for its energy, the third stays.
        let losses = vec![vec![1.0, 0.5], vec![2.0, 0.1], vec![1.0, 0.9]];
        let energies = vec![vec![1.0; 3], vec![2.0; 3]];
        let paths = between(&[0, 0, 0], &[1, 1, 0], &losses, &energies);
        assert_eq!(paths, [vec![0, 1, 0], vec![1, 1, 0]]);
    }
}
