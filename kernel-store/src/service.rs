//! What the control thread does for all clients together: it leads an import through the two other threads, and keeps what was opened last.
//! Never sees an image's content.
//!
//! An import has two parts. To *recognise* an image, it is read and hashed in passing; that takes no memory, so everybody's goes on at once, and
//! a known kernel waits for nothing else. What is new is read into memory and *unpacked*: one at a time, as each may take a gigabyte. Whoever
//! asks for the same thing as another who still waits for it waits with that one, and it is done once.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::hash::Hash;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipc::{Code, Fault, Peer};
use sha2::Digest as _;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::digest::Digest;
use crate::image::{self, CHUNK, COPY_AGAIN, Loading, MAX_OUTPUT};
use crate::index::{NAME_RULE, is_name};
use crate::memfd::{Draft, SealedMemfd};
use crate::store::{Identity, Keeping, Kernel, Looked, Opening, Store, Unpacked};
use crate::worker::{Homing, Stopped, Worker};

/// How much of a thread's time one image, or one kernel that is opened, may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Imports that may wait, of all clients; one connection has no more than its calls in flight. A descriptor is all that each costs.
const MAX_WAITING: usize = 1024;
/// Kernels that are kept in memory after they were opened.
const CACHE_KERNELS: usize = 2;
/// Bytes of them together.
const CACHE_BYTES: u64 = 256 << 20;
/// Mebibytes of kernels that are read back from the disk at one time.
const OPENING: u32 = 1024;
const TRIED: &str = "import a kernel";

/// The three threads' common purpose, as the control thread has it for one connection.
#[derive(Clone)]
pub struct Service {
    disk: Worker<Store>,
    unpacker: Worker<Scratch>,
    /// Held while an import of this connection unpacks or waits to: its others wait here, and not in front of other connections.
    own_turn: Rc<tokio::sync::Mutex<()>>,
    common: Rc<Common>,
}

/// What all share.
struct Common {
    waiting: Cell<usize>,
    /// One image at a time.
    turn: Arc<Semaphore>,
    recognising: RefCell<HashMap<Identity, Weak<Recognising>>>,
    unpacking: Together<Digest, Result<(), Fault>>,
    opening: Together<Digest, Rc<SealedMemfd>>,
    opened: Semaphore,
    cache: RefCell<Cache>,
}

/// What the unpacking thread reads into, where nothing is kept of it.
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// Of a step's size.
    pub fn new() -> Scratch {
        Scratch(vec![0; CHUNK])
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// A file that is being hashed, or that waits to be.
#[derive(Default)]
struct Recognising {
    digest: OnceCell<Digest>,
    /// Whoever comes now must not be told what it was before.
    begun: Arc<AtomicBool>,
}

/// Answers that several wait for, by what was asked.
struct Together<K, V>(RefCell<HashMap<K, Weak<OnceCell<V>>>>);

impl<K: Eq + Hash, V> Default for Together<K, V> {
    fn default() -> Self {
        Together(RefCell::default())
    }
}

impl<K: Eq + Hash, V: Clone> Together<K, V> {
    /// Has one of those who wait for this at the same time do it. Where that one goes, or fails, the next does it.
    async fn once(&self, key: K, work: impl Future<Output = Result<V, Fault>>) -> Result<V, Fault> {
        let cell = {
            let mut all = self.0.borrow_mut();
            all.retain(|_, cell| cell.strong_count() > 0);
            let found = all.get(&key).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let cell = Rc::default();
                all.insert(key, Rc::downgrade(&cell));
                cell
            })
        };
        cell.get_or_try_init(|| work).await.cloned()
    }
}

impl Service {
    /// A service over the thread that has the files and the one that unpacks.
    pub fn new(disk: Worker<Store>, unpacker: Worker<Scratch>) -> Service {
        let common = Rc::new(Common {
            waiting: Cell::new(0),
            turn: Arc::new(Semaphore::new(1)),
            recognising: RefCell::default(),
            unpacking: Together::default(),
            opening: Together::default(),
            opened: Semaphore::new(OPENING as usize),
            cache: RefCell::default(),
        });
        Service { disk, unpacker, own_turn: Rc::default(), common }
    }

