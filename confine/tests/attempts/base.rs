//! The shared filters are enough for what they name, run under nothing else.

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use confine::{Filter, Heap, base};
use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

use crate::harness::{attempt, confined, done, filter, is_refused, sandbox};

/// Allocates in many sizes, through the heap, arenas, and mappings that grow and shrink.
fn allocate() -> usize {
    let mut kept = Vec::new();
    for round in 0..200_usize {
        let mut block = vec![round as u8; (round * 977) % 50_000 + 1];
        if round % 3 == 0 {
            block.resize(block.len() * 4, 1);
            block.shrink_to_fit();
        }
        kept.push(block);
        if round % 5 == 0 {
            kept.swap_remove(round / 7);
        }
    }
    let mut large = vec![1_u8; 4 << 20];
    large.resize(16 << 20, 2);
    large.truncate(1 << 20);
    large.shrink_to_fit();
    kept.iter().map(Vec::len).sum::<usize>() + large.len()
}

/// The three kinds of heap, and what threads on each need to allocate.
fn heaps() -> [(Heap, Filter); 3] {
    let (growing, mapping) = (base::heap(), base::heap().with(&base::blocks()).allow(&[libc::SYS_mremap]));
    [(Heap::Growing, growing), (Heap::Mapping, mapping), (Heap::Reserved(1 << 30), Filter::new("reserved"))]
}

#[test]
fn threads_that_allocate_wait_panic_and_are_done_need_no_more_than_is_said() {
    for (heap, filter) in heaps() {
        attempt(move || {
            let confined = sandbox().heap(heap).confine().unwrap();
            let filter = filter.with(&base::thread());
            let work = |_| confined.spawn("worker", &filter, allocate).unwrap();
            let workers = (0..12).map(work).collect::<Vec<_>>();
            let lock = std::sync::Arc::new(std::sync::Mutex::new(0));
            let add = |_| {
                let lock = lock.clone();
                let many = move || (0..2000).for_each(|_| *lock.lock().unwrap() += 1);
                confined.spawn("locker", &base::thread(), many).unwrap()
            };
            let lockers = (0..4).map(add).collect::<Vec<_>>();
            let panics = || -> () { panic!("deliberate: {}", "x".repeat(3000)) };
            let panicking = confined.spawn("panicking", &filter, panics).unwrap();
            let waits = || std::thread::park_timeout(Duration::from_millis(20));
            let waiting = confined.spawn("waiting", &base::thread().with(&base::clock()), waits).unwrap();
            confined.enter(&filter.clone().with(&base::exit())).unwrap();
            let sums = workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>();
            assert!(sums.iter().all(|sum| *sum == allocate()));
            lockers.into_iter().for_each(|locker| locker.join().unwrap());
            assert_eq!(*lock.lock().unwrap(), 8000);
            let payload = panicking.join().unwrap_err();
            assert!(payload.downcast_ref::<String>().unwrap().starts_with("deliberate"));
            waiting.join().unwrap();
            std::panic::catch_unwind(|| panic!("on the main thread")).unwrap_err();
        })
        .passes()
        .says("'panicking'")
        .says("deliberate: xxx")
        .says("on the main thread");
    }
}

#[test]
fn a_heap_that_may_not_grow_ends_the_process_where_it_would_have_to() {
    for (heap, killed) in [(Heap::Reserved(64 << 20), false), (Heap::Reserved(1 << 20), true), (Heap::Growing, true)] {
        let ended = attempt(move || {
            sandbox().heap(heap).confine().unwrap().enter(&base::exit()).unwrap();
            allocate();
        });
        if killed {
            ended.is_killed_by(libc::SIGSYS);
        } else {
            ended.passes();
        }
    }
}

#[test]
fn exit_is_enough_even_where_a_backtrace_was_asked_for() {
    attempt(|| {
        // SAFETY: the attempt's process has one thread.
        unsafe { std::env::set_var("RUST_BACKTRACE", "full") };
        confined().enter(&base::exit().with(&base::heap())).unwrap();
        std::panic::catch_unwind(|| panic!("deliberate")).unwrap_err();
    })
    .passes()
    .says("deliberate");
}

