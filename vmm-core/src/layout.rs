//! Where things are in the guest's physical address space and its I/O ports: constants only, so that the code which writes a
//! place and the table which announces it cannot disagree.

use schema::limits;

// What a VM may have, a machine can be made with.
const _: () =
    assert!(limits::MIN_MEMORY >= RAM_MIN && limits::MAX_VCPUS <= MAX_VCPUS && 2 * limits::MAX_DEVICES <= MAX_DEVICES);

/// Most vCPUs: APIC ids are a byte, and 255 is the broadcast address.
pub const MAX_VCPUS: u16 = 254;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// GDT of the boot state (Linux x86 boot protocol, 64-bit entry).
pub const GDT: u64 = 0x500;
/// The zero page, `struct boot_params`.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Boot page tables: PML4, then one PDPT, then one page directory of 2 MiB pages.
pub const PML4: u64 = 0x9000;
/// Page directory pointer table.
pub const PDPT: u64 = 0xa000;
/// Page directory. What it maps, one to one, ends where a kernel has to: at [`kernel_image::HIGHEST`].
pub const PD: u64 = 0xb000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes of the longest command line, the NUL included (x86 `COMMAND_LINE_SIZE`).
pub const CMDLINE_SIZE: usize = limits::MAX_CMDLINE + 1;
/// End of the low usable memory; above lie what a PC has for its EBDA and video memory.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables, RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// End of the room for ACPI tables, and of what the memory map reserves for them.
pub const ACPI_END: u64 = 0xf_f000;
/// Where a PC's processor starts, F000:FFF0. A stock Linux without EFI jumps there to reset a machine with hardware-reduced ACPI.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Lowest address a kernel segment may occupy.
pub const HIGH_START: u64 = kernel_image::LOWEST;

/// End of the RAM below the hole for devices.
pub const RAM_LOW_LIMIT: u64 = 3 << 30;
/// Where the rest of the RAM goes on.
pub const RAM_HIGH_START: u64 = 4 << 30;
/// Least bytes of RAM a machine may have.
pub const RAM_MIN: u64 = 16 << 20;
/// Most bytes of RAM a machine may have.
pub const RAM_MAX: u64 = limits::MAX_MEMORY;

/// First virtio-mmio register block; device n has the n-th page from here.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of one register block.
pub const VIRTIO_MMIO_SIZE: u64 = crate::virtio::MMIO_SIZE;
/// Interrupt of the first virtio device.
pub const VIRTIO_GSI: u32 = 5;
/// Most devices: their interrupts end where the event device's begins.
pub const MAX_DEVICES: usize = (GED_GSI - VIRTIO_GSI) as usize;
/// Interrupt of the generic event device, the last pin of the I/O APIC.
pub const GED_GSI: u32 = 23;

/// I/O APIC and local APIC, where KVM has them.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on hosts without unrestricted guests.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One more, for its identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of a 16550.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt of COM1.
pub const SERIAL_GSI: u32 = 4;
/// i8042 data port; its command port is four further on.
pub const I8042_PORT: u16 = 0x60;
/// ACPI sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// What the guest writes to `RESET_PORT`.
pub const RESET_VALUE: u8 = 0x52;
/// SLP_TYP of the soft-off state S5, as the DSDT's `_S5` announces it.
pub const SLEEP_TYPE_S5: u8 = 5;
