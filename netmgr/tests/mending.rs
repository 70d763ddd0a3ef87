//! What something else on the host changes of networks and ports, while netmgr runs and after it has ended: mended, or, where that cannot be, said.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use common::*;
use ipc::Code;
use testkit::skip;

const WEB: &str = "tap-web";
/// Of `volt0`, for ever: it follows from the name.
const MAC: &str = "02:21:8d:02:ef:bc";

/// What there should be, of `volt0` and the port of `vm-web`.
fn whole() -> Result<(), String> {
    let Some(bridge) = interface("volt0") else { return Err("there is no volt0".into()) };
    let tap = interface(WEB).ok_or("there is no tap-web")?;
    let alias = text(&tap, "ifalias");
    let address = &bridge["addr_info"][0];
    let (table, local) = (ip("route show table main 10.42.0.0/24"), ip("route show table local dev volt0"));
    let to_guest = way_to_a_guest();
    let (options, as_port) = (&bridge["linkinfo"]["info_data"], &tap["linkinfo"]["info_slave_data"]);
    let forwarded = forwarded(&guest_mac(&tap));
    let right = addresses(&bridge) == ["10.42.0.1/24"]
        && (text(address, "scope"), text(address, "broadcast")) == ("global".into(), "10.42.0.255".into())
        && ["noprefixroute", "dynamic", "secondary", "metric", "address"]
            .iter()
            .all(|word| address.get(word).is_none())
        && std::fs::read_to_string("/proc/sys/net/ipv6/conf/volt0/disable_ipv6").is_ok_and(|off| off == "1\n")
        && has_flag(&bridge, "UP")
        && !has_flag(&bridge, "NOARP")
        && text(&bridge, "address") == MAC
        && bridge["mtu"] == 1500
        && bridge.get("master").is_none()
        && (options["stp_state"] == 0 && options["vlan_filtering"] == 0)
        && (options["forward_delay"] == 0 && options["mcast_snooping"] != 1)
        && text(&bridge, "ifalias") == "volt-vmm network volt0 10.42.0.1/24 1500 -"
        && has_flag(&tap, "UP")
        && has_flag(&tap, "LOWER_UP")
        && alias.split(' ').nth(3).is_some_and(|guest| guest.get(2..) == text(&tap, "address").get(2..))
        && text(&tap, "address").starts_with("fe:")
        && tap["mtu"] == 1500
        && text(&tap, "master") == "volt0"
        && (as_port["learning"] == false && as_port["flood"] == false && as_port["group_fwd_mask"] == "0xfffd")
        && forwarded == ["tap-web NOARP sticky"]
        && alias.starts_with("volt-vmm port vm-web ")
        && alias.ends_with(" volt0 1500 -")
        && table.lines().next().map(str::trim) == Some("10.42.0.0/24 dev volt0 proto kernel scope link src 10.42.0.1")
        && local.lines().any(|line| line.starts_with("local 10.42.0.1 proto kernel scope host src 10.42.0.1"))
        && local.lines().any(|line| line.starts_with("broadcast 10.42.0.255 proto kernel scope link src 10.42.0.1"))
        && to_guest.starts_with("10.42.0.9 dev volt0 src 10.42.0.1 ");
    if right { Ok(()) } else { Err(format!("{bridge}\n{tap}\n{table}{local}{to_guest}{forwarded:?}")) }
}

/// The guest's MAC address, as the mark has it.
fn guest_mac(tap: &serde_json::Value) -> String {
    text(tap, "ifalias").split(' ').nth(3).unwrap_or_default().to_owned()
}

/// Where `volt0` sends frames to an address, and how it knows.
fn forwarded(mac: &str) -> Vec<String> {
    let output = std::process::Command::new("bridge").args(["-j", "fdb", "show", "br", "volt0"]).output().unwrap();
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let own = entries.iter().filter(|entry| entry["mac"] == mac && entry.get("vlan").is_none());
    own.map(|entry| {
        let state = match text(entry, "state").as_str() {
            "static" => "NOARP".into(),
            other => other.to_owned(),
        };
        format!(
            "{} {state}{}",
            text(entry, "ifname"),
            if entry["flags"].to_string().contains("sticky") { " sticky" } else { "" }
        )
    })
    .collect()
}

