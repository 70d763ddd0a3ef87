//! What the control thread does for all clients together: it leads an import through the two other threads, and keeps what was opened last.
//! Never sees an image's content.
//!
//! An import has two parts. To *recognise* an image, it is read and hashed in passing; that takes no memory, so everybody's goes on at once, and
//! a known kernel waits for nothing else. What is new is read into memory and *unpacked*, as far as there are [`places`](crate::places) for that. All
//! that several ask for is done once, but nobody waits behind what another user asked for before: with the first import of a file that waits to be
//! read only the same user's others wait.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipc::{Code, Fault, Peer};
use schema::limits::IMPORT_WORK;
use service::{Allowance, Owner, Stopped};
use sha2::Digest as _;
use tokio::sync::OnceCell;

use crate::cache::Cache;
use crate::digest::Digest;
use crate::dropped_on::DroppedOn;
use crate::image::{self, COPY_AGAIN, MAX_OUTPUT};
use crate::index::{NAME_RULE, is_name};
use crate::memfd::SealedMemfd;
use crate::places::{Limits, Place, Places, Requester};
use crate::reading::{Failed, Scratch, Unpack, read_some};
use crate::store::{FileFacts, Identity, Keeping, Kernel, Opening, Store};

/// Imports of one process that may wait. A descriptor is all that each costs.
const PER_PROCESS: usize = 256;
/// Imports of one user.
const PER_USER: usize = 1024;
/// Images that are unpacked at one time: each may take 256 MiB for the image, 512 MiB for the kernel and 132 MiB for the decoder, so 2.7 GiB in all.
const UNPACKING: Limits = Limits { places: 3, per_user: 2, per_process: 1 };
/// Kernels that are read back at one time: each may take 512 MiB, so 2 GiB in all.
const OPENING: Limits = Limits { places: 4, per_user: 3, per_process: 2 };
const TRIED: &str = "import a kernel";

/// The three threads' common purpose, as the control thread has it for one connection.
#[derive(Clone)]
pub struct Service {
    disk: Owner<Store>,
    unpacker: Owner<Scratch>,
    who: Requester,
    common: Rc<Common>,
}

/// What all share.
struct Common {
    waiting: RefCell<Vec<Requester>>,
    /// By user and file.
    recognising: RefCell<HashMap<(u32, Identity), Weak<Recognising>>>,
    /// That an image is bad is an answer for all who wait for it.
    unpacking: Places<Result<(), Fault>>,
    opening: Places<Arc<SealedMemfd>>,
    cache: RefCell<Cache>,
}

/// A file that is being hashed, or that waits to be.
#[derive(Default)]
struct Recognising {
    digest: OnceCell<Digest>,
    /// Whoever comes now must not be told what it was before.
    begun: Arc<AtomicBool>,
}

impl Service {
    /// A service over the thread that has the files and the one that unpacks.
    pub fn new(disk: Owner<Store>, unpacker: Owner<Scratch>) -> Service {
        let common = Rc::new(Common {
            waiting: RefCell::default(),
            recognising: RefCell::default(),
            unpacking: Places::new(UNPACKING),
            opening: Places::new(OPENING),
            cache: RefCell::default(),
        });
        Service { disk, unpacker, who: Requester::OWN, common }
    }

    /// As a new connection of `peer` has it: with turns of its own on the threads.
    pub fn of(&self, peer: Peer) -> Service {
        let (disk, unpacker) = (self.disk.of(peer), self.unpacker.of(peer));
        Service { disk, unpacker, who: peer.into(), common: self.common.clone() }
    }

    /// The thread that has the files.
    pub fn disk(&self) -> &Owner<Store> {
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
        let _waits = Waits::new(&self.common.waiting, self.who)?;
        let image = Arc::new(File::from(image));
        let seen = image.clone();
        let facts = self.disk.ask(move |_| Store::look_at(seen.as_fd())).await?;
        let work = Allowance::from(IMPORT_WORK);
        let source = self.recognise(&image, facts, work.clone()).await?;
        if let Some(kernel) = self.known(source, &name).await? {
            return Ok(kernel);
        }
        let unpack = async |place| self.unpack(image, facts.size, source, &name, place, work).await;
        self.common.unpacking.once(self.who, source, unpack).await??;
        let gone = || Fault::new(Code::NotFound, TRIED, "it was removed as soon as it was there", "Import it again");
        self.known(source, &name).await?.ok_or_else(gone)
    }

    async fn known(&self, source: Digest, name: &str) -> Result<Option<Kernel>, Fault> {
        let name = name.to_owned();
        self.disk.ask(move |store| store.known(&source, &name)).await
    }

