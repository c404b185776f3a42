//! `bitgear certify`: a certificate checked again, on new data.

use bitgear::bundle::Bundle;
use bitgear::certify::Demand;
use bitgear::characterize::{Recheck, recheck};
use bitgear::data::{Dataset, Source};

use super::evaluate::samples;
use crate::Failure;
use crate::arguments::Certify;
use crate::terminal::{Bars, count, on_threads};

pub(crate) fn run(options: &Certify) -> Result<(), Failure> {
    for (flag, value) in
        [("guarantee", options.guarantee), ("confidence", Some(options.confidence))]
    {
        if let Some(value) = value.filter(|value| !(*value > 0.0 && *value < 1.0)) {
            return Err(Failure::new(format!(
                "`--{flag}` must be a fraction between 0 and 1, got {value}"
            )));
        }
    }
    let bundle = Bundle::read(&options.bundle)?.select(&options.policy)?;
    let data = Dataset::read(&Source::Path(options.data.clone()))?;
    let certificate = bundle.policy.certificate.as_ref();
    let chose = match options.split.as_deref() {
        None => data.sha256() == bundle.splits.data_sha256,
        Some("certification") => certificate.is_some_and(|proof| proof.split != "certification"),
        Some(split) => ["search", "calibration"].contains(&split),
    };
    if chose {
        return Err(Failure::new(
            "these samples chose the policy, and prove nothing about what it loses on others",
        )
        .hint("give new data, or --split test"));
    }
    let indices = samples(&bundle, &data, options.split.as_deref())?;
    let demand = Demand {
        target: 1.0.into(),
        max_energy_uj: None,
        guarantee: options.guarantee,
        confidence: options.confidence,
        test: options.test.into(),
    };
    let found = on_threads(options.threads, || {
        let bars = Bars::new();
        Ok(recheck(&bundle, &options.model, &data, &indices, &demand, &bars)?)
    })?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        tell(&found, indices.len() as u64, &demand);
    }
    let Some(drop) = found.guarantee.filter(|_| found.proved == Some(false)) else {
        return Ok(());
    };
    let failure =
        Failure::new(format!("not proved on this data: at most {:.2} points", 100.0 * drop));
    Err(match found.samples_needed {
        Some(samples) => {
            failure.hint(format!("about {} samples like these would prove it", count(samples)))
        }
        None => failure.hint("it loses too much for any number of samples: give a larger --guarantee, or characterize with a smaller --max-drop"),
    })
}

/// Prints what was found on `all` samples.
fn tell(found: &Recheck, all: u64, demand: &Demand) {
    let what = if found.labelled { "drop" } else { "disagreement with the reference" };
    let drawn = if found.flips.samples < all {
        format!(" of {}, mixed as in deployment", count(all))
    } else {
        String::new()
    };
    println!("samples        {}{drawn}", count(found.flips.samples));
    println!("harmful flips  {}", found.flips.harmful);
    println!("helpful flips  {}", found.flips.helpful);
    println!("{what}: {:.2} points", 100.0 * found.accuracy_drop);
    println!(
        "at most {:.2} points with {} % confidence ({} test)",
        100.0 * found.drop_upper_bound,
        100.0 * demand.confidence,
        demand.test.name()
    );
    if let Some(drop) = found.guarantee.filter(|_| found.proved == Some(true)) {
        println!("proved on this data: at most {:.2} points", 100.0 * drop);
    }
}
