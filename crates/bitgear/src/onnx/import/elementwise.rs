//! Matrix products, batch norms, arithmetic and activations.

use super::{Current, Importer, Value};
use crate::graph::{Activation, Binary, Linear, Op, TensorId};
use crate::onnx::constant::Constant;
use crate::tensor::Tensor;

impl Importer {
    pub(super) fn gemm(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        node.attributes.only("transA", 0)?;
        let transposed = node.attributes.int("transB", 0) != 0;
        let (alpha, beta) =
            (node.attributes.float("alpha", 1.0), node.attributes.float("beta", 1.0));
        let weight = weight(node.required(1)?, transposed)?;
        let outputs = weight.shape()[0];
        let weight = Tensor::new(
            weight.shape().to_vec(),
            weight.values().iter().map(|&w| w * alpha).collect(),
        );
        let bias = match node.known(2)? {
            None => vec![0.0; outputs],
            Some(c) => {
                let values = c.to_floats()?;
                match values.len() {
                    1 => vec![values[0] * beta; outputs],
                    n if n == outputs && c.shape.last() == Some(&outputs) => {
                        values.iter().map(|v| v * beta).collect()
                    }
                    _ => return Err(format!("bias of shape {:?} for {outputs} outputs", c.shape)),
                }
            }
        };
        if self.shape(input).len() != 1 {
            return Err(format!("expected a vector per sample, got shape {:?}", self.shape(input)));
        }
        let op = Op::Linear(Linear { weight, bias });
        self.push(&node.name, op, vec![input]).map(Value::Sample)
    }

    pub(super) fn matmul(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let computed = |i: usize| matches!(node.inputs.get(i), Some(Some(Value::Sample(_))));
        if computed(0) && computed(1) {
            return self.matrix_product(node);
        }
        let input = node.sample(0)?;
        let weight = weight(node.required(1)?, false)?;
        let bias = vec![0.0; weight.shape()[0]];
        self.push(&node.name, Op::Linear(Linear { weight, bias }), vec![input]).map(Value::Sample)
    }

    pub(super) fn batch_norm(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        node.attributes.only("training_mode", 0)?;
        node.attributes.ignore(&["momentum", "spatial"]);
        let epsilon = f64::from(node.attributes.float("epsilon", 1e-5));
        let values = |i| node.required(i).and_then(Constant::to_floats);
        let (gain, offset, mean, variance) = (values(1)?, values(2)?, values(3)?, values(4)?);
        let channels = gain.len();
        if [&offset, &mean, &variance].iter().any(|v| v.len() != channels) {
            return Err("scale, bias, mean and variance differ in length".to_owned());
        }
        let (scale, shift) = (0..channels)
            .map(|c| {
                let scale = f64::from(gain[c]) / (f64::from(variance[c]) + epsilon).sqrt();
                (scale as f32, (f64::from(offset[c]) - f64::from(mean[c]) * scale) as f32)
            })
            .unzip();
        self.push(&node.name, Op::Affine { axis: 0, scale, shift }, vec![input]).map(Value::Sample)
    }

    pub(super) fn activation(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let input = node.sample(0)?;
        let attributes = &node.attributes;
        let activation = match node.proto.op_type.as_str() {
            "Relu" => Activation::Relu,
            "LeakyRelu" => Activation::LeakyRelu { alpha: attributes.float("alpha", 0.01) },
            "Sigmoid" => Activation::Sigmoid,
            "Tanh" => Activation::Tanh,
            "Erf" => Activation::Erf,
            "Gelu" => match attributes.text("approximate", "none").as_str() {
                "none" => Activation::Gelu,
                other => {
                    return Err(format!("attribute `approximate` = `{other}` is not supported"));
                }
            },
            "HardSwish" => Activation::HardSwish,
            "HardSigmoid" => Activation::HardSigmoid {
                alpha: attributes.float("alpha", 0.2),
                beta: attributes.float("beta", 0.5),
            },
            "Clip" => {
                let bound = |i: usize, default: f32| -> Result<f32, String> {
                    match node.known(i)? {
                        None => Ok(default),
                        Some(bound) => match bound.to_floats()?[..] {
                            [value] if !value.is_nan() => Ok(value),
                            _ => Err("bounds must be single numbers".to_owned()),
                        },
                    }
                };
                match (bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?) {
                    (low, high) if low == 0.0 && high == f32::INFINITY => Activation::Relu,
                    (low, high) if low <= high => Activation::Clip { low, high },
                    (low, high) => return Err(format!("bounds {low} and {high} are out of order")),
                }
            }
            other => unreachable!("`{other}` is no activation"),
        };
        self.push(&node.name, Op::Activation(activation), vec![input]).map(Value::Sample)
    }

