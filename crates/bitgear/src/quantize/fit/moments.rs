//! First and second moments of a layer's unfolded input and of what its result should be.
//!
//! Everything that a layer's weights are fitted by is in them, so the data is seen once.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::graph::Op;
use crate::vector::vectorized;

/// Samples are dealt to so many parts, each summed up by one thread: sums don't depend on how many
/// threads there are.
const PARTS: usize = 8;
/// Of which so many are held out.
const HELD_OUT: usize = 2;
/// Rows that are multiplied at once.
const BLOCK: usize = 1024;
/// Rows that moments are made of: at least, and per column.
const ROWS: usize = 24_576;
const ROWS_PER_COLUMN: usize = 48;
/// The same for layers of single-channel groups, which have many small problems.
const DEPTHWISE_ROWS: usize = 6_144;

/// Sums over rows x (an unfolded input) and t (the wanted result) of one group of channels.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    pub(crate) rows: f64,
    pub(crate) x: Vec<f64>,
    pub(crate) t: Vec<f64>,
    /// Σ x xᵀ, (K, K); the lower triangle until [`Moments::finish`].
    pub(crate) xx: Mat<f64>,
    /// Σ t xᵀ, (R, K).
    pub(crate) tx: Mat<f64>,
    /// Σ t² of each output channel.
    pub(crate) tt: Vec<f64>,
}

impl Moments {
    fn new(outputs: usize, columns: usize) -> Self {
        Self {
            rows: 0.0,
            x: vec![0.0; columns],
            t: vec![0.0; outputs],
            xx: Mat::zeros(columns, columns),
            tx: Mat::zeros(outputs, columns),
            tt: vec![0.0; outputs],
        }
    }

    /// Adds rows, given row-major; the second moments of x only if they are `wanted`.
    fn add(&mut self, x: &[f32], t: &[f32], wanted: bool) {
        let (outputs, columns) = (self.t.len(), self.x.len());
        let rows = x.len() / columns;
        self.rows += rows as f64;
        let (x_sums, t_sums, t_squares) = (&mut self.x[..], &mut self.t[..], &mut self.tt[..]);
        vectorized(move || {
            for row in x.chunks_exact(columns) {
                x_sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            }
        });
        vectorized(move || {
            for row in t.chunks_exact(outputs) {
                for ((sum, squares), &t) in t_sums.iter_mut().zip(&mut *t_squares).zip(row) {
                    *sum += f64::from(t);
                    *squares += f64::from(t) * f64::from(t);
                }
            }
        });
        let x = MatRef::from_row_major_slice(x, rows, columns);
        let t = MatRef::from_row_major_slice(t, rows, outputs);
        let mut tx = Mat::<f32>::zeros(outputs, columns);
        matmul(tx.as_mut(), Accum::Replace, t.transpose(), x, 1.0, Par::Seq);
        for j in 0..columns {
            add_column(self.tx.as_mut(), &tx, j, 0);
        }
        if wanted {
            let mut xx = Mat::<f32>::zeros(columns, columns);
            triangular::matmul(
                xx.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Replace,
                x.transpose(),
                BlockStructure::Rectangular,
                x,
                BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
            for j in 0..columns {
                add_column(self.xx.as_mut(), &xx, j, j);
            }
        }
    }

    fn plus(mut self, other: &Self) -> Self {
        self.rows += other.rows;
        let add = |sums: &mut [f64], more: &[f64]| {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more;
            }
        };
        add(&mut self.x, &other.x);
        add(&mut self.t, &other.t);
        add(&mut self.tt, &other.tt);
        self.xx += &other.xx;
        self.tx += &other.tx;
        self
    }

    /// Fills in the upper triangle.
    fn finish(mut self) -> Self {
        for j in 0..self.x.len() {
            for i in 0..j {
                self.xx[(i, j)] = self.xx[(j, i)];
            }
        }
        self
    }
}

/// Adds a column of single-precision sums from row `first` on.
fn add_column(sums: MatMut<'_, f64>, more: &Mat<f32>, column: usize, first: usize) {
    let sums = sums.col_mut(column).try_as_col_major_mut().expect("columns are whole");
    let more = more.col(column).try_as_col_major().expect("columns are whole");
    let pairs = sums.as_slice_mut()[first..].iter_mut().zip(&more.as_slice()[first..]);
    pairs.for_each(|(sum, &more)| *sum += f64::from(more));
}

/// Moments of all groups of a layer, of the samples that are fitted to and of those held out.
#[derive(Clone, Debug)]
pub(crate) struct LayerMoments {
    pub(crate) fitted: Vec<Moments>,
    pub(crate) held_out: Vec<Moments>,
}

