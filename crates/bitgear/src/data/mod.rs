//! Labelled samples: `.npz` files, pairs of `.npy` files, folders of images.
//!
//! Samples keep the type they have in the file; a batch is converted and preprocessed when it is
//! asked for.

mod identity;
mod images;
mod numpy;
mod preprocess;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use identity::{content_hash, sample_hashes};
pub use preprocess::{InvalidPreprocess, Preprocess};

use crate::tensor::Tensor;

/// Why data can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file can't be read.
    #[error("cannot read `{path}`: {reason}")]
    Read {
        /// File or folder.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The data contradicts itself or what is expected of it.
    #[error("data `{path}`: {reason}")]
    Invalid {
        /// File or folder.
        path: String,
        /// What was expected and what was got.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl DataError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Invalid { hint, .. } => hint.as_deref(),
            Self::Read { .. } => None,
        }
    }

    /// Where a class of the mix of deployment has no samples.
    pub(crate) fn no_samples_of(data: &Dataset, class: usize) -> Self {
        Self::invalid(
            data.path(),
            format!("class {class} has a share of the class mix, but no samples"),
        )
        .with_hint("give samples of all classes that the mix has shares of")
    }

    fn with_hint(mut self, text: impl ToString) -> Self {
        if let Self::Invalid { hint, .. } = &mut self {
            *hint = Some(text.to_string());
        }
        self
    }

    fn read(path: &Path, reason: impl ToString) -> Self {
        Self::Read { path: path.display().to_string(), reason: reason.to_string() }
    }

    fn invalid(path: &Path, reason: impl ToString) -> Self {
        let (path, reason) = (path.display().to_string(), reason.to_string());
        Self::Invalid { path, reason, hint: None }
    }
}

/// Values of samples, one after the other, in the type they are stored in; other types are converted
/// to `f32`.
#[derive(Clone, Debug, PartialEq)]
pub enum Samples {
    /// Bytes, and booleans as 0 and 1.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// Signed words, such as audio.
    I16(Vec<i16>),
    /// Everything else.
    F32(Vec<f32>),
}

impl Samples {
    /// Number of values.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }
}

/// Where a data set comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Already in memory.
    Memory(Dataset),
    /// A `.npz` file with arrays `x` and `y`, a folder of images with one folder a class, or
    /// samples without labels: a `.npy` file or an image.
    Path(PathBuf),
    /// Two `.npy` files.
    Pair {
        /// Samples.
        images: PathBuf,
        /// Labels.
        labels: PathBuf,
    },
}

/// Samples and their labels; a clone shares them.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    path: PathBuf,
    sha256: String,
    sample_shape: Vec<usize>,
    count: usize,
    /// `None`: they are on other machines.
    samples: Option<Arc<Samples>>,
    labels: Option<Arc<[u32]>>,
}

impl Dataset {
    /// Reads a data set.
    ///
    /// # Errors
    ///
    /// When files can't be read, have a type or shape that is no data set, or contradict each other.
    pub fn read(source: &Source) -> Result<Self, DataError> {
        match source {
            Source::Memory(data) => Ok(data.clone()),
            Source::Pair { images, labels } => numpy::read_pair(images, Some(labels)),
            Source::Path(path) if path.is_dir() => images::read_folder(path),
            Source::Path(path) => match path.extension().and_then(|e| e.to_str()) {
                Some("npz") => numpy::read_npz(path),
                Some("npy") => numpy::read_pair(path, None),
                Some("png" | "jpg" | "jpeg") => images::read_image(path),
                _ => Err(DataError::invalid(
                    path,
                    "expected a `.npz` or `.npy` file, a folder of images or an image",
                )),
            },
        }
    }

    /// Samples of the given shape, (N, sample shape), and their labels; `path` is their name in messages.
    ///
    /// # Errors
    ///
    /// When the parts do not fit together, or a value is not finite.
    pub fn new(
        path: &Path,
        shape: &[usize],
        samples: Samples,
        labels: Option<Vec<u32>>,
    ) -> Result<Self, DataError> {
        let mut data = Self::unnamed(path, shape, Some(samples), labels)?;
        let samples = data.samples();
        let hashes = sample_hashes(&data.sample_shape, samples);
        data.sha256 = content_hash(shape, samples.kind(), &hashes, data.labels());
        Ok(data)
    }

    /// Samples that are on other machines: shape (N, sample shape), labels if there are any, and the whole's
    /// [hash](content_hash).
    ///
    /// # Errors
    ///
    /// When the parts do not fit together.
    pub fn outline(
        path: &Path,
        sha256: String,
        shape: &[usize],
        labels: Option<Vec<u32>>,
    ) -> Result<Self, DataError> {
        Self::unnamed(path, shape, None, labels).map(|data| Self { sha256, ..data })
    }

