//! `netmgr`: makes bridges, TAPs and ports, and hands them out as capabilities (schema/host.capnp, schema/network.capnp).
//! May touch rtnetlink and /dev/net/tun, with `CAP_NET_ADMIN` alone. Must never see guest memory, a frame, or a file.

mod config;
mod error;
mod names;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Makes bridges and TAPs for Volt's VMs, and hands them out over Cap'n Proto.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Inherited listening socket (SOCK_STREAM) for Cap'n Proto.
    #[arg(long, requires = "lane_fd", required_unless_present = "socket", value_name = "N")]
    listen_fd: Option<i32>,
    /// Inherited listening socket (SOCK_SEQPACKET) of the fd lane.
    #[arg(long, requires = "listen_fd", value_name = "N")]
    lane_fd: Option<i32>,
    /// Make the sockets: PATH, and PATH.fds for the fd lane.
    #[arg(long, conflicts_with = "listen_fd", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// End once nobody has been connected for so long.
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// Whether to start where the kernel lacks a layer of confinement: strict or best-effort.
    #[arg(long, default_value = "best-effort", value_name = "POLICY")]
    confinement: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let _idle = arguments.idle_exit.map(Duration::from_secs);
    ExitCode::SUCCESS
}
