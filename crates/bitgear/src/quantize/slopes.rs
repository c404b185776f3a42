//! What small changes of the layers' results do to the scores: one sample's run of the float network,
//! forwards and backwards.
//!
//! To second order, the divergence of the softmax from the float network's is half of changeᵀ F change of
//! the scores, F = diag(p) - p pᵀ being their Fisher information. With v a vector of random signs times
//! √p, centred, the mean of v vᵀ is F. So a few runs backwards from such probes tell the divergence of any
//! change of any layer, without a run forwards for each.

use super::lower::group::Group;
use super::pass::Plan;
use crate::float;
use crate::graph::{Graph, Op};
use crate::trace::Random;

/// Runs backwards of each sample.
const PROBES: usize = 4;

/// One sample's run.
pub(super) struct Slopes {
    /// Of each tensor that a group leaves behind.
    pub(super) values: Vec<Vec<f32>>,
    /// Slopes of each probe along each of those tensors.
    probes: Vec<Vec<Vec<f32>>>,
}

impl Slopes {
    /// What it costs, in runs of the float network.
    pub(super) const RUNS: usize = 1 + PROBES;

    /// `seed` decides the probes.
    pub(super) fn new(graph: &Graph, plan: &Plan, sample: &[f32], seed: u64) -> Self {
        let values = forward(graph, &plan.groups, sample);
        let mut shares: Vec<f64> =
            values[graph.output.0].iter().map(|&score| f64::from(score)).collect();
        float::softmax(&mut shares);
        let mut random = Random::new(seed);
        let probes = (0..PROBES).map(|_| {
            let roots: Vec<f64> = (shares.iter())
                .map(|share| if random.below(2) == 0 { share.sqrt() } else { -share.sqrt() })
                .collect();
            let sum: f64 = shares.iter().zip(&roots).map(|(share, root)| share.sqrt() * root).sum();
            let probe = shares.iter().zip(&roots).map(|(share, root)| (root - share * sum) as f32);
            backward(graph, &plan.groups, &values, probe.collect())
        });
        let probes = probes.collect();
        Self { values, probes }
    }

    /// Divergence of the scores in nats, to second order, where a group gives `result`.
    pub(super) fn divergence(&self, group: &Group, result: &[f32]) -> f64 {
        let tensor = group.result.0;
        let square = |probe: &Vec<Vec<f32>>| {
            // A result that the scores don't depend on.
            let slopes = probe[tensor].iter();
            let changes = result.iter().zip(&self.values[tensor]);
            let along: f64 = slopes.zip(changes).map(|(g, (a, b))| f64::from(g * (a - b))).sum();
            along * along
        };
        0.5 * self.probes.iter().map(square).sum::<f64>() / PROBES as f64
    }

    /// A group's result from its operator's: what is added to it in float, and the clamp.
    pub(super) fn finish(&self, group: &Group, result: &mut [f32]) {
        finish(group, &self.values, result);
    }
}

/// Mean divergence of the softmax of `scores` from that of `exact`, in nats.
pub(super) fn divergence(exact: &[f32], scores: &[f32], classes: usize) -> f64 {
    let logarithms = |scores: &[f32]| -> Vec<f64> {
        let largest = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = scores.iter().map(|&s| (f64::from(s) - largest).exp()).sum();
        scores.iter().map(|&s| f64::from(s) - largest - sum.ln()).collect()
    };
    let pairs = exact.chunks_exact(classes).zip(scores.chunks_exact(classes));
    let sum: f64 = pairs
        .map(|(exact, scores)| -> f64 {
            let pairs = logarithms(exact).into_iter().zip(logarithms(scores));
            pairs.map(|(p, q)| p.exp() * (p - q)).sum()
        })
        .sum();
    sum / (exact.len() / classes).max(1) as f64
}

fn finish(group: &Group, values: &[Vec<f32>], result: &mut [f32]) {
    if let Some(tensor) = group.residual {
        result.iter_mut().zip(&values[tensor.0]).for_each(|(a, b)| *a += b);
    }
    let (low, high) = group.clamp;
    for value in result {
        *value = value.max(low).min(high);
    }
}

fn operands<'v>(
    graph: &'v Graph,
    group: &Group,
    values: &'v [Vec<f32>],
) -> Vec<(&'v [usize], &'v [f32])> {
    let inputs = &graph.nodes[group.head].inputs;
    inputs.iter().map(|&tensor| (graph.shape(tensor), &values[tensor.0][..])).collect()
}

fn forward(graph: &Graph, groups: &[Group], sample: &[f32]) -> Vec<Vec<f32>> {
    let mut values: Vec<Vec<f32>> = vec![Vec::new(); graph.tensors.len()];
    values[graph.input.0] = sample.to_vec();
    for node in &graph.nodes {
        if let Op::Constant(constant) = &node.op {
            values[node.output.0] = constant.values().to_vec();
        }
    }
    for group in groups {
        let node = &graph.nodes[group.head];
        let shape = graph.shape(node.output);
        let mut result = vec![0.0; shape.iter().product()];
        float::apply(&node.op, &operands(graph, group, &values), shape, &mut result);
        finish(group, &values, &mut result);
        values[group.result.0] = result;
    }
    values
}

/// Gradients of all tensors that groups leave behind, from that of the scores.
fn backward(
    graph: &Graph,
    groups: &[Group],
    values: &[Vec<f32>],
    of_scores: Vec<f32>,
) -> Vec<Vec<f32>> {
    let mut gradients: Vec<Vec<f32>> = vec![Vec::new(); graph.tensors.len()];
    gradients[graph.output.0] = of_scores;
    for group in groups.iter().rev() {
        let node = &graph.nodes[group.head];
        let mut gradient = gradients[group.result.0].clone();
        if gradient.is_empty() || node.inputs.iter().all(|&tensor| tensor == graph.input) {
            continue;
        }
        let (low, high) = group.clamp;
        for (gradient, &value) in gradient.iter_mut().zip(&values[group.result.0]) {
            if value <= low || value >= high {
                *gradient = 0.0;
            }
        }
        let operands = operands(graph, group, values);
        let into = float::gradients(&node.op, &operands, graph.shape(node.output), &gradient);
        let residual = group.residual.map(|tensor| (tensor, gradient));
        for (tensor, more) in node.inputs.iter().copied().zip(into).chain(residual) {
            let sum = &mut gradients[tensor.0];
            if sum.is_empty() {
                *sum = more;
            } else {
                sum.iter_mut().zip(&more).for_each(|(a, b)| *a += b);
            }
        }
    }
    gradients
}
