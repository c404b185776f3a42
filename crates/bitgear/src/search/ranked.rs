//! Rows in the order of a gate, and the thresholds that part them.

use rayon::prelude::*;

use super::sweep::between;
use super::{Candidates, Column, Mask};

/// The mask's rows in the order of a gate.
pub(super) struct Ranked {
    /// Rows of the mask by falling value.
    pub(super) order: Vec<u32>,
    /// Place of each row's value among the distinct ones, from the highest.
    pub(super) group: Vec<u32>,
    /// The distinct values, falling.
    values: Vec<i32>,
}

impl Ranked {
    pub(super) fn new(mask: &Mask, column: &Column) -> Self {
        let order: Vec<u32> =
            column.order.iter().copied().filter(|&row| mask.holds(row as usize)).collect();
        let mut values: Vec<i32> = Vec::new();
        let mut group = vec![0; column.values.len()];
        for &row in &order {
            let value = column.values[row as usize];
            if values.last() != Some(&value) {
                values.push(value);
            }
            group[row as usize] = values.len() as u32 - 1;
        }
        Self { order, group, values }
    }

    /// The threshold that accepts so many of `rows`, which fall in value and differ there.
    pub(super) fn accepting(&self, count: usize, rows: &[u32]) -> i32 {
        match count {
            0 => i32::MAX,
            _ => between(self.value(rows[count]), self.value(rows[count - 1])),
        }
    }

    /// The threshold that accepts the distinct values from the highest to this; without one none.
    pub(super) fn down_to(&self, last: Option<usize>) -> i32 {
        last.map_or(i32::MAX, |last| between(self.values[last + 1], self.values[last]))
    }

    pub(super) fn value(&self, row: u32) -> i32 {
        self.values[self.group[row as usize] as usize]
    }
}

/// The mask's rows in the order of each member's margins; `None` for other candidates.
pub(super) struct Ranks(Vec<Option<Ranked>>);

impl Ranks {
    pub(super) fn new(candidates: &Candidates, mask: &Mask, members: &[usize]) -> Self {
        let ranked = |index: usize| {
            let is_member = members.contains(&index);
            is_member.then(|| Ranked::new(mask, &candidates.all[index].margins))
        };
        Self((0..candidates.all.len()).into_par_iter().map(ranked).collect())
    }

    pub(super) fn of(&self, index: usize) -> &Ranked {
        self.0[index].as_ref().expect("members are ranked")
    }
}
