//! Depthwise convolution of bytes with AVX-512 VNNI: as in [`columns`](super::columns), four rows of a window at once.

use core::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm512_castsi128_si512, _mm512_dpbusd_epi32,
    _mm512_inserti32x4, _mm512_loadu_si512, _mm512_permutexvar_epi8, _mm512_setzero_si512,
};

use super::columns::{PART, Rows, each, part_len, parts, with_window};
use super::lanes::{Lanes, first};
use super::panel_of;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// `packed` is [panel][group of rows][column][channel][row].
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn conv(
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
