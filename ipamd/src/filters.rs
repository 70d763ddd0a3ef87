//! The syscalls of the two threads.

use confine::{Filter, Rule, base};

/// The main thread: clients on sockets, and no file.
pub fn main() -> Filter {
    Filter::new("ipamd-main")
        .with(&base::tokio())
        .with(&base::listener())
        .with(&base::heap())
        // References of reservations, tokens of descriptors.
        .allow_if(libc::SYS_getrandom, vec![Rule::eq(2, 0)])
}

/// The database thread: SQLite's unix VFS in WAL mode with an exclusive lock, and no socket. Landlock says on which files.
pub fn database() -> Filter {
    let fcntl = [libc::F_SETLK, libc::F_GETLK, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL];
    let filter = Filter::new("ipamd-database")
        .with(&base::thread())
        .with(&base::heap())
        .with(&base::close())
        .with(&base::timed_wait())
        .with(&base::signal()) // to wake the main thread
        .allow(&[
            libc::SYS_openat,
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
            libc::SYS_newfstatat,
            libc::SYS_fchown, // the log gets the database's owner and mode
            libc::SYS_fchmod,
            libc::SYS_geteuid,
            libc::SYS_getpid,
            libc::SYS_clock_nanosleep, // the busy handler
            libc::SYS_flock,           // lives of leases
        ])
        .allow_if(libc::SYS_fcntl, Rule::any(1, &fcntl.map(|command| command as u32)));
    // The log's; and the time in seconds, where the vDSO cannot tell it.
    #[cfg(target_arch = "x86_64")]
    let filter = filter.allow(&[libc::SYS_unlink, libc::SYS_time]);
    #[cfg(not(target_arch = "x86_64"))]
    let filter = filter.allow(&[libc::SYS_unlinkat]);
    filter
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_thread_has_more_than_forty_syscalls() {
        for filter in [super::main(), super::database()] {
            assert!(filter.syscalls().count() <= 40, "{}: {}", filter.role(), filter.syscalls().count());
        }
    }

    #[test]
    fn the_thread_with_sockets_opens_no_file_and_the_one_with_files_makes_no_socket() {
        let has = |filter: &confine::Filter, syscall| filter.syscalls().any(|allowed| allowed == syscall);
        assert!(!has(&super::main(), libc::SYS_openat) && has(&super::database(), libc::SYS_openat));
        for socket in [libc::SYS_accept4, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_socket, libc::SYS_connect] {
            assert!(!has(&super::database(), socket));
        }
    }
}
