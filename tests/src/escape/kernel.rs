//! Attempts on the kernel: its less trodden interfaces, its settings, and rights that the process does not have.

use libc::{AT_FDCWD, EFAULT, EINVAL, O_WRONLY};

use super::{
    attempts::{Act, Attempt, Class, call},
    foothold::{Hand, Held},
};

const fn kernel(name: &'static str, act: Act) -> Attempt {
    Attempt::new(Class::Kernel, name, act)
}

/// An address that nothing is mapped at.
const NOWHERE: u64 = 8;

fn setting(hand: &mut Hand, path: &str) -> Result<u64, Held> {
    let path = hand.text(path)?;
    call!(hand, SYS_openat, AT_FDCWD, path, O_WRONLY)
}

fn clone(hand: &mut Hand, namespaces: i32) -> Result<u64, Held> {
    call!(hand, SYS_clone, namespaces | libc::SIGCHLD, 0, 0, 0, 0)
}

/// Sets effective, permitted and inheritable capabilities.
fn capset(hand: &mut Hand, bits: u32) -> Result<u64, Held> {
    let head = hand.put(&[0x2008_0522_u32.to_ne_bytes(), [0; 4]].concat())?;
    let data = hand.put(&[bits.to_ne_bytes(), bits.to_ne_bytes(), [0; 4], [0; 4], [0; 4], [0; 4]].concat())?;
    call!(hand, SYS_capset, head, data)
}

