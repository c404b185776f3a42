//! The decision of a dynamic policy: accept, or run the next stage.

use crate::margin::Answer;

/// Whether a stage that accepts from margin `accept_at` keeps this answer.
pub fn accepts(answer: Answer, accept_at: i32) -> bool {
    accept_at <= answer.margin
}

/// Runs stages in order until one accepts its own answer; the last resort, after as many stages as
/// there are thresholds, always does. Gives the index of the stage that answered, and the answer.
///
/// # Errors
///
/// What `run` fails with.
pub fn settle<E>(
    accept_at: &[i32],
    mut run: impl FnMut(usize) -> Result<Answer, E>,
) -> Result<(usize, Answer), E> {
    for (stage, &threshold) in accept_at.iter().enumerate() {
        let answer = run(stage)?;
        if accepts(answer, threshold) {
            return Ok((stage, answer));
        }
    }
    Ok((accept_at.len(), run(accept_at.len())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;

    #[test]
    fn the_first_sure_stage_answers_and_later_ones_never_run() {
        let margins = [3, 10, 99];
        let mut ran = 0;
        let settled = settle(&[5, 10], |stage| {
            ran += 1;
            Ok::<_, Infallible>(Answer { class: stage, margin: margins[stage] })
        });
        assert_eq!(settled, Ok((1, Answer { class: 1, margin: 10 })));
        assert_eq!(ran, 2);
    }

    #[test]
    fn the_last_resort_answers_whatever_its_margin() {
        let settled = settle(&[5], |stage| Ok::<_, Infallible>(Answer { class: stage, margin: 0 }));
        assert_eq!(settled.map(|(stage, _)| stage), Ok(1));
    }
}