    /// As a new connection of `peer` has it: with turns of its own on the threads.
    pub fn of(&self, peer: Peer) -> Service {
        let (disk, unpacker) = (self.disk.of(peer), self.unpacker.of(peer));
        Service { disk, unpacker, own_turn: Rc::default(), common: self.common.clone() }
    }

    /// The thread that has the files.
    pub fn disk(&self) -> &Worker<Store> {
        &self.disk
    }

    /// Imports an image. When this is dropped, the work ends, unless others wait for the same.
    ///
    /// # Errors
    /// As `KernelStore.import` in the schema.
    pub async fn import(&self, image: OwnedFd, name: String) -> Result<Kernel, Fault> {
        if !name.is_empty() && !is_name(&name) {
            return Err(Fault::new(Code::InvalidArgument, TRIED, NAME_RULE, "Choose such a name, or none"));
        }
        let _waits = Waits::new(&self.common.waiting, MAX_WAITING)?;
        let image = Arc::new(File::from(image));
        let seen = image.clone();
        let looked = self.disk.ask(move |_| Store::look_at(seen.as_fd())).await?;
        let source = self.recognise(&image, looked).await?;
        if let Some(kernel) = self.known(source, &name).await? {
            return Ok(kernel);
        }
        self.common.unpacking.once(source, self.unpack(image, looked.size, source, &name)).await??;
        let gone = || Fault::new(Code::NotFound, TRIED, "it was removed as soon as it was there", "Import it again");
        self.known(source, &name).await?.ok_or_else(gone)
    }

    async fn known(&self, source: Digest, name: &str) -> Result<Option<Kernel>, Fault> {
        let name = name.to_owned();
        self.disk.ask(move |store| store.known(&source, &name)).await
    }

    /// The digest of an image, as it is once this is asked for. A file that waits to be read is read once for all who wait for it.
    async fn recognise(&self, image: &Arc<File>, looked: Looked) -> Result<Digest, Fault> {
        let one = {
            let mut all = self.common.recognising.borrow_mut();
            all.retain(|_, one| one.strong_count() > 0);
            let waits = |one: &Rc<Recognising>| !one.begun.load(Ordering::Acquire);
            let found = all.get(&looked.file).and_then(Weak::upgrade).filter(waits);
            found.unwrap_or_else(|| {
                let one = Rc::default();
                all.insert(looked.file, Rc::downgrade(&one));
                one
            })
        };
        let hash = || async {
            let (image, begun) = (image.clone(), one.begun.clone());
            let (mut hasher, mut read) = (sha2::Sha256::new(), 0);
            let step = move |Scratch(scratch): &mut Scratch| {
                begun.store(true, Ordering::Release);
                if read == looked.size {
                    return Ok(Some(Digest::from(std::mem::take(&mut hasher))));
                }
                let chunk = read_some(&image, scratch, read, looked.size)?;
                hasher.update(&*chunk);
                read = read.saturating_add(chunk.len());
                Ok(None)
            };
            self.unpacker.work(LIMIT, step).await.map_err(|stopped| import_fault(stopped, bad_image))
        };
        one.digest.get_or_try_init(hash).await.copied()
    }

