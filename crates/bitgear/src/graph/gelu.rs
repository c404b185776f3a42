//! Finds the pieces that exporters take GELU apart into.

use super::{Activation, Binary, Graph, Node, Op, TensorId};

/// Replaces x / √2 → erf → + 1 → · x → · 1/2 by one activation, with the factor 1/2 at any of the
/// places where it can stand. What is no longer read stays until the graph is compacted.
pub(super) fn fuse(graph: &mut Graph) {
    let found: Vec<(usize, TensorId)> =
        (0..graph.nodes.len()).filter_map(|index| gelu_at(graph, index)).collect();
    for (index, x) in found {
        let node = &mut graph.nodes[index];
        node.op = Op::Activation(Activation::Gelu);
        node.inputs = vec![x];
    }
}

/// The operand of the GELU that begins with the error function at `index`, and the node that ends it.
fn gelu_at(graph: &Graph, index: usize) -> Option<(usize, TensorId)> {
    let erf = &graph.nodes[index];
    if erf.op != Op::Activation(Activation::Erf) {
        return None;
    }
    let (x, factor, 0.0) = source(graph, erf.inputs[0]) else { return None };
    if !close(factor, std::f64::consts::FRAC_1_SQRT_2) {
        return None;
    }
    let (_, shifted) = sole_reader(graph, erf.output)?;
    let (outer, inner) = scale_and_shift(shifted)?;
    let (at, product) = sole_reader(graph, shifted.output)?;
    if product.op != Op::Binary(Binary::Mul) || outer != inner {
        return None;
    }
    let other = *product.inputs.iter().find(|&&t| t != shifted.output)?;
    let (y, gate) = if other == x { (x, 1.0) } else { scaled(graph, other)? };
    if y != x {
        return None;
    }
    let half = |factor: f64| close(factor, 0.5);
    if half(outer * gate) {
        return Some((at, x));
    }
    let (end, last) = sole_reader(graph, product.output)?;
    match scale_and_shift(last)? {
        (factor, 0.0) if half(outer * gate * factor) => Some((end, x)),
        _ => None,
    }
}

/// The tensor that `tensor` is a multiple of, with factor and offset; itself where it is none.
fn source(graph: &Graph, tensor: TensorId) -> (TensorId, f64, f64) {
    let maker = graph.nodes.iter().find(|node| node.output == tensor);
    let found = maker.and_then(|node| scale_and_shift(node).map(|(a, b)| (node.inputs[0], a, b)));
    found.unwrap_or((tensor, 1.0, 0.0))
}

fn scaled(graph: &Graph, tensor: TensorId) -> Option<(TensorId, f64)> {
    match source(graph, tensor) {
        (x, factor, 0.0) => Some((x, factor)),
        _ => None,
    }
}

/// Scale and shift of a node that scales all channels alike.
fn scale_and_shift(node: &Node) -> Option<(f64, f64)> {
    let Op::Affine { scale, shift, .. } = &node.op else { return None };
    let (&a, &b) = (scale.first()?, shift.first()?);
    let alike = scale.iter().all(|&s| s == a) && shift.iter().all(|&s| s == b);
    alike.then_some((f64::from(a), f64::from(b)))
}

/// The only node that reads a tensor, if it is read once.
fn sole_reader(graph: &Graph, tensor: TensorId) -> Option<(usize, &Node)> {
    let mut readers = graph.nodes.iter().enumerate().filter(|(_, n)| n.inputs.contains(&tensor));
    let first = readers.next()?;
    let twice = first.1.inputs.iter().filter(|&&t| t == tensor).count() > 1;
    (readers.next().is_none() && !twice && tensor != graph.output).then_some(first)
}

/// Whether a constant is the one meant, up to single precision.
fn close(value: f64, expected: f64) -> bool {
    (value - expected).abs() <= 1e-6 * expected
}
