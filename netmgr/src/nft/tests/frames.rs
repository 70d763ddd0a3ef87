//! What the filter does to real frames, which come through TAPs.

use std::{
    cell::{Cell, RefCell},
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
};

use proptest::{collection, prelude::*, sample::select, test_runner::TestRunner};

use super::{super::model, *};

pub type Ethernet = [u8; 6];

pub const EVERYBODY: Ethernet = [0xff; 6];
/// Nobody's, so that a bridge floods what is for it.
pub const SOMEBODY: Ethernet = [2, 0x42, 0, 0, 0, 0xee];
pub const OWN: Ethernet = [2, 0x42, 0, 0, 0, 2];
pub const OTHER: Ethernet = [2, 0x42, 0, 0, 0, 3];

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
pub const OWN4: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 2);
pub const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 3);
const NONE4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
pub const OWN_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0042, 0x00ff, 0xfe00, 2);
const OTHER_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0042, 0x00ff, 0xfe00, 3);
const NONE6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
pub const UDP: u8 = 17;
pub const TCP: u8 = 6;
pub const ICMPV6: u8 = 58;

pub fn frame(to: Ethernet, from: Ethernet, kind: u16, packet: &[u8]) -> Vec<u8> {
    [&to, &from, &kind.to_be_bytes()[..], packet].concat()
}

/// One that the guest says is its own.
pub fn own(kind: u16, packet: &[u8]) -> Vec<u8> {
    frame(SOMEBODY, OWN, kind, packet)
}

pub fn arp(operation: u16, from: Ethernet, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let operation = operation.to_be_bytes();
    [&[0, 1, 8, 0, 6, 4][..], &operation, &from, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// An IPv4 packet; `fragment` is the offset in units of eight bytes, with the flags.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, rest: &[u8]) -> Vec<u8> {
    let (length, fragment) = ((20 + rest.len() as u16).to_be_bytes(), fragment.to_be_bytes());
    let mut packet = [&[0x45, 0][..], &length, &[0, 1], &fragment, &[64, protocol, 0, 0]].concat();
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum: u32 = packet.chunks_exact(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    [&packet, rest].concat()
}

/// Without a checksum, as IPv4 lets it.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &(8 + data.len() as u16).to_be_bytes(), &[0, 0], data].concat()
}

/// What a client of DHCP sends that has that MAC address, and the server's answer.
fn dhcp(operation: u8, mac: Ethernet) -> Vec<u8> {
    [&[operation, 1, 6, 0][..], &[0; 24], &mac, &[0; 206]].concat()
}

pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, 255], &from.octets(), &to.octets(), rest].concat()
}

/// An extension header of eight bytes: hop-by-hop or destination options, or, as it happens, a routing header without any way to go.
pub fn options(next: u8, rest: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0][..], rest].concat()
}

/// A fragment header; `offset` in units of eight bytes.
pub fn fragment(next: u8, offset: u16, more: bool, rest: &[u8]) -> Vec<u8> {
    [&[next, 0][..], &(offset << 3 | u16::from(more)).to_be_bytes(), &[0, 0, 0, 7], rest].concat()
}

pub fn icmpv6(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], rest].concat()
}

/// An option of neighbour discovery that holds a MAC address.
pub fn holds(kind: u8, mac: Ethernet) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// A neighbour solicitation or advertisement, or a redirect.
pub fn neighbour(kind: u8, target: Ipv6Addr, option: &[u8]) -> Vec<u8> {
    icmpv6(kind, &[&[0; 4], &target.octets()[..], option].concat())
}

