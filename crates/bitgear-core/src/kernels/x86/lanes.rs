//! From accumulators to stored codes, 16 channels at a time, with AVX-512.

use core::arch::x86_64::{
    __m512, __m512d, __m512i, _mm_loadu_si128, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8,
    _mm_storeu_si128, _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16, _mm512_add_epi32,
    _mm512_castpd_si512, _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi256_si512,
    _mm512_castsi512_si256, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepi32_pd,
    _mm512_cvtepi32_ps, _mm512_cvtepi64_epi32, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32,
    _mm512_cvtps_pd, _mm512_extractf32x8_ps, _mm512_extracti64x4_epi64, _mm512_fmadd_pd,
    _mm512_fmadd_ps, _mm512_inserti64x4, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32,
    _mm512_maskz_loadu_pd, _mm512_maskz_loadu_ps, _mm512_max_pd, _mm512_max_ps, _mm512_min_pd,
    _mm512_min_ps, _mm512_set1_epi32, _mm512_set1_pd, _mm512_set1_ps, _mm512_setzero_pd,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_sub_epi32,
};

use super::epilogue::{ROUND_F32, ROUND_F64, limits};
use crate::kernels::types::{Bias, Codes, CodesMut, MapLayout, Output, PANEL, Source, Terms};

/// Terms of one panel of 16 channels.
pub(super) struct Lanes {
    /// First channel.
    channel: usize,
    /// Channels in use.
    channels: usize,
    /// The same as lanes.
    mask: u16,
    /// 2^shift.
    unit: f32,
    factors: Factors,
    /// What the first versions of the result need in single precision.
    roundings: [Rounding; 2],
}

/// How single precision makes codes of t.
#[derive(Clone, Copy)]
struct Rounding {
    multiplier: __m512,
    low: __m512,
    high: __m512,
    /// The rounding constant's bits, less the zero.
    bits: __m512i,
}

impl Rounding {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(output: &Output<'_>, channel: usize) -> Self {
        let [low, high] = limits(output).map(|limit| _mm512_set1_ps(limit));
        Self {
            multiplier: multiplier(output, channel),
            low,
            high,
            bits: _mm512_set1_epi32(ROUND_F32.to_bits() as i32 - output.zero),
        }
    }
}

/// Codes of a panel from some pixel on.
#[derive(Default)]
struct Bytes<T> {
    codes: T,
    /// From pixel to pixel.
    stride: usize,
    /// From the end of a row to the next one's beginning.
    gap: usize,
}

