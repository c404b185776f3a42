//! Everything between MAC layers. One version for all CPUs.

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

pub(super) fn average(
    input: &Source<'_>,
    zero: i32,
    window: &PoolShape,
    outputs: &mut [Output<'_>],
) {
    for y in 0..window.out_height {
        for x in 0..window.out_width {
            let [rows, columns] = inside(window, &input.layout, [y, x]);
            let count = rows.len() * columns.len();
            for channel in 0..input.layout.channels {
                let mut t = -(count as i64) * i64::from(zero);
                for row in rows.clone() {
                    for column in columns.clone() {
                        let index = input.layout.offset(row, column) + channel;
                        t += i64::from(input.codes.at(index));
                    }
                }
                for output in &mut *outputs {
                    store(output, t, (y, x), channel, output.multipliers[count - 1]);
                }
            }
        }
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

pub(super) fn gather(
    source: &Codes<'_>,
    indices: &[u32],
    mut output: CodesMut<'_>,
    layout: &MapLayout,
) {
    for (pixel, indices) in indices.chunks_exact(layout.channels).enumerate() {
        let to = layout.offset(pixel / layout.width, pixel % layout.width);
        for (channel, &index) in indices.iter().enumerate() {
            if index != u32::MAX {
                output.set(to + channel, i32::from(source.at(index as usize)));
            }
        }
    }
}
