//! Random operations of holders, and of others on the host, with `kill -9` at a random moment of each; after each there is what one model says, and
//! nothing else, of interfaces, of what bridges forward, of rules and their elements, and guests reach what they reached. Runs the
//! program as root, in a network namespace of its own. `VOLT_SOAK_NETWORK` says how many (`cargo xtask soak network`), `VOLT_SOAK_SEED` which.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::Duration,
};

use common::*;
use ipc::{Code, Fault};
use schema::network_capnp::network;
use serde_json::Value;
use testkit::skip;
use testrig::container::Guest;

/// How many there are without [`COUNT`].
const SHORT: usize = 60;
const COUNT: &str = "VOLT_SOAK_NETWORK";
const SEED: &str = "VOLT_SOAK_SEED";
const NETWORKS: [&str; 2] = ["volt0", "volt1"];
/// Bridges and interfaces that are nobody's but the host's.
const FOREIGN: [&str; 2] = ["foreign0", "lo"];
/// At one time.
const MOST: usize = 6;
/// Longer than most operations take, in microseconds.
const LONGEST: usize = 40_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % limit.max(1) as u64) as usize
    }
}

/// Who is behind a port, and keeps it, whatever becomes of netmgr.
enum Behind {
    Guest(Guest),
    Container(Container),
}

impl Behind {
    fn inside(&self) -> &Container {
        match self {
            Behind::Guest(guest) => &guest.inside,
            Behind::Container(container) => container,
        }
    }
}

/// A port that should be there.
struct Port {
    network: &'static str,
    workload: String,
    interface: String,
    index: u32,
    mac: String,
    address: [u8; 4],
    behind: Behind,
}

