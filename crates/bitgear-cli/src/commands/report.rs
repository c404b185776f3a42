//! What `characterize` tells a person, and `bitgear report`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bitgear::certify::Test;
use bitgear::characterize::{Characterization, outputs};
use bitgear::policy::EnergyUj;
use bitgear::report::text::{round, samples};
use bitgear::report::{Run, comparison};
use bitgear::summary::{Constraint, Summary};

use crate::Failure;
use crate::arguments::Report;
use crate::terminal::{count, doubt, energy, float_islands, percent, points, table, weighting};

pub(crate) fn run(options: &Report) -> Result<(), Failure> {
    let read = |folder: &PathBuf| {
        let run = Run::read(folder)
            .map_err(|error| Failure::new(error.to_string()).hint(error.hint()))?;
        Ok::<_, Failure>((folder.display().to_string(), run))
    };
    if options.compare {
        let runs: Vec<_> = options.runs.iter().map(read).collect::<Result<_, _>>()?;
        let out = options.out.clone().unwrap_or_else(|| PathBuf::from("comparison.html"));
        write(&out, &comparison(&runs))?;
        return print(&[out], options.json);
    }
    let [folder] = &options.runs[..] else {
        let message = format!("expected one run, got {}", options.runs.len());
        return Err(Failure::new(message).hint("--compare sets several runs side by side"));
    };
    let (_, run) = read(folder)?;
    let out = options.out.clone().unwrap_or_else(|| folder.join("report.html"));
    write(&out, &run.page())?;
    let mut written = vec![out];
    if let Some(folder) = &options.svg {
        std::fs::create_dir_all(folder).map_err(|e| cannot_write(folder, &e))?;
        for figure in run.figures() {
            let path = folder.join(format!("{}.svg", figure.name));
            write(&path, &figure.file())?;
            written.push(path);
        }
    }
    print(&written, options.json)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| cannot_write(path, &e))
}

fn cannot_write(path: &Path, why: &std::io::Error) -> Failure {
    Failure::new(format!("cannot write `{}`: {why}", path.display()))
}

/// Names what was written.
fn print(written: &[PathBuf], json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string_pretty(written)?);
    } else {
        for path in written {
            println!("{}", path.display());
        }
    }
    Ok(())
}

