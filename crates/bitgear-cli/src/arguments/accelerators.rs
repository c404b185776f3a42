//! The command line of `bitgear accelerators`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Preprocess, batch_size};

#[derive(Debug, Args)]
pub(crate) struct Accelerators {
    #[command(subcommand)]
    pub(crate) action: Option<AcceleratorsAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AcceleratorsAction {
    /// List the profiles that ship
    List,
    /// Show a profile
    Show {
        /// Id of a shipped profile, or a file
        profile: String,
    },
    /// Check a profile's file
    Check {
        /// The file
        profile: PathBuf,
    },
    /// Choose a policy for each profile from the trace of one run; the model is not run again
    Compare(Compare),
    /// Measure how long this CPU takes for a model at each bit-width, and print it as a profile
    Measure(Measure),
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Folder that `characterize` wrote
    pub(crate) run: PathBuf,
    /// The run's ONNX file
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Ids of shipped profiles, or files [default: all that ship]
    #[arg(value_name = "PROFILE")]
    pub(crate) profiles: Vec<String>,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// ONNX file
    pub(crate) model: PathBuf,
    /// Samples to run; labels are not used
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// How many of them, in one batch
    #[arg(long, default_value_t = 64, value_parser = batch_size)]
    pub(crate) samples: usize,
    /// How often every bit-width runs
    #[arg(long, default_value_t = 21)]
    pub(crate) rounds: usize,
    #[command(flatten)]
    pub(crate) preprocess: Preprocess,
    /// Threads
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
}
