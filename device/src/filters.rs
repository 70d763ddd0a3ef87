//! The seccomp filters of the roles. Each list is what its thread needs and nothing else; tests run under them.

use confine::{Filter, Rule, base};

/// A worker: the device's own calls, and these. It ends with the process; errors end both. The guest's memory and the
/// descriptors of a ring are never its own to give back: the protocol thread has them too, and longer.
pub(crate) fn worker(device: &Filter) -> Filter {
    Filter::new("worker")
        .with(&base::exit())
        .with(&base::signal()) // calls
        .allow_if(libc::SYS_read, vec![Rule::eq64(2, 8)]) // kicks, and the mailbox's eventfd
        .allow(&[libc::SYS_ppoll])
        .with(device)
}

/// The protocol thread: vhost-user messages, and mapping what they bring.
pub(crate) fn protocol(listening: bool) -> Filter {
    let fcntl = [libc::F_GET_SEALS, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    let writable = Rule::eq(2, (libc::PROT_READ | libc::PROT_WRITE) as u32);
    let filter = Filter::new("protocol")
        .with(&base::exit())
        .with(&base::close())
        .with(&base::timed_wait()) // a worker's answer
        .with(&base::signal()) // to wake a worker
        .allow(&[
            libc::SYS_ppoll,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_fstat, // the size of the guest's memory
            libc::SYS_munmap,
        ])
        .allow_if(
            libc::SYS_mmap,
            vec![writable.and(Rule::masked_eq(3, libc::MAP_TYPE as u64, libc::MAP_SHARED as u64))],
        )
        .allow_if(libc::SYS_fcntl, Rule::any(1, &fcntl.map(|command| command as u32)))
        .allow_if(libc::SYS_ioctl, vec![Rule::eq(1, libc::FIONREAD as u32)]);
    let accept = Rule::eq(3, libc::SOCK_CLOEXEC as u32);
    if listening { filter.allow_if(libc::SYS_accept4, vec![accept]) } else { filter }
}

/// The control link's thread: one Cap'n Proto connection over one socket.
pub(crate) fn control() -> Filter {
    Filter::new("control").with(&base::tokio())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_five_system_calls_before_its_device_adds_to_them() {
        assert_eq!(worker(&Filter::new("none")).syscalls().count(), 5);
    }
}
