//! What can go wrong: what was tried, on what, why it failed, and the remedy. Touches nothing.

use std::{borrow::Cow, io, net::IpAddr};

use ipc::{Code, Fault};
use schema::network_capnp::MAX_PORTS;
use service::Unserved;

use crate::{address::Address, instance::Instance, kind::Kind};

/// Why a request was not met. Nothing is left behind by a request that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's fault.
    #[error("{what} {value:?} is not usable: {why}")]
    Argument { what: &'static str, value: String, why: String },
    /// No such network is defined.
    #[error("there is no network {0:?}")]
    NoSuchNetwork(String),
    /// A foreign interface has the name.
    #[error("an interface called {name} exists that Volt did not make")]
    ForeignInterface { name: String },
    /// Two installations on one network namespace.
    #[error("the bridge {name} belongs to another installation of Volt (instance {owner})")]
    OthersBridge { name: String, owner: Instance },
    /// Somebody else's subnet.
    #[error("subnet {subnet} overlaps {held}, which {holder} holds")]
    SubnetHeld { subnet: Address, held: Address, holder: String },
    /// The host's IPv6 is off as a whole, or netmgr cannot say where it is on.
    #[error("IPv6 cannot be switched on on the bridge of network {network}")]
    NoIpv6 { network: String, source: io::Error },
    /// A port's guest would be outside of what the network is to be.
    #[error("{workload} has a port with the address {address} on network {network}: {why}")]
    PortOutside { workload: String, address: IpAddr, network: String, why: String },
    /// The bridge went away, or something else has its index, again while a port was put on it.
    #[error("the bridge of network {0} was made anew, and is gone again")]
    BridgeGone(String),
    /// Something else took a port's interface away.
    #[error("something else on this host has taken its interface, {interface}, away")]
    PortLost { interface: String },
    /// A veth has gone.
    #[error(
        "its interface, {interface}, has gone: its network namespace has ended, or something else on this host has deleted it"
    )]
    VethGone { interface: String },
    /// One port for each workload and network.
    #[error("{workload} has a port on network {network}")]
    PortExists { workload: String, network: String },
    /// A port of an earlier netmgr, alive because a process still has the TAP open.
    #[error("{interface} is there, made for a workload by an earlier netmgr, and a process still uses it")]
    PortInUse { interface: String },
    /// Two interfaces with one address would take each other's frames.
    #[error("MAC address {mac} is taken on network {network}")]
    MacTaken { mac: String, network: String },
    /// An address is one port's.
    #[error("{address} is the address of {workload} on network {network}")]
    AddressTaken { address: IpAddr, workload: String, network: String },
    /// A tenant is its holder's alone.
    #[error("somebody holds a tenant called {0}")]
    TenantExists(String),
    /// Ports come off first.
    #[error("network {name} has {}", ipc::count(*ports, "port"))]
    PortsAttached { name: String, ports: usize },
    /// A workload has no port where one is asked for.
    #[error("{workload} has no port on network {network}")]
    NoSuchPort { workload: String, network: String },
    /// A factory's, or a tenant's quota.
    #[error("the quota of {} is used up", ipc::count(*.0, "port"))]
    Quota(u32),
    /// One of netmgr's own tables.
    #[error("there are {limit} {what}, which is the most that netmgr keeps")]
    Full { what: &'static str, limit: usize },
    /// The kernel's own limit.
    #[error("the bridge of network {0} has {MAX_PORTS} ports, which is the most that the kernel lets one have")]
    BridgeFull(String),
    /// No tun driver.
    #[error("/dev/net/tun cannot be opened")]
    NoTun(#[source] io::Error),
    /// No macvtap driver, or no way to what it makes.
    #[error("the device of a macvtap cannot be opened")]
    NoMacvtap(#[source] io::Error),
    /// No nf_tables, or none at the way out of an interface.
    #[error(
        "the kernel cannot look at what a guest on a macvtap sends: it lacks nf_tables, or its hook on the way out of an interface"
    )]
    NoEgress(#[source] io::Error),
    /// A bridge or a bond has it, or another macvtap has it alone, or it is no Ethernet.
    #[error("the kernel refused to {tried}: nothing more can be on its parent")]
    ParentBusy { tried: String, source: io::Error },
    /// Nobody has made virtual functions.
    #[error("{0} has no virtual functions")]
    NoFunctions(String),
    /// Each of them is somebody's.
    #[error("no virtual function of {parent} is free: {} used, disabled, in another network namespace, or without an interface", if *count == 1 { "its one is".to_owned() } else { format!("all {count} are") })]
    NoFreeFunction { parent: String, count: usize },
    /// Virtual functions carry nothing then.
    #[error("{0} is down, and with it its virtual functions")]
    ParentDown(String),
    /// A network's MTU is more than what its parent takes.
    #[error("frames of {mtu} bytes do not go through {parent}")]
    ParentMtu { parent: String, mtu: u32 },
    /// Its card has come later, or sysfs says nothing of it.
    #[error("netmgr has found no card of {0} when it started, and so does not know where its virtual functions are")]
    UnknownCard(String),
    /// What is asked of a port is a virtual function's to say.
    #[error("it is on no virtual function")]
    NotFunction,
    /// A network is one thing or the other.
    #[error("network {0} is there, and of another kind")]
    OtherKind(String),
    /// Nobody can tell whether it is used.
    #[error("macvtap {interface} is there, made for {workload} by an earlier netmgr, and may be used by a VM")]
    MacvtapLeft { interface: String, workload: String },
    /// No nf_tables, or none for bridges.
    #[error("the kernel cannot look at what guests send: it lacks nf_tables, or its family bridge")]
    NoFilter(#[source] io::Error),
    /// No nf_tables for what is routed.
    #[error(
        "the kernel cannot lead a network's guests to the outside: it lacks nf_tables' family inet, or of it connections, NAT, routes (fib) or a limit of connections"
    )]
    NoRoutes,
    /// The host forwards nothing, and that cannot be changed.
    #[error(
        "guests that reach the outside, or are reached from there, need the host to forward {family}, which netmgr cannot switch on"
    )]
    NoForwarding {
        family: &'static str,
        folder: &'static str,
        #[source]
        why: io::Error,
    },
    /// The port has no address that it could lead to.
    #[error("{workload} has no address of that family to which {host} could lead")]
    NoAddress { workload: String, host: String },
    /// The host has no way to guests of networks of that kind.
    #[error("no port of the host can lead to a guest of {network}, a network of type {kind}: {}", if *kind == Kind::Isolated { "nothing of the host's is on it" } else { "its guests are past the host, which has no way to them" })]
    NotPublishable { network: String, kind: Kind },
    /// Nor has it an end for a container.
    #[error(
        "no container can be on {network}, a network of type {kind}: its ports are macvtaps, which have no end in a network namespace"
    )]
    NotForContainers { network: String, kind: Kind },
    /// That port of the host leads somewhere already.
    #[error("{host} is published already, for {workload}")]
    Published { host: String, workload: String },
    /// It does not.
    #[error("{host} is not published for {workload}")]
    NotPublished { workload: String, host: String },
    /// No 8021q.
    #[error("the kernel has no VLANs (IEEE 802.1Q)")]
    NoVlans(#[source] io::Error),
    /// What a network is to be on, or a VLAN of, is not there.
    #[error("there is no interface {parent}, which network {network} is to be on")]
    NoParent { parent: String, network: String },
    /// One interface for each VLAN of a parent.
    #[error("VLAN {vlan} of {parent} is taken: {interface} is that")]
    VlanTaken { vlan: u16, parent: String, interface: String },
    /// EPERM.
    #[error("the kernel does not let netmgr {0}")]
    NoRight(String),
    /// Any other refusal.
    #[error("the kernel refused to {tried}{detail}")]
    Kernel { tried: String, source: io::Error, detail: String },
    /// The kernel answered with something else than what was asked for.
    #[error("the kernel's answer to an attempt to {tried} does not fit: {why}")]
    Answer { tried: String, why: Cow<'static, str> },
    /// A deadline passed.
    #[error("the kernel did not answer within {seconds} s")]
    Deadline { seconds: u64 },
    /// Too many calls of this client wait for the kernel.
    #[error("{0}")]
    Busy(String),
    /// What a port is asked for that is of another kind.
    #[error("it is a veth, whose other end is in a network namespace, and no TAP")]
    NoTap,
    /// A tenant's ports are bound to it.
    #[error("a tenant's ports end with it, and a durable one would not")]
    TenantsDurable,
    /// The socket that was handed over gives no answer.
    #[error("nothing is heard on the netlink socket that was handed over: {0}")]
    Unheard(String),
    /// The kernel's "no" through the socket that was handed over.
    #[error("the kernel refused to {tried}, in the network namespace that was handed over")]
    Within { tried: String, source: io::Error },
    /// No such durable port.
    #[error("network {0} has no such durable port")]
    NotDurable(String),
    /// The object behind a capability is no more.
    #[error("the {0} behind this capability has been released")]
    Revoked(&'static str),
    /// The thread that talks to the kernel has ended; so does the process.
    #[error("netmgr is ending")]
    Ending,
}

impl Error {
    /// An argument that is not usable. `value` is cut to what fits in a line.
    pub fn argument(what: &'static str, value: &str, why: &str) -> Error {
        Error::Argument { what, value: value.chars().take(80).collect(), why: why.to_owned() }
    }

    /// Whether it may pass by itself: the kernel was short of memory, or of room for what it had to say.
    pub fn passes(&self) -> bool {
        const PASSING: [i32; 4] = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
        matches!(self, Error::Kernel { source, .. } if source.raw_os_error().is_some_and(|no| PASSING.contains(&no)))
    }

    /// Whether the interface that something was asked of is not there any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Error::Kernel { source, .. } => source.raw_os_error() == Some(libc::ENODEV),
            // Its folder goes with it.
            Error::NoIpv6 { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// The name of this failure for programs.
    pub fn code(&self) -> Code {
        match self {
            Error::Argument { .. }
            | Error::NotPublishable { .. }
            | Error::NotForContainers { .. }
            | Error::ParentMtu { .. } => Code::InvalidArgument,
            Error::NoSuchNetwork(_)
            | Error::NoSuchPort { .. }
            | Error::NotDurable(_)
            | Error::NoAddress { .. }
            | Error::NotPublished { .. } => Code::NotFound,
            Error::NoTap | Error::NotFunction => Code::WrongState,
            Error::TenantsDurable => Code::PermissionDenied,
            Error::Unheard(_) => Code::Unavailable,
            Error::Within { source, .. } => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Code::PermissionDenied,
                Some(libc::ENOMEM | libc::ENOBUFS) => Code::Unavailable,
                _ => Code::Conflict,
            },
            Error::ForeignInterface { .. }
            | Error::OthersBridge { .. }
            | Error::SubnetHeld { .. }
            | Error::VlanTaken { .. }
            | Error::PortOutside { .. } => Code::Conflict,
            Error::PortExists { .. }
            | Error::PortInUse { .. }
            | Error::MacTaken { .. }
            | Error::AddressTaken { .. }
            | Error::Published { .. }
            | Error::TenantExists(_) => Code::AlreadyExists,
            Error::PortsAttached { .. } | Error::OtherKind(_) | Error::MacvtapLeft { .. } => Code::WrongState,
            Error::ParentBusy { .. } => Code::Conflict,
            Error::Quota(_) | Error::Full { .. } | Error::BridgeFull(_) | Error::NoFreeFunction { .. } => {
                Code::Exhausted
            }
            Error::Busy(_) => Code::Overloaded,
            Error::NoTun(_)
            | Error::NoMacvtap(_)
            | Error::NoEgress(_)
            | Error::NoFilter(_)
            | Error::NoIpv6 { .. }
            | Error::NoVlans(_)
            | Error::NoParent { .. }
            | Error::NoFunctions(_)
            | Error::ParentDown(_)
            | Error::UnknownCard(_)
            | Error::NoRoutes
            | Error::NoForwarding { .. }
            | Error::Deadline { .. }
            | Error::BridgeGone(_) => Code::Unavailable,
            Error::NoRight(_) => Code::PermissionDenied,
            Error::Kernel { .. } if self.passes() => Code::Unavailable,
            Error::Kernel { .. } | Error::Answer { .. } | Error::Ending => Code::Internal,
            Error::Revoked(_) | Error::PortLost { .. } | Error::VethGone { .. } => Code::Revoked,
        }
    }

    /// What the caller, or whoever runs the host, can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Error::Argument { .. } => "Correct it".into(),
            Error::NoSuchNetwork(_) => "Define it first".into(),
            Error::NoSuchPort { .. } => "See which there are (volt port list)".into(),
            Error::ForeignInterface { name } => {
                format!("Choose another name, or remove that interface (ip link delete {name})")
            }
            Error::SubnetHeld { .. } => "Choose another subnet, or take that away first".into(),
            Error::OthersBridge { name, .. } => format!(
                "Use that one (its VOLT_STATE_DIR), or a network of another name and subnet here, or another network namespace; if it is gone for good, remove its bridge (ip link delete {name})"
            ),
            Error::NoIpv6 { network, .. } => format!(
                "Define {network} without IPv6, or boot a kernel with it (not ipv6.disable=1), and let netmgr write to {}", crate::ipv6::FOLDER
            ),
            Error::PortOutside { workload, .. } => {
                format!("Release the port of {workload} first (end the workload), or choose what it fits in")
            }
            Error::BridgeGone(name) => format!("Find what deletes {name} on this host, and try again"),
            Error::PortExists { .. } => "Release that port first, or choose another name".into(),
            Error::PortInUse { interface } => {
                format!("End the process that uses it (it goes with it), or take it away (ip link delete {interface})")
            }
            Error::MacTaken { .. } => "Choose another one, or none for a derived one".into(),
            Error::AddressTaken { .. } => "Choose another one, or release that port first".into(),
            Error::TenantExists(_) => "Drop that one first, or choose another name".into(),
            Error::PortsAttached { .. } => {
                "End the workloads that have them first, and take off what is not Volt's (ip link set NAME nomaster)"
                    .into()
            }
            Error::Quota(_) => "Release a port, or ask for a larger quota".into(),
            Error::Full { .. } => "Give some of them back".into(),
            Error::BridgeFull(_) => "Release ports, or take off what is not Volt's (ip link set NAME nomaster), or use another network".into(),
            Error::NoTun(why) if why.kind() == io::ErrorKind::PermissionDenied => {
                "Let the user that netmgr runs as read and write it (it is root's by default)".into()
            }
            Error::NoTun(_) => "Load the driver (modprobe tun), and see that /dev/net/tun exists".into(),
            Error::NoMacvtap(_) => "Load the driver (modprobe macvtap), and start netmgr again, as root; it needs /sys, which is of its network namespace, and opens the first 256 macvtaps of a host".into(),
            Error::NoEgress(_) => "Load the module (modprobe nf_tables), or boot a kernel (Linux 5.16 or later) with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS".into(),
            Error::ParentBusy { .. } => "Take the parent off its bridge or bond, and what is on it in mode passthru away, or choose another parent or mode".into(),
            Error::NoFunctions(parent) => format!("Make some (echo 4 > /sys/class/net/{parent}/device/sriov_numvfs), where its card has SR-IOV"),
            Error::NoFreeFunction { parent, .. } => format!("End a VM that has one, take away what an earlier netmgr has left (volt port list; ip link delete mvt-...), or, while none is used, make more (echo 0, and then how many, > /sys/class/net/{parent}/device/sriov_numvfs)"),
            Error::ParentMtu { parent, mtu } => {
                format!("Define a smaller MTU, or have that interface, and what it is on, take these (ip link set {parent} mtu {mtu})")
            }
            Error::ParentDown(parent) => format!("Bring it up first (ip link set {parent} up)"),
            Error::UnknownCard(_) => "Start netmgr again; it needs /sys, and that is a card with SR-IOV on PCI, whose driver says so (Linux 5.14 or later)".into(),
            Error::NotFunction => "Ask a port on a network of virtual functions".into(),
            Error::OtherKind(name) => format!("Remove it first (volt network remove {name}), or choose another name"),
            Error::MacvtapLeft { interface, .. } => format!("End that VM, and then take it away (ip link delete {interface}); starting the workload again does as much"),
            Error::NoFilter(_) => {
                "Load the module (modprobe nf_tables), or boot a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE"
                    .into()
            }
            Error::NoVlans(_) => {
                "Load the module (modprobe 8021q), or boot a kernel with CONFIG_VLAN_8021Q; or define the network without one".into()
            }
            Error::NoParent { .. } => "Name one that is there (ip link), or make or connect it first".into(),
            Error::VlanTaken { interface, .. } => {
                format!("Choose another VLAN, or take that away first (ip link delete {interface})")
            }
            Error::NoRoutes => "Load the modules (modprobe -a nft_ct nft_nat nft_masq nft_fib_inet nft_connlimit nft_limit), and start netmgr again; or define the network as bridged, without NAT".into(),
            Error::NoForwarding { folder, .. } => format!("Let netmgr write to {folder}, and start it again"),
            Error::NoTap => "Look for the interface in that namespace".into(),
            Error::TenantsDurable => "Ask for one that is not durable, or at a network's factory".into(),
            Error::Unheard(_) => "Hand over a new one that nobody else reads, and to which no filter is attached".into(),
            Error::Within { source, .. } if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                "Open the socket in that namespace as somebody with CAP_NET_ADMIN there".into()
            }
            Error::Within { .. } => "See what is there (ip address, ip route), and take it away or choose another".into(),
            Error::NotDurable(_) => "Make one first".into(),
            Error::NoAddress { .. } => "Publish a port of the other family, or give it an address of this one".into(),
            Error::NotPublishable { kind: Kind::Isolated, .. } => "Give the workload a first card on a network of another type, such as bridged, and publish its ports there".into(),
            Error::NotPublishable { .. } => "Reach its guests under their own addresses there; or give the workload a first card on a network of type bridged or host-only, and publish its ports there".into(),
            Error::NotForContainers { .. } => "Attach it to a network of type bridged, host-only or isolated".into(),
            Error::Published { .. } => "Take that back first (volt port unpublish), or choose another port or address".into(),
            Error::NotPublished { .. } => "See volt port list for what is".into(),
            Error::NoRight(_) => NET_ADMIN_REMEDY.into(),
            Error::Kernel { .. } if self.passes() => "Try again; if it lasts, the host is short of memory".into(),
            Error::Kernel { .. } => "See the kernel's log (dmesg)".into(),
            Error::Answer { .. } => "Something else changes the same interfaces; find it, and try again".into(),
            Error::Deadline { .. } | Error::Busy(_) => {
                "Try again; if it lasts, something else keeps the kernel's network configuration locked".into()
            }
            Error::Revoked(_) | Error::PortLost { .. } | Error::VethGone { .. } => "Ask for a new one".into(),
            Error::Ending => "Connect again".into(),
        }
    }

    /// The failure of a call, as schema/errors.capnp has it.
    pub fn fault(&self, tried: &str) -> Fault {
        Fault::new(self.code(), tried, ipc::chain(self), self.remedy())
    }
}

