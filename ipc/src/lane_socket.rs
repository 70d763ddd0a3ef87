//! The fd lane's packets (`schema/fd_lane.capnp`): the service's side of one lane, and a client's. A packet that is not
//! exactly as the schema says ends the lane, and every descriptor in it is closed. One that lost its descriptor because its receiver had no
//! room for it is as it should be: what it was for fails, and the lane goes on.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage},
};
use schema::fd_lane_capnp as wire;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    Code, Fault, Lane, Peer, Token,
    lack::{Lack, passes},
    lane::{TOKEN_LENGTH, bad_token, too_many_tokens},
    stream::{RECEIVE, SEND, watch},
};

/// How long the other side may take to read a reply, or to send one.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest packet: one byte and a token.
const LONGEST: usize = 1 + TOKEN_LENGTH;

/// What ends a lane.
#[derive(Debug)]
pub(crate) struct Ended(&'static str);

/// A connected SOCK_SEQPACKET socket.
pub(crate) struct LaneSocket(AsyncFd<OwnedFd>);

pub(crate) struct Packet {
    bytes: [u8; LONGEST],
    length: usize,
    pub(crate) fd: Option<OwnedFd>,
    /// One came with it, for which this process had no room.
    lost: bool,
}

impl Packet {
    pub(crate) fn parts(&self) -> Option<(u8, &[u8])> {
        let (first, rest) = self.bytes.get(..self.length)?.split_first()?;
        Some((*first, rest))
    }
}

impl LaneSocket {
    pub(crate) fn new(socket: OwnedFd) -> std::io::Result<LaneSocket> {
        watch(socket, Interest::READABLE | Interest::WRITABLE).map(LaneSocket)
    }

    /// Answers deposits and claims of `peer`, until it leaves or breaks the protocol.
    pub(crate) async fn serve(self, lane: Lane, peer: Peer) -> Ended {
        loop {
            let served = async {
                let request = self.receive(lane.takes_deposits()).await?;
                let reply = self.answer(request, &lane, peer)?;
                self.send(&reply.0, reply.1.as_ref().map(AsFd::as_fd)).await
            };
            if let Err(ended) = served.await {
                return ended;
            }
        }
    }

    fn answer(&self, request: Packet, lane: &Lane, peer: Peer) -> Result<(Vec<u8>, Option<OwnedFd>), Ended> {
        let token: Vec<u8> = match request.parts() {
            Some((wire::OP_DEPOSIT, [])) => Vec::new(),
            Some((wire::OP_CLAIM, token)) if token.len() == TOKEN_LENGTH => token.to_vec(),
            _ => return Err(Ended("a packet is malformed")),
        };
        let result = match (token.is_empty(), request.fd, request.lost) {
            (true, Some(fd), false) => lane.deposit(fd, peer).map(|token| (token.as_bytes().to_vec(), None)),
            (true, None, true) => Err(too_many_tokens()),
            (false, None, false) => lane.claim(&token, peer).map(|fd| (Vec::new(), Some(fd))),
            _ => return Err(Ended("a packet carries a descriptor too many or too few")),
        };
        match result {
            Ok((mut token, fd)) => {
                token.insert(0, wire::STATUS_OK);
                Ok((token, fd))
            }
            Err(Fault { code: Code::BadToken, .. }) => Ok((vec![wire::STATUS_BAD_TOKEN], None)),
            Err(Fault { code: Code::Overloaded, .. }) => Ok((vec![wire::STATUS_EXHAUSTED], None)),
            Err(_) => Err(Ended("the kernel gave no random bytes")),
        }
    }

    /// Hands `fd` to the service.
    pub(crate) async fn deposit(&self, fd: BorrowedFd<'_>) -> Result<Result<Token, Fault>, Ended> {
        let reply = self.ask(&[wire::OP_DEPOSIT], Some(fd)).await?;
        match (reply.parts(), reply.fd.is_some() || reply.lost) {
            (Some((wire::STATUS_OK, token)), false) => Token::from_bytes(token).map(Ok).map_err(|_| WRONG_REPLY),
            (Some((status, [])), false) => refusal(status).map(Err),
            _ => Err(WRONG_REPLY),
        }
    }

    /// Takes the descriptor that `token` names from the service.
    pub(crate) async fn claim(&self, token: &Token) -> Result<Result<OwnedFd, Fault>, Ended> {
        let mut request = vec![wire::OP_CLAIM];
        request.extend_from_slice(token.as_bytes());
        let mut reply = self.ask(&request, None).await?;
        let fd = reply.fd.take();
        match (reply.parts(), fd, reply.lost) {
            (Some((wire::STATUS_OK, [])), Some(fd), false) => Ok(Ok(fd)),
            (Some((wire::STATUS_OK, [])), None, true) => Ok(Err(no_room())),
            (Some((status, [])), None, false) => refusal(status).map(Err),
            _ => Err(WRONG_REPLY),
        }
    }

    async fn ask(&self, request: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<Packet, Ended> {
        if let Err(gone) = self.send(request, fd).await {
            // Who was refused is told so before the socket is closed.
            return receive_now(self.0.as_fd(), true).ok().and_then(Result::ok).ok_or(gone);
        }
        tokio::time::timeout(DEADLINE, self.receive(true))
            .await
            .map_err(|_| Ended("the service did not answer within 5 s"))?
    }

    async fn receive(&self, room: bool) -> Result<Packet, Ended> {
        let mut lack = Lack::new(DEADLINE);
        loop {
            lack.rest().await;
            let mut ready = self.0.readable().await.map_err(|_| Ended("the socket failed"))?;
            match receive_now(self.0.as_fd(), room) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) if passes(e) && lack.again() => {}
                Err(_) => return Err(Ended("the socket failed")),
                Ok(result) => return result,
            }
        }
    }

    async fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Ended> {
        let mut lack = Lack::new(DEADLINE);
        let sent = async {
            loop {
                lack.rest().await;
                let mut ready = self.0.writable().await.map_err(|_| Ended("the socket failed"))?;
                match send_now(self.0.as_fd(), bytes, fd) {
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    Err(e) if passes(e) && lack.again() => {}
                    Err(e) if passes(e) => return Err(Ended(LACKING)),
                    Err(_) => return Err(Ended("the other side has gone")),
                    Ok(()) => return Ok(()),
                }
            }
        };
        tokio::time::timeout(DEADLINE, sent).await.map_err(|_| Ended("the other side did not read within 5 s"))?
    }
}

