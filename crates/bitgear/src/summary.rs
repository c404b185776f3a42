//! `summary.json`: what scripts and people read. All figures are of the test split.

mod details;
mod figures;

pub use details::{Alternative, FrontierPoint, LayerEnergy, StageEnergy};
pub use figures::*;

pub(crate) use details::targets_around;

use std::collections::BTreeMap;

use bitgear_core::margin::answer;

use crate::certify::{self, Verdict, decide};
use crate::energy::{AcceleratorProfile, Energy, Style};
use crate::policy::PolicyFile;
use crate::search::{Candidates, Choice, Pool, repeat};
use crate::sensitivity::Sensitivity;
use crate::trace::{FLOAT, Split, Trace, View, effective};

/// What the trace does not know.
pub(crate) struct Facts<'a> {
    pub(crate) model: ModelSummary,
    pub(crate) calibration: usize,
    pub(crate) labelled: bool,
    pub(crate) profile: &'a AcceleratorProfile,
    pub(crate) constraint: Constraint,
    pub(crate) reference: String,
    pub(crate) tables: BTreeMap<String, Vec<[u8; 2]>>,
    pub(crate) sensitivity: Option<Sensitivity>,
    pub(crate) storage: StorageSummary,
    pub(crate) seed: u64,
    pub(crate) repeats: usize,
    /// Targets of the frontier.
    pub(crate) targets: Vec<f64>,
    pub(crate) options: Vec<PolicyOption>,
}

const STATIC_POOLS: [Pool; 3] = [Pool::StaticUniform, Pool::Static, Pool::StaticPlain];

