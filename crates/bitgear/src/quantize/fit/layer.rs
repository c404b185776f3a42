//! Fits the integers of one layer to the moments of its data.

use std::sync::OnceLock;

use faer::linalg::matmul::matmul;
use faer::prelude::Solve;
use faer::{Accum, Mat, Par, Side};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::grid::Grid;
use super::lattice::{Lattice, Limits, Row};
use super::moments::{LayerMoments, Moments};
use crate::quantize::methods::{Constraints, Correction, Methods, Rounding};
use crate::quantize::nest::Bounds;
use crate::quantize::weights::{QuantizedWeights, quantize_rows};
use crate::vector::vectorized;

/// Ridges that regression tries, as shares of the mean second moment.
const RIDGES: [f64; 4] = [0.003, 0.03, 0.3, 3.0];
/// Keeps moments positive definite beside the ridge.
const DAMPING: f64 = 0.002;
/// Clipping points of a scale: shares of the largest weight.
const CLIPS: usize = 28;
const SMALLEST_CLIP: f64 = 0.2;
const LARGEST_CLIP: f64 = 1.1;
/// Up to how many levels several scales are tried and refitted.
const REFIT_LEVELS: i32 = 32;
/// Times that scales are refitted.
const REFITS: usize = 2;
/// Layers with more inputs than this are rounded to nearest: their second moments would take more
/// than 128 MB.
pub(crate) const MOST_COLUMNS: usize = 4096;

/// What is fitted.
pub(crate) struct Request<'a> {
    /// Rows of all groups, (O, K) row-major.
    pub(crate) weights: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) columns: usize,
    pub(crate) grid: Grid,
    /// What other points that share these weights leave free.
    pub(crate) bounds: Option<&'a Bounds>,
    pub(crate) methods: Methods,
    pub(crate) constraints: Constraints,
    /// Nearest codes, once they are known: several strategies begin with them.
    pub(crate) nearest: OnceLock<QuantizedWeights>,
}

/// Integers of a layer, and what they leave of the wanted result's variance.
#[derive(Clone, Debug)]
pub(crate) struct LayerFit {
    pub(crate) weights: QuantizedWeights,
    /// Whether codes are of the odd kind, see [`Grid::odd`].
    pub(crate) odd: bool,
    pub(crate) bias: Vec<f32>,
    /// Squared error on held-out samples over the wanted result's variance there.
    pub(crate) held_out: f64,
    /// How they were found; none where no data was used.
    pub(crate) strategy: Option<Strategy>,
}

/// One way to the integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strategy {
    /// Regression with this ridge.
    ridge: Option<f64>,
    rounding: Rounding,
    correction: Correction,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    Quick,
    Full,
}

