//! How the probes touch the host: bounded reads of the kernel's own files, and children that are thrown away.

use std::{
    fs::File,
    io::{self, Read},
    time::{Duration, Instant},
};

use confine::Spawn;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use crate::output::printable;

/// More than any file that is read here has.
const MAX: u64 = 256 << 10;
/// More than any program prints that is asked here, in bytes.
const MOST_PRINTED: usize = 4 << 10;
/// How long a child may take for the one thing that it tries.
const CHILD: Duration = Duration::from_secs(5);

/// A text file of the kernel's, at most 256 KiB of it, without the line's end.
pub fn read(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// A number in such a file.
pub fn number(path: &str) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

/// Makes a child in new `namespaces` (`CLONE_NEW*`), which runs `probe` and ends. What the probe makes in them ends too.
///
/// # Errors
///
/// Where the child cannot be made, the probe fails, or takes too long.
pub fn in_child(namespaces: libc::c_int, probe: fn() -> Result<(), Errno>) -> Result<(), Errno> {
    // SAFETY: this process has one thread (see `examine`), so the child has a copy of all memory in a consistent state. It runs
    // the probe and ends by `_exit`, so nothing of the parent's runs twice.
    let Some(mut child) = (unsafe { confine::Child::fork(namespaces) })? else {
        // The errno fits an exit code; one that does not is none of the probes'.
        let code = probe().map_or_else(|errno| errno.raw_os_error().clamp(1, 255), |()| 0);
        // SAFETY: takes a number.
        unsafe { libc::_exit(code) }
    };
    let status = child.wait_for(CHILD).map_err(|_| Errno::CHILD)?.ok_or(Errno::TIMEDOUT)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw_os_error(errno)),
        // A seccomp filter of an outer sandbox, say.
        None => Err(Errno::PERM),
    }
}

/// What a program printed, on standard output or standard error.
#[derive(Debug)]
pub struct Printed {
    /// As a terminal may see it.
    pub lines: Vec<String>,
    /// Whether it came to its end, or printed all that is read, in time.
    pub ended: bool,
}

/// Runs a program, and ends it where it takes longer than `limit` or prints more than 4 KiB, of which no more is read.
///
/// # Errors
///
/// Where it cannot be started, or heard.
pub fn printed(mut spawn: Spawn, limit: Duration) -> Result<Printed, String> {
    let unheard = |errno: Errno| format!("cannot hear a program: {errno}");
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).map_err(unheard)?;
    spawn.stderr(rustix::io::fcntl_dupfd_cloexec(&to, 3).map_err(unheard)?).stdout(to).die_with_parent();
    let _child = spawn.spawn().map_err(|e| ipc::chain(&e))?;
    let start = Instant::now();
    let (mut bytes, mut ended) = (Vec::new(), false);
    while !ended {
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).map_err(|_| unheard(Errno::INVAL))?;
        let mut buffer = [0_u8; 512];
        let read = match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&left)) {
            Ok(0) => break,
            Ok(_) => rustix::io::read(&from, &mut buffer),
            Err(errno) => Err(errno),
        };
        match read {
            Ok(size) => {
                bytes.extend(buffer.iter().take(size));
                ended = size == 0 || bytes.len() >= MOST_PRINTED;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(unheard(errno)),
        }
    }
    bytes.truncate(MOST_PRINTED);
    Ok(Printed { lines: String::from_utf8_lossy(&bytes).lines().map(printable).collect(), ended })
}

/// Why the last system call failed.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_s_own_error_comes_back() {
        in_child(0, || Ok(())).unwrap();
        assert_eq!(in_child(0, || Err(Errno::OPNOTSUPP)), Err(Errno::OPNOTSUPP));
        // CLONE_THREAD without CLONE_SIGHAND makes no child.
        assert_eq!(in_child(libc::CLONE_THREAD, || Ok(())), Err(Errno::INVAL));
    }

    #[test]
    fn only_so_much_of_a_file_is_read() {
        assert_eq!(read("/dev/zero").unwrap().len() as u64, MAX);
        read("/proc/none-such").unwrap_err();
        assert_eq!(number("/proc/version"), None);
    }
}
