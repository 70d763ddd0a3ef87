//! What a guest leaves to be done to a frame (Virtio 1.2, section 5.1.6.2): a checksum to be written into it, and a long segment to be cut up.
//! Pure; touches nothing.
//!
//! Whoever looks at the frame on its way (the rules of what a guest may send, which `netmgr` keeps) sees it before that is done. A checksum that
//! may be written anywhere makes what was let through another frame, of another's address, say: the guest chooses the other bytes so that
//! it becomes what it wants. So it is written where one of TCP or UDP belongs, or the frame is none.

use crate::tap::HEADER;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// The first bytes of header and frame, in which all is that decides: an Ethernet header with two VLAN tags, and the longest IPv4 header or what
/// extension headers of IPv6 somebody sends segments with.
pub const START: usize = 256;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// VLAN tags.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// A transport header.
struct Transport {
    /// Where it is in the frame.
    at: usize,
    protocol: u8,
    /// Whose segments it may be a header of.
    segments: u32,
}

/// Whether what the header asks for may be done to the frame; `start` is the first [`START`] bytes of both, or all.
pub fn may(start: &[u8]) -> bool {
    asked(start).is_some()
}

fn asked(start: &[u8]) -> Option<()> {
    let (header, frame) = start.split_first_chunk::<HEADER>()?;
    let [flags, segments, _, _, _, _, start_low, start_high, offset_low, offset_high, ..] = *header;
    let (flags, segments) = (u32::from(flags), u32::from(segments));
    if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
        return (segments == VIRTIO_NET_HDR_GSO_NONE).then_some(());
    }
    let transport = transport(frame)?;
    let offset = match transport.protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let as_it_is = usize::from(u16::from_le_bytes([start_low, start_high])) == transport.at
        && u16::from_le_bytes([offset_low, offset_high]) == offset;
    let whole = segments == VIRTIO_NET_HDR_GSO_NONE;
    (as_it_is && (whole || transport.protocol == TCP && segments == transport.segments)).then_some(())
}

