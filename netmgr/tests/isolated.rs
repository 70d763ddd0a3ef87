//! Isolated networks: who reaches whom on one, that the host has nothing of it, what becomes of it when netmgr is killed or something else changes what is in
//! its namespace, and what is handed over in place of what should be. Runs the program as root, each test in a network namespace of its own, which stands for
//! the host, with the networks' and the guests' beside it.

mod common;
mod places;

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::*;
use ipc::{Code, Fault};
use rustix::net::{
    self, AddressFamily, Protocol, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
};
use schema::{
    fd_lane_capnp::fd_token,
    host_capnp::namespace,
    network_capnp::{NetworkKind, network, network_config, port, port_factory},
};
use testkit::wait::PATIENCE;
use testrig::{container::Guest, service::eventually, udp};

/// How long is waited for what must not come.
const NEVER: Duration = Duration::from_millis(200);
const PORT: u16 = 7777;

/// What is handed over, in the order of `Namespace`.
struct Sockets([OwnedFd; 4]);

fn netlink(protocol: Option<Protocol>, groups: &[u32]) -> OwnedFd {
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
    if !groups.is_empty() {
        net::bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
    }
    for group in groups {
        // SAFETY: reads four bytes, which live through the call.
        let joined = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const *group).cast(),
                4,
            )
        };
        assert_eq!(joined, 0);
    }
    socket
}

impl Sockets {
    /// Of the namespace of this thread.
    fn here() -> Sockets {
        let rules = Some(netlink::NETFILTER);
        let sockets =
            [netlink(None, &[]), netlink(rules, &[]), netlink(None, &[1, 3, 5, 7, 9, 11]), netlink(rules, &[7])];
        Sockets(sockets)
    }

    fn of(place: &Container) -> Sockets {
        place.within(Sockets::here)
    }
}

/// Defines a network with what is handed over, or with nothing.
async fn define(
    client: &Client,
    name: &str,
    sockets: Option<&Sockets>,
    change: impl FnOnce(network_config::Builder<'_>),
) -> Result<network::Client, Fault> {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name(name);
    config.set_gateway("10.77.0.1");
    config.set_prefix_length(24);
    config.set_ipv6("fd00:77::1/64");
    config.set_kind(NetworkKind::Isolated);
    change(config);
    if let Some(Sockets(sockets)) = sockets {
        let mut to: namespace::Builder<'_> = request.get().init_within();
        for (at, socket) in (0..).zip(sockets) {
            let token = client.connection.deposit(socket.as_fd()).await?;
            let place: fd_token::Builder<'_> = match at {
                0 => to.reborrow().init_rtnetlink(),
                1 => to.reborrow().init_nfnetlink(),
                2 => to.reborrow().init_link_changes(),
                _ => to.reborrow().init_rule_changes(),
            };
            token.write(place);
        }
    }
    Ok(client.connection.call("define a network", DEADLINE, request.send()).await?.get()?.get_network()?)
}

async fn isolated(client: &Client, name: &str, place: &Container) -> network::Client {
    define(client, name, Some(&Sockets::of(place)), |_| ()).await.unwrap()
}

/// A guest of an isolated network with 10.77.0.N and fd00:77::N, which serves, and takes the first address for a router.
struct Held {
    guest: Guest,
    port: port::Client,
    info: Port,
    number: u8,
}

async fn guest(client: &Client, factory: &port_factory::Client, workload: &str, number: u8) -> Held {
    let (four, six) = (format!("10.77.0.{number}"), format!("fd00:77::{number}"));
    let port = client.tap_from(factory, workload, &[2, 0, 0, 0, 0, number], &[&four, &six]).await.unwrap();
    let (tap, info) = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
    Held { guest: behind(tap, &four, &six, number), port, info, number }
}

fn behind(tap: OwnedFd, four: &str, six: &str, number: u8) -> Guest {
    let guest = Guest::behind(tap, &format!("02:00:00:00:00:{number:02x}"), four);
    guest.inside.ip(&format!("addr add {six}/64 dev eth0 nodad"));
    guest.inside.ip("route add default via 10.77.0.1");
    guest.inside.within(|| places::serve(PORT));
    guest
}

