//! The guest's memory as the frontend shares it: checked, mapped, and translated.
//!
//! Touches the descriptors of SET_MEM_TABLE and ADD_MEM_REG. A file is mapped only when it is as long as the frontend says. One
//! that can shrink may be cut short later by whoever has it, and then any access is SIGBUS (`bus`): where that
//! must not be, the kernel has to vouch (F_SEAL_SHRINK) that it cannot.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// The most regions a memory table may have (the protocol's number without CONFIGURE_MEM_SLOTS).
pub const MAX_REGIONS: usize = 8;
/// The most regions that there may be where they come one by one (CONFIGURE_MEM_SLOTS).
pub const MAX_SLOTS: usize = 64;

/// The least that a mapping can be aligned to.
const PAGE: u64 = 4096;
/// The largest page that a file may be made of.
const LARGEST_PAGE: u64 = 1 << 30;
const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Whether the files of guest memory must be sealed against shrinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// Whoever has the file may end this process by cutting it short.
    Optional,
    /// Nobody may.
    Required,
}

/// Why guest memory was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too many regions, or not one file for each.
    #[error(
        "the table has {} and {}: it takes 1 to {MAX_REGIONS} regions, each with its file",
        ipc::count(*regions, "region"),
        ipc::count(*files, "file")
    )]
    Count {
        /// Regions in the message.
        regions: usize,
        /// Descriptors beside it.
        files: usize,
    },

    /// One region more than there is room for.
    #[error("region {MAX_SLOTS} is one more than the {MAX_SLOTS} that this backend said it takes")]
    Slots,

    /// No such region is there to be removed.
    #[error("the region of {len:#x} bytes at {guest:#x} that is to be removed is none of those that were added")]
    Absent {
        /// Its guest physical address.
        guest: u64,
        /// Its length.
        len: u64,
    },

    /// Two regions overlap, in guest physical or in user address space.
    #[error("regions {0} and {1} overlap")]
    Overlap(usize, usize),

    /// An address or length does not fit the address space.
    #[error("region {0} reaches past the end of the address space")]
    Range(usize),

    /// The region does not begin where a page of its file does.
    #[error("region {index} begins at {offset:#x} of its file, which is not a multiple of 4096")]
    Misaligned {
        /// Which region.
        index: usize,
        /// Where it begins.
        offset: u64,
    },

    /// The file ends before the region does.
    #[error("the file of region {index} has {size} bytes where the table needs {needed}: touching it would be SIGBUS")]
    Short {
        /// Which region.
        index: usize,
        /// Bytes in the file.
        size: u64,
        /// Offset plus length of the region.
        needed: u64,
    },

    /// Something else than a file.
    #[error(
        "the descriptor of region {0} is no file whose length could be checked: give the guest memory from a memfd, or from a file on tmpfs or hugetlbfs"
    )]
    Kind(usize),

    /// The file could be truncated under the mapping.
    #[error(
        "the file of region {0} is not sealed against shrinking, so whoever holds it could make this process die of SIGBUS: use a memfd with F_SEAL_SHRINK (QEMU: -object memory-backend-memfd,share=on, which seals by default), or start this backend without --require-sealed-memory"
    )]
    Unsealed(usize),

    /// A system call on the region's file failed.
    #[error("region {index}: {what} failed")]
    System {
        /// Which region.
        index: usize,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Clone)]
struct Region {
    user: u64,
    guest: u64,
    len: u64,
    mapped: Arc<GuestRegionMmap<()>>,
    /// What `mapped` is a part of: whole pages of the file, whatever their size.
    _pages: Arc<MmapRegion<()>>,
}

/// The guest's memory. Each region is mapped for as long as a value has it.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    guest: GuestMemoryMmap<()>,
    regions: Vec<Region>,
}

impl Memory {
    /// Checks and maps the regions of a SET_MEM_TABLE message.
    ///
    /// # Errors
    /// Any region that is not wholly backed by a file as `sealing` wants it, and any overlap.
    pub fn map(table: &[VhostUserMemoryRegion], files: Vec<File>, sealing: Sealing) -> Result<Memory, MemoryError> {
        if table.is_empty() || table.len() > MAX_REGIONS || table.len() != files.len() {
            return Err(MemoryError::Count { regions: table.len(), files: files.len() });
        }
        table.iter().zip(files).try_fold(Memory::default(), |memory, (entry, file)| memory.with(entry, file, sealing))
    }

