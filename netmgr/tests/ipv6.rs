//! Networks with IPv6 beside their IPv4: what their bridges get and keep, what is refused, and that guests reach the host and one another.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use std::fs;

use common::*;
use ipc::Code;
use schema::network_capnp::network;
use serde_json::Value;
use testkit::skip;

const OWN: &str = "fd00:42::1/64";
/// Of `volt0`, for ever: it follows from its MAC address, and that from its name.
const LINK_LOCAL: &str = "fe80::21:8dff:fe02:efbc/64";

/// Runs a test, where the kernel has IPv6.
fn with_ipv6(test: impl FnOnce() + Send + 'static) {
    if !fs::exists("/proc/sys/net/ipv6").unwrap() {
        return skip!("the kernel has no IPv6");
    }
    in_own_network(test);
}

fn of_instance(id: &'static str) -> Netmgr {
    Netmgr::start_with(move |command| _ = command.args(["--instance", id]))
}

fn setting(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/volt0/{name}")).unwrap().trim().to_owned()
}

/// What there should be of the IPv6 of `volt0`.
fn whole() -> Result<(), String> {
    let Some(bridge) = interface("volt0") else { return Err("there is no volt0".into()) };
    let infos = bridge["addr_info"].as_array().unwrap();
    let is_plain = |info: &Value| {
        let odd = ["tentative", "dadfailed", "deprecated", "noprefixroute", "dynamic", "metric", "address"];
        info["family"] != "inet6" || info["nodad"] == true && odd.iter().all(|word| info.get(word).is_none())
    };
    let (table, local) = (ip("-6 route show dev volt0"), ip("-6 route show table local dev volt0"));
    let right = addresses(&bridge) == ["10.42.0.1/24", OWN, LINK_LOCAL]
        && infos.iter().all(is_plain)
        && (setting("disable_ipv6"), setting("accept_ra")) == ("0".into(), "0".into())
        && has_flag(&bridge, "UP")
        && text(&bridge, "ifalias") == "volt-vmm network volt0 10.42.0.1/24 1500 - fd00:42::1/64"
        && ["fd00:42::/64", "fe80::/64"].iter().all(|to| table.contains(&format!("{to} proto kernel metric 256")))
        && ["fd00:42::1", "fe80::21:8dff:fe02:efbc"]
            .iter()
            .all(|to| local.contains(&format!("local {to} proto kernel")));
    if right { Ok(()) } else { Err(format!("{bridge}\n{table}{local}")) }
}

#[test]
fn network_with_ipv6_has_the_gateway_s_address_to_use_at_once_and_no_autoconfiguration() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client).await;
            whole().unwrap();
            std::net::UdpSocket::bind("[fd00:42::1]:0").unwrap();
            assert_eq!(client.info(&network).await.unwrap().ipv6, OWN);
            // The same again changes nothing.
            let before = (ip("addr show volt0"), ip("-6 route show table all"));
            define(&client).await;
            assert_eq!((ip("addr show volt0"), ip("-6 route show table all")), before);
            // Another one, and none, with which all of it goes.
            client.define_both("volt0", "10.42.0.1", 24, 0, "fd00:43::9/64").await.unwrap();
            let now = addresses(&interface("volt0").unwrap());
            assert_eq!(now, ["10.42.0.1/24", "fd00:43::9/64", LINK_LOCAL]);
            let network = client.define_default().await;
            assert_eq!(client.info(&network).await.unwrap().ipv6, "");
            assert_eq!(addresses(&interface("volt0").unwrap()), ["10.42.0.1/24"]);
            assert_eq!(setting("disable_ipv6"), "1");
            // Without IPv4.
            client.define_both("volt0", "", 0, 0, OWN).await.unwrap();
            assert_eq!(addresses(&interface("volt0").unwrap()), [OWN, LINK_LOCAL]);
        });
    });
}

