//! The sets and chains of the tables: their names, and what of them is always the same. Pure; touches nothing.

/// A family of nf_tables. In each there is one table, and both have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Frames on bridges.
    Bridge,
    /// IPv4 and IPv6 that come to the host, leave it, or are forwarded by it.
    Inet,
    /// What leaves by one interface, and comes by it: a table for each ([`device`](super::device)).
    Netdev,
}

impl Family {
    /// Those in which there is one table.
    pub const ALL: [Family; 2] = [Family::Bridge, Family::Inet];

    /// NFPROTO_*.
    pub fn number(self) -> u8 {
        match self {
            Family::Bridge => libc::NFPROTO_BRIDGE as u8,
            Family::Inet => libc::NFPROTO_INET as u8,
            Family::Netdev => libc::NFPROTO_NETDEV as u8,
        }
    }

    /// The one with that number.
    pub fn numbered(number: u8) -> Option<Family> {
        Family::ALL.into_iter().chain([Family::Netdev]).find(|family| family.number() == number)
    }

    /// The sets of a table of it.
    pub fn sets(self) -> impl Iterator<Item = Set> {
        // What is on no bridge has no ports beside it, and comes from no VLAN of ours. What policies say is kept once, for all.
        const OF_BRIDGES: [Set; 6] =
            [Set::Ports, Set::Rules, Set::Outside, Set::InsideMacs, Set::Inside4, Set::Inside6];
        Set::ALL.into_iter().filter(move |set| match self {
            Family::Netdev => set.family() == Family::Bridge && !OF_BRIDGES.contains(set),
            _ => set.family() == self,
        })
    }

    /// Its chains, in an order in which each is there before what leads to it.
    pub fn chains(self) -> impl Iterator<Item = Chain> {
        const OF_BRIDGES: [Chain; 8] = [
            Chain::Source,
            Chain::Port,
            Chain::Host,
            Chain::Towards,
            Chain::Outside,
            Chain::OutsideArp,
            Chain::Outside4,
            Chain::Outside6,
        ];
        let all = Chain::ALL.into_iter().filter(move |chain| match self {
            Family::Netdev => chain.family() == Family::Bridge && !OF_BRIDGES.contains(chain),
            _ => chain.family() == self,
        });
        all.chain([Chain::Egress, Chain::Ingress].into_iter().filter(move |_| self == Family::Netdev))
    }
}

/// What a field of a key or of an element's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An interface's name.
    Interface,
    /// A MAC address.
    Mac,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A transport protocol.
    Protocol,
    /// An ICMPv6 message's type.
    Icmpv6,
    /// An IGMP message's.
    Igmp,
    /// NFPROTO_*.
    Family,
    /// A port of TCP or UDP.
    Service,
    /// A number that stands for a policy, and is a packet's mark meanwhile.
    Mark,
    /// An interface's index.
    Index,
}

impl Type {
    /// nft(8)'s own number for it.
    fn number(self) -> u32 {
        match self {
            Type::Family => 2,
            Type::Ipv4 => 7,
            Type::Ipv6 => 8,
            Type::Mac => 9,
            Type::Protocol => 12,
            Type::Service => 13,
            Type::Mark => 19,
            Type::Index => 20,
            Type::Icmpv6 => 29,
            Type::Interface => 41,
            Type::Igmp => 42,
        }
    }

    /// Bytes of it.
    fn len(self) -> usize {
        match self {
            Type::Interface => libc::IFNAMSIZ,
            Type::Mac => 6,
            Type::Ipv4 | Type::Mark | Type::Index => 4,
            Type::Ipv6 => 16,
            Type::Service => 2,
            Type::Protocol | Type::Icmpv6 | Type::Igmp | Type::Family => 1,
        }
    }

    /// Bytes of it among others, each of which begins at a register of four.
    pub fn padded(self) -> usize {
        self.len().next_multiple_of(4)
    }

    /// What nft(8) takes several of them for, one behind the other (six bits each), and their length in bytes.
    pub fn all(types: &[Type]) -> (u32, usize) {
        match types {
            [one] => (one.number(), one.len()),
            types => types.iter().fold((0, 0), |(kind, len), one| (kind << 6 | one.number(), len + one.padded())),
        }
    }
}

