//! Depthwise convolution of bytes: a column of the window, several rows of it at once, is loaded
//! once and multiplied with every tap of neighbouring outputs.

use core::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm_setzero_si128,
    _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_add_epi32, _mm256_cvtepu8_epi16,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_setzero_si256, _mm512_castsi128_si512,
    _mm512_dpbusd_epi32, _mm512_inserti32x4, _mm512_loadu_si512, _mm512_permutexvar_epi8,
    _mm512_setzero_si512,
};

use super::epilogue::Epilogue;
use super::lanes::{Lanes, first};
use super::tile::Tile;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Calls `$run` with kernel width and horizontal stride as constants where they are usual ones; with
/// 0, 0 and one pixel at a time otherwise.
macro_rules! with_window {
    ($shape:expr, $run:ident($($argument:expr),*)) => {
        match ($shape.kernel[1], $shape.strides[1], $shape.dilations[1], $shape.out_width) {
            (3, 1, 1, 4..) => $run::<4, 3, 1>($($argument),*),
            (3, 2, 1, 4..) => $run::<4, 3, 2>($($argument),*),
            (5, 1, 1, 4..) => $run::<4, 5, 1>($($argument),*),
            (5, 2, 1, 4..) => $run::<4, 5, 2>($($argument),*),
            _ => $run::<1, 0, 0>($($argument),*),
        }
    };
}

/// Rows in fours, with AVX-512 VNNI. `packed` is [panel][group of rows][column][channel][row].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn quads(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    with_window!(shape, quads_in(shape, packed, input, terms, outputs));
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn quads_in<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    // Byte 4c + r of the result is byte 16r + c: rows of bytes become columns.
    let transpose: [u8; 64] = core::array::from_fn(|i| (16 * (i % 4) + i / 4) as u8);
    // SAFETY: the array is 64 bytes long.
    let transpose = unsafe { _mm512_loadu_si512(transpose.as_ptr().cast()) };
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    let width = if WIDTH == 0 { shape.kernel[1] } else { WIDTH };
    for panel in 0..shape.out_channels.div_ceil(PANEL) {
        let lanes = Lanes::new(terms, panel);
        let mask = first(shape.out_channels - panel * PANEL);
        let weights = &packed[panel * panel_len..][..panel_len];
        for y in 0..shape.out_height {
            for x in (0..shape.out_width).step_by(MR) {
                let x = x.min(shape.out_width - MR);
                let origin = shape.origin(y, x) + panel * PANEL;
                let mut acc = [_mm512_setzero_si512(); MR];
                for ky in (0..shape.kernel[0]).step_by(4) {
                    let rows = shape.kernel[0].min(ky + 4) - ky;
                    let weights = &weights[ky / 4 * width * 64..][..width * 64];
                    let weight = |kx: usize| {
                        let tap = &weights[kx * 64..][..64];
                        // SAFETY: the slice is 64 bytes long.
                        unsafe { _mm512_loadu_si512(tap.as_ptr().cast()) }
                    };
                    let column = |kx: usize| {
                        let row = |r: usize| {
                            let at = origin + shape.tap(ky + r, kx);
                            debug_assert!(at < input.len(), "window inside the operand");
                            // SAFETY: `check_conv` proved that every window lies inside the
                            // operand; the mask leaves out channels that don't exist.
                            unsafe { _mm_maskz_loadu_epi8(mask, input.as_ptr().add(at).cast()) }
                        };
                        let mut column = _mm512_castsi128_si512(row(0));
                        if rows > 1 {
                            column = _mm512_inserti32x4::<1>(column, row(1));
                        }
                        if rows > 2 {
                            column = _mm512_inserti32x4::<2>(column, row(2));
                        }
                        if rows > 3 {
                            column = _mm512_inserti32x4::<3>(column, row(3));
                        }
                        _mm512_permutexvar_epi8(transpose, column)
                    };
                    if WIDTH == 0 {
                        for kx in 0..width {
                            acc[0] = _mm512_dpbusd_epi32(acc[0], column(kx), weight(kx));
                        }
                    } else {
                        each::<MR, WIDTH, STRIDE, __m512i>(
                            |j| column(j),
                            |r, kx, column| {
                                acc[r] = _mm512_dpbusd_epi32(acc[r], column, weight(kx));
                            },
                        );
                    }
                }
                lanes.store(&acc, [y, x], terms, outputs);
            }
        }
    }
}

