//! What transformers are made of.

use super::*;
use crate::graph::{Activation, LayerKind};

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), f, r#type: 1, ..Default::default() }
}

fn scalar(name: &str, value: f32) -> TensorProto {
    floats(name, &[], &[value])
}

fn index(name: &str, value: i64) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: 7,
        int64_data: vec![value],
        ..Default::default()
    }
}

fn close(got: &[f32], expected: &[f32]) {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
    assert!(
        got.len() == expected.len() && got.iter().zip(expected).all(near),
        "got {got:?}, expected {expected:?}"
    );
}

#[test]
fn a_softmax_inside_the_network_is_one_over_the_last_axis() {
    // Rows (0, ln 3) and (5, 5).
    let nodes = vec![node("Softmax", &["x"], "t", vec![int("axis", -1)])];
    let got = apply(&[2, 2], vec![], nodes, &[0.0, 3.0_f32.ln(), 5.0, 5.0]);
    close(&got, &[0.25, 0.75, 0.5, 0.5]);
}

#[test]
fn a_layer_norm_is_one_over_the_last_axis() {
    let weights = vec![floats("g", &[2], &[2.0, 3.0]), floats("o", &[2], &[0.5, 0.0])];
    let norm = node("LayerNormalization", &["x", "g", "o"], "t", vec![float("epsilon", 1.0)]);
    // Mean 2, variance 3: deviation √(3 + 1).
    let spread = 3.0_f32.sqrt();
    let got = apply(&[1, 2], weights, vec![norm], &[2.0 - spread, 2.0 + spread]);
    close(&got, &[0.5 - spread, 1.5 * spread]);
}

#[test]
fn matrices_that_are_both_computed_are_multiplied_per_head() {
    let nodes = vec![
        node("Transpose", &["x"], "k", vec![ints("perm", &[0, 1, 3, 2])]),
        node("MatMul", &["x", "k"], "t", vec![]),
    ];
    // Two heads of 2 x 1: outer products.
    let got = apply(&[2, 2, 1], vec![], nodes, &[1.0, 2.0, 3.0, 4.0]);
    close(&got, &[1.0, 2.0, 2.0, 4.0, 9.0, 12.0, 12.0, 16.0]);
}

#[test]
fn a_scale_behind_a_product_becomes_part_of_it() {
    let nodes = vec![
        node("MatMul", &["x", "x"], "m", vec![]),
        node("Div", &["m", "d"], "s", vec![]),
        node("Flatten", &["s"], "y", vec![]),
    ];
    let graph = import_model(&model(&[2, 2], vec![scalar("d", 4.0)], nodes)).unwrap();
    assert_eq!(graph.nodes[0].op, Op::MatMul { scale: 0.25 });
    let [layer] = &graph.mac_layers()[..] else { panic!("{:?}", graph.nodes) };
    assert_eq!((layer.kind, layer.macs, layer.weights), (LayerKind::MatrixProduct, 8, 0));
    assert_eq!(layer.second_operand, 4);
}

#[test]
fn gelu_is_found_wherever_its_half_stands() {
    let weights = || vec![scalar("root", 2.0_f32.sqrt()), scalar("one", 1.0), scalar("half", 0.5)];
    let begin = || {
        vec![
            node("Div", &["x", "root"], "z", vec![]),
            node("Erf", &["z"], "e", vec![]),
            node("Add", &["one", "e"], "g", vec![]),
        ]
    };
    let behind = [node("Mul", &["x", "g"], "m", vec![]), node("Mul", &["m", "half"], "y", vec![])];
    let before = [node("Mul", &["half", "x"], "h", vec![]), node("Mul", &["h", "g"], "y", vec![])];
    let gate = [node("Mul", &["g", "half"], "h", vec![]), node("Mul", &["h", "x"], "y", vec![])];
    for end in [behind, before, gate] {
        let nodes = [&begin()[..], &end].concat();
        let graph = import_model(&model(&[3], weights(), nodes)).unwrap();
        let ops: Vec<&Op> = graph.nodes.iter().map(|n| &n.op).collect();
        assert_eq!(ops, [&Op::Activation(Activation::Gelu)], "{end:?}");
        let got = float::run(&graph, &Tensor::new([1, 3], vec![-1.0, 0.0, 2.0]));
        close(got.values(), &[-0.158_655_25, 0.0, 1.954_499_7]);
    }
    // Without the half it is something else, and stays so.
    let nodes = [&begin()[..], &[node("Mul", &["x", "g"], "y", vec![])]].concat();
    let graph = import_model(&model(&[3], weights(), nodes)).unwrap();
    assert_eq!(graph.nodes.len(), 4);
    let got = float::run(&graph, &Tensor::new([1, 3], vec![-1.0, 0.0, 2.0]));
    close(got.values(), &[-0.317_310_5, 0.0, 3.908_999_4]);
}

