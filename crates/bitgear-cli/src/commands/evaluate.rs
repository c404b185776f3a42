//! `bitgear evaluate`: the policy executed for real.

use bitgear::bundle::Bundle;
use bitgear::characterize::Progress as _;
use bitgear::data::{Dataset, Source};
use bitgear::trace::Split;
use bitgear_core::kernels::Kernels;

use crate::Failure;
use crate::arguments::Evaluate;
use crate::terminal::{Bars, energy, on_threads, percent};

pub(crate) fn run(options: &Evaluate) -> Result<(), Failure> {
    let bundle = Bundle::read(&options.bundle)?;
    let data = Dataset::read(&Source::Path(options.data.clone()))?;
    let indices: Vec<usize> = match &options.split {
        None => (0..data.len()).collect(),
        Some(name) => {
            let split = Split::from_name(name).ok_or_else(|| {
                Failure::new(format!("split must be search, certification or test, got `{name}`"))
            })?;
            let splits = &bundle.splits;
            let expected = if split == Split::Calibration {
                &splits.calibration_sha256
            } else {
                &splits.data_sha256
            };
            if data.sha256() != expected {
                return Err(Failure::new(format!(
                    "data `{}` is not what the bundle's splits refer to: expected SHA-256 {expected}, got {}",
                    options.data.display(),
                    data.sha256()
                ))
                .hint("leave out --split to evaluate on all samples"));
            }
            splits.of(split).to_vec()
        }
    };
    let evaluation = on_threads(options.threads, || {
        let bars = Bars::new();
        bars.begin("evaluate", indices.len());
        let runner = bundle.runner(Kernels::detect());
        Ok(runner.evaluate(&data, &indices, |samples| bars.advance(samples))?)
    })?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&evaluation)?);
        return Ok(());
    }
    println!("samples    {}", evaluation.samples);
    println!("accuracy   {}", percent(evaluation.accuracy));
    for (stage, rate) in bundle.policy.stages.iter().zip(&evaluation.escalation_rates) {
        println!("escalated  {} from {}", percent(*rate), stage.point);
    }
    let e = &evaluation.energy_uj;
    println!("energy     {} uJ chip, {} uJ total, modelled", energy(e.chip), energy(e.total));
    Ok(())
}
