//! The rules of the table of the family `inet`: what becomes of what guests send beyond their bridge, and of what comes to them from there. Always the
//! same but for the elements of its sets, the networks' and the published ports'. Pure; touches nothing.
//!
//! Nothing here accepts, so that what others have decided stays so, and what is dropped here is dropped whatever others accept.
//!
//! * What is for a network's subnet and comes by any way but its bridge is dropped before the host looks at it: nobody beside the host reaches a guest,
//!   or the bridge's own address, by a route of theirs (and a port that is published is for an address of the host's). What is from there and comes by any
//!   way but its bridge, likewise.
//! * Between two networks, and from one to the outside, nothing is forwarded but for what the network's definition lets out (`outward`), answers, and what
//!   a published port has redirected. An error is about the network's own connections. Frames that a bridge forwards itself come by here where br_netfilter has them, and are none of its business (`pairs`).
//! * From a host-only network the host answers an echo to the gateway's address, and neighbour discovery, and what it has begun itself.
//! * Who goes out does so under the host's address (RFC 3022; RFC 4787, REQ-1: the kernel's own choice of ports), and with segments that the way takes.
//! * What a guest has begun at one time is limited by its address, before the kernel keeps any of it, so that no guest fills the host's table of
//!   connections; and, as the kernel keeps those that are over for a while, how fast it begins others.
//! * What belongs to no connection that the kernel knows of would leave under the guest's own address, and is dropped, from and to networks of ours alone.
//! * By what a guest has alone beneath its macvtap, nothing comes to the host.
//! * A published port is an element of a map, and is looked at where the packet is for an address of the host's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::published::{HostPort, Protocol, Published};

use super::{
    Reach,
    expression::{
        Field::{self, Answers, Began, Direction, FamilyOf, Interface, Local, Network, Out, State, Status, Transport},
        Test::{self, All, Any, Faster, In, Is, Masked, NotOfPort, OfPort, Over},
        Verdict::{Clamp, Drop, Goto, Jump, Masquerade, Redirect, Return},
    },
    rules::{self, Element, Rule},
    table::{Chain, Set},
    wire::Item,
};
use crate::names::mac_of_bridge;

const LO: &[u8] = b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// NFPROTO_IPV4 and NFPROTO_IPV6.
const IPV4: Test = Is(FamilyOf, &[2]);
const IPV6: Test = Is(FamilyOf, &[10]);
const SOURCE4: Field = Network(12, 4);
const SOURCE6: Field = Network(8, 16);
const TO4: Field = Network(16, 4);
const TO6: Field = Network(24, 16);
const LOOPBACK_NET: Test = Masked(TO4, &[0xff, 0, 0, 0], &[127, 0, 0, 0]);
const FROM_LOOPBACK: Test = Masked(SOURCE4, &[0xff, 0, 0, 0], &[127, 0, 0, 0]);
const LOOPBACK6: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const FROM_LOOPBACK6: Test = Is(SOURCE6, LOOPBACK6);
const TO_THE_BRIDGE: Test = OfPort(Field::Ether(0, 6), Set::Doors);
const OF_OURS: Test = In(Interface, Set::Networks);
const TO_OURS: Test = In(Out, Set::Networks);

/// NF_CT_STATE_*_BIT, as the kernel has them in a register.
const fn bits(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}
const INVALID: Test = Any(State, &bits(1));
const NEW: Test = Any(State, &bits(8));
const RELATED: Test = Any(State, &bits(4));
/// Of a connection that is there.
const ESTABLISHED: Test = Any(State, &bits(2));
/// IP_CT_DIR_REPLY.
const ANSWER: Test = Is(Direction, &[1]);
/// IPS_DST_NAT.
const REDIRECTED: Test = Any(Status, &bits(0x20));
/// RTN_LOCAL.
const OF_HOST: Test = Is(Local, &bits(2));

/// What a source may have at one time.
const MOST: u32 = 2048;
const TOO_MANY: &str = "more connections than one source may have";
const TOO_MANY4: Rule = (TOO_MANY, &[OF_OURS, IPV4, NEW, Over(&[Interface, SOURCE4], Set::Counted4, MOST)], Drop);
const TOO_MANY6: Rule = (TOO_MANY, &[OF_OURS, IPV6, NEW, Over(&[Interface, SOURCE6], Set::Counted6, MOST)], Drop);

