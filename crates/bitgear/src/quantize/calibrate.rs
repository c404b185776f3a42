//! Runs the float network on calibration samples and collects every tensor's range.

use std::ops::Range as Span;

use rayon::prelude::*;

use super::{Extremes, Histograms, Ranges};
use crate::float;
use crate::graph::{Graph, TensorId};
use crate::tensor::Tensor;

/// Samples that run together.
const BATCH: usize = 8;

/// Ranges of every tensor of `graph` over `samples` calibration samples; `batch` gives the
/// preprocessed samples of a span as (N, sample shape). Each sample runs twice. Memory holds one
/// batch and one histogram per tensor and thread, however many samples there are.
///
/// # Errors
///
/// What `batch` fails with.
pub fn calibrate<E: Send>(
    graph: &Graph,
    samples: usize,
    batch: impl Fn(Span<usize>) -> Result<Tensor, E> + Sync,
) -> Result<Ranges, E> {
    let tensors = graph.tensors.len();
    let extremes = collect(
        graph,
        samples,
        &batch,
        || Extremes::new(tensors),
        Extremes::observe,
        |a, b| a.merge(&b),
    )?;
    let histograms = collect(
        graph,
        samples,
        &batch,
        || Histograms::new(&extremes),
        Histograms::observe,
        |a, b| a.merge(&b),
    )?;
    Ok(histograms.finish())
}

/// Folds all batches into one accumulator per thread, then those into one. What is accumulated
/// must not depend on order.
fn collect<A: Send, E: Send>(
    graph: &Graph,
    samples: usize,
    batch: &(impl Fn(Span<usize>) -> Result<Tensor, E> + Sync),
    empty: impl Fn() -> A + Sync,
    observe: impl Fn(&mut A, TensorId, &[f32]) + Sync,
    merge: impl Fn(A, A) -> A,
) -> Result<A, E> {
    let threads = rayon::current_num_threads();
    let parts: Vec<Result<A, E>> = (0..threads)
        .into_par_iter()
        .map(|thread| {
            let mut part = empty();
            for start in (thread * BATCH..samples).step_by(threads * BATCH) {
                let batch = batch(start..samples.min(start + BATCH))?;
                float::run_with(graph, &batch, &mut |tensor, value| {
                    observe(&mut part, tensor, value.values());
                });
            }
            Ok(part)
        })
        .collect();
    let mut whole = empty();
    for part in parts {
        whole = merge(whole, part?);
    }
    Ok(whole)
}
