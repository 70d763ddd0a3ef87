//! Ports of the host that lead to containers, and how fast these are, as an engine asks for it (`runtimeConfig.portMappings` and `bandwidth`): from a
//! neighbour, over loopback, from other containers; over the services' end, and until the container's.

use std::{net::TcpListener, time::Duration};

use serde_json::{Value, json};
use testkit::wait::PATIENCE;
use testrig::{
    container::{Container, ip},
    tcp::{reaches, serve},
};

use crate::{
    cni::{Engine, SERVICES, address, config, nothing_is_left, ports, refused, with},
    host::{Host, until},
};

/// How long is waited for what must not come, while what must, comes.
const NEVER: Duration = Duration::from_millis(300);

/// Whom a service takes who asks there for.
pub fn seen_as(from: &Container, to: &str) -> Option<String> {
    from.within(|| reaches(to.parse().unwrap(), PATIENCE)).map(|who| who.to_string())
}

/// The same of the host itself.
pub fn host_seen_as(to: &str) -> Option<String> {
    reaches(to.parse().unwrap(), PATIENCE).map(|who| who.to_string())
}

fn is_out_of_reach(from: &Container, to: &str) -> bool {
    from.within(|| reaches(to.parse().unwrap(), NEVER)).is_none()
}

/// Another host, at 192.0.2.2, of the network on which this one is 192.0.2.1.
pub fn neighbour() -> Container {
    let neighbour = Container::new();
    ip("link set lo up");
    ip(&format!("link add up0 type veth peer name eth0 netns {}", neighbour.path()));
    ip("addr add 192.0.2.1/24 dev up0");
    ip("link set up0 up");
    neighbour.ip("addr add 192.0.2.2/24 dev eth0");
    neighbour.ip("link set eth0 up");
    // Where this is on, iptables' rules, of which there are none here, see bridged packets twice.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    neighbour
}

fn mapping(host: u16, container: u16) -> Value {
    json!({ "hostPort": host, "containerPort": container, "protocol": "tcp" })
}

/// A configuration as an engine makes it that publishes these.
fn mapped(mappings: &Value) -> Value {
    with(json!({ "runtimeConfig": { "portMappings": mappings } }))
}

/// Waits until anybody may have that port.
fn is_free(at: &str) {
    until(at, || TcpListener::bind(at).map(drop).map_err(|error| error.to_string()));
}

