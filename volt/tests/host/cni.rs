//! `volt-cni` as an engine runs it: containers, which are namespaces, attached, checked, removed and collected, by every version of CNI, twice, out of
//! order, at once, and with whatever has been lost.

use std::{
    io::{BufRead, Write},
    process::Stdio,
};

use serde_json::{Value, json};
use testrig::container::{Container, Guest};

use crate::host::{Ended, Host, Running};

/// What a plugin has started where nothing ran.
pub const SERVICES: [&str; 3] = ["volt keep", "netmgr", "ipamd"];
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

pub fn config() -> Value {
    json!({ "cniVersion": "1.1.0", "name": "pods", "type": "volt-cni" })
}

/// A configuration with some keys more, or other ones.
pub fn with(more: Value) -> Value {
    let mut config = config();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// How an engine calls it.
pub struct Engine<'a> {
    pub host: &'a Host,
    pub config: Value,
}

impl Engine<'_> {
    fn start(&self, variables: &[(&str, &str)], config: &str) -> Running {
        let mut command = self.host.volt(&[]);
        let (plugin, of_volt) = (env!("CARGO_BIN_EXE_volt-cni"), command.get_envs());
        let envs: Vec<_> = of_volt.map(|(name, value)| (name.to_owned(), value.unwrap().to_owned())).collect();
        command = std::process::Command::new(plugin);
        command.env_clear().envs(envs).envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(&mut command);
        // Who is refused before reading is gone already.
        let _ = running.child.stdin.take().unwrap().write_all(config.as_bytes());
        running
    }

    fn begin(&self, command: &str, id: &str, netns: &str) -> Running {
        let variables =
            [("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns)];
        self.start(&variables, &self.config.to_string())
    }

    pub fn run(&self, command: &str, id: &str, netns: &str) -> Ended {
        self.begin(command, id, netns).end()
    }

    pub fn add(&self, id: &str, container: &Container) -> Value {
        parsed(&self.run("ADD", id, &container.path()).ok())
    }

    pub fn del(&self, id: &str) {
        let ended = self.run("DEL", id, "").ok();
        assert_eq!(ended.out, "", "a removal says nothing");
    }

    /// The command that is about no container.
    fn all(&self, command: &str) -> Ended {
        self.start(&[("CNI_COMMAND", command)], &self.config.to_string()).end()
    }

    /// Collects, with those as what is valid.
    pub fn gc(&self, valid: &[&str]) {
        let valid: Vec<Value> = valid.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        let mut config = self.config.clone();
        config["cni.dev/valid-attachments"] = valid.into();
        Engine { host: self.host, config }.all("GC").ok();
    }
}

fn parsed(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// It was refused by the specification's form, with that code, and says so.
pub fn refused(ended: &Ended, code: u64, word: &str) {
    let answer = parsed(ended);
    assert_eq!((ended.status.code(), &answer["code"]), (Some(1), &code.into()), "{word}: {answer}");
    assert!(answer["msg"].as_str().unwrap().contains(word), "{word}: {answer}");
}

/// Workloads of all ports of this host.
pub fn ports(host: &Host) -> Vec<String> {
    let listed = host.run(&mut host.volt(&["port", "list"])).ok().out;
    listed.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
}

pub fn address(result: &Value) -> [u8; 4] {
    let text = result["ips"][0]["address"].as_str().unwrap();
    text.split('/').next().unwrap().parse::<std::net::Ipv4Addr>().unwrap().octets()
}

pub fn nothing_is_left(host: &Host) {
    assert_eq!(ports(host), [""; 0]);
    host.held(0);
}

#[test]
fn containers_of_an_engine_reach_each_other_and_the_gateway_are_checked_and_go() {
    let Some(host) = Host::new() else { return };
    let engine = Engine { host: &host, config: config() };
    let (a, b) = (Container::new(), Container::new());
    let result = engine.add("aaaa", &a);
    let other = engine.add("bbbb", &b);
    // CNI, "Add Success".
    assert_eq!(
        (result["cniVersion"].as_str(), result["dns"].as_object().map(serde_json::Map::len)),
        (Some("1.1.0"), Some(0))
    );
    let interfaces = &result["interfaces"];
    assert!(interfaces[0]["name"].as_str().unwrap().starts_with("veth-") && interfaces[0].get("sandbox").is_none());
    assert_eq!(
        (interfaces[1]["name"].as_str(), interfaces[1]["sandbox"].as_str()),
        (Some("eth0"), Some(a.path().as_str()))
    );
    assert_eq!((interfaces[1]["mtu"].as_u64(), &result["ips"][0]["interface"]), (Some(1500), &1.into()));
    assert_eq!(result["ips"][0]["gateway"], "10.42.0.1");
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "10.42.0.1" }]));
    assert!(a.ip("addr show eth0").contains(interfaces[1]["mac"].as_str().unwrap()));
    a.pings([10, 42, 0, 1]);
    a.pings(address(&other));
    b.pings(address(&result));
    assert!(ports(&host).iter().all(|workload| workload.starts_with("cni-")));

    // What ends when nobody needs it does not take them with it.
    host.end(SERVICES, libc::SIGKILL);
    a.pings(address(&other));
    let checked = Engine { host: &host, config: with(json!({ "prevResult": result })) };
    checked.run("CHECK", "aaaa", &a.path()).ok();
    refused(&checked.run("CHECK", "bbbb", &b.path()), 102, "does not have");
    refused(&checked.run("CHECK", "cccc", &b.path()), 102, "no address");
    a.ip("addr flush dev eth0");
    refused(&checked.run("CHECK", "aaaa", &a.path()), 102, "within has no address");
    refused(&engine.run("CHECK", "aaaa", &a.path()), 7, "prevResult");

    // A second time the same is refused, and takes nothing from the first.
    refused(&engine.run("ADD", "aaaa", &Container::new().path()), 101, "has a port");
    a.ip(&format!("addr add {} dev eth0", result["ips"][0]["address"].as_str().unwrap()));
    a.pings([10, 42, 0, 1]);
    engine.all("STATUS").ok();
    engine.del("aaaa");
    engine.del("bbbb");
    assert_eq!(a.ip("-o link show").lines().count(), 1, "lo");
    nothing_is_left(&host);
}

