//! How long quantization takes, nominally: to plan by. The figures are those of two cores of an x86 server.
//!
//! Time goes with the elements of the layers' results, much more than with the products in them: ResNet-20,
//! DS-CNN and EfficientNet-Lite0 take these times per element, to within a third.

use super::{Point, Quantizer, tune};

/// Fitting, for each element and sample.
const FITTING_SECONDS: f64 = 1e-7;
/// Tuning, for each element and run.
const TUNING_SECONDS: f64 = 1e-8;
/// What measuring sensitivities at a pair of widths takes of what fitting a point does.
const SENSITIVITY_SHARE: f64 = 0.5;

impl Quantizer<'_> {
    /// Seconds that fitting a point takes, tuning included.
    pub fn fitting_seconds(&self) -> f64 {
        let runs = tune::runs(&self.pass(&Point::widest(), self.methods));
        self.layers_seconds() + self.elements() * runs as f64 * TUNING_SECONDS
    }

    /// Seconds that [`Quantizer::sensitivity`] takes.
    pub fn sensitivity_seconds(&self, pairs: usize) -> f64 {
        SENSITIVITY_SHARE * pairs as f64 * self.layers_seconds()
    }

    /// Seconds of fitting the layers one by one.
    fn layers_seconds(&self) -> f64 {
        self.elements() * self.samples.shape()[0] as f64 * FITTING_SECONDS
    }

    /// Elements of all layers' results.
    fn elements(&self) -> f64 {
        let layers = self.graph.mac_layers();
        layers.iter().map(|layer| layer.output.iter().product::<usize>()).sum::<usize>() as f64
    }
}
