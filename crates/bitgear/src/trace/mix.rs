//! Classes that are not as frequent in the data as in deployment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Random;

/// Shares of the classes in deployment, relative to their sum: one for each class, at least one above 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<f64>")]
pub struct ClassMix(Vec<f64>);

/// Weight of a sample of the class that counts most.
const ONE: f64 = (1 << 20) as f64;

impl TryFrom<Vec<f64>> for ClassMix {
    type Error = String;

    fn try_from(shares: Vec<f64>) -> Result<Self, String> {
        let fine = |&share: &f64| share >= 0.0 && share.is_finite();
        let sum: f64 = shares.iter().sum();
        if !shares.iter().all(fine) || sum <= 0.0 || !sum.is_finite() {
            return Err(format!(
                "the class mix must be shares of at least 0, not all 0, got {shares:?}"
            ));
        }
        Ok(Self(shares))
    }
}

impl ClassMix {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.0.len()
    }

    /// The share of a class, relative to the sum of all; 0 where there is no such class.
    pub fn share(&self, class: u32) -> f64 {
        self.0.get(class as usize).copied().unwrap_or(0.0)
    }

    /// How much a sample of each class counts among samples with these labels, so that each class counts as
    /// its share says, to within a millionth of the largest weight. At least 1 for classes with a share and
    /// samples, 0 for others.
    fn weights(&self, labels: impl Iterator<Item = u32>) -> Vec<i64> {
        let counts = self.counts(labels);
        let densities = self.0.iter().zip(&counts);
        let densities = densities.map(|(share, &n)| if n > 0 { share / n as f64 } else { 0.0 });
        let densities: Vec<f64> = densities.collect();
        let largest = densities.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let weight =
            |&d: &f64| if d > 0.0 { ((d / largest * ONE).round() as i64).max(1) } else { 0 };
        densities.iter().map(weight).collect()
    }

    /// The most of the samples whose classes are mixed in these shares, in their order. Which ones of a class
    /// are left out is drawn. None where a class with a share has no samples.
    pub fn draw(
        &self,
        samples: &[usize],
        label: impl Fn(usize) -> u32,
        random: &mut Random,
    ) -> Vec<usize> {
        let counts = self.counts(samples.iter().map(|&sample| label(sample)));
        // Samples for a whole unit of shares: as many as the scarcest class has.
        let shared = self.0.iter().zip(&counts).filter(|(share, _)| **share > 0.0);
        let unit = shared.map(|(share, &n)| n as f64 / share).fold(f64::MAX, f64::min);
        let mut wanted: Vec<usize> = self.0.iter().map(|s| (unit * s + 1e-9) as usize).collect();
        let mut order: Vec<usize> = (0..samples.len()).collect();
        random.shuffle(&mut order);
        order.retain(|&place| {
            let Some(left) = wanted.get_mut(label(samples[place]) as usize) else { return false };
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
/// (Kish 1965, Survey Sampling).
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
        let (shares, effective) = weighed(&[0.0, 1.0, 1e-12]);
        assert!(close(shares[0], 0.0) && close(shares[1], 1.0) && (effective - 30.0).abs() < 1e-3);
        assert_eq!(weights(None, labels.iter().copied()), vec![1; 100]);
    }

    #[test]
    fn samples_are_left_out_until_the_mix_is_that_of_deployment() {
        let labels = labels();
        let all: Vec<usize> = (0..100).collect();
        let counts = |shares: &[f64]| {
            let kept = mix(shares).draw(&all, |i| labels[i], &mut Random::new(1));
            assert!(kept.is_sorted());
            [0, 1, 2].map(|class| kept.iter().filter(|&&i| labels[i] == class).count())
        };
        assert_eq!(counts(&[1.0, 1.0, 1.0]), [10, 10, 10]);
        assert_eq!(counts(&[0.6, 0.3, 0.1]), [60, 30, 10]);
        assert_eq!(counts(&[2.0, 4.0, 0.0]), [15, 30, 0]);
        assert_eq!(counts(&[1.0, 1.0, 1.0, 1.0]), [0, 0, 0], "no samples of the last class");
    }

    #[test]
    fn shares_must_be_shares() {
        for bad in [&[][..], &[0.0, 0.0], &[1.0, -1.0], &[1.0, f64::NAN], &[f64::INFINITY, 1.0]] {
            assert!(ClassMix::try_from(bad.to_vec()).unwrap_err().contains("class mix"));
        }
    }
}
