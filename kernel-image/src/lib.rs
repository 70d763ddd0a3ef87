//! What a guest kernel is, said once: `kernel-store` keeps an ELF file for which [`Headers::read`] answers, and `vmm-core` loads one
//! for which it does, so that nothing is kept which is refused later. Pure: headers come through a closure, and no other byte is asked for.
//!
//! A kernel is an ELF file for x86-64 that is linked to its place (`ET_EXEC`: nothing here relocates one), with 1 to [`MAX_HEADERS`]
//! program headers, whose segments lie inside the file, between [`LOWEST`] and [`HIGHEST`] and apart from one another, and whose entry
//! point is code of the file. It lies in a memfd with the [`SEALS`] that keep it so. What remains to the core is whether the guest has as much memory: with `HIGHEST` bytes it always has.
//!
//! Bounded by that: reads of one header of 64 and at most `MAX_HEADERS` of 56 bytes, and comparisons of neighbours. (System V ABI,
//! ELF-64 object file format; its structures are the `linux-loader` crate's, filled by copy from the little-endian file.)

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::ops::Range;

use linux_loader::elf::{
    EI_CLASS, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT, Elf64_Ehdr,
    Elf64_Phdr, PF_X, PT_INTERP, PT_LOAD, PT_NOTE,
};
use rustix::fs::SealFlags;
use vm_memory::ByteValued;

/// Most program headers; a Linux kernel has about five.
pub const MAX_HEADERS: u16 = 64;
/// Lowest guest physical address that a segment may occupy: below lie the real-mode area and the boot structures.
pub const LOWEST: u64 = 1 << 20;
/// One past the highest: as far as the page tables reach with which a guest begins.
pub const HIGHEST: u64 = 1 << 30;

/// What a memfd that holds a kernel is sealed against: every change of what was checked. The store seals its seals as well.
pub const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

const EHDR: usize = size_of::<Elf64_Ehdr>();
const PHDR: usize = size_of::<Elf64_Phdr>();

/// Why a file is no kernel. Nothing that the guest is given can change it: another file is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// It ends before what it says of itself.
    Truncated(String),
    /// It is something else, or asks for something else than a guest has.
    Unfit(String),
}

impl Wrong {
    /// What is wrong, and where.
    pub fn why(&self) -> &str {
        match self {
            Wrong::Truncated(why) | Wrong::Unfit(why) => why,
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Wrong::Truncated(_) => COPY_AGAIN,
            Wrong::Unfit(_) => GIVE_KERNEL,
        }
    }
}

/// The remedy for what has been cut short or changed on its way.
pub const COPY_AGAIN: &str = "Copy the image again from where it came from";
/// The remedy for what is no kernel.
pub const GIVE_KERNEL: &str = "Give a Linux bzImage (such as /boot/vmlinuz-*) or an uncompressed ELF kernel (vmlinux) for x86-64 that is linked \
     to addresses between 1 MiB and 1 GiB";

/// A PT_LOAD segment: what of the file goes where in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes of it in the file.
    pub file_size: u64,
    /// Bytes of it in the guest; those beyond the file's are zero.
    pub memory_size: u64,
    executable: bool,
}

impl Segment {
    /// One past its last byte in the guest.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_size)
    }
}

/// Where notes lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes {
    /// The range in the file.
    pub range: Range<u64>,
    /// What they are aligned to.
    pub align: u64,
}

/// A kernel's headers, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// Guest physical address of the entry point.
    pub entry: u64,
    /// At least one, by address, apart from one another.
    pub segments: Vec<Segment>,
    /// In the order of the headers.
    pub notes: Vec<Notes>,
}

/// Why there is no answer: the file is [`Wrong`], or it could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The file is no kernel.
    Wrong(Wrong),
    /// The closure failed.
    Read(E),
}

impl<E> From<Wrong> for Error<E> {
    fn from(wrong: Wrong) -> Error<E> {
        Error::Wrong(wrong)
    }
}

fn unfit(why: impl Into<String>) -> Wrong {
    Wrong::Unfit(why.into())
}

