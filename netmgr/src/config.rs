//! A network's configuration, checked. Pure; touches nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use schema::{
    names::{NETWORK_RULE, is_network},
    net::{ipv6_rule, is_mtu, is_of_hosts, is_of_ipv6_hosts, is_prefix, is_vlan, mtu_rule, prefix_rule, vlan_rule},
    network_capnp::IPV6_PREFIX_LENGTH,
};

pub use crate::kind::Kind;
use crate::{address::Address, error::Error, instance::Instance, names};

/// What the kernel gives an interface whose MTU nobody chose, in bytes.
pub const DEFAULT_MTU: u32 = 1500;

/// A checked `NetworkConfig` (schema/network.capnp).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Of the bridge.
    pub name: String,
    /// The bridge's own IPv4 address, or, of an isolated network, one that nobody has; `None` for a bridge without one.
    pub address: Option<Address<Ipv4Addr>>,
    /// The same of IPv6; `None` for a network without IPv6.
    pub ipv6: Option<Address<Ipv6Addr>>,
    /// Bytes; 0 where nobody chose one.
    pub mtu: u32,
    /// What its guests reach.
    pub kind: Kind,
    /// What it is on of the host's interfaces, if it is on one: as a VLAN of it, or, where its ports are macvtaps, beside the host.
    pub uplink: Option<Uplink>,
    /// Whether its guests are kept from one another.
    pub isolate: bool,
}

/// An interface of the host's, or a VLAN of it (IEEE 802.1Q).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// That interface.
    pub parent: String,
    /// The VLAN's number; 0 for the interface itself, which macvtaps are on, and for virtual functions of none.
    pub vlan: u16,
}

impl Config {
    /// Checks what a caller sent, but for IPv6, of which it has none.
    pub fn new(name: &str, gateway: &str, prefix: u8, mtu: u32) -> Result<Config, Error> {
        names::check_network(name)?;
        let address = match (gateway, prefix) {
            ("", 0) => None,
            ("", _) => {
                return Err(Error::argument(
                    "prefix length",
                    &prefix.to_string(),
                    "it is given without a gateway; leave both out for a bridge without an address",
                ));
            }
            _ => Some(gateway_address(gateway, prefix)?),
        };
        if mtu != 0 && !is_mtu(mtu) {
            return Err(Error::argument("MTU", &mtu.to_string(), &format!("{}; or 0 for the default", mtu_rule())));
        }
        Ok(Config {
            name: name.to_owned(),
            address,
            ipv6: None,
            mtu,
            kind: Kind::Bridged,
            uplink: None,
            isolate: false,
        })
    }

    /// It with what a caller sent of IPv6: an address, or the word for the one that follows from that installation and the network's name.
    pub fn with_ipv6(self, given: &str, owner: &Instance) -> Result<Config, Error> {
        let ipv6 = match given {
            "" => None,
            AUTO => Some(Address { ip: derived(&self.name, owner), prefix: IPV6_PREFIX_LENGTH }),
            _ => Some(ipv6_address(given)?),
        };
        Ok(Config { ipv6, ..self })
    }

