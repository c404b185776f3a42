//! Which layers suffer from few bits.

use super::svg::{Anchor, Svg, shortened};
use super::{Figure, Run};
use crate::sensitivity::{LayerSensitivity, Sensitivity, WidthSensitivity};

/// Layers that are shown at most.
const MOST_LAYERS: usize = 50;
/// A signal that is so many decibel above its noise suffers from nothing.
const GOOD_DB: f64 = 30.0;
const ROW: f64 = 22.0;
const TOP: f64 = 56.0;
const LEFT: f64 = 220.0;

/// Signal-to-noise ratio of each layer at each pair of widths.
pub(super) fn figure(run: &Run, sensitivity: &Sensitivity) -> Figure {
    let all = &sensitivity.layers;
    let worst = |layer: &LayerSensitivity| {
        layer.widths.iter().map(|w| w.snr_db).fold(f64::INFINITY, f64::min)
    };
    let mut shown: Vec<usize> = (0..all.len()).collect();
    if all.len() > MOST_LAYERS {
        shown.sort_by(|&a, &b| worst(&all[a]).total_cmp(&worst(&all[b])).then(a.cmp(&b)));
        shown.truncate(MOST_LAYERS);
        shown.sort_unstable();
    }
    let mut columns: Vec<[u8; 2]> =
        all.iter().flat_map(|l| l.widths.iter().map(|w| [w.weights, w.activations])).collect();
    columns.sort_unstable();
    columns.dedup();
    let cell = (500.0 / columns.len().max(1) as f64).min(72.0);
    let bottom = TOP + ROW * shown.len() as f64;
    let mut svg = Svg::new(
        "sensitivity",
        "Signal over noise of each layer",
        &format!("A table of {} layers by {} widths, in decibel.", shown.len(), columns.len()),
        [880.0, bottom + 16.0],
    );
    svg.text("th", Anchor::Start, [8.0, TOP - 10.0], "layer");
    svg.text(
        "th",
        Anchor::Start,
        [LEFT, TOP - 30.0],
        "signal over noise, dB, at bits of weights / activations",
    );
    let causes = LEFT + cell * columns.len() as f64 + 16.0;
    svg.text("th", Anchor::Start, [causes, TOP - 10.0], "main cause");
    for (column, [w, a]) in columns.iter().enumerate() {
        let x = LEFT + cell * (column as f64 + 0.5);
        svg.text("t2", Anchor::Middle, [x, TOP - 10.0], &format!("{w}/{a}"));
    }
    for (row, &index) in shown.iter().enumerate() {
        let layer = &all[index];
        let y = TOP + ROW * row as f64;
        svg.text("t", Anchor::Start, [8.0, y + 15.0], &shortened(&layer.name, 32));
        svg.text("t2", Anchor::Start, [causes, y + 15.0], layer.cause());
        for WidthSensitivity { weights, activations, snr_db, plain_snr_db, divergence } in
            &layer.widths
        {
            let pair = [*weights, *activations];
            let Ok(column) = columns.binary_search(&pair) else { continue };
            let x = LEFT + cell * column as f64;
            let tip = format!(
                "{}: {snr_db:.1} dB, {plain_snr_db:.1} dB with plain rounding; the network's answers move by {divergence:.4} nats when this layer alone has {weights}/{activations} bits",
                layer.name
            );
            let strength = 0.55 * (1.0 - snr_db / GOOD_DB).clamp(0.0, 1.0);
            svg.shaded("bad", [x + 0.5, y + 0.5], [cell - 1.0, ROW - 1.0], strength, &tip);
            let users = users(run, &layer.name, pair);
            if !users.is_empty() {
                svg.rect("used", [x + 2.0, y + 2.0], [cell - 4.0, ROW - 4.0], "");
                svg.text("t4", Anchor::End, [x + cell - 5.0, y + 11.0], &users);
            }
            let middle = x + cell / 2.0 - if users.is_empty() { 0.0 } else { 5.0 };
            svg.text(
                "t3",
                Anchor::Middle,
                [middle, y + 15.0],
                &format!("{snr_db:.1}").replace('-', "−"),
            );
        }
    }
    let which = if all.len() > MOST_LAYERS {
        format!("The {MOST_LAYERS} of {} layers that suffer most. ", all.len())
    } else {
        String::new()
    };
    let caption = format!(
        "{which}Signal-to-noise ratio of the layer's result with the best quantizer found, the layer alone quantized; the deeper the colour, the noisier. A frame with a small number: the widths that this stage of the policy uses."
    );
    Figure { name: "sensitivity".to_owned(), svg: svg.finish(), caption }
}

/// Numbers of the stages that run a layer at a pair of widths: `1,2`.
fn users(run: &Run, layer: &str, [weights, activations]: [u8; 2]) -> String {
    let uses = |stage: &crate::summary::StageEnergy| {
        let found = stage.layers.iter().find(|l| l.name == layer);
        found.is_some_and(|l| [l.weights, l.activations] == [weights, activations])
    };
    let stages = run.summary.stage_energies.iter().enumerate().filter(|(_, stage)| uses(stage));
    stages.map(|(index, _)| (index + 1).to_string()).collect::<Vec<_>>().join(",")
}
