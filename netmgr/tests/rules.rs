//! The rules of what guests may send, as the program keeps them: there before a TAP is on its bridge, and as long as that is there; whatever happens to
//! them or to the program. Runs it as root, each test in a network namespace of its own. (What the rules do to frames: `src/nft/tests`.)

mod common;

use std::{collections::BTreeSet, process::Command, time::Duration};

use common::*;
use serde_json::Value;
use testrig::container::try_send_frame;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The tables of this network namespace.
fn tables() -> String {
    nft("list tables")
}

/// All of both tables.
fn table() -> String {
    let of = |family| Command::new("nft").args(["list", "table", family, "volt-vmm"]).output().unwrap().stdout;
    String::from_utf8([of("bridge"), of("inet")].concat()).unwrap()
}

/// The same without the host's own addresses, which others change, and the rules that are others then.
fn of_ports() -> String {
    let table = table();
    let sets = table.split("\n\n").filter(|part| !part.contains("\tset own4 {") && !part.contains("\tset own6 {"));
    let lines = sets.flat_map(str::lines);
    let stay = |line: &&str| !line.ends_with(" as a moment ago\"") && !line.ends_with("\"by its policy\"");
    lines.filter(stay).collect::<Vec<_>>().join("\n")
}

/// The elements of a set of the table, one as `interface address`.
fn elements(set: &str) -> BTreeSet<String> {
    let output = Command::new("nft").args(["-j", "list", "set", "bridge", "volt-vmm", set]).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let sets = said["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("set"));
    let elements = sets.flat_map(|set| set["elem"].as_array().cloned().unwrap_or_default());
    let text = |part: &Value| part.as_str().unwrap_or_default().to_owned();
    elements
        .map(|element| match element["concat"].as_array() {
            Some(parts) => parts.iter().map(text).collect::<Vec<_>>().join(" "),
            None => text(&element),
        })
        .collect()
}

fn set(elements: &[&str]) -> BTreeSet<String> {
    elements.iter().map(|element| (*element).to_owned()).collect()
}

#[test]
fn port_brings_its_elements_and_takes_them_with_it_and_the_last_network_the_table() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            assert_eq!(tables(), "");
            let factory = client.factory(&client.define_default().await, 3).await.unwrap();
            let web = client.tap_from(&factory, "vm-web", &MAC, &["10.42.0.9", "fd00::9"]).await.unwrap();
            let db = client.tap(&factory, "vm-db").await.unwrap();
            assert_eq!(elements("ports"), set(&["tap-web", "tap-db"]));
            assert!(elements("macs").contains("tap-web 02:00:00:00:00:09"));
            assert_eq!(elements("ipv4"), set(&["tap-web 0.0.0.0", "tap-web 10.42.0.9"]));
            assert_eq!(elements("ipv6"), set(&["tap-web ::", "tap-web fd00::9", "tap-web fe80::ff:fe00:9"]));
            client.release(&web).await.unwrap();
            settle("its elements are gone", || (elements("ports"), elements("ipv6")) == (set(&["tap-db"]), set(&[])))
                .await;
            // One that could not be made leaves none, and takes none of another's: its names are taken.
            for (workload, interface) in [("vm-x", "tap-x"), ("vm-y", "tap-y")] {
                ip(&format!("link add {interface} type veth peer p{interface}"));
                client.tap(&factory, workload).await.err().unwrap();
            }
            assert_eq!(elements("ports"), set(&["tap-db"]));
            drop(db);
            settle("the port is gone", || elements("ports").is_empty()).await;
            nft("add table bridge volt-vmm-other");
            client.remove("volt0").await.unwrap();
            assert_eq!(tables(), "table bridge volt-vmm-other\n");
        });
    });
}

#[test]
fn no_tap_is_on_a_bridge_without_its_elements() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // In this order, while none goes: what is on the bridge has had its elements before.
                    let links: Value = serde_json::from_str(&ip("-j link show")).unwrap();
                    let on_bridge = links.as_array().unwrap().iter().filter(|link| link["master"] == "volt0");
                    let on_bridge: BTreeSet<String> = on_bridge.map(|link| text(link, "ifname")).collect();
                    assert!(on_bridge.is_subset(&elements("ports")), "{on_bridge:?}: {:?}", elements("ports"));
                    assert!(on_bridge.is_subset(&macs()), "{on_bridge:?}");
                    seen = seen.max(on_bridge.len());
                }
                seen
            });
            run(async {
                let client = netmgr.connect().await;
                let factory = client.factory(&client.define_default().await, 60).await.unwrap();
                let mut ports = Vec::new();
                for n in 0..60 {
                    ports.push(client.tap(&factory, &format!("vm-{n}")).await.unwrap());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                assert_eq!(elements("ports").len(), 60);
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                // Who still looks would see them go.
                settle("nobody looks any more", || watcher.is_finished()).await;
                drop(ports);
            });
            assert!(watcher.join().unwrap() > 0);
        });
    });
}

