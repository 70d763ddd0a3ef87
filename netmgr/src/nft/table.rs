//! The sets and chains of the table: their names, and what of them is always the same. Pure; touches nothing.

/// A set of the table.
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
}

impl Set {
    /// All of them.
    pub const ALL: [Set; 8] =
        [Set::Ports, Set::Macs, Set::Ipv4, Set::Ipv6, Set::Hidden, Set::Messages, Set::Reports, Set::Memberships];
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
        }
    }

    /// What nft(8) takes its keys for (its own numbers, six bits each), and the length of one in bytes.
    pub fn key(self) -> (u32, usize) {
        const IFNAME: u32 = 41;
        let of_port = |kind: u32, len: usize| (IFNAME << 6 | kind, libc::IFNAMSIZ + len);
        match self {
            Set::Ports => (IFNAME, libc::IFNAMSIZ),
            Set::Macs => of_port(9, 8),
            Set::Ipv4 => of_port(7, 4),
            Set::Ipv6 => of_port(8, 16),
            Set::Hidden => (12, 1),
            Set::Messages | Set::Reports => (29, 1),
            Set::Memberships => (42, 1),
        }
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
            _ => &[],
        }
    }
}

/// A chain of the table. Named so that nft(8) can read what it lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// What comes into any bridge.
    Source,
    /// What any bridge hands to the host itself.
    Host,
    /// What comes from a port of ours.
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
}

impl Chain {
    /// All of them, in an order in which each is there before what leads to it.
    pub const ALL: [Chain; 11] = [
        Chain::Solicitation,
        Chain::Advertisement,
        Chain::Router,
        Chain::Icmpv6,
        Chain::Arp,
        Chain::Ipv4,
        Chain::Ipv6,
        Chain::Own,
        Chain::Guest,
        Chain::Host,
        Chain::Source,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Chain::Source => "source",
            Chain::Host => "host",
            Chain::Guest => "guest",
            Chain::Own => "guest_own",
            Chain::Arp => "guest_arp",
            Chain::Ipv4 => "guest_ipv4",
            Chain::Ipv6 => "guest_ipv6",
            Chain::Icmpv6 => "guest_icmpv6",
            Chain::Solicitation => "guest_solicitation",
            Chain::Advertisement => "guest_advertisement",
            Chain::Router => "guest_router",
        }
    }

    /// NF_BR_PRE_ROUTING and NF_BR_LOCAL_IN, where the kernel comes to it by itself.
    pub fn hook(self) -> Option<u32> {
        match self {
            Chain::Source => Some(0),
            Chain::Host => Some(1),
            _ => None,
        }
    }
}