/// Bias and residual multipliers.
enum Factors {
    Narrow { bias: __m512, residual: __m512 },
    Wide { bias: [__m512d; 2], residual: [__m512d; 2] },
}

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    pub(super) fn new(terms: &Terms<'_>, outputs: &[Output<'_>], panel: usize) -> Self {
        let channel = panel * PANEL;
        let (count, factors) = match terms.bias {
            Bias::Narrow { bias, residual } => {
                let [bias_lanes, residual] =
                    [bias, residual].map(|values| _mm512_cvtepi32_ps(load_i32(values, channel)));
                (bias.len(), Factors::Narrow { bias: bias_lanes, residual })
            }
            Bias::Wide { bias, residual } => {
                let [bias_lanes, residual] =
                    [bias, residual].map(|values| load_i64(values, channel));
                (bias.len(), Factors::Wide { bias: bias_lanes, residual })
            }
        };
        let channels = count.saturating_sub(channel).min(PANEL);
        // Spare places repeat the last version.
        let rounding =
            |index: usize| Rounding::new(&outputs[index.min(outputs.len() - 1)], channel);
        Self {
            channel,
            channels,
            mask: first(channels),
            unit: (1_u64 << terms.shift) as f32,
            factors,
            roundings: [rounding(0), rounding(1)],
        }
    }

    /// Finishes neighbouring pixels from (y, x) on, row after row. Their sums are the `panel`th of each array.
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    pub(super) fn finish<const NP: usize>(
        &self,
        sums: &[[__m512i; NP]],
        panel: usize,
        at: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        let row = (at[1], outputs[0].layout.width);
        match (&terms.residual, &mut *outputs) {
            (None, [Output { codes: CodesMut::U8(a), layout, .. }]) if self.is_narrow() => {
                let a = self.bytes_mut(a, layout, at);
                self.pixels::<NP, 1, false>(sums, panel, row, &Bytes::default(), [a]);
            }
            (
                None,
                [
                    Output { codes: CodesMut::U8(a), layout: of_a, .. },
                    Output { codes: CodesMut::U8(b), layout: of_b, .. },
                ],
            ) if self.is_narrow() => {
                let (a, b) = (self.bytes_mut(a, of_a, at), self.bytes_mut(b, of_b, at));
                self.pixels::<NP, 2, false>(sums, panel, row, &Bytes::default(), [a, b]);
            }
            (
                Some(Source { codes: Codes::U8(codes), layout: of_codes }),
                [Output { codes: CodesMut::U8(a), layout, .. }],
            ) if self.is_narrow() => {
                let codes = self.bytes(codes, of_codes, at);
                let a = self.bytes_mut(a, layout, at);
                self.pixels::<NP, 1, true>(sums, panel, row, &codes, [a]);
            }
            (
                Some(Source { codes: Codes::U8(codes), layout }),
                [
                    Output { codes: CodesMut::U8(a), layout: of_a, .. },
                    Output { codes: CodesMut::U8(b), layout: of_b, .. },
                ],
            ) if self.is_narrow() => {
                let codes = self.bytes(codes, layout, at);
                let (a, b) = (self.bytes_mut(a, of_a, at), self.bytes_mut(b, of_b, at));
                self.pixels::<NP, 2, true>(sums, panel, row, &codes, [a, b]);
            }
            _ => {
                let mut done = 0;
                while done < sums.len() {
                    let (y, x) = (at[0] + (at[1] + done) / row.1, (at[1] + done) % row.1);
                    let end = sums.len().min(done + row.1 - x);
                    self.in_blocks(&sums[done..end], panel, [y, x], terms, outputs);
                    done = end;
                }
            }
        }
    }

    /// [`Self::finish`] of pixels in one row.
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    fn in_blocks<const NP: usize>(
        &self,
        sums: &[[__m512i; NP]],
        panel: usize,
        [y, x]: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        const BLOCK: usize = 8;
        let (blocks, rest) = sums.as_chunks::<BLOCK>();
        for (block, sums) in blocks.iter().enumerate() {
            let mut acc = [_mm512_setzero_si512(); BLOCK];
            for (acc, sums) in acc.iter_mut().zip(sums) {
                *acc = sums[panel];
            }
            self.store(&acc, [y, x + BLOCK * block], terms, outputs);
        }
        let first = x + BLOCK * blocks.len();
        for (r, acc) in rest.iter().enumerate() {
            self.store(&[acc[panel]], [y, first + r], terms, outputs);
        }
    }

    fn bytes<'a>(
        &self,
        codes: &'a [u8],
        layout: &MapLayout,
        [y, x]: [usize; 2],
    ) -> Bytes<&'a [u8]> {
        let codes = &codes[layout.offset(y, x) + self.channel..];
        Bytes { codes, stride: layout.stride(), gap: gap(layout) }
    }

    fn bytes_mut<'a>(
        &self,
        codes: &'a mut [u8],
        layout: &MapLayout,
        [y, x]: [usize; 2],
    ) -> Bytes<&'a mut [u8]> {
        let codes = &mut codes[layout.offset(y, x) + self.channel..];
        Bytes { codes, stride: layout.stride(), gap: gap(layout) }
    }

    fn is_narrow(&self) -> bool {
        matches!(self.factors, Factors::Narrow { .. })
    }

    /// [`Self::finish`] in single precision for `V` versions in bytes, with a residual in bytes or without, beginning
    /// at a column of rows of a width.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    fn pixels<const NP: usize, const V: usize, const RESIDUAL: bool>(
        &self,
        sums: &[[__m512i; NP]],
        panel: usize,
        (column, width): (usize, usize),
        codes: &Bytes<&[u8]>,
        mut outputs: [Bytes<&mut [u8]>; V],
    ) {
        let Factors::Narrow { bias, residual } = self.factors else { unreachable!("it is narrow") };
        let (unit, round) = (_mm512_set1_ps(self.unit), _mm512_set1_ps(ROUND_F32));
        let (mask, whole) = (self.mask, self.mask == u16::MAX);
        let last = sums.len() - 1;
        let fits = |len: usize, stride: usize, gap: usize| {
            last * stride + (column + last) / width * gap + self.channels <= len
        };
        let mut to = [(core::ptr::null_mut(), 0, 0); V];
        for (to, output) in to.iter_mut().zip(&mut outputs) {
            assert!(fits(output.codes.len(), output.stride, output.gap), "outputs");
            *to = (output.codes.as_mut_ptr(), output.stride, output.gap);
        }
        assert!(!RESIDUAL || fits(codes.codes.len(), codes.stride, codes.gap), "residual");
        let (mut from, mut rest, mut run) = (codes.codes.as_ptr(), sums, width - column);
        loop {
            let (row, next) = rest.split_at(run.min(rest.len()));
            let (source, places) = (from, to);
            for (r, acc) in row.iter().enumerate() {
                // As in `store`.
                let mut t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[panel]), unit, bias);
                if RESIDUAL {
                    // SAFETY: the last pixel's channels end inside the memory, as asserted; the mask leaves out what lies
                    // beyond them.
                    let codes = unsafe {
                        let pixel = source.add(r * codes.stride);
                        if whole {
                            _mm_loadu_si128(pixel.cast())
                        } else {
                            _mm_maskz_loadu_epi8(mask, pixel.cast())
                        }
                    };
                    let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
                    t = _mm512_fmadd_ps(codes, residual, t);
                }
                for (&(pixels, stride, _), rounding) in places.iter().zip(&self.roundings) {
                    let q = _mm512_fmadd_ps(t, rounding.multiplier, round);
                    let q = _mm512_min_ps(_mm512_max_ps(q, rounding.low), rounding.high);
                    let q = _mm512_cvtepi32_epi8(_mm512_sub_epi32(
                        _mm512_castps_si512(q),
                        rounding.bits,
                    ));
                    // SAFETY: as above.
                    unsafe {
                        let pixel = pixels.add(r * stride);
                        if whole {
                            _mm_storeu_si128(pixel.cast(), q);
                        } else {
                            _mm_mask_storeu_epi8(pixel.cast(), mask, q);
                        }
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            (rest, run) = (next, width);
            // On to the next row: the assertions cover the last pixel of all.
            from = from.wrapping_add(row.len() * codes.stride + codes.gap);
            for (pixels, stride, gap) in &mut to {
                *pixels = pixels.wrapping_add(row.len() * *stride + *gap);
            }
        }
    }

    /// Finishes a block of pixels beginning at (y, x).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    pub(super) fn store<const MR: usize>(
        &self,
        acc: &[__m512i; MR],
        at: [usize; 2],
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        match self.factors {
            Factors::Narrow { bias, residual } => {
                // Every sum of these is an integer below 2^24, or so large that the result saturates.
                let unit = _mm512_set1_ps(self.unit);
                let mut t = [_mm512_setzero_ps(); MR];
                for (t, &acc) in t.iter_mut().zip(acc) {
                    *t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), unit, bias);
                }
                if let Some(source) = &terms.residual {
                    for (r, t) in t.iter_mut().enumerate() {
                        let codes = _mm512_cvtepi32_ps(self.residual_codes(source, at, r));
                        *t = _mm512_fmadd_ps(codes, residual, *t);
                    }
                }
                for (index, output) in outputs.iter_mut().enumerate() {
                    let rounding = match self.roundings.get(index) {
                        Some(rounding) => *rounding,
                        None => Rounding::new(output, self.channel),
                    };
                    self.narrow(&t, at, rounding, output);
                }
            }
            Factors::Wide { bias, residual } => {
                // Sums of integers below 2^53: exact.
                let unit = _mm512_set1_pd(f64::from(self.unit));
                let mut t = [[_mm512_setzero_pd(); 2]; MR];
                for (r, (t, &acc)) in t.iter_mut().zip(acc).enumerate() {
                    let acc = doubles(acc);
                    for half in 0..2 {
                        t[half] = _mm512_fmadd_pd(acc[half], unit, bias[half]);
                    }
                    if let Some(source) = &terms.residual {
                        let codes = doubles(self.residual_codes(source, at, r));
                        for half in 0..2 {
                            t[half] = _mm512_fmadd_pd(codes[half], residual[half], t[half]);
                        }
                    }
                }
                for output in outputs {
                    self.wide(&t, at, output);
                }
            }
        }
    }

    /// Rounds and stores one version.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    fn narrow<const MR: usize>(
        &self,
        t: &[__m512; MR],
        at: [usize; 2],
        Rounding { multiplier, low, high, bits }: Rounding,
        output: &mut Output<'_>,
    ) {
        let round = _mm512_set1_ps(ROUND_F32);
        let mut codes = [_mm512_setzero_si512(); MR];
        for (code, &t) in codes.iter_mut().zip(t) {
            let q = _mm512_fmadd_ps(t, multiplier, round);
            let q = _mm512_min_ps(_mm512_max_ps(q, low), high);
            *code = _mm512_sub_epi32(_mm512_castps_si512(q), bits);
        }
        self.write(&codes, at, output);
    }

    /// The same in double precision.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    fn wide<const MR: usize>(
        &self,
        t: &[[__m512d; 2]; MR],
        at: [usize; 2],
        output: &mut Output<'_>,
    ) {
        let multiplier = multiplier(output, self.channel);
        let multiplier = [
            _mm512_cvtps_pd(_mm512_castps512_ps256(multiplier)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(multiplier)),
        ];
        let round = _mm512_set1_pd(ROUND_F64);
        let [low, high] = [output.low, output.high].map(|code| {
            _mm512_set1_pd(ROUND_F64 + (i64::from(code) - i64::from(output.zero)) as f64)
        });
        let zero = _mm512_set1_epi32(output.zero);
        let mut codes = [_mm512_setzero_si512(); MR];
        for (code, t) in codes.iter_mut().zip(t) {
            let [first, second] = [0, 1].map(|half| {
                let q = _mm512_fmadd_pd(t[half], multiplier[half], round);
                let q = _mm512_min_pd(_mm512_max_pd(q, low), high);
                // The low half of the significand is that of the integer.
                _mm512_cvtepi64_epi32(_mm512_castpd_si512(q))
            });
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
            *code = _mm512_add_epi32(both, zero);
        }
        self.write(&codes, at, output);
    }

    /// Stores codes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn write<const MR: usize>(
        &self,
        q: &[__m512i; MR],
        [y, x]: [usize; 2],
        output: &mut Output<'_>,
    ) {
        let (at, stride) = (output.layout.offset(y, x) + self.channel, output.layout.stride());
        let mask = self.mask;
        let end = at + (MR - 1) * stride + mask.count_ones() as usize;
        assert!(end <= output.codes.len(), "output");
        match &mut output.codes {
            CodesMut::U8(codes) => {
                for (r, &q) in q.iter().enumerate() {
                    let q = _mm512_cvtepi32_epi8(q);
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
                for (r, &q) in q.iter().enumerate() {
                    let q = _mm512_cvtepi32_epi16(q);
                    // SAFETY: as above.
                    unsafe {
                        let pixel = codes.as_mut_ptr().add(at + r * stride);
                        _mm256_mask_storeu_epi16(pixel.cast(), mask, q);
                    }
                }
            }
            CodesMut::I32(scores) => {
                for (r, &q) in q.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe {
                        let pixel = scores.as_mut_ptr().add(at + r * stride);
                        _mm512_mask_storeu_epi32(pixel, mask, q);
                    }
                }
            }
        }
    }

    /// The residual's codes, `r` pixels to the right of (y, x).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn residual_codes(&self, source: &Source<'_>, [y, x]: [usize; 2], r: usize) -> __m512i {
        let at = source.layout.offset(y, x) + r * source.layout.stride() + self.channel;
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

