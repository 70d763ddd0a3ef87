//! The syscalls of the two threads that own a state. (The control thread has [those of any service's](service::filter).)

use confine::{Filter, Rule, base};

/// The thread that unpacks: memory, and reading at an offset.
pub fn unpack() -> Filter {
    Filter::new("kernel-store-unpack")
        .with(&base::thread())
        .with(&base::heap())
        .with(&base::blocks())
        .with(&base::clock())
        .with(&base::close())
        .with(&base::signal()) // to wake the control thread
        .allow(&[
            libc::SYS_pread64,
            libc::SYS_mremap, // a dictionary that grows
        ])
}

/// The thread that has the files. Landlock says which.
pub fn disk() -> Filter {
    let fcntl = [libc::F_GETFL, libc::F_GET_SEALS, libc::F_ADD_SEALS, libc::F_DUPFD_CLOEXEC];
    let writable = Rule::eq(2, (libc::PROT_READ | libc::PROT_WRITE) as u32);
    Filter::new("kernel-store-disk")
        .with(&base::thread())
        .with(&base::heap())
        .with(&base::blocks())
        .with(&base::clock())
        .with(&base::close())
        .with(&base::memory_files())
        .allow(&[
            libc::SYS_openat,
            libc::SYS_mkdirat,
            libc::SYS_pread64,
            libc::SYS_write,
            libc::SYS_fsync,
            libc::SYS_renameat2, // the one that every architecture has
            libc::SYS_unlinkat,
            libc::SYS_getdents64,
            libc::SYS_ftruncate,
        ])
        // Of a file, what the kernel knows by itself.
        .allow_if(libc::SYS_statx, vec![Rule::eq(2, (libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC) as u32)])
        // A kernel on its way into a memory file.
        .allow_if(
            libc::SYS_mmap,
            vec![writable.and(Rule::masked_eq(3, libc::MAP_TYPE as u64, libc::MAP_SHARED as u64))],
        )
        .allow_if(libc::SYS_fcntl, Rule::any(1, &fcntl.map(|command| command as u32)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_thread_has_more_than_forty_syscalls_or_one_to_reach_out_by() {
        for filter in [super::unpack(), super::disk()] {
            assert!(filter.syscalls().count() <= 40, "{}: {}", filter.role(), filter.syscalls().count());
            let mut forbidden = testkit::calls::NEVER_OF_A_SERVICE.into_iter();
            let found = forbidden.find(|call| filter.syscalls().any(|allowed| allowed == *call));
            assert_eq!(found, None, "{}", filter.role());
        }
    }

    #[test]
    fn the_thread_that_unpacks_can_neither_open_nor_send() {
        let filter = super::unpack();
        for syscall in
            [libc::SYS_openat, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_memfd_create, libc::SYS_pwrite64]
        {
            assert!(filter.syscalls().all(|allowed| allowed != syscall));
        }
    }
}