impl From<Unserved> for Error {
    fn from(unserved: Unserved) -> Error {
        match unserved {
            Unserved::Full(fault) => Error::Busy(fault.why),
            Unserved::Late(limit) => Error::Deadline { seconds: limit.as_secs() },
            Unserved::Lost => Error::Ending,
        }
    }
}

/// How netmgr gets the one right that it needs.
pub const NET_ADMIN_REMEDY: &str = "It needs CAP_NET_ADMIN in the user namespace that owns this network namespace: start it as root, or with AmbientCapabilities=CAP_NET_ADMIN in a systemd unit";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_is_said_in_the_singular() {
        let attached = |ports| Error::PortsAttached { name: "lab0".into(), ports }.to_string();
        assert_eq!([attached(1), attached(2)], ["network lab0 has 1 port", "network lab0 has 2 ports"]);
        assert_eq!(Error::Quota(1).to_string(), "the quota of 1 port is used up");
        assert_eq!(Error::Quota(2).to_string(), "the quota of 2 ports is used up");
    }

    #[test]
    fn want_of_memory_passes_and_other_refusals_do_not() {
        for (errno, code) in [
            (libc::ENOMEM, Code::Unavailable),
            (libc::ENOBUFS, Code::Unavailable),
            (libc::EAGAIN, Code::Unavailable),
            (libc::EBUSY, Code::Internal),
            (libc::EINVAL, Code::Internal),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let error = Error::Kernel { tried: "make a bridge".into(), source, detail: String::new() };
            assert_eq!((error.code(), error.passes()), (code, code == Code::Unavailable), "{errno}");
        }
    }
}
