//! One split virtqueue (Virtio 1.2, section 2.7) as its worker sees it: take a chain, complete it, notify the driver.
//!
//! Everything in the ring and in its descriptors was written by the guest and may change at any time. A descriptor is
//! read once, into private memory, and checked as a whole before a chain is handed on; a malformed chain is counted and
//! given back; a ring whose indices make no sense is stopped, which harms nobody but the guest that wrote them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Le64, Permissions};

use crate::error::BoxError;
use crate::memory::Memory;
use crate::segments::{MAX_SEGMENTS, Segments};
use crate::stats::RingStats;

/// The most entries a ring may have.
pub const MAX_RING_SIZE: u16 = 1024;

/// A chain of descriptors, checked: device-readable parts first, then device-writable ones, all of it mapped memory.
#[derive(Debug)]
pub struct Chain<'m> {
    memory: &'m Memory,
    head: u16,
    /// What the driver wrote for the device.
    pub readable: Segments<'m>,
    /// Where the device may write.
    pub writable: Segments<'m>,
}

impl<'m> Chain<'m> {
    /// A chain to [`Ring::pop`] into. It lives for one wake-up, so that a new memory table is never missed.
    pub fn new(memory: &'m Memory) -> Chain<'m> {
        Chain { memory, head: 0, readable: Segments::default(), writable: Segments::default() }
    }

    /// Forgets the parts; the head stays.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// The index of the chain's first descriptor, which names it in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// What [`Ring::pop`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popped {
    /// The chain was filled in.
    Chain,
    /// A malformed chain was taken: its head is there to [`Ring::reject`] it, its parts are empty. It counts as work done.
    Malformed,
    /// There is nothing more, or the ring is broken.
    Empty,
}

/// What a ring needs to run; addresses are guest physical.
#[derive(Debug)]
pub(crate) struct Setup {
    pub memory: Arc<Memory>,
    pub features: u64,
    pub size: u16,
    pub descriptors: GuestAddress,
    pub available: GuestAddress,
    pub used: GuestAddress,
    pub base: u16,
    pub kick: Arc<OwnedFd>,
    pub call: Option<Arc<OwnedFd>>,
    pub error: Option<Arc<OwnedFd>>,
    pub stats: Arc<RingStats>,
}

/// A running ring. Its worker alone owns it.
#[derive(Debug)]
pub struct Ring {
    setup: Setup,
    queue: Queue,
    /// The used index up to which the driver was told, or did not want to be; none before the first time.
    signalled: Option<u16>,
    broken: bool,
}

impl Ring {
    /// Fails with the reason if the ring does not lie wholly in mapped memory.
    pub(crate) fn new(setup: Setup) -> Result<Ring, &'static str> {
        let mut queue = Queue::new(MAX_RING_SIZE).map_err(|_| "internal limit")?;
        queue
            .try_set_size(setup.size)
            .and_then(|()| queue.try_set_desc_table_address(setup.descriptors))
            .and_then(|()| queue.try_set_avail_ring_address(setup.available))
            .and_then(|()| queue.try_set_used_ring_address(setup.used))
            .map_err(|_| "its size or the alignment of its parts is against Virtio 1.2, 2.7")?;
        queue.set_event_idx(setup.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        let guest = setup.memory.guest();
        if !queue.is_valid(guest) {
            return Err("it does not lie in the guest's memory");
        }
        let used = queue.used_idx(guest, Ordering::Acquire).map_err(|_| "its used index cannot be read")?;
        queue.set_next_used(used.0);
        queue.set_next_avail(setup.base);
        setup.stats.started.store(true, Ordering::Relaxed);
        Ok(Ring { setup, queue, signalled: None, broken: false })
    }

    /// Feature bits that the driver took.
    pub fn features(&self) -> u64 {
        self.setup.features
    }

