//! The rules: what a guest may send, whoever it says it is. One table of the family `bridge` for each installation, which is always the
//! same but for the elements of four sets, the ports'. Pure; touches nothing.
//!
//! What comes from a port is let through where it is read and found right, and dropped otherwise: an allow-list, with a drop at each end. (Where
//! a drop comes before that, the field that it looks at can be read of all that comes there.)
//! Let through is no more than that: nothing here accepts, so that a policy has its say after this, and never before.
//!
//! * Nothing but ARP, IPv4 and IPv6 in plain Ethernet frames: no VLAN tag (also none of VLAN 0, or two), no 802.3 or SNAP, in which whoever
//!   receives it finds the same packets (CVE-2021-27853, CVE-2021-27861); no frame for the bridge itself (IEEE 802.1D's group).
//! * The source's MAC address, and each address in ARP (RFC 826) and neighbour discovery (RFC 4861), is the port's.
//! * No router advertisement or redirect, no question for groups of multicast, and nothing that a DHCP server sends or a client takes for
//!   that, at whatever place behind extension headers: what is behind headers that cannot be looked behind is not let through, nor are
//!   headers before the transport's within a fragment. Neighbour discovery has none at all, and no fragments (RFC 6980).
//! * Who asks a DHCP server for a lease asks for the port's MAC address.
//! * A later fragment has no transport header to look at, and is let through: nobody puts a packet together of which the first fragment is
//!   missing, and that one was looked at. What is looked at of a header is in its first eight bytes, of which a later fragment, which is
//!   at eight bytes or more, overwrites nothing; where more is looked at, which is of DHCP, the packet is whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schema::{
    net::Mac,
    policy::{METADATA_4, METADATA_6},
};

use super::{
    again, device,
    expression::{
        self,
        Field::{self, Ether, Fragment, Header, Interface, Network, Protocol, Transport},
        State,
        Test::{self, Any, Dated, In, Is, IsNot, Marked, Masked, NotOfPort, OfPort, Read},
        Verdict::{self, Drop, Forged, Goto, Jump, Return},
    },
    outside, policed,
    rates::{self, Limit},
    routed,
    table::{Chain, Family, Set, Type},
    wire::{
        Attributes, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, Item, Kind, LIST_ELEM, RULE_CHAIN, Request, SET_NAME, TABLE,
    },
};
use crate::{attribute::Malformed, instance::Instance};

