//! What things are called: which names a caller may choose, and the interface names and MAC addresses that follow from them.
//! Pure functions. Touches nothing.

use std::fmt;

use schema::{
    names::{self, HALF_MADE},
    net::{MAC_RULE, Mac},
    network_capnp::MacvtapMode,
};
use sha2::{Digest, Sha256};

use crate::{error::Error, instance::Instance};

/// What a port's interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TAP, which is there as long as a process has it open.
    Tap,
    /// The host's end of two, which is there as long as the other end's network namespace.
    Veth,
    /// One on an interface of the host's, in that mode. It is there until somebody takes it away.
    Macvtap(MacvtapMode),
}

impl Kind {
    /// What it means that the interface of a port of this kind is gone.
    pub fn gone(self, interface: &str) -> Error {
        let interface = interface.to_owned();
        match self {
            Kind::Tap | Kind::Macvtap(_) => Error::PortLost { interface },
            Kind::Veth => Error::VethGone { interface },
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Tap => "TAP",
            Kind::Veth => "veth",
            Kind::Macvtap(_) => "macvtap",
        })
    }
}

/// Checks a network's name by the rule that all services share ([`schema::names::is_network`]).
pub fn check_network(name: &str) -> Result<(), Error> {
    if names::is_network(name) { Ok(()) } else { Err(Error::argument("network name", name, names::NETWORK_RULE)) }
}

/// Checks the name of an interface in a container, by the same rule.
pub fn check_inside(name: &str) -> Result<(), Error> {
    if names::is_network(name) {
        Ok(())
    } else {
        Err(Error::argument("name of the interface within", name, names::NETWORK_RULE))
    }
}

/// Checks the name of a workload or tenant (`what`) by the rule that all services share.
pub fn check_label(what: &'static str, name: &str) -> Result<(), Error> {
    if names::is_workload(name) { Ok(()) } else { Err(Error::argument(what, name, names::WORKLOAD_RULE)) }
}

/// The name of a port's interface, with the name people look for where the kernel's 15 bytes do not hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName {
    /// Interface name, 15 bytes at most.
    pub name: String,
    /// The full name, to be set as alternative name (IFLA_ALT_IFNAME); absent where `name` is the full one.
    pub full: Option<String>,
}

/// What stands before and behind the id in the name of a port's interface, and before it in the workload's.
fn around(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::Tap => ("tap-", "", "vm-"),
        Kind::Veth => ("veth-", "-h", "container-"),
        Kind::Macvtap(_) => ("mvt-", "", "vm-"),
    }
}

/// The workload without what it begins with for what it is, if there is something behind that.
fn id(kind: Kind, workload: &str) -> &str {
    workload.strip_prefix(around(kind).2).filter(|id| !id.is_empty()).unwrap_or(workload)
}

/// `tap-<id>`, or `mvt-<id>`, where `<id>` is the workload without `vm-`, or `veth-<id>-h`, where it is that without `container-`; shortened with a hash of `<id>`
/// where that does not fit.
pub fn first(kind: Kind, workload: &str) -> PortName {
    let ((before, behind, _), id) = (around(kind), id(kind, workload));
    let full = format!("{before}{id}{behind}");
    if full.len() <= names::INTERFACE_MAX {
        PortName { name: full, full: None }
    } else {
        PortName { name: shortened(kind, id, &[id]), full: Some(full) }
    }
}

/// The name for a workload whose [`first`] name another port of ours has: that happens when it has a port on two networks, and for
/// `web` beside `vm-web`.
pub fn second(kind: Kind, network: &str, workload: &str) -> PortName {
    let (before, behind, _) = around(kind);
    let full = Some(format!("{before}{workload}-{network}{behind}"));
    PortName { name: shortened(kind, id(kind, workload), &[network, workload]), full }
}

/// What a TAP is called from when it is made until it is in another network namespace.
pub fn passing(network: &str, name: &str, owner: &Instance) -> String {
    let digits = names::INTERFACE_MAX - PASSING.len();
    format!("{PASSING}{}", hash(digits, &["passing", network, name, &owner.to_string()]))
}

/// What a macvtap on a virtual function is called until its device is open.
pub fn passing_macvtap(nonce: Mac) -> String {
    let [.., a, b, c, d, e] = nonce.bytes();
    format!("mvt-{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}")
}

