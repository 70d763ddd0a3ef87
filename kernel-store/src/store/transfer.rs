//! Kernels on their way to the disk and back, in steps: written and named, or read, hashed and checked. Touches the files of the store.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ipc::{Code, Fault};
use rustix::fs::{AtFlags, Mode, RenameFlags};
use sha2::Digest as _;

use crate::digest::Digest;
use crate::image::{self, CHUNK, Facts, MAX_OUTPUT, elf};
use crate::index::Entry;
use crate::memfd::{Draft, SealedMemfd};

use super::{Answer, CREATE, Kernel, NEW, Store, io_fault};

/// What is written between two syncs: a sync takes as long as there is to write.
const SYNC: usize = 8 << 20;

/// A kernel that was unpacked and is to be kept.
pub struct Unpacked {
    /// It, from the draft's beginning.
    pub draft: Draft,
    /// Its size.
    pub len: usize,
    /// Its digest.
    pub digest: Digest,
    /// What it says of itself.
    pub facts: Facts,
    /// The digest of the image it came from.
    pub source: Digest,
}

/// A kernel on its way to the disk, in steps, between which others may be on theirs. Dropped before it is there, it leaves nothing.
pub struct Keeping {
    unpacked: Option<Unpacked>,
    name: String,
    writing: Option<Writing>,
}

/// Its file, until it has its own name.
struct Writing {
    kernels: Arc<OwnedFd>,
    name: String,
    file: File,
    written: usize,
    /// It has its own name now.
    done: bool,
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.done {
            // Nothing to do about it if this fails; the next start sweeps.
            let _ = rustix::fs::unlinkat(&*self.kernels, &*self.name, AtFlags::empty());
        }
    }
}

impl Keeping {
    const TRIED: &str = "keep a kernel";

    /// To keep an unpacked kernel, under a name if one is given.
    pub fn new(unpacked: Unpacked, name: String) -> Keeping {
        Keeping { unpacked: Some(unpacked), name, writing: None }
    }

    /// Writes a part of it; the kernel, sealed for handing out, once all is on the disk.
    ///
    /// # Errors
    /// `exhausted` if the disk or the store is full, `internal` if the disk fails.
    pub fn step(&mut self, store: &mut Store) -> Answer<Option<(Kernel, SealedMemfd)>> {
        let failed = |e: io::Error| io_fault(Keeping::TRIED, "write it", &e);
        let Some(unpacked) = &self.unpacked else { return Err(lost(Keeping::TRIED)) };
        let content = unpacked.draft.get(..unpacked.len).unwrap_or_default();
        match &mut self.writing {
            None if store.has(&unpacked.digest) => {}
            None => {
                // What is refused is refused before it costs anything.
                store.with(unpacked, &self.name)?;
                store.begun = store.begun.wrapping_add(1);
                let name = format!("{NEW}-{}", store.begun);
                let file = rustix::fs::openat(&*store.kernels, &*name, CREATE, Mode::RUSR | Mode::WUSR);
                let (file, kernels) = (File::from(file.map_err(|e| failed(e.into()))?), store.kernels.clone());
                self.writing = Some(Writing { kernels, name, file, written: 0, done: false });
                return Ok(None);
            }
            Some(writing) if writing.written < content.len() => {
                let end = writing.written.saturating_add(SYNC).min(content.len());
                let part = content.get(writing.written..end).unwrap_or_default();
                writing.file.write_all(part).and_then(|()| writing.file.sync_all()).map_err(failed)?;
                writing.written = end;
                return Ok(None);
            }
            Some(_) => {}
        }
        let next = store.with(unpacked, &self.name)?;
        let digest = unpacked.digest;
        if let Some(writing) = &mut self.writing {
            store.files.remove(&digest);
            let name = digest.to_string();
            rustix::fs::renameat_with(&*store.kernels, &*writing.name, &*store.kernels, name, RenameFlags::empty())
                .map_err(|e| failed(e.into()))?;
            writing.done = true;
            rustix::fs::fsync(&*store.kernels).map_err(|e| failed(e.into()))?;
        }
        if let Err(fault) = store.commit(next) {
            if store.index.get(&digest).is_none() {
                let _ = rustix::fs::unlinkat(&*store.kernels, digest.to_string(), AtFlags::empty());
            }
            return Err(fault);
        }
        store.damaged.remove(&digest);
        let kernel = store.kernel(&digest)?;
        let Some(Unpacked { draft, len, .. }) = self.unpacked.take() else { return Err(lost(Keeping::TRIED)) };
        let sealed = draft.seal(len as u64).map_err(|e| io_fault(Keeping::TRIED, "seal it", &e))?;
        Ok(Some((kernel, sealed)))
    }
}

/// A kernel on its way back from the disk, in steps: read, hashed while the bytes are in the cache, and checked.
pub struct Opening {
    kernel: Arc<Kernel>,
    draft: Option<Draft>,
    hasher: sha2::Sha256,
    read: usize,
}

impl Opening {
    pub(super) const TRIED: &str = "open a kernel";

    /// To read a kernel back, and to check that it is what it was.
    pub fn new(kernel: Arc<Kernel>) -> Opening {
        Opening { kernel, draft: None, hasher: sha2::Sha256::new(), read: 0 }
    }

    /// Reads a part of it; it, sealed, once it is whole and sound.
    ///
    /// # Errors
    /// `badImage` if it is not, or no kernel that this version takes; `internal` if the disk fails; `exhausted` if there is no memory.
    pub fn step(&mut self, store: &mut Store) -> Answer<Option<SealedMemfd>> {
        let failed = |what: &'static str| move |e: io::Error| io_fault(Opening::TRIED, what, &e);
        let Kernel { entry: Entry { digest, size, facts, .. }, file, .. } = &*self.kernel;
        let Some(draft) = &mut self.draft else {
            let len = super::size(file).map_err(failed("look at its file"))?;
            if len != *size || len == 0 || len > MAX_OUTPUT as u64 {
                return Err(store.damaged(digest));
            }
            self.draft = Some(Store::draft(usize::try_from(len).unwrap_or(0))?);
            return Ok(None);
        };
        let end = self.read.saturating_add(CHUNK).min(draft.len());
        if let Some(chunk) = draft.get_mut(self.read..end).filter(|chunk| !chunk.is_empty()) {
            file.read_exact_at(chunk, self.read as u64).map_err(failed("read its file"))?;
            self.hasher.update(&*chunk);
            self.read = end;
            return Ok(None);
        }
        if Digest::from(std::mem::take(&mut self.hasher)) != *digest {
            return Err(store.damaged(digest));
        }
        // The digest says that these are the bytes that were checked, perhaps by an earlier version; the facts that go with them are
        // in another file.
        let is = elf::check(draft).map_err(|image::Error { why, remedy }| {
            let why = format!("the store has kernels/{digest} of an earlier version of this program, but {why}");
            Fault::new(Code::BadImage, Opening::TRIED, why, format!("Remove it from the store. {remedy}"))
        })?;
        if (Facts { version: facts.version.clone(), ..is }) != *facts {
            return Err(store.damaged(digest));
        }
        let Some(draft) = self.draft.take() else { return Err(lost(Opening::TRIED)) };
        draft.seal(*size).map(Some).map_err(failed("seal it"))
    }
}

/// A step was asked for after the last one.
fn lost(tried: &str) -> Fault {
    Fault::new(Code::Internal, tried, "it was done already", "Report this as a defect")
}
