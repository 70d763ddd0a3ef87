//! The store on the disk: kernels by the digest of their content, and an index. Touches the files of one directory, and the descriptors it is
//! given to look at; sees no client.
//!
//! ```text
//! index              what there is (index.rs); replaced as a whole
//! index.new          the next one, while it is written
//! kernels/DIGEST     an unpacked ELF
//! kernels/new-N      one that is being written; there may be several
//! ```
//!
//! A kernel is in the store once the index that names it is on the disk; a file that no index names is swept away at the next start.
//! What is read back is hashed before it is handed out. The directory is locked (flock) by the process that serves it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use ipc::{Code, Fault};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use service::{Lost, State};

use crate::digest::Digest;
use crate::error::Error;
use crate::image::MAX_INPUT;
use crate::index::{Entry, Index, MAX_KERNELS, MAX_NAMES, NAME_RULE, Unresolved, is_name};
use crate::memfd::Draft;

mod transfer;

pub use transfer::{Keeping, Opening, Unpacked};

/// Far above what an index of the most kernels and names takes.
const MAX_INDEX: u64 = 16 << 20;
/// What the name of a kernel that is being written begins with.
const NEW: &str = "new";
const CREATE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::TRUNC).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// What is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Kernels.
    pub kernels: usize,
    /// Names.
    pub names: usize,
    /// Bytes of all kernels together.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { kernels: MAX_KERNELS, names: MAX_NAMES, bytes: 16 << 30 }
    }
}

/// One kernel of the store; what it says stays true after it is removed from there.
#[derive(Debug)]
pub struct Kernel {
    /// Its entry in the index, when it was asked for.
    pub entry: Entry,
    /// The name to show.
    pub name: String,
    file: Arc<File>,
}

/// What an image is, as far as it can be seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// Bytes.
    pub size: usize,
    /// Which file.
    pub file: Identity,
}

/// Which file it is, in which state: two descriptors with the same one read the same, if they are read at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity([u64; 6]);

impl Identity {
    fn of(stat: &rustix::fs::Statx) -> Identity {
        let time = |time: rustix::fs::StatxTimestamp| [time.tv_sec.cast_unsigned(), time.tv_nsec.into()];
        let ([modified, m], [changed, c]) = (time(stat.stx_mtime), time(stat.stx_ctime));
        let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        Identity([device, stat.stx_ino, stat.stx_size, modified, changed, m << 32 | c])
    }
}

/// The open store.
pub struct Store {
    dir: OwnedFd,
    kernels: Arc<OwnedFd>,
    index: Index,
    limits: Limits,
    /// Open files of kernels that somebody holds.
    files: HashMap<Digest, Weak<File>>,
    /// What was found damaged, and is written again when it is imported again.
    damaged: HashSet<Digest>,
    /// How many were begun to be written: each has a file of its own.
    begun: u64,
}

type Answer<T> = Result<T, Fault>;

impl State for Store {
    /// Reads the index again. What files are open and which are damaged is found out anew; a kernel that is being written goes on, and one that
    /// had its name and is not in the index is swept away at the next start.
    fn renew(&mut self) -> Result<(), Lost> {
        self.index = read_index(&self.dir)?;
        self.files = HashMap::new();
        self.damaged = HashSet::new();
        Ok(())
    }
}

impl Store {
    /// Takes over a state directory that is locked already, and sweeps away what a crash left.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::File`].
    pub fn open(dir: OwnedFd, limits: Limits) -> Result<Store, Error> {
        let file = |tried| move |source: Errno| Error::File { tried, source: source.into() };
        match rustix::fs::mkdirat(&dir, "kernels", Mode::RWXU) {
            Ok(()) => rustix::fs::fsync(&dir).map_err(file("make the directory of kernels"))?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(file("make the directory of kernels")(e)),
        }
        let kernels = rustix::fs::openat(&dir, "kernels", READ | OFlags::DIRECTORY, Mode::empty());
        let kernels = kernels.map_err(file("open the directory of kernels"))?;
        let index = read_index(&dir)?;
        let (kernels, files, damaged) = (Arc::new(kernels), HashMap::new(), HashSet::new());
        let store = Store { dir, kernels, index, limits, files, damaged, begun: 0 };
        store.sweep().map_err(file("sweep the directory of kernels"))?;
        Ok(store)
    }

