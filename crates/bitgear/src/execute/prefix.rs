//! Stages that share their leading layers: the later one goes on from what the earlier one computed.
//!
//! Two operating points whose first layers agree in widths, weights and scales compute the same
//! there. The earlier stage then also stores what the later one's other steps read, each version
//! from the same accumulator, and the later stage runs only those steps. Scores are those of the
//! whole networks, bit for bit. Stages that share no layer may still share the quantized input.

use std::borrow::Cow;

use bitgear_core::kernels::{Kernels, MapLayout};

use super::Engine;
use super::model::{IntegerModel, Map, MapId, NOWHERE, Requantization, Step};

/// What one stage runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Leg<'m> {
    /// Its network: the steps that no earlier stage ran, and the versions of results that the next
    /// stage reads.
    pub model: Cow<'m, IntegerModel>,
    /// How it goes on from the stage before; `None` starts anew, from the input.
    pub handoff: Option<Handoff>,
}

impl<'m> Leg<'m> {
    /// Engines of the stages, each keeping what the next one goes on from, and how each does.
    pub fn engines(legs: Vec<Self>, kernels: Kernels) -> (Vec<Engine<'m>>, Vec<Option<Handoff>>) {
        let (models, handoffs): (Vec<_>, Vec<_>) =
            legs.into_iter().map(|leg| (leg.model, leg.handoff)).unzip();
        let kept = |stage: usize| -> &[MapId] {
            let next: Option<&Handoff> = handoffs.get(stage + 1).and_then(Option::as_ref);
            next.map_or(&[], |handoff| &handoff.kept)
        };
        let numbered = models.into_iter().enumerate();
        let engines = numbered.map(|(i, model)| Engine::keeping(model, kernels, kept(i))).collect();
        (engines, handoffs)
    }
}

/// The maps that pass from one stage to the next, pair by pair of equal format and layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handoff {
    /// In the network of the stage before.
    pub kept: Vec<MapId>,
    /// In the network of the stage itself.
    pub given: Vec<MapId>,
}

/// Two stages don't share as many layers as they should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "points `{low}` and `{high}` must share their first {expected} MAC layers, got {found} that agree"
)]
pub struct InvalidPrefix {
    low: String,
    high: String,
    expected: usize,
    found: usize,
}

/// Number of leading MAC layers, in the order they run, that compute the same in both networks.
pub fn shared_layers(low: &IntegerModel, high: &IntegerModel) -> usize {
    Matching::new(low, high, usize::MAX).layers
}

/// The networks of a policy's stages, stage `i` going on from the one before after `shared[i]` MAC
/// layers. After 0 layers it goes on from the codes of the input, where both stages store it alike, and
/// otherwise starts anew. The networks are valid; the first stage shares nothing.
///
/// # Errors
///
/// When two neighbouring stages differ within the layers they should share.
pub fn relay<'m>(
    models: &'m [IntegerModel],
    shared: &[usize],
) -> Result<Vec<Leg<'m>>, InvalidPrefix> {
    let mut legs: Vec<Leg<'m>> = Vec::with_capacity(models.len());
    // From the last stage to the first: what a stage must hand on is part of what it needs.
    for index in (0..models.len()).rev() {
        legs.push(Leg { model: Cow::Borrowed(&models[index]), handoff: None });
        let Some(high) = legs.len().checked_sub(2) else { continue };
        let layers = shared.get(index + 1).copied().unwrap_or(0);
        if layers == 0 {
            legs[high].handoff = same_input(&models[index], &legs[high].model);
            continue;
        }
        // What the stage after the next goes on from.
        let wanted = high.checked_sub(1).and_then(|next| legs[next].handoff.as_ref());
        let wanted = wanted.map_or(&[][..], |handoff| &handoff.kept);
        let split = split(&models[index], &legs[high].model, layers, wanted)?;
        let (low, rest, handoff) = split;
        legs[high] = Leg { model: Cow::Owned(rest), handoff: Some(handoff) };
        legs[high + 1].model = Cow::Owned(low);
    }
    legs.reverse();
    Ok(legs)
}

