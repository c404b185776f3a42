//! A certificate checked again, on new data.

use std::path::Path;

use bitgear_core::kernels::Kernels;
use rayon::prelude::*;
use serde::Serialize;

use super::{CharacterizeError, Progress};
use crate::bundle::Bundle;
use crate::certify::{Demand, Flips, as_given};
use crate::data::{DataError, Dataset, Preprocess};
use crate::float;
use crate::graph::Graph;
use crate::hash::sha256;
use crate::onnx;
use crate::trace::Split;

/// Samples that the float network runs together.
const FLOAT_BATCH: usize = 8;
/// Samples that run before progress is told.
const BATCH: usize = 256;

/// What a policy and its reference did on new data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recheck {
    /// Whether the data has labels; without, the reference's answers count as right.
    pub labelled: bool,
    /// How policy and reference differ.
    pub flips: Flips,
    /// Accuracy of the reference minus accuracy of the policy.
    pub accuracy_drop: f64,
    /// The drop is at most this, with confidence.
    pub drop_upper_bound: f64,
    /// The drop that is to be kept; null where none was given and the policy has no certificate, or one from just
    /// these samples.
    pub guarantee: Option<f64>,
    /// Whether this data proves it too.
    pub proved: Option<bool>,
    /// Where it does not: about how many samples like these would.
    pub samples_needed: Option<u64>,
}

/// Runs the policy and its reference, the float model, on the samples at `indices`. Where the policy was
/// made for a class mix, the most of them that are mixed so count.
///
/// # Errors
///
/// When the model is not the policy's, or the data does not fit it or lacks a class of its class mix.
pub fn recheck(
    bundle: &Bundle,
    model: &Path,
    data: &Dataset,
    indices: &[usize],
    demand: &Demand,
    progress: &dyn Progress,
) -> Result<Recheck, CharacterizeError> {
    let name = model.display().to_string();
    let imported = |e| CharacterizeError::import(model, e);
    let bytes = onnx::read_file(model).map_err(imported)?;
    let expected = &bundle.policy.provenance.model_sha256;
    let got = sha256(&bytes);
    if got != *expected {
        return Err(CharacterizeError::Job(format!(
            "`{name}` is not the policy's model: expected SHA-256 {expected}, got {got}"
        )));
    }
    let graph = onnx::import(&bytes).map_err(imported)?;
    data.check(bundle.input_shape(), &bundle.preprocess)?;
    let labels = data.labels().is_some().then(|| data.labels_of(bundle.classes)).transpose()?;
    let runner = bundle.runner(Kernels::detect());
    // Of each sample: its label, and whether the reference and the policy are right.
    let mut answers = Vec::with_capacity(indices.len());
    progress.begin("certify", indices.len());
    for chunk in indices.chunks(BATCH) {
        let reference = float_answers(&graph, data, &bundle.preprocess, chunk);
        let decisions = runner.decide(&data.batch(chunk, &bundle.preprocess));
        for ((&index, reference), decision) in chunk.iter().zip(reference).zip(decisions) {
            let label = labels.map_or(reference, |labels| labels[index]);
            let [kept, right] = [reference, decision.answer.class as u32].map(|c| c == label);
            answers.push((label, kept, right));
        }
        progress.advance(chunk.len());
    }
    let mut counted: Vec<usize> = (0..answers.len()).collect();
    if let Some(mix) = &bundle.splits.class_mix {
        let label = |sample: usize| answers[sample].0;
        if let Some(class) = mix.missing(answers.iter().map(|answer| answer.0)) {
            return Err(DataError::no_samples_of(data, class).into());
        }
        counted = mix.draw(&counted, label, bundle.splits.seed);
    }
    let mut flips = Flips::default();
    for (_, kept, right) in counted.into_iter().map(|sample| answers[sample]) {
        flips.samples += 1;
        flips.harmful += u64::from(kept && !right);
        flips.helpful += u64::from(right && !kept);
    }
    let level = 1.0 - demand.confidence;
    // A bound says nothing about the samples that it came from.
    let is_own = |split| {
        let splits = &bundle.splits;
        data.sha256() == splits.data_sha256 && splits.of(split) == indices
    };
    let certificate = bundle.policy.certificate.as_ref();
    let new = certificate.filter(|proof| !Split::from_name(&proof.split).is_some_and(is_own));
    let guarantee = demand.guarantee.or(new.map(|proof| proof.bound));
    let proves = |drop| demand.test.p_value(flips, drop, level) <= level;
    let proved = guarantee.map(proves);
    let missing = guarantee.filter(|_| proved == Some(false));
    Ok(Recheck {
        labelled: labels.is_some(),
        flips,
        accuracy_drop: flips.drop(),
        drop_upper_bound: demand.test.upper_bound(flips, level),
        guarantee,
        proved,
        samples_needed: missing
            .and_then(|drop| demand.test.samples_needed(flips, drop, level))
            .map(|samples| as_given(samples, flips.samples as usize, indices.len())),
    })
}

/// The class that the float network predicts for each of some samples.
pub(super) fn float_answers(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    samples: &[usize],
) -> Vec<u32> {
    let chunks = samples.par_chunks(FLOAT_BATCH).map(|chunk| {
        let scores = float::run(graph, &data.batch(chunk, preprocess)).into_values();
        scores.chunks_exact(graph.classes()).map(highest).collect::<Vec<u32>>()
    });
    chunks.collect::<Vec<_>>().concat()
}

/// The class of the highest score, the lowest on a tie.
pub(super) fn highest(scores: &[f32]) -> u32 {
    let better = |best: usize, i: usize| if scores[i] > scores[best] { i } else { best };
    (0..scores.len()).fold(0, better) as u32
}
