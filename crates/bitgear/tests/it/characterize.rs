//! The main job on the demo's model and data, shortened.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use bitgear::bundle::Bundle;
use bitgear::certify::{Demand, Test};
use bitgear::characterize::{
    Characterization, Finished, Job, Progress, characterize, compare, measure, recheck,
};
use bitgear::data::{Dataset, Preprocess, Source};
use bitgear::energy::{AcceleratorProfile, Storage, Style};
use bitgear::quantize::{Methods, Point, calibrate};
use bitgear::search::{Candidates, Pool, Rules};
use bitgear::summary::Constraint;
use bitgear::trace::{FLOAT, Shares, Split, View};
use bitgear_core::kernels::Kernels;

use crate::real::root;

/// Ignores everything, or panics after a number of batches, as if the process were killed.
pub(crate) struct Watch {
    steps: Mutex<Vec<String>>,
    left: AtomicUsize,
}

impl Watch {
    pub(crate) fn new(batches: usize) -> Self {
        Self { steps: Mutex::default(), left: AtomicUsize::new(batches) }
    }
}

impl Progress for Watch {
    fn begin(&self, step: &str, _: usize) {
        self.steps.lock().unwrap().push(step.to_owned());
    }

    fn advance(&self, samples: usize) {
        // Calibration advances by single batches of 8; traced batches are larger.
        if samples > 8 {
            let before = self.left.fetch_sub(1, Ordering::SeqCst);
            assert!(before > 0, "killed");
        }
    }
}

pub(crate) fn example(name: &str) -> PathBuf {
    root().join("examples/fashion-mnist").join(name)
}

/// The first 1,500 test images as a pair of arrays, so that a run takes a second.
pub(crate) fn small() -> Source {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let data = Dataset::read(&Source::Path(example("test.npz"))).unwrap();
        let indices: Vec<usize> = (0..1500).collect();
        let pixels = data.batch(&indices, &Preprocess::default());
        let x: Vec<u8> = pixels.values().iter().map(|&v| v as u8).collect();
        let y: Vec<u8> = data.labels().unwrap()[..1500].iter().map(|&l| l as u8).collect();
        for (name, shape, data) in [("x.npy", "(1500, 1, 28, 28)", x), ("y.npy", "(1500,)", y)] {
            let header =
                format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
            let mut file = b"\x93NUMPY\x01\x00".to_vec();
            file.extend((header.len() as u16).to_le_bytes());
            file.extend(header.as_bytes());
            file.extend(data);
            fs::write(folder.path().join(name), file).unwrap();
        }
        folder
    });
    Source::Pair { images: folder.path().join("x.npy"), labels: folder.path().join("y.npy") }
}

pub(crate) fn constraint(max_accuracy_drop: f64, guarantee: Option<f64>) -> Constraint {
    Constraint {
        max_accuracy_drop,
        no_worse_than_static: false,
        max_energy_uj: None,
        guarantee,
        confidence: 0.95,
        test: Test::Exact,
    }
}

pub(crate) fn job(out: &Path, points: &[&str]) -> Job {
    Job {
        model: example("fashion-mnist.onnx"),
        data: small(),
        calibration: Some(Source::Path(example("calibration.npz"))),
        preprocess: Preprocess { scale: 1.0 / 255.0, ..Preprocess::default() },
        accelerator: "envision-28nm".to_owned(),
        points: Some(points.iter().map(|p| p.parse::<Point>().unwrap()).collect()),
        budget: Job::BUDGET,
        methods: Methods::best(),
        storage: Storage::Independent,
        constraint: constraint(0.01, None),
        more_targets: Vec::new(),
        rules: Rules::default(),
        class_mix: None,
        mirror: false,
        shares: Shares { calibration: 64, search: 0.5, certification: 0.1 },
        seed: 1,
        out: out.to_owned(),
    }
}

pub(crate) fn run(job: &Job, watch: &Watch, threads: usize) -> Characterization {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| characterize(job, watch)).unwrap()
}

pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_killed_run_continues_and_gives_the_bytes_of_one_that_was_not_killed() {
    let whole = tempfile::tempdir().unwrap();
    let once = run(&job(whole.path(), &["w4a4", "w6a6"]), &Watch::new(1000), 2);

    let killed = tempfile::tempdir().unwrap();
    let again = job(killed.path(), &["w4a4", "w6a6"]);
    let dies = Watch::new(7);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&again, &dies, 1)));
    assert!(result.is_err());
    assert!(!killed.path().join("summary.json").exists());
    let left = fs::read_dir(killed.path().join("trace-parts")).unwrap().count();
    assert!(left >= 7, "{left} batches were kept");

    // At another number of threads, too.
    assert_eq!(run(&again, &Watch::new(1000), 1), once);
    assert_eq!(files(killed.path()), files(whole.path()));
    let names: Vec<String> = files(whole.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "model.bitgear",
            "policy.json",
            "report.html",
            "splits.json",
            "summary.json",
            "trace.parquet"
        ]
    );

    // A finished trace is used again: nothing but a new point is traced.
    let more = Watch::new(1000);
    run(&job(killed.path(), &["w4a4", "w5a5"]), &more, 2);
    let steps = more.steps.lock().unwrap();
    assert_eq!(
        steps[..6],
        ["calibrate", "quantize w5a5", "w5a5", "quantize w5a5-plain", "w5a5-plain", "search"]
    );
    // The networks of the policy are made again.
    let (last, made) = steps[6..].split_last().unwrap();
    assert_eq!(last, "summary");
    assert!(made.iter().all(|step| step.starts_with("quantize ")), "{made:?}");
}

#[test]
fn nested_points_read_the_leading_bits_of_one_copy_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job {
        storage: Storage::Nested,
        constraint: constraint(0.03, None),
        ..job(folder.path(), &["w2a2", "w8a8"])
    };
    let result = run(&job, &Watch::new(1000), 2);
    let storage = result.summary.storage;
    assert_eq!(storage.kind, Storage::Nested);
    // Of 8 and 2 bits only the 8 are stored.
    assert_eq!(storage.weight_bytes * 10, storage.independent.weight_bytes * 8);
    let bundle = Bundle::read(&folder.path().join("model.bitgear")).unwrap();
    let names: Vec<&str> = bundle.policy.points().collect();
    assert_eq!(names, ["w2a2-nested", "w8a8-nested"]);
    for (narrow, wide) in bundle.models[0].mac_steps().zip(bundle.models[1].mac_steps()) {
        let leading = wide.codes.iter().map(|code| 2 * (code >> 6) + 1);
        assert!(narrow.codes.iter().copied().eq(leading), "{}", narrow.name);
    }
    let data = Dataset::read(&small()).unwrap();
    let test = bundle.splits.test.clone();
    for kernels in Kernels::present() {
        let evaluation = bundle.runner(kernels).evaluate(&data, &test, |_| {}).unwrap();
        assert_eq!(evaluation.accuracy, result.summary.policy.accuracy);
        assert_eq!(evaluation.energy_uj, result.summary.policy.energy_uj);
    }
}

#[test]
fn the_executed_policy_does_exactly_what_the_summary_says() {
    let folder = tempfile::tempdir().unwrap();
    let result = run(&job(folder.path(), &["w2a2-f8l8", "w8a8"]), &Watch::new(1000), 2);
    let bundle = Bundle::read(&folder.path().join("model.bitgear")).unwrap();
    assert_eq!(bundle.policy, result.policy);
    assert!(!bundle.policy.stages.is_empty(), "expected a dynamic policy: {:?}", result.policy);
    let data = Dataset::read(&small()).unwrap();
    for kernels in Kernels::present() {
        let test = bundle.splits.test.clone();
        let evaluation = bundle.runner(kernels).evaluate(&data, &test, |_| {}).unwrap();
        let policy = &result.summary.policy;
        assert_eq!(evaluation.samples, result.summary.samples.test);
        assert_eq!(evaluation.accuracy, policy.accuracy, "{}", kernels.name());
        assert_eq!(evaluation.escalation_rates, policy.escalation_rates);
        assert_eq!(evaluation.energy_uj, policy.energy_uj);
    }
}

