//! Attempts on other processes: of the same VM, of the neighbour, of the host.

use libc::{AT_FDCWD, O_RDONLY, O_RDWR};

use super::{
    attempts::{Act, Attempt, Class, Word, call},
    foothold::{Hand, Held},
};

const fn process(name: &'static str, act: Act) -> Attempt {
    Attempt::new(Class::Processes, name, act)
}

fn open(hand: &mut Hand, pid: i32, file: &str, flags: i32) -> Result<u64, Held> {
    let path = hand.text(&format!("/proc/{pid}/{file}"))?;
    call!(hand, SYS_openat, AT_FDCWD, path, flags)
}

/// A length and an address, `struct iovec`.
fn vector(hand: &mut Hand, address: u64) -> Result<u64, Held> {
    hand.put(&[address.to_ne_bytes(), 8_u64.to_ne_bytes()].concat())
}

fn peek(hand: &mut Hand, pid: i32, number: libc::c_long, address: u64) -> Result<u64, Held> {
    let room = hand.room(8)?;
    let (local, remote) = (vector(hand, room)?, vector(hand, address)?);
    // A fault shows that only the address was wrong.
    hand.reach(number, &[pid.word(), local, 1, remote, 1, 0], &[libc::EFAULT])
}

fn attach(hand: &mut Hand, pid: i32) -> Result<u64, Held> {
    call!(hand, SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0)
}

pub(super) const ALL: &[Attempt] = &[
    process("signal a sibling", |h, s| call!(h, SYS_kill, s.sibling, 0)),
    process("signal a sibling's thread", |h, s| call!(h, SYS_tgkill, s.sibling, s.sibling, 0)),
    process("signal the process that it belongs to", |h, s| call!(h, SYS_tgkill, s.own, s.own, 0)),
    process("signal the neighbour", |h, s| call!(h, SYS_kill, s.neighbour, 0)),
    process("signal the neighbour's thread by tkill", |h, s| call!(h, SYS_tkill, s.neighbour, 0)),
    process("signal a process of the host's", |h, s| call!(h, SYS_kill, s.stranger, 0)),
    process("signal all processes of its user's", |h, _| call!(h, SYS_kill, -1, 0)),
    process("queue a signal to the neighbour", |h, s| {
        let info = h.put(&[&[0; 8], &libc::SI_QUEUE.to_ne_bytes()[..], &[0; 116]].concat())?;
        call!(h, SYS_rt_sigqueueinfo, s.neighbour, 0, info)
    }),
    process("get hold of a sibling by pidfd", |h, s| call!(h, SYS_pidfd_open, s.sibling, 0)),
    process("get hold of the neighbour by pidfd", |h, s| call!(h, SYS_pidfd_open, s.neighbour, 0)),
    process("signal the neighbour by pidfd", |h, s| {
        let fd = call!(h, SYS_pidfd_open, s.neighbour, 0)?;
        call!(h, SYS_pidfd_send_signal, fd, 0, 0, 0)
    }),
    process("take a descriptor of a sibling's", |h, s| {
        let fd = call!(h, SYS_pidfd_open, s.sibling, 0)?;
        call!(h, SYS_pidfd_getfd, fd, 3, 0)
    }),
    process("take a descriptor of the neighbour's", |h, s| {
        let fd = call!(h, SYS_pidfd_open, s.neighbour, 0)?;
        call!(h, SYS_pidfd_getfd, fd, 3, 0)
    }),
    process("enter the neighbour's namespaces", |h, s| {
        let fd = call!(h, SYS_pidfd_open, s.neighbour, 0)?;
        call!(h, SYS_setns, fd, libc::CLONE_NEWNS | libc::CLONE_NEWNET)
    }),
    process("trace a sibling", |h, s| attach(h, s.sibling)),
    process("trace the process that it belongs to", |h, s| attach(h, s.own)),
    process("trace the neighbour", |h, s| attach(h, s.neighbour)),
    process("trace a process of the host's", |h, s| attach(h, s.stranger)),
    process("read a sibling's memory", |h, s| peek(h, s.sibling, libc::SYS_process_vm_readv, 8)),
    process("write a sibling's memory", |h, s| peek(h, s.sibling, libc::SYS_process_vm_writev, 8)),
    process("read the neighbour's memory", |h, s| peek(h, s.neighbour, libc::SYS_process_vm_readv, 8)),
    process("read a host process's memory", |h, s| peek(h, s.stranger, libc::SYS_process_vm_readv, 8)),
    process("open a sibling's memory by /proc", |h, s| open(h, s.sibling, "mem", O_RDWR)),
    process("open the neighbour's memory by /proc", |h, s| open(h, s.neighbour, "mem", O_RDWR)),
    process("open the neighbour's guest memory by /proc", |h, s| open(h, s.neighbour, &s.world.memory, O_RDWR)),
    process("list a sibling's descriptors by /proc", |h, s| open(h, s.sibling, "fd", O_RDONLY)),
    process("read the neighbour's memory map", |h, s| open(h, s.neighbour, "maps", O_RDONLY)),
    process("read a host process's environment", |h, s| open(h, s.stranger, "environ", O_RDONLY)),
    process("read the list of processes", |h, _| {
        let path = h.text("/proc")?;
        call!(h, SYS_openat, AT_FDCWD, path, O_RDONLY | libc::O_DIRECTORY)
    }),
    process("advise the kernel of a sibling's memory", |h, s| {
        let fd = call!(h, SYS_pidfd_open, s.sibling, 0)?;
        let range = vector(h, 0x10_0000)?;
        call!(h, SYS_process_madvise, fd, range, 1, libc::MADV_COLD, 0; or [libc::ENOMEM, libc::EINVAL])
    }),
    process("compare itself with a sibling", |h, s| call!(h, SYS_kcmp, s.own, s.sibling, 0, 0, 0)),
    process("read a sibling's limits", |h, s| {
        let room = h.room(16)?;
        call!(h, SYS_prlimit64, s.sibling, libc::RLIMIT_NOFILE, 0, room)
    }),
    process("move a sibling to another CPU", |h, s| {
        let mask = h.put(&[0xff; 8])?;
        call!(h, SYS_sched_setaffinity, s.sibling, 8, mask)
    }),
    process("change a sibling's scheduling", |h, s| {
        let priority = h.room(4)?;
        call!(h, SYS_sched_setscheduler, s.sibling, 0, priority)
    }),
    process("change the neighbour's priority", |h, s| call!(h, SYS_setpriority, 0, s.neighbour, 0)),
    process("move a sibling's pages", |h, s| call!(h, SYS_migrate_pages, s.sibling, 0, 0, 0)),
    process("attach to shared memory of the host's", |h, s| call!(h, SYS_shmat, s.world.shared, 0, libc::SHM_RDONLY)),
    process("make shared memory", |h, _| {
        let id = call!(h, SYS_shmget, 0, 4096, libc::IPC_CREAT | 0o600)?;
        call!(h, SYS_shmctl, id, libc::IPC_RMID, 0)
    }),
    process("make a message queue", |h, _| {
        let id = call!(h, SYS_msgget, 0, libc::IPC_CREAT | 0o600)?;
        call!(h, SYS_msgctl, id, libc::IPC_RMID, 0)
    }),
    process("make a POSIX message queue", |h, _| {
        let name = h.text("volt-escape")?;
        call!(h, SYS_mq_open, name, libc::O_CREAT | O_RDWR, 0o600, 0)?;
        call!(h, SYS_mq_unlink, name)
    }),
    process("adopt a child to be", |h, _| call!(h, SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, 1)),
];
