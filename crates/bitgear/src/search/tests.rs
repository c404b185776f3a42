use bitgear_core::margin::answer;
use proptest::prelude::*;

use super::bound::{Caution, UNSEEN};
use super::*;
use crate::energy::{LayerWork, Widths};
use crate::trace::{Answers, Block, FLOAT, Random, Split};

mod choose;
mod hull;
mod stages;

/// A trace of random answers: a right and a wrong class, and margins with many ties.
fn trace(rows: usize, points: usize, seed: u64) -> Trace {
    let mut random = Random::new(seed);
    let mut block = |point: String, right: usize| {
        let mut answers = Answers::default();
        for _ in 0..rows {
            let wrong = u32::from(random.below(10) >= right);
            answers.push(wrong, random.below(6) as i32 * 3, &[0, 0]);
        }
        Block { point, view: View::AsIs, score_scale: 1.0, answers }
    };
    let mut blocks = vec![block(FLOAT.to_owned(), 8)];
    blocks.extend((0..points).map(|p| block(format!("p{p}"), 5 + p)));
    let splits = vec![Split::Search; rows];
    Trace {
        classes: 2,
        class_mix: None,
        samples: (0..rows).collect(),
        splits,
        labels: vec![0; rows],
        blocks,
    }
}

/// With two classes, of which the second has a third of the rows and such shares in deployment.
fn mixed(mut trace: Trace, shares: Option<[f64; 2]>) -> Trace {
    for (row, label) in trace.labels.iter_mut().enumerate() {
        *label = (row % 3 == 0).into();
    }
    trace.class_mix = shares.map(|shares| ClassMix::try_from(shares.to_vec()).unwrap());
    trace
}

fn shares() -> impl Strategy<Value = Option<[f64; 2]>> {
    prop_oneof![Just(None), [0.1_f64..9.0, 0.1_f64..9.0].prop_map(Some)]
}

fn rules(stages: usize) -> Rules {
    Rules { stages, sums: false, ..Rules::default() }
}

fn candidates(trace: &Trace, stages: usize) -> Candidates {
    weighty_candidates(trace, stages, 10)
}

/// With so many weights.
fn weighty_candidates(trace: &Trace, stages: usize, weights: u64) -> Candidates {
    let bits = [2, 4, 8, 16];
    let points = (0..trace.blocks.len() - 1)
        .map(|p| PointInfo {
            point: format!("p{p}"),
            view: View::AsIs,
            kind: Kind::Uniform,
            widths: vec![Widths { weights: bits[p], activations: bits[p] }],
            alike: 0,
        })
        .collect();
    let layer = LayerWork {
        name: "layer".to_owned(),
        macs: 1_000_000,
        weights,
        biases: 1,
        inputs: 10,
        outputs: 2,
        residual: 0,
        zero_macs: 0.0,
        boundary: None,
    };
    let profile = AcceleratorProfile::find("envision-28nm").unwrap();
    Candidates::new(
        trace,
        FLOAT,
        points,
        &profile,
        &Workload { layers: vec![layer] },
        rules(stages),
    )
    .unwrap()
}

