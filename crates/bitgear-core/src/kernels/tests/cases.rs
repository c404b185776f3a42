//! Convolutions with all their operands, and how they are run.

use proptest::prelude::*;

use super::super::*;

/// A convolution with all its operands.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) shape: ConvShape,
    pub(super) activation_bits: BitWidth,
    pub(super) plain: Vec<i16>,
    pub(super) input: Vec<u16>,
    pub(super) shift: u32,
    pub(super) bias: Vec<i64>,
    pub(super) residual: Option<Residual>,
    pub(super) narrow: bool,
    pub(super) versions: Vec<Version>,
}

#[derive(Clone, Debug)]
pub(super) struct Residual {
    pub(super) codes: Vec<u16>,
    pub(super) multipliers: Vec<i64>,
    pub(super) bytes: bool,
    pub(super) halo: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) multiplier: f32,
    pub(super) zero: i32,
    pub(super) storage: Storage,
    pub(super) halo: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Storage {
    U8,
    /// Two bits.
    Few,
    U16,
    I32,
}

impl Storage {
    pub(super) fn limits(self) -> [i32; 2] {
        match self {
            Self::U8 => [0, 255],
            Self::Few => [1, 3],
            Self::U16 => [1, 65535],
            Self::I32 => [i32::MIN / 2, i32::MAX / 2],
        }
    }
}

/// Memory of one version after running.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Memory {
    U8(Vec<u8>),
    U16(Vec<u16>),
    I32(Vec<i32>),
}

pub(super) fn run(kernels: Kernels, case: &Case) -> (Class, Vec<Memory>) {
    let shape = &case.shape;
    let class = kernels.class(shape, &case.plain, case.activation_bits);
    let (mut i8s, mut i16s) = (Vec::new(), Vec::new());
    let packed = match Kernels::packed_len(class, shape) {
        PackedLen::None => Packed::None,
        PackedLen::I8(len) => {
            i8s.resize(len, 0);
            Kernels::pack(class, shape, &case.plain, PackedMut::I8(&mut i8s));
            Packed::I8(&i8s)
        }
        PackedLen::I16(len) => {
            i16s.resize(len, 0);
            Kernels::pack(class, shape, &case.plain, PackedMut::I16(&mut i16s));
            Packed::I16(&i16s)
        }
    };
    let bytes: Vec<u8> = case.input.iter().map(|&c| c as u8).collect();
    let input =
        if case.activation_bits.get() <= 8 { Codes::U8(&bytes) } else { Codes::U16(&case.input) };
    let out = MapLayout::new(shape.out_height, shape.out_width, shape.out_channels);
    let (narrow_bias, narrow_residual): (Vec<i32>, Vec<i32>);
    let no_multipliers = Vec::new();
    let multipliers = case.residual.as_ref().map_or(&no_multipliers, |r| &r.multipliers);
    let bias = if case.narrow {
        narrow_bias = case.bias.iter().map(|&b| b as i32).collect();
        narrow_residual = multipliers.iter().map(|&m| m as i32).collect();
        Bias::Narrow { bias: &narrow_bias, residual: &narrow_residual }
    } else {
        Bias::Wide { bias: &case.bias, residual: multipliers }
    };
    let residual_bytes: Vec<u8> =
        case.residual.iter().flat_map(|r| r.codes.iter().map(|&c| c as u8)).collect();
    let terms = Terms {
        shift: case.shift,
        bias,
        residual: case.residual.as_ref().map(|r| Source {
            codes: if r.bytes { Codes::U8(&residual_bytes) } else { Codes::U16(&r.codes) },
            layout: halo(out, r.halo),
        }),
    };
    let mut memories: Vec<Memory> = case
        .versions
        .iter()
        .map(|version| {
            let len = halo(out, version.halo).len();
            match version.storage {
                Storage::U8 | Storage::Few => Memory::U8(vec![77; len]),
                Storage::U16 => Memory::U16(vec![777; len]),
                Storage::I32 => Memory::I32(vec![-777; len]),
            }
        })
        .collect();
    let all: Vec<Vec<f32>> =
        case.versions.iter().map(|v| spread(v.multiplier, shape.out_channels)).collect();
    let mut outputs: Vec<Output<'_>> = case
        .versions
        .iter()
        .zip(&mut memories)
        .zip(&all)
        .map(|((version, memory), multipliers)| {
            let (codes, [low, high]) = match memory {
                Memory::U8(m) => (CodesMut::U8(m), version.storage.limits()),
                Memory::U16(m) => (CodesMut::U16(m), version.storage.limits()),
                Memory::I32(m) => (CodesMut::I32(m), version.storage.limits()),
            };
            let layout = halo(out, version.halo);
            Output { codes, layout, multipliers, zero: version.zero, low, high }
        })
        .collect();
    let weights = Weights { class, plain: &case.plain, packed };
    kernels.conv(shape, &weights, input, &terms, &mut outputs);
    drop(outputs);
    (class, memories)
}

