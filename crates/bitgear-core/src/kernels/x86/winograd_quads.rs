//! 3 x 3 convolution by Winograd's minimal filtering with AVX-512 VNNI, see
//! [`winograd_bytes`](crate::kernels::winograd_bytes): tiles are transformed as with AVX2, and four products of a
//! transformed pixel are summed in 32 bits by one instruction.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_srai_epi32, _mm512_sub_epi32,
};

use core::mem::MaybeUninit;

use super::Aligned;
use super::lanes::Lanes;
use super::winograd_bytes::{MOST, ROOM, lanes, transform};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};
use crate::kernels::winograd_bytes::{PATCH, POINTS, TILE, point_len};

/// Sums of a strip's pixels: [row of tiles][row][pixel][panel].
type Sums<const NP: usize> = [[__m512i; NP]; TILE * TILE * MOST];

/// A part of a row, or whole rows, of tiles that are transformed together.
#[derive(Clone, Copy)]
struct Strip {
    /// First output.
    at: [usize; 2],
    /// Rows of tiles.
    rows: usize,
    /// Outputs in a row.
    width: usize,
    /// Tiles in a row.
    tiles: usize,
    /// Bytes of a tile's point.
    len: usize,
}

impl Strip {
    /// First row of outputs of a row of tiles: the last one of the map may overlap the one before it.
    fn top(&self, shape: &ConvShape, row: usize) -> usize {
        (self.at[0] + TILE * row).min(shape.out_height - TILE)
    }

    /// Where the first of a tile's sums is: the last tile of a row may overlap the one before it.
    fn first(&self, tile: usize) -> usize {
        let (row, column) = (tile / self.tiles, tile % self.tiles);
        TILE * row * self.width + (TILE * column).min(self.width - TILE)
    }
}

/// `packed` is laid out by [`pack`](crate::kernels::winograd_bytes::pack), for quads.
#[target_feature(enable = "avx2,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    offset: u8,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut memory = Aligned([MaybeUninit::uninit(); POINTS * ROOM]);
    let panels = shape.out_channels.div_ceil(PANEL);
    let panel_len = packed.len() / panels;
    let len = lanes(shape);
    let most = (ROOM / len).min(MOST);
    // Of narrow maps many rows share a look at the weights.
    let rows = (most / shape.out_width.div_ceil(TILE)).max(1);
    for y in (0..shape.out_height).step_by(TILE * rows) {
        for x in (0..shape.out_width).step_by(TILE * most) {
            let tiles = (shape.out_width - x).div_ceil(TILE).min(most);
            let width = (TILE * tiles).min(shape.out_width);
            let rows = rows.min((shape.out_height - y).div_ceil(TILE));
            let strip = Strip { at: [y, x.min(shape.out_width - width)], rows, width, tiles, len };
            for (row, codes) in
                memory.0.chunks_exact_mut(tiles * POINTS * len).take(rows).enumerate()
            {
                let at = [strip.top(shape, row), strip.at[1], width];
                transform(shape, input, at, offset, codes);
            }
            for panel in (0..panels).step_by(2) {
                let weights = &packed[panel * panel_len..];
                if panel + 1 < panels {
                    let weights = &weights[..2 * panel_len];
                    panels_of::<2>(shape, weights, &memory.0, strip, panel, terms, outputs);
                } else {
                    panels_of::<1>(shape, weights, &memory.0, strip, panel, terms, outputs);
                }
            }
        }
    }
}

/// Multiplies and stores a transformed strip in `NP` panels.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
fn panels_of<const NP: usize>(
    shape: &ConvShape,
    weights: &[i8],
    codes: &[MaybeUninit<u8>],
    strip: Strip,
    panel: usize,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let steps = point_len(shape) / STEP - 1;
    let mut sums = [[_mm512_setzero_si512(); NP]; _];
    let tiles = strip.rows * strip.tiles;
    let mut tile = 0;
    while tile < tiles {
        // Sums of two points of as many tiles and panels stay in registers.
        tile += match (NP, tiles - tile) {
            (1, 8..) => multiply::<8, NP>(weights, steps, codes, strip, tile, &mut sums),
            (_, 4..) => multiply::<4, NP>(weights, steps, codes, strip, tile, &mut sums),
            (_, 2..) => multiply::<2, NP>(weights, steps, codes, strip, tile, &mut sums),
            _ => multiply::<1, NP>(weights, steps, codes, strip, tile, &mut sums),
        };
    }
    for p in 0..NP {
        let lanes = Lanes::new(terms, outputs, panel + p);
        for (row, sums) in sums.chunks_exact(TILE * strip.width).take(strip.rows).enumerate() {
            let (y, x) = (strip.top(shape, row), strip.at[1]);
            if strip.width == shape.out_width {
                lanes.finish(sums, p, [y, x], terms, outputs);
                continue;
            }
            for (y, sums) in (y..).zip(sums.chunks_exact(strip.width)) {
                lanes.finish(sums, p, [y, x], terms, outputs);
            }
        }
    }
}

