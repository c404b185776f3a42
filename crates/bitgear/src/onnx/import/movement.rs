//! Operators that only move values.

use super::window::{sample_axes, sample_axis};
use super::{Current, Importer, Value};
use crate::graph::{Op, SliceRange, TensorId};
use crate::onnx::constant::{Dim, elements};

impl Importer {
    pub(super) fn movement(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let name = node.name.clone();
        if node.proto.op_type == "Concat" {
            return self.concat(node);
        }
        let input = node.sample(0)?;
        let shape = self.shape(input).to_vec();
        let rank = shape.len();
        let output = match node.proto.op_type.as_str() {
            "Flatten" => {
                let axis = node.attributes.int("axis", 1);
                if axis != 1 && axis != -(rank as i64) {
                    return Err(format!("attribute `axis` = {axis} mixes samples or keeps axes"));
                }
                self.reshape(&name, input, vec![elements(&shape)?])?
            }
            "Reshape" => {
                let target = node.required(1)?.dims()?.to_vec();
                node.attributes.zero_keeps(target.contains(&Dim::Known(0)))?;
                let shape = reshaped(&shape, &target)?;
                self.reshape(&name, input, shape)?
            }
            "Squeeze" => {
                let axes = match (node.known(1)?, node.attributes.ints("axes")) {
                    (Some(axes), _) => sample_axes(&axes.to_ints()?, rank)?,
                    (None, Some(axes)) => sample_axes(axes, rank)?,
                    (None, None) => (0..rank).filter(|&axis| shape[axis] == 1).collect(),
                };
                if axes.iter().any(|&axis| shape[axis] != 1) {
                    return Err(format!("axes {axes:?} of shape {shape:?} are not all 1"));
                }
                let kept = (0..rank).filter(|a| !axes.contains(a)).map(|a| shape[a]).collect();
                self.reshape(&name, input, kept)?
            }
            "Unsqueeze" => {
                let given = match (node.known(1)?, node.attributes.ints("axes")) {
                    (Some(axes), _) => axes.to_ints()?,
                    (None, Some(axes)) => axes.to_vec(),
                    (None, None) => return Err("attribute `axes` is missing".to_owned()),
                };
                let mut shape = shape;
                for axis in sample_axes(&given, rank + given.len())? {
                    if axis > shape.len() {
                        return Err(format!("axis {axis} of shape {shape:?}"));
                    }
                    shape.insert(axis, 1);
                }
                self.reshape(&name, input, shape)?
            }
            "Transpose" => {
                let permutation = match node.attributes.ints("perm") {
                    Some(perm) => perm.to_vec(),
                    None => (0..=rank as i64).rev().collect(),
                };
                let [0, rest @ ..] = &permutation[..] else {
                    return Err(format!("permutation {permutation:?} moves the batch axis"));
                };
                let permutation =
                    rest.iter().map(|&axis| sample_axis(axis, rank)).collect::<Result<_, _>>()?;
                self.push(&name, Op::Transpose { permutation }, vec![input])?
            }
            "Slice" => self.slice(node, input)?,
            "Pad" => self.pad(node, input)?,
            other => return Err(format!("`{other}` of a computed tensor is not supported")),
        };
        Ok(Value::Sample(output))
    }

    fn concat(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let rank = node
            .inputs
            .iter()
            .flatten()
            .find_map(|v| if let Value::Sample(t) = v { Some(self.shape(*t).len()) } else { None })
            .ok_or("no operand is computed from the sample")?;
        let axis = sample_axis(node.attributes.int("axis", 0), rank)?;
        let mut operands = Vec::new();
        for value in node.inputs.clone().iter().flatten() {
            operands.push(match value {
                Value::Sample(tensor) => *tensor,
                Value::Known(constant) => self.constant(&node.name, constant, rank)?,
                Value::Broken => unreachable!("checked before"),
            });
        }
        self.push(&node.name, Op::Concat { axis }, operands).map(Value::Sample)
    }

    fn slice(&mut self, node: &Current<'_>, input: TensorId) -> Result<TensorId, String> {
        let shape = self.shape(input).to_vec();
        let mut ranges: Vec<SliceRange> =
            shape.iter().map(|&count| SliceRange { start: 0, count, step: 1 }).collect();
        for SliceArgument { start, end, axis, step } in slice_arguments(node)? {
            let batch = axis == 0 || axis == -(shape.len() as i64) - 1;
            if batch && start == 0 && end >= i64::from(i32::MAX) && step == 1 {
                // All samples.
                continue;
            }
            let axis = sample_axis(axis, shape.len())?;
            ranges[axis] = slice_range(start, end, step, shape[axis])?;
        }
        self.push(&node.name, Op::Slice { ranges }, vec![input])
    }

    fn pad(&mut self, node: &Current<'_>, input: TensorId) -> Result<TensorId, String> {
        let mode = node.attributes.text("mode", "constant");
        if mode != "constant" {
            return Err(format!("attribute `mode` = `{mode}` is not supported, only `constant`"));
        }
        let rank = self.shape(input).len();
        let given = node.required(1)?.to_ints()?;
        let value = match node.known(2)? {
            Some(value) => value.to_floats()?.first().copied().unwrap_or(0.0),
            None => 0.0,
        };
        let axes: Vec<i64> = match node.known(3)? {
            Some(axes) => axes.to_ints()?,
            None => (0..=rank as i64).collect(),
        };
        if given.len() != 2 * axes.len() {
            return Err(format!("expected {} pads, got {}", 2 * axes.len(), given.len()));
        }
        let mut pads = vec![(0, 0); rank];
        for (i, &axis) in axes.iter().enumerate() {
            let (before, after) = (given[i], given[i + axes.len()]);
            let size = |pad: i64| {
                usize::try_from(pad)
                    .ok()
                    .filter(|&p| p < 1 << 20)
                    .ok_or_else(|| format!("padding of {pad} is not supported"))
            };
            if (before, after) != (0, 0) {
                pads[sample_axis(axis, rank)?] = (size(before)?, size(after)?);
            }
        }
        self.push(&node.name, Op::Pad { pads, value }, vec![input])
    }

