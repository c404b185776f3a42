//! Tests that need more than one module, and real models and data.

mod characterize;
mod import;
mod integer;
mod real;