pub(crate) fn text(result: &Characterization, out: &Path) -> String {
    let summary = &result.summary;
    let reference = summary.reference.accuracy;
    let mut text = String::new();
    let weighting = weighting(summary).map_or_else(String::new, |text| format!(",\n{text}"));
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{}: {} MACs, {} parameters, on {}\n{}{weighting}\n",
        summary.model.name,
        count(summary.model.macs),
        count(summary.model.parameters),
        summary.accelerator,
        samples(summary),
    );

    let row = |name: &str, accuracy: f64, e: &EnergyUj| {
        vec![
            name.to_owned(),
            percent(accuracy),
            points(accuracy - reference),
            energy(e.chip),
            energy(e.total),
        ]
    };
    let mut rows = vec![vec![
        "float".to_owned(),
        percent(reference),
        points(0.0),
        "-".to_owned(),
        "-".to_owned(),
    ]];
    let shown = summary.r#static.iter().filter(|s| s.kind != "plain" && s.view == "as-is");
    rows.extend(shown.map(|s| row(&s.point, s.accuracy, &s.energy_uj)));
    let policy = &summary.policy;
    rows.push(row("policy", policy.accuracy, &policy.energy_uj));
    let unit = &summary.cost_unit;
    let (chip, total) = (format!("chip {unit}"), format!("total {unit}"));
    let header = ["point", "accuracy", "difference", &chip, &total];
    let _ = writeln!(text, "{}", table(&header, &rows));
    if let Some(doubt) = doubt(reference) {
        let _ = writeln!(text, "{doubt}\n");
    }

    let target = 100.0 * summary.constraint.max_accuracy_drop;
    if policy.stages.is_empty() {
        let _ = writeln!(
            text,
            "policy for a drop of at most {target} points: {} for every input. A static bit-width is best here.",
            policy.last_resort.point
        );
    }
    let stage = |point: &str, view: &str, scores: &str| {
        let view = if view == "mirror" { " on the mirrored input" } else { "" };
        let scores = if scores == "sum" { ", scores summed" } else { "" };
        format!("{point}{view}{scores}")
    };
    let later = policy.stages.iter().skip(1).map(|s| stage(&s.point, &s.view, &s.scores));
    let last = &policy.last_resort;
    let later = later.chain([stage(&last.point, &last.view, &last.scores)]);
    for ((stage, rate), next) in policy.stages.iter().zip(&policy.escalation_rates).zip(later) {
        let gate = if stage.gate == "learned" { " (learned gate)" } else { "" };
        let _ = writeln!(
            text,
            "policy for a drop of at most {target} points: {}, accepted from a margin of {:.4}{gate}; {} of the inputs go on to {next}",
            stage.point,
            stage.accept_at,
            percent(*rate),
        );
    }
    let shared = policy.stages.iter().map(|stage| (stage.shared_layers, &stage.point));
    for (layers, point) in
        shared.chain([(policy.last_resort.shared_layers, &policy.last_resort.point)])
    {
        if layers > 0 {
            let _ = writeln!(
                text,
                "{point} goes on from the first {layers} MAC layers, which the stage before ran for it",
            );
        }
    }
    let _ = writeln!(text, "{}", guarantee(summary));
    if let Some(worst) = &policy.worst_class {
        let drop = 100.0 * worst.accuracy_drop;
        let _ = writeln!(text, "class {} loses most: {drop:.2} points", worst.class);
    }
    if let Some(latency) = &policy.latency_us {
        let _ = writeln!(
            text,
            "an inference takes {:.1} us on average, {:.1} us where all stages run",
            latency.mean, latency.worst
        );
    }
    let another = |stages: &[String], drop: f64, chip: f64| {
        format!("{}, {} points, {} {unit} (chip)", stages.join(" > "), points(-drop), energy(chip))
    };
    for option in &summary.options {
        let other = another(&option.stages, option.accuracy_drop, option.energy_uj.chip);
        let _ = writeln!(text, "--policy {}: {other}", option.name);
    }
    if let Some(kept) = &summary.no_worse {
        let other = another(&kept.stages, kept.accuracy_drop, kept.energy_uj.chip);
        let _ = writeln!(text, "with --no-worse-than-static: {other}");
    }
    text.push('\n');

    let others = [
        (
            "best static uniform",
            summary.best_static_uniform.point.as_str(),
            summary.savings.vs_best_static_uniform,
            summary.savings_total.vs_best_static_uniform,
            summary.repeated.savings_mean.vs_best_static_uniform,
            &summary.savings_interval.vs_best_static_uniform,
        ),
        (
            "best static",
            &summary.best_static.point,
            summary.savings.vs_best_static,
            summary.savings_total.vs_best_static,
            summary.repeated.savings_mean.vs_best_static,
            &summary.savings_interval.vs_best_static,
        ),
        (
            "best static plain",
            &summary.best_static_plain.point,
            summary.savings.vs_best_static_plain,
            summary.savings_total.vs_best_static_plain,
            summary.repeated.savings_mean.vs_best_static_plain,
            &summary.savings_interval.vs_best_static_plain,
        ),
        (
            "16 bits",
            "w16a16",
            summary.savings.vs_16_bit,
            summary.savings_total.vs_16_bit,
            summary.repeated.savings_mean.vs_16_bit,
            &summary.savings_interval.vs_16_bit,
        ),
    ];
    let rows: Vec<Vec<String>> = others
        .iter()
        .map(|(name, point, chip, total, repeated, interval)| {
            vec![
                (*name).to_owned(),
                (*point).to_owned(),
                percent(*chip),
                format!("{} to {}", percent(interval.low), percent(interval.high)),
                percent(*total),
                percent(*repeated),
            ]
        })
        .collect();
    let header =
        ["saving against", "point", "chip", "by the profile", "total", "chip, mean of splits"];
    let _ = writeln!(text, "{}", table(&header, &rows));
    if let Some(most) = &summary.savings_interval.vs_best_static_uniform.most {
        let _ = writeln!(
            text,
            "by the profile: what its numbers may be moves the saving so far; against the best static uniform point most by `{most}`"
        );
    }
    let _ = writeln!(
        text,
        "over {} random splits the policies chosen this way lose {} points on average (standard error {:.2})",
        summary.repeated.n,
        points(summary.repeated.drop_mean).trim_start_matches('+'),
        100.0 * summary.repeated.drop_se,
    );
    let _ = writeln!(
        text,
        "a perfect gate between the same stages would need {} {unit} (chip)",
        energy(policy.oracle_energy_uj.chip)
    );
    let _ = writeln!(
        text,
        "costs rest on: {}, worst grade {:?}",
        summary.evidence.kind.name(),
        summary.evidence.worst_grade
    );
    if !summary.not_counted.is_empty() {
        let names = summary.not_counted.join(", ");
        let _ = writeln!(text, "not counted, because unknown or out of scope: {names}");
    }
    let islands = summary.model.float_islands.iter().map(|island| island.operator.as_str());
    if let Some(islands) = float_islands(islands) {
        let _ = writeln!(text, "not counted, because they stay in float: {islands}");
    }
    let _ = writeln!(text, "\nfiles:");
    for path in outputs(out) {
        let _ = writeln!(text, "  {}", path.display());
    }
    text
}

/// What was proved of the policy.
fn guarantee(summary: &Summary) -> String {
    let Constraint { guarantee, confidence, test, .. } = summary.constraint;
    let policy = &summary.policy;
    let confidence = match test {
        Test::Conformal => "in expectation".to_owned(),
        _ => format!("with {} % confidence ({} test)", round(100.0 * confidence), test.name()),
    };
    let bound = policy.drop_upper_bound.map(|bound| 100.0 * bound);
    match (guarantee, bound) {
        (Some(drop), _) if policy.certified => {
            format!("certified: the drop is at most {} points {confidence}", round(100.0 * drop))
        }
        (Some(drop), Some(bound)) => {
            let needed = match policy.samples_needed {
                Some(samples) => format!(
                    "about {} samples for certification would prove it of this policy",
                    count(samples)
                ),
                None => "no number of samples would prove it of this policy".to_owned(),
            };
            format!(
                "NOT CERTIFIED: no policy was proved to lose at most {} points {confidence}; this one loses at most {bound:.2}; {needed}",
                round(100.0 * drop)
            )
        }
        (None, Some(bound)) => format!(
            "the drop is at most {bound:.2} points {confidence}; the target is an expectation"
        ),
        (_, None) => "not certified: there are no samples for certification".to_owned(),
    }
}
