//! The seccomp filters of the roles. Each list is what its thread needs and nothing else; tests run under them.

use confine::{Filter, Rule, base};

/// A worker: the device's own calls, and these. A worker never returns: it ends with the process.
pub(crate) fn worker(device: &Filter) -> Filter {
    let not_executable = vec![Rule::masked_eq(2, libc::PROT_EXEC as u64, 0)];
    let filter = Filter::new("worker")
        .allow(&[
            libc::SYS_read,            // kick and mailbox eventfds
            libc::SYS_write,           // call eventfds, and the last line on stderr
            libc::SYS_futex,           // the mailbox's lock and answer
            libc::SYS_munmap,          // the guest's memory, by whoever holds it last; the allocator
            libc::SYS_brk,             // the allocator
            libc::SYS_restart_syscall, // `poll` after the process was stopped and continued
            libc::SYS_gettid,          // a panic's message names the thread
            libc::SYS_exit_group,      // errors end the process
        ])
        .allow_if(libc::SYS_mmap, not_executable) // the allocator
        .with(device);
    // The C library's `poll` is `ppoll` where the kernel has no other.
    #[cfg(target_arch = "x86_64")]
    let filter = filter.allow(&[libc::SYS_poll]);
    #[cfg(not(target_arch = "x86_64"))]
    let filter = filter.allow(&[libc::SYS_ppoll]);
    filter
}

/// The protocol thread: vhost-user messages, and mapping what they bring.
pub(crate) fn protocol(listening: bool) -> Filter {
    // F_GETFD: std's debug builds look before they close.
    let fcntl = [libc::F_GET_SEALS, libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_DUPFD_CLOEXEC];
    let filter = Filter::new("protocol")
        .with(&base::exit())
        .allow(&[
            libc::SYS_ppoll,
            libc::SYS_recvfrom, // to see how much of a message is there
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_write, // eventfds of the workers
            libc::SYS_fstat, // the size of the guest's memory
            libc::SYS_close,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
        ])
        .allow_if(libc::SYS_fcntl, fcntl.map(|command| Rule::eq(1, command as u32)).to_vec())
        .allow_if(libc::SYS_ioctl, vec![Rule::eq(1, libc::FIONREAD as u32)]);
    #[cfg(target_arch = "x86_64")]
    let filter = filter.allow(&[libc::SYS_poll]);
    if listening { filter.allow(&[libc::SYS_accept4]) } else { filter }
}

/// The control link's thread: one Cap'n Proto connection over one socket.
pub(crate) fn control() -> Filter {
    Filter::new("control").with(&base::tokio())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_ten_system_calls_before_its_device_adds_to_them() {
        assert_eq!(worker(&Filter::new("none")).syscalls().count(), 10);
    }
}
