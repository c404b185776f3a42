//! The quantizer on the demo's model.

use std::convert::Infallible;
use std::sync::OnceLock;

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::execute::{Engine, Format, IntegerModel};
use bitgear::graph::Graph;
use bitgear::onnx;
use bitgear::quantize::{
    Constraints, Correction, Methods, Point, Quantizer, RangeRule, Ranges, Rounding, calibrate,
    quantize,
};
use bitgear::tensor::Tensor;
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

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let example = root().join("examples/fashion-mnist");
        let graph = onnx::import_file(&example.join("fashion-mnist.onnx")).unwrap();
        let read = |name: &str| Dataset::read(&Source::Path(example.join(name))).unwrap();
        let preprocess = Preprocess { scale: 1.0 / 255.0, ..Preprocess::default() };
        let (calibration, test) = (read("calibration.npz"), read("test.npz"));
        let indices: Vec<usize> = (0..48).collect();
        let samples = calibration.batch(&indices, &preprocess);
        let ranges = calibrate(&graph, indices.len(), |span| {
            Ok::<_, Infallible>(calibration.batch(&indices[span], &preprocess))
        });
        let tested: Vec<usize> = (0..1000).collect();
        Fixture {
            ranges: ranges.unwrap(),
            samples,
            test: test.batch(&tested, &preprocess),
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
    ];
    for methods in variants {
        let model = fitted("w3a3-f8l8", methods, Constraints::default());
        model.validate().unwrap();
        assert_ne!(model, reference, "{methods:?}");
    }
}

#[test]
fn scales_are_what_the_hardware_allows() {
    let constraints =
        Constraints { per_tensor_scales: true, power_of_two_scales: true, no_zero_points: true };
    let model = fitted("w4a4", Methods::best(), constraints);
    for mac in model.mac_steps() {
        for output in &mac.outputs {
            if matches!(model.maps[output.map].format, Format::Scores { .. }) {
                continue;
            }
            let first = output.multipliers[0];
            assert!(output.multipliers.iter().all(|m| *m == first), "{}", mac.name);
            assert_eq!(first.to_bits() & 0x7f_ffff, 0, "{}: {first} is no power of two", mac.name);
        }
    }
    assert!(right(&model) > 850, "{} of 1000", right(&model));
}