#[test]
fn subnet_of_its_own_follows_from_installation_and_network_and_is_known_to_a_later_netmgr() {
    with_ipv6(|| {
        let mut netmgr = of_instance("one1");
        let first = run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 0, "auto").await.unwrap();
            let other = client.define_both("volt1", "10.43.0.1", 24, 0, "auto").await.unwrap();
            let [first, other] = [client.info(&network).await.unwrap().ipv6, client.info(&other).await.unwrap().ipv6];
            assert!(first.starts_with("fd") && first.ends_with("::1/64"), "{first}");
            assert_eq!(addresses(&interface("volt0").unwrap())[1], first);
            let site = |address: &str| address.rsplit_once("::").unwrap().0.rsplit_once(':').unwrap().0.to_owned();
            assert_eq!(site(&first), site(&other));
            assert_ne!(first, other);
            first
        });
        netmgr.kill();
        ip("-6 addr flush dev volt0");
        let netmgr = of_instance("one1");
        run(async {
            let client = netmgr.connect().await;
            let network = client.network("volt0").await.unwrap();
            assert_eq!(client.info(&network).await.unwrap().ipv6, first);
            assert_eq!(addresses(&interface("volt0").unwrap())[1], first);
        });
    });
}

/// What others may do to the IPv6 of a network.
const HARM: [&[&str]; 16] = [
    &["link delete volt0"],
    &["link set volt0 down"],
    &["link set volt0 down", "link set volt0 up"],
    &["link set volt0 down", "link set volt0 name elsewhere", "link set elsewhere up"],
    &["addr flush dev volt0"],
    &["-6 addr flush dev volt0"],
    &["addr delete fd00:42::1/64 dev volt0"],
    &["addr add fd00:42::77/64 dev volt0 nodad"],
    &["addr add 2001:db8::1/64 dev volt0"],
    &["addr delete fe80::21:8dff:fe02:efbc/64 dev volt0"],
    &["addr change fd00:42::1/64 dev volt0 valid_lft 600 preferred_lft 500"],
    &["addr change fd00:42::1/64 dev volt0 preferred_lft 0"],
    &["-6 route delete fd00:42::/64 dev volt0"],
    &["-6 route delete local fd00:42::1 dev volt0 table local"],
    &["-6 route flush dev volt0", "-6 route flush dev volt0 table local"],
    &["IPV6 off volt0"],
];

fn harm(commands: &[&str]) {
    for command in commands {
        match command.strip_prefix("IPV6 off ") {
            Some(name) => fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap(),
            None => _ = ip(command),
        }
    }
}

/// As `volt0` is defined here.
async fn define(client: &Client) -> network::Client {
    client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.unwrap()
}

#[test]
fn what_is_changed_of_a_network_s_ipv6_while_netmgr_runs_is_changed_back_at_once() {
    for commands in HARM {
        with_ipv6(move || {
            let netmgr = Netmgr::start();
            run(async {
                define(&netmgr.connect().await).await;
                // Several of them are one change.
                let pid = rustix::process::Pid::from_child(&netmgr.process);
                rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
                harm(commands);
                assert!(whole().is_err(), "{commands:?} is no harm");
                rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
                settle(&format!("{commands:?} is mended"), || whole().is_ok()).await;
            });
        });
    }
}

#[test]
fn what_was_changed_of_a_network_s_ipv6_before_netmgr_starts_is_changed_back_by_the_start() {
    // Of a bridge that is gone only who defines the network knows.
    for commands in HARM.into_iter().filter(|commands| **commands != ["link delete volt0"]) {
        with_ipv6(move || {
            let mut earlier = Netmgr::start();
            run(async { define(&earlier.connect().await).await });
            earlier.kill();
            harm(commands);
            let netmgr = Netmgr::start();
            drop(run(async { netmgr.connect().await }));
            whole().unwrap_or_else(|why| panic!("{commands:?}: {why}"));
        });
    }
}

#[test]
fn what_was_changed_of_a_network_s_ipv6_a_moment_ago_is_changed_back_by_an_attach() {
    for commands in HARM {
        with_ipv6(move || {
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let factory = client.factory(&define(&client).await, 1).await.unwrap();
                harm(commands);
                client.tap(&factory, "vm-web").await.unwrap();
                whole().unwrap_or_else(|why| panic!("{commands:?}: {why}"));
            });
        });
    }
}