#[test]
fn removal_takes_what_there_is_and_is_no_error_where_nothing_is() {
    let Some(host) = Host::new() else { return };
    let engine = Engine { host: &host, config: config() };
    // Before anything was ever added.
    engine.del("aaaa");
    let container = Container::new();
    engine.add("aaaa", &container);
    engine.del("aaaa");
    engine.del("aaaa");
    nothing_is_left(&host);
    // With a namespace that is gone, is none, or is another's by now; and without the result of ADD, which nobody has to have kept.
    for netns in ["/nowhere/at/all", "/etc/passwd", "/proc/self/ns/net", "/dev/null"] {
        let container = Container::new();
        engine.add("aaaa", &container);
        drop(container);
        engine.run("DEL", "aaaa", netns).ok();
        nothing_is_left(&host);
    }
    // After the container, or everything, has died: a port of it is gone, and its address is kept until then.
    engine.add("aaaa", &Container::new());
    host.end(SERVICES, libc::SIGKILL);
    host.held(1);
    engine.del("aaaa");
    nothing_is_left(&host);
    // One that comes late, for an instance of before, does not take the new one's.
    let (old, new) = (Container::new(), Container::new());
    engine.add("aaaa-1", &old);
    engine.del("aaaa-1");
    engine.add("aaaa-2", &new);
    engine.del("aaaa-1");
    new.pings([10, 42, 0, 1]);
    // Nor one by another configuration, though all the names but that are the same.
    Engine { host: &host, config: with(json!({ "name": "others" })) }.del("aaaa-2");
    new.pings([10, 42, 0, 1]);
    engine.del("aaaa-2");
    nothing_is_left(&host);
}

