//! Ports of the host that lead to guests: from other hosts, from the host itself, from guests, and from nowhere else. Runs the program as root, each
//! test in network namespaces of its own.

mod common;
mod given;
mod places;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::Command,
    time::Duration,
};

use common::*;
use given::*;
use ipc::Code;
use places::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use schema::network_capnp::{network, published};
use testkit::{skip, wait::PATIENCE};

fn with_nft(test: impl FnOnce() + Send + 'static) {
    if Command::new("nft").arg("--version").output().is_ok() {
        in_own_network(test);
    } else {
        skip!("nft is not installed (Debian's package nftables)");
    }
}

/// What is published on a network, each as `WORKLOAD PROTOCOL ADDRESS PORT GUEST-PORT`.
async fn listed(client: &Client, network: &network::Client) -> Vec<String> {
    let answer = client.connection.call("list", DEADLINE, network.ports_request().send()).await.unwrap();
    let ports = answer.get().unwrap().get_ports().unwrap();
    let mut all = Vec::new();
    for port in ports {
        let workload = port.get_workload().unwrap().to_string().unwrap();
        for one in port.get_published().unwrap() {
            let protocol = if one.get_protocol() == Ok(published::Protocol::Tcp) { "tcp" } else { "udp" };
            let address = one.get_address().unwrap().to_string().unwrap();
            all.push(format!("{workload} {protocol} {address} {} {}", one.get_port(), one.get_guest_port()));
        }
    }
    all
}

fn udp(at: &str) -> OwnedFd {
    testkit::wait::until(at, || UdpSocket::bind(at).map_err(|error| error.to_string())).into()
}

#[test]
fn published_port_is_reached_by_whoever_reaches_the_host_and_until_it_is_taken_back() {
    // Whether or not the host's rules for routed packets see what a bridge forwards, as Docker has it.
    for filter in ["0", "1"] {
        with_nft(move || {
            let lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
            lan.serves(8080);
            for family in ["ip", "ip6"] {
                let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), filter);
            }
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let network = define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::HostOnly).await.unwrap();
                define(&client, "volt1", "10.51.0.1", Kind::Nat).await.unwrap();
                let (both, gateways) = (["10.50.0.2/24", "fd50::2/64"], ["10.50.0.1", "fd50::1"]);
                let web = Guest::new(&client, "volt0", "vm-web", &both, &gateways).await;
                let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
                let other = Guest::new(&client, "volt1", "vm-other", &["10.51.0.2/24"], &["10.51.0.1"]).await;
                web.serves(82);
                publish(&client, &network, "vm-web", vec![tcp("0.0.0.0:8080"), tcp("0.0.0.0:8081")], 82).await.unwrap();
                publish(&client, &network, "vm-web", vec![tcp6(8080)], 82).await.unwrap();
                assert_eq!(
                    listed(&client, &network).await,
                    ["vm-web tcp 0.0.0.0 8080 82", "vm-web tcp 0.0.0.0 8081 83", "vm-web tcp :: 8080 82"]
                );
                assert_eq!(lan.seen_as("192.0.2.1:8080"), "192.0.2.2");
                assert_eq!(lan.seen_as("[fd99::1]:8080"), "fd99::2");
                // Under any address of the host's, and no other's.
                assert_eq!(web.seen_as("192.0.2.2:8080"), "192.0.2.1");
                assert_eq!(web.seen_as("[fd99::2]:8080"), "fd99::1");
                for to in ["192.0.2.2:8080", "[fd99::2]:8080"] {
                    let own = if to.starts_with('[') { "fd99::1" } else { "192.0.2.1" };
                    let taken_for = reaches(to.parse().unwrap(), PATIENCE).map(|ip| ip.to_string());
                    assert_eq!(taken_for.as_deref(), Some(own), "what the host itself sends to {to}");
                }
                // A bridge forwards it itself, where it sees where that goes to.
                let who = if filter == "0" { "10.50.0.1" } else { "10.50.0.3" };
                assert_eq!(db.seen_as("192.0.2.1:8080"), who);
                assert_eq!(db.seen_as("10.50.0.1:8080"), who);
                assert_eq!(other.seen_as("192.0.2.1:8080"), "10.50.0.1");
                // By itself, by the host, and over its loopback.
                if filter == "0" {
                    assert_eq!(web.seen_as("192.0.2.1:8080"), "10.50.0.1");
                } else {
                    // It would have to send it back by the port that it came by.
                    assert!(web.reaches("192.0.2.1:8080").is_none());
                }
                let here = |to: &str| reaches(to.parse().unwrap(), PATIENCE).map(|ip| ip.to_string());
                assert!(here("192.0.2.1:8080").is_some());
                assert_eq!(here("127.0.0.1:8080").as_deref(), Some("10.50.0.1"));
                assert!(here("[fd99::1]:8080").is_some());
                // Over ::1 nothing goes to a guest, and who tries is refused at once.
                let over = std::net::TcpStream::connect("[::1]:8080").unwrap_err();
                assert_eq!(over.kind(), std::io::ErrorKind::ConnectionRefused);
                // And not by who routes to it.
                lan.ip("route add 10.50.0.0/24 via 192.0.2.1");
                assert!(lan.reaches("10.50.0.2:82").is_none() && other.reaches("10.50.0.2:82").is_none());
                // Nobody else has the port as long as that.
                assert!(TcpListener::bind("0.0.0.0:8080").is_err());
                unpublish(&client, &network, "vm-web", "tcp 0.0.0.0:8080").await.unwrap();
                let refused = unpublish(&client, &network, "vm-web", "tcp 0.0.0.0:8080").await.unwrap_err();
                assert_eq!(refused.code, Code::NotFound);
                assert!(lan.reaches("192.0.2.1:8080").is_none());
                assert_eq!(lan.seen_as("[fd99::1]:8080"), "fd99::2");
                eventually_free("0.0.0.0:8080");
                // What is left goes with the port, and nothing of others'.
                client.release(&web.port).await.unwrap();
                for guest in [&db, &other] {
                    assert_eq!(guest.seen_as("192.0.2.2:8080"), "192.0.2.1");
                }
                eventually_free("0.0.0.0:8081");
                let set = Command::new("nft").args(["list", "map", "inet", "volt-vmm", "published6"]).output().unwrap();
                assert!(!String::from_utf8(set.stdout).unwrap().contains("elements"));
            });
        })
    }
}