#[test]
fn ipv6_subnet_that_a_foreign_interface_or_route_holds_is_a_conflict_and_leaves_nothing() {
    let holders: [(&[&str], &str); 6] = [
        (&["addr add fd00:42::9/64 dev up0"], "fd00:42::9/64, which an address of interface up0 holds"),
        (&["addr add fd00:42::9/128 dev up0"], "fd00:42::9/128, which an address of interface up0 holds"),
        (&["addr add fd00::9/16 dev up0"], "fd00::9/16, which an address of interface up0 holds"),
        (
            &["addr add 2001:db8::1/64 dev up0", "-6 route add fd00:42::/64 via 2001:db8::2"],
            "fd00:42::/64, which a route of interface up0 holds",
        ),
        (&["-6 route add blackhole fd00:42::/96"], "fd00:42::/96, which a route"),
        (
            &[
                "addr add 2001:db8::1/64 dev up0",
                "-6 route add fd00:42::7 nexthop via 2001:db8::2 nexthop via 2001:db8::3",
            ],
            "fd00:42::7/128, which a route",
        ),
    ];
    for (holder, found) in holders {
        with_ipv6(move || {
            ip("link add up0 type veth peer up1");
            ip("link set up0 up");
            ip("link set up1 up");
            holder.iter().for_each(|command| _ = ip(command));
            let netmgr = Netmgr::start();
            let fault = run(async {
                netmgr.connect().await.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.err().unwrap()
            });
            assert_eq!(fault.code, Code::Conflict, "{holder:?}: {fault}");
            assert!(fault.why.contains(OWN) && fault.why.contains(found), "{fault}");
            assert!(interface("volt0").is_none());
        });
    }
}

#[test]
fn wider_routes_of_ipv6_and_other_subnets_are_no_conflict_and_two_networks_of_one_are() {
    with_ipv6(|| {
        ip("link add up0 type veth peer up1");
        ip("link set up0 up");
        ip("addr add 2001:db8::1/64 dev up0");
        for route in ["default via 2001:db8::2", "fc00::/7 via 2001:db8::2", "8000::/1 dev up0", "unreachable fd00::/8"]
        {
            ip(&format!("-6 route add {route}"));
        }
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client).await;
            let fault = client.define_both("volt1", "10.43.0.1", 24, 0, "fd00:42::2/64").await.err().unwrap();
            assert_eq!(fault.code, Code::Conflict);
            assert!(fault.why.contains("an address of interface volt0"), "{fault}");
            client.define_both("volt1", "10.43.0.1", 24, 0, "fd00:42:0:1::1/64").await.unwrap();
            whole().unwrap();
        });
    });
}

#[test]
fn unusable_ipv6_is_refused_by_name_and_changes_nothing() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client).await;
            for (bad, why) in [
                ("fd00:42::1", "with its prefix length"),
                ("fd00:42::/64", "not the first of its subnet"),
                ("fd00:42::1/63", "must be 64"),
                ("fd00:42::1/65", "must be 64"),
                ("fe80::1/64", "2000::/3"),
                ("10.42.0.1/24", "such as fd12:3456:789a:1::1/64"),
                ("AUTO", "or \"auto\""),
            ] {
                for name in ["volt0", "volt1"] {
                    let fault = client.define_both(name, "10.43.0.1", 24, 0, bad).await.err().unwrap();
                    assert_eq!(fault.code, Code::InvalidArgument, "{fault}");
                    assert!(fault.why.contains(why) && fault.why.contains(bad), "{fault}");
                }
            }
            assert_eq!(interfaces(), ["volt0"]);
            whole().unwrap();
        });
    });
}