    /// The memory this ring's chains point into.
    pub fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.setup.memory)
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.setup.size
    }

    /// What this ring has done so far.
    pub fn stats(&self) -> &RingStats {
        &self.setup.stats
    }

    pub(crate) fn kick(&self) -> Option<&OwnedFd> {
        (!self.broken).then_some(&*self.setup.kick)
    }

    /// The available index to go on from, should the ring be started again.
    pub(crate) fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Takes the next available chain.
    pub fn pop(&mut self, chain: &mut Chain<'_>) -> Popped {
        if self.broken {
            return Popped::Empty;
        }
        let guest = chain.memory.guest();
        let mut descriptors = match self.queue.iter(guest).map(|mut heads| heads.next()) {
            Ok(Some(descriptors)) => descriptors,
            Ok(None) => return Popped::Empty,
            Err(_) => {
                self.mark_broken();
                return Popped::Empty;
            }
        };
        chain.head = descriptors.head_index();
        chain.clear();
        // The iterator just ends where a link leads out of the table, around in a circle, or to what cannot be read:
        // then the last descriptor it gave says that there is a next one.
        let mut unfinished = true;
        let mut sound = true;
        for descriptor in &mut descriptors {
            unfinished = descriptor.has_next();
            let (access, part) = if descriptor.is_write_only() {
                (Permissions::Write, &mut chain.writable)
            } else if chain.writable.is_empty() {
                (Permissions::Read, &mut chain.readable)
            } else {
                sound = false; // 2.7.4.2: readable parts come before writable ones
                break;
            };
            let len = descriptor.len() as usize; // u32 into 64 bits
            let slices = guest.get_slices(descriptor.addr(), len, access);
            let Ok(slices) = slices else {
                sound = false;
                break;
            };
            for slice in slices {
                match slice {
                    Ok(slice) => part.push(slice),
                    Err(_) => sound = false,
                }
            }
            if !sound || chain.readable.count() + chain.writable.count() > MAX_SEGMENTS {
                sound = false;
                break;
            }
        }
        if sound && !unfinished {
            return Popped::Chain;
        }
        chain.clear();
        Popped::Malformed
    }

    /// Puts the last `chains` popped ones back, newest first, as if they had not been taken.
    pub fn put_back(&mut self, chains: u16) {
        let next = self.queue.next_avail().wrapping_sub(chains);
        self.queue.set_next_avail(next);
    }

    /// Gives a malformed chain back, unserved.
    pub fn reject(&mut self, head: u16) {
        self.complete(head, 0, 0, false);
    }

    /// Gives a chain back to the driver: `written` bytes of its writable part were filled; `payload` and `ok` are for the
    /// statistics.
    pub fn complete(&mut self, head: u16, written: u32, payload: u64, ok: bool) {
        self.complete_all(&[(head, written)], payload, ok);
    }

    /// Gives chains back that belong together: the driver sees all of them or none. `used` has heads, and bytes written.
    pub fn complete_all(&mut self, used: &[(u16, u32)], payload: u64, ok: bool) {
        let stats = &self.setup.stats;
        RingStats::add(&stats.chains, used.len() as u64);
        RingStats::add(&stats.bytes, payload);
        if !ok {
            RingStats::add(&stats.errors, 1);
        }
        if !self.broken && self.publish(used).is_none() {
            self.mark_broken();
        }
    }

    /// Writes used entries (2.7.8) and then, at once, the index that makes them the driver's. `None` for a head that is no
    /// descriptor.
    fn publish(&mut self, used: &[(u16, u32)]) -> Option<()> {
        let guest = self.setup.memory.guest();
        let mut next = self.queue.next_used();
        for (head, written) in used {
            if *head >= self.setup.size {
                return None;
            }
            let entry = u64::from(*head) | u64::from(*written) << 32;
            let slot = u64::from(next & (self.setup.size - 1)); // a power of two
            guest.write_obj(Le64::from(entry), self.setup.used.checked_add(4 + 8 * slot)?).ok()?;
            next = next.wrapping_add(1);
        }
        guest.store(next.to_le(), self.setup.used.checked_add(2)?, Ordering::Release).ok()?;
        self.queue.set_next_used(next);
        Some(())
    }

    /// Notifies the driver of what was completed, if it wants to be (2.7.7).
    ///
    /// # Errors
    /// Only if the frontend's call descriptor does not take the event.
    pub fn notify(&mut self) -> Result<(), BoxError> {
        let new = self.queue.next_used();
        if self.broken || self.signalled == Some(new) {
            return Ok(());
        }
        let Some(wanted) = self.wants_call(new) else {
            self.mark_broken();
            return Ok(());
        };
        self.signalled = Some(new);
        match &self.setup.call {
            Some(call) if wanted => crate::event::signal(call)
                .map_err(|error| format!("Cannot write to a ring's call eventfd: {error}").into()),
            _ => Ok(()),
        }
    }

    /// Whether the driver asked to be told of the entries since the last time it was asked.
    fn wants_call(&self, new: u16) -> Option<bool> {
        let guest = self.setup.memory.guest();
        // The driver writes its wish, then looks at the used index; here it is the other way round.
        fence(Ordering::SeqCst);
        let load = |offset: u64| {
            let at = self.setup.available.checked_add(offset)?;
            guest.load::<u16>(at, Ordering::Relaxed).map(u16::from_le).ok()
        };
        if !self.queue.event_idx_enabled() {
            return Some(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = load(4 + 2 * u64::from(self.setup.size))?;
        // The first time after a start nobody knows what the driver has seen.
        let old = self.signalled.unwrap_or_else(|| new.wrapping_sub(u16::MAX));
        Some(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Asks the driver not to kick while the worker is at the ring anyway.
    pub fn disable_kicks(&mut self) {
        if !self.broken && self.queue.disable_notification(self.setup.memory.guest()).is_err() {
            self.mark_broken();
        }
    }

    /// Asks the driver to kick for the next chain; true if there is one already, so that no kick will come for it.
    pub fn enable_kicks(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match self.queue.enable_notification(self.setup.memory.guest()) {
            Ok(more) => more,
            Err(_) => {
                self.mark_broken();
                false
            }
        }
    }

    /// Stops a ring whose driver broke it, and says so on the error descriptor, as the protocol wants it.
    fn mark_broken(&mut self) {
        if self.broken {
            return;
        }
        self.broken = true;
        RingStats::add(&self.setup.stats.errors, 1);
        self.setup.stats.started.store(false, Ordering::Relaxed);
        if let Some(error) = &self.setup.error {
            // Nobody is obliged to listen.
            let _ = crate::event::signal(error);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.setup.stats.started.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;

    const DESC: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;

    fn event() -> Arc<OwnedFd> {
        Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap())
    }

    fn is_signalled(event: &OwnedFd) -> bool {
        rustix::io::read(event, &mut [0u8; 8]).is_ok()
    }

    /// A ring of four, at a given index.
    fn ring(memory: &Arc<Memory>, event_idx: bool, base: u16) -> Ring {
        store(memory, USED + 2, base);
        store(memory, AVAIL + 2, base);
        let setup = Setup {
            memory: Arc::clone(memory),
            features: if event_idx { 1 << VIRTIO_RING_F_EVENT_IDX } else { 0 },
            size: 4,
            descriptors: GuestAddress(DESC),
            available: GuestAddress(AVAIL),
            used: GuestAddress(USED),
            base,
            kick: event(),
            call: Some(event()),
            error: Some(event()),
            stats: Arc::default(),
        };
        Ring::new(setup).unwrap()
    }

    fn store(memory: &Memory, at: u64, value: u16) {
        memory.guest().store(value, GuestAddress(at), Ordering::SeqCst).unwrap();
    }

    fn load(memory: &Memory, at: u64) -> u16 {
        memory.guest().load(GuestAddress(at), Ordering::SeqCst).unwrap()
    }

    fn used(memory: &Memory, slot: u64) -> (u32, u32) {
        let entry: u64 = memory.guest().read_obj(GuestAddress(USED + 4 + 8 * slot)).unwrap();
        (entry as u32, (entry >> 32) as u32)
    }

    #[test]
    fn chains_that_belong_together_are_published_over_the_wrap_of_the_index() {
        let memory = Arc::new(crate::testing::memory());
        let mut ring = ring(&memory, false, 0xfffe);
        ring.complete_all(&[(3, 10), (1, 20), (2, 30)], 60, true);
        assert_eq!(load(&memory, USED + 2), 1);
        assert_eq!([used(&memory, 2), used(&memory, 3), used(&memory, 0)], [(3, 10), (1, 20), (2, 30)]);
        assert_eq!(ring.stats().chains.load(Ordering::Relaxed), 3);
        assert_eq!(ring.stats().bytes.load(Ordering::Relaxed), 60);
    }

    #[test]
    fn a_head_outside_the_table_publishes_none_of_its_company() {
        let memory = Arc::new(crate::testing::memory());
        let mut ring = ring(&memory, false, 0);
        ring.complete_all(&[(3, 10), (4, 20)], 0, true);
        assert_eq!(load(&memory, USED + 2), 0);
        assert!(ring.kick().is_none());
        assert!(is_signalled(ring.setup.error.as_ref().unwrap()));
        // Broken for good: nothing is popped, published or notified.
        store(&memory, AVAIL + 2, 1);
        assert_eq!(ring.pop(&mut Chain::new(&memory)), Popped::Empty);
        ring.complete(1, 0, 0, true);
        ring.notify().unwrap();
        assert_eq!(load(&memory, USED + 2), 0);
    }

    #[test]
    fn the_driver_is_called_when_its_event_index_lies_among_what_is_new() {
        let memory = Arc::new(crate::testing::memory());
        for base in [0u16, 0xfffe] {
            let mut ring = ring(&memory, true, base);
            let call = Arc::clone(ring.setup.call.as_ref().unwrap());
            let mut step = |event: u16, completions: u16| {
                store(&memory, AVAIL + 4 + 8, base.wrapping_add(event));
                for _ in 0..completions {
                    ring.complete(0, 0, 0, true);
                }
                ring.notify().unwrap();
                is_signalled(&call)
            };
            assert!(step(0, 1)); // 0 to 1: passes the event
            assert!(!step(0, 1)); // 1 to 2: it lies behind
            assert!(!step(3, 1)); // 2 to 3: it lies ahead
            assert!(step(4, 2)); // 3 to 5: passes it
            assert!(!step(4, 0)); // nothing is new
        }
    }

    #[test]
    fn without_event_index_the_available_ring_s_flag_suppresses_calls() {
        let memory = Arc::new(crate::testing::memory());
        let mut ring = ring(&memory, false, 0);
        let call = Arc::clone(ring.setup.call.as_ref().unwrap());
        for (flag, expected) in [(0, true), (1, false), (0, true)] {
            store(&memory, AVAIL, flag);
            ring.complete(0, 0, 0, true);
            ring.notify().unwrap();
            assert_eq!(is_signalled(&call), expected);
        }
    }

    #[test]
    fn chains_that_are_put_back_are_popped_again() {
        let memory = Arc::new(crate::testing::memory());
        let mut ring = ring(&memory, false, 0xffff);
        for slot in 0..4u64 {
            store(&memory, AVAIL + 4 + 2 * slot, slot as u16);
        }
        // A one-byte writable descriptor each.
        for index in 0..4u64 {
            let (address, rest) = (0x8000 + index, 1u64 | 2 << 32);
            memory.guest().write_obj(address, GuestAddress(DESC + 16 * index)).unwrap();
            memory.guest().write_obj(rest, GuestAddress(DESC + 16 * index + 8)).unwrap();
        }
        store(&memory, AVAIL + 2, 2); // three of them
        let mut chain = Chain::new(&memory);
        let mut heads = |ring: &mut Ring| {
            let mut heads = Vec::new();
            while ring.pop(&mut chain) == Popped::Chain {
                assert_eq!((chain.readable.len(), chain.writable.len()), (0, 1));
                heads.push(chain.head());
            }
            heads
        };
        assert_eq!(heads(&mut ring), [3, 0, 1]);
        ring.put_back(2);
        assert_eq!(ring.base(), 0);
        assert_eq!(heads(&mut ring), [0, 1]);
        assert_eq!(ring.base(), 2);
    }
}
