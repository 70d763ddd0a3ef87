//! The terminal and the guest's serial console: two threads that copy bytes, and may do nothing else.

use std::{
    io::IsTerminal,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use crate::filters;
use confine::{Confined, Filter, JoinHandle, base};
use ipc::{Code, Fault, chain};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};

/// How long the last of the guest's output may take to reach whoever reads ours.
const DRAIN: Duration = Duration::from_secs(2);

/// How long until a job in the background looks again whether the terminal is its own.
const BACKGROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// The supervisor's end of the console.
pub struct Console {
    /// Kept for the cores: each boot of the guest gets a duplicate.
    core_end: UnixStream,
    output: Option<JoinHandle<()>>,
    terminal: Option<Termios>,
}

impl Console {
    /// Connects standard input and output with the console. The threads begin once `confined` has been entered.
    pub fn start(confined: &Confined) -> Result<Console, Fault> {
        let fault = |why: String| {
            Fault::new(
                Code::Unavailable,
                "set up the console",
                why,
                "Raise this user's limit of processes and open files",
            )
        };
        let (ours, core_end) = UnixStream::pair().map_err(|e| fault(chain(&e)))?;
        let copy_in = ours.try_clone().map_err(|e| fault(chain(&e)))?;
        let filter = Filter::new("console").with(&base::thread()).with(&base::close()).with(&filters::poll());
        let filter = filter.allow(&[libc::SYS_read, libc::SYS_write]);
        let output = confined
            .spawn("console-out", &filter, move || copy(ours.as_fd(), rustix::stdio::stdout()))
            .map_err(|e| fault(chain(&e)))?;
        confined
            .spawn("console-in", &filter, move || copy(rustix::stdio::stdin(), copy_in.as_fd()))
            .map_err(|e| fault(chain(&e)))?;
        Ok(Console { core_end, output: Some(output), terminal: raw_terminal() })
    }

    /// The end that a core gets.
    pub fn core_end(&self) -> Result<OwnedFd, Fault> {
        self.core_end.try_clone().map(OwnedFd::from).map_err(|e| {
            Fault::new(Code::Unavailable, "set up the console", chain(&e), "Raise this user's limit of open files")
        })
    }

    /// Waits until what the guest wrote has been written out, but not for ever: the reader may have stopped reading.
    pub fn finish(mut self) {
        let _ = self.core_end.shutdown(Shutdown::Both);
        let until = Instant::now().checked_add(DRAIN);
        if let Some(output) = self.output.take() {
            while !output.is_finished() && until.is_some_and(|t| Instant::now() < t) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(old) = &self.terminal {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, old);
        }
    }
}

/// Lets the guest see each key as it is typed and do the echo, Ctrl-Z among them; Ctrl-C and Ctrl-\ stay ours. Not in
/// the background, where the terminal is somebody else's.
fn raw_terminal() -> Option<Termios> {
    let stdin = rustix::stdio::stdin();
    if !std::io::stdin().is_terminal() || rustix::termios::tcgetpgrp(stdin).ok()? != rustix::process::getpgrp() {
        return None;
    }
    let old = rustix::termios::tcgetattr(stdin).ok()?;
    let mut new = old.clone();
    new.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
    // _POSIX_VDISABLE
    new.special_codes[SpecialCodeIndex::VSUSP] = 0;
    rustix::termios::tcsetattr(stdin, OptionalActions::Now, &new).ok()?;
    Some(old)
}

/// Copies until either side ends.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut buffer = [0u8; 16 << 10];
    loop {
        let mut rest = match rustix::io::read(from, &mut buffer) {
            Ok(0) => return,
            Ok(n) => buffer.get(..n).unwrap_or(&[]),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => {
                wait(from, PollFlags::IN);
                continue;
            }
            // The terminal is another job's now: SIGTTIN is blocked, so that this does not stop the VM.
            Err(rustix::io::Errno::IO) => {
                let _ = rustix::event::poll(&mut [], Some(&BACKGROUND));
                continue;
            }
            Err(_) => return,
        };
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or(&[]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait(to, PollFlags::OUT),
                Err(_) => return,
            }
        }
    }
}

/// Whoever gave us this descriptor may have made it non-blocking.
fn wait(fd: BorrowedFd<'_>, events: PollFlags) {
    let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, events)], None);
}
