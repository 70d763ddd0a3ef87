//! How a guest ends itself: the i8042's reset command, and the ACPI reset, sleep control and sleep status registers. Sees
//! single bytes.

use std::convert::Infallible;
use std::sync::Arc;

use vm_superio::{I8042Device, Trigger};

use crate::layout::{I8042_PORT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_TYPE_S5};
use crate::lifecycle::{Exit, Lifecycle, Reason};

/// SLP_EN of the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Where SLP_TYP begins, three bits.
const SLEEP_TYPE_SHIFT: u8 = 2;

struct Reset<'a>(&'a Lifecycle);

impl Trigger for Reset<'_> {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.end(Exit::orderly(Reason::Reset));
        Ok(())
    }
}

/// The registers.
pub struct Power(Arc<Lifecycle>);

impl Power {
    /// They end this life.
    pub fn new(lifecycle: Arc<Lifecycle>) -> Power {
        Power(lifecycle)
    }

    /// The i8042, which has no state but this.
    fn i8042(&self) -> I8042Device<Reset<'_>> {
        I8042Device::new(Reset(&self.0))
    }

    /// The guest reads register `offset` of the i8042.
    pub fn read_i8042(&self, offset: u8) -> u8 {
        self.i8042().read(offset)
    }

    /// The guest writes register `offset` of the i8042.
    pub fn write_i8042(&self, offset: u8, value: u8) {
        let Ok(()) = self.i8042().write(offset, value);
    }

    /// The guest writes one of the ACPI registers. (They all read as zero: nothing ever wakes this machine.)
    pub fn write_acpi(&self, port: u16, value: u8) {
        let s5 = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        let sleep = SLEEP_ENABLE | 0b111 << SLEEP_TYPE_SHIFT;
        match port {
            SLEEP_CONTROL_PORT if value & sleep == s5 => self.0.end(Exit::orderly(Reason::Poweroff)),
            RESET_PORT if value == RESET_VALUE => self.0.end(Exit::orderly(Reason::Reset)),
            _ => {}
        }
    }
}

/// Last port of the i8042, its command port.
pub const I8042_LAST: u16 = I8042_PORT + 4;
