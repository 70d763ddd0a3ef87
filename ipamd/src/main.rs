//! ipamd
fn main() {}
