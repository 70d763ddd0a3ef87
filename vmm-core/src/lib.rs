//! The KVM core of one VM. It is given descriptors only, and never opens anything.
//!
//! What a guest can reach here is small on purpose: the registers of a serial port, of an i8042's reset line, of ACPI's power
//! management and of virtio-mmio. Virtqueues are parsed by device backends, in processes of their own, and what is in guest RAM
//! is never read.
//!
//! The parts in the order in which a VM meets them:
//!
//! | module | subject |
//! |---|---|
//! | [`args`] | the command line and the inherited descriptors, checked |
//! | `machine` | puts the VM together out of what follows |
//! | `kvm` | what KVM has to offer, and a VM that has nothing yet |
//! | `layout`, `memory` | guest physical addresses; RAM |
//! | `kernel`, `boot`, `acpi` | what is in RAM when the guest starts |
//! | `cpuid`, `registers` | what the vCPUs are when the guest starts |
//! | `vcpu`, `bus` | running the guest, and where its accesses go |
//! | `serial`, `console`, `power`, `virtio` | what answers them |
//! | `lifecycle`, `control` | start, stop, end; the `Vm` capability |
//!
//! Beside them, [`host`] says what this host's KVM gives, in a process that has nothing to do with a VM.
//!
//! Threads, each with a seccomp filter of its own: `control` (the main thread), `console`, `vcpuN`, `virtioN`.

mod acpi;
pub mod args;
mod boot;
mod bus;
mod console;
mod control;
mod cpuid;
mod error;
mod events;
pub mod host;
mod kernel;
mod kvm;
mod layout;
mod lifecycle;
mod machine;
mod memory;
mod power;
mod registers;
mod serial;
mod vcpu;
mod virtio;

use std::os::fd::AsRawFd;

use confine::{Heap, Limit, Sandbox};
use schema::{
    limits::{CORE_FILES, DEVICE_HEAP, THREAD_SPACE},
    programs::VMM_CORE,
};

pub use error::Error;
#[cfg(any(test, fuzzing))]
pub use virtio::fuzzing;

use crate::args::Config;
use crate::control::ControlThread;
use crate::lifecycle::{Exit, Lifecycle, Reason};
use crate::machine::Machine;
use crate::virtio::DeviceThread;

/// Address space beside guest RAM: the program, its heap, and the threads' stacks.
const ADDRESS_SPACE: u64 = 1 << 30;

/// Runs the VM from its making to its end. `Ok` is an orderly end: power-off, reset, or stopped.
pub fn run(config: Config) -> Result<(), Error> {
    // Nothing below needs a path, a socket or a capability: the process is confined before it touches KVM.
    let address_space = config.memory + ADDRESS_SPACE + THREAD_SPACE * u64::from(config.vcpus);
    let mut sandbox = Sandbox::new(VMM_CORE.title, config.confinement)
        .limit(Limit::FileSize, config.memory)
        .limit(Limit::AddressSpace, address_space)
        .limit(Limit::OpenFiles, CORE_FILES)
        .heap(Heap::Reserved(DEVICE_HEAP));
    let fds = [&config.kvm, &config.control, &config.kernel, &config.console].into_iter().chain(&config.initrd);
    for fd in fds.chain(config.devices.iter().map(|device| &device.socket)) {
        sandbox = sandbox.keep_fd(fd.as_raw_fd());
    }
    let confined = sandbox.confine()?;

    vcpu::install_signal_handler()?;
    let machine = Machine::new(config)?;
    let (lifecycle, console) = (machine.lifecycle.clone(), machine.console.clone());

    let mut vcpus = Vec::new();
    for (index, (vcpu, immediate_exit)) in machine.vcpus.into_iter().zip(machine.immediate_exits).enumerate() {
        let filter = vcpu::filter(vcpu.as_raw_fd());
        let (bus, lifecycle) = (machine.bus.clone(), lifecycle.clone());
        let thread = confined.spawn(&format!("vcpu{index}"), &filter, move || vcpu::run(vcpu, &bus, &lifecycle))?;
        vcpus.push((thread, immediate_exit));
    }
    let mut devices = Vec::new();
    for (index, (device, thread)) in machine.devices.into_iter().enumerate() {
        let lifecycle = lifecycle.clone();
        let work = move || thread.run(|why| device_failed(&lifecycle, why));
        confined.spawn(&format!("virtio{index}"), &DeviceThread::filter(), work)?;
        devices.push(device);
    }
    let console_thread = {
        let (console, com1, socket) = (console.clone(), machine.com1, machine.console_socket);
        let filter = console::filter(socket.as_raw_fd());
        confined.spawn("console", &filter, move || console.run(socket, &com1))?
    };

    let runtime = ipc::Runtime::new().map_err(Error::host("make the control thread's runtime"))?;
    let link = ipc::LinkSocket::new(machine.control).map_err(std::io::Error::other);
    let link = link.map_err(Error::host("set up the control link"))?;
    // vCPU threads never end, so what they stand on lasts as long as the process.
    std::mem::forget((machine._vm, machine._ram));
    let narrow = confined.enter(&ControlThread::filter())?;
    let control = ControlThread {
        link,
        lifecycle: lifecycle.clone(),
        ended: machine.ended,
        power_button: machine.power_button,
        console: console.clone(),
        console_thread,
        vcpus,
        devices,
        memory: machine.memory,
    };
    let exit = control.run(narrow, runtime)?;
    match exit.reason {
        Reason::Poweroff | Reason::Reset | Reason::Stopped => Ok(()),
        Reason::DeviceFailed | Reason::InternalError => Err(Error::Failed(exit.text())),
    }
}

fn device_failed(lifecycle: &Lifecycle, why: String) {
    lifecycle.end(Exit { reason: Reason::DeviceFailed, detail: why.into(), code: None });
}