    /// The same with one region more, checked and mapped.
    ///
    /// # Errors
    /// As with [`map`](Self::map); and if there are [`MAX_SLOTS`] already.
    pub fn with(mut self, entry: &VhostUserMemoryRegion, file: File, sealing: Sealing) -> Result<Memory, MemoryError> {
        let index = self.regions.len();
        if index >= MAX_SLOTS {
            return Err(MemoryError::Slots);
        }
        let (user, guest, len) = (entry.user_addr, entry.guest_phys_addr, entry.memory_size);
        if len == 0 || guest.checked_add(len).is_none() || user.checked_add(len).is_none() {
            return Err(MemoryError::Range(index));
        }
        // No overflow: each region was checked for that.
        let meet = |a: u64, a_len: u64, b: u64| a < b + len && b < a + a_len;
        let clash = |other: &Region| meet(other.guest, other.len, guest) || meet(other.user, other.len, user);
        if let Some(other) = self.regions.iter().position(clash) {
            return Err(MemoryError::Overlap(other, index));
        }
        let (mapped, pages) = map_file(index, file, entry, sealing)?;
        self.regions.push(Region { user, guest, len, mapped: Arc::new(mapped), _pages: Arc::new(pages) });
        self.collect()
    }

    /// The same without the region that is described. What it was mapped from goes with its last user.
    ///
    /// # Errors
    /// If no such region is there.
    pub fn without(mut self, entry: &VhostUserMemoryRegion) -> Result<Memory, MemoryError> {
        let (user, guest, len) = (entry.user_addr, entry.guest_phys_addr, entry.memory_size);
        let same = |region: &Region| region.user == user && region.guest == guest && region.len == len;
        let found = self.regions.iter().position(same).ok_or(MemoryError::Absent { guest, len })?;
        self.regions.remove(found);
        self.collect()
    }

    /// Brings what is looked up by guest physical address up to date.
    fn collect(mut self) -> Result<Memory, MemoryError> {
        let mut mapped: Vec<_> = self.regions.iter().map(|region| Arc::clone(&region.mapped)).collect();
        mapped.sort_by_key(|region| region.start_addr().0);
        self.guest = if mapped.is_empty() {
            GuestMemoryMmap::new()
        } else {
            // Only an overlap is left that this can fail for, and it was ruled out.
            GuestMemoryMmap::from_arc_regions(mapped).map_err(|_| MemoryError::Overlap(0, 0))?
        };
        Ok(self)
    }

    /// Where `len` bytes at the frontend's own address `user` lie in guest physical memory, if they lie in one region.
    pub fn translate(&self, user: u64, len: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            let left = region.len.checked_sub(offset)?;
            if left < len || left == 0 {
                return None;
            }
            Some(GuestAddress(region.guest.checked_add(offset)?))
        })
    }

    /// The mapped memory, by guest physical address.
    pub fn guest(&self) -> &GuestMemoryMmap<()> {
        &self.guest
    }
}

