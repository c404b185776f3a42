//! Depthwise convolution of bytes: a column of the window, several rows of it at once, is loaded
//! once and multiplied with every tap of neighbouring outputs.

use core::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm_srli_si128,
    _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_castsi256_si128, _mm256_cvtepi16_epi32, _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32,
    _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set_m128i, _mm256_setzero_si256, _mm512_castsi128_si512, _mm512_dpbusd_epi32,
    _mm512_inserti32x4, _mm512_loadu_si512, _mm512_permutexvar_epi8, _mm512_setzero_si512,
};
use core::ops::Range;

use super::epilogue::Epilogue;
use super::lanes::{Lanes, first};
use super::panel_of;
use super::tile::Tile;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Most pixels that are multiplied before they are finished.
const PART: usize = 32;

/// Calls `$run` with kernel width and horizontal stride as constants where they are usual ones; with
/// 0, 0 and one pixel at a time otherwise. Blocks have at most `$most` pixels.
macro_rules! with_window {
    ($shape:expr, $most:literal, $run:ident($($argument:expr),*)) => {
        // As few blocks as possible cover a part.
        let length = part_len($shape);
        let block = length.div_ceil(length.div_ceil($most));
        match ($shape.kernel[1], $shape.strides[1], $shape.dilations[1], block) {
            (3, 1, 1, 8) => $run::<8, 3, 1>($($argument),*),
            (3, 1, 1, 7) => $run::<7, 3, 1>($($argument),*),
            (3, 1, 1, 6) => $run::<6, 3, 1>($($argument),*),
            (3, 1, 1, 5) => $run::<5, 3, 1>($($argument),*),
            (3, 1, 1, 4) => $run::<4, 3, 1>($($argument),*),
            (3, 1, 1, 3) => $run::<3, 3, 1>($($argument),*),
            (3, 2, 1, 7..) => $run::<5, 3, 2>($($argument),*),
            (3, 2, 1, 4..) => $run::<4, 3, 2>($($argument),*),
            (3, 2, 1, 3) => $run::<3, 3, 2>($($argument),*),
            (5, 1, 1, 7..) => $run::<7, 5, 1>($($argument),*),
            (5, 1, 1, 4..) => $run::<4, 5, 1>($($argument),*),
            (5, 2, 1, 7..) => $run::<7, 5, 2>($($argument),*),
            (5, 2, 1, 4..) => $run::<4, 5, 2>($($argument),*),
            _ => $run::<1, 0, 0>($($argument),*),
        }
    };
}

/// Some rows of the windows of neighbouring outputs, in 16 channels.
#[derive(Clone, Copy)]
struct Rows<'a> {
    input: &'a [u8],
    /// Index of the first one's first element.
    at: usize,
    /// Elements from row to row.
    row: usize,
    /// Elements from column to column.
    column: usize,
    /// Rows of a window.
    height: usize,
    /// Columns of a window.
    width: usize,
}

impl<'a> Rows<'a> {
    /// Row `ky` and those below it, for output (y, x).
    #[inline]
    fn new(
        shape: &ConvShape,
        input: &'a [u8],
        [y, x]: [usize; 2],
        channel: usize,
        ky: usize,
    ) -> Self {
        Self {
            input,
            at: shape.origin(y, x) + channel + shape.tap(ky, 0),
            row: shape.tap(1, 0),
            column: shape.tap(0, 1),
            height: shape.kernel[0] - ky,
            width: shape.kernel[1],
        }
    }

    #[inline]
    fn index(&self, row: usize, column: usize) -> usize {
        self.at + row * self.row + column * self.column
    }

    /// Columns of a window, of which a constant may be known.
    #[inline]
    fn columns(&self, known: usize) -> usize {
        if known > 0 { known } else { self.width }
    }

