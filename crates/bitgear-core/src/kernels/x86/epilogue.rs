//! From accumulators to stored codes, eight channels at a time.

use core::arch::x86_64::{
    __m128i, __m256, __m256d, __m256i, _mm_loadl_epi64, _mm_storel_epi64, _mm_storeu_si128,
    _mm256_add_epi32, _mm256_castpd_ps, _mm256_castpd_si256, _mm256_castps_pd, _mm256_castps_si256,
    _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cvtepi32_pd, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtps_pd, _mm256_extractf128_ps, _mm256_extracti128_si256,
    _mm256_fmadd_pd, _mm256_fmadd_ps, _mm256_loadu_pd, _mm256_loadu_ps, _mm256_max_epu8,
    _mm256_max_pd, _mm256_min_epu8, _mm256_min_pd, _mm256_packs_epi32, _mm256_packus_epi16,
    _mm256_permute4x64_pd, _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi32,
    _mm256_set1_pd, _mm256_set1_ps, _mm256_setr_epi32, _mm256_shuffle_ps, _mm256_sub_epi32,
};

use crate::kernels::types::{Bias, Codes, CodesMut, MapLayout, Output, PANEL, Terms};

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
    pub(super) narrow: bool,
    /// 2^shift.
    pub(super) unit: f32,
    /// Panel whose terms are loaded.
    pub(super) panel: usize,
    pub(super) bias: [f32; PANEL],
    pub(super) residual: [f32; PANEL],
    pub(super) wide_bias: [f64; PANEL],
    pub(super) wide_residual: [f64; PANEL],
    /// For the first versions of the result.
    roundings: [Rounding; 2],
    /// Whether all versions have a rounding and are stored in bytes, as the residual is.
    bytes: bool,
}

/// How single precision makes codes of t.
#[derive(Clone, Copy)]
struct Rounding {
    multipliers: [f32; PANEL],
    /// See [`limits`].
    limits: [f32; 2],
    /// The rounding constant's bits, less the zero.
    bits: i32,
    /// Smallest and largest code.
    codes: [u8; 2],
    /// Channels in use.
    count: usize,
}

impl Rounding {
    const NONE: Self =
        Self { multipliers: [0.0; PANEL], limits: [0.0; 2], bits: 0, codes: [0; 2], count: 0 };

    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(output: &Output<'_>, panel: usize) -> Self {
        Self {
            multipliers: padded(output.multipliers, panel, |&m| m),
            limits: limits(output),
            bits: ROUND_F32.to_bits() as i32 - output.zero,
            codes: [output.low, output.high].map(|code| code.clamp(0, 255) as u8),
            count: (output.layout.channels - panel * PANEL).min(PANEL),
        }
    }

    /// Read once: as far as the compiler knows, stores to bytes might change what is in memory.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn loaded(&self) -> Loaded {
        Loaded {
            multipliers: [load_f32(&self.multipliers, 0), load_f32(&self.multipliers, 8)],
            bits: _mm256_set1_epi32(self.bits),
            codes: self.codes.map(|code| _mm256_set1_epi8(code.cast_signed())),
        }
    }
}

/// A rounding in registers.
#[derive(Clone, Copy)]
struct Loaded {
    multipliers: [__m256; 2],
    bits: __m256i,
    codes: [__m256i; 2],
}

impl Loaded {
    /// Codes of 16 channels of two pixels, each in half a register, from sums of results before the zero is
    /// added and the rounding constant.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn codes(&self, results: [[__m256i; 2]; 2]) -> __m256i {
        let [first, second] = results.map(|results| {
            let [first, second] = results.map(|results| _mm256_sub_epi32(results, self.bits));
            _mm256_packs_epi32(first, second)
        });
        // What is too small or too large for a byte has become 0 or 255.
        let codes = _mm256_packus_epi16(first, second);
        let codes = _mm256_max_epu8(_mm256_min_epu8(codes, self.codes[1]), self.codes[0]);
        // Packing leaves four channels of each pixel and half panel, in turns.
        _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// Codes of neighbouring pixels, from the panel's first channel of the first one on, sixteen of each.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    codes: &'a [u8],
    /// From pixel to pixel.
    stride: usize,
}

/// Bytes from the first of so many pixels' first channel to the last one's sixteenth.
fn reach(pixels: usize, stride: usize) -> usize {
    (pixels - 1) * stride + PANEL
}

/// Most pixels that are finished together.
const MOST: usize = 64;

/// So many pixels' codes, zeros beyond the end of memory.
#[cold]
fn copied(pixels: Pixels<'_>, count: usize) -> [u8; MOST * PANEL] {
    let mut copy = [0; MOST * PANEL];
    for (i, copy) in copy.as_chunks_mut::<PANEL>().0.iter_mut().take(count).enumerate() {
        let rest = pixels.codes.get(i * pixels.stride..).unwrap_or_default();
        copy.iter_mut().zip(rest).for_each(|(copy, &code)| *copy = code);
    }
    copy
}

