//! What happens at each stage: margins of right and wrong answers with the threshold, and who is handed
//! on.

use super::svg::{Anchor, Scale, Svg, escape};
use super::text::{count, percent};
use super::{Figure, Run};

/// Bars of a histogram.
const BINS: usize = 44;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 850.0;
/// Upper and lower end of the panels of right and of wrong answers.
const PANELS: [[f64; 2]; 2] = [[44.0, 184.0], [214.0, 314.0]];
/// Classes that are shown at most.
const MOST_CLASSES: usize = 20;

/// Where a histogram's margins lie, in units of the scores.
pub(super) struct Axis {
    /// The span of margins that is shown.
    pub(super) from: [f64; 2],
    /// Where it lies across the drawing.
    pub(super) to: [f64; 2],
    /// Edges of the bars.
    bins: Vec<f64>,
}

/// The axis of a stage. A bin begins at the threshold, where it lies within the span.
pub(super) fn axis(run: &Run, stage: usize) -> Axis {
    let this = &run.replay.stages[stage];
    let mut values: Vec<i32> = run.replay.reaching(stage).map(|s| this.confidence[s]).collect();
    values.sort_unstable();
    let real = |code: i32| f64::from(code) * this.score_scale;
    // A few far ones would press the rest together: they are counted in the last bin.
    let high = values.get(values.len().saturating_sub(1) * 199 / 200).map_or(1.0, |&v| real(v));
    let low = values.first().map_or(0.0, |&v| real(v)).min(0.0);
    let high = if high > low { high } else { low + 1.0 };
    let mut step = (high - low) / BINS as f64;
    let mut first = low;
    if let Some(threshold) = this.accept_at.map(real).filter(|t| (low..=high).contains(t)) {
        // So many whole bins below the threshold, at least one where anything lies there.
        let below = ((threshold - low) / step).ceil();
        if below >= 1.0 {
            step = (threshold - low) / below;
        }
        first = threshold - below * step;
    }
    let count = ((high - first) / step).ceil().clamp(1.0, 2.0 * BINS as f64) as usize;
    let bins: Vec<f64> = (0..=count).map(|i| first + i as f64 * step).collect();
    Axis { from: [first, bins[count]], to: [LEFT, RIGHT], bins }
}

