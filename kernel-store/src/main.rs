//! kernel-store
fn main() {}
