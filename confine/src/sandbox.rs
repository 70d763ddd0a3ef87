//! What a program keeps, and the step that takes all else from the whole process.
//!
//! Touches the calling process only. Runs before any thread, and before any byte from a guest or a peer.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, chdir, chroot, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

use crate::confined::Confined;
use crate::error::{Error, step};
use crate::identity::User;
use crate::layer::{Layer, list};
use crate::limits::{Limit, Limits};
use crate::namespaces::{self, Root};
use crate::paths::{Access, Enclosure, Paths};
use crate::policy::{Policy, missing_when_keeping};
use crate::runtime::{self, Heap};
use crate::{capabilities, fds};

/// What a program keeps. Starts as nothing: no file, no capability, no network, no fd but 0 to 2.
#[derive(Debug)]
#[must_use = "nothing is confined before `confine`"]
pub struct Sandbox {
    program: &'static str,
    policy: Policy,
    fds: Vec<RawFd>,
    paths: Vec<(PathBuf, Access)>,
    programs: Vec<OwnedFd>,
    capability: Option<caps::Capability>,
    user: Option<User>,
    enclosed: bool,
    limits: Limits,
    heap: Heap,
    lacking: Vec<Layer>,
}

impl Sandbox {
    /// The safe defaults for `program`, whose name stands before the line about missing layers.
    pub fn new(program: &'static str, policy: Policy) -> Sandbox {
        Sandbox {
            program,
            policy,
            fds: Vec::new(),
            paths: Vec::new(),
            programs: Vec::new(),
            capability: None,
            user: None,
            enclosed: false,
            limits: Limits::safe(),
            heap: Heap::Growing,
            lacking: Vec::new(),
        }
    }

    /// Keeps an fd open. All others above 2 are closed; keeping one that is not open is an error.
    pub fn keep_fd(mut self, fd: RawFd) -> Sandbox {
        self.fds.push(fd);
        self
    }

    /// Keeps files beneath `dir` reachable: to make, read, write, truncate, rename and remove files and directories.
    /// Not to execute, nor to make device nodes, sockets or links.
    pub fn allow_dir_rw(mut self, dir: &Path) -> Sandbox {
        self.paths.push((dir.to_path_buf(), Access::DirRw));
        self
    }

    /// Keeps files and empty directories beneath `dir` removable, and `dir` to be opened; nothing there to be read or written.
    pub fn allow_removal(mut self, dir: &Path) -> Sandbox {
        self.paths.push((dir.to_path_buf(), Access::DirRemove));
        self
    }

    /// Keeps one file reachable, to read and write; if it is a device, its ioctls as well.
    pub fn allow_file_rw(mut self, file: &Path) -> Sandbox {
        self.paths.push((file.to_path_buf(), Access::FileRw));
        self
    }

    /// Keeps the devices beneath `dir` reachable, to read and write, with their ioctls, for whoever they are handed on to as well.
    pub fn allow_devices(mut self, dir: &Path) -> Sandbox {
        self.paths.push((dir.to_owned(), Access::Devices));
        self
    }

    /// Keeps files beneath `dir` readable.
    pub fn allow_dir_ro(mut self, dir: &Path) -> Sandbox {
        self.paths.push((dir.to_path_buf(), Access::DirRo));
        self
    }

    /// Keeps programs in `dir` executable, and readable: for a supervisor that starts others. They inherit every
    /// layer; as a plain user, starting them takes a [`Limit::Processes`] above 0.
    pub fn allow_dir_exec(mut self, dir: &Path) -> Sandbox {
        self.paths.push((dir.to_path_buf(), Access::DirExec));
        self
    }

    /// Keeps a program, open with `O_PATH`, executable through another fd of it, which has to be kept as well.
    pub fn allow_exec(mut self, program: OwnedFd) -> Sandbox {
        self.programs.push(program);
        self
    }

    /// Leaves at once for namespaces of its own (mount, ipc, uts and cgroup; with `own_network` an empty network as well) with
    /// that root. Paths to keep are looked for in it. Takes `CAP_SYS_ADMIN`. Whether it has that root: where the host (an
    /// outer sandbox, say) forbids it and the policy is best-effort, it says so and the root is what it was.
    ///
    /// # Errors
    ///
    /// Where that is forbidden and the policy strict, or a folder is not there. The process should end then.
    pub fn root(self, root: &Root, own_network: bool) -> Result<(Sandbox, bool), Error> {
        single_threaded()?;
        let left = namespaces::leave(root, own_network, self.user);
        self.has_left(left)
    }

    /// As [`root`](Sandbox::root), without any network, in a user namespace where that right is not held.
    ///
    /// # Errors
    ///
    /// As [`root`](Sandbox::root).
    pub fn alone(self, root: &Root) -> Result<(Sandbox, bool), Error> {
        if namespaces::may_leave() {
            return self.root(root, true);
        }
        single_threaded()?;
        self.has_left(namespaces::isolate(root))
    }

    fn has_left(self, outcome: Result<(), Error>) -> Result<(Sandbox, bool), Error> {
        let (lost, why) = match outcome {
            Ok(()) => return Ok((self, true)),
            Err(Error::NoRoot(why)) if self.policy != Policy::Strict => ("a root", why),
            Err(Error::NoNamespaces(why)) if self.policy != Policy::Strict => ("namespaces", why),
            Err(error) => return Err(error),
        };
        crate::say!("{}: runs without {lost} of its own, as this host forbids it ({why})", self.program);
        Ok((self, false))
    }

