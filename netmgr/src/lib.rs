//! `netmgr`: makes bridges, TAPs, veths, VLANs and ports, and hands them out as capabilities (schema/host.capnp, schema/network.capnp).
//! May touch rtnetlink, also by sockets that it is handed, nf_tables' netlink, /dev/net/tun and five settings under /proc/sys/net, with
//! `CAP_NET_ADMIN` alone. Must never see guest memory, a frame that somebody has sent, or any other file, nor enter another namespace.
//!
//! Two threads: `main` speaks Cap'n Proto with peers ([`rpc`]), the thread `rtnl` owns the [`Manager`] and speaks netlink with the kernel. A thread
//! rather than a task: the kernel carries out rtnetlink requests while it holds its network lock, and a process waits for that lock without a
//! way to give up. So the main thread never enters the kernel's network code, and its deadlines hold.

mod address;
mod announce;
mod ask;
mod attribute;
mod bridge;
mod config;
mod error;
mod events;
mod forwarding;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handed;
mod instance;
mod ipv4;
mod ipv6;
mod kind;
mod link;
mod macvtap;
mod manager;
mod mark;
mod message;
mod monitor;
mod names;
mod netlink;
mod network;
mod nft;
mod opener;
mod port;
mod ports;
mod published;
mod rate;
mod route;
mod rpc;
mod rtnl;
mod sandbox;
mod sources;
mod sriov;
mod sysfs;
mod tap;
mod uplink;
mod veth;
mod vf;
mod wanted;

use std::{os::fd::RawFd, path::Path};

use clap::Parser;
use confine::{Capability, Layer, caps};
use ipc::Lane;
use schema::programs::NETMGR;
use service::{Options, Owner, Serving};

use crate::{
    instance::Instance,
    manager::Manager,
    monitor::Monitor,
    nft::Filter,
    opener::Opener,
    rpc::Host,
    rtnl::Rtnl,
    sysfs::{Cards, Devices},
};

/// Makes bridges and TAPs for Volt's VMs, and hands them out over Cap'n Proto.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Which installation of Volt this is, of those that may share this network namespace: 1 to 32 of a-z and 0-9. Bridges and TAPs are marked
    /// with it, and those of another one are left alone.
    #[arg(long, value_name = "ID")]
    instance: Option<Instance>,
}

