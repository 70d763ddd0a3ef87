//! Tests of the store, in a temporary directory.

use super::*;
use crate::image::tests::images::kernel_of;
use crate::image::{Facts, elf};
use crate::memfd::SealedMemfd;
use std::path::Path;

fn open_with(dir: &Path, limits: Limits) -> Result<Store, Error> {
    Store::open(rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap(), limits)
}

fn open(dir: &Path) -> Store {
    open_with(dir, Limits::default()).unwrap()
}

fn unpacked(seed: u8) -> Unpacked {
    let file = kernel_of(seed, 16 << 10);
    let mut draft = Draft::new(file.len() + 5000).unwrap();
    draft[..file.len()].copy_from_slice(&file);
    let facts = Facts { version: format!("6.{seed}.0"), ..elf::check(&file).unwrap() };
    Unpacked { draft, len: file.len(), digest: Digest::of(&file), facts, source: Digest::of(&[seed]) }
}

/// Steps until there is an answer.
fn all<T>(mut step: impl FnMut() -> Answer<Option<T>>) -> Answer<T> {
    loop {
        if let Some(answer) = step()? {
            return Ok(answer);
        }
    }
}

fn keep_unpacked(store: &mut Store, unpacked: Unpacked, name: &str) -> Answer<(Kernel, SealedMemfd)> {
    let mut keeping = Keeping::new(unpacked, name.to_owned());
    all(|| keeping.step(store))
}

fn keep(store: &mut Store, seed: u8, name: &str) -> Answer<Kernel> {
    keep_unpacked(store, unpacked(seed), name).map(|(kernel, _)| kernel)
}

fn load(store: &mut Store, kernel: &Kernel) -> Answer<SealedMemfd> {
    let Kernel { entry, name, file } = kernel;
    let kernel = Kernel { entry: entry.clone(), name: name.clone(), file: file.clone() };
    let mut opening = Opening::new(Arc::new(kernel));
    all(|| opening.step(store))
}

fn code<T>(answer: Answer<T>) -> Code {
    answer.err().expect("it did not fail").code
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn on_a_full_disk_a_kernel_can_be_removed_and_nothing_new_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    // In a mount namespace of this thread, which goes with it.
    let on_a_small_disk = || {
        use rustix::mount::{MountFlags, mount};
        testkit::namespace::mounts()?;
        mount("none", dir.path(), "tmpfs", MountFlags::empty(), c"size=256k").map_err(std::io::Error::from)
    };
    let thread = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Err(why) = on_a_small_disk() {
                    return testkit::skip!("no mount namespace is to be had ({why})");
                }
                let mut store = open(dir.path());
                for seed in [1, 2, 3] {
                    keep(&mut store, seed, "").unwrap();
                }
                let mut filler = std::fs::File::create(dir.path().join("filler")).unwrap();
                while filler.write_all(&[0; 4096]).is_ok() {}
                assert_eq!(code(keep(&mut store, 4, "")), Code::Exhausted);
                let reference = store.list()[0].0.digest.to_string();
                store.remove(&reference).unwrap();
                assert_eq!(store.list().len(), 2);
                // On the disk as well.
                let store = open(dir.path());
                assert_eq!((store.list().len(), names(&dir.path().join("kernels")).len()), (2, 2));
            })
            .join()
    });
    thread.unwrap();
}

#[test]
fn what_is_kept_is_there_after_a_restart_with_its_facts_and_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let (kernel, sealed) = keep_unpacked(&mut store, unpacked(1), "debian").unwrap();
    assert_eq!(kernel.name, "debian");
    keep(&mut store, 2, "").unwrap();
    let listed = store.list();
    assert_eq!(listed.iter().map(|(entry, _)| entry.facts.version.as_str()).collect::<Vec<_>>(), ["6.2.0", "6.1.0"]);
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.list(), listed);
    let again = store.get("debian").unwrap();
    assert_eq!(again.entry, kernel.entry);
    let loaded = load(&mut store, &again).unwrap();
    let content = |sealed: &SealedMemfd| {
        let mut bytes = vec![0; sealed.size() as usize + 1];
        let len = sealed.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(len);
        bytes
    };
    assert_eq!(content(&loaded), kernel_of(1, 16 << 10));
    assert_eq!(content(&sealed), content(&loaded));
    let digest = again.entry.digest.to_string();
    assert_eq!(store.get(&digest[..8]).unwrap().entry, again.entry);
    assert_eq!(code(store.get("nothing")), Code::NotFound);
}

