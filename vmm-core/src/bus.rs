//! Which device a guest's access goes to. Total: any port or address, any size, any value, in any order has a defined result,
//! which is that of a PC. What nobody answers reads as ones, and writes to it are lost.

use std::sync::Arc;

use crate::layout::{
    I8042_PORT, RESET_PORT, SERIAL_PORT, SERIAL_PORTS, SLEEP_CONTROL_PORT, VIRTIO_MMIO, VIRTIO_MMIO_SIZE,
};
use crate::power::{I8042_LAST, Power};
use crate::serial::Com1;

const SERIAL_LAST: u16 = SERIAL_PORT + SERIAL_PORTS - 1;

/// One page of registers, such as a virtio transport's. Both calls are total.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// All that a guest's instructions reach beside its RAM and what KVM has in itself.
pub struct Bus {
    com1: Arc<Com1>,
    power: Power,
    devices: Vec<Arc<dyn BusDevice>>,
}

impl Bus {
    /// `devices` have one page each from `VIRTIO_MMIO` on.
    pub fn new(com1: Arc<Com1>, power: Power, devices: Vec<Arc<dyn BusDevice>>) -> Bus {
        Bus { com1, power, devices }
    }

    /// The guest reads `data.len()` bytes at `port`: as on an 8-bit bus, one after the other from consecutive ports.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        for (offset, byte) in (0..).zip(data) {
            let port = port.wrapping_add(offset);
            *byte = match port {
                SERIAL_PORT..=SERIAL_LAST => self.com1.read(register(port, SERIAL_PORT)),
                I8042_PORT | I8042_LAST => self.power.read_i8042(register(port, I8042_PORT)),
                SLEEP_CONTROL_PORT..=RESET_PORT => 0,
                _ => u8::MAX,
            };
        }
    }

    /// The guest writes `data` at `port`, likewise.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        for (offset, byte) in (0..).zip(data) {
            let port = port.wrapping_add(offset);
            match port {
                SERIAL_PORT..=SERIAL_LAST => self.com1.write(register(port, SERIAL_PORT), *byte),
                I8042_PORT | I8042_LAST => self.power.write_i8042(register(port, I8042_PORT), *byte),
                SLEEP_CONTROL_PORT..=RESET_PORT => self.power.write_acpi(port, *byte),
                _ => {}
            }
        }
    }

    fn device(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let from_base = address.checked_sub(VIRTIO_MMIO)?;
        let index = usize::try_from(from_base / VIRTIO_MMIO_SIZE).ok()?;
        Some((&**self.devices.get(index)?, from_base % VIRTIO_MMIO_SIZE))
    }

    /// The guest reads `data.len()` bytes at a physical address that is not RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(u8::MAX);
        if let Some((device, offset)) = self.device(address) {
            device.read(offset, data);
        }
    }

    /// The guest writes `data` there.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            device.write(offset, data);
        }
    }
}

fn register(port: u16, base: u16) -> u8 {
    // Callers matched a range of eight ports at most.
    port.wrapping_sub(base).to_le_bytes()[0]
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
