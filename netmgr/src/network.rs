//! One network: its definition and its ports, and how both are brought back to what they should be where the kernel's state differs.
//! Runs on the rtnl thread.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as Place},
    mem,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rtnetlink::LinkUnspec;
use tokio::sync::watch;

use schema::{net::Mac, policy::Rules};

use crate::{
    announce, bridge,
    config::{Config, Kind},
    error::Error,
    events::{Change, Events},
    forwarding::Entry,
    instance::Instance,
    link::Link,
    macvtap,
    mark::{self, PortMark},
    names,
    nft::{Reach, Sender},
    port,
    published::Published,
    rate::Rate,
    rtnl::{Rtnl, Snapshot},
    sources::Sources,
    uplink,
    vf::Function,
    wanted::Wanted,
};

/// A tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantId(pub u64);

/// How many ports a holder may have at one time.
pub struct Quota {
    max: u32,
    used: AtomicU32,
}

/// One port's place in a quota, until it is dropped.
pub struct Slot(Arc<Quota>);

impl Quota {
    /// Of `max` ports.
    pub fn new(max: u32) -> Arc<Quota> {
        Arc::new(Quota { max, used: AtomicU32::new(0) })
    }

    /// Takes a place.
    pub fn take(self: &Arc<Quota>) -> Result<Slot, Error> {
        let more = |used: u32| (used < self.max).then(|| used + 1);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Slot(self.clone())),
            Err(_) => Err(Error::Quota(self.max)),
        }
    }
}

impl Slot {
    /// Whether it is a place in that quota.
    pub fn is_of(&self, quota: &Arc<Quota>) -> bool {
        Arc::ptr_eq(&self.0, quota)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What has become of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It is there.
    Attached,
    /// It was given up, by whomever.
    Released,
    /// Something else on this host has taken its interface away.
    Lost,
}

/// A port. Its interface is never given up for another one.
pub struct Port {
    /// What its interface is.
    pub kind: names::Kind,
    /// Of its interface.
    pub index: u32,
    /// Its interface's name.
    pub interface: String,
    /// The guest's address.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// Whether it is kept from others that are: as its network is defined.
    pub isolate: bool,
    /// What the guest may send from.
    pub sources: Sources,
    /// Where the guest may send to; `None` for wherever it likes.
    pub policy: Option<Rules>,
    /// What its holder can have that be within.
    pub bound: Option<Rules>,
    /// Which ports of the host lead to the guest.
    pub published: Vec<Published>,
    /// How much it carries.
    pub rate: Rate,
    /// What its holder can have that be within.
    pub rate_bound: Rate,
    /// The alternative name by which a durable one is found.
    pub reference: Option<String>,
    /// The virtual function that it is on, if it is on one.
    pub function: Option<Function>,
    /// `None` for a port of an earlier netmgr that is not durable, which is there as long as some process has its TAP open, or its other end's
    /// network namespace is.
    pub held: Option<Held>,
}

/// What this netmgr has of a port that it made, or that is durable.
pub struct Held {
    /// Which port of its workload's it is.
    pub serial: u64,
    /// Closed once the port's interface is gone; none of a veth.
    pub tap: Option<Arc<OwnedFd>>,
    /// Whether it was said whose its addresses are.
    pub announced: bool,
    /// What its holder sees.
    pub state: watch::Sender<PortState>,
    /// Whose it is, if a tenant's.
    pub tenant: Option<TenantId>,
    /// Its place in a quota; none of a durable one that an earlier netmgr made.
    pub slot: Option<Slot>,
}

impl Port {
    /// Whether it is on its way off the host.
    pub fn leaves(&self) -> bool {
        self.held.as_ref().is_some_and(|held| *held.state.borrow() == PortState::Released)
    }

    /// Whether it is a macvtap of an earlier netmgr, of which nobody knows whether it is used.
    pub fn is_left(&self) -> bool {
        self.held.is_none() && matches!(self.kind, names::Kind::Macvtap(_))
    }

    /// Whether it is the one of that number.
    pub fn is(&self, serial: u64) -> bool {
        self.held.as_ref().is_some_and(|held| held.serial == serial)
    }

    /// Whether it has a place in that quota.
    pub fn takes(&self, quota: &Arc<Quota>) -> bool {
        self.held.as_ref().and_then(|held| held.slot.as_ref()).is_some_and(|slot| slot.is_of(quota))
    }

