//! nf_tables' messages (linux/netfilter/nf_tables.h, nfnetlink.h): requests, written with every length checked, and what the kernel says of
//! a table, as far as netmgr looks at it. Pure; touches nothing.
//!
//! By hand, and not by the crate `netlink-bindings` (0.3.5, MIT OR Apache-2.0, no dependencies), which is generated from the kernel's own
//! specifications: it writes a list that is longer than an attribute's 16-bit length holds with that length cut off, it reads an attribute
//! whose length lies as the end of the message, and its messages end in `Drop`, so that neither can be told; and it is 21 000 lines, with
//! transmutations, for the nine expressions that the rules take.

use std::net::IpAddr;

use rtnetlink::{
    packet_core::{
        NLM_F_APPEND, NLM_F_CREATE, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
    },
    sys,
};

use crate::{
    attribute::{Malformed, attributes, number, text},
    netlink::{Question, messages},
};

use super::{device, rates::Limit, table::Family};

/// NFNL_SUBSYS_NFTABLES, in the upper half of a message's type.
const SUBSYSTEM: u16 = 10;
/// NFNL_SUBSYS_CTNETLINK (linux/netfilter/nfnetlink_conntrack.h).
const CONNECTIONS: u16 = 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;
/// `nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
/// What an attribute's length holds, with its header.
const LONGEST: usize = u16::MAX as usize;

/// NFT_MSG_*: what a request is for. What the kernel says has the number of the request that would make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    GetGen = 16,
}

const NEW_GEN: u16 = 15;

/// A request to nf_tables, or an end of a batch of such.
#[derive(Clone, Debug)]
pub struct Request {
    kind: u16,
    family: u8,
    resource: u16,
    attributes: Vec<u8>,
}

impl Request {
    /// One about a family; [`Malformed`] if it is too long to be sent.
    pub fn new(kind: Kind, family: Family, attributes: Attributes) -> Result<Request, Malformed> {
        let attributes = attributes.finish()?;
        Ok(Request { kind: SUBSYSTEM << 8 | kind as u16, family: family.number(), resource: 0, attributes })
    }

    /// The NLM_F_* that such a request takes: what is made may be there already, and a rule comes behind those that are there.
    pub fn flags(&self) -> u16 {
        const RULE: u16 = SUBSYSTEM << 8 | Kind::NewRule as u16;
        const MADE: [u16; 4] =
            [Kind::NewTable as u16, Kind::NewChain as u16, Kind::NewSet as u16, Kind::NewSetElem as u16];
        match self.kind {
            RULE => NLM_F_CREATE | NLM_F_APPEND,
            kind if MADE.contains(&(kind & 0xff)) => NLM_F_CREATE,
            _ => 0,
        }
    }

    /// The question for the generation of the rules of this network namespace.
    pub fn generation() -> Request {
        let kind = SUBSYSTEM << 8 | Kind::GetGen as u16;
        Request { kind, family: libc::NFPROTO_UNSPEC as u8, resource: 0, attributes: Vec::new() }
    }

    /// The beginning of a batch, which the kernel takes as a whole or not at all, and only where the rules are those of `generation`.
    pub fn begin(generation: Option<u32>) -> Request {
        let mut attributes = Attributes::default();
        if let Some(generation) = generation {
            attributes.number(NFNL_BATCH_GENID, generation);
        }
        Request {
            kind: BATCH_BEGIN,
            family: libc::NFPROTO_UNSPEC as u8,
            resource: SUBSYSTEM,
            attributes: attributes.bytes,
        }
    }

