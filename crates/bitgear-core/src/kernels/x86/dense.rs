//! Dense convolutions of AVX2, except Winograd's: part of a row by part of a row, panel by panel.

use core::arch::x86_64::{
    __m256i, _mm256_cvtepu8_epi16, _mm256_setzero_si256, _mm256_storeu_si256,
};
use core::mem::MaybeUninit;
use core::slice;

use super::columns::sixteen;
use super::epilogue::Epilogue;
use super::tile::{self, Element, Windows};
use super::{panel_of, with_pixels};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Pixels of a part: all panels of it are finished while what they read and write is in the nearest cache.
const PART: usize = 32;
/// Codes that [`widened`] has memory for.
const WIDENED: usize = 12 * 1024;

/// Computes and stores everything. `$part` gives windows and codes of the outputs `$x..$end` of row `$y`, of
/// which there are at most `$length`; `$tile` sums up `$mr` neighbouring outputs, at most `$most`, for a
/// panel's `$weights`, from `$windows` in `$codes`; `$store` is what finishes sums.
macro_rules! tiles {
    ($shape:ident, $packed:ident, $terms:ident, $outputs:ident; $length:expr;
     ($y:ident, $x:ident .. $end:ident) => $part:expr;
     ($mr:ident <= $most:literal, $weights:ident, $windows:ident, $codes:ident, $sums:ident) => $tile:expr) => {
        let mut epilogue = Epilogue::new($terms);
        let mut sums = [[_mm256_setzero_si256(); 2]; PART];
        for $y in 0..$shape.out_height {
            for $x in (0..$shape.out_width).step_by($length) {
                let $end = $shape.out_width.min($x + $length);
                let (part, $codes): (Windows, _) = $part;
                for panel in 0..$shape.out_channels.div_ceil(PANEL) {
                    epilogue.enter($terms, $outputs, panel);
                    let $weights = panel_of($shape, $packed, panel);
                    for x in (0..$end - $x).step_by($most) {
                        let $windows = &part.after(x);
                        with_pixels!($most.min($end - $x - x), $mr => {
                            let $sums = sums[x..].first_chunk_mut().expect("parts fit");
                            $tile;
                        });
                    }
                    epilogue.finish(&sums[..$end - $x], [$y, $x], $terms, $outputs);
                }
            }
        }
    };
}

/// Byte products, summed in 16 bits over `drain` steps.
#[target_feature(enable = "avx2,fma")]
pub(super) fn bytes(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    drain: usize,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let steps = Windows::new(shape, 0, 0).len / 4;
    let even = |n| drain.is_multiple_of(n) && steps.is_multiple_of(n);
    match drain {
        4..8 if even(4) => briefly::<4>(shape, packed, input, terms, outputs),
        2..8 if even(2) => briefly::<2>(shape, packed, input, terms, outputs),
        ..4 => briefly::<1>(shape, packed, input, terms, outputs),
        _ => {
            tiles!(shape, packed, terms, outputs; PART;
                (y, x.._end) => (Windows::new(shape, y, x), input);
                (MR <= 4, weights, windows, codes, sums) =>
                    tile::drained::<MR>(windows, weights, codes, drain, sums));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn briefly<const DRAIN: usize>(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    tiles!(shape, packed, terms, outputs; PART;
        (y, x.._end) => (Windows::new(shape, y, x), input);
        (MR <= 4, weights, windows, codes, sums) =>
            tile::briefly::<MR, DRAIN>(windows, weights, codes, sums));
}

/// Products of 16-bit codes, summed in 32 bits.
#[target_feature(enable = "avx2,fma")]
pub(super) fn pairs<T: Element>(
    shape: &ConvShape,
    packed: &[i16],
    input: &[T],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    tiles!(shape, packed, terms, outputs; PART;
        (y, x.._end) => (Windows::new(shape, y, x), input);
        (MR <= 4, weights, windows, codes, sums) => tile::pairs::<MR, T>(windows, weights, codes, sums));
}

/// As [`pairs`], for bytes, which are widened once for all panels.
#[target_feature(enable = "avx2,fma")]
pub(super) fn widened(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let one = Windows::new(shape, 0, 0);
    // Codes in a row of neighbouring windows.
    let row = |pixels: usize| ((pixels - 1) * one.pixel + one.width()).next_multiple_of(16);
    let fits = |&pixels: &usize| one.rows * row(pixels) <= WIDENED;
    let Some(length) = [PART, 24, 16, 12, 8, 4].into_iter().find(fits) else {
        return pairs(shape, packed, input, terms, outputs);
    };
    let mut memory = [MaybeUninit::<u16>::uninit(); WIDENED];
    tiles!(shape, packed, terms, outputs; length;
        (y, x..end) => widen(Windows::new(shape, y, x), row(end - x), input, &mut memory);
        (MR <= 4, weights, windows, codes, sums) => tile::pairs::<MR, u16>(windows, weights, codes, sums));
}

/// 16-bit copies of the first `row` codes from where each row of a window begins, and where windows lie there.
#[target_feature(enable = "avx2,fma")]
fn widen<'m>(
    windows: Windows,
    row: usize,
    input: &[u8],
    memory: &'m mut [MaybeUninit<u16>],
) -> (Windows, &'m [u16]) {
    let memory = &mut memory[..windows.rows * row];
    for (ky, out) in memory.chunks_exact_mut(row).enumerate() {
        for (i, out) in out.chunks_exact_mut(16).enumerate() {
            let codes = sixteen(input, windows.at + ky * windows.row + 16 * i);
            // SAFETY: the chunk is 32 bytes long.
            unsafe {
                let out = out.as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(out, _mm256_cvtepu8_epi16(codes));
            }
        }
    }
    // SAFETY: rows are multiples of 16 codes, all of which have been written.
    let codes = unsafe { slice::from_raw_parts(memory.as_ptr().cast(), memory.len()) };
    (Windows { at: 0, row, ..windows }, codes)
}

/// Low and high bytes of 16-bit codes apart.
#[target_feature(enable = "avx2,fma")]
pub(super) fn split(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u16],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    for panel in 0..shape.out_channels.div_ceil(PANEL) {
        epilogue.enter(terms, outputs, panel);
        let weights = panel_of(shape, packed, panel);
        for y in 0..shape.out_height {
            // Two accumulators each: half as many pixels fit into registers.
            for x in (0..shape.out_width).step_by(2) {
                let windows = Windows::new(shape, y, x);
                with_pixels!(2.min(shape.out_width - x), MR => {
                    let acc = tile::split::<MR>(windows, weights, input);
                    epilogue.store_split(&acc, [y, x], terms, outputs);
                });
            }
        }
    }
}