/// Whether one reaches an address, if it must, however long it takes.
fn reaches(from: &Container, to: &str, must: bool) -> bool {
    let to = format!("{to}:{PORT}").parse().unwrap();
    from.within(|| {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let reached = places::reaches(to, NEVER).is_some();
            if reached || !must || std::time::Instant::now() > end {
                return reached;
            }
        }
    })
}

fn reach_each_other(one: &Held, other: &Held) {
    for (from, to) in [(one, other), (other, one)] {
        for to in [format!("10.77.0.{}", to.number), format!("[fd00:77::{}]", to.number)] {
            assert!(reaches(&from.guest.inside, &to, true), "{} does not reach {to}", from.number);
        }
    }
}

/// The interfaces of a namespace, but `lo`.
fn within(place: &Container) -> Vec<String> {
    place.within(interfaces)
}

async fn forged(client: &Client, port: &port::Client) -> u64 {
    let answer = client.connection.call("look", DEADLINE, port.stats_request().send()).await.unwrap();
    answer.get().unwrap().get_stats().unwrap().get_forged_packets()
}

async fn set_policy(client: &Client, network: &network::Client, workload: &str, rules: &[&str]) {
    let mut made = network.policy_request();
    let mut list = made.get().init_rules().init_allow(rules.len() as u32);
    (0..).zip(rules).for_each(|(at, rule)| list.set(at, rule));
    let mut request = network.set_policy_request();
    request.get().set_workload(workload);
    request.get().set_policy(made.send().pipeline.get_policy());
    client.connection.call("set a policy", DEADLINE, request.send()).await.unwrap();
}

