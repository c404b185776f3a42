//! One pass over the network: calibration samples flow through the float layers and, beside them,
//! through the quantized ones, and each layer is fitted when the samples reach it.
//!
//! Memory: two values per sample of every tensor that is still to be read. At most the operand and
//! result of one layer (and what an addition waits for) are alive.

use std::collections::BTreeSet;
use std::sync::Arc;

use bitgear_core::bits::BitWidth;
use rayon::prelude::*;

use super::layer::Layer;
use super::lower::demand::{self, Demand};
use super::lower::group::{Group, groups};
use super::methods::{Constraints, Methods, RangeRule};
use super::nest::LayerNest;
use super::parameters::{InputScale, LayerParameters, Parameters};
use super::{Point, Ranges, Widths, mac_numbers};
use crate::float;
use crate::graph::{Graph, Op, TensorId};
use crate::tensor::Tensor;
use crate::vector::vectorized;

pub(super) struct Pass<'a> {
    pub(super) graph: &'a Graph,
    pub(super) ranges: &'a Ranges,
    pub(super) point: &'a Point,
    pub(super) methods: Methods,
    pub(super) constraints: Constraints,
    pub(super) samples: usize,
}

/// Values that one thread looks at at a time.
const PART: usize = 1 << 16;

/// All samples of one tensor.
pub(super) type Values = Arc<Vec<f32>>;

/// What runs in which order, and what it asks of its operands.
pub(super) struct Plan {
    pub(super) groups: Vec<Group>,
    /// Number of the MAC layer of each node.
    pub(super) numbers: Vec<Option<usize>>,
    /// How many MAC layers there are.
    pub(super) layers: usize,
    pub(super) demands: Vec<BTreeSet<Demand>>,
    /// The last group that reads each tensor.
    last_reader: Vec<usize>,
}

impl Plan {
    pub(super) fn new(graph: &Graph, point: &Point) -> Self {
        let numbers = mac_numbers(graph);
        let groups = groups(graph);
        let demands = demand::demands(graph, &groups, point, &numbers);
        let mut last_reader = vec![usize::MAX; graph.tensors.len()];
        for (index, group) in groups.iter().enumerate() {
            for tensor in operands(graph, group) {
                last_reader[tensor.0] = index;
            }
        }
        let layers = numbers.iter().flatten().count();
        Self { groups, numbers, layers, demands, last_reader }
    }

    /// Where a tensor is cut off above anyway.
    pub(super) fn clamp_high(&self, tensor: TensorId) -> f32 {
        self.groups.iter().find(|g| g.result == tensor).map_or(f32::INFINITY, |g| g.clamp.1)
    }

    /// Tensors that group `index` is the last to read.
    pub(super) fn released<'p>(
        &'p self,
        graph: &'p Graph,
        index: usize,
    ) -> impl Iterator<Item = TensorId> + 'p {
        operands(graph, &self.groups[index]).filter(move |t| self.last_reader[t.0] == index)
    }
}

/// Bytes that one sample takes at most on its way: two values of every tensor that is alive.
pub(super) fn bytes_per_sample(graph: &Graph) -> usize {
    let plan = Plan::new(graph, &Point::widest());
    let size = |t: TensorId| graph.shape(t).iter().product::<usize>();
    let mut alive = size(graph.input);
    let mut most = alive;
    for (index, group) in plan.groups.iter().enumerate() {
        // A layer's operand is there as it is and quantized, its result with what is wanted of it.
        let inner = size(graph.nodes[group.head].output);
        most = most.max(alive + operands(graph, group).map(size).sum::<usize>() + 2 * inner);
        alive += size(group.result);
        alive -= plan.released(graph, index).map(size).sum::<usize>().min(alive);
    }
    2 * size_of::<f32>() * most
}

