//! What few bits do to each layer, all others left in float.

use bitgear_core::bits::BitWidth;
use rayon::prelude::*;

use super::judge::{self, Judge};
use super::layer::Layer;
use super::lower::group::Group;
use super::methods::{Methods, RangeRule};
use super::parameters::{InputScale, Parameters};
use super::pass::{Pass, Plan, Values};
use super::{Point, Quantizer, Widths};
use crate::graph::TensorId;
use crate::sensitivity::{LayerSensitivity, Sensitivity, WidthSensitivity};

/// Multiply-accumulates that may go into runs of the network behind the layers.
const WORK: u64 = 300_000_000_000;

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
        let points: Vec<Point> =
            pairs.iter().map(|w| Point::uniform(w.weights, w.activations)).collect();
        let best: Vec<Pass<'_>> = points.iter().map(|p| self.pass(p, methods)).collect();
        let plain: Vec<Pass<'_>> = points
            .iter()
            .map(|p| {
                self.pass(p, Methods { correction: super::Correction::None, ..Methods::plain() })
            })
            .collect();
        let plans: Vec<Plan> = points.iter().map(|p| Plan::new(self.graph, p)).collect();
        let Some(first) = best.first() else { return Sensitivity { layers: Vec::new() } };
        let compared = judge::samples(self.graph, WORK / pairs.len() as u64).min(first.samples);

        let mut layers = Vec::new();
        let mut values = first.inputs(&self.samples);
        // The same samples, few of them, through the whole float network.
        let exact = judge::exact(first, &plans[0], &values, compared);
        for (index, group) in plans[0].groups.iter().enumerate() {
            if let Some(layer) = plans[0].numbers[group.head] {
                let runs: Vec<Run> = best
                    .iter()
                    .zip(&plain)
                    .zip(&plans)
                    .map(|((best, plain), plan)| {
                        let alone = |pass| Alone { pass, plan, group, layer, values: &values };
                        let (result, quality) = alone(best).run();
                        let (_, plain) = alone(plain).run();
                        let judge = Judge::new(best, plan, index, &values, &exact);
                        Run { divergence: judge.divergence(&result), quality, plain }
                    })
                    .collect();
                layers.push((layer, self.layer(group, &values, pairs, &runs)));
                progress();
            }
            let result = first.float(group, &values);
            values[group.result.0] = Some(result);
            for tensor in plans[0].released(self.graph, index) {
                values[tensor.0] = None;
            }
        }
        layers.sort_by_key(|&(number, _)| number);
        Sensitivity { layers: layers.into_iter().map(|(_, layer)| layer).collect() }
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
                    divergence: run.divergence,
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
    divergence: f64,
    quality: Quality,
    plain: Quality,
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
    /// The layer's result, and how good it is.
    fn run(&self) -> (Vec<f32>, Quality) {
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
            let rounded: Vec<(TensorId, Vec<f32>)> = operands
                .iter()
                .zip(widths)
                .map(|(&(tensor, values), bits)| {
                    let scale = InputScale::plain(self.pass.side_scale(tensor, bits));
                    (tensor, self.pass.quantize_all(values, tensor, &scale))
                })
                .collect();
            let operands: Vec<_> = rounded.iter().map(|(t, values)| (*t, &values[..])).collect();
            let result = self.pass.apply(&node.op, &operands, node.output);
            let quality = quality(&result);
            return (result, quality);
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
        let (_, result) = reached.fit(&mut Parameters::default());
        let quality = quality(&result);
        (result, quality)
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
