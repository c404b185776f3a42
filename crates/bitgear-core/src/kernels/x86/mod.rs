//! AVX2 versions of the convolution. The only place with `unsafe` code: loads from memory whose
//! bounds [`check_conv`](super::types::check_conv) has proved, and calls of functions that need
//! AVX2 and FMA, which an [`Avx2`] value proves to be there.
#![allow(unsafe_code, reason = "see above; each block names its proof")]

mod depthwise;
mod epilogue;
mod tile;

use self::epilogue::Epilogue;
use super::scalar;
use super::types::{Class, Codes, ConvShape, Output, PANEL, Packed, Terms, Weights};

/// Proof that this CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if this CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        present.then_some(Self(()))
    }

    /// The convolution. Arguments have passed [`check_conv`](super::types::check_conv).
    pub(super) fn conv(
        self,
        shape: &ConvShape,
        weights: &Weights<'_>,
        input: Codes<'_>,
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        // The proof that the calls below rest on.
        let Self(()) = self;
        match (weights.class, weights.packed, input) {
            (Class::Bytes { drain }, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: `self` exists only when `detect` saw AVX2 and FMA on this CPU.
                unsafe { bytes(shape, packed, codes, drain, terms, outputs) }
            }
            (Class::Pairs, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { pairs(shape, packed, codes, terms, outputs) }
            }
            (Class::Pairs, Packed::I16(packed), Codes::U16(codes)) => {
                // SAFETY: as above.
                unsafe { pairs(shape, packed, codes, terms, outputs) }
            }
            (Class::Split, Packed::I16(packed), Codes::U16(codes)) => {
                // SAFETY: as above.
                unsafe { split(shape, packed, codes, terms, outputs) }
            }
            (Class::Depthwise { wide }, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { depthwise::conv(shape, packed, codes, wide, terms, outputs) }
            }
            (Class::Depthwise { wide }, Packed::I16(packed), Codes::U16(codes)) => {
                // SAFETY: as above.
                unsafe { depthwise::conv(shape, packed, codes, wide, terms, outputs) }
            }
            _ => scalar::conv(shape, weights.plain, input, terms, outputs),
        }
    }
}

/// Visits the result panel by panel, then row by row, `MR` pixels at a time; `tile` computes one
/// block of at most `MR` pixels beginning at (y, x).
fn blocks<const MR: usize>(
    shape: &ConvShape,
    mut tile: impl FnMut(/* panel */ usize, /* y, x */ [usize; 2], /* pixels */ usize),
) {
    for panel in 0..shape.out_channels.div_ceil(PANEL) {
        for y in 0..shape.out_height {
            for x in (0..shape.out_width).step_by(MR) {
                tile(panel, [y, x], MR.min(shape.out_width - x));
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn bytes(
    shape: &ConvShape,
    packed: &[i8],
    input: &[u8],
    drain: usize,
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    blocks::<4>(shape, |panel, [y, x], pixels| {
        epilogue.enter(terms, panel);
        let weights = &packed[panel * panel_len..][..panel_len];
        let at = shape.origin(y, x);
        match pixels {
            4 => {
                let acc = tile::bytes::<4>(shape, weights, input, at, drain);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
            3 => {
                let acc = tile::bytes::<3>(shape, weights, input, at, drain);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
            2 => {
                let acc = tile::bytes::<2>(shape, weights, input, at, drain);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
            _ => {
                let acc = tile::bytes::<1>(shape, weights, input, at, drain);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
        }
    });
}

#[target_feature(enable = "avx2,fma")]
fn pairs<T: tile::Element>(
    shape: &ConvShape,
    packed: &[i16],
    input: &[T],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    blocks::<4>(shape, |panel, [y, x], pixels| {
        epilogue.enter(terms, panel);
        let weights = &packed[panel * panel_len..][..panel_len];
        let at = shape.origin(y, x);
        match pixels {
            4 => {
                let acc = tile::pairs::<4, T>(shape, weights, input, at);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
            3 => {
                let acc = tile::pairs::<3, T>(shape, weights, input, at);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
            2 => {
                let acc = tile::pairs::<2, T>(shape, weights, input, at);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
            _ => {
                let acc = tile::pairs::<1, T>(shape, weights, input, at);
                epilogue.store(&acc, [y, x], terms, outputs);
            }
        }
    });
}

#[target_feature(enable = "avx2,fma")]
fn split(
    shape: &ConvShape,
    packed: &[i16],
    input: &[u16],
    terms: &Terms<'_>,
    outputs: &mut [Output<'_>],
) {
    let mut epilogue = Epilogue::new(terms);
    let panel_len = packed.len() / shape.out_channels.div_ceil(PANEL);
    blocks::<2>(shape, |panel, [y, x], pixels| {
        epilogue.enter(terms, panel);
        let weights = &packed[panel * panel_len..][..panel_len];
        let at = shape.origin(y, x);
        if pixels == 2 {
            let acc = tile::split::<2>(shape, weights, input, at);
            epilogue.store_split(&acc, [y, x], terms, outputs);
        } else {
            let acc = tile::split::<1>(shape, weights, input, at);
            epilogue.store_split(&acc, [y, x], terms, outputs);
        }
    });
}
