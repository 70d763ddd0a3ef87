//! What the control thread does for all clients together: it leads an import through the two other threads, and keeps what was opened last.
//! Never sees an image's content.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipc::{Code, Fault, Peer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::digest::Digest;
use crate::image::{self, COPY_AGAIN, Facts, MAX_OUTPUT, Watch};
use crate::index::{NAME_RULE, is_name};
use crate::memfd::{Draft, SealedMemfd};
use crate::store::{Kernel, Store, Unpacked};
use crate::worker::Worker;

/// How long reading and unpacking one image may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// How much later than its deadline the unpacking thread answers at the latest; beyond that it is stuck in a read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Imports that may wait for the one that runs.
const MAX_WAITING: usize = 8;
/// Kernels that are kept in memory after they were opened.
const CACHE_KERNELS: usize = 2;
/// Bytes of them together.
const CACHE_BYTES: u64 = 256 << 20;
const CHUNK: usize = 1 << 20;
const TRIED: &str = "import a kernel";

/// The three threads' common purpose, as the control thread has it for one client.
#[derive(Clone)]
pub struct Service {
    disk: Worker<Store>,
    unpacker: Worker<()>,
    common: Rc<Common>,
}

/// What all clients share.
struct Common {
    /// One import at a time: each may take a gigabyte of memory.
    turn: Arc<Semaphore>,
    waiting: Cell<usize>,
    cache: RefCell<Cache>,
    /// Held while a kernel is read back, so that two who open the same one read it once.
    loading: tokio::sync::Mutex<()>,
}

impl Service {
    /// A service over the thread that has the files and the one that unpacks.
    pub fn new(disk: Worker<Store>, unpacker: Worker<()>) -> Service {
        let common = Rc::new(Common {
            turn: Arc::new(Semaphore::new(1)),
            waiting: Cell::new(0),
            cache: RefCell::new(Cache::default()),
            loading: tokio::sync::Mutex::new(()),
        });
        Service { disk, unpacker, common }
    }

    /// As `peer` has it: with turns of its own on the threads.
    pub fn of(&self, peer: Peer) -> Service {
        Service { disk: self.disk.of(peer), unpacker: self.unpacker.of(peer), common: self.common.clone() }
    }

    /// The thread that has the files.
    pub fn disk(&self) -> &Worker<Store> {
        &self.disk
    }

    /// Imports an image. When this is dropped, unpacking stops; what is being written by then is written.
    ///
    /// # Errors
    /// As `KernelStore.import` in the schema.
    pub async fn import(&self, image: OwnedFd, name: String) -> Result<Kernel, Fault> {
        if !name.is_empty() && !is_name(&name) {
            return Err(Fault::new(Code::InvalidArgument, TRIED, NAME_RULE, "Choose such a name, or none"));
        }
        let turn = self.turn().await?;
        let watch = Watch { deadline: Instant::now() + DEADLINE, cancelled: Arc::new(AtomicBool::new(false)) };
        let _stop = StopOnDrop(watch.cancelled.clone());
        let image = Arc::new(File::from(image));
        let (size, image) = self.disk.ask(move |_| Store::look_at(image.as_fd()).map(|size| (size, image))).await?;

        let (ours, place) = (watch.clone(), turn.clone());
        let read = self.unpack(move || {
            let _place = place;
            let bytes = read(&image, size, &ours)?;
            let digest = Digest::of(&bytes);
            Ok((bytes, digest))
        });
        let (bytes, source) = read.await?;
        let alias = name.clone();
        if let Some(known) = self.disk.ask(move |store| store.known(&source, &alias)).await? {
            return Ok(known);
        }
        let mut draft = self.disk.ask(|_| Store::draft(MAX_OUTPUT)).await?;
        let place = turn.clone();
        let unpacked = self.unpack(move || {
            let _place = place;
            let (len, facts): (usize, Facts) = image::load(&bytes, &mut draft, &watch)?;
            let digest = Digest::of(draft.get(..len).unwrap_or_default());
            Ok(Unpacked { draft, len, digest, facts, source })
        });
        let unpacked = unpacked.await?;
        let (kernel, sealed) = self.disk.ask(move |store| store.keep(unpacked, &name)).await?;
        self.common.cache.borrow_mut().put(kernel.entry.digest, Rc::new(sealed));
        Ok(kernel)
    }

    /// Waits for the import that runs to end.
    async fn turn(&self) -> Result<Arc<OwnedSemaphorePermit>, Fault> {
        let busy = |why: String| Fault::new(Code::Exhausted, TRIED, why, "Try again later");
        if self.common.turn.available_permits() == 0 && self.common.waiting.get() >= MAX_WAITING {
            return Err(busy(format!("{MAX_WAITING} imports wait already")));
        }
        let _waiting = Counted::new(&self.common.waiting);
        let turn = tokio::time::timeout(DEADLINE, self.common.turn.clone().acquire_owned()).await;
        match turn {
            Ok(Ok(turn)) => Ok(Arc::new(turn)),
            _ => Err(busy("the imports before it take longer than a minute".into())),
        }
    }

