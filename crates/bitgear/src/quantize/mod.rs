//! From a float graph to integers: calibrated ranges, quantized weights, operating points. No labels
//! are used.
//!
//! [`quantize`] is the plain quantizer, nearest rounding with scales of least squared error.
//! [`Quantizer`] fits each layer's integers to calibration samples instead.

mod calibrate;
mod equalize;
mod fit;
mod layer;
mod lower;
mod methods;
mod nest;
mod nominal;
mod parameters;
mod pass;
mod point;
mod ranges;
mod sensitivity;
mod slopes;
mod tune;
mod weights;

pub use calibrate::calibrate;
pub use lower::{Crossing, crossings};
pub use methods::{CodeBooks, Constraints, Correction, Methods, RangeRule, Rounding};
pub use parameters::{InputScale, LayerParameters, Parameters};
pub use point::{InvalidPoint, Point, Widths};
pub use ranges::{Extremes, Histograms, Range, Ranges};
pub use weights::{QuantizedWeights, quantize_plain};

use std::borrow::Cow;

use crate::execute::IntegerModel;
use crate::graph::{Graph, Op};
use crate::tensor::Tensor;

/// Suffix of points that share their weights.
pub const NESTED: &str = "-nested";

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
        let bits = point.widths((*number)?, layers).weights;
        // A product of computed matrices counts among the layers, without weights of its own.
        Some(node.op.weight_and_bias().map_or_else(LayerParameters::default, |(weight, bias)| {
            LayerParameters {
                weights: quantize_plain(weight.values(), weight.shape()[0], bits),
                odd: false,
                bias: bias.to_vec(),
                held_out_error: f64::NAN,
            }
        }))
    };
    let layers = graph.nodes.iter().zip(&numbers).filter_map(layer).collect();
    lower::lower(graph, ranges, &Parameters { layers, ..Parameters::default() }, point)
}

/// Fits the integers of a network to calibration samples, point by point.
///
/// Time of a point: about 30 runs of the float network over the samples and, where the whole network
/// is tuned, at most three runs of one sample for each of [`Methods::tuning`] · 32, or · 64 with fewer
/// than 256 samples. Memory: at most [`Quantizer::MEMORY`] bytes of samples on their way through the
/// network, and about ten times the second moments of one layer (8 bytes for each pair of its inputs).
pub struct Quantizer<'a> {
    graph: &'a Graph,
    ranges: &'a Ranges,
    samples: Cow<'a, Tensor>,
    methods: Methods,
    constraints: Constraints,
}

impl<'a> Quantizer<'a> {
    /// Bytes of samples on their way through the network: where all would take more, only some of
    /// them, evenly spaced, are used.
    pub const MEMORY: usize = 3 << 30;

    /// A quantizer of a float network with its calibrated ranges. `samples` are preprocessed, (N,
    /// sample shape).
    pub fn new(
        graph: &'a Graph,
        ranges: &'a Ranges,
        samples: &'a Tensor,
        methods: Methods,
        constraints: Constraints,
    ) -> Self {
        let most = (Self::MEMORY / pass::bytes_per_sample(graph)).max(1);
        let samples = every(samples, most);
        Self { graph, ranges, samples, methods, constraints }
    }

    /// The calibrated ranges.
    pub fn ranges(&self) -> &'a Ranges {
        self.ranges
    }

    /// What may be done, and what the hardware allows.
    pub fn settings(&self) -> (Methods, Constraints) {
        (self.methods, self.constraints)
    }

    /// The plain quantizer under the same constraints.
    #[must_use]
    pub fn plain(&self) -> Self {
        // No sample says anything to it; one is there to run through the layers.
        Self {
            samples: Cow::Owned(every(&self.samples, 1).into_owned()),
            methods: Methods::plain(),
            ..*self
        }
    }

    /// Parameters of an operating point.
    pub fn fit(&self, point: &Point) -> Parameters {
        self.tuned(point, &mut [])
    }

    /// The integer networks of several points that share one copy of weights: narrow points read the
    /// leading bits of the widest one's codes. Their names end in `-nested`.
    ///
    /// # Errors
    ///
    /// All operators that have no integer form, each with its node.
    pub fn quantize_nested(
        &self,
        points: &[Point],
    ) -> Result<Vec<IntegerModel>, UnsupportedOperators> {
        let layers = self.graph.mac_layers().len();
        let bits = |point: &Point| -> u32 {
            (0..layers).map(|l| u32::from(point.widths(l, layers).weights.get())).sum()
        };
        let mut nests = nest::nests(&points.iter().collect::<Vec<_>>(), layers);
        let mut order: Vec<usize> = (0..points.len()).collect();
        order.sort_by_key(|&index| (bits(&points[index]), index));
        let mut models: Vec<Option<IntegerModel>> = vec![None; points.len()];
        for index in order {
            let point = &points[index];
            let parameters = self.tuned(point, &mut nests);
            let mut model = lower::lower(self.graph, self.ranges, &parameters, point)?;
            model.point += NESTED;
            models[index] = Some(model);
        }
        Ok(models.into_iter().flatten().collect())
    }

    /// Parameters of a point, tuned where that applies.
    fn tuned(&self, point: &Point, nests: &mut [nest::LayerNest]) -> Parameters {
        let pass = self.pass(point, self.methods);
        if !tune::applies(&pass) {
            return pass.run(&self.samples, nests);
        }
        // What judges must not have been fitted to.
        let (samples, held_out) = split(&self.samples, tune::HELD_OUT);
        let few = tune::is_few(&pass);
        let pass = pass::Pass { samples: samples.shape()[0], ..pass };
        let parameters = pass.run(&samples, nests);
        tune::tune(&pass, few, &samples, &held_out, parameters)
    }

    fn pass<'p>(&'p self, point: &'p Point, methods: Methods) -> pass::Pass<'p> {
        pass::Pass {
            graph: self.graph,
            ranges: self.ranges,
            point,
            methods,
            constraints: self.constraints,
            samples: self.samples.shape()[0],
        }
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

/// At most `most` samples, evenly spaced.
fn every(samples: &Tensor, most: usize) -> Cow<'_, Tensor> {
    let n = samples.shape()[0];
    if n <= most {
        return Cow::Borrowed(samples);
    }
    let size = samples.values().len() / n;
    let values = (0..most).flat_map(|i| &samples.values()[i * n / most * size..][..size]);
    let shape = [&[most], &samples.shape()[1..]].concat();
    Cow::Owned(Tensor::new(shape, values.copied().collect()))
}

/// Samples (N, sample shape) in two: all but every `one_of`-th, and those.
fn split(samples: &Tensor, one_of: usize) -> (Tensor, Tensor) {
    let size = samples.values().len() / samples.shape()[0];
    let part = |wanted: &dyn Fn(usize) -> bool| {
        let rows = samples.values().chunks_exact(size).enumerate().filter(|(i, _)| wanted(*i));
        let values: Vec<f32> = rows.flat_map(|(_, row)| row).copied().collect();
        let shape = [&[values.len() / size], &samples.shape()[1..]].concat();
        Tensor::new(shape, values)
    };
    (part(&|i| i % one_of != 0), part(&|i| i % one_of == 0))
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
