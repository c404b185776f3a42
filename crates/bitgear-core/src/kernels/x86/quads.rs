//! Dense convolution with AVX-512 VNNI: four products of bytes are summed in 32 bits by one
//! instruction, exactly, for 16 output channels at a time.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_dpbusd_epi32,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shuffle_ps, _mm512_unpackhi_epi32, _mm512_unpacklo_epi32,
};
use core::ops::Range;

use super::dense::fold;
use super::lanes::Lanes;
use super::tile::{Windows, each_run};
use crate::kernels::types::{ConvShape, Output, PANEL, Terms};

/// Pixels of a part: all panels of it are finished while what they read and write is in the nearest cache.
const PART: usize = 64;

/// `packed` is [panel][tap][group of 4 channels][output channel][channel].
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
pub(super) fn conv(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    if let Some(folded) = shape.folded() {
        return conv(&folded, packed, &fold(shape, &folded, input), terms, outputs);
    }
    let panels = shape.out_channels.div_ceil(PANEL);
    let panel_len = packed.len() / panels;
    let single_row = shape.single_row();
    let shape = single_row.as_ref().unwrap_or(shape);
    for (rows, columns) in parts(shape) {
        for panel in (0..panels).step_by(2) {
            let part = (rows.clone(), columns.clone());
            let weights = &packed[panel * panel_len..];
            if panel + 1 < panels {
                let weights = &weights[..2 * panel_len];
                panels_of::<2>(shape, weights, input, (panel, part), terms, outputs);
            } else {
                panels_of::<1>(shape, weights, input, (panel, part), terms, outputs);
            }
        }
    }
}

/// Rows and columns of about [`PART`] pixels each that make up the result: some rows, or a part of a row.
fn parts(shape: &ConvShape) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
    let (height, width) = (shape.out_height, shape.out_width);
    let rows = (PART / width).max(1);
    let columns = width.div_ceil(width.div_ceil(PART));
    (0..height).step_by(rows).flat_map(move |y| {
        let rows = y..height.min(y + rows);
        (0..width).step_by(columns).map(move |x| (rows.clone(), x..width.min(x + columns)))
    })
}

/// Computes and stores a part of the result in `NP` panels.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
fn panels_of<const NP: usize>(
    shape: &ConvShape,
    weights: &[i8],
    input: &[u8],
    (panel, (rows, columns)): (usize, (Range<usize>, Range<usize>)),
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut memory = [[_mm512_setzero_si512(); NP]; PART];
    let lanes: [Lanes; NP] = core::array::from_fn(|p| Lanes::new(terms, outputs, panel + p));
    let pixels = rows.len() * columns.len();
    for (y, sums) in rows.clone().zip(memory.chunks_exact_mut(columns.len())) {
        sum::<NP>(&Windows::new(shape, y, columns.start), weights, input, sums);
    }
    // A single row of windows may be many rows of results.
    let width = outputs[0].layout.width;
    let at = [rows.start + columns.start / width, columns.start % width];
    for (p, lanes) in lanes.iter().enumerate() {
        lanes.finish(&memory[..pixels], p, at, terms, outputs);
    }
}

/// Pixels of a block so that as few as possible, each of at most `most`, cover a row.
pub(super) fn block_width(width: usize, most: usize) -> usize {
    width.div_ceil(width.div_ceil(most))
}

/// Sums of neighbouring pixels. `windows` is that of the first one.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn sum<const NP: usize>(
    windows: &Windows,
    weights: &[i8],
    input: &[u8],
    sums: &mut [[__m512i; NP]],
) {
    let Windows { rows, runs, len, .. } = *windows;
    assert!(NP * rows * runs * len * PANEL <= weights.len(), "a panel holds the window's steps");
    let last = windows.after(sums.len() - 1).at + (rows - 1) * windows.row + windows.width();
    assert!(last <= input.len(), "windows inside the operand");
    macro_rules! blocks {
        ($($mr:literal)*) => {
            match block_width(sums.len(), 8) {
                // Of one panel, too, two products a load.
                // SAFETY: what the assertions say.
                $($mr if NP == 1 && len.is_multiple_of(8) => unsafe {
                    double_steps::<$mr>(windows, weights, input, sums.as_flattened_mut());
                },)*
                // SAFETY: as above.
                $($mr => unsafe { steps::<$mr, NP>(windows, weights, input, sums) },)*
                _ => unreachable!("blocks of up to 8 pixels"),
            }
        };
    }
    blocks!(1 2 3 4 5 6 7 8);
}

