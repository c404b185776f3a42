//! From a float graph to integers: calibrated ranges, quantized weights, operating points.
//!
//! The quantizer here is `plain`: nearest rounding, weights with one scale per output channel,
//! activations with one per tensor, every scale the one of least squared error. No labels are used.

mod calibrate;
mod lower;
mod point;
mod ranges;
mod weights;

pub use calibrate::calibrate;
pub use point::{InvalidPoint, Point, Widths};
pub use ranges::{Extremes, Histograms, Range, Ranges};
pub use weights::{QuantizedWeights, quantize_plain};

use crate::execute::IntegerModel;
use crate::graph::{Graph, Op};

/// The graph holds operators that have no integer form: (node, reason) of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedOperators(pub Vec<(String, String)>);

impl std::fmt::Display for UnsupportedOperators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operators have no integer form", self.0.len())?;
        self.0.iter().try_for_each(|(node, reason)| write!(f, "\n  node `{node}`: {reason}"))
    }
}

impl std::error::Error for UnsupportedOperators {}

/// The integer network of `graph` at an operating point, by plain quantization.
///
/// # Errors
///
/// All operators that have no integer form, each with its node.
pub fn quantize(
    graph: &Graph,
    ranges: &Ranges,
    point: &Point,
) -> Result<IntegerModel, UnsupportedOperators> {
    let numbers = mac_numbers(graph);
    let layers = numbers.iter().flatten().count();
    let weights: Vec<QuantizedWeights> = graph
        .nodes
        .iter()
        .zip(&numbers)
        .filter_map(|(node, &number)| {
            let weight = match &node.op {
                Op::Conv(conv) => &conv.weight,
                Op::Linear(linear) => &linear.weight,
                // Counted among the layers, without weights of its own.
                Op::MatMul { .. } => {
                    return Some(QuantizedWeights { codes: Vec::new(), scales: Vec::new() });
                }
                _ => return None,
            };
            let bits = point.widths(number?, layers).weights;
            Some(quantize_plain(weight.values(), weight.shape()[0], bits))
        })
        .collect();
    lower::lower(graph, ranges, &weights, point)
}

/// Elements of the addition's other operand that is fused into each MAC layer, 0 where there is none.
pub fn fused_residuals(graph: &Graph) -> Vec<usize> {
    let numbers = mac_numbers(graph);
    let mut elements = vec![0; numbers.iter().flatten().count()];
    for (layer, residual) in lower::residuals(graph, &numbers) {
        elements[layer] = graph.shape(residual).iter().product();
    }
    elements
}

/// For each node its number among the MAC layers, if it is one.
fn mac_numbers(graph: &Graph) -> Vec<Option<usize>> {
    let mut next = 0;
    graph
        .nodes
        .iter()
        .map(|node| {
            matches!(node.op, Op::Conv(_) | Op::Linear(_) | Op::MatMul { .. }).then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}
