//! Tests of what a profile adds to the energy of a MAC alone.

use super::*;
use crate::energy::{LayerWork, SHIPPED, interval};

const TOY: &str = r#"
schema_version = 1
[accelerator]
id = "toy"
name = "toy"
url = "none"
node_nm = 45
evidence = "model"
style = "bottom_up"
[scope]
mac = true
onchip_sram = false
control = false
leakage = false
dram = false
io = false
regulator = false
[matching]
match = "round_up"
utilization_default = 0.5
sparsity_gating = 0.8
accumulator_bits = 24
grade = "E"
src = "test"
[[supply_point]]
id = "s"
freq_mhz = 100
grade = "E"
src = "test"
[[mode]]
id = "8b"
w_bits = 8
a_bits = 8
macs_per_cycle = 10
supply_point = "s"
e_mac_pj = 1.0
grade = "E"
src = "test"
[[memory]]
name = "weights"
holds = ["weights"]
in_mac_energy = false
size_bytes = 1000
read_pj_per_bit = 0.1
write_pj_per_bit = 0.2
reuse_weights = 4
grade = "E"
src = "test"
[[memory]]
name = "maps"
holds = ["inputs", "outputs", "partial_sums"]
in_mac_energy = false
size_bytes = 1000
read_pj_per_bit = 0.3
write_pj_per_bit = 0.5
reuse_inputs = 2
reuse_outputs = "unknown"
packing = "byte"
grade = "E"
src = "test"
[[memory]]
name = "dram"
holds = ["weights", "inputs", "outputs"]
in_mac_energy = false
read_pj_per_bit = 10
write_pj_per_bit = 20
bandwidth_bits_per_cycle = 4
packing = "word"
grade = "E"
src = "test"
[static]
leakage_mw = 3
grade = "E"
src = "test"
[[transition]]
kind = "weights"
energy_nj = 7
latency_us = 2
grade = "E"
src = "test"
"#;

fn profile(from: &str, to: &str) -> AcceleratorProfile {
    assert!(TOY.contains(from), "{from}");
    AcceleratorProfile::parse("toy", &TOY.replacen(from, to, 1)).unwrap()
}

fn cost(profile: &AcceleratorProfile, work: LayerWork) -> StageCost {
    let widths = [Widths { weights: 4, activations: 6 }];
    policy_cost(profile, &Workload { layers: vec![work] }, &[&widths]).unwrap().remove(0)
}

/// 10,000 MACs with 200 weights of 4 bits, 100 inputs of 6 and 50 results of 16.
fn work() -> LayerWork {
    LayerWork { macs: 10_000, weights: 200, inputs: 100, outputs: 50, ..LayerWork::default() }
}

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{got}, not {expected}");
}

#[test]
fn every_memory_is_charged_for_what_it_moves() {
    let cost = cost(&profile("", ""), work());
    assert!(cost.resident);
    let layer = &cost.layers[0];
    // Half the units idle, and what idles costs too: 10,000 · 1 pJ / 0.5.
    close(layer.compute_uj, 0.02);
    // Weights: 10,000 / 4 reads of 4 bits. Inputs take bytes: 10,000 / 2 reads and 100 writes of 8 bits.
    // Results: 50 writes of 16 bits. Sums of 24 bits: once for each result, written and read.
    let weights = 2500.0 * 4.0 * 0.1;
    let inputs = 8.0 * (5000.0 * 0.3 + 100.0 * 0.5);
    let results = 50.0 * 16.0 * 0.5 + 24.0 * 50.0 * (0.3 + 0.5);
    close(layer.memory_uj, (weights + inputs + results) * 1e-6);
    // The network's input comes in words of 32 bits at 10 pJ.
    close(cost.energy.offchip_uj, 100.0 * 32.0 * 10.0 * 1e-6);
    // 10 MACs · 100 MHz · 0.5 take 20 us; 3,200 bits at 4 a cycle take 8 us meanwhile.
    close(cost.time_us.unwrap(), 20.0);
    close(layer.leakage_uj, 3.0 * 20.0 * 1e-3);
    close(cost.energy.chip_uj, layer.compute_uj + layer.memory_uj + layer.leakage_uj);
}

