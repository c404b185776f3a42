//! The energy model against published results, with the reasons for each difference. No profile is
//! checked against the number that it was made from; what rests on recalled figures says so.

use bitgear::energy::{
    AcceleratorProfile, LayerWork, PublishedNetwork, SHIPPED, StageCost, Widths, Workload,
    policy_cost,
};

macro_rules! network {
    ($name:literal) => {
        PublishedNetwork::parse(include_str!(concat!(
            "../../../../accelerators/workloads/",
            $name,
            ".toml"
        )))
        .unwrap()
    };
}

fn profile(id: &str) -> AcceleratorProfile {
    AcceleratorProfile::find(id).unwrap()
}

fn dense(mut network: PublishedNetwork) -> PublishedNetwork {
    for layer in &mut network.workload.layers {
        layer.zero_macs = 0.0;
    }
    network
}

fn cost(id: &str, network: &PublishedNetwork) -> StageCost {
    let widths = network.widths.as_deref().expect("the file gives widths");
    policy_cost(&profile(id), &network.workload, &[widths]).unwrap().remove(0)
}

/// Two operations a MAC.
fn tops_per_watt(macs: u64, chip_uj: f64) -> f64 {
    2.0 * macs as f64 * 1e-6 / chip_uj
}

fn within(name: &str, got: f64, low: f64, high: f64) {
    assert!((low..=high).contains(&got), "{name}: {got} is not in {low} to {high}");
}

#[test]
fn every_shipped_profile_is_valid_and_prices_16_bits() {
    let network = network!("alexnet");
    let widths = vec![Widths { weights: 16, activations: 16 }; network.workload.layers.len()];
    for (id, text) in SHIPPED {
        let profile = AcceleratorProfile::parse(id, text).unwrap();
        assert_eq!(profile.accelerator.id, id);
        assert!(profile.uncertainty.is_some(), "{id}");
        let cost = policy_cost(&profile, &network.workload, &[&widths]).unwrap();
        assert!(cost[0].energy.chip_uj > 0.0, "{id}");
    }
}