    pub(super) fn binary(&mut self, node: &mut Current<'_>) -> Result<Value, String> {
        let op = match node.proto.op_type.as_str() {
            "Add" => Binary::Add,
            "Sub" => Binary::Sub,
            "Mul" => Binary::Mul,
            _ => Binary::Div,
        };
        let [Some(a), Some(b)] = &node.inputs[..] else {
            return Err(format!("expected two operands, got {}", node.inputs.len()));
        };
        let output = match (a, b) {
            (Value::Sample(a), Value::Sample(b)) => {
                let (a, b) = (*a, *b);
                let (x, y) = (self.shape(a).len(), self.shape(b).len());
                if x != y {
                    // Aligned at the end, one sample's batch axis would meet the other's features.
                    return Err(format!("operands of rank {} and {} mix samples", x + 1, y + 1));
                }
                self.push(&node.name, Op::Binary(op), vec![a, b])?
            }
            (Value::Sample(x), Value::Known(c)) => {
                self.with_constant(&node.name, op, *x, &c.clone(), false)?
            }
            (Value::Known(c), Value::Sample(x)) => {
                self.with_constant(&node.name, op, *x, &c.clone(), true)?
            }
            _ => unreachable!("constants alone are evaluated"),
        };
        Ok(Value::Sample(output))
    }

    /// x op constant, or, if `reversed`, constant op x. One value per channel becomes a scale and a
    /// shift; anything else an operand of its own.
    fn with_constant(
        &mut self,
        name: &str,
        op: Binary,
        x: TensorId,
        constant: &Constant,
        reversed: bool,
    ) -> Result<TensorId, String> {
        let shape = self.shape(x).to_vec();
        let linear = !(op == Binary::Div && reversed);
        if linear && let Some((axis, values)) = per_channel(constant, &shape)? {
            let ones = vec![1.0; values.len()];
            let zeros = vec![0.0; values.len()];
            let negated = |v: &[f32]| v.iter().map(|x| -x).collect::<Vec<_>>();
            let (scale, shift) = match (op, reversed) {
                (Binary::Add, _) => (ones, values),
                (Binary::Sub, false) => (ones, negated(&values)),
                (Binary::Sub, true) => (negated(&ones), values),
                (Binary::Mul, _) => (values, zeros),
                (Binary::Div, _) => {
                    if values.contains(&0.0) {
                        return Err("division by a constant zero".to_owned());
                    }
                    (values.iter().map(|v| 1.0 / v).collect(), zeros)
                }
            };
            return self.push(name, Op::Affine { axis, scale, shift }, vec![x]);
        }
        let constant = self.constant(name, constant, shape.len())?;
        if self.shape(constant).len() > shape.len() {
            return Err("constant has more axes than the sample".to_owned());
        }
        let operands = if reversed { vec![constant, x] } else { vec![x, constant] };
        self.push(name, Op::Binary(op), operands)
    }
}

/// A constant that differs along at most one axis of the sample: that axis and its values. A single
/// number goes to the channel axis: the first of an image, the last otherwise.
fn per_channel(constant: &Constant, shape: &[usize]) -> Result<Option<(usize, Vec<f32>)>, String> {
    let values = constant.to_floats()?;
    // Axes count from the end, where ONNX aligns them.
    let rank = shape.len() + 1;
    if constant.shape.len() > rank {
        return Ok(None);
    }
    let offset = rank - constant.shape.len();
    let varying: Vec<usize> =
        (0..constant.shape.len()).filter(|&axis| constant.shape[axis] != 1).collect();
    match varying[..] {
        [] => {
            let axis = if shape.len() == 3 { 0 } else { shape.len() - 1 };
            Ok(Some((axis, vec![values[0]; shape[axis]])))
        }
        [axis] => {
            let whole = axis + offset;
            if whole == 0 {
                return Err("constant differs by sample".to_owned());
            }
            // Otherwise the constant is larger than the tensor, which then repeats.
            Ok((shape[whole - 1] == values.len()).then_some((whole - 1, values)))
        }
        _ => Ok(None),
    }
}

/// Weights of a matrix product as (outputs, features). `transposed` says they already are.
fn weight(constant: &Constant, transposed: bool) -> Result<Tensor, String> {
    let [rows, columns] = constant.shape[..] else {
        return Err(format!("weights must have rank 2, got shape {:?}", constant.shape));
    };
    let values = constant.to_floats()?;
    if transposed {
        return Ok(Tensor::new(vec![rows, columns], values));
    }
    let turned = (0..columns).flat_map(|o| (0..rows).map(move |i| i * columns + o));
    Ok(Tensor::new(vec![columns, rows], turned.map(|i| values[i]).collect()))
}
