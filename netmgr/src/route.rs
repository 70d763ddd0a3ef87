//! A route, as the kernel describes it, and which of them an address needs. Pure; touches nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteHeader, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    address::Address,
    attribute::{Malformed, behind, ip, number},
};

// What the libc crate lacks of linux/rtnetlink.h.
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;
/// `RT_TABLE_LOCAL`: what the host takes for itself.
const LOCAL: u8 = 255;
/// What the kernel gives the routes of IPv6 that it makes for subnets on the link (`IP6_RT_PRIO_ADDRCONF` of net/ipv6_route.h).
const METRIC_OF_IPV6: u32 = 256;

/// A route of IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The table that it is in.
    pub table: u32,
    /// What it leads to.
    pub to: Address,
    /// Where it leads through.
    pub nexthop: Nexthop,
    /// Whether the kernel made it, for an address whose subnet is on the link.
    pub connected: bool,
    /// What becomes of what goes there.
    pub kind: RouteType,
    /// How far away that is.
    pub scope: RouteScope,
    /// The address that the host uses for itself there.
    pub source: Option<IpAddr>,
    /// The lower, the sooner it is taken.
    pub metric: u32,
    /// For which type of service; 0 for all.
    pub tos: u8,
    /// Whether something else is said of it: a gateway, an MTU, an encapsulation.
    pub special: bool,
}

/// Where a route leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nexthop {
    /// The interface with that index.
    Interface(u32),
    /// More than one interface.
    Several,
    /// None: what goes there is dropped or refused.
    Nothing,
}

impl Route {
    /// Reads it behind a message's header; `None` for one that is of neither IPv4 nor IPv6.
    pub fn read(body: &[u8]) -> Result<Option<Route>, Malformed> {
        let header = RouteHeader::parse(body).map_err(|_| Malformed("message about a route"))?;
        let family = header.address_family;
        let any: IpAddr = match family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return Ok(None),
        };
        let prefix = header.destination_prefix_length;
        if prefix > Address::longest(any) {
            return Err(Malformed("message about a route"));
        }
        let mut route = Route {
            table: header.table.into(),
            to: Address { ip: any, prefix },
            nexthop: Nexthop::Nothing,
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
                libc::RTA_DST => route.to.ip = ip(family, value, "destination of a route")?,
                libc::RTA_OIF => route.nexthop = Nexthop::Interface(number(value, "interface of a route")?),
                libc::RTA_MULTIPATH => route.nexthop = Nexthop::Several,
                libc::RTA_TABLE => route.table = number(value, "table of a route")?,
                libc::RTA_PREFSRC => route.source = Some(ip(family, value, "source of a route")?),
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
    pub fn of(index: u32, address: Address) -> Vec<Route> {
        let table = RouteHeader::RT_TABLE_MAIN.into();
        let own = Route {
            table: LOCAL.into(),
            to: Address::alone(address.ip),
            nexthop: Nexthop::Interface(index),
            connected: true,
            kind: RouteType::Local,
            scope: RouteScope::Universe,
            source: None,
            metric: 0,
            tos: 0,
            special: false,
        };
        let subnet = Route { table, to: address.network(), kind: RouteType::Unicast, ..own };
        let Some(broadcast) = address.broadcast() else {
            return vec![own, Route { metric: METRIC_OF_IPV6, ..subnet }];
        };
        let source = Some(address.ip);
        let broadcast = Route { to: Address::alone(broadcast), kind: RouteType::Broadcast, ..own };
        let on_link = |route| Route { scope: RouteScope::Link, source, ..route };
        vec![Route { scope: RouteScope::Host, source, ..own }, on_link(broadcast), on_link(subnet)]
    }

    /// Whether it is among `routes`, and none of the same interface that says something else of the same addresses is in front of it. (Of IPv6
    /// there may be one with a lower metric, which is whoever's who made it.)
    pub fn is_in(&self, routes: &[Route]) -> bool {
        if self.to.ip.is_ipv6() {
            return routes.contains(self);
        }
        let same = |route: &&Route| {
            (route.table, route.to, route.tos, route.nexthop) == (self.table, self.to, self.tos, self.nexthop)
        };
        routes.iter().find(same) == Some(self)
    }

    /// Whether somebody who has this route uses `subnet`: it is for addresses of the subnet and for no others, or they are on its link. A wider
    /// one is there for what no narrower one covers, be it by way of a gateway (the default route), a tunnel (0.0.0.0/1, as VPN clients
    /// have it) or nothing (a blackhole for 10.0.0.0/8).
    pub fn holds(&self, subnet: Address) -> bool {
        // (Some kernels list a route of their own to nowhere, which holds all of IPv6.)
        subnet.contains(self.to) || self.connected && self.kind == RouteType::Unicast && self.to.contains(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: impl Into<IpAddr>, prefix: u8) -> Address {
        Address { ip: ip.into(), prefix }
    }

    #[test]
    fn route_holds_a_subnet_that_it_is_for_or_that_is_on_its_link_and_no_other() {
        let subnet = at([10, 42, 0, 1], 24);
        let route = |to, connected| Route { to, connected, ..Route::of(2, subnet).pop().unwrap() };
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
        let six = |text: &str, prefix| at(text.parse::<Ipv6Addr>().unwrap(), prefix);
        let subnet = six("fd00:1::1", 64);
        let route = |to, connected| Route { to, connected, ..Route::of(2, subnet).pop().unwrap() };
        for (to, connected, held) in [
            (six("fd00:1::", 64), true, true),
            (six("fd00:1::", 64), false, true),
            (six("fd00:1::5", 128), false, true),
            (six("fd00:1::", 48), true, true),
            (six("fd00:1::", 48), false, false),
            (six("fd00:1:0:1::", 64), true, false),
            (six("::", 0), false, false),
            // The same bits of another family.
            (at([0xfd, 0, 0, 1], 16), true, false),
            (at([0, 0, 0, 0], 0), true, false),
        ] {
            assert_eq!(route(to, connected).holds(subnet), held, "{to}");
        }
        assert!(!Route { kind: RouteType::Unreachable, ..route(six("::", 0), true) }.holds(subnet));
    }
}
