//! Top-1 accuracy of operating points in the integer engine, calibrated on random subsets of samples:
//! what `docs/quantization.md` reports.
//!
//! `cargo run --release -p bitgear --example accuracy MODEL DATA CALIBRATION SAMPLES SUBSETS SCALE MEAN STD POINT…`
//!
//! A point's name may end in `-plain` (nearest rounding) or `-untuned` (layers fitted one by one). Mixed
//! points are named `FILE:mix-…`, FILE being a `summary.json` whose `tables` have their widths.
//! CALIBRATION is a file, or the number of samples at the front of DATA that are set aside for it. Each
//! of SUBSETS rounds calibrates on SAMPLES random ones of them, and all are tested on the same samples; how
//! much the loss would vary with these is printed beside: the root of the number of answers that flip, over
//! the number of samples. MEAN and STD are comma-separated.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;
use std::time::Instant;

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::execute::Engine;
use bitgear::quantize::{Constraints, Methods, Point, Quantizer, Widths, calibrate, quantize};
use bitgear::trace::Random;
use bitgear::{float, onnx};
use bitgear_core::bits::{BitWidth, InvalidBitWidth};
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use rayon::prelude::*;

const PLAIN: &str = "-plain";
const UNTUNED: &str = "-untuned";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, calibration, samples, subsets, scale, mean, std, points @ ..] =
        &arguments[..]
    else {
        eprintln!("usage: accuracy MODEL DATA CALIBRATION SAMPLES SUBSETS SCALE MEAN STD POINT…");
        std::process::exit(2);
    };
    let list = |text: &str| text.split(',').map(str::parse).collect::<Result<Vec<f32>, _>>();
    let preprocess = Preprocess { scale: scale.parse()?, mean: list(mean)?, std: list(std)? };
    let graph = onnx::import_file(Path::new(model))?;
    let data = Dataset::read(&Source::Path(data.into()))?;
    let front = calibration.parse::<usize>().ok();
    let own = match front {
        None => Some(Dataset::read(&Source::Path(calibration.into()))?),
        Some(_) => None,
    };
    let calibration = own.as_ref().unwrap_or(&data);
    let pool = front.unwrap_or(calibration.len());
    let tested: Vec<usize> = (front.unwrap_or(0)..data.len()).collect();
    let labels = data.labels_of(graph.classes())?;
    let samples: usize = samples.parse()?;

    let exact: Vec<f32> = tested
        .par_chunks(8)
        .flat_map(|chunk| float::run(&graph, &data.batch(chunk, &preprocess)).into_values())
        .collect();
    let rows = exact.chunks_exact(graph.classes()).zip(&tested);
    let float_right: Vec<bool> = rows.map(|(row, &i)| highest(row) == labels[i] as usize).collect();
    let right = float_right.iter().filter(|right| **right).count();
    let reference = 100.0 * right as f64 / tested.len() as f64;
    println!("float {reference:.2} % of {} samples", tested.len());

    let parsed: Vec<Point> = points.iter().map(|name| parse(name)).collect::<Result<_, _>>()?;
    let mut drops: Vec<Vec<f64>> = vec![Vec::new(); points.len()];
    let mut divergences = vec![0.0; points.len()];
    let mut flips = vec![0; points.len()];
    for subset in 0..subsets.parse()? {
        let mut random = Random::new(subset);
        let mut order: Vec<usize> = (0..pool).collect();
        random.shuffle(&mut order);
        order.truncate(samples);
        order.sort_unstable();
        let ranges = calibrate(&graph, order.len(), |span| {
            Ok::<_, std::convert::Infallible>(calibration.batch(&order[span], &preprocess))
        })?;
        let batch = calibration.batch(&order, &preprocess);
        let with =
            |methods| Quantizer::new(&graph, &ranges, &batch, methods, Constraints::default());
        let best = with(Methods::best());
        let untuned = with(Methods { tuning: 0, ..Methods::best() });
        let sums = divergences.iter_mut().zip(&mut flips);
        let each = points.iter().zip(&parsed).zip(&mut drops).zip(sums);
        for (((name, point), drops), (total, flips)) in each {
            let start = Instant::now();
            let model = if name.ends_with(PLAIN) {
                quantize(&graph, &ranges, point)?
            } else if name.ends_with(UNTUNED) {
                untuned.quantize(point)?
            } else {
                best.quantize(point)?
            };
            let seconds = start.elapsed().as_secs_f64();
            let engine = Engine::new(&model, Kernels::detect());
            let mut right = 0;
            let mut divergence = 0.0;
            let mut exact = exact.chunks_exact(graph.classes()).zip(&float_right);
            for chunk in tested.chunks(250) {
                let scores = engine.scores(&data.batch(chunk, &preprocess));
                for (row, &i) in scores.chunks_exact(graph.classes()).zip(chunk) {
                    let real: Vec<f32> =
                        row.iter().map(|&s| (f64::from(s) * model.score_scale()) as f32).collect();
                    let (exact, &float_right) = exact.next().expect("as many rows");
                    divergence += kullback_leibler(exact, &real);
                    let is_right = answer(row).class == labels[i] as usize;
                    right += usize::from(is_right);
                    *flips += usize::from(is_right != float_right);
                }
            }
            let accuracy = 100.0 * right as f64 / tested.len() as f64;
            drops.push(reference - accuracy);
            *total += divergence / tested.len() as f64;
            eprintln!(
                "{name} subset {subset}: {accuracy:.2} % ({:+.2}), divergence {:.5}, quantized in {seconds:.1} s",
                accuracy - reference,
                divergence / tested.len() as f64
            );
        }
    }
    let sums = divergences.iter().zip(&flips);
    for ((name, drops), (divergence, &flips)) in points.iter().zip(&drops).zip(sums) {
        let n = drops.len() as f64;
        let mean = drops.iter().sum::<f64>() / n;
        let variance = drops.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        println!(
            "{name}: loses {mean:.2} points, standard error {:.2} (by the samples tested {:.2}); divergence {:.4}",
            (variance / n).sqrt(),
            100.0 * (flips as f64 / n).sqrt() / tested.len() as f64,
            divergence / n
        );
    }
    Ok(())
}

/// The point of a name, without what follows it.
fn parse(name: &str) -> Result<Point, Box<dyn std::error::Error>> {
    let name = name.strip_suffix(PLAIN).or(name.strip_suffix(UNTUNED)).unwrap_or(name);
    let Some((file, mix)) = name.rsplit_once(":mix-") else { return Ok(name.parse()?) };
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let table = &summary["tables"][format!("mix-{mix}")];
    let table: Vec<[u8; 2]> = serde_json::from_value(table.clone())?;
    let widths = table.into_iter().map(|[weights, activations]| {
        Ok(Widths { weights: BitWidth::new(weights)?, activations: BitWidth::new(activations)? })
    });
    Ok(Point::mixed(mix.parse()?, widths.collect::<Result<_, InvalidBitWidth>>()?))
}

fn highest(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// Σ p · ln(p / q) of the softmaxes.
fn kullback_leibler(p: &[f32], q: &[f32]) -> f64 {
    let logarithms = |scores: &[f32]| -> Vec<f64> {
        let largest = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = scores.iter().map(|&s| (f64::from(s) - largest).exp()).sum();
        scores.iter().map(|&s| f64::from(s) - largest - sum.ln()).collect()
    };
    logarithms(p).iter().zip(logarithms(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}
