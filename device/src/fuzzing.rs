//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex};

use confine::Filter;
use rustix::event::EventfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use testkit::input::Input;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{Memory, Sealing};
use crate::protocol::{COMMON_FEATURES, Handler};
use crate::ring::{Chain, Popped, Ring, Setup};
use crate::segments::MAX_SEGMENTS;
use crate::testing::memfd;
use crate::worker::{Mailbox, Progress, Worker};
use crate::{BoxError, Device, Error, Stats};

/// Bytes of the guest's memory, in two regions with a hole between them.
const MEMORY: u64 = 32 << 10;
const HOLE: u64 = 4 << 10;

fn event() -> Arc<OwnedFd> {
    Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).expect("there are descriptors"))
}

fn is_signalled(event: &OwnedFd) -> bool {
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

/// Guest memory that the input describes, with a ring at its beginning: each chain that comes out of it lies in that memory, what is
/// written elsewhere than into its writable parts is the used ring alone, and the ring that makes no sense is stopped for good.
pub fn ring(data: &[u8]) {
    let mut input = Input::new(data);
    let [flags, log, pokes, _] = input.array();
    let size = 1u16 << (log % 6);
    let base = input.u16();
    let regions = [
        VhostUserMemoryRegion::new(0, MEMORY / 2, 0, 0),
        VhostUserMemoryRegion::new(MEMORY / 2 + HOLE, MEMORY / 2, MEMORY, MEMORY / 2),
    ];
    let file = memfd(MEMORY);
    let files = vec![file.try_clone().expect("there are descriptors"), file];
    let memory = Arc::new(Memory::map(&regions, files, Sealing::Required).expect("it is sealed"));
    // What the guest changes while the ring runs, then what is there before.
    let mut changes: Vec<(u16, u16)> = (0..pokes % 16).map(|_| (input.u16(), input.u16())).collect();
    memory.guest().write(input.take(MEMORY as usize / 2), GuestAddress(0)).expect("there is room");

    let descriptors = u64::from(size) * 16;
    let used = (descriptors + 6 + 2 * u64::from(size)).next_multiple_of(4);
    let (call, error) = (event(), event());
    let setup = Setup {
        memory: Arc::clone(&memory),
        features: if flags & 1 != 0 { 1 << VIRTIO_RING_F_EVENT_IDX } else { 0 },
        size,
        descriptors: GuestAddress(0),
        available: GuestAddress(descriptors),
        used: GuestAddress(used),
        base,
        kick: event(),
        call: Some(Arc::clone(&call)),
        error: Some(Arc::clone(&error)),
        stats: Arc::default(),
    };
    let mut ring = Ring::new(setup).expect("it lies in the memory");
    let mut chain = Chain::new(&memory);
    let mut served = 0u64;
    for round in 0..3 * usize::from(size) {
        if let Some((at, value)) = changes.pop() {
            let _hole = memory.guest().write_obj(value, GuestAddress(at.into()));
        }
        let at = ring.base();
        let popped = ring.pop(&mut chain);
        assert_eq!(ring.base().wrapping_sub(at), u16::from(popped != Popped::Empty));
        let (readable, writable) = (&chain.readable, &chain.writable);
        match popped {
            Popped::Empty => {
                if ring.kick().is_none() || !ring.enable_kicks() {
                    break;
                }
                continue;
            }
            Popped::Malformed => {
                assert!(readable.is_empty() && writable.is_empty() && readable.count() + writable.count() == 0);
                ring.reject(chain.head());
            }
            Popped::Chain => {
                assert!(chain.head() < size);
                assert!(readable.count() + writable.count() <= MAX_SEGMENTS);
                assert!(readable.len().max(writable.len()) <= MAX_SEGMENTS as u64 * MEMORY);
                let mut bytes = vec![0; 600];
                let skip = readable.len() / 2;
                let there = usize::try_from(readable.len() - skip).unwrap_or(usize::MAX);
                assert_eq!(readable.read(skip, &mut bytes), there.min(bytes.len()));
                assert_eq!(readable.read(readable.len(), &mut bytes), 0);
                if flags & 2 != 0 {
                    let before = snapshot(&memory);
                    let room = usize::try_from(writable.len()).unwrap_or(usize::MAX);
                    assert_eq!(writable.write(0, &bytes), room.min(bytes.len()));
                    assert!(!writable.is_empty() || before == snapshot(&memory));
                }
                let before = snapshot(&memory);
                if round % 8 == 7 {
                    ring.put_back(1);
                    assert_eq!(ring.base(), at);
                    continue;
                }
                ring.complete(chain.head(), u32::MAX, 0, true);
                let all = used as usize..used as usize + 6 + 8 * usize::from(size);
                let now = snapshot(&memory);
                assert!(before[..all.start] == now[..all.start] && before[all.end..] == now[all.end..]);
            }
        }
        served += 1;
        assert_eq!(ring.stats().chains.load(Ordering::Relaxed), served);
        ring.notify().expect("an eventfd takes it");
        ring.disable_kicks();
    }
    if ring.kick().is_none() {
        assert!(is_signalled(&error) && ring.pop(&mut chain) == Popped::Empty && !ring.enable_kicks());
        let _before = is_signalled(&call);
        ring.notify().expect("nothing is said");
        assert!(!is_signalled(&call));
    }
}

/// What the guest's memory holds.
fn snapshot(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    let (low, high) = bytes.split_at_mut(MEMORY as usize / 2);
    memory.guest().read_slice(low, GuestAddress(0)).expect("it is there");
    memory.guest().read_slice(high, GuestAddress(MEMORY / 2 + HOLE)).expect("it is there");
    bytes
}

/// A device that takes what comes, on two rings.
struct Sink;

/// Its one worker, in a thread for all connections.
struct Drain;

impl Device for Sink {
    type Worker = Drain;
    const PROGRAM: &'static str = "sink";
    const VIRTIO_ID: u32 = 63;

    fn features(&self) -> u64 {
        0b1010
    }

    fn config(&self) -> &[u8] {
        b"configuration"
    }

    fn set_features(&mut self, _: u64) -> Result<(), BoxError> {
        Ok(())
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn worker_filter(&self) -> Filter {
        Filter::new("none")
    }

    fn workers(&mut self) -> Vec<Drain> {
        vec![Drain]
    }
}

impl Worker for Drain {
    const RINGS: usize = 2;

    fn run(&mut self, rings: &mut [Option<Ring>]) -> Result<Progress, BoxError> {
        for ring in rings.iter_mut().flatten() {
            let memory = ring.memory();
            let mut chain = Chain::new(&memory);
            for _ in 0..64 {
                match ring.pop(&mut chain) {
                    Popped::Empty => break,
                    Popped::Malformed => ring.reject(chain.head()),
                    Popped::Chain => ring.complete(chain.head(), 0, 0, true),
                }
            }
            ring.notify()?;
        }
        Ok(Progress::Idle)
    }
}

static MAILBOX: LazyLock<Arc<Mailbox>> = LazyLock::new(|| {
    let mailbox = Arc::new(Mailbox::new().expect("there are descriptors"));
    let served = Arc::clone(&mailbox);
    // What ends a backend (a kick that is no eventfd) ends a turn here.
    std::thread::spawn(move || {
        loop {
            let _why = crate::worker::serve(Drain, &served);
        }
    });
    mailbox
});

/// The worker has one conversation at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A frontend that says anything, with descriptors: the conversation ends, with rings stopped and no thread lost. An input is a list of
/// messages: which descriptors, the request, its flags, the length it says less the one it has, and the body behind its length.
pub fn vhost_user_requests(data: &[u8]) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (peer, ours) = UnixStream::pair().expect("there are descriptors");
    peer.set_nonblocking(true).expect("it is a socket");
    let ram = memfd(64 << 10);
    let null = File::open("/dev/null").expect("it is there");
    let events: Vec<Arc<OwnedFd>> = (0..3).map(|_| event()).collect();
    let mut input = Input::new(data);
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        let [fds, request, flags, lie, len] = input.array();
        let body = input.take(len.into());
        let mut message = u32::from(request).to_ne_bytes().to_vec();
        message.extend(u32::from(flags).to_ne_bytes());
        message.extend((u32::from(len) + (u32::from(lie) << 5)).to_ne_bytes());
        message.extend(body);
        let fds = match fds {
            0 => vec![],
            1..4 => vec![events[usize::from(fds) - 1].as_fd()],
            4 => vec![null.as_fd()],
            5 => vec![events[0].as_fd(), ram.as_fd()],
            _ => vec![ram.as_fd(); usize::from(fds % 9)],
        };
        send(&peer, &message, &fds);
    }
    // Whatever length was said of the last one: it has come whole, and what follows is no request.
    send(&peer, &[0; 2 * (4096 + 12)], &[]);
    peer.shutdown(std::net::Shutdown::Write).expect("it is connected");
    events.iter().for_each(|event| crate::event::signal(event).expect("an eventfd takes it"));

    let rings = (0..Drain::RINGS).map(|_| Arc::default()).collect();
    let (acked, connected) = (0.into(), false.into());
    let features = Sink.features() | COMMON_FEATURES;
    let stats = Arc::new(Stats { virtio_id: Sink::VIRTIO_ID, features, acked, connected, rings });
    let handler = Handler::new(Sink, Arc::clone(&stats), Sealing::Required, vec![Arc::clone(&MAILBOX)]);
    let ended = crate::talk(ours, &stats, handler);
    assert!(!matches!(ended, Err(Error::WorkerStuck(_) | Error::Stalled(..))), "{ended:?}");
    assert!(stats.rings.iter().all(|ring| !ring.started.load(Ordering::Relaxed)), "a ring is left running");
    assert_eq!(stats.acked.load(Ordering::Relaxed) & !features, 0);
}

fn send(peer: &UnixStream, message: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = rustix::net::sendmsg(peer, &[std::io::IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(message.len()), "there is room");
}

#[cfg(test)]
mod tests {
    use testkit::corpus::replay;

    #[test]
    fn kept_rings_break_no_promise() {
        replay("ring", super::ring);
    }

    #[test]
    fn kept_vhost_user_requests_break_no_promise() {
        replay("vhost_user_requests", super::vhost_user_requests);
    }
}
