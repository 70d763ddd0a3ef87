//! The capabilities of `schema/addresses.capnp`, each a thin object over the database thread. Sees clients and their secrets; touches no
//! file. What an object holds is given back by its `Drop`.

use std::rc::Rc;
use std::sync::Arc;

use capnp::capability::Client;
use ipc::{Code, Fault, Lane, Peer, text};
use schema::addresses_capnp::{MAX_LEASES, allocator, ipam, lease, lease_info, pool, pool_info, reservation};
use schema::network_capnp::NetworkKind;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::config::{PoolConfig, Reach, Uplink};
use crate::database::Database;
use crate::fault::fault;
use crate::ledger::{Hold, Info, Ledger, Quota};
use crate::store::{LeaseId, PoolId, RefHash, Reserved};

const REF_BYTES: usize = 32;

type Done = Result<(), capnp::Error>;

/// What a client gets on connecting: everything.
pub fn bootstrap(database: &Database, lane: &Lane, peer: Peer) -> Client {
    let ipam: ipam::Client =
        capnp_rpc::new_client(Ipam(Rc::new(Link { database: database.of(peer), lane: lane.clone(), peer })));
    Client::new(ipam.client.hook)
}

/// A client's way to the database, and to its descriptors.
struct Link {
    database: Database,
    lane: Lane,
    peer: Peer,
}

impl Link {
    fn pool(self: &Rc<Self>, id: PoolId) -> pool::Client {
        capnp_rpc::new_client(Pool { id, link: self.clone() })
    }

    /// Makes a [`Lease`] of each hold, so that one whose answer nobody awaits any more is given back.
    fn lease(&self) -> impl Fn(Hold) -> Held + Send + 'static {
        let database = self.database.clone();
        move |hold| Held { lease: hold.lease, hold: Some(hold), database: database.clone() }
    }
}

struct Ipam(Rc<Link>);

impl ipam::Server for Ipam {
    async fn define_pool(self: Rc<Self>, params: ipam::DefinePoolParams, mut results: ipam::DefinePoolResults) -> Done {
        let config = text("define a pool", "config", params.get()?.get_config()?)?;
        let id = self.0.database.ask(move |ledger| ledger.define(&config)).await?;
        results.get().set_pool(self.0.pool(id));
        Ok(())
    }

    async fn pool(self: Rc<Self>, params: ipam::PoolParams, mut results: ipam::PoolResults) -> Done {
        let network = text("get a pool", "network", params.get()?.get_network()?)?;
        let id = self.0.database.ask(move |ledger| ledger.find(&network)).await?;
        results.get().set_pool(self.0.pool(id));
        Ok(())
    }

    async fn list(self: Rc<Self>, _: ipam::ListParams, mut results: ipam::ListResults) -> Done {
        let pools = self.0.database.ask_always(|ledger| ledger.list()).await?;
        let mut list = results.get().init_pools(length(pools.len()));
        for (index, (config, text, free)) in (0..).zip(&pools) {
            write_pool(list.reborrow().get(index), config, text, *free);
        }
        Ok(())
    }

    async fn check_pool(self: Rc<Self>, params: ipam::CheckPoolParams, mut results: ipam::CheckPoolResults) -> Done {
        let config = text("check a pool", "config", params.get()?.get_config()?)?;
        let (config, text, free) = self.0.database.ask_always(move |ledger| ledger.check(&config)).await?;
        write_pool(results.get().init_info(), &config, &text, free);
        Ok(())
    }

    async fn remove_pool(self: Rc<Self>, params: ipam::RemovePoolParams, _: ipam::RemovePoolResults) -> Done {
        let network = text("remove a pool", "network", params.get()?.get_network()?)?;
        Ok(self.0.database.ask_always(move |ledger| ledger.remove(&network)).await?)
    }
}

struct Pool {
    id: PoolId,
    link: Rc<Link>,
}

impl pool::Server for Pool {
    async fn info(self: Rc<Self>, _: pool::InfoParams, mut results: pool::InfoResults) -> Done {
        let id = self.id;
        let (config, text, free) = self.link.database.ask_always(move |ledger| ledger.pool(id)).await?;
        write_pool(results.get().init_info(), &config, &text, free);
        Ok(())
    }

    async fn allocator(self: Rc<Self>, params: pool::AllocatorParams, mut results: pool::AllocatorResults) -> Done {
        let most = params.get()?.get_max_leases();
        if !(1..=MAX_LEASES).contains(&most) {
            let why = format!("maxLeases = {most} is not within 1 to {MAX_LEASES}");
            return Err(fault(Code::InvalidArgument, "make an allocator", why, "Choose a number within").into());
        }
        let id = self.id;
        self.link.database.ask_always(move |ledger| ledger.pool(id).map(drop)).await?;
        let quota: Quota = Arc::new(Semaphore::new(most as usize));
        results.get().set_allocator(capnp_rpc::new_client(Allocator { pool: self.id, quota, link: self.link.clone() }));
        Ok(())
    }

