//! 3 x 3 convolution by Winograd's minimal filtering with 16-bit operands, see
//! [`winograd`](crate::kernels::winograd): four tiles of outputs at a time are transformed, multiplied and
//! finished, so nothing leaves the cache.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_cvtepu8_epi16, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_mullo_epi32, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_slli_epi16, _mm256_srai_epi32, _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_epi32,
};
use core::mem::MaybeUninit;

use super::columns::sixteen;
use super::epilogue::Epilogue;
use super::tile::Tile;
use super::{panel_of, with_pixels};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};
use crate::kernels::winograd::{MOST_CHANNELS, PATCH, POINTS, TILE};

/// Tiles that are computed together.
const TILES: usize = 4;
/// Channels that are transformed at once.
const LANES: usize = 16;

/// Transformed codes: [tile][point][channel].
struct Transformed([MaybeUninit<i16>; TILES * POINTS * MOST_CHANNELS]);

/// Products summed over channels: [point][tile][half of the panel], tiles without gaps.
type Sums = [__m256i; POINTS * TILES * 2];

/// `packed` is [panel][point][pair of channels][output channel][within the pair].
#[target_feature(enable = "avx2,fma")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    #[expect(clippy::large_stack_arrays, reason = "74 kB, never cleared; kernels do not allocate")]
    let mut transformed = Transformed([MaybeUninit::uninit(); _]);
    let mut sums = [_mm256_setzero_si256(); POINTS * TILES * 2];
    let mut rows = [[[_mm256_setzero_si256(); 2]; TILES * TILE]; TILE];
    let across = shape.out_width.div_ceil(TILE);
    let tiles = across * shape.out_height.div_ceil(TILE);
    for first in (0..tiles).step_by(TILES) {
        // Tiles at the end of a row or map overlap those before them.
        let at: [[usize; 2]; TILES] = core::array::from_fn(|tile| {
            let tile = (first + tile).min(tiles - 1);
            [
                (tile / across * TILE).min(shape.out_height - TILE),
                (tile % across * TILE).min(shape.out_width - TILE),
            ]
        });
        with_pixels!(TILES.min(tiles - first), MR => {
            for (tile, at) in at[..MR].iter().enumerate() {
                transform(shape, input, *at, tile, &mut transformed);
            }
            for panel in 0..shape.out_channels.div_ceil(PANEL) {
                epilogue.enter(terms, outputs, panel);
                multiply::<MR>(shape, panel_of(shape, packed, panel), &transformed, &mut sums);
                let mut tile = 0;
                while tile < MR {
                    // Neighbouring tiles are finished together.
                    let [y, x] = at[tile];
                    let next = |&(i, at): &(usize, &[usize; 2])| *at == [y, x + TILE * i];
                    let count = at[tile..MR].iter().enumerate().take_while(next).count();
                    for i in 0..count {
                        for (row, acc) in finish::<MR>(&sums, tile + i).iter().enumerate() {
                            rows[row][TILE * i..][..TILE].copy_from_slice(acc);
                        }
                    }
                    for (row, sums) in rows.iter().enumerate() {
                        epilogue.finish(&sums[..TILE * count], [y + row, x], terms, outputs);
                    }
                    tile += count;
                }
            }
        });
    }
}

/// Elements from point to point.
const fn point_len(shape: &ConvShape) -> usize {
    shape.input.stride().next_multiple_of(LANES)
}

/// Bᵀ d B of what the tile at (y, x) reads.
#[target_feature(enable = "avx2")]
fn transform(
    shape: &ConvShape,
    input: &[u8],
    [y, x]: [usize; 2],
    tile: usize,
    transformed: &mut Transformed,
) {
    let (row, column) = (shape.tap(1, 0), shape.tap(0, 1));
    let first = shape.origin(y, x);
    let len = point_len(shape);
    for channel in (0..len).step_by(LANES) {
        let rows: [[__m256i; PATCH]; PATCH] = core::array::from_fn(|i| {
            six(core::array::from_fn(|j| {
                let at = first + channel + i * row + j * column;
                _mm256_cvtepu8_epi16(sixteen(input, at))
            }))
        });
        #[expect(clippy::needless_range_loop, reason = "a column of all rows")]
        for j in 0..PATCH {
            let points = six(core::array::from_fn(|i| rows[i][j]));
            for (i, point) in points.into_iter().enumerate() {
                let at = (tile * POINTS + i * PATCH + j) * len + channel;
                let lanes = &mut transformed.0[at..at + LANES];
                // SAFETY: the slice is 32 bytes long.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), point) };
            }
        }
    }
}

