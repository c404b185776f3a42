//! Layers of codes and weights of one bit each, by sums that are looked up.
//!
//! What four channels of a pixel add to a sum depends on the signs of their four weights alone. So it is
//! computed for all signs at once, eight sums for each pixel and group, since those of opposite signs are
//! opposite; then an output channel needs one addition or subtraction a tap and group. Pixels lie side by
//! side in planes, one for each group and signs, and many are added by one instruction.
//!
//! Sums are bytes. They are taken modulo 256 from the number of negative weights on, so that what they end
//! with is the exact sum plus that number: 0 to 255 for so many taps and groups as a *block* holds.
#![cfg_attr(
    not(all(feature = "std", target_arch = "x86_64")),
    allow(dead_code, reason = "only SIMD kernels look up")
)]

use super::types::{ConvShape, PANEL};
use crate::bits::BitWidth;

/// Pixels that one instruction adds.
pub(super) const LANES: usize = 32;
/// Channels of a group.
pub(super) const GROUP: usize = 4;
/// Planes of a group, by signs: bit i of their number says that channel i + 1 counts negatively.
pub(super) const SIGNS: usize = 8;
/// Bytes of all planes of a block, at most.
pub(super) const PLANES_LEN: usize = 40 << 10;
/// Sums of a band, at most.
pub(super) const SUMS_LEN: usize = 32 << 10;
/// Words before the places of a block: how many of them are added, and the number of negative weights.
const HEAD: usize = 2;

/// How a layer is divided: its rows into bands, its groups of channels into blocks.
///
/// A block's planes are [vertical phase][copy][group][signs][row][column]. Rows of a phase are as far apart
/// as those that consecutive rows of the result begin at. Where windows overlap, columns of a window are read
/// from the same row, and what lies beyond the result's last column is added up for nothing; where that would
/// be too much, there is a copy for each column of the window, of the result's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of the result in a band.
    pub(super) rows: usize,
    /// Groups of channels.
    pub(super) groups: usize,
    /// Groups in a block.
    pub(super) block: usize,
    /// Vertical phases.
    pub(super) phases: usize,
    /// Copies of each row.
    pub(super) copies: usize,
    /// Pixels in a plane's row.
    pub(super) columns: usize,
    /// Bytes from plane to plane.
    pub(super) plane: usize,
}

impl Plan {
    /// The division of a layer that has one.
    pub(super) fn new(shape: &ConvShape) -> Option<Self> {
        let taps = shape.kernel[0] * shape.kernel[1];
        let groups = shape.input.channels.div_ceil(GROUP);
        // Every weight adds at most 1 to a byte.
        let most = usize::from(u8::MAX) / GROUP / taps.max(1);
        let block = if most > GROUP { most - most % GROUP } else { most }.min(groups);
        if block == 0 || shape.groups != 1 || taps * groups * GROUP >= i16::MAX as usize {
            return None;
        }
        let reach = |axis: usize| (shape.kernel[axis] - 1) * shape.dilations[axis];
        let shifted = shape.strides[1] == 1 && 4 * reach(1) < shape.out_width;
        let mut plan = Self {
            rows: 0,
            groups,
            block,
            phases: shape.strides[0].min(shape.kernel[0]),
            copies: if shifted { 1 } else { shape.kernel[1] },
            columns: if shifted { shape.out_width + reach(1) } else { shape.out_width },
            plane: 0,
        };
        let below = reach(0) / shape.strides[0];
        let with_rows = |rows: usize| {
            // The last vector may run past the last row, by less than its length.
            let plane = ((rows + below) * plan.columns).next_multiple_of(LANES) + LANES;
            Self { rows, plane, ..plan }
        };
        let fits = |plan: &Self| {
            plan.planes() * plan.plane <= PLANES_LEN
                && shape.out_channels * plan.vectors(shape, plan.rows) * LANES <= SUMS_LEN
        };
        let most = (1..=shape.out_height).rev().find(|&rows| fits(&with_rows(rows)))?;
        // Bands of about the same size.
        let rows = shape.out_height.div_ceil(shape.out_height.div_ceil(most));
        plan = with_rows(rows);
        Some(plan)
    }

    /// Planes of a block.
    pub(super) fn planes(&self) -> usize {
        self.phases * self.copies * self.block * SIGNS
    }

    /// Blocks of the layer.
    pub(super) fn blocks(&self) -> usize {
        self.groups.div_ceil(self.block)
    }

    /// Groups of a block.
    pub(super) fn groups_of(&self, block: usize) -> usize {
        self.block.min(self.groups - block * self.block)
    }

    /// Vectors of so many rows of the result. They run on from one row to the next.
    pub(super) fn vectors(&self, shape: &ConvShape, rows: usize) -> usize {
        ((rows - 1) * self.columns + shape.out_width).div_ceil(LANES)
    }

    /// Row and column, within its band, of a vector's first pixel, which may lie beyond the last column.
    pub(super) fn vector_at(&self, vector: usize) -> [usize; 2] {
        [vector * LANES / self.columns, vector * LANES % self.columns]
    }

    /// Place of the first of a group's eight planes.
    pub(super) fn planes_at(&self, phase: usize, copy: usize, group: usize) -> usize {
        ((phase * self.copies + copy) * self.block + group) * SIGNS * self.plane
    }

