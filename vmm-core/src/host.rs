//! `vmm-core --about-kvm`: what this host's KVM gives, for `volt doctor`. Is all there that a VM needs, and does hardware run the guest?
//! A process of its own (`schema/src/programs.rs` has it as `kvm-probe`), confined before it touches KVM, which prints
//! [`Fact`]s and ends. It reads nothing. On a KVM that hangs it hangs: whoever asks has a deadline.
//!
//! Some machines have a `/dev/kvm` that interprets ring 0 in software, at about a million instructions a second: a stock
//! kernel would boot for hours. CPU flags do not tell; the time that a guest of a few instructions takes does.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use confine::{Filter, Heap, Policy, Rule, Sandbox, base};
use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use schema::{about_kvm::Fact, programs::KVM_PROBE};

use crate::error::Error;
use crate::kvm;
use crate::layout;
use crate::vcpu::KVM_RUN;

/// `_IOR(KVMIO, 0x81, struct kvm_regs)` and `_IOW(KVMIO, 0x82, struct kvm_regs)`.
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SET_REGS: u32 = 0x4090_ae82;

/// Bytes of heap for a few lines of text.
const HEAP: usize = 256 << 10;
/// Where the guest's page is.
const ADDRESS: u64 = 0x1000;
/// again: dec ecx; jnz again; hlt (16-bit code)
const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];
/// Turns of the guest's loop, two instructions each. The first run takes 0.2 s on a software KVM. Where it took no
/// time to speak of, most of that was spent on starting, and the second one tells more: 20 ms on hardware.
const TURNS: [u32; 2] = [100_000, 10_000_000];
/// A run that takes this long is taken at its word.
const LONG: Duration = Duration::from_millis(25);

/// Prints what `/dev/kvm`, open for reading and writing, gives. The process is to be ended then: nothing of it can be given back.
///
/// # Errors
///
/// Where the process cannot be confined, or not print.
pub fn about(kvm: OwnedFd) -> Result<(), Error> {
    // Whoever asks says which layers the host lacks.
    let sandbox =
        Sandbox::new(KVM_PROBE.title, Policy::BestEffortQuiet).heap(Heap::Reserved(HEAP)).keep_fd(kvm.as_raw_fd());
    let confined = sandbox.confine()?;
    let kvm = kvm::of(kvm);
    print(&abilities(&kvm))?;
    let mut guest = match Guest::new(&kvm) {
        Ok(guest) => guest,
        Err(error) => return print(&Fact::NoSpeed(ipc::chain(&error))),
    };
    let _narrow = confined.enter(&filter(guest.vcpu.as_raw_fd()))?;
    let speed = guest.speed();
    // To unmap and close is none of what the filter allows.
    std::mem::forget((guest, kvm));
    print(&speed.unwrap_or_else(|error| Fact::NoSpeed(ipc::chain(&error))))
}

/// While a guest runs: the guest, the time, the answer, the end.
fn filter(vcpu: RawFd) -> Filter {
    let calls = [KVM_RUN, KVM_GET_REGS, KVM_SET_REGS];
    Filter::new("kvm-probe")
        .with(&base::clock())
        .allow_if(libc::SYS_ioctl, calls.map(|call| Rule::eq(0, vcpu as u32).and(Rule::eq(1, call))).to_vec())
        .allow_if(libc::SYS_write, vec![Rule::eq(0, 1), Rule::eq(0, 2)])
        .allow(&[libc::SYS_exit_group])
}

fn print(fact: &Fact) -> Result<(), Error> {
    let mut out = std::io::stdout();
    writeln!(out, "{fact}").and_then(|()| out.flush()).map_err(Error::host("print what KVM gives"))
}

fn abilities(kvm: &Kvm) -> Fact {
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Fact::NotKvm;
    }
    match kvm::lacks(kvm) {
        Some(lacks) => Fact::Lacks(lacks.into()),
        None => Fact::Vcpus(kvm.get_max_vcpus() as u64),
    }
}

/// A guest that counts and halts.
struct Guest {
    vcpu: VcpuFd,
    /// Both last as long as it.
    _vm: VmFd,
    _memory: Page,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Guest, Error> {
        let memory = Page::holding(&CODE)?;
        let vm = kvm::create_vm(kvm)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: ADDRESS,
            memory_size: memory.size as u64,
            userspace_addr: memory.start as u64,
            flags: 0,
        };
        // SAFETY: the page is this guest's alone, and is never unmapped.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("add guest RAM"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(Error::kvm("create a vCPU"))?;
        let mut sregs = vcpu.get_sregs().map_err(Error::kvm("read a vCPU's registers"))?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).map_err(Error::kvm("set a vCPU's registers"))?;
        kvm::start_workers(&mut vcpu)?;
        Ok(Guest { vcpu, _vm: vm, _memory: memory })
    }

    /// Instructions a second.
    fn speed(&mut self) -> Result<Fact, Error> {
        let mut rate = 0.0;
        for turns in TURNS {
            let mut regs = self.vcpu.get_regs().map_err(Error::kvm("read a vCPU's registers"))?;
            (regs.rip, regs.rflags, regs.rcx) = (ADDRESS, 2, turns.into());
            self.vcpu.set_regs(&regs).map_err(Error::kvm("set a vCPU's registers"))?;
            let start = Instant::now();
            match self.vcpu.run().map_err(Error::kvm("run a guest"))? {
                VcpuExit::Hlt => {}
                other => return Err(Error::Failed(format!("{other:?} instead of HLT"))),
            }
            let took = start.elapsed();
            rate = f64::from(turns) * 2.0 / took.as_secs_f64();
            if took >= LONG {
                break;
            }
        }
        Ok(Fact::Speed(rate as u64))
    }
}

/// A page of memory, for good.
struct Page {
    start: *mut libc::c_void,
    size: usize,
}

impl Page {
    fn holding(code: &[u8]) -> Result<Page, Error> {
        // Asking for it opens a file before Linux 6.4, and there is none here.
        let size = layout::PAGE as usize;
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
