//! Import and float execution of real models, against other engines.

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::float;
use bitgear::onnx;
use bitgear::tensor::Tensor;
use rten_tensor::Tensor as RtenTensor;
use rten_tensor::prelude::*;

use crate::real::{REAL, root, shared};

/// Largest difference relative to the largest expected score. Sums are made in another order, so
/// floats differ in their last bits; layers and batch norms let that grow a little.
const TOLERANCE: f32 = 1e-4;

fn relative_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn softmax(scores: &mut [f32], classes: usize) {
    for row in scores.chunks_exact_mut(classes) {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|s| (s - highest).exp()).sum();
        for score in row {
            *score = (*score - highest).exp() / sum;
        }
    }
}

fn rten(path: &std::path::Path, batch: &Tensor) -> Vec<f32> {
    let model = rten::Model::load_file(path).unwrap();
    let input = RtenTensor::from_data(batch.shape(), batch.values().to_vec());
    let output = model.run_one(input.view().into(), None).unwrap();
    let output: RtenTensor<f32> = output.try_into().unwrap();
    output.to_vec()
}

#[test]
fn real_models_score_like_an_independent_engine() {
    let Some(shared) = shared("real_models_score_like_an_independent_engine") else { return };
    for real in REAL {
        let (graph, data) = (real.graph(&shared), real.dataset(&shared));
        let batch = data.batch(&[0, 1, 2, 3], &real.preprocess());
        let mut got = float::run(&graph, &batch).into_values();
        let expected = rten(&shared.join(format!("models/{}.onnx", real.name)), &batch);
        if expected.iter().all(|p| (0.0..=1.0).contains(p)) {
            // The model ends in a softmax, which import drops.
            softmax(&mut got, graph.classes());
        }
        let difference = relative_difference(&got, &expected);
        assert!(difference < TOLERANCE, "{}: {difference}", real.name);
    }
}

#[test]
fn a_model_without_data_scores_like_an_independent_engine() {
    let Some(shared) = shared("a_model_without_data_scores_like_an_independent_engine") else {
        return;
    };
    let path = shared.join("models/mlperftiny_vww_mobilenetv1_025_96.onnx");
    let graph = onnx::import_file(&path).unwrap();
    let len = 3 * 96 * 96;
    let values = (0..2 * len).map(|i| (i * 7919 % 1000) as f32 / 1000.0).collect();
    let batch = Tensor::new([2, 3, 96, 96], values);
    let mut got = float::run(&graph, &batch).into_values();
    let expected = rten(&path, &batch);
    if expected.iter().all(|p| (0.0..=1.0).contains(p)) {
        softmax(&mut got, graph.classes());
    }
    assert!(relative_difference(&got, &expected) < TOLERANCE);
}

#[test]
fn a_sample_scores_the_same_alone_and_in_a_batch() {
    let data =
        Dataset::read(&Source::Path(root().join("examples/fashion-mnist/golden.npz"))).unwrap();
    let graph =
        onnx::import_file(&root().join("examples/fashion-mnist/fashion-mnist.onnx")).unwrap();
    let all = float::run(&graph, &data.batch(&[0, 1, 2, 3], &Preprocess::default()));
    for i in 0..4 {
        let one = float::run(&graph, &data.batch(&[i], &Preprocess::default()));
        assert_eq!(one.values(), &all.values()[10 * i..10 * (i + 1)]);
    }
}

#[test]
fn the_demos_model_scores_like_onnx_runtime() {
    // `golden.npz` and `golden-scores.npy` come from ONNX Runtime, see examples/fashion-mnist/train.py.
    let example = root().join("examples/fashion-mnist");
    let graph = onnx::import_file(&example.join("fashion-mnist.onnx")).unwrap();
    let images = Dataset::read(&Source::Path(example.join("golden.npz"))).unwrap();
    let scores = Dataset::read(&Source::Path(example.join("golden-scores.npy"))).unwrap();
    let indices: Vec<usize> = (0..images.len()).collect();
    let pixels = Preprocess { scale: 1.0 / 255.0, ..Preprocess::default() };
    let got = float::run(&graph, &images.batch(&indices, &pixels));
    let expected = scores.batch(&indices, &Preprocess::default());
    let difference = relative_difference(got.values(), expected.values());
    assert!(difference < 1e-5, "{difference}");
}
