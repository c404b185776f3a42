//! Which sample serves what: disjoint, stratified by label, drawn with a seed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassMix, Random};

/// What a sample is used for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Quantization.
    Calibration,
    /// Choosing the policy.
    Search,
    /// Proving the guarantee; where none was asked for, choosing, too.
    Certification,
    /// Reporting.
    Test,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 4] = [Self::Calibration, Self::Search, Self::Certification, Self::Test];

    /// `calibration`, `search`, `certification` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calibration => "calibration",
            Self::Search => "search",
            Self::Certification => "certification",
            Self::Test => "test",
        }
    }

    /// The split of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|split| split.name() == name)
    }
}

/// How samples are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Samples for calibration.
    pub calibration: usize,
    /// Share of the rest for search.
    pub search: f64,
    /// Share of the rest for certification.
    pub certification: f64,
}

impl Default for Shares {
    /// 512 samples for calibration; of the rest 40 % for search, 30 % for certification and 30 %
    /// for the test.
    fn default() -> Self {
        Self { calibration: 512, search: 0.4, certification: 0.3 }
    }
}

/// `splits.json`: the samples of each split, by index, ascending.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Splits {
    /// Version of this format: 1.
    pub schema_version: u32,
    /// SHA-256 of the data that the indices of search, certification and test refer to.
    pub data_sha256: String,
    /// SHA-256 of the data that the calibration indices refer to.
    pub calibration_sha256: String,
    /// Seed of the draw.
    pub seed: u64,
    /// Samples for quantization.
    pub calibration: Vec<usize>,
    /// Samples for choosing.
    pub search: Vec<usize>,
    /// Samples for the guarantee.
    pub certification: Vec<usize>,
    /// Samples for reporting.
    pub test: Vec<usize>,
    /// Shares of the classes in deployment; absent where they are as in the data. Samples for choosing and
    /// reporting are weighted by them; of those for the guarantee the most that are mixed so are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_mix: Option<ClassMix>,
}

impl Splits {
    /// The samples of a split.
    pub fn of(&self, split: Split) -> &[usize] {
        match split {
            Split::Calibration => &self.calibration,
            Split::Search => &self.search,
            Split::Certification => &self.certification,
            Split::Test => &self.test,
        }
    }
}

/// Deals samples out to parts of the given sizes (relative to their sum), class by class, so that
/// every class is spread over the parts like all samples are, to within one sample a class and part.
/// Classes with fewer samples than there are parts are dealt out as one. Returns the part of each sample.
pub fn deal(labels: &[u32], sizes: &[f64], random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    random.shuffle(&mut order);
    let mut counts = BTreeMap::new();
    for &label in labels {
        *counts.entry(label).or_insert(0_usize) += 1;
    }
    let class = |label: u32| (counts[&label] >= sizes.len()).then_some(label);
    order.sort_by_key(|&sample| class(labels[sample]));
    let total: f64 = sizes.iter().sum();
    let mut dealt = vec![0_usize; sizes.len()];
    let mut part = vec![0; labels.len()];
    for (count, &sample) in order.iter().enumerate() {
        // To whom most is owed by now; the first on a tie.
        let owed = |i: usize| sizes[i] / total * (count + 1) as f64 - dealt[i] as f64;
        let next = (0..sizes.len()).fold(0, |best, i| if owed(i) > owed(best) { i } else { best });
        dealt[next] += 1;
        part[sample] = next;
    }
    part
}

/// The samples that `part` gives to each of `parts` parts, ascending.
pub fn members(part: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); parts];
    for (sample, &part) in part.iter().enumerate() {
        members[part].push(sample);
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_of_single_samples_are_dealt_out_at_random() {
        let labels: Vec<u32> = (0..100).collect();
        let split = |seed| deal(&labels, &[0.5, 0.5], &mut Random::new(seed));
        assert_ne!(split(1), split(2));
        assert!(members(&split(1), 2).iter().all(|part| part.len() == 50));
    }

    proptest! {
        #[test]
        fn parts_are_disjoint_complete_and_stratified(
            labels in prop::collection::vec(0_u32..5, 1..400), seed: u64,
        ) {
            let sizes = [0.4, 0.3, 0.3];
            let part = deal(&labels, &sizes, &mut Random::new(seed));
            let members = members(&part, 3);
            prop_assert_eq!(members.iter().map(Vec::len).sum::<usize>(), labels.len());
            for class in 0..5 {
                let all = labels.iter().filter(|&&l| l == class).count() as f64;
                for (members, size) in members.iter().zip(sizes) {
                    let got = members.iter().filter(|&&s| labels[s] == class).count() as f64;
                    prop_assert!((got - all * size).abs() <= 2.0, "{} of {} for {}", got, all, size);
                }
            }
        }
    }

    #[test]
    fn the_draw_depends_on_the_seed_alone() {
        let labels: Vec<u32> = (0..100).map(|i| i % 7).collect();
        let draw = |seed| deal(&labels, &[1.0, 1.0], &mut Random::new(seed));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        // Pinned: a change would silently change every user's splits.
        assert_eq!(Random::new(1).next_u64(), 0x910a_2dec_8902_5cc1);
    }
}
