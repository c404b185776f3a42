//! Tracing on other machines: all networks of a run in one file, and what a machine makes of it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use bitgear_core::kernels::Kernels;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use super::recheck::float_answers;
use super::tracing::{BATCH, Tracing, answer_float, answer_integer, metadata};
use super::{CharacterizeError, Job, Progress};
use crate::bundle::weights;
use crate::data::{Dataset, Preprocess, mirror};
use crate::energy::Storage;
use crate::execute::{Engine, IntegerModel};
use crate::graph::Graph;
use crate::onnx;
use crate::policy::Provenance;
use crate::quantize::Point;
use crate::tensor::Tensor;
use crate::trace::{Answers, Block, FLOAT, Split, Splits, Trace, View, read, to_bytes};

const METADATA: &str = "bitgear.tracer";
const MODEL: &str = "model.onnx";

/// Where the answers of all samples come from.
pub enum Origin<'a> {
    /// Every sample runs here, batch by batch, into the job's folder.
    Here,
    /// Every sample has run: a trace, or a folder of fragments.
    Done(&'a Path),
    /// Other machines run them: for each [`Round`] the function is given the bytes of a [`Tracer`] and writes
    /// the fragments of all samples into a folder.
    Elsewhere(&'a TraceElsewhere<'a>),
}

/// Why samples run on other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// The float network answers samples that have no labels.
    Labels,
    /// Every network answers every evaluated sample. These fragments are a trace for [`Origin::Done`].
    Trace,
    /// Networks that share one copy of the weights answer, once their points are chosen.
    Nested,
}

/// See [`Origin::Elsewhere`].
pub type TraceElsewhere<'a> = dyn Fn(Round, Vec<u8>, &Path) -> Result<(), CharacterizeError> + 'a;

impl Round {
    /// The round's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Trace => "trace",
            Self::Nested => "nested",
        }
    }
}

impl Origin<'_> {
    /// Whether a job can get its trace this way.
    pub(super) fn check(
        &self,
        job: &Job,
        data: &Dataset,
        calibration: &Dataset,
    ) -> Result<(), CharacterizeError> {
        let again = job.storage == Storage::Nested || data.labels().is_none();
        let problem = match self {
            _ if !calibration.is_here() => {
                "samples on other machines need calibration samples that are here"
            }
            Self::Here if !data.is_here() => "the samples are on other machines",
            Self::Done(_) if !data.is_here() && again => {
                "storage `nested` and samples without labels need more than a trace, and the samples are on other machines"
            }
            _ => return Ok(()),
        };
        Err(CharacterizeError::Job(problem.to_owned()))
    }

    /// What the float network answers to all samples, in the place of labels.
    pub(super) fn labels(
        &self,
        job: &Job,
        graph: &Graph,
        model: &[u8],
        data: &Dataset,
        provenance: &Provenance,
        progress: &dyn Progress,
    ) -> Result<Vec<u32>, CharacterizeError> {
        let all: Vec<usize> = (0..data.len()).collect();
        let Self::Elsewhere(elsewhere) = self else {
            progress.begin("label", 0);
            return Ok(float_answers(graph, data, &job.preprocess, &all));
        };
        let plan = Plan {
            schema_version: 1,
            fingerprint: Round::Labels.name().to_owned(),
            provenance: provenance.clone(),
            preprocess: job.preprocess.clone(),
            splits: Splits {
                schema_version: 1,
                data_sha256: provenance.data_sha256.clone(),
                calibration_sha256: provenance.calibration_sha256.clone(),
                seed: job.seed,
                calibration: Vec::new(),
                search: Vec::new(),
                certification: Vec::new(),
                test: all.clone(),
                class_mix: None,
            },
            // Of the scores only the highest matters.
            float_scale: 1.0,
            names: vec![(FLOAT.to_owned(), vec![View::AsIs])],
            models: Vec::new(),
        };
        let plan = plan.to_bytes(model);
        gather(elsewhere, Round::Labels, plan, &job.out, progress, |folder| {
            let mut found = read(folder)?;
            same_samples(folder, &found.samples, &all)?;
            Ok(found.blocks.swap_remove(0).answers.predicted)
        })
    }

    /// The trace of the float network and of all points; `model` is the model's file.
    pub(super) fn trace(
        &self,
        tracing: &Tracing<'_>,
        points: &[Point],
        model: &[u8],
        progress: &dyn Progress,
    ) -> Result<Trace, CharacterizeError> {
        let elsewhere = match self {
            Self::Here => {
                return tracing.run(points, progress).map_err(|failure| tracing.failed(failure));
            }
            Self::Done(path) => return tracing.adopt(path, points),
            Self::Elsewhere(elsewhere) => elsewhere,
        };
        let plan = tracing.plan(points, model, progress);
        let plan = plan.map_err(|failure| tracing.failed(failure))?;
        gather(elsewhere, Round::Trace, plan, &tracing.job.out, progress, |folder| {
            tracing.adopt(folder, points)
        })
    }

    /// Adds to the trace what every sample does in networks that share their weights.
    pub(super) fn nested(
        &self,
        tracing: &Tracing<'_>,
        trace: &mut Trace,
        networks: &[IntegerModel],
        model: &[u8],
        progress: &dyn Progress,
    ) -> Result<(), CharacterizeError> {
        let Self::Elsewhere(elsewhere) = self else {
            let traced = tracing.nested(trace, networks, progress);
            return traced.map_err(|failure| tracing.failed(failure));
        };
        let plan = tracing.plan_of(networks.to_vec()).to_bytes(model);
        let out = &tracing.job.out;
        let found = gather(elsewhere, Round::Nested, plan, out, progress, |folder| {
            let found = read(folder)?;
            same_samples(folder, &found.samples, &trace.samples)?;
            Ok(found)
        })?;
        trace.blocks.extend(found.blocks.into_iter().filter(|block| block.point != FLOAT));
        Ok(tracing.write(trace)?)
    }
}

