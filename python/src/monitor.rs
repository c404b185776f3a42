//! A stream of answers against the certified samples.

use std::sync::{Mutex, PoisonError};

use bitgear::certify::Monitor as Watch;
use bitgear::policy::PolicyFile;
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use crate::{fail, plain};

/// Watches what a policy answers.
#[pyclass(frozen, module = "bitgear._native")]
pub(crate) struct Monitor {
    watch: Mutex<Watch>,
    stages: usize,
}

#[pymethods]
impl Monitor {
    /// Takes a policy as JSON, and the probability of a false alarm.
    #[new]
    fn new(policy: &str, level: f64) -> PyResult<Self> {
        if !(level > 0.0 && level < 1.0) {
            return Err(plain(format!("`level` must be a fraction between 0 and 1, got {level}")));
        }
        let policy: PolicyFile = serde_json::from_str(policy)
            .map_err(|e| plain(format!("policy: expected what is in `policy.json`: {e}")))?;
        policy.check().map_err(plain)?;
        let stages = policy.stages.len() + 1;
        let Some(certificate) = policy.certificate else {
            return Err(fail(
                "the policy has no certificate to watch",
                Some("characterize without `guarantee`, or with one that can be proved".to_owned()),
            ));
        };
        let watch = Watch::new(certificate.footprint, policy.provenance.seed, level);
        Ok(Self { watch: Mutex::new(watch), stages })
    }

    /// Takes in the first stage's confidences (N) and the stages that answered (N); whether the stream has
    /// drifted by now.
    fn observe(
        &self,
        confidences: PyReadonlyArray1<'_, i64>,
        stages: PyReadonlyArray1<'_, i64>,
    ) -> PyResult<bool> {
        let (confidences, stages) = (confidences.as_array(), stages.as_array());
        if confidences.len() != stages.len() {
            return Err(plain(format!(
                "expected a stage for each of {} confidences, got {}",
                confidences.len(),
                stages.len()
            )));
        }
        let input = |(&confidence, &stage): (&i64, &i64)| {
            let place = usize::try_from(stage).ok().filter(|&stage| stage < self.stages);
            let place = place.ok_or_else(|| {
                plain(format!(
                    "stages must be below {}, the policy's stages, got {stage}",
                    self.stages
                ))
            })?;
            let confidence = i32::try_from(confidence)
                .map_err(|_| plain(format!("{confidence} is no confidence of a first stage")))?;
            Ok((confidence, place))
        };
        let inputs: Vec<(i32, usize)> =
            confidences.iter().zip(stages).map(input).collect::<PyResult<_>>()?;
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        for (confidence, stage) in inputs {
            watch.observe(confidence, stage);
        }
        Ok(watch.finding().drifted)
    }

    /// What has been found so far, as JSON.
    fn finding(&self) -> PyResult<String> {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_string(&watch.finding()).map_err(plain)
    }
}
