//! Rates of the convolution kernels, in billions of multiply-accumulates a second, on layers of real
//! networks and one thread: `cargo run --release -p bitgear-core --example kernels [NAME…]`. With names,
//! only layers and bit-widths that contain one of them.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::{
    Bias, Codes, CodesMut, ConvShape, Kernels, MapLayout, Output, Packed, PackedLen, PackedMut,
    Terms, Weights,
};

/// Name; rows and columns of the operand; channels, output channels; kernel; stride; groups.
struct Layer(&'static str, usize, [usize; 2], usize, usize, usize);

const LAYERS: [Layer; 17] = [
    Layer("resnet20 stem", 32, [3, 16], 3, 1, 1),
    Layer("resnet20 stage 1", 32, [16, 16], 3, 1, 1),
    Layer("resnet20 stage 2", 16, [32, 32], 3, 1, 1),
    Layer("resnet20 stage 3", 8, [64, 64], 3, 1, 1),
    Layer("resnet20 down", 32, [16, 32], 3, 2, 1),
    Layer("lite0 stem", 224, [3, 32], 3, 2, 1),
    Layer("lite0 expand", 112, [16, 96], 1, 1, 1),
    Layer("lite0 project", 56, [144, 24], 1, 1, 1),
    Layer("lite0 expand", 14, [80, 480], 1, 1, 1),
    Layer("lite0 project", 7, [1152, 192], 1, 1, 1),
    Layer("dscnn pointwise", 25, [64, 64], 1, 1, 1),
    Layer("fully connected", 1, [1280, 1000], 1, 1, 1),
    Layer("lite0 depthwise", 112, [32, 32], 3, 1, 32),
    Layer("lite0 depthwise", 112, [96, 96], 3, 2, 96),
    Layer("lite0 depthwise", 28, [240, 240], 5, 1, 240),
    Layer("lite0 depthwise", 14, [672, 672], 5, 2, 672),
    Layer("dscnn depthwise", 25, [64, 64], 3, 1, 64),
];
/// Bits of weights and activations.
const WIDTHS: [(u8, u8); 6] = [(16, 16), (8, 8), (7, 8), (4, 4), (2, 2), (1, 1)];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |text: &str| names.is_empty() || names.iter().any(|n| text.contains(n.as_str()));
    println!("{:24} {:6} {:7} {:32} {:>8} {:>8}", "layer", "point", "set", "class", "us", "GMAC/s");
    for Layer(name, size, [channels, out_channels], kernel, stride, groups) in LAYERS {
        let name = format!("{name} {size}x{size}x{channels}");
        for (w, a) in WIDTHS {
            let point = format!("w{w}a{a}");
            if !wanted(&name) && !wanted(&point) {
                continue;
            }
            let shape = conv(size, channels, out_channels, kernel, stride, groups);
            for kernels in Kernels::present().filter(|&k| k != Kernels::scalar()) {
                let (class, us) = time(kernels, &shape, w, a);
                let macs = shape.out_height * shape.out_width * shape.filter_len() * out_channels;
                let rate = macs as f64 / us / 1e3;
                let set = kernels.name();
                println!("{name:24} {point:6} {set:7} {class:32} {us:8.1} {rate:8.1}");
            }
        }
    }
}

fn conv(
    size: usize,
    channels: usize,
    out_channels: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
) -> ConvShape {
    let pad = kernel / 2;
    let out = (size - 1) / stride + 1;
    ConvShape {
        input: MapLayout { pads: [pad; 4], ..MapLayout::new(size, size, channels) },
        out_channels,
        out_height: out,
        out_width: out,
        kernel: [kernel; 2],
        strides: [stride; 2],
        dilations: [1; 2],
        pads: [pad; 2],
        groups,
    }
}

/// Name of the class and least microseconds of one layer with an 8-bit result.
fn time(kernels: Kernels, shape: &ConvShape, w: u8, a: u8) -> (String, f64) {
    let (weights, activations) =
        (BitWidth::new(w).expect("1 to 16"), BitWidth::new(a).expect("1 to 16"));
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    let (low, high) = weights.weight_range();
    // The sum of three uniform numbers: few weights are large, as in real layers.
    let mut weight = || {
        let third = |n: u64| n as i64 % (high - low + 1) as i64 + i64::from(low);
        if w == 1 {
            if next() & 1 == 0 { -1 } else { 1 }
        } else {
            ((third(next()) + third(next()) + third(next())) / 3) as i16
        }
    };
    let plain: Vec<i16> = (0..shape.filter_len() * shape.out_channels).map(|_| weight()).collect();
    let mask = activations.code_max() as u16;
    let codes: Vec<u16> = (0..shape.input.len()).map(|i| (i * 7919) as u16 & mask).collect();
    let bytes: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
    let input = if a <= 8 { Codes::U8(&bytes) } else { Codes::U16(&codes) };

    let class = kernels.class(shape, &plain, activations);
    let (mut i8s, mut i16s) = (Vec::new(), Vec::new());
    let packed = match Kernels::packed_len(class, shape) {
        PackedLen::None => Packed::None,
        PackedLen::I8(len) => {
            i8s.resize(len, 0);
            Kernels::pack(class, shape, &plain, PackedMut::I8(&mut i8s));
            Packed::I8(&i8s)
        }
        PackedLen::I16(len) => {
            i16s.resize(len, 0);
            Kernels::pack(class, shape, &plain, PackedMut::I16(&mut i16s));
            Packed::I16(&i16s)
        }
    };
    let layout = MapLayout::new(shape.out_height, shape.out_width, shape.out_channels);
    let mut result = vec![0; layout.len()];
    let multipliers = vec![1e-3; shape.out_channels];
    let (narrow, wide) = (vec![5; shape.out_channels], vec![5; shape.out_channels]);
    let bias = if w <= 8 {
        Bias::Narrow { bias: &narrow, residual: &[] }
    } else {
        Bias::Wide { bias: &wide, residual: &[] }
    };
    let weights = Weights { class, plain: &plain, packed };
    let mut run = || {
        let output = Output {
            codes: CodesMut::U8(&mut result),
            layout,
            multipliers: &multipliers,
            zero: 0,
            low: 0,
            high: 255,
        };
        let terms = Terms { shift: 0, bias, residual: None };
        let start = Instant::now();
        kernels.conv(shape, &weights, input, &terms, &mut [output]);
        start.elapsed().as_secs_f64() * 1e6
    };
    let begin = Instant::now();
    let mut least = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.05 {
        least = least.min(run());
    }
    (class.to_string(), least)
}
