//! What pairs of stages share, and scores that are summed.

use super::*;

#[test]
fn a_pair_shares_layers_where_that_is_cheaper_and_never_without_a_boundary() {
    let trace = trace(40, 3, 1);
    let layer = |boundary| LayerWork {
        name: "layer".to_owned(),
        macs: 1_000_000,
        weights: 10,
        biases: 1,
        inputs: 10,
        outputs: 10,
        residual: 0,
        zero_macs: 0.0,
        boundary,
    };
    let live = crate::energy::Live { tensor: 0, elements: 10, layer: 1, side: false };
    let workload = Workload { layers: vec![layer(None), layer(Some(vec![live]))] };
    let widths = |bits: [u8; 2]| bits.map(|b| Widths { weights: b, activations: b }).to_vec();
    let info = |point: &str, kind, bits| PointInfo {
        point: point.to_owned(),
        view: View::AsIs,
        kind,
        widths: widths(bits),
        alike: 2,
    };
    let points = vec![
        info("p0", Kind::Uniform, [4, 4]),
        info("p1", Kind::Mixed, [4, 8]),
        info("p2", Kind::Uniform, [8, 8]),
    ];
    let profile = AcceleratorProfile::find("envision-28nm").unwrap();
    let candidates = Candidates::new(&trace, FLOAT, points, &profile, &workload, rules(2)).unwrap();
    let choice = |low, high| Choice { stages: vec![low, high], gates: vec![Gate::margin(1)] };
    assert_eq!(candidates.shared_layers(&choice(0, 1)), [0, 1]);
    assert_eq!(candidates.shared_layers(&choice(0, 2)), [0, 0]);
    assert_eq!(candidates.shared_layers(&Choice::fixed(1)), [0]);
    // One 8-bit layer of a million MACs and the way to its mode and back.
    let energy = candidates.stage_energies(&choice(0, 1))[1].chip_uj;
    assert!((energy - (1.90 + 6.5e-3)).abs() < 1e-12, "{energy}");
}

/// Random scores of three classes, so that sums of stages answer otherwise than each.
fn scored_trace(rows: usize, points: usize, seed: u64) -> Trace {
    let mut random = Random::new(seed);
    let mut noise = |spread: usize| random.below(spread) as i32;
    let labels: Vec<u32> = (0..rows).map(|row| row as u32 % 3).collect();
    let exact: Vec<[i32; 3]> = labels
        .iter()
        .map(|&label| [0, 1, 2].map(|class| 4 * i32::from(class == label) + noise(3)))
        .collect();
    let mut block = |point: String, spread: usize| {
        let mut answers = Answers::default();
        for exact in &exact {
            let scores = exact.map(|score| score + noise(spread));
            let found = answer(&scores);
            answers.push(found.class as u32, found.margin, &scores);
        }
        Block { point, view: View::AsIs, score_scale: 1.0, answers }
    };
    let mut blocks = vec![block(FLOAT.to_owned(), 1)];
    blocks.extend((0..points).map(|p| block(format!("p{p}"), 12 - 3 * p)));
    let splits = vec![Split::Search; rows];
    Trace { classes: 3, class_mix: None, samples: (0..rows).collect(), splits, labels, blocks }
}

#[test]
fn sums_are_stages_of_two_and_of_three_like_any_other() {
    let mut summed = 0;
    for seed in 0..30 {
        let trace = scored_trace(24, 3, seed);
        for stages in [2, 3] {
            let mut candidates = candidates(&trace, stages);
            candidates.add_sums(&trace, trace.block(FLOAT, View::AsIs).unwrap());
            let all: Vec<usize> = (0..24).collect();
            for drop in [0.0, 0.05, 0.1] {
                let bound = Bound::plain(drop);
                let best = brute_force(&candidates, &all, bound);
                let found = candidates
                    .best(&candidates.mask(&all), &[bound], Pool::Policies)
                    .swap_remove(0);
                if best.is_finite() {
                    assert!((found.energy - best).abs() < 1e-9, "{seed} {found:?} {best}");
                    let outcome = candidates.outcome(&found.choice, &all);
                    assert!((outcome.energy.chip_uj - found.energy).abs() < 1e-9);
                    let later = found.choice.stages.iter().skip(1);
                    summed += usize::from(
                        stages == 3
                            && later.clone().count() == 2
                            && later.clone().any(|&stage| candidates.sum(stage).is_some()),
                    );
                }
            }
        }
    }
    assert!(summed > 0, "no policy of three stages summed anything");
}

/// Such a stage accepts nothing.
#[test]
fn of_three_stages_one_may_be_there_for_its_scores_alone() {
    let mut alone = 0;
    for seed in 0..1_000 {
        let trace = scored_trace(12, 3, seed);
        let mut candidates = candidates(&trace, 3);
        candidates.add_sums(&trace, trace.block(FLOAT, View::AsIs).unwrap());
        let all: Vec<usize> = (0..12).collect();
        let bounds = [-0.1, 0.0].map(Bound::plain);
        let found = candidates.best(&candidates.mask(&all), &bounds, Pool::Policies);
        for (found, bound) in found.iter().zip(bounds) {
            let nothing = |gate: &Gate| gate.accept_at == i32::MAX;
            if found.choice.stages.len() == 3 && found.choice.gates.iter().any(nothing) {
                let best = brute_force(&candidates, &all, bound);
                assert!((found.energy - best).abs() < 1e-9, "{seed} {found:?} {best}");
                alone += 1;
            }
        }
    }
    assert!(alone > 0);
}

