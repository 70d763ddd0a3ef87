//! Policies as the program keeps them: in force before a port is up, narrowed and never widened, changed live, and known again whatever happens to the rules or
//! to the program. Runs it as root, each test in a network namespace of its own. (What policies do to frames: `src/nft/tests/policy.rs`.)

mod common;
mod given;

use std::collections::BTreeSet;

use common::*;
use given::*;
use ipc::{Code, Fault};
use schema::network_capnp::{network, policy, port, port_factory};

/// Defines `volt0` with what its ports have.
async fn define(client: &Client, default: &[&str]) -> network::Client {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name("volt0");
    config.set_gateway("10.42.0.1");
    config.set_prefix_length(24);
    write_rules(config.init_policy(), default);
    let answer = client.connection.call("define a network", DEADLINE, request.send()).await.unwrap();
    answer.get().unwrap().get_network().unwrap()
}

async fn factory(client: &Client, network: &network::Client, bound: Option<policy::Client>) -> port_factory::Client {
    let mut request = network.port_factory_request();
    request.get().set_max_ports(9);
    if let Some(bound) = bound {
        request.get().set_policy(bound);
    }
    let answer = client.connection.call("make a factory", DEADLINE, request.send()).await.unwrap();
    answer.get().unwrap().get_factory().unwrap()
}

async fn of_factory(client: &Client, factory: &port_factory::Client) -> policy::Client {
    let answer = client.connection.call("look", DEADLINE, factory.policy_request().send()).await.unwrap();
    answer.get().unwrap().get_policy().unwrap()
}

/// A port of `vm-web`, with 10.42.0.9 and fd00::9.
async fn web(
    client: &Client,
    factory: &port_factory::Client,
    policy: Option<policy::Client>,
) -> Result<port::Client, Fault> {
    let mut request = factory.create_tap_request();
    request.get().set_workload("vm-web");
    request.get().set_mac(&MAC);
    let mut list = request.get().init_addresses(2);
    list.set(0, "10.42.0.9");
    list.set(1, "fd00::9");
    if let Some(policy) = policy {
        request.get().set_policy(policy);
    }
    Ok(client.connection.call("make a port", DEADLINE, request.send()).await?.get()?.get_port()?)
}

async fn set(client: &Client, port: &port::Client, policy: Option<policy::Client>) -> Result<(), Fault> {
    let mut request = port.set_policy_request();
    if let Some(policy) = policy {
        request.get().set_policy(policy);
    }
    client.connection.call("set a policy", DEADLINE, request.send()).await.map(drop)
}

/// What a port's policy has allowed and denied, in packets.
async fn counted(client: &Client, port: &port::Client) -> (u64, u64) {
    let answer = client.connection.call("look", DEADLINE, port.stats_request().send()).await.unwrap();
    let stats = answer.get().unwrap().get_stats().unwrap();
    (stats.get_allowed_packets(), stats.get_denied_packets())
}

/// The comments of the rules that are in force.
fn in_force() -> BTreeSet<String> {
    elements("rules").iter().map(|element| text(&element["elem"], "comment")).filter(|text| !text.is_empty()).collect()
}

