//! The control thread: serves `Vm` (schema/vm.capnp) on the control link, and sees the VM to its end. Touches the lifecycle, the
//! power button and vCPU threads; never guest memory or a device's data.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use confine::{Filter, JoinHandle, Narrow, Rule};
use ipc::{Code, Fault};
use schema::vm_capnp::{MAX_GRACE_MILLISECONDS, exit, vm, vm_info};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Console;
use crate::error::Error;
use crate::lifecycle::{Exit, Lifecycle, Reason, State};
use crate::vcpu::{ImmediateExit, exit_signal};
use crate::virtio::{self, MmioDevice};

/// How long vCPUs may take to leave the guest, and the console to take the last words.
const WIND_UP: Duration = Duration::from_secs(1);
/// How long the process stays to tell why the VM ended, if nobody has asked yet.
const UNTOLD: Duration = Duration::from_secs(5);
/// How long it stays when somebody has, for the answer to get out, and for others to ask.
const TOLD: Duration = Duration::from_millis(100);
/// Between two looks at something that has no wake-up.
const TICK: Duration = Duration::from_millis(1);

/// What the control thread has.
pub struct ControlThread {
    /// Where `Vm` is served.
    pub link: ipc::LinkSocket,
    /// The VM's life.
    pub lifecycle: Arc<Lifecycle>,
    /// Eventfd that says it has ended.
    pub ended: OwnedFd,
    /// Presses the ACPI power button.
    pub power_button: EventFd,
    /// The serial port's far side.
    pub console: Arc<Console>,
    /// Its thread.
    pub console_thread: JoinHandle<()>,
    /// vCPU threads, which never end, and how to get each out of the guest.
    pub vcpus: Vec<(JoinHandle<()>, ImmediateExit)>,
    /// Devices whose handshakes a start waits for.
    pub devices: Vec<Arc<MmioDevice>>,
    /// Bytes of RAM.
    pub memory: u64,
}

impl ControlThread {
    /// What the thread may ask of the kernel.
    pub fn filter() -> Filter {
        Filter::new("control")
            .with(&confine::base::tokio())
            // pthread_kill: getpid is its own, and so are the signals that it blocks meanwhile.
            .allow(&[libc::SYS_getpid, libc::SYS_rt_sigprocmask])
            .allow_if(libc::SYS_tgkill, vec![Rule::eq(2, exit_signal() as u32)])
    }

    /// Serves the link until the VM has ended and its end was told, or until the link ends. Says why the VM ended.
    pub fn run(self, _: Narrow, runtime: ipc::Runtime) -> Result<Exit, Error> {
        runtime.run(serve(self))
    }
}

async fn serve(thread: ControlThread) -> Result<Exit, Error> {
    let ControlThread { link, lifecycle, ended, power_button, console, console_thread, vcpus, devices, memory } =
        thread;
    let server = Rc::new(VmServer {
        lifecycle: lifecycle.clone(),
        power_button,
        console: console.clone(),
        devices,
        vcpus: u16::try_from(vcpus.len()).unwrap_or(u16::MAX),
        memory,
        deadline: Cell::new(None),
        deadline_set: Notify::new(),
        over: watch::Sender::new(false),
        told: Notify::new(),
    });
    // SAFETY: an `OwnedFd` stays open and names the same file for as long as it lives, and it lives in the `AsyncFd`.
    let ended = unsafe { AsyncFd::register(ended) }.map_err(Error::host("watch an eventfd"))?;
    let client: vm::Client = capnp_rpc::new_client_from_rc(server.clone());
    let serving = ipc::serve_link(link, ipc::Limits::default(), client.client);
    let mut serving = std::pin::pin!(serving);

    let linked = tokio::select! {
        _ = &mut serving => false,
        _ = ended.readable() => true,
        () = server.deadline_passed() => true,
    };
    // Changes nothing where the VM has ended by itself.
    lifecycle.end(Exit::orderly(Reason::Stopped));
    if linked {
        // Calls are still answered meanwhile.
        tokio::select! {
            _ = &mut serving => {}
            () = async {
                wind_up(&lifecycle, &console, &console_thread, &vcpus).await;
                let _ = server.over.send_replace(true);
                if timeout(UNTOLD, server.told.notified()).await.is_ok() {
                    sleep(TOLD).await;
                }
            } => {}
        }
    } else {
        wind_up(&lifecycle, &console, &console_thread, &vcpus).await;
    }
    match lifecycle.state() {
        State::Ended(exit) => Ok(exit),
        State::Created | State::Running => Ok(Exit::orderly(Reason::Stopped)),
    }
}

/// Gets the vCPUs out of the guest and the last words to the console, as far as they come in time.
async fn wind_up(
    life: &Lifecycle,
    console: &Console,
    thread: &JoinHandle<()>,
    vcpus: &[(JoinHandle<()>, ImmediateExit)],
) {
    for (thread, immediate_exit) in vcpus {
        immediate_exit.set();
        // SAFETY: the thread never ends before the process does, so its handle stays good.
        let _ = unsafe { libc::pthread_kill(thread.as_pthread_t(), exit_signal()) };
    }
    until(WIND_UP, || life.parked() >= vcpus.len()).await;
    console.finish();
    until(WIND_UP, || thread.is_finished()).await;
}

