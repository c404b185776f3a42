//! Where maps lie in memory: maps that are never needed at once share a buffer.

use bitgear_core::kernels::{Codes, CodesMut};

use super::model::{Format, IntegerModel, Map, MapId, NOWHERE, Step};

/// Elements of a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    U8,
    U16,
    I32,
}

/// A buffer that several maps use, one after another.
struct Slot {
    element: Element,
    /// Elements that the largest of the maps takes.
    len: usize,
    /// The map whose zero code fills it in the beginning; none where nobody reads what no step wrote.
    filled: Option<MapId>,
}

/// Memory of a slot.
pub(super) enum Buffer {
    U8(Vec<u8>),
    U16(Vec<u16>),
    I32(Vec<i32>),
}

impl Buffer {
    /// The first `len` codes.
    pub(super) fn codes(&self, len: usize) -> Codes<'_> {
        match self {
            Self::U8(codes) => Codes::U8(&codes[..len]),
            Self::U16(codes) => Codes::U16(&codes[..len]),
            Self::I32(_) => unreachable!("scores are read by no step"),
        }
    }

    /// The first `len` elements.
    pub(super) fn codes_mut(&mut self, len: usize) -> CodesMut<'_> {
        match self {
            Self::U8(codes) => CodesMut::U8(&mut codes[..len]),
            Self::U16(codes) => CodesMut::U16(&mut codes[..len]),
            Self::I32(scores) => CodesMut::I32(&mut scores[..len]),
        }
    }

    /// A copy of the first `len` elements.
    pub(super) fn prefix(&self, len: usize) -> Self {
        match self {
            Self::U8(codes) => Self::U8(codes[..len].to_vec()),
            Self::U16(codes) => Self::U16(codes[..len].to_vec()),
            Self::I32(scores) => Self::I32(scores[..len].to_vec()),
        }
    }

    /// Overwrites everything with the beginning of another buffer of the same kind.
    pub(super) fn fill_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::U8(to), Self::U8(from)) => overwrite(to, from),
            (Self::U16(to), Self::U16(from)) => overwrite(to, from),
            (Self::I32(to), Self::I32(from)) => overwrite(to, from),
            _ => unreachable!("a map is kept in its format"),
        }
    }

    /// Overwrites the beginning with another buffer of the same kind.
    pub(super) fn begin_with(&mut self, other: &Self) {
        match (self, other) {
            (Self::U8(to), Self::U8(from)) => to[..from.len()].copy_from_slice(from),
            (Self::U16(to), Self::U16(from)) => to[..from.len()].copy_from_slice(from),
            (Self::I32(to), Self::I32(from)) => to[..from.len()].copy_from_slice(from),
            _ => unreachable!("maps are handed on in pairs of equal format"),
        }
    }
}

fn overwrite<T: Copy>(to: &mut [T], from: &[T]) {
    let len = to.len();
    to.copy_from_slice(&from[..len]);
}

/// A plan of a network's memory.
pub(super) struct Arena {
    slots: Vec<Slot>,
    /// The slot of each map.
    pub(super) slot_of: Vec<usize>,
}

impl Arena {
    /// `keep` are maps that somebody reads when all steps have run.
    pub(super) fn new(model: &IntegerModel, keep: &[MapId]) -> Self {
        let spans = spans(model, keep);
        let partly = partly_written(model);
        let is_filled = |id: MapId| partly.contains(&id) || model.maps[id].layout.pads != [0; 4];
        let mut order: Vec<MapId> = (0..model.maps.len()).collect();
        order.sort_by_key(|&map| spans[map].0);
        let mut slots: Vec<Slot> = Vec::new();
        // The last step that needs each slot so far.
        let mut busy_until: Vec<usize> = Vec::new();
        let mut slot_of = vec![0; model.maps.len()];
        for id in order {
            let map = &model.maps[id];
            let (first, last) = spans[id];
            // Of the free ones that fit, the one that has to grow least and wastes least.
            let waste = |slot: &Slot| slot.len.abs_diff(map.layout.len());
            let free = (0..slots.len())
                .filter(|&s| busy_until[s] < first && fits(&slots[s], model, map, is_filled(id)))
                .min_by_key(|&s| (waste(&slots[s]), s));
            let slot = free.unwrap_or_else(|| {
                let filled = is_filled(id).then_some(id);
                slots.push(Slot { element: element(map), len: 0, filled });
                busy_until.push(0);
                slots.len() - 1
            });
            slots[slot].len = slots[slot].len.max(map.layout.len());
            (busy_until[slot], slot_of[id]) = (last, slot);
        }
        Self { slots, slot_of }
    }