/// Where codes of neighbouring pixels go, from the panel's first channel of the first one on.
struct Version<'a> {
    rounding: &'a Rounding,
    memory: &'a mut [u8],
    /// From pixel to pixel.
    stride: usize,
    /// Whether all sixteen channels of all pixels are in use.
    full: bool,
}

impl Version<'_> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&mut self, pixel: usize, codes: __m128i) {
        if self.full {
            let at = pixel * self.stride;
            debug_assert!(at + PANEL <= self.memory.len(), "pixel inside the result");
            // SAFETY: `finish` has seen that the last of its pixels has sixteen bytes, so all have.
            return unsafe { _mm_storeu_si128(self.memory.as_mut_ptr().add(at).cast(), codes) };
        }
        let pixel = &mut self.memory[pixel * self.stride..][..self.rounding.count];
        store_sixteen(pixel, codes);
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
    #[target_feature(enable = "avx2")]
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
        assert!((1..=MOST).contains(&sums.len()), "so many pixels are finished together");
        let place = |layout: &MapLayout| layout.offset(y, x) + self.panel * PANEL;
        let copy;
        let mut residual = terms.residual.and_then(|source| match source.codes {
            Codes::U8(codes) => {
                let (at, stride) = (place(&source.layout), source.layout.stride());
                Some(Pixels { codes: &codes[at..], stride })
            }
            Codes::U16(_) => None,
        });
        if let Some(pixels) = residual
            && reach(sums.len(), pixels.stride) > pixels.codes.len()
        {
            copy = copied(pixels, sums.len());
            residual = Some(Pixels { codes: &copy, stride: PANEL });
        }
        let mut versions = outputs.iter_mut().zip(&self.roundings).map(|(output, rounding)| {
            let (at, stride) = (place(&output.layout), output.layout.stride());
            let CodesMut::U8(memory) = &mut output.codes else { unreachable!("all are bytes") };
            let memory = &mut memory[at..];
            let full = rounding.count == PANEL && reach(sums.len(), stride) <= memory.len();
            Version { rounding, memory, stride, full }
        });
        match (versions.next(), versions.next()) {
            (Some(first), Some(second)) => self.versions(sums, residual, [first, second]),
            (Some(only), None) => self.versions(sums, residual, [only]),
            _ => {}
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn versions<const VERSIONS: usize>(
        &self,
        sums: &[[__m256i; 2]],
        residual: Option<Pixels<'_>>,
        versions: [Version<'_>; VERSIONS],
    ) {
        let nothing = Pixels { codes: &[], stride: 0 };
        match residual {
            Some(residual) if self.narrow => self.narrow::<true, _>(sums, residual, versions),
            Some(residual) => self.wide::<true, _>(sums, residual, versions),
            None if self.narrow => self.narrow::<false, _>(sums, nothing, versions),
            None => self.wide::<false, _>(sums, nothing, versions),
        }
    }

    /// In single precision: every sum is an integer below 2^24, or so large that the result saturates.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn narrow<const RESIDUAL: bool, const VERSIONS: usize>(
        &self,
        sums: &[[__m256i; 2]],
        residual: Pixels<'_>,
        versions: [Version<'_>; VERSIONS],
    ) {
        let unit = _mm256_set1_ps(self.unit);
        let halves = |values: &[f32; PANEL]| [load_f32(values, 0), load_f32(values, 8)];
        let (bias, factors) = (halves(&self.bias), halves(&self.residual));
        let round = _mm256_set1_ps(ROUND_F32);
        let term = |pixel, half: usize, sums| {
            let t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), unit, bias[half]);
            if !RESIDUAL {
                return t;
            }
            let codes = _mm256_cvtepi32_ps(eight_of(residual, pixel, half));
            _mm256_fmadd_ps(codes, factors[half], t)
        };
        let result = |_: &Rounding, loaded: &Loaded, half: usize, t| {
            _mm256_castps_si256(_mm256_fmadd_ps(t, loaded.multipliers[half], round))
        };
        store(sums, versions, term, result);
    }

    /// In double precision: every sum is an integer below 2^53.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn wide<const RESIDUAL: bool, const VERSIONS: usize>(
        &self,
        sums: &[[__m256i; 2]],
        residual: Pixels<'_>,
        versions: [Version<'_>; VERSIONS],
    ) {
        let unit = _mm256_set1_pd(f64::from(self.unit));
        let round = _mm256_set1_pd(ROUND_F64);
        let single = _mm256_set1_epi32(ROUND_F32.to_bits().cast_signed());
        let term = |pixel, half: usize, sums| {
            let (sums, bias) = (doubles(sums), load_f64(&self.wide_bias, 8 * half));
            let t = [0, 1].map(|i| _mm256_fmadd_pd(sums[i], unit, bias[i]));
            if !RESIDUAL {
                return t;
            }
            let codes = doubles(eight_of(residual, pixel, half));
            let factors = load_f64(&self.wide_residual, 8 * half);
            [0, 1].map(|i| _mm256_fmadd_pd(codes[i], factors[i], t[i]))
        };
        let result = |rounding: &Rounding, loaded: &Loaded, half: usize, t: [__m256d; 2]| {
            // The same limits, by another rounding constant.
            let [low, high] = rounding
                .limits
                .map(|limit| _mm256_set1_pd(f64::from(limit) - f64::from(ROUND_F32) + ROUND_F64));
            let multipliers = widened(loaded.multipliers[half]);
            let [first, second] = [0, 1].map(|i| {
                let result = _mm256_fmadd_pd(t[i], multipliers[i], round);
                _mm256_castpd_ps(_mm256_min_pd(_mm256_max_pd(result, low), high))
            });
            // Integers are the low words of such doubles.
            let words = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(first, second));
            let results = _mm256_castpd_si256(_mm256_permute4x64_pd::<0xd8>(words));
            _mm256_add_epi32(results, single)
        };
        store(sums, versions, term, result);
    }
}