    pub(super) fn split(&mut self, node: &mut Current<'_>) -> Result<Vec<Value>, String> {
        let input = node.sample(0)?;
        let shape = self.shape(input).to_vec();
        let axis = sample_axis(node.attributes.int("axis", 0), shape.len())?;
        let parts = node.proto.output.len().max(1);
        node.attributes.ignore(&["num_outputs"]);
        let sizes: Vec<usize> = match (node.known(1)?, node.attributes.ints("split")) {
            (None, None) => {
                // Equal parts; the last one is smaller where they don't divide.
                let part = shape[axis].div_ceil(parts);
                (0..parts).map(|i| part.min(shape[axis].saturating_sub(i * part))).collect()
            }
            (given, attribute) => {
                let sizes = match given {
                    Some(sizes) => sizes.to_ints()?,
                    None => attribute.unwrap_or_default().to_vec(),
                };
                let sizes: Option<Vec<usize>> =
                    sizes.iter().map(|&s| usize::try_from(s).ok()).collect();
                sizes.ok_or("sizes must not be negative")?
            }
        };
        let total = sizes.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size));
        if sizes.len() != parts || total != Some(shape[axis]) {
            return Err(format!("parts {sizes:?} of {} on axis {axis}", shape[axis]));
        }
        let mut start = 0;
        let mut values = Vec::new();
        for (i, count) in sizes.into_iter().enumerate() {
            let mut ranges: Vec<SliceRange> =
                shape.iter().map(|&count| SliceRange { start: 0, count, step: 1 }).collect();
            ranges[axis] = SliceRange { start, count, step: 1 };
            start += count;
            let part =
                self.push(&format!("{}/{i}", node.name), Op::Slice { ranges }, vec![input])?;
            values.push(Value::Sample(part));
        }
        Ok(values)
    }
}

/// What a slice does along one axis, as ONNX writes it.
pub(super) struct SliceArgument {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) axis: i64,
    pub(super) step: i64,
}

pub(super) fn slice_arguments(node: &Current<'_>) -> Result<Vec<SliceArgument>, String> {
    let (starts, ends) = (node.required(1)?.to_ints()?, node.required(2)?.to_ints()?);
    let axes = match node.known(3)? {
        Some(axes) => axes.to_ints()?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match node.known(4)? {
        Some(steps) => steps.to_ints()?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return Err("starts, ends, axes and steps differ in length".to_owned());
    }
    let argument =
        |i: usize| SliceArgument { start: starts[i], end: ends[i], axis: axes[i], step: steps[i] };
    Ok((0..starts.len()).map(argument).collect())
}

/// ONNX's rules: negative counts from the end, everything is clamped to the axis.
pub(super) fn slice_range(
    start: i64,
    end: i64,
    step: i64,
    size: usize,
) -> Result<SliceRange, String> {
    if size == 0 {
        return Ok(SliceRange { start: 0, count: 0, step: 1 });
    }
    let n = size as i64;
    let from_end = |i: i64| if i < 0 { i.saturating_add(n) } else { i };
    let (start, end) = (from_end(start), from_end(end));
    let count = match step {
        0 => return Err("a step of 0".to_owned()),
        1.. => {
            let (start, end) = (start.clamp(0, n), end.clamp(0, n));
            (end - start).max(0).unsigned_abs().div_ceil(step.unsigned_abs())
        }
        _ => {
            let (start, end) = (start.clamp(-1, n - 1), end.clamp(-1, n - 1));
            (start - end).max(0).unsigned_abs().div_ceil(step.unsigned_abs())
        }
    };
    let start = if step > 0 { start.clamp(0, n) } else { start.clamp(0, n - 1) };
    let step = isize::try_from(step.clamp(-n - 1, n + 1)).map_err(|e| e.to_string())?;
    Ok(SliceRange { start: start.unsigned_abs() as usize, count: count as usize, step })
}

/// The sample's new shape. The first entry of the target stands for the batch (as itself, as 0 or -1,
/// or as 1 in a model of fixed batch 1); the rest must hold exactly one sample.
fn reshaped(shape: &[usize], target: &[Dim]) -> Result<Vec<usize>, String> {
    let total = elements(shape)?;
    let mixes = || {
        let name = |dim: &Dim| match dim {
            Dim::Known(n) => n.to_string(),
            Dim::Batch => "N".to_owned(),
        };
        let target: Vec<String> = target.iter().map(name).collect();
        format!("reshape of a sample {shape:?} to [{}] mixes samples", target.join(", "))
    };
    let Some((Dim::Batch | Dim::Known(-1..=1), rest)) = target.split_first() else {
        return Err(mixes());
    };
    let mut out = Vec::with_capacity(rest.len());
    let mut open = None;
    for (i, dim) in rest.iter().enumerate() {
        match *dim {
            Dim::Known(-1) if open.is_none() => {
                open = Some(i);
                out.push(1);
            }
            Dim::Known(0) => out.push(*shape.get(i).ok_or_else(mixes)?),
            Dim::Known(n) if n > 0 => out.push(n as usize),
            _ => return Err(mixes()),
        }
    }
    if let Some(open) = open {
        let rest = elements(&out)?;
        if rest == 0 || total % rest != 0 {
            return Err(mixes());
        }
        out[open] = total / rest;
    }
    if elements(&out)? == total { Ok(out) } else { Err(mixes()) }
}
