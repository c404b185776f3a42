//! `.npy` arrays, alone or in a `.npz` archive.

use std::io::{Cursor, Read};
use std::path::Path;

use npyz::{DType, NpyFile, Order};
use sha2::{Digest, Sha256};

use super::{DataError, Dataset, Samples, hex, sha256};

/// Largest array that is read: 8 GiB.
const MAX_BYTES: u64 = 8 << 30;

/// An array as it lies in the file.
struct Array {
    shape: Vec<usize>,
    /// NumPy's name of the element type without its byte order: `u1`, `i8`, `f4` …
    kind: String,
    bytes: Vec<u8>,
}

pub(super) fn read_npz(path: &Path) -> Result<Dataset, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::read(path, e))?;
    let hash = sha256(&bytes);
    let mut archive =
        npyz::npz::NpzArchive::new(Cursor::new(&bytes)).map_err(|e| DataError::read(path, e))?;
    let mut array = |name: &str| -> Result<Option<Array>, DataError> {
        let file = archive.by_name(name).map_err(|e| DataError::read(path, e))?;
        file.map(|file| read(file).map_err(|e| DataError::invalid(path, format!("array `{name}`: {e}"))))
            .transpose()
    };
    let x = array("x")?.ok_or_else(|| DataError::invalid(path, "expected an array `x` of samples"))?;
    let labels = array("y")?.map(|y| y.labels()).transpose();
    let labels = labels.map_err(|e| DataError::invalid(path, format!("array `y`: {e}")))?;
    dataset(path, hash, x, labels)
}

pub(super) fn read_pair(images: &Path, labels: Option<&Path>) -> Result<Dataset, DataError> {
    let mut digest = Sha256::new();
    let mut array = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|e| DataError::read(path, e))?;
        digest.update(&bytes);
        NpyFile::new(Cursor::new(&bytes))
            .map_err(|e| e.to_string())
            .and_then(read)
            .map_err(|e| DataError::invalid(path, e))
    };
    let x = array(images)?;
    let labels = labels
        .map(|path| array(path)?.labels().map_err(|e| DataError::invalid(path, e)))
        .transpose()?;
    dataset(images, hex(&digest.finalize()), x, labels)
}

fn dataset(path: &Path, hash: String, x: Array, labels: Option<Vec<u32>>) -> Result<Dataset, DataError> {
    let shape = x.shape.clone();
    let samples = x.samples().map_err(|e| DataError::invalid(path, format!("samples: {e}")))?;
    Dataset::new(path, hash, &shape, samples, labels)
}

/// Reads an array, trusting nothing that its header says.
fn read<R: Read>(file: NpyFile<R>) -> Result<Array, String> {
    let header = file.header();
    if header.order() != Order::C && header.shape().len() > 1 {
        return Err("expected row-major order, got Fortran order: save it with `numpy.ascontiguousarray`".to_owned());
    }
    let DType::Plain(kind) = header.dtype() else {
        return Err("expected numbers, got records".to_owned());
    };
    let kind = kind.to_string();
    let (order, kind) = kind.split_at(1);
    if order == ">" {
        return Err("expected little-endian numbers, got big-endian".to_owned());
    }
    let size: u64 = kind[1..].parse().map_err(|_| format!("element type `{kind}` is not supported"))?;
    let shape: Vec<usize> = header
        .shape()
        .iter()
        .map(|&d| usize::try_from(d).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    let expected = header
        .shape()
        .iter()
        .try_fold(size, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MAX_BYTES)
        .ok_or_else(|| format!("shape {shape:?} has more than {MAX_BYTES} bytes"))?;
    let kind = kind.to_owned();
    let mut bytes = Vec::new();
    file.into_inner().take(expected).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 != expected {
        return Err(format!("expected {expected} bytes for shape {shape:?}, got {}", bytes.len()));
    }
    Ok(Array { shape, kind, bytes })
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
            "f4" => Samples::F32(self.values(f32::from_le_bytes)),
            "f8" => Samples::F32(self.values(|b| f64::from_le_bytes(b) as f32)),
            kind => return Err(format!("element type `{kind}` is not supported, expected u1, i1, i2, u2, i4, f4 or f8")),
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
            kind => return Err(format!("expected integer labels, got element type `{kind}`")),
        };
        if self.shape.len() != 1 && self.shape.iter().skip(1).any(|&d| d != 1) {
            return Err(format!("expected one label per sample, got shape {:?}", self.shape));
        }
        wide.iter()
            .map(|&label| u32::try_from(label).map_err(|_| format!("label {label} is no class")))
            .collect()
    }
}
