//! The fd lane on the wire (`schema/fd_lane.capnp`): what a stranger's client may rely on, and what it may not do.

mod common;

use std::{
    io::{IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use common::*;
use ipc::{Code, Connection, Lane, Limits, Peer};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    },
};
use schema::{
    fd_lane_capnp as wire,
    kernel_store_capnp::{kernel, kernel_store},
};

/// A client that knows nothing but the schema's text.
struct Raw(OwnedFd);

impl Raw {
    fn connect(served: &Served) -> Raw {
        let mut path = served.path.clone().into_os_string();
        path.push(".fds");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Raw(socket)
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next packet and its descriptors; `None` once the lane has ended.
    async fn receive(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let start = std::time::Instant::now();
        loop {
            let mut bytes = [0; 64];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let iov = &mut [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.0, iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::AGAIN) => {
                    assert!(start.elapsed() < SOON, "no reply");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(Errno::CONNRESET) => return None,
                Err(e) => panic!("{e}"),
                Ok(message) => {
                    let fds = ancillary
                        .drain()
                        .flat_map(|message| match message {
                            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                            _ => panic!("another control message"),
                        })
                        .collect();
                    return (message.bytes > 0).then(|| (bytes[..message.bytes].to_vec(), fds));
                }
            }
        }
    }

    async fn deposit(&self, fd: impl AsFd) -> Vec<u8> {
        self.send(&[wire::OP_DEPOSIT], &[fd.as_fd()]);
        let (reply, fds) = self.receive().await.unwrap();
        assert!(fds.is_empty());
        reply
    }
}

/// A pipe whose reading end sees when every copy of the writing end is closed.
struct Watched {
    reader: std::io::PipeReader,
    writer: OwnedFd,
}

impl Watched {
    fn new() -> Watched {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        Watched { reader, writer: writer.into() }
    }

    /// Gives up the own writing end; returns once all others are closed.
    async fn all_closed(self) {
        let Watched { mut reader, writer } = self;
        drop(writer);
        eventually_mut(|| matches!(reader.read(&mut [0]), Ok(0))).await;
    }

    /// Whether a copy of the writing end is open still, once the own one is given up.
    fn outlives_its_owner(self) -> bool {
        let Watched { mut reader, writer } = self;
        drop(writer);
        reader.read(&mut [0]).is_err()
    }
}

async fn eventually_mut(mut what: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !what() {
        assert!(start.elapsed() < SOON, "it did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn content(fd: OwnedFd) -> Vec<u8> {
    let mut content = vec![0; 64];
    let read = rustix::io::pread(fd, &mut content, 0).unwrap();
    content.truncate(read);
    content
}

fn served(lane: Lane) -> Served {
    let mut service = Service::new();
    service.lane = lane;
    Served::with(service, Limits::default(), None)
}

#[test]
fn a_deposited_descriptor_reaches_the_method_that_gets_its_token() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let token = connection.deposit(memfd(b"image").as_fd()).await.unwrap();
        let import = |token: &ipc::Token| {
            let mut request = store.import_kernel_request();
            request.get().set_alias("linux");
            token.write(request.get().init_image());
            connection.call("import", SOON, request.send())
        };
        let answer = import(&token).await.unwrap();
        let kernel = answer.get().unwrap().get_kernel().unwrap();
        let info = connection.call("ask", SOON, kernel.info_request().send()).await.unwrap();
        assert_eq!(info.get().unwrap().get_info().unwrap().get_size(), 5);
        // Good once.
        assert_eq!(import(&token).await.map(drop).unwrap_err().code, Code::BadToken);
    });
}

#[test]
fn a_token_from_a_method_claims_its_descriptor_once() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let kernel = get_kernel(&connection, &store, "linux").await.unwrap();
        let token = open(&connection, &kernel).await;
        let fd = connection.claim(&token).await.unwrap();
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(content(fd), b"linux");
        assert_eq!(connection.claim(&token).await.unwrap_err().code, Code::BadToken);
        // A refusal does not end the lane.
        let token = open(&connection, &kernel).await;
        connection.claim(&token).await.unwrap();
    });
}

#[test]
fn what_was_offered_ends_with_its_connection_and_what_was_deposited_does_not() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let waiting = || served.service.lane.waiting();
        let (gone, store) = served.connect().await;
        let kernel = get_kernel(&gone, &store, "linux").await.unwrap();
        let offered = open(&gone, &kernel).await;
        let deposited = gone.deposit(memfd(b"given").as_fd()).await.unwrap();
        let (stays, store) = served.connect().await;
        let kernel = get_kernel(&stays, &store, "other").await.unwrap();
        let mine = open(&stays, &kernel).await;
        assert_eq!(waiting(), 3);
        drop(gone);
        eventually(|| waiting() < 3).await;
        assert_eq!(stays.claim(&offered).await.unwrap_err().code, Code::BadToken);
        assert_eq!(content(stays.claim(&mine).await.unwrap()), b"other");
        let given = served.service.lane.redeem(deposited.as_bytes(), Peer::this_process()).unwrap();
        assert_eq!(content(given), b"given");
    });
}

