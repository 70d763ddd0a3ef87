//! Filters that roles share, each no larger than what it names. Compose them with [`Filter::with`].
//!
//! Found by running each activity under its filter (`tests/attempts/base.rs` runs them), with static glibc.

use crate::filter::{Filter, Rule};

/// To wait, to panic with a message on stderr, and to end: what any thread needs.
///
/// Includes [`allocator`], as both a panic and a thread's end allocate and free.
pub fn exit() -> Filter {
    let filter = Filter::new("exit")
        .with(&allocator())
        .allow(&[
            libc::SYS_futex,           // mutexes, channels, join, the gate
            libc::SYS_clock_gettime,   // a deadline's clock, where the vDSO has none (an unstable TSC, an emulated CPU)
            libc::SYS_sched_yield,     // std's spinning before it parks
            libc::SYS_restart_syscall, // a stopped and continued process resumes its timed waits through it
            libc::SYS_rt_sigreturn,    // the end of a signal handler
            libc::SYS_rt_sigprocmask,  // glibc blocks signals around a thread's end
            libc::SYS_sigaltstack,     // std takes down its guard-page handler's stack
            libc::SYS_gettid,          // std's panic message names the thread
            libc::SYS_exit,
            libc::SYS_exit_group,
        ])
        // A panic's message, and nothing else that `write` could reach.
        .allow_if(libc::SYS_write, vec![Rule::eq(0, 2)]);
    // Debug builds of std check that a descriptor is open before they close it.
    #[cfg(debug_assertions)]
    let filter = filter.allow_if(libc::SYS_fcntl, vec![Rule::eq(1, libc::F_GETFD as u32)]);
    filter
}

/// To allocate and free memory, also in threads (arenas are reserved PROT_NONE, then made writable). Never executable.
pub fn allocator() -> Filter {
    let not_executable = || vec![Rule::masked_eq(2, libc::PROT_EXEC as u64, 0)];
    Filter::new("allocator")
        .allow_if(libc::SYS_mmap, not_executable())
        .allow_if(libc::SYS_mprotect, not_executable())
        .allow(&[
            libc::SYS_munmap,
            libc::SYS_mremap, // realloc of large blocks
            libc::SYS_brk,
            libc::SYS_madvise, // trimming, and a thread's stack at its end
        ])
}

/// To build and run a current-thread tokio runtime with timers, and to talk over stream and packet sockets that are
/// already open. Neither makes nor accepts a socket: see [`listener`]. Includes [`exit`].
pub fn tokio() -> Filter {
    let fcntl = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD, libc::F_DUPFD_CLOEXEC];
    let filter = Filter::new("tokio")
        .with(&exit())
        .allow(&[
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2, // the runtime's waker
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_shutdown,
            libc::SYS_close,
            libc::SYS_getrandom, // hash seeds
        ])
        .allow_if(libc::SYS_fcntl, fcntl.map(|command| Rule::eq(1, command as u32)).to_vec())
        .allow_if(libc::SYS_ioctl, vec![Rule::eq(1, libc::FIONBIO as u32)])
        // SO_ERROR after an event, SO_PEERCRED for who the peer is, the others for what was inherited.
        .allow_if(
            libc::SYS_getsockopt,
            [libc::SO_ERROR, libc::SO_PEERCRED, libc::SO_TYPE, libc::SO_DOMAIN, libc::SO_ACCEPTCONN]
                .map(|option| Rule::eq(1, libc::SOL_SOCKET as u32).and(Rule::eq(2, option as u32)))
                .to_vec(),
        );
    #[cfg(target_arch = "x86_64")]
    let filter = filter.allow(&[libc::SYS_epoll_wait]);
    filter
}

/// To accept connections on sockets that already listen, and to see whether one waits. Beside [`tokio`].
pub fn listener() -> Filter {
    // ppoll: whether a connection waits when a service's idle time is over.
    Filter::new("listener").allow(&[libc::SYS_accept4, libc::SYS_ppoll])
}
