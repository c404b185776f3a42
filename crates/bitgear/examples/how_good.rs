//! How much less energy chosen policies need than static points chosen alike, over random splits of
//! finished runs; what `docs/policy.md` reports.
//!
//! `cargo run --release -p bitgear --example how_good -- ACCELERATOR STAGES margin|learned|sum SPLITS FOLDER=MODEL…`
//!
//! A FOLDER is what `bitgear characterize` wrote, MODEL its ONNX file; how scales are restricted, to
//! powers of two for one, was decided there. Each run and target has two lines, the second with policies that are
//! expected to lose no more than the best static point of any kind, chosen alike. `naive` is the
//! best static point of any kind chosen with nothing taken off for chance. In hindsight, with all samples to choose
//! and to judge on: how many times less
//! than the best static point of any kind the best two stages need with margins, and with an oracle gate
//! that hands on exactly what the second stage mends. The last lines are geometric means over the runs. No
//! model runs again.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;

use bitgear::characterize::Finished;
use bitgear::energy::AcceleratorProfile;
use bitgear::search::{Candidates, Choice, Gate, Kind, Pool, Rules, Target, repeat};
use bitgear::trace::{FLOAT, Split, Trace, View};

const POOLS: [Pool; 3] = [Pool::StaticUniform, Pool::Static, Pool::StaticPlain];
const TARGETS: [f64; 2] = [0.002, 0.005];
/// Whether policies are to lose no more than the best static point, and what such a line is called.
const RULES: [(bool, &str); 2] = [(false, ""), (true, "no worse")];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [accelerator, stages, gate @ ("margin" | "learned" | "sum"), splits, runs @ ..] =
        &arguments[..]
    else {
        eprintln!("usage: how_good ACCELERATOR STAGES margin|learned|sum SPLITS FOLDER=MODEL…");
        std::process::exit(2);
    };
    let (stages, splits) = (stages.parse()?, splits.parse()?);
    let rules =
        Rules { stages, margin_only: *gate == "margin", sums: *gate == "sum", ..Rules::default() };
    let profile = AcceleratorProfile::find(accelerator)?;
    println!(
        "drops in points (standard error); times less chip energy (total energy), mean of {splits} splits\n"
    );
    println!(
        "target            drop          uniform        any kind       plain          16 bits          naive  run"
    );
    let mut logarithms = [[[0.0_f64; 5]; 2]; 2];
    let mut hindsight = Vec::new();
    for run in runs {
        let (folder, model) = run.split_once('=').ok_or("expected FOLDER=MODEL")?;
        let Finished { trace, points, workload } =
            Finished::read(Path::new(folder), Path::new(model))?;
        let widest = points.iter().position(|info| info.point == "w16a16");
        let widest = widest.ok_or("`w16a16` was not traced")?;
        let test = trace.rows(Split::Test).len();
        // Without a guarantee all others choose.
        let sizes = [trace.samples.len() - test, 0, test].map(|size| size as f64);
        let candidates = Candidates::new(&trace, FLOAT, points, &profile, &workload, rules)?;
        for (drop, logarithms) in TARGETS.into_iter().zip(&mut logarithms) {
            for ((no_worse, name), sums) in RULES.into_iter().zip(logarithms) {
                let target = Target { drop, no_worse };
                let choose = |[choosing, _]: [&[usize]; 2], pool, seed| {
                    candidates.choose(choosing, target, pool, seed)
                };
                let repeated = repeat(&candidates, choose, sizes, &POOLS, widest, splits, 1);
                let naively = |rows: [&[usize]; 2], pool, seed| match pool {
                    Pool::Policies => choose(rows, pool, seed),
                    _ => candidates.choose_once(rows[0], drop, pool),
                };
                let naive = repeat(&candidates, naively, sizes, &[Pool::Static], widest, splits, 1);
                // Of the mean share of energy that is left.
                let times = |saving: &f64| 1.0 / (1.0 - saving);
                let policy = repeated.policy;
                let [mean, error] = [policy.mean, policy.standard_error].map(|d| 100.0 * d);
                print!("{:6.1}  {name:8}  {mean:5.2} ({error:4.2})", 100.0 * drop);
                for (chip, total) in repeated.savings.iter().zip(&repeated.savings_total) {
                    print!("  {:5.2} ({:5.2})", times(chip), times(total));
                }
                let savings = repeated.savings.iter().chain(&naive.savings[..1]);
                for (sum, saving) in sums.iter_mut().zip(savings) {
                    *sum += times(saving).ln() / runs.len() as f64;
                }
                let others = repeated.others.iter().chain(&naive.others[..1]);
                let drops: Vec<String> = others.map(|d| format!("{:.2}", 100.0 * d.mean)).collect();
                let naive = times(&naive.savings[0]);
                println!("  {naive:6.2}  {folder}, the others lose {}", drops.join(" "));
                if !no_worse {
                    let all: Vec<usize> = (0..trace.samples.len()).collect();
                    let energy = |pool| {
                        let choice = candidates.choose_once(&all, drop, pool);
                        candidates.outcome(&choice, &all).energy.chip_uj
                    };
                    let best = energy(Pool::Static);
                    let perfect = oracle(&candidates, &trace, drop);
                    hindsight.push([drop, best / energy(Pool::Policies), best / perfect]);
                }
            }
        }
    }
    println!("\nin hindsight: target, with margins, with an oracle gate");
    for [target, margin, perfect] in hindsight {
        println!("  {:6.1}  {margin:5.2}  {perfect:5.2}", 100.0 * target);
    }
    for (target, logarithms) in TARGETS.into_iter().zip(logarithms) {
        for ((_, name), sums) in RULES.into_iter().zip(logarithms) {
            let means = sums.map(|l| format!("{:5.2}", l.exp()));
            println!("{:6.1}  {name:8}  geometric mean  {}", 100.0 * target, means.join("  "));
        }
    }
    Ok(())
}

/// Least chip energy of two stages whose gate hands on exactly what the second mends, at a drop of at most
/// the target.
fn oracle(candidates: &Candidates, trace: &Trace, target: f64) -> f64 {
    let right = |point: &str, view| trace.correct(trace.block(point, view).expect("traced"));
    let rate = |right: &[bool]| right.iter().filter(|&&r| r).count() as f64 / right.len() as f64;
    let reference = rate(&right(FLOAT, View::AsIs));
    let points: Vec<(usize, Vec<bool>)> = candidates
        .points()
        .enumerate()
        .filter(|(_, info)| matches!(info.kind, Kind::Uniform | Kind::Mixed))
        .map(|(index, info)| (index, right(&info.point, info.view)))
        .collect();
    let mut least = f64::INFINITY;
    for (low, first) in &points {
        for (high, second) in points.iter().filter(|(high, _)| high != low) {
            let either: Vec<bool> = first.iter().zip(second).map(|(a, b)| a | b).collect();
            if reference - rate(&either) <= target {
                let choice = Choice { stages: vec![*low, *high], gates: vec![Gate::margin(0)] };
                let stages = candidates.stage_energies(&choice);
                let mended = rate(&either) - rate(first);
                least = least.min(stages[0].chip_uj + mended * stages[1].chip_uj);
            }
        }
    }
    least
}
