//! What `volt`'s own threads may ask of the kernel once they listen to others.

use confine::{Filter, Rule, base};

/// A short command: talks over the links that it has, and prints what it heard.
pub fn client() -> Filter {
    let output = vec![Rule::eq(0, 1)];
    Filter::new("client").with(&base::tokio()).with(&base::heap()).with(&links()).allow_if(libc::SYS_write, output)
}

/// To make sure of what a socket is, before talking over it.
pub fn links() -> Filter {
    let socket = Rule::eq(1, libc::SOL_SOCKET as u32);
    let options = [libc::SO_TYPE, libc::SO_DOMAIN, libc::SO_ACCEPTCONN, libc::SO_PEERCRED];
    let commands = [libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
    Filter::new("links")
        .allow_if(libc::SYS_getsockopt, options.map(|o| socket.clone().and(Rule::eq(2, o as u32))).to_vec())
        .allow_if(libc::SYS_fcntl, commands.map(|command| Rule::eq(1, command as u32)).to_vec())
        .allow(&[libc::SYS_getpeername]) // whether it is connected
}

/// Waiting for descriptors.
pub fn poll() -> Filter {
    Filter::new("poll").allow(&[libc::SYS_ppoll])
}