/// What is looked for as the other end of a container's veth.
pub fn within(workload: &str) -> String {
    format!("veth-{}-c", id(Kind::Veth, workload))
}

/// What the interface is called by which a network leads to a VLAN: `up-<network>`, shortened as a TAP's where that does not fit.
pub fn uplink(network: &str) -> String {
    let name = format!("{UPLINK}{network}");
    if name.len() <= names::INTERFACE_MAX { name } else { cut(UPLINK, network, &["uplink", network]) }
}

/// What a port's interface is called when nobody has renamed it: as it is, if that is one of its workload's two names, else the one that its
/// alternative names speak for.
pub fn of_port(kind: Kind, network: &str, workload: &str, name: &str, alternatives: &[String]) -> String {
    let (first, second) = (first(kind, workload), second(kind, network, workload));
    let is_second =
        name != first.name && (name == second.name || second.full.is_some_and(|full| alternatives.contains(&full)));
    if is_second { second.name } else { first.name }
}

/// The workloads whose port on that network may have an interface of that name, as [`first`] or [`second`] give it, in full.
pub fn workloads(kind: Kind, network: &str, name: &str) -> impl Iterator<Item = String> {
    let (before, behind, prefix) = around(kind);
    let id = name.strip_prefix(before).and_then(|id| id.strip_suffix(behind)).filter(|id| !id.is_empty());
    let on = id.and_then(|id| id.strip_suffix(network)?.strip_suffix('-'));
    let prefixed = id.map(|id| format!("{prefix}{id}"));
    let found = [id.map(str::to_owned), prefixed, on.map(str::to_owned)].into_iter().flatten();
    found.filter(|workload| names::is_workload(workload))
}

const UPLINK: &str = "up-";
const PASSING: &str = "tap-";

/// Of a TAP or a macvtap three bytes of the id and 35 bits of a hash in base 32, of a veth 40 bits of that: 15 bytes.
fn shortened(kind: Kind, id: &str, hashed: &[&str]) -> String {
    let (before, behind, _) = around(kind);
    match kind {
        Kind::Tap | Kind::Macvtap(_) => cut(before, id, hashed),
        Kind::Veth => [before, &hash(8, hashed), behind].concat(),
    }
}

fn cut(before: &str, id: &str, hashed: &[&str]) -> String {
    let (start, digits) = (id.get(..3).unwrap_or(id), names::INTERFACE_MAX.saturating_sub(before.len() + 4).min(7));
    format!("{before}{start}-{}", hash(digits, hashed))
}

