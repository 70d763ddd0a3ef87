//! What `volt`'s own threads may ask of the kernel once they listen to others.

use confine::{Filter, Rule, base};

/// To wait, to panic and to end, for a thread that also starts programs, or ends by itself: memory in every way that a
/// program may ask for it before it confines itself, but never executable.
pub fn exit() -> Filter {
    let not_executable = || vec![Rule::masked_eq(2, libc::PROT_EXEC as u64, 0)];
    Filter::new("exit")
        .with(&base::exit())
        .with(&base::heap())
        .with(&base::timed_wait())
        .with(&base::close())
        .allow_if(libc::SYS_mmap, not_executable())
        .allow_if(libc::SYS_mprotect, not_executable())
        .allow(&[
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_madvise,
            libc::SYS_sched_yield,
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigprocmask,
            libc::SYS_sigaltstack,
            libc::SYS_gettid,
            libc::SYS_exit,
        ])
}

/// A runtime that is made under the filter.
fn tokio() -> Filter {
    Filter::new("tokio").with(&exit()).with(&base::tokio()).allow(&[
        libc::SYS_epoll_create1,
        libc::SYS_eventfd2,
        libc::SYS_getrandom,
        libc::SYS_getsockopt,
        libc::SYS_fcntl,
        libc::SYS_ioctl,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
    ])
}

/// A short command: talks over the links that it has.
pub fn client() -> Filter {
    Filter::new("client").with(&tokio()).with(&lane())
}

/// What a refusal on the fd lane says, it says of this user.
fn lane() -> Filter {
    Filter::new("lane").allow(&[libc::SYS_geteuid])
}

/// The supervisor of a VM. A filter is inherited by every program started under it, so this one has to allow whatever
/// the VM's programs need until they confine themselves: making VMs, memory and threads. What it denies, on top of
/// Landlock (no path but Volt's programs) and the want of capabilities: sockets of any kind but pairs, other processes'
/// memory, namespaces, mounts, modules, keys, bpf, io_uring, userfaultfd, perf.
pub fn supervisor() -> Filter {
    Filter::new("supervisor")
        .with(&tokio())
        .with(&base::listener())
        .with(&lane())
        .with(&start())
        .with(&programs())
        .with(&unlink())
        .with(&older())
        .allow(&[
            libc::SYS_socketpair, // the links of a VM
            libc::SYS_fcntl,      // duplicates of what a VM's programs share
            libc::SYS_ioctl,      // the terminal's modes
            libc::SYS_clock_nanosleep,
            libc::SYS_pread64,
        ])
}

/// Starting, watching and reaping a program.
fn start() -> Filter {
    Filter::new("start").with(&poll()).allow(&[
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_execve,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_wait4,
        libc::SYS_setsid,
        libc::SYS_getppid,
        libc::SYS_dup3,
        libc::SYS_close_range,
        libc::SYS_pipe2,
        libc::SYS_openat, // /dev/null, where Landlock allows it
    ])
}

/// What vmm-core and the device backends use before their own phase 2, beyond the rest.
fn programs() -> Filter {
    Filter::new("programs").allow(&[
        libc::SYS_set_tid_address,
        libc::SYS_rt_sigaction,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prlimit64,
        libc::SYS_readlinkat,
        libc::SYS_sched_getaffinity,
        libc::SYS_getpid,
        libc::SYS_tgkill,
        libc::SYS_prctl,
        libc::SYS_capget,
        libc::SYS_capset,
        libc::SYS_seccomp,
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_restrict_self,
        libc::SYS_unshare, // with CLONE_THREAD: whether a second thread runs
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_lseek,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sendfile,
        libc::SYS_flock,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_sysinfo,
        libc::SYS_uname,
    ])
}

/// Removing a file by its path.
pub fn unlink() -> Filter {
    Filter::new("unlink").allow(&[
        libc::SYS_statx,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        #[cfg(not(target_arch = "x86_64"))]
        libc::SYS_unlinkat,
    ])
}

/// Waiting for a lock.
pub fn lock() -> Filter {
    Filter::new("lock").allow(&[libc::SYS_flock, libc::SYS_clock_nanosleep])
}

/// Waiting for descriptors.
pub fn poll() -> Filter {
    Filter::new("poll").allow(&[
        libc::SYS_ppoll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
    ])
}

/// The older calls of x86-64 that C libraries still use there.
fn older() -> Filter {
    Filter::new("older").allow(&[
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_arch_prctl,
    ])
}
