//! A source of random bytes (virtio-rng; Virtio 1.2, section 5.4) on the crate `vhost-user-backend`, as many backends in Rust are.
//! Its twin, `rng_on_device.rs`, is the same device on Volt's crate `device`.
//!
//! Any frontend takes either. What this one lacks: it is not confined, since the crate starts the threads itself; a frontend that
//! goes silent within a message keeps it waiting; memory that the frontend cuts short ends it by SIGBUS.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Parser;
use rustix::rand::{GetRandomFlags, getrandom};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// Most bytes for one chain: so many come at once and whole (getrandom(2)). A device may give less than there is room for (5.4.6.2).
const MOST: usize = 256;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;

struct Entropy {
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

impl VhostUserBackendMut for Entropy {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    /// Without one the daemon would never end.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&mut self, _event: u16, _set: EventSet, vrings: &[VringMutex], _thread: usize) -> io::Result<()> {
        let served = vrings.first().map_or(Ok(()), |vring| serve(vring, &self.memory));
        if let Err(error) = &served {
            // The crate would end this thread and tell nobody.
            eprintln!("rng-on-vhost-user-backend: {error}");
            std::process::exit(1);
        }
        served
    }
}

fn serve(vring: &VringMutex, memory: &GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
    let memory = memory.memory();
    let mut vring = vring.get_mut();
    let mut bytes = [0; MOST];
    while let Some(chain) = vring.get_queue_mut().iter(memory.clone()).map_err(io::Error::other)?.next() {
        let head = chain.head_index();
        let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
        // What is no chain is given back as it is.
        let written = chain.writer(&*memory).map_or(0, |mut writer| {
            let room = writer.available_bytes().min(filled);
            writer.write(bytes.get(..room).unwrap_or_default()).unwrap_or(0)
        });
        vring.add_used(head, written as u32).map_err(io::Error::other)?;
    }
    vring.signal_used_queue()
}

/// Gives one virtual machine random bytes over vhost-user.
#[derive(Parser)]
#[command(name = "rng-on-vhost-user-backend", version)]
struct Args {
    /// Listen here, and serve the first frontend that connects
    #[arg(long, value_name = "PATH", required_unless_present = "print_capabilities")]
    socket_path: Option<PathBuf>,

    /// Print what this backend can do, as JSON, and exit
    #[arg(long)]
    print_capabilities: bool,
}

fn main() -> ExitCode {
    let Some(path) = Args::parse().socket_path else {
        println!(r#"{{"type":"rng"}}"#);
        return ExitCode::SUCCESS;
    };
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let entropy = Arc::new(Mutex::new(Entropy { memory: memory.clone() }));
    let served = VhostUserDaemon::new("rng".into(), entropy, memory).and_then(|mut daemon| daemon.serve(path));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rng-on-vhost-user-backend: {error}");
            ExitCode::FAILURE
        }
    }
}
