//! From accumulators to stored codes, eight channels at a time.

use core::arch::x86_64::{
    __m128i, __m256, __m256d, __m256i, _mm_cvtepu8_epi16, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_packus_epi16, _mm_packus_epi32, _mm_storel_epi64, _mm_storeu_si128, _mm_unpackhi_epi64,
    _mm256_add_pd, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_si128,
    _mm256_cvtepi32_pd, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32,
    _mm256_cvtpd_epi32, _mm256_cvtps_pd, _mm256_extractf128_ps, _mm256_extracti128_si256,
    _mm256_fmadd_pd, _mm256_fmadd_ps, _mm256_loadu_pd, _mm256_loadu_ps, _mm256_max_pd,
    _mm256_max_ps, _mm256_min_epu8, _mm256_min_pd, _mm256_packs_epi32, _mm256_packus_epi16,
    _mm256_permutevar8x32_epi32, _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi32,
    _mm256_set1_pd, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_pd, _mm256_storeu_si256,
    _mm256_sub_epi32, _mm256_sub_pd,
};

use super::columns::sixteen;
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

    /// Codes of 16 channels of two pixels, each in half a register.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn codes(&self, t: [[__m256; 2]; 2]) -> __m256i {
        let round = _mm256_set1_ps(ROUND_F32);
        let (low, bits) = (_mm256_set1_ps(self.limits[0]), _mm256_set1_epi32(self.bits));
        let [first, second] = t.map(|t| {
            let [first, second] = [0, 1].map(|half| {
                let multipliers = load_f32(&self.multipliers, 8 * half);
                let q = _mm256_max_ps(_mm256_fmadd_ps(t[half], multipliers, round), low);
                _mm256_sub_epi32(_mm256_castps_si256(q), bits)
            });
            _mm256_packs_epi32(first, second)
        });
        // What is too large has become 255.
        let high = _mm256_set1_epi8(self.high.cast_signed());
        let codes = _mm256_min_epu8(_mm256_packus_epi16(first, second), high);
        // Packing leaves four channels of each pixel and half panel, in turns.
        _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
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
        self.bytes = self.narrow
            && outputs.len() <= self.roundings.len()
            && outputs.iter().all(|output| matches!(output.codes, CodesMut::U8(_)))
            && terms.residual.is_none_or(|source| matches!(source.codes, Codes::U8(_)));
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
        if !self.bytes {
            for (r, acc) in acc.iter().enumerate() {
                for (half, &acc) in acc.iter().enumerate() {
                    self.eight(acc, 8 * half, [y, x + r], terms, outputs);
                }
            }
            return;
        }
        let channel = self.panel * PANEL;
        let place = |layout: &MapLayout| (layout.offset(y, x) + channel, layout.stride());
        let residual = terms.residual.and_then(|source| match source.codes {
            Codes::U8(codes) => Some((codes, place(&source.layout))),
            Codes::U16(_) => None,
        });
        let mut places = [(0, 0); 2];
        for (places, output) in places.iter_mut().zip(&*outputs) {
            *places = place(&output.layout);
        }
        // Every sum of these is an integer below 2^24, or so large that the result saturates.
        let unit = _mm256_set1_ps(self.unit);
        for r in (0..MR).step_by(2) {
            let mut t = [acc[r], acc[MR.min(r + 2) - 1]].map(|acc| {
                [0, 1].map(|half| {
                    let bias = load_f32(&self.bias, 8 * half);
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[half]), unit, bias)
                })
            });
            if let Some((codes, (at, stride))) = residual {
                for (i, t) in t.iter_mut().enumerate() {
                    let codes = sixteen(codes, at + (r + i) * stride);
                    let halves = [codes, _mm_unpackhi_epi64(codes, codes)];
                    for (half, codes) in halves.into_iter().enumerate() {
                        let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
                        let multipliers = load_f32(&self.residual, 8 * half);
                        t[half] = _mm256_fmadd_ps(codes, multipliers, t[half]);
                    }
                }
            }
            let versions = outputs.iter_mut().zip(&self.roundings).zip(places);
            for ((output, rounding), (at, stride)) in versions {
                let CodesMut::U8(memory) = &mut output.codes else { unreachable!("all are bytes") };
                let codes = rounding.codes(t);
                let first = &mut memory[at + r * stride..][..rounding.count];
                store_bytes(first, _mm256_castsi256_si128(codes));
                if r + 1 < MR {
                    let second = &mut memory[at + (r + 1) * stride..][..rounding.count];
                    store_bytes(second, _mm256_extracti128_si256::<1>(codes));
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

/// The panel's part of per-channel values, filled up with zeros.
pub(super) fn padded<T, U: Default + Copy>(
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
pub(super) fn store_bytes(pixel: &mut [u8], codes: __m128i) {
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