impl Headers {
    /// Reads the headers of a file of `size` bytes; `read` fills a slice from an offset, and is not asked for bytes beyond `size`.
    ///
    /// # Errors
    /// The first thing that is wrong; or what `read` fails with.
    pub fn read<E>(size: u64, mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>) -> Result<Headers, Error<E>> {
        if size < EHDR as u64 {
            return Err(Wrong::Truncated(format!("the ELF header is truncated: {size} bytes of {EHDR}")).into());
        }
        let mut header = Elf64_Ehdr::default();
        read(header.as_mut_slice(), 0).map_err(Error::Read)?;
        let entries = check(&header)?;
        let mut headers = vec![Elf64_Phdr::default(); entries.into()];
        let (offset, length) = (header.e_phoff, PHDR.saturating_mul(headers.len()) as u64);
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let why = format!("the ELF file is truncated: its {size} bytes end before its program headers do");
            return Err(Wrong::Truncated(why).into());
        }
        for (header, at) in headers.iter_mut().zip((offset..).step_by(PHDR)) {
            read(header.as_mut_slice(), at).map_err(Error::Read)?;
        }
        Ok(Headers::of(header.e_entry, &headers, size)?)
    }

    fn of(entry: u64, headers: &[Elf64_Phdr], size: u64) -> Result<Headers, Wrong> {
        let (mut segments, mut notes) = (Vec::new(), Vec::new());
        for header in headers {
            let (kind, offset, address) = (header.p_type, header.p_offset, header.p_paddr);
            let (file_size, memory_size) = (header.p_filesz, header.p_memsz);
            if kind == PT_INTERP {
                return Err(unfit("the ELF file is a program that runs on Linux, not a kernel"));
            }
            if !matches!(kind, PT_LOAD | PT_NOTE) {
                continue;
            }
            let Some(end) = offset.checked_add(file_size).filter(|end| *end <= size) else {
                let why = format!(
                    "the ELF file is truncated: a segment needs {file_size} bytes at {offset}, and the file has {size}"
                );
                return Err(Wrong::Truncated(why));
            };
            if kind == PT_NOTE {
                notes.push(Notes { range: offset..end, align: header.p_align });
                continue;
            }
            if file_size > memory_size {
                return Err(unfit(format!("a segment has {file_size} bytes in the file and {memory_size} in memory")));
            }
            if memory_size == 0 {
                continue;
            }
            if address < LOWEST || address.checked_add(memory_size).is_none_or(|end| end > HIGHEST) {
                return Err(unfit(format!(
                    "a segment of {memory_size:#x} bytes at {address:#x} does not lie between 1 MiB and 1 GiB"
                )));
            }
            let executable = header.p_flags & PF_X != 0;
            segments.push(Segment { address, offset, file_size, memory_size, executable });
        }
        segments.sort_by_key(|segment| segment.address);
        if segments.is_empty() {
            return Err(unfit("the ELF file has nothing to load"));
        }
        if let Some([below, above]) = segments.array_windows().find(|[below, above]| below.end() > above.address) {
            return Err(unfit(format!("the segments at {:#x} and {:#x} overlap", below.address, above.address)));
        }
        let kernel = Headers { entry, segments, notes };
        kernel.check_code("entry point", entry)?;
        Ok(kernel)
    }

    /// Fails unless there is code of the file at `address`.
    ///
    /// # Errors
    /// [`Wrong::Unfit`], with `what` it is.
    pub fn check_code(&self, what: &str, address: u64) -> Result<(), Wrong> {
        let has = |segment: &Segment| {
            segment.executable && segment.address <= address && address - segment.address < segment.file_size
        };
        if self.segments.iter().any(has) {
            return Ok(());
        }
        Err(unfit(format!("the {what}, {address:#x}, lies in no executable segment")))
    }

    /// Lowest guest physical address that it occupies.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(LOWEST, |segment| segment.address)
    }

    /// One past the highest.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(LOWEST, Segment::end)
    }
}

/// How many program headers there are, if it is an ELF file that can be a kernel.
fn check(header: &Elf64_Ehdr) -> Result<u16, Wrong> {
    if !header.e_ident.starts_with(ELFMAG) {
        return Err(unfit("what the image unpacks to is no ELF file"));
    }
    // EI_CLASS, EI_DATA, EI_VERSION.
    if header.e_ident.get(EI_CLASS..).is_none_or(|kind| !kind.starts_with(&[ELFCLASS64, ELFDATA2LSB, EV_CURRENT])) {
        return Err(unfit("the ELF file is not of the 64-bit little-endian kind"));
    }
    match header.e_machine {
        EM_X86_64 => {}
        EM_AARCH64 => return Err(unfit("the kernel is for aarch64")),
        other => return Err(unfit(format!("the kernel is for the machine with ELF number {other}"))),
    }
    match header.e_type {
        ET_EXEC => {}
        ET_DYN => return Err(unfit("the ELF file is of type 3, position-independent, and nothing relocates it")),
        other => return Err(unfit(format!("the ELF file is of type {other}, not an executable"))),
    }
    let (entries, entry_size) = (header.e_phnum, usize::from(header.e_phentsize));
    if entry_size != PHDR || !(1..=MAX_HEADERS).contains(&entries) {
        return Err(unfit(format!(
            "the ELF file has {entries} program headers of {entry_size} bytes, in place of 1 to {MAX_HEADERS} of {PHDR}"
        )));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
