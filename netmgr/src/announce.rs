//! Says on a port's bridge whose its addresses are from now on: who has had one of them there before had another MAC address, and others would send to
//! that until they find out. Writes frames to a TAP that netmgr has just made, as if its guest had sent them, and reads none. Each goes to every guest of
//! the network: where nobody can know one of the addresses as another one's, nothing is said.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

use schema::net::Mac;

use crate::sources::Sources;

/// Before each frame: `virtio_net_hdr_v1`, which says nothing of it.
const HEADER: [u8; 12] = [0; 12];
/// Bytes that are written at one time; the filter knows how many. Of an address of IPv4, and of one of IPv6.
pub const LENGTHS: [usize; 2] = [HEADER.len() + 42, HEADER.len() + 86];

/// The most addresses of a network of which it is known who has had them.
const MOST: usize = 4096;

/// Who has had each address on a network.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Had {
    /// Whoever: there may have been others than netmgr's guests, or these before it knew of them, or unguarded.
    #[default]
    Unknown,
    /// Nobody but whose MAC address this is; `None` where there were several, or the host.
    By(BTreeMap<IpAddr, Option<Mac>>),
}

impl Had {
    /// What nobody has had as yet.
    pub fn nothing() -> Had {
        Had::By(BTreeMap::new())
    }

    /// Notes that these addresses are had by whose MAC address that is, or by no guest.
    pub fn note(&mut self, new: impl Iterator<Item = (IpAddr, Option<Mac>)>) {
        let Had::By(all) = self else { return };
        for (address, mac) in new {
            match all.entry(address) {
                Entry::Vacant(place) => _ = place.insert(mac),
                Entry::Occupied(mut known) if *known.get() != mac => _ = known.insert(None),
                Entry::Occupied(_) => {}
            }
        }
        if all.len() > MOST {
            *self = Had::Unknown;
        }
    }

    /// Whether nobody can know any of these as another one's.
    pub fn by_it_alone(&self, mac: Mac, addresses: &Sources) -> bool {
        match self {
            Had::Unknown => false,
            Had::By(all) => addresses.iter().all(|address| all.get(&address) == Some(&Some(mac))),
        }
    }
}

/// Writes one frame for each address to a port's TAP, which does not block. One that does not get through is not missed for long: what is announced
/// is found out as well by whoever asks.
pub fn announce(tap: &impl AsFd, mac: Mac, addresses: &Sources) {
    for address in addresses.iter() {
        let frame = match address {
            IpAddr::V4(ip) => of_ipv4(mac, ip),
            IpAddr::V6(ip) => of_ipv6(mac, ip),
        };
        let _ = rustix::io::write(tap, &frame);
    }
}

/// An ARP announcement (RFC 5227, section 3).
fn of_ipv4(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    let (mac, ip) = (mac.bytes(), ip.octets());
    let ethernet = [&[0xff; 6], &mac[..], &[8, 6]].concat();
    [&HEADER, &ethernet[..], &[0, 1, 8, 0, 6, 4, 0, 1], &mac, &ip, &[0; 6], &ip].concat()
}

/// An unsolicited neighbour advertisement (RFC 4861, section 7.2.6), which overrides what was known.
fn of_ipv6(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 1], &mac.bytes()[..], &[0x86, 0xdd]].concat();
    let message = |sum: u16| {
        let start = [&[136, 0][..], &sum.to_be_bytes(), &[0x20, 0, 0, 0]].concat();
        [&start[..], &ip.octets(), &[2, 1], &mac.bytes()].concat()
    };
    // RFC 4443, section 2.3.
    let pseudo = [&ip.octets(), &all_nodes.octets(), &[0, 0, 0, 32, 0, 0, 0, 58][..], &message(0)].concat();
    let ends = [&ip.octets()[..], &all_nodes.octets()].concat();
    [&HEADER, &ethernet[..], &[0x60, 0, 0, 0, 0, 32, 58, 255], &ends, &message(checksum(&pseudo))].concat()
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| word.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)));
    let sum: u64 = words.sum();
    // Both halves and what that carries: there are not enough words for more.
    let folded = (sum & 0xffff).wrapping_add(sum >> 16);
    let [.., high, low] = (folded & 0xffff).wrapping_add(folded >> 16).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac::local([0, 0, 0, 0, 7]);

    #[test]
    fn address_is_one_s_alone_until_another_the_host_or_whoever_has_had_it_and_as_long_as_there_is_room() {
        let sources = |given: &[&'static str]| Sources::new(given.iter().map(|address| Ok(*address))).unwrap();
        let (own, other) = (sources(&["10.42.0.7", "fd00::7"]), Mac::local([0, 0, 0, 0, 8]));
        let note = |had: &mut Had, mac| had.note(own.iter().map(|address| (address, mac)));
        let new = || {
            let mut had = Had::nothing();
            note(&mut had, Some(MAC));
            assert!(had.by_it_alone(MAC, &own));
            had
        };
        assert!(!Had::nothing().by_it_alone(MAC, &own), "it was not said that it has them");
        let mut had = new();
        note(&mut had, Some(MAC));
        assert!(had.by_it_alone(MAC, &own) && !had.by_it_alone(other, &own));
        // Who has it again did not have it alone: the one between may still be known.
        note(&mut had, Some(other));
        note(&mut had, Some(MAC));
        assert!(!had.by_it_alone(MAC, &own) && !had.by_it_alone(other, &own));
        for others in own.iter() {
            let mut had = new();
            had.note([(others, None)].into_iter());
            assert!(!had.by_it_alone(MAC, &own), "{others}");
        }
        let addresses = |count: u32| (0..count).map(|n| (Ipv4Addr::from(0x0a00_0000 + n).into(), None));
        let mut had = new();
        had.note(addresses(MOST as u32 - 2));
        assert!(had.by_it_alone(MAC, &own));
        had.note(addresses(MOST as u32 - 1));
        assert_eq!(had, Had::Unknown);
        note(&mut had, Some(MAC));
        assert!(!had.by_it_alone(MAC, &own), "it is not known again");
    }

    #[test]
    fn frames_are_of_the_lengths_that_the_filter_lets_through_and_say_whose_the_address_is() {
        let four = of_ipv4(MAC, Ipv4Addr::new(10, 42, 0, 7));
        let six = of_ipv6(MAC, "fd00::7".parse().unwrap());
        assert_eq!([four.len(), six.len()], LENGTHS);
        assert_eq!(
            four[12..],
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7,
                10, 42, 0, 7, 0, 0, 0, 0, 0, 0, 10, 42, 0, 7,
            ]
        );
        // Source, destination, length and next header, and the message with its sum: all of it adds up.
        let sum = checksum(&[&six[34..66], &[0, 0, 0, 32, 0, 0, 0, 58], &six[66..]].concat());
        assert_eq!((sum, &six[66..68], &six[70..71]), (0, &[136, 0][..], &[0x20][..]));
        assert_eq!(six[74..90], six[34..50]);
        assert_eq!(six[90..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }
}
