//! Dense convolution with AVX-512 VNNI: four products of bytes are summed in 32 bits by one
//! instruction, exactly, for 16 output channels at a time.

use core::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
};

use super::lanes::Lanes;
use super::tile::runs;
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// `packed` is [panel][tap][group of 4 channels][output channel][channel].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let panels = shape.out_channels.div_ceil(PANEL);
    let mut panel = 0;
    while panel < panels {
        if panels - panel >= 2 {
            rows::<2>(shape, packed, input, panel, terms, outputs);
            panel += 2;
        } else {
            rows::<1>(shape, packed, input, panel, terms, outputs);
            panel += 1;
        }
    }
}

/// `NP` panels of all pixels.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn rows<const NP: usize>(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    panel: usize,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    let weights = &packed[panel * panel_len..][..NP * panel_len];
    let lanes: [Lanes; NP] = core::array::from_fn(|p| Lanes::new(terms, panel + p));
    macro_rules! blocks {
        ($mr:literal) => {
            for y in 0..shape.out_height {
                for x in (0..shape.out_width).step_by($mr) {
                    // The last block begins earlier and computes some pixels once more.
                    let x = x.min(shape.out_width - $mr);
                    let first = shape.origin(y, x);
                    let acc = tile::<$mr, NP>(shape, weights, input, first);
                    for (lanes, acc) in lanes.iter().zip(&acc) {
                        lanes.store(acc, [y, x], terms, outputs);
                    }
                }
            }
        };
    }
    match shape.out_width {
        8.. => blocks!(8),
        4.. => blocks!(4),
        2.. => blocks!(2),
        _ => blocks!(1),
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