/// Of a host that forwards nothing as yet.
#[test]
fn port_that_leads_to_a_network_without_a_way_out_is_reached_by_whoever_reaches_the_host() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
        lan.serves(83);
        for family in ["ip", "ip6"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0");
        }
        let forwarding = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];
        forwarding.iter().for_each(|setting| std::fs::write(setting, "0").unwrap());
        let forwards = || forwarding.map(|setting| std::fs::read_to_string(setting).unwrap().trim() == "1");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::Bridged).await.unwrap();
            let (both, gateways) = (["10.50.0.2/24", "fd50::2/64"], ["10.50.0.1", "fd50::1"]);
            let web = Guest::new(&client, "volt0", "vm-web", &both, &gateways).await;
            let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            web.serves(82);
            assert_eq!(forwards(), [false; 2]);
            publish(&client, &network, "vm-web", vec![tcp("0.0.0.0:8080")], 82).await.unwrap();
            assert_eq!(forwards(), [true, false]);
            publish(&client, &network, "vm-web", vec![tcp6(8080)], 82).await.unwrap();
            assert_eq!(forwards(), [true; 2]);
            assert_eq!(lan.seen_as("192.0.2.1:8080"), "192.0.2.2");
            assert_eq!(lan.seen_as("[fd99::1]:8080"), "fd99::2");
            assert_eq!(db.seen_as("10.50.0.1:8080"), "10.50.0.1");
            // Nothing else is forwarded.
            lan.ip("route add 10.50.0.0/24 via 192.0.2.1");
            assert!(lan.reaches("10.50.0.2:82").is_none());
            assert!(web.reaches("192.0.2.2:83").is_none());
        });
    });
}

/// Waits until that port may be had.
fn eventually_free(at: &str) {
    eventually(at, || TcpListener::bind(at).is_ok());
}

