//! The reference pages of the book that are made from the program itself.
//!
//! `UPDATE_EXPECT=1 cargo test -p bitgear-cli reference` writes them anew.

use std::fmt::Write;

use bitgear::energy::{AcceleratorProfile, SHIPPED};
use clap::CommandFactory;
use expect_test::expect_file;

use bitgear::onnx::OPERATORS;
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
fn operators_are_those_that_import_knows() {
    let mut text = "# Operators\n\n\
        Opset 11 and later, one input, one output with a row of scores. An operator or attribute that is not \
        known is an error that names the node; all of a model's are reported at once. `bitgear inspect` shows \
        what a model became.\n\n\
        | operators | how they run |\n| --- | --- |\n"
        .to_owned();
    for (names, how) in OPERATORS {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        writeln!(text, "| {} | {how} |", names.join(", ")).unwrap();
    }
    text += "\nA `Softmax` or `LogSoftmax` at the very end is left out: it changes no answer, and margins are those \
        of the scores before it.\n";
    expect_file!["../../../docs/reference/operators.md"].assert_eq(&text);
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
    let profile = text(AcceleratorProfile::schema());
    expect_file!["../../../docs/reference/schema/accelerator.json"].assert_eq(&profile);
    expect_file!["../../../docs/reference/schema/summary.json"].assert_eq(&summary);
    expect_file!["../../../docs/reference/schema/policy.json"].assert_eq(&policy);
    expect_file!["../../../docs/reference/schema/splits.json"].assert_eq(&splits);
    expect_file!["../../../docs/reference/schema/task.json"].assert_eq(&task);
}
