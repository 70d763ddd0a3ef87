//! Filters that roles share, each no larger than what it names. Compose them with [`Filter::with`].
//!
//! Found by running each activity under its filter (`tests/attempts/base.rs` runs them), with static glibc. That no role
//! has one that it does not use is shown by running the programs under a tracer (`tests/tests/syscalls.rs`).

use crate::filter::{Filter, Rule};
use crate::memory_file;

/// What any thread needs: to wait for another, without a limit of time, and to say a line on stderr.
pub fn thread() -> Filter {
    Filter::new("thread")
        .allow(&[libc::SYS_futex]) // mutexes, channels, the gate, the wait for the process's end
        .allow_if(libc::SYS_write, vec![Rule::eq(0, 2)]) // an error's line, a panic's message
}

/// To end the process, beside [`thread`].
pub fn exit() -> Filter {
    Filter::new("exit").with(&thread()).allow(&[libc::SYS_exit_group])
}

/// To allocate, with [`Heap::Growing`](crate::Heap::Growing).
pub fn heap() -> Filter {
    Filter::new("heap").allow(&[libc::SYS_brk])
}

/// To allocate large blocks, with [`Heap::Mapping`](crate::Heap::Mapping), beside [`heap`]. Memory that is neither a
/// file's nor executable. (For large blocks that grow add `mremap`.)
pub fn blocks() -> Filter {
    let kind = (libc::MAP_TYPE | libc::MAP_ANONYMOUS) as u64;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let writable = Rule::eq(2, (libc::PROT_READ | libc::PROT_WRITE) as u32);
    Filter::new("blocks")
        .allow_if(libc::SYS_mmap, vec![writable.and(Rule::masked_eq(3, kind, private))])
        .allow(&[libc::SYS_munmap])
}

/// To make [`memory_file`](crate::memory_file())s: where the kernel knows such that cannot be executed, no others.
pub fn memory_files() -> Filter {
    let filter = Filter::new("memory-files");
    if !memory_file::is_known() {
        return filter.allow(&[libc::SYS_memfd_create]);
    }
    let never_executed = u64::from(libc::MFD_NOEXEC_SEAL);
    filter.allow_if(libc::SYS_memfd_create, vec![Rule::masked_eq(1, never_executed, never_executed)])
}

/// To ask for the time, where the vDSO cannot tell it (an unstable TSC, an emulated CPU).
pub fn clock() -> Filter {
    Filter::new("clock").allow(&[libc::SYS_clock_gettime])
}

/// To wait with a limit of time in other ways than for descriptors: on a lock, for a channel, asleep.
pub fn timed_wait() -> Filter {
    // A stopped and continued process resumes such a wait through it.
    Filter::new("timed-wait").with(&clock()).allow(&[libc::SYS_restart_syscall])
}

/// To close descriptors.
pub fn close() -> Filter {
    let filter = Filter::new("close").allow(&[libc::SYS_close]);
    // Debug builds of std check that a descriptor is open before they close it.
    #[cfg(debug_assertions)]
    let filter = filter.allow_if(libc::SYS_fcntl, vec![Rule::eq(1, libc::F_GETFD as u32)]);
    filter
}

/// To signal an eventfd. Its number may not be known when the filter is made, that eight bytes go there is.
pub fn signal() -> Filter {
    Filter::new("signal").allow_if(libc::SYS_write, vec![Rule::eq64(2, 8)])
}

/// To run a current-thread tokio runtime that was built before, with timers, on sockets that are there already, each
/// read and written by one call (`ipc` does it so). Neither makes nor accepts a socket: see [`listener`]. Includes [`exit`].
pub fn tokio() -> Filter {
    // On x86-64 tokio waits with the older call.
    #[cfg(target_arch = "x86_64")]
    let wait = libc::SYS_epoll_wait;
    #[cfg(not(target_arch = "x86_64"))]
    let wait = libc::SYS_epoll_pwait;
    Filter::new("tokio")
        .with(&exit())
        .with(&clock())
        .with(&close())
        .with(&signal()) // the runtime's waker
        .allow(&[wait, libc::SYS_epoll_ctl, libc::SYS_shutdown])
        .allow_if(libc::SYS_recvmsg, vec![Rule::eq(2, (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u32)])
        .allow_if(libc::SYS_sendmsg, vec![Rule::eq(2, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32)])
        // A socket is watched for what is rare through a duplicate.
        .allow_if(libc::SYS_fcntl, vec![Rule::eq(1, libc::F_DUPFD_CLOEXEC as u32)])
}

/// To accept connections on sockets that already listen, to ask who connected, and to see whether one waits when a
/// service's idle time is over. Beside [`tokio`].
pub fn listener() -> Filter {
    let who = Rule::eq(1, libc::SOL_SOCKET as u32).and(Rule::eq(2, libc::SO_PEERCRED as u32));
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
    Filter::new("listener")
        .allow_if(libc::SYS_accept4, vec![Rule::eq(3, flags)])
        .allow_if(libc::SYS_getsockopt, vec![who])
        .allow(&[libc::SYS_ppoll])
}
