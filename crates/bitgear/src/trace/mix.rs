//! Classes that are not as frequent in the data as in deployment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Random;

/// Shares of the classes in deployment, relative to their sum: one for each class, 0 where it never occurs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<f64>")]
pub struct ClassMix(Vec<f64>);

/// The smallest share of the sum that is not 0.
const LEAST: f64 = 1e-9;
/// Weight of a sample of the class that counts most, at most.
const ONE: f64 = (1 << 20) as f64;
/// Weight of all samples, at most: a thousand times their square still fits whole numbers of 64 bits.
const ALL: f64 = (1_u64 << 34) as f64;
/// Keeps the draw apart from others of the same seed.
const DRAW: u64 = 0x6d69_7865_645f_6479;

impl TryFrom<Vec<f64>> for ClassMix {
    type Error = String;

    fn try_from(shares: Vec<f64>) -> Result<Self, String> {
        let sum: f64 = shares.iter().sum();
        let fine = |&share: &f64| share == 0.0 || share >= LEAST * sum;
        if !(sum > 0.0 && sum.is_finite() && shares.iter().all(fine)) {
            return Err(format!(
                "the class mix must be shares, each 0 or at least {LEAST} of their sum, got {shares:?}"
            ));
        }
        Ok(Self(shares))
    }
}

impl ClassMix {
    /// The share of each class, relative to the sum of all.
    pub fn shares(&self) -> &[f64] {
        &self.0
    }

    /// The share of a class, relative to the sum of all; 0 where there is no such class.
    pub fn share(&self, class: u32) -> f64 {
        self.0.get(class as usize).copied().unwrap_or(0.0)
    }

    /// The first class that has a share but none of the samples with these labels.
    pub fn missing(&self, labels: impl Iterator<Item = u32>) -> Option<usize> {
        let counts = self.counts(labels);
        (0..self.0.len()).find(|&class| self.0[class] > 0.0 && counts[class] == 0)
    }

    /// How much a sample of each class counts among samples with these labels, so that each class counts as
    /// its share says, but for rounding to whole numbers. At least 1 for classes with a share and samples, 0
    /// for others.
    fn weights(&self, labels: impl Iterator<Item = u32>) -> Vec<i64> {
        let counts = self.counts(labels);
        let one = ONE.min(ALL / counts.iter().sum::<usize>().max(1) as f64);
        let densities = self.0.iter().zip(&counts);
        let densities = densities.map(|(share, &n)| if n > 0 { share / n as f64 } else { 0.0 });
        let densities: Vec<f64> = densities.collect();
        let largest = densities.iter().copied().fold(0.0, f64::max);
        let weight =
            |&d: &f64| if d > 0.0 { ((d / largest * one).round() as i64).max(1) } else { 0 };
        densities.iter().map(weight).collect()
    }

    /// The most of the samples whose classes are mixed in these shares, in their order: of each class as many
    /// as its share says, on the average of all seeds, and no more than one off. Which ones are left out
    /// is drawn. None where a class with a share has no samples.
    pub fn draw(&self, samples: &[usize], label: impl Fn(usize) -> u32, seed: u64) -> Vec<usize> {
        let mut random = Random::new(seed ^ DRAW);
        let counts = self.counts(samples.iter().map(|&sample| label(sample)));
        // Samples for a whole unit of shares: as many as the scarcest class has.
        let shared = self.0.iter().zip(&counts).filter(|(share, _)| **share > 0.0);
        let unit = shared.map(|(share, &n)| n as f64 / share).fold(f64::MAX, f64::min);
        // Whole numbers between the sums of all shares so far, begun at a random fraction.
        let mut sum = random.next_u64() as f64 / 2.0_f64.powi(64) + 1e-9;
        let mut left: Vec<usize> = Vec::with_capacity(self.0.len());
        for share in &self.0 {
            let before = sum.floor();
            sum += unit * share;
            left.push((sum.floor() - before) as usize);
        }
        let mut order: Vec<usize> = (0..samples.len()).collect();
        random.shuffle(&mut order);
        order.retain(|&place| {
            let Some(left) = left.get_mut(label(samples[place]) as usize) else { return false };
            let kept = *left > 0;
            *left -= usize::from(kept);
            kept
        });
        order.sort_unstable();
        order.into_iter().map(|place| samples[place]).collect()
    }

    fn counts(&self, labels: impl Iterator<Item = u32>) -> Vec<usize> {
        let mut counts = vec![0; self.0.len()];
        for label in labels {
            if let Some(count) = counts.get_mut(label as usize) {
                *count += 1;
            }
        }
        counts
    }
}

/// How much each of the samples with these labels counts, so that each class counts as the mix says; all 1
/// without one.
pub fn weights(mix: Option<&ClassMix>, labels: impl Iterator<Item = u32> + Clone) -> Vec<i64> {
    let Some(mix) = mix else { return labels.map(|_| 1).collect() };
    let classes = mix.weights(labels.clone());
    labels.map(|label| classes.get(label as usize).copied().unwrap_or(0)).collect()
}

