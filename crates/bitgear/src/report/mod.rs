//! `report.html`: what a run found, for people. One file that needs no network, and scripts only for its
//! explorer; its figures are also to be had as SVG files.
//!
//! A page is a pure function of a run's folder: equal folders give equal bytes.

mod compare;
mod confusion;
mod energy;
mod explorer;
mod frontier;
mod layers;
mod page;
mod provenance;
mod replay;
mod saving;
mod stages;
mod svg;
pub mod text;

pub use compare::comparison;

use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use self::replay::Replay;
use crate::policy::{InvalidPolicy, PolicyFile};
use crate::summary::Summary;
use crate::trace::{Trace, TraceError, read};

/// A drawing of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name, which is that of its file without `.svg`.
    pub name: String,
    /// For a page, in which a style sheet knows its classes.
    svg: String,
    /// What it shows, as HTML.
    caption: String,
}

impl Figure {
    /// A file of its own: SVG in light colours on white, which slide programs read.
    pub fn file(&self) -> String {
        svg::standalone(&self.svg)
    }
}

/// A finished run, as a report reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    summary: Summary,
    policy: PolicyFile,
    replay: Replay,
}

/// There is no report of these files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file can't be read.
    #[error("cannot read `{path}`: {reason}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The trace can't be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The policy contradicts itself.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
    /// The files are not of one run.
    #[error("the files do not belong together: {0}")]
    Mismatch(String),
}

impl ReportError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "a run's folder is what `bitgear characterize` was given as --out",
            _ => {
                "its files are of several runs, or were changed: characterize into this folder again, which goes on from its trace where it can"
            }
        }
    }
}

impl Run {
    /// A run from its parts: the policy is replayed on the trace.
    ///
    /// # Errors
    ///
    /// When they do not belong together.
    pub fn new(summary: Summary, policy: PolicyFile, trace: &Trace) -> Result<Self, ReportError> {
        policy.check()?;
        let fail = |what: String| Err(ReportError::Mismatch(what));
        let [ours, theirs] = [summary.policy.stages.len(), policy.stages.len()].map(|n| n + 1);
        if ours != theirs {
            return fail(format!("`summary.json` has {ours} stages, `policy.json` {theirs}"));
        }
        let rates = summary.policy.escalation_rates.len();
        if rates + 1 != ours {
            return fail(format!("`summary.json` has {rates} escalation rates of {ours} stages"));
        }
        let costs = &summary.stage_energies;
        let layers = costs.first().map_or(0, |stage| stage.layers.len());
        if !costs.is_empty()
            && (costs.len() != ours || costs.iter().any(|stage| stage.layers.len() != layers))
        {
            return fail(format!("`summary.json` takes the costs of {} stages apart", costs.len()));
        }
        let replay = Replay::new(trace, &policy)?;
        if replay.weights.iter().all(|&weight| weight == 0) {
            return fail("the trace has no test samples".to_owned());
        }
        let (said, found) = (summary.policy.accuracy, replay.accuracy());
        if said != found || summary.policy.escalation_rates != replay.escalation_rates() {
            return fail(format!(
                "`summary.json` gives the policy an accuracy of {said}, the trace of {found}"
            ));
        }
        Ok(Self { summary, policy, replay })
    }

    /// Reads the folder that `characterize` wrote.
    ///
    /// # Errors
    ///
    /// When a file is missing, damaged, or of another run.
    pub fn read(folder: &Path) -> Result<Self, ReportError> {
        let summary = json(&folder.join("summary.json"))?;
        let policy = json(&folder.join("policy.json"))?;
        Self::new(summary, policy, &read(&folder.join("trace.parquet"))?)
    }

    /// What is in `summary.json` and in `policy.json`.
    pub fn into_parts(self) -> (Summary, PolicyFile) {
        (self.summary, self.policy)
    }

    /// The page, as HTML.
    pub fn page(&self) -> String {
        page::page(self)
    }

    /// The page's figures, in its order.
    pub fn figures(&self) -> Vec<Figure> {
        page::sections(self).into_iter().flat_map(|section| section.figures).collect()
    }

    /// What costs and accuracies are called.
    fn words(&self) -> Words {
        let time = self.summary.cost_unit == "us";
        Words {
            cost: if time { "time" } else { "energy" },
            unit: if time { "µs" } else { "µJ" },
            accuracy: if self.summary.samples.labelled {
                "accuracy"
            } else {
                "agreement with the reference"
            },
        }
    }

    /// Names of the stages, the last resort included: `w4a4 on the mirrored input, scores summed`.
    fn stage_names(&self) -> Vec<String> {
        let PolicyFile { stages, last_resort, .. } = &self.policy;
        let stages = stages.iter().map(|s| (&s.point, &s.view, s.sum.is_some()));
        let last = (&last_resort.point, &last_resort.view, last_resort.sum.is_some());
        stages
            .chain([last])
            .map(|(point, view, sum)| {
                let view = if view == "mirror" { " on the mirrored input" } else { "" };
                let sum = if sum { ", scores summed" } else { "" };
                format!("{point}{view}{sum}")
            })
            .collect()
    }

    /// Whether there is one stage only.
    fn is_static(&self) -> bool {
        self.policy.stages.is_empty()
    }
}

/// What costs and accuracies are called in a run.
#[derive(Clone, Copy, Debug)]
struct Words {
    /// `energy`, or `time` for profiles of time.
    cost: &'static str,
    /// `µJ` or `µs`.
    unit: &'static str,
    /// `accuracy`, or what stands in its place without labels.
    accuracy: &'static str,
}

impl Words {
    /// A cost with its unit.
    fn cost(self, value: f64) -> String {
        format!("{} {}", text::energy(value), self.unit)
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, ReportError> {
    let fail = |reason: String| ReportError::Read { path: path.display().to_string(), reason };
    let bytes = std::fs::read(path).map_err(|e: io::Error| fail(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))
}

#[cfg(test)]
mod tests;
