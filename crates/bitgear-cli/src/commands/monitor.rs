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
            .hint("characterize without --guarantee, or with one that can be proved")
    })?;
    let mut watch = Watch::new(certificate.footprint, policy.provenance.seed, options.level);
    let stream: Box<dyn BufRead> = match &options.stream {
        None => Box::new(stdin().lock()),
        Some(path) => {
            let file = File::open(path)
                .map_err(|e| Failure::new(format!("cannot read `{}`: {e}", path.display())))?;
            Box::new(BufReader::new(file))
        }
    };
    for (number, line) in stream.lines().enumerate() {
        let fail = |why: String| {
            Failure::new(format!("line {}: {why}", number + 1))
                .hint("expected what `bitgear run --json` prints")
        };
        let line = line.map_err(|e| fail(e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let read: Line = serde_json::from_str(&line).map_err(|e| fail(e.to_string()))?;
        if read.stage >= stages {
            return Err(fail(format!(
                "`stage` must be below {stages}, the policy's stages, got {}",
                read.stage
            )));
        }
        watch.observe(read.first_confidence, read.stage);
    }
    let found = watch.finding();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("inputs     {}", count(found.inputs));
        for (rate, expected) in found.escalation_rates.iter().zip(&found.certified_escalation_rates)
        {
            println!("escalated  {}, certified with {}", percent(*rate), percent(*expected));
        }
        let strongest = found.strongest_evidence;
        println!("evidence   {strongest:.3} against {:.0} for an alarm", 1.0 / found.level);
    }
    match found.noticed_at {
        None => Ok(()),
        Some(at) => Err(Failure::new(format!(
            "the certificate no longer stands: the inputs differ from the certified ones, noticed at input {at}, since about input {}",
            found.since.unwrap_or(0)
        ))
        .hint("characterize again with samples of what is seen now")),
    }
}
