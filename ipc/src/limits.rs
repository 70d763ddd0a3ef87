//! What a peer may cost: one table of numbers, and who a peer is.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use schema::limits_capnp as wire;

use crate::Error;

/// What one peer may cost a vat. The defaults bound what this crate and capnp-rpc keep for a connection to about 120 MiB, nearly all of
/// it some 1500 bytes for each capability that it holds in an answer that it has not finished. Past a limit a call fails with `exhausted`, where nothing else is said.
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
    /// Words of results that a peer holds on to by not finishing its calls (each costs 128 words on top).
    pub held_words: usize,
    /// References to capabilities that a peer was given and has not released.
    pub capabilities: u32,
    /// Capabilities in one call. An answer with more ends the connection.
    pub capabilities_per_message: u32,
    /// Calls that a peer cancelled and that are never answered: capnp-rpc 0.27 keeps about 400 bytes for each over the life of a connection.
    pub cancelled_calls: u32,
    /// How long a peer may leave its socket unread while a message of it waits for that. Then the connection ends.
    pub stall: Duration,
    /// Connections of a vat in all; more are refused at once with `exhausted`, as with the two limits below. Lanes count by themselves.
    pub connections: usize,
    /// Those of them that are kept for processes which have none yet.
    pub connections_reserved: usize,
    /// Connections of one user. Root is exempt.
    pub connections_per_user: usize,
    /// Connections of one process. Those of another pid namespace cannot be told apart, and count as their user's, root's too.
    pub connections_per_process: usize,
}

/// Descriptors that a service lets itself have, where it may: connections, lanes, and what it hands out over them.
pub const OPEN_FILES: u64 = 65_536;

impl Default for Limits {
    /// Those of `schema/limits.capnp`.
    fn default() -> Limits {
        Limits {
            message_words: wire::MAX_MESSAGE_WORDS as usize,
            calls_in_flight: wire::MAX_CALLS_IN_FLIGHT,
            call_words: wire::MAX_CALL_WORDS as usize,
            unread_words: wire::MAX_UNREAD_WORDS as usize,
            held_words: wire::MAX_HELD_WORDS as usize,
            capabilities: wire::MAX_CAPABILITIES,
            capabilities_per_message: wire::MAX_CAPABILITIES_PER_MESSAGE,
            cancelled_calls: wire::MAX_CANCELLED_CALLS,
            stall: Duration::from_secs(wire::STALL_SECONDS.into()),
            connections: wire::MAX_CONNECTIONS as usize,
            connections_reserved: wire::RESERVED_CONNECTIONS as usize,
            connections_per_user: wire::MAX_CONNECTIONS_PER_USER as usize,
            connections_per_process: wire::MAX_CONNECTIONS_PER_PROCESS as usize,
        }
    }
}

impl Limits {
    /// The schema's, with as many connections as this process has descriptors for. To be called before it confines itself.
    pub fn of_service() -> Limits {
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        Limits::default().within(hard.unwrap_or(OPEN_FILES).min(OPEN_FILES))
    }

    /// For a process that may have so many descriptors. A connection takes four at worst, with its lane and with what watches a socket that is full or held back. As many are for
    /// what a service hands out.
    pub fn within(self, files: u64) -> Limits {
        let connections = self.connections.min(usize::try_from(files / 8).unwrap_or(usize::MAX));
        Limits {
            connections,
            connections_reserved: self.connections_reserved.min(connections / 8),
            connections_per_user: self.connections_per_user.min(connections / 4 * 3),
            connections_per_process: self.connections_per_process.min(connections / 4),
            ..self
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
    /// Which of this process's connections it is, by a number of its own; 0 for none.
    pub connection: u64,
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
        static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
        let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Ok(Peer { uid: cred.uid, gid: cred.gid, pid: cred.pid, connection })
    }

    /// This process, as its own peers see it.
    pub fn this_process() -> Peer {
        Peer {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            connection: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_the_descriptors_and_leave_some_for_everybody() {
        let limits = |files| {
            let limits = Limits::default().within(files);
            let places = (limits.connections, limits.connections_reserved);
            (places, limits.connections_per_user, limits.connections_per_process)
        };
        assert_eq!(limits(OPEN_FILES), ((2048, 256), 1536, 64));
        assert_eq!(limits(16_384), limits(OPEN_FILES));
        assert_eq!(limits(4096), ((512, 64), 384, 64));
        assert_eq!(limits(1024), ((128, 16), 96, 32));
    }
}
