//! Counts of what an inference does, and workload files: networks as layer tables.

use serde::Deserialize;

/// Bit-widths of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Widths {
    /// Of its weights.
    pub weights: u8,
    /// Of its input.
    pub activations: u8,
}

/// Counts of one MAC layer, for one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerWork {
    /// Name of the layer.
    pub name: String,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Weights.
    pub weights: u64,
    /// Biases, of 32 bits each.
    pub biases: u64,
    /// Elements of its operand.
    pub inputs: u64,
    /// Elements of its result.
    pub outputs: u64,
    /// Elements of an addition's other operand that is fused into the layer.
    pub residual: u64,
    /// Share of its MACs with a zero operand; 0 where nobody counted.
    pub zero_macs: f64,
    /// What is made before this layer and read from it on; `None` where no later stage can take
    /// over.
    pub boundary: Option<Vec<Live>>,
}

/// A tensor that is made before a boundary between layers and read after it, by one of its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Tells tensors apart.
    pub tensor: usize,
    /// Its elements.
    pub elements: u64,
    /// The layer that reads it.
    pub layer: usize,
    /// Whether it is read as anything else than the operand of a MAC layer, and so keeps at least
    /// 8 bits.
    pub side: bool,
}

/// Counts of one model, in execution order.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its MAC layers.
    pub layers: Vec<LayerWork>,
}

impl Workload {
    /// All multiply-accumulates.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|l| l.macs).sum()
    }
}

/// A published network: a layer table with its source, and the widths it was run at.
///
/// The file is TOML: `schema_version = 1`, `name`, `src`, and a table `[[layer]]` for each MAC layer
/// with `name`, the counts of [`LayerWork`] and, where they were published, `w_bits`, `a_bits`, and
/// the shares of zeros `w_zeros`, `a_zeros`. Zeros of weights and of activations are taken as
/// independent: a MAC has a zero operand with probability 1 - (1 - w)(1 - a).
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedNetwork {
    /// Its name.
    pub name: String,
    /// Where the table comes from.
    pub src: String,
    /// The counts.
    pub workload: Workload,
    /// Widths of every layer; none where a layer has no published ones.
    pub widths: Option<Vec<Widths>>,
}

/// The text is no workload file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("workload: {0}")]
pub struct InvalidWorkload(String);

impl PublishedNetwork {
    /// Reads a workload file's text.
    ///
    /// # Errors
    ///
    /// When the text is no workload file, or a share or width is out of range.
    pub fn parse(text: &str) -> Result<Self, InvalidWorkload> {
        Self::parse_text(text).map_err(InvalidWorkload)
    }

    fn parse_text(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        if file.schema_version != 1 {
            return Err(format!("`schema_version` must be 1, got {}", file.schema_version));
        }
        let mut layers = Vec::with_capacity(file.layer.len());
        let mut widths = Vec::with_capacity(file.layer.len());
        for layer in file.layer {
            let zeros = [layer.w_zeros, layer.a_zeros];
            if zeros.iter().any(|share| !(0.0..=1.0).contains(share)) {
                return Err(format!(
                    "layer `{}`: shares of zeros must be 0 to 1, got {zeros:?}",
                    layer.name
                ));
            }
            let bits = [layer.w_bits, layer.a_bits];
            if bits.iter().flatten().any(|bits| !(1..=16).contains(bits)) {
                return Err(format!("layer `{}`: widths must be 1 to 16 bits", layer.name));
            }
            widths.push(
                layer
                    .w_bits
                    .zip(layer.a_bits)
                    .map(|(weights, activations)| Widths { weights, activations }),
            );
            layers.push(LayerWork {
                name: layer.name,
                macs: layer.macs,
                weights: layer.weights,
                inputs: layer.inputs,
                outputs: layer.outputs,
                zero_macs: 1.0 - (1.0 - layer.w_zeros) * (1.0 - layer.a_zeros),
                ..LayerWork::default()
            });
        }
        Ok(Self {
            name: file.name,
            src: file.src,
            workload: Workload { layers },
            widths: widths.into_iter().collect(),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema_version: u32,
    name: String,
    src: String,
    layer: Vec<LayerTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerTable {
    name: String,
    macs: u64,
    weights: u64,
    inputs: u64,
    outputs: u64,
    w_bits: Option<u8>,
    a_bits: Option<u8>,
    #[serde(default)]
    w_zeros: f64,
    #[serde(default)]
    a_zeros: f64,
}
