//! From accumulators to stored codes, eight channels at a time.

use core::arch::x86_64::{
    __m128i, __m256, __m256d, __m256i, _mm_cvtepu8_epi16, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_packus_epi16, _mm_packus_epi32, _mm_storel_epi64, _mm_storeu_si128, _mm256_add_epi32,
    _mm256_add_pd, _mm256_castpd_ps, _mm256_castpd_si256, _mm256_castps_pd, _mm256_castps_si256,
    _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cvtepi32_pd, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtpd_epi32, _mm256_cvtps_pd,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_pd, _mm256_fmadd_ps,
    _mm256_loadu_pd, _mm256_loadu_ps, _mm256_max_pd, _mm256_max_ps, _mm256_min_epu8, _mm256_min_pd,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permute4x64_pd, _mm256_permutevar8x32_epi32,
    _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_pd, _mm256_set1_ps,
    _mm256_setr_epi32, _mm256_setzero_pd, _mm256_shuffle_ps, _mm256_storeu_si256, _mm256_sub_epi32,
    _mm256_sub_pd,
};

use super::tile::Tile;
use crate::kernels::types::{Bias, Codes, CodesMut, MapLayout, Output, PANEL, Source, Terms};

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
    /// For the first versions of the result.
    roundings: [Rounding; 2],
    /// Whether all versions have a rounding and are stored in bytes, as the residual is.
    bytes: bool,
}

/// How single precision makes codes of t.
#[derive(Clone, Copy)]
struct Rounding {
    multipliers: [f32; PANEL],
    limits: [f32; 2],
    /// The rounding constant's bits, less the zero.
    bits: i32,
    /// Largest code.
    high: u8,
    /// Channels in use.
    count: usize,
}

impl Rounding {
    const NONE: Self =
        Self { multipliers: [0.0; PANEL], limits: [0.0; 2], bits: 0, high: 0, count: 0 };

    fn new(output: &Output<'_>, panel: usize) -> Self {
        Self {
            multipliers: padded(output.multipliers, panel, |&m| m),
            limits: limits(output),
            bits: ROUND_F32.to_bits() as i32 - output.zero,
            high: output.high.clamp(0, 255) as u8,
            count: (output.layout.channels - panel * PANEL).min(PANEL),
        }
    }

