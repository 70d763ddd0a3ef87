//! What an ELF kernel says of itself, beyond what makes it a kernel (the `kernel-image` crate): its PVH entry point, by the XEN ELF
//! note (xen/include/public/elfnote.h), and its release string. Pure.

use kernel_image::{Headers, Notes};
use linux_loader::elf::Elf64_Nhdr;

use super::{Error, GIVE_KERNEL, MAX_VERSION, bad, field, printable, structure};

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const NHDR: usize = size_of::<Elf64_Nhdr>();
/// Bytes that all notes together may have: a Linux kernel has some five hundred. Each is looked at once, whatever they say.
pub const MAX_NOTES: u64 = 64 << 10;

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

/// Checks a kernel: its facts, less the version.
///
/// # Errors
/// [`Wrong`](kernel_image::Wrong) with the first thing that is wrong.
pub fn check(file: &[u8]) -> Result<Facts, Error> {
    let read = |bytes: &mut [u8], offset: u64| {
        let from = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)?.get(..bytes.len()));
        from.map(|from| bytes.copy_from_slice(from)).ok_or(())
    };
    let wrong = |wrong: kernel_image::Wrong| bad(wrong.why(), wrong.remedy());
    let kernel = Headers::read(file.len() as u64, read).map_err(|error| match error {
        kernel_image::Error::Wrong(it) => wrong(it),
        // It asks for nothing beyond the size that it was told.
        kernel_image::Error::Read(()) => bad("the ELF file ends before it should", kernel_image::COPY_AGAIN),
    })?;
    let pvh_entry = pvh_entry(file, &kernel.notes)?;
    if pvh_entry != 0 {
        kernel.check_code("PVH entry point", pvh_entry).map_err(wrong)?;
    }
    let (load_start, load_end) = (kernel.start(), kernel.end());
    Ok(Facts { entry: kernel.entry, load_start, load_end, pvh_entry, version: String::new() })
}

/// The entry point that a XEN note names; 0 if none does.
fn pvh_entry(file: &[u8], notes: &[Notes]) -> Result<u64, Error> {
    let size =
        notes.iter().fold(0u64, |size, notes| size.saturating_add(notes.range.end.saturating_sub(notes.range.start)));
    if size > MAX_NOTES {
        return Err(bad(format!("the ELF file has {size} bytes of notes, and {MAX_NOTES} are the most"), GIVE_KERNEL));
    }
    let entry = notes.iter().find_map(|notes| {
        let (start, end) = (usize::try_from(notes.range.start).ok()?, usize::try_from(notes.range.end).ok()?);
        xen_phys32_entry(file.get(start..end)?, if notes.align == 8 { 8 } else { 4 })
    });
    Ok(entry.unwrap_or(0))
}

fn xen_phys32_entry(mut notes: &[u8], align: usize) -> Option<u64> {
    loop {
        let header: Elf64_Nhdr = structure(notes, 0)?;
        let (name_size, size) = (header.n_namesz as usize, header.n_descsz as usize);
        let name = notes.get(NHDR..)?.get(..name_size)?;
        let at = name_size.checked_add(NHDR)?.checked_next_multiple_of(align)?;
        let value = notes.get(at..)?.get(..size)?;
        if name == b"Xen\0" && header.n_type == XEN_ELFNOTE_PHYS32_ENTRY {
            return match size {
                4 => field(value, 0).map(|bytes| u64::from(u32::from_le_bytes(bytes))),
                _ => field(value, 0).map(u64::from_le_bytes),
            };
        }
        notes = notes.get(at.checked_add(size)?.checked_next_multiple_of(align)?..)?;
    }
}

const BANNER: &[u8] = b"Linux version ";

/// Looks for the release string of the banner that every Linux kernel has (init/version.c) between `from` and `to`, where it may begin.
pub fn find_version(file: &[u8], from: usize, to: usize) -> Option<String> {
    let end = to.saturating_add(BANNER.len() + MAX_VERSION).min(file.len());
    let mut rest = file.get(from..end)?;
    // One past the last place where the banner may begin, counted from the end.
    let beyond = end.saturating_sub(to);
    while let Some(at) = rest.iter().position(|byte| *byte == b'L') {
        rest = rest.get(at..)?;
        if rest.len() <= beyond {
            return None;
        }
        if let Some(version) = rest.strip_prefix(BANNER)
            && version.first().is_some_and(u8::is_ascii_digit)
        {
            return Some(printable(version));
        }
        rest = rest.get(1..)?;
    }
    None
}
