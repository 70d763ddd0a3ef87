//! A descriptor of a file whose server, a stranger's process (FUSE), does not answer: closing it waits for that. A vat that is handed nothing
//! never has it, whatever is sent to its lane.

mod common;

use std::{
    ffi::CString,
    fs::File,
    io::IoSlice,
    mem::{ManuallyDrop, MaybeUninit},
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
    time::Duration,
};

use common::*;
use ipc::{Connection, Endpoint, Lane, Limits};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use schema::fd_lane_capnp as wire;

/// A file system with one file, whose server answers all but what a close asks of it. Dropped, it ends, and whoever waits goes on.
struct Silent {
    server: libc::pid_t,
    file: ManuallyDrop<File>,
    _dir: tempfile::TempDir,
}

impl Silent {
    fn new() -> Result<Silent, std::io::Error> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let dir = tempfile::tempdir()?;
        testkit::namespace::mounts()?;
        use rustix::mount::{MountFlags, mount};
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount("silent", dir.path(), "fuse", MountFlags::empty(), &*CString::new(options)?)?;
        // SAFETY: the child makes system calls alone, on its stack, and never returns.
        let server = unsafe { libc::fork() };
        if server == 0 {
            serve(device.as_raw_fd())
        }
        drop(device);
        let path = CString::new(dir.path().join("file").as_os_str().as_bytes())?;
        let file = rustix::fs::open(path, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, 0.into())?;
        Ok(Silent { server, file: ManuallyDrop::new(file.into()), _dir: dir })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // SAFETY: numbers, and a null that is allowed; the file is not used any more.
        unsafe {
            libc::kill(self.server, libc::SIGKILL);
            libc::waitpid(self.server, std::ptr::null_mut(), 0);
            ManuallyDrop::drop(&mut self.file);
        }
    }
}

/// Answers INIT, LOOKUP, GETATTR and OPEN (linux/fuse.h), refuses what is not known, and leaves FLUSH and STATFS without an answer.
fn serve(device: i32) -> ! {
    const ATTRIBUTES: usize = 88;
    let mut request = [0u8; 64 << 10];
    loop {
        // SAFETY: the buffer is as long as it says.
        let count = unsafe { libc::read(device, request.as_mut_ptr().cast(), request.len()) };
        if count < 40 {
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) }
        }
        let mut answer = [0u8; 16 + 128];
        let mut put = |at: usize, bytes: &[u8]| answer[16 + at..16 + at + bytes.len()].copy_from_slice(bytes);
        let attributes = |put: &mut dyn FnMut(usize, &[u8]), at: usize, mode: u32| {
            put(at, &2u64.to_ne_bytes());
            put(at + 60, &mode.to_ne_bytes());
            put(at + 64, &1u32.to_ne_bytes());
        };
        let opcode = u32::from_ne_bytes([request[4], request[5], request[6], request[7]]);
        let (length, error) = match opcode {
            26 => {
                put(0, &7u32.to_ne_bytes());
                put(4, &31u32.to_ne_bytes());
                put(20, &4096u32.to_ne_bytes());
                (64, 0)
            }
            1 => {
                put(0, &2u64.to_ne_bytes());
                attributes(&mut put, 40, libc::S_IFREG | 0o644);
                (40 + ATTRIBUTES, 0)
            }
            3 => {
                let root = request[16] == 1;
                attributes(&mut put, 16, if root { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 });
                (16 + ATTRIBUTES, 0)
            }
            14 => (16, 0),
            2 | 17 | 25 | 36 | 42 => continue,
            _ => (0, -libc::ENOSYS),
        };
        answer[0..4].copy_from_slice(&(16 + length as u32).to_ne_bytes());
        answer[4..8].copy_from_slice(&error.to_ne_bytes());
        answer[8..16].copy_from_slice(&request[8..16]);
        // SAFETY: the buffer is as long as it says.
        unsafe { libc::write(device, answer.as_ptr().cast(), 16 + length) };
    }
}

#[test]
fn a_vat_that_is_handed_nothing_waits_for_no_server_of_a_file_that_is_sent_to_its_lane() {
    let silent = match Silent::new() {
        Ok(silent) => silent,
        Err(e) => {
            return testkit::skip!("FUSE: {e}");
        }
    };
    for lane in [|| Lane::new().without_deposits(), || Lane::with_limits(Duration::ZERO, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let endpoint = Endpoint::bind(&path, 0o600).unwrap();
        std::thread::spawn(move || {
            ipc::run(async move {
                let mut service = Service::new();
                service.lane = lane();
                let lane = service.lane.clone();
                let bootstrap = move |peer| Ok(service.store(peer));
                ipc::serve(endpoint, clients(), lane, Limits::default(), None, bootstrap).await
            })
        });
        // What is closed at once, and what would be kept.
        let claim = [&[wire::OP_CLAIM][..], &[7; 16]].concat();
        for packet in [&claim[..], &[wire::OP_DEPOSIT], b"?"] {
            let kind = SocketType::SEQPACKET;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(schema::paths::lane(&path)).unwrap()).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [silent.file.as_fd()];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            rustix::net::sendmsg(&socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
            // It has read the packet, answered it or closed the lane, and goes on.
            let answered = run(async {
                settle().await;
                let connection = Connection::connect(&path).await?;
                get_kernel(&connection, &connection.bootstrap(), "k").await.map(drop)
            });
            answered.unwrap();
            let mut reply = [0; 64];
            let (count, _) = rustix::net::recv(&socket, &mut reply, rustix::net::RecvFlags::empty()).unwrap_or((0, 0));
            let expected: &[u8] = if packet == [wire::OP_DEPOSIT] { &[wire::STATUS_EXHAUSTED] } else { &[] };
            assert_eq!(&reply[..count], expected, "{packet:?}");
        }
    }
}
