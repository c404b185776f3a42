//! How each class's weights lie in memory.

use super::types::{Class, ConvShape, PANEL, PackedLen, PackedMut};
use super::{lookup, winograd, winograd_bytes};

/// Channels that one step of a dense class reads at once; rows of a depthwise one.
pub(super) const fn step_width(class: Class) -> usize {
    match class {
        Class::Bytes { .. }
        | Class::Matrix
        | Class::Quads
        | Class::WinogradBytes { .. }
        | Class::WinogradQuads { .. }
        | Class::DepthwiseQuads => 4,
        Class::Pairs
        | Class::BytePairs
        | Class::Winograd
        | Class::Split
        | Class::DepthwiseBytes
        | Class::DepthwisePairs => 2,
        Class::Lookup | Class::Depthwise { .. } | Class::Scalar => 1,
    }
}

/// Steps of one output.
pub(super) const fn steps(class: Class, shape: &ConvShape) -> usize {
    let [height, width] = shape.kernel;
    match class {
        Class::DepthwiseQuads | Class::DepthwiseBytes | Class::DepthwisePairs => {
            height.div_ceil(step_width(class)) * width
        }
        Class::Depthwise { .. } => height * width,
        Class::Winograd => winograd::POINTS * shape.input.stride() / step_width(class),
        _ => height * width * shape.input.stride() / step_width(class),
    }
}

/// How the kernel of a class sees a layer.
fn seen_by(class: Class, shape: &ConvShape) -> ConvShape {
    let folds =
        matches!(class, Class::Bytes { .. } | Class::BytePairs | Class::Pairs | Class::Quads);
    shape.folded().filter(|_| folds).unwrap_or(*shape)
}

/// Memory that a layer's weights take.
pub(super) fn packed_len(class: Class, shape: &ConvShape) -> PackedLen {
    let shape = &seen_by(class, shape);
    if class == Class::Lookup {
        return PackedLen::I16(lookup::packed_len(shape));
    }
    let panels = shape.out_channels.div_ceil(PANEL);
    if let Class::WinogradBytes { .. } | Class::WinogradQuads { .. } = class {
        return PackedLen::I8(panels * winograd_bytes::POINTS * winograd_bytes::point_len(shape));
    }
    let len = panels * steps(class, shape) * PANEL * step_width(class);
    match class {
        Class::Bytes { .. }
        | Class::Matrix
        | Class::Quads
        | Class::BytePairs
        | Class::WinogradBytes { .. }
        | Class::WinogradQuads { .. }
        | Class::DepthwiseQuads
        | Class::DepthwiseBytes => PackedLen::I8(len),
        Class::Pairs
        | Class::Winograd
        | Class::Lookup
        | Class::Split
        | Class::DepthwisePairs
        | Class::Depthwise { .. } => PackedLen::I16(len),
        Class::Scalar => PackedLen::None,
    }
}

/// [panel][step][output channel][within the step]. The steps of dense layers are [tap][group of
/// channels], those of depthwise ones [group of rows][column]. What is missing to full panels and
/// groups is zero. For [`Class::Winograd`] weights are transformed, and taps are points; for
/// [`Class::WinogradBytes`], [`Class::WinogradQuads`] and [`Class::Lookup`] as their modules say.
pub(super) fn pack(class: Class, shape: &ConvShape, plain: &[i16], out: PackedMut<'_>) {
    assert_eq!(plain.len(), shape.filter_len() * shape.out_channels, "weights of `{shape:?}`");
    let shape = &seen_by(class, shape);
    let code = |index| packed_code(class, shape, plain, index);
    match (packed_len(class, shape), out) {
        (PackedLen::None, PackedMut::None) => {}
        (PackedLen::I8(len), PackedMut::I8(out)) if len == out.len() => {
            if let Class::WinogradBytes { offset } | Class::WinogradQuads { offset } = class {
                let quads = class == Class::WinogradQuads { offset };
                return winograd_bytes::pack(shape, plain, offset, quads, out);
            }
            out.iter_mut().enumerate().for_each(|(index, out)| *out = code(index) as i8);
        }
        (PackedLen::I16(len), PackedMut::I16(out)) if len == out.len() => {
            if class == Class::Lookup {
                return lookup::pack(shape, plain, out);
            }
            out.iter_mut().enumerate().for_each(|(index, out)| *out = code(index));
        }
        (expected, out) => panic!("packed weights must be {expected:?}, got {out:?}"),
    }
}

/// The weight at an index of packed memory.
fn packed_code(class: Class, shape: &ConvShape, plain: &[i16], index: usize) -> i16 {
    let width = step_width(class);
    let (rest, within) = (index / width, index % width);
    let (rest, lane) = (rest / PANEL, rest % PANEL);
    let (panel, step) = (rest / steps(class, shape), rest % steps(class, shape));
    let filter = panel * PANEL + lane;
    let columns = shape.kernel[1];
    if class == Class::Winograd {
        let pairs = shape.input.stride() / width;
        let (point, channel) = (step / pairs, step % pairs * width + within);
        let channels = shape.input.channels;
        let inside = filter < shape.out_channels && channel < channels;
        return inside
            .then(|| &plain[filter * shape.filter_len()..][..shape.filter_len()])
            .map_or(0, |filter| winograd::weight(filter, channels, channel, point) as i16);
    }
    let place = match class {
        Class::DepthwiseQuads
        | Class::DepthwiseBytes
        | Class::DepthwisePairs
        | Class::Depthwise { .. } => {
            let row = step / columns * width + within;
            (row < shape.kernel[0]).then_some(row * columns + step % columns)
        }
        _ => {
            let groups = shape.input.stride() / width;
            let (tap, channel) = (step / groups, step % groups * width + within);
            let channels = shape.input.channels;
            (channel < channels).then_some(tap * channels + channel)
        }
    };
    place
        .filter(|_| filter < shape.out_channels)
        .map_or(0, |place| plain[filter * shape.filter_len() + place])
}
