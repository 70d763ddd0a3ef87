//! vmm-core
fn main() {}
