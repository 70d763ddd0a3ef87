//! vhost-net-backend
fn main() {}
