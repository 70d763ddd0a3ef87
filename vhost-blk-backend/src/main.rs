//! vhost-blk-backend
fn main() {}