/// How the kernel would reach a guest; empty if it would not.
fn way_to_a_guest() -> String {
    let output = std::process::Command::new("ip").args(["route", "get", "10.42.0.9"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What others may do to a network and its port.
const HARM: [&[&str]; 41] = [
    &["link delete volt0"],
    &["link set volt0 down"],
    &["addr flush dev volt0"],
    &["addr add 10.42.0.77/24 dev volt0"],
    &["addr delete 10.42.0.1/24 dev volt0", "addr add 10.43.0.1/24 dev volt0"],
    // Its own is the second one of the subnet, and goes with the first.
    &["addr flush dev volt0", "addr add 10.42.0.77/24 dev volt0", "addr add 10.42.0.1/24 brd + dev volt0"],
    &["addr flush dev volt0", "addr add 10.42.0.1/24 brd + dev volt0 noprefixroute"],
    &["addr change 10.42.0.1/24 dev volt0 metric 77"],
    &["addr change 10.42.0.1/24 dev volt0 valid_lft 600 preferred_lft 500"],
    &["addr flush dev volt0", "addr add 10.42.0.1/24 brd + dev volt0 scope link"],
    &["addr flush dev volt0", "addr add 10.42.0.1/24 dev volt0"],
    &["addr flush dev volt0", "addr add 10.42.0.1 peer 10.42.0.9/24 brd + dev volt0"],
    &["route delete 10.42.0.0/24 dev volt0"],
    &["route delete local 10.42.0.1 dev volt0 table local"],
    &["route delete broadcast 10.42.0.255 dev volt0 table local"],
    &["route flush dev volt0", "route flush dev volt0 table local"],
    &["route change 10.42.0.0/24 dev volt0 proto kernel scope link src 10.42.0.1 mtu 600"],
    &["link add up0 type veth peer up1", "link set up1 up", "link set up0 up", "route replace 10.42.0.0/24 dev up0"],
    &["link set volt0 arp off"],
    &["IPV6 on volt0"],
    &["link set volt0 mtu 1400"],
    &["link set volt0 type bridge stp_state 1"],
    &["link set volt0 address 02:11:22:33:44:55"],
    &["link set volt0 down", "link set volt0 name elsewhere", "link set elsewhere up"],
    &["link set volt0 alias ALIAS"],
    &["link set tap-web down"],
    &["link set tap-web nomaster"],
    &["link set tap-web mtu 1300"],
    &["link set tap-web address 02:11:22:33:44:55"],
    &["link set tap-web down", "link set tap-web name elsewhere", "link set elsewhere up"],
    &["link set tap-web alias ALIAS"],
    &["link add br1 type bridge", "link set tap-web master br1"],
    &["link set volt0 type bridge mcast_snooping 1"],
    &["link set volt0 type bridge forward_delay 1500"],
    &["link set tap-web type bridge_slave learning on"],
    &["link set tap-web type bridge_slave flood on"],
    &["link set tap-web type bridge_slave group_fwd_mask 0"],
    &["BRIDGE fdb del GUEST dev tap-web master"],
    &["BRIDGE fdb replace GUEST dev tap-web master static"],
    &["link add up0 type veth peer up1", "link set up0 master volt0", "BRIDGE fdb replace GUEST dev up0 master static"],
    &[
        "link add up0 type veth peer up1",
        "link set up0 master volt0",
        "link set up1 up",
        "link set up0 up",
        "FORWARDING up0",
        "BRIDGE fdb replace GUEST dev up0 master dynamic",
    ],
];

/// Runs them; `ALIAS` stands for an empty text, `GUEST` for the guest's MAC address, and `IPV6` for a setting that is no interface's. `FORWARDING`
/// waits until a port forwards: one that has just come up does not take an entry that may move.
fn harm(commands: &[&str]) {
    for command in commands {
        if let Some(arguments) = command.strip_prefix("BRIDGE ") {
            let arguments = arguments.replace("GUEST", &guest_mac(&interface(WEB).unwrap()));
            if arguments.ends_with("dynamic") {
                // Which the kernel takes of a port that is in use, a moment after it has its carrier.
                let is_used = || interface("up0").unwrap()["linkinfo"]["info_slave_data"]["state"] == "forwarding";
                eventually("up0 is in use", is_used);
            }
            let output = std::process::Command::new("bridge").args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            continue;
        }
        if let Some(port) = command.strip_prefix("FORWARDING ") {
            eventually("the port forwards", || {
                interface(port).is_some_and(|port| port["linkinfo"]["info_slave_data"]["state"] == "forwarding")
            });
            continue;
        }
        if let Some(interface) = command.strip_prefix("IPV6 on ") {
            let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            // A kernel without IPv6 has none.
            let set = std::fs::write(&setting, "0");
            assert!(set.is_ok() || !std::path::Path::new(&setting).exists(), "{setting}: {set:?}");
            continue;
        }
        let words = command.split(' ').map(|word| if word == "ALIAS" { "" } else { word });
        let output = std::process::Command::new("ip").args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Whether the kernel takes that command; says so if not.
fn is_known(command: &str) -> bool {
    let output = std::process::Command::new("ip").args(command.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let unknown = ["Unknown device type", "Operation not supported"].iter().find(|why| said.contains(**why));
    if let Some(why) = unknown {
        skip!("ip {command}: {why}");
    } else {
        assert!(output.status.success(), "{command}: {said}");
    }
    unknown.is_none()
}

/// While netmgr runs, and nobody asks for anything.
fn is_changed_back_at_once(commands: &[&str]) {
    let netmgr = Netmgr::start();
    run(async {
        let client = netmgr.connect().await;
        let network = client.define_default().await;
        let factory = client.factory(&network, 2).await.unwrap();
        let port = client.tap(&factory, "vm-web").await.unwrap();
        let before = client.port(&port).await.unwrap();
        assert_eq!(whole(), Ok(()));
        // Several of them are one change: what the first does is not mended before the next is done.
        let pid = rustix::process::Pid::from_child(&netmgr.process);
        let signal = |signal| {
            if commands.len() > 1 {
                rustix::process::kill_process(pid, signal).unwrap();
            }
        };
        signal(rustix::process::Signal::STOP);
        harm(commands);
        signal(rustix::process::Signal::CONT);
        settle(&format!("{commands:?} is mended"), || whole().is_ok()).await;
        assert_eq!(client.port(&port).await.unwrap(), before);
        assert_eq!(interface(WEB).unwrap()["ifindex"], before.index);
        client.fd(&port).await.unwrap();
        client.tap(&factory, "vm-db").await.unwrap();
        // Nothing is left of what was there under another name.
        client.release(&port).await.unwrap();
        settle("the ports are gone", || interface(WEB).is_none() && interface("tap-db").is_none()).await;
        if interface("up0").is_some() {
            ip("link set up0 nomaster");
        }
        client.remove("volt0").await.unwrap();
        assert_eq!(interface("volt0"), None);
        assert_eq!(interface("elsewhere"), None);
    });
}

/// While no netmgr runs, and a process has the TAP of the one before.
fn is_changed_back_by_the_start_or_the_next_definition(commands: &[&str]) {
    let mut earlier = Netmgr::start();
    let (tap, before) = run(async {
        let client = earlier.connect().await;
        let factory = client.factory(&client.define_default().await, 2).await.unwrap();
        let port = client.tap(&factory, "vm-web").await.unwrap();
        let had = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
        earlier.kill();
        had
    });
    harm(commands);
    assert!(whole().is_err(), "{commands:?} is no harm");
    // Of a bridge that is gone only who defines the network knows.
    let by_definition = commands == ["link delete volt0"];
    let netmgr = Netmgr::start();
    run(async {
        let client = netmgr.connect().await;
        assert_eq!(client.network("volt0").await.is_ok(), !by_definition, "{commands:?}");
        if !by_definition {
            assert_eq!(whole(), Ok(()), "{commands:?}");
        }
        let network = client.define_default().await;
        assert_eq!(whole(), Ok(()), "{commands:?}");
        assert_eq!(client.info(&network).await.unwrap().ports, [before.brief()], "{commands:?}");
        let factory = client.factory(&network, 2).await.unwrap();
        let fault = client.tap(&factory, "vm-web").await.err().unwrap();
        assert_eq!(fault.code, Code::AlreadyExists, "{commands:?}: {fault}");
        close(tap, before.index).await;
        client.tap(&factory, "vm-web").await.unwrap();
    });
}

#[test]
fn what_is_changed_while_netmgr_runs_is_changed_back_at_once_and_the_port_is_the_same() {
    for commands in HARM {
        in_own_network(move || is_changed_back_at_once(commands));
    }
}

#[test]
fn what_was_changed_before_netmgr_starts_is_changed_back_by_the_start_or_the_next_definition() {
    for commands in HARM {
        in_own_network(move || is_changed_back_by_the_start_or_the_next_definition(commands));
    }
}

/// By the attach alone: what netmgr hears while it stands still comes after it.
#[test]
fn what_was_changed_a_moment_ago_is_changed_back_by_an_attach() {
    for commands in HARM {
        in_own_network(move || {
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let factory = client.factory(&client.define_default().await, 2).await.unwrap();
                let _web = client.tap(&factory, "vm-web").await.unwrap();
                harm(commands);
                client.tap(&factory, "vm-db").await.unwrap();
                let bridge = interface("volt0").unwrap();
                assert_eq!(addresses(&bridge), ["10.42.0.1/24"], "{commands:?}");
                assert!(way_to_a_guest().starts_with("10.42.0.9 dev volt0 src 10.42.0.1 "), "{commands:?}");
                assert!(!has_flag(&bridge, "NOARP") && has_flag(&bridge, "UP"), "{commands:?}");
            });
        });
    }
}

#[test]
fn bridge_that_was_put_in_a_vrf_is_taken_out_of_it() {
    in_own_network(|| {
        if is_known("link add vrf0 type vrf table 10") {
            is_changed_back_at_once(&["link set volt0 master vrf0"]);
            is_changed_back_by_the_start_or_the_next_definition(&["link set volt0 master vrf0"]);
        }
    });
}

#[test]
fn bridge_that_was_made_to_keep_vlans_apart_does_not_any_more() {
    in_own_network(|| {
        if is_known("link add known type bridge vlan_filtering 1") {
            ip("link delete known");
            let harm = ["link set volt0 type bridge vlan_filtering 1 vlan_default_pvid 0"];
            is_changed_back_at_once(&harm);
            is_changed_back_by_the_start_or_the_next_definition(&harm);
        }
    });
}

/// The name that people look for is another one than the kernel's 15 bytes hold.
#[test]
fn full_name_and_carrier_of_a_port_come_back() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start();
        let (full, network) = ("tap-a-longer-name", "volt0");
        let whole = |interface: &str| {
            let tap = common::interface(interface).unwrap();
            tap["altnames"] == serde_json::json!([full])
                && has_flag(&tap, "LOWER_UP")
                && text(&tap, "master") == network
        };
        let (tap, before) = run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let port = client.tap(&factory, "vm-a-longer-name").await.unwrap();
            let before = client.port(&port).await.unwrap();
            assert!(whole(&before.interface));
            ip(&format!("link property del dev {} altname {full}", before.interface));
            settle("it has its full name", || whole(&before.interface)).await;
            ip(&format!("link set {full} carrier off"));
            settle("it has its carrier", || whole(&before.interface)).await;
            let tap = client.fd(&port).await.unwrap();
            netmgr.kill();
            (tap, before)
        });
        ip(&format!("link property del dev {} altname {full}", before.interface));
        ip(&format!("link set {} carrier off", before.interface));
        let _netmgr = Netmgr::start();
        assert!(whole(&before.interface));
        drop(tap);
    });
}

