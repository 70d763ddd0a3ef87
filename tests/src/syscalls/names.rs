//! What people call the system calls.

macro_rules! names {
    ($($number:ident $name:literal)*) => { &[$((libc::$number, $name)),*] };
}

/// Those that filters of ours have had.
const NAMES: &[(libc::c_long, &str)] = names![
    SYS_accept4 "accept4" SYS_access "access" SYS_arch_prctl "arch_prctl" SYS_bind "bind" SYS_brk "brk"
    SYS_capget "capget" SYS_capset "capset" SYS_chdir "chdir" SYS_chmod "chmod" SYS_clock_gettime "clock_gettime"
    SYS_clock_nanosleep "clock_nanosleep" SYS_clone "clone" SYS_clone3 "clone3" SYS_close "close"
    SYS_close_range "close_range" SYS_connect "connect" SYS_dup "dup" SYS_dup2 "dup2" SYS_dup3 "dup3"
    SYS_epoll_create1 "epoll_create1" SYS_epoll_ctl "epoll_ctl" SYS_epoll_pwait "epoll_pwait"
    SYS_epoll_wait "epoll_wait" SYS_eventfd2 "eventfd2" SYS_execve "execve" SYS_execveat "execveat" SYS_exit "exit"
    SYS_exit_group "exit_group" SYS_faccessat "faccessat" SYS_fallocate "fallocate" SYS_fchdir "fchdir"
    SYS_fchmod "fchmod" SYS_fchown "fchown" SYS_fcntl "fcntl" SYS_fdatasync "fdatasync" SYS_flock "flock"
    SYS_fstat "fstat" SYS_fstatfs "fstatfs" SYS_fsync "fsync" SYS_ftruncate "ftruncate" SYS_futex "futex"
    SYS_getdents64 "getdents64" SYS_getegid "getegid" SYS_geteuid "geteuid" SYS_getgid "getgid"
    SYS_getpeername "getpeername" SYS_getpid "getpid" SYS_getppid "getppid" SYS_getrandom "getrandom"
    SYS_getsockname "getsockname" SYS_getsockopt "getsockopt" SYS_gettid "gettid" SYS_getuid "getuid"
    SYS_ioctl "ioctl" SYS_kill "kill" SYS_landlock_add_rule "landlock_add_rule"
    SYS_landlock_create_ruleset "landlock_create_ruleset" SYS_landlock_restrict_self "landlock_restrict_self"
    SYS_link "link" SYS_listen "listen" SYS_lseek "lseek" SYS_lstat "lstat" SYS_madvise "madvise"
    SYS_memfd_create "memfd_create" SYS_mkdir "mkdir" SYS_mkdirat "mkdirat" SYS_mmap "mmap" SYS_mount "mount"
    SYS_mprotect "mprotect" SYS_mremap "mremap" SYS_munmap "munmap" SYS_nanosleep "nanosleep"
    SYS_newfstatat "newfstatat" SYS_open "open" SYS_openat "openat" SYS_pidfd_open "pidfd_open"
    SYS_pidfd_send_signal "pidfd_send_signal" SYS_pipe2 "pipe2" SYS_pivot_root "pivot_root" SYS_poll "poll"
    SYS_ppoll "ppoll" SYS_prctl "prctl" SYS_pread64 "pread64" SYS_preadv "preadv" SYS_preadv2 "preadv2"
    SYS_prlimit64 "prlimit64" SYS_pwrite64 "pwrite64" SYS_pwritev "pwritev" SYS_pwritev2 "pwritev2" SYS_read "read"
    SYS_readlink "readlink" SYS_readlinkat "readlinkat" SYS_readv "readv" SYS_recvfrom "recvfrom"
    SYS_recvmsg "recvmsg" SYS_rename "rename" SYS_renameat "renameat" SYS_renameat2 "renameat2"
    SYS_restart_syscall "restart_syscall" SYS_rmdir "rmdir" SYS_rseq "rseq" SYS_rt_sigaction "rt_sigaction"
    SYS_rt_sigprocmask "rt_sigprocmask" SYS_rt_sigreturn "rt_sigreturn" SYS_sched_getaffinity "sched_getaffinity"
    SYS_sched_yield "sched_yield" SYS_seccomp "seccomp" SYS_sendfile "sendfile" SYS_sendmsg "sendmsg"
    SYS_sendto "sendto" SYS_set_robust_list "set_robust_list" SYS_set_tid_address "set_tid_address"
    SYS_setgid "setgid" SYS_setgroups "setgroups" SYS_setns "setns" SYS_setpgid "setpgid" SYS_setresgid "setresgid"
    SYS_setresuid "setresuid" SYS_setsid "setsid" SYS_setsockopt "setsockopt" SYS_setuid "setuid"
    SYS_shutdown "shutdown" SYS_sigaltstack "sigaltstack" SYS_socket "socket" SYS_socketpair "socketpair"
    SYS_stat "stat" SYS_statx "statx" SYS_sysinfo "sysinfo" SYS_tgkill "tgkill" SYS_time "time" SYS_timerfd_create "timerfd_create"
    SYS_timerfd_settime "timerfd_settime" SYS_umask "umask" SYS_umount2 "umount2" SYS_uname "uname"
    SYS_unlink "unlink" SYS_unlinkat "unlinkat" SYS_unshare "unshare" SYS_wait4 "wait4" SYS_waitid "waitid"
    SYS_write "write" SYS_writev "writev"
];

/// A system call's name, or its number where it has none here.
pub fn name(number: u32) -> String {
    let known = NAMES.iter().find(|(known, _)| *known == libc::c_long::from(number));
    known.map_or_else(|| format!("{number:#x}"), |(_, name)| (*name).to_owned())
}
