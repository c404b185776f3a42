//! The quantizer on the demo's model.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::OnceLock;

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::execute::{Engine, Format, IntegerModel};
use bitgear::graph::Graph;
use bitgear::quantize::{
    CodeBooks, Constraints, Correction, Methods, Point, Quantizer, RangeRule, Ranges, Rounding,
    Widths, calibrate, quantize,
};
use bitgear::tensor::Tensor;
use bitgear::{float, onnx};
use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;

use crate::real::root;

struct Fixture {
    graph: Graph,
    ranges: Ranges,
    samples: Tensor,
    test: Tensor,
    labels: Vec<u32>,
}

fn data(name: &str) -> Dataset {
    Dataset::read(&Source::Path(root().join("examples/fashion-mnist").join(name))).unwrap()
}

fn preprocess() -> Preprocess {
    Preprocess { scale: 1.0 / 255.0, ..Preprocess::default() }
}

fn calibration(samples: Range<usize>) -> Tensor {
    data("calibration.npz").batch(&samples.collect::<Vec<_>>(), &preprocess())
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let example = root().join("examples/fashion-mnist");
        let graph = onnx::import_file(&example.join("fashion-mnist.onnx")).unwrap();
        let test = data("test.npz");
        let samples = calibration(0..48);
        let ranges = calibrate(&graph, 48, |span| Ok::<_, Infallible>(calibration(span)));
        let tested: Vec<usize> = (0..1000).collect();
        Fixture {
            ranges: ranges.unwrap(),
            samples,
            test: test.batch(&tested, &preprocess()),
            labels: test.labels().unwrap()[..1000].to_vec(),
            graph,
        }
    })
}

fn fitted(point: &str, methods: Methods, constraints: Constraints) -> IntegerModel {
    let Fixture { graph, ranges, samples, .. } = fixture();
    let point: Point = point.parse().unwrap();
    Quantizer::new(graph, ranges, samples, methods, constraints).quantize(&point).unwrap()
}

fn right(model: &IntegerModel) -> usize {
    let scores = Engine::new(model, Kernels::detect()).scores(&fixture().test);
    let rows = scores.chunks_exact(model.classes()).zip(&fixture().labels);
    rows.filter(|(scores, label)| answer(scores).class == **label as usize).count()
}

#[test]
fn fitted_layers_answer_far_better_at_few_bits_and_no_worse_at_many() {
    let Fixture { graph, ranges, .. } = fixture();
    for (point, gain) in [("w3a3", 40), ("w8a8", -8)] {
        let plain = quantize(graph, ranges, &point.parse().unwrap()).unwrap();
        let best = fitted(point, Methods::best(), Constraints::default());
        let (best, plain) = (right(&best) as i32, right(&plain) as i32);
        assert!(best >= plain + gain, "{point}: {best} and {plain} of 1000");
    }
}

#[test]
fn plain_methods_are_the_plain_quantizer() {
    let Fixture { graph, ranges, .. } = fixture();
    let plain = quantize(graph, ranges, &"w4a4".parse().unwrap()).unwrap();
    assert_eq!(fitted("w4a4", Methods::plain(), Constraints::default()), plain);
}

#[test]
fn every_step_can_be_switched_off_and_matters() {
    let best = Methods::best();
    let reference = fitted("w3a3-f8l8", best, Constraints::default());
    let variants = [
        Methods { range: RangeRule::Largest, ..best },
        Methods { range: RangeRule::Percentile(0.999), ..best },
        Methods { range: RangeRule::SquaredError, ..best },
        Methods { regression: false, ..best },
        Methods { rounding: Rounding::Nearest, ..best },
        Methods { signed_scales: false, ..best },
        Methods { descent: 0, ..best },
        Methods { refit: false, ..best },
        Methods { correction: Correction::None, ..best },
        Methods { correction: Correction::Statistics, ..best },
        Methods { residual_error: false, ..best },
        Methods { activation_aware: 0, ..best },
        Methods { equalization: false, ..best },
        Methods { tuning: 0, ..best },
    ];
    for methods in variants {
        let model = fitted("w3a3-f8l8", methods, Constraints::default());
        model.validate().unwrap();
        assert_ne!(model, reference, "{methods:?}");
    }
}