impl Request<'_> {
    /// The best integers by held-out error, fitted once more to all samples.
    pub(crate) fn fit(&self, moments: &LayerMoments, known: Option<Strategy>) -> LayerFit {
        let strategies = known.map_or_else(|| self.strategies(), |strategy| vec![strategy]);
        let (fitted, held_out) = (centred(&moments.fitted), centred(&moments.held_out));
        let trial = |strategy: &Strategy| {
            let (weights, bias) = self.fit_with(*strategy, &fitted, Effort::Quick);
            self.error(&weights, &bias, &held_out)
        };
        let errors: Vec<f64> = strategies.par_iter().map(trial).collect();
        let best = (0..errors.len()).fold(0, |b, i| if errors[i] < errors[b] { i } else { b });
        let all = centred(&moments.all());
        let (weights, bias) = self.fit_with(strategies[best], &all, Effort::Full);
        LayerFit {
            weights,
            odd: self.grid.is_odd(),
            bias,
            held_out: errors[best],
            strategy: Some(strategies[best]),
        }
    }

    /// Nearest codes and the layer's own bias, without data.
    pub(crate) fn nearest_fit(&self) -> LayerFit {
        let mut weights = QuantizedWeights { codes: Vec::new(), scales: Vec::new() };
        for row in self.nearest() {
            weights.codes.extend(row.codes);
            weights.scales.push(row.scale);
        }
        LayerFit {
            weights,
            odd: self.grid.is_odd(),
            bias: self.bias.to_vec(),
            held_out: f64::NAN,
            strategy: None,
        }
    }

    /// Held-out error of integers found with little effort: to compare input scales by.
    pub(crate) fn quick_error(&self, moments: &LayerMoments) -> f64 {
        let strategies = self.strategies();
        let middle = strategies.iter().find(|s| s.ridge.is_none_or(|r| r == RIDGES[1]));
        let strategy = *middle.unwrap_or(&strategies[0]);
        let (weights, bias) = self.fit_with(strategy, &centred(&moments.fitted), Effort::Quick);
        self.error(&weights, &bias, &centred(&moments.held_out))
    }

    fn strategies(&self) -> Vec<Strategy> {
        let Methods { rounding, correction, .. } = self.methods;
        let mut all = Vec::new();
        if self.methods.regression {
            all.extend(RIDGES.map(|ridge| Strategy { ridge: Some(ridge), rounding, correction }));
        } else {
            all.push(Strategy { ridge: None, rounding, correction });
        }
        // Nearest codes know nothing of bounds.
        if self.methods.fall_back && self.bounds.is_none() {
            let nearest =
                |correction| Strategy { ridge: None, rounding: Rounding::Nearest, correction };
            all.extend([nearest(correction), nearest(Correction::None)]);
            all.push(Strategy { ridge: None, rounding, correction });
        }
        all
    }

    fn fit_with(
        &self,
        strategy: Strategy,
        moments: &[Centred],
        effort: Effort,
    ) -> (QuantizedWeights, Vec<f32>) {
        let outputs = self.bias.len() / moments.len();
        let rows = match strategy.rounding {
            Rounding::Nearest => self.nearest(),
            Rounding::Compensated => self.compensated(strategy.ridge, moments, effort),
        };
        let mut weights = QuantizedWeights {
            codes: Vec::with_capacity(self.weights.len()),
            scales: Vec::with_capacity(rows.len()),
        };
        let mut bias = Vec::with_capacity(rows.len());
        let rescaled = strategy.correction == Correction::Statistics
            && !self.constraints.per_tensor_scales
            && !self.constraints.power_of_two_scales;
        let mut rows = rows.into_iter();
        for (moments, own) in moments.iter().zip(self.bias.chunks_exact(outputs)) {
            let mut rows: Vec<Row> = rows.by_ref().take(outputs).collect();
            if rescaled {
                let variances = moments.variances(&rows);
                for ((row, variance), wanted) in rows.iter_mut().zip(variances).zip(&moments.tt) {
                    if variance > 0.0 {
                        row.scale *= (wanted / variance).sqrt();
                    }
                }
            }
            for ((row, mean), own) in rows.into_iter().zip(&moments.t).zip(own) {
                bias.push(match strategy.correction {
                    Correction::None => *own,
                    _ => (mean - moments.mean(&row)) as f32,
                });
                weights.codes.extend(row.codes);
                weights.scales.push(row.scale);
            }
        }
        (weights, bias)
    }

    fn nearest(&self) -> Vec<Row> {
        let quantized = self.nearest.get_or_init(|| match self.bounds {
            Some(bounds) => within(self.weights, self.columns, self.grid, bounds),
            None => quantize_rows(self.weights, self.columns, self.grid, self.constraints),
        });
        quantized
            .codes
            .chunks_exact(self.columns)
            .zip(&quantized.scales)
            .map(|(codes, &scale)| Row { codes: codes.to_vec(), scale, error: 0.0 })
            .collect()
    }

    fn compensated(&self, ridge: Option<f64>, moments: &[Centred], effort: Effort) -> Vec<Row> {
        let outputs = self.bias.len() / moments.len();
        let width = outputs * self.columns;
        let groups: Option<Vec<(Lattice, Vec<f64>)>> = moments
            .par_iter()
            .zip(self.weights.par_chunks_exact(width))
            .map(|(moments, weights)| moments.regress(weights, ridge))
            .collect();
        let Some(groups) = groups else { return self.nearest() };
        let rows: Vec<(&Lattice, &[f64])> = groups
            .iter()
            .flat_map(|(lattice, targets)| {
                targets.chunks_exact(self.columns).map(move |target| (lattice, target))
            })
            .collect();
        let shared = self.constraints.per_tensor_scales.then(|| self.shared_scales(&rows));
        if let Some(scales) = shared {
            // One scale for all: the best of a few by the sum of errors.
            let trials = scales.iter().map(|&scale| -> Vec<Row> {
                rows.par_iter()
                    .enumerate()
                    .map(|(o, (lattice, target))| {
                        self.round(lattice, target, &[scale], self.limits(o), effort)
                    })
                    .collect()
            });
            let total = |rows: &Vec<Row>| rows.iter().map(|r| r.error).sum::<f64>();
            let best = trials.reduce(|a, b| if total(&b) < total(&a) { b } else { a });
            return best.expect("there is at least one scale");
        }
        rows.par_iter()
            .enumerate()
            .map(|(o, &(lattice, target))| {
                let (scale, limits) = (self.bounds.map(|b| b.scales[o]), self.limits(o));
                vectorized(BestRow { request: self, lattice, target, scale, limits, effort })
            })
            .collect()
    }

    fn limits(&self, o: usize) -> Option<&Limits> {
        self.bounds.map(|b| &b.limits[o * self.columns..][..self.columns])
    }

    /// The best codes of a row over some scales, at least one.
    #[inline(always)]
    fn round(
        &self,
        lattice: &Lattice,
        target: &[f64],
        scales: &[f64],
        limits: Option<&Limits>,
        effort: Effort,
    ) -> Row {
        let mut row = lattice.round(target, scales[0], self.grid, limits);
        for &scale in &scales[1..] {
            let next = lattice.round(target, scale, self.grid, limits);
            if next.error < row.error {
                row = next;
            }
        }
        if effort == Effort::Full && self.methods.descent > 0 {
            self.improve(lattice, &mut row, target, limits);
        }
        row
    }

    /// Moves codes, and the scale between.
    #[inline(always)]
    fn improve(&self, lattice: &Lattice, row: &mut Row, target: &[f64], limits: Option<&Limits>) {
        let passes = self.methods.descent;
        lattice.descend(row, target, self.grid, limits, passes);
        for _ in 0..if self.refits() { REFITS } else { 0 } {
            lattice.refit(row, target);
            lattice.descend(row, target, self.grid, limits, passes);
        }
    }

    /// Whether scales are free enough, and codes few enough, to look for better ones.
    fn refits(&self) -> bool {
        let Constraints { per_tensor_scales, power_of_two_scales, .. } = self.constraints;
        self.methods.refit
            && self.levels() <= REFIT_LEVELS
            && !per_tensor_scales
            && !power_of_two_scales
    }

    fn levels(&self) -> i32 {
        (self.grid.high - self.grid.low) / self.grid.step + 1
    }

    /// The scale of least diagonal error, and a few around it.
    #[inline(always)]
    fn row_scales(&self, lattice: &Lattice, target: &[f64], effort: Effort) -> Vec<f64> {
        let error = |scale: f64| lattice.nearest_error(target, scale, self.grid);
        let mut scales = best_first(self.candidates(&[target]), error);
        if self.constraints.power_of_two_scales {
            scales.truncate(2);
            return scales;
        }
        self.around(scales[0], effort)
    }

    /// A scale and a few beside it.
    fn around(&self, scale: f64, effort: Effort) -> Vec<f64> {
        let levels = self.levels();
        let factors: &[f64] = if effort == Effort::Quick || !self.methods.refit {
            &[1.0]
        } else if self.bounds.is_some() {
            &[1.0, 0.87, 0.93, 1.07, 1.15]
        } else if levels <= 8 && self.methods.signed_scales {
            &[1.0, 0.72, 0.85, 0.92, 1.08, 1.17, -1.0, -0.85]
        } else if levels <= 8 {
            &[1.0, 0.72, 0.85, 0.92, 1.08, 1.17]
        } else if levels <= REFIT_LEVELS {
            &[1.0, 0.93, 1.07]
        } else {
            &[1.0]
        };
        factors.iter().map(|factor| scale * factor).collect()
    }

    fn shared_scales(&self, rows: &[(&Lattice, &[f64])]) -> Vec<f64> {
        let targets: Vec<&[f64]> = rows.iter().map(|row| row.1).collect();
        let error = |scale: f64| -> f64 {
            rows.par_iter()
                .map(|(l, t)| l.nearest_error(t, scale, self.grid))
                .collect::<Vec<_>>()
                .iter()
                .sum()
        };
        let mut scales = best_first(self.candidates(&targets), error);
        scales.truncate(2);
        scales
    }

    /// Scales that are worth looking at for rows that share one.
    fn candidates(&self, rows: &[&[f64]]) -> Vec<f64> {
        let largest = rows.iter().flat_map(|r| *r).fold(0.0_f64, |m, w| m.max(w.abs()));
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let unit = largest / self.grid.reach();
        let signs: &[f64] = if self.methods.signed_scales { &[1.0, -1.0] } else { &[1.0] };
        let sizes: Vec<f64> = if self.constraints.power_of_two_scales {
            let top = unit.log2().ceil();
            (-4..=1).map(|k| (top + f64::from(k)).exp2()).collect()
        } else {
            let step = (LARGEST_CLIP - SMALLEST_CLIP) / (CLIPS - 1) as f64;
            (0..CLIPS).map(|i| unit * (SMALLEST_CLIP + step * i as f64)).collect()
        };
        signs.iter().flat_map(|sign| sizes.iter().map(move |size| sign * size)).collect()
    }

    /// Squared error per row of data over the variance of what is wanted.
    fn error(&self, weights: &QuantizedWeights, bias: &[f32], moments: &[Centred]) -> f64 {
        let outputs = bias.len() / moments.len();
        let row =
            |(codes, &scale): (&[i16], &f64)| Row { codes: codes.to_vec(), scale, error: 0.0 };
        let mut rows = weights.codes.chunks_exact(self.columns).zip(&weights.scales).map(row);
        let (mut error, mut whole) = (0.0, 0.0);
        for (moments, bias) in moments.iter().zip(bias.chunks_exact(outputs)) {
            let rows: Vec<Row> = rows.by_ref().take(outputs).collect();
            let variances = moments.variances(&rows);
            for (r, ((row, variance), bias)) in rows.iter().zip(variances).zip(bias).enumerate() {
                let shift = moments.t[r] - moments.mean(row) - f64::from(*bias);
                error +=
                    moments.tt[r] - 2.0 * moments.covariance(row, r) + variance + shift * shift;
                whole += moments.tt[r];
            }
        }
        if whole > 0.0 { error / whole } else { error }
    }
}

