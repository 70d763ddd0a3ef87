//! What the supervisor and the launcher of a VM may ask of the kernel once they listen to others.

use confine::{Filter, MemoryWatch, Rule, base};

use crate::{filters, host::absence::Names};

/// Bytes of the supervisor's reads: of signals, of names of sockets, and of its cgroup's events at the end.
const READ: usize = size_of::<libc::signalfd_siginfo>();
const _: () = assert!(READ == MemoryWatch::READ && READ == Names::READ);

/// The supervisor of a VM: talks over the links that it has, and kills what does not end. It starts nothing and opens nothing.
pub fn supervisor() -> Filter {
    Filter::new("supervisor")
        .with(&base::tokio())
        .with(&base::heap())
        .with(&base::listener())
        .with(&base::timed_wait())
        .with(&filters::links())
        .with(&filters::poll())
        .allow_if(libc::SYS_read, vec![Rule::eq64(2, READ as u64)])
        .allow_if(libc::SYS_socketpair, vec![Rule::eq(0, libc::AF_UNIX as u32)]) // the links of a VM
        .allow_if(libc::SYS_pidfd_send_signal, vec![Rule::eq(1, libc::SIGKILL as u32)])
        .allow_if(libc::SYS_ioctl, Rule::any(1, &[libc::TIOCGPGRP as u32, libc::TCSETS2 as u32])) // a terminal: whose, and its modes
}

/// The launcher of a VM's programs. A filter is inherited by every program started under it, so this one has to allow whatever
/// they need until they confine themselves: making VMs, memory and threads. What it denies, on top of an empty root,
/// Landlock (no file but Volt's programs), namespaces and the want of capabilities: sockets, other processes' memory, mounts,
/// modules, keys, bpf, io_uring, userfaultfd, perf.
pub fn launcher() -> Filter {
    // The C library looks for /proc/self/maps as a program starts, to learn of its stack; in an empty root there is none.
    let maps = (libc::O_RDONLY | libc::O_CLOEXEC) as u32;
    Filter::new("launcher")
        .with(&base::exit())
        .with(&memory())
        .with(&start())
        .with(&programs())
        .with(&older())
        .allow_if(libc::SYS_openat, vec![Rule::eq(2, maps)])
}

/// Memory in every way that a program may ask for it before it confines itself, but never executable.
fn memory() -> Filter {
    let not_executable = || vec![Rule::masked_eq(2, libc::PROT_EXEC as u64, 0)];
    Filter::new("memory")
        .with(&base::heap())
        .allow_if(libc::SYS_mmap, not_executable())
        .allow_if(libc::SYS_mprotect, not_executable())
        .allow(&[libc::SYS_munmap, libc::SYS_madvise])
}

/// Starting and reaping a program.
fn start() -> Filter {
    // Its own way to start a program, with and without namespaces.
    let fork = libc::CLONE_PIDFD | libc::SIGCHLD;
    let isolated = fork | libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
    Filter::new("start")
        .with(&filters::poll())
        .allow_if(libc::SYS_clone, vec![Rule::eq64(0, fork as u64), Rule::eq64(0, isolated as u64)])
        .allow_if(libc::SYS_pidfd_send_signal, vec![Rule::eq(1, libc::SIGKILL as u32)])
        .allow(&[
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_execveat,
            libc::SYS_wait4,
            libc::SYS_setsid,
            libc::SYS_dup3,
            libc::SYS_close_range,
            libc::SYS_pipe2,
            libc::SYS_fcntl,
            libc::SYS_close,
            libc::SYS_read,
            libc::SYS_write,
        ])
}

/// What vmm-core and the device backends use before and in their own phase 2, beyond the rest.
fn programs() -> Filter {
    let unix = vec![Rule::eq(0, libc::AF_UNIX as u32)];
    let thread = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let option = |option: libc::c_int| Rule::eq(0, option as u32);
    let options = vec![
        option(libc::PR_SET_PDEATHSIG),
        option(libc::PR_SET_NAME),
        option(libc::PR_SET_NO_NEW_PRIVS),
        option(libc::PR_SET_DUMPABLE).and(Rule::eq64(1, 0)),
        option(libc::PR_CAPBSET_READ),
        option(libc::PR_CAPBSET_DROP),
        option(libc::PR_CAP_AMBIENT).and(Rule::eq64(1, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)),
    ];
    Filter::new("programs")
        .with(&base::tokio())
        .with(&base::timed_wait())
        .with(&base::memory_files())
        .allow_if(libc::SYS_socketpair, unix)
        // The C library makes threads with clone3 where there is one; what that is to share cannot be looked at.
        .absent(&[libc::SYS_clone3])
        .allow_if(libc::SYS_clone, vec![Rule::eq64(0, thread as u64)])
        .allow_if(libc::SYS_prctl, options)
        // Whether a second thread runs.
        .allow_if(libc::SYS_unshare, vec![Rule::eq64(0, libc::CLONE_THREAD as u64)])
        .allow_if(libc::SYS_tgkill, vec![Rule::eq(2, libc::SIGRTMIN() as u32)]) // the kick of a vCPU
        .allow_if(libc::SYS_prlimit64, vec![Rule::eq(0, 0)]) // its own
        .allow(&[
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_eventfd2,
            libc::SYS_getrandom,
            libc::SYS_clock_gettime,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn, // a kick of a vCPU
            libc::SYS_sigaltstack,
            libc::SYS_gettid,
            libc::SYS_ioctl, // KVM, TAP, block devices
            libc::SYS_pread64,
            libc::SYS_set_tid_address,
            libc::SYS_rt_sigaction,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_sched_getaffinity,
            libc::SYS_getpid,
            libc::SYS_capget,
            libc::SYS_capset,
            libc::SYS_seccomp,
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_restrict_self,
            libc::SYS_ftruncate,
            libc::SYS_fstat,
            libc::SYS_statx,
            libc::SYS_lseek,
            libc::SYS_preadv,
            libc::SYS_pwrite64,
            libc::SYS_pwritev,
            libc::SYS_fdatasync,
            libc::SYS_sendfile,
            libc::SYS_getpeername,
            libc::SYS_getsockopt,
        ])
}

/// The older calls of x86-64 that C libraries still use there.
fn older() -> Filter {
    Filter::new("older").allow(&[
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_arch_prctl,
    ])
}