/// What tells that a TAP without a mark is a port of an earlier netmgr: it is on the bridge, and its address is what follows from its name. Of
/// any other one nothing does: it is left alone, and is in the way of nobody else's.
#[test]
fn tap_whose_mark_was_cleared_before_the_start_is_a_port_if_its_address_and_bridge_tell_and_is_left_alone_if_not() {
    const CHOSEN: &[u8] = &[2, 0, 0, 0, 0, 7];
    const CLEAR: &str = "link set tap-web alias ALIAS";
    for (mac, commands) in [
        (CHOSEN, &[CLEAR][..]),
        (&[], &[CLEAR, "link set tap-web nomaster"]),
        (&[], &[CLEAR, "link set tap-web address 02:11:22:33:44:55"]),
        (&[], &[CLEAR, "link set tap-web down", "link set tap-web name tap-other"]),
        (&[], &["link set tap-web alias uplink"]),
    ] {
        in_own_network(move || {
            let mut earlier = Netmgr::start();
            let tap = run(async {
                let client = earlier.connect().await;
                let factory = client.factory(&client.define_default().await, 2).await.unwrap();
                let port = client.tap_with(&factory, "vm-web", mac).await.unwrap();
                let tap = client.fd(&port).await.unwrap();
                earlier.kill();
                tap
            });
            harm(commands);
            let name = if commands.len() == 3 { "tap-other" } else { WEB };
            let facts = || {
                let tap = interface(name).unwrap();
                ["ifindex", "ifname", "ifalias", "address", "mtu", "master", "flags"].map(|field| tap[field].clone())
            };
            let before = facts();
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let network = client.define_default().await;
                assert!(client.info(&network).await.unwrap().ports.is_empty(), "{commands:?}");
                let factory = client.factory(&network, 2).await.unwrap();
                let again = client.tap(&factory, "vm-web").await;
                assert_eq!(
                    again.err().map(|fault| fault.code),
                    (name == WEB).then_some(Code::Conflict),
                    "{commands:?}"
                );
                client.tap(&factory, "vm-db").await.unwrap();
                settle("what came is gone", || interface("tap-db").is_none()).await;
                assert_eq!(facts(), before, "{commands:?}");
                let removed = client.remove("volt0").await;
                let on_bridge = interface(name).unwrap()["master"] == "volt0";
                assert_eq!(
                    removed.err().map(|fault| fault.code),
                    on_bridge.then_some(Code::WrongState),
                    "{commands:?}"
                );
            });
            drop(tap);
        });
    }
    // With its long name, and under its second one.
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        let taps = run(async {
            let client = earlier.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 3).await.unwrap();
            let (mut taps, mut ports) = (Vec::new(), Vec::new());
            // `web` has its second name, as the first one is that of `vm-web`.
            for workload in ["vm-a-longer-name", "vm-web", "web"] {
                let port = client.tap(&factory, workload).await.unwrap();
                taps.push(client.fd(&port).await.unwrap());
                ports.push(port);
            }
            earlier.kill();
            taps
        });
        let names = interfaces().into_iter().filter(|name| name.starts_with("tap-")).collect::<Vec<_>>();
        assert_eq!(names.len(), 3, "{names:?}");
        let known = |interface: &String| (interface.clone(), text(&common::interface(interface).unwrap(), "ifalias"));
        let marks: Vec<_> = names.iter().map(known).collect();
        names.iter().for_each(|name| harm(&[&format!("link set {name} alias ALIAS")]));
        let _netmgr = Netmgr::start();
        assert_eq!(names.iter().map(known).collect::<Vec<_>>(), marks);
        drop(taps);
    });
}

