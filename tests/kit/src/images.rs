//! Images for tests: small ELF kernels, packed and wrapped as the kernel's build does it.
#![allow(missing_docs, clippy::cast_possible_truncation)]

pub use crate::elf::{LOAD, NOTE, R_X, RW, Segment, elf};

use std::io::Write;
use std::process::{Command, Stdio};

/// The segments of a plausible kernel with `size` bytes of code that depend on `seed`, a PVH entry and a banner.
pub fn segments(seed: u8, size: usize) -> Vec<Segment> {
    let mut state = u32::from(seed) + 1;
    let mut text: Vec<u8> = (0..size)
        .map(|n| {
            // Compressible, but not to nothing.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if n % 4 == 0 { (state >> 24) as u8 } else { seed }
        })
        .collect();
    let banner = format!("Linux version 6.{seed}.0-test (builder@host) #1 SMP\n\0");
    let at = size / 2;
    text[at..at + banner.len()].copy_from_slice(banner.as_bytes());
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x100_0040u32.to_le_bytes());
    vec![
        Segment { kind: LOAD, flags: R_X, address: 0x100_0000, memory_size: size as u64, bytes: text },
        Segment { kind: LOAD, flags: RW, address: 0x800_0000, memory_size: 0x20_0000, bytes: vec![seed; 4096] },
        Segment { kind: NOTE, flags: 4, address: 0, memory_size: 0, bytes: note },
    ]
}

/// A plausible kernel.
pub fn kernel(seed: u8) -> Vec<u8> {
    kernel_of(seed, 64 << 10)
}

pub fn kernel_of(seed: u8, size: usize) -> Vec<u8> {
    elf(0x100_0000, &segments(seed, size))
}

/// A bzImage around a packed kernel.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SETUP: usize = 5 * 512;
    let mut image = vec![0; SETUP];
    let version = b"6.99.0-wrapped (builder@host) #1 SMP\0";
    image[0x400..0x400 + version.len()].copy_from_slice(version);
    let offset = 0x2ccu32;
    image.resize(SETUP + offset as usize, 0xcc);
    image.extend(payload);
    image.resize((image.len() - SETUP).next_multiple_of(16) + SETUP, 0xcc);
    let syssize = ((image.len() - SETUP) / 16) as u32;
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1f4, &syssize.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x20e, &0x200u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x248, &offset.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    image
}

/// What the build appends to all but gzip.
pub fn with_size(mut packed: Vec<u8>, unpacked: usize) -> Vec<u8> {
    packed.extend((unpacked as u32).to_le_bytes());
    packed
}

/// Legacy lz4: magic, then blocks of 8 MiB, each behind its size.
pub fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// What a command makes of its input; `None` where the host does not have it.
pub fn tool(command: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        crate::skip!("this host has no {}", command[0]);
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command:?} failed");
    Some(output.stdout)
}

/// As the kernel's build calls them (scripts/Makefile.lib, scripts/xz_wrap.sh).
pub const TOOLS: [&[&str]; 6] = [
    &["gzip", "-n", "-f", "-9"],
    &["xz", "--check=crc32", "--x86", "--lzma2=dict=128MiB"],
    &["xz", "--check=sha256", "--x86", "--lzma2=preset=6"],
    &["lz4", "-l", "-9", "-", "-"],
    &["zstd", "-22", "--ultra", "-q"],
    &["zstd", "-3", "-q"],
];