    /// Codes of 16 channels of two pixels, each in half a register, from sums of results before the zero is
    /// added and the rounding constant.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn codes(&self, results: [[__m256i; 2]; 2]) -> __m256i {
        let bits = _mm256_set1_epi32(self.bits);
        let [first, second] = results.map(|results| {
            let [first, second] = results.map(|results| _mm256_sub_epi32(results, bits));
            _mm256_packs_epi32(first, second)
        });
        // What is too large has become 255.
        let high = _mm256_set1_epi8(self.high.cast_signed());
        let codes = _mm256_min_epu8(_mm256_packus_epi16(first, second), high);
        // Packing leaves four channels of each pixel and half panel, in turns.
        _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// Codes of neighbouring pixels, from the panel's first channel of the first one on.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    codes: &'a [u8],
    /// From pixel to pixel.
    stride: usize,
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
            roundings: [Rounding::NONE; 2],
            bytes: false,
        }
    }

    /// Loads what a panel needs, unless it is there.
    #[inline]
    pub(super) fn enter(&mut self, terms: &Terms<'_>, outputs: &[Output<'_>], panel: usize) {
        if self.panel == panel {
            return;
        }
        self.panel = panel;
        match terms.bias {
            Bias::Narrow { bias, residual } => {
                self.bias = padded(bias, panel, |&v| v as f32);
                self.residual = padded(residual, panel, |&v| v as f32);
            }
            Bias::Wide { bias, residual } => {
                self.wide_bias = padded(bias, panel, |&v| v as f64);
                self.wide_residual = padded(residual, panel, |&v| v as f64);
            }
        }
        for (rounding, output) in self.roundings.iter_mut().zip(outputs) {
            *rounding = Rounding::new(output, panel);
        }
        self.bytes = outputs.len() <= self.roundings.len()
            && outputs
                .iter()
                .all(|o| matches!(o.codes, CodesMut::U8(_)) && o.zero.unsigned_abs() < 1 << 16)
            && terms.residual.is_none_or(|source| matches!(source.codes, Codes::U8(_)));
    }

    /// Finishes neighbouring pixels, beginning at (y, x), from their sums of 16 channels.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn finish(
        &self,
        sums: &[[__m256i; 2]],
        [y, x]: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        if !self.bytes {
            for (r, sums) in sums.iter().enumerate() {
                for (half, &sums) in sums.iter().enumerate() {
                    self.eight(sums, 8 * half, [y, x + r], terms, outputs);
                }
            }
            return;
        }
        let place = |layout: &MapLayout| layout.offset(y, x) + self.panel * PANEL;
        let residual = terms.residual.and_then(|source| match source.codes {
            Codes::U8(codes) => {
                let (at, stride) = (place(&source.layout), source.layout.stride());
                Some(Pixels { codes: &codes[at..], stride })
            }
            Codes::U16(_) => None,
        });
        for (output, rounding) in outputs.iter_mut().zip(&self.roundings) {
            let (at, stride) = (place(&output.layout), output.layout.stride());
            let CodesMut::U8(memory) = &mut output.codes else { unreachable!("all are bytes") };
            let memory = &mut memory[at..];
            match residual {
                Some(residual) if self.narrow => {
                    self.narrow::<true>(sums, residual, rounding, memory, stride);
                }
                Some(residual) => self.wide::<true>(sums, residual, rounding, memory, stride),
                None => {
                    let nothing = Pixels { codes: &[], stride: 0 };
                    if self.narrow {
                        self.narrow::<false>(sums, nothing, rounding, memory, stride);
                    } else {
                        self.wide::<false>(sums, nothing, rounding, memory, stride);
                    }
                }
            }
        }
    }

    /// In single precision: every sum is an integer below 2^24, or so large that the result saturates.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn narrow<const RESIDUAL: bool>(
        &self,
        sums: &[[__m256i; 2]],
        residual: Pixels<'_>,
        rounding: &Rounding,
        memory: &mut [u8],
        stride: usize,
    ) {
        let unit = _mm256_set1_ps(self.unit);
        let halves = |values: &[f32; PANEL]| [load_f32(values, 0), load_f32(values, 8)];
        let (bias, factors) = (halves(&self.bias), halves(&self.residual));
        let multipliers = halves(&rounding.multipliers);
        let (round, low) = (_mm256_set1_ps(ROUND_F32), _mm256_set1_ps(rounding.limits[0]));
        store(sums, rounding, memory, stride, |pixel, half, sums| {
            let mut t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), unit, bias[half]);
            if RESIDUAL {
                let codes = eight_of(residual, pixel, half);
                t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), factors[half], t);
            }
            let result = _mm256_fmadd_ps(t, multipliers[half], round);
            _mm256_castps_si256(_mm256_max_ps(result, low))
        });
    }

    /// In double precision: every sum is an integer below 2^53.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn wide<const RESIDUAL: bool>(
        &self,
        sums: &[[__m256i; 2]],
        residual: Pixels<'_>,
        rounding: &Rounding,
        memory: &mut [u8],
        stride: usize,
    ) {
        let unit = _mm256_set1_pd(f64::from(self.unit));
        let round = _mm256_set1_pd(ROUND_F64);
        // The same limits, by another rounding constant.
        let [low, high] = rounding
            .limits
            .map(|limit| _mm256_set1_pd(f64::from(limit) - f64::from(ROUND_F32) + ROUND_F64));
        let single = _mm256_set1_epi32(ROUND_F32.to_bits().cast_signed());
        store(sums, rounding, memory, stride, |pixel, half, sums| {
            let (lane, sums) = (8 * half, doubles(sums));
            let bias = load_f64(&self.wide_bias, lane);
            let mut t = [0, 1].map(|i| _mm256_fmadd_pd(sums[i], unit, bias[i]));
            if RESIDUAL {
                let codes = doubles(eight_of(residual, pixel, half));
                let factors = load_f64(&self.wide_residual, lane);
                t = [0, 1].map(|i| _mm256_fmadd_pd(codes[i], factors[i], t[i]));
            }
            let multipliers = widened(load_f32(&rounding.multipliers, lane));
            let [first, second] = [0, 1].map(|i| {
                let result = _mm256_fmadd_pd(t[i], multipliers[i], round);
                _mm256_castpd_ps(_mm256_min_pd(_mm256_max_pd(result, low), high))
            });
            // Integers are the low words of such doubles.
            let words = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(first, second));
            let results = _mm256_castpd_si256(_mm256_permute4x64_pd::<0xd8>(words));
            _mm256_add_epi32(results, single)
        });
    }

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

