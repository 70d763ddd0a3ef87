//! From the bytes of a stranger's image to a checked ELF kernel, in steps. Pure computation over two slices: it touches no file and no clock,
//! and keeps nothing.
//!
//! What is unpacked is taken as it is and checked as a whole afterwards; nothing of it is executed, followed or relocated. Every loop is bounded:
//! the image has [`MAX_INPUT`] bytes, what comes out of it [`MAX_OUTPUT`] (so the ratio of the two needs no limit), a step takes a bounded part of
//! either (`unpack`), headers and notes are few (`kernel-image`, `elf`), and the search for the release string passes over each byte once.

pub mod bzimage;
pub mod elf;
pub mod unpack;

use std::sync::Arc;

pub use elf::Facts;
pub(crate) use kernel_image::{COPY_AGAIN, GIVE_KERNEL};

use crate::digest::Digest;
use sha2::Digest as _;
use unpack::{Input, Unpacking};
use vm_memory::ByteValued;

/// The largest image that is read, in bytes.
pub const MAX_INPUT: u64 = schema::kernel_store_capnp::MAX_IMAGE_BYTES;
/// The largest kernel that is unpacked, in bytes.
pub const MAX_OUTPUT: usize = 512 << 20;
/// What a step reads, hashes or searches.
pub(crate) const CHUNK: usize = 1 << 20;

/// Why there is no kernel: the image is malformed, truncated or of a kind that is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}. {remedy}")]
pub struct Error {
    /// What is wrong, and where.
    pub why: String,
    /// What to do about it.
    pub remedy: &'static str,
}

pub(crate) fn bad(why: impl Into<String>, remedy: &'static str) -> Error {
    Error { why: why.into(), remedy }
}

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes of the kernel.
    pub len: usize,
    /// Their digest.
    pub digest: Digest,
    /// What it says of itself.
    pub facts: Facts,
}

/// An image on its way to a kernel.
pub struct Loading {
    unpacking: Unpacking,
    hasher: sha2::Sha256,
    hashed: usize,
    /// Of the setup header, or found.
    version: Option<String>,
    /// Once it is whole: what it is, and how far the search for its release string has come.
    whole: Option<(Loaded, usize)>,
}

impl Loading {
    /// Looks at what the image is.
    ///
    /// # Errors
    /// If it is nothing that can be unpacked.
    pub fn new(image: Arc<Vec<u8>>) -> Result<Loading, Error> {
        let (unpacking, version) = match bzimage::Setup::find(&image)? {
            Some(setup) => {
                let input = Input::new(image.clone(), setup.payload);
                (Unpacking::new(input, "payload of the bzImage", true)?, setup.version)
            }
            None => {
                let all = 0..image.len();
                (Unpacking::new(Input::new(image, all), "image", false)?, None)
            }
        };
        Ok(Loading { unpacking, hasher: sha2::Sha256::new(), hashed: 0, version, whole: None })
    }

    /// Does a bounded part of the work, on the same `out` each time; what came of it once it is done.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn step(&mut self, out: &mut [u8]) -> Result<Option<Loaded>, Error> {
        let Some((loaded, searched)) = &mut self.whole else {
            let end = self.unpacking.step(out)?;
            let come = self.unpacking.come();
            self.hasher.update(out.get(self.hashed..come).unwrap_or_default());
            self.hashed = come;
            if let Some(len) = end {
                let facts = elf::check(out.get(..len).unwrap_or_default())?;
                let digest = Digest::from(std::mem::take(&mut self.hasher));
                self.whole = Some((Loaded { len, digest, facts }, 0));
            }
            return Ok(None);
        };
        let kernel = out.get(..loaded.len).unwrap_or_default();
        if self.version.is_none() && *searched < kernel.len() {
            let to = searched.saturating_add(CHUNK).min(kernel.len());
            self.version = elf::find_version(kernel, *searched, to);
            *searched = to;
            return Ok(None);
        }
        loaded.facts.version = self.version.take().unwrap_or_default();
        Ok(Some(loaded.clone()))
    }
}

/// A structure out of `bytes`, by copy.
pub(crate) fn structure<T: ByteValued + Default>(bytes: &[u8], at: usize) -> Option<T> {
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(bytes.get(at..)?.get(..size_of::<T>())?);
    Some(value)
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