/// How many samples that count alike tell as much as samples of these weights: (Σ w)² / Σ w²
/// (Kish 1965, Survey Sampling): on average, wherever their flips lie.
pub fn effective(weights: impl Iterator<Item = i64>) -> f64 {
    let (sum, squares) = weights.fold((0.0, 0.0), |(sum, squares), weight| {
        let weight = weight as f64;
        (sum + weight, squares + weight * weight)
    });
    if squares > 0.0 { sum * sum / squares } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 60, 30 and 10 samples.
    fn labels() -> Vec<u32> {
        (0..100).map(|i| u32::from(i >= 60) + u32::from(i >= 90)).collect()
    }

    fn mix(shares: &[f64]) -> ClassMix {
        ClassMix::try_from(shares.to_vec()).unwrap()
    }

    #[test]
    fn each_class_counts_as_its_share_says() {
        let labels = labels();
        let weighed = |shares: &[f64]| {
            let weights = weights(Some(&mix(shares)), labels.iter().copied());
            let total: i64 = weights.iter().sum();
            let of = |class| {
                let own = weights.iter().zip(&labels).filter(|(_, l)| **l == class);
                own.map(|(w, _)| *w).sum::<i64>() as f64 / total as f64
            };
            ([0, 1, 2].map(of), effective(weights.iter().copied()))
        };
        let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
        let (shares, effective) = weighed(&[2.0, 1.0, 1.0]);
        assert!(close(shares[0], 0.5) && close(shares[1], 0.25) && close(shares[2], 0.25));
        // 1 / (0.5² / 60 + 0.25² / 30 + 0.25² / 10).
        assert!((effective - 80.0).abs() < 1e-3, "{effective}");
        let (shares, effective) = weighed(&[6.0, 3.0, 1.0]);
        assert!(close(shares[0], 0.6) && (effective - 100.0).abs() < 1e-3);
        let (shares, effective) = weighed(&[0.0, 1.0, 1e-7]);
        assert!(close(shares[0], 0.0) && close(shares[1], 1.0) && (effective - 30.0).abs() < 1e-3);
        assert_eq!(weights(None, labels.iter().copied()), vec![1; 100]);
    }

    #[test]
    fn samples_are_left_out_until_the_mix_is_that_of_deployment() {
        let labels = labels();
        let all: Vec<usize> = (0..100).collect();
        let counts = |shares: &[f64]| {
            let kept = mix(shares).draw(&all, |i| labels[i], 1);
            assert!(kept.is_sorted());
            [0, 1, 2].map(|class| kept.iter().filter(|&&i| labels[i] == class).count())
        };
        assert_eq!(counts(&[1.0, 1.0, 1.0]), [10, 10, 10]);
        assert_eq!(counts(&[0.6, 0.3, 0.1]), [60, 30, 10]);
        assert_eq!(counts(&[2.0, 4.0, 0.0]), [15, 30, 0]);
        assert_eq!(counts(&[1.0, 1.0, 1.0, 1.0]), [0, 0, 0], "no samples of the last class");
        assert_eq!(mix(&[1.0; 4]).missing(labels.iter().copied()), Some(3));
        assert_eq!(mix(&[1.0, 1.0, 1.0, 0.0]).missing(labels.iter().copied()), None);
    }

    /// The scarcest class has 10 samples, of which 2.5 and 0.4 of the others are wanted.
    #[test]
    fn fractions_of_samples_are_drawn_as_often_as_they_say() {
        let labels: Vec<u32> = labels().into_iter().map(|label| 2 - label).collect();
        let all: Vec<usize> = (0..100).collect();
        let mix = mix(&[1.0, 0.25, 0.04]);
        let runs = 4000;
        let mut sums = [0; 3];
        for seed in 0..runs {
            let kept = mix.draw(&all, |i| labels[i], seed);
            let counts = [0, 1, 2].map(|c| kept.iter().filter(|&&i| labels[i] == c).count());
            assert!(
                counts[0] == 10 && (2..=3).contains(&counts[1]) && counts[2] <= 1,
                "{counts:?}"
            );
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        // Four standard errors of a share.
        let mean = |class: usize| sums[class] as f64 / runs as f64;
        assert!((mean(1) - 2.5).abs() < 0.032 && (mean(2) - 0.4).abs() < 0.031, "{sums:?}");
    }

    #[test]
    fn shares_must_be_shares() {
        let bad: [&[f64]; 7] = [
            &[],
            &[0.0, 0.0],
            &[2.0, -1.0],
            &[1.0, f64::NAN],
            &[f64::INFINITY, 1.0],
            &[1e-12, 1.0],
            &[1e308, 1e308],
        ];
        for bad in bad {
            assert!(ClassMix::try_from(bad.to_vec()).unwrap_err().contains("class mix"));
        }
    }
}
