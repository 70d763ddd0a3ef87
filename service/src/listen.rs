//! The arguments by which a service is told where to listen, and for whom. Takes descriptors that were inherited; reads nothing.

use std::{os::fd::RawFd, path::PathBuf, time::Duration};

use ipc::{Clients, Endpoint, Error};

/// Where a service listens and whom it serves; to be flattened into a program's own arguments.
#[derive(Debug, clap::Args)]
pub struct Listen {
    /// Inherited listening socket (SOCK_STREAM) for Cap'n Proto
    #[arg(long, value_name = "N", requires = "lane_fd", conflicts_with = "socket")]
    listen_fd: Option<RawFd>,
    /// Inherited listening socket (SOCK_SEQPACKET) of the fd lane
    #[arg(long, value_name = "N", requires = "listen_fd")]
    lane_fd: Option<RawFd>,
    /// Make the sockets: PATH, and PATH.fds for the fd lane
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// End once nobody has been connected for so long; never, if absent
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// Serve this user as well as root and the user that this runs as; a socket that is made belongs to it
    #[arg(long, value_name = "UID")]
    owner: Option<u32>,
}

impl Listen {
    /// Makes or takes the two sockets. What is made at a path stays there: a confined process cannot remove it, and the next one that binds replaces it.
    pub fn endpoint(&self) -> Result<Endpoint, Error> {
        match (&self.socket, self.listen_fd, self.lane_fd) {
            (Some(path), None, None) => {
                let (rpc, lane) = Endpoint::bind_for(self.owner, path, 0o600)?.into_fds();
                Endpoint::from_fds(rpc, lane)
            }
            (None, Some(rpc), Some(lane)) if rpc != lane => {
                let inherited = |fd| {
                    let wanted = "open, and numbered above 2";
                    confine::inherited(fd).map_err(|source| Error::Inherited { fd, wanted, source })
                };
                Endpoint::from_fds(inherited(rpc)?, inherited(lane)?)
            }
            _ => Err(Error::NoListener),
        }
    }

    /// Root, the user that this process runs as now, and the owner.
    pub fn clients(&self) -> Clients {
        Clients::root_and([rustix::process::geteuid().as_raw()].into_iter().chain(self.owner))
    }

    /// How long to stay without a connection.
    pub fn idle_exit(&self) -> Option<Duration> {
        self.idle_exit.map(Duration::from_secs)
    }
}
