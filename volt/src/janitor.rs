//! What clears away a VM's socket when `volt run` itself was killed.
//!
//! A process of its own, forked before anything else runs: it holds one end of a pipe and the runtime directory's
//! socket folder, and may do nothing but wait for the other end to close and unlink that name. Everything else
//! a VM has (processes, port, lease, descriptors) is given back by the kernel closing its links.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
};

use confine::{Filter, Policy, Sandbox, base};
use ipc::{Code, Fault};

use crate::{
    filters,
    paths::Paths,
    say,
    services::{lock, open_dir},
};

/// A file that this process, or the one it was forked from, has made: which name, and which inode.
#[derive(Debug, Clone)]
pub struct Own {
    path: PathBuf,
    inode: (u64, u64),
}

impl Own {
    /// The two sockets of the vat that was just bound at `path`.
    pub fn both(path: &Path) -> Vec<Own> {
        let own = |path: PathBuf| inode(&path).map(|inode| Own { path, inode });
        [path.to_path_buf(), ipc::lane_path(path)].into_iter().filter_map(own).collect()
    }

    /// Removes it, unless somebody else has put something of theirs there since. Under the lock, where that may happen now.
    pub fn remove(&self) {
        if inode(&self.path) == Some(self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Removes from a folder of VMs' sockets what killed processes have left there: names that a socket has before it
/// listens, and sockets that nobody serves. Under the lock, so that nobody binds there meanwhile.
pub fn sweep(dir: &Path) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let dead = || UnixStream::connect(&path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if hidden {
            let _ = fs::remove_file(&path);
        } else if path.extension().is_some_and(|end| end == "sock") && dead() {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(ipc::lane_path(&path));
        }
    }
}

/// Starts the janitor for `own`, which was just bound, and returns what keeps it waiting: its end, in whatever way, is
/// the janitor's sign. Must run while this process has one thread.
pub fn start(paths: &Paths, own: &[Own], policy: Policy) -> Result<OwnedFd, Fault> {
    let fault = |why: String| {
        Fault::new(
            Code::Unavailable,
            format!("watch over {}", paths.vms().display()),
            why,
            "Raise this user's limit of processes and open files",
        )
    };
    let (wait, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| fault(e.to_string()))?;
    // SAFETY: this process has one thread here (the caller's duty, which `confine` checks again in the child), so the
    // child may use everything that the parent could: no lock is held by a thread that does not exist in it.
    match unsafe { libc::fork() } {
        -1 => Err(fault(std::io::Error::last_os_error().to_string())),
        0 => {
            drop(alive);
            let status = run(&wait, paths, own, policy).map_err(say);
            std::process::exit(i32::from(status.is_err()))
        }
        _ => Ok(alive),
    }
}

fn run(wait: &OwnedFd, paths: &Paths, own: &[Own], policy: Policy) -> Result<(), Fault> {
    let fault = |e: confine::Error| {
        Fault::new(Code::Unavailable, "confine the janitor", e.to_string(), "See volt --help on --confinement")
    };
    // Its own, not inherited: a lock belongs to whoever opened.
    let runtime = open_dir(&paths.runtime)?;
    // A session of its own: the terminal's Ctrl-C and hang-up, and a kill of volt's process group, pass it by.
    let _ = rustix::process::setsid();
    // Whoever reads volt's output should not have to wait for the janitor to end as well.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let _ = std::env::set_current_dir("/");
    let sandbox = Sandbox::new("volt-janitor", policy).keep_fd(wait.as_raw_fd()).keep_fd(runtime.as_raw_fd());
    let confined = sandbox.allow_dir_rw(&paths.vms()).confine().map_err(fault)?;
    let filter = Filter::new("janitor").with(&base::exit()).with(&filters::unlink()).with(&filters::lock());
    let _narrow = confined.enter(&filter.allow(&[libc::SYS_read, libc::SYS_close])).map_err(fault)?;
    let mut byte = [0u8; 1];
    while let Err(rustix::io::Errno::INTR) = rustix::io::read(wait.as_fd(), &mut byte) {}
    let _lock = lock(runtime, &paths.runtime)?;
    own.iter().for_each(Own::remove);
    Ok(())
}
