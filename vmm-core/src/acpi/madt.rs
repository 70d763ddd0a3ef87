//! MADT (ACPI 6.5, 5.2.12): one local APIC a vCPU, whose ids count up from 0, and one I/O APIC from interrupt 0 on. No 8259s.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{IO_APIC, LOCAL_APIC};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

/// The table; at most 254 vCPUs.
pub fn table(vcpus: u16) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in (0..=u8::MAX).take(vcpus.into()) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}
