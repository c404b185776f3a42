//! `bitgear characterize` and `bitgear demo`.

use std::path::{Path, PathBuf};

use bitgear::certify::Test;
use bitgear::characterize::{Characterization, Job, Origin, characterize_from};
use bitgear::data::{Preprocess, Source};
use bitgear::energy::Storage;
use bitgear::quantize::{Methods, Point};
use bitgear::search::Rules;
use bitgear::summary::Constraint;
use bitgear::task::Task;
use bitgear_core::bits::BitWidth;

use super::report;
use crate::Failure;
use crate::arguments::{Characterize, Demo};
use crate::terminal::{Bars, on_threads};

/// Where the demo's files lie, from the root of a checkout.
const EXAMPLE: &str = "examples/fashion-mnist";

pub(crate) fn demo(options: &Demo) -> Result<(), Failure> {
    let example = match &options.example {
        Some(folder) => folder.clone(),
        None => find_example().ok_or_else(|| {
            Failure::new(format!("the demo's files are not here: expected a folder `{EXAMPLE}`"))
                .hint("run it in a checkout of bitgear, or name the folder with --example")
        })?,
    };
    run(&Characterize {
        config: Some(example.join("bitgear.toml")),
        threads: options.threads,
        out: options.out.clone(),
        json: options.json,
        ..Characterize::default()
    })
}

/// The example's folder in the current folder or one above.
fn find_example() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().map(|folder| folder.join(EXAMPLE)).find(|f| f.join("bitgear.toml").is_file())
}

pub(crate) fn run(options: &Characterize) -> Result<(), Failure> {
    let task = match &options.config {
        Some(path) => Task::read(path)?,
        None => Task::default(),
    };
    let job = job(options, &task)?;
    let threads = options.threads.or(task.threads);
    let (result, times) = on_threads(threads, || {
        let bars = Bars::new();
        let origin = options.trace.as_deref().map_or(Origin::Here, Origin::Done);
        let result = characterize_from(&job, origin, &bars)?;
        Ok((result, bars.times()))
    })?;
    if options.times {
        eprint!("{times}");
    }
    print(&result, &job.out, options.json)
}

fn print(result: &Characterization, out: &Path, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string_pretty(&result.summary)?);
    } else {
        print!("{}", report::text(result, out));
    }
    Ok(())
}

/// The task with the flags laid over it.
fn job(options: &Characterize, task: &Task) -> Result<Job, Failure> {
    let missing = |what: &str, flag: &str, key: &str| {
        Failure::new(format!("{what} is missing"))
            .hint(format!("give {flag}, or `{key}` in the task's file"))
    };
    let mut preprocess = task.preprocess.clone().unwrap_or_default();
    let flags = Preprocess {
        scale: options.scale.unwrap_or(preprocess.scale),
        mean: options.mean.clone(),
        std: options.std.clone(),
    };
    preprocess.scale = flags.scale;
    if !flags.mean.is_empty() {
        preprocess.mean = flags.mean;
    }
    if !flags.std.is_empty() {
        preprocess.std = flags.std;
    }
    let names = if options.points.is_empty() {
        task.points.clone().unwrap_or_default()
    } else {
        options.points.clone()
    };
    let data = match &options.data {
        Some(path) => Some(Source::Path(path.clone())),
        None => task.source()?,
    };
    let calibration = options.calibration.clone().or_else(|| {
        // Data of one's own does not go with the task's calibration data.
        if options.data.is_some() { None } else { task.data.calibration.clone() }
    });
    Ok(Job {
        model: options
            .model
            .clone()
            .or_else(|| task.model.clone())
            .ok_or_else(|| missing("the model", "MODEL", "model"))?,
        data: data.ok_or_else(|| missing("the data", "--data", "data.path"))?,
        calibration: calibration.map(Source::Path),
        preprocess,
        mirror: !options.symmetry.is_empty() || !task.data.symmetry.is_empty(),
        accelerator: options
            .accelerator
            .clone()
            .or_else(|| task.accelerator.clone())
            .ok_or_else(|| missing("the accelerator", "--accelerator", "accelerator"))?,
        points: points(&names)?,
        budget: options.budget.or(task.budget).unwrap_or(Job::BUDGET),
        methods: Methods::best(),
        storage: options.storage.map_or(Storage::Independent, Into::into),
        constraint: Constraint {
            max_accuracy_drop: options
                .max_drop
                .or(task.constraint.max_accuracy_drop)
                .unwrap_or(0.005),
            no_worse_than_static: options.no_worse_than_static
                || task.constraint.no_worse_than_static,
            max_energy_uj: options.max_energy,
            guarantee: options.guarantee.or(task.constraint.guarantee),
            confidence: options.confidence.or(task.constraint.confidence).unwrap_or(0.95),
            test: options.test.map(Into::into).or(task.constraint.test).unwrap_or(Test::Exact),
        },
        more_targets: options.also_max_drop.clone(),
        rules: Rules {
            stages: options.stages.or(task.stages).unwrap_or(2),
            margin_only: options.margin_only || task.margin_only,
            sums: !options.no_sums,
            max_escalation: options.max_escalation.unwrap_or(1.0),
            max_worst_uj: options.max_worst_energy.unwrap_or(f64::INFINITY),
            max_worst_us: options.max_latency.unwrap_or(f64::INFINITY),
            max_class_drop: options.max_class_drop,
        },
        shares: task.split.shares(),
        class_mix: task.split.class_mix.clone(),
        seed: options.seed.or(task.seed).unwrap_or(1),
        out: options.out.clone(),
    })
}

/// The points that were named; none leaves the choice to the job.
fn points(names: &[String]) -> Result<Option<Vec<Point>>, Failure> {
    if names.is_empty() {
        return Ok(None);
    }
    let mut points = Vec::new();
    for name in names {
        if name == "all" {
            let widths = (1..=16).filter_map(|bits| BitWidth::new(bits).ok());
            points.extend(widths.map(|bits| Point::uniform(bits, bits)));
        } else {
            points.push(name.parse()?);
        }
    }
    Ok(Some(points))
}
