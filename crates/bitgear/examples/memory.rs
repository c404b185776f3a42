//! How much memory it takes to run a bundle's policy, or a network at plainly quantized points, on one thread:
//!
//!     cargo run --release -p bitgear --example memory -- model.bitgear BATCH
//!     cargo run --release -p bitgear --example memory -- model.onnx BATCH w8a8,w4a4
//!
//! Prints bytes: of all networks' weights at one byte each (two above 8 bits), what reading a bundle and packing it
//! takes at most, what stays, a batch of float inputs, and what the first batch of noise adds at most.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::borrow::Cow;
use std::convert::Infallible;
use std::error::Error;
use std::path::Path;

use allocation_counter::measure;
use bitgear::bundle::{Bundle, Runner};
use bitgear::execute::{Engine, IntegerModel, Memory};
use bitgear::onnx::import_file;
use bitgear::quantize::{calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear::trace::Random;
use bitgear_core::kernels::Kernels;

enum Ready {
    Policy(Box<Runner<'static>>),
    Points(Vec<Engine<'static>>),
}

type Anything = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Anything> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, batch, points @ ..] = &arguments[..] else {
        return Err("expected BUNDLE BATCH, or MODEL BATCH POINTS".into());
    };
    let batch: usize = batch.parse()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| {
        let (mut weights, mut made) = (0, Err("it was not made".into()));
        let making = measure(|| made = make(Path::new(path), points, &mut weights));
        let ready = made?;
        let shape = match &ready {
            Ready::Policy(runner) => runner.bundle().input_shape(),
            Ready::Points(engines) => &engines[0].model().input_shape,
        };
        let input = noise(&[&[batch], shape].concat());
        let (mut memory, mut decisions, mut scores) = (Memory::default(), Vec::new(), Vec::new());
        let running = measure(|| match &ready {
            Ready::Policy(runner) => runner.decide_into(&input, &mut memory, &mut decisions),
            Ready::Points(engines) => {
                for engine in engines {
                    scores.resize(batch * engine.model().classes(), 0);
                    engine.scores_into(&input, &mut scores);
                }
            }
        });
        println!("weights            {weights:>12}");
        if points.is_empty() {
            println!("reading, at most   {:>12}", making.bytes_max);
        }
        println!("ready to run       {:>12}", making.bytes_current);
        println!("inputs             {:>12}", size_of_val(input.values()));
        println!("running adds       {:>12}", running.bytes_max);
        Ok(())
    })
}

fn make(path: &Path, points: &[String], weights: &mut usize) -> Result<Ready, Anything> {
    let [points] = points else {
        let bundle = Bundle::read(path)?;
        *weights = bundle.models.iter().map(bytes).sum();
        return Ok(Ready::Policy(Box::new(bundle.run_only(Kernels::detect()))));
    };
    let graph = import_file(path)?;
    let samples = noise(&[&[4], graph.shape(graph.input)].concat());
    let ranges = calibrate(&graph, 1, |_| Ok::<_, Infallible>(samples.clone()))?;
    let mut engines = Vec::new();
    for point in points.split(',') {
        let model = quantize(&graph, &ranges, &point.parse()?)?;
        *weights += bytes(&model);
        engines.push(Engine::keeping(Cow::Owned(model), Kernels::detect(), &[]));
    }
    Ok(Ready::Points(engines))
}

fn bytes(model: &IntegerModel) -> usize {
    model.mac_steps().map(|step| step.codes.len() * usize::from(step.weight_bits.div_ceil(8))).sum()
}

fn noise(shape: &[usize]) -> Tensor {
    let mut random = Random::new(1);
    let values = (0..shape.iter().product()).map(|_| (random.next_u64() >> 40) as f32 / 1.6e7);
    Tensor::new(shape, values.collect())
}
