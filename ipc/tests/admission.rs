//! Who gets in at all: by the socket's mode, by who connected (SO_PEERCRED), and on the lane by the token. Becomes other users in
//! threads of its own; without root, says so.

mod common;

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use common::{
    raw::{Raw, Said},
    *,
};
use ipc::{Clients, Code, Connection, Endpoint, Lane, Limits, Peer};
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    thread::UnshareFlags,
};

const OWNER: u32 = USERS[0];

fn without_root() -> bool {
    let without = !testkit::user::is_root();
    if without {
        testkit::skip!("becoming another user takes root");
    }
    without
}

/// A folder that everybody may look into and root alone may change.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("v.sock");
    (dir, path)
}

fn serve(endpoint: Endpoint, service: &Service, clients: Clients) {
    let served = service.clone();
    let lane = service.lane.clone();
    tokio::task::spawn_local(ipc::serve(endpoint, clients, lane, Limits::default(), None, move |peer| {
        Ok(served.store(peer))
    }));
}

/// Asks for a kernel as `uid`.
async fn ask_as(uid: u32, path: &Path) -> Result<(), Code> {
    let path = path.to_owned();
    let asked = as_user(uid, move || async move {
        let connection = Connection::connect(&path).await.map_err(|fault| fault.code)?;
        get_kernel(&connection, &connection.bootstrap(), "k").await.map(drop).map_err(|fault| fault.code)
    });
    eventually(|| asked.is_finished()).await;
    asked.join().unwrap()
}

#[test]
fn a_socket_that_is_bound_for_somebody_is_its_owners_alone() {
    if without_root() {
        return;
    }
    run(async {
        let (_dir, path) = folder();
        let endpoint = Endpoint::bind_for(Some(OWNER), &path, 0o600).unwrap();
        for path in [path.clone(), schema::paths::lane(&path)] {
            let found = std::fs::metadata(path).unwrap();
            assert_eq!((found.uid(), found.mode() & 0o7777), (OWNER, 0o600));
        }
        // Everybody would be served: what keeps them out is the mode.
        serve(endpoint, &Service::new(), clients());
        assert_eq!(ask_as(OWNER, &path).await, Ok(()));
        assert_eq!(ask_as(0, &path).await, Ok(()));
        assert_eq!(ask_as(USERS[1], &path).await, Err(Code::PermissionDenied));
        assert_eq!(ask_as(STRANGER, &path).await, Err(Code::PermissionDenied));
    });
}

#[test]
fn at_no_moment_does_a_socket_that_is_being_bound_let_in_more_than_it_will() {
    if without_root() {
        return;
    }
    let (dir, path) = folder();
    let done = std::sync::atomic::AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut looks, mut wider) = (0, Vec::new());
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
                    let Ok(found) = std::fs::symlink_metadata(entry.path()) else { continue };
                    let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                    looks += 1;
                    // Until it has its own name it may be root's, and that is less.
                    if found.mode() & 0o177 != 0 || !(found.uid() == OWNER || (hidden && found.uid() == 0)) {
                        wider.push((entry.path(), found.mode(), found.uid()));
                    }
                }
            }
            assert!(wider.is_empty(), "{wider:?}");
            looks
        });
        scope.spawn(|| {
            // SAFETY: gives this thread a umask of its own, and takes nothing from the others.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.unwrap();
            rustix::process::umask(rustix::fs::Mode::empty());
            for _ in 0..1000 {
                drop(Endpoint::bind_for(Some(OWNER), &path, 0o600).unwrap());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        watcher.join().unwrap()
    });
    assert!(looks > 100, "it was looked at {looks} times only");
}

