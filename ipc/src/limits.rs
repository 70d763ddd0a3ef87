//! What a peer may cost: one table of numbers, and who a peer is.

use std::{os::fd::AsFd, time::Duration};

use crate::Error;

/// What one peer may cost a vat. The defaults bound what this crate and capnp-rpc keep for a connection to about 20 MiB.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest message that is read, and how much of one may be traversed, in words of 8 bytes. A larger one ends the connection.
    pub message_words: usize,
    /// Calls of one connection that run at one time. The next one is not begun, and nothing behind it is read, until one of them returns.
    pub calls_in_flight: u32,
    /// Words of parameters that the running calls of one connection may have in memory together; the next call waits. One call always may run.
    pub call_words: usize,
    /// Words of messages that a peer has not read from its socket; its next message that asks for something waits until it has.
    pub unread_words: usize,
    /// Words of results that a peer holds on to by not finishing its calls (each costs 128 words on top). One more ends the connection.
    pub held_words: usize,
    /// References to capabilities that a peer was given and has not released. One more ends the connection.
    pub capabilities: u32,
    /// Capabilities in one message; a message with more ends the connection.
    pub capabilities_per_message: u32,
    /// Calls that a peer may cancel over the life of one connection: capnp-rpc 0.27 keeps about 400 bytes for each. One more ends the connection.
    pub cancelled_calls: u32,
    /// How long a peer may leave its socket unread while a message of it waits for that. Then the connection ends.
    pub stall: Duration,
    /// Connections of a vat in all. More wait in the kernel's queue until one ends.
    pub connections: usize,
    /// Connections of one user; more are refused with `exhausted`. Root is exempt.
    pub connections_per_user: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            message_words: 65_536,
            calls_in_flight: 64,
            call_words: 262_144,
            unread_words: 262_144,
            held_words: 524_288,
            capabilities: 4096,
            capabilities_per_message: 64,
            cancelled_calls: 16_384,
            stall: Duration::from_secs(30),
            connections: 256,
            connections_per_user: 64,
        }
    }
}

/// The process at the other end of a Unix socket, as the kernel saw it when the connection was made (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process, in this process's pid namespace; 0 if it has none there. For messages only: a pid may be reused.
    pub pid: i32,
}

impl Peer {
    /// Who is at the other end of `socket`.
    pub fn of(socket: impl AsFd) -> Result<Peer, Error> {
        let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // rustix's `socket_peercred` has no room for pid 0, which is what a peer of another pid namespace has.
        // SAFETY: `cred` and `length` outlive the call; the kernel writes at most `length` bytes, which is the size of `cred`, and
        // any bytes make a valid `ucred`.
        let status = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd());
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &raw mut length)
        };
        if status != 0 {
            return Err(Error::Socket {
                tried: "ask who is at the other end of a socket",
                source: std::io::Error::last_os_error(),
            });
        }
        Ok(Peer { uid: cred.uid, gid: cred.gid, pid: cred.pid })
    }

    /// This process, as its own peers see it.
    pub fn this_process() -> Peer {
        Peer {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
        }
    }
}
