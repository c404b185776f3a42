//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod accelerators;

pub(crate) use accelerators::{Accelerators, AcceleratorsAction, Compare, Measure};

/// Shifts a trained network between bit-widths per input: low for the easy ones, high for the few
/// that need it.
#[derive(Debug, Parser)]
#[command(
    name = "bitgear",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 the work failed, 2 the arguments are wrong. Results go to standard output, all else to standard error."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole thing on the model and data in examples/fashion-mnist
    Demo(Demo),
    /// Find the cheapest policy for a model, data and an accelerator
    Characterize(Box<Characterize>),
    /// Write report.html from the files of a finished run
    Report(Report),
    /// Execute a policy on labelled data
    Evaluate(Evaluate),
    /// Execute a policy on inputs and print each answer
    Run(Run),
    /// Check on new data what a policy loses against its float model
    Certify(Certify),
    /// Watch a stream of answers for inputs that are not like the certified ones
    Monitor(Monitor),
    /// Show a model's layers, shapes, MACs and parameters
    Inspect(Inspect),
    /// Time inferences at operating points
    Bench(Bench),
    /// Show accelerator profiles
    Accelerators(Accelerators),
    /// Print a completion script for a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Folder of the demo's model and data [default: examples/fashion-mnist]
    #[arg(long)]
    pub(crate) example: Option<PathBuf>,
    /// Folder for what is written
    #[arg(long, default_value = "out/demo")]
    pub(crate) out: PathBuf,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print summary.json instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Folder of a finished run; with --compare any number of them
    #[arg(required = true, value_name = "DIR")]
    pub(crate) runs: Vec<PathBuf>,
    /// Set runs side by side
    #[arg(long)]
    pub(crate) compare: bool,
    /// File to write [default: report.html in the run's folder, comparison.html for several]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Folder into which each figure is written as an SVG file as well
    #[arg(long, value_name = "DIR", conflicts_with = "compare")]
    pub(crate) svg: Option<PathBuf>,
    /// Print what was written as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct Characterize {
    /// ONNX file of a trained classifier [default: the task's]
    pub(crate) model: Option<PathBuf>,
    /// Task file; flags override it
    #[arg(long, value_name = "TOML")]
    pub(crate) config: Option<PathBuf>,
    /// Labelled samples: a .npz file with `x` and `y`, or a folder with one folder of images a class
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Samples for calibration, in the same forms; otherwise they are split off
    #[arg(long)]
    pub(crate) calibration: Option<PathBuf>,
    /// Id of a shipped profile (see `bitgear accelerators`), or a profile's file
    #[arg(long)]
    pub(crate) accelerator: Option<String>,
    /// Largest expected accuracy drop, as a fraction [default: 0.005]
    #[arg(long, value_name = "FRACTION")]
    pub(crate) max_drop: Option<f64>,
    /// The policy is expected to lose no more than the best static point for the same target, which
    /// often loses less than it may
    #[arg(long, conflicts_with = "max_energy")]
    pub(crate) no_worse_than_static: bool,
    /// Instead of --max-drop: the least drop at a mean chip energy of at most so many microjoule
    #[arg(long, value_name = "UJ", conflicts_with = "max_drop")]
    pub(crate) max_energy: Option<f64>,
    /// Further policies in the bundle, for `--policy` of other commands: their largest expected
    /// accuracy drops
    #[arg(long, value_name = "FRACTION", value_delimiter = ',')]
    pub(crate) also_max_drop: Vec<f64>,
    /// Largest accuracy drop of any class, on the samples that choose; needs at most 2 stages
    #[arg(long, value_name = "FRACTION")]
    pub(crate) max_class_drop: Option<f64>,
    /// Longest time of an input that all stages run for, in microseconds
    #[arg(long, value_name = "US")]
    pub(crate) max_latency: Option<f64>,
    /// Largest share of inputs that the first stage hands on
    #[arg(long, value_name = "FRACTION")]
    pub(crate) max_escalation: Option<f64>,
    /// Largest chip energy of an input that all stages run for, in microjoule
    #[arg(long, value_name = "UJ")]
    pub(crate) max_worst_energy: Option<f64>,
    /// A drop that is not exceeded, with --confidence: only policies are taken that are proved to
    /// keep it
    #[arg(long, value_name = "FRACTION")]
    pub(crate) guarantee: Option<f64>,
    /// Probability that the guarantee holds [default: 0.95]
    #[arg(long, value_name = "FRACTION")]
    pub(crate) confidence: Option<f64>,
    /// How the guarantee is proved [default: exact]
    #[arg(long, value_enum)]
    pub(crate) test: Option<Test>,
    /// Most stages of the policy, 1 to 4 [default: 2]
    #[arg(long)]
    pub(crate) stages: Option<usize>,
    /// Gates compare the margin with a threshold, and learn nothing else
    #[arg(long)]
    pub(crate) margin_only: bool,
    /// No stage's scores are summed with those of the stage before
    #[arg(long)]
    pub(crate) no_sums: bool,
    /// What leaves a sample's label as it is: mirror, for images. Gives a second view of each input
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) symmetry: Vec<Symmetry>,
    /// Operating points, such as w4a4,w3a3-f8l8; `all` for 1 to 16 bits [default: chosen for the
    /// accelerator, mixed ones included]
    #[arg(long, value_delimiter = ',')]
    pub(crate) points: Vec<String>,
    /// Nominal seconds of measuring, fitting and tracing that the choice of points keeps to [default: 900]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) budget: Option<f64>,
    /// How the weights of a policy's points are stored [default: independent]
    #[arg(long, value_enum)]
    pub(crate) storage: Option<Storage>,
    /// Factor of every stored value
    #[arg(long)]
    pub(crate) scale: Option<f32>,
    /// Mean that is subtracted, one or one per channel
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    pub(crate) mean: Vec<f32>,
    /// Divisor, one or one per channel
    #[arg(long, value_delimiter = ',')]
    pub(crate) std: Vec<f32>,
    /// Trace of this run, instead of running the samples: a file, or a folder of fragments from many
    /// machines
    #[arg(long, value_name = "PATH")]
    pub(crate) trace: Option<PathBuf>,
    /// Seed of everything random [default: 1]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Say on standard error how long each step took; what is written never depends on times
    #[arg(long)]
    pub(crate) times: bool,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Folder for what is written; an earlier run in it is continued
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Print summary.json instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Symmetry {
    /// Left and right exchanged
    Mirror,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Test {
    /// Exact test of the paired drop: the tightest
    Exact,
    /// Betting bound on the paired drop
    Betting,
    /// Clopper-Pearson bound on harmful flips alone
    Binomial,
    /// Conformal risk control of harmful flips: in expectation only
    Conformal,
}

impl From<Test> for bitgear::certify::Test {
    fn from(test: Test) -> Self {
        match test {
            Test::Exact => Self::Exact,
            Test::Betting => Self::Betting,
            Test::Binomial => Self::Binomial,
            Test::Conformal => Self::Conformal,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Storage {
    /// Each point has weights of its own
    Independent,
    /// Narrow points read the leading bits of the widest one's weights
    Nested,
}

impl From<Storage> for bitgear::energy::Storage {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::Independent => Self::Independent,
            Storage::Nested => Self::Nested,
        }
    }
}

/// What is done to stored values before the network sees them.
#[derive(Debug, Args)]
pub(crate) struct Preprocess {
    /// Factor of every stored value
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f32,
    /// Mean that is subtracted, one or one per channel
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, default_values_t = [0.0])]
    pub(crate) mean: Vec<f32>,
    /// Divisor, one or one per channel
    #[arg(long, value_delimiter = ',', default_values_t = [1.0])]
    pub(crate) std: Vec<f32>,
}

