//! Links to services and VMs: connected while this process may still open a path, and talked over once it may not.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    time::{Duration, Instant},
};

use ipc::{Connection, Runtime};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt::Timeout},
};

use crate::error::Error;

/// How long a service may take to answer one call.
pub const CALL_DEADLINE: Duration = schema::limits::SERVICE_CALL;
/// How long until the kernel may have what it lacks.
const MOMENT: Duration = Duration::from_millis(10);

/// The two sockets of a vat, connected, on which nothing has been said or read yet.
#[derive(Debug)]
pub struct Dialled {
    rpc: OwnedFd,
    lane: OwnedFd,
}

impl Dialled {
    /// Connects to the vat at `path`, to each socket as `connect` does.
    pub fn dial(path: &Path, connect: impl Fn(&Path, SocketType) -> io::Result<OwnedFd>) -> io::Result<Dialled> {
        let (rpc, lane) = (connect(path, SocketType::STREAM)?, schema::paths::lane(path));
        Ok(Dialled { rpc, lane: connect(&lane, SocketType::SEQPACKET)? })
    }

    /// The same until `end`. Where their queues are full it waits for a place, so never under a lock.
    pub fn dial_until(path: &Path, end: Instant) -> io::Result<Dialled> {
        Dialled::dial(path, |path, kind| connect_until(path, kind, end))
    }
}

/// The descriptors, to be kept through phase 2.
pub fn fds_of(dialled: &[Dialled]) -> impl Iterator<Item = RawFd> {
    dialled.iter().flat_map(|vat| [vat.rpc.as_raw_fd(), vat.lane.as_raw_fd()])
}

/// Begins to talk to each. Needs the runtime.
pub fn talk(dialled: Vec<Dialled>) -> Result<Vec<Connection>, Error> {
    dialled.into_iter().map(|vat| Ok(Connection::from_fds(vat.rpc, vat.lane)?)).collect()
}

/// Connects at once, or not: `WouldBlock` says that somebody is there, whose queue is full.
pub fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connects, and waits for a place in the queue.
pub fn connect_in_time(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    connect_until(path, kind, Instant::now() + CALL_DEADLINE)
}

fn connect_until(path: &Path, kind: SocketType, end: Instant) -> io::Result<OwnedFd> {
    let begin = Instant::now();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match connect_within(path, kind, left) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let why = format!("its queue has been full for {} s", begin.elapsed().as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Nothing tells when the kernel has again what it lacks: it is asked again, until `end`.
            Err(e) if passes(&e) && !left.is_zero() => std::thread::sleep(MOMENT),
            done => return done,
        }
    }
}

/// Connects, and has the kernel wait for a place in the queue (unix(7): `SO_SNDTIMEO` holds for connect(2)): `WouldBlock` after `limit`.
fn connect_within(path: &Path, kind: SocketType, limit: Duration) -> io::Result<OwnedFd> {
    if limit.is_zero() {
        return connect(path, kind);
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Whether the kernel lacks something just now.
fn passes(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(ipc::passes)
}

/// Nobody serves there: it ends just now, or has ended. Any other failure is one of ours.
pub fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | NotConnected)
}

/// What this program talks to others on. Made before the narrow phase.
pub fn runtime() -> Result<Runtime, Error> {
    Runtime::new().map_err(|source| Error::NoDescriptor { tried: "prepare to talk to others", source })
}

/// A service's text.
pub fn text(reader: capnp::text::Reader<'_>) -> Result<String, Error> {
    Ok(reader.to_string().map_err(capnp::Error::from)?)
}