#[test]
fn a_workload_file_that_is_none_is_refused() {
    let file = |layer: &str| {
        let head = "schema_version = 1\nname = \"n\"\nsrc = \"s\"\n[[layer]]\nname = \"a\"\nmacs = 1\nweights = 1\ninputs = 1\noutputs = 1\n";
        PublishedNetwork::parse(&format!("{head}{layer}"))
    };
    assert_eq!(file("").unwrap().widths, None);
    let seen =
        [file("w_zeros = 1.5"), file("w_bits = 0\na_bits = 1")].map(|f| f.unwrap_err().to_string());
    insta::assert_snapshot!(seen.join("\n"), @r"
    workload: layer `a`: shares of zeros must be 0 to 1, got [1.5, 0.0]
    workload: layer `a`: widths must be 1 to 16 bits
    ");
    assert!(file("bits = 8").is_err());
}

#[test]
fn the_layer_tables_have_the_published_sums() {
    // 666 M in the abstract of Eyeriss (ISSCC 2016), 15.3 G there too (with 15,346 M of Envision).
    assert_eq!(network!("alexnet").workload.macs(), 665_784_864);
    assert_eq!(network!("vgg-16").workload.macs(), 15_346_630_656);
    assert_eq!(network!("lenet-5").workload.macs(), 1_888_000);
    let weights = |n: PublishedNetwork| n.workload.layers.iter().map(|l| l.weights).sum::<u64>();
    assert_eq!(weights(network!("alexnet")), 2_332_704);
    assert_eq!(weights(network!("vgg-16")), 14_710_464);
}

/// Published: 1.8 TOPS/W. The share that a zero saves was estimated with this network in view, so this
/// must not move but proves little. Three of five layers run at 9 bits, just beyond the 8-bit mode:
/// with bits gated off at one supply the model is 18 % below, with the supply lowered along 3 %.
#[test]
fn alexnet_on_envision_stays_where_it_was() {
    let efficiency = |network: &PublishedNetwork, gating: f64| {
        let mut profile = profile("envision-28nm");
        profile.matching.gating_exponent = gating;
        let widths = network.widths.as_deref().unwrap();
        let cost = policy_cost(&profile, &network.workload, &[widths]).unwrap();
        tops_per_watt(network.workload.macs(), cost[0].energy.chip_uj)
    };
    let sparse = network!("alexnet");
    within("with zeros", efficiency(&sparse, 0.61), 1.44, 1.50);
    within("with zeros, supply lowered", efficiency(&sparse, 0.99), 1.72, 1.78);
    // What zeros are worth here.
    within("dense", efficiency(&dense(sparse), 0.99), 0.65, 0.69);
}

/// Published: 3.0 TOPS/W. Widths and zeros of the layers are recalled, the 8-bit mode, in which five of
/// six MACs run, is an interpolation of 1.3 to 2.6 pJ: 30 % are allowed.
#[test]
fn lenet_5_on_envision_is_near_the_published_efficiency() {
    let network = network!("lenet-5");
    let cost = cost("envision-28nm", &network);
    let modes: Vec<&str> = cost.layers.iter().map(|l| l.mode.as_str()).collect();
    assert_eq!(modes, ["4x4b", "2x8b"]);
    let got = tops_per_watt(network.workload.macs(), cost.energy.chip_uj - cost.transitions_uj);
    within("TOPS/W", got, 3.0 / 1.3, 3.0 * 1.3);
    // The published range of one layer, 0.8 to 13.6, is recalled.
    let first = tops_per_watt(288_000, cost.layers[0].compute_uj);
    within("first layer", first, 13.6 / 1.5, 13.6 * 1.5);
}

/// Published: 2.0 TOPS/W, with 5 or 6 bits, 5 to 50 % zero weights and 10 to 82 % zero activations:
/// the model must hold it between the two ends of these ranges.
#[test]
fn vgg_16_on_envision_lies_between_the_ends_of_the_published_ranges() {
    let end = |bits: u8, zeros: [f64; 2]| {
        let mut network = network!("vgg-16");
        for layer in &mut network.workload.layers {
            layer.zero_macs = 1.0 - (1.0 - zeros[0]) * (1.0 - zeros[1]);
        }
        network.widths = Some(vec![Widths { weights: bits, activations: bits }; 13]);
        tops_per_watt(network.workload.macs(), cost("envision-28nm", &network).energy.chip_uj)
    };
    let (worst, best) = (end(6, [0.05, 0.10]), end(5, [0.50, 0.82]));
    assert!(worst < 2.0 && 2.0 < best, "{worst} to {best}");
    within("worst", worst, 1.0, 2.0);
}

/// Published: 47 frames a second at 76 mW, so 1,617 uJ. The profile knows the dense chip at 16 bits and
/// a law for fewer. It doesn't know what the guard against zeros saves, so the dense energy at the
/// layers' widths must lie above, and by no more than the 1.6 times that the group's next chip gains
/// from zeros.
#[test]
fn alexnet_on_the_40_nm_chip_lies_above_by_what_zeros_save() {
    let measured = 76e3 / 47.0;
    let predicted = cost("dvas-40nm", &network!("alexnet")).energy.chip_uj;
    within("predicted / measured", predicted / measured, 1.0, 1.6);
}

/// Published: 278 mW for 115.3 ms of four images, so 8,014 uJ an image. From the bottom up clock
/// network, control and idle elements are missing (too low), zero gating as well (too high); energies
/// are scaled from another node. Half to all of it is what such a model can claim.
#[test]
fn alexnet_on_eyeriss_from_the_bottom_up_is_half_to_all_of_the_measured_energy() {
    let mut network = network!("alexnet");
    network.widths = Some(vec![Widths { weights: 16, activations: 16 }; 5]);
    let measured = 278.0 * 115.3 / 4.0;
    let predicted = cost("eyeriss-65nm", &network).energy.chip_uj;
    within("predicted / measured", predicted / measured, 0.5, 1.0);
    // VGG-16: 236 mW for 4,309.5 ms of three images. Its elements idle more than half of the time.
    let mut network = network!("vgg-16");
    network.widths = Some(vec![Widths { weights: 16, activations: 16 }; 13]);
    let predicted = cost("eyeriss-65nm", &network).energy.chip_uj;
    within("VGG-16", predicted / (236.0 * 4309.5 / 3.0), 0.3, 0.6);
}

/// The simulator's AlexNet, of twice the channels: 454 uJ in the array and 1,164 uJ in buffers for an
/// inference, rebuilt from its counts. MACs are its reads of inputs over their width, as the layers pad.
/// The profile has its energies and the rule that nothing is reused; this checks the counting.
#[test]
fn alexnet_on_bit_fusion_has_the_simulators_core_and_buffer_energy() {
    // Of 16 inferences: bits of inputs read, results written at 2 · 32 bits, inputs filled; the width.
    let layers: [(u64, u64, u64, u8); 8] = [
        (2 * 13_493_145_600, 2 * 297_369_600, 2 * 421_660_800, 8),
        (2 * 41_104_179_200, 2 * 411_041_792, 2 * 462_422_016, 4),
        (2 * 22_196_256_768, 2 * 308_281_344, 2 * 308_281_344, 4),
        (2 * 16_647_192_576, 2 * 231_211_008, 2 * 231_211_008, 4),
        (2 * 11_098_128_384, 2 * 154_140_672, 2 * 154_140_672, 4),
        (9_663_676_416, 75_497_472, 1_179_648, 4),
        (4_294_967_296, 33_554_432, 524_288, 4),
        (1_073_741_824, 8_388_608, 1_048_576, 8),
    ];
    let work = layers.map(|(read, written, filled, bits)| LayerWork {
        macs: read / u64::from(bits) / 16,
        weights: 1,
        inputs: filled / u64::from(bits) / 16,
        outputs: written / 64 / 16,
        ..LayerWork::default()
    });
    let widths = layers.map(|(.., bits)| Widths { weights: bits, activations: bits });
    let workload = Workload { layers: work.to_vec() };
    let cost = policy_cost(&profile("bitfusion-45nm"), &workload, &[&widths]).unwrap().remove(0);
    let sum =
        |part: fn(&bitgear::energy::LayerCost) -> f64| cost.layers.iter().map(part).sum::<f64>();
    within("array", sum(|l| l.compute_uj) / 454.0, 0.98, 1.02);
    within("buffers", sum(|l| l.memory_uj) / 1164.0, 0.93, 1.07);
}

/// Fitted on image classification, predicted for the other networks of MLPerf Tiny: too low by 3.2, 2.5
/// and 9.0 times, since small and depthwise layers fill the engine less. One energy a MAC is not enough
/// for absolute figures on this chip; savings between widths there are nil either way.
#[test]
fn gap9_misses_the_networks_that_it_was_not_fitted_on() {
    let rows = [
        ("KWS", 2_660_000, 18.6, 3.15),
        ("VWW", 7_490_000, 40.8, 2.46),
        ("AD", 264_000, 5.25, 8.97),
    ];
    for (name, macs, measured, miss) in rows {
        let layer = LayerWork { macs, ..LayerWork::default() };
        let workload = Workload { layers: vec![layer] };
        let widths = [Widths { weights: 8, activations: 8 }];
        let cost = policy_cost(&profile("gap9-22nm"), &workload, &[&widths]).unwrap();
        within(name, measured / cost[0].energy.chip_uj, miss * 0.99, miss * 1.01);
    }
}

#[test]
fn three_bits_cost_what_four_do_on_a_machine_of_two_four_and_eight() {
    let layer = LayerWork { macs: 1_000_000, ..LayerWork::default() };
    let workload = Workload { layers: vec![layer] };
    let price = |id: &str, weights: u8, activations: u8| {
        let widths = [Widths { weights, activations }];
        policy_cost(&profile(id), &workload, &[&widths]).unwrap().remove(0)
    };
    for id in ["bitfusion-45nm", "bitblade-28nm", "mpic-22nm"] {
        let compute = |bits| price(id, bits, bits).layers[0].compute_uj;
        assert_eq!(compute(3), compute(4), "{id}");
        assert!(compute(2) < compute(4) && compute(4) < compute(8), "{id}");
    }
    // 1 M MACs of 4-bit weights and 8-bit activations: 0.435 M cycles of 4 ns, 9.36 uJ.
    let mpic = price("mpic-22nm", 4, 8);
    within("cycles", mpic.time_us.unwrap() * 250.0, 434_700.0, 434_900.0);
    within("energy", mpic.energy.chip_uj, 9.355, 9.365);
    // Fewer bits than 8 save nothing where nothing is narrower.
    assert_eq!(price("gap9-22nm", 2, 2).energy, price("gap9-22nm", 8, 8).energy);
}
