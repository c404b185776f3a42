//! One pass over the network: calibration samples flow through the float layers and, beside them,
//! through the quantized ones, and each layer is fitted when the samples reach it.
//!
//! Memory: two values per sample of every tensor that is still to be read. At most the operand and
//! result of one layer (and what an addition waits for) are alive.

use std::collections::BTreeSet;
use std::sync::Arc;

use bitgear_core::bits::BitWidth;
use rayon::prelude::*;

use super::equalize;
use super::fit::{Grid, LayerFit, MOST_COLUMNS, Request, Unfolded};
use super::lower::demand::{self, Demand};
use super::lower::group::{Group, groups};
use super::methods::{Constraints, Methods, RangeRule};
use super::parameters::{InputScale, LayerParameters, Parameters};
use super::{Point, Range, Ranges, mac_numbers};
use crate::float;
use crate::graph::{Graph, Op, TensorId};
use crate::tensor::Tensor;

/// Factors on the squared-error range that are tried by output error.
const CLIPS: [f64; 4] = [0.7, 0.85, 1.2, 1.45];
const POWER_OF_TWO_CLIPS: [f64; 2] = [0.5, 2.0];
/// Share of the usual rows that input scales are compared on.
const TRIAL_ROWS: f64 = 0.25;

pub(super) struct Pass<'a> {
    pub(super) graph: &'a Graph,
    pub(super) ranges: &'a Ranges,
    pub(super) point: &'a Point,
    pub(super) methods: Methods,
    pub(super) constraints: Constraints,
    pub(super) samples: usize,
}

/// All samples of one tensor.
type Values = Arc<Vec<f32>>;

/// What flows, and what has been decided.
struct State {
    float: Vec<Option<Values>>,
    quantized: Vec<Option<Values>>,
    parameters: Parameters,
}

