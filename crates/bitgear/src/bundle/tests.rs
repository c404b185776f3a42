use bitgear_core::margin::answer;

use proptest::prelude::*;

use super::weights::mac_steps;
use super::*;
use crate::characterize::workload;
use crate::energy;
use crate::execute::MacStep;
use crate::execute::fixture::{LAYERS, check, fixture, model, split_at};
use crate::execute::shared_layers;
use crate::policy::{Expected, LastResort, Provenance, StageFile, SumFile};

const ENERGY: EnergyUj = EnergyUj { total: 3.0, chip: 2.0, offchip: 1.0 };

fn bundle(models: Vec<IntegerModel>, shared: usize, storage: Storage) -> Bundle {
    let (low, high) = (&models[0], &models[1]);
    // About half of the samples are handed on.
    let scores = Engine::new(low, Kernels::scalar()).scores(&fixture().samples);
    let mut margins: Vec<i32> =
        scores.chunks_exact(low.classes()).map(|scores| answer(scores).margin).collect();
    margins.sort_unstable();
    let policy = PolicyFile {
        schema_version: 1,
        provenance: Provenance {
            tool_version: "0".to_owned(),
            model_sha256: String::new(),
            data_sha256: String::new(),
            calibration_sha256: String::new(),
            accelerator_sha256: String::new(),
            seed: 1,
        },
        stages: vec![StageFile {
            point: low.point.clone(),
            view: "as-is".to_owned(),
            scores: "replace".to_owned(),
            sum: None,
            shared_layers: 0,
            accept_at: 0.0,
            accept_at_code: margins[margins.len() / 2],
            score_scale: low.score_scale(),
            tables: None,
        }],
        last_resort: LastResort {
            point: high.point.clone(),
            view: "as-is".to_owned(),
            scores: "replace".to_owned(),
            sum: None,
            shared_layers: shared,
        },
        stage_energy_uj: vec![ENERGY; 2],
        expected: Expected {
            accuracy: 1.0,
            accuracy_drop: 0.0,
            escalation_rates: vec![0.5],
            energy_uj: ENERGY,
        },
        certificate: None,
    };
    let splits = Splits {
        schema_version: 1,
        data_sha256: String::new(),
        calibration_sha256: String::new(),
        seed: 1,
        calibration: vec![],
        search: vec![],
        certification: vec![],
        test: vec![],
        class_mix: None,
    };
    Bundle {
        schema_version: 1,
        classes: low.classes(),
        preprocess: Preprocess::default(),
        policy,
        others: Vec::new(),
        splits,
        storage,
        models,
    }
}

/// Gives the layers `of` a network the leading bits of the codes of a wider one. They are about
/// twice as large as its own.
fn nest(narrow: &mut IntegerModel, wide: &IntegerModel, of: std::ops::Range<usize>) {
    let wide: Vec<MacStep> = wide.mac_steps().cloned().collect();
    for (layer, mac) in mac_steps(narrow).filter(|(layer, _)| of.contains(layer)) {
        let dropped = wide[layer].weight_bits - mac.weight_bits;
        if mac.weight_bits > 1 {
            mac.bias.iter_mut().for_each(|bias| *bias *= 2);
            let residual = mac.residual.iter_mut().flat_map(|(_, multipliers)| multipliers);
            residual.for_each(|multiplier| *multiplier *= 2);
            let outputs = mac.outputs.iter_mut().flat_map(|output| &mut output.multipliers);
            outputs.for_each(|multiplier| *multiplier /= 2.0);
        }
        mac.odd = true;
        mac.codes = wide[layer].codes.iter().map(|c| 2 * (c >> dropped) + 1).collect();
    }
}

/// A low point that reads the leading bits of a high one's codes; they share their first 3 layers.
fn nested_models(bits: u8) -> Vec<IntegerModel> {
    let high = split_at(3, (bits, 4), (8, 8));
    let mut low = model(&[(bits, 4); LAYERS]);
    nest(&mut low, &high, 3..LAYERS);
    vec![low, high]
}

fn weights(model: &IntegerModel) -> Vec<usize> {
    model.mac_steps().map(|mac| mac.codes.len()).collect()
}

