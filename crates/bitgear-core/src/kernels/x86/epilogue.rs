//! From accumulators to stored codes, eight channels at a time.

use core::arch::x86_64::{
    __m256, __m256d, __m256i, _mm_cvtepu8_epi16, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_packus_epi16, _mm_packus_epi32, _mm_storel_epi64, _mm_storeu_si128, _mm256_add_pd,
    _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cvtepi32_pd,
    _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtpd_epi32, _mm256_cvtps_pd,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_pd, _mm256_fmadd_ps,
    _mm256_loadu_pd, _mm256_loadu_ps, _mm256_max_pd, _mm256_max_ps, _mm256_min_pd, _mm256_min_ps,
    _mm256_packus_epi32, _mm256_permute4x64_epi64, _mm256_set_m128i, _mm256_set1_epi32,
    _mm256_set1_pd, _mm256_set1_ps, _mm256_setzero_pd, _mm256_setzero_ps, _mm256_storeu_si256,
    _mm256_sub_epi32, _mm256_sub_pd,
};

use super::tile::Tile;
use crate::kernels::types::{Bias, Codes, CodesMut, Output, PANEL, Source, Terms};

/// Adding 1.5 · 2^23 rounds a float below 2^22 to an integer, half to even, and puts the integer into
/// the low bits of the significand; with a fused multiply-add the product is rounded nowhere else.
pub(super) const ROUND_F32: f32 = 12_582_912.0;
/// The same for doubles below 2^51: 1.5 · 2^52.
pub(super) const ROUND_F64: f64 = 6_755_399_441_055_744.0;

/// Smallest and largest sum of the rounding constant and a result before its zero is added. Such sums
/// are ordered like what they stand for, however large.
pub(super) fn limits(output: &Output<'_>) -> [f32; 2] {
    // The results of scores, which may have wider limits, are below 2^22 in any case.
    let limit = |code: i32| code.saturating_sub(output.zero).clamp(-(1 << 22), 1 << 22) as f32;
    [output.low, output.high].map(|code| ROUND_F32 + limit(code))
}

/// Terms of one panel of 16 channels, widened for the arithmetic that uses them.
pub(super) struct Epilogue {
    narrow: bool,
    /// 2^shift.
    unit: f32,
    /// Panel whose terms are loaded.
    panel: usize,
    bias: [f32; PANEL],
    residual: [f32; PANEL],
    wide_bias: [f64; PANEL],
    wide_residual: [f64; PANEL],
}

impl Epilogue {
    pub(super) fn new(terms: &Terms<'_>) -> Self {
        Self {
            narrow: matches!(terms.bias, Bias::Narrow { .. }),
            unit: (1_u64 << terms.shift) as f32,
            panel: usize::MAX,
            bias: [0.0; PANEL],
            residual: [0.0; PANEL],
            wide_bias: [0.0; PANEL],
            wide_residual: [0.0; PANEL],
        }
    }

    /// Loads the terms of a panel, unless they are there.
    #[inline]
    pub(super) fn enter(&mut self, terms: &Terms<'_>, panel: usize) {
        if self.panel == panel {
            return;
        }
        self.panel = panel;
        match terms.bias {
            Bias::Narrow { bias, residual } => {
                self.bias = padded(bias, panel, |&v| v as f32);
                self.residual = padded(residual, panel, |&v| v as f32);
                // For sums that come in doubles.
                self.wide_bias = padded(bias, panel, |&v| f64::from(v));
                self.wide_residual = padded(residual, panel, |&v| f64::from(v));
            }
            Bias::Wide { bias, residual } => {
                self.wide_bias = padded(bias, panel, |&v| v as f64);
                self.wide_residual = padded(residual, panel, |&v| v as f64);
            }
        }
    }