    /// Checks that the parts fit together.
    fn unnamed(
        path: &Path,
        shape: &[usize],
        samples: Option<Samples>,
        labels: Option<Vec<u32>>,
    ) -> Result<Self, DataError> {
        let fail = |reason: String| Err(DataError::invalid(path, reason));
        let Some((&count, sample_shape)) = shape.split_first() else {
            return fail("samples must have an axis of samples".to_owned());
        };
        let values = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        if values == Some(0) {
            return fail("there are no samples".to_owned());
        }
        if let Some(samples) = &samples
            && values != Some(samples.len())
        {
            return fail(format!("shape {shape:?} does not hold {} values", samples.len()));
        }
        if let Some(labels) = &labels
            && labels.len() != count
        {
            return fail(format!("expected {count} labels, one per sample, got {}", labels.len()));
        }
        if let Some(Samples::F32(values)) = &samples
            && let Some(at) = values.iter().position(|v| !v.is_finite())
        {
            return fail(format!(
                "sample {} holds a value that is not finite",
                at / (values.len() / count)
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            sha256: String::new(),
            sample_shape: sample_shape.to_vec(),
            count,
            samples: samples.map(Arc::new),
            labels: labels.map(Into::into),
        })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of what the samples and labels are, in hexadecimal digits: the same however they are
    /// stored. See [`content_hash`].
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Shape of one sample, as stored.
    pub fn sample_shape(&self) -> &[usize] {
        &self.sample_shape
    }

    /// Number of samples.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the samples are here, and not only their [outline](Self::outline).
    pub fn is_here(&self) -> bool {
        self.samples.is_some()
    }

    fn samples(&self) -> &Samples {
        self.samples.as_deref().expect("the samples are here")
    }

    fn sample_len(&self) -> usize {
        self.sample_shape.iter().product()
    }

    /// Labels, if there are any.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// The labels, which must be there and below `classes`.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn labels_of(&self, classes: usize) -> Result<&[u32], DataError> {
        let labels = self.labels.as_deref().ok_or_else(|| {
            DataError::invalid(&self.path, "labels are missing: expected an array `y`")
        })?;
        match labels.iter().position(|&label| label as usize >= classes) {
            None => Ok(labels),
            Some(at) => Err(DataError::invalid(
                &self.path,
                format!(
                    "label of sample {at} must be below {classes}, the model's classes, got {}",
                    labels[at]
                ),
            )
            .with_hint(
                "labels are class numbers, counted from 0 in the order of the model's scores",
            )),
        }
    }

    /// Checks that samples have the model's shape and that the preprocessing fits them.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn check(&self, input_shape: &[usize], preprocess: &Preprocess) -> Result<(), DataError> {
        if self.sample_shape != input_shape {
            return Err(DataError::invalid(
                &self.path,
                format!(
                    "samples must have the model's input shape {input_shape:?}, got {:?}",
                    self.sample_shape
                ),
            )
            .with_hint(reshaping(&self.sample_shape, input_shape)));
        }
        preprocess.check(input_shape).map_err(|e| DataError::invalid(&self.path, e))
    }

    /// The samples at `indices`, preprocessed, as (N, sample shape).
    ///
    /// # Panics
    ///
    /// When an index is out of range, the samples are not [here](Self::is_here), or the preprocessing
    /// does not fit (see [`Self::check`]).
    pub fn batch(&self, indices: &[usize], preprocess: &Preprocess) -> Tensor {
        let len = self.sample_len();
        let mut values = Vec::with_capacity(indices.len() * len);
        for &index in indices {
            let range = index * len..(index + 1) * len;
            match self.samples() {
                Samples::U8(v) => values.extend(v[range].iter().map(|&x| f32::from(x))),
                Samples::I8(v) => values.extend(v[range].iter().map(|&x| f32::from(x))),
                Samples::I16(v) => values.extend(v[range].iter().map(|&x| f32::from(x))),
                Samples::F32(v) => values.extend_from_slice(&v[range]),
            }
        }
        for sample in values.chunks_exact_mut(len) {
            preprocess.apply(&self.sample_shape, sample);
        }
        let shape: Vec<usize> = [&[indices.len()], &self.sample_shape[..]].concat();
        Tensor::new(shape, values)
    }
}

/// How samples of one shape become samples of another, in NumPy's words.
fn reshaping(from: &[usize], to: &[usize]) -> &'static str {
    match (from, to) {
        ([h, w, c], [channels, height, width]) if [c, h, w] == [channels, height, width] => {
            "the network takes channels first: `x.transpose(0, 3, 1, 2)`"
        }
        ([c, h, w], [height, width, channels]) if [h, w, c] == [height, width, channels] => {
            "the network takes channels last: `x.transpose(0, 2, 3, 1)`"
        }
        (_, [1, rest @ ..]) if from == rest => "add the axis of the channel: `x[:, None]`",
        _ if from.iter().product::<usize>() == to.iter().product::<usize>() => {
            "each sample has as many values as the network takes: `x.reshape` does it, if they are in that order"
        }
        _ => "resize the samples, or export the model for their size",
    }
}

/// Flips the last axis of a batch: the mirrored view.
pub fn mirror(batch: &mut Tensor) {
    let width = batch.shape().last().copied().unwrap_or(1);
    mirror_rows(batch.values_mut(), width);
}

/// The same for values alone, whose last axis is so long.
pub fn mirror_rows(values: &mut [f32], width: usize) {
    values.chunks_exact_mut(width.max(1)).for_each(<[f32]>::reverse);
}

#[cfg(test)]
mod tests;