#[test]
fn weights_without_a_place_are_loaded_and_stored_by_every_stage() {
    let mut large = work();
    large.weights = 2000;
    let cost = cost(&profile("", ""), large);
    // 2,000 weights take 64,000 bits as words, of 8,000.
    assert!(!cost.resident);
    close(cost.energy.offchip_uj, (100.0 + 2000.0) * 32.0 * 10.0 * 1e-6);
    // 67,200 bits at 4 a cycle of 100 MHz, and the change of weights.
    close(cost.time_us.unwrap(), 168.0 + 2.0);
    close(cost.transitions_uj, 7e-3);
    // Read 2,500 times, filled 2,000 times, 4 bits each.
    let filled = 4.0 * (2500.0 * 0.1 + 2000.0 * 0.2);
    let rest = 8.0 * (5000.0 * 0.3 + 100.0 * 0.5) + 50.0 * 16.0 * 0.5 + 24.0 * 50.0 * 0.8;
    close(cost.layers[0].memory_uj, (filled + rest) * 1e-6);
}

#[test]
fn an_element_is_moved_once_at_least() {
    let mut few = work();
    few.macs = 100;
    let once = cost(&profile("", ""), few).layers[0].memory_uj;
    let rest = 8.0 * 100.0 * (0.3 + 0.5) + 50.0 * 16.0 * 0.5 + 24.0 * 50.0 * 0.8;
    close(once, (200.0 * 4.0 * 0.1 + rest) * 1e-6);
}

#[test]
fn zero_operands_save_their_share() {
    let mut sparse = work();
    sparse.zero_macs = 0.25;
    close(cost(&profile("", ""), sparse.clone()).layers[0].compute_uj, 0.02 * (1.0 - 0.8 * 0.25));
    let unknown = profile("sparsity_gating = 0.8", "sparsity_gating = \"unknown\"");
    close(cost(&unknown, sparse).layers[0].compute_uj, 0.02);
    assert!(unknown.not_counted.iter().any(|n| n.0 == "matching.sparsity_gating"));
}

#[test]
fn without_a_clock_there_is_energy_but_no_time() {
    let timeless = profile("freq_mhz = 100", "freq_mhz = \"unknown\"");
    let cost = cost(&timeless, work());
    assert_eq!(cost.time_us, None);
    assert_eq!(cost.layers[0].leakage_uj, 0.0);
    let named = |name: &str| timeless.not_counted.iter().any(|n| n.0 == name);
    assert!(named("supply_point.s.freq_mhz") && named("scope.leakage"));
}

#[test]
fn a_supply_point_has_leakage_of_its_own() {
    let own = profile("freq_mhz = 100", "freq_mhz = 100\nleakage_mw = 5");
    close(cost(&own, work()).layers[0].leakage_uj, 5.0 * 20.0 * 1e-3);
}

#[test]
fn what_nothing_adds_is_named() {
    let names: Vec<String> = profile("", "").not_counted.into_iter().map(|n| n.0).collect();
    assert_eq!(
        names,
        ["memory.maps.reuse_outputs", "scope.control", "scope.io", "scope.regulator"]
    );
}

