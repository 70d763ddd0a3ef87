//! Who holds a lease: capabilities by their holds, and whoever has its life. Leases that only a life holds are looked at from time to time.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::Code;

use super::{Answer, Ledger, gone, unknown};
use crate::fault::{database, fault, file_system};
use crate::store::{Binding, LeaseId, Leased, PoolId};

/// How often each lease that only its life holds is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many of them are looked at in one transaction, 5 us each,
pub(super) const LOOK_AT_ONCE: usize = 256;
/// and how long is rested where more are due: a hundred thousand are gone through in 20 s, at a tenth of a CPU.
const REST: Duration = Duration::from_millis(50);

/// Holds a lease as long as it lives. All on one lease are the same to it.
#[derive(Debug)]
pub struct Hold {
    /// Which.
    pub lease: LeaseId,
    _alive: Arc<()>,
}

/// Who keeps a lease.
pub(super) enum Holder {
    Hold,
    Life,
}

impl Holder {
    pub fn why(&self) -> &'static str {
        match self {
            Holder::Hold => "somebody holds that lease",
            Holder::Life => "a process of it still has that lease's life",
        }
    }

    pub fn remedy(&self) -> &'static str {
        match self {
            Holder::Hold => "Release that lease first, or choose another name",
            Holder::Life => "End that process first, or choose another name",
        }
    }
}

/// The leases that are looked at, by when: each goes to the end as it was looked at.
pub(super) struct Watch {
    queue: VecDeque<(Instant, LeaseId)>,
    not_before: Instant,
}

impl Watch {
    pub fn new(now: Instant) -> Watch {
        Watch { queue: VecDeque::new(), not_before: now }
    }

    /// When to look next.
    pub fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| self.not_before.max(*at))
    }
}

impl Ledger {
    /// A hold on a lease, for a capability on it.
    pub fn hold(&mut self, lease: LeaseId) -> Hold {
        let slot = self.slots.entry(lease).or_default();
        let alive = slot.holds.upgrade().unwrap_or_default();
        slot.holds = Arc::downgrade(&alive);
        Hold { lease, _alive: alive }
    }

    /// Makes a lease's life.
    ///
    /// # Errors
    /// As `Lease.life` in the schema.
    pub fn life(&mut self, lease: LeaseId) -> Answer<OwnedFd> {
        const TRIED: &str = "make the life of a lease";
        let row = self.store.by_lease(lease).map_err(database(TRIED))?.ok_or_else(|| gone(TRIED))?;
        self.lives.make(lease, row.address).map_err(file_system(TRIED))
    }

    /// A hold on the lease of a pool whose life this is.
    ///
    /// # Errors
    /// As `Pool.resume` in the schema.
    pub fn resume(&mut self, id: PoolId, life: &OwnedFd) -> Answer<Hold> {
        const TRIED: &str = "take a lease back";
        self.pools.get(&id).ok_or_else(|| unknown(TRIED))?;
        let row = match self.lives.lease_of(life) {
            Some(lease) => self.store.by_lease(lease).map_err(database(TRIED))?.filter(|row| row.pool == id),
            None => None,
        };
        let Some((row, Leased { id: lease, grace_until })) = row.and_then(|row| row.lease.map(|lease| (row, lease)))
        else {
            let why = "the descriptor is not the life of a lease of this pool, or has lost its lock";
            return Err(fault(Code::NotFound, TRIED, why, "Allocate an address"));
        };
        if grace_until.is_some() {
            let held = Some(Leased { id: lease, grace_until: None });
            self.store.update(&Binding { lease: held, ..row }).map_err(database(TRIED))?;
            let slot = self.slots.entry(lease).or_default();
            if let Some(at) = slot.due.take() {
                self.due.remove(&(at, lease));
            }
        }
        Ok(self.hold(lease))
    }

    /// Who keeps a lease that is not in its grace period.
    pub(super) fn holder(&self, lease: LeaseId) -> Option<Holder> {
        if self.slots.get(&lease).is_some_and(|slot| slot.holds.strong_count() > 0) {
            Some(Holder::Hold)
        } else {
            self.lives.is_held(lease).then_some(Holder::Life)
        }
    }

    /// From now on a lease is looked at.
    pub(super) fn watch(&mut self, lease: LeaseId) {
        if let Some(slot) = self.slots.get_mut(&lease)
            && !std::mem::replace(&mut slot.watched, true)
        {
            self.look_later(lease);
        }
    }

    pub(super) fn look_later(&mut self, lease: LeaseId) {
        self.watch.queue.push_back((self.now.instant + LOOK, lease));
    }

    /// Every lease that nobody but its life can hold.
    pub(super) fn watch_what_lives_on(&mut self) {
        let alone = self
            .slots
            .iter()
            .filter(|(lease, slot)| slot.due.is_none() && slot.holds.strong_count() == 0 && self.lives.has(**lease));
        for lease in alone.map(|(lease, _)| *lease).collect::<Vec<_>>() {
            self.watch(lease);
        }
    }

    /// Begins the grace periods of leases whose lives nobody has any more, a bounded number of looks at a time.
    pub(super) fn look_at_what_lives_on(&mut self) -> Answer<()> {
        let now = self.now.instant;
        if self.watch.not_before > now {
            return Ok(());
        }
        for _ in 0..LOOK_AT_ONCE {
            let Some((_, lease)) = self.watch.queue.pop_front_if(|(at, _)| *at <= now) else { return Ok(()) };
            // It may have ended meanwhile, or be held again.
            let Some(slot) = self.slots.get_mut(&lease) else {
                self.look_at_stray(lease)?;
                continue;
            };
            slot.watched = false;
            if slot.due.is_some() {
                continue;
            }
            self.abandon(lease)?;
        }
        self.watch.not_before = now + REST;
        Ok(())
    }
}
