//! What the bridge does with real frames: whose they are is what the ports say, not what a frame says of itself.
//! Runs the program as root, each test in a network namespace of its own. The guests are their TAPs' ends, and what they send is ARP requests
//! (RFC 826) for addresses that nobody has: the address tells one from the other.

mod common;

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use common::*;
use rustix::io::Errno;
use schema::network_capnp::port;
use testkit::wait::PATIENCE;

const A: u8 = 0xa;
const B: u8 = 0xb;
const C: u8 = 0xc;
const BROADCAST: [u8; 6] = [0xff; 6];

/// The MAC address of the station of that number; its IPv4 address ends with it.
fn mac(station: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, station]
}

/// The end of a TAP that is a guest's card, or an uplink.
struct Station(OwnedFd);

impl Station {
    /// A guest with a port on `volt0`.
    async fn guest(client: &Client, station: u8) -> (port::Client, Station) {
        let factory = client.factory(&client.network("volt0").await.unwrap(), 1).await.unwrap();
        let (workload, address) = (format!("vm-{station}"), format!("10.42.0.{station}"));
        let port = client.tap_from(&factory, &workload, &mac(station), &[&address]).await.unwrap();
        let tap = client.fd(&port).await.unwrap();
        forwards(&client.port(&port).await.unwrap().interface).await;
        (port, Station(tap))
    }

    /// A TAP that somebody else has put on the bridge, `up0`.
    async fn uplink() -> Station {
        let tap = tap("up0");
        ip("link set up0 master volt0 up");
        forwards("up0").await;
        Station(tap)
    }

    /// Sends a request for `10.42.0.what`, of which it says that it is `from`'s.
    fn sends(&self, to: [u8; 6], from: u8, what: u8) {
        let mut frame = vec![0; 12];
        frame.extend([&to[..], &mac(from), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac(from), &[10, 42, 0, from]].concat());
        frame.extend([0, 0, 0, 0, 0, 0, 10, 42, 0, what]);
        rustix::io::write(&self.0, &frame).unwrap();
    }

    /// The MAC address that answers its request for `10.42.0.what`.
    fn is_answered_by(&self, what: u8) -> [u8; 6] {
        let (mut frame, mut answered) = ([0; 2048], None);
        eventually("it is answered", || {
            if let Ok(54..) = rustix::io::read(&self.0, &mut frame[..])
                && frame[24..34] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
                && frame[43] == what
            {
                answered = Some(frame[34..40].try_into().unwrap());
            }
            answered.is_some()
        });
        answered.unwrap()
    }

    /// What was asked for, up to and with `last`. (That somebody has an address now, which a new port announces when the bridge forwards, is of
    /// both at once, and no question.)
    fn hears_until(&self, last: u8) -> Vec<u8> {
        let (mut heard, mut frame, end) = (Vec::new(), [0; 2048], Instant::now() + PATIENCE);
        while heard.last() != Some(&last) {
            match rustix::io::read(&self.0, &mut frame[..]) {
                Ok(54..) if frame[24..34] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] && frame[40..44] != frame[50..54] => {
                    heard.push(frame[53]);
                }
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    assert!(Instant::now() < end, "{last} has not come, but {heard:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        heard
    }
}

#[test]
fn guest_that_sends_with_another_s_mac_address_does_not_take_its_frames_over() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (_a, a) = Station::guest(&client, A).await;
            let (_b, b) = Station::guest(&client, B).await;
            let (_c, c) = Station::guest(&client, C).await;
            // Before B has ever sent, and after.
            for round in [100, 110] {
                for _ in 0..3 {
                    a.sends(BROADCAST, B, round);
                }
                c.sends(mac(B), C, round + 1);
                b.hears_until(round + 1);
                // What comes last tells that nothing else is on its way.
                c.sends(mac(A), C, round + 2);
                assert_eq!(a.hears_until(round + 2), [round + 2]);
                b.sends(BROADCAST, B, round + 3);
                assert_eq!(a.hears_until(round + 3), [round + 3]);
                c.hears_until(round + 3);
            }
        });
    });
}

