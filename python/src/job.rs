//! Finding a policy, and what else starts from a model.

use std::path::{Path, PathBuf};

use bitgear::bundle::Bundle;
use bitgear::certify::{Demand, Test};
use bitgear::characterize::{
    self as library, CharacterizeError, Job, Origin, Round, characterize_from, recheck,
};
use bitgear::data::{Dataset, Preprocess};
use bitgear::energy::{AcceleratorProfile, SHIPPED, Storage};
use bitgear::onnx::{self, ImportError};
use bitgear::quantize::{Methods, Point, calibrate};
use bitgear::search::Rules;
use bitgear::summary::Constraint;
use bitgear::trace::Shares;
use bitgear_core::bits::BitWidth;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::Value;

use crate::{arrays, plain, work};

/// Keyword arguments of `characterize`; their meaning is documented there.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
#[expect(clippy::struct_excessive_bools, reason = "each is an argument")]
pub(crate) struct Options {
    accelerator: String,
    max_drop: f64,
    no_worse_than_static: bool,
    max_energy: Option<f64>,
    max_escalation: f64,
    max_worst_energy: Option<f64>,
    max_latency: Option<f64>,
    max_class_drop: Option<f64>,
    also_max_drop: Vec<f64>,
    class_mix: Option<Vec<f64>>,
    guarantee: Option<f64>,
    confidence: f64,
    test: String,
    stages: usize,
    margin_only: bool,
    sums: bool,
    mirror: bool,
    points: Option<Vec<String>>,
    budget: f64,
    storage: String,
    scale: f32,
    mean: Vec<f32>,
    std: Vec<f32>,
    calibration_samples: usize,
    search_share: f64,
    certification_share: f64,
    seed: u64,
    threads: Option<usize>,
}

/// The value that files call `name`.
fn named<T: serde::de::DeserializeOwned>(what: &str, name: &str, all: &str) -> PyResult<T> {
    serde_json::from_value(Value::String(name.to_owned()))
        .map_err(|_| plain(format!("{what} must be one of {all}, got `{name}`")))
}

fn test(name: &str) -> PyResult<Test> {
    named("test", name, "`exact`, `betting`, `binomial`, `conformal`")
}

/// The named points; none leaves the choice to the job.
fn points(names: Option<&Vec<String>>) -> PyResult<Option<Vec<Point>>> {
    let Some(names) = names else { return Ok(None) };
    let mut points = Vec::new();
    for name in names {
        if name == "all" {
            let widths = (1..=16).filter_map(|bits| BitWidth::new(bits).ok());
            points.extend(widths.map(|bits| Point::uniform(bits, bits)));
        } else {
            points.push(name.parse().map_err(plain)?);
        }
    }
    Ok(Some(points))
}

/// Runs the main job; all results are in the folder `out`. `origin` says where the trace comes from:
/// nothing, the path of one, or a function that is given the name of a [`Round`], the bytes of a
/// [`Tracer`](crate::trace::Tracer) and a folder for fragments.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs, options, and who is told")]
pub(crate) fn characterize(
    py: Python<'_>,
    model: PathBuf,
    x: &Bound<'_, PyAny>,
    y: Option<&Bound<'_, PyAny>>,
    calibration: Option<&Bound<'_, PyAny>>,
    out: PathBuf,
    options: &Bound<'_, PyAny>,
    origin: Option<&Bound<'_, PyAny>>,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let options: Options = options.extract().map_err(|error: PyErr| {
        let cause = error.cause(py).map(|cause| format!(": {}", cause.value(py)));
        plain(format!("{}{}", error.value(py), cause.unwrap_or_default()))
    })?;
    let done = origin.and_then(|origin| origin.extract::<PathBuf>().ok());
    let elsewhere = origin.filter(|_| done.is_none()).map(|origin| origin.clone().unbind());
    let job = Job {
        model,
        data: arrays::source("x", x, y)?,
        calibration: calibration.map(|x| arrays::source("calibration", x, None)).transpose()?,
        preprocess: Preprocess { scale: options.scale, mean: options.mean, std: options.std },
        mirror: options.mirror,
        accelerator: options.accelerator,
        points: points(options.points.as_ref())?,
        budget: options.budget,
        methods: Methods::best(),
        storage: named::<Storage>("storage", &options.storage, "`independent`, `nested`")?,
        constraint: Constraint {
            max_accuracy_drop: options.max_drop,
            no_worse_than_static: options.no_worse_than_static,
            max_energy_uj: options.max_energy,
            guarantee: options.guarantee,
            confidence: options.confidence,
            test: test(&options.test)?,
        },
        rules: Rules {
            stages: options.stages,
            margin_only: options.margin_only,
            sums: options.sums,
            max_escalation: options.max_escalation,
            max_worst_uj: options.max_worst_energy.unwrap_or(f64::INFINITY),
            max_worst_us: options.max_latency.unwrap_or(f64::INFINITY),
            max_class_drop: options.max_class_drop,
        },
        shares: Shares {
            calibration: options.calibration_samples,
            search: options.search_share,
            certification: options.certification_share,
        },
        more_targets: options.also_max_drop,
        class_mix: options.class_mix,
        seed: options.seed,
        out,
    };
    work::run(py, options.threads, report, |watch| {
        let trace = |round: Round, plan: Vec<u8>, folder: &Path| {
            let (elsewhere, folder) = (elsewhere.as_ref(), folder.to_owned());
            let call = elsewhere.map(|call| Python::attach(|py| call.clone_ref(py)));
            watch.call(move |py| {
                let plan = PyBytes::new(py, &plan);
                call.map_or(Ok(()), |call| call.call1(py, (round.name(), plan, folder)).map(drop))
            })
        };
        let origin = match (&done, &elsewhere) {
            (Some(path), _) => Origin::Done(path),
            (None, Some(_)) => Origin::Elsewhere(&trace),
            (None, None) => Origin::Here,
        };
        characterize_from(&job, origin, watch).map(drop)
    })
}

