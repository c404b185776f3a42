//! A bundle that answers arrays.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bitgear::bundle::{Bundle, Runner as Packed};
use bitgear::data::{Preprocess, Samples};
use bitgear::execute::IntegerModel;
use bitgear::tensor::Tensor;
use bitgear_core::kernels::Kernels;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rayon::ThreadPool;

use crate::{arrays, fail, plain, work};

/// Samples that run between two looks for Ctrl-C.
const BATCH: usize = 256;

/// Labels (N), scores (N, classes), stages (N), energies (N) and the first stage's confidences (N) of a batch.
type Answers<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray2<f64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<i64>>,
);

/// A policy with its packed networks.
#[pyclass(frozen, module = "bitgear._native")]
pub(crate) struct Runner {
    packed: Packed<'static>,
    /// As stored values are preprocessed, and how those are that the caller has preprocessed.
    preprocess: [Preprocess; 2],
    /// Energy of an inference that ended at each stage, in microjoule: total.
    energies: Vec<f64>,
    scales: Vec<f64>,
    threads: Option<usize>,
    pool: Mutex<Pool>,
}

/// Threads do not survive a fork: a process makes its own.
struct Pool {
    process: u32,
    threads: std::sync::Arc<ThreadPool>,
}

#[pymethods]
impl Runner {
    /// Reads a bundle's file or bytes and packs the networks of one of its policies for this CPU.
    #[new]
    fn new(
        py: Python<'_>,
        bundle: &Bound<'_, PyAny>,
        threads: Option<usize>,
        policy: &str,
    ) -> PyResult<Self> {
        let bundle = if let Ok(bytes) = bundle.cast::<PyBytes>() {
            Bundle::from_bytes(bytes.as_bytes())
                .map_err(|error| plain(format!("these bytes are no bundle: {error}")))?
        } else {
            let path: PathBuf = bundle.extract()?;
            py.detach(|| Bundle::read(&path))
                .map_err(|error| fail(&error, error.hint().map(ToOwned::to_owned)))?
        };
        let bundle = bundle.select(policy).map_err(plain)?;
        let packed = py.detach(|| bundle.into_runner(Kernels::detect()));
        let bundle = packed.bundle();
        let preprocess = [bundle.preprocess.clone(), Preprocess::default()];
        // Networks beyond those of the stages are other policies'.
        let stages = bundle.policy.points().count();
        let scales = bundle.models[..stages].iter().map(IntegerModel::score_scale).collect();
        let energies = (0..stages).map(|stage| packed.energy_uj(stage).total);
        let (energies, pool) = (energies.collect(), Mutex::new(Pool::new(threads)?));
        Ok(Self { packed, preprocess, energies, scales, threads, pool })
    }

    /// Answers to samples (N, sample shape).
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        preprocessed: bool,
    ) -> PyResult<Answers<'py>> {
        let (shape, samples) = arrays::samples(x)?;
        let bundle = self.packed.bundle();
        let expected = bundle.input_shape();
        if shape.get(1..) != Some(expected) {
            let hint = (shape == expected).then(|| "add an axis of samples: `x[None]`".to_owned());
            let message =
                format!("x: expected shape (N, {}), got {}", listed(expected), python(&shape));
            return Err(fail(message, hint));
        }
        let preprocess = &self.preprocess[usize::from(preprocessed)];
        let (count, classes) = (shape[0], bundle.classes);
        let len: usize = expected.iter().product();
        let pool = self.pool()?;
        let mut labels = Vec::with_capacity(count);
        let mut scores = Vec::with_capacity(count * classes);
        let mut stages = Vec::with_capacity(count);
        let mut energies = Vec::with_capacity(count);
        let mut confidences = Vec::with_capacity(count);
        for first in (0..count).step_by(BATCH) {
            let rows = BATCH.min(count - first);
            let span = first * len..(first + rows) * len;
            let decisions = py.detach(|| -> Result<_, usize> {
                let mut values = floats(&samples, span);
                if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                    return Err(first + at / len);
                }
                for sample in values.chunks_exact_mut(len) {
                    preprocess.apply(expected, sample);
                }
                let batch = Tensor::new([&[rows], expected].concat(), values);
                Ok(pool.install(|| self.packed.decide(&batch)))
            });
            let decisions = decisions.map_err(|sample| {
                plain(format!("x: sample {sample} holds a value that is not finite"))
            })?;
            for decision in decisions {
                let scale = self.scales[decision.stage];
                labels.push(decision.answer.class as i64);
                scores.extend(decision.scores.iter().map(|&score| f64::from(score) * scale));
                stages.push(decision.stage as i64);
                energies.push(self.energies[decision.stage]);
                confidences.push(i64::from(decision.first_confidence));
            }
            py.check_signals()?;
        }
        Ok((
            PyArray1::from_vec(py, labels),
            PyArray1::from_vec(py, scores).reshape([count, classes])?,
            PyArray1::from_vec(py, stages),
            PyArray1::from_vec(py, energies),
            PyArray1::from_vec(py, confidences),
        ))
    }

    /// The bundle's bytes.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.packed.bundle().to_bytes()).map_err(plain)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Shape of one sample.
    #[getter]
    fn input_shape(&self) -> Vec<usize> {
        self.packed.bundle().input_shape().to_vec()
    }

    /// Number of classes.
    #[getter]
    fn classes(&self) -> usize {
        self.packed.bundle().classes
    }

    /// Names of the stages' operating points, the last resort included.
    #[getter]
    fn points(&self) -> Vec<String> {
        self.packed.bundle().policy.points().map(ToOwned::to_owned).collect()
    }

    /// The policy, as JSON.
    #[getter]
    fn policy(&self) -> PyResult<String> {
        serde_json::to_string(&self.packed.bundle().policy).map_err(plain)
    }
}

impl Runner {
    /// Threads of this process.
    fn pool(&self) -> PyResult<std::sync::Arc<ThreadPool>> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.process != std::process::id() {
            let old = std::mem::replace(&mut *pool, Pool::new(self.threads)?);
            // Its threads are in the parent; waiting for them here would never end.
            std::mem::forget(old);
        }
        Ok(pool.threads.clone())
    }
}

impl Pool {
    fn new(threads: Option<usize>) -> PyResult<Self> {
        Ok(Self { process: std::process::id(), threads: work::pool(threads)?.into() })
    }
}

fn floats(samples: &Samples, span: std::ops::Range<usize>) -> Vec<f32> {
    match samples {
        Samples::U8(v) => v[span].iter().map(|&x| f32::from(x)).collect(),
        Samples::I8(v) => v[span].iter().map(|&x| f32::from(x)).collect(),
        Samples::I16(v) => v[span].iter().map(|&x| f32::from(x)).collect(),
        Samples::F32(v) => v[span].to_vec(),
    }
}

fn listed(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A shape as Python shows it.
fn python(shape: &[usize]) -> String {
    let comma = if shape.len() == 1 { "," } else { "" };
    format!("({}{comma})", listed(shape))
}