fn set_of_texts(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn policy_holds_from_the_first_frame_on_is_changed_live_counted_and_gone_with_its_port() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let all = factory(&client, &network, None).await;
            let one = policy(&client, &network, &["198.51.100.0/24 udp 53"]).await.unwrap();
            let port = web(&client, &all, Some(one)).await.unwrap();
            let tap = client.fd(&port).await.unwrap();
            forwards("tap-web").await;
            sends(&tap, FAR, 53);
            sends(&tap, FAR, 54);
            sends(&tap, [10, 42, 0, 1], 53);
            assert_eq!(counted(&client, &port).await, (1, 2));
            let other = policy(&client, &network, &["any udp 54", "host"]).await.unwrap();
            set(&client, &port, Some(other)).await.unwrap();
            sends(&tap, FAR, 53);
            sends(&tap, FAR, 54);
            sends(&tap, [10, 42, 0, 1], 53);
            assert_eq!(counted(&client, &port).await, (3, 3), "it goes on counting");
            assert_eq!(in_force(), set_of_texts(&["any udp 54", "host"]));
            assert_eq!(had(&client, &network, "vm-web").await.unwrap(), ["any udp 54", "host"]);
            // Without one it sends to wherever it likes, and nobody counts.
            set(&client, &port, None).await.unwrap();
            sends(&tap, FAR, 53);
            assert_eq!((counted(&client, &port).await, had(&client, &network, "vm-web").await), ((0, 0), None));
            let last = policy(&client, &network, &[]).await.unwrap();
            set(&client, &port, Some(last)).await.unwrap();
            sends(&tap, FAR, 53);
            assert_eq!(counted(&client, &port).await, (0, 1));
            let listed = network.ports_request();
            let answer = client.connection.call("list", DEADLINE, listed.send()).await.unwrap();
            let stats = answer.get().unwrap().get_ports().unwrap().get(0).get_stats().unwrap();
            assert_eq!((stats.get_denied_packets(), stats.get_denied_bytes()), (1, 42 - 14));
            client.release(&port).await.unwrap();
            for set in ["policed", "policies", "rules", "allow4", "allow6", "hosts", "allowed", "denied", "links"] {
                assert_eq!(elements(set).len(), 0, "{set}");
            }
            assert_eq!(code(set_policy(&client, &network, "vm-web", None).await), Some(Code::NotFound));
        });
    });
}

#[test]
fn holder_of_a_factory_or_a_port_narrows_its_policy_and_never_widens_it() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, &["any tcp", "host udp 53"]).await;
            let wide = async || policy(&client, &network, &["any", "host"]).await.unwrap();
            let bound = policy(&client, &network, &["10.0.0.0/8", "host udp 1-100"]).await.unwrap();
            let bounded = factory(&client, &network, Some(bound)).await;
            let own = of_factory(&client, &bounded).await;
            assert_eq!(said(&client, &own).await, ["host udp 1-100", "10.0.0.0/8"]);
            let narrower = narrow(&client, &own, &["10.1.0.0/16 tcp", "any udp", "vm-db"]).await.unwrap();
            let narrowed = ["10.0.0.0/8 udp", "10.1.0.0/16 tcp", "vm-db@10.0.0.0/8"];
            assert_eq!(said(&client, &narrower).await, narrowed);
            for (asked, has) in [
                (None, &["host udp 1-100", "10.0.0.0/8"][..]),
                (Some(wide().await), &["host udp 1-100", "10.0.0.0/8"]),
                (Some(narrower), &narrowed),
            ] {
                let port = web(&client, &bounded, asked).await.unwrap();
                assert_eq!(had(&client, &network, "vm-web").await.unwrap(), has);
                set(&client, &port, Some(wide().await)).await.unwrap();
                assert_eq!(had(&client, &network, "vm-web").await.unwrap(), ["host udp 1-100", "10.0.0.0/8"]);
                // Who has the network may have it be anything, and the holder then stays within that.
                let other = policy(&client, &network, &["11.0.0.0/8"]).await.unwrap();
                set_policy(&client, &network, "vm-web", Some(other)).await.unwrap();
                set(&client, &port, Some(wide().await)).await.unwrap();
                assert_eq!(had(&client, &network, "vm-web").await.unwrap(), ["11.0.0.0/8"]);
                set(&client, &port, None).await.unwrap();
                assert_eq!(had(&client, &network, "vm-web").await.unwrap(), ["11.0.0.0/8"]);
                client.release(&port).await.unwrap();
            }
            // A tenant is within what the network says; who has the network is not.
            let tenant = client.tenant("t", 9).await.unwrap();
            let of_tenant = client.tenant_factory(&tenant, "volt0").await.unwrap();
            let free = factory(&client, &network, None).await;
            for (factory, has) in [(&of_tenant, &["any tcp", "host udp 53"]), (&free, &["any", "host"])] {
                assert_eq!(said(&client, &of_factory(&client, factory).await).await, ["any tcp", "host udp 53"]);
                let port = web(&client, factory, Some(wide().await)).await.unwrap();
                assert_eq!(had(&client, &network, "vm-web").await.unwrap(), *has);
                client.release(&port).await.unwrap();
            }
        });
    });
}

