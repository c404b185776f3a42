//! The quantized network of one sample at a time, forwards and backwards.

use std::collections::BTreeMap;

use bitgear_core::bits::BitWidth;

use super::super::lower::demand;
use super::super::lower::group::Group;
use super::super::methods::{Constraints, Methods};
use super::super::parameters::{InputScale, Parameters};
use super::super::pass::{Pass, Plan};
use crate::float;
use crate::graph::{Op, TensorId};
use crate::vector::vectorized;

/// Factors on scales stay within this of 1.
const FARTHEST: f32 = 0.5;

/// What a group computes, and where its knobs are.
struct Step {
    group: Group,
    /// First knob of the factors on the scales of the weights, and of the biases.
    gains: Option<usize>,
    biases: Option<usize>,
    channels: usize,
    /// Elements of the result that belong to a channel before the next one's begin.
    inner: usize,
    /// What a bias' knob of 1 adds.
    unit: f32,
    operands: Vec<Option<Version>>,
    residual: Option<Version>,
}

/// A version of a tensor that a step reads.
#[derive(Clone)]
struct Version {
    key: (TensorId, BitWidth),
    /// Of the factor on its scale.
    knob: Option<usize>,
}

/// The network and the numbers in it that can be moved without moving a code of its weights.
///
/// Every knob is 0 at the start and without dimension: factors on scales are 1 + knob, biases move
/// by the knob times the size of the layer's results.
pub(super) struct Network<'a> {
    pass: &'a Pass<'a>,
    plan: &'a Plan,
    parameters: &'a Parameters,
    steps: Vec<Step>,
    /// Smallest and largest value of each knob.
    limits: Vec<(f32, f32)>,
}

/// The network with its knobs set.
pub(super) struct Setting {
    parameters: Parameters,
    /// Operators of all steps, weights and biases as the codes stand for.
    ops: Vec<Option<Op>>,
    gains: Vec<f32>,
}

/// What one sample left behind on its way.
struct Trail {
    /// Of each tensor that a group makes, before anyone quantizes it.
    values: Vec<Vec<f32>>,
    /// What each step read.
    read: Vec<Read>,
}

