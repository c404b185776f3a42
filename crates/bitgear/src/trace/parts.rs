//! What a run has traced so far: one file for each batch, so that a killed run continues.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};

use super::{Answers, TraceError, View};

/// A folder of traced batches. Files of another run (another fingerprint) count as absent.
#[derive(Clone, Debug)]
pub struct Parts {
    folder: PathBuf,
    fingerprint: String,
}

const FINGERPRINT: &str = "fingerprint";

impl Parts {
    /// The batches in `folder` that belong to the run with this fingerprint, which must name
    /// everything that the answers depend on.
    ///
    /// # Errors
    ///
    /// When the folder can't be made.
    pub fn open(folder: &Path, fingerprint: String) -> Result<Self, TraceError> {
        fs::create_dir_all(folder).map_err(|e| TraceError::io(folder, e))?;
        Ok(Self { folder: folder.to_owned(), fingerprint })
    }

    fn path(&self, point: &str, view: View, first: usize) -> PathBuf {
        self.folder.join(format!("{point}-{}-{first:09}.safetensors", view.name()))
    }

    /// The batch of `samples` samples beginning at row `first`, if it was traced and is whole.
    pub fn load(
        &self,
        point: &str,
        view: View,
        first: usize,
        samples: usize,
        classes: usize,
    ) -> Option<Answers> {
        let bytes = fs::read(self.path(point, view, first)).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        if header.metadata().as_ref()?.get(FINGERPRINT)? != &self.fingerprint {
            return None;
        }
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let column = |name: &str| -> Option<Vec<[u8; 4]>> {
            Some(tensors.tensor(name).ok()?.data().as_chunks().0.to_vec())
        };
        let unsigned = |name| Some(column(name)?.into_iter().map(u32::from_le_bytes).collect());
        let signed = |name| Some(column(name)?.into_iter().map(i32::from_le_bytes).collect());
        let answers = Answers {
            predicted: unsigned("predicted")?,
            margins: signed("margins")?,
            scores: signed("scores")?,
            score_classes: unsigned("score_classes")?,
        };
        answers.fits(samples, classes).then_some(answers)
    }

    /// Stores a batch; a file is there whole or not at all.
    ///
    /// # Errors
    ///
    /// When it can't be written.
    pub fn store(
        &self,
        point: &str,
        view: View,
        first: usize,
        answers: &Answers,
    ) -> Result<(), TraceError> {
        let path = self.path(point, view, first);
        let unsigned =
            |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let signed =
            |values: &[i32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let columns = [
            ("predicted", Dtype::U32, unsigned(&answers.predicted)),
            ("margins", Dtype::I32, signed(&answers.margins)),
            ("scores", Dtype::I32, signed(&answers.scores)),
            ("score_classes", Dtype::U32, unsigned(&answers.score_classes)),
        ];
        let views = columns.iter().map(|(name, dtype, bytes)| {
            let view = TensorView::new(*dtype, vec![bytes.len() / 4], bytes);
            (*name, view.expect("four bytes a value"))
        });
        let metadata = HashMap::from([(FINGERPRINT.to_owned(), self.fingerprint.clone())]);
        let bytes = serialize(views, Some(metadata)).map_err(|e| TraceError::invalid(&path, e))?;
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, bytes).map_err(|e| TraceError::io(&temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| TraceError::io(&path, e))
    }

    /// Removes the folder: the trace is complete.
    ///
    /// # Errors
    ///
    /// When it can't be removed.
    pub fn remove(self) -> Result<(), TraceError> {
        fs::remove_dir_all(&self.folder).map_err(|e| TraceError::io(&self.folder, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        let mut answers = Answers::default();
        answers.push(1, 5, &[-3, 2]);
        answers.push(0, 7, &[7, 0]);
        answers
    }

    #[test]
    fn a_batch_comes_back_only_for_its_own_run_and_size() {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(folder.path(), "run 1".to_owned()).unwrap();
        parts.store("w4a4", View::AsIs, 10, &answers()).unwrap();
        assert_eq!(parts.load("w4a4", View::AsIs, 10, 2, 2), Some(answers()));
        assert_eq!(parts.load("w4a4", View::AsIs, 10, 3, 2), None);
        assert_eq!(parts.load("w4a4", View::Mirror, 10, 2, 2), None);
        let other = Parts::open(folder.path(), "run 2".to_owned()).unwrap();
        assert_eq!(other.load("w4a4", View::AsIs, 10, 2, 2), None);
    }

    #[test]
    fn a_torn_file_counts_as_absent() {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(folder.path(), "run".to_owned()).unwrap();
        parts.store("w4a4", View::AsIs, 0, &answers()).unwrap();
        let path = parts.path("w4a4", View::AsIs, 0);
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(parts.load("w4a4", View::AsIs, 0, 2, 2), None, "{len} bytes");
        }
    }
}
