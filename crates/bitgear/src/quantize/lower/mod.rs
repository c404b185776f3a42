//! From a float graph, quantized weights and calibrated ranges to an [`IntegerModel`].

mod boundary;
pub(super) mod demand;
pub(super) mod group;
mod island;
mod mac;
mod movement;
mod side;

pub use boundary::{Crossing, crossings};

use std::collections::BTreeMap;

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::MapLayout;

use self::demand::Demand;
use self::group::Group;
use super::{Parameters, Point, Ranges, UnsupportedOperators, mac_numbers};
use crate::execute::{ActivationScale, Format, IntegerModel, Map, MapId, Requantization, Step};
use crate::graph::{Graph, Op, TensorId};

/// Scores of the calibration data reach about 2 to this power: enough for 16 significant bits of
/// the largest score, and far from the ends of an i32.
const SCORE_BITS: i32 = 17;
/// Where a score saturates.
const SCORE_LIMIT: i32 = i32::MAX / 2;

/// Builds the integer network of one operating point.
///
/// # Errors
///
/// All operators that have no integer form, each with its node.
pub(super) fn lower(
    graph: &Graph,
    ranges: &Ranges,
    parameters: &Parameters,
    point: &Point,
) -> Result<IntegerModel, UnsupportedOperators> {
    let groups = group::groups(graph);
    let mac_index = mac_numbers(graph);
    let demands = demand::demands(graph, &groups, point, &mac_index);
    let mut lowering = Lowering {
        graph,
        ranges,
        parameters,
        maps: Vec::new(),
        versions: BTreeMap::new(),
        steps: Vec::new(),
        problems: Vec::new(),
    };
    for (tensor, wanted) in demands.iter().enumerate() {
        for &demand in wanted {
            lowering.add_map(TensorId(tensor), demand);
        }
    }
    // Halos first: where an element lies in memory depends on every reader's padding.
    for group in &groups {
        if let Op::Conv(conv) = &graph.nodes[group.head].op {
            let layer = mac_index[group.head].expect("a convolution is a MAC layer");
            let bits = point.widths(layer, parameters.layers.len()).activations;
            lowering.grow_halo(group, conv, bits);
        }
    }
    for group in &groups {
        if let Some(layer) = mac_index[group.head] {
            let widths = point.widths(layer, parameters.layers.len());
            match graph.nodes[group.head].op {
                Op::MatMul { scale } => lowering.matmul(group, scale, widths),
                _ => lowering.mac(group, &parameters.layers[layer], widths),
            }
        } else {
            lowering.side_step(group);
        }
    }
    let scores = lowering.finish_scores();
    if !lowering.problems.is_empty() {
        return Err(UnsupportedOperators(lowering.problems));
    }
    Ok(IntegerModel {
        point: point.to_string(),
        input_shape: graph.shape(graph.input).to_vec(),
        inputs: lowering.versions_of(graph.input).map(|(_, map)| map).collect(),
        maps: lowering.maps,
        steps: lowering.steps,
        scores,
    })
}

/// MAC layers with a fused addition: (number of the layer, the addition's other operand).
pub(super) fn residuals(graph: &Graph, mac_index: &[Option<usize>]) -> Vec<(usize, TensorId)> {
    let groups = group::groups(graph);
    groups.iter().filter_map(|g| Some((mac_index[g.head]?, g.residual?))).collect()
}

struct Lowering<'a> {
    graph: &'a Graph,
    ranges: &'a Ranges,
    parameters: &'a Parameters,
    maps: Vec<Map>,
    versions: BTreeMap<(TensorId, Demand), MapId>,
    steps: Vec<Step>,
    problems: Vec<(String, String)>,
}

/// Geometry of a sample's tensor in memory, without halo: images as they are, a sequence (T, D) as
/// a column of T pixels, everything else as one pixel. Rank 3 always means an image: the heads of
/// attention, (heads, T, d), are the channels of one of T x d pixels.
pub(super) fn layout(shape: &[usize]) -> MapLayout {
    match *shape {
        [c, h, w] => MapLayout::new(h, w, c),
        [t, d] => MapLayout::new(t, 1, d),
        _ => MapLayout::new(1, 1, shape.iter().product()),
    }
}

