//! `bitgear.toml`: a task, so that a run needs no flags.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::certify::Test;
use crate::data::{Preprocess, Source};
use crate::trace::Shares;

/// What a run is to do. Everything is optional here; command-line flags override it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The ONNX file.
    pub model: Option<PathBuf>,
    /// Id of a shipped profile, or a profile's file.
    pub accelerator: Option<String>,
    /// Seed of everything random.
    pub seed: Option<u64>,
    /// Threads; all processors by default.
    pub threads: Option<usize>,
    /// Operating points to trace.
    pub points: Option<Vec<String>>,
    /// Most stages of the policy.
    pub stages: Option<usize>,
    /// Gates compare the margin with a threshold, and learn nothing else.
    #[serde(default)]
    pub margin_only: bool,
    /// Nominal seconds of measuring, fitting and tracing that the choice of points keeps to.
    pub budget: Option<f64>,
    /// Samples.
    #[serde(default)]
    pub data: DataSection,
    /// From stored values to the network's input.
    pub preprocess: Option<Preprocess>,
    /// What must hold.
    #[serde(default)]
    pub constraint: ConstraintSection,
    /// How samples are divided.
    #[serde(default)]
    pub split: SplitSection,
}

/// `[data]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// A `.npz` file or a folder of images.
    pub path: Option<PathBuf>,
    /// A `.npy` file of samples.
    pub images: Option<PathBuf>,
    /// A `.npy` file of labels.
    pub labels: Option<PathBuf>,
    /// Samples for calibration; otherwise they are split off.
    pub calibration: Option<PathBuf>,
    /// Symmetries of the task.
    #[serde(default)]
    pub symmetry: Vec<Symmetry>,
}

/// What leaves a sample's label as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Symmetry {
    /// Left and right exchanged.
    Mirror,
}

/// `[constraint]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConstraintSection {
    /// Target: the expected accuracy drop, as a fraction.
    pub max_accuracy_drop: Option<f64>,
    /// Whether the policy is expected to lose no more than the best static point for it.
    #[serde(default)]
    pub no_worse_than_static: bool,
    /// Drop that is not exceeded, with confidence.
    pub guarantee: Option<f64>,
    /// Confidence of the guarantee.
    pub confidence: Option<f64>,
    /// How it is proved.
    pub test: Option<Test>,
}

/// `[split]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitSection {
    /// Samples for calibration.
    pub calibration: Option<usize>,
    /// Share of the rest for search.
    pub search: Option<f64>,
    /// Share of the rest for certification, or, without a guarantee, for choosing, too; what is left is for the test.
    pub certification: Option<f64>,
    /// Shares of the classes in deployment, relative to their sum, one for each class: samples are weighted by
    /// them, and a guarantee is proved with the most that are mixed so.
    pub class_mix: Option<Vec<f64>>,
}

impl SplitSection {
    /// The shares, with defaults filled in.
    pub fn shares(&self) -> Shares {
        let default = Shares::default();
        Shares {
            calibration: self.calibration.unwrap_or(default.calibration),
            search: self.search.unwrap_or(default.search),
            certification: self.certification.unwrap_or(default.certification),
        }
    }
}

/// The task can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task `{path}`: {reason}")]
pub struct TaskError {
    path: String,
    reason: String,
}

impl Task {
    /// Reads a task; its paths are relative to its own folder.
    ///
    /// # Errors
    ///
    /// When the file can't be read, or holds something unknown or of another type.
    pub fn read(path: &Path) -> Result<Self, TaskError> {
        let fail = |reason: String| TaskError { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let mut task: Self = toml::from_str(&text).map_err(|e| fail(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = [
            &mut task.model,
            &mut task.data.path,
            &mut task.data.images,
            &mut task.data.labels,
            &mut task.data.calibration,
        ];
        for path in paths.into_iter().flatten() {
            *path = folder.join(&path);
        }
        // A profile in a file beside the task; anything else is an id.
        if let Some(accelerator) = &mut task.accelerator
            && folder.join(&accelerator).is_file()
        {
            *accelerator = folder.join(&accelerator).display().to_string();
        }
        Ok(task)
    }

    /// Where the samples are, if the task says so.
    ///
    /// # Errors
    ///
    /// When it says it twice, or half.
    pub fn source(&self) -> Result<Option<Source>, TaskError> {
        let fail =
            |reason: &str| Err(TaskError { path: "[data]".to_owned(), reason: reason.to_owned() });
        match (&self.data.path, &self.data.images, &self.data.labels) {
            (None, None, None) => Ok(None),
            (Some(path), None, None) => Ok(Some(Source::Path(path.clone()))),
            (None, Some(images), Some(labels)) => {
                Ok(Some(Source::Pair { images: images.clone(), labels: labels.clone() }))
            }
            _ => fail("expected either `path`, or `images` and `labels`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Task, TaskError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bitgear.toml");
        std::fs::write(&path, text).unwrap();
        let task = Task::read(&path);
        task.map(|mut task| {
            // Shown relative to the folder, whose name is random.
            if let Some(model) = &mut task.model {
                *model = model.strip_prefix(folder.path()).unwrap().to_owned();
            }
            task
        })
    }

    #[test]
    fn a_task_is_read_and_paths_are_relative_to_it() {
        let task = read(
            "model = \"net.onnx\"\nseed = 3\n[constraint]\nmax_accuracy_drop = 0.01\n[preprocess]\nscale = 0.5\n",
        )
        .unwrap();
        assert_eq!(task.model, Some(PathBuf::from("net.onnx")));
        assert_eq!(task.constraint.max_accuracy_drop, Some(0.01));
        assert_eq!(task.preprocess.unwrap(), Preprocess { scale: 0.5, ..Preprocess::default() });
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_line() {
        let error = read("model = \"net.onnx\"\nmax_drop = 0.01\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("unknown field `max_drop`"), "{error}");
    }

    #[test]
    fn data_named_twice_or_half_is_refused() {
        for text in ["path = \"a.npz\"\nimages = \"x.npy\"", "images = \"x.npy\""] {
            let task = read(&format!("[data]\n{text}\n")).unwrap();
            assert!(task.source().is_err(), "{text}");
        }
    }
}
