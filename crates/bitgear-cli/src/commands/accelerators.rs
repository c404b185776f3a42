//! `bitgear accelerators`: what profiles there are and what is in them.

use std::path::Path;

use bitgear::energy::{AcceleratorProfile, Evidence, Quantity, SHIPPED, Style};

use crate::Failure;
use crate::arguments::{Accelerators, AcceleratorsAction};
use crate::terminal::table;

pub(crate) fn run(options: &Accelerators) -> Result<(), Failure> {
    match options.action.as_ref().unwrap_or(&AcceleratorsAction::List) {
        AcceleratorsAction::List => list(),
        AcceleratorsAction::Show { profile } => show(profile),
        AcceleratorsAction::Check { profile } => check(profile),
    }
}

fn list() -> Result<(), Failure> {
    let mut rows = Vec::new();
    for (id, _) in SHIPPED {
        let profile = AcceleratorProfile::find(id)?;
        let evidence = match profile.accelerator.evidence {
            Evidence::Silicon => "silicon",
            Evidence::PostLayout => "post-layout",
            Evidence::Synthesis => "synthesis",
            Evidence::Model => "model",
        };
        rows.push(vec![id.to_owned(), profile.accelerator.name, evidence.to_owned()]);
    }
    print!("{}", table(&["id", "name", "evidence"], &rows));
    Ok(())
}

fn show(id: &str) -> Result<(), Failure> {
    let profile = AcceleratorProfile::find(id)?;
    let style = match profile.accelerator.style {
        Style::ChipTotal => "energy of a MAC holds the whole chip",
        Style::BottomUp => {
            "energy of a MAC is that of the MAC alone; memories and leakage are added"
        }
        Style::Time => "time instead of energy: 1 uJ stands for 1 us",
    };
    println!("{}\n{}\n{style}\n", profile.accelerator.name, profile.accelerator.url);
    let number = |value: Option<Quantity>| match value {
        Some(Quantity::Known(value)) => value.to_string(),
        Some(Quantity::Unknown(_)) => "unknown".to_owned(),
        None => "-".to_owned(),
    };
    let grade = |key: String| profile.grades.get(&key).map_or("-".to_owned(), |g| format!("{g:?}"));
    let modes: Vec<Vec<String>> = profile
        .modes
        .iter()
        .map(|m| {
            vec![
                m.id.clone(),
                m.w_bits.to_string(),
                m.a_bits.to_string(),
                number(Some(m.e_mac_pj)),
                grade(format!("mode.{}.e_mac_pj", m.id)),
                number(m.macs_per_cycle),
            ]
        })
        .collect();
    if !modes.is_empty() {
        println!(
            "{}",
            table(&["mode", "w bits", "a bits", "pJ/MAC", "grade", "MAC/cycle"], &modes)
        );
    }
    if let Some(macs) = &profile.mac_table {
        let header = macs.w_bits.iter().map(|w| format!("w{w}"));
        let header: Vec<String> = std::iter::once("pJ/MAC".to_owned()).chain(header).collect();
        let rows: Vec<Vec<String>> = macs
            .a_bits
            .iter()
            .zip(&macs.e_mac_pj)
            .enumerate()
            .map(|(row, (a, energies))| {
                let entries = energies.iter().enumerate().map(|(column, pj)| {
                    let own = macs.grade_per_point.as_ref().map(|grades| grades[row][column]);
                    let grade =
                        own.map_or(grade("mac_table.e_mac_pj".to_owned()), |g| format!("{g:?}"));
                    format!("{pj} {grade}")
                });
                std::iter::once(format!("a{a}")).chain(entries).collect()
            })
            .collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        println!("{}", table(&header, &rows));
    }
    let memories: Vec<Vec<String>> = profile
        .memories
        .iter()
        .map(|m| {
            vec![
                m.name.clone(),
                number(m.size_bytes),
                number(m.read_pj_per_bit),
                number(m.write_pj_per_bit),
                grade(format!("memory.{}.read_pj_per_bit", m.name)),
            ]
        })
        .collect();
    if !memories.is_empty() {
        let header = ["memory", "bytes", "read pJ/bit", "write pJ/bit", "grade"];
        print!("{}", table(&header, &memories));
    }
    if !profile.not_counted.is_empty() {
        let names: Vec<&str> = profile.not_counted.iter().map(|n| n.0.as_str()).collect();
        println!("\nunknown, and so not counted: {}", names.join(", "));
    }
    Ok(())
}

fn check(path: &Path) -> Result<(), Failure> {
    let profile = AcceleratorProfile::find(&path.display().to_string())?;
    println!("`{}` is a valid profile: {}", path.display(), profile.accelerator.name);
    Ok(())
}