/// So many digits of a hash in base 32.
fn hash(digits: usize, hashed: &[&str]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = digest(hashed);
    let hash = digest.iter().take(digits).filter_map(|byte| DIGITS.get(usize::from(byte & 31)));
    hash.map(|digit| char::from(*digit)).collect()
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

/// The group that an interface is in until it has its mark, as the kernel takes no alias at creation: what is left in it was made by a netmgr that was
/// killed before. It leaves the group after that, so that whoever looks for the group and then for the mark finds one of the two: udev looks but once
/// ([`HALF_MADE`]).
pub fn half_made(owner: &Instance) -> u32 {
    let [a, b, c, ..] = digest(&["half made", &owner.to_string()]);
    let (first, last) = HALF_MADE.into_inner();
    first + u32::from_be_bytes([0, a, b, c]) % (last - first + 1)
}

/// Another group of interfaces that nobody else would think of; never 0, which all are in.
pub fn group(owner: &Instance, number: u64) -> u32 {
    let [a, b, c, d, ..] = digest(&["group", &owner.to_string(), &number.to_string()]);
    u32::from_be_bytes([a & 0x7f, b, c, d | 1])
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
    fn group_of_what_is_half_made_is_one_of_udev_s_and_each_installation_s_own() {
        let groups = ["", "a", "b", "lab"].map(|owner| half_made(&owner.parse().unwrap_or_default()));
        assert!(groups.iter().all(|group| HALF_MADE.contains(group) && i32::try_from(*group).is_ok()));
        assert_eq!(groups.iter().collect::<std::collections::BTreeSet<_>>().len(), groups.len());
    }

    #[test]
    fn names_of_a_port_give_its_workload_and_its_own_name_back() {
        for workload in ["vm-web", "web", "vm-a-longer-name-than-fits", "container-a", "container-longer-than-fits"] {
            for kind in [Kind::Tap, Kind::Veth] {
                for PortName { name, full } in [first(kind, workload), second(kind, "volt0", workload)] {
                    let said = full.as_ref().unwrap_or(&name);
                    assert!(workloads(kind, "volt0", said).any(|found| found == workload), "{said}");
                    let alternatives: Vec<String> = full.into_iter().collect();
                    assert_eq!(of_port(kind, "volt0", workload, &name, &alternatives), name);
                    assert_eq!(of_port(kind, "volt0", workload, "eth7", &alternatives), name);
                }
            }
        }
        for foreign in ["", "tap-", "eth0", "tap-A", "veth--h", "veth-a"] {
            for kind in [Kind::Tap, Kind::Veth] {
                assert!(
                    !workloads(kind, "volt0", foreign).any(|_| kind == Kind::Veth || foreign != "veth-a"),
                    "{foreign:?}"
                );
            }
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
        assert_eq!(first(Kind::Tap, "vm-web"), PortName { name: "tap-web".into(), full: None });
        assert_eq!(first(Kind::Tap, "web").name, "tap-web");
        assert_eq!(first(Kind::Tap, "vm-").name, "tap-vm-");
        assert_eq!(first(Kind::Tap, "vm-elevenbytes"), PortName { name: "tap-elevenbytes".into(), full: None });
    }

    #[test]
    fn tap_of_a_long_id_is_shortened_and_keeps_its_full_name() {
        let one = first(Kind::Tap, "vm-twelve-bytes");
        assert_eq!(one.name.len(), names::INTERFACE_MAX);
        assert!(one.name.starts_with("tap-twe-"), "{}", one.name);
        assert_eq!(one.full.as_deref(), Some("tap-twelve-bytes"));
        assert_ne!(one.name, first(Kind::Tap, "vm-twelve-bytez").name);
        assert_eq!(one, first(Kind::Tap, "vm-twelve-bytes"));
        let longest = first(Kind::Tap, &"x".repeat(63));
        assert_eq!(longest.name.len(), names::INTERFACE_MAX);
    }

    #[test]
    fn veth_is_named_for_the_container_while_it_fits_and_told_apart_by_forty_bits_where_it_does_not() {
        assert_eq!(first(Kind::Veth, "container-db"), PortName { name: "veth-db-h".into(), full: None });
        assert_eq!(first(Kind::Veth, "db").name, "veth-db-h");
        assert_eq!(first(Kind::Veth, "container-").name.len(), names::INTERFACE_MAX);
        assert_eq!(within("container-db"), "veth-db-c");
        assert_eq!(first(Kind::Veth, "container-12345678").full, None);
        // Of many that begin alike.
        let long = |n: usize| first(Kind::Veth, &format!("container-{}-{n}", "0123456789".repeat(3)));
        let short: std::collections::BTreeSet<String> = (0..10_000).map(|n| long(n).name).collect();
        assert_eq!(short.len(), 10_000);
        assert!(short.iter().all(|name| name.len() == names::INTERFACE_MAX && check_network(name).is_ok()));
        assert_eq!(long(7).full.as_deref(), Some("veth-012345678901234567890123456789-7-h"));
    }

    #[test]
    fn uplink_is_named_for_its_network_and_shortened_where_that_does_not_fit() {
        assert_eq!([uplink("lan0"), uplink("twelve-bytes")], ["up-lan0", "up-twelve-bytes"]);
        let [one, other] = ["thirteenbytes", "thirteenbytez"].map(uplink);
        assert!(one.starts_with("up-thi-") && one.len() <= names::INTERFACE_MAX && one != other, "{one}");
    }

    #[test]
    fn second_choice_differs_by_network_and_workload_and_fits() {
        let names: Vec<String> = [("volt0", "vm-web"), ("volt1", "vm-web"), ("volt0", "web"), ("volt0", "a")]
            .iter()
            .map(|(n, w)| second(Kind::Tap, n, w).name)
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
