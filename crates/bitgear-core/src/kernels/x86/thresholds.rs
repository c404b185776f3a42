//! Results of very few bits, by comparing sums: a code is the number of thresholds that its sum exceeds.

use core::arch::x86_64::{
    __m128i, __m256i, _CMP_GT_OQ, _CMP_LT_OQ, _mm_setzero_si128, _mm_storeu_si128, _mm256_add_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_blendv_epi8, _mm256_castps_si256,
    _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cmpgt_epi16, _mm256_cvtepi32_ps,
    _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_packs_epi16,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_srai_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi8,
};

use super::epilogue::{ROUND_F32, padded, store_sixteen};
use crate::kernels::types::{Bias, CodesMut, Output, PANEL, Terms};

/// Most thresholds that are fewer instructions than rounding.
const MOST: usize = 3;

/// How the codes of one panel of channels follow from their sums.
pub(super) struct Thresholds {
    /// [threshold][channel]: the largest sum that does not exceed it.
    below: [[i16; PANEL]; MOST],
    count: usize,
    /// Code of the smallest sums.
    first: [i8; PANEL],
    /// What every threshold that is exceeded subtracts: -1 where larger sums have larger codes.
    step: [i8; PANEL],
}

impl Thresholds {
    /// The thresholds of sums of at most `largest` either way, where there is one version of the result,
    /// in bytes, of two bits at most, and single precision is exact for it.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new(
        terms: &Terms<'_>,
        outputs: &[Output<'_>],
        panel: usize,
        largest: usize,
    ) -> Option<Self> {
        let (&Bias::Narrow { bias, .. }, None, [output]) = (&terms.bias, terms.residual, outputs)
        else {
            return None;
        };
        let bytes = matches!(output.codes, CodesMut::U8(_));
        let count = output.high.checked_sub(output.low)?;
        let small = output.zero.abs() < 1 << 16 && 0 <= output.low && output.high <= 127;
        if !bytes || !small || !(0..=MOST as i32).contains(&count) || largest >= i16::MAX as usize {
            return None;
        }
        let count = count as usize;
        let multipliers = padded(output.multipliers, panel, |&m| m);
        let bias = padded(bias, panel, |&v| v as f32);
        let mut below = [[0; PANEL]; MOST];
        for (k, below) in below[..count].iter_mut().enumerate() {
            for half in 0..2 {
                let lanes = 8 * half..8 * half + 8;
                let unit = (1_u64 << terms.shift) as f32;
                let [rising, falling] = [output.low + k as i32, output.high - k as i32]
                    .map(|code| ROUND_F32 + (code - output.zero) as f32);
                let channels = Channels {
                    unit,
                    bias: bias[lanes.clone()].first_chunk().expect("eight lanes"),
                    multipliers: multipliers[lanes.clone()].first_chunk().expect("eight lanes"),
                };
                let sums = channels.last_below(rising, falling, largest as i32);
                for (below, sum) in below[lanes].iter_mut().zip(sums) {
                    *below = sum as i16;
                }
            }
        }
        let (low, high) = (output.low as i8, output.high as i8);
        let falls = multipliers.map(|m| m < 0.0);
        let first = falls.map(|falls| if falls { high } else { low });
        let step = falls.map(|falls| if falls { 1 } else { -1 });
        Some(Self { below, count, first, step })
    }

