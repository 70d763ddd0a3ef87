//! How failures become faults.

use ipc::{Code, Fault};
use rusqlite::ErrorCode;

/// A fault of its parts.
pub fn fault(code: Code, tried: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault::new(code, tried, why, remedy)
}

/// What a failure of SQLite means to a caller.
pub fn database(tried: &str) -> impl Fn(rusqlite::Error) -> Fault + '_ {
    move |error| match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => full(tried),
        Some(ErrorCode::ConstraintViolation) => fault(
            Code::Internal,
            tried,
            format!("the database refuses to hold it ({error})"),
            "Nothing was changed; report this as a defect",
        ),
        _ => fault(
            Code::Internal,
            tried,
            format!("the database failed ({error})"),
            "See that the state directory is writable and its disk healthy",
        ),
    }
}

/// What a failure to make a file in the state directory means to a caller.
pub fn file_system(tried: &str) -> impl Fn(std::io::Error) -> Fault + '_ {
    move |error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => full(tried),
        _ => fault(
            Code::Internal,
            tried,
            format!("a file in the state directory cannot be made ({error})"),
            "See that the state directory is writable and its disk healthy",
        ),
    }
}

/// What it means to a caller that there is no space.
pub fn full(tried: &str) -> Fault {
    let why = "the file system of the state directory is full";
    fault(Code::Exhausted, tried, why, "Free some space on it, then try again")
}
