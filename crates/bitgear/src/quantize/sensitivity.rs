//! What few bits do to each layer, all others left in float.

use std::borrow::Cow;

use bitgear_core::bits::BitWidth;
use rayon::prelude::*;

use super::layer::Layer;
use super::lower::group::Group;
use super::methods::{Methods, RangeRule};
use super::parameters::{InputScale, Parameters};
use super::pass::{Pass, Plan, Values};
use super::slopes::Slopes;
use super::{Point, Quantizer, Widths, split};
use crate::float;
use crate::graph::{Graph, Op, TensorId};
use crate::sensitivity::{LayerSensitivity, Sensitivity, WidthSensitivity};

/// Of so many samples one is held out from the fit, to judge it by.
const HELD_OUT: usize = 4;
/// Fewer samples than this are fitted to and judged by, all of them.
const FEWEST: usize = 16;
/// Multiply-accumulates that may go into judging.
const WORK: u64 = 300_000_000_000;
/// Samples that judge at least, if there are as many.
const FEWEST_JUDGES: usize = 8;

impl Quantizer<'_> {
    /// Quantizes each layer alone at each pair of widths. `progress` is told of every layer done.
    pub fn sensitivity(&self, pairs: &[Widths], progress: impl Fn()) -> Sensitivity {
        let methods = Methods {
            range: RangeRule::SquaredError,
            descent: 0,
            refit: false,
            activation_aware: 0,
            ..self.methods
        };
        let (fitted, judges) = if self.samples.shape()[0] < FEWEST {
            (self.samples.clone(), self.samples.clone())
        } else {
            let (fitted, judges) = split(&self.samples, HELD_OUT);
            (Cow::Owned(fitted), Cow::Owned(judges))
        };
        let samples = fitted.shape()[0];
        let pass = |point, methods| Pass { samples, ..self.pass(point, methods) };
        let points: Vec<Point> =
            pairs.iter().map(|w| Point::uniform(w.weights, w.activations)).collect();
        let best: Vec<Pass<'_>> = points.iter().map(|p| pass(p, methods)).collect();
        let plain: Vec<Pass<'_>> = points
            .iter()
            .map(|p| pass(p, Methods { correction: super::Correction::None, ..Methods::plain() }))
            .collect();
        let plans: Vec<Plan> = points.iter().map(|p| Plan::new(self.graph, p)).collect();
        let Some(first) = best.first() else { return Sensitivity { layers: Vec::new() } };

        let mut layers = Vec::new();
        let mut values = first.inputs(&fitted);
        for (index, group) in plans[0].groups.iter().enumerate() {
            if let Some(layer) = plans[0].numbers[group.head] {
                let runs: Vec<Run> = best
                    .iter()
                    .zip(&plain)
                    .zip(&plans)
                    .map(|((best, plain), plan)| {
                        let alone = |pass| Alone { pass, plan, group, layer, values: &values };
                        let (integers, quality) = alone(best).run();
                        let (_, plain) = alone(plain).run();
                        Run { integers, quality, plain }
                    })
                    .collect();
                let measured = self.layer(group, &values, pairs, &runs);
                let integers: Vec<Integers> = runs.into_iter().map(|run| run.integers).collect();
                layers.push((layer, group, measured, integers));
                progress();
            }
            let result = first.float(group, &values);
            values[group.result.0] = Some(result);
            for tensor in plans[0].released(self.graph, index) {
                values[tensor.0] = None;
            }
        }
        drop(values);
        let most = self.judges(pairs.len()).min(judges.shape()[0]);
        let size = judges.values().len() / judges.shape()[0];
        let judge = |(index, sample): (usize, &[f32])| -> Vec<f64> {
            let slopes = Slopes::new(self.graph, &plans[0], sample, index as u64);
            let of_layer = |(_, group, _, integers): &(usize, &Group, LayerSensitivity, Vec<_>)| {
                let of_pair = |integers: &Integers| {
                    let mut result = integers.result(self.graph, group, &slopes.values);
                    slopes.finish(group, &mut result);
                    slopes.divergence(group, &result)
                };
                integers.iter().map(of_pair).collect::<Vec<f64>>()
            };
            layers.iter().flat_map(of_layer).collect()
        };
        let each: Vec<Vec<f64>> =
            judges.values().par_chunks_exact(size).take(most).enumerate().map(judge).collect();
        for (number, (_, _, layer, _)) in layers.iter_mut().enumerate() {
            for (pair, width) in layer.widths.iter_mut().enumerate() {
                let place = number * pairs.len() + pair;
                width.divergence = each.iter().map(|one| one[place]).sum::<f64>() / most as f64;
            }
        }
        layers.sort_by_key(|layer| layer.0);
        Sensitivity { layers: layers.into_iter().map(|layer| layer.2).collect() }
    }

    /// How many samples may judge.
    fn judges(&self, pairs: usize) -> usize {
        let macs: u64 = self.graph.mac_layers().iter().map(|layer| layer.macs).sum();
        let each = macs * (Slopes::RUNS + pairs) as u64;
        ((WORK / each.max(1)) as usize).max(FEWEST_JUDGES)
    }

    fn layer(
        &self,
        group: &Group,
        values: &[Option<Values>],
        pairs: &[Widths],
        runs: &[Run],
    ) -> LayerSensitivity {
        let node = &self.graph.nodes[group.head];
        let input = values[node.inputs[0].0].as_ref().expect("operands are computed before");
        let weight_peak = node.op.weight_and_bias().map_or(1.0, |(weight, _)| {
            let row = weight.values().len() / weight.shape()[0];
            weight.values().chunks_exact(row).map(peak).fold(1.0, f64::max)
        });
        let ranges = super::equalize::channel_ranges(input, self.graph.shape(node.inputs[0]));
        let mut sorted = ranges.clone();
        sorted.sort_by(f32::total_cmp);
        let ratio = |a: f32, b: f32| if b > 0.0 { f64::from(a) / f64::from(b) } else { 1.0 };
        let bits = |width: BitWidth| width.get();
        LayerSensitivity {
            name: node.name.clone(),
            widths: pairs
                .iter()
                .zip(runs)
                .map(|(pair, run)| WidthSensitivity {
                    weights: bits(pair.weights),
                    activations: bits(pair.activations),
                    divergence: f64::NAN,
                    snr_db: run.quality.decibel(),
                    plain_snr_db: run.plain.decibel(),
                })
                .collect(),
            input_peak: peak(input),
            channel_spread: ratio(sorted[sorted.len() - 1], sorted[sorted.len() / 2]),
            weight_peak,
            bias_share: runs.first().map_or(0.0, |run| run.plain.bias_share()),
        }
    }
}

