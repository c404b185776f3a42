//! The main job: from a model, data and an accelerator profile to a policy, its bundle and honest
//! figures. Everything is written into one folder, from which a killed run continues.

mod tracing;

use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::{Bundle, BundleError};
use crate::data::{DataError, Dataset, Preprocess, Source};
use crate::energy::Widths as EnergyWidths;
use crate::energy::{
    AcceleratorProfile, EnergyError, LayerWork, NotCounted, ProfileError, Workload,
};
use crate::files::write_json;
use crate::graph::Graph;
use crate::hash::sha256;
use crate::onnx::{self, ImportError};
use crate::policy::{PolicyFile, Provenance};
use crate::quantize::{Point, UnsupportedOperators, calibrate, fused_residuals, quantize};
use crate::search::{Candidates, Kind, PointInfo, Pool};
use crate::summary::{Constraint, Facts, FloatIsland, ModelSummary, Summary, summarize};
use crate::trace::{FLOAT, Random, Shares, Split, Splits, TraceError, View, deal, members};

/// Suffix of points that are quantized plainly, for comparison.
const PLAIN: &str = "-plain";
/// Random splits of the repeated choice.
const REPEATS: usize = 200;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The ONNX file.
    pub model: PathBuf,
    /// Labelled samples.
    pub data: Source,
    /// Samples for calibration; otherwise they are split off.
    pub calibration: Option<Source>,
    /// From stored values to the network's input.
    pub preprocess: Preprocess,
    /// Id of a shipped profile, or a profile's file.
    pub accelerator: String,
    /// Operating points; the widest is always added.
    pub points: Vec<Point>,
    /// Target: the expected accuracy drop, as a fraction.
    pub max_accuracy_drop: f64,
    /// How samples are divided.
    pub shares: Shares,
    /// Seed of everything random.
    pub seed: u64,
    /// Folder for everything that is written.
    pub out: PathBuf,
}

impl Job {
    /// The points that are traced unless others are named: 2 to 8 bits, 10, 12 and 16.
    pub fn default_points() -> Vec<Point> {
        [2, 3, 4, 5, 6, 7, 8, 10, 12, 16].map(uniform).to_vec()
    }
}

fn uniform(bits: u8) -> Point {
    let bits = bitgear_core::bits::BitWidth::new(bits).expect("1 to 16");
    Point::uniform(bits, bits)
}

/// Told how far a run is.
pub trait Progress: Sync {
    /// A step of `total` samples begins.
    fn begin(&self, step: &str, total: usize);
    /// So many samples of it are done.
    fn advance(&self, samples: usize);
}