impl Chain {
    /// Its rules, in their order.
    pub fn rules(self) -> &'static [Rule] {
        match self {
            // A set, and not a map of verdicts: with each element of such a map, the kernel walks the rules behind each of its elements.
            Chain::Source => &[
                again::IPV4_DATAGRAM,
                again::IPV4_SEGMENT,
                again::IPV6_DATAGRAM,
                again::IPV6_SEGMENT,
                ("what comes from a port", &[In(Interface, Set::Ports)], Goto(Chain::Port)),
                ("what comes from a VLAN", &[In(Interface, Set::Outside)], Goto(Chain::Outside)),
            ],
            Chain::Port => PORT_RULES,
            Chain::Policed => policed::POLICED_RULES,
            Chain::Passed4 => again::PASSED4_RULES,
            Chain::Passed6 => again::PASSED6_RULES,
            // Most frames for that group a bridge hands to the host without any other hook, and the host takes IPv4 and UDP out of them.
            Chain::Host => &[
                ("for the bridge itself", &[In(Interface, Set::Ports), FOR_THE_BRIDGE], Forged),
                ("for the bridge itself, from a VLAN", &[In(Interface, Set::Outside), FOR_THE_BRIDGE], Drop),
                again::HOST,
                again::HOST_OF_RATES,
            ],
            Chain::Guest => &[
                ("for the bridge itself", &[FOR_THE_BRIDGE], Forged),
                ("from its MAC address", &[OfPort(ETHER_SOURCE, Set::Macs)], Goto(Chain::Own)),
                ("another's MAC address", &[], Forged),
            ],
            Chain::Own => &[
                ("IPv4", &[Is(ETHER_TYPE, IPV4), Is(Protocol, IPV4), Read(Transport)], Goto(Chain::Ipv4)),
                ("IPv6", &[Is(ETHER_TYPE, IPV6), Is(Protocol, IPV6), Read(Transport)], Goto(Chain::Ipv6)),
                ("ARP", &[Is(ETHER_TYPE, ARP), Is(Protocol, ARP), Read(ARP_TARGET)], Goto(Chain::Arp)),
                ("nothing of these, as VLAN tags, SNAP, or cut off", &[], Forged),
            ],
            Chain::Arp => ARP_RULES,
            Chain::Ipv4 => IPV4_RULES,
            Chain::Ipv6 => IPV6_RULES,
            Chain::Icmpv6 => ICMPV6_RULES,
            Chain::Solicitation => SOLICITATION_RULES,
            Chain::Advertisement => ADVERTISEMENT_RULES,
            Chain::Router => ROUTER_RULES,
            Chain::Early => routed::EARLY,
            Chain::Forward => routed::FORWARD,
            Chain::Inwards => routed::INWARDS,
            Chain::Outwards => routed::OUTWARDS,
            Chain::Input => routed::INPUT,
            Chain::Services => routed::SERVICES,
            Chain::Redirect => routed::REDIRECT,
            Chain::OwnRedirect => routed::OWN,
            Chain::Published => routed::PUBLISHED,
            Chain::Leave => routed::LEAVE,
            Chain::Outside => outside::OUTSIDE,
            Chain::OutsideArp => outside::ARP_RULES,
            Chain::Outside4 => outside::IPV4_RULES,
            Chain::Outside6 => outside::IPV6_RULES,
            Chain::Policed4 => policed::POLICED4_RULES,
            Chain::Policed6 => policed::POLICED6_RULES,
            Chain::Goes4 => policed::GOES4_RULES,
            Chain::Goes6 => policed::GOES6_RULES,
            Chain::Asks4 => policed::ASKS4_RULES,
            Chain::Asks6 => policed::ASKS6_RULES,
            Chain::Answers4 => policed::ANSWERS4_RULES,
            Chain::Answers6 => policed::ANSWERS6_RULES,
            Chain::Allowed => policed::ALLOWED_RULES,
            Chain::Denied => policed::DENIED_RULES,
            Chain::Towards => policed::TOWARDS_RULES,
            Chain::TowardsPort => policed::TOWARDS_PORT_RULES,
            Chain::Towards4 => policed::TOWARDS4_RULES,
            Chain::Towards6 => policed::TOWARDS6_RULES,
            Chain::OverFrom => rates::OVER_FROM_RULES,
            Chain::OverTo => rates::OVER_TO_RULES,
            Chain::Forged => &[("counted", &[In(Interface, Set::Forged)], Drop), ("of no port any more", &[], Drop)],
            Chain::Egress => device::EGRESS,
            Chain::Ingress => device::INGRESS,
        }
    }
}

/// What comes from a port.
pub const PORT_RULES: &[Rule] = &[
    // First: what is too much costs the host no more than this.
    ("beyond its rate", &[In(Interface, Set::RatesFrom)], Goto(Chain::OverFrom)),
    ("by its policy", &[Marked, Dated], Goto(Chain::Policed)),
    ("what a guest sends", &[], Jump(Chain::Guest)),
    ("the metadata of clouds", &[Is(Protocol, IPV4), Is(policed::TO4, &METADATA_4.octets())], Drop),
    ("the metadata of clouds", &[Is(Protocol, IPV6), Is(policed::TO6, &METADATA_6.octets())], Drop),
];

/// What it is about, which nft(8) lists with it; the tests, all of which have to hold; and what then becomes of the frame.
pub type Rule = (&'static str, &'static [Test], Verdict);

pub const ETHER_TO: Field = Ether(0, 6);
pub const ETHER_SOURCE: Field = Ether(6, 6);
pub const ETHER_TYPE: Field = Ether(12, 2);
pub const ARP: &[u8] = &[0x08, 0x06];
pub const IPV4: &[u8] = &[0x08, 0x00];
pub const IPV6: &[u8] = &[0x86, 0xdd];
/// 01:80:c2:00:00:00 to :0f.
pub const FOR_THE_BRIDGE: Test = Masked(ETHER_TO, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0], &[1, 0x80, 0xc2, 0, 0, 0]);

