//! Bridges: made, adopted, brought to a configuration, removed. Touches only bridges that netmgr made.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::Instant,
};

use rtnetlink::{
    LinkUnspec, RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{
            AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind, LinkAttribute,
        },
        route::{RouteMessage, RouteProtocol},
    },
};

use crate::{
    address::{Address, InterfaceAddress},
    ask::{MOMENT, incomplete, retried_from_look},
    config::{Config, Kind},
    error::Error,
    instance::Instance,
    link::Link,
    mark, names,
    netlink::DEADLINE,
    route::Route,
    rtnl::{Batch, LinkBuilder, Rtnl, Snapshot},
};

/// A bridge as it should be.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Its network's configuration, with an MTU.
    pub config: &'a Config,
    /// Whose it is.
    pub owner: &'a Instance,
}

impl Wanted<'_> {
    /// Whether the bridge that is there is just so: itself, its addresses, and the routes that come with these.
    ///
    /// What the definition does not speak of is whoever's who runs the host: further names, the group (but for the one it was made in), queues,
    /// filters (nf_call_iptables and the like), sysctls of IPv4, and options of the bridge that do not keep frames from anybody. None of these is
    /// netmgr's to change back, and some are a limit that somebody has put on guests.
    pub fn is(&self, link: &Link, snapshot: &Snapshot) -> bool {
        let Wanted { config, owner } = *self;
        link.name == config.name
            && link.alias == mark::bridge(config, owner)
            && link.mac == Some(names::mac_of_bridge(&config.name))
            && (link.up, link.no_arp, link.mtu, link.master) == (true, false, config.mtu, 0)
            && !(link.stp || link.vlans || link.snooping)
            && link.delay == 0
            && link.group != names::half_made(owner)
            && self.on(link.index, snapshot).all(|has| self.has(has))
            && self.on(link.index, snapshot).count() == self.addresses().count()
            && self.addresses().all(|address| missing(link.index, address, &snapshot.routes).is_empty())
    }

    /// Whether the host has IPv6 there.
    pub fn has_ipv6(&self) -> bool {
        self.config.has_ipv6()
    }

    /// The addresses that it should have: those of its configuration, and beside one of IPv6 the link-local one that follows from its MAC address,
    /// as routers have one (RFC 4291, section 2.8).
    fn addresses(&self) -> impl Iterator<Item = Address> {
        const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
        let link_local = names::mac_of_bridge(&self.config.name).ipv6_in(LINK_LOCAL).into();
        let of_ipv6 = self.config.ipv6.filter(|_| self.has_ipv6());
        let link_local = of_ipv6.map(|of_ipv6| Address { ip: link_local, ..of_ipv6.of_any() });
        self.config.addresses().chain(link_local)
    }

    /// The addresses that it has. Where its IPv6 is off, which has no address, or cannot be switched off, one of these says nothing.
    fn on<'a>(&self, index: u32, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a InterfaceAddress> {
        let has_ipv6 = self.has_ipv6();
        snapshot.on(index).filter(move |assigned| has_ipv6 || assigned.address.ip.is_ipv4())
    }

    /// Whether that address of the bridge is one that it should have.
    fn has(&self, assigned: &InterfaceAddress) -> bool {
        assigned.plain && self.addresses().any(|address| assigned.address == address)
    }

    /// Whether that one needs nothing done to it. Routes of IPv6 come with their address, and only so.
    fn keeps(&self, assigned: &InterfaceAddress, snapshot: &Snapshot) -> bool {
        let InterfaceAddress { index, address, .. } = *assigned;
        self.has(assigned) && (address.ip.is_ipv4() || missing(index, address, &snapshot.routes).is_empty())
    }

    fn may_be(&self, link: &Link) -> bool {
        link.is_bridge_of(&self.config.name, self.owner)
    }

    fn foreign(&self, link: &Link) -> Error {
        let name = self.config.name.clone();
        match link.bridge_mark() {
            Some(mark) if !self.owner.may_have(&mark.owner) => Error::OthersBridge { name, owner: mark.owner },
            _ => Error::ForeignInterface { name },
        }
    }
}

/// Those of the routes that the kernel makes for a bridge's address that are not there any more.
fn missing(index: u32, address: Address, routes: &[Route]) -> Vec<Route> {
    Route::of(index, address).into_iter().filter(|route| !route.is_in(routes)).collect()
}

/// Makes the bridge of a network, or brings the one that is there (under another name, if it is the one with index `known`) to what is
/// wanted; gives its interface index. A bridge that is made here and cannot be brought to that is taken away again.
pub fn define(rtnl: &mut Rtnl, wanted: Wanted<'_>, known: Option<u32>) -> Result<u32, Error> {
    retried_from_look(|| try_define(rtnl, wanted, known))
}

