//! Gradients of the operators with respect to their operands, one sample at a time.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::{attention, conv, ops};
use crate::graph::{Activation, Binary, Op};
use crate::vector::vectorized;

/// What `gradient`, that of some loss with respect to the result of `shape`, comes to for each
/// operand (shape, values).
pub(crate) fn gradients(
    op: &Op,
    operands: &[(&[usize], &[f32])],
    shape: &[usize],
    gradient: &[f32],
) -> Vec<Vec<f32>> {
    let (in_shape, input) = operands[0];
    let mut into: Vec<Vec<f32>> = operands.iter().map(|(_, v)| vec![0.0; v.len()]).collect();
    let first = &mut into[0];
    match op {
        Op::Conv(conv) => conv::conv_gradient(conv, in_shape, shape, gradient, first),
        Op::Linear(linear) => {
            let [outputs, features] = *linear.weight.shape() else { unreachable!("checked") };
            let rows = gradient.len() / outputs;
            conv::add_product(rows, outputs, features, gradient, linear.weight.values(), first);
        }
        Op::MatMul { scale } => {
            let [(a_shape, a), (b_shape, b)] = *operands else { unreachable!("checked on import") };
            let ([.., m, k], [.., n]) = (a_shape, b_shape) else { unreachable!("checked") };
            let matrices = a.chunks_exact(m * k).zip(b.chunks_exact(k * n));
            for (i, ((a, b), g)) in matrices.zip(gradient.chunks_exact(m * n)).enumerate() {
                let (a, b) = (
                    MatRef::from_row_major_slice(a, *m, *k),
                    MatRef::from_row_major_slice(b, *k, *n),
                );
                let g = MatRef::from_row_major_slice(g, *m, *n);
                let [to_a, to_b] = &mut into[..] else { unreachable!("one per operand") };
                let to_a =
                    MatMut::from_row_major_slice_mut(&mut to_a[i * m * k..][..m * k], *m, *k);
                matmul(to_a, Accum::Replace, g, b.transpose(), *scale, Par::Seq);
                let to_b =
                    MatMut::from_row_major_slice_mut(&mut to_b[i * k * n..][..k * n], *k, *n);
                matmul(to_b, Accum::Replace, a.transpose(), g, *scale, Par::Seq);
            }
        }
        Op::LayerNorm { scale, epsilon, .. } => {
            let len = scale.len();
            let rows = input.chunks_exact(len).zip(gradient.chunks_exact(len));
            for ((x, g), into) in rows.zip(first.chunks_exact_mut(len)) {
                layer_norm(x, g, scale, *epsilon, into);
            }
        }
        Op::Softmax => {
            let len = shape[shape.len() - 1];
            let mut shares = vec![0.0; input.len()];
            attention::rows(len, input, &mut shares, attention::softmax);
            let rows = shares.chunks_exact(len).zip(gradient.chunks_exact(len));
            for ((y, g), into) in rows.zip(first.chunks_exact_mut(len)) {
                let along: f32 = y.iter().zip(g).map(|(y, g)| y * g).sum();
                for ((into, y), g) in into.iter_mut().zip(y).zip(g) {
                    *into = y * (g - along);
                }
            }
        }
        Op::Affine { axis, scale, .. } => {
            let inner: usize = shape[axis + 1..].iter().product();
            let rows = first.chunks_exact_mut(inner).zip(gradient.chunks_exact(inner));
            for ((into, gradient), scale) in rows.zip(scale.iter().cycle()) {
                into.iter_mut().zip(gradient).for_each(|(into, g)| *into = g * scale);
            }
        }
        Op::Activation(Activation::Relu) => within(0.0, f32::INFINITY, input, gradient, first),
        Op::Activation(Activation::Clip { low, high }) => {
            within(*low, *high, input, gradient, first);
        }
        Op::Activation(function) => {
            for ((into, &x), g) in first.iter_mut().zip(input).zip(gradient) {
                *into = slope(*function, f64::from(x)) as f32 * g;
            }
        }
        Op::Binary(op) => binary(*op, operands, shape, gradient, &mut into),
        Op::MaxPool(pool) => ops::windows(pool, in_shape, shape, |i, pixels| {
            let mut highest = None;
            for at in pixels {
                if highest.is_none_or(|best: usize| input[at] > input[best]) {
                    highest = Some(at);
                }
            }
            if let Some(at) = highest {
                first[at] += gradient[i];
            }
        }),
        Op::AveragePool { pool, count_padding } => {
            let mut seen = Vec::new();
            ops::windows(pool, in_shape, shape, |i, pixels| {
                seen.clear();
                seen.extend(pixels);
                let whole = pool.kernel[0] * pool.kernel[1];
                let divisor = if *count_padding { whole } else { seen.len() };
                for &at in &seen {
                    first[at] += gradient[i] / divisor as f32;
                }
            });
        }
        Op::Mean { axes, .. } => {
            let share = gradient.len() as f32 / input.len() as f32;
            let strides = ops::mean_strides(axes, in_shape);
            ops::walk(in_shape, |i, at| {
                let from: usize = strides.iter().zip(at).map(|(stride, at)| stride * at).sum();
                first[i] = gradient[from] * share;
            });
        }
        Op::Reshape | Op::Transpose { .. } | Op::Concat { .. } | Op::Slice { .. } => {
            moved(op, operands, shape, gradient, &mut into);
        }
        Op::Pad { pads, .. } => {
            let zeros = Op::Pad { pads: pads.clone(), value: 0.0 };
            moved(&zeros, operands, shape, gradient, &mut into);
        }
        Op::Constant(_) => unreachable!("constants are not computed"),
    }
    into
}

