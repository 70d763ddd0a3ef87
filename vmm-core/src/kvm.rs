//! KVM itself: what it has to offer, and a VM that has nothing yet. What the machine is built on, and the host is judged by.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::error::Error;
use crate::layout;

/// What a machine is built on.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "user memory"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// The first thing that `kvm` lacks and every VM needs.
pub fn lacks(kvm: &Kvm) -> Option<&'static str> {
    NEEDED.into_iter().find(|(capability, _)| !kvm.check_extension(*capability)).map(|(_, name)| name)
}

/// KVM by a descriptor of /dev/kvm.
pub fn of(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open, and this is its only owner.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// A VM without memory and vCPUs.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(Error::kvm("create a VM"))?,
        }
    };
    vm.set_tss_address(layout::KVM_TSS).map_err(Error::kvm("set its TSS address"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(Error::kvm("set its identity map's address"))?;
    let cap = KVM_CAP_PMU_CAPABILITY;
    if vm.check_extension_raw(cap.into()) > 0 {
        let mut off = kvm_enable_cap { cap, ..Default::default() };
        off.args = [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0];
        vm.enable_cap(&off).map_err(Error::kvm("switch off performance counters"))?;
    }
    Ok(vm)
}

/// Has KVM start what threads it runs for this VM (Linux 6.13 and later: one that takes back huge pages), which it does at the
/// first KVM_RUN, as threads of this process: later there is no room left for another. The guest is not entered.
pub fn start_workers(vcpu: &mut VcpuFd) -> Result<(), Error> {
    vcpu.set_kvm_immediate_exit(1);
    let entered = match vcpu.run() {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        Err(error) => Err(Error::kvm("run a vCPU for the first time")(error)),
        // KVM_CAP_IMMEDIATE_EXIT, which was asked for, says that this cannot be.
        Ok(_) => Err(Error::KvmLacks("immediate exit")),
    };
    vcpu.set_kvm_immediate_exit(0);
    entered
}
