//! How the filter is kept: made whole, brought back whatever others do, and never more than its own.

use std::{
    collections::BTreeMap,
    iter::empty,
    sync::atomic::{AtomicBool, Ordering},
};

use schema::policy::{METADATA_4, METADATA_6};
use serde_json::{Value, json};

use super::{
    super::{
        expression::{Field, Test, Verdict},
        table::{Chain, Hook},
    },
    *,
};

const TABLE: &str = "bridge volt-vmm";

/// Where there is no nft(8), says so.
pub fn has_nft() -> bool {
    let has = Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has {
        testkit::skip!("nft is not installed (Debian's package nftables)");
    }
    has
}

/// What nft(8) says of the rules of this network namespace, by kinds of objects.
fn listed() -> BTreeMap<String, Vec<Value>> {
    let said: Value = serde_json::from_str(&run("nft -j list ruleset")).unwrap();
    let mut objects: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for object in said["nftables"].as_array().unwrap() {
        for (kind, object) in object.as_object().unwrap() {
            objects.entry(kind.clone()).or_default().push(object.clone());
        }
    }
    objects
}

/// The table's number, which another one of its name does not have.
fn handle() -> Option<u64> {
    listed().get("table")?.iter().find(|table| table["name"] == "volt-vmm" && table["family"] == "bridge")?["handle"]
        .as_u64()
}

/// How many elements that set has, as nft(8) lists them.
fn count(set: &str) -> usize {
    let sets = listed().remove("set").unwrap_or_default();
    let set = sets.into_iter().find(|found| found["name"] == set && found["table"] == "volt-vmm").unwrap();
    set["elem"].as_array().map_or(0, Vec::len)
}

/// Ports a, b, c, each with one address of each family.
struct Ports(Vec<(String, Mac, Sources)>);

impl Ports {
    fn new() -> Ports {
        Ports::of(3)
    }

    fn of(count: u16) -> Ports {
        let port = |n: u16| {
            let addresses = [format!("10.42.{}.{}", n >> 8, n & 255), format!("fd00::{n:x}")];
            let [high, low] = n.to_be_bytes();
            let mac = Mac::new([2, 0, 0, 0, high, low]).unwrap();
            (format!("tap-{n}"), mac, sources(&[&addresses[0], &addresses[1]]))
        };
        Ports((1..=count).map(port).collect())
    }

    fn senders(&self) -> impl Iterator<Item = Sender<'_>> {
        self.0.iter().map(|(interface, mac, sources)| sender(interface, *mac, sources))
    }
}

fn mend(filter: &mut Filter, ports: &Ports) -> bool {
    filter.mend(ports.senders(), empty(), empty(), empty(), |_| false).unwrap()
}

