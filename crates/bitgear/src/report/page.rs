//! The page: sections in the order of the questions that they answer.

use super::svg::escape;
use super::text::{count, doubt, loss, percent};
use super::{
    Figure, Run, confusion, energy, explorer, frontier, layers, provenance, saving, stages,
};
use crate::summary::{MeasureSummary, PolicyOption};

/// How pages look, on screen, in the dark and on paper.
pub(super) const STYLE: &str = include_str!("report.css");

/// A question and its answer.
pub(super) struct Section {
    title: &'static str,
    /// HTML before the figures.
    lead: String,
    pub(super) figures: Vec<Figure>,
    /// HTML after them.
    rest: String,
}

/// What a run without a part says, since it is an earlier version's.
const EARLIER: &str = "<p>The run does not say: it was made by an earlier version of bitgear. Run it again; its trace is used again.</p>\n";

pub(super) fn sections(run: &Run) -> Vec<Section> {
    let summary = &run.summary;
    let words = run.words();
    let is_static = run.is_static();
    let stage_count = run.replay.stages.len();

    let mut what_happens = if is_static {
        vec![stages::histogram(run, 0)]
    } else {
        std::iter::once(explorer::figure(run))
            .chain((0..stage_count).map(|stage| stages::histogram(run, stage)))
            .chain([stages::escalation(run)])
            .collect()
    };
    what_happens.push(confusion::figure(run));
    let stages_lead = if is_static {
        "<p>There is one stage, which answers every input: nothing is handed on.</p>\n".to_owned()
    } else {
        format!("{}{}", steps(run), explorer::thresholds(run))
    };

    let doubt = doubt(summary.reference.accuracy)
        .map(|doubt| format!("<p><strong>Look into this first:</strong> {doubt}.</p>\n"))
        .unwrap_or_default();
    let costs_known = !summary.stage_energies.is_empty();
    let where_to =
        if costs_known { vec![energy::stages(run), energy::layers(run)] } else { vec![] };
    let sensitivity = summary.sensitivity.as_ref().filter(|s| !s.layers.is_empty());
    vec![
        Section {
            title: "What is saved, and what is lost",
            lead: format!("{doubt}<p class=\"answer\">{}</p>\n", saving::sentence(run)),
            figures: vec![saving::figure(run)],
            rest: saving::notes(run),
        },
        Section {
            title: "All points, and the policies between them",
            lead: String::new(),
            figures: vec![frontier::figure(run)],
            rest: if summary.frontier.is_empty() {
                EARLIER.to_owned()
            } else {
                format!("{}{}", explorer::targets(run), options(run))
            },
        },
        Section {
            title: "What happens at each stage",
            lead: stages_lead,
            figures: what_happens,
            rest: measures(run),
        },
        Section {
            title: if words.cost == "time" { "Where the time goes" } else { "Where the energy goes" },
            lead: if costs_known { format!("<p>{}</p>\n", energy::scope(run)) } else { EARLIER.to_owned() },
            figures: where_to,
            rest: String::new(),
        },
        Section {
            title: "Which layers suffer from few bits",
            lead: match sensitivity {
                Some(_) => String::new(),
                None => "<p>Not measured: the run was given its points. Without <code>--points</code> they are chosen by what each layer bears, and that is shown here; <code>bitgear inspect --sensitivity</code> measures it alone.</p>\n".to_owned(),
            },
            figures: sensitivity.map(|s| layers::figure(run, s)).into_iter().collect(),
            rest: String::new(),
        },
        Section {
            title: "What this rests on, and what was not counted",
            lead: provenance::not_counted(run),
            figures: Vec::new(),
            rest: provenance::table(run),
        },
    ]
}

/// Further policies of the bundle.
fn options(run: &Run) -> String {
    let option = |option: &PolicyOption| {
        format!(
            "<li><code>--policy {}</code>: {}; {}, {} points lost</li>\n",
            escape(&option.name),
            escape(&option.stages.join(", then ")),
            run.words().cost(option.energy_uj.chip),
            loss(option.accuracy_drop)
        )
    };
    let options: String = run.summary.options.iter().map(option).collect();
    if options.is_empty() {
        return options;
    }
    format!("<p>The bundle holds further policies:</p>\n<ul>\n{options}</ul>\n")
}

