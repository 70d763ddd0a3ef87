//! Veths: made in a namespace that is handed over, used, and gone with whatever they are tied to; and what is handed over in place of what should be.
//! Runs the program as root, each test in a network namespace of its own, with containers that are namespaces beside it.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::*;
use ipc::Code;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use schema::network_capnp::port_factory::create_veth_params;
use testrig::container::{Guest, connect, route_socket, send_frame};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

fn set_list(list: &[&str], mut to: capnp::text_list::Builder<'_>) {
    (0..).zip(list).for_each(|(at, text)| to.set(at, text));
}

/// With one address, and a default route.
fn usual(address: &str) -> impl FnOnce(create_veth_params::Builder<'_>) {
    move |mut asked| {
        asked.set_mac(&MAC);
        set_list(&[address], asked.reborrow().init_addresses(1));
        set_list(&["0.0.0.0/0"], asked.init_routes(1));
    }
}

/// Elements of the rules that are about an interface.
fn rules_of(interface: &str) -> usize {
    let listed = std::process::Command::new("nft").args(["list", "table", "bridge", "volt-vmm"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap().matches(interface).count()
}

#[test]
fn container_has_what_it_was_given_and_its_port_is_as_a_guest_s() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define("volt0", "10.42.0.1", 24, 1400).await.unwrap();
            let factory = client.factory(&network, 1).await.unwrap();
            let container = Container::new();
            let (port, sturdy_ref) = client
                .veth(&factory, "container-db", &container, |mut asked| {
                    asked.set_mac(&MAC);
                    set_list(&["10.42.0.9", "fd00::9"], asked.reborrow().init_addresses(2));
                    set_list(&["0.0.0.0/0", "10.99.0.0/16"], asked.init_routes(2));
                })
                .await
                .unwrap();
            assert_eq!(sturdy_ref, [0; 0]);
            let host = interface("veth-db-h").unwrap();
            assert_eq!(text(&host, "master"), "volt0");
            let mark = text(&host, "ifalias");
            assert!(mark.starts_with("volt-vmm port container-db 02:00:00:00:00:0c volt0 1400 - 4"), "{mark}");
            assert_eq!(text(&host, "address"), "fe:00:00:00:00:0c");
            assert_eq!(
                (&host["mtu"], has_flag(&host, "UP"), text(&host, "group")),
                (&1400.into(), true, "default".into())
            );
            assert_eq!(addresses(&host), [""; 0]);
            let of_bridge = &host["linkinfo"]["info_slave_data"];
            assert_eq!((&of_bridge["learning"], &of_bridge["flood"]), (&false.into(), &false.into()));
            assert!(rules_of("veth-db-h") > 0);

            let inside: serde_json::Value = serde_json::from_str(&container.ip("-j -d addr show eth0")).unwrap();
            let inside = &inside[0];
            assert_eq!((text(inside, "address").as_str(), &inside["mtu"]), ("02:00:00:00:00:0c", &1400.into()));
            assert!(has_flag(inside, "UP") && has_flag(inside, "LOWER_UP"));
            let has = addresses(inside);
            assert!(has.contains(&"10.42.0.9/24".into()) && has.contains(&"fd00::9/64".into()), "{has:?}");
            assert!(container.ip("-j link show eth0").contains("veth-db-c"));
            assert!(container.ip("-j link show lo").contains("\"UP\""));
            let routes = container.ip("route show");
            assert!(
                routes.contains("default via 10.42.0.1") && routes.contains("10.99.0.0/16 via 10.42.0.1"),
                "{routes}"
            );
            let (behind, another) = (Container::new(), client.factory(&network, 1).await.unwrap());
            let behind_a_router = client.veth(&another, "container-behind", &behind, |mut asked| {
                set_list(&["10.42.0.10", "fd00::10"], asked.reborrow().init_addresses(2));
                asked.set_router("10.42.0.254");
                set_list(&["0.0.0.0/0"], asked.init_routes(1));
            });
            let (other, _) = behind_a_router.await.unwrap();
            assert!(behind.ip("route show").contains("default via 10.42.0.254"));
            client.release(&other).await.unwrap();

            let info = client.port(&port).await.unwrap();
            assert_eq!((info.workload.as_str(), info.interface.as_str()), ("container-db", "veth-db-h"));
            assert_eq!((info.mac.as_slice(), info.mtu, &host["ifindex"]), (&MAC[..], 1400, &info.index.into()));
            assert_eq!(info.addresses, ["10.42.0.9", "fd00::9"]);
            let fault = client.fd(&port).await.err().unwrap();
            assert!(fault.code == Code::WrongState && fault.to_string().contains("no TAP"), "{fault}");
            container.pings([10, 42, 0, 1]);
        });
    });
}

