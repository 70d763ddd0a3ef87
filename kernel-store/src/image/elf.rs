//! Whether an ELF file is a kernel that `vmm-core` may load as it is: System V ABI, ELF-64 object file format; PVH by the XEN ELF note
//! (xen/include/public/elfnote.h). Pure.

use super::{COPY_AGAIN, Error, GIVE_KERNEL, bad, field, printable};

const EHDR: usize = 64;
const PHDR: usize = 56;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// A kernel has five or so.
const MAX_SEGMENTS: u16 = 128;

/// Lowest guest physical address that a segment may occupy: below lie the real-mode area and the boot structures.
pub const LOWEST: u64 = 1 << 20;
/// One past the highest: above lies the hole for devices.
pub const HIGHEST: u64 = 3 << 30;

/// What a kernel says of itself, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Guest physical address of the entry point.
    pub entry: u64,
    /// Lowest guest physical address of a segment.
    pub load_start: u64,
    /// One past the highest.
    pub load_end: u64,
    /// Entry point of the PVH ABI; 0 if there is none.
    pub pvh_entry: u64,
    /// Release string; empty if it is not known.
    pub version: String,
}

struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_size)
    }

    /// Whether code at this address comes from the file.
    fn has_code_at(&self, address: u64) -> bool {
        self.kind == PT_LOAD
            && self.flags & PF_X != 0
            && self.address <= address
            && address - self.address < self.file_size
    }
}

/// Checks a kernel: its facts, less the version.
///
/// # Errors
/// [`Error::Bad`] with the first thing that is wrong.
pub fn check(file: &[u8]) -> Result<Facts, Error> {
    let segments = segments(file)?;
    let mut loads: Vec<&Segment> =
        segments.iter().filter(|segment| segment.kind == PT_LOAD && segment.memory_size > 0).collect();
    for load in &loads {
        let Segment { address, memory_size, .. } = load;
        let end = address.checked_add(*memory_size);
        if *address < LOWEST || end.is_none_or(|end| end > HIGHEST) {
            let why =
                format!("a segment of {memory_size:#x} bytes at {address:#x} does not lie between 1 MiB and 3 GiB");
            return Err(bad(why, GIVE_KERNEL));
        }
    }
    loads.sort_by_key(|load| load.address);
    let (Some(first), Some(last)) = (loads.first(), loads.last()) else {
        return Err(bad("the ELF file has nothing to load", GIVE_KERNEL));
    };
    if let Some([below, above]) = loads.array_windows().find(|[below, above]| below.end() > above.address) {
        return Err(bad(format!("the segments at {:#x} and {:#x} overlap", below.address, above.address), GIVE_KERNEL));
    }
    let executable = |what: &str, address: u64| {
        let why = || format!("the {what}, {address:#x}, lies in no executable segment");
        if loads.iter().any(|load| load.has_code_at(address)) { Ok(()) } else { Err(bad(why(), GIVE_KERNEL)) }
    };
    let entry = field(file, 24).map_or(0, u64::from_le_bytes);
    executable("entry point", entry)?;
    let pvh_entry = pvh_entry(file, &segments);
    if pvh_entry != 0 {
        executable("PVH entry point", pvh_entry)?;
    }
    Ok(Facts { entry, load_start: first.address, load_end: last.end(), pvh_entry, version: String::new() })
}