    /// The bridge's own addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.subnets().filter(|_| self.kind != Kind::Isolated)
    }

    /// An address of each of its subnets, the bridge's own where it has one.
    pub fn subnets(&self) -> impl Iterator<Item = Address> {
        self.address.map(Address::of_any).into_iter().chain(self.ipv6.map(Address::of_any))
    }

    /// Whether the host has IPv6 on its bridge.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6.is_some() && self.kind != Kind::Isolated && !self.is_macvtap()
    }

    /// The same, of that kind; one that leads outward does so by its gateway.
    pub fn of_kind(self, kind: Kind) -> Result<Config, Error> {
        if kind.leads_outward() && self.address.is_none() {
            return Err(Error::argument("gateway", "", "a network whose guests reach the outside has one; give it"));
        }
        Ok(Config { kind, ..self })
    }

    /// The same, whose guests are kept from one another or not.
    #[must_use]
    pub fn isolated(self, isolate: bool) -> Config {
        Config { isolate, ..self }
    }

    /// The same, on that interface of the host's: as that VLAN of it, or, where its ports are macvtaps, on itself, or by its virtual functions, of that VLAN
    /// or of none. Neither is none.
    pub fn on(self, parent: &str, vlan: u16) -> Result<Config, Error> {
        let refuse = |what, value: &str, why: &str| Err(Error::argument(what, value, why));
        match (self.kind, parent, vlan) {
            (Kind::Macvtap(_), "", _) => {
                let why = "a network of macvtaps is on an interface of the host's; give its name, such as eth0";
                return refuse("parent", parent, why);
            }
            (Kind::Sriov { .. }, "", _) => {
                let why = "a network of virtual functions has those of an interface of the host's; give its name, such as eth0";
                return refuse("parent", parent, why);
            }
            (Kind::Macvtap(_), _, 1..) => {
                let why = "a network of macvtaps is on its parent itself; leave it out, or name an interface of the host's that is that VLAN";
                return refuse("VLAN", &vlan.to_string(), why);
            }
            (_, "", 0) => return Ok(self),
            (_, "", _) => {
                return refuse("VLAN", &vlan.to_string(), "it is given without the interface that it is on, a parent");
            }
            (Kind::Bridged | Kind::Nat | Kind::HostOnly, _, 0) => {
                let why = "it is given without a VLAN, and the interface itself is put on no bridge; give one, or define the network as macvtap";
                return refuse("parent", parent, why);
            }
            _ if !is_network(parent) => return refuse("parent", parent, NETWORK_RULE),
            (Kind::Macvtap(_), ..) | (Kind::Sriov { .. }, _, 0) => {}
            _ if !is_vlan(vlan) => return refuse("VLAN", &vlan.to_string(), &vlan_rule()),
            (Kind::Isolated, ..) => {
                let why = "guests of an isolated network reach nobody else; leave it out";
                return refuse("VLAN", &vlan.to_string(), why);
            }
            (Kind::Nat | Kind::HostOnly, ..) => {
                return refuse(
                    "VLAN",
                    &vlan.to_string(),
                    "its guests reach the outside by way of that; define it as bridged, without NAT",
                );
            }
            (Kind::Bridged | Kind::Sriov { .. }, ..) => {}
        }
        Ok(Config { uplink: Some(Uplink { parent: parent.to_owned(), vlan }), ..self })
    }

    /// Whether it has no bridge, and its ports are macvtaps.
    pub fn is_macvtap(&self) -> bool {
        matches!(self.kind, Kind::Macvtap(_) | Kind::Sriov { .. })
    }

    /// The VLAN that it is, if it is one.
    pub fn vlan(&self) -> Option<&Uplink> {
        self.uplink.as_ref().filter(|_| !self.is_macvtap())
    }
}

/// What stands for an IPv6 address that follows from the installation and the network's name.
pub const AUTO: &str = "auto";

