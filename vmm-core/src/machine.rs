//! Puts the machine together: KVM's VM with its memory, interrupt controller and vCPUs, the boot data in guest RAM, and the
//! devices. Runs before the guest does, and reads nothing that a guest or a peer wrote.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::args::{self, Config};
use crate::bus::{Bus, BusDevice};
use crate::console::Console;
use crate::cpuid::Template;
use crate::error::Error;
use crate::events::eventfd;
use crate::lifecycle::Lifecycle;
use crate::memory::{self, Ram};
use crate::power::Power;
use crate::serial::Com1;
use crate::vcpu::ImmediateExit;
use crate::virtio::{self, DeviceSpec, DeviceThread, MmioDevice, Platform};
use crate::{acpi, boot, kernel, kvm, layout, registers};

/// A machine that is ready to run.
pub struct Machine {
    /// In the order of their APIC ids.
    pub vcpus: Vec<VcpuFd>,
    /// One for each vCPU.
    pub immediate_exits: Vec<ImmediateExit>,
    /// What vCPUs reach.
    pub bus: Arc<Bus>,
    /// Created, running, ended.
    pub lifecycle: Arc<Lifecycle>,
    /// Eventfd that says that the VM has ended.
    pub ended: OwnedFd,
    /// The serial port.
    pub com1: Arc<Com1>,
    /// Its far side.
    pub console: Arc<Console>,
    /// The console's socket, which does not block.
    pub console_socket: OwnedFd,
    /// Where `Vm` is served.
    pub control: OwnedFd,
    /// Presses the ACPI power button.
    pub power_button: EventFd,
    /// Virtio devices, and what serves them.
    pub devices: Vec<(Arc<MmioDevice>, DeviceThread)>,
    /// Bytes of RAM.
    pub memory: u64,
    /// The VM itself, and its RAM: both live as long as anything above.
    pub _vm: Arc<VmFd>,
    /// See `_vm`.
    pub _ram: Ram,
}

impl BusDevice for MmioDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        MmioDevice::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        MmioDevice::write(self, offset, data);
    }
}

impl Machine {
    /// Builds the machine that `config` describes.
    pub fn new(config: Config) -> Result<Machine, Error> {
        let kvm = open_kvm(config.kvm, config.vcpus)?;
        let vm = Arc::new(kvm::create_vm(&kvm)?);

        let ram = Ram::new(config.memory)?;
        add_memory(&vm, &ram)?;
        let kernel = kernel::load(config.kernel, &ram)?;
        let initrd = match config.initrd {
            Some(file) => boot::load_initrd(file, &ram, &kernel)?,
            None => None,
        };
        boot::write(&ram, &config.cmdline, initrd)?;
        acpi::write(&ram, config.vcpus, config.devices.len())?;

        vm.create_irq_chip().map_err(Error::kvm("create the interrupt controllers"))?;
        let mut vcpus = create_vcpus(&kvm, &vm, config.vcpus, kernel.entry, ram.end())?;
        if let Some(first) = vcpus.first_mut() {
            kvm::start_workers(first)?;
        }
        let immediate_exits = vcpus.iter().map(ImmediateExit::new).collect::<Result<_, _>>()?;

        let ended = eventfd()?;
        let lifecycle = Arc::new(Lifecycle::new(ended.try_clone().map_err(Error::host("duplicate an eventfd"))?));
        let console = Arc::new(Console::new(eventfd()?));
        let com1 = Arc::new(Com1::new(interrupt(&vm, layout::SERIAL_GSI)?, console.clone()));
        rustix::io::ioctl_fionbio(&config.console, true).map_err(Error::host("make the console non-blocking"))?;
        let devices = create_devices(&vm, &ram, config.devices)?;
        let registers = devices.iter().map(|(device, _)| device.clone() as Arc<dyn BusDevice>).collect();
        Ok(Machine {
            vcpus,
            immediate_exits,
            bus: Arc::new(Bus::new(com1.clone(), Power::new(lifecycle.clone()), registers)),
            lifecycle,
            ended,
            com1,
            console,
            console_socket: config.console,
            control: config.control,
            power_button: interrupt(&vm, layout::GED_GSI)?,
            devices,
            memory: config.memory,
            _vm: vm,
            _ram: ram,
        })
    }
}