#[test]
fn importing_twice_costs_no_space_and_moves_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    keep(&mut store, 1, "a").unwrap();
    assert_eq!(keep(&mut store, 1, "b").unwrap().name, "b");
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.get("a").unwrap().entry.digest, store.get("b").unwrap().entry.digest);
    keep(&mut store, 2, "a").unwrap();
    assert_eq!(store.get("a").unwrap().entry.facts.version, "6.2.0");
    let known = store.known(&Digest::of(&[1]), "c").unwrap().unwrap();
    assert_eq!((known.name.as_str(), known.entry.facts.version.as_str()), ("c", "6.1.0"));
    assert!(store.known(&Digest::of(&[9]), "c").unwrap().is_none());
    assert_eq!(code(keep(&mut store, 3, "a b")), Code::InvalidArgument);
    assert_eq!(store.list().len(), 2);
}

#[test]
fn a_known_image_under_its_old_name_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    keep(&mut store, 1, "a").unwrap();
    let before = std::fs::metadata(dir.path().join("index")).unwrap().modified().unwrap();
    for name in ["", "a"] {
        store.known(&Digest::of(&[1]), name).unwrap().unwrap();
    }
    assert_eq!(std::fs::metadata(dir.path().join("index")).unwrap().modified().unwrap(), before);
}

#[test]
fn a_damaged_file_is_never_handed_out_and_mended_by_importing_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let kernel = keep(&mut store, 1, "k").unwrap();
    let path = dir.path().join("kernels").join(kernel.entry.digest.to_string());
    let good = std::fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[9000] ^= 1;
    for bad in [flipped, good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat(), Vec::new()] {
        std::fs::write(&path, &bad).unwrap();
        let kernel = store.get("k").unwrap();
        let fault = load(&mut store, &kernel).unwrap_err();
        assert_eq!(fault.code, Code::BadImage);
        assert!(fault.to_string().contains("kernels/"), "{fault}");
        assert!(store.known(&Digest::of(&[1]), "").unwrap().is_none(), "it has to be unpacked again");
        keep(&mut store, 1, "").unwrap();
        let kernel = store.get("k").unwrap();
        load(&mut store, &kernel).unwrap();
        assert!(store.known(&Digest::of(&[1]), "").unwrap().is_some());
    }
    drop(kernel);
    std::fs::remove_file(&path).unwrap();
    store.files.clear();
    assert_eq!(code(store.get("k")), Code::BadImage);
    assert!(store.known(&Digest::of(&[1]), "").unwrap().is_none());
    keep(&mut store, 1, "").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), good);
}

#[test]
fn an_index_whose_facts_do_not_fit_the_kernel_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut kernel = keep(&mut store, 1, "k").unwrap();
    kernel.entry.facts.entry += 1;
    assert_eq!(code(load(&mut store, &kernel)), Code::BadImage);
}

#[test]
fn a_removed_kernel_is_gone_but_opens_for_those_who_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let held = keep(&mut store, 1, "k").unwrap();
    assert_eq!(store.remove("k").unwrap(), held.entry.digest);
    assert_eq!(code(store.get("k")), Code::NotFound);
    assert_eq!(code(store.remove("k")), Code::NotFound);
    assert_eq!(names(&dir.path().join("kernels")), [""; 0]);
    load(&mut store, &held).unwrap();
    assert!(store.list().is_empty());
}

