//! Operators that only move codes, as tables of where each one comes from.

use bitgear_core::kernels::MapLayout;

use super::{Group, Lowering, layout};
use crate::execute::{Format, NOWHERE, Step};
use crate::graph::{Node, Op};
use crate::tensor::Tensor;

impl Lowering<'_> {
    /// Adds one gather per version of the result.
    pub(super) fn movement(&mut self, group: &Group) {
        let node = &self.graph.nodes[group.head];
        if matches!(node.op, Op::Pad { value, .. } if value != 0.0) {
            self.problem(group.head, "padding with a value other than 0");
            return;
        }
        let origins = self.origins(node);
        let out_shape = self.graph.shape(node.output);
        for (demand, output) in self.versions_of(node.output).collect::<Vec<_>>() {
            let sources = node
                .inputs
                .iter()
                .enumerate()
                .map(|(operand, &tensor)| {
                    let map = self.versions[&(tensor, demand)];
                    let offsets = offsets(self.graph.shape(tensor), &self.maps[map].layout);
                    let from = |i: usize| match origins[i] {
                        Some((from, index)) if from == operand => offsets[index],
                        _ => NOWHERE,
                    };
                    (map, storage_order(out_shape).map(from).collect())
                })
                .collect();
            self.steps.push(Step::Gather { sources, output });
        }
    }

    /// For each element of the result, row-major: which operand and which of its elements it is.
    fn origins(&self, node: &Node) -> Vec<Option<(usize, usize)>> {
        let out = self.graph.shape(node.output);
        let input = |operand: usize| self.graph.shape(node.inputs[operand]);
        let elements = out.iter().product::<usize>();
        (0..elements)
            .map(|i| {
                let at = position(i, out);
                Some(match &node.op {
                    Op::Reshape => (0, i),
                    Op::Transpose { permutation } => {
                        let mut from = vec![0; at.len()];
                        for (axis, &source) in permutation.iter().enumerate() {
                            from[source] = at[axis];
                        }
                        (0, index(&from, input(0)))
                    }
                    Op::Slice { ranges } => {
                        let from: Vec<usize> = at
                            .iter()
                            .zip(ranges)
                            .map(|(&i, range)| {
                                range.start.wrapping_add_signed(i as isize * range.step)
                            })
                            .collect();
                        (0, index(&from, input(0)))
                    }
                    Op::Pad { pads, .. } => {
                        let from: Option<Vec<usize>> = at
                            .iter()
                            .zip(pads)
                            .zip(input(0))
                            .map(|((&i, &(before, _)), &size)| {
                                i.checked_sub(before).filter(|&i| i < size)
                            })
                            .collect();
                        (0, index(&from?, input(0)))
                    }
                    Op::Concat { axis } => {
                        let mut from = at;
                        let mut operand = 0;
                        while from[*axis] >= input(operand)[*axis] {
                            from[*axis] -= input(operand)[*axis];
                            operand += 1;
                        }
                        (operand, index(&from, input(operand)))
                    }
                    op => unreachable!("`{op:?}` computes"),
                })
            })
            .collect()
    }
}

/// Coordinates of row-major element `i`.
fn position(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (place, &size) in at.iter_mut().zip(shape).rev() {
        *place = i % size;
        i /= size;
    }
    at
}

/// Row-major index of coordinates.
fn index(at: &[usize], shape: &[usize]) -> usize {
    at.iter().zip(shape).fold(0, |index, (&i, &size)| index * size + i)
}

/// Row-major indices of a tensor's elements, in the (y, x, channel) order of its map.
fn storage_order(shape: &[usize]) -> impl Iterator<Item = usize> + use<> {
    let MapLayout { height, width, channels, .. } = layout(shape);
    // Only images keep their channels outermost.
    let planar = shape.len() == 3;
    (0..height * width * channels).map(move |k| {
        let (pixel, channel) = (k / channels, k % channels);
        if planar { channel * height * width + pixel } else { k }
    })
}

/// Where in memory each element of a tensor lies, by row-major index.
fn offsets(shape: &[usize], layout: &MapLayout) -> Vec<u32> {
    let mut offsets = vec![0; shape.iter().product()];
    for (k, i) in storage_order(shape).enumerate() {
        let (pixel, channel) = (k / layout.channels, k % layout.channels);
        let (y, x) = (pixel / layout.width, pixel % layout.width);
        offsets[i] = (layout.offset(y, x) + channel) as u32;
    }
    offsets
}

/// A constant operand's codes in (y, x, channel) order.
pub(super) fn constant_codes(tensor: &Tensor, format: &Format) -> Vec<u16> {
    let Format::Codes(scale) = format else {
        return Vec::new();
    };
    storage_order(tensor.shape()).map(|i| scale.code(f64::from(tensor.values()[i]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_elements_lie_channels_last_inside_the_halo() {
        // 2 channels of 1 x 2 pixels, one pixel of halo on the left: stride 4, rows of 3 pixels.
        let layout = MapLayout { pads: [0, 1, 0, 0], ..MapLayout::new(1, 2, 2) };
        assert_eq!(offsets(&[2, 1, 2], &layout), [4, 8, 5, 9]);
    }

    #[test]
    fn position_and_index_are_inverse() {
        let shape = [3, 4, 5];
        assert!((0..60).all(|i| index(&position(i, &shape), &shape) == i));
    }
}