    /// Sixteen codes. With a `WIDTH` they are there, without it those beyond the end of memory are zero.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load<const WIDTH: usize>(&self, row: usize, column: usize) -> __m128i {
        let at = self.index(row, column);
        if WIDTH == 0 {
            return sixteen(self.input, at);
        }
        debug_assert!(at + 16 <= self.input.len(), "window inside the operand");
        // SAFETY: the caller has seen that the last pixel's sixteen codes are there.
        unsafe { _mm_loadu_si128(self.input.as_ptr().add(at).cast()) }
    }
}

/// Loads each column that `MR` outputs read, and passes it to every output with the tap that it is
/// there.
macro_rules! each {
    ($rows:expr, $column:expr, $multiply:expr) => {
        if WIDTH == 0 {
            for kx in 0..$rows.width {
                $multiply(0, kx, $column(kx));
            }
        } else {
            for j in 0..(MR - 1) * STRIDE + WIDTH {
                let column = $column(j);
                for r in 0..MR {
                    if j >= r * STRIDE && j - r * STRIDE < WIDTH {
                        $multiply(r, j - r * STRIDE, column);
                    }
                }
            }
        }
    };
}

/// Rows in fours, with AVX-512 VNNI. `packed` is [panel][group of rows][column][channel][row].
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn quads(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    with_window!(shape, 8, quads_in(shape, packed, input, terms, outputs));
}

#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn quads_in<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut sums = [[_mm512_setzero_si512()]; PART];
    let mut lanes = (0, Lanes::new(terms, outputs, 0));
    let last = shape.tap(shape.kernel[0] - 1, shape.kernel[1] - 1);
    let whole_rows = (PART / shape.out_width).max(1);
    parts(shape, whole_rows, |panel, ys, part| {
        let weights = panel_of(shape, packed, panel);
        let sums = &mut sums[..ys.len() * part.len()];
        let mask = first(shape.out_channels - panel * PANEL);
        let rows = Rows::new(shape, input, [ys.start, part.start], panel * PANEL, 0);
        let end = shape.origin(ys.end - 1, part.end - 1) + last + panel * PANEL;
        assert!(end + mask.count_ones() as usize <= input.len(), "windows inside the operand");
        // SAFETY: only functions compiled for VNNI and VBMI call this one. The windows' channels lie inside the
        // operand, and their panels, too, where there is no mask.
        unsafe {
            let steps =
                [shape.strides[0] * shape.input.row(), shape.strides[1] * shape.input.stride()];
            let width = part.len();
            if end + PANEL <= input.len() {
                multiply_quads::<MR, WIDTH, STRIDE, false>(weights, rows, steps, width, mask, sums);
            } else {
                multiply_quads::<MR, WIDTH, STRIDE, true>(weights, rows, steps, width, mask, sums);
            }
        }
        if lanes.0 != panel {
            lanes = (panel, Lanes::new(terms, outputs, panel));
        }
        lanes.1.finish(sums, 0, [ys.start, part.start], terms, outputs);
    });
}

/// Sums of rows of so many neighbouring pixels, `MR` at a time. `rows` is the first one's window, `steps` are the
/// elements from row to row and from pixel to pixel.
///
/// # Safety
///
/// The channels of `mask`, or without `MASKED` all of the panel, lie inside the operand in all windows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn multiply_quads<
    const MR: usize,
    const WIDTH: usize,
    const STRIDE: usize,
    const MASKED: bool,
>(
    weights: &[i8],
    rows: Rows<'_>,
    steps: [usize; 2],
    width: usize,
    mask: u16,
    sums: &mut [[__m512i; 1]],
) {
    for (y, sums) in sums.chunks_exact_mut(width).enumerate() {
        let rows = Rows { at: rows.at + y * steps[0], ..rows };
        // SAFETY: these are some of the windows.
        unsafe {
            match rows.height {
                1 => row_of::<MR, WIDTH, STRIDE, MASKED, 1>(weights, rows, steps[1], mask, sums),
                2 => row_of::<MR, WIDTH, STRIDE, MASKED, 2>(weights, rows, steps[1], mask, sums),
                3 => row_of::<MR, WIDTH, STRIDE, MASKED, 3>(weights, rows, steps[1], mask, sums),
                _ => row_of::<MR, WIDTH, STRIDE, MASKED, 0>(weights, rows, steps[1], mask, sums),
            }
        }
    }
}

