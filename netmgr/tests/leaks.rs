//! What must not come beyond a network, nor into one: what is forged, what is left of an earlier time, and what goes in another's wake.
//! Runs the program as root, each test in network namespaces of its own.

mod common;
mod places;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use common::*;
use places::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use testkit::skip;

/// How long is waited for what must not come.
const NEVER: Duration = Duration::from_millis(300);

/// Runs a test in network namespaces of its own, if there is nft(8) to look at the rules with.
fn with_nft(test: impl FnOnce() + Send + 'static) {
    if Command::new("nft").arg("--version").output().is_ok() {
        in_own_network(test);
    } else {
        skip!("nft is not installed (Debian's package nftables)");
    }
}

fn nft(command: &str) {
    let output = Command::new("nft").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A UDP socket there, which hears for as long as what must come takes.
fn udp(place: &Place, own: &'static str) -> UdpSocket {
    place.run(move || {
        let socket = UdpSocket::bind(own).unwrap();
        socket.set_read_timeout(Some(testkit::wait::PATIENCE)).unwrap();
        socket
    })
}

/// Who has sent what comes next. (The end of what a test beside this one has started interrupts a wait that has an end.)
fn hears(socket: &UdpSocket) -> std::io::Result<SocketAddr> {
    loop {
        match socket.recv_from(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            heard => return heard.map(|(_, from)| from),
        }
    }
}

fn heard(socket: &UdpSocket) -> SocketAddr {
    hears(socket).expect("nothing comes")
}

fn hears_nothing(socket: &UdpSocket) {
    socket.set_read_timeout(Some(NEVER)).unwrap();
    let heard = hears(socket);
    assert_eq!(heard.map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
}

/// Says to `to` that a UDP packet from `from`, to `at`, has come to a port where nobody listens (RFC 792).
fn unreachable(place: &Place, to: Ipv4Addr, from: (Ipv4Addr, u16), at: (Ipv4Addr, u16)) {
    place.run(move || {
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
        message.extend([from.0.octets(), at.0.octets()].concat());
        let sum = |bytes: &[u8]| {
            let sum = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
            let sum: u32 = sum.sum();
            (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
        };
        let of_header = sum(&message[8..28]);
        message[18..20].copy_from_slice(&of_header);
        message.extend([from.1.to_be_bytes(), at.1.to_be_bytes(), [0, 9], [0, 0]].concat());
        message.push(b'x');
        let of_all = sum(&message);
        message[2..4].copy_from_slice(&of_all);
        let socket =
            socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP)).unwrap();
        UdpSocket::from(socket).send_to(&message, (to, 0)).unwrap();
    });
}

const LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 2);

fn lan() -> Place {
    Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"])
}

async fn guest(client: &Client, number: u8, workload: &str) -> Guest {
    let (address, gateway) = (format!("10.5{number}.0.2/24"), format!("10.5{number}.0.1"));
    Guest::new(client, &format!("volt{number}"), workload, &[&address], &[&gateway]).await
}

#[test]
fn who_was_asked_before_a_network_led_nowhere_is_not_heard_after() {
    with_nft(|| {
        let lan = lan();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            let (asks, answers) = (udp(&web, "10.50.0.2:5000"), udp(&lan, "192.0.2.2:7000"));
            asks.send_to(b"a", (LAN, 7000)).unwrap();
            let host = heard(&answers);
            answers.send_to(b"b", host).unwrap();
            assert_eq!(heard(&asks), (LAN, 7000).into());
            define(&client, "volt0", "10.50.0.1", Kind::Bridged).await.unwrap();
            let before = dropped("inwards", "to a guest");
            answers.send_to(b"c", host).unwrap();
            hears_nothing(&asks);
            assert!(dropped("inwards", "to a guest") > before);
        });
    });
}

#[test]
fn neighbour_does_not_pass_for_a_guest() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
        // What a host with several ways out, or without the setting, has.
        for one in ["all", "up0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{one}/rp_filter"), "0").unwrap();
        }
        lan.ip("addr add 10.50.0.2/32 dev lo");
        lan.ip("addr add fd50::2/128 dev lo nodad");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::Nat).await.unwrap();
            let service = UdpSocket::bind("[::]:7001").unwrap();
            for (own, forged, host) in
                [("192.0.2.2:0", "10.50.0.2:0", "192.0.2.1:7001"), ("[fd99::2]:0", "[fd50::2]:0", "[fd99::1]:7001")]
            {
                service.set_read_timeout(Some(testkit::wait::PATIENCE)).unwrap();
                udp(&lan, own).send_to(b"a", host).unwrap();
                assert_eq!(heard(&service).ip().to_canonical(), own.parse::<SocketAddr>().unwrap().ip());
                udp(&lan, forged).send_to(b"a", host).unwrap();
                hears_nothing(&service);
            }
            assert_eq!(dropped("early", "from a network's subnet, by another way"), 2);
        });
    });
}