/// What a bundle's policy loses against its float model on samples that chose nothing, as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of the public function")]
pub(crate) fn certify(
    py: Python<'_>,
    bundle: PathBuf,
    model: PathBuf,
    x: &Bound<'_, PyAny>,
    y: Option<&Bound<'_, PyAny>>,
    guarantee: Option<f64>,
    confidence: f64,
    test: &str,
    threads: Option<usize>,
) -> PyResult<String> {
    for (name, value) in [("guarantee", guarantee), ("confidence", Some(confidence))] {
        if let Some(value) = value.filter(|value| !(*value > 0.0 && *value < 1.0)) {
            return Err(plain(format!("`{name}` must be a fraction between 0 and 1, got {value}")));
        }
    }
    let demand = Demand {
        target: 1.0.into(),
        max_energy_uj: None,
        guarantee,
        confidence,
        test: self::test(test)?,
    };
    let source = arrays::source("x", x, y)?;
    let found = work::run(py, threads, None, |watch| {
        let bundle = Bundle::read(&bundle)?;
        let data = Dataset::read(&source)?;
        if data.sha256() == bundle.splits.data_sha256 {
            return Err(CharacterizeError::Job(
                "these samples chose the policy, and prove nothing about what it loses on others"
                    .to_owned(),
            ));
        }
        let all: Vec<usize> = (0..data.len()).collect();
        recheck(&bundle, &model, &data, &all, &demand, watch)
    })?;
    serde_json::to_string(&found).map_err(plain)
}

/// A policy chosen for each profile from the trace of a finished run: pairs of id and summary, as JSON;
/// of a profile that can't price the points, `{"error": …}`.
#[pyfunction]
pub(crate) fn compare(
    py: Python<'_>,
    run: PathBuf,
    model: PathBuf,
    profiles: Vec<String>,
    threads: Option<usize>,
) -> PyResult<Vec<(String, String)>> {
    let found: Vec<AcceleratorProfile> = profiles
        .iter()
        .map(|id| AcceleratorProfile::find(id).map_err(plain))
        .collect::<PyResult<_>>()?;
    let summaries = work::run(py, threads, None, |_| library::compare(&run, &model, &found))?;
    let text = |summary: Result<_, _>| match summary {
        Ok(summary) => serde_json::to_string(&summary).map_err(plain),
        Err(error) => {
            let error: bitgear::energy::EnergyError = error;
            Ok(serde_json::json!({ "error": error.to_string() }).to_string())
        }
    };
    let ids = found.iter().map(|profile| profile.accelerator.id.clone());
    ids.zip(summaries).map(|(id, summary)| Ok((id, text(summary)?))).collect()
}

/// Times the model on this CPU at every width and writes it down as a profile's text.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of the public function")]
pub(crate) fn measure(
    py: Python<'_>,
    model: PathBuf,
    x: &Bound<'_, PyAny>,
    rounds: usize,
    scale: f32,
    mean: Vec<f32>,
    std: Vec<f32>,
    device: &str,
    threads: usize,
) -> PyResult<String> {
    if rounds == 0 {
        return Err(plain("rounds must be at least 1, got 0"));
    }
    let source = arrays::source("x", x, None)?;
    let preprocess = Preprocess { scale, mean, std };
    let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    work::run(py, Some(threads), None, |watch| {
        use bitgear::characterize::Progress as _;
        let graph = onnx::import_file(&model).map_err(|error| match error {
            ImportError::Read { path, reason } => CharacterizeError::Read(path, reason.to_string()),
            error => CharacterizeError::Import(model.display().to_string(), error),
        })?;
        let data = Dataset::read(&source)?;
        data.check(graph.shape(graph.input), &preprocess)?;
        let all: Vec<usize> = (0..data.len()).collect();
        let ranges = calibrate(&graph, all.len(), |span| {
            if watch.cancelled() {
                return Err(CharacterizeError::Cancelled);
            }
            Ok(data.batch(&all[span], &preprocess))
        })?;
        let batch = data.batch(&all, &preprocess);
        library::measure(&graph, &ranges, &batch, rounds, [device, &name])
            .map_err(|error| CharacterizeError::Quantize(name.clone(), error))
    })
}

/// Id, name, evidence and text of each profile that ships.
#[pyfunction]
pub(crate) fn profiles() -> PyResult<Vec<(String, String, String, String)>> {
    let one = |&(id, text): &(&str, &str)| {
        let profile = AcceleratorProfile::find(id).map_err(plain)?.accelerator;
        Ok((id.to_owned(), profile.name, profile.evidence.name().to_owned(), text.to_owned()))
    };
    SHIPPED.iter().map(one).collect()
}
