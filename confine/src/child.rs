//! A started child: signalled and awaited through its pidfd, so never another process that took over its number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};

use crate::error::Error;

/// How long dropping waits for a killed child to be gone.
const REAP: Duration = Duration::from_secs(5);

/// A child process. Dropped, it is killed and reaped, unless [`detach`](Child::detach)ed.
#[derive(Debug)]
#[must_use = "dropping it kills the child"]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    detached: bool,
}

impl Child {
    /// Forks as the kernel does, the child in new `namespaces` (`CLONE_NEW*`). In the child this returns `None`.
    ///
    /// # Errors
    ///
    /// What the kernel says: the namespaces may not be had, or processes, memory or fds have run out.
    ///
    /// # Safety
    ///
    /// The child has the calling thread alone, and a copy of the memory in which other threads may have been amid
    /// anything: it has to end by `_exit` or an exec, and until then use nothing that they might have held.
    pub unsafe fn fork(namespaces: libc::c_int) -> Result<Option<Child>, Errno> {
        let mut pidfd: RawFd = -1;
        // Without CLONE_VM the child has a copy of the memory and goes on on the same stack. (The C library's fork takes no flags.)
        // SAFETY: the kernel writes one number to `pidfd`, which outlives the call; the rest is the caller's duty.
        let pid = unsafe {
            let flags = namespaces | libc::CLONE_PIDFD | libc::SIGCHLD;
            libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0_usize, &raw mut pidfd, 0_usize, 0_usize)
        };
        let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN);
        if pid == 0 {
            return Ok(None);
        }
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(error)?;
        // SAFETY: the kernel has just made it for this process, close-on-exec; nothing else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Some(Child { pid, pidfd, status: None, detached: false }))
    }

    /// Its process id; not reused before it was waited for.
    pub fn pid(&self) -> libc::pid_t {
        self.pid.as_raw_nonzero().get()
    }

    /// An fd that turns readable when the child has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its status if it has ended. Does not wait.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.reap(WaitOptions::NOHANG)
    }

    /// Waits for its end, at most `limit`; `None` if it still runs then.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        if self.status.is_none() {
            readable(self.pidfd(), limit).map_err(|errno| self.failed("wait for", errno))?;
        }
        self.try_wait()
    }

    /// Waits for its end, however long that takes: for when [`pidfd`](Child::pidfd) was readable, or after `kill`.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.reap(WaitOptions::empty())?.ok_or_else(|| self.failed("wait for", Errno::CHILD))
    }

    /// Kills it with SIGKILL. No error if it has ended already.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Sends it a signal. No error if it has ended already.
    pub fn signal(&self, signal: libc::c_int) -> Result<(), Error> {
        let signal = Signal::from_named_raw(signal).ok_or_else(|| self.failed("signal", Errno::INVAL))?;
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.failed("signal", errno)),
        }
    }

    /// Lets it run on, past this process's end. Ended before that, it stays a zombie until then.
    pub fn detach(mut self) {
        self.detached = true;
    }

    fn reap(&mut self, options: WaitOptions) -> Result<Option<ExitStatus>, Error> {
        if self.status.is_none() {
            let ended = retry_on_intr(|| waitpid(Some(self.pid), options));
            let ended = ended.map_err(|errno| self.failed("wait for", errno))?;
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }

    fn failed(&self, tried: &'static str, errno: Errno) -> Error {
        Error::Child { tried, pid: self.pid(), source: errno.into() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.detached && self.status.is_none() {
            // Nobody is left to tell; what fails here is a child that is gone, or one the kernel cannot end.
            let _told = self.kill().and_then(|()| self.wait_for(REAP));
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// Waits until `fd` is readable or hung up, at most `limit`; whether it is.
pub(crate) fn readable(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool, Errno> {
    let start = Instant::now();
    loop {
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return ready.map(|count| count > 0),
        }
    }
}
