//! One MAC layer that the calibration samples have reached: the scale of its input and its integers
//! are decided here.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use bitgear_core::bits::BitWidth;
use rayon::prelude::*;

use super::equalize;
use super::fit::{Grid, LayerFit, LayerMoments, MOST_COLUMNS, Request, Unfolded, is_held_out};
use super::lower::demand;
use super::lower::group::Group;
use super::methods::{Methods, RangeRule};
use super::nest::LayerNest;
use super::parameters::{InputScale, Parameters};
use super::pass::{Pass, Plan};
use crate::graph::{Op, TensorId};

/// Factors on the squared-error range that are tried by output error.
const CLIPS: [f64; 4] = [0.7, 0.85, 1.2, 1.45];
const POWER_OF_TWO_CLIPS: [f64; 2] = [0.5, 2.0];
/// Up to which width channels are evened out.
const EQUALIZED_BITS: u8 = 8;
/// Share of the usual rows that input scales are compared on.
const TRIAL_ROWS: f64 = 0.25;

/// Values that ranges are taken from.
const RANGE_VALUES: usize = 1 << 24;

/// One MAC layer that the samples have reached.
pub(super) struct Layer<'a> {
    pub(super) pass: &'a Pass<'a>,
    pub(super) group: &'a Group,
    /// Its number among the MAC layers.
    pub(super) number: usize,
    /// Real values of its operand, before they are quantized.
    pub(super) input: &'a [f32],
    /// What its result should be.
    pub(super) wanted: &'a [f32],
    /// What is added to its result.
    pub(super) residual: Option<&'a [f32]>,
    pub(super) plan: &'a Plan,
    /// What other points that share this layer's weights leave free.
    pub(super) nest: Option<&'a LayerNest>,
}