/// A region, and the mapping it is a part of.
fn map_file(
    index: usize,
    file: File,
    entry: &VhostUserMemoryRegion,
    sealing: Sealing,
) -> Result<(GuestRegionMmap<()>, MmapRegion<()>), MemoryError> {
    let (offset, len) = (entry.mmap_offset, entry.memory_size);
    let range = || MemoryError::Range(index);
    let needed = offset.checked_add(len).ok_or_else(range)?;
    let system = |what| move |source: io::Error| MemoryError::System { index, what, source };
    // F_GET_SEALS knows memfds (also of huge pages) and files of tmpfs; everything else can be truncated by its holder.
    // Sealed first, measured second: the size is only trusted because it cannot shrink.
    let sealed = || rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    if sealing == Sealing::Required && !sealed() {
        return Err(MemoryError::Unsealed(index));
    }
    let stat = rustix::fs::fstat(&file).map_err(|e| system("fstat")(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MemoryError::Kind(index));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < needed {
        return Err(MemoryError::Short { index, size, needed });
    }
    if !offset.is_multiple_of(PAGE) {
        return Err(MemoryError::Misaligned { index, offset });
    }
    // hugetlbfs maps and unmaps whole huge pages, and says by its block size how large they are. Frontends begin regions within
    // them. Elsewhere it does no harm to map a little more, which is not looked at.
    let block = u64::try_from(stat.st_blksize).unwrap_or(PAGE);
    let page = if block.is_power_of_two() && (PAGE..=LARGEST_PAGE).contains(&block) { block } else { PAGE };
    let start = offset - offset % page;
    let whole = needed.checked_next_multiple_of(page).and_then(|end| usize::try_from(end - start).ok());
    let (len, before) = (usize::try_from(len).map_err(|_| range())?, (offset - start) as usize);
    // Without MAP_NORESERVE, so that huge pages are reserved here, where it can fail, rather than at the first touch.
    let from = Some(FileOffset::from_arc(Arc::new(file), start));
    let pages = MmapRegion::build(from, whole.ok_or_else(range)?, PROTECTION, libc::MAP_SHARED)
        .map_err(|error| system("mmap")(io::Error::other(error)))?;
    // SAFETY: `before + len` is `needed - start`, which is within the mapping; whoever has the part has the mapping as well.
    let part = unsafe { MmapRegion::build_raw(pages.as_ptr().add(before), len, PROTECTION, libc::MAP_SHARED) };
    let part = part.map_err(|error| system("use of the mapping")(io::Error::other(error)))?;
    let mapped = GuestRegionMmap::new(part, GuestAddress(entry.guest_phys_addr)).ok_or_else(range)?;
    Ok((mapped, pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memfd;

    fn entry(guest: u64, len: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest, len, user, offset)
    }

    #[test]
    fn an_address_is_translated_up_to_the_last_byte_of_its_region() {
        let file = memfd(0x4000);
        let table = [entry(0x10_0000, 0x2000, 0x7000_0000, 0x2000), entry(0, 0x1000, 0x5000_0000, 0)];
        let memory = Memory::map(&table, vec![file.try_clone().unwrap(), file], Sealing::Required).unwrap();
        assert_eq!(memory.translate(0x7000_0000, 0x2000), Some(GuestAddress(0x10_0000)));
        assert_eq!(memory.translate(0x7000_1fff, 1), Some(GuestAddress(0x10_1fff)));
        assert_eq!(memory.translate(0x7000_1fff, 2), None);
        assert_eq!(memory.translate(0x7000_2000, 0), None);
        assert_eq!(memory.translate(0x6fff_ffff, 1), None);
        assert_eq!(memory.translate(0x5000_0ffc, 4), Some(GuestAddress(0xffc)));
        assert_eq!(memory.translate(0x5000_0000, u64::MAX), None);
    }

    #[test]
    fn a_region_shows_its_file_at_the_offset_given() {
        use std::os::unix::fs::FileExt;
        use vm_memory::Bytes;
        let file = memfd(0x2000);
        file.write_all_at(b"here", 0x1000).unwrap();
        let memory = Memory::map(&[entry(0x5000, 0x1000, 0, 0x1000)], vec![file], Sealing::Required).unwrap();
        let mut bytes = [0; 4];
        memory.guest().read_slice(&mut bytes, GuestAddress(0x5000)).unwrap();
        assert_eq!(&bytes, b"here");
    }

    #[test]
    fn tables_that_wrap_around_or_lack_files_are_refused() {
        let map = |entry| Memory::map(&[entry], vec![memfd(0x1000)], Sealing::Required);
        assert!(matches!(map(entry(u64::MAX - 0xfff, 0x1000, 0, 0)), Err(MemoryError::Range(0))));
        assert!(matches!(map(entry(0, 0x1000, u64::MAX - 0xffe, 0)), Err(MemoryError::Range(0))));
        assert!(matches!(map(entry(0, 0x1000, 0, u64::MAX)), Err(MemoryError::Range(0))));
        assert!(matches!(map(entry(0, 0, 0, 0)), Err(MemoryError::Range(0))));
        assert!(map(entry(u64::MAX - 0x1000, 0x1000, 0, 0)).is_ok());
        assert!(matches!(Memory::map(&[], vec![], Sealing::Required), Err(MemoryError::Count { .. })));
        let two = [entry(0, 0x1000, 0, 0), entry(0x1000, 0x1000, 0x1000, 0)];
        assert!(matches!(Memory::map(&two, vec![memfd(0x1000)], Sealing::Required), Err(MemoryError::Count { .. })));
    }
}