#[test]
fn collection_takes_what_is_not_valid_of_its_own_configuration_and_nothing_without_a_list() {
    let Some(host) = Host::new() else { return };
    let engine = Engine { host: &host, config: config() };
    let other = Engine { host: &host, config: with(json!({ "name": "others" })) };
    let containers: Vec<Container> = (0..4).map(|_| Container::new()).collect();
    let ids = ["aaaa", "bbbb", "cccc"];
    for (id, container) in ids.iter().zip(&containers) {
        engine.add(id, container);
    }
    other.add("aaaa", &containers[3]);
    // Somebody else's reservation is not an attachment.
    host.held(4);
    refused(&engine.all("GC"), 7, "is not there");
    for (list, word) in [
        (json!("all"), "not a list"),
        (json!([{ "containerID": "aaaa" }]), "ifname"),
        (json!([{ "ifname": "eth0" }]), "containerID"),
        (json!([{ "containerID": "../a", "ifname": "eth0" }]), "CONTAINERID"),
        (json!(["aaaa"]), "containerID"),
    ] {
        let config = with(json!({ "cni.dev/valid-attachments": list }));
        refused(&Engine { host: &host, config }.all("GC"), 7, word);
    }
    assert_eq!(ports(&host).len(), 4, "none of these took anything");
    // By the older name of the key, and by both: what is in either is valid.
    let valid = |id: &str| json!([{ "containerID": id, "ifname": "eth0" }]);
    let both = json!({ "cni.dev/valid-attachments": valid("aaaa"), "cni.dev/attachments": valid("bbbb") });
    Engine { host: &host, config: with(both) }.all("GC").ok();
    assert_eq!(ports(&host).len(), 3);
    assert_eq!(containers[2].ip("-o link show").lines().count(), 1);
    host.held(3);
    engine.gc(&["bbbb"]);
    containers[1].pings([10, 42, 0, 1]);
    host.held(2);
    // One whose container has died, of which only the address is left.
    let mut containers = containers;
    drop(containers.remove(1));
    engine.gc(&[]);
    host.held(1);
    containers.last().unwrap().pings([10, 42, 0, 1]);
    other.gc(&[]);
    nothing_is_left(&host);
}

