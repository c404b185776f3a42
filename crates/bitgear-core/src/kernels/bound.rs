//! How large sums can get, from the actual weights, and which kernel class that allows.
#![cfg_attr(
    not(all(feature = "std", target_arch = "x86_64")),
    allow(dead_code, reason = "only SIMD kernels have a choice")
)]

use super::pack::step_width;
use super::types::{Class, ConvShape, PANEL};
use super::{lookup, winograd, winograd_bytes};
use crate::bits::BitWidth;

/// Smallest and largest Σ weight · code of one output channel, over all inputs of `activation`
/// bits. `plain` is in the order of [`Weights::plain`](super::Weights::plain).
pub fn channel_bound(
    shape: &ConvShape,
    plain: &[i16],
    activation: BitWidth,
    channel: usize,
) -> (i64, i64) {
    let filter = &plain[channel * shape.filter_len()..][..shape.filter_len()];
    let largest = i64::from(activation.code_max());
    let (negative, positive) = signed_sums(filter.iter().copied());
    (negative * largest, positive * largest)
}

/// The extremes of [`channel_bound`] over all channels.
pub fn accumulator_bound(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> (i64, i64) {
    (0..shape.out_channels)
        .map(|c| channel_bound(shape, plain, activation, c))
        .fold((0, 0), |(low, high), (channel_low, channel_high)| {
            (low.min(channel_low), high.max(channel_high))
        })
}

/// Sums of the negative and of the positive values.
fn signed_sums(weights: impl Iterator<Item = i16>) -> (i64, i64) {
    weights.fold((0, 0), |(negative, positive), w| {
        (negative + i64::from(w.min(0)), positive + i64::from(w.max(0)))
    })
}

/// Proof that single precision gives the integers of the specification for one channel.
///
/// Floats hold all integers up to 2^24, and rounding by adding 1.5 · 2^23 is exact for results below
/// 2^22. What is larger may be rounded if it is certain to saturate. No result reaches 2^23, so that its sum with
/// 1.5 · 2^23 is positive, and floats are ordered like the integers that have their bits.
#[derive(Clone, Copy, Debug)]
pub struct SinglePrecision {
    /// Smallest and largest accumulator, see [`channel_bound`].
    pub acc: (i64, i64),
    /// Bits that the accumulator is shifted up.
    pub shift: u32,
    /// Bias.
    pub bias: i64,
    /// Largest |residual multiplier · code|; that code is odd, as 2^bits - 1 is.
    pub residual: i64,
}

impl SinglePrecision {
    /// Whether an output clamp(round(t · multiplier) + zero, low, high) is exact, the bias being one of
    /// [`Bias::Narrow`](super::Bias::Narrow).
    pub fn is_exact(&self, multiplier: f32, zero: i32, limits: [i32; 2]) -> bool {
        if i32::try_from(self.bias).is_err() {
            return false;
        }
        // Floats that are multiples of a power of two are as exact as what is left without it.
        let zeros = |value: i64| if value == 0 { u32::MAX } else { value.trailing_zeros() };
        let common = self.shift.min(zeros(self.bias)).min(zeros(self.residual));
        let rest = Self {
            acc: self.acc,
            shift: self.shift - common,
            bias: self.bias >> common,
            residual: self.residual >> common,
        };
        rest.is_exact_without_power(multiplier * (1_u32 << common) as f32, zero, limits)
    }

    fn is_exact_without_power(&self, multiplier: f32, zero: i32, [low, high]: [i32; 2]) -> bool {
        const TERM: i128 = 1 << 24;
        const RESULT: f64 = (1 << 22) as f64;
        let sum = i128::from(self.acc.0).abs().max(i128::from(self.acc.1).abs());
        let shifted = sum << self.shift;
        let (bias, residual) = (i128::from(self.bias).abs(), i128::from(self.residual));
        let most = shifted + bias + residual;
        let largest = most as f64 * f64::from(multiplier).abs();
        if largest >= 2.0 * RESULT {
            return false;
        }
        let limits = [low, high].map(|code| (i64::from(code) - i64::from(zero)) as f64);
        let reach = limits[0].abs().max(limits[1].abs());
        if most <= TERM {
            return reach < RESULT || largest < RESULT;
        }
        // Whether all t of at least so much saturate, although rounding took a little off them.
        let saturates = |least: i128| {
            least as f64 * f64::from(multiplier).abs() * (1.0 - 1.0 / 1024.0) >= reach + 1.0
        };
        // Where only the last sum can be rounded, that makes it no less than 2^24.
        let last = bias <= TERM && sum <= TERM && residual <= TERM;
        let last = last && (residual == 0 || shifted + bias <= TERM);
        // Elsewhere rounding occurs only where |acc << shift| > 2^24 - others, that is,
        // |t| > 2^24 - 2 · others. Three roundings of 2^-24 each of at most (2^24 / least) · |t| are less
        // than |t| / 2^10.
        let least = TERM - 2 * (bias + residual);
        let any = last && saturates(TERM) || least >= 1 << 13 && saturates(least);
        reach < RESULT && (any || self.is_constant(multiplier, limits))
    }

    /// Whether all t are beyond the same limit of the result, although up to five roundings, those of the terms
    /// among them, moved them.
    fn is_constant(&self, multiplier: f32, [low, high]: [f64; 2]) -> bool {
        let acc = [self.acc.0, self.acc.1].map(|acc| i128::from(acc) << self.shift);
        let (bias, residual) = (i128::from(self.bias), i128::from(self.residual));
        let most = acc[0].abs().max(acc[1].abs()) + bias.abs() + residual;
        let error = (most >> 21) + 1;
        let results = [acc[0] + bias - residual - error, acc[1] + bias + residual + error]
            .map(|t| t as f64 * f64::from(multiplier));
        results.iter().all(|&result| result <= low - 1.0)
            || results.iter().all(|&result| result >= high + 1.0)
    }
}

fn is_bytes(plain: &[i16]) -> bool {
    plain.iter().all(|w| i8::try_from(*w).is_ok())
}

fn fits_i32((low, high): (i64, i64)) -> bool {
    i64::from(i32::MIN) <= low && high <= i64::from(i32::MAX)
}

/// The fastest class of AVX-512 VNNI, if one is exact.
pub(super) fn quads(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> Option<Class> {
    let winograd = winograd_bytes::quads_pay(shape)
        && winograd_bytes::quads_are_exact(shape, plain, activation);
    if winograd {
        return Some(Class::WinogradQuads { offset: winograd_bytes::offset(activation) });
    }
    every_product(shape, plain, activation)
}

fn every_product(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> Option<Class> {
    let bytes = activation.get() <= 8 && is_bytes(plain);
    let exact = bytes && fits_i32(accumulator_bound(shape, plain, activation));
    let class = if shape.is_depthwise() { Class::DepthwiseQuads } else { Class::Quads };
    (exact && (shape.is_depthwise() || shape.groups == 1)).then_some(class)
}

/// The class of AMX or AVX-512 VNNI, if it is exact.
pub(super) fn matrix(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> Option<Class> {
    // Fewer pixels leave most of a tile empty.
    const FEWEST: usize = 8;
    let class = every_product(shape, plain, activation)?;
    // Runs of memory that don't fall into few equal parts leave them empty, too.
    let run = shape.kernel[1] * shape.input.stride();
    let parts = run.div_ceil(64);
    let full =
        shape.out_width >= FEWEST && (parts..=2 * parts).any(|parts| run.is_multiple_of(4 * parts));
    Some(if class == Class::Quads && full { Class::Matrix } else { class })
}

/// The fastest exact class of AVX2.
pub(super) fn class(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> Class {
    if lookup::is_exact(shape, plain, activation) && lookup::pays(shape) {
        return Class::Lookup;
    }
    let folded = shape.folded();
    let direct = direct(folded.as_ref().unwrap_or(shape), plain, activation);
    let Some(cost) = cost(folded.as_ref().unwrap_or(shape), direct) else { return direct };
    let bound = accumulator_bound(shape, plain, activation);
    let bytes = winograd_bytes::is_exact(shape, plain, activation).then(|| {
        let offset = winograd_bytes::offset(activation);
        (winograd_bytes::cost(shape), Class::WinogradBytes { offset })
    });
    let words = winograd::is_exact(shape, plain, activation, bound)
        .then(|| (winograd::cost(shape), Class::Winograd));
    let least = [bytes, words].into_iter().flatten().min_by_key(|&(cost, _)| cost);
    least.filter(|&(least, _)| least < cost).map_or(direct, |(_, class)| class)
}

/// About how many vector instructions a dense layer takes that does every multiply-accumulate, what finishes
/// sums left out.
fn cost(shape: &ConvShape, class: Class) -> Option<usize> {
    let panels = shape.out_channels.div_ceil(PANEL);
    let codes = shape.kernel[0] * shape.kernel[1] * shape.input.stride();
    let steps = shape.out_height * shape.out_width * panels * codes / step_width(class);
    match class {
        Class::Bytes { drain } => Some(4 * steps + 4 * steps / drain),
        Class::Pairs | Class::BytePairs => Some(4 * steps),
        _ => None,
    }
}

/// Up to so many outputs a channel, weights are better widened than fetched in 16 bits: measured on 7 x 7 maps and
/// fully connected layers, and on larger maps, where it does not pay.
const FEW_PIXELS: usize = 64;

/// The fastest exact class of AVX2 that does every multiply-accumulate.
fn direct(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> Class {
    let bound = accumulator_bound(shape, plain, activation);
    if shape.is_depthwise() {
        // No part of a sum leaves the bounds of the whole.
        let words = i64::from(i16::MIN) <= bound.0 && bound.1 <= i64::from(i16::MAX);
        return if activation.get() <= 8 && words && is_bytes(plain) {
            Class::DepthwiseBytes
        } else if activation.get() <= 8 && fits_i32(bound) {
            Class::DepthwisePairs
        } else {
            Class::Depthwise { wide: !fits_i32(bound) }
        };
    }
    if shape.groups != 1 {
        return Class::Scalar;
    }
    if activation.get() <= 8 && is_bytes(plain) && fits_i32(bound) {
        let drain = drain(shape, plain, activation);
        // Where weights serve few pixels, the time goes into fetching them.
        let few = shape.out_height * shape.out_width <= FEW_PIXELS;
        if drain > 0 {
            return Class::Bytes { drain };
        } else if few {
            return Class::BytePairs;
        }
    }
    if activation.get() <= 15 && fits_i32(bound) {
        return Class::Pairs;
    }
    // The low byte's sum is bounded by that of 8-bit activations, the high byte's no wider.
    let byte = BitWidth::new(8).expect("8 is a bit-width");
    if activation.get() > 8 && fits_i32(accumulator_bound(shape, plain, byte)) {
        return Class::Split;
    }
    Class::Scalar
}

/// How many steps' products can be summed in 16 bits: for every output channel, every pair of
/// channels that share a 16-bit lane and every run of so many steps, the extremes stay within an
/// i16. The largest of a few candidates; 0 when not even one step is safe.
fn drain(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> usize {
    let width = step_width(Class::Bytes { drain: 1 });
    let groups = shape.input.stride() / width;
    let steps = shape.kernel[0] * shape.kernel[1] * groups;
    let largest = i64::from(activation.code_max());
    let safe = |drain: usize| {
        plain.chunks_exact(shape.filter_len()).all(|filter| {
            (0..2).all(|lane| {
                (0..steps).step_by(drain).all(|first| {
                    let run = first..steps.min(first + drain);
                    let (negative, positive) = signed_sums(run.flat_map(|step| {
                        let (tap, channel) = (step / groups, step % groups * width + 2 * lane);
                        let pair = channel..shape.input.channels.min(channel + 2);
                        pair.map(move |c| filter[tap * shape.input.channels + c])
                    }));
                    negative * largest >= i64::from(i16::MIN)
                        && positive * largest <= i64::from(i16::MAX)
                })
            })
        })
    };
    // Runs start at multiples of their length, so that a shorter one need not be safe where a longer
    // one is: each is checked by itself.
    let candidates = [steps, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1];
    candidates.into_iter().filter(|&n| n <= steps).find(|&n| safe(n)).unwrap_or(0)
}