fn router_advertisement() -> Vec<u8> {
    icmpv6(134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// What a guest may send that has 10.42.0.2 and fd00::2.
fn right() -> Vec<(&'static str, Vec<u8>)> {
    let later = ipv6(OWN6, OTHER6, 44, &fragment(UDP, 100, false, &[0; 64]));
    let first = ipv6(OWN6, OTHER6, 44, &fragment(UDP, 0, true, &udp(500, 547, &[0; 64])));
    let echo = icmpv6(128, &[0, 1, 0, 1]);
    vec![
        ("ARP request", frame(EVERYBODY, OWN, ARP, &arp(1, OWN, OWN4, GATEWAY))),
        ("ARP reply", own(ARP, &arp(2, OWN, OWN4, GATEWAY))),
        ("gratuitous ARP", frame(EVERYBODY, OWN, ARP, &arp(1, OWN, OWN4, OWN4))),
        ("ARP probe", frame(EVERYBODY, OWN, ARP, &arp(1, OWN, NONE4, OWN4))),
        ("UDP", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &udp(68, 53, &[])))),
        ("DHCP request", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &udp(68, 67, &dhcp(1, OWN))))),
        ("the same not to be broken up", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0x4000, &udp(68, 67, &dhcp(1, OWN))))),
        ("echo", own(IPV4, &ipv4(OWN4, OTHER4, 1, 0, &[8, 0, 0, 0, 0, 1, 0, 1]))),
        ("IGMP report", own(IPV4, &ipv4(OWN4, OTHER4, 2, 0, &[0x22, 0, 0, 0, 0, 0, 0, 0]))),
        ("IGMP leave", own(IPV4, &ipv4(OWN4, OTHER4, 2, 0, &[0x17, 0, 0, 0, 224, 0, 0, 251]))),
        ("TCP", own(IPV4, &ipv4(OWN4, OTHER4, TCP, 0, &[0; 20]))),
        ("TCP from 67", own(IPV4, &ipv4(OWN4, OTHER4, TCP, 0, &[0, 67, 0, 0]))),
        ("first fragment", own(IPV4, &ipv4(OWN4, OTHER4, UDP, 0x2000, &udp(68, 53, &[0; 64])))),
        ("later fragment", own(IPV4, &ipv4(OWN4, OTHER4, UDP, 100, &[0, 67, 0, 68, 1, 2]))),
        (
            "multicast",
            frame(
                [1, 0, 0x5e, 0, 0, 251],
                OWN,
                IPV4,
                &ipv4(OWN4, [224, 0, 0, 251].into(), UDP, 0, &udp(5353, 5353, &[])),
            ),
        ),
        (
            "DHCP discover",
            frame(EVERYBODY, OWN, IPV4, &ipv4(NONE4, Ipv4Addr::BROADCAST, UDP, 0, &udp(68, 67, &dhcp(1, OWN)))),
        ),
        ("echo of IPv6", own(IPV6, &ipv6(OWN6, OTHER6, ICMPV6, &echo))),
        ("echo from the link's address", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, ICMPV6, &echo))),
        ("echo behind options", own(IPV6, &ipv6(OWN6, OTHER6, 60, &options(ICMPV6, &echo)))),
        ("TCP of IPv6", own(IPV6, &ipv6(OWN6, OTHER6, TCP, &[0; 20]))),
        ("ESP", own(IPV6, &ipv6(OWN6, OTHER6, 50, &[0; 20]))),
        ("UDP of IPv6", own(IPV6, &ipv6(OWN6, OTHER6, UDP, &udp(546, 547, &[])))),
        ("first fragment of IPv6", own(IPV6, &first)),
        ("later fragment of IPv6", own(IPV6, &later)),
        ("DHCPv6 solicit", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, UDP, &udp(546, 547, &[1; 20])))),
        ("MLD report", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, 0, &options(ICMPV6, &icmpv6(143, &[0; 4]))))),
        ("MLD report of no address", own(IPV6, &ipv6(NONE6, ALL_NODES, 0, &options(ICMPV6, &icmpv6(143, &[0; 4]))))),
        ("whether its address is free", own(IPV6, &ipv6(NONE6, ALL_NODES, ICMPV6, &neighbour(135, OWN6, &[])))),
        (
            "the same with a nonce",
            own(IPV6, &ipv6(NONE6, ALL_NODES, ICMPV6, &neighbour(135, OWN_LINK, &[14, 1, 1, 2, 3, 4, 5, 6]))),
        ),
        ("who has", own(IPV6, &ipv6(OWN6, ALL_NODES, ICMPV6, &neighbour(135, OTHER6, &holds(1, OWN))))),
        ("is it there", own(IPV6, &ipv6(OWN6, OTHER6, ICMPV6, &neighbour(135, OTHER6, &[])))),
        ("I have", own(IPV6, &ipv6(OWN6, ALL_NODES, ICMPV6, &neighbour(136, OWN6, &holds(2, OWN))))),
        ("I am there", own(IPV6, &ipv6(OWN_LINK, OTHER6, ICMPV6, &neighbour(136, OWN_LINK, &[])))),
        (
            "who is a router",
            own(IPV6, &ipv6(OWN_LINK, ALL_NODES, ICMPV6, &icmpv6(133, &[&[0; 4], &holds(1, OWN)[..]].concat()))),
        ),
        ("who is a router, briefly", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, ICMPV6, &icmpv6(133, &[0; 4])))),
    ]
}

