//! 3 x 3 convolution by Winograd's minimal filtering with bytes, see
//! [`winograd_bytes`](crate::kernels::winograd_bytes): some neighbouring tiles of outputs at a time are
//! transformed, multiplied and finished, so nothing leaves the cache.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi8, _mm_loadu_si128, _mm_set1_epi8, _mm_setzero_si128,
    _mm_storeu_si128, _mm_sub_epi8, _mm256_add_epi8, _mm256_add_epi16, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32, _mm256_storeu_si256,
    _mm256_sub_epi8, _mm256_sub_epi16,
};
use core::mem::MaybeUninit;

use super::epilogue::Epilogue;
use super::tile::Tile;
use super::{Aligned, panel_of, with_pixels};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};
use crate::kernels::winograd::MOST_CHANNELS;
use crate::kernels::winograd_bytes::{ADDED, PATCH, POINTS, TILE};

/// Tiles that are multiplied together.
const GROUP: usize = 4;
/// Most tiles that are transformed together.
pub(super) const MOST: usize = 16;
/// Channels times tiles that are transformed together.
pub(super) const ROOM: usize = 1024;
/// Channels that are transformed at once.
const LANES: usize = 16;

/// Transformed codes of a strip of tiles: [tile][point][channel], channels rounded up to whole vectors.
type Strip = Aligned<[MaybeUninit<u8>; POINTS * ROOM]>;

