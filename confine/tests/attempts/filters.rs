//! Seccomp: each thread's filter is its own, arguments count, and what is not listed kills the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use confine::{Filter, Rule, base};
use libc::{EPERM, SIGSYS};

use crate::harness::{attempt, confined, done, filter, is_refused};

/// A harmless call, which nothing else makes.
fn probe() -> i32 {
    // SAFETY: asks for a number.
    unsafe { libc::getppid() }
}

const PROBE: &[confine::Syscall] = &[libc::SYS_getppid];

#[test]
fn a_listed_syscall_works_and_any_other_kills_the_process() {
    attempt(|| {
        confined().enter(&filter().allow(PROBE)).unwrap();
        assert!(probe() > 0);
    })
    .passes();
    attempt(|| {
        confined().enter(&filter()).unwrap();
        probe();
    })
    .is_killed_by(SIGSYS);
}

#[test]
fn a_threads_filter_is_its_own() {
    let may = filter().allow(PROBE);
    let (worker, main) = (may.clone(), filter());
    attempt(move || {
        let confined = confined();
        let worker = confined.spawn("worker", &worker, probe).unwrap();
        confined.enter(&main).unwrap();
        assert!(worker.join().unwrap() > 0);
    })
    .passes();
    let (worker, main) = (may.clone(), filter());
    attempt(move || {
        let confined = confined();
        let worker = confined.spawn("worker", &worker, probe).unwrap();
        confined.enter(&main).unwrap();
        worker.join().unwrap();
        probe();
    })
    .is_killed_by(SIGSYS);
    // The other way round; and it is the process that dies, not the thread.
    attempt(move || {
        let confined = confined();
        let worker = confined.spawn("worker", &filter(), probe).unwrap();
        confined.enter(&may).unwrap();
        assert!(probe() > 0);
        let _never = worker.join();
    })
    .is_killed_by(SIGSYS);
}

#[test]
fn a_thread_runs_nothing_before_enter() {
    attempt(|| {
        let confined = confined();
        let ran = Arc::new(AtomicBool::new(false));
        let runs = ran.clone();
        let thread = confined.spawn("gated", &filter(), move || runs.store(true, Ordering::SeqCst)).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(!ran.load(Ordering::SeqCst));
        confined.enter(&filter()).unwrap();
        thread.join().unwrap();
        assert!(ran.load(Ordering::SeqCst));
    })
    .passes();
}

#[test]
fn threads_end_without_having_run_when_the_process_never_enters() {
    attempt(|| {
        let confined = confined();
        let threads = [(); 3].map(|()| confined.spawn("gated", &filter(), || panic!("ran")).unwrap());
        drop(confined);
        for thread in threads {
            thread.join().unwrap_err();
        }
    })
    .passes()
    .says_not("panicked");
}

#[test]
fn a_filter_that_cannot_be_built_is_an_error_that_names_its_role() {
    attempt(|| {
        let confined = confined();
        let bad = Filter::new("crooked").allow_if(libc::SYS_read, vec![Rule::eq(6, 0)]);
        let error = confined.spawn("thread", &bad, || ()).err().unwrap();
        assert!(error.to_string().contains("'crooked'"), "{error}");
        let error = confined.enter(&bad).err().unwrap();
        assert!(error.to_string().contains("'crooked'"), "{error}");
    })
    .passes();
}

/// First two arguments.
type Pairs = &'static [(u64, u64)];

/// A call whose first two arguments the kernel ignores.
fn probe_with(first: u64, second: u64) {
    // SAFETY: asks for a number.
    assert!(unsafe { libc::syscall(libc::SYS_getppid, first, second) } > 0);
}

#[test]
fn arguments_are_matched_on_both_sides_of_each_rule() {
    const HIGH: u64 = 1 << 40;
    let cases: [(&str, Vec<Rule>, Pairs, Pairs); 7] = [
        ("eq", vec![Rule::eq(0, 5)], &[(5, 9), (5 | HIGH, 0)], &[(4, 0), (6, 0)]),
        ("eq64", vec![Rule::eq64(0, 5 | HIGH)], &[(5 | HIGH, 9)], &[(5, 0), (4 | HIGH, 0)]),
        ("masked", vec![Rule::masked_eq(0, 4 | HIGH, 0)], &[(0, 0), (3, 0), (8, 0)], &[(4, 0), (7, 0), (HIGH, 0)]),
        ("le", vec![Rule::le(0, 5)], &[(0, 0), (5, 0)], &[(6, 0), (HIGH, 0), (u64::MAX, 0)]),
        ("and", vec![Rule::eq(0, 1).and(Rule::eq(1, 2))], &[(1, 2)], &[(1, 1), (2, 2), (2, 1)]),
        ("or", vec![Rule::eq(0, 1), Rule::eq(0, 3)], &[(1, 0), (3, 0)], &[(2, 0), (0, 0)]),
        ("none", vec![], &[], &[(0, 0), (5, 5)]),
    ];
    for (name, rules, allowed, killed) in cases {
        let filter = filter().allow_if(libc::SYS_getppid, rules);
        let enter = filter.clone();
        attempt(move || {
            confined().enter(&enter).unwrap();
            for (first, second) in allowed {
                probe_with(*first, *second);
            }
        })
        .passes();
        for (first, second) in killed {
            let enter = filter.clone();
            let ended = attempt(move || {
                confined().enter(&enter).unwrap();
                probe_with(*first, *second);
            });
            eprintln!("rule {name} with {first}, {second}");
            ended.is_killed_by(SIGSYS);
        }
    }
}