#[test]
fn error_about_another_s_connection_is_not_heard() {
    with_nft(|| {
        let lan = lan();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            let asks = udp(&web, "10.50.0.2:5000");
            let answers = udp(&lan, "192.0.2.2:7000");
            asks.send_to(b"a", (LAN, 7000)).unwrap();
            let host = heard(&answers);
            answers.connect(host).unwrap();
            answers.send(b"b").unwrap();
            heard(&asks);
            let own = UdpSocket::bind("192.0.2.1:6000").unwrap();
            own.connect("192.0.2.2:7002").unwrap();
            let other = udp(&lan, "192.0.2.2:7002");
            own.send(b"a").unwrap();
            heard(&other);
            for kind in [Kind::Bridged, Kind::HostOnly] {
                define(&client, "volt1", "10.51.0.1", kind).await.unwrap();
                let db = guest(&client, 1, "vm-db").await;
                unreachable(&db, LAN, (LAN, 7000), (WEB, 5000));
                hears_nothing(&answers);
                if kind == Kind::HostOnly {
                    unreachable(&db, HOST, (HOST, 6000), (LAN, 7002));
                    hears_nothing(&own);
                }
                client.release(&db.port).await.unwrap();
            }
            // Whose connection it is, says so.
            unreachable(&web, LAN, (LAN, 7000), (WEB, 5000));
            answers.set_read_timeout(Some(testkit::wait::PATIENCE)).unwrap();
            let refused = answers.recv(&mut [0; 64]).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn what_began_while_there_were_no_rules_is_not_answered_after() {
    with_nft(|| {
        let lan = lan();
        lan.ip("route add 10.50.0.0/24 via 192.0.2.1");
        let mut netmgr = Netmgr::start();
        let (web, begins, guests) = run(async {
            let client = netmgr.connect().await;
            define(&client, "volt1", "10.51.0.1", Kind::Nat).await.unwrap();
            define(&client, "volt0", "10.50.0.1", Kind::Bridged).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            netmgr.kill();
            nft("flush ruleset");
            // So that the kernel goes on with what it knows of connections.
            nft(
                "add table inet other; add chain inet other input { type filter hook input priority 0; }; add rule inet other input ct state new",
            );
            let (begins, guests) = (udp(&lan, "192.0.2.2:7000"), udp(&web, "10.50.0.2:5000"));
            begins.send_to(b"a", (WEB, 5000)).unwrap();
            assert_eq!(heard(&guests), (LAN, 7000).into());
            guests.send_to(b"b", (LAN, 7000)).unwrap();
            assert_eq!(heard(&begins), (WEB, 5000).into());
            (web, begins, guests)
        });
        let _next = Netmgr::start();
        guests.send_to(b"c", (LAN, 7000)).unwrap();
        hears_nothing(&begins);
        assert!(dropped("outwards", "to the outside, from a network that has no way there") > 0);
        drop(web);
    });
}

#[test]
fn what_another_redirects_leads_no_guest_outside_that_has_no_way_there() {
    with_nft(|| {
        let lan = lan();
        lan.serves(80);
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt1", "10.51.0.1", Kind::Nat).await.unwrap();
            define(&client, "volt0", "10.50.0.1", Kind::Bridged).await.unwrap();
            nft(
                "add table ip other; add chain ip other to { type nat hook prerouting priority -110; }; add rule ip other to tcp dport 8080 dnat to 192.0.2.2:80; add chain ip other from { type nat hook postrouting priority 90; }; add rule ip other from oifname up0 masquerade",
            );
            let (web, db) = (guest(&client, 0, "vm-web").await, guest(&client, 1, "vm-db").await);
            assert_eq!(db.seen_as("192.0.2.1:8080"), "192.0.2.1");
            assert!(web.reaches("192.0.2.1:8080").is_none());
            assert!(dropped("outwards", "to the outside, from a network that has no way there") > 0);
        });
    });
}

/// It is translated for no connection, so that it would leave as it came.
#[test]
fn segment_of_no_connection_does_not_leave_under_a_guest_s_own_address() {
    with_nft(|| {
        let lan = lan();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            let raw = || {
                let socket =
                    socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::TCP))
                        .unwrap();
                let socket = UdpSocket::from(socket);
                socket.set_read_timeout(Some(testkit::wait::PATIENCE)).unwrap();
                socket
            };
            let (ear, sends) = (lan.run(raw), web.run(raw));
            // SYN and ACK of what nobody has begun, SYN and FIN, none at all; and SYN.
            for (to, flags) in [(7001_u16, 0x12_u8), (7002, 3), (7003, 0), (7004, 2)] {
                let mut segment =
                    [&5000_u16.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[0x50, flags, 32, 0]].concat();
                segment.extend([0; 4]);
                let pseudo = [&WEB.octets()[..], &LAN.octets(), &[0, 6, 0, 20], &segment].concat();
                let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
                let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
                segment[16..18].copy_from_slice(&sum.to_be_bytes());
                sends.send_to(&segment, (LAN, 0)).unwrap();
            }
            let mut heard = Vec::new();
            while heard.last().is_none_or(|(_, to)| *to != 7004) {
                let mut packet = [0; 64];
                ear.recv(&mut packet).unwrap();
                heard.push((
                    Ipv4Addr::from(*packet[12..].first_chunk().unwrap()),
                    u16::from_be_bytes([packet[22], packet[23]]),
                ));
            }
            assert_eq!(heard, [(HOST, 7004)]);
            assert_eq!(dropped("forward", "of no connection, from a network"), 3);
        });
    });
}

