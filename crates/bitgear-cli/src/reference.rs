//! The reference pages of the book that are made from the program itself.
//!
//! `UPDATE_EXPECT=1 cargo test -p bitgear-cli reference` writes them anew.

use std::fmt::Write;

use bitgear::energy::{AcceleratorProfile, SHIPPED};
use clap::CommandFactory;
use expect_test::expect_file;

use bitgear::policy::PolicyFile;
use bitgear::summary::Summary;
use bitgear::task::Task;
use bitgear::trace::Splits;
use schemars::{Schema, schema_for};

use crate::arguments::Arguments;
use crate::commands::accelerators::description;

#[test]
fn commands_are_those_of_the_program() {
    let mut text = "# Commands\n\nWhat `bitgear help COMMAND` prints.\n".to_owned();
    let mut command = Arguments::command().term_width(100);
    command.build();
    describe(&command, &mut text);
    expect_file!["../../../docs/reference/commands.md"].assert_eq(&text);
}

fn describe(command: &clap::Command, text: &mut String) {
    let mut shown = command.clone();
    let help = shown.render_long_help();
    let name = command.get_bin_name().unwrap_or("bitgear").to_owned();
    write!(text, "\n## {name}\n\n```text\n{}\n```\n", trimmed(&help.to_string())).unwrap();
    for inner in command.get_subcommands().filter(|c| c.get_name() != "help") {
        describe(inner, text);
    }
}

/// Without spaces at the ends of lines.
fn trimmed(text: &str) -> String {
    text.trim_end().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[test]
fn profiles_are_those_that_ship() {
    let mut text = "# Accelerator profiles\n\n\
        The profiles that ship, in `accelerators/`. What a grade means, and what is counted: \
        [energy](../energy.md).\n"
        .to_owned();
    for (id, source) in SHIPPED {
        let profile = AcceleratorProfile::find(id).unwrap();
        // The file's own words, up to the legend of grades.
        let words = source.lines().map_while(|line| line.strip_prefix('#'));
        let words = words.map(str::trim).take_while(|line| !line.starts_with("Grades:"));
        let words = words.collect::<Vec<_>>().join("\n");
        let numbers = trimmed(&description(&profile));
        write!(text, "\n## {id}\n\n{}\n\n```text\n{numbers}\n```\n", words.trim()).unwrap();
    }
    expect_file!["../../../docs/reference/profiles.md"].assert_eq(&text);
}

#[test]
fn schemas_are_those_of_the_files() {
    let text = |schema: Schema| serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let [summary, policy] = [text(schema_for!(Summary)), text(schema_for!(PolicyFile))];
    let [splits, task] = [text(schema_for!(Splits)), text(schema_for!(Task))];
    expect_file!["../../../docs/reference/schema/summary.json"].assert_eq(&summary);
    expect_file!["../../../docs/reference/schema/policy.json"].assert_eq(&policy);
    expect_file!["../../../docs/reference/schema/splits.json"].assert_eq(&splits);
    expect_file!["../../../docs/reference/schema/task.json"].assert_eq(&task);
}
