//! Accuracy against energy: all static points, what would be chosen for other targets, and the policy.

use super::svg::{Anchor, Mark, Scale, Svg};
use super::text::{count, loss, percent, round};
use super::{Figure, Run, Words};
use crate::summary::{FrontierPoint, Summary};

/// Drops that are shown, in multiples of what was asked for; what loses more lies on the lower edge.
const SHOWN: f64 = 6.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 850.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 400.0;

/// Axes of chip energy against accuracy, with the reference and the target as lines.
pub(super) struct Plane {
    pub(super) x: Scale,
    pub(super) y: Scale,
    least: f64,
}

impl Plane {
    /// Spans all energies, and accuracies near the reference.
    pub(super) fn new(
        summary: &Summary,
        energies: &[f64],
        accuracies: &[f64],
        logarithmic: bool,
    ) -> Self {
        let reference = summary.reference.accuracy;
        let unit = summary.constraint.max_accuracy_drop.max(0.002);
        let (low, high) = extremes(energies);
        let (lowest, highest) = extremes(accuracies);
        let least =
            lowest.max(reference - SHOWN * unit).min(summary.policy.accuracy).min(reference - unit);
        let most = highest.max(reference);
        let pad = 0.06 * (most - least).max(1e-4);
        let across = [LEFT, RIGHT];
        let x = if logarithmic {
            // Room on the right for the names of the lines.
            Scale::logarithmic([0.92 * low, high * (high / low).powf(0.16)], across)
        } else {
            Scale::linear([low - 0.04 * (high - low), high + 0.04 * (high - low)], across)
        };
        let y = Scale::linear([100.0 * (least - pad), 100.0 * (most + pad)], [BOTTOM, TOP]);
        Self { x, y, least: least - pad }
    }

    /// Where an energy and an accuracy lie, and whether the accuracy is below what is shown.
    pub(super) fn at(&self, energy: f64, accuracy: f64) -> ([f64; 2], bool) {
        ([self.x.at(energy), self.y.at(100.0 * accuracy)], accuracy < self.least)
    }

    /// Draws axes, reference and target.
    pub(super) fn draw(&self, svg: &mut Svg, summary: &Summary, words: Words) {
        let ticks = self.x.ticks(7);
        let decimals = Scale::decimals(&ticks);
        for &tick in &ticks {
            let x = self.x.at(tick);
            svg.line("grid", [x, TOP], [x, BOTTOM]);
            svg.text("t3", Anchor::Middle, [x, BOTTOM + 17.0], &format!("{tick:.decimals$}"));
        }
        let ticks = self.y.ticks(7);
        let decimals = Scale::decimals(&ticks);
        for &tick in &ticks {
            let y = self.y.at(tick);
            svg.line("grid", [LEFT, y], [RIGHT, y]);
            svg.text("t3", Anchor::End, [LEFT - 8.0, y + 4.0], &format!("{tick:.decimals$}"));
        }
        svg.line("axis", [LEFT, BOTTOM], [RIGHT, BOTTOM]);
        let across = format!("chip {} of an inference, {}", words.cost, words.unit);
        svg.text("t2", Anchor::Middle, [f64::midpoint(LEFT, RIGHT), BOTTOM + 38.0], &across);
        svg.text("t2", Anchor::Start, [8.0, TOP - 26.0], &format!("{}, %", words.accuracy));
        let reference = summary.reference.accuracy;
        let target = summary.constraint.max_accuracy_drop;
        let goal = summary.constraint.max_energy_uj.is_none().then(|| {
            (format!("target: {} points less", round(100.0 * target)), reference - target)
        });
        let lines = [Some((format!("reference ({})", summary.reference.kind), reference)), goal];
        for (index, (name, accuracy)) in lines.into_iter().flatten().enumerate() {
            let y = self.y.at(100.0 * accuracy);
            svg.line("goal", [LEFT, y], [RIGHT, y]);
            let y = if index == 0 { y - 5.0 } else { y + 14.0 };
            svg.text("t3", Anchor::End, [RIGHT - 4.0, y], &name);
        }
    }
}

fn extremes(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)))
}

/// Shape of a kind of static point.
fn shape(kind: &str) -> Mark {
    match kind {
        "mixed" => Mark::Diamond,
        "plain" => Mark::Square,
        _ => Mark::Circle,
    }
}

