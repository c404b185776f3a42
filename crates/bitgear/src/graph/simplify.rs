//! Makes an imported graph smaller without changing what it computes.

use super::{Activation, Graph, Node, Op, TensorId, gelu};
use crate::tensor::Tensor;

/// Folds scales, shifts and padding into the layers beside them, joins reshapes, drops what only
/// dresses up the scores, and removes what nothing reads.
///
/// # Errors
///
/// When the output is not one score per class. A single score z, of two classes, becomes -z / 2 and
/// z / 2, whose softmax is the sigmoid of z, where a convolution or fully connected layer makes it.
pub fn simplify(graph: Graph) -> Result<Graph, String> {
    let mut graph = with_gelus(strip_output(graph));
    fold(&mut graph);
    // Joined scales may show more of them.
    let mut graph = with_gelus(compact(graph));
    two_scores(&mut graph);
    let shape = graph.shape(graph.output);
    let classes = graph.classes();
    if shape.iter().any(|&n| n != 1 && n != classes) {
        return Err(format!("expected one score per class, got an output of shape {shape:?}"));
    }
    if graph.nodes.is_empty() {
        return Err("the output is the input".to_owned());
    }
    Ok(graph)
}

/// With each GELU as one node.
fn with_gelus(mut graph: Graph) -> Graph {
    gelu::fuse(&mut graph);
    compact(graph)
}

/// Ends the graph at the raw scores: without a reshape that only adds or drops axes of size 1, and
/// without the sigmoid of a single score.
fn strip_output(mut graph: Graph) -> Graph {
    while let Some(node) = graph.nodes.iter().find(|n| n.output == graph.output) {
        let classes = graph.classes();
        let plain = |tensor: TensorId| graph.shape(tensor).first() == Some(&classes);
        let strip = match node.op {
            Op::Reshape => plain(node.inputs[0]),
            Op::Activation(Activation::Sigmoid) => classes == 1,
            _ => false,
        };
        if !strip {
            break;
        }
        graph.output = node.inputs[0];
    }
    graph
}

/// One pass in execution order; a node that was folded away leaves an alias behind.
fn fold(graph: &mut Graph) {
    let mut readers = vec![0_usize; graph.tensors.len()];
    for input in graph.nodes.iter().flat_map(|n| &n.inputs) {
        readers[input.0] += 1;
    }
    readers[graph.output.0] += 1;
    let mut alias: Vec<TensorId> = (0..graph.tensors.len()).map(TensorId).collect();
    let mut maker: Vec<Option<usize>> = vec![None; graph.tensors.len()];
    for index in 0..graph.nodes.len() {
        let (before, rest) = graph.nodes.split_at_mut(index);
        let node = &mut rest[0];
        for input in &mut node.inputs {
            *input = alias[input.0];
        }
        // The node that makes the only operand, if nobody else reads it.
        let source = match node.inputs[..] {
            [input] if readers[input.0] == 1 => maker[input.0].map(|i| &mut before[i]),
            _ => None,
        };
        let gone = match (&mut node.op, source) {
            (Op::Affine { axis, scale, shift }, Some(source)) => {
                let last = graph.tensors[node.output.0].shape.len() - 1;
                fold_affine(source, (*axis, last), scale, shift)
            }
            (Op::Conv(conv), Some(source)) => {
                if let Op::Pad { pads, value } = &source.op
                    && *value == 0.0
                    && let [(0, 0), (top, bottom), (left, right)] = pads[..]
                {
                    for (pad, more) in conv.pads.iter_mut().zip([top, left, bottom, right]) {
                        *pad += more;
                    }
                    node.inputs[0] = source.inputs[0];
                }
                false
            }
            (Op::Reshape, source) => {
                if let Some(source) = source
                    && source.op == Op::Reshape
                {
                    node.inputs[0] = source.inputs[0];
                }
                graph.tensors[node.inputs[0].0].shape == graph.tensors[node.output.0].shape
            }
            _ => false,
        };
        if gone {
            alias[node.output.0] = node.inputs[0];
            // Its readers now read the operand.
            readers[node.inputs[0].0] = readers[node.output.0];
        } else {
            maker[node.output.0] = Some(index);
        }
    }
    graph.output = alias[graph.output.0];
}

