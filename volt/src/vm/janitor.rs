//! What clears away a VM's sockets and its cgroup, however `volt run` ends.
//!
//! A process of its own, forked before the socket is bound: it holds one end of a socket pair and the runtime directory's
//! socket folder, and may do nothing but wait for the other end to close, and remove those names. It stays the user that
//! `volt run` was started by, as the folders are that user's, without any capability and in namespaces of its own, where it
//! finds the folders of sockets and of cgroups, and nothing else. Everything else a VM has (processes, port,
//! lease, descriptors) is given back by the kernel closing its links.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use confine::{Cgroup, Policy, Rule};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FlockOperation,
    io::Errno,
    net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType},
};
use schema::programs::JANITOR;

use crate::{
    error::{Error, HelperError},
    helper,
    host::{
        lock::{lock, open_dir},
        paths::Paths,
        sockets::{Own, paths_of, sweep},
    },
    output::say,
    vm::cell::Cell,
};

/// What it is called.
const WHO: &str = "janitor";
/// Where a janitor with a root of its own finds the sockets, and the cgroups.
const VMS: &str = "/vms";
const CGROUPS: &str = "/cgroups";
/// What the janitor says once it is narrow.
const READY: &[u8] = b"r";
/// How long the janitor may take to confine itself: it waits for nobody in that, but for a busy host.
const START: Duration = Duration::from_secs(60);
/// How long it may take to clear up.
const LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How often, a hundredth of a second apart, to look whether the last process of a VM has left its cgroup.
const LEAVING: u32 = 6000;

/// The supervisor's end of a janitor that is not told yet what it is to watch over.
pub struct Janitor {
    socket: OwnedFd,
    lock: OwnedFd,
}

/// The supervisor's end of its janitor. Its closing, in whatever way, is the janitor's sign.
pub struct Watch(OwnedFd);

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watch {
    /// Waits until the janitor has confined itself: without it nothing may start.
    pub fn ready(&self, paths: &Paths) -> Result<(), Error> {
        let limit = Timespec { tv_sec: START.as_secs().cast_signed(), tv_nsec: 0 };
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let answered = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&limit)));
        match answered.map(|count| (count > 0).then(|| read(&self.0, &mut [0; 1]))) {
            Ok(Some(1)) => Ok(()),
            Ok(Some(_)) => Err(not_started(paths, HelperError::Ended(WHO))),
            Ok(None) => Err(not_started(paths, HelperError::Late { who: WHO, limit: START })),
            Err(e) => Err(not_started(paths, e.into())),
        }
    }

    /// Has the sockets removed, and returns once they are.
    pub fn clear(self) {
        // A janitor that was killed has closed its end: whoever takes the name next sweeps up after it.
        let _gone = rustix::net::shutdown(&self.0, Shutdown::Write);
        let _ended = rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&LIMIT));
    }
}

impl Janitor {
    /// Starts the janitor before there is anything to watch over: until it hears from [`watch`](Janitor::watch) it holds `lock` as
    /// well, so that what a supervisor which was killed meanwhile left there can be nobody else's. Must run while this
    /// process has one thread.
    pub fn start(paths: &Paths, name: &str, lock: OwnedFd, cell: &Cell, policy: Policy) -> Result<Janitor, Error> {
        let (wait, socket) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| not_started(paths, e.into()))?;
        // A pid namespace takes root.
        let forked = match helper::fork_orphan(if cell.user.is_some() { libc::CLONE_NEWPID } else { 0 }) {
            Err(Errno::PERM) if policy != Policy::Strict => {
                say("the janitor runs without a pid namespace of its own, as this host forbids it");
                helper::fork_orphan(0)
            }
            forked => forked,
        };
        if forked.map_err(|e| not_started(paths, e.into()))? {
            drop(socket);
            helper::end(run(wait, lock, paths, name, cell, policy));
        }
        Ok(Janitor { socket, lock })
    }

    /// Tells it what was bound, gives the lock back, and returns what keeps it waiting.
    pub fn watch(self, paths: &Paths, own: &[Own]) -> Result<Watch, Error> {
        let message: Vec<u8> =
            own.iter().flat_map(|own| [own.inode.0, own.inode.1]).flat_map(u64::to_le_bytes).collect();
        match rustix::net::send(&self.socket, &message, SendFlags::NOSIGNAL) {
            Ok(MESSAGE) if message.len() == MESSAGE => {
                // Not only closed: the janitor has it as well, and may be slow to hear of this, or stopped.
                rustix::fs::flock(&self.lock, FlockOperation::Unlock).map_err(|e| not_started(paths, e.into()))?;
                Ok(Watch(self.socket))
            }
            Ok(_) => Err(not_started(paths, HelperError::NoSockets)),
            Err(e) => Err(not_started(paths, e.into())),
        }
    }
}