/// A field as nft(8) has it in JSON: as bits of a header, or by the names that it knows.
fn is_field(said: &Value, field: Field) -> bool {
    let payload = |base: &str, at: u32, len: usize| {
        let raw = json!({"payload": {"base": base, "offset": at * 8, "len": len * 8}});
        let named: &[(&str, &str, &str, u32, usize)] = &[
            ("ether", "daddr", "ll", 0, 6),
            ("ether", "saddr", "ll", 6, 6),
            ("ether", "type", "ll", 12, 2),
            ("icmp", "type", "th", 0, 1),
            ("igmp", "type", "th", 0, 1),
            ("udp", "sport", "th", 0, 2),
            ("udp", "dport", "th", 2, 2),
            ("th", "sport", "th", 0, 2),
            ("tcp", "sport", "th", 0, 2),
            ("tcp", "dport", "th", 2, 2),
            ("tcp", "flags", "th", 13, 1),
            ("icmp", "id", "th", 4, 2),
            ("icmpv6", "id", "th", 4, 2),
            ("icmpv6", "type", "th", 0, 1),
            ("th", "dport", "th", 2, 2),
            ("arp", "daddr ip", "nh", 24, 4),
            ("ip", "daddr", "nh", 16, 4),
            ("ip6", "daddr", "nh", 24, 16),
            ("ip6", "nexthdr", "nh", 6, 1),
        ];
        let name = &said["payload"];
        let is_named = named.iter().any(|(protocol, name_of, of, offset, length)| {
            (name["protocol"] == *protocol && name["field"] == *name_of) && (*of, *offset, *length) == (base, at, len)
        });
        *said == raw || is_named
    };
    match field {
        Field::Interface => *said == json!({"meta": {"key": "iifname"}}),
        Field::Index => *said == json!({"meta": {"key": "iif"}}),
        Field::Out => *said == json!({"meta": {"key": "oifname"}}),
        Field::OutIndex => *said == json!({"meta": {"key": "oif"}}),
        Field::Mark => *said == json!({"meta": {"key": "mark"}}),
        Field::Policy => *said == json!({"&": [{"meta": {"key": "mark"}}, 0xffff]}),
        Field::Turn => *said == json!({"&": [{"meta": {"key": "mark"}}, 0xffff_0000_u32]}),
        Field::Routing(0, 1) => *said == json!({"exthdr": {"name": "rt", "field": "nexthdr"}}),
        Field::Subnet(at) => {
            let [of, by] = said["&"].as_array().map(Vec::as_slice).unwrap_or_default() else { return false };
            is_field(of, Field::Network(at, 16)) && by == "0xffffffffffffffff0000000000000000"
        }
        Field::Protocol => *said == json!({"meta": {"key": "protocol"}}),
        Field::Transport => *said == json!({"meta": {"key": "l4proto"}}),
        Field::Ether(at, len) => payload("ll", at, len),
        Field::Network(at, len) => payload("nh", at, len),
        Field::Header(at, len) => payload("th", at, len),
        Field::Fragment(0, 1) => *said == json!({"exthdr": {"name": "frag", "field": "nexthdr"}}),
        Field::Fragment(2, 2) => *said == json!({"exthdr": {"name": "frag", "field": "frag-off"}}),
        _ => false,
    }
}

