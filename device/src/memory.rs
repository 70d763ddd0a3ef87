//! The guest's memory as the frontend shares it: checked, mapped, and translated.
//!
//! Touches the descriptors of SET_MEM_TABLE. A mapping whose file can shrink would turn any access into SIGBUS, so a
//! file is mapped only when the kernel vouches (F_SEAL_SHRINK) that it cannot, and when it is as long as the table says.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// The most regions a memory table may have (the protocol's number without CONFIGURE_MEM_SLOTS).
pub const MAX_REGIONS: usize = 8;

/// Why a memory table was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too many regions, or not one file for each.
    #[error(
        "the table has {regions} regions and {files} files: it takes 1 to {MAX_REGIONS} regions, each with its file"
    )]
    Count {
        /// Regions in the message.
        regions: usize,
        /// Descriptors beside it.
        files: usize,
    },

    /// Two regions overlap, in guest physical or in user address space.
    #[error("regions {0} and {1} overlap")]
    Overlap(usize, usize),

    /// An address or length does not fit the address space.
    #[error("region {0} reaches past the end of the address space")]
    Range(usize),

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

    /// The file could be truncated under the mapping.
    #[error(
        "the file of region {0} is not sealed against shrinking, so whoever holds it could make this process die of SIGBUS: use a memfd with F_SEAL_SHRINK (QEMU: -object memory-backend-memfd,share=on, which seals by default)"
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

#[derive(Debug, Clone, Copy)]
struct Region {
    user: u64,
    guest: u64,
    len: u64,
}

/// The guest's memory, mapped for as long as this value lives.
#[derive(Debug)]
pub struct Memory {
    guest: GuestMemoryMmap<()>,
    regions: Vec<Region>,
}

impl Memory {
    /// Checks and maps the regions of a SET_MEM_TABLE message.
    ///
    /// # Errors
    /// Any region that is not wholly backed by a file that cannot shrink, and any overlap.
    pub fn map(table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Memory, MemoryError> {
        if table.is_empty() || table.len() > MAX_REGIONS || table.len() != files.len() {
            return Err(MemoryError::Count { regions: table.len(), files: files.len() });
        }
        let mut regions = Vec::with_capacity(table.len());
        let mut mapped = Vec::with_capacity(table.len());
        for (index, (entry, file)) in table.iter().zip(files).enumerate() {
            let region = Region { user: entry.user_addr, guest: entry.guest_phys_addr, len: entry.memory_size };
            check_range(index, region)?;
            if let Some(other) = regions.iter().position(|other| overlap(*other, region)) {
                return Err(MemoryError::Overlap(other, index));
            }
            let mapping = map_file(index, file, entry.mmap_offset, region.len)?;
            let mapping = GuestRegionMmap::new(mapping, GuestAddress(region.guest)).ok_or(MemoryError::Range(index))?;
            regions.push(region);
            mapped.push(mapping);
        }
        mapped.sort_by_key(|region| vm_memory::GuestMemoryRegion::start_addr(region).0);
        // Only an overlap is left that this can fail for, and it was ruled out above.
        let guest = GuestMemoryMmap::from_regions(mapped).map_err(|_| MemoryError::Overlap(0, 0))?;
        Ok(Memory { guest, regions })
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

fn check_range(index: usize, region: Region) -> Result<(), MemoryError> {
    let fits = region.len != 0
        && region.guest.checked_add(region.len).is_some()
        && region.user.checked_add(region.len).is_some();
    fits.then_some(()).ok_or(MemoryError::Range(index))
}

fn overlap(a: Region, b: Region) -> bool {
    // No overflow: `check_range` has seen both.
    let meet = |a: u64, a_len: u64, b: u64, b_len: u64| a < b + b_len && b < a + a_len;
    meet(a.guest, a.len, b.guest, b.len) || meet(a.user, a.len, b.user, b.len)
}

fn map_file(index: usize, file: File, offset: u64, len: u64) -> Result<MmapRegion<()>, MemoryError> {
    let needed = offset.checked_add(len).ok_or(MemoryError::Range(index))?;
    let system = |what| move |source: io::Error| MemoryError::System { index, what, source };
    let stat = rustix::fs::fstat(&file).map_err(|e| system("fstat")(e.into()))?;
    // F_GET_SEALS knows memfds (also of huge pages) and files of tmpfs; everything else can be truncated by its holder.
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !seals.contains(SealFlags::SHRINK) {
        return Err(MemoryError::Unsealed(index));
    }
    // Sealed first, measured second would be a race the other way round; `stat` is only trusted because it cannot shrink.
    let stat = rustix::fs::fstat(&file).map_err(|e| system("fstat")(e.into()))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < needed {
        return Err(MemoryError::Short { index, size, needed });
    }
    let len = usize::try_from(len).map_err(|_| MemoryError::Range(index))?;
    // Without MAP_NORESERVE, so that huge pages are reserved here, where it can fail, rather than at the first touch.
    MmapRegion::build(
        Some(FileOffset::from_arc(Arc::new(file), offset)),
        len,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    )
    .map_err(|error| system("mmap")(io::Error::other(error)))
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
        let memory = Memory::map(&table, vec![file.try_clone().unwrap(), file]).unwrap();
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
        let memory = Memory::map(&[entry(0x5000, 0x1000, 0, 0x1000)], vec![file]).unwrap();
        let mut bytes = [0; 4];
        memory.guest().read_slice(&mut bytes, GuestAddress(0x5000)).unwrap();
        assert_eq!(&bytes, b"here");
    }

    #[test]
    fn tables_that_wrap_around_or_lack_files_are_refused() {
        let map = |entry| Memory::map(&[entry], vec![memfd(0x1000)]);
        assert!(matches!(map(entry(u64::MAX - 0xfff, 0x1000, 0, 0)), Err(MemoryError::Range(0))));
        assert!(matches!(map(entry(0, 0x1000, u64::MAX - 0xffe, 0)), Err(MemoryError::Range(0))));
        assert!(matches!(map(entry(0, 0x1000, 0, u64::MAX)), Err(MemoryError::Range(0))));
        assert!(matches!(map(entry(0, 0, 0, 0)), Err(MemoryError::Range(0))));
        assert!(map(entry(u64::MAX - 0x1000, 0x1000, 0, 0)).is_ok());
        assert!(matches!(Memory::map(&[], vec![]), Err(MemoryError::Count { .. })));
        let two = [entry(0, 0x1000, 0, 0), entry(0x1000, 0x1000, 0x1000, 0)];
        assert!(matches!(Memory::map(&two, vec![memfd(0x1000)]), Err(MemoryError::Count { .. })));
    }
}