/// Has other machines trace by a plan, and gives what `read` makes of their fragments.
fn gather<T>(
    elsewhere: &TraceElsewhere<'_>,
    round: Round,
    plan: Vec<u8>,
    out: &Path,
    progress: &dyn Progress,
    read: impl FnOnce(&Path) -> Result<T, CharacterizeError>,
) -> Result<T, CharacterizeError> {
    let folder = out.join("fragments");
    let failed = |e| CharacterizeError::Write(folder.display().to_string(), e);
    // Those of a run that was ended may be of other shards.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed)?;
    }
    fs::create_dir_all(&folder).map_err(failed)?;
    progress.begin(&format!("{} elsewhere", round.name()), 0);
    elsewhere(round, plan, &folder)?;
    let found = read(&folder)?;
    fs::remove_dir_all(&folder).map_err(failed)?;
    Ok(found)
}

/// Whether a trace is that of the expected samples, both ascending.
pub(super) fn same_samples(
    path: &Path,
    found: &[usize],
    expected: &[usize],
) -> Result<(), CharacterizeError> {
    if found == expected {
        return Ok(());
    }
    let missing = expected.iter().find(|sample| found.binary_search(sample).is_err());
    Err(CharacterizeError::Job(format!(
        "trace `{}`: expected {} samples, got {}{}",
        path.display(),
        expected.len(),
        found.len(),
        missing.map(|sample| format!("; sample {sample} is missing")).unwrap_or_default()
    )))
}

/// All that it takes to trace samples of a run, but for the samples.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    pub(super) schema_version: u32,
    pub(super) fingerprint: String,
    pub(super) provenance: Provenance,
    pub(super) preprocess: Preprocess,
    pub(super) splits: Splits,
    /// Worth of a unit of the float network's scores.
    pub(super) float_scale: f64,
    /// The float network comes first, then the models; each with its views, of which the float network may
    /// have none where samples have labels.
    pub(super) names: Vec<(String, Vec<View>)>,
    pub(super) models: Vec<IntegerModel>,
}

impl Plan {
    /// The file, with the model's own.
    pub(super) fn to_bytes(&self, model: &[u8]) -> Vec<u8> {
        let packed = weights::pack(&self.models, Storage::Independent);
        let packed = packed.expect("independent weights need not agree");
        let named = packed.iter().map(|(name, bytes)| (name.as_str(), &bytes[..]));
        let views = named.chain([(MODEL, model)]).map(|(name, bytes)| {
            let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes);
            (name, view.expect("one byte a value"))
        });
        let text = serde_json::to_string(self).expect("a plan has no maps");
        let metadata = HashMap::from([(METADATA.to_owned(), text)]);
        serialize(views, Some(metadata)).expect("names are unique and sizes fit")
    }
}

/// The networks of a run, ready to trace any of its samples on any machine.
pub struct Tracer {
    plan: Plan,
    graph: Graph,
    engines: Vec<Engine<'static>>,
    splits: HashMap<usize, Split>,
}