/// Stores codes of the pixels whose sums are given. `term` gives t for the number of a pixel and a half of the
/// panel, `result` the sum of a version's result and rounding constant.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn store<const VERSIONS: usize, T: Copy>(
    sums: &[[__m256i; 2]],
    mut versions: [Version<'_>; VERSIONS],
    term: impl Fn(usize, usize, __m256i) -> T,
    result: impl Fn(&Rounding, &Loaded, usize, T) -> __m256i,
) {
    let loaded = versions.each_ref().map(|version| version.rounding.loaded());
    let both = |pixel, sums: [__m256i; 2]| [term(pixel, 0, sums[0]), term(pixel, 1, sums[1])];
    let (pairs, last) = sums.as_chunks::<2>();
    for (i, &[first, second]) in pairs.iter().enumerate() {
        let t = [both(2 * i, first), both(2 * i + 1, second)];
        for (version, loaded) in versions.iter_mut().zip(&loaded) {
            let half = |half: usize, t: T| result(version.rounding, loaded, half, t);
            let codes = loaded.codes(t.map(|t| [half(0, t[0]), half(1, t[1])]));
            version.store(2 * i, _mm256_castsi256_si128(codes));
            version.store(2 * i + 1, _mm256_extracti128_si256::<1>(codes));
        }
    }
    if let &[last] = last {
        let t = both(sums.len() - 1, last);
        for (version, loaded) in versions.iter_mut().zip(&loaded) {
            let half = |half: usize, t: T| result(version.rounding, loaded, half, t);
            let codes = loaded.codes([[half(0, t[0]), half(1, t[1])]; 2]);
            version.store(sums.len() - 1, _mm256_castsi256_si128(codes));
        }
    }
}

/// Codes of half a panel of a pixel.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_of(pixels: Pixels<'_>, pixel: usize, half: usize) -> __m256i {
    let at = pixel * pixels.stride + 8 * half;
    debug_assert!(at + 8 <= pixels.codes.len(), "pixel inside the residual");
    // SAFETY: `finish` has seen that the last of its pixels has sixteen codes, so all have.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(pixels.codes.as_ptr().add(at).cast())) }
}

/// The panel's part of per-channel values, filled up with zeros.
#[inline]
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
pub(super) fn widened(v: __m256) -> [__m256d; 2] {
    [_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v))]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_f64(values: &[f64; PANEL], lane: usize) -> [__m256d; 2] {
    let eight = &values[lane..lane + 8];
    // SAFETY: the slice holds eight values.
    unsafe { [_mm256_loadu_pd(eight.as_ptr()), _mm256_loadu_pd(eight[4..].as_ptr())] }
}

/// Eight values from `at`, zeros beyond the end.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_f32(values: &[f32], at: usize) -> __m256 {
    let mut rest = [0.0; 8];
    let eight = values.get(at..at + 8).unwrap_or_else(|| {
        let tail = values.get(at..).unwrap_or_default();
        rest[..tail.len()].copy_from_slice(tail);
        &rest
    });
    // SAFETY: the slice holds eight values.
    unsafe { _mm256_loadu_ps(eight.as_ptr()) }
}

/// Stores at most sixteen bytes, as many as the pixel has.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_sixteen(pixel: &mut [u8], codes: __m128i) {
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