    /// Removes files of ours that the index does not name. What has another kind of name is not ours.
    fn sweep(&self) -> rustix::io::Result<()> {
        let mut left = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*self.kernels)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let orphan = name.parse().is_ok_and(|digest| self.index.get(&digest).is_none());
            if orphan || name.starts_with(NEW) {
                left.push(name.to_owned());
            }
        }
        left.iter().try_for_each(|name| rustix::fs::unlinkat(&*self.kernels, name.as_str(), AtFlags::empty()))
    }

    /// Looks at an image that somebody handed in, before anything reads it.
    ///
    /// # Errors
    /// `invalidArgument` if it is no regular file, or lies where a read might never return; `badImage` if it is empty or too large.
    pub fn look_at(image: BorrowedFd) -> Answer<FileFacts> {
        const TRIED: &str = "import a kernel";
        let failed = |e: io::Error| io_fault(TRIED, "look at the image", &e);
        let refused = |why, remedy| Err(Fault::new(Code::InvalidArgument, TRIED, why, remedy));
        let readable = rustix::fs::fcntl_getfl(image).map_err(|e| failed(e.into()))?;
        if readable.intersection(OFlags::RWMODE | OFlags::PATH).intersects(OFlags::WRONLY | OFlags::PATH) {
            return refused("the descriptor is not open for reading", "Open the image for reading");
        }
        let (stat, nearby) = ipc::look_at(image).map_err(failed)?;
        if !rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()).is_file() {
            return refused("the descriptor is not of a regular file", "Open the image itself, for reading");
        }
        if !nearby {
            return refused(
                "the image is neither in memory nor on a block device, so reading it might wait for another host or process for ever",
                "Copy it into a memfd, or to a file system on a disk of this host",
            );
        }
        match usize::try_from(stat.stx_size) {
            Ok(0) => {
                Err(Fault::new(Code::BadImage, TRIED, "the image is empty", "Copy it again from where it came from"))
            }
            Ok(size) if size as u64 <= MAX_INPUT => Ok(FileFacts { size, file: Identity::of(&stat) }),
            _ => {
                let why = format!("the image has {} bytes, and {MAX_INPUT} are the most", stat.stx_size);
                Err(Fault::new(
                    Code::BadImage,
                    TRIED,
                    why,
                    "Use a kernel without debug information (a stripped vmlinux, or the bzImage)",
                ))
            }
        }
    }

    /// Room to unpack or load a kernel into.
    ///
    /// # Errors
    /// `exhausted` if there is no memory.
    pub fn draft(len: usize) -> Answer<Draft> {
        Draft::new(len).map_err(|e| {
            Fault::new(
                Code::Exhausted,
                "make room for a kernel",
                format!("the kernel gave no memory ({e})"),
                "Try again when more memory is free",
            )
        })
    }

    /// The kernel that an image with this digest is known to unpack to, under a name if one is given.
    ///
    /// # Errors
    /// As [`Keeping::step`].
    pub fn known(&mut self, source: &Digest, name: &str) -> Answer<Option<Kernel>> {
        let Some(digest) = self.index.by_source(source).map(|entry| entry.digest) else { return Ok(None) };
        if !self.has(&digest) {
            return Ok(None);
        }
        self.name(&digest, name)?;
        self.kernel(&digest).map(Some)
    }

    /// Whether a kernel is in the index, and its file with it as far as is known.
    fn has(&mut self, digest: &Digest) -> bool {
        self.index.get(digest).is_some() && !self.damaged.contains(digest) && self.file(digest).is_ok()
    }

    /// The index with a kernel in it, under a name if one is given; nothing is written yet.
    fn with(&self, unpacked: &Unpacked, name: &str) -> Answer<Index> {
        let Unpacked { len, digest, facts, source, .. } = unpacked;
        let mut next = self.index.clone();
        if next.get(digest).is_none() {
            self.check_room(*len as u64)?;
            let imported = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            next.entries.push(Entry {
                digest: *digest,
                size: *len as u64,
                facts: facts.clone(),
                imported: i64::try_from(imported).unwrap_or(i64::MAX),
                name: String::new(),
                sources: Vec::new(),
            });
        }
        next.add_source(digest, *source);
        self.check_name(&next, name)?;
        next.give_name(digest, name);
        Ok(next)
    }

    /// The kernel that a reference means.
    ///
    /// # Errors
    /// `notFound`, `invalidArgument`; `badImage` if its file is gone.
    pub fn get(&mut self, reference: &str) -> Answer<Kernel> {
        let digest = self.resolve("get a kernel", reference)?;
        self.kernel(&digest)
    }

    /// Every kernel with the name to show, the latest first.
    pub fn list(&self) -> Vec<(Entry, String)> {
        self.index.entries.iter().rev().map(|entry| (entry.clone(), self.index.name_of(entry).to_owned())).collect()
    }

    /// Forgets a kernel: its digest. Those who hold it can still open it.
    ///
    /// # Errors
    /// `notFound`, `invalidArgument`, and those of the disk.
    pub fn remove(&mut self, reference: &str) -> Answer<Digest> {
        let digest = self.resolve("remove a kernel", reference)?;
        let mut next = self.index.clone();
        next.remove(&digest);
        // Should this fail, the next start does it.
        let kernels = self.kernels.clone();
        let unlink = || rustix::fs::unlinkat(&*kernels, digest.to_string(), AtFlags::empty());
        match self.commit(next.clone()) {
            // On a full disk the new index has its place once the kernel has gone. Should it fail then, the kernel is listed and gone, as
            // one that is damaged: to be imported, or removed, again.
            Err(fault) if fault.code == Code::Exhausted && unlink().is_ok() => self.commit(next)?,
            committed => committed?,
        }
        let _ = unlink();
        self.damaged.remove(&digest);
        self.files.remove(&digest);
        Ok(digest)
    }

    /// Remembers that a kernel's file is not what it was, and says so.
    fn damaged(&mut self, digest: &Digest) -> Fault {
        if self.index.get(digest).is_some() {
            self.damaged.insert(*digest);
        }
        Fault::new(
            Code::BadImage,
            Opening::TRIED,
            format!("the store's file kernels/{digest} is damaged"),
            "Import its image again, which mends it, and see whether the disk is healthy",
        )
    }

    fn resolve(&self, tried: &str, reference: &str) -> Answer<Digest> {
        let shown: String = reference.chars().take(80).collect();
        match self.index.resolve(reference) {
            Ok(entry) => Ok(entry.digest),
            Err(Unresolved::NotFound) => {
                let remedy = "Import it, or use a name or digest that the list shows";
                Err(Fault::new(
                    Code::NotFound,
                    format!("{tried} by {shown:?}"),
                    "there is none with that name or digest",
                    remedy,
                ))
            }
            Err(Unresolved::Ambiguous) => Err(Fault::new(
                Code::InvalidArgument,
                format!("{tried} by {shown:?}"),
                "several digests begin so",
                "Give more digits",
            )),
        }
    }

    fn kernel(&mut self, digest: &Digest) -> Answer<Kernel> {
        let file = self.file(digest)?;
        let gone = || Fault::new(Code::Internal, "get a kernel", "its entry is gone", "Report this as a defect");
        let entry = self.index.get(digest).ok_or_else(gone)?;
        Ok(Kernel { name: self.index.name_of(entry).to_owned(), entry: entry.clone(), file })
    }

    /// The open file of a kernel, shared by all who hold it.
    fn file(&mut self, digest: &Digest) -> Answer<Arc<File>> {
        if let Some(file) = self.files.get(digest).and_then(Weak::upgrade) {
            return Ok(file);
        }
        self.files.retain(|_, file| file.strong_count() > 0);
        let opened = rustix::fs::openat(&*self.kernels, digest.to_string(), READ, Mode::empty());
        let file = Arc::new(File::from(opened.map_err(|e| match e {
            Errno::NOENT => {
                let why = format!("the store's file kernels/{digest} is gone");
                Fault::new(Code::BadImage, "get a kernel", why, "Import its image again, which mends it")
            }
            e => io_fault("get a kernel", "open its file", &e.into()),
        })?));
        self.files.insert(*digest, Arc::downgrade(&file));
        Ok(file)
    }

    fn name(&mut self, digest: &Digest, name: &str) -> Answer<()> {
        let shown = self.index.get(digest).is_some_and(|entry| entry.name == name);
        if name.is_empty() || (shown && self.index.names.get(name) == Some(digest)) {
            return Ok(());
        }
        let mut next = self.index.clone();
        self.check_name(&next, name)?;
        next.give_name(digest, name);
        self.commit(next)
    }

    fn check_name(&self, index: &Index, name: &str) -> Answer<()> {
        const TRIED: &str = "name a kernel";
        if name.is_empty() {
            return Ok(());
        }
        if !is_name(name) {
            return Err(Fault::new(Code::InvalidArgument, TRIED, NAME_RULE, "Choose such a name, or none"));
        }
        if index.names.len() >= self.limits.names && !index.names.contains_key(name) {
            return Err(Fault::new(
                Code::Exhausted,
                TRIED,
                format!("there are {} names already", index.names.len()),
                "Remove some kernels",
            ));
        }
        Ok(())
    }

    fn check_room(&self, more: u64) -> Answer<()> {
        let Limits { kernels, bytes, .. } = self.limits;
        let full = |why| {
            Err(Fault::new(
                Code::Exhausted,
                "keep a kernel",
                why,
                "Remove kernels that are no longer used, or raise --max-bytes",
            ))
        };
        if self.index.entries.len() >= kernels {
            return full(format!("the store has {kernels} kernels, which is the limit"));
        }
        let used: u64 = self.index.entries.iter().map(|entry| entry.size).sum();
        if used.saturating_add(more) > bytes {
            return full(format!("it needs {more} bytes, and the store has {used} of {bytes} in use"));
        }
        Ok(())
    }

    /// Puts the next index on the disk and takes it for ours.
    fn commit(&mut self, next: Index) -> Answer<()> {
        if next != self.index {
            let text = next.to_text();
            replace(&self.dir, "index.new", "index", text.as_bytes())
                .map_err(|e| io_fault("keep the index of kernels", "write it", &e))?;
            self.index = next;
        }
        Ok(())
    }
}