/// Least energy of all choices that keep the bound, by trying every threshold there can be.
fn brute_force(candidates: &Candidates, rows: &[usize], bound: Bound) -> f64 {
    let mut best = f64::INFINITY;
    let starts = (0..candidates.all.len()).filter(|&a| candidates.starts(a));
    let mut chains: Vec<Vec<usize>> = starts.map(|a| vec![a]).collect();
    let mask = candidates.mask(rows);
    let limit = mask.limits(&[bound])[0];
    while let Some(stages) = chains.pop() {
        let bases: Vec<usize> = stages.iter().map(|&stage| candidates.all[stage].base).collect();
        if stages.len() < candidates.rules.stages {
            let last = stages[stages.len() - 1];
            for next in (0..candidates.all.len()).filter(|&next| candidates.follows(last, next)) {
                if !bases.contains(&candidates.all[next].base) {
                    chains.push([&stages[..], &[next]].concat());
                }
            }
        }
        let mut margins = vec![i32::MAX];
        margins.extend(
            stages
                .iter()
                .flat_map(|&s| rows.iter().map(move |&r| (s, r)))
                .map(|(s, r)| candidates.all[s].margins.values[r]),
        );
        margins.sort_unstable();
        margins.dedup();
        let gates = stages.len() - 1;
        for combination in 0..margins.len().pow(gates as u32) {
            let at =
                |gate: usize| margins[combination / margins.len().pow(gate as u32) % margins.len()];
            let choice = Choice {
                stages: stages.clone(),
                gates: (0..gates).map(|gate| Gate::margin(at(gate))).collect(),
            };
            let outcome = candidates.outcome(&choice, rows);
            let affordable = candidates.affordable(&candidates.price(&stages));
            let worst = candidates.worst_class(&choice, rows).map_or(0.0, |(_, drop)| drop);
            let class = candidates.rules.max_class_drop.is_none_or(|cap| worst <= cap + 1e-9);
            let rate = outcome.escalation_rates.first().copied().unwrap_or(0.0);
            let lost = rows.iter().fold(Tally::default(), |sum, &row| {
                sum.plus(candidates.tally(&mask, row, candidates.answer(&choice, row).0))
            });
            if limit.keeps(lost) && affordable && class && rate <= candidates.rules.max_escalation {
                best = best.min(outcome.energy.chip_uj);
            }
        }
    }
    best
}

/// Whether a choice keeps a bound on some rows.
fn keeps(candidates: &Candidates, choice: &Choice, rows: &[usize], bound: Bound) -> bool {
    // What a row of each class weighs, so that all weigh as much as they tell.
    let count = |class: u32| rows.iter().filter(|&&row| candidates.labels[row] == class).count();
    let weight = |class: u32| match &candidates.class_mix {
        Some(mix) if count(class) > 0 => mix.share(class) / count(class) as f64,
        _ => 1.0,
    };
    let sum =
        |power: i32| rows.iter().map(|&r| weight(candidates.labels[r]).powi(power)).sum::<f64>();
    let n = sum(1).powi(2) / sum(2);
    let (mut harmful, mut helpful) = (0.0, 0.0);
    for &row in rows {
        let weight = weight(candidates.labels[row]) * n / sum(1);
        match (candidates.reference[row], candidates.answer(choice, row).0) {
            (true, false) => harmful += weight,
            (false, true) => helpful += weight,
            _ => {}
        }
    }
    let seen = harmful + helpful;
    let drop = (harmful - helpful) / n;
    let careful = match bound.caution {
        Caution::None => drop,
        Caution::Prior { flips, excess } => {
            let share = (harmful + f64::midpoint(flips, excess)) / (seen + flips);
            (seen + UNSEEN) / n * (2.0 * share - 1.0)
        }
        Caution::Errors(errors) => drop + errors * seen.sqrt() / n,
    };
    // Weights are whole numbers.
    careful <= bound.drop + if candidates.class_mix.is_some() { 2e-4 } else { 1e-9 }
}

fn caution() -> impl Strategy<Value = Caution> {
    let prior = (1.0_f64..20.0, -0.2_f64..1.0)
        .prop_map(|(flips, share)| Caution::Prior { flips, excess: flips * share });
    prop_oneof![prior, (0.1_f64..2.5).prop_map(Caution::Errors)]
}

