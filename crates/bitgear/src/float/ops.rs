//! Everything but convolutions: one sample at a time, as the operators' definitions say.

use super::{attention, conv};
use crate::graph::{Activation, Binary, Op, Pool};

/// Value of an element-wise function.
pub fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Clip { low, high } => x.clamp(f64::from(low), f64::from(high)),
        Activation::LeakyRelu { alpha } => {
            if x < 0.0 {
                x * f64::from(alpha)
            } else {
                x
            }
        }
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::HardSigmoid { alpha, beta } => {
            (x * f64::from(alpha) + f64::from(beta)).clamp(0.0, 1.0)
        }
        Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Activation::Tanh => x.tanh(),
        Activation::Gelu => x / 2.0 * (1.0 + attention::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Erf => attention::erf(x),
    }
}

/// Computes one sample's result.
pub(crate) fn apply(op: &Op, operands: &[(&[usize], &[f32])], shape: &[usize], out: &mut [f32]) {
    let (in_shape, input) = operands[0];
    match op {
        Op::Conv(conv) => conv::conv(conv, in_shape, input, shape, out),
        Op::Linear(linear) => conv::linear(linear, input, out),
        Op::MatMul { scale } => attention::matmul(*scale, operands, out),
        Op::LayerNorm { scale, shift, epsilon } => {
            attention::rows(scale.len(), input, out, |row| {
                attention::layer_norm(row, scale, shift, *epsilon);
            });
        }
        Op::Softmax => attention::rows(shape[shape.len() - 1], input, out, attention::softmax),
        Op::Affine { axis, scale, shift } => {
            let inner: usize = shape[axis + 1..].iter().product();
            let channels = scale.iter().zip(shift).cycle();
            let rows = out.chunks_exact_mut(inner).zip(input.chunks_exact(inner));
            for ((out, input), (scale, shift)) in rows.zip(channels) {
                out.iter_mut().zip(input).for_each(|(out, x)| *out = x * scale + shift);
            }
        }
        Op::Activation(Activation::Relu) => {
            for (out, x) in out.iter_mut().zip(input) {
                *out = x.max(0.0);
            }
        }
        Op::Activation(Activation::Clip { low, high }) => {
            for (out, x) in out.iter_mut().zip(input) {
                *out = x.clamp(*low, *high);
            }
        }
        Op::Activation(function) => {
            for (out, x) in out.iter_mut().zip(input) {
                *out = activation(*function, f64::from(*x)) as f32;
            }
        }
        Op::Binary(op) => binary(*op, operands, shape, out),
        Op::MaxPool(pool) => windows(pool, in_shape, shape, |i, pixels| {
            out[i] = pixels.map(|at| input[at]).fold(f32::NEG_INFINITY, f32::max);
        }),
        Op::AveragePool { pool, count_padding } => windows(pool, in_shape, shape, |i, pixels| {
            let (sum, count) =
                pixels.fold((0.0, 0), |(sum, count), at| (sum + input[at], count + 1));
            let divisor = if *count_padding { pool.kernel[0] * pool.kernel[1] } else { count };
            out[i] = sum / divisor as f32;
        }),
        Op::Mean { axes, .. } => mean(axes, in_shape, input, out),
        Op::Reshape => out.copy_from_slice(input),
        Op::Transpose { permutation } => {
            let strides = strides(in_shape);
            walk(shape, |i, at| {
                let from = permutation.iter().zip(at).map(|(&axis, &at)| strides[axis] * at);
                out[i] = input[from.sum::<usize>()];
            });
        }
        Op::Concat { axis } => concat(*axis, operands, shape, out),
        Op::Slice { ranges } => {
            let strides = strides(in_shape);
            walk(shape, |i, at| {
                let from = ranges.iter().zip(&strides).zip(at).map(|((range, stride), &at)| {
                    range.start.wrapping_add_signed(at as isize * range.step) * stride
                });
                out[i] = input[from.sum::<usize>()];
            });
        }
        Op::Pad { pads, value } => {
            let strides = strides(in_shape);
            walk(shape, |i, at| {
                let from = pads.iter().zip(in_shape).zip(&strides).zip(at).map(
                    |(((&(before, _), &size), stride), &at)| {
                        at.checked_sub(before).filter(|&at| at < size).map(|at| at * stride)
                    },
                );
                out[i] = from.sum::<Option<usize>>().map_or(*value, |at| input[at]);
            });
        }
        Op::Constant(_) => unreachable!("constants are not computed"),
    }
}

