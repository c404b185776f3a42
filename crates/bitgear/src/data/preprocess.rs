//! From stored values to what the network expects.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// value = (x · scale - mean) / std, per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Preprocess {
    /// Factor of every stored value.
    pub scale: f32,
    /// One value, or one per channel (the first axis of a sample).
    pub mean: Vec<f32>,
    /// One value, or one per channel.
    pub std: Vec<f32>,
}

impl Default for Preprocess {
    /// Leaves values as they are.
    fn default() -> Self {
        Self { scale: 1.0, mean: vec![0.0], std: vec![1.0] }
    }
}

/// The preprocessing does not fit the samples.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("preprocessing: {0}")]
pub struct InvalidPreprocess(String);

impl Preprocess {
    /// Checks the numbers, and their count against the channels of `sample_shape`.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check(&self, sample_shape: &[usize]) -> Result<(), InvalidPreprocess> {
        let channels = sample_shape.first().copied().unwrap_or(1);
        let fail = |reason| Err(InvalidPreprocess(reason));
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != channels {
                return fail(format!(
                    "`{name}` must hold 1 or {channels} values, got {}",
                    values.len()
                ));
            }
            if values.iter().any(|v| !v.is_finite()) {
                return fail(format!("`{name}` must be finite, got {values:?}"));
            }
        }
        if self.std.contains(&0.0) {
            return fail(format!("`std` must not be 0, got {:?}", self.std));
        }
        if !self.scale.is_finite() || self.scale == 0.0 {
            return fail(format!("`scale` must be finite and not 0, got {}", self.scale));
        }
        Ok(())
    }

    /// Converts one sample in place; the preprocessing must fit it, see [`Self::check`].
    pub fn apply(&self, sample_shape: &[usize], sample: &mut [f32]) {
        let plane: usize = sample_shape.iter().skip(1).product();
        for (channel, values) in sample.chunks_exact_mut(plane).enumerate() {
            let of = |v: &[f32]| if v.len() == 1 { v[0] } else { v[channel] };
            let (mean, std) = (of(&self.mean), of(&self.std));
            for value in values {
                *value = (*value * self.scale - mean) / std;
            }
        }
    }
}
