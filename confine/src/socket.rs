//! What kind of Unix socket an inherited descriptor is. Asks the kernel about it, and changes nothing.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};

/// The Unix socket that a descriptor has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnixSocket {
    /// Of type SOCK_STREAM, connected.
    Stream,
    /// Of type SOCK_SEQPACKET, connected.
    SeqPacket,
    /// Of type SOCK_STREAM, listening.
    StreamListener,
    /// Of type SOCK_SEQPACKET, listening.
    SeqPacketListener,
}

impl UnixSocket {
    /// What it is, for an error's text.
    pub fn name(self) -> &'static str {
        match self {
            UnixSocket::Stream => "a connected Unix socket of type SOCK_STREAM",
            UnixSocket::SeqPacket => "a connected Unix socket of type SOCK_SEQPACKET",
            UnixSocket::StreamListener => "a listening Unix socket of type SOCK_STREAM",
            UnixSocket::SeqPacketListener => "a listening Unix socket of type SOCK_SEQPACKET",
        }
    }

    /// Checks that `fd` is one. Behind a filter this takes getsockopt, and getpeername for one that is to be connected.
    ///
    /// # Errors
    ///
    /// What it is instead.
    pub fn check(self, fd: impl AsFd) -> io::Result<()> {
        let (kind, listening) = match self {
            UnixSocket::Stream => (SocketType::STREAM, false),
            UnixSocket::SeqPacket => (SocketType::SEQPACKET, false),
            UnixSocket::StreamListener => (SocketType::STREAM, true),
            UnixSocket::SeqPacketListener => (SocketType::SEQPACKET, true),
        };
        let fd = fd.as_fd();
        if sockopt::socket_domain(fd)? != AddressFamily::UNIX {
            return Err(io::Error::other("it is a socket of another family"));
        }
        if sockopt::socket_type(fd)? != kind {
            return Err(io::Error::other("it is a Unix socket of another type"));
        }
        match (sockopt::socket_acceptconn(fd)?, listening) {
            (true, false) => Err(io::Error::other("it is listening")),
            (false, true) => Err(io::Error::other("it is not listening")),
            (true, true) => Ok(()),
            (false, false) => match getpeername(fd) {
                Err(Errno::NOTCONN) => Err(io::Error::other("it is not connected")),
                other => Ok(other.map(drop)?),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use rustix::net::{SocketFlags, socket_with, socketpair};

    #[test]
    fn each_kind_is_itself_and_no_other_and_whatever_is_none_of_them_is_refused_with_what_it_is() {
        const ALL: [UnixSocket; 4] =
            [UnixSocket::Stream, UnixSocket::SeqPacket, UnixSocket::StreamListener, UnixSocket::SeqPacketListener];
        let dir = tempfile::tempdir().unwrap();
        let unbound = |kind| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let (packets, _other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let packet_listener = unbound(SocketType::SEQPACKET);
        rustix::net::bind(&packet_listener, &rustix::net::SocketAddrUnix::new(dir.path().join("p")).unwrap()).unwrap();
        rustix::net::listen(&packet_listener, 1).unwrap();
        let good: [OwnedFd; 4] = [stream.into(), packets, listener.into(), packet_listener];
        for (wanted, at) in ALL.into_iter().zip(0..) {
            for (n, fd) in good.iter().enumerate() {
                assert_eq!(wanted.check(fd).is_ok(), n == at, "{wanted:?}: {}", ALL[n].name());
            }
        }
        let (alone, datagram): (_, OwnedFd) = (unbound(SocketType::STREAM), UnixDatagram::unbound().unwrap().into());
        let (inet, file) =
            (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), std::fs::File::open("/dev/null").unwrap());
        for (fd, wanted, why) in [
            (alone.as_fd(), UnixSocket::Stream, "it is not connected"),
            (alone.as_fd(), UnixSocket::StreamListener, "it is not listening"),
            (good[2].as_fd(), UnixSocket::Stream, "it is listening"),
            (datagram.as_fd(), UnixSocket::Stream, "it is a Unix socket of another type"),
            (inet.as_fd(), UnixSocket::StreamListener, "it is a socket of another family"),
            (file.as_fd(), UnixSocket::SeqPacket, "Socket operation on non-socket (os error 88)"),
        ] {
            assert_eq!(wanted.check(fd).unwrap_err().to_string(), why, "{wanted:?}");
        }
        let (end, other) = UnixStream::pair().unwrap();
        drop(other);
        UnixSocket::Stream.check(end).expect("its peer's end is for whoever reads it to see");
    }
}
