//! One finished run on many accelerators, without running the model again.

use std::path::Path;

use rayon::prelude::*;

use super::{CharacterizeError, PLAIN, untuned, widths, workload};
use crate::energy::{AcceleratorProfile, EnergyError, Storage, Widths as EnergyWidths, Workload};
use crate::hash::sha256;
use crate::onnx::{self, ImportError};
use crate::policy::PolicyFile;
use crate::quantize::Point;
use crate::search::{Candidates, Kind, PointInfo, Pool};
use crate::summary::{Facts, Summary, summarize};
use crate::trace::{self, FLOAT, Split, Trace};

/// A policy chosen for each profile from the trace of a run in folder `run`, with the run's own target
/// and seed, in the order of the profiles. `model` is the run's ONNX file: its layers are counted, it
/// isn't run. Every stage has weights of its own, and nothing is repeated: `repeated.n` is 0.
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
    let name = model.display().to_string();
    let bytes = std::fs::read(model).map_err(|reason| {
        CharacterizeError::Import(name.clone(), ImportError::Read { path: name.clone(), reason })
    })?;
    let graph = onnx::import(&bytes, model.parent())
        .map_err(|e| CharacterizeError::Import(name.clone(), e))?;
    let summary: Summary = read(&run.join("summary.json"))?;
    let policy: PolicyFile = read(&run.join("policy.json"))?;
    if sha256(&bytes) != summary.model.sha256 {
        return Err(CharacterizeError::Job(format!(
            "model `{name}` is not the one that was traced in `{}`",
            run.display()
        )));
    }
    let trace = trace::read(&run.join("trace.parquet"))?;
    let workload = workload(&graph);
    let points = points(&trace, &summary, &workload).map_err(|reason| {
        CharacterizeError::Job(format!("trace in `{}`: {reason}", run.display()))
    })?;
    let one = |profile: &AcceleratorProfile| {
        let candidates = Candidates::new(&trace, FLOAT, points.clone(), profile, &workload)?;
        let search = trace.rows(Split::Search);
        let (target, seed) = (summary.constraint.max_accuracy_drop, policy.provenance.seed);
        let choice = candidates.choose(&search, target, Pool::Policies, seed);
        let expected = candidates.outcome(choice, &search);
        let chosen =
            PolicyFile::new(&trace, &candidates, choice, &expected, policy.provenance.clone());
        let facts = Facts {
            model: summary.model.clone(),
            calibration: summary.samples.calibration,
            profile,
            workload: &workload,
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
        };
        Ok(summarize(&trace, &candidates, choice, &chosen, facts))
    };
    Ok(profiles.par_iter().map(one).collect())
}

/// What can be chosen of a trace: its points with their widths, which the names or the summary say.
fn points(trace: &Trace, summary: &Summary, workload: &Workload) -> Result<Vec<PointInfo>, String> {
    let layers = workload.layers.len();
    let mut points = Vec::new();
    for block in &trace.blocks {
        let name = block.point.as_str();
        // Nested points are chosen among themselves, and float is what all are held against.
        if name == FLOAT || name.ends_with("-nested") {
            continue;
        }
        let (base, plain) = name.strip_suffix(PLAIN).map_or((name, false), |base| (base, true));
        let (widths, uniform) = if let Some(table) = summary.tables.get(base) {
            let widths =
                table.iter().map(|&[weights, activations]| EnergyWidths { weights, activations });
            (widths.collect(), false)
        } else {
            let point: Point = base.parse().map_err(|_| format!("no widths of point `{base}`"))?;
            (widths(&point, workload), point.is_uniform())
        };
        if widths.len() != layers {
            return Err(format!("point `{base}` has {} layers, the model {layers}", widths.len()));
        }
        let kind = match (plain, uniform) {
            (true, _) => Kind::Plain,
            (false, true) => Kind::Uniform,
            (false, false) => Kind::Mixed,
        };
        let alike = if plain { layers } else { untuned(&widths) };
        points.push(PointInfo { point: name.to_owned(), view: block.view, kind, widths, alike });
    }
    let widest = |p: &PointInfo| p.point == crate::summary::WIDEST;
    let kinds = [Kind::Uniform, Kind::Plain];
    if !points.iter().any(widest) || kinds.iter().any(|&k| !points.iter().any(|p| p.kind == k)) {
        return Err("16-bit, uniform or plain points are missing".to_owned());
    }
    Ok(points)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CharacterizeError> {
    let name = || path.display().to_string();
    let text = std::fs::read(path).map_err(|e| CharacterizeError::Read(name(), e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| CharacterizeError::Read(name(), e.to_string()))
}
