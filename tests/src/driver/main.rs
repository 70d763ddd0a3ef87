//! Runs inside the lab host and drives `volt`.
fn main() {}
