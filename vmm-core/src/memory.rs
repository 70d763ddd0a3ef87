//! Guest RAM: one memfd of fixed size, mapped once for KVM. The core itself only ever writes it through the file, before the
//! guest runs, and never reads it: what a guest put there is for its device backends alone.

use crate::error::Error;
use crate::layout::{PAGE, RAM_HIGH_START, RAM_LOW_LIMIT};
use crate::virtio::RamRegion;
use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

const HUGE_PAGE: u64 = 2 << 20;
/// Bytes behind the kernel that it fills while it boots.
const AFTER_KERNEL: u64 = 20 << 20;
/// Bytes at the top that it fills, beside page structures.
const AT_TOP: u64 = 4 << 20;
/// Bytes at the top that are prepared at most.
const MOST_AT_TOP: u64 = 32 << 20;

/// The guest's RAM.
pub struct Ram {
    file: File,
    size: u64,
    mapping: Mapping,
}

/// The RAM as KVM is given it: at a huge page's boundary, between stretches of address space where nothing is.
struct Mapping {
    reserved: *mut c_void,
    reserved_size: usize,
    base: *mut c_void,
}

impl Mapping {
    fn new(file: impl AsFd, size: u64) -> Result<Mapping, Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::OVERFLOW)?;
        let huge = HUGE_PAGE as usize;
        let reserved_size = size.checked_add(2 * huge).ok_or(Errno::OVERFLOW)?;
        // SAFETY: new address space of the kernel's choice, and within it, at an address that leaves something of it on both
        // sides, the file. That cannot shrink, so no access can fault. Rust code never dereferences either: the base is handed
        // to KVM, as the backing of the guest's memory.
        unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            let reserved = mmap_anonymous(std::ptr::null_mut(), reserved_size, ProtFlags::empty(), flags)?;
            let mapping = |base| Mapping { reserved, reserved_size, base };
            let base = reserved.map_addr(|start| (start + 1).next_multiple_of(huge));
            let whole = mapping(base); // Unmaps it if the next step fails.
            let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
            mmap(base, size, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0)?;
            Ok(whole)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, all of it; `host_address` promises no longer life than this.
        let _ = unsafe { munmap(self.reserved, self.reserved_size) };
    }
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
        let wrong = |step| move |errno: Errno| Error::Memory { step, size, source: errno.into() };
        let fd = confine::memory_file("guest-ram").map_err(|source| Error::Memory { step: "create", size, source })?;
        rustix::fs::ftruncate(&fd, size).map_err(wrong("set aside"))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(wrong("seal"))?;
        let mapping = Mapping::new(&fd, size).map_err(wrong("map"))?;
        Ok(Ram { file: File::from(fd), size, mapping })
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
        self.mapping.base.addr() as u64 + region.offset
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

    /// Gets huge pages for a range of RAM, given by its place in the memfd, that the guest will soon fill: it then takes a
    /// hundredth of the page faults there. Where the kernel has none to give (before Linux 6.1, or memory is in pieces), small
    /// ones do.
    fn use_huge_pages(&self, start: u64, end: u64) {
        let (start, end) = (start - start % HUGE_PAGE, end.next_multiple_of(HUGE_PAGE));
        let end = end.min(self.size - self.size % HUGE_PAGE);
        // SAFETY: both kinds of advice leave the content as it is, and the range is within the mapping.
        let advise = |from: u64, size: u64, advice| unsafe {
            libc::madvise(self.mapping.base.byte_add(from as usize), size as usize, advice) == 0
        };
        // Linux collapses only what has a page table, which one page each sees to.
        let tables = (start..end).step_by(HUGE_PAGE as usize).all(|huge| advise(huge, PAGE, libc::MADV_POPULATE_WRITE));
        if tables && start < end {
            let _ = advise(start, end - start, libc::MADV_COLLAPSE);
        }
    }

    /// Prepares the places that a Linux kernel fills first: its own image and what follows it, and the top of RAM, where it puts
    /// one page structure of 64 bytes for each of its pages, and its large tables.
    pub fn prepare(&self, kernel_start: u64, kernel_end: u64) {
        let image = kernel_start..(kernel_end + AFTER_KERNEL).min(self.low());
        let top = self.size - (self.size / 64 + AT_TOP).min(MOST_AT_TOP).min(self.size);
        self.use_huge_pages(image.start, image.end);
        self.use_huge_pages(top.max(image.end.next_multiple_of(HUGE_PAGE)), self.size);
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
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(())
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
    fn preparing_for_a_kernel_changes_no_byte_whatever_its_place() {
        for size in [4 * HUGE_PAGE, 16 * HUGE_PAGE + PAGE, 128 * HUGE_PAGE] {
            let ram = Ram::new(size).unwrap();
            assert_eq!(ram.host_address(&regions(size)[0]) % HUGE_PAGE, 0);
            ram.write("test", size - 5, b"kept!").unwrap();
            for (start, end) in
                [(HUGE_PAGE, HUGE_PAGE + 1), (HUGE_PAGE - 1, size), (size - 1, size), (0, 3 * HUGE_PAGE)]
            {
                ram.prepare(start, end);
            }
            let mut back = [0; 5];
            ram.file.read_exact_at(&mut back, size - 5).unwrap();
            assert_eq!((&back, ram.file.metadata().unwrap().len()), (b"kept!", size));
        }
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
