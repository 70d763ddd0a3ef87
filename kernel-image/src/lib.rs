//! What a guest kernel is, said once: `kernel-store` keeps an ELF file for which [`Kernel::read`] answers, and `vmm-core` loads one
//! for which it does, so that nothing is kept which is refused later. Pure: headers come through a closure, and no other byte is asked for.
//!
//! A kernel is an ELF file for x86-64 that is linked to its place (`ET_EXEC`: nothing here relocates one), with 1 to [`MAX_HEADERS`]
//! program headers, whose segments lie inside the file, between [`LOWEST`] and [`HIGHEST`] and apart from one another, and whose entry
//! point is code of the file. What remains to the core is whether the guest has as much memory: with `HIGHEST` bytes it always has.
//!
//! Bounded by that: two reads of 64 and of at most `MAX_HEADERS` × 56 bytes, and comparisons of each segment with each.
//! (System V ABI, ELF-64 object file format.)

use std::ops::Range;

/// Most program headers; a Linux kernel has about five.
pub const MAX_HEADERS: u16 = 64;
/// Lowest guest physical address that a segment may occupy: below lie the real-mode area and the boot structures.
pub const LOWEST: u64 = 1 << 20;
/// One past the highest: as far as the page tables reach with which a guest begins.
pub const HIGHEST: u64 = 1 << 30;

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

/// What of the file goes where in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
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

impl Load {
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
pub struct Kernel {
    /// Guest physical address of the entry point.
    pub entry: u64,
    /// At least one, by address, apart from one another.
    pub loads: Vec<Load>,
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

impl Kernel {
    /// Reads the headers of a file of `size` bytes; `read` fills a slice from an offset, and is not asked for bytes beyond `size`.
    ///
    /// # Errors
    /// The first thing that is wrong; or what `read` fails with.
    pub fn read<E>(size: u64, mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>) -> Result<Kernel, Error<E>> {
        if size < EHDR as u64 {
            return Err(Wrong::Truncated(format!("the ELF header is truncated: {size} bytes of {EHDR}")).into());
        }
        let mut header = [0; EHDR];
        read(&mut header, 0).map_err(Error::Read)?;
        let (entries, offset) = table(&header)?;
        let mut table = vec![0; usize::from(entries).saturating_mul(PHDR)];
        if offset.checked_add(table.len() as u64).is_none_or(|end| end > size) {
            let why = format!("the ELF file is truncated: its {size} bytes end before its program headers do");
            return Err(Wrong::Truncated(why).into());
        }
        read(&mut table, offset).map_err(Error::Read)?;
        Ok(Kernel::of(u64_at(&header, 24), table.as_chunks::<PHDR>().0, size)?)
    }

    fn of(entry: u64, headers: &[[u8; PHDR]], size: u64) -> Result<Kernel, Wrong> {
        let (mut loads, mut notes) = (Vec::new(), Vec::new());
        for header in headers {
            let kind = u32_at(header, 0);
            let (offset, address) = (u64_at(header, 8), u64_at(header, 24));
            let (file_size, memory_size) = (u64_at(header, 32), u64_at(header, 40));
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
                notes.push(Notes { range: offset..end, align: u64_at(header, 48) });
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
            let executable = u32_at(header, 4) & PF_X != 0;
            loads.push(Load { address, offset, file_size, memory_size, executable });
        }
        loads.sort_by_key(|load| load.address);
        if loads.is_empty() {
            return Err(unfit("the ELF file has nothing to load"));
        }
        if let Some([below, above]) = loads.array_windows().find(|[below, above]| below.end() > above.address) {
            return Err(unfit(format!("the segments at {:#x} and {:#x} overlap", below.address, above.address)));
        }
        let kernel = Kernel { entry, loads, notes };
        kernel.check_code("entry point", entry)?;
        Ok(kernel)
    }

    /// Fails unless there is code of the file at `address`.
    ///
    /// # Errors
    /// [`Wrong::Unfit`], with `what` it is.
    pub fn check_code(&self, what: &str, address: u64) -> Result<(), Wrong> {
        let has = |load: &Load| load.executable && load.address <= address && address - load.address < load.file_size;
        if self.loads.iter().any(has) {
            return Ok(());
        }
        Err(unfit(format!("the {what}, {address:#x}, lies in no executable segment")))
    }

    /// Lowest guest physical address that it occupies.
    pub fn start(&self) -> u64 {
        self.loads.first().map_or(LOWEST, |load| load.address)
    }

    /// One past the highest.
    pub fn end(&self) -> u64 {
        self.loads.last().map_or(LOWEST, Load::end)
    }
}

/// How many program headers there are, and where.
fn table(header: &[u8; EHDR]) -> Result<(u16, u64), Wrong> {
    if !header.starts_with(b"\x7fELF") {
        return Err(unfit("what the image unpacks to is no ELF file"));
    }
    // EI_CLASS, EI_DATA, EI_VERSION.
    if header.get(4..7) != Some(&[2, 1, 1]) {
        return Err(unfit("the ELF file is not of the 64-bit little-endian kind"));
    }
    match u16_at(header, 18) {
        EM_X86_64 => {}
        EM_AARCH64 => return Err(unfit("the kernel is for aarch64")),
        other => return Err(unfit(format!("the kernel is for the machine with ELF number {other}"))),
    }
    match u16_at(header, 16) {
        ET_EXEC => {}
        ET_DYN => return Err(unfit("the ELF file is of type 3, position-independent, and nothing relocates it")),
        other => return Err(unfit(format!("the ELF file is of type {other}, not an executable"))),
    }
    let (entries, entry_size) = (u16_at(header, 56), usize::from(u16_at(header, 54)));
    if entry_size != PHDR || !(1..=MAX_HEADERS).contains(&entries) {
        return Err(unfit(format!(
            "the ELF file has {entries} program headers of {entry_size} bytes, in place of 1 to {MAX_HEADERS} of {PHDR}"
        )));
    }
    Ok((entries, u64_at(header, 32)))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

#[cfg(test)]
mod tests;