/// [`multiply_quads`] of a row, with the windows' height, or 0 for any.
///
/// # Safety
///
/// As for [`multiply_quads`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn row_of<
    const MR: usize,
    const WIDTH: usize,
    const STRIDE: usize,
    const MASKED: bool,
    const HEIGHT: usize,
>(
    weights: &[i8],
    rows: Rows<'_>,
    pixel: usize,
    mask: u16,
    sums: &mut [[__m512i; 1]],
) {
    for x in (0..sums.len()).step_by(MR) {
        // The last block begins earlier and computes some pixels once more.
        let x = x.min(sums.len() - MR);
        let rows = Rows { at: rows.at + x * pixel, ..rows };
        let mut acc = [_mm512_setzero_si512(); MR];
        let mut taps = weights.chunks_exact(rows.columns(WIDTH) * 64);
        // SAFETY: these rows are part of the windows.
        unsafe {
            if HEIGHT > 0 {
                let taps = taps.next().expect("of the first rows");
                fours::<MR, WIDTH, STRIDE, MASKED, HEIGHT>(taps, rows, mask, &mut acc);
            } else {
                for (ky, taps) in (0..rows.height).step_by(4).zip(taps) {
                    let (rows, acc) = (Rows { at: rows.at + ky * rows.row, ..rows }, &mut acc);
                    match rows.height - ky {
                        1 => fours::<MR, WIDTH, STRIDE, MASKED, 1>(taps, rows, mask, acc),
                        2 => fours::<MR, WIDTH, STRIDE, MASKED, 2>(taps, rows, mask, acc),
                        3 => fours::<MR, WIDTH, STRIDE, MASKED, 3>(taps, rows, mask, acc),
                        _ => fours::<MR, WIDTH, STRIDE, MASKED, 4>(taps, rows, mask, acc),
                    }
                }
            }
        }
        for (sum, acc) in sums[x..x + MR].iter_mut().zip(acc) {
            *sum = [acc];
        }
    }
}

/// Adds the products of the first `ROWS` rows.
///
/// # Safety
///
/// As for [`multiply_quads`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn fours<
    const MR: usize,
    const WIDTH: usize,
    const STRIDE: usize,
    const MASKED: bool,
    const ROWS: usize,
>(
    taps: &[i8],
    rows: Rows<'_>,
    mask: u16,
    acc: &mut [__m512i; MR],
) {
    // Byte 4c + r of the result is byte 16r + c: rows of bytes become columns.
    const TRANSPOSE: [u8; 64] = {
        let mut bytes = [0; 64];
        let mut i = 0;
        while i < 64 {
            bytes[i] = (16 * (i % 4) + i / 4) as u8;
            i += 1;
        }
        bytes
    };
    // SAFETY: the array is 64 bytes long.
    let transpose = unsafe { _mm512_loadu_si512(TRANSPOSE.as_ptr().cast()) };
    let load = |row: usize, column: usize| {
        let index = rows.index(row, column);
        debug_assert!(index < rows.input.len(), "window inside the operand");
        // SAFETY: the caller vouches for the channels that are read.
        unsafe {
            let codes = rows.input.as_ptr().add(index);
            if MASKED {
                _mm_maskz_loadu_epi8(mask, codes.cast())
            } else {
                _mm_loadu_si128(codes.cast())
            }
        }
    };
    let column = |j: usize| {
        let mut column = _mm512_castsi128_si512(load(0, j));
        if ROWS > 1 {
            column = _mm512_inserti32x4::<1>(column, load(1, j));
        }
        if ROWS > 2 {
            column = _mm512_inserti32x4::<2>(column, load(2, j));
        }
        if ROWS > 3 {
            column = _mm512_inserti32x4::<3>(column, load(3, j));
        }
        // Where rows are missing, their weights are zero.
        _mm512_permutexvar_epi8(transpose, column)
    };
    let mut multiply = |r: usize, kx: usize, column: __m512i| {
        let tap = &taps[kx * 64..][..64];
        // SAFETY: the slice is 64 bytes long.
        let tap = unsafe { _mm512_loadu_si512(tap.as_ptr().cast()) };
        acc[r] = _mm512_dpbusd_epi32(acc[r], column, tap);
    };
    each!(rows, column, multiply);
}