#[test]
fn guests_reach_each_other_and_nothing_else_and_the_host_has_nothing_of_it() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let (place, other) = (Container::new(), Container::new());
            let network = isolated(&client, "iso0", &place).await;
            isolated(&client, "iso1", &other).await;
            let bridged = client.define_default().await;
            places::serve(PORT);
            assert_eq!(client.networks().await.unwrap(), ["iso0", "iso1", "volt0"]);
            let info = client.info(&network).await.unwrap();
            assert_eq!((info.gateway.as_str(), info.prefix, info.ipv6.as_str()), ("10.77.0.1", 24, "fd00:77::1/64"));
            let factory = client.factory(&network, 9).await.unwrap();
            let (one, two) =
                (guest(&client, &factory, "vm-one", 11).await, guest(&client, &factory, "vm-two", 12).await);
            assert_eq!(one.info.gateways, [""; 0]);
            // One of the same name and address is on another one, and one on the host's bridge.
            let factory = client.factory(&client.network("iso1").await.unwrap(), 9).await.unwrap();
            let apart = guest(&client, &factory, "vm-one", 11).await;
            let third = guest(&client, &factory, "vm-three", 13).await;
            let factory = client.factory(&bridged, 9).await.unwrap();
            let port = client.tap_from(&factory, "vm-one", &[2, 0, 0, 0, 0, 11], &["10.42.0.9"]).await.unwrap();
            let beside = Guest::behind(client.fd(&port).await.unwrap(), "02:00:00:00:00:0b", "10.42.0.9");
            beside.inside.within(|| places::serve(PORT));

            reach_each_other(&one, &two);
            reach_each_other(&apart, &third);
            assert!(reaches(&beside.inside, "10.42.0.1", true), "it serves");
            // Neither the host, nor what is on it, nor those of the other one.
            for to in ["10.42.0.1", "10.42.0.9", "10.77.0.1", "10.77.0.13", "[fd00:77::1]", "[fd00:77::13]"] {
                assert!(!reaches(&one.guest.inside, to, false), "{to}");
            }
            for to in ["10.77.0.11", "10.77.0.12"] {
                assert!(places::reaches(format!("{to}:{PORT}").parse().unwrap(), NEVER).is_none(), "{to}");
                assert!(!reaches(&beside.inside, to, false), "{to}");
            }
            // Of all that, the host has its own bridge and that port.
            let mut there = interfaces();
            there.sort();
            assert_eq!(there, ["tap-one", "volt0"]);
            assert!(!ip("addr").contains("77") && !ip("route show table all").contains("77"));
            let mut there = within(&place);
            there.sort();
            assert_eq!(there, ["iso0", "tap-one", "tap-two"]);
            let said = place.within(|| interface("iso0").unwrap());
            // No address, not even one of the kernel's own; and of the namespace's rules none is on the host's.
            assert_eq!((addresses(&said), has_flag(&said, "UP")), (Vec::<String>::new(), true));
            assert!(!nft("list ruleset").contains("iso"));

            // What is forged is dropped, as on any network.
            let before = forged(&client, &one.port).await;
            one.guest.inside.ip("addr flush dev eth0 scope global");
            one.guest.inside.ip("addr add 10.77.0.66/24 dev eth0");
            assert!(!reaches(&one.guest.inside, "10.77.0.12", false));
            assert!(forged(&client, &one.port).await > before);
            one.guest.inside.ip("addr flush dev eth0");
            one.guest.inside.ip("addr add 10.77.0.11/24 dev eth0");
            one.guest.inside.ip("addr add fd00:77::11/64 dev eth0 nodad");

            // So are policies and rates what they are.
            set_policy(&client, &network, "vm-one", &["vm-two tcp 1-9"]).await;
            assert!(!reaches(&one.guest.inside, "10.77.0.12", false));
            assert!(reaches(&two.guest.inside, "10.77.0.11", true));
            set_policy(&client, &network, "vm-one", &[&format!("vm-two tcp {PORT}")]).await;
            reach_each_other(&one, &two);
            let mut request = one.port.set_rate_request();
            request.get().init_rate().set_from_guest(1_000_000);
            client.connection.call("set a rate", DEADLINE, request.send()).await.unwrap();
            reach_each_other(&one, &two);

            // Nothing leads there from the host.
            let socket = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
            let token = client.connection.deposit(socket.as_fd()).await.unwrap();
            let mut request = one.port.publish_request();
            request.get().set_guest_port(80);
            token.write(request.get().init_sockets(1).get(0));
            let refused = client.connection.call("publish", DEADLINE, request.send()).await.map(drop).unwrap_err();
            assert_eq!(refused.code, Code::InvalidArgument);
            assert!(refused.why.contains("iso0, a network of type isolated"), "{refused}");
            assert!(refused.to_string().contains("a first card on a network of another type"), "{refused}");

            // It goes when its ports have, from the namespace too.
            assert_eq!(code(client.remove("iso0").await), Some(Code::WrongState));
            client.release(&one.port).await.unwrap();
            client.release(&two.port).await.unwrap();
            client.remove("iso0").await.unwrap();
            assert_eq!(within(&place), [""; 0]);
            assert_eq!(place.within(|| nft("list ruleset")), "");
            assert_eq!(client.networks().await.unwrap(), ["iso1", "volt0"]);
            reach_each_other(&apart, &third);
            // The one of that name that comes next is another one.
            isolated(&client, "iso0", &place).await;
            assert_eq!(code(client.info(&network).await), Some(Code::Revoked));
        });
    });
}

#[test]
fn guests_reach_each_other_with_8900_bytes_whole_where_the_network_has_frames_for_them() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let place = Container::new();
            let sockets = Sockets::of(&place);
            let jumbo = define(&client, "iso0", Some(&sockets), |mut config| config.set_mtu(9000)).await.unwrap();
            let factory = client.factory(&jumbo, 2).await.unwrap();
            let guests = [guest(&client, &factory, "vm-one", 11).await, guest(&client, &factory, "vm-two", 12).await];
            for one in &guests {
                assert_eq!(one.info.mtu, 9000);
                one.guest.inside.ip("link set eth0 mtu 9000");
            }
            reach_each_other(&guests[0], &guests[1]);
            for (subnet, headers) in [("10.77.0.", 28), ("fd00:77::", 48)] {
                let [one, two] = guests.each_ref().map(|Held { guest, number, .. }| {
                    let own = format!("{subnet}{number}").parse().unwrap();
                    guest.inside.within(|| udp::socket(own))
                });
                for length in [1, 8900, 9000 - headers] {
                    udp::talk(&one, &two, length);
                }
                let error = one.send_to(&vec![0; 9001 - headers], two.local_addr().unwrap()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            }
        });
    });
}

