//! An IPv4 address with its subnet, and as the kernel says that an interface has it. Pure; touches nothing.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressHeader, AddressScope},
};

use schema::net::Subnet;

use crate::attribute::{Malformed, behind, ip, number};

/// What the libc crate lacks of linux/if_addr.h.
pub(crate) const IFA_RT_PRIORITY: u16 = 9;

/// An address on an interface, with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

impl Address {
    /// The subnet that it is in.
    pub fn subnet(self) -> Subnet {
        Subnet::of(self.ip, self.prefix)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An IPv4 address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Of the interface.
    pub index: u32,
    /// What it is.
    pub address: Address,
    /// The other end's, on a point-to-point interface; else the same.
    pub peer: Ipv4Addr,
    /// Whether it is not the first of its subnet on that interface; it goes with the first one.
    pub secondary: bool,
    /// Whether there is nothing special about it: for ever, for everybody, with the routes that the kernel makes for it.
    pub plain: bool,
}

impl InterfaceAddress {
    /// Reads it behind a message's header; `None` for another family's.
    pub fn read(body: &[u8]) -> Result<Option<InterfaceAddress>, Malformed> {
        let header = AddressHeader::parse(body).map_err(|_| Malformed("message about an address"))?;
        if header.family != AddressFamily::Inet {
            return Ok(None);
        }
        let (mut local, mut peer, mut broadcast, mut metric) = (None, None, None, 0);
        let mut flags = u32::from(header.flags.bits());
        for one in behind(body, &header) {
            let one = one?;
            let value = one.value();
            match one.kind() {
                libc::IFA_LOCAL => local = Some(ip(value, "address")?),
                libc::IFA_ADDRESS => peer = Some(ip(value, "address")?),
                libc::IFA_BROADCAST => broadcast = Some(ip(value, "address")?),
                libc::IFA_FLAGS => flags = number(value, "state of an address")?,
                IFA_RT_PRIORITY => metric = number(value, "metric")?,
                _ => {}
            }
        }
        let (Some(ip), prefix @ 0..=32) = (local.or(peer), header.prefix_len) else {
            return Err(Malformed("message about an address"));
        };
        let (address, peer) = (Address { ip, prefix }, peer.unwrap_or(ip));
        let special = libc::IFA_F_SECONDARY
            | libc::IFA_F_DEPRECATED
            | libc::IFA_F_PERMANENT
            | libc::IFA_F_NOPREFIXROUTE
            | libc::IFA_F_MCAUTOJOIN;
        let plain = flags & special == libc::IFA_F_PERMANENT
            && (peer, metric, header.scope) == (ip, 0, AddressScope::Universe)
            && broadcast == Some(address.subnet().broadcast());
        let secondary = flags & libc::IFA_F_SECONDARY != 0;
        Ok(Some(InterfaceAddress { index: header.index, address, peer, secondary, plain }))
    }
}
