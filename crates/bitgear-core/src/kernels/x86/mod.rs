//! AVX2 and AVX-512 versions of the convolution. The only place with `unsafe` code: loads from memory whose
//! bounds [`check_conv`](super::types::check_conv) has proved, and calls of functions that need
//! what an [`Avx2`] or [`Avx512`] value proves to be there.
#![allow(unsafe_code, reason = "see above; each block names its proof")]

mod column_quads;
mod columns;
mod dense;
mod depthwise;
mod epilogue;
mod general;
mod lanes;
mod lookup;
mod matrix;
mod quads;
mod thresholds;
mod tile;
mod winograd;
mod winograd_bytes;
mod winograd_quads;

use super::quantize::{self, Quantization};
use super::types::{
    Class, Codes, CodesMut, ConvShape, MapLayout, Output, PANEL, Packed, PoolShape, Source, Terms,
    Weights,
};
use super::{scalar, side};

/// A method that runs the specification's code, compiled for what the proof of the CPU's features stands
/// for.
macro_rules! compiled {
    ($features:literal, $module:ident::$name:ident($($argument:ident: $type:ty,)*)) => {
        pub(super) fn $name(self, $($argument: $type),*) {
            #[target_feature(enable = $features)]
            fn compiled($($argument: $type),*) {
                $module::$name($($argument),*);
            }
            // SAFETY: `self` exists only when `detect` saw these features on this CPU.
            unsafe { compiled($($argument),*) }
        }
    };
}

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
                unsafe { dense::bytes(shape, packed, codes, drain, terms, outputs) }
            }
            (Class::Pairs, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { dense::widened(shape, packed, codes, terms, outputs) }
            }
            (Class::BytePairs, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { dense::widened(shape, packed, codes, terms, outputs) }
            }
            (Class::Pairs, Packed::I16(packed), Codes::U16(codes)) => {
                // SAFETY: as above.
                unsafe { dense::pairs(shape, packed, codes, terms, outputs) }
            }
            (Class::Winograd, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { winograd::conv(shape, packed, codes, terms, outputs) }
            }
            (Class::WinogradBytes { offset }, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { winograd_bytes::conv(shape, packed, codes, offset, terms, outputs) }
            }
            (Class::Lookup, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { lookup::conv(shape, packed, codes, terms, outputs) }
            }
            (Class::Split, Packed::I16(packed), Codes::U16(codes)) => {
                // SAFETY: as above.
                unsafe { dense::split(shape, packed, codes, terms, outputs) }
            }
            (Class::Depthwise { wide }, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { depthwise::conv(shape, packed, codes, wide, terms, outputs) }
            }
            (Class::Depthwise { wide }, Packed::I16(packed), Codes::U16(codes)) => {
                // SAFETY: as above.
                unsafe { depthwise::conv(shape, packed, codes, wide, terms, outputs) }
            }
            (Class::DepthwiseBytes, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { columns::bytes(shape, packed, codes, terms, outputs) }
            }
            (Class::DepthwisePairs, Packed::I16(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { columns::pairs(shape, packed, codes, terms, outputs) }
            }
            _ => scalar::conv(shape, weights.plain, input, terms, outputs),
        }
    }

    compiled!("avx2,fma", quantize::quantize(
        values: &[f32], planar: bool, quantization: Quantization, output: CodesMut<'_>,
        layout: &MapLayout,
    ));
    compiled!("avx2,fma", side::average(
        input: Source<'_>, zero: i32, window: &PoolShape, outputs: &mut [Output<'_>],
    ));
}

/// Proof that this CPU has AVX2, FMA and the parts of AVX-512 that [`quads`], [`winograd_quads`] and [`column_quads`] name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(Avx2);

impl Avx512 {
    /// The proof, if this CPU can give it.
    pub(super) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi");
        Avx2::detect().filter(|_| present).map(Self)
    }

    /// As [`Avx2::conv`].
    pub(super) fn conv(
        self,
        shape: &ConvShape,
        weights: &Weights<'_>,
        input: Codes<'_>,
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        match (weights.class, weights.packed, input) {
            (Class::Quads, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: `self` exists only when `detect` saw what `quads` needs on this CPU.
                unsafe { quads::conv(shape, packed, codes, terms, outputs) }
            }
            (Class::DepthwiseQuads, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { column_quads::conv(shape, packed, codes, terms, outputs) }
            }
            (Class::WinogradQuads { offset }, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: as above.
                unsafe { winograd_quads::conv(shape, packed, codes, offset, terms, outputs) }
            }
            _ => self.0.conv(shape, weights, input, terms, outputs),
        }
    }

    compiled!("avx512f,avx512dq,avx512bw,avx512vl", quantize::quantize(
        values: &[f32], planar: bool, quantization: Quantization, output: CodesMut<'_>,
        layout: &MapLayout,
    ));
    compiled!("avx512f,avx512dq,avx512bw,avx512vl", side::average(
        input: Source<'_>, zero: i32, window: &PoolShape, outputs: &mut [Output<'_>],
    ));
}

/// Proof that this CPU has AMX, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(Avx512);

impl Amx {
    /// The proof, if this CPU and system can give it.
    pub(super) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| matrix::present()).map(Self)
    }

    /// What it can do besides.
    pub(super) fn avx512(self) -> Avx512 {
        self.0
    }

    /// As [`Avx2::conv`].
    pub(super) fn conv(
        self,
        shape: &ConvShape,
        weights: &Weights<'_>,
        input: Codes<'_>,
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        match (weights.class, weights.packed, input) {
            (Class::Matrix, Packed::I8(packed), Codes::U8(codes)) => {
                // SAFETY: `self` exists only when `detect` saw AMX and AVX-512 on this CPU.
                unsafe { matrix::conv(shape, packed, codes, terms, outputs) }
            }
            _ => self.0.conv(shape, weights, input, terms, outputs),
        }
    }
}

/// Evaluates an expression with `$mr`, the number of pixels of a block, as a constant.
macro_rules! with_pixels {
    ($pixels:expr, $mr:ident => $body:expr) => {
        match $pixels {
            4 => {
                const $mr: usize = 4;
                $body
            }
            3 => {
                const $mr: usize = 3;
                $body
            }
            2 => {
                const $mr: usize = 2;
                $body
            }
            _ => {
                const $mr: usize = 1;
                $body
            }
        }
    };
}

use with_pixels;

/// Memory that begins with a cache line, so that no vector in it lies in two.
#[repr(C, align(64))]
struct Aligned<T>(T);

/// The part of packed weights that belongs to one panel.
fn panel_of<'w, T>(shape: &ConvShape, packed: &'w [T], panel: usize) -> &'w [T] {
    let len = packed.len() / shape.out_channels.div_ceil(PANEL);
    &packed[panel * len..][..len]
}