/// The policy in words, stage by stage.
fn steps(run: &Run) -> String {
    let summary = &run.summary;
    let names = run.stage_names();
    let steps = names.iter().enumerate().map(|(index, name)| {
        let stage = run.policy.stages.get(index);
        let accepted = match stage {
            Some(stage) if summary.policy.escalation_rates.get(index) == Some(&1.0) => {
                format!("hands on everything (threshold {:.4})", stage.accept_at)
            }
            Some(stage) => {
                let gate = match &stage.tables {
                    Some(tables) if tables.disagreement > 0 => {
                        "a margin, less what the learned gate takes off for the two leading classes and for contradicting the stage before, of"
                    }
                    Some(_) => {
                        "a margin, less what the learned gate takes off for the two leading classes, of"
                    }
                    None => "a score margin of",
                };
                let rate = summary.policy.escalation_rates.get(index).copied().unwrap_or(0.0);
                format!(
                    "keeps its answer from {gate} {:.4} on, and hands on {} of all inputs",
                    stage.accept_at,
                    percent(rate)
                )
            }
            None => "always answers".to_owned(),
        };
        let shared = stage.map_or(run.policy.last_resort.shared_layers, |s| s.shared_layers);
        let shared = match shared {
            0 => String::new(),
            layers => format!(
                "; it goes on from the first {layers} MAC layers, which the stage before ran"
            ),
        };
        format!("<li><b>{}</b> {accepted}{shared}.</li>\n", escape(name))
    });
    format!("<ol>\n{}</ol>\n", steps.collect::<String>())
}

/// Text in which no line ends between a number and its unit.
fn with_units(html: &str) -> String {
    [" %", " µJ", " µs"]
        .iter()
        .fold(html.to_owned(), |text, unit| text.replace(unit, &unit.replace(' ', "\u{a0}")))
}

/// What the first two stages would do with other measures of confidence.
fn measures(run: &Run) -> String {
    let words = run.words();
    let row = |measure: &MeasureSummary| {
        format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{:.2}</td></tr>\n",
            escape(&measure.measure),
            words.cost(measure.energy_uj.chip),
            loss(measure.accuracy_drop),
            measure.times_oracle
        )
    };
    let rows: String = run.summary.measures.iter().map(row).collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<p>The first two stages alone, with other measures of confidence, each with the threshold that loses as little on the search samples as the policy does:</p>\n<div class=\"wide\"><table>\n<thead><tr><th></th><th scope=\"col\">chip {}</th><th scope=\"col\">points lost</th><th scope=\"col\">times what a perfect gate needs</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n",
        words.cost
    )
}

fn figure_html(figure: &Figure) -> String {
    format!(
        "<figure><div class=\"wide\">{}</div>\n<figcaption>{}</figcaption></figure>\n",
        figure.svg, figure.caption
    )
}

/// A page around its body.
pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
{body}</body>
</html>
"#
    )
}

pub(super) fn page(run: &Run) -> String {
    let summary = &run.summary;
    let name = escape(&summary.model.name);
    let accelerator = escape(&summary.accelerator);
    let sections: Vec<String> = sections(run)
        .iter()
        .map(|section| {
            let figures: Vec<String> = section.figures.iter().map(figure_html).collect();
            format!(
                "<section>\n<h2>{}</h2>\n{}{}{}</section>\n",
                section.title,
                with_units(&section.lead),
                figures.concat(),
                with_units(&section.rest)
            )
        })
        .collect();
    let body = format!(
        r#"<header>
<h1>{name} on {accelerator}</h1>
<p>{} MACs, {} parameters; figures of {} test samples, which chose nothing.</p>
</header>
<main>
{}</main>
<script type="application/json" id="data">{}</script>
<script>
{}</script>
"#,
        count(summary.model.macs),
        count(summary.model.parameters),
        count(summary.samples.test as u64),
        sections.concat(),
        explorer::data(run),
        explorer::SCRIPT,
    );
    document(&format!("{name} on {accelerator}: bitgear"), &body)
}
