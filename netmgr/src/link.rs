//! What the kernel says of interfaces, addresses and routes, as values. Pure; touches nothing.
//!
//! Headers, attributes and values are read by the `rtnetlink` crate, and whole messages are not: its parsers give up a message
//! for one attribute that they do not understand (a newer kernel's, a name that is not UTF-8), and not all of them are free of
//! panics (`InfoBareUdp` in netlink-packet-route 0.34). So only what netmgr looks at is read, and the rest may be what it likes.
//! What netmgr looks at has to be whole: a message that is cut off, or an attribute whose length or value cannot be, is
//! [`Malformed`], and never read as if it said nothing.

use std::net::Ipv4Addr;

use rtnetlink::{
    packet_core::{
        Emitable, NetlinkDeserializable, NetlinkHeader, NlaBuffer, NlasIterator, Parseable, parse_mac, parse_u8,
        parse_u32,
    },
    packet_route::{
        AddressFamily,
        address::{AddressHeader, AddressScope},
        link::{InfoKind, LinkFlags, LinkHeader},
        route::{RouteHeader, RouteProtocol, RouteScope, RouteType},
    },
};

use schema::net::Mac;

use crate::{
    config::Address,
    mark::{self, BridgeMark, Instance},
    names,
};

// What the libc crate lacks of linux/if_link.h, linux/if_addr.h and linux/ipv6.h.
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_INET6_CONF: u16 = 2;
const DEVCONF_DISABLE_IPV6: usize = 26;
const IFA_RT_PRIORITY: u16 = 9;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;
/// `RT_TABLE_LOCAL`: what the host takes for itself.
const LOCAL: u8 = 255;

/// A message that does not say what it should: which part of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed {0}")]
pub struct Malformed(&'static str);

/// What a message of the kernel says.
#[derive(Debug)]
pub enum Said {
    /// `RTM_NEWLINK`.
    Link(Box<Link>),
    /// `RTM_NEWADDR`, IPv4.
    Address(Assigned),
    /// `RTM_NEWROUTE`, IPv4.
    Route(Route),
    /// Nothing that netmgr asks for.
    Other,
}

impl NetlinkDeserializable for Said {
    type Error = Malformed;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Said, Malformed> {
        Ok(match header.message_type {
            libc::RTM_NEWLINK => Said::Link(Box::new(Link::read(body)?)),
            libc::RTM_NEWADDR => Assigned::read(body)?.map_or(Said::Other, Said::Address),
            libc::RTM_NEWROUTE => Route::read(body)?.map_or(Said::Other, Said::Route),
            _ => Said::Other,
        })
    }
}

/// The attributes behind a header.
fn behind<'a>(body: &'a [u8], header: &impl Emitable) -> impl Iterator<Item = Result<NlaBuffer<&'a [u8]>, Malformed>> {
    attributes(body.get(header.buffer_len()..).unwrap_or_default())
}

/// Attributes; the last is an error where a length lies.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<NlaBuffer<&[u8]>, Malformed>> {
    NlasIterator::new(bytes).map(|one| one.map_err(|_| Malformed("attribute, whose length cannot be")))
}

fn ip(value: &[u8], what: &'static str) -> Result<Ipv4Addr, Malformed> {
    <[u8; 4]>::try_from(value).map(Ipv4Addr::from).map_err(|_| Malformed(what))
}

fn number(value: &[u8], what: &'static str) -> Result<u32, Malformed> {
    parse_u32(value).map_err(|_| Malformed(what))
}

fn switch(value: &[u8], what: &'static str) -> Result<bool, Malformed> {
    parse_u8(value).map(|value| value != 0).map_err(|_| Malformed(what))
}

/// A text. Names and aliases are bytes to the kernel: one that is not UTF-8 is somebody's all the same, is not empty, and is none of ours.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

