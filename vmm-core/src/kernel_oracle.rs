//! The `linux-loader` crate's `Elf::load` as the judge of how a kernel comes into guest RAM: what both take lies there byte for
//! byte the same, with the same entry and the same PVH note, and what only one of them takes is named here.

use super::tests::{load_into, store_facts};
use crate::memory::Ram;
use kernel_store::image::Facts;
use linux_loader::elf::*;
use linux_loader::loader::{Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use proptest::prelude::*;
use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use vm_memory::{ByteValued, FileOffset, GuestAddress, GuestMemoryMmap};

const RAM: u64 = 8 << 20;
const LOW: u64 = kernel_image::LOWEST;
const CODE: u32 = PF_R | PF_X;
/// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// A program header, and what it has in the file.
#[derive(Clone, Debug)]
struct Segment(Elf64_Phdr, Vec<u8>);

fn load(flags: u32, address: u64, bytes: Vec<u8>, more: u64) -> Segment {
    let (p_filesz, p_memsz) = (bytes.len() as u64, bytes.len() as u64 + more);
    Segment(
        Elf64_Phdr { p_type: PT_LOAD, p_flags: flags, p_paddr: address, p_filesz, p_memsz, ..Default::default() },
        bytes,
    )
}

fn notes(align: u64, notes: &[(&[u8], u32, &[u8])]) -> Segment {
    let mut bytes = Vec::new();
    for (name, n_type, desc) in notes {
        let header = Elf64_Nhdr { n_namesz: name.len() as u32, n_descsz: desc.len() as u32, n_type: *n_type };
        bytes.extend(header.as_slice());
        for part in [name, desc] {
            bytes.extend(*part);
            bytes.resize(bytes.len().next_multiple_of(align as usize), 0);
        }
    }
    let p_filesz = bytes.len() as u64;
    Segment(Elf64_Phdr { p_type: PT_NOTE, p_flags: PF_R, p_filesz, p_align: align, ..Default::default() }, bytes)
}

fn pvh(entry: u64) -> Segment {
    notes(4, &[(b"Xen\0", PHYS32_ENTRY, &(entry as u32).to_le_bytes())])
}

/// The file: headers, then what each segment has in it.
fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut header = Elf64_Ehdr {
        e_type: ET_EXEC,
        e_machine: EM_X86_64,
        e_version: EV_CURRENT.into(),
        e_entry: entry,
        e_phoff: size_of::<Elf64_Ehdr>() as u64,
        e_phentsize: size_of::<Elf64_Phdr>() as u16,
        e_phnum: segments.len() as u16,
        ..Default::default()
    };
    header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut image = header.as_slice().to_vec();
    let mut p_offset = (size_of::<Elf64_Ehdr>() + size_of::<Elf64_Phdr>() * segments.len()) as u64;
    for Segment(header, bytes) in segments {
        image.extend(Elf64_Phdr { p_offset, ..*header }.as_slice());
        p_offset += bytes.len() as u64;
    }
    image.extend(segments.iter().flat_map(|Segment(_, bytes)| bytes));
    image
}

/// What `Elf::load` makes of an image, and what it leaves in RAM that was empty.
fn judge(image: &[u8]) -> Result<(KernelLoaderResult, File), linux_loader::loader::Error> {
    let ram = File::from(confine::memory_file("judge").unwrap());
    ram.set_len(RAM).unwrap();
    let file = Some(FileOffset::new(ram.try_clone().unwrap(), 0));
    let guest = GuestMemoryMmap::<()>::from_ranges_with_files([(GuestAddress(0), RAM as usize, file)]).unwrap();
    Ok((Elf::load(&guest, None, &mut Cursor::new(image), None)?, ram))
}

fn pvh_entry(judged: &KernelLoaderResult) -> u64 {
    match judged.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) => entry,
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => 0,
    }
}

/// The store keeps it, and the core loads it: what is known of it, and RAM.
fn ours(image: &[u8]) -> Result<(Facts, Ram), String> {
    let facts = store_facts(image).map_err(|error| error.why)?;
    let ram = Ram::new(RAM).unwrap();
    let loaded = load_into(image, &ram).map_err(|error| error.to_string())?;
    assert_eq!((loaded.entry, loaded.end), (facts.entry, facts.load_end));
    Ok((facts, ram))
}

