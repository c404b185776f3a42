//! What a person sees: the command run as a process.

mod documentation;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs `bitgear` in the checkout.
fn bitgear(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitgear"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("the command can be started")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Exit code and error text of a command that must fail.
fn failure(arguments: &[&str]) -> String {
    let output = bitgear(arguments);
    assert!(!output.status.success() && output.stdout.is_empty());
    let code = output.status.code().expect("it was not killed");
    format!("exit code {code}\n{}", String::from_utf8_lossy(&output.stderr))
}

#[test]
fn inspect_shows_layers_and_sums() {
    let output = bitgear(&["inspect", "examples/fashion-mnist/fashion-mnist.onnx"]);
    insta::assert_snapshot!(stdout(&output), @r"
    layer                 kind            input    output  kernel       MACs  parameters
    stem_conv             convolution   1x28x28  16x28x28     3x3    112,896         160
    block1_1_conv         convolution  16x28x28  16x28x28     3x3  1,806,336       2,320
    block1_2_conv         convolution  16x28x28  16x28x28     3x3  1,806,336       2,320
    block2_1_conv         convolution  16x28x28  32x14x14     3x3    903,168       4,640
    block2_2_conv         convolution  32x14x14  32x14x14     3x3  1,806,336       9,248
    block2_shortcut_conv  convolution  16x28x28  32x14x14     1x1    100,352         544
    block3_1_conv         convolution  32x14x14    64x7x7     3x3    903,168      18,496
    block3_2_conv         convolution    64x7x7    64x7x7     3x3  1,806,336      36,928
    block3_shortcut_conv  convolution  32x14x14    64x7x7     1x1    100,352       2,112
    head                  linear             64        10     1x1        640         650

    fashion-mnist: input 1x28x28, 10 classes, 9,345,920 MACs, 77,418 parameters
    ");
}

#[test]
fn bench_times_points_and_policies_at_each_batch_size() {
    let model = "examples/fashion-mnist/fashion-mnist.onnx";
    let arguments = ["--points", "w4a4,w8a8", "--batch", "1,3", "--escalate", "0.5"];
    let quickly = ["--threads", "1", "--seconds", "0.01", "--json"];
    let output = bitgear(&[&["bench", model], &arguments[..], &quickly].concat());
    let rows: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = rows.as_array().unwrap();
    let names: Vec<String> =
        rows.iter().map(|r| format!("{} {}", r["point"], r["batch"])).collect();
    insta::assert_snapshot!(names.join(", "), @r#""w4a4" 1, "w8a8" 1, "w4a4>w8a8" 1, "w4a4" 3, "w8a8" 3, "w4a4>w8a8" 3"#);
    for row in rows {
        assert_eq!(row["threads"], 1);
        let (median, least) = (row["median_us"].as_f64().unwrap(), row["min_us"].as_f64().unwrap());
        assert!(0.0 < least && least <= median, "{row}");
    }
}

#[test]
fn inspect_names_the_kernel_of_every_layer() {
    let model = "examples/fashion-mnist/fashion-mnist.onnx";
    let output = bitgear(&["inspect", model, "--kernels", "--points", "w8a8", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let names = |list: &str, key: &str| {
        let entries = shown[list].as_array().unwrap().iter();
        let mut names: Vec<String> = entries.map(|entry| entry[key].to_string()).collect();
        names.sort();
        names
    };
    // In the order they run, which need not be that of the graph.
    assert_eq!(names("kernels", "layer"), names("layers", "name"));
    assert!(names("kernels", "point").iter().all(|point| point == r#""w8a8""#));
    assert!(names("kernels", "kernel").iter().all(|kernel| kernel.len() > 2));
}

#[test]
fn accelerators_are_listed_and_shown() {
    insta::assert_snapshot!(stdout(&bitgear(&["accelerators"])), @r"
    id              name                                                       evidence
    bitblade-28nm   BitBlade array in the PSMA benchmark (KU Leuven, 2021)     synthesis
    bitfusion-45nm  Bit Fusion, the size of Eyeriss (Georgia Tech, ISCA 2018)  synthesis
    dvas-40nm       40 nm DVAS ConvNet processor (KU Leuven, JSSC 2017)        silicon
    envision-28nm   Envision (KU Leuven, ISSCC 2017)                           silicon
    eyeriss-65nm    Eyeriss from the bottom up (MIT, JSSC 2017)                model
    gap9-22nm       GAP9 at 0.65 V (MLPerf Tiny)                               silicon
    generic-45nm    generic 45 nm accelerator (Horowitz, ISSCC 2014)           model
    mpic-22nm       MPIC mixed-precision RISC-V core (Ottavi et al. 2020)      post-layout
    unpu-65nm       UNPU (KAIST, JSSC 2019)                                    silicon
    ");
    insta::assert_snapshot!(stdout(&bitgear(&["accelerators", "show", "envision-28nm"])), @r"
    Envision (KU Leuven, ISSCC 2017)
    https://doi.org/10.1109/ISSCC.2017.7870353
    energy of a MAC holds the whole chip

    mode   w bits  a bits  pJ/MAC  grade  MAC/cycle
    1x16b      16      16    7.63  S            256
    2x8b        8       8     1.9  E            512
    4x4b        4       4   0.474  S           1024

    memory   bytes  read pJ/bit  write pJ/bit  grade
    sram    131072            -             -  -
    dram         -            8             8  S

    unknown or out of scope, and so not counted: static.idle_mw, static.sleep_mw, scope.io, scope.regulator
    ");
    insta::assert_snapshot!(stdout(&bitgear(&["accelerators", "show", "bitfusion-45nm"])), @r"
    Bit Fusion, the size of Eyeriss (Georgia Tech, ISCA 2018)
    https://arxiv.org/abs/1712.01507
    energy of a MAC is that of the MAC alone; memories and leakage are added

    pJ/MAC        w2        w4        w8       w16
    a2      0.0287 D  0.0574 D  0.1148 D  0.2296 E
    a4      0.0574 D  0.1148 D  0.2296 D  0.4592 E
    a8      0.1148 D  0.2296 D  0.4592 D  0.9184 E
    a16     0.2296 E  0.4592 E  0.9184 E  1.8368 D

    memory  bytes  read pJ/bit  write pJ/bit  grade
    wbuf    65536        0.021         0.029  F
    ibuf    32768        0.059         0.114  F
    obuf    16384        0.033         0.073  F
    dram        -           15            15  F

    unknown or out of scope, and so not counted: matching.utilization_default, memory.obuf.reuse_outputs, static.idle_mw, static.sleep_mw, transition.precision.energy_nj, scope.control, scope.io, scope.regulator
    ");
}

#[test]
fn errors_name_the_thing_and_say_what_to_do() {
    let model = "examples/fashion-mnist/fashion-mnist.onnx";
    let config = "examples/fashion-mnist/bitgear.toml";
    let seen = [
        failure(&["inspect", "LICENSE-MIT"]),
        failure(&["characterize", model, "--out", "target/absent"]),
        failure(&["characterize", "--config", config, "--points", "w4", "--out", "target/absent"]),
        failure(&[
            "characterize",
            "--config",
            config,
            "--guarantee",
            "1.5",
            "--out",
            "target/absent",
        ]),
        failure(&["accelerators", "show", "absent"]),
        failure(&["demo", "--example", "absent"]),
        failure(&["evaluate", "LICENSE-MIT", "--data", "absent.npz"]),
        failure(&["report", "absent"]),
        failure(&["report", "absent", "absent"]),
    ];
    insta::assert_snapshot!(seen.join("\n"), @r"
    exit code 1
    error: model `LICENSE-MIT`: not an ONNX model: failed to decode Protobuf message: invalid wire type value: 7
    hint: expected a file that `onnx.checker.check_model` takes; one that was cut short, or a Git LFS pointer in its place, is none

    exit code 1
    error: the data is missing
    hint: give --data, or `data.path` in the task's file

    exit code 1
    error: operating point must be `wWaA` or `wWaA-fFlL` with bit-widths from 1 to 16, such as `w4a4` or `w3a3-f8l8`, got `w4`

    exit code 1
    error: the guaranteed drop must be a fraction between 0 and 1, got 1.5

    exit code 1
    error: no accelerator profile `absent`: neither shipped (bitblade-28nm, bitfusion-45nm, dvas-40nm, envision-28nm, eyeriss-65nm, gap9-22nm, generic-45nm, mpic-22nm, unpu-65nm) nor a readable file: No such file or directory (os error 2)

    exit code 1
    error: task `absent/bitgear.toml`: No such file or directory (os error 2)

    exit code 1
    error: `LICENSE-MIT` is no bundle: header too large
    hint: a bundle is what `bitgear characterize` writes as `model.bitgear`

    exit code 1
    error: cannot read `absent/summary.json`: No such file or directory (os error 2)
    hint: a run's folder is what `bitgear characterize` was given as --out

    exit code 1
    error: expected one run, got 2
    hint: --compare sets several runs side by side
    ");
    assert!(!root().join("target/absent").exists(), "a request that fails at once writes nothing");
}

/// Digits differ by CPU where they rest on float sums; what is checked here is what is said.
#[test]
fn characterize_evaluate_and_run_tell_one_story() {
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().to_str().expect("UTF-8");
    let config = "examples/fashion-mnist/bitgear.toml";
    let shown = stdout(&bitgear(&[
        "characterize",
        "--config",
        config,
        "--points",
        "w3a3,w6a6",
        "--margin-only",
        "--no-sums",
        "--out",
        folder,
    ]));
    // Which view the second stage takes hangs by few samples.
    let filters = vec![
        (r"-?\+?\d+\.\d+|\+0\.00", "[n]"),
        (r" {2,}", "  "),
        (" on the mirrored input", ""),
        (folder, "[out]"),
    ];
    insta::with_settings!({filters => filters}, {
        insta::assert_snapshot!(shown, @r"
    fashion-mnist: 9,345,920 MACs, 77,418 parameters, on envision-28nm
    512 samples for calibration, 7,000 to choose, 3,000 for the test

    point  accuracy  difference  chip uJ  total uJ
    float  [n] %  [n]  -  -
    w3a3  [n] %  [n]  [n]  [n]
    w6a6  [n] %  [n]  [n]  [n]
    w16a16  [n] %  [n]  [n]  [n]
    policy  [n] %  [n]  [n]  [n]

    policy for a drop of at most [n] points: w3a3, accepted from a margin of [n]; [n] % of the inputs go on to w6a6
    the drop is at most [n] points with 95 % confidence (exact test); the target is an expectation
    class 6 loses most: [n] points
    an inference takes [n] us on average, [n] us where all stages run
    with --no-worse-than-static: w6a6, [n] points, [n] uJ (chip)

    saving against  point  chip  by the profile  total  chip, mean of splits
    best static uniform  w6a6  [n] %  [n] % to [n] %  [n] %  [n] %
    best static  w6a6  [n] %  [n] % to [n] %  [n] %  [n] %
    best static plain  w6a6-plain  [n] %  [n] % to [n] %  [n] %  [n] %
    16 bits  w16a16  [n] %  [n] % to [n] %  [n] %  [n] %

    by the profile: what its numbers may be moves the saving so far; against the best static uniform point most by `mode.2x8b.e_mac_pj`
    over 200 random splits the policies chosen this way lose [n] points on average (standard error [n])
    a perfect gate between the same stages would need [n] uJ (chip)
    costs rest on: silicon, worst grade E
    not counted, because unknown or out of scope: static.idle_mw, static.sleep_mw, scope.io, scope.regulator

    files:
      [out]/report.html
      [out]/summary.json
      [out]/policy.json
      [out]/model.bitgear
      [out]/trace.parquet
      [out]/splits.json
    ");
    });

    // The page that was written along with them is that of the files alone.
    let page = std::fs::read(out.path().join("report.html")).expect("it was written");
    let drawings = out.path().join("drawings");
    let drawings = drawings.to_str().expect("UTF-8");
    let listed = stdout(&bitgear(&["report", folder, "--svg", drawings, "--json"]));
    let listed: Vec<PathBuf> = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(std::fs::read(&listed[0]).expect("it was written"), page);
    let names: Vec<_> = listed.iter().map(|p| p.file_name().expect("a file")).collect();
    insta::assert_snapshot!(format!("{names:?}"), @r#"["report.html", "saving.svg", "frontier.svg", "threshold.svg", "stage-1.svg", "stage-2.svg", "escalation.svg", "confusion.svg", "energy-stages.svg", "energy-layers.svg"]"#);
    for drawing in &listed[1..] {
        let text = std::fs::read_to_string(drawing).expect("it was written");
        assert!(text.starts_with("<svg") && !text.contains("class="), "{}", drawing.display());
    }
    let both = out.path().join("both.html");
    let both = both.to_str().expect("UTF-8");
    let said = stdout(&bitgear(&["report", "--compare", folder, folder, "--out", both]));
    assert_eq!(said.trim(), both);
    let text = std::fs::read_to_string(both).expect("it was written");
    assert!(text.contains("2 runs of bitgear"));

    let summary = std::fs::read_to_string(out.path().join("summary.json")).expect("it was written");
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    let bundle = out.path().join("model.bitgear");
    let bundle = bundle.to_str().expect("UTF-8");
    let data = "examples/fashion-mnist/test.npz";
    let evaluation =
        stdout(&bitgear(&["evaluate", bundle, "--data", data, "--split", "test", "--json"]));
    let evaluation: serde_json::Value = serde_json::from_str(&evaluation).expect("JSON");
    for key in ["accuracy", "escalation_rates", "energy_uj"] {
        assert_eq!(evaluation[key], summary["policy"][key], "{key}");
    }
    assert_eq!(evaluation["samples"], summary["samples"]["test"]);

    // Without a guarantee the certification samples chose, too, and the bound is that of the test.
    let certify = |more: &[&str]| {
        let model = "examples/fashion-mnist/fashion-mnist.onnx";
        let of = ["certify", bundle, "--model", model, "--data", data, "--json", "--split"];
        bitgear(&[&of, more].concat())
    };
    let refused = certify(&["certification"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("these samples chose the policy"));
    let unproved = certify(&["test", "--guarantee", "0.0001"]);
    assert_eq!(unproved.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unproved.stderr);
    assert!(said.contains("not proved on this data: at most 0.01 points"), "{said}");
    let again = stdout(&certify(&["test"]));
    let again: serde_json::Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again["drop_upper_bound"], summary["policy"]["drop_upper_bound"]);
    assert_eq!((&again["guarantee"], &again["proved"]), (&().into(), &().into()));

    let golden = "examples/fashion-mnist/golden.npz";
    let lines = stdout(&bitgear(&["run", bundle, golden, "--json"]));
    let answers: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), 32);
    for answer in &answers {
        let scores: Vec<f64> = answer["scores"]
            .as_array()
            .expect("scores")
            .iter()
            .map(|s| s.as_f64().expect("number"))
            .collect();
        let class = usize::try_from(answer["class"].as_u64().expect("class")).expect("small");
        assert!(scores.iter().all(|&s| s <= scores[class]), "{answer}");
    }
    let wrong = failure(&["evaluate", bundle, "--data", golden, "--split", "test"]);
    assert!(wrong.contains("is not what the bundle's splits refer to"), "{wrong}");
}
