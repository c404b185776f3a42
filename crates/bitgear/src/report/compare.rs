//! Runs side by side.

use super::svg::{Anchor, Mark, Scale, Svg, escape, shortened};
use super::text::{loss, percent, round, signed};
use super::{Figure, Run, page};

/// What a comparison shows of a run: a heading and a value.
type Line = (&'static str, fn(&Run) -> String);

const LINES: [Line; 12] = [
    ("model", |run| run.summary.model.name.clone()),
    ("accelerator", |run| run.summary.accelerator.clone()),
    ("allowed loss, points", |run| match run.summary.constraint.max_energy_uj {
        Some(budget) => format!("within {budget} {}", run.words().unit),
        None => round(100.0 * run.summary.constraint.max_accuracy_drop).to_string(),
    }),
    ("policy", |run| run.stage_names().join(", then ")),
    ("handed on", |run| {
        let rates: Vec<String> =
            run.summary.policy.escalation_rates.iter().map(|&rate| percent(rate)).collect();
        if rates.is_empty() { "nothing".to_owned() } else { rates.join(", ") }
    }),
    ("accuracy", |run| percent(run.summary.policy.accuracy)),
    ("loss, points", |run| loss(run.summary.policy.accuracy_drop)),
    ("loss at most, points", |run| {
        run.summary.policy.drop_upper_bound.map_or_else(|| "unknown".to_owned(), loss)
    }),
    ("chip, of an inference", |run| run.words().cost(run.summary.policy.energy_uj.chip)),
    ("best static", |run| {
        let best = &run.summary.best_static;
        format!("{}, {}", best.point, run.words().cost(best.energy_uj.chip))
    }),
    ("saved against it", |run| signed(run.summary.savings.vs_best_static)),
    ("saved, mean of splits", |run| match run.summary.repeated.n {
        0 => "not repeated".to_owned(),
        _ => signed(run.summary.repeated.savings_mean.vs_best_static),
    }),
];

/// A page with one column for each run, under the name that it is given.
pub fn comparison(runs: &[(String, Run)]) -> String {
    let headings: Vec<String> =
        runs.iter().map(|(name, _)| format!("<th scope=\"col\">{}</th>", escape(name))).collect();
    let rows: Vec<String> = LINES
        .iter()
        .map(|(heading, value)| {
            let cells: Vec<String> =
                runs.iter().map(|(_, run)| format!("<td>{}</td>", escape(&value(run)))).collect();
            format!("<tr><th scope=\"row\">{heading}</th>{}</tr>\n", cells.concat())
        })
        .collect();
    let figure = savings(runs);
    let body = format!(
        r#"<header>
<h1>{} runs of bitgear</h1>
<p>Figures of each run's own test samples, which chose nothing. Runs of different models, data or targets stand beside each other, they do not compete.</p>
</header>
<main>
<section>
<h2>What is saved, and what is lost</h2>
<figure><div class="wide">{}</div>
<figcaption>{}</figcaption></figure>
</section>
<section>
<h2>Side by side</h2>
<div class="wide"><table>
<thead><tr><th></th>{}</tr></thead>
<tbody>
{}</tbody></table></div>
</section>
</main>
"#,
        runs.len(),
        figure.svg,
        figure.caption,
        headings.concat(),
        rows.concat()
    );
    page::document("runs of bitgear", &body)
}

/// Saving and loss of each run.
fn savings(runs: &[(String, Run)]) -> Figure {
    let (top, row) = (44.0, 40.0);
    let bottom = top + row * runs.len() as f64;
    let mut svg = Svg::new(
        "savings",
        "Saving and loss of each run",
        &format!(
            "For each of {} runs what it saves against its best static point, and what it loses.",
            runs.len()
        ),
        [880.0, bottom + 30.0],
    );
    let intervals = || runs.iter().map(|(_, run)| &run.summary.savings_interval.vs_best_static);
    let low = intervals().map(|i| i.low).fold(0.0, f64::min).max(-1.0);
    let high = intervals().map(|i| i.high).fold(0.05, f64::max).min(1.0);
    let saved = Scale::linear([100.0 * low, 100.0 * high], [270.0, 550.0]);
    let drops = runs.iter().flat_map(|(_, run)| {
        let policy = &run.summary.policy;
        [Some(policy.accuracy_drop), policy.drop_upper_bound].into_iter().flatten()
    });
    let (least, most) = drops.fold((0.0_f64, 0.001_f64), |(a, b), d| (a.min(d), b.max(d)));
    let lost = Scale::linear([100.0 * least, 105.0 * most], [610.0, 850.0]);
    svg.text("th", Anchor::Start, [270.0, 18.0], "saved against the best static point, %");
    svg.text("th", Anchor::Start, [610.0, 18.0], "loss, points");
    for scale in [&saved, &lost] {
        let ticks = scale.ticks(5);
        let decimals = Scale::decimals(&ticks);
        for &tick in &ticks {
            let x = scale.at(tick);
            svg.line(if tick == 0.0 { "axis" } else { "grid" }, [x, top - 12.0], [x, bottom]);
            let label = format!("{tick:.decimals$}").replace('-', "−");
            svg.text("t3", Anchor::Middle, [x, bottom + 16.0], &label);
        }
    }
    for (index, (name, run)) in runs.iter().enumerate() {
        let y = top + row * (index as f64 + 0.5);
        let summary = &run.summary;
        let about = format!("{} on {}", summary.model.name, summary.accelerator);
        svg.text("t", Anchor::Start, [8.0, y - 2.0], &shortened(name, 38));
        svg.text("t3", Anchor::Start, [8.0, y + 13.0], &shortened(&about, 42));
        let saving = summary.savings.vs_best_static;
        let interval = &summary.savings_interval.vs_best_static;
        let [a, b, x] = [interval.low, interval.high, saving].map(|v| saved.at(100.0 * v));
        svg.line("chosen-line", [a, y], [b, y]);
        svg.mark("chosen", Mark::Circle, [x, y], 5.0, &signed(saving));
        svg.text(
            "t",
            Anchor::Middle,
            [x, y - 9.0],
            &format!("{:.1} %", 100.0 * saving).replace('-', "−"),
        );
        let drop = summary.policy.accuracy_drop;
        let x = lost.at(100.0 * drop);
        if let Some(bound) = summary.policy.drop_upper_bound {
            let end = lost.at(100.0 * bound);
            svg.line("chosen-line", [x, y], [end, y]);
            svg.line("chosen-line", [end, y - 5.0], [end, y + 5.0]);
        }
        svg.mark("chosen", Mark::Circle, [x, y], 5.0, &format!("{} points", loss(drop)));
    }
    let caption = "Lines beside a saving: what it may be, by the uncertainty of the profile's numbers alone. Lines beside a loss end at the most that it is, with each run's confidence.";
    Figure { name: "savings".to_owned(), svg: svg.finish(), caption: caption.to_owned() }
}
