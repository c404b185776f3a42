//! How often guarantees are wrong, and how tight they are: what `docs/guarantee.md` reports.
//!
//! `cargo run --release -p bitgear --example coverage -- DRAWS [FOLDER=MODEL…]`
//!
//! First synthetic flips: for each number of samples and true rates, DRAWS times, is the true drop
//! refuted (an error), and what is the mean bound? Then the whole decision on each finished run, DRAWS
//! times: half of its samples search, the other half is the population whose drop is to be bounded, and
//! certification draws from it with replacement. Policies have two stages and plain margins.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;

use bitgear::certify::{Demand, Flips, Test, choose};
use bitgear::characterize::Finished;
use bitgear::energy::AcceleratorProfile;
use bitgear::search::{Candidates, Pool, Rules};
use bitgear::trace::{FLOAT, Random};
use rayon::prelude::*;

const TESTS: [Test; 3] = [Test::Exact, Test::Betting, Test::Binomial];
const LEVEL: f64 = 0.05;
/// Samples for certification, and true rates of harmful and helpful flips.
const SYNTHETIC: [(u64, f64, f64); 10] = [
    (500, 0.01, 0.0),
    (500, 0.03, 0.02),
    (1500, 0.005, 0.0),
    (1500, 0.01, 0.005),
    (1500, 0.03, 0.025),
    (1500, 0.06, 0.05),
    (5000, 0.004, 0.002),
    (5000, 0.03, 0.025),
    (5000, 0.05, 0.045),
    (20000, 0.02, 0.018),
];
/// Bounds cost more than tests: so many draws give the mean bound.
const BOUNDED: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [draws, runs @ ..] = &arguments[..] else {
        eprintln!("usage: coverage DRAWS [FOLDER=MODEL…]");
        std::process::exit(2);
    };
    let draws: usize = draws.parse()?;
    println!(
        "{draws} draws, 95 % confidence. true drop in points; errors in %; mean bound in points\n"
    );
    println!("samples  harmful  helpful  true drop   exact           betting         binomial");
    for (samples, harmful, helpful) in SYNTHETIC {
        let drop = harmful - helpful;
        print!(
            "{samples:7}  {:5.2} %  {:5.2} %     {:6.2}",
            100.0 * harmful,
            100.0 * helpful,
            100.0 * drop
        );
        for test in TESTS {
            let one = |draw: usize| {
                let flips = draw_flips(samples, harmful, helpful, draw as u64);
                let wrong = test.p_value(flips, drop, LEVEL) <= LEVEL;
                (wrong, (draw < BOUNDED).then(|| test.upper_bound(flips, LEVEL)))
            };
            let outcomes: Vec<(bool, Option<f64>)> = (0..draws).into_par_iter().map(one).collect();
            let wrong = outcomes.iter().filter(|(wrong, _)| *wrong).count();
            let bounds: Vec<f64> = outcomes.iter().filter_map(|(_, bound)| *bound).collect();
            print!(
                "   {:4.1} %, {:5.2}",
                100.0 * wrong as f64 / draws as f64,
                100.0 * bounds.iter().sum::<f64>() / bounds.len() as f64
            );
        }
        println!();
    }
    for run in runs {
        let (folder, model) = run.split_once('=').ok_or("expected FOLDER=MODEL")?;
        resample(folder, &Finished::read(Path::new(folder), Path::new(model))?, draws)?;
    }
    Ok(())
}

fn draw_flips(samples: u64, harmful: f64, helpful: f64, seed: u64) -> Flips {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9) ^ samples);
    let mut flips = Flips { samples, ..Flips::default() };
    for _ in 0..samples {
        let uniform = random.next_u64() as f64 / 2.0_f64.powi(64);
        flips.harmful += u64::from(uniform < harmful);
        flips.helpful += u64::from((harmful..harmful + helpful).contains(&uniform));
    }
    flips
}

fn resample(
    folder: &str,
    finished: &Finished,
    draws: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let profile = AcceleratorProfile::find("envision-28nm")?;
    let points = finished.points.clone();
    let candidates = Candidates::new(
        &finished.trace,
        FLOAT,
        points,
        &profile,
        &finished.workload,
        Rules { margin_only: true, sums: false, ..Rules::default() },
    )?;
    let rows = finished.trace.samples.len();
    println!("\n{folder}: {rows} samples, half for search; the target is the guarantee");
    println!(
        "test      samples  guarantee  certified    wrong  true drop  chip uJ   static: certified  chip uJ"
    );
    for test in [Test::Exact, Test::Betting, Test::Binomial, Test::Conformal] {
        for (samples, guarantee) in [(1500, 0.02), (1500, 0.01), (5000, 0.01), (5000, 0.005)] {
            let demand = Demand {
                target: guarantee.into(),
                max_energy_uj: None,
                guarantee: Some(guarantee),
                confidence: 0.95,
                test,
            };
            let one = |draw: usize| {
                let mut random = Random::new(draw as u64 + 1);
                let mut order: Vec<usize> = (0..rows).collect();
                random.shuffle(&mut order);
                let (search, population) = order.split_at(rows / 2);
                let certification: Vec<usize> =
                    (0..samples).map(|_| population[random.below(population.len())]).collect();
                [Pool::Policies, Pool::Static].map(|pool| {
                    let (choice, passed) =
                        choose(&candidates, search, &certification, &demand, pool, draw as u64);
                    (passed.is_some(), candidates.outcome(&choice, population))
                })
            };
            let all: Vec<_> = (0..draws).into_par_iter().map(one).collect();
            let of = |pool: usize| {
                let certified: Vec<_> =
                    all.iter().map(|pools| &pools[pool]).filter(|(holds, _)| *holds).collect();
                let share = |count: usize| 100.0 * count as f64 / draws as f64;
                let wrong = certified.iter().filter(|(_, o)| o.drop > guarantee).count();
                let mean = |value: &dyn Fn(&bitgear::search::Outcome) -> f64| {
                    let sum: f64 = certified.iter().map(|(_, o)| value(o)).sum();
                    // Nothing was certified, so there is no mean.
                    let mean = sum / certified.len() as f64;
                    if mean.is_nan() { "-".to_owned() } else { format!("{mean:.3}") }
                };
                (
                    share(certified.len()),
                    share(wrong),
                    mean(&|o| 100.0 * o.drop),
                    mean(&|o| o.energy.chip_uj),
                )
            };
            let (policy, fixed) = (of(0), of(1));
            println!(
                "{:9} {samples:7}   {:6.1} %   {:6.1} %  {:5.1} %     {:>6}  {:>7}            {:5.1} %  {:>7}",
                test.name(),
                100.0 * guarantee,
                policy.0,
                policy.1,
                policy.2,
                policy.3,
                fixed.0,
                fixed.3
            );
        }
    }
    Ok(())
}
