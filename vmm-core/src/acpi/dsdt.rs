//! DSDT (ACPI 6.5, 5.2.11.1): the serial port, the virtio-mmio devices, the power button with the generic event device that
//! reports it, and the sleep type of S5.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::error::Error;
use crate::layout::{
    GED_GSI, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, SLEEP_TYPE_S5, VIRTIO_GSI, VIRTIO_MMIO, VIRTIO_MMIO_SIZE,
};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

/// Value of a notification that a button was pressed (5.6.6, table 5.164).
const BUTTON_PRESSED: u8 = 0x80;

/// The table for so many virtio devices.
pub fn table(devices: usize) -> Result<Vec<u8>, Error> {
    let mut aml = Vec::new();
    sleep_state().to_aml_bytes(&mut aml);
    serial(&mut aml);
    power_button(&mut aml);
    for index in 0..devices {
        virtio(&mut aml, index)?;
    }
    // Revision 2: integers have 64 bits.
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(&aml);
    sdt.update_checksum();
    Ok(sdt.as_slice().to_vec())
}

/// All interrupts are edges of active-high lines that nobody shares: they come from irqfds.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// `_S5` (7.4.2.6): the value for the sleep control register. The second element is for registers this machine lacks.
fn sleep_state() -> Name {
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &ZERO]))
}

fn system_bus(aml: &mut Vec<u8>, children: Vec<&dyn Aml>) {
    Scope::new("_SB_".into(), children).to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    let ports = u8::try_from(SERIAL_PORTS).unwrap_or(u8::MAX);
    let io = IO::new(SERIAL_PORT, SERIAL_PORT, 1, ports);
    let line = interrupt(SERIAL_GSI);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &ZERO);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &line]));
    system_bus(aml, vec![&Device::new("COM1".into(), vec![&hid, &uid, &crs])]);
}

/// The button (4.8.3.2.2) and the event device (5.6.9), whose one interrupt means that the button was pressed.
fn power_button(aml: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    let uid = Name::new("_UID".into(), &ZERO);
    system_bus(aml, vec![&Device::new("PWRB".into(), vec![&hid, &uid])]);

    let hid = Name::new("_HID".into(), &"ACPI0013");
    let line = interrupt(GED_GSI);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line]));
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let evt = Method::new("_EVT".into(), 1, true, vec![&notify]);
    system_bus(aml, vec![&Device::new("GED_".into(), vec![&hid, &uid, &crs, &evt])]);
}

fn virtio(aml: &mut Vec<u8>, index: usize) -> Result<(), Error> {
    let fit = || Error::Fit { what: "A virtio device", why: format!("its index is {index}") };
    let number = u32::try_from(index).map_err(|_| fit())?;
    let base = VIRTIO_MMIO.checked_add(u64::from(number) * VIRTIO_MMIO_SIZE);
    let base = base.and_then(|base| u32::try_from(base).ok()).ok_or_else(fit)?;
    let size = u32::try_from(VIRTIO_MMIO_SIZE).map_err(|_| fit())?;
    let gsi = VIRTIO_GSI.checked_add(number).filter(|gsi| *gsi < GED_GSI).ok_or_else(fit)?;

    let registers = Memory32Fixed::new(true, base, size);
    let line = interrupt(gsi);
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &number);
    let cca = Name::new("_CCA".into(), &1u8);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &line]));
    let name = Path::new(&format!("V{number:03X}"));
    system_bus(aml, vec![&Device::new(name, vec![&hid, &uid, &cca, &crs])]);
    Ok(())
}