/// Margins of the answers of one stage to the samples that reach it.
pub(super) fn histogram(run: &Run, stage: usize) -> Figure {
    let replay = &run.replay;
    let this = &replay.stages[stage];
    let name = &run.stage_names()[stage];
    let axis = axis(run, stage);
    let scale = Scale::linear(axis.from, axis.to);
    let bins = axis.bins.len() - 1;
    let real = |sample: usize| f64::from(this.confidence[sample]) * this.score_scale;
    let threshold = this.accept_at.map(|code| f64::from(code) * this.score_scale);
    let mut counts = [vec![0_usize; bins], vec![0_usize; bins]];
    // Of right and of wrong answers: accepted, handed on.
    let mut split = [[0_usize; 2]; 2];
    for sample in replay.reaching(stage) {
        let wrong = usize::from(!replay.is_right(stage, sample));
        let bin = axis.bins.partition_point(|&edge| edge <= real(sample) + 1e-12).saturating_sub(1);
        counts[wrong][bin.min(bins - 1)] += 1;
        split[wrong][usize::from(replay.answered_by[sample] > stage)] += 1;
    }
    let learned = run.policy.stages.get(stage).is_some_and(|s| s.tables.is_some());
    let measure = if learned { "margin less the gate's entries" } else { "score margin" };
    let about = format!(
        "Histograms of the {measure} of {name}: {} right answers, {} wrong ones. {}",
        split[0].iter().sum::<usize>(),
        split[1].iter().sum::<usize>(),
        threshold.map_or_else(String::new, |t| format!("Accepted from {t:.4} on."))
    );
    let id = format!("stage-{}", stage + 1);
    let title = format!("Stage {}: {name}", stage + 1);
    let mut svg = Svg::new(&id, &title, &about, [880.0, 364.0]);
    let [_, [_, bottom]] = PANELS;
    if let Some(threshold) = threshold {
        let x = scale.at(threshold);
        // The explorer moves these three marks, in this order.
        svg.begin("gate");
        svg.rect("shade", [LEFT, 26.0], [x - LEFT, bottom - 26.0], "");
        svg.line("gate", [x, 26.0], [x, bottom]);
        // The label keeps clear of the drawing's edge.
        let (anchor, dx) =
            if x < RIGHT - 170.0 { (Anchor::Start, 6.0) } else { (Anchor::End, -6.0) };
        let text = if threshold > axis.from[1] {
            "all are handed on".to_owned()
        } else {
            format!("accepted from {threshold:.4}")
        };
        svg.text("th", anchor, [x + dx, 22.0], &text);
        svg.end();
    }
    let kinds = [("right", "right answers"), ("wrong", "wrong answers")];
    for (((class, label), counts), ([top, low], split)) in
        kinds.into_iter().zip(&counts).zip(PANELS.into_iter().zip(split))
    {
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        let up = Scale::linear([0.0, most as f64], [low, top + 18.0]);
        for tick in up.ticks(3).into_iter().filter(|tick| tick.fract() == 0.0) {
            let y = up.at(tick);
            svg.line("grid", [LEFT, y], [RIGHT, y]);
            svg.text("t3", Anchor::End, [LEFT - 8.0, y + 4.0], &count(tick as u64));
        }
        for (bin, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let [a, b] = [bin, bin + 1].map(|edge| scale.at(axis.bins[edge]));
            let top = up.at(n as f64);
            let tip =
                format!("{n} {label} from {:.3} to {:.3}", axis.bins[bin], axis.bins[bin + 1]);
            svg.rect(class, [a + 0.5, top], [b - a - 1.0, low - top], &tip);
        }
        svg.line("axis", [LEFT, low], [RIGHT, low]);
        let [accepted, handed_on] = split.map(|n| count(n as u64));
        let text = match threshold {
            Some(_) => format!("{label}: {accepted} accepted, {handed_on} handed on"),
            None => format!("{label}: {accepted}"),
        };
        let y = if class == "right" { top + 12.0 } else { top - 2.0 };
        svg.begin(class);
        svg.text("t", Anchor::End, [RIGHT, y], &text);
        svg.end();
    }
    for tick in scale.ticks(8) {
        let ticks = scale.ticks(8);
        let label = format!("{tick:.*}", Scale::decimals(&ticks)).replace('-', "−");
        svg.text("t3", Anchor::Middle, [scale.at(tick), bottom + 16.0], &label);
    }
    let across = format!("{measure}, in units of the scores");
    svg.text("t2", Anchor::Middle, [f64::midpoint(LEFT, RIGHT), bottom + 38.0], &across);
    let reached = replay.reaching(stage).count();
    let share = percent(replay.share(replay.reaching(stage)));
    let mixed = run.summary.class_mix.is_some();
    let weighted = if mixed { " by weight" } else { "" };
    let last = if threshold.is_none() { ", and answers them whatever its margin" } else { "" };
    let caption = format!(
        "<b>Stage {}, {}</b>, sees {} of the {} test samples ({share}{weighted}){last}. The two panels have scales of their own; margins beyond the axis are counted in the last bar.",
        stage + 1,
        escape(name),
        count(reached as u64),
        count(replay.samples() as u64),
    );
    Figure { name: id, svg: svg.finish(), caption }
}