const ARP_OPERATION: Field = Network(6, 2);
pub const ARP_SENDER: Field = Network(14, 4);
/// At its end, so that all of it can be read where this can.
pub const ARP_TARGET: Field = Network(24, 4);
const ARP_RULES: &[Rule] = &[
    ("not of Ethernet", &[IsNot(Network(0, 2), &[0, 1])], Forged),
    ("not of IPv4", &[IsNot(Network(2, 2), IPV4)], Forged),
    ("not with a MAC address", &[IsNot(Network(4, 1), &[6])], Forged),
    ("not with an IPv4 address", &[IsNot(Network(5, 1), &[4])], Forged),
    ("another's MAC address", &[NotOfPort(Network(8, 6), Set::Macs)], Forged),
    ("another's address", &[NotOfPort(ARP_SENDER, Set::Ipv4)], Forged),
    // RFC 5227.
    (
        "whether somebody has its address",
        &[Is(ARP_SENDER, &[0; 4]), Is(ARP_OPERATION, &[0, 1]), OfPort(ARP_TARGET, Set::Ipv4)],
        Return,
    ),
    ("of no address", &[Is(ARP_SENDER, &[0; 4])], Forged),
    ("request", &[Is(ARP_OPERATION, &[0, 1])], Return),
    ("reply", &[Is(ARP_OPERATION, &[0, 2])], Return),
    // RFC 903 and its like.
    ("reverse ARP", &[], Forged),
];

pub const UDP: &[u8] = &[17];
/// UDP's.
pub const SOURCE_PORT: Field = Header(0, 2);
pub const TARGET_PORT: Field = Header(2, 2);
pub const ICMP: &[u8] = &[1];
const IGMP: &[u8] = &[2];
pub const MESSAGE_TYPE: Field = Header(0, 1);
pub const LATER: Test = Any(Network(6, 2), &[0x1f, 0xff]);
/// Neither that nor the first of several.
const WHOLE: Test = Masked(Network(6, 2), &[0x3f, 0xff], &[0, 0]);
/// In DHCP (RFC 2131): what comes from a client, which has a MAC address, and that address.
const DHCP_REQUEST: Test = Is(Header(8, 3), &[1, 1, 6]);
const DHCP_MAC: Test = OfPort(Header(36, 6), Set::Macs);
pub const IPV4_SOURCE: Field = Network(12, 4);
const IPV4_RULES: &[Rule] = &[
    ("another's address", &[NotOfPort(IPV4_SOURCE, Set::Ipv4)], Forged),
    // Before what looks at transport headers: not each kernel knows that a later fragment has none.
    ("later fragment", &[IsNot(IPV4_SOURCE, &[0; 4]), LATER], Return),
    ("later fragment of no address", &[LATER], Forged),
    (
        "DHCP client without an address",
        &[
            Is(IPV4_SOURCE, &[0; 4]),
            Is(Network(16, 4), &[0xff; 4]),
            Is(Transport, UDP),
            Is(Header(0, 4), &[0, 68, 0, 67]),
            WHOLE,
            DHCP_REQUEST,
            DHCP_MAC,
        ],
        Return,
    ),
    ("of no address", &[Is(IPV4_SOURCE, &[0; 4])], Forged),
    // RFC 792 and RFC 1256.
    ("other ICMP", &[Is(Transport, ICMP), IsNot(MESSAGE_TYPE, &[5]), IsNot(MESSAGE_TYPE, &[9])], Return),
    ("router's, redirect, or cut off", &[Is(Transport, ICMP)], Forged),
    ("groups that somebody is in", &[Is(Transport, IGMP), In(MESSAGE_TYPE, Set::Memberships)], Return),
    ("router's question for groups, or cut off", &[Is(Transport, IGMP)], Forged),
    ("not UDP", &[IsNot(Transport, UDP)], Return),
    // Most clients look at the port that an offer is for and not at the one that it is from.
    ("no DHCP", &[IsNot(SOURCE_PORT, &[0, 67]), IsNot(TARGET_PORT, &[0, 67]), IsNot(TARGET_PORT, &[0, 68])], Return),
    (
        "DHCP client with its MAC address",
        &[IsNot(SOURCE_PORT, &[0, 67]), Is(TARGET_PORT, &[0, 67]), WHOLE, DHCP_REQUEST, DHCP_MAC],
        Return,
    ),
    ("DHCP server's, DHCP with another's MAC address, or cut off", &[], Forged),
];

