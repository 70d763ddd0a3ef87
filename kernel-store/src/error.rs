//! Why the service cannot start or go on. (Why a *request* fails is an [`ipc::Fault`].)

use std::io;
use std::path::PathBuf;

/// What stops the service. Each says what was tried, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("The state directory {} is in use by another process; stop the other kernel-store, or name another with --state-dir", .0.display())]
    InUse(PathBuf),

    /// A file in the state directory cannot be read or written.
    #[error(
        "Cannot {tried} in the state directory; see that this user may read and write it and that its file system is not full"
    )]
    File {
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },

    /// The index is damaged or of another version.
    #[error(
        "The file index in the state directory cannot be read ({0}). It was left as it is; put a backup in its place, or remove it to start with \
         an empty store (kernels are imported again when they are needed)"
    )]
    Index(String),

    /// What ends any service.
    #[error(transparent)]
    Service(#[from] service::Error),
}