    /// Unpacks an image that is not known, and keeps what is in it. That the image is bad is an answer for all who wait for the same.
    async fn unpack(
        &self,
        image: Arc<File>,
        size: usize,
        source: Digest,
        name: &str,
    ) -> Result<Result<(), Fault>, Fault> {
        let _own = self.own_turn.lock().await;
        let turn = Arc::new(self.common.turn.clone().acquire_owned().await.map_err(|_| busy("the service is ending"))?);
        // Somebody else may have been before.
        if self.known(source, name).await?.is_some() {
            return Ok(Ok(()));
        }
        let home = self.disk.clone();
        let draft = self.disk.ask(move |_| Ok(Homing::new(Store::draft(MAX_OUTPUT)?, home))).await?;
        let mut unpacking = Unpack::new(image, size, source, draft, self.disk.clone(), turn.clone());
        let unpacked = match self.unpacker.work(LIMIT, move |_| unpacking.step()).await {
            Ok(unpacked) => unpacked,
            Err(Stopped::Failed(Failed::Bad(error))) => return Ok(Err(bad_image(error))),
            Err(stopped @ (Stopped::Late | Stopped::Panicked)) => return Ok(Err(import_fault(stopped, bad_unpack))),
            Err(stopped) => return Err(import_fault(stopped, bad_unpack)),
        };
        let mut keeping = unpacked.map(|unpacked| Keeping::new(unpacked, name.to_owned()));
        let step = move |store: &mut Store| {
            let _place = &turn;
            keeping.get_mut().map_or(Ok(None), |keeping| keeping.step(store))
        };
        let kept = self.disk.work(LIMIT, step).await;
        let (kernel, sealed) = kept.map_err(|stopped| import_fault(stopped, |fault| fault))?;
        self.common.cache.borrow_mut().put(kernel.entry.digest, Rc::new(sealed));
        Ok(Ok(()))
    }

