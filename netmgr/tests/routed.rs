//! What goes beyond a network, and what comes to it from there: real hosts that speak TCP with each other, the guests' by way of their ports' TAPs.
//! Runs the program as root, each test in network namespaces of its own.

mod common;
mod given;
mod places;
mod router;

use std::process::Command;

use common::*;
use given::publish;
use places::*;
use router::advertise;
use testkit::skip;

/// Runs a test in network namespaces of its own, if there is nft(8) to look at the rules with.
fn with_nft(test: impl FnOnce() + Send + 'static) {
    if Command::new("nft").arg("--version").output().is_ok() {
        in_own_network(test);
    } else {
        skip!("nft is not installed (Debian's package nftables)");
    }
}

/// Whether the host's iptables rules are to see frames that its bridges forward.
fn bridge_filter(on: &str) {
    for family in ["ip", "ip6"] {
        let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), on);
    }
}

/// What `rule` drops, if `attempt` fails, while it is tried.
fn is_dropped(chain: &str, about: &str, attempt: impl FnOnce() -> bool) {
    let before = dropped(chain, about);
    assert!(!attempt(), "{chain}: {about}");
    assert!(dropped(chain, about) > before, "{chain}: {about}: something else is in the way");
}

#[test]
fn host_only_guest_reaches_the_outside_under_the_host_s_address_and_no_service_of_the_host() {
    for filter in ["0", "1"] {
        with_nft(move || {
            bridge_filter(filter);
            let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
            lan.serves(80);
            serve(81);
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
                let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
                let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
                web.serves(82);
                assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
                assert_eq!(db.seen_as("10.50.0.2:82"), "10.50.0.3");
                // By any of its addresses.
                for host in ["10.50.0.1:81", "192.0.2.1:81"] {
                    is_dropped("services", "to the host", || web.reaches(host).is_some());
                }
                is_dropped("services", "to the host", || web.pings("192.0.2.1"));
                assert!(web.pings("10.50.0.1") && web.pings("192.0.2.2"));
                // What the host begins is answered.
                assert_eq!(
                    reaches("10.50.0.2:82".parse().unwrap(), testkit::wait::PATIENCE),
                    Some([10, 50, 0, 1].into())
                );
                // A bridged one does reach it.
                define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
                assert_eq!(web.seen_as("10.50.0.1:81"), "10.50.0.2");
                assert_eq!(web.seen_as("192.0.2.1:81"), "10.50.0.2");
                assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
            });
        });
    }
}

#[test]
fn neighbour_who_routes_to_a_network_reaches_nobody_there_and_not_its_gateway() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        lan.serves(80);
        serve(81);
        lan.ip("route add 10.50.0.0/24 via 192.0.2.1");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            for kind in [Kind::Nat, Kind::HostOnly, Kind::Bridged] {
                define(&client, "volt0", "10.50.0.1", kind).await.unwrap();
                // With which the host forwards, and nothing of its own rules keeps it from that.
                assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
                let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
                web.serves(82);
                let early = "of a network's subnet, by another way";
                is_dropped("early", early, || lan.reaches("10.50.0.2:82").is_some());
                is_dropped("early", early, || lan.reaches("10.50.0.1:81").is_some());
                is_dropped("early", early, || lan.pings("10.50.0.1"));
                // And were it not for that rule, by the one of what is forwarded.
                let rule = Command::new("nft").args(["flush", "chain", "inet", "volt-vmm", "early"]).status();
                assert!(rule.unwrap().success());
                assert!(lan.reaches("10.50.0.2:82").is_none());
                if kind == Kind::Bridged {
                    is_dropped("outwards", "to the outside, from a network that has no way there", || {
                        web.reaches("192.0.2.2:80").is_some()
                    });
                } else {
                    assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
                }
                client.release(&web.port).await.unwrap();
            }
        });
    });
}

