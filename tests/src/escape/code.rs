//! Attempts to run code that was not there: other programs, writable memory that is executable, more threads.

use libc::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE};

use super::{
    attempts::{Act, Attempt, Class, call},
    foothold::{Hand, Held},
};

const fn code(name: &'static str, act: Act) -> Attempt {
    Attempt::new(Class::Code, name, act)
}

/// A program that any kernel executes: an interpreter line. That one is nowhere, so that no wall around it is taken for one around
/// the program.
const SCRIPT: &[u8] = b"#!/volt-tests-none\n";

fn execute(hand: &mut Hand, path: &str) -> Result<u64, Held> {
    let path = hand.text(path)?;
    let list = hand.put(&[path.to_ne_bytes(), [0; 8]].concat())?;
    call!(hand, SYS_execve, path, list, 0)
}

fn map(hand: &mut Hand, protection: i32) -> Result<u64, Held> {
    call!(hand, SYS_mmap, 0, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
}

fn memfd(hand: &mut Hand, flags: u32) -> Result<u64, Held> {
    let name = hand.text("")?;
    call!(hand, SYS_memfd_create, name, flags)
}

fn execute_fd(hand: &mut Hand, fd: u64) -> Result<u64, Held> {
    let script = hand.put(SCRIPT)?;
    call!(hand, SYS_write, fd, script, SCRIPT.len())?;
    let (empty, list) = (hand.text("")?, hand.room(8)?);
    // That there is no interpreter is found after the file was accepted to be executed.
    call!(hand, SYS_execveat, fd, empty, list, 0, libc::AT_EMPTY_PATH; or [libc::ENOENT, libc::ENOEXEC])
}

pub(super) const ALL: &[Attempt] = &[
    code("execute a shell", |h, _| execute(h, "/bin/sh")),
    code("execute one of Volt's programs", |h, s| execute(h, &s.world.program)),
    code("execute its own program anew", |h, _| execute(h, "/proc/self/exe")),
    code("execute a file in memory", |h, _| {
        let fd = memfd(h, 0)?;
        execute_fd(h, fd)
    }),
    code("execute a file in memory that is not for that", |h, _| {
        let fd = memfd(h, libc::MFD_NOEXEC_SEAL)?;
        execute_fd(h, fd)
    }),
    code("turn a file in memory into one to be executed", |h, _| {
        let fd = memfd(h, libc::MFD_NOEXEC_SEAL)?;
        call!(h, SYS_fchmod, fd, 0o700)?;
        execute_fd(h, fd)
    }),
    code("execute one of its descriptors", |h, s| {
        let fd = s.fds.first().ok_or(Held::Absent)?.0;
        let (empty, list) = (h.text("")?, h.room(8)?);
        call!(h, SYS_execveat, fd, empty, list, 0, libc::AT_EMPTY_PATH; or [libc::ENOEXEC])
    }),
    code("map memory that is writable and executable", |h, _| map(h, PROT_READ | PROT_WRITE | PROT_EXEC)),
    code("make memory executable", |h, _| {
        let at = map(h, PROT_READ | PROT_WRITE)?;
        call!(h, SYS_mprotect, at, 4096, PROT_READ | PROT_EXEC)
    }),
    code("make its stack executable", |h, _| {
        let at = h.room(16)? & !0xfff;
        call!(h, SYS_mprotect, at, 4096, PROT_READ | PROT_WRITE | PROT_EXEC)
    }),
    code("make memory executable by pkey_mprotect", |h, _| {
        let at = h.room(16)? & !0xfff;
        call!(h, SYS_pkey_mprotect, at, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, -1)
    }),
    code("map a file in memory executable", |h, _| {
        let fd = memfd(h, libc::MFD_NOEXEC_SEAL)?;
        call!(h, SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC, libc::MAP_SHARED, fd, 0)
    }),
    code("map one of its descriptors executable", |h, s| {
        let fd = s.fd("/")?;
        call!(h, SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0)
    }),
    code("make its text writable", |h, _| {
        call!(h, SYS_mprotect, h.gate() & !0xfff, 4096, PROT_READ | PROT_WRITE | PROT_EXEC)
    }),
    code("map shared memory executable", |h, _| {
        let id = call!(h, SYS_shmget, 0, 4096, libc::IPC_CREAT | 0o700)?;
        let mapped = call!(h, SYS_shmat, id, 0, libc::SHM_EXEC);
        call!(h, SYS_shmctl, id, libc::IPC_RMID, 0)?;
        mapped
    }),
    code("make readable memory executable by its personality", |h, _| {
        call!(h, SYS_personality, libc::READ_IMPLIES_EXEC)
    }),
    code("fork", |h, _| call!(h, SYS_fork)),
    code("vfork", |h, _| call!(h, SYS_vfork)),
    code("clone a process", |h, _| call!(h, SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
    code("clone a process, and get hold of it", |h, _| {
        let pidfd = h.room(8)?;
        call!(h, SYS_clone, libc::SIGCHLD | libc::CLONE_PIDFD, 0, pidfd, 0, 0)
    }),
    code("clone a thread", |h, _| {
        let stack = h.room(64)?;
        let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        call!(h, SYS_clone, flags, stack, 0, 0, 0)
    }),
    code("clone by clone3", |h, _| {
        let arguments = h.put(&[&[0; 32], &17_u64.to_ne_bytes()[..], &[0; 24]].concat())?;
        call!(h, SYS_clone3, arguments, 64)
    }),
];
