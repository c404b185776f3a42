//! What choices cost, and how far that moves within what the profile's numbers may be.

use super::{Candidate, Candidates, Choice, Kind, PointInfo, Rules};
use crate::energy::{
    Energy, EnergyError, Grade, Interval, StageCost, StagePoint, Storage, Workload, interval,
    mean_energy, stage_costs,
};

/// What a stage costs when it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Price {
    pub(super) energy: Energy,
    /// None where the profile does not say.
    pub(super) time_us: Option<f64>,
}

/// Time of all stages together.
fn sum_us(prices: &[Price]) -> Option<f64> {
    prices.iter().try_fold(0.0, |sum, price| Some(sum + price.time_us?))
}

const PRICED: &str = "the profile priced every point before it was traced";

impl Candidates {
    /// What the stages of a pair cost.
    pub(super) fn pair(&self, low: usize, high: usize) -> [Price; 2] {
        self.pairs[self.all[low].base][self.all[high].base]
    }

    /// Chip energies of a pair's stages without changes of mode and supply: longer chains, whose weights
    /// take more room and whose sums share less, need no less for them.
    pub(super) fn pair_floor(&self, pair: [usize; 2]) -> [f64; 2] {
        if pair[0] == pair[1] {
            return [0.0; 2];
        }
        let (points, storage) = self.stage_points(&pair, &self.shared_in(&pair));
        let costs = stage_costs(&self.profile, &self.workload, &points, storage).expect(PRICED);
        [0, 1].map(|stage: usize| costs[stage].energy.chip_uj - costs[stage].transitions_uj)
    }

    /// Stages as energy reads them, and how their weights are stored.
    fn stage_points(&self, stages: &[usize], shared: &[usize]) -> (Vec<StagePoint<'_>>, Storage) {
        let infos = || stages.iter().map(|&index| &self.all[index].info);
        let nested = infos().all(|info| info.kind == Kind::Nested);
        let storage = if nested { Storage::Nested } else { Storage::Independent };
        let points = infos().zip(shared);
        let point = |(info, &shared): (_, &usize)| {
            let info: &PointInfo = info;
            StagePoint { widths: &info.widths, shared }
        };
        (points.map(point).collect(), storage)
    }

    /// What each stage costs when it runs.
    pub(super) fn chain_cost(
        &self,
        stages: &[usize],
        shared: &[usize],
    ) -> Result<Vec<Price>, EnergyError> {
        let (points, storage) = self.stage_points(stages, shared);
        let costs = stage_costs(&self.profile, &self.workload, &points, storage)?;
        let price = |cost: StageCost| Price { energy: cost.energy, time_us: cost.time_us };
        Ok(costs.into_iter().map(price).collect())
    }

    /// What each stage of a chain costs when it runs.
    pub(super) fn price(&self, stages: &[usize]) -> Vec<Price> {
        match *stages {
            [only] => {
                let Candidate { energy, time_us, .. } = self.all[only];
                vec![Price { energy, time_us }]
            }
            [low, high] => self.pair(low, high).to_vec(),
            _ => self
                .chain_cost(stages, &self.shared_in(stages))
                .expect("every pair of its stages was priced"),
        }
    }

    /// Whether the rules allow so dear and slow a chain of stages, for an input that all of them run
    /// for.
    pub(super) fn affordable(&self, prices: &[Price]) -> bool {
        let chip_uj: f64 = prices.iter().map(|price| price.energy.chip_uj).sum();
        let Rules { max_worst_uj, max_worst_us, .. } = self.rules;
        let in_time = || sum_us(prices).is_some_and(|us| us <= max_worst_us);
        chip_uj <= max_worst_uj && (max_worst_us.is_infinite() || in_time())
    }

    /// A stage that sums scores does not know whether it hands on before it has written: it leaves
    /// nothing for the next.
    fn shared_in(&self, stages: &[usize]) -> Vec<usize> {
        let shared = |pair: &[usize]| match self.all[pair[0]].sum {
            None => self.shared[pair[0]][self.all[pair[1]].base],
            Some(_) => 0,
        };
        std::iter::once(0).chain(stages.windows(2).map(shared)).collect()
    }

    /// What candidate `index` costs for every input.
    pub fn energy(&self, index: usize) -> Energy {
        self.all[index].energy
    }

    /// What each stage of a choice costs when it runs.
    pub fn stage_energies(&self, choice: &Choice) -> Vec<Energy> {
        self.price(&choice.stages).iter().map(|price| price.energy).collect()
    }

    /// How long each stage of a choice takes when it runs, in microseconds; `None` where the profile
    /// does not say.
    pub fn stage_times(&self, choice: &Choice) -> Option<Vec<f64>> {
        self.price(&choice.stages).iter().map(|price| price.time_us).collect()
    }

    /// What each stage of a choice costs when it runs, taken apart.
    pub fn stage_costs(&self, choice: &Choice) -> Vec<StageCost> {
        let (points, storage) = self.stage_points(&choice.stages, &self.shared_layers(choice));
        stage_costs(&self.profile, &self.workload, &points, storage).expect(PRICED)
    }

    /// The layers that are priced.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Leading layers that each stage of a choice leaves to the one before.
    pub fn shared_layers(&self, choice: &Choice) -> Vec<usize> {
        self.shared_in(&choice.stages)
    }

    /// Everything that runs: scores that are always summed take two stages.
    fn runs(&self, choice: &Choice, rates: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let (mut stages, mut shares) = (choice.stages.clone(), vec![1.0]);
        if let ([only], Some(sum)) = (&choice.stages[..], self.sum(choice.last())) {
            (stages, shares) = (vec![sum.first, *only], vec![1.0, 1.0]);
        }
        shares.extend(rates);
        (stages, shares)
    }

    /// The share of energy that one choice saves against another, with the interval that the profile's
    /// uncertainty gives. Each comes with the shares of all inputs that its stages hand on.
    pub fn saving(
        &self,
        [one, other]: [(&Choice, &[f64]); 2],
        energy: fn(Energy) -> f64,
    ) -> Interval {
        let [one, other] = [one, other].map(|(choice, rates)| self.runs(choice, rates));
        let saving = interval(&self.profile, |profile| {
            let mean = |(stages, shares): &(Vec<usize>, Vec<f64>)| {
                let (points, storage) = self.stage_points(stages, &self.shared_in(stages));
                mean_energy(profile, &self.workload, &points, storage, shares).map(energy)
            };
            Ok::<_, EnergyError>(1.0 - mean(&one)? / mean(&other)?)
        });
        saving.expect(PRICED)
    }

    /// The worst grade among the energies of a MAC that a choice uses.
    pub fn worst_grade(&self, choice: &Choice) -> Grade {
        let (stages, _) = self.runs(choice, &[]);
        let costs = self.stage_costs(&Choice { stages, gates: Vec::new() });
        let grades = costs.iter().flat_map(|cost| cost.layers.iter().map(|layer| layer.grade));
        grades.max().expect("a network has layers")
    }
}
