//! The processes of one VM: how they are wired, started and reaped.
//!
//! Every link is a socket pair made here and handed over at exec by the launcher, so no process of a VM can name another
//! one, or anything else. A guest's reset replaces all of them: a fresh core with fresh backends on the same disk, TAP,
//! kernel and console.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use ipc::{Code, Connection, Fault, chain};
use schema::{device_capnp::device_backend, vm_capnp::vm};
use tokio::io::Interest;

use crate::launcher::{Launcher, Process, Request};

/// How long the core may take until the vCPUs run: every backend's handshake has a deadline of its own within it. The rest is
/// reading kernel and initrd, from a slow disk on a busy host; whoever has waited enough may stop the VM meanwhile.
const START_DEADLINE: Duration = Duration::from_secs(60);
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
    process: Process,
    /// Its control link: the backend ends when this is dropped.
    _link: Option<(Connection, device_backend::Client)>,
}

/// A VM whose processes run.
pub struct Machine<'a> {
    launcher: &'a Launcher,
    core: Process,
    link: Connection,
    pub vm: vm::Client,
    backends: Vec<Backend>,
}

impl<'a> Machine<'a> {
    /// Starts all processes, and the vCPUs.
    pub async fn boot(launcher: &'a Launcher, parts: &Parts, console: OwnedFd) -> Result<Machine<'a>, Fault> {
        let policy = parts.policy.to_string();
        let mut core = Request::new("vmm-core");
        core.arg("--confinement").arg(&policy);
        let (control, control_end) = pair()?;
        core.fd("--control-fd", control_end.into());
        core.fd("--kvm-fd", dup(&parts.kvm)?);
        core.fd("--kernel-fd", dup(&parts.kernel)?);
        core.fd("--console-fd", console);
        if let Some(initrd) = &parts.initrd {
            core.fd("--initrd-fd", dup(initrd)?);
        }
        core.arg("--memory").arg(parts.memory.to_string()).arg("--vcpus").arg(parts.vcpus.to_string());
        core.arg("--cmdline").arg(&parts.cmdline);

        let mut waiting = Vec::new();
        for (n, disk) in parts.disks.iter().enumerate() {
            let mut backend = Request::new("vhost-blk-backend");
            backend.fd("--blk-fd", dup(&disk.fd)?).arg("--serial").arg(&disk.serial);
            if disk.read_only {
                backend.arg("--read-only");
            }
            waiting.push((format!("vhost-blk-backend of disk {n}"), 2, backend));
        }
        for (n, card) in parts.cards.iter().enumerate() {
            let mut backend = Request::new("vhost-net-backend");
            let mac = card.mac.map(|b| format!("{b:02x}")).join(":");
            backend.fd("--tap-fd", dup(&card.tap)?).arg("--mac").arg(mac).arg("--mtu").arg(card.mtu.to_string());
            waiting.push((format!("vhost-net-backend of card {n}"), 1, backend));
        }
        let mut ready = Vec::new();
        for (what, virtio_id, mut backend) in waiting {
            let (core_end, backend_end) = pair()?;
            let (link, link_end) = pair()?;
            let number = core.give(core_end.into());
            core.arg("--device").arg(format!("virtio-id={virtio_id},fd={number}"));
            backend.fd("--fd", backend_end.into()).fd("--control-fd", link_end.into());
            backend.arg("--confinement").arg(&policy);
            ready.push((what, link, backend));
        }
        // The core first: it has the most to do before it meets its backends.
        let core = launcher.launch(core)?;
        let mut backends = Vec::new();
        for (what, link, backend) in ready {
            let process = launcher.launch(backend)?;
            let link = Connection::from_fd(link.into())?;
            let client = link.bootstrap();
            backends.push(Backend { what, process, _link: Some((link, client)) });
        }
        let link = Connection::from_fd(control.into())?;
        let vm: vm::Client = link.bootstrap();
        let mut machine = Machine { launcher, core, link, vm, backends };
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
            let backends = self.backends.iter_mut().map(|b| (b.what.as_str(), &mut b.process));
            for (what, process) in backends.chain([("vmm-core", &mut self.core)]) {
                if let Some(status) = self.launcher.status(process)
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
        let Machine { launcher, mut core, link, vm, backends } = self;
        drop((vm, link));
        let mut processes = Vec::new();
        wait_end(launcher, &mut core).await;
        for backend in backends {
            let Backend { process, _link, .. } = backend;
            drop(_link);
            processes.push(process);
        }
        for process in &mut processes {
            wait_end(launcher, process).await;
        }
    }
}

async fn wait_end(launcher: &Launcher, process: &mut Process) {
    let ended = match process.as_fd().try_clone_to_owned().and_then(|fd| ipc::watch(fd, Interest::READABLE)) {
        Ok(fd) => tokio::time::timeout(END_DEADLINE, fd.readable()).await.is_ok(),
        Err(_) => false,
    };
    if !ended {
        process.kill();
    }
    // A killed process takes a moment to go.
    let until = Instant::now() + END_DEADLINE;
    while launcher.status(process).is_none() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn pair() -> Result<(UnixStream, UnixStream), Fault> {
    UnixStream::pair().map_err(|e| {
        Fault::new(Code::Unavailable, "make a socket pair", chain(&e), "Raise this user's limit of open files")
    })
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Fault> {
    fd.try_clone().map_err(|e| {
        Fault::new(Code::Unavailable, "duplicate a descriptor", chain(&e), "Raise this user's limit of open files")
    })
}