/// How many connections a source may begin in a second, behind the first [`MOST`]. The kernel keeps one of TCP for two minutes when it is over.
const A_SECOND: u64 = 100;
/// Not there yet but for this packet: of what goes one way only, all is new.
const FIRST: Test = Masked(Status, &bits(8), &bits(0));
const TOO_FAST: &str = "more new connections than one source may begin";
const TOO_FAST4: Rule =
    (TOO_FAST, &[OF_OURS, IPV4, NEW, FIRST, Faster(&[Interface, SOURCE4], Set::Rated4, A_SECOND, MOST)], Drop);
const TOO_FAST6: Rule =
    (TOO_FAST, &[OF_OURS, IPV6, NEW, FIRST, Faster(&[Interface, SOURCE6], Set::Rated6, A_SECOND, MOST)], Drop);

/// An error about a connection that neither goes out from the network nor leads into it: from the port of one guest, it would end another's, or the host's.
const OTHERS: &str = "about another's connection";
const OTHERS4: Rule =
    (OTHERS, &[OF_OURS, IPV4, RELATED, NotOfPort(Began(4), Set::Subnets4), NotOfPort(Answers(4), Set::Subnets4)], Drop);
const OTHERS6: Rule = (
    OTHERS,
    &[OF_OURS, IPV6, RELATED, NotOfPort(Began(16), Set::Subnets6), NotOfPort(Answers(16), Set::Subnets6)],
    Drop,
);

const TCP: Test = Is(Transport, &[6]);
const ICMP: Test = Is(Transport, &[1]);
const ICMPV6: Test = Is(Transport, &[58]);
const MESSAGE: Field = Field::Header(0, 1);
/// Of SYN and RST, SYN alone.
const SYN: Test = Masked(Field::Header(13, 1), &[6], &[2]);

const FORGED: &str = "from a network's subnet, by another way";
const BACK: &str = "of its own subnet, by way of the host";
const ASTRAY: &str = "of a network's subnet, by another way";

/// Before the kernel's own table of connections (-200), and behind what puts fragments together (-400).
pub const EARLY: &[Rule] = &[
    // A macvtap in mode passthru takes what is for its guest; what is for everybody there comes to the host as well, by the interface beneath.
    ("by what a guest has alone", &[In(Interface, Set::Beneath)], Drop),
    // The host takes them from a bridge, where it answers guests by way of a published port of its own loopback.
    ("for the loopback network", &[OF_OURS, IPV4, LOOPBACK_NET], Drop),
    ("the host's own", &[Is(Interface, LO)], Return),
    // The host may take it for the guest, as may who sees what leaves by its address.
    (FORGED, &[IPV4, All(&[FamilyOf, SOURCE4], Set::Ours4), NotOfPort(SOURCE4, Set::Subnets4)], Drop),
    (FORGED, &[IPV6, All(&[FamilyOf, SOURCE6], Set::Ours6), NotOfPort(SOURCE6, Set::Subnets6)], Drop),
    (ASTRAY, &[IPV4, All(&[FamilyOf, TO4], Set::Ours4), NotOfPort(TO4, Set::Subnets4)], Drop),
    (ASTRAY, &[IPV6, All(&[FamilyOf, TO6], Set::Ours6), NotOfPort(TO6, Set::Subnets6)], Drop),
    // Guests of one network have the bridge. The host would look for each address that a guest thinks of, and has room for so many neighbours, of
    // all networks together. (What a bridge forwards itself, and br_netfilter has come by here, is for another MAC address.)
    (BACK, &[IPV4, TO_THE_BRIDGE, All(&[Interface, TO4], Set::Subnets4), NotOfPort(TO4, Set::Gateways4)], Drop),
    (BACK, &[IPV6, TO_THE_BRIDGE, All(&[Interface, TO6], Set::Subnets6), NotOfPort(TO6, Set::Gateways6)], Drop),
];

pub const FORWARD: &[Rule] = &[
    TOO_MANY4,
    TOO_MANY6,
    TOO_FAST4,
    TOO_FAST6,
    ("on one bridge", &[All(&[Interface, Out], Set::Pairs)], Return),
    ("of no connection, from a network", &[OF_OURS, INVALID], Drop),
    ("of no connection, to a network", &[TO_OURS, INVALID], Drop),
    OTHERS4,
    OTHERS6,
    ("longest segment, from a network", &[OF_OURS, TCP, SYN], Clamp),
    ("longest segment, to a network", &[TO_OURS, TCP, SYN], Clamp),
    ("to a network", &[TO_OURS], Jump(Chain::Inwards)),
    ("from a network", &[OF_OURS], Goto(Chain::Outwards)),
];

