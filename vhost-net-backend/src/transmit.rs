//! From the guest to the TAP: one chain, one frame, one `writev` straight out of the guest's memory.
//!
//! Header and frame are read by the kernel alone, once; it checks the header against the frame and refuses what does
//! not fit.

use device::{BoxError, Chain, IoVecs, Popped, Progress, Ring};
use rustix::io::Errno;

use crate::tap::{HEADER, Tap};

/// Frames before the other direction has its turn.
const BUDGET: usize = 64;

/// Header, Ethernet header with one VLAN tag, and the longest IP packet.
pub const MAX_FRAME: usize = HEADER + 18 + 65535;

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
                    Some(sent) => ring.complete(chain.head(), 0, sent.unwrap_or(0), sent.is_some()),
                    None => {
                        ring.unpop(1);
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

    /// `None` if the TAP is full; else the bytes of the frame, or `None` where it was dropped.
    fn send(&self, chain: &Chain<'_>) -> Result<Option<Option<u64>>, BoxError> {
        let len = chain.readable.len();
        if !chain.writable.is_empty() || len <= HEADER as u64 || len > MAX_FRAME as u64 {
            return Ok(Some(None));
        }
        let mut frame = IoVecs::new();
        frame.push(&chain.readable, 0, len);
        match frame.writev(self.tap.fd()) {
            Ok(_) => Ok(Some(Some(len - HEADER as u64))),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => Ok(None),
                Some(Errno::BADFD | Errno::BADF) => Err("The TAP interface is gone: somebody removed it".into()),
                // A header or frame that the kernel refuses, an interface that is down, no memory: a frame lost on the wire.
                _ => Ok(Some(None)),
            },
        }
    }
}
