//! How much less energy chosen policies need than static points chosen alike, over random splits of
//! finished runs; what `docs/policy.md` reports.
//!
//! `cargo run --release -p bitgear --example how_good -- ACCELERATOR STAGES margin|learned|sum SPLITS FOLDER=MODEL…`
//!
//! A FOLDER is what `bitgear characterize` wrote, MODEL its ONNX file; how scales are restricted, to
//! powers of two for one, was decided there. `naive` is the best static point of any kind chosen with
//! nothing taken off for chance. `at equal drop` compares with the best static point of any kind once more, after
//! the policies' target is lowered until they lose no more than that point does on the test samples: a policy
//! uses the room that a target leaves, of which single points leave some unused. In hindsight, with all samples to choose and to judge on: how many times less
//! than the best static point of any kind the best two stages need with margins, and with an oracle gate
//! that hands on exactly what the second stage mends. The last lines are geometric means over the runs. No
//! model runs again.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;

use bitgear::characterize::Finished;
use bitgear::energy::AcceleratorProfile;
use bitgear::search::{Candidates, Choice, Gate, Kind, Pool, Repeated, Rules, repeat};
use bitgear::trace::{FLOAT, Split, Trace, View};

const POOLS: [Pool; 3] = [Pool::StaticUniform, Pool::Static, Pool::StaticPlain];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [accelerator, stages, gate @ ("margin" | "learned" | "sum"), splits, runs @ ..] =
        &arguments[..]
    else {
        eprintln!("usage: how_good ACCELERATOR STAGES margin|learned|sum SPLITS FOLDER=MODEL…");
        std::process::exit(2);
    };
    let margin_only = *gate == "margin";
    let profile = AcceleratorProfile::find(accelerator)?;
    println!(
        "drops in points (standard error); times less chip energy (total energy), mean of {splits} splits\n"
    );
    println!(
        "target  drop          uniform        any kind       plain          16 bits        naive   at equal drop  run"
    );
    let mut logarithms = [[0.0_f64; 6]; 2];
    let mut hindsight = Vec::new();
    for run in runs {
        let (folder, model) = run.split_once('=').ok_or("expected FOLDER=MODEL")?;
        let finished = Finished::read(Path::new(folder), Path::new(model))?;
        let widest = finished.points.iter().position(|info| info.point == "w16a16");
        let widest = widest.ok_or("`w16a16` was not traced")?;
        let candidates = Candidates::new(
            &finished.trace,
            FLOAT,
            finished.points,
            &profile,
            &finished.workload,
            Rules {
                stages: stages.parse()?,
                margin_only,
                sums: *gate == "sum",
                ..Rules::default()
            },
        )?;
        let sizes = [Split::Search, Split::Certification, Split::Test]
            .map(|split| finished.trace.rows(split).len() as f64);
        for (target, logarithms) in [0.002, 0.005].into_iter().zip(&mut logarithms) {
            let choose = |[search, _]: [&[usize]; 2], pool, seed| {
                candidates.choose(search, target, pool, seed)
            };
            let n = splits.parse()?;
            let repeated = repeat(&candidates, choose, sizes, &POOLS, widest, n, 1);
            let naively = |rows: [&[usize]; 2], pool, seed| match pool {
                Pool::Policies => choose(rows, pool, seed),
                _ => candidates.choose_once(rows[0], target, pool),
            };
            let naive = repeat(&candidates, naively, sizes, &[Pool::Static], widest, n, 1);
            print!(
                "{:6.1}  {:5.2} ({:4.2})",
                100.0 * target,
                100.0 * repeated.policy.mean,
                100.0 * repeated.policy.standard_error
            );
            let both = repeated.savings.iter().zip(&repeated.savings_total);
            // Of the mean share of energy that is left.
            let times = |saving: &f64| 1.0 / (1.0 - saving);
            let (equal, loses) = at_equal_drop(&repeated, |below| {
                let choose = |[search, _]: [&[usize]; 2], pool, seed| {
                    let target = if pool == Pool::Policies { target - below } else { target };
                    candidates.choose(search, target, pool, seed)
                };
                repeat(&candidates, choose, sizes, &POOLS, widest, n, 1)
            });
            logarithms[5] += times(&equal).ln() / runs.len() as f64;
            logarithms[4] += times(&naive.savings[0]).ln() / runs.len() as f64;
            for ((chip, total), sum) in both.zip(logarithms) {
                print!("  {:5.2} ({:5.2})", times(chip), times(total));
                *sum += times(chip).ln() / runs.len() as f64;
            }
            print!("  {:6.2}  {:5.2} ({loses:5.2})", times(&naive.savings[0]), times(&equal));
            let others = repeated.others.iter().chain(&naive.others[..1]);
            let drops: Vec<String> = others.map(|d| format!("{:.2}", 100.0 * d.mean)).collect();
            println!("  {folder}, the others lose {}", drops.join(" "));
            let all: Vec<usize> = (0..finished.trace.samples.len()).collect();
            let energy = |pool| {
                let choice = candidates.choose_once(&all, target, pool);
                candidates.outcome(&choice, &all).energy.chip_uj
            };
            let best = energy(Pool::Static);
            let perfect = oracle(&candidates, &finished.trace, target);
            hindsight.push([target, best / energy(Pool::Policies), best / perfect]);
        }
    }
    println!("\nin hindsight: target, with margins, with an oracle gate");
    for [target, margin, perfect] in hindsight {
        println!("  {:6.1}  {margin:5.2}  {perfect:5.2}", 100.0 * target);
    }
    for (target, logarithms) in ["0.2", "0.5"].into_iter().zip(logarithms) {
        let means = logarithms.map(|l| format!("{:5.2}", l.exp()));
        println!("   {target}  geometric mean  {}", means.join("  "));
    }
    Ok(())
}

/// Saving against the best static point of any kind, and what policies lose in points, with a target of theirs, as
/// high as steps of 0.05 points find it, at which they lose no more than it; nothing is saved where there is none. `lowered` repeats the choice
/// with the policies' target so much lower.
fn at_equal_drop(repeated: &Repeated, lowered: impl Fn(f64) -> Repeated) -> (f64, f64) {
    const STEP: f64 = 0.0005;
    const STEPS: usize = 16;
    let any = POOLS.iter().position(|&pool| pool == Pool::Static).expect("is one of them");
    let most = repeated.others[any].mean;
    if repeated.policy.mean <= most {
        return (repeated.savings[any], 100.0 * repeated.policy.mean);
    }
    // Too little is taken off at the one, enough at the other end.
    let (mut little, mut enough, mut found) = (0, STEPS + 1, (0.0, 100.0 * most));
    while enough - little > 1 {
        let steps = usize::midpoint(little, enough);
        let repeated = lowered(steps as f64 * STEP);
        if repeated.policy.mean <= most {
            (enough, found) = (steps, (repeated.savings[any], 100.0 * repeated.policy.mean));
        } else {
            little = steps;
        }
    }
    found
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