    async fn reserve(self: Rc<Self>, params: pool::ReserveParams, mut results: pool::ReserveResults) -> Done {
        const TRIED: &str = "reserve an address";
        let params = params.get()?;
        let workload = text(TRIED, "workload", params.get_workload()?)?;
        let address = text(TRIED, "address", params.get_address()?)?;
        let sturdy_ref = random()?;
        let (id, hash, database) = (self.id, hash(&sturdy_ref), self.link.database.clone());
        // If the caller goes while this is on its way to the disk, nobody will ever have the reference.
        let unclaimed = self
            .link
            .database
            .ask(move |ledger| {
                ledger.reserve(id, &workload, &address, &hash).map(|()| Unclaimed { hash: Some(hash), database })
            })
            .await?;
        let mut results = results.get();
        results.set_reservation(capnp_rpc::new_client(Reservation { hash, database: self.link.database.clone() }));
        results.set_sturdy_ref(&sturdy_ref);
        unclaimed.claim();
        Ok(())
    }

    async fn restore(self: Rc<Self>, params: pool::RestoreParams, mut results: pool::RestoreResults) -> Done {
        let sturdy_ref = params.get()?.get_sturdy_ref()?;
        if sturdy_ref.len() != REF_BYTES {
            let why = format!("sturdyRef has {} in place of {REF_BYTES}", ipc::count(sturdy_ref.len(), "byte"));
            return Err(
                fault(Code::NotFound, "restore a reservation", why, "Give the reference that reserve gave").into()
            );
        }
        let (id, hash) = (self.id, hash(sturdy_ref));
        self.link.database.ask_always(move |ledger| ledger.restore(id, &hash)).await?;
        results
            .get()
            .set_reservation(capnp_rpc::new_client(Reservation { hash, database: self.link.database.clone() }));
        Ok(())
    }

    async fn reservation(
        self: Rc<Self>,
        params: pool::ReservationParams,
        mut results: pool::ReservationResults,
    ) -> Done {
        let workload = text("find a reservation", "workload", params.get()?.get_workload()?)?;
        let id = self.id;
        let hash = self.link.database.ask_always(move |ledger| ledger.reservation(id, &workload)).await?;
        results
            .get()
            .set_reservation(capnp_rpc::new_client(Reservation { hash, database: self.link.database.clone() }));
        Ok(())
    }

    async fn leases(self: Rc<Self>, params: pool::LeasesParams, mut results: pool::LeasesResults) -> Done {
        let after = text("list leases", "after", params.get()?.get_after()?)?;
        let id = self.id;
        let leases = self.link.database.ask_always(move |ledger| ledger.leases(id, &after)).await?;
        let mut list = results.get().init_leases(length(leases.len()));
        for (index, info) in (0..).zip(&leases) {
            write_lease(list.reborrow().get(index), info);
        }
        Ok(())
    }

    async fn resume(self: Rc<Self>, params: pool::ResumeParams, mut results: pool::ResumeResults) -> Done {
        let Link { database, lane, peer } = &*self.link;
        let life = lane.redeem(params.get()?.get_life()?.get_bytes()?, *peer)?;
        let (id, lease) = (self.id, self.link.lease());
        // Which takes nothing that its holder has not.
        let held = database.ask_always(move |ledger| ledger.resume(id, &life).map(&lease)).await?;
        results.get().set_lease(capnp_rpc::new_client(Lease { held, link: self.link.clone() }));
        Ok(())
    }
}

struct Allocator {
    pool: PoolId,
    quota: Quota,
    link: Rc<Link>,
}

impl allocator::Server for Allocator {
    async fn allocate(
        self: Rc<Self>,
        params: allocator::AllocateParams,
        mut results: allocator::AllocateResults,
    ) -> Done {
        let workload = text("allocate an address", "workload", params.get()?.get_workload()?)?;
        let (pool, quota, lease) = (self.pool, self.quota.clone(), self.link.lease());
        let allocate = move |ledger: &mut Ledger| {
            let allocated = ledger.allocate(pool, &workload, &quota)?;
            Ok(lease(ledger.hold(allocated)))
        };
        let held = self.link.database.ask(allocate).await?;
        results.get().set_lease(capnp_rpc::new_client(Lease { held, link: self.link.clone() }));
        Ok(())
    }
}

/// A hold on a lease, whose end the database is told of.
struct Held {
    lease: LeaseId,
    hold: Option<Hold>,
    database: Database,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.hold = None;
        self.database.abandon(self.lease);
    }
}

