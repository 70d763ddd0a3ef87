//! What clears away a VM's socket when `volt run` itself was killed.
//!
//! A process of its own, forked before anything else runs: it holds one end of a pipe and the runtime directory's
//! socket folder, and may do nothing but wait for the other end to close and unlink that one name. Everything else
//! a VM has (processes, port, lease, descriptors) is given back by the kernel closing its links.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use confine::{Filter, Policy, Sandbox, base};
use ipc::{Code, Fault};

use crate::filters;

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

    /// Removes it, unless somebody else has put something of theirs there since.
    pub fn remove(&self) {
        if inode(&self.path) == Some(self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Starts the janitor for the vat that was just bound at `path`, and returns what keeps it waiting: its end, in
/// whatever way, is the janitor's sign. Must run while this process has one thread.
pub fn start(path: &Path, policy: Policy) -> Result<OwnedFd, Fault> {
    let fault = |why: String| {
        Fault::new(
            Code::Unavailable,
            format!("watch over {}", path.display()),
            why,
            "Raise this user's limit of processes and open files",
        )
    };
    let own = Own::both(path);
    let (wait, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| fault(e.to_string()))?;
    // SAFETY: this process has one thread here (the caller's duty, which `confine` checks again in the child), so the
    // child may use everything that the parent could: no lock is held by a thread that does not exist in it.
    match unsafe { libc::fork() } {
        -1 => Err(fault(std::io::Error::last_os_error().to_string())),
        0 => {
            drop(alive);
            let status = match run(&wait, path, &own, policy) {
                Ok(()) => 0,
                Err(e) => {
                    eprintln!("volt: {e}");
                    1
                }
            };
            std::process::exit(status)
        }
        _ => Ok(alive),
    }
}

fn run(wait: &OwnedFd, path: &Path, own: &[Own], policy: Policy) -> Result<(), confine::Error> {
    // A session of its own: the terminal's Ctrl-C and hang-up, and a kill of volt's process group, pass it by.
    let _ = rustix::process::setsid();
    // Whoever reads volt's output should not have to wait for the janitor to end as well.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let confined = Sandbox::new("volt-janitor", policy).keep_fd(wait.as_raw_fd()).allow_dir_rw(dir).confine()?;
    let filter =
        Filter::new("janitor").with(&base::exit()).with(&filters::unlink()).allow(&[libc::SYS_read, libc::SYS_close]);
    let _narrow = confined.enter(&filter)?;
    let mut byte = [0u8; 1];
    while let Err(rustix::io::Errno::INTR) = rustix::io::read(wait.as_fd(), &mut byte) {}
    own.iter().for_each(Own::remove);
    Ok(())
}
