//! A client's file that lies where nobody answers: on a FUSE file system of the test's own, whose server opens files and says nothing more of them.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use common::*;
use ipc::Code;
use testkit::{images::*, namespace, skip};

// linux/fuse.h
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const FOPEN_NOFLUSH: u32 = 1 << 5;

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Answers until the file system is gone; what is left without an answer is noted.
fn serve(device: &File, silent: &Mutex<Vec<u32>>) {
    let mut request = vec![0; 1 << 17];
    while let Ok(len) = (&*device).read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert!(len >= 40);
        let body = match word(4) {
            // Version 7.31, next to nothing in advance.
            INIT => bytes(&[7, 31, 0, 0, 1, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            // Node 2, a regular file of 64 KiB whose attributes are good for no time.
            LOOKUP => {
                let attributes = [2, 0, 65536, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o100_644, 1, 0, 0, 0, 4096, 0];
                bytes(&[&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &attributes].concat())
            }
            OPEN => bytes(&[1, 0, FOPEN_NOFLUSH, 0]),
            RELEASE => Vec::new(),
            FORGET => continue,
            other => {
                silent.lock().unwrap().push(other);
                continue;
            }
        };
        let header = [16 + body.len() as u32, 0, word(8), word(12)];
        (&*device).write_all(&[bytes(&header), body].concat()).unwrap();
    }
}

/// A file of that file system, and what was asked without an answer; `None` where it cannot be mounted.
fn silent_file() -> Option<(OwnedFd, Arc<Mutex<Vec<u32>>>)> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let of_server = asked.clone();
    let opened = std::thread::spawn(move || {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        // This thread ends right after.
        namespace::mounts().ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", device.as_raw_fd());
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        rustix::mount::mount("silent", "/mnt", "fuse", rustix::mount::MountFlags::empty(), options).ok()?;
        std::thread::spawn(move || serve(&device, &of_server));
        Some(OwnedFd::from(File::open("/mnt/image").unwrap()))
    });
    Some((opened.join().unwrap()?, asked))
}

#[test]
fn a_file_whose_file_system_does_not_answer_is_refused_and_nothing_waits_for_it() {
    let Some((image, asked)) = silent_file() else { return skip!("this host mounts no FUSE file system") };
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        for _ in 0..3 {
            let fault = client.import_fd(&image, "").await.err().unwrap();
            assert_eq!(fault.code, Code::InvalidArgument, "{fault}");
            assert!(fault.why.contains("neither in memory nor on a block device"), "{fault}");
        }
        client.import(&kernel(1), "k").await.unwrap();
    });
    assert_eq!(*asked.lock().unwrap(), Vec::<u32>::new());
}
