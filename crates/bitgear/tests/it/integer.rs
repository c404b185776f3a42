//! Integer networks against the float one, and against themselves on other kernels.

use std::convert::Infallible;

use bitgear::execute::{Engine, IntegerModel};
use bitgear::float;
use bitgear::graph::Graph;
use bitgear::quantize::{Point, Ranges, calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear_core::kernels::Kernels;

use crate::real::{REAL, shared};

fn ranges(graph: &Graph, batch: impl Fn(&[usize]) -> Tensor + Sync, samples: usize) -> Ranges {
    let all: Vec<usize> = (0..samples).collect();
    calibrate(graph, samples, |span| Ok::<_, Infallible>(batch(&all[span]))).unwrap()
}

fn point(name: &str) -> Point {
    name.parse().unwrap()
}

/// Largest difference of integer scores from float ones, relative to the largest float score.
fn difference(model: &IntegerModel, batch: &Tensor, expected: &Tensor) -> f64 {
    let scores = Engine::new(model, Kernels::detect()).scores(batch);
    let largest = expected.values().iter().fold(0.0_f64, |m, &v| m.max(f64::from(v.abs())));
    let distances = scores
        .iter()
        .zip(expected.values())
        .map(|(&q, &f)| (f64::from(q) * model.score_scale() - f64::from(f)).abs());
    distances.fold(0.0, f64::max) / largest
}

#[test]
fn real_models_lose_little_at_sixteen_bits_and_more_at_eight() {
    let Some(shared) = shared("real_models_lose_little_at_sixteen_bits_and_more_at_eight") else {
        return;
    };
    for real in REAL {
        let (graph, data) = (real.graph(&shared), real.dataset(&shared));
        let batch = |indices: &[usize]| data.batch(indices, &real.preprocess());
        let ranges = ranges(&graph, batch, 32);
        let samples = batch(&(32..40).collect::<Vec<_>>());
        let expected = float::run(&graph, &samples);
        let at = |name: &str| {
            let model = quantize(&graph, &ranges, &point(name)).unwrap();
            model.validate().unwrap();
            difference(&model, &samples, &expected)
        };
        let (wide, byte) = (at("w16a16"), at("w8a8"));
        // 16 bits: what clipping at the calibrated range costs. 8 bits: rounding of every layer.
        assert!(wide < 0.02, "{}: {wide} at 16 bits", real.name);
        assert!(byte < 0.25, "{}: {byte} at 8 bits", real.name);
    }
}

#[test]
fn every_kernel_set_gives_the_same_scores_at_every_width() {
    let Some(shared) = shared("every_kernel_set_gives_the_same_scores_at_every_width") else {
        return;
    };
    for name in ["mlperftiny_kws_dscnn", "mnist_cnn_zoo"] {
        let real = REAL.iter().find(|r| r.name == name).unwrap();
        let (graph, data) = (real.graph(&shared), real.dataset(&shared));
        let batch = |indices: &[usize]| data.batch(indices, &real.preprocess());
        let ranges = ranges(&graph, batch, 16);
        let samples = batch(&[20, 21]);
        for bits in 1..=16 {
            let model = quantize(&graph, &ranges, &point(&format!("w{bits}a{bits}"))).unwrap();
            model.validate().unwrap();
            let expected = Engine::new(&model, Kernels::scalar()).scores(&samples);
            for kernels in Kernels::present() {
                let scores = Engine::new(&model, kernels).scores(&samples);
                assert_eq!(scores, expected, "{name} at {bits} bits on {}", kernels.name());
            }
        }
    }
}

#[test]
fn most_layers_of_four_bits_have_the_narrow_epilogue() {
    let Some(shared) = shared("most_layers_of_four_bits_have_the_narrow_epilogue") else {
        return;
    };
    for (name, least) in [("cifar10_resnet20", 16), ("mlperftiny_kws_dscnn", 10)] {
        let real = REAL.iter().find(|r| r.name == name).unwrap();
        let (graph, data) = (real.graph(&shared), real.dataset(&shared));
        let batch = |indices: &[usize]| data.batch(indices, &real.preprocess());
        let ranges = ranges(&graph, batch, 16);
        let model = quantize(&graph, &ranges, &point("w4a4")).unwrap();
        let narrow = Engine::new(&model, Kernels::scalar()).narrow().filter(|&n| n).count();
        assert!(narrow >= least, "{name}: {narrow} of {}", model.mac_steps().count());
    }
}
