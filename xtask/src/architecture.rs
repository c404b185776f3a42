//! Checks the invariants of ARCHITECTURE.md that no compiler sees.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Modules of the model half and of the decision half: neither names the other.
const MODEL_HALF: [&str; 7] = ["onnx", "graph", "tensor", "float", "data", "quantize", "execute"];
const DECISION_HALF: [&str; 5] = ["energy", "search", "certify", "summary", "report"];
/// A source file longer than this wants to be two.
const LONGEST_FILE: usize = 600;

pub(crate) fn check(root: &Path) -> Result<()> {
    let library = root.join("crates/bitgear/src");
    let mut problems = Vec::new();
    for (half, other) in [(&MODEL_HALF[..], &DECISION_HALF[..]), (&DECISION_HALF, &MODEL_HALF)] {
        for module in half {
            for file in sources(&library.join(module))?.into_iter().chain(single(&library, module))
            {
                let text = read(&file)?;
                for (number, line) in text.lines().enumerate() {
                    let forbidden = other.iter().find(|o| line.contains(&format!("crate::{o}")));
                    if let Some(forbidden) = forbidden {
                        let place = file.strip_prefix(root).unwrap_or(&file).display();
                        problems.push(format!(
                            "{place}:{}: `{module}` must not use `{forbidden}`",
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    for folder in ["crates", "python", "xtask", "examples"] {
        for file in sources(&root.join(folder))? {
            let lines = read(&file)?.lines().count();
            if lines > LONGEST_FILE {
                let place = file.strip_prefix(root).unwrap_or(&file).display();
                problems.push(format!("{place}: {lines} lines, expected at most {LONGEST_FILE}"));
            }
        }
    }
    if !problems.is_empty() {
        bail!("{} rules of ARCHITECTURE.md are broken:\n{}", problems.len(), problems.join("\n"));
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))
}

/// A module that is a file of its own.
fn single(library: &Path, module: &str) -> Option<PathBuf> {
    Some(library.join(format!("{module}.rs"))).filter(|file| file.is_file())
}

/// All Rust sources below a folder; none where it does not exist.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                found.extend(sources(&path)?);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