/// Each policy of a bundle does what the summary says of it, on data whose classes are mixed as in
/// deployment.
/// Both views of every input, summed scores and three stages are offered; whatever is chosen, running
/// it gives the figures of the summary, and a proof on data that chose nothing agrees.
#[test]
fn with_a_symmetry_the_executed_policy_still_does_what_the_summary_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w2a2-f8l8", "w3a3-f8l8", "w8a8"]);
    job.mirror = true;
    job.rules.stages = 3;
    let result = run(&job, &Watch::new(1000), 2);
    let trace = bitgear::trace::read(&folder.path().join("trace.parquet")).unwrap();
    assert!(trace.block("float", View::Mirror).is_some());
    assert_ne!(trace.block("w8a8", View::Mirror), trace.block("w8a8", View::AsIs));
    assert!(result.summary.reference.accuracy_both_views.unwrap() > 0.8);
    let mirrored = result.summary.r#static.iter().filter(|point| point.view == "mirror").count();
    assert_eq!(mirrored, 4);

    let bundle = Bundle::read(&folder.path().join("model.bitgear")).unwrap();
    let data = Dataset::read(&small()).unwrap();
    let policy = &result.summary.policy;
    for kernels in Kernels::present() {
        let test = bundle.splits.test.clone();
        let evaluation = bundle.runner(kernels).evaluate(&data, &test, |_| {}).unwrap();
        assert_eq!(evaluation.accuracy, policy.accuracy, "{}", kernels.name());
        assert_eq!(evaluation.escalation_rates, policy.escalation_rates);
        assert_eq!(evaluation.energy_uj, policy.energy_uj);
    }

    let demand = Demand {
        target: 1.0.into(),
        max_energy_uj: None,
        guarantee: Some(0.2),
        confidence: 0.95,
        test: Test::Exact,
    };
    let test = &bundle.splits.test;
    let again = |model: &Path| recheck(&bundle, model, &data, test, &demand, &Watch::new(1000));
    let found = again(&job.model).unwrap();
    let certificate = result.policy.certificate.unwrap();
    assert_eq!(found.flips, certificate.flips);
    assert!((found.drop_upper_bound - certificate.bound).abs() < 1e-9);
    assert_eq!(found.proved, Some(true));
    assert!(again(&example("README.md")).is_err());
}

/// What a run says a policy would be that loses no more than a static point is what is chosen when asked.
#[test]
fn a_policy_that_is_no_worse_than_static_is_the_one_that_was_announced() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w2a2-f8l8", "w8a8"]);
    let summary = run(&job, &Watch::new(1000), 2).summary;
    let announced = summary.no_worse.expect("there is room between 8 bits and the target");
    assert!(announced.energy_uj.chip > summary.policy.energy_uj.chip);
    job.constraint.no_worse_than_static = true;
    let asked = run(&job, &Watch::new(1000), 2).summary;
    assert_eq!(asked.policy.energy_uj, announced.energy_uj);
    assert_eq!(asked.policy.accuracy, announced.accuracy);
    assert_eq!(asked.best_static, summary.best_static);
    assert_eq!(asked.no_worse, None);
}

/// The same policy is chosen, and figures are counted, from the files of a run as in the run itself.
#[test]
fn a_finished_run_is_decided_again_from_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &["w2a2-f8l8", "w8a8"]);
    let result = run(&job, &Watch::new(1000), 2);
    let finished = Finished::read(folder.path(), &job.model).unwrap();
    let profile = AcceleratorProfile::find(&job.accelerator).unwrap();
    let points = finished.points.clone();
    let candidates = Candidates::new(
        &finished.trace,
        FLOAT,
        points,
        &profile,
        &finished.workload,
        Rules::default(),
    )
    .unwrap();
    let test = finished.trace.rows(Split::Test);
    // Without a guarantee all samples but those of the test choose.
    let splits = &finished.trace.splits;
    let others: Vec<usize> = (0..splits.len()).filter(|&row| splits[row] != Split::Test).collect();
    let choice = candidates.choose(&others, 0.01.into(), Pool::Policies, job.seed);
    let outcome = candidates.outcome(&choice, &test);
    assert_eq!(outcome.accuracy, result.summary.policy.accuracy);
    assert_eq!(outcome.energy.chip_uj, result.summary.policy.energy_uj.chip);
    let certificate = result.policy.certificate.unwrap();
    assert_eq!(certificate.split, "test");
    assert_eq!(certificate.flips, candidates.flips(&choice, &test));
    assert!(Finished::read(folder.path(), &example("README.md")).is_err());
}

