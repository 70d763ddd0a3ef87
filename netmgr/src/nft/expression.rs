//! What a rule says: fields of a frame, tests of them, and a verdict; and how nf_tables has it written, as expressions one after the other
//! (linux/netfilter/nf_tables.h). Pure; touches nothing.
//!
//! A test whose field cannot be read ends its rule without a verdict (NFT_BREAK): what is let through has to be read and found right.

use super::{
    policies::NUMBER,
    table::{Chain, Set, Type},
    wire::{Attributes, DATA_VALUE},
};

/// NFT_REG32_00, the first of 16 registers of four bytes each.
const REGISTER: u32 = 8;
/// Bytes of a register.
const WIDTH: usize = 4;

/// What is read of a frame.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// The name of the interface that it came by, padded with zeros to 16 bytes.
    Interface,
    /// The index of that interface.
    Index,
    /// The name of the interface that it leaves by.
    Out,
    /// The index of that one.
    OutIndex,
    /// Its mark.
    Mark,
    /// What the kernel takes it for: its type, behind a VLAN tag that was taken off.
    Protocol,
    /// The transport protocol: of IPv4, or behind those IPv6 extension headers that the kernel looks behind. Cannot be read of a packet whose
    /// lengths lie, or whose headers go beyond its end.
    Transport,
    /// Bytes of the Ethernet header: where they are, and how many. Its type is the one of a VLAN tag, also of one that was taken off.
    Ether(u32, usize),
    /// Bytes of the ARP, IPv4 or IPv6 header, and what is behind it.
    Network(u32, usize),
    /// Bytes of the transport header. Cannot be read of a later fragment, which has none.
    Header(u32, usize),
    /// Bytes of an IPv6 fragment header.
    Fragment(u32, usize),
    /// NFPROTO_*, in a table of more than one.
    FamilyOf,
    /// Of the connection that it belongs to, in which state that is: NF_CT_STATE_*_BIT.
    State,
    /// What was done to its connection: IPS_*.
    Status,
    /// Which way of its connection it goes: IP_CT_DIR_*.
    Direction,
    /// Who began its connection: an address of so many bytes.
    Began(usize),
    /// Who answers in its connection.
    Answers(usize),
    /// What the host's routes take the address for that it is for: RTN_*.
    Local,
    /// Bytes of an IPv6 routing header.
    Routing(u32, usize),
    /// The first half of the IPv6 address there in the network header, as the whole of it has it.
    Subnet(u32),
    /// The number of its port's policy, of its mark.
    Policy,
    /// The turn in which its port's policy was found, of its mark.
    Turn,
}

impl Field {
    fn len(self) -> usize {
        match self {
            Field::Interface | Field::Out => libc::IFNAMSIZ,
            Field::State | Field::Status | Field::Local => 4,
            Field::Index | Field::OutIndex | Field::Mark | Field::Policy | Field::Turn => WIDTH,
            Field::Subnet(_) => 16,
            Field::Protocol => 2,
            Field::Transport | Field::FamilyOf | Field::Direction => 1,
            Field::Began(len) | Field::Answers(len) => len,
            Field::Ether(_, len)
            | Field::Network(_, len)
            | Field::Header(_, len)
            | Field::Fragment(_, len)
            | Field::Routing(_, len) => len,
        }
    }
}