    /// The digest of an image, as it is once this is asked for. A file that waits to be read is read once for all of its user who wait for it.
    async fn recognise(&self, image: &Arc<File>, facts: FileFacts, work: Allowance) -> Result<Digest, Fault> {
        let one = {
            let mut all = self.common.recognising.borrow_mut();
            all.retain(|_, one| one.strong_count() > 0);
            let waits = |one: &Rc<Recognising>| !one.begun.load(Ordering::Acquire);
            let found = all.get(&(self.who.user, facts.file)).and_then(Weak::upgrade).filter(waits);
            found.unwrap_or_else(|| {
                let one = Rc::default();
                all.insert((self.who.user, facts.file), Rc::downgrade(&one));
                one
            })
        };
        let hash = || async {
            let (image, begun) = (image.clone(), one.begun.clone());
            let (mut hasher, mut read) = (sha2::Sha256::new(), 0);
            let step = move |Scratch(scratch): &mut Scratch| {
                begun.store(true, Ordering::Release);
                if read == facts.size {
                    return Ok(Some(Digest::from(std::mem::take(&mut hasher))));
                }
                let chunk = read_some(&image, scratch, read, facts.size)?;
                hasher.update(&*chunk);
                read = read.saturating_add(chunk.len());
                Ok(None)
            };
            self.unpacker.work(work, step).await.map_err(|stopped| import_fault(stopped, bad_image))
        };
        one.digest.get_or_try_init(hash).await.copied()
    }

