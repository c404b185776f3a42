//! Bundles that runs wrote.

use std::fs;

use bitgear::bundle::Bundle;
use bitgear::data::{Dataset, Source};
use bitgear::policy::PolicyFile;
use bitgear_core::kernels::Kernels;

use crate::characterize::{Watch, example, job, run, small};

#[test]
fn a_bundle_holds_several_policies_and_runs_the_one_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w2a2-f8l8", "w8a8"]);
    job.more_targets = vec![0.0, 0.2];
    // The first class twice as often as each other, the last never.
    job.class_mix = Some([&[2.0][..], &[1.0; 8], &[0.0]].concat());
    let result = run(&job, &Watch::new(1000), 2);
    let data = Dataset::read(&small()).unwrap();
    let names: Vec<&str> =
        result.summary.options.iter().map(|option| option.name.as_str()).collect();
    assert_eq!(names, ["max-drop-0", "max-drop-0.2"]);
    let read = || Bundle::read(&folder.path().join("model.bitgear")).unwrap();
    let test = read().splits.test;
    let of = |class| test.iter().filter(|&&i| data.labels().unwrap()[i] == class).count();
    assert_eq!(of(9), 0);
    assert!(of(0).abs_diff(2 * of(1)) <= 2, "{} {}", of(0), of(1));
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