#[test]
fn a_union_allows_what_either_part_does() {
    let five = Filter::new("five").allow_if(libc::SYS_getppid, vec![Rule::eq(0, 5)]);
    let six = Filter::new("six").allow_if(libc::SYS_getppid, vec![Rule::eq(0, 6)]);
    let any = Filter::new("any").allow(PROBE);
    assert_eq!(five.clone().with(&six).syscalls().collect::<Vec<_>>(), PROBE);
    let (both, all, all_too) =
        (filter().with(&five).with(&six), filter().with(&five).with(&any), filter().with(&any).with(&five));
    for (filter, argument) in [(&both, 5), (&both, 6), (&all, 7), (&all_too, 7)] {
        attempt(move || {
            confined().enter(filter).unwrap();
            probe_with(argument, 0);
        })
        .passes();
    }
    attempt(move || {
        confined().enter(&both).unwrap();
        probe_with(7, 0);
    })
    .is_killed_by(SIGSYS);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_listed_syscall_under_its_x32_number_kills() {
    attempt(|| {
        confined().enter(&filter().allow(PROBE)).unwrap();
        // SAFETY: asks for a number.
        unsafe { libc::syscall(libc::SYS_getppid | 0x4000_0000) };
    })
    .is_killed_by(SIGSYS);
}

#[test]
fn memory_that_is_mapped_is_private_and_writable_and_never_anything_else() {
    use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
    let writable = PROT_READ | PROT_WRITE;
    let mapped = |rights, flags| {
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody uses.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rights, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        page
    };
    let (private, shared) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let protect = |page, rights| {
        // SAFETY: rights on a page that nobody uses.
        done(unsafe { libc::mprotect(page, 4096, rights) }).unwrap();
    };
    let entered = || confined().enter(&filter().with(&base::blocks())).unwrap();
    attempt(move || {
        // Nothing else forbids it.
        protect(mapped(writable, private), writable | PROT_EXEC);
        mapped(writable, shared);
        entered();
        mapped(writable, private);
    })
    .passes();
    for (rights, flags) in [(writable | PROT_EXEC, private), (PROT_READ | PROT_EXEC, private), (writable, shared)] {
        attempt(move || {
            entered();
            mapped(rights, flags);
        })
        .is_killed_by(SIGSYS);
    }
    for rights in [PROT_READ, PROT_EXEC] {
        attempt(move || {
            entered();
            protect(mapped(writable, private), rights);
        })
        .is_killed_by(SIGSYS);
    }
}

#[test]
fn after_enter_nothing_widens() {
    // Even a role that may call all of these gains nothing by them.
    let calls = [libc::SYS_prlimit64, libc::SYS_prctl, libc::SYS_capset, libc::SYS_seccomp, libc::SYS_openat];
    let generous = filter().allow(&calls);
    attempt(move || {
        let confined = confined();
        confined.enter(&generous).unwrap();
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        // SAFETY: the calls take numbers and a limit that outlives them.
        unsafe {
            is_refused(done(libc::setrlimit(libc::RLIMIT_NOFILE, &limit)), EPERM);
            done(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)).unwrap();
            is_refused(done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)), libc::EINVAL);
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            is_refused(done(libc::prctl(libc::PR_CAP_AMBIENT, raise, 12, 0, 0)), EPERM);
            is_refused(done(libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY)), libc::EACCES);
        }
        // A second filter can only narrow: what it adds to the first stays forbidden.
        let action = allow_all();
        let program = libc::sock_fprog { len: 1, filter: (&raw const action).cast_mut() };
        // SAFETY: the kernel copies a program that outlives the call.
        done(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
            .unwrap();
        probe();
    })
    .is_killed_by(SIGSYS);
}

/// A program of one instruction: allow.
fn allow_all() -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }
}

#[test]
fn base_sets_hold_no_way_to_a_path_a_socket_or_a_process() {
    let forbidden = [
        libc::SYS_openat,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_execve,
        libc::SYS_ptrace,
        libc::SYS_kill,
        libc::SYS_memfd_create,
        libc::SYS_io_uring_setup,
        libc::SYS_prctl,
        libc::SYS_unshare,
    ];
    let all = base::tokio().with(&base::listener());
    assert!(all.syscalls().all(|syscall| !forbidden.contains(&syscall)));
}