    /// A kernel's content: from memory if it was opened lately, else read back and checked.
    ///
    /// # Errors
    /// As [`Opening::step`].
    pub async fn open(&self, kernel: &Arc<Kernel>) -> Result<OwnedFd, Fault> {
        let digest = kernel.entry.digest;
        let cached = self.common.cache.borrow_mut().get(&digest);
        let sealed = match cached {
            Some(sealed) => sealed,
            None => self.common.opening.once(digest, self.read_back(kernel.clone())).await?,
        };
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

    async fn read_back(&self, kernel: Arc<Kernel>) -> Result<Rc<SealedMemfd>, Fault> {
        let (digest, size) = (kernel.entry.digest, kernel.entry.size);
        let share = u32::try_from(size.div_ceil(1 << 20)).unwrap_or(u32::MAX).min(OPENING);
        let _share = self.common.opened.acquire_many(share).await.map_err(|_| busy("the service is ending"))?;
        let mut opening = Opening::new(kernel);
        let opened = self.disk.work(LIMIT, move |store| opening.step(store)).await;
        let sealed = Rc::new(opened.map_err(|stopped| fault("open a kernel", stopped, |fault| fault))?);
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

/// An image on its way into memory and out of its packing.
struct Unpack {
    image: Arc<File>,
    size: usize,
    source: Digest,
    hasher: sha2::Sha256,
    bytes: Vec<u8>,
    loading: Option<Loading>,
    draft: Option<Homing<Draft, Store>>,
    home: Worker<Store>,
    /// Held until this is gone, which may be after its caller.
    _place: Arc<OwnedSemaphorePermit>,
}

/// Why an image is not unpacked.
enum Failed {
    Bad(image::Error),
    /// It is another one than was asked for.
    Changed,
}

impl From<image::Error> for Failed {
    fn from(error: image::Error) -> Failed {
        Failed::Bad(error)
    }
}

impl Unpack {
    fn new(
        image: Arc<File>,
        size: usize,
        source: Digest,
        draft: Homing<Draft, Store>,
        home: Worker<Store>,
        place: Arc<OwnedSemaphorePermit>,
    ) -> Unpack {
        let (hasher, bytes) = (sha2::Sha256::new(), Vec::new());
        Unpack { image, size, source, hasher, bytes, loading: None, draft: Some(draft), home, _place: place }
    }

    /// From here on nobody can change what was read: it is hashed, and unpacked, from memory.
    fn step(&mut self) -> Result<Option<Homing<Unpacked, Store>>, Failed> {
        if self.bytes.is_empty() && self.loading.is_none() {
            // The kernel gives zeroed pages as they are touched.
            self.bytes = Vec::with_capacity(self.size);
        }
        let read = self.bytes.len();
        if read < self.size && self.loading.is_none() {
            let end = read.saturating_add(CHUNK).min(self.size);
            self.bytes.resize(end, 0);
            let room = self.bytes.get_mut(read..).unwrap_or_default();
            let got = read_some(&self.image, room, read, self.size)?.len();
            self.bytes.truncate(read.saturating_add(got));
            self.hasher.update(self.bytes.get(read..).unwrap_or_default());
            return Ok(None);
        }
        let Some(loading) = &mut self.loading else {
            if Digest::from(std::mem::take(&mut self.hasher)) != self.source {
                return Err(Failed::Changed);
            }
            self.loading = Some(Loading::new(Arc::new(std::mem::take(&mut self.bytes)))?);
            return Ok(None);
        };
        let Some(loaded) = self.draft.as_mut().and_then(Homing::get_mut).map(|draft| loading.step(draft)) else {
            return Ok(None);
        };
        let Some(image::Loaded { len, digest, facts }) = loaded? else { return Ok(None) };
        let draft = self.draft.take().and_then(Homing::take);
        let unpacked = draft.map(|draft| Unpacked { draft, len, digest, facts, source: self.source });
        Ok(unpacked.map(|unpacked| Homing::new(unpacked, self.home.clone())))
    }
}

/// Reads as much as there is room for, but not beyond `size`; at least a byte.
fn read_some<'a>(image: &File, into: &'a mut [u8], at: usize, size: usize) -> Result<&'a mut [u8], image::Error> {
    let broken = |why: String| image::Error { why, remedy: COPY_AGAIN };
    let room = into.get_mut(..size.saturating_sub(at).min(CHUNK).min(into.len())).unwrap_or_default();
    loop {
        match image.read_at(room, at as u64) {
            Ok(0) => {
                return Err(broken(format!(
                    "the image is truncated: it ended at {at} of {size} bytes while it was read"
                )));
            }
            Ok(more) => return Ok(room.get_mut(..more).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(format!("the image cannot be read at {at} of {size} bytes ({e})"))),
        }
    }
}

fn bad_image(error: image::Error) -> Fault {
    Fault::new(Code::BadImage, TRIED, error.why, error.remedy)
}

fn bad_unpack(failed: Failed) -> Fault {
    match failed {
        Failed::Bad(error) => bad_image(error),
        Failed::Changed => Fault::new(
            Code::BadImage,
            TRIED,
            "the image was changed while it was imported",
            "Import it once it is whole",
        ),
    }
}

fn import_fault<E>(stopped: Stopped<E>, of: impl FnOnce(E) -> Fault) -> Fault {
    match stopped {
        // Work that panicked on the unpacking thread was a decoder's.
        Stopped::Panicked => {
            Fault::new(Code::BadImage, TRIED, "the image is so damaged that its decoder gave up", COPY_AGAIN)
        }
        stopped => fault(TRIED, stopped, of),
    }
}

fn fault<E>(tried: &str, stopped: Stopped<E>, of: impl FnOnce(E) -> Fault) -> Fault {
    match stopped {
        Stopped::Failed(error) => of(error),
        Stopped::Refused(fault) => fault,
        Stopped::Late => {
            let why = format!("it took more than {} s of work", LIMIT.as_secs());
            Fault::new(
                Code::Exhausted,
                tried,
                why,
                "Use a kernel that is smaller or packed in another way, or a faster host",
            )
        }
        Stopped::Panicked => Fault::new(Code::Internal, tried, "its handler panicked", "Report this as a defect"),
    }
}

fn busy(why: impl Into<String>) -> Fault {
    Fault::new(Code::Overloaded, TRIED, why, "Try again later")
}

/// One more of those who wait, while it lives.
struct Waits<'a>(&'a Cell<usize>);

impl<'a> Waits<'a> {
    fn new(waiting: &'a Cell<usize>, most: usize) -> Result<Waits<'a>, Fault> {
        if waiting.get() >= most {
            return Err(busy(format!("{most} imports wait already")));
        }
        waiting.set(waiting.get().saturating_add(1));
        Ok(Waits(waiting))
    }
}

impl Drop for Waits<'_> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The service over a store in a folder, and the thread that unpacks, which does nothing yet.
    fn service(dir: &std::path::Path) -> (Service, crate::worker::Mailbox<Scratch>) {
        use rustix::fs::{Mode, OFlags};
        let (disk, disk_mailbox) = crate::worker::worker();
        let (unpacker, unpack_mailbox) = crate::worker::worker();
        let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let store = Store::open(dir, crate::store::Limits::default()).unwrap();
        std::thread::spawn(move || disk_mailbox.serve(store));
        (Service::new(disk, unpacker), unpack_mailbox)
    }

