//! Every vhost-user message number in every state, with descriptors and without, with bodies of every wrong size: the backend
//! answers, or ends with status 1 and one line. Never by a signal, never late, never with a descriptor more.

use crate::frontend::*;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of each request's body by the specification; the rest have none.
const SIZES: [(u32, usize); 31] = [
    (2, 8),
    (5, 40),
    (6, 16),
    (8, 8),
    (9, 40),
    (10, 8),
    (11, 8),
    (12, 8),
    (13, 8),
    (14, 8),
    (16, 8),
    (18, 8),
    (19, 8),
    (20, 8),
    (22, 32),
    (23, 8),
    (24, 13),
    (25, 13),
    (26, 1048),
    (27, 8),
    (31, 20),
    (32, 20),
    (35, 0),
    (37, 40),
    (38, 40),
    (39, 8),
    (41, 16),
    (42, 8),
    (44, 16),
    (45, 8),
    (62, 8),
];

/// Descriptors that go along.
#[derive(Debug, Clone, Copy, PartialEq)]
enum With {
    None,
    Event,
    Socket,
    /// More than the vhost crate takes.
    Many,
}

/// How far the frontend has come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Fresh,
    Negotiated,
    Running,
}

/// Sends all of them. `begin` starts a backend on a socket; it has so many rings.
pub fn every_message_is_answered_or_ends_the_backend(begin: impl Fn(OwnedFd) -> Backend + Sync, rings: u64) {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(300));
        eprintln!("A backend does not answer while rings are set up");
        std::process::abort();
    });
    let begin = &begin;
    std::thread::scope(|scope| {
        for state in [State::Fresh, State::Negotiated, State::Running] {
            scope.spawn(move || (0..64).for_each(|number| every_form(begin, rings, state, number)));
        }
    });
}

fn every_form(begin: impl Fn(OwnedFd) -> Backend, rings: u64, state: State, number: u32) {
    let right = SIZES.iter().find(|(known, _)| *known == number).map_or(0, |(_, size)| *size);
    let mut sizes = vec![0, right, right + 8];
    sizes.dedup();
    for size in sizes {
        for with in [With::None, With::Event, With::Socket, With::Many] {
            let (socket, theirs) = UnixStream::pair().unwrap();
            let message = Message { number, size, with };
            check(begin(theirs.into()), socket, state, rings, message);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Message {
    number: u32,
    size: usize,
    with: With,
}

fn check(backend: Backend, socket: UnixStream, state: State, rings: u64, message: Message) {
    let case = &format!("{message:?} to a backend that is {state:?}");
    // What is dropped with these closes nothing that the backend needs to go on.
    let (mut backend, socket, _rest) = match state {
        State::Fresh => (backend, socket, None),
        _ => {
            let mut machine = Machine::connect(backend, socket, rings);
            let queues = if state == State::Running { machine.begin(0, rings, 16) } else { Vec::new() };
            let Machine { backend, frontend, ram, socket, .. } = machine;
            (backend, socket, Some((frontend, ram, queues)))
        }
    };
    let fds = format!("/proc/{}/fd", backend.child.pid());
    let mut counts = Vec::new();
    for _ in 0..3 {
        send(&socket, message);
        if !answers(&socket, case) {
            let (status, said) = backend.end();
            assert_eq!((status.code(), said.lines().count()), (Some(1), 1), "{case}: {status}, {said:?}");
            return;
        }
        counts.push(std::fs::read_dir(&fds).unwrap().count());
    }
    assert_eq!(counts[1], counts[2], "{case}: descriptors stay open");
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    let (status, said) = backend.end();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{case}: {status}");
}

fn send(socket: &UnixStream, Message { number, size, with }: Message) {
    let mut message = [number, 9, size as u32].map(u32::to_ne_bytes).concat();
    message.resize(message.len() + size, 0);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (one, _other) = UnixStream::pair().unwrap();
    // SAFETY: the event lives until the end of this function.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let fds = match with {
        With::None => vec![],
        With::Event => vec![event],
        With::Socket => vec![one.as_fd()],
        With::Many => vec![event; 40],
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    // A backend that has ended meanwhile shows when it is asked.
    let _ = sendmsg(socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL);
}

/// Whether the backend still answers GET_FEATURES, after whatever else it has to say.
fn answers(mut socket: &UnixStream, case: &str) -> bool {
    let _ = socket.write_all(&[1u32, 1, 0].map(u32::to_ne_bytes).concat());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut number = 0;
    while number != 1 {
        let mut header = [0; 12];
        match socket.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("{case}: no answer"),
            Err(_) => return false,
        }
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        number = word(0);
        let mut body = vec![0; word(8) as usize];
        if socket.read_exact(&mut body).is_err() {
            return false;
        }
    }
    true
}
