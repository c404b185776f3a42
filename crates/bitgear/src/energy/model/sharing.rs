//! Stages that go on from an earlier one, and points that share one copy of their weights.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Pricing;
use crate::energy::schema::Packing;
use crate::energy::workload::{Live, Widths, Workload};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Every point has its own.
    #[default]
    Independent,
    /// One copy of the widest codes of each layer; narrower points read their leading bits.
    Nested,
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
    /// of equal widths, `most` at most, up to a boundary.
    ///
    /// Layers before a boundary compute the same in both only while nothing read across it has more
    /// than 8 bits: wider results are computed with finer biases.
    pub fn shared_layers(&self, low: &[Widths], high: &[Widths], most: usize) -> usize {
        let equal = low.iter().zip(high).take_while(|(low, high)| low == high).count().min(most);
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

impl<'a> Pricing<'a> {
    /// Bits of a layer's weights and biases that a stage reads.
    pub(super) fn weight_bits(&self, point: &[Widths], layer: usize) -> f64 {
        let work = &self.workload.layers[layer];
        let bits = match (self.storage, self.offchip().map(|m| m.packing)) {
            // Leading bits can be read alone only where codes aren't padded to whole bytes.
            (Storage::Nested, Some(Packing::Byte | Packing::Word)) => self.widest_bits(layer),
            _ => point[layer].weights,
        };
        self.stored(work.weights, bits) + (work.biases * 32) as f64
    }

    /// The stages that run a layer.
    pub(super) fn runs(&self, layer: usize) -> impl Iterator<Item = &StagePoint<'a>> {
        self.stages.iter().filter(move |stage| layer >= stage.shared)
    }

    pub(super) fn widest_bits(&self, layer: usize) -> u8 {
        self.runs(layer).map(|stage| stage.widths[layer].weights).max().unwrap_or(0)
    }

    /// Bits of all weights and biases that the policy's stages keep between them.
    pub(super) fn all_weight_bits(&self) -> f64 {
        let layers = self.workload.layers.iter().enumerate();
        let bits = layers.map(|(layer, work)| match self.storage {
            Storage::Independent => {
                self.runs(layer).map(|stage| self.weight_bits(stage.widths, layer)).sum()
            }
            Storage::Nested => {
                let biases = work.biases * 32 * self.runs(layer).count() as u64;
                self.stored(work.weights, self.widest_bits(layer)) + biases as f64
            }
        });
        bits.fold(0.0, |sum: f64, bits: f64| sum + bits)
    }

    /// What the stage before stage `index` pays for writing, and this one for reading what crosses
    /// the boundary between them: nothing where it fits on chip beside the largest live activations
    /// of the rest of the stage before.
    pub(super) fn boundary_uj(&self, index: usize, resident: bool) -> [f64; 2] {
        let StagePoint { widths, shared } = self.stages[index];
        let boundary = self.workload.layers[shared].boundary.as_ref();
        let boundary = boundary.expect("stages share layers up to a boundary");
        // Readers of one version share it. A layer that spills is charged for its operand already.
        let mut versions: BTreeMap<(usize, u8), (u64, bool)> = BTreeMap::new();
        for live in boundary {
            let version = versions.entry((live.tensor, live.bits(widths))).or_default();
            version.0 = live.elements;
            version.1 |= live.side || !self.spills(widths, live.layer);
        }
        let bits = |read_only: bool| {
            let counted = versions.iter().filter(|&(_, &(_, read))| read || !read_only);
            counted.fold(0.0, |sum, (&(_, bits), &(elements, _))| sum + self.stored(elements, bits))
        };
        let weights = if resident { self.all_weight_bits() } else { 0.0 };
        let live = self.most_live_bits(self.stages[index - 1].widths, shared);
        if self.fits(live + bits(false), weights) {
            return [0.0; 2];
        }
        self.traffic_uj(bits(false), bits(true))
    }
}
