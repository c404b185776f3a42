//! `.npy` arrays, alone or in a `.npz` archive.

use std::io::{Cursor, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::{DataError, Dataset, Samples};

/// Largest array that is read: 8 GiB.
const MAX_BYTES: u64 = 8 << 30;
const MAX_HEADER: usize = 1 << 16;

/// An array as it lies in the file.
struct Array {
    shape: Vec<usize>,
    /// NumPy's name of the element type without its byte order: `u1`, `i8`, `f4` …
    kind: String,
    bytes: Vec<u8>,
}

pub(super) fn read_npz(path: &Path) -> Result<Dataset, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::read(path, e))?;
    let mut archive = ZipArchive::new(Cursor::new(&bytes)).map_err(|e| DataError::read(path, e))?;
    let mut array = |name: &str| -> Result<Option<Array>, DataError> {
        match archive.by_name(&format!("{name}.npy")) {
            Ok(file) => read(file)
                .map(Some)
                .map_err(|e| DataError::invalid(path, format!("array `{name}`: {e}"))),
            Err(ZipError::FileNotFound) => Ok(None),
            Err(e) => Err(DataError::read(path, e)),
        }
    };
    let (x, y) = (array("x")?, array("y")?);
    let x = x.ok_or_else(|| {
        let names = archive.file_names().filter_map(Result::ok);
        let held: Vec<String> =
            names.map(|name| format!("`{}`", name.trim_end_matches(".npy"))).collect();
        let held = if held.is_empty() { "nothing".to_owned() } else { held.join(", ") };
        DataError::invalid(path, format!("expected an array `x` of samples, got {held}"))
            .with_hint("save it with `numpy.savez(path, x=samples, y=labels)`")
    })?;
    let labels = y.map(|y| y.labels()).transpose();
    let labels = labels.map_err(|e| no_labels(path, format!("array `y`: {e}")))?;
    dataset(path, x, labels)
}

pub(super) fn read_pair(images: &Path, labels: Option<&Path>) -> Result<Dataset, DataError> {
    let array = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|e| DataError::read(path, e))?;
        read(&bytes[..]).map_err(|e| DataError::invalid(path, e))
    };
    let x = array(images)?;
    let labels =
        labels.map(|path| array(path)?.labels().map_err(|e| no_labels(path, e))).transpose()?;
    dataset(images, x, labels)
}

fn no_labels(path: &Path, reason: String) -> DataError {
    DataError::invalid(path, reason)
        .with_hint("labels are class numbers (N), counted from 0: `y.argmax(1)` of one-hot rows")
}

fn dataset(path: &Path, x: Array, labels: Option<Vec<u32>>) -> Result<Dataset, DataError> {
    let shape = x.shape.clone();
    let samples = x.samples().map_err(|e| DataError::invalid(path, format!("samples: {e}")))?;
    Dataset::new(path, &shape, samples, labels)
}