async fn open(connection: &Connection, kernel: &kernel::Client) -> Vec<u8> {
    let answer = connection.call("open", SOON, kernel.open_request().send()).await.unwrap();
    answer.get().unwrap().get_image().unwrap().get_bytes().unwrap().to_vec()
}

#[test]
fn a_token_of_one_user_is_refused_to_another_and_stays_good() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let kernel = get_kernel(&connection, &store, "linux").await.unwrap();
        let token = open(&connection, &kernel).await;
        if rustix::process::geteuid().is_root() {
            let (path, stolen) = (served.path.clone(), token.clone());
            let thief = as_user(4713, move || async move {
                let connection = Connection::connect(&path).await.unwrap();
                connection.claim(&stolen).await.map(drop).unwrap_err().code
            });
            eventually(|| thief.is_finished()).await;
            assert_eq!(thief.join().unwrap(), Code::BadToken);
        }
        connection.claim(&token).await.unwrap();
    });
}

#[test]
fn a_client_that_knows_only_the_schema_is_served_in_order() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let raw = Raw::connect(&served);
        let reply = raw.deposit(memfd(b"two")).await;
        assert_eq!((reply[0], reply.len()), (wire::STATUS_OK, 17));
        assert_eq!(content(served.service.lane.redeem(&reply[1..], Peer::this_process()).unwrap()), b"two");
        let token = served.service.lane.offer(memfd(b"one"), Peer::this_process()).unwrap();
        // Two requests, then two replies.
        raw.send(&[&[wire::OP_CLAIM], token.as_bytes()].concat(), &[]);
        raw.send(&[&[wire::OP_CLAIM], token.as_bytes()].concat(), &[]);
        let (status, mut fds) = raw.receive().await.unwrap();
        assert_eq!((status, fds.len()), (vec![wire::STATUS_OK], 1));
        assert_eq!(content(fds.remove(0)), b"one");
        let (status, fds) = raw.receive().await.unwrap();
        assert_eq!((status, fds.len()), (vec![wire::STATUS_BAD_TOKEN], 0));
    });
}

#[test]
fn a_process_deposits_as_many_as_the_limit_and_the_next_is_refused_until_one_is_redeemed() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let raw = Raw::connect(&served);
        let mut tokens = Vec::new();
        for _ in 0..64 {
            let reply = raw.deposit(memfd(b"")).await;
            assert_eq!(reply[0], wire::STATUS_OK);
            tokens.push(reply[1..].to_vec());
        }
        let refused = Watched::new();
        assert_eq!(raw.deposit(&refused.writer).await, [wire::STATUS_EXHAUSTED]);
        refused.all_closed().await;
        let (connection, _store) = served.connect().await;
        assert_eq!(connection.deposit(memfd(b"").as_fd()).await.unwrap_err().code, Code::Overloaded);
        served.service.lane.redeem(&tokens[0], Peer::this_process()).unwrap();
        connection.deposit(memfd(b"").as_fd()).await.unwrap();
    });
}

#[test]
fn who_asks_patiently_is_served_once_there_is_room() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, _store) = served.connect().await;
        let mut tokens = Vec::new();
        for _ in 0..64 {
            tokens.push(connection.deposit(memfd(b"").as_fd()).await.unwrap());
        }
        let file = memfd(b"");
        let mut tries = 0;
        let again = ipc::retry(Duration::from_secs(60), async |_| {
            tries += 1;
            // One that was refused by now makes room.
            if tries == 3 {
                served.service.lane.redeem(tokens[0].as_bytes(), Peer::this_process()).unwrap();
            }
            connection.deposit(file.as_fd()).await
        });
        again.await.unwrap();
        assert_eq!(tries, 3);
    });
}

/// Sends a packet that the schema forbids, and sees that the lane ends and the descriptors in the packet are closed.
async fn ends_the_lane(bytes: &[u8], descriptors: usize) {
    let served = Served::new(Limits::default(), None);
    let raw = Raw::connect(&served);
    let watched = Watched::new();
    raw.send(bytes, &vec![watched.writer.as_fd(); descriptors]);
    assert!(raw.receive().await.is_none(), "{bytes:?} with {descriptors} descriptors was answered");
    watched.all_closed().await;
    assert_eq!(served.service.lane.waiting(), 0);
    // Another lane is served as before.
    assert_eq!(Raw::connect(&served).deposit(memfd(b"")).await[0], wire::STATUS_OK);
}

#[test]
fn a_packet_with_too_many_or_too_few_descriptors_ends_the_lane_and_they_are_closed() {
    run(async {
        let claim = [[wire::OP_CLAIM; 17]].concat();
        for descriptors in [0, 2, 3, 4, 5, 64] {
            ends_the_lane(&[wire::OP_DEPOSIT], descriptors).await;
        }
        for descriptors in [1, 2, 64] {
            ends_the_lane(&claim, descriptors).await;
        }
    });
}