/// The figure's axes.
fn plane(summary: &Summary) -> Plane {
    let policy = &summary.policy;
    let alternatives = || summary.frontier.iter().flat_map(|f| [&f.policy, &f.best_static]);
    let energies: Vec<f64> = (summary.r#static.iter().map(|p| p.energy_uj.chip))
        .chain(alternatives().map(|a| a.energy_uj.chip))
        .chain([policy.energy_uj.chip])
        .collect();
    let accuracies: Vec<f64> = (summary.r#static.iter().map(|p| p.accuracy))
        .chain(alternatives().map(|a| a.accuracy))
        .chain([policy.accuracy])
        .collect();
    Plane::new(summary, &energies, &accuracies, true)
}

/// Where the policy for each target lies in the figure.
pub(super) fn places(summary: &Summary) -> Vec<[f64; 2]> {
    let plane = plane(summary);
    let policies = summary.frontier.iter().map(|target| &target.policy);
    policies.map(|policy| plane.at(policy.energy_uj.chip, policy.accuracy).0).collect()
}

pub(super) fn figure(run: &Run) -> Figure {
    let summary = &run.summary;
    let words = run.words();
    let policy = &summary.policy;
    let plane = plane(summary);
    let about = format!(
        "{} static points, the policies for {} targets and the chosen one, by chip {} and {}.",
        summary.r#static.len(),
        summary.frontier.len(),
        words.cost,
        words.accuracy
    );
    let title = format!("{} against chip {}", capital(words.accuracy), words.cost);
    let mut svg = Svg::new("frontier", &title, &about, [880.0, BOTTOM + 52.0]);
    plane.draw(&mut svg, summary, words);

    let mut labels = Labels::default();
    let mark = |svg: &mut Svg, class: &str, mark: Mark, cost: f64, accuracy: f64, tip: &str| {
        let (place, below) = plane.at(cost, accuracy);
        let mark = if below { Mark::Below } else { mark };
        svg.mark(class, mark, place, 4.5, tip);
        place
    };
    let mut places = Vec::new();
    for point in &summary.r#static {
        let view = if point.view == "mirror" { " on the mirrored input" } else { "" };
        let (accuracy, cost) = (point.accuracy, point.energy_uj.chip);
        let tip = format!("{}{view}: {}, {}", point.point, words.cost(cost), percent(accuracy));
        let class =
            if point.view == "mirror" || point.kind == "plain" { "other-ring" } else { "other" };
        let place = mark(&mut svg, class, shape(&point.kind), cost, accuracy, &tip);
        labels.avoid(place);
        // A name for what is in use; plain points and mirrored views have the same one.
        if point.view == "as-is" && point.kind != "plain" && !plane.at(cost, accuracy).1 {
            places.push((place, point.point.as_str()));
        }
    }
    let mut line = self::places(summary);
    line.dedup();
    if line.len() > 1 {
        svg.polyline("chosen-line", &line);
    }
    // Where several targets give one policy, its mark names the strictest.
    let mut before = None;
    for (target, place) in summary.frontier.iter().zip(self::places(summary)) {
        if before != Some(place) {
            labels.avoid(place);
            svg.mark("chosen", Mark::Circle, place, 3.0, &tip(target, words));
        }
        before = Some(place);
    }
    let place = plane.at(policy.energy_uj.chip, policy.accuracy).0;
    // The explorer moves this ring from target to target.
    svg.begin("target");
    svg.mark("ring", Mark::Circle, place, 11.0, "");
    svg.end();
    let chosen = plane.at(policy.energy_uj.chip, policy.accuracy).0;
    let tip =
        format!("the policy: {}, {}", words.cost(policy.energy_uj.chip), percent(policy.accuracy));
    svg.mark("chosen", Mark::Star, chosen, 7.0, &tip);
    for y in [
        summary.reference.accuracy,
        summary.reference.accuracy - summary.constraint.max_accuracy_drop,
    ] {
        labels.avoid_line(plane.y.at(100.0 * y));
    }
    // Clear of the ring.
    for dy in [-7.0, 0.0, 7.0] {
        labels.avoid([chosen[0] - 8.0, chosen[1] + dy]);
        labels.avoid([chosen[0] + 8.0, chosen[1] + dy]);
    }
    labels.write(&mut svg, "th", chosen, "the policy");
    for (place, name) in places {
        labels.write(&mut svg, "t3", place, name);
    }
    legend(&mut svg, summary);
    let all = &summary.r#static;
    let marks = [
        (all.iter().any(|p| p.kind == "mixed"), " Diamonds differ in width from layer to layer."),
        (
            all.iter().any(|p| p.view == "mirror"),
            " Hollow circles and diamonds see the mirrored input.",
        ),
        (
            all.iter().any(|p| plane.at(p.energy_uj.chip, p.accuracy).1),
            " Triangles on the lower edge lose more than is shown.",
        ),
        (
            !summary.frontier.is_empty(),
            " The blue line joins the policies that would be chosen for other targets, each on the search samples; by chance of the test samples it may fall.",
        ),
    ];
    let marks: String = marks.iter().filter(|(occurs, _)| *occurs).map(|(_, text)| *text).collect();
    let caption = format!("On the {} test samples.{marks}", count(summary.samples.test as u64));
    Figure { name: "frontier".to_owned(), svg: svg.finish(), caption }
}

fn tip(target: &FrontierPoint, words: Words) -> String {
    let policy = &target.policy;
    format!(
        "for a drop of at most {} points: {}; {}, {} points lost",
        round(100.0 * target.max_accuracy_drop),
        policy.stages.join(", then "),
        words.cost(policy.energy_uj.chip),
        loss(policy.accuracy_drop)
    )
}

fn legend(svg: &mut Svg, summary: &Summary) {
    let occurs = |kind: &str| summary.r#static.iter().any(|point| point.kind == kind);
    let marks = [
        ("chosen", Mark::Star, "chosen policy", true),
        ("chosen", Mark::Circle, "policies for other targets", !summary.frontier.is_empty()),
        ("other", Mark::Circle, "uniform", occurs("uniform")),
        ("other", Mark::Diamond, "mixed", occurs("mixed")),
        ("other-ring", Mark::Square, "rounded plainly", occurs("plain")),
    ];
    let mut x = 250.0;
    for (class, mark, name, _) in marks.into_iter().filter(|mark| mark.3) {
        svg.mark(class, mark, [x, TOP - 30.0], 4.5, "");
        svg.text("t2", Anchor::Start, [x + 11.0, TOP - 26.0], name);
        x += 34.0 + 6.4 * name.len() as f64;
    }
}

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Places for names beside marks; a name without room is left out, but for the policy's.
#[derive(Default)]
struct Labels {
    taken: Vec<[f64; 4]>,
}

impl Labels {
    fn avoid(&mut self, [x, y]: [f64; 2]) {
        self.taken.push([x - 4.0, y - 4.0, x + 4.0, y + 4.0]);
    }

    /// Names of lines stand at the right end, and no name is struck through.
    fn avoid_line(&mut self, y: f64) {
        self.taken.push([LEFT, y - 1.0, RIGHT, y + 1.0]);
        self.taken.push([RIGHT - 150.0, y - 16.0, RIGHT, y + 16.0]);
    }

    fn write(&mut self, svg: &mut Svg, class: &str, [x, y]: [f64; 2], name: &str) {
        let width = 6.3 * name.chars().count() as f64;
        let near = [
            (x + 9.0, y + 4.0),
            (x - 9.0 - width, y + 4.0),
            (x - width / 2.0, y - 10.0),
            (x - width / 2.0, y + 18.0),
            (x + 12.0, y - 12.0),
            (x + 12.0, y + 20.0),
            (x + 22.0, y + 34.0),
            (x - 14.0 - width, y - 12.0),
        ];
        // The policy's name must be there: farther off, a line leads to it.
        let rings = if class == "th" { 2..8 } else { 0..0 };
        let far = rings.flat_map(|ring| {
            let [across, up] = [24.0, 20.0].map(|step| step * f64::from(ring));
            [(x + across, y + up), (x - across - width, y - up), (x + across, y - up)]
        });
        for (place, (left, base)) in near.into_iter().chain(far).enumerate() {
            let own = [left, base - 10.0, left + width, base + 2.0];
            let apart = |other: &[f64; 4]| {
                own[2] < other[0] || other[2] < own[0] || own[3] < other[1] || other[3] < own[1]
            };
            let inside = own[0] > LEFT && own[2] < RIGHT && own[1] > TOP - 4.0 && own[3] < BOTTOM;
            if inside && self.taken.iter().all(apart) {
                if place >= near.len() {
                    let end = if left > x { left - 3.0 } else { left + width + 3.0 };
                    svg.line("axis", [x, y], [end, base - 4.0]);
                }
                self.taken.push(own);
                svg.text(class, Anchor::Start, [left, base], name);
                return;
            }
        }
    }
}