/// A number as nft(8) may write it: as such, or by a name.
fn is_number(said: &Value, bytes: &[u8]) -> bool {
    let number = bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    let names: &[(&str, &[u8])] = &[
        ("arp", &[8, 6]),
        ("ip", &[8, 0]),
        ("ip6", &[0x86, 0xdd]),
        ("ip", &[0]),
        ("icmp", &[1]),
        ("igmp", &[2]),
        ("udp", &[17]),
        ("tcp", &[6]),
        ("icmpv6", &[58]),
        ("echo-request", &[8]),
        ("echo-reply", &[0]),
        ("echo-request", &[128]),
        ("echo-reply", &[129]),
        ("redirect", &[5]),
        ("router-advertisement", &[9]),
        ("nd-neighbor-advert", &[136]),
        ("ipv6-icmp", &[58]),
        ("01:80:c2:00:00:00", &[1, 0x80, 0xc2, 0, 0, 0]),
        ("0", &[0; 4]),
        ("169.254.169.254", &METADATA_4.octets()),
        ("fd00:ec2::254", &METADATA_6.octets()),
        ("ff:ff:ff:ff:ff:f0", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
    ];
    said.as_u64().is_some_and(|said| u128::from(said) == number)
        || said.as_f64().is_some_and(|said| said == number as f64)
        || names.iter().any(|(name, of)| said == name && *of == bytes)
        || said
            .as_str()
            .and_then(|said| said.strip_prefix("0x"))
            .is_some_and(|said| u128::from_str_radix(said, 16).ok() == Some(number))
}

/// The protocols of which a part of a rule names fields.
fn protocols(part: &Value) -> Vec<Value> {
    match part {
        Value::Object(object) => {
            let own = object.get("payload").and_then(|field| field.get("protocol")).cloned();
            own.into_iter().chain(object.values().flat_map(protocols)).collect()
        }
        Value::Array(list) => list.iter().flat_map(protocols).collect(),
        _ => Vec::new(),
    }
}

/// A key of a set.
fn are_fields(said: &Value, fields: &[Field]) -> bool {
    let parts = said["concat"].as_array().map(Vec::as_slice).unwrap_or_default();
    parts.len() == fields.len() && parts.iter().zip(fields).all(|(part, field)| is_field(part, *field))
}

fn is_test(said: &Value, test: Test) -> bool {
    let mark = json!({"meta": {"key": "mark"}});
    let puts = |set: Set| said["set"]["set"] == format!("@{}", set.name());
    match test {
        Test::Marked => {
            let policy = json!({"map": {"key": {"meta": {"key": "iifname"}}, "data": "@policies"}});
            return *said == json!({"mangle": {"key": mark, "value": policy}});
        }
        // In the first turn, which is 0.
        Test::Dated => return *said == json!({"mangle": {"key": mark, "value": mark}}),
        Test::Again => return *said == json!({"mangle": {"key": mark, "value": u32::from_ne_bytes(*b"volt")}}),
        Test::Unmarked => return *said == json!({"mangle": {"key": mark, "value": 0}}),
        Test::Put(fields, set, seconds) => {
            let element = &said["set"]["elem"]["elem"];
            let is = said["set"]["op"] == "update" && puts(set) && element["timeout"] == seconds;
            return is && are_fields(&element["val"], fields);
        }
        Test::Note(fields, set, seconds) => {
            let element = &said["set"]["elem"]["elem"];
            let is = said["set"]["op"] == "update" && puts(set) && element["timeout"] == seconds;
            return is && are_fields(&element["val"], &[&[Field::Turn], fields].concat());
        }
        Test::Take(fields, set) => {
            return said["set"]["op"] == "delete" && puts(set) && are_fields(&said["set"]["elem"], fields);
        }
        _ => {}
    }
    let Value::Object(said) = &said["match"] else { return false };
    let (how, left, right) = (&said["op"], &said["left"], &said["right"]);
    let in_set = |set: Set| *right == json!(format!("@{}", set.name()));
    let of_port = |field| match left["concat"].as_array().map(Vec::as_slice) {
        Some([interface, of]) => is_field(interface, Field::Interface) && is_field(of, field),
        _ => false,
    };
    let masked = |field, mask: &[u8]| match left["&"].as_array().map(Vec::as_slice) {
        Some([of, by]) => is_field(of, field) && is_number(by, mask),
        _ => false,
    };
    match test {
        Test::Is(Field::Network(0, 1), [0x45]) if left["payload"]["protocol"] == "ip" => {
            let parts = [("version", 4), ("hdrlength", 5)];
            how == "==" && parts.iter().any(|(part, is)| left["payload"]["field"] == *part && right == is)
        }
        // As the host has it.
        Test::Is(Field::Mark, value) => {
            how == "==" && is_field(left, Field::Mark) && *right == json!(u32::from_ne_bytes(value.try_into().unwrap()))
        }
        Test::Is(field, value) => how == "==" && is_field(left, field) && is_number(right, value),
        Test::IsNot(field, value) => how == "!=" && is_field(left, field) && is_number(right, value),
        // TCP's, which it has names for.
        Test::Masked(Field::Header(13, 1), [0x12], [2]) => {
            let flags = json!([{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "ack"]]);
            how == "==" && left["&"] == flags && right == "syn"
        }
        Test::Masked(Field::Header(13, 1), [7], [0]) => {
            let named = how == "!" && is_field(left, Field::Header(13, 1)) && *right == json!(["fin", "syn", "rst"]);
            named || how == "==" && masked(Field::Header(13, 1), &[7]) && is_number(right, &[0])
        }
        Test::Any(Field::Header(13, 1), [5]) => {
            how == "in" && is_field(left, Field::Header(13, 1)) && *right == json!(["fin", "rst"])
        }
        Test::Masked(field, mask, value) => how == "==" && masked(field, mask) && is_number(right, value),
        // The mask of a fragment header's offset is a part of what nft(8) takes for that field.
        Test::Any(field, mask) => {
            how == "!=" && (masked(field, mask) || is_field(left, field)) && is_number(right, &[0, 0])
        }
        // What is 0 or more is right for it anyway; of bytes it says nothing more.
        Test::Read(field) => how == ">=" && is_field(left, field),
        Test::In(field, set) => how == "==" && is_field(left, field) && in_set(set),
        Test::OfPort(field, set) => how == "==" && of_port(field) && in_set(set),
        Test::NotOfPort(field, set) => how == "!=" && of_port(field) && in_set(set),
        Test::NotIn(field, set) => how == "!=" && is_field(left, field) && in_set(set),
        Test::All(fields, set) => how == "==" && are_fields(left, fields) && in_set(set),
        Test::Noted(fields, set) => {
            let parts = left["concat"].as_array().map(Vec::as_slice).unwrap_or_default();
            let [turn, parts @ ..] = parts else { return false };
            how == "=="
                && *turn == json!({"&": [mark, 0]})
                && are_fields(&json!({"concat": parts}), fields)
                && in_set(set)
        }
        Test::Over(..)
        | Test::Faster(..)
        | Test::Marked
        | Test::Dated
        | Test::Unmarked
        | Test::Again
        | Test::Put(..)
        | Test::Note(..)
        | Test::Take(..) => false,
    }
}

#[test]
fn nft_lists_the_rules_of_the_model_and_the_elements_of_its_ports() {
    if !has_nft() {
        return;
    }
    in_own_network(|| {
        let ports = Ports::new();
        mend(&mut filter(), &ports);
        let listed = listed();
        assert_eq!(listed["table"].len(), 2);
        let mut wrong = Vec::new();
        let chains = Chain::ALL.iter().filter(|chain| chain.family() == Family::Bridge);
        for (chain, said) in chains.zip(&listed["chain"]) {
            assert_eq!(said["name"], chain.name());
            match chain.hook() {
                Some(Hook { number, priority, kind }) => {
                    assert_eq!(
                        said["hook"],
                        ["prerouting", "input", "forward", "output", "postrouting"][number as usize]
                    );
                    assert_eq!(
                        (&said["type"], &said["prio"], &said["policy"]),
                        (&json!(kind), &json!(priority), &json!("accept"))
                    );
                }
                None => assert_eq!(said["hook"], Value::Null),
            }
            let of_chain = |rule: &&Value| rule["family"] == "bridge" && rule["chain"] == chain.name();
            let rules: Vec<&Value> = listed["rule"].iter().filter(of_chain).collect();
            assert_eq!(rules.len(), chain.rules().len());
            for (said, (about, tests, verdict)) in rules.into_iter().zip(chain.rules()) {
                assert_eq!(said["comment"], *about);
                let end = match verdict {
                    Verdict::Drop => json!({"drop": null}),
                    Verdict::Forged => json!({"goto": {"target": Chain::Forged.name()}}),
                    Verdict::Return => json!({"return": null}),
                    Verdict::Jump(to) => json!({"jump": {"target": to.name()}}),
                    Verdict::Goto(to) => json!({"goto": {"target": to.name()}}),
                    other => panic!("{other:?} in a bridge"),
                };
                let parts = said["expr"].as_array().unwrap();
                let (last, parts) = parts.split_last().unwrap();
                assert_eq!(*last, end, "{about}");
                let parts: Vec<&Value> = parts.iter().filter(|part| part.get("counter").is_none()).collect();
                // Of UDP's two ports, which are one test, nft(8) says each, and then not that it is UDP; nor that it is ARP, where it names a field of it.
                const PORTS: [Test; 2] =
                    [Test::Is(Field::Header(0, 2), &[0, 68]), Test::Is(Field::Header(2, 2), &[0, 67])];
                let both = tests.iter().any(|test| matches!(test, Test::Is(Field::Header(0, 4), [0, 68, 0, 67])));
                // Nor which protocol it is, where it names a field of that.
                let names = |protocol: &[u8]| {
                    let of_it = |part: &&Value| protocols(part).iter().any(|of| is_number(of, protocol));
                    let said = |part: &&Value| part["match"]["left"] == json!({"meta": {"key": "l4proto"}});
                    parts.iter().any(of_it) && !parts.iter().any(said)
                };
                // Nor of a packet. The version of IPv4 and its header's length it says one after the other then.
                let says_length = parts.iter().any(|part| part["match"]["left"]["payload"]["field"] == "hdrlength");
                let names_packet = |protocol: &[u8]| {
                    let said = |part: &&Value| part["match"]["left"] == json!({"meta": {"key": "protocol"}});
                    let of_it = |part: &&Value| protocols(part).iter().any(|of| is_number(of, protocol));
                    parts.iter().any(of_it) && !parts.iter().any(said)
                };
                let expected = tests.iter().flat_map(|test| match test {
                    Test::Is(Field::Transport, protocol) if names(protocol) => vec![],
                    Test::Is(Field::Protocol, protocol) if *protocol == [8, 6] || names_packet(protocol) => vec![],
                    Test::Is(Field::Network(0, 1), [0x45]) if says_length => vec![*test, *test],
                    Test::Is(Field::Header(0, 4), _) if both => PORTS.to_vec(),
                    test => vec![*test],
                });
                let expected: Vec<Test> = expected.collect();
                if parts.len() != expected.len() {
                    wrong.push(format!("{about}: {said}"));
                }
                for (part, test) in parts.iter().zip(expected).filter(|(part, test)| !is_test(part, *test)) {
                    wrong.push(format!("{about}: {test:?}: {part}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let elements = |set: Set| -> Vec<String> {
            let said = listed["set"].iter().find(|said| said["name"] == set.name()).unwrap();
            let text = |part: &Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
            let elements = said["elem"].as_array().unwrap().iter().map(|element| match element.get("concat") {
                Some(parts) => parts.as_array().unwrap().iter().map(text).collect::<Vec<_>>().join(" "),
                None => text(element),
            });
            let mut elements: Vec<String> = elements.collect();
            elements.sort();
            elements
        };
        assert_eq!(elements(Set::Ports), ["tap-1", "tap-2", "tap-3"]);
        let macs = ["tap-1 02:00:00:00:00:01", "tap-2 02:00:00:00:00:02", "tap-3 02:00:00:00:00:03"];
        assert_eq!(elements(Set::Macs), macs);
        let ipv4 = ["0.0.0.0", "10.42.0.1"].map(|ip| format!("tap-1 {ip}"));
        assert_eq!(elements(Set::Ipv4)[..2], ipv4);
        let ipv6 = ["::", "fd00::1", "fe80::ff:fe00:1"].map(|ip| format!("tap-1 {ip}"));
        assert_eq!(elements(Set::Ipv6)[..3], ipv6);
        assert_eq!((elements(Set::Ipv4).len(), elements(Set::Ipv6).len()), (6, 9));
        let constants = [Set::Hidden, Set::Messages, Set::Reports, Set::Memberships, Set::Discovery];
        assert_eq!(constants.map(|set| elements(set).len()), [11, 6, 3, 4, 3]);
    });
}

#[test]
fn nft_lists_the_rules_of_what_is_routed() {
    if !has_nft() {
        return;
    }
    in_own_network(|| {
        mend(&mut filter(), &Ports::new());
        let listed = run("nft -s list table inet volt-vmm");
        assert_eq!(listed, include_str!("routed.nft"));
    });
}

#[test]
fn port_that_goes_takes_its_elements_with_it_and_no_others() {
    if !has_nft() {
        return;
    }
    in_own_network(|| {
        let ports = Ports::new();
        let mut filter = filter();
        for port in ports.senders() {
            filter.add(port).unwrap();
        }
        let made = handle();
        filter.remove(["tap-2"].into_iter()).unwrap();
        // One that has none is no error.
        filter.remove(["tap-2", "tap-9"].into_iter()).unwrap();
        assert_eq!([Set::Ports, Set::Macs, Set::Ipv4, Set::Ipv6].map(|set| count(set.name())), [2, 2, 4, 6]);
        // Of one whose addresses change, only these do.
        let other = sources(&["10.42.9.9"]);
        filter.add(Sender { sources: &other, ..ports.senders().next().unwrap() }).unwrap();
        assert_eq!([Set::Ports, Set::Macs, Set::Ipv4, Set::Ipv6].map(|set| count(set.name())), [2, 2, 4, 3]);
        // An interface that is there still keeps what holds it, whosever it is.
        assert!(!filter.mend(empty(), empty(), empty(), empty(), |interface| interface == "tap-3").unwrap());
        assert_eq!((count("ports"), count("ipv6")), (1, 3));
        assert_eq!(handle(), made);
        filter.clear().unwrap();
        assert_eq!(handle(), None);
    });
}

/// What others may do to the rules.
const HARM: [&[&str]; 15] = [
    &["flush ruleset"],
    &["delete table bridge volt-vmm"],
    &["delete table inet volt-vmm"],
    &["flush table bridge volt-vmm"],
    &["flush chain bridge volt-vmm guest"],
    &["flush set bridge volt-vmm macs"],
    &["delete element bridge volt-vmm ports { tap-1 }"],
    &["add element bridge volt-vmm ipv4 { tap-1 . 10.42.0.99 }"],
    &["add element bridge volt-vmm ports { eth9 }"],
    &["delete element bridge volt-vmm hidden { 60 }"],
    &["insert rule bridge volt-vmm source accept"],
    &["add rule bridge volt-vmm host drop"],
    &["add chain bridge volt-vmm more { type filter hook forward priority 0; policy drop; }"],
    &["chain bridge volt-vmm source { policy drop; }"],
    &["add table bridge volt-vmm { flags dormant; }"],
];

#[test]
fn whatever_others_do_to_the_table_is_undone_and_nothing_else_is_touched() {
    if !has_nft() {
        return;
    }
    in_own_network(|| {
        let ports = Ports::new();
        let mut filter = filter();
        mend(&mut filter, &ports);
        let whole = run(&format!("nft list table {TABLE}"));
        for harm in HARM {
            run("nft add table bridge volt-vmm-other");
            run("nft add table inet volt-vmm-other");
            for command in harm {
                let output = Command::new("nft").arg(command).output().unwrap();
                assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            }
            assert!(mend(&mut filter, &ports), "{harm:?} is noticed");
            assert_eq!(run(&format!("nft list table {TABLE}")), whole, "{harm:?}");
            assert!(!mend(&mut filter, &ports), "{harm:?}: only once");
            if harm != ["flush ruleset"] {
                run("nft list table bridge volt-vmm-other");
                run("nft list table inet volt-vmm-other");
            }
        }
    });
}

#[test]
fn change_by_somebody_else_does_not_come_between_what_is_known_and_what_is_done() {
    if !has_nft() {
        return;
    }
    in_own_network(|| {
        let ports = Ports::new();
        let mut filter = filter();
        for (port, harm) in ports.senders().zip([
            &["add table ip other"][..],
            &["flush ruleset"],
            &["flush chain bridge volt-vmm guest", "add table ip x"],
        ]) {
            filter.add(port).unwrap();
            let before = handle();
            for command in harm {
                assert!(Command::new("nft").arg(command).status().unwrap().success());
            }
            // What others do to their own tables costs a look, and leaves the table what it is.
            let another = Sender { interface: "tap-x", ..port };
            filter.add(another).unwrap();
            assert_eq!(handle() == before, harm == ["add table ip other"], "{harm:?}");
            filter.remove(["tap-x"].into_iter()).unwrap();
            assert!(!mend(
                &mut filter,
                &Ports(
                    ports
                        .0
                        .iter()
                        .take(count("ports"))
                        .map(|(name, mac, sources)| (name.clone(), *mac, sources.clone()))
                        .collect()
                )
            ));
        }
        let whole = run(&format!("nft list chain {TABLE} guest"));
        assert!(whole.contains("another's MAC address"), "{whole}");
    });
}

#[test]
fn next_netmgr_leaves_nothing_of_the_last_one_s() {
    if !has_nft() {
        return;
    }
    in_own_network(|| {
        mend(&mut filter(), &Ports::of(9));
        run("nft insert rule bridge volt-vmm source accept");
        let mut next = filter();
        assert!(!mend(&mut next, &Ports::new()), "it is the first look");
        assert_eq!(count("ports"), 3);
        assert!(!run(&format!("nft list chain {TABLE} source")).contains("accept;\n\t\taccept"));
        // Another installation's is its own.
        let mut other = Filter::open(&"a1".parse().unwrap()).unwrap();
        mend(&mut other, &Ports::of(1));
        assert!(!mend(&mut next, &Ports::new()));
        other.clear().unwrap();
        assert_eq!(count("ports"), 3);
    });
}

#[test]
fn more_elements_than_an_attribute_holds_are_all_there() {
    in_own_network(|| {
        // 36 bytes each, and an attribute holds 65,535.
        let ports = Ports::of(4000);
        let mut filter = filter();
        mend(&mut filter, &ports);
        let (objects, elements) = filter.look().unwrap();
        let expected: BTreeSet<Element> =
            filter.elements.values().flatten().cloned().chain(rules::constants()).collect();
        assert_eq!(expected.len(), 4000 * 8 + rules::constants().count());
        assert_eq!(elements.len(), expected.len());
        assert!(elements == expected);
        assert_eq!(filter.known.as_ref().map(|known| &known.objects), Some(&objects));
        // And go as they came.
        filter.remove(ports.0.iter().map(|(interface, ..)| interface.as_str())).unwrap();
        assert_eq!(filter.look().unwrap().1.len(), rules::constants().count());
    });
}

#[test]
fn list_during_which_rules_change_is_asked_for_again() {
    in_own_network(|| {
        let ports = Ports::of(2000);
        let mut filter = filter();
        mend(&mut filter, &ports);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut churn = Filter::open(&"churn".parse().unwrap()).unwrap();
                let sources = sources(&["10.42.0.2"]);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    churn.add(sender("tap-churn", mac(9), &sources)).unwrap();
                    churn.remove(["tap-churn"].into_iter()).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            });
            for _ in 0..8 {
                // Each of these may fail for want of a quiet moment, and none says that somebody has changed what nobody did.
                match filter.mend(ports.senders(), empty(), empty(), empty(), |_| false) {
                    Ok(changed) => assert!(!changed),
                    Err(error) => assert!(error.to_string().contains("something else changes rules"), "{error}"),
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(!mend(&mut filter, &ports));
    });
}

#[test]
fn generation_after_the_last_is_the_first() {
    assert_eq!([1, 7, u32::MAX].map(after), [2, 8, 1]);
}

#[test]
fn somebody_who_changes_rules_all_the_time_keeps_nobody_from_changing_these() {
    in_own_network(|| {
        let (mut filter, ports, done) = (filter(), Ports::of(1000), AtomicBool::new(false));
        mend(&mut filter, &ports);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut other = Filter::open(&"b".parse().unwrap()).unwrap();
                while !done.load(Ordering::Relaxed) {
                    other.clear().unwrap();
                }
            });
            let (more, taken) = (mac(9), sources(&["10.43.0.9"]));
            for n in 0..3 {
                let interface = format!("tap-more{n}");
                let added = filter.add(sender(&interface, more, &taken));
                let gone = filter.remove(["tap-7"].into_iter());
                // It comes back with a look, as does all that somebody has taken away.
                Filter::open(&Instance::default()).unwrap().clear().unwrap();
                let mended = filter
                    .mend(ports.senders(), empty(), empty(), empty(), |interface| interface.starts_with("tap-more"));
                if added.is_err() || gone.is_err() || mended.is_err() {
                    done.store(true, Ordering::Relaxed);
                    panic!("{n}: {added:?}, {gone:?}, {mended:?}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let (_, there) = filter.look().unwrap();
        let expected: BTreeSet<Element> =
            filter.elements.values().flatten().cloned().chain(rules::constants()).collect();
        assert_eq!(there.len(), expected.len());
        assert!(there == expected && filter.elements.len() == 1003);
        // And then it is known again.
        assert!(!filter.mend(ports.senders(), empty(), empty(), empty(), |_| true).unwrap() && filter.known.is_some());
    });
}
