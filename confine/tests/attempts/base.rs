//! The shared filters are enough for what they name, run under nothing else.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use confine::{Filter, base};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{attempt, confined, sandbox};

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

#[test]
fn exit_is_enough_for_threads_that_allocate_wait_panic_and_end() {
    for arenas in [1, 8] {
        attempt(move || {
            let confined = confined();
            // SAFETY: sets one number of the allocator's; the process has one thread.
            #[cfg(target_env = "gnu")]
            unsafe {
                libc::mallopt(libc::M_ARENA_MAX, arenas);
            }
            let exit = base::exit();
            let work = |_| confined.spawn("worker", &exit, allocate).unwrap();
            let workers = (0..12).map(work).collect::<Vec<_>>();
            let lock = std::sync::Arc::new(std::sync::Mutex::new(0));
            let add = |_| {
                let lock = lock.clone();
                let many = move || (0..2000).for_each(|_| *lock.lock().unwrap() += 1);
                confined.spawn("locker", &exit, many).unwrap()
            };
            let lockers = (0..4).map(add).collect::<Vec<_>>();
            let panics = || -> () { panic!("deliberate: {}", "x".repeat(3000)) };
            let panicking = confined.spawn("panicking", &exit, panics).unwrap();
            let waits = || std::thread::park_timeout(Duration::from_millis(20));
            let waiting = confined.spawn("waiting", &exit, waits).unwrap();
            confined.enter(&exit).unwrap();
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
fn exit_is_enough_even_where_a_backtrace_was_asked_for() {
    attempt(|| {
        // SAFETY: the attempt's process has one thread.
        unsafe { std::env::set_var("RUST_BACKTRACE", "full") };
        confined().enter(&base::exit()).unwrap();
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
fn exit_is_enough_to_be_stopped_and_continued_while_waiting() {
    attempt(|| {
        let waited = Duration::from_millis(600);
        let (mut ready, told) = UnixStream::pair().unwrap();
        // SAFETY: the child continues in this test's code; the calls take numbers and a place for a status.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let confined = sandbox().keep_fd(told.as_raw_fd()).confine().unwrap();
                confined.enter(&base::exit().allow(&[libc::SYS_sendto, libc::SYS_write])).unwrap();
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

/// A current-thread runtime that echoes what comes, after a short sleep, until its peer is gone.
fn echo(stream: UnixStream) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        assert!(stream.peer_cred().unwrap().pid().is_some());
        let (mut reader, mut writer) = stream.split();
        let mut buffer = [0; 1024];
        loop {
            let count = reader.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            writer.write_all(&buffer[..count]).await.unwrap();
        }
        let local = tokio::task::spawn_local(async { std::collections::HashMap::from([(1, 2)]) });
        assert_eq!(local.await.unwrap()[&1], 2);
        let timeout = tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>());
        timeout.await.unwrap_err();
    });
}

/// Sends and gets back, then hangs up.
fn call(stream: UnixStream) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        for length in [1, 100, 1000] {
            let sent = vec![7; length];
            stream.write_all(&sent).await.unwrap();
            let mut got = vec![0; length];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(got, sent);
        }
        stream.shutdown().await.unwrap();
    });
}

#[test]
fn tokio_is_enough_for_current_thread_runtimes_that_talk_over_inherited_sockets() {
    attempt(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let confined = sandbox().keep_fd(ours.as_raw_fd()).keep_fd(theirs.as_raw_fd()).confine().unwrap();
        let server = confined.spawn("server", &base::tokio(), move || echo(theirs)).unwrap();
        confined.enter(&base::tokio()).unwrap();
        call(ours);
        server.join().unwrap();
    })
    .passes();
}

#[test]
fn listener_beside_tokio_is_enough_to_accept() {
    let serve = |filter: Filter| {
        attempt(move || {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
            let client = UnixStream::connect(dir.path().join("socket")).unwrap();
            listener.set_nonblocking(true).unwrap();
            let confined = sandbox().keep_fd(listener.as_raw_fd()).keep_fd(client.as_raw_fd()).confine().unwrap();
            confined.enter(&filter).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"hello").await.unwrap();
            });
            let mut client = client;
            let mut got = [0; 5];
            std::io::Read::read_exact(&mut client, &mut got).unwrap();
            assert_eq!(&got, b"hello");
            std::mem::forget(dir); // Removing it would touch a path.
        })
    };
    serve(base::tokio().with(&base::listener())).passes();
    serve(base::tokio()).is_killed_by(libc::SIGSYS);
}
