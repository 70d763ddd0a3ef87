//! Other users than root, as threads of a test: the kernel's credentials are a thread's.

use std::thread::JoinHandle;

/// Whether this process may become other users, and make namespaces.
pub fn is_root() -> bool {
    // SAFETY: takes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// Runs `work` on a thread that is that user; where this is not root, as this user.
pub fn as_user<T: Send + 'static>(user: u32, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(move || {
        if is_root() {
            // SAFETY: sets the user of this thread alone (libc's wrapper would change the whole process); no memory is touched.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }, 0);
        }
        work()
    })
}