#[test]
fn deleted_tap_is_lost_to_its_holder_and_the_workload_may_have_another() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            for _ in 0..3 {
                let port = client.tap(&factory, "vm-web").await.unwrap();
                let lost = client.lost(&port);
                let delete = async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    ip("link delete tap-web");
                };
                let (lost, ()) = futures_join(lost, delete).await;
                assert!(lost.unwrap().contains(WEB));
                for fault in [
                    client.fd(&port).await.err().unwrap(),
                    client.port(&port).await.err().unwrap(),
                    client.release(&port).await.err().unwrap(),
                ] {
                    assert_eq!(fault.code, Code::Revoked);
                    assert!(fault.why.contains("something else on this host") && fault.why.contains(WEB), "{fault}");
                }
                // Its place in the quota is free.
                drop(port);
            }
            let port = client.tap(&factory, "vm-web").await.unwrap();
            // Not even for a moment is a TAP handed out that leads nowhere.
            ip("link delete tap-web");
            let fault = client.fd(&port).await.err().unwrap();
            assert!(fault.code == Code::Revoked && fault.why.contains(WEB), "{fault}");
        });
    });
}

async fn futures_join<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    tokio::join!(a, b)
}

#[test]
fn who_waits_for_a_loss_does_not_keep_a_port_that_was_dropped_and_is_told_of_its_release() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let port = client.tap(&factory, "vm-web").await.unwrap();
            let waiting = port.lost_request().send();
            drop(port);
            settle("the port is gone", || interface(WEB).is_none()).await;
            assert!(waiting.promise.await.is_err());
            let port = client.tap(&factory, "vm-web").await.unwrap();
            let (lost, released) = futures_join(client.lost(&port), client.release(&port)).await;
            released.unwrap();
            assert_eq!(lost.err().unwrap().code, Code::Revoked);
        });
    });
}