#[test]
fn gelu_and_erf_are_operators_too() {
    let gelu = apply(&[2], vec![], vec![node("Gelu", &["x"], "t", vec![])], &[-1.0, 2.0]);
    close(&gelu, &[-0.158_655_25, 1.954_499_7]);
    let erf = apply(&[2], vec![], vec![node("Erf", &["x"], "t", vec![])], &[-1.0, 0.5]);
    close(&erf, &[-0.842_700_8, 0.520_499_9]);
}

#[test]
fn a_gather_picks_one_token_or_evenly_spaced_ones() {
    let ramp = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let pick = |indices: TensorProto, axis: i64| {
        let gather = node("Gather", &["x", "i"], "t", vec![int("axis", axis)]);
        apply(&[3, 2], vec![indices], vec![gather], &ramp)
    };
    assert_eq!(pick(index("i", 0), 1), [1.0, 2.0]);
    assert_eq!(pick(index("i", -1), 1), [5.0, 6.0]);
    assert_eq!(pick(longs("i", &[2, 0]), 1), [5.0, 6.0, 1.0, 2.0]);
    assert_eq!(pick(longs("i", &[1]), -1), [2.0, 4.0, 6.0]);
}

/// The usual export of `token.expand(x.size(0), -1, -1)` and of joining it to the rest.
#[test]
fn a_class_token_is_joined_to_every_sample() {
    let weights = vec![
        floats("token", &[1, 1, 2], &[7.0, 8.0]),
        index("zero", 0),
        longs("front", &[0]),
        longs("minus", &[-1]),
        longs("three", &[3]),
        longs("keep", &[-1, -1, -1]),
    ];
    let mut ones = node("ConstantOfShape", &["three"], "ones", vec![]);
    ones.attribute.push(AttributeProto {
        name: "value".to_owned(),
        t: Some(longs("", &[1])),
        r#type: 4,
        ..Default::default()
    });
    let nodes = vec![
        node("Shape", &["x"], "shape", vec![]),
        node("Gather", &["shape", "zero"], "n", vec![int("axis", 0)]),
        node("Unsqueeze", &["n", "front"], "batch", vec![]),
        node("Concat", &["batch", "minus", "minus"], "target", vec![int("axis", 0)]),
        ones,
        node("Equal", &["target", "keep"], "kept", vec![]),
        node("Where", &["kept", "ones", "target"], "sizes", vec![]),
        node("Expand", &["token", "sizes"], "tokens", vec![]),
        node("Concat", &["tokens", "x"], "t", vec![int("axis", 1)]),
    ];
    assert_eq!(apply(&[1, 2], weights, nodes, &[1.0, 2.0]), [7.0, 8.0, 1.0, 2.0]);
}

#[test]
fn a_constant_expands_along_axes_of_one() {
    let nodes = vec![
        node("Expand", &["c", "to"], "wide", vec![]),
        node("Add", &["x", "wide"], "t", vec![]),
    ];
    let weights = || vec![floats("c", &[2, 1], &[10.0, 20.0]), longs("to", &[1, 2, 2])];
    assert_eq!(
        apply(&[2, 2], weights(), nodes.clone(), &[1.0, 2.0, 3.0, 4.0]),
        [11.0, 12.0, 23.0, 24.0]
    );
    let bad = vec![floats("c", &[2, 1], &[10.0, 20.0]), longs("to", &[3, 2])];
    let nodes = [nodes, vec![node("Flatten", &["t"], "y", vec![])]].concat();
    let error = import_model(&model(&[2, 2], bad, nodes)).unwrap_err().to_string();
    assert!(error.contains("cannot expand [2, 1] to [3, 2]"), "{error}");
}