/// The maps of the input of two networks, if all that the later one reads are the earlier one's, too.
fn same_input(low: &IntegerModel, high: &IntegerModel) -> Option<Handoff> {
    let twin = |&map: &MapId| {
        low.inputs.iter().copied().find(|&of_low| low.maps[of_low] == high.maps[map])
    };
    let kept = high.inputs.iter().map(twin).collect::<Option<Vec<MapId>>>()?;
    let same = low.input_shape == high.input_shape && !kept.is_empty();
    same.then(|| Handoff { kept, given: high.inputs.clone() })
}

/// `low` with all versions that the rest of `high` reads, that rest after `layers` MAC layers, and
/// what passes between them, the maps `wanted` of `high` included.
fn split(
    low: &IntegerModel,
    high: &IntegerModel,
    layers: usize,
    wanted: &[MapId],
) -> Result<(IntegerModel, IntegerModel, Handoff), InvalidPrefix> {
    let matching = Matching::new(low, high, layers);
    if matching.layers < layers {
        return Err(InvalidPrefix {
            low: low.point.clone(),
            high: high.point.clone(),
            expected: layers,
            found: matching.layers,
        });
    }
    let mut rest = high.clone();
    rest.inputs = Vec::new();
    let mut matched = matching.steps.iter();
    rest.steps.retain(|_| matched.next().is_none_or(Option::is_none));

    // What the rest reads and does not write.
    let mut written: Vec<bool> = high.maps.iter().map(|map| !map.constant.is_empty()).collect();
    let mut read = wanted.to_vec();
    read.push(high.scores);
    for step in &rest.steps {
        step.results(&mut |map| written[map] = true);
        step.operands(&mut |map| read.push(map));
    }
    read.sort_unstable();
    read.dedup();

    let mut low = low.clone();
    let mut handoff = Handoff::default();
    for map in read.into_iter().filter(|&map| !written[map]) {
        let kept = matching.store(&mut low, high, map);
        handoff.kept.push(kept);
        handoff.given.push(map);
    }
    Ok((low, rest, handoff))
}

/// Which steps of the high network the low one runs too.
struct Matching {
    /// For each step of the high network the low one's that computes the same.
    steps: Vec<Option<usize>>,
    /// For each map of the high network one of the low's that holds the same values, whatever
    /// their halos.
    twins: Vec<Option<MapId>>,
    /// MAC layers that match.
    layers: usize,
}

impl Matching {
    /// Goes through the high network until its MAC layer `limit`, or the first that differs.
    fn new(low: &IntegerModel, high: &IntegerModel, limit: usize) -> Self {
        let known = |(map, of_high): (MapId, &Map)| {
            let is_input = high.inputs.contains(&map);
            low.maps.iter().enumerate().position(|(twin, of_low)| {
                let constant = !of_high.constant.is_empty() && of_high.constant == of_low.constant;
                let input = is_input && low.inputs.contains(&twin);
                (constant || input) && same_values(of_low, of_high)
            })
        };
        let mut matching = Self {
            steps: vec![None; high.steps.len()],
            twins: high.maps.iter().enumerate().map(known).collect(),
            layers: 0,
        };
        if low.input_shape != high.input_shape {
            return matching;
        }
        let mut used = vec![false; low.steps.len()];
        for (index, step) in high.steps.iter().enumerate() {
            let is_mac = matches!(step, Step::Mac(_));
            if is_mac && matching.layers == limit {
                break;
            }
            let found = (0..low.steps.len())
                .find(|&i| !used[i] && matching.agrees(low, &low.steps[i], high, step));
            if let Some(found) = found {
                used[found] = true;
                matching.steps[index] = Some(found);
                matching.pair_results(low, &low.steps[found], high, step);
                matching.layers += usize::from(is_mac);
            } else if is_mac {
                break;
            }
        }
        matching
    }