#[test]
fn what_somebody_else_has_made_of_a_bridge_is_left_alone_and_named() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            ip("link set volt0 alias uplink");
            ip("link set volt0 mtu 1400");
            let fault = client.tap(&factory, "vm-web").await.err().unwrap();
            assert_eq!(fault.code, Code::Conflict, "{fault}");
            assert!(fault.remedy.contains("ip link delete volt0"), "{fault}");
            tokio::time::sleep(Duration::from_millis(500)).await;
            let bridge = interface("volt0").unwrap();
            assert_eq!((text(&bridge, "ifalias").as_str(), &bridge["mtu"]), ("uplink", &1400.into()));
            // The remedy works.
            ip("link delete volt0");
            client.tap(&factory, "vm-web").await.unwrap();
        });
    });
}

#[test]
fn fight_with_another_tool_costs_neither_side_much_and_ends_as_the_network_is_defined() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 4).await.unwrap();
            let (end, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
            let other = thread::spawn({
                let (end, turns) = (end.clone(), turns.clone());
                move || {
                    while !end.load(Ordering::Relaxed) {
                        if interface("volt0").is_some_and(|bridge| has_flag(&bridge, "UP")) {
                            ip("link set volt0 down");
                            turns.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
            tokio::time::sleep(Duration::from_secs(5)).await;
            // At 0, 0.4, 1.2, 2.8 s; without a pause it would be hundreds.
            let fought = turns.load(Ordering::Relaxed);
            assert!((1..20).contains(&fought), "{fought}");
            // Meanwhile others are served.
            client.tap(&factory, "vm-web").await.unwrap();
            end.store(true, Ordering::Relaxed);
            other.join().unwrap();
            settle("volt0 is up", || has_flag(&interface("volt0").unwrap(), "UP")).await;
        });
    });
}

#[test]
fn more_changes_than_the_socket_holds_are_answered_by_a_look_at_everything() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            ip("link add up0 type veth peer up1");
            // It hears of nothing while it stands still.
            let pid = rustix::process::Pid::from_child(&netmgr.process);
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
            ip("link set volt0 down");
            let commands: String = (0..8000).map(|n| format!("link set up0 mtu {}\n", 1300 + n % 2)).collect();
            let mut batch = std::process::Command::new("ip")
                .args(["-batch", "-"])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut batch.stdin.take().unwrap(), commands.as_bytes()).unwrap();
            assert!(batch.wait().unwrap().success());
            let lost = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
            let drops = |line: &str| line.split_whitespace().nth(8).and_then(|n| n.parse().ok()).unwrap_or(0);
            assert!(lost.lines().skip(1).map(drops).sum::<u32>() > 0, "{lost}");
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
            settle("volt0 is up", || has_flag(&interface("volt0").unwrap(), "UP")).await;
        });
    });
}