    /// Codes of 16 channels of 32 pixels, from the sums of a channel's pixels, half and half, if there is
    /// such a channel.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn codes(&self, sums: impl Fn(usize) -> Option<[__m256i; 2]>) -> [__m128i; 32] {
        match self.count {
            0 => self.compared::<0>(sums),
            1 => self.compared::<1>(sums),
            2 => self.compared::<2>(sums),
            _ => self.compared::<3>(sums),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn compared<const COUNT: usize>(
        &self,
        sums: impl Fn(usize) -> Option<[__m256i; 2]>,
    ) -> [__m128i; 32] {
        let mut channels = [_mm256_setzero_si256(); PANEL];
        for (channel, codes) in channels.iter_mut().enumerate() {
            let Some(sums) = sums(channel) else { continue };
            let [first, second] = sums.map(|sums| {
                let mut exceeded = _mm256_setzero_si256();
                for below in &self.below[..COUNT] {
                    let mask = _mm256_cmpgt_epi16(sums, _mm256_set1_epi16(below[channel]));
                    exceeded = _mm256_add_epi16(exceeded, mask);
                }
                exceeded
            });
            let exceeded = _mm256_packs_epi16(first, second);
            let steps = _mm256_sign_epi8(exceeded, _mm256_set1_epi8(self.step[channel]));
            *codes = _mm256_add_epi8(_mm256_set1_epi8(self.first[channel]), steps);
        }
        // Each turn moves the first bit of the channel behind the last one of the pixel, within halves.
        for _ in 0..PANEL.ilog2() {
            let before = channels;
            for i in 0..PANEL / 2 {
                let (a, b) = (before[i], before[i + PANEL / 2]);
                channels[2 * i] = _mm256_unpacklo_epi8(a, b);
                channels[2 * i + 1] = _mm256_unpackhi_epi8(a, b);
            }
        }
        let mut pixels = [_mm_setzero_si128(); 32];
        for (i, codes) in channels.into_iter().enumerate() {
            // Packing has put eight pixels of each half of both vectors side by side.
            let pixel = i % 8 + i / 8 * 16;
            pixels[pixel] = _mm256_castsi256_si128(codes);
            pixels[pixel + 8] = _mm256_extracti128_si256::<1>(codes);
        }
        pixels
    }

    /// Stores the codes of neighbouring pixels of a row, beginning at (y, x).
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn store(
        codes: &[__m128i],
        [y, x]: [usize; 2],
        panel: usize,
        outputs: &mut [Output<'_>],
    ) {
        let [Output { codes: CodesMut::U8(memory), layout, .. }] = outputs else {
            unreachable!("there is one version, in bytes")
        };
        let channels = PANEL.min(layout.channels - panel * PANEL);
        let (at, stride) = (layout.offset(y, x) + panel * PANEL, layout.stride());
        if channels == PANEL {
            let run = &mut memory[at..at + (codes.len() - 1) * stride + PANEL];
            for (i, &codes) in codes.iter().enumerate() {
                // SAFETY: the run ends sixteen bytes from its last pixel.
                unsafe { _mm_storeu_si128(run.as_mut_ptr().add(i * stride).cast(), codes) };
            }
            return;
        }
        for (i, &codes) in codes.iter().enumerate() {
            store_sixteen(&mut memory[at + i * stride..][..channels], codes);
        }
    }
}

/// Terms of eight channels.
struct Channels<'a> {
    unit: f32,
    bias: &'a [f32; 8],
    multipliers: &'a [f32; 8],
}

impl Channels<'_> {
    /// The largest sums whose results, plus the rounding constant, are at most `rising` where results rise
    /// with sums, and at least `falling` where they fall; by bisection.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn last_below(&self, rising: f32, falling: f32, largest: i32) -> [i32; 8] {
        // SAFETY: both arrays hold eight floats.
        let (bias, multipliers) = unsafe {
            (_mm256_loadu_ps(self.bias.as_ptr()), _mm256_loadu_ps(self.multipliers.as_ptr()))
        };
        let unit = _mm256_set1_ps(self.unit);
        let falls = _mm256_cmp_ps::<_CMP_LT_OQ>(multipliers, _mm256_set1_ps(0.0));
        let falls = _mm256_castps_si256(falls);
        let round = _mm256_set1_ps(ROUND_F32);
        let [rising, falling] = [rising, falling].map(|limit| _mm256_set1_ps(limit));
        // Results beyond the limit begin after `low` and not after `high`.
        let mut low = _mm256_set1_epi32(-largest - 1);
        let mut high = _mm256_set1_epi32(largest + 1);
        for _ in 0..=(2 * largest + 2).ilog2() {
            let middle = _mm256_srai_epi32::<1>(_mm256_add_epi32(low, high));
            let t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(middle), unit, bias);
            let result = _mm256_fmadd_ps(t, multipliers, round);
            let beyond = _mm256_blendv_epi8(
                _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(result, rising)),
                _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(result, falling)),
                falls,
            );
            low = _mm256_blendv_epi8(middle, low, beyond);
            high = _mm256_blendv_epi8(high, middle, beyond);
        }
        let mut sums = [0; 8];
        // SAFETY: the array holds eight integers.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), low) };
        sums
    }
}
