//! `bitgear._native`: the compiled half of the Python package. Its functions take and give NumPy arrays,
//! JSON and paths; `bitgear/__init__.py` makes them comfortable.
#![forbid(unsafe_code)]

mod arrays;
mod arrow;
mod job;
mod monitor;
mod runner;
mod trace;
mod work;

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    bitgear,
    Error,
    PyValueError,
    "Input that can't be used, or work that failed; the message says what was expected and got."
);

/// The exception with a message and what to do about it.
fn fail(message: impl ToString, hint: Option<String>) -> PyErr {
    let hint = hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    Error::new_err(message.to_string() + &hint)
}

/// The exception with a message alone.
fn plain(error: impl ToString) -> PyErr {
    fail(error, None)
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::Error;
    #[pymodule_export]
    use super::arrays::{Outline, sample_hashes};
    #[pymodule_export]
    use super::arrow::arrow_stream;
    #[pymodule_export]
    use super::job::{certify, characterize, compare, measure, profiles};
    #[pymodule_export]
    use super::monitor::Monitor;
    #[pymodule_export]
    use super::runner::Runner;
    #[pymodule_export]
    use super::trace::{Tracer, read_trace};

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "its name in Python")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