    /// Runs a step of an import on the unpacking thread.
    async fn unpack<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, image::Error> + Send + 'static,
    ) -> Result<T, Fault> {
        let late = || {
            Fault::new(
                Code::Exhausted,
                TRIED,
                format!("it took longer than {} s", DEADLINE.as_secs()),
                "Try again when the host is less busy",
            )
        };
        let answer =
            tokio::time::timeout(DEADLINE + PATIENCE, self.unpacker.try_ask(|()| f())).await.map_err(|_| late())??;
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(image::Error::Bad { why, remedy })) => Err(Fault::new(Code::BadImage, TRIED, why, remedy)),
            Ok(Err(image::Error::Late)) => Err(late()),
            Ok(Err(image::Error::Cancelled)) => {
                Err(Fault::new(Code::Internal, TRIED, "it was cancelled", "Import it again"))
            }
            Err(_panicked) => {
                Err(Fault::new(Code::BadImage, TRIED, "the image is so damaged that its decoder gave up", COPY_AGAIN))
            }
        }
    }

    /// A kernel's content: from memory if it was opened lately, else read back and checked.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub async fn open(&self, kernel: &Arc<Kernel>) -> Result<OwnedFd, Fault> {
        let sealed = self.sealed(kernel).await?;
        let many = |e| {
            Fault::new(
                Code::Exhausted,
                "open a kernel",
                format!("cannot duplicate its descriptor ({e})"),
                "Claim or drop descriptors first",
            )
        };
        sealed.duplicate().map_err(many)
    }

    async fn sealed(&self, kernel: &Arc<Kernel>) -> Result<Rc<SealedMemfd>, Fault> {
        let digest = kernel.entry.digest;
        if let Some(sealed) = self.common.cache.borrow_mut().get(&digest) {
            return Ok(sealed);
        }
        let _alone = self.common.loading.lock().await;
        if let Some(sealed) = self.common.cache.borrow_mut().get(&digest) {
            return Ok(sealed);
        }
        let kernel = kernel.clone();
        let sealed = Rc::new(self.disk.ask(move |store| store.load(&kernel)).await?);
        self.common.cache.borrow_mut().put(digest, sealed.clone());
        Ok(sealed)
    }

    /// Forgets a kernel.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub async fn remove(&self, reference: String) -> Result<(), Fault> {
        let digest = self.disk.ask(move |store| store.remove(&reference)).await?;
        self.common.cache.borrow_mut().drop(&digest);
        Ok(())
    }
}

/// Reads an image whole: it is hashed, and perhaps unpacked, from bytes that nobody can change meanwhile.
fn read(image: &File, size: usize, watch: &Watch) -> Result<Vec<u8>, image::Error> {
    let broken = |why: String| image::Error::Bad { why, remedy: COPY_AGAIN };
    let mut bytes = vec![0; size];
    let mut len = 0usize;
    while let Some(room) = bytes.get_mut(len..).filter(|room| !room.is_empty()) {
        watch.check()?;
        let end = room.len().min(CHUNK);
        match image.read_at(room.get_mut(..end).unwrap_or_default(), len as u64) {
            Ok(0) => {
                return Err(broken(format!(
                    "the image is truncated: it ended at {len} of {size} bytes while it was read"
                )));
            }
            Ok(more) => len = len.saturating_add(more),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(format!("the image cannot be read at {len} of {size} bytes ({e})"))),
        }
    }
    Ok(bytes)
}

/// Tells the unpacking thread that nobody waits any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One more, while it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<usize>) -> Counted<'a> {
        count.set(count.get().saturating_add(1));
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The kernels that were opened last, the latest in front.
#[derive(Default)]
struct Cache(VecDeque<(Digest, Rc<SealedMemfd>)>);

impl Cache {
    fn get(&mut self, digest: &Digest) -> Option<Rc<SealedMemfd>> {
        let at = self.0.iter().position(|(known, _)| known == digest)?;
        let found = self.0.remove(at)?;
        let sealed = found.1.clone();
        self.0.push_front(found);
        Some(sealed)
    }

    fn put(&mut self, digest: Digest, sealed: Rc<SealedMemfd>) {
        self.drop(&digest);
        self.0.push_front((digest, sealed));
        while self.0.len() > CACHE_KERNELS || self.0.iter().map(|(_, sealed)| sealed.size()).sum::<u64>() > CACHE_BYTES
        {
            self.0.pop_back();
        }
    }

    fn drop(&mut self, digest: &Digest) {
        self.0.retain(|(known, _)| known != digest);
    }
}

/// A draft may cross threads; this fails to compile if it may not.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Draft>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_so_many_kernels_and_bytes_and_no_more() {
        let sealed = |len: u64| Rc::new(Draft::new(len as usize).unwrap().seal(len).unwrap());
        let digest = |n: u8| Digest::of(&[n]);
        let mut cache = Cache::default();
        for n in 0..3 {
            cache.put(digest(n), sealed(1));
        }
        assert!(cache.get(&digest(0)).is_none() && cache.get(&digest(1)).is_some());
        // 1 was used last, so 2 goes.
        cache.put(digest(3), sealed(1));
        assert!(cache.get(&digest(2)).is_none() && cache.get(&digest(1)).is_some());
        cache.put(digest(4), sealed(CACHE_BYTES - 1));
        assert!(cache.get(&digest(1)).is_some() && cache.get(&digest(4)).is_some());
        cache.put(digest(5), sealed(2));
        assert!(cache.get(&digest(4)).is_some() || cache.get(&digest(5)).is_some());
        assert_eq!(cache.0.len(), 1);
        cache.put(digest(6), sealed(CACHE_BYTES + 1));
        assert_eq!(cache.0.len(), 0);
    }
}