#[test]
fn ports_outlive_a_killed_netmgr_and_are_the_next_one_s_when_it_has_the_namespace_again() {
    with_nft(|| {
        let (place, mut earlier) = (Container::new(), Netmgr::start());
        let (one, two) = run(async {
            let client = earlier.connect().await;
            let network = isolated(&client, "iso0", &place).await;
            let factory = client.factory(&network, 9).await.unwrap();
            let guests = (guest(&client, &factory, "vm-one", 11).await, guest(&client, &factory, "vm-two", 12).await);
            set_policy(&client, &network, "vm-one", &["any tcp"]).await;
            earlier.kill();
            guests
        });
        assert_eq!(interfaces(), [""; 0]);
        reach_each_other(&one, &two);
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            // It cannot know of it, and takes on what it finds there.
            assert_eq!(client.networks().await.unwrap(), [""; 0]);
            assert_eq!(code(define(&client, "iso0", None, |_| ()).await), Some(Code::InvalidArgument));
            let network = isolated(&client, "iso0", &place).await;
            let there = |ports: &[Port]| ports.iter().map(|port| port.workload.clone()).collect::<Vec<_>>();
            assert_eq!(there(&client.ports(&network, "").await.unwrap()), ["vm-one", "vm-two"]);
            reach_each_other(&one, &two);
            let mut request = network.port_policy_request();
            request.get().set_workload("vm-one");
            let answer = client.connection.call("look", DEADLINE, request.send()).await.unwrap();
            assert!(answer.get().unwrap().has_policy());
            let factory = client.factory(&network, 9).await.unwrap();
            assert_eq!(code(client.tap(&factory, "vm-one").await), Some(Code::AlreadyExists));
            let three = guest(&client, &factory, "vm-three", 13).await;
            reach_each_other(&three, &two);
            // That a guest ends is heard of there as on the host.
            drop(one);
            let gone = async || !there(&client.ports(&network, "").await.unwrap()).contains(&"vm-one".into());
            eventually(gone).await;
            // Another namespace is not taken for it while there are ports,
            let other = Container::new();
            let moved = define(&client, "iso0", Some(&Sockets::of(&other)), |_| ()).await;
            assert_eq!(code(moved), Some(Code::WrongState));
            assert_eq!(within(&other), [""; 0]);
            drop((two, three));
            eventually(async || client.ports(&network, "").await.unwrap().is_empty()).await;
            // and is afterwards; nothing is left where it was.
            isolated(&client, "iso0", &other).await;
            assert_eq!((within(&place), within(&other)), (vec![], vec!["iso0".to_owned()]));
            client.remove("iso0").await.unwrap();
            assert_eq!((within(&other), interfaces()), (vec![], vec![]));
        });
    });
}

#[test]
fn netmgr_that_is_killed_at_any_moment_leaves_nothing_on_the_host_and_the_next_one_brings_the_network_in_order() {
    in_own_network(|| {
        let place = Container::new();
        for round in 0..8 {
            let mut netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let begun = async {
                    let network = isolated(&client, "iso0", &place).await;
                    let factory = client.factory(&network, 64).await.unwrap();
                    for number in 0..64 {
                        _ = client.tap(&factory, &format!("vm-{number}")).await;
                    }
                };
                let end = tokio::time::sleep(Duration::from_millis(3 * round * round));
                tokio::select! { () = begun => {}, () = end => {} }
            });
            netmgr.kill();
            testkit::wait::until("TAPs have gone with it", || match interfaces()[..] {
                [] => Ok(()),
                _ => Err(format!("{:?}", interfaces())),
            });
        }
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = isolated(&client, "iso0", &place).await;
            eventually(async || client.ports(&network, "").await.unwrap().is_empty()).await;
            assert_eq!(within(&place), ["iso0"]);
            client.remove("iso0").await.unwrap();
            assert_eq!((within(&place), interfaces()), (vec![], vec![]));
        });
    });
}

