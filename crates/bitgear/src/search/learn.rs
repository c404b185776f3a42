//! A gate that is learned: the margin, less two small tables of integers, one indexed by the predicted
//! class and one by the runner-up, and less an integer where the stage before answered otherwise. A device
//! computes it with two look-ups, a comparison and three subtractions.
//!
//! A narrow network predicts some classes too often, and takes some for others. So the gain of handing
//! on, "next stage right minus this stage right" in {-1, 0, 1}, is fitted by
//!
//! E\[gain\] = exp(b - m · margin + p\[predicted\] + r\[runner-up\] + d · disagrees)
//!
//! with Poisson quasi-likelihood, which is convex whatever the signs, and a penalty that shrinks p, r and d
//! towards 0, the plain margin. Equal gains lie at equal m · margin - p - r - d.

use crate::policy::Tables;

/// What one sample teaches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lesson {
    pub(super) margin: i32,
    pub(super) predicted: usize,
    pub(super) runner_up: usize,
    /// Whether the stage before predicted another class.
    pub(super) disagrees: bool,
    /// Next stage right minus this stage right.
    pub(super) gain: f64,
    /// As how many samples it counts.
    pub(super) weight: f64,
}

/// More classes than this leave too few samples for each.
pub(super) const MOST_CLASSES: usize = 32;
/// The penalty is half of this times the squares of p, r and d: as if they were spread by a half.
const PENALTY: f64 = 4.0;
const ITERATIONS: usize = 30;

/// The tables that the lessons speak for; `None` where handing on gains nothing, or the margin says
/// nothing about it.
pub(super) fn fit(lessons: &[Lesson], classes: usize) -> Option<Tables> {
    let gained: f64 = lessons.iter().map(|l| l.weight * l.gain).sum();
    if gained <= 0.0 || classes > MOST_CLASSES {
        return None;
    }
    // Margins in units of their mean.
    let count: f64 = lessons.iter().map(|l| l.weight).sum();
    let unit = lessons.iter().map(|l| l.weight * f64::from(l.margin)).sum::<f64>() / count;
    if unit <= 0.0 {
        return None;
    }
    let size = 3 + 2 * classes;
    let features = |l: &Lesson| {
        [
            (0, 1.0),
            (1, -f64::from(l.margin) / unit),
            (2 + l.predicted, 1.0),
            (2 + classes + l.runner_up, 1.0),
            (2 + 2 * classes, f64::from(u8::from(l.disagrees))),
        ]
    };
    let eta = |x: &[f64], l: &Lesson| -> f64 {
        features(l).iter().map(|&(i, value)| x[i] * value).sum::<f64>().min(50.0)
    };
    let loss = |x: &[f64]| -> f64 {
        let fit = lessons.iter().map(|l| l.weight * (eta(x, l).exp() - l.gain * eta(x, l)));
        let penalty: f64 = x[2..].iter().map(|v| v * v).sum();
        fit.sum::<f64>() + 0.5 * PENALTY * penalty
    };
    let mut x = vec![0.0; size];
    (x[0], x[1]) = ((gained / count).ln(), 1.0);
    let mut best = loss(&x);
    for _ in 0..ITERATIONS {
        let mut slope = vec![0.0; size];
        let mut curvature = vec![0.0; size * size];
        for l in lessons {
            let mean = eta(&x, l).exp();
            let features = features(l);
            for &(i, value) in &features {
                slope[i] += l.weight * (mean - l.gain) * value;
                for &(j, other) in &features {
                    curvature[i * size + j] += l.weight * mean * value * other;
                }
            }
        }
        for i in 0..size {
            if i >= 2 {
                slope[i] += PENALTY * x[i];
            }
            curvature[i * size + i] += if i >= 2 { PENALTY } else { 1e-9 };
        }
        let step = solve(curvature, slope)?;
        // The loss is convex: some fraction of a Newton step lowers it.
        let mut fraction = 1.0;
        let moved = loop {
            let tried: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x - fraction * s).collect();
            let loss = loss(&tried);
            if loss < best {
                let gained = best - loss;
                (x, best) = (tried, loss);
                break gained;
            }
            fraction *= 0.5;
            if fraction < 1e-6 {
                break 0.0;
            }
        };
        if moved < 1e-9 * best.abs().max(1.0) {
            break;
        }
    }
    if x[1] < 1e-3 || !best.is_finite() {
        return None;
    }
    let entry = |value: &f64| (value / x[1] * unit).round() as i32;
    Some(Tables {
        predicted: x[2..2 + classes].iter().map(entry).collect(),
        runner_up: x[2 + classes..2 + 2 * classes].iter().map(entry).collect(),
        // Where agreement speaks for handing on, that is chance.
        disagreement: entry(&x[2 + 2 * classes]).max(0),
    })
}

