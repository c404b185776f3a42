//! Nodes whose operands are all known, above all the arithmetic on shapes that exporters leave
//! behind: evaluated while importing.

use super::movement::{SliceArgument, slice_arguments, slice_range};
use super::{Current, Importer, Value};
use crate::onnx::constant::{Constant, Dim, Values, elements};

/// Operators that can be evaluated.
pub(super) fn is_arithmetic(operator: &str) -> bool {
    matches!(
        operator,
        "Constant"
            | "ConstantOfShape"
            | "Shape"
            | "Gather"
            | "Cast"
            | "Concat"
            | "Slice"
            | "Squeeze"
            | "Unsqueeze"
            | "Reshape"
            | "Identity"
            | "Transpose"
            | "Add"
            | "Sub"
            | "Mul"
            | "Div"
            | "Equal"
            | "Where"
            | "Expand"
    )
}

impl Importer {
    pub(super) fn arithmetic(&self, node: &Current<'_>) -> Result<Constant, String> {
        match node.proto.op_type.as_str() {
            "Constant" => constant(node),
            "ConstantOfShape" => {
                let shape = sizes(&node.required(0)?.to_ints()?)?;
                let len = elements(&shape)?;
                match node.attributes.tensor("value") {
                    None => Ok(Constant::floats(shape, vec![0.0; len])),
                    Some(value) => Constant::read(value)?.pick(shape, &vec![0; len]),
                }
            }
            "Shape" => {
                let dims: Vec<Dim> = match node.inputs.first() {
                    Some(Some(Value::Sample(tensor))) => core::iter::once(Dim::Batch)
                        .chain(self.shape(*tensor).iter().map(|&d| Dim::Known(d as i64)))
                        .collect(),
                    Some(Some(Value::Known(c))) => {
                        c.shape.iter().map(|&d| Dim::Known(d as i64)).collect()
                    }
                    _ => return Err("operand 0 is missing".to_owned()),
                };
                let (start, end) =
                    (node.attributes.int("start", 0), node.attributes.int("end", i64::MAX));
                let range = slice_range(start, end, 1, dims.len())?;
                let dims = dims[range.start..range.start + range.count].to_vec();
                Ok(Constant { shape: vec![dims.len()], values: Values::Ints(dims) })
            }
            "Identity" => node.required(0).cloned(),
            "Cast" => {
                let c = node.required(0)?;
                match node.attributes.int("to", 1) {
                    1 => Ok(Constant::floats(c.shape.clone(), c.to_floats()?)),
                    6 | 7 => match &c.values {
                        Values::Ints(_) => Ok(c.clone()),
                        Values::Floats(v) => {
                            Ok(Constant::ints(c.shape.clone(), v.iter().map(|&f| f.trunc() as i64)))
                        }
                    },
                    to => Err(format!("cast to data type {to} is not supported")),
                }
            }
            "Gather" => gather(node),
            "Concat" => concat(node),
            "Equal" => equal(node),
            "Where" => choose(node),
            "Expand" => expand(node),
            "Slice" => slice(node),
            "Transpose" => transpose(node),
            "Squeeze" | "Unsqueeze" | "Reshape" => reshape(node),
            _ => binary(node),
        }
    }
}

fn constant(node: &Current<'_>) -> Result<Constant, String> {
    let a = &node.attributes;
    if let Some(tensor) = a.tensor("value") {
        Constant::read(tensor)
    } else if a.has("value_float") {
        Ok(Constant::floats(Vec::new(), vec![a.float("value_float", 0.0)]))
    } else if a.has("value_int") {
        Ok(Constant::ints(Vec::new(), [a.int("value_int", 0)]))
    } else if let Some(values) = a.floats("value_floats") {
        Ok(Constant::floats(vec![values.len()], values.to_vec()))
    } else if let Some(values) = a.ints("value_ints") {
        Ok(Constant::ints(vec![values.len()], values.iter().copied()))
    } else {
        Err("no supported value".to_owned())
    }
}

fn sizes(values: &[i64]) -> Result<Vec<usize>, String> {
    let sizes: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok()).collect();
    sizes.ok_or_else(|| format!("{values:?} is no shape"))
}