#[test]
fn guests_of_two_networks_do_not_reach_each_other() {
    for filter in ["0", "1"] {
        with_nft(move || {
            bridge_filter(filter);
            let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
            lan.serves(80);
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                for (one, other) in
                    [(Kind::Nat, Kind::HostOnly), (Kind::HostOnly, Kind::Bridged), (Kind::Nat, Kind::Nat)]
                {
                    define(&client, "volt0", "10.50.0.1", one).await.unwrap();
                    define(&client, "volt1", "10.51.0.1", other).await.unwrap();
                    let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
                    let db = Guest::new(&client, "volt1", "vm-db", &["10.51.0.2/24"], &["10.51.0.1"]).await;
                    web.serves(82);
                    db.serves(82);
                    assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
                    let early = "of a network's subnet, by another way";
                    is_dropped("early", early, || web.reaches("10.51.0.2:82").is_some());
                    is_dropped("early", early, || web.pings("10.51.0.1"));
                    is_dropped("early", early, || db.reaches("10.50.0.2:82").is_some());
                    client.release(&web.port).await.unwrap();
                    client.release(&db.port).await.unwrap();
                }
            });
        });
    }
}

/// Of whatever kinds the two are, both ways, and in both families.
#[test]
fn guests_of_two_networks_meet_by_published_ports_alone() {
    for (filter, one, other) in [
        ("0", Kind::Nat, Kind::HostOnly),
        ("1", Kind::Nat, Kind::HostOnly),
        ("0", Kind::HostOnly, Kind::Bridged),
        ("1", Kind::HostOnly, Kind::Bridged),
        ("0", Kind::Bridged, Kind::Nat),
    ] {
        with_nft(move || {
            bridge_filter(filter);
            let _lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let mut guests = Vec::new();
                for (number, kind) in [one, other].into_iter().enumerate() {
                    let (name, net) = (format!("volt{number}"), 50 + number);
                    let [four, six] = [format!("10.{net}.0.1"), format!("fd{net}::1")];
                    let network = define_both(&client, &name, &four, &format!("{six}/64"), kind).await.unwrap();
                    let own = [format!("10.{net}.0.2/24"), format!("fd{net}::2/64")];
                    let own = own.each_ref().map(String::as_str);
                    let workload = format!("vm-{number}");
                    let guest = Guest::new(&client, &name, &workload, &own, &[&four, &six]).await;
                    guest.serves(82);
                    let port = 8080 + number as u16;
                    for socket in [given::tcp(&format!("0.0.0.0:{port}")), given::tcp6(port)] {
                        publish(&client, &network, &workload, vec![socket], 82).await.unwrap();
                    }
                    guests.push(guest);
                }
                for (from, to) in [(0, 1), (1, 0)] {
                    let (guest, net) = (&guests[from], 50 + to);
                    let early = "of a network's subnet, by another way";
                    for direct in
                        [format!("10.{net}.0.2:82"), format!("[fd{net}::2]:82"), format!("10.{net}.0.1:808{to}")]
                    {
                        is_dropped("early", early, || guest.reaches(&direct).is_some());
                    }
                    for gateway in [format!("10.{net}.0.1"), format!("fd{net}::1")] {
                        is_dropped("early", early, || guest.pings(&gateway));
                    }
                    assert_eq!(
                        guest.seen_as(&format!("192.0.2.1:808{to}")),
                        format!("10.{net}.0.1"),
                        "{one:?} {other:?}"
                    );
                    assert_eq!(
                        guest.seen_as(&format!("[fd99::1]:808{to}")),
                        format!("fd{net}::1"),
                        "{one:?} {other:?}"
                    );
                }
            });
        });
    }
}

#[test]
fn what_a_network_does_not_lead_to_any_more_ends_at_once() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        lan.run(|| {
            let listener = std::net::TcpListener::bind("0.0.0.0:80").unwrap();
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..length]).unwrap();
                }
            });
        });
        let netmgr = Netmgr::start();
        run(async {
            use std::io::{Read, Write};
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            let mut stream = web.run(|| std::net::TcpStream::connect("192.0.2.2:80").unwrap());
            let mut echo = [0; 1];
            stream.write_all(b"a").unwrap();
            stream.read_exact(&mut echo).unwrap();
            define(&client, "volt0", "10.50.0.1", Kind::Bridged).await.unwrap();
            let out = "to the outside, from a network that has no way there";
            let before = dropped("outwards", out);
            stream.write_all(b"b").unwrap();
            settle("it is dropped", || dropped("outwards", out) > before).await;
            // And it is let out again, as TCP tries until then.
            define(&client, "volt0", "10.50.0.1", Kind::Nat).await.unwrap();
            stream.read_exact(&mut echo).unwrap();
            assert_eq!(&echo, b"b");
        });
    });
}

