//! Receive buffers that were taken from the ring, in order, and wait for frames.
//!
//! They are given back to the ring at the end of each wake-up: between wake-ups nothing points into the guest's memory.

use std::collections::VecDeque;

use device::MAX_SEGMENTS;
use device::memory::Memory;
use device::{Chain, IoVecs, Popped, Ring};

use crate::tap::HEADER;

/// What [`Stage::fill`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// There is as much room as was asked for.
    Enough,
    /// The ring has no more, or one list takes no more.
    Short,
    /// The budget of chains is used up.
    Spent,
}

/// Buffers in the order in which they were taken. One that cannot take a frame (malformed, or too small for a header)
/// stays in its place as a dud, and is given back when its turn comes.
pub struct Stage<'m> {
    memory: &'m Memory,
    taken: VecDeque<Chain<'m>>,
    spare: Vec<Chain<'m>>,
    capacity: u64,
    segments: usize,
}

fn is_dud(chain: &Chain<'_>) -> bool {
    chain.writable.is_empty()
}

impl<'m> Stage<'m> {
    pub fn new(memory: &'m Memory) -> Stage<'m> {
        Stage { memory, taken: VecDeque::new(), spare: Vec::new(), capacity: 0, segments: 0 }
    }

    /// Bytes that frames could go into.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Chains taken, duds included.
    pub fn len(&self) -> u16 {
        u16::try_from(self.taken.len()).unwrap_or(u16::MAX)
    }

    /// Takes buffers until there is room for `want` bytes. With `one_list`, no more pieces than one `readv` takes.
    /// `budget` goes down by one a chain.
    pub fn fill(&mut self, ring: &mut Ring, want: u64, one_list: bool, budget: &mut usize) -> Filled {
        while self.capacity < want {
            // A driver that makes more available than the ring has is not followed.
            if self.len() >= ring.size() {
                return Filled::Short;
            }
            let Some(left) = budget.checked_sub(1) else {
                return Filled::Spent;
            };
            let mut chain = self.spare.pop().unwrap_or_else(|| Chain::new(self.memory));
            if ring.pop(&mut chain) == Popped::Empty {
                self.spare.push(chain);
                return Filled::Short;
            }
            *budget = left;
            if !chain.readable.is_empty() || chain.writable.len() < HEADER as u64 {
                chain.clear(); // a dud
                if self.taken.is_empty() {
                    ring.reject(chain.head());
                    self.spare.push(chain);
                } else {
                    self.taken.push_back(chain);
                }
                continue;
            }
            if one_list && self.segments + chain.writable.count() > MAX_SEGMENTS {
                ring.put_back(1);
                self.spare.push(chain);
                return Filled::Short;
            }
            self.capacity += chain.writable.len();
            self.segments += chain.writable.count();
            self.taken.push_back(chain);
        }
        Filled::Enough
    }

    fn buffers(&self) -> impl Iterator<Item = &Chain<'m>> {
        self.taken.iter().filter(|chain| !is_dud(chain))
    }

    /// The room, as a list for the kernel.
    pub fn list(&self, into: &mut IoVecs<'m>) {
        for chain in self.buffers() {
            into.push(&chain.writable, 0, chain.writable.len());
        }
    }

    /// Copies into the room from `offset` on.
    pub fn write(&self, mut offset: u64, mut from: &[u8]) {
        for chain in self.buffers() {
            let len = chain.writable.len();
            if offset >= len {
                offset -= len;
                continue;
            }
            let done = chain.writable.write(offset, from);
            from = from.get(done..).unwrap_or(&[]);
            offset = 0;
        }
    }

    /// Copies out of the room, from its start.
    pub fn read(&self, mut to: &mut [u8]) {
        for chain in self.buffers() {
            let done = chain.writable.read(0, to);
            to = to.get_mut(done..).unwrap_or(&mut []);
        }
    }

    /// How many buffers a frame of `len` bytes takes.
    pub fn count_for(&self, len: u64) -> u16 {
        let mut left = len;
        let taking = self.buffers().take_while(|chain| {
            let takes = left > 0;
            left = left.saturating_sub(chain.writable.len());
            takes
        });
        u16::try_from(taking.count()).unwrap_or(u16::MAX)
    }

    /// Gives the buffers of a frame of `len` bytes to the driver, all at once, and the duds before them.
    pub fn complete(&mut self, ring: &mut Ring, len: u64, payload: u64) {
        let mut left = len;
        let mut used = Vec::new();
        while left > 0 {
            let Some(chain) = self.taken.pop_front() else { break };
            if is_dud(&chain) {
                // Its place in the used ring is as good as any.
                ring.reject(chain.head());
            } else {
                let room = chain.writable.len();
                let bytes = left.min(room);
                left -= bytes;
                self.capacity -= room;
                self.segments -= chain.writable.count();
                used.push((chain.head(), u32::try_from(bytes).unwrap_or(u32::MAX)));
            }
            self.spare.push(chain);
        }
        ring.complete_all(&used, payload, true);
        self.drop_leading_duds(ring);
    }

    fn drop_leading_duds(&mut self, ring: &mut Ring) {
        while self.taken.front().is_some_and(is_dud) {
            if let Some(chain) = self.taken.pop_front() {
                ring.reject(chain.head());
                self.spare.push(chain);
            }
        }
    }

    /// Puts everything back into the ring, as if it had not been taken.
    pub fn put_back(self, ring: &mut Ring) {
        ring.put_back(self.len());
    }
}
