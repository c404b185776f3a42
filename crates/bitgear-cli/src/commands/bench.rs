//! `bitgear bench`: how long inferences take.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::execute::{Engine, IntegerModel, RunningStage, decide};
use bitgear::graph::Graph;
use bitgear::onnx;
use bitgear::quantize::{Point, calibrate, quantize};
use bitgear::tensor::Tensor;
use bitgear::trace::Random;
use bitgear_core::kernels::Kernels;
use bitgear_core::margin::answer;
use serde::Serialize;

use crate::Failure;
use crate::arguments::Bench;
use crate::terminal::{on_threads, table};

/// Samples that calibrate.
const CALIBRATION: usize = 16;
/// Fewest repetitions of anything that is timed.
const FEWEST: usize = 5;

#[derive(Serialize)]
struct Row {
    point: String,
    batch: usize,
    threads: usize,
    /// Microseconds per inference.
    median_us: f64,
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
    let graph = onnx::import_file(&options.model)
        .map_err(|error| Failure::new(format!("model `{}`: {error}", options.model.display())))?;
    let most = options.batch.iter().copied().max().unwrap_or(1).max(CALIBRATION);
    let samples = samples(&graph, options, most)?;
    let models = models(&graph, options, &samples)?;
    let engines: Vec<Engine<'_>> = models.iter().map(|model| Engine::new(model, kernels)).collect();
    if options.layers {
        return layers(options, &engines, &samples);
    }
    let mut rows = Vec::new();
    for &threads in &options.threads {
        let measured = on_threads(Some(threads), || time(options, &engines, &samples))?;
        rows.extend(measured);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let us = format!("{:.1}", r.median_us);
            vec![r.point.clone(), r.batch.to_string(), r.threads.to_string(), us]
        })
        .collect();
    print!("{}", table(&["point", "batch", "threads", "us per inference"], &cells));
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

/// The first samples of the data, or noise of mean 0 and variance 1.
fn samples(graph: &Graph, options: &Bench, count: usize) -> Result<Tensor, Failure> {
    let shape = graph.shape(graph.input);
    let Some(path) = &options.data else {
        let mut random = Random::new(options.seed);
        // The sum of four uniform numbers, each of variance 1/12.
        let mut number = || (random.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        let len = count * shape.iter().product::<usize>();
        let values = (0..len).map(|_| (0..4).map(|_| number()).sum::<f32>() * 3.0_f32.sqrt());
        return Ok(Tensor::new([&[count], shape].concat(), values.collect()));
    };
    let preprocess =
        Preprocess { scale: options.scale, mean: options.mean.clone(), std: options.std.clone() };
    let data = Dataset::read(&Source::Path(path.clone()))?;
    data.check(shape, &preprocess)?;
    let indices: Vec<usize> = (0..count).map(|i| i % data.len()).collect();
    Ok(data.batch(&indices, &preprocess))
}

/// The points by plain quantization: fitted weights take as long to run.
fn models(graph: &Graph, options: &Bench, samples: &Tensor) -> Result<Vec<IntegerModel>, Failure> {
    let ranges = calibrate(graph, CALIBRATION, |span| {
        Ok::<_, Infallible>(rows(samples, span.start, span.len()))
    });
    let ranges = match ranges {
        Ok(ranges) => ranges,
        Err(never) => match never {},
    };
    let points: Vec<Point> =
        options.points.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    Ok(points.iter().map(|point| quantize(graph, &ranges, point)).collect::<Result<_, _>>()?)
}

/// Some samples of a batch.
fn rows(batch: &Tensor, first: usize, count: usize) -> Tensor {
    let mut shape = batch.shape().to_vec();
    let len = shape[1..].iter().product::<usize>();
    shape[0] = count;
    Tensor::new(shape, batch.values()[first * len..][..count * len].to_vec())
}

/// Something to time: its name, inferences per call, and the call.
type Job<'a> = (String, usize, Box<dyn Fn() + Sync + 'a>);

fn time(options: &Bench, engines: &[Engine<'_>], samples: &Tensor) -> Result<Vec<Row>, Failure> {
    let batches: Vec<Tensor> = options.batch.iter().map(|&batch| rows(samples, 0, batch)).collect();
    let stages = options
        .escalate
        .map(|share| policy(engines, &rows(samples, 0, samples.shape()[0]), share))
        .transpose()?;
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for batch in &batches {
        let size = batch.shape()[0];
        for (engine, point) in engines.iter().zip(&options.points) {
            jobs.push((point.clone(), size, Box::new(|| drop(engine.scores(batch)))));
        }
        if let Some(stages) = &stages {
            let name = options.points[..2].join(">");
            jobs.push((name, size, Box::new(|| drop(decide(stages, batch)))));
        }
    }
    // In turns, so that whatever slows the machine down hits all alike.
    let until = Duration::from_secs_f64(options.seconds).mul_f64(jobs.len() as f64);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); jobs.len()];
    jobs.iter().for_each(|(_, _, job)| job());
    let start = Instant::now();
    while times[0].len() < FEWEST || start.elapsed() < until {
        for ((_, size, job), times) in jobs.iter().zip(&mut times) {
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
        median_us: median(times),
    };
    Ok(jobs.into_iter().zip(times).map(row).collect())
}

/// The first two points as stages of which the first hands on `share` of the samples.
fn policy<'e>(
    engines: &'e [Engine<'e>],
    samples: &Tensor,
    share: f64,
) -> Result<[RunningStage<'e>; 2], Failure> {
    let [low, high, ..] = engines else {
        return Err(Failure::new("a policy needs two points")
            .hint("give --points the low one and the high one"));
    };
    let scores = low.scores(samples);
    let mut margins: Vec<i32> =
        scores.chunks_exact(low.model().classes()).map(|s| answer(s).margin).collect();
    margins.sort_unstable();
    let handed_on = (share * margins.len() as f64).round() as usize;
    let accept_at = margins.get(handed_on).copied().unwrap_or(i32::MAX);
    Ok([
        RunningStage { engine: low, accept_at: Some(accept_at), handoff: None },
        RunningStage { engine: high, accept_at: None, handoff: None },
    ])
}

/// Times each step of a single inference on one thread.
fn layers(options: &Bench, engines: &[Engine<'_>], samples: &Tensor) -> Result<(), Failure> {
    let sample = rows(samples, 0, 1);
    let mut rows = Vec::new();
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
            rows.push(LayerRow {
                point: point.clone(),
                layer: used.step,
                kernel: used.kernel,
                macs: used.macs,
                median_us: median(times),
            });
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let cells: Vec<Vec<String>> = rows
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