/// Products of a tile summed over channels: [point][half of the panel], in 16 bits.
type Products = [[__m256i; 2]; POINTS];

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
    let mut strip: Strip = Aligned([MaybeUninit::uninit(); _]);
    let mut products = [[[_mm256_setzero_si256(); 2]; POINTS]; GROUP];
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
            let at = [y, x, width];
            transform(shape, input, at, offset, &mut strip.0);
            for panel in 0..shape.out_channels.div_ceil(PANEL) {
                let weights = panel_of(shape, packed, panel);
                for first in (0..tiles).step_by(GROUP) {
                    with_pixels!(GROUP.min(tiles - first), MR => {
                        let products = products.first_chunk_mut().expect("at most a group");
                        // Few steps are worth unrolling.
                        match (shape.input.stride(), lanes(shape)) {
                            (16, _) => multiply::<MR, 16>(weights, &strip, 16, first, products),
                            (32, _) => multiply::<MR, 32>(weights, &strip, 32, first, products),
                            (_, len) => multiply::<MR, 0>(weights, &strip, len, first, products),
                        }
                        for (tile, products) in (first..).zip(products) {
                            inverse(products, &mut rows, column(tile));
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

/// Transforms a strip of `width` outputs, at least 2, beginning at (y, x).
#[target_feature(enable = "avx2")]
pub(super) fn transform(
    shape: &ConvShape,
    input: &[u8],
    at: [usize; 3],
    offset: u8,
    strip: &mut [MaybeUninit<u8>],
) {
    match lanes(shape) {
        16 => transform_16::<16>(shape, input, at, offset, strip),
        32 => transform_32::<32>(shape, input, at, offset, strip),
        64 => transform_32::<64>(shape, input, at, offset, strip),
        len if len % 32 == 0 => transform_32::<0>(shape, input, at, offset, strip),
        _ => transform_16::<0>(shape, input, at, offset, strip),
    }
}

/// Channels of a tile in a strip.
pub(super) fn lanes(shape: &ConvShape) -> usize {
    shape.input.stride().next_multiple_of(LANES)
}

/// [`transform`]: Bᵀ d B of what each tile reads, with the offset, `$lanes` channels at a time. The number of a tile's
/// channels in a strip may be known.
macro_rules! transform {
    ($name:ident, $lanes:literal, $vector:ty, $zero:ident, $set:ident, $load:ident, $store:ident,
     $add:ident, $sub:ident) => {
        #[inline(never)]
        #[target_feature(enable = "avx2")]
        fn $name<const KNOWN: usize>(
            shape: &ConvShape,
            input: &[u8],
            [y, x, width]: [usize; 3],
            offset: u8,
            strip: &mut [MaybeUninit<u8>],
        ) {
            let (row, column) = (shape.tap(1, 0), shape.tap(0, 1));
            let len = if KNOWN > 0 { KNOWN } else { lanes(shape) };
            let tiles = width.div_ceil(TILE);
            assert!(tiles * POINTS * len <= strip.len() && len % $lanes == 0, "a strip fits");
            let first = shape.origin(y, x);
            let inside = first + 3 * row + (width + 1) * column + len <= input.len();
            let offset = $set(offset.cast_signed());
            let load = |at: usize| {
                if inside {
                    // SAFETY: the last of all loads has been seen to end inside.
                    return unsafe { $load(input.as_ptr().add(at).cast()) };
                }
                let mut codes = [0_u8; $lanes];
                let rest = input.get(at..).unwrap_or_default();
                codes.iter_mut().zip(rest).for_each(|(code, &byte)| *code = byte);
                // SAFETY: the array is as long as a vector.
                unsafe { $load(codes.as_ptr().cast()) }
            };
            // Bᵀ d.
            let four = |d: [$vector; PATCH]| {
                [$sub(d[0], d[2]), $add(d[1], d[2]), $sub(d[2], d[1]), $sub(d[1], d[3])]
            };
            for channel in (0..len).step_by($lanes) {
                let column = |x: usize| {
                    let at = first + channel + x * column;
                    four([load(at), load(at + row), load(at + 2 * row), load(at + 3 * row)])
                };
                let mut columns = [[$zero(); PATCH]; PATCH];
                [columns[2], columns[3]] = [column(0), column(1)];
                for tile in 0..tiles {
                    let x = (TILE * tile).min(width - TILE);
                    // The last tile of an odd width overlaps the one before it by a column more.
                    let known = if x == TILE * tile { 2 } else { 3 };
                    columns = match known {
                        2 => [columns[2], columns[3], column(x + 2), column(x + 3)],
                        _ => [columns[1], columns[2], columns[3], column(x + 3)],
                    };
                    for i in 0..PATCH {
                        let points =
                            four([columns[0][i], columns[1][i], columns[2][i], columns[3][i]]);
                        for (j, &point) in points.iter().enumerate() {
                            let index = i * PATCH + j;
                            let point = if index == ADDED { point } else { $add(point, offset) };
                            // SAFETY: points, tiles and channels are below those of the assertion.
                            unsafe {
                                let at = (tile * POINTS + index) * len + channel;
                                $store(strip.as_mut_ptr().add(at).cast(), point);
                            }
                        }
                    }
                }
            }
        }
    };
}

transform!(
    transform_16,
    16,
    __m128i,
    _mm_setzero_si128,
    _mm_set1_epi8,
    _mm_loadu_si128,
    _mm_storeu_si128,
    _mm_add_epi8,
    _mm_sub_epi8
);
transform!(
    transform_32,
    32,
    __m256i,
    _mm256_setzero_si256,
    _mm256_set1_epi8,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_add_epi8,
    _mm256_sub_epi8
);

/// Sums over channels for each point of `MR` tiles, of `len` channels in a strip, which may be known.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn multiply<const MR: usize, const KNOWN: usize>(
    weights: &[i8],
    strip: &Strip,
    len: usize,
    first: usize,
    products: &mut [Products; MR],
) {
    let len = if KNOWN > 0 { KNOWN } else { len };
    let points = weights.chunks_exact(weights.len() / POINTS);
    let codes = &strip.0[first * POINTS * len..][..MR * POINTS * len];
    for (point, weights) in points.take(POINTS).enumerate() {
        let load = |weights: &[i8; 64], half: usize| {
            // SAFETY: either half of the array is 32 bytes long.
            unsafe { _mm256_loadu_si256(weights.as_ptr().add(32 * half).cast()) }
        };
        let Some((begin, steps)) = weights.as_chunks::<64>().0.split_first() else { return };
        let steps = if KNOWN > 0 { &steps[..KNOWN / 4] } else { steps };
        let mut acc: Tile<MR> = [[load(begin, 0), load(begin, 1)]; MR];
        for (step, weights) in steps.iter().enumerate() {
            let weights = [load(weights, 0), load(weights, 1)];
            for (tile, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `codes` has `len` of each tile and point, at least four for each step, and the
                // transform wrote them.
                let codes = unsafe {
                    let codes = codes.as_ptr().add((tile * POINTS + point) * len + 4 * step);
                    _mm256_set1_epi32(codes.cast::<i32>().read_unaligned())
                };
                for (acc, weights) in acc.iter_mut().zip(weights) {
                    *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(codes, weights));
                }
            }
        }
        for (products, acc) in products.iter_mut().zip(acc) {
            products[point] = acc;
        }
    }
}

/// Aᵀ m A of a tile, divided by 4, as the sums of pixels from `column` on.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn inverse(products: &Products, rows: &mut [[[__m256i; 2]; TILE * MOST]; TILE], column: usize) {
    let ones = _mm256_set1_epi16(1);
    let [first, second] = rows;
    let mut rows = [&mut first[column..][..TILE], &mut second[column..][..TILE]];
    for half in 0..2 {
        let m = |point: usize| products[point][half];
        let column = |j: usize| two([m(j), m(PATCH + j), m(2 * PATCH + j), m(3 * PATCH + j)]);
        let columns = [column(0), column(1), column(2), column(3)];
        for (i, row) in rows.iter_mut().enumerate() {
            let results = two([columns[0][i], columns[1][i], columns[2][i], columns[3][i]]);
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
