//! Policies of ports that are macvtaps, as the program keeps them: real packets of guests' own kernels and of a neighbour's on the network that they are on.
//! Runs it as root, each test in a network namespace of its own. (What policies do to frames: `src/nft/tests/policy.rs`.)

mod common;
mod given;
mod lan;
mod places;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use common::*;
use given::*;
use ipc::{Code, Fault};
use lan::*;
use places::{reaches, serve};
use schema::network_capnp::{MacvtapMode, network, port};
use testkit::wait::PATIENCE;
use testrig::container::Guest;

/// How long something is waited for that is not to come.
const BRIEF: Duration = Duration::from_millis(200);

/// A port of that station's, with a policy from its first frame on.
async fn policed(
    client: &Client,
    network: &network::Client,
    station: u8,
    texts: &[&str],
) -> Result<(port::Client, Station), Fault> {
    let factory = client.factory(network, 1).await?;
    let own = policy(client, network, texts).await?;
    let mut request = factory.create_tap_request();
    request.get().set_workload(format!("vm-{station}"));
    request.get().set_mac(&mac(station));
    request.get().init_addresses(1).set(0, format!("10.7.0.{station}"));
    request.get().set_policy(own);
    let port = client.connection.call("make a port", DEADLINE, request.send()).await?.get()?.get_port()?;
    let device = client.fd(&port).await?;
    Ok((port, Station(device)))
}

fn guest(station: Station, number: u8) -> Guest {
    Guest::behind(station.0, &format!("02:00:00:00:00:{number:02x}"), &format!("10.7.0.{number}"))
}

/// Whether somebody in a place reaches a service.
fn reached(from: &Container, to: &str, patience: Duration) -> bool {
    from.within(|| reaches(to.parse().unwrap(), patience).is_some())
}

async fn change(client: &Client, network: &network::Client, workload: &str, texts: &[&str]) {
    let other = policy(client, network, texts).await.unwrap();
    set_policy(client, network, workload, Some(other)).await.unwrap();
}

async fn counted(client: &Client, port: &port::Client) -> (u64, u64) {
    let answer = client.connection.call("look", DEADLINE, port.stats_request().send()).await.unwrap();
    let stats = answer.get().unwrap().get_stats().unwrap();
    (stats.get_allowed_packets(), stats.get_denied_packets())
}

fn exchange(one: &TcpStream, other: &TcpStream) {
    for (mut from, mut to) in [(one, other), (other, one)] {
        from.write_all(b"x").unwrap();
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        to.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn policy_of_a_macvtap_is_changed_live_and_counted_and_what_a_neighbour_begins_is_answered() {
    on_a_lan(|neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (port, station) = policed(&client, &lan, 5, &["10.7.0.2 tcp 7001"]).await.unwrap();
            let guest = guest(station, 5);
            neighbour.within(|| [7001, 7002].map(serve));
            guest.inside.within(|| serve(9000));
            assert!(reached(&guest.inside, "10.7.0.2:7001", PATIENCE));
            assert!(!reached(&guest.inside, "10.7.0.2:7002", BRIEF));
            let (allowed, denied) = counted(&client, &port).await;
            assert!(allowed > 2 && denied > 0, "{allowed} {denied}");
            // To a port of the neighbour's that no rule names.
            assert!(reached(&neighbour, "10.7.0.5:9000", PATIENCE));
            neighbour.pings([10, 7, 0, 5]);
            let listener = guest.inside.within(|| TcpListener::bind("10.7.0.5:9001").unwrap());
            let from_beside = neighbour.within(|| TcpStream::connect("10.7.0.5:9001").unwrap());
            let inside = listener.accept().unwrap().0;
            let beside = neighbour.within(|| TcpListener::bind("10.7.0.2:7003").unwrap());
            change(&client, &lan, "vm-5", &["10.7.0.2 tcp 7001-7003"]).await;
            let mut own = guest.inside.within(|| TcpStream::connect("10.7.0.2:7003").unwrap());
            let mut of_own = beside.accept().unwrap().0;
            exchange(&own, &of_own);
            change(&client, &lan, "vm-5", &["10.7.0.2 tcp 7002"]).await;
            exchange(&from_beside, &inside);
            own.write_all(b"x").unwrap();
            of_own.set_read_timeout(Some(BRIEF)).unwrap();
            assert!(of_own.read(&mut [0]).is_err(), "what is allowed no more ends with the next packet");
            assert!(reached(&guest.inside, "10.7.0.2:7002", PATIENCE));
            assert!(!reached(&guest.inside, "10.7.0.2:7001", BRIEF));
            let now = counted(&client, &port).await;
            assert!(now.0 > allowed && now.1 > denied, "it goes on counting: {now:?}");
            assert_eq!(had(&client, &lan, "vm-5").await.unwrap(), ["10.7.0.2 tcp 7002"]);
            // UDP that the guest asks for is none that the neighbour has begun.
            let (here, there) = (
                guest.inside.within(|| UdpSocket::bind("10.7.0.5:5000").unwrap()),
                neighbour.within(|| UdpSocket::bind("10.7.0.2:53").unwrap()),
            );
            for socket in [&here, &there] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            change(&client, &lan, "vm-5", &["10.7.0.2 udp 53"]).await;
            here.send_to(b"q", "10.7.0.2:53").unwrap();
            there.recv(&mut [0]).unwrap();
            there.send_to(b"a", "10.7.0.5:5000").unwrap();
            here.recv(&mut [0]).unwrap();
            change(&client, &lan, "vm-5", &[]).await;
            here.send_to(b"q", "10.7.0.2:53").unwrap();
            there.set_read_timeout(Some(BRIEF)).unwrap();
            assert!(there.recv(&mut [0]).is_err());
            set_policy(&client, &lan, "vm-5", None).await.unwrap();
            assert!(reached(&guest.inside, "10.7.0.2:7001", PATIENCE));
            assert_eq!(counted(&client, &port).await, (0, 0));
            drop(guest);
            client.release(&port).await.unwrap();
            let rules = nft("list ruleset");
            assert!(!rules.contains("mvt-5") && !rules.contains("7002"), "{rules}");
        });
    });
}

