//! A finished run, from which to decide anew without running the model again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::counts::{point_info, widths, workload};
use super::{CharacterizeError, PLAIN};
use crate::energy::{Widths, Workload};
use crate::hash::sha256;
use crate::onnx;
use crate::quantize::Point;
use crate::search::PointInfo;
use crate::trace::{FLOAT, Trace, View, read};

/// What is read of `summary.json`.
#[derive(Deserialize)]
struct Run {
    model: Model,
    tables: BTreeMap<String, Vec<[u8; 2]>>,
}

#[derive(Deserialize)]
struct Model {
    sha256: String,
}

/// What a finished run knows about its points.
#[derive(Clone, Debug)]
pub struct Finished {
    /// What every sample did.
    pub trace: Trace,
    /// The traced points that can be priced; nested ones, which exist for one policy only, are left
    /// out.
    pub points: Vec<PointInfo>,
    /// The counts that energy depends on.
    pub workload: Workload,
}

impl Finished {
    /// Reads the folder of a run of the model.
    ///
    /// # Errors
    ///
    /// When a file can't be read, or the run was one of another model.
    pub fn read(folder: &Path, model: &Path) -> Result<Self, CharacterizeError> {
        let fail = |what: &Path, why: &dyn std::fmt::Display| {
            CharacterizeError::Job(format!("`{}`: {why}", what.display()))
        };
        let path = folder.join("summary.json");
        let text = std::fs::read_to_string(&path).map_err(|e| fail(&path, &e))?;
        let run: Run = serde_json::from_str(&text).map_err(|e| fail(&path, &e))?;
        let imported = |e| CharacterizeError::import(model, e);
        let bytes = onnx::read_file(model).map_err(imported)?;
        if sha256(&bytes) != run.model.sha256 {
            return Err(fail(model, &format!("`{}` is of another model", path.display())));
        }
        let graph = onnx::import(&bytes).map_err(imported)?;
        let workload = workload(&graph);
        let trace = read(&folder.join("trace.parquet"))?;
        let info = |name: &str, view: View| -> Option<PointInfo> {
            if let Some(table) = run.tables.get(name) {
                let widths =
                    table.iter().map(|&[weights, activations]| Widths { weights, activations });
                return Some(point_info(name.to_owned(), view, false, widths.collect()));
            }
            let point: Point = name.strip_suffix(PLAIN).unwrap_or(name).parse().ok()?;
            Some(point_info(name.to_owned(), view, point.is_uniform(), widths(&point, &workload)))
        };
        let blocks = trace.blocks.iter().filter(|block| block.point != FLOAT);
        let points = blocks.filter_map(|block| info(&block.point, block.view)).collect();
        Ok(Self { trace, points, workload })
    }
}