/// What says that it is a policy, and is not netmgr's.
struct Forged;

impl policy::Server for Forged {}

#[test]
fn what_is_no_policy_of_netmgr_s_or_no_rule_is_refused_and_nothing_is_made() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let (client, other) = (netmgr.connect().await, netmgr.connect().await);
            let network = client.define_default().await;
            let factory = factory(&client, &network, None).await;
            let forged = || capnp_rpc::new_client::<policy::Client, _>(Forged);
            assert_eq!(code(web(&client, &factory, Some(forged())).await), Some(Code::InvalidArgument));
            // Another connection's comes by way of this client.
            let theirs = policy(&other, &other.network("volt0").await.unwrap(), &["any"]).await.unwrap();
            assert_eq!(code(web(&client, &factory, Some(theirs)).await), Some(Code::InvalidArgument));
            // One that is broken.
            let broken =
                capnp_rpc::new_future_client::<policy::Client>(async { Err(capnp::Error::failed("no".into())) });
            assert_eq!(code(web(&client, &factory, Some(broken)).await), Some(Code::InvalidArgument));
            assert_eq!((interface("tap-web").is_none(), elements("ports").len()), (true, 0));
            for wrong in ["", "any tcp 0", "10.0.0.1/8", "Host", "any any 1"] {
                let refused = policy(&client, &network, &["any", wrong]).await.err().unwrap();
                assert!(refused.code == Code::InvalidArgument && refused.to_string().contains(wrong), "{refused}");
            }
            let rules: Vec<String> = (0..33).map(|n| format!("10.{n}.0.0/16")).collect();
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            policy(&client, &network, &rules[..32]).await.unwrap();
            assert_eq!(code(policy(&client, &network, &rules).await), Some(Code::InvalidArgument));
            // A policy that is still to come is one.
            let mut made = network.policy_request();
            write_rules(made.get().init_rules(), &["any tcp"]);
            let coming = made.send().pipeline.get_policy();
            let port = web(&client, &factory, Some(coming)).await.unwrap();
            assert_eq!(had(&client, &network, "vm-web").await.unwrap(), ["any tcp"]);
            drop(port);
        });
    });
}

#[test]
fn policies_are_known_again_after_a_kill_and_one_that_is_lost_meanwhile_allows_nothing() {
    for flushed in [false, true] {
        with_nft(move || {
            let mut netmgr = Netmgr::start();
            let (tap, index, default) = run(async {
                let client = netmgr.connect().await;
                let network = define(&client, &["any tcp", "vm-db"]).await;
                let all = factory(&client, &network, None).await;
                let own = policy(&client, &network, &["198.51.100.0/24 udp", "vm-db"]).await.unwrap();
                let port = web(&client, &all, Some(own)).await.unwrap();
                let tap = client.fd(&port).await.unwrap();
                forwards("tap-web").await;
                sends(&tap, FAR, 53);
                let index = client.port(&port).await.unwrap().index;
                let before = in_force();
                assert_eq!(before, set_of_texts(&["volt0", "any tcp", "vm-db", "198.51.100.0/24 udp"]));
                netmgr.kill();
                (tap, index, before)
            });
            if flushed {
                nft("flush ruleset");
            }
            let next = Netmgr::start();
            run(async {
                let client = next.connect().await;
                let network = client.network("volt0").await.unwrap();
                let has = had(&client, &network, "vm-web").await.unwrap();
                if flushed {
                    assert_eq!(has, [""; 0]);
                    sends(&tap, FAR, 53);
                } else {
                    assert_eq!((has, in_force()), (vec!["198.51.100.0/24 udp".to_owned(), "vm-db".into()], default));
                    // And it counts on.
                    let answer =
                        client.connection.call("list", DEADLINE, network.ports_request().send()).await.unwrap();
                    let stats = answer.get().unwrap().get_ports().unwrap().get(0).get_stats().unwrap();
                    assert_eq!((stats.get_allowed_packets(), stats.get_denied_packets()), (1, 0));
                    // A port to come has what the network says.
                    let factory = factory(&client, &network, None).await;
                    let db = client.tap(&factory, "vm-db").await.unwrap();
                    assert_eq!(had(&client, &network, "vm-db").await.unwrap(), ["any tcp", "vm-db"]);
                    client.release(&db).await.unwrap();
                }
                // What is lost can be given again.
                let again = policy(&client, &network, &["any"]).await.unwrap();
                set_policy(&client, &network, "vm-web", Some(again)).await.unwrap();
                assert_eq!(had(&client, &network, "vm-web").await.unwrap(), ["any"]);
                close(tap, index).await;
                settle("nothing of it is left", || elements("policed").is_empty()).await;
            });
        });
    }
}

