//! Durable reservations.

use std::net::Ipv4Addr;

use ipc::Code;

use super::{Answer, Ledger, check_workload, gone, unknown};
use crate::fault::{database, fault};
use crate::store::{Binding, PoolId, RefHash, Reserved};

impl Ledger {
    /// Reserves an address for a workload under a SturdyRef; the next free one if none is named.
    ///
    /// # Errors
    /// As `Pool.reserve` in the schema.
    pub fn reserve(&mut self, id: PoolId, workload: &str, address: &str, hash: &RefHash) -> Answer<()> {
        let tried = format!("reserve an address for {workload:?}");
        check_workload(&tried, workload)?;
        self.may_grow(&tried)?;
        let config = &self.pools.get(&id).ok_or_else(|| unknown(&tried))?.config;
        let named = match address {
            "" => None,
            text => {
                let address: Option<Ipv4Addr> =
                    text.parse().ok().filter(|address| config.subnet.has_host(*address) && !config.is_taken(*address));
                let why = || {
                    format!(
                        "{text:?} is not an address that a host of {} other than the gateway or the router can have",
                        config.subnet
                    )
                };
                Some(address.ok_or_else(|| {
                    fault(
                        Code::InvalidArgument,
                        &tried,
                        why(),
                        "Name such an address, or none to get the next free one",
                    )
                })?)
            }
        };
        let exists = |why: String| {
            Err(fault(Code::AlreadyExists, &tried, why, "Choose another, or end that lease or reservation first"))
        };
        if let Some(row) = self.store.reserved_for(id, workload).map_err(database(&tried))? {
            return exists(format!("{} is reserved for it", row.address));
        }
        let leased = self.store.leased_by(id, workload).map_err(database(&tried))?;
        let reserved = Reserved::Durable(*hash);
        let address = match (named, leased) {
            (Some(address), _) => match self.store.by_address(id, address).map_err(database(&tried))? {
                Some(row) if row.workload != workload => {
                    return exists(format!("{address} belongs to {}", row.workload));
                }
                Some(row) => return self.store.update(&Binding { reserved, ..row }).map_err(database(&tried)),
                None => address,
            },
            // The address that the workload has already.
            (None, Some(row)) => return self.store.update(&Binding { reserved, ..row }).map_err(database(&tried)),
            (None, None) => self.choose(id, &tried)?,
        };
        self.room(id, &tried)?;
        let row = Binding { pool: id, address, workload: workload.to_owned(), lease: None, reserved };
        self.store.insert(&row).map_err(database(&tried))?;
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.free.take(address.to_bits());
            pool.bindings = pool.bindings.saturating_add(1);
        }
        Ok(())
    }

    /// Whether a pool has a reservation with this SturdyRef.
    ///
    /// # Errors
    /// `notFound`.
    pub fn restore(&self, id: PoolId, hash: &RefHash) -> Answer<()> {
        const TRIED: &str = "restore a reservation";
        let row = self.store.by_ref(hash).map_err(database(TRIED))?;
        match row {
            Some(row) if row.pool == id => Ok(()),
            _ => {
                Err(fault(Code::NotFound, TRIED, "this pool has none with that reference", "Reserve the address again"))
            }
        }
    }

    /// The reference's hash of a workload's durable reservation.
    ///
    /// # Errors
    /// `notFound`.
    pub fn reservation(&self, id: PoolId, workload: &str) -> Answer<RefHash> {
        let tried = format!("find the reservation of {workload:?}");
        match self.store.reserved_for(id, workload).map_err(database(&tried))? {
            Some(Binding { reserved: Reserved::Durable(hash), .. }) => Ok(hash),
            found => {
                let why = match found {
                    Some(_) => "it is of the pool's configuration",
                    None => "this pool has none for that workload",
                };
                Err(fault(Code::NotFound, &tried, why, "Reserve an address for it first"))
            }
        }
    }

    /// Ends a durable reservation; a lease on the address becomes an ordinary one.
    ///
    /// # Errors
    /// `revoked` if it has ended.
    pub fn cancel(&mut self, hash: &RefHash) -> Answer<()> {
        const TRIED: &str = "cancel a reservation";
        let Some(row) = self.store.by_ref(hash).map_err(database(TRIED))? else { return Err(gone(TRIED)) };
        if row.lease.is_some() {
            return self.store.update(&Binding { reserved: Reserved::No, ..row }).map_err(database(TRIED));
        }
        self.store.delete(row.pool, row.address).map_err(database(TRIED))?;
        if let Some(pool) = self.pools.get_mut(&row.pool) {
            pool.give_back(row.address, &self.strays);
        }
        Ok(())
    }
}