#[test]
fn container_and_guest_ping_each_other_by_address_and_neither_is_another() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 4).await.unwrap();
            let container = Container::new();
            let _c = client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            let mac = [2, 0, 0, 0, 0, 0xd];
            let port = client.tap_from(&factory, "vm-web", &mac, &["10.42.0.10"]).await.unwrap();
            let guest = Guest::behind(client.fd(&port).await.unwrap(), "02:00:00:00:00:0d", "10.42.0.10");
            container.pings([10, 42, 0, 10]);
            guest.inside.pings([10, 42, 0, 9]);
            drop(guest);

            // What the container sends as another is not heard, and what it sends as itself is.
            let port = client.tap_from(&factory, "vm-ear", &[2, 0, 0, 0, 0, 0xe], &["10.42.0.11"]).await.unwrap();
            let ear = client.fd(&port).await.unwrap();
            forwards("tap-ear").await;
            forwards("veth-db-h").await;
            // ARP (RFC 826), with the number of the frame as what is asked for.
            let frame = |mac: &[u8; 6], inner: &[u8; 6], address: u8, number: u8| {
                let head =
                    [&[0xff; 6][..], mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], inner, &[10, 42, 0, address]].concat();
                [&head[..], &[0, 0, 0, 0, 0, 0, 10, 42, 0, number]].concat()
            };
            container.within(|| {
                send_frame("eth0", &frame(&mac, &mac, 10, 101));
                send_frame("eth0", &frame(&MAC, &mac, 10, 102));
                send_frame("eth0", &frame(&MAC, &MAC, 10, 103));
                send_frame("eth0", &frame(&MAC, &MAC, 1, 104));
                // From another address, by IPv4.
                let spoofed = [
                    &[0xff; 6][..],
                    &MAC,
                    &[8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 99, 0, 0],
                    &[10, 42, 0, 10],
                    &[0xff; 4],
                ];
                send_frame("eth0", &spoofed.concat());
                send_frame("eth0", &frame(&MAC, &MAC, 9, 105));
            });
            let (mut heard, mut buffer) = (Vec::new(), [0; 2048]);
            eventually("what came last has come", || {
                if let Ok(length) = rustix::io::read(&ear, &mut buffer[..]) {
                    let frame = &buffer[12..length];
                    match frame[12..14] {
                        [8, 6] if frame[38..41] == [10, 42, 0] && frame[41] > 100 => heard.push(frame[41]),
                        [8, 0] if frame[23] == 99 => heard.push(99),
                        _ => {}
                    }
                }
                heard.last() == Some(&105)
            });
            assert_eq!(heard, [105]);
        });
    });
}