/// From before its port is there until after that has gone, as fast as it can: of what somebody hears who is on the bridge, each frame is one that it may
/// send.
#[test]
fn container_that_sends_all_the_time_sends_nothing_that_it_may_not_while_its_port_comes_and_goes() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        let container = Container::new();
        let done = std::sync::atomic::AtomicBool::new(false);
        // An ARP request (RFC 826), whose target tells what it is; and UDP, which a policy forbids.
        let arp = |mac: &[u8; 6], inner: &[u8; 6], sender: u8, what: u8| {
            let head = [&[0xff; 6][..], mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], inner, &[10, 42, 0, sender]].concat();
            [&head[..], &[0; 6], &[10, 42, 0, what]].concat()
        };
        const RIGHT: u8 = 200;
        let other = [2, 0, 0, 0, 0, 0xa];
        let udp = [&[0xff; 6][..], &MAC, &[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 42, 0, 9]].concat();
        let udp = [&udp[..], &[198, 51, 100, 7, 0, 7, 0, 54, 0, 8, 0, 0]].concat();
        let frames = [
            arp(&MAC, &MAC, 1, 201),
            arp(&other, &other, 10, 202),
            arp(&MAC, &other, 9, 203),
            [&other[..], &other, &arp(&MAC, &MAC, 9, 204)[12..]].concat(),
            udp,
            arp(&MAC, &MAC, 9, RIGHT),
        ];
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                container.within(|| {
                    let mut sent = 0_u64;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        sent += frames.iter().filter(|frame| try_send_frame("eth0", frame)).count() as u64;
                    }
                    sent
                })
            });
            run(async {
                let client = netmgr.connect().await;
                let network = client.define_default().await;
                let factory = client.factory(&network, 1).await.unwrap();
                let ear = tap("up0");
                ip("link set up0 master volt0 up");
                forwards("up0").await;
                let mut heard = 0;
                for round in 0..30 {
                    let mut made = network.policy_request();
                    made.get().init_rules().init_allow(1).set(0, "198.51.100.0/24 udp 53");
                    let policy = made.send().pipeline.get_policy();
                    let (port, _) = client
                        .veth(&factory, "container-db", &container, |mut asked| {
                            asked.set_mac(&MAC);
                            asked.set_policy(policy);
                            asked.init_addresses(1).set(0, "10.42.0.9");
                        })
                        .await
                        .unwrap();
                    let (before, mut buffer) = (heard, [0; 2048]);
                    let mut hears = || {
                        while let Ok(length) = rustix::io::read(&ear, &mut buffer[..]) {
                            let frame = &buffer[12..length];
                            // That of the host's own, and what netmgr announces, apart.
                            if frame[12..14] == [8, 6] && frame[41] > 199 {
                                assert_eq!(frame, frames[5], "{round}");
                                heard += 1;
                            } else {
                                assert_ne!(frame[..], frames[4][..], "{round}");
                            }
                        }
                        heard
                    };
                    eventually("what it may send is heard", || hears() > before);
                    client.release(&port).await.unwrap();
                    hears();
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                settle("nobody sends any more", || sender.is_finished()).await;
            });
            assert!(sender.join().unwrap() > 0);
        });
    });
}

/// The interfaces that have a MAC address to send from.
fn macs() -> BTreeSet<String> {
    elements("macs").iter().map(|element| element.split(' ').next().unwrap().to_owned()).collect()
}

/// What others may do to the rules.
const HARM: [&[&str]; 7] = [
    &["flush ruleset"],
    &["delete table bridge volt-vmm"],
    &["delete table inet volt-vmm"],
    &["insert rule bridge volt-vmm source accept"],
    &["flush chain bridge volt-vmm guest"],
    &["delete element bridge volt-vmm ports { tap-web }"],
    &["add element bridge volt-vmm ipv4 { tap-web . 10.42.0.1 }"],
];

#[test]
fn rules_that_somebody_changes_are_there_again_at_once_after_a_start_and_after_an_attach() {
    for commands in HARM {
        with_nft(move || {
            let mut netmgr = Netmgr::start();
            let harm = || {
                nft("add table inet volt-vmm-other");
                commands.iter().for_each(|command| _ = nft(command));
            };
            let (tap, index, whole) = run(async {
                let client = netmgr.connect().await;
                let factory = client.factory(&client.define_default().await, 3).await.unwrap();
                let web = client.tap_from(&factory, "vm-web", &MAC, &["10.42.0.9"]).await.unwrap();
                let tap = client.fd(&web).await.unwrap();
                let index = client.port(&web).await.unwrap().index;
                let whole = table();
                harm();
                settle(&format!("{commands:?} is mended"), || table() == whole).await;
                // By the attach alone, or with it: what netmgr hears meanwhile may come before it.
                harm();
                let db = client.tap(&factory, "vm-db").await.unwrap();
                assert_eq!(elements("ports"), set(&["tap-web", "tap-db"]), "{commands:?}");
                client.release(&db).await.unwrap();
                settle(&format!("{commands:?} is mended"), || table() == whole).await;
                netmgr.kill();
                (tap, index, whole)
            });
            // And by the next start, whatever the last one has left.
            harm();
            nft("add table bridge volt-vmm");
            let next = Netmgr::start();
            assert_eq!(table(), whole, "{commands:?}");
            if commands != ["flush ruleset"] {
                assert!(tables().contains("table inet volt-vmm-other\n"), "{commands:?}");
            }
            run(async {
                let client = next.connect().await;
                assert_eq!(client.info(&client.network("volt0").await.unwrap()).await.unwrap().ports.len(), 1);
                close(tap, index).await;
                settle("the port's elements are gone", || elements("ports").is_empty()).await;
            });
        });
    }
}