/// The host has room for so many neighbours, of all its networks together, and looks for each that it is to forward to.
#[test]
fn guest_has_the_host_look_for_no_neighbour_of_its_own_network() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            web.ip("route add 10.50.0.128/25 via 10.50.0.1");
            let socket = udp(&web, "10.50.0.2:5000");
            for last in 128..192 {
                socket.send_to(b"a", (Ipv4Addr::new(10, 50, 0, last), 9)).unwrap();
            }
            assert!(web.pings("10.50.0.1"));
            let asked = ip("neigh show dev volt0 nud all");
            assert!(asked.lines().count() <= 2, "{asked}");
        });
    });
}

#[test]
fn next_guest_of_an_address_has_nothing_of_the_one_before() {
    with_nft(|| {
        let lan = lan();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            let answers = udp(&lan, "192.0.2.2:7000");
            udp(&web, "10.50.0.2:5000").send_to(b"a", (LAN, 7000)).unwrap();
            let host = heard(&answers);
            client.release(&web.port).await.unwrap();
            let next = guest(&client, 0, "vm-next").await;
            let hears = udp(&next, "10.50.0.2:5000");
            answers.send_to(b"secret", host).unwrap();
            hears_nothing(&hears);
        });
    });
}

#[test]
fn what_closed_connections_of_a_guest_leave_in_the_host_s_table_is_limited_and_one_stream_is_not() {
    with_nft(|| {
        const AT_ONCE: u64 = 2048;
        let lan = lan();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = guest(&client, 0, "vm-web").await;
            let limit = || dropped("forward", "more new connections than one source may begin");
            // What goes one way only is one connection, whose packets are all new.
            let (streams, hears) = (udp(&web, "10.50.0.2:5000"), udp(&lan, "192.0.2.2:7000"));
            for n in 0..AT_ONCE + 500 {
                streams.send_to(b"a", (LAN, 7000)).unwrap();
                if n % 20 == 0 {
                    heard(&hears);
                }
            }
            assert_eq!(limit(), 0);
            // Nobody is there: each is over as soon as it has begun.
            let refused = |web: &Guest, count: u16| {
                web.run(move || {
                    for n in 0..count {
                        let to = rustix::net::SocketAddrV4::new(LAN, 1000 + n % 50_000);
                        let socket = socket_with(
                            AddressFamily::INET,
                            SocketType::STREAM,
                            SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC),
                            None,
                        );
                        let socket = socket.unwrap();
                        let _ = rustix::net::connect(&socket, &to);
                        if n % 50 == 0 {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                });
            };
            refused(&web, 1500);
            assert_eq!(limit(), 0, "so many may be at once");
            let end = std::time::Instant::now() + testkit::wait::PATIENCE;
            while limit() == 0 {
                assert!(std::time::Instant::now() < end, "it begins as many as it likes");
                refused(&web, 3000);
            }
            // The host, and others, begin theirs.
            lan.serves(80);
            let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            assert_eq!(db.seen_as("192.0.2.2:80"), "192.0.2.1");
            // It goes on a little later.
            assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
        });
    });
}