impl Preprocess {
    /// What is asked for, in the library's terms.
    pub(crate) fn to_library(&self) -> bitgear::data::Preprocess {
        bitgear::data::Preprocess {
            scale: self.scale,
            mean: self.mean.clone(),
            std: self.std.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// Bundle that `characterize` wrote
    pub(crate) bundle: PathBuf,
    /// Labelled samples
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Which of the bundle's policies: main, or max-drop-X for a further one
    #[arg(long, default_value = "main")]
    pub(crate) policy: String,
    /// Only the samples of this split: search, certification or test
    #[arg(long)]
    pub(crate) split: Option<String>,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Bundle that `characterize` wrote
    pub(crate) bundle: PathBuf,
    /// Samples: .npz files with `x`, .npy files, images or folders of images
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Which of the bundle's policies: main, or max-drop-X for a further one
    #[arg(long, default_value = "main")]
    pub(crate) policy: String,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print one JSON object per input
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 when the drop is not proved.")]
pub(crate) struct Certify {
    /// Bundle that `characterize` wrote
    pub(crate) bundle: PathBuf,
    /// The ONNX file that it was made from: the reference
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Which of the bundle's policies: main, or max-drop-X for a further one
    #[arg(long, default_value = "main")]
    pub(crate) policy: String,
    /// New samples; without labels, disagreement with the reference is bounded
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Only the samples of this split of the data that chose the policy: test, or certification of a policy that was made with --guarantee
    #[arg(long)]
    pub(crate) split: Option<String>,
    /// The drop to prove [default: the certificate's, on samples that it was not made from]
    #[arg(long, value_name = "FRACTION")]
    pub(crate) guarantee: Option<f64>,
    /// Probability that the bound holds
    #[arg(long, value_name = "FRACTION", default_value_t = 0.95)]
    pub(crate) confidence: f64,
    /// How the bound is proved
    #[arg(long, value_enum, default_value = "exact")]
    pub(crate) test: Test,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Reads one JSON object a line with `first_confidence` and `stage`, as `bitgear run --json` prints them. Exit code 1 when the stream differs."
)]
pub(crate) struct Monitor {
    /// policy.json with a certificate
    pub(crate) policy: PathBuf,
    /// The stream [default: standard input]
    pub(crate) stream: Option<PathBuf>,
    /// Probability of an alarm, ever, where nothing has changed
    #[arg(long, value_name = "FRACTION", default_value_t = 0.01)]
    pub(crate) level: f64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// ONNX file
    pub(crate) model: PathBuf,
    /// Show what few bits do to each layer; needs --data
    #[arg(long, requires = "data")]
    pub(crate) sensitivity: bool,
    /// Show also the mixed points that follow from it on this accelerator: a shipped profile's id or a file
    #[arg(long, requires = "sensitivity")]
    pub(crate) accelerator: Option<String>,
    /// Show which kernel each layer runs on this CPU
    #[arg(long)]
    pub(crate) kernels: bool,
    /// Operating points to show kernels of, quantized plainly
    #[arg(long, value_delimiter = ',', default_value = "w8a8,w4a4")]
    pub(crate) points: Vec<String>,
    /// Samples to look at the layers with [default for kernels: noise]; labels are not used
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// How many of them
    #[arg(long, default_value_t = 256)]
    pub(crate) samples: usize,
    /// Bit-widths of weights and activations to show
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3, 4, 6, 8])]
    pub(crate) bits: Vec<u8>,
    #[command(flatten)]
    pub(crate) preprocess: Preprocess,
    /// Threads [default: all processors]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// ONNX file
    pub(crate) model: PathBuf,
    /// Operating points, quantized plainly
    #[arg(long, value_delimiter = ',', default_value = "w8a8,w4a4")]
    pub(crate) points: Vec<String>,
    /// Samples that run together
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64], value_parser = batch_size)]
    pub(crate) batch: Vec<usize>,
    /// Threads; 0 for all processors
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub(crate) threads: Vec<usize>,
    /// Also time the policy that hands this share of the samples from the first point to the second
    #[arg(long, value_name = "FRACTION", value_parser = share)]
    pub(crate) escalate: Option<f64>,
    /// Time each step of a single inference instead
    #[arg(long, conflicts_with = "escalate")]
    pub(crate) layers: bool,
    /// Set of kernels: scalar, avx2, avx512 or amx [default: the fastest that this CPU runs]
    #[arg(long)]
    pub(crate) kernels: Option<String>,
    /// Samples to calibrate with and to run [default: noise]
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) preprocess: Preprocess,
    /// Seed of the noise
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Seconds for each figure
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// At most an hour.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.0..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("must be 0 to 3600 seconds, got {seconds}"))
    }
}

/// A share of samples.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(format!("must be a fraction from 0 to 1, got {share}"))
    }
}

/// A batch that fits into memory.
fn batch_size(text: &str) -> Result<usize, String> {
    let size = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    if (1..=4096).contains(&size) {
        Ok(size)
    } else {
        Err(format!("must be 1 to 4096, got {size}"))
    }
}