#[test]
fn ports_of_an_engine_lead_to_its_container_over_any_end_of_services_until_its_own() {
    let Some(host) = Host::new() else { return };
    let (neighbour, web, other) = (neighbour(), Container::new(), Container::new());
    let mappings = json!([
        mapping(8080, 80),
        { "hostPort": 8081, "containerPort": 81, "protocol": "TCP", "hostIP": "127.0.0.1" },
        { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1" },
    ]);
    let engine = Engine { host: &host, config: mapped(&mappings) };
    let result = engine.add("aaaa", &web);
    Engine { host: &host, config: config() }.add("bbbb", &other);
    let [a, b, c, d] = address(&result);
    let own = format!("{a}.{b}.{c}.{d}");
    web.within(|| [80, 81].into_iter().for_each(serve));
    let is_reached = || {
        assert_eq!(seen_as(&neighbour, "192.0.2.1:8080").as_deref(), Some("192.0.2.2"));
        assert_eq!(host_seen_as("127.0.0.1:8080").as_deref(), Some("10.42.0.1"));
        assert_eq!(host_seen_as("127.0.0.1:8081").as_deref(), Some("10.42.0.1"));
        assert!(host_seen_as("192.0.2.1:8080").is_some() && host_seen_as("10.42.0.1:8080").is_some());
        assert_eq!(seen_as(&other, "192.0.2.1:8080").as_deref(), Some("10.42.0.1"));
        // And from itself, by the host.
        assert_eq!(seen_as(&web, "10.42.0.1:8080").as_deref(), Some("10.42.0.1"));
        assert!(is_out_of_reach(&neighbour, "192.0.2.1:8081"), "it is the host's alone");
    };
    is_reached();
    // Not by who routes to it.
    neighbour.ip("route add 10.42.0.0/24 via 192.0.2.1");
    assert!(is_out_of_reach(&neighbour, &format!("{own}:80")));
    // Nobody else has the port.
    assert!(TcpListener::bind("0.0.0.0:8080").is_err());
    let checked = |mappings: &Value| {
        let mut config = mapped(mappings);
        config["prevResult"] = result.clone();
        Engine { host: &host, config }.run("CHECK", "aaaa", &web.path())
    };
    checked(&mappings).ok();
    refused(&checked(&json!([mapping(8080, 81)])), 102, "8080:81 of the host is not published");

    host.end(SERVICES, libc::SIGKILL);
    is_reached();
    checked(&mappings).ok();
    is_reached();
    let workload = ports(&host).remove(0);
    let port = |words: &[&str]| host.run(&mut host.volt(&[&["port"], words].concat()));
    port(&["unpublish", "volt0", &workload, "8080"]).ok();
    refused(&checked(&mappings), 102, "8080:80 of the host");
    port(&["publish", "volt0", &workload, "8080:80"]).ok();
    checked(&mappings).ok();
    is_reached();

    engine.del("aaaa");
    assert!(
        is_out_of_reach(&neighbour, "192.0.2.1:8080") && reaches("127.0.0.1:8081".parse().unwrap(), NEVER).is_none()
    );
    is_free("0.0.0.0:8080");
    // With the container, whatever its engine does or does not; and by GC.
    let dies = Container::new();
    engine.add("cccc", &dies);
    assert!(TcpListener::bind("0.0.0.0:8080").is_err());
    drop(dies);
    is_free("0.0.0.0:8080");
    engine.add("dddd", &web);
    engine.gc(&["bbbb"]);
    is_free("0.0.0.0:8080");
    engine.gc(&[]);
    nothing_is_left(&host);
}

#[test]
fn ports_that_somebody_has_or_that_cannot_lead_to_a_container_are_refused_by_name_and_leave_nothing() {
    let Some(host) = Host::new() else { return };
    let (web, other) = (Container::new(), Container::new());
    let neighbour = neighbour();
    let engine = |mappings: Value| Engine { host: &host, config: mapped(&mappings) };
    engine(json!([mapping(8080, 80)])).add("aaaa", &web);
    web.within(|| serve(80));
    let is_as_before = |word: &str| {
        assert_eq!(seen_as(&neighbour, "192.0.2.1:8080").as_deref(), Some("192.0.2.2"), "{word}");
        assert_eq!((ports(&host).len(), other.ip("-o link show").lines().count()), (1, 1), "{word}");
        host.held(1);
        is_free("0.0.0.0:8090");
    };
    let own = TcpListener::bind("127.0.0.1:9095").unwrap();
    let of = |more: Value| {
        let mut mapping = mapping(8090, 80);
        mapping.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([mapping])
    };
    for (mappings, code, word) in [
        (json!([mapping(8090, 1), mapping(8080, 80)]), 101, "0.0.0.0:8080"),
        (json!([mapping(8090, 1), mapping(9095, 80)]), 101, "0.0.0.0:9095"),
        (json!([mapping(8090, 1), mapping(8090, 2)]), 7, "8090:2 is, in part or as a whole, given twice"),
        (of(json!({ "hostIP": "192.0.2.99" })), 7, "192.0.2.99:8090"),
        (of(json!({ "hostIP": "host" })), 7, "hostIP"),
        (of(json!({ "protocol": "sctp" })), 7, "\"sctp\" cannot be published"),
        (of(json!({ "hostPort": 0 })), 7, "portMappings.hostPort"),
        (of(json!({ "containerPort": 65536 })), 7, "portMappings.containerPort"),
        (of(json!({ "name": "web" })), 7, "portMappings.name"),
        (json!({}), 7, "not a list"),
        (json!((1..=257).map(|port| mapping(port, port)).collect::<Vec<_>>()), 7, "256 is the most"),
    ] {
        refused(&engine(mappings).run("ADD", "bbbb", &other.path()), code, word);
        is_as_before(word);
    }
    // What a netmgr that was killed has held, nobody else is given to publish either.
    host.end(SERVICES, libc::SIGKILL);
    let taken = json!([mapping(8090, 1), mapping(8080, 80)]);
    refused(&engine(taken.clone()).run("ADD", "bbbb", &other.path()), 101, "0.0.0.0:8080");
    is_as_before("after netmgr's end");
    // And of IPv6, to a container that has none.
    if std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0").is_ok() {
        let ended = engine(of(json!({ "hostIP": "::" }))).run("ADD", "bbbb", &other.path());
        refused(&ended, 7, "[::]:8090");
        is_as_before("IPv6");
    }
    drop(own);
    Engine { host: &host, config: config() }.gc(&[]);
    engine(taken).add("bbbb", &other);
    engine(json!([])).del("bbbb");
    nothing_is_left(&host);
}