fn open_kvm(fd: OwnedFd, vcpus: u16) -> Result<Kvm, Error> {
    let number = fd.as_raw_fd();
    let kvm = kvm::of(fd);
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(Error::Descriptor { argument: "--kvm-fd".into(), fd: number, why: "is not /dev/kvm" });
    }
    if let Some(name) = kvm::lacks(&kvm) {
        return Err(Error::KvmLacks(name));
    }
    if usize::from(vcpus) > kvm.get_max_vcpus() {
        return Err(Error::Argument {
            argument: "--vcpus".into(),
            why: format!("{vcpus} is more than the {} that this host's KVM can have", kvm.get_max_vcpus()),
        });
    }
    Ok(kvm)
}

fn add_memory(vm: &VmFd, ram: &Ram) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory::regions(ram.size())) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.gpa,
            memory_size: region.size,
            userspace_addr: ram.host_address(&region),
        };
        // SAFETY: the range is part of the mapping that `ram` made for guests to write, which outlives the VM: `Machine` has both.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("add guest RAM"))?;
    }
    Ok(())
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u16, entry: u64, ram_end: u64) -> Result<Vec<VcpuFd>, Error> {
    let ids = || (0..=u8::MAX).take(count.into());
    let create = |id: u8| vm.create_vcpu(id.into()).map_err(Error::kvm("create a vCPU"));
    let vcpus = ids().map(create).collect::<Result<Vec<_>, _>>()?;

    // Unknown where the host's TSC is not stable: the guest then calibrates for itself.
    let tsc_khz = vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).filter(|khz| *khz > 0);
    let cpuid = Template::new(kvm, count, tsc_khz)?;
    if ram_end > 1u64.checked_shl(cpuid.physical_bits()).unwrap_or(u64::MAX) {
        let why =
            format!("it would end at {ram_end:#x}, and the host's CPU has {} address bits", cpuid.physical_bits());
        return Err(Error::Argument { argument: "--memory".into(), why });
    }
    for (id, vcpu) in ids().zip(&vcpus) {
        vcpu.set_cpuid2(&cpuid.vcpu(id)?).map_err(Error::kvm("set a vCPU's features"))?;
        registers::common(vcpu)?;
    }
    if let Some(first) = vcpus.first() {
        registers::boot(first, entry)?;
    }
    Ok(vcpus)
}

/// An eventfd that raises an interrupt.
fn interrupt(vm: &VmFd, gsi: u32) -> Result<EventFd, Error> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("make an eventfd"))?;
    vm.register_irqfd(&event, gsi).map_err(Error::kvm("wire an interrupt"))?;
    Ok(event)
}

fn create_devices(
    vm: &Arc<VmFd>,
    ram: &Ram,
    devices: Vec<args::Device>,
) -> Result<Vec<(Arc<MmioDevice>, DeviceThread)>, Error> {
    let memfd = Arc::new(ram.share()?);
    let places = (layout::VIRTIO_MMIO..).step_by(layout::VIRTIO_MMIO_SIZE as usize).zip(layout::VIRTIO_GSI..);
    let mut made = Vec::new();
    for (index, (device, (mmio_base, gsi))) in devices.into_iter().zip(places).enumerate() {
        let spec = DeviceSpec {
            virtio_id: device.virtio_id,
            socket: UnixStream::from(device.socket),
            queue_size: device.queue_size,
            queues: device.queues,
            config: device.config,
        };
        let regions = memory::regions(ram.size());
        let platform = Platform { vm: vm.clone(), memfd: memfd.clone(), regions, mmio_base, gsi };
        let device = virtio::new(spec, platform);
        made.push(device.map_err(|error| Error::Device { index, why: ipc::chain(&error) })?);
    }
    Ok(made)
}
