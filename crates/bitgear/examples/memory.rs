//! How much memory running a bundle's policy takes, on one thread:
//!
//!     cargo run --release -p bitgear --example memory -- model.bitgear BATCH
//!
//! Prints bytes: of all networks' weights at one byte each (two above 8 bits), what reading and packing peaks at,
//! what stays, a batch of float inputs, and what the first batch of noise adds at most.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::path::Path;

use allocation_counter::measure;
use bitgear::bundle::Bundle;
use bitgear::execute::Memory;
use bitgear::tensor::Tensor;
use bitgear::trace::Random;
use bitgear_core::kernels::Kernels;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, batch] = &arguments[..] else { return Err("expected BUNDLE BATCH".into()) };
    let batch: usize = batch.parse()?;
    let bundle = Bundle::read(Path::new(path))?;
    let steps = bundle.models.iter().flat_map(|model| model.mac_steps());
    let weights: usize =
        steps.map(|s| s.codes.len() * usize::from(s.weight_bits.div_ceil(8))).sum();
    drop(bundle);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| {
        let mut runner = None;
        let packing = measure(|| {
            runner = Bundle::read(Path::new(path)).ok().map(|b| b.run_only(Kernels::detect()));
        });
        let runner = runner.ok_or("the bundle was read before")?;
        let shape = [&[batch], runner.bundle().input_shape()].concat();
        let mut random = Random::new(1);
        let noise = (0..shape.iter().product()).map(|_| (random.next_u64() >> 40) as f32 / 1.6e7);
        let input = Tensor::new(shape, noise.collect());
        let (mut memory, mut decisions) = (Memory::default(), Vec::new());
        let running = measure(|| runner.decide_into(&input, &mut memory, &mut decisions));
        println!("weights            {weights:>12}");
        println!("reading, at most   {:>12}", packing.bytes_max);
        println!("ready to run       {:>12}", packing.bytes_current);
        println!("inputs             {:>12}", size_of_val(input.values()));
        println!("running adds       {:>12}", running.bytes_max);
        Ok(())
    })
}
