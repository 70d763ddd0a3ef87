//! `netmgr`: makes bridges, TAPs and ports, and hands them out as capabilities (schema/host.capnp, schema/network.capnp).
//! May touch rtnetlink, /dev/net/tun and one setting under /proc/sys/net, with `CAP_NET_ADMIN` alone. Must never see guest memory, a frame, or
//! any other file.
//!
//! Two threads: `main` speaks Cap'n Proto with peers ([`service`]), the worker speaks rtnetlink with the kernel ([`worker`], [`manager`]).

mod bridge;
mod config;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod ipv6;
mod kernel;
mod link;
mod manager;
mod mark;
mod monitor;
mod names;
mod netlink;
mod network;
mod port;
mod sandbox;
mod service;
mod tap;
mod worker;

use std::{
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use clap::Parser;
use confine::{Capability, Policy, User, caps};
use ipc::{Lane, Limits, Listen};

use crate::{kernel::Kernel, manager::Manager, mark::Instance, monitor::Monitor, service::Host, worker::Tidy};

/// Makes bridges and TAPs for Volt's VMs, and hands them out over Cap'n Proto.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    listen: Listen,
    /// Which installation of Volt this is, of those that may share this network namespace: 1 to 32 of a-z and 0-9. Bridges and TAPs are marked
    /// with it, and those of another one are left alone.
    #[arg(long, value_name = "ID")]
    instance: Option<Instance>,
    /// Become this user, with CAP_NET_ADMIN and no file in sight but the TAP device and the interfaces' IPv6 settings; takes root.
    #[arg(long, value_name = "UID")]
    user: Option<User>,
    /// Whether to start where the kernel lacks a layer of confinement: strict or best-effort.
    #[arg(long, default_value_t = Policy::BestEffort, value_name = "POLICY")]
    confinement: Policy,
}

/// The program, from its arguments to its end.
pub fn main() -> ! {
    let served = run(&Arguments::parse());
    if let Err(error) = &served {
        confine::say!("netmgr: {}", ipc::chain(error));
    }
    confine::exit(served.is_err().into())
}

/// Why netmgr could not start, or ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("Cannot manage the network: CAP_NET_ADMIN is missing. {}", error::NET_ADMIN_REMEDY)]
    NoRight,
    #[error("Cannot take stock of the network. {}", .0.remedy())]
    Kernel(#[source] error::Error),
    #[error("Cannot serve")]
    Serve(#[from] ipc::Error),
    #[error("Cannot confine netmgr")]
    Confine(#[from] confine::Error),
    #[error("Cannot go on, as the thread that manages the network has panicked; report the line above as a defect")]
    Panicked,
    #[error("Cannot hear of changes to interfaces")]
    Monitor(#[source] std::io::Error),
    #[error("Cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    // Phase 1: wide. Nothing that a peer sent is read.
    if !caps::has_cap(None, caps::CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false) {
        return Err(Failure::NoRight);
    }
    let (endpoint, clients) = (arguments.listen.endpoint()?, arguments.listen.clients());
    // Before stock is taken, so that no change comes between.
    let monitor = Monitor::open().map_err(Failure::Kernel)?;
    let instance = arguments.instance.clone().unwrap_or_default();
    let manager = Kernel::open().and_then(|kernel| Manager::recover(kernel, instance)).map_err(Failure::Kernel)?;
    warn_of_bridge_filter();
    let keep: Vec<RawFd> =
        endpoint.as_fds().iter().map(AsRawFd::as_raw_fd).chain(manager.fds()).chain([monitor.fd()]).collect();

    // Phase 2: narrow.
    let limits = Limits::of_service();
    let confined = sandbox::confine(arguments.confinement, arguments.user, &keep)?;
    let (worker, inbox) = worker::queue();
    let runtime = ipc::Runtime::new().map_err(Failure::Runtime)?;
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    confined.spawn("worker", &sandbox::worker(), move || {
        let _ended = ended;
        inbox.run(manager);
    })?;
    confined.enter(&sandbox::rpc())?;
    let lane = Lane::new().without_deposits();
    let serve = ipc::serve(endpoint, clients, lane.clone(), limits, arguments.listen.idle_exit(), {
        let worker = worker.clone();
        move |peer| Ok(Host::bootstrap(&worker, &lane, peer))
    });
    runtime.run(async {
        let outcome = tokio::select! {
            outcome = serve => outcome,
            Err(why) = monitor.watch(&worker) => return Err(Failure::Monitor(why)),
            // This side has a handle, so it can only have panicked.
            _ = end => return Err(Failure::Panicked),
        };
        // What the last connection's end has released is off the host before netmgr is.
        let all = |manager: &mut Manager| {
            while manager.tidy() {}
            Ok(())
        };
        let _ = worker.ask(all).await;
        Ok(outcome?)
    })
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
