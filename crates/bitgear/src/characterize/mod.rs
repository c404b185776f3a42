//! The main job: from a model, data and an accelerator profile to a policy, its bundle and honest
//! figures. Everything is written into one folder, from which a killed run continues.

mod budget;
mod chosen;
mod compare;
mod counts;
mod elsewhere;
mod finished;
mod measure;
mod points;
mod recheck;
mod request;
mod tracing;

pub use compare::compare;
pub use counts::workload;
pub use elsewhere::{Origin, Round, TraceElsewhere, Tracer};
pub use finished::Finished;
pub use measure::measure;
pub use points::{MixedPoint, mixed_points, spread};
pub use recheck::{Recheck, recheck};

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use self::budget::{Costs, affordable};
use self::chosen::Chosen;
use self::counts::{constraints, float_islands, point_infos, table, untuned, widths};
use self::request::{check, splits};
use crate::bundle::{Bundle, BundleError, weight_bytes};
use crate::certify::{Demand, decide};
use crate::data::{DataError, Dataset, Preprocess, Source};
use crate::energy::{AcceleratorProfile, EnergyError, ProfileError, Storage};
use crate::execute::IntegerModel;
use crate::files::{write_atomically, write_json};
use crate::hash::sha256;
use crate::onnx::{self, ImportError};
use crate::policy::{PolicyFile, Provenance};
use crate::quantize::{Methods, Point, Quantizer, UnsupportedOperators, calibrate};
use crate::report::{ReportError, Run};
use crate::search::{Candidates, Kind, PointInfo, Pool, Rules, Target};
use crate::summary::{
    Constraint, Facts, IndependentSummary, ModelSummary, StorageSummary, Summary, summarize,
    targets_around,
};
use crate::trace::{FLOAT, Shares, Split, TraceError, View};

/// Suffix of points that are quantized plainly, for comparison.
const PLAIN: &str = "-plain";
/// Stages of a policy at most.
const MOST_STAGES: usize = 4;

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
    /// Whether a mirrored input has the same label: then it is a second view.
    pub mirror: bool,
    /// Id of a shipped profile, or a profile's file.
    pub accelerator: String,
    /// Operating points; the widest is always added. None: those that the accelerator makes sense
    /// of, uniform, with wider first and last layers, and mixed.
    pub points: Option<Vec<Point>>,
    /// Nominal seconds that measuring, fitting and tracing may take; bounds the number of points that are
    /// not named. Nominal: work over fixed speeds, so that the same job always chooses the same points.
    pub budget: f64,
    /// How weights and scales are found.
    pub methods: Methods,
    /// How the weights of the policy's points are stored.
    pub storage: Storage,
    /// The target, and the guarantee if one is wanted.
    pub constraint: Constraint,
    /// Targets of further policies in the bundle.
    pub more_targets: Vec<f64>,
    /// What policies are made of.
    pub rules: Rules,
    /// How samples are divided.
    pub shares: Shares,
    /// Shares of the classes in deployment, one for each class; samples are weighted by them. None: as in the
    /// data.
    pub class_mix: Option<Vec<f64>>,
    /// Seed of everything random.
    pub seed: u64,
    /// Folder for everything that is written.
    pub out: PathBuf,
}

impl Job {
    /// Nominal seconds unless others are given.
    pub const BUDGET: f64 = 900.0;
}

/// Told how far a run is.
pub trait Progress: Sync {
    /// A step of `total` samples begins.
    fn begin(&self, step: &str, total: usize);
    /// So many samples of it are done.
    fn advance(&self, samples: usize);
    /// Whether to stop as soon as possible; what was traced by then is kept.
    fn cancelled(&self) -> bool {
        false
    }
}