pub const ICMPV6: &[u8] = &[58];
const NO_ADDRESS: Test = Is(IPV6_SOURCE, &[0; 16]);
pub const LATER_OF_IPV6: Test = Any(Fragment(2, 2), &[0xff, 0xf8]);
const IPV6_LENGTH: Field = Network(4, 2);
pub const IPV6_NEXT: Field = Network(6, 1);
pub const IPV6_SOURCE: Field = Network(8, 16);
const IPV6_RULES: &[Rule] = &[
    ("another's address", &[NotOfPort(IPV6_SOURCE, Set::Ipv6)], Forged),
    ("nobody can look behind its headers", &[In(Transport, Set::Hidden)], Forged),
    ("headers in a fragment before the one that matters", &[In(Fragment(0, 1), Set::Hidden)], Forged),
    ("later fragment", &[IsNot(IPV6_SOURCE, &[0; 16]), LATER_OF_IPV6], Return),
    ("later fragment of no address", &[LATER_OF_IPV6], Forged),
    ("ICMPv6", &[Is(Transport, ICMPV6)], Goto(Chain::Icmpv6)),
    ("of no address", &[NO_ADDRESS], Forged),
    ("not UDP", &[IsNot(Transport, UDP)], Return),
    ("no DHCPv6 server's", &[IsNot(SOURCE_PORT, &[0x02, 0x23]), IsNot(TARGET_PORT, &[0x02, 0x22])], Return),
    ("DHCPv6 server's, or cut off", &[], Forged),
];

const ICMPV6_RULES: &[Rule] = &[
    ("groups that somebody is in", &[In(MESSAGE_TYPE, Set::Reports)], Return),
    (
        "neighbour solicitation, without headers before it",
        &[Is(MESSAGE_TYPE, &[135]), Is(IPV6_NEXT, ICMPV6)],
        Goto(Chain::Solicitation),
    ),
    ("of no address", &[NO_ADDRESS], Forged),
    ("errors and echo", &[In(MESSAGE_TYPE, Set::Messages)], Return),
    (
        "neighbour advertisement, without headers before it",
        &[Is(MESSAGE_TYPE, &[136]), Is(IPV6_NEXT, ICMPV6)],
        Goto(Chain::Advertisement),
    ),
    (
        "router solicitation, without headers before it",
        &[Is(MESSAGE_TYPE, &[133]), Is(IPV6_NEXT, ICMPV6)],
        Goto(Chain::Router),
    ),
    ("router's, redirect, any other, or cut off", &[], Forged),
];

/// Of a neighbour solicitation or advertisement, which is right behind the IPv6 header, as is what follows.
const TARGET: Field = Network(48, 16);
/// The type and the length (in eight bytes) of its one option, and the MAC address in it.
const OPTION: Field = Network(64, 2);
const OPTION_MAC: Field = Network(66, 6);
const SOLICITATION_RULES: &[Rule] = &[
    ("whether somebody has its address", &[NO_ADDRESS, OfPort(TARGET, Set::Ipv6), Is(IPV6_LENGTH, &[0, 24])], Return),
    // RFC 7527.
    (
        "whether somebody has its address, with a nonce",
        &[NO_ADDRESS, OfPort(TARGET, Set::Ipv6), Is(IPV6_LENGTH, &[0, 32]), Is(OPTION, &[14, 1])],
        Return,
    ),
    ("of no address", &[NO_ADDRESS], Forged),
    ("who has that address", &[Is(IPV6_LENGTH, &[0, 24])], Return),
    (
        "who has that address, from its MAC address",
        &[Is(IPV6_LENGTH, &[0, 32]), Is(OPTION, &[1, 1]), OfPort(OPTION_MAC, Set::Macs)],
        Return,
    ),
    ("another's MAC address, or other options", &[], Forged),
];
const ADVERTISEMENT_RULES: &[Rule] = &[
    ("its address", &[OfPort(TARGET, Set::Ipv6), Is(IPV6_LENGTH, &[0, 24])], Return),
    (
        "its address and MAC address",
        &[OfPort(TARGET, Set::Ipv6), Is(IPV6_LENGTH, &[0, 32]), Is(OPTION, &[2, 1]), OfPort(OPTION_MAC, Set::Macs)],
        Return,
    ),
    ("another's address or MAC address, or other options", &[], Forged),
];
/// The same of a router solicitation.
const ROUTER_OPTION: Field = Network(48, 2);
const ROUTER_OPTION_MAC: Field = Network(50, 6);
const ROUTER_RULES: &[Rule] = &[
    ("who is a router", &[Is(IPV6_LENGTH, &[0, 8])], Return),
    (
        "who is a router, from its MAC address",
        &[Is(IPV6_LENGTH, &[0, 16]), Is(ROUTER_OPTION, &[1, 1]), OfPort(ROUTER_OPTION_MAC, Set::Macs)],
        Return,
    ),
    ("another's MAC address, or other options", &[], Forged),
];

/// The table's name.
pub fn table(instance: &Instance) -> String {
    if *instance == Instance::default() { "volt-vmm".into() } else { format!("volt-vmm-{instance}") }
}