/// What should be there.
#[derive(Default)]
struct Model {
    /// By name, with the MTU.
    networks: BTreeMap<&'static str, u32>,
    /// Those that may be, or may not, or may have another one: what was done was cut off.
    unsure: BTreeSet<&'static str>,
    ports: Vec<Port>,
    /// Containers that may have a port, or may not: the same.
    begun: Vec<(&'static str, String, [u8; 4], Container)>,
    /// The last of the addresses that was given.
    last: u8,
}

fn subnet(network: &str) -> u8 {
    if network == "volt0" { 42 } else { 43 }
}

fn gateway(network: &str) -> [u8; 4] {
    [10, subnet(network), 0, 1]
}

fn dotted([a, b, c, d]: [u8; 4]) -> String {
    format!("{a}.{b}.{c}.{d}")
}

fn mac_of(address: [u8; 4]) -> [u8; 6] {
    let [a, b, c, d] = address;
    [2, 0, a, b, c, d]
}

fn text_of(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

async fn define(client: &Client, name: &str, mtu: u32) -> Result<network::Client, Fault> {
    client.define(name, &dotted(gateway(name)), 24, mtu).await
}

/// Runs a command; what is not there to be done it to is no matter.
fn try_run(command: &str) {
    // The last word may be an empty one.
    let mut words = command.split(' ');
    Command::new(words.next().unwrap()).args(words).output().unwrap();
}

impl Model {
    /// What others do; says what.
    fn harm(&mut self, random: &mut Random) -> String {
        let network = NETWORKS[random.below(2)];
        let subnet = subnet(network);
        let port = random.below(self.ports.len());
        let (interface, mac) = self.ports.get(port).map_or(("none", "none"), |port| (&port.interface, &port.mac));
        let what = match random.below(14) {
            0 => "nft flush ruleset".into(),
            1 => format!("ip link delete {network}"),
            2 => format!("ip link delete {interface}"),
            3 => format!("ip addr flush dev {network}"),
            4 => format!("ip link set {interface} down; ip link set {interface} name moved{}", random.below(9)),
            5 => format!("ip link set {network} down; ip link set {network} name elsewhere{subnet}"),
            6 => format!("ip link set {interface} master foreign0"),
            7 => format!("ip link set {interface} nomaster"),
            8 => format!("ip addr add 10.{subnet}.0.77/24 dev {network}"),
            9 => format!("ip link set {network} address 02:11:22:33:44:55"),
            10 => format!("ip route flush dev {network}"),
            11 => format!("nft delete table bridge volt-vmm; ip link set {interface} down"),
            12 => format!("bridge fdb delete {mac} dev {interface} master; ip link set {interface} down"),
            _ => format!("ip addr delete 10.{subnet}.0.1/24 dev {network}"),
        };
        what.split("; ").for_each(try_run);
        if what.starts_with("ip link delete") {
            self.ports.retain(|port| !what.ends_with(&format!(" {}", port.interface)));
        }
        what
    }

    /// What a holder is to do about that network: the number of a part of [`Model::work`].
    fn choose(&self, random: &mut Random, network: &str) -> usize {
        let (room, any) = (self.ports.len() < MOST, !self.ports.is_empty());
        match random.below(12) {
            _ if !self.networks.contains_key(network) => 0,
            at @ 0..=3 => at,
            4..=6 if room => 4,
            7 | 8 if room => 5,
            9 => 6,
            _ if any => 7,
            _ => 4,
        }
    }

    /// What a holder does, until it is cut off at that moment; says what.
    async fn work(&mut self, random: &mut Random, client: &Client, moment: Duration) -> String {
        let name = NETWORKS[random.below(2)];
        self.last = if self.last == 250 { 2 } else { self.last + 1 };
        let address = [10, subnet(name), 0, self.last];
        let workload = format!("vm-{}", self.last);
        let cut = async |work: std::pin::Pin<&mut dyn Future<Output = Result<(), Fault>>>| {
            tokio::time::timeout(moment, work).await.ok().map(|done| done.map_err(|fault| fault.code))
        };
        let factory = async || client.factory(&client.network(name).await?, 2).await;
        let tap = async || client.tap_from(&factory().await?, &workload, &mac_of(address), &[&dotted(address)]).await;
        match self.choose(random, name) {
            0 => {
                let mtu = [1500, 1400][random.below(2)];
                let done = cut(std::pin::pin!(async { define(client, name, mtu).await.map(drop) })).await;
                match done {
                    Some(Ok(())) => _ = self.networks.insert(name, mtu),
                    Some(Err(code)) => panic!("{name} cannot be defined: {code:?}"),
                    None => _ = self.unsure.insert(name),
                }
                format!("define {name} with an MTU of {mtu}: {done:?}")
            }
            1 => {
                let done = cut(std::pin::pin!(client.remove(name))).await;
                let used = self.ports.iter().any(|port| port.network == name);
                match done {
                    Some(Ok(())) => {
                        assert!(!used, "{name} was removed with its ports");
                        self.networks.remove(name);
                    }
                    Some(Err(code)) => assert!([Code::NotFound, Code::WrongState].contains(&code), "{code:?}"),
                    None if used => {}
                    None => _ = self.unsure.insert(name),
                }
                format!("remove {name}: {done:?}")
            }
            2 => {
                let work = async {
                    let port = tap().await?;
                    client.fd(&port).await?;
                    client.release(&port).await
                };
                format!("{workload} on {name}, released: {:?}", cut(std::pin::pin!(work)).await)
            }
            3 => {
                let work = async { tap().await.map(drop) };
                format!("{workload} on {name}, dropped: {:?}", cut(std::pin::pin!(work)).await)
            }
            4 => {
                let mut made = None;
                let work = async {
                    let port = tap().await?;
                    let info = client.port(&port).await?;
                    made = Some((client.fd(&port).await?, info));
                    // It goes with whoever holds it last: netmgr's end, or this one, is after its TAP was handed over.
                    std::mem::forget(port);
                    Ok(())
                };
                let done = cut(std::pin::pin!(work)).await;
                if let Some((tap, info)) = made {
                    let mac = text_of(mac_of(address));
                    let behind = Behind::Guest(Guest::behind(tap, &mac, &dotted(address)));
                    let (interface, index) = (info.interface, info.index);
                    self.ports.push(Port {
                        network: name,
                        workload: workload.clone(),
                        interface,
                        index,
                        mac,
                        address,
                        behind,
                    });
                }
                format!("{workload} on {name}, kept: {done:?}")
            }
            5 => {
                let (container, workload) = (Container::new(), workload.replacen("vm-", "container-", 1));
                let work = async {
                    let ask = |mut asked: schema::network_capnp::port_factory::create_veth_params::Builder<'_>| {
                        asked.set_mac(&mac_of(address));
                        asked.set_durable(true);
                        asked.reborrow().init_addresses(1).set(0, dotted(address));
                    };
                    client.veth(&factory().await?, &workload, &container, ask).await.map(drop)
                };
                let done = cut(std::pin::pin!(work)).await;
                let says = format!("{workload} on {name}, durable: {done:?}");
                self.begun.push((name, workload, address, container));
                says
            }
            6 => {
                let Some(at) = self.ports.iter().position(|port| matches!(port.behind, Behind::Container(_))) else {
                    return "nothing".into();
                };
                let Port { network, workload, address, behind, .. } = self.ports.swap_remove(at);
                let work =
                    async { client.release(&client.durable(&client.network(network).await?, &workload).await?).await };
                let says = format!("{workload} on {network}, cancelled: {:?}", cut(std::pin::pin!(work)).await);
                if let Behind::Container(container) = behind {
                    self.begun.push((network, workload, address, container));
                }
                says
            }
            _ => {
                let gone = random.below(self.ports.len());
                let gone = (!self.ports.is_empty()).then(|| self.ports.swap_remove(gone));
                format!("the end of {:?}", gone.map(|port| port.workload))
            }
        }
    }

    /// Learns what has become of what was cut off, from a netmgr that was started after.
    async fn settle(&mut self, client: &Client) {
        let there = client.networks().await.unwrap();
        for name in std::mem::take(&mut self.unsure) {
            self.networks.remove(name);
            if there.iter().any(|there| there == name) {
                let mtu = client.info(&client.network(name).await.unwrap()).await.unwrap().mtu;
                self.networks.insert(name, mtu);
            }
        }
        // As who keeps the definitions does where somebody has deleted a bridge, and netmgr was killed before it was there again.
        for (name, mtu) in &self.networks {
            define(client, name, *mtu).await.unwrap();
        }
        for (network, workload, address, container) in std::mem::take(&mut self.begun) {
            let found = match client.network(network).await {
                Ok(found) => client.durable(&found, &workload).await,
                Err(fault) => Err(fault),
            };
            match found {
                Ok(port) => {
                    let info = client.port(&port).await.unwrap();
                    let behind = Behind::Container(container);
                    let (interface, index, mac) = (info.interface, info.index, text_of(mac_of(address)));
                    self.ports.push(Port { network, workload, interface, index, mac, address, behind });
                }
                Err(fault) => {
                    assert_eq!(fault.code, Code::NotFound, "{fault}");
                    settle("nothing is left within", || container.ip("-o link show").lines().count() == 1).await;
                }
            }
        }
    }

    /// What is not as it should be on the host, if anything.
    fn wrong(&self) -> Option<String> {
        let links: Vec<Value> = serde_json::from_str(&ip("-j -d addr show")).unwrap();
        let there: BTreeSet<String> = links.iter().map(|link| text(link, "ifname")).collect();
        let ports = || self.ports.iter().map(|port| port.interface.clone());
        let wanted = FOREIGN.iter().chain(self.networks.keys()).map(ToString::to_string).chain(ports()).collect();
        if there != wanted {
            return Some(format!("there are {there:?}, not {wanted:?}"));
        }
        let link = |name: &str| links.iter().find(|link| link["ifname"] == name).unwrap();
        for (name, mtu) in &self.networks {
            let bridge = link(name);
            let right = has_flag(bridge, "UP") && ipv4(bridge) == [format!("{}/24", dotted(gateway(name)))];
            let marked = text(bridge, "ifalias").starts_with(&format!("volt-vmm network {name} "));
            if !(right && marked && bridge["mtu"] == *mtu && bridge["linkinfo"]["info_data"]["stp_state"] == 0) {
                return Some(bridge.to_string());
            }
        }
        for port in &self.ports {
            let found = link(&port.interface);
            let marked = text(found, "ifalias").starts_with(&format!("volt-vmm port {} {}", port.workload, port.mac));
            let placed =
                has_flag(found, "UP") && text(found, "master") == port.network && found["ifindex"] == port.index;
            if !(marked && placed) {
                return Some(found.to_string());
            }
        }
        self.wrong_entry().or_else(|| self.wrong_rule())
    }

    /// What bridges have that they should not, or lack.
    fn wrong_entry(&self) -> Option<String> {
        let output = Command::new("bridge").args(["-j", "fdb", "show"]).output().unwrap();
        let entries: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let kept = entries.iter().filter(|entry| text(entry, "state") == "static");
        let kept: BTreeSet<(String, String)> = kept.map(|entry| (text(entry, "ifname"), text(entry, "mac"))).collect();
        let wanted = self.ports.iter().map(|port| (port.interface.clone(), port.mac.clone())).collect();
        (kept != wanted).then(|| format!("bridges keep {kept:?}, not {wanted:?}"))
    }

    /// What there is of rules that should not be, or is not.
    fn wrong_rule(&self) -> Option<String> {
        let output = Command::new("nft").args(["-j", "list", "ruleset"]).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let objects = || said["nftables"].as_array().into_iter().flatten();
        let tables: BTreeSet<String> =
            objects().filter_map(|object| object.get("table")).map(|table| text(table, "family")).collect();
        let wanted: &[&str] = if self.networks.is_empty() { &[] } else { &["bridge", "inet"] };
        if !tables.iter().eq(wanted) {
            return Some(format!("there are the tables {tables:?}, not {wanted:?}"));
        }
        let sets = objects().filter_map(|object| object.get("set").or_else(|| object.get("map")));
        let names = |elements: &str| -> BTreeSet<String> {
            let names = elements.split(|c: char| !(c.is_ascii_alphanumeric() || "-~.".contains(c)));
            let ours = |name: &&str| {
                ["tap-", "veth-", "volt", "moved", "elsewhere"].iter().any(|start| name.starts_with(start))
            };
            names.filter(ours).map(str::to_owned).collect()
        };
        let ports: BTreeSet<String> = self.ports.iter().map(|port| port.interface.clone()).collect();
        for set in sets {
            let found = names(&set["elem"].to_string());
            let known = |name: &String| ports.contains(name) || self.networks.contains_key(name.as_str());
            if !found.iter().all(known) || set["name"] == "ports" && found != ports {
                return Some(format!("set {} has {found:?}, and there are the ports {ports:?}", set["name"]));
            }
        }
        None
    }

    /// Which guests cannot reach their network's gateway, and one another.
    fn traffic(&self) {
        for (at, port) in self.ports.iter().enumerate() {
            port.behind.inside().pings(gateway(port.network));
            let other = self.ports.iter().skip(at + 1).find(|other| other.network == port.network);
            other.into_iter().for_each(|other| port.behind.inside().pings(other.address));
        }
    }
}

#[test]
fn after_each_of_many_operations_and_kills_there_is_what_should_be_and_nothing_else() {
    if !Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip!("nft is not installed (Debian's package nftables)");
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (count, seed) = (number(COUNT).map_or(SHORT, |count| count as usize), number(SEED).unwrap_or(10));
    println!("{count} operations, {SEED}={seed}");
    in_own_network(move || {
        ip("link add foreign0 type bridge");
        let (mut random, mut model) = (Random(seed), Model { unsure: NETWORKS.into(), ..Model::default() });
        let mut netmgr = Netmgr::start();
        for round in 0..count {
            let moment = Duration::from_micros(random.below(LONGEST) as u64);
            // Two of one instance.
            let mut second = (random.below(8) == 0).then(Netmgr::start);
            let mut harmless = true;
            let done = run(async {
                let client = netmgr.connect().await;
                let done = if random.below(3) == 0 {
                    harmless = false;
                    let done = model.harm(&mut random);
                    tokio::time::sleep(moment).await;
                    done
                } else {
                    model.work(&mut random, &client, moment).await
                };
                netmgr.kill();
                second.iter_mut().for_each(|second| _ = second.kill());
                done
            });
            println!("{round}: {done}, killed after {moment:?}");
            // Nobody is needed for what goes on.
            if harmless {
                model.traffic();
            }
            netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                model.settle(&client).await;
                let end = std::time::Instant::now() + testkit::wait::PATIENCE;
                while let Some(wrong) = model.wrong() {
                    assert!(std::time::Instant::now() < end, "after {round}, {done}: {wrong}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                for name in model.networks.keys() {
                    let mut known = client.info(&client.network(name).await.unwrap()).await.unwrap().ports;
                    known.retain(|known| !model.ports.iter().any(|port| port.index == known.index));
                    assert!(known.is_empty(), "after {round}, {done}: {known:?}");
                }
            });
            model.traffic();
        }
        model.ports.clear();
        run(async {
            let client = netmgr.connect().await;
            for name in std::mem::take(&mut model.networks).into_keys() {
                let gone = async || client.info(&client.network(name).await.unwrap()).await.unwrap().ports.is_empty();
                while !gone().await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                client.remove(name).await.unwrap();
            }
        });
        assert_eq!(model.wrong(), None);
    });
}
