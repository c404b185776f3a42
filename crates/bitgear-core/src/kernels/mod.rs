//! Integer kernels. [`Kernels::scalar`] is the specification; every other set gives the same bits.
//!
//! # Layout
//!
//! A map is the memory of one sample's tensor: channels last, with a halo that holds the zero code,
//! so that no kernel tests for borders: `[top + height + bottom][left + width + right][stride]`,
//! the stride being the channels rounded up to a multiple of 4. Kernels write neither halo nor spare
//! channels; weights of spare channels are zero.
//!
//! Codes are unsigned: real = scale · (code - zero). Up to 8 bits they are `u8`, above `u16`.
//!
//! # Kernels
//!
//! | class | activations | weights | accumulates in | needs |
//! | --- | --- | --- | --- | --- |
//! | [`Class::Matrix`] | up to 8 bits | up to 8 bits | i32 | AMX |
//! | [`Class::Quads`] | up to 8 bits | up to 8 bits | i32 | AVX-512 VNNI |
//! | [`Class::Bytes`] | up to 8 bits | up to 8 bits | i16, widened after `drain` steps | AVX2 |
//! | [`Class::Pairs`] | up to 15 bits | any | i32 | AVX2 |
//! | [`Class::BytePairs`] | up to 8 bits | up to 8 bits | i32 | AVX2 |
//! | [`Class::Winograd`] | up to 8 bits | about 10 bits | i32 | AVX2, FMA; 3 x 3, stride 1 |
//! | [`Class::WinogradBytes`] | up to 6 bits | about 6 bits | i16 | AVX2, FMA; 3 x 3, stride 1 |
//! | [`Class::WinogradQuads`] | up to 6 bits | about 6 bits | i32 | AVX-512 VNNI; 3 x 3, stride 1 |
//! | [`Class::Lookup`] | 1 bit | 1 bit | u8, widened after up to 63 additions | AVX2, FMA |
//! | [`Class::Split`] | any | any | two i32, joined in f64 | AVX2, FMA |
//! | [`Class::DepthwiseQuads`] | up to 8 bits | up to 8 bits | i32 | AVX-512 VNNI, VBMI |
//! | [`Class::DepthwiseBytes`] | up to 8 bits | up to 8 bits | i16 | AVX2, FMA |
//! | [`Class::DepthwisePairs`] | up to 8 bits | any | i32 | AVX2, FMA |
//! | [`Class::Depthwise`] | any | any | i32, or f64 | AVX2, FMA |
//! | [`Class::Scalar`] | any | any | i64 | nothing |

mod bound;
mod lookup;
mod matmul;
mod pack;
mod quantize;
mod scalar;
mod side;
mod types;
mod winograd;
mod winograd_bytes;
#[cfg(all(feature = "std", target_arch = "x86_64"))]
mod x86;

#[cfg(test)]
mod side_tests;
#[cfg(test)]
mod tests;

pub use bound::{SinglePrecision, accumulator_bound, channel_bound};
pub use matmul::{Matrices, MatrixOperand};
pub use quantize::Quantization;
pub use side::Run;
pub use types::{
    Bias, Class, Codes, CodesMut, ConvShape, MapLayout, Output, Packed, PackedLen, PackedMut,
    PoolShape, Source, Terms, Weights,
};

use crate::bits::BitWidth;

/// A set of kernels. That a value exists proves that this CPU can run them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    Scalar,
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    Avx2(x86::Avx2),
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    Avx512(x86::Avx512),
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    Amx(x86::Amx),
}

impl Kernels {
    /// The fastest set that this CPU runs.
    pub fn detect() -> Self {
        Self::present().last().unwrap_or(Self::scalar())
    }

    /// The specification.
    pub const fn scalar() -> Self {
        Self(Isa::Scalar)
    }

    /// Every set that this CPU runs, the fastest last.
    pub fn present() -> impl Iterator<Item = Self> {
        let present = [Some(Isa::Scalar)];
        #[cfg(all(feature = "std", target_arch = "x86_64"))]
        let present = [
            present[0],
            x86::Avx2::detect().map(Isa::Avx2),
            x86::Avx512::detect().map(Isa::Avx512),
            x86::Amx::detect().map(Isa::Amx),
        ];
        present.into_iter().flatten().map(Self)
    }