#[test]
fn exit_writes_to_stderr_and_to_no_other_fd() {
    for (fd, killed) in [(2, false), (1, true)] {
        let ended = attempt(move || {
            confined().enter(&base::exit()).unwrap();
            // SAFETY: writes a byte that lives.
            assert_eq!(unsafe { libc::write(fd, b"x".as_ptr().cast(), 1) }, 1);
        });
        if killed {
            ended.is_killed_by(libc::SIGSYS);
        } else {
            ended.passes();
        }
    }
}

#[test]
fn timed_wait_is_enough_to_be_stopped_and_continued_while_waiting() {
    attempt(|| {
        let waited = Duration::from_millis(600);
        let (mut ready, told) = UnixStream::pair().unwrap();
        // SAFETY: the child continues in this test's code; the calls take numbers and a place for a status.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let confined = sandbox().keep_fd(told.as_raw_fd()).confine().unwrap();
                let filter = base::exit().with(&base::timed_wait()).allow(&[libc::SYS_sendto, libc::SYS_write]);
                confined.enter(&filter).unwrap();
                (&told).write_all(b"1").unwrap();
                let start = Instant::now();
                while start.elapsed() < waited {
                    std::thread::park_timeout(waited.saturating_sub(start.elapsed()));
                }
                crate::harness::exit(0)
            }
            std::io::Read::read_exact(&mut ready, &mut [0]).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            libc::kill(child, libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(100));
            libc::kill(child, libc::SIGCONT);
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            assert_eq!(status, 0);
        }
    })
    .passes();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A socket that the runtime watches, read and written as the filter has it.
struct Socket(AsyncFd<UnixStream>);

fn watch<T: AsRawFd>(fd: T) -> AsyncFd<T> {
    // SAFETY: sockets have one number for life, and the `AsyncFd` owns what it is given.
    unsafe { AsyncFd::register(fd) }.unwrap()
}

impl Socket {
    fn new(stream: UnixStream) -> Socket {
        Socket(watch(stream))
    }

    async fn receive(&self, buffer: &mut [u8]) -> usize {
        loop {
            let mut ready = self.0.readable().await.unwrap();
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut none = RecvAncillaryBuffer::default();
            match rustix::net::recvmsg(self.0.get_ref(), &mut [IoSliceMut::new(buffer)], &mut none, flags) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                received => return received.unwrap().bytes,
            }
        }
    }

    fn send(&self, bytes: &[u8]) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut none = SendAncillaryBuffer::default();
        let sent = rustix::net::sendmsg(self.0.get_ref(), &[IoSlice::new(bytes)], &mut none, flags);
        assert_eq!(sent.unwrap(), bytes.len());
    }
}

/// Echoes what comes, after a short sleep, until its peer is gone.
fn echo(runtime: &Runtime, stream: UnixStream) {
    tokio::task::LocalSet::new().block_on(runtime, async {
        let socket = Socket::new(stream);
        let watched = watch(socket.0.get_ref().try_clone().unwrap());
        let mut buffer = [0; 1024];
        loop {
            let count = socket.receive(&mut buffer).await;
            if count == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            socket.send(&buffer[..count]);
        }
        drop(watched);
        let local = tokio::task::spawn_local(async { std::collections::HashMap::from([(1, 2)]) });
        assert_eq!(local.await.unwrap()[&1], 2);
        let timeout = tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>());
        timeout.await.unwrap_err();
    });
}

