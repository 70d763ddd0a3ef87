//! ACPI tables of a hardware-reduced machine (ACPI 6.5, 4.1), one table a file: how the guest finds its processors, its virtio
//! devices, its serial port, its power button, and how it turns itself off. Writes guest RAM before the guest runs.

mod dsdt;
mod fadt;
mod madt;

use crate::error::Error;
use crate::layout::{ACPI, ACPI_END};
use crate::memory::Ram;
use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"VOLT  ";
const OEM_TABLE: [u8; 8] = *b"VOLTVM  ";
const OEM_REVISION: u32 = 1;
/// Tables begin on such a boundary.
const ALIGN: usize = 16;

/// Writes the tables for a machine of so many vCPUs and virtio devices.
pub fn write(ram: &Ram, vcpus: u16, devices: usize) -> Result<(), Error> {
    let tables = build(vcpus, devices)?;
    let room = ACPI_END - ACPI;
    if tables.len() as u64 > room {
        let why = format!("they have {} bytes of at most {room}", tables.len());
        return Err(Error::Fit { what: "The ACPI tables", why });
    }
    ram.write("The ACPI tables", ACPI, &tables)
}

/// All tables as they will lie at `ACPI`, the RSDP first.
fn build(vcpus: u16, devices: usize) -> Result<Vec<u8>, Error> {
    let mut tables = vec![0; Rsdp::len().next_multiple_of(ALIGN)];
    let dsdt = append(&mut tables, &dsdt::table(devices)?);
    let fadt = append(&mut tables, &bytes(&fadt::table(dsdt)));
    let madt = append(&mut tables, &bytes(&madt::table(vcpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut tables, &bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    if let Some(place) = tables.get_mut(..rsdp.len()) {
        place.copy_from_slice(&rsdp);
    }
    Ok(tables)
}

/// Appends a table and returns its guest physical address.
fn append(tables: &mut Vec<u8>, table: &[u8]) -> u64 {
    let address = ACPI + tables.len() as u64;
    tables.extend_from_slice(table);
    tables.resize(tables.len().next_multiple_of(ALIGN), 0);
    address
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{MAX_DEVICES, MAX_VCPUS};

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
    }

    /// The table at a guest physical address, its length and checksum checked.
    fn table(tables: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - ACPI).unwrap();
        let length = u32::from_le_bytes(*tables[at + 4..].first_chunk().unwrap()) as usize;
        let table = &tables[at..at + length];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{:?}", &table[..4]);
        table
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_and_adds_up() {
        let tables = build(2, 3).unwrap();
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!(tables[..36].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&tables, u64_at(&tables, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
        let fadt = table(&tables, u64_at(xsdt, 36));
        assert_eq!((&fadt[..4], fadt.len()), (&b"FACP"[..], 276));
        let madt = table(&tables, u64_at(xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        let dsdt = table(&tables, u64_at(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(dsdt.windows(8).filter(|window| window == b"LNRO0005").count(), 3);
    }

    #[test]
    fn largest_machine_has_room_for_its_tables() {
        let tables = build(MAX_VCPUS, MAX_DEVICES).unwrap();
        assert!((tables.len() as u64) <= ACPI_END - ACPI, "{}", tables.len());
    }
}
