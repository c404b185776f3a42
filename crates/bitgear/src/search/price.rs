//! What choices cost, and how far that moves within what the profile's numbers may be.

use super::{Candidates, Choice, Kind, PointInfo};
use crate::energy::{
    Energy, EnergyError, Grade, Interval, StagePoint, Storage, interval, mean_energy, stage_costs,
};

const PRICED: &str = "the profile priced every point before it was traced";

impl Candidates {
    /// What the stages of a pair cost.
    pub(super) fn pair(&self, low: usize, high: usize) -> [Energy; 2] {
        self.pairs[self.all[low].base][self.all[high].base]
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
    ) -> Result<Vec<Energy>, EnergyError> {
        let (points, storage) = self.stage_points(stages, shared);
        let costs = stage_costs(&self.profile, &self.workload, &points, storage)?;
        Ok(costs.into_iter().map(|cost| cost.energy).collect())
    }

    /// What each stage of a chain costs when it runs.
    pub(super) fn price(&self, stages: &[usize]) -> Vec<Energy> {
        match *stages {
            [only] => vec![self.all[only].energy],
            [low, high] => self.pair(low, high).to_vec(),
            _ => self
                .chain_cost(stages, &self.shared_in(stages))
                .expect("every pair of its stages was priced"),
        }
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
        self.price(&choice.stages)
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
        let (points, storage) = self.stage_points(&stages, &self.shared_in(&stages));
        let costs = stage_costs(&self.profile, &self.workload, &points, storage).expect(PRICED);
        let grades = costs.iter().flat_map(|cost| cost.layers.iter().map(|layer| layer.grade));
        grades.max().expect("a network has layers")
    }
}
