//! Reports of small runs made up from random answers, which the library itself decides and sums up.

mod browser;
mod keyboard;

use super::*;
use crate::certify::{Demand, Test, Verdict};
use crate::energy::{AcceleratorProfile, LayerWork, Storage, Widths, Workload};
use crate::policy::{EnergyUj, Provenance, Tables};
use crate::search::{Candidates, Choice, Gate, Kind, PointInfo, Rules};
use crate::sensitivity::{LayerSensitivity, Sensitivity, WidthSensitivity};
use crate::summary::{
    Constraint, Facts, IndependentSummary, ModelSummary, StorageSummary, summarize,
};
use crate::trace::{Answers, Block, ClassMix, FLOAT, Random, Split, View};

const ROWS: usize = 240;
/// Points of the runs, narrow to wide, with the share of right answers in tenths.
const POINTS: [(&str, u8, usize); 4] =
    [("w2a2", 2, 7), ("w4a4", 4, 8), ("w8a8", 8, 9), ("w16a16", 16, 9)];

/// A policy of these points, with thresholds and, for the first stage, a learned gate.
struct Made {
    classes: usize,
    stages: &'static [usize],
    accept_at: &'static [i32],
    learned: bool,
    sum: bool,
    /// Classes are the more frequent in deployment, the higher their number.
    mixed: bool,
    /// Of hostile text, where that is wanted.
    name: &'static str,
    accelerator: &'static str,
}

const TWO: Made = Made {
    classes: 10,
    stages: &[0, 2],
    accept_at: &[60],
    learned: false,
    sum: false,
    mixed: false,
    name: "net",
    accelerator: "envision-28nm",
};
const ONE: Made = Made { stages: &[2], accept_at: &[], ..TWO };
const THREE: Made = Made { stages: &[0, 1, 2], accept_at: &[60, 45], learned: true, ..TWO };
const SUMMED: Made = Made { sum: true, accelerator: "bitfusion-45nm", ..TWO };
const BINARY: Made = Made { classes: 2, ..TWO };
const MIXED: Made = Made { mixed: true, ..THREE };
const MANY: Made = Made { classes: 1000, ..TWO };

/// Answers that are the more often right the higher the score leads.
fn block(point: &str, right: usize, made: &Made, random: &mut Random, labels: &[u32]) -> Block {
    let mut answers = Answers::default();
    for &label in labels {
        let is_right = random.below(10) < right;
        let lead = 1 + random.below(if is_right { 300 } else { 90 }) as i32;
        let other = (label as usize + 1 + random.below(made.classes - 1)) % made.classes;
        let mut scores: Vec<i32> = (0..made.classes).map(|_| random.below(40) as i32).collect();
        let (first, second) =
            if is_right { (label as usize, other) } else { (other, label as usize) };
        scores[second] = 50;
        scores[first] = 50 + lead;
        answers.push(first as u32, lead, &scores);
    }
    Block { point: point.to_owned(), view: View::AsIs, score_scale: 0.01, answers }
}

fn trace(made: &Made) -> Trace {
    let mut random = Random::new(3);
    let labels: Vec<u32> = (0..ROWS).map(|row| ((row * 7) % made.classes) as u32).collect();
    let mut blocks = vec![block(FLOAT, 9, made, &mut random, &labels)];
    for (name, _, right) in POINTS {
        blocks.push(block(name, right, made, &mut random, &labels));
        blocks.push(block(&format!("{name}-plain"), right - 1, made, &mut random, &labels));
    }
    let splits = [Split::Search, Split::Certification, Split::Test];
    let shares: Vec<f64> = (0..made.classes).map(|class| class as f64).collect();
    Trace {
        classes: made.classes,
        class_mix: made.mixed.then(|| ClassMix::try_from(shares).unwrap()),
        samples: (0..ROWS).collect(),
        splits: (0..ROWS).map(|row| splits[row % 3]).collect(),
        labels,
        blocks,
    }
}

fn workload() -> Workload {
    let layer = |name: &str, macs| LayerWork {
        name: name.to_owned(),
        macs,
        weights: 900,
        biases: 10,
        inputs: 400,
        outputs: 200,
        ..LayerWork::default()
    };
    Workload { layers: vec![layer("stem", 40_000), layer("body", 90_000), layer("head", 4_000)] }
}