/// Beside another network, with which the rules stay, and alone.
#[test]
fn what_a_port_was_given_is_known_again_where_its_bridge_was_deleted_before_a_start() {
    for beside in [true, false] {
        with_nft(move || {
            let mut netmgr = Netmgr::start();
            let (tap, index) = run(async {
                let client = netmgr.connect().await;
                let network = client.define_default().await;
                if beside {
                    client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
                }
                let own = policy(&client, &network, &["198.51.100.0/24 udp 53"]).await.unwrap();
                let port = web(&client, &factory(&client, &network, None).await, Some(own)).await.unwrap();
                set_rate(&client, &network, "vm-web", (70_000, 80_000)).await.unwrap();
                publish(&client, &network, "vm-web", vec![tcp("0.0.0.0:8080")], 80).await.unwrap();
                let held = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap().index);
                netmgr.kill();
                held
            });
            ip("link delete volt0");
            let next = Netmgr::start();
            run(async {
                let client = next.connect().await;
                assert_eq!(code(client.network("volt0").await), Some(Code::NotFound));
                let network = client.define_default().await;
                let has = kept::Given::read(&client, &network, "vm-web").await;
                assert_eq!(has.policy, Some(set_of_texts(&["198.51.100.0/24 udp 53"])));
                assert_eq!((has.rate, has.published), ((70_000, 80_000), [8080].into()));
                forwards("tap-web").await;
                sends(&tap, FAR, 53);
                sends(&tap, FAR, 54);
                let listed = network.ports_request();
                let answer = client.connection.call("list", DEADLINE, listed.send()).await.unwrap();
                let stats = answer.get().unwrap().get_ports().unwrap().get(0).get_stats().unwrap();
                assert_eq!((stats.get_allowed_packets(), stats.get_denied_packets()), (1, 1));
                close(tap, index).await;
                settle("nothing of it is left", || elements("policed").is_empty()).await;
                // Once, and no later port's.
                client.remove("volt0").await.unwrap();
                let network = client.define_default().await;
                let _port = web(&client, &factory(&client, &network, None).await, None).await.unwrap();
                let has = kept::Given::read(&client, &network, "vm-web").await;
                assert!(has == kept::Given::default(), "{has:?}");
            });
        });
    }
}

