//! How a service starts and ends: wide, then confined, then narrow. Touches sockets and descriptors that it is given; reads nothing until it serves.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use capnp::capability::Client;
use confine::{Confined, Filter, Limit, Rule, Sandbox, User, base};
use futures::future::select_all;
use ipc::{Clients, Endpoint, Fault, Idle, Lane, Limits, Peer, Runtime};
use rustix::fs::Mode;
use schema::programs::Process;
use tokio::{sync::oneshot, task::LocalSet, time::timeout};

use crate::{Error, Lost, Options, Owner, State, owner};

/// What the main thread of a service may: serve clients on sockets that are there, and those that it accepts. It opens no file and makes no
/// socket; of a descriptor that is a file it only knows how to pass it on.
pub fn filter() -> Filter {
    Filter::new("main")
        .with(&base::tokio())
        .with(&base::listener())
        .with(&base::heap())
        // Tokens of descriptors, references that are secret.
        .allow_if(libc::SYS_getrandom, vec![Rule::eq(2, 0)])
}

/// What is served, and to whom.
struct Served {
    endpoint: Endpoint,
    clients: Clients,
    limits: Limits,
    idle: Option<Idle>,
}

/// Phase 1: the sockets are there, and nothing that a client sent has been read.
pub struct Wide {
    served: Served,
    user: Option<User>,
    sandbox: Sandbox,
}

impl Options {
    /// Begins a service: its files will be for its user alone, its sockets are made or taken, and its sandbox keeps those and nothing else.
    ///
    /// # Errors
    /// [`Error::Serve`] where the sockets cannot be had.
    pub fn begin(&self, program: &Process) -> Result<Wide, Error> {
        // What its files are made with, whatever whoever started it has.
        rustix::process::umask(Mode::from_raw_mode(0o077));
        let (endpoint, clients) = (self.listen.endpoint()?, self.listen.clients());
        let limits = Limits::of_service();
        let sandbox = Sandbox::new(program.title, self.confinement).limit(Limit::OpenFiles, ipc::OPEN_FILES);
        let sandbox = endpoint.as_fds().iter().fold(sandbox, |sandbox, fd| sandbox.keep_fd(fd.as_raw_fd()));
        let served = Served { endpoint, clients, limits, idle: self.listen.idle_exit().map(Idle::after) };
        Ok(Wide { served, user: self.user, sandbox })
    }
}

impl Wide {
    /// Has the sandbox keep what else this service needs, and as whom.
    ///
    /// # Errors
    /// Those of `also`.
    pub fn keep(mut self, also: impl FnOnce(Sandbox) -> Result<Sandbox, confine::Error>) -> Result<Wide, Error> {
        self.sandbox = also(self.sandbox)?;
        Ok(self)
    }

    /// Keeps the files in a folder, and becomes the user if there is one ([`Sandbox::service`]). Where the folder is from now on.
    ///
    /// # Errors
    /// [`Error::Confine`].
    pub fn keep_folder(mut self, folder: &Path) -> Result<(Wide, PathBuf), Error> {
        let (sandbox, seen) = self.sandbox.service(self.user, folder)?;
        self.sandbox = sandbox;
        Ok((self, seen))
    }

    /// Takes all else from the process.
    ///
    /// # Errors
    /// [`Error::Confine`]; [`Error::Runtime`] where descriptors run out.
    pub fn confine<E>(self) -> Result<Starting<E>, Error> {
        let confined = self.sandbox.confine()?;
        let runtime = Runtime::new().map_err(Error::Runtime)?;
        Ok(Starting { served: self.served, confined, runtime, threads: Vec::new(), begun: Vec::new() })
    }
}

/// The process is confined; its threads are not there yet, or wait. `E` is why one of them has no state.
pub struct Starting<E> {
    served: Served,
    confined: Confined,
    runtime: Runtime,
    threads: Vec<Thread>,
    begun: Vec<ipc::Receiver<Result<(), E>>>,
}

/// A thread that owns a state, as seen from the main one.
struct Thread {
    name: &'static str,
    /// Why it ended, when its work and its state have; wakes the main thread.
    why: oneshot::Receiver<Result<(), Lost>>,
    farewell: Option<Duration>,
}

