//! bitgear: shifts a trained network between bit-widths per input.
//!
//! The model half ([`onnx`], [`graph`], [`float`], [`data`], [`quantize`], [`execute`]) makes a
//! [`trace`]; the decision half ([`search`], [`energy`]) reads it. Neither half imports the other.
#![forbid(unsafe_code)]

pub mod graph;
pub mod tensor;
