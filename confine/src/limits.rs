//! Resource limits: lowered for the whole process, soft and hard at once, never raised.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, step};

/// A resource that [`Sandbox::limit`](crate::Sandbox::limit) bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Open fds: no fd number reaches this. Default 1024.
    OpenFiles,
    /// Bytes that a file may grow to; writing past it ends the process with SIGXFSZ. Default 1 GiB.
    FileSize,
    /// Bytes of address space. Default 4 GiB: whoever maps guest memory sets its own.
    AddressSpace,
    /// Processes and threads of the user (root is exempt, by the kernel's rule). Default 0, and applied by
    /// [`Confined::enter`](crate::Confined::enter), so that threads can be spawned before and none after.
    Processes,
    /// Bytes of a core dump. Default 0.
    Core,
    /// Bytes of locked memory. Default 0.
    LockedMemory,
}

/// One value a limit.
#[derive(Clone, Debug)]
pub(crate) struct Limits([(Limit, u64); 6]);

impl Limits {
    pub(crate) fn safe() -> Limits {
        Limits([
            (Limit::OpenFiles, 1024),
            (Limit::FileSize, 1 << 30),
            (Limit::AddressSpace, 4 << 30),
            (Limit::Processes, 0),
            (Limit::Core, 0),
            (Limit::LockedMemory, 0),
        ])
    }

    pub(crate) fn set(&mut self, limit: Limit, value: u64) {
        for (known, current) in &mut self.0 {
            if *known == limit {
                *current = value;
            }
        }
    }

    /// Applies those limits that hold from phase 2's first step on.
    pub(crate) fn apply_now(&self) -> Result<(), Error> {
        self.apply(|limit| limit != Limit::Processes)
    }

    /// Applies those that would stand in the way of starting the program's own threads.
    pub(crate) fn apply_last(&self) -> Result<(), Error> {
        self.apply(|limit| limit == Limit::Processes)
    }

    fn apply(&self, which: impl Fn(Limit) -> bool) -> Result<(), Error> {
        for (limit, value) in self.0.iter().filter(|(limit, _)| which(*limit)) {
            let resource = match limit {
                Limit::OpenFiles => Resource::Nofile,
                Limit::FileSize => Resource::Fsize,
                Limit::AddressSpace => Resource::As,
                Limit::Processes => Resource::Nproc,
                Limit::Core => Resource::Core,
                Limit::LockedMemory => Resource::Memlock,
            };
            let value = getrlimit(resource).maximum.map_or(*value, |hard| hard.min(*value));
            let new = Rlimit { current: Some(value), maximum: Some(value) };
            setrlimit(resource, new).map_err(step("lower a resource limit", "an outer sandbox may forbid it"))?;
        }
        Ok(())
    }
}
