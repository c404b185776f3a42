use std::convert::Infallible;
use std::sync::OnceLock;

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use proptest::prelude::*;

use super::*;
use crate::characterize::workload;
use crate::energy;
use crate::execute::{Engine, RunningStage, decide};
use crate::graph::{
    Activation, Binary, Conv, Graph, Linear, Node, Op, Pool, TensorId, TensorInfo, infer,
};
use crate::quantize::{Point, Ranges, Widths, calibrate, quantize};
use crate::tensor::Tensor;

const SAMPLES: usize = 12;
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

const LAYERS: usize = 9;

struct Fixture {
    graph: Graph,
    ranges: Ranges,
    samples: Tensor,
}

fn fixture() -> &'static Fixture {
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

fn model(widths: &[(u8, u8)]) -> IntegerModel {
    let bits = |b| BitWidth::new(b).unwrap();
    let table = widths.iter().map(|&(w, a)| Widths { weights: bits(w), activations: bits(a) });
    let fixture = fixture();
    let point = Point::mixed(0, table.collect());
    let model = quantize(&fixture.graph, &fixture.ranges, &point).unwrap();
    model.validate().unwrap();
    model
}

/// The same, from a number of leading layers at `a` and all others at `b`.
fn split_at(shared: usize, a: (u8, u8), b: (u8, u8)) -> IntegerModel {
    model(&(0..LAYERS).map(|layer| if layer < shared { a } else { b }).collect::<Vec<_>>())
}

/// Every stage's scores are those of its whole network, on all kernels and for any thresholds.
fn check(models: &[IntegerModel], shared: &[usize]) {
    let legs = relay(models, shared).unwrap();
    let samples = &fixture().samples;
    for kernels in Kernels::present() {
        let classes = models[0].classes();
        let whole: Vec<Vec<i32>> =
            models.iter().map(|model| Engine::new(model, kernels).scores(samples)).collect();
        let engines: Vec<Engine<'_>> =
            legs.iter().map(|leg| Engine::of(leg.model.clone(), kernels)).collect();
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
                    RunningStage { engine, accept_at: Some(accept_at), handoff }
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

fn energy_widths(widths: &[(u8, u8)]) -> Vec<energy::Widths> {
    let each = widths.iter().map(|&(w, a)| energy::Widths { weights: w, activations: a });
    each.collect()
}

#[test]
fn a_resumed_stage_runs_only_the_layers_that_differ() {
    let models = [model(&[(3, 3); LAYERS]), split_at(3, (3, 3), (8, 8))];
    assert_eq!(shared_layers(&models[0], &models[1]), 3);
    let legs = relay(&models, &[0, 3]).unwrap();
    assert_eq!(legs[0].model.mac_steps().count(), LAYERS);
    assert_eq!(legs[1].model.mac_steps().count(), LAYERS - 3);
    assert!(legs[1].model.inputs.is_empty());
    // The block's result at 8 bits: nothing else is read across the boundary.
    let handoff = legs[1].handoff.as_ref().unwrap();
    let names: Vec<&str> =
        handoff.given.iter().map(|&map| legs[1].model.maps[map].name.as_str()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    check(&models, &[0, 3]);
}

#[test]
fn a_live_residual_and_codes_that_only_move_cross_the_boundary() {
    // Before layer 1 only the stem's result lives: its convolution is read by two poolings.
    let models = [model(&[(3, 3); LAYERS]), split_at(1, (3, 3), (5, 6))];
    check(&models, &[0, 1]);
    // Before layer 2 the residual does, too.
    let models = [model(&[(3, 3); LAYERS]), split_at(2, (3, 3), (4, 7))];
    let legs = relay(&models, &[0, 2]).unwrap();
    assert_eq!(legs[1].handoff.as_ref().unwrap().given.len(), 2);
    check(&models, &[0, 2]);
}

#[test]
fn fewer_layers_than_agree_can_be_shared_and_no_more() {
    let models = [model(&[(4, 4); LAYERS]), split_at(6, (4, 4), (8, 8))];
    assert_eq!(shared_layers(&models[0], &models[1]), 6);
    check(&models, &[0, 2]);
    let error = relay(&models, &[0, 7]).unwrap_err();
    insta::assert_snapshot!(error, @"points `mix-000` and `mix-000` must share their first 7 MAC layers, got 6 that agree");
}

#[test]
fn a_network_shares_all_layers_with_itself() {
    let low = model(&[(4, 4); LAYERS]);
    let models = [low.clone(), low];
    check(&models, &[0, LAYERS]);
    let legs = relay(&models, &[0, LAYERS]).unwrap();
    assert!(legs[1].model.steps.is_empty());
}

#[test]
fn a_third_stage_goes_on_from_the_second_which_went_on_from_the_first() {
    let a = model(&[(3, 3); LAYERS]);
    let b = split_at(3, (3, 3), (5, 5));
    let wide: Vec<(u8, u8)> = (0..LAYERS)
        .map(|layer| match layer {
            0..3 => (3, 3),
            3..6 => (5, 5),
            _ => (8, 8),
        })
        .collect();
    let c = model(&wide);
    let other = split_at(2, (3, 3), (6, 7));
    check(&[a.clone(), b.clone(), c.clone()], &[0, 3, 6]);
    // The third stage needs what only the first computed.
    check(&[a.clone(), b.clone(), other], &[0, 3, 2]);
    check(&[a.clone(), b.clone(), c.clone()], &[0, 0, 6]);
    check(&[a, b, c], &[0, 3, 0]);
}

#[test]
fn points_that_differ_in_every_layer_share_none() {
    let (low, high) = (model(&[(3, 3); LAYERS]), model(&[(3, 4); LAYERS]));
    assert_eq!(shared_layers(&low, &high), 0);
    assert!(relay(&[low, high], &[0, 1]).is_err());
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
        let said = workload.shared_layers(&energy_widths(&widths), &energy_widths(&other));
        prop_assert!(said <= shared_layers(&models[0], &models[1]));
        check(&models, &[0, said]);
    }
}
