//! Bundles that runs wrote.

use std::fs;

use bitgear::bundle::Bundle;
use bitgear::certify::Demand;
use bitgear::characterize::{Characterization, recheck};
use bitgear::data::{Dataset, Source};
use bitgear::policy::PolicyFile;
use bitgear::trace::{FLOAT, Split, View, read};
use bitgear_core::kernels::Kernels;

use crate::characterize::{Watch, example, job, run, small};

#[test]
fn a_bundle_holds_several_policies_and_runs_the_one_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w2a2-f8l8", "w8a8"]);
    job.more_targets = vec![0.0, 0.2];
    let result = run(&job, &Watch::new(1000), 2);
    let data = Dataset::read(&small()).unwrap();
    let names: Vec<&str> =
        result.summary.options.iter().map(|option| option.name.as_str()).collect();
    assert_eq!(names, ["max-drop-0", "max-drop-0.2"]);
    let read = || Bundle::read(&folder.path().join("model.bitgear")).unwrap();
    let test = read().splits.test;
    let mut energies = Vec::new();
    for option in &result.summary.options {
        let bundle = read().select(&option.name).unwrap();
        let file = folder.path().join(format!("policy-{}.json", option.name));
        let alone: PolicyFile = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(bundle.policy, alone);
        let runner = bundle.runner(Kernels::detect());
        let evaluation = runner.evaluate(&data, &test, |_| {}).unwrap();
        assert_eq!(evaluation.accuracy, option.accuracy);
        assert_eq!(evaluation.escalation_rates, option.escalation_rates);
        assert_eq!(evaluation.energy_uj, option.energy_uj);
        energies.push(option.energy_uj.chip);
    }
    assert!(energies[0] > energies[1], "the frugal policy costs less: {energies:?}");
    assert_eq!(read().select("main").unwrap().policy, result.policy);
    let unknown = read().select("frugal").unwrap_err().to_string();
    assert_eq!(
        unknown,
        "the bundle has no policy `frugal`: expected main, max-drop-0, max-drop-0.2"
    );
}

/// Every figure is that of a deployment in which the first class is twice as frequent as each other and the last
/// never occurs; what is proved is proved with samples mixed like that.
#[test]
fn the_class_mix_of_deployment_is_that_of_all_figures_and_of_the_proof() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w2a2-f8l8", "w8a8"]);
    let shares = [&[2.0][..], &[1.0; 8], &[0.0]].concat();
    job.class_mix = Some(shares.clone());
    let Characterization { summary, policy } = run(&job, &Watch::new(1000), 2);
    let data = Dataset::read(&small()).unwrap();
    let labels = data.labels().unwrap();
    let bundle = Bundle::read(&folder.path().join("model.bitgear")).unwrap();
    let splits = &bundle.splits;
    let of = |samples: &[usize], class| samples.iter().filter(|&&i| labels[i] == class).count();
    assert_eq!(of(&splits.test, 9), 0);
    assert!(of(&splits.test, 0).abs_diff(of(&splits.test, 1)) < 20, "none is left out");

    // The mean of the classes' accuracies, each counted by its share.
    let trace = read(&folder.path().join("trace.parquet")).unwrap();
    let float = trace.block(FLOAT, View::AsIs).unwrap();
    let rows = trace.rows(Split::Test);
    let accuracy = |class: u32| {
        let own = rows.iter().filter(|&&row| trace.labels[row] == class);
        let right = own.clone().filter(|&&row| float.answers.predicted[row] == class);
        right.count() as f64 / own.count() as f64
    };
    let expected = (0..9).map(|class| shares[class as usize] * accuracy(class)).sum::<f64>() / 10.0;
    assert!((summary.reference.accuracy - expected).abs() < 1e-5);
    let plain = rows.iter().filter(|&&row| float.answers.predicted[row] == trace.labels[row]);
    assert!((expected - plain.count() as f64 / rows.len() as f64).abs() > 1e-3);

    let mix = summary.class_mix.unwrap();
    assert!(mix.test > 0.85 * rows.len() as f64 && mix.test < rows.len() as f64, "{mix:?}");
    let certificate = policy.certificate.unwrap();
    assert_eq!(certificate.flips.samples, mix.certification as u64);
    assert!(mix.certification < splits.test.len() * 7 / 10, "{mix:?}");
    let demand = Demand {
        target: 1.0.into(),
        max_energy_uj: None,
        guarantee: None,
        confidence: certificate.confidence,
        test: certificate.test,
    };
    let again = |samples: &[usize]| {
        recheck(&bundle, &job.model, &data, samples, &demand, &Watch::new(1000))
    };
    let found = again(&splits.test).unwrap();
    assert_eq!((found.flips, found.drop_upper_bound), (certificate.flips, certificate.bound));
    let one: Vec<usize> = (0..1500).filter(|&i| labels[i] == 1).collect();
    let error = again(&one).unwrap_err().to_string();
    assert!(error.contains("class 0 has a share of the class mix, but no samples"), "{error}");

    let runner = bundle.runner(Kernels::detect());
    let evaluation = runner.evaluate(&data, &splits.test, |_| {}).unwrap();
    assert_eq!(evaluation.accuracy, summary.policy.accuracy);
    assert_eq!(evaluation.escalation_rates, summary.policy.escalation_rates);
    assert_eq!(evaluation.energy_uj, summary.policy.energy_uj);

    // The answers of all samples serve another mix of the same classes.
    job.class_mix = Some([&[1.0; 9][..], &[0.0]].concat());
    let other = run(&job, &Watch::new(0), 2).summary;
    assert!((other.reference.accuracy - summary.reference.accuracy).abs() > 1e-3);
}

#[test]
fn a_damaged_bundle_is_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    run(&job(folder.path(), &["w2a2"]), &Watch::new(1000), 2);
    let path = folder.path().join("model.bitgear");
    let bytes = fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged.bitgear");
    // The header is JSON text: wrong digits make wrong sizes, places and bounds.
    let header = 8..u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let data = Dataset::read(&Source::Path(example("golden.npz"))).unwrap();
    let mut refused = 0;
    for at in header.step_by(31) {
        let mut copy = bytes.clone();
        if copy[at].is_ascii_digit() {
            copy[at] = b'9' - (copy[at] - b'0');
            fs::write(&damaged, &copy).unwrap();
            if let Ok(bundle) = Bundle::read(&damaged) {
                // What is accepted can be run.
                let batch = data.batch(&[0], &bundle.preprocess);
                bundle.runner(Kernels::detect()).decide(&batch);
            } else {
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        fs::write(&damaged, &bytes[..len]).unwrap();
        assert!(Bundle::read(&damaged).is_err(), "{len} bytes");
    }
}