fn content(ram: &File) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    ram.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Reasons for which the store or the core refuses what `Elf::load` takes. The first table below has an image for each.
const STRICTER: [&str; 15] = [
    "64-bit little-endian",
    "for aarch64",
    "ELF number",
    "position-independent",
    "not an executable",
    "program headers of",
    "runs on Linux",
    "in the file and",
    "between 1 MiB and 1 GiB",
    "overlap",
    "nothing to load",
    "entry point",
    "bytes of notes",
    "does not fit",
    "truncated",
];

fn two() -> Vec<Segment> {
    vec![load(CODE, LOW, vec![0x90; 64], 64), load(PF_R | PF_W, LOW + 0x1000, vec![1; 64], 0x1000)]
}

#[test]
fn what_only_the_judge_takes_is_refused_here_for_a_stated_reason() {
    let good = elf(LOW, &two());
    assert!(ours(&good).is_ok() && judge(&good).is_ok());
    let with = |at: usize, byte: u8| {
        let mut image = good.clone();
        image[at] = byte;
        image
    };
    let and = |more: Segment| elf(LOW, &[two(), vec![more]].concat());
    let mut larger = load(PF_R, LOW + 0x4000, vec![2; 64], 0);
    larger.0.p_memsz = 63;
    let mut past = pvh(LOW);
    past.0.p_filesz += 1;
    let interpreter = Segment(Elf64_Phdr { p_type: PT_INTERP, ..Default::default() }, Vec::new());
    let many = vec![Segment(Elf64_Phdr::default(), Vec::new()); 63];
    let images = [
        ("64-bit little-endian", with(EI_CLASS, ELFCLASS32)),
        ("64-bit little-endian", with(EI_VERSION, 0)),
        ("for aarch64", with(18, EM_AARCH64 as u8)),
        ("ELF number", with(18, EM_ARM as u8)),
        ("position-independent", with(16, ET_DYN as u8)),
        ("not an executable", with(16, ET_REL as u8)),
        ("program headers of", elf(LOW, &[two(), many].concat())),
        ("runs on Linux", and(interpreter)),
        ("in the file and", and(larger)),
        ("between 1 MiB and 1 GiB", and(load(PF_R, LOW - 1, vec![2; 64], 0))),
        ("overlap", and(load(PF_R, LOW + 0x107f, vec![2; 64], 0))),
        ("nothing to load", elf(LOW, &[pvh(LOW)])),
        ("entry point", elf(LOW + 0x1000, &two())),
        ("entry point", and(pvh(LOW + 0x1000))),
        ("bytes of notes", and(notes(4, &[(b"GNU\0", 3, &[0; 64 << 10])]))),
        ("truncated", and(past)),
        ("does not fit", and(load(PF_R, RAM, vec![], 0x1000))),
    ];
    for (reason, image) in &images {
        assert!(judge(image).is_ok(), "{reason}");
        let why = ours(image).map(|_| ()).unwrap_err();
        assert!(why.contains(reason) && STRICTER.contains(reason), "{reason}: {why}");
    }
    assert!(STRICTER.iter().all(|reason| images.iter().any(|(shown, _)| shown == reason)));
}

/// All of it about notes, of which only the store reads any, and about headers that lie within one another.
#[test]
fn what_only_this_loader_takes_the_judge_stumbles_over() {
    let and = |more: Segment| elf(LOW, &[two(), vec![more]].concat());
    let mut cut = pvh(LOW);
    cut.1.truncate(8);
    cut.0.p_filesz = 8;
    let mut inside = elf(LOW, &two());
    inside[32] = 8; // e_phoff: a header of type PT_NULL begins there
    inside[56] = 3; // e_phnum
    let images = [
        ("a header of a note is cut short", and(cut)),
        ("the PVH note is too short for an address", and(notes(4, &[(b"Xen\0", PHYS32_ENTRY, &[1, 2])]))),
        ("the program headers begin within the ELF header", inside),
    ];
    for (name, image) in images {
        assert!(judge(&image).is_err(), "{name}");
        assert_eq!(ours(&image).unwrap().0.pvh_entry, 0, "{name}");
    }
}

