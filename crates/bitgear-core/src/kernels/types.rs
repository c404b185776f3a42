//! What the kernels read and write.

/// Geometry of a map in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MapLayout {
    /// Rows without halo.
    pub height: usize,
    /// Pixels in a row without halo.
    pub width: usize,
    /// Channels in use.
    pub channels: usize,
    /// Halo at top, left, bottom, right, in pixels.
    pub pads: [usize; 4],
}

impl MapLayout {
    /// A map without halo.
    pub const fn new(height: usize, width: usize, channels: usize) -> Self {
        Self { height, width, channels, pads: [0; 4] }
    }

    /// The same memory as a single row, for a map without halo.
    pub fn single_row(&self) -> Option<Self> {
        (self.pads == [0; 4]).then(|| Self::new(1, self.height * self.width, self.channels))
    }

    /// Elements from one pixel to the next.
    pub const fn stride(&self) -> usize {
        self.channels.next_multiple_of(4)
    }

    /// Elements from one row to the next.
    pub const fn row(&self) -> usize {
        (self.pads[1] + self.width + self.pads[3]) * self.stride()
    }

    /// Elements of the whole map, halo and spare channels included.
    #[expect(clippy::len_without_is_empty, reason = "a map is never empty")]
    pub const fn len(&self) -> usize {
        (self.pads[0] + self.height + self.pads[2]) * self.row()
    }

    /// Index of the first channel of pixel (`y`, `x`).
    pub const fn offset(&self, y: usize, x: usize) -> usize {
        (self.pads[0] + y) * self.row() + (self.pads[1] + x) * self.stride()
    }
}

/// Codes to read.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// Up to 8 bits.
    U8(&'a [u8]),
    /// More than 8 bits.
    U16(&'a [u16]),
}

impl Codes<'_> {
    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::U8(codes) => codes.len(),
            Self::U16(codes) => codes.len(),
        }
    }

    /// The code at an index of memory.
    pub(super) fn at(&self, index: usize) -> u16 {
        match self {
            Self::U8(codes) => u16::from(codes[index]),
            Self::U16(codes) => codes[index],
        }
    }
}

/// Codes or scores to write.
#[derive(Debug)]
pub enum CodesMut<'a> {
    /// Up to 8 bits.
    U8(&'a mut [u8]),
    /// More than 8 bits.
    U16(&'a mut [u16]),
    /// Scores.
    I32(&'a mut [i32]),
}

impl CodesMut<'_> {
    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::U8(codes) => codes.len(),
            Self::U16(codes) => codes.len(),
            Self::I32(scores) => scores.len(),
        }
    }

    /// Stores a value that is known to fit.
    pub(super) fn set(&mut self, index: usize, value: i32) {
        match self {
            Self::U8(codes) => codes[index] = value as u8,
            Self::U16(codes) => codes[index] = value as u16,
            Self::I32(scores) => scores[index] = value,
        }
    }
}

/// A map to read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its memory.
    pub codes: Codes<'a>,
    /// Its geometry.
    pub layout: MapLayout,
}

/// A version of a result to write: q = clamp(round-half-even(t · multiplier) + zero, low, high).
#[derive(Debug)]
pub struct Output<'a> {
    /// Its memory.
    pub codes: CodesMut<'a>,
    /// Its geometry.
    pub layout: MapLayout,
    /// One per channel (for averages: per number of pixels), exact as [`requantize`] says.
    ///
    /// [`requantize`]: crate::fixed::requantize
    pub multipliers: &'a [f32],
    /// Added after rounding.
    pub zero: i32,
    /// Smallest result.
    pub low: i32,
    /// Largest result.
    pub high: i32,
}

/// Geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ConvShape {
    /// Of the operand.
    pub input: MapLayout,
    /// Channels of the result.
    pub out_channels: usize,
    /// Rows of the result.
    pub out_height: usize,
    /// Pixels in a row of the result.
    pub out_width: usize,
    /// Height, width.
    pub kernel: [usize; 2],
    /// Vertical, horizontal.
    pub strides: [usize; 2],
    /// Vertical, horizontal.
    pub dilations: [usize; 2],
    /// Padding at top and left; the operand's halo is at least that.
    pub pads: [usize; 2],
    /// Independent groups of channels.
    pub groups: usize,
}

impl ConvShape {
    /// Channels of the operand that one output channel reads.
    pub const fn group_channels(&self) -> usize {
        self.input.channels / self.groups
    }

    /// Weights of one output channel.
    pub const fn filter_len(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.group_channels()
    }