/// And what not.
pub fn wrong() -> Vec<(&'static str, Vec<u8>)> {
    let right4 = ipv4(OWN4, OTHER4, TCP, 0, &[0; 20]);
    let right6 = ipv6(OWN6, OTHER6, TCP, &[0; 20]);
    let advertisement = router_advertisement();
    let redirect = icmpv6(137, &[0; 36]);
    let from_router = |rest: &[u8], next| ipv6(OWN_LINK, ALL_NODES, next, rest);
    let router = from_router(&advertisement, ICMPV6);
    let tagged = |tag: u16, kind: u16, packet: &[u8]| [&tag.to_be_bytes()[..], &kind.to_be_bytes(), packet].concat();
    let snap = |kind: u16, packet: &[u8]| [&[0xaa, 0xaa, 3, 0, 0, 0][..], &kind.to_be_bytes(), packet].concat();
    let reply = arp(2, OWN, OWN4, GATEWAY);
    let with = |bytes: &[u8], at: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        bytes
    };
    let in_snap = snap(IPV6, &router);
    let dhcp6 = udp(547, 546, &[2; 20]);
    let mut frames = vec![
        ("another's MAC address", frame(SOMEBODY, OTHER, IPV4, &right4)),
        ("the same of IPv6", frame(SOMEBODY, OTHER, IPV6, &right6)),
        ("the same of ARP", frame(SOMEBODY, OTHER, ARP, &arp(2, OTHER, OWN4, GATEWAY))),
        ("another's address", own(IPV4, &ipv4(OTHER4, GATEWAY, TCP, 0, &[0; 20]))),
        ("the gateway's", own(IPV4, &ipv4(GATEWAY, OTHER4, UDP, 0, &udp(53, 53, &[])))),
        ("no address", own(IPV4, &ipv4(NONE4, OTHER4, UDP, 0, &udp(68, 67, &[])))),
        ("no address, and not DHCP", own(IPV4, &ipv4(NONE4, Ipv4Addr::BROADCAST, UDP, 0, &udp(68, 68, &[])))),
        ("later fragment of no address", own(IPV4, &ipv4(NONE4, Ipv4Addr::BROADCAST, UDP, 9, &udp(68, 67, &[])))),
        ("another's later fragment", own(IPV4, &ipv4(OTHER4, GATEWAY, UDP, 9, &[0; 64]))),
        (
            "redirect of IPv4",
            own(IPV4, &ipv4(OWN4, OTHER4, 1, 0, &[&[5, 1, 0, 0, 10, 42, 0, 2][..], &[0; 28]].concat())),
        ),
        (
            "its router advertisement",
            own(IPV4, &ipv4(OWN4, OTHER4, 1, 0, &[9, 0, 0, 0, 1, 2, 7, 8, 10, 42, 0, 2, 0, 0, 0, 0])),
        ),
        ("ICMP that is cut off", own(IPV4, &ipv4(OWN4, OTHER4, 1, 0, &[]))),
        ("IGMP query", own(IPV4, &ipv4(OWN4, OTHER4, 2, 0, &[0x11, 100, 0, 0, 0, 0, 0, 0]))),
        ("IGMP query in fragments", own(IPV4, &ipv4(OWN4, OTHER4, 2, 0x2000, &[0x11, 100, 0, 0, 0, 0, 0, 0]))),
        (
            "DHCP discover of another's MAC address",
            frame(EVERYBODY, OWN, IPV4, &ipv4(NONE4, Ipv4Addr::BROADCAST, UDP, 0, &udp(68, 67, &dhcp(1, OTHER)))),
        ),
        ("the same from its address", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &udp(500, 67, &dhcp(1, OTHER))))),
        ("DHCP request in fragments", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0x2000, &udp(68, 67, &dhcp(1, OWN))))),
        ("DHCP request that is cut off", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &udp(68, 67, &dhcp(1, OWN)[..30])))),
        ("DHCP answer for a server", own(IPV4, &ipv4(OWN4, GATEWAY, UDP, 0, &udp(68, 67, &dhcp(2, OWN))))),
        ("DHCP offer from another port", own(IPV4, &ipv4(OWN4, OTHER4, UDP, 0, &udp(500, 68, &dhcp(2, OTHER))))),
        ("DHCPv6 advertise from another port", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, UDP, &udp(500, 546, &[2; 20])))),
        ("DHCP offer", own(IPV4, &ipv4(OWN4, OTHER4, UDP, 0, &udp(67, 68, &dhcp(2, OTHER))))),
        ("DHCP offer in fragments", own(IPV4, &ipv4(OWN4, OTHER4, UDP, 0x2000, &udp(67, 68, &[2; 240])))),
        ("UDP whose port is in the next fragment", own(IPV4, &ipv4(OWN4, OTHER4, UDP, 0x2000, &[0]))),
        ("longer than it is", own(IPV4, &ipv4(OWN4, OTHER4, TCP, 0, &[0; 20])[..30])),
        ("header of IPv4 that is too short", own(IPV4, &with(&right4, 0, 0x44))),
        ("IPv6 in IPv4", own(IPV4, &right6)),
        ("IPv4 in IPv6", own(IPV6, &right4)),
        ("gratuitous ARP for the gateway", frame(EVERYBODY, OWN, ARP, &arp(1, OWN, GATEWAY, GATEWAY))),
        ("ARP reply for the gateway", own(ARP, &arp(2, OWN, GATEWAY, OTHER4))),
        ("ARP with another MAC address in it", own(ARP, &arp(2, OTHER, OWN4, GATEWAY))),
        ("ARP reply of no address", own(ARP, &arp(2, OWN, NONE4, OWN4))),
        ("ARP probe for another's address", frame(EVERYBODY, OWN, ARP, &arp(1, OWN, NONE4, OTHER4))),
        ("RARP in ARP", own(ARP, &arp(3, OWN, OWN4, OWN4))),
        ("RARP", own(0x8035, &arp(4, OWN, OWN4, OWN4))),
        ("ARP of another network", own(ARP, &with(&reply, 1, 6))),
        ("ARP of another protocol", own(ARP, &with(&reply, 2, 9))),
        ("ARP with a longer MAC address", own(ARP, &with(&reply, 4, 8))),
        ("ARP with a longer address", own(ARP, &with(&reply, 5, 16))),
        ("ARP that is cut off", own(ARP, &reply[..17])),
        ("another's address of IPv6", own(IPV6, &ipv6(OTHER6, OWN6, TCP, &[0; 20]))),
        ("another's link-local address", own(IPV6, &ipv6(OTHER_LINK, ALL_NODES, ICMPV6, &icmpv6(128, &[0; 4])))),
        ("no address of IPv6", own(IPV6, &ipv6(NONE6, ALL_NODES, TCP, &[0; 20]))),
        ("echo of no address", own(IPV6, &ipv6(NONE6, ALL_NODES, ICMPV6, &icmpv6(128, &[0; 4])))),
        ("DHCPv6 advertise", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, UDP, &dhcp6))),
        ("the same behind options", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, 60, &options(UDP, &dhcp6)))),
        ("the same in fragments", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, 44, &fragment(UDP, 0, true, &dhcp6)))),
        ("DHCPv6 from another's", own(IPV6, &ipv6(OTHER_LINK, ALL_NODES, UDP, &udp(546, 547, &[])))),
        ("MLD query", own(IPV6, &ipv6(OWN_LINK, ALL_NODES, 0, &options(ICMPV6, &icmpv6(130, &[0; 4]))))),
        ("node information", own(IPV6, &ipv6(OWN6, OTHER6, ICMPV6, &icmpv6(139, &[0; 4])))),
        ("authentication header", own(IPV6, &ipv6(OWN6, OTHER6, 51, &[58, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]))),
        ("mobility header", own(IPV6, &ipv6(OWN6, OTHER6, 135, &[58, 0, 0, 0, 0, 0, 0, 0]))),
        ("no next header", own(IPV6, &ipv6(OWN6, OTHER6, 59, &[]))),
        ("longer than it is, of IPv6", own(IPV6, &right6[..50])),
    ];
    let target_of_other = neighbour(136, OTHER6, &holds(2, OWN));
    for (what, message) in [
        ("another's target", target_of_other),
        ("another's MAC address for its own", neighbour(136, OWN6, &holds(2, OTHER))),
        ("solicitation from another's MAC address", neighbour(135, OTHER6, &holds(1, OTHER))),
        ("two options", neighbour(135, OTHER6, &[holds(1, OWN), holds(1, OTHER)].concat())),
        (
            "advertisement with another option first",
            neighbour(136, OWN6, &[holds(14, OTHER), holds(2, OTHER)].concat()),
        ),
        (
            "solicitation with an option that is longer than it says",
            neighbour(135, OTHER6, &[1, 2, 2, 0x42, 0, 0, 0, 2]),
        ),
        ("router's of another's MAC address", icmpv6(133, &[&[0; 4], &holds(1, OTHER)[..]].concat())),
        ("router advertisement", advertisement.clone()),
        ("redirect", redirect.clone()),
    ] {
        let plain = from_router(&message, ICMPV6);
        frames.push((what, own(IPV6, &plain)));
        frames.push(("as before, in VLAN 0", own(VLAN, &tagged(0, IPV6, &plain))));
        frames.push(("as before, behind options", own(IPV6, &from_router(&options(ICMPV6, &message), 60))));
        frames.push(("as before, in one fragment", own(IPV6, &from_router(&fragment(ICMPV6, 0, false, &message), 44))));
    }
    for (what, message) in [("router advertisement", &advertisement), ("redirect", &redirect)] {
        let twice = options(60, &options(ICMPV6, message));
        let hidden = fragment(60, 0, true, &options(ICMPV6, &[]));
        let later = fragment(60, 1, false, &options(ICMPV6, message));
        let nested = fragment(44, 0, false, &fragment(ICMPV6, 1, false, message));
        frames.push((what, own(IPV6, &from_router(&twice, 0))));
        frames.push((
            "as before, in the first of several fragments",
            own(IPV6, &from_router(&fragment(ICMPV6, 0, true, message), 44)),
        ));
        frames.push(("as before, its type in the next fragment", own(IPV6, &from_router(&hidden, 44))));
        frames.push(("as before, behind options in a later fragment", own(IPV6, &from_router(&later, 44))));
        frames.push(("as before, in a fragment of a fragment", own(IPV6, &from_router(&nested, 44))));
        frames.push((
            "as before, behind an authentication header",
            own(IPV6, &from_router(&[&[58, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], message].concat(), 51)),
        ));
    }
    for (what, kind, packet) in [
        ("ARP", ARP, &arp(1, OWN, GATEWAY, GATEWAY)),
        ("IPv4", IPV4, &right4),
        ("IPv6", IPV6, &right6),
        ("router advertisement", IPV6, &router),
    ] {
        frames.push((what, own(VLAN, &tagged(0, kind, packet))));
        frames.push(("as before, in VLAN 7", own(VLAN, &tagged(7, kind, packet))));
        frames.push(("as before, in two", own(VLAN, &tagged(0, VLAN, &tagged(0, kind, packet)))));
        frames.push(("as before, in a provider's", own(0x88a8, &tagged(0, VLAN, &tagged(0, kind, packet)))));
        let inner = snap(kind, packet);
        frames.push(("as before, in SNAP", own(inner.len() as u16, &inner)));
        frames.push(("as before, in SNAP that is said to be longer", own(inner.len() as u16 + 9, &inner)));
        frames.push(("as before, in SNAP that is said to be shorter", own(8, &inner)));
    }
    frames.push(("SNAP whose length reads as a type", own(IPV6, &in_snap)));
    frames.push(("spanning tree", frame([1, 0x80, 0xc2, 0, 0, 0], OWN, 38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0])));
    frames.push(("link layer discovery", frame([1, 0x80, 0xc2, 0, 0, 14], OWN, 0x88cc, &[0; 16])));
    frames.push(("EAPOL", own(0x888e, &[0; 16])));
    frames.push(("loopback test", own(0x9000, &[0; 46])));
    frames
}

