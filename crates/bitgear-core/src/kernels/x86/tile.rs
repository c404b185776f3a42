//! Accumulators of a block of `MR` neighbouring pixels and 16 output channels.

use core::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_cvtepi8_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_srli_epi16,
};

use crate::kernels::types::ConvShape;

/// Accumulators: [pixel][half of the panel], 32-bit lanes.
pub(super) type Tile<const MR: usize> = [[__m256i; 2]; MR];

/// Stored codes.
pub(super) trait Element: Copy + Default {}

impl Element for u8 {}

impl Element for u16 {}

/// 32 bytes of packed weights.
#[inline]
#[target_feature(enable = "avx2")]
fn load<T>(weights: &[T], index: usize) -> __m256i {
    let len = 32 / size_of::<T>();
    let chunk = &weights[index * len..][..len];
    // SAFETY: the slice is 32 bytes long.
    unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) }
}

/// Packed weights of 16-bit products.
pub(super) trait Weight: Copy {}

impl Weight for i8 {}

impl Weight for i16 {}

/// Sixteen packed weights as 16-bit words.
#[inline]
#[target_feature(enable = "avx2")]
fn words<W: Weight>(weights: &[W], index: usize) -> __m256i {
    let chunk = &weights[16 * index..][..16];
    // SAFETY: the slice holds sixteen weights of one or two bytes.
    unsafe {
        if size_of::<W>() == 2 {
            _mm256_loadu_si256(chunk.as_ptr().cast())
        } else {
            _mm256_cvtepi8_epi16(_mm_loadu_si128(chunk.as_ptr().cast()))
        }
    }
}

/// The runs of memory that a window reads, as (offset from the window's first element, elements).
/// Without horizontal dilation the taps of a row are one run.
#[inline]
pub(super) fn runs(shape: &ConvShape) -> impl Iterator<Item = (usize, usize)> + use<'_> {
    let windows = Windows::new(shape, 0, 0);
    (0..windows.rows).flat_map(move |ky| {
        (0..windows.runs).map(move |kx| (ky * windows.row + kx * windows.column, windows.len))
    })
}

/// Where the windows of neighbouring outputs lie in memory, in elements.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    /// First element of the first window.
    pub(super) at: usize,
    /// From a window to the next.
    pub(super) pixel: usize,
    /// Rows of a window.
    pub(super) rows: usize,
    /// From row to row of a window.
    pub(super) row: usize,
    /// Runs of memory that a row of a window reads: the whole row, or with dilation its taps.
    pub(super) runs: usize,
    /// From run to run.
    pub(super) column: usize,
    /// Elements of a run.
    pub(super) len: usize,
}

impl Windows {
    /// Those of outputs from (y, x) on.
    #[inline]
    pub(super) fn new(shape: &ConvShape, y: usize, x: usize) -> Self {
        let stride = shape.input.stride();
        let (runs, len) = if shape.dilations[1] == 1 {
            (1, shape.kernel[1] * stride)
        } else {
            (shape.kernel[1], stride)
        };
        Self {
            at: shape.origin(y, x),
            pixel: shape.strides[1] * stride,
            rows: shape.kernel[0],
            row: shape.tap(1, 0),
            runs,
            column: shape.tap(0, 1),
            len,
        }
    }

    /// Those from some outputs further on.
    #[inline]
    pub(super) fn after(self, outputs: usize) -> Self {
        Self { at: self.at + outputs * self.pixel, ..self }
    }

    /// Elements from the first to the last of a row of a window.
    pub(super) fn width(&self) -> usize {
        (self.runs - 1) * self.column + self.len
    }
}

/// Evaluates `$body` for every run of the first of `$windows`, with the index of its first element.
macro_rules! each_run {
    ($windows:ident, $at:ident => $body:expr) => {
        for ky in 0..$windows.rows {
            for kx in 0..$windows.runs {
                let $at = $windows.at + ky * $windows.row + kx * $windows.column;
                $body
            }
        }
    };
}

pub(super) use each_run;