fn try_define(rtnl: &mut Rtnl, wanted: Wanted<'_>, known: Option<u32>) -> Result<u32, Error> {
    let config = wanted.config;
    let named = rtnl.link(LinkUnspec::new_with_name(&config.name))?;
    let known = known.filter(|known| named.as_ref().is_none_or(|named| named.index != *known));
    let renamed = known.map(|index| rtnl.link(LinkUnspec::new_with_index(index))).transpose()?.flatten();
    let there = match (named, renamed.filter(|link| wanted.may_be(link))) {
        (Some(link), None) if wanted.may_be(&link) => Some(link),
        (Some(link), _) => return Err(wanted.foreign(&link)),
        (None, renamed) => renamed,
    };
    let index = there.as_ref().map(|link| link.index);
    let snapshot = index.map(|index| rtnl.look(index, wanted.has_ipv6())).transpose()?.unwrap_or_default();
    for subnet in config.addresses() {
        if !snapshot.addresses.iter().any(|assigned| assigned.address == subnet)
            && let Some((held, holder)) = rtnl.holder(subnet, index)?
        {
            return Err(Error::SubnetHeld { subnet, held, holder });
        }
    }
    match there {
        Some(link) if wanted.is(&link, &snapshot) && rtnl.ipv6_is(&link, wanted.has_ipv6()) => Ok(link.index),
        Some(link) => configure(rtnl, &link, &snapshot, wanted),
        None => {
            let made = make(rtnl, &config.name, wanted.owner)?;
            let link = made.filter(|link| wanted.may_be(link));
            let link = link.ok_or_else(|| Error::ForeignInterface { name: config.name.clone() })?;
            configure(rtnl, &link, &snapshot, wanted).inspect_err(|_| {
                // The error that is reported is the first one. What this leaves, the next definition adopts.
                let _ = rtnl.delete(link.index, |link| link.mac == Some(names::mac_of_bridge(&config.name)));
            })
        }
    }
}

/// The MTU of the bridge that a network would adopt.
pub fn mtu(rtnl: &mut Rtnl, network: &str, owner: &Instance) -> Result<Option<u32>, Error> {
    let link = rtnl.link(LinkUnspec::new_with_name(network))?;
    Ok(link.filter(|link| link.is_bridge_of(network, owner)).map(|link| link.mtu))
}

/// Takes a network's bridge off the host, if it is still there.
pub fn remove(rtnl: &mut Rtnl, wanted: Wanted<'_>, index: u32) -> Result<(), Error> {
    rtnl.delete(index, |link| wanted.may_be(link))
}

/// The networks whose bridges `owner`, this netmgr or an earlier one, has made: index, and the definition, if need be (an earlier release noted
/// none) the one that the kernel's state amounts to.
pub fn existing(snapshot: &Snapshot, owner: &Instance) -> Vec<(u32, Config)> {
    let found = snapshot.links.iter().filter_map(|link| {
        let mark = link.bridge_mark().filter(|mark| mark.owner == *owner)?;
        let of_ipv4 = |InterfaceAddress { address, .. }: &InterfaceAddress| match address.ip {
            IpAddr::V4(ip) => Some(Address { ip, prefix: address.prefix }),
            IpAddr::V6(_) => None,
        };
        let address = || snapshot.on(link.index).find_map(of_ipv4);
        let (name, mtu) = (link.name.clone(), link.mtu);
        let now =
            || Config { name, address: address(), ipv6: None, mtu, kind: Kind::Bridged, uplink: None, isolate: false };
        Some((link.index, mark.config.unwrap_or_else(now)))
    });
    found.collect()
}

/// Makes a bridge, down and without mark; `None` if the name is taken.
fn make(rtnl: &mut Rtnl, name: &str, owner: &Instance) -> Result<Option<Link>, Error> {
    let mut batch = Batch::default();
    // The address is fixed for the gateway's sake, and tells that the bridge is ours until the mark is set.
    let bridge = with([no_stp()].into_iter().chain(to_all_at_once()))
        .name(name)
        .address(names::mac_of_bridge(name).bytes().to_vec())
        .link_group(names::half_made(owner));
    let message = RouteNetlinkMessage::NewLink(bridge.build());
    batch.add(format!("make bridge {name}"), NLM_F_CREATE | NLM_F_EXCL, message);
    let links = match rtnl.run(batch.get(LinkUnspec::new_with_name(name))) {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => return Ok(None),
        links => links?,
    };
    links.into_iter().next().ok_or(incomplete("make a bridge")).map(Some)
}

fn no_stp() -> InfoBridge {
    InfoBridge::StpState(BridgeStpState::Disabled)
}

