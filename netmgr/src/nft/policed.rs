//! The rules of a policy: where the guest of a port that has one may send to, behind the rules that see to it that it sends as itself. Pure; touches
//! nothing.
//!
//! They are the same for every policy and port. Which policy a port has is an element, its number; where that lets it go is in sets that begin with
//! that number, once for all ports that have it. What is allowed is looked up for each packet, so that a change holds from the next one on.
//!
//! * Looked at is where a packet is for, and not what comes to a guest: whoever sends to it may be subject to a policy as well. Other guests, the host and
//!   what is beyond it are looked at alike, here, where the frame comes in; before anything else knows of it.
//! * The host's own addresses are reached by rules that say so, whatever subnet they are in. So are special ones ([`schema::policy`]), which are no part of any
//!   other element. The metadata of clouds is out of reach of a guest without a policy too.
//! * What others have begun is answered, as far as that is known without keeping account of each connection on the host: a TCP connection, from a first
//!   segment on (SYN without ACK) until it is idle for as long as RFC 5382 wants it kept; UDP and echo, a while behind each packet, if that is none that
//!   the guest has asked for: else it could go on with whom it may not send to any more. Nothing of this is found by a policy, and so it outlives its change.
//! * A later fragment has no ports to look at: it is dropped, unless all is allowed to where it is for. (One whose first fragment was dropped would
//!   be harmless, but a guest that answers in fragments of its own making could have some of them carry what it likes.)
//! * Options of IPv4 and routing headers of IPv6 can send a packet on to somebody else than the one that it names: dropped.
//! * ARP stays on its link; so does neighbour discovery, of which nothing is let through to other links than those that the guest has an address on.
//!   An ICMP error is as anything: for those that may be sent ICMP.

use super::{
    again,
    expression::{
        Field::{self, Header, Index, Interface, Network, Out, OutIndex, Policy, Protocol, Routing, Subnet, Transport},
        Test::{self, All, Any, In, Is, IsNot, Masked, NotIn, Put, Read, Take, Unmarked},
        Verdict::{Drop, Goto, Jump, Return},
    },
    rules::{
        ETHER_TYPE, ICMP, ICMPV6, IPV4, IPV4_SOURCE, IPV6, IPV6_SOURCE, LATER, LATER_OF_IPV6, MESSAGE_TYPE, Rule,
        SOURCE_PORT, TARGET_PORT, UDP,
    },
    table::{Chain, Set},
};

pub const TCP: &[u8] = &[6];
pub const FLAGS: Field = Header(13, 1);
/// SYN, and not ACK.
const BEGINS: Test = Masked(FLAGS, &[0x12], &[2]);
/// FIN or RST.
const ENDS: Test = Any(FLAGS, &[5]);
/// Of an echo: which one of several it is.
const ECHO: Field = Header(4, 2);

/// How long a connection of which there is but the beginning is kept.
pub const BEGINNING: u64 = 60;
/// And one that goes on, from its last segment on (RFC 5382, section 5): 2 hours and 4 minutes.
pub const ESTABLISHED: u64 = 7440;
/// And one that a side has ended, and UDP (RFC 4787, section 4.3: 2 minutes at least).
pub const SHORT: u64 = 120;

pub const POLICED_RULES: &[Rule] = &[
    ("what a guest sends", &[], Jump(Chain::Guest)),
    ("IPv4", &[Is(Protocol, IPV4)], Goto(Chain::Policed4)),
    ("IPv6", &[Is(Protocol, IPV6)], Goto(Chain::Policed6)),
    ("ARP", &[Unmarked], Return),
];

