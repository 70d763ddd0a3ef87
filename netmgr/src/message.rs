//! What the kernel says of interfaces, addresses and routes: a message, as the value that it describes. Pure; touches nothing.

use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkHeader};

use crate::{address::InterfaceAddress, attribute::Malformed, forwarding::Entry, link::Link, route::Route};

/// What a message of the kernel says.
#[derive(Debug)]
pub enum Message {
    /// `RTM_NEWLINK`.
    Link(Box<Link>),
    /// `RTM_NEWADDR`.
    Address(InterfaceAddress),
    /// `RTM_NEWROUTE`.
    Route(Route),
    /// `RTM_NEWNEIGH`, of a bridge's table.
    Forwarding(Entry),
    /// Nothing that netmgr asks for.
    Other,
}

impl NetlinkDeserializable for Message {
    type Error = Malformed;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Message, Malformed> {
        Ok(match header.message_type {
            libc::RTM_NEWLINK => Message::Link(Box::new(Link::read(body)?)),
            libc::RTM_NEWADDR => InterfaceAddress::read(body)?.map_or(Message::Other, Message::Address),
            libc::RTM_NEWROUTE => Route::read(body)?.map_or(Message::Other, Message::Route),
            libc::RTM_NEWNEIGH => Entry::read(body)?.map_or(Message::Other, Message::Forwarding),
            _ => Message::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::{Address, IFA_RT_PRIORITY},
        attribute::attribute,
        link::{IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING, IFLA_INET6_CONF},
    };

    fn at(ip: impl Into<std::net::IpAddr>, prefix: u8) -> Address {
        Address { ip: ip.into(), prefix }
    }

    /// What is in the way of every attribute: one whose length is more than there is, or less than its own.
    const LIES: [[u8; 4]; 4] = [[255, 255, 0, 0], [9, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]];

    #[test]
    fn message_that_is_cut_off_says_so_and_is_not_read_as_a_shorter_one() {
        let index = |at: usize| {
            let mut header = vec![0; 16];
            header[at] = 7;
            header
        };
        let link = [index(4), attribute(libc::IFLA_IFNAME, b"x\0"), attribute(libc::IFLA_MTU, &[0; 4])].concat();
        assert_eq!(Link::read(&link).unwrap(), Link { index: 7, name: "x".into(), ..Link::default() });
        let mut address = vec![libc::AF_INET as u8, 24, 128, 0, 7, 0, 0, 0];
        address.extend(
            [attribute(libc::IFA_LOCAL, &[10, 42, 0, 1]), attribute(libc::IFA_ADDRESS, &[10, 42, 0, 2])].concat(),
        );
        let read = InterfaceAddress::read(&address).unwrap().unwrap();
        assert_eq!((read.index, read.address, read.peer), (7, at([10, 42, 0, 1], 24), at([10, 42, 0, 2], 0).ip));
        let mut route = vec![libc::AF_INET as u8, 24, 0, 0, 254, 2, 253, 1, 0, 0, 0, 0];
        route.extend([attribute(libc::RTA_DST, &[10, 42, 0, 0]), attribute(libc::RTA_OIF, &[7, 0, 0, 0])].concat());
        let expected = Route { source: None, ..Route::of(7, at([10, 42, 0, 1], 24))[2] };
        assert_eq!(Route::read(&route).unwrap(), Some(expected));
        // Where one attribute ends (two of these bytes are padding) and the next would begin, nobody can tell.
        for end in (0..link.len()).filter(|end| ![22, 23, 24].contains(end)) {
            Link::read(&link[..end]).unwrap_err();
        }
        for end in (0..address.len()).filter(|end| *end != 16) {
            InterfaceAddress::read(&address[..end]).unwrap_err();
        }
        for end in (0..route.len()).filter(|end| ![12, 20].contains(end)) {
            Route::read(&route[..end]).unwrap_err();
        }
        for lie in LIES {
            let with = |message: &[u8]| [message, &lie].concat();
            Link::read(&with(&link)).unwrap_err();
            InterfaceAddress::read(&with(&address)).unwrap_err();
            Route::read(&with(&route)).unwrap_err();
        }
        for (what, value) in [(1, 33), (0, libc::AF_MPLS as u8)] {
            let (mut address, mut route) = (address.clone(), route.clone());
            (address[what], route[what]) = (value, value);
            // Another family's is none of ours; a prefix that is too long is nobody's.
            assert_eq!(InterfaceAddress::read(&address).ok(), (what == 0).then_some(None));
            assert_eq!(Route::read(&route).ok(), (what == 0).then_some(None));
        }
        assert!(Link::read(&[0; 32]).is_err());
    }

    #[test]
    fn address_and_route_of_ipv6_are_read_as_those_of_ipv4() {
        let ip = std::net::Ipv6Addr::from([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let address = |family: i32, prefix, flags: u32, scope| {
            let header = [family as u8, prefix, 0, scope, 7, 0, 0, 0];
            let flags = attribute(libc::IFA_FLAGS, &flags.to_ne_bytes());
            InterfaceAddress::read(&[&header, &attribute(libc::IFA_ADDRESS, &ip.octets())[..], &flags].concat())
        };
        let plain = libc::IFA_F_PERMANENT | libc::IFA_F_NODAD;
        let expected =
            InterfaceAddress { index: 7, address: at(ip, 64), peer: ip.into(), secondary: false, plain: true };
        assert_eq!(address(libc::AF_INET6, 64, plain, 0).unwrap(), Some(expected));
        for (flags, scope) in [
            (0, 0),
            (plain, 253),
            (plain | libc::IFA_F_TENTATIVE, 0),
            (plain | libc::IFA_F_DADFAILED, 0),
            (plain | libc::IFA_F_DEPRECATED, 0),
            (plain | libc::IFA_F_NOPREFIXROUTE, 0),
        ] {
            assert!(!address(libc::AF_INET6, 64, flags, scope).unwrap().unwrap().plain, "{flags:x} {scope}");
        }
        address(libc::AF_INET6, 128, plain, 0).unwrap();
        for (family, prefix) in [(libc::AF_INET6, 129), (libc::AF_INET, 24)] {
            address(family, prefix, plain, 0).unwrap_err();
        }
        let route = |prefix| {
            let header = [libc::AF_INET6 as u8, prefix, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0];
            let to = attribute(libc::RTA_DST, &schema::net::subnet_of_ipv6(ip).octets());
            let (dev, metric) =
                (attribute(libc::RTA_OIF, &[7, 0, 0, 0]), attribute(libc::RTA_PRIORITY, &256_u32.to_ne_bytes()));
            Route::read(&[&header, &to[..], &dev, &metric].concat())
        };
        let made = Route::of(7, at(ip, 64));
        assert_eq!(route(64).unwrap().as_ref(), made.last());
        assert_eq!((made.len(), made[0].to), (2, at(ip, 128)));
        route(129).unwrap_err();
    }

    #[test]
    fn attribute_with_a_value_that_cannot_be_is_an_error_wherever_it_lies() {
        let header = |ip: &[u8]| [ip, &[0; 16]].concat();
        let mut link = vec![0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        link.extend(attribute(libc::IFLA_IFNAME, b"volt0\0"));
        let info = |data: &[u8]| {
            let kind = attribute(libc::IFLA_INFO_KIND, b"bridge\0");
            attribute(libc::IFLA_LINKINFO, &[kind, attribute(libc::IFLA_INFO_DATA, data)].concat())
        };
        let ipv6 = |data: &[u8]| attribute(libc::IFLA_AF_SPEC, &attribute(libc::AF_INET6 as u16, data));
        for (bad, good) in [
            (attribute(libc::IFLA_MTU, &[1]), attribute(libc::IFLA_MTU, &[1; 4])),
            (attribute(libc::IFLA_MASTER, &[1; 3]), attribute(libc::IFLA_MASTER, &[1; 4])),
            (attribute(libc::IFLA_GROUP, &[]), attribute(libc::IFLA_GROUP, &[1; 4])),
            (attribute(libc::IFLA_CARRIER, &[1; 4]), attribute(libc::IFLA_CARRIER, &[1])),
            (info(&attribute(IFLA_BR_STP_STATE, &[1])), info(&attribute(IFLA_BR_STP_STATE, &[1; 4]))),
            (info(&attribute(IFLA_BR_VLAN_FILTERING, &[])), info(&attribute(IFLA_BR_VLAN_FILTERING, &[0]))),
            (info(&LIES[0]), info(&[])),
            (attribute(libc::IFLA_LINKINFO, &LIES[1]), attribute(libc::IFLA_LINKINFO, &[])),
            (attribute(libc::IFLA_PROP_LIST, &LIES[1]), attribute(libc::IFLA_PROP_LIST, &[])),
            (attribute(libc::IFLA_AF_SPEC, &LIES[2]), attribute(libc::IFLA_AF_SPEC, &[])),
            (ipv6(&attribute(IFLA_INET6_CONF, &[0; 104])), ipv6(&attribute(IFLA_INET6_CONF, &[0; 108]))),
        ] {
            Link::read(&[&link[..], &good].concat()).unwrap();
            let error = Link::read(&[&link[..], &bad].concat()).unwrap_err();
            assert!(error.to_string().starts_with("a malformed "), "{error}");
        }
        for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS, libc::IFA_BROADCAST, libc::IFA_FLAGS, IFA_RT_PRIORITY] {
            let message = |value: &[u8]| {
                let own = attribute(libc::IFA_LOCAL, &[10, 42, 0, 1]);
                [&[libc::AF_INET as u8, 24, 128, 0, 7, 0, 0, 0], &own[..], &attribute(kind, value)].concat()
            };
            InterfaceAddress::read(&message(&[1; 4])).unwrap();
            InterfaceAddress::read(&message(&header(&[1]))).unwrap_err();
        }
        for kind in [libc::RTA_DST, libc::RTA_OIF, libc::RTA_TABLE, libc::RTA_PREFSRC, libc::RTA_PRIORITY] {
            let message = |value: &[u8]| {
                [&[libc::AF_INET as u8, 24, 0, 0, 254, 2, 253, 1, 0, 0, 0, 0], &attribute(kind, value)[..]].concat()
            };
            Route::read(&message(&[1; 4])).unwrap();
            Route::read(&message(&[1; 3])).unwrap_err();
        }
    }
}
