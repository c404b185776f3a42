//! Whether a job makes sense, and how it divides its samples.

use super::{CharacterizeError, Job, MOST_STAGES};
use crate::data::Dataset;
use crate::energy::Storage;
use crate::search::Rules;
use crate::summary::Constraint;
use crate::trace::{Random, Shares, Splits, deal, members};

/// Whether the request makes sense by itself.
pub(super) fn check(job: &Job) -> Result<(), String> {
    let Constraint { max_accuracy_drop: target, guarantee, confidence, .. } = job.constraint;
    if !(0.0..1.0).contains(&target) {
        return Err(format!(
            "the largest accuracy drop must be a fraction from 0 to below 1, such as 0.005 for half a point, got {target}"
        ));
    }
    if let Some(drop) = guarantee.filter(|&drop| !(drop > 0.0 && drop < 1.0)) {
        return Err(format!("the guaranteed drop must be a fraction between 0 and 1, got {drop}"));
    }
    if !(0.5..=0.9999).contains(&confidence) {
        return Err(format!("the confidence must be from 0.5 to 0.9999, got {confidence}"));
    }
    let Rules { max_escalation, max_worst_uj, max_worst_us, max_class_drop, .. } = job.rules;
    if !(0.0..=1.0).contains(&max_escalation) {
        return Err(format!(
            "the largest escalation rate must be a fraction from 0 to 1, got {max_escalation}"
        ));
    }
    for budget in job.constraint.max_energy_uj.iter().chain([&max_worst_uj]) {
        if *budget <= 0.0 || budget.is_nan() {
            return Err(format!("a budget of energy must be positive, got {budget} uJ"));
        }
    }
    if max_worst_us <= 0.0 || max_worst_us.is_nan() {
        return Err(format!("the longest latency must be positive, got {max_worst_us} us"));
    }
    if let Some(cap) = max_class_drop {
        if !(0.0..=1.0).contains(&cap) {
            return Err(format!(
                "the largest drop of a class must be a fraction from 0 to 1, got {cap}"
            ));
        }
        if job.rules.stages > 2 {
            return Err(format!(
                "a cap on the drop of a class needs at most 2 stages, got {}",
                job.rules.stages
            ));
        }
    }
    if let Some(&target) = job.more_targets.iter().find(|target| !(0.0..1.0).contains(*target)) {
        return Err(format!(
            "the largest accuracy drop of a further policy must be a fraction from 0 to below 1, got {target}"
        ));
    }
    if !job.more_targets.is_empty() && job.storage == Storage::Nested {
        return Err(
            "several policies in a bundle need independent storage, got `nested`".to_owned()
        );
    }
    if !(1..=MOST_STAGES).contains(&job.rules.stages) {
        return Err(format!("a policy has 1 to {MOST_STAGES} stages, got {}", job.rules.stages));
    }
    Ok(())
}

