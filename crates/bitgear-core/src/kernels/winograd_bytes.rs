//! Winograd's minimal filtering F(2 x 2, 3 x 3) in bytes: 16 products for 4 outputs instead of 36.
//!
//! As in [`winograd`](super::winograd), an output tile is Aᵀ ((G g Gᵀ) ∘ (Bᵀ d B)) A. Here twice G is an integer
//! matrix, and results are divided by 4 in the end. A transformed code is the sum of at most four codes, two of
//! them subtracted, except at point (1, 1), where none is: with twice the largest code added it is not negative
//! and, for few enough bits, a byte. What the addition does to sums of products is known beforehand: sums begin
//! with its opposite. AVX2 keeps them in 16 bits, modulo 2^16, each of two for half of the channels; so all that must
//! fit are products of two neighbouring channels, and four times the result of either half. VNNI (*quads*) sums in 32
//! bits, where all fits.

use super::types::{ConvShape, PANEL};
use super::winograd::{has_form, transformed};
use crate::bits::BitWidth;

/// Rows and columns of a tile of outputs.
pub(super) const TILE: usize = 2;
/// Rows and columns of what a tile reads, and of its transform.
pub(super) const PATCH: usize = TILE + 2;
/// Products of a tile, for each channel.
pub(super) const POINTS: usize = PATCH * PATCH;
/// The point whose codes are only added.
pub(super) const ADDED: usize = PATCH + 1;
/// Channels of one step.
const STEP: usize = 4;

/// Twice Lavin's G.
const G: [[i32; 3]; PATCH] = [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]];

/// What is added to transformed codes.
pub(super) fn offset(activation: BitWidth) -> u8 {
    2 * activation.code_max() as u8
}

/// Bytes of one point of one panel: what sums begin with, then a step after the other.
pub(super) const fn point_len(shape: &ConvShape) -> usize {
    (shape.input.stride() / STEP + 1) * STEP * PANEL
}

/// [panel][point]([output channel][half] in 16 bits, then [step][output channel][channel within the step]). With
/// `quads` sums begin with 32 bits, and all channels are summed in one.
pub(super) fn pack(shape: &ConvShape, plain: &[i16], offset: u8, quads: bool, out: &mut [i8]) {
    let channels = shape.input.channels;
    let points = out.chunks_exact_mut(point_len(shape));
    for (index, packed) in points.enumerate() {
        let (panel, point) = (index / POINTS, index % POINTS);
        let (begin, steps) = packed.split_at_mut(STEP * PANEL);
        steps.fill(0);
        let mut sums = [[0_i32; 2]; PANEL];
        let filters = plain.chunks_exact(shape.filter_len()).skip(panel * PANEL).take(PANEL);
        for (lane, filter) in filters.enumerate() {
            for channel in 0..channels {
                let weight = transformed(&G, filter, channels, channel, point);
                let (step, within) = (channel / STEP, channel % STEP);
                steps[(step * PANEL + lane) * STEP + within] = weight as i8;
                sums[lane][within / 2] += weight;
            }
        }
        let added = if point == ADDED { 0 } else { i32::from(offset) };
        for (begin, sums) in begin.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            let [a, b] = sums.map(|sum| ((-added * sum) as i16).to_le_bytes());
            let whole = (-added * (sums[0] + sums[1])).to_le_bytes();
            *begin = if quads { whole } else { [a[0], a[1], b[0], b[1]] }.map(u8::cast_signed);
        }
    }
}

/// Whether the class is exact for these weights and all inputs of `activation` bits.
pub(super) fn is_exact(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> bool {
    /// A quarter of the range of 16 bits.
    const RESULTS: core::ops::Range<i64> = -(1 << 13)..1 << 13;
    let fits = has_form(shape, TILE)
        // Four codes fit into a byte.
        && activation.get() <= 6;
    let channels = shape.input.channels;
    let largest = i64::from(activation.code_max());
    let is_result = |sum: i64| RESULTS.contains(&(largest * sum));
    let is_product = |sum: i64| i16::try_from(4 * largest * sum).is_ok();
    let filters = || plain.chunks_exact(shape.filter_len());
    let halves = || {
        filters().all(|filter| {
            let mut sums = [[0_i64; 2]; 2];
            for (i, &weight) in filter.iter().enumerate() {
                let half = i % channels % STEP / 2;
                sums[half][usize::from(weight < 0)] += i64::from(weight);
            }
            sums.into_iter().flatten().all(is_result)
        })
    };
    let pairs = |filter: &[i16], point: usize| {
        let weight = |channel| i64::from(transformed(&G, filter, channels, channel, point));
        (0..channels).step_by(2).all(|first| {
            let second = if first + 1 < channels { weight(first + 1) } else { 0 };
            let pair = [weight(first), second];
            let sum = |sign: fn(i64) -> i64| pair.map(sign).iter().sum();
            pair.iter().all(|&weight| i8::try_from(weight).is_ok())
                && is_product(sum(|weight| weight.max(0)))
                && is_product(sum(|weight| weight.min(0)))
        })
    };
    fits && halves() && filters().all(|filter| (0..POINTS).all(|point| pairs(filter, point)))
}

/// Whether sums in 32 bits are exact for these weights and all inputs of `activation` bits: transformed weights and codes
/// are bytes, and few enough products of these are summed.
pub(super) fn quads_are_exact(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> bool {
    let channels = shape.input.channels;
    let is_byte = |filter: &[i16]| {
        (0..channels * POINTS).all(|i| {
            let weight = transformed(&G, filter, channels, i / POINTS, i % POINTS);
            i8::try_from(weight).is_ok()
        })
    };
    let fits = has_form(shape, TILE) && activation.get() <= 6;
    fits && plain.chunks_exact(shape.filter_len()).all(is_byte)
}

/// Whether that takes less time than every product by itself: five of nine are spared, and each tile is transformed and
/// put together again. Measured on the layers of ResNet-20.
pub(super) fn quads_pay(shape: &ConvShape) -> bool {
    let panels = shape.out_channels.div_ceil(PANEL);
    let channels = shape.input.stride();
    5 * channels * panels > 4 * channels + 20 * panels
}

/// About how many vector instructions a layer takes, what finishes sums left out.
pub(super) fn cost(shape: &ConvShape) -> usize {
    let panels = shape.out_channels.div_ceil(PANEL);
    let channels = shape.input.stride();
    let tiles = shape.out_height.div_ceil(TILE) * shape.out_width.div_ceil(TILE);
    tiles * (4 * channels + panels * (POINTS * channels + 110))
}
