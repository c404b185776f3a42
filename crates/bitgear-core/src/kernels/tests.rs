//! Every kernel that this CPU has against the specification, and the specification against sums
//! written out.

use proptest::prelude::*;

use super::*;

/// A convolution with all its operands.
#[derive(Clone, Debug)]
struct Case {
    shape: ConvShape,
    activation_bits: BitWidth,
    plain: Vec<i16>,
    input: Vec<u16>,
    shift: u32,
    bias: Vec<i64>,
    residual: Option<Residual>,
    narrow: bool,
    versions: Vec<Version>,
}

#[derive(Clone, Debug)]
struct Residual {
    codes: Vec<u16>,
    multipliers: Vec<i64>,
    bytes: bool,
    halo: usize,
}

#[derive(Clone, Debug)]
struct Version {
    multiplier: f32,
    zero: i32,
    storage: Storage,
    halo: usize,
}

#[derive(Clone, Copy, Debug)]
enum Storage {
    U8,
    /// Two bits.
    Few,
    U16,
    I32,
}

impl Storage {
    fn limits(self) -> [i32; 2] {
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
enum Memory {
    U8(Vec<u8>),
    U16(Vec<u16>),
    I32(Vec<i32>),
}

fn run(kernels: Kernels, case: &Case) -> (Class, Vec<Memory>) {
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
fn spread(multiplier: f32, channels: usize) -> Vec<f32> {
    (0..channels).map(|c| multiplier * [1.0, 0.37, -0.81][c % 3]).collect()
}

fn halo(layout: MapLayout, pad: usize) -> MapLayout {
    MapLayout { pads: [pad, pad, 0, pad], ..layout }
}

/// A deterministic stream of numbers; proptest draws only its seed, since drawing every code would
/// be slow.
fn stream(seed: u64) -> impl FnMut() -> u64 {
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
enum Fill {
    Random,
    AllLow,
    AllHigh,
    Alternating,
    Odd,
}

/// Size; channels; output channels; kernel; strides, dilations; dense, depthwise, or so many groups.
type Geometry = ((usize, usize), usize, usize, [usize; 2], ([usize; 2], [usize; 2]), usize);

fn any_geometry() -> impl Strategy<Value = Geometry> {
    (
        (1_usize..6, prop_oneof![1_usize..9, 8_usize..40]),
        prop_oneof![1_usize..10, 15_usize..20],
        prop_oneof![1_usize..10, 15_usize..35],
        prop_oneof![Just([1, 1]), Just([3, 3]), Just([1, 3]), Just([2, 2])],
        ([1_usize..3, 1_usize..3], [1_usize..3, 1_usize..3]),
        0_usize..5,
    )
}

/// Most layers of most networks: 3 x 3, with stride 1.
fn usual_geometry() -> impl Strategy<Value = Geometry> {
    (
        (4_usize..12, 4_usize..12),
        prop_oneof![9_usize..20, 29_usize..36],
        prop_oneof![9_usize..20, 29_usize..36],
        Just([3, 3]),
        Just(([1, 1], [1, 1])),
        Just(0),
    )
}

fn cases(
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
fn is_narrow(case: &Case) -> bool {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_kernel_gives_the_bits_of_the_specification(case in cases(any_geometry(), 1..=16)) {
        check(&case)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn usual_layers_get_the_bits_of_the_specification(case in cases(usual_geometry(), 1..=8)) {
        check(&case)?;
    }
}

/// Layers of one bit, narrow and wide, of one group of channels and of several blocks.
fn one_bit_geometry() -> impl Strategy<Value = Geometry> {
    (
        (1_usize..20, prop_oneof![1_usize..31, 32_usize..100]),
        prop_oneof![1_usize..9, 15_usize..70, Just(256)],
        1_usize..36,
        prop_oneof![Just([1, 1]), Just([3, 3]), Just([2, 3]), Just([5, 1])],
        ([1_usize..3, 1_usize..3], [1_usize..3, 1_usize..3]),
        Just(0),
    )
}

/// One version of two bits, which thresholds can tell.
fn with_few_bits(mut case: Case, zero: i32) -> Case {
    let multiplier = case.versions[0].multiplier / 40.0;
    case.residual = None;
    case.versions = vec![Version { multiplier, zero, storage: Storage::Few, halo: 1 }];
    case.narrow = is_narrow(&case);
    case
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn layers_of_one_bit_get_the_bits_of_the_specification(
        case in cases(one_bit_geometry(), 1..=1), few: bool, zero in -2_i32..5,
    ) {
        check(&if few { with_few_bits(case, zero) } else { case })?;
    }
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let (_, expected) = run(Kernels::scalar(), case);
    for kernels in Kernels::present() {
        let (class, memory) = run(kernels, case);
        prop_assert_eq!(&memory, &expected, "{} {:?}", kernels.name(), class);
    }
    Ok(())
}

/// The classes above are reached on purpose, not by luck: one layer for each.
#[test]
fn each_class_is_chosen_where_its_bound_allows_it() {
    let input = MapLayout { pads: [1; 4], ..MapLayout::new(4, 4, 16) };
    let dense = ConvShape {
        input,
        out_channels: 16,
        out_height: 2,
        out_width: 2,
        kernel: [3, 3],
        strides: [2, 2],
        dilations: [1, 1],
        pads: [1, 1],
        groups: 1,
    };
    let unit = ConvShape { out_height: 4, out_width: 4, strides: [1, 1], ..dense };
    let small = ConvShape { out_height: 3, ..unit };
    let many = ConvShape {
        input: MapLayout { height: 20, width: 20, ..input },
        out_height: 10,
        out_width: 10,
        ..dense
    };
    let large = MapLayout { pads: [1; 4], ..MapLayout::new(32, 32, 16) };
    let large = ConvShape { input: large, out_height: 32, out_width: 32, ..unit };
    let depthwise = ConvShape { groups: 16, ..dense };
    let grouped = ConvShape { groups: 4, ..dense };
    let class = |shape: &ConvShape, weight: i16, activation: u8| {
        let plain = vec![weight; shape.filter_len() * shape.out_channels];
        bound::class(shape, &plain, BitWidth::new(activation).unwrap())
    };
    struct Expected(&'static str, ConvShape, i16, u8, Class);
    let table = [
        // 15 · 7 · 2 = 210 a step: 36 steps make 7560, far from 32767.
        Expected("4 x 4 bits", dense, 7, 4, Class::Bytes { drain: 36 }),
        // 255 · 63 · 2 = 32130: one step fits, two don't.
        Expected("8 x 7 bits", dense, 63, 8, Class::Bytes { drain: 1 }),
        Expected("8 x 8 bits", dense, 127, 8, Class::BytePairs),
        Expected("8 x 8 bits, more pixels", many, 127, 8, Class::Pairs),
        Expected("stride 1", unit, -128, 8, Class::Winograd),
        // 15 · 7 · 9 · 8 = 7560 for half of the channels, below 2^13; with -8 8640.
        Expected("stride 1, 4 x 4 bits", unit, 7, 4, Class::WinogradBytes { offset: 30 }),
        Expected("stride 1, one code more", unit, -8, 4, Class::Winograd),
        // Transformed weights of 49 · 668 = 32732 are the largest.
        Expected("stride 1, wide weights", unit, 668, 8, Class::Winograd),
        Expected("stride 1, wider weights", unit, 669, 8, Class::Pairs),
        Expected("stride 1, 9-bit activations", unit, 127, 9, Class::Pairs),
        Expected("smaller than a tile", small, 127, 8, Class::BytePairs),
        Expected("12 x 12 bits", dense, 2047, 12, Class::Pairs),
        Expected("16 x 16 bits", dense, 32767, 16, Class::Split),
        Expected("1 x 1 bits", large, 1, 1, Class::Lookup),
        Expected("1 x 1 bits, few pixels", dense, 1, 1, Class::Bytes { drain: 36 }),
        Expected("1 x 2 bits", large, 1, 2, Class::WinogradBytes { offset: 6 }),
        Expected("depthwise 8 x 8", depthwise, 127, 8, Class::DepthwisePairs),
        // 9 · 255 · 14 = 32130; 15 would be 34425.
        Expected("depthwise 5 x 8", depthwise, 14, 8, Class::DepthwiseBytes),
        Expected("depthwise, larger weights", depthwise, 15, 8, Class::DepthwisePairs),
        Expected("depthwise 8 x 9", depthwise, 127, 9, Class::Depthwise { wide: false }),
        Expected("depthwise 16 x 16", depthwise, 32767, 16, Class::Depthwise { wide: true }),
        Expected("groups", grouped, 7, 4, Class::Scalar),
    ];
    for Expected(name, shape, weight, activation, expected) in table {
        assert_eq!(class(&shape, weight, activation), expected, "{name}");
    }
    let bytes = |shape: &ConvShape, weight: i16, activation: u8| {
        let plain = vec![weight; shape.filter_len() * shape.out_channels];
        let activation = BitWidth::new(activation).unwrap();
        (bound::quads(shape, &plain, activation), bound::matrix(shape, &plain, activation))
    };
    let quads = Some(Class::Quads);
    let wide = ConvShape { out_width: 8, ..dense };
    assert_eq!(bytes(&wide, -128, 8), (quads, Some(Class::Matrix)));
    assert_eq!(bytes(&dense, 127, 8), (quads, quads), "few pixels");
    // 3 · 76 bytes have no equal parts of 32 to 64 bytes in fours.
    let uneven = ConvShape { input: MapLayout { channels: 76, ..input }, ..wide };
    assert_eq!(bytes(&uneven, 127, 8), (quads, quads), "uneven runs");
    assert_eq!(bytes(&depthwise, 127, 8).1, Some(Class::DepthwiseQuads));
    assert_eq!(bytes(&dense, 127, 9), (None, None));
    assert_eq!(bytes(&dense, 255, 8), (None, None));
    assert_eq!(bytes(&grouped, 7, 4), (None, None));
}

/// 1 x 2 pixels, 1 channel, 1 x 2 window without padding: everything by hand.
#[test]
fn the_specification_computes_bias_residual_and_one_rounding() {
    let shape = ConvShape {
        input: MapLayout::new(1, 2, 1),
        out_channels: 1,
        out_height: 1,
        out_width: 1,
        kernel: [1, 2],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [0, 0],
        groups: 1,
    };
    let case = Case {
        shape,
        activation_bits: BitWidth::new(4).unwrap(),
        plain: vec![3, -2],
        // Spare channels hold what must not count.
        input: vec![5, 9, 9, 9, 4, 9, 9, 9],
        shift: 1,
        bias: vec![10],
        residual: Some(Residual {
            codes: vec![7, 0, 0, 0],
            multipliers: vec![3],
            bytes: true,
            halo: 0,
        }),
        narrow: true,
        // t = (3·5 - 2·4)·2 + 10 + 3·7 = 45; 45 · 0.5 = 22.5 rounds to 22.
        versions: vec![Version { multiplier: 0.5, zero: 1, storage: Storage::U8, halo: 0 }],
    };
    for kernels in Kernels::present() {
        let (_, memory) = run(kernels, &case);
        assert_eq!(memory, [Memory::U8(vec![23, 77, 77, 77])], "{}", kernels.name());
    }
}

/// One pixel, one channel, weight 1 or -1 and code 100: t is 100 in its own direction from the bias, so
/// that t can be anything.
fn single(t: i64, multiplier: f32, narrow: bool) -> Case {
    let sign = t.signum();
    Case {
        shape: ConvShape {
            input: MapLayout::new(1, 1, 1),
            out_channels: 1,
            out_height: 1,
            out_width: 1,
            kernel: [1, 1],
            strides: [1, 1],
            dilations: [1, 1],
            pads: [0, 0],
            groups: 1,
        },
        activation_bits: BitWidth::new(8).unwrap(),
        plain: vec![sign as i16],
        input: vec![100, 0, 0, 0],
        shift: 0,
        bias: vec![t - 100 * sign],
        residual: None,
        narrow,
        versions: vec![Version { multiplier, zero: 0, storage: Storage::I32, halo: 0 }],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Terms of every size, so that each way to the proof is met next to where it ends.
    #[test]
    fn what_is_proved_for_single_precision_holds(
        (weight, code, residual_code) in (-128_i16..128, 0_u16..256, 0_u16..256),
        (bias, factor, shift) in (any_size(28), any_size(24), 0_u32..12),
        common in 0_u32..4,
        (mantissa, exponent) in (1.0_f32..2.0, -26..2),
        zero in 0..256,
    ) {
        let (bias, factor) = (bias >> common << common, factor >> common << common);
        let version = Version {
            multiplier: mantissa * 2.0_f32.powi(exponent),
            zero,
            storage: Storage::U8,
            halo: 0,
        };
        let residual = Residual {
            codes: vec![residual_code, 0, 0, 0],
            multipliers: vec![factor],
            bytes: true,
            halo: 0,
        };
        let case = Case {
            plain: vec![weight],
            input: vec![code, 0, 0, 0],
            shift,
            bias: vec![bias],
            residual: Some(residual),
            narrow: true,
            versions: vec![version.clone()],
            ..single(1, 1.0, true)
        };
        let proof = SinglePrecision {
            acc: channel_bound(&case.shape, &case.plain, case.activation_bits, 0),
            shift,
            bias,
            residual: factor.abs() * 255,
        };
        let [multiplier] = spread(version.multiplier, 1)[..] else { unreachable!("one channel") };
        if proof.is_exact(multiplier, zero, version.storage.limits()) {
            check(&case)?;
        }
    }
}

/// Numbers of up to so many bits, of either sign; as many of each size.
fn any_size(bits: u32) -> impl Strategy<Value = i64> {
    (any::<i64>(), 64 - bits..64).prop_map(|(value, shift)| value >> shift)
}

/// Where float arithmetic would first go wrong: the largest t and products that the contract
/// allows, on ties and beside them.
#[test]
fn the_fused_multiply_adds_are_exact_up_to_their_limits() {
    let check = |case: &Case| {
        let (_, expected) = run(Kernels::scalar(), case);
        for kernels in Kernels::present() {
            assert_eq!(run(kernels, case).1, expected, "{} {case:?}", kernels.name());
        }
    };
    // The largest floats below 1/4, and 1/4 itself, where every second even t is a tie.
    let quarters = [0.25, f32::from_bits(0.25_f32.to_bits() - 1), 0.249_999_9, 0.2];
    for distance in 0..300 {
        for sign in [1, -1] {
            for (i, multiplier) in quarters.into_iter().enumerate() {
                // |t| ≤ 2^24 and |t · multiplier| < 2^22.
                let t = sign * ((1 << 24) - distance - i64::from(i == 0));
                check(&single(t, multiplier, true));
                check(&single(t, multiplier, false));
            }
            // |t| < 2^53; results of 30 bits, ties at odd multiples of 2^22.
            let half = 1_i64 << 22;
            for off in -1..=1 {
                let t = sign * ((1 << 53) - (2 * distance + 1) * half + off - 1);
                check(&single(t, 1.0 / (1 << 23) as f32, false));
                check(&single(t, 1.1 / (1 << 23) as f32, false));
            }
        }
    }
}
