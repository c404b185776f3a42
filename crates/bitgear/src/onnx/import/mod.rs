//! Walks the nodes in order and translates each into operators of the graph, or evaluates it where
//! all its operands are known.

mod arithmetic;
mod attention;
mod attributes;
mod elementwise;
mod movement;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use self::attributes::Attributes;
use super::constant::{Constant, elements};
use super::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use super::{ImportError, Problem};
use crate::graph::{Graph, Node, Op, TensorId, TensorInfo, infer, simplify};
use crate::tensor::Tensor;

pub(super) const UNSUPPORTED_OPERATOR: &str = "operator is not supported";
const OLDEST_OPSET: i64 = 11;
const MAX_NODES: usize = 100_000;

/// What a name of the model stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Computed from the sample. Batch axis outermost, not part of the graph's shape.
    Sample(TensorId),
    Known(Constant),
    /// Result of a node that can't be imported; what reads it isn't reported again.
    Broken,
}

pub(super) fn import(model: &ModelProto) -> Result<Graph, ImportError> {
    let malformed = |reason: String| ImportError::Malformed(reason);
    let proto = model.graph.as_ref().ok_or_else(|| malformed("no graph".to_owned()))?;
    let opset = check_opset(model).map_err(malformed)?;
    if proto.node.len() > MAX_NODES {
        return Err(malformed(format!(
            "expected at most {MAX_NODES} nodes, got {}",
            proto.node.len()
        )));
    }
    let mut importer = Importer {
        opset,
        values: BTreeMap::new(),
        graph: Graph {
            name: proto.name.clone(),
            tensors: Vec::new(),
            nodes: Vec::new(),
            input: TensorId(0),
            output: TensorId(0),
        },
        names: BTreeSet::new(),
        problems: Vec::new(),
    };
    importer.initializers(proto);
    importer.input(proto).map_err(malformed)?;
    let output = scores_name(proto).map_err(malformed)?;
    let needed = needed(proto, output);
    for (index, node) in proto.node.iter().enumerate() {
        if needed[index] {
            importer.node(index, node);
        }
    }
    if !importer.problems.is_empty() {
        return Err(ImportError::Unsupported(importer.problems));
    }
    match importer.values.get(output) {
        Some(&Value::Sample(tensor)) => importer.graph.output = tensor,
        Some(_) => {
            return Err(malformed(format!("output `{output}` does not depend on the input")));
        }
        None => return Err(malformed(format!("output `{output}` is made by no node"))),
    }
    simplify(importer.graph).map_err(malformed)
}

/// The version of ONNX's own operators must be one whose attributes import knows.
fn check_opset(model: &ModelProto) -> Result<i64, String> {
    let own = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let version = model.opset_import.iter().find(|o| own(&o.domain)).map(|o| o.version);
    match version {
        Some(version) if version >= OLDEST_OPSET => Ok(version),
        Some(version) => Err(format!("opset must be {OLDEST_OPSET} or later, got {version}")),
        None => Err("no operator set is named".to_owned()),
    }
}

/// The name of the raw scores: the model's output, or what a softmax at the end reads.
fn scores_name(proto: &GraphProto) -> Result<&str, String> {
    let [output] = &proto.output[..] else {
        let names: Vec<&str> = proto.output.iter().map(|o| o.name.as_str()).collect();
        return Err(format!("expected one output, the scores, got {names:?}"));
    };
    let mut name = output.name.as_str();
    // Bounded by the number of nodes: a cycle would otherwise never end.
    for _ in 0..proto.node.len() {
        let maker = proto.node.iter().find(|node| node.output.first().is_some_and(|o| o == name));
        match maker {
            Some(node) if is_final_softmax(node) => match node.input.first() {
                Some(input) => name = input,
                None => break,
            },
            _ => break,
        }
    }
    Ok(name)
}

/// A softmax over the classes keeps the order of the scores; margins are of raw scores.
fn is_final_softmax(node: &NodeProto) -> bool {
    let axis = node.attribute.iter().find(|a| a.name == "axis").map_or(-1, |a| a.i);
    match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" => axis == -1 || axis == 1,
        "Identity" => true,
        _ => false,
    }
}

/// Which nodes the scores depend on.
fn needed(proto: &GraphProto, output: &str) -> Vec<bool> {
    let mut wanted: BTreeSet<&str> = [output].into();
    let mut needed = vec![false; proto.node.len()];
    for (index, node) in proto.node.iter().enumerate().rev() {
        if node.output.iter().any(|o| wanted.contains(o.as_str())) {
            needed[index] = true;
            wanted.extend(node.input.iter().map(String::as_str));
        }
    }
    needed
}

