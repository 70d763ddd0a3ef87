//! What an installation consists of: units of systemd's for the services, and files that keep systemd-networkd, udev and NetworkManager
//! off the interfaces that are netmgr's. Pure; touches nothing.

use std::path::{Path, PathBuf};

use confine::{Policy, User};
use schema::{
    limits::IDLE_EXIT,
    paths::{RUNTIME, lane, socket},
};

use crate::host::services::Service;

/// What the first line of each file is, by which it is known again.
pub const MARK: &str = "# Made by `volt install`; `volt uninstall` takes it away.";

/// Where systemd's units are, and what it starts sockets from.
pub const UNITS: &str = "etc/systemd/system";
const WANTS: &str = "etc/systemd/system/sockets.target.wants";
const NETWORK: &str = "etc/systemd/network";
const RULES: &str = "etc/udev/rules.d";
/// NetworkManager's own, where it is installed.
pub const MANAGER: &str = "etc/NetworkManager";

/// Of which installation the files tell.
pub struct Installation<'a> {
    /// Where the programs are.
    pub programs: &'a Path,
    /// Where the services keep what they know.
    pub state: &'a Path,
    /// What netmgr marks its interfaces with.
    pub instance: &'a str,
    /// What a missing layer of confinement means.
    pub policy: Policy,
}

/// A file, below the root.
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

impl File {
    fn new(folder: &str, name: &str, text: &str) -> File {
        File { path: Path::new(folder).join(name), text: format!("{MARK}\n{text}") }
    }
}

/// Name of a service's unit, but for what kind of unit it is.
pub fn unit(service: Service) -> String {
    format!("volt-{}", service.name())
}

/// The links by which sockets are there from the host's start on: where each is, and what it leads to.
pub fn links() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    Service::ALL.into_iter().map(|service| {
        let name = format!("{}.socket", unit(service));
        (Path::new(WANTS).join(&name), Path::new("..").join(name))
    })
}

/// All files. `user` is whom a service becomes.
pub fn files(installation: &Installation<'_>, user: impl Fn(Service) -> Option<User>) -> Vec<File> {
    let services = Service::ALL.into_iter().flat_map(|service| {
        let unit = unit(service);
        [
            File::new(UNITS, &format!("{unit}.socket"), &socket_unit(service)),
            File::new(UNITS, &format!("{unit}.service"), &service_unit(installation, service, user(service))),
        ]
    });
    let network = [
        ("volt0.netdev", include_str!("volt0.netdev")),
        ("volt0.network", include_str!("volt0.network")),
        ("10-volt-vmm-networks.network", include_str!("10-volt-vmm-networks.network")),
        ("10-volt-vmm-ports.network", include_str!("10-volt-vmm-ports.network")),
        ("90-volt-vmm.link", include_str!("90-volt-vmm.link")),
        ("90-volt0.link", include_str!("90-volt0.link")),
    ];
    let manager = File::new(&format!("{MANAGER}/conf.d"), "90-volt-vmm.conf", include_str!("90-volt-vmm.conf"));
    let rules = File::new(RULES, "70-volt-vmm.rules", include_str!("70-volt-vmm.rules"));
    services.chain(network.map(|(name, text)| File::new(NETWORK, name, text))).chain([rules, manager]).collect()
}

/// Both sockets of a service, in the order in which [`service_unit`] numbers them.
fn socket_unit(service: Service) -> String {
    let rpc = socket(Path::new(RUNTIME), service.name());
    format!(
        "[Unit]
Description=Sockets of {}, {}

[Socket]
ListenStream={}
ListenSequentialPacket={}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
",
        service.name(),
        service.process().work,
        rpc.display(),
        lane(&rpc).display()
    )
}

/// The service: it begins as root, and takes its own walls and user, just as where `volt` starts it. What is forbidden it here is what it
/// does not need before that either.
fn service_unit(installation: &Installation<'_>, service: Service, user: Option<User>) -> String {
    let Installation { programs, state, instance, policy } = installation;
    let mut command = format!(
        "{} --confinement {policy} --listen-fd 3 --lane-fd 4 --idle-exit {} --owner 0",
        quoted(&programs.join(service.process().program)),
        IDLE_EXIT.as_secs()
    );
    if let Some(user) = user {
        command += &format!(" --user {}", user.uid());
    }
    if service.has_state() {
        command += &format!(" --state-dir {}", quoted(&state.join(service.name())));
    } else {
        command += &format!(" --instance {instance}");
    }
    let (capabilities, own) = match service {
        // The settings of its interfaces are below /proc/sys, and its device in /dev. What opens macvtaps has namespaces and nodes of its own.
        Service::Netmgr => (
            // What an earlier one has published it holds again, at its start.
            " CAP_NET_ADMIN CAP_NET_BIND_SERVICE",
            "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6
RestrictNamespaces=mnt ipc uts cgroup net pid
DevicePolicy=closed
DeviceAllow=/dev/net/tun rwm
DeviceAllow=char-macvtap rwm
"
            .to_owned(),
        ),
        Service::Ipamd | Service::KernelStore => (
            " CAP_DAC_OVERRIDE CAP_FOWNER",
            format!(
                "RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=mnt ipc uts cgroup net
PrivateNetwork=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ReadWritePaths={}
",
                quoted(state)
            ),
        ),
    };
    format!(
        "[Unit]
Description=Volt: {work}
Documentation=man:systemd.exec(5)
Requires={unit}.socket
After={unit}.socket

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec=1
Slice=volt-vmm.slice
OOMScoreAdjust=-500
UMask=0077
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_SYS_ADMIN CAP_MKNOD CAP_CHOWN{capabilities}
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectProc=invisible
PrivateTmp=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @keyring @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
IPAddressDeny=any
{own}",
        work = service.process().work,
        unit = unit(service),
    )
}

/// A path as a word of systemd's (systemd.syntax(7), systemd.unit(5)): nothing in it is expanded.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::names::HALF_MADE;

    #[test]
    fn path_is_one_word_whatever_is_in_it() {
        assert_eq!(quoted(Path::new("/usr/bin")), "\"/usr/bin\"");
        assert_eq!(quoted(Path::new("/a b/%i/$x\"\\")), "\"/a b/%%i/$$x\\\"\\\\\"");
    }

    #[test]
    fn udev_knows_the_groups_of_what_is_half_made_and_no_others() {
        let (first, last) = HALF_MADE.into_inner();
        assert_eq!((first % 1_000_000, last - first), (0, 999_999));
        let pattern = format!("ATTR{{netdev_group}}==\"{}??????\"", first / 1_000_000);
        assert!(include_str!("70-volt-vmm.rules").contains(&pattern), "{pattern}");
    }

    #[test]
    fn sockets_are_numbered_as_the_service_is_told() {
        for service in Service::ALL {
            let unit = socket_unit(service);
            let (stream, lane) = (unit.find("ListenStream=").unwrap(), unit.find("ListenSequentialPacket=").unwrap());
            assert!(stream < lane, "{unit}");
        }
    }
}
