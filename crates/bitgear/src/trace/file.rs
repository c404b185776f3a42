//! `trace.parquet`: one row for each sample, point and view; one row group for each block.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{Answers, Block, ClassMix, Split, Trace, TraceError, View, kept_scores};

const SCHEMA: &str = "
message trace {
  required int64 sample;
  required binary split (STRING);
  required int32 label;
  required binary point (STRING);
  required binary view (STRING);
  required int32 predicted;
  required int32 margin;
  required double score_scale;
  required double margin_real;
  required group scores (LIST) { repeated group list { required int32 element; } }
  required group score_classes (LIST) { repeated group list { required int32 element; } }
}";
const COLUMNS: usize = 11;
const VERSION: (&str, &str) = ("bitgear.schema_version", "1");
const CLASSES: &str = "bitgear.classes";
/// Shares of the classes in deployment, as JSON, where they are not as in the data.
const CLASS_MIX: &str = "bitgear.class_mix";

/// Writes a trace; `provenance` goes into the file's metadata. The file is there whole or not at
/// all, and equal traces give equal bytes.
///
/// # Errors
///
/// When the file can't be written.
pub fn write(
    trace: &Trace,
    path: &Path,
    provenance: &[(String, String)],
) -> Result<(), TraceError> {
    let temporary = path.with_extension("parquet.tmp");
    let file = File::create(&temporary).map_err(|e| TraceError::io(&temporary, e))?;
    write_to(trace, file, provenance).map_err(|e| TraceError::invalid(path, e))?;
    fs::rename(&temporary, path).map_err(|e| TraceError::io(path, e))
}

/// The bytes that [`write()`] writes.
///
/// # Errors
///
/// When the trace is too large for the format.
pub fn to_bytes(trace: &Trace, provenance: &[(String, String)]) -> Result<Vec<u8>, TraceError> {
    let mut bytes = Vec::new();
    write_to(trace, &mut bytes, provenance)
        .map_err(|e| TraceError::invalid(Path::new("trace"), e))?;
    Ok(bytes)
}

fn write_to<W: Write + Send>(
    trace: &Trace,
    file: W,
    provenance: &[(String, String)],
) -> Result<(), ParquetError> {
    let own = [
        (VERSION.0.to_owned(), VERSION.1.to_owned()),
        (CLASSES.to_owned(), trace.classes.to_string()),
    ];
    let mix = trace.class_mix.as_ref();
    let mix = mix.map(|mix| serde_json::to_string(mix).expect("shares are numbers"));
    let metadata = own
        .into_iter()
        .chain(mix.map(|mix| (CLASS_MIX.to_owned(), mix)))
        .chain(provenance.iter().cloned())
        .map(|(key, value)| KeyValue::new(key, value))
        .collect();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(Some(metadata))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    for block in &trace.blocks {
        let rows = trace.samples.len();
        let Answers { predicted, margins, scores, score_classes } = &block.answers;
        let repeated = |text: &str| vec![ByteArray::from(text); rows];
        let signed = |values: &[u32]| values.iter().map(|&v| v as i32).collect::<Vec<i32>>();
        let splits: Vec<ByteArray> =
            trace.splits.iter().map(|s| ByteArray::from(s.name())).collect();
        let samples: Vec<i64> = trace.samples.iter().map(|&s| s as i64).collect();
        let real: Vec<f64> = margins.iter().map(|&m| f64::from(m) * block.score_scale).collect();
        let mut group = writer.next_row_group()?;
        column::<Int64Type, W>(&mut group, &samples, None)?;
        column::<ByteArrayType, W>(&mut group, &splits, None)?;
        column::<Int32Type, W>(&mut group, &signed(&trace.labels), None)?;
        column::<ByteArrayType, W>(&mut group, &repeated(&block.point), None)?;
        column::<ByteArrayType, W>(&mut group, &repeated(block.view.name()), None)?;
        column::<Int32Type, W>(&mut group, &signed(predicted), None)?;
        column::<Int32Type, W>(&mut group, margins, None)?;
        column::<DoubleType, W>(&mut group, &vec![block.score_scale; rows], None)?;
        column::<DoubleType, W>(&mut group, &real, None)?;
        column::<Int32Type, W>(&mut group, scores, Some(rows))?;
        column::<Int32Type, W>(&mut group, &signed(score_classes), Some(rows))?;
        group.close()?;
    }
    writer.close().map(|_| ())
}

