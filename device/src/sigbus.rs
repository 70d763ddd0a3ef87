//! What happens when the guest's memory is not there: the frontend, who has its file, cut it short, or no page was left.
//!
//! The kernel says so by SIGBUS, at whichever instruction touched it. There is no way on from there, but there is an end with
//! a line and a status. The handler does nothing that every thread's filter does not allow: a write to stderr, and the end.

use std::ffi::c_int;
use std::io;
use std::sync::OnceLock;

/// What the handler says.
static LINE: OnceLock<String> = OnceLock::new();

/// From here on SIGBUS ends the process with one line and exit status 1. In the wide phase.
pub(crate) fn install_handler(program: &str) -> io::Result<()> {
    LINE.get_or_init(|| {
        let why = "the frontend has cut the file of its guest's memory short, or the host has no memory left for it";
        format!("{program}: Cannot touch the guest's memory (SIGBUS): {why}\n")
    });
    let handler: extern "C" fn(c_int) = end;
    // SAFETY: a zeroed sigaction is a valid one; the handler calls nothing that is not async-signal-safe.
    let answer = unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn end(_signal: c_int) {
    let line = LINE.get().map_or("", String::as_str);
    // SAFETY: both are async-signal-safe (signal-safety(7)); reading an initialised OnceLock is one atomic load.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(1)
    }
}