/// Of an uplink the bridge learns who is behind it; but a guest's address is its port's.
#[test]
fn address_of_a_guest_does_not_move_to_a_port_that_somebody_else_has_put_on_the_bridge() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (_a, a) = Station::guest(&client, A).await;
            let (_b, b) = Station::guest(&client, B).await;
            let up = Station::uplink().await;
            for _ in 0..3 {
                up.sends(BROADCAST, B, 100);
            }
            assert_eq!(a.hears_until(100), [100]);
            a.sends(mac(B), A, 101);
            assert_eq!(b.hears_until(101).last(), Some(&101));
            // A station of the uplink's own is found as ever.
            up.sends(BROADCAST, C, 102);
            b.hears_until(102);
            b.sends(mac(C), B, 103);
            assert_eq!(up.hears_until(103), [103]);
            b.sends(BROADCAST, B, 104);
            assert_eq!(a.hears_until(104).last(), Some(&104));
        });
    });
}

#[test]
fn frame_to_an_address_that_nobody_has_reaches_no_guest_also_once_its_guest_has_gone() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (_a, a) = Station::guest(&client, A).await;
            let (gone, b) = Station::guest(&client, B).await;
            let (_c, c) = Station::guest(&client, C).await;
            // What a bridge has learnt is forgotten at once: what it has not learnt stays.
            ip("link set volt0 type bridge ageing_time 0");
            b.sends(BROADCAST, B, 100);
            assert_eq!([a.hears_until(100), c.hears_until(100)], [[100], [100]]);
            a.sends([2, 0, 0, 0, 0, 0xff], A, 101);
            a.sends(mac(B), A, 102);
            assert_eq!(b.hears_until(102), [102]);
            client.release(&gone).await.unwrap();
            a.sends(mac(B), A, 103);
            a.sends(BROADCAST, A, 104);
            assert_eq!(c.hears_until(104), [104]);
        });
    });
}

/// Neighbour discovery is multicasts, which a bridge that snoops keeps from who has not asked for them once there is a querier.
#[test]
fn multicast_reaches_a_guest_that_has_not_asked_for_it_also_with_a_querier_about() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (_a, a) = Station::guest(&client, A).await;
            let (_b, b) = Station::guest(&client, B).await;
            let up = Station::uplink().await;
            // An MLD query (RFC 3810, section 5.1), with the router alert that it comes with.
            let router = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, C];
            let all = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            let mut query = vec![130, 0, 0, 0, 0x27, 0x10, 0, 0];
            query.extend([0; 16]);
            query.extend([2, 125, 0, 0]);
            let sum = checksum(&[&router[..], &all, &[0, 0, 0, 28, 0, 0, 0, 58], &query].concat());
            query[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut frame = vec![0; 12];
            frame.extend([&[0x33, 0x33, 0, 0, 0, 1], &mac(C)[..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 36, 0, 1]].concat());
            frame.extend([&router[..], &all, &[58, 0, 5, 2, 0, 0, 1, 0], &query].concat());
            rustix::io::write(&up.0, &frame).unwrap();
            a.sends([0x33, 0x33, 0xff, 0, 0, B], A, 100);
            assert_eq!(b.hears_until(100), [100]);
            let options = &interface("volt0").unwrap()["linkinfo"]["info_data"];
            assert_eq!((&options["mcast_snooping"], &options["forward_delay"]), (&0.into(), &0.into()), "{options}");
        });
    });
}

/// A bridge takes the lowest address of its ports, unless it was given one; guests would lose the gateway with the port that had that.
#[test]
fn gateway_answers_at_the_same_mac_address_when_the_port_with_the_lowest_one_goes() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (_a, a) = Station::guest(&client, A).await;
            let up = Station::uplink().await;
            ip("link set up0 address 00:00:00:00:00:01");
            let gateway = || {
                let text = text(&interface("volt0").unwrap(), "address");
                let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
                <[u8; 6]>::try_from(bytes).unwrap()
            };
            let (before, mut up) = (gateway(), Some(up));
            for round in 0..6 {
                a.sends(before, A, 1);
                assert_eq!(a.is_answered_by(1), before, "{round}");
                if round == 2 {
                    drop(up.take());
                    settle("the lowest port is gone", || interface("up0").is_none()).await;
                }
            }
            assert_eq!(gateway(), before);
        });
    });
}