/// Writes the next column; with `rows` it is one of lists, all equally long.
fn column<T: parquet::data_type::DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    rows: Option<usize>,
) -> Result<(), ParquetError> {
    let mut writer =
        group.next_column()?.ok_or_else(|| ParquetError::EOF("no such column".to_owned()))?;
    let levels = rows.map(|rows| {
        let len = values.len() / rows.max(1);
        // An empty list is one entry without a value.
        let definition = vec![i16::from(len > 0); rows * len.max(1)];
        let repetition: Vec<i16> =
            (0..rows * len.max(1)).map(|i| i16::from(i % len.max(1) > 0)).collect();
        (definition, repetition)
    });
    let (definition, repetition) = match &levels {
        Some((definition, repetition)) => (Some(&definition[..]), Some(&repetition[..])),
        None => (None, None),
    };
    writer.typed::<T>().write_batch(values, definition, repetition)?;
    writer.close()
}

/// Reads a file, which must be a trace that [`write`] made.
pub(super) fn read(path: &Path) -> Result<Trace, TraceError> {
    let file = File::open(path).map_err(|e| TraceError::io(path, e))?;
    // The Parquet reader asserts some facts about its metadata, which a damaged file breaks.
    let read = std::panic::catch_unwind(|| read_from(file));
    read.unwrap_or_else(|_| Err("the file is damaged".to_owned()))
        .map_err(|reason| TraceError::invalid(path, reason))
}

/// The value of a provenance entry, if the file is a trace that has it.
pub(super) fn provenance(path: &Path, key: &str) -> Option<String> {
    let file = File::open(path).ok()?;
    let reader = SerializedFileReader::new(file).ok()?;
    let entries = reader.metadata().file_metadata().key_value_metadata()?.clone();
    entries.into_iter().find(|entry| entry.key == key)?.value
}

fn read_from(file: File) -> Result<Trace, String> {
    let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
    let metadata = reader.metadata().file_metadata();
    let value = |key: &str| {
        let all = metadata.key_value_metadata()?;
        all.iter().find(|entry| entry.key == key)?.value.as_deref()
    };
    if value(VERSION.0) != Some(VERSION.1) {
        return Err(format!(
            "expected `{}` = {}, got {:?}",
            VERSION.0,
            VERSION.1,
            value(VERSION.0)
        ));
    }
    let classes =
        value(CLASSES).and_then(|v| v.parse().ok()).ok_or("number of classes is missing")?;
    let class_mix = value(CLASS_MIX).map(|text| {
        let mix: ClassMix = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let fits = mix.shares().len() == classes;
        fits.then_some(mix).ok_or(format!("expected {classes} shares in `{CLASS_MIX}`"))
    });
    let class_mix = class_mix.transpose()?;
    if metadata.schema_descr().num_columns() != COLUMNS {
        return Err(format!("expected {COLUMNS} columns"));
    }
    let mut trace: Option<Trace> = None;
    for index in 0..reader.num_row_groups() {
        let group = reader.get_row_group(index).map_err(|e| e.to_string())?;
        let one = read_block(&*group, classes)?;
        match &mut trace {
            None => trace = Some(one),
            Some(trace) => {
                if (&trace.samples, &trace.splits, &trace.labels)
                    != (&one.samples, &one.splits, &one.labels)
                {
                    return Err(format!("row group {index} holds other samples than the first"));
                }
                trace.blocks.extend(one.blocks);
            }
        }
    }
    let trace = trace.ok_or_else(|| "there are no rows".to_owned())?;
    Ok(Trace { class_mix, ..trace })
}

/// A trace of one block, without a class mix.
fn read_block(group: &dyn RowGroupReader, classes: usize) -> Result<Trace, String> {
    let rows = usize::try_from(group.metadata().num_rows()).map_err(|e| e.to_string())?;
    let listed = |column: usize| ints(group, column, rows, true);
    let plain = |column: usize| ints(group, column, rows, false);
    let unsigned = |values: Vec<i32>| -> Result<Vec<u32>, String> {
        values.into_iter().map(|v| u32::try_from(v).map_err(|_| format!("class {v}"))).collect()
    };
    let answers = Answers {
        predicted: unsigned(plain(5)?)?,
        margins: plain(6)?,
        scores: listed(9)?,
        score_classes: unsigned(listed(10)?)?,
    };
    if classes == 0 || rows == 0 || !answers.fits(rows, classes) {
        return Err(format!("expected {} scores of each of {rows} samples", kept_scores(classes)));
    }
    let splits = texts(group, 1, rows)?
        .iter()
        .map(|name| Split::from_name(name).ok_or_else(|| format!("unknown split `{name}`")))
        .collect::<Result<_, _>>()?;
    let single = |values: Vec<String>| -> Result<String, String> {
        let first = values[0].clone();
        if values.iter().all(|v| *v == first) {
            Ok(first)
        } else {
            Err("mixed row group".to_owned())
        }
    };
    let view = single(texts(group, 4, rows)?)?;
    let view = View::from_name(&view).ok_or_else(|| format!("unknown view `{view}`"))?;
    let scales = doubles(group, 7, rows)?;
    if !scales.iter().all(|&s| s == scales[0] && s.is_finite() && s > 0.0) {
        return Err("score scales must be positive and alike".to_owned());
    }
    let samples = longs(group, 0, rows)?
        .into_iter()
        .map(|s| usize::try_from(s).map_err(|_| format!("sample {s}")))
        .collect::<Result<_, _>>()?;
    let point = single(texts(group, 3, rows)?)?;
    let block = Block { point, view, score_scale: scales[0], answers };
    let labels = unsigned(plain(2)?)?;
    if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
        return Err(format!("label {label} of {classes} classes"));
    }
    Ok(Trace { classes, class_mix: None, samples, splits, labels, blocks: vec![block] })
}

