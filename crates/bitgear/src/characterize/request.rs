//! Whether a job makes sense, and how it divides its samples.

use super::{CharacterizeError, Job, MOST_STAGES};
use crate::data::Dataset;
use crate::energy::Storage;
use crate::search::Rules;
use crate::summary::Constraint;
use crate::trace::{ClassMix, Random, Shares, Splits, deal, members};

/// Whether the request makes sense by itself.
pub(super) fn check(job: &Job) -> Result<(), String> {
    let Constraint {
        max_accuracy_drop: target,
        no_worse_than_static,
        max_energy_uj,
        guarantee,
        confidence,
        ..
    } = job.constraint;
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
    if no_worse_than_static && max_energy_uj.is_some() {
        return Err("policies that lose no more than a static point need a target, but a budget of energy was given instead: leave out one of the two".to_owned());
    }
    if !(0.0..=1.0).contains(&max_escalation) {
        return Err(format!(
            "the largest escalation rate must be a fraction from 0 to 1, got {max_escalation}"
        ));
    }
    for budget in max_energy_uj.iter().chain([&max_worst_uj]) {
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
    let class_mix = job.class_mix.clone().map(|mix| checked(mix, classes));
    let class_mix = class_mix.transpose().map_err(CharacterizeError::Job)?;
    // Samples of classes that never occur say nothing.
    let occurs = |&i: &usize| class_mix.as_ref().is_none_or(|mix| mix.share(labels[i]) > 0.0);
    let pool: Vec<usize> = pool.into_iter().filter(occurs).collect();
    let pool_labels: Vec<u32> = pool.iter().map(|&i| labels[i]).collect();
    let dealt = members(&deal(&pool_labels, &[search, certification, test], &mut random), 3);
    let [search, certification, test] =
        [0, 1, 2].map(|part| dealt[part].iter().map(|&i| pool[i]).collect::<Vec<_>>());
    if let Some(mix) = &class_mix {
        let parts =
            [("search", &search[..]), ("certification", &certification), ("the test", &test)];
        covers(mix, parts, labels).map_err(CharacterizeError::Job)?;
    }
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
        class_mix,
    })
}

/// The class mix, if it is one of so many classes.
fn checked(shares: Vec<f64>, classes: usize) -> Result<ClassMix, String> {
    let mix = ClassMix::try_from(shares)?;
    if mix.shares().len() != classes {
        return Err(format!(
            "the class mix must be {classes} shares, one for each class, got {}",
            mix.shares().len()
        ));
    }
    Ok(mix)
}

/// Whether every part that has samples has some of each class of the mix.
fn covers(mix: &ClassMix, parts: [(&str, &[usize]); 3], labels: &[u32]) -> Result<(), String> {
    for (name, samples) in parts.into_iter().filter(|(_, samples)| !samples.is_empty()) {
        if let Some(class) = mix.missing(samples.iter().map(|&i| labels[i])) {
            return Err(format!(
                "class {class} has a share of the class mix, but no samples for {name}: give more of them, or the share 0"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_mix_needs_samples_of_all_its_classes_wherever_there_are_any() {
        let error = |mix: &[f64]| checked(mix.to_vec(), 3).unwrap_err();
        assert!(error(&[1.0, 1.0]).contains("3 shares"));
        assert!(error(&[1.0, -1.0, 1.0]).contains("each 0 or at least"));
        let mix = checked(vec![1.0, 2.0, 0.0], 3).unwrap();
        let labels = [0, 1, 0, 1, 0, 2];
        let covered = |test: &[usize]| {
            covers(&mix, [("search", &[0, 1]), ("certification", &[]), ("the test", test)], &labels)
        };
        assert_eq!(covered(&[2, 3]), Ok(()));
        assert_eq!(covered(&[]), Ok(()));
        let error = covered(&[4, 5]).unwrap_err();
        assert!(
            error.contains("class 1 has a share of the class mix, but no samples for the test")
        );
    }
}
