//! A confined process: its threads, each under a filter of its own, behind a gate that opens once all are narrow.

use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::filter::Filter;
use crate::limits::Limits;

pub use std::thread::JoinHandle;

/// How long a new thread may take to install its filter.
const START: Duration = Duration::from_secs(10);

/// Proof that the process is confined. Threads come only from here.
///
/// Dropped without [`enter`](Confined::enter), it ends the threads that wait at the gate: their `join` gives an error.
#[must_use = "the spawned threads wait until `enter`"]
pub struct Confined {
    limits: Limits,
    seccomp: bool,
    /// `true` opens it, `false` ends those who wait.
    gate: Arc<OnceLock<bool>>,
}

/// What a new thread says of its filter. (A channel would need more syscalls in the filtered thread.)
#[derive(Default)]
struct Report {
    outcome: Mutex<Option<Result<(), Error>>>,
    changed: Condvar,
}

impl Report {
    fn set(&self, outcome: Result<(), Error>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.changed.notify_all();
    }

    /// `None` if the thread said nothing in time.
    fn wait(&self) -> Option<Result<(), Error>> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(outcome, START, |outcome| outcome.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

/// Proof that the process is confined, the main thread filtered and the gate open: what entry points ask for.
#[derive(Clone, Copy, Debug)]
pub struct Narrow(());

impl Confined {
    pub(crate) fn new(limits: Limits, seccomp: bool) -> Confined {
        Confined { limits, seccomp, gate: Arc::default() }
    }

    /// Starts a thread that installs `filter`, then waits until [`enter`](Confined::enter) was called, then runs `f`.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be started, or the filter not be built or installed (`f` is then never run).
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        filter: &Filter,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, Error> {
        let role = filter.role();
        let program = filter.compile()?;
        let installed = Arc::new(Report::default());
        let (report, gate, seccomp) = (installed.clone(), self.gate.clone(), self.seccomp);
        let body = move || {
            let outcome = if seccomp { Filter::install(role, &program) } else { Ok(()) };
            let narrow = outcome.is_ok();
            report.set(outcome);
            if !(narrow && *gate.wait()) {
                // Ends the thread without running `f` and without the panic hook's message.
                std::panic::resume_unwind(Box::new("the process never entered its narrow phase"));
            }
            f()
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|source: io::Error| Error::Thread { name: name.to_owned(), source })?;
        match installed.wait() {
            Some(outcome) => outcome.map(|()| thread),
            None => Err(Error::ThreadMute(name.to_owned(), START.as_secs())),
        }
    }

    /// Installs the main thread's filter and opens the gate for the spawned threads.
    ///
    /// # Errors
    ///
    /// Where the filter cannot be built or installed; the spawned threads then end without having run.
    pub fn enter(self, filter: &Filter) -> Result<Narrow, Error> {
        let program = filter.compile()?;
        self.limits.apply_last()?;
        if self.seccomp {
            Filter::install(filter.role(), &program)?;
        }
        let _first = self.gate.set(true);
        Ok(Narrow(()))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _already_open = self.gate.set(false);
    }
}