struct Run {
    integers: Integers,
    quality: Quality,
    plain: Quality,
}

/// What a layer alone was quantized to.
struct Integers {
    /// With the real weights that the codes stand for; none where the layer has no weights.
    op: Option<Op>,
    /// How each operand is stored.
    scales: Vec<InputScale>,
}

impl Integers {
    /// The operator's result of one sample, whose tensors are given.
    fn result(&self, graph: &Graph, group: &Group, values: &[Vec<f32>]) -> Vec<f32> {
        let node = &graph.nodes[group.head];
        let rounded: Vec<Vec<f32>> = (node.inputs.iter().zip(&self.scales))
            .map(|(&tensor, scale)| {
                let values = &values[tensor.0];
                let mut out = vec![0.0; values.len()];
                scale.quantize(values, graph.shape(tensor), &mut out);
                out
            })
            .collect();
        let operands: Vec<(&[usize], &[f32])> = (node.inputs.iter().zip(&rounded))
            .map(|(&tensor, values)| (graph.shape(tensor), &values[..]))
            .collect();
        let shape = graph.shape(node.output);
        let mut result = vec![0.0; shape.iter().product()];
        float::apply(self.op.as_ref().unwrap_or(&node.op), &operands, shape, &mut result);
        result
    }
}

/// One layer quantized by itself.
struct Alone<'a> {
    pass: &'a Pass<'a>,
    plan: &'a Plan,
    group: &'a Group,
    layer: usize,
    values: &'a [Option<Values>],
}

