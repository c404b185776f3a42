//! Float scores of a model on a data set, as little-endian f32 on standard output, to compare with
//! other engines: `cargo run --release --example scores MODEL DATA SAMPLES SCALE MEAN STD`, where mean
//! and std are comma-separated.
#![expect(clippy::print_stderr, reason = "a command-line tool talks")]

use std::io::Write;
use std::path::Path;

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::{float, onnx};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, samples, scale, mean, std] = &arguments[..] else {
        eprintln!("usage: scores MODEL DATA SAMPLES SCALE MEAN STD");
        std::process::exit(2);
    };
    let list = |text: &str| text.split(',').map(str::parse).collect::<Result<Vec<f32>, _>>();
    let preprocess = Preprocess { scale: scale.parse()?, mean: list(mean)?, std: list(std)? };
    let graph = onnx::import_file(Path::new(model))?;
    let data = Dataset::read(&Source::Path(data.into()))?;
    data.check(graph.shape(graph.input), &preprocess)?;
    let indices: Vec<usize> = (0..data.len().min(samples.parse()?)).collect();
    let mut out = std::io::stdout().lock();
    for chunk in indices.chunks(16) {
        for score in float::run(&graph, &data.batch(chunk, &preprocess)).values() {
            out.write_all(&score.to_le_bytes())?;
        }
    }
    Ok(())
}