#[test]
fn tenant_has_one_quota_in_all_namespaces_and_its_end_takes_its_ports_off_each() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let place = Container::new();
            isolated(&client, "iso0", &place).await;
            client.define_default().await;
            let tenant = client.tenant("acme", 1).await.unwrap();
            let there = client.tenant_factory(&tenant, "iso0").await.unwrap();
            let here = client.tenant_factory(&tenant, "volt0").await.unwrap();
            for _ in 0..8 {
                for (one, other) in [(&there, &here), (&here, &there)] {
                    let port = client.tap(one, "vm-web").await.unwrap();
                    assert_eq!(code(client.tap(other, "vm-web").await), Some(Code::Exhausted));
                    drop(port);
                }
            }
            let port = client.tap(&there, "vm-web").await.unwrap();
            assert!(within(&place).contains(&"tap-web".into()));
            drop((tenant, here, there));
            settle("its port has gone", || within(&place) == ["iso0"]).await;
            assert_eq!(code(client.port(&port).await), Some(Code::Revoked));
        });
    });
}

#[test]
fn what_something_else_changes_in_its_namespace_is_changed_back() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let place = Container::new();
            let network = isolated(&client, "iso0", &place).await;
            let factory = client.factory(&network, 9).await.unwrap();
            let (one, two) =
                (guest(&client, &factory, "vm-one", 11).await, guest(&client, &factory, "vm-two", 12).await);
            reach_each_other(&one, &two);
            let tables = || place.within(|| nft("list tables")).lines().count();
            let (bridge, rules) = (client.info(&network).await.unwrap().index, tables());
            assert!(rules > 0);
            // All at once: who is changed back each time is looked at less and less often.
            let changes = [
                "link set tap-one nomaster",
                "link set iso0 down",
                "addr add 10.77.0.1/24 dev iso0",
                "link set tap-two down",
            ];
            for changes in [&changes[..], &["link delete iso0"]] {
                changes.iter().for_each(|change| _ = place.ip(change));
                let whole = || {
                    let said = interface("iso0").filter(|said| addresses(said).is_empty() && has_flag(said, "UP"));
                    said.is_some() && text(&interface("tap-one").unwrap(), "master") == "iso0"
                };
                settle("all is as it was", || place.within(whole)).await;
                reach_each_other(&one, &two);
            }
            assert_ne!(client.info(&network).await.unwrap().index, bridge);
            place.within(|| nft("flush ruleset"));
            settle("its rules are there again", || tables() == rules).await;
            // What is deleted is lost, and its holder hears of it.
            place.ip("link delete tap-one");
            assert!(client.lost(&one.port).await.unwrap().contains("tap-one"));
        });
    });
}

/// Has a socket, which somebody else has too, be told nothing (socket(7)), or everything again.
fn mute(socket: &OwnedFd, on: bool) {
    // BPF_RET: of each message, no byte.
    let mut nothing = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    let option = if on { libc::SO_ATTACH_FILTER } else { libc::SO_DETACH_FILTER };
    let size = size_of_val(&program) as u32;
    // SAFETY: reads the program, and its instruction, which live through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const program).cast(), size) };
    assert_eq!(done, 0);
}