#[test]
fn a_guarantee_is_proved_or_the_samples_that_it_takes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w3a3", "w6a6"]);
    job.shares = Shares { calibration: 64, search: 0.4, certification: 0.3 };
    job.constraint = constraint(0.01, Some(0.05));
    let result = run(&job, &Watch::new(1000), 2);
    let certificate = result.policy.certificate.unwrap();
    assert!(result.summary.policy.certified && result.summary.best_static.certified);
    assert_eq!((certificate.guarantee, certificate.bound), (Some(0.05), 0.05));
    assert_eq!(certificate.split, "certification");
    assert_eq!(certificate.flips.samples, result.summary.samples.certification as u64);
    // The proof can be done again from what the certificate says.
    let p = certificate.test.p_value(certificate.flips, certificate.bound, 0.05);
    assert!(p <= certificate.level && certificate.level <= 0.05 + 1e-12);

    job.constraint = constraint(0.001, Some(0.002));
    let result = run(&job, &Watch::new(1000), 2);
    let policy = &result.summary.policy;
    assert!(!policy.certified && result.policy.certificate.is_none());
    assert!(policy.drop_upper_bound.unwrap() > 0.002);
    if let Some(samples) = policy.samples_needed {
        assert!(samples > result.summary.samples.certification as u64);
    }
}

#[test]
fn an_accelerator_of_fixed_activations_prices_weights_alone() {
    let folder = tempfile::tempdir().unwrap();
    let unpu = "unpu-65nm".to_owned();
    let job = Job { accelerator: unpu, ..job(folder.path(), &["w4a16", "w6a16"]) };
    let summary = run(&job, &Watch::new(1000), 2).summary;
    // Published at 16 bits of weights, recalled at 4, between 4 and 8 on a line in logarithms.
    let middle = 0.172 * (0.32_f64 / 0.172).powf(1.5_f64.log2());
    for (name, pj) in [("w4a16", 0.172), ("w6a16", middle), ("w16a16", 0.649)] {
        let point = summary.r#static.iter().find(|p| p.point == name).unwrap();
        let expected = summary.model.macs as f64 * pj * 1e-6;
        assert!((point.energy_uj.chip / expected - 1.0).abs() < 1e-9, "{name}");
    }
    assert_eq!(summary.best_static_uniform.point, "w4a16");
}

#[test]
fn one_trace_is_compared_on_many_accelerators_without_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &["w3a3", "w6a6"]);
    let own = run(&job, &Watch::new(1000), 2).summary;
    for (saving, interval) in [
        (own.savings.vs_best_static_uniform, &own.savings_interval.vs_best_static_uniform),
        (own.savings.vs_16_bit, &own.savings_interval.vs_16_bit),
        (own.savings_total.vs_best_static, &own.savings_total_interval.vs_best_static),
    ] {
        let range = interval.low - 1e-12..=interval.high + 1e-12;
        assert!(range.contains(&saving), "{saving}: {interval:?}");
    }
    assert!(own.savings_interval.vs_16_bit.most.is_some());

    let host = calibrate(&import(&job.model), 8, |span| Ok::<_, ()>(samples(span))).unwrap();
    let host = measure(&import(&job.model), &host, &samples(0..2), 1, ["test", "net"]).unwrap();
    let host = AcceleratorProfile::parse("host", &host).unwrap();
    assert_eq!(host.accelerator.style, Style::Time);
    let mut profiles: Vec<AcceleratorProfile> = ["envision-28nm", "gap9-22nm"]
        .iter()
        .map(|id| AcceleratorProfile::find(id).unwrap())
        .collect();
    profiles.push(host);
    let summaries = compare(folder.path(), &job.model, &profiles).unwrap();
    let [envision, gap9, host] = summaries.try_into().unwrap();
    // On the run's own accelerator the same as the run.
    let envision = envision.unwrap();
    assert_eq!(envision.policy, own.policy);
    assert_eq!(
        (envision.savings, &envision.savings_interval),
        (own.savings, &own.savings_interval)
    );
    // Where fewer bits cost the same, the most accurate of them stands alone.
    let gap9 = gap9.unwrap();
    assert!(gap9.policy.stages.is_empty(), "{:?}", gap9.policy);
    assert_eq!(gap9.savings.vs_best_static, 0.0);
    assert_eq!(host.unwrap().cost_unit, "us");

    let other = compare(folder.path(), &root().join("examples/README.md"), &profiles);
    assert!(other.is_err());
}

fn import(model: &Path) -> bitgear::graph::Graph {
    bitgear::onnx::import_file(model).unwrap()
}

fn samples(span: std::ops::Range<usize>) -> bitgear::tensor::Tensor {
    let indices: Vec<usize> = span.collect();
    Dataset::read(&small()).unwrap().batch(&indices, &Preprocess::default())
}