#[test]
fn no_port_of_the_host_leads_to_a_container_on_an_isolated_network_and_none_is_left_attached() {
    let Some(host) = Host::new() else { return };
    let apart = r#"{"network":"apart0","type":"isolated","subnet":"10.77.0.0/24"}"#;
    host.run(&mut host.volt(&["network", "define", &host.file("apart.json", apart.as_bytes())])).ok();
    let mut config = mapped(&json!([mapping(8080, 80)]));
    config["network"] = "apart0".into();
    let engine = Engine { host: &host, config };
    let container = Container::new();
    refused(&engine.run("ADD", "aaaa", &container.path()), 7, "apart0, a network of type isolated");
    assert_eq!(container.ip("-o link show").lines().count(), 1);
    is_free("0.0.0.0:8080");
    nothing_is_left(&host);
}

/// Without an address of the host's, a port is of both families for who has both, and CHECK says so when one of them is missing.
#[test]
fn port_of_all_addresses_is_checked_in_each_family_that_the_container_has() {
    let Some(host) = Host::new() else { return };
    if !std::fs::exists("/proc/sys/net/ipv6").unwrap() {
        return testkit::skip!("the kernel has no IPv6");
    }
    let both = r#"{"network":"both0","subnet":"10.9.0.0/24","subnet6":"fd00:9::/64"}"#;
    host.run(&mut host.volt(&["network", "define", &host.file("both.json", both.as_bytes())])).ok();
    let mut config = mapped(&json!([mapping(8080, 80)]));
    config["network"] = "both0".into();
    let mut engine = Engine { host: &host, config };
    let container = Container::new();
    engine.config["prevResult"] = engine.add("aaaa", &container);
    let check = || engine.run("CHECK", "aaaa", &container.path());
    let workload = ports(&host).remove(0);
    let port = |words: &[&str]| host.run(&mut host.volt(&[&["port"], words].concat())).ok();
    for family in ["0.0.0.0:8080", "[::]:8080"] {
        check().ok();
        port(&["unpublish", "both0", &workload, family]);
        refused(&check(), 102, "8080:80 of the host is not published");
        port(&["publish", "both0", &workload, &format!("{family}:80")]);
    }
    check().ok();
    engine.config.as_object_mut().unwrap().remove("prevResult");
    engine.del("aaaa");
    nothing_is_left(&host);
}

#[test]
fn bandwidth_of_an_engine_is_its_containers_over_the_services_end_and_what_is_none_is_refused() {
    let Some(host) = Host::new() else { return };
    let engine =
        |bandwidth: Value| Engine { host: &host, config: with(json!({ "runtimeConfig": { "bandwidth": bandwidth } })) };
    let container = Container::new();
    refused(&engine(json!({ "ingressRate": 1 })).run("ADD", "aaaa", &container.path()), 7, "bandwidth.ingressRate");
    nothing_is_left(&host);
    // As containerd asks, of which a burst is as much as there can be.
    let wanted =
        json!({ "ingressRate": 8_000_000, "ingressBurst": u32::MAX, "egressRate": 16_000_000, "egressBurst": 1 });
    let added = engine(wanted).run("ADD", "aaaa", &container.path());
    if added.out.contains("nf_tables") {
        return testkit::skip!("this kernel limits no port: {}", added.out);
    }
    added.ok();
    let rates = || {
        let listed = host.run(&mut host.volt(&["port", "stats"])).ok().out;
        listed.lines().any(|line| line.contains("16000kbit/8000kbit"))
    };
    assert!(rates());
    host.end(SERVICES, libc::SIGKILL);
    assert!(rates());
    engine(Value::Null).del("aaaa");
    nothing_is_left(&host);
}

/// So that what is tested with engines is what they would find.
#[test]
fn list_that_the_documents_show_has_each_capability_that_the_plugin_takes() {
    let list: Value = serde_json::from_str(include_str!("../../../examples/volt.conflist")).unwrap();
    let capabilities = list["plugins"][0]["capabilities"].as_object().unwrap();
    let of_ours = ["bandwidth", "ips", "mac", "portMappings"];
    assert_eq!(capabilities.keys().map(String::as_str).collect::<Vec<_>>(), of_ours);
}
