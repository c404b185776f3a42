//! Whether a job makes sense, and how it divides its samples.

use super::{CharacterizeError, Job, MOST_STAGES};
use crate::data::Dataset;
use crate::search::Rules;
use crate::summary::Constraint;
use crate::trace::{Random, Shares, Splits, deal, members};

/// Whether the request makes sense by itself.
pub(super) fn check(job: &Job) -> Result<(), String> {
    let Constraint { max_accuracy_drop: target, guarantee, confidence, .. } = job.constraint;
    if !(0.0..1.0).contains(&target) {
        return Err(format!(
            "the largest accuracy drop must be a fraction from 0 to below 1, got {target}"
        ));
    }
    if let Some(drop) = guarantee.filter(|&drop| !(drop > 0.0 && drop < 1.0)) {
        return Err(format!("the guaranteed drop must be a fraction between 0 and 1, got {drop}"));
    }
    if !(0.5..=0.9999).contains(&confidence) {
        return Err(format!("the confidence must be from 0.5 to 0.9999, got {confidence}"));
    }
    let Rules { max_escalation, max_worst_uj, .. } = job.rules;
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
    let labels: Vec<u32> = pool.iter().map(|&i| labels[i]).collect();
    let dealt = members(&deal(&labels, &[search, certification, test], &mut random), 3);
    let [search, certification, test] =
        [0, 1, 2].map(|part| dealt[part].iter().map(|&i| pool[i]).collect::<Vec<_>>());
    if calibrating.is_empty() || search.len() < 10 || test.is_empty() {
        return Err(CharacterizeError::Job(format!(
            "data `{}`: {} samples are too few: {} for calibration, {} for search, {} for the test",
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