/// Divides the samples. Calibration samples come from their own data set, or are split off first.
pub(super) fn splits(
    job: &Job,
    data: &Dataset,
    labels: &[u32],
    classes: usize,
    calibration: &Dataset,
) -> Result<Splits, CharacterizeError> {
    let Shares { calibration: wanted, search, certification } = job.shares;
    let test = 1.0 - search - certification;
    if search <= 0.0 || certification < 0.0 || test <= 0.0 || wanted == 0 {
        return Err(CharacterizeError::Job(format!(
            "shares must leave samples for all: search {search}, certification {certification}, test {test:.3}, calibration {wanted} samples"
        )));
    }
    let mut random = Random::new(job.seed);
    let own = job.calibration.is_some();
    let mut chosen = |set: &Dataset, wanted: usize| -> Vec<usize> {
        let unlabelled = vec![0; set.len()];
        let labels = set.labels().unwrap_or(&unlabelled);
        let rest = (set.len() - wanted) as f64;
        members(&deal(labels, &[wanted as f64, rest], &mut random), 2).swap_remove(0)
    };
    let calibrating = if own {
        chosen(calibration, wanted.min(calibration.len()))
    } else {
        // At most a fifth: most samples are for choosing and reporting.
        chosen(data, wanted.min(data.len() / 5))
    };
    let pool: Vec<usize> = if own {
        (0..data.len()).collect()
    } else {
        (0..data.len()).filter(|i| calibrating.binary_search(i).is_err()).collect()
    };
    let pool = match &job.class_mix {
        Some(mix) => {
            mixed(&pool, labels, classes, mix, &mut random).map_err(CharacterizeError::Job)?
        }
        None => pool,
    };
    let labels: Vec<u32> = pool.iter().map(|&i| labels[i]).collect();
    let dealt = members(&deal(&labels, &[search, certification, test], &mut random), 3);
    let [search, certification, test] =
        [0, 1, 2].map(|part| dealt[part].iter().map(|&i| pool[i]).collect::<Vec<_>>());
    if calibrating.is_empty() || search.len() < 10 || test.is_empty() {
        return Err(CharacterizeError::Job(format!(
            "data `{}`: {} samples are too few: {} for calibration, {} for search (expected at least 10), {} for the test",
            data.path().display(),
            data.len(),
            calibrating.len(),
            search.len(),
            test.len()
        )));
    }
    Ok(Splits {
        schema_version: 1,
        data_sha256: data.sha256().to_owned(),
        calibration_sha256: calibration.sha256().to_owned(),
        seed: job.seed,
        calibration: calibrating,
        search,
        certification,
        test,
    })
}

/// The most of the samples whose classes are mixed in the given shares (relative to their sum),
/// ascending. Which ones of a class are left out is drawn.
fn mixed(
    samples: &[usize],
    labels: &[u32],
    classes: usize,
    mix: &[f64],
    random: &mut Random,
) -> Result<Vec<usize>, String> {
    let sum: f64 = mix.iter().sum();
    let fine = |&share: &f64| share >= 0.0 && share.is_finite();
    if mix.len() != classes || !mix.iter().all(fine) || sum <= 0.0 {
        return Err(format!(
            "the class mix must be {classes} shares of at least 0, one for each class, got {mix:?}"
        ));
    }
    let mut order = samples.to_vec();
    random.shuffle(&mut order);
    let mut members = vec![Vec::new(); classes];
    for sample in order {
        members[labels[sample] as usize].push(sample);
    }
    // Samples for a whole unit of shares: as many as the scarcest class has.
    let wanted = || members.iter().zip(mix).filter(|(_, share)| **share > 0.0);
    let unit =
        wanted().map(|(members, share)| members.len() as f64 / share).fold(f64::MAX, f64::min);
    let mut kept = Vec::new();
    for (members, share) in wanted() {
        kept.extend(members.iter().take((unit * share + 1e-9) as usize));
    }
    kept.sort_unstable();
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_left_out_until_the_mix_is_that_of_deployment() {
        // 60, 30 and 10 samples.
        let labels: Vec<u32> = (0..100).map(|i| u32::from(i >= 60) + u32::from(i >= 90)).collect();
        let all: Vec<usize> = (0..100).collect();
        let kept = |mix: &[f64]| mixed(&all, &labels, 3, mix, &mut Random::new(1));
        let counts = |mix: &[f64]| {
            let kept = kept(mix).unwrap();
            assert!(kept.is_sorted());
            [0, 1, 2].map(|class| kept.iter().filter(|&&i| labels[i] == class).count())
        };
        assert_eq!(counts(&[1.0, 1.0, 1.0]), [10, 10, 10]);
        assert_eq!(counts(&[0.6, 0.3, 0.1]), [60, 30, 10]);
        assert_eq!(counts(&[2.0, 4.0, 0.0]), [15, 30, 0]);
        for bad in [&[1.0, 1.0][..], &[0.0, 0.0, 0.0], &[1.0, -1.0, 1.0], &[1.0, f64::NAN, 1.0]] {
            assert!(kept(bad).unwrap_err().contains("3 shares"));
        }
    }
}
