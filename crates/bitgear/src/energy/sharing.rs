//! Stages that go on from an earlier one, and points that share one copy of their weights.

use serde::{Deserialize, Serialize};

use super::model::{Widths, Workload};

/// Least width of what isn't read by a MAC layer, such as residuals.
pub(super) const SIDE_PATH_BITS: u8 = 8;

/// One stage of a policy, as energy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagePoint<'a> {
    /// Widths of every layer.
    pub widths: &'a [Widths],
    /// Leading layers that it doesn't run: it goes on from what the stage before computed.
    pub shared: usize,
}

/// How the weights of a policy's points are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Every point has its own.
    #[default]
    Independent,
    /// One copy of the widest codes of each layer; narrower points read their leading bits.
    Nested,
}

/// A tensor that is made before a boundary between layers and read after it, by one of its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Tells tensors apart.
    pub tensor: usize,
    /// Its elements.
    pub elements: u64,
    /// The layer that reads it.
    pub layer: usize,
    /// Whether it is read as anything else than the operand of a MAC layer, and so keeps at least
    /// 8 bits.
    pub side: bool,
}

impl Live {
    /// Bits of the version that its reader asks for.
    pub(super) fn bits(&self, widths: &[Widths]) -> u8 {
        let bits = widths[self.layer].activations;
        if self.side { bits.max(SIDE_PATH_BITS) } else { bits }
    }
}

impl Workload {
    /// The most leading layers that a stage at widths `high` can leave to one at widths `low`: those
    /// of equal widths, up to a boundary.
    ///
    /// Layers before a boundary compute the same in both only while nothing read across it has more
    /// than 8 bits: wider results are computed with finer biases.
    pub fn shared_layers(&self, low: &[Widths], high: &[Widths]) -> usize {
        let equal = low.iter().zip(high).take_while(|(low, high)| low == high).count();
        let narrow = |widths: &[Widths], live: &Live| {
            let after = &widths[live.layer..];
            let read = if live.side { after } else { &after[..1] };
            read.iter().all(|widths| widths.activations <= SIDE_PATH_BITS)
        };
        (1..self.layers.len())
            .rev()
            .filter(|&layer| layer <= equal)
            .find(|&layer| {
                self.layers[layer].boundary.as_ref().is_some_and(|live| {
                    live.iter().all(|live| narrow(low, live) && narrow(high, live))
                })
            })
            .unwrap_or(0)
    }
}
