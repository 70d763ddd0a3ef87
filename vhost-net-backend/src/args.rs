//! The command line, and the checked configuration that it stands for. Phase 1: the TAP is checked and set up here.

use std::os::fd::OwnedFd;

use clap::Parser;
use device::{BoxError, Error, Options};
use schema::net::Mac;

use crate::tap::Tap;

/// The least MTU that IPv4 works with (RFC 791).
const MIN_MTU: u16 = 68;

/// Connects one virtual machine to one TAP interface over vhost-user.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,

    /// The TAP: an inherited descriptor, set up with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR
    #[arg(long, value_name = "N")]
    pub tap_fd: Option<i32>,

    /// What keeps the card's address leased as long as it is open: an inherited descriptor that is held and never used
    #[arg(long, value_name = "N")]
    pub lease_fd: Option<i32>,

    /// The guest's hardware address
    #[arg(long, value_name = "aa:bb:cc:dd:ee:ff")]
    pub mac: Option<Mac>,

    /// The MTU that the guest is told
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(MIN_MTU)..))]
    pub mtu: Option<u16>,
}

/// What the device is to be.
#[derive(Debug)]
pub struct Config {
    pub tap: Tap,
    pub lease: Option<OwnedFd>,
    pub mac: Mac,
    pub mtu: Option<u16>,
}

impl Args {
    /// Takes and sets up the TAP, and checks the rest.
    pub fn config(&self) -> Result<Config, BoxError> {
        let missing = |what: &str| Error::Usage(format!("{what} is missing: see --help"));
        let mac = self.mac.ok_or_else(|| missing("--mac aa:bb:cc:dd:ee:ff"))?;
        let fd = self.tap_fd.ok_or_else(|| missing("--tap-fd N"))?;
        let tap = Tap::new(device::inherited("--tap-fd", fd, "an open TAP")?)?;
        let inherited = |fd| device::inherited("--lease-fd", fd, "an open descriptor");
        let lease = self.lease_fd.map(inherited).transpose()?;
        Ok(Config { tap, lease, mac, mtu: self.mtu })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_of_68_is_taken_and_of_67_refused() {
        let parse = |mtu: &str| Args::try_parse_from(["x", "--mtu", mtu]).map(|args| args.mtu);
        assert_eq!(parse("68").unwrap(), Some(68));
        assert_eq!(parse("65535").unwrap(), Some(65535));
        assert!(parse("67").is_err());
        assert!(parse("65536").is_err());
    }
}