/// Byte products, summed in 16 bits over `DRAIN` steps; every run has a multiple of so many.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(super) fn briefly<const MR: usize, const HALVES: usize, const DRAIN: usize>(
    windows: &Windows,
    weights: &[i8],
    input: &[u8],
    sums: &mut [Tile<MR>],
) {
    let ones = _mm256_set1_epi16(1);
    for (block, sums) in sums.iter_mut().enumerate() {
        let windows = windows.after(block * MR);
        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
        let mut weights = weights.chunks_exact(64 * DRAIN);
        each_run!(windows, at => {
            for (done, weights) in (0..windows.len).step_by(4 * DRAIN).zip(&mut weights) {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let mut codes = [ones; DRAIN];
                    for (i, codes) in codes.iter_mut().enumerate() {
                        *codes = broadcast(input, at + r * windows.pixel + done + 4 * i);
                    }
                    for (half, acc) in acc[..HALVES].iter_mut().enumerate() {
                        let mut sum = _mm256_maddubs_epi16(codes[0], load(weights, half));
                        for (i, &codes) in codes.iter().enumerate().skip(1) {
                            let weights = load(weights, 2 * i + half);
                            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, weights));
                        }
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(sum, ones));
                    }
                }
            }
        });
        *sums = acc;
    }
}

/// Byte products, summed in 16 bits over `drain` steps.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(super) fn drained<const MR: usize, const HALVES: usize>(
    windows: &Windows,
    weights: &[i8],
    input: &[u8],
    drain: usize,
    sums: &mut [Tile<MR>],
) {
    let ones = _mm256_set1_epi16(1);
    for (block, sums) in sums.iter_mut().enumerate() {
        let windows = windows.after(block * MR);
        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
        let mut words = [[_mm256_setzero_si256(); 2]; MR];
        let mut weights = weights.chunks_exact(64);
        let mut left = drain;
        each_run!(windows, at => {
            let mut done = 0;
            while done < windows.len {
                let end = windows.len.min(done + 4 * left);
                left -= (end - done) / 4;
                for (done, weights) in (done..end).step_by(4).zip(&mut weights) {
                    for (r, words) in words.iter_mut().enumerate() {
                        let codes = broadcast(input, at + r * windows.pixel + done);
                        for (half, words) in words[..HALVES].iter_mut().enumerate() {
                            let products = _mm256_maddubs_epi16(codes, load(weights, half));
                            *words = _mm256_add_epi16(*words, products);
                        }
                    }
                }
                done = end;
                if left == 0 {
                    widen(&mut acc, &mut words, ones);
                    left = drain;
                }
            }
        });
        widen(&mut acc, &mut words, ones);
        *sums = acc;
    }
}

/// The same for windows of `ROWS` runs of `STEPS` steps each, all of which can be summed in 16 bits: with few steps,
/// counting them would take longer than multiplying.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(super) fn few<const HALVES: usize, const ROWS: usize, const STEPS: usize>(
    windows: &Windows,
    weights: &[i8],
    input: &[u8],
    sums: &mut [[__m256i; 2]],
) {
    let ones = _mm256_set1_epi16(1);
    let weights: &[[[i8; 64]; STEPS]; ROWS] = weights
        .as_chunks()
        .0
        .as_chunks()
        .0
        .first_chunk()
        .expect("a panel has as many steps as a window");
    for (pixel, sums) in sums.iter_mut().enumerate() {
        let at = windows.at + pixel * windows.pixel;
        let mut words = [_mm256_setzero_si256(); 2];
        for (ky, weights) in weights.iter().enumerate() {
            for (step, weights) in weights.iter().enumerate() {
                let codes = broadcast(input, at + ky * windows.row + 4 * step);
                for (half, words) in words[..HALVES].iter_mut().enumerate() {
                    let products = _mm256_maddubs_epi16(codes, load(weights, half));
                    *words = _mm256_add_epi16(*words, products);
                }
            }
        }
        *sums = words.map(|words| _mm256_madd_epi16(words, ones));
    }
}

