//! An IPv4 route, as the kernel describes it, and which of them an address needs. Pure; touches nothing.

use std::net::Ipv4Addr;

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

/// An IPv4 route.
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
pub enum Nexthop {
    /// The interface with that index.
    Interface(u32),
    /// More than one interface.
    Several,
    /// None: what goes there is dropped or refused.
    Nothing,
}

impl Route {
    /// Reads it behind a message's header; `None` for another family's.
    pub fn read(body: &[u8]) -> Result<Option<Route>, Malformed> {
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
                libc::RTA_DST => route.to.ip = ip(value, "destination of a route")?,
                libc::RTA_OIF => route.nexthop = Nexthop::Interface(number(value, "interface of a route")?),
                libc::RTA_MULTIPATH => route.nexthop = Nexthop::Several,
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
            nexthop: Nexthop::Interface(index),
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
            (route.table, route.to, route.tos, route.nexthop) == (self.table, self.to, self.tos, self.nexthop)
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
    use super::*;

    fn at(ip: [u8; 4], prefix: u8) -> Address {
        Address { ip: ip.into(), prefix }
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
}
