//! An address with its subnet, and as the kernel says that an interface has it. Pure; touches nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
pub struct Address<Ip = IpAddr> {
    /// The address.
    pub ip: Ip,
    /// 0 to 32, of IPv6 to 128.
    pub prefix: u8,
}

impl Address<Ipv4Addr> {
    /// The subnet that it is in.
    pub fn subnet(self) -> Subnet {
        Subnet::of(self.ip, self.prefix)
    }
}

impl<Ip: Into<IpAddr>> Address<Ip> {
    /// It, whatever its family.
    pub fn of_any(self) -> Address {
        Address { ip: self.ip.into(), prefix: self.prefix }
    }
}

impl Address {
    /// The longest prefix that one of its family has.
    pub fn longest(ip: IpAddr) -> u8 {
        if ip.is_ipv4() { 32 } else { 128 }
    }

    /// It alone.
    pub fn alone(ip: IpAddr) -> Address {
        Address { ip, prefix: Address::longest(ip) }
    }

    /// The first address of its subnet, with the prefix.
    pub fn network(self) -> Address {
        let ip = match self.ip {
            IpAddr::V4(ip) => Subnet::of(ip, self.prefix).network().into(),
            IpAddr::V6(ip) => {
                let behind = 128_u32.saturating_sub(self.prefix.into());
                let kept = ip.to_bits().checked_shr(behind).and_then(|bits| bits.checked_shl(behind));
                Ipv6Addr::from_bits(kept.unwrap_or(0)).into()
            }
        };
        Address { ip, ..self }
    }

    /// Whether every address of the other one's subnet is in this one's.
    pub fn contains(self, other: Address) -> bool {
        self.ip.is_ipv4() == other.ip.is_ipv4()
            && self.prefix <= other.prefix
            && Address { prefix: self.prefix, ..other }.network() == self.network()
    }

    /// Whether any address is in the subnets of both.
    pub fn overlaps(self, other: Address) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// The address that reaches everybody in its subnet; IPv6 has none.
    pub fn broadcast(self) -> Option<IpAddr> {
        match self.ip {
            IpAddr::V4(ip) => Some(Subnet::of(ip, self.prefix).broadcast().into()),
            IpAddr::V6(_) => None,
        }
    }
}

impl<Ip: std::fmt::Display> std::fmt::Display for Address<Ip> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Of the interface.
    pub index: u32,
    /// What it is.
    pub address: Address,
    /// The other end's, on a point-to-point interface; else the same.
    pub peer: IpAddr,
    /// Whether it is not the first of its subnet on that interface; it goes with the first one.
    pub secondary: bool,
    /// Whether there is nothing special about it: for ever, for everybody, with the routes that the kernel makes for it.
    pub plain: bool,
}

impl InterfaceAddress {
    /// Reads it behind a message's header; `None` for one that is of neither IPv4 nor IPv6.
    pub fn read(body: &[u8]) -> Result<Option<InterfaceAddress>, Malformed> {
        let header = AddressHeader::parse(body).map_err(|_| Malformed("message about an address"))?;
        let family = header.family;
        if !matches!(family, AddressFamily::Inet | AddressFamily::Inet6) {
            return Ok(None);
        }
        let (mut local, mut peer, mut broadcast, mut metric): (Option<IpAddr>, _, _, _) = (None, None, None, 0);
        let mut flags = u32::from(header.flags.bits());
        for one in behind(body, &header) {
            let one = one?;
            let value = one.value();
            match one.kind() {
                libc::IFA_LOCAL => local = Some(ip(family, value, "address")?),
                libc::IFA_ADDRESS => peer = Some(ip(family, value, "address")?),
                libc::IFA_BROADCAST => broadcast = Some(ip(family, value, "address")?),
                libc::IFA_FLAGS => flags = number(value, "state of an address")?,
                IFA_RT_PRIORITY => metric = number(value, "metric")?,
                _ => {}
            }
        }
        let prefix = header.prefix_len;
        let Some(ip) = local.or(peer).filter(|ip| prefix <= Address::longest(*ip)) else {
            return Err(Malformed("message about an address"));
        };
        let (address, peer) = (Address { ip, prefix }, peer.unwrap_or(ip));
        let special = libc::IFA_F_SECONDARY
            | libc::IFA_F_DEPRECATED
            | libc::IFA_F_PERMANENT
            | libc::IFA_F_NOPREFIXROUTE
            | libc::IFA_F_MCAUTOJOIN
            // Somebody has it, or may have: the host does not use it.
            | libc::IFA_F_TENTATIVE
            | libc::IFA_F_DADFAILED
            | libc::IFA_F_OPTIMISTIC;
        let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let scope = if is_link_local { AddressScope::Link } else { AddressScope::Universe };
        let plain = flags & special == libc::IFA_F_PERMANENT
            && (peer, metric, header.scope) == (ip, 0, scope)
            && broadcast == address.broadcast();
        let secondary = flags & libc::IFA_F_SECONDARY != 0;
        Ok(Some(InterfaceAddress { index: header.index, address, peer, secondary, plain }))
    }
}
