//! Where the energy goes.

use super::svg::{Anchor, Scale, Svg, shortened};
use super::text::percent;
use super::{Figure, Run};
use crate::summary::{LayerEnergy, StageEnergy};

/// Layers that have a row of their own.
const MOST_LAYERS: usize = 40;
/// What energy goes into: class of the marks, name.
const PARTS: [(&str, &str); 5] = [
    ("mac", "MACs"),
    ("memory", "on-chip memory"),
    ("leakage", "leakage"),
    ("offchip", "off chip"),
    ("change", "changes of mode and weights"),
];

/// A MAC's name where its energy holds more than itself.
const WHOLE: &str = "MACs (whole chip)";

/// Energy of each of [`PARTS`].
type Parts = [f64; 5];

fn of_layer(layer: &LayerEnergy) -> Parts {
    [layer.compute_uj, layer.memory_uj, layer.leakage_uj, layer.offchip_uj, 0.0]
}

fn add(sum: Parts, more: Parts) -> Parts {
    [0, 1, 2, 3, 4].map(|i| sum[i] + more[i])
}

fn of_stage(stage: &StageEnergy) -> Parts {
    let rest = [0.0, 0.0, 0.0, stage.boundary_uj, stage.transitions_uj];
    stage.layers.iter().map(of_layer).fold(rest, add)
}

/// The share of all inputs that each stage runs for.
fn shares(run: &Run) -> impl Iterator<Item = f64> + '_ {
    std::iter::once(1.0).chain(run.summary.policy.escalation_rates.iter().copied())
}

/// A bar of parts; what is less than a pixel has no room.
fn bar(svg: &mut Svg, parts: Parts, scale: &Scale, [y, height]: [f64; 2], unit: &str) {
    let mut sum = 0.0;
    for ((class, name), part) in PARTS.into_iter().zip(parts) {
        let [from, to] = [sum, sum + part].map(|value| scale.at(value));
        sum += part;
        if to - from > 0.05 {
            let tip = format!("{name}: {part:.4} {unit}");
            svg.rect(class, [from, y], [to - from, height], &tip);
        }
    }
}

/// Names of the parts that occur.
fn legend(run: &Run, svg: &mut Svg, all: Parts, [mut x, y]: [f64; 2]) {
    for ((class, name), _) in PARTS.into_iter().zip(all).filter(|(_, part)| *part > 0.0) {
        let chip = run.summary.mac_holds.len() > 1 && run.words().cost == "energy";
        let whole = class == "mac" && chip;
        let name = if whole { WHOLE } else { name };
        svg.rect(class, [x, y - 10.0], [12.0, 12.0], "");
        svg.text("t2", Anchor::Start, [x + 18.0, y], name);
        x += 40.0 + 6.3 * name.len() as f64;
    }
}

fn grid(svg: &mut Svg, scale: &Scale, ticks: usize, [top, bottom]: [f64; 2]) {
    let ticks = scale.ticks(ticks);
    let decimals = Scale::decimals(&ticks);
    for &tick in &ticks {
        let x = scale.at(tick);
        svg.line(if tick == 0.0 { "axis" } else { "grid" }, [x, top], [x, bottom]);
        svg.text("t3", Anchor::Middle, [x, bottom + 16.0], &format!("{tick:.decimals$}"));
    }
}

/// What each stage adds to a mean inference.
pub(super) fn stages(run: &Run) -> Figure {
    let words = run.words();
    let stages: Vec<(Parts, f64)> =
        run.summary.stage_energies.iter().map(of_stage).zip(shares(run)).collect();
    let mean = |(parts, share): &(Parts, f64)| parts.map(|part| part * share);
    let sum = |parts: Parts| parts.iter().sum::<f64>();
    let most = stages.iter().map(|stage| sum(mean(stage))).fold(0.0, f64::max);
    let total: f64 = stages.iter().map(|stage| sum(mean(stage))).sum();
    let bottom = 44.0 + 46.0 * stages.len() as f64;
    let mut svg = Svg::new(
        "energy-stages",
        &format!("Mean {} of an inference by stage", words.cost),
        &format!("One bar for each of {} stages, weighted with how often it runs.", stages.len()),
        [880.0, bottom + 44.0],
    );
    let scale = Scale::linear([0.0, most], [330.0, 740.0]);
    grid(&mut svg, &scale, 6, [36.0, bottom]);
    legend(run, &mut svg, stages.iter().map(mean).fold([0.0; 5], add), [330.0, 22.0]);
    for (index, (stage, name)) in stages.iter().zip(run.stage_names()).enumerate() {
        let y = 44.0 + 46.0 * index as f64;
        let parts = mean(stage);
        svg.text(
            "t",
            Anchor::Start,
            [8.0, y + 14.0],
            &format!("{} {}", index + 1, shortened(&name, 46)),
        );
        let runs = format!("runs for {}, {} each time", percent(stage.1), words.cost(sum(stage.0)));
        svg.text("t3", Anchor::Start, [8.0, y + 30.0], &runs);
        bar(&mut svg, parts, &scale, [y + 4.0, 26.0], words.unit);
        let end = scale.at(sum(parts));
        let share = percent(sum(parts) / total);
        svg.text(
            "t",
            Anchor::Start,
            [end + 8.0, y + 21.0],
            &format!("{:.3} ({share})", sum(parts)),
        );
    }
    let across =
        format!("{} of a mean inference with off-chip traffic, {}", words.cost, words.unit);
    svg.text("t2", Anchor::Middle, [535.0, bottom + 36.0], &across);
    let caption = format!(
        "How much each stage adds to a mean inference: what it costs times how often it runs. Together {}.",
        words.cost(total)
    );
    Figure { name: "energy-stages".to_owned(), svg: svg.finish(), caption }
}

