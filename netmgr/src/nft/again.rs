//! What goes on as it has begun is not looked at by all rules each time. Of a segment of TCP, or a datagram of UDP, that a policy lets go, all that
//! they have looked at is noted for a second; what is the same in all of that is let through by one look. Pure; touches nothing.
//!
//! * What is noted begins with the turn, a number in the rules themselves: another one behind each change by which something may not be let through any
//!   more. A frame has its mark before anything else is looked at, and is noted by that; so what was found by what is no more, nobody finds. The rules are
//!   changed when all sets are as they are to be, and not with them: the kernel changes sets of ranges a little later than rules.
//!   (By a number in the rules, and not one for each port, no look is needed to find it; all have to be looked at once more for anybody's change.)
//! * It is the port, all of the Ethernet header, both addresses, the ports, and what is to be known of the IP header: of IPv4 that it has no options,
//!   its protocol and its place among fragments (with the time to live between them), of IPv6 that nothing is before the transport's header.
//! * Nothing is noted of which more was looked at than that, as DHCP; nor what begins or ends a connection; nor what a policy lets go as an answer,
//!   by a name, or to the host; nor what is sent at a rate.
//! * It is counted as ever, and the rate of who it goes to holds: that is looked for where anybody has one. What others have begun there was noted by the
//!   first one, and will be by the next in a second.

use super::{
    expression::{
        AGAIN,
        Field::{self, Ether, Header, Index, Interface, Mark, Network, Out, Protocol, Transport},
        TO_RATES,
        Test::{self, Again, In, Is, IsNot, Masked, NotIn, Note, Noted, Unmarked},
        Verdict::Return,
    },
    policed::{FLAGS, TCP},
    rules::{ETHER_TYPE, IPV6, IPV6_NEXT, Rule, SOURCE_PORT, TARGET_PORT, UDP},
    table::Set,
};

/// Destination and source. (The type is read by itself: not each kernel sees a VLAN tag that was taken off where more is read at once.)
const MACS: Field = Ether(0, 12);
const PORTS: Field = Header(0, 4);
/// IPv4's version and the length of a header without options.
const PLAIN: Test = Is(Network(0, 1), &[0x45]);
/// The place among fragments, the time to live, and the protocol.
const KEY4: &[Field] = &[Index, MACS, ETHER_TYPE, Network(6, 4), Network(12, 4), Network(16, 4), PORTS];
const KEY6: &[Field] = &[Index, MACS, ETHER_TYPE, IPV6_NEXT, Network(8, 32), PORTS];
const IPV4_PROTOCOL: Field = Network(9, 1);
/// Neither SYN, FIN nor RST.
const GOES_ON: Test = Masked(FLAGS, &[7], &[0]);
/// Seconds for which it is known.
const MOMENT: u64 = 1;

// What can be read right from where it is takes the kernel the least time. That it is IPv4, and that it can be read, what follows sees to. Counted last of
// all: of a port that was given up it is counted nowhere, and it is looked at by all rules.
pub const IPV4_DATAGRAM: Rule = (
    "UDP as a moment ago",
    &[PLAIN, Is(IPV4_PROTOCOL, UDP), Noted(KEY4, Set::Passed4), In(Interface, Set::Allowed), Again],
    Return,
);
pub const IPV4_SEGMENT: Rule = (
    "TCP as a moment ago",
    &[PLAIN, Is(IPV4_PROTOCOL, TCP), GOES_ON, Noted(KEY4, Set::Passed4), In(Interface, Set::Allowed), Again],
    Return,
);
pub const IPV6_DATAGRAM: Rule = (
    "UDP as a moment ago",
    &[Is(Protocol, IPV6), Is(IPV6_NEXT, UDP), Noted(KEY6, Set::Passed6), In(Interface, Set::Allowed), Again],
    Return,
);
pub const IPV6_SEGMENT: Rule = (
    "TCP as a moment ago",
    &[Is(Protocol, IPV6), Is(IPV6_NEXT, TCP), GOES_ON, Noted(KEY6, Set::Passed6), In(Interface, Set::Allowed), Again],
    Return,
);

/// In a table of one interface nothing looks for it.
const ON_BRIDGE: Test = IsNot(Index, &[0; 4]);
/// At no rate.
const FREE: Test = NotIn(Interface, Set::RatesFrom);
const NOT_LATER: Test = Masked(Network(6, 2), &[0x1f, 0xff], &[0, 0]);
pub const PASSED4_RULES: &[Rule] = &[
    (
        "UDP that is no DHCP",
        &[
            Is(Transport, UDP),
            PLAIN,
            NOT_LATER,
            IsNot(SOURCE_PORT, &[0, 67]),
            IsNot(TARGET_PORT, &[0, 67]),
            IsNot(TARGET_PORT, &[0, 68]),
            ON_BRIDGE,
            FREE,
            Note(KEY4, Set::Passed4, MOMENT),
            Unmarked,
        ],
        Return,
    ),
    (
        "TCP",
        &[Is(Transport, TCP), PLAIN, NOT_LATER, GOES_ON, ON_BRIDGE, FREE, Note(KEY4, Set::Passed4, MOMENT), Unmarked],
        Return,
    ),
    ("anything else, or no room", &[Unmarked], Return),
];
pub const PASSED6_RULES: &[Rule] = &[
    (
        "UDP",
        &[Is(IPV6_NEXT, UDP), Is(Transport, UDP), ON_BRIDGE, FREE, Note(KEY6, Set::Passed6, MOMENT), Unmarked],
        Return,
    ),
    (
        "TCP",
        &[Is(IPV6_NEXT, TCP), Is(Transport, TCP), GOES_ON, ON_BRIDGE, FREE, Note(KEY6, Set::Passed6, MOMENT), Unmarked],
        Return,
    ),
    ("anything else, or no room", &[Unmarked], Return),
];

/// What leaves a bridge: where there is no rate, nothing more is to be looked at or noted.
pub const TOWARDS: Rule = ("as a moment ago", &[Is(Mark, AGAIN), Unmarked], Return);
pub const TOWARDS_RATES: Rule =
    ("as a moment ago, to no rate", &[Is(Mark, TO_RATES), Unmarked, NotIn(Out, Set::RatesTo)], Return);
/// What a bridge hands to the host.
pub const HOST: Rule = ("as a moment ago", &[Is(Mark, AGAIN), Unmarked], Return);
pub const HOST_OF_RATES: Rule = ("as a moment ago, where there are rates", &[Is(Mark, TO_RATES), Unmarked], Return);