#[test]
fn the_trace_holds_the_float_network_and_every_point_twice() {
    let folder = tempfile::tempdir().unwrap();
    run(&job(folder.path(), &["w3a3"]), &Watch::new(1000), 2);
    let trace = bitgear::trace::read(&folder.path().join("trace.parquet")).unwrap();
    let points: Vec<&str> = trace.blocks.iter().map(|b| b.point.as_str()).collect();
    assert_eq!(points, ["float", "w3a3", "w3a3-plain", "w16a16", "w16a16-plain"]);
    let (float, wide) =
        (trace.block("float", View::AsIs).unwrap(), trace.block("w16a16", View::AsIs).unwrap());
    let same =
        float.answers.predicted.iter().zip(&wide.answers.predicted).filter(|(a, b)| a == b).count();
    // 16 bits differ from float only where calibration clipped or scores almost tie.
    assert!(same as f64 > 0.995 * trace.samples.len() as f64, "{same} of {}", trace.samples.len());
}

/// Names and order of all keys; the numbers rest on float sums and so on the CPU.
#[test]
fn the_files_have_the_published_form() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &["w3a3"]);
    // Whether these are taken rests on the CPU too.
    (job.rules.margin_only, job.rules.sums) = (true, false);
    run(&job, &Watch::new(1000), 2);
    let filters = vec![
        (r"-?\d+\.\d+(e-?\d+)?", "[real]"),
        (r"[0-9a-f]{64}", "[sha256]"),
        (r"w\d+a\d+", "[point]"),
        (r#"(?s)"footprint": \{.*?\n    \}"#, r#""footprint": [footprint]"#),
        // How many stages each target takes rests on the CPU too.
        (r#"(?s)"frontier": \[.*?\n  \]"#, r#""frontier": [frontier]"#),
        // One layer stands for all.
        (r#"(?s)("layers": \[\n        \{.*?\n        \}),.*?\n      \]"#, "$1, [more]\n      ]"),
        (r#""(harmful|helpful)": \d+"#, r#""$1": [count]"#),
        // Quantizing runs in floating point: thresholds repeat on one type of CPU.
        (r#""accept_at_code": \d+"#, r#""accept_at_code": [code]"#),
        (r#""class": \d+"#, r#""class": [class]"#),
    ];
    insta::with_settings!({filters => filters}, {
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        insta::assert_snapshot!("summary.json", read("summary.json"));
        insta::assert_snapshot!("policy.json", read("policy.json"));
    });
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |change: &dyn Fn(&mut Job)| {
        let mut job = job(folder.path(), &["w4a4"]);
        change(&mut job);
        let error = characterize(&job, &Watch::new(1000)).unwrap_err().to_string();
        error.replace(&root().display().to_string(), "ROOT")
    };
    let seen = [
        fails(&|job| job.constraint.max_accuracy_drop = 1.5),
        fails(&|job| job.constraint.guarantee = Some(0.0)),
        fails(&|job| job.constraint.confidence = 1.0),
        fails(&|job| job.rules.stages = 9),
        fails(&|job| job.model = "absent.onnx".into()),
        fails(&|job| job.model = example("README.md")),
        fails(&|job| job.accelerator = "absent".to_owned()),
        fails(&|job| job.data = Source::Path(example("bitgear.toml"))),
        fails(&|job| job.shares.search = 1.0),
        fails(&|job| {
            job.data = Source::Path(example("test.npz"));
            job.preprocess.mean = vec![0.0; 3];
        }),
    ];
    insta::assert_snapshot!(seen.join("\n"), @r"
    the largest accuracy drop must be a fraction from 0 to below 1, such as 0.005 for half a point, got 1.5
    the guaranteed drop must be a fraction between 0 and 1, got 0
    the confidence must be from 0.5 to 0.9999, got 1
    a policy has 1 to 4 stages, got 9
    cannot read `absent.onnx`: No such file or directory (os error 2)
    model `ROOT/examples/fashion-mnist/README.md`: not an ONNX model: failed to decode Protobuf message: invalid wire type value: 7
    no accelerator profile `absent`: neither shipped (bitblade-28nm, bitfusion-45nm, dvas-40nm, envision-28nm, eyeriss-65nm, gap9-22nm, generic-45nm, mpic-22nm, unpu-65nm) nor a readable file: No such file or directory (os error 2)
    data `ROOT/examples/fashion-mnist/bitgear.toml`: expected a `.npz` or `.npy` file, a folder of images or an image
    shares must leave samples for all: search 1, certification 0.1, test -0.100, calibration 64 samples
    data `ROOT/examples/fashion-mnist/test.npz`: preprocessing: `mean` must hold 1 or 1 values, got 3
    ");
}