#[test]
fn a_scale_along_another_axis_stays_outside_of_a_layer() {
    // As many tokens as features: only the axis says which of the two is scaled.
    let weights =
        vec![floats("w", &[2, 2], &[1.0, 0.0, 0.0, 1.0]), floats("s", &[2, 1], &[2.0, 3.0])];
    let nodes =
        vec![node("MatMul", &["x", "w"], "m", vec![]), node("Mul", &["m", "s"], "t", vec![])];
    let got = apply(&[2, 2], weights, nodes, &[1.0, 10.0, 100.0, 1000.0]);
    assert_eq!(got, [2.0, 20.0, 300.0, 3000.0]);
}

#[test]
fn what_is_not_honoured_in_a_transformer_is_listed() {
    let mut two = node("LayerNormalization", &["x", "g"], "e", vec![]);
    two.output.push("mean".to_owned());
    let nodes = vec![
        node("Softmax", &["x"], "a", vec![int("axis", 1)]),
        node("LayerNormalization", &["x", "g"], "b", vec![int("axis", -2)]),
        node("LayerNormalization", &["x", "g"], "c", vec![float("epsilon", -1.0)]),
        node("LayerNormalization", &["x", "short"], "d", vec![]),
        two,
        node("Gelu", &["x"], "f", vec![text("approximate", "tanh")]),
        node("Gather", &["x", "far"], "h", vec![int("axis", 1)]),
        node("Gather", &["x", "uneven"], "i", vec![int("axis", 2)]),
        node("Gather", &["x", "far"], "j", vec![int("axis", 0)]),
        node("Flatten", &["x"], "flat", vec![]),
        node("MatMul", &["x", "flat"], "k", vec![]),
        node("MatMul", &["x", "x"], "l", vec![]),
        node(
            "Concat",
            &["a", "b", "c", "d", "e", "f", "h", "i", "j", "k", "l"],
            "y",
            vec![int("axis", 1)],
        ),
    ];
    let weights = vec![
        floats("g", &[4], &[1.0; 4]),
        floats("short", &[1], &[1.0]),
        longs("far", &[7]),
        longs("uneven", &[0, 1, 3]),
    ];
    insta::assert_snapshot!(import_model(&model(&[2, 4], weights, nodes)).unwrap_err(), @r"
    cannot import the model: 11 problems
      node `Softmax-a` (Softmax): softmax must be along the last axis, got axis 0 of a sample [2, 4]
      node `LayerNormalization-b` (LayerNormalization): attribute `axis` must be the last axis, got axis 0 of a sample [2, 4]
      node `LayerNormalization-c` (LayerNormalization): attribute `epsilon` must be positive, got -1
      node `LayerNormalization-d` (LayerNormalization): expected 1 features, got shape [2, 4]
      node `LayerNormalization-e` (LayerNormalization): mean and deviation as results are not supported
      node `Gelu-f` (Gelu): attribute `approximate` = `tanh` is not supported
      node `Gather-h` (Gather): expected an index or a list of indices below 2, got [7]
      node `Gather-i` (Gather): indices [0, 1, 3] are not evenly spaced
      node `Gather-j` (Gather): works on the batch axis: it would mix samples
      node `MatMul-k` (MatMul): expected two computed matrices of one rank, got samples of shapes [2, 4] and [8]
      node `MatMul-l` (MatMul): shapes [2, 4] and [2, 4] can't be multiplied
    ");
}

#[test]
fn an_old_softmax_over_several_axes_is_refused() {
    let nodes = || vec![node("Softmax", &["x"], "t", vec![]), node("Flatten", &["t"], "y", vec![])];
    let mut old = model(&[2, 2], vec![], nodes());
    old.opset_import[0].version = 12;
    insta::assert_snapshot!(import_model(&old).unwrap_err(), @r"
    cannot import the model: 1 problem
      node `Softmax-t` (Softmax): softmax must be along the last axis, got axis 0 of a sample [2, 2]
    ");
    assert!(import_model(&model(&[2, 2], vec![], nodes())).is_ok());
}