pub const INWARDS: &[Rule] = &[
    // Nobody who was asked before a network led nowhere goes on to answer.
    ("answer", &[In(Out, Set::Outward), ANSWER, ESTABLISHED], Return),
    ("about a connection", &[In(Out, Set::Outward), RELATED], Return),
    ("to a published port", &[REDIRECTED], Return),
    ("to a guest", &[], Drop),
];

/// Of what others begin, guests answer what a published port has let in alone: all else has begun where there were no rules for a moment.
pub const OUTWARDS: &[Rule] = &[
    ("answer of a published port", &[REDIRECTED, ANSWER, ESTABLISHED], Return),
    ("about a connection to a published port", &[REDIRECTED, RELATED], Return),
    // What others on the host redirect elsewhere is no way there.
    ("to a published port", &[REDIRECTED, TO_OURS], Return),
    ("to the outside", &[In(Interface, Set::Outward)], Return),
    ("to the outside, from a network that has no way there", &[], Drop),
];

pub const INPUT: &[Rule] = &[
    TOO_MANY4,
    TOO_MANY6,
    TOO_FAST4,
    TOO_FAST6,
    ("of no connection, from a network", &[OF_OURS, INVALID], Drop),
    OTHERS4,
    OTHERS6,
    ("from a host-only network", &[In(Interface, Set::Closed)], Goto(Chain::Services)),
];

pub const SERVICES: &[Rule] = &[
    ("answer", &[ANSWER, ESTABLISHED], Return),
    ("about a connection", &[RELATED], Return),
    ("echo", &[IPV4, All(&[Interface, TO4], Set::Gateways4), ICMP, Is(MESSAGE, &[8])], Return),
    ("echo", &[IPV6, All(&[Interface, TO6], Set::Gateways6), ICMPV6, Is(MESSAGE, &[128])], Return),
    // What the bridge's rules let through of it is the guest's own.
    ("neighbour solicitation", &[IPV6, ICMPV6, Is(MESSAGE, &[135])], Return),
    ("neighbour advertisement", &[IPV6, ICMPV6, Is(MESSAGE, &[136])], Return),
    ("to the host", &[], Drop),
];

/// What comes to the host. (For its loopback network nothing does by any interface but its own, whose packets come by [`OWN`].)
pub const REDIRECT: &[Rule] = &[
    ("for the loopback network", &[IPV4, LOOPBACK_NET], Return),
    ("for the host", &[OF_HOST], Goto(Chain::Published)),
];

/// What the host itself sends. What it sends from ::1 leaves by no other interface, so who tries that first is refused there, and tries 127.0.0.1.
pub const OWN: &[Rule] = &[
    ("for the loopback address", &[IPV6, Is(TO6, LOOPBACK6)], Return),
    ("for the host", &[OF_HOST], Goto(Chain::Published)),
];

/// The two ports, of which the second is where it goes to, are at the same place in TCP and UDP.
const PORT: Field = Field::Header(2, 2);
pub const PUBLISHED: &[Rule] = &[
    ("published under one address", &[IPV4], Redirect(&[Transport, TO4, PORT], Set::Published4At)),
    ("published", &[IPV4], Redirect(&[Transport, PORT], Set::Published4)),
    ("published under one address", &[IPV6], Redirect(&[Transport, TO6, PORT], Set::Published6At)),
    ("published", &[IPV6], Redirect(&[Transport, PORT], Set::Published6)),
];

pub const LEAVE: &[Rule] = &[
    // Whose answer would otherwise go to who has asked, and not back by the host.
    ("from a network", &[REDIRECTED, OF_OURS, TO_OURS], Masquerade),
    ("from the host's loopback", &[REDIRECTED, TO_OURS, IPV4, FROM_LOOPBACK], Masquerade),
    ("from the host's loopback", &[REDIRECTED, TO_OURS, IPV6, FROM_LOOPBACK6], Masquerade),
    ("to another network", &[TO_OURS], Return),
    ("to the outside", &[In(Interface, Set::Outward), IPV4, All(&[Interface, SOURCE4], Set::Subnets4)], Masquerade),
    ("to the outside", &[In(Interface, Set::Outward), IPV6, All(&[Interface, SOURCE6], Set::Subnets6)], Masquerade),
];

