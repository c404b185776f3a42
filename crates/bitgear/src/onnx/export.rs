//! Writing an integer network as an ONNX file of QuantizeLinear and DequantizeLinear pairs, which
//! other engines run.
//!
//! Every map becomes a pair; between pairs everything is float. So another engine's result differs
//! from ours only where its float sum falls on the other side of a rounding boundary.

use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetId, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use crate::execute::{Format, IntegerModel, MacStep, MapId, NOWHERE, Requantization, Step};

const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// The network has no QDQ form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("point `{point}` cannot be exported: {reason}")]
pub struct ExportError {
    point: String,
    reason: String,
}

/// The ONNX file's bytes. Input `input` (N, sample shape), output `scores` (N, classes) in real
/// units.
///
/// # Errors
///
/// When weights or activations have more than 8 bits, or the input is neither image nor vector.
pub fn export_qdq(model: &IntegerModel) -> Result<Vec<u8>, ExportError> {
    let fail = |reason: String| ExportError { point: model.point.clone(), reason };
    for (name, bits) in model
        .maps
        .iter()
        .filter_map(|m| match &m.format {
            Format::Codes(scale) => Some((&m.name, scale.bits.get())),
            Format::Scores { .. } => None,
        })
        .chain(model.mac_steps().map(|m| (&m.name, m.weight_bits)))
    {
        if bits > 8 {
            return Err(fail(format!("`{name}` has {bits} bits, expected at most 8")));
        }
    }
    for step in &model.steps {
        let (name, kind) = match step {
            Step::MatMul(step) => (&step.name, "products of computed matrices"),
            Step::Island(step) => (&step.name, "float islands"),
            _ => continue,
        };
        return Err(fail(format!("`{name}`: {kind} are not supported in QDQ files")));
    }
    for mac in model.mac_steps() {
        if mac.codes.iter().any(|&code| i8::try_from(code).is_err()) {
            return Err(fail(format!("`{}` has weight codes beyond 8 bits", mac.name)));
        }
        // Versions whose channels have scales of their own stand for other values than the rest.
        let real = |output: &Requantization, c: usize| {
            f64::from(output.multipliers[c]) * model.maps[output.map].format.step()
        };
        let alike = |output: &Requantization| {
            (0..output.multipliers.len()).all(|c| {
                let (a, b) = (real(output, c), real(&mac.outputs[0], c));
                model.maps[output.map].format.is_sign() || (a - b).abs() <= 1e-5 * b.abs()
            })
        };
        if !mac.outputs.iter().all(alike) {
            return Err(fail(format!(
                "`{}`: versions of its result differ in the scales of their channels; quantize without equalization",
                mac.name
            )));
        }
    }
    if !matches!(model.input_shape.len(), 1 | 3) {
        return Err(fail(format!("input has shape {:?}", model.input_shape)));
    }
    let mut writer = Writer {
        model,
        nodes: Vec::new(),
        weights: Vec::new(),
        real: vec![String::new(); model.maps.len()],
    };
    writer.input();
    for (index, step) in model.steps.iter().enumerate() {
        writer.step(index, step);
    }
    let shape = writer.ints("scores/shape", &[-1, model.classes() as i64]);
    writer.node("Reshape", "scores", &[writer.real[model.scores].clone(), shape], Vec::new());
    Ok(writer.finish().encode_to_vec())
}

struct Writer<'m> {
    model: &'m IntegerModel,
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    /// Name of each map's real value, as (N, C, H, W).
    real: Vec<String>,
}

