//! What vCPU threads see of a device: its registers behind a lock, and a bounded wait where an access needs the
//! backend. May use futexes, the clock and a write to an eventfd, as a vCPU's filter allows nothing else: on its
//! paths nothing is allocated or freed. Must never touch the vhost-user socket.

use std::borrow::Cow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::Error;
use super::regs::{Action, Activation, ConfigWrite, Offer, Registers};

/// What a vCPU grants the device's thread beyond the backend's own deadline, so that the thread's verdict, which
/// says why, comes first.
const GRACE: Duration = Duration::from_millis(500);

/// One virtio-mmio device as the bus sees it.
pub struct MmioDevice {
    shared: Arc<Shared>,
}

/// Where vCPU threads and the device's thread meet.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Anything in `state` that somebody waits for has changed.
    changed: Condvar,
    /// Wakes the device's thread.
    wake: EventFd,
    /// Interrupts the guest: the configuration or NEEDS_RESET changed.
    config_call: EventFd,
    /// What the backend has for one operation of a vCPU.
    operation: Duration,
}

struct State {
    regs: Registers,
    phase: Phase,
    job: Job,
}

enum Phase {
    /// Until the handshake is through.
    Handshake,
    Ready,
    Failed(Cow<'static, str>),
}

/// The one piece of work that may be under way between vCPUs and the device's thread.
enum Job {
    None,
    Posted(Action, Instant),
    Taken,
    Done,
}

/// What the device's thread is to do.
pub(super) enum Work {
    Activate(Activation),
    Reset,
    WriteConfig(ConfigWrite),
}

impl MmioDevice {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A guest reads `data.len()` bytes at `offset` of the device's registers. Total; never waits for a backend.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.lock().regs.read(offset, data);
    }

    /// A guest writes `data` at `offset` of the device's registers. Total. Setting DRIVER_OK, resetting a device
    /// whose rings run, and writing configuration space wait for the backend, five seconds at most (twice that
    /// where another vCPU does the same at once). A backend that fails shows as NEEDS_RESET.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let shared = &*self.shared;
        // Work of another vCPU comes first; while it is under way the registers stay as they are.
        let idle = |state: &State| matches!(state.job, Job::None);
        let limit = Instant::now() + shared.operation + GRACE;
        let (mut state, idle) = shared.wait(shared.lock(), limit, idle);
        if !idle {
            return;
        }
        let Some(action) = state.regs.write(offset, data) else { return };
        let reset = action == Action::Reset;
        if matches!(state.phase, Phase::Ready) {
            let deadline = Instant::now() + shared.operation;
            state.job = Job::Posted(action, deadline);
            shared.wake();
            let over = |state: &State| matches!(state.job, Job::Done) || matches!(state.phase, Phase::Failed(_));
            let over_in_time;
            (state, over_in_time) = shared.wait(state, deadline + GRACE, over);
            state.job = Job::None;
            if !over_in_time {
                shared.fail_locked(&mut state, Cow::Borrowed("The device's thread did not run in time"));
            }
        } else {
            shared.needs_reset_locked(&mut state);
        }
        if reset {
            state.regs.reset();
        }
        drop(state);
        shared.changed.notify_all();
    }

    /// Waits until the backend has been asked for all that a driver is offered. A VM is started after this.
    ///
    /// # Errors
    /// The backend failed, or `deadline` passed.
    pub fn wait_ready(&self, deadline: Duration) -> Result<(), Error> {
        let limit = Instant::now() + deadline;
        let settled = |state: &State| !matches!(state.phase, Phase::Handshake);
        let (state, _) = self.shared.wait(self.shared.lock(), limit, settled);
        match &state.phase {
            Phase::Ready => Ok(()),
            Phase::Failed(why) => Err(Error::Failed(why.to_string())),
            Phase::Handshake => Err(Error::NotReady(deadline)),
        }
    }
}

impl Shared {
    pub(super) fn new(regs: Registers, wake: EventFd, config_call: EventFd, operation: Duration) -> Self {
        let state = State { regs, phase: Phase::Handshake, job: Job::None };
        Self { state: Mutex::new(state), changed: Condvar::new(), wake, config_call, operation }
    }

    /// What wakes the device's thread.
    pub(super) fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// The handshake is through.
    pub(super) fn ready(&self, offer: Offer) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Handshake) {
            state.regs.offer(offer);
            state.phase = Phase::Ready;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes the work that a vCPU posted, if it still waits, and when it has to be done.
    pub(super) fn take_work(&self) -> Option<(Work, Instant)> {
        let mut state = self.lock();
        let Job::Posted(action, deadline) = state.job else { return None };
        state.job = Job::Taken;
        let work = match action {
            Action::Activate => Work::Activate(state.regs.activation()),
            Action::Reset => Work::Reset,
            Action::WriteConfig(write) => Work::WriteConfig(write),
        };
        Some((work, deadline))
    }

    /// The work that was taken is done.
    pub(super) fn finish_work(&self) {
        let mut state = self.lock();
        if matches!(state.job, Job::Taken) {
            state.job = Job::Done;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The configuration space, as the backend has it now.
    pub(super) fn update_config(&self, config: Vec<u8>) {
        if self.lock().regs.update_config(config) {
            self.interrupt();
        }
    }

    /// The device has failed for good, if it had not before. Returns the first reason.
    pub(super) fn fail(&self, why: String) -> String {
        let mut state = self.lock();
        self.fail_locked(&mut state, Cow::Owned(why));
        let reason = match &state.phase {
            Phase::Failed(reason) => reason.to_string(),
            Phase::Handshake | Phase::Ready => String::new(),
        };
        drop(state);
        self.changed.notify_all();
        reason
    }

    /// Whether a vCPU has already given the device up.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.lock().phase, Phase::Failed(_))
    }

    fn fail_locked(&self, state: &mut State, why: Cow<'static, str>) {
        if !matches!(state.phase, Phase::Failed(_)) {
            state.phase = Phase::Failed(why);
            self.wake();
        }
        self.needs_reset_locked(state);
    }

    fn needs_reset_locked(&self, state: &mut State) {
        if state.regs.set_needs_reset() {
            self.interrupt();
        }
    }

    // Both eventfds are full only where many events wait already, so a failed write loses nothing.
    fn wake(&self) {
        let _ = self.wake.write(1);
    }

    fn interrupt(&self) {
        let _ = self.config_call.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `what` holds or `limit` has passed, and says whether it holds.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Instant,
        what: impl Fn(&State) -> bool,
    ) -> (MutexGuard<'a, State>, bool) {
        let left = limit.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(state, left, |state| !what(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let holds = what(&state);
        (state, holds)
    }
}