/// Solves a symmetric positive definite system (row-major) by Cholesky; `None` where it is not.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for j in 0..n {
        for i in j..n {
            let dot: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - dot;
            if i == j {
                if rest <= 0.0 || rest.is_nan() {
                    return None;
                }
                a[j * n + j] = rest.sqrt();
            } else {
                a[i * n + j] = rest / a[j * n + j];
            }
        }
    }
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| a[i * n + k] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i * n + i];
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Random;

    /// Gains of exp(-margin / 100), which class 1 has at margins higher by 80.
    fn lessons(count: usize) -> Vec<Lesson> {
        let mut random = Random::new(1);
        let mut uniform = || random.next_u64() as f64 / 2.0_f64.powi(64);
        (0..count)
            .map(|_| {
                let (margin, predicted) = ((400.0 * uniform()) as i32, (3.0 * uniform()) as usize);
                let shifted = f64::from(margin) - if predicted == 1 { 80.0 } else { 0.0 };
                let gain = f64::from(u8::from(uniform() < 0.4 * (-shifted / 100.0).exp()));
                // Helpful and harmful flips of no consequence on top.
                let noise = if uniform() < 0.02 { (2.0 * uniform() - 1.0).signum() } else { 0.0 };
                let runner_up = (predicted + 1) % 3;
                let gain = gain + noise;
                Lesson { margin, predicted, runner_up, disagrees: false, gain, weight: 1.0 }
            })
            .collect()
    }

    #[test]
    fn a_class_that_is_predicted_too_often_is_handed_on_at_higher_margins() {
        let tables = fit(&lessons(40_000), 3).unwrap();
        // The runner-up tells the class too here: what counts is the sum.
        let offset = |class: usize| tables.predicted[class] + tables.runner_up[(class + 1) % 3];
        let shift = offset(1) - i32::midpoint(offset(0), offset(2));
        assert!((shift - 80).abs() < 12, "{tables:?}");
    }

    #[test]
    fn an_answer_that_contradicts_the_stage_before_is_handed_on_at_higher_margins() {
        // Class 1 stands for disagreement here.
        let mut lessons = lessons(40_000);
        for lesson in &mut lessons {
            lesson.disagrees = lesson.predicted == 1;
            (lesson.predicted, lesson.runner_up) = (0, 1);
        }
        let tables = fit(&lessons, 2).unwrap();
        assert!((tables.disagreement - 80).abs() < 12, "{tables:?}");
        // And nothing is taken off for agreement.
        for lesson in &mut lessons {
            lesson.disagrees = !lesson.disagrees;
        }
        assert_eq!(fit(&lessons, 2).unwrap().disagreement, 0);
    }

    #[test]
    fn a_lesson_of_weight_two_teaches_what_two_lessons_do() {
        let once = lessons(400);
        let twice = [&once[..], &once[..100]].concat();
        let mut weighted = once;
        for lesson in &mut weighted[..100] {
            lesson.weight = 2.0;
        }
        assert_eq!(fit(&weighted, 3), fit(&twice, 3));
    }

    #[test]
    fn few_lessons_stay_close_to_the_plain_margin() {
        let few = fit(&lessons(60), 3).unwrap();
        assert!(few.predicted.iter().all(|&entry| entry.abs() < 60), "{few:?}");
    }

    #[test]
    fn nothing_to_gain_gives_no_gate() {
        let mut lessons = lessons(100);
        for lesson in &mut lessons {
            lesson.gain = -lesson.gain;
        }
        assert_eq!(fit(&lessons, 3), None);
        assert_eq!(fit(&[], 3), None);
    }
}
