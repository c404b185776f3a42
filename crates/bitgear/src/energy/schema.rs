//! The tables of an accelerator profile, as they stand in the file. Units are in the names.

use schemars::{JsonSchema, Schema, SchemaGenerator, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::provenance::Grade;

/// A number, or the statement that it is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Quantity {
    /// A number.
    Known(f64),
    /// Nothing was published, measured or derived.
    Unknown(Unknown),
}

/// The word `unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// `unknown`
    Unknown,
}

impl Quantity {
    /// The number, if it is known.
    pub fn known(self) -> Option<f64> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// The number times a factor; what is unknown stays so.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        match self {
            Self::Known(value) => Self::Known(value * factor),
            unknown @ Self::Unknown(_) => unknown,
        }
    }
}

/// What the numbers rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// Measured on a chip.
    Silicon,
    /// Simulated with extracted layout.
    PostLayout,
    /// Simulated after synthesis.
    Synthesis,
    /// Computed from tables.
    Model,
}

impl Evidence {
    /// `silicon`, `post-layout`, `synthesis` or `model`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silicon => "silicon",
            Self::PostLayout => "post-layout",
            Self::Synthesis => "synthesis",
            Self::Model => "model",
        }
    }
}

/// What a MAC's energy stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Everything that the scope lists, as measured on the whole chip.
    ChipTotal,
    /// The multiply-accumulate alone; memories and leakage are added.
    BottomUp,
    /// No energy at all: time, at a nominal watt, so that a picojoule is a picosecond.
    Time,
}

/// `[accelerator]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accelerator {
    /// Short name for the command line.
    pub id: String,
    /// Full name.
    pub name: String,
    /// Where it was published.
    pub url: String,
    /// Process node in nanometres.
    pub node_nm: f64,
    /// What the numbers rest on.
    pub evidence: Evidence,
    /// What a MAC's energy stands for.
    pub style: Style,
    /// 16-bit MACs in a cycle at most.
    pub peak_macs_16b: Option<f64>,
}

/// `[scope]`: what the energy of a MAC already contains.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent facts")]
pub struct Scope {
    /// The multiply-accumulate.
    pub mac: bool,
    /// On-chip memories.
    pub onchip_sram: bool,
    /// Control.
    pub control: bool,
    /// Leakage.
    pub leakage: bool,
    /// Off-chip memory.
    pub dram: bool,
    /// Pads.
    pub io: bool,
    /// Voltage regulator.
    pub regulator: bool,
}

/// How a layer's widths find a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// The smallest mode that covers both widths.
    RoundUp,
    /// The mode of exactly the weights' width that covers the activations'; in a MAC table, widths
    /// between its columns are interpolated.
    ExactWeightBits,
}

/// Which transition between supply points is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VoltageTransition {
    /// By an on-chip regulator.
    Onchip,
    /// By an off-chip regulator.
    Offchip,
    /// None is possible: the whole network runs at the supply of its widest layer.
    None,
}

/// `[matching]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Matching {
    /// How a mode is found.
    #[serde(rename = "match")]
    pub rule: Match,
    /// Whether weights and activations share one width.
    #[serde(default)]
    pub symmetric: bool,
    /// Which transition between supply points is charged.
    #[serde(default = "no_transition")]
    pub voltage_transition: VoltageTransition,
    /// Inside a mode a MAC costs (bits / mode bits) to this power.
    #[serde(default)]
    pub gating_exponent: f64,
    /// Its lower bound.
    pub gating_exponent_lo: Option<f64>,
    /// Its upper bound.
    pub gating_exponent_hi: Option<f64>,
    /// Share of a MAC's energy saved where an operand is zero.
    pub sparsity_gating: Option<Quantity>,
    /// Share of the peak throughput reached. Bottom up, units that idle cost what busy ones do.
    pub utilization_default: Option<Quantity>,
    /// Bits of a partial sum; they do not shrink with the operands.
    #[serde(default = "accumulator_bits")]
    pub accumulator_bits: u8,
}