/// How much of each class is handed on.
pub(super) fn escalation(run: &Run) -> Figure {
    let replay = &run.replay;
    let gates = replay.stages.len() - 1;
    // Of each class: samples, handed on by each gate, right at the first stage, right at last.
    let mut classes = vec![(0_usize, vec![0_usize; gates], 0_usize, 0_usize); replay.classes];
    for sample in 0..replay.samples() {
        let Some((n, handed_on, first, last)) = classes.get_mut(replay.labels[sample] as usize)
        else {
            continue;
        };
        *n += 1;
        for count in &mut handed_on[..replay.answered_by[sample]] {
            *count += 1;
        }
        *first += usize::from(replay.is_right(0, sample));
        *last += usize::from(replay.predicted(sample) == replay.labels[sample]);
    }
    let share = |part: usize, n: usize| part as f64 / n.max(1) as f64;
    let mut shown: Vec<usize> = (0..classes.len()).filter(|&c| classes[c].0 > 0).collect();
    let all = shown.len();
    if all > MOST_CLASSES {
        // Shares of few samples say little: the most samples, not the largest share.
        shown.sort_by_key(|&class| (std::cmp::Reverse(classes[class].1[0]), class));
        shown.truncate(MOST_CLASSES);
    }
    let most = shown.iter().map(|&c| share(classes[c].1[0], classes[c].0)).fold(0.001, f64::max);
    let bottom = 44.0 + 22.0 * shown.len() as f64;
    let scale = Scale::linear([0.0, 100.0 * most], [110.0, 560.0]);
    let about = format!(
        "For {} of {all} classes, the share of their test samples that is handed on, and accuracy before and after.",
        shown.len()
    );
    let mut svg = Svg::new("escalation", "Who is handed on", &about, [880.0, bottom + 40.0]);
    svg.text("th", Anchor::Start, [8.0, 24.0], "label");
    svg.text("th", Anchor::Start, [110.0, 24.0], "handed on, % of the class");
    svg.text("th", Anchor::End, [720.0, 24.0], "first stage alone, %");
    svg.text("th", Anchor::End, [850.0, 24.0], "policy, %");
    let ticks = scale.ticks(6);
    let decimals = Scale::decimals(&ticks);
    for &tick in &ticks {
        let x = scale.at(tick);
        svg.line(if tick == 0.0 { "axis" } else { "grid" }, [x, 36.0], [x, bottom]);
        svg.text("t3", Anchor::Middle, [x, bottom + 16.0], &format!("{tick:.decimals$}"));
    }
    for (row, &class) in shown.iter().enumerate() {
        let y = 44.0 + 22.0 * row as f64;
        let (n, handed_on, first, last) = &classes[class];
        svg.text("t", Anchor::Start, [8.0, y + 13.0], &format!("class {class}"));
        for (gate, &count) in handed_on.iter().enumerate() {
            let rate = share(count, *n);
            let tip = format!("stage {} hands on {} of class {class}", gate + 1, percent(rate));
            // A later gate's share lies within the earlier one's.
            let inset = 4.0 * gate as f64;
            let class = if gate + 1 == gates { "chosen" } else { "later" };
            let size = [scale.at(100.0 * rate) - 110.0, 16.0 - 2.0 * inset];
            svg.rect(class, [110.0, y + 1.0 + inset], size, &tip);
        }
        let x = scale.at(100.0 * share(handed_on[0], *n));
        svg.text(
            "t2",
            Anchor::Start,
            [x + 6.0, y + 13.0],
            &format!("{:.1}", 100.0 * share(handed_on[0], *n)),
        );
        for (x, part) in [(720.0, first), (850.0, last)] {
            svg.text("t", Anchor::End, [x, y + 13.0], &format!("{:.1}", 100.0 * share(*part, *n)));
        }
    }
    let which = if all > MOST_CLASSES {
        format!("The {MOST_CLASSES} of {all} classes of which most samples are handed on.")
    } else {
        format!("All {all} classes.")
    };
    let third = if gates > 1 { " Narrow bars: what the second stage hands on again." } else { "" };
    let caption = format!(
        "{which}{third} A class has about {} test samples, so that shares of single classes are rough.",
        count((replay.samples() / all.max(1)) as u64)
    );
    Figure { name: "escalation".to_owned(), svg: svg.finish(), caption }
}
