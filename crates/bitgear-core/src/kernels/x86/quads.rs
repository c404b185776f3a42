//! Dense convolution with AVX-512 VNNI: four products of bytes are summed in 32 bits by one
//! instruction, exactly, for 16 output channels at a time.

use core::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
};

use core::ops::Range;

use super::lanes::Lanes;
use super::tile::runs;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// `packed` is [panel][tap][group of 4 channels][output channel][channel].
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let panels = shape.out_channels.div_ceil(PANEL);
    for rows in strips(shape) {
        for panel in (0..panels).step_by(2) {
            let rows = rows.clone();
            if panel + 1 < panels {
                two(shape, packed, input, (panel, rows), terms, outputs);
            } else {
                one(shape, packed, input, (panel, rows), terms, outputs);
            }
        }
    }
}

/// Strips of rows whose results stay in the first cache while all panels are computed.
pub(super) fn strips(shape: &ConvShape) -> impl Iterator<Item = Range<usize>> + use<> {
    let (height, row) = (shape.out_height, shape.out_width * shape.out_channels);
    let strip = (STRIP / row).max(1);
    (0..height).step_by(strip).map(move |top| top..height.min(top + strip))
}

/// Bytes of results in a strip.
const STRIP: usize = 16 << 10;

/// Pixels of a block so that as few as possible, each of at most `most`, cover a row.
pub(super) fn block_width(width: usize, most: usize) -> usize {
    width.div_ceil(width.div_ceil(most))
}

/// Evaluates `$tile` with the number of pixels of a block as a constant.
macro_rules! blocks {
    ($width:expr, $tile:ident, $($mr:literal),*) => {
        match $width {
            $($mr => $tile!($mr),)*
            _ => $tile!(1),
        }
    };
}

/// Two panels of some rows.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
fn two(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    part: (usize, Range<usize>),
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    macro_rules! run {
        ($mr:literal) => {
            block::<$mr, 2>(shape, packed, input, part, terms, outputs)
        };
    }
    blocks!(block_width(shape.out_width, 8), run, 8, 7, 6, 5, 4, 3, 2);
}

/// The same for a single panel.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
fn one(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    part: (usize, Range<usize>),
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    macro_rules! run {
        ($mr:literal) => {
            block::<$mr, 1>(shape, packed, input, part, terms, outputs)
        };
    }
    let most = if shape.out_width >= 16 { 16 } else { 8 };
    match block_width(shape.out_width, most) {
        9.. => run!(16),
        width => blocks!(width, run, 8, 7, 6, 5, 4, 3, 2),
    }
}

/// `NP` panels of some rows, `MR` pixels at a time: enough sums to hide the latency of a product.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
fn block<const MR: usize, const NP: usize>(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    (panel, rows): (usize, Range<usize>),
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    let weights = &packed[panel * panel_len..][..NP * panel_len];
    let lanes: [Lanes; NP] = core::array::from_fn(|p| Lanes::new(terms, outputs, panel + p));
    for y in rows {
        for x in (0..shape.out_width).step_by(MR) {
            // The last block begins earlier and computes some pixels once more.
            let at = [y, x.min(shape.out_width - MR)];
            let acc = tile::<MR, NP>(shape, weights, input, shape.origin(at[0], at[1]));
            for (lanes, acc) in lanes.iter().zip(&acc) {
                lanes.store(acc, at, terms, outputs);
            }
        }
    }
}

/// Sums of `MR` neighbouring pixels: [panel][pixel]. `at` is the first pixel's window.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile<const MR: usize, const NP: usize>(
    shape: &ConvShape,
    weights: &[i8],
    input: &[u8],
    at: usize,
) -> [[__m512i; MR]; NP] {
    let pixel = shape.strides[1] * shape.input.stride();
    let panel_len = weights.len() / NP;
    let mut acc = [[_mm512_setzero_si512(); MR]; NP];
    let mut step = 0;
    for (offset, len) in runs(shape) {
        for done in (0..len).step_by(4) {
            let panels: [__m512i; NP] = core::array::from_fn(|p| {
                let at = p * panel_len + step;
                debug_assert!(at + 64 <= weights.len(), "step inside the panel");
                // SAFETY: a panel holds 64 bytes for each of the window's steps.
                unsafe { _mm512_loadu_si512(weights.as_ptr().add(at).cast()) }
            });
            for r in 0..MR {
                let index = at + r * pixel + offset + done;
                debug_assert!(index + 4 <= input.len(), "window inside the operand");
                // SAFETY: `check_conv` proved that every pixel's window lies inside the operand,
                // whose channels come in groups of 4.
                let codes = unsafe { input.as_ptr().add(index).cast::<i32>().read_unaligned() };
                let codes = _mm512_set1_epi32(codes);
                for (acc, weights) in acc.iter_mut().zip(panels) {
                    acc[r] = _mm512_dpbusd_epi32(acc[r], codes, weights);
                }
            }
            step += 64;
        }
    }
    acc
}