/// A bridge, and a guest's TAP with those addresses on it.
fn guest(list: &[&str]) -> (Bridge, File, Filter) {
    let mut filter = filter();
    filter.add(sender("tap-web", mac(2), &sources(list))).unwrap();
    (Bridge::new(), Bridge::tap("tap-web"), filter)
}

#[test]
fn what_is_right_is_let_through_and_what_is_forged_is_not() {
    in_own_network(|| {
        let (bridge, tap, mut filter) = guest(&["10.42.0.2", "fd00::2"]);
        let sources = sources(&["10.42.0.2", "fd00::2"]);
        let sender = sender("tap-web", mac(2), &sources);
        for (frames, expected) in [(right(), true), (wrong(), false)] {
            for (what, frame) in frames {
                assert_eq!(model::passes(sender, &frame), expected, "{what}, as the model has it: {frame:02x?}");
                assert_eq!(bridge.passes(&tap, &frame), expected, "{what}: {frame:02x?}");
            }
        }
        // Not for another reason: without the filter, what a bridge forwards at all comes through.
        filter.clear().unwrap();
        for (what, frame) in wrong() {
            let kept_by_the_bridge = frame[..5] == [1, 0x80, 0xc2, 0, 0] && frame[5] != 0;
            assert_eq!(bridge.passes(&tap, &frame), !kept_by_the_bridge, "{what}: {frame:02x?}");
        }
    });
}

