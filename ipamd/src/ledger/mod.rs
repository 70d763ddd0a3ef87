//! The rules of pools, leases and reservations, over the store (what is on disk) and the policy (which address is next). Runs inside a
//! transaction that somebody else opens and commits. Sees no client and no secret.
//!
//! What is in memory here follows from the database, but for the quotas that leases count against. Each operation touches memory last,
//! when nothing can fail any more: one that fails leaves memory as it was, and its writes to be rolled back. After a failed commit,
//! [`Ledger::load`] makes memory again.
//!
//! A database may be older than what runs: one that was restored. What a life says that somebody has, and the database does not know, is a
//! stray, and its address is given to nobody.
//!
//! Who holds a lease is never concluded from a message, which may come late, twice or not at all: it is asked of the [`Hold`]s that live,
//! and of the lease's life.

mod define;
mod leases;
mod life;
mod reservations;
mod stray;

pub use life::Hold;
use stray::Strays;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ipc::{Code, Fault};
use schema::names;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::PoolConfig;
use crate::fault::{database, fault, full};
use crate::lives::Lives;
use crate::policy::FreeSet;
use crate::reserve::Reserve;
use crate::store::{Binding, LeaseId, PoolId, RefHash, Store};

/// How long an address is kept for a workload after its holder has gone.
pub const GRACE: Duration = Duration::from_secs(schema::addresses_capnp::GRACE_SECONDS as u64);
/// The most entries that `leases` gives at one time.
pub const PAGE: u32 = schema::addresses_capnp::MAX_LISTED;
/// The most leases whose grace period one transaction ends; the next one goes on.
const EXPIRE_AT_ONCE: usize = 256;

/// What is bounded for the sake of memory, and of the size of answers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Pools.
    pub pools: usize,
    /// Bytes of all pools' configuration texts together: `list` carries them in one message of 512 KiB.
    pub config_bytes: usize,
    /// Addresses of one pool that are leased or reserved.
    pub bindings: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { pools: schema::addresses_capnp::MAX_POOLS as usize, config_bytes: 384 * 1024, bindings: 1 << 20 }
    }
}

/// A moment, on the clock that only moves forward and on the one that goes on while the process does not run.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For periods within this process's life.
    pub instant: Instant,
    /// Milliseconds since the Unix epoch: what is stored.
    pub wall: i64,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Now {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Now { instant: Instant::now(), wall: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX) }
    }

    /// When a grace period that begins now ends, on the wall clock.
    fn grace_end(&self) -> i64 {
        self.wall.saturating_add(GRACE.as_millis() as i64)
    }

    /// When a stored grace period ends. A wall clock that was set meanwhile can neither prolong it beyond its full length nor make it
    /// end before now.
    fn due(&self, grace_until: i64) -> Instant {
        let left = grace_until.saturating_sub(self.wall).clamp(0, GRACE.as_millis() as i64);
        self.instant + Duration::from_millis(left.unsigned_abs())
    }
}

/// What leases of one allocator count against, grace periods included: an address counts until another workload may have it.
pub type Quota = Arc<Semaphore>;

/// What is known of a binding, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The row.
    pub binding: Binding,
    /// The pool's network.
    pub network: String,
    /// Prefix length of its subnet.
    pub prefix: u8,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
}

struct Pool {
    config: PoolConfig,
    text: String,
    free: FreeSet,
    bindings: u64,
}

impl Pool {
    /// An address has no row any more.
    fn give_back(&mut self, address: Ipv4Addr, strays: &Strays) {
        self.bindings = self.bindings.saturating_sub(1);
        if self.config.in_range(address) && !strays.have(address) {
            self.free.give(address.to_bits());
        }
    }
}

/// What a lease has in memory.
#[derive(Default)]
struct Slot {
    /// When its grace period ends; `None` while it is held.
    due: Option<Instant>,
    permit: Option<OwnedSemaphorePermit>,
    /// Its holds.
    holds: Weak<()>,
    /// Whether it is among those that are looked at.
    watched: bool,
}