impl Writer<'_> {
    /// Adds a node whose only result has its own name.
    fn node(
        &mut self,
        kind: &str,
        name: &str,
        inputs: &[String],
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.nodes.push(NodeProto {
            input: inputs.to_vec(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: kind.to_owned(),
            attribute,
            domain: String::new(),
        });
        name.to_owned()
    }

    fn tensor(&mut self, name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) -> String {
        self.weights.push(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type,
            name: name.to_owned(),
            raw_data,
            ..TensorProto::default()
        });
        name.to_owned()
    }

    fn floats(&mut self, name: &str, dims: &[usize], values: &[f64]) -> String {
        let raw = values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect();
        self.tensor(name, dims, data_type::FLOAT, raw)
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, &[values.len()], data_type::INT64, raw)
    }

    /// One value per channel, as a tensor that broadcasts over (N, C, H, W).
    fn channels(&mut self, name: &str, values: &[f64]) -> String {
        self.floats(name, &[1, values.len(), 1, 1], values)
    }

    fn input(&mut self) {
        let mut name = "input".to_owned();
        if let [features] = self.model.input_shape[..] {
            let shape = self.ints("input/shape", &[-1, features as i64, 1, 1]);
            name = self.node("Reshape", "input/image", &[name, shape], Vec::new());
        }
        for &map in &self.model.inputs {
            self.quantize(map, name.clone());
        }
    }

    /// Rounds a real value into a map's codes and back.
    fn quantize(&mut self, map: MapId, real: String) {
        let name = format!("map{map}");
        let scale = *self.model.maps[map].scale();
        let step = self.floats(&format!("{name}/scale"), &[], &[scale.scale]);
        let zero = self.tensor(
            &format!("{name}/zero"),
            &[],
            data_type::UINT8,
            vec![scale.zero_code() as u8],
        );
        let codes = self.node(
            "QuantizeLinear",
            &format!("{name}/codes"),
            &[real, step.clone(), zero.clone()],
            Vec::new(),
        );
        self.real[map] = self.node("DequantizeLinear", &name, &[codes, step, zero], Vec::new());
    }

    /// Stores a step's real result in all its versions, each within its limits.
    fn store(&mut self, real: &str, outputs: &[Requantization]) {
        for output in outputs {
            let map = &self.model.maps[output.map];
            if let Format::Scores { .. } = map.format {
                real.clone_into(&mut self.real[output.map]);
                continue;
            }
            let bound = |code: i32| map.scale().value(code as u16);
            let name = format!("map{}/limit", output.map);
            let low = self.floats(&format!("{name}/low"), &[], &[bound(output.low)]);
            let high = self.floats(&format!("{name}/high"), &[], &[bound(output.high)]);
            let limited = self.node("Clip", &name, &[real.to_owned(), low, high], Vec::new());
            self.quantize(output.map, limited);
        }
    }

    /// What one unit of t is worth in each channel.
    fn units(&self, outputs: &[Requantization]) -> Vec<f64> {
        let first = &outputs[0];
        let step = self.model.maps[first.map].format.step();
        first.multipliers.iter().map(|&m| f64::from(m) * step).collect()
    }

    fn step(&mut self, index: usize, step: &Step) {
        let name = format!("step{index}");
        match step {
            Step::Mac(mac) => self.mac(&name, mac),
            Step::MatMul(_) | Step::Island(_) => unreachable!("refused before"),
            Step::Combine { operands, bias, outputs } => {
                let units = self.units(outputs);
                let mut sum: Option<String> = None;
                let mut offset: Vec<f64> =
                    bias.iter().zip(&units).map(|(&b, u)| b as f64 * u).collect();
                for (i, (map, multipliers)) in operands.iter().enumerate() {
                    let scale = *self.model.maps[*map].scale();
                    let factor: Vec<f64> = multipliers
                        .iter()
                        .zip(&units)
                        .map(|(&m, u)| m as f64 * u / scale.scale)
                        .collect();
                    for (offset, factor) in offset.iter_mut().zip(&factor) {
                        *offset += factor * scale.scale * f64::from(scale.zero_code());
                    }
                    let factor = self.channels(&format!("{name}/factor{i}"), &factor);
                    let term = self.node(
                        "Mul",
                        &format!("{name}/term{i}"),
                        &[self.real[*map].clone(), factor],
                        Vec::new(),
                    );
                    sum = Some(match sum {
                        None => term,
                        Some(sum) => {
                            self.node("Add", &format!("{name}/sum{i}"), &[sum, term], Vec::new())
                        }
                    });
                }
                let offset = self.channels(&format!("{name}/offset"), &offset);
                let sum = sum.unwrap_or_else(|| offset.clone());
                let real = self.node("Add", &name, &[sum, offset], Vec::new());
                self.store(&real, outputs);
            }
            Step::Product { a, b, outputs } => {
                let operands = [self.real[*a].clone(), self.real[*b].clone()];
                let real = self.node("Mul", &name, &operands, Vec::new());
                self.store(&real, outputs);
            }
            Step::Average { input, window, outputs } => {
                let from = &self.model.maps[*input].layout;
                // Equal multipliers divide by the whole window wherever it lies.
                let include = outputs[0].multipliers.windows(2).all(|m| m[0] == m[1]);
                let mut attributes = pool_attributes(window, [from.height, from.width]);
                attributes.push(int("count_include_pad", i64::from(include)));
                let real =
                    self.node("AveragePool", &name, &[self.real[*input].clone()], attributes);
                self.store(&real, outputs);
            }
            Step::MaxPool { input, window, output } => {
                let from = &self.model.maps[*input].layout;
                let attributes = pool_attributes(window, [from.height, from.width]);
                self.real[*output] =
                    self.node("MaxPool", &name, &[self.real[*input].clone()], attributes);
            }
            Step::Lookup { input, table, output } => {
                let to = *self.model.maps[*output].scale();
                let values: Vec<f64> = table.iter().map(|&code| to.value(code)).collect();
                let table = self.floats(&format!("{name}/table"), &[values.len()], &values);
                let codes = format!("map{input}/codes");
                let index =
                    self.node("Cast", &format!("{name}/index"), &[codes], vec![int("to", 7)]);
                self.real[*output] = self.node("Gather", &name, &[table, index], Vec::new());
            }
            Step::Gather { sources, output } => self.gather(&name, sources, *output),
        }
    }

    fn mac(&mut self, name: &str, mac: &MacStep) {
        let shape = &mac.shape;
        let units = self.units(&mac.outputs);
        let scale = *self.model.maps[mac.input].scale();
        let weight_scales: Vec<f64> =
            units.iter().map(|u| u * f64::from(1_u32 << mac.shift) / scale.scale).collect();
        let (taps, channels) = (shape.kernel[0] * shape.kernel[1], shape.group_channels());
        // (O, kH, kW, C) to (O, C, kH, kW).
        let codes = mac.codes.chunks_exact(taps * channels).flat_map(|filter| {
            (0..channels)
                .flat_map(move |c| (0..taps).map(move |tap| filter[tap * channels + c] as u8))
        });
        let dims = [shape.out_channels, channels, shape.kernel[0], shape.kernel[1]];
        let codes = self.tensor(&format!("{name}/codes"), &dims, data_type::INT8, codes.collect());
        let scales = self.floats(&format!("{name}/scales"), &[units.len()], &weight_scales);
        let weights = self.node(
            "DequantizeLinear",
            &format!("{name}/weights"),
            &[codes, scales],
            vec![int("axis", 0)],
        );
        // What was folded into the bias comes out again.
        let side = mac.residual.as_ref().map(|(map, m)| (*map, m, *self.model.maps[*map].scale()));
        let bias: Vec<f64> = mac
            .codes
            .chunks_exact(taps * channels)
            .enumerate()
            .map(|(c, filter)| {
                let sum: i64 = filter.iter().map(|&w| i64::from(w)).sum();
                let zeros = scale.twice_zero() * sum * (1_i64 << mac.shift) / 2;
                let side = side.as_ref().map_or(0, |(_, m, s)| m[c] * s.twice_zero() / 2);
                (mac.bias[c] + zeros + side) as f64 * units[c]
            })
            .collect();
        let bias = self.floats(&format!("{name}/bias"), &[units.len()], &bias);
        let layout = &shape.input;
        let far = |axis: usize, out: usize, size: usize| {
            let reach = (out - 1) * shape.strides[axis]
                + (shape.kernel[axis] - 1) * shape.dilations[axis]
                + 1;
            reach.saturating_sub(shape.pads[axis] + size)
        };
        let pads = [
            shape.pads[0],
            shape.pads[1],
            far(0, shape.out_height, layout.height),
            far(1, shape.out_width, layout.width),
        ];
        let attributes = vec![
            list("kernel_shape", &shape.kernel),
            list("strides", &shape.strides),
            list("dilations", &shape.dilations),
            list("pads", &pads),
            int("group", shape.groups as i64),
        ];
        let operand = self.real[mac.input].clone();
        let mut real =
            self.node("Conv", &format!("{name}/conv"), &[operand, weights, bias], attributes);
        if let Some((map, multipliers, side)) = side {
            let factor: Vec<f64> =
                multipliers.iter().zip(&units).map(|(&m, u)| m as f64 * u / side.scale).collect();
            let factor = self.channels(&format!("{name}/factor"), &factor);
            let term = self.node(
                "Mul",
                &format!("{name}/residual"),
                &[self.real[map].clone(), factor],
                Vec::new(),
            );
            real = self.node("Add", &format!("{name}/sum"), &[real, term], Vec::new());
        }
        self.store(&real, &mac.outputs);
    }

    /// All operands in one row with a zero at its end, from which elements are picked.
    fn gather(&mut self, name: &str, sources: &[(MapId, Vec<u32>)], output: MapId) {
        let to = self.model.maps[output].layout;
        let elements = to.height * to.width * to.channels;
        let mut parts = Vec::new();
        let mut picked = vec![None; elements];
        let mut start = 0;
        for (i, (map, indices)) in sources.iter().enumerate() {
            let from = self.model.maps[*map].layout;
            let shape = self.ints(&format!("{name}/flat{i}/shape"), &[0, -1]);
            parts.push(self.node(
                "Reshape",
                &format!("{name}/flat{i}"),
                &[self.real[*map].clone(), shape],
                Vec::new(),
            ));
            for (k, &index) in indices.iter().enumerate() {
                if index != NOWHERE {
                    // From memory to (C, H, W), on both sides.
                    let (pixel, channel) = (k / to.channels, k % to.channels);
                    let at = index as usize;
                    let y = at / from.row() - from.pads[0];
                    let x = at % from.row() / from.stride() - from.pads[1];
                    let c = at % from.stride();
                    picked[channel * to.height * to.width + pixel] =
                        Some(start + (c * from.height + y) * from.width + x);
                }
            }
            start += from.height * from.width * from.channels;
        }
        let first = parts[0].clone();
        let begin = self.ints(&format!("{name}/begin"), &[0]);
        let end = self.ints(&format!("{name}/end"), &[1]);
        let axes = self.ints(&format!("{name}/axes"), &[1]);
        let one =
            self.node("Slice", &format!("{name}/one"), &[first, begin, end, axes], Vec::new());
        let nothing = self.floats(&format!("{name}/nothing"), &[], &[0.0]);
        parts.push(self.node("Mul", &format!("{name}/zero"), &[one, nothing], Vec::new()));
        let row = self.node("Concat", &format!("{name}/row"), &parts, vec![int("axis", 1)]);
        let indices: Vec<i64> = picked.iter().map(|i| i.unwrap_or(start) as i64).collect();
        let indices = self.ints(&format!("{name}/indices"), &indices);
        let flat =
            self.node("Gather", &format!("{name}/flat"), &[row, indices], vec![int("axis", 1)]);
        let dims = [to.channels, to.height, to.width].map(|d| d as i64);
        let shape = self.ints(&format!("{name}/shape"), &[-1, dims[0], dims[1], dims[2]]);
        self.real[output] = self.node("Reshape", name, &[flat, shape], Vec::new());
    }

    fn finish(self) -> ModelProto {
        let classes = self.model.classes();
        let input: Vec<usize> = self.model.input_shape.clone();
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "bitgear".to_owned(),
            graph: Some(GraphProto {
                node: self.nodes,
                name: self.model.point.clone(),
                initializer: self.weights,
                input: vec![value("input", &input)],
                output: vec![value("scores", &[classes])],
            }),
            opset_import: vec![OperatorSetId { domain: String::new(), version: OPSET }],
        }
    }
}

fn pool_attributes(
    window: &bitgear_core::kernels::PoolShape,
    size: [usize; 2],
) -> Vec<AttributeProto> {
    let far = |axis: usize, out: usize| {
        let reach = (out - 1) * window.strides[axis] + window.kernel[axis];
        reach.saturating_sub(window.pads[axis] + size[axis])
    };
    let pads =
        [window.pads[0], window.pads[1], far(0, window.out_height), far(1, window.out_width)];
    vec![
        list("kernel_shape", &window.kernel),
        list("strides", &window.strides),
        list("pads", &pads),
    ]
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i, r#type: 2, ..AttributeProto::default() }
}

fn list(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&v| v as i64).collect();
    AttributeProto { name: name.to_owned(), ints, r#type: 7, ..AttributeProto::default() }
}

fn value(name: &str, sample: &[usize]) -> ValueInfoProto {
    let batch = DimensionProto { dim_value: None, dim_param: Some("N".to_owned()) };
    let dims =
        sample.iter().map(|&d| DimensionProto { dim_value: Some(d as i64), dim_param: None });
    let shape = TensorShapeProto { dim: [batch].into_iter().chain(dims).collect() };
    let tensor_type = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(shape) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type) }),
    }
}
