//! What ports carry: how much of it they may, what is counted of it, and who is told what becomes of them. Runs the program as root, each test in a network
//! namespace of its own. (What rates do to frames: `src/nft/tests/rates.rs`.)

mod common;
mod given;

use common::*;
use given::*;
use ipc::{Code, Fault};
use schema::network_capnp::{
    MAX_RATE, MAX_WAITING_EVENTS, MIN_RATE, PortChange, network, port, port_factory, port_watcher,
};

async fn set(client: &Client, port: &port::Client, rate: Rate) -> Result<(), Fault> {
    let mut request = port.set_rate_request();
    write_rate(request.get().init_rate(), rate);
    client.connection.call("set a rate", DEADLINE, request.send()).await.map(drop)
}

/// What the first port of a network carries.
async fn carries(client: &Client, network: &network::Client) -> Rate {
    let answer = client.connection.call("list", DEADLINE, network.ports_request().send()).await.unwrap();
    let rate = answer.get().unwrap().get_ports().unwrap().get(0).get_rate().unwrap();
    (rate.get_from_guest(), rate.get_to_guest())
}

async fn web(client: &Client, factory: &port_factory::Client) -> port::Client {
    client.tap_from(factory, "vm-web", &MAC, &["10.42.0.9"]).await.unwrap()
}

#[test]
fn rate_is_within_its_limits_and_what_the_network_says_and_is_known_whatever_happens() {
    with_nft(|| {
        let mut netmgr = Netmgr::start();
        let (tap, index) = run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 9).await.unwrap();
            let port = web(&client, &factory).await;
            assert_eq!(carries(&client, &network).await, (0, 0));
            for right in [(MIN_RATE, MAX_RATE), (MAX_RATE, 0), (0, MIN_RATE), (0, 0)] {
                set(&client, &port, right).await.unwrap();
                assert_eq!(carries(&client, &network).await, right);
                let elements = [elements("rates_from").len(), elements("rates_to").len()];
                assert_eq!(elements, [usize::from(right.0 > 0), usize::from(right.1 > 0)]);
            }
            for wrong in [(MIN_RATE - 1, 0), (0, MAX_RATE + 1)] {
                assert_eq!(code(set(&client, &port, wrong).await), Some(Code::InvalidArgument));
                assert_eq!(code(set_rate(&client, &network, "vm-web", wrong).await), Some(Code::InvalidArgument));
            }
            assert_eq!(code(set_rate(&client, &network, "vm-db", (0, 0)).await), Some(Code::NotFound));
            // Who has the network says how much at most, and the holder of the port has no more than that.
            set_rate(&client, &network, "vm-web", (50_000, 0)).await.unwrap();
            for (asked, has) in [((0, 0), (50_000, 0)), ((60_000, 9000), (50_000, 9000)), ((40_000, 0), (40_000, 0))] {
                set(&client, &port, asked).await.unwrap();
                assert_eq!(carries(&client, &network).await, has);
            }
            set_rate(&client, &network, "vm-web", (7000, 8000)).await.unwrap();
            nft("flush ruleset");
            settle("it is there again", || elements("rates_from").len() + elements("rates_to").len() == 2).await;
            nft("delete element bridge volt-vmm rates_to { tap-web }");
            settle("it is there again", || elements("rates_to").len() == 1).await;
            let held = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap().index);
            netmgr.kill();
            held
        });
        let next = Netmgr::start();
        run(async {
            let client = next.connect().await;
            let network = client.network("volt0").await.unwrap();
            assert_eq!(carries(&client, &network).await, (7000, 8000));
            assert_eq!(elements("rates_from").len(), 1);
            close(tap, index).await;
            let sets = ["rates_from", "rates_to", "over_from", "over_to", "forged"];
            settle("nothing of it is left", || sets.iter().all(|set| elements(set).is_empty())).await;
        });
    });
}