    /// The same convolution over a single row, where it looks at one pixel at a time and the operand
    /// has no halo.
    pub fn single_row(&self) -> Option<Self> {
        let pointwise = self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0, 0];
        let input = self.input.single_row().filter(|_| pointwise)?;
        Some(Self { input, out_height: 1, out_width: input.width, ..*self })
    }

    /// The same convolution with the columns of a window for channels, and every output's beside each other, where
    /// that spares reading spare channels: a single channel, and at most [`FOLDED`] elements. Weights are in the
    /// same order.
    pub(super) fn folded(&self) -> Option<Self> {
        let [top, _, bottom, _] = self.input.pads;
        let input = MapLayout {
            height: self.input.height,
            width: self.out_width,
            channels: self.kernel[1],
            pads: [top, 0, bottom, 0],
        };
        let pays = self.input.channels == 1 && self.groups == 1 && self.kernel[1] > 1;
        let fits = input.len() <= FOLDED && self.input.row() <= 4 * FOLDED_ROW;
        (pays && fits && self.dilations[1] == 1).then(|| Self {
            input,
            kernel: [self.kernel[0], 1],
            strides: [self.strides[0], 1],
            pads: [self.pads[0], 0],
            ..*self
        })
    }

    /// Whether every channel is a group of its own.
    pub const fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.input.channels && self.groups == self.out_channels
    }

    /// Index in the operand's memory of the window's first element for output pixel (`y`, `x`).
    pub(super) const fn origin(&self, y: usize, x: usize) -> usize {
        let row = self.input.pads[0] - self.pads[0] + y * self.strides[0];
        let column = self.input.pads[1] - self.pads[1] + x * self.strides[1];
        row * self.input.row() + column * self.input.stride()
    }

    /// Elements from the window's first element to its tap (`ky`, `kx`).
    pub(super) const fn tap(&self, ky: usize, kx: usize) -> usize {
        ky * self.dilations[0] * self.input.row() + kx * self.dilations[1] * self.input.stride()
    }
}

/// Most elements of an operand that is folded.
pub(super) const FOLDED: usize = 1 << 14;
/// Most pixels in a row of one.
pub(super) const FOLDED_ROW: usize = 1 << 10;

/// Window of a pooling operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PoolShape {
    /// Height, width.
    pub kernel: [usize; 2],
    /// Vertical, horizontal.
    pub strides: [usize; 2],
    /// Padding at top and left.
    pub pads: [usize; 2],
    /// Rows of the result.
    pub out_height: usize,
    /// Pixels in a row of the result.
    pub out_width: usize,
}

/// What follows the accumulation: t = (acc << shift) + bias\[c\] + multiplier\[c\] · residual code,
/// acc being the sum of weight · code over the window. Zero points are part of the bias.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Bits that the accumulator is shifted up.
    pub shift: u32,
    /// Bias and residual multipliers.
    pub bias: Bias<'a>,
    /// Operand of a fused addition, with the result's pixels and channels.
    pub residual: Option<Source<'a>>,
}

/// Bias and residual multipliers, one per output channel, by the size of t that the caller proved
/// for every possible input.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// Single precision is proved exact, see [`SinglePrecision`](super::SinglePrecision).
    Narrow {
        /// In units of t.
        bias: &'a [i32],
        /// Empty without a residual.
        residual: &'a [i32],
    },
    /// |t| < 2^53 and |t · multiplier| < 2^51: double precision is exact.
    Wide {
        /// In units of t.
        bias: &'a [i64],
        /// Empty without a residual.
        residual: &'a [i64],
    },
}

/// How the multiply-accumulates of a layer are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Products of bytes, summed in 16 bits over `drain` steps of 4 channels before widening.
    Bytes {
        /// Steps that can't overflow, for the actual weights.
        drain: usize,
    },
    /// Products of bytes, pixels by output channels by input channels at a time, summed in 32 bits.
    Matrix,
    /// Four products of bytes at a time, summed in 32 bits.
    Quads,
    /// Products of 16 bits, summed in 32.
    Pairs,
    /// The same of bytes, which are widened when they are read.
    BytePairs,
    /// Products of 16 bits, summed in 32, a quarter as many of them: Winograd's minimal filtering F(4 x 4, 3 x 3).
    Winograd,
    /// Products of bytes, four ninths as many of them, summed in 16 bits: F(2 x 2, 3 x 3).
    WinogradBytes {
        /// Added to transformed codes.
        offset: u8,
    },
    /// The same, summed in 32 bits.
    WinogradQuads {
        /// Added to transformed codes.
        offset: u8,
    },
    /// Sums of four channels' codes for all signs, added up in bytes.
    Lookup,
    /// High and low byte of 16-bit activations apart.
    Split,
    /// One channel at a time, four rows of the window at once.
    DepthwiseQuads,
    /// One channel at a time, two rows of the window at once, summed in 16 bits.
    DepthwiseBytes,
    /// One channel at a time, two rows of the window at once, summed in 32 bits.
    DepthwisePairs,
    /// One channel at a time, tap by tap.
    Depthwise {
        /// Whether sums may leave 32 bits.
        wide: bool,
    },
    /// The specification.
    Scalar,
}

