//! What a guest may send, told without nf_tables: who knows neither the kernel's way to look at a frame nor the rules, but what they are for. The
//! kernel is compared with it. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use schema::policy::{METADATA_4, METADATA_6, Protocol, Rules, Target};

use super::Sender;

/// Whether what a port's guest sends may be let through.
pub fn passes(port: Sender<'_>, frame: &[u8]) -> bool {
    sends(port, frame).is_some()
}

/// `Some` where all is as it should be.
fn sends(port: Sender<'_>, frame: &[u8]) -> Option<()> {
    let (to, rest) = frame.split_first_chunk::<6>()?;
    let (from, rest) = rest.split_first_chunk::<6>()?;
    let (kind, packet) = rest.split_first_chunk::<2>()?;
    let for_the_bridge = to[..5] == [1, 0x80, 0xc2, 0, 0] && to[5] < 16;
    must(!for_the_bridge && *from == port.mac.bytes())?;
    match u16::from_be_bytes(*kind) {
        0x0806 => arp(port, packet),
        0x0800 => ipv4(port, packet),
        0x86dd => ipv6(port, packet),
        _ => None,
    }
}

fn must(so: bool) -> Option<()> {
    so.then_some(())
}

fn has(port: Sender<'_>, address: impl Into<IpAddr>) -> bool {
    port.sources.has(address.into())
}

fn arp(port: Sender<'_>, packet: &[u8]) -> Option<()> {
    must(packet.len() >= 28 && packet[..6] == [0, 1, 8, 0, 6, 4])?;
    let operation = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
    must(packet.get(8..14)? == port.mac.bytes())?;
    let address = |at: usize| packet.get(at..at + 4).map(|bytes| Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap()));
    let sender = address(14)?;
    if sender.is_unspecified() {
        // Of a probe for nobody's address nothing bad can come.
        let any = port.sources.iter().any(|ip| ip.is_ipv4());
        let target = address(24)?;
        return must(operation == 1 && any && (target.is_unspecified() || has(port, target)));
    }
    must(matches!(operation, 1 | 2) && has(port, sender))
}