#[test]
fn flushed_rules_and_a_killed_netmgr_change_nothing_of_what_guests_reach() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        lan.serves(80);
        lan.ip("route add 10.50.0.0/24 via 192.0.2.1");
        serve(81);
        let nft = |command: &str| {
            let output = Command::new("nft").args(command.split(' ')).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let table = || {
            // There is none for a moment.
            let listed = Command::new("nft").args(["-s", "list", "table", "inet", "volt-vmm"]).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            // Who has connections, and has begun some, the kernel puts there.
            listed
                .lines()
                .filter(|line| {
                    let of_kernel = line.contains("ct count") || line.contains("limit rate");
                    !(line.contains("elements = ") && of_kernel)
                })
                .collect::<Vec<_>>()
                .join("\n")
        };
        let mut netmgr = Netmgr::start();
        let guest = run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            web.serves(82);
            let whole = table();
            for harm in [
                "flush ruleset",
                "delete table inet volt-vmm",
                "flush set inet volt-vmm closed",
                "flush chain inet volt-vmm input",
            ] {
                nft("add table inet stranger");
                nft("add table ip6 volt-vmm");
                nft(harm);
                settle(harm, || table() == whole).await;
                if harm != "flush ruleset" {
                    nft("list table inet stranger");
                    nft("list table ip6 volt-vmm");
                }
                assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
                is_dropped("services", "to the host", || web.reaches("10.50.0.1:81").is_some());
            }
            netmgr.kill();
            // Without one, all is as it was.
            assert_eq!(table(), whole);
            assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
            (web, whole)
        });
        nft("flush ruleset");
        let next = Netmgr::start();
        let (web, whole) = guest;
        assert_eq!(table(), whole);
        run(async {
            let client = next.connect().await;
            assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
            is_dropped("services", "to the host", || web.reaches("10.50.0.1:81").is_some());
            is_dropped("early", "of a network's subnet, by another way", || lan.reaches("10.50.0.2:82").is_some());
            let network = client.network("volt0").await.unwrap();
            let answer = client.connection.call("look", DEADLINE, network.info_request().send()).await.unwrap();
            let config = answer.get().unwrap().get_info().unwrap().get_config().unwrap();
            assert!(config.get_nat() && config.get_kind() == Ok(schema::network_capnp::NetworkKind::HostOnly));
        });
    });
}

#[test]
fn guest_has_as_many_connections_as_one_source_may_and_the_host_has_its_own() {
    with_nft(|| {
        const MOST: u32 = 2048;
        let lan = Place::lan(&["192.0.2.1/24"], &["192.0.2.2/24"]);
        lan.serves(80);
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, "volt0", "10.50.0.1", Kind::HostOnly).await.unwrap();
            let web = Guest::new(&client, "volt0", "vm-web", &["10.50.0.2/24"], &["10.50.0.1"]).await;
            let db = Guest::new(&client, "volt0", "vm-db", &["10.50.0.3/24"], &["10.50.0.1"]).await;
            assert_eq!(web.seen_as("192.0.2.2:80"), "192.0.2.1");
            let held = || -> u32 {
                std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
            };
            let limit = "more connections than one source may have";
            // None of them is over before the last has begun, however slow this machine is.
            std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "3600").unwrap();
            let end = std::time::Instant::now() + testkit::wait::PATIENCE;
            // What the relay cannot take is lost, and tried again.
            while dropped("forward", limit) == 0 {
                assert!(std::time::Instant::now() < end, "it has {} of them", held());
                web.run(|| {
                    let socket = std::net::UdpSocket::bind("10.50.0.2:5000").unwrap();
                    for port in 10_000..13_000 {
                        let _ = socket.send_to(b"x", ("192.0.2.2", port));
                        if port % 50 == 0 {
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                    }
                });
            }
            assert!((MOST - 48..MOST + 48).contains(&held()), "{}", held());
            assert!(web.reaches("192.0.2.2:80").is_none());
            // No other has fewer for that, nor the host.
            assert_eq!(db.seen_as("192.0.2.2:80"), "192.0.2.1");
            assert!(reaches("192.0.2.2:80".parse().unwrap(), testkit::wait::PATIENCE).is_some());
        });
    });
}

