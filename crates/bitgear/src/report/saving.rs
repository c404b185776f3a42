//! What is saved, at what loss, with which certainty.

use super::svg::{Anchor, Mark, Scale, Svg, escape, shortened};
use super::text::{count, loss, percent, round, signed};
use super::{Figure, Run};
use crate::certify::Test;
use crate::summary::{SavingInterval, Summary};

/// What the policy is compared with, one row each.
struct Row<'s> {
    name: &'static str,
    point: &'s str,
    cost: f64,
    drop: f64,
    bound: Option<f64>,
    saving: Option<(f64, &'s SavingInterval)>,
}

fn rows(summary: &Summary) -> Vec<Row<'_>> {
    let Summary { policy, savings, savings_interval: intervals, reference, .. } = summary;
    let others = [
        ("best static", &summary.best_static, savings.vs_best_static, &intervals.vs_best_static),
        (
            "best static, all layers alike",
            &summary.best_static_uniform,
            savings.vs_best_static_uniform,
            &intervals.vs_best_static_uniform,
        ),
        (
            "best static, plain rounding",
            &summary.best_static_plain,
            savings.vs_best_static_plain,
            &intervals.vs_best_static_plain,
        ),
    ];
    let mut rows = vec![Row {
        name: "the policy",
        point: "",
        cost: policy.energy_uj.chip,
        drop: policy.accuracy_drop,
        bound: policy.drop_upper_bound,
        saving: None,
    }];
    rows.extend(others.map(|(name, point, saving, interval)| Row {
        name,
        point: &point.point,
        cost: point.energy_uj.chip,
        drop: reference.accuracy - point.accuracy,
        bound: point.drop_upper_bound,
        saving: Some((saving, interval)),
    }));
    let wide = summary.r#static.iter().find(|p| p.point == "w16a16" && p.view == "as-is");
    rows.extend(wide.map(|wide| Row {
        name: "16 bits",
        point: &wide.point,
        cost: wide.energy_uj.chip,
        drop: reference.accuracy - wide.accuracy,
        bound: None,
        saving: Some((savings.vs_16_bit, &intervals.vs_16_bit)),
    }));
    rows
}

const ROW: f64 = 38.0;
const TOP: f64 = 56.0;