    /// Becomes that user, in [`confine`](Sandbox::confine). Takes `CAP_SETUID` and `CAP_SETGID`; a capability to keep is kept.
    pub fn user(mut self, user: User) -> Sandbox {
        self.user = Some(user);
        self
    }

    /// Keeps what a service has: the files beneath `folder`, as [`allow_dir_rw`](Sandbox::allow_dir_rw). Where there is a
    /// `user` to become, the folder is handed over to it, is `/` from now on, and nothing else is seen, nor any network, as
    /// [`root`](Sandbox::root) has it; where it says that it cannot, by chroot(2). Returns as well where the folder is from now on.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be handed over; as [`root`](Sandbox::root).
    pub fn service(self, user: Option<User>, folder: &Path) -> Result<(Sandbox, PathBuf), Error> {
        let Some(user) = user else { return Ok((self.allow_dir_rw(folder), folder.to_path_buf())) };
        user.own(folder)?;
        let (sandbox, alone) = self.user(user).root(&Root::empty().folder(folder, "/"), true)?;
        if !alone {
            // The user may have no way to its folder but as the root that it was left in.
            let failed = step("change its root", "an outer sandbox may forbid it");
            chroot(folder).and_then(|()| chdir("/")).map_err(failed)?;
        }
        let root = PathBuf::from("/");
        Ok((sandbox.allow_dir_rw(&root), root))
    }

    /// Keeps one capability, permitted and effective; the last call counts. It has to be held already.
    pub fn keep_capability(mut self, capability: caps::Capability) -> Sandbox {
        self.capability = Some(capability);
        self
    }

    /// Sets a limit in place of its default. Limits are only ever lowered: what was lower already stays.
    pub fn limit(mut self, limit: Limit, value: u64) -> Sandbox {
        self.limits.set(limit, value);
        self
    }

    /// Keeps the processes that were started since [`enclose`](crate::enclose) within reach of signals, as far as users allow it.
    pub fn signals_within(mut self, _: &Enclosure) -> Sandbox {
        self.enclosed = true;
        self
    }

    /// Says where the heap's memory comes from, in place of [`Heap::Growing`].
    pub fn heap(mut self, heap: Heap) -> Sandbox {
        self.heap = heap;
        self
    }

    /// Says that this program has found a layer missing that is its own: refused by [`confine`](Sandbox::confine), or said there, by the policy.
    pub fn lacks(mut self, layer: Layer) -> Sandbox {
        self.lacking.push(layer);
        self
    }

    /// Phase 2 for the process: closes fds, cuts all five capability sets, sets the rlimits, `no_new_privs` and
    /// non-dumpable, and restricts paths, network and scopes with Landlock at the newest ABI that the kernel has.
    ///
    /// # Errors
    ///
    /// Where a second thread runs, an fd or path to keep is not there, or a layer is missing and the policy strict.
    /// A process that got an error may be half confined: it should end.
    pub fn confine(self) -> Result<Confined, Error> {
        single_threaded()?;
        let missing = missing_when_keeping(self.capability);
        // What a program alone can find out, nobody has said before it.
        let said = match self.policy {
            Policy::BestEffortQuiet => self.lacking.clone(),
            _ => missing.iter().chain(&self.lacking).copied().collect(),
        };
        if !said.is_empty() {
            if self.policy == Policy::Strict {
                return Err(Error::Missing(said));
            }
            crate::say!("{}: runs without {}", self.program, list(&said));
        }
        runtime::settle(self.heap);
        // A process that was forked, or executed by a descriptor, has another's name, or a number (in `ps`, in the kernel's log).
        if let Ok(name) = std::ffi::CString::new(self.program) {
            rustix::thread::set_name(&name).map_err(step("name its main thread", "an outer sandbox may forbid it"))?;
        }
        let programs = self.programs.iter().map(AsRawFd::as_raw_fd);
        fds::close_all_but(&self.fds.iter().copied().chain(programs).collect::<Vec<_>>())?;
        if let Some(user) = self.user {
            user.become_it()?;
        }
        let paths = Paths::open(&self.paths, self.programs)?;
        self.limits.apply_now()?;
        set_no_new_privs(true).map_err(step("set no_new_privs", "it takes Linux 3.5"))?;
        capabilities::cut(self.capability)?;
        // After the capabilities: changing those resets it.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(step("make the process non-dumpable", "an outer sandbox may forbid it"))?;
        paths.restrict(self.enclosed)?;
        Ok(Confined::new(self.limits, !missing.contains(&Layer::Seccomp)))
    }
}

/// Fails if the process has another thread. Needs no /proc, which neither an empty root nor a launcher's filter leaves. Where an
/// outer sandbox (Docker's) forbids the question itself, the program's word has to do: it was executed a moment ago.
fn single_threaded() -> Result<(), Error> {
    // A thread that was joined may still be on its way out of the kernel.
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(2);
    for _ in 0..50 {
        // SAFETY: takes no pointers; a single thread it leaves as it is, for several it is refused.
        let alone = unsafe { libc::unshare(libc::CLONE_THREAD) } == 0;
        if alone || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return Ok(());
        }
        std::thread::sleep(PATIENCE);
    }
    Err(Error::Threads)
}
