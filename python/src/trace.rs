//! The trace as NumPy columns, and fragments of one.

use std::path::{Path, PathBuf};

use bitgear::characterize as library;
use bitgear::data::Dataset;
use bitgear::trace::{self, Split};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::{arrays, plain, work};

/// Point, view, score scale, predicted classes (N), margins (N), kept scores (N, K), and their classes
/// (N, K), with no columns where all are kept.
type Block<'py> = (
    String,
    &'static str,
    f64,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<u32>>,
);

/// Samples (N), splits (N) as indices into names, labels (N), names of splits, and blocks.
type Columns<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<u32>>,
    [&'static str; 4],
    Vec<Block<'py>>,
    Option<Vec<f64>>,
);

/// Reads `trace.parquet`.
#[pyfunction]
pub(crate) fn read_trace(py: Python<'_>, path: PathBuf) -> PyResult<Columns<'_>> {
    let trace = py.detach(|| trace::read(&path)).map_err(plain)?;
    let rows = trace.samples.len();
    let block = |block: trace::Block| -> PyResult<Block<'_>> {
        let answers = block.answers;
        let kept = [rows, answers.scores.len() / rows];
        let listed = [rows, answers.score_classes.len() / rows];
        Ok((
            block.point,
            block.view.name(),
            block.score_scale,
            PyArray1::from_vec(py, answers.predicted),
            PyArray1::from_vec(py, answers.margins),
            PyArray1::from_vec(py, answers.scores).reshape(kept)?,
            PyArray1::from_vec(py, answers.score_classes).reshape(listed)?,
        ))
    };
    Ok((
        PyArray1::from_iter(py, trace.samples.iter().map(|&sample| sample as i64)),
        PyArray1::from_iter(py, trace.splits.iter().map(|&split| split as u8)),
        PyArray1::from_vec(py, trace.labels),
        Split::ALL.map(Split::name),
        trace.blocks.into_iter().map(block).collect::<PyResult<_>>()?,
        trace.class_mix.map(|mix| mix.shares().to_vec()),
    ))
}

/// The networks of a run, ready to trace any of its samples.
#[pyclass(frozen, module = "bitgear._native")]
pub(crate) struct Tracer {
    tracer: library::Tracer,
    threads: Option<usize>,
}

#[pymethods]
impl Tracer {
    /// Takes the bytes that `characterize` gives its `origin`.
    #[new]
    fn new(py: Python<'_>, plan: &[u8], threads: Option<usize>) -> PyResult<Self> {
        let tracer = py.detach(|| library::Tracer::from_bytes(plan)).map_err(plain)?;
        Ok(Self { tracer, threads })
    }

    /// The fragment, as the bytes of a Parquet file, of samples (N, sample shape) with labels (N), if any, and
    /// indices in the whole data (N); nothing where none of them is to be traced.
    fn trace<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        y: Option<&Bound<'py, PyAny>>,
        samples: Vec<usize>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let (shape, values) = arrays::samples(x)?;
        let labels = y.map(arrays::labels).transpose()?;
        let shard = Dataset::new(Path::new("shard"), &shape, values, labels).map_err(plain)?;
        let trace =
            work::run(py, self.threads, None, |watch| self.tracer.trace(&shard, &samples, watch))?;
        Ok(trace.map(|bytes| PyBytes::new(py, &bytes)))
    }
}
