//! What comes to a network by its uplink, from a VLAN: nobody knows who is there, so that whatever it is from may be right, but for what is the network's
//! own. Nobody there is taken for a guest, or for the bridge: not by a MAC address, not by a source, in ARP or in a neighbour advertisement.
//! Pure; touches nothing.
//!
//! As of a guest, what is neither ARP nor IP in a plain frame is dropped, so that no tag and no other framing hides one of these.

use std::net::IpAddr;

use schema::net::Mac;

use super::{
    Reach,
    expression::{
        Field::{Header, Protocol, Transport},
        Test::{Is, OfPort, Read},
        Verdict::{Drop, Goto, Return},
    },
    rules::{
        self, ARP, ARP_SENDER, ARP_TARGET, ETHER_SOURCE, ETHER_TYPE, Element, FOR_THE_BRIDGE, ICMPV6, IPV4,
        IPV4_SOURCE, IPV6, IPV6_SOURCE, LINK_LOCAL, Rule,
    },
    table::{Chain, Set},
};
use crate::names;

/// What comes by an uplink.
pub const OUTSIDE: &[Rule] = &[
    ("for the bridge itself", &[FOR_THE_BRIDGE], Drop),
    ("MAC address of the network's own", &[OfPort(ETHER_SOURCE, Set::InsideMacs)], Drop),
    ("ARP", &[Is(ETHER_TYPE, ARP), Is(Protocol, ARP), Read(ARP_TARGET)], Goto(Chain::OutsideArp)),
    ("IPv4", &[Is(ETHER_TYPE, IPV4), Is(Protocol, IPV4), Read(Transport)], Goto(Chain::Outside4)),
    ("IPv6", &[Is(ETHER_TYPE, IPV6), Is(Protocol, IPV6), Read(Transport)], Goto(Chain::Outside6)),
    ("nothing of these, as VLAN tags, SNAP, or cut off", &[], Drop),
];

pub const ARP_RULES: &[Rule] = &[("address of the network's own", &[OfPort(ARP_SENDER, Set::Inside4)], Drop)];

pub const IPV4_RULES: &[Rule] = &[("address of the network's own", &[OfPort(IPV4_SOURCE, Set::Inside4)], Drop)];

pub const IPV6_RULES: &[Rule] = &[
    ("address of the network's own", &[OfPort(IPV6_SOURCE, Set::Inside6)], Drop),
    (
        "advertised address of the network's own",
        &[Is(Transport, ICMPV6), Is(Header(0, 1), &[136]), OfPort(Header(8, 16), Set::Inside6)],
        Drop,
    ),
    ("any other", &[], Return),
];

/// What the sets have of who is on a network that has an uplink.
pub fn of_guest(network: &str, mac: Mac, addresses: impl Iterator<Item = IpAddr>) -> Vec<Element> {
    let uplink = rules::name(&names::uplink(network));
    let of = |set, bytes: &[u8]| Element::new(set, [&uplink, bytes].concat());
    let mut elements = vec![of(Set::InsideMacs, &[&mac.bytes()[..], &[0; 2]].concat())];
    elements.extend(addresses.chain([mac.ipv6_in(LINK_LOCAL).into()]).map(|address| match address {
        IpAddr::V4(ip) => of(Set::Inside4, &ip.octets()),
        IpAddr::V6(ip) => of(Set::Inside6, &ip.octets()),
    }));
    elements
}

/// The same of its bridge, and that there is the uplink.
pub fn of_network(reach: Reach<'_>) -> Vec<Element> {
    let own = reach.ipv4.map(|(ip, _)| ip.into()).into_iter().chain(reach.ipv6.map(|(ip, _)| ip.into()));
    let mut elements = of_guest(reach.network, names::mac_of_bridge(reach.network), own);
    elements.push(Element::new(Set::Outside, rules::name(&names::uplink(reach.network)).to_vec()));
    elements
}
