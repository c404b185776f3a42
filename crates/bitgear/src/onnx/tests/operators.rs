//! One case for each operator, computed by hand.

use super::*;

#[test]
fn each_operator_computes_what_its_definition_says() {
    struct Case {
        name: &'static str,
        sample: &'static [i64],
        weights: Vec<TensorProto>,
        node: NodeProto,
        input: Vec<f32>,
        expected: Vec<f32>,
    }
    let ramp = |n: usize| (1..=n).map(|i| i as f32).collect::<Vec<f32>>();
    let case = |name, sample, weights, node, input, expected| Case {
        name,
        sample,
        weights,
        node,
        input,
        expected,
    };
    let cases = [
        case(
            "conv with SAME_UPPER padding and stride 2",
            &[1, 1, 4],
            vec![floats("w", &[1, 1, 1, 3], &[1.0, 10.0, 100.0])],
            node(
                "Conv",
                &["x", "w"],
                "t",
                vec![text("auto_pad", "SAME_UPPER"), ints("strides", &[1, 2])],
            ),
            // Total padding 1, at the end: windows 1 2 3 and 3 4 0.
            ramp(4),
            vec![321.0, 43.0],
        ),
        case(
            "dilated one-dimensional conv",
            &[1, 4],
            vec![floats("w", &[1, 1, 2], &[1.0, 10.0]), floats("b", &[1], &[0.5])],
            node("Conv", &["x", "w", "b"], "t", vec![ints("dilations", &[2])]),
            ramp(4),
            vec![31.5, 42.5],
        ),
        case(
            "grouped conv",
            &[2, 1, 2],
            vec![floats("w", &[2, 1, 1, 1], &[2.0, 3.0])],
            node("Conv", &["x", "w"], "t", vec![int("group", 2)]),
            ramp(4),
            vec![2.0, 4.0, 9.0, 12.0],
        ),
        case(
            "max pooling with ceil",
            &[1, 1, 4],
            vec![],
            node(
                "MaxPool",
                &["x"],
                "t",
                vec![ints("kernel_shape", &[1, 3]), ints("strides", &[1, 2]), int("ceil_mode", 1)],
            ),
            ramp(4),
            vec![3.0, 4.0],
        ),
        case(
            "average pooling without padding in the divisor",
            &[1, 1, 2],
            vec![],
            node(
                "AveragePool",
                &["x"],
                "t",
                vec![ints("kernel_shape", &[1, 2]), ints("pads", &[0, 1, 0, 0])],
            ),
            ramp(2),
            vec![1.0, 1.5],
        ),
        case(
            "average pooling with padding in the divisor",
            &[1, 1, 2],
            vec![],
            node(
                "AveragePool",
                &["x"],
                "t",
                vec![
                    ints("kernel_shape", &[1, 2]),
                    ints("pads", &[0, 1, 0, 0]),
                    int("count_include_pad", 1),
                ],
            ),
            ramp(2),
            vec![0.5, 1.5],
        ),
        case(
            "global average",
            &[2, 1, 2],
            vec![],
            node("GlobalAveragePool", &["x"], "t", vec![]),
            ramp(4),
            vec![1.5, 3.5],
        ),
        case(
            "mean over channels",
            &[2, 1, 2],
            vec![],
            node("ReduceMean", &["x"], "t", vec![ints("axes", &[1]), int("keepdims", 0)]),
            ramp(4),
            vec![2.0, 3.0],
        ),
        case(
            "gemm",
            &[2],
            vec![floats("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), floats("b", &[2], &[10.0, 20.0])],
            node("Gemm", &["x", "w", "b"], "t", vec![int("transB", 1)]),
            ramp(2),
            vec![15.0, 31.0],
        ),
        case(
            "matrix product",
            &[2],
            vec![floats("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])],
            node("MatMul", &["x", "w"], "t", vec![]),
            ramp(2),
            vec![7.0, 10.0],
        ),
        case(
            "batch norm",
            &[2, 1, 1],
            vec![
                floats("g", &[2], &[2.0, 1.0]),
                floats("o", &[2], &[1.0, 0.0]),
                floats("m", &[2], &[1.0, 0.0]),
                floats("v", &[2], &[4.0, 1.0]),
            ],
            node(
                "BatchNormalization",
                &["x", "g", "o", "m", "v"],
                "t",
                vec![AttributeProto {
                    name: "epsilon".to_owned(),
                    f: 0.0,
                    r#type: 1,
                    ..Default::default()
                }],
            ),
            vec![3.0, 5.0],
            vec![3.0, 5.0],
        ),
        case(
            "clip with bounds as operands",
            &[3],
            vec![floats("lo", &[], &[0.0]), floats("hi", &[], &[6.0])],
            node("Clip", &["x", "lo", "hi"], "t", vec![]),
            vec![-1.0, 3.0, 9.0],
            vec![0.0, 3.0, 6.0],
        ),
        case(
            "leaky relu",
            &[2],
            vec![],
            node("LeakyRelu", &["x"], "t", vec![]),
            vec![-1.0, 2.0],
            vec![-0.01, 2.0],
        ),
        case(
            "hard sigmoid",
            &[3],
            vec![],
            node("HardSigmoid", &["x"], "t", vec![]),
            vec![-9.0, 1.0, 9.0],
            vec![0.0, 0.7, 1.0],
        ),
        case(
            "hard swish",
            &[3],
            vec![],
            node("HardSwish", &["x"], "t", vec![]),
            vec![-3.0, 1.0, 4.0],
            vec![0.0, 2.0 / 3.0, 4.0],
        ),
        case(
            "constant minus tensor",
            &[2],
            vec![floats("c", &[2], &[10.0, 20.0])],
            node("Sub", &["c", "x"], "t", vec![]),
            ramp(2),
            vec![9.0, 18.0],
        ),
        case(
            "division by a constant per channel",
            &[2, 1, 1],
            vec![floats("c", &[2, 1, 1], &[2.0, 4.0])],
            node("Div", &["x", "c"], "t", vec![]),
            ramp(2),
            vec![0.5, 0.5],
        ),
        case(
            "tensor times itself",
            &[2],
            vec![],
            node("Mul", &["x", "x"], "t", vec![]),
            ramp(2),
            vec![1.0, 4.0],
        ),
        case(
            "constant that differs everywhere",
            &[1, 2, 2],
            vec![floats("c", &[2, 2], &[1.0, 2.0, 3.0, 4.0])],
            node("Add", &["x", "c"], "t", vec![]),
            ramp(4),
            vec![2.0, 4.0, 6.0, 8.0],
        ),
        case(
            "transpose",
            &[1, 2, 2],
            vec![],
            node("Transpose", &["x"], "t", vec![ints("perm", &[0, 1, 3, 2])]),
            ramp(4),
            vec![1.0, 3.0, 2.0, 4.0],
        ),
        case(
            "slice backwards",
            &[4],
            vec![longs("s", &[-1]), longs("e", &[-9]), longs("a", &[1]), longs("t2", &[-2])],
            node("Slice", &["x", "s", "e", "a", "t2"], "t", vec![]),
            ramp(4),
            vec![4.0, 2.0],
        ),
        case(
            "pad",
            &[1, 1, 2],
            vec![longs("p", &[0, 0, 0, 1, 0, 0, 0, 2])],
            node("Pad", &["x", "p"], "t", vec![]),
            ramp(2),
            vec![0.0, 1.0, 2.0, 0.0, 0.0],
        ),
        case(
            "concat with itself",
            &[1, 1, 2],
            vec![],
            node("Concat", &["x", "x"], "t", vec![int("axis", -1)]),
            ramp(2),
            vec![1.0, 2.0, 1.0, 2.0],
        ),
        case(
            "squeeze",
            &[1, 2],
            vec![longs("a", &[1])],
            node("Squeeze", &["x", "a"], "t", vec![]),
            ramp(2),
            vec![1.0, 2.0],
        ),
        case(
            "unsqueeze",
            &[2],
            vec![longs("a", &[2])],
            node("Unsqueeze", &["x", "a"], "t", vec![]),
            ramp(2),
            vec![1.0, 2.0],
        ),
    ];
    let mut wrong = Vec::new();
    for case in cases {
        let got = apply(case.sample, case.weights, vec![case.node], &case.input);
        let close = got.len() == case.expected.len()
            && got.iter().zip(&case.expected).all(|(a, b)| (a - b).abs() < 1e-5);
        if !close {
            wrong.push(format!("{}: got {got:?}, expected {:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