impl Pass<'_> {
    /// Integers of all layers, fitted to `samples` (N, sample shape).
    pub(super) fn run(&self, samples: &Tensor) -> Parameters {
        let graph = self.graph;
        let numbers = mac_numbers(graph);
        let groups = groups(graph);
        let demands = demand::demands(graph, &groups, self.point, &numbers);
        let mut last_reader = vec![usize::MAX; graph.tensors.len()];
        for (index, group) in groups.iter().enumerate() {
            for tensor in graph.nodes[group.head].inputs.iter().chain(&group.residual) {
                last_reader[tensor.0] = index;
            }
        }
        let none = || vec![None; graph.tensors.len()];
        let mut state =
            State { float: none(), quantized: none(), parameters: Parameters::default() };
        let input: Values = Arc::new(samples.values().to_vec());
        state.float[graph.input.0] = Some(input.clone());
        state.quantized[graph.input.0] = Some(input);
        for node in &graph.nodes {
            if let Op::Constant(constant) = &node.op {
                let values: Values = Arc::new(constant.values().repeat(self.samples));
                state.float[node.output.0] = Some(values.clone());
                state.quantized[node.output.0] = Some(values);
            }
        }
        for (index, group) in groups.iter().enumerate() {
            match numbers[group.head] {
                Some(layer) => self.mac(group, layer, &groups, &demands, &mut state),
                None => self.side(group, &demands, &mut state),
            }
            for tensor in graph.nodes[group.head].inputs.iter().chain(&group.residual) {
                if last_reader[tensor.0] == index {
                    state.float[tensor.0] = None;
                    state.quantized[tensor.0] = None;
                }
            }
        }
        state.parameters
    }

    fn mac(
        &self,
        group: &Group,
        layer: usize,
        groups: &[Group],
        demands: &[BTreeSet<Demand>],
        state: &mut State,
    ) {
        let node = &self.graph.nodes[group.head];
        let (input, output) = (node.inputs[0], node.output);
        let float_input = state.float[input.0].clone().expect("operands are computed before");
        let quantized_input = state.quantized[input.0].clone().expect("operands come before");
        let mut float = self.apply(&node.op, &[(input, &float_input)], output);
        let residual = group.residual.map(|tensor| {
            let bits = demand::side_path_bits(&demands[group.result.0]);
            let quantized = self.read(tensor, bits, state);
            let exact: Values = state.float[tensor.0].clone().expect("operands are computed before");
            (exact, quantized)
        });
        let wanted = match (&residual, self.methods.residual_error) {
            (Some((exact, quantized)), true) => Some(sum(&float, &exact[..], quantized)),
            _ => None,
        };
        let (scale, fit) = {
            let wanted: &[f32] = wanted.as_deref().unwrap_or(&float);
            let work = Layer { pass: self, group, layer, input: &quantized_input, wanted, groups, demands };
            work.fit(&mut state.parameters)
        };
        let op = dequantized(&node.op, &fit);
        let read = self.quantize_all(&quantized_input, input, &scale);
        drop(quantized_input);
        let mut quantized = self.apply(&op, &[(input, &read)], output);
        drop(read);
        state.parameters.layers.push(LayerParameters {
            weights: fit.weights,
            bias: fit.bias,
            held_out_error: fit.held_out,
        });
        if let Some((exact, approximate)) = residual {
            add(&mut float, &exact);
            add(&mut quantized, &approximate);
        }
        self.store(group, float, quantized, state);
    }

    fn side(
        &self,
        group: &Group,
        demands: &[BTreeSet<Demand>],
        state: &mut State,
    ) {
        let node = &self.graph.nodes[group.head];
        let wanted = &demands[group.result.0];
        let exact: Vec<Values> = node
            .inputs
            .iter()
            .map(|t| state.float[t.0].clone().expect("operands are computed before"))
            .collect();
        let approximate: Vec<Values> = if demand::moves_codes(&node.op) {
            let operand = |t: &TensorId| state.quantized[t.0].clone().expect("computed before");
            node.inputs.iter().map(operand).collect()
        } else {
            let bits = demand::side_path_bits(wanted);
            node.inputs.iter().map(|&t| Arc::new(self.read(t, bits, state))).collect()
        };
        let run = |operands: &[Values]| {
            let operands: Vec<(TensorId, &[f32])> =
                node.inputs.iter().zip(operands).map(|(&t, v)| (t, &v[..])).collect();
            self.apply(&node.op, &operands, node.output)
        };
        let (float, quantized) = (run(&exact), run(&approximate));
        self.store(group, float, quantized, state);
    }

    /// Clamps and keeps a group's result.
    fn store(&self, group: &Group, mut float: Vec<f32>, mut quantized: Vec<f32>, state: &mut State) {
        let (low, high) = group.clamp;
        for values in [&mut float, &mut quantized] {
            if low > f32::NEG_INFINITY || high < f32::INFINITY {
                values.par_iter_mut().for_each(|v| *v = v.clamp(low, high));
            }
        }
        state.float[group.result.0] = Some(Arc::new(float));
        state.quantized[group.result.0] = Some(Arc::new(quantized));
    }

    /// What a step that is no MAC layer reads of a tensor.
    fn read(&self, tensor: TensorId, bits: BitWidth, state: &mut State) -> Vec<f32> {
        let scale = state
            .parameters
            .scales
            .entry((tensor, bits))
            .or_insert_with(|| InputScale::plain(self.side_scale(tensor, bits)))
            .clone();
        let values = state.quantized[tensor.0].as_ref().expect("operands are computed before");
        self.quantize_all(values, tensor, &scale)
    }

    fn side_scale(&self, tensor: TensorId, bits: BitWidth) -> crate::execute::ActivationScale {
        let rule = match self.methods.range {
            RangeRule::OutputError => RangeRule::SquaredError,
            rule => rule,
        };
        self.ranges.of(tensor).scale_by(rule, bits, false, self.constraints.power_of_two_scales)
    }

    fn quantize_all(&self, values: &[f32], tensor: TensorId, scale: &InputScale) -> Vec<f32> {
        let shape = self.graph.shape(tensor);
        let size: usize = shape.iter().product();
        let mut out = vec![0.0; values.len()];
        out.par_chunks_mut(size)
            .zip(values.par_chunks(size))
            .for_each(|(out, values)| scale.quantize(values, shape, out));
        out
    }

    /// An operator over all samples.
    fn apply(&self, op: &Op, operands: &[(TensorId, &[f32])], output: TensorId) -> Vec<f32> {
        let shape = self.graph.shape(output);
        let size: usize = shape.iter().product();
        let mut out = vec![0.0; self.samples * size];
        out.par_chunks_mut(size).enumerate().for_each(|(sample, out)| {
            let operands: Vec<(&[usize], &[f32])> = operands
                .iter()
                .map(|&(tensor, values)| {
                    let shape = self.graph.shape(tensor);
                    let size: usize = shape.iter().product();
                    (shape, &values[sample * size..][..size])
                })
                .collect();
            float::apply(op, &operands, shape, out);
        });
        out
    }
}

