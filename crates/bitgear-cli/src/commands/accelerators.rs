//! `bitgear accelerators`: what profiles there are and what is in them.

use std::convert::Infallible;
use std::path::Path;

use bitgear::characterize::{compare, measure};
use bitgear::data::{Dataset, Source};
use bitgear::energy::{AcceleratorProfile, EnergyError, Quantity, SHIPPED, Style};
use bitgear::onnx;
use bitgear::quantize::calibrate;
use bitgear::summary::Summary;

use crate::Failure;
use crate::arguments::{Accelerators, AcceleratorsAction, Compare, Measure};
use crate::terminal::{energy, on_threads, percent, points, table};

pub(crate) fn run(options: &Accelerators) -> Result<(), Failure> {
    match options.action.as_ref().unwrap_or(&AcceleratorsAction::List) {
        AcceleratorsAction::List => list(),
        AcceleratorsAction::Show { profile } => show(profile),
        AcceleratorsAction::Check { profile } => check(profile),
        AcceleratorsAction::Compare(options) => compare_profiles(options),
        AcceleratorsAction::Measure(options) => measure_host(options),
    }
}

fn list() -> Result<(), Failure> {
    let mut rows = Vec::new();
    for (id, _) in SHIPPED {
        let profile = AcceleratorProfile::find(id)?;
        let evidence = profile.accelerator.evidence.name().to_owned();
        rows.push(vec![id.to_owned(), profile.accelerator.name, evidence]);
    }
    print!("{}", table(&["id", "name", "evidence"], &rows));
    Ok(())
}

fn show(id: &str) -> Result<(), Failure> {
    print!("{}", description(&AcceleratorProfile::find(id)?));
    Ok(())
}

/// What a profile's numbers are, with their grades.
pub(crate) fn description(profile: &AcceleratorProfile) -> String {
    let mut parts = Vec::new();
    let style = match profile.accelerator.style {
        Style::ChipTotal => "energy of a MAC holds the whole chip",
        Style::BottomUp => {
            "energy of a MAC is that of the MAC alone; memories and leakage are added"
        }
        Style::Time => "time instead of energy: 1 uJ stands for 1 us",
    };
    let about = &profile.accelerator;
    parts.push(format!("{}\n{}\n{style}\n\n", about.name, about.url));
    let number = |value: Option<Quantity>| match value {
        Some(Quantity::Known(value)) => value.to_string(),
        Some(Quantity::Unknown(_)) => "unknown".to_owned(),
        None => "-".to_owned(),
    };
    let grade = |key: String| profile.grades.get(&key).map_or("-".to_owned(), |g| format!("{g:?}"));
    let modes: Vec<Vec<String>> = profile
        .modes
        .iter()
        .map(|m| {
            vec![
                m.id.clone(),
                m.w_bits.to_string(),
                m.a_bits.to_string(),
                number(Some(m.e_mac_pj)),
                grade(format!("mode.{}.e_mac_pj", m.id)),
                number(m.macs_per_cycle),
            ]
        })
        .collect();
    if !modes.is_empty() {
        let header = ["mode", "w bits", "a bits", "pJ/MAC", "grade", "MAC/cycle"];
        parts.push(format!("{}\n", table(&header, &modes)));
    }
    if let Some(macs) = &profile.mac_table {
        let header = macs.w_bits.iter().map(|w| format!("w{w}"));
        let header: Vec<String> = std::iter::once("pJ/MAC".to_owned()).chain(header).collect();
        let rows: Vec<Vec<String>> = macs
            .a_bits
            .iter()
            .zip(&macs.e_mac_pj)
            .enumerate()
            .map(|(row, (a, energies))| {
                let entries = energies.iter().enumerate().map(|(column, pj)| {
                    let own = macs.grade_per_point.as_ref().map(|grades| grades[row][column]);
                    let grade =
                        own.map_or(grade("mac_table.e_mac_pj".to_owned()), |g| format!("{g:?}"));
                    format!("{pj} {grade}")
                });
                std::iter::once(format!("a{a}")).chain(entries).collect()
            })
            .collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        parts.push(format!("{}\n", table(&header, &rows)));
    }
    let memories: Vec<Vec<String>> = profile
        .memories
        .iter()
        .map(|m| {
            vec![
                m.name.clone(),
                number(m.size_bytes),
                number(m.read_pj_per_bit),
                number(m.write_pj_per_bit),
                match m.read_pj_per_bit {
                    Some(Quantity::Known(_)) => grade(format!("memory.{}.read_pj_per_bit", m.name)),
                    _ => "-".to_owned(),
                },
            ]
        })
        .collect();
    if !memories.is_empty() {
        let header = ["memory", "bytes", "read pJ/bit", "write pJ/bit", "grade"];
        parts.push(table(&header, &memories));
    }
    if !profile.not_counted.is_empty() {
        let names: Vec<&str> = profile.not_counted.iter().map(|n| n.0.as_str()).collect();
        parts
            .push(format!("\nunknown or out of scope, and so not counted: {}\n", names.join(", ")));
    }
    parts.concat()
}

