//! The vhost-user socket: where it comes from, and reading it a whole message at a time.
//!
//! The vhost crate blocks without limit inside a message. So nothing is given to it before the message is there whole,
//! and room for an answer is there too; both have a deadline. Between messages a frontend may be silent for ever.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use confine::UnixSocket;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::error::Error;

/// How long a frontend may take within one message.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often an unfinished message is looked at.
const STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// Request, flags and size (vhost-user, "Header").
const HEADER: usize = 12;
/// The vhost crate refuses anything larger.
const MAX_BODY: u32 = 0x1000;

/// The socket before the first byte.
#[derive(Debug)]
pub(crate) enum FrontendSocket {
    Connected(UnixStream),
    Listening(UnixListener),
}

impl FrontendSocket {
    /// Takes an inherited, connected socket.
    pub fn inherited(fd: i32) -> Result<FrontendSocket, Error> {
        let wanted = UnixSocket::Stream;
        let wrong = |source| Error::Inherited { flag: "--fd", fd, wanted: wanted.name(), source };
        let socket = confine::inherited(fd).map_err(wrong)?;
        wanted.check(&socket).map_err(wrong)?;
        let stream = UnixStream::from(socket);
        let set = |source| Error::System { what: "make the frontend's socket wait", source };
        stream.set_nonblocking(false).map_err(set)?;
        Ok(FrontendSocket::Connected(stream))
    }

    /// Binds a socket, in the place of one that nobody listens on any more.
    pub fn listen(path: &Path) -> Result<FrontendSocket, Error> {
        let failed = |source| Error::Listen { path: path.to_owned(), source };
        let bound = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(failed(error));
                }
                std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
            }
            bound => bound,
        };
        bound.map(FrontendSocket::Listening).map_err(failed)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            FrontendSocket::Connected(stream) => stream.as_fd(),
            FrontendSocket::Listening(listener) => listener.as_fd(),
        }
    }

    pub fn is_listening(&self) -> bool {
        matches!(self, FrontendSocket::Listening(_))
    }

    /// The connection to the one frontend this process serves.
    pub fn connection(self) -> Result<UnixStream, Error> {
        match self {
            FrontendSocket::Connected(stream) => Ok(stream),
            FrontendSocket::Listening(listener) => match listener.accept() {
                Ok((stream, _)) => Ok(stream),
                Err(source) => Err(Error::System { what: "accept the frontend's connection", source }),
            },
        }
    }
}

/// Takes a descriptor that was inherited under a number. Given twice, it is taken twice.
///
/// # Errors
/// If no such descriptor is open.
pub fn inherited(flag: &'static str, fd: i32, wanted: &'static str) -> Result<OwnedFd, Error> {
    confine::inherited(fd).map_err(|source| Error::Inherited { flag, fd, wanted, source })
}

/// Waits for the next message, whole, and for room for its answer. Its request code; none if the frontend has hung up.
pub(crate) fn next_message(socket: &UnixStream) -> Result<Option<u32>, Error> {
    let system = |what| move |errno: rustix::io::Errno| Error::System { what, source: errno.into() };
    wait(socket, PollFlags::IN, None).map_err(system("wait for the frontend"))?;
    let begun = Instant::now();
    let request = loop {
        let mut header = [0; HEADER];
        let seen = match receive(socket, &mut header, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Ok(seen) => seen,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(errno) if ipc::passes(errno) => 0,
            Err(errno) => return Err(system("read from the frontend")(errno)),
        };
        let [a, b, c, d, _, _, _, _, size @ ..] = header;
        let body = u32::from_ne_bytes(size);
        if seen == HEADER {
            let whole = if body > MAX_BODY { 0 } else { HEADER as u64 + u64::from(body) };
            let there = rustix::io::ioctl_fionread(socket).map_err(system("look at the frontend's socket"))?;
            if there >= whole {
                break u32::from_ne_bytes([a, b, c, d]);
            }
        }
        if has_hung_up(socket) {
            return Ok(None);
        }
        if begun.elapsed() > DEADLINE {
            return Err(Error::Stalled("message", DEADLINE.as_secs()));
        }
        // An interrupted rest is a shorter one.
        let _ = rustix::event::poll(&mut [], Some(&STEP));
    };
    let room = wait(socket, PollFlags::OUT, Some(DEADLINE)).map_err(system("wait for the frontend"))?;
    if room { Ok(Some(request)) } else { Err(Error::Stalled("answer", DEADLINE.as_secs())) }
}

/// Receives with the one call that the vhost crate receives with as well.
fn receive(socket: &UnixStream, bytes: &mut [u8], flags: RecvFlags) -> rustix::io::Result<usize> {
    let mut none = RecvAncillaryBuffer::default();
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut none, flags).map(|message| message.bytes)
}

fn has_hung_up(socket: &UnixStream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok()
        && polled.iter().any(|entry| entry.revents().contains(PollFlags::HUP))
}

/// SET_VRING_ENABLE's number.
pub(crate) const SET_VRING_ENABLE: u32 = 18;

/// A SET_VRING_ENABLE message.
pub(crate) struct Enable {
    pub ring: u32,
    pub enable: bool,
    needs_reply: bool,
}

/// Reads a SET_VRING_ENABLE message past the vhost crate: see [`crate::protocol::Handler::takes_early_enable`].
pub(crate) fn read_enable(socket: &UnixStream) -> Result<Enable, Error> {
    let mut message = [0; HEADER + 8];
    // It is there whole, or it is no such message.
    receive(socket, &mut message, RecvFlags::DONTWAIT)
        .map_err(|errno| Error::System { what: "read from the frontend", source: errno.into() })?;
    let (words, _) = message.as_chunks();
    match words.iter().map(|word| u32::from_ne_bytes(*word)).collect::<Vec<_>>()[..] {
        // Version 1, no reply, perhaps NEED_REPLY.
        [SET_VRING_ENABLE, flags @ (1 | 9), 8, ring, enable @ (0 | 1)] => {
            Ok(Enable { ring, enable: enable == 1, needs_reply: flags == 9 })
        }
        _ => Err(Error::Protocol(vhost::vhost_user::Error::InvalidMessage)),
    }
}

/// Answers it, if that was agreed on.
pub(crate) fn answer_enable(socket: &UnixStream, enable: &Enable, reply_ack: bool) -> Result<(), Error> {
    if !enable.needs_reply || !reply_ack {
        return Ok(());
    }
    let reply = [SET_VRING_ENABLE, 5, 8, 0, 0].map(u32::to_ne_bytes).concat();
    // There is room for it, so it goes at once.
    rustix::net::sendmsg(socket, &[IoSlice::new(&reply)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
        .map(|_| ())
        .map_err(|errno| Error::System { what: "answer the frontend", source: errno.into() })
}

fn wait(socket: &UnixStream, flags: PollFlags, limit: Option<Duration>) -> rustix::io::Result<bool> {
    let limit = limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 });
    loop {
        match rustix::event::poll(&mut [PollFd::new(socket, flags)], limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|count| count > 0),
        }
    }
}