/// What a run gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Characterization {
    /// What is in `summary.json`.
    pub summary: Summary,
    /// What is in `policy.json`.
    pub policy: PolicyFile,
}

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CharacterizeError {
    /// The request contradicts itself.
    #[error("{0}")]
    Job(String),
    /// [`Progress::cancelled`] said so.
    #[error("cancelled")]
    Cancelled,
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
    /// The report can't be made.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A model, or a file of an earlier run, can't be read.
    #[error("cannot read `{0}`: {1}")]
    Read(String, String),
    /// Another file can't be written.
    #[error("cannot write `{0}`: {1}")]
    Write(String, #[source] io::Error),
}

impl CharacterizeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Import(_, error) => error.hint(),
            Self::Data(error) => error.hint().map(ToOwned::to_owned),
            Self::Bundle(error) => error.hint().map(ToOwned::to_owned),
            _ => None,
        }
    }

    /// What kept the model in a file from being imported.
    fn import(model: &Path, error: ImportError) -> Self {
        match error {
            ImportError::Read { path, reason } => Self::Read(path, reason.to_string()),
            error => Self::Import(model.display().to_string(), error),
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
    characterize_from(job, Origin::Here, progress)
}

/// The same, with the answers of all samples from elsewhere. The results are the same too, byte for byte,
/// where the other machines' CPUs give the float network's scores to the same bit.
///
/// # Errors
///
/// Also when the trace is not one of this job.
pub fn characterize_from(
    job: &Job,
    origin: Origin<'_>,
    progress: &dyn Progress,
) -> Result<Characterization, CharacterizeError> {
    let model = job.model.display().to_string();
    check(job).map_err(CharacterizeError::Job)?;
    let imported = |e| CharacterizeError::import(&job.model, e);
    let bytes = onnx::read_file(&job.model).map_err(imported)?;
    let graph = onnx::import(&bytes).map_err(imported)?;
    let profile = AcceleratorProfile::find(&job.accelerator)?;
    let data = Dataset::read(&job.data)?;
    let calibration = job.calibration.as_ref().map(Dataset::read).transpose()?;
    let calibration = calibration.as_ref().unwrap_or(&data);
    for set in [&data, calibration] {
        set.check(graph.shape(graph.input), &job.preprocess)?;
    }
    if job.mirror && graph.shape(graph.input).len() != 3 {
        return Err(CharacterizeError::Job(
            "symmetry `mirror` needs images (C, H, W) as input".to_owned(),
        ));
    }
    origin.check(job, &data, calibration)?;
    if graph.classes() < 2 {
        return Err(CharacterizeError::Job(format!(
            "model `{model}` has a single score that no layer makes directly: expected a convolution or fully connected layer, and at most a sigmoid after it"
        )));
    }
    let provenance = Provenance {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        model_sha256: sha256(&bytes),
        data_sha256: data.sha256().to_owned(),
        calibration_sha256: calibration.sha256().to_owned(),
        accelerator_sha256: profile.sha256.clone(),
        seed: job.seed,
    };
    let labels = if data.labels().is_some() {
        Cow::Borrowed(data.labels_of(graph.classes())?)
    } else {
        // Then the reference's own answers are the labels, and both promises are about disagreement.
        Cow::Owned(origin.labels(job, &graph, &bytes, &data, &provenance, progress)?)
    };
    let labels = &labels[..];
    let splits = splits(job, &data, labels, graph.classes(), calibration)?;
    let workload = workload(&graph);
    let uniform =
        if job.points.is_none() { points::uniform(&profile, &workload)? } else { Vec::new() };
    let all = || [points::with_ends(&uniform), uniform.clone()].concat();
    let mut points = job.points.clone().unwrap_or_else(all);
    points.push(Point::widest());
    points.sort();
    points.dedup();
    // Before hours of tracing, not after: can the profile price every point?
    for point in &points {
        let cost = crate::energy::policy_cost(&profile, &workload, &[&widths(point, &workload)])?;
        if job.rules.max_worst_us.is_finite() && cost[0].time_us.is_none() {
            return Err(CharacterizeError::Job(format!(
                "a longest latency needs a profile that says how long point `{point}` takes, and `{}` does not",
                job.accelerator
            )));
        }
    }

    std::fs::create_dir_all(&job.out)
        .map_err(|e| CharacterizeError::Write(job.out.display().to_string(), e))?;
    write(job, "splits.json", &splits)?;

    progress.begin("calibrate", 2 * splits.calibration.len());
    let ranges = calibrate(&graph, splits.calibration.len(), |span| {
        progress.advance(span.len());
        if progress.cancelled() {
            return Err(CharacterizeError::Cancelled);
        }
        Ok(calibration.batch(&splits.calibration[span], &job.preprocess))
    })?;
    let batch = calibration.batch(&splits.calibration, &job.preprocess);
    let quantizer = Quantizer::new(&graph, &ranges, &batch, job.methods, constraints(&profile));
    let mut sensitivity = None;
    if job.points.is_none() {
        let macs = data.len() as f64 * workload.macs() as f64;
        let costs = Costs::new(&quantizer, macs, job.mirror, &uniform);
        let (fitting, mixed) = affordable(&uniform, &costs, job.budget);
        points.retain(|point| *point == Point::widest() || fitting.contains(point));
        if mixed > 0 {
            let pairs = points::pairs(&uniform);
            progress.begin("sensitivity", workload.layers.len());
            let measured = quantizer.sensitivity(&pairs, || progress.advance(1));
            let found = mixed_points(&measured, &pairs, &profile, &workload)?;
            points.extend(spread(found, mixed).into_iter().map(|mixed| mixed.point));
            sensitivity = Some(measured);
        }
    }
    let tracing = tracing::Tracing {
        job,
        graph: &graph,
        quantizer: &quantizer,
        data: &data,
        labels,
        splits: &splits,
        provenance: &provenance,
        made: Mutex::default(),
    };
    let mut trace = origin.trace(&tracing, &points, &bytes, progress)?;

    progress.begin("search", 0);
    let mut infos: Vec<PointInfo> =
        points.iter().flat_map(|point| point_infos(point, job.mirror, &workload)).collect();
    let mut workload = workload;
    let demand = job.constraint.demand();
    let [choosing, proving] = demand.rows(&trace);
    let further = job.more_targets.iter();
    let further = further.map(|&drop| {
        let target = Target { drop, ..demand.target };
        Demand { target, max_energy_uj: None, ..demand }
    });
    let demands: Vec<Demand> = std::iter::once(demand).chain(further).collect();
    let price = |trace: &_, infos: &[PointInfo], workload: &_| {
        Candidates::new(trace, FLOAT, infos.to_vec(), &profile, workload, job.rules)
    };
    let quantized = |e| CharacterizeError::Quantize(model.clone(), e);
    let (mut candidates, mut policies) = loop {
        let candidates = price(&trace, &infos, &workload)?;
        let rows = [&choosing[..], &proving];
        let network = |point: &Point| {
            let model = tracing.quantized(point, &point.to_string(), progress);
            model.map_err(|failure| tracing.failed(failure))
        };
        let (policies, alike) =
            Chosen::decide(&candidates, rows, &demands, job.seed, &points, network)?;
        if alike {
            break (candidates, policies);
        }
        // Equal widths did not give equal layers: then every stage begins with the input.
        for layer in &mut workload.layers {
            layer.boundary = None;
        }
    };
    progress.begin("summary", 0);
    let Chosen { mut verdict, points: chosen, mut models } = policies.remove(0);
    let (mut others, mut options) = (Vec::new(), Vec::new());
    for (policy, demand) in policies.iter().zip(&demands[1..]) {
        let (named, option) = policy.option(&trace, &candidates, demand, &provenance);
        others.push(named);
        options.push(option);
    }
    chosen::within_budgets(&candidates, &verdict.choice, job.rules)
        .map_err(CharacterizeError::Job)?;
    let mut storage = Storage::Independent;
    let independent = candidates.outcome(&verdict.choice, &trace.rows(Split::Test));
    let independent_bytes = weight_bytes(&models, storage);
    let mut chosen = chosen;
    chosen.dedup();
    if job.storage == Storage::Nested && chosen.len() > 1 {
        let nested = quantizer.quantize_nested(&chosen).map_err(quantized)?;
        origin.nested(&tracing, &mut trace, &nested, &bytes, progress)?;
        infos.extend(nested.iter().zip(&chosen).map(|(model, point)| PointInfo {
            point: model.point.clone(),
            view: View::AsIs,
            kind: Kind::Nested,
            alike: untuned(&widths(point, &workload)),
            widths: widths(point, &workload),
        }));
        candidates = price(&trace, &infos, &workload)?;
        let best = decide(&candidates, &choosing, &proving, &demands[0], Pool::Nested, job.seed);
        // One network alone shares nothing: then the independent policy stands.
        if best.choice.stages.len() > 1 {
            let place = |m: &IntegerModel| {
                candidates.stages(&best.choice).position(|info| info.point == m.point)
            };
            let mut used: Vec<IntegerModel> =
                nested.into_iter().filter(|model| place(model).is_some()).collect();
            used.sort_by_key(place);
            (verdict, models, storage) = (best, used, Storage::Nested);
        }
    }
    let expected = candidates.outcome(&verdict.choice, &choosing);
    let policy = PolicyFile::new(
        &trace,
        &candidates,
        &verdict.choice,
        &expected,
        verdict.certificate.clone(),
        provenance.clone(),
    );
    let facts = Facts {
        model: ModelSummary {
            name: job.model.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            sha256: provenance.model_sha256.clone(),
            macs: workload.macs(),
            parameters: graph.mac_layers().iter().map(|l| l.parameters).sum(),
            float_islands: float_islands(&graph),
        },
        calibration: splits.calibration.len(),
        labelled: data.labels().is_some(),
        profile: &profile,
        constraint: job.constraint,
        reference: "float".to_owned(),
        tables: points.iter().filter(|p| !p.is_uniform()).map(|p| table(p, &workload)).collect(),
        sensitivity,
        storage: StorageSummary {
            kind: storage,
            weight_bytes: weight_bytes(&models, storage),
            independent: IndependentSummary {
                weight_bytes: independent_bytes,
                accuracy: independent.accuracy,
                energy_uj: independent.energy.into(),
            },
        },
        seed: job.seed,
        repeats: REPEATS,
        targets: targets_around(&job.constraint),
        options,
    };
    let summary = summarize(&trace, &candidates, &verdict, &policy, facts);
    for policy in &others {
        write(job, &format!("policy-{}.json", policy.name), &policy.policy)?;
    }
    // One network for each point and stage of the policy, then those that only others run.
    for model in policies.into_iter().flat_map(|policy| policy.models) {
        if !models.iter().any(|known| known.point == model.point) {
            models.push(model);
        }
    }
    let bundle = Bundle {
        schema_version: 1,
        classes: graph.classes(),
        preprocess: job.preprocess.clone(),
        policy: policy.clone(),
        others,
        splits,
        storage,
        models,
    };
    bundle.write(&job.out.join("model.bitgear"))?;
    write(job, "policy.json", &policy)?;
    write(job, "summary.json", &summary)?;
    let run = Run::new(summary, policy, &trace)?;
    let path = job.out.join("report.html");
    write_atomically(&path, run.page().as_bytes())
        .map_err(|e| CharacterizeError::Write(path.display().to_string(), e))?;
    tracing::clean_up(&job.out)?;
    let (summary, policy) = run.into_parts();
    Ok(Characterization { summary, policy })
}

fn write(job: &Job, name: &str, value: &impl serde::Serialize) -> Result<(), CharacterizeError> {
    let path = job.out.join(name);
    write_json(&path, value).map_err(|e| CharacterizeError::Write(path.display().to_string(), e))
}

/// The files of a finished run.
pub fn outputs(out: &Path) -> [PathBuf; 6] {
    ["report.html", "summary.json", "policy.json", "model.bitgear", "trace.parquet", "splits.json"]
        .map(|name| out.join(name))
}
