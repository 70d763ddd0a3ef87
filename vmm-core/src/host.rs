//! What this host's KVM gives, for `volt doctor`: is all there that a VM needs, and does hardware run the guest?
//!
//! Some machines have a `/dev/kvm` that interprets ring 0 in software, at about a million instructions a second: a stock
//! kernel would boot for hours. CPU flags do not tell; the time that a guest of a few instructions takes does.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::VcpuExit;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::Error;
use crate::kvm;

/// Instructions a second that tell hardware from software; they differ by three orders of magnitude.
pub const HARDWARE: f64 = 50e6;

/// Turns of the micro-guest's loop, two instructions each. The first run takes 0.2 s on a software KVM. Where it took no
/// time to speak of, most of that was spent on starting, and the second one tells more: 20 ms on hardware.
const TURNS: [u32; 2] = [100_000, 10_000_000];
/// A run that takes this long is taken at its word.
const LONG: Duration = Duration::from_millis(25);

/// What KVM says of itself.
#[derive(Debug)]
pub struct Abilities {
    /// Most vCPUs of a VM.
    pub vcpus: usize,
    /// The first thing that it lacks and every VM needs.
    pub lacks: Option<&'static str>,
}

/// Asks `/dev/kvm`, open for reading and writing. `None` if that is another file.
pub fn abilities(kvm: OwnedFd) -> Option<Abilities> {
    let kvm = kvm::of(kvm);
    (kvm.get_api_version() == KVM_API_VERSION as i32)
        .then(|| Abilities { vcpus: kvm.get_max_vcpus(), lacks: kvm::lacks(&kvm) })
}

/// Instructions a second of a micro-guest on `/dev/kvm`; beside [`HARDWARE`] they tell whether hardware runs it. Takes a
/// fifth of a second on a software KVM, and for ever on one that hangs: call it where that can be borne.
///
/// # Errors
///
/// Where KVM refuses a step, or the guest ends otherwise than by its HLT.
pub fn instructions_per_second(kvm: OwnedFd) -> Result<f64, Error> {
    const ADDRESS: u64 = 0x1000;
    // again: dec ecx; jnz again; hlt (16-bit code)
    let memory = Page::holding(&[0x66, 0x49, 0x75, 0xfc, 0xf4])?;
    let vm = kvm::create_vm(&kvm::of(kvm))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: ADDRESS,
        memory_size: memory.size as u64,
        userspace_addr: memory.start as u64,
        flags: 0,
    };
    // SAFETY: the page is this guest's alone, and unmapped after the VM was closed: `memory` was made before `vm`.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("add guest RAM"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(Error::kvm("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("read a vCPU's registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(Error::kvm("set a vCPU's registers"))?;
    let mut rate = 0.0;
    for turns in TURNS {
        let mut regs = vcpu.get_regs().map_err(Error::kvm("read a vCPU's registers"))?;
        (regs.rip, regs.rflags, regs.rcx) = (ADDRESS, 2, turns.into());
        vcpu.set_regs(&regs).map_err(Error::kvm("set a vCPU's registers"))?;
        let start = Instant::now();
        match vcpu.run().map_err(Error::kvm("run a guest"))? {
            VcpuExit::Hlt => {}
            other => return Err(Error::Failed(format!("{other:?} instead of HLT"))),
        }
        let took = start.elapsed();
        rate = f64::from(turns) * 2.0 / took.as_secs_f64();
        if took >= LONG {
            break;
        }
    }
    Ok(rate)
}

/// A page of memory.
struct Page {
    start: *mut libc::c_void,
    size: usize,
}

impl Page {
    fn holding(code: &[u8]) -> Result<Page, Error> {
        let size = rustix::param::page_size();
        let failed = |source| Error::Memory { step: "map", size: size as u64, source };
        // SAFETY: a new private anonymous mapping, which nothing else knows of.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let start = start.map_err(|errno| failed(errno.into()))?;
        // SAFETY: no more is copied than the page holds, and it is new, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), start.cast(), code.len().min(size)) };
        Ok(Page { start, size })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `holding`, of that size, and is used through this value only.
        let _gone = unsafe { munmap(self.start, self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn file_that_is_not_kvm_is_told_apart() {
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        assert!(abilities(null()).is_none());
        assert!(matches!(instructions_per_second(null()), Err(Error::Kvm { .. })));
    }
}