fn axis_of(axis: i64, rank: usize) -> Result<usize, String> {
    let positive = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(positive)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| format!("axis {axis} of a tensor of rank {rank}"))
}

/// Row-major indices of `shape` after each coordinate passed through `map`, which sees the
/// coordinates of the result.
fn indices(
    out: &[usize],
    shape: &[usize],
    map: impl Fn(usize, &[usize]) -> usize,
) -> Result<Vec<usize>, String> {
    let len = elements(out)?;
    let mut at = vec![0; out.len()];
    Ok((0..len)
        .map(|mut i| {
            for (place, &size) in at.iter_mut().zip(out).rev() {
                *place = i % size;
                i /= size;
            }
            (0..shape.len()).fold(0, |index, axis| index * shape[axis] + map(axis, &at))
        })
        .collect())
}

fn gather(node: &Current<'_>) -> Result<Constant, String> {
    let (data, at) = (node.required(0)?, node.required(1)?);
    let axis = axis_of(node.attributes.int("axis", 0), data.shape.len())?;
    let size = data.shape[axis];
    let wanted: Vec<usize> =
        at.to_ints()?.iter().map(|&i| axis_of(i, size)).collect::<Result<_, _>>()?;
    let (before, after) = (&data.shape[..axis], &data.shape[axis + 1..]);
    let shape = [before, &at.shape, after].concat();
    let inner = elements(after)?;
    let mut picked = Vec::with_capacity(elements(&shape)?);
    for outer in 0..elements(before)? {
        for &index in &wanted {
            picked.extend((0..inner).map(|i| (outer * size + index) * inner + i));
        }
    }
    data.pick(shape, &picked)
}

fn concat(node: &Current<'_>) -> Result<Constant, String> {
    let parts = (0..node.inputs.len()).map(|i| node.required(i)).collect::<Result<Vec<_>, _>>()?;
    let first = parts.first().ok_or("no operands")?;
    let axis = axis_of(node.attributes.int("axis", 0), first.shape.len())?;
    let (mut shape, outer) = (first.shape.clone(), elements(&first.shape[..axis])?);
    let fits = |p: &&Constant| {
        p.shape.len() == shape.len()
            && (0..shape.len()).all(|a| a == axis || p.shape[a] == shape[a])
    };
    if !parts.iter().all(fits) {
        return Err("operands differ in shape".to_owned());
    }
    shape[axis] = parts.iter().map(|p| p.shape[axis]).sum();
    elements(&shape)?;
    let floats = parts.iter().any(|p| matches!(p.values, Values::Floats(_)));
    let rows = |p: &Constant, i: usize| {
        let row = p.len() / outer.max(1);
        i * row..(i + 1) * row
    };
    let values = if floats {
        let parts: Vec<Vec<f32>> = parts.iter().map(|p| p.to_floats()).collect::<Result<_, _>>()?;
        let row = |p: &Vec<f32>, i: usize| {
            p[i * p.len() / outer.max(1)..(i + 1) * p.len() / outer.max(1)].to_vec()
        };
        Values::Floats((0..outer).flat_map(|i| parts.iter().flat_map(move |p| row(p, i))).collect())
    } else {
        let mut all = Vec::new();
        for i in 0..outer {
            for part in &parts {
                all.extend_from_slice(&part.dims()?[rows(part, i)]);
            }
        }
        Values::Ints(all)
    };
    Ok(Constant { shape, values })
}

fn slice(node: &Current<'_>) -> Result<Constant, String> {
    let data = node.required(0)?;
    let mut ranges: Vec<(usize, isize)> = vec![(0, 1); data.shape.len()];
    let mut shape = data.shape.clone();
    for SliceArgument { start, end, axis, step } in slice_arguments(node)? {
        let axis = axis_of(axis, shape.len())?;
        let range = slice_range(start, end, step, data.shape[axis])?;
        (ranges[axis], shape[axis]) = ((range.start, range.step), range.count);
    }
    let from = |axis: usize, at: &[usize]| {
        ranges[axis].0.wrapping_add_signed(at[axis] as isize * ranges[axis].1)
    };
    data.pick(shape.clone(), &indices(&shape, &data.shape, from)?)
}

