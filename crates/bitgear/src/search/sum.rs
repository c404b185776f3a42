//! Stages whose scores are summed with those of the stage before. Rounding errors at two widths, or
//! of two views, are only partly alike, and the first stage's scores are already paid for.

use bitgear_core::margin::{Answer, answer};
use bitgear_core::policy::sum_scores;
use rayon::prelude::*;

use super::{Candidate, Candidates, Choice, Column, Gate, Pool};
use crate::trace::{ALL_SCORES, Block, Split, Trace, View};

/// Scores of the stage before count too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    /// Candidate of the stage before.
    pub first: usize,
    /// How much a unit of its scores counts beside one of this stage, in real units.
    pub weight: f64,
    /// The same in integer units of both.
    pub factor: f32,
}

/// Weights below this change nothing.
const LEAST_WEIGHT: f64 = 0.02;

/// How much the scores of `first` count beside those of `second`, in real units, so that the sum comes
/// closest to the reference's scores on `rows` (least squares, each sample's mean taken off; no
/// labels). `None` where `first` does not help, or not all scores were kept.
fn weight(
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
fn summed_scores(first: &Block, second: &Block, factor: f32) -> Vec<i32> {
    let mut scores = second.answers.scores.clone();
    sum_scores(&mut scores, &first.answers.scores, factor);
    scores
}

impl Candidates {
    /// Adds, for every pair from a cheap to a dearer stage, the dearer one with summed scores.
    pub(super) fn add_sums(&mut self, trace: &Trace, reference: &Block) {
        let rows = trace.rows(Split::Search);
        let may = |kind| Pool::Policies.holds(kind);
        let block = |index: usize| {
            let info = &self.all[index].info;
            trace.block(&info.point, info.view).expect("every point was traced")
        };
        let pairs: Vec<[usize; 2]> = (0..self.all.len())
            .flat_map(|first| (0..self.all.len()).map(move |second| [first, second]))
            .filter(|pair| {
                let [first, second] = pair.map(|index| &self.all[index]);
                may(first.info.kind)
                    && may(second.info.kind)
                    && self.starts(pair[0])
                    && self.follows(pair[0], pair[1])
                    && first.energy.chip_uj <= second.energy.chip_uj
            })
            .collect();
        let summed = |&[first, second]: &[usize; 2]| -> Option<Candidate> {
            let blocks = [first, second].map(block);
            let weight = weight(trace, reference, blocks, &rows)?;
            let factor = (weight * blocks[0].score_scale / blocks[1].score_scale) as f32;
            let scores = summed_scores(blocks[0], blocks[1], factor);
            let answers: Vec<Answer> = scores.chunks_exact(trace.classes).map(answer).collect();
            let right = |(a, &label): (&Answer, &u32)| a.class == label as usize;
            let [from, to] = self.pairs[first][second];
            Some(Candidate {
                info: self.all[second].info.clone(),
                base: second,
                sum: Some(Sum { first, weight, factor }),
                correct: answers.iter().zip(&trace.labels).map(right).collect(),
                margins: Column::new(answers.iter().map(|a| a.margin).collect()),
                leading: answers.iter().map(|a| [a.class as u32, a.runner_up as u32]).collect(),
                energy: from.energy.plus(to.energy),
                time_us: from.time_us.zip(to.time_us).map(|(from, to)| from + to),
            })
        };
        let summed: Vec<Candidate> = pairs.par_iter().filter_map(summed).collect();
        self.all.extend(summed);
    }

    /// The candidate for every input.
    pub fn always(&self, index: usize) -> Choice {
        match self.all[index].sum {
            None => Choice::fixed(index),
            Some(Sum { first, .. }) => {
                Choice { stages: vec![first, index], gates: vec![Gate::margin(i32::MAX)] }
            }
        }
    }

    /// How the scores of a candidate are summed, if they are.
    pub fn sum(&self, index: usize) -> Option<Sum> {
        self.all[index].sum
    }

    /// Point and view of a candidate, and what it is summed with: `w4a4`, `w4a4@mirror`,
    /// `w3a3+w4a4@mirror`.
    pub fn name(&self, index: usize) -> String {
        let Candidate { info, sum, .. } = &self.all[index];
        let view = if info.view == View::AsIs { "" } else { "@mirror" };
        let first = sum.map_or_else(String::new, |sum| format!("{}+", self.name(sum.first)));
        format!("{first}{}{view}", info.point)
    }
}
