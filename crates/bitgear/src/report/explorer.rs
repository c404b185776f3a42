//! The explorer: other thresholds and other targets, by a script from data in the page.

use serde::Serialize;

use super::frontier::{Plane, places};
use super::stages::axis;
use super::svg::{Anchor, Mark, Svg};
use super::text::{count, percent};
use super::{Figure, Run};
use crate::summary::FrontierPoint;

/// The script, which needs nothing but the page.
pub(super) const SCRIPT: &str = include_str!("explorer.js");
/// Points of the curve at most.
const CURVE: usize = 240;

/// What the script knows.
#[derive(Serialize)]
struct Data<'r> {
    /// What the samples weigh that the reference answers rightly.
    reference: i64,
    unit: &'static str,
    stages: Vec<StageData>,
    /// Name and chip energy of the best static point.
    best_static: (&'r str, f64),
    /// What each stage compares with its threshold, by rising value of the first: that one as
    /// differences to the sample before.
    confidences: Vec<Vec<i64>>,
    /// For each sample a digit whose bits say which stages are right, the first stage's the lowest.
    right: String,
    /// What each sample weighs, where not all count alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Vec<i64>>,
    targets: &'r [FrontierPoint],
    places: Vec<[f64; 2]>,
    /// The figure's axes: value at both ends, place of both ends.
    plane: Option<[[[f64; 2]; 2]; 2]>,
    /// Axes of the histograms.
    axes: Vec<[[f64; 2]; 2]>,
}

#[derive(Serialize)]
struct StageData {
    chip: f64,
    total: f64,
    score_scale: f64,
    /// `None` for the last resort.
    accept_at: Option<i32>,
}

/// Samples by rising confidence of the first stage.
fn order(run: &Run) -> Vec<usize> {
    let mut order: Vec<usize> = (0..run.replay.samples()).collect();
    order.sort_by_key(|&sample| (run.replay.stages[0].confidence[sample], sample));
    order
}

/// The data as JSON that may stand in a page's script.
pub(super) fn data(run: &Run) -> String {
    let Run { summary, policy, replay } = run;
    let order = order(run);
    let gates = replay.stages.len() - 1;
    let confidences = replay.stages[..gates].iter().enumerate().map(|(index, stage)| {
        let mut before = 0;
        let code = |&sample: &usize| {
            let value = i64::from(stage.confidence[sample]);
            let difference = value - before;
            if index == 0 {
                before = value;
            }
            difference
        };
        order.iter().map(code).collect()
    });
    let right = order.iter().map(|&sample| {
        let bits = (0..replay.stages.len()).map(|s| u8::from(replay.is_right(s, sample)) << s);
        char::from(b'0' + bits.sum::<u8>())
    });
    let reference = (0..replay.samples()).filter(|&s| replay.reference[s] == replay.labels[s]);
    let weighted = replay.weights.iter().any(|&weight| weight != 1);
    let data = Data {
        reference: reference.map(|sample| replay.weights[sample]).sum(),
        unit: run.words().unit,
        stages: replay
            .stages
            .iter()
            .zip(&policy.stage_energy_uj)
            .map(|(stage, energy)| StageData {
                chip: energy.chip,
                total: energy.total,
                score_scale: stage.score_scale,
                accept_at: stage.accept_at,
            })
            .collect(),
        best_static: (&summary.best_static.point, summary.best_static.energy_uj.chip),
        confidences: confidences.collect(),
        right: right.collect(),
        weights: weighted.then(|| order.iter().map(|&sample| replay.weights[sample]).collect()),
        targets: &summary.frontier,
        places: places(summary),
        plane: (gates > 0).then(|| {
            let (plane, _) = curve(run);
            [plane.x, plane.y].map(|scale| scale.ends())
        }),
        axes: (0..gates).map(|stage| axis(run, stage)).map(|axis| [axis.from, axis.to]).collect(),
    };
    let text = serde_json::to_string(&data).unwrap_or_default();
    // Nothing in it ends the script element.
    text.replace('<', "\\u003c")
}

