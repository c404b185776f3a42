//! Long work beside the interpreter: without its lock, on threads of its own, ended by Ctrl-C.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bitgear::characterize::{CharacterizeError, Progress};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{fail, plain};

/// How often signals are looked for.
const PULSE: Duration = Duration::from_millis(50);

/// What the work tells the interpreter's thread.
enum Event {
    /// A step; the work goes on when the sender is used, and is cancelled when it is gone.
    Begin(String, usize, Sender<()>),
    Advance(usize),
    Call(Box<dyn FnOnce(Python<'_>) -> PyResult<()> + Send>),
    End,
}

/// The work's view of the interpreter.
pub(crate) struct Watch {
    events: Mutex<Sender<Event>>,
    cancelled: AtomicBool,
}

impl Watch {
    fn send(&self, event: Event) {
        // A receiver that is gone has given up, and the work is told so.
        let _ = self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event);
    }

    /// Has `call` done on the interpreter's thread; where it raises, the work is cancelled.
    pub(crate) fn call(
        &self,
        call: impl FnOnce(Python<'_>) -> PyResult<()> + Send + 'static,
    ) -> Result<(), CharacterizeError> {
        let (done, answer) = channel();
        self.send(Event::Call(Box::new(move |py| {
            call(py)?;
            // The work waits for it.
            let _ = done.send(());
            Ok(())
        })));
        answer.recv().map_err(|_| CharacterizeError::Cancelled)
    }
}

impl Progress for Watch {
    /// Waits until the interpreter's thread has looked for signals, so that Ctrl-C ends the work before
    /// its next step however busy the machine is.
    fn begin(&self, step: &str, total: usize) {
        let (go, answer) = channel();
        self.send(Event::Begin(step.to_owned(), total, go));
        if answer.recv().is_err() {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }

    fn advance(&self, samples: usize) {
        self.send(Event::Advance(samples));
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// A pool of so many threads, or one for each processor.
pub(crate) fn pool(threads: Option<usize>) -> PyResult<ThreadPool> {
    if threads == Some(0) {
        return Err(plain("threads must be at least 1, got 0"));
    }
    ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build().map_err(plain)
}

/// Does the work on so many threads; `report` is called with step, samples done and samples in all.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    report: Option<Bound<'_, PyAny>>,
    work: impl FnOnce(&Watch) -> Result<T, CharacterizeError> + Send,
) -> PyResult<T> {
    let pool = pool(threads)?;
    let (events, inbox) = channel();
    let watch = Watch { events: Mutex::new(events), cancelled: AtomicBool::new(false) };
    let result = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = pool.install(|| work(&watch));
            watch.send(Event::End);
            result
        });
        let served = serve(py, inbox, || worker.is_finished(), report);
        watch.cancelled.store(true, Ordering::Relaxed);
        let result = py.detach(|| worker.join());
        served.map(|()| result)
    });
    match result? {
        Ok(result) => result.map_err(|error| fail(&error, error.hint())),
        Err(panic) => Err(plain(format!("bitgear has a fault: {}", message(&*panic)))),
    }
}

/// Answers the work's events until it is finished, or a signal or `report` raises.
fn serve(
    py: Python<'_>,
    mut inbox: Receiver<Event>,
    finished: impl Fn() -> bool,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut step = (String::new(), 0, 0);
    let tell = |(step, done, total): &(String, usize, usize)| match &report {
        Some(report) if !step.is_empty() => report.call1((step, done, total)).map(|_| ()),
        _ => Ok(()),
    };
    let mut waiting: Vec<Sender<()>> = Vec::new();
    loop {
        let event;
        (inbox, event) = py.detach(move || {
            let event = inbox.recv_timeout(PULSE);
            (inbox, event)
        });
        // Work that panicked sends no end.
        let mut end = event.is_err() && finished();
        for event in event.into_iter().chain(inbox.try_iter()) {
            match event {
                Event::Begin(name, total, go) => {
                    tell(&step)?;
                    step = (name, 0, total);
                    waiting.push(go);
                }
                Event::Advance(samples) => step.1 += samples,
                Event::Call(call) => call(py)?,
                Event::End => end = true,
            }
        }
        tell(&step)?;
        py.check_signals()?;
        for go in waiting.drain(..) {
            // Nobody begins a step and does not wait.
            let _ = go.send(());
        }
        if end {
            return Ok(());
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown")
}
