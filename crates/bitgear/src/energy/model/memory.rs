//! What is kept where, and what moving it costs.

use super::sharing::SIDE_PATH_BITS;
use super::{Pricing, result_bits};
use crate::energy::schema::{Holds, Memory, Quantity};
use crate::energy::workload::Widths;

impl Pricing<'_> {
    /// Bits that fit on chip of what a memory of one of `kinds` holds.
    pub(super) fn onchip_bits(&self, kinds: &[Holds]) -> Option<f64> {
        let holding = |m: &&Memory| !m.is_offchip() && m.holds.iter().any(|h| kinds.contains(h));
        let mut memories = self.profile.memories.iter().filter(holding).peekable();
        memories.peek()?;
        memories
            .map(|m| m.size_bytes.and_then(Quantity::known).map(|bytes| bytes * 8.0))
            .sum::<Option<f64>>()
    }

    pub(super) fn offchip(&self) -> Option<&Memory> {
        self.profile.memories.iter().find(|m| m.is_offchip())
    }

    pub(super) fn stored(&self, elements: u64, bits: u8) -> f64 {
        let bits = self.offchip().map_or(u64::from(bits), |m| m.packing.stored_bits(bits));
        (elements * bits) as f64
    }

    /// Bits that must be held while a layer runs; a residual keeps at least 8 bits.
    fn live_bits(&self, point: &[Widths], layer: usize) -> f64 {
        let work = &self.workload.layers[layer];
        let activations = point[layer].activations;
        self.stored(work.inputs, activations)
            + self.stored(work.outputs, result_bits(point, layer))
            + self.stored(work.residual, activations.max(SIDE_PATH_BITS))
    }

    /// The most bits that must be held while the layers from `first` on run.
    pub(super) fn most_live_bits(&self, point: &[Widths], first: usize) -> f64 {
        let layers = first..self.workload.layers.len();
        layers.map(|layer| self.live_bits(point, layer)).fold(0.0, f64::max)
    }

    /// Whether activations, weights and both together have their places.
    pub(super) fn fits(&self, activations: f64, weights: f64) -> bool {
        let places: [(f64, &[Holds]); 3] = [
            (activations, &[Holds::Inputs, Holds::Outputs]),
            (weights, &[Holds::Weights]),
            (activations + weights, &[Holds::Inputs, Holds::Outputs, Holds::Weights]),
        ];
        places.iter().all(|&(bits, kinds)| {
            bits == 0.0 || self.onchip_bits(kinds).is_some_and(|capacity| bits <= capacity)
        })
    }

    pub(super) fn is_resident(&self) -> bool {
        let live = self.stages.iter().map(|s| self.most_live_bits(s.widths, s.shared));
        self.fits(live.fold(0.0, f64::max), self.all_weight_bits())
    }

    pub(super) fn spills(&self, point: &[Widths], layer: usize) -> bool {
        !self.fits(self.live_bits(point, layer), 0.0)
    }

    /// Bits that a layer moves off chip: \[written, read\].
    pub(super) fn offchip_bits(&self, point: &[Widths], layer: usize, resident: bool) -> [f64; 2] {
        let work = &self.workload.layers[layer];
        let spills = self.spills(point, layer);
        let (mut read, mut written) = (0.0, 0.0);
        if !resident {
            read += self.weight_bits(point, layer);
        }
        if spills || layer == 0 {
            read += self.stored(work.inputs, point[layer].activations);
        }
        if spills {
            read += self.stored(work.residual, point[layer].activations.max(SIDE_PATH_BITS));
            written += self.stored(work.outputs, result_bits(point, layer));
        }
        [written, read]
    }

    /// Energy of off-chip traffic: \[written, read\]. What is unknown is in the profile's `not_counted`.
    pub(super) fn traffic_uj(&self, written: f64, read: f64) -> [f64; 2] {
        let Some(memory) = self.offchip() else {
            return [0.0; 2];
        };
        [price(memory.write_pj_per_bit) * written, price(memory.read_pj_per_bit) * read]
            .map(|pj| pj * 1e-6)
    }

    /// Energy of the on-chip memories that a MAC's energy does not contain.
    ///
    /// Weights and inputs are read once for every `reuse` MACs, at least once, and written once where
    /// they come from outside or from the layer before. A partial sum is written and read, at the
    /// accumulator's width, once for every `reuse` MACs, at least once for every result.
    pub(super) fn onchip_uj(&self, point: &[Widths], layer: usize, resident: bool) -> f64 {
        let work = &self.workload.layers[layer];
        let Widths { weights, activations } = point[layer];
        let times = |elements: u64, reuse: Option<Quantity>| {
            let served =
                reuse.and_then(Quantity::known).map_or(0.0, |reuse| work.macs as f64 / reuse);
            served.max(elements as f64)
        };
        let mut pj = 0.0;
        let priced = |m: &&Memory| !m.is_offchip() && !m.in_mac_energy;
        for memory in self.profile.memories.iter().filter(priced) {
            let width = |bits: u8| memory.packing.stored_bits(bits) as f64;
            let (read, write) = (price(memory.read_pj_per_bit), price(memory.write_pj_per_bit));
            for holds in &memory.holds {
                pj += match holds {
                    // A product of two computed matrices reads no weights.
                    Holds::Weights if work.weights == 0 => 0.0,
                    Holds::Weights => {
                        let filled = if resident { 0.0 } else { work.weights as f64 };
                        let used = times(work.weights, memory.reuse_weights);
                        width(weights) * (used * read + filled * write)
                    }
                    Holds::Inputs => {
                        let used = times(work.inputs, memory.reuse_inputs);
                        let side = width(activations.max(SIDE_PATH_BITS)) * work.residual as f64;
                        width(activations) * (used * read + work.inputs as f64 * write)
                            + side * read
                    }
                    // Read again as the inputs of the next layer.
                    Holds::Outputs => {
                        width(result_bits(point, layer)) * work.outputs as f64 * write
                    }
                    Holds::PartialSums => {
                        let bits = f64::from(self.profile.matching.accumulator_bits);
                        bits * times(work.outputs, memory.reuse_outputs) * (read + write)
                    }
                };
            }
        }
        pj * 1e-6
    }
}

fn price(pj_per_bit: Option<Quantity>) -> f64 {
    pj_per_bit.and_then(Quantity::known).unwrap_or(0.0)
}