pub(super) fn figure(run: &Run) -> Figure {
    let summary = &run.summary;
    let words = run.words();
    let rows = rows(summary);
    let bottom = TOP + ROW * rows.len() as f64;
    let about = format!(
        "For each of {} rows: chip {} of an inference, what the policy saves against it, and what it loses against the reference.",
        rows.len(),
        words.cost
    );
    let mut svg = Svg::new("saving", "Saving and loss", &about, [880.0, bottom + 46.0]);

    let lows = rows.iter().filter_map(|row| row.saving.map(|(_, interval)| interval.low));
    let low = lows.fold(0.0, f64::min).clamp(-1.0, 0.0);
    let saved = Scale::linear([100.0 * low, 100.0], [330.0, 560.0]);
    let target =
        summary.constraint.max_energy_uj.is_none().then_some(summary.constraint.max_accuracy_drop);
    let drops = rows.iter().flat_map(|row| [Some(row.drop), row.bound]).flatten();
    let goals = [target, summary.constraint.guarantee].into_iter().flatten();
    let (least, most) =
        drops.chain(goals).fold((0.0_f64, 0.001_f64), |(a, b), d| (a.min(d), b.max(d)));
    let lost = Scale::linear([100.0 * least, 105.0 * most], [620.0, 850.0]);

    svg.text("th", Anchor::End, [300.0, 22.0], &format!("chip {}, {}", words.cost, words.unit));
    svg.text("th", Anchor::Start, [330.0, 22.0], "the policy saves, %");
    svg.text("th", Anchor::Start, [620.0, 22.0], "loss, points");
    for (scale, unit) in [(&saved, 4), (&lost, 5)] {
        let ticks = scale.ticks(unit);
        let decimals = Scale::decimals(&ticks);
        for &tick in &ticks {
            let x = scale.at(tick);
            svg.line(if tick == 0.0 { "axis" } else { "grid" }, [x, TOP - 12.0], [x, bottom]);
            let label = format!("{tick:.decimals$}").replace('-', "−");
            svg.text("t3", Anchor::Middle, [x, bottom + 16.0], &label);
        }
    }
    let goals = [("target", target), ("guarantee", summary.constraint.guarantee)];
    for (name, goal) in goals.into_iter().filter_map(|(name, goal)| Some((name, goal?))) {
        let x = lost.at(100.0 * goal);
        svg.line("goal", [x, TOP - 12.0], [x, bottom]);
        svg.text("t3", Anchor::Middle, [x, bottom + 32.0], name);
    }
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + ROW * (index as f64 + 0.5);
        let (mark, line, shape) = if index == 0 {
            svg.rect("shade", [0.0, y - ROW / 2.0], [880.0, ROW], "");
            ("chosen", "chosen-line", Mark::Star)
        } else {
            ("other", "other-line", Mark::Circle)
        };
        svg.text("t", Anchor::Start, [8.0, y - 2.0], row.name);
        svg.text("t3", Anchor::Start, [8.0, y + 13.0], &shortened(row.point, 34));
        svg.text("t", Anchor::End, [300.0, y + 4.0], &super::text::energy(row.cost));
        if let Some((saving, interval)) = row.saving {
            let [a, b, x] = [interval.low, interval.high, saving].map(|v| saved.at(100.0 * v));
            svg.line("chosen-line", [a, y], [b, y]);
            let tip = format!(
                "{} saved, {} to {} by what the profile's numbers may be",
                percent(saving),
                percent(interval.low),
                percent(interval.high)
            );
            svg.mark("chosen", Mark::Circle, [x, y], 5.0, &tip);
            let text = format!("{:.1} %", 100.0 * saving).replace('-', "−");
            svg.text("t", Anchor::Middle, [x, y - 9.0], &text);
        }
        let x = lost.at(100.0 * row.drop);
        if let Some(bound) = row.bound {
            let end = lost.at(100.0 * bound);
            svg.line(line, [x, y], [end, y]);
            svg.line(line, [end, y - 5.0], [end, y + 5.0]);
        }
        let certain = row
            .bound
            .map_or_else(String::new, |b| format!(", at most {} with confidence", loss(b)));
        svg.mark(mark, shape, [x, y], 5.0, &format!("loses {} points{certain}", loss(row.drop)));
    }
    let bars = match summary.constraint.test {
        Test::Conformal => "in expectation".to_owned(),
        _ => format!("with {} % confidence", round(100.0 * summary.constraint.confidence)),
    };
    let caption = format!(
        "Lines beside a saving: what it may be, by the uncertainty of the profile's numbers alone. Lines beside a loss end at the most that it is {bars}, by the {} samples. Loss is {} of the reference minus that of the row, on the {} test samples.",
        summary.constraint.demand().proof().name(),
        words.accuracy,
        count(summary.samples.test as u64),
    );
    Figure { name: "saving".to_owned(), svg: svg.finish(), caption }
}

/// The answer in one sentence, as HTML.
pub(super) fn sentence(run: &Run) -> String {
    let summary = &run.summary;
    let words = run.words();
    let policy = &summary.policy;
    let cost = words.cost(policy.energy_uj.chip);
    let target = summary.constraint.max_accuracy_drop;
    let missed = if summary.constraint.max_energy_uj.is_none() && policy.accuracy_drop > target {
        format!(
            ", more on these samples than the {} points that were asked for",
            round(100.0 * target)
        )
    } else {
        String::new()
    };
    let lost = loss(policy.accuracy_drop);
    let lost = match lost.strip_prefix('−') {
        Some(gain) => format!("gains <b>{gain} points</b>"),
        None => format!("loses <b>{lost} points</b>"),
    };
    let lost = format!(
        "{lost} of {} ({} against {} of the reference{missed})",
        words.accuracy,
        percent(policy.accuracy),
        percent(summary.reference.accuracy)
    );
    let bound = certainty(summary);
    if run.is_static() {
        let goal = goal(summary, words.unit);
        return format!(
            "A static bit-width is best here: <b>{}</b> for every input needs <b>{cost}</b> and {lost}; {bound}. No policy that changes widths was cheaper {goal}.{}",
            escape(&policy.last_resort.point),
            no_worse(run),
        );
    }
    let saving = summary.savings.vs_best_static;
    let interval = &summary.savings_interval.vs_best_static;
    let repeated = &summary.repeated;
    let mean = match repeated.n {
        0 => String::new(),
        n => format!(
            "{} on average over {n} random splits and ",
            signed(repeated.savings_mean.vs_best_static)
        ),
    };
    let doubt = if interval.low <= 0.0 && interval.high >= 0.0 {
        ", so the profile alone does not say whether anything is saved"
    } else {
        ""
    };
    format!(
        "An inference needs <b>{cost}</b>, <b>{} {} chip {} than the best static bit-width</b> ({}, {}); the saving is {mean}{} to {} by what the profile's numbers may be{doubt}; the policy {lost}, and {bound}.{}",
        percent(saving.abs()),
        if saving < 0.0 { "more" } else { "less" },
        words.cost,
        escape(&summary.best_static.point),
        words.cost(summary.best_static.energy_uj.chip),
        signed(interval.low),
        signed(interval.high),
        no_worse(run),
    )
}

