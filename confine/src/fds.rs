//! Closes every inherited fd that the program did not list.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};

use crate::error::Error;

/// Closes all fds above 2 but `kept`, which must be open and will not survive an exec.
pub(crate) fn close_all_but(kept: &[RawFd]) -> Result<(), Error> {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|fd| !(0..=2).contains(fd)).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut next: u32 = 3;
    for fd in kept {
        let number = u32::try_from(fd).map_err(|_| Error::FdNotOpen(fd))?;
        // SAFETY: borrowed for this one call; a number that is not open is answered with EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|_| Error::FdNotOpen(fd))?;
        if next < number {
            close_range(next, number - 1)?;
        }
        next = number.saturating_add(1);
    }
    close_range(next, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Error> {
    // SAFETY: takes no pointers. The fds belong to no object of this process: only what was listed may be in use.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if answer == 0 {
        return Ok(());
    }
    Err(Error::Step {
        tried: "close the inherited fds",
        remedy: "it takes Linux 5.9 (close_range)",
        source: Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS).into(),
    })
}