proptest! {
    #[test]
    fn the_search_finds_what_trying_everything_finds(
        rows in 1_usize..60, seed: u64, bound in -0.2_f64..0.4, stages in 1_usize..=3, shares in shares(),
        max_escalation in prop_oneof![Just(1.0), 0.0_f64..0.8],
        max_worst_uj in prop_oneof![Just(f64::INFINITY), 8.0_f64..12.0],
        max_class_drop in prop_oneof![Just(None), (-0.1_f64..0.5).prop_map(Some)],
    ) {
        let trace = mixed(trace(rows, 4, seed), shares);
        let mut candidates = candidates(&trace, stages);
        let max_class_drop = max_class_drop.filter(|_| stages < 3);
        candidates.rules = Rules { max_escalation, max_worst_uj, max_class_drop, ..candidates.rules };
        let all: Vec<usize> = (0..rows).collect();
        // Several bounds at once must not disturb each other.
        let bounds = [bound + 0.1, bound, bound - 0.1].map(Bound::plain);
        let found = &candidates.best(&candidates.mask(&all), &bounds, Pool::Policies)[1].choice;
        let outcome = candidates.outcome(found, &all);
        let best = brute_force(&candidates, &all, Bound::plain(bound));
        if best.is_finite() {
            prop_assert!(outcome.drop <= bound + 1e-9);
            prop_assert!((outcome.energy.chip_uj - best).abs() < 1e-9, "{:?} {}", found, best);
        } else {
            prop_assert_eq!(found, &Choice::fixed(3));
        }
    }

    /// Of two stages what is found is the cheapest; of three it keeps the bound, and loses nothing
    /// against two.
    #[test]
    fn a_bound_with_caution_is_kept_as_it_says(
        rows in 1_usize..60, seed: u64, drop in -0.1_f64..0.5, caution in caution(), shares in shares(),
    ) {
        let trace = mixed(trace(rows, 4, seed), shares);
        let all: Vec<usize> = (0..rows).collect();
        let bound = Bound { drop, caution };
        let mut energies = Vec::new();
        for stages in [2, 3] {
            let candidates = candidates(&trace, stages);
            let best = brute_force(&candidates, &all, bound);
            let found = candidates.best(&candidates.mask(&all), &[bound], Pool::Policies).swap_remove(0);
            if best.is_infinite() {
                prop_assert_eq!(found.choice, Choice::fixed(3));
                return Ok(());
            }
            prop_assert!(keeps(&candidates, &found.choice, &all, bound));
            prop_assert!(found.energy >= best - 1e-9);
            prop_assert!(stages == 3 || found.energy <= best + 1e-9);
            energies.push(found.energy);
        }
        prop_assert!(energies[1] <= energies[0]);
    }

    /// Of four stages what is found keeps the bound, and trying everything finds nothing below the floor
    /// that is stated; without caution it is the cheapest but for what is not looked for.
    #[test]
    fn four_stages_cost_no_more_than_the_floor_leaves_open(
        rows in 1_usize..20, seed: u64, drop in -0.1_f64..0.4,
        caution in prop_oneof![Just(Caution::None), caution()],
        max_escalation in prop_oneof![Just(1.0), 0.2_f64..0.8], shares in shares(),
    ) {
        let trace = mixed(trace(rows, 4, seed), shares);
        let mut candidates = candidates(&trace, 4);
        candidates.rules.max_escalation = max_escalation;
        let all: Vec<usize> = (0..rows).collect();
        let bound = Bound { drop, caution };
        let found = candidates.best(&candidates.mask(&all), &[bound], Pool::Policies).swap_remove(0);
        let best = brute_force(&candidates, &all, bound);
        if best.is_infinite() {
            prop_assert_eq!(found.choice, Choice::fixed(3));
            return Ok(());
        }
        let is_kept = keeps(&candidates, &found.choice, &all, bound);
        if caution != Caution::None && !is_kept && found.choice == Choice::fixed(3) {
            // What stands for the bound of three and four stages is tighter, so they may be missed; one and
            // two are exact.
            candidates.rules.stages = 2;
            prop_assert!(brute_force(&candidates, &all, bound).is_infinite());
            return Ok(());
        }
        prop_assert!(is_kept);
        prop_assert!((candidates.outcome(&found.choice, &all).energy.chip_uj - found.energy).abs() < 1e-9);
        prop_assert!(found.energy >= best - 1e-9);
        if caution == Caution::None {
            prop_assert!(found.floor <= best + 1e-9, "{:?} {}", found, best);
            prop_assert!(0.995 * found.energy <= found.floor + 1e-9, "{:?}", found);
        }
    }

    #[test]
    fn the_frontier_holds_the_best_two_stages_for_every_bound(
        rows in 1_usize..60, seed: u64, shares in shares(),
    ) {
        let trace = mixed(trace(rows, 4, seed), shares);
        let candidates = candidates(&trace, 2);
        let all: Vec<usize> = (0..rows).collect();
        let frontier = candidates.frontier(&all, Pool::Policies);
        for pair in frontier.windows(2) {
            prop_assert!(pair[0].chip_uj < pair[1].chip_uj && pair[0].drop > pair[1].drop);
        }
        for tradeoff in &frontier {
            let outcome = candidates.outcome(&tradeoff.choice, &all);
            prop_assert!((outcome.drop - tradeoff.drop).abs() < 1e-12);
            prop_assert!((outcome.energy.chip_uj - tradeoff.chip_uj).abs() < 1e-12);
            let best = brute_force(&candidates, &all, Bound::plain(tradeoff.drop));
            prop_assert!((best - tradeoff.chip_uj).abs() < 1e-9, "{:?} {}", tradeoff, best);
        }
    }

    #[test]
    fn a_policy_is_never_dearer_than_the_best_static_point(seed: u64, bound in 0.0_f64..0.3) {
        let trace = trace(50, 4, seed);
        let candidates = candidates(&trace, 3);
        let all: Vec<usize> = (0..50).collect();
        let mask = candidates.mask(&all);
        let outcome = |pool| candidates.outcome(&candidates.best(&mask, &[Bound::plain(bound)], pool)[0].choice, &all);
        let fixed = outcome(Pool::Static);
        // Where no static point keeps the bound, a policy that does may cost more.
        prop_assume!(fixed.drop <= bound);
        prop_assert!(outcome(Pool::Policies).energy.chip_uj <= fixed.energy.chip_uj + 1e-12);
    }

    /// Raising the first threshold keeps the bound on what flips from there on down, and not by more
    /// than one sample more than it must.
    #[test]
    fn conformal_control_raises_the_threshold_as_far_as_it_must(
        rows in 20_usize..120, seed: u64, accept_at in 0_i32..12, bound in 0.0_f64..0.5,
    ) {
        let trace = trace(rows, 4, seed);
        let candidates = candidates(&trace, 2);
        let all: Vec<usize> = (0..rows).collect();
        let choice = Choice { stages: vec![0, 3], gates: vec![Gate::margin(accept_at)] };
        // A sample counts at a threshold if it flips there or at any higher one.
        let harmed = |at: i32| {
            let flips = |row: &&usize| (at..=16).any(|at| {
                let choice = Choice { gates: vec![Gate::margin(at)], ..choice.clone() };
                candidates.flips(&choice, &[**row]).harmful > 0
            });
            all.iter().filter(flips).count()
        };
        let keeps = |at: i32| (harmed(at) + 1) as f64 <= bound * (rows + 1) as f64 + 1e-9;
        let expected = (accept_at..=16).find(|&at| keeps(at));
        let raised = candidates.raise_first_threshold(&choice, &all, bound);
        prop_assert_eq!(raised.map(|choice| choice.gates[0].accept_at), expected);
    }
}

