//! Eventfds that wake a thread of this process. (Those that KVM reads or writes are made where they are wired.)

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::EventfdFlags;

use crate::error::Error;

/// A counter at 0 that never blocks.
pub fn eventfd() -> Result<OwnedFd, Error> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Error::host("make an eventfd"))
}

/// Wakes whoever polls it. A counter too full to take one more is as readable as can be, so no failure matters.
pub fn signal(eventfd: impl AsFd) {
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

/// Takes note of the waking. An empty counter is no failure.
pub fn clear(eventfd: impl AsFd) {
    let _ = rustix::io::read(eventfd, &mut [0u8; 8]);
}
