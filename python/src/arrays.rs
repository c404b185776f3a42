//! Samples and labels from anything that NumPy makes an array of.

use std::path::{Path, PathBuf};

use bitgear::data::{self, Dataset, Samples, Source};
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::{fail, plain};

/// Anything array-like as a row-major array in the byte order of this machine.
fn array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let numpy = object.py().import("numpy")?;
    let array = numpy.call_method1("asarray", (object,))?;
    let dtype = array.getattr("dtype")?;
    // Half precision is exact in single.
    let wanted = if dtype.getattr("name")?.extract::<String>()? == "float16" {
        numpy.getattr("float32")?
    } else {
        dtype.call_method1("newbyteorder", ("=",))?
    };
    numpy.call_method1("ascontiguousarray", (array, wanted))
}

/// The array's shape and values if they have this type.
fn values<T: Element, U>(
    array: &Bound<'_, PyAny>,
    convert: impl Fn(&T) -> U,
) -> Option<(Vec<usize>, Vec<U>)> {
    let array = array.cast::<PyArrayDyn<T>>().ok()?.readonly();
    Some((array.shape().to_vec(), array.as_slice().ok()?.iter().map(convert).collect()))
}

fn type_name(array: &Bound<'_, PyAny>) -> PyResult<String> {
    array.getattr("dtype")?.getattr("name")?.extract()
}

/// Shape (N, sample shape) and values of samples.
pub(crate) fn samples(object: &Bound<'_, PyAny>) -> PyResult<(Vec<usize>, Samples)> {
    let array = array(object)?;
    let found = None
        .or_else(|| values(&array, |&v: &u8| v).map(|(s, v)| (s, Samples::U8(v))))
        .or_else(|| values(&array, |&v: &f32| v).map(|(s, v)| (s, Samples::F32(v))))
        .or_else(|| values(&array, |&v: &f64| v as f32).map(|(s, v)| (s, Samples::F32(v))))
        .or_else(|| values(&array, |&v: &bool| u8::from(v)).map(|(s, v)| (s, Samples::U8(v))))
        .or_else(|| values(&array, |&v: &i8| v).map(|(s, v)| (s, Samples::I8(v))))
        .or_else(|| values(&array, |&v: &i16| v).map(|(s, v)| (s, Samples::I16(v))))
        .or_else(|| values(&array, |&v: &u16| f32::from(v)).map(|(s, v)| (s, Samples::F32(v))))
        .or_else(|| values(&array, |&v: &i32| v as f32).map(|(s, v)| (s, Samples::F32(v))))
        .or_else(|| values(&array, |&v: &i64| v as f32).map(|(s, v)| (s, Samples::F32(v))));
    match found {
        Some(found) => Ok(found),
        None => Err(plain(format!(
            "samples: element type `{}` is not supported, expected uint8, bool, int8, int16, uint16, int32, int64, float16, float32 or float64",
            type_name(&array)?
        ))),
    }
}

/// Labels, one a sample.
pub(crate) fn labels(object: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let array = array(object)?;
    let wide = None
        .or_else(|| values(&array, |&v: &i64| v))
        .or_else(|| values(&array, |&v: &u8| i64::from(v)))
        .or_else(|| values(&array, |&v: &i32| i64::from(v)))
        .or_else(|| values(&array, |&v: &u32| i64::from(v)))
        .or_else(|| values(&array, |&v: &i16| i64::from(v)))
        .or_else(|| values(&array, |&v: &u16| i64::from(v)))
        .or_else(|| values(&array, |&v: &i8| i64::from(v)))
        .or_else(|| values(&array, |&v: &u64| i64::try_from(v).unwrap_or(i64::MAX)));
    let Some((shape, wide)) = wide else {
        let name = type_name(&array)?;
        return Err(fail(
            format!("labels: expected integers, got element type `{name}`"),
            Some(
                "labels are class numbers (N), counted from 0: `y.argmax(1)` of one-hot rows"
                    .to_owned(),
            ),
        ));
    };
    if shape.is_empty() || shape.iter().skip(1).any(|&d| d != 1) {
        return Err(plain(format!("labels: expected one per sample, got shape {shape:?}")));
    }
    let class = |&label: &i64| {
        u32::try_from(label).map_err(|_| plain(format!("labels: {label} is no class")))
    };
    wide.iter().map(class).collect()
}

/// Where samples come from: a path, or arrays that messages call `name`.
pub(crate) fn source(
    name: &str,
    x: &Bound<'_, PyAny>,
    y: Option<&Bound<'_, PyAny>>,
) -> PyResult<Source> {
    if let Ok(outline) = x.cast::<Outline>() {
        return Ok(Source::Memory(outline.get().0.clone()));
    }
    if let Ok(path) = x.extract::<PathBuf>() {
        let Some(y) = y else { return Ok(Source::Path(path)) };
        let labels = y.extract().map_err(|_| {
            plain("labels: expected a path or nothing beside samples in a file, got an array")
        })?;
        return Ok(Source::Pair { images: path, labels });
    }
    let labels = y.map(labels).transpose()?;
    let (shape, samples) = samples(x)?;
    Dataset::new(Path::new(name), &shape, samples, labels).map(Source::Memory).map_err(plain)
}

/// SHA-256 of each sample, 32 bytes each, and the name of the type that samples are kept in.
#[pyfunction]
pub(crate) fn sample_hashes<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyBytes>, &'static str)> {
    let (shape, samples) = samples(x)?;
    if samples.len() == 0 {
        return Err(plain("there are no samples"));
    }
    let hashes = py.detach(|| data::sample_hashes(&shape[1..], &samples));
    Ok((PyBytes::new(py, hashes.as_flattened()), samples.kind()))
}

/// Samples that are on other machines.
#[pyclass(frozen, module = "bitgear._native")]
pub(crate) struct Outline(Dataset);

#[pymethods]
impl Outline {
    /// `shape` is that of all samples; `hashes` are theirs in order.
    #[new]
    fn new(
        shape: Vec<usize>,
        kind: &str,
        hashes: &[u8],
        labels: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let labels = labels.map(self::labels).transpose()?;
        let sha256 = data::content_hash(&shape, kind, hashes.as_chunks().0, labels.as_deref());
        Dataset::outline(Path::new("dataset"), sha256, &shape, labels).map(Self).map_err(plain)
    }
}
