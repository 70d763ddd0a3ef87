//! The vhost-user socket: one message out, one answer in, each within a deadline and of a bounded size.
//!
//! May touch the socket, by sendmsg, recvmsg and ppoll. The backend is not trusted: it may be mute, slow, or send
//! anything. Descriptors that it sends are never received: there is no room for one, so the kernel drops them.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::Error;
use super::requests::BackendRequests;
use super::socket::{read_some, rest_a_moment};
use super::wire::{HEADER, Header, MAX_ANSWER, MAX_REGIONS, Request};

/// The frontend's end of the socket.
pub(super) struct Channel {
    socket: UnixStream,
    /// Served while we wait for an answer, because the backend may wait for ours before it gives its own.
    pub(super) requests: BackendRequests,
}

impl Channel {
    pub(super) fn new(socket: UnixStream, requests: BackendRequests) -> Self {
        Self { socket, requests }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends one whole message, with `fds` beside its first byte.
    pub(super) fn send(
        &mut self,
        request: Request,
        message: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut rest = message;
        let mut fds = fds;
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Error::Protocol { request: request.1, why: "too many descriptors to send" });
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(Errno::AGAIN) => self.wait(request, PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                Err(errno) if ipc::passes(errno) && Instant::now() < deadline => rest_a_moment(),
                Err(errno) => return Err(failed(request, errno)),
            }
        }
        Ok(())
    }

    /// Receives the answer to `request` and returns its body.
    pub(super) fn receive(&mut self, request: Request, deadline: Instant) -> Result<Vec<u8>, Error> {
        let mut header = [0; HEADER];
        self.fill(request, &mut header, deadline)?;
        let header = Header::decode(&header);
        let wrong = |why| Error::Protocol { request: request.1, why };
        if !header.is(true) {
            return Err(wrong("not an answer of version 1"));
        }
        if header.request != request.0 {
            return Err(wrong("an answer to another request"));
        }
        if header.body() > MAX_ANSWER {
            return Err(wrong("the answer is longer than any can be"));
        }
        let mut body = vec![0; header.body()];
        self.fill(request, &mut body, deadline)?;
        Ok(body)
    }

    fn fill(&mut self, request: Request, buffer: &mut [u8], deadline: Instant) -> Result<(), Error> {
        let mut rest = buffer;
        while !rest.is_empty() {
            match read_some(self.socket.as_fd(), rest) {
                Ok(Some(0)) => return Err(Error::Closed { request: request.1 }),
                Ok(Some(count)) => rest = rest.get_mut(count..).unwrap_or_default(),
                Ok(None) => {
                    return Err(Error::Protocol {
                        request: request.1,
                        why: "a descriptor came with an answer that has none",
                    });
                }
                Err(Errno::AGAIN) => self.wait(request, PollFlags::IN, deadline)?,
                Err(Errno::INTR) => {}
                Err(errno) if ipc::passes(errno) && Instant::now() < deadline => rest_a_moment(),
                Err(errno) => return Err(failed(request, errno)),
            }
            // A peer that always has another byte ready never meets the wait above.
            if Instant::now() >= deadline && !rest.is_empty() {
                return Err(Error::Timeout { request: request.1 });
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready for `what`, serving the backend's own requests meanwhile.
    fn wait(&mut self, request: Request, what: PollFlags, deadline: Instant) -> Result<(), Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { request: request.1 });
            }
            let timeout = Timespec::try_from(left).ok();
            let mut fds = vec![PollFd::new(&self.socket, what)];
            if let Some(requests) = self.requests.socket() {
                fds.push(PollFd::from_borrowed_fd(requests, PollFlags::IN));
            }
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(request, errno)),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.get(1) == Some(&true) {
                self.requests.serve()?;
            }
            if ready.first() == Some(&true) {
                return Ok(());
            }
        }
    }
}

fn failed(request: Request, errno: Errno) -> Error {
    match errno {
        Errno::PIPE | Errno::CONNRESET => Error::Closed { request: request.1 },
        _ => Error::Host { what: "use the vhost-user socket", source: errno.into() },
    }
}
