//! What nobody can guess: tokens, references, names.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes of the kernel's random number generator, 256 at most.
///
/// # Errors
/// What the kernel says.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    // As many come whole or not at all (getrandom(2)).
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    match getrandom(&mut bytes[..], GetRandomFlags::empty())? {
        count if count == N => Ok(bytes),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
