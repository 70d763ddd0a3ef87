//! What on this host may drop what networks carry: other firewalls, and bridges' frames that cross the host's own. Asks nf_tables for its chains.

use rustix::{io::Errno, net::netlink};

use super::{
    Check,
    netlink::{self as ask, NLM_F_DUMP, NLM_F_REQUEST, attributes, message},
    probe,
};
use crate::output::printable;

/// What a table of Volt's own is called, or begins with.
const OURS: &str = "volt-vmm";
/// The most chains that are named.
const MOST: usize = 4;
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
const ACROSS: [&str; 2] = ["iptables", "ip6tables"];

/// A chain that the kernel comes to by itself, and that drops what no rule accepts.
#[derive(Debug, PartialEq, Eq)]
struct Dropping {
    family: &'static str,
    table: String,
    chain: String,
}

/// Other firewalls: whoever drops where frames and packets are forwarded has the last word, whatever Volt's own rules say.
pub fn others() -> Check {
    const CHECK: &str = "firewall";
    const GET_CHAIN: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_GETCHAIN as u16;
    let mut dropping = Vec::new();
    // nfgenmsg: of any family.
    let chains = message(GET_CHAIN, NLM_F_REQUEST | NLM_F_DUMP, &[0; 4]);
    let listed = ask::list(Some(netlink::NETFILTER), &chains, |body| dropping.extend(read(body)));
    match listed {
        Ok(()) => {}
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
            return Check::limited(CHECK, format!("cannot be found out: {errno}"), "root, for networks");
        }
        Err(errno) => {
            return Check::limited(CHECK, format!("nf_tables' chains cannot be listed: {errno}"), "see nftables");
        }
    }
    // What iptables-legacy has there, nf_tables does not list.
    let legacy =
        LEGACY.iter().any(|path| probe::read(path).is_ok_and(|names| names.lines().any(|one| one == "filter")));
    judge(CHECK, &dropping, legacy)
}

fn judge(check: &'static str, dropping: &[Dropping], legacy: bool) -> Check {
    if let Some(first) = dropping.first() {
        let name = |one: &Dropping| format!("{} {} {}", one.family, one.table, one.chain);
        let names: Vec<String> = dropping.iter().take(MOST).map(name).collect();
        let more = dropping.len().saturating_sub(MOST);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        // Whoever made it has named it, and people copy what they are told.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        let accept = if plain(&first.table) && plain(&first.chain) {
            format!("nft insert rule {} iifname NETWORK accept", name(first))
        } else {
            "see nft list ruleset".into()
        };
        return Check::limited(
            check,
            format!("drops what nobody accepts, also of VMs: {}{more}", names.join(", ")),
            format!("have each accept what your networks carry, from and to: {accept}"),
        );
    }
    if legacy {
        return Check::limited(
            check,
            "iptables-legacy has rules, which cannot be read here",
            "iptables-legacy -S FORWARD: where its policy is DROP, -I FORWARD -i NETWORK -j ACCEPT, and -o",
        );
    }
    Check::ok(check, "no other one drops what is forwarded")
}

/// The chain that a message of nf_tables tells of, if it is such a one.
fn read(body: &[u8]) -> Option<Dropping> {
    // NFTA_CHAIN_*.
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const HOOK_NUMBER: u16 = 1;
    /// NF_INET_FORWARD and NF_BR_FORWARD.
    const FORWARD: u32 = 2;
    let family = match i32::from(*body.first()?) {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        libc::NFPROTO_BRIDGE => "bridge",
        _ => return None,
    };
    let attribute = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    let text = |value: &[u8]| printable(&String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)));
    let behind = body.get(4..)?;
    let hook = number(attribute(attribute(behind, HOOK)?, HOOK_NUMBER)?)?;
    let policy = number(attribute(behind, POLICY)?)?;
    let table = text(attribute(behind, TABLE)?);
    let ours = table == OURS || table.strip_prefix(OURS).is_some_and(|rest| rest.starts_with('-'));
    if hook != FORWARD || policy != libc::NF_DROP.cast_unsigned() || ours {
        return None;
    }
    Some(Dropping { family, table, chain: text(attribute(behind, NAME)?) })
}