fn sensitivity() -> Sensitivity {
    let widths = |quiet: f64| {
        [2_u8, 4, 8]
            .map(|bits| WidthSensitivity {
                weights: bits,
                activations: bits,
                divergence: 0.5 / f64::from(bits),
                snr_db: quiet + 6.0 * f64::from(bits),
                plain_snr_db: quiet + 5.0 * f64::from(bits),
            })
            .to_vec()
    };
    let layer = |(name, quiet): (&str, f64)| LayerSensitivity {
        name: name.to_owned(),
        widths: widths(quiet),
        input_peak: 30.0,
        channel_spread: 1.0,
        weight_peak: 2.0,
        bias_share: 0.1,
    };
    Sensitivity { layers: [("stem", -4.0), ("body", 1.0), ("head", 8.0)].map(layer).to_vec() }
}

/// Summary and policy of a choice, and the trace.
fn parts(made: &Made) -> (Summary, PolicyFile, Trace) {
    let trace = trace(made);
    let workload = workload();
    let info = |name: String, kind, bits| PointInfo {
        point: name,
        view: View::AsIs,
        kind,
        widths: vec![Widths { weights: bits, activations: bits }; 3],
        alike: 0,
    };
    let infos = POINTS.iter().map(|&(name, bits, _)| info(name.to_owned(), Kind::Uniform, bits));
    let plain =
        POINTS.iter().map(|&(name, bits, _)| info(format!("{name}-plain"), Kind::Plain, bits));
    let profile = AcceleratorProfile::find(made.accelerator).unwrap();
    let rules = Rules { stages: 3, sums: made.sum, ..Rules::default() };
    let infos: Vec<PointInfo> = infos.chain(plain).collect();
    let candidates = Candidates::new(&trace, FLOAT, infos, &profile, &workload, rules).unwrap();
    let mut stages = made.stages.to_vec();
    if made.sum {
        // Candidates with summed scores come after the points.
        let sums = candidates.points().count()..;
        let pair = |index: &usize| candidates.name(*index) == "w2a2+w8a8";
        stages = vec![0, sums.take(100).find(pair).unwrap()];
    }
    let entries = |by: i32| (0..made.classes as i32).map(|class| class % 5 * by).collect();
    let gates = made.accept_at.iter().enumerate().map(|(index, &accept_at)| Gate {
        accept_at,
        tables: (made.learned && index == 0).then(|| Tables {
            predicted: entries(2),
            runner_up: entries(-3),
            disagreement: 0,
        }),
    });
    let choice = Choice { stages, gates: gates.collect() };
    let constraint = Constraint {
        max_accuracy_drop: 0.01,
        no_worse_than_static: false,
        max_energy_uj: None,
        guarantee: None,
        confidence: 0.95,
        test: Test::Exact,
    };
    let demand: Demand = constraint.demand();
    let [choosing, proving] = demand.rows(&trace);
    let flips = candidates.flips(&choice, &proving);
    let bound = Some(demand.test.upper_bound(flips, 0.05));
    let verdict = Verdict { choice, certificate: None, bound, samples_needed: None };
    let hash = || "0".repeat(64);
    let provenance = Provenance {
        tool_version: "0.0.0".to_owned(),
        model_sha256: hash(),
        data_sha256: hash(),
        calibration_sha256: hash(),
        accelerator_sha256: hash(),
        seed: 1,
    };
    let expected = candidates.outcome(&verdict.choice, &choosing);
    let policy = PolicyFile::new(&trace, &candidates, &verdict.choice, &expected, None, provenance);
    let storage = StorageSummary {
        kind: Storage::Independent,
        weight_bytes: 1234,
        independent: IndependentSummary {
            weight_bytes: 1234,
            accuracy: 0.9,
            energy_uj: EnergyUj { total: 1.0, chip: 1.0, offchip: 0.0 },
        },
    };
    let facts = Facts {
        model: ModelSummary {
            name: made.name.to_owned(),
            sha256: hash(),
            macs: workload.macs(),
            parameters: 2730,
            float_islands: Vec::new(),
        },
        calibration: 50,
        labelled: true,
        profile: &profile,
        constraint,
        reference: "float".to_owned(),
        tables: std::collections::BTreeMap::new(),
        sensitivity: Some(sensitivity()),
        storage,
        seed: 1,
        repeats: 3,
        options: Vec::new(),
        targets: crate::summary::targets_around(&constraint),
    };
    let summary = summarize(&trace, &candidates, &verdict, &policy, facts);
    (summary, policy, trace)
}

fn run(made: &Made) -> Run {
    let (summary, policy, trace) = parts(made);
    Run::new(summary, policy, &trace).unwrap()
}