#[test]
fn holder_s_end_takes_it_away_from_host_and_container_and_so_does_the_namespace_s() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            let container = Container::new();
            let gone = || interfaces() == ["volt0"] && rules_of("veth-db-h") == 0;
            // Released, dropped, and the connection's end: each takes the place in the quota with it.
            let (port, _) = client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            client.release(&port).await.unwrap();
            assert!(gone());
            assert_eq!(container.ip("-o link show").lines().count(), 1, "lo");
            let (port, _) = client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            drop(port);
            // It is in nobody's way meanwhile, in the container either.
            let (port, _) = client.veth(&factory, "container-other", &container, usual("10.42.0.9")).await.unwrap();
            drop(port);
            settle("the veth is gone", || gone() && rules_of("veth-other-h") == 0).await;
            let holder = netmgr.connect().await;
            let of_holder = holder.factory(&holder.network("volt0").await.unwrap(), 1).await.unwrap();
            let _port = holder.veth(&of_holder, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            drop((holder, of_holder, _port));
            settle("the veth is gone", gone).await;

            // And its holder is told that the container has gone.
            let (port, _) = client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            drop(container);
            let why = client.lost(&port).await.unwrap();
            assert!(why.contains("network namespace has ended"), "{why}");
            settle("the veth is gone", gone).await;
            assert!(client.info(&network).await.unwrap().ports.is_empty());
            assert_eq!(code(client.port(&port).await), Some(Code::Revoked));
            let again = Container::new();
            client.veth(&factory, "container-db", &again, usual("10.42.0.9")).await.unwrap();
        });
    });
}

/// Of the kernel, which tells of the namespace's end a moment later than the next container of that name may come.
#[test]
fn container_that_comes_back_at_once_has_its_port_again() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 8).await.unwrap();
            let mut ports = Vec::new();
            for _ in 0..5 {
                let container = Container::new();
                ports.push(client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap());
                drop(container);
                settle("the veth is gone", || interface("veth-db-h").is_none()).await;
            }
        });
    });
}

fn attach_filter(socket: &OwnedFd) {
    // One that keeps nothing.
    let code = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: (&raw const code).cast_mut() };
    // SAFETY: the program and its one instruction live through the call.
    let set = unsafe {
        let length = size_of::<libc::sock_fprog>() as u32;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    assert_eq!(set, 0);
}

