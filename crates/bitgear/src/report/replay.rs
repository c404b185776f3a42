//! A policy replayed on the test samples of a trace.

use bitgear_core::margin::{Answer, answer};
use bitgear_core::policy::sum_scores;

use super::ReportError;
use crate::policy::{PolicyFile, gate};
use crate::trace::{ALL_SCORES, FLOAT, Split, Trace, View};

/// What every stage of a policy says of every test sample, whether the sample reaches it or not.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Replay {
    /// Number of classes.
    pub(super) classes: usize,
    /// Label of each sample.
    pub(super) labels: Vec<u32>,
    /// How much each counts.
    pub(super) weights: Vec<i64>,
    /// What the reference predicts.
    pub(super) reference: Vec<u32>,
    /// The stages, the last resort included.
    pub(super) stages: Vec<Stage>,
    /// Index of the stage that answers each sample.
    pub(super) answered_by: Vec<usize>,
}

/// What one stage says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    /// Predicted class of each sample.
    pub(super) predicted: Vec<u32>,
    /// What the gate compares with its threshold; the plain margin of the last resort.
    pub(super) confidence: Vec<i32>,
    /// The threshold; none for the last resort.
    pub(super) accept_at: Option<i32>,
    /// Worth of a unit of both.
    pub(super) score_scale: f64,
}

impl Replay {
    /// Replays a policy that was checked.
    pub(super) fn new(trace: &Trace, policy: &PolicyFile) -> Result<Self, ReportError> {
        let rows = trace.rows(Split::Test);
        let block = |point: &str, view: View| {
            let missing = || ReportError::Mismatch(format!("the trace has no point `{point}`"));
            trace.block(point, view).ok_or_else(missing)
        };
        let mut stages = Vec::new();
        let mut before = None;
        let mut classes_before: Option<Vec<u32>> = None;
        let views_and_factors = policy.views_and_factors();
        let gates = policy.gates().map(Some).chain([None]);
        for ((point, (view, factor)), rule) in policy.points().zip(views_and_factors).zip(gates) {
            let this = block(point, view)?;
            let answers: Vec<Answer> = match (factor, before) {
                (None, _) => rows
                    .iter()
                    .map(|&row| Answer {
                        class: this.answers.predicted[row] as usize,
                        runner_up: this.answers.runner_up(row) as usize,
                        margin: this.answers.margins[row],
                    })
                    .collect(),
                (Some(factor), Some(before)) if trace.classes <= ALL_SCORES => {
                    let before: &crate::trace::Block = before;
                    let scores = |row: usize, block: &crate::trace::Block| {
                        block.answers.scores[row * trace.classes..][..trace.classes].to_vec()
                    };
                    let summed = |&row: &usize| {
                        let mut sum = scores(row, this);
                        sum_scores(&mut sum, &scores(row, before), factor);
                        answer(&sum)
                    };
                    rows.iter().map(summed).collect()
                }
                _ => {
                    let why = format!("the trace has no scores to sum for point `{point}`");
                    return Err(ReportError::Mismatch(why));
                }
            };
            let rule_or_margin = rule.unwrap_or_else(|| gate(0, None));
            let confidence = |(sample, &answer): (usize, &Answer)| {
                let before = classes_before.as_ref().map(|classes| classes[sample] as usize);
                rule_or_margin.confidence(answer, before)
            };
            let confidence = answers.iter().enumerate().map(confidence).collect();
            let predicted: Vec<u32> = answers.iter().map(|a| a.class as u32).collect();
            classes_before = Some(predicted.clone());
            stages.push(Stage {
                predicted,
                confidence,
                accept_at: rule.map(|gate| gate.accept_at),
                score_scale: this.score_scale,
            });
            before = Some(this);
        }
        let accepts = |stage: &Stage, sample: usize| {
            stage.accept_at.is_none_or(|accept_at| accept_at <= stage.confidence[sample])
        };
        let answered_by = (0..rows.len())
            .map(|sample| stages.iter().take_while(|stage| !accepts(stage, sample)).count());
        let reference = &block(FLOAT, View::AsIs)?.answers.predicted;
        Ok(Self {
            classes: trace.classes,
            labels: rows.iter().map(|&row| trace.labels[row]).collect(),
            weights: trace.weights(&rows),
            reference: rows.iter().map(|&row| reference[row]).collect(),
            answered_by: answered_by.collect(),
            stages,
        })
    }

    /// Number of samples.
    pub(super) fn samples(&self) -> usize {
        self.labels.len()
    }

    /// Samples that reach a stage.
    pub(super) fn reaching(&self, stage: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.samples()).filter(move |&sample| self.answered_by[sample] >= stage)
    }

    /// The policy's answer to a sample.
    pub(super) fn predicted(&self, sample: usize) -> u32 {
        self.stages[self.answered_by[sample]].predicted[sample]
    }

    /// Whether a stage's answer to a sample is right.
    pub(super) fn is_right(&self, stage: usize, sample: usize) -> bool {
        self.stages[stage].predicted[sample] == self.labels[sample]
    }

    /// The policy's accuracy.
    pub(super) fn accuracy(&self) -> f64 {
        let right = |&sample: &usize| self.predicted(sample) == self.labels[sample];
        self.share((0..self.samples()).filter(right))
    }

    /// Share of all samples that each stage but the last hands on.
    pub(super) fn escalation_rates(&self) -> Vec<f64> {
        (1..self.stages.len()).map(|stage| self.share(self.reaching(stage))).collect()
    }

    /// What share of all some samples are, by weight.
    pub(super) fn share(&self, samples: impl Iterator<Item = usize>) -> f64 {
        let part: i64 = samples.map(|sample| self.weights[sample]).sum();
        part as f64 / self.weights.iter().sum::<i64>().max(1) as f64
    }
}
