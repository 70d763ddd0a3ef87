//! Whether this machine's `/dev/kvm` is worth using: some have one that interprets ring 0 in software at about a
//! million instructions a second, and a stock kernel would boot for hours. CPU flags do not tell; time does.

use std::{
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// Turns of the micro-guest's loop, two instructions each: 0.2 s on a software KVM, well below 1 ms on hardware.
const TURNS: u32 = 100_000;

/// Instructions a second that tell hardware from software; they differ by three orders of magnitude.
const HARDWARE: f64 = 50e6;

/// An error that says why a stock kernel cannot run here in reasonable time.
pub fn check_hardware() -> Result<()> {
    let (sender, result) = channel();
    // A KVM that hangs takes its thread with it, not this program.
    thread::spawn(move || sender.send(instructions_per_second()));
    let rate = result.recv_timeout(Duration::from_secs(10)).context("/dev/kvm did not run a micro-guest in 10 s")??;
    if rate < HARDWARE {
        bail!("/dev/kvm runs {:.1} million instructions/s, so it is not backed by hardware", rate / 1e6);
    }
    Ok(())
}

fn instructions_per_second() -> Result<f64> {
    const ADDRESS: u64 = 0x1000;
    // mov ecx, TURNS; again: dec ecx; jnz again; hlt (16-bit code)
    let mut code = vec![0x66, 0xb9];
    code.extend(TURNS.to_le_bytes());
    code.extend([0x66, 0x49, 0x75, 0xfc, 0xf4]);

    let kvm = Kvm::new().context("Cannot open /dev/kvm")?;
    let vm = kvm.create_vm().context("Cannot create a VM")?;
    let page = rustix::param::page_size();
    // SAFETY: a new private anonymous mapping, which nothing else knows of.
    let memory = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            page,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE,
        )
    }?;
    // SAFETY: the code is shorter than the page it is copied to.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), memory.cast(), code.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: ADDRESS,
        memory_size: page as u64,
        userspace_addr: memory as u64,
        flags: 0,
    };
    // SAFETY: the mapping is never unmapped, so it outlives the VM.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = ADDRESS;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    let start = Instant::now();
    match vcpu.run()? {
        VcpuExit::Hlt => Ok(f64::from(TURNS) * 2.0 / start.elapsed().as_secs_f64()),
        other => bail!("The micro-guest ended with {other:?}"),
    }
}
