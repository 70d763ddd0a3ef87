//! Namespaces that a thread of a test moves to: what it does to them is gone with it and what it starts, and the host's are as they were.

use std::io::{Error, Result};
use std::ptr::null;

fn done(answer: i32) -> Result<()> {
    if answer == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// This thread, and what it starts, has an empty network from now on.
///
/// # Errors
/// Where this host does not let it: mostly, it takes root.
pub fn network() -> Result<()> {
    // SAFETY: takes a number; no memory or descriptor is shared less.
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Mounts are this thread's own from now on, and of what it starts.
///
/// # Errors
/// Where this host does not let it: mostly, it takes root.
pub fn mounts() -> Result<()> {
    let nothing = c"".as_ptr();
    // SAFETY: takes a number; then texts that outlive the call, and no data.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        done(libc::mount(nothing, c"/".as_ptr(), nothing, libc::MS_REC | libc::MS_PRIVATE, null()))
    }
}

/// Runs a test on a thread with a network of its own. `false` if there is none to be had, and the test was not run.
///
/// # Panics
/// As the test does.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) -> bool {
    let outcome = std::thread::spawn(move || network().map(|()| test())).join();
    match outcome {
        Ok(outcome) => outcome.is_ok(),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