/// Elements from one index of each axis to the next, row-major.
fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// Visits every element of `shape` in row-major order with its coordinates.
pub(super) fn walk(shape: &[usize], mut visit: impl FnMut(usize, &[usize])) {
    let mut at = vec![0; shape.len()];
    for i in 0..shape.iter().product() {
        visit(i, &at);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
}

fn binary(op: Binary, operands: &[(&[usize], &[f32])], shape: &[usize], out: &mut [f32]) {
    let compute = |a: f32, b: f32| match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
    };
    let [(a_shape, a), (b_shape, b)] = *operands else { unreachable!("checked on import") };
    if a_shape == shape && b_shape == shape {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = compute(a, b);
        }
        return;
    }
    let (a_strides, b_strides) = (broadcast(a_shape, shape), broadcast(b_shape, shape));
    let index = |strides: &[usize], at: &[usize]| -> usize {
        strides.iter().zip(at).map(|(stride, at)| stride * at).sum()
    };
    walk(shape, |i, at| out[i] = compute(a[index(&a_strides, at)], b[index(&b_strides, at)]));
}

/// Strides of an operand over the axes of `shape`: axes are aligned at the end, one of size 1
/// repeats.
pub(super) fn broadcast(operand: &[usize], shape: &[usize]) -> Vec<usize> {
    let missing = shape.len() - operand.len();
    let own = strides(operand);
    (0..shape.len())
        .map(|axis| match axis.checked_sub(missing) {
            Some(axis) if operand[axis] != 1 => own[axis],
            _ => 0,
        })
        .collect()
}

/// Visits every output position with the indices of the window's pixels inside the input.
pub(super) fn windows(
    pool: &Pool,
    in_shape: &[usize],
    shape: &[usize],
    mut visit: impl FnMut(usize, &mut dyn Iterator<Item = usize>),
) {
    let (height, width) = (in_shape[1], in_shape[2]);
    let span = |axis: usize, out: usize, size: usize| {
        let start = out * pool.strides[axis];
        let end = (start + pool.kernel[axis]).saturating_sub(pool.pads[axis]).min(size);
        start.saturating_sub(pool.pads[axis])..end
    };
    for c in 0..shape[0] {
        for y in 0..shape[1] {
            for x in 0..shape[2] {
                let columns = span(1, x, width);
                let mut pixels = span(0, y, height).flat_map(|row| {
                    columns.clone().map(move |column| (c * height + row) * width + column)
                });
                visit((c * shape[1] + y) * shape[2] + x, &mut pixels);
            }
        }
    }
}

/// Strides of a mean's result over the axes of its operand, 0 along the axes that vanish.
pub(super) fn mean_strides(axes: &[usize], in_shape: &[usize]) -> Vec<usize> {
    let mut kept = vec![0; in_shape.len()];
    let mut stride = 1;
    for axis in (0..in_shape.len()).rev() {
        if !axes.contains(&axis) {
            kept[axis] = stride;
            stride *= in_shape[axis];
        }
    }
    kept
}

fn mean(axes: &[usize], in_shape: &[usize], input: &[f32], out: &mut [f32]) {
    let kept = mean_strides(axes, in_shape);
    out.fill(0.0);
    walk(in_shape, |i, at| {
        out[kept.iter().zip(at).map(|(stride, at)| stride * at).sum::<usize>()] += input[i];
    });
    let count: usize = axes.iter().map(|&axis| in_shape[axis]).product();
    for out in out {
        *out /= count as f32;
    }
}

fn concat(axis: usize, operands: &[(&[usize], &[f32])], shape: &[usize], out: &mut [f32]) {
    let outer: usize = shape[..axis].iter().product();
    let row = out.len() / outer;
    let mut start = 0;
    for (_, values) in operands {
        let len = values.len() / outer;
        for i in 0..outer {
            out[i * row + start..][..len].copy_from_slice(&values[i * len..(i + 1) * len]);
        }
        start += len;
    }
}