/// Chooses the static points to compare with, and puts all figures together.
pub(crate) fn summarize(
    trace: &Trace,
    candidates: &Candidates,
    verdict: &Verdict,
    policy: &PolicyFile,
    facts: Facts<'_>,
) -> Summary {
    let [search, certification, test] =
        [Split::Search, Split::Certification, Split::Test].map(|split| trace.rows(split));
    let demand = facts.constraint.demand();
    let [choosing, proving] = demand.rows(trace);
    let rows = [&choosing[..], &proving, &test];
    let alone = |index: usize| candidates.outcome(&Choice::fixed(index), &test);
    let points: Vec<_> = candidates.points().collect();
    let all = points.iter().enumerate().map(|(index, info)| {
        let outcome = alone(index);
        StaticPoint {
            point: info.point.clone(),
            kind: info.kind.name().to_owned(),
            view: info.view.name().to_owned(),
            accuracy: outcome.accuracy,
            energy_uj: outcome.energy.into(),
        }
    });
    let widest = points.iter().position(|p| p.point == WIDEST).expect("w16a16 is always traced");
    let certified = |verdict: &Verdict| demand.guarantee.is_some() && verdict.certificate.is_some();
    let best =
        STATIC_POOLS.map(|pool| decide(candidates, &choosing, &proving, &demand, pool, facts.seed));
    let [uniform, any, plain] = best.each_ref().map(|verdict| {
        let outcome = candidates.outcome(&verdict.choice, &test);
        BestStatic {
            point: candidates.name(verdict.choice.last()),
            accuracy: outcome.accuracy,
            energy_uj: outcome.energy.into(),
            certified: certified(verdict),
            drop_upper_bound: verdict.bound,
        }
    });
    let outcome = candidates.outcome(&verdict.choice, &test);
    let worst_class = candidates.worst_class(&verdict.choice, &test);
    let latency_us = candidates.stage_times(&verdict.choice).map(|times| Latency {
        mean: times[1..].iter().zip(&outcome.escalation_rates).map(|(t, r)| t * r).sum::<f64>()
            + times[0],
        worst: times.iter().sum(),
    });
    let [first, second, third] = best.map(|verdict| verdict.choice.last());
    let others = [first, second, third, widest].map(|index| candidates.energy(index));
    let saving = |energy: fn(Energy) -> f64| {
        Savings::from_array(others.map(|other| 1.0 - energy(outcome.energy) / energy(other)))
    };
    let fixed = [first, second, third, widest].map(Choice::fixed);
    let intervals = |energy: fn(Energy) -> f64| {
        let policy = (&verdict.choice, &outcome.escalation_rates[..]);
        let [uniform, any, plain, wide] =
            fixed.each_ref().map(|other| candidates.saving([policy, (other, &[])], energy).into());
        SavingsInterval {
            vs_best_static_uniform: uniform,
            vs_best_static: any,
            vs_best_static_plain: plain,
            vs_16_bit: wide,
        }
    };
    let savings_interval = intervals(|energy| energy.chip_uj);
    let savings_total_interval = intervals(Energy::total_uj);
    let evidence = EvidenceSummary {
        kind: facts.profile.accelerator.evidence,
        worst_grade: candidates.worst_grade(&verdict.choice),
    };
    let lost = candidates.outcome(&verdict.choice, &choosing).drop;
    let oracle = candidates.oracle_energy(&verdict.choice, &test);
    let measured =
        candidates.measures(trace, &verdict.choice, [&choosing, &test], lost, facts.seed);
    let measures = measured.into_iter().map(|m| MeasureSummary {
        measure: m.measure.name().to_owned(),
        energy_uj: m.energy.into(),
        accuracy_drop: m.drop,
        saving: 1.0 - m.energy.chip_uj / others[1].chip_uj,
        times_oracle: m.energy.chip_uj / oracle.chip_uj,
    });
    let counts = [search.len(), certification.len(), test.len()];
    let choose = |[choosing, proving]: [&[usize]; 2], pool, seed| {
        certify::choose(candidates, choosing, proving, &demand, pool, seed).0
    };
    let rest = trace.samples.len() - choosing.len() - test.len();
    let sizes = [choosing.len(), rest, test.len()].map(|count| count as f64);
    let repeated =
        repeat(candidates, choose, sizes, &STATIC_POOLS, widest, facts.repeats, facts.seed);
    let savings_mean = [0, 1, 2, 3].map(|i| repeated.savings[i]);
    Summary {
        schema_version: 1,
        model: facts.model,
        samples: SampleCounts {
            calibration: facts.calibration,
            search: counts[0],
            certification: counts[1],
            test: counts[2],
            labelled: facts.labelled,
        },
        class_mix: trace.class_mix.clone().map(|shares| {
            let as_good_as = |rows: &[usize]| effective(trace.weights(rows).into_iter());
            ClassMixSummary {
                shares,
                search: as_good_as(&choosing),
                certification: candidates.as_deployed(&proving, facts.seed).len(),
                test: as_good_as(&test),
            }
        }),
        accelerator: facts.profile.accelerator.id.clone(),
        cost_unit: unit(facts.profile).to_owned(),
        evidence,
        not_counted: facts.profile.not_counted.iter().map(|n| n.0.clone()).collect(),
        constraint: facts.constraint,
        reference: Reference {
            kind: facts.reference,
            accuracy: candidates.reference_accuracy(&test),
            accuracy_both_views: both_views(trace, candidates, &test),
        },
        r#static: all.collect(),
        best_static_uniform: uniform,
        best_static: any,
        best_static_plain: plain,
        policy: PolicySummary {
            stages: policy
                .stages
                .iter()
                .map(|s| StageSummary {
                    point: s.point.clone(),
                    view: s.view.clone(),
                    scores: s.scores.clone(),
                    shared_layers: s.shared_layers,
                    accept_at: s.accept_at,
                    gate: if s.tables.is_some() { "learned" } else { "margin" }.to_owned(),
                })
                .collect(),
            last_resort: policy.last_resort.clone(),
            accuracy: outcome.accuracy,
            accuracy_drop: outcome.drop,
            energy_uj: outcome.energy.into(),
            escalation_rates: outcome.escalation_rates,
            certified: certified(verdict),
            drop_upper_bound: verdict.bound,
            samples_needed: verdict.samples_needed,
            oracle_energy_uj: oracle.into(),
            worst_class: worst_class
                .map(|(class, accuracy_drop)| ClassDrop { class, accuracy_drop }),
            latency_us,
        },
        no_worse: details::no_worse(candidates, rows, demand, &verdict.choice, facts.seed),
        options: facts.options,
        measures: measures.collect(),
        savings: saving(|e| e.chip_uj),
        savings_total: saving(Energy::total_uj),
        savings_interval,
        savings_total_interval,
        repeated: RepeatedSummary {
            n: repeated.n,
            drop_mean: repeated.policy.mean,
            drop_se: repeated.policy.standard_error,
            savings_mean: Savings::from_array(savings_mean),
        },
        tables: facts.tables,
        storage: facts.storage,
        sensitivity: facts.sensitivity,
        frontier: details::frontier(
            candidates,
            rows,
            demand,
            &verdict.choice,
            &facts.targets,
            facts.seed,
        ),
        stage_energies: details::stage_energies(candidates, &verdict.choice),
        mac_holds: details::mac_holds(facts.profile.accelerator.style, &facts.profile.scope),
    }
}

/// What costs are in.
pub(crate) fn unit(profile: &AcceleratorProfile) -> &'static str {
    if profile.accelerator.style == Style::Time { "us" } else { "uJ" }
}

/// Accuracy of the float network with the scores of both views summed.
fn both_views(trace: &Trace, candidates: &Candidates, rows: &[usize]) -> Option<f64> {
    let [as_is, mirrored] = [View::AsIs, View::Mirror].map(|view| trace.block(FLOAT, view));
    let (as_is, mirrored, classes) = (as_is?, mirrored?, trace.classes);
    if as_is.answers.scores.len() != trace.samples.len() * classes {
        return None;
    }
    // Both blocks have one scale.
    let is_right = |row: usize| {
        let [a, b] = [as_is, mirrored].map(|b| &b.answers.scores[row * classes..][..classes]);
        let sums: Vec<i32> = a.iter().zip(b).map(|(a, b)| a.saturating_add(*b)).collect();
        answer(&sums).class == trace.labels[row] as usize
    };
    Some(candidates.share(rows, is_right))
}

/// Name of the point that is always traced.
pub(crate) const WIDEST: &str = "w16a16";
