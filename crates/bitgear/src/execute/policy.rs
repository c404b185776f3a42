//! Executes a policy: the low stage on the whole batch, every further stage only on the inputs that
//! were unsure until then, gathered into dense batches.

use bitgear_core::margin::{Answer, answer};
use bitgear_core::policy::{Gate, sum_scores};

use super::engine::{Kept, Start};
use super::{Engine, Handoff};
use crate::data::mirror_rows;
use crate::tensor::Tensor;
use crate::trace::View;

/// What a policy answered to one input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy)]
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

/// What executing a policy needs besides, to be used again for the next batch.
#[derive(Default)]
pub struct Memory {
    /// Indices of the inputs that are unsure.
    unsure: Vec<usize>,
    /// Their values, densely.
    shown: Vec<f32>,
    /// What the running stage scored, and the maps that it kept.
    scores: Vec<i32>,
    kept: Vec<Option<Kept>>,
    /// Of the unsure inputs, what the stage before scored, which class that gave, and the maps that it kept.
    before: Vec<i32>,
    classes: Vec<usize>,
    maps: Vec<Kept>,
}

/// Answers to a batch (N, sample shape) of preprocessed samples. The last stage accepts everything,
/// whatever its gate.
pub fn decide(stages: &[RunningStage<'_>], batch: &Tensor) -> Vec<Decision> {
    let mut decisions = Vec::new();
    decide_into(stages.iter().copied(), batch, &mut Memory::default(), &mut decisions);
    decisions
}

/// The same into memory that was used before. On one thread nothing is allocated if batches before were as large,
/// and handed on as many inputs; of the networks see [`Engine::scores_into`].
pub fn decide_into<'m>(
    stages: impl IntoIterator<Item = RunningStage<'m>>,
    batch: &Tensor,
    memory: &mut Memory,
    decisions: &mut Vec<Decision>,
) {
    let samples = batch.shape().first().copied().unwrap_or(0);
    let sample_len: usize = batch.shape().iter().skip(1).product();
    let Memory { unsure, shown, scores, kept, before, classes, maps } = memory;
    decisions.resize_with(samples, Decision::default);
    unsure.clear();
    unsure.extend(0..samples);
    let mut stages = stages.into_iter().enumerate().peekable();
    let mut engine_before: Option<&Engine<'_>> = None;
    while let Some((index, stage)) = stages.next() {
        if unsure.is_empty() {
            break;
        }
        let engine = stage.engine;
        let last = stages.peek().is_none();
        let accepted =
            |answer, before| last || stage.gate.is_none_or(|gate| gate.accepts(answer, before));
        let start = match stage.handoff {
            Some(handoff) if index > 0 => Start::Maps { given: &handoff.given, kept: maps },
            _ if index == 0 && stage.view == View::AsIs => Start::Input(batch.values()),
            _ => {
                shown.clear();
                for &sample in &*unsure {
                    shown.extend(&batch.values()[sample * sample_len..][..sample_len]);
                }
                if stage.view == View::Mirror {
                    mirror_rows(shown, batch.shape().last().copied().unwrap_or(1));
                }
                Start::Input(shown)
            }
        };
        let of_one = engine.model().classes();
        scores.clear();
        scores.resize(unsure.len() * of_one, 0);
        kept.clear();
        kept.resize_with(unsure.len(), || None);
        // No class agrees with this one: maps are kept of all inputs that may be handed on.
        let disagreeing = (index > 0).then_some(usize::MAX);
        let hands_on = |scores: &[i32]| !accepted(answer(scores), disagreeing);
        engine.run_batch(start, scores, Some((&mut kept[..], &hands_on)));
        if let Some(engine) = engine_before {
            engine.give_back(maps.drain(..));
        }
        if let Some(factor) = stage.sum {
            for (scores, before) in scores.chunks_exact_mut(of_one).zip(before.chunks_exact(of_one))
            {
                sum_scores(scores, before, factor);
            }
        }
        before.clear();
        let mut handed_on = 0;
        for (row, scores) in scores.chunks_exact(of_one).enumerate() {
            let answer = answer(scores);
            let decision = &mut decisions[unsure[row]];
            if index == 0 {
                decision.first_confidence =
                    stage.gate.map_or(answer.margin, |gate| gate.confidence(answer, None));
            }
            if accepted(answer, (index > 0).then(|| classes[row])) {
                (decision.stage, decision.answer) = (index, answer);
                decision.scores.clear();
                decision.scores.extend_from_slice(scores);
            } else {
                // Its place among those that are handed on is no later than its own.
                unsure[handed_on] = unsure[row];
                match classes.get_mut(handed_on) {
                    Some(class) => *class = answer.class,
                    None => classes.push(answer.class),
                }
                before.extend_from_slice(scores);
                maps.extend(kept[row].take());
                handed_on += 1;
            }
        }
        unsure.truncate(handed_on);
        engine.give_back(kept.drain(..).flatten());
        engine_before = Some(engine);
    }
}
