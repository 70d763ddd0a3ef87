//! What there is on this host: networks, ports, tenants, and who may have how many. Owns the kernel's socket; runs on the rtnl thread.
//!
//! The kernel's state is derived, never trusted. At start the bridges with our mark become networks again, defined as the mark says, and the
//! TAPs and veths with our mark their ports: a TAP is not persistent, so one that nobody in this process holds is there because a process (a VM's
//! network backend that outlived an earlier netmgr) has it open, and it goes when that process ends, as a veth goes with its namespace. Until then
//! its workload cannot have a second one. At start, with each attach and whenever the kernel tells of a change ([`Manager::look_at`]) what is there is
//! compared with what should be, and brought back to it. What carries no mark of ours is never changed.

mod asked;
mod gone;
mod guarding;
mod isolated;
mod left;
mod macvtap;
mod published;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Bound,
    os::fd::{OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rtnetlink::LinkUnspec;
use service::{Lost, State};
use tokio::sync::watch;

use schema::{limits::SERVICE_ANSWER, network_capnp::MAX_LISTED_PORTS, policy::Rules};

pub use self::{
    asked::{Account, Asked, Durable, FunctionFacts, NetworkId, NewPort, PortFacts, PortId, Stats, Veth},
    published::Whose,
};
use self::{
    gone::Gone,
    guarding::{no_filter, within},
    isolated::Isolated,
    left::Left,
};
use crate::{
    announce::Had,
    bridge,
    config::{self, Config},
    error::Error,
    events::{Change, Watching},
    handed::Handed,
    instance::Instance,
    link::Link,
    mark,
    monitor::Changes,
    names::{self, Kind},
    network::Network,
    nft::Filter,
    port,
    ports::{Held, Port, PortState, TenantId},
    rate::Rate,
    rtnl::{Rtnl, Snapshot},
    sriov, uplink,
    veth::{self, Inside},
    vf::Function,
    wanted::{Made, Wanted},
};

const MAX_NETWORKS: usize = schema::host_capnp::MAX_NETWORKS as usize;
const MAX_TENANTS: usize = schema::host_capnp::MAX_TENANTS as usize;
/// The most ports of a network that are looked at one by one: all of them take no longer than twice that many.
const MOST_LOOKS: usize = 64;

/// Who waits for a port's end.
type Answer = service::Answer<(), Error>;

/// All that netmgr knows; or, of an isolated network, all that there is of it, in its namespace.
pub struct Manager {
    rtnl: Rtnl,
    /// `None` where the kernel has none.
    filter: Option<Filter>,
    instance: Instance,
    networks: BTreeMap<String, Network>,
    /// Those in namespaces of their own.
    isolated: BTreeMap<String, Isolated>,
    tenants: BTreeMap<u64, String>,
    /// Ports that were given up by who has gone, and are not cut off as yet.
    leaving: Vec<PortId>,
    gone: Vec<Gone>,
    /// When somebody last asked for a port, or gave one up.
    active: Instant,
    /// Of all that is numbered, in whichever namespace.
    serial: Arc<AtomicU64>,
    /// Why what guests send is not looked at as it should be, once that was said.
    unguarded: Option<String>,
    /// Of interfaces that an earlier netmgr let send something, and that nobody can tell to be ports any more.
    strays: BTreeSet<u32>,
    /// Whether something may be left that could not be taken away.
    doubt: bool,
    /// Of ports whose network is not there, as somebody has deleted its bridge.
    left: Left,
}

impl Manager {
    /// Takes stock of what an earlier netmgr of this instance has left, and mends it, in phase 1.
    pub fn recover(rtnl: Rtnl, filter: Option<Filter>, instance: Instance) -> Result<Manager, Error> {
        let wanted = |config: &Config| config.kind != config::Kind::Isolated;
        let mut manager = Manager::take_stock(rtnl, filter, instance, Arc::default(), wanted)?;
        manager.hold_published();
        Ok(manager)
    }

    /// The same, of those networks that are `wanted`.
    fn take_stock(
        mut rtnl: Rtnl,
        filter: Option<Filter>,
        instance: Instance,
        serial: Arc<AtomicU64>,
        wanted: impl Fn(&Config) -> bool,
    ) -> Result<Manager, Error> {
        let snapshot = rtnl.snapshot(true)?;
        let mut manager = Manager {
            rtnl,
            filter,
            instance,
            networks: BTreeMap::new(),
            isolated: BTreeMap::new(),
            tenants: BTreeMap::new(),
            leaving: Vec::new(),
            gone: Vec::new(),
            active: Instant::now(),
            serial,
            unguarded: None,
            strays: BTreeSet::new(),
            doubt: false,
            left: Left::default(),
        };
        let existing = bridge::existing(&snapshot, &manager.instance).into_iter();
        let existing = existing.chain(crate::macvtap::existing(&snapshot, &manager.instance));
        for (index, config) in existing.filter(|(_, config)| wanted(config)) {
            let serial = manager.next();
            let network = manager.networks.entry(config.name.clone());
            let network = network.or_insert(Network::new(serial, index, config));
            network.adopt(&snapshot.links, &manager.instance, || next(&manager.serial));
        }
        for link in snapshot.links.iter().filter(|link| veth::is_half_made(link, &manager.instance)) {
            let owner = &manager.instance;
            manager.rtnl.delete(link.index, |link| veth::is_half_made(link, owner))?;
        }
        for link in &snapshot.links {
            let Manager { rtnl, instance, networks, .. } = &mut manager;
            let left_over = |link: &Link| uplink::is_left_over(link, instance, |name| networks.contains_key(name));
            if left_over(link) {
                rtnl.delete(link.index, left_over)?;
            }
        }
        sriov::sweep_claims(&mut manager.rtnl, &snapshot.links)?;
        manager.keep_guarding(&snapshot.links);
        manager.sweep_guards();
        manager.mend_with(&snapshot);
        while manager.take_away() {}
        if manager.networks.is_empty() {
            manager.clear();
        }
        Ok(manager)
    }

    /// Whether there is a port that a guest may have, whose rules are to be kept as they are.
    pub fn guards(&self) -> bool {
        let has_ports = |network: &Network| network.ports.values().any(|port| !port.is_left());
        self.networks.values().any(has_ports) || self.isolated.values().any(|isolated| isolated.manager.guards())
    }

    /// Whether what guests send can be looked at.
    pub fn filters(&self) -> bool {
        self.filter.is_some()
    }

    /// The descriptors that the sandbox has to keep.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.rtnl.fds().chain(self.filter.iter().map(Filter::fd)).chain(self.held_sockets())
    }

    /// Looks at what has changed, and, if that is not as it should be, brings all that the kernel has to what it should have; whether it was so.
    pub fn look_at(&mut self, changes: &Changes) -> Result<bool, Error> {
        // Before any port need not say whose its addresses are.
        for network in self.networks.values_mut() {
            network.note(&changes.ports, &changes.addresses);
            if changes.lost {
                network.had = Had::Unknown;
            }
        }
        if self.is_right(changes)? {
            return Ok(true);
        }
        let snapshot = self.rtnl.snapshot(self.networks.values().any(|network| network.config.has_ipv6()))?;
        Ok(self.mend_with(&snapshot))
    }

    /// Whether what has changed is as it should be, as far as that takes no look at everything.
    fn is_right(&mut self, changes: &Changes) -> Result<bool, Error> {
        let Manager { rtnl, filter, instance, networks, strays, doubt, .. } = self;
        if changes.all || *doubt || !strays.is_disjoint(&changes.links) {
            return Ok(false);
        }
        if let Some(filter) = filter.as_mut().filter(|_| !networks.is_empty())
            && !(filter.is_known() && (!changes.rules || filter.is_untouched()))
        {
            return Ok(false);
        }
        doubt_if_unguarded(filter.as_mut(), networks);
        // What is no bridge and no port may be an uplink, or what one is on.
        if networks.values().any(|network| network.config.vlan().is_some())
            && changes.links.iter().any(|index| !networks.values().any(|network| network.has(*index)))
        {
            return Ok(false);
        }
        for network in networks.values_mut() {
            let concerned = |(workload, port): (&String, &Port)| {
                let function = port.function.iter().flat_map(|function| [function.interface, function.card]);
                let concerned = function.chain([port.index]).any(|index| changes.links.contains(&index))
                    || changes.macs.contains(&port.mac.bytes());
                concerned.then(|| workload.clone())
            };
            let ports: Vec<String> = network.ports.iter().filter_map(concerned).take(MOST_LOOKS + 1).collect();
            if ports.len() > MOST_LOOKS {
                return Ok(false);
            }
            for workload in ports {
                if !network.is_port_right(rtnl, instance, &workload)? {
                    return Ok(false);
                }
            }
            if changes.links.contains(&network.index) {
                let seen = rtnl.look(network.index, network.config.has_ipv6())?;
                if !network.is_whole(rtnl, &seen, instance) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn mend_with(&mut self, snapshot: &Snapshot) -> bool {
        let in_doubt = mem::take(&mut self.doubt);
        self.find_gone(&snapshot.links);
        // Before a TAP comes onto a bridge again.
        let guarded = self.guard(&snapshot.links);
        let Manager { rtnl, filter, instance, networks, .. } = self;
        doubt_if_unguarded(filter.as_mut(), networks);
        let Ok(guarded) = guarded else { return false };
        let ports = |networks: &BTreeMap<String, Network>| networks.values().map(|network| network.ports.len()).sum();
        let before: usize = ports(networks);
        // Each of them, whatever the others were.
        let harmed =
            networks.values_mut().filter_map(|network| (!network.mend(rtnl, instance, snapshot)).then_some(())).count();
        let lost = ports(networks) != before;
        let kept = |function: &Function| {
            let mut ports = networks.values().flat_map(|network| network.ports.values());
            ports.any(|port| port.function.as_ref().is_some_and(|own| own.interface == function.interface))
        };
        if let Err(error) = sriov::sweep(rtnl, &snapshot.links, kept, instance) {
            if !in_doubt {
                confine::say!("netmgr: {}", error.fault("give back virtual functions that no port has"));
            }
            self.doubt = true;
        }
        let forgotten = !lost || self.rtnl.links().and_then(|links| self.guard(&links)).is_ok();
        self.clear_after();
        guarded && harmed == 0 && forgotten
    }

    /// Defines a network of this namespace, or changes one, with `ipv6` of `NetworkConfig`, and says what its ports to come are subject to. Ports that are there keep the MTU and the policy they have.
    fn define_here(&mut self, config: Config, ipv6: &str, policy: Option<Rules>) -> Result<NetworkId, Error> {
        if policy.is_some() && self.filter.is_none() {
            return Err(no_filter());
        }
        let id = self.define_bridge(config, ipv6)?;
        let Manager { filter, networks, .. } = self;
        let network = find(networks, &id)?;
        if network.policy != policy {
            if let Some(filter) = filter {
                filter.set_default(&id.name, policy.as_ref())?;
            }
            network.policy = policy;
        }
        Ok(id)
    }

    fn define_bridge(&mut self, config: Config, ipv6: &str) -> Result<NetworkId, Error> {
        let serial = self.next();
        let Manager { rtnl, filter, instance, networks, isolated, left, .. } = self;
        if networks.get(&config.name).is_some_and(|known| known.config.is_macvtap() != config.is_macvtap()) {
            return Err(Error::OtherKind(config.name));
        }
        if config.is_macvtap() {
            return self.define_macvtap(config, ipv6);
        }
        let mut config = config.with_ipv6(ipv6, instance)?;
        if let Some(network) = networks.get_mut(&config.name)
            && (config.mtu == 0 || config.mtu == network.config.mtu)
            && (config.address, config.ipv6) == (network.config.address, network.config.ipv6)
            && (config.kind, &config.uplink) == (network.config.kind, &network.config.uplink)
            && config.isolate == network.config.isolate
        {
            lead_outward(rtnl, filter.as_ref(), &config)?;
            network.settle(rtnl, instance)?;
            if config.vlan().is_some() {
                let links = rtnl.links()?;
                network.mend_uplink(rtnl, instance, &links)?;
            }
            return Ok(NetworkId { name: config.name, serial: network.serial });
        }
        let known = networks.get(&config.name);
        fits(known, &config)?;
        if known.is_none() {
            has_room(networks, isolated)?;
        }
        let bound = uplink::bound(rtnl, bridge::Wanted { config: &config, owner: instance })?;
        if config.mtu == 0 {
            let default = bound.map_or(config::DEFAULT_MTU, |bound| bound.min(config::DEFAULT_MTU));
            config.mtu = match known {
                Some(network) => network.config.mtu,
                None => bridge::mtu(rtnl, &config.name, instance)?.unwrap_or(default),
            };
        }
        if bound.is_some_and(|bound| config.mtu > bound) {
            return Err(uplink::too_large(config.uplink.as_ref(), config.mtu));
        }
        lead_outward(rtnl, filter.as_ref(), &config)?;
        let wanted = bridge::Wanted { config: &config, owner: instance };
        // Before the definition says so: whoever finds it half done has them kept from one another again.
        if let Some(network) = known.filter(|network| network.config.isolate && !config.isolate) {
            port::join(rtnl, network.ports.values().map(|port| port.index))?;
        }
        let known = known.map(|network| network.index);
        let is_new = known.is_none();
        if is_new {
            left.yield_to(networks);
        }
        // One that is made here has nobody on it who knows anything.
        let is_blank = is_new && rtnl.link(LinkUnspec::new_with_name(&config.name))?.is_none();
        uplink::prepare(rtnl, wanted, known)?;
        let index = match bridge::define(rtnl, wanted, known) {
            // The error that is reported is the first one. What this leaves, the next netmgr takes away.
            Err(error) if known.is_none() => {
                let _ = uplink::remove(rtnl, wanted, 0);
                return Err(error);
            }
            defined => defined?,
        };
        let links = rtnl.links()?;
        let name = config.name.clone();
        let network = networks.entry(name.clone()).or_insert_with(|| Network::new(serial, index, config.clone()));
        (network.index, network.config) = (index, config);
        network.had = Had::Unknown;
        network.ports.values_mut().for_each(|port| port.isolate = network.config.isolate);
        network.adopt(&links, instance, || next(&self.serial));
        if is_new {
            left.give(network, &links);
        }
        let id = NetworkId { name, serial: network.serial };
        self.guard(&links)?;
        let Manager { rtnl, filter, instance, networks, .. } = self;
        doubt_if_unguarded(filter.as_mut(), networks);
        let network = find(networks, &id)?;
        network.answer_loopback(rtnl);
        network.mend_ports(rtnl, instance, &links)?;
        network.mend_uplink(rtnl, instance, &links)?;
        // Beyond an uplink, and in a namespace that is somebody else's, there may be anybody. Where the host does not say what it has itself, all is announced,
        // and the network is there all the same.
        if is_blank
            && network.ports.is_empty()
            && network.config.uplink.is_none()
            && filter.is_some()
            && !rtnl.is_elsewhere()
            && let Ok(own) = rtnl.addresses(None, true)
        {
            network.had = Had::nothing();
            network.had.note(own.iter().map(|own| (own.address.ip, None)));
        }
        Ok(id)
    }

    /// The network of that name.
    pub fn network(&self, name: &str) -> Result<NetworkId, Error> {
        if let Some(isolated) = self.isolated.get(name) {
            return isolated.manager.network(name);
        }
        match self.networks.get(name) {
            Some(network) => Ok(NetworkId { name: name.to_owned(), serial: network.serial }),
            None => Err(Error::NoSuchNetwork(name.chars().take(schema::names::INTERFACE_MAX).collect())),
        }
    }

    /// The names of all networks.
    pub fn names(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.networks.keys().chain(self.isolated.keys()).collect();
        all.into_iter().cloned().collect()
    }

    /// Names of networks that are not there, though ports of theirs are.
    pub fn lost(&mut self) -> Result<Vec<String>, Error> {
        let links = self.rtnl.links()?;
        let marks =
            links.iter().filter(|link| names::Kind::of(link).is_some()).filter_map(|link| mark::read_port(&link.alias));
        let named = marks.filter(|mark| mark.owner == self.instance).filter_map(|mark| Some(mark.on?.0));
        let lost: BTreeSet<String> = named.filter(|name| !self.networks.contains_key(name)).collect();
        Ok(lost.into_iter().take(MAX_NETWORKS).collect())
    }

    /// Takes a network off the host.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        let id = self.network(name)?;
        if let Some(isolated) = self.isolated.get_mut(name) {
            isolated.manager.remove(name)?;
            self.isolated.remove(name);
            return Ok(());
        }
        while self.cut_off_chosen(|port, _| port.network == id) {}
        while self.take_away() {}
        let Manager { rtnl, instance, networks, .. } = self;
        let network = find(networks, &id)?;
        let links = rtnl.links()?;
        // What cannot be mended is counted below.
        let _ = network.mend_ports(rtnl, instance, &links);
        if network.config.is_macvtap() {
            return self.remove_macvtap(&id);
        }
        // Also what netmgr did not put there.
        let wanted = bridge::Wanted { config: &network.config, owner: instance };
        let is_uplink = |link: &Link| uplink::may_be(link, wanted, network.index);
        let on_bridge = links.iter().filter(|link| link.master == network.index && !is_uplink(link)).count();
        let ports = on_bridge.max(network.ports.len());
        if ports > 0 {
            return Err(Error::PortsAttached { name: id.name, ports });
        }
        uplink::remove(rtnl, wanted, network.index)?;
        bridge::remove(rtnl, wanted, network.index)?;
        networks.remove(name);
        if networks.is_empty() {
            self.clear();
        }
        Ok(())
    }

    /// A network's configuration, its ports' policy, its bridge's index, and its ports.
    pub fn info(&mut self, id: &NetworkId) -> Result<(Config, Option<Rules>, u32, Vec<PortFacts>), Error> {
        let network = find(&mut self.networks, id)?;
        let ports = network.ports.iter().filter(|(_, port)| !port.leaves());
        let ports = ports.map(|(workload, port)| PortFacts::of(port, workload, &network.config)).collect();
        Ok((network.config.clone(), network.policy.clone(), network.index, ports))
    }

    /// The ports of a network behind that workload's, with what each has carried.
    pub fn ports(&mut self, id: &NetworkId, after: &str) -> Result<Vec<PortFacts>, Error> {
        let mut counts = self.counts()?;
        let links = self.rtnl.links_with_traffic()?;
        let links: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let network = find(&mut self.networks, id)?;
        if let (true, Some(filter)) = (network.config.is_macvtap(), &mut self.filter) {
            for port in network.ports.values() {
                counts.insert(port.interface.clone(), filter.counts_at(&port.interface)?);
            }
        }
        let behind = network.ports.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let ports = behind.filter(|(_, port)| !port.leaves()).take(MAX_LISTED_PORTS as usize);
        let facts = ports.map(|(workload, port)| {
            let counts = counts.get(&port.interface).copied().unwrap_or_default();
            let gone = Link::default();
            let link = links.get(&port.index).copied().unwrap_or(&gone);
            let stats = Stats::of(port.kind, port.policy.is_some(), counts, link);
            PortFacts { stats: Some(stats), ..PortFacts::of(port, workload, &network.config) }
        });
        Ok(facts.collect())
    }

    /// What becomes of a network's ports from now on.
    pub fn watch(&mut self, id: &NetworkId) -> Result<Watching, Error> {
        Ok(find(&mut self.networks, id)?.events.watch())
    }

    /// Makes a tenant.
    pub fn tenant(&mut self, name: &str) -> Result<TenantId, Error> {
        if self.tenants.len() >= MAX_TENANTS {
            return Err(Error::Full { what: "tenants", limit: MAX_TENANTS });
        }
        if self.tenants.values().any(|known| known == name) {
            return Err(Error::TenantExists(name.to_owned()));
        }
        let serial = self.next();
        self.tenants.insert(serial, name.to_owned());
        Ok(TenantId(serial))
    }

    /// Ends a tenant, and gives all of its ports up.
    pub fn end_tenant(&mut self, tenant: TenantId) {
        self.tenants.remove(&tenant.0);
        let networks = self.isolated.values().flat_map(|isolated| &isolated.manager.networks).chain(&self.networks);
        let held = networks.flat_map(|(name, network)| {
            network.ports.iter().filter_map(move |(workload, port)| {
                let held = port.held.as_ref().filter(|held| held.tenant == Some(tenant))?;
                let id = NetworkId { name: name.clone(), serial: network.serial };
                Some(PortId { network: id, workload: workload.clone(), serial: held.serial })
            })
        });
        held.collect::<Vec<_>>().into_iter().for_each(|id| self.release(id, None));
    }

    /// Makes a port, on a network that is as it is defined.
    pub fn attach(&mut self, id: &NetworkId, mut asked: Asked, account: &Account) -> Result<NewPort, Error> {
        if account.tenant.is_some_and(|tenant| !self.tenants.contains_key(&tenant.0)) {
            return Err(Error::Revoked("tenant"));
        }
        let reference = asked.veth.as_ref().and_then(|veth| veth.hash).map(|hash| mark::reference(&hash));
        if reference.is_some() && account.tenant.is_some() {
            return Err(Error::TenantsDurable);
        }
        let inside = match asked.veth.take() {
            None => None,
            Some(Veth { namespace, socket, name, routes, router, .. }) => {
                let handed = Handed::check(namespace, socket, &self.own_namespaces()?)?;
                Some(Inside { handed, name, routes, router, gateways: Vec::new(), subnets: Vec::new() })
            }
        };
        if !self.isolated.is_empty() && account.quota.take().is_err() {
            // Who has gone has its place no more, in whichever namespace.
            self.each(|manager| _ = manager.cut_off_chosen(|_, port| port.takes(&account.quota)));
        }
        self.on(id, |manager| manager.attach_here(id, asked, account, inside, reference))
    }

    fn attach_here(
        &mut self,
        id: &NetworkId,
        mut asked: Asked,
        account: &Account,
        mut inside: Option<Inside>,
        reference: Option<String>,
    ) -> Result<NewPort, Error> {
        self.active = Instant::now();
        let kind = if inside.is_some() { Kind::Veth } else { Kind::Tap };
        let names = [names::first(kind, &asked.workload).name, names::second(kind, &id.name, &asked.workload).name];
        let mut again = false;
        loop {
            // Also one that was cut off a moment ago, for this one.
            if self.gone.iter().any(|gone| names.contains(&gone.interface)) {
                while self.take_away() {}
            }
            asked.sources = asked.sources.on(&find(&mut self.networks, id)?.config, asked.mac)?;
            let error = match self.try_attach(id, &asked, account, inside.as_mut(), reference.clone()) {
                Err(Error::BridgeGone(_)) if !again => {
                    again = true;
                    continue;
                }
                Err(error) => error,
                made => return made,
            };
            // It may be in the way of this one that it has not gone yet.
            let full = matches!(error, Error::BridgeFull(_) | Error::ParentBusy { .. });
            // So may the other end of one, within its namespace.
            let within = matches!(error, Error::Within { .. });
            let in_the_way = |leaving: &PortId, port: &Port| {
                let same = full || asked.conflict(&leaving.workload, port, &id.name).is_some();
                leaving.network == *id && same || port.takes(&account.quota)
            };
            if !(self.cut_off_chosen(in_the_way) || (full || within) && self.take_away()) {
                return Err(error);
            }
        }
    }

    fn try_attach(
        &mut self,
        id: &NetworkId,
        asked: &Asked,
        account: &Account,
        mut inside: Option<&mut Inside>,
        reference: Option<String>,
    ) -> Result<NewPort, Error> {
        let serial = self.next();
        let Manager { rtnl, instance, networks, .. } = self;
        let network = find(networks, id)?;
        network.settle(rtnl, instance)?;
        // One of an earlier netmgr's may have ended since, and one in a namespace.
        let in_the_way = |network: &Network| {
            let mut others = network.ports.in_the_way(&asked.workload, asked.mac, &asked.sources);
            others.find_map(|(known, port)| {
                let is_sure = port.leaves() || port.held.is_some() && port.kind == Kind::Tap;
                Some((asked.conflict(known, port, &id.name)?, is_sure, known.clone()))
            })
        };
        while let Some((refusal, is_sure, known)) = in_the_way(network) {
            if network.ports.get(&known).is_some_and(Port::is_left) {
                network.take_left(rtnl, instance, &known)?;
            } else if is_sure || network.confirm(rtnl, instance, &known)? {
                return Err(refusal);
            }
        }
        if !network.left.is_empty() {
            self.clear_after();
        }
        let Manager { rtnl, filter, instance, networks, doubt, .. } = self;
        let network = find(networks, id)?;
        let Asked { workload, mac, sources, policy, .. } = asked;
        let kind = macvtap::kind(&network.config, inside.is_some())?;
        if let Some(inside) = &mut inside {
            inside.check(&network.config, sources)?;
        }
        let mac = *mac;
        let of_bridge = names::mac_of_bridge(&id.name);
        if of_bridge == mac || of_bridge == mac.host_side() {
            return Err(Error::MacTaken { mac: mac.to_string(), network: id.name.clone() });
        }
        let slot = account.quota.take()?;
        let default = network.policy.as_ref();
        let bound = account.bound(default);
        let asked_for = policy.clone().or_else(|| account.policy(default));
        let has = within(bound.as_ref(), asked_for)?;
        if has.is_some() && filter.is_none() {
            return Err(no_filter());
        }
        let Config { mtu, isolate, .. } = network.config;
        let (name, bridge, network_name) = ("", network.index, &id.name);
        let (of_wanted, owner) = (reference.as_deref(), &*instance);
        let policy = has.as_ref();
        let function = sriov::take(rtnl, &network.config, network.index, mac, owner);
        // What that leaves, or the next step, the next look gives back.
        let function = function.inspect_err(|_| *doubt = true)?;
        let wanted = Wanted {
            kind,
            name,
            network: network_name,
            bridge: function.as_ref().map_or(bridge, |function| function.interface),
            mtu,
            isolate,
            workload,
            mac,
            sources,
            reference: of_wanted,
            policy,
            function: function.as_ref(),
            owner,
        };
        network.had.note(sources.iter().map(|address| (address, Some(mac))));
        let made = make(rtnl, filter, wanted, inside);
        if let (Err(_), Some(function)) = (&made, &function) {
            *doubt |= function.give_back(rtnl, owner).is_err();
        }
        let (tap, index, interface) = made?;
        let (tap, (state, seen)) = (tap.map(Arc::new), watch::channel(PortState::Attached));
        let (tenant, slot) = (account.tenant, Some(slot));
        let held = Held { serial, tap: tap.clone(), announced: false, state, tenant, slot };
        let (sources, published) = (sources.clone(), Vec::new());
        let port = Port {
            kind,
            index,
            interface,
            mac,
            mtu,
            isolate,
            sources,
            reference,
            function,
            policy: has,
            bound,
            rate: Rate::default(),
            rate_bound: Rate::default(),
            published,
            held: Some(held),
        };
        let facts = PortFacts::of(&port, workload, &network.config);
        network.events.tell(Change::Attached, workload, &port.interface);
        network.ports.insert(workload.clone(), port);
        let id = PortId { network: id.clone(), workload: workload.clone(), serial };
        Ok(NewPort { id, facts, tap, state: seen })
    }

    /// A durable port of a network: the one that is found by that, its workload's name or its alternative one.
    pub fn durable(&mut self, id: &NetworkId, which: Durable) -> Result<NewPort, Error> {
        let Manager { rtnl, instance, networks, .. } = self;
        let network = find(networks, id)?;
        let is = |(workload, port): (&String, &Port)| {
            let found = match &which {
                Durable::Of(name) => workload == name,
                Durable::By(hash) => port.reference == Some(mark::reference(hash)),
            };
            (found && port.reference.is_some() && !port.leaves()).then(|| workload.clone())
        };
        let none = || Error::NotDurable(id.name.clone());
        let workload = network.ports.iter().find_map(is).ok_or_else(none)?;
        if !network.confirm(rtnl, instance, &workload)? {
            return Err(none());
        }
        let port = network.ports.get(&workload).ok_or_else(none)?;
        let held = port.held.as_ref().ok_or_else(none)?;
        let facts = PortFacts::of(port, &workload, &network.config);
        let id = PortId { network: id.clone(), workload, serial: held.serial };
        Ok(NewPort { id, facts, tap: None, state: held.state.subscribe() })
    }

    /// Sees to it that a port is there and as it should be, before its TAP is handed out.
    pub fn confirm(&mut self, id: &PortId) -> Result<(), Error> {
        let Manager { rtnl, instance, networks, .. } = self;
        let network = find(networks, &id.network)?;
        let Some(port) = network.ports.get(&id.workload).filter(|port| port.is(id.serial) && !port.leaves()) else {
            return Err(Error::Revoked("port"));
        };
        let gone = port.kind.gone(&port.interface);
        if network.confirm(rtnl, instance, &id.workload)? { Ok(()) } else { Err(gone) }
    }

    fn next(&self) -> u64 {
        next(&self.serial)
    }
}

impl State for Manager {
    const DEADLINE: Option<Duration> = Some(SERVICE_ANSWER);
    // What the last connection's end has released is off the host before netmgr is, if the kernel lets it.
    const FAREWELL: Option<Duration> = Manager::DEADLINE;

    /// TAPs that nobody else has open go with the process, and a new netmgr reads from the kernel what is there.
    fn renew(&mut self) -> Result<(), Lost> {
        Err("it panicked in the middle of a change to the network; report the line above as a defect".into())
    }

    fn tidy(&mut self) -> Result<bool, Lost> {
        let due = |manager: &Manager| manager.take_away_at().is_some_and(|at| at <= Instant::now());
        let mut more = false;
        self.each(|manager| more |= manager.cut_off_chosen(|_, _| true) || due(manager) && manager.take_away());
        Ok(more)
    }

    fn due(&self) -> Option<Instant> {
        let isolated = self.isolated.values().filter_map(|isolated| isolated.manager.take_away_at());
        isolated.chain(self.take_away_at()).min()
    }

    fn end(&mut self) {
        self.each(|manager| while manager.cut_off_chosen(|_, _| true) || manager.take_away() {});
    }
}

fn next(serial: &AtomicU64) -> u64 {
    serial.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// How often a name is tried that was taken, and a moment later is no interface's.
const NAMINGS: usize = 3;

/// Makes a port under the workload's name, or, where a port on another network has that, under its second one.
fn make(
    rtnl: &mut Rtnl,
    filter: &mut Option<Filter>,
    wanted: Wanted<'_>,
    mut inside: Option<&mut Inside>,
) -> Result<(Option<OwnedFd>, u32, String), Error> {
    // Whose a name is that cannot be had, if that is a port.
    let mut named = |name: &str| {
        for _ in 0..NAMINGS {
            match port::attach(rtnl, filter, &Wanted { name, ..wanted }, inside.as_deref_mut())? {
                Made::Port(tap, index) => return Ok(Ok((tap, index, name.to_owned()))),
                Made::NameTaken => {}
            }
            // A TAP goes at any moment, with the last process that has it open.
            if let Some(link) = rtnl.link(LinkUnspec::new_with_name(name))? {
                return Ok(Err(mark::read_port(&link.alias)));
            }
        }
        Ok::<_, Error>(Err(None))
    };
    let foreign = |name: String| Error::ForeignInterface { name };
    let first = names::first(wanted.kind, wanted.workload).name;
    match named(&first)? {
        Ok(made) => return Ok(made),
        Err(None) => return Err(foreign(first)),
        Err(Some(mark))
            if mark.workload == wanted.workload
                && mark.on.as_ref().is_none_or(|(network, _)| network == wanted.network) =>
        {
            return Err(Error::PortInUse { interface: first });
        }
        Err(Some(_)) => {}
    }
    let second = names::second(wanted.kind, wanted.network, wanted.workload).name;
    named(&second)?.map_err(|mark| match mark {
        Some(_) => Error::PortInUse { interface: second },
        None => foreign(second),
    })
}

/// Whether a network's ports are such that it can be defined so.
fn fits(known: Option<&Network>, config: &Config) -> Result<(), Error> {
    for (workload, port) in known.into_iter().flat_map(|known| known.ports.iter()) {
        let (workload, network) = (workload.clone(), config.name.clone());
        if let Some(gateway) = config.addresses().find(|gateway| port.sources.has(gateway.ip)) {
            return Err(Error::AddressTaken { address: gateway.ip, workload, network });
        }
        if let Some((address, why)) = port.sources.outside(config) {
            return Err(Error::PortOutside { address, why, workload, network });
        }
    }
    Ok(())
}

/// Sees to it that the host forwards for a network that leads to the outside, and that there are rules of what then goes where.
fn lead_outward(rtnl: &mut Rtnl, filter: Option<&Filter>, config: &Config) -> Result<(), Error> {
    if !config.kind.leads_outward() {
        return Ok(());
    }
    match filter {
        Some(filter) if filter.routes() => rtnl.forward(config.ipv6.is_some()),
        _ => Err(Error::NoRoutes),
    }
}

/// What guests have sent while the rules were not as they should be may be anything.
fn doubt_if_unguarded(filter: Option<&mut Filter>, networks: &mut BTreeMap<String, Network>) {
    if filter.is_some_and(Filter::was_lost) {
        networks.values_mut().for_each(|network| network.had = Had::Unknown);
    }
}

/// Whether there can be one network more, of whichever kind.
fn has_room(networks: &BTreeMap<String, Network>, isolated: &BTreeMap<String, Isolated>) -> Result<(), Error> {
    let full = networks.len() + isolated.len() >= MAX_NETWORKS;
    if full { Err(Error::Full { what: "networks", limit: MAX_NETWORKS }) } else { Ok(()) }
}

fn find<'a>(networks: &'a mut BTreeMap<String, Network>, id: &NetworkId) -> Result<&'a mut Network, Error> {
    networks.get_mut(&id.name).filter(|network| network.serial == id.serial).ok_or(Error::Revoked("network"))
}
