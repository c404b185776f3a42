//! Convolutions whose filters read one channel each.
//!
//! A plane is laid out with its padding, the pixels that a stride skips apart from those that it meets, so
//! that every tap reads the whole result's pixels from one run of memory. What lies between rows is computed,
//! too, and left out in the end.

use crate::graph::Conv;
use crate::vector::vectorized;

/// Where the pixels of a plane are, and room for one.
pub(super) struct Depthwise {
    size: [usize; 2],
    out: [usize; 2],
    pads: [usize; 2],
    strides: [usize; 2],
    /// Rows and columns of what every so many rows and columns leave of a padded plane.
    part: [usize; 2],
    /// Where each tap's pixels begin, a row of taps after the other.
    taps: Vec<usize>,
    /// Taps of a row.
    columns: usize,
    /// [row's place within a stride][column's][part].
    plane: Vec<f32>,
    /// The result, with rows as far apart as those of a part.
    result: Vec<f32>,
}

impl Depthwise {
    /// For operands and results of so many (channels, rows, columns).
    pub(super) fn new(conv: &Conv, shape: &[usize], out_shape: &[usize]) -> Self {
        let [_, _, kh, kw] = *conv.weight.shape() else { unreachable!("checked on import") };
        let out = [out_shape[1], out_shape[2]];
        // Along an axis of a single result nothing is skipped.
        let stride = |axis: usize| if out[axis] == 1 { 1 } else { conv.strides[axis] };
        let (strides, dilations) = ([stride(0), stride(1)], conv.dilations);
        let reach = |axis: usize, taps: usize| {
            (out[axis] - 1) + (taps - 1) * dilations[axis] / strides[axis] + 1
        };
        let part = [reach(0, kh), reach(1, kw)];
        let taps = (0..kh).flat_map(|ky| (0..kw).map(move |kx| [ky, kx]));
        let begin = |[ky, kx]: [usize; 2]| {
            let [y, x] = [ky * dilations[0], kx * dilations[1]];
            let at = (y % strides[0] * strides[1] + x % strides[1]) * part[0] + y / strides[0];
            at * part[1] + x / strides[1]
        };
        Self {
            size: [shape[1], shape[2]],
            out,
            pads: [conv.pads[0], conv.pads[1]],
            strides,
            part,
            taps: taps.map(begin).collect(),
            columns: kw,
            plane: vec![0.0; strides[0] * strides[1] * part[0] * part[1]],
            result: vec![0.0; (out[0] - 1) * part[1] + out[1]],
        }
    }

    /// Adds the result of a filter to `out`, which holds the bias.
    pub(super) fn run(&mut self, weight: &[f32], input: &[f32], out: &mut [f32]) {
        let (part, stride) = (self.part, self.strides[1]);
        for run in runs(self.size, self.pads, self.strides, part) {
            let to = &mut self.plane[run.part..][..run.len];
            let from = &input[run.pixel..];
            // Copies of neighbours are quicker where they are known to be.
            if stride == 1 {
                to.copy_from_slice(&from[..run.len]);
            } else {
                to.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, from)| *to = *from);
            }
        }
        self.result.fill(out[0]);
        let rows = self.taps.chunks_exact(self.columns).zip(weight.chunks_exact(self.columns));
        for (taps, weights) in rows {
            let result = &mut self.result[..];
            let pixels = |tap: usize| &self.plane[tap..][..result.len()];
            match (taps, weights) {
                (&[a, b, c], &[u, v, w]) => {
                    let (a, b, c) = (pixels(a), pixels(b), pixels(c));
                    vectorized(move || {
                        for (((sum, a), b), c) in result.iter_mut().zip(a).zip(b).zip(c) {
                            *sum = *sum + u * a + v * b + w * c;
                        }
                    });
                }
                (&[a, b, c, d, e], &[u, v, w, x, y]) => {
                    let (a, b, c) = (pixels(a), pixels(b), pixels(c));
                    let (d, e) = (pixels(d), pixels(e));
                    vectorized(move || {
                        let five = a.iter().zip(b).zip(c).zip(d).zip(e);
                        for (sum, ((((a, b), c), d), e)) in result.iter_mut().zip(five) {
                            *sum = *sum + u * a + v * b + w * c + x * d + y * e;
                        }
                    });
                }
                _ => {
                    for (&tap, &weight) in taps.iter().zip(weights) {
                        add_product(weight, &self.plane[tap..], &mut self.result);
                    }
                }
            }
        }
        for (out, result) in out.chunks_exact_mut(self.out[1]).zip(self.result.chunks(part[1])) {
            out.copy_from_slice(&result[..out.len()]);
        }
    }

    /// Adds the gradient of a filter's input, given that of its result, to `into`.
    pub(super) fn pull_back(&mut self, weight: &[f32], gradient: &[f32], into: &mut [f32]) {
        let (part, stride) = (self.part, self.strides[1]);
        self.plane.fill(0.0);
        let rows = gradient.chunks_exact(self.out[1]).zip(self.result.chunks_mut(part[1]));
        for (gradient, result) in rows {
            let (result, between) = result.split_at_mut(gradient.len());
            result.copy_from_slice(gradient);
            between.fill(0.0);
        }
        for (&tap, &weight) in self.taps.iter().zip(weight) {
            add_product(weight, &self.result, &mut self.plane[tap..]);
        }
        for run in runs(self.size, self.pads, self.strides, part) {
            let from = &self.plane[run.part..][..run.len];
            let to = into[run.pixel..].iter_mut().step_by(stride);
            to.zip(from).for_each(|(to, from)| *to += from);
        }
    }
}

/// Pixels of a row that lie next to each other in a part.
struct Run {
    /// The first pixel in the plane without padding; the others follow at the horizontal stride.
    pixel: usize,
    /// The first pixel in the laid-out plane.
    part: usize,
    len: usize,
}

/// All pixels that a tap may read, but padding.
fn runs(
    size: [usize; 2],
    pads: [usize; 2],
    strides: [usize; 2],
    part: [usize; 2],
) -> impl Iterator<Item = Run> {
    let rows = (0..size[0]).map(move |y| (y, y + pads[0]));
    let rows = rows.filter(move |(_, padded)| padded / strides[0] < part[0]);
    rows.flat_map(move |(y, padded)| {
        (0..strides[1]).map(move |place| {
            // The first column whose padded place within a stride is this one.
            let x = (place + strides[1] - pads[1] % strides[1]) % strides[1];
            let column = (x + pads[1]) / strides[1];
            let there = size[1].saturating_sub(x).div_ceil(strides[1]);
            let row = (padded % strides[0] * strides[1] + place) * part[0] + padded / strides[0];
            let len = there.min(part[1].saturating_sub(column));
            Run { pixel: y * size[1] + x, part: row * part[1] + column, len }
        })
    })
    .filter(|run| run.len > 0)
}

/// Adds the products of a weight with as many pixels as both have.
fn add_product(weight: f32, pixels: &[f32], sums: &mut [f32]) {
    vectorized(move || {
        sums.iter_mut().zip(pixels).for_each(|(sum, pixel)| *sum += weight * pixel);
    });
}
