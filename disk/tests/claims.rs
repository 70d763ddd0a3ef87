//! Who else may have a disk, as the kernel's own devices and locks and QEMU tell.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use disk::{Disk, DiskError};
use testkit::{namespace, wait::eventually};

const SIZE: u64 = 4 << 20;

/// One test at a time: a process that another is just starting would have the locks of this one for a moment.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A loop device for the time of a test, and its file.
struct Loop(PathBuf, PathBuf);

impl Loop {
    /// None, and the reason said, where this machine gives none.
    fn new(image: &Path, more: &[&str]) -> Option<Loop> {
        let made = Command::new("losetup").args(["--find", "--show"]).args(more).arg(image).output();
        match made {
            Ok(out) if out.status.success() => {
                Some(Loop(String::from_utf8(out.stdout).unwrap().trim().into(), image.into()))
            }
            other => {
                testkit::skip!("there is no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        // Whoever else has the device open for a moment, as who looks for file systems does, has the file with it until then.
        let file = Path::new("/sys/block").join(self.0.file_name().unwrap()).join("loop/backing_file");
        let ours = |image: String| Path::new(image.trim_end()) == self.1;
        eventually("the device has let go of its file", || !fs::read_to_string(&file).is_ok_and(ours));
    }
}

fn refused(path: &Path, read_only: bool, word: &str) {
    let error = Disk::open(path, read_only).unwrap_err();
    assert!(error.to_string().contains("in use") && error.to_string().contains(word), "{error}");
}

#[test]
fn a_writer_has_a_file_alone_and_readers_share_it() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let writer = Disk::open(&path, false).unwrap();
    refused(&path, false, "lock");
    refused(&path, true, "lock");
    // As long as anybody has the open file.
    let copy = writer.file.try_clone().unwrap();
    drop(writer);
    refused(&path, true, "lock");
    drop(copy);
    let _readers = [Disk::open(&path, true).unwrap(), Disk::open(&path, true).unwrap()];
    refused(&path, false, "lock");
}

#[test]
fn a_block_device_is_claimed_by_whichever_of_its_nodes() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let Some(device) = Loop::new(&path, &[]) else { return };
    let node = folder.path().join("node");
    let number = fs::metadata(&device.0).unwrap().rdev();
    let (major, minor) = (libc::major(number).to_string(), libc::minor(number).to_string());
    run(Command::new("mknod").arg(&node).args(["b", &major, &minor]));
    assert!(fs::metadata(&node).unwrap().file_type().is_block_device());
    let writer = Disk::open(&device.0, false).unwrap();
    assert_eq!(writer.sectors, SIZE / 512);
    for (path, read_only) in [(&node, false), (&node, true), (&device.0, false), (&device.0, true)] {
        assert!(matches!(Disk::open(path, read_only), Err(DiskError::Claimed { .. })), "{path:?}");
    }
    // Passed on, the claim goes along, and is none for another.
    let passed = Disk::adopt("passed".into(), writer.file.try_clone().unwrap(), false).unwrap();
    drop(writer);
    refused(&node, false, "mounted");
    drop(passed);
    let _readers = [Disk::open(&device.0, true).unwrap(), Disk::open(&node, true).unwrap()];
    refused(&device.0, false, "lock");
}

#[test]
fn what_is_mounted_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path));
    let Some(device) = Loop::new(&path, &[]) else { return };
    // In a mount namespace of this thread's own.
    namespace::mounts().unwrap();
    let on = folder.path().join("on");
    fs::create_dir(&on).unwrap();
    run(Command::new("mount").arg(&device.0).arg(&on));
    refused(&device.0, false, "mounted");
    refused(&device.0, true, "mounted");
    refused(&path, false, "losetup --detach /dev/loop");
    run(Command::new("umount").arg(&on));
    drop(Disk::open(&device.0, false).unwrap());
}

#[test]
fn a_file_and_its_loop_device_are_one_disk() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let by_another_name = folder.path().join("link");
    fs::hard_link(&path, &by_another_name).unwrap();
    let file = Disk::open(&path, false).unwrap();
    let Some(device) = Loop::new(&path, &[]) else { return };
    refused(&device.0, false, "lock");
    refused(&device.0, true, "lock");
    drop(file);
    refused(&by_another_name, false, device.0.to_str().unwrap());
    refused(&by_another_name, true, device.0.to_str().unwrap());
    // The device's user holds the file, also when the device has gone from who looks.
    let by_device = Disk::open(&device.0, false).unwrap();
    let locked = File::options().read(true).write(true).open(&path).unwrap();
    assert!(matches!(Disk::adopt("file".into(), locked, false), Err(DiskError::Locked(_))));
    drop(by_device);
    drop(device);
    drop(Disk::open(&path, false).unwrap());
    // Where nobody writes they are shared.
    let Some(device) = Loop::new(&path, &["--read-only"]) else { return };
    let _readers = [Disk::open(&device.0, true).unwrap(), Disk::open(&path, true).unwrap()];
    refused(&path, false, "lock");
}

