//! Depthwise convolution of bytes: a column of the window, several rows of it at once, is loaded
//! once and multiplied with every tap of neighbouring outputs.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_srli_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_castsi256_si128, _mm256_cvtepi16_epi32,
    _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set_m128i, _mm256_setzero_si256,
};
use core::ops::Range;

use super::epilogue::Epilogue;
use super::panel_of;
use super::tile::Tile;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Most pixels that are multiplied before they are finished.
pub(super) const PART: usize = 32;

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
pub(super) struct Rows<'a> {
    pub(super) input: &'a [u8],
    /// Index of the first one's first element.
    pub(super) at: usize,
    /// Elements from row to row.
    pub(super) row: usize,
    /// Elements from column to column.
    pub(super) column: usize,
    /// Rows of a window.
    pub(super) height: usize,
    /// Columns of a window.
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// Row `ky` and those below it, for output (y, x).
    #[inline]
    pub(super) fn new(
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
    pub(super) fn index(&self, row: usize, column: usize) -> usize {
        self.at + row * self.row + column * self.column
    }

    /// Columns of a window, of which a constant may be known.
    #[inline]
    pub(super) fn columns(&self, known: usize) -> usize {
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

pub(super) use {each, with_window};

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
    let whole_rows = (PART / shape.out_width).max(1);
    parts(shape, whole_rows, |panel, ys, part| {
        let weights = panel_of(shape, packed, panel);
        for (y, sums) in ys.clone().zip(sums.chunks_exact_mut(part.len())) {
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
        }
        epilogue.enter(terms, outputs, panel);
        for (y, sums) in ys.zip(sums.chunks_exact(part.len())) {
            epilogue.finish(sums, [y, part.start], terms, outputs);
        }
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
pub(super) fn part_len(shape: &ConvShape) -> usize {
    shape.out_width.div_ceil(shape.out_width.div_ceil(PART))
}

/// Visits the result in equal parts of rows, of at most [`PART`] pixels, or so many `whole_rows` at once: all panels of a
/// part, or where the operand fits into the nearest cache, all parts of a panel.
#[inline]
pub(super) fn parts(
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
