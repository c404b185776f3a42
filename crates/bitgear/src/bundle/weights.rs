//! Weights of networks as bit strings, and back.

use safetensors::SafeTensors;

use super::pack;
use crate::energy::Storage;
use crate::execute::{IntegerModel, MacStep, Step};

fn stage_tensor(stage: usize, layer: usize) -> String {
    format!("{stage:02}.{layer:04}.weights")
}

fn shared_tensor(layer: usize) -> String {
    format!("{layer:04}.weights")
}

/// The MAC steps of a model with their numbers.
pub(super) fn mac_steps(model: &mut IntegerModel) -> impl Iterator<Item = (usize, &mut MacStep)> {
    let macs = model
        .steps
        .iter_mut()
        .filter_map(|step| if let Step::Mac(m) = step { Some(m) } else { None });
    macs.enumerate()
}

/// The widest weights of each layer over all networks.
pub(super) fn widest(models: &[IntegerModel]) -> Vec<u8> {
    let layers = models.iter().map(|model| model.mac_steps().count()).max().unwrap_or(0);
    let width = |layer: usize| {
        let macs = models.iter().filter_map(|model| model.mac_steps().nth(layer));
        macs.map(|mac| mac.weight_bits).max().unwrap_or(1)
    };
    (0..layers).map(width).collect()
}

/// The first stage with the same network, which keeps the weights: one network may serve two views.
fn keeper(models: &[IntegerModel], stage: usize) -> usize {
    models.iter().position(|model| *model == models[stage]).unwrap_or(stage)
}

/// Bytes that all packed weights of some networks take.
pub fn weight_bytes(models: &[IntegerModel], storage: Storage) -> usize {
    let bytes = |mac: &MacStep, width| pack::packed_len(mac.codes.len(), width);
    match storage {
        Storage::Independent => {
            let stages = (0..models.len()).filter(|&stage| keeper(models, stage) == stage);
            let steps = stages.flat_map(|stage| models[stage].mac_steps());
            steps.map(|m| bytes(m, m.weight_bits)).sum()
        }
        Storage::Nested => {
            let layers = models.iter().take(1).flat_map(IntegerModel::mac_steps);
            layers.zip(widest(models)).map(|(mac, width)| bytes(mac, width)).sum()
        }
    }
}

/// Names and packed weights of all networks.
///
/// # Errors
///
/// When nested networks don't share their weights.
pub(crate) fn pack(
    models: &[IntegerModel],
    storage: Storage,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    let stored = match storage {
        Storage::Independent => independent(models),
        Storage::Nested => nested(models)?,
    };
    Ok(stored.into_iter().map(|(name, codes, width)| (name, pack::pack(&codes, width))).collect())
}

/// Every network's weights: name, codes, width.
fn independent(models: &[IntegerModel]) -> Vec<(String, Vec<i16>, u8)> {
    let numbered = models.iter().enumerate();
    numbered
        .filter(|&(stage, _)| keeper(models, stage) == stage)
        .flat_map(|(stage, model)| {
            model.mac_steps().enumerate().map(move |(layer, mac)| {
                let codes = if mac.odd { pack::halved(&mac.codes) } else { mac.codes.clone() };
                (stage_tensor(stage, layer), codes, mac.weight_bits)
            })
        })
        .collect()
}

/// One copy of each layer's widest weights, which all networks' must be leading bits of.
fn nested(models: &[IntegerModel]) -> Result<Vec<(String, Vec<i16>, u8)>, String> {
    let widths = widest(models);
    let mut stored = Vec::new();
    for (layer, &width) in widths.iter().enumerate() {
        let macs: Vec<&MacStep> =
            models.iter().filter_map(|model| model.mac_steps().nth(layer)).collect();
        let widest = macs.iter().find(|mac| mac.weight_bits == width);
        let codes = widest.map_or_else(Vec::new, |mac| mac.codes.clone());
        for mac in macs {
            if mac.codes != pack::leading(&codes, width, mac.weight_bits) {
                return Err(format!(
                    "layer `{}`: {}-bit weights are not the leading bits of the {width}-bit ones",
                    mac.name, mac.weight_bits
                ));
            }
        }
        stored.push((shared_tensor(layer), codes, width));
    }
    Ok(stored)
}

/// Gives networks the weights that were packed.
///
/// # Errors
///
/// When weights are missing or don't have the size of their layer.
pub(crate) fn unpack(
    models: &mut [IntegerModel],
    storage: Storage,
    tensors: &SafeTensors<'_>,
) -> Result<(), String> {
    let widest = widest(models);
    // Without their codes, which are what is missing, networks that share them are equal.
    let keepers: Vec<usize> = (0..models.len()).map(|stage| keeper(models, stage)).collect();
    for (stage, model) in models.iter_mut().enumerate() {
        for (layer, mac) in mac_steps(model) {
            let (name, width) = match storage {
                Storage::Independent => {
                    let own = stage_tensor(stage, layer);
                    let kept = || stage_tensor(keepers[stage], layer);
                    let name = if tensors.tensor(&own).is_ok() { own } else { kept() };
                    (name, mac.weight_bits)
                }
                Storage::Nested => (shared_tensor(layer), widest[layer]),
            };
            let packed = tensors.tensor(&name).map_err(|e| e.to_string())?.data();
            let shape = &mac.shape;
            let group = shape.input.channels.checked_div(shape.groups).unwrap_or(0);
            let count = [shape.kernel[0], shape.kernel[1], group, shape.out_channels]
                .iter()
                .try_fold(1_usize, |n, &d| n.checked_mul(d))
                .filter(|&count| count <= packed.len().saturating_mul(8))
                .filter(|&count| {
                    (1..=width).contains(&mac.weight_bits)
                        && width <= 16
                        && pack::packed_len(count, width) == packed.len()
                })
                .ok_or_else(|| format!("weights `{name}` do not have the size of their layer"))?;
            mac.codes = pack::unpack(packed, count, width);
            match storage {
                Storage::Nested => {
                    mac.codes = pack::leading(&mac.codes, width, mac.weight_bits);
                }
                Storage::Independent if mac.odd => mac.codes = pack::odd(&mac.codes),
                Storage::Independent => {}
            }
        }
    }
    Ok(())
}