#[test]
fn where_both_take_an_image_and_differ_the_store_follows_the_specification() {
    // (image, our PVH entry and end, the judge's)
    let and = |more: &[Segment]| elf(LOW, &[&two()[..], more].concat());
    let other = notes(4, &[(b"GNU\0", 3, &[0; 20])]);
    let end = LOW + 0x1000 + 64 + 0x1000;
    let long: (&[u8], u32, &[u8]) = (b"Linux\0", 1, &[0; 8]);
    let aligned = notes(8, &[long, (b"Xen\0", PHYS32_ENTRY, &(LOW + 1).to_le_bytes())]);
    let images = [
        // The judge knows the last PT_NOTE only.
        (and(&[pvh(LOW + 1), other]), (LOW + 1, end), (0, end)),
        // The judge takes every note for aligned to 4 bytes, whatever p_align says.
        (and(&[aligned]), (LOW + 1, end), (0, end)),
        // The judge's end leaves out a segment that has nothing in the file.
        (and(&[load(PF_R, LOW + 0x8000, vec![], 0x1000)]), (0, LOW + 0x9000), (0, end)),
    ];
    for (image, here, there) in images {
        let (facts, _) = ours(&image).unwrap();
        let (judged, _) = judge(&image).unwrap();
        assert_eq!((facts.pvh_entry, facts.load_end), here);
        assert_eq!((pvh_entry(&judged), judged.kernel_end), there);
    }
}

/// Segments apart from one another: what lies between one and the next, bytes in the file, bytes behind them, flags.
fn apart() -> impl Strategy<Value = Vec<Segment>> {
    let one = (0u64..0x3000, 0usize..0x1800, 0u64..0x2000, 0u32..8, any::<u8>());
    prop::collection::vec(one, 1..6).prop_map(|parts| {
        let mut at = LOW;
        let place = |(n, (gap, size, more, flags, seed)): (usize, (u64, usize, u64, u32, u8))| {
            at += gap;
            let size = if n == 0 { size + 1 } else { size };
            let bytes: Vec<u8> = (0..size).map(|i| seed ^ (i % 251) as u8).collect();
            let segment = load(if n == 0 { CODE } else { flags }, at, bytes, more);
            at += segment.0.p_memsz;
            segment
        };
        parts.into_iter().enumerate().map(place).collect()
    })
}

/// A byte of the headers and another value for it.
fn damage() -> impl Strategy<Value = Option<(usize, u8)>> {
    prop_oneof![2 => Just(None), 1 => (0usize..64 + 5 * 56, any::<u8>()).prop_map(Some), 1 => (
        prop::sample::select(vec![EI_CLASS, EI_VERSION, 16, 18, 24, 26, 56, 64, 68, 88, 90, 96, 104]), any::<u8>(),
    ).prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn what_both_take_lies_in_memory_byte_for_byte_the_same_and_is_entered_at_the_same_place(
        segments in apart(),
        order in any::<prop::sample::Index>(),
        pvh_at in prop_oneof![1 => Just(None), 2 => any::<prop::sample::Index>().prop_map(Some)],
        other_first in any::<bool>(),
        damage in damage(),
    ) {
        let code = &segments[0];
        let entry = code.0.p_paddr + code.1.len() as u64 - 1;
        let filled = segments.iter().filter(|segment| segment.0.p_filesz > 0).map(|s| s.0.p_paddr + s.0.p_memsz).max();
        let mut all = segments.clone();
        let turn = order.index(all.len());
        all.rotate_left(turn);
        if let Some(at) = &pvh_at {
            let at = (code.0.p_paddr as u32 + at.index(code.1.len()) as u32).to_le_bytes();
            let xen: (&[u8], u32, &[u8]) = (b"Xen\0", PHYS32_ENTRY, &at);
            let other: (&[u8], u32, &[u8]) = (b"GNU\0", PHYS32_ENTRY, &[0; 20]);
            all.push(notes(4, &if other_first { [other, xen] } else { [xen, other] }));
        }
        let mut image = elf(entry, &all);
        if let Some((at, byte)) = damage {
            let at = at.min(image.len() - 1);
            image[at] = byte;
        }
        match (ours(&image), judge(&image)) {
            (Ok((facts, ram)), Ok((judged, theirs))) => {
                prop_assert_eq!(GuestAddress(facts.entry), judged.kernel_load);
                prop_assert!(content(&File::from(ram.share().unwrap())) == content(&theirs));
                if damage.is_none() {
                    prop_assert_eq!(facts.pvh_entry, pvh_entry(&judged));
                    prop_assert_eq!(Some(judged.kernel_end), filled);
                }
            }
            (Err(error), Ok(_)) => prop_assert!(
                damage.is_some() && STRICTER.iter().any(|reason| error.contains(reason)), "{}", error,
            ),
            (Ok(_), Err(error)) => prop_assert!(damage.is_some(), "{}", error),
            (Err(_), Err(_)) => prop_assert!(damage.is_some()),
        }
    }
}
