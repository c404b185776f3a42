//! The documentation's links and commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::root;

/// The book's pages, in order.
fn pages() -> Vec<PathBuf> {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).expect("the book has a summary");
    links(&summary).map(|link| docs.join(link)).collect()
}

/// What a page's links point to.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_page_is_in_the_book_and_every_link_leads_somewhere() {
    let docs = root().join("docs");
    let book = docs.canonicalize().unwrap();
    let listed: BTreeSet<PathBuf> = pages().into_iter().collect();
    for folder in [docs.clone(), docs.join("guides"), docs.join("concepts"), docs.join("reference")]
    {
        for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let is_page = file.extension().is_some_and(|e| e == "md");
            let name = file.file_name().unwrap();
            assert!(
                !is_page || name == "SUMMARY.md" || listed.contains(&file),
                "{}",
                file.display()
            );
        }
    }
    let readme = root().join("README.md");
    for page in listed.iter().chain([&readme]) {
        let text = fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: `{link}` leads nowhere", page.display());
            let inside = *page == readme || target.canonicalize().unwrap().starts_with(&book);
            assert!(inside, "{}: `{link}` leads out of the book", page.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let anchors = text.lines().filter(|line| line.starts_with('#')).map(anchor_of);
                assert!(anchors.collect::<Vec<_>>().contains(&anchor.to_owned()), "{link}");
            }
        }
    }
}

/// The anchor of a heading.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Runs every `$ bitgear` line of the book, page after page, and of the README, in one folder: later pages
/// use what earlier ones made.
#[test]
fn every_command_of_the_book_runs() {
    let folder = tempfile::tempdir().unwrap();
    let example = root().join("examples/fashion-mnist");
    for (from, to) in [
        ("fashion-mnist.onnx", "model.onnx"),
        ("calibration.npz", "train.npz"),
        ("test.npz", "test.npz"),
    ] {
        fs::copy(example.join(from), folder.path().join(to)).unwrap();
    }
    let mut commands = 0;
    for page in pages().into_iter().chain([root().join("README.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        // A profile that a page shows is the file that its commands name.
        if let Some(profile) =
            text.split("```toml\n").find(|block| block.contains("id = \"mychip\""))
        {
            let profile = profile.split("```").next().unwrap();
            fs::write(folder.path().join("mychip.toml"), profile).unwrap();
        }
        for line in text.lines() {
            let Some(line) = line.strip_prefix("$ bitgear ") else { continue };
            run(&page, folder.path(), line);
            commands += 1;
        }
    }
    assert!(commands > 15, "{commands} commands");
}

fn run(page: &Path, folder: &Path, line: &str) {
    let line = line.split(" # ").next().unwrap_or(line);
    let (arguments, output) = match line.split_once(" > ") {
        Some((arguments, file)) => (arguments, Some(folder.join(file))),
        None => (line, None),
    };
    let ran = Command::new(env!("CARGO_BIN_EXE_bitgear"))
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("the command can be started");
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{}: `bitgear {line}`\n{errors}", page.display());
    if let Some(output) = output {
        fs::write(output, ran.stdout).expect("the folder can be written to");
    }
}
