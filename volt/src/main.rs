//! volt
fn main() {}