const LACKING: &str = "the kernel has had no room for the packet for 5 s";
const WRONG_REPLY: Ended = Ended("the service's reply is malformed");

fn refusal(status: u8) -> Result<Fault, Ended> {
    match status {
        wire::STATUS_BAD_TOKEN => Ok(bad_token()),
        wire::STATUS_EXHAUSTED => Ok(too_many_tokens()),
        wire::STATUS_TOO_MANY_LANES => Ok(too_many_lanes()),
        _ => Err(WRONG_REPLY),
    }
}

fn too_many_lanes() -> Fault {
    let why = "the service has as many lanes as it may, of this process or in all";
    Fault::new(Code::Exhausted, "pass a file descriptor", why, "Close connections, or connect again later")
}

fn no_room() -> Fault {
    let why = "this process has as many files open as it may";
    Fault::new(
        Code::Exhausted,
        "take a file descriptor",
        why,
        "Close some, or raise the limit of open files; then get a new token",
    )
}

/// What a client is told once its lane has ended.
pub(crate) fn lane_lost(why: &str) -> Fault {
    Fault::new(
        Code::Unavailable,
        "pass a file descriptor",
        format!("the fd lane has ended: {why}"),
        "Connect again, then ask again",
    )
}

impl Ended {
    pub(crate) fn why(&self) -> &'static str {
        self.0
    }
}

/// Reads one packet. The outer error is the kernel's, the inner one is about what came. Without room for a descriptor the kernel drops one
/// that comes, and it is never this process's.
pub(crate) fn receive_now(socket: BorrowedFd<'_>, room: bool) -> Result<Result<Packet, Ended>, Errno> {
    // One byte and room for one descriptor more than a packet may have, to see a surplus.
    let mut bytes = [0; LONGEST + 1];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut ancillary = if room { RecvAncillaryBuffer::new(&mut space) } else { RecvAncillaryBuffer::default() };
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RECEIVE)?;
    // From here on each descriptor is owned: whatever returns early closes it.
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Err(Ended("a packet was truncated")));
    }
    if message.bytes == 0 {
        return Ok(Err(Ended("the other side has gone")));
    }
    let mut fd = fds.pop();
    if !fds.is_empty() {
        return Ok(Err(Ended("a packet carries more than one descriptor")));
    }
    // Where there was room for two in the buffer, it was lacking in this process's table. (The second of two may be what is lost.)
    let lost = message.flags.contains(ReturnFlags::CTRUNC);
    if lost {
        fd = None;
    }
    let (Some(kept), true) = (bytes.first_chunk(), message.bytes <= LONGEST) else {
        return Ok(Err(Ended("a packet is too long")));
    };
    Ok(Ok(Packet { bytes: *kept, length: message.bytes, fd, lost }))
}

fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    // A SOCK_SEQPACKET packet is sent whole or not at all.
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SEND).map(drop)
}
