//! Scattered guest memory, and system calls straight into and out of it.
//!
//! The guest can write to this memory at any time, so no Rust reference to it is ever made: bytes are copied once with
//! volatile accesses, or the kernel does the copying.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

/// The most pieces of memory one chain may have: what one `readv` or `writev` takes (UIO_MAXIOV), less one for a buffer
/// of the device's own.
pub const MAX_SEGMENTS: usize = 1023;

/// Pieces of guest memory that together hold one thing.
#[derive(Debug, Default)]
pub struct Segments<'m> {
    parts: Vec<VolatileSlice<'m>>,
    len: u64,
}

impl<'m> Segments<'m> {
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.len = 0;
    }

    pub(crate) fn push(&mut self, part: VolatileSlice<'m>) {
        // A chain has at most MAX_SEGMENTS parts of 4 GiB: no overflow.
        self.len += part.len() as u64;
        self.parts.push(part);
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pieces.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// The parts of `len` bytes from `offset` on, as far as there are any.
    fn range(&self, offset: u64, len: u64) -> impl Iterator<Item = VolatileSlice<'m>> + '_ {
        let (mut skip, mut left) = (offset, len);
        self.parts.iter().filter_map(move |part| {
            let size = part.len() as u64;
            if left == 0 || skip >= size {
                skip = skip.saturating_sub(size);
                return None;
            }
            let take = left.min(size - skip);
            // Both fit: they are no more than the part's own length.
            let piece = part.subslice(skip as usize, take as usize).ok();
            skip = 0;
            left -= take;
            piece
        })
    }

    /// Copies out of the guest's memory from `offset` on; the number of bytes there were.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.range(offset, to.len() as u64) {
            if let Some(to) = to.get_mut(done..) {
                done += piece.copy_to(to);
            }
        }
        done
    }

    /// Copies into the guest's memory from `offset` on; the number of bytes there was room for.
    pub fn write(&self, offset: u64, from: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.range(offset, from.len() as u64) {
            if let Some(from) = from.get(done..) {
                let take = from.len().min(piece.len());
                piece.copy_from(from);
                done += take;
            }
        }
        done
    }
}

/// A list of memory for one of the vector system calls, guest memory mostly.
#[derive(Debug, Default)]
pub struct IoVecs<'m> {
    list: Vec<libc::iovec>,
    memory: PhantomData<&'m mut [u8]>,
}