#[test]
fn nested_weights_are_written_once_and_come_back_for_every_point() {
    for bits in 1..8 {
        let models = nested_models(bits);
        let independent = vec![model(&[(bits, 4); LAYERS]), models[1].clone()];
        let lens = weights(&models[0]);
        let size = |bits: [u8; LAYERS]| -> usize {
            lens.iter().zip(bits).map(|(&len, bits)| pack::packed_len(len, bits)).sum()
        };
        let mut widest = [8; LAYERS];
        widest[..3].fill(bits);
        let apart = bundle(independent.clone(), 3, Storage::Independent);
        let nested = bundle(models, 3, Storage::Nested);
        let bytes = |bundle: &Bundle| weight_bytes(&bundle.models, bundle.storage);
        assert_eq!(bytes(&nested), size(widest));
        assert_eq!(bytes(&apart), size([bits; LAYERS]) + size(widest));
        for bundle in [&apart, &nested] {
            let bytes = bundle.to_bytes().unwrap();
            assert_eq!(&Bundle::from_bytes(&bytes).unwrap(), bundle, "{bits} bits");
        }
        let saved = apart.to_bytes().unwrap().len() - nested.to_bytes().unwrap().len();
        assert!(saved >= size([bits; LAYERS]), "{bits} bits: {saved} bytes");
    }
}

#[test]
fn odd_codes_of_two_bits_come_back_from_weights_of_their_own() {
    let wide = model(&[(8, 8); LAYERS]);
    let mut narrow = model(&[(2, 4); LAYERS]);
    nest(&mut narrow, &wide, 0..LAYERS);
    let bundle = bundle(vec![narrow, wide], 0, Storage::Independent);
    assert_eq!(Bundle::from_bytes(&bundle.to_bytes().unwrap()).unwrap(), bundle);
}

#[test]
fn a_bundle_with_shared_layers_answers_as_one_without() {
    let samples = &fixture().samples;
    let mut models = vec![model(&[(3, 3); LAYERS]), split_at(3, (3, 3), (8, 8))];
    for storage in [Storage::Independent, Storage::Nested] {
        if storage == Storage::Nested {
            models = nested_models(6);
        }
        for kernels in Kernels::present() {
            let answers = |shared: usize| {
                let bundle = bundle(models.clone(), shared, storage);
                let bundle = Bundle::from_bytes(&bundle.to_bytes().unwrap()).unwrap();
                let runner = bundle.runner(kernels);
                assert_eq!(runner.energy_uj(1), EnergyUj { total: 6.0, chip: 4.0, offchip: 2.0 });
                let decisions = runner.decide(samples);
                assert_eq!(bundle.clone().run_only(kernels).decide(samples), decisions);
                decisions
            };
            let anew = answers(0);
            let escalated = anew.iter().filter(|decision| decision.stage == 1).count();
            assert!(0 < escalated && escalated < anew.len(), "{escalated} of {}", anew.len());
            assert_eq!(answers(3), anew, "{storage:?} on {}", kernels.name());
        }
    }
}

/// The mirrored view of the same point, its scores summed, behind a learned gate: decided by hand from
/// the scores of both views.
#[test]
fn a_mirrored_and_summed_stage_adds_the_scores_of_both_views() {
    let samples = &fixture().samples;
    let network = model(&[(4, 4); LAYERS]);
    let mut bundle = bundle(vec![network.clone(), network.clone()], 0, Storage::Independent);
    let classes = network.classes();
    let tables = Tables {
        predicted: (0..classes as i32).map(|c| 3 * c).collect(),
        runner_up: vec![-2; classes],
        disagreement: 0,
    };
    bundle.policy.stages[0].tables = Some(tables.clone());
    bundle.policy.last_resort.view = "mirror".to_owned();
    bundle.policy.last_resort.scores = "sum".to_owned();
    let factor = 0.75_f32;
    bundle.policy.last_resort.sum = Some(SumFile { weight: 0.75, factor });

    let engine = Engine::new(&network, Kernels::scalar());
    let as_is = engine.scores(samples);
    let mut mirrored = samples.clone();
    crate::data::mirror(&mut mirrored);
    let mirrored = engine.scores(&mirrored);
    let rows = as_is.chunks_exact(classes).zip(mirrored.chunks_exact(classes));
    let expected: Vec<(usize, Vec<i32>)> = rows
        .map(|(low, high)| {
            let first = answer(low);
            let gate = first.margin - tables.predicted[first.class] + 2;
            if gate >= bundle.policy.stages[0].accept_at_code {
                return (0, low.to_vec());
            }
            let sum = |(l, h): (&i32, &i32)| (f64::from(*l) * 0.75).round_ties_even() as i32 + h;
            (1, low.iter().zip(high).map(sum).collect())
        })
        .collect();
    assert!(expected.iter().any(|(stage, _)| *stage == 0));
    assert!(expected.iter().any(|(stage, _)| *stage == 1));

    let bytes = bundle.to_bytes().unwrap();
    let single = Bundle { models: vec![network], ..bundle.clone() };
    assert_eq!(
        weight_bytes(&bundle.models, bundle.storage),
        weight_bytes(&single.models, single.storage)
    );
    let read = Bundle::from_bytes(&bytes).unwrap();
    assert_eq!(read, bundle);
    for kernels in Kernels::present() {
        let decisions = read.runner(kernels).decide(samples);
        let got: Vec<(usize, Vec<i32>)> =
            decisions.into_iter().map(|decision| (decision.stage, decision.scores)).collect();
        assert_eq!(got, expected, "{}", kernels.name());
    }

    bundle.policy.stages[0].tables = Some(Tables { predicted: vec![0], ..Tables::default() });
    assert!(bundle.to_bytes().unwrap_err().contains("gate tables"));
    bundle.policy.stages[0].tables = None;
    bundle.policy.stages[0].scores = "sum".to_owned();
    bundle.policy.stages[0].sum = bundle.policy.last_resort.sum;
    assert!(bundle.to_bytes().unwrap_err().contains("`sum` needs"));
}

