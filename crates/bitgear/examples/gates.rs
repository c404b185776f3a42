//! What a gate between two stages could reach at best: with other measures of confidence, and with a strong
//! learner that sees all scores of the low stage. What `docs/policy.md` reports.
//!
//! `cargo run --release -p bitgear --example gates -- ACCELERATOR FOLDER=MODEL…`
//!
//! All samples of a run serve, as in the hindsight of `how_good`: the threshold is the one that accepts most
//! at a drop of at most the target. Of the pairs that are cheapest with margins, each gate takes the one that
//! is cheapest with it. Learned gates speak of samples that they did not learn from (five and ten folds).
//! Each figure is the chip energy that a gate needs, in percent of what the margin needs.
//!
//! The learner is gradient boosting of small trees: as for the gate that bitgear learns, "next stage right
//! minus this stage right" has the mean exp(F), and F begins as a straight line of the margin; samples that
//! are held out within the fold say when to stop. It sees the margin, the gaps to the next scores, the
//! measures below, and every class's score. It shows what *can* be learned from so many samples; a better
//! learner could do better.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

use std::path::Path;

use bitgear::characterize::Finished;
use bitgear::energy::AcceleratorProfile;
use bitgear::search::{Candidates, Choice, Gate, Kind, Rules};
use bitgear::trace::{Block, FLOAT, Random, Trace, View, deal, members};
use rayon::prelude::*;

const TARGETS: [f64; 2] = [0.002, 0.005];
/// Pairs of stages that are looked at for each target.
const PAIRS: usize = 6;
const GATES: [&str; 8] = [
    "margin",
    "softmax margin",
    "maximum softmax",
    "entropy",
    "maximum logit",
    "tables",
    "boosted",
    "oracle",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [accelerator, runs @ ..] = &arguments[..] else {
        eprintln!("usage: gates ACCELERATOR FOLDER=MODEL…");
        std::process::exit(2);
    };
    let profile = AcceleratorProfile::find(accelerator)?;
    println!("| target, run | {} |", GATES.join(" | "));
    println!("|{}", " --- |".repeat(GATES.len() + 1));
    let mut logarithms = [[0.0_f64; GATES.len()]; TARGETS.len()];
    for run in runs {
        let (folder, model) = run.split_once('=').ok_or("expected FOLDER=MODEL")?;
        let Finished { trace, points, workload } =
            Finished::read(Path::new(folder), Path::new(model))?;
        let rules = Rules { sums: false, ..Rules::default() };
        let candidates = Candidates::new(&trace, FLOAT, points, &profile, &workload, rules)?;
        let pairs = pairs(&candidates, &trace);
        for (target, logarithms) in TARGETS.into_iter().zip(&mut logarithms) {
            let most = (target * trace.samples.len() as f64 + 1e-9).floor() as i64;
            let mut cheapest: Vec<(f64, &Pair)> =
                pairs.iter().map(|pair| (pair.energy(&pair.margins(), most), pair)).collect();
            cheapest.sort_by(|a, b| a.0.total_cmp(&b.0));
            let of_pair = |(_, pair): &(f64, &Pair)| pair.gates(&candidates, &trace, most);
            let energies: Vec<[f64; GATES.len()]> =
                cheapest[..PAIRS.min(pairs.len())].par_iter().map(of_pair).collect();
            let best: [f64; GATES.len()] = std::array::from_fn(|gate| {
                energies.iter().map(|of_pair| of_pair[gate]).fold(f64::INFINITY, f64::min)
            });
            let figures = best.map(|energy| format!("{:.1}", 100.0 * energy / best[0]));
            let name = folder.rsplit('/').next().unwrap_or(folder);
            println!("| {:.1}, {name} | {} |", 100.0 * target, figures.join(" | "));
            for (sum, energy) in logarithms.iter_mut().zip(best) {
                *sum += (energy / best[0]).ln() / runs.len() as f64;
            }
        }
    }
    for (target, logarithms) in TARGETS.into_iter().zip(logarithms) {
        let means = logarithms.map(|sum| format!("{:.1}", 100.0 * sum.exp()));
        println!("| {:.1}, geometric mean | {} |", 100.0 * target, means.join(" | "));
    }
    Ok(())
}

/// Two stages: what each answers, and what it costs.
struct Pair<'t> {
    stages: [usize; 2],
    low: &'t Block,
    /// Reference right minus stage right, of each sample.
    lost: [Vec<i64>; 2],
    chip_uj: [f64; 2],
}