/// Sends and gets back, then hangs up.
fn call(runtime: &Runtime, stream: UnixStream) {
    runtime.block_on(async {
        let socket = Socket::new(stream);
        for length in [1, 100, 1000] {
            let sent = vec![7; length];
            socket.send(&sent);
            let (mut got, mut buffer) = (Vec::new(), [0; 1024]);
            while got.len() < length {
                let count = socket.receive(&mut buffer).await;
                got.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(got, sent);
        }
        socket.0.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn tokio_is_enough_for_runtimes_that_were_built_before_and_talk_over_sockets_that_are_there() {
    attempt(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let confined = sandbox().keep_fd(ours.as_raw_fd()).keep_fd(theirs.as_raw_fd()).confine().unwrap();
        let filter = base::tokio().with(&base::heap());
        let serve = move |runtime| echo(&runtime, theirs);
        let server = confined.spawn_prepared("server", &filter, runtime, serve).unwrap();
        let own = runtime();
        confined.enter(&filter).unwrap();
        call(&own, ours);
        server.join().unwrap();
    })
    .passes();
}

#[test]
fn listener_beside_tokio_is_enough_to_accept_and_to_ask_who_connected() {
    let serve = |filter: Filter| {
        attempt(move || {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
            let client = UnixStream::connect(dir.path().join("socket")).unwrap();
            listener.set_nonblocking(true).unwrap();
            let confined = sandbox().keep_fd(listener.as_raw_fd()).keep_fd(client.as_raw_fd()).confine().unwrap();
            let runtime = runtime();
            confined.enter(&filter.with(&base::heap())).unwrap();
            runtime.block_on(async {
                let listener = watch(listener);
                let _ready = listener.readable().await.unwrap();
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let stream = rustix::net::accept_with(listener.get_ref(), flags).unwrap();
                let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
                assert_eq!(peer.uid, rustix::process::geteuid());
                Socket::new(stream.into()).send(b"hello");
            });
            let (mut got, mut none) = ([0; 5], RecvAncillaryBuffer::default());
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            rustix::net::recvmsg(&client, &mut [IoSliceMut::new(&mut got)], &mut none, flags).unwrap();
            assert_eq!(&got, b"hello");
            std::mem::forget(dir); // Removing it would touch a path.
        })
    };
    let more = Filter::new("geteuid").allow(&[libc::SYS_geteuid]);
    serve(base::tokio().with(&base::listener()).with(&more)).passes();
    serve(base::tokio().with(&more)).is_killed_by(libc::SIGSYS);
}

#[test]
fn a_memory_file_takes_seals_and_is_never_executed_and_no_others_are_made() {
    let known = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL).is_ok();
    attempt(move || {
        let file = confine::memory_file("data").unwrap();
        rustix::io::write(&file, b"#!/bin/true\n").unwrap();
        if known {
            is_refused(rustix::fs::fchmod(&file, Mode::RWXU).map_err(Into::into), libc::EPERM);
            // SAFETY: empty lists and an empty path, all ended by a null; a success would not return.
            let executed = unsafe {
                let none = [std::ptr::null::<libc::c_char>()];
                let (none, fd) = (none.as_ptr(), file.as_raw_fd());
                libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), none, none, libc::AT_EMPTY_PATH)
            };
            is_refused(done(executed), libc::EACCES);
        }
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SEAL).unwrap();
    })
    .passes();
    let makes = |make: fn() -> bool| {
        attempt(move || {
            let filter = filter().with(&base::close()).with(&base::memory_files());
            confined().enter(&filter).unwrap();
            assert!(make());
        })
    };
    makes(|| confine::memory_file("data").is_ok()).passes();
    let other = makes(|| rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).is_ok());
    if known {
        other.is_killed_by(libc::SIGSYS)
    } else {
        other.passes()
    };
}

#[test]
fn a_reserved_heap_takes_no_huge_pages_for_single_touches() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return testkit::skip!("this kernel has no transparent huge pages");
    }
    attempt(|| {
        let mut smaps = std::fs::File::open("/proc/self/smaps").unwrap();
        let _confined = sandbox().heap(Heap::Reserved(8 << 20)).keep_fd(smaps.as_raw_fd()).confine().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut smaps, &mut text).unwrap();
        // Of each mapping a line with its size comes first, in KiB, and its flags last.
        let mut size = 0;
        let reserved = text.lines().any(|line| {
            if let Some(number) = line.strip_prefix("Size:") {
                size = number.trim().trim_end_matches(" kB").parse().unwrap();
            }
            line.starts_with("VmFlags:") && size >= 7 << 10 && line.split_whitespace().any(|flag| flag == "nh")
        });
        assert!(reserved, "{text}");
    })
    .passes();
}
