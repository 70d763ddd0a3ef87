//! IPv6 of guests on macvtaps: in the subnet of the network that they are on, as themselves alone. Runs the program as root, each test in a network namespace of
//! its own.

mod common;
mod lan;

use std::net::{IpAddr, Ipv6Addr};

use common::*;
use ipc::Code;
use lan::*;
use schema::network_capnp::MacvtapMode;
use testrig::container::Guest;

/// Whose last bytes are those of 10.7.0.`station`.
const fn of(station: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0x0a07, station)
}

const ROUTER: Ipv6Addr = of(0xfe);
const OWN: Ipv6Addr = of(5);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A packet of station 5's interface, by way of the neighbour.
fn packet(from: Ipv6Addr, to: Ipv6Addr, next: u8, what: &[u8]) -> Vec<u8> {
    let head = [&[2, 0, 0, 0, 7, 2][..], &mac(5), &[0x86, 0xdd, 0x60, 0, 0, 0, 0, what.len() as u8, next, 255]];
    [&head.concat()[..], &from.octets(), &to.octets(), what].concat()
}

/// The end by which one is told from another.
fn end(which: u8) -> [u8; 4] {
    [10, 7, 0, which]
}

fn echo(which: u8) -> Vec<u8> {
    [&[128, 0, 0, 0, 0, 1, 0, 1][..], &end(which)].concat()
}

fn udp(from: u16, to: u16, which: u8) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 12, 0, 0], &end(which)].concat()
}

/// A neighbour solicitation (135) or advertisement (136), or a redirect (137), about that address.
fn discovery(kind: u8, about: Ipv6Addr, option: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &about.octets(), option].concat()
}

#[test]
fn guest_on_a_macvtap_has_an_address_of_the_subnet_there_and_speaks_for_itself_alone() {
    on_a_lan(|neighbour| {
        neighbour.ip(&format!("addr add {}/64 dev nb0 nodad", of(2)));
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = define(&client, "lan", MacvtapMode::Bridge, |mut config| {
                config.set_ipv6(format!("{ROUTER}/64"));
            });
            let lan = lan.await.unwrap();
            let factory = client.factory(&lan, 2).await.unwrap();
            for outside in ["2001:db8:0:8::5", &ROUTER.to_string()] {
                let refused = client.tap_from(&factory, "vm-5", &mac(5), &[outside]).await.err().unwrap();
                assert_eq!(refused.code, Code::InvalidArgument, "{refused}");
            }
            // The one that follows from the MAC address, as the routers there have a guest make it.
            let port = client.tap_from(&factory, "vm-5", &mac(5), &["10.7.0.5", "::"]).await.unwrap();
            assert_eq!(client.port(&port).await.unwrap().addresses, ["10.7.0.5", "2001:db8:0:7:0:ff:fe00:5"]);
            client.release(&port).await.unwrap();
            let port = client.tap_from(&factory, "vm-5", &mac(5), &["10.7.0.5", &OWN.to_string()]).await.unwrap();
            let station = Station(client.fd(&port).await.unwrap());
            let (ear, beside) = (Ear::at(&neighbour, "nb0"), of(2));
            let other_mac = [&[1, 1, 2, 0][..], &end(15)].concat();
            let router = [&[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0][..], &end(13)].concat();
            for (from, next, what) in [
                (of(6), ICMPV6, echo(11)),
                (OWN, ICMPV6, discovery(136, of(12), &[])),
                (mac_s(5), ICMPV6, router),
                (OWN, UDP, udp(547, 546, 14)),
                (OWN, ICMPV6, discovery(135, beside, &other_mac)),
                (mac_s(5), ICMPV6, discovery(137, of(16), &of(16).octets())),
                (mac_s(6), ICMPV6, echo(17)),
            ] {
                station.sends(&packet(from, beside, next, &what));
                station.sends(&packet(from, ALL_NODES, next, &what));
            }
            station.sends(&packet(OWN, schema::policy::METADATA_6, UDP, &udp(4000, 80, 18)));
            station.sends(&packet(OWN, of(19), UDP, &udp(4000, 80, 19)));
            station.sends(&packet(mac_s(5), ALL_NODES, ICMPV6, &echo(20)));
            station.sends(&packet(OWN, ALL_NODES, ICMPV6, &discovery(136, OWN, &[])));
            assert_eq!(ear.hears_until(5), [19, 20, 5]);
            let guest = Guest::behind(station.0, "02:00:00:00:00:05", "10.7.0.5");
            guest.inside.ip(&format!("addr add {OWN}/64 dev eth0 nodad"));
            guest.inside.pings(IpAddr::from(beside));
            neighbour.pings(IpAddr::from(OWN));
            // The host has none on the macvtap, nor the router's address.
            assert!(addresses(&interface("mvt-5").unwrap()).is_empty());
            assert!(!ip("-6 addr show").contains("2001:db8"));
            // Not moved away from under who is there.
            let moved = define(&client, "lan", MacvtapMode::Bridge, |mut config| config.set_ipv6("fd00::1/64")).await;
            assert!(moved.err().unwrap().to_string().contains("vm-5"));
        });
    });
}

/// A guest that was given no address of IPv6.
#[test]
fn guest_on_a_macvtap_without_ipv6_sends_none() {
    on_a_lan(|neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (_port, station) = Station::on(&client, &lan, 5).await.unwrap();
            let ear = Ear::at(&neighbour, "nb0");
            station.sends(&packet(mac_s(5), ALL_NODES, ICMPV6, &echo(11)));
            station.sends(&packet(OWN, of(2), ICMPV6, &echo(12)));
            station.sends(&request(5, 13));
            assert_eq!(ear.hears_until(13), [13]);
        });
    });
}

/// The link-local address that follows from a station's MAC address.
fn mac_s(station: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, station)
}