/// The best codes of one row.
struct BestRow<'a> {
    request: &'a Request<'a>,
    lattice: &'a Lattice,
    target: &'a [f64],
    /// The scale that other points which share the weights have.
    scale: Option<f64>,
    limits: Option<&'a Limits>,
    effort: Effort,
}

impl NullaryFnOnce for BestRow<'_> {
    type Output = Row;

    #[inline(always)]
    fn call(self) -> Row {
        let Self { request, lattice, target, scale, limits, effort } = self;
        let scales = match scale {
            Some(scale) => request.around(scale, effort),
            None => request.row_scales(lattice, target, effort),
        };
        request.round(lattice, target, &scales, limits, effort)
    }
}

/// The nearest codes that bounds leave.
fn within(weights: &[f32], columns: usize, grid: Grid, bounds: &Bounds) -> QuantizedWeights {
    let code = |(i, (&weight, &(low, high))): (usize, (&f32, &(i16, i16)))| {
        let nearest = grid.nearest(f64::from(weight) / bounds.scales[i / columns]);
        nearest.clamp(i32::from(low), i32::from(high)) as i16
    };
    let codes = weights.iter().zip(&bounds.limits).enumerate().map(code).collect();
    QuantizedWeights { codes, scales: bounds.scales.clone() }
}

