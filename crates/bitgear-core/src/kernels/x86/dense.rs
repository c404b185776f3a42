//! Dense convolutions of AVX2, except Winograd's: part of a row by part of a row, panel by panel.

use core::arch::x86_64::{_mm256_cvtepu8_epi16, _mm256_setzero_si256, _mm256_storeu_si256};
use core::mem::MaybeUninit;
use core::slice;

use super::columns::sixteen;
use super::epilogue::Epilogue;
use super::tile::{self, Element, Weight, Windows};
use super::{Aligned, panel_of, with_pixels};
use crate::kernels::types::{ConvShape, FOLDED, FOLDED_ROW, Output, PANEL, Terms};

/// Most pixels of a part: all panels of it are finished while what they read and write is in the nearest cache.
const PART: usize = 64;
/// Codes that a part reads, if it has more than half as many pixels.
const PART_CODES: usize = 24 * 1024;
/// Codes that [`widened`] has memory for.
const WIDENED: usize = 12 * 1024;

/// Computes and stores everything, over a single row where windows are single pixels. `$part` gives windows and codes of the outputs `$x..$end` of row `$y`, of
/// which there are at most `$length`. `$sum` computes `$sums`, blocks of `$mr` neighbouring outputs and so many
/// halves of a panel as are in use, from the panel's `$weights`, and `$windows` in `$codes`.
macro_rules! tiles {
    ($shape:ident, $packed:ident, $terms:ident, $outputs:ident; $length:expr;
     ($y:ident, $x:ident .. $end:ident) => $part:expr;
     ($mr:ident, $halves:ident, $weights:ident, $windows:ident, $codes:ident, $sums:ident) => $sum:expr) => {
        let mut epilogue = Epilogue::new($terms);
        let mut sums = [[_mm256_setzero_si256(); 2]; PART];
        let width = $shape.out_width;
        let single_row = $shape.single_row();
        let $shape = single_row.as_ref().unwrap_or($shape);
        for $y in 0..$shape.out_height {
            for $x in (0..$shape.out_width).step_by($length) {
                let $end = $shape.out_width.min($x + $length);
                let sums = &mut sums[..$end - $x];
                let (part, $codes): (Windows, _) = $part;
                for panel in 0..$shape.out_channels.div_ceil(PANEL) {
                    let $weights = panel_of($shape, $packed, panel);
                    let in_use = $shape.out_channels - panel * PANEL;
                    with_halves!(in_use, $halves => {
                        let (blocks, rest) = sums.as_chunks_mut::<4>();
                        let ($windows, after) = (&part, part.after(4 * blocks.len()));
                        {
                            const $mr: usize = 4;
                            let $sums = blocks;
                            $sum;
                        }
                        let $windows = &after;
                        if !rest.is_empty() {
                            with_pixels!(rest.len(), $mr => {
                                let $sums = rest.as_chunks_mut().0;
                                $sum;
                            });
                        }
                    });
                    epilogue.enter($terms, $outputs, panel);
                    // A single row of windows may be many rows of results.
                    let mut done = 0;
                    while done < sums.len() {
                        let (y, x) = ($y + ($x + done) / width, ($x + done) % width);
                        let end = sums.len().min(done + width - x);
                        epilogue.finish(&sums[done..end], [y, x], $terms, $outputs);
                        done = end;
                    }
                }
            }
        }
    };
}

/// Pixels of a part.
fn part(shape: &ConvShape) -> usize {
    let codes = shape.kernel[0] * shape.strides[1] * shape.input.stride() * PART;
    if codes <= PART_CODES { PART } else { PART / 2 }
}