#[test]
fn neighbour_who_sends_to_the_loopback_network_reaches_no_guest() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        // Who has none of its own sends that to whom it likes.
        lan.ip("addr del 127.0.0.1/8 dev lo");
        lan.ip("route add 127.0.0.1/32 via 192.0.2.1");
        lan.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap());
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            web.serves(82);
            publish(&client, &network, "vm-web", vec![tcp("127.0.0.1:8080"), tcp("0.0.0.0:8081")], 82).await.unwrap();
            assert_eq!(reaches("127.0.0.1:8080".parse().unwrap(), PATIENCE), Some([10, 50, 0, 1].into()));
            assert!(lan.reaches("127.0.0.1:8080").is_none() && lan.reaches("127.0.0.1:8081").is_none());
            assert!(lan.reaches("192.0.2.1:8080").is_none(), "it is published for the host alone");
        });
    });
}

/// For which the bridge of a network that somebody publishes a port of carries the loopback network, and no guest gets anything out of that.
#[test]
fn loopback_network_is_the_host_s_own_and_its_ports_lead_to_guests_over_whatever_becomes_of_their_bridge() {
    with_nft(|| {
        let mut netmgr = Netmgr::start();
        serve(7000);
        let setting = "/proc/sys/net/ipv4/conf/volt0/route_localnet";
        let carries = || std::fs::read_to_string(setting).is_ok_and(|on| on.trim() == "1");
        let led = || reaches("127.0.0.1:8080".parse().unwrap(), PATIENCE) == Some([10, 50, 0, 1].into());
        let web = run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            web.serves(82);
            // Who has no loopback network of its own sends what is for that to whom it likes, from its own address, or from one of that.
            web.ip("addr del 127.0.0.1/8 dev lo");
            web.ip("route add 127.0.0.0/8 via 10.50.0.1");
            web.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap());
            assert!(!carries());
            publish(&client, &network, "vm-web", vec![tcp("127.0.0.1:8080"), tcp("0.0.0.0:8081")], 82).await.unwrap();
            assert!(carries() && led());
            let holds = || {
                // The host serves it, on all of its addresses.
                assert_eq!(web.seen_as("10.50.0.1:7000"), "10.50.0.2");
                let before = dropped("early", "for the loopback network");
                for to in ["127.0.0.1:7000", "127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.2:7000"] {
                    assert!(web.reaches(to).is_none(), "{to}");
                }
                assert!(dropped("early", "for the loopback network") > before);
            };
            holds();
            web.ip("addr add 127.9.9.9/32 dev eth0");
            assert!(web.reaches("127.0.0.1:7000").is_none());
            web.ip("addr del 127.9.9.9/32 dev eth0");
            // Another bridge has what the first one had: by netmgr's own look, by an attach, and by the next definition.
            ip("link delete volt0");
            settle("it carries that", carries).await;
            forwards("tap-web").await;
            assert!(led());
            holds();
            ip("link delete volt0");
            let _db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            assert!(carries() && led());
            netmgr.kill();
            web
        });
        ip("link delete volt0");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            forwards("tap-web").await;
            assert!(carries() && led());
            // No longer than somebody needs it.
            unpublish(&client, &network, "vm-web", "tcp 127.0.0.1:8080").await.unwrap();
            assert!(carries());
            unpublish(&client, &network, "vm-web", "tcp 0.0.0.0:8081").await.unwrap();
            assert!(!carries());
            drop(web);
        });
    });
}

#[test]
fn datagrams_of_a_steady_client_go_where_the_port_leads_now() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            let steady = lan.run(|| UdpSocket::bind("192.0.2.2:5000").unwrap());
            // And one that is none of these ports'.
            let apart = lan.run(|| UdpSocket::bind("192.0.2.2:5001").unwrap());
            for socket in [&steady, &apart] {
                socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            }
            let own = UdpSocket::bind("192.0.2.1:9000").unwrap();
            own.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 16];
            // Before it is published, it goes to the host.
            let service = UdpSocket::bind("0.0.0.0:7000").unwrap();
            steady.send_to(b"x", "192.0.2.1:7000").unwrap();
            apart.send_to(b"x", "192.0.2.1:9000").unwrap();
            service.set_read_timeout(Some(PATIENCE)).unwrap();
            service.recv(&mut buffer).unwrap();
            own.recv(&mut buffer).unwrap();
            drop(service);
            for (workload, guest) in [("vm-web", &web), ("vm-db", &db)] {
                let inside = guest.run(|| UdpSocket::bind("0.0.0.0:7777").unwrap());
                publish(&client, &network, workload, vec![udp("0.0.0.0:7000")], 7777).await.unwrap();
                inside.set_read_timeout(Some(PATIENCE)).unwrap();
                steady.send_to(workload.as_bytes(), "192.0.2.1:7000").unwrap();
                let (length, from) = inside.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from.to_string().as_str()), (workload.as_bytes(), "192.0.2.2:5000"));
                inside.send_to(b"answer", from).unwrap();
                let answered =
                    || steady.recv_from(&mut [0; 16]).is_ok_and(|(_, from)| from.to_string() == "192.0.2.1:7000");
                eventually("it is answered by the host's port", answered);
                unpublish(&client, &network, workload, "udp 0.0.0.0:7000").await.unwrap();
            }
        });
    });
}