impl<E: From<Error> + Send + 'static> Starting<E> {
    /// Starts a thread under a filter that, once all are narrow, makes its state by `begin` and does what is asked of it.
    ///
    /// # Errors
    /// [`Error::Confine`].
    pub fn thread<S: State>(
        &mut self,
        name: &'static str,
        filter: &Filter,
        begin: impl FnOnce() -> Result<S, E> + Send + 'static,
    ) -> Result<Owner<S>, Error> {
        let (owner, inbox) = owner();
        let (ready, begun) = ipc::queue();
        let (ended, why) = oneshot::channel();
        self.confined.spawn(name, filter, move || match begin() {
            Ok(state) => {
                let _ = ready.send(Ok(()));
                let _ = ended.send(inbox.run(state));
            }
            Err(error) => _ = ready.send(Err(error)),
        })?;
        self.begun.push(begun);
        self.threads.push(Thread { name, why, farewell: S::FAREWELL });
        Ok(owner)
    }

    /// Narrows the main thread, to its [`filter`], and lets the others begin. Waits until each has its state.
    ///
    /// # Errors
    /// [`Error::Confine`], [`Error::NotBegun`], and why a thread has no state.
    pub fn enter(self) -> Result<Serving, E> {
        self.confined.enter(&filter()).map_err(Error::Confine)?;
        for (thread, begun) in self.threads.iter().zip(self.begun) {
            begun.receive().map_err(|ipc::Gone| Error::NotBegun(thread.name))??;
        }
        Ok(Serving { served: self.served, runtime: self.runtime, threads: self.threads })
    }
}

/// Phase 2: all threads are narrow, and have their states.
pub struct Serving {
    served: Served,
    runtime: Runtime,
    threads: Vec<Thread>,
}

impl Serving {
    /// Has nobody's being connected be no reason to end as long as `stays` says so.
    pub fn unless<F: Future<Output = bool> + 'static>(mut self, stays: impl Fn() -> F + 'static) -> Serving {
        self.served.idle = self.served.idle.map(|idle| idle.unless(stays));
        self
    }

    /// Serves until nobody has been connected for as long as the arguments say, one of the threads ends, or `own` does, which says why. Then
    /// has the threads do what they have been told, and end.
    ///
    /// # Errors
    /// [`Error::Serve`], [`Error::Ended`], and what `own` gives.
    pub fn serve<E: From<Error>>(
        self,
        lane: Lane,
        bootstrap: impl Fn(Peer) -> Result<Client, Fault> + 'static,
        own: impl Future<Output = E>,
    ) -> Result<(), E> {
        let Serving { served: Served { endpoint, clients, limits, idle }, runtime, mut threads } = self;
        let serve = ipc::serve(endpoint, clients, lane, limits, idle, bootstrap);
        runtime.run(async {
            let names: Vec<_> = threads.iter().map(|thread| thread.name).collect();
            let ends = select_all(threads.iter_mut().map(|thread| &mut thread.why));
            let connections = LocalSet::new();
            let served = connections.run_until(async {
                tokio::select! {
                    served = serve => served.map_err(|error| E::from(Error::Serve(error))),
                    why = own => Err(why),
                    (why, at, _) = ends => Err(ended(why, names.get(at)).into()),
                }
            });
            served.await?;
            // With the connections the last handles go, and with these the threads end. A wait on the runtime takes no system call that serving
            // does not: one of the standard library's, with a limit, takes `restart_syscall` of who is stopped and continued meanwhile.
            drop(connections);
            for Thread { why, farewell, .. } in threads {
                match farewell {
                    Some(limit) => drop(timeout(limit, why).await),
                    None => drop(why.await),
                }
            }
            Ok(())
        })
    }

    /// Runs something else in its place: for tests of what happens on threads that are narrow.
    pub fn run<T>(self, instead: impl Future<Output = T>) -> T {
        self.runtime.run(instead)
    }
}

/// A thread has ended although there are handles on it.
fn ended(why: Result<Result<(), Lost>, oneshot::error::RecvError>, thread: Option<&&'static str>) -> Error {
    let why = match why {
        Ok(Err(why)) => why,
        Ok(Ok(())) | Err(_) => "it panicked; report the line above as a defect".into(),
    };
    Error::Ended { thread: thread.copied().unwrap_or_default(), why }
}

#[cfg(test)]
mod tests {
    use testkit::calls::NEVER_OF_A_SERVICE;

    use super::*;

    #[test]
    fn the_main_thread_has_few_syscalls_and_none_to_open_to_connect_or_to_start_anything() {
        let all: Vec<_> = filter().syscalls().collect();
        assert!(all.len() <= 25, "{}", all.len());
        for forbidden in NEVER_OF_A_SERVICE.into_iter().chain([libc::SYS_openat, libc::SYS_mmap]) {
            assert!(!all.contains(&forbidden), "{forbidden}");
        }
    }
}