    /// Finishes a block of pixels beginning at (y, x).
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn store<const MR: usize>(
        &self,
        acc: &Tile<MR>,
        [y, x]: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        if !self.narrow {
            for (r, acc) in acc.iter().enumerate() {
                for (half, &acc) in acc.iter().enumerate() {
                    self.eight(acc, 8 * half, [y, x + r], terms, outputs);
                }
            }
            return;
        }
        // Every sum of these is an integer below 2^24, or so large that the result saturates.
        let unit = _mm256_set1_ps(self.unit);
        let bias = [load_f32(&self.bias, 0), load_f32(&self.bias, 8)];
        let mut t = [[_mm256_setzero_ps(); 2]; MR];
        for (t, acc) in t.iter_mut().zip(acc) {
            for half in 0..2 {
                t[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[half]), unit, bias[half]);
            }
        }
        if let Some(source) = &terms.residual {
            let multipliers = [load_f32(&self.residual, 0), load_f32(&self.residual, 8)];
            for (r, t) in t.iter_mut().enumerate() {
                for half in 0..2 {
                    let channel = self.panel * PANEL + 8 * half;
                    let codes = _mm256_cvtepi32_ps(residual(source, [y, x + r], channel));
                    t[half] = _mm256_fmadd_ps(codes, multipliers[half], t[half]);
                }
            }
        }
        for output in outputs {
            self.write(&t, [y, x], output);
        }
    }

    /// Rounds and stores one version of 16 channels.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn write<const MR: usize>(
        &self,
        t: &[[__m256; 2]; MR],
        [y, x]: [usize; 2],
        output: &mut Output<'_>,
    ) {
        let channel = self.panel * PANEL;
        let multipliers =
            [load_f32(output.multipliers, channel), load_f32(output.multipliers, channel + 8)];
        let round = _mm256_set1_ps(ROUND_F32);
        let [low, high] = limits(output).map(|limit| _mm256_set1_ps(limit));
        let bits = _mm256_set1_epi32(ROUND_F32.to_bits() as i32 - output.zero);
        let (at, stride) = (output.layout.offset(y, x) + channel, output.layout.stride());
        let full = channel + PANEL <= output.layout.channels;
        for (r, t) in t.iter().enumerate() {
            let q = [0, 1].map(|half| {
                let q = _mm256_fmadd_ps(t[half], multipliers[half], round);
                let q = _mm256_min_ps(_mm256_max_ps(q, low), high);
                _mm256_sub_epi32(_mm256_castps_si256(q), bits)
            });
            match &mut output.codes {
                CodesMut::U8(codes) if full => {
                    let pixel = &mut codes[at + r * stride..][..PANEL];
                    let words = _mm256_packus_epi32(q[0], q[1]);
                    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                    let (first, second) =
                        (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    // SAFETY: the slice holds 16 bytes.
                    unsafe {
                        let bytes = _mm_packus_epi16(first, second);
                        _mm_storeu_si128(pixel.as_mut_ptr().cast(), bytes);
                    }
                }
                _ => {
                    for (half, q) in q.into_iter().enumerate() {
                        write(output, [y, x + r], channel + 8 * half, q);
                    }
                }
            }
        }
    }

    /// As [`Self::store`], for accumulators of low and high bytes.
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
        let bias = load_f64(&self.wide_bias, lane);
        let multipliers = load_f64(&self.wide_residual, lane);
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
            let multipliers = load_f32(output.multipliers, channel);
            let multipliers = [
                _mm256_cvtps_pd(_mm256_castps256_ps128(multipliers)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(multipliers)),
            ];
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

/// The panel's part of per-channel values, filled up with zeros.
fn padded<T, U: Default + Copy>(
    values: &[T],
    panel: usize,
    convert: impl Fn(&T) -> U,
) -> [U; PANEL] {
    let mut out = [U::default(); PANEL];
    let values = values.get(panel * PANEL..).unwrap_or_default();
    for (out, value) in out.iter_mut().zip(values) {
        *out = convert(value);
    }
    out
}

/// Eight 32-bit integers as doubles.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn doubles(v: __m256i) -> [__m256d; 2] {
    [
        _mm256_cvtepi32_pd(_mm256_castsi256_si128(v)),
        _mm256_cvtepi32_pd(_mm256_extracti128_si256::<1>(v)),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f64(values: &[f64; PANEL], lane: usize) -> [__m256d; 2] {
    let eight = &values[lane..lane + 8];
    // SAFETY: the slice holds eight values.
    unsafe { [_mm256_loadu_pd(eight.as_ptr()), _mm256_loadu_pd(eight[4..].as_ptr())] }
}

/// Eight values from `at`, zeros beyond the end.
#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(values: &[f32], at: usize) -> __m256 {
    let mut rest = [0.0; 8];
    let eight = values.get(at..at + 8).unwrap_or_else(|| {
        let tail = values.get(at..).unwrap_or_default();
        rest[..tail.len()].copy_from_slice(tail);
        &rest
    });
    // SAFETY: the slice holds eight values.
    unsafe { _mm256_loadu_ps(eight.as_ptr()) }
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