/// A UDP datagram (RFC 768) of that many bytes with its IPv4 header, from one guest to another.
fn datagram(from: u8, to: u8, length: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    // May not be taken apart.
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 42, 0, from, 10, 42, 0, to]);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x27, 0x10, 0x27, 0x10]);
    packet.extend([(length - 20).to_be_bytes(), [0, 0]].concat());
    packet.resize(length.into(), 0x55);
    packet
}

#[test]
fn frames_as_long_as_the_network_s_mtu_reach_another_guest_whole_and_longer_ones_do_not() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define("volt0", "10.42.0.1", 24, 9000).await.unwrap();
            let (_a, a) = Station::guest(&client, A).await;
            let (_b, b) = Station::guest(&client, B).await;
            // 8,900 bytes of a ping; all that a frame holds; and more, by more than the VLAN's tag that a bridge allows for.
            for (length, arrives) in [(8928, true), (9000, true), (9100, false)] {
                let packet = datagram(A, B, length);
                let frame = [&[0; 12][..], &mac(B), &mac(A), &[8, 0], &packet].concat();
                assert_eq!(rustix::io::write(&a.0, &frame), Ok(frame.len()));
                a.sends(mac(B), A, 100);
                let (mut heard, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
                eventually("what came last has come", || match rustix::io::read(&b.0, &mut buffer[..]) {
                    Ok(length) if buffer[24..26] == [8, 0] => {
                        heard.push(buffer[26..length].to_vec());
                        false
                    }
                    Ok(54..) => buffer[24..26] == [8, 6] && buffer[53] == 100,
                    _ => false,
                });
                assert_eq!(heard == [packet], arrives, "{length}: {} came", heard.len());
            }
        });
    });
}

/// The host would go on sending to who had the address before, for as long as it takes that to be in order.
#[test]
fn host_asks_anew_whose_an_address_is_that_comes_back_with_another_mac_address() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (first, _a) = Station::guest(&client, A).await;
            // Without a port the bridge would be without a carrier, and the host forget all.
            let _b = Station::guest(&client, B).await;
            ip("neigh replace 10.42.0.10 lladdr 02:00:00:00:00:0a dev volt0 nud reachable");
            ip("neigh replace 10.42.0.99 lladdr 02:00:00:00:00:63 dev volt0 nud reachable");
            client.release(&first).await.unwrap();
            let factory = client.factory(&client.network("volt0").await.unwrap(), 1).await.unwrap();
            let port = client.tap_from(&factory, "vm-next", &mac(C), &["10.42.0.10"]).await.unwrap();
            let next = Station(client.fd(&port).await.unwrap());
            forwards("tap-next").await;
            let host = std::net::UdpSocket::bind("10.42.0.1:0").unwrap();
            host.send_to(b"hello", "10.42.0.10:9").unwrap();
            next.hears_until(A);
            let others = ip("neigh show 10.42.0.99");
            assert!(others.contains("02:00:00:00:00:63"), "{others}");
        });
    });
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Guests' router advertisements, which the host would take for a router's: on the bridge, and on a TAP that somebody takes off it.
#[test]
fn host_takes_no_router_advertisements_on_bridge_and_has_no_ipv6_on_tap_and_a_change_of_that_is_changed_back() {
    in_own_network(|| {
        let setting = |interface: &str, what: &str| format!("/proc/sys/net/ipv6/conf/{interface}/{what}");
        if !std::path::Path::new(&setting("lo", "accept_ra")).exists() {
            return testkit::skip!("this kernel has no IPv6");
        }
        std::fs::write(setting("default", "accept_ra"), "2").unwrap();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let (port, _guest) = Station::guest(&client, A).await;
            let tap = client.port(&port).await.unwrap().interface;
            let settings = [("volt0", "accept_ra", "0", "1"), (&tap, "disable_ipv6", "1", "0")];
            let is = |interface: &str, what: &str| {
                std::fs::read_to_string(setting(interface, what)).unwrap().trim().to_owned()
            };
            for (interface, what, right, wrong) in settings {
                assert_eq!(is(interface, what), right, "{interface}");
                // Of which the kernel does not always tell: the next look sees it.
                std::fs::write(setting(interface, what), wrong).unwrap();
            }
            client.fd(&port).await.unwrap();
            client.define_default().await;
            for (interface, what, right, _) in settings {
                assert_eq!(is(interface, what), right, "{interface}");
            }
        });
    });
}
