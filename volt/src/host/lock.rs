//! The lock that decides who starts or clears away services, or VMs' sockets.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::FlockOperation;

use crate::error::Error;

/// How long to wait before it is tried again.
const MOMENT: Duration = Duration::from_millis(10);
/// How long the lock may go from one to the next before it comes to us.
const QUEUE: Duration = Duration::from_secs(60);

/// A directory, to be locked.
pub fn open_dir(dir: &Path) -> Result<OwnedFd, Error> {
    File::open(dir).map(OwnedFd::from).map_err(|source| Error::OwnUnreadable { path: dir.to_owned(), source })
}

/// Opens a directory and takes the [`lock`] on it, for as long as it goes from one to the next. Where somebody keeps it for too long, it says who.
pub fn take_lock(path: &Path) -> Result<OwnedFd, Error> {
    let give_up = Instant::now() + QUEUE;
    loop {
        let dir = open_dir(path)?;
        let whose = dir.try_clone().ok();
        let holds = || whose.as_ref().and_then(holder);
        let before = holds();
        let dir = match lock(dir, path) {
            Err(Error::Locked { dir, .. }) => dir,
            // Had at last; or refused by the kernel, which asking again does not change.
            done => return done,
        };
        let now = holds();
        // Of those who start hundreds of VMs at once, each has it for a moment, and between two nobody has.
        if (now.is_none() || now != before) && Instant::now() < give_up {
            continue;
        }
        return Err(Error::Locked { dir, holder: now });
    }
}

/// Who has the lock on a directory, as `/proc/locks` tells (proc_locks(5)).
fn holder(dir: &OwnedFd) -> Option<u32> {
    let stat = rustix::fs::fstat(dir).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|line| line.contains("FLOCK") && line.split_whitespace().any(|word| word == file))?;
    let pid = line.split_whitespace().nth(4)?.parse().ok()?;
    Path::new("/proc").join(format!("{pid}")).exists().then_some(pid)
}

/// Takes the lock that decides who starts or clears away services, or VMs' sockets: on the directory of their sockets itself,
/// so that it leaves no file. Given back when the descriptor is closed. Who has it waits for nobody.
pub fn lock(dir: OwnedFd, runtime: &Path) -> Result<OwnedFd, Error> {
    // Held for as long as three sockets take to bind, so a short wait is enough; not for ever if a holder is stopped. It is tried
    // again and again, as the kernel knows no wait for such a lock that ends at a time.
    for _ in 0..500 {
        match rustix::fs::flock(dir.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(MOMENT),
            Err(e) => return Err(Error::NoLock { dir: runtime.to_owned(), source: e.into() }),
        }
    }
    Err(Error::Locked { dir: runtime.to_owned(), holder: None })
}
