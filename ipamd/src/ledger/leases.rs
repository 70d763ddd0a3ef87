//! A lease's life: allocated, abandoned by its holder or released, ended.

use std::sync::Arc;

use ipc::Code;
use tokio::sync::OwnedSemaphorePermit;

use super::life::Holder;
use super::{Answer, Ended, GRACE, Ledger, Quota, Slot, check_workload, gone, unknown};
use crate::fault::{database, fault};
use crate::store::{Binding, LeaseId, Leased, PoolId, Reserved};

impl Ledger {
    /// Leases an address to a workload, and counts it against a quota.
    ///
    /// # Errors
    /// As `Allocator.allocate` in the schema.
    pub fn allocate(&mut self, id: PoolId, workload: &str, quota: &Quota) -> Answer<LeaseId> {
        let tried = format!("allocate an address for {workload:?}");
        check_workload(&tried, workload)?;
        self.may_grow(&tried)?;
        let reserved = self.store.reserved_for(id, workload).map_err(database(&tried))?;
        let before = self.store.leased_by(id, workload).map_err(database(&tried))?;
        if let Some(Binding { address, lease: Some(Leased { grace_until: None, id }), .. }) = &before
            && let Some(holder) = self.holder(*id)
        {
            return Err(fault(
                Code::AlreadyExists,
                tried,
                format!("it holds {address}, and {}", holder.why()),
                holder.remedy(),
            ));
        }
        if let Some(Binding { address, .. }) = reserved.as_ref().or(before.as_ref())
            && self.strays.have(*address)
        {
            let why = format!(
                "{address}, which it should get, is that of a lease that the database does not know and a process has"
            );
            return Err(fault(Code::AlreadyExists, tried, why, "End that process first, or choose another name"));
        }
        let before_id = before.as_ref().and_then(|row| row.lease).map(|lease| lease.id);
        // A lease in its grace period counts against its allocator until another workload may have the address.
        let inherits = before_id
            .and_then(|lease| self.slots.get(&lease)?.permit.as_ref())
            .is_some_and(|permit| Arc::ptr_eq(permit.semaphore(), quota));
        let permit = if inherits {
            None
        } else {
            let permit = quota.clone().try_acquire_owned();
            Some(permit.map_err(|_| {
                fault(
                    Code::Exhausted,
                    &tried,
                    "this allocator has as many leases as it may",
                    "Release one, and wait 30 s where its holder just went",
                )
            })?)
        };

        let lease = self.last_lease.checked_add(1).ok_or_else(|| unknown(&tried))?;
        let leased = Some(Leased { id: lease, grace_until: None });
        let mut moved_from = None;
        let mut taken = None;
        match (reserved, before) {
            (Some(row), Some(before)) if row.address != before.address => {
                // The workload moves to the address that was reserved for it meanwhile.
                self.store.delete(id, before.address).map_err(database(&tried))?;
                moved_from = Some(before.address);
                self.store.update(&Binding { lease: leased, ..row }).map_err(database(&tried))?;
            }
            (Some(row), _) | (None, Some(row)) => {
                self.store.update(&Binding { lease: leased, ..row }).map_err(database(&tried))?
            }
            (None, None) => {
                let address = self.choose(id, &tried)?;
                let row =
                    Binding { pool: id, address, workload: workload.to_owned(), lease: leased, reserved: Reserved::No };
                self.store.insert(&row).map_err(database(&tried))?;
                self.store.set_next(id, address.to_bits().wrapping_add(1)).map_err(database(&tried))?;
                taken = Some(address);
            }
        }

        self.last_lease = lease;
        let inherited = before_id.and_then(|old| self.forget(old));
        self.slots.insert(lease, Slot { permit: permit.or(inherited), ..Slot::default() });
        if let Some(pool) = self.pools.get_mut(&id) {
            if let Some(address) = moved_from {
                pool.give_back(address, &self.strays);
            }
            if let Some(address) = taken {
                pool.free.hand_out(address.to_bits());
                pool.bindings = pool.bindings.saturating_add(1);
            }
        }
        Ok(lease)
    }

    /// A hold on a lease has ended. Unless somebody else holds it, its grace period begins. Nothing happens if the lease has ended.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn abandon(&mut self, lease: LeaseId) -> Answer<()> {
        match self.holder(lease) {
            Some(Holder::Hold) => Ok(()),
            Some(Holder::Life) => {
                self.watch(lease);
                Ok(())
            }
            None => self.begin_grace(lease),
        }
    }

    pub(super) fn begin_grace(&mut self, lease: LeaseId) -> Answer<()> {
        const TRIED: &str = "begin a grace period";
        if !self.store.begin_grace(lease, self.now.grace_end()).map_err(database(TRIED))? {
            return Ok(());
        }
        let at = self.now.instant + GRACE;
        self.slots.entry(lease).or_default().due = Some(at);
        self.due.insert((at, lease));
        Ok(())
    }

    /// Ends a lease at once.
    ///
    /// # Errors
    /// `revoked` if it has ended.
    pub fn release(&mut self, lease: LeaseId) -> Answer<()> {
        if self.end(lease, "release a lease")? { Ok(()) } else { Err(gone("release a lease")) }
    }

    /// Ends a lease. False if there was none.
    pub(super) fn end(&mut self, lease: LeaseId, tried: &str) -> Answer<bool> {
        let row = self.store.by_lease(lease).map_err(database(tried))?;
        match &row {
            None => {}
            Some(row) if row.reserved == Reserved::No => {
                self.store.delete(row.pool, row.address).map_err(database(tried))?
            }
            Some(row) => self.store.update(&Binding { lease: None, ..row.clone() }).map_err(database(tried))?,
        }
        self.forget(lease);
        let Some(row) = row else { return Ok(false) };
        if row.reserved == Reserved::No
            && let Some(pool) = self.pools.get_mut(&row.pool)
        {
            pool.give_back(row.address, &self.strays);
        }
        Ok(true)
    }

    fn forget(&mut self, lease: LeaseId) -> Option<OwnedSemaphorePermit> {
        let slot = self.slots.remove(&lease)?;
        let quota = slot.permit.as_ref().map(|permit| permit.semaphore().clone());
        self.ended.push(Ended { lease, holds: slot.holds, quota });
        if let Some(at) = slot.due {
            self.due.remove(&(at, lease));
        }
        slot.permit
    }
}
