//! `bitgear bench`: how long inferences take.

use std::time::{Duration, Instant};

use bitgear::execute::{
    Engine, Handoff, IntegerModel, Leg, Memory, RunningStage, decide_into, relay,
};
use bitgear::tensor::Tensor;
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use bitgear_core::policy::Gate;
use serde::Serialize;

use super::plain::{self, rows};

use crate::Failure;
use crate::arguments::Bench;
use crate::terminal::{on_threads, table};

/// Fewest repetitions of anything that is timed.
const FEWEST: usize = 5;

#[derive(Serialize)]
struct Row {
    point: String,
    batch: usize,
    threads: usize,
    /// Microseconds per inference.
    median_us: f64,
    /// The same of the shortest call, which other processes disturbed least.
    min_us: f64,
}

#[derive(Serialize)]
struct LayerRow {
    point: String,
    layer: String,
    kernel: String,
    macs: u64,
    median_us: f64,
}

pub(crate) fn run(options: &Bench) -> Result<(), Failure> {
    let kernels = kernels(options)?;
    let graph = plain::import(&options.model)?;
    let most = options.batch.iter().copied().max().unwrap_or(1).max(plain::CALIBRATION);
    let preprocess = options.preprocess.to_library();
    let data = options.data.as_deref();
    let samples = plain::samples(&graph, data, &preprocess, options.seed, most)?;
    let models = plain::models(&graph, &options.points, &samples)?;
    let engines: Vec<Engine<'_>> = models.iter().map(|model| Engine::new(model, kernels)).collect();
    if options.layers {
        return layers(options, &engines, &samples);
    }
    let policy = |share| {
        Ok::<_, Failure>((legs(&models, kernels)?, accept_at(&engines[0], &samples, share)))
    };
    let policy = options.escalate.map(policy).transpose()?;
    let mut measured = Vec::new();
    for &threads in &options.threads {
        let timed = || Ok(time(options, &engines, policy.as_ref(), &samples));
        measured.extend(on_threads(Some(threads), timed)?);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
        return Ok(());
    }
    let cells: Vec<Vec<String>> = measured
        .iter()
        .map(|r| {
            let [median, min] = [r.median_us, r.min_us].map(|us| format!("{us:.1}"));
            vec![r.point.clone(), r.batch.to_string(), r.threads.to_string(), median, min]
        })
        .collect();
    print!("{}", table(&["point", "batch", "threads", "us per inference", "least"], &cells));
    println!("\n{} kernels, plain quantization", kernels.name());
    Ok(())
}

fn kernels(options: &Bench) -> Result<Kernels, Failure> {
    let Some(name) = &options.kernels else { return Ok(Kernels::detect()) };
    Kernels::present().find(|kernels| kernels.name() == name).ok_or_else(|| {
        let present: Vec<&str> = Kernels::present().map(Kernels::name).collect();
        Failure::new(format!("kernels `{name}` don't run on this CPU"))
            .hint(format!("it runs {}", present.join(", ")))
    })
}

/// Something to time: its name, inferences per call, and the call.
type Job<'a> = (String, usize, Box<dyn FnMut() + 'a>);

/// The first two points as stages, what each starts from, and the margin at which the first one's answer is kept.
type Policy<'m> = ((Vec<Engine<'m>>, Vec<Option<Handoff>>), i32);

