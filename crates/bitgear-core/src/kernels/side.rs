//! Everything between MAC layers. One version for all CPUs.
#![allow(clippy::inline_always, reason = "averages are compiled again for each set of kernels")]

use super::scalar::store;
use super::types::{Codes, CodesMut, MapLayout, Output, PoolShape, Source};

/// Index of the element of a broadcast operand that belongs to an element of the result.
fn broadcast(layout: &MapLayout, y: usize, x: usize, channel: usize) -> usize {
    let (y, x) = if layout.height == 1 && layout.width == 1 { (0, 0) } else { (y, x) };
    layout.offset(y, x) + if layout.channels == 1 { 0 } else { channel }
}

/// Computes t for every element of the result and stores all versions.
fn map(outputs: &mut [Output<'_>], t: impl Fn(usize, usize, usize) -> i64) {
    let Some(shape) = outputs.first().map(|o| o.layout) else {
        return;
    };
    for y in 0..shape.height {
        for x in 0..shape.width {
            for channel in 0..shape.channels {
                let t = t(y, x, channel);
                for output in &mut *outputs {
                    store(output, t, (y, x), channel, output.multipliers[channel]);
                }
            }
        }
    }
}

pub(super) fn combine(operands: &[(Source<'_>, &[i64])], bias: &[i64], outputs: &mut [Output<'_>]) {
    map(outputs, |y, x, channel| {
        operands.iter().fold(bias[channel], |t, (source, multipliers)| {
            let index = broadcast(&source.layout, y, x, channel);
            t + multipliers[channel] * i64::from(source.codes.at(index))
        })
    });
}

pub(super) fn product(a: (Source<'_>, i32), b: (Source<'_>, i32), outputs: &mut [Output<'_>]) {
    map(outputs, |y, x, channel| {
        let centred = |(source, zero): &(Source<'_>, i32)| {
            let index = broadcast(&source.layout, y, x, channel);
            i64::from(source.codes.at(index)) - i64::from(*zero)
        };
        centred(&a) * centred(&b)
    });
}

/// The window's pixels that lie inside the map: first and last row and column, exclusive.
fn inside(window: &PoolShape, layout: &MapLayout, out: [usize; 2]) -> [core::ops::Range<usize>; 2] {
    let size = [layout.height, layout.width];
    [0, 1].map(|axis| {
        let start = out[axis] * window.strides[axis];
        let first = start.saturating_sub(window.pads[axis]);
        let end = (start + window.kernel[axis]).saturating_sub(window.pads[axis]);
        first..end.min(size[axis])
    })
}

#[inline(always)]
pub(super) fn average(
    input: Source<'_>,
    zero: i32,
    window: &PoolShape,
    outputs: &mut [Output<'_>],
) {
    const BLOCK: usize = 16;
    for y in 0..window.out_height {
        for x in 0..window.out_width {
            let [rows, columns] = inside(window, &input.layout, [y, x]);
            let count = rows.len() * columns.len();
            for first in (0..input.layout.channels).step_by(BLOCK) {
                let block = first..input.layout.channels.min(first + BLOCK);
                let mut sums = [-(count as i64) * i64::from(zero); BLOCK];
                let codes = input.layout.offset(rows.start, columns.start) + first;
                let pixels =
                    [(rows.len(), input.layout.row()), (columns.len(), input.layout.stride())];
                match input.codes {
                    Codes::U8(all) if block.len() == BLOCK => {
                        add_bytes(&mut sums, &all[codes..], pixels);
                    }
                    Codes::U8(all) => add(&mut sums[..block.len()], &all[codes..], pixels),
                    Codes::U16(all) => add(&mut sums[..block.len()], &all[codes..], pixels),
                }
                for output in &mut *outputs {
                    let multiplier = output.multipliers[count - 1];
                    if let Some(rounded) = rounded(&sums, multiplier) {
                        let at = output.layout.offset(y, x);
                        for (channel, rounded) in block.clone().zip(rounded) {
                            let value =
                                rounded.saturating_add(output.zero).clamp(output.low, output.high);
                            output.codes.set(at + channel, value);
                        }
                        continue;
                    }
                    for (channel, &t) in block.clone().zip(&sums) {
                        store(output, t, (y, x), channel, multiplier);
                    }
                }
            }
        }
    }
}

/// What [`requantize`](crate::fixed::requantize) gives for all of some sums, where double precision is exact: 28 bits by
/// 24 in the product, at most 2^30 in the result.
#[inline(always)]
pub(super) fn rounded<const BLOCK: usize>(
    sums: &[i64; BLOCK],
    multiplier: f32,
) -> Option<[i32; BLOCK]> {
    const TERM: i64 = 1 << 28;
    // Floats of this size are whole numbers, and sums with them round half to even.
    const ROUND: f64 = 1.5 * (1_u64 << 52) as f64;
    let exact = multiplier.abs() <= 4.0 && sums.iter().all(|t| (-TERM..TERM).contains(t));
    let round = |t: i64| ((f64::from(t as i32) * f64::from(multiplier) + ROUND) - ROUND) as i32;
    exact.then(|| sums.map(round))
}

/// Adds the codes of so many rows and columns of pixels, so many elements apart.
#[inline(always)]
fn add<T: Copy + Into<i64>>(
    sums: &mut [i64],
    codes: &[T],
    [(rows, row), (columns, column)]: [(usize, usize); 2],
) {
    for at in (0..rows).flat_map(|y| (0..columns).map(move |x| y * row + x * column)) {
        for (sum, &code) in sums.iter_mut().zip(&codes[at..]) {
            *sum += code.into();
        }
    }
}

/// The same for whole blocks, many codes at a time.
#[inline(always)]
fn add_bytes<const BLOCK: usize>(
    sums: &mut [i64; BLOCK],
    codes: &[u8],
    [(rows, row), (columns, column)]: [(usize, usize); 2],
) {
    // So many bytes add up to less than 2^16.
    const SAFE: usize = 256;
    let mut words = [0_u16; BLOCK];
    let mut seen = 0;
    for y in 0..rows {
        for x in 0..columns {
            if seen == SAFE {
                widen(sums, &words);
                (words, seen) = ([0; BLOCK], 0);
            }
            let at = y * row + x * column;
            let codes: &[u8; BLOCK] = codes[at..].first_chunk().expect("a whole block");
            for (word, &code) in words.iter_mut().zip(codes) {
                *word += u16::from(code);
            }
            seen += 1;
        }
    }
    widen(sums, &words);
}

#[inline(always)]
fn widen<const BLOCK: usize>(sums: &mut [i64; BLOCK], words: &[u16; BLOCK]) {
    for (sum, &word) in sums.iter_mut().zip(words) {
        *sum += i64::from(word);
    }
}

pub(super) fn max_pool(
    input: &Source<'_>,
    window: &PoolShape,
    mut output: CodesMut<'_>,
    layout: &MapLayout,
) {
    for y in 0..window.out_height {
        for x in 0..window.out_width {
            let [rows, columns] = inside(window, &input.layout, [y, x]);
            for channel in 0..layout.channels {
                let mut largest = 0;
                for row in rows.clone() {
                    for column in columns.clone() {
                        let index = input.layout.offset(row, column) + channel;
                        largest = largest.max(input.codes.at(index));
                    }
                }
                output.set(layout.offset(y, x) + channel, i32::from(largest));
            }
        }
    }
}

pub(super) fn lookup(
    input: &Source<'_>,
    table: &[u16],
    mut output: CodesMut<'_>,
    layout: &MapLayout,
) {
    for y in 0..layout.height {
        for x in 0..layout.width {
            let (from, to) = (input.layout.offset(y, x), layout.offset(y, x));
            for channel in 0..layout.channels {
                let code = table[usize::from(input.codes.at(from + channel))];
                output.set(to + channel, i32::from(code));
            }
        }
    }
}

/// Neighbouring elements that move together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first one in the source's memory.
    pub from: u32,
    /// Index of the first one in the result's memory.
    pub to: u32,
    /// Number of elements.
    pub len: u32,
}

pub(super) fn gather(source: Codes<'_>, runs: &[Run], output: CodesMut<'_>) {
    match (source, output) {
        (Codes::U8(source), CodesMut::U8(output)) => copy(source, runs, output),
        (Codes::U16(source), CodesMut::U16(output)) => copy(source, runs, output),
        (source, output) => panic!("cannot move {source:?} to {output:?}"),
    }
}

fn copy<T: Copy>(source: &[T], runs: &[Run], output: &mut [T]) {
    for &Run { from, to, len } in runs {
        let (from, to, len) = (from as usize, to as usize, len as usize);
        let (source, output) = (&source[from..from + len], &mut output[to..to + len]);
        // Pixels of 16 channels and multiples: faster than a call for each.
        let (blocks, rest) = source.as_chunks::<16>();
        let (out_blocks, out_rest) = output.as_chunks_mut::<16>();
        out_blocks.copy_from_slice(blocks);
        out_rest.copy_from_slice(rest);
    }
}
