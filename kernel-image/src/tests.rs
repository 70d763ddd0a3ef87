//! Tests of the contract, on both sides of each of its limits.

use super::*;
use proptest::prelude::*;

/// A program header: type, flags, offset, address, bytes in the file, bytes in memory.
#[derive(Clone, Copy, Debug)]
struct Header(u32, u32, u64, u64, u64, u64);

const CODE: u32 = 5;

fn load(address: u64, offset: u64, file_size: u64, memory_size: u64) -> Header {
    Header(PT_LOAD, CODE, offset, address, file_size, memory_size)
}

fn elf(entry: u64, headers: &[Header], size: usize) -> Vec<u8> {
    let mut image = vec![0u8; size.max(EHDR + PHDR * headers.len())];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    for (at, half) in [(16, ET_EXEC), (18, EM_X86_64), (54, PHDR as u16), (56, headers.len() as u16)] {
        put(at, &half.to_le_bytes());
    }
    put(24, &entry.to_le_bytes());
    put(32, &(EHDR as u64).to_le_bytes());
    for (n, Header(kind, flags, offset, address, file_size, memory_size)) in headers.iter().enumerate() {
        let at = EHDR + n * PHDR;
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, file_size), (40, memory_size)] {
            put(at + field, &value.to_le_bytes());
        }
    }
    image
}

fn read(image: &[u8]) -> Result<Headers, Wrong> {
    let size = image.len() as u64;
    let read = Headers::read(size, |bytes: &mut [u8], offset| {
        bytes.copy_from_slice(&image[offset as usize..][..bytes.len()]);
        Ok::<_, ()>(())
    });
    read.map_err(|error| match error {
        Error::Wrong(wrong) => wrong,
        Error::Read(()) => unreachable!(),
    })
}

fn refused(image: &[u8], why: &str) -> Wrong {
    let wrong = read(image).expect_err(why);
    assert!(wrong.why().contains(why), "expected {why:?}, got {wrong:?}");
    wrong
}

#[test]
fn segments_limits_hold_on_both_sides() {
    let one = |load: Header| elf(load.3, &[load], 0x2000);
    let fits = |load: Header| read(&one(load)).unwrap();
    let kernel = fits(load(LOWEST, 0x1000, 0x1000, 0x3000));
    assert_eq!((kernel.start(), kernel.end()), (LOWEST, LOWEST + 0x3000));
    refused(&one(load(LOWEST - 1, 0x1000, 0x1000, 0x1000)), "between 1 MiB and 1 GiB");
    fits(load(HIGHEST - 0x1000, 0x1000, 0x1000, 0x1000));
    refused(&one(load(HIGHEST - 0x1000, 0x1000, 0x1000, 0x1001)), "between 1 MiB and 1 GiB");
    refused(&one(load(u64::MAX, 0x1000, 1, 0x1000)), "between 1 MiB and 1 GiB");
    assert!(matches!(refused(&one(load(LOWEST, 0x1001, 0x1000, 0x1000)), "truncated"), Wrong::Truncated(_)));
    refused(&one(load(LOWEST, u64::MAX, 0x1000, 0x1000)), "truncated");
    refused(&one(load(LOWEST, 0x1000, 0x1000, 0xfff)), "4096 bytes in the file and 4095 in memory");
    refused(&one(load(LOWEST, 0x1000, 0, 0)), "nothing to load");
}

#[test]
fn segments_may_touch_but_not_overlap_in_whatever_order() {
    let two = |second| elf(LOWEST, &[load(LOWEST, 0, 0x100, 0x1000), load(second, 0, 0x100, 0x1000)], 0x2000);
    read(&two(LOWEST + 0x1000)).unwrap();
    refused(&two(LOWEST + 0xfff), "overlap");
    refused(&two(LOWEST), "overlap");
    let above = elf(LOWEST, &[load(LOWEST + 0x1000, 0, 0x100, 0x1000), load(LOWEST, 0, 0x100, 0x1000)], 0x2000);
    assert_eq!(read(&above).unwrap().end(), LOWEST + 0x2000);
}

