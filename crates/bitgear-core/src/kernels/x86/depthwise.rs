//! Depthwise convolution: eight channels at a time, one tap after the other.

use core::arch::x86_64::{
    __m256i, _mm_cvtepu8_epi16, _mm_loadl_epi64, _mm_loadu_si128, _mm256_add_epi32,
    _mm256_cvtepi16_epi32, _mm256_cvtepu16_epi32, _mm256_fmadd_pd, _mm256_mullo_epi32,
    _mm256_setzero_pd, _mm256_setzero_si256,
};

use super::epilogue::{Epilogue, doubles};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Stored codes.
pub(super) trait Element: Copy + Default {
    /// Eight codes in 32-bit lanes.
    fn widen(eight: &[Self; 8]) -> __m256i;
}

impl Element for u8 {
    #[inline]
    fn widen(eight: &[Self; 8]) -> __m256i {
        // SAFETY: the array holds eight bytes, and only `conv` calls this, which runs with AVX2.
        unsafe { _mm256_cvtepu16_epi32(_mm_cvtepu8_epi16(_mm_loadl_epi64(eight.as_ptr().cast()))) }
    }
}

impl Element for u16 {
    #[inline]
    fn widen(eight: &[Self; 8]) -> __m256i {
        // SAFETY: the array holds eight words, and only `conv` calls this, which runs with AVX2.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(eight.as_ptr().cast())) }
    }
}

/// `packed` is [panel][tap][channel]. With `wide`, sums are kept in doubles, where they are exact.
#[target_feature(enable = "avx2,fma")]
pub(super) fn conv<T: Element>(
    shape: &ConvShape,
    packed: &[i16],
    input: &[T],
    wide: bool,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    let [height, width] = shape.kernel;
    for channel in (0..shape.out_channels).step_by(8) {
        let (panel, lane) = (channel / PANEL, channel % PANEL);
        epilogue.enter(terms, outputs, panel);
        let packed = &packed[panel * height * width * PANEL + lane..];
        let tap = |ky: usize, kx: usize| (ky * width + kx) * PANEL;
        for y in 0..shape.out_height {
            for x in 0..shape.out_width {
                let origin = shape.origin(y, x) + channel;
                if wide {
                    let mut acc = [_mm256_setzero_pd(); 2];
                    for ky in 0..height {
                        for kx in 0..width {
                            let codes = doubles(codes(input, origin + shape.tap(ky, kx)));
                            let weights = doubles(weights(packed, tap(ky, kx)));
                            for half in 0..2 {
                                acc[half] = _mm256_fmadd_pd(codes[half], weights[half], acc[half]);
                            }
                        }
                    }
                    epilogue.eight_wide(acc, lane, [y, x], terms, outputs);
                } else {
                    let mut acc = _mm256_setzero_si256();
                    for ky in 0..height {
                        for kx in 0..width {
                            let codes = codes(input, origin + shape.tap(ky, kx));
                            let product = _mm256_mullo_epi32(codes, weights(packed, tap(ky, kx)));
                            acc = _mm256_add_epi32(acc, product);
                        }
                    }
                    epilogue.eight(acc, lane, [y, x], terms, outputs);
                }
            }
        }
    }
}

/// Eight codes from `at`; zeros beyond the end of memory.
#[inline]
#[target_feature(enable = "avx2")]
fn codes<T: Element>(input: &[T], at: usize) -> __m256i {
    if let Some(eight) = input.get(at..).and_then(|rest| rest.first_chunk()) {
        return T::widen(eight);
    }
    let mut eight = [T::default(); 8];
    let tail = input.get(at..).unwrap_or_default();
    eight[..tail.len()].copy_from_slice(tail);
    T::widen(&eight)
}

/// Eight weights in 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn weights(packed: &[i16], at: usize) -> __m256i {
    let eight = &packed[at..at + 8];
    // SAFETY: the slice holds eight words.
    _mm256_cvtepi16_epi32(unsafe { _mm_loadu_si128(eight.as_ptr().cast()) })
}