/// Bytes of a step's weights.
const STEP: usize = 4 * PANEL;

/// Sums of the pixels of `MR` tiles: Aᵀ m A, divided by 4. Gives the number of tiles.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply<const MR: usize, const NP: usize>(
    weights: &[i8],
    steps: usize,
    codes: &[MaybeUninit<u8>],
    strip: Strip,
    tile: usize,
    sums: &mut Sums<NP>,
) -> usize {
    let (point_len, len) = ((steps + 1) * STEP, strip.len);
    assert!(NP * POINTS * point_len <= weights.len(), "a panel holds all points' steps");
    let inside = (tile + MR) * POINTS * len <= codes.len() && 4 * steps <= len;
    assert!(inside && tile + MR <= strip.rows * strip.tiles, "the strip holds the tiles");
    // Of each column of points, Aᵀ m.
    let mut columns = [[[[_mm512_setzero_si512(); NP]; MR]; TILE]; PATCH];
    for (j, column) in columns.iter_mut().enumerate() {
        for i in [0, 2] {
            let point = |pair: usize| (i + pair) * PATCH + j;
            let mut acc = [[[_mm512_setzero_si512(); NP]; MR]; 2];
            for (pair, acc) in acc.iter_mut().enumerate() {
                for p in 0..NP {
                    let at = (p * POINTS + point(pair)) * point_len;
                    // SAFETY: this is where the point's sums of the panel begin.
                    let begin = unsafe { _mm512_loadu_si512(weights.as_ptr().add(at).cast()) };
                    for acc in &mut *acc {
                        acc[p] = begin;
                    }
                }
            }
            for step in 0..steps {
                for (pair, acc) in acc.iter_mut().enumerate() {
                    let mut panels = [_mm512_setzero_si512(); NP];
                    for (p, panel) in panels.iter_mut().enumerate() {
                        let at = (p * POINTS + point(pair)) * point_len + (1 + step) * STEP;
                        // SAFETY: this is one of the point's steps.
                        *panel = unsafe { _mm512_loadu_si512(weights.as_ptr().add(at).cast()) };
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let at = ((tile + r) * POINTS + point(pair)) * len + 4 * step;
                        // SAFETY: the strip holds so many channels of the tile's points, which the transform wrote.
                        let codes =
                            unsafe { codes.as_ptr().add(at).cast::<i32>().read_unaligned() };
                        let codes = _mm512_set1_epi32(codes);
                        for (acc, &panel) in acc.iter_mut().zip(&panels) {
                            *acc = _mm512_dpbusd_epi32(*acc, codes, panel);
                        }
                    }
                }
            }
            let [first, second] = acc;
            for r in 0..MR {
                for p in 0..NP {
                    let (a, b) = (first[r][p], second[r][p]);
                    let sum = _mm512_add_epi32(a, b);
                    if i == 0 {
                        (column[0][r][p], column[1][r][p]) = (sum, b);
                    } else {
                        column[0][r][p] = _mm512_add_epi32(column[0][r][p], a);
                        column[1][r][p] = _mm512_sub_epi32(column[1][r][p], sum);
                    }
                }
            }
        }
    }
    for (r, tile) in (tile..tile + MR).enumerate() {
        let first = strip.first(tile);
        for i in 0..TILE {
            let pixels = &mut sums[first + i * strip.width..][..TILE];
            for p in 0..NP {
                let whole = two([0, 1, 2, 3].map(|j| columns[j][i][r][p]));
                pixels[0][p] = _mm512_srai_epi32::<2>(whole[0]);
                pixels[1][p] = _mm512_srai_epi32::<2>(whole[1]);
            }
        }
    }
    MR
}

/// Aᵀ m.
#[inline]
#[target_feature(enable = "avx512f")]
fn two(m: [__m512i; PATCH]) -> [__m512i; TILE] {
    let (add, sub) = (|a, b| _mm512_add_epi32(a, b), |a, b| _mm512_sub_epi32(a, b));
    [add(add(m[0], m[1]), m[2]), sub(sub(m[1], m[2]), m[3])]
}
