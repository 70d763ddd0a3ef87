//! Waiting for what somebody else does. That one process has noticed something tells nothing of another, and a machine with other work makes
//! everybody late: what a test needs to be so is waited for, itself, and for as long as it takes.

use std::{
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

#[cfg(test)]
mod tests {
    use super::*;

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