#[test]
fn what_a_port_carries_and_what_was_dropped_is_counted_for_its_holder_and_the_network_s() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 9).await.unwrap();
            // Its address was another one's before.
            let before = client.tap_from(&factory, "vm-before", &[2, 0, 0, 0, 0, 1], &["10.42.0.9"]).await.unwrap();
            client.release(&before).await.unwrap();
            let port = web(&client, &factory).await;
            let tap = client.fd(&port).await.unwrap();
            forwards("tap-web").await;
            // netmgr says whose its address is, as soon as it hears of that: a frame of the guest's as any.
            settle("it is announced", || came_from("tap-web") == 1).await;
            let stats = async || {
                let answer = client.connection.call("look", DEADLINE, port.stats_request().send()).await.unwrap();
                let own = answer.get().unwrap().get_stats().unwrap();
                let listed = client.connection.call("list", DEADLINE, network.ports_request().send()).await.unwrap();
                let listed = listed.get().unwrap().get_ports().unwrap().get(0).get_stats().unwrap();
                let read = |stats: schema::network_capnp::port_stats::Reader<'_>| {
                    let forged = (stats.get_forged_packets(), stats.get_forged_bytes());
                    let over = (stats.get_over_from_packets(), stats.get_over_from_bytes());
                    (forged, over, (stats.get_from_packets(), stats.get_from_bytes()), stats.get_policed())
                };
                assert_eq!(read(own), read(listed));
                read(own)
            };
            let before = stats().await;
            assert_eq!((before.0, before.1, before.3), ((0, 0), (0, 0), false));
            sends(&tap, FAR, 53);
            sends_with(&tap, [2, 0, 0, 0, 0, 8], FAR, 53, 0);
            let (forged, over, from, _) = stats().await;
            assert_eq!((forged, over), ((1, 28), (0, 0)));
            assert_eq!((from.0 - before.2.0, from.1 - before.2.1), (2, 2 * 42));
            // 128 KiB and what goes in a second; then some of it is too much.
            set(&client, &port, (MIN_RATE, 0)).await.unwrap();
            while stats().await.1 == (0, 0) {
                (0..100).for_each(|_| sends_with(&tap, MAC, FAR, 53, 1372));
            }
            let (forged, over, ..) = stats().await;
            assert_eq!((forged, over.1), ((1, 28), over.0 * 1400));
        });
    });
}

async fn watch(client: &Client, network: &network::Client) -> port_watcher::Client {
    let answer = client.connection.call("watch", DEADLINE, network.watch_request().send()).await.unwrap();
    answer.get().unwrap().get_watcher().unwrap()
}

/// What is told next: what has become of whose port; and whether some is missing.
async fn next(client: &Client, watcher: &port_watcher::Client) -> Result<(Vec<(PortChange, String)>, bool), Fault> {
    let answer = client.connection.call("hear", DEADLINE, watcher.next_request().send()).await?;
    let events = answer.get()?.get_events()?.iter();
    let events = events.map(|event| (event.get_what().unwrap(), event.get_workload().unwrap().to_string().unwrap()));
    Ok((events.collect(), answer.get()?.get_missed()))
}

#[test]
fn who_watches_a_network_hears_of_each_port_and_nobody_s_slowness_costs_another() {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async {
            let (client, other) = (netmgr.connect().await, netmgr.connect().await);
            let network = client.define_default().await;
            let factory = client.factory(&network, 9).await.unwrap();
            let (watcher, slow) =
                (watch(&client, &network).await, watch(&other, &other.network("volt0").await.unwrap()).await);
            // One that waits hears of what comes, and is in nobody's way.
            let waits = watcher.next_request().send();
            let port = web(&client, &factory).await;
            let answer = client.connection.call("hear", DEADLINE, waits).await.unwrap();
            let event = answer.get().unwrap().get_events().unwrap().get(0);
            assert_eq!(event.get_what().unwrap(), PortChange::Attached);
            assert_eq!(event.get_interface_name().unwrap(), "tap-web");
            set(&client, &port, (MIN_RATE, 0)).await.unwrap();
            let web = |what| (vec![(what, "vm-web".to_owned())], false);
            assert_eq!(next(&client, &watcher).await.unwrap(), web(PortChange::Changed));
            ip("link set tap-web down");
            assert_eq!(next(&client, &watcher).await.unwrap(), web(PortChange::Changed));
            client.release(&port).await.unwrap();
            assert_eq!(next(&client, &watcher).await.unwrap(), web(PortChange::Gone));
            let lost = client.tap(&factory, "vm-lost").await.unwrap();
            ip("link del tap-lost");
            client.lost(&lost).await.unwrap();
            let expected = [PortChange::Attached, PortChange::Gone].map(|what| (what, "vm-lost".to_owned()));
            let mut told = Vec::new();
            while told.len() < expected.len() {
                told.extend(next(&client, &watcher).await.unwrap().0);
            }
            assert_eq!(told, expected);
            // A call that was given up has taken nothing away.
            drop(watcher.next_request().send());
            let port = self::web(&client, &factory).await;
            assert_eq!(next(&client, &watcher).await.unwrap(), web(PortChange::Attached));
            for _ in 0..MAX_WAITING_EVENTS {
                set(&client, &port, (MIN_RATE, 0)).await.unwrap();
            }
            let (told, missed) = next(&other, &slow).await.unwrap();
            assert_eq!((told.len(), missed), (MAX_WAITING_EVENTS as usize, true));
            assert!(told.iter().all(|(what, _)| *what == PortChange::Changed));
            assert_eq!(next(&client, &watcher).await.unwrap().0.len(), MAX_WAITING_EVENTS as usize);
            // And of the network's end.
            client.release(&port).await.unwrap();
            client.remove("volt0").await.unwrap();
            assert_eq!(next(&client, &watcher).await.unwrap(), web(PortChange::Gone));
            assert_eq!(code(next(&client, &watcher).await), Some(Code::Revoked));
        });
    });
}
