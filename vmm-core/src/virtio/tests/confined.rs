//! The device's thread and a vCPU's accesses, each under its real seccomp filter, in a process of their own: the
//! test runs itself again as that process, whose backend stays here.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use confine::{Heap, JoinHandle, Policy, Rule, Sandbox, base};
use kvm_ioctls::{Kvm, VmFd};
use rustix::io::{FdFlags, fcntl_setfd};

use super::super::events::{Events, KvmEvents};
use super::super::regs::{reg, status};
use super::super::thread::{Deadlines, build};
use super::super::{DeviceThread, MmioDevice};
use super::bench::{VERSION_1, Wiring, memfd, regions, ring_at, spec};
use super::peer::{Backend, Reaction};
use testkit::wait::PATIENCE;

const SOCKET: &str = "VOLT_TEST_CONFINED_SOCKET";
const CHILD: &str = "virtio::tests::confined::child_process";

/// A VM with an interrupt controller, where there is KVM.
fn vm() -> Result<VmFd, kvm_ioctls::Error> {
    let vm = Kvm::new()?.create_vm()?;
    vm.create_irq_chip()?;
    Ok(vm)
}

/// Not a test of its own: what the tests below run as a process.
#[test]
fn child_process() {
    let Ok(number) = std::env::var(SOCKET) else { return };
    // The harness has threads, and a process with threads cannot be confined: its child has one.
    // SAFETY: of the two threads there are, the other only waits for this one, so it holds no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        live(&number);
    }
    let mut state = 0;
    // SAFETY: `state` is a whole int, and the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut state, 0) }, child);
    if state != 0 {
        eprintln!("the confined child ended with wait status {state:#x}");
    }
    std::process::exit(i32::from(state != 0));
}

/// The whole life of a device, confined. A vCPU closes nothing, so the process ends with all still there. Any end
/// but 0 is a failure: a panic, a kill by seccomp, a wrong outcome.
fn live(number: &str) -> ! {
    // SAFETY: the parent opened this descriptor for this process, which uses it nowhere else.
    let socket = unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) };
    let memfd = memfd();
    let mut filter = DeviceThread::filter();
    let mut sandbox = Sandbox::new("virtio-test", Policy::BestEffort).heap(Heap::Reserved(1 << 20));
    for fd in [socket.as_raw_fd(), memfd.as_raw_fd()] {
        sandbox = sandbox.keep_fd(fd);
    }
    let events: Box<dyn Events> = match vm() {
        Ok(vm) => {
            sandbox = sandbox.keep_fd(vm.as_raw_fd());
            Box::new(KvmEvents::new(Arc::new(vm), 0xd000_0000, 5))
        }
        Err(error) => {
            testkit::skip!("KVM_IOEVENTFD and KVM_IRQFD under the filter, as /dev/kvm gives {error}");
            // The stand-in for KVM duplicates eventfds.
            filter = filter.allow_if(libc::SYS_fcntl, vec![Rule::eq(1, libc::F_DUPFD_CLOEXEC as u32)]);
            Box::new(Wiring::default())
        }
    };
    let confined = sandbox.confine().unwrap();
    let spec = spec(2, UnixStream::from(socket));
    let (device, thread) = build(spec, memfd, regions(), events, Deadlines::default()).unwrap();
    let (sender, failed) = ipc::queue();
    let run = move || thread.run(move |why| sender.send(why).unwrap_or_default());
    let running = confined.spawn("virtio-2", &filter, run).unwrap();
    let done = Arc::new((Mutex::new(false), Condvar::new()));
    let vcpu = {
        let (device, done) = (Arc::clone(&device), Arc::clone(&done));
        move || {
            drive_twice(&device);
            *done.0.lock().unwrap() = true;
            done.1.notify_all();
            loop {
                std::thread::park();
            }
        }
    };
    // The filter of a real vCPU, with KVM_RUN on no vCPU.
    let _vcpu: JoinHandle<()> = confined.spawn("vcpu0", &crate::vcpu::filter(0), vcpu).unwrap();
    let own = base::exit().allow(&[libc::SYS_clock_gettime]);
    let _narrow = confined.enter(&own).unwrap();
    let (flag, waited) = done.1.wait_timeout_while(done.0.lock().unwrap(), PATIENCE, |done| !*done).unwrap();
    assert!(!waited.timed_out());
    drop(flag);
    // The backend went away: the thread reports it, from within its filter, and ends.
    let why = failed.receive_until(Instant::now() + PATIENCE).ok().flatten();
    let mut bits = [0; 4];
    device.read(reg::STATUS, &mut bits);
    let right = why.is_some_and(|why| why.contains("closed its socket"))
        && u32::from_le_bytes(bits) & status::NEEDS_RESET != 0
        && running.join().is_ok();
    confine::exit(if right { 0 } else { 3 });
}

/// What a vCPU does for a driver that starts and resets the device, twice.
fn drive_twice(device: &MmioDevice) {
    device.wait_ready(PATIENCE).unwrap();
    let write = |offset: u64, value: u32| device.write(offset, &value.to_le_bytes());
    for _ in 0..2 {
        write(reg::STATUS, 3);
        write(reg::DRIVER_FEATURES_SEL, 1);
        write(reg::DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
        write(reg::STATUS, 11);
        write(reg::QUEUE_NUM, 8);
        let [desc, avail, used] = ring_at(0);
        write(reg::QUEUE_DESC_LOW, desc);
        write(reg::QUEUE_DRIVER_LOW, avail);
        write(reg::QUEUE_DEVICE_LOW, used);
        write(reg::QUEUE_READY, 1);
        write(reg::STATUS, 15);
        device.write(reg::CONFIG, &[1]);
        let mut bits = [0; 4];
        device.read(reg::STATUS, &mut bits);
        assert_eq!(u32::from_le_bytes(bits), 15);
        write(reg::STATUS, 0);
    }
}

#[test]
fn device_thread_and_vcpu_live_within_their_filters() {
    let mut stops = 0;
    // After the second life, the backend ends.
    let (socket, peer) = Backend::default().serve(move |seen| {
        stops += usize::from(seen.request == 11);
        if stops == 2 && seen.request == 11 { Reaction::CloseAfter } else { Reaction::Behave }
    });
    fcntl_setfd(&socket, FdFlags::empty()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--test-threads=1", "--nocapture"])
        .env(SOCKET, socket.as_raw_fd().to_string())
        // The thread that becomes the process is not the first, and would have a heap of its own.
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    drop(socket);
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    peer.join().unwrap();
}
