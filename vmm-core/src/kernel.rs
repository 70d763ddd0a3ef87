//! Loads the kernel's ELF image from its sealed memfd into guest RAM. `kernel-store` has checked the image in its own sandbox, by
//! the same contract (the `kernel-image` crate); every offset and size is checked here again, because this is where a wrong one would
//! do harm.
//!
//! Not by `linux-loader`'s `Elf::load`, although its structures are used: it checks the magic number, the byte order, and the size
//! and place of the program headers, and neither class, type, machine, overlap nor entry. Nor does it keep to one open file's own
//! offset: it seeks in the file, whose offset other VMs share. It is the judge of this loader instead (`kernel_oracle.rs`).

use crate::error::Error;
use crate::memory::Ram;
use kernel_image::Headers;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// A kernel in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Physical address of the 64-bit entry.
    pub entry: u64,
    /// One past the last byte the kernel occupies, .bss included.
    pub end: u64,
}

/// Checks the seals and the image, then copies its segments. What is beyond a segment's bytes in the file is zero already, as
/// all of fresh RAM is.
pub fn load(image: OwnedFd, ram: &Ram) -> Result<Loaded, Error> {
    check_seals(&image)?;
    let image = File::from(image);
    let kernel = read(&image)?;
    if kernel.end() > ram.low() {
        let why = format!("it ends at {:#x}, and RAM that it can use at {:#x}", kernel.end(), ram.low());
        return Err(Error::Fit { what: "The kernel", why });
    }
    ram.prepare(kernel.start(), kernel.end());
    for segment in kernel.segments.iter().filter(|segment| segment.file_size > 0) {
        ram.copy("The kernel", segment.address, image.as_fd(), segment.offset, segment.file_size)?;
    }
    Ok(Loaded { entry: kernel.entry, end: kernel.end() })
}

fn check_seals(image: &OwnedFd) -> Result<(), Error> {
    let unsealed =
        |why: &str| Err(Error::Kernel { why: why.into(), remedy: "Open it through kernel-store, which seals it" });
    match rustix::fs::fcntl_get_seals(image) {
        Ok(seals) if seals.contains(kernel_image::SEALS) => Ok(()),
        Ok(_) => unsealed("its memfd is not sealed against changes"),
        Err(_) => unsealed("it is not in a memfd"),
    }
}

fn read(image: &File) -> Result<Headers, Error> {
    let failed = Error::load("read the kernel image");
    let size = match image.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) => return Err(failed(error)),
    };
    Headers::read(size, |bytes, offset| image.read_exact_at(bytes, offset)).map_err(|error| match error {
        kernel_image::Error::Wrong(wrong) => Error::Kernel { why: wrong.why().into(), remedy: wrong.remedy() },
        kernel_image::Error::Read(error) => failed(error),
    })
}

#[cfg(test)]
#[path = "kernel_oracle.rs"]
mod oracle;
#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
