//! A network's configuration, checked. Pure; touches nothing.

use std::net::Ipv4Addr;

use schema::net::{is_mtu, is_of_hosts, is_prefix, mtu_rule, prefix_rule};

use crate::{address::Address, error::Error, names};

/// What the kernel gives an interface whose MTU nobody chose, in bytes.
pub const DEFAULT_MTU: u32 = 1500;

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
        if mtu != 0 && !is_mtu(mtu) {
            return Err(Error::argument("MTU", &mtu.to_string(), &format!("{}; or 0 for the default", mtu_rule())));
        }
        Ok(Config { name: name.to_owned(), address, mtu })
    }
}

fn gateway_address(gateway: &str, prefix: u8) -> Result<Address, Error> {
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
}
