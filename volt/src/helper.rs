//! How `volt` becomes one of its helpers, a process beside the command that was typed: a VM's launcher and janitor, which it forks,
//! and the services' keeper, which it starts anew: that one is the host's, and not of whoever came first.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use confine::{Child, Filter, Heap, Policy, Root, Sandbox, base};
use rustix::io::Errno;
use schema::programs::Process;

use crate::{error::Error, output::say};

/// Bytes of heap of one that waits and tidies up.
const SMALL_HEAP: usize = 1 << 20;
/// How long a process may take that only forks and ends.
const BETWEEN: Duration = Duration::from_secs(10);

/// Forks one into new `namespaces` (`CLONE_NEW*`); it runs on past this process's end, unless it sees to that itself. `None` in the new
/// process, which does its work and ends by [`end`]; else its pidfd. Must run while this process has one thread.
pub fn fork(namespaces: libc::c_int) -> Result<Option<OwnedFd>, Errno> {
    // SAFETY: this process has one thread here (the caller's duty, which `confine` checks again in the child), so the child may use
    // everything that the parent could: no lock is held by a thread that does not exist in it. It ends by `end`.
    let Some(child) = (unsafe { Child::fork(namespaces) })? else { return Ok(None) };
    let pidfd = rustix::io::fcntl_dupfd_cloexec(child.pidfd(), 3)?;
    child.detach();
    Ok(Some(pidfd))
}

/// The same for one that is nobody's child, so that whoever stops or ends those of this process passes it by. Whether this is the new
/// process.
pub fn fork_orphan(namespaces: libc::c_int) -> Result<bool, Errno> {
    // SAFETY: as in `fork`, for both.
    let Some(mut between) = (unsafe { Child::fork(0) })? else {
        // SAFETY: as above.
        let code = match unsafe { Child::fork(namespaces) } {
            Ok(None) => return Ok(true),
            Ok(Some(child)) => {
                child.detach();
                0
            }
            Err(errno) => errno.raw_os_error(),
        };
        confine::exit(code)
    };
    // One that somebody has stopped would keep this process for ever, and from its signals; it is killed with its handle.
    let ended = between.wait_for(BETWEEN).map_err(|_| Errno::CHILD)?.ok_or(Errno::TIMEDOUT)?;
    // Without a code it was killed.
    match ended.code().unwrap_or(libc::EINTR) {
        0 => Ok(false),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// Ends one that was forked, and says why its work failed, if so.
pub fn end(work: Result<(), Error>) -> ! {
    confine::exit(i32::from(work.map_err(|error| say(error.fault())).is_err()))
}

/// Leaves the terminal, whose signals pass it by from here on, and its standard input and output, so that whoever reads those need not
/// wait for it. Gives the device that takes their place.
pub fn leave_terminal() -> io::Result<OwnedFd> {
    // Refused only to who leads a group already, which one that was just forked does not.
    let _leader = rustix::process::setsid();
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(null.into())
}

/// The walls of one that waits, and then removes what is in `folders`. With true it is alone with them, each at the place beside it;
/// where the host forbids that, they are where they were.
pub fn tidier(
    process: &Process,
    policy: Policy,
    folders: &[(PathBuf, &str)],
) -> Result<(Sandbox, bool), confine::Error> {
    let root = folders.iter().fold(Root::empty(), |root, (from, at)| root.folder(from, at));
    let sandbox = Sandbox::new(process.title, policy).heap(Heap::Reserved(SMALL_HEAP));
    let (sandbox, alone) = sandbox.alone(&root)?;
    let seen = folders.iter().map(|(from, at)| if alone { Path::new(at) } else { from.as_path() });
    Ok((seen.fold(sandbox, Sandbox::allow_removal), alone))
}

/// What it may ask of the kernel: to wait for a lock, to remove files, and to end. It has one thread.
pub fn tidying(role: &'static str) -> Filter {
    Filter::new(role).with(&base::close()).allow(&[
        libc::SYS_statx,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        #[cfg(not(target_arch = "x86_64"))]
        libc::SYS_unlinkat,
        libc::SYS_flock,
        libc::SYS_clock_nanosleep,
        libc::SYS_restart_syscall, // one that is stopped and continued resumes its sleep
        libc::SYS_exit_group,
    ])
}
