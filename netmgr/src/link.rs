//! What the kernel says of interfaces, addresses and routes, as values. Pure; touches nothing.

use std::net::Ipv4Addr;

use crate::{
    config::Address,
    names::{self, Mac},
    netlink::{attributes, text, u32_at},
};

/// `IFLA_BR_STP_STATE` (linux/if_link.h).
pub const BR_STP_STATE: u16 = 5;

/// An interface, as the kernel describes it (`RTM_NEWLINK`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index; never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias; empty for none.
    pub alias: String,
    /// `bridge`, `tun`, ...; empty for hardware.
    pub kind: String,
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
}

impl Link {
    /// Reads the body of a `RTM_NEWLINK`: `struct ifinfomsg` and attributes.
    pub fn read(body: &[u8]) -> Option<Link> {
        let mut link = Link {
            index: u32_at(body, 4).filter(|index| *index != 0)?,
            up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
            ..Link::default()
        };
        for (kind, value) in attributes(body.get(16..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value).to_owned(),
                libc::IFLA_IFALIAS => link.alias = text(value).to_owned(),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                libc::IFLA_MASTER => link.master = u32_at(value, 0)?,
                libc::IFLA_LINKINFO => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            libc::IFLA_INFO_KIND => link.kind = text(value).to_owned(),
                            libc::IFLA_INFO_DATA => {
                                link.stp = attributes(value)
                                    .any(|(kind, value)| kind == BR_STP_STATE && u32_at(value, 0) != Some(0))
                            }
                            _ => {}
                        }
                    }
                    link.stp &= link.kind == "bridge";
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    /// Whether it is a bridge that netmgr made for the network of that name. A bridge without any alias but with the MAC address
    /// that netmgr gives at creation is one whose maker was killed before it could set the mark, as the kernel takes no alias at creation.
    pub fn is_our_bridge(&self, network: &str) -> bool {
        self.kind == "bridge"
            && self.name == network
            && (self.alias == names::BRIDGE_MARK || self.alias.is_empty() && self.mac == Some(Mac::of_bridge(network)))
    }
}

/// An IPv4 address on an interface (`RTM_NEWADDR`): the interface's index, and the address. `struct ifaddrmsg` and attributes.
pub fn read_address(body: &[u8]) -> Option<(u32, Address)> {
    let prefix = *body.get(1).filter(|prefix| **prefix <= 32)?;
    if *body.first()? != libc::AF_INET as u8 {
        return None;
    }
    let find = |wanted: u16| {
        attributes(body.get(8..).unwrap_or_default()).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| ip(value))
    };
    // On a point-to-point interface IFA_ADDRESS is the other end's.
    let ip = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    Some((u32_at(body, 4)?, Address { ip, prefix }))
}

/// An IPv4 route of the main table (`RTM_NEWROUTE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it leads to.
    pub to: Address,
    /// Index of the interface it goes through; 0 for none, or several.
    pub through: u32,
    /// Whether the destination is on the link itself: there is no gateway.
    pub direct: bool,
}

impl Route {
    /// Reads `struct rtmsg` and attributes.
    pub fn read(body: &[u8]) -> Option<Route> {
        let (family, prefix, table) = (*body.first()?, *body.get(1)?, *body.get(4)?);
        if family != libc::AF_INET as u8 || prefix > 32 || u32::from(table) != u32::from(libc::RT_TABLE_MAIN) {
            return None;
        }
        let mut route = Route { to: Address { ip: Ipv4Addr::UNSPECIFIED, prefix }, through: 0, direct: true };
        for (kind, value) in attributes(body.get(12..)?) {
            match kind {
                libc::RTA_DST => route.to.ip = ip(value)?,
                libc::RTA_OIF => route.through = u32_at(value, 0)?,
                libc::RTA_GATEWAY | libc::RTA_VIA | libc::RTA_MULTIPATH => route.direct = false,
                _ => {}
            }
        }
        Some(route)
    }

    /// Whether somebody who has this route uses `subnet`. A wider route by way of a gateway (the default route, or a
    /// company's 10.0.0.0/8) does not: it is there for what no narrower one covers.
    pub fn holds(&self, subnet: Address) -> bool {
        self.to.prefix != 0 && (subnet.contains(self.to) || self.direct && self.to.contains(subnet))
    }
}

fn ip(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: [u8; 4], prefix: u8) -> Address {
        Address { ip: ip.into(), prefix }
    }

    #[test]
    fn bridge_is_ours_by_mark_or_while_half_made_by_its_mac() {
        let marked =
            Link { name: "volt0".into(), kind: "bridge".into(), alias: names::BRIDGE_MARK.into(), ..Link::default() };
        assert!(marked.is_our_bridge("volt0"));
        let half = Link { alias: String::new(), mac: Some(Mac::of_bridge("volt0")), ..marked.clone() };
        assert!(half.is_our_bridge("volt0"));
        for foreign in [
            Link { alias: String::new(), ..marked.clone() },
            Link { kind: "dummy".into(), ..marked.clone() },
            Link { alias: "uplink".into(), ..half.clone() },
            Link { mac: Some(Mac::of_bridge("volt1")), ..half },
            // Found by an alternative name.
            Link { name: "br0".into(), ..marked },
        ] {
            assert!(!foreign.is_our_bridge("volt0"), "{foreign:?}");
        }
    }

    #[test]
    fn route_holds_a_subnet_it_is_for_and_not_one_that_a_gateway_covers() {
        let subnet = at([10, 42, 0, 1], 24);
        let route = |to, direct| Route { to, through: 2, direct };
        for held in [
            route(at([10, 42, 0, 0], 24), true),
            route(at([10, 42, 0, 0], 24), false),
            route(at([10, 42, 0, 9], 32), false),
            route(at([10, 0, 0, 0], 8), true),
        ] {
            assert!(held.holds(subnet), "{held:?}");
        }
        for free in [
            route(at([0, 0, 0, 0], 0), true),
            route(at([0, 0, 0, 0], 0), false),
            route(at([10, 0, 0, 0], 8), false),
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
}
