//! What few bits do to each layer of a network: plain data, measured by
//! [`Quantizer::sensitivity`](crate::quantize::Quantizer::sensitivity).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sensitivities of a network's MAC layers, in execution order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sensitivity {
    /// One per MAC layer.
    pub layers: Vec<LayerSensitivity>,
}

/// What few bits do to one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerSensitivity {
    /// Name of its node.
    pub name: String,
    /// At each pair of widths.
    pub widths: Vec<WidthSensitivity>,
    /// Largest magnitude of the input over its root mean square: outliers make steps coarse.
    pub input_peak: f64,
    /// Largest over median range of the input's channels: narrow channels get few codes.
    pub channel_spread: f64,
    /// The same ratio of the largest weight of a channel to its root mean square, at its worst.
    pub weight_peak: f64,
    /// Share of plain rounding's squared error, at the narrowest widths, that is a shift of the
    /// channels' means.
    pub bias_share: f64,
}

/// What one pair of widths does to one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WidthSensitivity {
    /// Of weights.
    pub weights: u8,
    /// Of activations.
    pub activations: u8,
    /// Mean Kullback-Leibler divergence of the network's answers from the float network's, in nats,
    /// when this layer alone is quantized: to second order in the layer's error, on samples that it was
    /// not fitted to.
    pub divergence: f64,
    /// Signal-to-noise ratio of the layer's result in decibel, with the best quantizer.
    pub snr_db: f64,
    /// The same with plain rounding.
    pub plain_snr_db: f64,
}

impl LayerSensitivity {
    /// The main reason for its losses: `outliers`, `channel ranges`, `bias`, or `width`: nothing but
    /// too few codes.
    pub fn cause(&self) -> &'static str {
        let causes = [
            (self.input_peak / 12.0, "input outliers"),
            (self.weight_peak / 6.0, "weight outliers"),
            (self.channel_spread / 8.0, "channel ranges"),
            (self.bias_share / 0.25, "bias"),
        ];
        let worst = causes.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        worst.filter(|(size, _)| *size > 1.0).map_or("width", |(_, name)| name)
    }
}
