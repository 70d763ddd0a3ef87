//! A vCPU's thread: runs the guest and carries its exits to the bus. The role that meets the guest, so the narrowest: KVM_RUN on
//! its own vCPU, futexes, and writes to the eventfds it was given. It neither allocates nor frees.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use confine::{Filter, Rule, base};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::error::Error;
use crate::lifecycle::{Exit, Lifecycle, Reason};

/// `_IO(KVMIO, 0x80)`.
pub const KVM_RUN: u32 = 0xae80;

/// What the thread may ask of the kernel: six syscalls. Anything else, a panic's clean-up included, ends the process.
pub fn filter(vcpu: RawFd) -> Filter {
    Filter::new("vcpu")
        .allow_if(libc::SYS_ioctl, vec![Rule::eq(0, vcpu as u32).and(Rule::eq(1, KVM_RUN))])
        .with(&base::signal()) // interrupts, devices' threads, the end
        .with(&base::timed_wait()) // a device's answer
        .allow(&[
            libc::SYS_futex,        // locks, the start, the end
            libc::SYS_rt_sigreturn, // `exit_signal`
        ])
}

/// `immediate_exit` of a vCPU (KVM API, 5), by which other threads get it out of the guest.
pub struct ImmediateExit(&'static AtomicU8);

impl ImmediateExit {
    /// Maps the vCPU's `kvm_run` once more, for good.
    pub fn new(vcpu: &VcpuFd) -> Result<ImmediateExit, Error> {
        use rustix::mm::{MapFlags, ProtFlags};
        let size = size_of::<kvm_bindings::kvm_run>();
        let flag = std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit);
        // SAFETY: the borrow ends with this call, and the vCPU outlives it.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a new mapping at an address of the kernel's choice. It is never unmapped, and touched by this flag alone, which
        // lies within it and which KVM documents as written by other threads while the vCPU runs.
        unsafe {
            let run = rustix::mm::mmap(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            );
            let run = run.map_err(Error::host("map a vCPU"))?.cast::<u8>();
            Ok(ImmediateExit(AtomicU8::from_ptr(run.add(flag))))
        }
    }

    /// Makes the vCPU's next entry return at once. A signal gets it out of the present one.
    pub fn set(&self) {
        self.0.store(1, Ordering::SeqCst);
    }
}

/// The signal that gets a vCPU out of the guest.
pub fn exit_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes `exit_signal` interrupt a call instead of ending the process.
pub fn install_signal_handler() -> Result<(), Error> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, which is safe at any point; all of the structure is initialised.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(exit_signal(), &action, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(Error::host("install a signal handler")(std::io::Error::last_os_error())),
    }
}

/// The thread's work, from before the start to after the end.
pub fn run(mut vcpu: VcpuFd, bus: &Arc<Bus>, lifecycle: &Lifecycle) -> ! {
    lifecycle.wait_begun();
    while !lifecycle.is_over() {
        if let Some(exit) = enter(&mut vcpu, bus) {
            lifecycle.end(exit);
        }
    }
    lifecycle.park()
}

/// Runs the guest up to its next exit and serves that. Says why, if the VM cannot go on.
fn enter(vcpu: &mut VcpuFd, bus: &Bus) -> Option<Exit> {
    let broken = |detail: &'static str, code| {
        Some(Exit { reason: Reason::InternalError, detail: detail.into(), code: Some(code) })
    };
    match vcpu.run() {
        Ok(VcpuExit::IoIn(..)) => port(vcpu, |port, data| bus.port_read(port, data)),
        Ok(VcpuExit::IoOut(..)) => port(vcpu, |port, data| bus.port_write(port, data)),
        Ok(VcpuExit::MmioRead(address, data)) => bus.mmio_read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.mmio_write(address, data),
        // A triple fault.
        Ok(VcpuExit::Shutdown) => return Some(Exit::orderly(Reason::Reset)),
        Ok(VcpuExit::FailEntry(why, _)) => return broken("The CPU refused to enter the guest, hardware reason", why),
        Ok(VcpuExit::InternalError) => {
            // SAFETY: the exit reason says that this member of the union is the one that is set.
            let why = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
            return broken("KVM cannot emulate what the guest does, suberror", why.into());
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
        Ok(VcpuExit::MemoryFault { gpa, .. }) => return broken("KVM found no memory behind guest address", gpa),
        Ok(_) => {
            let why = vcpu.get_kvm_run().exit_reason;
            return broken("KVM left the guest for a reason that does not belong to this machine", why.into());
        }
        Err(error) => match error.errno() {
            // `exit_signal`; or a vCPU that waits for its start and was woken.
            libc::EINTR | libc::EAGAIN => {}
            errno => return broken("KVM_RUN failed, errno", u64::from(errno.unsigned_abs())),
        },
    }
    None
}

/// Serves a port exit. A string instruction makes several accesses of one size to one port in one exit.
fn port(vcpu: &mut VcpuFd, serve: impl Fn(u16, &mut [u8])) {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason says that this member of the union is the one that is set.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (size, count) = (usize::from(io.size).max(1), io.count as usize);
    let offset = io.data_offset as usize;
    // SAFETY: KVM keeps `count` values of `size` bytes at `data_offset` in the mapping that `kvm_run` begins, until the vCPU is
    // entered again, which takes the `&mut` that this function has.
    let data =
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(run).cast::<u8>().add(offset), size * count) };
    data.chunks_exact_mut(size).for_each(|access| serve(io.port, access));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_thread_is_left_with_six_system_calls() {
        let mut left: Vec<_> = filter(7).syscalls().collect();
        left.sort_unstable();
        let mut expected = [
            libc::SYS_ioctl,
            libc::SYS_write,
            libc::SYS_futex,
            libc::SYS_rt_sigreturn,
            libc::SYS_restart_syscall,
            libc::SYS_clock_gettime,
        ];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
