//! From the TAP to the guest: `readv` straight into the guest's buffers.
//!
//! The list that is read into ends in a private buffer, so that a frame that is longer than the guest's buffers is never
//! cut: what spilled is copied into further buffers (VIRTIO_NET_F_MRG_RXBUF), or the frame waits here until the guest
//! has given enough of them. While it waits, and while there is no buffer, the TAP is not looked at: the kernel's queue
//! fills, and no time is spent.

use device::{BoxError, IoVecs, Progress, Ring, RingStats};
use rustix::io::Errno;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use crate::stage::{Filled, Stage};
use crate::tap::{HEADER, Tap};
use crate::transmit::MAX_FRAME;

/// Frames before the other direction has its turn.
const BUDGET: usize = 64;
/// Buffers that are taken within one turn.
const BUFFER_BUDGET: usize = 4096;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: u64 = 10;

/// The receiving half of a queue pair.
pub struct Receiver {
    tap: Tap,
    /// Takes what goes past the guest's buffers. One byte longer than any frame, to know one that was cut.
    spill: Box<[u8]>,
    /// A frame that the guest has no room for yet.
    held: Option<Vec<u8>>,
    /// The room that the last frame took: the next is likely no longer.
    expected: u64,
    wants_frames: bool,
}

/// What became of a frame.
enum Placed {
    Delivered,
    Waits,
    Spent,
}

/// A frame with its header.
enum Frame {
    /// So many bytes, in the buffers and then in the spill.
    Fresh(u64),
    /// One that waited.
    Held(Vec<u8>),
}

impl Frame {
    fn len(&self) -> u64 {
        match self {
            Frame::Fresh(len) => *len,
            Frame::Held(bytes) => bytes.len() as u64,
        }
    }
}

fn dropped(ring: &Ring) -> Placed {
    RingStats::add(&ring.stats().errors, 1);
    Placed::Delivered
}

impl Receiver {
    pub fn new(tap: Tap) -> Receiver {
        let spill = vec![0; MAX_FRAME + 1].into_boxed_slice();
        Receiver { tap, spill, held: None, expected: 1, wants_frames: false }
    }

    /// Whether there is room for another frame.
    pub fn wants_frames(&self) -> bool {
        self.wants_frames
    }

    /// Drops the frame that waits: the driver it came for is gone.
    pub fn forget(&mut self) {
        self.held = None;
    }

    /// Receives what the TAP has, as long as the guest has room.
    pub fn run(&mut self, ring: Option<&mut Ring>) -> Result<Progress, BoxError> {
        self.wants_frames = false;
        let Some(ring) = ring else {
            return Ok(Progress::Idle);
        };
        let memory = ring.memory();
        let mut stage = Stage::new(&memory);
        ring.disable_kicks();
        let progress = self.receive(ring, &mut stage)?;
        // Asked while the ring stands behind what it has given: only buffers that come on top are worth a kick.
        let progress = match progress {
            None if ring.enable_kicks() => Progress::More,
            None => Progress::Idle,
            Some(progress) => progress,
        };
        stage.put_back(ring);
        ring.notify()?;
        Ok(progress)
    }

    /// `None` if it takes more buffers to go on.
    fn receive(&mut self, ring: &mut Ring, stage: &mut Stage<'_>) -> Result<Option<Progress>, BoxError> {
        let mut budget = BUFFER_BUDGET;
        if let Some(frame) = self.held.take() {
            match self.place(ring, stage, Frame::Held(frame), &mut budget) {
                Placed::Delivered => {}
                Placed::Waits => return Ok(None),
                Placed::Spent => return Ok(Some(Progress::More)),
            }
        }
        for _ in 0..BUDGET {
            match stage.fill(ring, self.expected, true, &mut budget) {
                Filled::Spent => return Ok(Some(Progress::More)),
                Filled::Short if stage.capacity() == 0 => return Ok(None),
                Filled::Short | Filled::Enough => {}
            }
            match self.read(stage) {
                Ok(len) => match self.place(ring, stage, Frame::Fresh(len), &mut budget) {
                    Placed::Delivered => {}
                    Placed::Waits => return Ok(None),
                    Placed::Spent => return Ok(Some(Progress::More)),
                },
                Err(Errno::AGAIN) => {
                    self.wants_frames = true;
                    return Ok(Some(Progress::Idle));
                }
                // The kernel dropped a frame: one whose offloads the header has no words for, or for want of memory.
                Err(Errno::INVAL | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => {
                    RingStats::add(&ring.stats().errors, 1)
                }
                Err(Errno::BADFD | Errno::BADF | Errno::FAULT) => {
                    return Err("The TAP interface is gone: somebody removed it".into());
                }
                Err(errno) => return Err(format!("Cannot read from the TAP: {errno}").into()),
            }
        }
        Ok(Some(Progress::More))
    }

    fn read(&mut self, stage: &Stage<'_>) -> Result<u64, Errno> {
        let mut list = IoVecs::new();
        stage.list(&mut list);
        list.push_private(&mut self.spill);
        match list.readv(self.tap.fd()) {
            Ok(len) => Ok(len as u64),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Hands a frame to the guest, or keeps it.
    fn place(&mut self, ring: &mut Ring, stage: &mut Stage<'_>, frame: Frame, budget: &mut usize) -> Placed {
        let len = frame.len();
        let there = stage.capacity().min(len);
        let mergeable = ring.features() & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        if len <= HEADER as u64 || len > MAX_FRAME as u64 {
            return dropped(ring);
        }
        // Without mergeable buffers a frame has one, whatever its size.
        let want = if mergeable { len } else { 1 };
        let filled = stage.fill(ring, want, false, budget);
        if filled == Filled::Enough && stage.capacity() >= len {
            match &frame {
                Frame::Held(bytes) => stage.write(0, bytes),
                Frame::Fresh(_) => stage.write(there, self.spill.get(..(len - there) as usize).unwrap_or(&[])),
            }
            stage.write(NUM_BUFFERS, &stage.count_for(len).to_le_bytes());
            stage.complete(ring, len, len - HEADER as u64);
            self.expected = want;
            return Placed::Delivered;
        }
        // One buffer is too small, or all the buffers that there can be are too few.
        if filled == Filled::Enough || stage.len() >= ring.size() {
            return dropped(ring);
        }
        self.held = Some(match frame {
            Frame::Held(bytes) => bytes,
            Frame::Fresh(_) => self.take_out(stage, there, len),
        });
        if filled == Filled::Spent { Placed::Spent } else { Placed::Waits }
    }

    /// The frame, out of the buffers it went into, to be delivered later. (Its guest could have changed it by now: it
    /// can only fool itself.)
    fn take_out(&self, stage: &Stage<'_>, there: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let (into_buffers, spilled) = bytes.split_at_mut(there as usize);
        stage.read(into_buffers);
        spilled.copy_from_slice(self.spill.get(..spilled.len()).unwrap_or(&[]));
        bytes
    }
}
