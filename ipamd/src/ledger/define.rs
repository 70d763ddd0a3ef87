//! Defining a pool, changing one that is in use, and removing one that is not.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use ipc::Code;
use schema::net::{DEFAULT_GATEWAY, DEFAULT_NETWORK, DEFAULT_POOL, DEFAULT_SUBNET};

use super::{Answer, Ledger, PAGE, Pool, all_of, unknown};
use crate::config::{Ipv6, PoolConfig, Reach};
use crate::fault::{database, fault};
use crate::store::{Binding, PoolId, Reserved};

/// The network that exists without anybody having defined it.
fn built_in() -> PoolConfig {
    let (start, end) = DEFAULT_POOL;
    PoolConfig {
        network: DEFAULT_NETWORK.into(),
        subnet: DEFAULT_SUBNET,
        gateway: DEFAULT_GATEWAY,
        router: None,
        ipv6: Ipv6::None,
        mtu: None,
        start,
        end,
        reservations: BTreeMap::new(),
        reach: Reach::Host,
        policy: None,
        uplink: None,
        isolate: false,
    }
}

impl Ledger {
    /// The pool of a network. The built-in one is defined by the first who asks for it.
    ///
    /// # Errors
    /// As `Ipam.pool` in the schema.
    pub fn find(&mut self, network: &str) -> Answer<PoolId> {
        if let Some(id) = self.by_network.get(network) {
            return Ok(*id);
        }
        let tried = format!("get the pool of network {network:?}");
        if network != DEFAULT_NETWORK {
            return Err(fault(Code::NotFound, tried, "there is none", "Define it first"));
        }
        self.define(&built_in().to_json()).map_err(|found| match found.code {
            Code::Conflict => {
                let remedy = "Use that network, or define this one with a subnet of its own";
                fault(Code::Conflict, tried, format!("of the built-in network, {}", found.why), remedy)
            }
            _ => found,
        })
    }

    /// Every pool as [`Ledger::pool`] gives it, by name of its network. Among them the built-in one, where it could be defined.
    ///
    /// # Errors
    /// None but for a defect.
    pub fn list(&self) -> Answer<Vec<(PoolConfig, String, u64)>> {
        let mut list = self.by_network.values().map(|id| self.pool(*id)).collect::<Result<Vec<_>, _>>()?;
        let fits = |config: &PoolConfig| {
            self.pools.len() < self.limits.pools
                && !self.pools.values().any(|pool| pool.config.subnet.overlaps(&config.subnet))
        };
        let built_in = built_in();
        if !self.by_network.contains_key(DEFAULT_NETWORK) && fits(&built_in) {
            list.push((built_in.clone(), built_in.to_json(), all_of(&built_in).count()));
        }
        list.sort_by(|(one, ..), (other, ..)| one.network.cmp(&other.network));
        Ok(list)
    }

    /// What [`Ledger::define`] would define, with all that it refuses refused, and nothing changed: as [`Ledger::pool`] gives it, but with all free.
    ///
    /// # Errors
    /// As `Ipam.checkPool` in the schema.
    pub fn check(&self, text: &str) -> Answer<(PoolConfig, String, u64)> {
        const TRIED: &str = "define a pool";
        let config = PoolConfig::parse(text).map_err(|e| {
            fault(Code::InvalidArgument, TRIED, format!("{} = {}: {}", e.key, e.value, e.why), e.remedy)
        })?;
        let text = config.to_json();
        let tried = format!("define the pool of network {}", config.network);
        let existing = self.by_network.get(&config.network).copied();
        let free = all_of(&config).count();
        if existing.and_then(|id| self.pools.get(&id)).is_some_and(|pool| pool.text == text) {
            return Ok((config, text, free));
        }
        let others = || self.pools.iter().filter(|(id, _)| Some(**id) != existing).map(|(_, pool)| pool);
        if let Some(other) = others().find(|pool| pool.config.subnet.overlaps(&config.subnet)) {
            let why = format!(
                "subnet = {} overlaps {} of network {}",
                config.subnet, other.config.subnet, other.config.network
            );
            return Err(fault(Code::Conflict, tried, why, "Choose a subnet that no other network has"));
        }
        if let Some((subnet, other)) = others().find_map(|pool| Some((config.ipv6.shared(pool.config.ipv6)?, pool))) {
            let why = format!("subnet6 = {subnet} is that of network {}", other.config.network);
            return Err(fault(Code::Conflict, tried, why, "Choose a subnet that no other network has"));
        }
        let used: usize = others().map(|pool| pool.text.len()).sum();
        if existing.is_none() && self.pools.len() >= self.limits.pools {
            return Err(fault(
                Code::Exhausted,
                tried,
                format!("there are {} pools already", self.pools.len()),
                "Use one of them",
            ));
        }
        if used.saturating_add(text.len()) > self.limits.config_bytes {
            let why =
                format!("the configurations of all pools would be longer than {} bytes", self.limits.config_bytes);
            return Err(fault(
                Code::Exhausted,
                tried,
                why,
                "Keep fewer reservations in them, and make the others with reserve",
            ));
        }
        if let Some(id) = existing {
            self.refit(id, &config, &tried, false)?;
        }
        Ok((config, text, free))
    }

