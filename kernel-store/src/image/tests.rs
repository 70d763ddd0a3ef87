//! Tests of reading images.

use proptest::prelude::*;

use super::*;

pub(crate) use testkit::images;
use testkit::images::*;

#[test]
fn schema_says_what_a_kernel_is_held_to() {
    let lines = include_str!("../../../schema/kernel_store.capnp").lines();
    let text = lines.map(|line| line.trim_start_matches([' ', '#'])).collect::<Vec<_>>().join(" ");
    for says in [
        format!("at most {} MiB, and the ELF {} MiB", MAX_INPUT >> 20, MAX_OUTPUT >> 20),
        format!("1 to {} program headers and at most {} KiB of notes", kernel_image::MAX_HEADERS, elf::MAX_NOTES >> 10),
        format!("between {} MiB and {} GiB of guest", kernel_image::LOWEST >> 20, kernel_image::HIGHEST >> 30),
    ] {
        assert!(text.contains(&says), "{says}");
    }
}

fn load(image: &[u8]) -> Result<(Vec<u8>, Facts), Error> {
    load_into(image, 32 << 20)
}

fn load_into(image: &[u8], room: usize) -> Result<(Vec<u8>, Facts), Error> {
    let mut out = vec![0; room];
    let mut loading = Loading::new(Arc::new(image.to_vec()))?;
    let Loaded { len, digest, facts } = loop {
        if let Some(loaded) = loading.step(&mut out)? {
            break loaded;
        }
    };
    out.truncate(len);
    assert_eq!(digest, Digest::of(&out));
    Ok((out, facts))
}

