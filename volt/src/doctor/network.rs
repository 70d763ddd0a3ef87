//! What networks are made of: nftables, TAPs, bridges. The first and the last are tried over netlink in a network namespace
//! that is thrown away.

use std::os::fd::AsRawFd;

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    net::{Protocol, netlink},
};

use super::{
    Check,
    netlink::{NLM_F_ACK, NLM_F_CREATE_EXCL, NLM_F_REQUEST, ask, message},
    probe,
};

/// NETLINK_ROUTE is protocol 0, which is `None` here.
const ROUTE: Option<Protocol> = None;

/// nftables for bridges, by which guests are kept to their own addresses: by having it make a chain that sees what comes in.
pub fn nftables(owned: bool) -> Check {
    let tried = in_network(owned, || {
        // nfgenmsg: the family bridge. Then NFTA_TABLE_NAME "t".
        const TABLE: &[u8] = b"\x07\0\0\0\x06\0\x01\0t\0\0\0";
        // The same, NFTA_CHAIN_NAME "c", NFTA_CHAIN_HOOK that holds NFTA_HOOK_HOOKNUM and _PRIORITY, both 0, NFTA_CHAIN_TYPE "filter".
        const CHAIN: &[u8] = b"\x07\0\0\0\x06\0\x01\0t\0\0\0\x06\0\x03\0c\0\0\0\
            \x14\0\x04\x80\x08\0\x01\0\0\0\0\0\x08\0\x02\0\0\0\0\0\x0b\0\x07\0filter\0\0";
        make_chain(TABLE, CHAIN)
    });
    match tried {
        Ok(()) => Check::ok("nftables", "took a chain for bridges in a network namespace"),
        Err(errno) => refused(
            "nftables",
            errno,
            "a kernel with nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE): modprobe nf_tables",
        ),
    }
}

/// Has the kernel make a table and a chain in it: one change.
fn make_chain(table: &[u8], chain: &[u8]) -> Result<(), Errno> {
    const TABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
    const NEW_TABLE: u16 = TABLES | libc::NFT_MSG_NEWTABLE as u16;
    const NEW_CHAIN: u16 = TABLES | libc::NFT_MSG_NEWCHAIN as u16;
    // NFNL_MSG_BATCH_BEGIN and _END: what is between them is one change. nfgenmsg: no family, version 0, nf_tables.
    const BEGIN: u16 = 0x10;
    const END: u16 = 0x11;
    const BATCH: &[u8] = &[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8];
    let batch = [
        message(BEGIN, NLM_F_REQUEST, BATCH),
        message(NEW_TABLE, NLM_F_REQUEST | NLM_F_CREATE_EXCL, table),
        message(NEW_CHAIN, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE_EXCL, chain),
        message(END, NLM_F_REQUEST, BATCH),
    ];
    ask(Some(netlink::NETFILTER), &batch.concat())
}

/// ifinfomsg: all zero but the index, which is 2. Then IFLA_IFNAME "probe", and IFLA_LINKINFO that holds IFLA_INFO_KIND "bridge".
const BRIDGE: &[u8] = b"\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x0a\0\x03\0probe\0\0\0\x10\0\x12\0\x0a\0\x01\0bridge\0\0";

/// Has the kernel make an interface.
fn make_link(body: &[u8]) -> Result<(), Errno> {
    ask(ROUTE, &message(libc::RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE_EXCL, body))
}

/// Bridges, by making one.
pub fn bridge(owned: bool) -> Check {
    match in_network(owned, || make_link(BRIDGE)) {
        Ok(()) => Check::ok("bridge", "made one in a network namespace"),
        Err(errno) => refused("bridge", errno, "a kernel with bridges: modprobe bridge"),
    }
}

/// VLANs of interfaces, by making one of a bridge's.
pub fn vlans(owned: bool) -> Check {
    let tried = in_network(owned, || {
        // ifinfomsg: all zero. Then IFLA_LINK 2, and IFLA_LINKINFO that holds IFLA_INFO_KIND "vlan" and IFLA_INFO_DATA with IFLA_VLAN_ID 7.
        const VLAN: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\x05\0\x02\0\0\0\
            \x1c\0\x12\0\x09\0\x01\0vlan\0\0\0\0\x0c\0\x02\0\x06\0\x01\0\x07\0\0\0";
        make_link(BRIDGE)?;
        make_link(VLAN)
    });
    match tried {
        Ok(()) => Check::ok("vlans", "made one in a network namespace"),
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => refused("vlans", errno, ""),
        Err(errno) => Check::limited(
            "vlans",
            format!("the kernel has none (802.1Q): {errno}"),
            "modprobe 8021q, for a network that is a VLAN; others do not need it",
        ),
    }
}