fn ipv4(port: Sender<'_>, packet: &[u8]) -> Option<()> {
    must(packet.len() >= 20 && packet[0] >> 4 == 4)?;
    let header = usize::from(packet[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    must(header >= 20 && length >= header && packet.len() >= length)?;
    let later = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let protocol = packet[9];
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let (from, to) = (address(12), address(16));
    let ports = packet.get(header..header + 4);
    let asks_for_own_lease = || {
        let whole = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff == 0;
        let message = packet.get(header + 8..).unwrap_or_default();
        whole && message.get(..3) == Some(&[1, 1, 6]) && message.get(28..34) == Some(&port.mac.bytes())
    };
    if from.is_unspecified() {
        let any = port.sources.iter().any(|ip| ip.is_ipv4());
        must(any && to.is_broadcast() && protocol == 17 && !later && ports? == [0, 68, 0, 67])?;
        return must(asks_for_own_lease());
    }
    must(has(port, from))?;
    match protocol {
        _ if later => Some(()),
        1 => must(!matches!(packet.get(header)?, 5 | 9)),
        2 => must(matches!(packet.get(header)?, 0x12 | 0x16 | 0x17 | 0x22)),
        17 => match ports? {
            [0, 67, ..] | [_, _, 0, 68] => None,
            [_, _, 0, 67] => must(asks_for_own_lease()),
            _ => Some(()),
        },
        _ => Some(()),
    }
}

/// A walk along extension headers.
struct Headers {
    /// The number of the header at the end.
    last: u8,
    /// Where it is.
    at: usize,
    /// Whether there is a later fragment's header.
    later: bool,
    /// Whether there is a routing header.
    routing: bool,
}

/// Headers behind which nobody looks.
fn hidden(header: u8) -> bool {
    matches!(header, 0 | 43 | 44 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254)
}

/// `None` where there is no telling what it is.
fn walk(packet: &[u8]) -> Option<Headers> {
    let mut headers = Headers { last: packet[6], at: 40, later: false, routing: false };
    // The authentication header is not looked behind.
    while matches!(headers.last, 0 | 43 | 44 | 60) {
        let [next, length] = *packet.get(headers.at..headers.at + 2)? else { return None };
        // Of a routing header, the kernel looks at how far it has come.
        must(headers.last != 43 || packet.len() >= headers.at + 4)?;
        headers.routing |= headers.last == 43;
        if headers.last == 44 {
            let offset = u16::from_be_bytes([*packet.get(headers.at + 2)?, *packet.get(headers.at + 3)?]) & 0xfff8;
            // No further headers in a fragment.
            must(!hidden(next))?;
            headers.later = offset != 0;
            headers.at += 8;
        } else {
            headers.at += (usize::from(length) + 1) * 8;
        }
        headers.last = next;
    }
    Some(headers)
}

fn ipv6(port: Sender<'_>, packet: &[u8]) -> Option<()> {
    must(packet.len() >= 40 && packet[0] >> 4 == 6)?;
    let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    must(packet.len() >= 40 + length)?;
    let from = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap());
    let [a, b, c, d, e, f] = port.mac.bytes();
    let own = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let any = port.sources.iter().any(|ip| ip.is_ipv6());
    let may = |address: Ipv6Addr| any && (has(port, address) || address == own || address.is_unspecified());
    must(may(from))?;
    let headers = walk(packet)?;
    must(!hidden(headers.last))?;
    if headers.later {
        return must(!from.is_unspecified());
    }
    let header = packet.get(headers.at..);
    match headers.last {
        58 => {
            let kind = *header?.first()?;
            if matches!(kind, 131 | 132 | 143) {
                return Some(());
            }
            if matches!(kind, 133 | 135 | 136) {
                must(packet[6] == 58)?;
                return discovery(port, packet, from, length, may);
            }
            must(!from.is_unspecified() && matches!(kind, 1..=4 | 128 | 129))
        }
        _ if from.is_unspecified() => None,
        17 => must(header?.get(..2)? != [0x02, 0x23] && header?.get(2..4)? != [0x02, 0x22]),
        _ => Some(()),
    }
}

/// Neighbour discovery, right behind the IPv6 header, with one option at most.
fn discovery(
    port: Sender<'_>,
    packet: &[u8],
    from: Ipv6Addr,
    length: usize,
    may: impl Fn(Ipv6Addr) -> bool,
) -> Option<()> {
    let kind = packet[40];
    let fixed = if kind == 133 { 8 } else { 24 };
    let option = match length.checked_sub(fixed)? {
        0 => None,
        8 => Some(packet.get(40 + fixed..48 + fixed)?),
        _ => return None,
    };
    let is = |kind: u8| option.is_none_or(|option| option[..2] == [kind, 1] && option[2..] == port.mac.bytes());
    let target = || packet.get(48..64).map(|bytes| Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()));
    match kind {
        133 => must(!from.is_unspecified() && is(1)),
        135 if from.is_unspecified() => must(may(target()?) && option.is_none_or(|option| option[..2] == [14, 1])),
        135 => must(is(1)),
        _ => must(!from.is_unspecified() && may(target()?) && is(2)),
    }
}

/// Who is at the other side, the transport protocol, and the ports there and here.
type Flow = (IpAddr, u8, u16, u16);

/// What is known of what goes on at a port: connections in their time.
#[derive(Debug, Default)]
pub struct Flows {
    /// What others have begun, and has not been ended.
    begun: BTreeSet<Flow>,
    /// TCP of that which a side has ended.
    ended: BTreeSet<Flow>,
    /// UDP that the guest has sent to where it may.
    asked: BTreeSet<Flow>,
}

/// What policies are about, beside ports.
pub struct World<'a> {
    /// The host's own addresses.
    pub own: &'a [IpAddr],
    /// Those of workloads.
    pub workload: &'a dyn Fn(&str) -> Vec<IpAddr>,
}

