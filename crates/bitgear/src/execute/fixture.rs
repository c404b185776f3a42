//! A small network with everything between its layers, for tests.

use std::convert::Infallible;
use std::sync::OnceLock;

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use bitgear_core::policy::Gate;

use super::{Engine, IntegerModel, Leg, RunningStage, decide, relay};
use crate::graph::{
    Activation, Binary, Conv, Graph, Linear, Node, Op, Pool, TensorId, TensorInfo, infer,
};
use crate::quantize::{Point, Ranges, Widths, calibrate, quantize};
use crate::tensor::Tensor;
use crate::trace::View;

pub(crate) const SAMPLES: usize = 12;
const SHAPE: [usize; 3] = [3, 8, 8];

/// Numbers between -1 and 1 that repeat.
fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn push(graph: &mut Graph, op: Op, inputs: &[TensorId]) -> TensorId {
    let shapes: Vec<&[usize]> = inputs.iter().map(|&t| graph.shape(t)).collect();
    let shape = infer(&op, &shapes).unwrap();
    let (output, name) = (TensorId(graph.tensors.len()), format!("n{}", graph.nodes.len()));
    graph.tensors.push(TensorInfo { name: name.clone(), shape });
    graph.nodes.push(Node { name, op, inputs: inputs.to_vec(), output });
    graph.output = output;
    output
}

fn conv(graph: &mut Graph, x: TensorId, outputs: usize, kernel: usize, relu: bool) -> TensorId {
    let (channels, seed) = (graph.shape(x)[0], graph.nodes.len());
    let len = outputs * channels * kernel * kernel;
    let op = Op::Conv(Conv {
        weight: Tensor::new([outputs, channels, kernel, kernel], noise(len, seed)),
        bias: noise(outputs, seed + 1),
        strides: [1, 1],
        pads: [kernel / 2; 4],
        dilations: [1, 1],
        groups: 1,
    });
    let y = push(graph, op, &[x]);
    if relu { push(graph, Op::Activation(Activation::Relu), &[y]) } else { y }
}

/// Nine MAC layers with everything between them: pooling, a fused addition, a shortcut that is read
/// with another halo, a gate, a table, and a concatenation.
fn graph() -> Graph {
    let input = TensorInfo { name: "x".to_owned(), shape: SHAPE.to_vec() };
    let mut graph = Graph {
        name: "tiny".to_owned(),
        tensors: vec![input],
        nodes: vec![],
        input: TensorId(0),
        output: TensorId(0),
    };
    let g = &mut graph;
    let add = Op::Binary(Binary::Add);
    let relu = Op::Activation(Activation::Relu);
    let stem = conv(g, TensorId(0), 6, 3, true);
    let pool = Pool { kernel: [2; 2], strides: [2; 2], pads: [0; 4] };
    let stem = push(g, Op::MaxPool(pool), &[stem]);
    let y = conv(g, stem, 6, 1, true);
    let y = conv(g, y, 6, 3, false);
    let y = push(g, add.clone(), &[y, stem]);
    let block = push(g, relu.clone(), &[y]);
    let short = conv(g, block, 8, 1, false);
    let y = conv(g, block, 8, 3, true);
    let y = conv(g, y, 8, 3, false);
    let y = push(g, add, &[y, short]);
    let y = push(g, relu, &[y]);
    let mean = push(g, Op::Mean { axes: vec![1, 2], keep: true }, &[y]);
    let gate = conv(g, mean, 8, 1, false);
    let gate = push(g, Op::Activation(Activation::Sigmoid), &[gate]);
    let y = push(g, Op::Binary(Binary::Mul), &[y, gate]);
    let z = conv(g, y, 4, 1, false);
    let z = push(g, Op::Activation(Activation::HardSwish), &[z]);
    let y = push(g, Op::Concat { axis: 0 }, &[y, z]);
    let y = push(g, Op::Mean { axes: vec![1, 2], keep: false }, &[y]);
    let weight = Tensor::new([3, 12], noise(36, 99));
    push(g, Op::Linear(Linear { weight, bias: vec![0.1, 0.0, -0.1] }), &[y]);
    graph
}

pub(crate) const LAYERS: usize = 9;

pub(crate) struct Fixture {
    pub(crate) graph: Graph,
    ranges: Ranges,
    pub(crate) samples: Tensor,
}

pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let graph = graph();
        assert_eq!(graph.mac_layers().len(), LAYERS);
        let [c, h, w] = SHAPE;
        let samples = Tensor::new([SAMPLES, c, h, w], noise(SAMPLES * c * h * w, 1));
        let ranges = calibrate(&graph, 1, |_| Ok::<_, Infallible>(samples.clone())).unwrap();
        Fixture { graph, ranges, samples }
    })
}

pub(crate) fn model(widths: &[(u8, u8)]) -> IntegerModel {
    let bits = |b| BitWidth::new(b).unwrap();
    let table = widths.iter().map(|&(w, a)| Widths { weights: bits(w), activations: bits(a) });
    let fixture = fixture();
    let point = Point::mixed(0, table.collect());
    let model = quantize(&fixture.graph, &fixture.ranges, &point).unwrap();
    model.validate().unwrap();
    model
}

/// The same, from a number of leading layers at `a` and all others at `b`.
pub(crate) fn split_at(shared: usize, a: (u8, u8), b: (u8, u8)) -> IntegerModel {
    model(&(0..LAYERS).map(|layer| if layer < shared { a } else { b }).collect::<Vec<_>>())
}

/// Every stage's scores are those of its whole network, on all kernels and for any thresholds.
pub(crate) fn check(models: &[IntegerModel], shared: &[usize]) {
    let legs = relay(models, shared).unwrap();
    let samples = &fixture().samples;
    for kernels in Kernels::present() {
        let classes = models[0].classes();
        let whole: Vec<Vec<i32>> =
            models.iter().map(|model| Engine::new(model, kernels).scores(samples)).collect();
        let (engines, _) = Leg::engines(legs.clone(), kernels);
        // Nobody, about half and everybody is handed on.
        let mut margins: Vec<i32> =
            whole[0].chunks_exact(classes).map(|scores| answer(scores).margin).collect();
        margins.sort_unstable();
        for accept_at in [0, margins[SAMPLES / 2], i32::MAX] {
            let stages: Vec<RunningStage<'_>> = engines
                .iter()
                .zip(&legs)
                .map(|(engine, leg)| {
                    let handoff = leg.handoff.as_ref();
                    RunningStage {
                        engine,
                        gate: Some(Gate::margin(accept_at)),
                        handoff,
                        view: View::AsIs,
                        sum: None,
                    }
                })
                .collect();
            let decisions = decide(&stages, samples);
            assert_eq!(decisions.len(), SAMPLES);
            for (sample, decision) in decisions.iter().enumerate() {
                let expected = &whole[decision.stage][sample * classes..][..classes];
                assert_eq!(decision.scores, expected, "sample {sample} on {}", kernels.name());
                let sure = |stage: usize| {
                    let scores = &whole[stage][sample * classes..][..classes];
                    stage + 1 == models.len() || answer(scores).margin >= accept_at
                };
                let stage = (0..models.len()).find(|&stage| sure(stage)).unwrap();
                assert_eq!(decision.stage, stage, "sample {sample}");
            }
        }
    }
    for leg in &legs {
        leg.model.validate().unwrap();
    }
}
