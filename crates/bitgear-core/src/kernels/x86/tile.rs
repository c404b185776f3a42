//! Accumulators of a block of `MR` neighbouring pixels and 16 output channels.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16,
};

use crate::kernels::types::ConvShape;

/// Accumulators: [pixel][half of the panel], 32-bit lanes.
pub(super) type Tile<const MR: usize> = [[__m256i; 2]; MR];

/// Stored codes.
pub(super) trait Element: Copy {}

impl Element for u8 {}

impl Element for u16 {}

/// 32 bytes of packed weights.
#[inline]
#[target_feature(enable = "avx2")]
fn load<T>(weights: &[T], step: usize) -> __m256i {
    let len = 32 / size_of::<T>();
    let chunk = &weights[step * len..][..len];
    // SAFETY: the slice is 32 bytes long.
    unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) }
}

/// The runs of memory that a window reads, as (offset from the window's first element, elements).
/// Without horizontal dilation the taps of a row are one run.
#[inline]
pub(super) fn runs(shape: &ConvShape) -> impl Iterator<Item = (usize, usize)> + use<'_> {
    let stride = shape.input.stride();
    let (per_row, len) = if shape.dilations[1] == 1 {
        (1, shape.kernel[1] * stride)
    } else {
        (shape.kernel[1], stride)
    };
    (0..shape.kernel[0]).flat_map(move |ky| (0..per_row).map(move |kx| (shape.tap(ky, kx), len)))
}

/// Byte products, summed in 16 bits over `drain` steps. `at` is the first pixel's window.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn bytes<const MR: usize>(
    shape: &ConvShape,
    weights: &[i8],
    input: &[u8],
    at: usize,
    drain: usize,
) -> Tile<MR> {
    let even = drain.is_multiple_of(2) && runs(shape).all(|(_, len)| len.is_multiple_of(8));
    match drain {
        ..8 if even => briefly::<MR, 2>(shape, weights, input, at),
        ..4 => briefly::<MR, 1>(shape, weights, input, at),
        _ => drained::<MR>(shape, weights, input, at, drain),
    }
}

/// As [`bytes`], widening after `DRAIN` steps; every run has a multiple of so many.
#[inline]
#[target_feature(enable = "avx2")]
fn briefly<const MR: usize, const DRAIN: usize>(
    shape: &ConvShape,
    weights: &[i8],
    input: &[u8],
    at: usize,
) -> Tile<MR> {
    let pixel = shape.strides[1] * shape.input.stride();
    let ones = _mm256_set1_epi16(1);
    let mut acc = [[_mm256_setzero_si256(); 2]; MR];
    let mut step = 0;
    for (offset, len) in runs(shape) {
        for done in (0..len).step_by(4 * DRAIN) {
            let weights: [[__m256i; 2]; DRAIN] =
                core::array::from_fn(|i| [0, 1].map(|half| load(weights, 2 * (step + i) + half)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let codes: [__m256i; DRAIN] = core::array::from_fn(|i| {
                    broadcast(input, at + r * pixel + offset + done + 4 * i)
                });
                for (half, acc) in acc.iter_mut().enumerate() {
                    let mut sum = _mm256_maddubs_epi16(codes[0], weights[0][half]);
                    for i in 1..DRAIN {
                        let products = _mm256_maddubs_epi16(codes[i], weights[i][half]);
                        sum = _mm256_add_epi16(sum, products);
                    }
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(sum, ones));
                }
            }
            step += DRAIN;
        }
    }
    acc
}

/// As [`bytes`].
#[inline]
#[target_feature(enable = "avx2")]
fn drained<const MR: usize>(
    shape: &ConvShape,
    weights: &[i8],
    input: &[u8],
    at: usize,
    drain: usize,
) -> Tile<MR> {
    let pixel = shape.strides[1] * shape.input.stride();
    let ones = _mm256_set1_epi16(1);
    let mut acc = [[_mm256_setzero_si256(); 2]; MR];
    let mut sums = [[_mm256_setzero_si256(); 2]; MR];
    let (mut step, mut left) = (0, drain);
    for (offset, len) in runs(shape) {
        let mut done = 0;
        while done < len {
            let count = left.min((len - done) / 4);
            for i in 0..count {
                let (low, high) =
                    (load(weights, 2 * (step + i)), load(weights, 2 * (step + i) + 1));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let codes = broadcast(input, at + r * pixel + offset + done + 4 * i);
                    sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(codes, low));
                    sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(codes, high));
                }
            }
            step += count;
            done += 4 * count;
            left -= count;
            if left == 0 {
                widen(&mut acc, &mut sums, ones);
                left = drain;
            }
        }
    }
    widen(&mut acc, &mut sums, ones);
    acc
}

/// Adds the 16-bit sums to the accumulators and clears them.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const MR: usize>(acc: &mut Tile<MR>, sums: &mut Tile<MR>, ones: __m256i) {
    for (acc, sums) in acc.iter_mut().zip(sums) {
        for (acc, sum) in acc.iter_mut().zip(sums) {
            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(*sum, ones));
            *sum = _mm256_setzero_si256();
        }
    }
}

/// 16-bit products summed in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pairs<const MR: usize, T: Element>(
    shape: &ConvShape,
    weights: &[i16],
    input: &[T],
    at: usize,
) -> Tile<MR> {
    let pixel = shape.strides[1] * shape.input.stride();
    let mut acc = [[_mm256_setzero_si256(); 2]; MR];
    let mut step = 0;
    for (offset, len) in runs(shape) {
        for done in (0..len).step_by(4) {
            let weights: [__m256i; 4] = core::array::from_fn(|i| load(weights, 2 * step + i));
            for (r, acc) in acc.iter_mut().enumerate() {
                let codes = two_pairs(input, at + r * pixel + offset + done);
                for half in 0..2 {
                    let first = _mm256_madd_epi16(codes[0], weights[half]);
                    let second = _mm256_madd_epi16(codes[1], weights[2 + half]);
                    acc[half] = _mm256_add_epi32(acc[half], _mm256_add_epi32(first, second));
                }
            }
            step += 2;
        }
    }
    acc
}

/// As [`pairs`], with low and high byte of each activation in accumulators of their own:
/// [low, high] of each pixel and half panel.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn split<const MR: usize>(
    shape: &ConvShape,
    weights: &[i16],
    input: &[u16],
    at: usize,
) -> [Tile<2>; MR] {
    let pixel = shape.strides[1] * shape.input.stride();
    let byte = _mm256_set1_epi16(0xff);
    let mut acc = [[[_mm256_setzero_si256(); 2]; 2]; MR];
    let mut step = 0;
    for (offset, len) in runs(shape) {
        for done in (0..len).step_by(2) {
            let weights = [load(weights, 2 * step), load(weights, 2 * step + 1)];
            for (r, acc) in acc.iter_mut().enumerate() {
                let codes = broadcast(input, at + r * pixel + offset + done);
                let bytes = [_mm256_and_si256(codes, byte), _mm256_srli_epi16::<8>(codes)];
                for (acc, bytes) in acc.iter_mut().zip(bytes) {
                    for (acc, weights) in acc.iter_mut().zip(weights) {
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(bytes, weights));
                    }
                }
            }
            step += 1;
        }
    }
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
