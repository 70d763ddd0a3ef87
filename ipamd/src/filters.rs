//! The syscalls of the database thread. (The main one has [those of any service's](service::filter).)

use confine::{Filter, Rule, base};

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
    fn the_thread_with_files_makes_no_socket_and_has_at_most_forty_syscalls() {
        let all: Vec<_> = super::database().syscalls().collect();
        assert!(all.len() <= 40, "{}", all.len());
        let sockets = [libc::SYS_accept4, libc::SYS_sendmsg, libc::SYS_recvmsg];
        for forbidden in testkit::calls::NEVER_OF_A_SERVICE.into_iter().chain(sockets) {
            assert!(!all.contains(&forbidden), "{forbidden}");
        }
    }
}
