//! A start that inherits nothing, as far as the kernel shows it to the process alone; `volt/tests/host/inherited.rs` has the rest.

use std::fs;
use std::path::Path;

use rustix::fs::Mode;

use crate::harness::{attempt, done, is_root};

const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;

fn get(option: i32) -> i32 {
    // SAFETY: these options take numbers.
    unsafe { libc::prctl(option, 0, 0, 0, 0) }
}

fn set(option: i32, value: u64) {
    // SAFETY: these options take numbers.
    done(unsafe { libc::prctl(option, value, 0, 0, 0) }).unwrap();
}

/// What it asks of the keyrings that a process has: KEYCTL_GET_KEYRING_ID of the session's, KEYCTL_SET_REQKEY_KEYRING to no change.
fn keyrings() -> (i64, i64) {
    // SAFETY: these take numbers.
    unsafe { (libc::syscall(libc::SYS_keyctl, 0, -3, 0), libc::syscall(libc::SYS_keyctl, 14, -1)) }
}

/// sched_getattr(2), in words: the last two are the bounds of the speed.
type Scheduling = [u32; 14];

fn scheduling() -> Scheduling {
    let (mut now, size) = (Scheduling::default(), size_of::<Scheduling>());
    // SAFETY: the kernel writes as many bytes as it is told, to what outlives the call.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, now.as_mut_ptr(), size, 0) }).unwrap();
    now
}

/// Has the processors run at no less than a tenth, where the kernel has such a bound.
fn bound_speed() -> bool {
    let mut bounds = scheduling();
    let [_, _, flags, _, .., least, _] = &mut bounds;
    // SCHED_FLAG_KEEP_ALL, SCHED_FLAG_UTIL_CLAMP_MIN.
    (*flags, *least) = (0x08 | 0x10 | 0x20, 102);
    // SAFETY: the kernel reads as many bytes as the first word says, of what outlives the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, bounds.as_ptr(), 0) == 0 }
}

#[test]
fn what_only_the_process_itself_can_see_is_set_anew_as_well() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let merges = get(PR_GET_MEMORY_MERGE) == 0;
        if merges {
            set(PR_SET_MEMORY_MERGE, 1);
        }
        let [flushes, bounded] = [get(PR_GET_IO_FLUSHER) == 0, bound_speed()];
        if flushes {
            set(PR_SET_IO_FLUSHER, 1);
        }
        // Of who logged in, where the kernel notes that and lets it be changed.
        let logged_in = fs::write("/proc/self/loginuid", "0").is_ok();
        rustix::process::umask(Mode::empty());
        std::env::set_current_dir("/proc").unwrap();
        // Changing its user leaves the capabilities.
        set(libc::PR_SET_SECUREBITS, 1 << 2);
        // SAFETY: takes numbers.
        done(unsafe { libc::prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_SET, libc::PR_MCE_KILL_EARLY, 0, 0) }).unwrap();
        // SAFETY: these take numbers.
        done(unsafe { libc::syscall(libc::SYS_keyctl, 14, 3) }).unwrap();
        let (session, default) = keyrings();
        assert_eq!(default, 3);
        for signal in [libc::SIGUSR1, libc::SIGCHLD] {
            // SAFETY: it is ignored, so no handler runs.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }

        let kept = confine::reset_inherited();

        assert!(kept.iter().all(|what| what.contains("limits") || what.contains("score")), "{kept:?}");
        assert!(!merges || get(PR_GET_MEMORY_MERGE) == 0);
        assert!(!flushes || get(PR_GET_IO_FLUSHER) == 0);
        assert!(!bounded || scheduling()[12] == 0);
        assert!(!logged_in || fs::read_to_string("/proc/self/loginuid").unwrap().trim() == "4294967295");
        assert_eq!(rustix::process::umask(Mode::empty()), Mode::from_raw_mode(0o077));
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        assert_eq!(get(libc::PR_GET_SECUREBITS), 0);
        assert_eq!(get(libc::PR_MCE_KILL_GET), libc::PR_MCE_KILL_DEFAULT);
        let (own, default) = keyrings();
        assert!(own != session && default == 0, "{own} {session} {default}");
        for signal in [libc::SIGUSR1, libc::SIGCHLD] {
            // SAFETY: as above.
            assert_eq!(unsafe { libc::signal(signal, libc::SIG_DFL) }, libc::SIG_DFL);
        }
    })
    .passes();
}
