//! From real values to codes.

#![allow(clippy::inline_always, reason = "all of it is compiled again for each set of kernels")]

use super::types::{CodesMut, MapLayout};

/// How real values become codes: clamp(round-half-even(value / scale) + zero, 0, max), computed in
/// doubles; what is not a number becomes 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantization {
    /// Distance between two codes, positive.
    pub scale: f64,
    /// Code of the value 0.
    pub zero: u16,
    /// Largest code.
    pub max: u16,
}

impl Quantization {
    /// Limits of the result before the zero is added. They are integers, so it does not matter
    /// whether a value is limited before or after it is rounded.
    #[inline(always)]
    fn limits(self) -> (i32, i32) {
        (-i32::from(self.zero), i32::from(self.max) - i32::from(self.zero))
    }

    #[inline(always)]
    fn code(self, value: f32) -> u16 {
        // Adding 1.5 · 2^52 rounds half to even and leaves the integer in the low bits.
        const ROUND: f64 = 6_755_399_441_055_744.0;
        let (low, high) = self.limits();
        let limited = (f64::from(value) / self.scale).max(f64::from(low)).min(f64::from(high));
        ((limited + ROUND).to_bits() as u16).wrapping_add(self.zero)
    }

    /// Codes of up to 8 bits in single precision, without division. Returns whether all of them are
    /// proved right.
    #[inline(always)]
    fn quickly(self, values: &[f32], codes: &mut [u8]) -> bool {
        const ROUND: f32 = 12_582_912.0;
        // Two roundings of results of at most 2^8 are off by less than 2^-14: only next to the middle
        // between two integers can they matter.
        const CLEAR: f32 = 0.5 - 1.0 / 16384.0;
        let factor = (1.0 / self.scale) as f32;
        if !factor.is_normal() {
            return false;
        }
        let (low, high) = self.limits();
        let (low, high) = (low as f32, high as f32);
        let mut unclear = false;
        for (code, &value) in codes.iter_mut().zip(values) {
            let limited = (value * factor).max(low).min(high);
            let rounded = limited + ROUND;
            unclear |= (limited - (rounded - ROUND)).abs() > CLEAR;
            *code = (rounded.to_bits() as u8).wrapping_add(self.zero as u8);
        }
        !unclear
    }

    /// Codes of up to 8 bits.
    #[inline(always)]
    fn bytes(self, values: &[f32], codes: &mut [u8]) {
        if !self.quickly(values, codes) {
            for (code, &value) in codes.iter_mut().zip(values) {
                *code = self.code(value) as u8;
            }
        }
    }
}

/// Values that are converted together.
const BLOCK: usize = 256;

/// `values` are in the order of the map, or with `planar` channel by channel.
#[inline(always)]
pub(super) fn quantize(
    values: &[f32],
    planar: bool,
    quantization: Quantization,
    output: CodesMut<'_>,
    layout: &MapLayout,
) {
    match output {
        CodesMut::U8(codes) if planar && layout.stride() == 4 => {
            interleaved(values, quantization, codes, layout);
        }
        CodesMut::U8(codes) => each_run(layout, planar, |first, run, step| {
            let block = &mut [0; BLOCK][..run.len()];
            quantization.bytes(&values[first..first + run.len()], block);
            for (code, &quantized) in codes[run.start..].iter_mut().step_by(step).zip(&*block) {
                *code = quantized;
            }
        }),
        CodesMut::U16(codes) => each_run(layout, planar, |first, run, step| {
            let values = &values[first..first + run.len()];
            for (code, &value) in codes[run.start..].iter_mut().step_by(step).zip(values) {
                *code = quantization.code(value);
            }
        }),
        CodesMut::I32(_) => panic!("scores are computed, not quantized"),
    }
}

/// As [`quantize`], channel by channel, for up to four of them: pixels are put together in registers.
#[inline(always)]
fn interleaved(values: &[f32], quantization: Quantization, codes: &mut [u8], layout: &MapLayout) {
    let MapLayout { height, width, channels, .. } = *layout;
    // Spare channels are left as they are.
    let spare = u32::MAX.checked_shl(8 * channels as u32).unwrap_or(0);
    let mut blocks = [[0; BLOCK]; 4];
    for y in 0..height {
        let row = &mut codes[layout.offset(y, 0)..][..4 * width];
        for (first, pixels) in (0..).step_by(BLOCK).zip(row.chunks_mut(4 * BLOCK)) {
            let pixels = pixels.as_chunks_mut::<4>().0;
            for (channel, block) in blocks.iter_mut().take(channels).enumerate() {
                let first = (channel * height + y) * width + first;
                let values = &values[first..first + pixels.len()];
                quantization.bytes(values, &mut block[..pixels.len()]);
            }
            let [first, second, third, fourth] = &blocks;
            let codes = first.iter().zip(second).zip(third).zip(fourth);
            for (pixel, (((&a, &b), &c), &d)) in pixels.iter_mut().zip(codes) {
                let [a, b, c, d] = [a, b, c, d].map(u32::from);
                let together = a | (b << 8) | (c << 16) | (d << 24);
                *pixel = (u32::from_le_bytes(*pixel) & spare | together).to_le_bytes();
            }
        }
    }
}

/// Visits runs of neighbouring values of at most [`BLOCK`]: (index of the first value; where in memory
/// the first code is, and on as many as there are values; elements from code to code).
#[inline(always)]
fn each_run(
    layout: &MapLayout,
    planar: bool,
    mut visit: impl FnMut(usize, core::ops::Range<usize>, usize),
) {
    let MapLayout { height, width, channels, .. } = *layout;
    // Rows of one channel, or the channels of one pixel.
    let (runs, len, step) =
        if planar { (channels, width, layout.stride()) } else { (width, channels, 1) };
    for y in 0..height {
        for run in 0..runs {
            let (first, at) = if planar {
                ((run * height + y) * width, layout.offset(y, 0) + run)
            } else {
                ((y * width + run) * channels, layout.offset(y, run))
            };
            for done in (0..len).step_by(BLOCK) {
                let at = at + done * step;
                visit(first + done, at..at + BLOCK.min(len - done), step);
            }
        }
    }
}