/// What has to be so for a rule to have its verdict.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// The field is that.
    Is(Field, &'static [u8]),
    /// It can be read, and is not that.
    IsNot(Field, &'static [u8]),
    /// Of the field, the bits of the mask are those.
    Masked(Field, &'static [u8], &'static [u8]),
    /// Of the field, a bit of the mask is set.
    Any(Field, &'static [u8]),
    /// It can be read.
    Read(Field),
    /// The field is in the set.
    In(Field, Set),
    /// The interface with the field is in the set of what ports may send.
    OfPort(Field, Set),
    /// It can be read, and is not in that set.
    NotOfPort(Field, Set),
    /// The fields, one behind the other, are in the set.
    All(&'static [Field], Set),
    /// Of those who have these fields in common there are more connections than that. The set keeps who they are.
    Over(&'static [Field], Set, u32),
    /// More come of those who have these fields in common than so many a second, behind the first so many, which all may be at once. The set keeps who
    /// they are for a minute.
    Faster(&'static [Field], Set, u64, u32),
    /// The field can be read, and is not in the set.
    NotIn(Field, Set),
    /// No test: the fields are in that set from here on, for so many seconds. Ends the rule where there is no room.
    Put(&'static [Field], Set, u64),
    /// No test: they are not in it any more.
    Take(&'static [Field], Set),
    /// The port has a policy, whose number is the frame's mark from here on. (A key can have a mark in it and not what a map has for an interface: nft(8)
    /// cannot read that.)
    Marked,
    /// No test: the turn is in the frame's mark beside that from here on.
    Dated,
    /// The turn and the fields, one behind the other, are in the set.
    Noted(&'static [Field], Set),
    /// No test: the turn of the frame's mark and the fields are in it from here on, for so many seconds. Ends the rule where there is no room.
    Note(&'static [Field], Set, u64),
    /// No test: the frame's mark is [`AGAIN`] from here on, or [`TO_RATES`] where there are ports that may be sent no more than a rate.
    Again,
    /// No test: the frame has no mark any more.
    Unmarked,
}

/// What becomes of a frame for which a rule's tests hold.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// Counted and dropped.
    Drop,
    /// Counted, here and for its port, and dropped.
    Forged,
    /// It is as it should be: what other tables say of it decides.
    Return,
    /// What a chain of ours says, and where that says nothing the next rule.
    Jump(Chain),
    /// What a chain of ours says.
    Goto(Chain),
    /// Its connection leaves under the address of the interface that it goes by, and the next rule.
    Masquerade,
    /// Its connection goes to the address and the port that the map has for the fields; where it has none, the next rule.
    Redirect(&'static [Field], Set),
    /// Says that its sender takes segments no longer than the way back lets through, and the next rule.
    Clamp,
}

// NFT_CMP_*.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_LEAST: u32 = 5;
// NFT_PAYLOAD_*_HEADER.
const ETHER: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// IPPROTO_FRAGMENT and IPPROTO_ROUTING.
const FRAGMENT: u8 = 44;
const ROUTING: u8 = 43;
// NFT_DYNSET_OP_*.
const UPDATE: u32 = 1;
const DELETE: u32 = 2;
/// NFT_LOOKUP_F_INV.
const NOT_IN: u32 = 1;
/// NFT_RETURN, NFT_GOTO and NFT_JUMP; NF_DROP.
const RETURN: i32 = -5;
const GOTO: i32 = -4;
const JUMP: i32 = -3;
const DROP: i32 = 0;

/// What of the rules changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What is noted of what goes on begins with it.
    pub turn: u16,
    /// Whether there is a port that may be sent no more than a rate. Where a frame leaves is not known as it comes, and one that is sent to nobody known leaves
    /// to all: so it is looked up for each, but only if there is any.
    pub to_rates: bool,
}

/// Writes a rule's expressions, as they are in that state: NFTA_RULE_EXPRESSIONS.
pub fn write(list: &mut Attributes, tests: &[Test], verdict: Verdict, state: State) {
    tests.iter().for_each(|test| write_test(list, *test, state));
    if matches!(verdict, Verdict::Drop | Verdict::Forged) {
        one(list, "counter", |_| ());
    }
    let (code, chain) = match verdict {
        Verdict::Drop => (DROP, None),
        Verdict::Forged => (GOTO, Some(Chain::Forged)),
        Verdict::Return => (RETURN, None),
        Verdict::Jump(chain) => (JUMP, Some(chain)),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
        Verdict::Masquerade => return one(list, "masq", |_| ()),
        Verdict::Redirect(fields, map) => return redirect(list, fields, map),
        Verdict::Clamp => return clamp(list),
    };
    // NFTA_IMMEDIATE_DREG: the verdict's; NFTA_IMMEDIATE_DATA.
    one(list, "immediate", |data| {
        data.number(1, 0).nested(2, |data| {
            // NFTA_DATA_VERDICT: NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN.
            data.nested(2, |verdict| {
                verdict.number(1, code as u32);
                if let Some(chain) = chain {
                    verdict.text(2, chain.name());
                }
            });
        });
    });
}

fn write_test(list: &mut Attributes, test: Test, state: State) {
    let turn = (u32::from(state.turn) << NUMBER.count_ones()).to_ne_bytes();
    match test {
        Test::Is(field, value) => {
            load(list, field, REGISTER);
            compare(list, EQUAL, value);
        }
        Test::IsNot(field, value) => {
            load(list, field, REGISTER);
            compare(list, NOT_EQUAL, value);
        }
        Test::Masked(field, mask, value) => {
            load(list, field, REGISTER);
            keep(list, mask);
            compare(list, EQUAL, value);
        }
        Test::Any(field, mask) => {
            load(list, field, REGISTER);
            keep(list, mask);
            compare(list, NOT_EQUAL, &vec![0; mask.len()]);
        }
        Test::Read(field) => {
            load(list, field, REGISTER);
            compare(list, AT_LEAST, &vec![0; field.len()]);
        }
        Test::In(field, set) => {
            load(list, field, REGISTER);
            look_up(list, set, 0);
        }
        Test::OfPort(field, set) => {
            load_with_interface(list, field);
            look_up(list, set, 0);
        }
        Test::NotOfPort(field, set) => {
            load_with_interface(list, field);
            look_up(list, set, NOT_IN);
        }
        Test::All(fields, set) => {
            load_all(list, fields);
            look_up(list, set, 0);
        }
        Test::Over(fields, set, most) => {
            load_all(list, fields);
            // NFTA_DYNSET_SET_NAME, _OP (NFT_DYNSET_OP_ADD), _SREG_KEY, _EXPR.
            one(list, "dynset", |data| {
                data.text(1, set.name()).number(3, 0).number(4, REGISTER).nested(7, |counted| {
                    // NFTA_CONNLIMIT_COUNT, _FLAGS: NFT_CONNLIMIT_F_INV.
                    _ = counted.text(1, "connlimit").nested(2, |data| _ = data.number(1, most).number(2, 1));
                });
            });
        }
        Test::Faster(fields, set, a_second, at_once) => {
            load_all(list, fields);
            // As above, by NFT_DYNSET_OP_UPDATE, with _TIMEOUT (milliseconds).
            one(list, "dynset", |data| {
                data.text(1, set.name()).number(3, UPDATE).number(4, REGISTER).bytes(6, &60_000_u64.to_be_bytes());
                data.nested(7, |limit| {
                    // NFTA_LIMIT_RATE, _UNIT (seconds), _BURST, _TYPE: packets; _FLAGS: NFT_LIMIT_F_INV.
                    _ = limit.text(1, "limit").nested(2, |data| {
                        data.bytes(1, &a_second.to_be_bytes()).bytes(2, &1_u64.to_be_bytes());
                        _ = data.number(3, at_once).number(4, 0).number(5, 1);
                    });
                });
            });
        }
        Test::NotIn(field, set) => {
            load(list, field, REGISTER);
            look_up(list, set, NOT_IN);
        }
        Test::Put(fields, set, seconds) => {
            load_all(list, fields);
            change(list, set, UPDATE, Some(seconds));
        }
        Test::Take(fields, set) => {
            load_all(list, fields);
            change(list, set, DELETE, None);
        }
        Test::Marked => {
            load(list, Field::Interface, REGISTER);
            // As below, with NFTA_LOOKUP_DREG.
            one(list, "lookup", |data| {
                data.text(1, Set::Policies.name()).number(2, REGISTER).number(3, REGISTER);
            });
            mark(list);
        }
        Test::Dated => {
            load(list, Field::Mark, REGISTER);
            change_bits(list, REGISTER, &[0xff; WIDTH], &turn);
            mark(list);
        }
        Test::Noted(fields, set) => {
            // Nothing of the mark: a number by itself has no type for nft(8).
            load(list, Field::Mark, REGISTER);
            change_bits(list, REGISTER, &[0; WIDTH], &turn);
            load_from(list, REGISTER + 1, fields);
            look_up(list, set, 0);
        }
        Test::Note(fields, set, seconds) => {
            load(list, Field::Turn, REGISTER);
            load_from(list, REGISTER + 1, fields);
            change(list, set, UPDATE, Some(seconds));
        }
        Test::Again => {
            immediate(list, REGISTER, if state.to_rates { TO_RATES } else { AGAIN });
            mark(list);
        }
        Test::Unmarked => {
            immediate(list, REGISTER, &[0; WIDTH]);
            mark(list);
        }
    }
}

/// NFT_NAT_DNAT, to what the map has: an address, and a port in the register behind it.
fn redirect(list: &mut Attributes, fields: &[Field], map: Set) {
    const DNAT: u32 = 1;
    let (family, address) = match map.data() {
        [Type::Ipv6, ..] => (libc::NFPROTO_IPV6 as u32, Type::Ipv6),
        _ => (libc::NFPROTO_IPV4 as u32, Type::Ipv4),
    };
    load_all(list, fields);
    // NFTA_LOOKUP_SET, _SREG, _DREG.
    one(list, "lookup", |data| _ = data.text(1, map.name()).number(2, REGISTER).number(3, REGISTER));
    let port = REGISTER + (address.padded() / WIDTH) as u32;
    // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN.
    one(list, "nat", |data| _ = data.number(1, DNAT).number(2, family).number(3, REGISTER).number(5, port));
}

/// Lowers TCP's option for the longest segment to what the route of the packet, and the one back, let through.
fn clamp(list: &mut Attributes) {
    const LEN: u32 = 2;
    // NFTA_RT_DREG, _KEY: NFT_RT_TCPMSS.
    one(list, "rt", |data| _ = data.number(1, REGISTER).number(2, 3));
    // NFTA_BYTEORDER_SREG, _DREG, _OP (NFT_BYTEORDER_HTON), _LEN, _SIZE.
    one(list, "byteorder", |data| {
        data.number(1, REGISTER).number(2, REGISTER).number(3, 1).number(4, LEN).number(5, LEN);
    });
    // NFTA_EXTHDR_SREG, _TYPE (TCPOPT_MAXSEG), _OFFSET, _LEN, _OP (NFT_EXTHDR_OP_TCPOPT).
    one(list, "exthdr", |data| {
        data.number(7, REGISTER).bytes(2, &[2]).number(3, 2).number(4, LEN).number(6, 1);
    });
}

/// NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA.
fn immediate(list: &mut Attributes, register: u32, value: &[u8]) {
    one(list, "immediate", |data| {
        data.number(1, register).nested(2, |data| _ = data.bytes(DATA_VALUE, value));
    });
}

/// NFTA_META_KEY, NFTA_META_SREG.
fn mark(list: &mut Attributes) {
    one(list, "meta", |data| _ = data.number(2, libc::NFT_META_MARK as u32).number(3, REGISTER));
}

/// NFTA_DYNSET_SET_NAME, _OP, _SREG_KEY, _TIMEOUT (milliseconds).
fn change(list: &mut Attributes, set: Set, how: u32, seconds: Option<u64>) {
    one(list, "dynset", |data| {
        data.text(1, set.name()).number(3, how).number(4, REGISTER);
        if let Some(seconds) = seconds {
            data.bytes(6, &(seconds * 1000).to_be_bytes());
        }
    });
}

/// NFTA_EXPR_NAME and NFTA_EXPR_DATA, in a NFTA_LIST_ELEM.
fn one(list: &mut Attributes, name: &str, data: impl FnOnce(&mut Attributes)) {
    list.nested(1, |one| _ = one.text(1, name).nested(2, data));
}

/// An interface and a field, one behind the other, as a set of both has them.
fn load_with_interface(list: &mut Attributes, field: Field) {
    load_all(list, &[Field::Interface, field]);
}

/// Fields, one behind the other, each from a register's beginning on.
fn load_all(list: &mut Attributes, fields: &[Field]) {
    load_from(list, REGISTER, fields);
}

fn load_from(list: &mut Attributes, mut register: u32, fields: &[Field]) {
    for field in fields {
        load(list, *field, register);
        register += field.len().div_ceil(WIDTH) as u32;
    }
}

fn load(list: &mut Attributes, field: Field, register: u32) {
    let len = field.len() as u32;
    // NFTA_META_DREG, NFTA_META_KEY.
    let meta = |key| move |data: &mut Attributes| _ = data.number(1, register).number(2, key);
    // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN.
    let payload = |base, at| {
        move |data: &mut Attributes| _ = data.number(1, register).number(2, base).number(3, at).number(4, len)
    };
    // NFTA_CT_DREG, NFTA_CT_KEY: NFT_CT_*.
    let connection = |key| move |data: &mut Attributes| _ = data.number(1, register).number(2, key);
    // NFT_CT_SRC_IP and _SRC_IP6; NFTA_CT_DIRECTION.
    let source = |direction: u8| {
        let key = if len == 4 { 19 } else { 21 };
        move |data: &mut Attributes| _ = data.number(1, register).number(2, key).bytes(3, &[direction])
    };
    // NFTA_EXTHDR_DREG, _TYPE, _OFFSET, _LEN.
    let extension = |kind: u8, at| {
        move |data: &mut Attributes| _ = data.number(1, register).bytes(2, &[kind]).number(3, at).number(4, len)
    };
    match field {
        Field::Out => one(list, "meta", meta(libc::NFT_META_OIFNAME as u32)),
        Field::FamilyOf => one(list, "meta", meta(libc::NFT_META_NFPROTO as u32)),
        Field::State => one(list, "ct", connection(0)),
        Field::Direction => one(list, "ct", connection(1)),
        Field::Status => one(list, "ct", connection(2)),
        Field::Began(_) => one(list, "ct", source(0)),
        Field::Answers(_) => one(list, "ct", source(1)),
        // NFTA_FIB_DREG, _RESULT (NFT_FIB_RESULT_ADDRTYPE), _FLAGS (NFTA_FIB_F_DADDR).
        Field::Local => one(list, "fib", |data| _ = data.number(1, register).number(2, 3).number(3, 2)),
        Field::Interface => one(list, "meta", meta(libc::NFT_META_IIFNAME as u32)),
        Field::Index => one(list, "meta", meta(libc::NFT_META_IIF as u32)),
        Field::OutIndex => one(list, "meta", meta(libc::NFT_META_OIF as u32)),
        Field::Mark => one(list, "meta", meta(libc::NFT_META_MARK as u32)),
        Field::Protocol => one(list, "meta", meta(libc::NFT_META_PROTOCOL as u32)),
        Field::Transport => one(list, "meta", meta(libc::NFT_META_L4PROTO as u32)),
        Field::Ether(at, _) => one(list, "payload", payload(ETHER, at)),
        Field::Network(at, _) => one(list, "payload", payload(NETWORK, at)),
        Field::Header(at, _) => one(list, "payload", payload(TRANSPORT, at)),
        Field::Fragment(at, _) => one(list, "exthdr", extension(FRAGMENT, at)),
        Field::Routing(at, _) => one(list, "exthdr", extension(ROUTING, at)),
        Field::Policy => {
            one(list, "meta", meta(libc::NFT_META_MARK as u32));
            keep_at(list, register, &NUMBER.to_ne_bytes());
        }
        Field::Turn => {
            one(list, "meta", meta(libc::NFT_META_MARK as u32));
            keep_at(list, register, &(!NUMBER).to_ne_bytes());
        }
        Field::Subnet(at) => {
            one(list, "payload", payload(NETWORK, at));
            keep_at(list, register, &FIRST_HALF);
        }
    }
}

/// The mark of a frame that is as one was that was let through a moment ago. Nothing is let through for it.
pub const AGAIN: &[u8] = b"volt";
/// The same where it may be for somebody who is sent no more than a rate.
pub const TO_RATES: &[u8] = b"Volt";

/// Of an IPv6 address.
const FIRST_HALF: [u8; 16] = [255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0];

/// NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA.
fn compare(list: &mut Attributes, how: u32, value: &[u8]) {
    one(list, "cmp", |data| {
        data.number(1, REGISTER).number(2, how).nested(3, |data| _ = data.bytes(DATA_VALUE, value));
    });
}

fn keep(list: &mut Attributes, mask: &[u8]) {
    keep_at(list, REGISTER, mask);
}

fn keep_at(list: &mut Attributes, register: u32, mask: &[u8]) {
    change_bits(list, register, mask, &vec![0; mask.len()]);
}

/// NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR.
fn change_bits(list: &mut Attributes, register: u32, mask: &[u8], turned: &[u8]) {
    one(list, "bitwise", |data| {
        data.number(1, register).number(2, register).number(3, mask.len() as u32);
        data.nested(4, |data| _ = data.bytes(DATA_VALUE, mask));
        data.nested(5, |data| _ = data.bytes(DATA_VALUE, turned));
    });
}

/// NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_FLAGS.
fn look_up(list: &mut Attributes, set: Set, flags: u32) {
    one(list, "lookup", |data| _ = data.text(1, set.name()).number(2, REGISTER).number(5, flags));
}