    /// Whether its guest and one with the address `mac` would take each other's frames, or those for the host's end of their TAPs.
    pub fn shares(&self, mac: Mac) -> bool {
        [self.mac, self.mac.host_side()].iter().any(|taken| *taken == mac || *taken == mac.host_side())
    }

    /// What is left of it.
    pub fn left(self) -> Left {
        Left { sources: self.sources, published: self.published }
    }

    /// Says whose its addresses are, once, when its bridge forwards that.
    fn announce(&mut self, link: &Link) {
        if let Some(held) = &mut self.held
            && let Some(tap) = &held.tap
            && (link.open || matches!(self.kind, names::Kind::Macvtap(_)) && link.up && !link.no_carrier)
            && !mem::replace(&mut held.announced, true)
        {
            announce::announce(&**tap, self.mac, &self.sources);
        }
    }

    /// As it should be.
    pub fn wanted<'a>(&'a self, workload: &'a str, network: &'a str, bridge: u32, owner: &'a Instance) -> Wanted<'a> {
        let Port { kind, interface: name, mac, mtu, isolate, sources, .. } = self;
        let (kind, mac, mtu, isolate) = (*kind, *mac, *mtu, *isolate);
        let (reference, policy, function) = (self.reference.as_deref(), self.policy.as_ref(), self.function.as_ref());
        let bridge = function.map_or(bridge, |function| function.interface);
        Wanted { kind, name, network, bridge, mtu, isolate, workload, mac, sources, reference, policy, function, owner }
    }

    /// What may come from it.
    pub fn sends<'a>(&'a self, workload: &'a str, network: &'a str) -> Sender<'a> {
        let Port { interface, mac, sources, policy, rate, .. } = self;
        Sender { interface, mac: *mac, sources, network, workload, policy: policy.as_ref(), rate: *rate }
    }

    /// Says that its interface is gone. That one of an earlier netmgr's goes is in order: the process that had its TAP open has ended; and that a veth
    /// goes, as its container does.
    fn lose(&self, workload: &str, network: &str) {
        if let Some(held) = &self.held {
            held.state.send_replace(PortState::Lost);
            if self.kind != names::Kind::Veth {
                let lost = self.kind.gone(&self.interface);
                confine::say!("netmgr: the port of {workload} on network {network} is lost: {lost}");
            }
        }
    }
}

/// What has been a port's: its connections by way of the host are ended before somebody else has its addresses.
pub struct Left {
    /// Which its guest had.
    pub sources: Sources,
    /// Which ports of the host led to it.
    pub published: Vec<Published>,
}

/// A network.
pub struct Network {
    /// Which network of that name it is.
    pub serial: u64,
    /// Of its bridge, or, where its ports are macvtaps, of the interface that these are on.
    pub index: u32,
    /// Its definition.
    pub config: Config,
    /// What its ports to come are subject to, where nothing else is said.
    pub policy: Option<Rules>,
    /// By workload.
    pub ports: BTreeMap<String, Port>,
    /// What has been of ports that are not there any more, until it has ended too.
    pub left: Vec<Left>,
    /// For those who watch these.
    pub events: Events,
    /// Why it is not as it should be, once that was said.
    trouble: Option<String>,
    /// Whether its bridge was made to carry what the host sends from its loopback network.
    answers_loopback: bool,
}

impl Network {
    /// One whose bridge has that index, without ports.
    pub fn new(serial: u64, index: u32, config: Config) -> Network {
        let (ports, events) = (BTreeMap::new(), Events::default());
        let (left, trouble, answers_loopback) = (Vec::new(), None, false);
        Network { serial, index, config, policy: None, ports, events, left, trouble, answers_loopback }
    }

    /// What the rules know of it, whose bridge has that name at present.
    pub fn reach<'a>(&'a self, bridge: Option<&'a str>) -> Reach<'a> {
        let Config { name, address, ipv6, kind, .. } = &self.config;
        let is_ours = *kind != Kind::Isolated;
        Reach {
            network: name,
            interfaces: [Some(name), bridge.filter(|bridge| bridge != name)],
            ipv4: address.filter(|_| is_ours).map(|address| (address.ip, address.prefix)),
            ipv6: ipv6.filter(|_| is_ours).map(|address| (address.ip, address.prefix)),
            uplink: self.config.vlan().is_some(),
            outward: kind.leads_outward(),
            closed: matches!(kind, Kind::HostOnly | Kind::Isolated),
        }
    }