    /// `scalar`, `avx2`, `avx512` or `amx`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx2(_) => "avx2",
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx512(_) => "avx512",
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Amx(_) => "amx",
        }
    }

    /// The fastest class that is exact for these weights (in the order of [`Weights::plain`]) and
    /// all inputs of `activation` bits.
    #[cfg_attr(
        not(all(feature = "std", target_arch = "x86_64")),
        allow(unused_variables, reason = "there is nothing to choose from")
    )]
    pub fn class(self, shape: &ConvShape, plain: &[i16], activation: BitWidth) -> Class {
        match self.0 {
            Isa::Scalar => Class::Scalar,
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx2(_) => bound::class(shape, plain, activation),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx512(_) => bound::quads(shape, plain, activation)
                .unwrap_or_else(|| bound::class(shape, plain, activation)),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Amx(_) => bound::matrix(shape, plain, activation)
                .unwrap_or_else(|| bound::class(shape, plain, activation)),
        }
    }

    /// How much memory the packed weights take.
    pub fn packed_len(class: Class, shape: &ConvShape) -> PackedLen {
        pack::packed_len(class, shape)
    }

    /// Packs weights into memory of [`Self::packed_len`].
    ///
    /// # Panics
    ///
    /// When `out` has another length or type.
    pub fn pack(class: Class, shape: &ConvShape, plain: &[i16], out: PackedMut<'_>) {
        pack::pack(class, shape, plain, out);
    }

    /// A convolution with everything fused into it, see [`Terms`]. A fully connected layer is a
    /// 1 x 1 convolution.
    ///
    /// # Panics
    ///
    /// When memory is smaller than its layout, or the halo than the padding.
    pub fn conv(
        self,
        shape: &ConvShape,
        weights: &Weights<'_>,
        input: Codes<'_>,
        terms: &Terms<'_>,
        outputs: &mut [Output<'_>],
    ) {
        types::check_conv(shape, weights, &input, terms, outputs);
        match self.0 {
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx2(avx2) => avx2.conv(shape, weights, input, terms, outputs),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx512(avx512) => avx512.conv(shape, weights, input, terms, outputs),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Amx(amx) => amx.conv(shape, weights, input, terms, outputs),
            Isa::Scalar => scalar::conv(shape, weights.plain, input, terms, outputs),
        }
    }

    /// t = Σ multiplier\[c\] · code + bias\[c\] over the operands. An operand of one pixel is repeated
    /// over all pixels, one of one channel over all channels.
    pub fn combine(
        self,
        operands: &[(Source<'_>, &[i64])],
        bias: &[i64],
        outputs: &mut [Output<'_>],
    ) {
        side::combine(operands, bias, outputs);
    }

    /// t = (code a - zero a) · (code b - zero b), with the broadcasting of [`Self::combine`].
    pub fn product(self, a: (Source<'_>, i32), b: (Source<'_>, i32), outputs: &mut [Output<'_>]) {
        side::product(a, b, outputs);
    }

    /// t = Σ (2 · code a - 2 · zero a) · (2 · code b - 2 · zero b): products of matrices whose
    /// elements are both computed, in 64 bits.
    ///
    /// # Panics
    ///
    /// When the matrices don't fit each other, or memory is smaller than its layout.
    pub fn matmul(
        self,
        matrices: Matrices,
        a: MatrixOperand<'_>,
        b: MatrixOperand<'_>,
        outputs: &mut [Output<'_>],
    ) {
        matmul::matmul(matrices, &a, &b, outputs);
    }

    /// t = Σ (code - zero) over the pixels of the window that lie inside the map; an output's
    /// multipliers are indexed by the number of these pixels minus one.
    pub fn average(
        self,
        input: Source<'_>,
        zero: i32,
        window: &PoolShape,
        outputs: &mut [Output<'_>],
    ) {
        match self.0 {
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx2(avx2) => avx2.average(input, zero, window, outputs),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx512(avx512) => avx512.average(input, zero, window, outputs),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Amx(amx) => amx.avx512().average(input, zero, window, outputs),
            Isa::Scalar => side::average(input, zero, window, outputs),
        }
    }

    /// Largest code of each window; padding never wins.
    pub fn max_pool(
        self,
        input: Source<'_>,
        window: &PoolShape,
        output: CodesMut<'_>,
        layout: &MapLayout,
    ) {
        side::max_pool(&input, window, output, layout);
    }

    /// Replaces each code by the table's entry.
    pub fn lookup(
        self,
        input: Source<'_>,
        table: &[u16],
        output: CodesMut<'_>,
        layout: &MapLayout,
    ) {
        side::lookup(&input, table, output, layout);
    }

    /// Moves runs of codes from one map's memory to another's.
    ///
    /// # Panics
    ///
    /// When a run leaves either memory, or one holds bytes and the other 16-bit codes.
    pub fn gather(self, source: Codes<'_>, runs: &[Run], output: CodesMut<'_>) {
        side::gather(source, runs, output);
    }

    /// Stores the real values of a map as codes. They come in its own order or, with `planar`, channel
    /// by channel.
    ///
    /// # Panics
    ///
    /// When there are fewer values than the map has elements.
    pub fn quantize(
        self,
        values: &[f32],
        planar: bool,
        quantization: Quantization,
        output: CodesMut<'_>,
        layout: &MapLayout,
    ) {
        match self.0 {
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx2(avx2) => avx2.quantize(values, planar, quantization, output, layout),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Avx512(avx512) => avx512.quantize(values, planar, quantization, output, layout),
            #[cfg(all(feature = "std", target_arch = "x86_64"))]
            Isa::Amx(amx) => amx.avx512().quantize(values, planar, quantization, output, layout),
            Isa::Scalar => quantize::quantize(values, planar, quantization, output, layout),
        }
    }
}