/// No port waits before it is used, and none misses a multicast that it has not asked for: neighbour discovery is multicasts, and not all
/// guests ask (RFC 4541, section 3).
fn to_all_at_once() -> [InfoBridge; 2] {
    [InfoBridge::ForwardDelay(0), InfoBridge::MulticastSnooping(false)]
}

fn with(options: impl IntoIterator<Item = InfoBridge>) -> LinkBuilder {
    let options = options.into_iter().collect();
    LinkBuilder::new_with_info_kind(InfoKind::Bridge).set_info_data(InfoData::Bridge(options))
}

fn configure(rtnl: &mut Rtnl, link: &Link, snapshot: &Snapshot, wanted: Wanted<'_>) -> Result<u32, Error> {
    let Wanted { config, owner } = wanted;
    let name = &config.name;
    let bridge = || LinkUnspec::new_with_index(link.index);
    let mut batch = Batch::default();
    if link.name != *name {
        // Kernels before 6.2 rename no interface that is up.
        batch.set(format!("take {} down", link.name), bridge().down());
        batch.set(format!("give {} its name {name} again", link.name), bridge().name(name));
        rtnl.run(&mut batch)?;
    }
    // The kernel's settings of another namespace are out of reach: there, the bridge has IPv6, and no address.
    if wanted.has_ipv6() || config.kind == Kind::Isolated {
        // It has the link-local address from here, which nobody else may have: there is nothing to find out first (RFC 4862, section 5.4).
        let by_hand = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let by_hand = bridge().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![by_hand]));
        // A kernel without IPv6 refuses, which is said next.
        rtnl.run(batch.set("keep addresses of the kernel's own off a bridge", by_hand).optional())?;
    }
    // While a new one is still down.
    rtnl.set_ipv6(name, wanted.has_ipv6())?;
    // Set apart from creation: an MTU that is given there is lost when the first port comes.
    let mut marked = bridge().alias(mark::bridge(config, owner)).mtu(config.mtu);
    if link.mac != Some(names::mac_of_bridge(name)) {
        marked = marked.address(names::mac_of_bridge(name).bytes().to_vec());
    }
    batch.set(format!("mark bridge {name}, and set its MTU to {}", config.mtu), marked);
    if link.master != 0 {
        batch.set(format!("take bridge {name} off what it was put under"), bridge().nocontroller());
    }
    if link.stp {
        let message = RouteNetlinkMessage::NewLink(with([no_stp()]).index(link.index).build());
        batch.add(format!("switch off the spanning tree protocol of {name}"), 0, message);
    }
    if link.snooping || link.delay != 0 {
        let message = RouteNetlinkMessage::NewLink(with(to_all_at_once()).index(link.index).build());
        batch.add(format!("switch off the multicast snooping and the delay of {name}"), 0, message);
    }
    // Some kernels have none, and refuse even to switch them off.
    if link.vlans {
        let message = RouteNetlinkMessage::NewLink(with([InfoBridge::VlanFiltering(false)]).index(link.index).build());
        batch.add(format!("switch off the VLANs of {name}"), 0, message);
    }
    // First those that go, and of these those first that a subnet's first address would take with it.
    let mut gone: Vec<&InterfaceAddress> =
        wanted.on(link.index, snapshot).filter(|has| !wanted.keeps(has, snapshot)).collect();
    gone.sort_by_key(|assigned| !assigned.secondary);
    for InterfaceAddress { address, peer, .. } in gone {
        let message = RouteNetlinkMessage::DelAddress(assignment(link.index, *address, *peer));
        let given = batch.add(format!("take {address} off {name}"), 0, message);
        if address.ip.is_ipv6() {
            // It goes with an interface that was taken down.
            given.optional();
        }
    }
    let mut up = bridge().arp(true).up();
    if link.group == names::half_made(owner) {
        up = up.link_group(0);
    }
    batch.set(format!("bring {name} up"), up);
    // Those of IPv6 go when the interface goes down, so that what was there before says nothing.
    let kept = |address: &Address| {
        let mut has = wanted.on(link.index, snapshot).filter(|has| wanted.keeps(has, snapshot));
        address.ip.is_ipv4() && has.any(|has| has.address == *address)
    };
    for address in wanted.addresses().filter(|address| !kept(address)) {
        let message = RouteNetlinkMessage::NewAddress(new_assignment(link.index, address));
        batch.add(format!("give {address} to {name}"), NLM_F_CREATE | NLM_F_REPLACE, message);
    }
    batch.get(bridge());
    let now = rtnl.run(&mut batch)?.pop().ok_or(incomplete("configure a bridge"))?;
    if now.name != *name || !now.is_bridge_of(name, owner) || !now.up || now.mtu != config.mtu {
        return Err(Error::Answer {
            tried: format!("bring bridge {name} to its configuration"),
            why: "it has another name, state or MTU".into(),
        });
    }
    mend_routes(rtnl, now.index, wanted)?;
    Ok(now.index)
}