/// Every line of every profile left out, and every value replaced: what is still accepted has prices
/// that are numbers, and an interval.
#[test]
fn damaged_profiles_are_refused_or_priced() {
    let mut accepted = 0;
    for (id, text) in SHIPPED {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let key = line.split_once('=').map_or("", |(key, _)| key);
            let values = ["0", "-1", "nan", "1e300", "\"unknown\"", "[[1.0]]"];
            let replaced = values.iter().map(|value| format!("{key}= {value}"));
            for other in replaced.chain([String::new()]) {
                let mut damaged = lines.clone();
                damaged[index] = &other;
                let Ok(profile) = AcceleratorProfile::parse(id, &damaged.join("\n")) else {
                    continue;
                };
                let energy = |profile: &AcceleratorProfile| {
                    let widths = [Widths { weights: 4, activations: 6 }];
                    let workload = Workload { layers: vec![work()] };
                    let cost = policy_cost(profile, &workload, &[&widths, &widths])?;
                    Ok::<_, EnergyError>(cost[1].energy.total_uj())
                };
                if let Ok(got) = interval(&profile, energy) {
                    let numbers = [got.low, got.central, got.high];
                    assert!(numbers.iter().all(|e| !e.is_nan()), "{id} with `{other}`: {got:?}");
                    assert!(got.central >= 0.0, "{id} with `{other}`: {got:?}");
                    accepted += 1;
                }
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}

#[test]
fn nothing_in_a_profile_is_read_in_vain() {
    let broken = |from: &str, to: &str| {
        assert!(TOY.contains(from), "{from}");
        AcceleratorProfile::parse("toy", &TOY.replacen(from, to, 1)).unwrap_err().to_string()
    };
    let table = "[mac_table]\na_bits = [8]\nw_bits = [8]\ne_mac_pj = [[1.0]]";
    let mode = &TOY[TOY.find("[[mode]]").unwrap()
        ..TOY.find("grade = \"E\"\nsrc = \"test\"\n[[memory]]").unwrap()];
    let with_table = TOY.replacen(mode, &format!("{table}\n"), 1);
    assert!(AcceleratorProfile::parse("toy", &with_table).is_ok());
    let gated = with_table.replacen("sparsity_gating", "gating_exponent = 0.5\nsparsity_gating", 1);
    let seen = [
        broken("name = \"maps\"", "name = \"weights\""),
        broken("size_bytes = 1000\n", ""),
        broken("kind = \"weights\"", "kind = \"voltage\""),
        broken("utilization_default = 0.5", "utilization_default = 1.5"),
        broken("read_pj_per_bit = 0.1", "read_pj_per_bit = 0.1\nread_pj_per_bit_hi = 0.05"),
        broken("macs_per_cycle = 10", "macs_per_cycle = nan"),
        broken("w_bits = 8", "w_bits = 17"),
        AcceleratorProfile::parse("toy", &gated).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(seen.join("\n"), @r#"
    profile `toy`: `[[memory]]`: `weights` occurs twice
    profile `toy`: memories ["weights", "dram"] have no `size_bytes`: expected one memory off chip at most
    profile `toy`: unknown variant `voltage`, expected one of `precision`, `voltage_onchip`, `voltage_offchip`, `clock`, `weights` in `transition.kind`
    profile `toy`: `matching.utilization_default` is a share of at most 1, got 1.5
    profile `toy`: `memory.weights.read_pj_per_bit` must lie within its bounds, got 0.1 of 0.1 to 0.05
    profile `toy`: `mode.8b.macs_per_cycle` must be positive, got NaN
    profile `toy`: mode `8b`: widths must be 1 to 16 bits, got [17, 8]
    profile `toy`: `matching.gating_exponent` works inside modes: expected `[[mode]]`, got `[mac_table]`
    "#);
}

#[test]
fn the_two_styles_are_never_mixed() {
    let broken = |from: &str, to: &str| {
        assert!(TOY.contains(from), "{from}");
        AcceleratorProfile::parse("toy", &TOY.replacen(from, to, 1)).unwrap_err().to_string()
    };
    let seen = [
        broken("onchip_sram = false", "onchip_sram = true"),
        broken("leakage = false", "leakage = true"),
        broken("in_mac_energy = false", "in_mac_energy = true"),
    ];
    insta::assert_snapshot!(seen.join("\n"), @r"
    profile `toy`: `scope.onchip_sram` = true: with style `bottom_up` the energy of a MAC is that of the multiply-accumulate alone, and memories and leakage are added; a figure that holds more belongs into a profile of style `chip_total`
    profile `toy`: `scope.leakage` = true: with style `bottom_up` the energy of a MAC is that of the multiply-accumulate alone, and memories and leakage are added; a figure that holds more belongs into a profile of style `chip_total`
    profile `toy`: memory `weights` with `in_mac_energy = true`: with style `bottom_up` no memory is part of the energy of a MAC
    ");
}