impl Layer<'_> {
    /// Decides the input's scale and the layer's integers, and gives the layer's result.
    pub(super) fn fit(&self, parameters: &mut Parameters) -> (LayerFit, Vec<f32>) {
        let node = &self.pass.graph.nodes[self.group.head];
        let widths = self.pass.point.widths(self.number, self.plan.layers);
        let wide = widths.weights.get() >= Methods::EXACT_BITS;
        let (weight, _) = node.op.weight_and_bias().expect("only MAC layers are fitted");
        let columns: usize = weight.shape()[1..].iter().product();
        // Also the trials of input scales make second moments.
        let plain = (wide && self.nest.is_none()) || columns > MOST_COLUMNS;
        let methods = if plain { Methods::plain() } else { self.pass.methods };
        let books = self.pass.constraints.two_bit_codes;
        let grids = match self.nest {
            Some(nest) => vec![nest.grid(widths.weights)],
            None => Grid::all(widths.weights, books),
        };
        let (input, bits) = (node.inputs[0], widths.activations);
        let scale = match parameters.scales.get(&(input, bits)) {
            Some(scale) => scale.clone(),
            None => self.input_scale(grids[0], methods, bits),
        };
        parameters.scales.insert((input, bits), scale.clone());
        let read = self.pass.quantize_all(self.input, input, &scale);
        let apply = |fit: &LayerFit| {
            let op = fit.weights.dequantized(&node.op, &fit.bias);
            self.pass.apply(&op, &[(input, &read)], node.output)
        };
        let fit_to = |grid: Grid| {
            self.with_request(&scale, grid, methods, |request| {
                if !methods.needs_data() {
                    let fit = request.nearest_fit();
                    let result = apply(&fit);
                    let error = self.clamped_error(&result);
                    return (fit, result, error);
                }
                let target = |values: &[f32], earlier: Option<&LayerMoments>| {
                    let part =
                        |span: Range<usize>, out: &mut Vec<f32>| out.extend_from_slice(&read[span]);
                    self.moments(1.0, &part, values, earlier)
                };
                let moments = target(self.wanted, None);
                let mut fit = request.fit(&moments, None);
                let mut result = apply(&fit);
                let mut error = self.clamped_error(&result);
                for _ in 0..methods.activation_aware {
                    let Some(wanted) = self.retarget(&result) else { break };
                    let next = request.fit(&target(&wanted, Some(&moments)), fit.strategy);
                    let next_result = apply(&next);
                    let next_error = self.clamped_error(&next_result);
                    if next_error >= error {
                        break;
                    }
                    (fit, result, error) = (next, next_result, next_error);
                }
                (fit, result, error)
            })
        };
        let fits = grids.into_iter().map(fit_to);
        let best = fits.reduce(|best, next| if next.2 < best.2 { next } else { best });
        let (fit, result, _) = best.expect("there is at least one grid");
        (fit, result)
    }

    /// What is asked of a result whose clamp is known: where the wanted value lies beyond a bound,
    /// any value beyond it will do.
    fn retarget(&self, result: &[f32]) -> Option<Vec<f32>> {
        let (low, high) = self.group.clamp;
        if low == f32::NEG_INFINITY && high == f32::INFINITY {
            return None;
        }
        let target = |(i, (&wanted, &result)): (usize, (&f32, &f32))| {
            let added = self.residual.map_or(0.0, |residual| residual[i]);
            let (low, high) = (low - added, high - added);
            if wanted <= low {
                result.min(low)
            } else if wanted >= high {
                result.max(high)
            } else {
                wanted
            }
        };
        Some(self.wanted.par_iter().zip(result).enumerate().map(target).collect())
    }

    /// Squared error behind the clamp, over the held-out samples.
    fn clamped_error(&self, result: &[f32]) -> f64 {
        let (low, high) = self.group.clamp;
        let size = result.len() / self.pass.samples;
        let error = |sample: usize| -> f64 {
            let span = sample * size..(sample + 1) * size;
            span.map(|i| {
                let added = self.residual.map_or(0.0, |residual| residual[i]);
                let clamp = |value: f32| (value + added).max(low).min(high);
                f64::from(clamp(self.wanted[i]) - clamp(result[i])).powi(2)
            })
            .sum()
        };
        let held_out = (0..self.pass.samples).into_par_iter().filter(|&s| is_held_out(s));
        held_out.map(error).collect::<Vec<_>>().iter().sum()
    }

    /// Held-out error of quick integers at this input scale.
    fn trial(&self, scale: &InputScale, grid: Grid, methods: Methods) -> f64 {
        self.with_request(scale, grid, methods, |request| {
            let shape = self.pass.graph.shape(self.pass.graph.nodes[self.group.head].inputs[0]);
            let read = |span: Range<usize>, out: &mut Vec<f32>| {
                out.resize(span.len(), 0.0);
                scale.quantize(&self.input[span], shape, out);
            };
            request.quick_error(&self.moments(TRIAL_ROWS, &read, self.wanted, None))
        })
    }

    fn with_request<T>(
        &self,
        scale: &InputScale,
        grid: Grid,
        methods: Methods,
        run: impl FnOnce(Request<'_>) -> T,
    ) -> T {
        let op = &self.pass.graph.nodes[self.group.head].op;
        let (weight, bias) = op.weight_and_bias().expect("only MAC layers are fitted");
        let bits = self.pass.point.widths(self.number, self.plan.layers).weights;
        let bounds = self.nest.and_then(|nest| nest.bounds(bits));
        let weights = equalize::apply(op, weight, &scale.factors);
        run(Request {
            weights: &weights,
            bias,
            columns: weight.shape()[1..].iter().product(),
            grid,
            bounds: bounds.as_ref(),
            methods,
            constraints: self.pass.constraints,
            nearest: OnceLock::new(),
        })
    }

    /// `read` gives a span of the quantized input.
    fn moments(
        &self,
        share: f64,
        read: &(impl Fn(Range<usize>, &mut Vec<f32>) + Sync),
        wanted: &[f32],
        earlier: Option<&LayerMoments>,
    ) -> LayerMoments {
        let graph = self.pass.graph;
        let node = &graph.nodes[self.group.head];
        let (in_shape, out_shape) = (graph.shape(node.inputs[0]), graph.shape(node.output));
        let in_size: usize = in_shape.iter().product();
        let out_size: usize = out_shape.iter().product();
        let unfolded = Unfolded::new(&node.op, in_shape, out_shape);
        unfolded.moments(
            self.pass.samples,
            share,
            &|sample, values| read(sample * in_size..(sample + 1) * in_size, values),
            &|sample, element| wanted[sample * out_size + element],
            earlier,
        )
    }

    /// The input's scale, by the range rule.
    fn input_scale(&self, grid: Grid, methods: Methods, bits: BitWidth) -> InputScale {
        let tensor = self.pass.graph.nodes[self.group.head].inputs[0];
        let power_of_two = self.pass.constraints.power_of_two_scales;
        if methods == Methods::plain() {
            return InputScale::plain(self.pass.side_scale(tensor, bits));
        }
        let few = bits.get() <= Methods::OUTPUT_ERROR_BITS;
        let zero_points = methods.zero_points
            && !self.pass.constraints.no_zero_points
            && bits.get() <= Methods::ZERO_POINT_BITS;
        let rule = match methods.range {
            RangeRule::OutputError => RangeRule::SquaredError,
            rule => rule,
        };
        let shape = self.pass.graph.shape(tensor);
        let seen = every(self.input, shape.iter().product(), RANGE_VALUES);
        let scale_of = |factors: Vec<f32>| {
            let values = InputScale::divided(&seen, shape, &factors);
            let range = super::Range::of_values(&values);
            let scale = range.scale_by(rule, bits, zero_points, power_of_two);
            InputScale { scale, factors }.within(self.plan.clamp_high(tensor))
        };
        // Points that share weights have the same factors.
        let known = self.nest.and_then(LayerNest::factors);
        let mut best = scale_of(known.unwrap_or_default().to_vec());
        let by_output = few && methods.range == RangeRule::OutputError;
        let evened = methods.equalization && known.is_none() && bits.get() <= EQUALIZED_BITS;
        let factors = if evened { self.equalization(tensor, bits) } else { None };
        if !by_output && factors.is_none() {
            return best;
        }
        let mut error = self.trial(&best, grid, methods);
        let mut offer = |scale: InputScale, best: &mut InputScale| {
            let trial = self.trial(&scale, grid, methods);
            if trial < error {
                (error, *best) = (trial, scale);
            }
        };
        if let Some(factors) = factors {
            offer(scale_of(factors), &mut best);
        }
        if by_output {
            let clips: &[f64] = if power_of_two { &POWER_OF_TWO_CLIPS } else { &CLIPS };
            let base = best.clone();
            for clip in clips {
                let mut scale = base.clone();
                scale.scale.scale *= clip;
                offer(scale.within(self.plan.clamp_high(tensor)), &mut best);
            }
        }
        best
    }

    /// Factors of the input's channels, where the layers on both sides can take them in.
    fn equalization(&self, tensor: TensorId, bits: BitWidth) -> Option<Vec<f32>> {
        let graph = self.pass.graph;
        let constraints = self.pass.constraints;
        let producer = self.plan.groups.iter().find(|g| g.result == tensor)?;
        // The version must be read by this layer alone, or by layers that take factors too; the tensor
        // by this layer alone where other points read other versions of it.
        let read_elsewhere = self.plan.groups.iter().any(|g| {
            let node = &graph.nodes[g.head];
            if self.nest.is_some() && g.head != self.group.head {
                return node.inputs.contains(&tensor) || g.residual == Some(tensor);
            }
            let side = !matches!(node.op, Op::Conv(_) | Op::Linear(_))
                && !demand::moves_codes(&node.op)
                && node.inputs.contains(&tensor);
            let bits_there = demand::side_path_bits(&self.plan.demands[g.result.0]);
            let product = matches!(node.op, Op::MatMul { .. }) && node.inputs.contains(&tensor);
            product || ((side || g.residual == Some(tensor)) && bits_there == bits)
        });
        let per_channel = matches!(
            graph.nodes[producer.head].op,
            Op::Conv(_) | Op::Linear(_) | Op::Affine { .. }
        );
        if read_elsewhere
            || !per_channel
            || constraints.per_tensor_scales
            || producer.clamp.0 > 0.0
            || (producer.clamp.0 < 0.0 && producer.clamp.0 > f32::NEG_INFINITY)
        {
            return None;
        }
        let op = &graph.nodes[self.group.head].op;
        let shape = graph.shape(tensor);
        equalize::factors(op, self.input, shape, constraints.power_of_two_scales)
    }
}

/// Samples of `size` values, evenly spaced, of at most `most` values in all.
fn every(values: &[f32], size: usize, most: usize) -> Cow<'_, [f32]> {
    match values.len().div_ceil(most) {
        1 => values.into(),
        step => values.chunks_exact(size).step_by(step).flatten().copied().collect(),
    }
}