fn accumulator_bits() -> u8 {
    32
}

/// `[quantization]`: what the hardware allows. Every scale is allowed that is not excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quantization {
    /// One scale for all output channels of a layer.
    pub per_tensor_scales: bool,
    /// All scales are powers of two.
    pub power_of_two_scales: bool,
    /// Signed activations have their zero in the middle.
    pub no_zero_points: bool,
    /// What weights of 2 bits may be; each layer takes what suits it best. Nothing listed means two's
    /// complement.
    pub two_bit_codes: Vec<CodeBook>,
}

/// The integers that weights of 2 bits stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodeBook {
    /// {-2, -1, 0, 1}
    TwosComplement,
    /// {-1, 0, 1}
    Ternary,
    /// {-3, -1, 1, 3}
    Odd,
}

fn no_transition() -> VoltageTransition {
    VoltageTransition::None
}

/// `[[supply_point]]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SupplyPoint {
    /// Name within the profile.
    pub id: String,
    /// Supply voltage in volt.
    pub vdd: Option<Quantity>,
    /// Clock in megahertz.
    pub freq_mhz: Option<Quantity>,
    /// Power in milliwatt.
    pub power_mw: Option<Quantity>,
    /// Leakage in milliwatt; replaces the one of `[static]`.
    pub leakage_mw: Option<Quantity>,
}

/// `[[mode]]`: one precision that the hardware can be set to.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mode {
    /// Name within the profile.
    pub id: String,
    /// Widest weights.
    pub w_bits: u8,
    /// Widest activations.
    pub a_bits: u8,
    /// MACs in a cycle.
    pub macs_per_cycle: Option<Quantity>,
    /// Supply point it runs at.
    pub supply_point: Option<String>,
    /// Energy of a MAC in picojoule.
    pub e_mac_pj: Quantity,
    /// Its lower bound.
    pub e_mac_pj_lo: Option<f64>,
    /// Its upper bound.
    pub e_mac_pj_hi: Option<f64>,
}

/// `[mac_table]`: energies over widths of activations (rows) and weights (columns), both rising.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MacTable {
    /// Supply point it holds at.
    pub supply_point: Option<String>,
    /// Activation widths of the rows.
    pub a_bits: Vec<u8>,
    /// Weight widths of the columns.
    pub w_bits: Vec<u8>,
    /// MACs in a cycle.
    pub macs_per_cycle: Option<Vec<Vec<f64>>>,
    /// Energy of a MAC in picojoule.
    pub e_mac_pj: Vec<Vec<f64>>,
    /// Grade of each entry.
    pub grade_per_point: Option<Vec<Vec<Grade>>>,
}

/// The smallest piece that a memory reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Codes are packed without gaps.
    Bit,
    /// Codes take whole bytes.
    Byte,
    /// Codes take whole 32-bit words.
    Word,
}

impl Packing {
    /// Bits that a code of `bits` takes.
    pub fn stored_bits(self, bits: u8) -> u64 {
        let bits = u64::from(bits);
        match self {
            Self::Bit => bits,
            Self::Byte => bits.next_multiple_of(8),
            Self::Word => bits.next_multiple_of(32),
        }
    }
}

/// `[[memory]]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Name within the profile.
    pub name: String,
    /// What it holds.
    pub holds: Vec<Holds>,
    /// Whether its energy is part of a MAC's.
    pub in_mac_energy: bool,
    /// Capacity in bytes; off-chip memories have none.
    pub size_bytes: Option<Quantity>,
    /// Energy to read a bit, in picojoule.
    pub read_pj_per_bit: Option<Quantity>,
    /// Its lower bound.
    pub read_pj_per_bit_lo: Option<f64>,
    /// Its upper bound.
    pub read_pj_per_bit_hi: Option<f64>,
    /// Energy to write a bit, in picojoule.
    pub write_pj_per_bit: Option<Quantity>,
    /// Its lower bound.
    pub write_pj_per_bit_lo: Option<f64>,
    /// Its upper bound.
    pub write_pj_per_bit_hi: Option<f64>,
    /// MACs that a weight read from here serves. Where that is not known, every weight is read once.
    pub reuse_weights: Option<Quantity>,
    /// MACs that an input read from here serves, likewise.
    pub reuse_inputs: Option<Quantity>,
    /// MACs summed up before a partial sum is written here and read again, likewise.
    pub reuse_outputs: Option<Quantity>,
    /// Bits moved in a cycle.
    pub bandwidth_bits_per_cycle: Option<Quantity>,
    /// Best compression of its traffic; not counted, since it depends on the data.
    pub compression_max: Option<f64>,
    /// Smallest piece.
    #[serde(default = "bit_packing")]
    pub packing: Packing,
}