    /// The question for the connections that began as ones to a port, of whichever address.
    pub fn connections_to(family: u8, protocol: u8, port: u16) -> Request {
        const BY_PROTOCOL_AND_TARGET: u32 = 1 << 3 | 1 << 5;
        Request::connections(family, BY_PROTOCOL_AND_TARGET, |tuple| {
            tuple.nested(CTA_TUPLE_PROTO, |of| {
                _ = of.bytes(CTA_PROTO_NUM, &[protocol]).bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes())
            });
        })
    }

    /// The question for those that somebody has begun.
    pub fn connections_of(address: IpAddr) -> Request {
        const BY_SOURCE: u32 = 1;
        // CTA_IP_V4_SRC, CTA_IP_V6_SRC.
        let (family, kind, bytes) = match address {
            IpAddr::V4(ip) => (libc::AF_INET, 1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (libc::AF_INET6, 3, ip.octets().to_vec()),
        };
        Request::connections(family as u8, BY_SOURCE, |tuple| {
            tuple.nested(CTA_TUPLE_IP, |ip| _ = ip.bytes(kind, &bytes));
        })
    }

    fn connections(family: u8, by: u32, began: impl FnOnce(&mut Attributes)) -> Request {
        let mut attributes = Attributes::default();
        attributes.nested(CTA_TUPLE_ORIG, began);
        // CTA_FILTER; CTA_FILTER_ORIG_FLAGS, which is not in network byte order.
        attributes.nested(25, |filter| _ = filter.bytes(1, &by.to_ne_bytes()));
        Request { kind: CONNECTIONS << 8 | 1, family, resource: 0, attributes: attributes.bytes }
    }

    /// The end of one of them, by how it began.
    pub fn end_connection(family: u8, tuple: &[u8]) -> Request {
        let mut attributes = Attributes::default();
        attributes.bytes(CTA_TUPLE_ORIG | libc::NLA_F_NESTED as u16, tuple);
        Request { kind: CONNECTIONS << 8 | 2, family, resource: 0, attributes: attributes.bytes }
    }

    /// The end of a batch.
    pub fn end() -> Request {
        Request { kind: BATCH_END, family: libc::NFPROTO_UNSPEC as u8, resource: SUBSYSTEM, attributes: Vec::new() }
    }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        let bytes = [self.family, 0, high, low].into_iter().chain(self.attributes.iter().copied());
        buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

impl Question for Request {
    const PROTOCOL: isize = sys::protocols::NETLINK_NETFILTER;
    type Said = Said;
}

/// Attributes of a request, as they are written.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Attributes {
    /// Bytes as they are.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Attributes {
        match u16::try_from(value.len() + HEADER) {
            Ok(length) => self.write(kind, length, value),
            Err(_) => self.too_long = true,
        }
        self
    }

    fn write(&mut self, kind: u16, length: u16, value: &[u8]) {
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A text, with the zero behind it.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Attributes {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// A number, in network byte order as all of nf_tables'.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes in an attribute.
    pub fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Attributes)) -> &mut Attributes {
        let mut inner = Attributes::default();
        write(&mut inner);
        self.too_long |= inner.too_long;
        self.bytes(kind | libc::NLA_F_NESTED as u16, &inner.bytes)
    }

    /// A list that was written apart.
    pub fn list(&mut self, kind: u16, list: Attributes) -> &mut Attributes {
        self.nested(kind, |inner| *inner = list)
    }

    /// Whether as many bytes more would fit into one attribute with what is there.
    pub fn has_room(&self, more: usize) -> bool {
        self.bytes.len() + more + HEADER <= LONGEST
    }

    pub fn finish(self) -> Result<Vec<u8>, Malformed> {
        if self.too_long { Err(Malformed("request, of which a part is too long to be sent")) } else { Ok(self.bytes) }
    }
}

// The attributes that netmgr reads or writes in more than one place: NFTA_*.
/// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE.
pub const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
const CHAIN_HANDLE: u16 = 2;
pub const CHAIN_NAME: u16 = 3;
pub const CHAIN_HOOK: u16 = 4;
pub const CHAIN_POLICY: u16 = 5;
pub const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub const SET_NAME: u16 = 2;
const SET_HANDLE: u16 = 16;
pub const ELEMENTS_SET: u16 = 2;
pub const ELEMENTS: u16 = 3;
pub const LIST_ELEM: u16 = 1;
pub const ELEM_KEY: u16 = 1;
pub const ELEM_DATA: u16 = 2;
pub const ELEM_KEY_END: u16 = 10;
pub const ELEM_TIMEOUT: u16 = 4;
pub const ELEM_EXPIRATION: u16 = 5;
pub const ELEM_USERDATA: u16 = 6;
pub const ELEM_EXPRESSION: u16 = 7;
pub const DATA_VALUE: u16 = 1;
const GEN_ID: u16 = 1;

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The generation of the rules of this network namespace: one more with each change, by whomever.
    Generation(u32),
    /// A table, a chain, a rule or a set.
    Object {
        /// Its table's name.
        table: String,
        /// The object.
        object: Object,
    },
    /// Elements of a set.
    Elements {
        /// The set's table.
        table: (Family, String),
        /// The set.
        set: String,
        /// What each of them is, and has of its own.
        items: Vec<(Item, Life)>,
    },
    /// A connection.
    Connection {
        /// Whom it was for when it began.
        to: IpAddr,
        /// How it began, as the kernel tells one from another.
        began: Vec<u8>,
    },
    /// Nothing that netmgr asks for.
    Other,
}