#[test]
fn sixty_four_at_once_on_a_fresh_host_are_attached_beside_a_collection_and_removed_at_once() {
    let Some(host) = Host::new() else { return };
    let engine = Engine { host: &host, config: config() };
    // What comes to be there under each container's name for it is never in this host's own namespace, not for a moment.
    let mut watch = std::process::Command::new("ip")
        .args(["-rcvbuf", "16777216", "-o", "monitor", "link"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let containers: Vec<(String, Container)> = (0..64).map(|n| (format!("c{n}"), Container::new())).collect();
    let begun: Vec<Running> =
        containers.iter().map(|(id, container)| engine.begin("ADD", id, &container.path())).collect();
    // Of which a container is valid that is being attached: as its engine would have it.
    let valid: Vec<&str> = containers.iter().map(|(id, _)| id.as_str()).collect();
    engine.gc(&valid);
    let results: Vec<Value> = begun.into_iter().map(|running| parsed(&running.end().ok())).collect();
    let mut addresses: Vec<[u8; 4]> = results.iter().map(address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!((addresses.len(), ports(&host).len()), (64, 64));
    containers[0].1.pings(address(&results[63]));
    let begun: Vec<Running> = containers.iter().map(|(id, _)| engine.begin("DEL", id, "")).collect();
    begun.into_iter().for_each(|running| drop(running.end().ok()));
    nothing_is_left(&host);
    // What is made last is heard of last.
    let last = std::process::Command::new("ip").args(["link", "add", "last", "type", "bridge"]).status().unwrap();
    assert!(last.success());
    let mut seen = String::new();
    let mut heard = std::io::BufReader::new(watch.stdout.take().unwrap());
    while !seen.contains(": last: ") {
        assert_ne!(heard.read_line(&mut seen).unwrap(), 0, "it has ended: {seen}");
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    let names: std::collections::BTreeSet<&str> = seen
        .lines()
        .filter_map(|line| {
            line.trim_start_matches("Deleted ").split([' ', '@', ':']).filter(|word| !word.is_empty()).nth(1)
        })
        .collect();
    assert!(names.len() > 64 && names.contains("volt0") && !names.contains("eth0"), "{names:?}");
}

#[test]
fn plugin_that_is_killed_at_any_moment_is_in_no_way_of_the_next_and_leaves_nothing_that_is_not_found() {
    let Some(host) = Host::new() else { return };
    let engine = Engine { host: &host, config: config() };
    engine.all("STATUS").ok();
    for moment in 0..16 {
        let container = Container::new();
        let mut running = engine.begin("ADD", "aaaa", &container.path());
        std::thread::sleep(std::time::Duration::from_millis(moment * 2));
        running.signal(libc::SIGKILL);
        running.exits();
        if moment % 2 == 0 {
            engine.del("aaaa");
            engine.add("aaaa", &container);
            container.pings([10, 42, 0, 1]);
            engine.del("aaaa");
        } else {
            engine.gc(&[]);
        }
        assert_eq!(container.ip("-o link show").lines().count(), 1);
        nothing_is_left(&host);
    }
}

#[test]
fn every_version_is_answered_in_itself_alone_first_and_behind_another_plugin() {
    let Some(host) = Host::new() else { return };
    let before = |version: &str| {
        let mut ip = json!({ "address": "192.0.2.7/24", "interface": 0 });
        if version.starts_with("0.") {
            ip["version"] = "4".into();
        }
        json!({
            "cniVersion": version, "interfaces": [{ "name": "before0" }], "ips": [ip],
            "routes": [{ "dst": "198.51.100.0/24" }], "dns": { "nameservers": ["192.0.2.53"] },
        })
    };
    for version in VERSIONS {
        for chained in [false, true] {
            let mut config = with(json!({ "cniVersion": version }));
            if chained {
                config["prevResult"] = before(version);
            }
            let engine = Engine { host: &host, config };
            let container = Container::new();
            let result = engine.add("aaaa", &container);
            let own = usize::from(chained);
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][own]["version"].is_string(), version.starts_with("0."), "{result}");
            assert_eq!(result["interfaces"][own + 1]["mtu"].is_number(), version == "1.1.0", "{result}");
            assert_eq!(result["ips"][own]["interface"], own + 1);
            if chained {
                for (key, at) in [("interfaces", 0), ("ips", 0), ("routes", 0)] {
                    assert_eq!(result[key][at], before(version)[key][at], "passed on");
                }
                assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
            }
            // Without a version, by whichever engine.
            let mut config = engine.config.clone();
            config.as_object_mut().unwrap().remove("cniVersion");
            Engine { host: &host, config: config.clone() }.del("aaaa");
            refused(&Engine { host: &host, config }.run("ADD", "aaaa", &container.path()), 1, "cniVersion");
            assert_eq!(ports(&host), [""; 0]);
        }
    }
    for wrong in [json!("0.2.0"), json!("2.0.0"), json!("1.1"), json!("")] {
        let engine = Engine { host: &host, config: with(json!({ "cniVersion": wrong })) };
        refused(&engine.run("ADD", "aaaa", &Container::new().path()), 1, "cniVersion");
    }
    let said = parsed(&Engine { host: &host, config: json!({ "cniVersion": "0.4.0" }) }.all("VERSION").ok());
    assert_eq!(said, json!({ "cniVersion": "0.4.0", "supportedVersions": VERSIONS }));
    nothing_is_left(&host);
}

#[test]
fn what_a_configuration_or_an_environment_cannot_say_is_refused_by_name_and_changes_nothing() {
    let Some(host) = Host::new() else { return };
    let container = Container::new();
    let path = container.path();
    for (more, code, word) in [
        // As a path, by which a plugin would be started (CVE-2021-20206).
        (json!({ "type": "../reboot" }), 7, "bare name"),
        (json!({ "type": "/sbin/reboot" }), 7, "bare name"),
        (json!({ "type": ".." }), 7, "bare name"),
        (json!({ "type": "a\0b" }), 7, "bare name"),
        (json!({ "type": "" }), 7, "type"),
        (json!({ "ipam": { "type": "../reboot" } }), 7, "bare name"),
        (json!({ "ipam": { "type": "host-local" } }), 7, "starts no other"),
        (json!({ "ipam": { "type": "volt-cni", "subnet": "10.0.0.0/8" } }), 7, "ipam.subnet"),
        (json!({ "ipam": "volt-cni" }), 7, "ipam"),
        // Settings of the kernel, the container's or the host's.
        (json!({ "sysctl": { "kernel.panic": "1" } }), 2, "sysctl"),
        (json!({ "sysctl": { "net.core.somaxconn": "1", "net.ipv4.conf.IFNAME.arp_filter": "1" } }), 2, "sysctl"),
        (json!({ "isGateway": true }), 2, "isGateway"),
        (json!({ "runtimeConfig": { "dns": {} } }), 2, "runtimeConfig.dns"),
        (json!({ "runtimeConfig": { "ips": ["10.42.0.7", "10.42.0.8"] } }), 7, "one address"),
        (json!({ "runtimeConfig": { "ips": ["10.43.0.7"] } }), 7, "10.43.0.7"),
        (json!({ "runtimeConfig": { "mac": "ff:ff:ff:ff:ff:ff" } }), 7, "runtimeConfig.mac"),
        (json!({ "name": "" }), 7, "name"),
        (json!({ "name": "../pods" }), 7, "name"),
        (json!({ "network": "a b" }), 7, "network"),
        (json!({ "network": "nowhere" }), 7, "nowhere"),
        (json!({ "routes": "0.0.0.0/0" }), 7, "routes"),
        (json!({ "routes": [{ "dst": "10.0.0.1/8" }] }), 7, "CIDR"),
        (json!({ "routes": [{ "dst": "10.0.0.0/8", "gw": "10.42.0.9" }] }), 7, "gateway"),
        (json!({ "cniVersion": 1 }), 7, "cniVersion"),
    ] {
        let engine = Engine { host: &host, config: with(more) };
        refused(&engine.run("ADD", "aaaa", &path), code, word);
    }
    let engine = Engine { host: &host, config: config() };
    for text in ["", "{", "[]", "null"] {
        let variables =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "aaaa"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", &path)];
        refused(&engine.start(&variables, text).end(), 6, "configuration");
    }
    refused(&engine.start(&[("CNI_COMMAND", "VERSION")], &" ".repeat(70_000)).end(), 6, "larger");
    let usual =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "aaaa"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", path.as_str())];
    for (at, wrong, code, word) in [
        (0, "", 4, "CNI_COMMAND"),
        (0, "add", 4, "CNI_COMMAND"),
        (1, "", 4, "CNI_CONTAINERID"),
        (1, "../a", 4, "CNI_CONTAINERID"),
        (2, "", 4, "CNI_IFNAME"),
        (2, "../eth0", 4, "CNI_IFNAME"),
        (2, "sixteen-bytes-is", 4, "CNI_IFNAME"),
        (3, "", 4, "CNI_NETNS"),
        (3, "/nowhere/at/all", 3, "/nowhere/at/all"),
        (3, "/etc/passwd", 5, "/etc/passwd"),
        (3, "/proc/self/ns/uts", 5, "ns/uts"),
        (3, "/proc/self/ns/net", 7, "namespace of the bridges"),
    ] {
        let mut variables = usual;
        variables[at].1 = wrong;
        refused(&engine.start(&variables, &engine.config.to_string()).end(), code, word);
    }
    let mut variables = usual.to_vec();
    variables.push(("CNI_ARGS", "K8S_POD_NAME=a"));
    refused(&engine.start(&variables, &engine.config.to_string()).end(), 4, "K8S_POD_NAME");
    assert_eq!(container.ip("-o link show").lines().count(), 1);
    nothing_is_left(&host);
    // And what can be asked for is had.
    variables.pop();
    variables.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.42.0.77"));
    let with_mac = with(json!({ "runtimeConfig": { "mac": "02:00:00:00:00:77" }, "routes": [] }));
    let result = parsed(&engine.start(&variables, &with_mac.to_string()).end().ok());
    assert_eq!(
        (address(&result), result["interfaces"][1]["mac"].as_str()),
        ([10, 42, 0, 77], Some("02:00:00:00:00:77"))
    );
    assert!(!container.ip("route show").contains("default"));
    engine.del("aaaa");
}

#[test]
fn addresses_alone_are_given_to_another_plugin_and_status_says_when_there_are_none() {
    let Some(host) = Host::new() else { return };
    let small = r#"{"network":"small0","subnet":"10.9.0.0/29","gateway":"10.9.0.1"}"#;
    host.run(&mut host.volt(&["network", "define", &host.file("small.json", small.as_bytes())])).ok();
    let ipam = json!({ "type": "bridge", "isGateway": true, "ipam": { "type": "volt-cni", "network": "small0" } });
    let engine = Engine { host: &host, config: with(ipam) };
    for n in 0..5 {
        engine.all("STATUS").ok();
        // Whose namespace is the other plugin's to look at.
        let result = parsed(&engine.run("ADD", &format!("c{n}"), "").ok());
        assert_eq!(result["ips"][0]["address"], format!("10.9.0.{}/29", n + 2));
        assert!(result.get("interfaces").is_none() && result["ips"][0].get("interface").is_none(), "{result}");
    }
    refused(&engine.all("STATUS"), 50, "small0");
    refused(&engine.run("ADD", "c5", ""), 100, "");
    assert_eq!(ports(&host), [""; 0]);
    engine.del("c0");
    engine.all("STATUS").ok();
    engine.gc(&["c1"]);
    assert_eq!(host.free("small0"), 4);
    engine.gc(&[]);
    assert_eq!(host.free("small0"), 5);
    let unknown = Engine { host: &host, config: with(json!({ "network": "nowhere" })) };
    refused(&unknown.all("STATUS"), 50, "nowhere");
}

/// A guest whose TAP is a namespace's card, as a VM's would have it, at 10.42.0.200, while `work` runs.
pub fn beside_a_guest(host: &Host, work: impl FnOnce(&Guest)) {
    testrig::service::run(async {
        let netmgr = ipc::Connection::connect(&host.path("run/netmgr.sock")).await.unwrap();
        let (limit, host) = (crate::host::PATIENCE, netmgr.bootstrap::<schema::host_capnp::host::Client>());
        let mut request = host.network_request();
        request.get().set_network("volt0");
        let network = netmgr.call("find", limit, request.send()).await.unwrap().get().unwrap().get_network().unwrap();
        let mut request = network.port_factory_request();
        request.get().set_max_ports(1);
        let factory = netmgr.call("make", limit, request.send()).await.unwrap().get().unwrap().get_factory().unwrap();
        let mut request = factory.create_tap_request();
        request.get().set_workload("vm-web");
        request.get().set_mac(&[2, 0, 0, 0, 0, 0xd]);
        request.get().init_addresses(1).set(0, "10.42.0.200");
        let port = netmgr.call("attach", limit, request.send()).await.unwrap().get().unwrap().get_port().unwrap();
        let answer = netmgr.call("get", limit, port.tap_request().send()).await.unwrap();
        let token = answer.get().unwrap().get_tap().unwrap().get_bytes().unwrap().to_vec();
        let tap = netmgr.claim(&token).await.unwrap();
        work(&Guest::behind(tap, "02:00:00:00:00:0d", "10.42.0.200"));
    });
}

#[test]
fn container_of_an_engine_and_a_guest_reach_each_other_by_address() {
    let Some(host) = Host::new() else { return };
    let engine = Engine { host: &host, config: config() };
    let container = Container::new();
    let result = engine.add("aaaa", &container);
    beside_a_guest(&host, |guest| {
        container.pings([10, 42, 0, 200]);
        guest.inside.pings(address(&result));
    });
    engine.del("aaaa");
}

#[test]
fn container_on_a_network_with_ipv6_has_an_address_of_that_too_unless_its_namespace_has_none() {
    let Some(host) = Host::new() else { return };
    if !std::fs::exists("/proc/sys/net/ipv6").unwrap() {
        return testkit::skip!("the kernel has no IPv6");
    }
    let both = r#"{"network":"both0","subnet":"10.9.0.0/24","subnet6":"fd00:9::/64"}"#;
    host.run(&mut host.volt(&["network", "define", &host.file("both.json", both.as_bytes())])).ok();
    for version in VERSIONS {
        let engine = Engine { host: &host, config: with(json!({ "cniVersion": version, "network": "both0" })) };
        let containers = [Container::new(), Container::new(), Container::new()];
        containers[2].within(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        let results = ["aaaa", "bbbb", "cccc"].iter().zip(&containers).map(|(id, one)| engine.add(id, one));
        let results: Vec<Value> = results.collect();
        let own =
            |result: &Value| result["ips"][1]["address"].as_str().unwrap().strip_suffix("/64").unwrap().to_owned();
        for result in &results[..2] {
            let ip = &result["ips"][1];
            assert_eq!((ip["gateway"].as_str(), &ip["interface"]), (Some("fd00:9::1"), &1.into()), "{result}");
            assert_eq!(ip["version"].as_str(), version.starts_with("0.").then_some("6"));
            assert_eq!(result["routes"][1], json!({ "dst": "::/0", "gw": "fd00:9::1" }));
        }
        let [one, other, without] = &containers;
        for to in ["fd00:9::1", &own(&results[1])] {
            one.pings(to.parse::<std::net::Ipv6Addr>().unwrap());
        }
        assert!(one.ip("-6 route show default").contains("via fd00:9::1"));
        // CHECK looks at both.
        if version != "0.3.0" && version != "0.3.1" {
            let config = with(json!({ "cniVersion": version, "network": "both0", "prevResult": results[0] }));
            let checked = Engine { host: &host, config };
            checked.run("CHECK", "aaaa", &one.path()).ok();
            one.ip(&format!("addr del {}/64 dev eth0", own(&results[0])));
            refused(&checked.run("CHECK", "aaaa", &one.path()), 102, "within has no address fd00:9:");
        }
        // Whoever has made this one has switched IPv6 off in it.
        assert_eq!(
            (results[2]["ips"].as_array().unwrap().len(), results[2]["routes"].as_array().unwrap().len()),
            (1, 1)
        );
        without.pings(address(&results[0]));
        other.pings(address(&results[2]));
        ["aaaa", "bbbb", "cccc"].iter().for_each(|id| engine.del(id));
        nothing_is_left(&host);
    }
    // IPv6 that a network has not is refused by name.
    let engine = Engine { host: &host, config: with(json!({ "routes": [{ "dst": "::/0" }] })) };
    refused(&engine.run("ADD", "aaaa", &Container::new().path()), 7, "no gateway of that family");
    nothing_is_left(&host);
}

/// As libcni makes each plugin's configuration of a list.
#[test]
fn list_that_the_documents_show_attaches_a_container_with_a_default_route() {
    let Some(host) = Host::new() else { return };
    let list: Value = serde_json::from_str(include_str!("../../../examples/volt.conflist")).unwrap();
    let plugins = list["plugins"].as_array().unwrap();
    assert_eq!(plugins.len(), 1);
    let mut config = plugins[0].clone();
    (config["name"], config["cniVersion"]) = (list["name"].clone(), list["cniVersion"].clone());
    config["runtimeConfig"] = json!({ "ips": ["10.42.0.50/24"] });
    let engine = Engine { host: &host, config };
    let container = Container::new();
    assert_eq!(address(&engine.add("aaaa", &container)), [10, 42, 0, 50]);
    assert!(container.ip("route show").contains("default via 10.42.0.1"));
    container.pings([10, 42, 0, 1]);
    engine.del("aaaa");
    nothing_is_left(&host);
}