#[test]
fn workloads_that_a_policy_of_a_macvtap_names_are_followed_wherever_they_are() {
    on_a_lan(|_neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (_port, station) = policed(&client, &lan, 5, &["vm-6 tcp 9000"]).await.unwrap();
            let one = guest(station, 5);
            assert!(!nft("list table netdev volt-vmm-mvt-5").contains("10.7.0.6"));
            let (port, station) = Station::on(&client, &lan, 6).await.unwrap();
            let other = guest(station, 6);
            other.inside.within(|| [9000, 9001].map(serve));
            assert!(reached(&one.inside, "10.7.0.6:9000", PATIENCE));
            assert!(!reached(&one.inside, "10.7.0.6:9001", BRIEF));
            drop(other);
            client.release(&port).await.unwrap();
            assert!(!nft("list table netdev volt-vmm-mvt-5").contains("10.7.0.6"));
            // Of another network of the kind it is another workload.
            let elsewhere = define(&client, "lan1", MacvtapMode::Bridge, |_| ()).await.unwrap();
            let (_port, station) = Station::on(&client, &elsewhere, 6).await.unwrap();
            let other = guest(station, 6);
            other.inside.within(|| serve(9000));
            assert!(!reached(&one.inside, "10.7.0.6:9000", BRIEF));
        });
    });
}

#[test]
fn macvtap_s_policy_is_known_again_after_a_kill_with_its_counts_and_connections_and_one_that_is_lost_allows_nothing() {
    for flushed in [false, true] {
        on_a_lan(move |neighbour| {
            let mut netmgr = Netmgr::start();
            let default = |mut config: schema::network_capnp::network_config::Builder<'_>| {
                write_rules(config.reborrow().init_policy(), &["10.7.0.2 udp"]);
            };
            let (guest, begun, counted_before) = run(async {
                let client = netmgr.connect().await;
                let lan = define(&client, "lan", MacvtapMode::Bridge, default).await.unwrap();
                let (port, station) = policed(&client, &lan, 5, &["10.7.0.2 tcp 7001"]).await.unwrap();
                let (_other, _station) = Station::on(&client, &lan, 6).await.unwrap();
                assert_eq!(had(&client, &lan, "vm-6").await.unwrap(), ["10.7.0.2 udp"], "as the network says");
                let guest = guest(station, 5);
                neighbour.within(|| [7001, 7002].map(serve));
                assert!(reached(&guest.inside, "10.7.0.2:7001", PATIENCE));
                let listener = guest.inside.within(|| TcpListener::bind("10.7.0.5:9001").unwrap());
                let from_beside = neighbour.within(|| TcpStream::connect("10.7.0.5:9001").unwrap());
                let begun = (from_beside, listener.accept().unwrap().0);
                let counted = counted(&client, &port).await;
                netmgr.kill();
                (guest, begun, counted)
            });
            if flushed {
                nft("flush ruleset");
            }
            let netmgr = Netmgr::start();
            session(&netmgr, async |client| {
                let lan = client.network("lan").await.unwrap();
                let has = had(&client, &lan, "vm-5").await.unwrap();
                assert!(!reached(&guest.inside, "10.7.0.2:7002", BRIEF));
                if flushed {
                    assert_eq!(has, [""; 0]);
                    assert!(!reached(&guest.inside, "10.7.0.2:7001", BRIEF));
                    change(&client, &lan, "vm-5", &["any"]).await;
                    assert!(reached(&guest.inside, "10.7.0.2:7002", PATIENCE));
                    return;
                }
                assert_eq!(has, ["10.7.0.2 tcp 7001"]);
                exchange(&begun.0, &begun.1);
                assert!(reached(&guest.inside, "10.7.0.2:7001", PATIENCE));
                let listed = client.connection.call("list", DEADLINE, lan.ports_request().send()).await.unwrap();
                let stats = listed.get().unwrap().get_ports().unwrap().get(0).get_stats().unwrap();
                assert!(stats.get_allowed_packets() > counted_before.0, "it counts on");
                assert_eq!(had(&client, &lan, "vm-6").await.unwrap(), ["10.7.0.2 udp"]);
                // Somebody takes a part of it away: it is there again, and what was begun goes on.
                for harm in ["flush chain netdev volt-vmm-mvt-5 policed", "flush set netdev volt-vmm-mvt-5 allow4"] {
                    nft(harm);
                    let is_whole = || {
                        nft("list chain netdev volt-vmm-mvt-5 policed").contains("goto policed_ipv4")
                            && nft("list set netdev volt-vmm-mvt-5 allow4").contains("7001")
                    };
                    settle(harm, is_whole).await;
                    exchange(&begun.0, &begun.1);
                    assert!(!reached(&guest.inside, "10.7.0.2:7002", BRIEF));
                }
            });
        });
    }
}

