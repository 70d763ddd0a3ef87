//! A network card that is there for tests alone, whose wire has a neighbour at its other end: QEMU's emulated igb on Debian's full kernel
//! (`cargo xtask test functions`). What is done with it is done in the namespace that a test finds itself in.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{fs, path::PathBuf};

use ipc::Fault;
use schema::network_capnp::{NetworkKind, network, network_config, port};
use serde_json::Value;

use crate::{common::*, lan::Station};

/// Which interfaces of this machine are for tests: a card's with virtual functions, and another one on its wire.
const CARD: &str = "VOLT_TEST_CARD";
/// How many virtual functions each test has.
pub const COUNT: usize = 2;

/// A card with new virtual functions, and the neighbour on its wire, in a namespace of its own: at `peer` (10.7.0.2) without a VLAN, and at `nb7` in VLAN
/// 7. (The host itself is no neighbour: it answers by each interface that it has there.)
pub struct Card {
    pub name: String,
    pub peer: String,
    pub neighbour: Container,
}

/// Runs a test with it, if this machine has one that is for tests alone.
pub fn on_a_card(test: impl FnOnce(&Card)) {
    let given = std::env::var(CARD).unwrap_or_default();
    let Some((name, peer)) = given.split_once(' ') else {
        return testkit::skip!("there is no card that is for tests (cargo xtask test functions)");
    };
    // The kernel takes it back a moment after a namespace has gone.
    eventually("the neighbour's card is there", || interface(peer).is_some());
    // Whatever a test has left that failed.
    for interface in [name, peer] {
        link(&format!("{interface} mtu 1500"));
        ip(&format!("addr flush dev {interface}"));
    }
    let neighbour = Container::new();
    ip(&format!("link set {peer} netns {}", neighbour.path()));
    neighbour.ip(&format!("link add link {peer} name nb7 type vlan id 7"));
    neighbour.ip(&format!("addr add 10.7.0.2/24 dev {peer}"));
    let card = Card { name: name.to_owned(), peer: peer.to_owned(), neighbour };
    card.has(0);
    link(&format!("{name} up"));
    for interface in [peer, "nb7"] {
        card.neighbour.ip(&format!("link set {interface} up"));
    }
    card.has(COUNT);
    // Which it begins anew with them; until then it knows no rates.
    eventually("the wire is there", || has_flag(&interface(name).unwrap(), "LOWER_UP"));
    test(&card);
    card.has(0);
}

impl Card {
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/sys/class/net/{}/device", self.name))
    }

    /// Makes so many virtual functions.
    pub fn has(&self, count: usize) {
        fs::write(self.folder().join("sriov_numvfs"), count.to_string()).unwrap();
        eventually("there are as many", || (0..count).all(|number| self.find(number).is_some()));
    }

    fn find(&self, number: usize) -> Option<String> {
        let mut found = fs::read_dir(self.folder().join(format!("virtfn{number}/net"))).ok()?;
        Some(found.next()?.unwrap().file_name().into_string().unwrap())
    }

    /// The interface of one of them.
    pub fn function(&self, number: usize) -> String {
        self.find(number).unwrap()
    }

    /// What `ip` says that the card has of it.
    pub fn set(&self, number: usize) -> Value {
        let shown: Value = serde_json::from_str(&ip(&format!("-j link show dev {}", self.name))).unwrap();
        shown[0]["vfinfo_list"][number].clone()
    }

    /// All that is to be as it was once it is given back.
    pub fn state(&self) -> Vec<(Value, Value)> {
        let of = |number| {
            let mut link = interface(&self.function(number)).unwrap();
            let fields = link.as_object_mut().unwrap();
            // What a driver said first, and what a queue is at first, comes with the first use; what is up finds its link, and has an address for that.
            for passing in ["permaddr", "qdisc", "operstate", "addr_info"] {
                fields.remove(passing);
            }
            let flags = fields.get_mut("flags").and_then(Value::as_array_mut).unwrap();
            flags.retain(|flag| !["LOWER_UP", "NO-CARRIER"].contains(&flag.as_str().unwrap()));
            let mut set = self.set(number);
            // Where a card lets the driver choose, it has that one's choice once there is one.
            let none = [&Value::from("00:00:00:00:00:00"), &fields["address"]].contains(&&set["address"]);
            if none {
                set.as_object_mut().unwrap().remove("address");
            }
            (set, link)
        };
        (0..COUNT).map(of).collect()
    }
}

/// A guest whose function has found the wire, which takes it a moment.
pub async fn station(client: &Client, network: &network::Client, number: u8) -> (port::Client, Station) {
    let made = Station::on(client, network, number).await.unwrap();
    let name = format!("mvt-{number}");
    settle("it is on the wire", || has_flag(&interface(&name).unwrap(), "LOWER_UP")).await;
    made
}

pub fn session(netmgr: &Netmgr, work: impl AsyncFnOnce(Client)) {
    run(async { work(netmgr.connect().await).await });
}

/// Defines a network of the card's functions.
pub async fn define(
    client: &Client,
    card: &Card,
    name: &str,
    change: impl FnOnce(network_config::Builder<'_>),
) -> Result<network::Client, Fault> {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name(name);
    config.set_gateway("10.7.0.254");
    config.set_prefix_length(24);
    config.set_kind(NetworkKind::Sriov);
    config.set_parent(&card.name);
    change(config);
    let answer = client.connection.call("define a network", DEADLINE, request.send()).await?;
    Ok(answer.get()?.get_network()?)
}

pub async fn in_vlan(client: &Client, card: &Card) -> network::Client {
    define(client, card, "lan", |mut config| config.set_vlan(7)).await.unwrap()
}

/// Changes an interface of the host's.
pub fn link(set: &str) {
    ip(&format!("link set {set}"));
}
