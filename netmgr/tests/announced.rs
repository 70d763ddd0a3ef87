//! Which new ports say whose their addresses are: those whose addresses somebody may know as another one's, and no others. Runs the program as root, each
//! test in a network namespace of its own. (What guests' own kernels make of it: `guests.rs`.)

mod common;

use std::os::fd::OwnedFd;

use common::*;
use schema::network_capnp::{network, port, port_factory};

/// A network whose ports are anew all the time, and one of them that always says whose its address is.
struct Net {
    client: Client,
    network: network::Client,
    factory: port_factory::Client,
}

impl Net {
    async fn new(netmgr: &Netmgr) -> Net {
        let client = netmgr.connect().await;
        let network = client.define_default().await;
        let net = Net { factory: client.factory(&network, 9).await.unwrap(), client, network };
        let first = net.attach("vm-marker", 1, 200).await;
        net.client.release(&first).await.unwrap();
        net
    }

    /// A guest with the MAC address and the address of these numbers.
    async fn attach(&self, workload: &str, mac: u8, address: u8) -> port::Client {
        let given = format!("10.42.0.{address}");
        let port = self.client.tap_from(&self.factory, workload, &[2, 0, 0, 0, 0, mac], &[&given]).await.unwrap();
        forwards(&workload.replacen("vm", "tap", 1)).await;
        port
    }

    /// Whether it was said whose the address of a guest's port is.
    async fn says(&self, mac: u8, address: u8) -> bool {
        let port = self.attach("vm-web", mac, address).await;
        // Whoever came before is looked at before this one says so, or at the same time.
        let marker = self.attach("vm-marker", 2, 200).await;
        settle("it is announced", || came_from("tap-marker") == 1).await;
        self.client.info(&self.network).await.unwrap();
        let said = came_from("tap-web");
        assert!(said <= 1, "{said}");
        for port in [port, marker] {
            self.client.release(&port).await.unwrap();
        }
        said == 1
    }

    /// A guest that stays.
    async fn stays(&self) -> (OwnedFd, port::Client) {
        let port = self.attach("vm-stays", 9, 99).await;
        (self.client.fd(&port).await.unwrap(), port)
    }
}

fn with_net(test: impl AsyncFnOnce(Net, &Netmgr) + Send + 'static) {
    with_nft(|| {
        let netmgr = Netmgr::start();
        run(async { test(Net::new(&netmgr).await, &netmgr).await });
    });
}

#[test]
fn address_is_announced_from_its_second_guest_on_and_not_while_it_was_one_s_alone() {
    with_net(async |net, _| {
        let _stays = net.stays().await;
        for (mac, address, expected) in [
            (0xa, 10, false),
            (0xa, 10, false),
            (0xb, 11, false),
            (0xb, 10, true),
            // Who was told nothing while it was the other's may have it as the first one's still.
            (0xb, 10, true),
            (0xa, 10, true),
            (0xb, 11, false),
        ] {
            assert_eq!(net.says(mac, address).await, expected, "{mac} {address}");
        }
    });
}

#[test]
fn address_that_the_host_has_had_anywhere_is_announced_and_no_other() {
    with_net(async |net, _| {
        ip("addr add 10.42.0.78/32 dev lo");
        ip("addr del 10.42.0.78/32 dev lo");
        assert!(!net.says(0xa, 79).await);
        assert!(net.says(0xa, 78).await);
        assert!(!net.says(0xb, 80).await);
    });
    // And one that it had before there was the network.
    with_nft(|| {
        ip("addr add 10.42.0.78/32 dev lo");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            ip("addr del 10.42.0.78/32 dev lo");
            let net = Net::new(&netmgr).await;
            assert!(!net.says(0xa, 79).await);
        });
    });
}

/// Each leaves what somebody may know of an address that no guest of this network has had.
#[test]
fn all_is_announced_once_others_may_have_had_any_address() {
    type Disturb = fn();
    let disturbances: [(&str, Disturb); 5] = [
        ("another interface was on the bridge", || {
            ip("tuntap add other mode tap");
            ip("link set other master volt0");
            ip("link del other");
        }),
        ("its rules were not there", || _ = nft("delete table bridge volt-vmm")),
        ("a guest's port was another one's", || {
            ip("link set tap-stays down");
            ip("link set tap-stays name other");
        }),
        ("the bridge had another address", || _ = ip("addr add 10.42.0.77/24 dev volt0")),
        ("the bridge was gone", || _ = ip("link del volt0")),
    ];
    for (what, disturb) in disturbances {
        with_net(async move |net, _| {
            let _stays = net.stays().await;
            assert!(!net.says(0xa, 10).await, "{what}");
            disturb();
            settle("it is as it should be", || {
                let is_port = |name: &str| interface(name).is_some_and(|port| text(&port, "master") == "volt0");
                is_port("tap-stays") && interface("volt0").is_some_and(|bridge| ipv4(&bridge) == ["10.42.0.1/24"])
            })
            .await;
            assert!(net.says(0xa, 10).await, "{what}");
            assert!(net.says(0xb, 11).await, "{what}");
        });
    }
}

#[test]
fn what_is_none_of_a_network_s_leaves_it_as_it_was() {
    with_net(async |net, _| {
        ip("link add br9 type bridge");
        ip("tuntap add other mode tap");
        ip("link set other master br9");
        ip("link del other");
        nft("add table inet other");
        net.client.define_default().await;
        assert!(!net.says(0xa, 10).await);
    });
}

#[test]
fn all_is_announced_on_a_network_that_was_there_or_is_another_one_now() {
    with_net(async |net, _| {
        let _stays = net.stays().await;
        net.client.define("volt0", "10.42.0.1", 24, 1400).await.unwrap();
        assert!(net.says(0xa, 10).await);
    });
    for with_port in [false, true] {
        with_nft(move || {
            let mut netmgr = Netmgr::start();
            let held = run(async {
                let net = Net::new(&netmgr).await;
                let stays = if with_port { Some(net.stays().await.0) } else { None };
                netmgr.kill();
                stays
            });
            let next = Netmgr::start();
            run(async { assert!(Net::new(&next).await.says(0xa, 10).await, "{with_port}") });
            drop(held);
        });
    }
}
