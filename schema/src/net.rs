//! Subnets, Ethernet addresses and the network that every host has, said once: `ipamd` keeps of a network what `netmgr` makes, and a
//! backend gives a guest the address that `netmgr` lets pass. Pure.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::network_capnp::{
    IPV6_PREFIX_LENGTH, MAX_MTU, MAX_PREFIX_LENGTH, MAX_VLAN, MIN_MTU, MIN_PREFIX_LENGTH, MIN_VLAN, MacvtapMode,
};

/// The name of the network that exists without anybody having defined it.
pub const DEFAULT_NETWORK: &str = "volt0";
/// Its subnet.
pub const DEFAULT_SUBNET: Subnet = Subnet { network: Ipv4Addr::new(10, 42, 0, 0), prefix: 24 };
/// Its gateway, which is the bridge's own address.
pub const DEFAULT_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
/// The first and the last address that it hands out.
pub const DEFAULT_POOL: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 42, 0, 2), Ipv4Addr::new(10, 42, 0, 254));

/// An IPv4 subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The one that `address` is in, with a prefix of that many bits, 32 at most.
    pub fn of(address: Ipv4Addr, prefix: u8) -> Subnet {
        let prefix = prefix.min(32);
        Subnet { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// The first address, which names the network.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// The last address, which reaches everybody.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Bits of the network part.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether a host may carry this address: inside, and neither the network's nor the broadcast address.
    pub fn has_host(&self, address: Ipv4Addr) -> bool {
        self.network < address && address < self.broadcast()
    }

    /// Whether every address of `other` is in this one.
    pub fn contains(&self, other: &Subnet) -> bool {
        self.prefix <= other.prefix && Subnet::of(other.network, self.prefix) == *self
    }

    /// Whether any address is in both.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0)
}

/// Whether a network's subnet can have a prefix of that many bits.
pub fn is_prefix(bits: u8) -> bool {
    (MIN_PREFIX_LENGTH..=MAX_PREFIX_LENGTH).contains(&bits)
}

/// What [`is_prefix`] asks for, in words.
pub fn prefix_rule() -> String {
    format!("the prefix length must be {MIN_PREFIX_LENGTH} to {MAX_PREFIX_LENGTH}")
}

/// The IPv6 subnet that an address is in, with a prefix as each of a network's has: its first address, which is any router's
/// (RFC 4291, section 2.6.1).
pub fn subnet_of_ipv6(address: Ipv6Addr) -> Ipv6Addr {
    let behind = 128_u32.saturating_sub(IPV6_PREFIX_LENGTH.into());
    Ipv6Addr::from_bits(address.to_bits() >> behind << behind)
}

/// Whether hosts have IPv6 addresses such as this: global unicast as far as it is given out (RFC 4291, section 2.4), or unique local (RFC 4193), and
/// one host's.
pub fn is_of_ipv6_hosts(address: Ipv6Addr) -> bool {
    let [first, ..] = address.octets();
    (first & 0xe0 == 0x20 || first & 0xfe == 0xfc) && address != subnet_of_ipv6(address)
}

/// What [`is_of_ipv6_hosts`] asks for, in words.
pub fn ipv6_rule() -> String {
    format!(
        "it must be a global unicast address (2000::/3) or a unique local one (fc00::/7), and not the first of its subnet of {IPV6_PREFIX_LENGTH} bits, which is any router's"
    )
}

/// Whether a network can have frames of that many bytes.
pub fn is_mtu(bytes: u32) -> bool {
    (MIN_MTU..=MAX_MTU).contains(&bytes)
}

/// What [`is_mtu`] asks for, in words.
pub fn mtu_rule() -> String {
    format!("it must be {MIN_MTU} to {MAX_MTU} bytes, which is what IPv6 needs and what a TAP takes")
}

/// Whether a VLAN can have that number (IEEE 802.1Q, table 9-2: 0 is none, and 4095 is reserved).
pub fn is_vlan(number: u16) -> bool {
    (MIN_VLAN..=MAX_VLAN).contains(&number)
}

/// What [`is_vlan`] asks for, in words.
pub fn vlan_rule() -> String {
    format!("it must be {MIN_VLAN} to {MAX_VLAN}")
}

/// Whether hosts have addresses such as this: not of this host, loopback, multicast or reserved (RFC 6890). Behind a prefix that
/// [`is_prefix`] takes, one address speaks for its whole subnet.
pub fn is_of_hosts(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    !matches!(first, 0 | 127 | 224..)
}

/// The Ethernet address of a station: unicast, and not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

/// Why six bytes are no [`Mac`].
pub const MAC_RULE: &str = "it must be a unicast address that is not all zero";

impl Mac {
    /// That address, if a station can have it.
    pub const fn new(bytes: [u8; 6]) -> Option<Mac> {
        if bytes[0] & 1 != 0 || matches!(bytes, [0, 0, 0, 0, 0, 0]) { None } else { Some(Mac(bytes)) }
    }

    /// One that nobody has sold: locally administered.
    pub const fn local([b, c, d, e, f]: [u8; 5]) -> Mac {
        Mac([0x02, b, c, d, e, f])
    }

    /// The address of the host's end of a guest's TAP: the guest's with another first byte, as the two must differ.
    pub const fn host_side(self) -> Mac {
        let [first, b, c, d, e, f] = self.0;
        Mac([if first == 0xfe { 0xfa } else { 0xfe }, b, c, d, e, f])
    }

    /// The IPv6 address that follows from it in a subnet (RFC 4291, appendix A): what a guest gives itself that hears of the subnet from a router.
    pub fn ipv6_in(self, subnet: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from_bits(subnet_of_ipv6(subnet).to_bits() | u128::from(identifier))
    }

    /// Its bytes, in the order in which they are sent.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    /// From six pairs of hexadecimal digits with colons between.
    fn from_str(text: &str) -> Result<Mac, &'static str> {
        const SIX: &str = "it takes six pairs of hex digits with colons between them";
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or(SIX)?, 16).map_err(|_| SIX)?;
        }
        if parts.next().is_some() { Err(SIX) } else { Mac::new(mac).ok_or(MAC_RULE) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the modes of macvtap are called in a network's JSON, and by the kernel.
pub const MACVTAP_MODES: [(&str, MacvtapMode); 4] = [
    ("bridge", MacvtapMode::Bridge),
    ("private", MacvtapMode::PrivateMode),
    ("vepa", MacvtapMode::Vepa),
    ("passthru", MacvtapMode::Passthru),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').unwrap();
        Subnet::of(address.parse().unwrap(), prefix.parse().unwrap())
    }

    #[test]
    fn subnet_has_its_ends_for_every_prefix() {
        for (text, network, broadcast) in [
            ("10.42.0.7/24", "10.42.0.0", "10.42.0.255"),
            ("10.42.0.7/32", "10.42.0.7", "10.42.0.7"),
            ("10.42.0.7/30", "10.42.0.4", "10.42.0.7"),
            ("200.1.2.3/1", "128.0.0.0", "255.255.255.255"),
            ("200.1.2.3/0", "0.0.0.0", "255.255.255.255"),
        ] {
            let subnet = subnet(text);
            assert_eq!(
                (subnet.network().to_string(), subnet.broadcast().to_string()),
                (network.into(), broadcast.into())
            );
            assert!(!subnet.has_host(subnet.network()) && !subnet.has_host(subnet.broadcast()), "{text}");
        }
        assert_eq!(subnet("10.42.0.7/24").to_string(), "10.42.0.0/24");
        assert_eq!(Subnet::of(Ipv4Addr::LOCALHOST, 255).prefix(), 32);
    }

    #[test]
    fn subnets_overlap_if_one_contains_the_other() {
        for (one, other, overlap) in [
            ("10.42.0.0/24", "10.0.0.0/8", true),
            ("10.42.0.0/24", "10.42.0.200/32", true),
            ("10.42.0.0/24", "0.0.0.0/0", true),
            ("10.42.0.0/24", "10.42.1.0/24", false),
            ("10.42.0.0/25", "10.42.0.128/25", false),
        ] {
            let (one, other) = (subnet(one), subnet(other));
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (overlap, overlap), "{one} {other}");
        }
        assert!(!subnet("10.42.0.0/24").contains(&subnet("10.0.0.0/8")));
    }

    #[test]
    fn networks_have_prefixes_and_addresses_that_hosts_can_have() {
        for (bits, good) in [(7, false), (8, true), (30, true), (31, false), (0, false), (255, false)] {
            assert_eq!(is_prefix(bits), good, "{bits}");
        }
        for (address, good) in [
            ("0.255.0.1", false),
            ("1.0.0.1", true),
            ("126.0.0.1", true),
            ("127.0.0.1", false),
            ("128.0.0.1", true),
            ("223.255.255.1", true),
            ("224.0.0.1", false),
            ("255.0.0.1", false),
        ] {
            assert_eq!(is_of_hosts(address.parse().unwrap()), good, "{address}");
        }
    }

    #[test]
    fn ipv6_address_of_a_host_is_one_of_its_subnet_and_not_the_first() {
        for (address, good) in [
            ("1fff:ffff::1", false),
            ("2000::1", true),
            ("3fff:ffff::1", true),
            ("4000::1", false),
            ("fbff::1", false),
            ("fc00::1", true),
            ("fdff:ffff::1", true),
            ("fe00::1", false),
            ("fe80::1", false),
            ("fd00::", false),
            ("fd00:0:0:1::", false),
            ("fd00::ffff:ffff:ffff:ffff", true),
            ("::1", false),
            ("::ffff:10.42.0.1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_of_ipv6_hosts(address.parse().unwrap()), good, "{address}");
        }
        assert_eq!(subnet_of_ipv6("fd00:1:2:3:4:5:6:7".parse().unwrap()).to_string(), "fd00:1:2:3::");
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(mac.ipv6_in("fd00:1:2:3::1".parse().unwrap()).to_string(), "fd00:1:2:3:5054:ff:fe12:3456");
    }

    #[test]
    fn default_network_follows_its_own_rules() {
        assert!(crate::names::is_network(DEFAULT_NETWORK) && is_prefix(DEFAULT_SUBNET.prefix()));
        let (first, last) = DEFAULT_POOL;
        for address in [DEFAULT_GATEWAY, first, last] {
            assert!(DEFAULT_SUBNET.has_host(address) && is_of_hosts(address), "{address}");
        }
        assert!(DEFAULT_GATEWAY < first && first < last);
    }

    #[test]
    fn mac_is_a_station_s_and_reads_back() {
        for good in ["02:00:5e:00:53:ff", "52:54:00:12:34:56", "00:00:00:00:00:01"] {
            assert_eq!(good.parse::<Mac>().map(|mac| mac.to_string()), Ok(good.into()));
        }
        assert_eq!("02:00:5e:00:53:fF".parse::<Mac>().map(Mac::bytes), Ok([2, 0, 0x5e, 0, 0x53, 0xff]));
        for wrong in
            ["", "02:00:5e:00:53", "02:00:5e:00:53:ff:00", "2:0:5e:0:53:ff", "02:00:5e:00:53:+f", "02-00-5e-00-53-ff"]
        {
            assert!(wrong.parse::<Mac>().unwrap_err().contains("six pairs"), "{wrong}");
        }
        let local = Mac::local([1, 2, 3, 4, 5]);
        assert_eq!(Mac::new(local.bytes()), Some(local));
        for guest in [local, Mac([0xfe, 1, 2, 3, 4, 5])] {
            let host = guest.host_side();
            assert!(host != guest && host.bytes()[0] & 3 == 2 && host.bytes()[1..] == guest.bytes()[1..], "{host}");
        }
        for wrong in ["01:00:5e:00:53:ff", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(wrong.parse::<Mac>(), Err(MAC_RULE), "{wrong}");
        }
    }
}
