//! Sockets in Volt's folders: those that a process has made, and those that killed ones have left.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use schema::paths::{of_lane, of_socket};

/// A file that this process, or the one it was forked from, has made: which name, and which inode.
#[derive(Debug, Clone)]
pub struct Own {
    pub path: PathBuf,
    pub inode: (u64, u64),
}

impl Own {
    /// The two sockets of the vat that was just bound at `path`.
    pub fn both(path: &Path) -> Vec<Own> {
        let own = |path: PathBuf| inode(&path).map(|inode| Own { path, inode });
        paths_of(path).into_iter().filter_map(own).collect()
    }

    /// The same, for who sees its folder at `folder`.
    pub fn seen_in(&self, folder: &Path) -> Own {
        Own { path: self.path.file_name().map_or_else(|| folder.into(), |name| folder.join(name)), ..self.clone() }
    }

    /// Removes it, unless somebody else has put something of theirs there since. Under the lock, where that may happen now.
    pub fn remove(&self) {
        if inode(&self.path) == Some(self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where a vat's two sockets are.
pub fn paths_of(path: &Path) -> [PathBuf; 2] {
    [path.to_path_buf(), schema::paths::lane(path)]
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Removes from a folder of VMs' sockets what killed processes have left there: names that a socket has before it
/// listens, and sockets that nobody serves. Under the lock, so that nobody binds there meanwhile.
pub fn sweep(dir: &Path) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // Nobody is waited for: a supervisor that is stopped, and whose queue is full, is none that has died.
        let dead = || matches!(ipc::is_served(&path), Ok(false));
        if hidden {
            let _ = fs::remove_file(&path);
        } else if path.file_name().and_then(|name| of_socket(name.to_str()?)).is_some() && dead() {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(schema::paths::lane(&path));
        } else if of_lane(&path).is_some_and(|socket| !socket.exists()) {
            // The lane is bound first: whoever bound it was killed before the other.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sweep_removes_what_killed_processes_left_and_nothing_that_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let served = UnixListener::bind(path("live.sock")).unwrap();
        for dead in ["dead.sock", "dead.sock.fds", "half.sock.fds", ".7.0", "live.sock.fds"] {
            drop(UnixListener::bind(path(dead)).unwrap());
        }
        sweep(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["live.sock", "live.sock.fds"]);
        drop(served);
    }
}