#[test]
fn who_keeps_the_answers_back_or_holds_the_namespace_s_links_costs_that_network_and_no_other() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let (place, other) = (Container::new(), Container::new());
            let sockets = Sockets::of(&place);
            let network = define(&client, "iso0", Some(&sockets), |_| ()).await.unwrap();
            let factory = client.factory(&network, 99).await.unwrap();
            let whole = isolated(&client, "iso1", &other).await;
            let beside = client.factory(&whole, 99).await.unwrap();
            let over = Arc::new(AtomicBool::new(false));
            let (changes, there) = (over.clone(), Container(place.0.try_clone().unwrap()));
            let changes = std::thread::spawn(move || {
                there.within(|| {
                    while !changes.load(Ordering::Relaxed) {
                        ip("link set lo up");
                        ip("link set lo down");
                    }
                });
            });
            for (at, mute_one) in sockets.0.iter().take(2).enumerate() {
                mute(mute_one, true);
                for number in 0..4 {
                    let workload = format!("vm-{at}-{number}");
                    let refused = client.tap(&factory, &workload).await.map(drop).unwrap_err();
                    assert_eq!(refused.code, Code::Unavailable, "{refused}");
                    assert!(refused.why.contains("nothing is heard"), "{refused}");
                    client.tap(&beside, &workload).await.unwrap();
                }
                mute(mute_one, false);
                // And when it is over, it is as any other one.
                eventually(async || client.tap(&factory, &format!("vm-{at}-last")).await.is_ok()).await;
            }
            over.store(true, Ordering::Relaxed);
            changes.join().unwrap();
            assert_eq!(interfaces(), [""; 0]);
        });
    });
}

#[test]
fn what_is_handed_over_in_place_of_what_should_be_is_refused_by_name_and_changes_nothing() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let (place, other) = (Container::new(), Container::new());
            isolated(&client, "iso0", &place).await;
            client.define_default().await;
            let refused = async |name: &str, sockets: Option<Sockets>, what: &str, why: &str| {
                let fault = define(&client, name, sockets.as_ref(), |_| ()).await.map(drop).unwrap_err();
                assert_eq!(fault.code, Code::InvalidArgument, "{what} {why}: {fault}");
                assert!(fault.why.contains(what) && fault.why.contains(why), "{what} {why}: {fault}");
            };
            let with = |at: usize, socket: OwnedFd| {
                let Sockets(mut sockets) = Sockets::of(&other);
                sockets[at] = socket;
                Some(Sockets(sockets))
            };
            let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let stream = || OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
            for (at, what) in ["rtnetlink", "nfnetlink", "linkChanges", "ruleChanges"].into_iter().enumerate() {
                refused("iso1", with(at, file()), what, "no socket").await;
                refused("iso1", with(at, stream()), what, "AF_NETLINK").await;
                let part = other.within(|| netlink(if at % 2 == 0 { Some(netlink::NETFILTER) } else { None }, &[]));
                refused("iso1", with(at, part), what, "it must be a socket").await;
                let Sockets(elsewhere) = Sockets::of(&place);
                let elsewhere = elsewhere.into_iter().nth(at).unwrap();
                refused(
                    "iso1",
                    with(at, elsewhere),
                    if at == 0 { "nfnetlink" } else { what },
                    "another network namespace",
                )
                .await;
            }
            for (at, what) in [(2, "linkChanges"), (3, "ruleChanges")] {
                let unbound = other.within(|| netlink((at == 3).then_some(netlink::NETFILTER), &[]));
                refused("iso1", with(at, unbound), what, "not bound").await;
            }
            let used = Sockets::of(&other);
            // Asks for a list, and does not read it.
            let ask = [20_u32.to_ne_bytes(), [18, 0, 1, 3], [1, 0, 0, 0], [0; 4], [0; 4]].concat();
            net::send(&used.0[0], &ask, net::SendFlags::empty()).unwrap();
            refused("iso1", Some(used), "rtnetlink", "waits to be read").await;
            refused("iso1", None, "namespace", "of its own").await;
            refused("iso1", Some(Sockets::here()), "namespace", "the host's networks").await;
            refused("iso1", Some(Sockets::of(&place)), "namespace", "another one").await;
            // What is of another kind is not made isolated, nor the other way round.
            let moved = define(&client, "volt0", Some(&Sockets::of(&other)), |_| ()).await;
            assert_eq!(code(moved), Some(Code::WrongState));
            let given = Sockets::of(&other);
            let of = async |name: &str, sockets: Option<&Sockets>, change: fn(network_config::Builder<'_>)| {
                define(&client, name, sockets, change).await.map(drop).unwrap_err().to_string()
            };
            let bridged = |mut config: network_config::Builder<'_>| config.set_kind(NetworkKind::Bridged);
            assert!(of("iso0", None, bridged).await.contains("of another kind"));
            assert!(of("iso1", Some(&given), |mut config| config.set_nat(true)).await.contains("nat"));
            let vlan = |mut config: network_config::Builder<'_>| {
                config.set_parent("eth0");
                config.set_vlan(7);
            };
            assert!(of("iso1", Some(&given), vlan).await.contains("VLAN"));
            assert_eq!(client.networks().await.unwrap(), ["iso0", "volt0"]);
            assert_eq!((within(&other), interfaces()), (vec![], vec!["volt0".to_owned()]));
        });
    });
}

