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

const WEB: &str = "tap-web";

/// What there should be, of `volt0` and the port of `vm-web`.
fn whole() -> Result<(), String> {
    let Some(bridge) = interface("volt0") else { return Err("there is no volt0".into()) };
    let tap = interface(WEB).ok_or("there is no tap-web")?;
    let alias = text(&tap, "ifalias");
    let right = ipv4(&bridge) == ["10.42.0.1/24"]
        && has_flag(&bridge, "UP")
        && bridge["mtu"] == 1500
        && bridge.get("master").is_none()
        && bridge["linkinfo"]["info_data"]["stp_state"] == 0
        && text(&bridge, "ifalias") == "volt-vmm network volt0 10.42.0.1/24 1500 -"
        && has_flag(&tap, "UP")
        && tap["mtu"] == 1500
        && text(&tap, "master") == "volt0"
        && alias.starts_with("volt-vmm port vm-web ")
        && alias.ends_with(" volt0 1500 -")
        && ip("route").contains("10.42.0.0/24 dev volt0");
    if right { Ok(()) } else { Err(format!("{bridge}\n{tap}")) }
}

/// What others may do to a network and its port.
const HARM: [&[&str]; 17] = [
    &["link delete volt0"],
    &["link set volt0 down"],
    &["addr flush dev volt0"],
    &["addr add 10.42.0.77/24 dev volt0"],
    &["addr delete 10.42.0.1/24 dev volt0", "addr add 10.43.0.1/24 dev volt0"],
    &["link set volt0 mtu 1400"],
    &["link set volt0 type bridge stp_state 1"],
    &["link set volt0 address 02:11:22:33:44:55"],
    &["link set volt0 down", "link set volt0 name elsewhere", "link set elsewhere up"],
    &["link add vrf0 type vrf table 10", "link set volt0 master vrf0"],
    &["link set volt0 alias ALIAS"],
    &["link set tap-web down"],
    &["link set tap-web nomaster"],
    &["link set tap-web mtu 1300"],
    &["link set tap-web address 02:11:22:33:44:55"],
    &["link set tap-web alias ALIAS"],
    &["link add br1 type bridge", "link set tap-web master br1"],
];

/// Runs them; `ALIAS` stands for an empty text. Some kernels know no VRF.
fn harm(commands: &[&str]) {
    for command in commands {
        let words = command.split(' ').map(|word| if word == "ALIAS" { "" } else { word });
        let output = std::process::Command::new("ip").args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("Unknown device type") {
            println!("skipped: {command}: {said}");
            return;
        }
        assert!(output.status.success(), "{command}: {said}");
    }
}

#[test]
fn what_is_changed_while_netmgr_runs_is_changed_back_at_once_and_the_port_is_the_same() {
    for commands in HARM {
        in_own_network(move || {
            let netmgr = Netmgr::start();
            block_on(async {
                let client = Client::new(&netmgr).await;
                let network = client.define_default().await;
                let factory = client.factory(&network, 2).await.unwrap();
                let port = client.tap(&factory, "vm-web").await.unwrap();
                let before = client.port(&port).await.unwrap();
                assert_eq!(whole(), Ok(()));
                harm(commands);
                // Nobody asks for anything.
                settle(&format!("{commands:?} is mended"), || whole().is_ok()).await;
                assert_eq!(client.port(&port).await.unwrap(), before);
                assert_eq!(interface(WEB).unwrap()["ifindex"], before.index);
                client.fd(&port).await.unwrap();
                client.tap(&factory, "vm-db").await.unwrap();
                // Nothing is left of what was there under another name.
                client.release(&port).await.unwrap();
                settle("the ports are gone", || interface(WEB).is_none() && interface("tap-db").is_none()).await;
                client.remove("volt0").await.unwrap();
                assert_eq!(interface("volt0"), None);
                assert_eq!(interface("elsewhere"), None);
            });
        });
    }
}