/// What each layer costs in each stage, each time it runs.
pub(super) fn layers(run: &Run) -> Figure {
    let words = run.words();
    let stages = &run.summary.stage_energies;
    let (shown, rest) = dearest(stages);
    let rows = shown.len() + usize::from(rest > 0);
    let bottom = 62.0 + 20.0 * rows as f64;
    let mut svg = Svg::new(
        "energy-layers",
        &format!("{} by layer", super::frontier::capital(words.cost)),
        &format!(
            "For each MAC layer, what it costs in each of {} stages when that runs.",
            stages.len()
        ),
        [880.0, bottom + 44.0],
    );
    let sum = |parts: Parts| parts.iter().sum::<f64>();
    let others = |stage: &StageEnergy| {
        let hidden = stage.layers.iter().enumerate().filter(|(layer, _)| !shown.contains(layer));
        hidden.map(|(_, layer)| of_layer(layer)).fold([0.0; 5], add)
    };
    let single =
        stages.iter().flat_map(|s| shown.iter().map(|&layer| sum(of_layer(&s.layers[layer]))));
    let most = single.chain(stages.iter().map(|s| sum(others(s)))).fold(0.0, f64::max);
    let all = stages.iter().flat_map(|s| &s.layers).map(of_layer).fold([0.0; 5], add);
    legend(run, &mut svg, all, [210.0, 18.0]);
    svg.text("th", Anchor::Start, [8.0, 44.0], "layer");
    let width = 660.0 / stages.len().max(1) as f64;
    for (index, stage) in stages.iter().enumerate() {
        let left = 210.0 + width * index as f64;
        let scale = Scale::linear([0.0, most], [left + 44.0, left + width - 14.0]);
        svg.text("th", Anchor::Start, [left, 44.0], &format!("bits, stage {}", index + 1));
        grid(&mut svg, &scale, 10 / stages.len().max(1), [54.0, bottom]);
        for (row, &layer) in shown.iter().enumerate() {
            let y = 62.0 + 20.0 * row as f64;
            let layer = &stage.layers[layer];
            let LayerEnergy { weights: w, activations: a, .. } = layer;
            let bits = if w == a { w.to_string() } else { format!("{w}/{a}") };
            let parts = of_layer(layer);
            if sum(parts) > 0.0 {
                svg.text("t3", Anchor::Start, [left, y + 11.0], &bits);
                bar(&mut svg, parts, &scale, [y + 1.0, 13.0], words.unit);
            } else {
                svg.text("t3", Anchor::Start, [left, y + 11.0], "shared");
            }
        }
        if rest > 0 {
            bar(&mut svg, others(stage), &scale, [bottom - 19.0, 13.0], words.unit);
        }
    }
    for (row, &layer) in shown.iter().enumerate() {
        let name = shortened(&stages[0].layers[layer].name, 30);
        svg.text("t", Anchor::Start, [8.0, 62.0 + 20.0 * row as f64 + 11.0], &name);
    }
    if rest > 0 {
        svg.text("t2", Anchor::Start, [8.0, bottom - 8.0], &format!("{rest} other layers"));
    }
    let across = format!("{} of the layer each time the stage runs, {}", words.cost, words.unit);
    svg.text("t2", Anchor::Middle, [540.0, bottom + 36.0], &across);
    let which = if rest > 0 {
        format!("The {} dearest layers, in the order in which they run", shown.len())
    } else {
        "In the order in which layers run".to_owned()
    };
    let caption = format!(
        "{which}. Bits are those of weights and activations, as one number where they agree; a shared layer was run by the stage before."
    );
    Figure { name: "energy-layers".to_owned(), svg: svg.finish(), caption }
}

/// The dearest layers of all stages, in their order, and how many others there are.
fn dearest(stages: &[StageEnergy]) -> (Vec<usize>, usize) {
    let count = stages.first().map_or(0, |stage| stage.layers.len());
    let cost = |layer: usize| {
        stages.iter().map(|s| of_layer(&s.layers[layer]).iter().sum::<f64>()).fold(0.0, f64::max)
    };
    let mut layers: Vec<usize> = (0..count).collect();
    if count > MOST_LAYERS {
        layers.sort_by(|&a, &b| cost(b).total_cmp(&cost(a)).then(a.cmp(&b)));
        layers.truncate(MOST_LAYERS);
        layers.sort_unstable();
    }
    let rest = count - layers.len();
    (layers, rest)
}

/// What the energy of a MAC stands for, as a sentence.
pub(super) fn scope(run: &Run) -> String {
    let words = run.words();
    let holds = &run.summary.mac_holds;
    match holds.split_first() {
        None => String::new(),
        Some(_) if words.cost == "time" => "The profile gives time, not energy.".to_owned(),
        Some((_, [])) => "The profile's energy of a MAC is that of the MAC alone; memories and leakage are added to it.".to_owned(),
        Some((_, more)) => format!(
            "The profile's energy of a MAC is a whole chip's: it holds {} as well, so that these are no parts of their own.",
            super::svg::escape(&more.join(", "))
        ),
    }
}