fn time(
    options: &Bench,
    engines: &[Engine<'_>],
    policy: Option<&Policy<'_>>,
    samples: &Tensor,
) -> Vec<Row> {
    let batches: Vec<Tensor> = options.batch.iter().map(|&batch| rows(samples, 0, batch)).collect();
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for batch in &batches {
        let size = batch.shape()[0];
        for (engine, point) in engines.iter().zip(&options.points) {
            let mut scores = vec![0; size * engine.model().classes()];
            let run = move || engine.scores_into(batch, &mut scores);
            jobs.push((point.clone(), size, Box::new(run)));
        }
        if let Some(((stages, handoffs), accept_at)) = policy {
            let stages = [0, 1].map(|i| RunningStage {
                gate: (i == 0).then(|| Gate::margin(*accept_at)),
                handoff: handoffs[i].as_ref(),
                ..RunningStage::new(&stages[i])
            });
            let (mut memory, mut decisions) = (Memory::default(), Vec::new());
            let run = move || decide_into(stages, batch, &mut memory, &mut decisions);
            jobs.push((options.points[..2].join(">"), size, Box::new(run)));
        }
    }
    // In turns, so that whatever slows the machine down hits all alike.
    let until = Duration::from_secs_f64(options.seconds).mul_f64(jobs.len() as f64);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); jobs.len()];
    for (_, _, job) in &mut jobs {
        job();
    }
    let start = Instant::now();
    while times[0].len() < FEWEST || start.elapsed() < until {
        for ((_, size, job), times) in jobs.iter_mut().zip(&mut times) {
            // Short calls several times, so that each finds its own data in the caches.
            for _ in 0..16_usize.div_ceil(*size) {
                let start = Instant::now();
                job();
                times.push(start.elapsed().as_secs_f64() * 1e6 / *size as f64);
            }
        }
    }
    let threads = rayon::current_num_threads();
    let row = |((point, batch, _), times): (Job<'_>, Vec<f64>)| Row {
        point,
        batch,
        threads,
        min_us: times.iter().copied().fold(f64::INFINITY, f64::min),
        median_us: median(times),
    };
    jobs.into_iter().zip(times).map(row).collect()
}

/// The first two points as stages, as a bundle runs them: the second starts from the codes of the input that the
/// first made, where both store it alike.
fn legs(
    models: &[IntegerModel],
    kernels: Kernels,
) -> Result<(Vec<Engine<'_>>, Vec<Option<Handoff>>), Failure> {
    let stages = models.get(..2).ok_or_else(|| {
        Failure::new("a policy needs two points").hint("give --points the low one and the high one")
    })?;
    Ok(Leg::engines(relay(stages, &[0, 0])?, kernels))
}

/// The margin below which a share of the samples is.
fn accept_at(low: &Engine<'_>, samples: &Tensor, share: f64) -> i32 {
    let scores = low.scores(samples);
    let mut margins: Vec<i32> =
        scores.chunks_exact(low.model().classes()).map(|s| answer(s).margin).collect();
    margins.sort_unstable();
    let handed_on = (share * margins.len() as f64).round() as usize;
    margins.get(handed_on).copied().unwrap_or(i32::MAX)
}

/// Times each step of a single inference on one thread.
fn layers(options: &Bench, engines: &[Engine<'_>], samples: &Tensor) -> Result<(), Failure> {
    let sample = rows(samples, 0, 1);
    let mut measured = Vec::new();
    for (engine, point) in engines.iter().zip(&options.points) {
        let kernels = engine.kernels_used();
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); kernels.len()];
        let start = Instant::now();
        while times[0].len() < FEWEST || start.elapsed().as_secs_f64() < options.seconds {
            let mut last = Instant::now();
            engine.observe(&sample, &mut |step| {
                let now = Instant::now();
                times[step].push((now - last).as_secs_f64() * 1e6);
                last = Instant::now();
            });
        }
        for (used, times) in kernels.into_iter().zip(times) {
            measured.push(LayerRow {
                point: point.clone(),
                layer: used.step,
                kernel: used.kernel,
                macs: used.macs,
                median_us: median(times),
            });
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
        return Ok(());
    }
    let cells: Vec<Vec<String>> = measured
        .iter()
        .map(|r| {
            let rate = r.macs as f64 / r.median_us / 1e3;
            let rate = if r.macs == 0 { String::new() } else { format!("{rate:.1}") };
            let us = format!("{:.1}", r.median_us);
            vec![r.point.clone(), r.layer.clone(), r.kernel.clone(), us, rate]
        })
        .collect();
    print!("{}", table(&["point", "layer", "kernel", "us", "GMAC/s"], &cells));
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
