//! What a VM gets of the host for itself before anything of it runs: a user, and a cgroup with limits.

use std::os::fd::OwnedFd;

use confine::{Cgroup, CgroupLimits, Policy, User};
use ipc::{Code, Fault};

use crate::{config::VmConfig, identity::Range, say};

/// Processes beside those of devices: the core's control and console threads, the launcher, a moment's overlap at a reboot.
const PROCESSES: u64 = 16;
/// Threads of a device: the core's, and its backend's (protocol, control, worker).
const PROCESSES_PER_DEVICE: u64 = 4;
/// Bytes beside the guest's RAM: the processes themselves, the kernel image, KVM's tables. A 64th of RAM comes on top,
/// for page tables.
const MEMORY: u64 = 192 << 20;
const MEMORY_PER_DEVICE: u64 = 16 << 20;

/// The walls around one VM.
pub struct Cell {
    /// Whom its processes are; as a plain user, that user.
    pub user: Option<User>,
    /// Keeps others from that user.
    pub claim: Option<OwnedFd>,
    pub cgroup: Option<Cgroup>,
    /// Most processes and threads.
    pub processes: u64,
}

impl Cell {
    /// Takes what this host and user can give. What cannot be had is said, or refused, as `policy` has it.
    pub fn claim(config: &VmConfig, policy: Policy) -> Result<Cell, Fault> {
        let devices = u64::try_from(config.disks.len() + config.nets.len()).unwrap_or(u64::MAX);
        let processes =
            (PROCESSES + u64::from(config.vcpus)).saturating_add(devices.saturating_mul(PROCESSES_PER_DEVICE));
        let limits = CgroupLimits {
            memory: (config.memory + config.memory / 64 + MEMORY)
                .saturating_add(devices.saturating_mul(MEMORY_PER_DEVICE)),
            pids: processes,
            // One more than the guest has, for its devices and console.
            cpus: u64::from(config.vcpus) + 1,
        };
        let mut missing = Vec::new();
        let mut cell = Cell { user: None, claim: None, cgroup: None, processes };
        if let Err(why) = Range::usable() {
            missing.push(format!("a user of the VM's own ({why})"));
            missing.push("a cgroup with limits (needs root)".into());
        } else {
            let (user, claim) = Range::find()?.claim()?;
            // With the user in its name no other VM of the host can have it.
            match Cgroup::create(&format!("{}.{}", config.name, user.uid()), limits) {
                Ok(cgroup) => cell.cgroup = Some(cgroup),
                Err(confine::Error::NoCgroup(why)) => missing.push(format!("a cgroup with limits ({why})")),
                Err(error) => missing.push(format!("a cgroup with limits ({error})")),
            }
            (cell.user, cell.claim) = (Some(user), Some(claim));
        }
        match policy {
            _ if missing.is_empty() => {}
            Policy::BestEffort => say(format_args!("runs without {}", missing.join(", "))),
            Policy::Strict => {
                if let Some(cgroup) = &cell.cgroup {
                    cgroup.remove();
                }
                return Err(Fault::new(
                    Code::Unavailable,
                    format!("run the VM {}", config.name),
                    format!("policy strict refuses to run it without {}", missing.join(", ")),
                    "Mend that, or allow less with --confinement best-effort",
                ));
            }
        }
        Ok(cell)
    }
}
