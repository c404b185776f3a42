//! The Python package: built, installed into an environment below `target/`, and tested there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Installs the package as a user would, but in the profile of the tests, so that the library need not be
/// compiled twice; then runs its tests, its notebooks among them, and checks its types.
pub(crate) fn check(root: &Path) -> Result<()> {
    let environment = root.join("target/python");
    let python = environment.join("bin/python");
    if !python.is_file() {
        run(root, Path::new("python3"), &["-m", "venv", "target/python"])?;
    }
    let pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"];
    run(root, &python, &[&pip[..], &["-r", "python/requirements-test.txt"]].concat())?;
    let build = ["--no-build-isolation", "--no-deps", "--force-reinstall"];
    let profile = [
        "--config-settings",
        "build-args=--profile=dev --config=profile.dev.opt-level=3 --locked",
        "./python",
    ];
    run(root, &python, &[&pip[..], &build, &profile].concat())?;
    run(root, &python, &["-m", "pytest", "-c", "python/pyproject.toml", "python/tests"])?;
    let settings = "python/pyproject.toml";
    run(root, &python, &["-m", "mypy", "--config-file", settings, "-p", "bitgear"])?;
    run(root, &python, &["-m", "mypy.stubtest", "--mypy-config-file", settings, "bitgear"])
}

fn run(root: &Path, program: &Path, arguments: &[&str]) -> Result<()> {
    let shown = format!("{} {}", program.display(), arguments.join(" "));
    println!("$ {shown}");
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        // The environment's own programs, such as maturin, come first.
        .env("PATH", path(program))
        .status()
        .with_context(|| format!("cannot start `{shown}`: Python 3.10 or later is needed"))?;
    if !status.success() {
        bail!("`{shown}` failed");
    }
    Ok(())
}

fn path(program: &Path) -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let own = program.parent().filter(|folder| folder.is_absolute());
    let all = own.map(Path::to_owned).into_iter().chain(std::env::split_paths(&old));
    std::env::join_paths(all).unwrap_or(old)
}
