//! Runs every sample at every point, batch by batch, and keeps what was done.

use std::path::Path;
use std::sync::Mutex;

use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use rayon::prelude::*;

use super::elsewhere::{Plan, same_samples, shown};
use super::recheck::highest;
use super::{CharacterizeError, Job, PLAIN, Progress};
use crate::data::Dataset;
use crate::execute::{Engine, IntegerModel};
use crate::float;
use crate::graph::Graph;
use crate::hash::sha256;
use crate::policy::Provenance;
use crate::quantize::{Point, Quantizer, UnsupportedOperators};
use crate::tensor::Tensor;
use crate::trace::{self, Answers, Block, FLOAT, Parts, Split, Splits, Trace, TraceError, View};

/// Samples of one batch, which is the most that a killed run loses.
pub(super) const BATCH: usize = 500;
/// Samples that the float network runs together.
const FLOAT_BATCH: usize = 8;
/// The largest calibrated score takes so many bits in the float block.
const FLOAT_SCORE_BITS: u32 = 24;
const FILE: &str = "trace.parquet";
const PARTS: &str = "trace-parts";
const FINGERPRINT: &str = "bitgear.fingerprint";
const VIEWS: [View; 2] = [View::AsIs, View::Mirror];

pub(super) struct Tracing<'a> {
    pub(super) job: &'a Job,
    pub(super) graph: &'a Graph,
    pub(super) quantizer: &'a Quantizer<'a>,
    pub(super) data: &'a Dataset,
    pub(super) labels: &'a [u32],
    pub(super) splits: &'a Splits,
    pub(super) provenance: &'a Provenance,
    /// The networks of points, but plain ones, that were made so far: those of the policy are needed again.
    pub(super) made: Mutex<Vec<IntegerModel>>,
}

pub(super) enum Failure {
    Trace(TraceError),
    Quantize(UnsupportedOperators),
    Cancelled,
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Self {
        Self::Trace(error)
    }
}

