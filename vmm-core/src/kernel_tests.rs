//! Tests of loading a kernel, and that it and `kernel-store` follow one contract.

use super::*;
use crate::layout::HIGH_START;
use kernel_image::SEALS;
use kernel_store::image::{Facts, Loading};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use std::sync::Arc;

const LIMIT: u64 = 64 << 20;
const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;

/// One PT_LOAD of code: paddr, offset, bytes in the file, bytes in memory.
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
        image[at..at + 8].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
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

#[test]
fn sealed_image_lands_at_its_physical_addresses() {
    let mut image = elf(0x100_0000, &[(0x100_0000, 0x1000, 0x10, 0x2000), (0x200_0000, 0x1010, 4, 4)], 0x1014);
    image[0x1000..0x1014].copy_from_slice(b"text text text!!data");
    let ram = Ram::new(LIMIT).unwrap();
    let loaded = load(memfd(&image, SEALS), &ram).unwrap();
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
fn kernel_fits_if_its_memory_does_and_says_so_if_one_byte_is_missing() {
    let ram = Ram::new(LIMIT).unwrap();
    let to = |size: u64| {
        let address = LIMIT - 0x1000;
        load(memfd(&elf(address, &[(address, 0, 0x40, size)], 0), SEALS), &ram)
    };
    assert_eq!(to(0x1000).unwrap().end, LIMIT);
    let text = to(0x1001).unwrap_err().to_string();
    assert!(text.contains("does not fit") && text.contains("more memory"), "{text}");
}

#[test]
fn what_is_no_kernel_is_refused_by_the_contract_that_the_store_has() {
    let ram = Ram::new(LIMIT).unwrap();
    let mut image = elf(HIGH_START, &[(HIGH_START, 0, 0x40, 0x40)], 0);
    image[16] = 3;
    let text = load(memfd(&image, SEALS), &ram).unwrap_err().to_string();
    assert!(text.contains("position-independent") && text.contains("bzImage"), "{text}");
    assert!(load(memfd(&[], SEALS), &ram).unwrap_err().to_string().contains("truncated"));
}

/// What `kernel-store` says of an image.
pub(super) fn store_facts(image: &[u8]) -> Result<Facts, kernel_store::image::Error> {
    let mut out = vec![0; image.len()];
    let mut loading = Loading::new(Arc::new(image.to_vec()))?;
    loop {
        if let Some(loaded) = loading.step(&mut out)? {
            return Ok(loaded.facts);
        }
    }
}

/// Where the kernel is entered and ends, by `kernel-store`.
fn store_says(image: &[u8]) -> Result<Loaded, kernel_store::image::Error> {
    store_facts(image).map(|facts| Loaded { entry: facts.entry, end: facts.load_end })
}

pub(super) fn load_into(image: &[u8], ram: &Ram) -> Result<Loaded, Error> {
    load(memfd(image, SEALS), ram)
}

fn core_says(image: &[u8], ram: u64) -> Result<Loaded, Error> {
    load_into(image, &Ram::new(ram).unwrap())
}

/// A value near one of the edges.
fn near(edges: &'static [u64]) -> impl Strategy<Value = u64> {
    (prop::sample::select(edges), -2i64..3).prop_map(|(edge, off)| edge.saturating_add_signed(off))
}

fn header() -> impl Strategy<Value = [u64; 6]> {
    const FILE: u64 = 0x3000;
    let kind = prop_oneof![6 => Just(1u64), 1 => Just(4), 1 => 0u64..8];
    let flags = prop_oneof![4 => Just(5u64), 1 => 0u64..8];
    let offset = prop_oneof![4 => Just(0x1000u64), 1 => near(&[0, 0x1000, FILE, u64::MAX])];
    let address = near(&[0, HIGH_START, 16 << 20, (16 << 20) + 0x1000, 1 << 30, (1 << 30) - 0x1000, 3 << 30, u64::MAX]);
    let file_size = prop_oneof![4 => Just(0x800u64), 1 => near(&[0, 0x1000, FILE - 0x1000, u64::MAX])];
    let memory_size = prop_oneof![4 => Just(0x1000u64), 1 => near(&[0, 0x800, 0x1000, 1 << 30, 3 << 30, u64::MAX])];
    (kind, flags, offset, address, file_size, memory_size).prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// One contract: a guest that has memory for it can load whatever the store keeps, and whatever the core would refuse for
    /// another reason the store has refused before, and said what to do.
    #[test]
    fn what_the_store_keeps_the_core_loads_and_what_it_refuses_it_refuses_with_a_remedy(
        headers in prop::collection::vec(header(), 1..4),
        more in prop_oneof![8 => Just(0u16), 1 => Just(63), 1 => Just(64), 1 => Just(127)],
        entry in prop_oneof![6 => Just(None), 1 => near(&[0, HIGH_START, (16 << 20) + 0x800, u64::MAX]).prop_map(Some)],
        kind in prop_oneof![8 => Just(2u8), 1 => 0u8..5],
        machine in prop_oneof![8 => Just(62u8), 1 => Just(183)],
        pvh in prop_oneof![3 => Just(None), 1 => near(&[0, 16 << 20, (16 << 20) + 0x800]).prop_map(Some)],
        size in prop_oneof![8 => Just(0x3000usize), 1 => 0usize..0x3000],
    ) {
        let entry = entry.unwrap_or(headers[0][3]);
        let count = (headers.len() as u16).saturating_add(more);
        let mut image = elf(entry, &[], 0x3000);
        image[16] = kind;
        image[18] = machine;
        image[56..58].copy_from_slice(&count.to_le_bytes());
        for (n, [kind, flags, offset, address, file_size, memory_size]) in headers.iter().enumerate() {
            let at = EHDR_SIZE + n * PHDR_SIZE;
            image[at..at + 4].copy_from_slice(&(*kind as u32).to_le_bytes());
            image[at + 4..at + 8].copy_from_slice(&(*flags as u32).to_le_bytes());
            for (field, value) in [(8, offset), (24, address), (32, file_size), (40, memory_size)] {
                image[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        if let Some(pvh) = pvh {
            // XEN_ELFNOTE_PHYS32_ENTRY, for a note that lies where segments do.
            let note = [&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &pvh.to_le_bytes()].concat();
            image[0x1000..0x1000 + note.len()].copy_from_slice(&note);
        }
        image.truncate(size);
        match store_says(&image) {
            Ok(kept) => {
                prop_assert_eq!(core_says(&image, kernel_image::HIGHEST).unwrap(), kept);
                // What is left to the core: whether there is as much memory. Then more of it helps.
                let less = kept.end.next_multiple_of(4096) - 4096;
                if less > 0 && kept.end > less {
                    let said = core_says(&image, less).unwrap_err();
                    prop_assert!(matches!(said, Error::Fit { .. }), "{}", said);
                }
            }
            Err(kernel_store::image::Error { why, remedy }) => prop_assert!(!why.is_empty() && [kernel_image::GIVE_KERNEL, kernel_image::COPY_AGAIN].contains(&remedy)),
        }
    }
}

#[test]
fn kernel_at_both_ends_of_what_the_contract_allows_is_kept_and_loaded() {
    let top = kernel_image::HIGHEST - 0x1000;
    let image = elf(top, &[(HIGH_START, 0, 0x1000, 0x1000), (top, 0x1000, 0x1000, 0x1000)], 0x2000);
    let kept = store_says(&image).unwrap();
    assert_eq!(core_says(&image, kernel_image::HIGHEST).unwrap(), kept);
    assert_eq!(kept.end, kernel_image::HIGHEST);
}