fn transpose(node: &Current<'_>) -> Result<Constant, String> {
    let data = node.required(0)?;
    let rank = data.shape.len();
    let permutation: Vec<usize> = match node.attributes.ints("perm") {
        Some(perm) => perm.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut inverse = vec![rank; rank];
    for (i, &axis) in permutation.iter().enumerate() {
        inverse[axis] = i;
    }
    if permutation.len() != rank || inverse.contains(&rank) {
        return Err(format!("{permutation:?} is no permutation"));
    }
    let shape: Vec<usize> = permutation.iter().map(|&axis| data.shape[axis]).collect();
    data.pick(shape.clone(), &indices(&shape, &data.shape, |axis, at| at[inverse[axis]])?)
}

fn reshape(node: &Current<'_>) -> Result<Constant, String> {
    let data = node.required(0)?;
    let given = match (node.known(1)?, node.attributes.ints("axes")) {
        (Some(values), _) => Some(values.to_ints()?),
        (None, axes) => axes.map(<[i64]>::to_vec),
    };
    let mut shape = data.shape.clone();
    match node.proto.op_type.as_str() {
        "Squeeze" => {
            let axes = match given {
                Some(axes) => {
                    axes.iter().map(|&a| axis_of(a, shape.len())).collect::<Result<Vec<_>, _>>()?
                }
                None => (0..shape.len()).filter(|&a| shape[a] == 1).collect(),
            };
            shape = (0..shape.len()).filter(|a| !axes.contains(a)).map(|a| data.shape[a]).collect();
        }
        "Unsqueeze" => {
            let axes = given.ok_or("axes are missing")?;
            let rank = shape.len() + axes.len();
            let mut axes = axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?;
            axes.sort_unstable();
            for axis in axes {
                if axis > shape.len() {
                    return Err(format!("axis {axis} of shape {shape:?}"));
                }
                shape.insert(axis, 1);
            }
        }
        _ => {
            let target = given.ok_or("the target is missing")?;
            node.attributes.zero_keeps(target.contains(&0))?;
            let known = target.iter().enumerate().filter(|&(_, &d)| d != -1);
            let mut out: Vec<usize> = known
                .map(|(i, &d)| match d {
                    0 => data.shape.get(i).copied().ok_or(format!("{target:?} is no shape")),
                    d => usize::try_from(d).map_err(|_| format!("{target:?} is no shape")),
                })
                .collect::<Result<_, _>>()?;
            if let Some(open) = target.iter().position(|&d| d == -1) {
                let rest = elements(&out)?.max(1);
                out.insert(open.min(out.len()), data.len() / rest);
            }
            shape = out;
        }
    }
    if elements(&shape)? != data.len() {
        return Err(format!("cannot reshape {:?} to {shape:?}", data.shape));
    }
    Ok(Constant { shape, values: data.values.clone() })
}

/// 1 where two constants of integers, of one shape or one a single number, are equal, else 0. No
/// constant is the batch size.
fn equal(node: &Current<'_>) -> Result<Constant, String> {
    let (a, b) = (node.required(0)?, node.required(1)?);
    let (x, y) = (a.dims()?, b.dims()?);
    let shape = if x.len() >= y.len() { &a.shape } else { &b.shape };
    if x.len() != y.len() && x.len() != 1 && y.len() != 1 {
        return Err(format!("constants of shapes {:?} and {:?}", a.shape, b.shape));
    }
    let at = |v: &[Dim], i: usize| if v.len() == 1 { v[0] } else { v[i] };
    let values = (0..elements(shape)?).map(|i| i64::from(at(x, i) == at(y, i)));
    Ok(Constant::ints(shape.clone(), values))
}

/// Picks from two constants of integers of one shape.
fn choose(node: &Current<'_>) -> Result<Constant, String> {
    let (condition, yes, no) = (node.required(0)?, node.required(1)?, node.required(2)?);
    if condition.shape != yes.shape || condition.shape != no.shape {
        return Err(format!(
            "constants of shapes {:?}, {:?} and {:?}",
            condition.shape, yes.shape, no.shape
        ));
    }
    let choices = yes.dims()?.iter().zip(no.dims()?).zip(condition.to_ints()?);
    let values = choices.map(|((yes, no), picks)| if picks == 0 { *no } else { *yes }).collect();
    Ok(Constant { shape: condition.shape.clone(), values: Values::Ints(values) })
}

/// Repeats a constant along axes of size 1. For the batch, outermost, one is enough: a constant is
/// the same for every sample.
fn expand(node: &Current<'_>) -> Result<Constant, String> {
    let (data, target) = (node.required(0)?, node.required(1)?.dims()?);
    let wanted: Vec<i64> = target
        .iter()
        .enumerate()
        .map(|(axis, dim)| match dim {
            Dim::Known(size) => Ok(*size),
            Dim::Batch if axis == 0 && target.len() >= data.shape.len() => Ok(1),
            Dim::Batch => Err("value depends on the batch size".to_owned()),
        })
        .collect::<Result<_, _>>()?;
    let wanted = sizes(&wanted)?;
    let rank = wanted.len().max(data.shape.len());
    let size = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
    };
    let shape: Vec<usize> = (0..rank)
        .map(|axis| match (size(&data.shape, axis), size(&wanted, axis)) {
            (own, wanted) if own == wanted || wanted == 1 => Ok(own),
            (1, wanted) => Ok(wanted),
            _ => Err(format!("cannot expand {:?} to {wanted:?}", data.shape)),
        })
        .collect::<Result<_, _>>()?;
    let missing = rank - data.shape.len();
    let from =
        |axis: usize, at: &[usize]| if data.shape[axis] == 1 { 0 } else { at[axis + missing] };
    data.pick(shape.clone(), &indices(&shape, &data.shape, from)?)
}