    fn peer(pid: i32) -> Peer {
        Peer { pid, ..Peer::this_process() }
    }

    fn image(seed: u8) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("volt-kernel-{}-{seed}", std::process::id()));
        std::fs::write(&path, crate::image::tests::images::kernel(seed)).unwrap();
        path
    }

    #[test]
    fn many_imports_of_one_file_at_once_read_it_once_and_of_one_content_unpack_it_once() {
        const MANY: usize = 50;
        let (dir, path) = (tempfile::tempdir().unwrap(), image(1));
        let (service, mailbox) = service(dir.path());
        ipc::run(async {
            let import = |n: usize| {
                let service = service.of(peer(1 + n as i32));
                let file = File::open(&path).unwrap().into();
                tokio::task::spawn_local(async move { service.import(file, format!("k-{n}")).await })
            };
            let imports: Vec<_> = (0..MANY).map(import).collect();
            // Each waits for the one that will read.
            let holders = || service.common.recognising.borrow().values().map(Weak::strong_count).sum::<usize>();
            while holders() < MANY {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(service.common.recognising.borrow().len(), 1);
            assert_eq!(service.unpacker.asked(), 1);
            std::thread::spawn(move || mailbox.serve(Scratch::new()));
            for import in imports {
                import.await.unwrap().unwrap();
            }
            let kernels = service.disk.ask(|store| Ok(store.list())).await.unwrap();
            assert_eq!(kernels.len(), 1);
            // Of the fifty names that it was given, each leads to it.
            for n in 0..MANY {
                let name = format!("k-{n}");
                service.disk.ask(move |store| store.get(&name).map(drop)).await.unwrap();
            }
        })
        .unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_several_wait_for_is_done_once_and_by_another_where_the_first_goes_or_fails() {
        let done = Cell::new(0);
        let together = Together::<u8, u8>::default();
        let work = |answer: Result<u8, Fault>| {
            let done = &done;
            async move {
                done.set(done.get() + 1);
                tokio::task::yield_now().await;
                answer
            }
        };
        ipc::run(async {
            let (a, b, c) = futures::join!(
                together.once(1, work(Ok(7))),
                together.once(1, work(Ok(8))),
                together.once(2, work(Ok(9)))
            );
            assert_eq!((a.unwrap(), b.unwrap(), c.unwrap(), done.take()), (7, 7, 9, 2));
            let (a, b) = futures::join!(together.once(1, work(Err(busy("x")))), together.once(1, work(Ok(8))));
            assert_eq!((a.unwrap_err(), b.unwrap(), done.take()), (busy("x"), 8, 2));
            let mut first = Box::pin(together.once(1, work(Ok(7))));
            let mut second = Box::pin(together.once(1, work(Ok(8))));
            assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
            drop(first);
            assert_eq!(second.await.unwrap(), 8);
            // Nobody waits any more: it is done anew.
            assert_eq!(together.once(1, work(Ok(3))).await.unwrap(), 3);
        })
        .unwrap();
    }

    #[test]
    fn so_many_imports_wait_and_the_next_is_refused_at_once() {
        let (dir, path) = (tempfile::tempdir().unwrap(), image(2));
        let (service, _mailbox) = service(dir.path());
        ipc::run(async {
            let import = |n: usize| {
                let service = service.of(peer(1 + n as i32));
                let file: OwnedFd = File::open(&path).unwrap().into();
                Box::pin(async move { service.import(file, String::new()).await })
            };
            let mut waiting: Vec<_> = (0..MAX_WAITING).map(import).collect();
            for one in &mut waiting {
                assert!(futures::poll!(one).is_pending());
            }
            let fault = import(0).await.unwrap_err();
            assert!(fault.why.contains("1024 imports wait already"), "{fault}");
            waiting.pop();
            assert!(futures::poll!(&mut import(0)).is_pending());
        })
        .unwrap();
        std::fs::remove_file(path).unwrap();
    }

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
