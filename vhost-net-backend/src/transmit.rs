//! From the guest to the TAP: one chain, one frame, one `writev` straight out of the guest's memory, but for the first bytes.
//!
//! These are copied first, so that the guest cannot change them between the look at what it asks for ([`crate::offload`]) and the
//! kernel's. Each byte is read once.

use device::{BoxError, Chain, IoVecs, Popped, Progress, Ring};
use rustix::io::Errno;

use crate::{
    offload::{self, START},
    tap::{HEADER, Tap},
};

/// Frames before the other direction has its turn.
const BUDGET: usize = 64;

/// Header, Ethernet header with one VLAN tag, and the longest IP packet.
pub const MAX_FRAME: usize = HEADER + 18 + 65535;

/// What became of a chain.
enum Sent {
    /// It was a frame of so many bytes.
    Frame(u64),
    /// It is none, asks for what must not be done, or the kernel does not take it.
    Dropped,
    /// The TAP takes no more at present.
    Blocked,
}

/// The transmitting half of a queue pair.
pub struct Transmitter {
    tap: Tap,
    blocked: bool,
}

impl Transmitter {
    pub fn new(tap: Tap) -> Transmitter {
        Transmitter { tap, blocked: false }
    }

    /// Whether the TAP takes no more at present.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what is available.
    pub fn run(&mut self, ring: Option<&mut Ring>) -> Result<Progress, BoxError> {
        self.blocked = false;
        let Some(ring) = ring else {
            return Ok(Progress::Idle);
        };
        let memory = ring.memory();
        let mut chain = Chain::new(&memory);
        ring.disable_kicks();
        for _ in 0..BUDGET {
            match ring.pop(&mut chain) {
                Popped::Chain => match self.send(&chain)? {
                    Sent::Frame(bytes) => ring.complete(chain.head(), 0, bytes, true),
                    Sent::Dropped => ring.complete(chain.head(), 0, 0, false),
                    Sent::Blocked => {
                        ring.put_back(1);
                        self.blocked = true;
                        ring.notify()?;
                        return Ok(Progress::Idle);
                    }
                },
                Popped::Malformed => ring.reject(chain.head()),
                Popped::Empty => {
                    ring.notify()?;
                    return Ok(if ring.enable_kicks() { Progress::More } else { Progress::Idle });
                }
            }
        }
        ring.notify()?;
        Ok(Progress::More)
    }

    fn send(&self, chain: &Chain<'_>) -> Result<Sent, BoxError> {
        let len = chain.readable.len();
        if !chain.writable.is_empty() || len <= HEADER as u64 || len > MAX_FRAME as u64 {
            return Ok(Sent::Dropped);
        }
        let mut start = [0; START];
        let copied = chain.readable.read(0, &mut start);
        let start = start.get_mut(..copied).unwrap_or_default();
        if !offload::may(start) {
            return Ok(Sent::Dropped);
        }
        let mut frame = IoVecs::new();
        frame.push_private(start);
        frame.push(&chain.readable, copied as u64, len - copied as u64);
        match frame.writev(self.tap.fd()) {
            Ok(_) => Ok(Sent::Frame(len - HEADER as u64)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => Ok(Sent::Blocked),
                Some(Errno::BADFD | Errno::BADF) => Err("The TAP interface is gone: somebody removed it".into()),
                // A header or frame that the kernel refuses, an interface that is down, no memory: a frame lost on the wire.
                _ => Ok(Sent::Dropped),
            },
        }
    }
}
