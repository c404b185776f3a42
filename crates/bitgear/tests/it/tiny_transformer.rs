//! A transformer of one block with weights of noise, from its ONNX file to its bundle.

use std::fs;
use std::path::Path;

use bitgear::bundle::Bundle;
use bitgear::data::Dataset;
use bitgear::execute::Step;
use bitgear::onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetId, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use bitgear_core::kernels::Kernels;
use prost::Message;

use crate::characterize::{Watch, job, run};
use crate::lowering::noise;

/// Patches of 7 x 7 of an image as 16 tokens of 8 features and a class token, 2 heads, 10 classes.
fn write_model(path: &Path) {
    let list = |name: &str, ints: &[i64]| AttributeProto {
        name: name.to_owned(),
        ints: ints.to_vec(),
        r#type: 7,
        ..Default::default()
    };
    let mut initializer = Vec::new();
    for (seed, (name, dims)) in [
        ("patch", &[8, 1, 7, 7][..]),
        ("position", &[1, 17, 8]),
        ("gain", &[8]),
        ("offset", &[8]),
        ("q", &[8, 8]),
        ("k", &[8, 8]),
        ("v", &[8, 8]),
        ("o", &[8, 8]),
        ("up", &[8, 16]),
        ("down", &[16, 8]),
        ("head", &[8, 10]),
        ("root", &[1]),
    ]
    .into_iter()
    .enumerate()
    {
        let count = dims.iter().product::<i64>() as usize;
        let float_data = match name {
            "gain" => vec![1.0; count],
            "root" => vec![2.0],
            _ => noise(count, seed + 1),
        };
        initializer.push(TensorProto {
            name: name.to_owned(),
            dims: dims.to_vec(),
            data_type: 1,
            float_data,
            ..Default::default()
        });
    }
    for (name, values) in [
        ("flat", &[-1, 8, 16][..]),
        ("split", &[-1, 17, 2, 4]),
        ("joined", &[-1, 17, 8]),
        ("pads", &[0, 1, 0, 0, 0, 0]),
        ("first", &[0]),
    ] {
        initializer.push(TensorProto {
            name: name.to_owned(),
            // A single index is no list: picking drops its axis.
            dims: if name == "first" { vec![] } else { vec![values.len() as i64] },
            data_type: 7,
            int64_data: values.to_vec(),
            ..Default::default()
        });
    }
    let turned = [list("perm", &[0, 2, 1, 3])];
    let axis = AttributeProto { name: "axis".to_owned(), i: 1, r#type: 2, ..Default::default() };
    let nodes: [(&str, &[&str], &str, &[AttributeProto]); 29] = [
        ("Conv", &["x", "patch"], "patches", &[list("strides", &[7, 7])]),
        ("Reshape", &["patches", "flat"], "rows", &[]),
        ("Transpose", &["rows"], "tokens", &[list("perm", &[0, 2, 1])]),
        ("Pad", &["tokens", "pads"], "padded", &[]),
        ("Add", &["padded", "position"], "t0", &[]),
        ("LayerNormalization", &["t0", "gain", "offset"], "n0", &[]),
        ("MatMul", &["n0", "q"], "q0", &[]),
        ("MatMul", &["n0", "k"], "k0", &[]),
        ("MatMul", &["n0", "v"], "v0", &[]),
        ("Reshape", &["q0", "split"], "q1", &[]),
        ("Reshape", &["k0", "split"], "k1", &[]),
        ("Reshape", &["v0", "split"], "v1", &[]),
        ("Transpose", &["q1"], "q2", &turned),
        ("Transpose", &["k1"], "k2", &[list("perm", &[0, 2, 3, 1])]),
        ("Transpose", &["v1"], "v2", &turned),
        ("MatMul", &["q2", "k2"], "likeness", &[]),
        ("Div", &["likeness", "root"], "scaled", &[]),
        ("Softmax", &["scaled"], "shares", &[]),
        ("MatMul", &["shares", "v2"], "mixed", &[]),
        ("Transpose", &["mixed"], "heads", &turned),
        ("Reshape", &["heads", "joined"], "attended", &[]),
        ("MatMul", &["attended", "o"], "o0", &[]),
        ("Add", &["t0", "o0"], "t1", &[]),
        ("LayerNormalization", &["t1", "gain", "offset"], "n1", &[]),
        ("MatMul", &["n1", "up"], "wide", &[]),
        ("Gelu", &["wide"], "bent", &[]),
        ("MatMul", &["bent", "down"], "narrow", &[]),
        ("Gather", &["narrow", "first"], "class", &[axis]),
        ("MatMul", &["class", "head"], "y", &[]),
    ];
    let node = |(kind, inputs, output, attributes): &(_, &[&str], &str, &[AttributeProto])| {
        let kind: &&str = kind;
        NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![(*output).to_owned()],
            name: (*output).to_owned(),
            op_type: (*kind).to_owned(),
            attribute: attributes.to_vec(),
            domain: String::new(),
        }
    };
    let value = |name: &str, sizes: &[i64]| {
        let batch = DimensionProto { dim_value: None, dim_param: Some("N".to_owned()) };
        let sizes = sizes.iter().map(|&n| DimensionProto { dim_value: Some(n), dim_param: None });
        let dim = [batch].into_iter().chain(sizes).collect();
        let tensor_type = TensorTypeProto { elem_type: 1, shape: Some(TensorShapeProto { dim }) };
        let r#type = Some(TypeProto { tensor_type: Some(tensor_type) });
        ValueInfoProto { name: name.to_owned(), r#type }
    };
    let model = ModelProto {
        ir_version: 9,
        producer_name: "test".to_owned(),
        graph: Some(GraphProto {
            node: nodes.iter().map(node).collect(),
            name: "tiny".to_owned(),
            initializer,
            input: vec![value("x", &[1, 28, 28])],
            output: vec![value("y", &[10])],
        }),
        opset_import: vec![OperatorSetId { domain: String::new(), version: 20 }],
    };
    fs::write(path, model.encode_to_vec()).unwrap();
}

#[test]
fn a_bundle_of_a_transformer_comes_back_and_damage_to_it_is_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(&folder.path().join("out"), &["w4a4"]);
    job.model = folder.path().join("tiny.onnx");
    write_model(&job.model);
    let result = run(&job, &Watch::new(1000), 2);
    let islands: Vec<&str> =
        result.summary.model.float_islands.iter().map(|i| i.operator.as_str()).collect();
    assert_eq!(islands, ["layer norm", "softmax", "layer norm"]);

    let path = job.out.join("model.bitgear");
    let (bundle, bytes) = (Bundle::read(&path).unwrap(), fs::read(&path).unwrap());
    let again = folder.path().join("again.bitgear");
    bundle.write(&again).unwrap();
    assert_eq!(fs::read(&again).unwrap(), bytes);
    for model in &bundle.models {
        let count = |is: fn(&Step) -> bool| model.steps.iter().filter(|s| is(s)).count();
        assert_eq!(count(|s| matches!(s, Step::MatMul(_))), 2, "{}", model.point);
        assert_eq!(count(|s| matches!(s, Step::Island(_))), 3, "{}", model.point);
    }

    let data = Dataset::read(&job.data).unwrap();
    let batch = data.batch(&[0], &bundle.preprocess);
    let damaged = folder.path().join("damaged.bitgear");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut refused = 0;
    // Digits of each of these steps.
    for (start, _) in text.match_indices("Island").chain(text.match_indices("MatMul")) {
        for at in (start..bytes.len().min(start + 300)).step_by(7) {
            let mut copy = bytes.clone();
            if copy[at].is_ascii_digit() {
                copy[at] = b'9' - (copy[at] - b'0');
                fs::write(&damaged, &copy).unwrap();
                match Bundle::read(&damaged) {
                    // What is accepted can be run.
                    Ok(bundle) => drop(bundle.runner(Kernels::detect()).decide(&batch)),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_transformer_gives_the_same_files_at_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let files = [1, 3].map(|threads| {
        let mut job = job(&folder.path().join(threads.to_string()), &["w3a5"]);
        job.model = folder.path().join("tiny.onnx");
        write_model(&job.model);
        run(&job, &Watch::new(1000), threads);
        ["model.bitgear", "summary.json", "report.html", "trace.parquet"]
            .map(|f| fs::read(job.out.join(f)).unwrap())
    });
    assert!(files[0] == files[1]);
}