/// What a run gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Characterization {
    /// What is in `summary.json`.
    pub summary: Summary,
    /// What is in `policy.json`.
    pub policy: PolicyFile,
    /// What the profile says is unknown.
    pub not_counted: Vec<NotCounted>,
}

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CharacterizeError {
    /// The request contradicts itself.
    #[error("{0}")]
    Job(String),
    /// The model can't be imported.
    #[error("model `{0}`: {1}")]
    Import(String, #[source] ImportError),
    /// The model has no integer form.
    #[error("model `{0}`: {1}")]
    Quantize(String, #[source] UnsupportedOperators),
    /// The data can't be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The profile can't be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The profile can't price the workload.
    #[error(transparent)]
    Energy(#[from] EnergyError),
    /// The trace can't be written.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The bundle can't be written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Another file can't be written.
    #[error("cannot write `{0}`: {1}")]
    Write(String, #[source] io::Error),
}

impl CharacterizeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Import(_, error) => error.hint(),
            _ => None,
        }
    }
}

/// Does the job; the current rayon pool sets the number of threads.
///
/// # Errors
///
/// When an input can't be used, or an output can't be written.
pub fn characterize(
    job: &Job,
    progress: &dyn Progress,
) -> Result<Characterization, CharacterizeError> {
    let model = job.model.display().to_string();
    if !(0.0..1.0).contains(&job.max_accuracy_drop) {
        return Err(CharacterizeError::Job(format!(
            "the largest accuracy drop must be a fraction from 0 to below 1, got {}",
            job.max_accuracy_drop
        )));
    }
    let bytes = std::fs::read(&job.model).map_err(|reason| {
        CharacterizeError::Import(model.clone(), ImportError::Read { path: model.clone(), reason })
    })?;
    let graph = onnx::import(&bytes, job.model.parent())
        .map_err(|e| CharacterizeError::Import(model.clone(), e))?;
    let profile = AcceleratorProfile::find(&job.accelerator)?;
    let data = Dataset::read(&job.data)?;
    let calibration = job.calibration.as_ref().map(Dataset::read).transpose()?;
    let calibration = calibration.as_ref().unwrap_or(&data);
    for set in [&data, calibration] {
        set.check(graph.shape(graph.input), &job.preprocess)?;
    }
    // A single score answers one of two classes by its sign, which margins don't express yet.
    let labels = data.labels_of(graph.classes())?;
    let splits = splits(job, &data, labels, calibration)?;
    let provenance = Provenance {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        model_sha256: sha256(&bytes),
        data_sha256: data.sha256().to_owned(),
        calibration_sha256: calibration.sha256().to_owned(),
        accelerator_sha256: profile.sha256.clone(),
        seed: job.seed,
    };
    let mut points = job.points.clone();
    points.push(Point::widest());
    points.sort();
    points.dedup();
    // Before hours of tracing, not after: can the profile price every point?
    let workload = workload(&graph);
    for point in &points {
        crate::energy::policy_cost(&profile, &workload, &[&widths(point, &workload)])?;
    }

    std::fs::create_dir_all(&job.out)
        .map_err(|e| CharacterizeError::Write(job.out.display().to_string(), e))?;
    write(job, "splits.json", &splits)?;

    progress.begin("calibrate", 2 * splits.calibration.len());
    let ranges = calibrate(&graph, splits.calibration.len(), |span| {
        progress.advance(span.len());
        Ok::<_, DataError>(calibration.batch(&splits.calibration[span], &job.preprocess))
    })?;
    let trace = tracing::Tracing {
        job,
        graph: &graph,
        ranges: &ranges,
        data: &data,
        labels,
        splits: &splits,
        provenance: &provenance,
    }
    .run(&points, progress)
    .map_err(|e| match e {
        tracing::Failure::Trace(e) => CharacterizeError::Trace(e),
        tracing::Failure::Quantize(e) => CharacterizeError::Quantize(model.clone(), e),
    })?;

    progress.begin("search", 0);
    let infos = points.iter().flat_map(|point| {
        let widths = widths(point, &workload);
        [(Kind::Uniform, ""), (Kind::Plain, PLAIN)].map(|(kind, suffix)| PointInfo {
            point: format!("{point}{suffix}"),
            view: View::AsIs,
            kind,
            widths: widths.clone(),
        })
    });
    let candidates = Candidates::new(&trace, FLOAT, infos.collect(), &profile, &workload)?;
    let search = trace.rows(Split::Search);
    let choice = candidates.choose(&search, job.max_accuracy_drop, Pool::Policies, job.seed);
    let expected = candidates.outcome(choice, &search);
    let policy = PolicyFile::new(&trace, &candidates, choice, &expected, provenance.clone());
    let facts = Facts {
        model: ModelSummary {
            name: job.model.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            sha256: provenance.model_sha256.clone(),
            macs: workload.macs(),
            parameters: graph.mac_layers().iter().map(|l| l.parameters).sum(),
            float_islands: float_islands(&graph),
        },
        calibration: splits.calibration.len(),
        accelerator: profile.accelerator.id.clone(),
        constraint: Constraint {
            max_accuracy_drop: job.max_accuracy_drop,
            guarantee: None,
            confidence: 0.95,
        },
        reference: "float".to_owned(),
        seed: job.seed,
        repeats: REPEATS,
    };
    let summary = summarize(&trace, &candidates, choice, &policy, facts);
    let models = policy
        .points()
        .map(|name| {
            let point = name.parse().expect("stages are uniform points");
            quantize(&graph, &ranges, &point)
                .map_err(|e| CharacterizeError::Quantize(model.clone(), e))
        })
        .collect::<Result<_, _>>()?;
    let bundle = Bundle {
        schema_version: 1,
        classes: graph.classes(),
        preprocess: job.preprocess.clone(),
        policy: policy.clone(),
        splits,
        models,
    };
    bundle.write(&job.out.join("model.bitgear"))?;
    write(job, "policy.json", &policy)?;
    write(job, "summary.json", &summary)?;
    tracing::clean_up(&job.out)?;
    Ok(Characterization { summary, policy, not_counted: profile.not_counted })
}

fn write(job: &Job, name: &str, value: &impl serde::Serialize) -> Result<(), CharacterizeError> {
    let path = job.out.join(name);
    write_json(&path, value).map_err(|e| CharacterizeError::Write(path.display().to_string(), e))
}

/// Divides the samples. Calibration samples come from their own data set, or are split off first.
fn splits(
    job: &Job,
    data: &Dataset,
    labels: &[u32],
    calibration: &Dataset,
) -> Result<Splits, CharacterizeError> {
    let Shares { calibration: wanted, search, certification } = job.shares;
    let test = 1.0 - search - certification;
    if search <= 0.0 || certification < 0.0 || test <= 0.0 || wanted == 0 {
        return Err(CharacterizeError::Job(format!(
            "shares must leave samples for all: search {search}, certification {certification}, test {test:.3}, calibration {wanted} samples"
        )));
    }
    let mut random = Random::new(job.seed);
    let own = job.calibration.is_some();
    let mut chosen = |set: &Dataset, wanted: usize| -> Vec<usize> {
        let unlabelled = vec![0; set.len()];
        let labels = set.labels().unwrap_or(&unlabelled);
        let rest = (set.len() - wanted) as f64;
        members(&deal(labels, &[wanted as f64, rest], &mut random), 2).swap_remove(0)
    };
    let calibrating = if own {
        chosen(calibration, wanted.min(calibration.len()))
    } else {
        // At most a fifth: most samples are for choosing and reporting.
        chosen(data, wanted.min(data.len() / 5))
    };
    let pool: Vec<usize> = if own {
        (0..data.len()).collect()
    } else {
        (0..data.len()).filter(|i| calibrating.binary_search(i).is_err()).collect()
    };
    let labels: Vec<u32> = pool.iter().map(|&i| labels[i]).collect();
    let dealt = members(&deal(&labels, &[search, certification, test], &mut random), 3);
    let [search, certification, test] =
        [0, 1, 2].map(|part| dealt[part].iter().map(|&i| pool[i]).collect::<Vec<_>>());
    if calibrating.is_empty() || search.len() < 10 || test.is_empty() {
        return Err(CharacterizeError::Job(format!(
            "data `{}`: {} samples are too few: {} for calibration, {} for search, {} for the test",
            data.path().display(),
            data.len(),
            calibrating.len(),
            search.len(),
            test.len()
        )));
    }
    Ok(Splits {
        schema_version: 1,
        data_sha256: data.sha256().to_owned(),
        calibration_sha256: calibration.sha256().to_owned(),
        seed: job.seed,
        calibration: calibrating,
        search,
        certification,
        test,
    })
}

/// The counts that energy depends on.
pub fn workload(graph: &Graph) -> Workload {
    let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let residuals = fused_residuals(graph);
    let layers = graph.mac_layers().into_iter().zip(residuals).map(|(layer, residual)| LayerWork {
        macs: layer.macs,
        weights: layer.weights,
        biases: layer.parameters - layer.weights,
        // Of a matrix product both operands, at the width of activations.
        inputs: size(&layer.input) + layer.second_operand,
        outputs: size(&layer.output),
        residual: residual as u64,
        name: layer.name,
    });
    Workload { layers: layers.collect() }
}

fn float_islands(graph: &Graph) -> Vec<FloatIsland> {
    let island = |(node, operator): (&str, &str)| FloatIsland {
        node: node.to_owned(),
        operator: operator.to_owned(),
    };
    graph.float_islands().into_iter().map(island).collect()
}

/// A point's widths in every layer.
fn widths(point: &Point, workload: &Workload) -> Vec<EnergyWidths> {
    let layers = workload.layers.len();
    (0..layers)
        .map(|layer| {
            let widths = point.widths(layer, layers);
            EnergyWidths { weights: widths.weights.get(), activations: widths.activations.get() }
        })
        .collect()
}

/// The files of a finished run.
pub fn outputs(out: &Path) -> [PathBuf; 5] {
    ["summary.json", "policy.json", "model.bitgear", "trace.parquet", "splits.json"]
        .map(|f| out.join(f))
}
