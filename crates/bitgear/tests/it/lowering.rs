//! Tiny graphs of every operator between MAC layers, in integers at 16 bits against float.

use std::convert::Infallible;

use bitgear::execute::Engine;
use bitgear::float;
use bitgear::graph::{
    Activation, Binary, Conv, Graph, Linear, Node, Op, Pool, SliceRange, TensorId, TensorInfo,
    infer,
};
use bitgear::onnx::export_qdq;
use bitgear::quantize::{Constraints, Methods, Point, Quantizer, calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear_core::kernels::Kernels;

/// Numbers between -1 and 1 that repeat.
pub(crate) fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

pub(crate) struct Builder(pub(crate) Graph);

impl Builder {
    pub(crate) fn new(shape: &[usize]) -> Self {
        let input = TensorInfo { name: "x".to_owned(), shape: shape.to_vec() };
        let (input_id, output) = (TensorId(0), TensorId(0));
        Self(Graph {
            name: "tiny".to_owned(),
            tensors: vec![input],
            nodes: vec![],
            input: input_id,
            output,
        })
    }

    pub(crate) fn push(&mut self, op: Op, inputs: &[TensorId]) -> TensorId {
        let shapes: Vec<&[usize]> = inputs.iter().map(|&t| self.0.shape(t)).collect();
        let shape = infer(&op, &shapes).unwrap();
        self.shaped(op, inputs, shape)
    }

    pub(crate) fn shaped(&mut self, op: Op, inputs: &[TensorId], shape: Vec<usize>) -> TensorId {
        let output = TensorId(self.0.tensors.len());
        let name = format!("n{}", self.0.nodes.len());
        self.0.tensors.push(TensorInfo { name: name.clone(), shape });
        self.0.nodes.push(Node { name, op, inputs: inputs.to_vec(), output });
        self.0.output = output;
        output
    }

    fn conv(&mut self, input: TensorId, outputs: usize, kernel: usize, groups: usize) -> TensorId {
        let channels = self.0.shape(input)[0] / groups;
        let seed = self.0.nodes.len();
        let weight = Tensor::new(
            [outputs, channels, kernel, kernel],
            noise(outputs * channels * kernel * kernel, seed),
        );
        let pad = kernel / 2;
        let op = Op::Conv(Conv {
            weight,
            bias: noise(outputs, seed + 1),
            strides: [1, 1],
            pads: [pad; 4],
            dilations: [1, 1],
            groups,
        });
        self.push(op, &[input])
    }

    /// Flattens and ends in a fully connected layer of three classes.
    pub(crate) fn finish(mut self, input: TensorId) -> Graph {
        let features = self.0.shape(input).iter().product();
        let flat = self.shaped(Op::Reshape, &[input], vec![features]);
        let weight = Tensor::new([3, features], noise(3 * features, 99));
        self.push(Op::Linear(Linear { weight, bias: vec![0.1, 0.0, -0.1] }), &[flat]);
        self.0
    }
}

fn pool(kernel: usize, stride: usize, pad: usize) -> Pool {
    Pool { kernel: [kernel; 2], strides: [stride; 2], pads: [pad; 4] }
}

fn graphs() -> Vec<(&'static str, Graph)> {
    type Body = fn(&mut Builder, TensorId) -> TensorId;
    let bodies: [(&'static str, Body); 19] = [
        ("residual into conv", |b, x| {
            let y = b.conv(x, 4, 3, 1);
            let sum = b.push(Op::Binary(Binary::Add), &[y, x]);
            b.push(Op::Activation(Activation::Relu), &[sum])
        }),
        ("sum of two pooled tensors", |b, x| {
            let (y, z) = (
                b.push(Op::MaxPool(pool(3, 1, 1)), &[x]),
                b.push(Op::MaxPool(pool(1, 1, 0)), &[x]),
            );
            b.push(Op::Binary(Binary::Add), &[y, z])
        }),
        ("difference", |b, x| {
            let y = b.conv(x, 4, 1, 1);
            b.push(Op::Binary(Binary::Sub), &[x, y])
        }),
        ("product with a gate per channel", |b, x| {
            let mean = b.push(Op::Mean { axes: vec![1, 2], keep: true }, &[x]);
            let gate = b.conv(mean, 4, 1, 1);
            let gate = b.push(Op::Activation(Activation::Sigmoid), &[gate]);
            b.push(Op::Binary(Binary::Mul), &[x, gate])
        }),
        ("scale and shift", |b, x| {
            let (scale, shift) = (vec![0.5, -2.0, 0.0, 1.0], vec![0.1, 0.2, 0.3, -0.4]);
            b.push(Op::Affine { axis: 0, scale, shift }, &[x])
        }),
        ("constant operand", |b, x| {
            let c = b.push(Op::Constant(Tensor::new([4, 5, 6], noise(120, 5))), &[]);
            b.push(Op::Binary(Binary::Add), &[x, c])
        }),
        ("average pooling", |b, x| {
            b.push(Op::AveragePool { pool: pool(3, 2, 1), count_padding: false }, &[x])
        }),
        ("average pooling with padding", |b, x| {
            b.push(Op::AveragePool { pool: pool(3, 2, 1), count_padding: true }, &[x])
        }),
        ("global mean", |b, x| b.push(Op::Mean { axes: vec![1, 2], keep: false }, &[x])),
        ("clip", |b, x| {
            let y = b.conv(x, 6, 3, 1);
            b.push(Op::Activation(Activation::Clip { low: -0.5, high: 0.5 }), &[y])
        }),
        ("hard swish", |b, x| b.push(Op::Activation(Activation::HardSwish), &[x])),
        ("leaky relu after a shared conv", |b, x| {
            let y = b.conv(x, 4, 3, 1);
            let z = b.push(Op::Activation(Activation::LeakyRelu { alpha: 0.1 }), &[y]);
            b.push(Op::Binary(Binary::Add), &[y, z])
        }),
        ("concatenation of different ranges", |b, x| {
            let y = b.conv(x, 3, 3, 1);
            let z = b.push(Op::Activation(Activation::Relu), &[x]);
            b.push(Op::Concat { axis: 0 }, &[y, z])
        }),
        ("slice and pad", |b, x| {
            let range = |start, count, step| SliceRange { start, count, step };
            let ranges = vec![range(1, 2, 1), range(4, 3, -2), range(0, 3, 2)];
            let y = b.push(Op::Slice { ranges }, &[x]);
            b.push(Op::Pad { pads: vec![(1, 1), (0, 2), (1, 0)], value: 0.0 }, &[y])
        }),
        ("transpose", |b, x| {
            let y = b.push(Op::Transpose { permutation: vec![2, 0, 1] }, &[x]);
            b.conv(y, 2, 3, 1)
        }),
        ("depthwise conv", |b, x| b.conv(x, 4, 3, 4)),
        ("grouped conv", |b, x| b.conv(x, 6, 3, 2)),
        ("conv of uneven channels", |b, x| {
            let y = b.conv(x, 19, 3, 1);
            b.conv(y, 5, 1, 1)
        }),
        ("sequence", |b, x| {
            let y = b.shaped(Op::Reshape, &[x], vec![20, 6]);
            let weight = Tensor::new([5, 6], noise(30, 4));
            b.push(Op::Linear(Linear { weight, bias: vec![0.0; 5] }), &[y])
        }),
    ];
    bodies
        .into_iter()
        .map(|(name, body)| {
            let mut builder = Builder::new(&[4, 5, 6]);
            let end = body(&mut builder, TensorId(0));
            (name, builder.finish(end))
        })
        .collect()
}

#[test]
fn every_operator_computes_in_integers_what_it_computes_in_float() {
    let samples = Tensor::new([8, 4, 5, 6], noise(8 * 120, 1));
    let mut wrong = Vec::new();
    for (name, graph) in graphs() {
        let ranges = calibrate(&graph, 8, |span| {
            let values = samples.values()[span.start * 120..span.end * 120].to_vec();
            Ok::<_, Infallible>(Tensor::new([span.len(), 4, 5, 6], values))
        })
        .unwrap();
        let expected = float::run(&graph, &samples);
        let largest = expected.values().iter().fold(0.0_f64, |m, &v| m.max(f64::from(v.abs())));
        for (bits, tolerance) in [(16, 2e-3), (8, 0.1)] {
            let point = format!("w{bits}a{bits}").parse().unwrap();
            let model = match quantize(&graph, &ranges, &point) {
                Ok(model) => model,
                Err(error) => {
                    wrong.push(format!("{name}: {error}"));
                    continue;
                }
            };
            model.validate().unwrap();
            let reference = Engine::new(&model, Kernels::scalar()).scores(&samples);
            let scores = Engine::new(&model, Kernels::detect()).scores(&samples);
            assert_eq!(scores, reference, "{name}");
            let distance = scores
                .iter()
                .zip(expected.values())
                .map(|(&q, &f)| (f64::from(q) * model.score_scale() - f64::from(f)).abs())
                .fold(0.0, f64::max);
            if distance > tolerance * largest {
                wrong.push(format!("{name} at {bits} bits: {distance} of {largest}"));
            }
            assert_eq!(export_qdq(&model).is_ok(), bits <= 8, "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Scores that no accumulation makes: joined from two layers, or behind an activation.
#[test]
fn scores_behind_moves_and_tables_agree_with_float() {
    let samples = Tensor::new([8, 6], noise(48, 3));
    let linear = |seed: usize| {
        let weight = Tensor::new([2, 6], noise(12, seed));
        Op::Linear(Linear { weight, bias: noise(2, seed + 1) })
    };
    for activation in [None, Some(Activation::Tanh)] {
        let mut builder = Builder::new(&[6]);
        let x = TensorId(0);
        let (a, b) = (builder.push(linear(1), &[x]), builder.push(linear(5), &[x]));
        let joined = builder.push(Op::Concat { axis: 0 }, &[a, b]);
        if let Some(activation) = activation {
            builder.push(Op::Activation(activation), &[joined]);
        }
        let graph = builder.0;
        let ranges = calibrate(&graph, 8, |_| Ok::<_, Infallible>(samples.clone())).unwrap();
        let model = quantize(&graph, &ranges, &"w16a16".parse().unwrap()).unwrap();
        model.validate().unwrap();
        let scores = Engine::new(&model, Kernels::detect()).scores(&samples);
        let expected = float::run(&graph, &samples);
        for (&q, &f) in scores.iter().zip(expected.values()) {
            let distance = (f64::from(q) * model.score_scale() - f64::from(f)).abs();
            assert!(distance < 2e-3, "{distance} with {activation:?}");
        }
    }
}

#[test]
fn what_has_no_integer_form_is_listed_with_its_node() {
    let mut builder = Builder::new(&[4, 5, 6]);
    let x = TensorId(0);
    let y = builder.push(Op::Binary(Binary::Div), &[x, x]);
    let y = builder.push(Op::Pad { pads: vec![(0, 0), (1, 0), (0, 0)], value: 1.0 }, &[y]);
    let y = builder.push(Op::Mean { axes: vec![0], keep: true }, &[y]);
    let graph = builder.finish(y);
    let samples = Tensor::new([1, 4, 5, 6], noise(120, 1));
    let ranges = calibrate(&graph, 1, |_| Ok::<_, Infallible>(samples.clone())).unwrap();
    let error = quantize(&graph, &ranges, &"w8a8".parse().unwrap()).unwrap_err();
    insta::assert_snapshot!(error, @r"
    3 operators have no integer form
      node `n0`: division by a computed tensor
      node `n1`: padding with a value other than 0
      node `n2`: mean over axes other than all pixels
    ");
}

/// Channels of a tenth to thirty times the usual size, between clamps: each has its own scale in the
/// fitted network, and each must still be cut off where the float network cuts it off.
#[test]
fn channels_with_scales_of_their_own_are_clamped_where_the_float_network_clamps_them() {
    let clip = Op::Activation(Activation::Clip { low: 0.0, high: 6.0 });
    let mut builder = Builder::new(&[3, 8, 8]);
    let y = builder.conv(TensorId(0), 16, 3, 1);
    let Op::Conv(first) = &mut builder.0.nodes[0].op else { unreachable!("pushed above") };
    let sizes: Vec<f32> = (0..16).map(|c| 0.1 * 1.46_f32.powi(c)).collect();
    let row = first.weight.values().len() / 16;
    let weights = first.weight.values().iter().enumerate().map(|(i, w)| w * sizes[i / row]);
    first.weight = Tensor::new(first.weight.shape().to_vec(), weights.collect());
    let y = builder.push(clip.clone(), &[y]);
    let y = builder.conv(y, 16, 3, 16);
    let y = builder.push(clip, &[y]);
    let graph = builder.finish(y);

    let samples = Tensor::new([40, 3, 8, 8], noise(40 * 3 * 64, 5));
    let ranges = calibrate(&graph, 40, |span| {
        let values = samples.values()[span.start * 192..span.end * 192].to_vec();
        Ok::<_, Infallible>(Tensor::new([span.len(), 3, 8, 8], values))
    })
    .unwrap();
    let expected = float::run(&graph, &samples);
    let largest = expected.values().iter().fold(0.0_f64, |m, &v| m.max(f64::from(v.abs())));
    let methods = Methods::best();
    let quantizer = Quantizer::new(&graph, &ranges, &samples, methods, Constraints::default());
    let point: Point = "w8a8".parse().unwrap();
    let evened = quantizer.fit(&point).scales.values().filter(|s| !s.factors.is_empty()).count();
    assert!(evened > 0, "no channel has a scale of its own");
    let model = quantizer.quantize(&point).unwrap();
    let scores = Engine::new(&model, Kernels::detect()).scores(&samples);
    for (score, float) in scores.iter().zip(expected.values()) {
        let error = f64::from(*score) * model.score_scale() - f64::from(*float);
        assert!(error.abs() < 0.02 * largest, "{error} of {largest}");
    }
}
