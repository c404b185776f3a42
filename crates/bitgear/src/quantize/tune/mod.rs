//! Tuning of a whole network: scales and biases move, codes of weights stay.
//!
//! Layers are fitted one by one, each to its own float result; what counts is the scores. Here the
//! divergence of the scores from the float network's is reduced by Adam (Kingma & Ba 2015,
//! arXiv 1412.6980), on what costs nothing to change: the scale of each channel's weights, its bias,
//! and the scales of activations. Rounding passes gradients on (Bengio et al. 2013, arXiv
//! 1308.3432; for scales Esser et al. 2020, arXiv 1902.08153). Samples are mixed two by two (Zhang
//! et al. 2018, arXiv 1710.09412), so that few go a long way: the float network scores a mixture as
//! well as anything else, and no labels are needed. They are also moved about.

mod moved;
mod network;

use rayon::prelude::*;

use self::moved::Moves;
use self::network::Network;
use super::Widths;
use super::methods::Methods;
use super::parameters::Parameters;
use super::pass::{Pass, Plan};
use super::slopes::divergence;
use crate::float;
use crate::tensor::Tensor;
use crate::trace::Random;

/// Most multiply-accumulates of all samples' runs through a network: a large one is tuned in fewer steps.
const MOST_WORK: u64 = 600_000_000_000;
/// A network for which fewer steps are affordable is not tuned.
const FEWEST_STEPS: usize = 8;
/// Samples to a step: at most, and as a share of all.
const BATCH: usize = 32;
const BATCHES: usize = 6;
/// Size of the first step; the others follow a cosine down to nothing. Where fewer steps are affordable than were
/// asked for, all are smaller in proportion: large networks are deep, and what goes wrong in one layer goes wrong in all
/// behind it.
const RATE: f32 = 0.005;
/// How much of the mean gradient and of its mean square outlasts a step.
const DECAY: (f32, f32) = (0.9, 0.99);
/// Of so many samples one is held out, to tell whether tuning helped.
pub(super) const HELD_OUT: usize = 8;
/// Fewer samples than this are no ground to tune on.
const FEWEST: usize = 32;
/// Fewer samples than this are looked at in twice as many steps.
const FEW: usize = 256;
/// Mean divergence, in nats, that leaves nothing to gain.
const NEGLIGIBLE: f64 = 0.01;
/// Samples that sizes of results are measured on.
const MEASURED: usize = 32;

/// Whether points of this network are tuned, given its number of samples: all alike, so that points
/// share what they have in common.
pub(super) fn applies(pass: &Pass<'_>) -> bool {
    runs(pass) > 0
}

/// How many samples run through the network, forwards and backwards, to tune a point of it.
pub(super) fn runs(pass: &Pass<'_>) -> usize {
    let tells = pass.samples >= FEWEST && pass.graph.classes() > 1;
    if tells { steps(pass, is_few(pass)) * BATCH } else { 0 }
}

/// Whether there are few samples, of a network that can be run often enough to look at them twice as often.
pub(super) fn is_few(pass: &Pass<'_>) -> bool {
    pass.samples < FEW && steps(pass, true) > pass.methods.tuning
}

/// As many steps as are asked for, twice as many with few samples, or fewer where these are too much work.
fn steps(pass: &Pass<'_>, few: bool) -> usize {
    let macs: u64 = pass.graph.mac_layers().iter().map(|layer| layer.macs).sum();
    let affordable = MOST_WORK / (BATCH as u64 * macs.max(1));
    let affordable = usize::try_from(affordable).unwrap_or(usize::MAX);
    let wanted = pass.methods.tuning * if few { 2 } else { 1 };
    if affordable >= FEWEST_STEPS { wanted.min(affordable) } else { 0 }
}

/// Better `parameters` of the point of `pass`, if it has narrow layers, learned from `samples`,
/// unless `held_out` ones clearly say they are worse. Both are of shape (N, sample shape). `few` samples
/// are looked at twice as often.
pub(super) fn tune(
    pass: &Pass<'_>,
    few: bool,
    samples: &Tensor,
    held_out: &Tensor,
    parameters: Parameters,
) -> Parameters {
    let layers = parameters.layers.len();
    let narrow = (0..layers).any(|layer| {
        let Widths { weights, activations } = pass.point.widths(layer, layers);
        weights.min(activations).get() <= Methods::TUNED_BITS
    });
    if !narrow {
        return parameters;
    }
    let plan = Plan::new(pass.graph, pass.point);
    let samples = rows(samples);
    let held_out = rows(held_out);
    let network = Network::new(pass, &plan, &parameters, &samples[..MEASURED.min(samples.len())]);
    let exact: Vec<Vec<f32>> = held_out.par_iter().map(|one| float_scores(pass, one)).collect();
    let divergences = |knobs: &[f32]| -> Vec<f64> {
        let setting = network.set(knobs);
        let each = held_out.par_iter().zip(&exact).map(|(one, exact)| {
            divergence(exact, &network.scores(&setting, one), pass.graph.classes())
        });
        each.collect()
    };
    let before = divergences(&vec![0.0; network.limits().len()]);
    if before.iter().sum::<f64>() < NEGLIGIBLE * before.len() as f64 {
        return parameters;
    }
    let knobs = learn(pass, &network, &samples, few);
    if is_no_more(&divergences(&knobs), &before) { network.parameters(&knobs) } else { parameters }
}

