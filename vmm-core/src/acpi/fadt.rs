//! FADT (ACPI 6.5, 5.2.9): a hardware-reduced machine without any legacy device, with reset and sleep registers.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// IA-PC boot architecture flags (table 5.11): no VGA to probe, no CMOS clock. That there is no bit for an 8042 and none for
/// legacy devices spares the guest their probing; the 8042's reset command works all the same.
const BOOT_ARCH: u16 = VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The table; `dsdt` is the DSDT's address.
pub fn table(dsdt: u64) -> FADT {
    let port = |address: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into());
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Both buttons are control-method devices or absent: none is in a fixed register.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    table.iapc_boot_arch = BOOT_ARCH.into();
    table.reset_reg = port(RESET_PORT);
    table.reset_value = RESET_VALUE;
    table.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    table.sleep_status_reg = port(SLEEP_STATUS_PORT);
    table.hypervisor_vendor_identity = u64::from_le_bytes(*b"VOLT\0\0\0\0").into();
    table.finalize()
}