/// Takes a scale and shift along `axis`, `last` being the last one, into the layer before. Says
/// whether that was possible.
fn fold_affine(
    source: &mut Node,
    (axis, last): (usize, usize),
    scale: &[f32],
    shift: &[f32],
) -> bool {
    let scaled = |value: f32, c: usize| (f64::from(value) * f64::from(scale[c])) as f32;
    let moved = |value: f32, c: usize| {
        (f64::from(value) * f64::from(scale[c]) + f64::from(shift[c])) as f32
    };
    let (weight, bias) = match &mut source.op {
        Op::Conv(conv) if axis == 0 => (&mut conv.weight, &mut conv.bias),
        // The channel of a fully connected layer's result is its last axis.
        Op::Linear(linear) if axis == last => (&mut linear.weight, &mut linear.bias),
        Op::MatMul { scale: factor } => {
            let alike = scale.iter().all(|&s| s == scale[0]) && shift.iter().all(|&s| s == 0.0);
            if alike {
                *factor *= scale[0];
            }
            return alike;
        }
        Op::Affine { axis: before, scale: first, shift: offset } if *before == axis => {
            for c in 0..scale.len() {
                (first[c], offset[c]) = (scaled(first[c], c), moved(offset[c], c));
            }
            return true;
        }
        _ => return false,
    };
    let row = weight.values().len() / scale.len();
    let values: Vec<f32> =
        weight.values().iter().enumerate().map(|(i, &w)| scaled(w, i / row)).collect();
    *weight = Tensor::new(weight.shape().to_vec(), values);
    for (c, bias) in bias.iter_mut().enumerate() {
        *bias = moved(*bias, c);
    }
    true
}

/// Lets the layer that makes a single score make one for each of two classes.
fn two_scores(graph: &mut Graph) {
    let output = graph.output;
    let maker = graph.nodes.iter_mut().find(|node| node.output == output);
    if graph.tensors[output.0].shape.iter().any(|&n| n != 1) {
        return;
    }
    let Some(node) = maker else { return };
    let shape = &mut graph.tensors[output.0].shape;
    let channel = if matches!(node.op, Op::Conv(_)) { shape.first_mut() } else { shape.last_mut() };
    let (Some(channel), Some((weight, bias))) = (channel, node.op.weight_and_bias_mut()) else {
        return;
    };
    let both = |values: &[f32]| -> Vec<f32> {
        [-0.5, 0.5].iter().flat_map(|half| values.iter().map(move |value| half * value)).collect()
    };
    let mut pair = weight.shape().to_vec();
    pair[0] = 2;
    *weight = Tensor::new(pair, both(weight.values()));
    *bias = both(bias);
    *channel = 2;
}

/// Removes nodes that nothing reads and renumbers the tensors.
fn compact(graph: Graph) -> Graph {
    let mut live = vec![false; graph.tensors.len()];
    live[graph.output.0] = true;
    live[graph.input.0] = true;
    for node in graph.nodes.iter().rev() {
        if live[node.output.0] {
            for input in &node.inputs {
                live[input.0] = true;
            }
        }
    }
    let mut number = vec![TensorId(0); live.len()];
    let mut tensors = Vec::new();
    for (old, info) in graph.tensors.into_iter().enumerate() {
        if live[old] {
            number[old] = TensorId(tensors.len());
            tensors.push(info);
        }
    }
    let renumber = |mut node: Node| {
        for input in &mut node.inputs {
            *input = number[input.0];
        }
        node.output = number[node.output.0];
        node
    };
    Graph {
        name: graph.name,
        tensors,
        nodes: graph.nodes.into_iter().filter(|n| live[n.output.0]).map(renumber).collect(),
        input: number[graph.input.0],
        output: number[graph.output.0],
    }
}