/// Macvtaps, by making one of a bridge's, and a chain of nftables that sees what leaves by an interface, by which their guests are kept to their own
/// addresses.
pub fn macvtaps(owned: bool) -> Check {
    let made = in_network(owned, || {
        // ifinfomsg: all zero. Then IFLA_LINK 2, and IFLA_LINKINFO that holds IFLA_INFO_KIND "macvtap".
        const MACVTAP: &[u8] =
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\x05\0\x02\0\0\0\x10\0\x12\0\x0c\0\x01\0macvtap\0";
        make_link(BRIDGE)?;
        make_link(MACVTAP)
    });
    let seen = in_network(owned, || {
        // nfgenmsg: the family netdev. Then NFTA_TABLE_NAME "t".
        const TABLE: &[u8] = b"\x05\0\0\0\x06\0\x01\0t\0\0\0";
        // The same, NFTA_CHAIN_NAME "c", NFTA_CHAIN_HOOK that holds NFTA_HOOK_HOOKNUM 1 (egress), _PRIORITY 0 and _DEV "probe", NFTA_CHAIN_TYPE "filter".
        const CHAIN: &[u8] = b"\x05\0\0\0\x06\0\x01\0t\0\0\0\x06\0\x03\0c\0\0\0\
            \x20\0\x04\x80\x08\0\x01\0\0\0\0\x01\x08\0\x02\0\0\0\0\0\x0a\0\x03\0probe\0\0\0\x0b\0\x07\0filter\0\0";
        make_link(BRIDGE)?;
        make_chain(TABLE, CHAIN)
    });
    let for_whom = "for a network of macvtaps; others do not need it";
    match (made, seen) {
        (Ok(()), Ok(())) => Check::ok("macvtaps", "made one in a network namespace, and a chain for what leaves"),
        (Err(errno @ (Errno::PERM | Errno::ACCESS)), _) => refused("macvtaps", errno, ""),
        (Err(errno), _) => Check::limited(
            "macvtaps",
            format!("the kernel has none: {errno}"),
            format!("modprobe macvtap, before netmgr starts, {for_whom}"),
        ),
        (_, Err(errno)) => Check::limited(
            "macvtaps",
            format!("nftables does not see what leaves by one: {errno}"),
            format!("Linux 5.16 or newer, {for_whom}"),
        ),
    }
}

/// TAPs, by what `/dev/net/tun` says it can.
pub fn tun() -> Check {
    let device = match open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => device,
        // netmgr makes TAPs, not the user.
        Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
            let detail = format!("there, but not for this user to look at: {errno}");
            return Check::limited("tun", detail, "root, for networks; a VM without --net does not need it");
        }
        Err(errno) => return Check::missing("tun", format!("/dev/net/tun: {errno}"), "modprobe tun"),
    };
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, which lives through the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) } != 0 {
        return Check::missing(
            "tun",
            format!("/dev/net/tun is no TUN device: {}", probe::last_errno()),
            "modprobe tun",
        );
    }
    let names = [("TAP", libc::IFF_TAP), ("VNET_HDR", libc::IFF_VNET_HDR), ("MULTI_QUEUE", libc::IFF_MULTI_QUEUE)];
    let (has, lacks): (Vec<_>, Vec<_>) = names.into_iter().partition(|(_, flag)| features & flag.cast_unsigned() != 0);
    let list = |names: Vec<(&'static str, _)>| names.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
    if lacks.is_empty() {
        return Check::ok("tun", format!("opens; {}", list(has)));
    }
    Check::missing("tun", format!("it lacks {}", list(lacks)), "a newer kernel")
}

/// Tries something in a new network namespace; `owned`: within a user namespace, as every user may have one there.
fn in_network(owned: bool, probe: fn() -> Result<(), Errno>) -> Result<(), Errno> {
    probe::in_child(libc::CLONE_NEWNET | if owned { libc::CLONE_NEWUSER } else { 0 }, probe)
}

fn refused(check: &'static str, errno: Errno, remedy: &str) -> Check {
    match errno {
        Errno::PERM | Errno::ACCESS => Check::limited(
            check,
            format!("cannot be found out: this user may not have a network namespace ({errno})"),
            "see user-namespaces, or run as root",
        ),
        _ => Check::missing(check, format!("the kernel refuses: {errno}"), remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_that_is_lacking_is_not_taken_for_a_kernel_that_lacks_it() {
        assert!(refused("nftables", Errno::PERM, "load it").detail.contains("cannot be found out"));
        assert_eq!(refused("nftables", Errno::OPNOTSUPP, "load it").remedy.as_deref(), Some("load it"));
    }
}
