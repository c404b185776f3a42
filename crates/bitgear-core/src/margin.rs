//! The score margin: how sure an answer is.

/// A class and how far its score leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Index of the highest score; the lowest such index on a tie.
    pub class: usize,
    /// Index of the second-highest score, likewise; that of the highest where there is no other.
    pub runner_up: usize,
    /// Highest minus second-highest score, in units of the scores; `i32::MAX` where it exceeds that
    /// or there is no second score.
    pub margin: i32,
}

/// The answer that `scores` give. No scores at all give class 0.
pub fn answer(scores: &[i32]) -> Answer {
    let (mut class, mut runner_up, mut first, mut second) = (0, 0, None, None);
    for (index, &score) in scores.iter().enumerate() {
        if first.is_none_or(|first| score > first) {
            (runner_up, second) = (class, first);
            (class, first) = (index, Some(score));
        } else if second.is_none_or(|second| score > second) {
            (runner_up, second) = (index, Some(score));
        }
    }
    let margin = match (first, second) {
        (Some(first), Some(second)) => {
            i32::try_from(i64::from(first) - i64::from(second)).unwrap_or(i32::MAX)
        }
        _ => i32::MAX,
    };
    Answer { class, runner_up, margin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_index_wins_a_tie_with_margin_zero() {
        assert_eq!(answer(&[1, 7, 7, 3]), Answer { class: 1, runner_up: 2, margin: 0 });
        // A tie for the second place goes to the lowest index too.
        assert_eq!(answer(&[3, 1, 7, 3]), Answer { class: 2, runner_up: 0, margin: 4 });
    }

    #[test]
    fn the_margin_is_the_lead_over_the_second_wherever_it_stands() {
        for scores in [[9, 4, 1], [4, 9, 1], [1, 4, 9], [4, 1, 9]] {
            assert_eq!(answer(&scores).margin, 5, "{scores:?}");
        }
        assert_eq!(answer(&[-9, -4]), Answer { class: 1, runner_up: 0, margin: 5 });
    }

    #[test]
    fn margins_beyond_the_range_saturate() {
        assert_eq!(answer(&[i32::MIN, i32::MAX]).margin, i32::MAX);
        assert_eq!(answer(&[3]), Answer { class: 0, runner_up: 0, margin: i32::MAX });
    }
}
