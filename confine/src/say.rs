//! Lines for people on standard error. What cannot be written there (a full disk, a reader that has gone) is no reason to end: it
//! is tried again with the next line. (`eprintln!` panics.)

use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line, at once, so that those of several processes stay whole.
pub fn say(line: impl Display) {
    let _unread = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// [`say`](crate::say()), with the arguments of [`format!`].
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::say(format_args!($($argument)*)) };
}