/// Why netmgr could not start, or ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("Cannot manage the network: CAP_NET_ADMIN is missing. {}", error::NET_ADMIN_REMEDY)]
    NoRight,
    #[error("Cannot take stock of the network. {}", .0.remedy())]
    Rtnl(#[source] error::Error),
    #[error("Cannot start the process that opens the devices of macvtaps")]
    Opener(#[source] std::io::Error),
    #[error("Cannot hear of changes to interfaces")]
    Monitor(#[source] std::io::Error),
    #[error(transparent)]
    Service(#[from] service::Error),
}

/// The program, from its arguments to its end.
pub fn main() -> ! {
    service::main(&NETMGR, run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (serving, manager, monitor) = start(arguments)?;
    let (lane, watching, guarding) = (Lane::new(), manager.clone(), manager.clone());
    let offered = lane.clone();
    let bootstrap = move |peer| Ok(Host::bootstrap(&manager, &offered, peer));
    let watch = async move {
        let look = async |changes| watching.ask(move |manager| manager.look_at(&changes)).await;
        let Err(why) = monitor.watch(look).await;
        Failure::Monitor(why)
    };
    // A guest that nobody is connected for, as a container, is kept to its rules as well, whatever somebody does to them. Who has no time to answer may have
    // such a one; it is asked again.
    let guards = move || {
        let manager = guarding.clone();
        async move { manager.ask(|manager| Ok::<_, error::Error>(manager.guards())).await.unwrap_or(true) }
    };
    serving.unless(guards).serve(lane, bootstrap, watch)
}

fn start(arguments: &Arguments) -> Result<(Serving, Owner<Manager>, Monitor), Failure> {
    if !caps::has_cap(None, caps::CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false) {
        return Err(Failure::NoRight);
    }
    // Before there is anything else to inherit.
    let opener = Opener::start(arguments.options.policy(), arguments.options.user()).map_err(Failure::Opener)?;
    let wide = arguments.options.begin(&NETMGR)?;
    let instance = arguments.instance.clone().unwrap_or_default();
    let filter = match Filter::open(&instance) {
        Err(error::Error::NoFilter(_)) => None,
        filter => Some(filter.map_err(Failure::Rtnl)?),
    };
    // Before stock is taken, so that no change comes between.
    let monitor = Monitor::open(filter.as_ref()).map_err(Failure::Rtnl)?;
    let mut rtnl = Rtnl::open().map_err(Failure::Rtnl)?;
    rtnl.macvtaps = opener.map(Devices::new).transpose().map_err(Failure::Opener)?.flatten();
    let cards = Cards::find();
    rtnl.cards = cards.clone();
    let manager = Manager::recover(rtnl, filter, instance).map_err(Failure::Rtnl)?;
    warn_of_bridge_filter();
    let fds: Vec<RawFd> = manager.fds().chain(monitor.fds()).collect();

    let wide = wide.keep(|sandbox| {
        let sandbox = if manager.filters() { sandbox } else { sandbox.lacks(Layer::PacketFilter) };
        sandbox::keep(sandbox, arguments.options.user(), &fds, cards.folders())
    })?;
    let mut starting = wide.confine::<Failure>()?;
    let manager = starting.thread("rtnl", &sandbox::rtnl(), || Ok(manager))?;
    Ok((starting.enter()?, manager, monitor))
}

/// Where this is on, iptables rules of the host see what guests on one bridge send to each other. It is the whole network namespace's, and
/// somebody who filters bridges may rely on it, so it is not netmgr's to switch off. (What bridges of ours say for themselves is 0, the default.)
fn warn_of_bridge_filter() {
    const SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if std::fs::read_to_string(Path::new(SETTING)).is_ok_and(|value| value.trim() == "1") {
        confine::say!(
            "netmgr: net.bridge.bridge-nf-call-iptables is 1: the host's iptables rules apply between guests too. If they cannot reach each other: sysctl -w net.bridge.bridge-nf-call-iptables=0."
        );
    }
}

#[cfg(test)]
mod tests {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };
    use testkit::attempt::attempt;

    use super::*;

    /// Has this process's kernel know no netlink but rtnetlink.
    fn kernel_without_a_packet_filter() {
        let is = |argument, value: i32| {
            let value = u64::from(value.unsigned_abs());
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
        };
        let conditions = vec![is(0, libc::AF_NETLINK), is(2, libc::NETLINK_NETFILTER)];
        let rules = [(libc::SYS_socket, vec![SeccompRule::new(conditions).unwrap()])].into();
        let refused = SeccompAction::Errno(libc::EPROTONOSUPPORT.unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    }

    #[test]
    fn kernel_that_cannot_look_at_frames_is_refused_under_strict_and_said_otherwise() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let started = |confinement: &str| {
            testkit::namespace::network().unwrap();
            kernel_without_a_packet_filter();
            let socket = tempfile::tempdir().unwrap().keep().join("s");
            let socket = socket.to_str().unwrap();
            start(&Arguments::parse_from(["netmgr", "--socket", socket, "--confinement", confinement])).map(drop)
        };
        attempt(move || {
            let refused = ipc::chain(&started("strict").unwrap_err());
            assert!(refused.contains("a filter of what guests send (needs nf_tables for bridges"), "{refused}");
        })
        .passes();
        attempt(move || started("best-effort-quiet").unwrap())
            .passes()
            .says("netmgr: runs without a filter of what guests send (needs nf_tables for bridges: modprobe nf_tables");
    }

    #[test]
    fn a_panic_is_said_under_each_thread_s_filter_and_one_of_the_rtnl_thread_ends_netmgr() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        attempt(|| {
            testkit::namespace::network().unwrap();
            let socket = tempfile::tempdir().unwrap().keep().join("s");
            let arguments = Arguments::parse_from(["netmgr", "--socket", socket.to_str().unwrap()]);
            let (serving, manager, _monitor) = start(&arguments).unwrap();
            let panics = async move {
                std::panic::catch_unwind(|| panic!("on the main thread")).unwrap_err();
                let asked = manager.ask(|_| -> Result<(), error::Error> { panic!("on the rtnl thread") }).await;
                assert!(matches!(asked, Err(error::Error::Ending)));
                std::future::pending::<Failure>().await
            };
            let bootstrap = |_| Err(ipc::Fault::new(ipc::Code::Internal, "connect", "nobody does", ""));
            let ended = serving.serve(Lane::new(), bootstrap, panics).unwrap_err();
            confine::say!("{}", ipc::chain(&ended));
        })
        .passes()
        .says("on the main thread")
        .says("thread 'rtnl' panicked")
        .says("on the rtnl thread")
        .says("the rtnl thread has ended; start this service again, which takes over what is kept and held: it panicked in the middle");
    }
}
