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
        Style::BottomUp => "energy of a MAC is that of the MAC alone",
    };
    println!("{}\n{}\n{style}\n", profile.accelerator.name, profile.accelerator.url);
    let number = |value: Option<Quantity>| match value {
        Some(Quantity::Known(value)) => value.to_string(),
        Some(Quantity::Unknown(_)) => "unknown".to_owned(),
        None => "-".to_owned(),
    };
    let modes: Vec<Vec<String>> = profile
        .modes
        .iter()
        .map(|m| {
            vec![
                m.id.clone(),
                m.w_bits.to_string(),
                m.a_bits.to_string(),
                number(Some(m.e_mac_pj)),
                number(m.macs_per_cycle),
            ]
        })
        .collect();
    if !modes.is_empty() {
        println!("{}", table(&["mode", "w bits", "a bits", "pJ/MAC", "MAC/cycle"], &modes));
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
            ]
        })
        .collect();
    print!("{}", table(&["memory", "bytes", "read pJ/bit", "write pJ/bit"], &memories));
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
