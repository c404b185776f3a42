//! 3 x 3 convolution by Winograd's minimal filtering with bytes, see
//! [`winograd_bytes`](crate::kernels::winograd_bytes): some neighbouring tiles of outputs at a time are
//! transformed, multiplied and finished, so nothing leaves the cache.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi8, _mm_loadu_si128, _mm_set1_epi8, _mm_storeu_si128, _mm_sub_epi8,
    _mm256_add_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32,
    _mm256_sub_epi16,
};
use core::mem::MaybeUninit;

use super::columns::sixteen;
use super::epilogue::Epilogue;
use super::tile::Tile;
use super::{panel_of, with_pixels};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};
use crate::kernels::winograd_bytes::{ADDED, MOST_CHANNELS, PATCH, POINTS, TILE, point_len};

/// Tiles that are multiplied together.
const GROUP: usize = 4;
/// Most tiles that are transformed together.
const MOST: usize = 16;
/// Channels times tiles that are transformed together.
const ROOM: usize = 1024;
/// Channels that are transformed at once.
const LANES: usize = 16;

/// Transformed codes of a strip of tiles: [point][tile][channel], channels rounded up to whole vectors.
struct Strip([MaybeUninit<u8>; POINTS * ROOM]);

/// Products summed over channels: [point][tile][half of the panel], in 16 bits.
type Products = [[[__m256i; 2]; GROUP]; POINTS];

/// `packed` is laid out by [`pack`](crate::kernels::winograd_bytes::pack).
#[target_feature(enable = "avx2,fma")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    offset: u8,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    const { assert!(MOST_CHANNELS * GROUP <= ROOM) }
    let mut epilogue = Epilogue::new(terms);
    let mut strip = Strip([MaybeUninit::uninit(); _]);
    let mut products = [[[_mm256_setzero_si256(); 2]; GROUP]; POINTS];
    let mut rows = [[[_mm256_setzero_si256(); 2]; TILE * MOST]; TILE];
    let most = (ROOM / lanes(shape)).min(MOST);
    for y in (0..shape.out_height).step_by(TILE) {
        // Tiles at the end of a row or map overlap those before them.
        let y = y.min(shape.out_height - TILE);
        for x in (0..shape.out_width).step_by(TILE * most) {
            let tiles = (shape.out_width - x).div_ceil(TILE).min(most);
            let width = (TILE * tiles).min(shape.out_width);
            let x = x.min(shape.out_width - width);
            let column = |tile: usize| (TILE * tile).min(width - TILE);
            for tile in 0..tiles {
                transform(shape, input, [y, x + column(tile)], offset, [tile, tiles], &mut strip);
            }
            for panel in 0..shape.out_channels.div_ceil(PANEL) {
                let weights = panel_of(shape, packed, panel);
                for first in (0..tiles).step_by(GROUP) {
                    with_pixels!(GROUP.min(tiles - first), MR => {
                        multiply::<MR>(shape, weights, &strip, [first, tiles], &mut products);
                        for tile in 0..MR {
                            inverse(&products, tile, &mut rows, column(first + tile));
                        }
                    });
                }
                epilogue.enter(terms, outputs, panel);
                for (row, sums) in rows.iter().enumerate() {
                    epilogue.finish(&sums[..width], [y + row, x], terms, outputs);
                }
            }
        }
    }
}

/// Channels of a tile in a strip.
fn lanes(shape: &ConvShape) -> usize {
    shape.input.stride().next_multiple_of(LANES)
}

