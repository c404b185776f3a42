use super::*;
use crate::energy::{LayerWork, Live};

const ENVISION: &str = include_str!("../../../../../accelerators/envision-28nm.toml");

fn envision() -> AcceleratorProfile {
    AcceleratorProfile::find("envision-28nm").unwrap()
}

/// Two layers of a million MACs; 1,000 weights and 10 biases each.
fn workload(inputs: u64) -> Workload {
    let layer = |name: &str| LayerWork {
        name: name.to_owned(),
        macs: 1_000_000,
        weights: 1000,
        biases: 10,
        inputs,
        outputs: inputs,
        ..LayerWork::default()
    };
    Workload { layers: vec![layer("a"), layer("b")] }
}

fn widths(bits: u8) -> Widths {
    Widths { weights: bits, activations: bits }
}

fn close(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= 1e-9 * expected.abs().max(1.0)
}

#[test]
fn a_uniform_point_costs_its_mode_gated_to_its_width() {
    for (bits, pj) in [
        (16, 7.63),
        (8, 1.90),
        (4, 0.474),
        // 0.474 · (3/4)^0.61 = 0.474 · 0.83905
        (3, 0.474 * 0.75_f64.powf(0.61)),
        // 5 bits run in the 8-bit mode: 1.90 · (5/8)^0.61
        (5, 1.90 * 0.625_f64.powf(0.61)),
    ] {
        let point = [widths(bits); 2];
        let cost = policy_cost(&envision(), &workload(100), &[&point]).unwrap();
        // 2 M MACs · pJ, no transition: everything runs in one mode.
        assert!(close(cost[0].energy.chip_uj, 2.0 * pj), "{bits} bits: {:?}", cost[0]);
        assert_eq!(cost[0].transitions_uj, 0.0);
        // Weights fit on chip; the input of 100 elements comes from outside at 8 pJ a bit.
        assert!(cost[0].resident);
        assert!(close(cost[0].energy.offchip_uj, 100.0 * f64::from(bits) * 8.0 * 1e-6));
    }
}

#[test]
fn asymmetric_widths_take_the_mode_of_the_wider() {
    let point = [Widths { weights: 2, activations: 8 }; 2];
    let cost = policy_cost(&envision(), &workload(100), &[&point]).unwrap();
    assert!(close(cost[0].energy.chip_uj, 2.0 * 1.90));
}

#[test]
fn changes_of_mode_within_a_stage_and_back_are_charged() {
    let point = [widths(8), widths(4)];
    let cost = policy_cost(&envision(), &workload(100), &[&point]).unwrap();
    // To 4 bits and back to 8 for the next inference: 2 · (0.05 + 3.2) nJ.
    assert!(close(cost[0].transitions_uj, 2.0 * 3.25e-3));
    assert!(close(cost[0].energy.chip_uj, 1.90 + 0.474 + 6.5e-3));
}

#[test]
fn an_escalation_pays_for_switching_there_and_back() {
    let (low, high) = ([widths(4); 2], [widths(8); 2]);
    let cost = policy_cost(&envision(), &workload(100), &[&low, &high]).unwrap();
    assert_eq!(cost[0].transitions_uj, 0.0);
    assert!(close(cost[1].transitions_uj, 2.0 * 3.25e-3));
}

#[test]
fn weights_of_all_points_must_fit_together_to_stay_on_chip() {
    let mut workload = workload(100);
    // 12,000 weights a layer: 8-bit 192 kbit, 16-bit 384 kbit, biases 640 bits, of 1,048,576 bits.
    for layer in &mut workload.layers {
        layer.weights = 24_000;
    }
    let (low, high) = ([widths(8); 2], [widths(16); 2]);
    let alone = policy_cost(&envision(), &workload, &[&low]).unwrap();
    let together = policy_cost(&envision(), &workload, &[&low, &high]).unwrap();
    assert!(alone[0].resident && !together[0].resident);
    // 48,000 · 8 + 2 · 10 · 32 bits of weights and biases and 800 bits of input, at 8 pJ.
    assert!(close(together[0].energy.offchip_uj, (384_000.0 + 640.0 + 800.0) * 8e-6));
}