/// All pairs of fitted points whose second stage is right more often.
fn pairs<'t>(candidates: &Candidates, trace: &'t Trace) -> Vec<Pair<'t>> {
    let block = |point: &str| trace.block(point, View::AsIs).expect("traced");
    let reference = trace.correct(block(FLOAT));
    let points: Vec<(usize, &Block, Vec<i64>)> = candidates
        .points()
        .enumerate()
        .filter(|(_, info)| {
            matches!(info.kind, Kind::Uniform | Kind::Mixed) && info.view == View::AsIs
        })
        .map(|(index, info)| {
            let block = block(&info.point);
            let right = trace.correct(block);
            let lost = reference.iter().zip(right).map(|(&r, s)| i64::from(r) - i64::from(s));
            (index, block, lost.collect())
        })
        .collect();
    let sum = |lost: &[i64]| lost.iter().sum::<i64>();
    let mut pairs = Vec::new();
    for (first, low, before) in &points {
        for (second, _, after) in points.iter().filter(|(_, _, after)| sum(after) < sum(before)) {
            let stages = [*first, *second];
            let choice = Choice { stages: stages.to_vec(), gates: vec![Gate::margin(0)] };
            let energies = candidates.stage_energies(&choice);
            let chip_uj = [energies[0].chip_uj, energies[1].chip_uj];
            pairs.push(Pair { stages, low, lost: [before.clone(), after.clone()], chip_uj });
        }
    }
    pairs
}

impl Pair<'_> {
    fn margins(&self) -> Vec<f64> {
        self.low.answers.margins.iter().map(|&margin| f64::from(margin)).collect()
    }

    /// What each of [`GATES`] needs to lose at most so many samples.
    fn gates(&self, candidates: &Candidates, trace: &Trace, most: i64) -> [f64; GATES.len()] {
        let features = features(self.low);
        let measure = |index: usize| features.iter().map(|row| row[index]).collect::<Vec<f64>>();
        let gains: Vec<f64> =
            self.lost[0].iter().zip(&self.lost[1]).map(|(a, b)| (a - b) as f64).collect();
        let all: Vec<usize> = (0..gains.len()).collect();
        let energy = |values: &[f64]| self.energy(values, most);
        let tables =
            candidates.learned_confidences(&all, self.stages, 1).map_or(f64::INFINITY, |v| {
                energy(&v.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>())
            });
        let boosted = boost::out_of_fold(&features, &gains, &trace.labels);
        // Harmful hand-overs last.
        let oracle: Vec<f64> = gains.iter().map(|gain| -gain).collect();
        [
            energy(&self.margins()),
            energy(&measure(1)),
            energy(&measure(2)),
            energy(&measure(3)),
            energy(&measure(4)),
            tables,
            energy(&boosted),
            self.needed(&oracle, most),
        ]
    }

    /// Mean chip energy where the most samples of the highest values are accepted.
    fn energy(&self, values: &[f64], most: i64) -> f64 {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        let mut lost: i64 = self.lost[1].iter().sum();
        let mut accepted = (lost <= most).then_some(0);
        for (count, &row) in order.iter().enumerate() {
            lost += self.lost[0][row] - self.lost[1][row];
            let parts = order.get(count + 1).is_none_or(|&next| values[next] < values[row]);
            if parts && lost <= most {
                accepted = Some(count + 1);
            }
        }
        accepted.map_or(f64::INFINITY, |count| self.price(values.len() - count))
    }

    /// The same for a gate that may part equal values.
    fn needed(&self, values: &[f64], most: i64) -> f64 {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mut lost: i64 = self.lost[0].iter().sum();
        let mut handed_on = 0;
        for &row in &order {
            if lost <= most {
                break;
            }
            lost += self.lost[1][row] - self.lost[0][row];
            handed_on += 1;
        }
        if lost <= most { self.price(handed_on) } else { f64::INFINITY }
    }

    fn price(&self, handed_on: usize) -> f64 {
        let rate = handed_on as f64 / self.lost[0].len() as f64;
        self.chip_uj[0] + rate * self.chip_uj[1]
    }
}