fn bit_packing() -> Packing {
    Packing::Bit
}

impl Memory {
    /// Whether it lies outside the chip: then it has no capacity.
    pub fn is_offchip(&self) -> bool {
        self.size_bytes.is_none()
    }
}

/// What a memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Weights and biases.
    Weights,
    /// Operands of MAC layers.
    Inputs,
    /// Their results.
    Outputs,
    /// Sums that are not finished.
    PartialSums,
}

/// `[static]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "units are in the keys")]
pub(super) struct Static {
    /// Leakage in milliwatt that the MAC's energy does not contain.
    pub leakage_mw: Option<Quantity>,
    /// Power when waiting, in milliwatt.
    pub idle_mw: Option<Quantity>,
    /// Power when asleep, in milliwatt.
    pub sleep_mw: Option<Quantity>,
}

/// What changes in a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransitionKind {
    /// The mode.
    Precision,
    /// The supply, by an on-chip regulator.
    VoltageOnchip,
    /// The supply, by an off-chip regulator.
    VoltageOffchip,
    /// The clock.
    Clock,
    /// The resident weights.
    Weights,
}

/// `[[transition]]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    /// What changes.
    pub kind: TransitionKind,
    /// How long it takes, in microseconds.
    pub latency_us: Option<Quantity>,
    /// What it costs, in nanojoule.
    pub energy_nj: Option<Quantity>,
    /// Its lower bound.
    pub energy_nj_lo: Option<f64>,
    /// Its upper bound.
    pub energy_nj_hi: Option<f64>,
}

/// `[uncertainty]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Uncertainty {
    /// Relative uncertainty of MAC energies.
    pub rel: f64,
}

/// The whole file, without grades and sources, which are checked apart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileFile {
    pub(super) schema_version: u32,
    pub(super) accelerator: Accelerator,
    pub(super) scope: Scope,
    pub(super) matching: Matching,
    #[serde(default)]
    pub(super) quantization: Quantization,
    #[serde(default)]
    pub(super) supply_point: Vec<SupplyPoint>,
    #[serde(default)]
    pub(super) mode: Vec<Mode>,
    pub(super) mac_table: Option<MacTable>,
    #[serde(default)]
    pub(super) memory: Vec<Memory>,
    pub(super) r#static: Option<Static>,
    #[serde(default)]
    pub(super) transition: Vec<Transition>,
    pub(super) uncertainty: Option<Uncertainty>,
}

impl ProfileFile {
    /// The JSON Schema of the whole file: every block may have, beside its numbers, one grade and one source
    /// for all, and grades of single ones.
    pub(super) fn schema() -> Schema {
        let mut schema = schema_for!(Self);
        let grade = Grade::json_schema(&mut SchemaGenerator::default());
        let blocks = schema.get_mut("$defs").and_then(Value::as_object_mut).into_iter().flatten();
        for (_, block) in blocks {
            let Some(properties) = block.get_mut("properties").and_then(Value::as_object_mut)
            else {
                continue;
            };
            properties.insert("grade".to_owned(), grade.clone().into());
            let source = json!({"type": "string", "description": "Where the numbers come from."});
            properties.insert("src".to_owned(), source);
            block["patternProperties"] = json!({"_grade$": grade});
        }
        schema
    }
}
