//! Convolutions and fully connected layers.

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::{ConvShape, channel_bound};

use super::demand::Demand;
use super::{Group, Lowering, layout};
use crate::execute::{MacStep, MapId, Step};
use crate::graph::{Conv, Op};
use crate::quantize::{LayerParameters, Widths};

/// The accumulator is counted this finely: rounding the bias and the residual's multiplier to
/// whole units moves no result by more than this share of a code of 8 bits, or of the widest version.
const UNIT_ERROR: f64 = 1.0 / 16.0;
/// Most bits that the accumulator is shifted up.
const MAX_SHIFT: u32 = 24;
/// |t| stays below 2 to this power, where doubles still count every integer.
const TERM_BITS: u32 = 50;
/// Where |t| stays below 2 to this power, so do single-precision floats.
const SINGLE_BITS: u32 = 24;

impl Lowering<'_> {
    /// Gives the convolution's input the halo that its padding reads.
    pub(super) fn grow_halo(&mut self, group: &Group, conv: &Conv, bits: BitWidth) {
        let node = &self.graph.nodes[group.head];
        let map = self.version(node.inputs[0], bits);
        let layout = &mut self.maps[map].layout;
        let out = self.graph.shape(node.output);
        let (kh, kw) = (conv.weight.shape()[2], conv.weight.shape()[3]);
        // How far the last window reaches beyond the far edge.
        let beyond =
            |out: usize, stride: usize, kernel: usize, dilation: usize, pad, size: usize| {
                ((out - 1) * stride + (kernel - 1) * dilation + 1).saturating_sub(pad + size)
            };
        let [top, left, _, _] = conv.pads;
        let bottom = beyond(out[1], conv.strides[0], kh, conv.dilations[0], top, layout.height);
        let right = beyond(out[2], conv.strides[1], kw, conv.dilations[1], left, layout.width);
        for (pad, need) in layout.pads.iter_mut().zip([top, left, bottom, right]) {
            *pad = (*pad).max(need);
        }
    }

    /// Adds the step of a MAC layer with everything fused into it.
    pub(super) fn mac(&mut self, group: &Group, parameters: &LayerParameters, widths: Widths) {
        let node = &self.graph.nodes[group.head];
        let input = self.version(node.inputs[0], widths.activations);
        let in_layout = self.maps[input].layout;
        let out_layout = layout(self.graph.shape(node.output));
        let weights = &parameters.weights;
        let (shape, codes) = match &node.op {
            Op::Conv(conv) => (
                ConvShape {
                    input: in_layout,
                    out_channels: out_layout.channels,
                    out_height: out_layout.height,
                    out_width: out_layout.width,
                    kernel: [conv.weight.shape()[2], conv.weight.shape()[3]],
                    strides: conv.strides,
                    dilations: conv.dilations,
                    pads: [conv.pads[0], conv.pads[1]],
                    groups: conv.groups,
                },
                channels_last(&weights.codes, conv.weight.shape()),
            ),
            Op::Linear(_) => {
                if self.graph.shape(node.inputs[0]).len() > 2 {
                    self.problem(
                        group.head,
                        "fully connected layer over a tensor of rank 3 or more",
                    );
                    return;
                }
                (pointwise(in_layout, out_layout.channels), weights.codes.clone())
            }
            _ => unreachable!("only MAC layers come here"),
        };
        let residual = group.residual.map(|tensor| self.side_version(tensor, group.result));
        let step =
            self.epilogue(group, Layer { input, shape, codes, parameters, widths, residual });
        self.steps.push(Step::Mac(step));
    }

    /// Counts everything in units of the accumulator, shifted up until that is fine enough.
    fn epilogue(&self, group: &Group, layer: Layer<'_>) -> MacStep {
        let Layer { input, shape, codes, parameters, widths, residual } = layer;
        let LayerParameters { weights, bias, .. } = parameters;
        let in_scale = self.maps[input].scale();
        let channels = shape.out_channels;
        let per_channel = codes.len() / channels;
        let sums: Vec<i64> = codes
            .chunks_exact(per_channel)
            .map(|row| row.iter().map(|&c| i64::from(c)).sum())
            .collect();
        let bounds: Vec<(i64, i64)> = (0..channels)
            .map(|channel| channel_bound(&shape, &codes, widths.activations, channel))
            .collect();
        let unit = |channel: usize, shift: u32| {
            weights.scales[channel] * in_scale.scale / f64::from(1_u32 << shift)
        };
        let side = residual.map(|map| *self.maps[map].scale());
        let residual_codes = side.map_or(0, |scale| i64::from(scale.bits.code_max()));

        // In whole units of 2^coarse.
        let term = |c: usize, shift: u32, coarse: u32| -> (i64, i64) {
            let unit = unit(c, shift);
            let whole = |value: f64| {
                let units = f64::from(1_u32 << coarse);
                (value / unit / units).round_ties_even() as i64 * (1 << coarse)
            };
            let multiplier = side.map_or(0, |scale| whole(scale.scale));
            let side_zero = side.map_or(0, |scale| scale.twice_zero() / 2);
            let zeros = (in_scale.twice_zero() * sums[c] * (1_i64 << shift)) / 2;
            (whole(f64::from(bias[c])) - zeros - multiplier * side_zero, multiplier)
        };
        let most = |c: usize, (bias, multiplier): (i64, i64), shift: u32| {
            let (low, high) = bounds[c];
            let acc = i128::from(low.unsigned_abs().max(high.unsigned_abs())) << shift;
            let side = i128::from(multiplier.abs()) * i128::from(residual_codes);
            acc + i128::from(bias.abs()) + side
        };
        let fits =
            |shift: u32| (0..channels).all(|c| most(c, term(c, shift, 0), shift) < 1 << TERM_BITS);
        let steps = self.result_steps(group);
        let is_fine = |unit: f64| {
            let error = (1 + residual_codes) as f64 / 2.0;
            steps.iter().all(|step| unit.abs() / step * error <= UNIT_ERROR)
        };
        let fine_enough = |shift: u32| (0..channels).all(|c| is_fine(unit(c, shift)));
        // A sign's zero point is half a code, so its accumulator needs halves.
        let least = u32::from(in_scale.is_sign());
        let mut shift = least;
        while shift < MAX_SHIFT && !fine_enough(shift) && fits(shift + 1) {
            shift += 1;
        }
        // A channel of small weights has a small unit, and large terms: they are counted no more finely than
        // they must be, so that single precision is exact for them, too.
        let single = |c: usize| {
            let term = |&coarse: &u32| most(c, term(c, shift, coarse), shift) >> coarse;
            (0..=shift - least).find(|coarse| term(coarse) < 1 << SINGLE_BITS)
        };
        let (bias, multipliers) = (0..channels)
            .map(|c| {
                let is_allowed =
                    |&coarse: &u32| is_fine(unit(c, shift) * f64::from(1_u32 << coarse));
                term(c, shift, single(c).filter(is_allowed).unwrap_or(0))
            })
            .unzip();
        MacStep {
            name: self.graph.nodes[group.head].name.clone(),
            input,
            shape,
            weight_bits: widths.weights.get(),
            odd: parameters.odd,
            codes,
            shift,
            bias,
            residual: residual.map(|map| (map, multipliers)),
            outputs: self.requantizations(group, |c| unit(c, shift)),
        }
    }

    /// Worth of one code of each version of a group's result. Versions of fewer bits count as if
    /// they had 8, so that points which agree in a layer compute the same there, in whatever
    /// versions they store it.
    fn result_steps(&self, group: &Group) -> Vec<f64> {
        let byte = BitWidth::new(8).expect("8 is a bit-width");
        self.versions_of(group.result)
            .map(|(demand, map)| match demand {
                Demand::Codes { bits, origin } if bits < byte => {
                    self.ranges.of(origin).scale(byte).scale
                }
                _ => self.maps[map].format.step(),
            })
            .collect()
    }
}

struct Layer<'a> {
    input: MapId,
    shape: ConvShape,
    codes: Vec<i16>,
    parameters: &'a LayerParameters,
    widths: Widths,
    residual: Option<MapId>,
}

/// A 1 x 1 convolution over every pixel of `input`.
fn pointwise(input: bitgear_core::kernels::MapLayout, out_channels: usize) -> ConvShape {
    ConvShape {
        input,
        out_channels,
        out_height: input.height,
        out_width: input.width,
        kernel: [1, 1],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [0, 0],
        groups: 1,
    }
}

/// (O, C, kH, kW) to (O, kH, kW, C).
fn channels_last(codes: &[i16], shape: &[usize]) -> Vec<i16> {
    let (channels, window) = (shape[1], shape[2] * shape[3]);
    codes
        .chunks_exact(channels * window)
        .flat_map(|filter| {
            (0..window).flat_map(move |tap| (0..channels).map(move |c| filter[c * window + tap]))
        })
        .collect()
}