#[test]
fn a_folder_in_which_others_could_replace_the_socket_is_refused() {
    let (dir, path) = folder();
    let refused = |why: &str| {
        let error = Endpoint::bind(&path, 0o600).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(matches!(error, ipc::Error::Bind { .. }) && source.contains(why), "{error}: {source}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    };
    for (mode, fine) in [(0o700, true), (0o755, true), (0o777, false), (0o1777, true)] {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        match fine {
            true => drop(Endpoint::bind(&path, 0o600).unwrap()),
            false => refused("others may write"),
        }
    }
    if !without_root() {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(OWNER), None).unwrap();
        refused("belongs to user");
    }
}

#[test]
fn whoever_is_not_named_is_refused_on_both_sockets_though_the_mode_lets_everybody_in() {
    if without_root() {
        return;
    }
    run(async {
        let (_dir, path) = folder();
        // As a service takes it that did not bind it itself.
        let (rpc, lane) = Endpoint::bind(&path, 0o666).unwrap().into_fds();
        let service = Service::new();
        serve(Endpoint::from_fds(rpc, lane).unwrap(), &service, Clients::root_and([OWNER]));
        assert_eq!(ask_as(OWNER, &path).await, Ok(()));
        for stranger in [STRANGER, USERS[1], OWNER + 1, 65_534] {
            // A refusal that crosses with a call may be seen as the connection's end.
            let refused = ask_as(stranger, &path).await.unwrap_err();
            assert!(matches!(refused, Code::PermissionDenied | Code::Unavailable), "{refused:?}");
            let there = path.clone();
            let deposit = as_user(stranger, move || async move {
                let connection = Connection::connect(&there).await.unwrap();
                connection.deposit(memfd(b"theirs").as_fd()).await.map(drop).unwrap_err().code
            });
            eventually(|| deposit.is_finished()).await;
            assert_eq!(deposit.join().unwrap(), Code::Unavailable);
        }
        assert_eq!((service.probe.store_calls.get(), service.lane.waiting()), (1, 0));
        assert_eq!(ask_as(OWNER, &path).await, Ok(()));
    });
}

#[test]
fn a_refused_peer_is_told_before_it_says_anything() {
    if without_root() {
        return;
    }
    run(async {
        let (_dir, path) = folder();
        serve(Endpoint::bind(&path, 0o666).unwrap(), &Service::new(), Clients::root_and([OWNER]));
        let refused = as_user(STRANGER, move || async move {
            let mut raw = Raw::new(UnixStream::connect(path).unwrap());
            (raw.receive().await, raw.receive().await)
        });
        eventually(|| refused.is_finished()).await;
        // An Abort message, then the end.
        assert_eq!(refused.join().unwrap(), (Said::Ended, Said::Ended));
    });
}

#[test]
fn a_connected_socket_speaks_for_who_connected_it_whoever_holds_it() {
    if without_root() {
        return;
    }
    run(async {
        let (_dir, path) = folder();
        serve(Endpoint::bind(&path, 0o666).unwrap(), &Service::new(), Clients::root_and([OWNER]));
        let connect = |uid: u32| {
            let path = path.clone();
            let connected = as_user(uid, move || async move { OwnedFd::from(UnixStream::connect(path).unwrap()) });
            connected.join().unwrap()
        };
        // A stranger's connection is no better in root's hands.
        let theirs = Connection::from_fd(connect(STRANGER)).unwrap();
        assert!(get_kernel(&theirs, &theirs.bootstrap(), "k").await.is_err());
        // One that the owner handed to a stranger is a capability that it handed over.
        let handed = connect(OWNER);
        let used = as_user(STRANGER, move || async move {
            let connection = Connection::from_fd(handed).unwrap();
            get_kernel(&connection, &connection.bootstrap(), "k").await.map(drop)
        });
        eventually(|| used.is_finished()).await;
        used.join().unwrap().unwrap();
    });
}

#[test]
fn a_token_is_good_for_its_user_at_its_own_vat_and_no_guess_comes_near_it() {
    run(async {
        let (served, other) = (Served::new(Limits::default(), None), Served::new(Limits::default(), None));
        let (connection, store) = served.connect().await;
        let kernel = get_kernel(&connection, &store, "linux").await.unwrap();
        let answer = connection.call("open", SOON, kernel.open_request().send()).await.unwrap();
        let token = answer.get().unwrap().get_image().unwrap().get_bytes().unwrap().to_vec();

        let bad = async |connection: &Connection, guess: &[u8]| {
            assert_eq!(connection.claim(guess).await.unwrap_err().code, Code::BadToken);
        };
        let (guesser, guesser_store) = served.connect().await;
        // Its neighbours by one bit, what differs in one byte, and any others.
        for bit in 0..128 {
            let mut guess = token.clone();
            guess[bit / 8] ^= 1 << (bit % 8);
            bad(&guesser, &guess).await;
        }
        for n in 0..4000_u128 {
            bad(&guesser, &n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_ne_bytes()).await;
        }
        // Another vat of the same process and user.
        bad(&other.connect().await.0, &token).await;
        // As a descriptor for a method: it was only to be read.
        let import = async |token: &[u8]| {
            let mut request = guesser_store.import_kernel_request();
            request.get().set_alias("mine");
            request.get().init_image().set_bytes(token);
            guesser.call("import", SOON, request.send()).await.map(drop).map_err(|fault| fault.code)
        };
        assert_eq!(import(&token).await, Err(Code::BadToken));
        // What another connection of the same user left for the service is not to be had over the lane.
        let deposited = connection.deposit(memfd(b"image").as_fd()).await.unwrap();
        bad(&guesser, deposited.as_bytes()).await;
        assert_eq!(import(deposited.as_bytes()).await, Ok(()));
        assert_eq!(import(deposited.as_bytes()).await, Err(Code::BadToken));

        if !without_root() {
            let (path, stolen) = (served.path.clone(), token.clone());
            let thief = as_user(OWNER, move || async move {
                Connection::connect(&path).await.unwrap().claim(&stolen).await.map(drop).unwrap_err().code
            });
            eventually(|| thief.is_finished()).await;
            assert_eq!(thief.join().unwrap(), Code::BadToken);
        }
        // After all of that it is good; once.
        connection.claim(&token).await.unwrap();
        bad(&connection, &token).await;
        bad(&guesser, &token).await;
    });
}

#[test]
fn a_lane_link_that_was_handed_over_serves_the_user_who_made_it() {
    run(async {
        let lane = Lane::new();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = || rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let ours = lane.offer(memfd(b"ours"), Peer::this_process()).unwrap();
        let other = Peer { uid: Peer::this_process().uid + 1, ..Peer::this_process() };
        let theirs = lane.offer(memfd(b"theirs"), other).unwrap();
        let (end, served) = pair();
        tokio::task::spawn_local(ipc::serve_lane_link(served, lane.clone()));
        let (rpc, _task) = serve_pair(&Service::new(), Limits::default());
        let connection = Connection::from_fds(rpc.into(), end).unwrap();
        assert_eq!(connection.claim(theirs.as_bytes()).await.unwrap_err().code, Code::BadToken);
        connection.claim(ours.as_bytes()).await.unwrap();
    });
}

#[test]
fn a_stranger_that_connects_without_end_leaves_room_for_others() {
    if without_root() {
        return;
    }
    run(async {
        let (_dir, path) = folder();
        let limits = Limits { connections: 4, ..Limits::default() };
        let service = Service::new();
        let (served, lane) = (service.clone(), service.lane.clone());
        let endpoint = Endpoint::bind(&path, 0o666).unwrap();
        let clients = Clients::root_and([OWNER]);
        tokio::task::spawn_local(ipc::serve(endpoint, clients, lane, limits, None, move |peer| Ok(served.store(peer))));
        let there = path.clone();
        let kept = as_user(STRANGER, move || async move {
            let connect = |path: &Path, kind| {
                let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
                rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
                socket
            };
            let pair =
                |_| [connect(&there, SocketType::STREAM), connect(&schema::paths::lane(&there), SocketType::SEQPACKET)];
            (0..50).flat_map(pair).collect::<Vec<OwnedFd>>()
        });
        eventually(|| kept.is_finished()).await;
        let _kept = kept.join().unwrap();
        assert_eq!(ask_as(OWNER, &path).await, Ok(()));
    });
}
