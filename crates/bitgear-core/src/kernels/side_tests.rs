//! What lies between MAC layers, on every set of kernels.

use proptest::prelude::*;

use super::*;

/// Averages on every set of kernels, which must agree.
fn average_of(codes: &[u8], window: &PoolShape, zero: i32) -> Vec<u8> {
    let results: Vec<Vec<u8>> =
        Kernels::present().map(|kernels| average_on(kernels, codes, window, zero)).collect();
    assert!(results.iter().all(|result| *result == results[0]));
    results[0].clone()
}

fn average_on(kernels: Kernels, codes: &[u8], window: &PoolShape, zero: i32) -> Vec<u8> {
    let layout = MapLayout::new(1, codes.len() / 4, 1);
    let out = MapLayout::new(window.out_height, window.out_width, 1);
    let mut result = vec![0; out.len()];
    let multipliers: Vec<f32> = (1..=2).map(|count| 1.0 / count as f32).collect();
    let mut outputs = [Output {
        codes: CodesMut::U8(&mut result),
        layout: out,
        multipliers: &multipliers,
        zero,
        low: 0,
        high: 255,
    }];
    let source = Source { codes: Codes::U8(codes), layout };
    kernels.average(source, zero, window, &mut outputs);
    result.chunks(4).map(|pixel| pixel[0]).collect()
}

#[test]
fn averages_divide_by_the_pixels_inside_the_map() {
    // Pixels 10, 20, 31; windows of 2 with one pixel of padding on the left.
    let codes = [10, 0, 0, 0, 20, 0, 0, 0, 31, 0, 0, 0];
    let window =
        PoolShape { kernel: [1, 2], strides: [1, 1], pads: [0, 1], out_height: 1, out_width: 3 };
    // 10; (10 + 20) / 2; (20 + 31) / 2 = 25.5, to even 26.
    assert_eq!(average_of(&codes, &window, 0), [10, 15, 26]);
    // Around a zero point of 8: 2, 14 / 2, 35 / 2 = 17.5 to 18, and the zero point again.
    assert_eq!(average_of(&codes, &window, 8), [10, 15, 26]);
}

#[test]
fn padding_never_wins_a_maximum() {
    let codes = [3, 0, 0, 0, 1, 0, 0, 0];
    let layout = MapLayout::new(1, 2, 1);
    let window =
        PoolShape { kernel: [3, 3], strides: [1, 1], pads: [1, 1], out_height: 1, out_width: 2 };
    let mut out = [9; 8];
    let source = Source { codes: Codes::U8(&codes), layout };
    Kernels::scalar().max_pool(source, &window, CodesMut::U8(&mut out), &layout);
    assert_eq!(out, [3, 9, 9, 9, 3, 9, 9, 9]);
}

#[test]
fn one_pixel_and_one_channel_broadcast() {
    // 1 x 2 pixels of 2 channels plus one pixel of 2 channels, times one channel per pixel.
    let wide = MapLayout::new(1, 2, 2);
    let codes = [1, 2, 0, 0, 3, 4, 0, 0];
    let pixel = [10, 20, 0, 0];
    let gate = [5, 0, 0, 0, 7, 0, 0, 0];
    let source = |codes, layout| Source { codes: Codes::U8(codes), layout };
    let mut sum = [0; 8];
    let ones = [1.0; 2];
    let mut output = [Output {
        codes: CodesMut::U8(&mut sum),
        layout: wide,
        multipliers: &ones,
        zero: 0,
        low: 0,
        high: 255,
    }];
    let kernels = Kernels::scalar();
    kernels.combine(
        &[(source(&codes, wide), &[1, 1]), (source(&pixel, MapLayout::new(1, 1, 2)), &[1, 2])],
        &[0, 1],
        &mut output,
    );
    assert_eq!(sum, [11, 43, 0, 0, 13, 45, 0, 0]);
    let mut product = [0; 8];
    let mut output = [Output {
        codes: CodesMut::U8(&mut product),
        layout: wide,
        multipliers: &ones,
        zero: 3,
        low: 0,
        high: 255,
    }];
    kernels.product(
        (source(&codes, wide), 1),
        (source(&gate, MapLayout::new(1, 2, 1)), 4),
        &mut output,
    );
    // (1-1)·(5-4) + 3, (2-1)·1 + 3; (3-1)·(7-4) + 3, (4-1)·3 + 3
    assert_eq!(product, [3, 4, 0, 0, 9, 12, 0, 0]);
}