#[test]
fn a_fourth_stage_is_found_where_it_pays() {
    let long = (0..40).filter(|&seed| {
        let trace = trace(60, 4, seed);
        let all: Vec<usize> = (0..60).collect();
        let [three, four] = [3, 4].map(|stages| {
            let candidates = candidates(&trace, stages);
            let bound = [Bound::plain(-0.05)];
            candidates.best(&candidates.mask(&all), &bound, Pool::Policies).swap_remove(0)
        });
        // Where three stages keep no bound, four that do may cost more than the widest point.
        let kept = keeps(&candidates(&trace, 3), &three.choice, &all, Bound::plain(-0.05));
        assert!(four.energy <= three.energy || !kept, "{seed}");
        four.choice.stages.len() == 4
    });
    assert!(long.count() > 0);
}

/// Three networks whose weights do not fit on chip together are loaded anew for every input.
#[test]
fn more_than_two_stages_need_no_more_total_energy_than_two() {
    let mut refused = 0;
    for seed in 0..30 {
        let trace = trace(60, 4, seed);
        let all: Vec<usize> = (0..60).collect();
        let bound = Bound::plain(0.0);
        let [two, three] = [2, 3].map(|stages| {
            let candidates = weighty_candidates(&trace, stages, 60_000);
            let mask = candidates.mask(&all);
            let found = candidates.best(&mask, &[bound], Pool::Policies).swap_remove(0);
            let least = brute_force(&candidates, &all, bound);
            (candidates.outcome(&found.choice, &all).energy.total_uj(), found.energy, least)
        });
        if two.2.is_infinite() {
            continue;
        }
        assert!(three.0 <= two.0 * (1.0 + 1e-9), "{seed}: {two:?} {three:?}");
        assert!(three.1 <= two.1);
        refused += usize::from(three.2 < three.1 - 1e-9);
    }
    assert!(refused > 0, "no policy of three stages had cheaper computing and dearer traffic");
}

