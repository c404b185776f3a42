//! One finished run on many accelerators, without running the model again.

use std::path::Path;

use rayon::prelude::*;

use super::{CharacterizeError, Finished};
use crate::certify::decide;
use crate::energy::{AcceleratorProfile, EnergyError, Storage};
use crate::policy::PolicyFile;
use crate::search::{Candidates, Kind, Pool, Rules};
use crate::summary::{Facts, Summary, WIDEST, summarize};
use crate::trace::FLOAT;

/// A policy chosen for each profile from the trace of a run in folder `run`, with the run's own target
/// and seed but default [`Rules`], in the order of the profiles. `model` is the run's ONNX file: its
/// layers are counted, it isn't run. Every stage has weights of its own, and nothing is repeated: `repeated.n` is 0.
///
/// A profile can only choose among the points that were traced, which were picked for the run's own.
///
/// # Errors
///
/// When the run's files or the model can't be read or do not belong together. A profile that can't
/// price the points has an error of its own.
pub fn compare(
    run: &Path,
    model: &Path,
    profiles: &[AcceleratorProfile],
) -> Result<Vec<Result<Summary, EnergyError>>, CharacterizeError> {
    let Finished { trace, points, workload } = Finished::read(run, model)?;
    let summary: Summary = read(&run.join("summary.json"))?;
    let policy: PolicyFile = read(&run.join("policy.json"))?;
    let layers = workload.layers.len();
    if let Some(point) = points.iter().find(|point| point.widths.len() != layers) {
        return Err(CharacterizeError::Job(format!(
            "point `{}` of `{}` has {} layers, the model {layers}",
            point.point,
            run.display(),
            point.widths.len()
        )));
    }
    let kinds = [Kind::Uniform, Kind::Plain];
    if !points.iter().any(|point| point.point == WIDEST)
        || kinds.iter().any(|&kind| !points.iter().any(|point| point.kind == kind))
    {
        return Err(CharacterizeError::Job(format!(
            "trace in `{}`: 16-bit, uniform or plain points are missing",
            run.display()
        )));
    }
    let demand = summary.constraint.demand();
    let [choosing, proving] = demand.rows(&trace);
    let one = |profile: &AcceleratorProfile| {
        let rules = Rules::default();
        let candidates = Candidates::new(&trace, FLOAT, points.clone(), profile, &workload, rules)?;
        let seed = policy.provenance.seed;
        let verdict = decide(&candidates, &choosing, &proving, &demand, Pool::Policies, seed);
        let expected = candidates.outcome(&verdict.choice, &choosing);
        let chosen = PolicyFile::new(
            &trace,
            &candidates,
            &verdict.choice,
            &expected,
            verdict.certificate.clone(),
            policy.provenance.clone(),
        );
        let facts = Facts {
            model: summary.model.clone(),
            calibration: summary.samples.calibration,
            labelled: summary.samples.labelled,
            profile,
            constraint: summary.constraint,
            reference: summary.reference.kind.clone(),
            tables: summary.tables.clone(),
            sensitivity: None,
            storage: crate::summary::StorageSummary {
                kind: Storage::Independent,
                ..summary.storage
            },
            seed,
            repeats: 0,
            targets: Vec::new(),
            options: Vec::new(),
        };
        Ok(summarize(&trace, &candidates, &verdict, &chosen, facts))
    };
    Ok(profiles.par_iter().map(one).collect())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CharacterizeError> {
    let name = || path.display().to_string();
    let text = std::fs::read(path).map_err(|e| CharacterizeError::Read(name(), e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| CharacterizeError::Read(name(), e.to_string()))
}