fn rows(samples: &Tensor) -> Vec<&[f32]> {
    samples.values().chunks_exact(samples.values().len() / samples.shape()[0]).collect()
}

/// Knobs of less divergence on `samples`.
fn learn(pass: &Pass<'_>, network: &Network<'_>, samples: &[&[f32]], few: bool) -> Vec<f32> {
    let steps = steps(pass, few);
    let largest = RATE * (steps as f32 / pass.methods.tuning as f32).min(1.0);
    let moves = Moves::new(pass.graph.shape(pass.graph.input));
    // A network that can't be run as often as was asked for hardly sees its samples often enough to learn them
    // by heart.
    let moved = steps >= pass.methods.tuning;
    let offset = |random: &mut Random| if moved { moves.draw(random) } else { [0; 2] };
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let mut adam = Adam::new(network.limits().len());
    let batch = order.len().div_ceil(BATCHES).min(BATCH);
    let mut random = Random::new(0);
    for step in 0..steps {
        let at = step * batch % order.len();
        if at < batch {
            random.shuffle(&mut order);
        }
        let pairs: Vec<Pair> = (0..batch)
            .map(|i| Pair {
                offsets: [offset(&mut random), offset(&mut random)],
                one: order[(at + i) % order.len()],
                other: order[random.below(order.len())],
                share: (random.below(1 << 16) as f32 / f32::from(u16::MAX) - 0.5).max(0.0),
            })
            .collect();
        let setting = network.set(&adam.knobs);
        let each = pairs.par_iter().map(|pair| {
            let [one, other] = [(pair.one, pair.offsets[0]), (pair.other, pair.offsets[1])]
                .map(|(index, offset)| moves.apply(offset, samples[index]));
            let both = one.iter().zip(&other[..]);
            let mixed: Vec<f32> = both.map(|(a, b)| a + pair.share * (b - a)).collect();
            let wanted = softmax(&float_scores(pass, &mixed));
            // Of the divergence of softmaxes with respect to the scores.
            let of_scores = |scores: &[f32]| {
                let pairs = softmax(scores).into_iter().zip(wanted);
                pairs.map(|(q, p)| ((q - p) / batch as f64) as f32).collect()
            };
            network.gradient(&setting, &mixed, of_scores)
        });
        let mut gradient = vec![0.0; adam.knobs.len()];
        for one in each.collect::<Vec<_>>() {
            gradient.iter_mut().zip(&one).for_each(|(sum, g)| *sum += g);
        }
        let share = step as f32 / steps as f32;
        let rate = largest * 0.5 * (1.0 + (std::f32::consts::PI * share).cos());
        adam.step(&gradient, rate, network.limits());
    }
    adam.knobs
}

/// Whether the mean difference lies at most twice its standard error above 0: not so where one is
/// not a number.
fn is_no_more(a: &[f64], b: &[f64]) -> bool {
    let count = a.len() as f64;
    let differences = || a.iter().zip(b).map(|(a, b)| a - b);
    let mean = differences().sum::<f64>() / count;
    let variance = differences().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    mean <= 2.0 * (variance / count).sqrt()
}

/// Two samples that are mixed.
struct Pair {
    /// How far down and right the pixels of each come from.
    offsets: [[isize; 2]; 2],
    one: usize,
    other: usize,
    /// Of the other: nothing in every second pair, else at most a half.
    share: f32,
}

/// Adam's state.
struct Adam {
    knobs: Vec<f32>,
    /// Running means of each knob's gradient and of its square.
    moments: Vec<(f32, f32)>,
    step: i32,
}

impl Adam {
    fn new(knobs: usize) -> Self {
        Self { knobs: vec![0.0; knobs], moments: vec![(0.0, 0.0); knobs], step: 0 }
    }

    fn step(&mut self, gradient: &[f32], rate: f32, limits: &[(f32, f32)]) {
        self.step += 1;
        // The means start at 0.
        let seen = (1.0 - DECAY.0.powi(self.step), 1.0 - DECAY.1.powi(self.step));
        let all = self.knobs.iter_mut().zip(&mut self.moments).zip(gradient).zip(limits);
        for (((knob, (mean, square)), g), &(low, high)) in all {
            *mean += (1.0 - DECAY.0) * (g - *mean);
            *square += (1.0 - DECAY.1) * (g * g - *square);
            let size = (*square / seen.1).sqrt() + f32::MIN_POSITIVE;
            *knob = (*knob - rate * (*mean / seen.0) / size).max(low).min(high);
        }
    }
}

/// The float network's scores of one sample.
fn float_scores(pass: &Pass<'_>, sample: &[f32]) -> Vec<f32> {
    let shape = [&[1], pass.graph.shape(pass.graph.input)].concat();
    float::run(pass.graph, &Tensor::new(shape, sample.to_vec())).into_values()
}

fn softmax(scores: &[f32]) -> Vec<f64> {
    let mut row: Vec<f64> = scores.iter().map(|&s| f64::from(s)).collect();
    float::softmax(&mut row);
    row
}