/// What the sets have of a network whose bridge has that name.
pub fn elements(network: Reach<'_>, bridge: &str) -> Vec<Element> {
    let bridge = rules::name(bridge);
    let mut elements =
        vec![Element::new(Set::Networks, bridge.to_vec()), Element::new(Set::Pairs, [bridge, bridge].concat())];
    elements.push(Element::new(Set::Doors, [&bridge[..], &mac_of_bridge(network.network).bytes(), &[0; 2]].concat()));
    let switches = [(network.outward, Set::Outward), (network.closed, Set::Closed)];
    elements.extend(switches.into_iter().filter(|(on, _)| *on).map(|(_, set)| Element::new(set, bridge.to_vec())));
    let mut on = |gateway: &[u8], first: &[u8], last: &[u8], [subnets, ours, gateways]: [Set; 3], family: u8| {
        let range = |set, by: &[u8]| {
            let (key, end) = ([by, first].concat(), [by, last].concat());
            Element { set, item: Item { key, end, ..Item::default() } }
        };
        elements.push(range(subnets, &bridge));
        elements.push(range(ours, &[family, 0, 0, 0]));
        elements.push(Element::new(gateways, [&bridge, gateway].concat()));
    };
    if let Some((gateway, prefix)) = network.ipv4 {
        let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let last = Ipv4Addr::from_bits(gateway.to_bits() | host);
        let first = Ipv4Addr::from_bits(gateway.to_bits() & !host);
        on(&gateway.octets(), &first.octets(), &last.octets(), [Set::Subnets4, Set::Ours4, Set::Gateways4], 2);
    }
    if let Some((gateway, prefix)) = network.ipv6 {
        let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let last = Ipv6Addr::from_bits(gateway.to_bits() | host);
        let first = Ipv6Addr::from_bits(gateway.to_bits() & !host);
        on(&gateway.octets(), &first.octets(), &last.octets(), [Set::Subnets6, Set::Ours6, Set::Gateways6], 10);
    }
    elements
}

/// What a set has of an interface that a guest has alone.
pub fn beneath(interface: &str) -> Element {
    Element::new(Set::Beneath, rules::name(interface).to_vec())
}

/// What there is where somebody on a network has connections.
pub fn counted(network: &str, address: IpAddr) -> Element {
    let set = if address.is_ipv4() { Set::Counted4 } else { Set::Counted6 };
    Element::new(set, [&rules::name(network)[..], &bytes(address)].concat())
}

/// What a map has of a published port: each of its key's fields, and of what it leads to, begins at a register.
pub fn published(published: &Published) -> Element {
    let Published { host, guest, .. } = published;
    let at = host.at.ip();
    let set = match (at.is_ipv4(), at.is_unspecified()) {
        (true, true) => Set::Published4,
        (true, false) => Set::Published4At,
        (false, true) => Set::Published6,
        (false, false) => Set::Published6At,
    };
    let port = |port: u16| [&port.to_be_bytes()[..], &[0; 2]].concat();
    let under = if at.is_unspecified() { Vec::new() } else { bytes(at) };
    let key = [&[host.protocol.number(), 0, 0, 0][..], &under, &port(host.at.port())].concat();
    let data = [bytes(guest.ip()), port(guest.port())].concat();
    Element { set, item: Item { key, data, ..Item::default() } }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The same back; `None` for any other element.
pub fn read_published(element: &Element) -> Option<Published> {
    let all = match element.set {
        Set::Published4 => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        Set::Published6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        Set::Published4At | Set::Published6At => None,
        _ => return None,
    };
    let (protocol, rest) = element.item.key.split_at_checked(4)?;
    let protocol =
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| protocol.first() == Some(&known.number()))?;
    let at = match all {
        Some(ip) => SocketAddr::new(ip, address(&[&bytes(ip), rest].concat())?.port()),
        None => address(rest)?,
    };
    Some(Published { host: HostPort { protocol, at }, guest: address(&element.item.data)?, held: None })
}

/// An address, and a port in the register behind it.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let ip = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port.first_chunk()?)))
}
