//! 3 x 3 convolution by Winograd's minimal filtering with 16-bit operands, see
//! [`winograd`](crate::kernels::winograd): four tiles of outputs at a time are transformed, multiplied and
//! finished, so nothing leaves the cache.

use core::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_cvtepu8_epi16,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mullo_epi32, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srai_epi32, _mm256_storeu_si256,
    _mm256_sub_epi16, _mm256_sub_epi32,
};
use core::mem::MaybeUninit;

use super::columns::sixteen;
use super::epilogue::Epilogue;
use super::tile::Tile;
use super::{Aligned, panel_of, with_pixels};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};
use crate::kernels::winograd::{MOST_CHANNELS, PATCH, POINTS, TILE};

/// Tiles that are computed together.
const TILES: usize = 4;
/// Channels that are transformed at once.
const LANES: usize = 16;

/// Transformed codes: [point][tile][channel], channels rounded up to whole vectors.
type Transformed = Aligned<[MaybeUninit<i16>; TILES * POINTS * MOST_CHANNELS]>;

/// Products of a tile summed over channels: [point][half of the panel].
type Products = [[__m256i; 2]; POINTS];

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
    let mut transformed: Transformed = Aligned([MaybeUninit::uninit(); _]);
    let mut products = [[[_mm256_setzero_si256(); 2]; POINTS]; TILES];
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
                let weights = panel_of(shape, packed, panel);
                let products = products.first_chunk_mut().expect("at most all tiles");
                // Few steps are worth unrolling.
                match (shape.input.stride(), point_len(shape)) {
                    (16, _) => multiply::<MR, 16>(weights, &transformed, 16, products),
                    (32, _) => multiply::<MR, 32>(weights, &transformed, 32, products),
                    (_, len) => multiply::<MR, 0>(weights, &transformed, len, products),
                }
                let mut tile = 0;
                while tile < MR {
                    // Neighbouring tiles are finished together.
                    let [y, x] = at[tile];
                    let next = |&(i, at): &(usize, &[usize; 2])| *at == [y, x + TILE * i];
                    let count = at[tile..MR].iter().enumerate().take_while(next).count();
                    for i in 0..count {
                        inverse(&products[tile + i], &mut rows, TILE * i);
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
#[inline(never)]
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
    assert!(tile < TILES && len <= MOST_CHANNELS, "tiles fit");
    let inside = first + (PATCH - 1) * (row + column) + len <= input.len();
    for channel in (0..len).step_by(LANES) {
        let mut rows = [[_mm256_setzero_si256(); PATCH]; PATCH];
        for (i, points) in rows.iter_mut().enumerate() {
            let mut d = [_mm256_setzero_si256(); PATCH];
            for (j, d) in d.iter_mut().enumerate() {
                let at = first + channel + i * row + j * column;
                let codes = if inside {
                    // SAFETY: the last of all loads has been seen to end inside.
                    unsafe { _mm_loadu_si128(input.as_ptr().add(at).cast()) }
                } else {
                    sixteen(input, at)
                };
                *d = _mm256_cvtepu8_epi16(codes);
            }
            *points = six(d);
        }
        #[expect(clippy::needless_range_loop, reason = "a column of all rows")]
        for j in 0..PATCH {
            let column = |i: usize| rows[i][j];
            let points = six([column(0), column(1), column(2), column(3), column(4), column(5)]);
            for (i, point) in points.into_iter().enumerate() {
                // SAFETY: points, tiles and channels are below what there is memory for.
                unsafe {
                    let at = ((i * PATCH + j) * TILES + tile) * len + channel;
                    _mm256_storeu_si256(transformed.0.as_mut_ptr().add(at).cast(), point);
                }
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

/// Sums over channels for each point of `MR` tiles, of `len` transformed channels, which may be known.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn multiply<const MR: usize, const KNOWN: usize>(
    weights: &[i16],
    transformed: &Transformed,
    len: usize,
    products: &mut [Products; MR],
) {
    let len = if KNOWN > 0 { KNOWN } else { len };
    let points = weights.chunks_exact(weights.len() / POINTS);
    let all_codes = transformed.0.chunks_exact(TILES * len);
    for (point, (weights, codes)) in points.zip(all_codes).take(POINTS).enumerate() {
        let pairs = weights.as_chunks::<{ 2 * PANEL }>().0;
        let pairs = if KNOWN > 0 { &pairs[..KNOWN / 2] } else { pairs };
        let mut acc: Tile<MR> = [[_mm256_setzero_si256(); 2]; MR];
        for (pair, weights) in pairs.iter().enumerate() {
            // SAFETY: the array is 64 bytes long.
            let weights = unsafe {
                let weights = weights.as_ptr();
                [_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(PANEL).cast())]
            };
            for (tile, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `codes` has `len` of each tile, at least two for each pair of weights, and
                // `transform` wrote them.
                let pair = unsafe {
                    let codes = codes.as_ptr().add(tile * len + 2 * pair);
                    _mm256_set1_epi32(codes.cast::<i32>().read_unaligned())
                };
                for (acc, weights) in acc.iter_mut().zip(weights) {
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(pair, weights));
                }
            }
        }
        for (products, acc) in products.iter_mut().zip(acc) {
            products[point] = acc;
        }
    }
}

/// The sums of a direct convolution for each row of a tile, in pixels from `column` on.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn inverse(products: &Products, rows: &mut [[[__m256i; 2]; TILES * TILE]; TILE], column: usize) {
    /// The inverse of 9 modulo 2^32.
    const NINTH: i32 = 0x38e3_8e39;
    for half in 0..2 {
        let mut columns = [[_mm256_setzero_si256(); TILE]; PATCH];
        for (j, column) in columns.iter_mut().enumerate() {
            let m = |i: usize| products[i * PATCH + j][half];
            *column = four([m(0), m(1), m(2), m(3), m(4), m(5)]);
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let m = |j: usize| columns[j][i];
            let results = four([m(0), m(1), m(2), m(3), m(4), m(5)]);
            for (j, (sums, result)) in row[column..][..TILE].iter_mut().zip(results).enumerate() {
                // 576 times the sum, without the factors that `four` left out.
                let ninth = _mm256_set1_epi32(NINTH << (LEFT_OUT[i] + LEFT_OUT[j]));
                sums[half] = _mm256_srai_epi32::<6>(_mm256_mullo_epi32(result, ninth));
            }
        }
    }
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
