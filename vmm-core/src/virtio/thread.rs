//! The one thread that a device has. It talks to the backend: the handshake at its start, then whatever the
//! driver's register writes ask for. May touch the vhost-user socket, the device's eventfds, and the VM fd with
//! KVM_IOEVENTFD and KVM_IRQFD; sees neither guest RAM nor the registers' lock for longer than an update takes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::channel::Channel;
use super::device::{MmioDevice, Shared, Work};
use super::events::{Events, KVM_IOEVENTFD, KVM_IRQFD, eventfd};
use super::frontend::{DeviceOptions, Frontend, Vring};
use super::regs::{Activation, Registers};
use super::requests::BackendRequests;
use super::wire::MAX_REGIONS;
use super::{DeviceSpec, Error, MAX_CONFIG, MAX_QUEUES, RamRegion};

/// What a backend has for each operation, from its first message to its last.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// [`schema::limits::HANDSHAKE`], but in tests.
    pub handshake: Duration,
    /// A vCPU waits for this.
    pub operation: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { handshake: schema::limits::HANDSHAKE, operation: Duration::from_secs(5) }
    }
}

/// A device's thread, before it runs. Dropping it instead fails the device.
pub struct DeviceThread {
    shared: Arc<Shared>,
    frontend: Frontend,
    events: Box<dyn Events>,
    options: DeviceOptions,
    deadlines: Deadlines,
    /// The rings that the backend uses now.
    vrings: Vec<Vring>,
}

/// Phase 1 of a device: checks, eventfds, no byte from the backend.
pub(super) fn build(
    spec: DeviceSpec,
    memfd: Arc<OwnedFd>,
    regions: Vec<RamRegion>,
    events: Box<dyn Events>,
    deadlines: Deadlines,
) -> Result<(Arc<MmioDevice>, DeviceThread), Error> {
    let DeviceSpec { virtio_id, socket, queue_size, queues, config } = spec;
    if !queue_size.is_power_of_two() || queue_size < 2 {
        return Err(Error::QueueSize(queue_size));
    }
    if let Some(queues) = queues.filter(|queues| !(1..=MAX_QUEUES).contains(queues)) {
        return Err(Error::Queues(queues));
    }
    if let Some(config) = config.as_ref().filter(|config| config.len() > MAX_CONFIG) {
        return Err(Error::ConfigSize(config.len()));
    }
    if !(1..=MAX_REGIONS).contains(&regions.len()) {
        return Err(Error::Regions(regions.len()));
    }
    let event = || eventfd().map_err(|source| Error::Host { what: "make an eventfd", source });
    let (wake, config_call) = (event()?, event()?);
    events.register_irqfd(&config_call).map_err(|source| Error::Host { what: "register an irqfd", source })?;
    let regs = Registers::new(virtio_id, regions.clone());
    let shared = Arc::new(Shared::new(regs, wake, config_call, deadlines.operation));
    let channel = Channel::new(socket, BackendRequests::new()?);
    let thread = DeviceThread {
        shared: Arc::clone(&shared),
        frontend: Frontend::new(channel, memfd, regions),
        events,
        options: DeviceOptions { virtio_id, queue_size, queues, config },
        deadlines,
        vrings: Vec::new(),
    };
    Ok((Arc::new(MmioDevice::new(shared)), thread))
}

impl DeviceThread {
    /// What this thread may ask of the kernel.
    pub fn filter() -> confine::Filter {
        use confine::{Rule, base};
        confine::Filter::new("virtio-device")
            .with(&base::thread())
            .with(&base::clock())
            .with(&base::close())
            .with(&base::signal())
            .allow(&[libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_ppoll, libc::SYS_eventfd2])
            .allow_if(libc::SYS_read, vec![Rule::eq64(2, 8)]) // its eventfd
            .allow_if(libc::SYS_ioctl, Rule::any(1, &[KVM_IOEVENTFD, KVM_IRQFD]))
    }

    /// Shakes hands with the backend, then serves the device until the backend fails or the process ends.
    /// `failed` is told why the device does not work any more, once; the VM should end then.
    pub fn run(mut self, failed: impl FnOnce(String) + Send) {
        // Nothing here is used after a panic but what says so.
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let why = match served {
            Ok(Ok(())) => String::from("The device was given up"),
            Ok(Err(error)) => ipc::chain(&error),
            Err(_) => String::from("Its thread panicked, which is a bug in this program; please report the line above"),
        };
        let why = self.shared.fail(format!("Virtio device {}: {why}", self.options.virtio_id));
        failed(why);
    }