/// One element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The set.
    pub set: Set,
    /// As the kernel has it.
    pub item: Item,
}

impl Element {
    /// One that is no range, and has no data.
    pub fn new(set: Set, key: Vec<u8>) -> Element {
        Element { set, item: Item { key, ..Item::default() } }
    }

    /// Whom a port's guest may send as, if that is what it says.
    pub fn source(&self) -> Option<IpAddr> {
        let (_, address) = self.item.key.split_first_chunk::<{ libc::IFNAMSIZ }>()?;
        match self.set {
            Set::Ipv4 => <[u8; 4]>::try_from(address).ok().map(IpAddr::from),
            Set::Ipv6 => <[u8; 16]>::try_from(address).ok().map(IpAddr::from),
            _ => None,
        }
    }

    /// The port whose it is, by its interface; `None` for any other.
    pub fn port(&self) -> Option<&str> {
        let (Family::Bridge, Some(Type::Interface)) = (self.set.family(), self.set.key().first()) else { return None };
        let name = self.item.key.first_chunk::<{ libc::IFNAMSIZ }>()?.split(|byte| *byte == 0).next()?;
        str::from_utf8(name).ok()
    }
}

/// What a port's guest may send from, by the port's interface.
pub fn elements(interface: &str, mac: Mac, addresses: impl Iterator<Item = IpAddr>) -> Vec<Element> {
    let of_port = |set, bytes: &[u8]| Element::new(set, [&name(interface), bytes].concat());
    let mut elements = vec![
        of_port(Set::Ports, &[]),
        of_port(Set::Macs, &[&mac.bytes()[..], &[0; 2]].concat()),
        of_port(Set::Forged, &[]),
    ];
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(ip) => ipv4.push(ip),
            IpAddr::V6(ip) => ipv6.push(ip),
        }
    }
    if !ipv4.is_empty() {
        ipv4.push(Ipv4Addr::UNSPECIFIED);
    }
    if !ipv6.is_empty() {
        ipv6.extend([mac.ipv6_in(LINK_LOCAL), Ipv6Addr::UNSPECIFIED]);
    }
    elements.extend(ipv4.into_iter().map(|ip| of_port(Set::Ipv4, &ip.octets())));
    elements.extend(ipv6.into_iter().map(|ip| of_port(Set::Ipv6, &ip.octets())));
    elements
}

/// An interface's name, padded.
pub fn name(interface: &str) -> [u8; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    name.iter_mut().zip(interface.bytes()).for_each(|(to, from)| *to = from);
    name
}

/// Where each has an address that follows from its MAC address (RFC 4291, section 2.5.6).
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// What is always in a table.
pub fn constants() -> impl Iterator<Item = Element> {
    Set::ALL.into_iter().flat_map(|set| set.constants().iter().map(move |key| Element::new(set, vec![*key])))
}

/// What is said of a request that is about a table.
pub fn named(table: &str) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(TABLE, table);
    attributes
}

/// The requests that take the table of a family away.
pub fn clear(table: &str, family: Family) -> Result<Vec<Request>, Malformed> {
    // One is made so that there is one to delete.
    [Kind::NewTable, Kind::DelTable].into_iter().map(|kind| Request::new(kind, family, named(table))).collect()
}

/// The requests that make the table of a family, without elements, in place of any of its name; in that state.
pub fn make(table: &str, family: Family, state: State) -> Result<Vec<Request>, Malformed> {
    make_all(table, family, None, state)
}

/// The same of the table for what leaves by an interface and comes by it.
pub fn make_at(table: &str, interface: &str) -> Result<Vec<Request>, Malformed> {
    make_all(table, Family::Netdev, Some(interface), State::default())
}