/// Operators that only move elements: numbers in place of the elements tell where each went.
fn moved(
    op: &Op,
    operands: &[(&[usize], &[f32])],
    shape: &[usize],
    gradient: &[f32],
    into: &mut [Vec<f32>],
) {
    // Counted from 1, since 0 is what padding holds; all exact up to 2^24.
    let mut next = 0;
    let numbers: Vec<Vec<f32>> = operands
        .iter()
        .map(|(_, values)| {
            let start = next;
            next += values.len();
            (start + 1..=next).map(|n| n as f32).collect()
        })
        .collect();
    let numbered: Vec<(&[usize], &[f32])> =
        operands.iter().zip(&numbers).map(|((shape, _), n)| (*shape, &n[..])).collect();
    let mut sources = vec![0.0; gradient.len()];
    ops::apply(op, &numbered, shape, &mut sources);
    for (source, g) in sources.into_iter().zip(gradient) {
        let Some(mut at) = (source as usize).checked_sub(1) else { continue };
        for into in &mut *into {
            if at < into.len() {
                into[at] += g;
                break;
            }
            at -= into.len();
        }
    }
}

/// Gradients where the operand lies between limits.
fn within(low: f32, high: f32, input: &[f32], gradient: &[f32], into: &mut [f32]) {
    vectorized(move || {
        for ((into, &x), g) in into.iter_mut().zip(input).zip(gradient) {
            *into = if low < x && x < high { 1.0 } else { 0.0 } * g;
        }
    });
}

fn layer_norm(x: &[f32], gradient: &[f32], scale: &[f32], epsilon: f32, into: &mut [f32]) {
    let len = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / len;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / len;
    let deviation = (variance + f64::from(epsilon)).sqrt();
    let rows = || {
        x.iter().zip(gradient).zip(scale).map(|((&x, &g), &scale)| {
            ((f64::from(x) - mean) / deviation, f64::from(g) * f64::from(scale))
        })
    };
    let (along, across) = rows().fold((0.0, 0.0), |(a, b), (x, g)| (a + g * x, b + g));
    for (into, (x, g)) in into.iter_mut().zip(rows()) {
        *into = ((g - across / len - x * along / len) / deviation) as f32;
    }
}