/// Element-wise arithmetic of two constants of one shape, or with a single number.
fn binary(node: &Current<'_>) -> Result<Constant, String> {
    let (a, b) = (node.required(0)?, node.required(1)?);
    let shape = if a.len() >= b.len() { &a.shape } else { &b.shape };
    if a.len() != b.len() && a.len() != 1 && b.len() != 1
        || (a.len() == b.len() && a.shape != b.shape && a.len() != 1)
    {
        return Err(format!("constants of shapes {:?} and {:?}", a.shape, b.shape));
    }
    let len = elements(shape)?;
    let operator = node.proto.op_type.as_str();
    if let (Values::Ints(x), Values::Ints(y)) = (&a.values, &b.values) {
        let pick = |v: &[Dim], i: usize| if v.len() == 1 { v[0] } else { v[i] };
        let values = (0..len)
            .map(|i| integer(operator, pick(x, i), pick(y, i)))
            .collect::<Result<_, _>>()?;
        return Ok(Constant { shape: shape.clone(), values: Values::Ints(values) });
    }
    let (x, y) = (a.to_floats()?, b.to_floats()?);
    let pick = |v: &[f32], i: usize| if v.len() == 1 { v[0] } else { v[i] };
    let values = (0..len).map(|i| {
        let (x, y) = (pick(&x, i), pick(&y, i));
        match operator {
            "Add" => x + y,
            "Sub" => x - y,
            "Mul" => x * y,
            _ => x / y,
        }
    });
    Ok(Constant::floats(shape.clone(), values.collect()))
}

fn integer(operator: &str, x: Dim, y: Dim) -> Result<Dim, String> {
    let value = match (operator, x, y) {
        ("Add", Dim::Known(x), Dim::Known(y)) => x.checked_add(y),
        ("Sub", Dim::Known(x), Dim::Known(y)) => x.checked_sub(y),
        ("Mul", Dim::Known(x), Dim::Known(y)) => x.checked_mul(y),
        ("Div", Dim::Known(x), Dim::Known(y)) => x.checked_div(y),
        ("Mul" | "Div", Dim::Batch, Dim::Known(1)) | ("Mul", Dim::Known(1), Dim::Batch) => {
            return Ok(Dim::Batch);
        }
        _ => return Err("arithmetic on the batch size".to_owned()),
    };
    value.map(Dim::Known).ok_or_else(|| format!("{operator} of {x:?} and {y:?} has no result"))
}
