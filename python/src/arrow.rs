//! A trace as Arrow's C stream, which pandas, Polars, pyarrow and DuckDB take in without copies.

use std::sync::Arc;

use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch,
    RecordBatchIterator, StringArray, UInt32Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{ArrowError, Field};
use numpy::{PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::plain;

/// What `Block` of the package holds.
#[derive(FromPyObject)]
pub(crate) struct Block<'py> {
    point: String,
    view: String,
    score_scale: f64,
    predicted: PyReadonlyArray1<'py, u32>,
    margin: PyReadonlyArray1<'py, i32>,
    scores: PyReadonlyArray2<'py, i32>,
    score_classes: PyReadonlyArray2<'py, u32>,
}

/// The stream of a trace's rows, one batch a block, with the columns of `trace.parquet`. `splits` are indices
/// (N) into their names. Each column is copied once, out of NumPy's memory; texts are dictionaries.
#[pyfunction]
pub(crate) fn arrow_stream<'py>(
    py: Python<'py>,
    sample: PyReadonlyArray1<'py, i64>,
    splits: PyReadonlyArray1<'py, i64>,
    split_names: Vec<String>,
    label: PyReadonlyArray1<'py, u32>,
    blocks: Vec<Block<'py>>,
) -> PyResult<Bound<'py, PyCapsule>> {
    let codes = splits.as_array().iter().map(|&code| code as i32).collect();
    let shared: [(&str, ArrayRef); 3] = [
        ("sample", Arc::new(Int64Array::from(sample.as_array().to_vec()))),
        ("split", texts(codes, &split_names).map_err(plain)?),
        ("label", Arc::new(UInt32Array::from(label.as_array().to_vec()))),
    ];
    let points: Vec<&str> = blocks.iter().map(|block| block.point.as_str()).collect();
    let views: Vec<&str> = blocks.iter().map(|block| block.view.as_str()).collect();
    let rows = sample.as_array().len();
    let batch = |(index, block): (usize, &Block<'_>)| {
        let own = |names: &[&str]| texts(vec![index as i32; rows], names);
        let margin = block.margin.as_array();
        let real: Vec<f64> = margin.iter().map(|&m| f64::from(m) * block.score_scale).collect();
        let (scores, classes) = (block.scores.as_array(), block.score_classes.as_array());
        let kept: Vec<i32> = scores.iter().copied().collect();
        let listed: Vec<u32> = classes.iter().copied().collect();
        let columns: [(&str, ArrayRef); 8] = [
            ("point", own(&points)?),
            ("view", own(&views)?),
            ("predicted", Arc::new(UInt32Array::from(block.predicted.as_array().to_vec()))),
            ("margin", Arc::new(Int32Array::from(margin.to_vec()))),
            ("score_scale", Arc::new(Float64Array::from(vec![block.score_scale; rows]))),
            ("margin_real", Arc::new(Float64Array::from(real))),
            ("scores", lists(scores.ncols(), rows, Arc::new(Int32Array::from(kept)))?),
            ("score_classes", lists(classes.ncols(), rows, Arc::new(UInt32Array::from(listed)))?),
        ];
        let all = shared.iter().cloned().chain(columns);
        RecordBatch::try_from_iter_with_nullable(all.map(|(name, column)| (name, column, false)))
    };
    let batches: Vec<Result<RecordBatch, ArrowError>> = blocks
        .iter()
        .enumerate()
        .map(|block| batch(block).map(Ok))
        .collect::<Result<_, _>>()
        .map_err(plain)?;
    let Some(Ok(first)) = batches.first() else { return Err(plain("the trace has no blocks")) };
    let schema = first.schema();
    let stream = FFI_ArrowArrayStream::new(Box::new(RecordBatchIterator::new(batches, schema)));
    PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
}

/// Texts that repeat: `codes` are indices into their names.
fn texts(codes: Vec<i32>, names: &[impl AsRef<str>]) -> Result<ArrayRef, ArrowError> {
    let names = StringArray::from_iter_values(names);
    Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(codes.into(), Arc::new(names))?))
}

/// Lists of `len` values, one a row.
fn lists(len: usize, rows: usize, values: ArrayRef) -> Result<ArrayRef, ArrowError> {
    let item = Field::new_list_field(values.data_type().clone(), false);
    let offsets = OffsetBuffer::from_repeated_length(len, rows);
    Ok(Arc::new(ListArray::try_new(Arc::new(item), offsets, values, None)?))
}
