//! From a float graph to integers: calibrated ranges, quantized weights, operating points. No labels
//! are used.
//!
//! [`quantize`] is the plain quantizer, nearest rounding with scales of least squared error.
//! [`Quantizer`] fits each layer's integers to calibration samples instead.

mod calibrate;
mod equalize;
mod fit;
mod lower;
mod methods;
mod parameters;
mod pass;
mod point;
mod ranges;
mod weights;

pub use calibrate::calibrate;
pub use methods::{Constraints, Correction, Methods, RangeRule, Rounding};
pub use parameters::{InputScale, LayerParameters, Parameters};
pub use point::{InvalidPoint, Point, Widths};
pub use ranges::{Extremes, Histograms, Range, Ranges};
pub use weights::{QuantizedWeights, quantize_plain};

use crate::execute::IntegerModel;
use crate::graph::{Graph, Op};
use crate::tensor::Tensor;

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
    let layer = |(node, number): (&crate::graph::Node, &Option<usize>)| {
        let (weight, bias) = node.op.weight_and_bias()?;
        let bits = point.widths((*number)?, layers).weights;
        Some(LayerParameters {
            weights: quantize_plain(weight.values(), weight.shape()[0], bits),
            bias: bias.to_vec(),
            held_out_error: f64::NAN,
        })
    };
    let layers = graph.nodes.iter().zip(&numbers).filter_map(layer).collect();
    lower::lower(graph, ranges, &Parameters { layers, ..Parameters::default() }, point)
}

/// Fits the integers of a network to calibration samples, point by point.
pub struct Quantizer<'a> {
    /// The float network.
    pub graph: &'a Graph,
    /// Its calibrated ranges.
    pub ranges: &'a Ranges,
    /// Preprocessed calibration samples, (N, sample shape).
    pub samples: &'a Tensor,
    /// What may be done.
    pub methods: Methods,
    /// What the hardware allows.
    pub constraints: Constraints,
}

impl Quantizer<'_> {
    /// Parameters of an operating point.
    pub fn fit(&self, point: &Point) -> Parameters {
        let pass = pass::Pass {
            graph: self.graph,
            ranges: self.ranges,
            point,
            methods: self.methods,
            constraints: self.constraints,
            samples: self.samples.shape()[0],
        };
        pass.run(self.samples)
    }

    /// The integer network at an operating point.
    ///
    /// # Errors
    ///
    /// All operators that have no integer form, each with its node.
    pub fn quantize(&self, point: &Point) -> Result<IntegerModel, UnsupportedOperators> {
        lower::lower(self.graph, self.ranges, &self.fit(point), point)
    }
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
            matches!(node.op, Op::Conv(_) | Op::Linear(_)).then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}