/// Bᵀ d.
#[inline]
#[target_feature(enable = "avx2")]
fn six(d: [__m256i; PATCH]) -> [__m256i; PATCH] {
    let four = |v| _mm256_slli_epi16::<2>(v);
    let (add, sub) = (|a, b| _mm256_add_epi16(a, b), |a, b| _mm256_sub_epi16(a, b));
    let (even, odd) = (sub(d[4], four(d[2])), sub(d[3], four(d[1])));
    let (near, step) = (sub(d[4], d[2]), sub(d[3], d[1]));
    let step = add(step, step);
    [
        add(four(sub(d[0], d[2])), near),
        add(even, odd),
        sub(even, odd),
        add(near, step),
        sub(near, step),
        sub(sub(d[5], d[3]), add(step, step)),
    ]
}

/// Sums over channels for each point of `MR` tiles.
#[target_feature(enable = "avx2")]
fn multiply<const MR: usize>(
    shape: &ConvShape,
    weights: &[i16],
    transformed: &Transformed,
    sums: &mut Sums,
) {
    let len = point_len(shape);
    let points = weights.chunks_exact(shape.input.stride() * PANEL);
    for (point, (weights, sums)) in points.zip(sums.chunks_exact_mut(2 * MR)).enumerate() {
        let mut codes: [&[MaybeUninit<i16>]; MR] = [&[]; MR];
        for (tile, codes) in codes.iter_mut().enumerate() {
            *codes = &transformed.0[(tile * POINTS + point) * len..][..shape.input.stride()];
        }
        let mut acc: Tile<MR> = [[_mm256_setzero_si256(); 2]; MR];
        for (pair, weights) in weights.chunks_exact(2 * PANEL).enumerate() {
            // SAFETY: the slice is 64 bytes long.
            let weights = unsafe {
                let weights = weights.as_ptr();
                [_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(PANEL).cast())]
            };
            for (acc, codes) in acc.iter_mut().zip(codes) {
                // SAFETY: there are as many pairs of codes as of weights, and `transform` wrote them.
                let pair = unsafe { codes.as_ptr().add(2 * pair).cast::<i32>().read_unaligned() };
                let pair = _mm256_set1_epi32(pair);
                for half in 0..2 {
                    let products = _mm256_madd_epi16(pair, weights[half]);
                    acc[half] = _mm256_add_epi32(acc[half], products);
                }
            }
        }
        sums.copy_from_slice(acc.as_flattened());
    }
}

/// The sums of a direct convolution for each row of a tile.
#[target_feature(enable = "avx2")]
fn finish<const MR: usize>(sums: &Sums, tile: usize) -> [Tile<TILE>; TILE] {
    /// The inverse of 9 modulo 2^32.
    const NINTH: i32 = 0x38e3_8e39;
    let mut rows = [[[_mm256_setzero_si256(); 2]; TILE]; TILE];
    for half in 0..2 {
        let columns: [[__m256i; TILE]; PATCH] = core::array::from_fn(|j| {
            four(core::array::from_fn(|i| sums[((i * PATCH + j) * MR + tile) * 2 + half]))
        });
        for (i, row) in rows.iter_mut().enumerate() {
            let results = four(core::array::from_fn(|j| columns[j][i]));
            for (j, (sum, result)) in row.iter_mut().zip(results).enumerate() {
                // 576 times the sum, without the factors that `four` left out.
                let ninth = _mm256_set1_epi32(NINTH << (LEFT_OUT[i] + LEFT_OUT[j]));
                sum[half] = _mm256_srai_epi32::<6>(_mm256_mullo_epi32(result, ninth));
            }
        }
    }
    rows
}

/// Logarithms of the powers of two by which the results of [`four`] are too small.
const LEFT_OUT: [u32; TILE] = [0, 1, 2, 2];

/// 24 Aᵀ m, for products of weights that have been multiplied by the denominators of G.
#[inline]
#[target_feature(enable = "avx2")]
fn four(m: [__m256i; PATCH]) -> [__m256i; TILE] {
    let (add, sub) = (|a, b| _mm256_add_epi32(a, b), |a, b| _mm256_sub_epi32(a, b));
    let twice = |v| _mm256_add_epi32(v, v);
    let (near, near_step) = (add(m[1], m[2]), sub(m[2], m[1]));
    let (far, far_step) = (add(m[3], m[4]), sub(m[3], m[4]));
    [
        add(twice(sub(m[0], twice(near))), far),
        add(far_step, twice(near_step)),
        sub(far, near),
        add(twice(add(far_step, m[5])), near_step),
    ]
}
