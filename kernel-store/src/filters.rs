//! The syscalls of the three threads.

use confine::{Filter, Rule, base};

/// The control thread: clients on sockets; of descriptors that are files it only knows how to pass them on.
pub fn control() -> Filter {
    // poll: before it ends for idleness, `ipc` sees whether somebody waits to be accepted.
    Filter::new("kernel-store-control").with(&base::tokio()).with(&base::listener())
}

/// The thread that unpacks: memory, and reading at an offset.
pub fn unpack() -> Filter {
    Filter::new("kernel-store-unpack").with(&base::exit()).with(&wake()).allow(&[libc::SYS_pread64, libc::SYS_close])
}

/// The thread that has the files. Landlock says which.
pub fn disk() -> Filter {
    let fcntl = [libc::F_GETFL, libc::F_GETFD, libc::F_ADD_SEALS, libc::F_DUPFD_CLOEXEC];
    Filter::new("kernel-store-disk")
        .with(&base::exit())
        .allow(&[
            libc::SYS_openat,
            libc::SYS_close,
            libc::SYS_mkdirat,
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_write,
            libc::SYS_fsync,
            libc::SYS_renameat,
            libc::SYS_unlinkat,
            libc::SYS_newfstatat,
            libc::SYS_fstat,
            libc::SYS_statx,
            libc::SYS_fstatfs,
            libc::SYS_getdents64,
            libc::SYS_memfd_create,
            libc::SYS_ftruncate,
            libc::SYS_getrandom, // hash seeds
        ])
        .allow_if(libc::SYS_fcntl, fcntl.map(|command| Rule::eq(1, command as u32)).to_vec())
}

/// To wake the control thread: its eventfd's number is not known when the filter is made, that eight bytes go there is.
fn wake() -> Filter {
    Filter::new("wake").allow_if(libc::SYS_write, vec![Rule::eq64(2, 8)])
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_thread_has_more_than_forty_syscalls() {
        for filter in [super::control(), super::unpack(), super::disk()] {
            assert!(filter.syscalls().count() <= 40, "{}: {}", filter.role(), filter.syscalls().count());
        }
    }

    #[test]
    fn the_thread_that_unpacks_can_neither_open_nor_send() {
        let filter = super::unpack();
        for syscall in [
            libc::SYS_openat,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_memfd_create,
            libc::SYS_pwrite64,
            libc::SYS_clone3,
        ] {
            assert!(filter.syscalls().all(|allowed| allowed != syscall));
        }
    }
}