#[test]
fn entry_has_to_be_code_of_the_file() {
    let code = [load(LOWEST, 0, 0x100, 0x1000)];
    read(&elf(LOWEST + 0xff, &code, 0x2000)).unwrap();
    for entry in [LOWEST - 1, LOWEST + 0x100, 0, u64::MAX] {
        refused(&elf(entry, &code, 0x2000), "in no executable segment");
    }
    refused(&elf(LOWEST, &[Header(PT_LOAD, 6, 0, LOWEST, 0x100, 0x1000)], 0x2000), "in no executable segment");
    let kernel = read(&elf(LOWEST, &code, 0x2000)).unwrap();
    assert!(kernel.check_code("x", LOWEST + 1).is_ok() && kernel.check_code("x", LOWEST + 0x100).is_err());
}

#[test]
fn as_many_headers_as_the_limit_are_read_and_one_more_is_refused() {
    let with = |count: usize| {
        let more = Header(PT_NOTE, 4, 0, 0, 4, 4);
        let headers: Vec<_> = [load(LOWEST, 0, 0x100, 0x1000)].into_iter().chain([more; 70]).take(count).collect();
        elf(LOWEST, &headers, 0x8000)
    };
    assert_eq!(read(&with(MAX_HEADERS.into())).unwrap().notes.len(), usize::from(MAX_HEADERS) - 1);
    refused(&with(usize::from(MAX_HEADERS) + 1), "65 program headers");
    refused(&with(0), "0 program headers");
}

#[test]
fn other_files_are_refused_by_what_they_are_with_a_remedy_that_helps() {
    let good = elf(LOWEST, &[load(LOWEST, 0, 0x40, 0x40)], 0);
    read(&good).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    for (at, bytes, why) in [
        (0, &[0][..], "no ELF file"),
        (4, &[1], "64-bit"),
        (5, &[2], "little-endian"),
        (16, &[1, 0], "type 1"),
        (16, &[3, 0], "position-independent"),
        (18, &[183, 0], "aarch64"),
        (18, &[40, 0], "number 40"),
        (54, &[55, 0], "program headers of 55 bytes"),
        (EHDR, &[3, 0, 0, 0], "runs on Linux"),
    ] {
        assert_eq!(refused(&with(at, bytes), why).remedy(), GIVE_KERNEL);
    }
    for image in [&with(32, &[0xff; 8]), &good[..good.len() - 1], &good[..EHDR - 1], &[]] {
        assert_eq!(refused(image, "truncated").remedy(), COPY_AGAIN);
    }
}

proptest! {
    #[test]
    fn whatever_the_headers_say_the_answer_keeps_the_contract(
        entry in any::<u64>(),
        raw in prop::collection::vec((0u32..6, 4u32..8, any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..6),
        near in any::<bool>(),
    ) {
        let small = |value: u64, limit: u64| if near { value % limit } else { value };
        let headers: Vec<_> = raw.iter().map(|(kind, flags, offset, address, file_size, memory_size)| Header(
            *kind, *flags, small(*offset, 0x1800), small(*address, HIGHEST + 0x1000), small(*file_size, 0x1800), small(*memory_size, 0x4000),
        )).collect();
        let entry = if near { headers.first().map_or(0, |header| header.3) } else { entry };
        let image = elf(entry, &headers, 0x1000);
        if let Ok(kernel) = read(&image) {
            prop_assert!(kernel.start() >= LOWEST && kernel.end() <= HIGHEST);
            prop_assert!(kernel.segments.iter().all(|segment| segment.offset + segment.file_size <= image.len() as u64));
            prop_assert!(kernel.segments.array_windows().all(|[below, above]| below.end() <= above.address));
            prop_assert!(kernel.notes.iter().all(|notes| notes.range.end <= image.len() as u64));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(rest in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&rest);
        let _ = read(&[&b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0"[..], &rest].concat());
    }
}
