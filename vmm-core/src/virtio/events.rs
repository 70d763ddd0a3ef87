//! The eventfds between guest and backend: ioeventfd for kicks, irqfd for calls. Touches the VM fd with
//! KVM_IOEVENTFD and KVM_IRQFD alone; sees no data, and is not woken by any.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::regs::reg;

/// KVM_IRQFD and KVM_IOEVENTFD (linux/kvm.h): `_IOW(KVMIO, 0x76, struct kvm_irqfd)` and `_IOW(KVMIO, 0x79, ..)`.
pub(super) const KVM_IRQFD: u32 = 0x4020_ae76;
pub(super) const KVM_IOEVENTFD: u32 = 0x4040_ae79;

/// Registers eventfds for a device's QueueNotify register and its interrupt line.
pub(super) trait Events: Send {
    /// From now on a driver's notification of `queue` is written to `kick` by the kernel.
    fn register_ioeventfd(&self, queue: u16, kick: &EventFd) -> io::Result<()>;
    /// Undoes [`Events::register_ioeventfd`].
    fn unregister_ioeventfd(&self, queue: u16, kick: &EventFd) -> io::Result<()>;
    /// From now on what is written to `call` interrupts the guest.
    fn register_irqfd(&self, call: &EventFd) -> io::Result<()>;
    /// Undoes [`Events::register_irqfd`].
    fn unregister_irqfd(&self, call: &EventFd) -> io::Result<()>;
}

/// [`Events`] of a device in a real VM.
pub(super) struct KvmEvents {
    vm: Arc<VmFd>,
    notify: IoEventAddress,
    gsi: u32,
}

impl KvmEvents {
    pub(super) fn new(vm: Arc<VmFd>, mmio_base: u64, gsi: u32) -> Self {
        let notify = IoEventAddress::Mmio(mmio_base.saturating_add(reg::QUEUE_NOTIFY));
        Self { vm, notify, gsi }
    }
}

impl Events for KvmEvents {
    fn register_ioeventfd(&self, queue: u16, kick: &EventFd) -> io::Result<()> {
        Ok(self.vm.register_ioevent(kick, &self.notify, u32::from(queue))?)
    }

    fn unregister_ioeventfd(&self, queue: u16, kick: &EventFd) -> io::Result<()> {
        Ok(self.vm.unregister_ioevent(kick, &self.notify, u32::from(queue))?)
    }

    fn register_irqfd(&self, call: &EventFd) -> io::Result<()> {
        Ok(self.vm.register_irqfd(call, self.gsi)?)
    }

    fn unregister_irqfd(&self, call: &EventFd) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(call, self.gsi)?)
    }
}

/// A new eventfd that nobody waits on blockingly.
pub(super) fn eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}
