//! The command line that all backends share (QEMU docs/interop/vhost-user, "Backend program conventions").

use std::path::PathBuf;

use confine::Policy;

use crate::connection::FrontendSocket;
use crate::error::Error;
use crate::memory::Sealing;

/// Options to flatten into a backend's own.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Serve the frontend on this inherited, connected socket
    #[arg(long, value_name = "N", conflicts_with = "socket_path")]
    pub fd: Option<i32>,

    /// Listen here, and serve the first frontend that connects
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Print what this backend can do, as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Serve a `DeviceBackend` capability on this inherited socket, and end when it ends
    #[arg(long, value_name = "N")]
    pub control_fd: Option<i32>,

    /// Take guest memory only from files that are sealed against shrinking. Without this a frontend that cuts its memory
    /// short ends this backend
    #[arg(long)]
    pub require_sealed_memory: bool,

    /// What to do where the kernel lacks a layer of confinement: strict (refuse) or best-effort
    #[arg(long, value_name = "POLICY", default_value = "best-effort")]
    pub confinement: Policy,
}

impl Options {
    pub(crate) fn frontend(&self) -> Result<FrontendSocket, Error> {
        match (self.fd, &self.socket_path) {
            (Some(fd), None) => FrontendSocket::inherited(fd),
            (None, Some(path)) => FrontendSocket::listen(path),
            _ => Err(Error::Usage("Say where the frontend is: either --fd N or --socket-path PATH".to_owned())),
        }
    }

    pub(crate) fn sealing(&self) -> Sealing {
        if self.require_sealed_memory { Sealing::Required } else { Sealing::Optional }
    }
}
