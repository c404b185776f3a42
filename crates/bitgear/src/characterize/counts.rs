//! Networks, points and profiles as the energy model, the search and the quantizer read them.

use super::PLAIN;
use crate::energy::{AcceleratorProfile, CodeBook, LayerWork, Live, Widths, Workload};
use crate::graph::Graph;
use crate::quantize::{
    CodeBooks, Constraints, Crossing, Methods, Point, crossings, fused_residuals,
};
use crate::search::{Kind, PointInfo};
use crate::summary::FloatIsland;
use crate::trace::View;

/// The counts that energy depends on.
pub fn workload(graph: &Graph) -> Workload {
    let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let residuals = fused_residuals(graph);
    let boundaries = crossings(graph).into_iter().map(|crossings| {
        let live = |crossing: Crossing| Live {
            tensor: crossing.tensor.0,
            elements: size(graph.shape(crossing.tensor)),
            layer: crossing.layer,
            side: crossing.side,
        };
        crossings.map(|crossings| crossings.into_iter().map(live).collect())
    });
    let layers = graph.mac_layers().into_iter().zip(residuals).zip(boundaries).map(
        |((layer, residual), boundary)| LayerWork {
            macs: layer.macs,
            weights: layer.weights,
            biases: layer.parameters - layer.weights,
            // Of a matrix product both operands, at the width of activations.
            inputs: size(&layer.input) + layer.second_operand,
            outputs: size(&layer.output),
            residual: residual as u64,
            // Zeros depend on the data; nobody counts them here.
            zero_macs: 0.0,
            name: layer.name,
            boundary,
        },
    );
    Workload { layers: layers.collect() }
}

pub(super) fn float_islands(graph: &Graph) -> Vec<FloatIsland> {
    let island = |(node, operator): (&str, &str)| FloatIsland {
        node: node.to_owned(),
        operator: operator.to_owned(),
    };
    graph.float_islands().into_iter().map(island).collect()
}

/// A point's widths in every layer.
pub(super) fn widths(point: &Point, workload: &Workload) -> Vec<Widths> {
    let layers = workload.layers.len();
    (0..layers)
        .map(|layer| {
            let widths = point.widths(layer, layers);
            Widths { weights: widths.weights.get(), activations: widths.activations.get() }
        })
        .collect()
}

/// What can be chosen of a point.
pub(super) fn point_infos(point: &Point, mirror: bool, workload: &Workload) -> Vec<PointInfo> {
    let name = point.to_string();
    let plain = point.is_uniform().then(|| (format!("{point}{PLAIN}"), View::AsIs));
    let mirrored = mirror.then(|| (name.clone(), View::Mirror));
    let widths = widths(point, workload);
    let info = |(name, view)| point_info(name, view, point.is_uniform(), widths.clone());
    [Some((name, View::AsIs)), plain, mirrored].into_iter().flatten().map(info).collect()
}

pub(super) fn point_info(
    name: String,
    view: View,
    uniform: bool,
    widths: Vec<Widths>,
) -> PointInfo {
    let (kind, alike) = if name.ends_with(PLAIN) {
        (Kind::Plain, widths.len())
    } else {
        (if uniform { Kind::Uniform } else { Kind::Mixed }, untuned(&widths))
    };
    PointInfo { point: name, view, kind, widths, alike }
}

/// Leading layers that are too wide for tuning to touch.
pub(super) fn untuned(widths: &[Widths]) -> usize {
    let wide = |w: &&Widths| w.weights.min(w.activations) > Methods::TUNED_BITS;
    widths.iter().take_while(wide).count()
}

/// Name and widths of a point whose name does not say them all.
pub(super) fn table(point: &Point, workload: &Workload) -> (String, Vec<[u8; 2]>) {
    let widths = widths(point, workload).into_iter().map(|w| [w.weights, w.activations]);
    (point.to_string(), widths.collect())
}

/// What the hardware allows, as the quantizer reads it.
pub(super) fn constraints(profile: &AcceleratorProfile) -> Constraints {
    let quantization = &profile.quantization;
    let lists = |book| quantization.two_bit_codes.contains(&book);
    let (ternary, odd) = (lists(CodeBook::Ternary), lists(CodeBook::Odd));
    Constraints {
        per_tensor_scales: quantization.per_tensor_scales,
        power_of_two_scales: quantization.power_of_two_scales,
        no_zero_points: quantization.no_zero_points,
        two_bit_codes: CodeBooks {
            twos_complement: lists(CodeBook::TwosComplement) || !(ternary || odd),
            ternary,
            odd,
        },
    }
}
