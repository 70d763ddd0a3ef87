//! The limit of processes, which would keep an attacker's clones from being made: it is left out for the program, and
//! put on each clone before its attempt.
//!
//! Only a holder of CAP_SYS_RESOURCE could raise it afterwards, which even root is not everywhere.

use std::{fs, io, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

/// Has a program, and all that it starts, believe that it lowered its limit of processes.
pub(super) fn unlimited(command: &mut Command) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // `struct seccomp_data`: the number is at 0, the arguments from 16 on. A new limit of processes is answered with
    // "error 0", and not set.
    let filter = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 5, libc::SYS_prlimit64 as u32),
        step(LOAD, 0, 0, 24),
        step(EQUAL, 0, 3, libc::RLIMIT_NPROC),
        step(LOAD, 0, 0, 32),
        step(EQUAL, 1, 0, 0),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its instructions outlive the call, which copies them.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run; this is one system call.
    unsafe { command.pre_exec(install) };
}

/// A process's limit of its user's processes.
pub(super) fn processes(pid: i32) -> Result<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max processes")).context("A process without limits")?;
    let soft = line.split_whitespace().nth(2).context("A limit without value")?;
    if soft == "unlimited" { Ok(u64::MAX) } else { Ok(soft.parse()?) }
}