fn binary(
    op: Binary,
    operands: &[(&[usize], &[f32])],
    shape: &[usize],
    gradient: &[f32],
    into: &mut [Vec<f32>],
) {
    let [(a_shape, a), (b_shape, b)] = *operands else { unreachable!("checked on import") };
    let [to_a, to_b] = into else { unreachable!("one per operand") };
    let strides = (ops::broadcast(a_shape, shape), ops::broadcast(b_shape, shape));
    ops::walk(shape, |i, at| {
        let index = |strides: &[usize]| -> usize {
            strides.iter().zip(at).map(|(stride, at)| stride * at).sum()
        };
        let (at_a, at_b) = (index(&strides.0), index(&strides.1));
        let (slope_a, slope_b) = match op {
            Binary::Add => (1.0, 1.0),
            Binary::Sub => (1.0, -1.0),
            Binary::Mul => (b[at_b], a[at_a]),
            Binary::Div => (1.0 / b[at_b], -a[at_a] / (b[at_b] * b[at_b])),
        };
        to_a[at_a] += gradient[i] * slope_a;
        to_b[at_b] += gradient[i] * slope_b;
    });
}

/// Derivative of an element-wise function; at a corner that of one side.
fn slope(activation: Activation, x: f64) -> f64 {
    let within = |low: f64, high: f64, slope: f64| if low < x && x < high { slope } else { 0.0 };
    match activation {
        Activation::Relu | Activation::Clip { .. } => unreachable!("their slopes are vectorized"),
        Activation::LeakyRelu { alpha } => {
            if x < 0.0 {
                f64::from(alpha)
            } else {
                1.0
            }
        }
        Activation::Sigmoid => {
            let y = ops::activation(activation, x);
            y * (1.0 - y)
        }
        Activation::HardSigmoid { alpha, beta } => {
            let y = x * f64::from(alpha) + f64::from(beta);
            if 0.0 < y && y < 1.0 { f64::from(alpha) } else { 0.0 }
        }
        Activation::HardSwish => {
            if x >= 3.0 {
                1.0
            } else {
                within(-3.0, 3.0, x / 3.0 + 0.5)
            }
        }
        Activation::Tanh => 1.0 - x.tanh().powi(2),
        Activation::Gelu => {
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            0.5 * (1.0 + attention::erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
        }
        Activation::Erf => std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Conv, Linear, Pool, SliceRange};
    use crate::tensor::Tensor;

    /// Numbers between -1 and 1 without pattern.
    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| (((i + 31 * seed) * 7919 % 1009) as f32 / 504.5) - 1.0).collect()
    }

    fn conv(weight: [usize; 4], groups: usize, strides: [usize; 2], pads: [usize; 4]) -> Op {
        let values = noise(weight.iter().product(), 5);
        Op::Conv(Conv {
            weight: Tensor::new(weight.to_vec(), values),
            bias: vec![0.5; weight[0]],
            strides,
            pads,
            dilations: [1, 1],
            groups,
        })
    }

    /// Against differences of the operator's own results.
    #[test]
    fn gradients_are_those_of_small_steps() {
        type Case<'a> = (Op, Vec<&'a [usize]>, &'a [usize]);
        let pool = Pool { kernel: [3, 2], strides: [2, 2], pads: [1, 0, 1, 0] };
        let linear = Linear { weight: Tensor::new(vec![4, 6], noise(24, 2)), bias: vec![0.1; 4] };
        let image: &[usize] = &[4, 5, 6];
        let slice = Op::Slice {
            ranges: vec![
                SliceRange { start: 3, count: 2, step: -2 },
                SliceRange { start: 0, count: 5, step: 1 },
                SliceRange { start: 1, count: 2, step: 3 },
            ],
        };
        let functions = [
            Activation::Relu,
            Activation::Clip { low: -0.5, high: 0.4 },
            Activation::LeakyRelu { alpha: 0.1 },
            Activation::Sigmoid,
            Activation::HardSigmoid { alpha: 0.8, beta: 0.4 },
            Activation::HardSwish,
            Activation::Tanh,
            Activation::Gelu,
            Activation::Erf,
        ];
        let mut cases: Vec<Case<'_>> = vec![
            (conv([3, 4, 3, 2], 1, [1, 1], [1, 1, 1, 0]), vec![image], &[3, 5, 6]),
            (conv([6, 2, 3, 3], 2, [2, 1], [0, 1, 1, 1]), vec![image], &[6, 2, 6]),
            (conv([4, 1, 3, 3], 4, [2, 2], [1, 1, 1, 1]), vec![image], &[4, 3, 3]),
            (conv([3, 4, 1, 1], 1, [1, 1], [0; 4]), vec![image], &[3, 5, 6]),
            (Op::Linear(linear), vec![&[3, 6]], &[3, 4]),
            (Op::MatMul { scale: 0.5 }, vec![&[2, 3, 4], &[2, 4, 5]], &[2, 3, 5]),
            (Op::Softmax, vec![&[3, 5]], &[3, 5]),
            (
                Op::LayerNorm { scale: noise(7, 1), shift: noise(7, 2), epsilon: 0.1 },
                vec![&[3, 7]],
                &[3, 7],
            ),
            (Op::Affine { axis: 0, scale: noise(4, 1), shift: noise(4, 2) }, vec![image], image),
            (Op::Binary(Binary::Sub), vec![image, &[4, 1, 1]], image),
            (Op::Binary(Binary::Mul), vec![image, image], image),
            (Op::Binary(Binary::Div), vec![&[2, 3], &[3]], &[2, 3]),
            (Op::MaxPool(pool), vec![image], &[4, 3, 3]),
            (Op::AveragePool { pool, count_padding: false }, vec![image], &[4, 3, 3]),
            (Op::AveragePool { pool, count_padding: true }, vec![image], &[4, 3, 3]),
            (Op::Mean { axes: vec![0, 2], keep: false }, vec![image], &[5]),
            (Op::Transpose { permutation: vec![2, 0, 1] }, vec![image], &[6, 4, 5]),
            (Op::Concat { axis: 1 }, vec![&[2, 3, 2], &[2, 1, 2]], &[2, 4, 2]),
            (slice, vec![image], &[2, 5, 2]),
            (Op::Pad { pads: vec![(1, 0), (0, 2)], value: 3.0 }, vec![&[2, 3]], &[3, 5]),
        ];
        cases.extend(functions.map(|f| (Op::Activation(f), vec![image], image)));
        for (op, shapes, shape) in cases {
            let values: Vec<Vec<f32>> = (shapes.iter().enumerate())
                .map(|(i, s)| noise(s.iter().product(), i + 3).iter().map(|v| v + 0.003).collect())
                .collect();
            let weights = noise(shape.iter().product(), 9);
            let loss = |values: &[Vec<f32>]| -> f64 {
                let operands: Vec<(&[usize], &[f32])> =
                    shapes.iter().zip(values).map(|(s, v)| (*s, &v[..])).collect();
                let mut out = vec![0.0; weights.len()];
                ops::apply(&op, &operands, shape, &mut out);
                out.iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
            };
            let operands: Vec<(&[usize], &[f32])> =
                shapes.iter().zip(&values).map(|(s, v)| (*s, &v[..])).collect();
            let found = gradients(&op, &operands, shape, &weights);
            let step = 1.0 / 1024.0;
            for (operand, found) in found.iter().enumerate() {
                for (element, &found) in found.iter().enumerate() {
                    let moved = |by: f32| {
                        let mut values = values.clone();
                        values[operand][element] += by;
                        loss(&values)
                    };
                    let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                    assert!(
                        (f64::from(found) - slope).abs() <= 2e-3 * (1.0 + slope.abs()),
                        "{op:?}, operand {operand}, element {element}: {found} instead of {slope}"
                    );
                }
            }
        }
    }
}