#[test]
fn container_has_a_veth_there_but_not_from_the_network_s_own_namespace() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let place = Container::new();
            let network = isolated(&client, "iso0", &place).await;
            let factory = client.factory(&network, 9).await.unwrap();
            let one = guest(&client, &factory, "vm-one", 11).await;
            let container = Container::new();
            let with = |mut asked: port_factory::create_veth_params::Builder<'_>| {
                asked.set_durable(true);
                asked.init_addresses(1).set(0, "10.77.0.20");
            };
            let (port, sturdy_ref) = client.veth(&factory, "container-db", &container, with).await.unwrap();
            assert!(container.ip("addr show eth0").contains("10.77.0.20/24"));
            container.pings([10, 77, 0, 11]);
            assert_eq!(interfaces(), [""; 0]);
            assert_eq!(within(&place).len(), 3);
            for own in [&place, &Container(place.0.try_clone().unwrap())] {
                let refused = client.veth(&factory, "container-x", own, |_| ()).await.map(drop).unwrap_err();
                assert!(refused.why.contains("one of its own"), "{refused}");
            }
            let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            let refused = client.veth_by(&factory, "container-x", here, netlink(None, &[]), |_| ()).await;
            assert!(refused.map(drop).unwrap_err().why.contains("one of its own"));
            // A default route leads nowhere.
            let another = Container::new();
            let routed = client.veth(&factory, "container-x", &another, |mut asked| {
                asked.reborrow().init_addresses(1).set(0, "10.77.0.21");
                asked.init_routes(1).set(0, "0.0.0.0/0");
            });
            assert!(routed.await.map(drop).unwrap_err().why.contains("no gateway"));
            drop(port);
            let port = client.restore(&network, &sturdy_ref).await.unwrap();
            client.release(&port).await.unwrap();
            drop(one);
            eventually(async || client.remove("iso0").await.is_ok()).await;
        });
    });
}

#[test]
fn networks_of_all_kinds_together_are_as_many_as_there_may_be_and_no_more() {
    with_nft(|| {
        ip("link add up0 type veth peer name nb0");
        let (netmgr, place) = (Netmgr::start(), Container::new());
        run(async {
            let client = netmgr.connect().await;
            let macvtap = async |n: u32| {
                let change = |mut config: network_config::Builder<'_>| {
                    config.set_kind(NetworkKind::Macvtap);
                    config.set_ipv6("");
                    config.set_parent("up0");
                };
                define(&client, &format!("lan{n}"), None, change).await.map(drop)
            };
            isolated(&client, "iso0", &place).await;
            for n in 1..256 {
                macvtap(n).await.unwrap();
            }
            assert_eq!(macvtap(256).await.unwrap_err().code, Code::Exhausted);
            client.remove("iso0").await.unwrap();
            macvtap(256).await.unwrap();
            let more = define(&client, "iso0", Some(&Sockets::of(&place)), |_| ()).await;
            assert_eq!(more.map(drop).unwrap_err().code, Code::Exhausted);
        });
    });
}
