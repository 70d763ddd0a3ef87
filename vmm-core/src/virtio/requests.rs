//! The channel on which a backend asks something of us. Of all its requests only CONFIG_CHANGE is served; each
//! other one is refused. Bounded: one message of at most 256 bytes is held, and no answer waits for its reader.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::Error;
use super::socket::{read_some, rest_a_moment};
use super::wire::{BACKEND_CONFIG_CHANGE, HEADER, Header, NEED_REPLY, answer};

/// Longest body that a request of the backend may have.
const MAX_BODY: usize = 256;
/// What errors call this channel.
const NAME: &str = "a request of its own";

/// Our end of the backend's channel, and the end to be sent to it.
pub(super) struct BackendRequests {
    socket: Option<UnixStream>,
    theirs: Option<UnixStream>,
    held: Vec<u8>,
    /// The backend said that its configuration space changed, and nobody has asked for it since.
    config_changed: bool,
}

impl BackendRequests {
    pub(super) fn new() -> Result<Self, Error> {
        let pair = UnixStream::pair();
        let (ours, theirs) = pair.map_err(|source| Error::Host { what: "make a socket pair", source })?;
        Ok(Self { socket: Some(ours), theirs: Some(theirs), held: Vec::new(), config_changed: false })
    }

    /// The end for the backend; once.
    pub(super) fn take_theirs(&mut self) -> Option<UnixStream> {
        self.theirs.take()
    }

    /// What to wait on. None before the backend has its end and after it closed it.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        if self.theirs.is_some() { None } else { self.socket.as_ref().map(AsFd::as_fd) }
    }

    /// Whether the configuration space has to be asked for again.
    pub(super) fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// Takes what has come, without waiting: the rest of a header, then of its body.
    pub(super) fn serve(&mut self) -> Result<(), Error> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let header = self.held.first_chunk::<HEADER>().map(Header::decode);
        let body = header.map_or(0, |header| header.body());
        let missing = (HEADER + body).saturating_sub(self.held.len());
        let mut buffer = vec![0; missing];
        if missing > 0 {
            match read_some(socket.as_fd(), &mut buffer) {
                Ok(Some(0)) => self.socket = None,
                Ok(Some(count)) => self.held.extend(buffer.iter().take(count)),
                Ok(None) => return Err(Error::Protocol { request: NAME, why: "a descriptor came with it" }),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // What has come lies there yet, and is looked for again.
                Err(errno) if ipc::passes(errno) => rest_a_moment(),
                Err(errno) => {
                    return Err(Error::Host { what: "read the backend's requests", source: errno.into() });
                }
            }
        }
        self.finish()
    }

    /// Checks the held header, so that no more is held than it may ask for, and answers the message once it is whole.
    fn finish(&mut self) -> Result<(), Error> {
        let (Some(socket), Some(bytes)) = (&self.socket, self.held.first_chunk::<HEADER>()) else {
            return Ok(());
        };
        let header = Header::decode(bytes);
        let wrong = |why| Error::Protocol { request: NAME, why };
        if !header.is(false) {
            return Err(wrong("not a request of version 1"));
        }
        if header.body() > MAX_BODY {
            return Err(wrong("it is longer than any can be"));
        }
        if self.held.len() < HEADER + header.body() {
            return Ok(());
        }
        self.held.clear();
        let served = header.request == BACKEND_CONFIG_CHANGE;
        self.config_changed |= served;
        if header.flags & NEED_REPLY != 0 {
            let message = answer(header.request, u64::from(!served));
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let mut none = SendAncillaryBuffer::default();
            match sendmsg(socket, &[IoSlice::new(&message)], &mut none, flags) {
                Ok(sent) if sent == message.len() => {}
                Err(Errno::PIPE | Errno::CONNRESET) => self.socket = None,
                _ => return Err(wrong("the backend does not read the answers")),
            }
        }
        Ok(())
    }
}