#[test]
fn guest_sends_nothing_of_a_family_of_which_it_has_no_address() {
    for (list, kinds) in [(&[][..], &[][..]), (&["10.42.0.2"], &[ARP, IPV4]), (&["fd00::2"], &[IPV6])] {
        in_own_network(move || {
            let (bridge, tap, _filter) = guest(list);
            for (what, frame) in right() {
                let kind = u16::from_be_bytes([frame[12], frame[13]]);
                assert_eq!(bridge.passes(&tap, &frame), kinds.contains(&kind), "{list:?}: {what}");
            }
        });
    }
}

#[test]
fn what_is_no_port_of_ours_is_not_looked_at() {
    in_own_network(|| {
        let (bridge, _tap, _filter) = guest(&["10.42.0.2"]);
        let other = Bridge::tap("tap-other");
        for (what, frame) in wrong() {
            let kept_by_the_bridge = frame[..5] == [1, 0x80, 0xc2, 0, 0] && frame[5] != 0;
            assert_eq!(bridge.passes(&other, &frame), !kept_by_the_bridge, "{what}");
        }
    });
}

/// 01:80:c2:00:00:00 to :0f, which a bridge hands to its host, some of them without a hook.
#[test]
fn nothing_for_the_bridge_itself_reaches_the_host() {
    in_own_network(|| {
        let _bridge = Bridge::new();
        let tap = Bridge::tap("tap-web");
        let socket = UdpSocket::bind("10.42.0.1:7777").unwrap();
        socket.set_nonblocking(true).unwrap();
        let heard = || -> Vec<u8> {
            let heard = (0..16).filter(|last| {
                let packet = ipv4(OTHER4, GATEWAY, UDP, 0, &udp(7, 7777, &[*last]));
                send(&tap, &frame([1, 0x80, 0xc2, 0, 0, *last], OTHER, IPV4, &packet));
                let mut byte = [0];
                socket.recv(&mut byte).is_ok_and(|length| length == 1 && byte == [*last])
            });
            heard.collect()
        };
        // All but that of a pause (IEEE 802.3x), which no bridge hands on.
        let all: Vec<u8> = (0..16).filter(|last| *last != 1).collect();
        assert_eq!(heard(), all, "without a filter");
        let mut filter = filter();
        filter.add(sender("tap-web", mac(2), &sources(&["10.42.0.2"]))).unwrap();
        // That of LLDP comes to no hook at all, unless the port forwards it.
        assert_eq!(heard(), [14]);
        run(&format!("ip link set tap-web type bridge_slave group_fwd_mask {}", wanted::FORWARDED));
        assert_eq!(heard(), [0; 0]);
    });
}

