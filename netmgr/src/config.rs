//! A network's configuration, checked. Pure; touches nothing.

use std::net::Ipv4Addr;

use schema::network_capnp::{MAX_MTU, MAX_PREFIX_LENGTH, MIN_MTU, MIN_PREFIX_LENGTH};

use crate::{error::Error, names};

/// What the kernel gives an interface whose MTU nobody chose, in bytes.
pub const DEFAULT_MTU: u32 = 1500;

/// An address on an interface, with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

impl Address {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0)
    }

    /// The subnet's first address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() & self.mask())
    }

    /// The subnet's last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() | !self.mask())
    }

    /// Whether every address of `other`'s subnet lies in this one's.
    pub fn contains(self, other: Address) -> bool {
        self.prefix <= other.prefix && other.ip.to_bits() & self.mask() == self.network().to_bits()
    }

    /// Whether the two subnets share an address.
    pub fn overlaps(self, other: Address) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// A checked `NetworkConfig` (schema/network.capnp).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Of the bridge.
    pub name: String,
    /// The bridge's own address; `None` for a bridge without one.
    pub address: Option<Address>,
    /// Bytes; 0 where nobody chose one.
    pub mtu: u32,
}

impl Config {
    /// Checks what a caller sent.
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
        if mtu != 0 && !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(Error::argument(
                "MTU",
                &mtu.to_string(),
                &format!("it must be {MIN_MTU} to {MAX_MTU} bytes (the most that a TAP takes), or 0 for the default"),
            ));
        }
        Ok(Config { name: name.to_owned(), address, mtu })
    }
}

fn gateway_address(gateway: &str, prefix: u8) -> Result<Address, Error> {
    let refuse = |why: &str| Error::argument("gateway", &format!("{gateway}/{prefix}"), why);
    let ip: Ipv4Addr = gateway.parse().map_err(|_| refuse("the address must be an IPv4 address such as 10.42.0.1"))?;
    if !(MIN_PREFIX_LENGTH..=MAX_PREFIX_LENGTH).contains(&prefix) {
        return Err(refuse(&format!("the prefix length must be {MIN_PREFIX_LENGTH} to {MAX_PREFIX_LENGTH}")));
    }
    let address = Address { ip, prefix };
    if ip == address.network() || ip == address.broadcast() {
        return Err(refuse("the first and the last address of a subnet cannot be a host's"));
    }
    if ip.octets()[0] == 0 || ip.is_loopback() || ip.octets()[0] >= 224 {
        return Err(refuse("it must be a unicast address, and not of the loopback network"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_network_is_accepted() {
        let config = Config::new("volt0", "10.42.0.1", 24, 0).unwrap();
        let address = config.address.unwrap();
        assert_eq!(address.to_string(), "10.42.0.1/24");
        assert_eq!(address.network(), Ipv4Addr::new(10, 42, 0, 0));
        assert_eq!(address.broadcast(), Ipv4Addr::new(10, 42, 0, 255));
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
    fn overlap_is_mutual_containment() {
        let at = |text: &str| {
            let (ip, prefix) = text.split_once('/').unwrap();
            Address { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        assert!(at("10.42.0.1/24").overlaps(at("10.0.0.7/8")) && at("10.0.0.7/8").overlaps(at("10.42.0.1/24")));
        assert!(at("10.42.0.1/24").overlaps(at("10.42.0.200/32")) && at("0.0.0.0/0").overlaps(at("10.42.0.1/24")));
        assert!(!at("10.42.0.1/24").overlaps(at("10.42.1.1/24")) && !at("10.42.0.1/25").overlaps(at("10.42.0.129/25")));
    }
}
