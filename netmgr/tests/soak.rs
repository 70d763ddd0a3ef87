//! Random operations of holders, and of others on the host, with `kill -9` at a random moment of each; after each there is what one model says, and
//! nothing else, of interfaces, of what bridges forward, of rules and their elements, and guests reach what they reached. Runs the
//! program as root, in a network namespace of its own. `VOLT_SOAK_NETWORK` says how many (`cargo xtask soak network`), `VOLT_SOAK_SEED` which.

mod common;
mod given;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    process::Command,
    time::Duration,
};

use common::*;
use given::{
    kept::{FIRST, Given, PUBLISHED, RATES, any_policy},
    *,
};
use ipc::{Code, Fault};
use schema::network_capnp::{network, port_factory};
use serde_json::Value;
use testkit::skip;
use testrig::container::Guest;

/// How many there are without [`COUNT`].
const SHORT: usize = 60;
const COUNT: &str = "VOLT_SOAK_NETWORK";
const SEED: &str = "VOLT_SOAK_SEED";
/// The last one is a VLAN, and not there where the kernel has none.
const NETWORKS: [&str; 3] = ["volt0", "volt1", VLAN];
const VLAN: &str = "lan0";
const UPLINK: &str = "up-lan0";
/// Bridges and interfaces that are nobody's but the host's; the VLAN is on one of them.
const FOREIGN: [&str; 4] = ["foreign0", "lo", "trunk0", "trunk1"];
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
    /// What it has; or more than one, if it has one of them: what was done was cut off.
    given: Vec<Given>,
}

/// What should be there.
#[derive(Default)]
struct Model {
    /// By name, with the MTU.
    networks: BTreeMap<&'static str, u32>,
    /// Those that may be, or may not, or may have another one: what was done was cut off.
    unsure: BTreeSet<&'static str>,
    ports: Vec<Port>,
    /// Containers that may have a port, or may not, with what that has: the same.
    begun: Vec<(&'static str, String, [u8; 4], Container, Given)>,
    /// The last of the addresses that was given.
    last: u8,
    /// Whether the kernel has VLANs.
    vlans: bool,
    /// Whether somebody has taken rules away, and netmgr may not have lived to bring them back.
    lost: bool,
}

/// How the names begin of containers whose ports end with their holders.
const BOUND: &str = "container-bound-";

fn is_bound(workload: &str) -> bool {
    workload.starts_with(BOUND)
}

fn subnet(network: &str) -> u8 {
    42 + NETWORKS.iter().position(|name| *name == network).unwrap() as u8
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
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name(name);
    config.set_gateway(dotted(gateway(name)));
    config.set_prefix_length(24);
    config.set_mtu(mtu);
    if name == VLAN {
        config.set_parent("trunk0");
        config.set_vlan(7);
    }
    Ok(client.connection.call("define a network", DEADLINE, request.send()).await?.get()?.get_network()?)
}

/// Runs a command; what is not there to be done it to is no matter.
fn try_run(command: &str) {
    // The last word may be an empty one.
    let mut words = command.split(' ');
    Command::new(words.next().unwrap()).args(words).output().unwrap();
}

impl Model {
    fn any_network(&self, random: &mut Random) -> &'static str {
        NETWORKS[random.below(if self.vlans { 3 } else { 2 })]
    }

    /// What others do; says what.
    fn harm(&mut self, random: &mut Random) -> String {
        let network = self.any_network(random);
        let subnet = subnet(network);
        let port = random.below(self.ports.len());
        let (interface, mac) = self.ports.get(port).map_or(("none", "none"), |port| (&port.interface, &port.mac));
        let what = match random.below(if self.vlans { 18 } else { 15 }) {
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
            13 => format!("ip addr delete 10.{subnet}.0.1/24 dev {network}"),
            14 => "nft delete table inet volt-vmm".into(),
            15 => format!("ip link delete {UPLINK}"),
            16 => format!("ip link set {UPLINK} nomaster"),
            _ => format!("ip link set {UPLINK} down"),
        };
        self.lost |= what.starts_with("nft");
        what.split("; ").for_each(try_run);
        if what.starts_with("ip link delete") {
            self.ports.retain(|port| !what.ends_with(&format!(" {}", port.interface)));
        }
        what
    }

