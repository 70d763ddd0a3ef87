//! The program `kernel-store`: arguments, then confinement, then service. Phase 1 opens and locks the state directory, then binds or checks
//! the sockets; what the directory holds, and the first byte of a client, are read in phase 2.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use confine::Heap;
use ipc::Lane;
use kernel_store::error::Error;
use kernel_store::reading::Scratch;
use kernel_store::service::Service;
use kernel_store::store::{Limits, Store};
use kernel_store::{filters, rpc};
use rustix::fs::{FlockOperation, Mode, OFlags};
use schema::programs::KERNEL_STORE;
use service::{Options, Owner, Serving, StateDir};

/// Unpacks, checks and keeps guest kernels, and serves them over Cap'n Proto
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    options: Options,
    /// Most bytes that all kernels together may take
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().bytes)]
    max_bytes: u64,
}

fn main() {
    service::main(&KERNEL_STORE, run)
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let (serving, disk, unpacker) = start(arguments)?;
    let (service, lane) = (Service::new(disk, unpacker), Lane::new());
    let offered = lane.clone();
    serving.serve(lane, move |peer| Ok(rpc::bootstrap(&service, &offered, peer)), std::future::pending())
}

fn start(arguments: &Arguments) -> Result<(Serving, Owner<Store>, Owner<Scratch>), Error> {
    // Before there are sockets, which stay, and before anything there is handed over.
    let path = arguments.state.take(&arguments.options)?;
    let mut dir = claim(&path, arguments)?;
    let wide = arguments.options.begin(&KERNEL_STORE)?;
    let (wide, seen) = wide.keep_folder(&path)?;
    // Images are large and rare.
    let wide = wide.keep(|sandbox| Ok(sandbox.heap(Heap::Mapping).keep_fd(dir.as_raw_fd())))?;
    let mut starting = wide.confine::<Error>()?;
    if seen != path {
        // Once more, in the root that it has now: a descriptor from before would lead out of that.
        drop(dir);
        dir = claim(&seen, arguments)?;
    }
    let limits = Limits { bytes: arguments.max_bytes, ..Limits::default() };
    let disk = starting.thread("disk", &filters::disk(), move || Store::open(dir, limits))?;
    let unpacker = starting.thread("unpack", &filters::unpack(), || Ok(Scratch::new()))?;
    Ok((starting.enter()?, disk, unpacker))
}

/// The state directory, locked. `seen` is where this process sees it.
fn claim(seen: &Path, Arguments { state, .. }: &Arguments) -> Result<OwnedFd, Error> {
    let dir = rustix::fs::open(seen, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| state.failed(error))?;
    // A predecessor that was just killed may still be on its way out.
    for _ in 0..40 {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(state.failed(error).into()),
        }
    }
    Err(Error::InUse(state.path.clone()))
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use ipc::{Code, Fault};
    use service::Stopped;
    use testkit::attempt::attempt;

    use super::*;

    #[test]
    fn a_panic_is_said_under_each_thread_s_filter_and_the_next_request_has_a_state_that_was_made_anew() {
        attempt(|| {
            let dir = tempfile::tempdir().unwrap().keep();
            let (state, socket) = (dir.join("state"), dir.join("s"));
            let [state, socket] = [&state, &socket].map(|path| path.to_str().unwrap());
            let arguments = Arguments::parse_from(["kernel-store", "--state-dir", state, "--socket", socket]);
            let (serving, disk, unpacker) = start(&arguments).unwrap();
            serving.run(async {
                catch_unwind(|| panic!("on the main thread")).unwrap_err();
                let asked = disk.ask(|_| -> Result<(), Fault> { panic!("on the disk thread") }).await;
                assert_eq!(asked.unwrap_err().code, Code::Internal);
                assert_eq!(disk.ask(|store| Ok::<_, Fault>(store.list().len())).await, Ok(0));
                let limit = Duration::from_secs(9);
                let decoder = |_: &mut Scratch| -> Result<Option<()>, ()> { panic!("on the unpacking thread") };
                assert_eq!(unpacker.work(limit, decoder).await, Err(Stopped::Panicked));
                assert_eq!(unpacker.work(limit, |_| Ok::<_, ()>(Some(7))).await, Ok(7));
            });
        })
        .passes()
        .says("on the main thread")
        .says("thread 'disk' panicked")
        .says("on the disk thread")
        .says("thread 'unpack' panicked")
        .says("on the unpacking thread");
    }
}