    /// Defines a pool, or changes it.
    ///
    /// # Errors
    /// As `Ipam.definePool` in the schema.
    pub fn define(&mut self, text: &str) -> Answer<PoolId> {
        let (config, text, _) = self.check(text)?;
        let tried = format!("define the pool of network {}", config.network);
        let existing = self.by_network.get(&config.network).copied();
        if existing.and_then(|id| self.pools.get(&id)).is_some_and(|pool| pool.text == text) {
            return existing.ok_or_else(|| unknown(&tried));
        }
        self.may_grow(&tried)?;
        let id = match existing {
            Some(id) => {
                self.refit(id, &config, &tried, true)?;
                self.store.change_pool(id, &text).map_err(database(&tried))?;
                id
            }
            None => {
                let id = self.last_pool.checked_add(1).ok_or_else(|| unknown(&tried))?;
                self.store.add_pool(id, &config.network, &text).map_err(database(&tried))?;
                id
            }
        };
        for (workload, address) in &config.reservations {
            match self.store.by_address(id, *address).map_err(database(&tried))? {
                None => {
                    let row = Binding {
                        pool: id,
                        address: *address,
                        workload: workload.clone(),
                        lease: None,
                        reserved: Reserved::ByConfig,
                    };
                    self.store.insert(&row).map_err(database(&tried))?;
                }
                Some(row) if row.reserved == Reserved::No => {
                    self.store.update(&Binding { reserved: Reserved::ByConfig, ..row }).map_err(database(&tried))?;
                }
                Some(_) => {}
            }
        }
        let (mut free, mut bindings) = (all_of(&config), 0u64);
        let mut after = None;
        loop {
            let rows = self.store.page(id, after, PAGE).map_err(database(&tried))?;
            let Some(last) = rows.last() else { break };
            after = Some(last.address);
            for row in rows {
                bindings = bindings.saturating_add(1);
                free.take(row.address.to_bits());
            }
        }
        self.strays.keep_from(&mut free);
        free.search_from(self.pools.get(&id).map_or(0, |before| before.free.cursor()));
        self.last_pool = self.last_pool.max(id);
        self.by_network.insert(config.network.clone(), id);
        self.pools.insert(id, Pool { config, text, free, bindings });
        Ok(id)
    }

    /// Removes the pool of a network, and what is reserved by its configuration.
    ///
    /// # Errors
    /// As `Ipam.removePool` in the schema.
    pub fn remove(&mut self, network: &str) -> Answer<()> {
        let tried = format!("remove the pool of network {network:?}");
        let id = self.by_network.get(network).copied();
        let id = id.ok_or_else(|| fault(Code::NotFound, &tried, "there is none", "See the list of networks"))?;
        if let Some(row) = self.store.in_use(id).map_err(database(&tried))? {
            let (what, remedy) = match row.lease {
                Some(lease) if lease.grace_until.is_some() => {
                    ("kept for a while for", "Try again in 30 s, when that lease has ended")
                }
                Some(_) => ("leased to", "End that workload first"),
                None => ("reserved for", "Cancel that reservation first"),
            };
            return Err(fault(Code::WrongState, tried, format!("{} is {what} {}", row.address, row.workload), remedy));
        }
        self.store.remove_pool(id).map_err(database(&tried))?;
        self.by_network.remove(network);
        self.pools.remove(&id);
        Ok(())
    }

    /// Sees whether what a pool has fits a new configuration, and, with `apply`, ends the reservations that only the old one had.
    fn refit(&self, id: PoolId, config: &PoolConfig, tried: &str, apply: bool) -> Answer<()> {
        let owners: HashMap<&Ipv4Addr, &String> =
            config.reservations.iter().map(|(workload, address)| (address, workload)).collect();
        let mut after = None;
        loop {
            let rows = self.store.page(id, after, PAGE).map_err(database(tried))?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.address);
            for row in rows {
                let Binding { address, workload, .. } = &row;
                let conflict = |why: String, remedy: &str| Err(fault(Code::Conflict, tried, why, remedy));
                let wanted = config.reservations.get(workload);
                let keeps = wanted == Some(address);
                // A reservation by the old text, and no lease on it.
                if row.reserved == Reserved::ByConfig && row.lease.is_none() {
                    if apply && !keeps {
                        self.store.delete(id, *address).map_err(database(tried))?;
                    }
                    continue;
                }
                if let Some(other) = owners.get(address).filter(|other| **other != workload) {
                    return conflict(
                        format!("reservations.{other} = {address}: {workload} has that address"),
                        "Reserve another one, or end that lease or reservation first (a lease lives on for 30 s after its holder)",
                    );
                }
                let durable = matches!(row.reserved, Reserved::Durable(_));
                if durable && let Some(wanted) = wanted.filter(|wanted| *wanted != address) {
                    return conflict(
                        format!("reservations.{workload} = {wanted}: {address} is reserved for that workload"),
                        "Name the same address, or cancel that reservation first",
                    );
                }
                let fits = config.subnet.has_host(*address) && !config.is_taken(*address);
                let belongs = fits && (keeps || durable || config.in_range(*address));
                if (row.lease.is_some() && !belongs) || (durable && !fits) {
                    let what = if row.lease.is_some() { "leased" } else { "reserved" };
                    return conflict(
                        format!("{address}, {what} for {workload}, would fall outside"),
                        "End that lease or reservation first (a lease lives on for 30 s after its holder), or widen the pool",
                    );
                }
                if apply && row.reserved == Reserved::ByConfig && !keeps {
                    self.store.update(&Binding { reserved: Reserved::No, ..row }).map_err(database(tried))?;
                }
            }
        }
    }
}