#[inline(always)]
fn best_first(scales: Vec<f64>, error: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut rated = Vec::with_capacity(scales.len());
    for scale in scales {
        rated.push((error(scale), scale));
    }
    rated.sort_by(|a, b| a.0.total_cmp(&b.0));
    rated.into_iter().map(|(_, scale)| scale).collect()
}

fn centred(moments: &[Moments]) -> Vec<Centred> {
    moments.iter().map(Centred::new).collect()
}

/// Means and central second moments of one group.
struct Centred {
    x: Vec<f64>,
    t: Vec<f64>,
    xx: Mat<f64>,
    tx: Mat<f64>,
    tt: Vec<f64>,
}

impl Centred {
    fn new(moments: &Moments) -> Self {
        let n = moments.rows.max(1.0);
        let x: Vec<f64> = moments.x.iter().map(|x| x / n).collect();
        let t: Vec<f64> = moments.t.iter().map(|t| t / n).collect();
        let columns = x.len();
        Self {
            xx: Mat::from_fn(columns, columns, |i, j| moments.xx[(i, j)] / n - x[i] * x[j]),
            tx: Mat::from_fn(t.len(), columns, |r, k| moments.tx[(r, k)] / n - t[r] * x[k]),
            tt: moments.tt.iter().zip(&t).map(|(tt, t)| (tt / n - t * t).max(0.0)).collect(),
            x,
            t,
        }
    }

