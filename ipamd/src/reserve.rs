//! Space on the file system that is kept for giving things back: that needs writes as well, and has to succeed on a full disk. A file of a
//! fixed size, emptied when a write is refused for want of space, and filled again as soon as there is some. Touches that file alone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// How much: what SQLite's log holds before its next checkpoint (1000 pages of 4 KiB), and that again in the database that it is brought to.
pub const BYTES: u64 = 8 << 20;
/// How often it is tried to fill it again.
const RETRY: Duration = Duration::from_secs(1);
const CHUNK: usize = 256 << 10;

/// The file, and how much of it is there.
pub struct Reserve {
    file: Option<OwnedFd>,
    has: u64,
    /// When to try again; `None` while it is whole, or nobody needs it yet.
    retry: Option<Instant>,
}

impl Reserve {
    /// What the last process left in `folder`. Makes nothing.
    pub fn find(folder: &Path) -> Reserve {
        let file = open(folder, OFlags::RDWR).ok();
        let has = file.as_ref().and_then(|file| size(file).ok()).unwrap_or(0);
        Reserve { file, has, retry: None }
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.has >= BYTES
    }

    /// When to [`fill`](Reserve::fill) it again.
    pub fn next_try(&self) -> Option<Instant> {
        self.retry
    }

    /// Fills it as far as there is space, if it has not been tried a moment ago. Whether it is whole.
    pub fn fill(&mut self, folder: &Path, now: Instant) -> bool {
        if self.is_whole() || self.retry.is_some_and(|retry| now < retry) {
            return self.is_whole();
        }
        // As much as there is: also a part of it is of use. The next try goes on.
        let _ = self.extend(folder);
        self.retry = (!self.is_whole()).then(|| now + RETRY);
        self.is_whole()
    }

    /// Gives the space up, for writes that cannot do without.
    pub fn give_up(&mut self, now: Instant) {
        if let Some(file) = &self.file
            && rustix::fs::ftruncate(file, 0).is_ok()
        {
            self.has = 0;
            self.retry = Some(now);
        }
    }

    fn extend(&mut self, folder: &Path) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(open(folder, OFlags::RDWR | OFlags::CREATE)?),
        };
        let chunk = noise();
        while self.has < BYTES {
            let room = usize::try_from(BYTES - self.has).unwrap_or(CHUNK).min(CHUNK);
            match rustix::io::pwrite(file, chunk.get(..room).unwrap_or(&chunk), self.has)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.has += written as u64,
            }
        }
        Ok(())
    }
}

/// What no file system packs into less, as some do with zeros (in units of 128 KiB).
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    let mut chunk = vec![0; CHUNK];
    chunk.as_chunks_mut().0.iter_mut().for_each(|word| *word = next());
    chunk
}

fn open(folder: &Path, how: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = how | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, folder.join("reserve"), flags, Mode::RUSR | Mode::WUSR)
}

fn size(file: &OwnedFd) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statat(file, c"", AtFlags::EMPTY_PATH)?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_takes_real_space_is_given_up_and_is_found_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let on_disk = || std::fs::metadata(dir.path().join("reserve")).map_or(0, |file| file.blocks() * 512);
        let mut reserve = Reserve::find(dir.path());
        assert!(!reserve.is_whole() && on_disk() == 0, "nobody needs it yet");
        assert!(reserve.fill(dir.path(), now) && on_disk() >= BYTES);
        assert!(Reserve::find(dir.path()).is_whole());
        reserve.give_up(now);
        assert!(!reserve.is_whole() && on_disk() == 0);
        assert!(reserve.next_try().is_some());
        assert!(reserve.fill(dir.path(), now) && reserve.next_try().is_none());
        // A part, as a full disk leaves it.
        std::fs::File::options().write(true).open(dir.path().join("reserve")).unwrap().set_len(BYTES - 5).unwrap();
        let mut reserve = Reserve::find(dir.path());
        assert!(!reserve.is_whole() && reserve.fill(dir.path(), now));
        assert_eq!(std::fs::metadata(dir.path().join("reserve")).unwrap().len(), BYTES);
    }
}
