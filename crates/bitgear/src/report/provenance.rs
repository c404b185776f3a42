//! What a run rests on, and what was not counted, as HTML.

use super::Run;
use super::svg::escape;
use super::text::{count, float_islands, samples, weighting};
use crate::policy::Provenance;

/// Kinds of a profile's figures, as a person says them.
fn evidence(kind: &str) -> &str {
    match kind {
        "silicon" => "figures measured in silicon",
        "post-layout" => "simulation after layout",
        "synthesis" => "synthesis",
        _ => "a model",
    }
}

/// What the worst of the energies rests on.
fn grade(grade: &str) -> &str {
    match grade {
        "F" => "found in the source itself",
        "S" => "a second-hand summary of the source",
        "D" => "derived by arithmetic",
        "E" => "an estimate, nothing published behind it",
        _ => "recalled, not verified",
    }
}

/// What was left out, as a list.
pub(super) fn not_counted(run: &Run) -> String {
    let summary = &run.summary;
    let mut items = Vec::new();
    let mut item = |line: String| items.push(format!("<li>{line}</li>\n"));
    if !summary.not_counted.is_empty() {
        let names: Vec<String> =
            summary.not_counted.iter().map(|n| format!("<code>{}</code>", escape(n))).collect();
        item(format!(
            "Not counted, because the profile calls it unknown or out of its scope: {}.",
            names.join(", ")
        ));
    }
    let islands = summary.model.float_islands.iter().map(|island| island.operator.as_str());
    if let Some(islands) = float_islands(islands) {
        item(format!("Not counted, because they stay in float: {}.", escape(&islands)));
    }
    item("Operators that are no MAC layers (pooling, additions, activations) are counted only where the energy of a MAC holds them.".to_owned());
    let kind = summary.evidence.kind.name();
    let worst = format!("{:?}", summary.evidence.worst_grade);
    item(format!(
        "Costs are a model of counts times the profile's numbers, not a measurement of this network. The profile has {}; the worst of the numbers that the policy uses is {} (grade {worst}).",
        evidence(kind),
        grade(&worst)
    ));
    if !summary.samples.labelled {
        item("The samples have no labels: the reference's answers count as right, and every loss is a disagreement with it.".to_owned());
    }
    format!("<ul>\n{}</ul>\n", items.concat())
}

/// What the run was made of, as a table.
pub(super) fn table(run: &Run) -> String {
    let summary = &run.summary;
    let Provenance {
        tool_version,
        model_sha256,
        data_sha256,
        calibration_sha256,
        accelerator_sha256,
        seed,
    } = &run.policy.provenance;
    let code = |hash: &str| format!("<code class=\"hash\">{}</code>", escape(hash));
    let weighting = weighting(summary).map_or_else(String::new, |text| format!("; {text}"));
    let samples_text = format!("{}{weighting}", samples(summary));
    let storage = format!(
        "{}, {} bytes",
        if summary.storage.kind == crate::energy::Storage::Nested {
            "one copy for all stages (nested)"
        } else {
            "each stage its own"
        },
        count(summary.storage.weight_bytes as u64)
    );
    let rows = [
        ("model", escape(&summary.model.name)),
        ("MACs of an inference", count(summary.model.macs)),
        ("parameters", count(summary.model.parameters)),
        ("accelerator", escape(&summary.accelerator)),
        ("samples", samples_text),
        ("weights of the policy", storage),
        ("seed", seed.to_string()),
        ("bitgear", escape(tool_version)),
        ("SHA-256 of the model", code(model_sha256)),
        ("SHA-256 of the data", code(data_sha256)),
        ("SHA-256 of the calibration data", code(calibration_sha256)),
        ("SHA-256 of the profile", code(accelerator_sha256)),
    ];
    let rows: Vec<String> = rows
        .iter()
        .map(|(name, value)| format!("<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>\n"))
        .collect();
    format!("<div class=\"wide\"><table>\n{}</table></div>\n", rows.concat())
}