/// The first address of a unique local subnet (RFC 4193): the global identifier is a hash of the installation's name, which `volt` chooses at random,
/// and the subnet's identifier one of the network's.
fn derived(name: &str, owner: &Instance) -> Ipv6Addr {
    let ([a, b, c, d, e, ..], [f, g, ..]) =
        (names::digest(&["ipv6", &owner.to_string()]), names::digest(&["ipv6", name]));
    Ipv6Addr::from([0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn ipv6_address(given: &str) -> Result<Address<Ipv6Addr>, Error> {
    let refuse = |why: &str| Error::argument("IPv6 address", given, why);
    let form =
        || refuse("it must be an IPv6 address with its prefix length, such as fd12:3456:789a:1::1/64, or \"auto\"");
    let (ip, prefix) = given.split_once('/').ok_or_else(form)?;
    let ip: Ipv6Addr = ip.parse().map_err(|_| form())?;
    if prefix != IPV6_PREFIX_LENGTH.to_string() {
        return Err(refuse(&format!("the prefix length must be {IPV6_PREFIX_LENGTH}")));
    }
    if !is_of_ipv6_hosts(ip) {
        return Err(refuse(&ipv6_rule()));
    }
    Ok(Address { ip, prefix: IPV6_PREFIX_LENGTH })
}

fn gateway_address(gateway: &str, prefix: u8) -> Result<Address<Ipv4Addr>, Error> {
    let refuse = |why: &str| Error::argument("gateway", &format!("{gateway}/{prefix}"), why);
    let ip: Ipv4Addr = gateway.parse().map_err(|_| refuse("the address must be an IPv4 address such as 10.42.0.1"))?;
    if !is_prefix(prefix) {
        return Err(refuse(&prefix_rule()));
    }
    let address = Address { ip, prefix };
    if !address.subnet().has_host(ip) {
        return Err(refuse("the first and the last address of a subnet cannot be a host's"));
    }
    if !is_of_hosts(ip) {
        return Err(refuse("it must be a unicast address, and not of the loopback network"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::network_capnp::MacvtapMode;

    #[test]
    fn default_network_is_accepted() {
        let config = Config::new("volt0", "10.42.0.1", 24, 0).unwrap();
        let address = config.address.unwrap();
        assert_eq!(address.to_string(), "10.42.0.1/24");
        assert_eq!(address.subnet().network(), Ipv4Addr::new(10, 42, 0, 0));
        assert_eq!(address.subnet().broadcast(), Ipv4Addr::new(10, 42, 0, 255));
    }

    #[test]
    fn both_sides_of_each_limit() {
        for prefix in [8, 30] {
            Config::new("n", "10.42.0.1", prefix, 0).unwrap();
        }
        for prefix in [0, 7, 31, 32, 33, 255] {
            assert!(
                Config::new("n", "10.42.0.1", prefix, 0).unwrap_err().to_string().contains("prefix length"),
                "{prefix}"
            );
        }
        for mtu in [0, 1280, 65_521] {
            assert_eq!(Config::new("n", "", 0, mtu).unwrap().mtu, mtu);
        }
        for mtu in [1, 1279, 65_522, u32::MAX] {
            assert!(Config::new("n", "", 0, mtu).unwrap_err().to_string().contains("MTU"), "{mtu}");
        }
    }

    fn with(ipv6: &str, owner: &str) -> Result<Config, Error> {
        let owner = if owner.is_empty() { Instance::default() } else { owner.parse().unwrap() };
        Config::new("n", "10.42.0.1", 24, 0).unwrap().with_ipv6(ipv6, &owner)
    }

    #[test]
    fn ipv6_address_must_be_a_host_s_and_have_its_prefix() {
        assert_eq!(with("", "").unwrap(), Config::new("n", "10.42.0.1", 24, 0).unwrap());
        for good in ["fd00::1/64", "fd00:1:2:3::ffff/64", "2001:db8::1/64"] {
            assert_eq!(with(good, "").unwrap().ipv6.unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("Auto", "with its prefix length"),
            ("fd00::1", "with its prefix length"),
            ("10.42.0.1/24", "with its prefix length"),
            ("fd00::1%eth0/64", "with its prefix length"),
            ("fd00::1/63", "must be 64"),
            ("fd00::1/65", "must be 64"),
            ("fd00::1/064", "must be 64"),
            ("fd00::/64", "not the first"),
            ("fe80::1/64", "2000::/3"),
            ("::1/64", "2000::/3"),
            ("ff02::1/64", "fc00::/7"),
        ] {
            let error = with(bad, "").unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn derived_ipv6_subnet_is_unique_local_and_differs_by_installation_and_network() {
        let of = |name: &str, owner: &str| {
            let owner = if owner.is_empty() { Instance::default() } else { owner.parse().unwrap() };
            Config::new(name, "", 0, 0).unwrap().with_ipv6("auto", &owner).unwrap().ipv6.unwrap()
        };
        let one = of("volt0", "a");
        assert_eq!((one, one.ip.octets()[0], one.prefix), (of("volt0", "a"), 0xfd, 64));
        assert!(is_of_ipv6_hosts(one.ip) && one.ip.segments()[4..] == [0, 0, 0, 1]);
        // One global identifier an installation, one subnet of it a network.
        assert_eq!(one.ip.octets()[..6], of("volt1", "a").ip.octets()[..6]);
        assert_ne!(one.ip.octets()[6..8], of("volt1", "a").ip.octets()[6..8]);
        for other in ["b", ""] {
            assert_ne!(one.ip.octets()[..6], of("volt0", other).ip.octets()[..6]);
        }
    }

    #[test]
    fn gateway_must_be_a_host_of_its_subnet() {
        for (gateway, prefix) in [
            ("10.42.0.0", 24),
            ("10.42.0.255", 24),
            ("127.0.0.1", 8),
            ("0.0.0.1", 8),
            ("224.0.0.1", 24),
            ("fd00::1", 64),
            ("10.42.0", 24),
            ("10.42.0.1/24", 24),
            (" 10.42.0.1", 24),
            ("", 24),
        ] {
            assert!(Config::new("n", gateway, prefix, 0).is_err(), "{gateway}/{prefix}");
        }
    }

    #[test]
    fn vlan_is_one_of_an_interface_and_of_a_bridged_network() {
        let of = |parent: &str, vlan| Config::new("n", "10.42.0.1", 24, 0).unwrap().on(parent, vlan);
        assert_eq!(of("", 0).unwrap().uplink, None);
        for vlan in [1, 4094] {
            assert_eq!(of("eth0", vlan).unwrap().uplink, Some(Uplink { parent: "eth0".into(), vlan }));
        }
        for (parent, vlan, why) in [
            ("eth0", 0, "without a VLAN"),
            ("", 7, "without the interface"),
            ("eth0", 4095, "1 to 4094"),
            ("eth0", u16::MAX, "1 to 4094"),
            ("eth 0", 7, "1 to 15 bytes"),
            ("0123456789abcdef", 7, "1 to 15 bytes"),
        ] {
            let error = of(parent, vlan).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for kind in [Kind::Nat, Kind::HostOnly] {
            let config = Config::new("n", "10.42.0.1", 24, 0).unwrap().of_kind(kind).unwrap();
            assert!(config.on("eth0", 7).unwrap_err().to_string().contains("without NAT"));
        }
    }

    #[test]
    fn network_of_virtual_functions_is_on_an_interface_or_a_vlan_of_it() {
        let of = |parent: &str, vlan| {
            let config = Config::new("n", "10.42.0.1", 24, 0).unwrap().of_kind(Kind::Sriov { trust: false });
            config.unwrap().on(parent, vlan)
        };
        for vlan in [0, 1, 4094] {
            let config = of("eth0", vlan).unwrap();
            assert_eq!((&config.uplink, config.vlan()), (&Some(Uplink { parent: "eth0".into(), vlan }), None));
        }
        for (parent, vlan, why) in [
            ("", 0, "such as eth0"),
            ("", 7, "such as eth0"),
            ("eth0", 4095, "1 to 4094"),
            ("eth 0", 0, "1 to 15 bytes"),
        ] {
            let error = of(parent, vlan).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn network_of_macvtaps_is_on_an_interface_and_no_vlan_of_it() {
        let of = |parent: &str, vlan| {
            let config = Config::new("n", "10.42.0.1", 24, 0).unwrap().of_kind(Kind::Macvtap(MacvtapMode::Bridge));
            config.unwrap().on(parent, vlan)
        };
        let config = of("eth0", 0).unwrap();
        assert_eq!((&config.uplink, config.vlan()), (&Some(Uplink { parent: "eth0".into(), vlan: 0 }), None));
        for (parent, vlan, why) in
            [("", 0, "such as eth0"), ("eth0", 7, "parent itself"), ("eth 0", 0, "1 to 15 bytes")]
        {
            let error = of(parent, vlan).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