/// Mean divergence of a model's answers from the float network's.
fn divergence(model: &IntegerModel, samples: &Tensor) -> f64 {
    let Fixture { graph, .. } = fixture();
    let scores = Engine::new(model, Kernels::detect()).scores(samples);
    let softmax = |scores: &mut dyn Iterator<Item = f64>| -> Vec<f64> {
        let mut row: Vec<f64> = scores.collect();
        float::softmax(&mut row);
        row
    };
    let exact = float::run(graph, samples);
    let rows = exact.values().chunks_exact(model.classes());
    let each = rows.zip(scores.chunks_exact(model.classes())).map(|(exact, scores)| -> f64 {
        let p = softmax(&mut exact.iter().map(|&s| f64::from(s)));
        let q = softmax(&mut scores.iter().map(|&s| f64::from(s) * model.score_scale()));
        p.iter().zip(&q).map(|(p, q)| p * (p / q.max(1e-12)).max(1e-12).ln()).sum()
    });
    each.sum::<f64>() / samples.shape()[0] as f64
}

#[test]
fn tuning_brings_the_scores_nearer_and_changes_no_code_of_a_weight() {
    let Fixture { graph, ranges, .. } = fixture();
    let samples = calibration(0..128);
    let quantizer = |tuning| {
        let methods = Methods { tuning, ..Methods::best() };
        Quantizer::new(graph, ranges, &samples, methods, Constraints::default())
    };
    // Tuning holds samples out of the fit, so a single step is what to compare with.
    let (once, tuned) = (quantizer(1), quantizer(128));
    let point: Point = "w2a2".parse().unwrap();
    let models = [&once, &tuned].map(|quantizer| quantizer.quantize(&point).unwrap());
    for (data, most) in [(&samples, 0.8), (&fixture().test, 0.95)] {
        let [once, tuned] = [0, 1].map(|i| divergence(&models[i], data));
        assert!(tuned < most * once, "{tuned} after {once} nats");
    }
    // Wide layers at the front stay as they are, so that points may share them.
    let point: Point = "w2a2-f8l8".parse().unwrap();
    let [once, twice] = [once, quantizer(2)].map(|quantizer| quantizer.fit(&point));
    for (once, twice) in once.layers.iter().zip(&twice.layers) {
        assert_eq!(once.weights.codes, twice.weights.codes);
    }
    assert_eq!(once.layers[0], twice.layers[0]);
    assert_ne!(once.layers[1], twice.layers[1]);
}

/// As planned by; `tuning_brings_the_scores_nearer…` sees what they do.
#[test]
fn fewer_than_256_samples_are_looked_at_in_twice_as_many_steps() {
    let Fixture { graph, ranges, .. } = fixture();
    let seconds = |samples: usize, tuning: usize| {
        let samples = calibration(0..samples);
        let methods = Methods { tuning, ..Methods::best() };
        Quantizer::new(graph, ranges, &samples, methods, Constraints::default()).fitting_seconds()
    };
    let tuning = |samples| seconds(samples, 256) - seconds(samples, 0);
    let [few, enough] = [tuning(255), tuning(256)];
    assert!(few > 0.0 && (few - 2.0 * enough).abs() < 1e-6 * few, "{few} and {enough} seconds");
}

#[test]
fn the_fewest_samples_that_are_tuned_on_are_tuned_on() {
    let Fixture { graph, ranges, .. } = fixture();
    let fits = |samples: usize| {
        let samples = calibration(0..samples);
        let fit = |tuning| {
            let methods = Methods { tuning, ..Methods::best() };
            let quantizer =
                Quantizer::new(graph, ranges, &samples, methods, Constraints::default());
            quantizer.fit(&"w2a2".parse().unwrap())
        };
        [fit(1), fit(2)]
    };
    let [once, twice] = fits(32);
    assert_ne!(once.layers, twice.layers);
    let [once, twice] = fits(31);
    assert_eq!(once.layers, twice.layers);
}

#[test]
fn scales_are_what_the_hardware_allows() {
    let constraints = Constraints {
        per_tensor_scales: true,
        power_of_two_scales: true,
        no_zero_points: true,
        ..Constraints::default()
    };
    let Fixture { graph, ranges, samples, .. } = fixture();
    let point: Point = "w4a4".parse().unwrap();
    let quantizer = Quantizer::new(graph, ranges, samples, Methods::best(), constraints);
    let [best, plain] = [&quantizer, &quantizer.plain()].map(|q| q.quantize(&point).unwrap());
    for model in [&best, &plain] {
        for mac in model.mac_steps() {
            for output in &mac.outputs {
                if matches!(model.maps[output.map].format, Format::Scores { .. }) {
                    continue;
                }
                let first = output.multipliers[0];
                assert!(output.multipliers.iter().all(|m| *m == first), "{}", mac.name);
                assert_eq!(first.to_bits() & 0x7f_ffff, 0, "{}: {first}", mac.name);
            }
        }
    }
    assert!(right(&best) > 850, "{} of 1000", right(&best));
}