pub const TO4: Field = Network(16, 4);
const ALLOWED4: &[Field] = &[Policy, TO4, Transport, TARGET_PORT];
const OF_HOST: &[Field] = &[Policy, Transport, TARGET_PORT];
/// What is found of a packet without ports, if all is allowed: the version and the length of a header are a protocol, of which no rule can be.
const ALL4: &[Field] = &[Policy, TO4, Network(0, 1), Network(6, 2)];
const ASKED4: &[Field] = &[Index, TO4, TARGET_PORT, SOURCE_PORT];
const BEGUN4: &[Field] = &[Index, TO4, Transport, TARGET_PORT, SOURCE_PORT];
const ECHO4: &[Field] = &[Index, TO4, Transport, ECHO, ECHO];
pub const POLICED4_RULES: &[Rule] = &[
    ("with options", &[IsNot(Network(0, 1), &[0x45])], Goto(Chain::Denied)),
    (
        "later fragment to where all is allowed",
        &[LATER, NotIn(TO4, Set::Own4), All(ALL4, Set::Allow4)],
        Goto(Chain::Allowed),
    ),
    ("later fragment", &[LATER], Goto(Chain::Denied)),
    ("what the policy allows of the host", &[In(TO4, Set::Own4), All(OF_HOST, Set::Hosts)], Goto(Chain::Asks4)),
    ("the host", &[In(TO4, Set::Own4)], Goto(Chain::Answers4)),
    ("what the policy allows", &[All(ALLOWED4, Set::Allow4)], Goto(Chain::Goes4)),
    ("a name that the policy allows", &[All(&[Policy, TO4], Set::Names4)], Goto(Chain::Asks4)),
    ("anything else", &[], Goto(Chain::Answers4)),
];
/// What a policy allows for its address, and so for as long as the policy does.
pub const GOES4_RULES: &[Rule] = &[
    (
        "UDP, whose answers are none that others begin",
        &[Is(Transport, UDP), Put(ASKED4, Set::Asked4, SHORT), In(Interface, Set::Allowed)],
        Goto(Chain::Passed4),
    ),
    ("TCP", &[Is(Transport, TCP), In(Interface, Set::Allowed)], Goto(Chain::Passed4)),
    ("anything else", &[], Goto(Chain::Allowed)),
];
pub const ASKS4_RULES: &[Rule] = &[
    (
        "UDP, whose answers are none that others begin",
        &[Is(Transport, UDP), Put(ASKED4, Set::Asked4, SHORT)],
        Goto(Chain::Allowed),
    ),
    ("anything else", &[], Goto(Chain::Allowed)),
];
pub const ANSWERS4_RULES: &[Rule] = &[
    ("begins a connection", &[Is(Transport, TCP), BEGINS], Goto(Chain::Denied)),
    (
        "ends a connection that others began",
        &[
            Is(Transport, TCP),
            ENDS,
            All(BEGUN4, Set::Begun4),
            Put(ASKED4, Set::Ended4, SHORT),
            Take(BEGUN4, Set::Begun4),
        ],
        Goto(Chain::Allowed),
    ),
    ("echo reply", &[Is(Transport, ICMP), Is(MESSAGE_TYPE, &[0]), All(ECHO4, Set::Begun4)], Goto(Chain::Allowed)),
    ("other ICMP", &[Is(Transport, ICMP)], Goto(Chain::Denied)),
    ("what others began", &[All(BEGUN4, Set::Begun4)], Goto(Chain::Allowed)),
    ("of a connection that has an end", &[Is(Transport, TCP), All(ASKED4, Set::Ended4)], Goto(Chain::Allowed)),
    ("what nobody asked for", &[], Goto(Chain::Denied)),
];