/// Each while no netmgr runs, and while a process has the TAP of the one before.
#[test]
fn what_was_changed_before_netmgr_starts_is_changed_back_by_the_start_or_the_next_definition() {
    for commands in HARM {
        in_own_network(move || {
            let mut earlier = Netmgr::start();
            let (tap, before) = block_on(async {
                let client = Client::new(&earlier).await;
                let factory = client.factory(&client.define_default().await, 2).await.unwrap();
                let port = client.tap(&factory, "vm-web").await.unwrap();
                let had = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
                earlier.kill();
                had
            });
            harm(commands);
            // Of a bridge that is gone only who defines the network knows.
            let by_definition = commands == ["link delete volt0"];
            let netmgr = Netmgr::start();
            block_on(async {
                let client = Client::new(&netmgr).await;
                assert_eq!(client.network("volt0").await.is_ok(), !by_definition, "{commands:?}");
                if !by_definition && commands != ["link set tap-web alias ALIAS"] {
                    assert_eq!(whole(), Ok(()), "{commands:?}");
                }
                let network = client.define_default().await;
                if commands == ["link set tap-web alias ALIAS"] {
                    // Nothing tells any more that it is ours: it is left alone, and in the way of nobody else's.
                    let factory = client.factory(&network, 2).await.unwrap();
                    assert_eq!(client.tap(&factory, "vm-web").await.err().unwrap().code, Code::Conflict);
                    assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::WrongState);
                    return;
                }
                assert_eq!(whole(), Ok(()), "{commands:?}");
                assert_eq!(client.info(&network).await.unwrap().ports, std::slice::from_ref(&before), "{commands:?}");
                let factory = client.factory(&network, 2).await.unwrap();
                let fault = client.tap(&factory, "vm-web").await.err().unwrap();
                assert_eq!(fault.code, Code::AlreadyExists, "{commands:?}: {fault}");
                close(tap, before.index).await;
                client.tap(&factory, "vm-web").await.unwrap();
            });
        });
    }
}

#[test]
fn deleted_tap_is_lost_to_its_holder_and_the_workload_may_have_another() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        block_on(async {
            let client = Client::new(&netmgr).await;
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
        block_on(async {
            let client = Client::new(&netmgr).await;
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
        block_on(async {
            let client = Client::new(&netmgr).await;
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
        block_on(async {
            let client = Client::new(&netmgr).await;
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
        block_on(async {
            let client = Client::new(&netmgr).await;
            client.define_default().await;
            ip("link add up0 type veth peer up1");
            // It hears of nothing while it stands still.
            let pid = rustix::process::Pid::from_child(&netmgr.child);
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
            ip("link set volt0 down");
            let commands: String = (0..4000).map(|n| format!("link set up0 mtu {}\n", 1300 + n % 2)).collect();
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
        let (tap, before) = block_on(async {
            let client = Client::new(&netmgr).await;
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
            block_on(async {
                let client = Client::new(&netmgr).await;
                let network = client.define_default().await;
                let factory = client.factory(&network, 2).await.unwrap();
                let fault = client.tap(&factory, "vm-a-longer-name").await.err().unwrap();
                assert_eq!(fault.code, Code::AlreadyExists, "{fault}");
                assert_eq!(
                    client.tap_with(&factory, "vm-b", &before.mac).await.err().unwrap().code,
                    Code::AlreadyExists
                );
                assert_eq!(client.info(&network).await.unwrap().ports, std::slice::from_ref(&before));
                assert_eq!(text(&interface(&before.interface).unwrap(), "master"), "volt0");
                assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::WrongState);
            });
            netmgr.kill();
        }
        drop(tap);
        let netmgr = Netmgr::start();
        block_on(async {
            let client = Client::new(&netmgr).await;
            settle("nothing is left but the bridge", || interfaces() == ["volt0"]).await;
            client.remove("volt0").await.unwrap();
        });
        assert!(interfaces().is_empty());
    });
}