/// A frame of parts that fit, or that do not.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let taken = |frames: Vec<(&'static str, Vec<u8>)>| {
        let frames: Vec<Vec<u8>> = frames.into_iter().map(|(_, frame)| frame).collect();
        (
            select(frames),
            collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            prop::option::weighted(0.2, any::<prop::sample::Index>()),
        )
    };
    let changed =
        |(mut frame, changes, cut): (Vec<u8>, Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)| {
            for (at, byte) in changes {
                // Not the first bytes: for whom it is decides where a bridge sends it.
                let at = 6 + at.index(frame.len() - 6);
                frame[at] = byte;
            }
            // A TAP takes no frame without a whole header.
            if let Some(cut) = cut {
                frame.truncate(14 + cut.index(frame.len()));
            }
            frame
        };
    prop_oneof![
        taken(right()).prop_map(changed),
        taken(wrong()).prop_map(changed),
        any_ipv6().prop_map(|packet| own(IPV6, &packet)),
        any_ipv4().prop_map(|packet| own(IPV4, &packet)),
        (select(&[1_u16, 2, 3][..]), any_address4(), any_address4(), select(&[OWN, OTHER][..]))
            .prop_map(|(operation, sender, target, from)| own(ARP, &arp(operation, from, sender, target))),
    ]
}