#[test]
fn limits_on_kernels_names_and_bytes_hold_and_are_not_reached_before() {
    let size = kernel_of(1, 16 << 10).len() as u64;
    let full = |limits: Limits| {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_with(dir.path(), limits).unwrap();
        keep(&mut store, 1, "a").unwrap();
        keep(&mut store, 2, "b").unwrap();
        let third = keep(&mut store, 3, "c").err().map(|fault| fault.code);
        // What is there already needs no room.
        keep(&mut store, 1, "b").unwrap();
        store.remove("b").unwrap();
        keep(&mut store, 3, "c").unwrap();
        third
    };
    let limits = Limits::default();
    assert_eq!(full(limits), None);
    assert_eq!(full(Limits { kernels: 2, ..limits }), Some(Code::Exhausted));
    assert_eq!(full(Limits { names: 2, ..limits }), Some(Code::Exhausted));
    assert_eq!(full(Limits { bytes: 2 * size, ..limits }), Some(Code::Exhausted));
    assert_eq!(full(Limits { kernels: 3, names: 3, bytes: 3 * size }), None);
}

#[test]
fn what_a_crash_left_is_swept_away_and_what_is_not_ours_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let kernel = keep(&mut store, 1, "k").unwrap();
    drop(store);
    let kernels = dir.path().join("kernels");
    std::fs::write(kernels.join("new"), "half").unwrap();
    std::fs::write(kernels.join("new-7"), "half").unwrap();
    std::fs::write(kernels.join(Digest::of(b"orphan").to_string()), "orphan").unwrap();
    std::fs::write(kernels.join("README"), "mine").unwrap();
    std::fs::write(dir.path().join("index.new"), "half").unwrap();
    let mut store = open(dir.path());
    let mut expected = [kernel.entry.digest.to_string(), "README".into()];
    expected.sort();
    assert_eq!(names(&kernels), expected);
    keep(&mut store, 2, "").unwrap();
    assert_eq!(names(dir.path()), ["index", "kernels"]);
}

#[test]
fn a_damaged_index_stops_the_start_and_nothing_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    keep(&mut store, 1, "k").unwrap();
    drop(store);
    let index = dir.path().join("index");
    for bad in ["", "my notes\n", &std::fs::read_to_string(&index).unwrap().replace("6.1.0", "6.1.1")] {
        std::fs::write(&index, bad).unwrap();
        let error = open_with(dir.path(), Limits::default()).err().unwrap();
        assert!(error.to_string().contains("remove it"), "{error}");
        assert_eq!(names(&dir.path().join("kernels")).len(), 1);
        assert_eq!(std::fs::read_to_string(&index).unwrap(), bad);
    }
}

#[test]
fn only_regular_readable_files_of_bounded_size_are_read() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("image");
    let look = |file: &File| Store::look_at(file.as_fd());
    let file = File::create(&path).unwrap();
    assert_eq!(code(look(&file)), Code::InvalidArgument, "open for writing only");
    let readable = File::open(&path).unwrap();
    assert_eq!(code(look(&readable)), Code::BadImage, "empty");
    file.set_len(MAX_INPUT).unwrap();
    assert_eq!(look(&readable).map(|looked| looked.size), Ok(MAX_INPUT as usize));
    file.set_len(MAX_INPUT + 1).unwrap();
    assert_eq!(code(look(&readable)), Code::BadImage);
    assert_eq!(code(look(&File::open(dir.path()).unwrap())), Code::InvalidArgument);
    assert_eq!(code(look(&File::open("/dev/zero").unwrap())), Code::InvalidArgument);
    let by_path = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
    assert_eq!(code(Store::look_at(by_path.as_fd())), Code::InvalidArgument);
    // Neither in memory nor on a block device.
    let fault = look(&File::open("/sys/kernel/notes").unwrap()).unwrap_err();
    assert!(fault.code == Code::InvalidArgument && fault.why.contains("neither in memory"), "{fault}");
    let memory = File::from(confine::memory_file("image").unwrap());
    memory.set_len(1).unwrap();
    assert_eq!(look(&memory).map(|looked| looked.size), Ok(1));
}

#[test]
fn a_file_that_was_changed_is_another_and_two_descriptors_of_one_are_not() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, "one").unwrap();
    let look = || Store::look_at(File::open(&path).unwrap().as_fd()).unwrap();
    let before = look();
    assert_eq!(before, look());
    // Kernels before 6.13 stamp files by the tick.
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&path, "two").unwrap();
    assert_ne!(before, look());
}

