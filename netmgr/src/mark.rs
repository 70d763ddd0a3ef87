//! Marks: the alias (IFLA_IFALIAS) of every interface that netmgr made says what it is for, which installation of Volt it belongs to, and what a
//! later netmgr has to know of it. What carries no mark, or another installation's, is never changed. Pure; touches nothing.

use schema::net::Mac;

use crate::{
    config::{Config, Kind, Uplink},
    instance::Instance,
    names,
    sources::Sources,
    vf::{Found, Function, Settings},
};

const BRIDGE: &str = "volt-vmm network";
const UPLINK: &str = "volt-vmm uplink";
const PORT: &str = "volt-vmm port";
/// That of one whose guest may not send to wherever it likes: as long, as a mark has no room for more.
const POLICED: &str = "volt-vmm gate";
const FUNCTION: &str = "volt-vmm function";
const GONE: &str = "volt-vmm gone";
/// What stands for an address that there is none of.
const NONE: &str = Instance::NONE;

fn instance(word: &str) -> Option<Instance> {
    if word == NONE { Some(Instance::default()) } else { word.parse().ok() }
}

/// The mark of a network's bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeMark {
    /// The network's definition; an earlier release did not note it.
    pub config: Option<Config>,
    /// Whose it is.
    pub owner: Instance,
}

/// Makes a bridge's mark.
pub fn bridge(config: &Config, owner: &Instance) -> String {
    let Config { name, address, ipv6, mtu, kind, uplink, isolate } = config;
    let address = address.map_or_else(|| NONE.into(), |address| address.to_string());
    // Nothing for none, as an earlier release has it.
    let ipv6 = ipv6.map_or_else(String::new, |ipv6| format!(" {ipv6}"));
    let kind = match kind {
        // A macvtap's network has no bridge.
        Kind::Bridged | Kind::Macvtap(_) | Kind::Sriov { .. } => "",
        Kind::Nat => " nat",
        Kind::HostOnly => " host-only",
        Kind::Isolated => " isolated",
    };
    let uplink = uplink.as_ref().map_or_else(String::new, |Uplink { parent, vlan }| format!(" {parent}/{vlan}"));
    let isolate = if *isolate { " isolate" } else { "" };
    format!("{BRIDGE} {name} {address} {mtu} {owner}{ipv6}{kind}{isolate}{uplink}")
}

/// Reads a bridge's mark; `None` for an alias that is no such.
pub fn read_bridge(alias: &str) -> Option<BridgeMark> {
    let rest = alias.strip_prefix(BRIDGE)?;
    if rest.is_empty() {
        return Some(BridgeMark { config: None, owner: Instance::default() });
    }
    let words: Vec<&str> = rest.strip_prefix(' ')?.split(' ').collect();
    let [name, address, mtu, owner, more @ ..] = &words[..] else { return None };
    let (ipv6, more) = match more {
        [ipv6, more @ ..] if ipv6.contains(':') => (*ipv6, more),
        more => ("", more),
    };
    let (kind, more) = match more {
        ["nat", more @ ..] => (Kind::Nat, more),
        ["host-only", more @ ..] => (Kind::HostOnly, more),
        ["isolated", more @ ..] => (Kind::Isolated, more),
        more => (Kind::Bridged, more),
    };
    let (isolate, more) = match more {
        ["isolate", more @ ..] => (true, more),
        more => (false, more),
    };
    let (parent, vlan) = match more {
        [] => ("", 0),
        [uplink] => uplink.split_once('/').and_then(|(parent, vlan)| Some((parent, vlan.parse().ok()?)))?,
        _ => return None,
    };
    let owner = instance(owner)?;
    let (gateway, prefix) = if *address == NONE { ("", "0") } else { address.split_once('/')? };
    let config = Config::new(name, gateway, prefix.parse().ok()?, mtu.parse().ok()?);
    let config = config.and_then(|config| config.with_ipv6(ipv6, &owner)?.of_kind(kind)?.on(parent, vlan)).ok()?;
    let config = config.isolated(isolate);
    (config.mtu != 0).then_some(BridgeMark { config: Some(config), owner })
}

/// Makes the mark of a network's uplink.
pub fn uplink(network: &str, owner: &Instance) -> String {
    format!("{UPLINK} {network} {owner}")
}

/// Reads it: the network, and whose it is; `None` for an alias that is no such.
pub fn read_uplink(alias: &str) -> Option<(&str, Instance)> {
    let (network, owner) = alias.strip_prefix(UPLINK)?.strip_prefix(' ')?.split_once(' ')?;
    Some((network, instance(owner)?))
}

