//! What a layer's result makes of the scores: the layers behind it run in float.

use rayon::prelude::*;

use super::lower::group::Group;
use super::pass::{Pass, Plan, Values};
use crate::graph::{Graph, Op, TensorId};
use crate::tensor::Tensor;

/// Samples that scores are compared on.
const FEWEST: usize = 8;
const MOST: usize = 256;

/// Number of samples whose runs behind every layer once take at most `work` multiply-accumulates.
pub(super) fn samples(graph: &Graph, work: u64) -> usize {
    let layers = graph.mac_layers();
    let behind = |from: usize| layers[from..].iter().map(|layer| layer.macs).sum::<u64>();
    let all: u64 = (1..=layers.len()).map(behind).sum();
    ((work / all.max(1)) as usize).clamp(FEWEST, MOST)
}

/// The float network's scores of the first `samples` samples, from its inputs.
pub(super) fn exact(
    pass: &Pass<'_>,
    plan: &Plan,
    inputs: &[Option<Values>],
    samples: usize,
) -> Vec<f32> {
    pass.finish(plan, 0, shortened(inputs, pass, samples), samples)
}

/// One layer's place in the network, with everything behind it that does not depend on it.
pub(super) struct Judge<'a> {
    pass: &'a Pass<'a>,
    plan: &'a Plan,
    /// The layer's group.
    index: usize,
    /// The first samples of all tensors that are alive.
    values: Vec<Option<Values>>,
    exact: &'a [f32],
    /// Number of samples that are looked at.
    samples: usize,
}

impl<'a> Judge<'a> {
    /// `values` are of all samples; `exact` are the scores to compare with, which say how many of
    /// them are looked at.
    pub(super) fn new(
        pass: &'a Pass<'a>,
        plan: &'a Plan,
        index: usize,
        values: &[Option<Values>],
        exact: &'a [f32],
    ) -> Self {
        let samples = exact.len() / pass.graph.classes();
        let values = shortened(values, pass, samples);
        Self { pass, plan, index, values, exact, samples }
    }

    /// Mean divergence of the scores, in nats, that the layer's result (of the first samples, at
    /// least as many as are looked at) leads to.
    pub(super) fn divergence(&self, result: &[f32]) -> f64 {
        let group = &self.plan.groups[self.index];
        let node = &self.pass.graph.nodes[group.head];
        let size: usize = self.pass.graph.shape(node.output).iter().product();
        let mut result = result[..self.samples * size].to_vec();
        if let Some(residual) = group.residual.and_then(|tensor| self.values[tensor.0].as_ref()) {
            result.iter_mut().zip(residual.iter()).for_each(|(a, b)| *a += b);
        }
        let (low, high) = group.clamp;
        for value in &mut result {
            *value = value.max(low).min(high);
        }
        let mut values = self.values.clone();
        values[group.result.0] = Some(result.into());
        for tensor in self.plan.released(self.pass.graph, self.index) {
            values[tensor.0] = None;
        }
        let scores = self.pass.finish(self.plan, self.index + 1, values, self.samples);
        divergence(self.exact, &scores, self.pass.graph.classes())
    }
}

/// The first samples of all tensors that are alive.
fn shortened(values: &[Option<Values>], pass: &Pass<'_>, samples: usize) -> Vec<Option<Values>> {
    let shorten = |values: &Option<Values>| {
        let values = values.as_ref()?;
        Some(Values::from(values[..values.len() / pass.samples * samples].to_vec()))
    };
    values.iter().map(shorten).collect()
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

impl Pass<'_> {
    /// The network's input and constants, for all samples.
    pub(super) fn inputs(&self, samples: &Tensor) -> Vec<Option<Values>> {
        let mut values = vec![None; self.graph.tensors.len()];
        let len = samples.values().len() / samples.shape()[0] * self.samples;
        values[self.graph.input.0] = Some(Values::from(samples.values()[..len].to_vec()));
        for node in &self.graph.nodes {
            if let Op::Constant(constant) = &node.op {
                values[node.output.0] = Some(constant.values().repeat(self.samples).into());
            }
        }
        values
    }

    /// A group's result in float.
    pub(super) fn float(&self, group: &Group, values: &[Option<Values>]) -> Values {
        let node = &self.graph.nodes[group.head];
        let value = |t: &TensorId| values[t.0].as_ref().expect("operands are computed before");
        let operands: Vec<_> = node.inputs.iter().map(|t| (*t, &value(t)[..])).collect();
        let mut result = self.apply(&node.op, &operands, node.output);
        if let Some(residual) = &group.residual {
            result.par_iter_mut().zip(&value(residual)[..]).for_each(|(a, b)| *a += b);
        }
        let (low, high) = group.clamp;
        result.par_iter_mut().for_each(|v| *v = v.max(low).min(high));
        result.into()
    }

    /// Scores of `samples` samples whose tensors have been computed up to group `from`.
    fn finish(
        &self,
        plan: &Plan,
        from: usize,
        mut values: Vec<Option<Values>>,
        samples: usize,
    ) -> Vec<f32> {
        let few = Pass { samples, ..*self };
        for (index, group) in plan.groups.iter().enumerate().skip(from) {
            let result = few.float(group, &values);
            values[group.result.0] = Some(result);
            for tensor in plan.released(self.graph, index) {
                values[tensor.0] = None;
            }
        }
        values[self.graph.output.0].as_ref().map_or_else(Vec::new, |scores| scores.to_vec())
    }
}