#[test]
fn a_kernel_is_written_and_read_in_steps_and_given_up_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let large = || {
        let file = kernel_of(1, 20 << 20);
        let mut draft = Draft::new(file.len()).unwrap();
        draft.copy_from_slice(&file);
        let facts = elf::check(&file).unwrap();
        Unpacked { draft, len: file.len(), digest: Digest::of(&file), facts, source: Digest::of(b"x") }
    };
    let mut keeping = Keeping::new(large(), "large".into());
    for _ in 0..3 {
        assert!(keeping.step(&mut store).unwrap().is_none());
        // Others' business goes on between.
        keep(&mut open(tempfile::tempdir().unwrap().path()), 2, "").unwrap();
        assert!(store.list().is_empty() && code(store.get("large")) == Code::NotFound);
    }
    assert_eq!(names(&dir.path().join("kernels")), ["new-1"]);
    drop(keeping);
    assert_eq!(names(&dir.path().join("kernels")), [""; 0]);
    let kernel = keep_unpacked(&mut store, large(), "large").unwrap().0;
    let mut opening = Opening::new(Arc::new(kernel));
    let steps = (1..).find(|_| opening.step(&mut store).unwrap().is_some()).unwrap();
    assert!(steps > 20, "{steps}");
}

#[test]
fn kernels_that_are_written_in_turns_are_each_what_was_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    // The first and the last are of one content, from two images.
    let mut all = [1, 2, 1].map(|seed| Some(Keeping::new(unpacked(seed), format!("k{seed}"))));
    let mut given_up = Keeping::new(unpacked(3), String::new());
    given_up.step(&mut store).unwrap();
    let mut kept = Vec::new();
    while all.iter().any(Option::is_some) {
        for one in &mut all {
            if let Some(done) = one.as_mut().and_then(|keeping| keeping.step(&mut store).unwrap()) {
                kept.push(done.0);
                *one = None;
            }
        }
    }
    drop(given_up);
    assert_eq!(kept.len(), 3);
    drop(store);
    let mut store = open(dir.path());
    kept.iter().for_each(|kernel| assert_eq!(load(&mut store, kernel).unwrap().size(), kernel.entry.size));
    assert_eq!(names(&dir.path().join("kernels")).len(), 2);
}

#[test]
fn a_kernel_that_an_earlier_version_took_is_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut file = kernel_of(1, 16 << 10);
    // Position-independent.
    file[16] = 3;
    let mut draft = Draft::new(file.len()).unwrap();
    draft.copy_from_slice(&file);
    let facts = Facts { load_end: 3 << 30, ..Facts::default() };
    let old = Unpacked { draft, len: file.len(), digest: Digest::of(&file), facts, source: Digest::of(b"x") };
    keep_unpacked(&mut store, old, "old").unwrap();
    drop(store);
    let mut store = open(dir.path());
    let kernel = store.get("old").unwrap();
    let fault = load(&mut store, &kernel).unwrap_err();
    assert_eq!(fault.code, Code::BadImage);
    assert!(fault.why.contains("position-independent") && fault.remedy.contains("Remove it"), "{fault}");
    store.remove("old").unwrap();
}

#[test]
fn a_store_made_anew_has_what_the_disk_has_and_a_kernel_that_was_being_written_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let kept = keep(&mut store, 1, "one").unwrap();
    let mut keeping = Keeping::new(unpacked(2), "two".to_owned());
    assert!(keeping.step(&mut store).unwrap().is_none());
    // As a panic may leave it: half of what belongs together.
    store.index.entries.clear();
    store.damaged.insert(kept.entry.digest);
    store.renew().unwrap();
    assert_eq!(load(&mut store, &kept).unwrap().size(), kept.entry.size);
    all(|| keeping.step(&mut store)).unwrap();
    let names = store.list().into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names, ["two", "one"]);
    // And where the disk has nothing that can be read, there is no state to go on with.
    std::fs::write(dir.path().join("index"), [0xff]).unwrap();
    assert!(store.renew().unwrap_err().to_string().contains("The file index"));
}