/// How long a segment a connection has, at most.
fn longest_segment(stream: &std::net::TcpStream) -> i32 {
    let mut segment = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option is an int, which lives through the call, as does its length.
    let got = unsafe {
        use std::os::fd::AsRawFd;
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut segment).cast(),
            &raw mut length,
        )
    };
    assert_eq!(got, 0);
    segment
}

/// Of both ways, whoever begins: with the handshake alone, a way that takes less than the cards say would be found to be in order.
#[test]
fn segments_are_as_long_as_the_way_to_the_outside_takes_and_all_of_many_arrive_both_ways() {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };
    const BYTES: usize = 10 << 20;
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
        // What is longer does not go through, either way, and who is there does not know.
        ip("link set up0 mtu 1420");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::HostOnly).await.unwrap();
            let (both, gateways) = (["10.50.0.2/24", "fd50::2/64"], ["10.50.0.1", "fd50::1"]);
            let web = Guest::new(&client, "volt0", "vm-web", &both, &gateways).await;
            publish(&client, &network, "vm-web", vec![given::tcp("0.0.0.0:8080")], 82).await.unwrap();
            let inside = web.run(|| TcpListener::bind("0.0.0.0:82").unwrap());
            let outside = lan.run(|| TcpListener::bind("[::]:80").unwrap());
            for (from, to, at, headers) in [
                (&*web, "192.0.2.2:80", &outside, 20 + 20 + 12),
                (&*web, "[fd99::2]:80", &outside, 40 + 20 + 12),
                (&lan, "192.0.2.1:8080", &inside, 20 + 20 + 12),
            ] {
                let one = from.run(move || TcpStream::connect(to).unwrap());
                let (other, _) = at.accept().unwrap();
                for stream in [&one, &other] {
                    stream.set_read_timeout(Some(testkit::wait::PATIENCE)).unwrap();
                    // Of IP, of TCP, and of its time stamps.
                    assert_eq!(longest_segment(stream), 1420 - headers, "{to}");
                }
                for (mut here, mut there) in [(&one, &other), (&other, &one)] {
                    let sent: Vec<u8> = (0..BYTES).map(|at| (at / 251) as u8).collect();
                    std::thread::scope(|scope| {
                        scope.spawn(|| here.write_all(&sent).unwrap());
                        let mut heard = vec![0; BYTES];
                        there.read_exact(&mut heard).unwrap();
                        assert!(heard == sent, "{to}");
                    });
                }
            }
            // What cannot be cut is said to be too long, by the host, to who has sent it.
            let asks = web.run(|| {
                let socket = std::net::UdpSocket::bind("10.50.0.2:5000").unwrap();
                let whole = libc::IP_PMTUDISC_DO;
                // SAFETY: the option is one int, which outlives the call.
                let set = unsafe {
                    use std::os::fd::AsRawFd;
                    let option = libc::IP_MTU_DISCOVER;
                    libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, (&raw const whole).cast(), 4)
                };
                assert_eq!(set, 0);
                socket
            });
            settle("it is told", || {
                let sent = asks.send_to(&[0; 1400], "192.0.2.2:9");
                sent.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
            })
            .await;
        });
    });
}