/// A set of a table, or a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// The ports' interfaces.
    Ports,
    /// Which MAC address each may send from.
    Macs,
    /// Which IPv4 addresses, and 0.0.0.0, with which a lease is asked for, where there is one.
    Ipv4,
    /// Which IPv6 addresses, with the link-local one that follows from the MAC address, and ::, where there is one.
    Ipv6,
    /// The numbers of IPv6 headers behind which nobody looks.
    Hidden,
    /// ICMPv6: errors, and echo.
    Messages,
    /// ICMPv6: which groups somebody is in.
    Reports,
    /// IGMP: the same.
    Memberships,
    /// ICMPv6: neighbour discovery, as far as guests have a part in it.
    Discovery,
    /// The ports that have a policy.
    Policed,
    /// And which one.
    Policies,
    /// What each policy says, a rule in each element's comment; at 0 of which network the workloads are that it names.
    Rules,
    /// Where policies let IPv4 go.
    Allow4,
    /// And IPv6.
    Allow6,
    /// What of the host they let be reached.
    Hosts,
    /// The host's own IPv4 addresses, and those that are everybody's on a subnet of its own.
    Own4,
    /// The host's own IPv6 addresses.
    Own6,
    /// The IPv6 subnets that ports have an address in.
    Links,
    /// The IPv4 addresses of names that policies let be reached, for as long as each is known to be. Filled by who resolves names.
    Names4,
    /// The same of IPv6.
    Names6,
    /// Ports with a policy, with what that has let through.
    Allowed,
    /// And what it has not.
    Denied,
    /// What others have begun towards a port with a policy.
    Begun4,
    /// The same of IPv6.
    Begun6,
    /// TCP connections among them that one side has ended.
    Ended4,
    /// The same of IPv6.
    Ended6,
    /// What guests have begun over UDP, as they may.
    Asked4,
    /// The same of IPv6.
    Asked6,
    /// What was let through a moment ago ([`again`](super::again)).
    Passed4,
    /// The same of IPv6.
    Passed6,
    /// Ports with what their guests may send, each with a limit that is met beyond that.
    RatesFrom,
    /// And with what they may be sent.
    RatesTo,
    /// The same ports, with what was dropped of what their guests have sent beyond that.
    OverFrom,
    /// And of what they were sent.
    OverTo,
    /// The ports, with what was dropped of theirs as forged.
    Forged,
    /// The networks' uplinks, by which frames come from the outside.
    Outside,
    /// Which MAC addresses are on each one's network: its guests', and the bridge's.
    InsideMacs,
    /// Which IPv4 addresses.
    Inside4,
    /// Which IPv6 addresses.
    Inside6,
    /// The networks' bridges.
    Networks,
    /// Each of them with itself: what goes by way of it and comes by it.
    Pairs,
    /// Those of them that lead to the outside.
    Outward,
    /// Those of them from which no service of the host's is reached.
    Closed,
    /// The interfaces beneath macvtaps that are a guest's alone: virtual functions'.
    Beneath,
    /// Which IPv4 subnet is on each.
    Subnets4,
    /// Which IPv6 subnet is on each.
    Subnets6,
    /// The same IPv4 subnets, on whichever.
    Ours4,
    /// The same IPv6 subnets.
    Ours6,
    /// Which IPv4 address each bridge has.
    Gateways4,
    /// Which IPv6 address.
    Gateways6,
    /// Which MAC address each bridge has.
    Doors,
    /// Where what comes to a port of the host goes, under each of its IPv4 addresses.
    Published4,
    /// Under each of its IPv6 addresses.
    Published6,
    /// Under one IPv4 address of the host's.
    Published4At,
    /// Under one IPv6 address.
    Published6At,
    /// Who has connections of IPv4.
    Counted4,
    /// Of IPv6.
    Counted6,
    /// Who has begun connections of IPv4 of late.
    Rated4,
    /// Of IPv6.
    Rated6,
}

