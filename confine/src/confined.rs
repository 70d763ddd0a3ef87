//! A confined process: its threads, each under a filter of its own, behind a gate that opens once all are narrow.

use std::any::Any;
use std::hash::RandomState;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::filter::Filter;
use crate::limits::Limits;

/// How long a new thread may take to install its filter.
const START: Duration = Duration::from_secs(10);

/// Proof that the process is confined. Threads come only from here.
///
/// Dropped without [`enter`](Confined::enter), the threads that wait at the gate never begin: their `join` gives an error.
#[must_use = "the spawned threads wait until `enter`"]
pub struct Confined {
    limits: Limits,
    seccomp: bool,
    /// `true` opens it, `false` turns away those who wait.
    gate: Arc<OnceLock<bool>>,
}

/// What one thread waits for from another. (A channel would need more syscalls in the filtered thread.)
struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Condvar,
}

impl<T> Slot<T> {
    fn new() -> Arc<Slot<T>> {
        Arc::new(Slot { value: Mutex::new(None), filled: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, value: T) {
        *self.lock() = Some(value);
        self.filled.notify_all();
    }

    /// With what came in time, if anything did.
    fn filled_within(&self, limit: Duration) -> MutexGuard<'_, Option<T>> {
        let waited = self.filled.wait_timeout_while(self.lock(), limit, |value| value.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// `None` if nothing came in time.
    fn wait_for(&self, limit: Duration) -> Option<T> {
        self.filled_within(limit).take()
    }

    fn wait(&self) -> Option<T> {
        let waited = self.filled.wait_while(self.lock(), |value| value.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A thread of a confined process. When its work is done it waits for the process's end: to end by itself it would
/// need more of the kernel than to do that work.
pub struct JoinHandle<T> {
    thread: std::thread::JoinHandle<()>,
    outcome: Arc<Slot<std::thread::Result<T>>>,
}

impl<T> JoinHandle<T> {
    /// Waits until its work is done: what that gave, or what it panicked with.
    ///
    /// # Errors
    ///
    /// The panic's payload; or that the process never entered its narrow phase, so that the work was not begun.
    pub fn join(self) -> std::thread::Result<T> {
        self.outcome.wait().unwrap_or_else(never_begun)
    }

    /// Whether its work is done.
    pub fn is_finished(&self) -> bool {
        self.outcome.lock().is_some()
    }

    /// Whether its work is done within `limit`, which it waits for.
    pub fn finishes_within(&self, limit: Duration) -> bool {
        self.outcome.filled_within(limit).is_some()
    }

    /// For `pthread_kill`. The thread lives as long as the process, so this stays good.
    pub fn as_pthread_t(&self) -> libc::pthread_t {
        std::os::unix::thread::JoinHandleExt::as_pthread_t(&self.thread)
    }
}

fn never_begun<T>() -> Result<T, Box<dyn Any + Send>> {
    Err(Box::new("the process never entered its narrow phase"))
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
        self.spawn_prepared(name, filter, || (), |()| f())
    }

    /// As [`spawn`](Confined::spawn), with what `prepare` made on that thread before it installs its filter: for what
    /// has to be made by the thread that uses it, such as a runtime. It may not read what a stranger wrote.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Confined::spawn).
    pub fn spawn_prepared<P: 'static, T: Send + 'static>(
        &self,
        name: &str,
        filter: &Filter,
        prepare: impl FnOnce() -> P + Send + 'static,
        f: impl FnOnce(P) -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, Error> {
        let role = filter.role();
        // A thread that waits at the gate needs it, whatever else it does.
        let program = filter.clone().allow(&[libc::SYS_futex]).compile()?;
        let (installed, outcome) = (Slot::new(), Slot::new());
        let (report, ended, gate, seccomp) = (installed.clone(), outcome.clone(), self.gate.clone(), self.seccomp);
        let body = move || {
            let prepared = prepare();
            draw_hash_seeds();
            let installed = if seccomp { Filter::install(role, &program) } else { Ok(()) };
            let narrow = installed.is_ok();
            report.fill(installed);
            let narrow = narrow && *gate.wait();
            ended.fill(if narrow { catch_unwind(AssertUnwindSafe(|| f(prepared))) } else { never_begun() });
            loop {
                std::thread::park();
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|source: io::Error| Error::Thread { name: name.to_owned(), source })?;
        match installed.wait_for(START) {
            Some(installed) => installed.map(|()| JoinHandle { thread, outcome }),
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
        draw_hash_seeds();
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

/// The standard library's hash maps draw their seeds from the kernel once a thread: now, so that no filter needs to
/// have `getrandom` for it.
fn draw_hash_seeds() {
    let _seeds = RandomState::new();
}

/// Ends the process as [`std::process::exit`] does, less the clean-up of the main thread's stack, which takes more of
/// the kernel.
pub fn exit(code: i32) -> ! {
    use std::io::Write;
    // Nobody is left to tell that the output's reader has gone.
    let _ = io::stdout().flush();
    // SAFETY: takes no pointers, and does not return.
    unsafe { libc::_exit(code) }
}