#[test]
fn the_hull_with_sums_is_that_of_trying_everything() {
    for seed in 0..20 {
        let trace = scored_trace(12, 3, seed);
        let mut candidates = candidates(&trace, 3);
        candidates.add_sums(&trace, trace.block(FLOAT, View::AsIs).unwrap());
        let all: Vec<usize> = (0..12).collect();
        let hull = candidates.hull(&all, Pool::Policies);
        let best = |drop| brute_force(&candidates, &all, Bound::plain(drop));
        for vertex in &hull {
            assert!((best(vertex.drop) - vertex.chip_uj).abs() < 1e-9, "{seed} {vertex:?}");
        }
        for pair in hull.windows(2) {
            let middle = f64::midpoint(pair[0].chip_uj, pair[1].chip_uj);
            let least = best(f64::midpoint(pair[0].drop, pair[1].drop));
            assert!(least >= middle - 1e-9, "{seed} {pair:?} {least}");
        }
        assert!(best(hull[hull.len() - 1].drop - 1e-6).is_infinite(), "{seed}");
    }
}

/// Two stages that err independently: their weighted sum, whose weight is fitted to the reference's
/// scores without labels, is right more often than either, and is offered at the price of both.
#[test]
fn summed_scores_are_right_more_often_and_cost_both_stages() {
    let rows = 2000;
    let mut random = Random::new(3);
    let mut noise = |spread: usize| random.below(2 * spread + 1) as i32 - spread as i32;
    let mut answers = vec![Answers::default(); 3];
    for row in 0..rows {
        let label = row % 2;
        let exact: Vec<i32> = (0..2).map(|c| if c == label { 30 } else { 0 } + noise(4)).collect();
        for (answers, spread) in answers.iter_mut().zip([0, 60, 50]) {
            // The second point's unit is worth half as much.
            let scale = if spread == 50 { 2 } else { 1 };
            let scores: Vec<i32> = exact.iter().map(|s| scale * (s + noise(spread))).collect();
            let found = answer(&scores);
            answers.push(found.class as u32, found.margin, &scores);
        }
    }
    let scales = [1.0, 1.0, 0.5];
    let names = [FLOAT, "p0", "p1"];
    let blocks =
        answers.into_iter().zip(scales).zip(names).map(|((answers, score_scale), point)| Block {
            point: point.to_owned(),
            view: View::AsIs,
            score_scale,
            answers,
        });
    let trace = Trace {
        classes: 2,
        class_mix: None,
        samples: (0..rows).collect(),
        splits: vec![Split::Search; rows],
        labels: (0..rows as u32).map(|row| row % 2).collect(),
        blocks: blocks.collect(),
    };
    let mut with_sums = candidates(&trace, 2);
    let float = trace.block(FLOAT, View::AsIs).unwrap();
    with_sums.add_sums(&trace, float);
    assert_eq!(with_sums.all.len(), 3);
    assert_eq!(with_sums.name(2), "p0+p1");
    let sum = with_sums.sum(2).unwrap();
    assert!((sum.weight - 50.0 * 50.0 / (60.0 * 60.0)).abs() < 0.15, "{sum:?}");
    assert!((f64::from(sum.factor) - 2.0 * sum.weight).abs() < 1e-6);
    let all: Vec<usize> = (0..rows).collect();
    let outcome = |index: usize| with_sums.outcome(&with_sums.always(index), &all);
    let [low, high, both] = [0, 1, 2].map(outcome);
    assert!(both.accuracy > low.accuracy.max(high.accuracy) + 0.02);
    assert_eq!(both.escalation_rates, [1.0]);
    assert!((both.energy.chip_uj - with_sums.energy(2).chip_uj).abs() < 1e-12);
}

#[test]
fn points_of_other_views_or_other_quantizers_share_nothing() {
    let info = |point: &str, view| PointInfo {
        point: point.to_owned(),
        view,
        kind: Kind::Uniform,
        widths: vec![Widths { weights: 4, activations: 4 }; 2],
        alike: 2,
    };
    let live = crate::energy::Live { tensor: 0, elements: 10, layer: 1, side: false };
    let layer = LayerWork {
        name: "layer".to_owned(),
        macs: 1,
        weights: 1,
        biases: 1,
        inputs: 1,
        outputs: 1,
        residual: 0,
        zero_macs: 0.0,
        boundary: Some(vec![live]),
    };
    let workload = Workload { layers: vec![layer; 2] };
    let point = info("w4a4", View::AsIs);
    assert_eq!(point.shared_layers(&point, &workload), 1);
    assert_eq!(point.shared_layers(&info("w4a4", View::Mirror), &workload), 0);
    assert_eq!(point.shared_layers(&info("w4a4-plain", View::AsIs), &workload), 0);
    assert_eq!(point.shared_layers(&info("w4a4-nested", View::AsIs), &workload), 0);
    let own = PointInfo { alike: 0, ..point.clone() };
    assert_eq!(point.shared_layers(&own, &workload), 0);
}
