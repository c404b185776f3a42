//! The specification of the convolution.

use super::types::{Bias, Codes, ConvShape, Output, Terms};
use crate::fixed::requantize;

pub(super) fn conv(
    shape: &ConvShape,
    plain: &[i16],
    input: Codes<'_>,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let filter_len = shape.filter_len();
    for y in 0..shape.out_height {
        for x in 0..shape.out_width {
            for channel in 0..shape.out_channels {
                let filter = &plain[channel * filter_len..][..filter_len];
                let acc = accumulate(shape, filter, input, (y, x), channel);
                let t = term(terms, acc, (y, x), channel);
                for output in &mut *outputs {
                    store(output, t, (y, x), channel, output.multipliers[channel]);
                }
            }
        }
    }
}

/// Σ weight · code over the window.
fn accumulate(
    shape: &ConvShape,
    filter: &[i16],
    input: Codes<'_>,
    (y, x): (usize, usize),
    channel: usize,
) -> i64 {
    let channels = shape.group_channels();
    let group = channel / (shape.out_channels / shape.groups);
    let origin = shape.origin(y, x) + group * channels;
    let mut acc = 0;
    for ky in 0..shape.kernel[0] {
        for kx in 0..shape.kernel[1] {
            let codes = origin + shape.tap(ky, kx);
            let weights = &filter[(ky * shape.kernel[1] + kx) * channels..][..channels];
            for (c, &weight) in weights.iter().enumerate() {
                acc += i64::from(weight) * i64::from(input.at(codes + c));
            }
        }
    }
    acc
}

/// t = (acc << shift) + bias + multiplier · residual code.
pub(super) fn term(terms: &Terms<'_>, acc: i64, (y, x): (usize, usize), channel: usize) -> i64 {
    let residual = terms
        .residual
        .as_ref()
        .map_or(0, |source| i64::from(source.codes.at(source.layout.offset(y, x) + channel)));
    let (bias, multiplier) = match terms.bias {
        Bias::Narrow { bias, residual } => {
            (i64::from(bias[channel]), residual.get(channel).map_or(0, |&m| i64::from(m)))
        }
        Bias::Wide { bias, residual } => {
            (bias[channel], residual.get(channel).copied().unwrap_or(0))
        }
    };
    (acc << terms.shift) + bias + multiplier * residual
}

/// Rounds t into one version of the result.
pub(super) fn store(
    output: &mut Output<'_>,
    t: i64,
    (y, x): (usize, usize),
    channel: usize,
    multiplier: f32,
) {
    let rounded = requantize(t, multiplier).saturating_add(i64::from(output.zero));
    let value = rounded.clamp(i64::from(output.low), i64::from(output.high)) as i32;
    let index = output.layout.offset(y, x) + channel;
    output.codes.set(index, value);
}
