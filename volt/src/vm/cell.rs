//! What a VM gets of the host for itself before anything of it runs: a user, and a cgroup with limits.

use std::os::fd::OwnedFd;

use confine::{Cgroup, CgroupLimits, Policy, User};
use schema::programs::{BLK_BACKEND, NET_BACKEND};

use crate::{
    config::VmConfig,
    error::Error,
    host::identity::{self, Range},
    output::say,
};

/// Processes beside those of devices: the core's control and console threads, the launcher, a moment's overlap at a reboot.
const PROCESSES: u64 = 16;
/// Threads of a device: the core's, and its backend's.
const PROCESSES_PER_DEVICE: u64 = 1 + BLK_BACKEND.threads.len() as u64;
const _: () = assert!(BLK_BACKEND.threads.len() == NET_BACKEND.threads.len());
/// Bytes beside the guest's RAM: the processes themselves, the kernel image, KVM's tables. A 64th of RAM comes on top,
/// for page tables.
const MEMORY: u64 = 192 << 20;
const MEMORY_PER_DEVICE: u64 = 16 << 20;

/// The name of a VM's cgroup. With the user in it no other VM of the host can have it.
fn cgroup_name(vm: &str, user: User) -> String {
    format!("{vm}.{}", user.uid())
}

/// Removes the cgroups of VMs of which nobody is left, not even a janitor to do it: those whose user no VM has. One in which a
/// process hangs stays.
pub fn sweep() {
    if Range::usable().is_err() {
        return;
    }
    for name in Cgroup::names() {
        let user = name.rsplit_once('.').and_then(|(_, user)| user.parse().ok()).and_then(User::new);
        // Claimed meanwhile, so that no VM takes that user, and makes its cgroup, in between.
        if let Some(_claim) = user.and_then(identity::claim_free)
            && let Ok(cgroup) = Cgroup::place(&name)
        {
            cgroup.remove();
        }
    }
}

/// The walls around one VM.
pub struct Cell {
    /// Whom its processes are; as a plain user, that user.
    pub user: Option<User>,
    /// Keeps others from that user.
    pub claim: Option<OwnedFd>,
    /// Where its cgroup is to be, until [`build`](Cell::build); then where it is.
    pub cgroup: Option<Cgroup>,
    /// Most processes and threads.
    pub processes: u64,
    limits: CgroupLimits,
    /// What cannot be had, and why.
    missing: Vec<String>,
}

impl Cell {
    /// Takes a user, where this host and whoever starts the VM can give one, and settles the rest.
    /// `disks`: bytes of memory that the guest can make its disks take, which count as what the VM may use.
    pub fn claim(config: &VmConfig, disks: u64) -> Result<Cell, Error> {
        let devices = u64::try_from(config.disks.len() + config.nets.len()).unwrap_or(u64::MAX);
        let processes =
            (PROCESSES + u64::from(config.vcpus)).saturating_add(devices.saturating_mul(PROCESSES_PER_DEVICE));
        let limits = CgroupLimits {
            memory: (config.memory + config.memory / 64 + MEMORY)
                .saturating_add(devices.saturating_mul(MEMORY_PER_DEVICE))
                .saturating_add(disks),
            pids: processes,
            // One more than the guest has, for its devices and console.
            cpus: u64::from(config.vcpus) + 1,
        };
        let mut cell = Cell { user: None, claim: None, cgroup: None, processes, limits, missing: Vec::new() };
        if let Err(why) = Range::usable() {
            cell.missing.push(format!("a user of the VM's own ({why})"));
            cell.missing.push("a cgroup with limits (needs root)".into());
            return Ok(cell);
        }
        let (user, claim) = Range::find()?.claim()?;
        match Cgroup::place(&cgroup_name(&config.name, user)) {
            Ok(cgroup) => cell.cgroup = Some(cgroup),
            Err(error) => cell.lacks_cgroup(&error),
        }
        (cell.user, cell.claim) = (Some(user), Some(claim));
        Ok(cell)
    }

    /// Makes the cgroup; from here on there is something to clear away, which whoever knows its place does. What cannot be had
    /// is said, or refused, as `policy` has it.
    pub fn build(&mut self, name: &str, policy: Policy) -> Result<(), Error> {
        if let Some(Err(error)) = self.cgroup.as_ref().map(|cgroup| cgroup.make(self.limits)) {
            self.cgroup = None;
            self.lacks_cgroup(&error);
        }
        match policy {
            _ if self.missing.is_empty() => Ok(()),
            Policy::BestEffort | Policy::BestEffortQuiet => {
                say(format_args!("runs without {}", self.missing.join(", ")));
                Ok(())
            }
            Policy::Strict => Err(Error::Strict { name: name.to_owned(), missing: self.missing.clone() }),
        }
    }

    fn lacks_cgroup(&mut self, error: &confine::Error) {
        let why = if let confine::Error::NoCgroup(why) = error { why.clone() } else { ipc::chain(error) };
        self.missing.push(format!("a cgroup with limits ({why})"));
    }
}