impl LayerMoments {
    /// Of all samples together.
    pub(crate) fn all(&self) -> Vec<Moments> {
        self.fitted.iter().zip(&self.held_out).map(|(a, b)| a.clone().plus(b)).collect()
    }
}

/// Whether a sample is one of those held out.
pub(crate) fn is_held_out(sample: usize) -> bool {
    sample % PARTS < HELD_OUT
}

/// Sizes of a MAC layer as a product: each result is a row of `columns` inputs times weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfolded<'a> {
    op: &'a Op,
    input: &'a [usize],
    /// Positions of one sample.
    positions: usize,
    pub(crate) groups: usize,
    /// Output channels of one group.
    pub(crate) outputs: usize,
    /// Inputs of one group.
    pub(crate) columns: usize,
}

impl<'a> Unfolded<'a> {
    pub(crate) fn new(op: &'a Op, input: &'a [usize], output: &[usize]) -> Self {
        let (weight, groups) = match op {
            Op::Conv(conv) => (conv.weight.shape(), conv.groups),
            Op::Linear(linear) => (linear.weight.shape(), 1),
            _ => unreachable!("only MAC layers with weights are fitted"),
        };
        let positions = output.iter().product::<usize>() / weight[0];
        let columns = weight[1..].iter().product();
        Self { op, input, positions, groups, outputs: weight[0] / groups, columns }
    }

    /// Number of samples' rows that moments are made of.
    fn rows_per_sample(&self, samples: usize, share: f64) -> usize {
        let least = if self.groups > 1 { DEPTHWISE_ROWS } else { ROWS };
        let wanted = least.max(ROWS_PER_COLUMN * self.columns) as f64 * share;
        ((wanted / samples as f64).ceil() as usize).clamp(1, self.positions)
    }

    /// Moments over all samples. `input` appends a sample's quantized input and `target` a sample's
    /// wanted result, both in the graph's layout; `share` is the share of the usual number of rows.
    /// Where `earlier` moments of the same inputs are given, only the targets are looked at anew.
    pub(crate) fn moments(
        &self,
        samples: usize,
        share: f64,
        input: &(impl Fn(usize, &mut Vec<f32>) + Sync),
        target: &(impl Fn(usize, usize) -> f32 + Sync),
        earlier: Option<&LayerMoments>,
    ) -> LayerMoments {
        let rows = self.rows_per_sample(samples, share);
        let parts: Vec<Vec<Moments>> = (0..PARTS)
            .into_par_iter()
            .map(|part| self.part(part, samples, rows, input, target, earlier.is_none()))
            .collect();
        let sum = |parts: &[Vec<Moments>]| -> Vec<Moments> {
            (0..self.groups)
                .map(|group| {
                    let empty = Moments::new(self.outputs, self.columns);
                    parts.iter().fold(empty, |sum, part| sum.plus(&part[group])).finish()
                })
                .collect()
        };
        let (held_out, fitted) = parts.split_at(HELD_OUT);
        let mut moments = LayerMoments { fitted: sum(fitted), held_out: sum(held_out) };
        if let Some(LayerMoments { fitted, held_out }) = earlier {
            let copy = |to: &mut [Moments], from: &[Moments]| {
                to.iter_mut().zip(from).for_each(|(to, from)| to.xx.clone_from(&from.xx));
            };
            copy(&mut moments.fitted, fitted);
            copy(&mut moments.held_out, held_out);
        }
        moments
    }

    fn part(
        &self,
        part: usize,
        samples: usize,
        rows: usize,
        input: &(impl Fn(usize, &mut Vec<f32>) + Sync),
        target: &(impl Fn(usize, usize) -> f32 + Sync),
        second: bool,
    ) -> Vec<Moments> {
        let mut moments = vec![Moments::new(self.outputs, self.columns); self.groups];
        let mut x: Vec<Vec<f32>> = vec![Vec::new(); self.groups];
        let mut t: Vec<Vec<f32>> = vec![Vec::new(); self.groups];
        let mut values = Vec::new();
        let stride = self.stride();
        for sample in (part..samples).step_by(PARTS) {
            values.clear();
            input(sample, &mut values);
            let position =
                |row: usize| (sample * rows + row) % self.positions * stride % self.positions;
            let positions: Vec<usize> = (0..rows).map(position).collect();
            let mut rest = &positions[..];
            while !rest.is_empty() {
                let room = BLOCK - x[0].len() / self.columns;
                let now;
                (now, rest) = rest.split_at(room.min(rest.len()));
                for group in 0..self.groups {
                    self.unfold_all(&values, now, group, &mut x[group]);
                    let first = group * self.outputs;
                    scatter(&mut t[group], now, self.outputs, |output, position| {
                        target(sample, self.element(first + output, position))
                    });
                }
                if x[0].len() >= BLOCK * self.columns {
                    flush(&mut moments, &mut x, &mut t, second);
                }
            }
        }
        flush(&mut moments, &mut x, &mut t, second);
        moments
    }

