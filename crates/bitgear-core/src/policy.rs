//! The decision of a dynamic policy: accept, or run the next stage.

use crate::fixed::requantize;
use crate::margin::Answer;

/// When a stage keeps its answer: the margin, less an entry for each of the two leading classes, less
/// another where the stage before answered otherwise, is at least a threshold. All are in units of the
/// stage's scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate<'t> {
    /// The smallest value that is accepted.
    pub accept_at: i32,
    /// Indexed by the predicted class; a class beyond the end has 0.
    pub predicted: &'t [i32],
    /// Indexed by the runner-up; a class beyond the end has 0.
    pub runner_up: &'t [i32],
    /// What a class other than that of the stage before costs.
    pub disagreement: i32,
}

impl Gate<'_> {
    /// A threshold on the plain margin.
    pub const fn margin(accept_at: i32) -> Self {
        Self { accept_at, predicted: &[], runner_up: &[], disagreement: 0 }
    }

    /// What is compared with the threshold; saturates. `before` is the class that the stage before
    /// answered, if there was one.
    pub fn confidence(self, answer: Answer, before: Option<usize>) -> i32 {
        let entry = |table: &[i32], class: usize| table.get(class).copied().unwrap_or(0);
        let disagrees = before.is_some_and(|class| class != answer.class);
        answer
            .margin
            .saturating_sub(entry(self.predicted, answer.class))
            .saturating_sub(entry(self.runner_up, answer.runner_up))
            .saturating_sub(if disagrees { self.disagreement } else { 0 })
    }

    /// Whether the answer is kept, after a stage that answered `before`.
    pub fn accepts(self, answer: Answer, before: Option<usize>) -> bool {
        self.accept_at <= self.confidence(answer, before)
    }
}

/// Adds to a stage's scores those of the stage before, times `factor`: what one of their units is worth
/// in units of this stage. Rounds each product half to even; sums saturate.
pub fn sum_scores(scores: &mut [i32], before: &[i32], factor: f32) {
    for (score, &before) in scores.iter_mut().zip(before) {
        let sum = i64::from(*score).saturating_add(requantize(i64::from(before), factor));
        *score = sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
    }
}

/// Runs stages in order until one accepts its own answer; the last resort, after as many stages as
/// there are gates, always does. Gives the index of the stage that answered, and the answer.
///
/// # Errors
///
/// What `run` fails with.
pub fn settle<E>(
    gates: &[Gate<'_>],
    mut run: impl FnMut(usize) -> Result<Answer, E>,
) -> Result<(usize, Answer), E> {
    let mut before = None;
    for (stage, gate) in gates.iter().enumerate() {
        let answer = run(stage)?;
        if gate.accepts(answer, before) {
            return Ok((stage, answer));
        }
        before = Some(answer.class);
    }
    Ok((gates.len(), run(gates.len())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;

    fn answer(class: usize, margin: i32) -> Answer {
        Answer { class, runner_up: 0, margin }
    }

    #[test]
    fn the_first_sure_stage_answers_and_later_ones_never_run() {
        let margins = [3, 10, 99];
        let mut ran = 0;
        let settled = settle(&[5, 10].map(Gate::margin), |stage| {
            ran += 1;
            Ok::<_, Infallible>(answer(stage, margins[stage]))
        });
        assert_eq!(settled, Ok((1, answer(1, 10))));
        assert_eq!(ran, 2);
    }

    #[test]
    fn the_last_resort_answers_whatever_its_margin() {
        let settled = settle(&[Gate::margin(5)], |stage| Ok::<_, Infallible>(answer(stage, 0)));
        assert_eq!(settled.map(|(stage, _)| stage), Ok(1));
    }

    #[test]
    fn scores_are_summed_in_units_of_the_later_stage() {
        let mut scores = [10, -7, i32::MAX];
        sum_scores(&mut scores, &[3, 5, 1], 0.5);
        // 1.5 and 2.5 round to even.
        assert_eq!(scores, [12, -5, i32::MAX]);
        sum_scores(&mut scores, &[-1, i32::MIN, 1], f32::MAX);
        assert_eq!(scores, [i32::MIN, i32::MIN, i32::MAX]);
    }

    #[test]
    fn a_gate_takes_the_entries_of_both_leading_classes_off_the_margin() {
        let gate =
            Gate { accept_at: 5, predicted: &[0, 4], runner_up: &[-1, i32::MIN], disagreement: 0 };
        assert_eq!(gate.confidence(Answer { class: 1, runner_up: 0, margin: 8 }, None), 5);
        assert!(gate.accepts(Answer { class: 1, runner_up: 0, margin: 8 }, None));
        assert!(!gate.accepts(Answer { class: 1, runner_up: 0, margin: 7 }, None));
        assert_eq!(gate.confidence(Answer { class: 0, runner_up: 1, margin: 8 }, None), i32::MAX);
        // Classes that no table knows.
        assert_eq!(gate.confidence(Answer { class: 7, runner_up: 9, margin: 8 }, None), 8);
    }

    #[test]
    fn an_answer_other_than_that_of_the_stage_before_must_be_surer() {
        let gate = Gate { disagreement: 6, ..Gate::margin(5) };
        for (before, sure) in [(None, true), (Some(1), true), (Some(0), false)] {
            assert_eq!(gate.accepts(answer(1, 10), before), sure, "{before:?}");
        }
        let gates = [Gate { disagreement: 6, ..Gate::margin(20) }, gate];
        // The first stage has none before it.
        for (classes, stage) in [([1, 1, 1], 1), ([0, 1, 1], 2)] {
            let settled = settle(&gates, |stage| Ok::<_, Infallible>(answer(classes[stage], 10)));
            assert_eq!(settled.map(|(stage, _)| stage), Ok(stage));
        }
    }
}
