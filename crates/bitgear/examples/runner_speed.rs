//! Times a bundle's policy from stored samples to decisions, one batch after the other: the peer of
//! `benches/python_runner.py`, which starts it.
//!
//!     cargo run --release -p bitgear --example runner_speed -- model.bitgear data.npz BATCH CALLS
//!
//! Prints the median over calls in microseconds per inference, on one thread.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::path::Path;
use std::time::Instant;

use bitgear::bundle::Bundle;
use bitgear::data::{Dataset, Source};
use bitgear_core::kernels::Kernels;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, data, batch, calls] = &arguments[..] else {
        return Err("expected BUNDLE DATA BATCH CALLS".into());
    };
    let (batch, calls): (usize, usize) = (batch.parse()?, calls.parse()?);
    let bundle = Bundle::read(Path::new(bundle))?;
    let data = Dataset::read(&Source::Path(data.into()))?;
    data.check(bundle.input_shape(), &bundle.preprocess)?;
    if batch == 0 || batch > data.len() {
        return Err(format!("BATCH must be 1 to {}, got {batch}", data.len()).into());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let runner = bundle.runner(Kernels::detect());
    let mut times = pool.install(|| {
        let call = |index: usize| {
            let first = index * batch % (data.len() - batch + 1);
            let indices: Vec<usize> = (first..first + batch).collect();
            let start = Instant::now();
            std::hint::black_box(runner.decide(&data.batch(&indices, &bundle.preprocess)));
            start.elapsed().as_secs_f64() * 1e6 / batch as f64
        };
        (0..calls).map(call).collect::<Vec<f64>>()
    });
    times.sort_by(f64::total_cmp);
    println!("{}", times[times.len() / 2]);
    Ok(())
}
