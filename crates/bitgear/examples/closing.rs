//! What is chosen from finished runs on several accelerators, for several targets, and the tightest
//! guarantee: the table of `docs/how-good.md`, in Markdown.
//!
//! `cargo run --release -p bitgear --example closing -- STAGES ACCELERATOR[,…] FOLDER=MODEL…`
//!
//! A FOLDER is what `bitgear characterize` wrote, MODEL its ONNX file. Policies and static points are chosen on the
//! run's search and certification splits for a target, on its search split for a guarantee, which its certification
//! split proves; drops, energies and rates are those of its test split. No model runs again, so that other
//! accelerators choose among the points that were picked for the run's own.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;

use bitgear::certify::{Demand, Test, Verdict, decide};
use bitgear::characterize::Finished;
use bitgear::energy::AcceleratorProfile;
use bitgear::search::{Candidates, Choice, Pool, Rules};
use bitgear::trace::{FLOAT, Split, Trace};

const TARGETS: [f64; 3] = [0.0025, 0.005, 0.01];
/// Guarantees that are tried, in tenths of a point, until one can be proved.
const GUARANTEES: std::ops::RangeInclusive<u32> = 1..=100;
/// The one that is tried besides, likewise in tenths of a point.
const ROUND: u32 = 10;
const CONFIDENCE: f64 = 0.95;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [stages, accelerators, runs @ ..] = &arguments[..] else {
        eprintln!("usage: closing STAGES ACCELERATOR[,…] FOLDER=MODEL…");
        std::process::exit(2);
    };
    let rules = Rules { stages: stages.parse()?, ..Rules::default() };
    println!(
        "| accelerator, run | target | policy | hands on, % | chip uJ (total) | times less than uniform | any kind | 16 bits | times the oracle | loses | at most |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for accelerator in accelerators.split(',') {
        let profile = AcceleratorProfile::find(accelerator)?;
        for run in runs {
            let (folder, model) = run.split_once('=').ok_or("expected FOLDER=MODEL")?;
            let Finished { trace, points, workload } =
                Finished::read(Path::new(folder), Path::new(model))?;
            let widest = points.iter().position(|info| info.point == "w16a16");
            let widest = widest.ok_or("`w16a16` was not traced")?;
            let candidates = Candidates::new(&trace, FLOAT, points, &profile, &workload, rules)?;
            let table = Table {
                name: format!("{accelerator}, {}", folder.rsplit('/').next().unwrap_or(folder)),
                candidates,
                widest,
                test: trace.rows(Split::Test),
                trace,
            };
            for target in TARGETS {
                let demand = demand(target, None);
                table.line(&format!("{:.2}", 100.0 * target), &demand, &table.decide(&demand));
            }
            // The tightest guarantee that can be kept, and the first round one.
            let proved = |tenths: u32| {
                let drop = f64::from(tenths) * 1e-3;
                let demand = demand(drop, Some(drop));
                let verdict = table.decide(&demand);
                verdict.certificate.is_some().then_some((demand, verdict))
            };
            let tightest = GUARANTEES.clone().find_map(proved);
            let round = proved(ROUND);
            if tightest.is_none() {
                println!("| {} | no guarantee of 10 points or less |", table.name);
            }
            for (demand, verdict) in tightest.iter().chain(&round) {
                table.line("proved", demand, verdict);
            }
        }
    }
    Ok(())
}

fn demand(target: f64, guarantee: Option<f64>) -> Demand {
    let target = target.into();
    Demand { target, max_energy_uj: None, guarantee, confidence: CONFIDENCE, test: Test::Exact }
}

/// A run on an accelerator.
struct Table {
    name: String,
    candidates: Candidates,
    widest: usize,
    trace: Trace,
    test: Vec<usize>,
}

impl Table {
    fn chosen(&self, demand: &Demand, pool: Pool) -> Verdict {
        let [choosing, proving] = demand.rows(&self.trace);
        decide(&self.candidates, &choosing, &proving, demand, pool, 1)
    }

    fn decide(&self, demand: &Demand) -> Verdict {
        self.chosen(demand, Pool::Policies)
    }

    fn line(&self, target: &str, demand: &Demand, verdict: &Verdict) {
        let test = &self.test;
        let outcome = self.candidates.outcome(&verdict.choice, test);
        let chip = outcome.energy.chip_uj;
        let times = |choice: &Choice| self.candidates.outcome(choice, test).energy.chip_uj / chip;
        let [uniform, any] = [Pool::StaticUniform, Pool::Static]
            .map(|pool| times(&self.chosen(demand, pool).choice));
        let stages = self.candidates.stages(&verdict.choice).zip(&verdict.choice.stages);
        // A + sums scores with those of the stage before.
        let names = stages.map(|(info, &stage)| {
            format!("{}{}", info.point, if self.candidates.sum(stage).is_some() { "+" } else { "" })
        });
        let rates = outcome.escalation_rates.iter().map(|rate| format!("{:.1}", 100.0 * rate));
        let rates: Vec<String> = rates.collect();
        println!(
            "| {} | {target} | {} | {} | {chip:.3} ({:.3}) | {uniform:.2} | {any:.2} | {:.2} | {:.2} | {:.2} | {} |",
            self.name,
            names.collect::<Vec<_>>().join(" > "),
            if verdict.choice.gates.is_empty() { "-".to_owned() } else { rates.join(", ") },
            outcome.energy.total_uj(),
            times(&Choice::fixed(self.widest)),
            chip / self.candidates.oracle_energy(&verdict.choice, test).chip_uj,
            100.0 * outcome.drop,
            verdict.bound.map_or("unknown".to_owned(), |bound| format!("{:.2}", 100.0 * bound)),
        );
    }
}