/// What was begun by a port ends with that, also where one side goes on; and what leads elsewhere goes on.
#[test]
fn connections_end_with_the_port_that_they_came_by_and_no_others_do() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            // One port of the host's, under one address each.
            publish(&client, &network, "vm-web", vec![tcp("192.0.2.1:8080")], 82).await.unwrap();
            publish(&client, &network, "vm-db", vec![tcp("10.50.0.1:8080")], 83).await.unwrap();
            assert!(TcpListener::bind("0.0.0.0:8080").is_err());
            let begin = |from: &Place, to: &'static str, at: &TcpListener| {
                let one = from.run(move || TcpStream::connect(to).unwrap());
                let (other, _) = at.accept().unwrap();
                [one, other]
            };
            let listens = |place: &Place, at: &'static str| place.run(move || TcpListener::bind(at).unwrap());
            let by_port = begin(&lan, "192.0.2.1:8080", &listens(&web, "0.0.0.0:82"));
            let by_other = begin(&web, "10.50.0.1:8080", &listens(&db, "0.0.0.0:83"));
            let own = begin(&web, "192.0.2.2:7000", &listens(&lan, "0.0.0.0:7000"));
            let talk = |[one, other]: &[TcpStream; 2]| {
                for (mut from, mut to) in [(one, other), (other, one)] {
                    to.set_read_timeout(Some(PATIENCE)).unwrap();
                    from.write_all(b"x").unwrap();
                    to.read_exact(&mut [0]).unwrap();
                }
            };
            [&by_port, &by_other, &own].into_iter().for_each(talk);
            // One that its guest has begun, and of which only who was asked says anything from now on: the host has to know it still.
            let asks = web.run(|| UdpSocket::bind("10.50.0.2:8080").unwrap());
            let answers = lan.run(|| UdpSocket::bind("192.0.2.2:8080").unwrap());
            [&asks, &answers].into_iter().for_each(|socket| socket.set_read_timeout(Some(PATIENCE)).unwrap());
            asks.send_to(b"x", "192.0.2.2:8080").unwrap();
            let (_, host) = answers.recv_from(&mut [0; 16]).unwrap();
            unpublish(&client, &network, "vm-web", "tcp 192.0.2.1:8080").await.unwrap();
            let (mut outside, mut inside) = (&by_port[0], &by_port[1]);
            inside.write_all(b"y").unwrap();
            outside.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let heard = outside.read(&mut [0]).map_err(|error| error.kind());
            assert!(heard.is_err(), "{heard:?}");
            // The host itself says that there is nobody.
            let over = || {
                let _ = outside.write_all(b"z");
                outside.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
            };
            eventually("it is over", over);
            [&by_other, &own].into_iter().for_each(talk);
            answers.send_to(b"x", host).unwrap();
            asks.recv(&mut [0; 16]).unwrap();
        });
    });
}