/// The index as the disk has it.
fn read_index(dir: &OwnedFd) -> Result<Index, Error> {
    let file = match rustix::fs::openat(dir, "index", READ, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(Index::default()),
        Err(e) => return Err(Error::File { tried: "open the index", source: e.into() }),
    };
    let failed = |source| Error::File { tried: "read the index", source };
    let mut text = vec![0; size(&file).map_err(failed)?.min(MAX_INDEX) as usize];
    file.read_exact_at(&mut text, 0).map_err(failed)?;
    let text = String::from_utf8(text).map_err(|_| Error::Index("it is not text".into()))?;
    Index::from_text(&text).map_err(Error::Index)
}

/// A file's size. (Std asks by another call, beside which this one is needed anyway.)
fn size(file: &File) -> io::Result<u64> {
    Ok(ipc::look_at(file)?.0.stx_size)
}

/// Makes `name` hold `content`, all of it or as before, also after a power failure: a file of another name, synced, then renamed.
fn replace(dir: &OwnedFd, temporary: &str, name: &str, content: &[u8]) -> io::Result<()> {
    let write = || {
        let mut file = File::from(rustix::fs::openat(dir, temporary, CREATE, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        file.sync_all()
    };
    let written =
        write().and_then(|()| Ok(rustix::fs::renameat_with(dir, temporary, dir, name, RenameFlags::empty())?));
    if written.is_err() {
        // Nothing to do about it if this fails too; the next start sweeps.
        let _ = rustix::fs::unlinkat(dir, temporary, AtFlags::empty());
    }
    written.and_then(|()| Ok(rustix::fs::fsync(dir.as_fd())?))
}

/// What a failure of the disk means to a caller.
fn io_fault(tried: &str, what: &str, error: &io::Error) -> Fault {
    let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG]
        .iter()
        .any(|errno| Some(errno.raw_os_error()) == error.raw_os_error());
    let crowded = [Errno::MFILE, Errno::NFILE, Errno::NOMEM]
        .iter()
        .any(|errno| Some(errno.raw_os_error()) == error.raw_os_error());
    let (code, remedy) = match (full, crowded) {
        (true, _) => (Code::Exhausted, "Free some space on the file system of the state directory, or remove kernels"),
        (_, true) => (Code::Exhausted, "Try again when fewer kernels are in use"),
        _ => (Code::Internal, "See that the state directory is writable and its disk healthy"),
    };
    Fault::new(code, tried, format!("cannot {what} ({error})"), remedy)
}

#[cfg(test)]
mod tests;