/// A page without style, script and drawings.
fn words(page: &str) -> String {
    let mut text = page.to_owned();
    for (from, to) in [("<style>", "</style>"), ("<script>", "</script>"), ("<svg", "</svg>")] {
        while let Some(start) = text.find(from) {
            let end = start + text[start..].find(to).unwrap() + to.len();
            text.replace_range(start..end, "…");
        }
    }
    text
}

#[test]
fn the_page_of_two_stages_says_what_it_always_said() {
    insta::assert_snapshot!("page", words(&run(&TWO).page()));
}

#[test]
fn figures_look_as_they_always_did() {
    for figure in run(&TWO).figures() {
        insta::assert_snapshot!(figure.name.clone(), figure.svg);
    }
    let three = run(&THREE).figures();
    let escalation = three.into_iter().find(|figure| figure.name == "escalation").unwrap();
    insta::assert_snapshot!("escalation-of-three", escalation.svg);
    let many = run(&MANY).figures();
    let confusion = many.into_iter().find(|figure| figure.name == "confusion").unwrap();
    insta::assert_snapshot!("confusion-of-many", confusion.svg);
}

#[test]
fn every_sort_of_policy_is_replayed_as_the_search_scored_it() {
    for made in [TWO, ONE, THREE, SUMMED, BINARY, MANY] {
        // `Run::new` refuses a replay that differs from the summary in accuracy or escalation.
        let run = run(&made);
        assert!(run.page().len() > 10_000);
        let names: Vec<String> = run.figures().into_iter().map(|figure| figure.name).collect();
        assert_eq!(names.contains(&"threshold".to_owned()), made.stages.len() > 1);
        assert!(names.contains(&format!("stage-{}", made.stages.len())));
    }
    let sum = run(&SUMMED);
    assert!(sum.page().contains("w8a8, scores summed"));
    assert!(run(&ONE).page().contains("A static bit-width is best here: <b>w8a8</b>"));
}

#[test]
fn parts_of_the_energy_add_up_to_the_policys() {
    for made in [TWO, THREE, SUMMED] {
        let Run { summary, policy, .. } = run(&made);
        for (parts, energy) in summary.stage_energies.iter().zip(&policy.stage_energy_uj) {
            let layers: f64 = parts
                .layers
                .iter()
                .map(|l| l.compute_uj + l.memory_uj + l.leakage_uj + l.offchip_uj)
                .sum();
            let total = layers + parts.transitions_uj + parts.boundary_uj;
            assert!((total / energy.total - 1.0).abs() < 1e-9, "{total}, not {}", energy.total);
        }
    }
}

#[test]
fn the_frontier_rises_in_target_and_holds_the_one_that_was_asked_for() {
    let summary = run(&TWO).summary;
    let targets: Vec<f64> = summary.frontier.iter().map(|f| f.max_accuracy_drop).collect();
    assert!(targets.windows(2).all(|pair| pair[0] < pair[1]), "{targets:?}");
    let asked = summary.frontier.iter().find(|f| f.max_accuracy_drop == 0.01).unwrap();
    // Chosen by the same rules on the same samples.
    let static_point = &summary.best_static;
    assert_eq!(asked.best_static.accuracy, static_point.accuracy);
    assert_eq!(asked.best_static.energy_uj, static_point.energy_uj);
}

#[test]
fn the_explorers_data_gives_the_policys_own_figures_at_its_thresholds() {
    for made in [TWO, THREE, SUMMED, MIXED, BINARY, MANY] {
        let run = run(&made);
        let (accuracy, rates, chip) = explorer::outcome(&run, made.accept_at);
        let policy = &run.summary.policy;
        assert_eq!((accuracy, &rates), (policy.accuracy, &policy.escalation_rates));
        assert!((chip - policy.energy_uj.chip).abs() < 1e-12);
    }
}

#[test]
fn a_class_mix_is_said_wherever_samples_are_counted() {
    let run = run(&MIXED);
    let text = text::weighting(&run.summary).unwrap();
    assert!(run.page().contains(&text), "{text}");
    let accuracy = text::percent(run.summary.policy.accuracy);
    assert!(run.page().contains(&format!("policy: {accuracy} right")), "{accuracy}");
    assert!(run.summary.policy.accuracy != self::run(&THREE).summary.policy.accuracy);
    assert_eq!(text::weighting(&self::run(&THREE).summary), None);
}

