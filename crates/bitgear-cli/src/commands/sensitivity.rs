//! `bitgear inspect --sensitivity`: what few bits do to each layer.

use std::convert::Infallible;

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::graph::Graph;
use bitgear::quantize::{Constraints, Methods, Quantizer, Widths, calibrate};
use bitgear::sensitivity::Sensitivity;
use bitgear_core::bits::BitWidth;

use crate::Failure;
use crate::arguments::Inspect;
use crate::terminal::{on_threads, table};

/// Quantizes each layer alone on samples spread over the data.
pub(super) fn measure(graph: &Graph, options: &Inspect) -> Result<Sensitivity, Failure> {
    let path = options.data.clone().ok_or_else(|| {
        Failure::new("samples are missing").hint("give --data, a .npz file or a folder of images")
    })?;
    let preprocess =
        Preprocess { scale: options.scale, mean: options.mean.clone(), std: options.std.clone() };
    let data = Dataset::read(&Source::Path(path))?;
    data.check(graph.shape(graph.input), &preprocess)?;
    let count = options.samples.clamp(1, data.len());
    let indices: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
    let pairs: Vec<Widths> = options
        .bits
        .iter()
        .map(|&bits| BitWidth::new(bits).map(|b| Widths { weights: b, activations: b }))
        .collect::<Result<_, _>>()?;
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