impl<'m> IoVecs<'m> {
    /// An empty list.
    pub fn new() -> IoVecs<'m> {
        IoVecs::default()
    }

    /// Appends `len` bytes of guest memory from `offset` on, as far as there are any.
    pub fn push(&mut self, segments: &Segments<'m>, offset: u64, len: u64) {
        self.list.extend(
            segments
                .range(offset, len)
                .map(|piece| libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() }),
        );
    }

    /// Appends private memory.
    pub fn push_private(&mut self, memory: &'m mut [u8]) {
        self.list.push(libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() });
    }

    /// Whether there is nothing left to move.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Drops the first `bytes`, which have been moved.
    pub fn advance(&mut self, mut bytes: usize) {
        let mut gone = 0;
        for part in &mut self.list {
            if bytes < part.iov_len {
                part.iov_base = part.iov_base.cast::<u8>().wrapping_add(bytes).cast();
                part.iov_len -= bytes;
                break;
            }
            bytes -= part.iov_len;
            gone += 1;
        }
        self.list.drain(..gone);
    }

    fn raw(&self) -> (*const libc::iovec, libc::c_int) {
        // Longer lists than the kernel takes go in steps: the callers move on by what was done.
        let count = self.list.len().min(MAX_SEGMENTS + 1);
        (self.list.as_ptr(), count as libc::c_int)
    }

    /// Reads from `fd` into the memory, once.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn readv(&mut self, fd: impl AsFd) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: every entry is either a piece of a mapping that outlives 'm, or a `&'m mut` slice; no Rust reference to
        // the former exists, the latter is exclusively borrowed. `count` entries are there.
        result(unsafe { libc::readv(fd.as_fd().as_raw_fd(), list, count) })
    }

    /// Writes the memory to `fd`, once.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn writev(&self, fd: impl AsFd) -> io::Result<usize> {
        let (list, count) = self.raw();
        // SAFETY: as for `readv`; the kernel only reads the memory.
        result(unsafe { libc::writev(fd.as_fd().as_raw_fd(), list, count) })
    }

    /// Fills the memory from `fd` at `offset`.
    ///
    /// # Errors
    /// What the kernel says, and `UnexpectedEof` if the file ends early.
    pub fn read_all_at(mut self, fd: impl AsFd, offset: u64) -> io::Result<()> {
        // SAFETY: as for `readv`.
        self.all_at(offset, |list, count, at| unsafe { libc::preadv(fd.as_fd().as_raw_fd(), list, count, at) })
    }

    /// Writes the memory to `fd` at `offset`.
    ///
    /// # Errors
    /// What the kernel says, and `UnexpectedEof` if nothing more can be written.
    pub fn write_all_at(mut self, fd: impl AsFd, offset: u64) -> io::Result<()> {
        // SAFETY: as for `writev`.
        self.all_at(offset, |list, count, at| unsafe { libc::pwritev(fd.as_fd().as_raw_fd(), list, count, at) })
    }

    fn all_at(
        &mut self,
        mut offset: u64,
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<()> {
        while !self.list.is_empty() {
            let (list, count) = self.raw();
            let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            match result(call(list, count, at)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    self.advance(bytes);
                    offset = offset.saturating_add(bytes as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory;
    use std::io::{Seek, Write};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    /// Ten bytes in pieces of 3, 4 and 3, apart from each other.
    fn pieces(memory: &crate::memory::Memory) -> Segments<'_> {
        let mut segments = Segments::default();
        for (at, len) in [(0x100, 3), (0x200, 4), (0x300, 3)] {
            segments.push(memory.guest().get_slice(GuestAddress(at), len).unwrap());
        }
        segments
    }

    #[test]
    fn bytes_are_copied_over_the_seams_and_not_past_the_end() {
        let memory = memory();
        let segments = pieces(&memory);
        assert_eq!((segments.len(), segments.count()), (10, 3));
        assert_eq!(segments.write(0, b"0123456789ab"), 10);
        let mut all = [0; 16];
        assert_eq!(segments.read(0, &mut all), 10);
        assert_eq!(&all[..11], b"0123456789\0");
        assert_eq!(segments.write(2, b"XYZ"), 3);
        let mut part = [0; 4];
        assert_eq!(segments.read(1, &mut part), 4);
        assert_eq!(&part, b"1XYZ");
        assert_eq!(segments.read(9, &mut part), 1);
        assert_eq!(segments.read(10, &mut part), 0);
        assert_eq!(segments.read(u64::MAX, &mut part), 0);
    }

    #[test]
    fn a_file_is_read_into_the_middle_of_the_pieces_only() {
        let memory = memory();
        let segments = pieces(&memory);
        segments.write(0, b"..........");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdefgh").unwrap();
        let mut list = IoVecs::new();
        list.push(&segments, 2, 6);
        list.read_all_at(&file, 1).unwrap();
        let mut all = [0; 10];
        segments.read(0, &mut all);
        assert_eq!(&all, b"..bcdefg..");
        // The file ends before the list does.
        let mut list = IoVecs::new();
        list.push(&segments, 0, 10);
        let error = list.read_all_at(&file, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn private_memory_takes_what_goes_past_the_guest_s() {
        let memory = memory();
        let segments = pieces(&memory);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789abc").unwrap();
        file.rewind().unwrap();
        let mut spill = [0; 8];
        let mut list = IoVecs::new();
        list.push(&segments, 0, 10);
        list.push_private(&mut spill);
        assert_eq!(list.readv(&file).unwrap(), 13);
        assert_eq!(&spill, b"abc\0\0\0\0\0");
        let mut last = [0; 3];
        memory.guest().read_slice(&mut last, GuestAddress(0x300)).unwrap();
        assert_eq!(&last, b"789");
    }

    #[test]
    fn a_list_moves_on_by_what_was_done_within_and_over_its_parts() {
        let memory = memory();
        let segments = pieces(&memory);
        segments.write(0, b"0123456789");
        for skip in 0..=10 {
            let mut list = IoVecs::new();
            list.push(&segments, 0, 10);
            list.advance(skip);
            assert_eq!(list.is_empty(), skip == 10);
            let file = tempfile::tempfile().unwrap();
            list.write_all_at(&file, 0).unwrap();
            let mut bytes = [0; 10];
            let rest = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).unwrap();
            assert_eq!(bytes[..rest], b"0123456789"[skip..]);
        }
    }
}
