//! Tables on standard output, progress on standard error.

use std::sync::Mutex;
use std::time::Instant;

use bitgear::characterize::Progress;
pub(crate) use bitgear::report::text::{
    count, doubt, energy, float_islands, percent, points, weighting,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;

/// Runs `work` on so many threads, or on all processors.
pub(crate) fn on_threads<T: Send>(
    threads: Option<usize>,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure>
where
    Failure: Send,
{
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build()?;
    pool.install(work)
}

/// One bar for the step that runs; hidden where standard error is no terminal.
pub(crate) struct Bars {
    current: Mutex<ProgressBar>,
    steps: Mutex<Vec<Begun>>,
}

/// A step that has begun, and how many samples it has.
struct Begun {
    step: String,
    samples: usize,
    at: Instant,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self { current: Mutex::new(ProgressBar::hidden()), steps: Mutex::default() }
    }

    /// How long each step took until now, in the order in which they began.
    pub(crate) fn times(&self) -> String {
        let now = Instant::now();
        let steps = self.steps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ends = steps.iter().skip(1).map(|next| next.at).chain([now]);
        let row = |(begun, end): (&Begun, Instant)| {
            let seconds = end.duration_since(begun.at).as_secs_f64();
            vec![begun.step.clone(), begun.samples.to_string(), format!("{seconds:.3}")]
        };
        let rows: Vec<Vec<String>> = steps.iter().zip(ends).map(row).collect();
        table(&["step", "samples", "seconds"], &rows)
    }

    fn with(&self, run: impl FnOnce(&mut ProgressBar)) {
        run(&mut self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn begin(&self, step: &str, total: usize) {
        self.steps.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Begun {
            step: step.to_owned(),
            samples: total,
            at: Instant::now(),
        });
        let template = "{msg:12} {bar:30} {human_pos}/{human_len} samples, {per_sec}, {eta} left";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = if total == 0 {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::new(total as u64).with_style(style)
        };
        bar.set_message(step.to_owned());
        self.with(|current| {
            current.finish_and_clear();
            *current = bar;
        });
    }

    fn advance(&self, samples: usize) {
        self.with(|current| current.inc(samples as u64));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.with(|current| current.finish_and_clear());
    }
}

/// Rows of cells under a header, each column as wide as its widest cell; numbers to the right, text
/// to the left.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let columns = 0..header.len();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let numeric = |column: usize| {
        let number =
            |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c));
        column > 0 && rows.iter().all(|row| number(&row[column]))
    };
    let layout: Vec<(usize, bool)> = columns.map(|c| (width(c), numeric(c))).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&layout).map(|(cell, &(width, numeric))| {
            if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let rows = rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    [line(header)].into_iter().chain(rows).collect()
}
