//! The processes of one VM: how they are wired, started and reaped.
//!
//! Every link is a socket pair made here and handed over at exec, so no process of a VM can name another one, or
//! anything else. A guest's reset replaces all of them: a fresh core with fresh backends on the same disk, TAP,
//! kernel and console.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use confine::{Child, Spawn};
use ipc::{Code, Connection, Fault};
use schema::{device_capnp::device_backend, vm_capnp::vm};
use tokio::io::Interest;

use crate::paths::Paths;

/// How long the core may take until the vCPUs run: every backend's handshake has a deadline of its own within it.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a process may take to end by itself once its work is over.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// Everything that a VM's processes are made from. The descriptors stay here, so that each boot gets duplicates.
pub struct Parts {
    pub name: String,
    pub policy: confine::Policy,
    pub vcpus: u16,
    /// Bytes.
    pub memory: u64,
    pub cmdline: String,
    pub kvm: OwnedFd,
    pub kernel: OwnedFd,
    pub initrd: Option<OwnedFd>,
    pub disks: Vec<DiskPart>,
    pub cards: Vec<CardPart>,
}

/// A disk that is open.
pub struct DiskPart {
    pub fd: OwnedFd,
    pub read_only: bool,
    /// What virtio-blk's GET_ID answers, at most 20 bytes.
    pub serial: String,
}

/// A network card's TAP.
pub struct CardPart {
    pub tap: OwnedFd,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
}

/// A device backend that runs.
struct Backend {
    what: String,
    child: Child,
    /// Its control link: the backend ends when this is dropped.
    _link: Option<(Connection, device_backend::Client)>,
}

/// A VM whose processes run.
pub struct Machine {
    core: Child,
    link: Connection,
    pub vm: vm::Client,
    backends: Vec<Backend>,
}

impl Machine {
    /// Starts all processes, and the vCPUs.
    pub async fn boot(paths: &Paths, parts: &Parts, console: OwnedFd) -> Result<Machine, Fault> {
        let mut core = Spawn::new(&paths.program("vmm-core"));
        core.arg("--confinement").arg(parts.policy.to_string());
        let (control, control_end) = pair()?;
        let fds = [
            ("--control-fd", control_end.into()),
            ("--kvm-fd", dup(&parts.kvm)?),
            ("--kernel-fd", dup(&parts.kernel)?),
            ("--console-fd", console),
        ];
        for (flag, fd) in fds {
            let number = core.fd(fd);
            core.arg(flag).arg(number.to_string());
        }
        if let Some(initrd) = &parts.initrd {
            let number = core.fd(dup(initrd)?);
            core.arg("--initrd-fd").arg(number.to_string());
        }
        core.arg("--memory").arg(parts.memory.to_string()).arg("--vcpus").arg(parts.vcpus.to_string());
        core.arg("--cmdline").arg(&parts.cmdline);

        let mut waiting = Vec::new();
        for (n, disk) in parts.disks.iter().enumerate() {
            let mut backend = Spawn::new(&paths.program("vhost-blk-backend"));
            let fd = backend.fd(dup(&disk.fd)?);
            backend.arg("--blk-fd").arg(fd.to_string()).arg("--serial").arg(&disk.serial);
            if disk.read_only {
                backend.arg("--read-only");
            }
            waiting.push((format!("vhost-blk-backend of disk {n}"), 2, backend));
        }
        for (n, card) in parts.cards.iter().enumerate() {
            let mut backend = Spawn::new(&paths.program("vhost-net-backend"));
            let fd = backend.fd(dup(&card.tap)?);
            let mac = card.mac.map(|b| format!("{b:02x}")).join(":");
            backend.arg("--tap-fd").arg(fd.to_string()).arg("--mac").arg(mac).arg("--mtu").arg(card.mtu.to_string());
            waiting.push((format!("vhost-net-backend of card {n}"), 1, backend));
        }
        let mut ready = Vec::new();
        for (what, virtio_id, mut backend) in waiting {
            let (core_end, backend_end) = pair()?;
            let (link, link_end) = pair()?;
            let number = core.fd(core_end.into());
            core.arg("--device").arg(format!("virtio-id={virtio_id},fd={number}"));
            let (fd, control) = (backend.fd(backend_end.into()), backend.fd(link_end.into()));
            backend.arg("--fd").arg(fd.to_string()).arg("--control-fd").arg(control.to_string());
            backend.arg("--confinement").arg(parts.policy.to_string()).die_with_parent();
            ready.push((what, link, backend));
        }
        // The core first: it has the most to do before it meets its backends.
        core.die_with_parent();
        let core = core.spawn().map_err(|e| not_started("vmm-core", &e))?;
        let mut backends = Vec::new();
        for (what, link, backend) in ready {
            let child = backend.spawn().map_err(|e| not_started(&what, &e))?;
            let link = Connection::from_fd(link.into())?;
            let client = link.bootstrap();
            backends.push(Backend { what, child, _link: Some((link, client)) });
        }
        let link = Connection::from_fd(control.into())?;
        let vm: vm::Client = link.bootstrap();
        let mut machine = Machine { core, link, vm, backends };
        let started = machine
            .link
            .call(&format!("start the VM {}", parts.name), START_DEADLINE, machine.vm.start_request().send())
            .await;
        match started {
            Ok(_) => Ok(machine),
            Err(fault) => {
                // A process that said why on its own standard error is the better witness: name it.
                Err(match machine.first_ended().await {
                    Some(ended) => {
                        let tried = format!("start the VM {}", parts.name);
                        Fault::new(fault.code, tried, format!("{ended}: {}", fault.why), "See what it said above")
                    }
                    None => fault,
                })
            }
        }
    }

