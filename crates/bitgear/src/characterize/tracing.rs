//! Runs every sample at every point, batch by batch, and keeps what was done.

use std::path::Path;

use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use rayon::prelude::*;

use super::recheck::highest;
use super::{Job, PLAIN, Progress};
use crate::data::{Dataset, mirror};
use crate::execute::{Engine, IntegerModel};
use crate::float;
use crate::graph::Graph;
use crate::hash::sha256;
use crate::policy::Provenance;
use crate::quantize::{Point, Quantizer, UnsupportedOperators};
use crate::tensor::Tensor;
use crate::trace::{self, Answers, Block, FLOAT, Parts, Split, Splits, Trace, TraceError, View};

/// Samples of one batch, which is the most that a killed run loses.
const BATCH: usize = 500;
/// Samples that the float network runs together.
const FLOAT_BATCH: usize = 8;
/// The largest calibrated score takes so many bits in the float block.
const FLOAT_SCORE_BITS: u32 = 24;
const FILE: &str = "trace.parquet";
const PARTS: &str = "trace-parts";
const FINGERPRINT: &str = "bitgear.fingerprint";

pub(super) struct Tracing<'a> {
    pub(super) job: &'a Job,
    pub(super) graph: &'a Graph,
    pub(super) quantizer: &'a Quantizer<'a>,
    pub(super) data: &'a Dataset,
    pub(super) labels: &'a [u32],
    pub(super) splits: &'a Splits,
    pub(super) provenance: &'a Provenance,
}

pub(super) enum Failure {
    Trace(TraceError),
    Quantize(UnsupportedOperators),
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Self {
        Self::Trace(error)
    }
}

impl Tracing<'_> {
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
        let both = [View::AsIs, View::Mirror];
        let views = if self.job.mirror { &both[..] } else { &both[..1] };
        let mut blocks = Vec::new();
        for &view in views {
            blocks.push(match earlier(FLOAT, view) {
                Some(block) => block,
                None => self.float(view, &trace, &parts, progress)?,
            });
        }
        for point in points {
            let plain = point.is_uniform().then(|| format!("{point}{PLAIN}"));
            for name in std::iter::once(point.to_string()).chain(plain) {
                let plain = name.ends_with(PLAIN);
                let mut model = None;
                for &view in if plain { &both[..1] } else { views } {
                    if let Some(block) = earlier(&name, view) {
                        blocks.push(block);
                        continue;
                    }
                    let model = match &mut model {
                        Some(model) => &*model,
                        none => none.insert(self.quantized(point, &name, progress)?),
                    };
                    let block = self.block(model, &name, &name, view, &trace, &parts, progress)?;
                    blocks.push(block);
                }
            }
        }
        trace.blocks = blocks;
        self.write(&trace)?;
        Ok(trace)
    }

    fn write(&self, trace: &Trace) -> Result<(), TraceError> {
        let p = self.provenance;
        let metadata = [
            (FINGERPRINT, self.fingerprint()),
            ("bitgear.tool_version", p.tool_version.clone()),
            ("bitgear.model_sha256", p.model_sha256.clone()),
            ("bitgear.data_sha256", p.data_sha256.clone()),
            ("bitgear.calibration_sha256", p.calibration_sha256.clone()),
            ("bitgear.seed", p.seed.to_string()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
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
        let facts = serde_json::json!([
            self.provenance.tool_version,
            self.provenance.model_sha256,
            self.splits,
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
            labels: rows.iter().map(|&(sample, _)| self.labels[sample]).collect(),
            splits: rows.iter().map(|&(_, split)| split).collect(),
            samples: rows.iter().map(|&(sample, _)| sample).collect(),
            blocks: Vec::new(),
        }
    }

    /// Preprocessed samples, as the view shows them.
    fn batch(&self, samples: &[usize], view: View) -> Tensor {
        let mut batch = self.data.batch(samples, &self.job.preprocess);
        if view == View::Mirror {
            mirror(&mut batch);
        }
        batch
    }

    fn float(
        &self,
        view: View,
        trace: &Trace,
        parts: &Parts,
        progress: &dyn Progress,
    ) -> Result<Block, Failure> {
        let range = self.quantizer.ranges().of(self.graph.output);
        let largest = f64::from(range.max.max(-range.min)).max(f64::MIN_POSITIVE);
        let scale = largest / f64::from(1 << FLOAT_SCORE_BITS);
        let answers = batches(FLOAT, view, trace, parts, progress, |samples| {
            let chunks: Vec<Vec<f32>> = samples
                .par_chunks(FLOAT_BATCH)
                .map(|chunk| float::run(self.graph, &self.batch(chunk, view)).into_values())
                .collect();
            let mut answers = Answers::default();
            for scores in chunks.iter().flat_map(|c| c.chunks_exact(trace.classes)) {
                let integers: Vec<i32> = scores
                    .iter()
                    .map(|&s| (f64::from(s) / scale).round_ties_even() as i32)
                    .collect();
                answers.push(highest(scores), answer(&integers).margin, &integers);
            }
            answers
        })?;
        Ok(Block { point: FLOAT.to_owned(), view, score_scale: scale, answers })
    }

    fn quantized(
        &self,
        point: &Point,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<IntegerModel, Failure> {
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
            let mut answers = Answers::default();
            let scores = engine.scores(&self.batch(samples, view));
            for scores in scores.chunks_exact(trace.classes) {
                let answer = answer(scores);
                answers.push(answer.class as u32, answer.margin, scores);
            }
            answers
        })?;
        let score_scale = model.score_scale();
        Ok(Block { point: name.to_owned(), view, score_scale, answers })
    }
}

/// Runs the batches that no earlier run finished.
fn batches(
    point: &str,
    view: View,
    trace: &Trace,
    parts: &Parts,
    progress: &dyn Progress,
    run: impl Fn(&[usize]) -> Answers,
) -> Result<Answers, TraceError> {
    let step = if view == View::AsIs { point.to_owned() } else { format!("{point} mirrored") };
    progress.begin(&step, trace.samples.len());
    let mut all = Answers::default();
    for (index, samples) in trace.samples.chunks(BATCH).enumerate() {
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