    /// Place among a block's planes of what the tap (`ky`, `kx`) adds to the first pixel of a band.
    fn place(&self, shape: &ConvShape, [ky, kx]: [usize; 2], group: usize, signs: usize) -> usize {
        let (row, column) = (ky * shape.dilations[0], kx * shape.dilations[1]);
        let (phase, below) = (row % shape.strides[0], row / shape.strides[0]);
        let (copy, right) = if self.copies == 1 { (0, column) } else { (kx, 0) };
        self.planes_at(phase, copy, group) + signs * self.plane + below * self.columns + right
    }

    /// Words of packed weights for one output channel and block.
    pub(super) fn words(&self, shape: &ConvShape) -> usize {
        HEAD + shape.kernel[0] * shape.kernel[1] * self.block
    }

    /// Words of packed weights.
    pub(super) fn packed_len(&self, shape: &ConvShape) -> usize {
        self.blocks() * shape.out_channels * self.words(shape)
    }
}

/// What packed words say of one output channel and block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'w> {
    /// Places of what is added.
    pub(super) plus: &'w [i16],
    /// Places of what is subtracted.
    pub(super) minus: &'w [i16],
    /// Number of negative weights.
    pub(super) negatives: i16,
}

impl<'w> Places<'w> {
    /// Reads so many places.
    pub(super) fn new(words: &'w [i16], places: usize) -> Self {
        let (head, rest) = words.split_at(HEAD);
        let (plus, minus) = rest[..places].split_at(head[0] as usize);
        Self { plus, minus, negatives: head[1] }
    }
}

/// Words of packed weights of a layer that has a plan.
pub(super) fn packed_len(shape: &ConvShape) -> usize {
    Plan::new(shape).map_or(0, |plan| plan.packed_len(shape))
}

/// [block][output channel]: head, places that are added, places that are subtracted. Places are 16-bit words
/// without sign.
pub(super) fn pack(shape: &ConvShape, plain: &[i16], out: &mut [i16]) {
    let plan = Plan::new(shape).expect("the class is chosen for layers that have a plan");
    let words = plan.words(shape);
    out.fill(0);
    for (i, out) in out.chunks_exact_mut(words).enumerate() {
        let (block, channel) = (i / shape.out_channels, i % shape.out_channels);
        let filter = &plain[channel * shape.filter_len()..][..shape.filter_len()];
        let (head, places) = out.split_at_mut(HEAD);
        let mut next = 0;
        for wanted in [false, true] {
            for step in 0..shape.kernel[0] * shape.kernel[1] * plan.groups_of(block) {
                let (tap, group) = (step / plan.groups_of(block), step % plan.groups_of(block));
                let first = (block * plan.block + group) * GROUP;
                let channels = first..shape.input.channels.min(first + GROUP);
                let weights = &filter[tap * shape.input.channels..][channels];
                let negative = weights[0] < 0;
                if negative != wanted {
                    continue;
                }
                let signs = weights[1..].iter().enumerate();
                let signs = signs.map(|(i, &w)| usize::from((w < 0) != negative) << i).sum();
                let tap = [tap / shape.kernel[1], tap % shape.kernel[1]];
                places[next] = (plan.place(shape, tap, group, signs) as u16).cast_signed();
                head[1] += weights.iter().filter(|&&w| w < 0).count() as i16;
                next += 1;
            }
            if !wanted {
                head[0] = next as i16;
            }
        }
    }
}

/// Whether the class is exact for these weights and all inputs of `activation` bits.
pub(super) fn is_exact(shape: &ConvShape, plain: &[i16], activation: BitWidth) -> bool {
    activation.get() == 1
        && Plan::new(shape).is_some()
        && plain.iter().all(|w| w.unsigned_abs() == 1)
}

/// Whether the class takes half as many instructions as [`Class::Bytes`](super::Class::Bytes) or fewer, and was
/// not slower where it was measured: fewer than [`FEWEST`] additions a sum don't pay for the tables, nor do windows
/// over rows that fill less than half a vector. Windows that leave pixels out must save as much again.
pub(super) fn pays(shape: &ConvShape) -> bool {
    const FEWEST: usize = 16;
    let Some(plan) = Plan::new(shape) else { return false };
    let taps = shape.kernel[0] * shape.kernel[1];
    let bands = shape.out_height.div_ceil(plan.rows);
    let vectors = bands * plan.vectors(shape, plan.rows);
    let build = bands * plan.blocks() * plan.planes() * plan.plane.div_ceil(LANES) * 3;
    let add = vectors * shape.out_channels * (taps * plan.groups * 3 / 2 + 16 * plan.blocks());
    let pixels = shape.out_height * shape.out_width;
    let steps = pixels * shape.out_channels.div_ceil(PANEL) * taps * plan.groups;
    let full = taps == 1 || shape.out_width >= LANES / 2;
    let most = if shape.strides == [1, 1] { 2 * steps } else { steps };
    full && taps * plan.groups >= FEWEST && build + add <= most
}

const _: () = assert!(PLANES_LEN <= u16::MAX as usize, "places are 16-bit words");