/// Elements of a map between the end of a row and the next one's beginning.
fn gap(layout: &MapLayout) -> usize {
    layout.row() - layout.width * layout.stride()
}

/// A version's multipliers of 16 channels, zeros beyond the last.
#[inline]
#[target_feature(enable = "avx512f")]
fn multiplier(output: &Output<'_>, channel: usize) -> __m512 {
    let rest = &output.multipliers[channel..];
    // SAFETY: the mask leaves out what lies beyond the slice.
    unsafe { _mm512_maskz_loadu_ps(first(rest.len()), rest.as_ptr()) }
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
    match values.get(at..).unwrap_or_default() {
        // To read nothing from where no memory is takes some hundred cycles.
        [] => _mm512_setzero_si512(),
        // SAFETY: the mask leaves out what lies beyond the slice.
        rest => unsafe { _mm512_maskz_loadu_epi32(first(rest.len()), rest.as_ptr()) },
    }
}

/// 16 values below 2^53 from `at`, zeros beyond the end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_i64(values: &[i64], at: usize) -> [__m512d; 2] {
    let mut lanes = [0.0; PANEL];
    for (lane, &value) in lanes.iter_mut().zip(values.get(at..).unwrap_or_default()) {
        *lane = value as f64;
    }
    // SAFETY: the array holds 16 values.
    [0, 8].map(|half| unsafe { _mm512_maskz_loadu_pd(u8::MAX, lanes.as_ptr().add(half)) })
}

/// 16 integers as doubles.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn doubles(v: __m512i) -> [__m512d; 2] {
    [
        _mm512_cvtepi32_pd(_mm512_castsi512_si256(v)),
        _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64::<1>(v)),
    ]
}