/// What a policy with these thresholds does on the test samples: share of right answers, share that
/// each stage hands on, mean chip energy.
#[cfg(test)]
pub(super) fn outcome(run: &Run, accept_at: &[i32]) -> (f64, Vec<f64>, f64) {
    let (replay, energies) = (&run.replay, &run.policy.stage_energy_uj);
    let mut run_by = vec![0; replay.stages.len()];
    let mut right = 0;
    for (sample, weight) in replay.weights.iter().enumerate() {
        let gates = accept_at.iter().zip(&replay.stages);
        let stage = gates.take_while(|(at, s)| s.confidence[sample] < **at).count();
        right += weight * i64::from(replay.is_right(stage, sample));
        for sum in &mut run_by[..=stage] {
            *sum += weight;
        }
    }
    let n = replay.weights.iter().sum::<i64>() as f64;
    let shares: Vec<f64> = run_by.iter().map(|&sum| sum as f64 / n).collect();
    let energy = shares.iter().zip(energies).map(|(share, energy)| share * energy.chip).sum();
    (right as f64 / n, shares[1..].to_vec(), energy)
}

/// Accuracy and energy for every threshold of the first stage, the others as chosen.
fn curve(run: &Run) -> (Plane, Vec<[f64; 2]>) {
    let Run { summary, policy, replay } = run;
    let weight = |sample: usize| replay.weights[sample] as f64;
    let n = replay.weights.iter().sum::<i64>() as f64;
    let energies: Vec<f64> = policy.stage_energy_uj.iter().map(|e| e.chip).collect();
    // What becomes of a sample that the first stage hands on: right or not, energy beyond the first.
    let later = |sample: usize| {
        let rest = &replay.stages[1..];
        let unsure = |stage: &&super::replay::Stage| {
            stage.accept_at.is_some_and(|at| stage.confidence[sample] < at)
        };
        let stage = 1 + rest.iter().take_while(unsure).count();
        (replay.is_right(stage, sample), energies[1..=stage].iter().sum::<f64>())
    };
    let order = order(run);
    let answered = order.iter().filter(|&&s| replay.is_right(0, s));
    let mut right: f64 = answered.map(|&s| weight(s)).sum();
    let mut energy = n * energies[0];
    let mut points = vec![[energy / n, right / n]];
    for (index, &sample) in order.iter().enumerate() {
        let (mended, cost) = later(sample);
        let before = replay.is_right(0, sample);
        right += weight(sample) * (f64::from(u8::from(mended)) - f64::from(u8::from(before)));
        energy += weight(sample) * cost;
        let confidence = |sample: usize| replay.stages[0].confidence[sample];
        // A threshold can't part equal confidences.
        if order.get(index + 1).is_none_or(|&next| confidence(next) > confidence(sample)) {
            points.push([energy / n, right / n]);
        }
    }
    let [xs, ys] = [0, 1].map(|axis| points.iter().map(|p| p[axis]).collect::<Vec<f64>>());
    let (low, high) = xs.iter().fold((f64::MAX, f64::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    // A static point that lies far away would press the curve together.
    let best = &summary.best_static;
    let near = best.energy_uj.chip < high + 0.3 * (high - low);
    let low = if near { low.min(best.energy_uj.chip) } else { low };
    let high = if near { high.max(best.energy_uj.chip) } else { high };
    let ys: Vec<f64> = ys.into_iter().chain(near.then_some(best.accuracy)).collect();
    (Plane::new(summary, &[low, high], &ys, false), points)
}

/// Accuracy against energy as the first threshold moves.
pub(super) fn figure(run: &Run) -> Figure {
    let summary = &run.summary;
    let words = run.words();
    let (plane, points) = curve(run);
    let mut svg = Svg::new(
        "threshold",
        &format!(
            "Every threshold of the first stage: {} against chip {}",
            words.accuracy, words.cost
        ),
        "A curve from accepting everything at the first stage, on the left, to handing on everything, on the right.",
        [880.0, 452.0],
    );
    plane.draw(&mut svg, summary, words);
    let step = points.len().div_ceil(CURVE);
    let ends = points.len() - 1;
    let kept = points.iter().enumerate().filter(|(i, _)| i.is_multiple_of(step) || *i == ends);
    let line: Vec<[f64; 2]> =
        kept.map(|(_, &[energy, accuracy])| plane.at(energy, accuracy).0).collect();
    svg.begin("curve");
    svg.polyline("chosen-line", &line);
    svg.end();
    let best = &summary.best_static;
    let policy = &summary.policy;
    let (at, _) = plane.at(policy.energy_uj.chip, policy.accuracy);
    svg.mark("chosen", Mark::Star, at, 7.0, &format!("chosen: {}", percent(policy.accuracy)));
    svg.text("th", Anchor::Start, [at[0] + 14.0, at[1] + 20.0], "chosen");
    if plane.x.ends()[0][1] >= best.energy_uj.chip {
        let (at, _) = plane.at(best.energy_uj.chip, best.accuracy);
        svg.mark("other", Mark::Diamond, at, 4.5, &format!("best static: {}", best.point));
        svg.text("t3", Anchor::Middle, [at[0], at[1] - 10.0], "best static");
    }
    let (at, _) = plane.at(policy.energy_uj.chip, policy.accuracy);
    svg.begin("here");
    svg.mark("ring", Mark::Circle, at, 11.0, "");
    svg.end();
    let others = match run.replay.stages.len() {
        ..=2 => "",
        3 => ", the second one's as chosen",
        _ => ", the others as chosen",
    };
    let caption = format!(
        "The policy's stages at every threshold of the first{others}, on the {} test samples. A threshold picked here was picked on the test samples: prove it on new ones with <code>bitgear certify</code> before you rely on it.",
        count(run.replay.samples() as u64)
    );
    Figure { name: "threshold".to_owned(), svg: svg.finish(), caption }
}

/// The slider for targets; the script shows it.
pub(super) fn targets(run: &Run) -> String {
    let targets = &run.summary.frontier;
    let asked = run.summary.constraint.max_accuracy_drop;
    let Some(index) = targets.iter().position(|t| t.max_accuracy_drop == asked) else {
        return String::new();
    };
    format!(
        r#"<div class="explorer" id="targets" hidden>
<label>allowed loss <input type="range" id="target" min="0" max="{}" value="{index}" step="1"></label>
<output id="target-value"></output>
<dl class="figures" aria-live="polite">
<div><dt>would be chosen</dt><dd data-target="stages"></dd></div>
<div><dt>loss</dt><dd data-target="drop"></dd></div>
<div><dt>chip {cost}</dt><dd data-target="chip"></dd></div>
<div><dt>handed on</dt><dd data-target="rates"></dd></div>
<div><dt>best static</dt><dd data-target="static"></dd></div>
<div><dt>saved against it</dt><dd data-target="saving"></dd></div>
</dl></div>
"#,
        targets.len() - 1,
        cost = run.words().cost,
    )
}

/// The sliders for thresholds; the script shows them.
pub(super) fn thresholds(run: &Run) -> String {
    let gates = run.replay.stages.len() - 1;
    let sliders: Vec<String> = (1..=gates)
        .map(|stage| {
            format!(
                r#"<p><label>threshold of stage {stage} <input type="range" id="threshold-{stage}" min="0" max="0" value="0" step="1"></label> <output id="threshold-{stage}-value"></output></p>
"#
            )
        })
        .collect();
    format!(
        r#"<div class="explorer sticky" id="thresholds" hidden>
{}<dl class="figures" aria-live="polite">
<div><dt>{accuracy}</dt><dd data-out="accuracy"></dd></div>
<div><dt>loss</dt><dd data-out="drop"></dd></div>
<div><dt>chip {cost}</dt><dd data-out="chip"></dd></div>
<div><dt>with off-chip traffic</dt><dd data-out="total"></dd></div>
<div><dt>handed on</dt><dd data-out="rates"></dd></div>
<div><dt>saved against best static</dt><dd data-out="saving"></dd></div>
</dl><p><button type="button" id="reset">as chosen</button></p></div>
"#,
        sliders.concat(),
        accuracy = run.words().accuracy,
        cost = run.words().cost,
    )
}