/// The third stage goes on from what the second computed, of those inputs alone that the first two answer
/// differently.
#[test]
fn a_stage_that_contradicts_the_one_before_hands_on() {
    let samples = &fixture().samples;
    let narrow = model(&[(2, 2); LAYERS]);
    let models = vec![narrow, model(&[(3, 3); LAYERS]), split_at(3, (3, 3), (8, 8))];
    let scores: Vec<Vec<i32>> =
        models.iter().map(|model| Engine::new(model, Kernels::scalar()).scores(samples)).collect();
    let mut bundle = bundle(models, 3, Storage::Independent);
    let second = &bundle.models[1];
    let classes = second.classes();
    let tables = |disagreement| Tables {
        predicted: vec![0; classes],
        runner_up: vec![0; classes],
        disagreement,
    };
    bundle.policy.stages.push(StageFile {
        point: second.point.clone(),
        accept_at_code: 0,
        score_scale: second.score_scale(),
        tables: Some(tables(i32::MAX)),
        ..bundle.policy.stages[0].clone()
    });
    bundle.policy.stages[0].accept_at_code = i32::MAX;
    bundle.policy.last_resort.point = bundle.models[2].point.clone();
    bundle.policy.stage_energy_uj = vec![ENERGY; 3];
    let class = |stage: usize, row: usize| answer(&scores[stage][row * classes..][..classes]).class;
    let rows = scores[0].len() / classes;
    let stage = |row: usize| if class(0, row) == class(1, row) { 1 } else { 2 };
    let expected: Vec<(usize, Vec<i32>)> = (0..rows)
        .map(|row| (stage(row), scores[stage(row)][row * classes..][..classes].to_vec()))
        .collect();
    for stage in [1, 2] {
        assert!(expected.iter().any(|(by, _)| *by == stage), "{stage} answers nothing");
    }
    let read = Bundle::from_bytes(&bundle.to_bytes().unwrap()).unwrap();
    for kernels in Kernels::present() {
        let decisions = read.runner(kernels).decide(samples).into_iter();
        let got: Vec<_> = decisions.map(|decision| (decision.stage, decision.scores)).collect();
        assert_eq!(got, expected, "{}", kernels.name());
    }

    bundle.policy.stages[0].tables = Some(tables(1));
    assert!(bundle.to_bytes().unwrap_err().contains("0 in the first stage, got 1"));
    bundle.policy.stages[0].tables = None;
    bundle.policy.stages[1].tables = Some(tables(-1));
    assert!(bundle.to_bytes().unwrap_err().contains("at least 0"));
}

#[test]
fn odd_codes_of_eight_bits_run_exactly_on_every_kernel() {
    // 9 bits of two's complement: beyond what byte kernels hold.
    let wide = model(&[(10, 8); LAYERS]);
    let mut narrow = model(&[(8, 8); LAYERS]);
    nest(&mut narrow, &wide, 0..LAYERS);
    narrow.validate().unwrap();
    assert!(narrow.mac_steps().any(|mac| mac.codes.iter().any(|&c| i8::try_from(c).is_err())));
    let samples = &fixture().samples;
    let expected = Engine::new(&narrow, Kernels::scalar()).scores(samples);
    for kernels in Kernels::present() {
        assert_eq!(Engine::new(&narrow, kernels).scores(samples), expected, "{}", kernels.name());
    }
}

