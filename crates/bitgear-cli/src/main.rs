//! The `bitgear` command: arguments to library calls to terminal.
//!
//! Exit codes: 0 done; 1 the work failed; 2 the arguments are wrong.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

mod arguments;
mod commands;
#[cfg(test)]
mod reference;
mod terminal;

use std::error::Error;
use std::process::ExitCode;

use bitgear::bundle::BundleError;
use bitgear::characterize::CharacterizeError;
use bitgear::data::DataError;
use bitgear::onnx::ImportError;
use clap::Parser;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Demo(options) => commands::characterize::demo(options),
        Command::Characterize(options) => commands::characterize::run(options),
        Command::Report(options) => commands::report::run(options),
        Command::Evaluate(options) => commands::evaluate::run(options),
        Command::Run(options) => commands::infer::run(options),
        Command::Inspect(options) => commands::inspect::run(options),
        Command::Certify(options) => commands::certify::run(options),
        Command::Monitor(options) => commands::monitor::run(options),
        Command::Bench(options) => commands::bench::run(options),
        Command::Accelerators(options) => commands::accelerators::run(options),
        Command::Completions { shell } => {
            use clap::CommandFactory;
            clap_complete::generate(
                *shell,
                &mut Arguments::command(),
                "bitgear",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.message);
            if let Some(hint) = failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Why a command failed, and what to do about it.
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(message: impl ToString) -> Self {
        Self { message: message.to_string(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl ToString) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { message: error.to_string(), hint: hint(&error) }
    }
}

/// What the library says is to be done about its errors.
fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<CharacterizeError>() {
        error.hint()
    } else if let Some(error) = error.downcast_ref::<DataError>() {
        error.hint().map(ToOwned::to_owned)
    } else if let Some(error) = error.downcast_ref::<BundleError>() {
        error.hint().map(ToOwned::to_owned)
    } else {
        error.downcast_ref::<ImportError>()?.hint()
    }
}