/// A lease that has ended, unless the transaction fails.
struct Ended {
    lease: LeaseId,
    holds: Weak<()>,
    quota: Option<Quota>,
}

/// Pools, leases and reservations.
pub struct Ledger {
    store: Store,
    limits: Limits,
    now: Now,
    pools: HashMap<PoolId, Pool>,
    by_network: HashMap<String, PoolId>,
    slots: HashMap<LeaseId, Slot>,
    due: BTreeSet<(Instant, LeaseId)>,
    last_lease: LeaseId,
    last_pool: PoolId,
    lives: Lives,
    strays: Strays,
    watch: life::Watch,
    /// What has ended in this transaction.
    ended: Vec<Ended>,
    reserve: Reserve,
}

type Answer<T> = Result<T, Fault>;

impl Ledger {
    /// Takes over a store whose last process has died: every lease that was held gets its full grace period from now, but for those whose
    /// lives somebody has.
    ///
    /// # Errors
    /// Where the store cannot be read or written, or holds what this program would not have put there.
    pub fn open(store: Store, limits: Limits, now: Now) -> Answer<Ledger> {
        let tried = "take over the leases of the last run";
        let mut lives = Lives::new(store.folder().into());
        // Before anything is written: what cannot be taken over is left as it is.
        pools_of(&store)?;
        let mut gone = Vec::new();
        store
            .each_binding(|row| {
                if let Some(lease) = row.lease
                    && !lives.find(lease.id, row.address)
                    && lease.grace_until.is_none()
                {
                    gone.push(lease.id);
                }
            })
            .map_err(database(tried))?;
        let mut reserve = Reserve::find(store.folder());
        if store.begin_graces(&gone, now.grace_end()).is_err() {
            reserve.give_up(now.instant);
            store.begin_graces(&gone, now.grace_end()).map_err(database(tried))?;
        }
        let mut ledger = Ledger {
            store,
            limits,
            now,
            pools: HashMap::new(),
            by_network: HashMap::new(),
            slots: HashMap::new(),
            due: BTreeSet::new(),
            // Microseconds: no process allocates so fast that the next one's clock is behind.
            last_lease: now.wall.saturating_mul(1000),
            last_pool: 0,
            lives,
            strays: Strays::default(),
            watch: life::Watch::new(now.instant),
            ended: Vec::new(),
            reserve,
        };
        ledger.load()?;
        if !ledger.pools.is_empty() && !ledger.reserve.is_whole() {
            ledger.regain_space();
        }
        Ok(ledger)
    }

