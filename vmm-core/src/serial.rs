//! COM1, a 16550A by vm-superio. Its output goes to whatever is at the far end of the line, its interrupt to an irqfd. Sees single
//! bytes.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of vm-superio's input FIFO.
const FIFO: usize = 64;

struct Irq(EventFd);

impl Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // An irqfd's counter is read by the kernel at once; if it were full, the interrupt would be pending already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// What is at the far end of the serial line. Both are called on vCPU threads, which wait for nobody and allocate nothing.
pub trait Line: Send + Sync {
    /// Takes a byte that the guest prints.
    fn output(&self, byte: u8);
    /// The guest has read all input: there is room for more.
    fn input_taken(&self);
}

struct Output(Arc<dyn Line>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|byte| self.0.output(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialEvents for Output {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.input_taken();
    }
}

/// The serial port.
pub struct Com1(Mutex<Serial<Irq, Output, Output>>);

impl Com1 {
    /// `irq` is wired to the port's interrupt.
    pub fn new(irq: EventFd, line: Arc<dyn Line>) -> Com1 {
        // A full FIFO, read empty again: it has then allocated all it ever will, and vCPU threads need not.
        let full = SerialState { in_buffer: vec![0; FIFO], ..SerialState::default() };
        let serial = Serial::from_state(&full, Irq(irq), Output(line.clone()), Output(line));
        let mut serial = match serial {
            Ok(serial) => serial,
            // Only for a FIFO that is too large.
            Err(_) => unreachable!("vm-superio's FIFO holds {FIFO} bytes"),
        };
        for _ in 0..FIFO {
            serial.read(0);
        }
        Com1(Mutex::new(serial))
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Irq, Output, Output>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads register `offset`.
    pub fn read(&self, offset: u8) -> u8 {
        self.lock().read(offset)
    }

    /// The guest writes register `offset`.
    pub fn write(&self, offset: u8, value: u8) {
        // Neither the interrupt nor the output can fail.
        let _ = self.lock().write(offset, value);
    }

    /// Bytes of input the guest can take now.
    pub fn input_room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    /// Gives the guest input; what has no room is dropped, as on a real line.
    pub fn input(&self, bytes: &[u8]) {
        let _ = self.lock().enqueue_raw_bytes(bytes);
    }
}
