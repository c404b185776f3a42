//! Stages whose scores are summed with those of the stage before. Rounding errors at two widths, or
//! of two views, are only partly alike, and the first stage's scores are already paid for.

use bitgear_core::policy::sum_scores;

use crate::trace::{ALL_SCORES, Block, Trace};

/// Weights below this change nothing.
const LEAST_WEIGHT: f64 = 0.02;

/// How much the scores of `first` count beside those of `second`, in real units, so that the sum comes
/// closest to the reference's scores on `rows` (least squares, each sample's mean taken off; no
/// labels). `None` where `first` does not help, or not all scores were kept.
pub(super) fn weight(
    trace: &Trace,
    reference: &Block,
    [first, second]: [&Block; 2],
    rows: &[usize],
) -> Option<f64> {
    if trace.classes > ALL_SCORES || trace.classes < 2 {
        return None;
    }
    let classes = trace.classes;
    // Second moments of first and second, and of each with the reference.
    let (mut aa, mut ab, mut bb, mut at, mut bt) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for &row in rows {
        let scores = [first, second, reference].map(|block| {
            let scores = &block.answers.scores[row * classes..(row + 1) * classes];
            let mean = scores.iter().map(|&s| f64::from(s)).sum::<f64>() / classes as f64;
            (scores, mean, block.score_scale)
        });
        for class in 0..classes {
            let [a, b, t] =
                scores.map(|(scores, mean, scale)| (f64::from(scores[class]) - mean) * scale);
            aa += a * a;
            ab += a * b;
            bb += b * b;
            at += a * t;
            bt += b * t;
        }
    }
    let determinant = aa * bb - ab * ab;
    if determinant <= 1e-9 * aa * bb {
        return None;
    }
    let of_first = (at * bb - bt * ab) / determinant;
    let of_second = (bt * aa - at * ab) / determinant;
    let weight = of_first / of_second;
    (of_second > 0.0 && weight > LEAST_WEIGHT).then_some(weight)
}

/// The summed scores of all rows, in units of the second block's scale, row by row.
pub(super) fn summed(first: &Block, second: &Block, factor: f32) -> Vec<i32> {
    let mut scores = second.answers.scores.clone();
    sum_scores(&mut scores, &first.answers.scores, factor);
    scores
}