struct Lease {
    held: Held,
    link: Rc<Link>,
}

impl Lease {
    fn id(&self) -> LeaseId {
        self.held.lease
    }
}

impl lease::Server for Lease {
    async fn info(self: Rc<Self>, _: lease::InfoParams, mut results: lease::InfoResults) -> Done {
        let id = self.id();
        let info = self.link.database.ask_always(move |ledger| ledger.lease_info(id)).await?;
        write_lease(results.get().init_info(), &info);
        Ok(())
    }

    async fn release(self: Rc<Self>, _: lease::ReleaseParams, _: lease::ReleaseResults) -> Done {
        let id = self.id();
        Ok(self.link.database.ask_always(move |ledger| ledger.release(id)).await?)
    }

    async fn life(self: Rc<Self>, _: lease::LifeParams, mut results: lease::LifeResults) -> Done {
        let id = self.id();
        let Link { database, lane, peer } = &*self.link;
        let life = database.ask(move |ledger| ledger.life(id)).await?;
        lane.offer(life, *peer)?.write(results.get().init_life());
        Ok(())
    }
}

/// A reservation whose SturdyRef is not yet on its way to the caller; ends it if it never is.
struct Unclaimed {
    hash: Option<RefHash>,
    database: Database,
}

impl Unclaimed {
    fn claim(mut self) {
        self.hash = None;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(hash) = self.hash {
            self.database.cancel_unclaimed(hash);
        }
    }
}

struct Reservation {
    hash: RefHash,
    database: Database,
}

impl reservation::Server for Reservation {
    async fn info(self: Rc<Self>, _: reservation::InfoParams, mut results: reservation::InfoResults) -> Done {
        let hash = self.hash;
        let info = self.database.ask_always(move |ledger| ledger.reservation_info(&hash)).await?;
        write_lease(results.get().init_info(), &info);
        Ok(())
    }

    async fn cancel(self: Rc<Self>, _: reservation::CancelParams, _: reservation::CancelResults) -> Done {
        let hash = self.hash;
        Ok(self.database.ask_always(move |ledger| ledger.cancel(&hash)).await?)
    }
}

fn write_pool(mut to: pool_info::Builder, config: &PoolConfig, text: &str, free: u64) {
    to.set_network(&config.network);
    to.set_subnet(config.subnet.to_string());
    to.set_gateway(config.gateway.to_string());
    to.set_prefix_length(config.subnet.prefix());
    to.set_range_start(config.start.to_string());
    to.set_range_end(config.end.to_string());
    to.set_free(free);
    to.set_config(text);
    to.set_mtu(config.mtu.unwrap_or(0));
    to.set_ipv6(config.ipv6.text());
    to.set_kind(match config.reach {
        Reach::Host | Reach::All => NetworkKind::Bridged,
        Reach::Outside => NetworkKind::HostOnly,
        Reach::Macvtap(_) => NetworkKind::Macvtap,
        Reach::Sriov { .. } => NetworkKind::Sriov,
        Reach::Nothing => NetworkKind::Isolated,
    });
    to.set_nat(matches!(config.reach, Reach::All | Reach::Outside));
    to.set_isolate(config.isolate);
    if let Reach::Macvtap(mode) = config.reach {
        to.set_mode(mode);
    }
    to.set_trust(config.reach == Reach::Sriov { trust: true });
    if let Some(Uplink { parent, vlan }) = &config.uplink {
        to.set_parent(parent);
        to.set_vlan(*vlan);
    }
    if let Some(policy) = &config.policy {
        let mut list = to.init_policy().init_allow(u32::try_from(policy.iter().count()).unwrap_or(0));
        for (at, rule) in (0..list.len()).zip(policy.iter()) {
            list.set(at, rule.to_string());
        }
    }
}

fn write_lease(mut to: lease_info::Builder, info: &Info) {
    to.set_workload(&info.binding.workload);
    to.set_address(info.binding.address.to_string());
    to.set_prefix_length(info.prefix);
    to.set_gateway(info.gateway.map_or_else(String::new, |gateway| gateway.to_string()));
    to.set_network(&info.network);
    to.set_state(match info.binding.lease {
        None => lease_info::State::Idle,
        Some(lease) if lease.grace_until.is_some() => lease_info::State::Grace,
        Some(_) => lease_info::State::Held,
    });
    to.set_reserved(info.binding.reserved != Reserved::No);
}

fn hash(sturdy_ref: &[u8]) -> RefHash {
    Sha256::digest(sturdy_ref).into()
}

fn random() -> Result<[u8; REF_BYTES], Fault> {
    ipc::random().map_err(|_| fault(Code::Internal, "make a reference", "the kernel gave no random bytes", "Try again"))
}

/// Lists here are bounded far below this.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