    /// Takes on the ports of an earlier netmgr: those that are marked as this network's, those on its bridge whose mark names no owner, and
    /// those on its bridge whose mark somebody has cleared, as far as can be told ([`Network::cleared`]).
    pub fn adopt(&mut self, links: &[Link], owner: &Instance, mut serial: impl FnMut() -> u64) {
        for (link, kind) in links.iter().filter_map(|link| Some((link, names::Kind::of(link)?))) {
            let Some(mark) = mark::read_port(&link.alias).or_else(|| self.cleared(link, owner)) else { continue };
            let named =
                mark.owner == *owner && mark.on.as_ref().is_some_and(|(network, _)| *network == self.config.name);
            let on_bridge = owner.may_have(&mark.owner) && link.master == self.index;
            if named || on_bridge {
                let network = &self.config.name;
                let interface = names::of_port(kind, network, &mark.workload, &link.name, &link.alternatives);
                let reference = mark::read_reference(&link.alternatives).filter(|_| kind == names::Kind::Veth);
                let held = reference.map(|_| Held {
                    serial: serial(),
                    tap: None,
                    announced: false,
                    state: watch::Sender::new(PortState::Attached),
                    tenant: None,
                    slot: None,
                });
                let Place::Vacant(place) = self.ports.entry(mark.workload) else { continue };
                self.events.tell(Change::Attached, place.key(), &interface);
                place.insert(Port {
                    kind,
                    index: link.index,
                    interface,
                    mac: mark.mac,
                    mtu: mark.on.map_or(link.mtu, |(_, mtu)| mtu),
                    isolate: self.config.isolate,
                    sources: mark.sources,
                    // Unless the rules have more of it: that it sends nowhere is what is safe.
                    policy: mark.policed.then(Rules::default),
                    bound: None,
                    published: Vec::new(),
                    rate: Rate::default(),
                    rate_bound: Rate::default(),
                    reference: reference.map(str::to_owned),
                    function: links
                        .iter()
                        .find(|lower| lower.index == link.lower)
                        .and_then(|lower| Function::of(lower, owner)),
                    held,
                });
            }
        }
    }

    /// Which ports of the host lead to its guests.
    pub fn published(&self) -> impl Iterator<Item = &Published> {
        self.ports.values().flat_map(|port| &port.published)
    }

    /// Has its bridge carry what the host sends from its loopback network as long as a port of the host's leads to a guest there: also where it is
    /// another bridge than before.
    pub fn answer_loopback(&mut self, rtnl: &Rtnl) {
        let answers = self.published().any(|one| one.guest.is_ipv4());
        if answers || self.answers_loopback {
            rtnl.answer_loopback(&self.config.name, answers);
        }
        self.answers_loopback = answers;
    }

    /// Takes on those that an earlier netmgr has published for guests of this one.
    pub fn adopt_published(&mut self, published: &[Published]) {
        for port in self.ports.values_mut() {
            port.published.extend(published.iter().filter(|one| port.sources.has(one.guest.ip())).cloned());
        }
    }

    /// The mark that a port's interface without any must have had: it is on this network's bridge, and its MAC address is the one that follows from this
    /// network and a workload that its names give. Nobody else makes that. One whose guest was given another address, or which is on
    /// no bridge, may be anybody's.
    fn cleared(&self, link: &Link, owner: &Instance) -> Option<PortMark> {
        let network = &self.config.name;
        if !link.alias.is_empty() || link.master != self.index {
            return None;
        }
        let names = link.alternatives.iter().chain([&link.name]);
        let kind = names::Kind::of(link)?;
        let mut workloads = names.flat_map(|name| names::workloads(kind, network, name));
        let workload =
            workloads.find(|workload| link.mac == Some(names::mac_of_guest(network, workload).host_side()))?;
        let mac = names::mac_of_guest(network, &workload);
        let (on, sources) = (Some((network.clone(), link.mtu)), Sources::default());
        Some(PortMark { workload, mac, on, sources, policed: false, owner: owner.clone() })
    }