/// A name service is what is most missed: a guest's questions for another one go where they are sent, whoever has that port here.
#[test]
fn published_port_of_udp_takes_nothing_that_is_for_another_host() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
        for family in ["ip", "ip6"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0");
        }
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::HostOnly).await.unwrap();
            let (both, gateways) = (["10.50.0.2/24", "fd50::2/64"], ["10.50.0.1", "fd50::1"]);
            let web = Guest::new(&client, "volt0", "vm-web", &both, &gateways).await;
            let both = ["10.50.0.3/24", "fd50::3/64"];
            let db = Guest::new(&client, "volt0", "vm-db", &both, &gateways).await;
            // In one call, the second would lead to the next of the guest's ports.
            for socket in [udp("0.0.0.0:53"), udp6(53)] {
                publish(&client, &network, "vm-web", vec![socket], 5353).await.unwrap();
            }
            let ear = |port: u16| {
                let socket = UdpSocket::bind(("::", port)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket
            };
            let (real, own) = (lan.run(move || ear(53)), web.run(move || ear(5353)));
            let any = || UdpSocket::bind("[::]:0").unwrap();
            let hears = |ear: &UdpSocket, from: &UdpSocket, to: &str| {
                from.send_to(to.as_bytes(), to.parse::<SocketAddr>().map(mapped).unwrap()).unwrap();
                let mut heard = [0; 64];
                let length = ear.recv(&mut heard).unwrap();
                assert_eq!(&heard[..length], to.as_bytes());
            };
            for asks in [web.run(any), db.run(any), any()] {
                for (to, here) in [("192.0.2.2:53", "192.0.2.1:53"), ("[fd99::2]:53", "[fd99::1]:53")] {
                    hears(&real, &asks, to);
                    hears(&own, &asks, here);
                }
            }
        });
    });
}

/// As a socket of both families has it.
fn mapped(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), at.port()).into(),
        IpAddr::V6(_) => at,
    }
}

#[test]
fn socket_that_does_not_hold_a_port_here_is_refused_by_what_it_lacks() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        let elsewhere = Place::new();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let _web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            let _none = client.tap(&client.factory(&network, 1).await.unwrap(), "vm-none").await.unwrap();
            let unbound = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            let shared = UdpSocket::bind("0.0.0.0:7001").unwrap();
            rustix::net::sockopt::set_socket_reuseaddr(&shared, true).unwrap();
            for (socket, why) in [
                (std::fs::File::open("/dev/null").unwrap().into(), "none of IPv4 or IPv6"),
                (std::os::unix::net::UnixStream::pair().unwrap().0.into(), "neither of TCP nor of UDP"),
                (unbound.unwrap(), "not bound to a port"),
                (shared.into(), "lets others have the port too"),
                (elsewhere.run(|| tcp("0.0.0.0:80")), "another network namespace"),
                (tcp("[::]:8082"), "IPV6_V6ONLY"),
                (tcp("[::1]:8083"), "::1"),
            ] {
                let refused = publish(&client, &network, "vm-web", vec![socket], 80).await.unwrap_err();
                assert_eq!(refused.code, Code::InvalidArgument, "{refused}");
                assert!(refused.to_string().contains(why), "{why}: {refused}");
            }
            let refused = |port, sockets| publish(&client, &network, "vm-web", sockets, port);
            assert_eq!(refused(0, vec![tcp("0.0.0.0:8000")]).await.unwrap_err().code, Code::InvalidArgument);
            let two = vec![tcp("0.0.0.0:8000"), tcp("0.0.0.0:8001")];
            assert_eq!(refused(65_535, two).await.unwrap_err().code, Code::InvalidArgument);
            assert_eq!(refused(80, vec![]).await.unwrap_err().code, Code::InvalidArgument);
            assert_eq!(refused(80, vec![tcp6(8000)]).await.unwrap_err().code, Code::NotFound);
            for workload in ["vm-none", "vm-nobody"] {
                let refused = publish(&client, &network, workload, vec![tcp("0.0.0.0:8000")], 80).await.unwrap_err();
                assert_eq!(refused.code, Code::NotFound, "{refused}");
            }
            assert_eq!(listed(&client, &network).await, Vec::<String>::new());
            // As many as there may be, and one more; and none twice, by whomever.
            for n in 0..4 {
                let many: Vec<OwnedFd> = (0..64).map(|_| tcp("127.0.0.1:0")).collect();
                publish(&client, &network, "vm-web", many, 1000 + n * 64).await.unwrap();
            }
            assert_eq!(refused(80, vec![tcp("127.0.0.1:0")]).await.unwrap_err().code, Code::Exhausted);
            let taken = listed(&client, &network).await[0].split(' ').nth(3).unwrap().to_owned();
            unpublish(&client, &network, "vm-web", &format!("tcp 127.0.0.1:{taken}")).await.unwrap();
            let one = udp("127.0.0.1:7002");
            publish(&client, &network, "vm-web", vec![one.try_clone().unwrap()], 80).await.unwrap();
            let twice = refused(81, vec![one]).await.unwrap_err();
            assert_eq!(twice.code, Code::AlreadyExists);
            assert!(twice.to_string().contains("udp 127.0.0.1:7002 is published already, for vm-web"), "{twice}");
        });
    });
}