#[test]
fn activations_that_do_not_fit_go_off_chip_and_come_back() {
    // 100,000 elements at 16 bits: operand and result take 3.2 Mbit of 1.05 Mbit.
    let point = [widths(16); 2];
    let cost = policy_cost(&envision(), &workload(100_000), &[&point]).unwrap();
    // Each layer reads and writes 1.6 Mbit, and loads 1,000 · 16 + 320 bits of weights.
    assert!(close(cost[0].energy.offchip_uj, 2.0 * (3_200_000.0 + 16_320.0) * 8e-6));
}

#[test]
fn without_a_regulator_everything_runs_at_the_widest_layers_supply() {
    let text = ENVISION.replace("voltage_transition = \"onchip\"", "voltage_transition = \"none\"");
    let profile = AcceleratorProfile::parse("test", &text).unwrap();
    let point = [widths(8), widths(4)];
    let cost = policy_cost(&profile, &workload(100), &[&point]).unwrap();
    // The 4-bit layer at 0.80 V instead of 0.65 V; two changes of precision at 0.05 nJ.
    let raised = 0.474 * (0.80_f64 / 0.65).powf(1.7);
    assert!(close(cost[0].energy.chip_uj, 1.90 + raised + 1e-4));
    // Nor can it change between stages: 4 bits run at the supply of 8 throughout.
    let (low, high) = ([widths(4); 2], [widths(8); 2]);
    let cost = policy_cost(&profile, &workload(100), &[&low, &high]).unwrap();
    assert!(close(cost[0].energy.chip_uj, 2.0 * raised));
}

#[test]
fn real_throughput_and_power_give_the_published_efficiency() {
    // 76 GOPS at 18 mW and at 290 mW, within 1 %: two operations a MAC.
    for (bits, mw) in [(4, 18.0), (16, 290.0)] {
        let point = [widths(bits); 2];
        let cost = policy_cost(&envision(), &workload(100), &[&point]).unwrap();
        let pj_per_mac = cost[0].energy.chip_uj / 2.0;
        let power_mw = pj_per_mac * 76.0 / 2.0;
        assert!((power_mw / mw - 1.0).abs() < 0.01, "{bits} bits: {power_mw} mW");
    }
}