    /// Brings the bridge to its definition, and with it the ports, if it was not: one look, where it was.
    pub fn settle(&mut self, rtnl: &mut Rtnl, owner: &Instance) -> Result<(), Error> {
        if self.config.is_macvtap() {
            self.index = macvtap::parent(rtnl, &self.config)?.index;
            return Ok(());
        }
        let snapshot = rtnl.look(self.index, self.config.has_ipv6())?;
        if !self.is_whole(rtnl, &snapshot, owner) {
            self.define_again(rtnl, owner)?;
            let links = rtnl.links()?;
            self.mend_ports(rtnl, owner, &links)?;
        }
        Ok(())
    }

    /// Whether the interface with that index is its bridge or a port of it.
    pub fn has(&self, index: u32) -> bool {
        self.index == index || self.ports.values().any(|port| port.index == index)
    }

    /// Whether the bridge is as it is defined, in what was seen of it.
    pub fn is_whole(&self, rtnl: &Rtnl, snapshot: &Snapshot, owner: &Instance) -> bool {
        if self.config.is_macvtap() {
            // The interface is the host's, and whoever needs it looks for it.
            return true;
        }
        let wanted = bridge::Wanted { config: &self.config, owner };
        snapshot.link(self.index).is_some_and(|link| wanted.is(link, snapshot) && rtnl.ipv6_is(link, wanted.has_ipv6()))
    }

    fn define_again(&mut self, rtnl: &mut Rtnl, owner: &Instance) -> Result<(), Error> {
        self.index = bridge::define(rtnl, bridge::Wanted { config: &self.config, owner }, Some(self.index))?;
        self.answer_loopback(rtnl);
        Ok(())
    }

    /// Compares the bridge and the ports with what there is on the host, and brings them back to what they should be; whether they were so.
    /// What cannot be mended is said, once.
    pub fn mend(&mut self, rtnl: &mut Rtnl, owner: &Instance, snapshot: &Snapshot) -> bool {
        let outcome = match self.try_mend(rtnl, owner, snapshot) {
            // Since it was looked at.
            Err(Error::BridgeGone(_)) => {
                let now = rtnl.snapshot(self.config.has_ipv6());
                now.and_then(|now| self.try_mend(rtnl, owner, &now))
            }
            outcome => outcome,
        };
        let (mended, trouble) = match outcome {
            Ok(mended) => (mended, None),
            Err(error) => (false, Some(error.fault(&format!("mend network {}", self.config.name)).to_string())),
        };
        if mended {
            let name = &self.config.name;
            confine::say!(
                "netmgr: network {name} is as it is defined again; something else on this host had changed it"
            );
        } else if let Some(trouble) = trouble.as_ref().filter(|trouble| self.trouble.as_ref() != Some(trouble)) {
            confine::say!("netmgr: {trouble}");
        }
        self.trouble = trouble;
        !mended && self.trouble.is_none()
    }

    fn try_mend(&mut self, rtnl: &mut Rtnl, owner: &Instance, snapshot: &Snapshot) -> Result<bool, Error> {
        let whole = self.is_whole(rtnl, snapshot, owner);
        if !whole {
            self.define_again(rtnl, owner)?;
        }
        let ports = self.mend_ports(rtnl, owner, &snapshot.links)?;
        // Last: what it is on may be gone for good.
        Ok(self.mend_uplink(rtnl, owner, &snapshot.links)? || ports || !whole)
    }

    /// Brings its uplink back to what it should be; whether it was not so.
    pub fn mend_uplink(&mut self, rtnl: &mut Rtnl, owner: &Instance, links: &[Link]) -> Result<bool, Error> {
        if self.config.is_macvtap() {
            return Ok(false);
        }
        let wanted = bridge::Wanted { config: &self.config, owner };
        let whole = uplink::is(rtnl, wanted, self.index, links);
        if !whole {
            uplink::bring(rtnl, wanted, self.index)?;
        }
        Ok(!whole)
    }