/// Waits until it is so, but no longer than `limit`. By looking: to wait as a thread ([`JoinHandle::finishes_within`]) would
/// hold up the calls that this one answers, and take a system call that it does not have (`restart_syscall`).
async fn until(limit: Duration, is_so: impl Fn() -> bool) {
    let end = Instant::now() + limit;
    while !is_so() && Instant::now() < end {
        sleep(TICK).await;
    }
}

/// The bootstrap capability.
struct VmServer {
    lifecycle: Arc<Lifecycle>,
    power_button: EventFd,
    console: Arc<Console>,
    devices: Vec<Arc<MmioDevice>>,
    vcpus: u16,
    memory: u64,
    /// When the VM is to be stopped, whatever the guest does.
    deadline: Cell<Option<Instant>>,
    deadline_set: Notify,
    /// The VM has ended and wound up.
    over: watch::Sender<bool>,
    /// Somebody has been told of its end.
    told: Notify,
}

fn fault(code: Code, tried: &str, why: impl Into<String>, remedy: &str) -> capnp::Error {
    Fault::new(code, tried, why, remedy).into()
}

impl VmServer {
    /// Returns once the grace time of a `stop` is over; a shorter one replaces a longer one.
    async fn deadline_passed(&self) {
        loop {
            match self.deadline.get() {
                None => self.deadline_set.notified().await,
                Some(deadline) => tokio::select! {
                    () = sleep_until(deadline) => return,
                    () = self.deadline_set.notified() => {}
                },
            }
        }
    }

    /// Returns when the VM has ended and wound up.
    async fn until_over(&self) -> Exit {
        // Fails only if the sender is gone, which is `self`.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
        match self.lifecycle.state() {
            State::Ended(exit) => exit,
            State::Created | State::Running => Exit::orderly(Reason::Stopped),
        }
    }

    /// Returns when each device is there, or one has failed: within its thread's own deadline, which knows what the backend was asked last.
    async fn handshakes(&self) -> Result<(), capnp::Error> {
        for device in &self.devices {
            loop {
                match device.wait_ready(Duration::ZERO) {
                    Ok(()) => break,
                    Err(virtio::Error::NotReady(_)) => sleep(TICK).await,
                    Err(error) => return Err(unavailable(ipc::chain(&error))),
                }
            }
        }
        Ok(())
    }
}

fn unavailable(why: impl Into<String>) -> capnp::Error {
    fault(Code::Unavailable, "start the VM", why, "Look at the log of that device's backend")
}

impl vm::Server for VmServer {
    async fn start(self: Rc<Self>, _: vm::StartParams, _: vm::StartResults) -> Result<(), capnp::Error> {
        let begun = || fault(Code::WrongState, "start the VM", "it was started before", "Run a new one");
        match self.lifecycle.state() {
            State::Created => {}
            State::Ended(exit) if exit.reason == Reason::DeviceFailed => return Err(unavailable(exit.text())),
            State::Running | State::Ended(_) => return Err(begun()),
        }
        self.handshakes().await?;
        if self.lifecycle.begin() { Ok(()) } else { Err(begun()) }
    }

    async fn info(self: Rc<Self>, _: vm::InfoParams, mut results: vm::InfoResults) -> Result<(), capnp::Error> {
        let mut info = results.get().init_info();
        info.set_vcpus(self.vcpus);
        info.set_memory(self.memory);
        info.set_console_dropped(self.console.dropped());
        let state = match self.lifecycle.state() {
            State::Created => vm_info::State::Created,
            State::Running => vm_info::State::Running,
            State::Ended(exit) => {
                write_exit(info.reborrow().init_exit(), &exit);
                vm_info::State::Stopped
            }
        };
        info.set_state(state);
        Ok(())
    }

    async fn stop(self: Rc<Self>, params: vm::StopParams, _: vm::StopResults) -> Result<(), capnp::Error> {
        let grace = params.get()?.get_grace_milliseconds();
        if grace > MAX_GRACE_MILLISECONDS {
            let why = format!("the grace time of {grace} ms is longer than {MAX_GRACE_MILLISECONDS}");
            return Err(fault(Code::InvalidArgument, "stop the VM", why, "Give it less time"));
        }
        // From here on it happens, whether the caller waits or not.
        match self.lifecycle.state() {
            State::Created => self.lifecycle.end(Exit::orderly(Reason::Stopped)),
            State::Running => {
                let deadline = Instant::now() + Duration::from_millis(grace.into());
                let sooner = self.deadline.get().is_none_or(|set| deadline < set);
                if sooner {
                    self.deadline.set(Some(deadline));
                    self.deadline_set.notify_one();
                }
                // A pressed button that the guest has not seen yet stays pressed.
                let _ = self.power_button.write(1);
            }
            State::Ended(_) => {}
        }
        // Whoever stopped it may yet ask how it ended: only `wait` tells that.
        self.until_over().await;
        Ok(())
    }

    async fn wait(self: Rc<Self>, _: vm::WaitParams, mut results: vm::WaitResults) -> Result<(), capnp::Error> {
        let exit = self.until_over().await;
        write_exit(results.get().init_exit(), &exit);
        self.told.notify_one();
        Ok(())
    }
}

fn write_exit(mut to: exit::Builder<'_>, ended: &Exit) {
    to.set_reason(match ended.reason {
        Reason::Poweroff => exit::Reason::Poweroff,
        Reason::Reset => exit::Reason::Reset,
        Reason::Stopped => exit::Reason::Stopped,
        Reason::DeviceFailed => exit::Reason::DeviceFailed,
        Reason::InternalError => exit::Reason::InternalError,
    });
    to.set_detail(ended.text());
}