/// Adds the 16-bit sums to the accumulators and clears them.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const MR: usize>(acc: &mut Tile<MR>, words: &mut Tile<MR>, ones: __m256i) {
    for (acc, words) in acc.iter_mut().zip(words) {
        for (acc, words) in acc.iter_mut().zip(words) {
            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(*words, ones));
            *words = _mm256_setzero_si256();
        }
    }
}

/// 16-bit products summed in 32 bits.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(super) fn pairs<const MR: usize, const HALVES: usize, T: Element, W: Weight>(
    windows: &Windows,
    weights: &[W],
    input: &[T],
    sums: &mut [Tile<MR>],
) {
    for (block, sums) in sums.iter_mut().enumerate() {
        let windows = windows.after(block * MR);
        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
        let mut weights = weights.chunks_exact(64);
        each_run!(windows, at => {
            for (done, weights) in (0..windows.len).step_by(4).zip(&mut weights) {
                let weights = [0, 1, 2, 3].map(|half| words(weights, half));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let codes = two_pairs(input, at + r * windows.pixel + done);
                    for (half, acc) in acc[..HALVES].iter_mut().enumerate() {
                        let first = _mm256_madd_epi16(codes[0], weights[half]);
                        let second = _mm256_madd_epi16(codes[1], weights[2 + half]);
                        *acc = _mm256_add_epi32(*acc, _mm256_add_epi32(first, second));
                    }
                }
            }
        });
        *sums = acc;
    }
}

/// As [`pairs`], with low and high byte of each activation in accumulators of their own:
/// [low, high] of each pixel and half panel.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn split<const MR: usize>(
    windows: Windows,
    weights: &[i16],
    input: &[u16],
) -> [Tile<2>; MR] {
    let byte = _mm256_set1_epi16(0xff);
    let mut acc = [[[_mm256_setzero_si256(); 2]; 2]; MR];
    let mut weights = weights.chunks_exact(32);
    each_run!(windows, at => {
        for (done, weights) in (0..windows.len).step_by(2).zip(&mut weights) {
            let weights = [load(weights, 0), load(weights, 1)];
            for (r, acc) in acc.iter_mut().enumerate() {
                let codes = broadcast(input, at + r * windows.pixel + done);
                let bytes = [_mm256_and_si256(codes, byte), _mm256_srli_epi16::<8>(codes)];
                for (acc, bytes) in acc.iter_mut().zip(bytes) {
                    for (acc, weights) in acc.iter_mut().zip(weights) {
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(bytes, weights));
                    }
                }
            }
        }
    });
    acc
}

/// Four neighbouring codes, two and two as 16-bit halves of every 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn two_pairs<T: Element>(input: &[T], index: usize) -> [__m256i; 2] {
    debug_assert!(index + 4 <= input.len(), "window inside the operand");
    // SAFETY: `check_conv` proved that every pixel's window lies inside the operand, whose channels
    // come in groups of 4.
    unsafe {
        let codes = input.as_ptr().add(index).cast::<i32>();
        if size_of::<T>() == 2 {
            return [codes, codes.add(1)].map(|pair| _mm256_set1_epi32(pair.read_unaligned()));
        }
        let codes = _mm256_set1_epi32(codes.read_unaligned());
        // A negative index gives zero.
        let widen = |low: i32, high: i32| {
            let bytes = low | 0x80 << 8 | high << 16 | (0x80 << 24);
            _mm256_shuffle_epi8(codes, _mm256_set1_epi32(bytes))
        };
        [widen(0, 1), widen(2, 3)]
    }
}

/// Neighbouring codes in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast<T: Element>(input: &[T], index: usize) -> __m256i {
    debug_assert!(index + 4 / size_of::<T>() <= input.len(), "window inside the operand");
    // SAFETY: `check_conv` proved that every pixel's window lies inside the operand, whose channels
    // come in groups of 4.
    let codes = unsafe { input.as_ptr().add(index).cast::<i32>().read_unaligned() };
    _mm256_set1_epi32(codes)
}