/// What a policy does that loses no more than the best static point, with a space before it; empty where it is
/// the same one.
fn no_worse(run: &Run) -> String {
    let Some(other) = &run.summary.no_worse else { return String::new() };
    format!(
        " Where it is to lose no more than the best static bit-width (<code>--no-worse-than-static</code>), {} needs {} and loses {} points.",
        escape(&other.stages.join(" > ")),
        run.words().cost(other.energy_uj.chip),
        loss(other.accuracy_drop),
    )
}

/// What was asked for.
fn goal(summary: &Summary, unit: &str) -> String {
    let target = round(100.0 * summary.constraint.max_accuracy_drop);
    let no_worse =
        if summary.constraint.no_worse_than_static { " and no more than this point's" } else { "" };
    let expected = || format!("for an expected loss of at most {target} points{no_worse}");
    let budget = summary.constraint.max_energy_uj;
    budget.map_or_else(expected, |budget| format!("within {budget} {unit}"))
}

/// What is sure about the loss.
fn certainty(summary: &Summary) -> String {
    let constraint = &summary.constraint;
    let confidence = match constraint.test {
        Test::Conformal => "in expectation".to_owned(),
        _ => format!("with {} % confidence", round(100.0 * constraint.confidence)),
    };
    match (constraint.guarantee, summary.policy.drop_upper_bound) {
        (Some(drop), _) if summary.policy.certified => {
            format!(
                "it is <b>certified</b> that it loses at most {} points {confidence}",
                round(100.0 * drop)
            )
        }
        (Some(drop), Some(bound)) => format!(
            "it is <b>not certified</b>: a loss of at most {} points was asked for, and it loses at most {:.2} points {confidence}",
            round(100.0 * drop),
            100.0 * bound
        ),
        (None, Some(bound)) => format!("it loses at most {:.2} points {confidence}", 100.0 * bound),
        (_, None) => "how sure that is, no samples for certification say".to_owned(),
    }
}

/// What the sentence leaves out, as HTML.
pub(super) fn notes(run: &Run) -> String {
    let summary = &run.summary;
    let words = run.words();
    let repeated = &summary.repeated;
    let asked = match summary.constraint.max_energy_uj {
        Some(_) => format!("the least loss {}", goal(summary, words.unit)),
        None => format!("the least chip {} {}", words.cost, goal(summary, words.unit)),
    };
    let mut notes = vec![format!("Asked for: {asked}.")];
    if repeated.n > 0 {
        notes.push(format!(
            "Chosen anew on {} random splits of the same samples, policies lose {} points on average (standard error {:.2}). Judge by the means over splits: one split is luck.",
            repeated.n,
            loss(repeated.drop_mean),
            100.0 * repeated.drop_se
        ));
    }
    if !run.is_static() {
        let perfect = words.cost(summary.policy.oracle_energy_uj.chip);
        notes.push(format!("A perfect gate between the same stages would need {perfect}."));
    }
    if let Some(most) = &summary.savings_interval.vs_best_static.most {
        let most = escape(most);
        notes.push(format!("Of the profile's numbers <code>{most}</code> moves the saving most."));
    }
    if let Some(worst) = &summary.policy.worst_class {
        let lost = loss(worst.accuracy_drop);
        notes.push(format!("Of the classes, number {} loses most: {lost} points.", worst.class));
    }
    if let Some(latency) = &summary.policy.latency_us {
        notes.push(format!(
            "An inference takes {:.1} µs on average, and {:.1} µs where all stages run.",
            latency.mean, latency.worst
        ));
    }
    if let Some(samples) = summary.policy.samples_needed {
        notes.push(format!(
            "About {} samples for certification would prove the guarantee of this policy.",
            count(samples)
        ));
    }
    format!("<p>{}</p>\n", notes.join(" "))
}