    /// Mean result of a row of codes.
    fn mean(&self, row: &Row) -> f64 {
        let sum: f64 = row.codes.iter().zip(&self.x).map(|(&q, x)| f64::from(q) * x).sum();
        row.scale * sum
    }

    /// Variance of the result of each row of codes.
    fn variances(&self, rows: &[Row]) -> Vec<f64> {
        let codes = Mat::from_fn(self.x.len(), rows.len(), |k, r| f64::from(rows[r].codes[k]));
        let mut along = Mat::zeros(codes.nrows(), codes.ncols());
        matmul(&mut along, Accum::Replace, &self.xx, &codes, 1.0, Par::Seq);
        let both = codes.col_iter().zip(along.col_iter());
        let sums = both.map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>());
        rows.iter().zip(sums).map(|(row, sum)| row.scale * row.scale * sum).collect()
    }

    /// Covariance of the result of a row of codes and what is wanted of output `r`.
    fn covariance(&self, row: &Row, r: usize) -> f64 {
        let sum: f64 =
            row.codes.iter().enumerate().map(|(k, &q)| f64::from(q) * self.tx[(r, k)]).sum();
        row.scale * sum
    }

    /// The weights that give the wanted result, drawn towards `weights` by the ridge, and the
    /// moments that rounding them is measured on. None where the moments are no numbers.
    fn regress(&self, weights: &[f32], ridge: Option<f64>) -> Option<(Lattice, Vec<f64>)> {
        let columns = self.x.len();
        let mean = (0..columns).map(|k| self.xx[(k, k)]).sum::<f64>() / columns as f64;
        // An input that never varies leaves nothing to fit; any positive number does.
        let mean = if mean > 0.0 { mean } else { 1.0 };
        let pull = ridge.unwrap_or(RIDGES[1]) * mean;
        let plus = |diagonal: f64| {
            Mat::from_fn(columns, columns, |i, j| {
                self.xx[(i, j)] + if i == j { diagonal } else { 0.0 }
            })
        };
        let target = if ridge.is_some() {
            let wanted = Mat::from_fn(columns, self.t.len(), |k, r| {
                self.tx[(r, k)] + pull * f64::from(weights[r * columns + k])
            });
            let solution = plus(pull).llt(Side::Lower).ok()?.solve(wanted);
            (0..self.t.len() * columns).map(|i| solution[(i % columns, i / columns)]).collect()
        } else {
            weights.iter().map(|&w| f64::from(w)).collect()
        };
        Some((Lattice::new(&plus(pull + DAMPING * mean))?, target))
    }
}