    /// Whether two steps compute the same from the same operands, leaving aside in which versions
    /// they store it.
    fn agrees(&self, low: &IntegerModel, a: &Step, high: &IntegerModel, b: &Step) -> bool {
        if std::mem::discriminant(a) != std::mem::discriminant(b)
            || name(low, a) != name(high, b)
            || matches!((a, b), (Step::Mac(a), Step::Mac(b)) if a.name != b.name)
        {
            return false;
        }
        let twin = |map: MapId| self.twins[map];
        let same = |a: MapId, b: MapId| twin(b) == Some(a);
        match (a, b) {
            (Step::Mac(a), Step::Mac(b)) => {
                let residuals = match (&a.residual, &b.residual) {
                    (None, None) => true,
                    (Some(a), Some(b)) => same(a.0, b.0) && a.1 == b.1,
                    _ => false,
                };
                // Halos may differ: others read the operand, too.
                let mut shape = a.shape;
                shape.input.pads = b.shape.input.pads;
                same(a.input, b.input)
                    && residuals
                    && shape == b.shape
                    && (a.weight_bits, a.shift, &a.bias) == (b.weight_bits, b.shift, &b.bias)
                    && a.codes == b.codes
            }
            (
                Step::Combine { operands: a, bias: bias_a, .. },
                Step::Combine { operands: b, bias: bias_b, .. },
            ) => {
                bias_a == bias_b
                    && a.len() == b.len()
                    && a.iter().zip(b).all(|(a, b)| same(a.0, b.0) && a.1 == b.1)
            }
            (Step::Product { a, b, .. }, Step::Product { a: c, b: d, .. }) => {
                same(*a, *c) && same(*b, *d)
            }
            (
                Step::Average { input: a, window, .. },
                Step::Average { input: b, window: other, .. },
            ) => same(*a, *b) && window == other,
            (
                Step::MaxPool { input: a, window, output: of_a },
                Step::MaxPool { input: b, window: other, output: of_b },
            ) => {
                same(*a, *b) && window == other && same_values(&low.maps[*of_a], &high.maps[*of_b])
            }
            (
                Step::Lookup { input: a, table, output: of_a },
                Step::Lookup { input: b, table: other, output: of_b },
            ) => same(*a, *b) && table == other && same_values(&low.maps[*of_a], &high.maps[*of_b]),
            (
                Step::Gather { sources: a, output: of_a },
                Step::Gather { sources: b, output: of_b },
            ) => {
                a.len() == b.len()
                    && same_values(&low.maps[*of_a], &high.maps[*of_b])
                    && a.iter().zip(b).all(|((a, from_a), (b, from_b))| {
                        let (of_a, of_b) = (&low.maps[*a].layout, &high.maps[*b].layout);
                        let places = |from: &[u32], layout| -> Vec<_> {
                            from.iter().map(|&i| place(i, layout)).collect()
                        };
                        same(*a, *b) && places(from_a, of_a) == places(from_b, of_b)
                    })
            }
            _ => false,
        }
    }

    /// Records which results of two steps that agree are the same.
    fn pair_results(&mut self, low: &IntegerModel, a: &Step, high: &IntegerModel, b: &Step) {
        if let (Some(of_a), Some(of_b)) = (versions(a), versions(b)) {
            for version in of_b {
                let target = &high.maps[version.map];
                let twin = of_a.iter().find(|other| {
                    same_values(&low.maps[other.map], target)
                        && Requantization { map: version.map, ..(*other).clone() } == *version
                });
                self.twins[version.map] = twin.map(|twin| twin.map);
            }
        } else {
            let output = |step: &Step| single(step).expect("a step has versions or one result");
            self.twins[output(b)] = Some(output(a));
        }
    }