/// Whether what a bridge carries crosses the host's firewall for routed packets as well.
pub fn across() -> Check {
    const CHECK: &str = "bridge-netfilter";
    let on = |family: &&str| probe::number(&format!("/proc/sys/net/bridge/bridge-nf-call-{family}")) == Some(1);
    let on: Vec<&str> = ACROSS.iter().copied().filter(|family| on(family)).collect();
    if on.is_empty() {
        return Check::ok(CHECK, "off: what a bridge carries crosses no firewall for routed packets");
    }
    let settings: Vec<String> = on.iter().map(|family| format!("net.bridge.bridge-nf-call-{family}=0")).collect();
    Check::limited(
        CHECK,
        format!(
            "on for {}: their rules for routed packets also see, and may drop, what VMs of one network say",
            on.join(", ")
        ),
        format!("sysctl -w {}, unless something else here needs it (Docker, Kubernetes)", settings.join(" ")),
    )
}

/// Whether this host is a router, which networks with a way out need.
pub fn forwarding() -> Check {
    const CHECK: &str = "forwarding";
    let setting = |path: &str| probe::number(path).map(|value| if value == 0 { "off" } else { "on" });
    let ipv4 = setting("/proc/sys/net/ipv4/ip_forward");
    let ipv6 = setting("/proc/sys/net/ipv6/conf/all/forwarding");
    let filter = match probe::number("/proc/sys/net/ipv4/conf/all/rp_filter") {
        Some(1) => "strict",
        Some(2) => "loose",
        Some(_) => "none",
        None => "unknown",
    };
    match ipv4 {
        Some(ipv4) => {
            let ipv6 = ipv6.unwrap_or("not there");
            Check::ok(
                CHECK,
                format!("IPv4 {ipv4}, IPv6 {ipv6}; check of the way back (rp_filter) of all interfaces: {filter}"),
            )
        }
        None => Check::limited(CHECK, "/proc/sys/net/ipv4 cannot be read", "mount /proc, for networks with a way out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    /// As the kernel tells of it: nfgenmsg, table, name, hook, policy.
    fn chain(family: i32, table: &str, hook: u32, policy: u32) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = [&(value.len() as u16 + 4).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let text = |text: &str| [text.as_bytes(), &[0]].concat();
        let hook = attribute(1, &hook.to_be_bytes());
        let behind = [attribute(1, &text(table)), attribute(3, &text("FORWARD")), attribute(0x8004, &hook)];
        [vec![family as u8, 0, 0, 0], behind.concat(), attribute(5, &policy.to_be_bytes())].concat()
    }

    #[test]
    fn only_another_s_chain_that_drops_what_is_forwarded_counts() {
        let found = read(&chain(libc::NFPROTO_IPV4, "filter", 2, 0)).unwrap();
        assert_eq!((found.family, found.table.as_str(), found.chain.as_str()), ("ip", "filter", "FORWARD"));
        assert!(read(&chain(libc::NFPROTO_BRIDGE, "volt-vmmer", 2, 0)).is_some());
        for other in [
            chain(libc::NFPROTO_IPV4, "filter", 2, 1),
            chain(libc::NFPROTO_IPV4, "filter", 1, 0),
            chain(libc::NFPROTO_ARP, "filter", 2, 0),
            chain(libc::NFPROTO_INET, "volt-vmm", 2, 0),
            chain(libc::NFPROTO_INET, "volt-vmm-a", 2, 0),
        ] {
            assert_eq!(read(&other), None);
        }
    }

    #[test]
    fn message_that_is_cut_off_is_no_chain() {
        let whole = chain(libc::NFPROTO_INET, "t", 2, 0);
        assert!(read(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn remedy_names_the_first_chain_and_the_detail_no_more_than_a_few() {
        let one = || read(&chain(libc::NFPROTO_INET, "mine", 2, 0)).unwrap();
        let check = judge("firewall", &[one(), one(), one(), one(), one(), one()], true);
        assert_eq!(check.state, State::Limited);
        assert!(check.detail.matches("inet mine FORWARD").count() == MOST && check.detail.ends_with("and 2 more"));
        assert!(check.remedy.unwrap().contains("nft insert rule inet mine FORWARD iifname NETWORK accept"));
        let hostile = Dropping { chain: "x; reboot".into(), ..one() };
        assert!(!judge("firewall", &[hostile], false).remedy.unwrap().contains("reboot"));
        assert_eq!(judge("firewall", &[], true).state, State::Limited);
        assert_eq!(judge("firewall", &[], false).state, State::Ok);
    }
}
