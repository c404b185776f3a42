//! Tiny models, one for each operator and each way to fail.

mod attention;
mod operators;

use proptest::prelude::*;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, OperatorSetId, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::*;
use crate::float;
use crate::graph::Op;
use crate::tensor::Tensor;

fn node(kind: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        name: format!("{kind}-{output}"),
        op_type: kind.to_owned(),
        attribute,
        domain: String::new(),
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ints: ints.to_vec(), r#type: 7, ..Default::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i, r#type: 2, ..Default::default() }
}

fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: s.as_bytes().to_vec(),
        r#type: 3,
        ..Default::default()
    }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: values.to_vec(),
        ..Default::default()
    }
}

fn longs(name: &str, values: &[i64]) -> TensorProto {
    let dims = vec![values.len() as i64];
    TensorProto {
        name: name.to_owned(),
        dims,
        data_type: 7,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| DimensionProto {
        dim_value: (d > 0).then_some(d),
        dim_param: (d <= 0).then(|| "N".to_owned()),
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: 1, shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

/// A model from `x` (N, `sample`) to `y`.
fn model(sample: &[i64], weights: Vec<TensorProto>, nodes: Vec<NodeProto>) -> ModelProto {
    let shape: Vec<i64> = [&[0], sample].concat();
    ModelProto {
        ir_version: 8,
        producer_name: "test".to_owned(),
        graph: Some(GraphProto {
            node: nodes,
            name: "tiny".to_owned(),
            initializer: weights,
            input: vec![value("x", &shape)],
            output: vec![value("y", &[0, 0])],
        }),
        opset_import: vec![OperatorSetId { domain: String::new(), version: 13 }],
    }
}

fn import_model(model: &ModelProto) -> Result<Graph, ImportError> {
    import(&model.encode_to_vec())
}

/// A model's only node, applied to (N, 1, …) images, flattened.
fn apply(
    sample: &[i64],
    weights: Vec<TensorProto>,
    mut nodes: Vec<NodeProto>,
    input: &[f32],
) -> Vec<f32> {
    let last = nodes.last().unwrap().output[0].clone();
    // A sum with itself keeps the operator from being the whole model.
    nodes.push(node("Add", &[&last, &last], "twice", vec![]));
    nodes.push(node("Flatten", &["twice"], "y", vec![]));
    let graph = import_model(&model(sample, weights, nodes)).unwrap();
    let shape: Vec<usize> = [1].into_iter().chain(sample.iter().map(|&d| d as usize)).collect();
    let scores = float::run(&graph, &Tensor::new(shape, input.to_vec()));
    scores.values().iter().map(|v| v / 2.0).collect()
}

/// Conv, batch norm, constant scale, ReLU.
fn folding() -> ModelProto {
    model(
        &[1, 1, 2],
        vec![
            floats("w", &[2, 1, 1, 1], &[1.0, 2.0]),
            floats("g", &[2], &[2.0, 3.0]),
            floats("o", &[2], &[0.5, 0.25]),
            floats("m", &[2], &[1.0, 1.0]),
            floats("v", &[2], &[0.99999, 0.99999]),
            floats("k", &[1], &[4.0]),
            longs("p", &[0, 0, 0, 1, 0, 0, 0, 0]),
        ],
        vec![
            node("Pad", &["x", "p"], "padded", vec![]),
            node("Conv", &["padded", "w"], "c", vec![]),
            node("BatchNormalization", &["c", "g", "o", "m", "v"], "n", vec![]),
            node("Mul", &["n", "k"], "s", vec![]),
            node("Relu", &["s"], "r", vec![]),
            node("GlobalAveragePool", &["r"], "a", vec![]),
            node("Flatten", &["a"], "f", vec![]),
            node("Softmax", &["f"], "y", vec![int("axis", 1)]),
        ],
    )
}

#[test]
fn norms_scales_pads_and_the_final_softmax_fold_away() {
    let graph = import_model(&folding()).unwrap();
    let kinds: Vec<String> = graph
        .nodes
        .iter()
        .map(|n| format!("{:?}", n.op).split(['(', ' ']).next().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["Conv", "Activation", "Mean"]);
    let Op::Conv(conv) = &graph.nodes[0].op else { panic!("{:?}", graph.nodes[0]) };
    assert_eq!(conv.pads, [0, 1, 0, 0]);
    // Variance and epsilon make 1: w · gain · 4 and (offset - gain) · 4.
    assert_eq!(conv.weight.values(), [8.0, 24.0]);
    assert_eq!(conv.bias, [-6.0, -11.0]);
    assert_eq!(graph.classes(), 2);
}

#[test]
fn shape_arithmetic_on_a_symbolic_batch_folds_away() {
    // The usual export of `x.view(x.size(0), -1)`.
    let model = model(
        &[2, 1, 2],
        vec![longs("zero", &[0]), longs("minus", &[-1])],
        vec![
            node("Shape", &["x"], "shape", vec![]),
            node("Gather", &["shape", "zero"], "n", vec![int("axis", 0)]),
            node("Concat", &["n", "minus"], "target", vec![int("axis", 0)]),
            node("Reshape", &["x", "target"], "flat", vec![]),
            node("Relu", &["flat"], "y", vec![]),
        ],
    );
    let graph = import_model(&model).unwrap();
    assert_eq!((graph.nodes.len(), graph.classes()), (2, 4));
}

#[test]
fn a_zero_in_a_new_shape_keeps_the_size_unless_zeros_are_allowed() {
    let import = |target: &[i64], attributes| {
        let flat = node("Reshape", &["x", "target"], "flat", attributes);
        let nodes = vec![flat, node("Relu", &["flat"], "y", vec![])];
        let graph = import_model(&model(&[4, 1], vec![longs("target", target)], nodes));
        graph.map(|graph| graph.classes()).map_err(|error| error.to_string())
    };
    assert_eq!(import(&[0, -1], vec![]), Ok(4));
    // What PyTorch writes.
    assert_eq!(import(&[-1, 4], vec![int("allowzero", 1)]), Ok(4));
    let error = import(&[0, -1], vec![int("allowzero", 1)]).unwrap_err();
    assert!(error.contains("`allowzero` = 1 is not supported"), "{error}");
}

/// A single z, whatever dresses it up, becomes the scores -z / 2 and z / 2 of two classes.
#[test]
fn a_single_score_becomes_one_for_each_of_two_classes() {
    let gemm = || node("Gemm", &["x", "w", "b"], "z", vec![int("transB", 1)]);
    let sigmoid = || node("Sigmoid", &["z"], "y", vec![]);
    let weights = vec![floats("w", &[1, 2], &[3.0, -1.0]), floats("b", &[1], &[0.5])];
    let linear = model(&[2], weights, vec![gemm(), sigmoid()]);
    let kernel = vec![floats("w", &[1, 2, 1, 1], &[3.0, -1.0]), floats("b", &[1], &[0.5])];
    let conv = node("Conv", &["x", "w", "b"], "c", vec![]);
    let flat = node("Flatten", &["c"], "z", vec![]);
    let convolution = model(&[2, 1, 1], kernel, vec![conv, flat, sigmoid()]);
    for (model, shape) in [(linear, vec![2, 2]), (convolution, vec![2, 2, 1, 1])] {
        let graph = import_model(&model).unwrap();
        assert_eq!(graph.classes(), 2);
        let scores = float::run(&graph, &Tensor::new(shape, vec![1.0, 2.0, 0.0, 4.0]));
        // z = 3 - 2 + 0.5 and -4 + 0.5.
        assert_eq!(scores.values(), [-0.75, 0.75, 1.75, -1.75]);
    }
}

#[test]
fn split_gives_slices() {
    let mut split = node("Split", &["x"], "a", vec![int("axis", 1)]);
    split.output.push("b".to_owned());
    let nodes = vec![split, node("Sub", &["b", "a"], "t", vec![])];
    assert_eq!(apply(&[4], vec![], nodes, &[1.0, 2.0, 30.0, 40.0]), [29.0, 38.0]);
}

#[test]
fn everything_that_cannot_be_imported_is_listed_with_its_node() {
    let model = model(
        &[2, 1, 2],
        vec![
            floats("w", &[2, 2, 1, 1], &[0.0; 4]),
            longs("shape", &[2, -1]),
            floats("bad", &[3], &[0.0; 2]),
        ],
        vec![
            node("Resize", &["x"], "a", vec![]),
            node("Conv", &["a", "w"], "b", vec![]),
            node("Conv", &["x", "w"], "c", vec![text("auto_pad", "SAME")]),
            node("Relu", &["x"], "d", vec![int("inplace", 1)]),
            node("Reshape", &["x", "shape"], "e", vec![]),
            node("ReduceMean", &["x"], "f", vec![ints("axes", &[0])]),
            node("Einsum", &["b"], "g", vec![]),
            node("Add", &["x", "absent"], "h", vec![]),
            node("Concat", &["b", "c", "d", "e", "f", "g", "h"], "y", vec![int("axis", 1)]),
        ],
    );
    insta::assert_snapshot!(import_model(&model).unwrap_err(), @r"
    cannot import the model: 8 problems
      node `bad` (initializer): expected 3 values for shape [3], got 2
      node `Resize-a` (Resize): operator is not supported
      node `Conv-c` (Conv): attribute `auto_pad` = `SAME` is not supported
      node `Relu-d` (Relu): attribute `inplace` is not supported
      node `Reshape-e` (Reshape): reshape of a sample [2, 1, 2] to [2, -1] mixes samples
      node `ReduceMean-f` (ReduceMean): works on the batch axis: it would mix samples
      node `Einsum-g` (Einsum): operator is not supported
      node `Add-h` (Add): operand `absent` is made by no earlier node
    ");
}

#[test]
fn broken_files_say_what_is_wrong() {
    let mut seen = Vec::new();
    let mut fails = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = folding();
        change(&mut model);
        seen.push(import_model(&model).unwrap_err().to_string());
    };
    fails(&|m| m.graph = None);
    fails(&|m| m.opset_import.clear());
    fails(&|m| m.opset_import[0].version = 8);
    fails(&|m| m.graph.as_mut().unwrap().output.clear());
    fails(&|m| m.graph.as_mut().unwrap().input.push(value("z", &[0, 1])));
    fails(&|m| m.graph.as_mut().unwrap().input[0] = value("x", &[0, 0, 0]));
    fails(&|m| m.graph.as_mut().unwrap().output[0].name = "nowhere".to_owned());
    fails(&|m| m.graph.as_mut().unwrap().output[0].name = "x".to_owned());
    fails(&|m| m.graph.as_mut().unwrap().initializer[0].dims = vec![1 << 40, 1 << 40]);
    fails(&|m| m.graph.as_mut().unwrap().initializer[0].data_location = 1);
    insta::assert_snapshot!(seen.join("\n"), @r#"
    not an ONNX model: no graph
    not an ONNX model: no operator set is named
    not an ONNX model: opset must be 11 or later, got 8
    not an ONNX model: expected one output, the scores, got []
    not an ONNX model: expected one input, the sample, got ["x", "z"]
    not an ONNX model: input `x` must have a batch axis and fixed dimensions after it
    not an ONNX model: output `nowhere` is made by no node
    not an ONNX model: the output is the input
    cannot import the model: 1 problem
      node `w` (initializer): tensor of shape [1099511627776, 1099511627776] has more than 268435456 elements
    cannot import the model: 1 problem
      node `w` (initializer): external data can be read only beside a model file
    "#);
}

#[test]
fn external_data_is_read_beside_the_model_and_nowhere_else() {
    use super::proto::StringStringEntry;
    let folder = tempfile::tempdir().unwrap();
    let mut model = folding();
    let weights: Vec<u8> = [0.0_f32, 1.0, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.path().join("weights.bin"), weights).unwrap();
    let entry =
        |key: &str, value: &str| StringStringEntry { key: key.to_owned(), value: value.to_owned() };
    let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
    tensor.float_data.clear();
    tensor.data_location = 1;
    tensor.external_data =
        vec![entry("location", "weights.bin"), entry("offset", "4"), entry("length", "8")];
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    assert_eq!(import_file(&path).unwrap(), import_model(&folding()).unwrap());
    // Other weights make another model, wherever they are.
    let whole = read_file(&path).unwrap();
    std::fs::write(folder.path().join("weights.bin"), [0; 12]).unwrap();
    assert_ne!(read_file(&path).unwrap(), whole);
    model.graph.as_mut().unwrap().initializer[0].external_data[0].value =
        "../weights.bin".to_owned();
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let error = import_file(&path).unwrap_err().to_string();
    assert!(
        error.contains("external data `../weights.bin` lies outside the model's folder"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens to the bytes, import gives a graph that runs or an error.
    #[test]
    fn no_damage_makes_import_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(), torn: bool) {
        let mut bytes = folding().encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if torn {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(graph) = import(&bytes) {
            let shape: Vec<usize> = [&[1], graph.shape(graph.input)].concat();
            if shape.iter().product::<usize>() < 10_000 {
                float::run(&graph, &Tensor::zeros(shape));
            }
        }
    }
}
