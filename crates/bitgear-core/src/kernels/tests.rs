//! Every kernel that this CPU has against the specification, and the specification against sums
//! written out.

mod cases;

use proptest::prelude::*;

use self::cases::*;
use super::*;

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
    // Transformed weights are at most nine times, codes four times as large.
    let square = ConvShape { input: MapLayout { channels: 32, ..input }, out_channels: 32, ..unit };
    let winograd = Some(Class::WinogradQuads { offset: 126 });
    assert_eq!(bytes(&square, 14, 6), (winograd, quads));
    assert_eq!(bytes(&square, 15, 6).0, quads, "a weight of 135");
    assert_eq!(bytes(&square, 7, 7).0, quads, "a code of 508");
    assert_eq!(bytes(&unit, 7, 4).0, quads, "too few channels to pay");
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

/// Results are packed as integers, which is right as long as their sums with 1.5 · 2^23 are positive.
#[test]
fn results_that_reach_2_to_the_23_are_not_single_precision() {
    let largest = 1 << 20;
    let proof = SinglePrecision { acc: (-largest, largest), shift: 0, bias: 0, residual: 0 };
    assert!(proof.is_exact(7.99, 0, [0, 255]));
    assert!(!proof.is_exact(8.0, 0, [0, 255]));
    assert!(!proof.is_exact(-8.0, 0, [0, 255]));
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
