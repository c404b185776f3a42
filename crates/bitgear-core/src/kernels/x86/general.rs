//! From accumulators to whatever is stored, eight channels of a pixel at a time: codes of 16 bits, scores, more than
//! two versions.

use core::arch::x86_64::{
    __m256d, __m256i, _mm_cvtepu8_epi16, _mm_loadl_epi64, _mm_loadu_si128, _mm_packus_epi16,
    _mm_packus_epi32, _mm_storel_epi64, _mm256_add_pd, _mm256_castsi256_si128,
    _mm256_cvtepu16_epi32, _mm256_cvtpd_epi32, _mm256_extracti128_si256, _mm256_fmadd_pd,
    _mm256_max_pd, _mm256_min_pd, _mm256_set_m128i, _mm256_set1_pd, _mm256_setzero_pd,
    _mm256_storeu_si256, _mm256_sub_pd,
};

use super::epilogue::{Epilogue, ROUND_F64, doubles, load_f32, load_f64, widened};
use super::tile::Tile;
use crate::kernels::types::{Codes, CodesMut, Output, PANEL, Source, Terms};

impl Epilogue {
    /// As [`Self::finish`], for accumulators of low and high bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn store_split<const MR: usize>(
        &self,
        acc: &[Tile<2>; MR],
        [y, x]: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        let high_byte = _mm256_set1_pd(256.0);
        for (r, [low, high]) in acc.iter().enumerate() {
            for half in 0..2 {
                let (low, high) = (doubles(low[half]), doubles(high[half]));
                let acc = [
                    _mm256_fmadd_pd(high[0], high_byte, low[0]),
                    _mm256_fmadd_pd(high[1], high_byte, low[1]),
                ];
                self.eight_wide(acc, 8 * half, [y, x + r], terms, outputs);
            }
        }
    }

    /// Eight channels of one pixel, from 32-bit sums; `lane` is the first one's place in the panel.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn eight(
        &self,
        acc: __m256i,
        lane: usize,
        at: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        self.eight_wide(doubles(acc), lane, at, terms, outputs);
    }

    /// As [`Self::eight`], from exact integers in doubles.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn eight_wide(
        &self,
        acc: [__m256d; 2],
        lane: usize,
        at: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        let channel = self.panel * PANEL + lane;
        let unit = _mm256_set1_pd(f64::from(self.unit));
        let [bias, multipliers] = if self.narrow {
            [&self.bias, &self.residual].map(|values| widened(load_f32(values, lane)))
        } else {
            [&self.wide_bias, &self.wide_residual].map(|values| load_f64(values, lane))
        };
        let codes = match &terms.residual {
            Some(source) => doubles(residual(source, at, channel)),
            None => [_mm256_setzero_pd(); 2],
        };
        // Sums of integers below 2^53: exact.
        let mut t = [_mm256_setzero_pd(); 2];
        for i in 0..2 {
            t[i] = _mm256_fmadd_pd(acc[i], unit, bias[i]);
            t[i] = _mm256_fmadd_pd(codes[i], multipliers[i], t[i]);
        }
        let round = _mm256_set1_pd(ROUND_F64);
        for output in outputs {
            let multipliers = widened(load_f32(output.multipliers, channel));
            let zero = _mm256_set1_pd(f64::from(output.zero));
            let (low, high) =
                (_mm256_set1_pd(f64::from(output.low)), _mm256_set1_pd(f64::from(output.high)));
            let [first, second] = [0, 1].map(|i| {
                let q = _mm256_sub_pd(_mm256_fmadd_pd(t[i], multipliers[i], round), round);
                let q = _mm256_max_pd(_mm256_add_pd(q, zero), low);
                _mm256_cvtpd_epi32(_mm256_min_pd(q, high))
            });
            write(output, at, channel, _mm256_set_m128i(second, first));
        }
    }
}

/// Eight codes of the residual from `channel` on; beyond its memory zeros.
#[inline]
#[target_feature(enable = "avx2")]
fn residual(source: &Source<'_>, [y, x]: [usize; 2], channel: usize) -> __m256i {
    let at = source.layout.offset(y, x) + channel;
    match source.codes {
        Codes::U8(codes) => {
            let mut rest = [0; 8];
            let eight = codes.get(at..at + 8).unwrap_or_else(|| {
                let tail = codes.get(at..).unwrap_or_default();
                rest[..tail.len()].copy_from_slice(tail);
                &rest
            });
            // SAFETY: the slice holds eight bytes.
            let bytes = unsafe { _mm_loadl_epi64(eight.as_ptr().cast()) };
            _mm256_cvtepu16_epi32(_mm_cvtepu8_epi16(bytes))
        }
        Codes::U16(codes) => {
            let mut rest = [0; 8];
            let eight = codes.get(at..at + 8).unwrap_or_else(|| {
                let tail = codes.get(at..).unwrap_or_default();
                rest[..tail.len()].copy_from_slice(tail);
                &rest
            });
            // SAFETY: the slice holds eight 16-bit words.
            _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(eight.as_ptr().cast()) })
        }
    }
}

/// Stores up to eight channels, as many as there are.
#[inline]
#[target_feature(enable = "avx2")]
fn write(output: &mut Output<'_>, [y, x]: [usize; 2], channel: usize, values: __m256i) {
    let count = output.layout.channels.saturating_sub(channel).min(8);
    let at = output.layout.offset(y, x) + channel;
    if let (CodesMut::U8(codes), 8) = (&mut output.codes, count) {
        let pixel = &mut codes[at..at + 8];
        let words =
            _mm_packus_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
        // SAFETY: the slice holds eight bytes.
        unsafe { _mm_storel_epi64(pixel.as_mut_ptr().cast(), _mm_packus_epi16(words, words)) };
        return;
    }
    let mut lanes = [0_i32; 8];
    // SAFETY: the array holds eight values.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), values) };
    for (i, &value) in lanes[..count].iter().enumerate() {
        output.codes.set(at + i, value);
    }
}