/// Sees to it that the routes are there that the kernel makes for the bridge's addresses: of IPv4, what is not now was taken away before; those of
/// IPv6 it makes a moment after the address.
fn mend_routes(rtnl: &mut Rtnl, index: u32, wanted: Wanted<'_>) -> Result<(), Error> {
    if wanted.addresses().count() == 0 {
        return Ok(());
    }
    let missing = |rtnl: &mut Rtnl| {
        let routes = rtnl.routes(Some(index), wanted.has_ipv6())?;
        let missing: Vec<Route> = wanted.addresses().flat_map(|address| missing(index, address, &routes)).collect();
        Ok::<_, Error>(missing)
    };
    let lead = |route: &Route| format!("lead {} through {} again", route.to, wanted.config.name);
    let gone = missing(rtnl)?;
    let mut batch = Batch::default();
    let of_ipv4 = gone.iter().filter_map(|route| Some((route, message(index, route)?)));
    for (route, message) in of_ipv4 {
        // It may be there, behind another one.
        batch.add("take a route away", 0, RouteNetlinkMessage::DelRoute(message.clone())).optional();
        // In front of any other one with the same metric.
        batch.add(lead(route), NLM_F_CREATE, RouteNetlinkMessage::NewRoute(message));
    }
    if !batch.is_empty() {
        rtnl.run(&mut batch)?;
    }
    let end = Instant::now() + DEADLINE;
    let mut coming = gone;
    while let Some(route) = coming.into_iter().find(|route| route.to.ip.is_ipv6()) {
        if Instant::now() >= end {
            return Err(Error::Answer { tried: lead(&route), why: "there is no such route".into() });
        }
        thread::park_timeout(MOMENT);
        coming = missing(rtnl)?;
    }
    Ok(())
}

/// An address on an interface, be it one end of two.
fn assignment(index: u32, Address { ip, prefix }: Address, peer: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    (message.header.index, message.header.prefix_len) = (index, prefix);
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(peer)];
    message
}

/// The same, to be given: nobody is asked first whether it is somebody else's, so that it can be used at once. What a guest says of it the filter
/// drops.
fn new_assignment(index: u32, address: Address) -> AddressMessage {
    let mut message = assignment(index, address, address.ip);
    message.attributes.push(match address.broadcast() {
        Some(IpAddr::V4(broadcast)) => AddressAttribute::Broadcast(broadcast),
        _ => AddressAttribute::Flags(AddressFlags::Nodad),
    });
    message
}

/// One of [`Route::of`]; `None` for one of IPv6, which only the kernel can make so.
fn message(index: u32, route: &Route) -> Option<RouteMessage> {
    let (IpAddr::V4(to), Some(IpAddr::V4(source))) = (route.to.ip, route.source) else { return None };
    let message = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).table_id(route.table);
    let message = message.kind(route.kind).scope(route.scope).protocol(RouteProtocol::Kernel);
    Some(message.destination_prefix(to, route.to.prefix).pref_source(source).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The failure that is injected comes after the bridge has been made: the kernel takes no address with such a prefix.
    #[test]
    fn bridge_that_cannot_be_configured_is_taken_away_again_unless_it_was_there() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let test = || {
            testkit::namespace::network().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let good = Config::new("volt0", "10.42.0.1", 24, 1500).unwrap();
            let bad = Config { address: Some(Address { ip: Ipv4Addr::new(10, 42, 0, 1), prefix: 33 }), ..good.clone() };
            let owner = Instance::default();
            let [good, bad] = [&good, &bad].map(|config| Wanted { config, owner: &owner });
            let error = define(&mut rtnl, bad, None).unwrap_err();
            assert!(matches!(&error, Error::Kernel { tried, .. } if tried.starts_with("give 10.42.0.1/33")), "{error}");
            assert_eq!(rtnl.links().unwrap().len(), 1, "lo");
            let index = define(&mut rtnl, good, None).unwrap();
            define(&mut rtnl, bad, Some(index)).unwrap_err();
            // It is there still; its mark says what could not be.
            let marked = LinkUnspec::new_with_index(index).alias("volt-vmm network");
            rtnl.run(Batch::default().set("mark it", marked)).unwrap();
            assert_eq!(define(&mut rtnl, good, Some(index)).unwrap(), index);
            let address = good.config.address.unwrap().of_any();
            let plain = InterfaceAddress { index, address, peer: address.ip, secondary: false, plain: true };
            assert_eq!(rtnl.addresses(None, true).unwrap(), [plain]);
            remove(&mut rtnl, good, index).unwrap();
            assert_eq!(rtnl.links().unwrap().len(), 1);
        };
        std::thread::spawn(test).join().unwrap();
    }
}