fn why(result: Result<(Vec<u8>, Facts), Error>) -> String {
    match result {
        Err(Error { why, remedy }) => {
            assert!(!remedy.is_empty());
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plain_elf_file_gives_its_facts() {
    let file = kernel(7);
    let (out, facts) = load(&file).unwrap();
    assert_eq!(out, file);
    let version = "6.7.0-test (builder@host) #1 SMP".to_owned();
    let expected =
        Facts { entry: 0x100_0000, load_start: 0x100_0000, load_end: 0x820_0000, pvh_entry: 0x100_0040, version };
    assert_eq!(facts, expected);
}

#[test]
fn every_packing_is_unpacked_alone_and_in_a_bzimage() {
    let file = kernel_of(3, 1 << 20);
    let packings = [("gzip", gzip(&file)), ("lz4", lz4(&file)), ("zstd", zstd(&file))];
    let tools = TOOLS.iter().filter_map(|command| Some((command[0], tool(command, &file)?)));
    for (name, packed) in packings.into_iter().chain(tools) {
        let (out, facts) = load(&packed).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(out == file, "{name}");
        assert!(facts.version.starts_with("6.3.0-test"), "{name}");
        let payload = if name == "gzip" { packed } else { with_size(packed, file.len()) };
        let (out, facts) = load(&bzimage(&payload)).unwrap_or_else(|e| panic!("{name} in a bzImage: {e}"));
        assert!(out == file, "{name}");
        assert_eq!(facts.version, "6.99.0-wrapped (builder@host) #1 SMP");
    }
}

#[test]
fn lz4_data_of_several_blocks_and_frames_are_unpacked() {
    let file = kernel_of(3, 9 << 20);
    let packed = lz4(&file);
    assert!(load(&packed).unwrap().0 == file);
    assert!(load(&bzimage(&with_size(packed, file.len()))).unwrap().0 == file);
    let (first, second) = file.split_at(8 << 20);
    assert!(load(&[lz4(first), lz4(second)].concat()).unwrap().0 == file);
}

#[test]
fn what_is_truncated_is_named() {
    let file = kernel(1);
    let cut = |bytes: &[u8], len: usize| bytes[..len].to_vec();
    for packed in [gzip(&file), lz4(&file), zstd(&file)].into_iter().chain(tool(&["xz"], &file)) {
        for len in [packed.len() / 2, packed.len() - 1] {
            let why = why(load(&cut(&packed, len)));
            assert!(why.contains("data are truncated") || why.contains("damaged"), "{why}");
        }
        assert!(why(load(&cut(&packed, packed.len() / 2))).contains("data are truncated"));
    }
    let image = bzimage(&gzip(&file));
    assert!(why(load(&cut(&image, image.len() - 16))).contains("bzImage is truncated"));
    assert!(why(load(&cut(&image, 0x230))).contains("setup header of the bzImage is truncated"));
    assert!(why(load(&cut(&file, file.len() - 1))).contains("ELF file is truncated"));
    assert!(why(load(&cut(&file, 100))).contains("program headers"));
    assert!(why(load(&cut(&file, 20))).contains("ELF header is truncated"));
}

#[test]
fn damage_is_found_by_each_formats_own_checksum() {
    let file = kernel(1);
    for packed in
        [gzip(&file), tool(&["zstd", "-q"], &file).unwrap_or_default(), tool(&["xz"], &file).unwrap_or_default()]
    {
        if packed.is_empty() {
            continue;
        }
        for at in [packed.len() / 3, packed.len() / 2, packed.len() - 30] {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            assert!(load(&damaged).is_err(), "{:x?} {at}", &packed[..4]);
        }
    }
}

#[test]
fn the_appended_size_has_to_match_and_nothing_else_may_follow() {
    let file = kernel(1);
    let packed = zstd(&file);
    load(&bzimage(&packed)).unwrap();
    assert!(why(load(&bzimage(&with_size(packed.clone(), file.len() + 1)))).contains("and the image says"));
    assert!(why(load(&bzimage(&[packed.clone(), vec![0; 8]].concat()))).contains("8 unexpected bytes"));
    assert!(why(load(&with_size(packed, file.len()))).contains("4 unexpected bytes"));
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let bomb = vec![0; 4 << 20];
    let limit = 1 << 20;
    let mut packed = vec![gzip(&bomb), lz4(&bomb), zstd(&bomb)];
    packed.extend(TOOLS.iter().filter_map(|command| tool(command, &bomb)));
    for packed in packed {
        let why = why(load_into(&packed, limit));
        assert!(why.contains("unpacks to more than 1048576 bytes"), "{:x?}: {why}", &packed[..4]);
    }
}

#[test]
fn a_kernel_that_just_fits_is_taken_and_one_that_is_a_byte_larger_is_not() {
    let file = kernel(1);
    for packed in [file.clone(), gzip(&file), lz4(&file), zstd(&file)].into_iter().chain(tool(&["xz"], &file)) {
        load_into(&packed, file.len()).unwrap();
        assert!(why(load_into(&packed, file.len() - 1)).contains("unpacks to more than"));
    }
}

#[test]
fn other_packings_and_other_files_are_refused_by_name() {
    for (bytes, name) in [
        (&b"BZh91AY"[..], "bzip2"),
        (b"\x5d\0\0\x80", "lzma"),
        (b"\x89LZO\0", "lzo"),
        (b"\x04\x22\x4d\x18", "new frame format"),
    ] {
        assert!(why(load(bytes)).contains(name));
    }
    assert!(why(load(b"#!/bin/sh")).contains("nothing that is known"));
    assert!(why(load(b"")).contains("is empty"));
    assert!(
        why(load(&gzip(b"just text that is long enough to hold an ELF header, but is none at all")))
            .contains("no ELF file")
    );
}

/// How many steps an image takes, and what comes of it.
fn steps(image: Vec<u8>, room: usize) -> (usize, Result<Loaded, Error>) {
    let mut out = vec![0; room];
    let mut loading = match Loading::new(Arc::new(image)) {
        Ok(loading) => loading,
        Err(error) => return (0, Err(error)),
    };
    for n in 1.. {
        match loading.step(&mut out) {
            Ok(None) => {}
            Ok(Some(loaded)) => return (n, Ok(loaded)),
            Err(error) => return (n, Err(error)),
        }
    }
    unreachable!()
}

#[test]
fn what_takes_long_takes_many_steps_however_it_is_packed() {
    const LEN: usize = 4 << 20;
    let file = kernel_of(3, LEN);
    let packings = [("plain", file.clone()), ("gzip", gzip(&file)), ("zstd", zstd(&file))];
    let tools = [("xz", tool(&["xz", "-0"], &file))].into_iter().filter_map(|(name, packed)| Some((name, packed?)));
    for (name, packed) in packings.into_iter().chain(tools) {
        let (steps, loaded) = steps(packed, 8 << 20);
        assert_eq!(loaded.unwrap().len, file.len(), "{name}");
        // Out in parts of at most 512 KiB, then the search for the release string, which is in the middle.
        assert!(steps >= 8 + 2, "{name}: {steps}");
    }
}

/// Packed data that say nothing at great length: `unit` again and again, behind a beginning.
fn long_winded(begin: &[u8], unit: &[u8], len: usize) -> Vec<u8> {
    [begin, &unit.repeat(len / unit.len())].concat()
}

#[test]
fn packed_data_that_say_next_to_nothing_at_great_length_are_given_up_within_a_step() {
    const LEN: usize = 4 << 20;
    // A gzip header, and stored blocks of no bytes; a zstd frame header (window of 128 KiB), and raw blocks of no bytes.
    let gzip = long_winded(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff], &[0, 0, 0, 0xff, 0xff], LEN);
    let zstd = long_winded(&[0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3], &[0, 0, 0], LEN);
    for (name, image) in [("gzip", gzip), ("zstd", zstd)] {
        let (steps, loaded) = steps(image, 1 << 20);
        let error = loaded.unwrap_err();
        assert!(error.why.contains(name) && error.why.contains("holds next to nothing"), "{error}");
        assert_eq!(steps, 1, "{name}");
    }
}

#[test]
fn notes_are_looked_at_once_and_up_to_a_limit() {
    let with = |bytes: usize, times: usize| {
        let mut segments = segments(1, 8192);
        let mut note = std::mem::replace(&mut segments[2].bytes, vec![0; bytes]);
        // Empty notes, and the one that counts behind them.
        note.splice(0..0, vec![0; bytes - note.len()]);
        segments[2].bytes = note;
        let one = segments[2].clone();
        segments.extend(std::iter::repeat_n(one, times - 1));
        load(&elf(0x100_0000, &segments))
    };
    let most = usize::try_from(elf::MAX_NOTES).unwrap();
    // Notes of twelve zero bytes each, so that the last one is found only where the sum comes out even.
    assert_eq!(with((most - 20) / 12 * 12 + 20, 1).unwrap().1.pvh_entry, 0x100_0040);
    assert!(why(with(most + 4, 1)).contains("bytes of notes"));
    assert!(with(most / 4, 4).is_ok());
    assert!(why(with(most / 4 + 4, 4)).contains("bytes of notes"));
}

#[test]
fn a_release_string_is_found_across_the_steps_of_the_search() {
    let banner = b"Linux version 6.1.2-x\n";
    let mut file = vec![b'L'; 3 * CHUNK];
    for at in [0, CHUNK - 5, CHUNK, 2 * CHUNK - 1, 3 * CHUNK - banner.len()] {
        file[at..at + banner.len()].copy_from_slice(banner);
        let found: Vec<_> = (0..3).filter_map(|n| elf::find_version(&file, n * CHUNK, (n + 1) * CHUNK)).collect();
        assert_eq!(found, ["6.1.2-x"], "{at}");
        file[at..at + banner.len()].fill(b'L');
    }
}

#[test]
fn setup_headers_that_contradict_themselves_are_refused() {
    let good = bzimage(&gzip(&kernel(1)));
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        load(&image)
    };
    load(&good).unwrap();
    assert!(why(with(0x206, &[7, 2])).contains("boot protocol 2.07"));
    assert!(why(with(0x211, &[0])).contains("zImage"));
    assert!(why(with(0x1f4, &u32::MAX.to_le_bytes())).contains("truncated"));
    assert!(why(with(0x248, &u32::MAX.to_le_bytes())).contains("packed kernel"));
    assert!(why(with(0x24c, &u32::MAX.to_le_bytes())).contains("packed kernel"));
    assert!(why(with(0x24c, &0u32.to_le_bytes())).contains("packed kernel"));
    // A release string that lies nowhere is no reason to refuse; the banner has it too.
    assert!(with(0x20e, &u16::MAX.to_le_bytes()).unwrap().1.version.starts_with("6.1.0-test"));
    // Without its mark it is no bzImage, and nothing else that is known.
    assert!(why(with(0x202, b"HdrX")).contains("nothing that is known"));
}

/// A kernel whose segments were changed, and what is said of it.
fn changed(change: impl FnOnce(&mut Vec<Segment>)) -> Result<(Vec<u8>, Facts), Error> {
    let mut segments = segments(1, 8192);
    change(&mut segments);
    load(&elf(0x100_0000, &segments))
}

#[test]
fn segments_have_to_lie_between_one_mebibyte_and_one_gibibyte() {
    let second =
        |address: u64, memory_size: u64| changed(move |s| (s[1].address, s[1].memory_size) = (address, memory_size));
    second(LOWEST_TEST, 4096).unwrap();
    assert!(why(second(LOWEST_TEST - 1, 4096)).contains("1 MiB"));
    second((1 << 30) - 4096, 4096).unwrap();
    assert!(why(second((1 << 30) - 4096, 4097)).contains("1 GiB"));
    assert!(why(second(u64::MAX - 4096, 8192)).contains("1 GiB"));
}

const LOWEST_TEST: u64 = 1 << 20;

#[test]
fn segments_may_touch_but_not_overlap() {
    let second = |address: u64| changed(move |s| (s[1].address, s[1].memory_size) = (address, 4096));
    second(0x100_0000 + 8192).unwrap();
    assert!(why(second(0x100_0000 + 8191)).contains("overlap"));
    assert!(why(second(0x100_0000 - 4095)).contains("overlap"));
    second(0x100_0000 - 4096).unwrap();
}

#[test]
fn a_segment_may_not_have_more_in_the_file_than_in_memory() {
    changed(|s| s[1].memory_size = 4096).unwrap();
    assert!(why(changed(|s| s[1].memory_size = 4095)).contains("4096 bytes in the file and 4095 in memory"));
}

#[test]
fn entry_points_have_to_be_code_of_the_file() {
    let entry = |address: u64| load(&elf(address, &segments(1, 8192)));
    entry(0x100_0000 + 8191).unwrap();
    for address in [0x100_0000 - 1, 0x100_0000 + 8192, 0x800_0000, 0] {
        assert!(why(entry(address)).contains("entry point"));
    }
    let pvh = |address: u32| changed(move |s| s[2].bytes[16..20].copy_from_slice(&address.to_le_bytes()));
    assert_eq!(pvh(0x100_1fff).unwrap().1.pvh_entry, 0x100_1fff);
    assert!(why(pvh(0x100_2000)).contains("PVH entry point"));
    assert_eq!(changed(|s| s[2].bytes[8] = 17).unwrap().1.pvh_entry, 0, "another note");
    assert_eq!(changed(|s| s[2].bytes.truncate(10)).unwrap().1.pvh_entry, 0, "a note that is cut short");
}

#[test]
fn other_elf_files_are_refused_by_what_they_are() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = kernel(1);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        why(load(&file))
    };
    assert!(with(4, &[1]).contains("64-bit"));
    assert!(with(5, &[2]).contains("little-endian"));
    assert!(with(16, &[1, 0]).contains("type 1"));
    assert!(with(18, &[183, 0]).contains("aarch64"));
    assert!(with(18, &[40, 0]).contains("number 40"));
    assert!(with(54, &[32, 0]).contains("program headers"));
    assert!(with(56, &[0, 0]).contains("0 program headers"));
    assert!(with(56, &[65, 0]).contains("65 program headers"));
    assert!(with(16, &[3, 0]).contains("position-independent"));
    assert!(with(32, &u64::MAX.to_le_bytes()).contains("program headers"));
    assert!(why(changed(|s| s[2].kind = 3)).contains("runs on Linux"));
    assert!(why(changed(|s| s.retain(|s| s.kind == NOTE))).contains("nothing to load"));
}

