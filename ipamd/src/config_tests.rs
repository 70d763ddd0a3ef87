//! Tests of the configuration text.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

const SHOWN: &str = r#"{"network":"volt0","subnet":"10.42.0.0/24","gateway":"10.42.0.1","pool":{"start":"10.42.0.2","end":"10.42.0.254"},
  "reservations":{"vm-web":"10.42.0.10","container-db":"10.42.0.20"}}"#;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn the_documented_text_is_accepted() {
    let config = PoolConfig::parse(SHOWN).unwrap();
    assert_eq!(config.network, "volt0");
    assert_eq!(config.subnet.to_string(), "10.42.0.0/24");
    assert_eq!((config.gateway, config.start, config.end), (ip("10.42.0.1"), ip("10.42.0.2"), ip("10.42.0.254")));
    assert_eq!(
        config.reservations,
        BTreeMap::from([("vm-web".into(), ip("10.42.0.10")), ("container-db".into(), ip("10.42.0.20"))])
    );
}

#[test]
fn kind_and_mtu_are_taken_and_said_again_where_their_absence_says_something_else() {
    let with = |keys: &str| PoolConfig::parse(&format!(r#"{{{keys}"network":"n","subnet":"10.0.0.0/24"}}"#)).unwrap();
    let plain = with("");
    assert_eq!((plain.mtu, with(r#""type":"bridged","#)), (None, plain.clone()));
    assert!(!plain.to_json().contains("mtu") && !plain.to_json().contains("type"), "as an earlier release wrote it");
    for mtu in [1280, 9000, 65_521] {
        let config = with(&format!(r#""mtu":{mtu},"#));
        assert_eq!(config.mtu, Some(mtu));
        assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
    }
    for (keys, reach) in [
        (r#""nat":false,"#, Reach::Host),
        (r#""nat":true,"#, Reach::All),
        (r#""type":"bridged","nat":true,"#, Reach::All),
        (r#""type":"host-only","#, Reach::Outside),
        (r#""nat":true,"type":"host-only","#, Reach::Outside),
        (r#""type":"isolated","#, Reach::Nothing),
        (r#""nat":false,"type":"isolated","#, Reach::Nothing),
    ] {
        let config = with(keys);
        assert_eq!(config, PoolConfig { reach, ..plain.clone() });
        assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
    }
}

#[test]
fn guests_are_kept_from_one_another_where_it_is_said_whatever_the_kind() {
    let with = |keys: &str| PoolConfig::parse(&format!(r#"{{{keys}"network":"n","subnet":"10.0.0.0/24"}}"#)).unwrap();
    for kind in ["", r#""type":"host-only","#, r#""parent":"eth0","vlan":7,"#] {
        let config = with(&format!(r#"{kind}"isolate":true,"#));
        assert_eq!(config, PoolConfig { isolate: true, ..with(kind) });
        assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
        assert_eq!(with(&format!(r#"{kind}"isolate":false,"#)), with(kind));
    }
    assert!(!with("").to_json().contains("isolate"), "as an earlier release wrote it");
}

#[test]
fn virtual_functions_are_taken_with_their_parent_and_a_vlan_or_none_and_said_again() {
    for (keys, vlan, trust) in [
        ("", 0, false),
        ("\"vlan\":4094,", 4094, false),
        ("\"trust\":false,", 0, false),
        ("\"vlan\":7,\"trust\":true,", 7, true),
    ] {
        let text = format!(r#"{{{keys}"type":"sriov","parent":"eth0","network":"n","subnet":"10.0.0.0/24"}}"#);
        let config = PoolConfig::parse(&text).unwrap();
        let uplink = Some(Uplink { parent: "eth0".into(), vlan });
        assert_eq!((config.reach, &config.uplink), (Reach::Sriov { trust }, &uplink));
        assert_eq!(PoolConfig::parse(&config.to_json()).unwrap(), config);
    }
}

#[test]
fn macvtap_is_taken_with_its_parent_in_each_mode_and_said_again() {
    let with = |keys: &str| {
        let text = format!(r#"{{{keys}"type":"macvtap","parent":"eth0","network":"n","subnet":"10.0.0.0/24"}}"#);
        PoolConfig::parse(&text).unwrap()
    };
    assert_eq!(with(""), with(r#""mode":"bridge","nat":false,"#));
    for (name, mode) in MACVTAP_MODES {
        let config = with(&format!(r#""mode":"{name}","#));
        assert_eq!((config.reach, &config.uplink), (Reach::Macvtap(mode), &with("").uplink));
        assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
    }
    assert_eq!(with("").uplink, Some(Uplink { parent: "eth0".into(), vlan: 0 }));
    let both = with(r#""subnet6":"2001:db8:0:7::/64","gateway6":"2001:db8:0:7::fe","#);
    assert_eq!(both.ipv6.text(), "2001:db8:0:7::fe/64");
    assert_eq!(PoolConfig::parse(&both.to_json()), Ok(both));
    let policed = with(r#""policy":{"allow":["any tcp 443"]},"#);
    assert!(policed.policy.is_some());
    assert_eq!(PoolConfig::parse(&policed.to_json()), Ok(policed));
}

#[test]
fn router_of_a_vlan_is_what_guests_are_told_and_nobody_s_address() {
    let text = r#"{"network":"n","subnet":"10.0.0.0/24","gateway":"10.0.0.5","router":"10.0.0.9","parent":"eth0","vlan":7,
        "pool":{"start":"10.0.0.1","end":"10.0.0.20"}}"#;
    let config = PoolConfig::parse(text).unwrap();
    assert_eq!((config.gateway, config.router()), (ip("10.0.0.5"), Some(ip("10.0.0.9"))));
    let free: Vec<Ipv4Addr> = (1..=20).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let free = free.into_iter().filter(|address| config.in_range(*address)).count();
    assert_eq!(free, 18);
    assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
    let without = PoolConfig::parse(&text.replace(r#""router":"10.0.0.9","#, "")).unwrap();
    assert_eq!(without.router(), Some(ip("10.0.0.5")));
    for (change, to, why) in [
        (r#","parent":"eth0","vlan":7"#, "", "no VLAN"),
        (r#""router":"10.0.0.9""#, r#""router":"10.0.0.5""#, "the host's own address"),
        (r#""router":"10.0.0.9""#, r#""router":"10.0.1.9""#, "outside 10.0.0.0/24"),
        (r#""router":"10.0.0.9""#, r#""router":"10.0.0.9","reservations":{"vm-a":"10.0.0.9"}"#, "the router's address"),
    ] {
        let refused = PoolConfig::parse(&text.replace(change, to)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn isolated_network_has_subnets_and_says_no_gateway() {
    let text = r#"{"network":"n","type":"isolated","subnet":"10.0.0.0/24","subnet6":"fd00:1::/64"}"#;
    let config = PoolConfig::parse(text).unwrap();
    assert_eq!((config.router(), config.start, config.ipv6.text()), (None, ip("10.0.0.2"), "fd00:1::1/64".into()));
    assert!(!config.to_json().contains("gateway"), "{}", config.to_json());
    assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
    let bridged = PoolConfig::parse(&text.replace("isolated", "bridged")).unwrap();
    assert_eq!(bridged.router(), Some(ip("10.0.0.1")));
}

#[test]
fn vlan_is_taken_with_its_parent_and_said_again() {
    let with = |keys: &str| PoolConfig::parse(&format!(r#"{{{keys}"network":"n","subnet":"10.0.0.0/24"}}"#)).unwrap();
    for vlan in [1, 4094] {
        let config = with(&format!(r#""parent":"eth0","vlan":{vlan},"#));
        assert_eq!(config.uplink, Some(Uplink { parent: "eth0".into(), vlan }));
        assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config));
    }
    assert!(!with("").to_json().contains("vlan"), "as an earlier release wrote it");
}

#[test]
fn ipv6_is_off_follows_from_the_network_or_is_what_its_keys_say() {
    let with = |keys: &str| PoolConfig::parse(&format!(r#"{{{keys}"network":"n","subnet":"10.0.0.0/24"}}"#)).unwrap();
    let gateway = |text: &str| Ipv6::Gateway(text.parse().unwrap());
    for (keys, ipv6, text) in [
        ("", Ipv6::None, ""),
        (r#""ipv6":false,"#, Ipv6::None, ""),
        (r#""ipv6":true,"#, Ipv6::Auto, "auto"),
        (r#""subnet6":"fd00:1::/64","#, gateway("fd00:1::1"), "fd00:1::1/64"),
        (r#""ipv6":true,"subnet6":"fd00:1::/64","gateway6":"fd00:1::9","#, gateway("fd00:1::9"), "fd00:1::9/64"),
        (
            r#""subnet6":"2001:db8:0:0:0::/64","gateway6":"2001:DB8::ffff","#,
            gateway("2001:db8::ffff"),
            "2001:db8::ffff/64",
        ),
    ] {
        let config = with(keys);
        assert_eq!((config.ipv6, config.ipv6.text().as_str()), (ipv6, text));
        assert_eq!(PoolConfig::parse(&config.to_json()), Ok(config.clone()));
        assert_eq!(config.to_json().contains('6'), !text.is_empty(), "as an earlier release wrote it");
    }
}

#[test]
fn policy_is_taken_in_each_form_and_said_again_in_one() {
    let with = |policy: &str| {
        let text = SHOWN.replacen('{', &format!("{{\"policy\":{policy},"), 1);
        let config = PoolConfig::parse(&text).unwrap();
        assert_eq!(PoolConfig::parse(&config.to_json()).unwrap(), config);
        config.policy.unwrap().iter().map(Rule::to_string).collect::<Vec<_>>()
    };
    assert!(!PoolConfig::parse(SHOWN).unwrap().to_json().contains("policy"), "as an earlier release wrote it");
    assert_eq!([with("{}"), with(r#"{"default":"deny","allow":[]}"#)], [[""; 0], [""; 0]]);
    assert_eq!(with(r#"{"default":"allow","allow":["host udp 53"]}"#), ["any", "host udp 53"]);
    assert_eq!(with(r#"{"allow":["10.0.0.0/8 tcp 443","vm-db"]}"#), ["10.0.0.0/8 tcp 443", "vm-db"]);
}

const SCHEMA: &str = include_str!("../../docs/network.schema.json");

/// Whether a JSON schema allows a value, as far as ours goes; texts' patterns and formats aside.
fn allows(schema: &Value, value: &Value) -> bool {
    let known =
        ["$comment", "title", "description", "examples", "default", "pattern", "format", "type", "required", "enum"];
    let more = [
        "minimum",
        "maximum",
        "properties",
        "additionalProperties",
        "propertyNames",
        "dependentRequired",
        "items",
        "maxItems",
        "const",
        "if",
        "then",
        "else",
    ];
    if let Some(anything) = schema.as_bool() {
        return anything;
    }
    let keys = schema.as_object().unwrap().keys();
    keys.for_each(|key| {
        assert!(known.contains(&key.as_str()) || more.contains(&key.as_str()), "{key} is not looked at")
    });
    let is = match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.as_array().is_some_and(|list| {
            list.len() as u64 <= schema["maxItems"].as_u64().unwrap_or(u64::MAX)
                && list.iter().all(|one| allows(&schema["items"], one))
        }),
        Some(other) => panic!("{other}"),
    };
    let listed = schema["enum"].as_array().is_none_or(|list| list.contains(value));
    let within = |bound: &str, beyond: fn(u64, u64) -> bool| match (schema[bound].as_u64(), value.as_u64()) {
        (Some(bound), Some(value)) => !beyond(value, bound),
        _ => true,
    };
    let has_all = schema["required"]
        .as_array()
        .is_none_or(|keys| keys.iter().all(|key| value.get(key.as_str().unwrap()).is_some()));
    let has_others = schema["dependentRequired"].as_object().into_iter().flatten().all(|(key, others)| {
        value.get(key).is_none()
            || others.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some())
    });
    let mut entries = value.as_object().into_iter().flatten();
    let members = entries.all(|(key, value)| match (&schema["properties"][key], &schema["additionalProperties"]) {
        (Value::Null, Value::Null) => true,
        (Value::Null, Value::Bool(others)) => *others,
        (Value::Null, others) => allows(others, value),
        (own, _) => allows(own, value),
    });
    let meets = |part: &str| schema.get(part).is_none_or(|part| allows(part, value));
    let is_that = schema.get("const").is_none_or(|that| that == value);
    let then = schema.get("if").is_none() || meets(if meets("if") { "then" } else { "else" });
    is && listed
        && is_that
        && then
        && within("minimum", |value, least| value < least)
        && within("maximum", |value, most| value > most)
        && has_all
        && has_others
        && members
}

#[test]
fn published_schema_has_the_parser_s_keys_and_allows_what_it_takes() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let keys =
        |of: &Value| of["properties"].as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(keys(&schema), KEYS.map(str::to_owned).into());
    assert_eq!(keys(&schema["properties"]["pool"]), POOL_KEYS.map(str::to_owned).into());
    assert_eq!(keys(&schema["properties"]["policy"]), POLICY_KEYS.map(str::to_owned).into());
    let most = &schema["properties"]["policy"]["properties"]["allow"]["maxItems"];
    assert_eq!(*most, u64::from(schema::network_capnp::MAX_RULES));
    let page = include_str!("../../docs/RUNNING.md");
    let (_, shown) = page.split_once("file volt0.json -->\n```json\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    let examples = schema["examples"].as_array().unwrap().iter().map(Value::to_string);
    for text in examples.chain([SHOWN.to_owned(), shown.to_owned()]) {
        let config = PoolConfig::parse(&text).unwrap();
        for text in [text, config.to_json()] {
            assert!(allows(&schema, &serde_json::from_str(&text).unwrap()), "{text}");
        }
    }
    assert_eq!(schema["properties"]["type"]["enum"], serde_json::json!(KINDS));
}

#[test]
fn published_schema_allows_nothing_that_the_parser_refuses_for_its_keys_kinds_and_bounds() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for (from, to) in [
        ("\"network\":", "\"netwrk\":"),
        ("\"network\":", "\"vlan\":7,\"network\":"),
        ("\"network\":", "\"parent\":\"eth0\",\"network\":"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":0,\"network\":"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":4095,\"network\":"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":\"7\",\"network\":"),
        ("\"network\":", "\"parent\":0,\"vlan\":7,\"network\":"),
        ("\"network\":", "\"type\":\"sriov\",\"network\":"),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"eth0\",\"vlan\":4095,\"network\":"),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"eth0\",\"trust\":1,\"network\":"),
        ("\"network\":", "\"type\":\"vxlan\",\"network\":"),
        ("\"network\":", "\"type\":\"macvtap\",\"network\":"),
        ("\"network\":", "\"type\":\"macvtap\",\"parent\":\"eth0\",\"vlan\":7,\"network\":"),
        ("\"network\":", "\"mode\":\"bridge\",\"network\":"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":7,\"mode\":\"bridge\",\"network\":"),
        ("\"network\":", "\"type\":\"macvtap\",\"parent\":\"eth0\",\"mode\":\"source\",\"network\":"),
        ("\"network\":", "\"mtu\":1279,\"network\":"),
        ("\"network\":", "\"mtu\":65522,\"network\":"),
        ("\"network\":", "\"mtu\":\"1500\",\"network\":"),
        ("\"network\":", "\"ipv6\":\"true\",\"network\":"),
        ("\"network\":", "\"ipv6\":1,\"network\":"),
        ("\"network\":", "\"subnet6\":true,\"network\":"),
        ("\"network\":", "\"ipv6\":true,\"gateway6\":\"fd00::1\",\"network\":"),
        ("\"network\":", "\"nat\":1,\"network\":"),
        ("\"network\":", "\"nat\":null,\"network\":"),
        ("\"network\":", "\"nat\":\"true\",\"network\":"),
        ("\"network\":\"volt0\",", ""),
        ("\"subnet\":\"10.42.0.0/24\",", ""),
        ("\"start\":\"10.42.0.2\",", ""),
        ("\"start\":", "\"first\":\"10.42.0.2\",\"start\":"),
        ("\"volt0\"", "5"),
        ("\"10.42.0.20\"", "true"),
    ] {
        let text = SHOWN.replace(from, to);
        assert_ne!(text, SHOWN, "{from}");
        PoolConfig::parse(&text).unwrap_err();
        assert!(!allows(&schema, &serde_json::from_str(&text).unwrap()), "{text}");
    }
}

#[test]
fn absent_keys_get_the_documented_defaults() {
    let config = PoolConfig::parse(r#"{"network":"n","subnet":"172.16.0.0/30"}"#).unwrap();
    assert_eq!((config.gateway, config.start, config.end), (ip("172.16.0.1"), ip("172.16.0.2"), ip("172.16.0.2")));
    assert!(config.reservations.is_empty());
}

#[test]
fn what_is_wrong_is_named_by_key_value_and_remedy() {
    let with = |from: &str, to: &str| {
        let text = SHOWN.replace(from, to);
        assert_ne!(text, SHOWN, "{from} is not in the text");
        PoolConfig::parse(&text).unwrap_err()
    };
    for (from, to, key, why) in [
        ("\"network\":", "\"netwrk\":", "netwrk", "no such key"),
        ("\"network\":", "\"vlans\":7,\"network\":", "vlans", "no such key"),
        ("\"end\":", "\"mtu\":1500,\"end\":", "pool.mtu", "no such key"),
        ("\"network\":", "\"nat\":1,\"network\":", "nat", "true or false"),
        ("\"network\":", "\"isolate\":\"yes\",\"network\":", "isolate", "true or false"),
        ("\"network\":", "\"type\":\"host-only\",\"nat\":false,\"network\":", "nat", "beyond the host"),
        ("\"network\":", "\"type\":\"isolated\",\"network\":", "gateway", "nobody on an isolated network"),
        ("\"gateway\":\"10.42.0.1\",", "\"type\":\"isolated\",\"nat\":true,", "nat", "nothing else"),
        ("\"gateway\":\"10.42.0.1\",", "\"type\":\"isolated\",\"nat\":1,", "nat", "true or false"),
        ("\"gateway\":\"10.42.0.1\",", "\"type\":\"isolated\",\"parent\":\"eth0\",\"vlan\":7,", "vlan", "nothing else"),
        (
            "\"gateway\":\"10.42.0.1\",",
            "\"type\":\"isolated\",\"subnet6\":\"fd00::/64\",\"gateway6\":\"fd00::1\",",
            "gateway6",
            "nobody on an isolated network",
        ),
        ("\"network\":", "\"type\":\"vxlan\",\"network\":", "type", "no such kind"),
        ("\"network\":", "\"type\":\"macvtap\",\"network\":", "parent", "required"),
        ("\"network\":", "\"type\":\"macvtap\",\"parent\":\"a b\",\"network\":", "parent", "1 to 15 bytes"),
        ("\"network\":", "\"type\":\"macvtap\",\"parent\":7,\"network\":", "parent", "a string is needed"),
        ("\"network\":", "\"type\":\"macvtap\",\"parent\":\"eth0\",\"vlan\":7,\"network\":", "vlan", "parent itself"),
        ("\"network\":", "\"mode\":\"bridge\",\"network\":", "mode", "macvtap"),
        (
            "\"network\":",
            "\"type\":\"macvtap\",\"parent\":\"eth0\",\"mode\":\"source\",\"network\":",
            "mode",
            "no such mode",
        ),
        (
            "\"network\":",
            "\"type\":\"macvtap\",\"parent\":\"eth0\",\"nat\":true,\"network\":",
            "nat",
            "not go by way of the host",
        ),
        ("\"network\":", "\"type\":\"macvtap\",\"parent\":\"eth0\",\"ipv6\":true,\"network\":", "ipv6", "numbered"),
        (
            "\"network\":",
            "\"type\":\"macvtap\",\"parent\":\"eth0\",\"isolate\":true,\"network\":",
            "isolate",
            "by their mode",
        ),
        ("\"network\":", "\"type\":\"sriov\",\"network\":", "parent", "required"),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"a b\",\"network\":", "parent", "1 to 15 bytes"),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"eth0\",\"vlan\":0,\"network\":", "vlan", "1 to 4094"),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"eth0\",\"trust\":1,\"network\":", "trust", "true or false"),
        ("\"network\":", "\"trust\":true,\"network\":", "trust", "sriov"),
        (
            "\"network\":",
            "\"type\":\"sriov\",\"parent\":\"eth0\",\"vlan\":7,\"router\":\"10.42.0.5\",\"network\":",
            "router",
            "nobody but the gateway",
        ),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"eth0\",\"mode\":\"bridge\",\"network\":", "mode", "macvtap"),
        ("\"network\":", "\"type\":\"sriov\",\"parent\":\"eth0\",\"nat\":true,\"network\":", "nat", "way of the host"),
        (
            "\"network\":",
            "\"type\":\"sriov\",\"parent\":\"eth0\",\"ipv6\":true,\"network\":",
            "ipv6",
            "somebody else has numbered",
        ),
        (
            "\"network\":",
            "\"type\":\"sriov\",\"parent\":\"eth0\",\"isolate\":true,\"network\":",
            "isolate",
            "their card",
        ),
        ("\"network\":", "\"type\":\"Bridged\",\"network\":", "type", "no such kind"),
        ("\"network\":", "\"type\":[],\"network\":", "type", "a string is needed"),
        ("\"network\":", "\"mtu\":1279,\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"mtu\":65522,\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"mtu\":0,\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"mtu\":-1500,\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"mtu\":1500.5,\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"mtu\":18446744073709551615,\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"mtu\":\"1500\",\"network\":", "mtu", "1280 to 65521"),
        ("\"network\":", "\"ipv6\":\"true\",\"network\":", "ipv6", "true or false"),
        ("\"network\":", "\"ipv6\":6,\"network\":", "ipv6", "true or false"),
        ("\"network\":", "\"ipv6\":false,\"subnet6\":\"fd00::/64\",\"network\":", "subnet6", "is false"),
        ("\"network\":", "\"ipv6\":true,\"gateway6\":\"fd00::1\",\"network\":", "gateway6", "no subnet6"),
        ("\"network\":", "\"subnet6\":6,\"network\":", "subnet6", "a string is needed"),
        ("\"network\":", "\"subnet6\":\"fd00::\",\"network\":", "subnet6", "no prefix length"),
        ("\"network\":", "\"subnet6\":\"10.0.0.0/64\",\"network\":", "subnet6", "not an IPv6 address"),
        ("\"network\":", "\"subnet6\":\"fd00::/63\",\"network\":", "subnet6", "must be 64"),
        ("\"network\":", "\"subnet6\":\"fd00::/65\",\"network\":", "subnet6", "must be 64"),
        ("\"network\":", "\"subnet6\":\"fd00::/064\",\"network\":", "subnet6", "must be 64"),
        ("\"network\":", "\"subnet6\":\"fd00::1/64\",\"network\":", "subnet6", "bits set"),
        ("\"network\":", "\"subnet6\":\"fe80::/64\",\"network\":", "subnet6", "cannot have such"),
        ("\"network\":", "\"subnet6\":\"::/64\",\"network\":", "subnet6", "cannot have such"),
        ("\"network\":", "\"subnet6\":\"ff00::/64\",\"network\":", "subnet6", "cannot have such"),
        ("\"network\":", "\"subnet6\":\"fd00::/64\",\"gateway6\":\"fd00::\",\"network\":", "gateway6", "not the first"),
        (
            "\"network\":",
            "\"subnet6\":\"fd00::/64\",\"gateway6\":\"fd01::1\",\"network\":",
            "gateway6",
            "outside fd00::/64",
        ),
        (
            "\"network\":",
            "\"subnet6\":\"fd00::/64\",\"gateway6\":\"10.0.0.1\",\"network\":",
            "gateway6",
            "not an IPv6 address",
        ),
        ("\"network\":", "\"vlan\":7,\"network\":", "parent", "an interface of the host's"),
        ("\"network\":", "\"parent\":\"eth0\",\"network\":", "vlan", "put on no bridge"),
        ("\"network\":", "\"parent\":\"a b\",\"vlan\":7,\"network\":", "parent", "1 to 15 bytes"),
        ("\"network\":", "\"parent\":7,\"vlan\":7,\"network\":", "parent", "a string is needed"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":0,\"network\":", "vlan", "1 to 4094"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":4095,\"network\":", "vlan", "1 to 4094"),
        ("\"network\":", "\"parent\":\"eth0\",\"vlan\":65536,\"network\":", "vlan", "1 to 4094"),
        ("\"network\":", "\"nat\":true,\"parent\":\"eth0\",\"vlan\":7,\"network\":", "vlan", "by way of that"),
        (
            "\"network\":",
            "\"type\":\"host-only\",\"parent\":\"eth0\",\"vlan\":7,\"network\":",
            "vlan",
            "by way of that",
        ),
        ("\"network\":", "\"policy\":[],\"network\":", "policy", "an object is needed"),
        ("\"network\":", "\"policy\":{\"deny\":[]},\"network\":", "policy.deny", "no such key"),
        ("\"network\":", "\"policy\":{\"default\":\"drop\"},\"network\":", "policy.default", "neither allow nor deny"),
        ("\"network\":", "\"policy\":{\"allow\":\"any\"},\"network\":", "policy.allow", "a list is needed"),
        ("\"network\":", "\"policy\":{\"allow\":[7]},\"network\":", "policy.allow", "a string is needed"),
        ("\"network\":", "\"policy\":{\"allow\":[\"any tcp 0\"]},\"network\":", "policy.allow", "1 to 65535"),
        ("\"start\":", "\"first\":", "pool.first", "no such key"),
        ("\"network\":\"volt0\",", "", "network", "required"),
        ("\"start\":\"10.42.0.2\",", "", "pool.start", "required"),
        ("\"volt0\"", "5", "network", "a string is needed"),
        ("\"volt0\"", "\"a/b\"", "network", "1 to 15 bytes"),
        ("\"volt0\"", "\"all\"", "network", "not be all or default"),
        ("10.42.0.0/24", "10.42.0.0", "subnet", "no prefix length"),
        ("10.42.0.0/24", "10.42.0/24", "subnet", "not an IPv4 address"),
        ("10.42.0.0/24", "10.42.0.0/024", "subnet", "not a prefix length"),
        ("10.42.0.0/24", "10.42.0.0/+4", "subnet", "not a prefix length"),
        ("10.42.0.0/24", "10.42.0.0/31", "subnet", "8 to 30"),
        ("10.42.0.0/24", "10.0.0.0/7", "subnet", "8 to 30"),
        ("10.42.0.0/24", "10.42.0.1/24", "subnet", "bits set"),
        ("10.42.0.0/24", "127.0.0.0/24", "subnet", "cannot have such"),
        ("10.42.0.0/24", "224.0.0.0/24", "subnet", "cannot have such"),
        ("\"gateway\":\"10.42.0.1\"", "\"gateway\":\"10.43.0.1\"", "gateway", "outside 10.42.0.0/24"),
        ("\"gateway\":\"10.42.0.1\"", "\"gateway\":\"10.42.0.0\"", "gateway", "network address"),
        ("\"gateway\":\"10.42.0.1\"", "\"gateway\":\"10.42.0.255\"", "gateway", "broadcast address"),
        ("\"gateway\":\"10.42.0.1\"", "\"gateway\":\"10.42.0.01\"", "gateway", "not an IPv4 address"),
        ("\"10.42.0.254\"", "\"10.42.1.254\"", "pool.end", "outside"),
        ("\"10.42.0.2\"", "\"10.41.0.2\"", "pool.start", "outside"),
        ("\"10.42.0.254\"", "\"10.42.0.1\"", "pool.start", "behind pool.end"),
        ("\"10.42.0.20\"", "\"10.42.0.10\"", "reservations.container-db", "reserved for vm-web as well"),
        ("\"10.42.0.20\"", "\"10.42.9.10\"", "reservations.container-db", "outside"),
        ("\"10.42.0.20\"", "\"10.42.0.1\"", "reservations.container-db", "gateway"),
        ("\"10.42.0.20\"", "true", "reservations.container-db", "a string is needed"),
        ("container-db", "vm-web", "the text", "given twice"),
        ("\"subnet\":\"10.42.0.0/24\",", "\"network\":\"x\",", "the text", "given twice"),
        ("container-db", "Container", "reservations", "1 to 63 bytes"),
    ] {
        let error = with(from, to);
        assert_eq!(error.key, key, "{error}");
        assert!(error.why.contains(why), "{error}");
        assert!(!error.value.is_empty() && !error.remedy.is_empty(), "{error}");
    }
    for text in ["", "[]", "null", "{", "{\"network\":\"volt0\"} x"] {
        assert_eq!(PoolConfig::parse(text).unwrap_err().key, "the text", "{text}");
    }
}

#[test]
fn a_gateway_at_the_end_of_the_subnet_needs_an_explicit_pool() {
    let error = PoolConfig::parse(r#"{"network":"n","subnet":"10.0.0.0/24","gateway":"10.0.0.254"}"#).unwrap_err();
    assert_eq!(error.key, "pool");
    assert!(PoolConfig::parse(r#"{"network":"n","subnet":"10.0.0.0/24","gateway":"10.0.0.254","pool":{"start":"10.0.0.1","end":"10.0.0.9"}}"#).is_ok());
}

#[test]
fn the_text_may_have_64_kib_and_not_a_byte_more() {
    let pad = |len: usize| format!("{SHOWN}{}", " ".repeat(len - SHOWN.len()));
    assert!(PoolConfig::parse(&pad(MAX_CONFIG_BYTES)).is_ok());
    assert!(PoolConfig::parse(&pad(MAX_CONFIG_BYTES + 1)).unwrap_err().why.contains("longer"));
}

#[test]
fn nesting_without_end_is_refused_and_not_recursed_into() {
    assert!(PoolConfig::parse(&"[".repeat(60_000)).is_err());
    assert!(PoolConfig::parse(&"{\"pool\":".repeat(8_000)).is_err());
}

#[test]
fn subnets_overlap_when_one_holds_the_other_and_not_when_they_touch() {
    let subnet = |text| parse_subnet(text).unwrap();
    assert!(subnet("10.0.0.0/8").overlaps(&subnet("10.42.0.0/24")));
    assert!(subnet("10.42.0.0/24").overlaps(&subnet("10.0.0.0/8")));
    assert!(!subnet("10.42.0.0/24").overlaps(&subnet("10.42.1.0/24")));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        let _ = PoolConfig::parse(&text);
    }

    #[test]
    fn no_mutation_of_a_good_text_makes_it_panic(at in 0usize..SHOWN.len(), with in any::<char>()) {
        let mut text: Vec<char> = SHOWN.chars().collect();
        text[at] = with;
        let text: String = text.into_iter().collect();
        if let Ok(config) = PoolConfig::parse(&text) {
            prop_assert_eq!(PoolConfig::parse(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn what_is_accepted_round_trips(third in 0u8..255, prefix in 8u8..=30, gateway in 1u32..60, len in 0u32..60) {
        let network = u32::from(Ipv4Addr::new(10, 7, third, 0)) & (u32::MAX << (32 - prefix));
        let text = format!(
            r#"{{"network":"n","subnet":"{}/{prefix}","gateway":"{}","pool":{{"start":"{}","end":"{}"}}}}"#,
            Ipv4Addr::from(network), Ipv4Addr::from(network + gateway), Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 1 + len),
        );
        if let Ok(config) = PoolConfig::parse(&text) {
            prop_assert_eq!(PoolConfig::parse(&config.to_json()).unwrap(), config);
        }
    }
}