#[test]
fn thresholds_lie_between_distinct_margins() {
    let trace = trace(60, 4, 7);
    let candidates = candidates(&trace, 2);
    let all: Vec<usize> = (0..60).collect();
    let bounds: Vec<Bound> = (0..20).map(|i| Bound::plain(f64::from(i) / 50.0)).collect();
    for found in candidates.best(&candidates.mask(&all), &bounds, Pool::Policies) {
        let choice = found.choice;
        if let Some(&Gate { accept_at, .. }) = choice.gates.first() {
            // Margins are multiples of 3: a threshold on one would sit on the upper of two.
            let margins = &candidates.all[choice.stages[0]].margins.values;
            let above = margins.iter().filter(|&&m| m >= accept_at).min().unwrap();
            let below = margins.iter().filter(|&&m| m < accept_at).max().unwrap();
            assert_eq!(accept_at, below + (above - below + 1) / 2);
        }
    }
}

#[test]
fn the_same_seed_repeats_to_the_last_bit_at_any_thread_count() {
    let trace = trace(300, 4, 3);
    let candidates = candidates(&trace, 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let pools = [Pool::StaticUniform, Pool::Static];
        let choose = |[search, _]: [&[usize]; 2], pool, seed| {
            candidates.choose(search, 0.02.into(), pool, seed)
        };
        pool.install(|| repeat(&candidates, choose, [0.4, 0.3, 0.3], &pools, 3, 20, 5))
    };
    assert_eq!(run(1), run(4));
}

/// A sample of weight two is as good as two samples, but for what they tell: caution counts it as less.
#[test]
fn weighted_samples_are_worth_what_repeated_ones_are() {
    let once = mixed(trace(300, 3, 5), Some([2.0, 2.0]));
    // The second class has a third of the rows, and half of the weight.
    let twice: Vec<usize> =
        (0..300).flat_map(|row| vec![row; 1 + usize::from(row % 3 == 0)]).collect();
    let mut repeated = mixed(trace(300, 3, 5), None);
    let weighted = candidates(&once, 3);
    let all: Vec<usize> = (0..300).collect();
    repeated.samples = (0..twice.len()).collect();
    repeated.splits = vec![Split::Search; twice.len()];
    repeated.labels = twice.iter().map(|&row| once.labels[row]).collect();
    for block in &mut repeated.blocks {
        let mut answers = Answers::default();
        for &row in &twice {
            answers.push(block.answers.predicted[row], block.answers.margins[row], &[0, 0]);
        }
        block.answers = answers;
    }
    let repeated = candidates(&repeated, 3);
    let rows: Vec<usize> = (0..twice.len()).collect();
    for bound in [0.0, 0.02, 0.05, 0.1] {
        let choice = weighted.choose_once(&all, bound, Pool::Policies);
        assert_eq!(choice, repeated.choose_once(&rows, bound, Pool::Policies));
        let [a, b] = [weighted.outcome(&choice, &all), repeated.outcome(&choice, &rows)];
        assert!((a.drop - b.drop).abs() < 1e-12 && (a.accuracy - b.accuracy).abs() < 1e-12);
        let [a, b] = [a, b].map(|outcome| outcome.energy.chip_uj);
        assert!((a - b).abs() < 1e-9, "{a} {b}");
        let [a, b] =
            [weighted.oracle_energy(&choice, &all), repeated.oracle_energy(&choice, &rows)];
        assert!((a.chip_uj - b.chip_uj).abs() < 1e-9);
    }
    // (200 + 2 · 100)² / (200 + 4 · 100)
    let flips = weighted.expected_flips(&Choice::fixed(0), &all);
    assert_eq!(flips.samples, 267);
    let deployed = weighted.as_deployed(&all, 3);
    assert_eq!(deployed.len(), 200);
    assert_eq!(deployed.iter().filter(|&&row| row % 3 == 0).count(), 100);
    assert_eq!(repeated.as_deployed(&rows, 3), rows);
}