impl Set {
    /// All of them.
    pub const ALL: [Set; 59] = [
        Set::Ports,
        Set::Macs,
        Set::Ipv4,
        Set::Ipv6,
        Set::Hidden,
        Set::Messages,
        Set::Reports,
        Set::Memberships,
        Set::Discovery,
        Set::Policed,
        Set::Policies,
        Set::Rules,
        Set::Allow4,
        Set::Allow6,
        Set::Hosts,
        Set::Own4,
        Set::Own6,
        Set::Links,
        Set::Names4,
        Set::Names6,
        Set::Allowed,
        Set::Denied,
        Set::Begun4,
        Set::Begun6,
        Set::Ended4,
        Set::Ended6,
        Set::Asked4,
        Set::Asked6,
        Set::Passed4,
        Set::Passed6,
        Set::RatesFrom,
        Set::RatesTo,
        Set::OverFrom,
        Set::OverTo,
        Set::Forged,
        Set::Outside,
        Set::InsideMacs,
        Set::Inside4,
        Set::Inside6,
        Set::Networks,
        Set::Pairs,
        Set::Outward,
        Set::Closed,
        Set::Beneath,
        Set::Subnets4,
        Set::Subnets6,
        Set::Ours4,
        Set::Ours6,
        Set::Gateways4,
        Set::Gateways6,
        Set::Doors,
        Set::Published4,
        Set::Published6,
        Set::Published4At,
        Set::Published6At,
        Set::Counted4,
        Set::Counted6,
        Set::Rated4,
        Set::Rated6,
    ];
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Set::Ports => "ports",
            Set::Macs => "macs",
            Set::Ipv4 => "ipv4",
            Set::Ipv6 => "ipv6",
            Set::Hidden => "hidden",
            Set::Messages => "messages",
            Set::Reports => "reports",
            Set::Memberships => "memberships",
            Set::Networks => "networks",
            Set::Pairs => "pairs",
            Set::Outward => "outward",
            Set::Closed => "closed",
            Set::Beneath => "beneath",
            Set::Subnets4 => "subnets4",
            Set::Subnets6 => "subnets6",
            Set::Ours4 => "ours4",
            Set::Ours6 => "ours6",
            Set::Gateways4 => "gateways4",
            Set::Gateways6 => "gateways6",
            Set::Doors => "doors",
            Set::Published4 => "published4",
            Set::Published6 => "published6",
            Set::Published4At => "published4_at",
            Set::Published6At => "published6_at",
            Set::Counted4 => "counted4",
            Set::Counted6 => "counted6",
            Set::Rated4 => "rated4",
            Set::Rated6 => "rated6",
            Set::Discovery => "discovery",
            Set::Policed => "policed",
            Set::Policies => "policies",
            Set::Rules => "rules",
            Set::Allow4 => "allow4",
            Set::Allow6 => "allow6",
            Set::Hosts => "hosts",
            Set::Own4 => "own4",
            Set::Own6 => "own6",
            Set::Links => "links",
            Set::Names4 => "names4",
            Set::Names6 => "names6",
            Set::Allowed => "allowed",
            Set::Denied => "denied",
            Set::Begun4 => "begun4",
            Set::Begun6 => "begun6",
            Set::Ended4 => "ended4",
            Set::Ended6 => "ended6",
            Set::Asked4 => "asked4",
            Set::Asked6 => "asked6",
            Set::Passed4 => "passed4",
            Set::Passed6 => "passed6",
            Set::RatesFrom => "rates_from",
            Set::RatesTo => "rates_to",
            Set::OverFrom => "over_from",
            Set::OverTo => "over_to",
            Set::Forged => "forged",
            Set::Outside => "outside",
            Set::InsideMacs => "inside_macs",
            Set::Inside4 => "inside4",
            Set::Inside6 => "inside6",
        }
    }

    /// The table that it is in.
    pub fn family(self) -> Family {
        if self < Set::Networks { Family::Bridge } else { Family::Inet }
    }

    /// What its keys are made of.
    pub fn key(self) -> &'static [Type] {
        match self {
            Set::Ports | Set::Policed | Set::Policies | Set::Allowed | Set::Denied | Set::Outside => &[Type::Interface],
            Set::RatesFrom | Set::RatesTo | Set::OverFrom | Set::OverTo | Set::Forged => &[Type::Interface],
            Set::Macs | Set::Doors | Set::InsideMacs => &[Type::Interface, Type::Mac],
            Set::Ipv4 | Set::Inside4 => &[Type::Interface, Type::Ipv4],
            Set::Ipv6 | Set::Links | Set::Inside6 => &[Type::Interface, Type::Ipv6],
            Set::Hidden => &[Type::Protocol],
            Set::Messages | Set::Reports | Set::Discovery => &[Type::Icmpv6],
            Set::Memberships => &[Type::Igmp],
            Set::Networks | Set::Outward | Set::Closed | Set::Beneath => &[Type::Interface],
            Set::Pairs => &[Type::Interface, Type::Interface],
            Set::Subnets4 | Set::Gateways4 | Set::Counted4 | Set::Rated4 => &[Type::Interface, Type::Ipv4],
            Set::Subnets6 | Set::Gateways6 | Set::Counted6 | Set::Rated6 => &[Type::Interface, Type::Ipv6],
            Set::Ours4 => &[Type::Family, Type::Ipv4],
            Set::Ours6 => &[Type::Family, Type::Ipv6],
            Set::Published4 | Set::Published6 => &[Type::Protocol, Type::Service],
            Set::Published4At => &[Type::Protocol, Type::Ipv4, Type::Service],
            Set::Published6At => &[Type::Protocol, Type::Ipv6, Type::Service],
            Set::Rules => &[Type::Mark, Type::Mark],
            Set::Allow4 => &[Type::Mark, Type::Ipv4, Type::Protocol, Type::Service],
            Set::Allow6 => &[Type::Mark, Type::Ipv6, Type::Protocol, Type::Service],
            Set::Hosts => &[Type::Mark, Type::Protocol, Type::Service],
            Set::Own4 => &[Type::Ipv4],
            Set::Own6 => &[Type::Ipv6],
            Set::Names4 => &[Type::Mark, Type::Ipv4],
            Set::Names6 => &[Type::Mark, Type::Ipv6],
            // The port, who is at the other side, and the ports there and here; five fields are the most that nft(8) can name.
            Set::Begun4 => &[Type::Index, Type::Ipv4, Type::Protocol, Type::Service, Type::Service],
            Set::Begun6 => &[Type::Index, Type::Ipv6, Type::Protocol, Type::Service, Type::Service],
            // Of more fields than nft(8) can name, which shows each two or more as one of their length.
            Set::Passed4 => &[Type::Mark, Type::Index, Type::Ipv6, Type::Ipv6],
            Set::Passed6 => &[Type::Mac, Type::Ipv6, Type::Ipv6, Type::Ipv6, Type::Mac],
            Set::Ended4 | Set::Asked4 => &[Type::Index, Type::Ipv4, Type::Service, Type::Service],
            Set::Ended6 | Set::Asked6 => &[Type::Index, Type::Ipv6, Type::Service, Type::Service],
        }
    }

    /// What its elements' data are made of, if it is a map.
    pub fn data(self) -> &'static [Type] {
        match self {
            Set::Published4 | Set::Published4At => &[Type::Ipv4, Type::Service],
            Set::Published6 | Set::Published6At => &[Type::Ipv6, Type::Service],
            Set::Policies => &[Type::Mark],
            _ => &[],
        }
    }

    /// Whether its elements are ranges, of a key of two fields at least. (One field alone has ranges of another form.)
    pub fn has_ranges(self) -> bool {
        matches!(self, Set::Subnets4 | Set::Subnets6 | Set::Ours4 | Set::Ours6 | Set::Allow4 | Set::Allow6 | Set::Hosts)
    }

    /// How many elements it holds that the kernel puts there while it looks at packets; `None` for one whose elements are netmgr's.
    pub fn fills_itself(self) -> Option<u32> {
        let counted = matches!(self, Set::Counted4 | Set::Counted6 | Set::Rated4 | Set::Rated6);
        let passed = matches!(self, Set::Passed4 | Set::Passed6);
        (counted || passed || self.notes()).then_some(65_536)
    }

    /// Whether the kernel notes in it what others have begun, which is carried over where a table is put there anew.
    pub fn notes(self) -> bool {
        matches!(self, Set::Begun4 | Set::Begun6 | Set::Ended4 | Set::Ended6 | Set::Asked4 | Set::Asked6)
    }

    /// Whether each of its elements ends at a time of its own: what is in it is not compared.
    pub fn has_timeouts(self) -> bool {
        matches!(self, Set::Names4 | Set::Names6)
            || self.fills_itself().is_some() && !matches!(self, Set::Counted4 | Set::Counted6)
    }

    /// Whether each of its elements counts what it was found for.
    pub fn counts(self) -> bool {
        matches!(self, Set::Allowed | Set::Denied | Set::OverFrom | Set::OverTo | Set::Forged)
    }

    /// Whether each of its elements has a limit, below which it is not found.
    pub fn limits(self) -> bool {
        matches!(self, Set::RatesFrom | Set::RatesTo)
    }

    /// What is in it for ever.
    pub fn constants(self) -> &'static [u8] {
        match self {
            // Hop-by-hop, routing, fragment, AH, none, destination options, mobility, HIP, Shim6, and two to experiment with. Not ESP (50):
            // who can read what is in it shares a key with who sends it.
            Set::Hidden => &[0, 43, 44, 51, 59, 60, 135, 139, 140, 253, 254],
            Set::Messages => &[1, 2, 3, 4, 128, 129],
            Set::Reports => &[131, 132, 143],
            // Of version 1, 2 and 3, and that somebody leaves one.
            Set::Memberships => &[0x12, 0x16, 0x22, 0x17],
            // What they say of others, and redirects, the chains before have dropped.
            Set::Discovery => &[133, 135, 136],
            _ => &[],
        }
    }
}