/// Of each sample: the margin, softmax margin, maximum softmax, negated entropy, maximum over the 4-norm,
/// the gaps to the next scores, and every class's distance from the highest where all classes are kept.
fn features(block: &Block) -> Vec<Vec<f64>> {
    let answers = &block.answers;
    let kept = answers.scores.len() / answers.len().max(1);
    let of_sample = |scores: &[i32]| -> Vec<f64> {
        let scores: Vec<f64> = scores.iter().map(|&s| f64::from(s) * block.score_scale).collect();
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let shares: Vec<f64> = sorted.iter().map(|s| (s - sorted[0]).exp()).collect();
        let sum: f64 = shares.iter().sum();
        let entropy: f64 = shares.iter().map(|s| s / sum).map(|p| p * p.max(1e-300).ln()).sum();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let norm = scores.iter().map(|s| (s - mean).powi(4)).sum::<f64>().sqrt().sqrt();
        let mut features = vec![
            sorted[0] - sorted[1],
            (shares[0] - shares[1]) / sum,
            shares[0] / sum,
            entropy,
            (sorted[0] - mean) / norm.max(f64::MIN_POSITIVE),
        ];
        features.extend(sorted.iter().skip(2).take(4).map(|s| sorted[0] - s));
        if answers.score_classes.is_empty() {
            features.extend(scores.iter().map(|s| sorted[0] - s));
        }
        features
    };
    answers.scores.chunks_exact(kept).map(of_sample).collect()
}

/// Gradient boosting of trees.
mod boost {
    use super::{Random, deal, members};

    const FOLDS: usize = 10;
    const ROUNDS: usize = 300;
    /// Rounds without a gain on the held-out samples before the end.
    const PATIENCE: usize = 40;
    const RATE: f64 = 0.05;
    const DEPTH: usize = 3;
    const BINS: usize = 32;
    /// Penalty of a leaf's value, in samples of mean 1.
    const PENALTY: f64 = 2.0;

    /// Minus the expected gain of each sample, by what was learned from samples of other folds.
    pub(super) fn out_of_fold(features: &[Vec<f64>], gains: &[f64], labels: &[u32]) -> Vec<f64> {
        let bins = bins(features);
        let part = deal(labels, &[1.0; FOLDS], &mut Random::new(7));
        let mut values = vec![0.0; gains.len()];
        for fold in 0..FOLDS {
            let others: Vec<usize> = (0..gains.len()).filter(|&i| part[i] != fold).collect();
            let inner: Vec<u32> = others.iter().map(|&i| labels[i]).collect();
            let inner = members(&deal(&inner, &[0.8, 0.2], &mut Random::new(fold as u64)), 2);
            let [fitted, held] = [0, 1]
                .map(|side: usize| inner[side].iter().map(|&i| others[i]).collect::<Vec<usize>>());
            let model = Model::fit(features, &bins, gains, &fitted, &held);
            for i in (0..gains.len()).filter(|&i| part[i] == fold) {
                values[i] = -model.value(&features[i], &bins[i]);
            }
        }
        values
    }

    /// The bin of every value, by quantiles of its feature.
    fn bins(features: &[Vec<f64>]) -> Vec<Vec<u8>> {
        let count = features.first().map_or(0, Vec::len);
        let mut bins = vec![vec![0; count]; features.len()];
        for feature in 0..count {
            let mut sorted: Vec<f64> = features.iter().map(|row| row[feature]).collect();
            sorted.sort_by(f64::total_cmp);
            let edges: Vec<f64> = (1..BINS).map(|bin| sorted[bin * sorted.len() / BINS]).collect();
            for (bins, row) in bins.iter_mut().zip(features) {
                bins[feature] = edges.partition_point(|&edge| edge <= row[feature]) as u8;
            }
        }
        bins
    }

    /// F = line\[0\] - line\[1\] · margin + the trees.
    struct Model {
        line: [f64; 2],
        trees: Vec<Vec<Node>>,
    }

    /// An inner node sends bins below `bin` to `next`, others to the node after that; a leaf has no `next`.
    #[derive(Clone, Copy)]
    struct Node {
        feature: usize,
        bin: u8,
        next: Option<usize>,
        value: f64,
    }

    impl Model {
        fn fit(
            features: &[Vec<f64>],
            bins: &[Vec<u8>],
            gains: &[f64],
            fitted: &[usize],
            held: &[usize],
        ) -> Self {
            let line = line(features, gains, fitted);
            let mut model = Self { line, trees: Vec::new() };
            let mut values: Vec<f64> = features.iter().map(|row| model.base(row)).collect();
            let loss = |values: &[f64]| -> f64 {
                held.iter().map(|&i| values[i].min(30.0).exp() - gains[i] * values[i]).sum()
            };
            let (mut least, mut kept) = (loss(&values), 0);
            for round in 1..=ROUNDS {
                let tree = grow(bins, gains, &values, fitted);
                for (value, bins) in values.iter_mut().zip(bins) {
                    *value += leaf(&tree, bins);
                }
                model.trees.push(tree);
                let loss = loss(&values);
                if loss < least {
                    (least, kept) = (loss, round);
                }
                if round > kept + PATIENCE {
                    break;
                }
            }
            model.trees.truncate(kept);
            model
        }

