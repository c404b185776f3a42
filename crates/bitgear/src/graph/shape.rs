//! The shape that each operator gives its result.

use super::{Conv, Op, Pool};

/// Shape of one sample of the result, from those of the operands. A reshape's result is not
/// determined by its operand: it keeps the operand's shape here.
///
/// # Errors
///
/// When the operands don't fit the operator.
pub fn infer(op: &Op, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let expected = match op {
        Op::Constant(_) => 0,
        Op::Binary(_) | Op::MatMul { .. } => 2,
        Op::Concat { .. } => inputs.len().max(1),
        _ => 1,
    };
    if inputs.len() != expected {
        return Err(format!("expected {expected} operands, got {}", inputs.len()));
    }
    let input = inputs.first().copied().unwrap_or_default();
    match op {
        Op::Constant(tensor) => Ok(tensor.shape().to_vec()),
        Op::Conv(conv) => conv_shape(conv, input),
        Op::Linear(linear) => {
            let [outputs, features] = *linear.weight.shape() else {
                return Err("weights must have rank 2".to_owned());
            };
            match input.split_last() {
                Some((&last, rest)) if last == features => {
                    Ok(rest.iter().copied().chain([outputs]).collect())
                }
                _ => Err(format!("expected {features} features, got shape {input:?}")),
            }
        }
        Op::Affine { axis, scale, shift } => match input.get(*axis) {
            Some(&n) if n == scale.len() && n == shift.len() => Ok(input.to_vec()),
            _ => Err(format!(
                "expected {} channels on axis {axis}, got shape {input:?}",
                scale.len()
            )),
        },
        Op::MatMul { .. } => matmul_shape(input, inputs[1]),
        Op::LayerNorm { scale, shift, .. } => match input.last() {
            Some(&n) if n == scale.len() && n == shift.len() => Ok(input.to_vec()),
            _ => Err(format!("expected {} features, got shape {input:?}", scale.len())),
        },
        Op::Softmax => match input {
            [] => Err("expected at least one axis".to_owned()),
            _ => Ok(input.to_vec()),
        },
        Op::Activation(_) | Op::Reshape => Ok(input.to_vec()),
        Op::Binary(_) => broadcast(input, inputs[1]),
        Op::MaxPool(pool) | Op::AveragePool { pool, .. } => pool_shape(pool, input),
        Op::Mean { axes, keep } => {
            if axes.iter().any(|&axis| axis >= input.len()) {
                return Err(format!("axes {axes:?} of shape {input:?}"));
            }
            let kept = input.iter().enumerate().filter_map(|(axis, &n)| {
                if axes.contains(&axis) { keep.then_some(1) } else { Some(n) }
            });
            Ok(kept.collect())
        }
        Op::Transpose { permutation } => {
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..input.len()) {
                return Err(format!("{permutation:?} is no permutation of shape {input:?}"));
            }
            Ok(permutation.iter().map(|&axis| input[axis]).collect())
        }
        Op::Concat { axis } => {
            let mut shape = input.to_vec();
            for other in &inputs[1..] {
                let same = |(i, (a, b)): (usize, (&usize, &usize))| i == *axis || a == b;
                if other.len() != shape.len() || !shape.iter().zip(*other).enumerate().all(same) {
                    return Err(format!("cannot join {input:?} and {other:?} along axis {axis}"));
                }
                *shape.get_mut(*axis).ok_or_else(|| format!("axis {axis} of {input:?}"))? +=
                    other[*axis];
            }
            Ok(shape)
        }
        Op::Slice { ranges } => {
            if ranges.len() != input.len() {
                return Err(format!("expected {} ranges, got {}", input.len(), ranges.len()));
            }
            Ok(ranges.iter().map(|range| range.count).collect())
        }
        Op::Pad { pads, .. } => {
            if pads.len() != input.len() {
                return Err(format!("expected {} pads, got {}", input.len(), pads.len()));
            }
            Ok(input.iter().zip(pads).map(|(n, (before, after))| n + before + after).collect())
        }
    }
}

fn matmul_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let (Some((leading, &[m, k])), Some((others, &[depth, n]))) =
        (a.split_last_chunk(), b.split_last_chunk())
    else {
        return Err(format!("expected two matrices, got shapes {a:?} and {b:?}"));
    };
    if leading != others || k != depth {
        return Err(format!("shapes {a:?} and {b:?} can't be multiplied"));
    }
    Ok([leading, &[m, n]].concat())
}

fn conv_shape(conv: &Conv, input: &[usize]) -> Result<Vec<usize>, String> {
    let (&[outputs, channels, kh, kw], &[c, h, w]) = (conv.weight.shape(), input) else {
        return Err(format!("expected an image (C, H, W), got shape {input:?}"));
    };
    let groups = conv.groups.max(1);
    if c != channels * groups || outputs % groups != 0 || conv.bias.len() != outputs {
        return Err(format!(
            "weights {:?} with {groups} groups don't fit {c} channels",
            conv.weight.shape()
        ));
    }
    let [top, left, bottom, right] = conv.pads;
    let vertical = window(h, kh, conv.strides[0], conv.dilations[0], top + bottom)?;
    let horizontal = window(w, kw, conv.strides[1], conv.dilations[1], left + right)?;
    Ok(vec![outputs, vertical, horizontal])
}

fn pool_shape(pool: &Pool, input: &[usize]) -> Result<Vec<usize>, String> {
    let &[c, h, w] = input else {
        return Err(format!("expected an image (C, H, W), got shape {input:?}"));
    };
    let [top, left, bottom, right] = pool.pads;
    if top >= pool.kernel[0] || left >= pool.kernel[1] {
        return Err("padding is as large as the window".to_owned());
    }
    let vertical = window(h, pool.kernel[0], pool.strides[0], 1, top + bottom)?;
    let horizontal = window(w, pool.kernel[1], pool.strides[1], 1, left + right)?;
    Ok(vec![c, vertical, horizontal])
}

/// Number of positions of a window.
fn window(
    size: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    pads: usize,
) -> Result<usize, String> {
    if kernel == 0 || stride == 0 || dilation == 0 || size == 0 {
        return Err("sizes, strides and dilations must be positive".to_owned());
    }
    let reach = (kernel - 1).checked_mul(dilation).ok_or("window too large")? + 1;
    let room = (size + pads).checked_sub(reach);
    let room = room.ok_or_else(|| format!("window of {reach} does not fit {size} + {pads}"))?;
    Ok(room / stride + 1)
}

/// Shape of an element-wise result: axes are aligned at the end, and 1 repeats.
fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
    };
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            _ => Err(format!("shapes {a:?} and {b:?} don't broadcast")),
        })
        .collect()
}
