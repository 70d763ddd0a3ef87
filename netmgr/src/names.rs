//! What things are called: which names a caller may choose, and the interface names and MAC addresses that follow from them.
//! Pure functions. Touches nothing.

use schema::{
    names,
    net::{MAC_RULE, Mac},
};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Checks a network's name by the rule that all services share ([`schema::names::is_network`]).
pub fn check_network(name: &str) -> Result<(), Error> {
    if names::is_network(name) { Ok(()) } else { Err(Error::argument("network name", name, names::NETWORK_RULE)) }
}

/// Checks the name of a workload or tenant (`what`) by the rule that all services share.
pub fn check_label(what: &'static str, name: &str) -> Result<(), Error> {
    if names::is_workload(name) { Ok(()) } else { Err(Error::argument(what, name, names::WORKLOAD_RULE)) }
}

/// The name of a TAP, with the name people look for where the kernel's 15 bytes do not hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapName {
    /// Interface name, 15 bytes at most.
    pub name: String,
    /// The full name, to be set as alternative name (IFLA_ALT_IFNAME); absent where `name` is the full one.
    pub full: Option<String>,
}

/// `tap-<id>`, where `<id>` is the workload without `vm-`; shortened with a hash of `<id>` where that does not fit.
pub fn tap(workload: &str) -> TapName {
    let id = names::without_vm(workload);
    let full = format!("tap-{id}");
    if full.len() <= names::INTERFACE_MAX {
        TapName { name: full, full: None }
    } else {
        TapName { name: shortened(id, &[id]), full: Some(full) }
    }
}

/// The name for a workload whose [`tap`] name another port of ours has: that happens when it has a port on two networks, and for
/// `web` beside `vm-web`.
pub fn tap_on(network: &str, workload: &str) -> TapName {
    let id = names::without_vm(workload);
    TapName { name: shortened(id, &[network, workload]), full: Some(format!("tap-{workload}-{network}")) }
}

/// What a port's interface is called when nobody has renamed it: as it is, if that is one of its workload's two names, else the one that its
/// alternative names speak for.
pub fn of_port(network: &str, workload: &str, name: &str, alternatives: &[String]) -> String {
    let (first, second) = (tap(workload), tap_on(network, workload));
    let is_second =
        name != first.name && (name == second.name || second.full.is_some_and(|full| alternatives.contains(&full)));
    if is_second { second.name } else { first.name }
}

/// The workloads whose TAP on that network may have that name, as [`tap`] or [`tap_on`] give it, in full.
pub fn workloads(network: &str, name: &str) -> impl Iterator<Item = String> {
    let id = name.strip_prefix("tap-").filter(|id| !id.is_empty());
    let on = id.and_then(|id| id.strip_suffix(network)?.strip_suffix('-'));
    let vm = id.map(|id| format!("vm-{id}"));
    let found = [id.map(str::to_owned), vm, on.map(str::to_owned)].into_iter().flatten();
    found.filter(|workload| names::is_workload(workload))
}

/// `tap-` + three bytes of the id + `-` + 35 bits of a hash in base 32: 15 bytes.
fn shortened(id: &str, hashed: &[&str]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut name = format!("tap-{}-", id.get(..3).unwrap_or(id));
    let digest = digest(hashed);
    name.extend(
        digest.iter().take(7).filter_map(|byte| DIGITS.get(usize::from(byte & 31))).map(|digit| char::from(*digit)),
    );
    name
}

/// A hash of names, each apart from the next.
pub fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// The address of a guest that chose none: locally administered, the same for the same workload on the same network.
pub fn mac_of_guest(network: &str, workload: &str) -> Mac {
    derived(&[network, workload])
}

/// The address of a network's bridge. It is set, so that the gateway's address does not change with the ports that come and go.
pub fn mac_of_bridge(network: &str) -> Mac {
    derived(&[network])
}

fn derived(parts: &[&str]) -> Mac {
    let [a, b, c, d, e, ..] = digest(parts);
    Mac::local([a, b, c, d, e])
}