/// The mark of a port's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMark {
    /// Its workload.
    pub workload: String,
    /// The guest's address.
    pub mac: Mac,
    /// Its network, and its MTU in bytes; an earlier release did not note them.
    pub on: Option<(String, u32)>,
    /// What the guest may send from; an earlier release noted none.
    pub sources: Sources,
    /// Whether it has a policy, which the rules have.
    pub policed: bool,
    /// Whose it is.
    pub owner: Instance,
}

const REFERENCE: &str = "volt-ref-";

/// The alternative name of a durable port's interface: what its SturdyRef's hash is kept as. (A mark of the greatest length has no room for it.)
pub fn reference(hash: &[u8; 32]) -> String {
    hash.iter().fold(REFERENCE.to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// That of a port, if it is a durable one.
pub fn read_reference(alternatives: &[String]) -> Option<&str> {
    let is = |name: &&String| {
        let digits = name.strip_prefix(REFERENCE).unwrap_or_default();
        digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    alternatives.iter().find(is).map(String::as_str)
}

/// Makes a port's mark.
pub fn port(
    workload: &str,
    mac: Mac,
    network: &str,
    mtu: u32,
    owner: &Instance,
    sources: &Sources,
    policed: bool,
) -> String {
    let port = if policed { POLICED } else { PORT };
    format!("{port} {workload} {mac} {network} {mtu} {owner}{}", sources.words())
}

/// Reads a port's mark; `None` for an alias that is no such.
pub fn read_port(alias: &str) -> Option<PortMark> {
    let (policed, rest) = match alias.strip_prefix(PORT) {
        Some(rest) => (false, rest),
        None => (true, alias.strip_prefix(POLICED)?),
    };
    let words: Vec<&str> = rest.strip_prefix(' ')?.split(' ').collect();
    let (workload, mac, on, owner, sources) = match &words[..] {
        [workload, mac] => (workload, mac, None, Instance::default(), Sources::default()),
        [workload, mac, network, mtu, owner, sources @ ..] => {
            (workload, mac, Some((network, mtu)), instance(owner)?, Sources::read(sources)?)
        }
        _ => return None,
    };
    names::check_label("workload", workload).ok()?;
    let on = match on {
        Some((network, mtu)) => {
            names::check_network(network).ok()?;
            Some(((*network).to_owned(), mtu.parse::<u16>().ok()?.into()))
        }
        None => None,
    };
    Some(PortMark { workload: (*workload).to_owned(), mac: mac.parse().ok()?, on, sources, policed, owner })
}

/// Makes the mark of a virtual function's interface that is taken for a port: for which network, and what it was before.
pub fn function(function: &Function, owner: &Instance) -> String {
    let Function { network, card, number, vlan, trust, found, .. } = function;
    let Found { settings, mac, mtu, ipv6, arp } = found;
    format!("{FUNCTION} {network} {owner} {card} {number} {vlan} {trust} {} {mac} {mtu} {ipv6} {arp}", settings.words())
}

/// Reads it, but for which interface it is on, and whose it is; `None` for an alias that is no such.
pub fn read_function(alias: &str) -> Option<(Function, Instance)> {
    let words: Vec<&str> = alias.strip_prefix(FUNCTION)?.strip_prefix(' ')?.split(' ').collect();
    let [network, owner, card, number, vlan, trust, settings @ .., mac, mtu, ipv6, arp] = &words[..] else {
        return None;
    };
    names::check_network(network).ok()?;
    let (card, number, vlan) = (card.parse().ok()?, number.parse().ok()?, vlan.parse().ok()?);
    let settings = Settings::read(settings.try_into().ok()?)?;
    let (mtu, ipv6, arp) = (mtu.parse().ok()?, ipv6.parse().ok()?, arp.parse().ok()?);
    let found = Found { settings, mac: mac.parse().ok()?, mtu, ipv6, arp };
    let (network, trust, interface, address) = ((*network).to_owned(), trust.parse().ok()?, 0, String::new());
    Some((Function { interface, address, card, number, network, vlan, trust, found }, instance(owner)?))
}

/// Makes the mark of an interface whose port was given up: whoever finds it takes it off the host.
pub fn gone(owner: &Instance) -> String {
    format!("{GONE} {owner}")
}

/// Whether that is the mark of such a one of `owner`'s.
pub fn is_gone(alias: &str, owner: &Instance) -> bool {
    alias.strip_prefix(GONE).and_then(|rest| instance(rest.strip_prefix(' ')?)).is_some_and(|marked| marked == *owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_mark_reads_back_and_an_earlier_release_s_has_no_owner() {
        for owner in [Instance::default(), "0123456789abcdef".parse().unwrap()] {
            for config in [
                Config::new("volt0", "10.42.0.1", 24, 1500).unwrap(),
                Config::new("volt0", "10.42.0.1", 24, 1500).unwrap().of_kind(Kind::Nat).unwrap(),
                Config::new("exactly15bytes_", "100.100.100.100", 24, 65_521).unwrap().of_kind(Kind::HostOnly).unwrap(),
                Config::new("exactly15bytes_", "", 0, 65_521).unwrap(),
                Config::new("volt0", "", 0, 1500).unwrap().of_kind(Kind::Isolated).unwrap(),
                Config::new("volt0", "10.42.0.1", 24, 1500).unwrap().of_kind(Kind::Isolated).unwrap(),
                Config::new("volt0", "10.42.0.1", 24, 1500).unwrap().on("eth0", 7).unwrap(),
                Config::new("exactly15bytes_", "100.100.100.100", 24, 65_521)
                    .and_then(|config| config.with_ipv6("fd11:2222:3333:4444:5555:6666:7777:8888/64", &owner))
                    .and_then(|config| config.on("also_15_bytes.1", 4094))
                    .unwrap(),
                Config::new("exactly15bytes_", "100.100.100.100", 24, 65_521)
                    .and_then(|config| config.with_ipv6("fd11:2222:3333:4444:5555:6666:7777:8888/64", &owner))
                    .and_then(|config| config.of_kind(Kind::HostOnly))
                    .unwrap(),
            ] {
                let mark = bridge(&config, &owner);
                assert!(mark.len() < 256, "IFALIASZ: {mark}");
                assert_eq!(read_bridge(&mark), Some(BridgeMark { config: Some(config), owner: owner.clone() }));
            }
        }
        assert_eq!(read_bridge(BRIDGE), Some(BridgeMark { config: None, owner: Instance::default() }));
        for foreign in [
            "",
            "volt-vmm",
            "volt-vmm networks",
            "volt-vmm network ",
            "volt-vmm network volt0",
            "volt-vmm network volt0 10.42.0.1/24 1500",
            "volt-vmm network volt0 10.42.0.1/24 1500 A",
            "volt-vmm network volt0 10.42.0.1/24 1500 a b",
            "volt-vmm network volt0 10.42.0.1/24 1500 a auto",
            "volt-vmm network volt0 10.42.0.1/24 1500 a ",
            "volt-vmm network volt0 10.42.0.1/24 1500 a fd00::1",
            "volt-vmm network volt0 10.42.0.1/24 1500 a fd00::1/64 b",
            "volt-vmm network volt0 - 1500 a nat",
            "volt-vmm network volt0 10.42.0.1/24 1500 a nat nat",
            "volt-vmm network volt0 10.42.0.1/24 1500 a eth0",
            "volt-vmm network volt0 10.42.0.1/24 1500 a eth0/0",
            "volt-vmm network volt0 10.42.0.1/24 1500 a eth0/4095",
            "volt-vmm network volt0 10.42.0.1/24 1500 a nat eth0/7",
            "volt-vmm network volt0 10.42.0.1/24 1500 a eth0/7 nat",
            "volt-vmm network volt0 10.42.0.1/24 1500 a isolated nat",
            "volt-vmm network volt0 10.42.0.1/24 1500 a isolated eth0/7",
            "volt-vmm uplink volt0 a",
            "volt-vmm network volt0 10.42.0.1 1500 a",
            "volt-vmm network volt0 10.42.0.1/33 1500 a",
            "volt-vmm network volt0 10.42.0.1/24 0 a",
            "volt-vmm network all 10.42.0.1/24 1500 a",
            "volt-vmm port vm-web 02:00:00:00:00:01",
        ] {
            assert_eq!(read_bridge(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn function_mark_reads_back_and_nothing_else_does() {
        let settings = Settings {
            mac: Mac::new([2, 0xa, 0xb, 0xc, 0xd, 0xe]),
            vlan: (4094, 7),
            rates: (u32::MAX, u32::MAX),
            spoof_check: Some(false),
            trust: Some(false),
        };
        let own = Mac::new([2, 1, 2, 3, 4, 5]).unwrap();
        let most = Function {
            interface: 0,
            address: String::new(),
            card: u32::MAX,
            number: 255,
            network: "exactly15bytes_".into(),
            vlan: 4094,
            trust: false,
            found: Found { settings, mac: own, mtu: 65_535, ipv6: false, arp: false },
        };
        let found = Found { settings: Settings::default(), mac: own, mtu: 1500, ipv6: true, arp: true };
        let least = Function { card: 2, number: 0, network: "n".into(), vlan: 0, trust: true, found, ..most.clone() };
        for owner in [Instance::default(), "0123456789abcdef0123456789abcdef".parse().unwrap()] {
            for of in [&most, &least] {
                let mark = function(of, &owner);
                assert!(mark.len() < 255, "IFALIASZ, and its NUL: {mark}");
                assert_eq!(read_function(&mark), Some((of.clone(), owner.clone())));
                assert_eq!((read_port(&mark), read_bridge(&mark), read_uplink(&mark)), (None, None, None));
                assert_eq!(read_function(&format!("{mark} x")), None);
                assert_eq!(read_function(mark.rsplit_once(' ').unwrap().0), None);
            }
        }
        for foreign in [
            "",
            "volt-vmm function",
            "volt-vmm function lan0 -",
            "volt-vmm functions",
            "volt-vmm port vm-web 02:00:00:00:00:01",
        ] {
            assert_eq!(read_function(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn what_was_given_up_is_its_owner_s_and_neither_a_port_nor_a_bridge() {
        let (none, one) = (Instance::default(), "one".parse().unwrap());
        for (owner, other) in [(&none, &one), (&one, &none)] {
            let mark = gone(owner);
            assert!(is_gone(&mark, owner) && !is_gone(&mark, other), "{mark}");
            assert_eq!((read_port(&mark), read_bridge(&mark)), (None, None));
        }
        for foreign in
            ["", "volt-vmm", "volt-vmm gone", "volt-vmm gone ", "volt-vmm gone - -", "volt-vmm port vm-web -"]
        {
            assert!(!is_gone(foreign, &none), "{foreign:?}");
        }
    }

    #[test]
    fn port_mark_reads_back_and_nothing_else_does() {
        let mac = Mac::new([2, 0xa, 0xb, 0xc, 0xd, 0xe]).unwrap();
        let owner: Instance = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let longest = "x".repeat(63);
        // As many bytes of them as there may be, in a length that leaves most of a group of three.
        let most = ["2001:db8::1", "3fff::1", "fc00::1", "fd00::1", "10.1.1.1", "11.1.1.1"];
        let most = Sources::new(most.into_iter().map(Ok)).unwrap();
        for sources in [Sources::default(), Sources::new(["10.42.0.9"].into_iter().map(Ok)).unwrap(), most] {
            for policed in [false, true] {
                let mark = port(&longest, mac, "exactly15bytes_", 65_521, &owner, &sources, policed);
                assert!(mark.len() < 255, "IFALIASZ, and its NUL: {mark}");
                let (on, sources) = (Some(("exactly15bytes_".into(), 65_521)), sources.clone());
                let expected = PortMark { workload: longest.clone(), mac, on, sources, policed, owner: owner.clone() };
                assert_eq!(read_port(&mark), Some(expected));
            }
        }
        // An earlier release's.
        let (on, sources) = (None, Sources::default());
        let expected =
            PortMark { workload: "vm-web".into(), mac, on, sources, policed: false, owner: Instance::default() };
        assert_eq!(read_port(&format!("volt-vmm port vm-web {mac}")), Some(expected));
        for foreign in [
            "",
            "volt-vmm",
            "volt-vmm network",
            "volt-vmm port",
            "volt-vmm port vm-web",
            "volt-vmm port vm-web 02:00",
            "volt-vmm port VM 02:00:00:00:00:01",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0 1500",
            "volt-vmm port vm-web 02:00:00:00:00:01 default 1500 a",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0 x a",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0 65536 a",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0 1500 a 10.42.0.9",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0 1500 a 43CioACQ ",
            "volt-vmm port vm-web 02:00:00:00:00:01 volt0 1500 A",
            "uplink",
        ] {
            assert_eq!(read_port(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn uplink_mark_reads_back_and_nothing_else_does() {
        for owner in [Instance::default(), "a".parse().unwrap()] {
            assert_eq!(read_uplink(&uplink("volt0", &owner)), Some(("volt0", owner)));
        }
        for foreign in ["", "uplink", "volt-vmm uplink", "volt-vmm uplink volt0", "volt-vmm uplink volt0 A"] {
            assert_eq!(read_uplink(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn reference_of_a_durable_port_reads_back_and_nothing_else_does() {
        let name = reference(&[0xa5; 32]);
        assert!(name.len() < 128, "ALTIFNAMSIZ");
        assert_eq!(read_reference(&["veth-a-h".into(), name.clone()]), Some(name.as_str()));
        for foreign in ["volt-ref-", "volt-ref", &name[..name.len() - 1], &format!("{name}0"), &name.replace('a', "A")]
        {
            assert_eq!(read_reference(&[foreign.into()]), None, "{foreign:?}");
        }
    }

    #[test]
    fn installation_may_have_its_own_and_what_is_nobody_s() {
        let (one, other): (Instance, Instance) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(one.may_have(&one) && one.may_have(&Instance::default()));
        assert!(!one.may_have(&other) && !Instance::default().may_have(&one));
        for bad in ["", "-", "A", "a b", &"a".repeat(33)] {
            assert!(bad.parse::<Instance>().is_err(), "{bad:?}");
        }
    }
}