fn any_address4() -> impl Strategy<Value = Ipv4Addr> {
    select(&[OWN4, OTHER4, NONE4, GATEWAY, Ipv4Addr::BROADCAST][..])
}

fn any_address6() -> impl Strategy<Value = Ipv6Addr> {
    select(&[OWN6, OTHER6, OWN_LINK, OTHER_LINK, NONE6][..])
}

fn any_udp() -> impl Strategy<Value = Vec<u8>> {
    let ports = &[67_u16, 68, 546, 547, 53][..];
    (select(ports), select(ports)).prop_map(|(from, to)| udp(from, to, &[0; 8]))
}

fn any_ipv4() -> impl Strategy<Value = Vec<u8>> {
    let fragment = select(&[0_u16, 0x2000, 0x4000, 1, 0x2001, 0x1fff][..]);
    (any_address4(), any_address4(), select(&[UDP, TCP, 1, 2][..]), fragment, any_udp())
        .prop_map(|(from, to, protocol, fragment, rest)| ipv4(from, to, protocol, fragment, &rest))
}

/// With extension headers in any order.
fn any_ipv6() -> impl Strategy<Value = Vec<u8>> {
    let option = (select(&[1_u8, 2, 14][..]), select(&[OWN, OTHER][..])).prop_map(|(kind, mac)| holds(kind, mac));
    let message = prop_oneof![
        (select(&[135_u8, 136, 137][..]), any_address6(), collection::vec(option.clone(), 0..3))
            .prop_map(|(kind, target, options)| neighbour(kind, target, &options.concat())),
        collection::vec(option, 0..2).prop_map(|options| icmpv6(133, &[&[0; 4], &options.concat()[..]].concat())),
        any::<u8>().prop_map(|kind| icmpv6(kind, &[0; 12])),
    ];
    let end = prop_oneof![
        3 => message.prop_map(|message| (ICMPV6, message)),
        2 => any_udp().prop_map(|udp| (UDP, udp)),
        1 => any::<u8>().prop_map(|protocol| (protocol, vec![0; 24])),
    ];
    let header = (select(&[0_u8, 43, 44, 51, 60][..]), select(&[0_u16, 0, 1, 9][..]), any::<bool>());
    (any_address6(), any_address6(), collection::vec(header, 0..4), end, 0..40_usize, any::<bool>()).prop_map(
        |(from, to, headers, (mut next, mut rest), cut, whole)| {
            for (kind, offset, more) in headers {
                rest = match kind {
                    44 => fragment(next, offset, more, &rest),
                    51 => [&[next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], &rest].concat(),
                    _ => options(next, &rest),
                };
                next = kind;
            }
            if !whole {
                rest.truncate(cut);
            }
            ipv6(from, to, next, &rest)
        },
    )
}