fn make_all(table: &str, family: Family, interface: Option<&str>, state: State) -> Result<Vec<Request>, Malformed> {
    let named = || named(table);
    let mut requests = clear(table, family)?;
    requests.push(Request::new(Kind::NewTable, family, named())?);
    for (id, set) in (1..).zip(family.sets()) {
        let mut attributes = named();
        describe(&mut attributes, set);
        // NFTA_SET_ID.
        attributes.number(10, id);
        // NFTA_SET_USERDATA, as nft(8) has it: the order of a key's bytes is of type 0, and that of data of type 1; 1 is the host's, and 2 the
        // network's. Without it, it shows no names of interfaces, and addresses and numbers the wrong way round.
        let order = |of: u8, order: u32| [&[of, 4][..], &order.to_ne_bytes()].concat();
        let of_key = if matches!(set.key(), [Type::Ipv4 | Type::Ipv6]) { 2 } else { 1 };
        let of_data = if set.data().is_empty() { Vec::new() } else { order(1, 1) };
        attributes.bytes(13, &[order(0, of_key), of_data].concat());
        requests.push(Request::new(Kind::NewSet, family, attributes)?);
    }
    for chain in family.chains() {
        let mut attributes = named();
        attributes.text(CHAIN_NAME, chain.name());
        if let Some(hook) = chain.hook() {
            // NFTA_HOOK_HOOKNUM and _PRIORITY; NF_ACCEPT; NFTA_CHAIN_TYPE.
            attributes.nested(CHAIN_HOOK, |data| {
                data.number(1, hook.number).number(2, hook.priority as u32);
                // NFTA_HOOK_DEV.
                interface.into_iter().for_each(|interface| _ = data.text(3, interface));
            });
            attributes.number(CHAIN_POLICY, 1).text(7, hook.kind);
        }
        requests.push(Request::new(Kind::NewChain, family, attributes)?);
    }
    for chain in family.chains() {
        for rule in chain.rules() {
            requests.push(make_rule(table, family, chain, rule, state)?);
        }
    }
    Ok(requests)
}

/// The requests that have the table of bridges be in another state.
pub fn change(table: &str, state: State) -> Result<Vec<Request>, Malformed> {
    let mut requests = Vec::new();
    for chain in [Chain::Source, Chain::Port] {
        let mut all = named(table);
        all.text(RULE_CHAIN, chain.name());
        requests.push(Request::new(Kind::DelRule, Family::Bridge, all)?);
        for rule in chain.rules() {
            requests.push(make_rule(table, Family::Bridge, chain, rule, state)?);
        }
    }
    Ok(requests)
}

fn make_rule(
    table: &str,
    family: Family,
    chain: Chain,
    (about, tests, verdict): &Rule,
    state: State,
) -> Result<Request, Malformed> {
    let mut attributes = named(table);
    attributes.text(RULE_CHAIN, chain.name());
    // NFTA_RULE_EXPRESSIONS.
    attributes.nested(4, |list| expression::write(list, tests, *verdict, state));
    // NFTA_RULE_USERDATA, as nft(8) has it: a comment is of type 0, has a length of one byte, and a zero at its end.
    let comment = [&[0, about.len() as u8 + 1], about.as_bytes(), &[0]].concat();
    attributes.bytes(7, &comment);
    Request::new(Kind::NewRule, family, attributes)
}

/// What a set holds: NFTA_SET_NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN, _DESC.
fn describe(attributes: &mut Attributes, set: Set) {
    // NFT_SET_*.
    const INTERVAL: u32 = 4;
    const MAP: u32 = 8;
    const TIMEOUT: u32 = 0x10;
    const EVAL: u32 = 0x20;
    const CONCAT: u32 = 0x80;
    let ((kind, len), data) = (Type::all(set.key()), Type::all(set.data()));
    let ranges = if set.has_ranges() { INTERVAL | CONCAT } else { 0 };
    let map = if set.data().is_empty() { 0 } else { MAP };
    let timeouts = if set.has_timeouts() { TIMEOUT } else { 0 };
    let eval = set.fills_itself().map_or(0, |_| EVAL);
    let flags = ranges | map | timeouts | eval;
    attributes.text(SET_NAME, set.name()).number(3, flags).number(4, kind).number(5, len as u32);
    if map != 0 {
        attributes.number(6, data.0).number(7, data.1 as u32);
    }
    if let Some(size) = set.fills_itself() {
        // NFTA_SET_DESC_SIZE.
        attributes.nested(9, |desc| _ = desc.number(1, size));
    }
    if ranges != 0 {
        // NFTA_SET_DESC_CONCAT; NFTA_SET_FIELD_LEN.
        attributes.nested(9, |desc| {
            desc.nested(2, |fields| {
                set.key().iter().for_each(|field| {
                    fields.nested(LIST_ELEM, |one| _ = one.number(1, field.padded() as u32));
                });
            });
        });
    }
    if set.counts() {
        // NFTA_SET_EXPR: NFTA_EXPR_NAME, NFTA_EXPR_DATA.
        attributes.nested(17, |one| _ = one.text(1, "counter").nested(2, |_| ()));
    }
    if set.limits() {
        // Without it nft(8) reads no element that has one. Each has its own in the place of this.
        attributes.nested(17, |one| Limit::of(1).write(one));
    }
}
