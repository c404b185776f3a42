//! Which classes are taken for which, before and after.

use std::collections::BTreeMap;

use super::svg::{Anchor, Scale, Svg};
use super::text::percent;
use super::{Figure, Run};

/// Whole matrices are drawn up to so many classes.
const MOST_CLASSES: usize = 20;
/// Pairs that are shown of more.
const MOST_PAIRS: usize = 20;

/// Confusion of the first stage alone, or of the reference where there is no other, and of the policy.
pub(super) fn figure(run: &Run) -> Figure {
    let replay = &run.replay;
    let (before, name) = if run.is_static() {
        (&replay.reference, format!("reference ({})", run.summary.reference.kind))
    } else {
        (&replay.stages[0].predicted, "first stage alone".to_owned())
    };
    let after: Vec<u32> = (0..replay.samples()).map(|sample| replay.predicted(sample)).collect();
    let after_name =
        if run.is_static() { run.stage_names().swap_remove(0) } else { "policy".to_owned() };
    let sides = [(name, before), (after_name, &after)].map(|(name, predicted)| {
        let right = |&sample: &usize| predicted[sample] == replay.labels[sample];
        let right = percent(replay.share((0..replay.samples()).filter(right)));
        Side { name, right, counts: counts(&replay.labels, predicted) }
    });
    if replay.classes <= MOST_CLASSES { matrices(replay.classes, &sides) } else { pairs(&sides) }
}

/// One of the two that are compared.
struct Side {
    name: String,
    /// Share of right answers.
    right: String,
    counts: Counts,
}

/// How often a label, first, was answered with a class, second.
type Counts = BTreeMap<(u32, u32), usize>;

fn counts(labels: &[u32], predicted: &[u32]) -> Counts {
    let mut counts = Counts::new();
    for pair in labels.iter().copied().zip(predicted.iter().copied()) {
        *counts.entry(pair).or_default() += 1;
    }
    counts
}

fn wrong(counts: &Counts) -> impl Iterator<Item = (&(u32, u32), &usize)> {
    counts.iter().filter(|((label, answer), _)| label != answer)
}

fn matrices(classes: usize, sides: &[Side; 2]) -> Figure {
    let cell = (370.0 / classes as f64).min(56.0);
    let most =
        sides.iter().flat_map(|side| wrong(&side.counts)).map(|(_, &n)| n).max().unwrap_or(1);
    let side = cell * classes as f64;
    let mut svg = Svg::new(
        "confusion",
        "Confusion before and after",
        "Two tables: how often each label, by row, was answered with each class, by column.",
        [880.0, side + 92.0],
    );
    for (Side { name, right, counts }, left) in sides.iter().zip([50.0, 490.0]) {
        let top = 56.0;
        let title = format!("{name}: {right} right");
        svg.text("th", Anchor::Start, [left, 20.0], &super::svg::shortened(&title, 56));
        svg.text("t3", Anchor::Start, [left, 38.0], "answer →");
        svg.text("t3", Anchor::End, [left - 8.0, 38.0], "label ↓");
        for class in 0..classes {
            let at = cell * (class as f64 + 0.5);
            svg.text("t3", Anchor::End, [left - 8.0, top + at + 4.0], &class.to_string());
            svg.text("t3", Anchor::Middle, [left + at, top - 5.0], &class.to_string());
            svg.line(
                "grid",
                [left, top + cell * class as f64],
                [left + side, top + cell * class as f64],
            );
        }
        svg.line("grid", [left, top + side], [left + side, top + side]);
        for (&(label, answer), &n) in counts {
            let [x, y] = [answer, label].map(|c| cell * f64::from(c));
            let tip = format!("label {label} answered with {answer}: {n} times");
            let corner = [left + x + 0.5, top + y + 0.5];
            let size = [cell - 1.0, cell - 1.0];
            if label == answer {
                svg.shaded("cell", corner, size, 0.12, &tip);
            } else {
                svg.shaded("bad", corner, size, 0.08 + 0.52 * n as f64 / most as f64, &tip);
            }
            if cell >= 17.0 {
                let middle = [left + x + cell / 2.0, top + y + cell / 2.0 + 4.0];
                svg.text(
                    if cell < 24.0 { "t4" } else { "t3" },
                    Anchor::Middle,
                    middle,
                    &n.to_string(),
                );
            }
        }
    }
    let caption = "Numbers of test samples; right answers on the diagonal. Both tables have one scale: the deeper the colour, the more often confused.";
    Figure { name: "confusion".to_owned(), svg: svg.finish(), caption: caption.to_owned() }
}

fn pairs(sides: &[Side; 2]) -> Figure {
    let [before, after] = sides.each_ref().map(|side| &side.counts);
    let of = |counts: &Counts, pair: (u32, u32)| counts.get(&pair).copied().unwrap_or(0);
    let mut pairs: Vec<(u32, u32)> =
        wrong(before).chain(wrong(after)).map(|(&pair, _)| pair).collect();
    pairs.sort_unstable();
    pairs.dedup();
    let all = pairs.len();
    pairs.sort_by_key(|&pair| {
        let [a, b] = [before, after].map(|counts| of(counts, pair));
        (std::cmp::Reverse(a.max(b)), std::cmp::Reverse(a + b), pair)
    });
    pairs.truncate(MOST_PAIRS);
    let most = pairs.iter().map(|&p| of(before, p).max(of(after, p))).max().unwrap_or(1);
    let bottom = 48.0 + 26.0 * pairs.len() as f64;
    let mut svg = Svg::new(
        "confusion",
        "The most confused classes, before and after",
        &format!("The {} of {all} confused pairs of classes that occur most.", pairs.len()),
        [880.0, bottom + 24.0],
    );
    let [x, y] = sides.each_ref().map(|side| format!("{} ({} right)", side.name, side.right));
    svg.rect("other", [230.0, 14.0], [12.0, 12.0], "");
    svg.text("t", Anchor::Start, [248.0, 24.0], &x);
    svg.rect("chosen", [540.0, 14.0], [12.0, 12.0], "");
    svg.text("t", Anchor::Start, [558.0, 24.0], &y);
    svg.text("th", Anchor::Start, [8.0, 24.0], "label → answer");
    let scale = Scale::linear([0.0, most as f64], [230.0, 820.0]);
    for (row, &pair) in pairs.iter().enumerate() {
        let y = 44.0 + 26.0 * row as f64;
        svg.text("t", Anchor::Start, [8.0, y + 15.0], &format!("class {} → {}", pair.0, pair.1));
        for (class, counts, dy) in [("other", before, 0.0), ("chosen", after, 10.0)] {
            let n = of(counts, pair);
            let end = scale.at(n as f64);
            svg.rect(class, [230.0, y + dy + 1.0], [end - 230.0, 9.0], &format!("{n} times"));
            svg.text("t4", Anchor::Start, [end + 5.0, y + dy + 9.0], &n.to_string());
        }
    }
    svg.line("axis", [230.0, 38.0], [230.0, bottom]);
    let caption = format!(
        "Numbers of test samples, of the {} pairs out of {all} that are confused most, before or after.",
        pairs.len()
    );
    Figure { name: "confusion".to_owned(), svg: svg.finish(), caption }
}