/// The host's way out is by a router that it has heard of: one that forwards hears none, unless it is told to, and forgets those that it knows.
#[test]
fn host_that_forwards_for_a_network_keeps_the_router_that_it_has_heard_of_and_goes_on_hearing_it() {
    with_nft(|| {
        let lan = Place::lan(&["192.0.2.1/24", "fd99::1/64"], &["192.0.2.2/24", "fd99::2/64"]);
        std::fs::write("/proc/sys/net/ipv6/conf/up0/accept_ra", "1").unwrap();
        let way_out = || ip("-6 route show default").contains(" dev up0 proto ra ");
        let hears = || {
            let sent = lan.run(|| advertise("eth0", "fd98::"));
            std::thread::sleep(std::time::Duration::from_millis(20));
            sent && way_out()
        };
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            eventually("it has heard of a router", hears);
            define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::HostOnly).await.unwrap();
            assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap(), "1\n");
            assert!(way_out());
            ip("-6 route del default");
            assert!(!way_out());
            eventually("it hears it", hears);
        });
    });
}

#[test]
fn network_that_leads_outward_without_a_gateway_is_refused() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            for kind in [Kind::Nat, Kind::HostOnly] {
                let refused = define(&client, "volt0", "", kind).await.err().unwrap();
                assert_eq!(refused.code, ipc::Code::InvalidArgument);
                assert!(refused.to_string().contains("has one; give it"), "{refused}");
            }
            assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "0\n");
            assert_eq!(client.networks().await.unwrap(), Vec::<String>::new());
        });
    });
}

/// What a host-only network is in IPv4, it is in IPv6.
#[test]
fn host_only_guest_has_in_ipv6_what_it_has_in_ipv4() {
    for filter in ["0", "1"] {
        with_nft(move || {
            bridge_filter(filter);
            let lan = Place::lan(&["fd99::1/64", "192.0.2.1/24"], &["fd99::2/64", "192.0.2.2/24"]);
            lan.serves(80);
            serve(81);
            lan.ip("-6 route add fd50::/64 via fd99::1");
            let setting = |name: &str| {
                let path = format!("/proc/sys/net/ipv6/conf/{name}");
                std::fs::read_to_string(path).unwrap().trim().to_owned()
            };
            std::fs::write("/proc/sys/net/ipv6/conf/up0/accept_ra", "1").unwrap();
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                define(&client, "volt9", "10.59.0.1", Kind::Nat).await.unwrap();
                assert_eq!(setting("all/forwarding"), "0", "nobody wants it");
                define_both(&client, "volt0", "10.50.0.1", "fd50::1/64", Kind::HostOnly).await.unwrap();
                // The host's own way out may be by a router that it has heard of there.
                assert_eq!([setting("all/forwarding"), setting("up0/accept_ra")], ["1", "2"]);
                assert_eq!(setting("volt0/accept_ra"), "0");
                define_both(&client, "volt1", "10.51.0.1", "fd51::1/64", Kind::Nat).await.unwrap();
                let addresses = ["10.50.0.2/24", "fd50::2/64"];
                let web = Guest::new(&client, "volt0", "vm-web", &addresses, &["10.50.0.1", "fd50::1"]).await;
                let db = Guest::new(&client, "volt1", "vm-db", &["fd51::2/64"], &["fd51::1"]).await;
                web.serves(82);
                for (to, seen) in [("[fd99::2]:80", "fd99::1"), ("192.0.2.2:80", "192.0.2.1")] {
                    assert_eq!(web.seen_as(to), seen);
                }
                assert_eq!(db.seen_as("[fd99::2]:80"), "fd99::1");
                assert_eq!(db.seen_as("[fd51::1]:81"), "fd51::2");
                for host in ["[fd50::1]:81", "[fd99::1]:81", "10.50.0.1:81"] {
                    is_dropped("services", "to the host", || web.reaches(host).is_some());
                }
                assert!(web.pings("fd50::1") && web.pings("fd99::2"));
                let early = "of a network's subnet, by another way";
                for (place, to) in
                    [(&lan, "[fd50::2]:82"), (&lan, "[fd50::1]:81"), (&*db, "[fd50::2]:82"), (&*db, "[fd50::1]:81")]
                {
                    is_dropped("early", early, || place.reaches(to).is_some());
                }
                assert_eq!(
                    reaches("[fd50::2]:82".parse().unwrap(), testkit::wait::PATIENCE),
                    Some("fd50::1".parse().unwrap())
                );
            });
        });
    }
}