/// Over any number of restarts a port that is alive stays what it is, and nothing of it is left when it ends.
#[test]
fn port_of_a_live_workload_is_the_same_over_twenty_restarts_and_leaves_nothing() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start();
        let (tap, before) = run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 2).await.unwrap();
            let port = client.tap(&factory, "vm-a-longer-name").await.unwrap();
            let had = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
            netmgr.kill();
            had
        });
        for round in 0..20 {
            if round % 3 == 1 {
                ip("link delete volt0");
            }
            netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let network = client.define_default().await;
                let factory = client.factory(&network, 2).await.unwrap();
                let fault = client.tap(&factory, "vm-a-longer-name").await.err().unwrap();
                assert_eq!(fault.code, Code::AlreadyExists, "{fault}");
                assert_eq!(
                    client.tap_with(&factory, "vm-b", &before.mac).await.err().unwrap().code,
                    Code::AlreadyExists
                );
                assert_eq!(client.info(&network).await.unwrap().ports, [before.brief()]);
                assert_eq!(text(&interface(&before.interface).unwrap(), "master"), "volt0");
                assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::WrongState);
            });
            netmgr.kill();
        }
        drop(tap);
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            settle("nothing is left but the bridge", || interfaces() == ["volt0"]).await;
            client.remove("volt0").await.unwrap();
        });
        assert!(interfaces().is_empty());
    });
}