/// Evaluates an expression with `$halves`, the number of halves of a panel that so many channels need, as a
/// constant.
macro_rules! with_halves {
    ($channels:expr, $halves:ident => $body:expr) => {
        if $channels <= PANEL / 2 {
            const $halves: usize = 1;
            $body
        } else {
            const $halves: usize = 2;
            $body
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
    if let Some(folded) = shape.folded() {
        let input = &fold(shape, &folded, input);
        return bytes(&folded, packed, input, drain, terms, outputs);
    }
    let one = Windows::new(shape, 0, 0);
    let steps = one.len / 4;
    if drain >= one.rows * one.runs * steps {
        match (one.rows, one.runs, steps) {
            (1, 1, 4) => return few::<1, 4>(shape, packed, input, terms, outputs),
            (1, 1, 6) => return few::<1, 6>(shape, packed, input, terms, outputs),
            (1, 1, 8) => return few::<1, 8>(shape, packed, input, terms, outputs),
            (1, 1, 10) => return few::<1, 10>(shape, packed, input, terms, outputs),
            (3, 1, 3) => return few::<3, 3>(shape, packed, input, terms, outputs),
            _ => {}
        }
    }
    let even = |n| drain.is_multiple_of(n) && steps.is_multiple_of(n);
    match drain {
        4..8 if even(4) => briefly::<4>(shape, packed, input, terms, outputs),
        2..8 if even(2) => briefly::<2>(shape, packed, input, terms, outputs),
        ..4 => briefly::<1>(shape, packed, input, terms, outputs),
        _ => {
            tiles!(shape, packed, terms, outputs; part(shape);
                (y, x.._end) => (Windows::new(shape, y, x), input);
                (MR, HALVES, weights, windows, codes, sums) =>
                    tile::drained::<MR, HALVES>(windows, weights, codes, drain, sums));
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
    tiles!(shape, packed, terms, outputs; part(shape);
        (y, x.._end) => (Windows::new(shape, y, x), input);
        (MR, HALVES, weights, windows, codes, sums) =>
            tile::briefly::<MR, HALVES, DRAIN>(windows, weights, codes, sums));
}

#[target_feature(enable = "avx2,fma")]
fn few<const ROWS: usize, const STEPS: usize>(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    tiles!(shape, packed, terms, outputs; part(shape);
    (y, x.._end) => (Windows::new(shape, y, x), input);
    (MR, HALVES, weights, windows, codes, sums) => {
        let sums: &mut [tile::Tile<MR>] = sums;
        tile::few::<HALVES, ROWS, STEPS>(windows, weights, codes, sums.as_flattened_mut());
    });
}

/// Products of 16-bit codes, summed in 32 bits.
#[target_feature(enable = "avx2,fma")]
pub(super) fn pairs<T: Element>(
    shape: &ConvShape,
    packed: &[impl Weight],
    input: &[T],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    if let Some(folded) = shape.folded() {
        let input = &fold(shape, &folded, input);
        return pairs(&folded, packed, input, terms, outputs);
    }
    tiles!(shape, packed, terms, outputs; part(shape);
        (y, x.._end) => (Windows::new(shape, y, x), input);
        (MR, HALVES, weights, windows, codes, sums) => tile::pairs::<MR, HALVES, T, _>(windows, weights, codes, sums));
}

/// As [`pairs`], for bytes, which are widened once for all panels.
#[target_feature(enable = "avx2,fma")]
pub(super) fn widened(
    shape: &ConvShape,
    packed: &[impl Weight],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    if let Some(folded) = shape.folded() {
        let input = &fold(shape, &folded, input);
        return widened(&folded, packed, input, terms, outputs);
    }
    let one = Windows::new(shape, 0, 0);
    let fits = |&pixels: &usize| one.rows * widened_row(&one, pixels) <= WIDENED;
    let Some(length) = [part(shape), 32, 24, 16, 12, 8, 4].into_iter().find(fits) else {
        return pairs(shape, packed, input, terms, outputs);
    };
    #[expect(clippy::large_stack_arrays, reason = "24 kB, never cleared; kernels do not allocate")]
    let mut memory = Aligned([MaybeUninit::uninit(); WIDENED]);
    tiles!(shape, packed, terms, outputs; length;
        (y, x..end) => widen(Windows::new(shape, y, x), end - x, input, &mut memory.0);
        (MR, HALVES, weights, windows, codes, sums) =>
            tile::pairs::<MR, HALVES, u16, _>(windows, weights, codes, sums));
}

/// The operand of [`ConvShape::folded`].
#[inline(never)]
pub(super) fn fold<T: Element>(shape: &ConvShape, folded: &ConvShape, input: &[T]) -> [T; FOLDED] {
    let mut memory = [T::default(); FOLDED];
    let (columns, stride) = (shape.kernel[1], folded.input.stride());
    let first = shape.input.pads[1] - shape.pads[1];
    // A row without spare channels; what is read beyond its end meets weights of zero.
    let mut row = [T::default(); FOLDED_ROW + 4];
    let rows = input.chunks_exact(shape.input.row());
    for (pixels, out) in rows.zip(memory.chunks_exact_mut(folded.input.row())) {
        for (code, pixel) in row.iter_mut().zip(pixels.as_chunks::<4>().0) {
            *code = pixel[0];
        }
        let starts = (first..).step_by(shape.strides[1]);
        for (start, out) in starts.zip(out.chunks_exact_mut(stride)) {
            match out.as_mut_array::<4>() {
                Some(out) => *out = row[start..].first_chunk().copied().expect("four more codes"),
                None => out[..columns].copy_from_slice(&row[start..][..columns]),
            }
        }
    }
    memory
}

/// Codes from the first to the last of a row of so many neighbouring windows, rounded up to whole vectors.
fn widened_row(windows: &Windows, pixels: usize) -> usize {
    ((pixels - 1) * windows.pixel + windows.width()).next_multiple_of(16)
}

/// 16-bit copies of all codes in so many neighbouring windows, and where the windows lie there.
#[target_feature(enable = "avx2,fma")]
fn widen<'m>(
    windows: Windows,
    pixels: usize,
    input: &[u8],
    memory: &'m mut [MaybeUninit<u16>],
) -> (Windows, &'m [u16]) {
    let row = widened_row(&windows, pixels);
    let memory = &mut memory[..windows.rows * row];
    for (ky, out) in memory.chunks_exact_mut(row).enumerate() {
        for (i, out) in out.chunks_exact_mut(16).enumerate() {
            let codes = sixteen(input, windows.at + ky * windows.row + 16 * i);
            // SAFETY: the chunk is 32 bytes long.
            unsafe {
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtepu8_epi16(codes));
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