#[test]
fn zeros_of_signed_inputs_are_where_the_hardware_has_them() {
    let graph = &fixture().graph;
    // Pixels from -0.2 to 0.8.
    let values = fixture().samples.values().iter().map(|v| v - 0.2).collect();
    let samples = Tensor::new(fixture().samples.shape().to_vec(), values);
    let count = samples.shape()[0];
    let ranges = calibrate(graph, count, |span| Ok::<_, Infallible>(part(&samples, span))).unwrap();
    let off_centre = |no_zero_points| {
        let constraints = Constraints { no_zero_points, ..Constraints::default() };
        let methods = Methods { tuning: 0, ..Methods::best() };
        let quantizer = Quantizer::new(graph, &ranges, &samples, methods, constraints);
        let model = quantizer.quantize(&"w4a4".parse().unwrap()).unwrap();
        let scale = model.maps[model.inputs[0]].scale();
        scale.twice_zero() != 2 << (scale.bits.get() - 1)
    };
    assert!(off_centre(false));
    assert!(!off_centre(true));
}

fn part(samples: &Tensor, span: Range<usize>) -> Tensor {
    let size = samples.values().len() / samples.shape()[0];
    let shape = [&[span.len()], &samples.shape()[1..]].concat();
    Tensor::new(shape, samples.values()[span.start * size..span.end * size].to_vec())
}

#[test]
fn weights_of_two_bits_are_what_the_hardware_lists() {
    let twos_complement = CodeBooks::default();
    let none = CodeBooks { twos_complement: false, ..twos_complement };
    let ternary = CodeBooks { ternary: true, ..none };
    let odd = CodeBooks { odd: true, ..none };
    let all = CodeBooks { twos_complement: true, ternary: true, odd: true };
    let methods = Methods { tuning: 0, ..Methods::best() };
    let model = |two_bit_codes| {
        fitted("w2a4-f8l8", methods, Constraints { two_bit_codes, ..Constraints::default() })
    };
    let allowed = |model: &IntegerModel, codes: &[i16]| {
        let layers = model.mac_steps().filter(|mac| mac.weight_bits == 2);
        layers.flat_map(|mac| &mac.codes).all(|code| codes.contains(code))
    };
    let ternary = model(ternary);
    assert!(allowed(&ternary, &[-1, 0, 1]));
    let odd = model(odd);
    assert!(allowed(&odd, &[-3, -1, 1, 3]) && !allowed(&odd, &[-1, 1]));
    let free = model(all);
    let error = |model: &IntegerModel| 1000 - right(model);
    let least = error(&ternary).min(error(&odd)).min(error(&model(twos_complement)));
    assert!(error(&free) <= least + 30, "{} instead of {least}", error(&free));
}

#[test]
fn a_layers_sensitivity_is_what_a_network_loses_whose_other_layers_are_wide() {
    let Fixture { graph, ranges, test, .. } = fixture();
    let samples = calibration(0..128);
    let methods = Methods { tuning: 0, ..Methods::best() };
    let quantizer = Quantizer::new(graph, ranges, &samples, methods, Constraints::default());
    let widths = |bits| {
        let bits = BitWidth::new(bits).unwrap();
        Widths { weights: bits, activations: bits }
    };
    let measured = quantizer.sensitivity(&[widths(3)], || ());
    let layers = measured.layers.len();
    let (mut expected, mut seen) = (0.0, 0.0);
    for (layer, sensitivity) in measured.layers.iter().enumerate() {
        let table = (0..layers).map(|l| widths(if l == layer { 3 } else { 16 })).collect();
        let model = quantizer.quantize(&Point::mixed(0, table)).unwrap();
        let divergence = divergence(&model, &part(test, 0..500));
        let estimate = sensitivity.widths[0].divergence;
        let ratio = estimate / divergence;
        assert!((0.3..3.0).contains(&ratio), "layer {layer}: {estimate}, not {divergence} nats");
        (expected, seen) = (expected + estimate, seen + divergence);
    }
    assert!((0.6..1.6).contains(&(expected / seen)), "{expected}, not {seen} nats in all");
}