/// Rows in pairs, with AVX2, summed in 32 bits. `packed` is [panel][pair of rows][column][channel][row].
#[target_feature(enable = "avx2,fma")]
pub(super) fn pairs(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    with_window!(shape, 4, in_pairs(shape, packed, input, terms, outputs));
}

/// As [`pairs`], summed in 16 bits.
#[target_feature(enable = "avx2,fma")]
pub(super) fn bytes(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    with_window!(shape, 8, in_pairs(shape, packed, input, terms, outputs));
}

#[target_feature(enable = "avx2,fma")]
fn in_pairs<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
    shape: &ConvShape,
    packed: &[impl Weight],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    let mut sums = [[_mm256_setzero_si256(); 2]; PART];
    let last = shape.tap(shape.kernel[0] - 1, shape.kernel[1] - 1);
    parts(shape, 1, |panel, ys, part| {
        let (weights, y) = (panel_of(shape, packed, panel), ys.start);
        for x in part.clone().step_by(MR) {
            let x = x.min(part.end - MR);
            let sums = sums[x - part.start..].first_chunk_mut().expect("parts fit");
            // SAFETY: only functions compiled for AVX2 call this one.
            unsafe {
                if shape.origin(y, x + MR - 1) + last + panel * PANEL + 16 <= input.len() {
                    let rows = Rows::new(shape, input, [y, x], panel * PANEL, 0);
                    Weight::multiply::<MR, WIDTH, STRIDE>(weights, rows, sums);
                    continue;
                }
                for (x, sums) in (x..).zip(sums) {
                    let rows = Rows::new(shape, input, [y, x], panel * PANEL, 0);
                    Weight::multiply::<1, 0, 0>(weights, rows, core::array::from_mut(sums));
                }
            }
        }
        epilogue.enter(terms, outputs, panel);
        epilogue.finish(&sums[..part.len()], [y, part.start], terms, outputs);
    });
}

/// Packed weights, by how their products are summed.
trait Weight: Copy {
    /// Sums of `MR` outputs and 16 channels. With a `WIDTH`, sixteen codes can be read at every pixel.
    ///
    /// # Safety
    ///
    /// The CPU has AVX2.
    unsafe fn multiply<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
        weights: &[Self],
        rows: Rows<'_>,
        sums: &mut Tile<MR>,
    );
}

impl Weight for i16 {
    #[inline(never)]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
        weights: &[Self],
        rows: Rows<'_>,
        sums: &mut Tile<MR>,
    ) {
        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
        let taps = weights.as_chunks::<{ 2 * PANEL }>().0;
        for (ky, taps) in (0..rows.height).step_by(2).zip(taps.chunks_exact(rows.columns(WIDTH))) {
            let column = |j: usize| {
                let above = rows.load::<WIDTH>(ky, j);
                if ky + 1 == rows.height {
                    return [above, _mm_srli_si128::<8>(above)].map(|v| _mm256_cvtepu8_epi32(v));
                }
                let below = rows.load::<WIDTH>(ky + 1, j);
                [_mm_unpacklo_epi8(above, below), _mm_unpackhi_epi8(above, below)]
                    .map(|v| _mm256_cvtepu8_epi16(v))
            };
            let mut multiply = |r: usize, kx: usize, column: [__m256i; 2]| {
                for half in 0..2 {
                    // SAFETY: half a tap is 32 bytes long.
                    let tap =
                        unsafe { _mm256_loadu_si256(taps[kx].as_ptr().add(16 * half).cast()) };
                    acc[r][half] =
                        _mm256_add_epi32(acc[r][half], _mm256_madd_epi16(column[half], tap));
                }
            };
            each!(rows, column, multiply);
        }
        *sums = acc;
    }
}