    /// What a holder is to do about that network: the number of a part of [`Model::work`].
    fn choose(&self, random: &mut Random, network: &str) -> usize {
        let (room, any) = (self.ports.len() < MOST, !self.ports.is_empty());
        match random.below(18) {
            _ if !self.networks.contains_key(network) => 0,
            at @ 0..=3 => at,
            4..=6 if room => 4,
            7 | 8 if room => 5,
            9 => 6,
            10 if room => 7,
            11..=15 if any => 8,
            _ if any => 9,
            _ => 4,
        }
    }

    /// What a holder does, until it is cut off at that moment; says what.
    async fn work(&mut self, random: &mut Random, client: &Client, moment: Duration) -> String {
        let name = self.any_network(random);
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
                        given: vec![Given::default()],
                    });
                }
                format!("{workload} on {name}, kept: {done:?}")
            }
            5 => {
                let (container, workload) = (Container::new(), workload.replacen("vm-", "container-", 1));
                let work = async {
                    let ask = |mut asked: port_factory::create_veth_params::Builder<'_>| {
                        asked.set_mac(&mac_of(address));
                        asked.set_durable(true);
                        asked.reborrow().init_addresses(1).set(0, dotted(address));
                    };
                    client.veth(&factory().await?, &workload, &container, ask).await.map(drop)
                };
                let done = cut(std::pin::pin!(work)).await;
                let says = format!("{workload} on {name}, durable: {done:?}");
                self.begun.push((name, workload, address, container, Given::default()));
                says
            }
            6 => {
                let durable = |port: &Port| matches!(port.behind, Behind::Container(_)) && !is_bound(&port.workload);
                let Some(at) = self.ports.iter().position(durable) else {
                    return "nothing".into();
                };
                let Port { network, workload, address, behind, mut given, .. } = self.ports.swap_remove(at);
                let work =
                    async { client.release(&client.durable(&client.network(network).await?, &workload).await?).await };
                let says = format!("{workload} on {network}, cancelled: {:?}", cut(std::pin::pin!(work)).await);
                if let Behind::Container(container) = behind {
                    self.begun.push((network, workload, address, container, given.swap_remove(0)));
                }
                says
            }
            7 => {
                let (container, workload) = (Container::new(), workload.replacen("vm-", BOUND, 1));
                let released = random.below(2) == 0;
                let work = async {
                    let ask = |mut asked: port_factory::create_veth_params::Builder<'_>| {
                        asked.set_mac(&mac_of(address));
                        asked.reborrow().init_addresses(1).set(0, dotted(address));
                    };
                    let (port, _) = client.veth(&factory().await?, &workload, &container, ask).await?;
                    if released { client.release(&port).await } else { Ok(()) }
                };
                let done = cut(std::pin::pin!(work)).await;
                let says = format!("{workload} on {name}, bound, released {released}: {done:?}");
                self.begun.push((name, workload, address, container, Given::default()));
                says
            }
            8 => {
                let at = random.below(self.ports.len());
                let held = self.published();
                let port = &mut self.ports[at];
                let (before, mut after) = (port.given[0].clone(), port.given[0].clone());
                let (workload, network) = (&port.workload, port.network);
                let published = FIRST + random.below(PUBLISHED) as u16;
                let mut bound = None;
                match (random.below(6), &before.policy) {
                    (0, _) => after.policy = Some(any_policy(|| random.below(2) == 0)),
                    (1, _) => after.policy = None,
                    (2, Some(policy)) => {
                        let rules = any_policy(|| random.below(2) == 0);
                        after.policy = Some(policy & &rules);
                        bound = Some(rules);
                    }
                    (3, _) => after.rate = RATES[random.below(RATES.len())],
                    _ if before.published.contains(&published) => _ = after.published.remove(&published),
                    // Another one's: nobody has a socket to publish it by.
                    _ if held.contains(&published) => {
                        assert!(TcpListener::bind(("0.0.0.0", published)).is_err(), "{published} is not held");
                        return "nothing".into();
                    }
                    _ => _ = after.published.insert(published),
                }
                let work = async {
                    let network = client.network(network).await?;
                    match bound {
                        Some(rules) => {
                            let has = policy_of(client, &network, workload).await.unwrap();
                            let texts: Vec<_> = rules.iter().map(String::as_str).collect();
                            let narrowed = narrow(client, &has, &texts).await?;
                            set_policy(client, &network, workload, Some(narrowed)).await
                        }
                        None => after.give(&before, client, &network, workload).await,
                    }
                };
                let done = cut(std::pin::pin!(work)).await;
                let says = format!("{workload} on {network} has {after:?}: {done:?}");
                match done {
                    Some(Ok(())) => {
                        let at = format!("0.0.0.0:{published}");
                        if after.published.len() > before.published.len() {
                            assert!(TcpListener::bind(&at).is_err(), "{says}, and anybody has the port");
                        } else if after.published.len() < before.published.len() {
                            drop(tcp(&at));
                        }
                        port.given = vec![after];
                    }
                    // It leads to another one.
                    Some(Err(code)) => assert_eq!(code, Code::AlreadyExists, "{says}"),
                    None => port.given.push(after),
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
        for (network, workload, address, container, given) in std::mem::take(&mut self.begun) {
            let (ports, durable) = match client.network(network).await {
                Ok(network) => (
                    client.info(&network).await.unwrap().ports,
                    code(client.durable(&network, &workload).await).is_none(),
                ),
                Err(fault) if fault.code == Code::NotFound => (Vec::new(), false),
                Err(fault) => panic!("{fault}"),
            };
            let found = ports.into_iter().find(|port| port.workload == workload);
            // One that was bound to its holder is nobody's now, and there until its namespace ends.
            assert_eq!(durable, found.is_some() && !is_bound(&workload));
            match found {
                Some(common::Port { interface, index, .. }) => {
                    let behind = Behind::Container(container);
                    let (mac, given) = (text_of(mac_of(address)), vec![given]);
                    self.ports.push(Port { network, workload, interface, index, mac, address, behind, given });
                }
                None => settle("nothing is left within", || container.ip("-o link show").lines().count() == 1).await,
            }
        }
        let lost = std::mem::take(&mut self.lost);
        for port in &mut self.ports {
            let network = client.network(port.network).await.unwrap();
            let now = Given::read(client, &network, &port.workload).await;
            let fits = |given: &&Given| now == **given || lost && now.is_left_of(given);
            let found = port.given.iter().find(fits).cloned();
            let found = found.unwrap_or_else(|| panic!("{} has {now:?}, of {:?}", port.workload, port.given));
            // As who keeps what ports are given does.
            found.give(&now, client, &network, &port.workload).await.unwrap();
            port.given = vec![found];
        }
    }

    /// What is not as it should be on the host, if anything.
    fn wrong(&self) -> Option<String> {
        let links: Vec<Value> = serde_json::from_str(&ip("-j -d addr show")).unwrap();
        let there: BTreeSet<String> = links.iter().map(|link| text(link, "ifname")).collect();
        let ports = || self.ports.iter().map(|port| port.interface.clone());
        let uplink = self.networks.contains_key(VLAN).then_some(UPLINK);
        let wanted = FOREIGN.iter().copied().chain(self.networks.keys().copied()).chain(uplink).map(str::to_owned);
        let wanted = wanted.chain(ports()).collect();
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
            let kind = if port.given[0].policy.is_some() { "gate" } else { "port" };
            let marked = text(found, "ifalias").starts_with(&format!("volt-vmm {kind} {} {}", port.workload, port.mac));
            let placed =
                has_flag(found, "UP") && text(found, "master") == port.network && found["ifindex"] == port.index;
            if !(marked && placed) {
                return Some(found.to_string());
            }
        }
        if uplink
            .map(link)
            .is_some_and(|up| !has_flag(up, "UP") || up["linkinfo"]["info_data"]["id"] != 7 || up["master"] != VLAN)
        {
            return Some(link(UPLINK).to_string());
        }
        self.wrong_entry().or_else(|| self.wrong_rule()).or_else(|| self.wrong_socket())
    }

    /// Ports of the host that lead to guests.
    fn published(&self) -> BTreeSet<u16> {
        self.ports.iter().flat_map(|port| port.given[0].published.clone()).collect()
    }

    /// Which of them are held that should not be, or are not: by this netmgr, whichever has published them.
    fn wrong_socket(&self) -> Option<String> {
        let is_held = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_err();
        let held: BTreeSet<u16> = (FIRST..).take(PUBLISHED).filter(is_held).collect();
        let wanted = self.published();
        (held != wanted).then(|| format!("{held:?} are held, not {wanted:?}"))
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
                ["tap-", "veth-", "volt", "lan", "up-", "moved", "elsewhere"]
                    .iter()
                    .any(|start| name.starts_with(start))
            };
            names.filter(ours).map(str::to_owned).collect()
        };
        let ports = |which: fn(&Given) -> bool| -> BTreeSet<String> {
            let ports = self.ports.iter().filter(|port| which(&port.given[0]));
            ports.map(|port| port.interface.clone()).collect()
        };
        let all = ports(|_| true);
        for set in sets {
            let found = names(&set["elem"].to_string());
            let known =
                |name: &String| all.contains(name) || self.networks.contains_key(name.trim_start_matches("up-"));
            let wanted = match set["name"].as_str().unwrap_or_default() {
                "ports" => &all,
                "policed" => &ports(|given| given.policy.is_some()),
                "rates_from" => &ports(|given| given.rate.0 > 0),
                "rates_to" => &ports(|given| given.rate.1 > 0),
                _ => &found,
            };
            if !found.iter().all(known) || found != *wanted {
                return Some(format!("set {} has {found:?}, not {wanted:?}, and the ports are {all:?}", set["name"]));
            }
        }
        let given = || self.ports.iter().map(|port| &port.given[0]);
        let comments = elements("rules").iter().map(|one| text(&one["elem"], "comment")).collect::<BTreeSet<_>>();
        let mut wanted: BTreeSet<String> = given().flat_map(|given| given.policy.iter().flatten().cloned()).collect();
        // One that names workloads is of a network, and says of which.
        let of_network =
            self.ports.iter().filter(|port| port.given[0].policy.iter().flatten().any(|rule| rule.starts_with("vm-")));
        wanted.extend(of_network.map(|port| port.network.to_owned()));
        // What belongs to no rule says nothing.
        wanted.extend(comments.contains("").then(String::new));
        if comments != wanted {
            return Some(format!("there are the rules {comments:?}, not {wanted:?}"));
        }
        let (found, wanted) = (elements("published4").len(), given().flat_map(|given| &given.published).count());
        (found != wanted).then(|| format!("{found} ports of the host lead to guests, not {wanted}"))
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
        ip("link add trunk0 type veth peer name trunk1");
        let vlan = "link add link trunk0 name probe type vlan id 7";
        let vlans = Command::new("ip").args(vlan.split(' ')).output().unwrap().status.success();
        try_run("ip link delete probe");
        let unsure = NETWORKS.into_iter().filter(|name| vlans || *name != VLAN).collect();
        let (mut random, mut model) = (Random(seed), Model { unsure, vlans, ..Model::default() });
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