/// a + b - c
fn sum(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    a.par_iter().zip(b).zip(c).map(|((a, b), c)| a + (b - c)).collect()
}

fn add(a: &mut [f32], b: &[f32]) {
    a.par_iter_mut().zip(b).for_each(|(a, b)| *a += b);
}

/// The operator with its integers' real weights.
fn dequantized(op: &Op, fit: &LayerFit) -> Op {
    let row = fit.weights.codes.len() / fit.weights.scales.len();
    let weights = fit
        .weights
        .codes
        .chunks_exact(row)
        .zip(&fit.weights.scales)
        .flat_map(|(row, &scale)| row.iter().map(move |&q| (f64::from(q) * scale) as f32))
        .collect();
    let mut op = op.clone();
    let (weight, bias) = op.weight_and_bias_mut().expect("only MAC layers are fitted");
    *weight = Tensor::new(weight.shape().to_vec(), weights);
    bias.clone_from(&fit.bias);
    op
}

/// One MAC layer that the samples have reached.
struct Layer<'a> {
    pass: &'a Pass<'a>,
    group: &'a Group,
    layer: usize,
    /// Real values of its operand, before they are quantized.
    input: &'a [f32],
    /// What its result should be.
    wanted: &'a [f32],
    groups: &'a [Group],
    demands: &'a [BTreeSet<Demand>],
}

