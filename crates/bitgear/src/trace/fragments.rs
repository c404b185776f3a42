//! A trace that many machines wrote: a folder of Parquet files, each the trace of some of the samples.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Answers, Block, Trace, TraceError, file};

/// Reads a trace: a file, or a folder of fragments, in any order and at any depth.
///
/// # Errors
///
/// When a file can't be read or is no trace, or fragments do not belong together.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    let mut fragments =
        files(path)?.iter().map(|path| file::read(path)).collect::<Result<Vec<Trace>, _>>()?;
    match fragments.len() {
        0 => Err(TraceError::invalid(path, "expected `.parquet` files in the folder")),
        1 => Ok(fragments.remove(0)),
        _ => join(&fragments).map_err(|reason| TraceError::invalid(path, reason)),
    }
}

/// The value of a provenance entry, if all files of the trace have it and agree.
pub fn provenance(path: &Path, key: &str) -> Option<String> {
    let files = files(path).ok()?;
    let mut values = files.iter().map(|path| file::provenance(path, key));
    let first = values.next()??;
    values.all(|value| value.as_ref() == Some(&first)).then_some(first)
}

/// The file itself, or all Parquet files below a folder by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, TraceError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| TraceError::io(path, e))? {
        let path = entry.map_err(|e| TraceError::io(path, e))?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The trace of all fragments' samples, ascending.
fn join(fragments: &[Trace]) -> Result<Trace, String> {
    let first = &fragments[0];
    let kinds = |trace: &Trace| -> Vec<(String, &str, f64)> {
        let kind = |b: &Block| (b.point.clone(), b.view.name(), b.score_scale);
        trace.blocks.iter().map(kind).collect()
    };
    let classes = |trace: &Trace| (trace.classes, trace.class_mix.clone());
    if fragments.iter().any(|f| classes(f) != classes(first) || kinds(f) != kinds(first)) {
        return Err("fragments differ in classes, their mix, points or score scales".to_owned());
    }
    let mut places: Vec<(usize, usize, usize)> = Vec::new();
    for (fragment, trace) in fragments.iter().enumerate() {
        places.extend(trace.samples.iter().enumerate().map(|(row, &s)| (s, fragment, row)));
    }
    places.sort_unstable();
    if let Some(twice) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!(
            "sample {} is in two fragments; the folder must hold those of one run",
            twice[0].0
        ));
    }
    let block = |(index, kind): (usize, &Block)| {
        let mut answers = Answers::default();
        for &(_, fragment, row) in &places {
            answers.push_row(&fragments[fragment].blocks[index].answers, row);
        }
        Block { answers, point: kind.point.clone(), ..*kind }
    };
    Ok(Trace {
        classes: first.classes,
        class_mix: first.class_mix.clone(),
        samples: places.iter().map(|place| place.0).collect(),
        splits: places.iter().map(|&(_, f, row)| fragments[f].splits[row]).collect(),
        labels: places.iter().map(|&(_, f, row)| fragments[f].labels[row]).collect(),
        blocks: first.blocks.iter().enumerate().map(block).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Split, View, write};
    use super::*;

    fn trace(samples: &[usize], scale: f64) -> Trace {
        let block = |point: &str, sign: i32| {
            let mut answers = Answers::default();
            for &sample in samples {
                let score = sign * sample as i32;
                let scores: Vec<i32> = (0..40).map(|class| score * class).collect();
                answers.push(sample as u32 % 40, score, &scores);
            }
            Block { point: point.to_owned(), view: View::AsIs, score_scale: scale, answers }
        };
        Trace {
            classes: 40,
            class_mix: None,
            samples: samples.to_vec(),
            splits: samples.iter().map(|s| [Split::Search, Split::Test][s % 2]).collect(),
            labels: samples.iter().map(|&s| s as u32 % 7).collect(),
            blocks: vec![block("float", 1), block("w4a4", -1)],
        }
    }

    fn folder(parts: &[Trace]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (index, part) in parts.iter().enumerate() {
            let place = folder.path().join(format!("worker={}", index % 2));
            fs::create_dir_all(&place).unwrap();
            let own = [("who".to_owned(), "run".to_owned())];
            write(part, &place.join(format!("{index}.parquet")), &own).unwrap();
        }
        folder
    }

    #[test]
    fn fragments_in_any_order_make_the_trace_of_all_samples() {
        let folder = folder(&[trace(&[9, 30], 0.5), trace(&[2, 4, 11], 0.5), trace(&[3], 0.5)]);
        assert_eq!(read(folder.path()).unwrap(), trace(&[2, 3, 4, 9, 11, 30], 0.5));
        assert_eq!(provenance(folder.path(), "who"), Some("run".to_owned()));
        assert_eq!(provenance(folder.path(), "what"), None);
    }

    #[test]
    fn fragments_that_do_not_belong_together_are_refused() {
        let twice = folder(&[trace(&[1, 2], 0.5), trace(&[2, 3], 0.5)]);
        let error = read(twice.path()).unwrap_err().to_string();
        assert!(error.contains("sample 2 is in two fragments"), "{error}");
        let scales = folder(&[trace(&[1], 0.5), trace(&[2], 0.25)]);
        let error = read(scales.path()).unwrap_err().to_string();
        assert!(error.contains("fragments differ"), "{error}");
        let error = read(folder(&[]).path()).unwrap_err().to_string();
        assert!(error.contains("expected `.parquet` files"), "{error}");
    }
}
