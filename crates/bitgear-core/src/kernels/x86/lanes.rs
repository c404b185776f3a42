//! From accumulators to stored codes, 16 channels at a time, with AVX-512.

use core::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_add_epi8, _mm_loadu_si128, _mm_mask_storeu_epi8,
    _mm_maskz_loadu_epi8, _mm_set1_epi8, _mm_storeu_si128, _mm256_mask_storeu_epi16,
    _mm256_maskz_loadu_epi16, _mm512_castps_si512, _mm512_castsi512_si256, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32,
    _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_sub_epi32,
};

use super::epilogue::{Epilogue, ROUND_F32, limits};
use crate::kernels::types::{Bias, Codes, CodesMut, Output, PANEL, Source, Terms};

/// Terms of one panel of 16 channels.
pub(super) struct Lanes {
    /// First channel.
    channel: usize,
    /// Channels in use.
    mask: u16,
    unit: __m512,
    bias: __m512,
    residual: __m512,
    /// For sums that single precision doesn't hold.
    wide: Option<Epilogue>,
}

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
    pub(super) fn new(terms: &Terms<'_>, panel: usize) -> Self {
        let channel = panel * PANEL;
        let (mut bias_lanes, mut residual_lanes) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let (count, wide) = match terms.bias {
            Bias::Narrow { bias, residual } => {
                bias_lanes = _mm512_cvtepi32_ps(load_i32(bias, channel));
                residual_lanes = _mm512_cvtepi32_ps(load_i32(residual, channel));
                (bias.len(), None)
            }
            Bias::Wide { bias, .. } => {
                let mut epilogue = Epilogue::new(terms);
                epilogue.enter(terms, panel);
                (bias.len(), Some(epilogue))
            }
        };
        Self {
            channel,
            mask: first(count.saturating_sub(channel)),
            unit: _mm512_set1_ps((1_u64 << terms.shift) as f32),
            bias: bias_lanes,
            residual: residual_lanes,
            wide,
        }
    }

    /// Finishes a block of pixels beginning at (y, x).
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
    pub(super) fn store<const MR: usize>(
        &self,
        acc: &[__m512i; MR],
        [y, x]: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        if let Some(epilogue) = &self.wide {
            for (r, &acc) in acc.iter().enumerate() {
                let halves = [_mm512_castsi512_si256(acc), _mm512_extracti64x4_epi64::<1>(acc)];
                for (half, acc) in halves.into_iter().enumerate() {
                    epilogue.eight(acc, 8 * half, [y, x + r], terms, outputs);
                }
            }
            return;
        }
        // Every sum of these is an integer below 2^24, or so large that the result saturates.
        let mut t = [_mm512_setzero_ps(); MR];
        for (t, &acc) in t.iter_mut().zip(acc) {
            *t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), self.unit, self.bias);
        }
        if let Some(source) = &terms.residual {
            for (r, t) in t.iter_mut().enumerate() {
                let codes = self.residual_codes(source, [y, x + r]);
                *t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), self.residual, *t);
            }
        }
        for output in outputs {
            self.write(&t, [y, x], output);
        }
    }

    /// Rounds and stores one version.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
    fn write<const MR: usize>(
        &self,
        t: &[__m512; MR],
        [y, x]: [usize; 2],
        output: &mut Output<'_>,
    ) {
        let rest = &output.multipliers[self.channel..];
        // SAFETY: the mask leaves out what lies beyond the slice.
        let multiplier = unsafe { _mm512_maskz_loadu_ps(first(rest.len()), rest.as_ptr()) };
        let round = _mm512_set1_ps(ROUND_F32);
        let (at, stride) = (output.layout.offset(y, x) + self.channel, output.layout.stride());
        let [low, high] = limits(output).map(|limit| _mm512_set1_ps(limit));
        let bits = _mm512_set1_epi32(ROUND_F32.to_bits() as i32 - output.zero);
        let q = |t: __m512| {
            let q = _mm512_fmadd_ps(t, multiplier, round);
            _mm512_castps_si512(_mm512_min_ps(_mm512_max_ps(q, low), high))
        };
        let mask = self.mask;
        let end = at + (MR - 1) * stride + mask.count_ones() as usize;
        assert!(end <= output.codes.len(), "output");
        match &mut output.codes {
            CodesMut::U8(codes) => {
                let zero = _mm_set1_epi8(output.zero as i8);
                for (r, &t) in t.iter().enumerate() {
                    // The low byte of the significand is that of the integer.
                    let q = _mm_add_epi8(_mm512_cvtepi32_epi8(q(t)), zero);
                    // SAFETY: the last pixel's channels end inside the slice, as asserted; the mask
                    // leaves out what lies beyond them.
                    unsafe {
                        let pixel = codes.as_mut_ptr().add(at + r * stride);
                        if mask == u16::MAX {
                            _mm_storeu_si128(pixel.cast(), q);
                        } else {
                            _mm_mask_storeu_epi8(pixel.cast(), mask, q);
                        }
                    }
                }
            }
            CodesMut::U16(codes) => {
                for (r, &t) in t.iter().enumerate() {
                    let q = _mm512_cvtepi32_epi16(_mm512_sub_epi32(q(t), bits));
                    // SAFETY: as above.
                    unsafe {
                        let pixel = codes.as_mut_ptr().add(at + r * stride);
                        _mm256_mask_storeu_epi16(pixel.cast(), mask, q);
                    }
                }
            }
            CodesMut::I32(scores) => {
                for (r, &t) in t.iter().enumerate() {
                    let q = _mm512_sub_epi32(q(t), bits);
                    // SAFETY: as above.
                    unsafe {
                        let pixel = scores.as_mut_ptr().add(at + r * stride);
                        _mm512_mask_storeu_epi32(pixel, mask, q);
                    }
                }
            }
        }
    }

    /// The residual's codes of one pixel.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn residual_codes(&self, source: &Source<'_>, [y, x]: [usize; 2]) -> __m512i {
        let at = source.layout.offset(y, x) + self.channel;
        match source.codes {
            Codes::U8(codes) => {
                let pixel = &codes[at..];
                if pixel.len() >= PANEL {
                    // SAFETY: the slice holds 16 bytes.
                    let codes = unsafe { _mm_loadu_si128(pixel.as_ptr().cast()) };
                    return _mm512_cvtepu8_epi32(codes);
                }
                let mask = first(pixel.len());
                // SAFETY: the mask leaves out what lies beyond the slice.
                let codes = unsafe { _mm_maskz_loadu_epi8(mask, pixel.as_ptr().cast()) };
                _mm512_cvtepu8_epi32(codes)
            }
            Codes::U16(codes) => {
                let pixel = &codes[at..];
                let mask = first(pixel.len());
                // SAFETY: the mask leaves out what lies beyond the slice.
                let codes = unsafe { _mm256_maskz_loadu_epi16(mask, pixel.as_ptr().cast()) };
                _mm512_cvtepu16_epi32(codes)
            }
        }
    }
}

/// A mask of the first `count` of 16 lanes.
#[inline]
pub(super) fn first(count: usize) -> u16 {
    if count >= PANEL { u16::MAX } else { (1 << count) - 1 }
}

/// 16 values from `at`, zeros beyond the end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(values: &[i32], at: usize) -> __m512i {
    let rest = values.get(at..).unwrap_or_default();
    // SAFETY: the mask leaves out what lies beyond the slice.
    unsafe { _mm512_maskz_loadu_epi32(first(rest.len()), rest.as_ptr()) }
}