/// What an element is, as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// Its key; of a range, the first. Empty for one that stands for all others, which has none.
    pub key: Vec<u8>,
    /// Of a range, the last; else empty.
    pub end: Vec<u8>,
    /// What a map has for it; else empty.
    pub data: Vec<u8>,
    /// What whoever put it there has noted with it, as nft(8) has it ([`comment`](super::policies::comment)); else empty.
    pub noted: Vec<u8>,
    /// Beyond what it is found.
    pub limit: Option<Limit>,
}

/// What an element has that is not whoever put it there's: it ages, and counts. As the kernel has it; empty where there is none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// For how long it was put there, in milliseconds.
    pub timeout: Vec<u8>,
    /// And how much of that is left.
    pub expiration: Vec<u8>,
    /// Its counter.
    pub expression: Vec<u8>,
}

/// A table, a chain, a rule or a set, by its number, which no other of its kind in that table has ever had, and what somebody may change of
/// it while it keeps that. (A rule is never changed: another one takes its place.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    family: Family,
    kind: Kind,
    handle: Vec<u8>,
    /// A table's flags (dormant); a chain's name, hook and policy; a rule's chain; a set's name.
    state: Vec<Vec<u8>>,
}

impl NetlinkDeserializable for Said {
    type Error = Malformed;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Said, Malformed> {
        let Some((&[family, ..], rest)) = body.split_first_chunk::<HEADER>() else {
            return Err(Malformed("message about rules"));
        };
        let [low, subsystem] = header.message_type.to_le_bytes();
        match u16::from(subsystem) {
            SUBSYSTEM => {}
            CONNECTIONS if low == 0 => return connection(rest),
            _ => return Ok(Said::Other),
        }
        let kinds = [Kind::NewTable, Kind::NewChain, Kind::NewRule, Kind::NewSet, Kind::NewSetElem];
        let kind = kinds.into_iter().find(|kind| *kind as u16 == u16::from(low));
        match (kind, Family::numbered(family)) {
            (Some(Kind::NewSetElem), Some(family)) => elements(family, rest),
            (Some(kind), Some(family)) => object(family, kind, rest),
            (None, _) if u16::from(low) == NEW_GEN => generation(rest),
            _ => Ok(Said::Other),
        }
    }
}

/// Whether what is told of changes to rules may be about a table of that name in a family of ours.
pub fn concerns(told: &[u8], table: &str) -> bool {
    messages::<Changed>(told).any(|message| match message.map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(Changed(changed))) => {
            changed.is_some_and(|changed| changed == table || device::is_beside(&changed, table))
        }
        Ok(NetlinkPayload::Noop | NetlinkPayload::Done(_)) => false,
        // What is cut off may be anything.
        _ => true,
    })
}

/// What somebody has changed: a table of that name, or something in it.
struct Changed(Option<String>);

impl NetlinkDeserializable for Changed {
    type Error = Malformed;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Changed, Malformed> {
        let Some((&[family, ..], rest)) = body.split_first_chunk::<HEADER>() else {
            return Err(Malformed("message about rules"));
        };
        if Family::numbered(family).is_none() || header.message_type == SUBSYSTEM << 8 | NEW_GEN {
            return Ok(Changed(None));
        }
        // The first attribute of all of them.
        match attributes(rest).next().transpose()? {
            Some(first) if first.kind() == TABLE => Ok(Changed(Some(text(first.value())))),
            _ => Err(Malformed("message about rules, without a table's name")),
        }
    }
}

