//! What the 64-bit entry of the Linux x86 boot protocol (Documentation/arch/x86/boot.rst) asks for beside the kernel: the zero
//! page, the command line, the initrd, page tables and a GDT. Writes guest RAM before the guest runs.

use crate::error::Error;
use crate::kernel::Loaded;
use crate::layout::{self, ACPI, ACPI_END, BOOT_PARAMS, CMDLINE, HIGH_START, LOW_END, PAGE, RAM_HIGH_START};
use crate::memory::{Ram, page_down};
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use vm_memory::ByteValued;

/// Kinds of memory (`enum e820_type`, Linux, arch/x86/include/asm/e820/types.h).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

/// `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// The boot protocol that `write` follows: 2.15.
const PROTOCOL: u16 = 0x020f;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// What a guest runs that resets through the processor's start address: in real mode, `mov al, 0xfe; out 0x64, al; hlt`, the
/// i8042's reset. Without it such a guest would run whatever its memory holds, for ever.
const RESET_CODE: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// GDT: null, unused, 64-bit code (selector 0x10, `__BOOT_CS`), data (0x18, `__BOOT_DS`).
pub const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// An initrd in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Where it begins, a page boundary.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
}

/// Copies the initrd to the end of low RAM, where the kernel's own allocations do not start.
pub fn load_initrd(file: OwnedFd, ram: &Ram, kernel: &Loaded) -> Result<Option<Initrd>, Error> {
    let file = File::from(file);
    let size = file.metadata().map_err(Error::load("look at the initrd"))?.len();
    if size == 0 {
        return Ok(None);
    }
    let initrd = place_initrd(size, ram.low(), kernel.end)?;
    ram.copy("The initrd", initrd.gpa, file.as_fd(), 0, size)?;
    Ok(Some(initrd))
}

fn place_initrd(size: u64, ram_end: u64, kernel_end: u64) -> Result<Initrd, Error> {
    let gpa = ram_end.checked_sub(size).map(page_down).filter(|gpa| *gpa >= kernel_end);
    gpa.map(|gpa| Initrd { gpa, size }).ok_or_else(|| Error::Fit {
        what: "The initrd",
        why: format!("it has {size} bytes, between the kernel's end at {kernel_end:#x} and {ram_end:#x}"),
    })
}

/// Writes zero page, command line, page tables and GDT. The command line goes in as it was given: `linux_loader`'s `Cmdline` would
/// trim it and refuse what is not ASCII.
pub fn write(ram: &Ram, cmdline: &str, initrd: Option<Initrd>) -> Result<(), Error> {
    let mut text = Vec::with_capacity(cmdline.len() + 1);
    text.extend_from_slice(cmdline.as_bytes());
    text.push(0);
    if text.len() > layout::CMDLINE_SIZE {
        let why = format!("it has {} bytes of at most {}", text.len(), layout::CMDLINE_SIZE);
        return Err(Error::Fit { what: "The command line", why });
    }
    ram.write("The command line", CMDLINE, &text)?;
    ram.write("The zero page", BOOT_PARAMS, zero_page(ram.size(), initrd).as_slice())?;
    ram.write("The page tables", layout::PML4, &page_tables())?;
    let gdt: Vec<u8> = GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    ram.write("The reset vector", layout::RESET_VECTOR, &RESET_CODE)?;
    ram.write("The GDT", layout::GDT, &gdt)
}

/// `struct boot_params` (Documentation/arch/x86/zero-page.rst).
fn zero_page(ram_size: u64, initrd: Option<Initrd>) -> boot_params {
    let mut page = boot_params { acpi_rsdp_addr: ACPI, ..Default::default() };
    page.hdr.boot_flag = BOOT_FLAG;
    page.hdr.header = u32::from_le_bytes(*b"HdrS");
    page.hdr.version = PROTOCOL;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    if let Some(initrd) = initrd {
        // Low RAM ends at 3 GiB: both fit into their 32 bits.
        page.hdr.ramdisk_image = initrd.gpa as u32;
        page.hdr.ramdisk_size = initrd.size as u32;
    }
    page.hdr.cmd_line_ptr = CMDLINE as u32;
    page.hdr.cmdline_size = layout::CMDLINE_SIZE as u32 - 1; // without the NUL
    let map = e820(ram_size);
    page.e820_entries = map.len() as u8;
    for (entry, region) in page.e820_table.iter_mut().zip(map) {
        *entry = region;
    }
    page
}