/// Datagrams by way of the neighbour.
fn datagram(to: [u8; 4], what: u8) -> Vec<u8> {
    let ends = [&[2, 0, 0, 0, 7, 2], &mac(5)[..], &[8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 7, 0, 5]];
    [&ends.concat()[..], &to, &[0x10, 0, 0, 80, 0, 12, 0, 0, 10, 7, 0, what]].concat()
}

#[test]
fn host_s_own_addresses_and_special_ones_are_out_of_reach_of_a_policed_macvtap_unless_a_rule_says_host() {
    on_a_lan(|neighbour| {
        ip("addr add 192.0.2.9/32 dev lo");
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (_port, station) = policed(&client, &lan, 5, &["any"]).await.unwrap();
            let ear = Ear::at(&neighbour, "nb0");
            let hears = |first: u8| {
                for (to, what) in [
                    ([192, 0, 2, 9], first),
                    ([10, 7, 0, 1], first + 1),
                    ([192, 0, 2, 10], first + 2),
                    ([169, 254, 169, 254], first + 3),
                    ([169, 254, 1, 1], first + 4),
                    ([198, 51, 100, 7], first + 5),
                ] {
                    station.sends(&datagram(to, what));
                }
                ear.hears_until(first + 5).into_iter().map(|what| what - first).collect::<Vec<_>>()
            };
            assert_eq!(hears(10), [2, 5]);
            // One that the host has since.
            ip("addr add 192.0.2.10/32 dev lo");
            settle("it is known", || nft("list set netdev volt-vmm-mvt-5 own4").contains("192.0.2.10")).await;
            assert_eq!(hears(20), [5]);
            change(&client, &lan, "vm-5", &["host udp 80"]).await;
            station.sends(&datagram([192, 0, 2, 9], 30));
            station.sends(&datagram([198, 51, 100, 7], 31));
            station.sends(&datagram([10, 7, 0, 1], 32));
            assert_eq!(ear.hears_until(32), [30, 32]);
        });
    });
}

#[test]
fn holder_of_a_macvtap_narrows_its_policy_and_never_widens_it() {
    on_a_lan(|_neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let factory = client.factory(&lan, 2).await.unwrap();
            let port = client.tap_from(&factory, "vm-5", &mac(5), &["10.7.0.5"]).await.unwrap();
            change(&client, &lan, "vm-5", &["10.0.0.0/8"]).await;
            let mut request = port.set_policy_request();
            request.get().set_policy(policy(&client, &lan, &["10.7.0.0/16 tcp", "198.51.100.0/24"]).await.unwrap());
            client.connection.call("set", DEADLINE, request.send()).await.unwrap();
            assert_eq!(had(&client, &lan, "vm-5").await.unwrap(), ["10.7.0.0/16 tcp"]);
            client.connection.call("set", DEADLINE, port.set_policy_request().send()).await.unwrap();
            assert_eq!(had(&client, &lan, "vm-5").await.unwrap(), ["10.0.0.0/8"]);
            let refused = set_policy(&client, &lan, "vm-7", None).await.unwrap_err();
            assert_eq!(refused.code, Code::NotFound);
        });
    });
}
