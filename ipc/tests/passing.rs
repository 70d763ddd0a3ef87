//! Errors that pass: memory that the kernel lacks, a descriptor table that is full, descriptors on their way that are too many, a
//! connection that was given up before it was accepted. None of them is taken for the end of a connection, a lane or a service.

mod common;

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::mpsc,
    time::Duration,
};

use common::*;
use ipc::{Code, Connection, Endpoint, Limits};
use rustix::{
    io::Errno,
    net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::UnshareFlags,
};

/// Files that a process of these tests may have open.
const FILES: u64 = 512;

/// Runs a test on a thread of its own, with a descriptor table of its own that has `FILES` places.
fn with_own_table<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), ..getrlimit(Resource::Nofile) }).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the thread goes on with a copy of all descriptors, and closes what it makes in its own table.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }.unwrap();
            test()
        });
        thread.join().unwrap()
    })
}

/// Takes all places of the table.
fn fill_table() -> Vec<OwnedFd> {
    let mut copies = vec![memfd(b"")];
    while let Ok(copy) = copies[0].try_clone() {
        copies.push(copy);
    }
    copies
}

/// Serves at a path, in a thread with a table of its own that does as it is told: `true` to fill it, `false` to make room. It ends with the sender.
fn serve_crowded() -> (tempfile::TempDir, std::path::PathBuf, mpsc::Sender<bool>, mpsc::Receiver<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let endpoint = Endpoint::bind(&path, 0o600).unwrap();
    let ((order, orders), (done, answers)) = (mpsc::channel(), mpsc::channel());
    std::thread::spawn(move || {
        with_own_table(move || {
            run(async move {
                let service = Service::new();
                let (lane, served) = (service.lane.clone(), service.clone());
                let serving =
                    ipc::serve(endpoint, clients(), lane, Limits::default(), None, move |peer| Ok(served.store(peer)));
                tokio::task::spawn_local(serving);
                let mut held = Vec::new();
                loop {
                    match orders.try_recv() {
                        Ok(full) => {
                            held = if full { fill_table() } else { Vec::new() };
                            done.send(()).unwrap();
                        }
                        Err(mpsc::TryRecvError::Disconnected) => break drop(held),
                        Err(mpsc::TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(2)).await,
                    }
                }
            });
        });
    });
    (dir, path, order, answers)
}

#[test]
fn a_service_without_room_for_a_descriptor_refuses_it_and_the_lane_goes_on() {
    let (_dir, path, order, done) = serve_crowded();
    run(async {
        let connection = Connection::connect(&path).await.unwrap();
        connection.deposit(memfd(b"before").as_fd()).await.unwrap();
        order.send(true).unwrap();
        done.recv().unwrap();
        for _ in 0..3 {
            let refused = connection.deposit(memfd(b"lost").as_fd()).await.unwrap_err();
            assert_eq!(refused.code, Code::Overloaded, "{refused}");
        }
        order.send(false).unwrap();
        done.recv().unwrap();
        let token = connection.deposit(memfd(b"after").as_fd()).await.unwrap();
        assert!(!connection.is_closed() && token.as_bytes().len() == 16);
    });
}

#[test]
fn a_service_without_room_for_connections_takes_them_once_it_has_some() {
    let (_dir, path, order, done) = serve_crowded();
    run(async {
        order.send(true).unwrap();
        done.recv().unwrap();
        let connection = Connection::connect(&path).await.unwrap();
        let store = connection.bootstrap();
        let asked = tokio::task::spawn_local(async move { get_kernel(&connection, &store, "k").await.map(drop) });
        settle().await;
        assert!(!asked.is_finished());
        order.send(false).unwrap();
        done.recv().unwrap();
        asked.await.unwrap().unwrap();
    });
}

#[test]
fn a_client_without_room_for_a_descriptor_is_told_so_and_the_lane_goes_on() {
    let (_dir, path, _order, _done) = serve_crowded();
    with_own_table(|| {
        run(async {
            let connection = Connection::connect(&path).await.unwrap();
            let kernel = get_kernel(&connection, &connection.bootstrap(), "k").await.unwrap();
            let open = async || {
                let answer = kernel.open_request().send().promise.await.unwrap();
                answer.get().unwrap().get_image().unwrap().get_bytes().unwrap().to_vec()
            };
            let tokens = [open().await, open().await, open().await];
            let held = fill_table();
            for token in &tokens[..2] {
                let refused = connection.claim(token).await.unwrap_err();
                assert_eq!(refused.code, Code::Exhausted, "{refused}");
                assert!(refused.why.contains("as many files open") && refused.remedy.contains("limit of open files"));
            }
            drop(held);
            connection.claim(&tokens[2]).await.unwrap();
        });
    });
}

#[test]
fn a_message_for_a_full_socket_is_not_lost_where_there_is_no_descriptor_to_watch_it_with() {
    with_own_table(|| {
        run(async {
            let service = Service::new();
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
            let connection = Connection::from_fd(ours.into()).unwrap();
            let store = connection.bootstrap();
            let long = "k".repeat(100_000);
            let asked = tokio::task::spawn_local(async move { get_kernel(&connection, &store, &long).await.map(drop) });
            let held = fill_table();
            settle().await;
            assert!(!asked.is_finished(), "its socket has no room for it");
            drop(held);
            let link = ipc::LinkSocket::new(theirs.into()).unwrap();
            let offered = service.store(ipc::Peer::this_process());
            tokio::task::spawn_local(ipc::serve_link(link, Limits::default(), offered));
            // It knows no kernel of that name, and says so.
            assert!(!matches!(asked.await.unwrap(), Err(fault) if fault.code == Code::Unavailable));
        });
    });
}