#[test]
fn a_packet_of_another_length_or_operation_ends_the_lane_and_its_descriptor_is_closed() {
    run(async {
        let (deposit, claim) = (wire::OP_DEPOSIT, wire::OP_CLAIM);
        for bytes in [vec![0], vec![3], vec![255], vec![deposit; 2], vec![deposit; 17], vec![deposit; 18]] {
            ends_the_lane(&bytes, 1).await;
        }
        for bytes in [vec![], vec![claim], vec![claim; 16], vec![claim; 18], vec![claim; 64]] {
            ends_the_lane(&bytes, 0).await;
        }
    });
}

#[test]
fn a_descriptor_whose_token_expires_is_closed_without_anybody_asking() {
    run(async {
        let served = served(Lane::with_limits(Duration::from_secs(2), 64));
        let raw = Raw::connect(&served);
        let (early, late) = (Watched::new(), Watched::new());
        let redeem = |token: &[u8]| served.service.lane.redeem(&token[1..], Peer::this_process());
        let _redeemed = redeem(&raw.deposit(&early.writer).await).unwrap();
        let late_token = raw.deposit(&late.writer).await;
        late.all_closed().await;
        // What was redeemed in time stays with its new owner.
        assert!(early.outlives_its_owner());
        assert_eq!(served.service.lane.waiting(), 0);
        assert_eq!(redeem(&late_token).unwrap_err().code, Code::BadToken);
    });
}

#[test]
fn a_claim_that_is_cancelled_does_not_mix_up_the_next() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let mut tokens = Vec::new();
        for name in ["first", "second"] {
            tokens.push(open(&connection, &get_kernel(&connection, &store, name).await.unwrap()).await);
        }
        {
            let mut claim = Box::pin(connection.claim(&tokens[0]));
            assert!(futures::poll!(&mut claim).is_pending());
            // The request is on its way; nobody waits for its reply.
            tokio::task::yield_now().await;
        }
        assert_eq!(content(connection.claim(&tokens[1]).await.unwrap()), b"second");
    });
}

#[test]
fn so_many_exchanges_of_a_connection_wait_and_no_more_until_one_is_done() {
    run(async {
        let service = Service::new();
        let (rpc, _task) = serve_pair(&service, Limits::default());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let connection = Connection::from_fds(rpc.into(), ours).unwrap();
        let claim = || Box::pin(connection.claim(&[0; 16]));
        let mut waiting = vec![claim()];
        assert!(futures::poll!(&mut waiting[0]).is_pending());
        // The first is on its way; nobody answers yet.
        let request = Raw(theirs);
        request.receive().await.unwrap();
        for _ in 0..64 {
            let mut next = claim();
            assert!(futures::poll!(&mut next).is_pending());
            waiting.push(next);
        }
        assert_eq!(claim().await.unwrap_err().code, Code::Overloaded);
        // The status of a token that is not known.
        request.send(&[wire::STATUS_BAD_TOKEN], &[]);
        let _lane = tokio::task::spawn_local(ipc::serve_lane_link(request.0, service.lane.clone()));
        for one in waiting {
            assert_eq!(one.await.unwrap_err().code, Code::BadToken);
        }
        assert_eq!(claim().await.unwrap_err().code, Code::BadToken);
    });
}

#[test]
fn a_lane_that_is_gone_fails_with_unavailable_and_the_rpc_goes_on() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        assert_eq!(connection.deposit(memfd(b"").as_fd()).await.unwrap_err().code, Code::Unavailable);
        get_kernel(&connection, &store, "k").await.unwrap();

        let (rpc, _task) = serve_pair(&service, Limits::default());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let connection = Connection::from_fds(rpc.into(), ours).unwrap();
        let store: kernel_store::Client = connection.bootstrap();
        let lane = tokio::task::spawn_local(ipc::serve_lane_link(theirs, service.lane.clone()));
        let token = connection.deposit(memfd(b"x").as_fd()).await.unwrap();
        assert_eq!(content(service.lane.redeem(token.as_bytes(), Peer::this_process()).unwrap()), b"x");
        lane.abort();
        for _ in 0..2 {
            assert_eq!(connection.deposit(memfd(b"").as_fd()).await.unwrap_err().code, Code::Unavailable);
        }
        get_kernel(&connection, &store, "k").await.unwrap();
    });
}

#[test]
fn a_service_that_answers_out_of_form_is_not_believed() {
    run(async {
        for (reply, with_fd) in [(vec![0], false), (vec![0; 16], false), (vec![0; 17], true), (vec![9], false)] {
            let service = Service::new();
            let (rpc, _task) = serve_pair(&service, Limits::default());
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let connection = Connection::from_fds(rpc.into(), ours).unwrap();
            let raw = Raw(theirs);
            let watched = Watched::new();
            let answer = async {
                raw.receive().await.unwrap();
                raw.send(
                    &reply,
                    if with_fd { std::slice::from_ref(&watched.writer) } else { &[] }
                        .iter()
                        .map(AsFd::as_fd)
                        .collect::<Vec<_>>()
                        .as_slice(),
                );
            };
            let file = memfd(b"");
            let (result, ()) = tokio::join!(connection.deposit(file.as_fd()), answer);
            assert_eq!(result.unwrap_err().code, Code::Unavailable);
            watched.all_closed().await;
        }
    });
}
