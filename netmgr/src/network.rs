//! One network: its definition and its ports, and how both are brought back to what they should be where the kernel's state differs.
//! Runs on the rtnl thread.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    net::IpAddr,
};

use rtnetlink::LinkUnspec;
use schema::policy::Rules;
use tokio::sync::watch;

use crate::{
    announce::Had,
    bridge,
    config::{Config, Kind},
    error::Error,
    events::{Change, Events},
    forwarding::Entry,
    instance::Instance,
    link::Link,
    macvtap,
    mark::{self, PortMark},
    names,
    nft::Reach,
    port,
    ports::{Held, Left, Port, PortState, Ports},
    published::Published,
    rate::Rate,
    rtnl::{Rtnl, Snapshot},
    sources::Sources,
    uplink,
    vf::Function,
};

/// How many interfaces that were ports are known as such, for what is still to be heard of them: as many as come and go in some seconds.
const MOST_GONE: usize = 1024;

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
    pub ports: Ports,
    /// Who has had the addresses of its guests, as far as whoever is there may know.
    pub had: Had,
    /// The indexes of interfaces that were ports of it, the last ones.
    gone: VecDeque<u32>,
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
        let (ports, had, gone, events) = (Ports::default(), Had::default(), VecDeque::new(), Events::default());
        let (left, trouble, answers_loopback) = (Vec::new(), None, false);
        Network { serial, index, config, policy: None, ports, had, gone, events, left, trouble, answers_loopback }
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
                if self.ports.contains_key(&mark.workload) {
                    continue;
                }
                self.events.tell(Change::Attached, &mark.workload, &interface);
                let port = Port {
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
                };
                self.ports.insert(mark.workload, port);
                // Its guest was there before this netmgr knew of any.
                self.had = Had::Unknown;
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
        self.index == index || self.ports.has(index)
    }

    /// Forgets the port of a workload, whose interface nobody but its guest has had.
    pub fn forget(&mut self, workload: &str) -> Option<Port> {
        let port = self.ports.remove(workload)?;
        note_gone(&mut self.gone, port.index);
        Some(port)
    }

    /// Notes who was on bridges, by their interfaces' indexes and the bridges', and which addresses the host itself has had: others on its bridge may have
    /// had any.
    pub fn note(&mut self, ports: &BTreeSet<(u32, u32)>, hosts: &BTreeSet<IpAddr>) {
        let is_other =
            |(port, bridge): &(u32, u32)| *bridge == self.index && !self.has(*port) && !self.gone.contains(port);
        if ports.iter().any(is_other) {
            self.had = Had::Unknown;
        }
        self.had.note(hosts.iter().map(|address| (*address, None)));
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
        self.had = Had::Unknown;
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
        let Network { index: bridge, config, ports, had, gone, left, events, .. } = self;
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
                links.get(&port.index).into_iter().for_each(|link| port.announce(link, had));
                return true;
            }
            match port::mend(rtnl, &wanted, port.index) {
                Ok(None) => {
                    port.lose(workload, &config.name);
                    let (sources, published) = (port.sources.clone(), mem::take(&mut port.published));
                    left.push(Left { sources, published });
                    note_gone(gone, port.index);
                    events.tell(Change::Gone, workload, &port.interface);
                    return false;
                }
                Ok(Some(true)) => {
                    mended = true;
                    // What it was not kept from meanwhile, nobody knows.
                    *had = Had::Unknown;
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
            self.forget(workload);
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
            port.announce(&link, &self.had);
        }
        Ok(right)
    }

    /// Sees whether a port is still there, and brings it back to what it should be; forgets it if it is not.
    pub fn confirm(&mut self, rtnl: &mut Rtnl, owner: &Instance, workload: &str) -> Result<bool, Error> {
        let Some(port) = self.ports.get(workload) else { return Ok(false) };
        let wanted = port.wanted(workload, &self.config.name, self.index, owner);
        let found = port::mend(rtnl, &wanted, port.index)?;
        match found {
            Some(true) => {
                self.had = Had::Unknown;
                self.events.tell(Change::Changed, workload, &port.interface);
            }
            Some(false) => {}
            None => {
                port.lose(workload, &self.config.name);
                self.events.tell(Change::Gone, workload, &port.interface);
                let port = self.forget(workload);
                self.left.extend(port.map(Port::left));
            }
        }
        Ok(found.is_some())
    }
}

fn note_gone(gone: &mut VecDeque<u32>, index: u32) {
    gone.truncate(MOST_GONE - 1);
    gone.push_front(index);
}