#[test]
fn content_that_is_kept_in_memory_is_counted_for_who_may_write_it() {
    let _alone = alone();
    if namespace::mounts().is_err() {
        return testkit::skip!("mounts need root");
    }
    let folder = tempfile::tempdir().unwrap();
    let on = |kind: &str| {
        let at = folder.path().join(kind);
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-t", kind, kind]).arg(&at));
        at
    };
    let memory = |path: &Path, read_only| Disk::open(path, read_only).unwrap().memory;
    let tmpfs = image(&on("tmpfs"));
    assert_eq!((memory(&tmpfs, false), memory(&tmpfs, true)), (SIZE, 0));
    // What is there already is charged to who wrote it.
    File::options().write(true).open(&tmpfs).unwrap().write_all(&vec![1; 1 << 20]).unwrap();
    assert_eq!(memory(&tmpfs, false), SIZE - (1 << 20));
    let ramfs = image(&on("ramfs"));
    assert_eq!((memory(&ramfs, false), memory(&ramfs, true)), (SIZE, SIZE));
    let huge = image(&on("hugetlbfs"));
    assert!(matches!(Disk::open(&huge, false), Err(DiskError::Huge(_))));
    assert_eq!(memory(&huge, true), 0);
    // A loop device writes to its file in the name of its user.
    if let Some(device) = Loop::new(&tmpfs, &[]) {
        assert_eq!(memory(&device.0, false), SIZE);
    }
    for kind in ["tmpfs", "ramfs", "hugetlbfs"] {
        run(Command::new("umount").arg(folder.path().join(kind)));
    }
    let on_disk = tempfile::tempdir_in("/var/tmp").unwrap();
    if rustix::fs::statfs(on_disk.path()).unwrap().f_type != libc::TMPFS_MAGIC {
        assert_eq!(memory(&image(on_disk.path()), false), 0);
    }
}

/// A QEMU that has the image open until this is dropped.
struct Qemu(Child, Option<ChildStdin>);

impl Qemu {
    /// None if it refuses the image for somebody's lock.
    fn open(program: &str, image: &Path, read_only: bool) -> Option<Qemu> {
        let mut command = Command::new(program);
        let image = image.display();
        let ready = match program {
            "qemu-io" => {
                command.args(["-f", "raw"]).args(read_only.then_some("-r")).arg(image.to_string());
                "read 512/512"
            }
            _ => {
                let mode = if read_only { "on" } else { "off" };
                command.args(["-accel", "tcg", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio"]);
                command.arg("-drive").arg(format!("file={image},format=raw,if=virtio,readonly={mode}"));
                "VM status: "
            }
        };
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(if program == "qemu-io" { b"read 0 512\n" } else { b"info status\n" });
        let (mut said, mut byte) = (String::new(), [0]);
        while !said.contains(ready) {
            if child.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.as_mut().unwrap().read_to_string(&mut error).unwrap();
                assert!(
                    error.contains("Failed to get") || error.contains("Failed to lock"),
                    "{program}: {said} {error}"
                );
                child.wait().unwrap();
                return None;
            }
            said.push(byte[0] as char);
        }
        Some(Qemu(child, Some(stdin)))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.1.take() {
            let _ = stdin.write_all(b"quit\n");
        }
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_and_we_keep_each_other_away_unless_both_only_read() {
    let _alone = alone();
    let mut tried = 0;
    for program in ["qemu-io", "qemu-system-x86_64"] {
        if Command::new(program).arg("--version").output().is_err() {
            println!("not tried: {program} is not installed (Debian: qemu-utils, qemu-system-x86)");
            continue;
        }
        tried += 1;
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path());
        for (ours, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
            let case = format!("we only read: {ours}, {program} only reads: {theirs}");
            let disk = Disk::open(&path, ours).unwrap();
            assert_eq!(Qemu::open(program, &path, theirs).is_some(), ours && theirs, "we first, {case}");
            drop(disk);
            let qemu = Qemu::open(program, &path, theirs).expect(&case);
            match Disk::open(&path, ours) {
                Ok(_) => assert!(ours && theirs, "QEMU first, {case}"),
                Err(error) => assert!(!(ours && theirs) && matches!(error, DiskError::Locked(_)), "{case}: {error}"),
            }
            drop(qemu);
        }
    }
    if tried == 0 {
        testkit::skip!("neither qemu-io nor qemu-system-x86_64 is installed");
    }
}
