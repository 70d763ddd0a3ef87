//! What attempts of this crate have in common.

use std::io;

use confine::{Confined, Filter, Policy, Sandbox, base};
pub use testkit::attempt::{attempt, exit};

/// Whether tests that need it may run; says so where not.
pub fn is_root() -> bool {
    let root = testkit::user::is_root();
    if !root {
        testkit::skip!("it needs root");
    }
    root
}

pub fn sandbox() -> Sandbox {
    Sandbox::new("attempt", Policy::BestEffort)
}

pub fn confined() -> Confined {
    sandbox().confine().unwrap()
}

/// A filter that lets a test compare, panic and end, beside what it adds.
pub fn filter() -> Filter {
    Filter::new("attempt").with(&base::exit()).with(&base::heap())
}

/// The result of a libc call, as a result.
pub fn done(answer: impl Into<i64>) -> io::Result<i64> {
    match answer.into() {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

pub fn is_refused<T: std::fmt::Debug>(result: io::Result<T>, errno: i32) {
    match result {
        Ok(value) => panic!("was allowed: {value:?}"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno), "{error}"),
    }
}