    /// Makes memory from the database, outside a transaction. Quotas and holds stay with the leases that are still there.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn load(&mut self) -> Answer<()> {
        const TRIED: &str = "read the database";
        let mut pools = pools_of(&self.store)?;
        let by_network = pools.iter().map(|(id, pool)| (pool.config.network.clone(), *id)).collect();
        self.last_pool = pools.keys().copied().fold(self.last_pool, PoolId::max);
        let mut old = std::mem::take(&mut self.slots);
        let (slots, due, now) = (&mut self.slots, &mut self.due, self.now);
        due.clear();
        let mut ended: HashMap<_, _> = self.ended.drain(..).map(|ended| (ended.lease, ended)).collect();
        self.store
            .each_binding(|row| {
                if let Some(pool) = pools.get_mut(&row.pool) {
                    pool.bindings = pool.bindings.saturating_add(1);
                    pool.free.take(row.address.to_bits());
                }
                if let Some(lease) = row.lease {
                    let slot = slots.entry(lease.id).or_insert(old.remove(&lease.id).unwrap_or_default());
                    slot.due = lease.grace_until.map(|until| now.due(until));
                    due.extend(slot.due.map(|at| (at, lease.id)));
                }
            })
            .map_err(database(TRIED))?;
        pools.values_mut().for_each(|pool| self.strays.keep_from(&mut pool.free));
        // Leases that were not to be are counted no more, and those that were to end are counted again.
        drop(old);
        ended.retain(|lease, _| slots.contains_key(lease));
        for Ended { lease, holds, quota } in ended.into_values() {
            let permit = quota.and_then(|quota| quota.try_acquire_owned().ok());
            if let Some(slot) = slots.get_mut(&lease) {
                *slot = Slot { holds, permit, due: slot.due, watched: slot.watched };
            }
        }
        self.last_lease = self.last_lease.max(self.store.last_lease().map_err(database(TRIED))?);
        (self.pools, self.by_network) = (pools, by_network);
        self.watch_what_lives_on();
        Ok(())
    }

    /// What was done in a transaction is on the disk: files of leases that have ended go.
    pub fn committed(&mut self) {
        for Ended { lease, .. } in std::mem::take(&mut self.ended) {
            if self.lives.has(lease) {
                // One that stays is removed at the next start.
                let _ = self.lives.end(lease);
            }
        }
    }

    /// The store, for whoever runs the transactions.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Begins a transaction's work: time passes, and grace periods end. At most so many of them; more in the next transaction.
    ///
    /// # Errors
    /// Where the database fails.
    pub fn pass_time(&mut self, now: Now) -> Answer<()> {
        self.now = now;
        for _ in 0..EXPIRE_AT_ONCE {
            match self.due.first() {
                Some(&(at, lease)) if at <= now.instant => self.end(lease, "end a grace period")?,
                _ => break,
            };
        }
        self.look_at_what_lives_on()
    }

    /// When the next grace period ends, a life is to be looked at, or the reserve to be filled.
    pub fn next_due(&self) -> Option<Instant> {
        [self.due.first().map(|(at, _)| *at), self.watch.next(), self.reserve.next_try()].into_iter().flatten().min()
    }

    /// Whether a grace period is over, or a life is to be looked at.
    pub fn is_due(&self) -> bool {
        let next = self.due.first().map(|(at, _)| *at).into_iter().chain(self.watch.next()).min();
        next.is_some_and(|at| at <= self.now.instant)
    }

    /// Gives up the space that is kept for giving things back.
    pub fn give_up_reserve(&mut self) {
        self.reserve.give_up(Instant::now());
    }

    /// Has the log's space given back to the file system, and what was given up taken again.
    pub fn regain_space(&mut self) {
        // Where there is not even space for that, the log stays, and all that it says.
        let _ = self.store.checkpoint();
        self.reserve.fill(self.store.folder(), Instant::now());
    }

    /// Takes again what was given up, if there was no space for it before.
    pub fn fill_reserve(&mut self) {
        let now = Instant::now();
        if self.reserve.next_try().is_some_and(|at| at <= now) {
            self.regain_space();
        }
    }

    /// Whether there is space for something new: only while all is there that is kept for giving it back.
    fn may_grow(&mut self, tried: &str) -> Answer<()> {
        let whole = self.reserve.is_whole() || self.reserve.fill(self.store.folder(), Instant::now());
        if whole { Ok(()) } else { Err(full(tried)) }
    }

    /// A pool's configuration, as a struct and as text, and how many of its addresses are free.
    ///
    /// # Errors
    /// `revoked` if it was removed.
    pub fn pool(&self, id: PoolId) -> Answer<(PoolConfig, String, u64)> {
        let pool = self.pools.get(&id).ok_or_else(|| unknown("look at a pool"))?;
        Ok((pool.config.clone(), pool.text.clone(), pool.free.count()))
    }

    /// The next free address of a pool.
    fn choose(&self, id: PoolId, tried: &str) -> Answer<Ipv4Addr> {
        let Pool { config, free, .. } = self.pools.get(&id).ok_or_else(|| unknown(tried))?;
        self.room(id, tried)?;
        free.next().map(Ipv4Addr::from).ok_or_else(|| {
            let why =
                format!("every address from {} to {} of network {} is taken", config.start, config.end, config.network);
            fault(
                Code::Exhausted,
                tried,
                why,
                "Release some, wait 30 s for those whose holders have gone, or widen the pool",
            )
        })
    }

    /// Whether a pool may have one more row.
    fn room(&self, id: PoolId, tried: &str) -> Answer<()> {
        match self.pools.get(&id) {
            Some(pool) if pool.bindings < self.limits.bindings => Ok(()),
            Some(pool) => {
                let why = format!(
                    "network {} has {} addresses leased or reserved, which is the limit",
                    pool.config.network, pool.bindings
                );
                Err(fault(Code::Exhausted, tried, why, "End some leases or reservations"))
            }
            None => Err(unknown(tried)),
        }
    }

    /// What is known of a lease.
    ///
    /// # Errors
    /// `revoked` if it has ended.
    pub fn lease_info(&self, lease: LeaseId) -> Answer<Info> {
        const TRIED: &str = "look at a lease";
        let row = self.store.by_lease(lease).map_err(database(TRIED))?.ok_or_else(|| gone(TRIED))?;
        self.info(row)
    }

    /// What is known of a durable reservation.
    ///
    /// # Errors
    /// `revoked` if it has ended.
    pub fn reservation_info(&self, hash: &RefHash) -> Answer<Info> {
        const TRIED: &str = "look at a reservation";
        let row = self.store.by_ref(hash).map_err(database(TRIED))?.ok_or_else(|| gone(TRIED))?;
        self.info(row)
    }

    /// What a pool has leased or reserved, from the address behind `after` on.
    ///
    /// # Errors
    /// `invalidArgument` if `after` is neither empty nor an address.
    pub fn leases(&self, id: PoolId, after: &str) -> Answer<Vec<Info>> {
        const TRIED: &str = "list leases";
        let not_one = |_| {
            fault(
                Code::InvalidArgument,
                TRIED,
                format!("{after:?} is not an IPv4 address"),
                "Give the last address of the list before, or nothing",
            )
        };
        let after = if after.is_empty() { None } else { Some(after.parse().map_err(not_one)?) };
        self.pools.get(&id).ok_or_else(|| unknown(TRIED))?;
        let rows = self.store.page(id, after, PAGE).map_err(database(TRIED))?;
        rows.into_iter().map(|row| self.info(row)).collect()
    }

    fn info(&self, binding: Binding) -> Answer<Info> {
        let config = &self.pools.get(&binding.pool).ok_or_else(|| unknown("look at a binding"))?.config;
        Ok(Info { network: config.network.clone(), prefix: config.subnet.prefix(), gateway: config.router(), binding })
    }
}

