//! Where frames go. A bridge's forwarding table (bridge(8), `fdb`) has the entry that keeps a guest's MAC address on its port; the host's own
//! neighbours (ip-neighbour(8)) have whose that MAC address is. Pure; touches nothing.

use std::net::IpAddr;

use rtnetlink::{
    packet_core::parse_mac,
    packet_route::{
        AddressFamily,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
        },
        route::RouteType,
    },
};

use schema::net::Mac;

use crate::attribute::{Malformed, behind};

// What the libc crate lacks of linux/neighbour.h.
pub const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;

/// An entry that was put there, and neither ages nor moves, whatever comes by another way: frames to an address go to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index of the port's interface.
    pub index: u32,
    /// Whose frames.
    pub mac: Mac,
}

impl Entry {
    /// The one that a guest's port has.
    pub fn of(index: u32, mac: Mac) -> Entry {
        Entry { index, mac }
    }

    /// Reads it behind a message's header; `None` for what is of another table, may age or move, is the host's own, or is of a VLAN, which bridges
    /// of ours do not look at.
    pub fn read(body: &[u8]) -> Result<Option<Entry>, Malformed> {
        let header = NeighbourHeader::parse(body).map_err(|_| Malformed("message about a bridge's table"))?;
        let stays = header.state == NeighbourState::Noarp && header.flags.contains(NeighbourFlags::Sticky);
        if header.family != AddressFamily::Bridge || !stays {
            return Ok(None);
        }
        let (mut mac, mut vlan) = (None, false);
        for one in behind(body, &header) {
            let one = one?;
            match one.kind() {
                NDA_LLADDR => {
                    mac = parse_mac(one.value()).map_err(|_| Malformed("address in a bridge's table")).map(Mac::new)?
                }
                NDA_VLAN => vlan = true,
                _ => {}
            }
        }
        Ok(mac.filter(|_| !vlan).map(|mac| Entry::of(header.ifindex, mac)))
    }

    /// It, to be put into the table of the bridge that the port is on.
    pub fn message(self) -> NeighbourMessage {
        // "Permanent" entries are the host's own: what is sent to them, the host takes.
        let message = question(self.index, NeighbourFlags::Controller | NeighbourFlags::Sticky, NeighbourState::Noarp);
        with(message, self.mac)
    }

    /// A question for the one of that address in the table of the bridge that the port is on, wherever it leads.
    pub fn asked(index: u32, mac: Mac) -> NeighbourMessage {
        with(question(index, NeighbourFlags::Controller, NeighbourState::None), mac)
    }
}

/// A question for all of a bridge's.
pub fn all(bridge: u32) -> NeighbourMessage {
    let mut message = question(0, NeighbourFlags::empty(), NeighbourState::None);
    message.attributes.push(NeighbourAttribute::Controller(bridge));
    message
}

/// The host's neighbour of that address behind a bridge, whoever that was.
pub fn neighbour(bridge: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = question(bridge, NeighbourFlags::empty(), NeighbourState::None);
    let (family, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

/// Has an interface be sent what is for a group (`self` in bridge(8)).
pub fn group(index: u32, group: [u8; 6]) -> NeighbourMessage {
    let mut message = question(index, NeighbourFlags::Own, NeighbourState::Permanent);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(group.to_vec()));
    message
}

fn question(index: u32, flags: NeighbourFlags, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header =
        NeighbourHeader { family: AddressFamily::Bridge, ifindex: index, state, flags, kind: RouteType::Unspec };
    message
}

fn with(mut message: NeighbourMessage, mac: Mac) -> NeighbourMessage {
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
    message
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Emitable;

    use super::*;
    use crate::attribute::attribute;

    #[test]
    fn entry_is_read_as_it_was_written_and_one_that_ages_moves_or_is_the_host_s_is_none() {
        let mac = Mac::new([2, 0, 0, 0, 0, 7]).unwrap();
        let body = |message: &NeighbourMessage| {
            let mut body = vec![0; message.buffer_len()];
            message.emit(&mut body);
            body
        };
        let message = Entry::of(7, mac).message();
        assert_eq!(Entry::read(&body(&message)).unwrap(), Some(Entry::of(7, mac)));
        for (state, flags) in [
            (NeighbourState::Reachable, NeighbourFlags::Sticky),
            (NeighbourState::Permanent, NeighbourFlags::Sticky),
            (NeighbourState::Noarp, NeighbourFlags::empty()),
        ] {
            let mut other = message.clone();
            (other.header.state, other.header.flags) = (state, flags);
            assert_eq!(Entry::read(&body(&other)).unwrap(), None);
        }
        // A neighbour of the host, a VLAN's entry, and one without an address.
        let mut neighbour = message.clone();
        neighbour.header.family = AddressFamily::Inet;
        let vlan = [body(&message), attribute(NDA_VLAN, &[1, 0])].concat();
        for none in [body(&neighbour), vlan, body(&message)[..12].to_vec()] {
            assert_eq!(Entry::read(&none).unwrap(), None);
        }
        for end in (0..body(&message).len()).filter(|end| ![12, 22, 23].contains(end)) {
            Entry::read(&body(&message)[..end]).unwrap_err();
        }
        Entry::read(&[body(&message), attribute(NDA_LLADDR, &[1])].concat()).unwrap_err();
    }
}
