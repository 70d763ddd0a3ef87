//! Guest RAM: one memfd of fixed size, mapped once for KVM. The core itself only ever writes it through the file, before the
//! guest runs, and never reads it: what a guest put there is for its device backends alone.

use crate::error::Error;
use crate::layout::{PAGE, RAM_HIGH_START, RAM_LOW_LIMIT};
use crate::virtio::RamRegion;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

/// The guest's RAM.
pub struct Ram {
    file: File,
    size: u64,
    base: NonNull<u8>,
}

/// The RAM below the hole for devices, and what does not fit there above it.
pub fn regions(size: u64) -> Vec<RamRegion> {
    let low = size.min(RAM_LOW_LIMIT);
    let mut regions = vec![RamRegion { gpa: 0, size: low, offset: 0 }];
    if size > low {
        regions.push(RamRegion { gpa: RAM_HIGH_START, size: size - low, offset: low });
    }
    regions
}

impl Ram {
    /// Makes, seals and maps `size` bytes, whole pages.
    pub fn new(size: u64) -> Result<Ram, Error> {
        let wrong = |step| move |errno: rustix::io::Errno| Error::Memory { step, size, source: errno.into() };
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(wrong("create"))?;
        rustix::fs::ftruncate(&fd, size).map_err(wrong("set aside"))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(wrong("seal"))?;
        let length = usize::try_from(size).map_err(|_| wrong("map")(rustix::io::Errno::OVERFLOW))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice. The file cannot shrink below it, so no access can
        // fault. Rust code never dereferences it: it is handed to KVM, as the backing of the guest's memory.
        let base = unsafe {
            let flags = MapFlags::SHARED | MapFlags::NORESERVE;
            rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags, &fd, 0)
        };
        let base = NonNull::new(base.map_err(wrong("map"))?.cast()).ok_or(wrong("map")(rustix::io::Errno::NOMEM))?;
        Ok(Ram { file: File::from(fd), size, base })
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// One past the last guest physical address of RAM.
    pub fn end(&self) -> u64 {
        regions(self.size).last().map_or(0, |region| region.gpa + region.size)
    }

    /// Bytes of the RAM at address 0, in which everything that is needed to boot lies.
    pub fn low(&self) -> u64 {
        self.size.min(RAM_LOW_LIMIT)
    }

    /// Another descriptor of the memfd, for the device backends.
    pub fn share(&self) -> Result<OwnedFd, Error> {
        Ok(self.file.try_clone().map_err(Error::host("duplicate the descriptor of guest RAM"))?.into())
    }

    /// Host address of a region, for KVM's memory slots. Valid while this value lives.
    pub fn host_address(&self, region: &RamRegion) -> u64 {
        self.base.as_ptr() as u64 + region.offset
    }

    /// Fails unless `size` bytes at `gpa` are low RAM.
    pub fn check(&self, what: &'static str, gpa: u64, size: u64) -> Result<(), Error> {
        match gpa.checked_add(size) {
            Some(end) if end <= self.low() => Ok(()),
            _ => {
                let why = format!("{size} bytes at {gpa:#x} in {} bytes of RAM", self.low());
                Err(Error::Fit { what, why })
            }
        }
    }

    /// Writes bytes into low RAM.
    pub fn write(&self, what: &'static str, gpa: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(what, gpa, bytes.len() as u64)?;
        // Low RAM begins at offset 0 of the file: a guest physical address is its offset.
        self.file.write_all_at(bytes, gpa).map_err(Error::load("write guest RAM"))
    }

    /// Copies `size` bytes at `offset` of a file into low RAM, inside the kernel: no page of either side is mapped for it, and
    /// the other side's file offset stays as it is.
    pub fn copy(
        &self,
        what: &'static str,
        gpa: u64,
        from: BorrowedFd<'_>,
        offset: u64,
        size: u64,
    ) -> Result<(), Error> {
        self.check(what, gpa, size)?;
        let failed = |source: io::Error| Error::Load { step: "copy a boot image into guest RAM", source };
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(gpa)).map_err(|errno| failed(errno.into()))?;
        let (mut offset, mut left) = (offset, size);
        while left > 0 {
            let chunk = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
            match rustix::fs::sendfile(self.file.as_fd(), from, Some(&mut offset), chunk) {
                Ok(0) => return Err(failed(io::Error::from(io::ErrorKind::UnexpectedEof))),
                Ok(copied) => left = left.saturating_sub(copied as u64),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and `host_address` promises no longer life than this.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

/// `value` rounded down to whole pages.
pub fn page_down(value: u64) -> u64 {
    value & !(PAGE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_split_at_the_device_hole() {
        assert_eq!(regions(RAM_LOW_LIMIT), [RamRegion { gpa: 0, size: RAM_LOW_LIMIT, offset: 0 }]);
        assert_eq!(
            regions(RAM_LOW_LIMIT + PAGE),
            [
                RamRegion { gpa: 0, size: RAM_LOW_LIMIT, offset: 0 },
                RamRegion { gpa: RAM_HIGH_START, size: PAGE, offset: RAM_LOW_LIMIT }
            ]
        );
    }

    #[test]
    fn ram_is_sealed_against_any_change_of_size() {
        let ram = Ram::new(1 << 20).unwrap();
        assert!(ram.file.set_len(0).is_err());
        assert!(ram.file.set_len(2 << 20).is_err());
        assert!(rustix::fs::fcntl_add_seals(&ram.file, SealFlags::WRITE).is_err());
    }

    #[test]
    fn writes_end_at_the_last_byte_of_low_ram() {
        let ram = Ram::new(1 << 20).unwrap();
        ram.write("test", (1 << 20) - 4, b"last").unwrap();
        assert!(ram.write("test", (1 << 20) - 3, b"last").is_err());
        assert!(ram.write("test", u64::MAX - 1, b"last").is_err());
        let mut back = [0; 4];
        ram.file.read_exact_at(&mut back, (1 << 20) - 4).unwrap();
        assert_eq!(&back, b"last");
    }

    #[test]
    fn copy_takes_the_range_asked_for_and_leaves_the_shared_offset() {
        use std::io::{Seek, SeekFrom};
        let ram = Ram::new(1 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..200_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        file.write_all_at(&content, 0).unwrap();
        file.seek(SeekFrom::Start(77)).unwrap();
        ram.copy("test", 0x1003, file.as_fd(), 11, 150_000).unwrap();
        assert_eq!(file.stream_position().unwrap(), 77);
        let mut back = vec![0; 150_000];
        ram.file.read_exact_at(&mut back, 0x1003).unwrap();
        assert_eq!(back, content[11..150_011]);
    }

    #[test]
    fn copy_of_a_file_that_is_too_short_fails() {
        let ram = Ram::new(1 << 20).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        assert!(ram.copy("test", 0, file.as_fd(), 0, 100).is_ok());
        assert!(ram.copy("test", 0, file.as_fd(), 0, 101).is_err());
    }
}
