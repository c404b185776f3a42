//! Tests that need more than one module, and real models and data.

mod integer;
mod real;
