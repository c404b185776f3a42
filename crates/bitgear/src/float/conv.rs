//! Convolutions and fully connected layers of one sample, on a library's matrix product.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::depthwise::Depthwise;
use crate::graph::{Conv, Linear};

/// `out` (O, H, W) of an `input` of (C, H, W).
pub(super) fn conv(
    conv: &Conv,
    shape: &[usize],
    input: &[f32],
    out_shape: &[usize],
    out: &mut [f32],
) {
    let (outputs, pixels) = (out_shape[0], out_shape[1] * out_shape[2]);
    let weight = conv.weight.values();
    let per_group = outputs / conv.groups;
    let channels = shape[0] / conv.groups;
    let taps = conv.weight.shape()[2] * conv.weight.shape()[3];
    for (row, &bias) in out.chunks_exact_mut(pixels).zip(&conv.bias) {
        row.fill(bias);
    }
    let plane = shape[1] * shape[2];
    if per_group == 1 && channels == 1 {
        let mut depthwise = Depthwise::new(conv, shape, out_shape);
        let planes = input.chunks_exact(plane).zip(out.chunks_exact_mut(pixels));
        for ((input, out), weight) in planes.zip(weight.chunks_exact(taps)) {
            depthwise.run(weight, input, out);
        }
        return;
    }
    let mut columns = Vec::new();
    for group in 0..conv.groups {
        let input = &input[group * channels * plane..][..channels * plane];
        let weight = &weight[group * per_group * channels * taps..][..per_group * channels * taps];
        let out = &mut out[group * per_group * pixels..][..per_group * pixels];
        let operand = if is_whole(conv, taps) {
            input
        } else {
            unfold(conv, shape, channels, input, out_shape, &mut columns);
            &columns
        };
        add_product(per_group, channels * taps, pixels, weight, operand, out);
    }
}

/// Gradient of the input of shape (C, H, W), added to `into`, from that of the result.
pub(super) fn conv_gradient(
    conv: &Conv,
    shape: &[usize],
    out_shape: &[usize],
    gradient: &[f32],
    into: &mut [f32],
) {
    let (outputs, pixels) = (out_shape[0], out_shape[1] * out_shape[2]);
    let per_group = outputs / conv.groups;
    let channels = shape[0] / conv.groups;
    let taps = conv.weight.shape()[2] * conv.weight.shape()[3];
    let plane = shape[1] * shape[2];
    if per_group == 1 && channels == 1 {
        let mut depthwise = Depthwise::new(conv, shape, out_shape);
        let planes = into.chunks_exact_mut(plane).zip(gradient.chunks_exact(pixels));
        for ((into, gradient), weight) in planes.zip(conv.weight.values().chunks_exact(taps)) {
            depthwise.pull_back(weight, gradient, into);
        }
        return;
    }
    let whole = is_whole(conv, taps);
    let mut columns = vec![0.0; if whole { 0 } else { channels * taps * pixels }];
    for group in 0..conv.groups {
        let into = &mut into[group * channels * plane..][..channels * plane];
        let rows = per_group * channels * taps;
        let weight = &conv.weight.values()[group * rows..][..rows];
        let gradient = &gradient[group * per_group * pixels..][..per_group * pixels];
        let weight = MatRef::from_row_major_slice(weight, per_group, channels * taps);
        let gradient = MatRef::from_row_major_slice(gradient, per_group, pixels);
        let (memory, accum) =
            if whole { (&mut *into, Accum::Add) } else { (&mut columns[..], Accum::Replace) };
        let product = MatMut::from_row_major_slice_mut(memory, channels * taps, pixels);
        matmul(product, accum, weight.transpose(), gradient, 1.0, Par::Seq);
        if !whole {
            fold(conv, shape, &columns, out_shape, into);
        }
    }
}

/// Whether windows are the pixels of the operand, one each.
fn is_whole(conv: &Conv, taps: usize) -> bool {
    taps == 1 && conv.strides == [1, 1] && conv.pads == [0; 4]
}

/// Where output position `out` reads tap `tap`, if inside the input.
fn source(conv: &Conv, axis: usize, out: usize, tap: usize, size: usize) -> Option<usize> {
    (out * conv.strides[axis] + tap * conv.dilations[axis])
        .checked_sub(conv.pads[axis])
        .filter(|&at| at < size)
}