#[test]
fn what_contradicts_itself_is_not_written() {
    let fails = |models: Vec<IntegerModel>, shared, storage| {
        bundle(models, shared, storage).to_bytes().unwrap_err()
    };
    let plain = || vec![model(&[(3, 3); LAYERS]), split_at(3, (3, 3), (8, 8))];
    let mut other = nested_models(3);
    mac_steps(&mut other[0]).nth(5).unwrap().1.codes[0] ^= 2;
    let mut even = nested_models(3);
    mac_steps(&mut even[0]).nth(5).unwrap().1.codes[0] = 2;
    let mut wide = nested_models(3);
    mac_steps(&mut wide[0]).nth(5).unwrap().1.weight_bits = 16;
    let mut first = bundle(nested_models(3), 3, Storage::Nested);
    first.policy.stages[0].shared_layers = 1;
    let seen = [
        fails(plain(), 4, Storage::Independent),
        fails(plain(), usize::MAX, Storage::Independent),
        fails(plain(), 3, Storage::Nested),
        fails(other, 0, Storage::Nested),
        fails(even, 0, Storage::Nested),
        fails(wide, 0, Storage::Nested),
        first.to_bytes().unwrap_err(),
    ];
    insta::assert_snapshot!(seen.join("\n"), @r"
    points `mix-000` and `mix-000` must share their first 4 MAC layers, got 3 that agree
    points `mix-000` and `mix-000` must share their first 18446744073709551615 MAC layers, got 3 that agree
    layer `n9`: expected odd codes at 3 of 8 bits
    layer `n8`: 3-bit weights are not the leading bits of the 8-bit ones
    integer network of point `mix-000`: step 7: weight outside -7 … 7, or not odd
    layer `n8`: expected two's complement codes at 16 of 16 bits
    policy: the first stage shares no layers, got `shared_layers` 1
    ");
}

#[test]
fn damaged_nested_bundles_are_refused_or_run_without_a_panic() {
    let bytes = bundle(nested_models(3), 3, Storage::Nested).to_bytes().unwrap();
    let samples = &fixture().samples;
    let header = 8..u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (mut refused, mut ran) = (0, 0);
    for at in header.step_by(13) {
        if !bytes[at].is_ascii_digit() {
            continue;
        }
        for digit in [b'0', b'9' - (bytes[at] - b'0')] {
            let mut copy = bytes.clone();
            copy[at] = digit;
            match Bundle::from_bytes(&copy) {
                Ok(bundle) if bundle.input_shape() == [3, 8, 8] => {
                    bundle.runner(Kernels::detect()).decide(samples);
                    ran += 1;
                }
                Ok(_) => {}
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 0 && ran > 0, "{refused} refused, {ran} ran");
    // A width that no code has, and books that don't fit the widths.
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("weight_bits") && text.contains("\\\"odd\\\""));
    for (from, to) in [
        (r#"\"weight_bits\":3"#, r#"\"weight_bits\":0"#),
        (r#"\"weight_bits\":8"#, r#"\"weight_bits\":9"#),
        (r#"\"shared_layers\":3"#, r#"\"shared_layers\":4"#),
        (r#"\"nested\""#, r#"\"nestes\""#),
        ("0004.weights", "0104.weights"),
    ] {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut copy = bytes.clone();
        copy[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert!(Bundle::from_bytes(&copy).is_err(), "{to}");
    }
}

fn energy_widths(widths: &[(u8, u8)]) -> Vec<energy::Widths> {
    let each = widths.iter().map(|&(w, a)| energy::Widths { weights: w, activations: a });
    each.collect()
}

/// Boundaries and what crosses them; `-` where a fused addition waits for a later layer.
#[test]
fn boundaries_lie_where_no_earlier_layer_needs_a_later_one() {
    let graph = &fixture().graph;
    let shown: Vec<String> = workload(graph)
        .layers
        .iter()
        .map(|layer| {
            let Some(live) = &layer.boundary else { return "-".to_owned() };
            let each = live.iter().map(|live| {
                let side = if live.side { " aside" } else { "" };
                format!("{} for {}{side}", graph.tensors[live.tensor].name, live.layer)
            });
            each.collect::<Vec<_>>().join(", ")
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    -
    n2 for 1, n2 for 2 aside
    n2 for 2 aside, n4 for 2
    n7 for 3, n7 for 4
    -
    -
    n13 for 6 aside, n14 for 6
    n17 for 7, n17 for 7 aside
    n21 for 8
    ");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn points_share_what_their_widths_say_and_resume_bit_for_bit(
        widths in prop::collection::vec((1_u8..=8, 1_u8..=8), LAYERS),
        mut other in prop::collection::vec((1_u8..=8, 1_u8..=8), LAYERS),
        wide in prop::option::of((0..LAYERS, 9_u8..=16)),
        equal in 1..LAYERS,
    ) {
        other[..equal].copy_from_slice(&widths[..equal]);
        if let Some((layer, bits)) = wide {
            other[layer] = (bits, bits);
        }
        let models = [model(&widths), model(&other)];
        let workload = workload(&fixture().graph);
        let (low, high) = (energy_widths(&widths), energy_widths(&other));
        let said = workload.shared_layers(&low, &high, LAYERS);
        prop_assert!(said <= shared_layers(&models[0], &models[1]));
        check(&models, &[0, said]);
    }
}
