//! What can go wrong: what was tried, on what, why it failed, and the remedy. Touches nothing.

mod argument;
mod helper;

use std::{borrow::Cow, error::Error as _, ffi::OsString, io, path::PathBuf, time::Duration};

use disk::{DiskError, SECTOR};
use ipc::{Code, Fault, chain, count};
use schema::{addresses_capnp::MAX_CONFIG_BYTES, programs::SERVICE_USERS, vm_capnp::MAX_GRACE_MILLISECONDS};

pub use self::{argument::ArgumentError, helper::HelperError};
use crate::shell::shell;

/// Why a command, or a process that it makes of itself, did not do its work. What it says begins with what was tried, and goes on, behind a
/// colon, with why, unless that is the cause's to say.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, or the same key of a VM's file.
    #[error("read {}", .0.flag())]
    Argument(#[from] ArgumentError),
    /// No VM's file is that large.
    #[error("read the VM file {}: it is larger than {most} bytes", path.display())]
    VmFileTooLarge { path: PathBuf, most: u64 },
    /// A VM's file that is there, and no text, or not this user's to read.
    #[error("read the VM file {}", path.display())]
    VmFileUnread { path: PathBuf, source: io::Error },
    /// What is not TOML, or has a key that no VM has.
    #[error("read the VM file {}", path.display())]
    VmFileMalformed { path: PathBuf, source: toml::de::Error },
    /// A file that was named, and cannot be looked at.
    #[error("open {} ({flag})", path.display())]
    NoFile { flag: &'static str, path: PathBuf, source: io::Error },
    /// A directory, a device or a FIFO, where a file is to be.
    #[error("open {} ({flag}): it is not a regular file", path.display())]
    NotRegular { flag: &'static str, path: PathBuf },
    /// A disk is whole sectors.
    #[error("use the disk image {}: its size, {}, is not a positive multiple of {SECTOR}", path.display(), count(*size, "byte"))]
    DiskSize { path: PathBuf, size: u64 },
    /// A network's file that is there, and no text, or not this user's to read.
    #[error("define the network in {}", path.display())]
    NetworkFileUnread { path: PathBuf, source: io::Error },
    /// No network's file is that large.
    #[error("define the network in {}: it holds {size} bytes, more than {MAX_CONFIG_BYTES}", path.display())]
    NetworkFileTooLarge { path: PathBuf, size: u64 },
    /// A kernel's image that is there, and not this user's to read.
    #[error("import the kernel {}", path.display())]
    KernelUnread { path: PathBuf, source: io::Error },
    /// The environment's range of users.
    #[error("use VOLT_UID_RANGE={}: it is not FIRST-LAST with more than {SERVICE_USERS} users, without 0 and 4294967295", given.display())]
    UserRange { given: OsString, such_as: String },
    /// What a keeper was started with.
    #[error("read --service {0}: it is not NAME:FD:FD:UID with open descriptors")]
    KeepArgument(String),

    /// A file of somebody's where one of `volt install` is to be.
    #[error("write {}: somebody else has written it", .0.display())]
    ForeignFile(PathBuf),
    /// What `volt` has started, where systemd is to start it.
    #[error("install units of systemd's: {service} runs already, started by volt")]
    Embedded { service: &'static str },
    /// systemd, which is not there, or refuses.
    #[error("run {command}")]
    Systemctl { command: String, source: io::Error },

    /// Neither set nor root's.
    #[error("find Volt's directories: {0} is not set")]
    NoDirectory(&'static str),
    /// A relative directory, in a folder that has gone.
    #[error("use the directory {}", dir.display())]
    NotAbsolute { dir: PathBuf, source: io::Error },
    /// A directory that others could put sockets of theirs in, or that cannot be made.
    #[error("use the directory {}", dir.display())]
    NotPrivate { dir: PathBuf, variable: &'static str, source: io::Error },
    /// Where this program is, and so the others.
    #[error("find Volt's programs: /proc/self/exe cannot be read")]
    NoPrograms(#[source] io::Error),
    /// A file that was named, and is not this user's to open.
    #[error("open {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// A file or a folder of Volt's own.
    #[error("open {}", path.display())]
    OwnUnreadable { path: PathBuf, source: io::Error },
    /// A file that Volt makes in its state directory.
    #[error("open {}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    /// What tells this installation's bridges from others'.
    #[error("read {}: it does not hold 32 hexadecimal digits", .0.display())]
    InstanceDamaged(PathBuf),
    /// One of Volt's programs, for the launcher.
    #[error("open {}", path.display())]
    NoProgram { path: PathBuf, source: io::Error },
    /// A disk that cannot be one, or is in use.
    #[error("open disk {n}")]
    Disk { n: usize, read_only: bool, source: DiskError },
    /// No virtualisation, or not for this user.
    #[error("open /dev/kvm")]
    Kvm(#[source] io::Error),

    /// Somebody keeps a lock that is for a moment; who, if that can be told.
    #[error("lock {}: another process has held the lock for 5 s{}", dir.display(), holder.map(|pid| format!(" ({pid})")).unwrap_or_default())]
    Locked { dir: PathBuf, holder: Option<u32> },
    /// The file system has no locks, or no room for one.
    #[error("lock {}", dir.display())]
    NoLock { dir: PathBuf, source: io::Error },
    /// The host's file of users.
    #[error("claim a user for the VM in {}", lock.display())]
    UsersFile { lock: PathBuf, source: io::Error },
    /// A byte of it.
    #[error("claim a user for the VM in {}", lock.display())]
    UsersLock { lock: PathBuf, source: io::Error },
    /// More VMs than users.
    #[error("claim a user for the VM in {}: all {most} of the range have a VM", lock.display())]
    UsersTaken { lock: PathBuf, most: u32 },
    /// A live VM of this user.
    #[error("run a VM called {0}: it runs already")]
    NameTaken(String),
    /// A socket that cannot be made.
    #[error("serve {}", path.display())]
    Unbound { path: PathBuf, source: ipc::Error },
    /// A hard limit under which that VM cannot run.
    #[error("run the VM {name}: {what} is limited to {limit}, and {why} takes {least}")]
    Limit { name: String, what: &'static str, limit: u64, why: String, least: u64, flag: char, unit: &'static str },
    /// Policy `strict`, and what cannot be had.
    #[error("run the VM {name}: policy strict refuses to run it without {}", missing.join(", "))]
    Strict { name: String, missing: Vec<String> },
    /// A process of Volt's that has no walls.
    #[error("confine {what}")]
    Unconfined { what: &'static str, source: confine::Error },
    /// No descriptor, or no memory in the kernel for one.
    #[error("{tried}")]
    NoDescriptor { tried: &'static str, source: io::Error },
    /// No watch on names in a folder.
    #[error("watch for services in {}", dir.display())]
    NoWatch { dir: PathBuf, source: io::Error },
    /// No thread for the console.
    #[error("set up the console")]
    Console(#[source] confine::Error),
    /// The process that clears up after a VM.
    #[error("watch over {}", vms.display())]
    Janitor { vms: PathBuf, source: HelperError },
    /// The process that starts a VM's programs, where it cannot be made.
    #[error("start the launcher of the VM's programs")]
    NoLauncher(#[source] io::Error),
    /// The same, where it cannot become what it is to be.
    #[error("confine the launcher of the VM's programs")]
    Launcher(#[source] io::Error),
    /// One of the VM's programs, by its launcher.
    #[error("start {program}")]
    NotLaunched { program: &'static str, source: HelperError },
    /// Whoever is to read what was asked for does not.
    #[error("write to standard output")]
    Output(#[source] io::Error),

    /// A service, or the keeper of them all, that cannot be executed.
    #[error("start {what}")]
    NotStarted { what: &'static str, source: confine::Error },
    /// Where services keep what they know there is no file system to be found.
    #[error("start Volt's services in {}", state.display())]
    NoState { state: PathBuf, source: io::Error },
    /// It is full.
    #[error("start Volt's services in {}: its file system is full: {free} bytes are free, and {least} are the least", state.display())]
    NoRoom { state: PathBuf, free: u64, least: u64 },
    /// Networks take a capability.
    #[error("start netmgr, which makes networks: this user lacks CAP_NET_ADMIN")]
    NoRight,
    /// A service that is there, and does not answer.
    #[error("reach {service}")]
    Mute { service: &'static str, socket: PathBuf, source: io::Error },
    /// A service's socket that this user cannot connect to.
    #[error("reach {service}")]
    Unreachable { service: &'static str, socket: PathBuf, source: io::Error },
    /// A service that was started just now, and has ended.
    #[error("reach {service}")]
    EndedAtOnce { service: &'static str, log: PathBuf, source: io::Error },
    /// Neither there nor gone.
    #[error("reach {services}: what listens there takes no connection, and does not end")]
    Halfway { services: String, log: PathBuf },
    /// A service's own words, or those of the link to it.
    #[error(transparent)]
    Service(#[from] Fault),
    /// The same, where there is no answer: what the service said before it ended is in its log.
    #[error("{}: {}", fault.tried, fault.why)]
    Gone { fault: Box<Fault>, log: PathBuf },
    /// One of two services has refused, and the other one what was to make its half undone.
    #[error("{}: {}; and what was done until then is not undone", fault.tried, fault.why)]
    NotUndone {
        fault: Box<Fault>,
        #[source]
        undone: Box<Error>,
        /// Where the first of them may have said more, if it has gone.
        log: Option<PathBuf>,
    },
    /// The network namespace of an isolated network, which takes root.
    #[error("{tried} the network namespace of {network}")]
    Namespace { tried: &'static str, network: String, source: io::Error },
    /// What says that it is isolated is lost, or was never there.
    #[error("use the network {0}: it is isolated, and its network namespace is not there")]
    NoNamespace(String),
    /// Where the network namespace of an isolated network is mounted, which is to go.
    #[error("let go of the network namespace on {}", path.display())]
    Pinned { path: PathBuf, source: io::Error },
    /// A port of the host that this user cannot have.
    #[error("hold the port {host}")]
    PortNotHeld { host: String, source: io::Error },
    /// Nobody has defined it.
    #[error("use the network {0}: it is not defined")]
    Undefined(String),
    /// Nobody has defined it, and it is to be shown or removed.
    #[error("find the network {0}: there is none of that name")]
    NoNetwork(String),

    /// No VM of that name has a supervisor.
    #[error("stop the VM {name}: no VM of that name runs here ({} does not answer)", socket.display())]
    NoVm { name: String, socket: PathBuf },
    /// Its supervisor cannot be connected to.
    #[error("stop the VM {name}: {}", socket.display())]
    VmUnreachable { name: String, socket: PathBuf, source: io::Error },
    /// A process of the VM has ended while it was to start: `ended` says which, and how; `fault` what became of that.
    #[error("start the VM {name}: {ended}: {}", fault.why)]
    DiedAtStart { name: String, ended: String, fault: Box<Fault> },
    /// The VM ran, and did not end as it, or somebody who may, wanted.
    #[error("run the VM {name}: {detail}")]
    Failed { name: String, detail: String },
    /// Whoever runs the VM has gone.
    #[error("watch the VM: its supervisor has ended")]
    SupervisorEnded,
    /// `start` on a control socket.
    #[error("start the VM {0}: volt run starts the VM by itself")]
    StartsItself(String),
    /// A core that is stopped.
    #[error("ask the core: it did not answer within {} s", limit.as_secs())]
    CoreMute { name: String, limit: Duration },
    /// Longer than anybody is waited for.
    #[error("stop the VM {name}: a grace of {grace} ms is more than {MAX_GRACE_MILLISECONDS}")]
    Grace { name: String, grace: u32 },

    /// A defect: fewer links than services.
    #[error("reach the services: no link to one was made")]
    NoLink,
    /// A defect: what was found has no JSON.
    #[error("print what was found")]
    Json(#[source] serde_json::Error),
    /// A defect: a socket that was bound just now is none.
    #[error("serve the VM's socket")]
    SocketLost(#[source] ipc::Error),
    /// A defect: what the supervisor sends does not fit.
    #[error("hear from the supervisor")]
    Unheard(#[source] io::Error),
    /// A defect of netmgr's.
    #[error("attach {workload} to {network}: netmgr gave a MAC address that no station can have")]
    NoMac { workload: String, network: String },
}

impl Error {
    /// The name of this failure for programs.
    pub fn code(&self) -> Code {
        match self {
            Error::Argument(_) | Error::UserRange { .. } | Error::KeepArgument(_) | Error::Grace { .. } => {
                Code::InvalidArgument
            }
            Error::VmFileTooLarge { .. } | Error::VmFileUnread { .. } | Error::VmFileMalformed { .. } => {
                Code::InvalidArgument
            }
            Error::NoFile { .. } | Error::NotRegular { .. } | Error::KernelUnread { .. } => Code::InvalidArgument,
            Error::NetworkFileUnread { .. } | Error::NetworkFileTooLarge { .. } => Code::InvalidArgument,
            Error::DiskSize { .. } => Code::BadImage,
            Error::Disk { source, .. } => match source {
                DiskError::Open { .. } => Code::PermissionDenied,
                DiskError::Claimed { .. } | DiskError::Locked(_) | DiskError::Loop { .. } => Code::Conflict,
                _ => Code::BadImage,
            },
            Error::NotPrivate { .. } | Error::Unreadable { .. } | Error::NoRight => Code::PermissionDenied,
            Error::NameTaken(_) => Code::AlreadyExists,
            Error::PortNotHeld { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => Code::AlreadyExists,
                io::ErrorKind::PermissionDenied => Code::PermissionDenied,
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => Code::InvalidArgument,
                _ => Code::Unavailable,
            },
            Error::ForeignFile(_) => Code::Conflict,
            Error::Namespace { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::PermissionDenied
            }
            Error::Namespace { .. } | Error::NoNamespace(_) | Error::Pinned { .. } => Code::Unavailable,
            Error::Embedded { .. } => Code::WrongState,
            Error::NoVm { .. } | Error::Undefined(_) | Error::NoNetwork(_) => Code::NotFound,
            Error::Limit { .. } | Error::NoRoom { .. } => Code::Exhausted,
            Error::StartsItself(_) => Code::WrongState,
            Error::SupervisorEnded => Code::Revoked,
            Error::Failed { .. } | Error::NoLink | Error::Json(_) | Error::SocketLost(_) => Code::Internal,
            Error::Unheard(_) | Error::NoMac { .. } => Code::Internal,
            Error::Service(fault) => fault.code,
            Error::Gone { fault, .. } | Error::NotUndone { fault, .. } | Error::DiedAtStart { fault, .. } => fault.code,
            Error::NoDirectory(_) | Error::NotAbsolute { .. } | Error::NoPrograms(_) => Code::Unavailable,
            Error::OwnUnreadable { .. } | Error::Unwritable { .. } | Error::InstanceDamaged(_) => Code::Unavailable,
            Error::NoProgram { .. } | Error::Kvm(_) => Code::Unavailable,
            Error::Locked { .. } | Error::NoLock { .. } => Code::Unavailable,
            Error::UsersFile { .. } | Error::UsersLock { .. } | Error::UsersTaken { .. } => Code::Unavailable,
            Error::Unbound { .. } | Error::Strict { .. } | Error::Unconfined { .. } => Code::Unavailable,
            Error::NoDescriptor { .. } | Error::NoWatch { .. } | Error::Console(_) => Code::Unavailable,
            Error::Janitor { .. } | Error::NoLauncher(_) | Error::Launcher(_) => Code::Unavailable,
            Error::NotLaunched { .. } | Error::Output(_) => Code::Unavailable,
            Error::NotStarted { .. } | Error::NoState { .. } => Code::Unavailable,
            Error::Mute { .. } | Error::Unreachable { .. } => Code::Unavailable,
            Error::EndedAtOnce { .. } | Error::Halfway { .. } => Code::Unavailable,
            Error::VmUnreachable { .. } | Error::CoreMute { .. } | Error::Systemctl { .. } => Code::Unavailable,
        }
    }

    /// What whoever typed the command, or runs the host, can do about it.
    pub fn remedy(&self) -> Cow<'_, str> {
        match self {
            Error::Argument(argument) => argument.remedy(),
            Error::VmFileTooLarge { .. } => "Name a TOML file that describes a VM".into(),
            Error::VmFileUnread { .. } => "Name a TOML file that you may read".into(),
            Error::VmFileMalformed { .. } => "Correct that line".into(),
            Error::NoFile { .. } | Error::NotRegular { .. } => "Name a file that exists and that you may read".into(),
            Error::DiskSize { path, size } => {
                let whole = size.div_ceil(SECTOR).max(1).saturating_mul(SECTOR);
                format!("A raw image is whole sectors: truncate -s {whole} {}", shell(path)).into()
            }
            Error::NetworkFileUnread { .. } | Error::NetworkFileTooLarge { .. } => {
                "Name a JSON file such as docs/RUNNING.md shows".into()
            }
            Error::KernelUnread { .. } => "Name a kernel image that you may read".into(),
            Error::UserRange { such_as, .. } => {
                format!("Give a range that nobody else on this host uses, such as {such_as}").into()
            }
            Error::KeepArgument(_) => "volt keep is started by volt run only".into(),
            Error::NoDirectory(_) => "Set VOLT_RUNTIME_DIR and VOLT_STATE_DIR, or run as root".into(),
            Error::NotAbsolute { .. } => "Name an absolute path".into(),
            Error::NotPrivate { variable, .. } => {
                format!("Make it a directory of mode 0700 that you own, or name another one in {variable}").into()
            }
            Error::NoPrograms(_) => "Mount /proc".into(),
            Error::Unreadable { .. } | Error::OwnUnreadable { .. } => "Make it readable for this user".into(),
            Error::Unwritable { .. } => "Make the state directory writable, or name another one in VOLT_STATE_DIR".into(),
            Error::InstanceDamaged(_) => {
                "Put it back from a copy; or remove it, and the bridges that were marked by it (ip link delete volt0)"
                    .into()
            }
            Error::NoProgram { .. } => "Keep Volt's programs in one folder".into(),
            Error::Disk { read_only: false, source: DiskError::Open { .. }, .. } => {
                "Or add \",ro\" to a disk that is only read".into()
            }
            Error::Disk { .. } => "".into(),
            Error::Kvm(why) if why.kind() == io::ErrorKind::PermissionDenied => {
                "Run as root, or as a member of the group that owns /dev/kvm".into()
            }
            Error::Kvm(_) => "Enable virtualisation in the firmware, or nested virtualisation on the outer host, and load kvm_intel or kvm_amd".into(),
            Error::Locked { holder: Some(pid), .. } => format!(
                "See what it does: ps {pid}. If it is stopped (state T), kill -CONT {pid} lets it go on, and kill -KILL {pid} ends it"
            )
            .into(),
            Error::Locked { .. } | Error::NoLock { .. } => {
                "See which volt process holds it: fuser -v on that directory".into()
            }
            Error::UsersFile { .. } => "Make /run writable for root".into(),
            Error::UsersLock { .. } => "See whether /run is a file system with locks".into(),
            Error::UsersTaken { .. } => "Give a wider VOLT_UID_RANGE".into(),
            Error::NameTaken(name) => format!("Choose another name, or end that VM: volt stop {name}").into(),
            Error::Unbound { .. } => "Remove what is there, or name another directory in VOLT_RUNTIME_DIR".into(),
            Error::Limit { least, flag, unit, .. } => {
                let value = if *flag == 'n' { least.to_string() } else { "unlimited".into() };
                format!(
                    "Raise the hard limit where it was set (limits.conf, {unit}= of a unit), or with CAP_SYS_RESOURCE: ulimit -{flag} {value}"
                )
                .into()
            }
            Error::Strict { .. } => "Mend that, or allow less with --confinement best-effort".into(),
            Error::Unconfined { .. } => {
                "See volt doctor, or use --confinement best-effort to run with what this host has".into()
            }
            Error::NoDescriptor { .. } => "Raise this user's limit of open files".into(),
            Error::NoWatch { .. } => {
                "Raise sysctl fs.inotify.max_user_instances, or end what else of this user watches files".into()
            }
            Error::Console(_) | Error::Janitor { .. } | Error::NoLauncher(_) => {
                "Raise this user's limits of processes and open files (ulimit -u, ulimit -n), and see volt doctor".into()
            }
            Error::Launcher(_) => "See volt doctor".into(),
            Error::NotLaunched { .. } => {
                "See whether Volt's programs are all in one folder, and what was said above".into()
            }
            Error::Output(_) => "See where it leads to".into(),
            Error::NotStarted { .. } => "See whether Volt's programs are whole, and all in one folder".into(),
            Error::NoState { .. } => "See whether it is mounted".into(),
            Error::NoRoom { .. } => "Free some space there, or name another directory in VOLT_STATE_DIR".into(),
            Error::NoRight => {
                "Run as root, or have root run the netmgr service; a VM without --net needs neither".into()
            }
            Error::Mute { socket, .. } => format!("See whether it is stopped (fuser {})", shell(socket)).into(),
            Error::Unreachable { socket, .. } => format!("See what is there, and whose: ls -l {}", shell(socket)).into(),
            Error::EndedAtOnce { log, .. } | Error::Halfway { log, .. } => format!("See also {}", log.display()).into(),
            Error::Service(fault) => (&fault.remedy).into(),
            Error::NotUndone { fault, log: None, .. } => (&fault.remedy).into(),
            Error::Gone { fault, log } | Error::NotUndone { fault, log: Some(log), .. } => {
                let dot = if fault.remedy.is_empty() { "" } else { ". " };
                format!("{}{dot}See also {}", fault.remedy, log.display()).into()
            }
            Error::PortNotHeld { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "See who has it (ss -lntup, volt port list), and choose another one. A service that has just ended may have it for a minute".into()
                }
                io::ErrorKind::PermissionDenied => "Choose one from 1024 on, or run as root".into(),
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => {
                    "Give an address of this host (ip address), or none for all of them".into()
                }
                _ => "See the limits of this user (ulimit -n)".into(),
            },
            Error::Namespace { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "Run as root: making, mounting and entering a network namespace takes CAP_SYS_ADMIN".into()
            }
            Error::Namespace { .. } => {
                "See whether there is one more to be had (sysctl user.max_net_namespaces), and what is mounted below netns in the state directory".into()
            }
            Error::NoNamespace(name) => {
                format!("Define it again: volt network export {name} >FILE.json, volt network define FILE.json").into()
            }
            Error::Pinned { path, .. } => format!("Let it go by hand: umount {0}; rm {0}", shell(path)).into(),
            Error::Undefined(_) => "Define it: volt network define FILE.json".into(),
            Error::NoNetwork(_) => "See volt network list for those that are".into(),
            Error::ForeignFile(path) => format!("Move it away first: mv {0} {0}.old", shell(path)).into(),
            Error::Embedded { .. } => "Stop the VMs (volt list), and wait half a minute for the services to end".into(),
            Error::Systemctl { .. } => "See systemctl status, and journalctl -u 'volt-*'".into(),
            Error::NoVm { .. } => "See volt list for those that run".into(),
            Error::VmUnreachable { socket, .. } => format!("See who is behind it: fuser {}", shell(socket)).into(),
            Error::DiedAtStart { .. } => "See what it said above".into(),
            Error::Failed { .. } => "See the console above, and dmesg if a process was killed by SIGSYS".into(),
            Error::SupervisorEnded => "Run it again".into(),
            Error::StartsItself(_) => "Nothing needs to be done".into(),
            Error::CoreMute { name, .. } => format!("See whether it is stopped, or end it: volt stop {name}").into(),
            Error::Grace { .. } => "Give at most ten minutes".into(),
            Error::NoLink | Error::Json(_) | Error::SocketLost(_) | Error::Unheard(_) => {
                "Report this as a defect of volt".into()
            }
            Error::NoMac { .. } => "Report this as a defect of netmgr".into(),
        }
    }

    /// As schema/errors.capnp has it, and a terminal shows it. To be called where the error leaves this process, and nowhere before.
    pub fn fault(&self) -> Fault {
        if let Error::Service(fault) = self {
            return fault.clone();
        }
        let (said, causes) = (self.to_string(), self.source().map(chain));
        let line = causes.map_or(said.clone(), |causes| format!("{said}: {causes}"));
        let (tried, why) = line.split_once(": ").unwrap_or((&line, ""));
        Fault::new(self.code(), tried, why.trim_end(), self.remedy())
    }

    /// Whether a service knows nothing of what it was asked about.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Service(fault) if fault.code == Code::NotFound)
    }

    /// What a service said before it ended is in its log, not in its answer.
    pub fn with_log(self, log: PathBuf) -> Error {
        match self {
            Error::Service(fault) if fault.code == Code::Unavailable => Error::Gone { fault: Box::new(fault), log },
            Error::NotUndone { fault, undone, .. } if fault.code == Code::Unavailable => {
                Error::NotUndone { fault, undone, log: Some(log) }
            }
            other => other,
        }
    }

    /// A service that was handed a file, or its text, cannot say which file that was: `tried` does.
    pub fn of_file(self, tried: &str) -> Error {
        match self {
            Error::Service(mut fault) => {
                name_file(&mut fault, tried);
                Error::Service(fault)
            }
            Error::NotUndone { mut fault, undone, log } => {
                name_file(&mut fault, tried);
                Error::NotUndone { fault, undone, log }
            }
            other => other,
        }
    }
}

fn name_file(fault: &mut Fault, tried: &str) {
    if fault.tried != tried {
        fault.tried = format!("{tried}: {}", fault.tried);
    }
}

impl From<capnp::Error> for Error {
    fn from(error: capnp::Error) -> Error {
        Error::Service(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Fault {
        Fault::new(Code::Unavailable, "ask it", "it has gone", "Ask again")
    }

    #[test]
    fn fault_is_what_was_tried_then_every_cause_then_the_remedy() {
        let missing = || io::Error::from_raw_os_error(libc::ENOENT);
        for (error, tried, why) in [
            (Error::Argument(ArgumentError::Cpus(0)), "read --cpus", "0 is not between 1 and 64"),
            (Error::NameTaken("web".into()), "run a VM called web", "it runs already"),
            (Error::Kvm(missing()), "open /dev/kvm", "No such file or directory (os error 2)"),
            (
                Error::VmUnreachable { name: "web".into(), socket: "/run/web.sock".into(), source: missing() },
                "stop the VM web",
                "/run/web.sock: No such file or directory (os error 2)",
            ),
            (
                Error::NotLaunched { program: "vmm-core", source: HelperError::Ended("launcher") },
                "start vmm-core",
                "the launcher has ended; where it could, it said why",
            ),
            (
                Error::Janitor { vms: "/run/vms".into(), source: HelperError::from(rustix::io::Errno::NOENT) },
                "watch over /run/vms",
                "No such file or directory (os error 2)",
            ),
            (
                Error::DiedAtStart { name: "web".into(), ended: "vmm-core ended".into(), fault: service().into() },
                "start the VM web",
                "vmm-core ended: it has gone",
            ),
        ] {
            let fault = error.fault();
            assert_eq!((fault.code, fault.tried.as_str(), fault.why.as_str()), (error.code(), tried, why));
            assert_eq!(fault.remedy, error.remedy());
            assert!(!fault.remedy.is_empty());
        }
    }

    #[test]
    fn service_s_words_are_passed_on_as_they_are_and_its_log_named_where_it_has_gone() {
        let denied = Fault::new(Code::PermissionDenied, "ask it", "you may not", "");
        assert_eq!(Error::from(denied.clone()).with_log("/log".into()).fault(), denied);
        let gone = Error::from(service()).with_log("/log".into());
        assert!(matches!(gone, Error::Gone { .. }));
        assert_eq!(gone.fault().to_string(), "unavailable: ask it: it has gone. Ask again. See also /log.");
        let silent = Error::from(Fault::new(Code::Unavailable, "ask it", "it has gone", "")).with_log("/log".into());
        assert_eq!(silent.fault().to_string(), "unavailable: ask it: it has gone. See also /log.");
        // Of what volt itself met no service has a log.
        assert!(matches!(Error::NoLink.with_log("/log".into()), Error::NoLink));
    }

    #[test]
    fn half_that_was_not_undone_is_told_with_the_fault_that_led_to_it() {
        let error = Error::NotUndone { fault: service().into(), undone: Box::new(Error::NoRight), log: None };
        let error = error.of_file("define the network in a.json");
        let line = "unavailable: define the network in a.json: ask it: it has gone; and what was done until then is not undone: \
                    start netmgr, which makes networks: this user lacks CAP_NET_ADMIN. Ask again.";
        assert_eq!(error.fault().to_string(), line);
        assert_eq!(error.with_log("/log".into()).fault().to_string(), format!("{line} See also /log."));
        let same = Error::from(service()).of_file("ask it");
        assert_eq!(same.fault(), service());
    }

    #[test]
    fn only_a_service_that_knows_nothing_of_it_makes_it_unknown() {
        let unknown = Fault::new(Code::NotFound, "get it", "there is none", "");
        assert!(Error::from(unknown).is_unknown());
        assert!(!Error::from(service()).is_unknown());
        // Volt's own of the same code.
        assert!(!Error::Undefined("volt0".into()).is_unknown());
    }

    #[test]
    fn kvm_and_disks_are_told_apart_by_what_helps() {
        let kvm = |errno| Error::Kvm(io::Error::from_raw_os_error(errno)).remedy().into_owned();
        assert!(kvm(libc::EACCES).contains("group") && kvm(libc::ENOENT).contains("kvm_intel"));
        let disk = |read_only| {
            let source = DiskError::Open { name: "a".into(), source: io::Error::from_raw_os_error(libc::EACCES) };
            Error::Disk { n: 0, read_only, source }
        };
        assert_eq!(disk(false).code(), Code::PermissionDenied);
        assert!(disk(false).remedy().contains(",ro") && disk(true).remedy().is_empty());
    }
}