/// An interface, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index; never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alternative names.
    pub alternatives: Vec<String>,
    /// Its alias; empty for none.
    pub alias: String,
    /// Bridge, tun, ...; none for hardware.
    pub kind: Option<InfoKind>,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_NOARP`: whether the host neither asks nor answers there whose address is whose.
    pub no_arp: bool,
    /// Whether somebody has taken its carrier away, as if its cable were out.
    pub no_carrier: bool,
    /// Bytes.
    pub mtu: u32,
    /// Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Index of the bridge that it is a port of; 0 for none.
    pub master: u32,
    /// Whether it is a bridge that runs the spanning tree protocol.
    pub stp: bool,
    /// Whether it is a bridge that keeps VLANs apart.
    pub vlans: bool,
    /// Whether the host's IPv6 is on on it.
    pub ipv6: bool,
    /// The group that it is in; 0 unless somebody chose one.
    pub group: u32,
}

impl Link {
    fn read(body: &[u8]) -> Result<Link, Malformed> {
        let header = LinkHeader::parse(body).ok().filter(|header| header.index != 0);
        let header = header.ok_or(Malformed("message about an interface"))?;
        let (up, no_arp) = (header.flags.contains(LinkFlags::Up), header.flags.contains(LinkFlags::Noarp));
        let mut link = Link { index: header.index, up, no_arp, ..Link::default() };
        for one in behind(body, &header) {
            let one = one?;
            let value = one.value();
            match one.kind() {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_MTU => link.mtu = number(value, "MTU")?,
                // Not all kinds of interfaces have six bytes of it.
                libc::IFLA_ADDRESS => link.mac = parse_mac(value).ok().and_then(Mac::new),
                libc::IFLA_MASTER => link.master = number(value, "index of a bridge")?,
                libc::IFLA_GROUP => link.group = number(value, "group of interfaces")?,
                libc::IFLA_CARRIER => link.no_carrier = !switch(value, "carrier")?,
                libc::IFLA_LINKINFO => link.read_info(value)?,
                libc::IFLA_PROP_LIST => link.read_properties(value)?,
                libc::IFLA_AF_SPEC => link.read_families(value)?,
                _ => {}
            }
        }
        if link.name.is_empty() { Err(Malformed("message about an interface, without a name")) } else { Ok(link) }
    }

    fn read_info(&mut self, info: &[u8]) -> Result<(), Malformed> {
        for one in attributes(info) {
            let one = one?;
            match one.kind() {
                libc::IFLA_INFO_KIND => {
                    self.kind = Some(InfoKind::parse(&one).map_err(|_| Malformed("kind of interface"))?);
                }
                libc::IFLA_INFO_DATA if self.kind == Some(InfoKind::Bridge) => {
                    for one in attributes(one.value()) {
                        let one = one?;
                        match one.kind() {
                            IFLA_BR_STP_STATE => self.stp = number(one.value(), "state of a bridge")? != 0,
                            IFLA_BR_VLAN_FILTERING => self.vlans = switch(one.value(), "state of a bridge")?,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_properties(&mut self, properties: &[u8]) -> Result<(), Malformed> {
        for one in attributes(properties) {
            let one = one?;
            if one.kind() == libc::IFLA_ALT_IFNAME {
                self.alternatives.push(text(one.value()));
            }
        }
        Ok(())
    }

    fn read_families(&mut self, families: &[u8]) -> Result<(), Malformed> {
        for family in attributes(families) {
            let family = family?;
            if family.kind() != libc::AF_INET6 as u16 {
                continue;
            }
            for one in attributes(family.value()) {
                let one = one?;
                if one.kind() == IFLA_INET6_CONF {
                    let setting = one.value().chunks_exact(4).nth(DEVCONF_DISABLE_IPV6);
                    let setting = setting.ok_or(Malformed("list of IPv6 settings"))?;
                    self.ipv6 = number(setting, "list of IPv6 settings")? == 0;
                }
            }
        }
        Ok(())
    }

    /// The mark of a bridge that a netmgr made. One without any alias but with the MAC address that netmgr gives at creation was made by
    /// one that was killed before it could set the mark, as the kernel takes no alias at creation; or somebody has cleared it.
    pub fn bridge_mark(&self) -> Option<BridgeMark> {
        let half_made = || self.alias.is_empty() && self.mac == Some(names::mac_of_bridge(&self.name));
        let half_made = || half_made().then(|| BridgeMark { config: None, owner: Instance::default() });
        (self.kind == Some(InfoKind::Bridge)).then(|| mark::read_bridge(&self.alias).or_else(half_made)).flatten()
    }

    /// Whether it is a bridge that the netmgr of `instance` may have as that of the network of that name.
    pub fn is_bridge_of(&self, network: &str, instance: &Instance) -> bool {
        self.bridge_mark().is_some_and(|mark| {
            mark.config.as_ref().map_or(&self.name, |config| &config.name) == network && instance.may_have(&mark.owner)
        })
    }
}

/// An IPv4 address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Of the interface.
    pub index: u32,
    /// What it is.
    pub address: Address,
    /// The other end's, on a point-to-point interface; else the same.
    pub peer: Ipv4Addr,
    /// Whether it is not the first of its subnet on that interface; it goes with the first one.
    pub secondary: bool,
    /// Whether there is nothing special about it: for ever, for everybody, with the routes that the kernel makes for it.
    pub plain: bool,
}

impl Assigned {
    fn read(body: &[u8]) -> Result<Option<Assigned>, Malformed> {
        let header = AddressHeader::parse(body).map_err(|_| Malformed("message about an address"))?;
        if header.family != AddressFamily::Inet {
            return Ok(None);
        }
        let (mut local, mut peer, mut broadcast, mut metric) = (None, None, None, 0);
        let mut flags = u32::from(header.flags.bits());
        for one in behind(body, &header) {
            let one = one?;
            let value = one.value();
            match one.kind() {
                libc::IFA_LOCAL => local = Some(ip(value, "address")?),
                libc::IFA_ADDRESS => peer = Some(ip(value, "address")?),
                libc::IFA_BROADCAST => broadcast = Some(ip(value, "address")?),
                libc::IFA_FLAGS => flags = number(value, "state of an address")?,
                IFA_RT_PRIORITY => metric = number(value, "metric")?,
                _ => {}
            }
        }
        let (Some(ip), prefix @ 0..=32) = (local.or(peer), header.prefix_len) else {
            return Err(Malformed("message about an address"));
        };
        let (address, peer) = (Address { ip, prefix }, peer.unwrap_or(ip));
        let special = libc::IFA_F_SECONDARY
            | libc::IFA_F_DEPRECATED
            | libc::IFA_F_PERMANENT
            | libc::IFA_F_NOPREFIXROUTE
            | libc::IFA_F_MCAUTOJOIN;
        let plain = flags & special == libc::IFA_F_PERMANENT
            && (peer, metric, header.scope) == (ip, 0, AddressScope::Universe)
            && broadcast == Some(address.subnet().broadcast());
        let secondary = flags & libc::IFA_F_SECONDARY != 0;
        Ok(Some(Assigned { index: header.index, address, peer, secondary, plain }))
    }
}

/// An IPv4 route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The table that it is in.
    pub table: u32,
    /// What it leads to.
    pub to: Address,
    /// Where it leads through.
    pub through: Through,
    /// Whether the kernel made it, for an address whose subnet is on the link.
    pub connected: bool,
    /// What becomes of what goes there.
    pub kind: RouteType,
    /// How far away that is.
    pub scope: RouteScope,
    /// The address that the host uses for itself there.
    pub source: Option<Ipv4Addr>,
    /// The lower, the sooner it is taken.
    pub metric: u32,
    /// For which type of service; 0 for all.
    pub tos: u8,
    /// Whether something else is said of it: a gateway, an MTU, an encapsulation.
    pub special: bool,
}

/// Where a route leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The interface with that index.
    Interface(u32),
    /// More than one interface.
    Several,
    /// None: what goes there is dropped or refused.
    Nothing,
}

impl Route {
    fn read(body: &[u8]) -> Result<Option<Route>, Malformed> {
        let header = RouteHeader::parse(body).map_err(|_| Malformed("message about a route"))?;
        if header.address_family != AddressFamily::Inet {
            return Ok(None);
        }
        let prefix = header.destination_prefix_length;
        if prefix > 32 {
            return Err(Malformed("message about a route"));
        }
        let mut route = Route {
            table: header.table.into(),
            to: Address { ip: Ipv4Addr::UNSPECIFIED, prefix },
            through: Through::Nothing,
            connected: header.protocol == RouteProtocol::Kernel,
            kind: header.kind,
            scope: header.scope,
            source: None,
            metric: 0,
            tos: header.tos,
            special: header.source_prefix_length != 0,
        };
        for one in behind(body, &header) {
            let one = one?;
            let value = one.value();
            match one.kind() {
                libc::RTA_DST => route.to.ip = ip(value, "destination of a route")?,
                libc::RTA_OIF => route.through = Through::Interface(number(value, "interface of a route")?),
                libc::RTA_MULTIPATH => route.through = Through::Several,
                libc::RTA_TABLE => route.table = number(value, "table of a route")?,
                libc::RTA_PREFSRC => route.source = Some(ip(value, "source of a route")?),
                libc::RTA_PRIORITY => route.metric = number(value, "metric of a route")?,
                libc::RTA_GATEWAY | libc::RTA_METRICS | libc::RTA_FLOW | RTA_VIA | RTA_ENCAP | RTA_NH_ID => {
                    route.special = true;
                }
                _ => {}
            }
        }
        Ok(Some(route))
    }

    /// Those that the kernel makes when that interface is up and gets that address, in the order in which they can be made.
    pub fn of(index: u32, address: Address) -> [Route; 3] {
        let own = Route {
            table: LOCAL.into(),
            to: Address { ip: address.ip, prefix: 32 },
            through: Through::Interface(index),
            connected: true,
            kind: RouteType::Local,
            scope: RouteScope::Host,
            source: Some(address.ip),
            metric: 0,
            tos: 0,
            special: false,
        };
        let to = Address { ip: address.subnet().broadcast(), prefix: 32 };
        let broadcast = Route { to, kind: RouteType::Broadcast, scope: RouteScope::Link, ..own };
        let to = Address { ip: address.subnet().network(), ..address };
        let table = RouteHeader::RT_TABLE_MAIN.into();
        [own, broadcast, Route { table, to, kind: RouteType::Unicast, scope: RouteScope::Link, ..own }]
    }

    /// Whether it is among `routes`, and none of the same interface that says something else of the same addresses is in front of it.
    pub fn is_in(&self, routes: &[Route]) -> bool {
        let same = |route: &&Route| {
            (route.table, route.to, route.tos, route.through) == (self.table, self.to, self.tos, self.through)
        };
        routes.iter().find(same) == Some(self)
    }

    /// Whether somebody who has this route uses `subnet`: it is for addresses of the subnet and for no others, or they are on its link. A wider
    /// one is there for what no narrower one covers, be it by way of a gateway (the default route), a tunnel (0.0.0.0/1, as VPN clients
    /// have it) or nothing (a blackhole for 10.0.0.0/8).
    pub fn holds(&self, subnet: Address) -> bool {
        let (to, subnet) = (self.to.subnet(), subnet.subnet());
        subnet.contains(&to) || self.connected && to.contains(&subnet)
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        LinkBridge, LinkMessageBuilder, LinkUnspec,
        packet_route::link::{BridgeStpState, InfoBridge, LinkMessage},
    };

    use super::*;
    use crate::config::Config;

    fn body(message: &LinkMessage) -> Vec<u8> {
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        body
    }

    fn at(ip: [u8; 4], prefix: u8) -> Address {
        Address { ip: ip.into(), prefix }
    }

    #[test]
    fn bridge_is_ours_by_mark_or_while_half_made_by_its_mac() {
        let (one, other): (Instance, Instance) = ("a".parse().unwrap(), "b".parse().unwrap());
        let config = Config::new("volt0", "10.42.0.1", 24, 1500).unwrap();
        let marked = Link {
            name: "volt0".into(),
            kind: Some(InfoKind::Bridge),
            alias: mark::bridge(&config, &one),
            ..Link::default()
        };
        let half = Link { alias: String::new(), mac: Some(names::mac_of_bridge("volt0")), ..marked.clone() };
        for ours in [
            marked.clone(),
            // Renamed.
            Link { name: "br0".into(), ..marked.clone() },
            Link { alias: mark::bridge(&config, &Instance::default()), ..marked.clone() },
            Link { alias: "volt-vmm network".into(), ..marked.clone() },
            half.clone(),
        ] {
            assert!(ours.is_bridge_of("volt0", &one), "{ours:?}");
        }
        for foreign in [
            Link { alias: mark::bridge(&config, &other), ..marked.clone() },
            Link { alias: String::new(), ..marked.clone() },
            Link { kind: Some(InfoKind::Dummy), ..marked.clone() },
            Link { alias: "uplink".into(), ..half.clone() },
            Link { mac: Some(names::mac_of_bridge("volt1")), ..half },
            Link { alias: "volt-vmm network".into(), name: "br0".into(), ..marked },
        ] {
            assert!(!foreign.is_bridge_of("volt0", &one), "{foreign:?}");
        }
    }

    #[test]
    fn route_holds_a_subnet_that_it_is_for_or_that_is_on_its_link_and_no_other() {
        let subnet = at([10, 42, 0, 1], 24);
        let route = |to, connected| Route { to, connected, ..Route::of(2, subnet)[2] };
        for held in [
            route(at([10, 42, 0, 0], 24), true),
            route(at([10, 42, 0, 0], 24), false),
            route(at([10, 42, 0, 9], 32), false),
            route(at([10, 42, 0, 128], 25), false),
            route(at([10, 42, 0, 0], 23), true),
            route(at([10, 0, 0, 0], 8), true),
        ] {
            assert!(held.holds(subnet), "{held:?}");
        }
        for free in [
            route(at([0, 0, 0, 0], 0), false),
            route(at([0, 0, 0, 0], 1), false),
            route(at([10, 0, 0, 0], 8), false),
            route(at([10, 42, 0, 0], 23), false),
            route(at([10, 43, 0, 0], 16), true),
        ] {
            assert!(!free.holds(subnet), "{free:?}");
        }
    }

    /// One attribute, padded.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// What is in the way of every attribute: one whose length is more than there is, or less than its own.
    const LIES: [[u8; 4]; 4] = [[255, 255, 0, 0], [9, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]];

    #[test]
    fn message_that_is_cut_off_says_so_and_is_not_read_as_a_shorter_one() {
        let index = |at: usize| {
            let mut header = vec![0; 16];
            header[at] = 7;
            header
        };
        let link = [index(4), attribute(libc::IFLA_IFNAME, b"x\0"), attribute(libc::IFLA_MTU, &[0; 4])].concat();
        assert_eq!(Link::read(&link).unwrap(), Link { index: 7, name: "x".into(), ..Link::default() });
        let mut address = vec![libc::AF_INET as u8, 24, 128, 0, 7, 0, 0, 0];
        address.extend(
            [attribute(libc::IFA_LOCAL, &[10, 42, 0, 1]), attribute(libc::IFA_ADDRESS, &[10, 42, 0, 2])].concat(),
        );
        let read = Assigned::read(&address).unwrap().unwrap();
        assert_eq!((read.index, read.address, read.peer), (7, at([10, 42, 0, 1], 24), [10, 42, 0, 2].into()));
        let mut route = vec![libc::AF_INET as u8, 24, 0, 0, 254, 2, 253, 1, 0, 0, 0, 0];
        route.extend([attribute(libc::RTA_DST, &[10, 42, 0, 0]), attribute(libc::RTA_OIF, &[7, 0, 0, 0])].concat());
        let expected = Route { source: None, ..Route::of(7, at([10, 42, 0, 1], 24))[2] };
        assert_eq!(Route::read(&route).unwrap(), Some(expected));
        // Where one attribute ends (two of these bytes are padding) and the next would begin, nobody can tell.
        for end in (0..link.len()).filter(|end| ![22, 23, 24].contains(end)) {
            Link::read(&link[..end]).unwrap_err();
        }
        for end in (0..address.len()).filter(|end| *end != 16) {
            Assigned::read(&address[..end]).unwrap_err();
        }
        for end in (0..route.len()).filter(|end| ![12, 20].contains(end)) {
            Route::read(&route[..end]).unwrap_err();
        }
        for lie in LIES {
            let with = |message: &[u8]| [message, &lie].concat();
            Link::read(&with(&link)).unwrap_err();
            Assigned::read(&with(&address)).unwrap_err();
            Route::read(&with(&route)).unwrap_err();
        }
        for (what, value) in [(1, 33), (0, libc::AF_INET6 as u8)] {
            let (mut address, mut route) = (address.clone(), route.clone());
            (address[what], route[what]) = (value, value);
            // Another family's is none of ours; a prefix that is too long is nobody's.
            assert_eq!(Assigned::read(&address).ok(), (what == 0).then_some(None));
            assert_eq!(Route::read(&route).ok(), (what == 0).then_some(None));
        }
        assert!(Link::read(&[0; 32]).is_err());
    }

    #[test]
    fn attribute_with_a_value_that_cannot_be_is_an_error_wherever_it_lies() {
        let header = |ip: &[u8]| [ip, &[0; 16]].concat();
        let mut link = vec![0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        link.extend(attribute(libc::IFLA_IFNAME, b"volt0\0"));
        let info = |data: &[u8]| {
            let kind = attribute(libc::IFLA_INFO_KIND, b"bridge\0");
            attribute(libc::IFLA_LINKINFO, &[kind, attribute(libc::IFLA_INFO_DATA, data)].concat())
        };
        let ipv6 = |data: &[u8]| attribute(libc::IFLA_AF_SPEC, &attribute(libc::AF_INET6 as u16, data));
        for (bad, good) in [
            (attribute(libc::IFLA_MTU, &[1]), attribute(libc::IFLA_MTU, &[1; 4])),
            (attribute(libc::IFLA_MASTER, &[1; 3]), attribute(libc::IFLA_MASTER, &[1; 4])),
            (attribute(libc::IFLA_GROUP, &[]), attribute(libc::IFLA_GROUP, &[1; 4])),
            (attribute(libc::IFLA_CARRIER, &[1; 4]), attribute(libc::IFLA_CARRIER, &[1])),
            (info(&attribute(IFLA_BR_STP_STATE, &[1])), info(&attribute(IFLA_BR_STP_STATE, &[1; 4]))),
            (info(&attribute(IFLA_BR_VLAN_FILTERING, &[])), info(&attribute(IFLA_BR_VLAN_FILTERING, &[0]))),
            (info(&LIES[0]), info(&[])),
            (attribute(libc::IFLA_LINKINFO, &LIES[1]), attribute(libc::IFLA_LINKINFO, &[])),
            (attribute(libc::IFLA_PROP_LIST, &LIES[1]), attribute(libc::IFLA_PROP_LIST, &[])),
            (attribute(libc::IFLA_AF_SPEC, &LIES[2]), attribute(libc::IFLA_AF_SPEC, &[])),
            (ipv6(&attribute(IFLA_INET6_CONF, &[0; 104])), ipv6(&attribute(IFLA_INET6_CONF, &[0; 108]))),
        ] {
            Link::read(&[&link[..], &good].concat()).unwrap();
            let error = Link::read(&[&link[..], &bad].concat()).unwrap_err();
            assert!(error.to_string().starts_with("a malformed "), "{error}");
        }
        for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS, libc::IFA_BROADCAST, libc::IFA_FLAGS, IFA_RT_PRIORITY] {
            let message = |value: &[u8]| {
                let own = attribute(libc::IFA_LOCAL, &[10, 42, 0, 1]);
                [&[libc::AF_INET as u8, 24, 128, 0, 7, 0, 0, 0], &own[..], &attribute(kind, value)].concat()
            };
            Assigned::read(&message(&[1; 4])).unwrap();
            Assigned::read(&message(&header(&[1]))).unwrap_err();
        }
        for kind in [libc::RTA_DST, libc::RTA_OIF, libc::RTA_TABLE, libc::RTA_PREFSRC, libc::RTA_PRIORITY] {
            let message = |value: &[u8]| {
                [&[libc::AF_INET as u8, 24, 0, 0, 254, 2, 253, 1, 0, 0, 0, 0], &attribute(kind, value)[..]].concat()
            };
            Route::read(&message(&[1; 4])).unwrap();
            Route::read(&message(&[1; 3])).unwrap_err();
        }
    }

    /// `dev_set_alias` and `dev_valid_name` take any bytes.
    #[test]
    fn name_and_alias_that_are_not_utf8_are_somebody_s_and_not_empty() {
        let mut link = body(&LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).build());
        link.extend(attribute(libc::IFLA_ADDRESS, &names::mac_of_bridge("volt0").bytes()));
        assert!(Link::read(&link).unwrap().bridge_mark().is_some(), "half made");
        link.extend(attribute(libc::IFLA_IFALIAS, &[0xff]));
        let foreign = Link::read(&link).unwrap();
        assert_eq!((foreign.alias.as_str(), foreign.bridge_mark()), ("\u{fffd}", None));
        let named = body(&LinkUnspec::new_with_index(7).build());
        let named = [named, attribute(libc::IFLA_IFNAME, &[0xff, 0])].concat();
        assert_eq!(Link::read(&named).unwrap().name, "\u{fffd}");
    }

    #[test]
    fn link_is_read_field_by_field() {
        let bridge = |stp, vlans| {
            let builder = LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).up().mtu(1400).controller(9);
            let builder = builder.address(vec![2, 0, 0, 0, 0, 1]).alias("volt-vmm network").link_group(3);
            let builder =
                builder.append_info_data(InfoBridge::StpState(stp)).append_info_data(InfoBridge::VlanFiltering(vlans));
            let mut bytes = body(&builder.arp(false).carrier(false).build());
            let other_name = attribute(libc::IFLA_ALT_IFNAME, b"other\0");
            bytes.extend(attribute(libc::IFLA_PROP_LIST, &other_name));
            let conf = attribute(IFLA_INET6_CONF, &[0; 4 * (DEVCONF_DISABLE_IPV6 + 1)]);
            bytes.extend(attribute(libc::IFLA_AF_SPEC, &attribute(libc::AF_INET6 as u16, &conf)));
            bytes
        };
        let expected = Link {
            index: 7,
            name: "volt0".into(),
            alternatives: vec!["other".into()],
            alias: "volt-vmm network".into(),
            kind: Some(InfoKind::Bridge),
            up: true,
            no_arp: true,
            no_carrier: true,
            mtu: 1400,
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1]).unwrap()),
            master: 9,
            stp: false,
            vlans: false,
            ipv6: true,
            group: 3,
        };
        assert_eq!(Link::read(&bridge(BridgeStpState::Disabled, false)).unwrap(), expected);
        let on = Link { stp: true, ..expected.clone() };
        assert_eq!(Link::read(&bridge(BridgeStpState::KernelStp, false)).unwrap(), on);
        let on = Link { vlans: true, ..expected };
        assert_eq!(Link::read(&bridge(BridgeStpState::Disabled, true)).unwrap(), on);
    }

    #[test]
    fn attribute_that_netmgr_does_not_look_at_may_be_what_it_likes() {
        let mut link = body(&LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).build());
        link.extend([attribute(libc::IFLA_QDISC, &[0xff]), attribute(0x3fff, &[1; 5])].concat());
        let expected = Link { index: 7, name: "volt0".into(), kind: Some(InfoKind::Bridge), ..Link::default() };
        assert_eq!(Link::read(&link).unwrap(), expected);
        // Details of a kind that is not a bridge, with a port of no bytes, on which the crate's own parser panics.
        let mut foreign = body(&LinkUnspec::new_with_name("x").index(7).build());
        foreign.extend([24, 0, libc::IFLA_LINKINFO as u8, 0, 11, 0, libc::IFLA_INFO_KIND as u8, 0]);
        foreign.extend(b"bareudp\0");
        foreign.extend([8, 0, libc::IFLA_INFO_DATA as u8, 0, 4, 0, 3, 0]);
        assert_eq!(Link::read(&foreign).unwrap().kind, Some(InfoKind::BareUdp));
    }
}