/// First pixels of blocks of so many. The last one begins earlier and computes some pixels once more.
fn blocks(pixels: usize, block: usize) -> impl Iterator<Item = usize> {
    (0..pixels).step_by(block).map(move |first| first.min(pixels - block))
}

/// [`sum`], `MR` pixels at a time: enough sums to hide the latency of a product.
///
/// # Safety
///
/// All windows lie inside the operand, and panels hold 64 weights for every 4 elements of one.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn steps<const MR: usize, const NP: usize>(
    windows: &Windows,
    weights: &[i8],
    input: &[u8],
    sums: &mut [[__m512i; NP]],
) {
    let panel_len = weights.len() / NP;
    for first in blocks(sums.len(), MR) {
        let mut acc = [[_mm512_setzero_si512(); NP]; MR];
        let mut step = weights.as_ptr();
        each_run!(windows, at => {
            for done in (0..windows.len).step_by(4) {
                let mut panels = [_mm512_setzero_si512(); NP];
                for (p, panel) in panels.iter_mut().enumerate() {
                    // SAFETY: this is the window's next step.
                    *panel = unsafe { _mm512_loadu_si512(step.add(p * panel_len).cast()) };
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = at + (first + r) * windows.pixel + done;
                    // SAFETY: a run has a multiple of 4 elements.
                    let codes = unsafe { input.as_ptr().add(at).cast::<i32>().read_unaligned() };
                    let codes = _mm512_set1_epi32(codes);
                    for (acc, &panel) in acc.iter_mut().zip(&panels) {
                        *acc = _mm512_dpbusd_epi32(*acc, codes, panel);
                    }
                }
                // SAFETY: at most the panel's end.
                step = unsafe { step.add(4 * PANEL) };
            }
        });
        sums[first..first + MR].copy_from_slice(&acc);
    }
}

/// [`steps`] of a single panel, two at a time, of runs of a multiple of 8 elements.
///
/// # Safety
///
/// As for [`steps`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn double_steps<const MR: usize>(
    windows: &Windows,
    weights: &[i8],
    input: &[u8],
    sums: &mut [__m512i],
) {
    for first in blocks(sums.len(), MR) {
        // Lanes take turns with the two steps: channels 0, 1, 4, 5, 8, ... and 2, 3, 6, 7, 10, ... of the panel.
        let mut acc = [[_mm512_setzero_si512(); 2]; MR];
        let mut step = weights.as_ptr();
        each_run!(windows, at => {
            for done in (0..windows.len).step_by(8) {
                // SAFETY: these are the window's next two steps.
                let [a, b] = unsafe {
                    [_mm512_loadu_si512(step.cast()), _mm512_loadu_si512(step.add(4 * PANEL).cast())]
                };
                let halves = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = at + (first + r) * windows.pixel + done;
                    // SAFETY: the run has a multiple of 8 elements.
                    let codes = unsafe { input.as_ptr().add(at).cast::<i64>().read_unaligned() };
                    let codes = _mm512_set1_epi64(codes);
                    for (acc, &half) in acc.iter_mut().zip(&halves) {
                        *acc = _mm512_dpbusd_epi32(*acc, codes, half);
                    }
                }
                // SAFETY: at most the panel's end.
                step = unsafe { step.add(8 * PANEL) };
            }
        });
        for (sum, acc) in sums[first..first + MR].iter_mut().zip(&acc) {
            let [low, high] = [_mm512_castsi512_ps(acc[0]), _mm512_castsi512_ps(acc[1])];
            let first = _mm512_shuffle_ps::<0b10_00_10_00>(low, high);
            let second = _mm512_shuffle_ps::<0b11_01_11_01>(low, high);
            *sum = _mm512_add_epi32(_mm512_castps_si512(first), _mm512_castps_si512(second));
        }
    }
}

/// Strips of rows whose results stay in the first cache while all panels are computed.
pub(super) fn strips(shape: &ConvShape) -> impl Iterator<Item = Range<usize>> + use<> {
    /// Bytes of results.
    const STRIP: usize = 16 << 10;
    let (height, row) = (shape.out_height, shape.out_width * shape.out_channels);
    let strip = (STRIP / row).max(1);
    (0..height).step_by(strip).map(move |top| top..height.min(top + strip))
}
