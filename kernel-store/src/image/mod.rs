//! From the bytes of a stranger's image to a checked ELF kernel. Pure computation over two slices: it touches no file and no clock but the
//! deadline it is given, and keeps nothing.
//!
//! What is unpacked is taken as it is and checked as a whole afterwards; nothing of it is executed or followed.

pub mod bzimage;
pub mod elf;
pub mod unpack;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use elf::Facts;

/// The largest image that is read, in bytes.
pub const MAX_INPUT: u64 = 256 << 20;
/// The largest kernel that is unpacked, in bytes.
pub const MAX_OUTPUT: usize = 512 << 20;

/// Why there is no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The image is malformed, truncated or of a kind that is not supported.
    #[error("{why}. {remedy}")]
    Bad {
        /// What is wrong, and where.
        why: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Nobody waits for it any more.
    #[error("the import was cancelled")]
    Cancelled,
    /// It took too long.
    #[error("unpacking took longer than it may")]
    Late,
}

/// The remedy for what has been cut short or changed on its way.
pub(crate) const COPY_AGAIN: &str = "Copy the image again from where it came from";
/// The remedy for what is no kernel.
pub(crate) const GIVE_KERNEL: &str =
    "Give a Linux bzImage (such as /boot/vmlinuz-*) or an uncompressed ELF kernel (vmlinux), for x86-64";

pub(crate) fn bad(why: impl Into<String>, remedy: &'static str) -> Error {
    Error::Bad { why: why.into(), remedy }
}

/// Whether to go on. Asked between chunks of work.
#[derive(Debug, Clone)]
pub struct Watch {
    /// When it is late.
    pub deadline: Instant,
    /// Whether nobody waits any more.
    pub cancelled: Arc<AtomicBool>,
}

impl Watch {
    /// Fails if it is late, or if nobody waits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if Instant::now() >= self.deadline { Err(Error::Late) } else { Ok(()) }
    }
}

/// Unpacks `image` into `out` and checks the result: how many bytes of `out` it takes, and its facts.
///
/// # Errors
/// [`Error::Bad`] with what is wrong, [`Error::Cancelled`], [`Error::Late`].
pub fn load(image: &[u8], out: &mut [u8], watch: &Watch) -> Result<(usize, Facts), Error> {
    let (payload, version) = if let Some(setup) = bzimage::Setup::find(image)? {
        (unpack::Payload { bytes: setup.payload, what: "payload of the bzImage", with_size: true }, setup.version)
    } else {
        (unpack::Payload { bytes: image, what: "image", with_size: false }, None)
    };
    let len = unpack::unpack(&payload, out, watch)?;
    let kernel = out.get(..len).unwrap_or_default();
    let mut facts = elf::check(kernel)?;
    facts.version = match version {
        Some(version) => version,
        None => elf::find_version(kernel),
    };
    Ok((len, facts))
}

/// A little-endian field of `bytes`.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The longest release string that is kept, in bytes: `list` carries 1024 of them in one message.
pub const MAX_VERSION: usize = 200;

/// A release string as it is kept: one line of printable ASCII.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let line = bytes.iter().take_while(|byte| !matches!(byte, 0 | b'\n')).take(MAX_VERSION);
    let text: String = line.map(|byte| if (b' '..=b'~').contains(byte) { *byte as char } else { '?' }).collect();
    text.trim().to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
