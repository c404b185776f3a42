//! `bitgear inspect --sensitivity`: what few bits do to each layer.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bitgear::characterize::{MixedPoint, mixed_points, spread, workload};
use bitgear::data::{Dataset, Source};
use bitgear::energy::AcceleratorProfile;
use bitgear::graph::Graph;
use bitgear::policy::EnergyUj;
use bitgear::quantize::{Constraints, Methods, Point, Quantizer, Widths, calibrate};
use bitgear::sensitivity::{Sensitivity, WidthSensitivity};
use bitgear_core::bits::{BitWidth, InvalidBitWidth};
use serde::Serialize;

use crate::Failure;
use crate::arguments::Inspect;
use crate::terminal::{on_threads, table};

/// Mixed points that are shown.
const MOST_MIXED: usize = 24;

/// Quantizes each layer alone on samples spread over the data.
pub(super) fn measure(graph: &Graph, options: &Inspect) -> Result<Sensitivity, Failure> {
    let path = options.data.clone().ok_or_else(|| {
        Failure::new("samples are missing").hint("give --data, a .npz file or a folder of images")
    })?;
    let preprocess = options.preprocess.to_library();
    let data = Dataset::read(&Source::Path(path))?;
    data.check(graph.shape(graph.input), &preprocess)?;
    let count = options.samples.clamp(1, data.len());
    let indices: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
    let widths = |&bits| BitWidth::new(bits).map(|b| Widths { weights: b, activations: b });
    let pairs: Vec<Widths> = options.bits.iter().map(widths).collect::<Result<_, _>>()?;
    on_threads(options.threads, || {
        let ranges = calibrate(graph, indices.len(), |span| {
            Ok::<_, Infallible>(data.batch(&indices[span], &preprocess))
        });
        let ranges = match ranges {
            Ok(ranges) => ranges,
            Err(never) => match never {},
        };
        let batch = data.batch(&indices, &preprocess);
        let quantizer =
            Quantizer::new(graph, &ranges, &batch, Methods::best(), Constraints::default());
        Ok(quantizer.sensitivity(&pairs, || ()))
    })
}

/// A mixed point and what is expected of it.
#[derive(Serialize)]
pub(super) struct Mixed {
    point: String,
    /// Sum of the layers' divergences, in nats.
    divergence: f64,
    energy_uj: EnergyUj,
    chip_pj_per_mac: f64,
}

/// Bits of weights and activations of each layer, by the point's name.
type Tables = BTreeMap<String, Vec<[u8; 2]>>;

/// Mixed points along the accelerator's frontier, at the widths that were measured.
pub(super) fn mixed(
    sensitivity: &Sensitivity,
    graph: &Graph,
    accelerator: &str,
) -> Result<(Vec<Mixed>, Tables), Failure> {
    let profile = AcceleratorProfile::find(accelerator)?;
    let workload = workload(graph);
    let first = sensitivity.layers.first().into_iter().flat_map(|layer| &layer.widths);
    let pair = |w: &WidthSensitivity| -> Result<Widths, InvalidBitWidth> {
        Ok(Widths {
            weights: BitWidth::new(w.weights)?,
            activations: BitWidth::new(w.activations)?,
        })
    };
    let pairs: Vec<Widths> = first.map(pair).collect::<Result<_, _>>()?;
    let all = spread(mixed_points(sensitivity, &pairs, &profile, &workload)?, MOST_MIXED);
    let layers = workload.layers.len();
    let bits = |point: &Point| -> Vec<[u8; 2]> {
        let widths = (0..layers).map(|layer| point.widths(layer, layers));
        widths.map(|w| [w.weights.get(), w.activations.get()]).collect()
    };
    let tables = all.iter().map(|mixed| (mixed.point.to_string(), bits(&mixed.point))).collect();
    let row = |mixed: MixedPoint| Mixed {
        point: mixed.point.to_string(),
        divergence: mixed.divergence,
        chip_pj_per_mac: mixed.energy.chip_uj * 1e6 / workload.macs() as f64,
        energy_uj: mixed.energy.into(),
    };
    Ok((all.into_iter().map(row).collect(), tables))
}

/// One row per mixed point.
pub(super) fn mixed_text(mixed: &[Mixed], tables: &Tables) -> String {
    let row = |mixed: &Mixed| {
        let bits = tables[&mixed.point].iter().map(|[weights, activations]| {
            if weights == activations {
                weights.to_string()
            } else {
                format!("{weights}/{activations}")
            }
        });
        vec![
            mixed.point.clone(),
            format!("{:.4}", mixed.chip_pj_per_mac),
            format!("{:.4}", mixed.divergence),
            bits.collect::<Vec<_>>().join(" "),
        ]
    };
    let rows: Vec<Vec<String>> = mixed.iter().map(row).collect();
    format!(
        "{}\nmixed points: chip energy of a MAC; sum of the layers' divergences; bits of weights and activations\n",
        table(&["point", "pJ/MAC", "divergence", "bits of each layer"], &rows)
    )
}

/// One row per layer: signal-to-noise ratio in decibel of the best and of plain rounding at each
/// width, and what makes it lose.
pub(super) fn text(sensitivity: &Sensitivity, bits: &[u8]) -> String {
    let mut header = vec!["layer".to_owned()];
    header.extend(bits.iter().map(|b| format!("{b} bits: dB (plain)")));
    header.extend(bits.first().map(|b| format!("divergence at {b}")));
    header.extend(["peak", "spread", "weights", "bias", "hurt by"].map(ToOwned::to_owned));
    let rows: Vec<Vec<String>> = sensitivity
        .layers
        .iter()
        .map(|layer| {
            let mut row = vec![layer.name.clone()];
            row.extend(
                layer.widths.iter().map(|w| format!("{:.1} ({:.1})", w.snr_db, w.plain_snr_db)),
            );
            row.extend(layer.widths.first().map(|w| format!("{:.4}", w.divergence)));
            row.extend([
                format!("{:.1}", layer.input_peak),
                format!("{:.1}", layer.channel_spread),
                format!("{:.1}", layer.weight_peak),
                format!("{:.0} %", 100.0 * layer.bias_share),
                layer.cause().to_owned(),
            ]);
            row
        })
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    format!(
        "{}\nsignal-to-noise ratio of each layer's result, the layer alone quantized: best quantizer, plain \
         rounding in brackets;\ndivergence: of the scores, in nats; peak: largest over root mean square of the \
         input; spread: largest over median\nrange of its channels; weights: peak of the worst channel; bias: \
         share of plain rounding's error that is a shift of means\n",
        table(&header, &rows)
    )
}