impl Weight for i8 {
    #[inline(never)]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
        weights: &[Self],
        rows: Rows<'_>,
        sums: &mut Tile<MR>,
    ) {
        let mut words = [_mm256_setzero_si256(); MR];
        let taps = weights.as_chunks::<{ 2 * PANEL }>().0;
        for (ky, taps) in (0..rows.height).step_by(2).zip(taps.chunks_exact(rows.columns(WIDTH))) {
            let column = |j: usize| {
                let above = rows.load::<WIDTH>(ky, j);
                if ky + 1 == rows.height {
                    return _mm256_cvtepu8_epi16(above);
                }
                let below = rows.load::<WIDTH>(ky + 1, j);
                _mm256_set_m128i(_mm_unpackhi_epi8(above, below), _mm_unpacklo_epi8(above, below))
            };
            let mut multiply = |r: usize, kx: usize, column: __m256i| {
                // SAFETY: a tap is 32 bytes long.
                let tap = unsafe { _mm256_loadu_si256(taps[kx].as_ptr().cast()) };
                words[r] = _mm256_add_epi16(words[r], _mm256_maddubs_epi16(column, tap));
            };
            each!(rows, column, multiply);
        }
        *sums = words.map(|words| {
            [_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)]
                .map(|half| _mm256_cvtepi16_epi32(half))
        });
    }
}

/// Pixels of a part of a row.
fn part_len(shape: &ConvShape) -> usize {
    shape.out_width.div_ceil(shape.out_width.div_ceil(PART))
}

/// Visits the result in equal parts of rows, of at most [`PART`] pixels, or so many `whole_rows` at once: all panels of a
/// part, or where the operand fits into the nearest cache, all parts of a panel.
#[inline]
fn parts(
    shape: &ConvShape,
    whole_rows: usize,
    mut part: impl FnMut(usize, Range<usize>, Range<usize>),
) {
    const CACHED: usize = 1 << 14;
    let length = part_len(shape);
    let panels = shape.out_channels.div_ceil(PANEL);
    let inner = if shape.input.len() <= CACHED { 1 } else { panels };
    for outer in (0..panels).step_by(inner) {
        for y in (0..shape.out_height).step_by(whole_rows) {
            let ys = y..shape.out_height.min(y + whole_rows);
            for x in (0..shape.out_width).step_by(length) {
                // What is left over at the end of a row may be shorter: it overlaps the part before it.
                let x = x.min(shape.out_width - length);
                for panel in outer..outer + inner {
                    part(panel, ys.clone(), x..x + length);
                }
            }
        }
    }
}

/// Sixteen codes from `at`; zeros beyond the end of memory.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sixteen(input: &[u8], at: usize) -> __m128i {
    match input.get(at..at + 16) {
        // SAFETY: the slice holds sixteen bytes.
        Some(codes) => unsafe { _mm_loadu_si128(codes.as_ptr().cast()) },
        None => last(input, at),
    }
}

#[cold]
#[target_feature(enable = "avx2")]
fn last(input: &[u8], at: usize) -> __m128i {
    let (mut codes, rest) = ([0; 16], input.get(at..).unwrap_or_default());
    codes.iter_mut().zip(rest).for_each(|(code, &byte)| *code = byte);
    // SAFETY: the array holds sixteen bytes.
    unsafe { _mm_loadu_si128(codes.as_ptr().cast()) }
}