#[test]
fn descriptors_that_are_not_what_they_should_be_are_refused_by_name_and_leave_nothing() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            let (container, other) = (Container::new(), Container::new());
            let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            let file: OwnedFd = tempfile::tempfile().unwrap().into();
            let uts = std::fs::File::open("/proc/self/ns/uts").unwrap();
            let (pipe, _write) = rustix::pipe::pipe().unwrap();
            let unix = net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
            let udp = container.within(|| {
                net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap()
            });
            let netfilter = container.within(|| {
                let protocol = Some(net::netlink::NETFILTER);
                net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap()
            });
            let connected = container.socket();
            connect(connected.as_fd(), 77);
            let mute = container.socket();
            attach_filter(&mute);
            let used = container.socket();
            // Hears of what changes, and has not read it: as much as it holds, and more.
            rustix::net::bind(&used, &net::netlink::SocketAddrNetlink::new(0, 1)).unwrap();
            let full = container.socket();
            rustix::net::bind(&full, &net::netlink::SocketAddrNetlink::new(0, 1)).unwrap();
            net::sockopt::set_socket_recv_buffer_size(&full, 1024).unwrap();
            for _ in 0..20 {
                container.ip("link set lo up");
                container.ip("link set lo down");
            }
            // Opened by one who may not.
            let powerless = container.within(|| testkit::user::as_user(65_534, route_socket).join().unwrap());
            let good = container.socket();
            let socket = |fd: &OwnedFd| fd.try_clone().unwrap();
            let cases: [(&str, OwnedFd, OwnedFd, Code, &str); 14] = [
                ("a file", file.try_clone().unwrap(), socket(&good), Code::InvalidArgument, "netns"),
                ("another's", other.0.try_clone().unwrap(), socket(&good), Code::InvalidArgument, "netns"),
                ("another kind of namespace", uts.into(), socket(&good), Code::InvalidArgument, "netns"),
                ("netmgr's own", own.try_clone().unwrap().into(), socket(&good), Code::InvalidArgument, "netns"),
                ("netmgr's own, both", own.into(), route_socket(), Code::InvalidArgument, "namespace of the bridges"),
                ("a file for a socket", container.0.try_clone().unwrap(), file, Code::InvalidArgument, "no socket"),
                ("a pipe", container.0.try_clone().unwrap(), pipe, Code::InvalidArgument, "no socket"),
                ("a Unix socket", container.0.try_clone().unwrap(), unix, Code::InvalidArgument, "NETLINK_ROUTE"),
                ("UDP", container.0.try_clone().unwrap(), udp, Code::InvalidArgument, "NETLINK_ROUTE"),
                (
                    "another netlink",
                    container.0.try_clone().unwrap(),
                    netfilter,
                    Code::InvalidArgument,
                    "NETLINK_ROUTE",
                ),
                ("connected", container.0.try_clone().unwrap(), connected, Code::InvalidArgument, "connected"),
                ("used", container.0.try_clone().unwrap(), used, Code::InvalidArgument, "waits to be read"),
                ("full", container.0.try_clone().unwrap(), full, Code::InvalidArgument, "waits to be read"),
                ("mute", container.0.try_clone().unwrap(), mute, Code::Unavailable, "nothing is heard"),
            ];
            let before = (interfaces(), container.ip("-o link show").lines().count());
            for (what, netns, netlink, expected, said) in cases {
                let refused = client.veth_by(&factory, "container-db", netns, netlink, usual("10.42.0.9")).await;
                let fault = refused.err().unwrap_or_else(|| panic!("{what} was taken"));
                assert_eq!(fault.code, expected, "{what}: {fault}");
                assert!(fault.to_string().contains(said), "{what}: {fault}");
                assert_eq!((interfaces(), container.ip("-o link show").lines().count()), before, "{what}");
                assert_eq!(rules_of("veth-db-h"), 0, "{what}");
            }
            let refused = client.veth_by(&factory, "container-db", &container.0, powerless, usual("10.42.0.9")).await;
            let fault = refused.err().unwrap();
            assert!(
                fault.code == Code::PermissionDenied && fault.to_string().contains("CAP_NET_ADMIN there"),
                "{fault}"
            );
            assert_eq!(interfaces(), before.0);
            // Tokens: unknown, and used.
            let mut request = factory.create_veth_request();
            request.get().set_workload("container-db");
            let fault = client.connection.call("make a veth", DEADLINE, request.send()).await.err().unwrap();
            assert_eq!(fault.code, Code::BadToken);
            // None of them was counted, and nothing of netmgr's is in doubt.
            client.veth_by(&factory, "container-db", &container.0, good, usual("10.42.0.9")).await.unwrap();
        });
    });
}