fn check(path: &Path) -> Result<(), Failure> {
    let profile = AcceleratorProfile::find(&path.display().to_string())?;
    println!("`{}` is a valid profile: {}", path.display(), profile.accelerator.name);
    Ok(())
}

/// The profiles by what the policy saves on them against their own best static uniform point. Absolute
/// figures of different profiles have different scopes.
fn compare_profiles(options: &Compare) -> Result<(), Failure> {
    let shipped = SHIPPED.map(|(id, _)| id.to_owned());
    let ids = if options.profiles.is_empty() { &shipped[..] } else { &options.profiles };
    let profiles: Vec<AcceleratorProfile> =
        ids.iter().map(|id| AcceleratorProfile::find(id)).collect::<Result<_, _>>()?;
    let summaries =
        on_threads(options.threads, || Ok(compare(&options.run, &options.model, &profiles)?))?;
    let mut compared: Vec<(&AcceleratorProfile, Result<Summary, EnergyError>)> =
        profiles.iter().zip(summaries).collect();
    let saving = |summary: &Result<Summary, EnergyError>| {
        summary.as_ref().map_or(f64::NEG_INFINITY, |s| s.savings.vs_best_static_uniform)
    };
    compared.sort_by(|(_, a), (_, b)| saving(b).total_cmp(&saving(a)));
    if options.json {
        let rows: Vec<serde_json::Value> = compared
            .iter()
            .map(|(profile, summary)| match summary {
                Ok(s) => serde_json::json!({
                    "accelerator": s.accelerator,
                    "evidence": s.evidence,
                    "cost_unit": s.cost_unit,
                    "policy": s.policy,
                    "best_static_uniform": s.best_static_uniform,
                    "best_static": s.best_static,
                    "savings": s.savings,
                    "savings_interval": s.savings_interval,
                    "savings_total": s.savings_total,
                    "savings_total_interval": s.savings_total_interval,
                    "not_counted": s.not_counted,
                }),
                Err(error) => serde_json::json!({
                    "accelerator": profile.accelerator.id,
                    "error": error.to_string(),
                }),
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let mut rows = Vec::new();
    for (profile, summary) in &compared {
        let id = profile.accelerator.id.clone();
        let summary = match summary {
            Ok(summary) => summary,
            Err(error) => {
                eprintln!("{id}: {error}");
                continue;
            }
        };
        let policy = &summary.policy;
        let mut stages: Vec<&str> = policy.stages.iter().map(|s| s.point.as_str()).collect();
        stages.push(&policy.last_resort.point);
        let interval = &summary.savings_interval.vs_best_static_uniform;
        rows.push(vec![
            id,
            format!("{}, {:?}", summary.evidence.kind.name(), summary.evidence.worst_grade),
            stages.join(" > "),
            points(-policy.accuracy_drop),
            format!("{} {}", energy(policy.energy_uj.chip), summary.cost_unit),
            format!("{} {}", energy(policy.energy_uj.total), summary.cost_unit),
            summary.best_static_uniform.point.clone(),
            percent(summary.savings.vs_best_static_uniform),
            format!("{} to {}", percent(interval.low), percent(interval.high)),
            percent(summary.savings.vs_best_static),
        ]);
    }
    let header = [
        "accelerator",
        "evidence",
        "policy",
        "difference",
        "chip",
        "total",
        "best static uniform",
        "saving",
        "by the profile",
        "against best static",
    ];
    print!("{}", table(&header, &rows));
    println!(
        "\nSavings are of chip energy, on test samples of one split, each on its own profile: figures of different profiles have different scopes. Points were picked for the run's own accelerator."
    );
    Ok(())
}

fn measure_host(options: &Measure) -> Result<(), Failure> {
    let graph = onnx::import_file(&options.model)?;
    let preprocess = options.preprocess.to_library();
    let data = Dataset::read(&Source::Path(options.data.clone()))?;
    data.check(graph.shape(graph.input), &preprocess)?;
    let count = options.samples.min(data.len());
    let indices: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
    let profile = on_threads(Some(options.threads), || {
        let Ok(ranges) = calibrate(&graph, indices.len(), |span| {
            Ok::<_, Infallible>(data.batch(&indices[span], &preprocess))
        });
        let batch = data.batch(&indices, &preprocess);
        let model = options.model.file_stem().unwrap_or_default().to_string_lossy();
        let source = [&cpu()[..], &model];
        Ok(measure(&graph, &ranges, &batch, options.rounds.max(1), source)?)
    })?;
    print!("{profile}");
    Ok(())
}

/// What the operating system calls the CPU.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
