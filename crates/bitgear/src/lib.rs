//! bitgear: shifts a trained network between bit-widths per input.
//!
//! The model half ([`onnx`], [`graph`], [`float`], [`data`], [`quantize`], [`execute`]) makes a trace; the
//! decision half reads it. Neither half imports the other.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod certify;
pub mod characterize;
pub mod data;
pub mod energy;
pub mod execute;
mod files;
pub mod float;
pub mod graph;
pub mod hash;
pub mod onnx;
pub mod policy;
pub mod quantize;
pub mod report;
pub mod search;
pub mod sensitivity;
pub mod summary;
pub mod task;
pub mod tensor;
pub mod trace;
mod vector;