/// The program headers, each of which lies inside the file.
fn segments(file: &[u8]) -> Result<Vec<Segment>, Error> {
    if file.len() < EHDR {
        return Err(bad(format!("the ELF header is truncated: {} bytes of {EHDR}", file.len()), COPY_AGAIN));
    }
    let half = |at| field(file, at).map_or(0, u16::from_le_bytes);
    if !file.starts_with(b"\x7fELF") {
        return Err(bad("what the image unpacks to is no ELF file", GIVE_KERNEL));
    }
    // EI_CLASS, EI_DATA, EI_VERSION.
    if field(file, 4) != Some([2, 1, 1]) {
        return Err(bad("the ELF file is not of the 64-bit little-endian kind", GIVE_KERNEL));
    }
    match half(18) {
        EM_X86_64 => {}
        EM_AARCH64 => return Err(bad("the kernel is for aarch64", GIVE_KERNEL)),
        other => return Err(bad(format!("the kernel is for the machine with ELF number {other}"), GIVE_KERNEL)),
    }
    match half(16) {
        ET_EXEC | ET_DYN => {}
        other => return Err(bad(format!("the ELF file is of type {other}, not an executable"), GIVE_KERNEL)),
    }
    let (entries, entry_size, offset) =
        (half(56), usize::from(half(54)), field(file, 32).map_or(0, u64::from_le_bytes));
    if entry_size != PHDR || !(1..=MAX_SEGMENTS).contains(&entries) {
        let why = format!(
            "the ELF file has {entries} program headers of {entry_size} bytes, in place of 1 to {MAX_SEGMENTS} of {PHDR}"
        );
        return Err(bad(why, GIVE_KERNEL));
    }
    let size = usize::from(entries).saturating_mul(PHDR);
    let table = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)?.get(..size));
    let table = table.ok_or_else(|| {
        bad(
            format!("the ELF file is truncated: its {} bytes end before its program headers do", file.len()),
            COPY_AGAIN,
        )
    })?;
    let (headers, _) = table.as_chunks::<PHDR>();
    headers.iter().map(|header| segment(header, file.len() as u64)).collect()
}

fn segment(header: &[u8; PHDR], file: u64) -> Result<Segment, Error> {
    let word = |at| field(header, at).map_or(0, u32::from_le_bytes);
    let long = |at| field(header, at).map_or(0, u64::from_le_bytes);
    let segment = Segment {
        kind: word(0),
        flags: word(4),
        offset: long(8),
        address: long(24),
        file_size: long(32),
        memory_size: long(40),
        align: long(48),
    };
    if segment.kind == PT_INTERP {
        return Err(bad("the ELF file is a program that runs on Linux, not a kernel", GIVE_KERNEL));
    }
    if !matches!(segment.kind, PT_LOAD | PT_NOTE) {
        return Ok(segment);
    }
    let Segment { offset, file_size, memory_size, .. } = segment;
    if offset.checked_add(file_size).is_none_or(|end| end > file) {
        let why = format!(
            "the ELF file is truncated: a segment needs {file_size} bytes at {offset}, and the file has {file}"
        );
        return Err(bad(why, COPY_AGAIN));
    }
    if segment.kind == PT_LOAD && file_size > memory_size {
        return Err(bad(
            format!("a segment has {file_size} bytes in the file and {memory_size} in memory"),
            GIVE_KERNEL,
        ));
    }
    Ok(segment)
}

/// The entry point that a XEN note names; 0 if none does.
fn pvh_entry(file: &[u8], segments: &[Segment]) -> u64 {
    let notes = segments.iter().filter(|segment| segment.kind == PT_NOTE);
    notes
        .filter_map(|note| {
            let bytes = file.get(usize::try_from(note.offset).ok()?..)?;
            let bytes = bytes.get(..usize::try_from(note.file_size).ok()?)?;
            xen_phys32_entry(bytes, if note.align == 8 { 8 } else { 4 })
        })
        .next()
        .unwrap_or(0)
}

fn xen_phys32_entry(mut notes: &[u8], align: usize) -> Option<u64> {
    loop {
        let word = |at| field(notes, at).map(u32::from_le_bytes);
        let (name_size, size, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let name = notes.get(12..)?.get(..name_size)?;
        let at = name_size.checked_add(12)?.checked_next_multiple_of(align)?;
        let value = notes.get(at..)?.get(..size)?;
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            return match size {
                4 => field(value, 0).map(|bytes| u64::from(u32::from_le_bytes(bytes))),
                _ => field(value, 0).map(u64::from_le_bytes),
            };
        }
        notes = notes.get(at.checked_add(size)?.checked_next_multiple_of(align)?..)?;
    }
}

/// The release string of the banner that every Linux kernel has (init/version.c); empty if there is none.
pub fn find_version(file: &[u8]) -> String {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = file;
    while let Some(at) = rest.iter().position(|byte| *byte == b'L') {
        rest = rest.get(at..).unwrap_or_default();
        if let Some(version) = rest.strip_prefix(BANNER)
            && version.first().is_some_and(u8::is_ascii_digit)
        {
            return printable(version);
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    String::new()
}