impl core::fmt::Display for Class {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Bytes { drain } => write!(f, "bytes, {drain} steps in 16 bits"),
            Self::Matrix => f.write_str("matrix"),
            Self::Quads => f.write_str("quads"),
            Self::Pairs => f.write_str("pairs"),
            Self::BytePairs => f.write_str("pairs of bytes"),
            Self::Winograd => f.write_str("winograd"),
            Self::WinogradBytes { .. } => f.write_str("winograd bytes"),
            Self::WinogradQuads { .. } => f.write_str("winograd quads"),
            Self::Lookup => f.write_str("lookup"),
            Self::Split => f.write_str("split"),
            Self::DepthwiseQuads => f.write_str("depthwise quads"),
            Self::DepthwiseBytes => f.write_str("depthwise bytes"),
            Self::DepthwisePairs => f.write_str("depthwise pairs"),
            Self::Depthwise { wide } => {
                f.write_str(if *wide { "depthwise wide" } else { "depthwise" })
            }
            Self::Scalar => f.write_str("scalar"),
        }
    }
}

/// A layer's weights.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// How they are packed.
    pub class: Class,
    /// (out channel, ky, kx, channel within the group); may be left out, empty, where they are packed.
    pub plain: &'a [i16],
    /// As the class's kernel reads them.
    pub packed: Packed<'a>,
}

/// Packed weights.
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// The class reads the plain weights.
    None,
    /// Bytes.
    I8(&'a [i8]),
    /// 16-bit words.
    I16(&'a [i16]),
}

/// Size of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedLen {
    /// Nothing is packed.
    None,
    /// So many bytes.
    I8(usize),
    /// So many 16-bit words.
    I16(usize),
}

/// Memory for packed weights.
#[derive(Debug)]
pub enum PackedMut<'a> {
    /// Nothing is packed.
    None,
    /// Bytes.
    I8(&'a mut [i8]),
    /// 16-bit words.
    I16(&'a mut [i16]),
}

/// Output channels of one panel of packed weights.
pub(super) const PANEL: usize = 16;

/// Checks once per call what the kernels rely on.
pub(super) fn check_conv(
    shape: &ConvShape,
    weights: &Weights<'_>,
    input: &Codes<'_>,
    terms: &Terms<'_>,
    outputs: &[Output<'_>],
) {
    let layout = &shape.input;
    assert!(input.len() >= layout.len(), "operand is smaller than its layout");
    let is_packed = !matches!(weights.packed, Packed::None);
    let left_out = is_packed && weights.plain.is_empty();
    assert!(left_out || weights.plain.len() == shape.filter_len() * shape.out_channels, "weights");
    for axis in 0..2 {
        let size = [layout.height, layout.width][axis] + layout.pads[axis] + layout.pads[axis + 2];
        let out = [shape.out_height, shape.out_width][axis];
        let first = layout.pads[axis].checked_sub(shape.pads[axis]).expect("halo covers padding");
        let reach = (shape.kernel[axis] - 1) * shape.dilations[axis];
        assert!(first + (out - 1) * shape.strides[axis] + reach < size, "window leaves the halo");
    }
    let (bias, residual) = match terms.bias {
        Bias::Narrow { bias, residual } => (bias.len(), residual.len()),
        Bias::Wide { bias, residual } => (bias.len(), residual.len()),
    };
    assert_eq!(bias, shape.out_channels, "biases");
    assert!(terms.residual.is_none() || residual == shape.out_channels, "residual multipliers");
    let pixels = (shape.out_height, shape.out_width);
    let fits = |l: &MapLayout| (l.height, l.width) == pixels && l.channels == shape.out_channels;
    for output in outputs {
        assert!(fits(&output.layout) && output.codes.len() >= output.layout.len(), "output");
        assert_eq!(output.multipliers.len(), shape.out_channels, "multipliers");
    }
    if let Some(residual) = &terms.residual {
        assert!(
            fits(&residual.layout) && residual.codes.len() >= residual.layout.len(),
            "residual"
        );
    }
}
