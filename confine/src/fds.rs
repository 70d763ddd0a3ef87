//! Inherited fds: takes those that arguments name, closes every one that the program did not list.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::error::Error;

/// A duplicate of the fd that was inherited under a number which an argument gave, to be owned; it is not passed on at an exec.
/// The number itself goes when the process confines itself, as it is not what [`Sandbox::keep_fd`](crate::Sandbox::keep_fd) is told.
///
/// # Errors
///
/// Where no fd has that number, or it is one of the standard streams' (0 to 2).
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::other("0 to 2 are the standard streams"));
    }
    // SAFETY: a number above 2, borrowed for the one call that finds out whether it is open at all.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(fcntl_dupfd_cloexec(borrowed, 3)?)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn inherited_takes_what_is_open_above_the_standard_streams_and_nothing_else() {
        let (end, other) = rustix::pipe::pipe().unwrap();
        let taken = inherited(end.as_raw_fd()).unwrap();
        assert!(taken.as_raw_fd() > 2 && taken.as_raw_fd() != end.as_raw_fd());
        for number in [-1, 0, 1, 2, i32::MAX] {
            inherited(number).unwrap_err();
        }
        drop(other);
    }
}
