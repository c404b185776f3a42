//! Winograd's minimal filtering F(4 x 4, 3 x 3) in integers: 36 products for 16 outputs instead of 144.
//!
//! With B, G and A of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), an
//! output tile is Aᵀ ((G g Gᵀ) ∘ (Bᵀ d B)) A. B is an integer matrix; G is not, but with every row times
//! its own denominator it is: `G` below. Dividing by 24² is put off until the end, where the result is
//! known to be whole. All sums are taken modulo 2^32. Dividing by 9 is then a multiplication by its
//! inverse, and dividing by 64 an arithmetic shift. So products and sums may wrap: the result is exact if
//! 64 times it fits into 32 bits.

use super::types::{ConvShape, PANEL};
use crate::bits::BitWidth;

/// Rows and columns of a tile of outputs.
pub(super) const TILE: usize = 4;
/// Rows and columns of what a tile reads, and of its transform.
pub(super) const PATCH: usize = TILE + 2;
/// Products of a tile, for each pair of channels.
pub(super) const POINTS: usize = PATCH * PATCH;
/// Channels that kernels have memory for.
pub(super) const MOST_CHANNELS: usize = 256;

/// Rows of Lavin's G times 12, -6, -6, 24, 24, 3.
const G: [[i32; 3]; PATCH] = [[3, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 3]];

/// A transformed weight. `filter` is one output channel's, (ky, kx, channel).
pub(super) fn weight(filter: &[i16], channels: usize, channel: usize, point: usize) -> i32 {
    transformed(&G, filter, channels, channel, point)
}

/// A point of `g` times a channel's weights times the transpose of `g`.
pub(super) fn transformed<const PATCH: usize>(
    g: &[[i32; 3]; PATCH],
    filter: &[i16],
    channels: usize,
    channel: usize,
    point: usize,
) -> i32 {
    let (rows, columns) = (g[point / PATCH], g[point % PATCH]);
    (0..9)
        .map(|tap| {
            let weight = i32::from(filter[tap * channels + channel]);
            rows[tap / 3] * columns[tap % 3] * weight
        })
        .sum()
}

/// Whether a layer can be computed by tiles of so many rows and columns of outputs.
pub(super) fn has_form(shape: &ConvShape, tile: usize) -> bool {
    shape.kernel == [3, 3]
        && shape.strides == [1, 1]
        && shape.dilations == [1, 1]
        && shape.groups == 1
        && shape.out_height.min(shape.out_width) >= tile
        && shape.input.channels <= MOST_CHANNELS
}

/// Whether the class is exact for these weights, all inputs of `activation` bits and sums within `bound`.
pub(super) fn is_exact(
    shape: &ConvShape,
    plain: &[i16],
    activation: BitWidth,
    (low, high): (i64, i64),
) -> bool {
    const RESULT: i64 = 1 << 25;
    let fits = has_form(shape, TILE)
        // Transformed codes are at most 10² times as large: they fit into 16 bits.
        && activation.get() <= 8;
    let channels = shape.input.channels;
    let words = || {
        plain.chunks_exact(shape.filter_len()).all(|filter| {
            (0..channels * POINTS)
                .all(|i| i16::try_from(weight(filter, channels, i / POINTS, i % POINTS)).is_ok())
        })
    };
    fits && -RESULT <= low && high < RESULT && words()
}

/// About how many vector instructions a layer takes, what finishes sums left out.
pub(super) fn cost(shape: &ConvShape) -> usize {
    let panels = shape.out_channels.div_ceil(PANEL);
    let channels = shape.input.stride();
    let tiles = shape.out_height.div_ceil(TILE) * shape.out_width.div_ceil(TILE);
    tiles * (15 * channels + panels * (2 * POINTS * channels + 400))
}