#[test]
fn runs_move_and_leave_the_rest_alone() {
    let source: Vec<u8> = (0..40).collect();
    let mut output = [99; 44];
    let runs = [Run { from: 3, to: 1, len: 33 }, Run { from: 0, to: 40, len: 2 }];
    Kernels::detect().gather(Codes::U8(&source), &runs, CodesMut::U8(&mut output));
    assert_eq!(output[0], 99);
    assert_eq!(output[1..34], source[3..36]);
    assert_eq!(output[34..], [99, 99, 99, 99, 99, 99, 0, 1, 99, 99]);
}

/// The definition, with nothing but a division and a rounding.
fn code(value: f32, Quantization { scale, zero, max }: Quantization) -> u16 {
    let code = (f64::from(value) / scale).round_ties_even() + f64::from(zero);
    code.clamp(0.0, f64::from(max)) as u16
}

proptest! {
    #[test]
    fn every_value_becomes_the_nearest_code(
        (bits, signed, planar, mantissa, exponent) in
            (1_u32..=16, any::<bool>(), any::<bool>(), 1.0_f64..2.0, -30_i32..30),
        (height, width, channels) in (1_usize..4, 1_usize..300, 1_usize..5),
        seed: u64,
    ) {
        let layout = MapLayout { pads: [1, 2, 0, 1], ..MapLayout::new(height, width, channels) };
        let (max, zero) = ((1 << bits) - 1, if signed { 1 << (bits - 1) } else { 0 });
        // A third of the scales are such that ties occur.
        let mantissa = if seed % 3 == 0 { 1.0 } else { mantissa };
        let scale = mantissa * f64::from(exponent).exp2();
        let quantization = Quantization { scale, zero: zero as u16, max: max as u16 };
        let mut state = seed;
        let values: Vec<f32> = (0..height * width * channels)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                let half = f64::from((state >> 33) as u32 % (2 * max as u32 + 9)) / 2.0 - f64::from(zero) - 2.0;
                let value = (half * scale) as f32;
                // Middles between codes, their neighbours, and what lies outside.
                match i % 7 {
                    0 => f32::from_bits(value.to_bits() + 1),
                    1 => f32::from_bits(value.to_bits().saturating_sub(1)),
                    2 => value * 1.0003,
                    3 if i % 5 == 0 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][i / 35 % 4],
                    _ => value,
                }
            })
            .collect();
        for kernels in Kernels::present() {
            let (mut bytes, mut words) = (vec![7_u8; layout.len()], vec![7_u16; layout.len()]);
            let output = if bits <= 8 { CodesMut::U8(&mut bytes) } else { CodesMut::U16(&mut words) };
            kernels.quantize(&values, planar, quantization, output, &layout);
            let mut expected = vec![7_u16; layout.len()];
            for (k, place) in (0..values.len()).map(|k| (k, (k / channels, k % channels))) {
                let (pixel, channel) = place;
                let at = layout.offset(pixel / width, pixel % width) + channel;
                let index = if planar { channel * height * width + pixel } else { k };
                expected[at] = code(values[index], quantization);
            }
            let got = if bits <= 8 { bytes.into_iter().map(u16::from).collect() } else { words };
            prop_assert_eq!(got, expected, "{}", kernels.name());
        }
    }
}

#[test]
fn averages_of_usual_size_round_half_to_even_in_double_precision() {
    assert_eq!(side::rounded(&[1, 3, -1, -3], 0.5), Some([0, 2, 0, -2]));
    assert_eq!(side::rounded(&[(1 << 28) - 1], 4.0), Some([(1 << 30) - 4]));
    assert_eq!(side::rounded(&[1 << 28], 0.5), None);
}

proptest! {
    #[test]
    fn averages_round_in_double_precision_only_where_it_is_exact(
        sums in prop::array::uniform4((1_u32..34).prop_flat_map(|bits| -(1_i64 << bits)..1 << bits)),
        multiplier in prop_oneof![-8.0_f32..8.0, prop::sample::select(vec![0.5, 0.25, 0.125, 1.0 / 3.0, 1e-39])],
    ) {
        if let Some(rounded) = side::rounded(&sums, multiplier) {
            let exact = sums.map(|t| crate::fixed::requantize(t, multiplier));
            prop_assert_eq!(rounded.map(i64::from), exact);
        }
    }
}