    /// Returns when the core's link ends without a word, which an orderly core never does.
    pub async fn link_closed(&self) {
        self.link.closed().await;
    }

    /// The process that ended first with an error, where one does within a moment: what to tell people.
    pub async fn first_ended(&mut self) -> Option<String> {
        for _ in 0..20 {
            let backends = self.backends.iter_mut().map(|b| (b.what.as_str(), &mut b.child));
            for (what, child) in backends.chain([("vmm-core", &mut self.core)]) {
                if let Ok(Some(status)) = child.try_wait()
                    && !status.success()
                {
                    return Some(format!("{what} ended with {status}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Reaps every process. Those that have not ended within their time are killed.
    pub async fn end(self) {
        let Machine { mut core, link, vm, backends } = self;
        drop((vm, link));
        let mut children = Vec::new();
        wait_end(&mut core).await;
        for backend in backends {
            let Backend { child, _link, .. } = backend;
            drop(_link);
            children.push(child);
        }
        for child in &mut children {
            wait_end(child).await;
        }
    }
}

async fn wait_end(child: &mut Child) {
    let ended = match child.as_fd().try_clone_to_owned().and_then(|fd| ipc::watch(fd, Interest::READABLE)) {
        Ok(fd) => tokio::time::timeout(END_DEADLINE, fd.readable()).await.is_ok(),
        Err(_) => false,
    };
    if !ended {
        let _ = child.kill();
    }
    let _ = child.wait();
}

fn pair() -> Result<(UnixStream, UnixStream), Fault> {
    UnixStream::pair().map_err(|e| {
        Fault::new(Code::Unavailable, "make a socket pair", e.to_string(), "Raise this user's limit of open files")
    })
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Fault> {
    fd.try_clone().map_err(|e| {
        Fault::new(Code::Unavailable, "duplicate a descriptor", e.to_string(), "Raise this user's limit of open files")
    })
}

fn not_started(what: &str, error: &confine::Error) -> Fault {
    Fault::new(
        Code::Unavailable,
        format!("start {what}"),
        error.to_string(),
        "See whether Volt's programs are all in one folder",
    )
}
