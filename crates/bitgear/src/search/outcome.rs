//! What choices do on samples whose classes count as in deployment.

use bitgear_core::margin::Answer;

use super::{Candidates, Choice, Gate, Mask, Tally};
use crate::certify::Flips;
use crate::energy::Energy;
use crate::policy::{Tables, gate};
use crate::trace::weights;

/// What a choice does on some samples, whose classes count as in deployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Share of right answers.
    pub accuracy: f64,
    /// Accuracy of the reference minus that.
    pub drop: f64,
    /// Share of all samples that each stage but the last hands on.
    pub escalation_rates: Vec<f64>,
    /// Mean energy of a sample.
    pub energy: Energy,
}

impl Candidates {
    /// What a choice does on `rows`.
    pub fn outcome(&self, choice: &Choice, rows: &[usize]) -> Outcome {
        let (mut n, mut right, mut reference) = (0, 0, 0);
        let mut handed_on = vec![0; choice.gates.len()];
        for (&row, weight) in rows.iter().zip(self.weights(rows)) {
            let (correct, stage) = self.answer(choice, row);
            n += weight;
            right += weight * i64::from(correct);
            reference += weight * i64::from(self.reference[row]);
            for sum in &mut handed_on[..stage] {
                *sum += weight;
            }
        }
        let n = n.max(1) as f64;
        let rates: Vec<f64> = handed_on.iter().map(|&sum| sum as f64 / n).collect();
        let stages = self.stage_energies(choice);
        let later = stages[1..].iter().zip(&rates);
        let energy = later.fold(stages[0], |sum, (stage, &rate)| sum.plus(stage.times(rate)));
        Outcome {
            accuracy: right as f64 / n,
            drop: (reference - right) as f64 / n,
            escalation_rates: rates,
            energy,
        }
    }

    /// How the choice and the reference differ on `rows`, each of which counts as one.
    pub fn flips(&self, choice: &Choice, rows: &[usize]) -> Flips {
        let mut flips = Flips { samples: rows.len() as u64, ..Flips::default() };
        for &row in rows {
            let right = self.answer(choice, row).0;
            flips.harmful += u64::from(self.reference[row] && !right);
            flips.helpful += u64::from(right && !self.reference[row]);
        }
        flips
    }

    /// How they differ on about as many samples of equal weight as tell as much as `rows`; harmful flips are rounded
    /// up, helpful ones down.
    pub fn expected_flips(&self, choice: &Choice, rows: &[usize]) -> Flips {
        let mask = self.mask(rows);
        let mut flips = [0; 2];
        for &row in rows {
            let lost = self.tally(&mask, row, self.answer(choice, row).0);
            flips[usize::from(lost.drop < 0)] += lost.flips;
        }
        let [harmful, helpful] = flips.map(|weight| weight as f64 / mask.unit());
        Flips {
            samples: (mask.total() as f64 / mask.unit()).round() as u64,
            harmful: harmful.ceil() as u64,
            helpful: helpful.floor() as u64,
        }
    }

    /// The most of `rows` whose classes are mixed as in deployment, drawn with the seed: what is true of
    /// these as they are is true there.
    pub fn as_deployed(&self, rows: &[usize], seed: u64) -> Vec<usize> {
        let label = |row: usize| self.labels[row];
        match &self.class_mix {
            Some(mix) => mix.draw(rows, label, seed),
            None => rows.to_vec(),
        }
    }

    /// Energy of a gate that hands on exactly what a later stage of the choice mends, straight to
    /// the cheapest that does: no gate between these stages is better. Without a second stage the
    /// choice's own.
    pub fn oracle_energy(&self, choice: &Choice, rows: &[usize]) -> Energy {
        let stages = self.stage_energies(choice);
        let (mut sum, mut n) = (Energy::default(), 0.0);
        for (&row, weight) in rows.iter().zip(self.weights(rows)) {
            let mends = |&index: &usize| self.all[index].correct[row];
            let first = choice.stages.iter().position(mends).unwrap_or(0);
            let escalated = if first > 0 { stages[first] } else { Energy::default() };
            let weight = weight as f64;
            sum = sum.plus(stages[0].times(weight)).plus(escalated.times(weight));
            n += weight;
        }
        sum.times(1.0 / n.max(1.0))
    }

