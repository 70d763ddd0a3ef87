//! Memory files: a draft that only this process has, and what it becomes once no one can change it any more.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// A memory file of fixed size, mapped, that nobody else has. Memory is taken as it is written to.
pub struct Draft {
    fd: OwnedFd,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and memory does not care which thread reads or writes it.
unsafe impl Send for Draft {}

impl Draft {
    /// A draft of `len` bytes, all zero; at least one.
    ///
    /// # Errors
    /// Where the kernel refuses the file or the mapping.
    pub fn new(len: usize) -> io::Result<Draft> {
        let fd = confine::memory_file("kernel")?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Draft { fd, start, len })
    }

    /// Cuts the file to `len` bytes and seals it against every change, and against a change of the seals.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn seal(self, len: u64) -> io::Result<SealedMemfd> {
        let fd = self.fd.try_clone()?;
        // F_SEAL_WRITE asks that no writable mapping is left.
        drop(self);
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fcntl_add_seals(&fd, kernel_image::SEALS | SealFlags::SEAL)?;
        Ok(SealedMemfd { file: File::from(fd), len })
    }
}

impl Deref for Draft {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is a mapping of `len` readable bytes that lives as long as `self`. Its file was not handed out, is not sealed
        // and keeps its size, so no other writer exists and no access can go past its end.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the mapping is writable, and `&mut self` says that nobody else has a reference into it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A memory file that can never change again.
#[derive(Debug)]
pub struct SealedMemfd {
    file: File,
    len: u64,
}

impl SealedMemfd {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Another descriptor on it.
    ///
    /// # Errors
    /// Where this process has too many.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Reads at an offset.
    ///
    /// # Errors
    /// As `pread`.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }
}

impl AsFd for SealedMemfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_holds_what_was_drafted_and_refuses_every_change() {
        let mut draft = Draft::new(1 << 20).unwrap();
        draft[..5].copy_from_slice(b"hello");
        let sealed = draft.seal(5).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(sealed.read_at(&mut bytes, 0).unwrap(), 5);
        assert_eq!(&bytes[..5], b"hello");
        let fd = sealed.duplicate().unwrap();
        assert!(rustix::io::pwrite(&fd, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 100).is_err());
        assert!(rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE).is_err());
        let seals = rustix::fs::fcntl_get_seals(&fd).unwrap();
        // Linux 6.3 and later seal it against being made executable as well.
        let never_executed = SealFlags::from_bits_retain(0x20);
        assert_eq!(seals - never_executed, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL);
        // SAFETY: a mapping at an address of the kernel's choice, if there were one.
        let mapped =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, ProtFlags::WRITE, MapFlags::SHARED, &fd, 0) };
        assert!(mapped.is_err());
    }
}