    /// Ends without an error only where a vCPU has given the device up, which left the reason.
    fn serve(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.deadlines.handshake;
        let offer = self.frontend.handshake(&self.options, deadline)?;
        self.shared.ready(offer);
        while !self.shared.has_failed() {
            self.wait()?;
            if let Some((work, deadline)) = self.shared.take_work() {
                self.work(work, deadline)?;
                self.shared.finish_work();
            }
            if self.frontend.channel.requests.take_config_changed() {
                let deadline = Instant::now() + self.deadlines.operation;
                if let Some(config) = self.frontend.read_config(deadline)? {
                    self.shared.update_config(config);
                }
            }
        }
        Ok(())
    }

    /// Waits for work, for a request of the backend, or for the backend's end.
    fn wait(&mut self) -> Result<(), Error> {
        let wake = self.shared.wake_event();
        let channel = &mut self.frontend.channel;
        let (woken, spoken, asked) = {
            let mut fds = vec![
                PollFd::from_borrowed_fd(borrow(wake), PollFlags::IN),
                PollFd::from_borrowed_fd(channel.socket(), PollFlags::IN | PollFlags::RDHUP),
            ];
            if let Some(requests) = channel.requests.socket() {
                fds.push(PollFd::from_borrowed_fd(requests, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::Host { what: "wait for work", source: errno.into() });
                }
            }
            let flags = |at: usize| fds.get(at).map_or(PollFlags::empty(), PollFd::revents);
            (flags(0), flags(1), flags(2))
        };
        if !woken.is_empty() {
            // Nothing to read is as good as having read it.
            let _ = wake.read();
        }
        if !asked.is_empty() {
            channel.requests.serve()?;
        }
        let request = "no request at all";
        if spoken.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
            return Err(Error::Closed { request });
        }
        if !spoken.is_empty() {
            return Err(Error::Protocol { request, why: "it speaks unasked" });
        }
        Ok(())
    }

    fn work(&mut self, work: Work, deadline: Instant) -> Result<(), Error> {
        match work {
            Work::Activate(activation) => self.activate(&activation, deadline),
            Work::Reset => self.reset(deadline),
            Work::WriteConfig(write) => {
                if let Some(config) = self.frontend.write_config(&write, deadline)? {
                    self.shared.update_config(config);
                }
                Ok(())
            }
        }
    }

    /// Eventfds are registered before the backend has them, so no notification and no interrupt is lost.
    fn activate(&mut self, activation: &Activation, deadline: Instant) -> Result<(), Error> {
        let host = |what| move |source| Error::Host { what, source };
        for &ring in &activation.rings {
            let kick = eventfd().map_err(host("make an eventfd"))?;
            let call = eventfd().map_err(host("make an eventfd"))?;
            let registered = self.events.register_ioeventfd(ring.index, &kick);
            registered.map_err(host("register an ioeventfd"))?;
            let registered = self.events.register_irqfd(&call);
            registered.map_err(host("register an irqfd"))?;
            self.vrings.push(Vring { ring, kick, call });
        }
        self.frontend.activate(activation, &self.vrings, deadline)?;
        for vring in &self.vrings {
            // What a driver notified before DRIVER_OK went nowhere; a notification too many does no harm.
            let _ = vring.kick.write(1);
        }
        Ok(())
    }

    /// After this the backend touches no ring, and nothing it may still hold reaches the guest.
    fn reset(&mut self, deadline: Instant) -> Result<(), Error> {
        self.frontend.stop(&self.vrings, deadline)?;
        let host = |what| move |source| Error::Host { what, source };
        for Vring { ring, kick, call } in self.vrings.drain(..) {
            let unregistered = self.events.unregister_ioeventfd(ring.index, &kick);
            unregistered.map_err(host("unregister an ioeventfd"))?;
            let unregistered = self.events.unregister_irqfd(&call);
            unregistered.map_err(host("unregister an irqfd"))?;
        }
        Ok(())
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.shared.fail(String::from("The device's thread is gone"));
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as its owner lives, and the result borrows from that owner.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
