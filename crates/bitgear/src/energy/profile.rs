//! Accelerator profiles: TOML files whose every number has unit, grade and source.

use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::schema::{
    Accelerator, MacTable, Matching, Memory, Mode, ProfileFile, Quantization, Scope, Style,
    SupplyPoint, Transition, TransitionKind, VoltageTransition,
};
use crate::hash::sha256;

/// The profiles that ship: (id, text).
pub const SHIPPED: [(&str, &str); 2] = [
    ("envision-28nm", include_str!("../../../../accelerators/envision-28nm.toml")),
    ("unpu-65nm", include_str!("../../../../accelerators/unpu-65nm.toml")),
];

/// Energy, memory and switching data of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceleratorProfile {
    /// Who it is.
    pub accelerator: Accelerator,
    /// What the energy of a MAC contains.
    pub scope: Scope,
    /// How a layer finds its mode.
    pub matching: Matching,
    /// What it allows of scales.
    pub quantization: Quantization,
    /// Supplies and clocks.
    pub supply_points: Vec<SupplyPoint>,
    /// The modes, in the file's order; empty with a MAC table.
    pub modes: Vec<Mode>,
    /// Energies over widths; none with modes.
    pub mac_table: Option<MacTable>,
    /// Memories.
    pub memories: Vec<Memory>,
    /// What switching costs.
    pub transitions: Vec<Transition>,
    /// Relative uncertainty of MAC energies, if stated.
    pub uncertainty: Option<f64>,
    /// What the file says is unknown, and so is not counted.
    pub not_counted: Vec<NotCounted>,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// A number that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotCounted(pub String);

/// The profile can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No such profile.
    #[error(
        "no accelerator profile `{id}`: neither shipped ({shipped}) nor a readable file: {reason}"
    )]
    NotFound {
        /// What was asked for.
        id: String,
        /// What there is.
        shipped: String,
        /// Why it is no file.
        reason: std::io::Error,
    },
    /// The file is no profile.
    #[error("profile `{profile}`: {reason}")]
    Invalid {
        /// Its file or id.
        profile: String,
        /// What is wrong.
        reason: String,
    },
}

impl AcceleratorProfile {
    /// A shipped profile by its id, or the profile in a file.
    ///
    /// # Errors
    ///
    /// When there is none, or it is invalid.
    pub fn find(id_or_path: &str) -> Result<Self, ProfileError> {
        if let Some((id, text)) = SHIPPED.iter().find(|(id, _)| *id == id_or_path) {
            return Self::parse(id, text);
        }
        let text = std::fs::read_to_string(Path::new(id_or_path)).map_err(|reason| {
            let shipped = SHIPPED.map(|(id, _)| id).join(", ");
            ProfileError::NotFound { id: id_or_path.to_owned(), shipped, reason }
        })?;
        Self::parse(id_or_path, &text)
    }

