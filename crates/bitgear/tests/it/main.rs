//! Tests that need more than one module, and real models and data.
#![expect(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod attention;
mod bundle;
mod characterize;
mod elsewhere;
mod import;
mod integer;
mod lowering;
mod published;
mod quantizer;
mod real;
mod tiny_transformer;
