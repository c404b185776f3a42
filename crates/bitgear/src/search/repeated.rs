//! The whole choice repeated over random splits: the figures to judge by, since the drop of one
//! test split is mostly noise.

use rayon::prelude::*;

use super::{Candidates, Choice, Pool};
use crate::energy::Energy;
use crate::trace::{Random, deal, members};

/// What a choice lost on the tests of all splits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drop {
    /// Mean accuracy drop.
    pub mean: f64,
    /// Standard deviation over splits divided by √n. Splits overlap, so the mean is less certain
    /// than this says.
    pub standard_error: f64,
}

/// Means over all splits.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeated {
    /// Number of splits.
    pub n: usize,
    /// Of the policy.
    pub policy: Drop,
    /// Of the best static point of each pool, in the order they were asked for.
    pub others: Vec<Drop>,
    /// Mean of 1 - policy / other, of chip energy.
    pub savings: Vec<f64>,
    /// Mean of 1 - policy / other, of total energy.
    pub savings_total: Vec<f64>,
}

/// Deals samples out anew, `n` times: to those that choose, those that prove a guarantee (none without one) and
/// those of the test, in shares of `sizes`. `choose` is given the rows of the first two, the pool and a seed;
/// what it chooses is measured on the third. `fixed` is a candidate (the widest) that is compared as it is,
/// after the pools.
pub fn repeat(
    candidates: &Candidates,
    choose: impl Fn([&[usize]; 2], Pool, u64) -> Choice + Sync,
    sizes: [f64; 3],
    pools: &[Pool],
    fixed: usize,
    n: usize,
    seed: u64,
) -> Repeated {
    let one = |index: usize| {
        let seed = seed.wrapping_mul(0x0100_0000_01b3).wrapping_add(index as u64 + 1);
        let part = deal(&candidates.labels, &sizes, &mut Random::new(seed));
        let parts = members(&part, 3);
        let choose = |pool| choose([&parts[0], &parts[1]], pool, seed);
        let measure = |choice: Choice| candidates.outcome(&choice, &parts[2]);
        let policy = measure(choose(Pool::Policies));
        let mut others: Vec<_> = pools.iter().map(|&pool| measure(choose(pool))).collect();
        others.push(measure(Choice::fixed(fixed)));
        (policy, others)
    };
    let outcomes: Vec<_> = (0..n).into_par_iter().map(one).collect();
    let count = n as f64;
    let drop = |values: Vec<f64>| {
        let mean = values.iter().sum::<f64>() / count;
        let variance =
            values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Drop { mean, standard_error: (variance / count).sqrt() }
    };
    let saving = |energy: fn(&Energy) -> f64, other: usize| {
        let each = outcomes.iter().map(|(p, o)| 1.0 - energy(&p.energy) / energy(&o[other].energy));
        each.sum::<f64>() / count
    };
    let all = 0..=pools.len();
    Repeated {
        n,
        policy: drop(outcomes.iter().map(|(p, _)| p.drop).collect()),
        others: all
            .clone()
            .map(|i| drop(outcomes.iter().map(|(_, o)| o[i].drop).collect()))
            .collect(),
        savings: all.clone().map(|i| saving(|e| e.chip_uj, i)).collect(),
        savings_total: all.map(|i| saving(|e| e.total_uj(), i)).collect(),
    }
}
