//! System calls that tests look for in filters.

use libc::{
    SYS_bind, SYS_clone, SYS_clone3, SYS_connect, SYS_execve, SYS_execveat, SYS_io_uring_setup, SYS_ptrace, SYS_socket,
};

/// What no thread of a service has: to make or connect a socket, to start anything, to get hold of another process, and to do any of it
/// past its filter.
pub const NEVER_OF_A_SERVICE: [libc::c_long; 9] = [
    SYS_socket,
    SYS_connect,
    SYS_bind,
    SYS_execve,
    SYS_execveat,
    SYS_clone,
    SYS_clone3,
    SYS_ptrace,
    SYS_io_uring_setup,
];
