//! Executes a policy: the low stage on the whole batch, every further stage only on the inputs that
//! were unsure until then, gathered into dense batches.

use bitgear_core::margin::{Answer, answer};
use bitgear_core::policy::{Gate, sum_scores};

use super::engine::{Kept, Start};
use super::{Engine, Handoff};
use crate::data::mirror;
use crate::tensor::Tensor;
use crate::trace::View;

/// What a policy answered to one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index of the stage that answered.
    pub stage: usize,
    /// Its class and score margin.
    pub answer: Answer,
    /// Its scores, in units of its point's score scale.
    pub scores: Vec<i32>,
    /// What the first stage's gate compared with its threshold; the margin where there is no gate.
    pub first_confidence: i32,
}

/// One stage: the network, and when its answer is kept.
pub struct RunningStage<'m> {
    /// The network at the stage's operating point.
    pub engine: &'m Engine<'m>,
    /// When its answer is kept; `None` keeps everything.
    pub gate: Option<Gate<'m>>,
    /// How it goes on from the stage before; `None` starts from the input.
    pub handoff: Option<&'m Handoff>,
    /// How the input is shown to it.
    pub view: View,
    /// What a unit of the scores of the stage before is worth in units of its own, where they are
    /// added; such a stage keeps no maps for the next.
    pub sum: Option<f32>,
}

impl<'m> RunningStage<'m> {
    /// A stage that starts from the input as it is, keeps every answer and adds nothing.
    pub fn new(engine: &'m Engine<'m>) -> Self {
        Self { engine, gate: None, handoff: None, view: View::AsIs, sum: None }
    }
}

/// Answers to a batch (N, sample shape) of preprocessed samples. The last stage accepts everything,
/// whatever its gate.
pub fn decide(stages: &[RunningStage<'_>], batch: &Tensor) -> Vec<Decision> {
    let samples = batch.shape().first().copied().unwrap_or(0);
    let mut decisions: Vec<Option<Decision>> = vec![None; samples];
    let mut first_confidences = vec![0; samples];
    let mut unsure: Vec<usize> = (0..samples).collect();
    let mut maps: Vec<Kept> = Vec::new();
    // Of the unsure inputs, what the stage before scored, and which class that gave.
    let mut before: Vec<Vec<i32>> = Vec::new();
    let mut classes_before: Vec<usize> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        if unsure.is_empty() {
            break;
        }
        let last = index + 1 == stages.len();
        let accepted =
            |answer, before| last || stage.gate.is_none_or(|gate| gate.accepts(answer, before));
        let pending;
        let start = match stage.handoff {
            Some(handoff) if index > 0 => Start::Maps { given: &handoff.given, kept: &maps },
            _ if index == 0 && stage.view == View::AsIs => Start::Input(batch),
            _ => {
                let mut shown = rows(batch, &unsure);
                if stage.view == View::Mirror {
                    mirror(&mut shown);
                }
                pending = shown;
                Start::Input(&pending)
            }
        };
        // No class agrees with this one: maps are kept of all inputs that may be handed on.
        let disagreeing = (index > 0).then_some(usize::MAX);
        let hands_on = |scores: &[i32]| !accepted(answer(scores), disagreeing);
        let (mut scores, mut kept) = stage.engine.run_batch(start, &hands_on);
        let classes = stage.engine.model().classes();
        if let Some(factor) = stage.sum {
            for (scores, before) in scores.chunks_exact_mut(classes).zip(&before) {
                sum_scores(scores, before, factor);
            }
        }
        let mut handed_on = Vec::new();
        let (mut scored, mut classes_of) = (Vec::new(), Vec::new());
        maps.clear();
        for (row, scores) in scores.chunks_exact(classes).enumerate() {
            let answer = answer(scores);
            if index == 0 {
                first_confidences[row] =
                    stage.gate.map_or(answer.margin, |gate| gate.confidence(answer, None));
            }
            if accepted(answer, classes_before.get(row).copied()) {
                let scores = scores.to_vec();
                let first_confidence = first_confidences[unsure[row]];
                decisions[unsure[row]] =
                    Some(Decision { stage: index, answer, scores, first_confidence });
            } else {
                handed_on.push(unsure[row]);
                scored.push(scores.to_vec());
                classes_of.push(answer.class);
                maps.extend(kept[row].take());
            }
        }
        (unsure, before, classes_before) = (handed_on, scored, classes_of);
    }
    decisions.into_iter().map(|d| d.expect("the last stage accepts everything")).collect()
}

/// The given samples of a batch, densely.
fn rows(batch: &Tensor, rows: &[usize]) -> Tensor {
    let mut shape = batch.shape().to_vec();
    let len: usize = shape[1..].iter().product();
    shape[0] = rows.len();
    let values = rows.iter().flat_map(|&row| &batch.values()[row * len..(row + 1) * len]);
    Tensor::new(shape, values.copied().collect())
}