#[test]
fn what_cannot_be_had_within_is_refused_by_name_and_leaves_nothing_on_either_side() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            let container = Container::new();
            container.ip("link add taken type bridge");
            container.ip("addr add 192.0.2.1/24 dev taken");
            container.ip("link set taken up");
            container.ip("route add 10.99.0.0/16 dev taken");
            let before = container.ip("-o link show").lines().count();
            type Change = Box<dyn FnOnce(create_veth_params::Builder<'_>)>;
            let address = |asked: create_veth_params::Builder<'_>| set_list(&["10.42.0.9"], asked.init_addresses(1));
            let router = |text: &'static str| move |mut asked: create_veth_params::Builder<'_>| asked.set_router(text);
            let routes = |list: &'static [&'static str]| {
                move |mut asked: create_veth_params::Builder<'_>| {
                    set_list(&["10.42.0.9"], asked.reborrow().init_addresses(1));
                    set_list(list, asked.init_routes(list.len() as u32));
                }
            };
            let name =
                |name: &'static str| move |mut asked: create_veth_params::Builder<'_>| asked.set_inside_name(name);
            let cases: [(Change, Code, &str); 12] = [
                (Box::new(name("taken")), Code::Conflict, "taken within"),
                (Box::new(name("lo")), Code::Conflict, "lo within"),
                (Box::new(name("")), Code::InvalidArgument, "name of the interface within"),
                (Box::new(name("../eth0")), Code::InvalidArgument, "name of the interface within"),
                (Box::new(name("sixteen-bytes-is")), Code::InvalidArgument, "name of the interface within"),
                (Box::new(routes(&["10.99.0.0/16"])), Code::Conflict, "lead 10.99.0.0/16"),
                (Box::new(routes(&["10.99.0.1/16"])), Code::InvalidArgument, "CIDR"),
                (Box::new(router("10.43.0.9")), Code::InvalidArgument, "router"),
                (Box::new(router("10.42.0.255")), Code::InvalidArgument, "router"),
                (Box::new(router("fd00::1")), Code::InvalidArgument, "no IPv4"),
                (Box::new(routes(&["10.1.0.0/16"; 17])), Code::InvalidArgument, "16 at most"),
                (
                    Box::new(|asked| set_list(&["0.0.0.0/0"], asked.init_routes(1))),
                    Code::InvalidArgument,
                    "no address of that family",
                ),
            ];
            for (change, expected, said) in cases {
                let fault = client.veth(&factory, "container-db", &container, change).await.err().unwrap();
                assert!(fault.code == expected && fault.to_string().contains(said), "{said}: {fault}");
                assert_eq!(
                    (interfaces(), container.ip("-o link show").lines().count()),
                    (vec!["volt0".into()], before)
                );
                assert_eq!(rules_of("veth-db-h"), 0, "{said}");
            }
            // What stands in the way on the host: another's interface, which stays; and the workload's own port.
            ip("link add veth-db-h type veth peer up1");
            let fault = client.veth(&factory, "container-db", &container, address).await.err().unwrap();
            assert_eq!(fault.code, Code::Conflict, "{fault}");
            assert!(interface("veth-db-h").is_some());
            ip("link delete veth-db-h");
            let (_port, _) = client.veth(&factory, "container-db", &container, address).await.unwrap();
            let second = Container::new();
            let more = client.factory(&network, 4).await.unwrap();
            let fault = client.veth(&more, "container-db", &second, address).await.err().unwrap();
            assert_eq!(fault.code, Code::AlreadyExists, "{fault}");
            let fault = client.veth(&more, "container-b", &second, address).await.err().unwrap();
            assert!(fault.code == Code::AlreadyExists && fault.to_string().contains("10.42.0.9"), "{fault}");
            let fault = client.veth(&factory, "container-b", &second, |_| ()).await.err().unwrap();
            assert_eq!(fault.code, Code::Exhausted, "{fault}");
            assert_eq!(second.ip("-o link show").lines().count(), 1);
        });
    });
}

fn durable(address: &str) -> impl FnOnce(create_veth_params::Builder<'_>) {
    move |mut asked| {
        asked.set_durable(true);
        usual(address)(asked);
    }
}