/// Reads an array (NumPy's NEP 1, versions 1 to 3), trusting nothing that its header says.
fn read(mut file: impl Read) -> Result<Array, String> {
    let mut start = [0; 8];
    let mut fill =
        |buffer: &mut [u8]| file.read_exact(buffer).map_err(|_| "no NumPy array".to_owned());
    fill(&mut start)?;
    let [magic @ .., version, _] = start;
    if magic != *b"\x93NUMPY" || !(1..=3).contains(&version) {
        return Err("no NumPy array".to_owned());
    }
    let mut len = [0; 4];
    fill(if version == 1 { &mut len[..2] } else { &mut len })?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_HEADER {
        return Err(format!("header must have at most {MAX_HEADER} bytes, got {len}"));
    }
    let mut header = vec![0; len];
    fill(&mut header)?;
    let header = String::from_utf8_lossy(&header);

    let kind = entry(&header, "descr")
        .and_then(|rest| rest.strip_prefix('\''))
        .and_then(|rest| rest.split_once('\''))
        .map(|(kind, _)| kind)
        .ok_or("expected numbers, got records")?;
    let shape = entry(&header, "shape")
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.split_once(')'))
        .map(|(shape, _)| shape)
        .ok_or("header has no shape")?;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.parse().map_err(|_| format!("dimension `{dim}` is no number")))
        .collect::<Result<_, _>>()?;
    let fortran = entry(&header, "fortran_order").is_none_or(|rest| !rest.starts_with("False"));
    if fortran && shape.len() > 1 {
        return Err(
            "expected row-major order, got Fortran order: save it with `numpy.ascontiguousarray`"
                .to_owned(),
        );
    }
    if kind.starts_with('>') {
        return Err("expected little-endian numbers, got big-endian".to_owned());
    }
    let kind = kind.trim_start_matches(['<', '|', '=']).to_owned();
    let size = kind.get(1..).and_then(|size| size.parse().ok());
    let size: u64 = size.ok_or_else(|| format!("element type `{kind}` is not supported"))?;
    let expected = shape
        .iter()
        .try_fold(size, |n, &d| n.checked_mul(d as u64))
        .filter(|&n| n <= MAX_BYTES)
        .ok_or_else(|| format!("shape {shape:?} has more than {MAX_BYTES} bytes"))?;
    let mut bytes = Vec::new();
    file.take(expected).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 != expected {
        return Err(format!("expected {expected} bytes for shape {shape:?}, got {}", bytes.len()));
    }
    Ok(Array { shape, kind, bytes })
}

/// What follows a key of the header's dictionary.
fn entry<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':"))?;
    Some(rest.trim_start())
}

impl Array {
    fn values<const N: usize, T>(&self, from: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks().0.iter().map(|&b| from(b)).collect()
    }

    fn samples(self) -> Result<Samples, String> {
        Ok(match self.kind.as_str() {
            "u1" | "b1" => Samples::U8(self.bytes),
            "i1" => Samples::I8(self.values(i8::from_le_bytes)),
            "i2" => Samples::I16(self.values(i16::from_le_bytes)),
            "u2" => Samples::F32(self.values(|b| f32::from(u16::from_le_bytes(b)))),
            "i4" => Samples::F32(self.values(|b| i32::from_le_bytes(b) as f32)),
            "i8" => Samples::F32(self.values(|b| i64::from_le_bytes(b) as f32)),
            "f4" => Samples::F32(self.values(f32::from_le_bytes)),
            "f8" => Samples::F32(self.values(|b| f64::from_le_bytes(b) as f32)),
            kind => {
                return Err(format!(
                    "element type `{kind}` is not supported, expected u1, i1, i2, u2, i4, i8, f4 or f8"
                ));
            }
        })
    }

    fn labels(&self) -> Result<Vec<u32>, String> {
        let wide: Vec<i64> = match self.kind.as_str() {
            "u1" => self.values(|[b]: [u8; 1]| i64::from(b)),
            "i1" => self.values(|b| i64::from(i8::from_le_bytes(b))),
            "u2" => self.values(|b| i64::from(u16::from_le_bytes(b))),
            "i2" => self.values(|b| i64::from(i16::from_le_bytes(b))),
            "u4" => self.values(|b| i64::from(u32::from_le_bytes(b))),
            "i4" => self.values(|b| i64::from(i32::from_le_bytes(b))),
            "i8" => self.values(i64::from_le_bytes),
            "u8" => self.values(|b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX)),
            kind => {
                return Err(format!("expected integer labels, got element type `{kind}`"));
            }
        };
        if self.shape.len() != 1 && self.shape.iter().skip(1).any(|&d| d != 1) {
            return Err(format!("expected one label per sample, got shape {:?}", self.shape));
        }
        wide.iter()
            .map(|&label| u32::try_from(label).map_err(|_| format!("label {label} is no class")))
            .collect()
    }
}