/// Reads all values of a column with the reader that matches its type.
macro_rules! values {
    ($group:expr, $column:expr, $rows:expr, $list:expr, $kind:path) => {{
        let reader = $group.get_column_reader($column).map_err(|e| e.to_string())?;
        let $kind(mut reader) = reader else {
            return Err(format!("column {} has another type", $column));
        };
        let mut values = Vec::new();
        let (mut definition, mut repetition) = (Vec::new(), Vec::new());
        let (definition, repetition) =
            if $list { (Some(&mut definition), Some(&mut repetition)) } else { (None, None) };
        let read = reader.read_records($rows, definition, repetition, &mut values);
        let (records, _, _) = read.map_err(|e| e.to_string())?;
        if records != $rows {
            return Err(format!("expected {} rows, got {records}", $rows));
        }
        Ok(values)
    }};
}

fn ints(
    group: &dyn RowGroupReader,
    column: usize,
    rows: usize,
    list: bool,
) -> Result<Vec<i32>, String> {
    values!(group, column, rows, list, ColumnReader::Int32ColumnReader)
}

fn longs(group: &dyn RowGroupReader, column: usize, rows: usize) -> Result<Vec<i64>, String> {
    values!(group, column, rows, false, ColumnReader::Int64ColumnReader)
}

fn doubles(group: &dyn RowGroupReader, column: usize, rows: usize) -> Result<Vec<f64>, String> {
    values!(group, column, rows, false, ColumnReader::DoubleColumnReader)
}

fn texts(group: &dyn RowGroupReader, column: usize, rows: usize) -> Result<Vec<String>, String> {
    let values: Result<Vec<ByteArray>, String> =
        values!(group, column, rows, false, ColumnReader::ByteArrayColumnReader);
    values?.iter().map(|v| v.as_utf8().map(str::to_owned).map_err(|e| e.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(classes: usize) -> Trace {
        let scores = |row: usize| {
            (0..classes).map(|c| ((c * 7 + row * 3) % 11) as i32 - 5).collect::<Vec<_>>()
        };
        let block = |point: &str, view| {
            let mut answers = Answers::default();
            for row in 0..3 {
                answers.push(row as u32 % classes as u32, row as i32 * 100, &scores(row));
            }
            Block { point: point.to_owned(), view, score_scale: 0.125, answers }
        };
        Trace {
            classes,
            class_mix: None,
            samples: vec![4, 7, 9],
            splits: vec![Split::Search, Split::Certification, Split::Test],
            labels: vec![0, 1, 1],
            blocks: vec![block("float", View::AsIs), block("w4a4", View::Mirror)],
        }
    }

    #[test]
    fn a_trace_comes_back_as_it_was_with_few_and_many_classes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.parquet");
        for classes in [2, 32, 40] {
            write(&trace(classes), &path, &[("seed".to_owned(), "1".to_owned())]).unwrap();
            assert_eq!(read(&path).unwrap(), trace(classes));
            let shares: Vec<f64> = (0..classes).map(|class| class as f64 / 3.0).collect();
            let class_mix = Some(ClassMix::try_from(shares).unwrap());
            let mixed = Trace { class_mix, ..trace(classes) };
            write(&mixed, &path, &[]).unwrap();
            assert_eq!(read(&path).unwrap(), mixed);
            write(&trace(classes), &path, &[("seed".to_owned(), "1".to_owned())]).unwrap();
            let bytes = fs::read(&path).unwrap();
            write(&trace(classes), &path, &[("seed".to_owned(), "1".to_owned())]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes, "equal traces give equal bytes");
        }
    }

    #[test]
    fn of_many_classes_the_highest_scores_are_kept_lowest_class_first_on_ties() {
        let mut answers = Answers::default();
        let mut scores = vec![0; 40];
        (scores[30], scores[3]) = (9, 9);
        answers.push(3, 0, &scores);
        assert_eq!(answers.score_classes, [3, 30, 0, 1, 2, 4, 5, 6]);
        assert_eq!(answers.scores, [9, 9, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.parquet");
        write(&trace(2), &path, &[]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            fs::write(&path, &damaged).unwrap();
            // Some flips hit nothing that matters; what is read is then a valid trace.
            let _ = read(&path);
            fs::write(&path, &bytes[..at]).unwrap();
            assert!(read(&path).is_err());
        }
    }
}