pub(super) struct Importer {
    /// Version of ONNX's own operators.
    opset: i64,
    values: BTreeMap<String, Value>,
    graph: Graph,
    names: BTreeSet<String>,
    problems: Vec<Problem>,
}

/// The node being imported.
pub(super) struct Current<'a> {
    name: String,
    proto: &'a NodeProto,
    /// Operands; `None` where an optional one is left out.
    inputs: Vec<Option<Value>>,
    attributes: Attributes<'a>,
}

impl Importer {
    fn initializers(&mut self, proto: &GraphProto) {
        for tensor in &proto.initializer {
            let value = match Constant::read(tensor) {
                Ok(constant) => Value::Known(constant),
                Err(reason) => {
                    self.problems.push(Problem {
                        node: tensor.name.clone(),
                        operator: "initializer".to_owned(),
                        reason,
                    });
                    Value::Broken
                }
            };
            self.values.insert(tensor.name.clone(), value);
        }
    }

    fn input(&mut self, proto: &GraphProto) -> Result<(), String> {
        let inputs: Vec<&ValueInfoProto> =
            proto.input.iter().filter(|i| !self.values.contains_key(&i.name)).collect();
        let [input] = inputs[..] else {
            let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
            return Err(format!("expected one input, the sample, got {names:?}"));
        };
        let shape = input
            .r#type
            .as_ref()
            .and_then(|t| t.tensor_type.as_ref())
            .and_then(|t| t.shape.as_ref())
            .ok_or_else(|| format!("input `{}` has no shape", input.name))?;
        let sample: Option<Vec<usize>> = shape
            .dim
            .iter()
            .skip(1)
            .map(|d| d.dim_value.and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0))
            .collect();
        let sample = sample.filter(|s| !s.is_empty()).ok_or_else(|| {
            format!("input `{}` must have a batch axis and fixed dimensions after it", input.name)
        })?;
        elements(&sample)?;
        self.graph.input = self.tensor(&input.name, sample);
        self.values.insert(input.name.clone(), Value::Sample(self.graph.input));
        Ok(())
    }

    fn tensor(&mut self, name: &str, shape: Vec<usize>) -> TensorId {
        self.graph.tensors.push(TensorInfo { name: name.to_owned(), shape });
        TensorId(self.graph.tensors.len() - 1)
    }

    fn node(&mut self, index: usize, proto: &NodeProto) {
        let name = if proto.name.is_empty() {
            format!("{}_{index}", proto.op_type)
        } else {
            proto.name.clone()
        };
        let result = self.translate(name.clone(), proto);
        let values = match result {
            Ok(values) => values,
            Err(reason) => {
                if let Some(reason) = reason {
                    let operator = if proto.domain.is_empty() {
                        proto.op_type.clone()
                    } else {
                        format!("{}.{}", proto.domain, proto.op_type)
                    };
                    self.problems.push(Problem { node: name, operator, reason });
                }
                vec![Value::Broken; proto.output.len()]
            }
        };
        for (output, value) in proto.output.iter().zip(values) {
            self.values.insert(output.clone(), value);
        }
    }

    /// The node's results. The error is `None` where an operand is broken already.
    fn translate(&mut self, name: String, proto: &NodeProto) -> Result<Vec<Value>, Option<String>> {
        let own = proto.domain.is_empty() || proto.domain == "ai.onnx";
        if !own || !super::operators::is_supported(&proto.op_type) {
            return Err(Some(UNSUPPORTED_OPERATOR.to_owned()));
        }
        let mut inputs = Vec::with_capacity(proto.input.len());
        for input in &proto.input {
            inputs.push(if input.is_empty() {
                None
            } else {
                match self.values.get(input) {
                    Some(Value::Broken) => return Err(None),
                    Some(value) => Some(value.clone()),
                    None => {
                        return Err(Some(format!("operand `{input}` is made by no earlier node")));
                    }
                }
            });
        }
        let attributes = Attributes::new(&proto.attribute);
        let mut node = Current { name, proto, inputs, attributes };
        let values = self.dispatch(&mut node).map_err(Some)?;
        node.attributes.check_all_used().map_err(Some)?;
        Ok(values)
    }

    fn dispatch(&mut self, node: &mut Current<'_>) -> Result<Vec<Value>, String> {
        let known = node.inputs.iter().flatten().all(|v| matches!(v, Value::Known(_)));
        if node.proto.op_type == "Shape"
            || (known && arithmetic::is_arithmetic(&node.proto.op_type))
        {
            return self.arithmetic(node).map(|constant| vec![Value::Known(constant)]);
        }
        let value = match node.proto.op_type.as_str() {
            "Conv" => self.conv(node)?,
            "Gemm" => self.gemm(node)?,
            "MatMul" => self.matmul(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "MaxPool" | "GlobalMaxPool" | "AveragePool" => self.pool(node)?,
            "GlobalAveragePool" | "ReduceMean" => self.mean(node)?,
            "Relu" | "Clip" | "LeakyRelu" | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Tanh"
            | "Gelu" | "Erf" => self.activation(node)?,
            "LayerNormalization" => self.layer_norm(node)?,
            "Softmax" => self.softmax(node)?,
            "Gather" => self.gather(node)?,
            "Add" | "Sub" | "Mul" | "Div" => self.binary(node)?,
            "Split" => return self.split(node),
            "Dropout" => {
                // Probability and mode matter in training only.
                node.attributes.ignore(&["ratio", "seed"]);
                node.sample(0).map(Value::Sample)?
            }
            "Identity" | "Cast" => {
                let to =
                    if node.proto.op_type == "Cast" { node.attributes.int("to", 1) } else { 1 };
                if to != 1 {
                    return Err(format!("cast of a computed tensor to data type {to}"));
                }
                node.sample(0).map(Value::Sample)?
            }
            _ => self.movement(node)?,
        };
        Ok(vec![value])
    }

    /// Shape of one sample.
    fn shape(&self, tensor: TensorId) -> &[usize] {
        self.graph.shape(tensor)
    }

    /// Adds an operator, named like the node (with a suffix where the node makes several).
    fn push(&mut self, name: &str, op: Op, inputs: Vec<TensorId>) -> Result<TensorId, String> {
        let shape = {
            let shapes: Vec<&[usize]> = inputs.iter().map(|&t| self.shape(t)).collect();
            infer(&op, &shapes)?
        };
        elements(&shape)?;
        self.push_shaped(name, op, inputs, shape)
    }

    fn push_shaped(
        &mut self,
        name: &str,
        op: Op,
        inputs: Vec<TensorId>,
        shape: Vec<usize>,
    ) -> Result<TensorId, String> {
        if shape.contains(&0) {
            return Err("result is empty".to_owned());
        }
        let mut unique = name.to_owned();
        while !self.names.insert(unique.clone()) {
            unique.push('\'');
        }
        let output = self.tensor(&unique, shape);
        self.graph.nodes.push(Node { name: unique, op, inputs, output });
        Ok(output)
    }

    fn reshape(
        &mut self,
        name: &str,
        input: TensorId,
        shape: Vec<usize>,
    ) -> Result<TensorId, String> {
        if elements(&shape)? != elements(self.shape(input))? {
            return Err(format!("cannot reshape {:?} to {shape:?}", self.shape(input)));
        }
        if self.shape(input) == shape {
            return Ok(input);
        }
        self.push_shaped(name, Op::Reshape, vec![input], shape)
    }

    /// A known operand as a tensor of the graph. Its batch axis, if it has one, must be 1.
    fn constant(
        &mut self,
        name: &str,
        constant: &Constant,
        rank: usize,
    ) -> Result<TensorId, String> {
        let mut shape = constant.shape.clone();
        if shape.len() == rank + 1 {
            if shape[0] != 1 {
                return Err(format!("constant of shape {shape:?} differs by sample"));
            }
            shape.remove(0);
        }
        let tensor = Tensor::new(shape, constant.to_floats()?);
        self.push(&format!("{name}/constant"), Op::Constant(tensor), Vec::new())
    }
}

impl Current<'_> {
    /// Operand `index`, which must be computed from the sample.
    fn sample(&self, index: usize) -> Result<TensorId, String> {
        match self.inputs.get(index).and_then(Option::as_ref) {
            Some(Value::Sample(tensor)) => Ok(*tensor),
            Some(_) => Err(format!("operand {index} must be computed from the sample")),
            None => Err(format!("operand {index} is missing")),
        }
    }

    /// Operand `index`, if it is there; it must be known.
    fn known(&self, index: usize) -> Result<Option<&Constant>, String> {
        match self.inputs.get(index).and_then(Option::as_ref) {
            Some(Value::Known(constant)) => Ok(Some(constant)),
            Some(_) => Err(format!("operand {index} must be a constant")),
            None => Ok(None),
        }
    }

    /// Operand `index`, which must be known.
    fn required(&self, index: usize) -> Result<&Constant, String> {
        self.known(index)?.ok_or_else(|| format!("operand {index} is missing"))
    }
}
