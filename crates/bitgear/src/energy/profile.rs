//! Accelerator profiles: TOML files whose every number has unit, grade and source.

mod check;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::provenance::{Grade, Provenance};
use super::schema::{
    Accelerator, MacTable, Matching, Memory, Mode, ProfileFile, Quantity, Quantization, Scope,
    Style, SupplyPoint, Transition,
};
use crate::hash::sha256;

/// The profiles that ship: (id, text).
pub const SHIPPED: [(&str, &str); 9] = [
    ("bitblade-28nm", include_str!("../../../../accelerators/bitblade-28nm.toml")),
    ("bitfusion-45nm", include_str!("../../../../accelerators/bitfusion-45nm.toml")),
    ("dvas-40nm", include_str!("../../../../accelerators/dvas-40nm.toml")),
    ("envision-28nm", include_str!("../../../../accelerators/envision-28nm.toml")),
    ("eyeriss-65nm", include_str!("../../../../accelerators/eyeriss-65nm.toml")),
    ("gap9-22nm", include_str!("../../../../accelerators/gap9-22nm.toml")),
    ("generic-45nm", include_str!("../../../../accelerators/generic-45nm.toml")),
    ("mpic-22nm", include_str!("../../../../accelerators/mpic-22nm.toml")),
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
    /// Leakage in milliwatt that the energy of a MAC does not contain.
    pub leakage_mw: Option<Quantity>,
    /// Relative uncertainty of energies without bounds of their own, if stated.
    pub uncertainty: Option<f64>,
    /// What the file says is unknown or outside of its scope, and so is not counted.
    pub not_counted: Vec<NotCounted>,
    /// What each number rests on, by `block.key` or `block.name.key`.
    pub grades: BTreeMap<String, Grade>,
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

    /// JSON Schema of a profile's file.
    pub fn schema() -> schemars::Schema {
        ProfileFile::schema()
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
        let mut provenance = Provenance::default();
        for (key, value) in &mut table {
            match value {
                Value::Table(block) => provenance.take(key, block)?,
                Value::Array(blocks) => {
                    for (index, block) in blocks.iter_mut().enumerate() {
                        let block = block
                            .as_table_mut()
                            .ok_or_else(|| format!("`{key}` must hold tables"))?;
                        let name =
                            ["id", "name", "kind"].iter().find_map(|id| block.get(*id)?.as_str());
                        let name = name.map_or(index.to_string(), str::to_owned);
                        provenance.take(&format!("{key}.{name}"), block)?;
                    }
                }
                _ => {}
            }
        }
        let file = ProfileFile::deserialize(Value::Table(table)).map_err(|e| one_line(&e))?;
        let mut profile = Self {
            accelerator: file.accelerator,
            scope: file.scope,
            matching: file.matching,
            quantization: file.quantization,
            supply_points: file.supply_point,
            modes: file.mode,
            mac_table: file.mac_table,
            memories: file.memory,
            transitions: file.transition,
            leakage_mw: file.r#static.and_then(|s| s.leakage_mw),
            uncertainty: file.uncertainty.map(|u| u.rel),
            not_counted: provenance.not_counted,
            grades: provenance.grades,
            sha256: sha256(text.as_bytes()),
        };
        if file.schema_version != 1 {
            return Err(format!("`schema_version` must be 1, got {}", file.schema_version));
        }
        profile.check()?;
        let outside = profile.outside_of_scope();
        profile.not_counted.extend(outside);
        Ok(profile)
    }

    /// What neither the energy of a MAC contains nor anything in the profile adds.
    fn outside_of_scope(&self) -> Vec<NotCounted> {
        if self.accelerator.style == Style::Time {
            return Vec::new();
        }
        let known = |value: Option<Quantity>| value.and_then(Quantity::known).is_some();
        let rates = self.mac_table.as_ref().is_some_and(|t| t.macs_per_cycle.is_some())
            || self.modes.iter().any(|m| known(m.macs_per_cycle));
        let timed = rates && self.supply_points.iter().any(|s| known(s.freq_mhz));
        let has = |offchip: bool| self.memories.iter().any(|m| m.is_offchip() == offchip);
        let scope = &self.scope;
        [
            ("onchip_sram", scope.onchip_sram || has(false)),
            ("control", scope.control),
            // Without time a known leakage adds nothing; an unknown one is listed already.
            (
                "leakage",
                scope.leakage || self.leakage_mw.is_some_and(|mw| timed || !known(Some(mw))),
            ),
            ("dram", scope.dram || has(true)),
            ("io", scope.io),
            ("regulator", scope.regulator),
        ]
        .into_iter()
        .filter(|&(_, counted)| !counted)
        .map(|(name, _)| NotCounted(format!("scope.{name}")))
        .collect()
    }
}

/// The message without the line breaks that the TOML reader puts around the place.
fn one_line(error: &toml::de::Error) -> String {
    error.to_string().trim_end().replace('\n', " ")
}
