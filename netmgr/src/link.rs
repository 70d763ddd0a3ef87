//! What the kernel says of interfaces, addresses and routes, as values. Pure; touches nothing.
//!
//! Headers, attributes and values are read by the `rtnetlink` crate, and whole messages are not: its parsers give up a message
//! for one attribute that they do not understand (a newer kernel's, a name that is not UTF-8), and not all of them are free of
//! panics (`InfoBareUdp` in netlink-packet-route 0.34). So only what netmgr looks at is read, and the rest may be what it likes.

use std::{convert::Infallible, net::Ipv4Addr};

use rtnetlink::{
    packet_core::{
        Emitable, NetlinkDeserializable, NetlinkHeader, NlaBuffer, NlasIterator, Parseable, parse_mac, parse_string,
        parse_u32,
    },
    packet_route::{
        AddressFamily,
        address::AddressHeader,
        link::{BridgeStpState, InfoBridge, InfoKind, LinkFlags, LinkHeader},
        route::{RouteHeader, RouteProtocol},
    },
};

use crate::{
    config::Address,
    mark::{self, BridgeMark, Instance},
    names::Mac,
};

/// What a message of the kernel says.
#[derive(Debug)]
pub enum Said {
    /// `RTM_NEWLINK`.
    Link(Box<Link>),
    /// `RTM_NEWADDR`: an IPv4 address, and the index of its interface.
    Address(u32, Address),
    /// `RTM_NEWROUTE`, of the main table, IPv4.
    Route(Route),
    /// Nothing that netmgr asks for, or cut off.
    Other,
}

impl NetlinkDeserializable for Said {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Said, Infallible> {
        let said = match header.message_type {
            libc::RTM_NEWLINK => Link::read(body).map(|link| Said::Link(Box::new(link))),
            libc::RTM_NEWADDR => read_address(body).map(|(index, address)| Said::Address(index, address)),
            libc::RTM_NEWROUTE => Route::read(body).map(Said::Route),
            _ => None,
        };
        Ok(said.unwrap_or(Said::Other))
    }
}

/// The attributes behind a header, up to the first whose length lies.
fn attributes<'a>(body: &'a [u8], header: &impl Emitable) -> impl Iterator<Item = NlaBuffer<&'a [u8]>> {
    NlasIterator::new(body.get(header.buffer_len()..).unwrap_or_default()).filter_map(Result::ok)
}

fn ip(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

/// An interface, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index; never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias; empty for none.
    pub alias: String,
    /// Bridge, tun, ...; none for hardware.
    pub kind: Option<InfoKind>,
    /// `IFF_UP`.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Index of the bridge that it is a port of; 0 for none.
    pub master: u32,
    /// Whether it is a bridge that runs the spanning tree protocol.
    pub stp: bool,
    /// The group that it is in; 0 unless somebody chose one.
    pub group: u32,
}

