//! Loads the kernel's ELF image from its sealed memfd into guest RAM. `kernel-store` has checked the image in its own sandbox;
//! every offset and size is checked here again, because this is where a wrong one would do harm. Never uses the file's offset,
//! which other VMs share: that, and copying inside the kernel into RAM that is not mapped for it, is what the `linux-loader`
//! crate, which seeks and reads into a mapping, cannot do.

use crate::error::Error;
use crate::layout::{HIGH_START, IDENTITY_MAPPED};
use crate::memory::Ram;
use rustix::fs::SealFlags;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;
const PT_LOAD: u32 = 1;
/// Most program headers; a kernel has about five.
const MAX_HEADERS: u16 = 64;

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
    let plan = Plan::read(&image, ram.low().min(IDENTITY_MAPPED))?;
    if let Some(start) = plan.segments.iter().map(|segment| segment.gpa).min() {
        ram.prepare(start, plan.loaded.end);
    }
    for segment in plan.segments.iter().filter(|segment| segment.file_size > 0) {
        ram.copy("The kernel", segment.gpa, image.as_fd(), segment.offset, segment.file_size)?;
    }
    Ok(plan.loaded)
}

fn check_seals(image: &OwnedFd) -> Result<(), Error> {
    let needed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    match rustix::fs::fcntl_get_seals(image) {
        Ok(seals) if seals.contains(needed) => Ok(()),
        Ok(_) => Err(Error::Kernel("its memfd is not sealed against changes".into())),
        Err(_) => Err(Error::Kernel("it is not in a memfd".into())),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    gpa: u64,
    offset: u64,
    file_size: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    segments: Vec<Segment>,
    loaded: Loaded,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Plan {
    /// Reads the headers. No segment of the result reaches beyond the file, below `HIGH_START`, beyond `limit` or into another.
    fn read(image: &File, limit: u64) -> Result<Plan, Error> {
        let bad = |why: &str| Error::Kernel(why.into());
        let cut = |_| bad("it is truncated");
        let size = image.metadata().map_err(Error::load("look at the kernel image"))?.len();

        let mut header = [0; EHDR_SIZE];
        image.read_exact_at(&mut header, 0).map_err(cut)?;
        if header.get(..7) != Some(b"\x7fELF\x02\x01\x01") {
            return Err(bad("it is not a 64-bit little-endian ELF file"));
        }
        let (kind, machine) = (u16_at(&header, 16), u16_at(&header, 18));
        if (kind, machine) != (2, 62) {
            return Err(bad("it is not an executable for x86-64"));
        }
        let (entry, table) = (u64_at(&header, 24), u64_at(&header, 32));
        let (entry_size, count) = (u16_at(&header, 54), u16_at(&header, 56));
        if usize::from(entry_size) != PHDR_SIZE || !(1..=MAX_HEADERS).contains(&count) {
            return Err(bad("its program header table is malformed"));
        }
        let mut headers = vec![0; PHDR_SIZE * usize::from(count)];
        if table.checked_add(headers.len() as u64).is_none_or(|end| end > size) {
            return Err(bad("its program header table is beyond its end"));
        }
        image.read_exact_at(&mut headers, table).map_err(cut)?;

        let mut segments: Vec<(Segment, u64)> = Vec::new();
        let mut entry_is_loaded = false;
        for header in headers.chunks_exact(PHDR_SIZE).filter(|header| u32_at(header, 0) == PT_LOAD) {
            let (offset, gpa) = (u64_at(header, 8), u64_at(header, 24));
            let (file_size, mem_size) = (u64_at(header, 32), u64_at(header, 40));
            if mem_size == 0 && file_size == 0 {
                continue;
            }
            if file_size > mem_size {
                return Err(bad("a segment has more bytes in the file than in memory"));
            }
            if offset.checked_add(file_size).is_none_or(|end| end > size) {
                return Err(bad("a segment is beyond its end"));
            }
            let end = gpa.checked_add(mem_size).ok_or_else(|| bad("a segment wraps around"))?;
            if gpa < HIGH_START {
                return Err(bad("a segment lies below 1 MiB, where the boot data are"));
            }
            if end > limit {
                let why = format!("a segment ends at {end:#x}, and RAM it can use at {limit:#x}");
                return Err(Error::Fit { what: "The kernel", why });
            }
            if segments.iter().any(|(other, other_end)| gpa < *other_end && other.gpa < end) {
                return Err(bad("two segments overlap"));
            }
            // Where the file has no byte, there is nothing to run.
            entry_is_loaded |= (gpa..gpa.saturating_add(file_size)).contains(&entry);
            segments.push((Segment { gpa, offset, file_size }, end));
        }
        if !entry_is_loaded {
            return Err(bad("its entry point is in no loaded segment"));
        }
        let end = segments.iter().map(|(_, end)| *end).max().unwrap_or(HIGH_START);
        Ok(Plan { segments: segments.into_iter().map(|(segment, _)| segment).collect(), loaded: Loaded { entry, end } })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;

    const LIMIT: u64 = 64 << 20;

    /// One PT_LOAD: paddr, offset, bytes in the file, bytes in memory.
    type Load = (u64, u64, u64, u64);

    fn elf(entry: u64, loads: &[Load], size: usize) -> Vec<u8> {
        let mut image = vec![0u8; size.max(EHDR_SIZE + PHDR_SIZE * loads.len())];
        image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        image[16..18].copy_from_slice(&2u16.to_le_bytes());
        image[18..20].copy_from_slice(&62u16.to_le_bytes());
        image[24..32].copy_from_slice(&entry.to_le_bytes());
        image[32..40].copy_from_slice(&(EHDR_SIZE as u64).to_le_bytes());
        image[54..56].copy_from_slice(&(PHDR_SIZE as u16).to_le_bytes());
        image[56..58].copy_from_slice(&(loads.len() as u16).to_le_bytes());
        for (i, (paddr, offset, file_size, mem_size)) in loads.iter().enumerate() {
            let at = EHDR_SIZE + i * PHDR_SIZE;
            image[at..at + 4].copy_from_slice(&PT_LOAD.to_le_bytes());
            for (field, value) in [(8, offset), (24, paddr), (32, file_size), (40, mem_size)] {
                image[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        image
    }

    fn memfd(content: &[u8], seals: SealFlags) -> OwnedFd {
        let fd = rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        File::from(fd.try_clone().unwrap()).write_all_at(content, 0).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    fn plan(image: &[u8]) -> Result<Plan, Error> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(image, 0).unwrap();
        Plan::read(&file, LIMIT)
    }

    fn refused(image: &[u8], why: &str) {
        let text = plan(image).unwrap_err().to_string();
        assert!(text.contains(why), "expected '{why}', got '{text}'");
    }

    #[test]
    fn sealed_image_lands_at_its_physical_addresses() {
        let mut image = elf(0x100_0000, &[(0x100_0000, 0x1000, 0x10, 0x2000), (0x200_0000, 0x1010, 4, 4)], 0x1014);
        image[0x1000..0x1014].copy_from_slice(b"text text text!!data");
        let ram = Ram::new(LIMIT).unwrap();
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        let loaded = load(memfd(&image, all), &ram).unwrap();
        assert_eq!(loaded, Loaded { entry: 0x100_0000, end: 0x200_0004 });
        let mut back = [0; 20];
        let file = File::from(ram.share().unwrap());
        file.read_exact_at(&mut back[..16], 0x100_0000).unwrap();
        file.read_exact_at(&mut back[16..], 0x200_0000).unwrap();
        assert_eq!(&back, b"text text text!!data");
    }

    #[test]
    fn image_that_could_still_change_is_refused() {
        let image = elf(0x100_0000, &[(0x100_0000, 0, 0x40, 0x40)], 0);
        let ram = Ram::new(LIMIT).unwrap();
        for seals in [SealFlags::SHRINK | SealFlags::GROW, SealFlags::WRITE, SealFlags::WRITE | SealFlags::GROW] {
            assert!(load(memfd(&image, seals), &ram).unwrap_err().to_string().contains("sealed"));
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&image, 0).unwrap();
        assert!(load(file.into(), &ram).is_err());
    }

    #[test]
    fn segment_limits_hold_on_both_sides() {
        let one = |load: Load| elf(load.0, &[load], 0x2000);
        assert!(plan(&one((HIGH_START, 0x1000, 0x1000, 0x1000))).is_ok());
        refused(&one((HIGH_START - 1, 0x1000, 0x1000, 0x1000)), "below 1 MiB");
        refused(&one((HIGH_START, 0x1001, 0x1000, 0x1000)), "beyond its end");
        refused(&one((HIGH_START, u64::MAX, 0x1000, 0x1000)), "beyond its end");
        refused(&one((HIGH_START, 0x1000, 0x1000, 0xfff)), "more bytes in the file");
        assert!(plan(&one((LIMIT - 0x1000, 0x1000, 0x1000, 0x1000))).is_ok());
        refused(&one((LIMIT - 0x1000, 0x1000, 0x1000, 0x1001)), "does not fit");
        refused(&one((u64::MAX, 0x1000, 1, 0x1000)), "wraps");
    }

    #[test]
    fn overlapping_segments_are_refused_and_adjacent_ones_are_not() {
        let two = |second| elf(HIGH_START, &[(HIGH_START, 0, 0x100, 0x1000), (second, 0, 0x100, 0x1000)], 0x2000);
        assert!(plan(&two(HIGH_START + 0x1000)).is_ok());
        refused(&two(HIGH_START + 0xfff), "overlap");
        refused(&two(HIGH_START), "overlap");
    }

    #[test]
    fn entry_outside_the_loaded_bytes_is_refused() {
        let load = [(HIGH_START, 0, 0x100, 0x1000)];
        assert!(plan(&elf(HIGH_START + 0xff, &load, 0x2000)).is_ok());
        refused(&elf(HIGH_START + 0x100, &load, 0x2000), "entry");
        refused(&elf(0, &load, 0x2000), "entry");
        refused(&elf(HIGH_START, &[], 0x2000), "malformed");
    }

    #[test]
    fn foreign_and_truncated_files_are_refused() {
        refused(b"", "truncated");
        refused(&[0; 64], "ELF");
        let good = elf(HIGH_START, &[(HIGH_START, 0, 0x40, 0x40)], 0);
        for (at, value) in [(4, 1), (5, 2), (16, 3), (18, 3), (54, 55), (56, 0), (57, 1), (39, 1)] {
            let mut image = good.clone();
            image[at] = value;
            assert!(plan(&image).is_err(), "byte {at} = {value}");
        }
        refused(&good[..good.len() - 1], "beyond its end");
    }

    proptest! {
        #[test]
        fn any_header_is_loaded_within_its_bounds_or_refused(
            entry in any::<u64>(),
            loads in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..4),
            near in any::<bool>(),
        ) {
            let small = |v: u64| if near { v % (LIMIT + 0x1000) } else { v };
            let loads: Vec<Load> = loads.iter()
                .map(|l| (small(l.0), if near { l.1 % 0x1800 } else { l.1 }, if near { l.2 % 0x1800 } else { l.2 }, small(l.3)))
                .collect();
            let entry = if near { loads.first().map_or(0, |load| load.0) } else { entry };
            if let Ok(plan) = plan(&elf(entry, &loads, 0x1000)) {
                prop_assert!(plan.loaded.end <= LIMIT);
                for segment in &plan.segments {
                    prop_assert!(segment.gpa >= HIGH_START && segment.offset + segment.file_size <= 0x1000);
                }
            }
        }
    }
}