#[test]
fn descriptors_on_their_way_that_are_too_many_delay_a_deposit_and_do_not_end_the_lane() {
    if !rustix::process::geteuid().is_root() {
        return testkit::skip!("becoming another user takes root");
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), ..getrlimit(Resource::Nofile) }).unwrap();
    run(async {
        let served = Served::new(Limits::default(), None);
        let path = served.path.clone();
        let thread = as_user(USERS[2], move || async move {
            let connection = Connection::connect(&path).await.unwrap();
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let file = memfd(b"");
            let fds = [file.as_fd(); 100];
            let refused = loop {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
                let sent = rustix::net::sendmsg(&ours, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty());
                if let Err(errno) = sent {
                    break errno;
                }
            };
            assert_eq!(refused, Errno::TOOMANYREFS);
            let waiting = connection.clone();
            let deposit = tokio::task::spawn_local(async move { waiting.deposit(memfd(b"late").as_fd()).await });
            settle().await;
            assert!(!deposit.is_finished());
            drop((ours, theirs));
            deposit.await.unwrap().unwrap();
            connection.deposit(memfd(b"at once").as_fd()).await.map(drop)
        });
        eventually(|| thread.is_finished()).await;
        thread.join().unwrap().unwrap();
    });
}

/// Has the kernel refuse every other one of these calls of the calling thread, each with its error: by a filter that asks another thread.
fn refuse_every_other(calls: &'static [(libc::c_long, Errno)]) {
    let op = |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (n, (call, _)) in calls.iter().enumerate() {
        program.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (calls.len() - n) as u8, *call as u32));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is as long as it says, and outlives the call, which copies it; the rest are numbers.
    let listener = unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let flag = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flag, &raw const filter)
    };
    assert!(listener >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it, and nothing else has it.
    let listener = unsafe { OwnedFd::from_raw_fd(listener as i32) };
    std::thread::spawn(move || {
        let mut seen = vec![0_usize; calls.len()];
        loop {
            // SAFETY: both are plain numbers; the kernel wants the first zeroed, fills it, and reads the second.
            unsafe {
                let mut asked = std::mem::zeroed::<libc::seccomp_notif>();
                if libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut asked) < 0 {
                    // The thread has ended, or a call was given up.
                    match std::io::Error::last_os_error().raw_os_error() {
                        Some(libc::EINTR) => continue,
                        _ => return,
                    }
                }
                let which = calls.iter().position(|(call, _)| *call == libc::c_long::from(asked.data.nr)).unwrap();
                seen[which] += 1;
                let mut answer = std::mem::zeroed::<libc::seccomp_notif_resp>();
                answer.id = asked.id;
                if seen[which] % 2 == 1 {
                    answer.error = -calls[which].1.raw_os_error();
                } else {
                    answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
                }
                libc::ioctl(listener.as_raw_fd(), ANSWER as _, &raw const answer);
            }
        }
    });
}

/// SECCOMP_IOCTL_NOTIF_RECV and SECCOMP_IOCTL_NOTIF_SEND (linux/seccomp.h).
const RECEIVE: u32 = 0xc050_2100;
const ANSWER: u32 = 0xc018_2101;

#[test]
fn whatever_the_kernel_lacks_for_a_moment_ends_no_connection_lane_or_service() {
    // Accepting meets what passes as well.
    const ROUNDS: [&[(libc::c_long, Errno)]; 4] = [
        &[(libc::SYS_recvmsg, Errno::NOMEM), (libc::SYS_sendmsg, Errno::NOBUFS), (libc::SYS_accept4, Errno::NOMEM)],
        &[(libc::SYS_recvmsg, Errno::NOBUFS), (libc::SYS_sendmsg, Errno::NOMEM), (libc::SYS_accept4, Errno::NOBUFS)],
        &[(libc::SYS_sendmsg, Errno::TOOMANYREFS), (libc::SYS_accept4, Errno::CONNABORTED)],
        &[(libc::SYS_recvmsg, Errno::INTR), (libc::SYS_sendmsg, Errno::INTR), (libc::SYS_connect, Errno::NOMEM)],
    ];
    for calls in ROUNDS {
        let thread = std::thread::spawn(move || {
            refuse_every_other(calls);
            run(async {
                let served = Served::new(Limits::default(), None);
                for _ in 0..3 {
                    let (connection, store) = served.connect().await;
                    for _ in 0..3 {
                        get_kernel(&connection, &store, "k").await.unwrap();
                        let token = connection.deposit(memfd(b"x").as_fd()).await.unwrap();
                        served.service.lane.redeem(token.as_bytes(), ipc::Peer::this_process()).unwrap();
                        let token = served.service.lane.offer(memfd(b"kept"), connection.peer()).unwrap();
                        assert_eq!(content(&connection.claim(token.as_bytes()).await.unwrap()), b"kept");
                    }
                }
                assert!(!served.task.is_finished());
            });
        });
        thread.join().unwrap();
    }
}

fn content(fd: &OwnedFd) -> Vec<u8> {
    let mut bytes = [0; 64];
    let count = rustix::io::pread(fd, &mut bytes, 0).unwrap();
    bytes[..count].to_vec()
}