impl Layer<'_> {
    /// Decides the input's scale and the layer's integers.
    fn fit(&self, parameters: &mut Parameters) -> (InputScale, LayerFit) {
        let node = &self.pass.graph.nodes[self.group.head];
        let layers = self.pass.graph.mac_layers().len();
        let widths = self.pass.point.widths(self.layer, layers);
        let methods = if widths.weights.get().max(widths.activations.get()) >= Methods::EXACT_BITS
            && widths.weights.get() >= Methods::EXACT_BITS
        {
            Methods::plain()
        } else {
            self.pass.methods
        };
        let grid = Grid::new(widths.weights);
        let key = (node.inputs[0], widths.activations);
        let scale = match parameters.scales.get(&key) {
            Some(scale) => scale.clone(),
            None => self.input_scale(grid, methods, widths.activations),
        };
        let fit = self.fit_at(&scale, grid, methods);
        parameters.scales.insert(key, scale.clone());
        (scale, fit)
    }

    fn fit_at(&self, scale: &InputScale, grid: Grid, methods: Methods) -> LayerFit {
        self.with_request(scale, grid, methods, |request| {
            if request.columns > MOST_COLUMNS || !methods.needs_data() {
                let plain = Request { methods: Methods::plain(), ..request };
                return plain.nearest_fit();
            }
            request.fit(&self.moments(scale, 1.0))
        })
    }

    fn trial(&self, scale: &InputScale, grid: Grid, methods: Methods) -> f64 {
        self.with_request(scale, grid, methods, |request| {
            request.quick_error(&self.moments(scale, TRIAL_ROWS))
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
        let weights = equalize::apply(op, weight, &scale.factors);
        run(Request {
            weights: &weights,
            bias,
            columns: weight.shape()[1..].iter().product(),
            grid,
            limits: None,
            methods,
            constraints: self.pass.constraints,
        })
    }

    fn moments(&self, scale: &InputScale, share: f64) -> super::fit::LayerMoments {
        let graph = self.pass.graph;
        let node = &graph.nodes[self.group.head];
        let (in_shape, out_shape) = (graph.shape(node.inputs[0]), graph.shape(node.output));
        let in_size: usize = in_shape.iter().product();
        let out_size: usize = out_shape.iter().product();
        let unfolded = Unfolded::new(&node.op, in_shape, out_shape);
        unfolded.moments(
            self.pass.samples,
            share,
            &|sample, values| {
                values.resize(in_size, 0.0);
                scale.quantize(&self.input[sample * in_size..][..in_size], in_shape, values);
            },
            &|sample, element| self.wanted[sample * out_size + element],
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
        let zero_points =
            methods.zero_points && !self.pass.constraints.no_zero_points && bits.get() <= 6;
        let rule = match methods.range {
            RangeRule::OutputError => RangeRule::SquaredError,
            rule => rule,
        };
        let scale_of = |factors: Vec<f32>| {
            let values = InputScale::divided(self.input, self.pass.graph.shape(tensor), &factors);
            let range = Range::of_values(&values);
            let scale = range.scale_by(rule, bits, zero_points, power_of_two);
            InputScale { scale, factors }.within(self.clamp_high(tensor))
        };
        let mut best = scale_of(Vec::new());
        if !(few && methods.range == RangeRule::OutputError) && !methods.equalization {
            return best;
        }
        let mut error = self.trial(&best, grid, methods);
        let mut offer = |scale: InputScale, best: &mut InputScale| {
            let trial = self.trial(&scale, grid, methods);
            if trial < error {
                (error, *best) = (trial, scale);
            }
        };
        if methods.equalization
            && bits.get() <= 8
            && let Some(factors) = self.equalization(tensor, bits)
        {
            offer(scale_of(factors), &mut best);
        }
        if few && methods.range == RangeRule::OutputError {
            let clips: &[f64] = if power_of_two { &POWER_OF_TWO_CLIPS } else { &CLIPS };
            let base = best.clone();
            for clip in clips {
                let mut scale = base.clone();
                scale.scale.scale *= clip;
                offer(scale.within(self.clamp_high(tensor)), &mut best);
            }
        }
        best
    }

    /// Where the tensor is cut off above anyway.
    fn clamp_high(&self, tensor: TensorId) -> f32 {
        self.groups.iter().find(|g| g.result == tensor).map_or(f32::INFINITY, |g| g.clamp.1)
    }

    /// Factors of the input's channels, where the layers on both sides can take them in.
    fn equalization(&self, tensor: TensorId, bits: BitWidth) -> Option<Vec<f32>> {
        let graph = self.pass.graph;
        let constraints = self.pass.constraints;
        let producer = self.groups.iter().find(|g| g.result == tensor)?;
        // The version must be read by this layer alone, or by layers that take factors too.
        let read_elsewhere = self.groups.iter().any(|g| {
            let node = &graph.nodes[g.head];
            let side = !matches!(node.op, Op::Conv(_) | Op::Linear(_))
                && !demand::moves_codes(&node.op)
                && node.inputs.contains(&tensor);
            let bits_there = demand::side_path_bits(&self.demands[g.result.0]);
            (side || g.residual == Some(tensor)) && bits_there == bits
        });
        let per_channel = matches!(
            graph.nodes[producer.head].op,
            Op::Conv(_) | Op::Linear(_) | Op::Affine { .. }
        );
        if read_elsewhere || !per_channel || constraints.per_tensor_scales || producer.clamp.0 > 0.0
            || (producer.clamp.0 < 0.0 && producer.clamp.0 > f32::NEG_INFINITY)
        {
            return None;
        }
        let op = &graph.nodes[self.group.head].op;
        equalize::factors(op, self.input, graph.shape(tensor), constraints.power_of_two_scales)
    }
}
