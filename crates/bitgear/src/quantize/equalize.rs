//! Scales of a layer's input channels of their own, which the layer takes into its weights and the
//! layer before it into its requantization (Nagel et al. 2019, arXiv 1906.04721).

use std::borrow::Cow;

use rayon::prelude::*;

use crate::graph::Op;
use crate::tensor::Tensor;

/// Values looked at per channel.
const VALUES: usize = 16_384;
/// A channel's range is the magnitude that this share of its values stays below.
const SHARE: f64 = 0.999;
/// No range counts as less than this share of the largest.
const LEAST: f32 = 1e-3;
/// Factors lie within this of their median, and of its inverse.
const SPREAD: f32 = 16.0;

/// Factors that even out the ranges of the channels: fully where the layer reads each channel by
/// itself, else halfway, so that weights stay as easy to round as activations.
pub(super) fn factors(
    op: &Op,
    values: &[f32],
    shape: &[usize],
    power_of_two: bool,
) -> Option<Vec<f32>> {
    let (weight, depthwise) = match op {
        Op::Conv(conv) if conv.groups == 1 => (&conv.weight, false),
        Op::Conv(conv) if conv.weight.shape()[1] == 1 => (&conv.weight, true),
        Op::Linear(linear) => (&linear.weight, false),
        _ => return None,
    };
    let ranges = at_least(channel_ranges(values, shape), LEAST);
    let mut factors = if depthwise {
        ranges
    } else {
        let mut columns = vec![0.0_f32; weight.shape()[1]];
        let taps: usize = weight.shape()[2..].iter().product();
        for (i, w) in weight.values().iter().enumerate() {
            let column = &mut columns[i / taps % weight.shape()[1]];
            *column = column.max(w.abs());
        }
        let columns = at_least(columns, 1e-4);
        ranges.iter().zip(columns).map(|(range, column)| (range / column).sqrt()).collect()
    };
    let mut sorted = factors.clone();
    sorted.sort_by(f32::total_cmp);
    let median = sorted[sorted.len() / 2];
    if !(median > 0.0 && median.is_finite()) {
        return None;
    }
    for factor in &mut factors {
        *factor = (*factor / median).clamp(1.0 / SPREAD, SPREAD);
        if power_of_two {
            *factor = factor.log2().round().exp2();
        }
    }
    Some(factors)
}

fn at_least(mut values: Vec<f32>, share: f32) -> Vec<f32> {
    let floor = values.iter().copied().fold(0.0, f32::max) * share;
    for value in &mut values {
        *value = value.max(floor);
    }
    values
}

/// Magnitude that nearly all values of each channel stay below.
pub(super) fn channel_ranges(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let (channels, inner) = match *shape {
        [c, h, w] => (c, h * w),
        _ => (shape[shape.len() - 1], 1),
    };
    let per_channel = values.len() / channels;
    // Odd, so as to see all columns.
    let step = (per_channel / VALUES).max(1) | 1;
    let range = |c: usize| {
        let mut seen: Vec<f32> = (0..per_channel)
            .step_by(step)
            .map(|i| values[(i / inner * channels + c) * inner + i % inner].abs())
            .collect();
        let rank = ((seen.len() - 1) as f64 * SHARE) as usize;
        *seen.select_nth_unstable_by(rank, f32::total_cmp).1
    };
    (0..channels).into_par_iter().map(range).collect()
}

/// Weights with the factors of their input channels taken in.
pub(super) fn apply<'w>(op: &Op, weight: &'w Tensor, factors: &[f32]) -> Cow<'w, [f32]> {
    if factors.is_empty() {
        return weight.values().into();
    }
    let depthwise = matches!(op, Op::Conv(conv) if conv.groups > 1);
    let shape = weight.shape();
    let taps: usize = shape[2..].iter().product();
    let channel = |i: usize| {
        // A filter of a depthwise layer reads the channel of its group.
        if depthwise { i / taps * factors.len() / shape[0] } else { i / taps % shape[1] }
    };
    weight
        .values()
        .iter()
        .enumerate()
        .map(|(i, w)| w * factors[channel(i)])
        .collect::<Vec<_>>()
        .into()
}