    /// Makes the low network store map `wanted` of the high one's leading steps, and says where.
    fn store(&self, low: &mut IntegerModel, high: &IntegerModel, wanted: MapId) -> MapId {
        let target = &high.maps[wanted];
        if let Some(twin) = self.twins[wanted].filter(|&twin| low.maps[twin] == *target) {
            return twin;
        }
        let map = low.maps.len();
        low.maps.push(target.clone());
        if high.inputs.contains(&wanted) {
            low.inputs.push(map);
            return map;
        }
        for (step, found) in high.steps.iter().zip(&self.steps) {
            let Some(found) = *found else { continue };
            if let Some(version) = versions(step).and_then(|v| v.iter().find(|v| v.map == wanted)) {
                let of_low = versions_mut(&mut low.steps[found]);
                of_low
                    .expect("steps that agree are of one kind")
                    .push(Requantization { map, ..version.clone() });
                return map;
            }
            if single(step) == Some(wanted) {
                // The same codes with another halo. Its operand is still there at the end.
                let mut again = low.steps[found].clone();
                if let Some(output) = single_mut(&mut again) {
                    *output = map;
                }
                low.steps.push(again);
                return map;
            }
        }
        // Nothing writes it: it holds what its memory begins with.
        map
    }
}

/// Whether equal codes of two maps mean the same elements: all but the halo agrees.
fn same_values(a: &Map, b: &Map) -> bool {
    let inner = |layout: &MapLayout| MapLayout { pads: [0; 4], ..*layout };
    a.name == b.name && a.format == b.format && inner(&a.layout) == inner(&b.layout)
}

/// Where a memory index lies, counted from the first pixel: (row, column, channel).
fn place(index: u32, layout: &MapLayout) -> Option<(i64, i64, usize)> {
    let index = (index != NOWHERE).then_some(index as usize)?;
    let (row, within) = (index / layout.row(), index % layout.row());
    let (column, channel) = (within / layout.stride(), within % layout.stride());
    Some((row as i64 - layout.pads[0] as i64, column as i64 - layout.pads[1] as i64, channel))
}

/// Name of the tensor that a step makes.
fn name<'m>(model: &'m IntegerModel, step: &Step) -> Option<&'m str> {
    let map = versions(step).and_then(|v| v.first()).map(|v| v.map).or_else(|| single(step));
    map.map(|map| model.maps[map].name.as_str())
}

/// The versions of the result of a step that accumulates.
fn versions(step: &Step) -> Option<&[Requantization]> {
    match step {
        Step::Mac(mac) => Some(&mac.outputs),
        Step::MatMul(product) => Some(&product.outputs),
        Step::Combine { outputs, .. }
        | Step::Product { outputs, .. }
        | Step::Average { outputs, .. } => Some(outputs),
        Step::MaxPool { .. } | Step::Lookup { .. } | Step::Gather { .. } | Step::Island(_) => None,
    }
}

fn versions_mut(step: &mut Step) -> Option<&mut Vec<Requantization>> {
    match step {
        Step::Mac(mac) => Some(&mut mac.outputs),
        Step::MatMul(product) => Some(&mut product.outputs),
        Step::Combine { outputs, .. }
        | Step::Product { outputs, .. }
        | Step::Average { outputs, .. } => Some(outputs),
        Step::MaxPool { .. } | Step::Lookup { .. } | Step::Gather { .. } | Step::Island(_) => None,
    }
}

/// The result of a step that moves codes.
fn single(step: &Step) -> Option<MapId> {
    match step {
        Step::MaxPool { output, .. }
        | Step::Lookup { output, .. }
        | Step::Gather { output, .. } => Some(*output),
        Step::Mac(_)
        | Step::MatMul(_)
        | Step::Island(_)
        | Step::Combine { .. }
        | Step::Product { .. }
        | Step::Average { .. } => None,
    }
}

fn single_mut(step: &mut Step) -> Option<&mut MapId> {
    match step {
        Step::MaxPool { output, .. }
        | Step::Lookup { output, .. }
        | Step::Gather { output, .. } => Some(output),
        Step::Mac(_)
        | Step::MatMul(_)
        | Step::Island(_)
        | Step::Combine { .. }
        | Step::Product { .. }
        | Step::Average { .. } => None,
    }
}

#[cfg(test)]
mod tests;
