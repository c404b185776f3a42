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
    let bundle = Bundle::read(&options.bundle)?.select(&options.policy)?;
    let data = Dataset::read(&Source::Path(options.data.clone()))?;
    let indices = samples(&bundle, &data, options.split.as_deref())?;
    let (runner, evaluation) = on_threads(options.threads, || {
        let bars = Bars::new();
        bars.begin("evaluate", indices.len());
        let runner = bundle.run_only(Kernels::detect());
        let evaluation = runner.evaluate(&data, &indices, |samples| bars.advance(samples))?;
        Ok((runner, evaluation))
    })?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&evaluation)?);
        return Ok(());
    }
    let weighted = runner.bundle().splits.class_mix.is_some();
    let how = if weighted { ", weighted for the class mix of deployment" } else { "" };
    println!("samples    {}{how}", evaluation.samples);
    println!("accuracy   {}", percent(evaluation.accuracy));
    for (stage, rate) in runner.bundle().policy.stages.iter().zip(&evaluation.escalation_rates) {
        println!("escalated  {} from {}", percent(*rate), stage.point);
    }
    let e = &evaluation.energy_uj;
    println!("energy     {} uJ chip, {} uJ total, modelled", energy(e.chip), energy(e.total));
    Ok(())
}

/// The samples of a split of the data that the bundle was made with, or all samples.
pub(super) fn samples(
    bundle: &Bundle,
    data: &Dataset,
    split: Option<&str>,
) -> Result<Vec<usize>, Failure> {
    let Some(name) = split else { return Ok((0..data.len()).collect()) };
    let split = Split::from_name(name).ok_or_else(|| {
        Failure::new(format!("split must be search, certification or test, got `{name}`"))
    })?;
    let splits = &bundle.splits;
    let expected =
        if split == Split::Calibration { &splits.calibration_sha256 } else { &splits.data_sha256 };
    if data.sha256() != expected {
        return Err(Failure::new(format!(
                    "data `{}` is not what the bundle's splits refer to: expected SHA-256 {expected}, got {}",
                    data.path().display(),
                    data.sha256()
                ))
                .hint("leave out --split to take all samples"));
    }
    Ok(splits.of(split).to_vec())
}
