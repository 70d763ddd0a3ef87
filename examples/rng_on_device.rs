//! A source of random bytes (virtio-rng; Virtio 1.2, section 5.4) on the crate `device`, as Volt's own backends are. Its twin,
//! `rng_on_vhost_user_backend.rs`, is the same device on the crate `vhost-user-backend`.
//!
//! `device::run` confines the process before the first byte of the frontend's is read; the worker is left with the calls that
//! every worker has, and the one that is named here.

use std::os::fd::BorrowedFd;

use clap::Parser;
use confine::Filter;
use device::{BoxError, Chain, Device, Options, Popped, Progress, Ring, Worker};
use rustix::rand::{GetRandomFlags, getrandom};

/// Most bytes for one chain: so many come at once and whole (getrandom(2)). A device may give less than there is room for (5.4.6.2).
const MOST: usize = 256;
/// Chains that are served before what else a worker waits for is looked at.
const BUDGET: usize = 64;

struct Entropy;

impl Device for Entropy {
    type Worker = Source;
    const PROGRAM: &'static str = "rng-on-device";
    const VIRTIO_ID: u32 = 4;

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn set_features(&mut self, _features: u64) -> Result<(), BoxError> {
        Ok(())
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn worker_filter(&self) -> Filter {
        Filter::new("rng").allow(&[libc::SYS_getrandom])
    }

    fn workers(&mut self) -> Vec<Source> {
        vec![Source]
    }
}

struct Source;

impl Worker for Source {
    const RINGS: usize = 1;

    fn run(&mut self, rings: &mut [Option<Ring>]) -> Result<Progress, BoxError> {
        let [Some(ring)] = rings else {
            return Ok(Progress::Idle);
        };
        let memory = ring.memory();
        let mut chain = Chain::new(&memory);
        let mut bytes = [0; MOST];
        ring.disable_kicks();
        for _ in 0..BUDGET {
            match ring.pop(&mut chain) {
                Popped::Chain => {
                    let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
                    let written = chain.writable.write(0, bytes.get(..filled).unwrap_or_default());
                    ring.complete(chain.head(), written as u32, written as u64, written > 0);
                }
                Popped::Malformed => ring.reject(chain.head()),
                Popped::Empty => {
                    ring.notify()?;
                    return Ok(if ring.enable_kicks() { Progress::More } else { Progress::Idle });
                }
            }
        }
        ring.notify()?;
        Ok(Progress::More)
    }
}

/// Gives one virtual machine random bytes over vhost-user.
#[derive(Parser)]
#[command(name = "rng-on-device", version)]
struct Args {
    #[command(flatten)]
    options: Options,
}

fn main() {
    let Args { options } = Args::parse();
    if options.print_capabilities {
        println!(r#"{{"type":"rng"}}"#);
        return;
    }
    device::run(&options, Ok(Entropy));
}