/// Bᵀ d B of what the tile at (y, x) reads, with the offset.
#[target_feature(enable = "avx2")]
fn transform(
    shape: &ConvShape,
    input: &[u8],
    [y, x]: [usize; 2],
    offset: u8,
    [tile, tiles]: [usize; 2],
    strip: &mut Strip,
) {
    let (row, column) = (shape.tap(1, 0), shape.tap(0, 1));
    let len = lanes(shape);
    let first = shape.origin(y, x);
    let inside = first + 3 * (row + column) + len <= input.len();
    let offset = _mm_set1_epi8(offset.cast_signed());
    for channel in (0..len).step_by(LANES) {
        let patch: [[__m128i; PATCH]; PATCH] = core::array::from_fn(|i| {
            core::array::from_fn(|j| {
                let at = first + channel + i * row + j * column;
                if inside {
                    // SAFETY: the last of these loads has been seen to end inside.
                    unsafe { _mm_loadu_si128(input.as_ptr().add(at).cast()) }
                } else {
                    sixteen(input, at)
                }
            })
        });
        let columns: [[__m128i; PATCH]; PATCH] =
            core::array::from_fn(|j| four(core::array::from_fn(|i| patch[i][j])));
        for i in 0..PATCH {
            let points = four(core::array::from_fn(|j| columns[j][i]));
            for (j, &point) in points.iter().enumerate() {
                let index = i * PATCH + j;
                let point = if index == ADDED { point } else { _mm_add_epi8(point, offset) };
                let at = (index * tiles + tile) * len + channel;
                let lanes = &mut strip.0[at..at + LANES];
                // SAFETY: the slice is 16 bytes long.
                unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), point) };
            }
        }
    }
}

/// Bᵀ d.
#[inline]
#[target_feature(enable = "avx2")]
fn four(d: [__m128i; PATCH]) -> [__m128i; PATCH] {
    [
        _mm_sub_epi8(d[0], d[2]),
        _mm_add_epi8(d[1], d[2]),
        _mm_sub_epi8(d[2], d[1]),
        _mm_sub_epi8(d[1], d[3]),
    ]
}

/// Sums over channels for each point of `MR` tiles.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn multiply<const MR: usize>(
    shape: &ConvShape,
    weights: &[i8],
    strip: &Strip,
    [first, tiles]: [usize; 2],
    products: &mut Products,
) {
    let len = lanes(shape);
    let points = weights.chunks_exact(point_len(shape));
    for (point, (weights, products)) in points.zip(products).enumerate() {
        let codes = &strip.0[(point * tiles + first) * len..][..MR * len];
        let load = |weights: &[i8; 64], half: usize| {
            // SAFETY: either half of the array is 32 bytes long.
            unsafe { _mm256_loadu_si256(weights.as_ptr().add(32 * half).cast()) }
        };
        let Some((begin, steps)) = weights.as_chunks::<64>().0.split_first() else { return };
        let mut acc: Tile<MR> = [[load(begin, 0), load(begin, 1)]; MR];
        for (step, weights) in steps.iter().enumerate() {
            let weights = [load(weights, 0), load(weights, 1)];
            for (tile, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `codes` has `len` of each tile, at least four for each step, and `transform` wrote
                // them.
                let codes = unsafe {
                    let codes = codes.as_ptr().add(tile * len + 4 * step);
                    _mm256_set1_epi32(codes.cast::<i32>().read_unaligned())
                };
                for (acc, weights) in acc.iter_mut().zip(weights) {
                    *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(codes, weights));
                }
            }
        }
        products[..MR].copy_from_slice(&acc);
    }
}

/// Aᵀ m A of a tile, divided by 4, as the sums of pixels from `column` on.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn inverse(
    products: &Products,
    tile: usize,
    rows: &mut [[[__m256i; 2]; TILE * MOST]; TILE],
    column: usize,
) {
    let ones = _mm256_set1_epi16(1);
    let [first, second] = rows.each_mut().map(|row| &mut row[column..column + TILE]);
    for half in 0..2 {
        let columns: [[__m256i; TILE]; PATCH] = core::array::from_fn(|j| {
            two(core::array::from_fn(|i| products[i * PATCH + j][tile][half]))
        });
        for (i, row) in [&mut *first, &mut *second].into_iter().enumerate() {
            let results = two(core::array::from_fn(|j| columns[j][i]));
            for (sums, result) in row.iter_mut().zip(results) {
                // Channels of either half are summed by themselves until here.
                sums[half] = _mm256_srai_epi32::<2>(_mm256_madd_epi16(result, ones));
            }
        }
    }
}

/// Aᵀ m.
#[inline]
#[target_feature(enable = "avx2")]
fn two(m: [__m256i; PATCH]) -> [__m256i; TILE] {
    let (add, sub) = (|a, b| _mm256_add_epi16(a, b), |a, b| _mm256_sub_epi16(a, b));
    [add(add(m[0], m[1]), m[2]), sub(sub(m[1], m[2]), m[3])]
}