impl Link {
    fn read(body: &[u8]) -> Option<Link> {
        let header = LinkHeader::parse(body).ok().filter(|header| header.index != 0)?;
        let mut link = Link { index: header.index, up: header.flags.contains(LinkFlags::Up), ..Link::default() };
        for one in attributes(body, &header) {
            let value = one.value();
            match one.kind() {
                libc::IFLA_IFNAME => link.name = parse_string(value).unwrap_or_default(),
                libc::IFLA_IFALIAS => link.alias = parse_string(value).unwrap_or_default(),
                libc::IFLA_MTU => link.mtu = parse_u32(value).unwrap_or_default(),
                libc::IFLA_ADDRESS => link.mac = parse_mac(value).ok().map(Mac),
                libc::IFLA_MASTER => link.master = parse_u32(value).unwrap_or_default(),
                libc::IFLA_GROUP => link.group = parse_u32(value).unwrap_or_default(),
                libc::IFLA_LINKINFO => link.read_info(value),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn read_info(&mut self, info: &[u8]) {
        for one in NlasIterator::new(info).filter_map(Result::ok) {
            match one.kind() {
                libc::IFLA_INFO_KIND => self.kind = InfoKind::parse(&one).ok(),
                libc::IFLA_INFO_DATA if self.kind == Some(InfoKind::Bridge) => {
                    self.stp = NlasIterator::new(one.value())
                        .filter_map(|one| InfoBridge::parse(&one.ok()?).ok())
                        .any(|one| matches!(one, InfoBridge::StpState(state) if state != BridgeStpState::Disabled));
                }
                _ => {}
            }
        }
    }

    /// The mark of a bridge that a netmgr made. One without any alias but with the MAC address that netmgr gives at creation was made by
    /// one that was killed before it could set the mark, as the kernel takes no alias at creation; or somebody has cleared it.
    pub fn bridge_mark(&self) -> Option<BridgeMark> {
        let half_made = || self.alias.is_empty() && self.mac == Some(Mac::of_bridge(&self.name));
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

fn read_address(body: &[u8]) -> Option<(u32, Address)> {
    let header = AddressHeader::parse(body).ok()?;
    if header.family != AddressFamily::Inet || header.prefix_len > 32 {
        return None;
    }
    // On a point-to-point interface IFA_ADDRESS is the other end's.
    let find = |kind: u16| attributes(body, &header).find(|one| one.kind() == kind).and_then(|one| ip(one.value()));
    let ip = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    Some((header.index, Address { ip, prefix: header.prefix_len }))
}

/// An IPv4 route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it leads to.
    pub to: Address,
    /// Where it leads through.
    pub through: Through,
    /// Whether the kernel made it, for an address whose subnet is on the link.
    pub connected: bool,
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
    fn read(body: &[u8]) -> Option<Route> {
        let header = RouteHeader::parse(body).ok()?;
        let (family, prefix) = (header.address_family, header.destination_prefix_length);
        if family != AddressFamily::Inet || prefix > 32 || header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let to = Address { ip: Ipv4Addr::UNSPECIFIED, prefix };
        let connected = header.protocol == RouteProtocol::Kernel;
        let mut route = Route { to, through: Through::Nothing, connected };
        for one in attributes(body, &header) {
            match one.kind() {
                libc::RTA_DST => route.to.ip = ip(one.value())?,
                libc::RTA_OIF => route.through = Through::Interface(parse_u32(one.value()).ok()?),
                libc::RTA_MULTIPATH => route.through = Through::Several,
                _ => {}
            }
        }
        Some(route)
    }

    /// Whether somebody who has this route uses `subnet`: it is for addresses of the subnet and for no others, or they are on its link. A wider
    /// one is there for what no narrower one covers, be it by way of a gateway (the default route), a tunnel (0.0.0.0/1, as VPN clients
    /// have it) or nothing (a blackhole for 10.0.0.0/8).
    pub fn holds(&self, subnet: Address) -> bool {
        subnet.contains(self.to) || self.connected && self.to.contains(subnet)
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, packet_route::link::LinkMessage};

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
        let half = Link { alias: String::new(), mac: Some(Mac::of_bridge("volt0")), ..marked.clone() };
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
            Link { mac: Some(Mac::of_bridge("volt1")), ..half },
            Link { alias: "volt-vmm network".into(), name: "br0".into(), ..marked },
        ] {
            assert!(!foreign.is_bridge_of("volt0", &one), "{foreign:?}");
        }
    }

    #[test]
    fn route_holds_a_subnet_that_it_is_for_or_that_is_on_its_link_and_no_other() {
        let subnet = at([10, 42, 0, 1], 24);
        let route = |to, connected| Route { to, through: Through::Interface(2), connected };
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

    #[test]
    fn cut_off_messages_are_no_link_address_or_route() {
        let mut link = vec![0; 16];
        link[4] = 7;
        link.extend([6, 0, 3, 0, b'x', 0, 0, 0]);
        assert_eq!(Link::read(&link).unwrap(), Link { index: 7, name: "x".into(), ..Link::default() });
        for end in 0..24 {
            let _ = Link::read(&link[..end]);
            let _ = read_address(&link[..end]);
            let _ = Route::read(&link[..end]);
        }
        assert_eq!(Link::read(&link[..16]), None);
        assert_eq!(Link::read(&[0; 32]), None);
        assert_eq!(read_address(&[libc::AF_INET as u8, 33, 0, 0, 1, 0, 0, 0]), None);
    }

    #[test]
    fn link_is_read_field_by_field() {
        let bridge = |stp| {
            let builder = LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).up().mtu(1400).controller(9);
            let builder = builder.address(vec![2, 0, 0, 0, 0, 1]).alias("volt-vmm network").link_group(3);
            body(&builder.append_info_data(InfoBridge::StpState(stp)).build())
        };
        let expected = Link {
            index: 7,
            name: "volt0".into(),
            alias: "volt-vmm network".into(),
            kind: Some(InfoKind::Bridge),
            up: true,
            mtu: 1400,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            master: 9,
            stp: false,
            group: 3,
        };
        assert_eq!(Link::read(&bridge(BridgeStpState::Disabled)).unwrap(), expected);
        let on = Link { stp: true, ..expected };
        assert_eq!(Link::read(&bridge(BridgeStpState::KernelStp)).unwrap(), on);
    }

    #[test]
    fn attribute_that_is_not_understood_is_passed_over_and_the_others_are_read() {
        let mut link = body(&LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).build());
        // An alias that is not UTF-8, an MTU of one byte, and one whose length lies.
        link.extend([5, 0, libc::IFLA_IFALIAS as u8, 0, 0xff, 0, 0, 0]);
        link.extend([5, 0, libc::IFLA_MTU as u8, 0, 1, 0, 0, 0]);
        link.extend([255, 255, libc::IFLA_MASTER as u8, 0, 1, 0, 0, 0]);
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
