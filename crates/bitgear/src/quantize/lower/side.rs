//! Everything between MAC layers that computes: sums, products, averages, tables.

use bitgear_core::kernels::PoolShape;

use super::{Group, Lowering, layout, requantization};
use crate::execute::{ActivationScale, Step};
use crate::float;
use crate::graph::{Activation, Binary, Op, Pool, TensorId};

/// An operand of a sum is multiplied by about 2 to the power of its width plus this, so that
/// rounding the multiplier moves no code by more than 2 to minus this power.
const SPARE_BITS: u32 = 4;

impl Lowering<'_> {
    /// Adds the step of a group that is no MAC layer.
    pub(super) fn side_step(&mut self, group: &Group) {
        let node = &self.graph.nodes[group.head];
        let (inputs, output) = (node.inputs.clone(), node.output);
        match &node.op {
            Op::Reshape
            | Op::Transpose { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::Pad { .. } => self.movement(group),
            Op::MaxPool(pool) => self.max_pool(inputs[0], output, *pool),
            Op::Activation(activation) => self.lookup(inputs[0], output, *activation),
            Op::Affine { axis, scale, shift } => {
                let channel_axis = usize::from(self.graph.shape(output).len() == 2);
                if *axis == channel_axis {
                    let (scale, shift) = (scale.clone(), shift.clone());
                    self.affine(group, inputs[0], &scale, &shift);
                } else {
                    self.problem(
                        group.head,
                        "scale and shift along an axis that isn't the channel",
                    );
                }
            }
            Op::Binary(op @ (Binary::Add | Binary::Sub)) => {
                let sign = if *op == Binary::Add { 1 } else { -1 };
                self.sum(group, inputs[0], inputs[1], sign);
            }
            Op::Binary(Binary::Mul) => self.product(group, inputs[0], inputs[1]),
            Op::Binary(Binary::Div) => self.problem(group.head, "division by a computed tensor"),
            Op::AveragePool { pool, count_padding } => {
                self.average(group, window(*pool, self.graph.shape(output)), *count_padding);
            }
            Op::Mean { axes, .. } => {
                let shape = self.graph.shape(inputs[0]);
                // Over all pixels of an image, or over all steps of a sequence.
                let pixels = match shape {
                    [_, h, w] if axes[..] == [1, 2] => Some([*h, *w]),
                    [_, h, 1] if axes[..] == [1] => Some([*h, 1]),
                    [_, 1, w] if axes[..] == [2] => Some([1, *w]),
                    [t, _] if axes[..] == [0] => Some([*t, 1]),
                    _ => None,
                };
                match pixels {
                    Some(kernel) => {
                        let whole = PoolShape {
                            kernel,
                            strides: [1, 1],
                            pads: [0, 0],
                            out_height: 1,
                            out_width: 1,
                        };
                        self.average(group, whole, false);
                    }
                    None => self.problem(group.head, "mean over axes other than all pixels"),
                }
            }
            Op::LayerNorm { .. } | Op::Softmax => self.island(group),
            Op::Conv(_) | Op::Linear(_) | Op::MatMul { .. } | Op::Constant(_) => {
                unreachable!("MAC layers and constants are no side steps")
            }
        }
    }

    fn max_pool(&mut self, input: TensorId, output: TensorId, pool: Pool) {
        let window = window(pool, self.graph.shape(output));
        for (demand, map) in self.versions_of(output).collect::<Vec<_>>() {
            let input = self.versions[&(input, demand)];
            self.steps.push(Step::MaxPool { input, window, output: map });
        }
    }

    fn lookup(&mut self, input: TensorId, output: TensorId, activation: Activation) {
        let source = self.side_version(input, output);
        let from = *self.maps[source].scale();
        for (_, map) in self.versions_of(output).collect::<Vec<_>>() {
            let to = *self.maps[map].scale();
            let table = (0..=from.bits.code_max())
                .map(|code| to.code(float::activation(activation, from.value(code as u16))))
                .collect();
            self.steps.push(Step::Lookup { input: source, table, output: map });
        }
    }

    /// t counts in units of input step / 2^n times the channel's scale, which becomes a power of
    /// two: exact but for the shift.
    fn affine(&mut self, group: &Group, input: TensorId, scale: &[f32], shift: &[f32]) {
        let map = self.side_version(input, group.result);
        let from = *self.maps[map].scale();
        let factor = 1_i64 << (u32::from(from.bits.get()) + SPARE_BITS);
        let unit = |c: usize| {
            let scale = if scale[c] == 0.0 { 1.0 } else { f64::from(scale[c]) };
            from.scale * scale / factor as f64
        };
        let multipliers: Vec<i64> =
            scale.iter().map(|&s| if s == 0.0 { 0 } else { factor }).collect();
        let bias = (0..shift.len())
            .map(|c| {
                let shift = (f64::from(shift[c]) / unit(c)).round_ties_even() as i64;
                shift.clamp(-TERM_LIMIT, TERM_LIMIT) - multipliers[c] * zero(&from)
            })
            .collect();
        let outputs = self.requantizations(group, unit);
        self.steps.push(Step::Combine { operands: vec![(map, multipliers)], bias, outputs });
    }

    fn sum(&mut self, group: &Group, a: TensorId, b: TensorId, sign: i64) {
        let channels = layout(self.graph.shape(group.result)).channels;
        if ![a, b].iter().all(|&operand| self.broadcasts(operand, group.result)) {
            self.problem(group.head, "operands that broadcast other than over pixels or channels");
            return;
        }
        let maps = [a, b].map(|operand| self.side_version(operand, group.result));
        let [from_a, from_b] = maps.map(|map| *self.maps[map].scale());
        let bits = u32::from(from_a.bits.max(from_b.bits).get());
        let unit = from_a.scale.min(from_b.scale) / (1_u64 << (bits + SPARE_BITS)) as f64;
        let multiplier = |from: &ActivationScale, sign: i64| {
            sign * ((from.scale / unit).round_ties_even() as i64).min(TERM_LIMIT)
        };
        let multipliers = [multiplier(&from_a, 1), multiplier(&from_b, sign)];
        let bias = -(multipliers[0] * zero(&from_a) + multipliers[1] * zero(&from_b));
        let outputs = self.requantizations(group, |_| unit);
        self.steps.push(Step::Combine {
            operands: maps.iter().zip(multipliers).map(|(&m, k)| (m, vec![k; channels])).collect(),
            bias: vec![bias; channels],
            outputs,
        });
    }

    fn product(&mut self, group: &Group, a: TensorId, b: TensorId) {
        if ![a, b].iter().all(|&operand| self.broadcasts(operand, group.result)) {
            self.problem(group.head, "operands that broadcast other than over pixels or channels");
            return;
        }
        let [a, b] = [a, b].map(|operand| self.side_version(operand, group.result));
        let unit = self.maps[a].scale().scale * self.maps[b].scale().scale;
        let outputs = self.requantizations(group, |_| unit);
        self.steps.push(Step::Product { a, b, outputs });
    }

    /// Whether the operand's map covers the result's, or repeats over its pixels or channels.
    fn broadcasts(&self, operand: TensorId, result: TensorId) -> bool {
        let (shape, whole) = (self.graph.shape(operand), self.graph.shape(result));
        let (a, b) = (layout(shape), layout(whole));
        let one_pixel = a.height == 1 && a.width == 1;
        let pixels = one_pixel || (a.height == b.height && a.width == b.width);
        let channels = a.channels == 1 || a.channels == b.channels;
        // A vector aligns with the last axis, which is the channel only of vectors and sequences.
        let aligned = shape.len() == whole.len() || (shape.len() < 2 && whole.len() < 3);
        aligned && pixels && channels
    }

    fn average(&mut self, group: &Group, window: PoolShape, count_padding: bool) {
        let input = self.graph.nodes[group.head].inputs[0];
        let map = self.side_version(input, group.result);
        let whole = window.kernel[0] * window.kernel[1];
        let units: Vec<f64> = (1..=whole)
            .map(|count| {
                let divisor = if count_padding { whole } else { count };
                self.maps[map].scale().scale / divisor as f64
            })
            .collect();
        let outputs = self
            .versions_of(group.result)
            .map(|(_, out)| requantization(out, &self.maps[out], group.clamp, &units))
            .collect();
        self.steps.push(Step::Average { input: map, window, outputs });
    }
}

/// Terms of sums stay far below the 2^53 up to which doubles count every integer.
const TERM_LIMIT: i64 = 1 << 48;

/// The zero point; side paths are never as narrow as a sign.
fn zero(scale: &ActivationScale) -> i64 {
    scale.twice_zero() / 2
}

fn window(pool: Pool, out: &[usize]) -> PoolShape {
    PoolShape {
        kernel: pool.kernel,
        strides: pool.strides,
        pads: [pool.pads[0], pool.pads[1]],
        out_height: out[1],
        out_width: out[2],
    }
}
