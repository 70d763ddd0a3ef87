//! Why the service cannot start or go on. (Why a *request* fails is an [`ipc::Fault`].)

use std::path::PathBuf;

/// What stops the service. Each says what was tried, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database file cannot be read or written.
    #[error("Cannot open the database {}; see that this user may read and write it and that its file system is not full", .0.display())]
    Open(PathBuf, #[source] rusqlite::Error),

    /// The database file cannot even be looked at.
    #[error("Cannot read the database {}; see that it is a file and that this user may read it", .0.display())]
    Read(PathBuf, #[source] std::io::Error),

    /// The file is something else.
    #[error(
        "{} is not an ipamd database ({why}). It was left as it is; move it away, or name another directory with --state-dir", .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },

    /// The file is damaged.
    #[error(
        "The database {} is damaged ({why}). It was left as it is; move it away with its log ({0}-wal) and its journal, then put a backup in its \
         place, or start with no pools, leases or reservations", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check found.
        why: String,
    },

    /// The file comes from a later version.
    #[error("The database {} has schema version {found}, and this program knows {known}; start the newer version", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The last version known here.
        known: i64,
    },

    /// Another process has it.
    #[error("The database {} is in use by another process; stop the other ipamd, or name another directory with --state-dir", .0.display())]
    InUse(PathBuf),

    /// What the file holds cannot be taken over.
    #[error("Cannot take over what the database {} holds", .0.display())]
    Load(PathBuf, #[source] ipc::Fault),

    /// What ends any service.
    #[error(transparent)]
    Service(#[from] service::Error),
}