fn connection(body: &[u8]) -> Result<Said, Malformed> {
    for one in attributes(body) {
        let one = one?;
        if one.kind() != CTA_TUPLE_ORIG {
            continue;
        }
        let part = attributes(one.value()).find(|part| part.as_ref().is_ok_and(|part| part.kind() == CTA_TUPLE_IP));
        let part = part.transpose()?.ok_or(Malformed("connection"))?;
        for address in attributes(part.value()) {
            let address = address?;
            let to = match address.kind() {
                CTA_IP_V4_DST => <[u8; 4]>::try_from(address.value()).map(IpAddr::from),
                CTA_IP_V6_DST => <[u8; 16]>::try_from(address.value()).map(IpAddr::from),
                _ => continue,
            };
            let to = to.map_err(|_| Malformed("connection's address"))?;
            return Ok(Said::Connection { to, began: one.value().to_vec() });
        }
    }
    Err(Malformed("connection"))
}

fn generation(body: &[u8]) -> Result<Said, Malformed> {
    for one in attributes(body) {
        let one = one?;
        if one.kind() == GEN_ID {
            return Ok(Said::Generation(u32::from_be(number(one.value(), "generation of rules")?)));
        }
    }
    Err(Malformed("generation of rules"))
}

fn object(family: Family, kind: Kind, body: &[u8]) -> Result<Said, Malformed> {
    let (handle, parts): (u16, &[u16]) = match kind {
        Kind::NewTable => (TABLE_HANDLE, &[TABLE_FLAGS]),
        Kind::NewChain => (CHAIN_HANDLE, &[CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY]),
        Kind::NewRule => (RULE_HANDLE, &[RULE_CHAIN]),
        _ => (SET_HANDLE, &[SET_NAME]),
    };
    let state = vec![Vec::new(); parts.len()];
    let (mut table, mut object) = (None, Object { family, kind, handle: Vec::new(), state });
    for one in attributes(body) {
        let one = one?;
        if one.kind() == TABLE {
            table = Some(text(one.value()));
        } else if one.kind() == handle {
            object.handle = one.value().to_vec();
        } else if let Some((_, part)) = parts.iter().zip(&mut object.state).find(|(part, _)| **part == one.kind()) {
            *part = one.value().to_vec();
        }
    }
    Ok(Said::Object { table: table.ok_or(Malformed("table's name"))?, object })
}

fn elements(family: Family, body: &[u8]) -> Result<Said, Malformed> {
    let (mut table, mut set, mut items) = (None, None, Vec::new());
    for one in attributes(body) {
        let one = one?;
        match one.kind() {
            TABLE => table = Some(text(one.value())),
            ELEMENTS_SET => set = Some(text(one.value())),
            ELEMENTS => {
                for element in attributes(one.value()) {
                    items.push(item(element?.value())?);
                }
            }
            _ => {}
        }
    }
    let lacks = || Malformed("list of a set's elements");
    Ok(Said::Elements { table: (family, table.ok_or_else(lacks)?), set: set.ok_or_else(lacks)?, items })
}

