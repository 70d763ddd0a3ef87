//! The state in which vCPUs begin: the first at the kernel's 64-bit entry (Documentation/arch/x86/boot.rst), the others where
//! the first one's INIT and start-up interrupts will send them.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::boot;
use crate::error::Error;
use crate::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back where none says otherwise. Linux sets up the PAT only where MTRRs are on.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets of the local vector table's entries in the APIC's registers (Intel SDM 3A, 11.4.1).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// Sets what all vCPUs begin with.
pub fn common(vcpu: &VcpuFd) -> Result<(), Error> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).map_err(|_| Error::KvmLacks("room for two MSRs"))?;
    let set = vcpu.set_msrs(&msrs).map_err(Error::kvm("set a vCPU's MSRs"))?;
    if set != entries.len() {
        return Err(Error::KvmLacks("the MSRs for fast strings and memory types"));
    }
    interrupt_pins(vcpu)
}

/// LINT0 takes a PC's external interrupts and LINT1 its NMIs, as the guest expects of firmware.
fn interrupt_pins(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut apic = vcpu.get_lapic().map_err(Error::kvm("read a local APIC"))?;
    for (register, mode) in [(APIC_LVT0, DELIVERY_EXTINT), (APIC_LVT1, DELIVERY_NMI)] {
        for (place, byte) in apic.regs.iter_mut().skip(register).zip(mode.to_le_bytes()) {
            *place = i8::from_ne_bytes([byte]);
        }
    }
    vcpu.set_lapic(&apic).map_err(Error::kvm("set a local APIC"))
}

/// Puts the first vCPU at the kernel's entry: long mode, one to one mapping, flat segments, interrupts off, the zero page's
/// address in RSI.
pub fn boot(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    let regs = kvm_regs { rip: entry, rsi: layout::BOOT_PARAMS, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(Error::kvm("set a vCPU's registers"))?;

    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("read a vCPU's system registers"))?;
    let (code, data) = (segment(2), segment(3));
    (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (code, data, data, data, data, data);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of_val(&boot::GDT) as u16 - 1;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(Error::kvm("set a vCPU's system registers"))
}

/// What the CPU holds of a descriptor of the boot GDT once it is loaded.
fn segment(index: u16) -> kvm_segment {
    let descriptor = boot::GDT.get(usize::from(index)).copied().unwrap_or_default();
    let bits = |shift: u32, count: u32| (descriptor >> shift & ((1 << count) - 1)) as u8;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: index * 8,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_segments_are_the_protocols() {
        let (code, data) = (segment(2), segment(3));
        assert_eq!((code.selector, code.type_, code.l, code.db, code.present, code.s), (0x10, 0xb, 1, 0, 1, 1));
        assert_eq!((data.selector, data.type_, data.l, data.db, data.present, data.s), (0x18, 3, 0, 1, 1, 1));
    }
}