/// Loads each column that `MR` outputs read, and passes it to every output with the tap that it is
/// there.
#[inline(always)]
fn each<const MR: usize, const WIDTH: usize, const STRIDE: usize, V: Copy>(
    mut column: impl FnMut(usize) -> V,
    mut multiply: impl FnMut(/* output */ usize, /* tap */ usize, V),
) {
    for j in 0..(MR - 1) * STRIDE + WIDTH {
        let column = column(j);
        for r in 0..MR {
            if let Some(kx) = j.checked_sub(r * STRIDE)
                && kx < WIDTH
            {
                multiply(r, kx, column);
            }
        }
    }
}

/// Rows in pairs, with AVX2. `packed` is [panel][pair of rows][column][channel][row].
#[target_feature(enable = "avx2,fma")]
pub(super) fn pairs(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    with_window!(shape, pairs_in(shape, packed, input, terms, outputs));
}

#[target_feature(enable = "avx2,fma")]
fn pairs_in<const MR: usize, const WIDTH: usize, const STRIDE: usize>(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    let width = if WIDTH == 0 { shape.kernel[1] } else { WIDTH };
    for panel in 0..shape.out_channels.div_ceil(PANEL) {
        epilogue.enter(terms, panel);
        let weights = &packed[panel * panel_len..][..panel_len];
        for y in 0..shape.out_height {
            for x in (0..shape.out_width).step_by(MR) {
                let x = x.min(shape.out_width - MR);
                let origin = shape.origin(y, x) + panel * PANEL;
                let mut acc: Tile<MR> = [[_mm256_setzero_si256(); 2]; MR];
                for ky in (0..shape.kernel[0]).step_by(2) {
                    let both = ky + 1 < shape.kernel[0];
                    let weights = &weights[ky / 2 * width * 32..][..width * 32];
                    let column = |kx: usize| {
                        let above = sixteen(input, origin + shape.tap(ky, kx));
                        let below = if both {
                            sixteen(input, origin + shape.tap(ky + 1, kx))
                        } else {
                            _mm_setzero_si128()
                        };
                        [
                            _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(above, below)),
                            _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(above, below)),
                        ]
                    };
                    let mut multiply = |r: usize, kx: usize, column: [__m256i; 2]| {
                        for half in 0..2 {
                            let tap = &weights[kx * 32 + 16 * half..][..16];
                            // SAFETY: the slice is 32 bytes long.
                            let tap = unsafe { _mm256_loadu_si256(tap.as_ptr().cast()) };
                            let product = _mm256_madd_epi16(column[half], tap);
                            acc[r][half] = _mm256_add_epi32(acc[r][half], product);
                        }
                    };
                    if WIDTH == 0 {
                        for kx in 0..width {
                            multiply(0, kx, column(kx));
                        }
                    } else {
                        each::<MR, WIDTH, STRIDE, [__m256i; 2]>(column, multiply);
                    }
                }
                epilogue.store(&acc, [y, x], terms, outputs);
            }
        }
    }
}

/// Sixteen codes from `at`; zeros beyond the end of memory.
#[inline]
#[target_feature(enable = "avx2")]
fn sixteen(input: &[u8], at: usize) -> __m128i {
    let mut rest = [0; 16];
    let sixteen = input.get(at..at + 16).unwrap_or_else(|| {
        let tail = input.get(at..).unwrap_or_default();
        rest[..tail.len()].copy_from_slice(tail);
        &rest
    });
    // SAFETY: the slice holds sixteen bytes.
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
}