    /// Brings back the ports that are not as they should be, and forgets those whose interface is gone; whether there was one to mend.
    pub fn mend_ports(&mut self, rtnl: &mut Rtnl, owner: &Instance, links: &[Link]) -> Result<bool, Error> {
        let Network { index: bridge, config, ports, left, events, .. } = self;
        let links: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let forwards = !config.is_macvtap();
        let kept = if ports.is_empty() || !forwards { Vec::new() } else { rtnl.forwarding(*bridge)? };
        let kept: BTreeSet<(u32, [u8; 6])> =
            kept.into_iter().map(|Entry { index, mac }| (index, mac.bytes())).collect();
        let of_card = ports.values().any(|port| port.function.is_some());
        let functions = if of_card { rtnl.functions(*bridge)? } else { Vec::new() };
        let (mut mended, mut failed) = (false, None);
        ports.retain(|workload, port| {
            let wanted = port.wanted(workload, &config.name, *bridge, owner);
            let is = |link: &&Link| match wanted.kind {
                names::Kind::Macvtap(_) => {
                    let is = |function: &Function| {
                        function.is(links.get(&function.interface).copied(), &functions, wanted.mac, wanted.mtu, owner)
                    };
                    macvtap::is(rtnl, &wanted, link) && wanted.function.is_none_or(is)
                }
                _ => wanted.is(link) && !rtnl.port_has_ipv6(link),
            };
            let is_kept = !forwards || kept.contains(&(port.index, port.mac.bytes()));
            if port.leaves() || is_kept && links.get(&port.index).is_some_and(is) {
                links.get(&port.index).into_iter().for_each(|link| port.announce(link));
                return true;
            }
            match port::mend(rtnl, &wanted, port.index) {
                Ok(None) => {
                    port.lose(workload, &config.name);
                    let (sources, published) = (port.sources.clone(), mem::take(&mut port.published));
                    left.push(Left { sources, published });
                    events.tell(Change::Gone, workload, &port.interface);
                    return false;
                }
                Ok(Some(true)) => {
                    mended = true;
                    events.tell(Change::Changed, workload, &port.interface);
                }
                Ok(Some(false)) => {}
                Err(error) => failed = Some(error),
            }
            true
        });
        failed.map_or(Ok(mended), Err)
    }

    /// Takes a macvtap of an earlier netmgr off the host, which nobody may use any more, as another port has what it has.
    pub fn take_left(&mut self, rtnl: &mut Rtnl, owner: &Instance, workload: &str) -> Result<(), Error> {
        if let Some(port) = self.ports.get(workload) {
            let wanted = port.wanted(workload, &self.config.name, self.index, owner);
            macvtap::delete(rtnl, &wanted, port.index)?;
            self.events.tell(Change::Gone, workload, &port.interface);
            self.ports.remove(workload);
        }
        Ok(())
    }

    /// Whether that port is as it should be, and the bridge's table has it; one that is says whose its addresses are.
    pub fn is_port_right(&mut self, rtnl: &mut Rtnl, owner: &Instance, workload: &str) -> Result<bool, Error> {
        let Some(port) = self.ports.get_mut(workload).filter(|port| !port.leaves()) else { return Ok(true) };
        let wanted = port.wanted(workload, &self.config.name, self.index, owner);
        let Some(link) = rtnl.link(LinkUnspec::new_with_index(port.index))? else { return Ok(false) };
        let right = match wanted.kind {
            names::Kind::Macvtap(_) => {
                let is = |function: &Function| function.is_right(rtnl, wanted.mac, wanted.mtu, owner);
                wanted.function.map_or(Ok(true), is)? && macvtap::is(rtnl, &wanted, &link)
            }
            _ => {
                let is = wanted.is(&link) && !rtnl.port_has_ipv6(&link);
                is && rtnl.forwards(port.index, port.mac)? == Some(wanted.entry(port.index))
            }
        };
        if right {
            port.announce(&link);
        }
        Ok(right)
    }

    /// Sees whether a port is still there, and brings it back to what it should be; forgets it if it is not.
    pub fn confirm(&mut self, rtnl: &mut Rtnl, owner: &Instance, workload: &str) -> Result<bool, Error> {
        let Some(port) = self.ports.get(workload) else { return Ok(false) };
        let wanted = port.wanted(workload, &self.config.name, self.index, owner);
        let found = port::mend(rtnl, &wanted, port.index)?;
        match found {
            Some(true) => self.events.tell(Change::Changed, workload, &port.interface),
            Some(false) => {}
            None => {
                port.lose(workload, &self.config.name);
                self.events.tell(Change::Gone, workload, &port.interface);
                self.left.extend(self.ports.remove(workload).map(Port::left));
            }
        }
        Ok(found.is_some())
    }
}