/// Multipliers that differ by channel, in size and sign.
pub(super) fn spread(multiplier: f32, channels: usize) -> Vec<f32> {
    (0..channels).map(|c| multiplier * [1.0, 0.37, -0.81][c % 3]).collect()
}

pub(super) fn halo(layout: MapLayout, pad: usize) -> MapLayout {
    MapLayout { pads: [pad, pad, 0, pad], ..layout }
}

/// A deterministic stream of numbers; proptest draws only its seed, since drawing every code would
/// be slow.
pub(super) fn stream(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What the operands look like: anything, or the extremes that overflow first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill {
    Random,
    AllLow,
    AllHigh,
    Alternating,
    Odd,
}

/// Size; channels; output channels; kernel; strides, dilations; dense, depthwise, or so many groups.
pub(super) type Geometry =
    ((usize, usize), usize, usize, [usize; 2], ([usize; 2], [usize; 2]), usize);

pub(super) fn any_geometry() -> impl Strategy<Value = Geometry> {
    (
        (1_usize..6, prop_oneof![1_usize..9, 8_usize..40, 65_usize..80]),
        prop_oneof![1_usize..10, 15_usize..20],
        prop_oneof![1_usize..10, 15_usize..35],
        prop_oneof![Just([1, 1]), Just([3, 3]), Just([1, 3]), Just([2, 2])],
        ([1_usize..3, 1_usize..3], [1_usize..3, 1_usize..3]),
        0_usize..5,
    )
}

/// Most layers of most networks: 3 x 3, with stride 1.
pub(super) fn usual_geometry() -> impl Strategy<Value = Geometry> {
    (
        // Some rows are longer than what is transformed at once.
        (4_usize..12, prop_oneof![9 => 4_usize..12, 1 => 33_usize..40]),
        // So many channels are transformed at once, or in as many parts.
        prop_oneof![8 => 9_usize..20, 8 => 29_usize..36, 1 => Just(64), 1 => Just(80), 1 => Just(256)],
        prop_oneof![9_usize..20, 29_usize..36],
        Just([3, 3]),
        Just(([1, 1], [1, 1])),
        Just(0),
    )
}

pub(super) fn cases(
    geometry: impl Strategy<Value = Geometry>,
    bits: core::ops::RangeInclusive<u8>,
) -> impl Strategy<Value = Case> {
    let numbers = (bits.clone(), bits, 0_u32..6, any::<bool>(), any::<bool>(), any::<u64>());
    let fill = prop_oneof![
        3 => Just(Fill::Random), 1 => Just(Fill::AllLow),
        1 => Just(Fill::AllHigh), 1 => Just(Fill::Alternating), 1 => Just(Fill::Odd)
    ];
    (geometry, numbers, fill).prop_filter_map("has outputs", |(geometry, numbers, fill)| {
        let ((height, width), channels, out_channels, kernel, (strides, dilations), grouping) =
            geometry;
        let (w, a, shift, with_residual, narrow, seed) = numbers;
        let (channels, out_channels, groups) = match grouping {
            0 => (channels, out_channels, 1),
            1 => (channels, channels, channels),
            groups => (groups * channels, groups * out_channels, groups),
        };
        let pads = [kernel[0] / 2, kernel[1] / 2];
        let mut input = MapLayout::new(height, width, channels);
        // One pixel more than the window needs, so that halo and padding differ.
        input.pads = [pads[0] + 1, pads[1], kernel[0], kernel[1] * 2];
        let out = |axis: usize, size: usize| {
            let reach = (kernel[axis] - 1) * dilations[axis] + 1;
            (size + 2 * pads[axis]).checked_sub(reach).map(|room| room / strides[axis] + 1)
        };
        let (out_height, out_width) = (out(0, height)?, out(1, width)?);
        let shape = ConvShape {
            input,
            out_channels,
            out_height,
            out_width,
            kernel,
            strides,
            dilations,
            pads,
            groups,
        };
        let (weight_bits, activation_bits) = (BitWidth::new(w).ok()?, BitWidth::new(a).ok()?);
        let mut next = stream(seed);
        let (low, high) = weight_bits.weight_range();
        let mut weight = |i: usize| match fill {
            Fill::AllLow => low as i16,
            Fill::AllHigh => high as i16,
            Fill::Alternating => [low, high][i % 2] as i16,
            // Odd codes of one bit less, which is where their extremes lie.
            Fill::Odd => [low + 1, high][(next() & 1) as usize] as i16 | 1,
            Fill::Random if w == 1 => [-1, 1][(next() & 1) as usize],
            Fill::Random => (low + (next() % u64::from(weight_bits.levels())) as i32) as i16,
        };
        let plain: Vec<i16> = (0..shape.filter_len() * out_channels).map(&mut weight).collect();
        let mut next = stream(seed ^ 1);
        let codes = (0..input.len())
            .map(|_| match fill {
                Fill::Random | Fill::Odd => (next() % u64::from(activation_bits.levels())) as u16,
                _ => activation_bits.code_max() as u16,
            })
            .collect();
        let (bound_low, bound_high) = accumulator_bound(&shape, &plain, activation_bits);
        let largest = (bound_low.abs().max(bound_high.abs()).max(1) << shift) * 2;
        // In half of the cases most results saturate.
        let gain = [1.0, 600.0][(seed >> 8 & 1) as usize];
        let share = largest / 4;
        let mut value = |bound: i64| (next() % (2 * bound.max(1) as u64)) as i64 - bound;
        let bias: Vec<i64> = (0..out_channels).map(|_| value(share)).collect();
        let residual = with_residual.then(|| {
            let pads = (seed % 2) as usize;
            let len = halo(MapLayout::new(out_height, out_width, out_channels), pads).len();
            let multipliers: Vec<i64> = (0..out_channels).map(|_| value(share / 512)).collect();
            let mut next = stream(seed ^ 2);
            let codes = (0..len).map(|_| (next() % 256) as u16).collect();
            Residual { codes, multipliers, bytes: seed % 3 > 0, halo: pads }
        });
        let scale = gain * 200.0 / largest as f32;
        let versions = [
            Version { multiplier: scale, zero: 0, storage: Storage::U8, halo: 1 },
            Version { multiplier: scale * 150.0, zero: 32768, storage: Storage::U16, halo: 0 },
            Version { multiplier: scale * 1000.0, zero: 0, storage: Storage::I32, halo: 2 },
        ];
        // Some of them, in any order.
        let first = (seed % 3) as usize;
        let versions: Vec<Version> =
            (0..=(seed / 3 % 3) as usize).map(|i| versions[(first + i) % 3].clone()).collect();
        let mut case = Case {
            shape,
            activation_bits,
            plain,
            input: codes,
            shift,
            bias,
            residual,
            narrow,
            versions,
        };
        case.narrow &= is_narrow(&case);
        Some(case)
    })
}

/// Whether a caller could prove that single precision is exact.
pub(super) fn is_narrow(case: &Case) -> bool {
    let channels = case.shape.out_channels;
    (0..channels).all(|channel| {
        let proof = SinglePrecision {
            acc: channel_bound(&case.shape, &case.plain, case.activation_bits, channel),
            shift: case.shift,
            bias: case.bias[channel],
            residual: case.residual.as_ref().map_or(0, |r| r.multipliers[channel].abs() * 255),
        };
        case.versions.iter().all(|v| {
            let multiplier = spread(v.multiplier, channels)[channel];
            proof.is_exact(multiplier, v.zero, v.storage.limits())
        })
    })
}
