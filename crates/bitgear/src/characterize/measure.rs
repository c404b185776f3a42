//! Time of a network on this CPU, as a profile.

use std::fmt::Write as _;
use std::time::Instant;

use bitgear_core::bits::BitWidth;
use bitgear_core::kernels::Kernels;

use crate::execute::{Engine, IntegerModel};
use crate::graph::Graph;
use crate::quantize::{Point, Ranges, UnsupportedOperators, quantize};
use crate::tensor::Tensor;

/// Widths that are measured.
const BITS: [u8; 8] = [2, 3, 4, 5, 6, 7, 8, 16];

/// Measures how long this CPU takes for a network at every width, and writes it down as a profile of
/// style `time`: the network's time divided by its MACs, in picoseconds, with the quartiles as bounds.
///
/// The batch runs `rounds` times at every width, in turns, on the current thread pool; a first turn only
/// warms up. `device` and `model` are named as the source.
///
/// # Errors
///
/// When the network has no integer form.
///
/// # Panics
///
/// When `rounds` is zero or the batch is empty.
pub fn measure(
    graph: &Graph,
    ranges: &Ranges,
    batch: &Tensor,
    rounds: usize,
    [device, model]: [&str; 2],
) -> Result<String, UnsupportedOperators> {
    let width = |bits: u8| BitWidth::new(bits).expect("1 to 16");
    let models: Vec<IntegerModel> = BITS
        .iter()
        .map(|&bits| quantize(graph, ranges, &Point::uniform(width(bits), width(bits))))
        .collect::<Result<_, _>>()?;
    let engines: Vec<Engine<'_>> =
        models.iter().map(|model| Engine::new(model, Kernels::detect())).collect();
    let macs: u64 = graph.mac_layers().iter().map(|layer| layer.macs).sum();
    let samples = batch.shape()[0];
    let mut times: Vec<Vec<f64>> = vec![Vec::with_capacity(rounds); engines.len()];
    for round in 0..=rounds {
        for (engine, times) in engines.iter().zip(&mut times) {
            let start = Instant::now();
            std::hint::black_box(engine.scores(batch));
            if round > 0 {
                let seconds = start.elapsed().as_secs_f64();
                times.push(seconds * 1e12 / (macs as f64 * samples as f64));
            }
        }
    }
    let mut text = header(device, rayon::current_num_threads());
    for (bits, mut times) in BITS.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((rounds - 1) as f64 * share).round() as usize];
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n[[mode]]\nid = \"w{bits}a{bits}\"\nw_bits = {bits}\na_bits = {bits}\n\
             e_mac_pj = {:.4}\ne_mac_pj_lo = {:.4}\ne_mac_pj_hi = {:.4}\ngrade = \"F\"\n\
             src = {:?}\n",
            at(0.5),
            at(0.25),
            at(0.75),
            format!("median and quartiles of {rounds} runs of {samples} samples of `{model}`")
        );
    }
    Ok(text)
}

fn header(device: &str, threads: usize) -> String {
    format!(
        r#"# Time on one CPU, measured; a picojoule stands for a picosecond and a microjoule for a microsecond.
# It holds for the network it was measured with: time that depends on shapes is spread over MACs.
schema_version = 1

[accelerator]
id = "host"
name = {name:?}
url = "measured here"
node_nm = 0
evidence = "silicon"
style = "time"

[scope]
mac = true
onchip_sram = true
control = true
leakage = true
dram = true
io = true
regulator = true

[matching]
match = "round_up"
symmetric = true
"#,
        name = format!("{device}, threads: {threads}")
    )
}
