//! Networks that keep their guests from one another. Runs the program as root, each test in network namespaces of its own.

mod common;
mod places;

use std::process::Command;

use common::*;
use places::*;
use schema::network_capnp::network;

const GATEWAYS: [&str; 2] = ["10.42.0.1", "fd00:42::1"];

async fn define(client: &Client, isolate: bool) -> network::Client {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name("volt0");
    config.set_gateway("10.42.0.1");
    config.set_prefix_length(24);
    config.set_ipv6("fd00:42::1/64");
    config.set_isolate(isolate);
    let network = client.connection.call("define a network", DEADLINE, request.send()).await.unwrap();
    let network = network.get().unwrap().get_network().unwrap();
    let answer = client.connection.call("look", DEADLINE, network.info_request().send()).await.unwrap();
    assert_eq!(answer.get().unwrap().get_info().unwrap().get_config().unwrap().get_isolate(), isolate);
    network
}

fn is_apart(tap: &str) -> bool {
    interface(tap).is_some_and(|tap| tap["linkinfo"]["info_slave_data"]["isolated"] == true)
}

fn bridge_link(arguments: &str) {
    let status = Command::new("bridge").args(format!("link set {arguments}").split(' ')).status().unwrap();
    assert!(status.success(), "{arguments}");
}

async fn guest(client: &Client, workload: &str, last: u8) -> Guest {
    let own = [format!("10.42.0.{last}/24"), format!("fd00:42::{last}/64")];
    Guest::new(client, "volt0", workload, &own.each_ref().map(String::as_str), &GATEWAYS).await
}

/// Whether these guests reach each other, which they do or do not both ways and in both families; each reaches the gateway.
async fn meet(one: &Guest, other: &Guest) -> bool {
    for (guest, gateway) in [one, other].into_iter().flat_map(|guest| GATEWAYS.map(|gateway| (guest, gateway))) {
        settle("the gateway answers", || guest.pings(gateway)).await;
    }
    let met = [(one, "10.42.0.12"), (other, "10.42.0.11"), (one, "fd00:42::12"), (other, "fd00:42::11")]
        .map(|(guest, whom)| guest.pings(whom));
    assert!(met.iter().all(|one| *one == met[0]), "{met:?}");
    met[0]
}

#[test]
fn guests_are_kept_from_one_another_as_long_as_the_network_says_so_whatever_becomes_of_netmgr_or_the_ports() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start();
        let guests = run(async {
            let client = netmgr.connect().await;
            define(&client, true).await;
            let (one, other) = (guest(&client, "vm-one", 11).await, guest(&client, "vm-other", 12).await);
            assert!(is_apart("tap-one") && is_apart("tap-other"));
            assert!(!meet(&one, &other).await);
            // Not even who has whose address, which all are asked: who knows it already reaches nobody either.
            assert!(!other.ip("neigh show").contains("10.42.0.11 dev eth0 lladdr"));
            let mac: Vec<String> =
                client.port(&other.port).await.unwrap().mac.iter().map(|byte| format!("{byte:02x}")).collect();
            one.ip(&format!("neigh replace 10.42.0.12 lladdr {} dev eth0 nud permanent", mac.join(":")));
            assert!(!one.pings("10.42.0.12"));
            one.ip("neigh del 10.42.0.12 dev eth0");
            bridge_link("dev tap-one isolated off");
            settle("it is kept apart again", || is_apart("tap-one")).await;
            // At once, of guests that run; and no more where the network does not say so.
            define(&client, false).await;
            assert!(!is_apart("tap-one") && !is_apart("tap-other"));
            settle("they meet", || one.pings("10.42.0.12") && other.pings("10.42.0.11")).await;
            settle("they meet", || one.pings("fd00:42::12") && other.pings("fd00:42::11")).await;
            assert!(meet(&one, &other).await);
            // Then it is whoever's who runs the host.
            bridge_link("dev tap-one isolated on");
            define(&client, false).await;
            assert!(is_apart("tap-one") && !is_apart("tap-other"));
            define(&client, true).await;
            assert!(is_apart("tap-one") && is_apart("tap-other"));
            netmgr.kill();
            (one, other)
        });
        bridge_link("dev tap-other isolated off");
        let next = Netmgr::start();
        run(async {
            let (one, other) = guests;
            let client = next.connect().await;
            assert!(is_apart("tap-one") && is_apart("tap-other"));
            assert!(!meet(&one, &other).await);
            // And by another definition than the one that the next netmgr found.
            define(&client, false).await;
            assert!(!is_apart("tap-one") && !is_apart("tap-other"));
        });
    });
}

#[test]
fn guests_that_are_kept_from_one_another_reach_what_the_host_publishes_of_each_other() {
    with_nft(|| {
        // Where br_netfilter has them, what is led back to the bridge by another MAC address does not leave it.
        for family in ["ip", "ip6"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0");
        }
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            define(&client, true).await;
            let (one, other) = (guest(&client, "vm-one", 11).await, guest(&client, "vm-other", 12).await);
            other.serves(80);
            let socket = std::net::TcpListener::bind("10.42.0.1:8080").unwrap();
            let mut request = other.port.publish_request();
            request.get().set_guest_port(80);
            let token = client.connection.deposit(std::os::fd::AsFd::as_fd(&socket)).await.unwrap();
            request.get().init_sockets(1).get(0).set_bytes(token.as_bytes());
            client.connection.call("publish", DEADLINE, request.send()).await.unwrap();
            assert_eq!(one.reaches("10.42.0.12:80"), None);
            assert_eq!(one.seen_as("10.42.0.1:8080"), "10.42.0.1");
        });
    });
}