    /// Unpacks an image that is not known, and keeps what is in it.
    async fn unpack(
        &self,
        image: Arc<File>,
        size: usize,
        source: Digest,
        name: &str,
        place: Arc<Place<Result<(), Fault>>>,
        work: Allowance,
    ) -> Result<Result<(), Fault>, Fault> {
        // Somebody else may have been before.
        if self.known(source, name).await?.is_some() {
            return Ok(Ok(()));
        }
        let home = self.disk.clone();
        let draft = self.disk.ask(move |_| Store::draft(MAX_OUTPUT).map(|draft| DroppedOn::new(draft, home))).await?;
        let mut unpacking = Unpack::new(image, size, source, draft, self.disk.clone(), place.clone());
        let unpacked = match self.unpacker.work(work.clone(), move |_| unpacking.step()).await {
            Ok(unpacked) => unpacked,
            Err(Stopped::Failed(Failed::Bad(error))) => return Ok(Err(bad_image(error))),
            Err(stopped @ (Stopped::Late | Stopped::Panicked)) => return Ok(Err(import_fault(stopped, bad_unpack))),
            Err(stopped) => return Err(import_fault(stopped, bad_unpack)),
        };
        let mut keeping = unpacked.map(|unpacked| Keeping::new(unpacked, name.to_owned()));
        let step = move |store: &mut Store| {
            let _place = &place;
            keeping.get_mut().map_or(Ok(None), |keeping| keeping.step(store))
        };
        let kept = self.disk.work(work, step).await;
        let (kernel, sealed) = kept.map_err(|stopped| import_fault(stopped, |fault| fault))?;
        self.common.cache.borrow_mut().put(kernel.entry.digest, Arc::new(sealed));
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
            None => {
                let read_back = async |place| self.read_back(kernel.clone(), place).await;
                self.common.opening.once(self.who, digest, read_back).await?
            }
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

    async fn read_back(
        &self,
        kernel: Arc<Kernel>,
        place: Arc<Place<Arc<SealedMemfd>>>,
    ) -> Result<Arc<SealedMemfd>, Fault> {
        let digest = kernel.entry.digest;
        let mut opening = Opening::new(kernel);
        let step = move |store: &mut Store| {
            let _place = &place;
            opening.step(store)
        };
        let opened = self.disk.work(IMPORT_WORK, step).await;
        let sealed = Arc::new(opened.map_err(|stopped| fault("open a kernel", stopped, |fault| fault))?);
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
            let why = format!("it took more than {} s of work", IMPORT_WORK.as_secs());
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
struct Waits<'a>(&'a RefCell<Vec<Requester>>, Requester);

impl<'a> Waits<'a> {
    fn new(waiting: &'a RefCell<Vec<Requester>>, who: Requester) -> Result<Waits<'a>, Fault> {
        let count = |same: &dyn Fn(&Requester) -> bool| waiting.borrow().iter().filter(|waiting| same(waiting)).count();
        let (of_process, of_user) = (count(&|of| *of == who), count(&|of| of.user == who.user));
        if of_process >= PER_PROCESS || of_user >= PER_USER {
            return Err(busy(format!("{of_process} imports of this process wait already, and {of_user} of its user")));
        }
        waiting.borrow_mut().push(who);
        Ok(Waits(waiting, who))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.borrow_mut();
        if let Some(at) = waiting.iter().position(|who| *who == self.1) {
            waiting.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The service over a store in a folder, and the thread that unpacks, which does nothing yet.
    fn service(dir: &std::path::Path) -> (Service, ::service::Inbox<Scratch>) {
        use rustix::fs::{Mode, OFlags};
        let (disk, disk_mailbox) = ::service::owner();
        let (unpacker, unpack_mailbox) = ::service::owner();
        let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let store = Store::open(dir, crate::store::Limits::default()).unwrap();
        std::thread::spawn(move || disk_mailbox.run(store));
        (Service::new(disk, unpacker), unpack_mailbox)
    }

    fn peer(pid: i32) -> Peer {
        Peer { pid, ..Peer::this_process() }
    }

    fn image(seed: u8) -> std::path::PathBuf {
        // In memory, whatever the file systems of this machine are.
        let path = std::path::Path::new("/dev/shm").join(format!("volt-kernel-{}-{seed}", std::process::id()));
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
            std::thread::spawn(move || mailbox.run(Scratch::new()));
            for import in imports {
                import.await.unwrap().unwrap();
            }
            let kernels = service.disk.ask(|store| Ok::<_, Fault>(store.list())).await.unwrap();
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
    fn so_many_imports_of_a_process_and_of_a_user_wait_and_no_others_are_refused_for_it() {
        let (dir, path) = (tempfile::tempdir().unwrap(), image(2));
        let (service, _mailbox) = service(dir.path());
        ipc::run(async {
            let connection = std::cell::Cell::new(0);
            let import = |uid: u32, pid: i32| {
                connection.set(connection.get() + 1);
                let service = service.of(Peer { uid, connection: connection.get(), ..peer(pid) });
                let file: OwnedFd = File::open(&path).unwrap().into();
                Box::pin(async move { service.import(file, String::new()).await })
            };
            let mut waiting = Vec::new();
            let fill = async |waiting: &mut Vec<_>, pid: i32| {
                for _ in 0..PER_PROCESS {
                    waiting.push(import(1000, pid));
                    assert!(futures::poll!(waiting.last_mut().unwrap()).is_pending());
                }
            };
            fill(&mut waiting, 1).await;
            let fault = import(1000, 1).await.unwrap_err();
            assert_eq!(fault.code, Code::Overloaded);
            assert!(fault.why.contains("256 imports of this process wait already"), "{fault}");
            for pid in 2..5 {
                fill(&mut waiting, pid).await;
            }
            let fault = import(1000, 5).await.unwrap_err();
            assert!(fault.why.contains("0 imports of this process wait already, and 1024 of its user"), "{fault}");
            assert!(futures::poll!(&mut import(0, 6)).is_pending());
            waiting.pop();
            assert!(futures::poll!(&mut import(1000, 5)).is_pending());
        })
        .unwrap();
        std::fs::remove_file(path).unwrap();
    }

    /// An image of so many times eight mebibytes, packed to next to nothing, and no kernel in the end.
    fn slow(blocks: usize) -> OwnedFd {
        let packed = lz4_flex::block::compress(&vec![0; 8 << 20]);
        let mut image = b"\x02\x21\x4c\x18".to_vec();
        for _ in 0..blocks {
            image.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            image.extend(&packed);
        }
        let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, &image).unwrap();
        file
    }

    #[test]
    fn a_new_kernel_of_one_is_kept_and_read_back_while_another_s_slowest_images_are_unpacked() {
        let (dir, path) = (tempfile::tempdir().unwrap(), image(3));
        let (service, mailbox) = service(dir.path());
        let thread = std::thread::spawn(move || mailbox.run(Scratch::new()));
        ipc::run(async {
            let spawn = |uid: u32, pid: i32, image: OwnedFd| {
                let service = service.of(Peer { uid, ..peer(pid) });
                tokio::task::spawn_local(async move { service.import(image, String::new()).await })
            };
            // Two processes with many images each, and behind those the one that others ask for.
            let mut flood = Vec::new();
            for pid in [1, 2] {
                flood.extend((40..48).map(|blocks| spawn(1000, pid, slow(blocks + 10 * pid as usize))));
                flood.push(spawn(1000, pid, File::open(&path).unwrap().into()));
            }
            while service.common.unpacking.count().0 < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let kernel = spawn(0, 3, File::open(&path).unwrap().into()).await.unwrap().unwrap();
            service.common.cache.borrow_mut().drop(&kernel.entry.digest);
            service.of(peer(3)).open(&Arc::new(kernel)).await.unwrap();
            // Each of theirs takes some fifty steps, in turn with ours, so that there was no time for any, but for the two that asked for ours.
            let same = [8, 17];
            let slow = |flood: &[tokio::task::JoinHandle<_>]| {
                flood.iter().enumerate().filter(|(n, one)| !same.contains(n) && one.is_finished()).count()
            };
            assert_eq!(slow(&flood), 0);
            assert_eq!(service.common.unpacking.count().0, 2);
            for n in same {
                (&mut flood[n]).await.unwrap().unwrap();
            }
            assert_eq!(slow(&flood), 0);
            flood.iter().for_each(tokio::task::JoinHandle::abort);
        })
        .unwrap();
        drop(service);
        thread.join().unwrap().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