#[test]
fn kernel_lets_through_what_the_model_does_of_any_frames_of_any_ports() {
    in_own_network(|| {
        let bridge = Bridge::new();
        let taps: Vec<File> = (0..4).map(|n| Bridge::tap(&format!("tap-{n}"))).collect();
        let filter = RefCell::new(filter());
        let address = select(&["10.42.0.2", "10.42.0.3", "fd00::2", "fd00::3"][..]);
        let port = prop_oneof![
            Just((2, vec!["10.42.0.2", "fd00::2"])),
            (select(&[2_u8, 3][..]), collection::vec(address, 0..3)),
        ];
        let ports = collection::vec(port, 4);
        let frames = collection::vec((0..4_usize, any_frame()), 16);
        let passed = Cell::new(0);
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })
            .run(&(ports, frames), |(ports, frames)| {
                let names: Vec<String> = (0..4).map(|n| format!("tap-{n}")).collect();
                let ports: Vec<(Mac, Sources)> = ports
                    .into_iter()
                    .map(|(last, mut list)| {
                        list.dedup();
                        (mac(last), Sources::new(list.into_iter().map(Ok)).unwrap_or_default())
                    })
                    .collect();
                let senders =
                    || names.iter().zip(&ports).map(|(interface, (mac, sources))| sender(interface, *mac, sources));
                filter
                    .borrow_mut()
                    .mend(senders(), std::iter::empty(), std::iter::empty(), std::iter::empty(), |_| true)
                    .unwrap();
                for (port, frame) in frames {
                    let sender = senders().nth(port).unwrap();
                    let expected = model::passes(sender, &frame);
                    passed.set(passed.get() + u32::from(expected));
                    prop_assert_eq!(bridge.passes(&taps[port], &frame), expected, "{:?}: {:02x?}", sender, frame);
                }
                Ok(())
            })
            .unwrap();
        // It was about something.
        assert!(passed.get() > 300, "{passed:?}");
    });
}