/// A chain of a table. Named so that nft(8) can read what it lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// What comes into any bridge.
    Source,
    /// What any bridge hands to the host itself.
    Host,
    /// What comes from a port of ours.
    Port,
    /// Where a port's guest may send as.
    Guest,
    /// With its MAC address.
    Own,
    /// ARP of it.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ICMPv6.
    Icmpv6,
    /// Neighbour solicitations.
    Solicitation,
    /// Neighbour advertisements.
    Advertisement,
    /// Router solicitations.
    Router,
    /// What comes to the host, before it looks at it.
    Early,
    /// What the host forwards.
    Forward,
    /// To a network.
    Inwards,
    /// From a network.
    Outwards,
    /// What is for the host itself.
    Input,
    /// From a network that reaches none of its services.
    Services,
    /// What comes to the host and may be for a guest.
    Redirect,
    /// What the host itself sends.
    OwnRedirect,
    /// What is for an address of the host's.
    Published,
    /// What leaves the host.
    Leave,
    /// What comes from a port with a policy.
    Policed,
    /// IPv4 of a port with a policy.
    Policed4,
    /// IPv6.
    Policed6,
    /// IPv4 to where its policy allows.
    Asks4,
    /// IPv6.
    Asks6,
    /// IPv4 to where its policy allows, by address.
    Goes4,
    /// IPv6.
    Goes6,
    /// IPv4 that is let through.
    Passed4,
    /// IPv6.
    Passed6,
    /// IPv4 to elsewhere.
    Answers4,
    /// IPv6.
    Answers6,
    /// What is let through for a policy.
    Allowed,
    /// What is dropped for one.
    Denied,
    /// What leaves any bridge.
    Towards,
    /// What leaves to a port with a policy.
    TowardsPort,
    /// IPv4 of it.
    Towards4,
    /// IPv6.
    Towards6,
    /// What a guest sends beyond its rate.
    OverFrom,
    /// What it is sent beyond that.
    OverTo,
    /// What a guest must not send.
    Forged,
    /// What comes by an uplink.
    Outside,
    /// ARP of it.
    OutsideArp,
    /// IPv4.
    Outside4,
    /// IPv6.
    Outside6,
    /// What leaves by an interface that is on no bridge.
    Egress,
    /// And what comes by it.
    Ingress,
}

