//! Time and memory of the exact search on a synthetic trace: what `docs/policy.md` reports.
//!
//! `cargo run --release -p bitgear --example search_speed -- POINTS SAMPLES STAGES`
//!
//! Point p of 1 … POINTS bits is right more often the wider it is; margins say something about it, and
//! points err alike. One search for a drop of at most 0.5 points and, of up to three stages and 10,000 samples, one
//! for the lower convex hull, plain margins.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::time::Instant;

use bitgear::energy::{AcceleratorProfile, LayerWork, Widths, Workload};
use bitgear::search::{Candidates, Kind, PointInfo, Pool, Rules};
use bitgear::trace::{Answers, Block, FLOAT, Random, Split, Trace, View};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let [points, samples, stages] = arguments[..] else {
        eprintln!("usage: search_speed POINTS SAMPLES STAGES");
        std::process::exit(2);
    };
    let mut random = Random::new(1);
    let mut uniform = || random.next_u64() as f64 / 2.0_f64.powi(64);
    let difficulty: Vec<f64> = (0..samples).map(|_| uniform()).collect();
    let mut block = |point: String, noise: f64| {
        let mut answers = Answers::default();
        for difficulty in &difficulty {
            // Above 0 right; the margin is how far from 0 it is.
            let lead = 1.0 - 1.1 * difficulty + noise * (uniform() + uniform() - 1.0);
            let scores = [(1e6 * lead) as i32, 0];
            answers.push(u32::from(lead <= 0.0), scores[0].abs(), &scores);
        }
        Block { point, view: View::AsIs, score_scale: 1e-6, answers }
    };
    let mut blocks = vec![block(FLOAT.to_owned(), 0.0)];
    blocks.extend((1..=points).map(|bits| block(format!("w{bits}a{bits}"), 2.0 / bits as f64)));
    let trace = Trace {
        classes: 2,
        class_mix: None,
        samples: (0..samples).collect(),
        splits: vec![Split::Search; samples],
        labels: vec![0; samples],
        blocks,
    };
    let infos = (1..=points).map(|bits| PointInfo {
        point: format!("w{bits}a{bits}"),
        view: View::AsIs,
        kind: Kind::Uniform,
        widths: vec![Widths { weights: bits as u8, activations: bits as u8 }],
        alike: 0,
    });
    let layer = LayerWork {
        name: "layer".to_owned(),
        macs: 1_000_000,
        zero_macs: 0.0,
        weights: 10,
        biases: 1,
        inputs: 10,
        outputs: 2,
        residual: 0,
        boundary: None,
    };
    let profile = AcceleratorProfile::find("envision-28nm")?;
    let rules = Rules { stages, margin_only: true, sums: false, ..Rules::default() };
    let workload = Workload { layers: vec![layer] };
    let candidates = Candidates::new(&trace, FLOAT, infos.collect(), &profile, &workload, rules)?;
    let rows: Vec<usize> = (0..samples).collect();
    let start = Instant::now();
    let choice = candidates.choose_once(&rows, 0.005, Pool::Policies);
    let seconds = start.elapsed().as_secs_f64();
    let outcome = candidates.outcome(&choice, &rows);
    let memory = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or(" unknown");
    println!(
        "{points} points, {samples} samples, {stages} stages: {seconds:.2} s on {} threads, peak memory {}",
        rayon::current_num_threads(),
        peak.trim()
    );
    println!(
        "{} chip uJ at a drop of {:.3} points: {}",
        outcome.energy.chip_uj,
        100.0 * outcome.drop,
        choice.stages.iter().map(|&i| candidates.name(i)).collect::<Vec<_>>().join(" > ")
    );
    if stages <= 3 && samples <= 10_000 {
        let start = Instant::now();
        let hull = candidates.hull(&rows, Pool::Policies);
        let seconds = start.elapsed().as_secs_f64();
        let longest = hull.iter().filter(|vertex| vertex.choice.stages.len() == 3).count();
        println!("hull of {} vertices, {longest} of three stages: {seconds:.2} s", hull.len());
    }
    Ok(())
}
