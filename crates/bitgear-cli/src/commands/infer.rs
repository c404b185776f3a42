//! `bitgear run`: label, margin, stage and energy of each input.

use bitgear::bundle::Bundle;
use bitgear::data::{Dataset, Source};
use bitgear_core::kernels::Kernels;

use crate::Failure;
use crate::arguments::Run;
use crate::terminal::{energy, on_threads, table};

/// Inputs that run together.
const BATCH: usize = 64;

pub(crate) fn run(options: &Run) -> Result<(), Failure> {
    let bundle = Bundle::read(&options.bundle)?.select(&options.policy)?;
    on_threads(options.threads, || {
        let runner = bundle.run_only(Kernels::detect());
        let bundle = runner.bundle();
        let points: Vec<&str> = bundle.policy.points().collect();
        let mut rows = Vec::new();
        for path in &options.inputs {
            let data = Dataset::read(&Source::Path(path.clone()))?;
            data.check(bundle.input_shape(), &bundle.preprocess)?;
            let indices: Vec<usize> = (0..data.len()).collect();
            for chunk in indices.chunks(BATCH) {
                let decisions = runner.decide(&data.batch(chunk, &bundle.preprocess));
                for (index, decision) in chunk.iter().zip(decisions) {
                    let scale = bundle.models[decision.stage].score_scale();
                    let spent = runner.energy_uj(decision.stage);
                    let margin = f64::from(decision.answer.margin) * scale;
                    if options.json {
                        let scores: Vec<f64> =
                            decision.scores.iter().map(|&s| f64::from(s) * scale).collect();
                        let line = serde_json::json!({
                            "input": path.display().to_string(),
                            "sample": index,
                            "class": decision.answer.class,
                            "margin": margin,
                            "stage": decision.stage,
                            "first_confidence": decision.first_confidence,
                            "point": points[decision.stage],
                            "energy_uj": spent,
                            "scores": scores,
                        });
                        println!("{line}");
                    } else {
                        rows.push(vec![
                            format!("{}[{index}]", path.display()),
                            decision.answer.class.to_string(),
                            format!("{margin:.4}"),
                            points[decision.stage].to_owned(),
                            energy(spent.chip),
                            energy(spent.total),
                        ]);
                    }
                }
            }
        }
        if !options.json {
            print!(
                "{}",
                table(&["input", "class", "margin", "point", "chip uJ", "total uJ"], &rows)
            );
        }
        Ok(())
    })
}
