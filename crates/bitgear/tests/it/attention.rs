//! What transformers are made of, in integers; the real one; contradictions.

use std::convert::Infallible;

use bitgear::execute::{Engine, IntegerModel, Island, IslandStep, MatMulStep, Step};
use bitgear::float;
use bitgear::graph::{Activation, Binary, Graph, LayerKind, Linear, Op, SliceRange, TensorId};
use bitgear::onnx::export_qdq;
use bitgear::quantize::{calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear_core::kernels::{Kernels, Matrices};

use crate::lowering::{Builder, noise};
use crate::real::{VIT, shared};

fn linear(b: &mut Builder, x: TensorId, outputs: usize, seed: usize) -> TensorId {
    let features = *b.0.shape(x).last().unwrap();
    let weight = Tensor::new([outputs, features], noise(outputs * features, seed));
    b.push(Op::Linear(Linear { weight, bias: noise(outputs, seed + 1) }), &[x])
}

fn norm(b: &mut Builder, x: TensorId, seed: usize) -> TensorId {
    let features = *b.0.shape(x).last().unwrap();
    let scale = noise(features, seed).iter().map(|v| 1.0 + v / 4.0).collect();
    let op = Op::LayerNorm { scale, shift: noise(features, seed + 1), epsilon: 1e-5 };
    b.push(op, &[x])
}

/// (T, D) to (heads, T, D / heads).
fn heads(b: &mut Builder, x: TensorId, heads: usize) -> TensorId {
    let [t, d] = *b.0.shape(x) else { panic!("a sequence") };
    let split = b.shaped(Op::Reshape, &[x], vec![t, heads, d / heads]);
    b.push(Op::Transpose { permutation: vec![1, 0, 2] }, &[split])
}

/// A block of 5 tokens of 6 features and 2 heads, the class token behind it.
fn block(b: &mut Builder, x: TensorId) -> TensorId {
    let normed = norm(b, x, 11);
    let [q, k, v] = [1, 2, 3].map(|seed| linear(b, normed, 6, 20 * seed));
    let [q, k, v] = [q, k, v].map(|t| heads(b, t, 2));
    let k = b.push(Op::Transpose { permutation: vec![0, 2, 1] }, &[k]);
    let likeness = b.push(Op::MatMul { scale: 0.7 }, &[q, k]);
    let shares = b.push(Op::Softmax, &[likeness]);
    let mixed = b.push(Op::MatMul { scale: 1.0 }, &[shares, v]);
    let turned = b.push(Op::Transpose { permutation: vec![1, 0, 2] }, &[mixed]);
    let joined = b.shaped(Op::Reshape, &[turned], vec![5, 6]);
    let attended = linear(b, joined, 6, 77);
    let x = b.push(Op::Binary(Binary::Add), &[x, attended]);
    let normed = norm(b, x, 31);
    let wide = linear(b, normed, 12, 41);
    let wide = b.push(Op::Activation(Activation::Gelu), &[wide]);
    let narrow = linear(b, wide, 6, 51);
    let x = b.push(Op::Binary(Binary::Add), &[x, narrow]);
    let range = |count| SliceRange { start: 0, count, step: 1 };
    b.push(Op::Slice { ranges: vec![range(1), range(6)] }, &[x])
}

fn graphs() -> Vec<(&'static str, Graph)> {
    type Body = fn(&mut Builder, TensorId) -> TensorId;
    let bodies: [(&'static str, Body); 7] = [
        ("block", block),
        ("product of sequences", |b, x| {
            let turned = b.push(Op::Transpose { permutation: vec![1, 0] }, &[x]);
            b.push(Op::MatMul { scale: -0.3 }, &[x, turned])
        }),
        ("product of a tensor with itself", |b, x| {
            let square = b.push(
                Op::Slice {
                    ranges: [5, 5].map(|count| SliceRange { start: 0, count, step: 1 }).to_vec(),
                },
                &[x],
            );
            let product = b.push(Op::MatMul { scale: 1.0 }, &[square, square]);
            b.push(Op::Activation(Activation::Relu), &[product])
        }),
        ("softmax over features", |b, x| b.push(Op::Softmax, &[x])),
        ("norm of the rows of an image", |b, x| {
            let image = b.shaped(Op::Reshape, &[x], vec![2, 3, 5]);
            norm(b, image, 61)
        }),
        ("softmax of a vector", |b, x| {
            let flat = b.shaped(Op::Reshape, &[x], vec![30]);
            b.push(Op::Softmax, &[flat])
        }),
        ("error function", |b, x| b.push(Op::Activation(Activation::Erf), &[x])),
    ];
    let build = |(name, body): (_, Body)| {
        let mut builder = Builder::new(&[5, 6]);
        let end = body(&mut builder, TensorId(0));
        (name, builder.finish(end))
    };
    bodies.into_iter().map(build).collect()
}

fn samples() -> Tensor {
    Tensor::new([8, 5, 6], noise(240, 1))
}

fn at(graph: &Graph, point: &str) -> IntegerModel {
    let samples = samples();
    let size = samples.values().len() / 8;
    let ranges = calibrate(graph, 8, |span| {
        let values = samples.values()[span.start * size..span.end * size].to_vec();
        Ok::<_, Infallible>(Tensor::new([span.len(), 5, 6], values))
    });
    let model = quantize(graph, &ranges.unwrap(), &point.parse().unwrap()).unwrap();
    model.validate().unwrap();
    model
}

#[test]
fn every_operator_of_transformers_computes_in_integers_what_it_computes_in_float() {
    let mut wrong = Vec::new();
    for (name, graph) in graphs() {
        let expected = float::run(&graph, &samples());
        let largest = expected.values().iter().fold(0.0_f64, |m, &v| m.max(f64::from(v.abs())));
        for (bits, tolerance) in [(16, 2e-3), (8, 0.1)] {
            let model = at(&graph, &format!("w{bits}a{bits}"));
            let reference = Engine::new(&model, Kernels::scalar()).scores(&samples());
            let scores = Engine::new(&model, Kernels::detect()).scores(&samples());
            assert_eq!(scores, reference, "{name}");
            let distance = scores
                .iter()
                .zip(expected.values())
                .map(|(&q, &f)| (f64::from(q) * model.score_scale() - f64::from(f)).abs())
                .fold(0.0, f64::max);
            if distance > tolerance * largest {
                wrong.push(format!("{name} at {bits} bits: {distance} of {largest}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_width_of_a_block_runs_alike_on_all_kernels() {
    let graph = &graphs()[0].1;
    for point in (1..=16).map(|b| format!("w{b}a{b}")).chain(["w3a7".into(), "w9a2".into()]) {
        let model = at(graph, &point);
        let expected = Engine::new(&model, Kernels::scalar()).scores(&samples());
        for kernels in Kernels::present() {
            assert_eq!(Engine::new(&model, kernels).scores(&samples()), expected, "{point}");
        }
    }
}

#[test]
fn a_products_operands_have_the_widths_of_activations_and_of_weights() {
    let model = at(&graphs()[0].1, "w3a5");
    let products: Vec<&MatMulStep> = model
        .steps
        .iter()
        .filter_map(|s| if let Step::MatMul(m) = s { Some(m) } else { None })
        .collect();
    assert_eq!(products.len(), 2);
    for step in products {
        let bits = |map: usize| model.maps[map].scale().bits.get();
        assert_eq!((bits(step.a), bits(step.b)), (5, 3), "{}", step.name);
    }
    // Shares are no less than zero: no code is spent on negative ones. What an island reads is no
    // narrower than a side path.
    for step in islands(&model) {
        assert!(model.maps[step.input].scale().bits.get() >= 8, "{}", step.name);
        if step.function == Island::Softmax {
            assert!(step.outputs.iter().all(|&o| model.maps[o].scale().twice_zero() == 0));
        }
    }
}

fn islands(model: &IntegerModel) -> impl Iterator<Item = &IslandStep> {
    model.steps.iter().filter_map(|s| if let Step::Island(i) = s { Some(i) } else { None })
}

#[test]
fn a_network_that_ends_in_an_island_still_has_scores() {
    let mut builder = Builder::new(&[5, 6]);
    let flat = builder.shaped(Op::Reshape, &[TensorId(0)], vec![30]);
    let scores = linear(&mut builder, flat, 4, 5);
    norm(&mut builder, scores, 8);
    let graph = builder.0;
    let (model, expected) = (at(&graph, "w16a16"), float::run(&graph, &samples()));
    let scores = Engine::new(&model, Kernels::detect()).scores(&samples());
    for (&q, &f) in scores.iter().zip(expected.values()) {
        assert!((f64::from(q) * model.score_scale() - f64::from(f)).abs() < 5e-3);
    }
}

#[test]
fn a_qdq_file_has_no_place_for_them() {
    let names = ["block", "product of sequences", "softmax over features"];
    let seen: Vec<String> = graphs()
        .into_iter()
        .filter(|(name, _)| names.contains(name))
        .map(|(_, graph)| export_qdq(&at(&graph, "w4a4")).unwrap_err().to_string())
        .collect();
    insta::assert_snapshot!(seen.join("\n"), @r"
    point `w4a4` cannot be exported: `n0`: float islands are not supported in QDQ files
    point `w4a4` cannot be exported: `n1`: products of computed matrices are not supported in QDQ files
    point `w4a4` cannot be exported: `n0`: float islands are not supported in QDQ files
    ");
}

#[test]
fn tensors_of_rank_four_have_no_integer_form() {
    let mut builder = Builder::new(&[5, 6]);
    let deep = builder.shaped(Op::Reshape, &[TensorId(0)], vec![5, 1, 2, 3]);
    let deep = builder.push(Op::Softmax, &[deep]);
    let turned = builder.push(Op::Transpose { permutation: vec![0, 1, 3, 2] }, &[deep]);
    let product = builder.push(Op::MatMul { scale: 1.0 }, &[deep, turned]);
    let graph = builder.finish(product);
    let ranges = calibrate(&graph, 8, |_| Ok::<_, Infallible>(samples())).unwrap();
    let error = quantize(&graph, &ranges, &"w8a8".parse().unwrap()).unwrap_err();
    insta::assert_snapshot!(error, @r"
    2 operators have no integer form
      node `n1`: function of the rows of a tensor of rank 4 or more
      node `n3`: product of tensors of rank 4 or more
    ");
}

/// What a hostile file could say of these steps.
#[test]
fn contradictions_in_products_and_islands_are_refused() {
    let good = at(&graphs()[0].1, "w4a4");
    let matmul = good.steps.iter().position(|s| matches!(s, Step::MatMul(_))).unwrap();
    let at_island = |softmax: bool| {
        let is =
            |s: &Step| matches!(s, Step::Island(i) if (i.function == Island::Softmax) == softmax);
        good.steps.iter().position(is).unwrap()
    };
    let (norm, softmax) = (at_island(false), at_island(true));
    let absent = good.maps.len();
    let mut seen = Vec::new();
    let mut refused = |change: &dyn Fn(&mut IntegerModel)| {
        let mut model = good.clone();
        change(&mut model);
        seen.push(model.validate().unwrap_err().to_string());
    };
    let product = |change: fn(&mut MatMulStep, usize)| {
        move |model: &mut IntegerModel| {
            let Step::MatMul(step) = &mut model.steps[matmul] else { unreachable!() };
            change(step, absent);
        }
    };
    let island = |index: usize, change: fn(&mut IslandStep, usize)| {
        move |model: &mut IntegerModel| {
            let Step::Island(step) = &mut model.steps[index] else { unreachable!() };
            change(step, absent);
        }
    };
    refused(&product(|s, absent| s.a = absent));
    refused(&product(|s, _| s.b = s.a));
    refused(&product(|s, _| s.matrices = Matrices::Single));
    refused(&product(|s, _| s.outputs.clear()));
    refused(&product(|s, _| s.outputs[0].map = s.a));
    refused(&product(|s, _| s.outputs[0].multipliers[0] = f32::INFINITY));
    refused(&|model| {
        let scores = model.scores;
        product(|_, _| ())(model);
        let Step::MatMul(step) = &mut model.steps[matmul] else { unreachable!() };
        step.b = scores;
    });
    refused(&island(softmax, |s, absent| s.input = absent));
    refused(&island(softmax, |s, absent| s.outputs.push(absent)));
    refused(&island(softmax, |s, _| s.outputs = vec![s.input]));
    refused(&island(softmax, |s, _| s.outputs.push(s.outputs[0])));
    refused(&island(softmax, |s, _| s.outputs.clear()));
    refused(&|model| {
        let Step::MatMul(MatMulStep { b, .. }) = model.steps[matmul] else { unreachable!() };
        let Step::Island(step) = &mut model.steps[softmax] else { unreachable!() };
        step.outputs = vec![b];
    });
    refused(&|model| {
        let scores = model.scores;
        let Step::Island(step) = &mut model.steps[softmax] else { unreachable!() };
        step.outputs.push(scores);
    });
    fn scales(step: &mut IslandStep) -> (&mut Vec<f32>, &mut f32) {
        let Island::LayerNorm { scale, epsilon, .. } = &mut step.function else { unreachable!() };
        (scale, epsilon)
    }
    refused(&island(norm, |s, _| scales(s).0.truncate(1)));
    refused(&island(norm, |s, _| scales(s).0[0] = f32::NAN));
    refused(&island(norm, |s, _| *scales(s).1 = 0.0));
    refused(&island(norm, |s, _| s.matrices = Matrices::PerChannel));
    insta::assert_snapshot!(seen.join("\n"), @r"
    integer network of point `w4a4`: step 11: map 25 of 25 does not exist
    integer network of point `w4a4`: step 11: matrices [2, 5, 3] and [2, 5, 3] can't be multiplied to [2, 5, 5]
    integer network of point `w4a4`: step 11: matrices [1, 15, 2] and [1, 15, 2] can't be multiplied to [1, 25, 2]
    integer network of point `w4a4`: step 11: step without a result
    integer network of point `w4a4`: step 11: limits 0 … 255 don't fit map 6
    integer network of point `w4a4`: step 11: results reach 768 · inf, expected below 2^51
    integer network of point `w4a4`: step 11: map 24 holds scores, expected codes
    integer network of point `w4a4`: step 12: map 25 of 25 does not exist
    integer network of point `w4a4`: step 12: map 25 of 25 does not exist
    integer network of point `w4a4`: step 12: a map is operand and result of one step
    integer network of point `w4a4`: step 12: map 13 is written twice
    integer network of point `w4a4`: step 12: step without a result
    integer network of point `w4a4`: step 12: shapes differ
    integer network of point `w4a4`: step 12: map 24 holds scores, expected codes
    integer network of point `w4a4`: step 0: expected 6 scales and shifts, got 1 and 6
    integer network of point `w4a4`: step 0: scales and shifts must be finite
    integer network of point `w4a4`: step 0: epsilon must be positive, got 0
    integer network of point `w4a4`: step 0: expected 1 scales and shifts, got 6 and 6
    ");
}

#[test]
fn a_transformer_lists_its_products_and_islands() {
    let Some(shared) = shared("a_transformer_lists_its_products_and_islands") else { return };
    let graph = VIT.graph(&shared);
    let islands = graph.float_islands();
    let count = |kind: &str| islands.iter().filter(|(_, k)| *k == kind).count();
    assert_eq!((islands.len(), count("layer norm"), count("softmax")), (18, 12, 6));
    let layers = graph.mac_layers();
    let products: Vec<_> = layers.iter().filter(|l| l.kind == LayerKind::MatrixProduct).collect();
    assert_eq!((layers.len(), products.len()), (51, 12));
    // 8 heads of 17 x 8 times 8 x 17, its scale taken in; then 17 x 17 times 17 x 8.
    assert!(products.iter().all(|l| l.macs == 8 * 17 * 17 * 8 && l.weights == 0));
    assert_eq!(products[0].second_operand, 8 * 8 * 17);
    let gelus = graph.nodes.iter().filter(|n| n.op == Op::Activation(Activation::Gelu)).count();
    assert_eq!(gelus, 7);
}

#[test]
fn a_transformer_at_sixteen_bits_answers_like_the_float_one() {
    let Some(shared) = shared("a_transformer_at_sixteen_bits_answers_like_the_float_one") else {
        return;
    };
    let (graph, data) = (VIT.graph(&shared), VIT.dataset(&shared));
    let all: Vec<usize> = (0..400).collect();
    let batch = |indices: &[usize]| data.batch(indices, &VIT.preprocess());
    let ranges = calibrate(&graph, 200, |span| Ok::<_, Infallible>(batch(&all[span]))).unwrap();
    let model = quantize(&graph, &ranges, &"w16a16".parse().unwrap()).unwrap();
    model.validate().unwrap();
    let samples = batch(&all[200..]);
    let expected = float::run(&graph, &samples);
    let engine = Engine::new(&model, Kernels::detect());
    let scores = engine.scores(&samples);
    let float_answers = expected
        .values()
        .chunks(10)
        .map(|row| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap());
    let answers = scores.chunks(10).map(|row| (0..10).max_by_key(|&c| row[c]).unwrap());
    let same = answers.zip(float_answers).filter(|(a, b)| a == b).count();
    // Clipping at the calibrated range may turn a near tie.
    assert!(same >= 199, "{same} of 200");
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| engine.scores(&samples)), scores, "{threads} threads");
    }
    let scalar = Engine::new(&model, Kernels::scalar());
    let few = batch(&all[200..204]);
    assert_eq!(scalar.scores(&few), scores[..40]);
}