pub const TO6: Field = Network(24, 16);
const ALLOWED6: &[Field] = &[Policy, TO6, Transport, TARGET_PORT];
const ALL6: &[Field] = &[Policy, TO6, Network(0, 1), Network(4, 2)];
const ASKED6: &[Field] = &[Index, TO6, TARGET_PORT, SOURCE_PORT];
const BEGUN6: &[Field] = &[Index, TO6, Transport, TARGET_PORT, SOURCE_PORT];
const ECHO6: &[Field] = &[Index, TO6, Transport, ECHO, ECHO];
const DISCOVERY: Test = In(MESSAGE_TYPE, Set::Discovery);
pub const POLICED6_RULES: &[Rule] = &[
    ("routing header", &[Read(Routing(0, 1))], Goto(Chain::Denied)),
    (
        "later fragment to where all is allowed",
        &[LATER_OF_IPV6, NotIn(TO6, Set::Own6), All(ALL6, Set::Allow6)],
        Goto(Chain::Allowed),
    ),
    ("later fragment", &[LATER_OF_IPV6], Goto(Chain::Denied)),
    (
        "neighbour discovery, of everybody on its link",
        &[Is(Transport, ICMPV6), DISCOVERY, Is(Network(24, 2), &[0xff, 2]), Unmarked],
        Return,
    ),
    (
        "neighbour discovery, by the link's own addresses",
        &[Is(Transport, ICMPV6), DISCOVERY, Masked(Network(24, 2), &[0xff, 0xc0], &[0xfe, 0x80]), Unmarked],
        Return,
    ),
    (
        "neighbour discovery, in its subnet",
        &[Is(Transport, ICMPV6), DISCOVERY, All(&[Interface, Subnet(24)], Set::Links), Unmarked],
        Return,
    ),
    ("what the policy allows of the host", &[In(TO6, Set::Own6), All(OF_HOST, Set::Hosts)], Goto(Chain::Asks6)),
    ("the host", &[In(TO6, Set::Own6)], Goto(Chain::Answers6)),
    ("what the policy allows", &[All(ALLOWED6, Set::Allow6)], Goto(Chain::Goes6)),
    ("a name that the policy allows", &[All(&[Policy, TO6], Set::Names6)], Goto(Chain::Asks6)),
    ("anything else", &[], Goto(Chain::Answers6)),
];
pub const GOES6_RULES: &[Rule] = &[
    (
        "UDP, whose answers are none that others begin",
        &[Is(Transport, UDP), Put(ASKED6, Set::Asked6, SHORT), In(Interface, Set::Allowed)],
        Goto(Chain::Passed6),
    ),
    ("TCP", &[Is(Transport, TCP), In(Interface, Set::Allowed)], Goto(Chain::Passed6)),
    ("anything else", &[], Goto(Chain::Allowed)),
];
pub const ASKS6_RULES: &[Rule] = &[
    (
        "UDP, whose answers are none that others begin",
        &[Is(Transport, UDP), Put(ASKED6, Set::Asked6, SHORT)],
        Goto(Chain::Allowed),
    ),
    ("anything else", &[], Goto(Chain::Allowed)),
];
pub const ANSWERS6_RULES: &[Rule] = &[
    ("begins a connection", &[Is(Transport, TCP), BEGINS], Goto(Chain::Denied)),
    (
        "ends a connection that others began",
        &[
            Is(Transport, TCP),
            ENDS,
            All(BEGUN6, Set::Begun6),
            Put(ASKED6, Set::Ended6, SHORT),
            Take(BEGUN6, Set::Begun6),
        ],
        Goto(Chain::Allowed),
    ),
    ("echo reply", &[Is(Transport, ICMPV6), Is(MESSAGE_TYPE, &[129]), All(ECHO6, Set::Begun6)], Goto(Chain::Allowed)),
    ("other ICMPv6", &[Is(Transport, ICMPV6)], Goto(Chain::Denied)),
    ("what others began", &[All(BEGUN6, Set::Begun6)], Goto(Chain::Allowed)),
    ("of a connection that has an end", &[Is(Transport, TCP), All(ASKED6, Set::Ended6)], Goto(Chain::Allowed)),
    ("what nobody asked for", &[], Goto(Chain::Denied)),
];

pub const ALLOWED_RULES: &[Rule] = &[("counted", &[Unmarked, In(Interface, Set::Allowed)], Return)];
pub const DENIED_RULES: &[Rule] = &[("counted", &[In(Interface, Set::Denied)], Drop), ("not by its policy", &[], Drop)];

pub const TOWARDS_RULES: &[Rule] = &[
    again::TOWARDS,
    again::TOWARDS_RATES,
    // What does not come through has begun nothing.
    ("beyond its rate", &[In(Out, Set::RatesTo)], Goto(Chain::OverTo)),
    ("to a port with a policy", &[In(Out, Set::Policed)], Goto(Chain::TowardsPort)),
];
pub const TOWARDS_PORT_RULES: &[Rule] = &[
    ("IPv4", &[Is(ETHER_TYPE, IPV4), Is(Protocol, IPV4), Read(Transport)], Goto(Chain::Towards4)),
    ("IPv6", &[Is(ETHER_TYPE, IPV6), Is(Protocol, IPV6), Read(Transport)], Goto(Chain::Towards6)),
];