/// Memory map, in order, without overlap.
fn e820(ram_size: u64) -> Vec<boot_e820_entry> {
    let low = ram_size.min(layout::RAM_LOW_LIMIT);
    let region = |addr, size, r#type| boot_e820_entry { addr, size, r#type };
    let mut map = vec![
        region(0, LOW_END, E820_RAM),
        region(ACPI, ACPI_END - ACPI, E820_ACPI),
        region(ACPI_END, HIGH_START - ACPI_END, E820_RESERVED),
        region(HIGH_START, low.saturating_sub(HIGH_START), E820_RAM),
    ];
    if ram_size > low {
        map.push(region(RAM_HIGH_START, ram_size - low, E820_RAM));
    }
    map
}

/// PML4, PDPT and one page directory, which map the first GiB one to one with 2 MiB pages. They are neighbours in this order.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let table = |first: u64| {
        let mut table = vec![0; PAGE as usize];
        table.splice(..8, (first | PRESENT_WRITABLE).to_le_bytes());
        table
    };
    let directory = (0..512u64).flat_map(|i| ((i << 21) | PRESENT_WRITABLE | LARGE).to_le_bytes());
    table(layout::PDPT).into_iter().chain(table(layout::PD)).chain(directory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initrd_ends_at_the_top_of_low_ram_and_never_reaches_the_kernel() {
        let top = 64 << 20;
        assert_eq!(place_initrd(0x1001, top, 0x200_0000).unwrap(), Initrd { gpa: top - 0x2000, size: 0x1001 });
        assert!(place_initrd(top - 0x200_0000, top, 0x200_0000).is_ok());
        assert!(place_initrd(top - 0x200_0000 + 1, top, 0x200_0000).is_err());
        assert!(place_initrd(u64::MAX, top, 0x200_0000).is_err());
    }

    #[test]
    fn memory_map_covers_all_ram_but_the_legacy_hole_without_overlap() {
        for size in [layout::RAM_MIN, layout::RAM_LOW_LIMIT, layout::RAM_LOW_LIMIT + PAGE, layout::RAM_MAX] {
            let map = e820(size);
            assert!(map.windows(2).all(|pair| pair[0].addr + pair[0].size <= pair[1].addr), "{size:#x}");
            let ram: u64 = map.iter().filter(|entry| entry.r#type == E820_RAM).map(|entry| entry.size).sum();
            assert_eq!(ram, size - (HIGH_START - LOW_END));
        }
    }

    #[test]
    fn zero_page_says_where_everything_is() {
        let page = zero_page(1 << 30, Some(Initrd { gpa: 0x3fff_0000, size: 0x1234 }));
        let page = page.as_slice();
        assert_eq!(page[0x70..0x78], ACPI.to_le_bytes());
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x218..0x21c], 0x3fff_0000u32.to_le_bytes());
        assert_eq!(page[0x21c..0x220], 0x1234u32.to_le_bytes());
        assert_eq!(page[0x228..0x22c], 0x2_0000u32.to_le_bytes());
        assert_eq!(page[0x1e8], 4);
        assert_eq!(page[0x2d0 + 60..0x2d0 + 68], HIGH_START.to_le_bytes());
    }

    #[test]
    fn command_line_longer_than_the_kernel_reads_is_refused() {
        let ram = Ram::new(layout::RAM_MIN).unwrap();
        assert!(write(&ram, &"x".repeat(layout::CMDLINE_SIZE - 1), None).is_ok());
        assert!(write(&ram, &"x".repeat(layout::CMDLINE_SIZE), None).is_err());
    }

    #[test]
    fn boot_page_tables_map_the_first_gigabyte_one_to_one() {
        let tables = page_tables();
        let entry = |at: usize| u64::from_le_bytes(*tables[at..].first_chunk().unwrap());
        assert_eq!(entry(0), layout::PDPT | 3);
        assert_eq!(entry(0x1000), layout::PD | 3);
        assert_eq!(entry(0x2000), 0x83);
        assert_eq!(entry(0x2000 + 511 * 8), (511 << 21) | 0x83);
        assert_eq!(512u64 << 21, kernel_image::HIGHEST);
    }

    #[test]
    fn boot_data_do_not_overlap() {
        let cmdline_end = CMDLINE + layout::CMDLINE_SIZE as u64;
        let places = [
            layout::GDT,
            layout::GDT + 32,
            BOOT_PARAMS,
            BOOT_PARAMS + PAGE,
            layout::PML4,
            layout::PD + PAGE,
            CMDLINE,
            cmdline_end,
            LOW_END,
        ];
        assert!(places.is_sorted());
    }
}