fn item(element: &[u8]) -> Result<(Item, Life), Malformed> {
    let (mut item, mut life) = (Item::default(), Life::default());
    for part in attributes(element) {
        let part = part?;
        let value = match part.kind() {
            ELEM_KEY => &mut item.key,
            ELEM_KEY_END => &mut item.end,
            ELEM_DATA => &mut item.data,
            plain @ (ELEM_TIMEOUT | ELEM_EXPIRATION | ELEM_USERDATA | ELEM_EXPRESSION) => {
                let to = match plain {
                    ELEM_TIMEOUT => &mut life.timeout,
                    ELEM_EXPIRATION => &mut life.expiration,
                    ELEM_USERDATA => &mut item.noted,
                    _ => &mut life.expression,
                };
                *to = part.value().to_vec();
                continue;
            }
            _ => continue,
        };
        for data in attributes(part.value()) {
            let data = data?;
            if data.kind() == DATA_VALUE {
                *value = data.value().to_vec();
            }
        }
    }
    item.limit = Limit::read(&life.expression);
    if item.limit.is_some() {
        life.expression.clear();
    }
    Ok((item, life))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::attribute;

    fn said(kind: u16, family: i32, attributes: &[u8]) -> Result<Said, Malformed> {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        Said::deserialize(&header, &[&[family as u8, 0, 0, 0], attributes].concat())
    }

    #[test]
    fn attribute_holds_what_its_length_can_say_and_what_is_longer_is_not_sent_cut() {
        let of = |length: usize| {
            let mut attributes = Attributes::default();
            attributes.bytes(7, &vec![1; length]);
            Request::new(Kind::NewTable, Family::Inet, attributes)
        };
        assert_eq!(of(LONGEST - HEADER).unwrap().buffer_len(), HEADER + LONGEST.next_multiple_of(4));
        of(LONGEST - HEADER + 1).unwrap_err();
        let mut nested = Attributes::default();
        nested.nested(7, |inner| _ = inner.bytes(1, &vec![1; LONGEST]));
        Request::new(Kind::NewTable, Family::Inet, nested).unwrap_err();
        let mut full = Attributes::default();
        full.bytes(1, &vec![0; LONGEST - 3 * HEADER]);
        assert!(full.has_room(3) && !full.has_room(4));
    }

    #[test]
    fn what_is_said_of_another_family_or_by_another_subsystem_is_nothing() {
        let table = attribute(TABLE, b"volt-vmm\0");
        let bridge = libc::NFPROTO_BRIDGE;
        assert!(matches!(said(10 << 8, bridge, &table), Ok(Said::Object { table, .. }) if table == "volt-vmm"));
        for (kind, family) in [(10 << 8, libc::NFPROTO_ARP), (2 << 8, bridge), (10 << 8 | 99, bridge)] {
            assert_eq!(said(kind, family, &table), Ok(Said::Other));
        }
        assert_eq!(said(10 << 8 | 15, 0, &attribute(1, &[0, 0, 1, 2])), Ok(Said::Generation(0x0102)));
        for malformed in [said(10 << 8, bridge, &[]), said(10 << 8 | 15, 0, &[]), said(10 << 8 | 12, bridge, &table)] {
            malformed.unwrap_err();
        }
    }

    #[test]
    fn connection_is_told_by_how_it_began_and_a_damaged_one_is_malformed() {
        let nested = |kind, value: &[u8]| attribute(kind, value);
        let ip =
            nested(CTA_TUPLE_IP, &[attribute(1, &[192, 0, 2, 2]), attribute(CTA_IP_V4_DST, &[192, 0, 2, 1])].concat());
        let tuple = [ip, nested(CTA_TUPLE_PROTO, &attribute(CTA_PROTO_NUM, &[6]))].concat();
        let whole = nested(CTA_TUPLE_ORIG, &tuple);
        let expected = Said::Connection { to: [192, 0, 2, 1].into(), began: tuple };
        assert_eq!(said(CONNECTIONS << 8, libc::AF_INET, &whole), Ok(expected));
        for end in 0..whole.len() {
            said(CONNECTIONS << 8, libc::AF_INET, &whole[..end]).unwrap_err();
        }
        let short = nested(CTA_TUPLE_ORIG, &nested(CTA_TUPLE_IP, &attribute(CTA_IP_V6_DST, &[0; 4])));
        said(CONNECTIONS << 8, libc::AF_INET6, &short).unwrap_err();
    }

    #[test]
    fn damaged_list_of_elements_is_malformed_and_never_a_shorter_one() {
        let element = |key: &[u8]| attribute(LIST_ELEM, &attribute(ELEM_KEY, &attribute(DATA_VALUE, key)));
        let list = [element(b"abcd"), element(b"efgh"), attribute(LIST_ELEM, &attribute(3, &[0; 4]))].concat();
        let (table, set) = (attribute(TABLE, b"t\0"), attribute(ELEMENTS_SET, b"s\0"));
        let whole = [table, set, attribute(ELEMENTS, &list)].concat();
        let items = [&b"abcd"[..], b"efgh", b""].map(|key| Item { key: key.to_vec(), ..Item::default() });
        let items = items.map(|item| (item, Life::default())).to_vec();
        let kind = 10 << 8 | 12;
        let expected = Said::Elements { table: (Family::Bridge, "t".into()), set: "s".into(), items };
        assert_eq!(said(kind, libc::NFPROTO_BRIDGE, &whole), Ok(expected));
        for end in 0..whole.len() {
            // Where the list would begin, nobody can tell.
            let read = said(kind, libc::NFPROTO_BRIDGE, &whole[..end]);
            assert!(read.is_err() || matches!(&read, Ok(Said::Elements { items, .. }) if items.is_empty()));
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 3, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let _ = said(kind, libc::NFPROTO_BRIDGE, &damaged);
            }
        }
    }
}