/// The keys of an answer.
const FROM4: &[Field] = &[OutIndex, IPV4_SOURCE, Transport, SOURCE_PORT, TARGET_PORT];
const FROM4_BRIEF: &[Field] = &[OutIndex, IPV4_SOURCE, SOURCE_PORT, TARGET_PORT];
const FROM4_ECHO: &[Field] = &[OutIndex, IPV4_SOURCE, Transport, ECHO, ECHO];
pub const TOWARDS4_RULES: &[Rule] = &[
    ("later fragment", &[LATER], Return),
    ("begins a connection", &[Is(Transport, TCP), BEGINS, Put(FROM4, Set::Begun4, BEGINNING)], Return),
    (
        "ends one",
        &[
            Is(Transport, TCP),
            ENDS,
            All(FROM4, Set::Begun4),
            Put(FROM4_BRIEF, Set::Ended4, SHORT),
            Take(FROM4, Set::Begun4),
        ],
        Return,
    ),
    ("goes on with one", &[Is(Transport, TCP), All(FROM4, Set::Begun4), Put(FROM4, Set::Begun4, ESTABLISHED)], Return),
    (
        "of one that has an end",
        &[Is(Transport, TCP), All(FROM4_BRIEF, Set::Ended4), Put(FROM4_BRIEF, Set::Ended4, SHORT)],
        Return,
    ),
    (
        "answers UDP that the guest began",
        &[Is(Transport, UDP), All(FROM4_BRIEF, Set::Asked4), Put(FROM4_BRIEF, Set::Asked4, SHORT)],
        Return,
    ),
    ("other UDP", &[Is(Transport, UDP), Put(FROM4, Set::Begun4, SHORT)], Return),
    ("echo", &[Is(Transport, ICMP), Is(MESSAGE_TYPE, &[8]), Put(FROM4_ECHO, Set::Begun4, BEGINNING)], Return),
];

const FROM6: &[Field] = &[OutIndex, IPV6_SOURCE, Transport, SOURCE_PORT, TARGET_PORT];
const FROM6_BRIEF: &[Field] = &[OutIndex, IPV6_SOURCE, SOURCE_PORT, TARGET_PORT];
const FROM6_ECHO: &[Field] = &[OutIndex, IPV6_SOURCE, Transport, ECHO, ECHO];
pub const TOWARDS6_RULES: &[Rule] = &[
    ("later fragment", &[LATER_OF_IPV6], Return),
    ("begins a connection", &[Is(Transport, TCP), BEGINS, Put(FROM6, Set::Begun6, BEGINNING)], Return),
    (
        "ends one",
        &[
            Is(Transport, TCP),
            ENDS,
            All(FROM6, Set::Begun6),
            Put(FROM6_BRIEF, Set::Ended6, SHORT),
            Take(FROM6, Set::Begun6),
        ],
        Return,
    ),
    ("goes on with one", &[Is(Transport, TCP), All(FROM6, Set::Begun6), Put(FROM6, Set::Begun6, ESTABLISHED)], Return),
    (
        "of one that has an end",
        &[Is(Transport, TCP), All(FROM6_BRIEF, Set::Ended6), Put(FROM6_BRIEF, Set::Ended6, SHORT)],
        Return,
    ),
    (
        "answers UDP that the guest began",
        &[Is(Transport, UDP), All(FROM6_BRIEF, Set::Asked6), Put(FROM6_BRIEF, Set::Asked6, SHORT)],
        Return,
    ),
    ("other UDP", &[Is(Transport, UDP), Put(FROM6, Set::Begun6, SHORT)], Return),
    ("echo", &[Is(Transport, ICMPV6), Is(MESSAGE_TYPE, &[128]), Put(FROM6_ECHO, Set::Begun6, BEGINNING)], Return),
];
