//! The product of two computed matrices. One version for all CPUs.

use super::scalar::store;
use super::types::{MapLayout, Output, Source};

/// How the matrices of a tensor lie in its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Matrices {
    /// One matrix: a row is a pixel, a column a channel of it. Vectors (F) and sequences (T, D).
    Single,
    /// One matrix per channel: a row is a row of pixels, a column a pixel of it. Tensors of rank 3,
    /// such as (heads, T, d), which lie in memory like images (C, H, W).
    PerChannel,
}

impl Matrices {
    /// Number of matrices, of rows and of columns.
    pub const fn sizes(self, layout: &MapLayout) -> [usize; 3] {
        match self {
            Self::Single => [1, layout.height * layout.width, layout.channels],
            Self::PerChannel => [layout.channels, layout.height, layout.width],
        }
    }

    /// Row, column and channel in the map of an element, given its matrix, row and column.
    pub const fn place(
        self,
        layout: &MapLayout,
        matrix: usize,
        row: usize,
        column: usize,
    ) -> (usize, usize, usize) {
        match self {
            Self::Single => (row / layout.width, row % layout.width, column),
            Self::PerChannel => (row, column, matrix),
        }
    }

    fn index(self, layout: &MapLayout, matrix: usize, row: usize, column: usize) -> usize {
        let (y, x, channel) = self.place(layout, matrix, row, column);
        layout.offset(y, x) + channel
    }
}

/// An operand of a matrix product.
#[derive(Clone, Copy, Debug)]
pub struct MatrixOperand<'a> {
    /// Its map.
    pub source: Source<'a>,
    /// Twice its zero point: twice, since it may lie between two codes.
    pub twice_zero: i32,
}

impl MatrixOperand<'_> {
    /// Twice the centred code.
    fn at(&self, matrices: Matrices, matrix: usize, row: usize, column: usize) -> i64 {
        let index = matrices.index(&self.source.layout, matrix, row, column);
        2 * i64::from(self.source.codes.at(index)) - i64::from(self.twice_zero)
    }
}

pub(super) fn matmul(
    matrices: Matrices,
    a: &MatrixOperand<'_>,
    b: &MatrixOperand<'_>,
    outputs: &mut [Output<'_>],
) {
    let [count, rows, inner] = matrices.sizes(&a.source.layout);
    let [others, depth, columns] = matrices.sizes(&b.source.layout);
    assert!(count == others && inner == depth, "operands don't fit each other");
    for operand in [a, b] {
        let (codes, layout) = (&operand.source.codes, &operand.source.layout);
        assert!(codes.len() >= layout.len(), "operand is smaller than its layout");
    }
    for output in &*outputs {
        let sizes = matrices.sizes(&output.layout);
        assert!(sizes == [count, rows, columns], "result doesn't fit the operands");
        assert!(output.codes.len() >= output.layout.len(), "output");
        assert_eq!(output.multipliers.len(), output.layout.channels, "multipliers");
    }
    for matrix in 0..count {
        for row in 0..rows {
            for column in 0..columns {
                let term = |k| a.at(matrices, matrix, row, k) * b.at(matrices, matrix, k, column);
                let t = (0..inner).map(term).sum();
                for output in &mut *outputs {
                    let (y, x, channel) = matrices.place(&output.layout, matrix, row, column);
                    store(output, t, (y, x), channel, output.multipliers[channel]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Codes, CodesMut, Kernels};

    /// Scores of the product with multiplier 1.
    fn product(
        matrices: Matrices,
        a: (&[u8], MapLayout, i32),
        b: (&[u8], MapLayout, i32),
        out: MapLayout,
    ) -> [i32; 32] {
        let mut scores = [0; 32];
        let multipliers = [1.0; 8];
        let mut outputs = [Output {
            codes: CodesMut::I32(&mut scores),
            layout: out,
            multipliers: &multipliers[..out.channels],
            zero: 0,
            low: i32::MIN,
            high: i32::MAX,
        }];
        let operand = |(codes, layout, twice_zero)| MatrixOperand {
            source: Source { codes: Codes::U8(codes), layout },
            twice_zero,
        };
        Kernels::detect().matmul(matrices, operand(a), operand(b), &mut outputs);
        scores
    }

    #[test]
    fn one_matrix_is_multiplied_from_pixels_and_channels() {
        // (1 2; 3 4) · (1 -1; 0 2), in halves of halves; spare channels hold what must not be read.
        let a = [1, 2, 99, 99, 3, 4, 99, 99];
        let b = [2, 0, 99, 99, 1, 3, 99, 99];
        let layout = MapLayout::new(2, 1, 2);
        let scores = product(Matrices::Single, (&a, layout, 0), (&b, layout, 2), layout);
        assert_eq!([0, 1, 4, 5].map(|i| scores[i] / 4), [1, 3, 3, 5]);
    }

    #[test]
    fn a_zero_point_between_two_codes_is_exact() {
        // Signs (-1/2, 1/2) · (1/2, 1/2)ᵀ = 0, and their square by itself 1/2.
        let (row, column) = (MapLayout::new(1, 1, 2), MapLayout::new(2, 1, 1));
        let b = [1, 0, 0, 0, 1, 0, 0, 0];
        for (a, expected) in [([0, 1, 0, 0], 0), ([1, 1, 0, 0], 2)] {
            let out = MapLayout::new(1, 1, 1);
            let scores = product(Matrices::Single, (&a, row, 1), (&b, column, 1), out);
            assert_eq!(scores[0], expected);
        }
    }

    #[test]
    fn each_channel_of_an_image_is_a_matrix_of_its_own() {
        // Two matrices of 1 x 2 times 2 x 1, the first operand with a halo on the left.
        let wide = MapLayout { pads: [0, 1, 0, 0], ..MapLayout::new(1, 2, 2) };
        let a = [7, 7, 7, 7, 1, 2, 0, 0, 3, 4, 0, 0];
        let b = [5, 6, 0, 0, 7, 8, 0, 0];
        let (tall, out) = (MapLayout::new(2, 1, 2), MapLayout::new(1, 1, 2));
        let scores = product(Matrices::PerChannel, (&a, wide, 0), (&b, tall, 0), out);
        assert_eq!(scores[..2], [4 * (5 + 3 * 7), 4 * (2 * 6 + 4 * 8)]);
    }

    #[test]
    fn sixteen_bits_on_both_sides_do_not_overflow() {
        let codes = [u16::MAX; 64];
        let (a, b) = (MapLayout::new(1, 1, 16), MapLayout::new(16, 1, 1));
        let mut stored = [0_u16; 4];
        let mut outputs = [Output {
            codes: CodesMut::U16(&mut stored),
            layout: MapLayout::new(1, 1, 1),
            multipliers: &[1.0 / (1_u64 << 38) as f32],
            zero: 0,
            low: 0,
            high: 65535,
        }];
        let operand = |layout| MatrixOperand {
            source: Source { codes: Codes::U16(&codes), layout },
            twice_zero: 0,
        };
        Kernels::scalar().matmul(Matrices::Single, operand(a), operand(b), &mut outputs);
        // 16 · (2 · 65535)² / 2^38, just below 1.
        assert_eq!(stored[0], 1);
    }
}