/// Output positions whose tap lies inside the input, and what the first of them reads.
fn inside(conv: &Conv, axis: usize, tap: usize, size: usize, out: usize) -> (Range<usize>, usize) {
    let (stride, offset) = (conv.strides[axis], tap * conv.dilations[axis]);
    let pad = conv.pads[axis];
    let first = pad.saturating_sub(offset).div_ceil(stride);
    let end = (size + pad).saturating_sub(offset).div_ceil(stride).min(out);
    (first..end.max(first), first * stride + offset - pad.min(first * stride + offset))
}

/// Rows (channel, tap) by columns (output pixel); padding is zero.
fn unfold(
    conv: &Conv,
    shape: &[usize],
    channels: usize,
    input: &[f32],
    out_shape: &[usize],
    columns: &mut Vec<f32>,
) {
    let (height, width) = (shape[1], shape[2]);
    let (kh, kw) = (conv.weight.shape()[2], conv.weight.shape()[3]);
    let (out_height, out_width) = (out_shape[1], out_shape[2]);
    columns.clear();
    columns.resize(channels * kh * kw * out_height * out_width, 0.0);
    let mut rows = columns.chunks_exact_mut(out_width);
    for plane in input.chunks_exact(height * width).take(channels) {
        for ky in 0..kh {
            for kx in 0..kw {
                let (inside, start) = inside(conv, 1, kx, width, out_width);
                for y in 0..out_height {
                    let out = &mut rows.next().expect("a row per tap and line")[inside.clone()];
                    let Some(row) = source(conv, 0, y, ky, height) else { continue };
                    let row = &plane[row * width..][..width];
                    if conv.strides[1] == 1 {
                        out.copy_from_slice(&row[start.min(width)..][..out.len()]);
                    } else {
                        let taps = row[start.min(width)..].iter().step_by(conv.strides[1]);
                        for (out, tap) in out.iter_mut().zip(taps) {
                            *out = *tap;
                        }
                    }
                }
            }
        }
    }
}

/// Adds every element of `columns`, laid out as [`unfold`] does, to the input element it stands for.
fn fold(conv: &Conv, shape: &[usize], columns: &[f32], out_shape: &[usize], into: &mut [f32]) {
    let (height, width) = (shape[1], shape[2]);
    let (kh, kw) = (conv.weight.shape()[2], conv.weight.shape()[3]);
    let (out_height, out_width) = (out_shape[1], out_shape[2]);
    let mut rows = columns.chunks_exact(out_width);
    for plane in into.chunks_exact_mut(height * width) {
        for ky in 0..kh {
            for kx in 0..kw {
                let (inside, start) = inside(conv, 1, kx, width, out_width);
                for y in 0..out_height {
                    let from = &rows.next().expect("a row per tap and line")[inside.clone()];
                    let Some(row) = source(conv, 0, y, ky, height) else { continue };
                    let row = &mut plane[row * width..][..width];
                    if conv.strides[1] == 1 {
                        let row = &mut row[start.min(width)..][..from.len()];
                        row.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    } else {
                        let taps = row[start.min(width)..].iter_mut().step_by(conv.strides[1]);
                        taps.zip(from).for_each(|(to, from)| *to += from);
                    }
                }
            }
        }
    }
}

/// `out` (…, O) of an `input` of (…, I).
pub(super) fn linear(linear: &Linear, input: &[f32], out: &mut [f32]) {
    let [outputs, features] = *linear.weight.shape() else { unreachable!("checked on import") };
    for row in out.chunks_exact_mut(outputs) {
        row.copy_from_slice(&linear.bias);
    }
    let rows = out.len() / outputs;
    let weight = MatRef::from_row_major_slice(linear.weight.values(), outputs, features);
    let input = MatRef::from_row_major_slice(input, rows, features);
    let out = MatMut::from_row_major_slice_mut(out, rows, outputs);
    matmul(out, Accum::Add, input, weight.transpose(), 1.0, Par::Seq);
}

/// out (m, n) += a (m, k) · b (k, n), row-major.
pub(super) fn add_product(m: usize, k: usize, n: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(b, k, n));
    matmul(MatMut::from_row_major_slice_mut(out, m, n), Accum::Add, a, b, 1.0, Par::Seq);
}
