//! The processes of one VM: how they are wired, started and reaped.
//!
//! Every link is a socket pair made here and handed over at exec by the launcher, so no process of a VM can name another
//! one, or anything else. A guest's reset replaces all of them: a fresh core with fresh backends on the same disk, TAP,
//! kernel and console.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{join_all, select_all},
};

use ipc::Connection;
use schema::{
    device_capnp::device_backend,
    limits,
    net::Mac,
    programs::{BLK_BACKEND, NET_BACKEND, VMM_CORE},
    vm_capnp::vm,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    error::Error,
    vm::launcher::{Launcher, Process, Request},
};

/// How long the core may take until the vCPUs run: every backend's handshake has a deadline of its own within it. The rest is
/// reading kernel and initrd, from a slow disk on a busy host; whoever has waited enough may stop the VM meanwhile.
const START_DEADLINE: Duration = Duration::from_secs(60);
const _: () = assert!(START_DEADLINE.as_secs() > limits::HANDSHAKE.as_secs());
/// How long a process may take to end whose end its links told of: the kernel closes those first.
const MOMENT: Duration = Duration::from_millis(100);
/// How long processes may take to end by themselves once their work is over, and then once they were killed.
const END_DEADLINE: Duration = Duration::from_secs(2);
const KILL_DEADLINE: Duration = Duration::from_secs(1);

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
    /// What keeps others from it: only kept open.
    pub guards: Vec<OwnedFd>,
    pub read_only: bool,
    /// Bytes of memory that the guest can make the disk take, as its file is kept in memory.
    pub memory: u64,
    /// What virtio-blk's GET_ID answers, at most 20 bytes.
    pub serial: String,
}

/// A network card's TAP.
pub struct CardPart {
    pub tap: OwnedFd,
    /// What keeps the card's address leased for as long as any process has it.
    pub life: OwnedFd,
    /// The guest's address.
    pub mac: Mac,
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
    /// Starts all processes.
    pub async fn launch(launcher: &'a Launcher, parts: &Parts, console: OwnedFd) -> Result<Machine<'a>, Error> {
        let policy = parts.policy.to_string();
        let mut core = Request::new(VMM_CORE.program);
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
            let mut backend = Request::new(BLK_BACKEND.program);
            backend.fd("--blk-fd", dup(&disk.fd)?).arg("--serial").arg(&disk.serial);
            if disk.read_only {
                backend.arg("--read-only");
            }
            waiting.push((format!("{} of disk {n}", BLK_BACKEND.name), 2, backend));
        }
        for (n, card) in parts.cards.iter().enumerate() {
            let mut backend = Request::new(NET_BACKEND.program);
            backend
                .fd("--tap-fd", dup(&card.tap)?)
                .arg("--mac")
                .arg(card.mac.to_string())
                .arg("--mtu")
                .arg(card.mtu.to_string());
            // So that the address is nobody else's as long as a process has its port, even one that is frozen while this one is killed.
            backend.fd("--lease-fd", dup(&card.life)?);
            waiting.push((format!("{} of card {n}", NET_BACKEND.name), 1, backend));
        }
        let mut ready = Vec::new();
        for (what, virtio_id, mut backend) in waiting {
            let (core_end, backend_end) = pair()?;
            let (link, link_end) = pair()?;
            let number = core.give(core_end.into());
            core.arg("--device").arg(format!("virtio-id={virtio_id},fd={number}"));
            backend.fd("--fd", backend_end.into()).fd("--control-fd", link_end.into());
            // The core seals the guest's memory; a backend does not have to believe it.
            backend.arg("--require-sealed-memory").arg("--confinement").arg(&policy);
            ready.push((what, link, backend));
        }
        // The core first: it has the most to do before it meets its backends.
        let core = launcher.launch(core).await?;
        let mut backends = Vec::new();
        for (what, link, backend) in ready {
            let process = launcher.launch(backend).await?;
            let link = Connection::from_fd(link.into())?;
            let client = link.bootstrap();
            backends.push(Backend { what, process, _link: Some((link, client)) });
        }
        let link = Connection::from_fd(control.into())?;
        let vm: vm::Client = link.bootstrap();
        Ok(Machine { launcher, core, link, vm, backends })
    }

    /// Starts the vCPUs. The guest may run for a while before that is answered.
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        let started =
            self.link.call(&format!("start the VM {name}"), START_DEADLINE, self.vm.start_request().send()).await;
        match started {
            Ok(_) => Ok(()),
            Err(fault) => {
                // A process that said why on its own standard error is the better witness: name it.
                Err(match self.first_ended().await {
                    Some(ended) => Error::DiedAtStart { name: name.to_owned(), ended, fault: Box::new(fault) },
                    None => fault.into(),
                })
            }
        }
    }

    /// Returns when the core's link ends without a word, which an orderly core never does.
    pub async fn link_closed(&self) {
        self.link.closed().await;
    }

    /// The process that ended first with an error, where one does within a [`MOMENT`]: what to tell people.
    pub async fn first_ended(&self) -> Option<String> {
        let backends = self.backends.iter().map(|backend| (backend.what.as_str(), &backend.process));
        let mut there: Vec<_> = backends.chain([(VMM_CORE.name, &self.core)]).collect();
        let until = Instant::now() + MOMENT;
        while !there.is_empty() {
            let ends = select_all(there.iter().map(|(_, process)| Box::pin(process.ended())));
            let (_, place, _) = timeout_at(until, ends).await.ok()?;
            let (what, process) = there.remove(place);
            match self.launcher.status(process).await {
                Some(status) if status.success() => {}
                Some(status) => return Some(format!("{what} ended with {status}")),
                // It is stopped. One of these was the first.
                None => {
                    let ended = there.iter().filter(|(_, process)| process.ended().now_or_never().is_some());
                    let names: Vec<_> = [what].into_iter().chain(ended.map(|(what, _)| *what)).collect();
                    return Some(format!("{} ended, and the launcher does not say how", names.join(" and ")));
                }
            }
        }
        None
    }

    /// Has the core end now, whatever it is about.
    pub fn kill_core(&self) {
        self.core.kill();
    }

    /// Sees every process to its end, without the launcher. Those that have not ended within their time are killed. Names those
    /// that are there all the same: frozen in a cgroup of version 1, or in the kernel.
    pub async fn end(self) -> Vec<String> {
        let Machine { launcher, core, link, vm, backends } = self;
        drop((vm, link));
        // Backends see their frontend hang up, with nothing left to do for it.
        let mut left = gone(vec![(VMM_CORE.name.into(), core)], launcher).await;
        let unlinked = backends.into_iter().map(|Backend { what, process, _link }| (what, process)).collect();
        left.extend(gone(unlinked, launcher).await);
        left
    }
}

async fn gone(processes: Vec<(String, Process)>, launcher: &Launcher) -> Vec<String> {
    let ended = |limit| join_all(processes.iter().map(move |(_, process)| timeout(limit, process.ended())));
    for ((_, process), ended) in processes.iter().zip(ended(END_DEADLINE).await) {
        if ended.is_err() {
            process.kill();
        }
    }
    let gone = ended(KILL_DEADLINE).await;
    let mut left = Vec::new();
    for ((what, process), gone) in processes.into_iter().zip(gone) {
        launcher.forget(process);
        if gone.is_err() {
            left.push(what);
        }
    }
    left
}

fn pair() -> Result<(UnixStream, UnixStream), Error> {
    UnixStream::pair().map_err(|source| Error::NoDescriptor { tried: "make a socket pair", source })
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    fd.try_clone().map_err(|source| Error::NoDescriptor { tried: "duplicate a descriptor", source })
}
