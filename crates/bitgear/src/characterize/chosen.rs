//! Policies as they are decided on a trace, with the networks that run them.

use super::CharacterizeError;
use crate::bundle::NamedPolicy;
use crate::certify::{Demand, Verdict, decide};
use crate::execute::{IntegerModel, relay};
use crate::policy::{PolicyFile, Provenance};
use crate::quantize::Point;
use crate::search::{Candidates, Choice, Pool, Rules};
use crate::summary::PolicyOption;
use crate::trace::{Split, Trace};

/// A decided policy.
pub(super) struct Chosen {
    pub(super) verdict: Verdict,
    /// Points of its stages.
    pub(super) points: Vec<Point>,
    /// Their networks.
    pub(super) models: Vec<IntegerModel>,
}

impl Chosen {
    /// The policies for some demands, and whether the networks of each are alike where its stages share
    /// layers. `quantize` makes the network of a point.
    pub(super) fn decide(
        candidates: &Candidates,
        [choosing, proving]: [&[usize]; 2],
        demands: &[Demand],
        seed: u64,
        points: &[Point],
        quantize: impl Fn(&Point) -> Result<IntegerModel, CharacterizeError>,
    ) -> Result<(Vec<Self>, bool), CharacterizeError> {
        let mut all = Vec::with_capacity(demands.len());
        let mut alike = true;
        for demand in demands {
            let verdict = decide(candidates, choosing, proving, demand, Pool::Policies, seed);
            let named = |name: &str| points.iter().find(|p| p.to_string() == name).cloned();
            let points: Vec<Point> =
                candidates.stages(&verdict.choice).filter_map(|info| named(&info.point)).collect();
            let models = points.iter().map(&quantize).collect::<Result<Vec<_>, _>>()?;
            alike &= relay(&models, &candidates.shared_layers(&verdict.choice)).is_ok();
            all.push(Self { verdict, points, models });
        }
        Ok((all, alike))
    }

    /// As it stands in a bundle beside others, and in the summary.
    pub(super) fn option(
        &self,
        trace: &Trace,
        candidates: &Candidates,
        demand: &Demand,
        provenance: &Provenance,
    ) -> (NamedPolicy, PolicyOption) {
        let Verdict { choice, certificate, bound, .. } = &self.verdict;
        let expected = candidates.outcome(choice, &demand.rows(trace)[0]);
        let policy = PolicyFile::new(
            trace,
            candidates,
            choice,
            &expected,
            certificate.clone(),
            provenance.clone(),
        );
        let name = format!("max-drop-{}", demand.target.drop);
        let outcome = candidates.outcome(choice, &trace.rows(Split::Test));
        let option = PolicyOption {
            name: name.clone(),
            max_accuracy_drop: demand.target.drop,
            stages: choice.stages.iter().map(|&stage| candidates.name(stage)).collect(),
            accuracy: outcome.accuracy,
            accuracy_drop: outcome.drop,
            energy_uj: outcome.energy.into(),
            escalation_rates: outcome.escalation_rates,
            certified: demand.guarantee.is_some() && certificate.is_some(),
            drop_upper_bound: *bound,
        };
        (NamedPolicy { name, policy }, option)
    }
}

/// Whether what was chosen keeps the budgets for the worst input. Candidates that don't are left out,
/// so only the widest point, the last resort where nothing keeps the target, may break them.
pub(super) fn within_budgets(
    candidates: &Candidates,
    choice: &Choice,
    rules: Rules,
) -> Result<(), String> {
    let uj: f64 = candidates.stage_energies(choice).iter().map(|e| e.chip_uj).sum();
    let us: f64 = candidates.stage_times(choice).unwrap_or_default().iter().sum();
    for (needed, most, unit) in [(uj, rules.max_worst_uj, "uJ"), (us, rules.max_worst_us, "us")] {
        if needed > most {
            return Err(format!(
                "no policy keeps the target within {most} {unit} for every input: the widest point needs {needed:.3} {unit}"
            ));
        }
    }
    Ok(())
}
