//! What the user named, and KVM, open: in the wide phase, and nothing is read yet.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use disk::DiskError;
use ipc::{Code, Fault, chain};

use crate::{
    config::{self, KernelRef, VmConfig},
    host::kernels::open_image,
    output::say,
    vm::{machine::DiskPart, resources::KernelSource},
};

/// What phase 1 opened.
pub struct Opened {
    pub kvm: OwnedFd,
    pub kernel: KernelSource,
    pub initrd: Option<OwnedFd>,
    pub disks: Vec<DiskPart>,
}

/// Opens all that the user named, and KVM.
pub fn open(config: &VmConfig) -> Result<Opened, Fault> {
    let disks = config.disks.iter().enumerate().map(|(n, disk)| open_disk(n, disk));
    Ok(Opened {
        kvm: open_kvm()?,
        kernel: match &config.kernel {
            KernelRef::File(path) => KernelSource::File(path.clone(), opened(path, open_image(path))?),
            KernelRef::Stored(name) => KernelSource::Stored(name.clone()),
        },
        initrd: config.initrd.as_deref().map(open_file).transpose()?,
        disks: disks.collect::<Result<_, Fault>>()?,
    })
}

/// Nobody else may write to the disk as long as this process, or one that it gives it to, has it open: over a guest's resets too.
fn open_disk(n: usize, config: &config::Disk) -> Result<DiskPart, Fault> {
    let config::Disk { path, read_only } = config;
    let disk = disk::Disk::open(path, *read_only).map_err(|e| {
        let code = match e {
            DiskError::Open { .. } => Code::PermissionDenied,
            DiskError::Claimed { .. } | DiskError::Locked(_) | DiskError::Loop { .. } => Code::Conflict,
            _ => Code::BadImage,
        };
        let remedy = match e {
            DiskError::Open { .. } if !read_only => "Or add \",ro\" to a disk that is only read",
            _ => "",
        };
        Fault::new(code, format!("open disk {n}"), chain(&e), remedy)
    })?;
    if disk.memory > 0 {
        let (path, most) = (path.display(), disk.memory.div_ceil(1 << 20));
        say(format_args!(
            "{path} is kept in memory, of which the guest can take {most} MiB: its VM may use that much more"
        ));
    }
    let guards = disk.guards.into_iter().map(OwnedFd::from).collect();
    let serial = format!("volt-disk-{n}");
    Ok(DiskPart { fd: disk.file.into(), guards, read_only: *read_only, memory: disk.memory, serial })
}

fn open_file(path: &Path) -> Result<OwnedFd, Fault> {
    opened(path, File::open(path).map(OwnedFd::from))
}

fn opened(path: &Path, file: std::io::Result<OwnedFd>) -> Result<OwnedFd, Fault> {
    file.map_err(|e| {
        let remedy = "Make it readable for this user";
        Fault::new(Code::PermissionDenied, format!("open {}", path.display()), chain(&e), remedy)
    })
}

fn open_kvm() -> Result<OwnedFd, Fault> {
    File::options().read(true).write(true).open("/dev/kvm").map(OwnedFd::from).map_err(|e| {
        let remedy = match e.kind() {
            std::io::ErrorKind::PermissionDenied => "Run as root, or as a member of the group that owns /dev/kvm",
            _ => "Enable virtualisation in the firmware, or nested virtualisation on the outer host, and load kvm_intel or kvm_amd",
        };
        Fault::new(Code::Unavailable, "open /dev/kvm", chain(&e), remedy)
    })
}