    /// Accuracy of the reference on `rows`.
    pub fn reference_accuracy(&self, rows: &[usize]) -> f64 {
        self.share(rows, |row| self.reference[row])
    }

    /// What share of `rows` something holds for, by weight.
    pub fn share(&self, rows: &[usize], holds: impl Fn(usize) -> bool) -> f64 {
        let mask = self.mask(rows);
        mask.share(rows.iter().filter(|&&row| holds(row)).map(|&row| mask.weights[row]).sum())
    }

    /// Whether the choice answers a row rightly, and which stage answers.
    pub(super) fn answer(&self, choice: &Choice, row: usize) -> (bool, usize) {
        let mut before = None;
        let unsure = |(&stage, gate): (&usize, &Gate)| {
            let before = before.replace(stage);
            self.confidence(before, stage, gate.tables.as_ref(), row) < gate.accept_at
        };
        let stage = choice.stages.iter().zip(&choice.gates).map(unsure).take_while(|&u| u).count();
        (self.all[choice.stages[stage]].correct[row], stage)
    }

    /// What the first stage of a choice compares with its threshold at a row, and which stage answers.
    pub fn first_confidence(&self, choice: &Choice, row: usize) -> (i32, usize) {
        let tables = choice.gates.first().and_then(|gate| gate.tables.as_ref());
        (self.confidence(None, choice.stages[0], tables, row), self.answer(choice, row).1)
    }

    /// What a gate after a candidate, which ran after the candidate `before`, compares with its threshold.
    pub(super) fn confidence(
        &self,
        before: Option<usize>,
        index: usize,
        tables: Option<&Tables>,
        row: usize,
    ) -> i32 {
        let candidate = &self.all[index];
        let margin = candidate.margins.values[row];
        let [class, runner_up] = candidate.leading[row].map(|class| class as usize);
        let before = before.map(|index| self.all[index].leading[row][0] as usize);
        gate(0, tables).confidence(Answer { class, runner_up, margin }, before)
    }

    /// How much each of `rows` counts, so that their classes count as in deployment.
    fn weights(&self, rows: &[usize]) -> Vec<i64> {
        weights(self.class_mix.as_ref(), rows.iter().map(|&row| self.labels[row]))
    }

    pub(super) fn mask(&self, rows: &[usize]) -> Mask {
        Mask::new(self.labels.len(), rows, &self.weights(rows))
    }

    /// What candidate `index` alone loses over the mask.
    pub(super) fn total(&self, mask: &Mask, index: usize) -> Tally {
        let correct = &self.all[index].correct;
        mask.rows().fold(Tally::default(), |sum, row| sum.plus(self.tally(mask, row, correct[row])))
    }

    /// The class that loses most on `rows`, and its mean drop; `None` without rows.
    pub fn worst_class(&self, choice: &Choice, rows: &[usize]) -> Option<(usize, f64)> {
        let mut classes = vec![(0_i64, 0_usize); self.classes];
        for &row in rows {
            let (drop, count) = &mut classes[self.labels[row] as usize];
            let right = self.answer(choice, row).0;
            *drop += i64::from(self.reference[row]) - i64::from(right);
            *count += 1;
        }
        let drops = classes.iter().enumerate().filter(|(_, (_, count))| *count > 0);
        let drops = drops.map(|(class, &(drop, count))| (class, drop as f64 / count as f64));
        // The first of equals.
        drops.fold(None, |worst: Option<(usize, f64)>, (class, drop)| match worst {
            Some((_, most)) if drop <= most => worst,
            _ => Some((class, drop)),
        })
    }

    /// What an answer to a row loses against the reference's.
    pub(super) fn tally(&self, mask: &Mask, row: usize, right: bool) -> Tally {
        Tally::new(mask.weights[row], self.reference[row], right)
    }
}
