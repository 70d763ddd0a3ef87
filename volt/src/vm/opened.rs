//! What the user named, and KVM, open, and the ports of the host held: in the wide phase, and nothing is read yet.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use crate::{
    config::{self, KernelRef, VmConfig},
    error::Error,
    host::{
        isolated::{self, Handed},
        kernels::open_image,
        paths::Paths,
        published::{Held, Publish},
    },
    output::say,
    vm::{machine::DiskPart, resources::KernelSource},
};

/// What phase 1 opened.
pub struct Opened {
    pub kvm: OwnedFd,
    pub kernel: KernelSource,
    pub initrd: Option<OwnedFd>,
    pub disks: Vec<DiskPart>,
    /// Network namespaces of those of its networks that are isolated.
    pub namespaces: Vec<Handed>,
    /// What holds the ports of the host that lead to the guest.
    pub published: Vec<Vec<Held>>,
}

/// Opens all that the user named, and KVM.
pub fn open(paths: &Paths, config: &VmConfig) -> Result<Opened, Error> {
    let disks = config.disks.iter().enumerate().map(|(n, disk)| open_disk(n, disk));
    Ok(Opened {
        kvm: open_kvm()?,
        kernel: match &config.kernel {
            KernelRef::File(path) => KernelSource::File(path.clone(), opened(path, open_image(path))?),
            KernelRef::Stored(name) => KernelSource::Stored(name.clone()),
        },
        initrd: config.initrd.as_deref().map(open_file).transpose()?,
        disks: disks.collect::<Result<_, Error>>()?,
        namespaces: config
            .nets
            .iter()
            .filter_map(|net| isolated::open(paths, &net.network).transpose())
            .collect::<Result<_, Error>>()?,
        published: config.publish.iter().map(Publish::hold).collect::<Result<_, Error>>()?,
    })
}

/// Nobody else may write to the disk as long as this process, or one that it gives it to, has it open: over a guest's resets too.
fn open_disk(n: usize, config: &config::Disk) -> Result<DiskPart, Error> {
    let config::Disk { path, read_only } = config;
    let disk = disk::Disk::open(path, *read_only);
    let disk = disk.map_err(|source| Error::Disk { n, read_only: *read_only, source })?;
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

fn open_file(path: &Path) -> Result<OwnedFd, Error> {
    opened(path, File::open(path).map(OwnedFd::from))
}

fn opened(path: &Path, file: std::io::Result<OwnedFd>) -> Result<OwnedFd, Error> {
    file.map_err(|source| Error::Unreadable { path: path.to_owned(), source })
}

fn open_kvm() -> Result<OwnedFd, Error> {
    File::options().read(true).write(true).open("/dev/kvm").map(OwnedFd::from).map_err(Error::Kvm)
}
