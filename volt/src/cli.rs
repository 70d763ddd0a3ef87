//! The command line: what people type, parsed and nothing more.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use confine::Policy;

use schema::{
    limits::{MAX_DEVICES, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY},
    names::VM_RULE,
    paths::{FOLDER, RUNTIME, RUNTIME_VARIABLE, STATE, STATE_VARIABLE, USERS_VARIABLE},
    vm_capnp::MAX_GRACE_MILLISECONDS,
};

use crate::host::{identity::DEFAULT_RANGE, keeper::KeepArgs};

/// The kernel command line where none is given.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Bytes of guest memory where no size is given.
pub const DEFAULT_MEMORY: u64 = 256 << 20;
/// vCPUs where no number is given.
pub const DEFAULT_VCPUS: u16 = 1;

/// What the flags do not say.
fn after_help() -> String {
    format!(
        "\
Environment:
  {RUNTIME_VARIABLE}  Folder of the sockets [default: {RUNTIME}; else $XDG_RUNTIME_DIR/{FOLDER}]
  {STATE_VARIABLE}    Folder of what is kept [default: {STATE}; else $XDG_STATE_HOME/{FOLDER}]
  {USERS_VARIABLE}    Users that root gives services and VMs [default: {DEFAULT_RANGE}]

Ends with code 0 if what was asked for was done, 1 if not, with the reason, 2 if it was not understood, 3 if `volt list`
had no answer from a VM."
    )
}

/// The longest time that a guest may be given to power itself off.
const MAX_GRACE: u32 = MAX_GRACE_MILLISECONDS / 1000;

/// Runs Linux in microVMs whose every device is a confined process of its own.
#[derive(Debug, Parser)]
#[command(name = "volt", version, disable_help_subcommand = true, after_help = after_help())]
pub struct Cli {
    /// What a missing layer of confinement means: `strict` refuses to start, `best-effort` says which one is missing.
    #[arg(long, global = true, default_value_t = Policy::BestEffort, value_name = "POLICY")]
    pub confinement: Policy,

    #[command(subcommand)]
    pub command: Command,
}

/// The sub-commands of `volt`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one VM in the foreground: its console is this terminal, and Ctrl-] the way out; its end is this command's end.
    Run(Box<RunArgs>),
    /// List the VMs that run on this host. One that does not answer within two seconds is `unreachable`, with the reason on
    /// standard error, and the command ends with code 3.
    List,
    /// Stop a VM: press its power button, and end it when it has not powered off in time.
    Stop(StopArgs),
    /// Define, show and remove networks and their address pools.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// See who is attached to the networks, where each may send to, and which ports of the host lead there.
    #[command(subcommand)]
    Port(PortCommand),
    /// Keep guest kernels.
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Say what this host gives, and what to do about the rest. Ends with code 0 if a VM would run, under --confinement's policy.
    Doctor(DoctorArgs),
    /// Install systemd units for Volt's services, which then start when they are needed, and files that keep systemd-networkd, udev and
    /// NetworkManager off its interfaces.
    Install(InstallArgs),
    /// Remove what `install` has written. What the services keep stays.
    Uninstall(InstallArgs),
    /// Internal: start the services that `volt run` found missing, and clear up after them.
    #[command(hide = true)]
    Keep(KeepArgs),
}

/// Arguments of `volt run`. A flag wins over the same key in the file.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// A TOML file that describes the VM.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the VM.
    #[arg(long, help = format!("Name of the VM: {VM_RULE}"))]
    pub name: Option<String>,
    /// Kernel: a bzImage or ELF file (a path holds a '/', or names a file here), or the alias or digest of one in the kernel store.
    #[arg(long)]
    pub kernel: Option<String>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", help = format!("Kernel command line [default: {DEFAULT_CMDLINE}]"))]
    pub cmdline: Option<String>,
    /// A disk.
    #[arg(long = "disk", value_name = "FILE[,ro]", help = format!(
        "A raw disk image or a block device; with \",ro\" it is read-only. Up to {MAX_DEVICES} times: vda, vdb, ..."
    ))]
    pub disks: Vec<String>,
    /// A network card.
    #[arg(long = "net", value_name = "NETWORK", help = format!(
        "Network to attach a card to. Up to {MAX_DEVICES} times, each another network: eth0, eth1, ..."
    ))]
    pub nets: Vec<String>,
    /// Ports of the host.
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[ADDRESS:]PORT:PORT[/udp]",
        help = "Port of the host that leads to one of the guest's, by its first card: 8080:80, 127.0.0.1:5353:53/udp, [::]:7000-7010:7000-7010. As \
         often as need be"
    )]
    pub publish: Vec<String>,
    /// Number of virtual CPUs.
    #[arg(long, value_name = "N", help = format!("Number of virtual CPUs, 1 to {MAX_VCPUS} [default: {DEFAULT_VCPUS}]"))]
    pub cpus: Option<u16>,
    /// Guest memory.
    #[arg(long, value_name = "SIZE", help = format!(
        "Guest memory in whole MiB, {}M to {}G [default: {}M]",
        MIN_MEMORY >> 20, MAX_MEMORY >> 30, DEFAULT_MEMORY >> 20
    ))]
    pub memory: Option<String>,
    /// End when the guest resets, instead of booting it again.
    #[arg(long)]
    pub no_reboot: bool,
}

