//! ELF files for tests: what a kernel is to its loader.
#![allow(missing_docs, clippy::cast_possible_truncation)]

/// A segment of a kernel that is made for a test.
#[derive(Clone)]
pub struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub address: u64,
    pub memory_size: u64,
    pub bytes: Vec<u8>,
}

pub const LOAD: u32 = 1;
pub const NOTE: u32 = 4;
pub const R_X: u32 = 5;
pub const RW: u32 = 6;

/// An ELF file of these segments.
pub fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for long in [entry, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = (64 + 56 * segments.len()) as u64;
    for segment in segments {
        file.extend(segment.kind.to_le_bytes());
        file.extend(segment.flags.to_le_bytes());
        let size = segment.bytes.len() as u64;
        for long in [offset, segment.address, segment.address, size, segment.memory_size, 4] {
            file.extend(long.to_le_bytes());
        }
        offset += size;
    }
    for segment in segments {
        file.extend(&segment.bytes);
    }
    file
}