#[test]
fn durable_port_stays_over_its_holder_and_netmgr_and_is_restored_by_its_reference_alone() {
    in_own_network(|| {
        let container = Container::new();
        let netmgr = Netmgr::start();
        let (sturdy_ref, index, other_ref) = run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 2).await.unwrap();
            let (port, sturdy_ref) =
                client.veth(&factory, "container-db", &container, durable("10.42.0.9")).await.unwrap();
            assert_eq!(sturdy_ref.len(), 32);
            let index = client.port(&port).await.unwrap().index;
            let other = Container::new();
            let (_other, other_ref) = client
                .veth(&factory, "container-other", &other, |mut asked| {
                    asked.set_durable(true);
                    asked.set_mac(&[2, 0, 0, 0, 0, 0xf]);
                })
                .await
                .unwrap();
            drop((port, factory, client));
            // Its hash is what the host shows, and not itself.
            let shown = ip("-j -d link show");
            let hex: String = sturdy_ref.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(shown.contains("volt-ref-") && !shown.contains(&hex));
            // The last connection has gone; another holder's end takes nothing of it either.
            let client = netmgr.connect().await;
            let network = client.network("volt0").await.unwrap();
            let port = client.restore(&network, &sturdy_ref).await.unwrap();
            drop(port);
            assert_eq!(client.info(&network).await.unwrap().ports.len(), 2);
            (sturdy_ref, index, other_ref)
        });
        drop(netmgr);
        eventually("the other container's port has gone with it", || interface("veth-other-h").is_none());
        // Killed; and the next one has the rules, the entry and the reference again.
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.network("volt0").await.unwrap();
            container.pings([10, 42, 0, 1]);
            assert!(rules_of("veth-db-h") > 0 && rules_of("veth-other-h") == 0);
            for wrong in [&other_ref[..], &[0; 32], &sturdy_ref[..31], &[], &[&sturdy_ref[..], &[0]].concat()] {
                assert_eq!(code(client.restore(&network, wrong).await), Some(Code::NotFound));
            }
            let elsewhere = client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            assert_eq!(code(client.restore(&elsewhere, &sturdy_ref).await), Some(Code::NotFound));
            assert_eq!(code(client.durable(&elsewhere, "container-db").await), Some(Code::NotFound));
            let port = client.restore(&network, &sturdy_ref).await.unwrap();
            let info = client.port(&port).await.unwrap();
            assert_eq!(
                (info.workload.as_str(), info.index, info.addresses),
                ("container-db", index, vec!["10.42.0.9".into()])
            );
            // In the way of a second one, of whatever kind.
            let factory = client.factory(&network, 2).await.unwrap();
            let second = Container::new();
            let refused = client.veth(&factory, "container-db", &second, |_| ()).await;
            assert_eq!(code(refused), Some(Code::AlreadyExists));
            assert_eq!(code(client.tap(&factory, "container-db").await), Some(Code::AlreadyExists));
            // Cancelled, by whoever has it, for all who do.
            let same = client.durable(&network, "container-db").await.unwrap();
            client.release(&same).await.unwrap();
            assert_eq!(code(client.port(&port).await), Some(Code::Revoked));
            assert_eq!(code(client.restore(&network, &sturdy_ref).await), Some(Code::NotFound));
            assert!(interface("veth-db-h").is_none() && rules_of("veth-db-h") == 0);
        });
    });
}

#[test]
fn durable_port_ends_with_its_namespace_whether_or_not_netmgr_sees_it_and_its_elements_with_it() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start();
        let (container, second) = (Container::new(), Container::new());
        let make = async |client: &Client, container: &Container| {
            let network = client.define_default().await;
            let factory = client.factory(&network, 2).await.unwrap();
            client.veth(&factory, "container-db", container, durable("10.42.0.9")).await.unwrap()
        };
        run(async {
            let client = netmgr.connect().await;
            let (port, sturdy_ref) = make(&client, &container).await;
            drop(container);
            assert!(client.lost(&port).await.unwrap().contains("network namespace has ended"));
            settle("the rules are", || rules_of("veth-db-h") == 0).await;
            let network = client.network("volt0").await.unwrap();
            assert_eq!(code(client.restore(&network, &sturdy_ref).await), Some(Code::NotFound));
            make(&client, &second).await;
        });
        netmgr.kill();
        drop(second);
        eventually("the port has gone", || interface("veth-db-h").is_none());
        assert!(rules_of("veth-db-h") > 0, "nobody has seen it");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.network("volt0").await.unwrap();
            assert!(client.info(&network).await.unwrap().ports.is_empty());
            assert_eq!(rules_of("veth-db-h"), 0);
            client.remove("volt0").await.unwrap();
        });
    });
}

