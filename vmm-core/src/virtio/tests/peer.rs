//! A scripted backend: it behaves, remembers all it was sent, and misbehaves where a test says so.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// One message the frontend sent.
#[derive(Debug)]
pub struct Seen {
    pub request: u32,
    pub need_reply: bool,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// How the peer answers one message.
pub enum Reaction {
    /// As a good backend does.
    Behave,
    /// Not at all, but the socket stays open.
    Mute,
    /// By closing the socket.
    Close,
    /// As a good backend does, and by closing the socket then.
    CloseAfter,
    /// With these bytes.
    Raw(Vec<u8>),
    /// With a good answer and a descriptor beside it.
    ExtraFd,
    /// With a good answer, one byte each 100 ms.
    Drip,
    /// With this number where zero means success.
    Nack(u64),
}

/// What the peer has to offer.
#[derive(Clone)]
pub struct Backend {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub config: Vec<u8>,
}

impl Default for Backend {
    fn default() -> Self {
        Backend { features: 1 << 32 | 1 << 30, protocol: 1 << 0 | 1 << 3 | 1 << 9, queues: 2, config: vec![7; 60] }
    }
}

/// A message with a 64-bit or other body.
pub fn answer(request: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [request, 1 | 4, body.len() as u32].map(u32::to_le_bytes).concat();
    bytes.extend_from_slice(body);
    bytes
}

impl Backend {
    /// Serves the other end of the returned socket until it is closed; `script` decides about each message.
    pub fn serve(self, script: impl FnMut(&Seen) -> Reaction + Send + 'static) -> (UnixStream, JoinHandle<Vec<Seen>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (theirs, spawn(move || self.run(ours, script)))
    }

    /// Serves `socket` until it is closed.
    pub fn run(self, mut socket: UnixStream, mut script: impl FnMut(&Seen) -> Reaction) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut acked = 0;
        while let Some(message) = receive(&mut socket) {
            let good = self.answer(&message, acked & 1 << 3 != 0);
            if message.request == 16 {
                acked = number(&message.body);
            }
            let deed = script(&message);
            let request = message.request;
            seen.push(message);
            let sent = match deed {
                Reaction::Behave => socket.write_all(&good),
                Reaction::CloseAfter => {
                    socket.write_all(&good).unwrap();
                    return seen;
                }
                Reaction::Mute => Ok(()),
                Reaction::Close => return seen,
                Reaction::Raw(bytes) => socket.write_all(&bytes),
                Reaction::Nack(code) => socket.write_all(&answer(request, &code.to_le_bytes())),
                Reaction::ExtraFd => {
                    send_with_fd(&socket, &good);
                    Ok(())
                }
                Reaction::Drip => good.iter().try_for_each(|byte| {
                    sleep(Duration::from_millis(100));
                    socket.write_all(&[*byte])
                }),
            };
            if sent.is_err() {
                break;
            }
        }
        seen
    }

    fn answer(&self, message: &Seen, reply_ack: bool) -> Vec<u8> {
        let long = |value: u64| answer(message.request, &value.to_le_bytes());
        match message.request {
            1 => long(self.features),
            15 => long(self.protocol),
            17 => long(self.queues),
            11 => answer(11, &message.body),
            24 => {
                let size = message.body.len() - 12;
                match self.config.get(..size) {
                    Some(config) => answer(24, &[&message.body[..12], config].concat()),
                    None => answer(24, &[]),
                }
            }
            _ if message.need_reply && reply_ack => long(0),
            _ => Vec::new(),
        }
    }
}

pub fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(body.try_into().unwrap())
}

fn receive(socket: &mut UnixStream) -> Option<Seen> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let got = recvmsg(&*socket, &mut [IoSliceMut::new(&mut header)], &mut control, flags).ok()?;
    if got.bytes < 12 {
        return None;
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    socket.read_exact(&mut body).ok()?;
    Some(Seen { request: word(0), need_reply: word(4) & 8 != 0, body, fds })
}

fn send_with_fd(socket: &UnixStream, bytes: &[u8]) {
    send_with(socket, bytes, &File::open("/dev/null").unwrap());
}

/// Sends `bytes` with `extra` beside them.
pub fn send_with(socket: &UnixStream, bytes: &[u8], extra: &impl AsFd) {
    let fds = [extra.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}