/// Finds it; `None` where there is none, or not within these bytes.
fn transport(frame: &[u8]) -> Option<Transport> {
    let two = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut at = 12;
    for _ in 0..2 {
        if TAGS.contains(&two(at)?) {
            at += 4;
        }
    }
    let (kind, at) = (two(at)?, at + 2);
    let found = match (kind, frame.get(at)? >> 4) {
        // Not a later fragment: it has none.
        (0x0800, 4) if two(at + 6)? & 0x1fff == 0 => {
            let length = usize::from(frame.get(at)? & 15) * 4;
            let protocol = *frame.get(at + 9)?;
            (length >= 20).then_some(Transport { at: at + length, protocol, segments: VIRTIO_NET_HDR_GSO_TCPV4 })?
        }
        (0x86dd, 6) => {
            let (mut protocol, mut at) = (*frame.get(at + 6)?, at + 40);
            // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
            while matches!(protocol, 0 | 43 | 60) {
                protocol = *frame.get(at)?;
                at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
            }
            Transport { at, protocol, segments: VIRTIO_NET_HDR_GSO_TCPV6 }
        }
        _ => return None,
    };
    // Its ports at least.
    frame.get(found.at..found.at + 4).map(|_| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(flags: u8, segments: u8, start: u16, offset: u16, frame: &[u8]) -> Vec<u8> {
        let header =
            [&[flags, segments, 0, 0, 0, 0][..], &start.to_le_bytes(), &offset.to_le_bytes(), &[0; 2]].concat();
        [&header, frame].concat()
    }

    fn ethernet(kinds: &[u16], packet: &[u8]) -> Vec<u8> {
        let kinds: Vec<u8> = kinds.iter().flat_map(|kind| [kind.to_be_bytes(), [0; 2]].concat()).collect();
        [&[2; 12], &kinds[..kinds.len() - 2], packet].concat()
    }

    fn ipv4(words: u8, fragment: u8, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; usize::from(words) * 4 + 40];
        (packet[0], packet[7], packet[9]) = (0x40 | words, fragment, protocol);
        packet
    }

    fn ipv6(headers: &[u8], protocol: u8) -> Vec<u8> {
        let mut packet = vec![0x60; 40];
        let all: Vec<u8> = headers.iter().copied().chain([protocol]).collect();
        packet[6] = all[0];
        all[1..].iter().for_each(|next| packet.extend([*next, 0, 0, 0, 0, 0, 0, 0]));
        [&packet[..], &[0; 40]].concat()
    }

    #[test]
    fn checksum_is_written_where_one_of_tcp_or_udp_is_and_nowhere_else() {
        let tagged = |packet: &[u8]| ethernet(&[0x88a8, 0x8100, 0x0800], packet);
        for (frame, start, offset) in [
            (ethernet(&[0x0800], &ipv4(5, 0, TCP)), 34, 16),
            (ethernet(&[0x0800], &ipv4(5, 0, UDP)), 34, 6),
            (ethernet(&[0x0800], &ipv4(15, 0, UDP)), 74, 6),
            (ethernet(&[0x8100, 0x0800], &ipv4(5, 0, TCP)), 38, 16),
            (tagged(&ipv4(5, 0, TCP)), 42, 16),
            (ethernet(&[0x86dd], &ipv6(&[], TCP)), 54, 16),
            (ethernet(&[0x86dd], &ipv6(&[0, 43, 60], UDP)), 78, 6),
        ] {
            assert!(may(&bytes(1, 0, start, offset, &frame)));
            // Nor is a frame of which nothing is to be done looked at.
            assert!(may(&bytes(0, 0, start + 1, offset, &frame)));
            for (start, offset) in
                [(start, offset + 2), (start + 2, offset), (start - 2, offset + 2), (start + 2, offset - 2), (0, 0)]
            {
                assert!(!may(&bytes(1, 0, start, offset, &frame)), "{start} {offset}");
            }
        }
        let arp = ethernet(&[0x0806], &[0; 46]);
        assert!(may(&bytes(0, 0, 0, 0, &arp)) && may(&bytes(0, 0, 20, 10, &arp)));
        for (frame, start, offset) in [
            (arp, 20, 10),
            (ethernet(&[0x0800], &ipv4(5, 1, TCP)), 34, 16),
            (ethernet(&[0x0800], &ipv4(5, 0, 1)), 34, 2),
            (ethernet(&[0x0800], &ipv4(4, 0, TCP)), 30, 16),
            (ethernet(&[0x0800], &ipv6(&[], TCP)), 54, 16),
            (ethernet(&[0x86dd], &ipv6(&[44], TCP)), 62, 16),
            (ethernet(&[0x86dd], &ipv6(&[], 58)), 54, 2),
            (ethernet(&[0x8100, 0x8100, 0x8100, 0x0800], &ipv4(5, 0, TCP)), 46, 16),
        ] {
            assert!(!may(&bytes(1, 0, start, offset, &frame)), "{frame:02x?}");
        }
    }

    #[test]
    fn segments_are_of_tcp_and_of_the_packet_s_own_family() {
        let (four, six) = (ethernet(&[0x0800], &ipv4(5, 0, TCP)), ethernet(&[0x86dd], &ipv6(&[], TCP)));
        let udp = ethernet(&[0x0800], &ipv4(5, 0, UDP));
        for kind in 0..=u8::MAX {
            assert_eq!(may(&bytes(1, kind, 34, 16, &four)), matches!(kind, 0 | 1), "{kind}");
            assert_eq!(may(&bytes(1, kind, 54, 16, &six)), matches!(kind, 0 | 4), "{kind}");
            assert_eq!(may(&bytes(1, kind, 34, 6, &udp)), kind == 0, "{kind}");
            // Each segment has a checksum of its own.
            assert_eq!(may(&bytes(0, kind, 34, 16, &four)), kind == 0, "{kind}");
        }
    }

    #[test]
    fn what_is_cut_off_or_further_on_is_not_found() {
        let whole = bytes(1, 0, 54, 16, &ethernet(&[0x86dd], &ipv6(&[], TCP)));
        for end in 0..HEADER + 54 + 4 {
            assert!(!may(&whole[..end]), "{end}");
        }
        let many = bytes(1, 0, 54 + 8 * 40, 6, &ethernet(&[0x86dd], &ipv6(&[0; 40], UDP)));
        assert!(may(&many) && !may(&many[..START]));
    }
}
