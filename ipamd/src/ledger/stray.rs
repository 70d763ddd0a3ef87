//! Leases that somebody has and the database does not know, since it is an older one that was put in the place of that which did: strays.
//! Their addresses are given to nobody while their lives are held.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::{Answer, Ledger};
use crate::fault::database;
use crate::policy::FreeSet;
use crate::store::LeaseId;

/// All of them, by address.
#[derive(Default)]
pub(super) struct Strays(BTreeSet<(Ipv4Addr, LeaseId)>);

impl Strays {
    /// Whether one of them has that address.
    pub fn have(&self, address: Ipv4Addr) -> bool {
        self.0.range((address, LeaseId::MIN)..=(address, LeaseId::MAX)).next().is_some()
    }

    /// Takes their addresses out of what is free.
    pub fn keep_from(&self, free: &mut FreeSet) {
        for (address, _) in &self.0 {
            free.take(address.to_bits());
        }
    }
}

impl Ledger {
    /// Goes through the lives in the state directory at the start: one of a lease that is no more is removed, as the last process was stopped
    /// before it could, unless somebody has it. How many those are.
    pub fn sweep(&mut self, found: &[(LeaseId, Ipv4Addr)]) -> usize {
        for &(lease, address) in found {
            if self.slots.contains_key(&lease) {
                continue;
            }
            if self.lives.find(lease, address) {
                self.strays.0.insert((address, lease));
                self.look_later(lease);
            } else {
                let _ = self.lives.end(lease);
            }
        }
        self.pools.values_mut().for_each(|pool| self.strays.keep_from(&mut pool.free));
        self.strays.0.len()
    }

    /// Looks at a lease that has no row; if it is a stray whose holder has gone, its address is free.
    pub(super) fn look_at_stray(&mut self, lease: LeaseId) -> Answer<()> {
        let Some(address) = self.lives.address(lease).filter(|address| self.strays.0.contains(&(*address, lease)))
        else {
            return Ok(());
        };
        if self.lives.is_held(lease) {
            self.look_later(lease);
            return Ok(());
        }
        let pool = self.pools.iter_mut().find(|(_, pool)| pool.config.in_range(address));
        let row = match &pool {
            Some((id, _)) => self.store.by_address(**id, address).map_err(database("see who has an address"))?,
            None => None,
        };
        self.strays.0.remove(&(address, lease));
        let _ = self.lives.end(lease);
        if let Some((_, pool)) = pool
            && row.is_none()
            && !pool.config.is_taken(address)
            && !self.strays.have(address)
        {
            pool.free.give(address.to_bits());
        }
        Ok(())
    }
}