/// A packet, as far as a policy looks at it.
struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    /// Whether it is a later fragment.
    later: bool,
    /// What sends it on to somebody else.
    turns: bool,
    /// From the transport header on.
    rest: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` for what is no IP, or cannot be read.
    fn read(frame: &'a [u8]) -> Option<Packet<'a>> {
        let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        let packet = frame.get(14..)?;
        match kind {
            0x0800 => {
                must(packet.len() >= 20 && packet[0] >> 4 == 4)?;
                let header = usize::from(packet[0] & 15) * 4;
                let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                must(header >= 20 && length >= header && packet.len() >= length)?;
                let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
                Some(Packet {
                    from: address(12).into(),
                    to: address(16).into(),
                    protocol: packet[9],
                    later: u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0,
                    turns: packet[0] != 0x45,
                    rest: packet.get(header..).unwrap_or_default(),
                })
            }
            0x86dd => {
                must(packet.len() >= 40 && packet[0] >> 4 == 6)?;
                must(packet.len() >= 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])))?;
                let headers = walk(packet)?;
                let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
                Some(Packet {
                    from: address(8).into(),
                    to: address(24).into(),
                    protocol: headers.last,
                    later: headers.later,
                    turns: headers.routing,
                    rest: packet.get(headers.at..).unwrap_or_default(),
                })
            }
            _ => None,
        }
    }

    fn number(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes([*self.rest.get(at)?, *self.rest.get(at + 1)?]))
    }

    fn is_icmp(&self) -> bool {
        self.protocol == if self.to.is_ipv4() { 1 } else { 58 }
    }

    fn begins(&self) -> bool {
        self.protocol == 6 && self.rest.get(13).is_some_and(|flags| flags & 0x12 == 2)
    }

    fn ends(&self) -> bool {
        self.protocol == 6 && self.rest.get(13).is_some_and(|flags| flags & 5 != 0)
    }

    /// Neighbour discovery that stays on its link.
    fn stays(&self, port: Sender<'_>) -> bool {
        let IpAddr::V6(to) = self.to else { return false };
        let discovers = self.protocol == 58 && matches!(self.rest.first(), Some(133 | 135 | 136));
        let same = |own: IpAddr| matches!(own, IpAddr::V6(own) if own.octets()[..8] == to.octets()[..8]);
        discovers && (to.octets()[..2] == [0xff, 2] || to.is_unicast_link_local() || port.sources.iter().any(same))
    }
}

/// Whether a policy lets a packet go to that address; of a later fragment, whether it lets anything.
fn lets(rules: &Rules, world: &World<'_>, packet: &Packet<'_>) -> bool {
    let to_host = world.own.contains(&packet.to) && !schema::policy::is_special(packet.to);
    rules.iter().any(|rule| {
        let (what, ranges) = (rule.what, rule.to.ranges(world.workload));
        let there = match rule.to {
            Target::Host => to_host,
            _ => !to_host && ranges.iter().any(|(first, last)| (*first..=*last).contains(&packet.to)),
        };
        let protocol = what.protocol.is_none_or(|protocol| match protocol {
            Protocol::Tcp => packet.protocol == 6,
            Protocol::Udp => packet.protocol == 17,
            Protocol::Icmp => packet.is_icmp(),
        });
        let port = packet.number(2).is_some_and(|port| (what.ports.0..=what.ports.1).contains(&port));
        // Of the host, there is nobody who would wait for one.
        let all = what.protocol.is_none() && !to_host;
        there && if packet.later { all } else { protocol && port }
    })
}

/// Whether what a port's guest sends reaches anybody, with its policy, and what is known from then on.
pub fn goes(port: Sender<'_>, world: &World<'_>, flows: &mut Flows, frame: &[u8]) -> bool {
    if !passes(port, frame) {
        return false;
    }
    // ARP.
    let Some(packet) = Packet::read(frame) else { return true };
    let Some(rules) = port.policy else { return packet.to != METADATA_4 && packet.to != METADATA_6 };
    if packet.turns {
        return false;
    }
    if packet.later {
        return lets(rules, world, &packet);
    }
    if packet.stays(port) {
        return true;
    }
    let flow = || Some((packet.to, packet.protocol, packet.number(2)?, packet.number(0)?));
    if lets(rules, world, &packet) {
        flows.asked.extend(flow().filter(|_| packet.protocol == 17));
        return true;
    }
    if packet.begins() {
        return false;
    }
    if packet.is_icmp() {
        let reply = if packet.to.is_ipv4() { 0 } else { 129 };
        let echo = packet.number(4).map(|echo| (packet.to, packet.protocol, echo, echo));
        return packet.rest.first() == Some(&reply) && echo.is_some_and(|echo| flows.begun.contains(&echo));
    }
    let Some(flow) = flow() else { return false };
    if packet.ends() && flows.begun.remove(&flow) {
        flows.ended.insert(flow);
    }
    flows.begun.contains(&flow) || packet.protocol == 6 && flows.ended.contains(&flow)
}

/// What is known from then on that a frame comes to a port with a policy.
pub fn comes(flows: &mut Flows, frame: &[u8]) {
    let Some(packet) = Packet::read(frame).filter(|packet| !packet.later) else { return };
    if packet.is_icmp() {
        let echo = if packet.from.is_ipv4() { 8 } else { 128 };
        let flow = packet.number(4).map(|echo| (packet.from, packet.protocol, echo, echo));
        flows.begun.extend(flow.filter(|_| packet.rest.first() == Some(&echo)));
        return;
    }
    let (Some(there), Some(here)) = (packet.number(0), packet.number(2)) else { return };
    let flow = (packet.from, packet.protocol, there, here);
    if packet.begins() || packet.protocol == 17 && !flows.asked.contains(&flow) {
        flows.begun.insert(flow);
    } else if packet.ends() && flows.begun.remove(&flow) {
        flows.ended.insert(flow);
    }
}
