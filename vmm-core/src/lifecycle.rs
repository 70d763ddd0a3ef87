//! What the VM's threads tell each other about its life: created, running, ended, and why. Whoever ends it first gives the
//! reason. What vCPU threads call here neither allocates nor asks the kernel for more than a futex and an eventfd's write.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::events::signal;

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The guest turned itself off.
    Poweroff,
    /// The guest asked for a reset, or tripped over itself thrice.
    Reset,
    /// It was stopped from outside.
    Stopped,
    /// A device's backend is gone or broken.
    DeviceFailed,
    /// KVM cannot go on.
    InternalError,
}

/// A VM's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Why.
    pub reason: Reason,
    /// More for people; empty for an orderly end.
    pub detail: Cow<'static, str>,
    /// A number that belongs to `detail`, such as an errno or a hardware reason.
    pub code: Option<u64>,
}

impl Exit {
    /// An end that needs no further words.
    pub fn orderly(reason: Reason) -> Exit {
        Exit { reason, detail: Cow::Borrowed(""), code: None }
    }

    /// `detail` and `code` in one line.
    pub fn text(&self) -> String {
        match self.code {
            None => self.detail.to_string(),
            Some(code) => format!("{} ({code:#x})", self.detail),
        }
    }
}

/// Where the VM is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started yet.
    Created,
    /// vCPUs run.
    Running,
    /// No vCPU runs any more, or will soon.
    Ended(Exit),
}

/// Shared by all threads.
pub struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
    /// `state` is `Ended`: what a vCPU looks at before each entry.
    over: AtomicBool,
    /// vCPUs that have left the guest for good.
    parked: AtomicUsize,
    /// An eventfd, written once at the end, for the control thread.
    ended: OwnedFd,
}

impl Lifecycle {
    /// `ended`, an eventfd, is written when the VM ends.
    pub fn new(ended: OwnedFd) -> Lifecycle {
        Lifecycle {
            state: Mutex::new(State::Created),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            ended,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the VM is now.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Lets the vCPUs run. False if they were let before, or the VM has ended.
    pub fn begin(&self) -> bool {
        let mut state = self.lock();
        let created = matches!(*state, State::Created);
        if created {
            *state = State::Running;
            self.changed.notify_all();
        }
        created
    }

    /// Waits on a vCPU thread until the VM starts, or ends before it did.
    pub fn wait_begun(&self) {
        let created = |state: &mut State| matches!(state, State::Created);
        drop(self.changed.wait_while(self.lock(), created).unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the VM. Only the first reason counts.
    pub fn end(&self, exit: Exit) {
        let mut state = self.lock();
        if matches!(*state, State::Ended(_)) {
            return;
        }
        *state = State::Ended(exit);
        self.over.store(true, Ordering::Release);
        self.changed.notify_all();
        signal(&self.ended);
    }

    /// A vCPU thread says that it will not enter the guest again, and waits for the end of the process: ending the thread
    /// instead would need more of the kernel.
    pub fn park(&self) -> ! {
        self.parked.fetch_add(1, Ordering::Release);
        loop {
            std::thread::park();
        }
    }

    /// Number of vCPUs that have left the guest for good.
    pub fn parked(&self) -> usize {
        self.parked.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::eventfd;
    use std::sync::Arc;
    use std::time::Duration;

    fn lifecycle() -> Arc<Lifecycle> {
        Arc::new(Lifecycle::new(eventfd().unwrap()))
    }

    #[test]
    fn machine_begins_once_and_never_after_its_end() {
        let life = lifecycle();
        assert!(life.begin());
        assert!(!life.begin());
        let life = lifecycle();
        life.end(Exit::orderly(Reason::Stopped));
        assert!(!life.begin());
    }

    #[test]
    fn first_reason_to_end_is_the_one_that_counts() {
        let life = lifecycle();
        life.end(Exit::orderly(Reason::Reset));
        life.end(Exit::orderly(Reason::Stopped));
        assert_eq!(life.state(), State::Ended(Exit::orderly(Reason::Reset)));
    }

    #[test]
    fn waiting_vcpu_is_released_by_start_and_by_end() {
        for release in
            [|life: &Lifecycle| assert!(life.begin()), |life: &Lifecycle| life.end(Exit::orderly(Reason::Stopped))]
        {
            let life = lifecycle();
            let waiter = std::thread::spawn({
                let life = life.clone();
                move || life.wait_begun()
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            release(&life);
            waiter.join().unwrap();
        }
    }
}