        fn base(&self, features: &[f64]) -> f64 {
            self.line[0] - self.line[1] * features[0]
        }

        fn value(&self, features: &[f64], bins: &[u8]) -> f64 {
            self.base(features) + self.trees.iter().map(|tree| leaf(tree, bins)).sum::<f64>()
        }
    }

    fn leaf(tree: &[Node], bins: &[u8]) -> f64 {
        let mut node = tree[0];
        while let Some(next) = node.next {
            node = tree[next + usize::from(bins[node.feature] >= node.bin)];
        }
        node.value
    }

    /// Newton's method for the line of the margin alone, damped.
    fn line(features: &[Vec<f64>], gains: &[f64], rows: &[usize]) -> [f64; 2] {
        let count = rows.len() as f64;
        let unit = rows.iter().map(|&i| features[i][0]).sum::<f64>() / count;
        let gained = rows.iter().map(|&i| gains[i]).sum::<f64>().max(0.5);
        let mut line = [(gained / count).ln(), 0.0];
        for _ in 0..50 {
            let (mut slope, mut curve) = ([0.0; 2], [[1e-6, 0.0], [0.0, 1e-6]]);
            for &i in rows {
                let x = [1.0, -features[i][0] / unit];
                let mean = (line[0] * x[0] + line[1] * x[1]).min(3.0).exp();
                for a in 0..2 {
                    slope[a] += (mean - gains[i]) * x[a];
                    for b in 0..2 {
                        curve[a][b] += mean * x[a] * x[b];
                    }
                }
            }
            let determinant = curve[0][0] * curve[1][1] - curve[0][1] * curve[1][0];
            let step = [
                (slope[0] * curve[1][1] - slope[1] * curve[0][1]) / determinant,
                (slope[1] * curve[0][0] - slope[0] * curve[1][0]) / determinant,
            ];
            let length = step[0].hypot(step[1]).max(1.0);
            line = [line[0] - step[0] / length, line[1] - step[1] / length];
        }
        [line[0], line[1] / unit]
    }

    /// A tree of Newton steps, level by level.
    fn grow(bins: &[Vec<u8>], gains: &[f64], values: &[f64], rows: &[usize]) -> Vec<Node> {
        let none = Node { feature: 0, bin: 0, next: None, value: 0.0 };
        let mut tree = vec![none];
        let mut leaves = vec![(0, rows.to_vec())];
        for depth in 0..=DEPTH {
            let mut next = Vec::new();
            for (index, rows) in leaves {
                let sums = |row: usize| {
                    let mean = values[row].min(30.0).exp();
                    [mean - gains[row], mean]
                };
                let total = rows.iter().fold([0.0; 2], |sum, &row| add(sum, sums(row)));
                tree[index].value = -RATE * total[0] / (total[1] + PENALTY);
                let split = if depth < DEPTH { split(bins, &rows, total, sums) } else { None };
                if let Some((feature, bin)) = split {
                    let (low, high): (Vec<usize>, Vec<usize>) =
                        rows.into_iter().partition(|&row| bins[row][feature] < bin);
                    let at = tree.len();
                    tree[index] = Node { feature, bin, next: Some(at), value: 0.0 };
                    tree.extend([none, none]);
                    next.extend([(at, low), (at + 1, high)]);
                }
            }
            leaves = next;
        }
        tree
    }

    fn add(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }

    /// The split that lowers the loss most, if one does.
    fn split(
        bins: &[Vec<u8>],
        rows: &[usize],
        total: [f64; 2],
        sums: impl Fn(usize) -> [f64; 2],
    ) -> Option<(usize, u8)> {
        let score = |[slope, mean]: [f64; 2]| slope * slope / (mean + PENALTY);
        let mut best = (score(total) + 1e-9, None);
        let count = bins.first().map_or(0, Vec::len);
        let mut histograms = vec![[[0.0; 2]; BINS]; count];
        for &row in rows {
            let sums = sums(row);
            for (histogram, &bin) in histograms.iter_mut().zip(&bins[row]) {
                histogram[bin as usize] = add(histogram[bin as usize], sums);
            }
        }
        for (feature, histogram) in histograms.iter().enumerate() {
            let mut low = [0.0; 2];
            for bin in 1..BINS {
                low = add(low, histogram[bin - 1]);
                let high = [total[0] - low[0], total[1] - low[1]];
                let both = score(low) + score(high);
                if both > best.0 {
                    best = (both, Some((feature, bin as u8)));
                }
            }
        }
        best.1
    }
}