/// Every pool of a store, as if nothing of it were taken.
fn pools_of(store: &Store) -> Answer<HashMap<PoolId, Pool>> {
    const TRIED: &str = "read the database";
    let mut pools = HashMap::new();
    for (id, text, next) in store.pools().map_err(database(TRIED))? {
        let config = PoolConfig::read(&text)
            .map_err(|e| fault(Code::Internal, TRIED, e.to_string(), "Put a backup of the database in its place"))?;
        let mut free = all_of(&config);
        free.search_from(next);
        pools.insert(id, Pool { free, config, text, bindings: 0 });
    }
    Ok(pools)
}

/// Every address of the range but the gateway's and the router's.
fn all_of(config: &PoolConfig) -> FreeSet {
    let mut free = FreeSet::new(config.start.to_bits(), config.end.to_bits());
    [Some(config.gateway), config.router].into_iter().flatten().for_each(|taken| _ = free.take(taken.to_bits()));
    free
}

fn check_workload(tried: &str, workload: &str) -> Answer<()> {
    if names::is_workload(workload) {
        return Ok(());
    }
    Err(fault(Code::InvalidArgument, tried, names::WORKLOAD_RULE, "Name the workload, such as \"vm-web\""))
}

fn gone(tried: &str) -> Fault {
    fault(Code::Revoked, tried, "it has ended", "Ask for a new one")
}

fn unknown(tried: &str) -> Fault {
    fault(Code::Revoked, tried, "its pool was removed", "Define the network again, and get its pool")
}

#[cfg(test)]
mod tests;
