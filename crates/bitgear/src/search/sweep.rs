//! The exact search: all thresholds of all pairs.

use super::{Candidates, Choice, Mask, Pool};

impl Candidates {
    /// For each bound on the drop the choice of least chip energy whose mean drop over the mask
    /// keeps it; where none does, the pool's widest point. Equal energies go to fewer stages, then to
    /// the earlier candidate.
    pub(super) fn best(&self, mask: &Mask, bounds: &[f64], pool: Pool) -> Vec<Choice> {
        let n = mask.count as f64;
        let members: Vec<usize> =
            (0..self.all.len()).filter(|&i| pool.holds(self.all[i].info.kind)).collect();
        // Σ (reference right - answer right) of each candidate alone.
        let drops: Vec<i64> = self
            .all
            .iter()
            .map(|candidate| {
                let rows = (0..mask.inside.len()).filter(|&row| mask.inside[row]);
                rows.map(|row| i64::from(self.reference[row]) - i64::from(candidate.correct[row]))
                    .sum()
            })
            .collect();
        let widest = self.widest(&members);
        let mut best =
            vec![(f64::INFINITY, Choice { low: widest, escalation: None }); bounds.len()];
        let mut offer = |index: usize, energy: f64, choice: Choice| {
            if energy < best[index].0 {
                best[index] = (energy, choice);
            }
        };
        // The largest sum of drops that keeps each bound.
        let limits: Vec<i64> =
            bounds.iter().map(|bound| (bound * n + 1e-9).floor() as i64).collect();
        for &low in &members {
            for (index, &limit) in limits.iter().enumerate() {
                if drops[low] <= limit {
                    let energy = self.all[low].energy.chip_uj;
                    offer(index, energy, Choice { low, escalation: None });
                }
            }
        }
        if matches!(pool, Pool::Policies | Pool::Nested) {
            let loosest = limits.iter().copied().max().unwrap_or(0);
            for &low in &members {
                for &high in members.iter().filter(|&&high| high != low) {
                    let [first, second] = self.pairs[low][high].map(|e| e.chip_uj);
                    for (index, found) in self
                        .thresholds(mask, [low, high], drops[high], &limits, loosest)
                        .iter()
                        .enumerate()
                    {
                        if let Some((accepted, accept_at)) = *found {
                            let rate = (mask.count - accepted) as f64 / n;
                            let choice = Choice { low, escalation: Some((accept_at, high)) };
                            offer(index, first + rate * second, choice);
                        }
                    }
                }
            }
        }
        best.into_iter().map(|(_, choice)| choice).collect()
    }

    /// For each limit on the sum of drops the threshold that accepts most: (accepted, threshold).
    /// `drop` is the sum when everything is escalated.
    fn thresholds(
        &self,
        mask: &Mask,
        [low, high]: [usize; 2],
        mut drop: i64,
        limits: &[i64],
        loosest: i64,
    ) -> Vec<Option<(usize, i32)>> {
        let (low, high) = (&self.all[low], &self.all[high]);
        let mut found = vec![None; limits.len()];
        let mut accepted = 0;
        let mut previous: Option<i32> = None;
        for &row in &low.order {
            let row = row as usize;
            if !mask.inside[row] {
                continue;
            }
            let margin = low.margins[row];
            if let Some(previous) = previous
                && margin < previous
                && drop <= loosest
            {
                // In the middle, rounded up: above this margin, at most the previous one.
                let gap = i64::from(previous) - i64::from(margin);
                let accept_at = (i64::from(margin) + (gap + 1) / 2) as i32;
                for (found, &limit) in found.iter_mut().zip(limits) {
                    if drop <= limit {
                        *found = Some((accepted, accept_at));
                    }
                }
            }
            previous = Some(margin);
            accepted += 1;
            drop += i64::from(high.correct[row]) - i64::from(low.correct[row]);
        }
        // Accepting everything is the low point alone, which is a candidate of its own.
        found
    }

    /// The member with the most bits, the first of equals.
    fn widest(&self, members: &[usize]) -> usize {
        let bits = |index: usize| -> u64 {
            let widths = &self.all[index].info.widths;
            widths.iter().map(|w| u64::from(w.weights) + u64::from(w.activations)).sum()
        };
        *members
            .iter()
            .rev()
            .max_by_key(|&&index| bits(index))
            .expect("every pool has a candidate, w16a16 at least")
    }
}