pub(super) const ALL: &[Attempt] = &[
    // getpid, which has another number there.
    kernel("make a system call the way of 32-bit programs", |h, _| h.call_32(20, [0; 3])),
    kernel("make a user namespace", |h, _| call!(h, SYS_unshare, libc::CLONE_NEWUSER)),
    kernel("make a mount namespace", |h, _| call!(h, SYS_unshare, libc::CLONE_NEWNS)),
    kernel("make a pid namespace", |h, _| call!(h, SYS_unshare, libc::CLONE_NEWPID)),
    kernel("clone into a user namespace", |h, _| clone(h, libc::CLONE_NEWUSER)),
    kernel("clone into new namespaces of all other kinds", |h, _| {
        clone(h, libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)
    }),
    kernel("enter the host's mount namespace", |h, s| {
        let path = h.text(&s.world.mounts)?;
        let fd = call!(h, SYS_openat, AT_FDCWD, path, 0)?;
        call!(h, SYS_setns, fd, libc::CLONE_NEWNS)
    }),
    kernel("handle page faults in user space", |h, _| call!(h, SYS_userfaultfd, libc::O_NONBLOCK)),
    kernel("handle its own page faults in user space", |h, _| call!(h, SYS_userfaultfd, 1)),
    kernel("load a BPF program", |h, _| {
        // BPF_PROG_LOAD of a socket filter without instructions.
        let attributes = h.put(&[1_u32.to_ne_bytes(), [0; 4]].concat())?;
        call!(h, SYS_bpf, 5, attributes, 8; or [EINVAL, EFAULT, libc::E2BIG])
    }),
    kernel("make a BPF map", |h, _| {
        let attributes = h.put(&[2_u32, 4, 4, 1].map(u32::to_ne_bytes).concat())?;
        call!(h, SYS_bpf, 0, attributes, 16)
    }),
    kernel("watch itself by perf", |h, _| {
        // A software clock, user space only.
        let attributes =
            [&1_u32.to_ne_bytes()[..], &128_u32.to_ne_bytes(), &[0; 32], &0x60_u64.to_ne_bytes(), &[0; 80]];
        let attributes = h.put(&attributes.concat())?;
        call!(h, SYS_perf_event_open, attributes, 0, -1, -1, 0)
    }),
    kernel("watch the whole machine by perf", |h, _| {
        let attributes = h.put(&[&1_u32.to_ne_bytes()[..], &128_u32.to_ne_bytes(), &[0; 120]].concat())?;
        call!(h, SYS_perf_event_open, attributes, -1, 0, -1, 0)
    }),
    kernel("set up an io_uring", |h, _| {
        let parameters = h.room(120)?;
        call!(h, SYS_io_uring_setup, 4, parameters)
    }),
    kernel("register with an io_uring", |h, s| {
        let fd = s.fd("io_uring").unwrap_or(-1);
        call!(h, SYS_io_uring_register, fd, 0, NOWHERE, 1; or [EFAULT])
    }),
    kernel("have an io_uring work", |h, s| {
        let fd = s.fd("io_uring").unwrap_or(-1);
        call!(h, SYS_io_uring_enter, fd, 0, 0, 0, 0, 0)
    }),
    kernel("set up asynchronous input and output", |h, _| {
        let context = h.room(8)?;
        call!(h, SYS_io_setup, 1, context)
    }),
    kernel("add a key", |h, _| {
        let (kind, name) = (h.text("user")?, h.text("volt-escape")?);
        // KEY_SPEC_PROCESS_KEYRING
        call!(h, SYS_add_key, kind, name, name, 1, -2)
    }),
    kernel("look for a key", |h, _| {
        let (kind, name) = (h.text("user")?, h.text("volt-escape-none")?);
        call!(h, SYS_request_key, kind, name, 0, 0; or [libc::ENOKEY])
    }),
    kernel("join a session keyring", |h, _| call!(h, SYS_keyctl, 1, 0)),
    kernel("become root", |h, _| call!(h, SYS_setuid, 0)),
    kernel("become root by setresuid", |h, _| call!(h, SYS_setresuid, 0, 0, 0)),
    kernel("become another user", |h, _| call!(h, SYS_setresuid, 4242, 4242, 4242)),
    kernel("become another group", |h, _| call!(h, SYS_setresgid, 4242, 4242, 4242)),
    kernel("join another group", |h, _| {
        let group = h.put(&4242_u32.to_ne_bytes())?;
        call!(h, SYS_setgroups, 1, group)
    }),
    kernel("take all capabilities", |h, _| capset(h, u32::MAX)),
    kernel("take CAP_NET_ADMIN", |h, _| capset(h, 1 << 12)),
    kernel("raise an ambient capability", |h, _| call!(h, SYS_prctl, libc::PR_CAP_AMBIENT, 2, 12, 0, 0)),
    kernel("make itself dumpable", |h, _| call!(h, SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0)),
    kernel("be traceable for all", |h, _| call!(h, SYS_prctl, 0x5961_6d61, -1, 0, 0, 0)),
    kernel("drop no_new_privs", |h, _| call!(h, SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)),
    kernel("set seccomp to strict", |h, _| call!(h, SYS_prctl, libc::PR_SET_SECCOMP, 1, 0, 0, 0)),
    kernel("add a seccomp filter that lets all pass", |h, _| {
        let instruction = h.put(&[&6_u16.to_ne_bytes()[..], &[0; 2], &0x7fff_0000_u32.to_ne_bytes()].concat())?;
        let program = h.put(&[1_u64.to_ne_bytes(), instruction.to_ne_bytes()].concat())?;
        call!(h, SYS_seccomp, 1, 0, program)
    }),
    kernel("raise its limit of files", |h, _| {
        let limit = h.put(&[0x10_0000_u64.to_ne_bytes(), 0x10_0000_u64.to_ne_bytes()].concat())?;
        call!(h, SYS_prlimit64, 0, libc::RLIMIT_NOFILE, limit, 0)
    }),
    kernel("raise its limit of processes", |h, _| {
        let limit = h.put(&[0x1000_u64.to_ne_bytes(), 0x1000_u64.to_ne_bytes()].concat())?;
        call!(h, SYS_setrlimit, libc::RLIMIT_NPROC, limit)
    }),
    kernel("raise its priority", |h, _| call!(h, SYS_setpriority, 0, 0, -20)),
    kernel("type into the terminal", |h, _| {
        let key = h.text("x")?;
        for fd in 0..3 {
            match call!(h, SYS_ioctl, fd, libc::TIOCSTI, key) {
                Err(Held::Refused(libc::ENOTTY | libc::EBADF | libc::EINVAL)) => {}
                other => return other,
            }
        }
        Err(Held::Refused(libc::ENOTTY))
    }),
    kernel("type into a console by TIOCLINUX", |h, _| {
        let code = h.put(&[3])?;
        call!(h, SYS_ioctl, 0, libc::TIOCLINUX, code)
    }),
    kernel("load a module", |h, _| call!(h, SYS_init_module, NOWHERE, 8, NOWHERE; or [EFAULT, libc::ENOEXEC])),
    kernel("load a module from a file", |h, _| {
        let options = h.text("")?;
        call!(h, SYS_finit_module, -1, options, 0; or [libc::EBADF])
    }),
    kernel("remove a module", |h, _| {
        let name = h.text("volt_escape_none")?;
        call!(h, SYS_delete_module, name, libc::O_NONBLOCK; or [libc::ENOENT])
    }),
    kernel("load another kernel", |h, _| call!(h, SYS_kexec_load, 0, 1, NOWHERE, 0; or [EFAULT, EINVAL])),
    kernel("load another kernel from a file", |h, _| call!(h, SYS_kexec_file_load, -1, -1, 0, 0, 0; or [libc::EBADF])),
    // Without the numbers that it asks for, it says only whether one may.
    kernel("reboot the machine", |h, _| call!(h, SYS_reboot, 0, 0, 0, 0; or [EINVAL])),
    kernel("swap to a file", |h, s| {
        let path = h.text(&s.world.public)?;
        call!(h, SYS_swapon, path, 0; or [EINVAL])
    }),
    kernel("end swapping", |h, s| {
        let path = h.text(&s.world.public)?;
        call!(h, SYS_swapoff, path; or [EINVAL])
    }),
    kernel("account for processes", |h, s| {
        let path = h.text(&s.world.dir)?;
        call!(h, SYS_acct, path; or [libc::EISDIR, libc::EACCES])
    }),
    kernel("set a quota", |h, s| {
        let path = h.text(&s.world.dir)?;
        // Q_SETQUOTA
        call!(h, SYS_quotactl, 0x80_0008 << 8, path, 0, 0)
    }),
    kernel("use all ports", |h, _| call!(h, SYS_iopl, 3)),
    kernel("use one port", |h, _| call!(h, SYS_ioperm, 0x80, 1, 1)),
    kernel("change its descriptor table", |h, _| {
        let entry = h.room(16)?;
        call!(h, SYS_modify_ldt, 1, entry, 16)
    }),
    kernel("read the kernel's log", |h, _| {
        let room = h.room(4096)?;
        call!(h, SYS_syslog, 3, room, 4096)
    }),
    kernel("set the clock", |h, _| {
        let time = h.put(&[(-1_i64).to_ne_bytes(), [0; 8]].concat())?;
        // The time itself is refused in any case.
        match call!(h, SYS_clock_settime, libc::CLOCK_MONOTONIC, time) {
            Err(Held::Refused(EINVAL)) => {}
            other => return other,
        }
        let zero = h.room(8)?;
        call!(h, SYS_settimeofday, 0, zero)
    }),
    kernel("tune the clock", |h, _| {
        // ADJ_TICK with a tick that is out of bounds.
        let timex = h.put(&[&0x4000_u32.to_ne_bytes()[..], &[0; 204]].concat())?;
        call!(h, SYS_adjtimex, timex; or [EINVAL])
    }),
    kernel("rename the host", |h, _| call!(h, SYS_sethostname, NOWHERE, 1; or [EFAULT])),
    kernel("hang up the terminal", |h, _| call!(h, SYS_vhangup)),
    kernel("lock all its memory", |h, _| call!(h, SYS_mlockall, libc::MCL_CURRENT | libc::MCL_FUTURE)),
    kernel("hide memory from the kernel", |h, _| call!(h, SYS_memfd_secret, 0)),
    kernel("move pages into a pipe by vmsplice", |h, _| {
        let pipes = h.room(8)?;
        call!(h, SYS_pipe2, pipes, 0)?;
        let write = h.get(pipes + 4, 4)?.try_into().map_or(-1, i32::from_ne_bytes);
        let vector = h.put(&[pipes.to_ne_bytes(), 8_u64.to_ne_bytes()].concat())?;
        call!(h, SYS_vmsplice, write, vector, 1, 0)
    }),
    kernel(
        "remap its memory by remap_file_pages",
        |h, _| call!(h, SYS_remap_file_pages, 0, 4096, 0, 0, 0; or [EINVAL]),
    ),
    kernel("change a kernel setting", |h, _| setting(h, "/proc/sys/kernel/core_pattern")),
    kernel("change a network setting", |h, _| setting(h, "/proc/sys/net/ipv4/ip_forward")),
    kernel("press a magic key", |h, _| setting(h, "/proc/sysrq-trigger")),
    kernel("spare itself when memory runs out", |h, _| setting(h, "/proc/self/oom_score_adj")),
];