#[test]
fn port_s_ipv6_addresses_are_of_the_network_s_subnet_and_one_follows_from_the_mac_address() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client).await;
            let factory = client.factory(&network, 3).await.unwrap();
            for (bad, why) in [
                ("fd00:42::1", "the network's gateway"),
                ("fd00:42::", "not the first of its subnet"),
                ("fd00:43::7", "one of fd00:42::/64"),
                ("2001:db8::7", "one of fd00:42::/64"),
                ("fe80::7", "link-local"),
            ] {
                let fault = client.tap_from(&factory, "vm-web", &[], &["10.42.0.7", bad]).await.err().unwrap();
                assert_eq!(fault.code, Code::InvalidArgument, "{fault}");
                assert!(fault.why.contains(why) && fault.why.contains(bad), "{fault}");
            }
            let mac = [2, 0, 0x5e, 0, 0x53, 7];
            let port = client.tap_from(&factory, "vm-web", &mac, &["::", "10.42.0.7", "fd00:42::7"]).await.unwrap();
            let info = client.port(&port).await.unwrap();
            assert_eq!(info.addresses, ["10.42.0.7", "fd00:42::7", "fd00:42::5eff:fe00:5307"]);
            assert_eq!(info.gateways, ["10.42.0.1/24", OWN]);
            assert_eq!(client.ports(&network, "").await.unwrap(), [info]);
            // It is that port's alone, as any other.
            let taken = client.tap_from(&factory, "vm-db", &[], &["fd00:42::5eff:fe00:5307"]).await.err().unwrap();
            assert_eq!(taken.code, Code::AlreadyExists);
            assert!(taken.why.contains("fd00:42::5eff:fe00:5307 is the address of vm-web"), "{taken}");
            // As derived, it differs by workload and is the same each time.
            let of = async |workload: &str| {
                let port = client.tap_from(&factory, workload, &[], &["::"]).await.unwrap();
                let addresses = client.port(&port).await.unwrap().addresses;
                client.release(&port).await.unwrap();
                addresses
            };
            assert_eq!(of("vm-db").await, of("vm-db").await);
            assert_ne!(of("vm-db").await, of("vm-dc").await);
        });
    });
}

#[test]
fn network_is_not_redefined_so_that_a_port_s_address_is_outside_or_the_gateway_s() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client).await;
            let factory = client.factory(&network, 1).await.unwrap();
            let given = ["10.42.0.200", "fd00:42::7"];
            let port = client.tap_from(&factory, "vm-web", &[], &given).await.unwrap();
            for (gateway, prefix, ipv6, code, why) in [
                (
                    "10.43.0.1",
                    24,
                    OWN,
                    Code::Conflict,
                    "the address 10.42.0.200 on network volt0: a guest of this network has one of 10.43.0.0/24",
                ),
                ("10.42.0.1", 25, OWN, Code::Conflict, "10.42.0.200"),
                (
                    "10.42.0.1",
                    24,
                    "fd00:43::1/64",
                    Code::Conflict,
                    "the address fd00:42::7 on network volt0: a guest of this network has one of fd00:43::/64",
                ),
                ("10.42.0.1", 24, "auto", Code::Conflict, "fd00:42::7"),
                ("10.42.0.200", 24, OWN, Code::AlreadyExists, "10.42.0.200 is the address of vm-web"),
                ("10.42.0.1", 24, "fd00:42::7/64", Code::AlreadyExists, "fd00:42::7 is the address of vm-web"),
            ] {
                let fault = client.define_both("volt0", gateway, prefix, 0, ipv6).await.err().unwrap();
                assert_eq!(fault.code, code, "{fault}");
                assert!(fault.why.contains(why) && fault.why.contains("vm-web"), "{fault}");
                whole().unwrap();
            }
            // What it fits in, and none, of which nothing is known.
            client.define_both("volt0", "10.42.0.2", 16, 0, "fd00:42::2/64").await.unwrap();
            client.define_both("volt0", "", 0, 0, "").await.unwrap();
            client.release(&port).await.unwrap();
            client.define_both("volt0", "10.43.0.1", 24, 0, "fd00:43::1/64").await.unwrap();
        });
    });
}

#[test]
fn network_with_ipv6_is_refused_by_name_where_the_host_cannot_switch_that_on_and_others_work() {
    with_ipv6(|| {
        testkit::namespace::mounts().unwrap();
        // As on a kernel that was booted with ipv6.disable=1.
        let hidden = std::process::Command::new("mount").args(["-t", "tmpfs", "none", "/proc/sys/net/ipv6"]).status();
        assert!(hidden.unwrap().success());
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let fault = client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.err().unwrap();
            assert_eq!(fault.code, Code::Unavailable);
            assert!(fault.why.contains("IPv6 cannot be switched on on the bridge of network volt0"), "{fault}");
            assert!(fault.remedy.contains("without IPv6") && fault.remedy.contains("ipv6.disable=1"), "{fault}");
            assert!(interfaces().is_empty());
            client.define_default().await;
            assert!(client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.is_err());
            assert_eq!(ipv4(&interface("volt0").unwrap()), ["10.42.0.1/24"]);
            let network = client.network("volt0").await.unwrap();
            assert_eq!(client.info(&network).await.unwrap().ipv6, "");
        });
    });
}
