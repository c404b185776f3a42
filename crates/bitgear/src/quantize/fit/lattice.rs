//! Rounding of one row of weights, measured on the second moments of its input.
//!
//! With second moments H = R Rᵀ (R upper triangular) the error of codes q for real weights w is
//! |(q - w) R|², and its j-th term depends on the first j codes only. So codes can be chosen one
//! after another, each making up for those before it.

use faer::{Mat, Side};

use super::grid::Grid;

/// Damped second moments of a layer's input, factored for rounding.
pub(crate) struct Lattice {
    /// (K, K), row-major.
    moments: Vec<f64>,
    /// Of the moments.
    diagonal: Vec<f64>,
    /// Which column is rounded when: those of most weight first.
    order: Vec<usize>,
    /// Row j holds R\[i\]\[j\] / R\[j\]\[j\] for the i before j, in rounding order.
    ratios: Vec<Vec<f64>>,
    /// R\[j\]\[j\]², in rounding order.
    weights: Vec<f64>,
}

/// Codes of one row and what they stand for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) codes: Vec<i16>,
    /// Of either sign.
    pub(crate) scale: f64,
    /// (q - w) H (q - w)ᵀ
    pub(crate) error: f64,
}

/// Between which codes each weight must lie, where it is not free.
pub(crate) type Limits = [(i16, i16)];

impl Lattice {
    /// `moments` must be positive definite.
    pub(crate) fn new(moments: &Mat<f64>) -> Option<Self> {
        let n = moments.nrows();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| moments[(b, b)].total_cmp(&moments[(a, a)]).then(a.cmp(&b)));
        // The Cholesky factor of the matrix in reverse order is R in reverse order.
        let reversed = Mat::from_fn(n, n, |i, j| moments[(order[n - 1 - i], order[n - 1 - j])]);
        let factor = reversed.llt(Side::Lower).ok()?;
        let factor = factor.L();
        let r = |i: usize, j: usize| factor[(n - 1 - i, n - 1 - j)];
        let ratios = (0..n).map(|j| (0..j).map(|i| r(i, j) / r(j, j)).collect()).collect();
        let weights = (0..n).map(|j| r(j, j) * r(j, j)).collect();
        let diagonal = (0..n).map(|k| moments[(k, k)]).collect();
        let moments = (0..n * n).map(|i| moments[(i / n, i % n)]).collect();
        Some(Self { moments, diagonal, order, ratios, weights })
    }

    #[inline(always)]
    fn row(&self, k: usize) -> &[f64] {
        let n = self.order.len();
        &self.moments[k * n..][..n]
    }

    /// Codes for `weights`, each chosen after those before it.
    #[inline(always)]
    pub(crate) fn round(
        &self,
        weights: &[f64],
        scale: f64,
        grid: Grid,
        limits: Option<&Limits>,
    ) -> Row {
        let mut row = Row { codes: vec![0; weights.len()], scale, error: 0.0 };
        // What is wrong so far, in rounding order.
        let mut differences = Vec::with_capacity(weights.len());
        for (j, &k) in self.order.iter().enumerate() {
            let wanted = weights[k] - dot(&self.ratios[j], &differences);
            let code = clamp(grid.nearest(wanted / scale), limits, k);
            let value = scale * f64::from(code);
            row.error += (value - wanted).powi(2) * self.weights[j];
            row.codes[k] = code as i16;
            differences.push(value - weights[k]);
        }
        row
    }

    /// Moves single codes as long as the error falls, at most `passes` times over all.
    #[inline(always)]
    pub(crate) fn descend(
        &self,
        row: &mut Row,
        weights: &[f64],
        grid: Grid,
        limits: Option<&Limits>,
        passes: usize,
    ) {
        let scale = row.scale;
        let mut gradient = self.gradient(row, weights);
        for _ in 0..passes {
            let mut moved = false;
            // Those of least weight first: they cost least to move.
            for &k in self.order.iter().rev() {
                let code = i32::from(row.codes[k]);
                let wanted = f64::from(code) - gradient[k] / (self.diagonal[k] * scale);
                let to = clamp(grid.nearest(wanted), limits, k);
                if to != code {
                    let change = scale * f64::from(to - code);
                    row.error += change * (2.0 * gradient[k] + change * self.diagonal[k]);
                    for (g, h) in gradient.iter_mut().zip(self.row(k)) {
                        *g += change * h;
                    }
                    row.codes[k] = to as i16;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }

    /// (q - w) H
    #[inline(always)]
    fn gradient(&self, row: &Row, weights: &[f64]) -> Vec<f64> {
        let mut gradient = vec![0.0; weights.len()];
        for (k, (&code, &w)) in row.codes.iter().zip(weights).enumerate() {
            let difference = row.scale * f64::from(code) - w;
            for (g, h) in gradient.iter_mut().zip(self.row(k)) {
                *g += difference * h;
            }
        }
        gradient
    }

    /// Gives the codes their best scale.
    #[inline(always)]
    pub(crate) fn refit(&self, row: &mut Row, weights: &[f64]) {
        let (mut along, mut across) = (0.0, 0.0);
        for (k, &code) in row.codes.iter().enumerate() {
            if code != 0 {
                let h = self.row(k);
                let code = f64::from(code);
                along += code * dot(h, weights);
                across +=
                    code * h.iter().zip(&row.codes).map(|(h, &c)| h * f64::from(c)).sum::<f64>();
            }
        }
        if across > 0.0 && along != 0.0 {
            row.scale = along / across;
        }
        self.measure(row, weights);
    }

    /// Sets the error.
    #[inline(always)]
    pub(crate) fn measure(&self, row: &mut Row, weights: &[f64]) {
        let gradient = self.gradient(row, weights);
        let differences =
            row.codes.iter().zip(weights).map(|(&code, &w)| row.scale * f64::from(code) - w);
        row.error = gradient.iter().zip(differences).map(|(g, d)| g * d).sum();
    }

    /// Squared error of nearest codes, each weighted by its second moment alone.
    #[inline(always)]
    pub(crate) fn nearest_error(&self, weights: &[f64], scale: f64, grid: Grid) -> f64 {
        sum_by_lanes(weights, &self.diagonal, |w, moment| {
            let miss = scale * grid.round(w / scale) - w;
            miss * miss * moment
        })
    }
}

#[inline(always)]
fn clamp(code: i32, limits: Option<&Limits>, k: usize) -> i32 {
    limits.map_or(code, |limits| code.clamp(i32::from(limits[k].0), i32::from(limits[k].1)))
}

/// Σ a · b over the shorter one.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().min(b.len());
    sum_by_lanes(&a[..n], &b[..n], |a, b| a * b)
}

/// Σ term(a, b), in a fixed order that lets several sums run side by side.
#[inline(always)]
fn sum_by_lanes(a: &[f64], b: &[f64], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (whole_a, rest_a) = a.as_chunks::<8>();
    let (whole_b, rest_b) = b.as_chunks::<8>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(a, b);
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(&a, &b)| term(a, b)).sum();
    lanes.iter().sum::<f64>() + rest
}