impl Alone<'_> {
    /// The layer's integers, and how good its result is.
    fn run(&self) -> (Integers, Quality) {
        let graph = self.pass.graph;
        let node = &graph.nodes[self.group.head];
        let value = |tensor: TensorId| {
            self.values[tensor.0].as_ref().expect("operands are computed before")
        };
        let operands: Vec<_> = node.inputs.iter().map(|&t| (t, &value(t)[..])).collect();
        let wanted = self.pass.apply(&node.op, &operands, node.output);
        let quality = |result: &[f32]| {
            Quality::new(&wanted, result, graph.shape(node.output), self.pass.samples)
        };
        if node.op.weight_and_bias().is_none() {
            let widths = self.pass.operand_bits(self.group, self.plan);
            let scales: Vec<InputScale> = (operands.iter().zip(widths))
                .map(|(&(tensor, _), bits)| InputScale::plain(self.pass.side_scale(tensor, bits)))
                .collect();
            let rounded: Vec<(TensorId, Vec<f32>)> = (operands.iter().zip(&scales))
                .map(|(&(tensor, values), scale)| {
                    (tensor, self.pass.quantize_all(values, tensor, scale))
                })
                .collect();
            let operands: Vec<_> = rounded.iter().map(|(t, values)| (*t, &values[..])).collect();
            let result = self.pass.apply(&node.op, &operands, node.output);
            return (Integers { op: None, scales }, quality(&result));
        }
        let input = operands[0].1;
        let residual = self
            .group
            .residual
            .map(|t| self.values[t.0].clone().expect("operands are computed before"));
        let reached = Layer {
            pass: self.pass,
            group: self.group,
            number: self.layer,
            input,
            wanted: &wanted,
            residual: residual.as_ref().map(|values| &values[..]),
            plan: self.plan,
            nest: None,
        };
        let mut parameters = Parameters::default();
        let (fit, result) = reached.fit(&mut parameters);
        let op = fit.weights.dequantized(&node.op, &fit.bias);
        let scales = parameters.scales.into_values().collect();
        (Integers { op: Some(op), scales }, quality(&result))
    }
}

/// Error of a layer's result.
struct Quality {
    signal: f64,
    noise: f64,
    /// Part of the noise that is the channels' mean error.
    shift: f64,
}

impl Quality {
    fn new(wanted: &[f32], result: &[f32], shape: &[usize], samples: usize) -> Self {
        let (channels, inner) = match *shape {
            [c, h, w] => (c, h * w),
            _ => (shape[shape.len() - 1], 1),
        };
        let channel = |c: usize| -> [f64; 3] {
            let per_sample = wanted.len() / samples;
            let places = (0..samples).flat_map(|s| {
                (0..per_sample / channels / inner).flat_map(move |outer| {
                    let start = s * per_sample + (outer * channels + c) * inner;
                    start..start + inner
                })
            });
            let (mut n, mut sum, mut squares, mut error, mut errors) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for i in places {
                let (t, e) = (f64::from(wanted[i]), f64::from(result[i]) - f64::from(wanted[i]));
                n += 1.0;
                sum += t;
                squares += t * t;
                error += e;
                errors += e * e;
            }
            [squares - sum * sum / n, errors, error * error / n]
        };
        let parts: Vec<[f64; 3]> = (0..channels).into_par_iter().map(channel).collect();
        let sum = |part: usize| parts.iter().map(|p| p[part]).sum();
        Self { signal: sum(0), noise: sum(1), shift: sum(2) }
    }

    fn decibel(&self) -> f64 {
        if self.noise > 0.0 { 10.0 * (self.signal / self.noise).log10().max(-3.0) } else { 120.0 }
    }

    fn bias_share(&self) -> f64 {
        if self.noise > 0.0 { self.shift / self.noise } else { 0.0 }
    }
}

/// Largest magnitude over root mean square.
fn peak(values: &[f32]) -> f64 {
    let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let rms = (squares / values.len() as f64).sqrt();
    if rms > 0.0 { f64::from(largest) / rms } else { 1.0 }
}