    /// Reads a profile's text; `name` is for messages.
    ///
    /// # Errors
    ///
    /// When it is invalid.
    pub fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        Self::parse_text(text)
            .map_err(|reason| ProfileError::Invalid { profile: name.to_owned(), reason })
    }

    fn parse_text(text: &str) -> Result<Self, String> {
        let mut table: Table =
            text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
        let mut not_counted = Vec::new();
        for (key, value) in &mut table {
            match value {
                Value::Table(block) => strip_provenance(key, block, &mut not_counted)?,
                Value::Array(blocks) => {
                    for (index, block) in blocks.iter_mut().enumerate() {
                        let block = block
                            .as_table_mut()
                            .ok_or_else(|| format!("`{key}` must hold tables"))?;
                        strip_provenance(&format!("{key}[{index}]"), block, &mut not_counted)?;
                    }
                }
                _ => {}
            }
        }
        let file = ProfileFile::deserialize(Value::Table(table)).map_err(|e| one_line(&e))?;
        let profile = Self {
            accelerator: file.accelerator,
            scope: file.scope,
            matching: file.matching,
            quantization: file.quantization,
            supply_points: file.supply_point,
            modes: file.mode,
            mac_table: file.mac_table,
            memories: file.memory,
            transitions: file.transition,
            uncertainty: file.uncertainty.map(|u| u.rel),
            not_counted,
            sha256: sha256(text.as_bytes()),
        };
        if file.schema_version != 1 {
            return Err(format!("`schema_version` must be 1, got {}", file.schema_version));
        }
        let leakage = file.r#static.and_then(|s| s.leakage_mw).and_then(super::Quantity::known);
        profile.check(leakage.unwrap_or(0.0))?;
        Ok(profile)
    }

    fn check(&self, leakage_mw: f64) -> Result<(), String> {
        if self.modes.is_empty() == self.mac_table.is_none() {
            return Err(
                "expected either `[[mode]]` or `[mac_table]`, exactly one of them".to_owned()
            );
        }
        self.check_scope(leakage_mw)?;
        let positive = |name: &str, value: f64| match value {
            v if v > 0.0 && v.is_finite() => Ok(()),
            v => Err(format!("`{name}` must be positive, got {v}")),
        };
        for mode in &self.modes {
            let widths = [mode.w_bits, mode.a_bits];
            if widths.iter().any(|b| !(1..=16).contains(b)) {
                return Err(format!(
                    "mode `{}`: widths must be 1 to 16 bits, got {widths:?}",
                    mode.id
                ));
            }
            if let Some(e) = mode.e_mac_pj.known() {
                positive(&format!("mode.{}.e_mac_pj", mode.id), e)?;
            }
            if let Some(supply) = &mode.supply_point
                && !self.supply_points.iter().any(|s| s.id == *supply)
            {
                return Err(format!("mode `{}`: no supply point `{supply}`", mode.id));
            }
        }
        if let Some(table) = &self.mac_table {
            let (rows, columns) = (table.a_bits.len(), table.w_bits.len());
            if table.e_mac_pj.len() != rows || table.e_mac_pj.iter().any(|r| r.len() != columns) {
                return Err(format!(
                    "`mac_table.e_mac_pj` must have {rows} rows of {columns} numbers"
                ));
            }
            for &e in table.e_mac_pj.iter().flatten() {
                positive("mac_table.e_mac_pj", e)?;
            }
        }
        for memory in &self.memories {
            for (key, value) in [
                ("read_pj_per_bit", memory.read_pj_per_bit),
                ("write_pj_per_bit", memory.write_pj_per_bit),
            ] {
                if let Some(e) = value.and_then(super::Quantity::known) {
                    positive(&format!("memory.{}.{key}", memory.name), e)?;
                }
            }
        }
        let needed = match self.matching.voltage_transition {
            VoltageTransition::Onchip => Some(TransitionKind::VoltageOnchip),
            VoltageTransition::Offchip => Some(TransitionKind::VoltageOffchip),
            VoltageTransition::None => None,
        };
        match needed {
            Some(kind) if !self.transitions.iter().any(|t| t.kind == kind) => Err(format!(
                "`voltage_transition` names {kind:?}, but no `[[transition]]` gives its cost"
            )),
            _ => Ok(()),
        }
    }

    /// A chip's measured efficiency already holds its memories and leakage; adding them again counts
    /// twice.
    fn check_scope(&self, leakage_mw: f64) -> Result<(), String> {
        if self.accelerator.style == Style::BottomUp {
            return Ok(());
        }
        let trap = "with style `chip_total` the energy of a MAC holds everything that `[scope]` marks true; adding it again would count it twice";
        if self.scope.leakage && leakage_mw > 0.0 {
            return Err(format!("`static.leakage_mw` = {leakage_mw}: {trap}"));
        }
        let twice =
            |m: &&Memory| !m.in_mac_energy && m.size_bytes.is_some() && self.scope.onchip_sram;
        match self.memories.iter().find(twice) {
            Some(memory) => {
                Err(format!("memory `{}` with `in_mac_energy = false`: {trap}", memory.name))
            }
            None => Ok(()),
        }
    }
}

/// The message without the line breaks that the TOML reader puts around the place.
fn one_line(error: &toml::de::Error) -> String {
    error.to_string().trim_end().replace('\n', " ")
}

/// Checks that a block with numbers has grade and source, removes both, and notes what is unknown.
fn strip_provenance(
    name: &str,
    block: &mut Table,
    not_counted: &mut Vec<NotCounted>,
) -> Result<(), String> {
    let numeric = |v: &Value| match v {
        Value::Integer(_) | Value::Float(_) | Value::Array(_) => true,
        Value::String(s) => s == "unknown",
        _ => false,
    };
    // The accelerator's own numbers are its identity; `url` is their source.
    let identity = name == "accelerator";
    let has_numbers = block.iter().any(|(key, v)| key != "holds" && numeric(v));
    let (grade, src) = (block.remove("grade"), block.remove("src"));
    if has_numbers && !identity {
        check_grade(name, "grade", grade.as_ref())?;
        let sourced = src.as_ref().and_then(Value::as_str).is_some_and(|s| !s.trim().is_empty());
        if !sourced {
            return Err(format!("`{name}` holds numbers: expected `src`, where they come from"));
        }
    }
    let keys: Vec<String> = block.keys().cloned().collect();
    for key in keys {
        if let Some(base) = key.strip_suffix("_grade")
            && block.contains_key(base)
        {
            let grade = block.remove(&key);
            check_grade(name, &key, grade.as_ref())?;
        }
    }
    for (key, value) in block.iter() {
        if value.as_str() == Some("unknown") {
            not_counted.push(NotCounted(format!("{name}.{key}")));
        }
    }
    Ok(())
}

fn check_grade(block: &str, key: &str, grade: Option<&Value>) -> Result<(), String> {
    match grade.and_then(Value::as_str) {
        Some("F" | "S" | "D" | "E" | "R") => Ok(()),
        got => Err(format!("`{block}.{key}` must be F, S, D, E or R, got {got:?}")),
    }
}