/// What a step read: its operands, and what it added to its result.
struct Read {
    operands: Vec<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl<'a> Network<'a> {
    /// `samples` tell how large results are.
    pub(super) fn new(
        pass: &'a Pass<'a>,
        plan: &'a Plan,
        parameters: &'a Parameters,
        samples: &[&[f32]],
    ) -> Self {
        let graph = pass.graph;
        let layers = parameters.layers.len();
        let mut limits = Vec::new();
        let mut knobs = |count: usize, low: f32, high: f32| {
            limits.resize(limits.len() + count, (low, high));
            limits.len() - count
        };
        let Constraints { per_tensor_scales, power_of_two_scales, .. } = pass.constraints;
        let mut versions = BTreeMap::new();
        let mut version =
            |tensor: TensorId, bits: BitWidth, knobs: &mut dyn FnMut(usize, f32, f32) -> usize| {
                let key = (tensor, bits);
                let knob = *versions.entry(key).or_insert_with(|| {
                    let fixed = bits.get() > Methods::TUNED_BITS || power_of_two_scales;
                    let most = most(plan, tensor, &parameters.scales[&key]);
                    (!fixed).then(|| knobs(1, -FARTHEST, most - 1.0))
                });
                Some(Version { key, knob })
            };
        let steps = plan.groups.iter().map(|group| {
            let node = &graph.nodes[group.head];
            let shape = graph.shape(node.output);
            let mut step = Step {
                group: group.clone(),
                gains: None,
                biases: None,
                channels: 0,
                inner: 1,
                unit: 1.0,
                operands: Vec::new(),
                residual: None,
            };
            if let (Some(layer), Some((weight, _))) =
                (plan.numbers[group.head], node.op.weight_and_bias())
            {
                let widths = pass.point.widths(layer, layers);
                step.channels = weight.shape()[0];
                step.inner = if matches!(node.op, Op::Conv(_)) { shape[1] * shape[2] } else { 1 };
                step.operands = vec![version(node.inputs[0], widths.activations, &mut knobs)];
                // Wide layers stay as they are, so that points can share them; all but the last,
                // which makes the scores.
                let narrow = widths.weights.min(widths.activations).get() <= Methods::TUNED_BITS;
                if narrow || layer + 1 == layers {
                    if !per_tensor_scales && !power_of_two_scales {
                        step.gains = Some(knobs(step.channels, -FARTHEST, FARTHEST));
                    }
                    step.biases = Some(knobs(step.channels, f32::NEG_INFINITY, f32::INFINITY));
                }
            } else if demand::moves_codes(&node.op) {
                step.operands = vec![None; node.inputs.len()];
            } else {
                let bits = pass.operand_bits(group, plan);
                step.operands = (node.inputs.iter().zip(bits))
                    .map(|(&tensor, bits)| version(tensor, bits, &mut knobs))
                    .collect();
            }
            if let Some(tensor) = group.residual {
                let bits = demand::side_path_bits(&plan.demands[group.result.0]);
                step.residual = version(tensor, bits, &mut knobs);
            }
            step
        });
        let steps = steps.collect();
        let mut network = Self { pass, plan, parameters, steps, limits };
        network.measure(samples);
        network
    }

    pub(super) fn limits(&self) -> &[(f32, f32)] {
        &self.limits
    }

    /// The parameters with the knobs turned.
    pub(super) fn parameters(&self, knobs: &[f32]) -> Parameters {
        let mut parameters = self.parameters.clone();
        for step in &self.steps {
            let layer = self.plan.numbers[step.group.head];
            if let Some((layer, first)) = layer.zip(step.gains) {
                let scales = &mut parameters.layers[layer].weights.scales;
                for (scale, knob) in scales.iter_mut().zip(&knobs[first..]) {
                    *scale *= 1.0 + f64::from(*knob);
                }
            }
            if let Some((layer, first)) = layer.zip(step.biases) {
                let biases = &mut parameters.layers[layer].bias;
                for (bias, knob) in biases.iter_mut().zip(&knobs[first..]) {
                    *bias += step.unit * knob;
                }
            }
            for version in step.operands.iter().chain([&step.residual]).flatten() {
                if let Some(knob) = version.knob {
                    let scale = &mut parameters.scales.get_mut(&version.key).expect("read").scale;
                    scale.scale = self.parameters.scales[&version.key].scale.scale
                        * (1.0 + f64::from(knobs[knob]));
                }
            }
        }
        parameters
    }

    pub(super) fn set(&self, knobs: &[f32]) -> Setting {
        let parameters = self.parameters(knobs);
        let ops = self.steps.iter().map(|step| {
            let op = &self.pass.graph.nodes[step.group.head].op;
            op.weight_and_bias()?;
            let layer = self.plan.numbers[step.group.head]?;
            Some(parameters.layers[layer].dequantized(op))
        });
        let ops = ops.collect();
        let gains = knobs.iter().map(|knob| 1.0 + knob).collect();
        Setting { parameters, ops, gains }
    }

    /// A bias' knob of 1 adds the root of the mean square of what its layer adds to it.
    fn measure(&mut self, samples: &[&[f32]]) {
        let setting = self.set(&vec![0.0; self.limits.len()]);
        let mut squares = vec![(0.0, 0.0); self.steps.len()];
        for sample in samples {
            let trail = self.forward(&setting, sample);
            for (index, (step, squares)) in self.steps.iter().zip(&mut squares).enumerate() {
                let Some(op) = &setting.ops[index] else { continue };
                let (_, bias) = op.weight_and_bias().expect("of a layer");
                let added = trail.read[index].residual.as_deref();
                for (i, y) in trail.values[step.group.result.0].iter().enumerate() {
                    let z = y - bias[step.channel(i)] - added.map_or(0.0, |added| added[i]);
                    squares.0 += f64::from(z).powi(2);
                    squares.1 += 1.0;
                }
            }
        }
        for (step, (sum, count)) in self.steps.iter_mut().zip(squares) {
            if sum > 0.0 {
                step.unit = (sum / count).sqrt() as f32;
            }
        }
    }

    /// Scores of a sample.
    pub(super) fn scores(&self, setting: &Setting, sample: &[f32]) -> Vec<f32> {
        let mut trail = self.forward(setting, sample);
        std::mem::take(&mut trail.values[self.pass.graph.output.0])
    }

    fn forward(&self, setting: &Setting, sample: &[f32]) -> Trail {
        let graph = self.pass.graph;
        let mut trail = Trail { values: vec![Vec::new(); graph.tensors.len()], read: Vec::new() };
        trail.values[graph.input.0] = sample.to_vec();
        for node in &graph.nodes {
            if let Op::Constant(constant) = &node.op {
                trail.values[node.output.0] = constant.values().to_vec();
            }
        }
        for (step, op) in self.steps.iter().zip(&setting.ops) {
            let node = &graph.nodes[step.group.head];
            let read = |tensor: TensorId, version: &Option<Version>| {
                let values = &trail.values[tensor.0];
                let Some(version) = version else { return values.clone() };
                let mut out = vec![0.0; values.len()];
                let scale = &setting.parameters.scales[&version.key];
                scale.quantize(values, graph.shape(tensor), &mut out);
                out
            };
            let operands: Vec<Vec<f32>> =
                node.inputs.iter().zip(&step.operands).map(|(&t, v)| read(t, v)).collect();
            let residual = step.group.residual.map(|tensor| read(tensor, &step.residual));
            let pairs: Vec<(&[usize], &[f32])> =
                node.inputs.iter().zip(&operands).map(|(&t, v)| (graph.shape(t), &v[..])).collect();
            let shape = graph.shape(node.output);
            let mut result = vec![0.0; shape.iter().product()];
            float::apply(op.as_ref().unwrap_or(&node.op), &pairs, shape, &mut result);
            if let Some(residual) = &residual {
                result.iter_mut().zip(residual).for_each(|(a, b)| *a += b);
            }
            let (low, high) = step.group.clamp;
            let values = &mut result[..];
            vectorized(move || {
                for value in values {
                    *value = value.max(low).min(high);
                }
            });
            trail.values[step.group.result.0] = result;
            trail.read.push(Read { operands, residual });
        }
        trail
    }

    /// What a gradient of the scores, made from them by `of_scores`, comes to for every knob.
    pub(super) fn gradient(
        &self,
        setting: &Setting,
        sample: &[f32],
        of_scores: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Vec<f32> {
        let graph = self.pass.graph;
        let trail = self.forward(setting, sample);
        let mut knobs = vec![0.0; self.limits.len()];
        let mut gradients: Vec<Vec<f32>> = vec![Vec::new(); graph.tensors.len()];
        gradients[graph.output.0] = of_scores(&trail.values[graph.output.0]);
        for (index, step) in self.steps.iter().enumerate().rev() {
            let node = &graph.nodes[step.group.head];
            let mut gradient = std::mem::take(&mut gradients[step.group.result.0]);
            if gradient.is_empty() {
                continue;
            }
            let (low, high) = step.group.clamp;
            let result = &trail.values[step.group.result.0];
            let kept = gradient.iter_mut().zip(result);
            vectorized(move || {
                for (gradient, &y) in kept {
                    *gradient = if y <= low || y >= high { 0.0 } else { *gradient };
                }
            });
            let Read { operands, residual } = &trail.read[index];
            if let Some(op) = &setting.ops[index] {
                let (_, bias) = op.weight_and_bias().expect("of a layer");
                let rows = gradient.chunks_exact(step.inner).zip(result.chunks_exact(step.inner));
                for (i, (g, y)) in rows.enumerate() {
                    let c = i % step.channels;
                    let sum = sum_by_lanes(g, g, |g, _| g);
                    if let Some(first) = step.biases {
                        knobs[first + c] += sum * step.unit;
                    }
                    if let Some(first) = step.gains {
                        let mut along = sum_by_lanes(g, y, |g, y| g * y) - sum * bias[c];
                        if let Some(residual) = residual {
                            let added = &residual[i * step.inner..][..step.inner];
                            along -= sum_by_lanes(g, added, |g, r| g * r);
                        }
                        knobs[first + c] += along / setting.gains[first + c];
                    }
                }
            }
            let mut pass_on = |tensor: TensorId, version: &Option<Version>, mut g: Vec<f32>| {
                if let Some(version) = version {
                    let scale = &setting.parameters.scales[&version.key];
                    let shape = graph.shape(tensor);
                    let slope = scale.pull_back(&trail.values[tensor.0], shape, &mut g);
                    if let Some(knob) = version.knob {
                        knobs[knob] += slope / setting.gains[knob];
                    }
                }
                let sum = &mut gradients[tensor.0];
                if sum.is_empty() {
                    *sum = g;
                } else {
                    sum.iter_mut().zip(&g).for_each(|(a, b)| *a += b);
                }
            };
            let inner = node.inputs.iter().any(|&t| t != graph.input)
                || step.operands.iter().flatten().any(|version| version.knob.is_some());
            if inner {
                let pairs: Vec<(&[usize], &[f32])> = (node.inputs.iter().zip(operands))
                    .map(|(&t, v)| (graph.shape(t), &v[..]))
                    .collect();
                let op = setting.ops[index].as_ref().unwrap_or(&node.op);
                let shape = graph.shape(node.output);
                let into = float::gradients(op, &pairs, shape, &gradient);
                for ((&tensor, version), g) in node.inputs.iter().zip(&step.operands).zip(into) {
                    pass_on(tensor, version, g);
                }
            }
            if let Some(tensor) = step.group.residual {
                pass_on(tensor, &step.residual, gradient);
            }
        }
        knobs
    }
}

impl Step {
    /// Output channel of an element of the result.
    fn channel(&self, element: usize) -> usize {
        element / self.inner % self.channels
    }
}

/// Σ term(a, b), in eight interleaved sums.
fn sum_by_lanes(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(&a, &b)| term(a, b)).sum();
    let lanes = vectorized(move || {
        let mut lanes = [0.0; 8];
        for (a, b) in a8.zip(b8) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += term(a, b);
            }
        }
        lanes
    });
    rest + lanes.iter().sum::<f32>()
}

/// Factor that a version's scale may grow by: where channels have factors of their own, saturation
/// stands for the clamp of the layer before.
fn most(plan: &Plan, tensor: TensorId, scale: &InputScale) -> f32 {
    let high = plan.clamp_high(tensor);
    let largest = scale.factors.iter().copied().fold(0.0, f32::max);
    if scale.factors.is_empty() || high == f32::INFINITY {
        return 1.0 + FARTHEST;
    }
    let reach = scale.scale.value(scale.scale.bits.code_max() as u16) as f32;
    (high / (reach * largest)).clamp(1.0, 1.0 + FARTHEST)
}