#[test]
fn a_release_string_is_one_printable_line_of_bounded_length() {
    assert_eq!(printable(b"6.1 \x1b[31m\xff\nsecond"), "6.1 ?[31m?");
    assert_eq!(printable(&[b'x'; 300]).len(), MAX_VERSION);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn arbitrary_bytes_behind_any_magic_never_panic(magic in prop::sample::select(vec![
        &b""[..], b"\x1f\x8b\x08\x00", b"\xfd7zXZ\0", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\x7fELF\x02\x01\x01",
    ]), rest in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = load_into(&[magic, &rest].concat(), 1 << 20);
    }

    #[test]
    fn mutated_images_never_panic_and_what_passes_is_whole(
        which in 0usize..5, at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), cuts in any::<bool>()
    ) {
        let file = elf(0x100_0000, &segments(1, 2048));
        let images = [file.clone(), gzip(&file), with_size(lz4(&file), file.len()), zstd(&file), Vec::new()];
        let mut image = match which { 4 => bzimage(&images[1]), 2 => bzimage(&images[2]), n => images[n].clone() };
        for (at, byte) in at {
            let at = at.index(image.len());
            image[at] = byte;
        }
        if cuts {
            image.truncate(cut.index(image.len()));
        }
        if let Ok((out, facts)) = load_into(&image, 1 << 20) {
            prop_assert!(facts.load_start >= kernel_image::LOWEST && facts.load_end <= kernel_image::HIGHEST && facts.load_start < facts.load_end);
            prop_assert_eq!(elf::check(&out).unwrap().entry, facts.entry);
        }
    }

    #[test]
    fn mutated_headers_never_panic(at in prop::collection::vec((0usize..400, any::<u8>()), 1..12), bz in any::<bool>()) {
        let file = elf(0x100_0000, &segments(1, 2048));
        let mut image = if bz { bzimage(&gzip(&file)) } else { file };
        for (at, byte) in at {
            let at = if bz { 0x1f0 + at % 0x70 } else { at % 300 };
            image[at] = byte;
        }
        let _ = load_into(&image, 1 << 20);
    }
}