fn broken(from: &str, to: &str) -> String {
    let text = ENVISION;
    assert!(text.contains(from), "{from}");
    AcceleratorProfile::parse("p.toml", &text.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn a_profile_without_provenance_or_with_contradictions_is_refused() {
    let scope_trap = broken("in_mac_energy = true", "in_mac_energy = false");
    let seen = [
        broken("gating_exponent = 0.61", "gating_exponents = 0.61"),
        broken("grade = \"E\"\nsrc = \"nothing published\"", "src = \"nothing published\""),
        broken("src = \"nothing published\"", ""),
        broken("grade = \"D\"", "grade = \"G\""),
        broken("e_mac_pj = 0.474", "e_mac_pj = -0.474"),
        broken("supply_point = \"lp\"", "supply_point = \"lpp\""),
        broken("leakage_mw = 0.0", "leakage_mw = 1.0"),
        scope_trap,
        broken("schema_version = 1", "schema_version = 2"),
    ];
    insta::assert_snapshot!(seen.join("\n"), @r#"
    profile `p.toml`: unknown field `gating_exponent_grade`, expected one of `match`, `symmetric`, `voltage_transition`, `gating_exponent`, `gating_exponent_lo`, `gating_exponent_hi`, `sparsity_gating`, `utilization_default`, `accumulator_bits` in `matching`
    profile `p.toml`: `transition.precision.grade` must be F, S, D, E or R, got none
    profile `p.toml`: `transition.precision` holds numbers: expected `src`, where they come from
    profile `p.toml`: `matching.grade` must be F, S, D, E or R, got "G"
    profile `p.toml`: `mode.4x4b.e_mac_pj` must be positive, got -0.474
    profile `p.toml`: mode `4x4b`: no supply point `lpp`
    profile `p.toml`: `static.leakage_mw` = 1: with style `chip_total` the energy of a MAC holds everything that `[scope]` marks true; adding it again would count it twice
    profile `p.toml`: memory `sram` with `in_mac_energy = false`: with style `chip_total` the energy of a MAC holds everything that `[scope]` marks true; adding it again would count it twice
    profile `p.toml`: `schema_version` must be 1, got 2
    "#);
}

#[test]
fn what_is_unknown_is_listed_and_never_zero() {
    let unknown: Vec<String> = envision().not_counted.into_iter().map(|n| n.0).collect();
    assert_eq!(unknown, ["static.idle_mw", "static.sleep_mw", "scope.io", "scope.regulator"]);
    let text = ENVISION.replace("e_mac_pj = 0.474 ", "e_mac_pj = \"unknown\" ");
    let profile = AcceleratorProfile::parse("test", &text).unwrap();
    let error = policy_cost(&profile, &workload(1), &[&[widths(4); 2]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "profile `envision-28nm`: `mode.4x4b.e_mac_pj` is unknown, and without it no energy can be given"
    );
}

/// The second layer reads `elements` of a tensor, and the same as a residual.
fn resumable(elements: u64) -> Workload {
    let mut workload = workload(elements);
    let last = &mut workload.layers[1];
    (last.outputs, last.residual) = (10, 0);
    let live = |side| Live { tensor: 7, elements, layer: 1, side };
    last.boundary = Some(vec![live(false), live(true)]);
    workload
}

fn costs(workload: &Workload, low: &[Widths], high: &[Widths], shared: usize) -> Vec<StageCost> {
    let stages = [StagePoint { widths: low, shared: 0 }, StagePoint { widths: high, shared }];
    stage_costs(&envision(), workload, &stages, Storage::Independent).unwrap()
}

#[test]
fn a_resumed_stage_pays_for_the_layers_that_it_runs() {
    let (low, high) = ([widths(4); 2], [widths(4), widths(8)]);
    let anew = costs(&resumable(100), &low, &high, 0);
    let cost = costs(&resumable(100), &low, &high, 1);
    // To 8 bits and back to 4 either way: 2 · (0.05 + 3.2) nJ.
    assert!(close(anew[1].energy.chip_uj, 0.474 + 1.90 + 6.5e-3));
    assert!(close(cost[1].energy.chip_uj, 1.90 + 6.5e-3));
    assert_eq!(cost[1].layers[0].energy, Energy::default());
    // What crosses the boundary stays on chip, and the input isn't read again.
    assert_eq!((cost[0].energy, cost[1].energy.offchip_uj), (anew[0].energy, 0.0));
}

#[test]
fn what_crosses_the_boundary_goes_off_chip_where_it_does_not_fit() {
    let (low, high) = ([widths(4); 2], [widths(4), widths(8)]);
    // One version of 8 bits, for operand and residual: 640,000 bits beside 320,000 + 160 of the
    // low stage's second layer and 17,280 of weights and biases, of 1,048,576.
    let fits = costs(&resumable(80_000), &low, &high, 1);
    assert_eq!(fits[1].energy.offchip_uj, 0.0);
    // 720,000 bits beside 360,160 do not fit.
    let cost = costs(&resumable(90_000), &low, &high, 1);
    assert!(cost[0].resident);
    assert!(close(cost[0].energy.offchip_uj, (360_000.0 + 720_000.0) * 8e-6));
    assert!(close(cost[1].energy.offchip_uj, 720_000.0 * 8e-6));
}

#[test]
fn a_spilled_operand_is_read_once() {
    // The second layer's operand alone takes 1.6 Mbit: its layer reads it from outside anyway.
    let mut workload = resumable(200_000);
    workload.layers[1].boundary.as_mut().unwrap().pop();
    let cost =
        costs(&workload, &[widths(8); 2], &[widths(8), Widths { weights: 4, activations: 8 }], 1);
    // 1.6 Mbit of operand; its 4-bit weights, 32-bit biases and 10 results of 16 bits.
    let spilled = 1_600_000.0 + 160.0;
    let weights = if cost[1].resident { 0.0 } else { 4_320.0 };
    assert!(close(cost[1].energy.offchip_uj, (spilled + weights) * 8e-6));
}

#[test]
fn weights_that_a_resumed_stage_does_not_run_need_no_place() {
    let mut workload = resumable(100);
    workload.layers[0].weights = 60_000;
    // 480,000 bits of 8-bit weights twice leave too little room for 100,000 bits of the others.
    let (low, high) = ([widths(8); 2], [widths(8), widths(16)]);
    workload.layers[1].weights = 5_000;
    assert!(!costs(&workload, &low, &high, 0)[0].resident);
    assert!(costs(&workload, &low, &high, 1)[0].resident);
}

#[test]
fn layers_are_shared_up_to_the_last_boundary_within_equal_widths() {
    let mut workload = workload(10);
    let layer = workload.layers[0].clone();
    workload.layers = vec![layer; 5];
    let live = |layer, side| Live { tensor: layer, elements: 10, layer, side };
    workload.layers[1].boundary = Some(vec![live(1, false)]);
    workload.layers[3].boundary = Some(vec![live(3, false), live(4, true)]);
    let point = |bits: [u8; 5]| bits.map(widths);
    let shared = |low, high| workload.shared_layers(&point(low), &point(high), 5);
    assert_eq!(shared([3; 5], [3, 3, 3, 3, 8]), 3);
    assert_eq!(shared([3; 5], [3, 3, 3, 8, 8]), 3);
    assert_eq!(shared([3; 5], [3, 3, 8, 8, 8]), 1);
    assert_eq!(shared([3; 5], [8; 5]), 0);
    assert_eq!(workload.shared_layers(&point([3; 5]), &point([3; 5]), 2), 1);
    // A residual of more than 8 bits is computed differently; here the second layer reads no wide
    // tensor across its boundary.
    assert_eq!(shared([3; 5], [3, 3, 3, 8, 10]), 1);
    assert_eq!(shared([3; 5], [3, 12, 3, 3, 3]), 0);
    // Even points that agree in all layers leave the last to the later stage.
    assert_eq!(shared([3; 5], [3; 5]), 3);
}

#[test]
fn nested_weights_take_the_place_of_the_widest() {
    let mut workload = workload(100);
    for layer in &mut workload.layers {
        layer.weights = 24_000;
    }
    let (low, high) = ([widths(8); 2], [widths(16); 2]);
    let stages = [&low[..], &high].map(|widths| StagePoint { widths, shared: 0 });
    let cost = |profile: &AcceleratorProfile, workload: &Workload, storage| {
        stage_costs(profile, workload, &stages, storage).unwrap()
    };
    // 48,000 weights of 16 bits are 768,000 bits; with 8-bit copies beside them 1,152,000.
    assert!(cost(&envision(), &workload, Storage::Nested)[0].resident);
    assert!(!cost(&envision(), &workload, Storage::Independent)[0].resident);
    // 40,000 a layer do not fit either way. Packed by bit, the low stage reads leading bits only;
    // packed by byte, 16-bit codes are read whole.
    for layer in &mut workload.layers {
        layer.weights = 40_000;
    }
    let rest = 640.0 + 800.0;
    let got = cost(&envision(), &workload, Storage::Nested);
    assert!(close(got[0].energy.offchip_uj, (640_000.0 + rest) * 8e-6));
    let text = ENVISION.replace("packing = \"bit\"", "packing = \"byte\"");
    let bytes = AcceleratorProfile::parse("test", &text).unwrap();
    let got = cost(&bytes, &workload, Storage::Nested);
    assert!(close(got[0].energy.offchip_uj, (1_280_000.0 + rest) * 8e-6));
}
