//! What every sample did at every operating point: the waist between the model half and the
//! decision half.

mod file;
mod fragments;
mod mix;
mod parts;
mod random;
mod splits;

pub use file::{to_bytes, write};
pub use fragments::{provenance, read};
pub use mix::{ClassMix, effective, weights};
pub use parts::Parts;
pub use random::Random;
pub use splits::{Shares, Split, Splits, deal, members};

use serde::{Deserialize, Serialize};

/// The name under which the float network stands in a trace.
pub const FLOAT: &str = "float";

/// With more classes than this only the [`TOP`] highest scores are kept.
pub const ALL_SCORES: usize = 32;
/// How many scores are kept of many.
pub const TOP: usize = 8;

/// How the input is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// As it is.
    AsIs,
    /// Mirrored.
    Mirror,
}

impl View {
    /// `as-is` or `mirror`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsIs => "as-is",
            Self::Mirror => "mirror",
        }
    }

    /// The view of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::AsIs, Self::Mirror].into_iter().find(|view| view.name() == name)
    }
}

/// What samples answered at one point and view, in the order of the trace's samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Name of the operating point, or [`FLOAT`].
    pub point: String,
    /// How the input was shown.
    pub view: View,
    /// Worth of one unit of scores and margins.
    pub score_scale: f64,
    /// The answers.
    pub answers: Answers,
}

/// Answers of consecutive samples.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Answers {
    /// Predicted class of each sample.
    pub predicted: Vec<u32>,
    /// Score margin of each sample, in units of the block's score scale.
    pub margins: Vec<i32>,
    /// The kept scores, sample by sample: of all classes in order, or the [`TOP`] highest, falling.
    pub scores: Vec<i32>,
    /// The classes of the kept scores where not all are kept, else empty.
    pub score_classes: Vec<u32>,
}

impl Answers {
    /// Takes in one sample's scores of all classes, with its answer.
    pub fn push(&mut self, predicted: u32, margin: i32, scores: &[i32]) {
        self.predicted.push(predicted);
        self.margins.push(margin);
        if scores.len() <= ALL_SCORES {
            self.scores.extend_from_slice(scores);
            return;
        }
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        order.sort_by_key(|&class| (std::cmp::Reverse(scores[class as usize]), class));
        order.truncate(TOP);
        self.scores.extend(order.iter().map(|&class| scores[class as usize]));
        self.score_classes.extend(order);
    }

    /// Takes in the answers of the samples that follow.
    pub fn append(&mut self, mut more: Self) {
        self.predicted.append(&mut more.predicted);
        self.margins.append(&mut more.margins);
        self.scores.append(&mut more.scores);
        self.score_classes.append(&mut more.score_classes);
    }

    /// Takes in one sample's answer from a row of others.
    fn push_row(&mut self, from: &Self, row: usize) {
        let kept = from.scores.len() / from.len();
        let span = row * kept..(row + 1) * kept;
        self.predicted.push(from.predicted[row]);
        self.margins.push(from.margins[row]);
        self.scores.extend_from_slice(&from.scores[span.clone()]);
        self.score_classes.extend_from_slice(from.score_classes.get(span).unwrap_or(&[]));
    }

    /// The class with the highest score but for the predicted one, the lowest on a tie; the predicted
    /// one itself where there is no other.
    pub fn runner_up(&self, sample: usize) -> u32 {
        let kept = self.scores.len() / self.len();
        let span = sample * kept..(sample + 1) * kept;
        let classes = self.score_classes.get(span.clone());
        let predicted = self.predicted[sample];
        let mut best: Option<(i32, u32)> = None;
        for (index, &score) in self.scores[span].iter().enumerate() {
            let class = classes.map_or(index as u32, |classes| classes[index]);
            if class != predicted && best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, class));
            }
        }
        best.map_or(predicted, |(_, class)| class)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.predicted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.predicted.is_empty()
    }

    /// Whether the columns belong to `samples` samples of `classes` classes.
    fn fits(&self, samples: usize, classes: usize) -> bool {
        let kept = kept_scores(classes);
        let listed = if classes > ALL_SCORES { samples * kept } else { 0 };
        self.predicted.len() == samples
            && self.margins.len() == samples
            && self.scores.len() == samples * kept
            && self.score_classes.len() == listed
            && self.predicted.iter().chain(&self.score_classes).all(|&c| (c as usize) < classes)
    }
}

/// How many scores of each sample are kept.
fn kept_scores(classes: usize) -> usize {
    if classes <= ALL_SCORES { classes } else { TOP }
}

/// What every evaluated sample did at every point and view.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Number of classes.
    pub classes: usize,
    /// Shares of the classes in deployment; `None` where they are as in the data.
    pub class_mix: Option<ClassMix>,
    /// Index of each sample in its data set.
    pub samples: Vec<usize>,
    /// Split of each sample.
    pub splits: Vec<Split>,
    /// Label of each sample.
    pub labels: Vec<u32>,
    /// One for each point and view.
    pub blocks: Vec<Block>,
}

impl Trace {
    /// The block of a point and view.
    pub fn block(&self, point: &str, view: View) -> Option<&Block> {
        self.blocks.iter().find(|b| b.point == point && b.view == view)
    }

    /// Rows of the samples in a split.
    pub fn rows(&self, split: Split) -> Vec<usize> {
        (0..self.samples.len()).filter(|&row| self.splits[row] == split).collect()
    }

    /// How much each of the rows counts, so that their classes count as in deployment.
    pub fn weights(&self, rows: &[usize]) -> Vec<i64> {
        weights(self.class_mix.as_ref(), rows.iter().map(|&row| self.labels[row]))
    }

    /// Whether each sample's answer in `block` is right.
    pub fn correct(&self, block: &Block) -> Vec<bool> {
        block.answers.predicted.iter().zip(&self.labels).map(|(p, l)| p == l).collect()
    }
}

/// The trace can't be read, written or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The system refused.
    #[error("cannot access `{path}`: {reason}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The file is no trace.
    #[error("`{path}` is no trace: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// What was expected.
        reason: String,
    },
}

impl TraceError {
    fn io(path: &std::path::Path, reason: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), reason }
    }

    fn invalid(path: &std::path::Path, reason: impl ToString) -> Self {
        Self::Invalid { path: path.display().to_string(), reason: reason.to_string() }
    }
}