/// The guest's address as a caller gave it: empty for the derived one, else six bytes of a unicast address.
pub fn mac_asked(bytes: &[u8], network: &str, workload: &str) -> Result<Mac, Error> {
    if bytes.is_empty() {
        return Ok(mac_of_guest(network, workload));
    }
    let refuse = |why: &str| Error::argument("MAC address", &format!("{bytes:02x?}"), why);
    let mac = bytes.try_into().map_err(|_| refuse("it must have six bytes, or none for the derived one"))?;
    Mac::new(mac).ok_or_else(|| refuse(MAC_RULE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_tap_give_its_workload_and_its_own_name_back() {
        for workload in ["vm-web", "web", "vm-a-longer-name-than-fits", "a-longer-name-than-fits"] {
            for tap in [tap(workload), tap_on("volt0", workload)] {
                let TapName { name, full } = tap;
                let said = full.as_ref().unwrap_or(&name);
                assert!(workloads("volt0", said).any(|found| found == workload), "{said}");
                let alternatives: Vec<String> = full.into_iter().collect();
                assert_eq!(of_port("volt0", workload, &name, &alternatives), name);
                assert_eq!(of_port("volt0", workload, "eth7", &alternatives), name);
            }
        }
        for foreign in ["", "tap-", "eth0", "tap-A"] {
            assert_eq!(workloads("volt0", foreign).next(), None, "{foreign:?}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_the_rule() {
        check_network("volt0").unwrap();
        check_label("workload", "vm-web").unwrap();
        for bad in ["all", "a b"] {
            assert!(check_network(bad).unwrap_err().to_string().contains("1 to 15 bytes"), "{bad:?}");
        }
        assert!(check_label("workload", "Web").unwrap_err().to_string().contains("1 to 63 bytes"));
    }

    #[test]
    fn tap_is_named_for_the_id_while_it_fits() {
        assert_eq!(tap("vm-web"), TapName { name: "tap-web".into(), full: None });
        assert_eq!(tap("web").name, "tap-web");
        assert_eq!(tap("vm-").name, "tap-vm-");
        assert_eq!(tap("vm-elevenbytes"), TapName { name: "tap-elevenbytes".into(), full: None });
    }

    #[test]
    fn tap_of_a_long_id_is_shortened_and_keeps_its_full_name() {
        let one = tap("vm-twelve-bytes");
        assert_eq!(one.name.len(), names::INTERFACE_MAX);
        assert!(one.name.starts_with("tap-twe-"), "{}", one.name);
        assert_eq!(one.full.as_deref(), Some("tap-twelve-bytes"));
        assert_ne!(one.name, tap("vm-twelve-bytez").name);
        assert_eq!(one, tap("vm-twelve-bytes"));
        let longest = tap(&"x".repeat(63));
        assert_eq!(longest.name.len(), names::INTERFACE_MAX);
    }

    #[test]
    fn second_choice_differs_by_network_and_workload_and_fits() {
        let names: Vec<String> = [("volt0", "vm-web"), ("volt1", "vm-web"), ("volt0", "web"), ("volt0", "a")]
            .iter()
            .map(|(n, w)| tap_on(n, w).name)
            .collect();
        for (at, name) in names.iter().enumerate() {
            assert!(
                name.len() <= names::INTERFACE_MAX && !names[..at].contains(name) && check_network(name).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn derived_guest_mac_is_local_unicast_and_differs_by_network_and_workload() {
        let mac = mac_of_guest("volt0", "vm-web");
        assert_eq!(mac.bytes()[0], 0x02);
        assert_eq!(mac, mac_asked(&[], "volt0", "vm-web").unwrap());
        assert_ne!(mac, mac_of_guest("volt1", "vm-web"));
        assert_ne!(mac, mac_of_guest("volt0", "vm-web2"));
        assert_ne!(mac_of_guest("ab", "c"), mac_of_guest("a", "bc"));
    }

    #[test]
    fn asked_mac_must_be_unicast_and_six_bytes() {
        assert_eq!(mac_asked(&[0x52, 0x54, 0, 1, 2, 3], "n", "w").ok(), Mac::new([0x52, 0x54, 0, 1, 2, 3]));
        for bad in [&[0u8; 6][..], &[1, 0, 0x5e, 0, 0, 1], &[0xff; 6], &[2, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0]] {
            assert!(mac_asked(bad, "n", "w").is_err(), "{bad:?}");
        }
    }
}