    /// Steps of about the golden section, without a divisor in common with the number of positions,
    /// visit all positions evenly.
    fn stride(&self) -> usize {
        let n = self.positions;
        let gcd = |mut a: usize, mut b: usize| {
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let golden = (n as f64 * 0.618).round() as usize;
        (golden.max(1)..=2 * n).find(|&step| gcd(step, n) == 1).unwrap_or(1)
    }

    /// Index of a result in the graph's layout.
    fn element(&self, output: usize, position: usize) -> usize {
        match self.op {
            Op::Conv(_) => output * self.positions + position,
            _ => position * self.outputs + output,
        }
    }

    /// Appends the inputs that the results at these positions are made of, row by row.
    fn unfold_all(&self, values: &[f32], positions: &[usize], group: usize, rows: &mut Vec<f32>) {
        match self.op {
            // Plane by plane, since planes are far apart.
            Op::Conv(conv) if conv.weight.shape()[2..] == [1, 1] && conv.pads == [0; 4] => {
                let &[_, height, width] = self.input else {
                    unreachable!("convolutions read images")
                };
                let out_width = self.out_width(width, 1);
                let [down, right] = conv.strides;
                let pixels: Vec<usize> = positions
                    .iter()
                    .map(|at| at / out_width * down * width + at % out_width * right)
                    .collect();
                let plane = height * width;
                let values = &values[group * self.columns * plane..][..self.columns * plane];
                scatter(rows, &pixels, self.columns, |channel, pixel| {
                    values[channel * plane + pixel]
                });
            }
            _ => positions.iter().for_each(|&at| self.unfold(values, at, group, rows)),
        }
    }

    /// Appends the inputs that the result at `position` is made of.
    fn unfold(&self, values: &[f32], position: usize, group: usize, row: &mut Vec<f32>) {
        let Op::Conv(conv) = self.op else {
            row.extend(&values[position * self.columns..][..self.columns]);
            return;
        };
        let &[_, height, width] = self.input else { unreachable!("convolutions read images") };
        let &[_, channels, kh, kw] = conv.weight.shape() else { unreachable!("rank 4") };
        let out_width = self.out_width(width, kw);
        let (y, x) = (position / out_width, position % out_width);
        let at = |axis: usize, out: usize, tap: usize, size: usize| {
            (out * conv.strides[axis] + tap * conv.dilations[axis])
                .checked_sub(conv.pads[axis])
                .filter(|&at| at < size)
        };
        let planes =
            values[group * channels * height * width..].chunks_exact(height * width).take(channels);
        // The general case, faster.
        let whole = at(1, x, 0, width).filter(|x| conv.dilations[1] == 1 && x + kw <= width);
        for plane in planes {
            for ky in 0..kh {
                let line = at(0, y, ky, height).map(|y| &plane[y * width..][..width]);
                if let (Some(line), Some(x)) = (line, whole) {
                    row.extend_from_slice(&line[x..x + kw]);
                    continue;
                }
                for kx in 0..kw {
                    let column = at(1, x, kx, width);
                    row.push(line.zip(column).map_or(0.0, |(line, x)| line[x]));
                }
            }
        }
    }

    fn out_width(&self, width: usize, kw: usize) -> usize {
        let Op::Conv(conv) = self.op else { return 1 };
        let reach = (kw - 1) * conv.dilations[1] + 1;
        (width + conv.pads[1] + conv.pads[3] - reach) / conv.strides[1] + 1
    }
}

/// Appends rows of so many columns, one for each position, column by column.
fn scatter(
    rows: &mut Vec<f32>,
    positions: &[usize],
    columns: usize,
    value: impl Fn(usize, usize) -> f32,
) {
    let first = rows.len();
    rows.resize(first + positions.len() * columns, 0.0);
    for column in 0..columns {
        let places = rows[first + column..].iter_mut().step_by(columns);
        places.zip(positions).for_each(|(place, &position)| *place = value(column, position));
    }
}

fn flush(moments: &mut [Moments], x: &mut [Vec<f32>], t: &mut [Vec<f32>], second: bool) {
    for ((moments, x), t) in moments.iter_mut().zip(x).zip(t) {
        moments.add(x, t, second);
        x.clear();
        t.clear();
    }
}
