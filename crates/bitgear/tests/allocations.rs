//! Once a network or a policy has run, running it again allocates nothing. A binary of its own: the crate that
//! counts replaces the allocator.
#![expect(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::convert::Infallible;
use std::path::Path;

use allocation_counter::{AllocationInfo, measure};
use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::execute::{
    Engine, IntegerModel, Leg, Memory, RunningStage, decide_into, relay, shared_layers,
};
use bitgear::onnx::import_file;
use bitgear::quantize::{calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use bitgear_core::policy::Gate;

const BATCHES: [usize; 2] = [1, 64];

/// The example's network at some points, and preprocessed samples.
fn networks(points: &[&str]) -> (Vec<IntegerModel>, Dataset) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/fashion-mnist");
    let graph = import_file(&folder.join("fashion-mnist.onnx")).unwrap();
    let data = Dataset::read(&Source::Path(folder.join("test.npz"))).unwrap();
    let ranges =
        calibrate(&graph, 16, |span| Ok::<_, Infallible>(batch(&data, span.start, span.len())));
    let network =
        |point: &&str| quantize(&graph, ranges.as_ref().unwrap(), &point.parse().unwrap()).unwrap();
    (points.iter().map(network).collect(), data)
}

fn batch(data: &Dataset, first: usize, samples: usize) -> Tensor {
    let preprocess = Preprocess { scale: 1.0 / 255.0, ..Preprocess::default() };
    data.batch(&(first..first + samples).collect::<Vec<_>>(), &preprocess)
}

/// What the second of two equal runs on one thread allocates.
fn second(mut run: impl FnMut() + Send) -> AllocationInfo {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let first = measure(&mut run);
        assert!(first.count_total > 0, "the counter counts");
        measure(&mut run)
    })
}

#[test]
fn after_the_first_inference_a_network_allocates_nothing() {
    let points = ["w16a16", "w8a8", "w4a4", "w1a1"];
    let (models, data) = networks(&points);
    for kernels in Kernels::present() {
        for (model, point) in models.iter().zip(points) {
            for size in BATCHES {
                let samples = batch(&data, 0, size);
                let engine = Engine::new(model, kernels);
                let mut scores = vec![0; size * model.classes()];
                let allocated = second(|| engine.scores_into(&samples, &mut scores));
                let case = format!("{point}, batch {size} on {}", kernels.name());
                assert_eq!(allocated.count_total, 0, "{case}: {allocated:?}");
            }
        }
    }
}

#[test]
fn after_the_first_inference_a_policy_allocates_nothing() {
    // Stages that start with the input, and stages that share their first layer.
    for points in [["w4a4", "w8a8"], ["w4a8-f8l8", "w8a8"]] {
        let (models, data) = networks(&points);
        let layers = shared_layers(&models[0], &models[1]);
        assert_eq!(layers > 0, points[0].ends_with("-f8l8"), "{points:?}");
        let legs = relay(&models, &[0, layers]).unwrap();
        let (engines, handoffs) = Leg::engines(legs, Kernels::detect());
        for size in BATCHES {
            let samples = batch(&data, 0, size);
            let mut margins: Vec<i32> = Engine::new(&models[0], Kernels::detect())
                .scores(&samples)
                .chunks_exact(models[0].classes())
                .map(|scores| answer(scores).margin)
                .collect();
            margins.sort_unstable();
            // About a sixth is handed on, and a single sample always.
            let accept_at = margins[size / 6].saturating_add(1);
            let stages = [0, 1].map(|i| RunningStage {
                gate: (i == 0).then(|| Gate::margin(accept_at)),
                handoff: handoffs[i].as_ref(),
                ..RunningStage::new(&engines[i])
            });
            let (mut memory, mut decisions) = (Memory::default(), Vec::new());
            let allocated = second(|| decide_into(stages, &samples, &mut memory, &mut decisions));
            assert_eq!(allocated.count_total, 0, "{points:?}, batch {size}: {allocated:?}");
            let handed_on = decisions.iter().filter(|decision| decision.stage == 1).count();
            assert!(handed_on > size / 6, "{points:?}, batch {size}: {handed_on}");
            assert!(size == 1 || handed_on < size, "{points:?}, batch {size}: {handed_on}");
        }
    }
}