#[test]
fn port_is_published_still_when_netmgr_was_killed() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        let mut netmgr = Netmgr::start();
        let web = run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            web.serves(82);
            let sockets = vec![tcp("0.0.0.0:8080"), tcp("192.0.2.1:8082"), udp("192.0.2.1:8083")];
            publish(&client, &network, "vm-web", sockets, 82).await.unwrap();
            netmgr.kill();
            web
        });
        assert_eq!(lan.seen_as("192.0.2.1:8080"), "192.0.2.2");
        // Meanwhile somebody takes one, to whom nothing comes.
        let taken = UdpSocket::bind("192.0.2.1:8083").unwrap();
        let next = Netmgr::start();
        for at in ["0.0.0.0:8080", "192.0.2.1:8082"] {
            let refused = TcpListener::bind(at).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse, "{at} is held again");
        }
        drop(taken);
        assert_eq!(lan.seen_as("192.0.2.1:8080"), "192.0.2.2");
        run(async {
            let client = next.connect().await;
            let network = client.network("volt0").await.unwrap();
            assert_eq!(
                listed(&client, &network).await,
                ["vm-web tcp 0.0.0.0 8080 82", "vm-web tcp 192.0.2.1 8082 83", "vm-web udp 192.0.2.1 8083 84"]
            );
            let again = publish(&client, &network, "vm-web", vec![udp("0.0.0.0:8083")], 82).await.unwrap_err();
            assert_eq!(again.code, Code::AlreadyExists);
            let flushed = Command::new("nft").args(["flush", "ruleset"]).status().unwrap();
            assert!(flushed.success());
            assert_eq!(lan.seen_as_soon("192.0.2.1:8080"), "192.0.2.2");
            unpublish(&client, &network, "vm-web", "tcp 0.0.0.0:8080").await.unwrap();
            assert!(lan.reaches("192.0.2.1:8080").is_none());
            eventually_free("0.0.0.0:8080");
            // What nobody has told netmgr of yet is in nobody's way.
            let _db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            drop(web);
            testkit::wait::until("the guest is gone", || {
                let there = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                if there.contains("tap-web") { Err(there) } else { Ok(()) }
            });
            publish(&client, &network, "vm-db", vec![tcp("192.0.2.1:8082")], 80).await.unwrap();
            assert_eq!(listed(&client, &network).await, ["vm-db tcp 192.0.2.1 8082 80"]);
        });
    });
}

/// Nobody was there to see that, and what is in the kernel's map comes before anything that is new.
#[test]
fn port_of_a_guest_that_ended_while_there_was_no_netmgr_leads_to_the_next_one_s() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        let mut netmgr = Netmgr::start();
        let web = run(async {
            let client = netmgr.connect().await;
            let network = define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            web.serves(82);
            publish(&client, &network, "vm-web", vec![tcp("0.0.0.0:8080"), tcp("192.0.2.1:8081")], 82).await.unwrap();
            assert_eq!(lan.seen_as("192.0.2.1:8080"), "192.0.2.2");
            netmgr.kill();
            web
        });
        drop(web);
        eventually("the guest is gone", || interface("tap-web").is_none());
        let maps = || ["published4", "published4_at"].map(|map| nft(&format!("list map inet volt-vmm {map}")));
        assert!(maps().iter().all(|map| map.contains("elements")));
        let next = Netmgr::start();
        assert!(!maps().iter().any(|map| map.contains("elements")));
        run(async {
            let client = next.connect().await;
            let network = client.network("volt0").await.unwrap();
            let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            db.serves(83);
            publish(&client, &network, "vm-db", vec![tcp("0.0.0.0:8080"), tcp("192.0.2.1:8081")], 83).await.unwrap();
            assert_eq!(lan.seen_as("192.0.2.1:8080"), "192.0.2.2");
        });
    });
}