#[test]
fn text_from_files_stays_text() {
    let hostile = "</title></script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&";
    let made = Made { name: hostile, ..TWO };
    let (mut summary, mut policy, mut trace) = parts(&made);
    // Wherever a file's text can stand.
    summary.accelerator = hostile.to_owned();
    summary.not_counted = vec![hostile.to_owned()];
    summary.options = vec![crate::summary::PolicyOption {
        name: hostile.to_owned(),
        max_accuracy_drop: 0.02,
        stages: vec![hostile.to_owned()],
        accuracy: 0.9,
        accuracy_drop: 0.01,
        energy_uj: summary.policy.energy_uj,
        escalation_rates: Vec::new(),
        certified: false,
        drop_upper_bound: None,
    }];
    summary.reference.kind = hostile.to_owned();
    summary.mac_holds = vec!["mac".to_owned(), hostile.to_owned()];
    summary.best_static.point = hostile.to_owned();
    summary.savings_interval.vs_best_static.most = Some(hostile.to_owned());
    summary.frontier[0].policy.stages = vec![hostile.to_owned()];
    for stage in &mut summary.stage_energies {
        stage.layers[0].name = hostile.to_owned();
    }
    summary.r#static[0].point = hostile.to_owned();
    summary.sensitivity.as_mut().unwrap().layers[0].name = hostile.to_owned();
    policy.provenance.tool_version = hostile.to_owned();
    policy.provenance.model_sha256 = hostile.to_owned();
    policy.stages[0].point = hostile.to_owned();
    for block in trace.blocks.iter_mut().filter(|block| block.point == "w2a2") {
        block.point = hostile.to_owned();
    }
    let run = Run::new(summary, policy, &trace).unwrap();
    let comparison = comparison(&[(hostile.to_owned(), run.clone())]);
    for page in [run.page(), comparison] {
        assert!(page.contains("alert(1)"));
        for tag in ["<script>alert", "<img"] {
            assert!(!page.contains(tag), "{tag}");
        }
    }
    for figure in run.figures() {
        assert!(!figure.file().contains("<script") && !figure.file().contains("<img"));
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (summary, policy, trace) = parts(&TWO);
    let error = |summary: &Summary, policy: &PolicyFile, trace: &Trace| {
        Run::new(summary.clone(), policy.clone(), trace).unwrap_err().to_string()
    };
    let mut seen = Vec::new();
    let other = parts(&THREE).1;
    seen.push(error(&summary, &other, &trace));
    let mut without = trace.clone();
    without.blocks.retain(|block| block.point != "w8a8");
    seen.push(error(&summary, &policy, &without));
    let mut relabelled = trace.clone();
    relabelled.labels.iter_mut().for_each(|label| *label = (*label + 1) % 10);
    seen.push(error(&summary, &policy, &relabelled));
    let mut untested = trace.clone();
    untested.splits.fill(Split::Search);
    seen.push(error(&summary, &policy, &untested));
    let mut ragged = summary.clone();
    ragged.stage_energies[1].layers.pop();
    seen.push(error(&ragged, &policy, &trace));
    let mut rates = summary.clone();
    rates.policy.escalation_rates.clear();
    seen.push(error(&rates, &policy, &trace));
    insta::assert_snapshot!(seen.join("\n"), @"
    the files do not belong together: `summary.json` has 2 stages, `policy.json` 3
    the files do not belong together: the trace has no point `w8a8`
    the files do not belong together: `summary.json` gives the policy an accuracy of 0.85, the trace of 0.025
    the files do not belong together: the trace has no test samples
    the files do not belong together: `summary.json` takes the costs of 2 stages apart
    the files do not belong together: `summary.json` has 0 escalation rates of 2 stages
    ");
}

#[test]
fn a_run_of_an_earlier_version_has_a_page_without_what_it_does_not_say() {
    let (mut summary, policy, trace) = parts(&TWO);
    (summary.frontier, summary.stage_energies) = (Vec::new(), Vec::new());
    (summary.mac_holds, summary.sensitivity) = (Vec::new(), None);
    let run = Run::new(summary, policy, &trace).unwrap();
    assert!(run.page().contains("earlier version of bitgear"));
    assert!(run.figures().iter().all(|figure| figure.name != "energy-layers"));
}

#[test]
fn every_class_of_a_mark_has_colours_of_its_own_without_a_style_sheet() {
    for made in [TWO, ONE, THREE, SUMMED, MANY] {
        for figure in run(&made).figures() {
            assert!(!figure.file().contains("class="), "{}", figure.name);
        }
    }
}

#[test]
fn runs_stand_side_by_side_in_the_order_given() {
    let runs = [("first".to_owned(), run(&TWO)), ("second".to_owned(), run(&ONE))];
    insta::assert_snapshot!("comparison", words(&comparison(&runs)));
}