#[test]
fn tenant_s_factory_makes_no_durable_ports_and_its_others_end_with_it() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let tenant = client.tenant("acme", 4).await.unwrap();
            let factory = client.tenant_factory(&tenant, "volt0").await.unwrap();
            let container = Container::new();
            let fault = client.veth(&factory, "container-db", &container, durable("10.42.0.9")).await.err().unwrap();
            assert_eq!(fault.code, Code::PermissionDenied, "{fault}");
            assert_eq!(container.ip("-o link show").lines().count(), 1);
            let (_port, _) = client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            drop(tenant);
            settle("the tenant's port is gone", || interface("veth-db-h").is_none()).await;
            // One that is bound is no durable one by its name either.
            let network = client.network("volt0").await.unwrap();
            let factory = client.factory(&network, 1).await.unwrap();
            let (_port, _) = client.veth(&factory, "container-db", &container, usual("10.42.0.9")).await.unwrap();
            assert_eq!(code(client.durable(&network, "container-db").await), Some(Code::NotFound));
            assert_eq!(code(client.durable(&network, "Container").await), Some(Code::InvalidArgument));
        });
    });
}

/// At moments between the first request and long after the last.
#[test]
fn netmgr_that_is_killed_at_any_moment_leaves_a_whole_veth_or_none_once_there_is_another() {
    in_own_network(|| {
        for moment in 0..24 {
            let mut netmgr = Netmgr::start();
            let container = Container::new();
            run(async {
                let client = netmgr.connect().await;
                let network = client.define_default().await;
                let factory = client.factory(&network, 1).await.unwrap();
                let work = client.veth(&factory, "container-db", &container, durable("10.42.0.9"));
                let _ = tokio::time::timeout(std::time::Duration::from_micros(moment * 300), work).await;
                netmgr.kill();
            });
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let network = client.network("volt0").await.unwrap();
                match client.durable(&network, "container-db").await {
                    Ok(port) => {
                        container.pings([10, 42, 0, 1]);
                        client.release(&port).await.unwrap();
                    }
                    Err(fault) => assert_eq!(fault.code, Code::NotFound, "{fault}"),
                }
                assert_eq!(interfaces(), ["volt0"]);
                assert_eq!(container.ip("-o link show").lines().count(), 1, "lo");
                client.remove("volt0").await.unwrap();
            });
        }
    });
}

/// As `netmgr/tests/mending.rs` has it of TAPs.
#[test]
fn what_somebody_changes_about_a_veth_is_changed_back_and_its_carrier_is_the_container_s_own() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            let container = Container::new();
            let _port = client.veth(&factory, "container-db", &container, durable("10.42.0.9")).await.unwrap();
            let reference = || {
                let names = interface("veth-db-h")?["altnames"].as_array()?.first()?.as_str()?.to_owned();
                names.starts_with("volt-ref-").then_some(names)
            };
            let name = reference().unwrap();
            for change in [
                "link set veth-db-h nomaster",
                "link set veth-db-h down",
                &format!("link property del dev veth-db-h altname {name}"),
            ] {
                ip(change);
                let whole = || {
                    let host = interface("veth-db-h");
                    host.is_some_and(|host| {
                        text(&host, "master") == "volt0"
                            && has_flag(&host, "UP")
                            && text(&host, "ifalias").starts_with("volt-vmm port container-db")
                    }) && reference().is_some()
                };
                settle(change, whole).await;
            }
            // Which is no business of netmgr's, and nothing is said or done about it.
            container.ip("link set eth0 down");
            let before = interface("veth-db-h").unwrap();
            container.ip("link set eth0 up");
            container.ip("route replace default via 10.42.0.1");
            container.pings([10, 42, 0, 1]);
            assert_eq!(before["ifindex"], interface("veth-db-h").unwrap()["ifindex"]);
        });
    });
}