impl Tracer {
    /// Reads what [`Origin::Elsewhere`] gives and packs the networks for this CPU.
    ///
    /// # Errors
    ///
    /// When the bytes are no tracer of this version of bitgear, or contradict themselves.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CharacterizeError> {
        Self::read(bytes).map_err(|reason| {
            CharacterizeError::Job(format!("these bytes are no tracer: {reason}"))
        })
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().as_ref().and_then(|m| m.get(METADATA));
        let text = metadata.ok_or_else(|| format!("metadata `{METADATA}` is missing"))?;
        let mut plan: Plan = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let (found, own) = (&plan.provenance.tool_version, env!("CARGO_PKG_VERSION"));
        if plan.schema_version != 1 || found != own {
            return Err(format!("expected bitgear {own}, got {found}"));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        weights::unpack(&mut plan.models, Storage::Independent, &tensors)?;
        let model = tensors.tensor(MODEL).map_err(|e| e.to_string())?;
        let graph = onnx::import(model.data()).map_err(|e| e.to_string())?;
        let shape = graph.shape(graph.input);
        plan.preprocess.check(shape).map_err(|e| e.to_string())?;
        let engines = std::mem::take(&mut plan.models).into_iter().map(|model| {
            model.validate().map_err(|e| e.to_string())?;
            if model.input_shape != shape || model.classes() != graph.classes() {
                return Err("networks differ in input or classes".to_owned());
            }
            Ok(Engine::keeping(std::borrow::Cow::Owned(model), Kernels::detect(), &[]))
        });
        let engines: Vec<Engine<'static>> = engines.collect::<Result<_, String>>()?;
        if plan.names.len() != engines.len() + 1 || !plan.float_scale.is_normal() {
            return Err("names and networks differ".to_owned());
        }
        let splits = [Split::Search, Split::Certification, Split::Test]
            .into_iter()
            .flat_map(|split| plan.splits.of(split).iter().map(move |&sample| (sample, split)))
            .collect();
        Ok(Self { plan, graph, engines, splits })
    }

    /// The fragment of a trace, as the bytes of a Parquet file, of the samples in `shard`, whose indices in
    /// the whole data are `samples`; nothing where none of them is to be traced. Without labels the float
    /// network's answers are the labels.
    ///
    /// # Errors
    ///
    /// When the shard does not fit the run, or work is cancelled.
    pub fn trace(
        &self,
        shard: &Dataset,
        samples: &[usize],
        progress: &dyn Progress,
    ) -> Result<Option<Vec<u8>>, CharacterizeError> {
        shard.check(self.graph.shape(self.graph.input), &self.plan.preprocess)?;
        let labels = shard.labels().map(|_| shard.labels_of(self.graph.classes())).transpose()?;
        if samples.len() != shard.len() {
            return Err(CharacterizeError::Job(format!(
                "expected {} indices of samples, one per sample, got {}",
                shard.len(),
                samples.len()
            )));
        }
        let mut rows: Vec<(usize, usize)> = samples.iter().copied().zip(0..).collect();
        rows.retain(|(sample, _)| self.splits.contains_key(sample));
        rows.sort_unstable();
        if rows.is_empty() {
            return Ok(None);
        }
        let mut blocks = Vec::new();
        for (index, (name, views)) in self.plan.names.iter().enumerate() {
            let engine = index.checked_sub(1).map(|index| &self.engines[index]);
            for &view in views {
                let mut answers = Answers::default();
                for rows in rows.chunks(BATCH) {
                    if progress.cancelled() {
                        return Err(CharacterizeError::Cancelled);
                    }
                    let rows: Vec<usize> = rows.iter().map(|row| row.1).collect();
                    answers.append(self.answers(engine, shard, &rows, view));
                }
                let score_scale =
                    engine.map_or(self.plan.float_scale, |engine| engine.model().score_scale());
                blocks.push(Block { point: name.clone(), view, score_scale, answers });
            }
        }
        let labels = match (labels, blocks.first()) {
            (Some(labels), _) => rows.iter().map(|row| labels[row.1]).collect(),
            (None, Some(float)) if float.point == FLOAT => float.answers.predicted.clone(),
            _ => shard.labels_of(self.graph.classes())?.to_vec(),
        };
        let trace = Trace {
            classes: self.graph.classes(),
            class_mix: self.plan.splits.class_mix.clone(),
            samples: rows.iter().map(|row| row.0).collect(),
            splits: rows.iter().map(|row| self.splits[&row.0]).collect(),
            labels,
            blocks,
        };
        Ok(Some(to_bytes(&trace, &metadata(&self.plan.fingerprint, &self.plan.provenance))?))
    }

    /// What one network, the float one where there is no engine, answers to rows of the shard.
    fn answers(
        &self,
        engine: Option<&Engine<'_>>,
        shard: &Dataset,
        rows: &[usize],
        view: View,
    ) -> Answers {
        let batch = |rows: &[usize]| shown(shard, rows, &self.plan.preprocess, view);
        match engine {
            Some(engine) => answer_integer(engine, &batch(rows)),
            None => answer_float(&self.graph, self.plan.float_scale, rows, batch),
        }
    }
}

/// Preprocessed samples, as the view shows them.
pub(super) fn shown(data: &Dataset, rows: &[usize], preprocess: &Preprocess, view: View) -> Tensor {
    let mut batch = data.batch(rows, preprocess);
    if view == View::Mirror {
        mirror(&mut batch);
    }
    batch
}