/// Arguments of `volt install` and `volt uninstall`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The folder that is, or will be, the root of the system: nothing is started below another one than `/`.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// The folder that the programs will be in there [default: where they are now].
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
}

/// Arguments of `volt doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON: "verdict", and "checks" of "check", "state" (ok, limited, missing), "detail" and "remedy" each.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `volt stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Name of the VM.
    pub name: String,
    /// Seconds the guest gets to power itself off.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_GRACE)),
        help = format!("Seconds the guest gets to power itself off, 0 to {MAX_GRACE}")
    )]
    pub grace: u32,
}

/// `volt network ...`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Define a network, or change it, from a JSON file.
    Define {
        /// The JSON file: network, type, subnet, gateway, mtu, pool, reservations, policy.
        file: PathBuf,
    },
    /// List the networks, their subnets, and how many of their addresses are free.
    List,
    /// Show a network: its kind, subnet, gateway and pool, how many addresses are free, its MTU, and how many ports it has.
    Show {
        /// Name of the network.
        name: String,
    },
    /// Print a network's definition, as JSON that `define` takes.
    Export {
        /// Name of the network.
        name: String,
    },
    /// Remove a network that nobody uses: its bridge, its pool, and the reservations in its file.
    Remove {
        /// Name of the network.
        name: String,
    },
}

/// `volt port ...`
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// List the ports of all networks: whose they are, their interfaces, MAC addresses, the addresses that their guests may
    /// send from, and which ports of the host lead to them.
    List,
    /// Show where a port's guest may send to, a rule in each line; or change it, from its next packet on.
    Policy(PolicyArgs),
    /// Have a port carry no more than so much, from the next packet on, whatever it was made with. A way that is not named has no rate.
    Rate(RateArgs),
    /// Have ports of the host lead to a guest that runs, until it ends or they are taken back.
    Publish(PublishArgs),
    /// Take back that ports of the host lead to a guest. Connections by way of them end.
    Unpublish(PublishArgs),
    /// List what the ports' guests have sent and received, in packets and bytes, and what of it was dropped: by their policies, as
    /// forged, and beyond their rates.
    Stats,
}

/// Arguments of `volt port publish` and `volt port unpublish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Name of the network.
    pub network: String,
    /// Whose port: a workload, such as vm-web, or a VM, such as web.
    pub workload: String,
    /// Ports of the host, and of the guest's.
    #[arg(
        required = true,
        value_name = "[ADDRESS:]PORT[:PORT][/udp]",
        help = "Ports of the host, and of the guest's: 8080:80, 127.0.0.1:5353:53/udp, [::]:7000-7010:7000-7010. What is taken back need \
                not name the guest's"
    )]
    pub publish: Vec<String>,
}

/// Arguments of `volt port policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Name of the network.
    pub network: String,
    /// Whose port: a workload, such as vm-web, or a VM, such as web.
    pub workload: String,
    /// Allow this, and what other rules do, and nothing else: a target, a protocol and ports, such as "10.0.0.0/8 tcp 443".
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<String>,
    /// Allow nothing.
    #[arg(long, conflicts_with = "allow")]
    pub deny_all: bool,
    /// Take its policy away: it may send to wherever it likes.
    #[arg(long, conflicts_with_all = ["allow", "deny_all"])]
    pub remove: bool,
}

/// Arguments of `volt port rate`.
#[derive(Debug, Args)]
pub struct RateArgs {
    /// Name of the network.
    pub network: String,
    /// Whose port: a workload, such as vm-web, or a VM, such as web.
    pub workload: String,
    /// What comes from its guest, such as 100Mbit: 8kbit to 80Gbit a second.
    #[arg(long, value_name = "RATE", required_unless_present_any = ["to_guest", "remove"])]
    pub from_guest: Option<String>,
    /// What goes to its guest.
    #[arg(long, value_name = "RATE")]
    pub to_guest: Option<String>,
    /// Take its rates away.
    #[arg(long, conflicts_with_all = ["from_guest", "to_guest"])]
    pub remove: bool,
}

/// `volt kernel ...`
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Unpack and check a kernel, and keep it.
    Import {
        /// A bzImage or ELF file.
        file: PathBuf,
        /// Alias to keep it under; one that another kernel has goes over to this one.
        #[arg(long, value_name = "ALIAS", default_value = "", hide_default_value = true)]
        name: String,
    },
    /// List the kernels in the store.
    List,
    /// Forget a kernel.
    Remove {
        /// Alias, digest, or a prefix of at least 8 digits.
        kernel: String,
    },
}