impl Tracing<'_> {
    /// The failure, naming the model.
    pub(super) fn failed(&self, failure: Failure) -> CharacterizeError {
        match failure {
            Failure::Trace(error) => CharacterizeError::Trace(error),
            Failure::Quantize(error) => {
                CharacterizeError::Quantize(self.job.model.display().to_string(), error)
            }
            Failure::Cancelled => CharacterizeError::Cancelled,
        }
    }

    /// The trace of the float network and of all points, from what an earlier run left and what is
    /// still missing.
    pub(super) fn run(&self, points: &[Point], progress: &dyn Progress) -> Result<Trace, Failure> {
        let path = self.job.out.join(FILE);
        let fingerprint = self.fingerprint();
        let earlier = trace::provenance(&path, FINGERPRINT)
            .filter(|found| *found == fingerprint)
            .and_then(|_| trace::read(&path).ok());
        let parts = Parts::open(&self.job.out.join(PARTS), fingerprint)?;
        let mut trace = self.empty();
        let earlier = |point: &str, view: View| {
            let block = earlier.as_ref()?.block(point, view)?;
            (block.answers.len() == trace.samples.len()).then(|| block.clone())
        };
        let mut blocks = Vec::new();
        for &view in self.views() {
            blocks.push(match earlier(FLOAT, view) {
                Some(block) => block,
                None => self.float(view, &trace, &parts, progress)?,
            });
        }
        for (point, name, views) in self.networks(points) {
            let mut model = None;
            for &view in views {
                if let Some(block) = earlier(&name, view) {
                    blocks.push(block);
                    continue;
                }
                let model = match &mut model {
                    Some(model) => &*model,
                    none => none.insert(self.quantized(point, &name, progress)?),
                };
                blocks.push(self.block(model, &name, &name, view, &trace, &parts, progress)?);
            }
        }
        trace.blocks = blocks;
        self.write(&trace)?;
        Ok(trace)
    }

    /// The views of every network but plain ones.
    fn views(&self) -> &'static [View] {
        if self.job.mirror { &VIEWS } else { &VIEWS[..1] }
    }

    /// Name and views of all integer networks.
    fn networks<'p>(
        &self,
        points: &'p [Point],
    ) -> impl Iterator<Item = (&'p Point, String, &'static [View])> {
        let views = self.views();
        points.iter().flat_map(move |point| {
            let plain = point.is_uniform().then(|| (point, format!("{point}{PLAIN}"), &VIEWS[..1]));
            std::iter::once((point, point.to_string(), views)).chain(plain)
        })
    }

    /// What other machines need to trace the samples, as [`super::Tracer`] reads it.
    pub(super) fn plan(
        &self,
        points: &[Point],
        model: &[u8],
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, Failure> {
        let mut plan = self.plan_of(Vec::new());
        plan.names[0].1 = self.views().to_vec();
        for (point, name, views) in self.networks(points) {
            plan.models.push(self.quantize(point, &name, progress)?);
            plan.names.push((name, views.to_vec()));
        }
        Ok(plan.to_bytes(model))
    }

    /// A plan for some networks alone, shown the input as it is. The float network runs only if samples need
    /// labels.
    pub(super) fn plan_of(&self, models: Vec<IntegerModel>) -> Plan {
        let labelled = self.data.labels().is_some();
        let float = if labelled { Vec::new() } else { vec![View::AsIs] };
        let named = models.iter().map(|model| (model.point.clone(), vec![View::AsIs]));
        Plan {
            schema_version: 1,
            fingerprint: self.fingerprint(),
            provenance: self.provenance.clone(),
            preprocess: self.job.preprocess.clone(),
            splits: self.splits.clone(),
            float_scale: self.float_scale(),
            names: std::iter::once((FLOAT.to_owned(), float)).chain(named).collect(),
            models,
        }
    }

    /// The trace at `path`, a file or fragments, once it is known to be that of this run at these points.
    pub(super) fn adopt(&self, path: &Path, points: &[Point]) -> Result<Trace, CharacterizeError> {
        let fail = |reason: String| {
            CharacterizeError::Job(format!("trace `{}`: {reason}", path.display()))
        };
        let mut found = trace::read(path)?;
        if trace::provenance(path, FINGERPRINT) != Some(self.fingerprint()) {
            return Err(fail(
                "it is of another run: model, data, calibration, preprocessing, splits and seed must be the same"
                    .to_owned(),
            ));
        }
        let expected = self.empty();
        same_samples(path, &found.samples, &expected.samples)?;
        if (&found.splits, &found.labels) != (&expected.splits, &expected.labels) {
            return Err(fail("its labels or splits are not those of the data".to_owned()));
        }
        let float = self.views().iter().map(|&view| (FLOAT.to_owned(), view));
        let networks = self
            .networks(points)
            .flat_map(|(_, name, views)| views.iter().map(move |&view| (name.clone(), view)));
        let mut blocks = Vec::new();
        for (name, view) in float.chain(networks) {
            let place = found.blocks.iter().position(|b| b.point == name && b.view == view);
            let place = place.ok_or_else(|| {
                fail(format!("point `{name}` was not traced in view `{}`", view.name()))
            })?;
            blocks.push(found.blocks.swap_remove(place));
        }
        (found.blocks, found.class_mix) = (blocks, expected.class_mix);
        self.write(&found)?;
        Ok(found)
    }

    pub(super) fn write(&self, trace: &Trace) -> Result<(), TraceError> {
        let metadata = metadata(&self.fingerprint(), self.provenance);
        trace::write(trace, &self.job.out.join(FILE), &metadata)
    }

    /// Adds what every sample does at points that share their weights.
    pub(super) fn nested(
        &self,
        trace: &mut Trace,
        models: &[IntegerModel],
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let parts = Parts::open(&self.job.out.join(PARTS), self.fingerprint())?;
        let chain: Vec<&str> = models.iter().map(|model| model.point.as_str()).collect();
        let chain = chain.join("+");
        for model in models {
            // The same name means other weights in other company.
            let key = format!("{} of {chain}", model.point);
            let block =
                self.block(model, &model.point, &key, View::AsIs, trace, &parts, progress)?;
            trace.blocks.push(block);
        }
        Ok(self.write(trace)?)
    }

    /// Everything that a sample's answers depend on, but for the point.
    fn fingerprint(&self) -> String {
        // How much samples count changes nothing in what they answer.
        let splits = Splits { class_mix: None, ..self.splits.clone() };
        let facts = serde_json::json!([
            self.provenance.tool_version,
            self.provenance.model_sha256,
            splits,
            self.job.preprocess,
            format!("{:?}", self.quantizer.settings()),
        ]);
        sha256(facts.to_string().as_bytes())
    }

    /// The samples without any answers.
    fn empty(&self) -> Trace {
        let evaluated = [Split::Search, Split::Certification, Split::Test];
        let mut rows: Vec<(usize, Split)> = evaluated
            .iter()
            .flat_map(|&split| self.splits.of(split).iter().map(move |&sample| (sample, split)))
            .collect();
        rows.sort_unstable();
        Trace {
            classes: self.graph.classes(),
            class_mix: self.splits.class_mix.clone(),
            labels: rows.iter().map(|&(sample, _)| self.labels[sample]).collect(),
            splits: rows.iter().map(|&(_, split)| split).collect(),
            samples: rows.iter().map(|&(sample, _)| sample).collect(),
            blocks: Vec::new(),
        }
    }

    fn float(
        &self,
        view: View,
        trace: &Trace,
        parts: &Parts,
        progress: &dyn Progress,
    ) -> Result<Block, Failure> {
        let scale = self.float_scale();
        let answers = batches(FLOAT, view, trace, parts, progress, |samples| {
            answer_float(self.graph, scale, samples, |chunk| self.shown(chunk, view))
        })?;
        Ok(Block { point: FLOAT.to_owned(), view, score_scale: scale, answers })
    }

    /// Preprocessed samples, as the view shows them.
    fn shown(&self, samples: &[usize], view: View) -> Tensor {
        shown(self.data, samples, &self.job.preprocess, view)
    }

    /// Worth of a unit of the float network's scores.
    fn float_scale(&self) -> f64 {
        let range = self.quantizer.ranges().of(self.graph.output);
        let largest = f64::from(range.max.max(-range.min)).max(f64::MIN_POSITIVE);
        largest / f64::from(1 << FLOAT_SCORE_BITS)
    }

    /// The network of a point, by the name of one of [`Self::networks`]; made once, unless it is plain.
    pub(super) fn quantized(
        &self,
        point: &Point,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<IntegerModel, Failure> {
        let made = || self.made.lock().expect("nothing panics while it is held");
        if let Some(model) = made().iter().find(|model| model.point == name) {
            return Ok(model.clone());
        }
        let model = self.quantize(point, name, progress)?;
        if !name.ends_with(PLAIN) {
            made().push(model.clone());
        }
        Ok(model)
    }

    fn quantize(
        &self,
        point: &Point,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<IntegerModel, Failure> {
        if progress.cancelled() {
            return Err(Failure::Cancelled);
        }
        progress.begin(&format!("quantize {name}"), 0);
        let model = if name.ends_with(PLAIN) {
            self.quantizer.plain().quantize(point)
        } else {
            self.quantizer.quantize(point)
        };
        model.map_err(Failure::Quantize)
    }

    /// What every sample does in one network; batches are kept under `key`.
    #[expect(clippy::too_many_arguments, reason = "what is run, and where the answers go")]
    fn block(
        &self,
        model: &IntegerModel,
        name: &str,
        key: &str,
        view: View,
        trace: &Trace,
        parts: &Parts,
        progress: &dyn Progress,
    ) -> Result<Block, Failure> {
        let engine = Engine::new(model, Kernels::detect());
        let answers = batches(key, view, trace, parts, progress, |samples| {
            answer_integer(&engine, &self.shown(samples, view))
        })?;
        let score_scale = model.score_scale();
        Ok(Block { point: name.to_owned(), view, score_scale, answers })
    }
}

/// What goes into the metadata of a trace.
pub(super) fn metadata(fingerprint: &str, p: &Provenance) -> [(String, String); 6] {
    let entries = [
        (FINGERPRINT, fingerprint),
        ("bitgear.tool_version", &p.tool_version),
        ("bitgear.model_sha256", &p.model_sha256),
        ("bitgear.data_sha256", &p.data_sha256),
        ("bitgear.calibration_sha256", &p.calibration_sha256),
        ("bitgear.seed", &p.seed.to_string()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// What samples answer in the float network, scores in units of `scale`; `shown` gives the samples of
/// some rows.
pub(super) fn answer_float(
    graph: &Graph,
    scale: f64,
    rows: &[usize],
    shown: impl Fn(&[usize]) -> Tensor + Sync,
) -> Answers {
    let chunks: Vec<Vec<f32>> = rows
        .par_chunks(FLOAT_BATCH)
        .map(|chunk| float::run(graph, &shown(chunk)).into_values())
        .collect();
    let mut answers = Answers::default();
    for scores in chunks.iter().flat_map(|chunk| chunk.chunks_exact(graph.classes())) {
        let integers: Vec<i32> =
            scores.iter().map(|&s| (f64::from(s) / scale).round_ties_even() as i32).collect();
        answers.push(highest(scores), answer(&integers).margin, &integers);
    }
    answers
}

/// What a batch of samples answers in an integer network.
pub(super) fn answer_integer(engine: &Engine<'_>, batch: &Tensor) -> Answers {
    let mut answers = Answers::default();
    for scores in engine.scores(batch).chunks_exact(engine.model().classes()) {
        let answer = answer(scores);
        answers.push(answer.class as u32, answer.margin, scores);
    }
    answers
}

/// Runs the batches that no earlier run finished.
fn batches(
    point: &str,
    view: View,
    trace: &Trace,
    parts: &Parts,
    progress: &dyn Progress,
    run: impl Fn(&[usize]) -> Answers,
) -> Result<Answers, Failure> {
    let step = if view == View::AsIs { point.to_owned() } else { format!("{point} mirrored") };
    progress.begin(&step, trace.samples.len());
    let mut all = Answers::default();
    for (index, samples) in trace.samples.chunks(BATCH).enumerate() {
        if progress.cancelled() {
            return Err(Failure::Cancelled);
        }
        let first = index * BATCH;
        let stored = parts.load(point, view, first, samples.len(), trace.classes);
        let answers = if let Some(answers) = stored {
            answers
        } else {
            let answers = run(samples);
            parts.store(point, view, first, &answers)?;
            answers
        };
        all.append(answers);
        progress.advance(samples.len());
    }
    Ok(all)
}

/// Removes the batches of a finished run: the trace holds them all.
pub(super) fn clean_up(out: &Path) -> Result<(), TraceError> {
    Parts::open(&out.join(PARTS), String::new())?.remove()
}