impl Lowering<'_> {
    fn add_map(&mut self, tensor: TensorId, demand: Demand) {
        let info = &self.graph.tensors[tensor.0];
        let format = match demand {
            Demand::Codes { bits, origin } => Format::Codes(
                self.parameters
                    .scales
                    .get(&(origin, bits))
                    .map_or_else(|| self.ranges.of(origin).scale(bits), |input| input.scale),
            ),
            Demand::Scores => self.score_format(),
        };
        let constant = self
            .graph
            .nodes
            .iter()
            .find(|node| node.output == tensor)
            .and_then(|node| if let Op::Constant(t) = &node.op { Some(t) } else { None })
            .map_or_else(Vec::new, |t| movement::constant_codes(t, &format));
        self.versions.insert((tensor, demand), self.maps.len());
        let (name, layout) = (info.name.clone(), layout(&info.shape));
        self.maps.push(Map { name, layout, format, constant });
    }

    fn score_format(&self) -> Format {
        let range = self.ranges.of(self.graph.output);
        let largest = f64::from(range.max.max(-range.min));
        let largest = if largest > 0.0 { largest } else { 1.0 };
        Format::Scores { scale: largest / f64::from(1 << SCORE_BITS) }
    }

    /// The stored versions of a tensor.
    fn versions_of(&self, tensor: TensorId) -> impl Iterator<Item = (Demand, MapId)> + use<'_> {
        let lowest = (tensor, Demand::Codes { bits: BitWidth::MIN, origin: TensorId(0) });
        self.versions
            .range(lowest..=(tensor, Demand::Scores))
            .map(|(&(_, demand), &map)| (demand, map))
    }

    /// The version that a reader asked for on the tensor's own scale.
    fn version(&self, tensor: TensorId, bits: BitWidth) -> MapId {
        self.versions[&(tensor, Demand::Codes { bits, origin: tensor })]
    }

    /// The version of the result's operand that a step other than a MAC layer asked for: the one
    /// on the tensor's own scale that is at least as wide as every result.
    fn side_version(&self, tensor: TensorId, result: TensorId) -> MapId {
        let wanted = self.versions_of(result).map(|(demand, _)| demand).collect();
        self.version(tensor, demand::side_path_bits(&wanted))
    }

    /// How a step's result t, counted in `unit(channel)`, becomes each stored version of
    /// `group.result`, within the group's clamp. Where channels have factors, the largest code of each
    /// lies at most at the clamp's upper bound ([`InputScale::within`]) and is all the bound there is:
    /// one code for all channels would cut off those of small factors.
    ///
    /// [`InputScale::within`]: super::InputScale::within
    fn requantizations(&self, group: &Group, unit: impl Fn(usize) -> f64) -> Vec<Requantization> {
        let channels = layout(self.graph.shape(group.result)).channels;
        let units: Vec<f64> = (0..channels).map(unit).collect();
        self.versions_of(group.result)
            .map(|(demand, map)| {
                let factors = self.factors(group.result, demand);
                let (low, high) = group.clamp;
                let clamp = (low, if factors.is_empty() { high } else { f32::INFINITY });
                requantization(map, &self.maps[map], clamp, &divided(&units, factors))
            })
            .collect()
    }

    /// Factors of the channels of a tensor's version; empty where all are 1.
    fn factors(&self, tensor: TensorId, demand: Demand) -> &[f32] {
        match demand {
            Demand::Codes { bits, origin } if origin == tensor => {
                self.parameters.scales.get(&(origin, bits)).map_or(&[], |input| &input.factors)
            }
            _ => &[],
        }
    }

    fn problem(&mut self, node: usize, reason: &str) {
        self.problems.push((self.graph.nodes[node].name.clone(), reason.to_owned()));
    }

    /// The scores' map; where no step made scores, a last one that does.
    fn finish_scores(&mut self) -> MapId {
        let output = self.graph.output;
        if let Some(&map) = self.versions.get(&(output, Demand::Scores)) {
            return map;
        }
        let source = self.version(output, BitWidth::MAX);
        let format = self.score_format();
        let Format::Scores { scale } = format else { unreachable!("made above") };
        let input = self.maps[source].clone();
        let channels = input.layout.channels;
        let map = self.maps.len();
        self.maps.push(Map {
            name: input.name.clone(),
            layout: MapLayout { pads: [0; 4], ..input.layout },
            format,
            constant: Vec::new(),
        });
        let units = vec![input.scale().scale; channels];
        let clamp = (f32::NEG_INFINITY, f32::INFINITY);
        debug_assert!(scale > 0.0, "scores have a positive scale");
        self.steps.push(Step::Combine {
            operands: vec![(source, vec![1; channels])],
            bias: vec![-(input.scale().twice_zero() / 2); channels],
            outputs: vec![requantization(map, &self.maps[map], clamp, &units)],
        });
        map
    }
}

/// Units of values over their channels' factors.
fn divided(units: &[f64], factors: &[f32]) -> Vec<f64> {
    if factors.is_empty() {
        return units.to_vec();
    }
    units.iter().zip(factors).map(|(unit, &factor)| unit / f64::from(factor)).collect()
}

/// The multiplier, zero point and limits that turn t, counted in `units` (one per channel, or per
/// count of an average), into the integers of `map`.
fn requantization(map: MapId, target: &Map, clamp: (f32, f32), units: &[f64]) -> Requantization {
    match &target.format {
        Format::Scores { scale } => {
            let limit = |bound: f32| {
                (f64::from(bound) / scale)
                    .round_ties_even()
                    .clamp(f64::from(-SCORE_LIMIT), f64::from(SCORE_LIMIT)) as i32
            };
            Requantization {
                map,
                multipliers: units.iter().map(|unit| (unit / scale) as f32).collect(),
                zero: 0,
                low: limit(clamp.0),
                high: limit(clamp.1),
            }
        }
        Format::Codes(scale) => Requantization {
            map,
            multipliers: units.iter().map(|unit| multiplier(*unit, scale)).collect(),
            zero: i32::from(scale.zero_code()),
            low: i32::from(scale.code(f64::from(clamp.0))),
            high: i32::from(scale.code(f64::from(clamp.1))),
        },
    }
}

/// A sign needs no scaling: with multiplier ±1 every t above zero, and nothing else, gives code 1.
fn multiplier(unit: f64, scale: &ActivationScale) -> f32 {
    if scale.is_sign() { unit.signum() as f32 } else { (unit / scale.scale) as f32 }
}
