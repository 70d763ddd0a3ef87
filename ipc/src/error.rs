//! What can go wrong outside a call: with sockets and their files.

use std::{io, path::PathBuf};

use crate::{Code, Fault, chain};

/// Why a vat could not be set up, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A live program serves that path.
    #[error("Cannot serve on {}: another program does. End that one first, or choose another path", path.display())]
    AlreadyExists {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that is not a socket has that name.
    #[error("Cannot serve on {}: it exists and is not a socket. Move it away, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A Unix socket's path holds 107 bytes.
    #[error("Cannot use {} as a socket: the path with its .fds is longer than the kernel's 107 bytes. Choose a shorter one", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused to make a socket at that path.
    #[error("Cannot serve on {}: failed to {tried}. See whether its folder exists and may be written", path.display())]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// The step that failed.
        tried: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The arguments say neither of the two ways to listen, or both descriptors are one.
    #[error("Say where to listen: either --socket, or --listen-fd and --lane-fd with two different descriptors")]
    NoListener,
    /// An inherited descriptor is not the socket it should be.
    #[error("Cannot use inherited descriptor {fd}: it is not {wanted}. Pass the right one")]
    Inherited {
        /// The descriptor's number.
        fd: i32,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        source: io::Error,
    },
    /// The kernel refused an operation on a socket.
    #[error("Failed to {tried}. See whether this process may have more open files (ulimit -n)")]
    Socket {
        /// The operation.
        tried: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A peer broke the protocol or a limit, and the connection to it was ended.
    #[error("Ended a connection: {0}")]
    Connection(Fault),
    /// A server object of this connection panicked; the connection was ended.
    #[error(
        "Ended a connection: a call on it panicked. This is a defect of the service; its own line on stderr says where"
    )]
    Panicked,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let text = chain(&error);
        match error {
            Error::Connection(fault) => fault,
            Error::AlreadyExists { .. } => Fault::new(Code::AlreadyExists, "set up a vat", text, ""),
            Error::Panicked => Fault::new(Code::Internal, "serve a connection", text, ""),
            _ => Fault::new(Code::Unavailable, "set up a vat", text, ""),
        }
    }
}
