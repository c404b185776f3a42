//! Grades and sources: every block with numbers has both.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::profile::NotCounted;

/// What a number rests on, from the best to the worst.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Grade {
    /// Found in the source itself.
    F,
    /// Second-hand summary of the source.
    S,
    /// Derived by arithmetic from F or S.
    D,
    /// Estimate; nothing published behind it.
    E,
    /// Recalled, not verified.
    R,
}

/// What the blocks of a profile say about their numbers, which are named `block.key` or, where there
/// are several blocks, `block.name.key`.
#[derive(Debug, Default)]
pub(super) struct Provenance {
    pub(super) grades: BTreeMap<String, Grade>,
    pub(super) not_counted: Vec<NotCounted>,
}

impl Provenance {
    /// Checks that a block with numbers has grade and source, and takes both out of it.
    pub(super) fn take(&mut self, name: &str, block: &mut Table) -> Result<(), String> {
        let numeric = |v: &Value| match v {
            Value::Integer(_) | Value::Float(_) | Value::Array(_) => true,
            Value::String(s) => s == "unknown",
            _ => false,
        };
        // The accelerator's own numbers are its identity; `url` is their source.
        let identity = name == "accelerator";
        let numbers: Vec<String> = block
            .iter()
            .filter(|&(key, value)| {
                !["holds", "grade_per_point"].contains(&key.as_str()) && numeric(value)
            })
            .map(|(key, _)| key.clone())
            .collect();
        let (grade, src) = (block.remove("grade"), block.remove("src"));
        if !numbers.is_empty() && !identity {
            let grade = self::grade(name, "grade", grade.as_ref())?;
            let source = src.as_ref().and_then(Value::as_str).unwrap_or_default().trim();
            if source.is_empty() {
                return Err(format!(
                    "`{name}` holds numbers: expected `src`, where they come from"
                ));
            }
            for key in &numbers {
                self.grades.insert(format!("{name}.{key}"), grade);
            }
        }
        let keys: Vec<String> = block.keys().cloned().collect();
        for key in keys {
            if let Some(base) = key.strip_suffix("_grade")
                && block.contains_key(base)
            {
                let own = self::grade(name, &key, block.remove(&key).as_ref())?;
                self.grades.insert(format!("{name}.{base}"), own);
            }
        }
        for (key, value) in block.iter() {
            if value.as_str() == Some("unknown") {
                self.not_counted.push(NotCounted(format!("{name}.{key}")));
            }
        }
        Ok(())
    }
}

fn grade(block: &str, key: &str, grade: Option<&Value>) -> Result<Grade, String> {
    let known = grade.cloned().and_then(|value| value.try_into().ok());
    known.ok_or_else(|| {
        let got = grade.map_or("none".to_owned(), Value::to_string);
        format!("`{block}.{key}` must be F, S, D, E or R, got {got}")
    })
}