    /// Fresh memory.
    pub(super) fn buffers(&self, model: &IntegerModel) -> Vec<Buffer> {
        let buffer = |slot: &Slot| {
            let (len, fill) = (slot.len, slot.filled.map_or(0, |map| model.maps[map].fill()));
            match slot.element {
                Element::U8 => Buffer::U8(vec![fill as u8; len]),
                Element::U16 => Buffer::U16(vec![fill; len]),
                Element::I32 => Buffer::I32(vec![0; len]),
            }
        };
        self.slots.iter().map(buffer).collect()
    }
}

/// Nobody overwrites halos, so maps with one share only with maps that have the same.
fn fits(slot: &Slot, model: &IntegerModel, map: &Map, is_filled: bool) -> bool {
    let same = match slot.filled {
        None => !is_filled,
        Some(other) => {
            let other = &model.maps[other];
            is_filled && other.layout == map.layout && other.fill() == map.fill()
        }
    };
    slot.element == element(map) && same
}

/// Results of gathers of which some elements come from nowhere: they stay as they were in the beginning.
fn partly_written(model: &IntegerModel) -> Vec<MapId> {
    let partly = |step: &Step| match step {
        Step::Gather { sources, output } => {
            let filled = |k: usize| sources.iter().any(|(_, from)| from[k] != NOWHERE);
            let elements = sources.first().map_or(0, |(_, from)| from.len());
            (!(0..elements).all(filled)).then_some(*output)
        }
        _ => None,
    };
    model.steps.iter().filter_map(partly).collect()
}

fn element(map: &Map) -> Element {
    match &map.format {
        Format::Scores { .. } => Element::I32,
        Format::Codes(scale) if scale.bits.get() <= 8 => Element::U8,
        Format::Codes(_) => Element::U16,
    }
}

/// The first and last step, counted from 1, that need each map; 0 is before all steps, and the largest
/// number after them.
fn spans(model: &IntegerModel, keep: &[MapId]) -> Vec<(usize, usize)> {
    let mut spans = vec![(usize::MAX, 0); model.maps.len()];
    let mut need = |map: MapId, from: usize, to: usize| {
        let span: &mut (usize, usize) = &mut spans[map];
        *span = (span.0.min(from), span.1.max(to));
    };
    let mut made = vec![false; model.maps.len()];
    for (index, step) in model.steps.iter().enumerate() {
        let step_number = index + 1;
        step.results(&mut |map| {
            made[map] = true;
            need(map, step_number, step_number);
        });
        step.operands(&mut |map| need(map, step_number, step_number));
    }
    for map in partly_written(model) {
        need(map, 0, usize::MAX);
    }
    for (map, _) in made.iter().enumerate().filter(|(_, made)| !**made) {
        // Constants are stored once and for all.
        let last = if model.maps[map].constant.is_empty() { 0 } else { usize::MAX };
        need(map, 0, last);
    }
    for &map in keep.iter().chain([&model.scores]) {
        need(map, usize::MAX, usize::MAX);
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::fixture::model;

    #[test]
    fn maps_that_share_a_buffer_are_needed_one_after_another() {
        let model = model(&[(4, 4); 9]);
        let keep = [model.maps.len() / 2];
        let arena = Arena::new(&model, &keep);
        let spans = spans(&model, &keep);
        let maps = 0..model.maps.len();
        for (a, b) in maps.clone().flat_map(|a| maps.clone().map(move |b| (a, b))) {
            let apart = spans[a].1 < spans[b].0 || spans[b].1 < spans[a].0;
            assert!(a == b || apart || arena.slot_of[a] != arena.slot_of[b], "{a} and {b}");
        }
        let own: usize = model.maps.iter().map(|map| map.layout.len()).sum();
        let shared: usize = arena.slots.iter().map(|slot| slot.len).sum();
        assert!(shared < own, "{shared} of {own} elements");
    }
}