#[test]
fn tap_whose_name_somebody_else_has_is_looked_at_by_the_one_that_it_was_given() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 3).await.unwrap();
            let _web = client.tap_from(&factory, "vm-web", &MAC, &["10.42.0.9"]).await.unwrap();
            // Kernels before 6.2 rename no interface that is up, and netmgr brings it up again.
            let done = |command: &str| Command::new("ip").args(command.split(' ')).status().unwrap().success();
            let renamed = || done("link set dev tap-web name stranger");
            eventually("it has another name", || renamed() || done("link set dev tap-web down") && renamed());
            ip("link add tap-web type bridge");
            let renamed = ["stranger 02:00:00:00:00:09", "tap-web 02:00:00:00:00:09"];
            settle("both names are looked at", || elements("macs") == set(&renamed)).await;
            assert_eq!(elements("ports"), set(&["stranger", "tap-web"]));
            ip("link del tap-web");
            settle("it has its name again", || elements("macs") == set(&renamed[1..])).await;
            assert_eq!(text(&interface("tap-web").unwrap(), "master"), "volt0");
            // Whoever has that name next is not looked at.
            ip("link add stranger type veth peer peer");
            ip("link set stranger master volt0");
            settle("all is as it was", || elements("ports") == set(&["tap-web"])).await;
        });
    });
}

#[test]
fn tap_whose_mark_is_cleared_while_there_is_no_netmgr_sends_no_more_than_before() {
    with_nft(|| {
        let mut netmgr = Netmgr::start();
        let (tap, index) = run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 3).await.unwrap();
            let web = client.tap_from(&factory, "vm-web", &MAC, &["10.42.0.9"]).await.unwrap();
            let (tap, index) = (client.fd(&web).await.unwrap(), client.port(&web).await.unwrap().index);
            // Before the connection's end, with which the port would go.
            netmgr.kill();
            (tap, index)
        });
        let cleared = Command::new("ip").args(["link", "set", "dev", "tap-web", "alias", ""]).status().unwrap();
        assert!(cleared.success());
        // One that is not on a bridge of ours is none of netmgr's.
        nft("add element bridge volt-vmm ports { elsewhere }");
        let next = Netmgr::start();
        assert_eq!(elements("ports"), set(&["tap-web"]));
        assert_eq!(elements("macs"), set(&["tap-web 02:00:00:00:00:09"]));
        assert_eq!(elements("ipv4"), set(&["tap-web 0.0.0.0", "tap-web 10.42.0.9"]));
        run(async {
            let _client = next.connect().await;
            close(tap, index).await;
            settle("nothing of it is left", || elements("ports").is_empty()).await;
        });
    });
}

#[test]
fn netmgr_that_is_killed_at_any_moment_leaves_no_element_behind_the_next_start() {
    with_nft(|| {
        for moment in 0..20 {
            let mut netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let work = async {
                    let factory = client.factory(&client.define_default().await, 9).await?;
                    for n in 0..9 {
                        client.tap_from(&factory, &format!("vm-{n}"), &[], &[&format!("10.42.0.{}", n + 2)]).await?;
                    }
                    Ok::<_, ipc::Fault>(())
                };
                let _ = tokio::time::timeout(Duration::from_micros(moment * 700), work).await;
                netmgr.kill();
            });
            let next = Netmgr::start();
            let left: BTreeSet<String> = elements("ports").union(&macs()).cloned().collect();
            assert!(left.is_empty() && elements("ipv4").is_empty(), "{moment}: {left:?}");
            run(async {
                let client = next.connect().await;
                client.define_default().await;
                client.remove("volt0").await.unwrap();
            });
            assert_eq!(tables(), "");
        }
    });
}

#[test]
fn two_installations_keep_their_own_rules() {
    with_nft(|| {
        let (one, other) = (Netmgr::start(), Netmgr::start_with(|command| _ = command.args(["--instance", "b2"])));
        run(async {
            let (one, other) = (one.connect().await, other.connect().await);
            let first = one.factory(&one.define_default().await, 1).await.unwrap();
            let second = other.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            let second = other.factory(&second, 1).await.unwrap();
            let _web = one.tap(&first, "vm-web").await.unwrap();
            let before = of_ports();
            let db = other.tap(&second, "vm-db").await.unwrap();
            assert_eq!(elements("ports"), set(&["tap-web"]));
            assert!(nft("list set bridge volt-vmm-b2 ports").contains("\"tap-db\""));
            other.release(&db).await.unwrap();
            other.remove("volt1").await.unwrap();
            assert_eq!((tables(), of_ports()), ("table bridge volt-vmm\ntable inet volt-vmm\n".into(), before));
        });
    });
}
