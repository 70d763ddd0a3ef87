//! The resource limits that whoever starts a VM is under: they hold for all of its processes, which only lower them. What a VM
//! needs is asked before anything is made; where it came out later, the kernel's word would be of memory, or of nothing.

use std::fs;

use rustix::process::{Resource, getrlimit};
use schema::limits::THREAD_SPACE;

use crate::{config::VmConfig, error::Error, host::published::Publish};

/// Bytes of address space of a process that has guest RAM mapped, beside that: the program, its heap and stacks; and for each vCPU
/// and device [`THREAD_SPACE`].
const ADDRESS_SPACE: u64 = 64 << 20;
/// Open files of the process that has most of them, and for each vCPU and device.
const FILES: u64 = 64;
const FILES_PER_VCPU: u64 = 4;
const FILES_PER_DEVICE: u64 = 12;
/// And for each port of the host that leads to it: a socket of each family, and those on their way to netmgr.
const FILES_PER_PORT: u64 = 4;

/// What a VM needs, beside the limit on it.
struct Need {
    resource: Resource,
    least: u64,
    /// What is limited, and what needs that much.
    what: &'static str,
    why: String,
    /// `ulimit`'s flag, and the unit of systemd's setting.
    flag: char,
    unit: &'static str,
}

/// Whether that VM can run under the limits of this process.
pub fn check(config: &VmConfig) -> Result<(), Error> {
    needs(config).into_iter().try_for_each(|need| {
        let limit = getrlimit(need.resource).maximum.unwrap_or(u64::MAX);
        let Need { least, what, why, flag, unit, .. } = need;
        let name = config.name.clone();
        if limit >= least { Ok(()) } else { Err(Error::Limit { name, what, limit, why, least, flag, unit }) }
    })
}

fn needs(config: &VmConfig) -> [Need; 3] {
    let devices = u64::try_from(config.disks.len().saturating_add(config.nets.len())).unwrap_or(u64::MAX);
    let vcpus = u64::from(config.vcpus);
    let ports = u64::try_from(config.publish.iter().map(Publish::count).sum::<usize>()).unwrap_or(u64::MAX);
    let writable = config.disks.iter().filter(|disk| !disk.read_only);
    let disk = writable.filter_map(|disk| fs::metadata(&disk.path).ok()).map(|meta| meta.len()).max().unwrap_or(0);
    [
        Need {
            resource: Resource::Fsize,
            least: config.memory.max(disk),
            what: "the size of a file in bytes",
            why: if disk > config.memory { "its disk".into() } else { "its RAM, which is one,".into() },
            flag: 'f',
            unit: "LimitFSIZE",
        },
        Need {
            resource: Resource::As,
            least: config
                .memory
                .saturating_add(ADDRESS_SPACE)
                .saturating_add(THREAD_SPACE.saturating_mul(vcpus.saturating_add(devices))),
            what: "the address space of a process in bytes",
            why: format!("one that has its {} MiB of RAM mapped", config.memory >> 20),
            flag: 'v',
            unit: "LimitAS",
        },
        Need {
            resource: Resource::Nofile,
            least: FILES
                .saturating_add(FILES_PER_VCPU.saturating_mul(vcpus))
                .saturating_add(FILES_PER_DEVICE.saturating_mul(devices))
                .saturating_add(FILES_PER_PORT.saturating_mul(ports)),
            what: "the number of open files",
            why: format!("a VM with {} and {}", ipc::count(vcpus, "CPU"), ipc::count(devices, "device")),
            flag: 'n',
            unit: "LimitNOFILE",
        },
    ]
}