fn not_started(paths: &Paths, source: HelperError) -> Error {
    Error::Janitor { vms: paths.vms(), source }
}

/// Bytes of what the janitor is told: device and inode of the two sockets.
const MESSAGE: usize = 32;

/// What the supervisor has bound; nothing if it ended before it said so.
fn hear(wait: &OwnedFd) -> Option<[(u64, u64); 2]> {
    let mut message = [0u8; MESSAGE];
    // It was sent at once, as one packet.
    if read(wait, &mut message) != MESSAGE {
        return None;
    }
    let mut numbers = message.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let mut inode = || Some((numbers.next()?, numbers.next()?));
    Some([inode()?, inode()?])
}

fn read(wait: &OwnedFd, buffer: &mut [u8]) -> usize {
    loop {
        match rustix::io::read(wait, &mut *buffer) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.unwrap_or(0),
        }
    }
}

fn run(wait: OwnedFd, claimed: OwnedFd, paths: &Paths, name: &str, cell: &Cell, policy: Policy) -> Result<(), Error> {
    let unconfined = |source| Error::Unconfined { what: "the janitor", source };
    let null = helper::leave_terminal().ok();
    // It outlives whoever started the VM, and whatever ends them. What stays is the keeper's, or volt doctor's, to say.
    let _kept = confine::reset_inherited();
    // None but SIGKILL ends it halfway, whatever whoever started the VM had blocked.
    // SAFETY: the set is initialised by sigfillset, and outlives the call.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    let Some(inodes) = hear(&wait) else {
        sweep(&paths.vms());
        cell.cgroup.iter().for_each(emptied);
        return Ok(());
    };
    drop(claimed);
    let mut own: Vec<Own> =
        paths_of(&paths.vm(name)).into_iter().zip(inodes).map(|(path, inode)| Own { path, inode }).collect();
    let mut cgroup = cell.cgroup.clone();
    // Where the supervisor could not make one there is no folder of cgroups.
    let cgroups = cgroup.as_ref().and_then(|cgroup| cgroup.path().parent()).filter(|path| path.is_dir());
    let folder = paths.vms();
    let folders = [Some((folder.clone(), VMS)), cgroups.map(|path| (path.to_owned(), CGROUPS))];
    let folders: Vec<_> = folders.into_iter().flatten().collect();
    let (sandbox, alone) = helper::tidier(&JANITOR, policy, &folders).map_err(unconfined)?;
    // The VM's user is taken until the last process of it is gone.
    let kept = [Some(&wait), null.as_ref(), cell.claim.as_ref()].into_iter().flatten();
    let sandbox = kept.fold(sandbox, |sandbox, fd| sandbox.keep_fd(fd.as_raw_fd()));
    if alone {
        own.iter_mut().for_each(|own| *own = own.seen_in(Path::new(VMS)));
        cgroup = cgroup.map(|cgroup| cgroup.seen_in(Path::new(CGROUPS)));
    }
    let confined = sandbox.confine().map_err(unconfined)?;
    // In the root that it has now: a descriptor from before would lead out of that. Its own, as a lock belongs to whoever opened.
    let dir = open_dir(if alone { Path::new(VMS) } else { &folder })?;
    let mut filter = helper::tidying("janitor")
        // It has soon nobody to say anything to.
        .allow_if(libc::SYS_write, vec![Rule::eq(0, wait.as_raw_fd().cast_unsigned())])
        .allow(&[libc::SYS_read]);
    if cgroup.is_some() {
        filter = filter.allow(&[
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rmdir,
            #[cfg(not(target_arch = "x86_64"))]
            libc::SYS_unlinkat,
        ]);
    }
    if let Some(null) = null {
        let _ = rustix::stdio::dup2_stderr(null);
    }
    let _narrow = confined.enter(&filter).map_err(unconfined)?;
    let _gone = rustix::io::write(&wait, READY);
    read(&wait, &mut [0u8; 1]);
    // Where the lock cannot be had the sockets stay: the next `volt run` sweeps them up.
    if let Ok(_lock) = lock(dir, &folder) {
        own.iter().for_each(Own::remove);
    }
    // The supervisor's sign that the name is free.
    drop(wait);
    cgroup.iter().for_each(emptied);
    Ok(())
}

/// Removes a cgroup once it is empty. One that does not become so (a process that hangs in the kernel) is left:
/// a VM of that name and user takes its place. It is tried again and again, as cgroups of version 1 do not tell when they are empty.
fn emptied(cgroup: &Cgroup) {
    for _ in 0..LEAVING {
        if cgroup.remove() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