/// Everything that a group reads.
fn operands<'g>(graph: &'g Graph, group: &'g Group) -> impl Iterator<Item = TensorId> + 'g {
    graph.nodes[group.head].inputs.iter().chain(&group.residual).copied()
}

/// What flows, and what has been decided.
struct State {
    float: Vec<Option<Values>>,
    quantized: Vec<Option<Values>>,
    parameters: Parameters,
}

impl Pass<'_> {
    /// Integers of all layers, fitted to `samples` (N, sample shape).
    /// `nests`, one per layer if any, say what earlier points leave free, and take in what is fitted.
    pub(super) fn run(&self, samples: &Tensor, nests: &mut [LayerNest]) -> Parameters {
        let graph = self.graph;
        let plan = Plan::new(graph, self.point);
        let float = self.inputs(samples);
        let parameters = Parameters {
            layers: vec![LayerParameters::default(); plan.layers],
            ..Parameters::default()
        };
        let mut state = State { quantized: float.clone(), float, parameters };
        for (index, group) in plan.groups.iter().enumerate() {
            let layer = plan.numbers[group.head];
            match layer.filter(|_| graph.nodes[group.head].op.weight_and_bias().is_some()) {
                Some(layer) => self.mac(group, layer, &plan, nests.get_mut(layer), &mut state),
                None => self.side(group, &plan, &mut state),
            }
            for tensor in plan.released(graph, index) {
                state.float[tensor.0] = None;
                state.quantized[tensor.0] = None;
            }
        }
        state.parameters
    }

    fn mac(
        &self,
        group: &Group,
        layer: usize,
        plan: &Plan,
        nest: Option<&mut LayerNest>,
        state: &mut State,
    ) {
        let node = &self.graph.nodes[group.head];
        let (input, output) = (node.inputs[0], node.output);
        let float_input = state.float[input.0].clone().expect("operands are computed before");
        let quantized_input = state.quantized[input.0].clone().expect("operands come before");
        let mut float = self.apply(&node.op, &[(input, &float_input)], output);
        let residual = group.residual.map(|tensor| {
            let bits = demand::side_path_bits(&plan.demands[group.result.0]);
            let quantized = self.read(tensor, bits, state);
            let exact: Values =
                state.float[tensor.0].clone().expect("operands are computed before");
            (exact, quantized)
        });
        let corrected = match (&residual, self.methods.residual_error) {
            (Some((exact, quantized)), true) => Some(sum(&float, exact, quantized)),
            _ => None,
        };
        let work = Layer {
            pass: self,
            group,
            number: layer,
            input: &quantized_input,
            wanted: corrected.as_deref().unwrap_or(&float),
            residual: residual.as_ref().map(|(_, quantized)| &quantized[..]),
            plan,
            nest: nest.as_deref(),
        };
        let (fit, mut quantized) = work.fit(&mut state.parameters);
        drop(corrected);
        // Layers run in another order than they are numbered in where one takes in an addition.
        let Widths { weights: bits, activations } = self.point.widths(layer, plan.layers);
        let fitted = LayerParameters {
            odd: nest.as_deref().map_or(fit.odd, |nest| nest.is_odd(bits)),
            weights: fit.weights,
            bias: fit.bias,
            held_out_error: fit.held_out,
        };
        if let Some(nest) = nest {
            nest.take(bits, &fitted, &state.parameters.scales[&(input, activations)].factors);
        }
        state.parameters.layers[layer] = fitted;
        if let Some((exact, approximate)) = residual {
            add(&mut float, &exact);
            add(&mut quantized, &approximate);
        }
        store(group, float, quantized, state);
    }

    fn side(&self, group: &Group, plan: &Plan, state: &mut State) {
        let node = &self.graph.nodes[group.head];
        let exact: Vec<Values> = node
            .inputs
            .iter()
            .map(|t| state.float[t.0].clone().expect("operands are computed before"))
            .collect();
        let approximate: Vec<Values> = if demand::moves_codes(&node.op) {
            let operand = |t: &TensorId| state.quantized[t.0].clone().expect("computed before");
            node.inputs.iter().map(operand).collect()
        } else {
            let read = |(&t, bits)| self.read(t, bits, state).into();
            node.inputs.iter().zip(self.operand_bits(group, plan)).map(read).collect()
        };
        let run = |operands: &[Values]| {
            let operands: Vec<(TensorId, &[f32])> =
                node.inputs.iter().zip(operands).map(|(&t, v)| (t, &v[..])).collect();
            self.apply(&node.op, &operands, node.output)
        };
        let (float, quantized) = (run(&exact), run(&approximate));
        store(group, float, quantized, state);
    }

    /// Widths of the operands of a group that has no weights: a product of computed matrices has
    /// those of its layer, everything else that of a side path.
    pub(super) fn operand_bits(&self, group: &Group, plan: &Plan) -> Vec<BitWidth> {
        let side = demand::side_path_bits(&plan.demands[group.result.0]);
        match plan.numbers[group.head] {
            Some(layer) => {
                let Widths { weights, activations } = self.point.widths(layer, plan.layers);
                vec![activations, weights]
            }
            None => vec![side; self.graph.nodes[group.head].inputs.len()],
        }
    }

    /// What a step without weights reads of a tensor.
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

    pub(super) fn side_scale(
        &self,
        tensor: TensorId,
        bits: BitWidth,
    ) -> crate::execute::ActivationScale {
        let rule = match self.methods.range {
            RangeRule::OutputError => RangeRule::SquaredError,
            rule => rule,
        };
        self.ranges.of(tensor).scale_by(rule, bits, false, self.constraints.power_of_two_scales)
    }

    pub(super) fn quantize_all(
        &self,
        values: &[f32],
        tensor: TensorId,
        scale: &InputScale,
    ) -> Vec<f32> {
        let shape = self.graph.shape(tensor);
        let size: usize = shape.iter().product();
        let mut out = vec![0.0; values.len()];
        out.par_chunks_mut(size)
            .zip(values.par_chunks(size))
            .for_each(|(out, values)| scale.quantize(values, shape, out));
        out
    }

    /// An operator over all samples.
    pub(super) fn apply(
        &self,
        op: &Op,
        operands: &[(TensorId, &[f32])],
        output: TensorId,
    ) -> Vec<f32> {
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

    /// The network's input and constants, for all samples.
    pub(super) fn inputs(&self, samples: &Tensor) -> Vec<Option<Values>> {
        let mut values = vec![None; self.graph.tensors.len()];
        let len = samples.values().len() / samples.shape()[0] * self.samples;
        values[self.graph.input.0] = Some(Values::new(samples.values()[..len].to_vec()));
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
            add(&mut result, value(residual));
        }
        let (low, high) = group.clamp;
        clamp(&mut result, [low, high]);
        result.into()
    }
}

/// Clamps and keeps a group's result.
fn store(group: &Group, mut float: Vec<f32>, mut quantized: Vec<f32>, state: &mut State) {
    let (low, high) = group.clamp;
    for values in [&mut float, &mut quantized] {
        if low > f32::NEG_INFINITY || high < f32::INFINITY {
            clamp(values, [low, high]);
        }
    }
    state.float[group.result.0] = Some(float.into());
    state.quantized[group.result.0] = Some(quantized.into());
}

fn clamp(values: &mut [f32], [low, high]: [f32; 2]) {
    values.par_chunks_mut(PART).for_each(|part| {
        vectorized(move || part.iter_mut().for_each(|v| *v = v.clamp(low, high)));
    });
}

/// a + b - c
fn sum(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    a.par_iter().zip(b).zip(c).map(|((a, b), c)| a + (b - c)).collect()
}

fn add(a: &mut [f32], b: &[f32]) {
    a.par_chunks_mut(PART).zip(b.par_chunks(PART)).for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    });
}
