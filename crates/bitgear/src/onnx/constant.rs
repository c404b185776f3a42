//! Values known while importing: weights, and the shape arithmetic that exporters leave behind.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use super::proto::{TensorProto, data_type};

/// An integer of shape arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    Known(i64),
    /// The number of samples that run together.
    Batch,
}

/// A value known at import.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Constant {
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    Floats(Vec<f32>),
    Ints(Vec<Dim>),
}

/// Largest tensor that is imported, in elements: 1 GiB of floats.
const MAX_ELEMENTS: usize = 1 << 28;

/// Product of dimensions, if it is no larger than what is imported.
pub(super) fn elements(shape: &[usize]) -> Result<usize, String> {
    shape
        .iter()
        .try_fold(1_usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MAX_ELEMENTS)
        .ok_or_else(|| format!("tensor of shape {shape:?} has more than {MAX_ELEMENTS} elements"))
}

impl Constant {
    pub(super) fn ints(shape: Vec<usize>, values: impl IntoIterator<Item = i64>) -> Self {
        Self { shape, values: Values::Ints(values.into_iter().map(Dim::Known).collect()) }
    }

    pub(super) fn floats(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { shape, values: Values::Floats(values) }
    }

    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::Floats(v) => v.len(),
            Values::Ints(v) => v.len(),
        }
    }

    /// The values as floats.
    pub(super) fn to_floats(&self) -> Result<Vec<f32>, String> {
        match &self.values {
            Values::Floats(v) => Ok(v.clone()),
            Values::Ints(_) => Ok(self.to_ints()?.into_iter().map(|i| i as f32).collect()),
        }
    }

    /// The values as integers, none of which may depend on the batch.
    pub(super) fn to_ints(&self) -> Result<Vec<i64>, String> {
        self.dims()?
            .iter()
            .map(|dim| match dim {
                Dim::Known(i) => Ok(*i),
                Dim::Batch => Err("value depends on the batch size".to_owned()),
            })
            .collect()
    }

    /// The values as integers.
    pub(super) fn dims(&self) -> Result<&[Dim], String> {
        match &self.values {
            Values::Ints(v) => Ok(v),
            Values::Floats(_) => Err("expected integers, got floats".to_owned()),
        }
    }

    /// The same values picked by index, in a new shape.
    pub(super) fn pick(&self, shape: Vec<usize>, indices: &[usize]) -> Result<Self, String> {
        let out_of_range = || "index outside the tensor".to_owned();
        let values = match &self.values {
            Values::Floats(v) => Values::Floats(
                indices
                    .iter()
                    .map(|&i| v.get(i).copied())
                    .collect::<Option<_>>()
                    .ok_or_else(out_of_range)?,
            ),
            Values::Ints(v) => Values::Ints(
                indices
                    .iter()
                    .map(|&i| v.get(i).copied())
                    .collect::<Option<_>>()
                    .ok_or_else(out_of_range)?,
            ),
        };
        Ok(Self { shape, values })
    }

    /// Reads a tensor of the file.
    pub(super) fn read(tensor: &TensorProto) -> Result<Self, String> {
        let shape = shape(tensor)?;
        let len = elements(&shape)?;
        if is_external(tensor) {
            return Err("external data can be read only beside a model file".to_owned());
        }
        let raw = &tensor.raw_data;
        let values = match tensor.data_type {
            data_type::FLOAT => Values::Floats(decode(raw, &tensor.float_data, f32::from_le_bytes)),
            data_type::DOUBLE => Values::Floats(
                decode(raw, &tensor.double_data, f64::from_le_bytes)
                    .iter()
                    .map(|&v| v as f32)
                    .collect(),
            ),
            data_type::INT64 => known(decode(raw, &tensor.int64_data, i64::from_le_bytes)),
            data_type::INT32 => known(
                decode(raw, &tensor.int32_data, i32::from_le_bytes).into_iter().map(i64::from),
            ),
            data_type::UINT8 | data_type::BOOL => {
                let wide: Vec<u8> = tensor.int32_data.iter().map(|&v| v as u8).collect();
                known(decode(raw, &wide, |[b]: [u8; 1]| b).into_iter().map(i64::from))
            }
            data_type::INT8 => {
                let wide: Vec<i8> = tensor.int32_data.iter().map(|&v| v as i8).collect();
                known(decode(raw, &wide, i8::from_le_bytes).into_iter().map(i64::from))
            }
            other => return Err(format!("data type {other} is not supported")),
        };
        let constant = Self { shape, values };
        if constant.len() != len {
            return Err(format!(
                "expected {len} values for shape {:?}, got {}",
                constant.shape,
                constant.len()
            ));
        }
        Ok(constant)
    }
}

fn known(values: impl IntoIterator<Item = i64>) -> Values {
    Values::Ints(values.into_iter().map(Dim::Known).collect())
}

/// Raw little-endian bytes where there are any, else the typed field.
fn decode<T: Copy, const N: usize>(raw: &[u8], typed: &[T], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    if raw.is_empty() {
        return typed.to_vec();
    }
    // A torn last value shows as a wrong count.
    raw.as_chunks().0.iter().map(|&bytes| from(bytes)).collect()
}

fn shape(tensor: &TensorProto) -> Result<Vec<usize>, String> {
    let dims = tensor.dims.iter();
    dims.map(|&d| usize::try_from(d).map_err(|_| format!("negative dimension {d}"))).collect()
}

/// Whether the values are in another file.
pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == 1
}

/// Moves values that are in another file of the model's folder into the tensor.
pub(super) fn take_in(tensor: &mut TensorProto, folder: &Path) -> Result<(), String> {
    if is_external(tensor) {
        tensor.raw_data = read_external(tensor, folder, elements(&shape(tensor)?)?)?;
        tensor.external_data.clear();
        tensor.data_location = 0;
    }
    Ok(())
}

/// Data kept in a file beside the model, which must not lead out of its folder.
fn read_external(tensor: &TensorProto, folder: &Path, len: usize) -> Result<Vec<u8>, String> {
    let entry =
        |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let location = entry("location").ok_or("external data without a location")?;
    let relative = Path::new(location);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("external data `{location}` lies outside the model's folder"));
    }
    let number = |key: &str| {
        entry(key)
            .map(|v| v.parse::<u64>().map_err(|_| format!("external data: bad {key} `{v}`")))
            .transpose()
    };
    let fail = |e: std::io::Error| format!("cannot read external data `{location}`: {e}");
    let mut file = File::open(folder.join(relative)).map_err(fail)?;
    file.seek(SeekFrom::Start(number("offset")?.unwrap_or(0))).map_err(fail)?;
    // No element is wider than 8 bytes; a longer file is not read beyond that.
    let most = len as u64 * 8;
    let mut bytes = Vec::new();
    let length = number("length")?.unwrap_or(most).min(most);
    file.take(length).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}
