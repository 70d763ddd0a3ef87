//! A start that inherits nothing, as far as the kernel shows it to the process alone; `volt/tests/host/inherited.rs` has the rest.

use crate::harness::{attempt, done, is_root};

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

        let kept = confine::afresh();

        assert!(kept.iter().all(|what| what.contains("limits") || what.contains("score")), "{kept:?}");
        assert!(!merges || get(PR_GET_MEMORY_MERGE) == 0);
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