impl Chain {
    /// All of them but [`Chain::Egress`] and [`Chain::Ingress`], in an order in which each is there before what leads to it.
    pub const ALL: [Chain; 46] = [
        Chain::Forged,
        Chain::OverFrom,
        Chain::OverTo,
        Chain::OutsideArp,
        Chain::Outside4,
        Chain::Outside6,
        Chain::Outside,
        Chain::Allowed,
        Chain::Denied,
        Chain::Passed4,
        Chain::Passed6,
        Chain::Goes4,
        Chain::Goes6,
        Chain::Asks4,
        Chain::Asks6,
        Chain::Answers4,
        Chain::Answers6,
        Chain::Policed4,
        Chain::Policed6,
        Chain::Towards4,
        Chain::Towards6,
        Chain::TowardsPort,
        Chain::Towards,
        Chain::Solicitation,
        Chain::Advertisement,
        Chain::Router,
        Chain::Icmpv6,
        Chain::Arp,
        Chain::Ipv4,
        Chain::Ipv6,
        Chain::Own,
        Chain::Guest,
        Chain::Policed,
        Chain::Port,
        Chain::Host,
        Chain::Source,
        Chain::Published,
        Chain::Services,
        Chain::Inwards,
        Chain::Outwards,
        Chain::Early,
        Chain::Redirect,
        Chain::OwnRedirect,
        Chain::Input,
        Chain::Forward,
        Chain::Leave,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Chain::Source => "source",
            Chain::Host => "host",
            Chain::Port => "port",
            Chain::Guest => "guest",
            Chain::Own => "guest_own",
            Chain::Arp => "guest_arp",
            Chain::Ipv4 => "guest_ipv4",
            Chain::Ipv6 => "guest_ipv6",
            Chain::Icmpv6 => "guest_icmpv6",
            Chain::Solicitation => "guest_solicitation",
            Chain::Advertisement => "guest_advertisement",
            Chain::Router => "guest_router",
            Chain::Early => "early",
            Chain::Forward => "forward",
            Chain::Inwards => "inwards",
            Chain::Outwards => "outwards",
            Chain::Input => "input",
            Chain::Services => "services",
            Chain::Redirect => "redirect_others",
            Chain::OwnRedirect => "redirect_own",
            Chain::Published => "published",
            Chain::Leave => "leave",
            Chain::Policed => "policed",
            Chain::Policed4 => "policed_ipv4",
            Chain::Policed6 => "policed_ipv6",
            Chain::Asks4 => "asks_ipv4",
            Chain::Asks6 => "asks_ipv6",
            Chain::Goes4 => "goes_ipv4",
            Chain::Goes6 => "goes_ipv6",
            Chain::Passed4 => "passed_ipv4",
            Chain::Passed6 => "passed_ipv6",
            Chain::Answers4 => "answers_ipv4",
            Chain::Answers6 => "answers_ipv6",
            Chain::Allowed => "policy_allows",
            Chain::Denied => "policy_denies",
            Chain::Towards => "towards",
            Chain::TowardsPort => "towards_port",
            Chain::Towards4 => "towards_ipv4",
            Chain::Towards6 => "towards_ipv6",
            Chain::OverFrom => "over_rate_from",
            Chain::OverTo => "over_rate_to",
            Chain::Forged => "guest_forged",
            Chain::Outside => "outside",
            Chain::OutsideArp => "outside_arp",
            Chain::Outside4 => "outside_ipv4",
            Chain::Outside6 => "outside_ipv6",
            Chain::Egress => "egress",
            Chain::Ingress => "ingress",
        }
    }

    /// The table that it is in.
    pub fn family(self) -> Family {
        match self {
            Chain::Early
            | Chain::Forward
            | Chain::Inwards
            | Chain::Outwards
            | Chain::Input
            | Chain::Services
            | Chain::Redirect
            | Chain::OwnRedirect
            | Chain::Published
            | Chain::Leave => Family::Inet,
            Chain::Egress | Chain::Ingress => Family::Netdev,
            _ => Family::Bridge,
        }
    }

    /// Where the kernel comes to it by itself, if it does.
    pub fn hook(self) -> Option<Hook> {
        /// Before what anybody else usually has in a bridge: changes of addresses (-300), and filters (-200).
        const FIRST: i32 = -400;
        let hook = |number, priority, kind| Some(Hook { number, priority, kind });
        match self {
            Chain::Source => hook(0, FIRST, "filter"),
            Chain::Host => hook(1, FIRST, "filter"),
            Chain::Towards => hook(4, FIRST, "filter"),
            // NF_NETDEV_EGRESS and _INGRESS.
            Chain::Egress => hook(1, FIRST, "filter"),
            Chain::Ingress => hook(0, FIRST, "filter"),
            Chain::Early => hook(0, -300, "filter"),
            Chain::Input => hook(1, 0, "filter"),
            Chain::Forward => hook(2, 0, "filter"),
            Chain::Redirect => hook(0, -100, "nat"),
            Chain::OwnRedirect => hook(3, -100, "nat"),
            Chain::Leave => hook(4, 100, "nat"),
            _ => None,
        }
    }
}

/// Where the kernel comes to a chain by itself. What that chain says nothing of goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// NF_NETDEV_*, NF_BR_* or NF_INET_*: in the latter two, 0 is before routing, 1 what is for the host, and 4 behind routing.
    pub number: u32,
    /// The lower, the sooner.
    pub priority: i32,
    /// What may be done there: "filter" or "nat".
    pub kind: &'static str,
}
