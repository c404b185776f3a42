//! Quantizes a model to one point, writes it as ONNX QDQ and its integer scores in real units, to
//! compare with other engines:
//! `cargo run --release --example qdq MODEL CALIBRATION SAMPLES DATA POINT SCALE MEAN STD OUT`
//! writes OUT.onnx and OUT.f32 (little-endian, (N, classes)); mean and std are comma-separated, and
//! the first SAMPLES samples of CALIBRATION calibrate.
#![expect(clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;

use bitgear::data::{DataError, Dataset, Preprocess, Source};
use bitgear::execute::Engine;
use bitgear::onnx;
use bitgear::quantize::{calibrate, quantize};
use bitgear_core::kernels::Kernels;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, calibration, samples, data, point, scale, mean, std, out] = &arguments[..] else {
        eprintln!("usage: qdq MODEL CALIBRATION SAMPLES DATA POINT SCALE MEAN STD OUT");
        std::process::exit(2);
    };
    let list = |text: &str| text.split(',').map(str::parse).collect::<Result<Vec<f32>, _>>();
    let preprocess = Preprocess { scale: scale.parse()?, mean: list(mean)?, std: list(std)? };
    let graph = onnx::import_file(Path::new(model))?;
    let calibration = Dataset::read(&Source::Path(calibration.into()))?;
    let data = Dataset::read(&Source::Path(data.into()))?;
    let samples: usize = samples.parse()?;
    let ranges = calibrate(&graph, samples.min(calibration.len()), |span| {
        let indices: Vec<usize> = span.collect();
        Ok::<_, DataError>(calibration.batch(&indices, &preprocess))
    })?;
    let model = quantize(&graph, &ranges, &point.parse()?)?;
    match onnx::export_qdq(&model) {
        Ok(bytes) => std::fs::write(format!("{out}.onnx"), bytes)?,
        Err(error) => eprintln!("no ONNX file: {error}"),
    }
    let engine = Engine::new(&model, Kernels::detect());
    let mut bytes = Vec::new();
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(256) {
        for score in engine.scores(&data.batch(chunk, &preprocess)) {
            bytes.extend(((f64::from(score) * model.score_scale()) as f32).to_le_bytes());
        }
    }
    std::fs::write(format!("{out}.f32"), bytes)?;
    Ok(())
}