#[test]
fn policies_that_somebody_takes_away_are_there_again_and_follow_who_comes_and_goes() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = define(&client, &["any tcp"]).await;
            let all = factory(&client, &network, None).await;
            let own = policy(&client, &network, &["vm-db tcp 5432", "host"]).await.unwrap();
            let _web = web(&client, &all, Some(own)).await.unwrap();
            let allowed =
                || elements("allow4").iter().filter(|element| element.to_string().contains("10.42.0.3")).count();
            assert_eq!(allowed(), 0);
            let db = client.tap_from(&all, "vm-db", &[], &["10.42.0.3"]).await.unwrap();
            assert_eq!(allowed(), 1);
            let list = || {
                let output = std::process::Command::new("nft").args(["list", "table", "bridge", "volt-vmm"]).output();
                String::from_utf8(output.unwrap().stdout).unwrap()
            };
            let whole = list();
            for harm in [
                "flush ruleset",
                "flush set bridge volt-vmm allow4",
                "flush map bridge volt-vmm policies",
                "delete element bridge volt-vmm policed { tap-web }",
                "flush set bridge volt-vmm rules",
                "flush chain bridge volt-vmm policed_ipv4",
            ] {
                nft(harm);
                settle(&format!("{harm} is mended"), || list() == whole).await;
            }
            client.release(&db).await.unwrap();
            assert_eq!(allowed(), 0);
            // The host's addresses, as they come and go.
            let own = |address: &str| elements("own4").iter().any(|element| element == address);
            assert!(own("10.42.0.1") && own("10.42.0.255") && !own("192.0.2.7"));
            ip("addr add 192.0.2.7/32 dev lo");
            settle("it is the host's", || own("192.0.2.7")).await;
            ip("addr del 192.0.2.7/32 dev lo");
            settle("it is the host's no more", || !own("192.0.2.7")).await;
        });
    });
}

#[test]
fn netmgr_that_is_killed_at_any_moment_leaves_nothing_of_a_policy_behind_the_next_start() {
    with_nft(|| {
        for moment in 0..12 {
            let mut netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let work = async {
                    let network = define(&client, &["any tcp"]).await;
                    let all = factory(&client, &network, None).await;
                    let own = policy(&client, &network, &["vm-db", "10.0.0.0/8 udp"]).await?;
                    let port = web(&client, &all, Some(own.clone())).await?;
                    set(&client, &port, None).await?;
                    set(&client, &port, Some(own)).await?;
                    client.release(&port).await
                };
                let _ = tokio::time::timeout(std::time::Duration::from_micros(moment * 1500), work).await;
                netmgr.kill();
            });
            let next = Netmgr::start();
            assert_eq!((elements("policed").len(), elements("allowed").len()), (0, 0), "{moment}");
            assert!(in_force().is_subset(&set_of_texts(&["any tcp"])), "{moment}: {:?}", in_force());
            run(async {
                let client = next.connect().await;
                client.define_default().await;
                assert_eq!(in_force(), set_of_texts(&[]), "the network is defined without one");
                client.remove("volt0").await.unwrap();
            });
            assert_eq!(nft("list tables"), "", "{moment}");
        }
    });
}

/// Of a guest that runs all the while.
#[test]
fn policy_that_is_taken_away_while_netmgr_is_killed_is_there_still_or_gone_and_never_one_that_allows_nothing() {
    with_nft(|| {
        let mut netmgr = Netmgr::start();
        let tap = run(async {
            let client = netmgr.connect().await;
            let network = define(&client, &[]).await;
            let port = web(&client, &factory(&client, &network, None).await, None).await.unwrap();
            let tap = client.fd(&port).await.unwrap();
            netmgr.kill();
            tap
        });
        netmgr = Netmgr::start();
        for moment in 0..48 {
            run(async {
                let client = netmgr.connect().await;
                let network = client.network("volt0").await.unwrap();
                let own = policy(&client, &network, &["vm-db"]).await.unwrap();
                set_policy(&client, &network, "vm-web", Some(own)).await.unwrap();
                let work = set_policy(&client, &network, "vm-web", None);
                let _ = tokio::time::timeout(std::time::Duration::from_micros(moment * 100), work).await;
                netmgr.kill();
            });
            netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let has = had(&client, &client.network("volt0").await.unwrap(), "vm-web").await;
                assert!(has.is_none() || has.as_deref() == Some(&["vm-db".to_owned()]), "{moment}: {has:?}");
            });
        }
        drop(tap);
    });
}
