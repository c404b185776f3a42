//! Development tasks: `cargo xtask test` is what CI runs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks")]

mod architecture;
mod python;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const HELP: &str = "\
usage: cargo xtask TASK

tasks:
  test          everything that must hold before a change lands (see below)
  fmt           formatting
  lint          clippy on all targets and rustdoc, warnings are errors
  architecture  the rules of ARCHITECTURE.md about which module may use which
  nostd         the core builds without the standard library
  unit          all tests, with cargo-nextest where it is installed, and the documentation's examples
  python        the Python package: its tests, notebooks and types, in an environment below target/
";

fn main() -> ExitCode {
    let task = env::args().nth(1).unwrap_or_default();
    match run(&task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &str) -> Result<()> {
    match task {
        "test" => {
            let all = ["fmt", "architecture", "lint", "nostd", "unit", "python"];
            all.iter().try_for_each(|task| run(task))
        }
        "fmt" => cargo("fmt --all --check"),
        "lint" => {
            cargo("clippy --workspace --all-targets --locked -- -D warnings")?;
            cargo("doc --workspace --lib --no-deps --locked")
        }
        "architecture" => architecture::check(&root()),
        "nostd" => cargo("check -p bitgear-core --no-default-features --locked"),
        "unit" => {
            // Snapshots are compared, never written.
            if nextest_is_installed() {
                cargo("nextest run --workspace --locked")?;
            } else {
                cargo("test --workspace --all-targets --locked")?;
            }
            cargo("test --workspace --doc --locked")?;
            name_skipped_tests()
        }
        "python" => python::check(&root()),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("unknown task `{other}`\n\n{HELP}"),
    }
}

/// Tests of real models skip themselves where the models are absent, and those of pages where there is
/// no browser; a runner that hides the output of passing tests must not hide that.
fn name_skipped_tests() -> Result<()> {
    let shared = root().join("../shared");
    let models = shared.join("models").is_dir() && shared.join("datasets").is_dir();
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let path = env::var_os("PATH").unwrap_or_default();
    let browser = env::split_paths(&path)
        .any(|folder| browsers.iter().any(|name| folder.join(name).is_file()));
    let needs = [
        ("shared(\"", models, "folder `shared` of models and data is absent"),
        ("= browser(\"", browser, "chromium is not installed"),
    ];
    for file in architecture::sources(&root().join("crates"))? {
        let text = fs::read_to_string(&file)?;
        for (call, _, why) in needs.iter().filter(|(_, is_there, _)| !is_there) {
            for name in text.split(call).skip(1).filter_map(|rest| rest.split('"').next()) {
                eprintln!("SKIPPED {name}: {why}");
            }
        }
    }
    Ok(())
}

fn nextest_is_installed() -> bool {
    Command::new("cargo")
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cargo(arguments: &str) -> Result<()> {
    println!("$ cargo {arguments}");
    let status = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(arguments.split_whitespace())
        .current_dir(root())
        .env("INSTA_UPDATE", "no")
        .env("RUSTDOCFLAGS", "-D warnings")
        .status()
        .with_context(|| format!("cannot start `cargo {arguments}`"))?;
    if !status.success() {
        bail!("`cargo {arguments}` failed");
    }
    Ok(())
}