/// Stores codes of the pixels whose sums are given. `result` gives, for the number of a pixel and a half of the
/// panel, the sums of results and rounding constant.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn store(
    sums: &[[__m256i; 2]],
    rounding: &Rounding,
    memory: &mut [u8],
    stride: usize,
    result: impl Fn(usize, usize, __m256i) -> __m256i,
) {
    let results = |pixel, sums: [__m256i; 2]| [0, 1].map(|half| result(pixel, half, sums[half]));
    let (pairs, last) = sums.as_chunks::<2>();
    for (i, &[first, second]) in pairs.iter().enumerate() {
        let codes = rounding.codes([results(2 * i, first), results(2 * i + 1, second)]);
        let first = &mut memory[2 * i * stride..][..rounding.count];
        store_sixteen(first, _mm256_castsi256_si128(codes));
        let second = &mut memory[(2 * i + 1) * stride..][..rounding.count];
        store_sixteen(second, _mm256_extracti128_si256::<1>(codes));
    }
    if let &[last] = last {
        let pixel = sums.len() - 1;
        let codes = rounding.codes([results(pixel, last); 2]);
        let last = &mut memory[pixel * stride..][..rounding.count];
        store_sixteen(last, _mm256_castsi256_si128(codes));
    }
}

/// Codes of half a panel of a pixel; beyond memory zeros.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_of(pixels: Pixels<'_>, pixel: usize, half: usize) -> __m256i {
    let at = pixel * pixels.stride + 8 * half;
    match pixels.codes.get(at..at + 8) {
        // SAFETY: the slice holds eight bytes.
        Some(codes) => unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())) },
        None => {
            let mut codes = [0; 8];
            let rest = pixels.codes.get(at..).unwrap_or_default();
            codes.iter_mut().zip(rest).for_each(|(code, &byte)| *code = byte);
            // SAFETY: the array holds eight bytes.
            unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())) }
        }
    }
}

/// The panel's part of per-channel values, filled up with zeros.
fn padded<T, U: Default + Copy>(
    values: &[T],
    panel: usize,
    convert: impl Fn(&T) -> U,
) -> [U; PANEL] {
    let values = values.get(panel * PANEL..).unwrap_or_default();
    if let Some(full) = values.first_chunk::<PANEL>() {
        return full.each_ref().map(convert);
    }
    let mut out = [U::default(); PANEL];
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

/// Eight floats as doubles.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(v: __m256) -> [__m256d; 2] {
    [_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v))]
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

/// Stores at most sixteen bytes, as many as the pixel has.
#[inline]
#[target_feature(enable = "avx2")]
fn store_sixteen(pixel: &mut [u8], codes: __m128i) {
    match pixel.len() {
        // SAFETY: the slice holds sixteen bytes.
        16 => unsafe { _mm_storeu_si128(pixel.as_mut_ptr().cast(), codes) },
        // SAFETY: the slice holds eight bytes.
        8 => unsafe { _mm_storel_epi64(pixel.as_mut_ptr().cast(), codes) },
        _ => store_some(pixel, codes),
    }
}

#[cold]
#[target_feature(enable = "avx2")]
fn store_some(pixel: &mut [u8], codes: __m128i) {
    let mut bytes = [0; PANEL];
    // SAFETY: the array holds sixteen bytes.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), codes) };
    pixel.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte);
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
