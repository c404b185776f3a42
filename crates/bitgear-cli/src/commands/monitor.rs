//! `bitgear monitor`: a stream of answers against the certified samples.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};

use bitgear::certify::Monitor as Watch;
use bitgear::policy::PolicyFile;
use serde::Deserialize;

use crate::Failure;
use crate::arguments::Monitor;
use crate::terminal::{count, percent};

/// What is read of a line; anything else on it is ignored.
#[derive(Deserialize)]
struct Line {
    first_confidence: i32,
    stage: usize,
}

pub(crate) fn run(options: &Monitor) -> Result<(), Failure> {
    if !(options.level > 0.0 && options.level < 1.0) {
        return Err(Failure::new(format!(
            "`--level` must be a fraction between 0 and 1, got {}",
            options.level
        )));
    }
    let path = options.policy.display();
    let text = std::fs::read_to_string(&options.policy)
        .map_err(|e| Failure::new(format!("cannot read `{path}`: {e}")))?;
    let policy: PolicyFile = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("`{path}` is no policy: {e}")))?;
    policy.check()?;
    let stages = policy.stages.len() + 1;
    let certificate = policy.certificate.ok_or_else(|| {
        Failure::new(format!("`{path}` has no certificate to watch"))
            .hint("characterize with samples for certification")
    })?;
    let expected = certificate.footprint.escalation_rates();
    let mut watch = Watch::new(certificate.footprint, policy.provenance.seed);
    let stream: Box<dyn BufRead> = match &options.stream {
        None => Box::new(stdin().lock()),
        Some(path) => {
            let file = File::open(path)
                .map_err(|e| Failure::new(format!("cannot read `{}`: {e}", path.display())))?;
            Box::new(BufReader::new(file))
        }
    };
    let mut alarm = None;
    for (number, line) in stream.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let fail = |why: String| {
            Failure::new(format!("line {}: {why}", number + 1))
                .hint("expected what `bitgear run --json` prints")
        };
        let read: Line = serde_json::from_str(&line).map_err(|e| fail(e.to_string()))?;
        if read.stage >= stages {
            return Err(fail(format!(
                "`stage` must be below {stages}, the policy's stages, got {}",
                read.stage
            )));
        }
        watch.observe(read.first_confidence, read.stage);
        if alarm.is_none() && watch.drifted(options.level) {
            alarm = Some(watch.inputs());
        }
    }
    let [now, strongest] = watch.evidence();
    if options.json {
        let found = serde_json::json!({
            "inputs": watch.inputs(),
            "drifted": alarm.is_some(),
            "noticed_at": alarm,
            "since": alarm.map(|_| watch.since()),
            "level": options.level,
            "evidence": now,
            "strongest_evidence": strongest,
            "escalation_rates": watch.escalation_rates(),
            "certified_escalation_rates": expected,
        });
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("inputs     {}", count(watch.inputs()));
        for (rate, expected) in watch.escalation_rates().iter().zip(&expected) {
            println!("escalated  {}, certified with {}", percent(*rate), percent(*expected));
        }
        println!("evidence   {strongest:.3} against {:.0} for an alarm", 1.0 / options.level);
    }
    match alarm {
        None => Ok(()),
        Some(at) => Err(Failure::new(format!(
            "the certificate no longer stands: the inputs differ from the certified ones, noticed at input {at}, since about input {}",
            watch.since()
        ))
        .hint("characterize again with samples of what is seen now")),
    }
}
