//! Figures as people read them.

use std::collections::BTreeMap;

use crate::summary::{SampleCounts, Summary};

/// A fraction as a percentage.
pub fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// A difference of accuracies in points, with its sign.
pub fn points(fraction: f64) -> String {
    // No minus before a zero.
    format!("{:+.2}", 100.0 * fraction + 0.0)
}

/// A loss in points; a gain has a minus.
pub(super) fn loss(drop: f64) -> String {
    points(drop).trim_start_matches('+').replace('-', "−")
}

/// A share that may be negative, as a percentage.
pub(super) fn signed(fraction: f64) -> String {
    percent(fraction).replace('-', "−")
}

/// Microjoule with three significant digits or more.
pub fn energy(uj: f64) -> String {
    if uj.abs() >= 100.0 { format!("{uj:.0}") } else { format!("{uj:.3}") }
}

/// A count with separators.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Without the digits that binary fractions add.
pub fn round(value: f64) -> f64 {
    (1e6 * value).round() / 1e6
}

/// Float islands counted by kind, such as `12 layer norm, 6 softmax`; nothing where there are none.
pub fn float_islands<'a>(kinds: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut counts = BTreeMap::new();
    for kind in kinds {
        *counts.entry(kind).or_insert(0) += 1;
    }
    let texts: Vec<String> = counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// How many samples served what: without a guarantee to prove, the certification samples choose, too.
pub fn samples(summary: &Summary) -> String {
    let SampleCounts { calibration, search, certification, test, .. } = summary.samples;
    let choosing = match summary.constraint.guarantee {
        Some(_) => format!(
            "{} for search, {} for certification",
            count(search as u64),
            count(certification as u64)
        ),
        None => format!("{} to choose", count((search + certification) as u64)),
    };
    format!(
        "{} samples for calibration, {choosing}, {} for the test",
        count(calibration as u64),
        count(test as u64)
    )
}

/// What weighting for the class mix of deployment leaves of the samples; nothing without one.
pub fn weighting(summary: &Summary) -> Option<String> {
    let mix = summary.class_mix.as_ref()?;
    Some(format!(
        "weighted for the class mix of deployment: worth {:.0} of equal weight for search and {:.0} for the test, and {} of those that bound the drop are mixed like that",
        mix.search, mix.test, mix.certification
    ))
}

/// What to look into first where the reference itself, of this accuracy, is mostly wrong.
pub fn doubt(reference: f64) -> Option<String> {
    (reference < 0.5).then(|| {
        format!(
            "the float network itself is right on only {} of the test samples: if it is known to be better, preprocessing (scale, mean, std) or labels are wrong, and so is everything here",
            percent(reference)
        )
    })
}
