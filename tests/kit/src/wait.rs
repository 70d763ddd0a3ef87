//! Waiting for what somebody else does. That one process has noticed something tells nothing of another, and a machine with other work makes
//! everybody late: what a test needs to be so is waited for, itself, and for as long as it takes.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that is waited for: a debug build on a machine with other work.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const MOMENT: Duration = Duration::from_millis(5);

/// Looks until there is something to see, and gives it.
///
/// # Panics
/// Where it does not come: with `what` was waited for, and what was seen last in its place.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(why) => assert!(Instant::now() < limit, "waited in vain until {what}: {why}"),
        }
        thread::sleep(MOMENT);
    }
}

/// Waits until it is so.
///
/// # Panics
/// Where it never is.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    until(what, || if so() { Ok(()) } else { Err("it is not so".into()) });
}

/// Whether a Unix socket of this thread's network namespace takes connections. It is there a moment before (bind(2), then listen(2)).
///
/// # Panics
/// Where the kernel has no list of its sockets.
pub fn is_listening(socket: &Path) -> bool {
    /// That of the kernel's (__SO_ACCEPTCON, include/uapi/linux/net.h).
    const ACCEPTS: &str = "00010000";
    let all = fs::read_to_string("/proc/thread-self/net/unix").unwrap();
    all.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some(ACCEPTS) && fields.nth(3).is_some_and(|path| Path::new(path) == socket)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn socket_listens_that_takes_connections_and_none_that_is_just_there() {
        let folder = tempfile::tempdir().unwrap();
        let (bound, listening) = (folder.path().join("bound"), folder.path().join("listening"));
        let _bound = UnixDatagram::bind(&bound).unwrap();
        assert!(bound.exists() && !is_listening(&bound));
        assert!(!is_listening(&listening));
        let socket = UnixListener::bind(&listening).unwrap();
        assert!(is_listening(&listening));
        drop(socket);
        assert!(listening.exists() && !is_listening(&listening));
    }

    #[test]
    fn what_comes_late_is_given_and_what_is_so_is_not_waited_for() {
        let mut looks = 0;
        let seen = until("the third look", || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(looks.to_string()) }
        });
        assert_eq!(seen, 3);
        eventually("so", || true);
    }
}
