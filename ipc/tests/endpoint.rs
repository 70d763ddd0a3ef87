//! Sockets and their files: binding, replacing the dead, leaving the living alone, and ending when idle.

mod common;

use std::{
    cell::Cell,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use common::*;
use ipc::{Connection, Endpoint, Error, Idle, Lane, Limits};

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    (dir, path)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn binding_makes_two_sockets_with_just_the_asked_mode_and_dropping_removes_them() {
    for mode in [0o600, 0o660, 0o666] {
        let (dir, path) = folder();
        let endpoint = Endpoint::bind(&path, mode).unwrap();
        assert_eq!(names(dir.path()), ["v.sock", "v.sock.fds"]);
        for name in names(dir.path()) {
            let metadata = std::fs::metadata(dir.path().join(name)).unwrap();
            assert!(metadata.file_type().is_socket());
            assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        }
        drop(endpoint);
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn a_path_that_somebody_serves_is_refused_and_left_alone() {
    run(async {
        let (dir, path) = folder();
        let service = Service::new();
        let endpoint = Endpoint::bind(&path, 0o600).unwrap();
        let store = service.clone();
        tokio::task::spawn_local(ipc::serve(endpoint, clients(), Lane::new(), Limits::default(), None, move |peer| {
            Ok(store.store(peer))
        }));
        assert!(matches!(Endpoint::bind(&path, 0o600), Err(Error::AlreadyExists { .. })));
        assert_eq!(names(dir.path()), ["v.sock", "v.sock.fds"]);
        let connection = Connection::connect(&path).await.unwrap();
        get_kernel(&connection, &connection.bootstrap(), "k").await.unwrap();
    });
}

#[test]
fn a_socket_that_nobody_serves_any_more_is_replaced() {
    let (dir, path) = folder();
    drop(Endpoint::bind(&path, 0o600).unwrap().into_fds());
    assert_eq!(names(dir.path()), ["v.sock", "v.sock.fds"]);
    let endpoint = Endpoint::bind(&path, 0o600).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(endpoint);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_file_that_is_no_socket_is_refused_and_left_alone() {
    let (dir, path) = folder();
    for name in ["v.sock", "v.sock.fds"] {
        std::fs::write(dir.path().join(name), "precious").unwrap();
        assert!(matches!(Endpoint::bind(&path, 0o600), Err(Error::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "precious");
        // The RPC socket that was bound before its lane is not left behind.
        assert_eq!(names(dir.path()), [name]);
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
}

#[test]
fn of_many_that_bind_one_path_at_one_time_one_wins_and_is_reachable() {
    for stale in [false, true, true, true, true, true, true, true] {
        let (dir, path) = folder();
        if stale {
            drop(Endpoint::bind(&path, 0o600).unwrap().into_fds());
        }
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || Endpoint::bind(&path, 0o600))
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let won = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "{results:?}");
        assert_eq!(names(dir.path()), ["v.sock", "v.sock.fds"]);
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn a_path_of_the_longest_length_binds_and_one_byte_more_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // 107 bytes with ".fds".
    let room = 107 - ".fds".len() - dir.path().as_os_str().len() - 1;
    let fits = dir.path().join("x".repeat(room));
    drop(Endpoint::bind(&fits, 0o600).unwrap());
    let long = dir.path().join("x".repeat(room + 1));
    assert!(matches!(Endpoint::bind(&long, 0o600), Err(Error::PathTooLong { .. })));
}

#[test]
fn a_folder_that_is_not_there_is_named_in_the_error() {
    let (_dir, path) = folder();
    let error = Endpoint::bind(&path.join("deeper.sock"), 0o600).unwrap_err();
    assert!(matches!(error, Error::Bind { .. }) && error.to_string().contains("deeper.sock"), "{error}");
}

#[test]
fn a_socket_that_was_replaced_by_another_program_is_not_removed() {
    let (dir, path) = folder();
    let endpoint = Endpoint::bind(&path, 0o600).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(endpoint);
    assert_eq!(names(dir.path()), ["v.sock"]);
}

#[test]
fn listening_sockets_are_taken_from_their_descriptors_and_anything_else_is_refused() {
    run(async {
        let (_dir, path) = folder();
        let (rpc, lane) = Endpoint::bind(&path, 0o600).unwrap().into_fds();
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
        let (connected, _other) = UnixStream::pair().unwrap();
        let datagram: OwnedFd = UnixDatagram::unbound().unwrap().into();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let inet: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        for wrong in [connected.into(), datagram, file, inet, copy(&lane)] {
            let result = Endpoint::from_fds(wrong, copy(&lane));
            assert!(matches!(result, Err(Error::Inherited { .. })));
        }
        assert!(matches!(Endpoint::from_fds(copy(&rpc), copy(&rpc)), Err(Error::Inherited { .. })));

        let endpoint = Endpoint::from_fds(rpc, lane).unwrap();
        let service = Service::new();
        tokio::task::spawn_local(ipc::serve(endpoint, clients(), Lane::new(), Limits::default(), None, move |peer| {
            Ok(service.store(peer))
        }));
        let connection = Connection::connect(&path).await.unwrap();
        get_kernel(&connection, &connection.bootstrap(), "k").await.unwrap();
    });
}

#[test]
fn a_link_takes_a_connected_socket_only() {
    run(async {
        let (_dir, path) = folder();
        let (rpc, lane) = Endpoint::bind(&path, 0o600).unwrap().into_fds();
        assert!(Connection::from_fd(rpc).is_err());
        assert!(Connection::from_fd(lane).is_err());
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(matches!(ipc::LinkSocket::new(file), Err(Error::Inherited { .. })));
    });
}

#[test]
fn serving_ends_after_the_idle_time_without_a_connection_and_not_before() {
    run(async {
        let idle = Duration::from_secs(2);
        let served = Served::new(Limits::default(), Some(Idle::after(idle)));
        let (connection, store) = served.connect().await;
        get_kernel(&connection, &store, "k").await.unwrap();
        tokio::time::sleep(idle + idle / 4).await;
        // A connection is open, however quiet.
        assert!(!served.task.is_finished());
        get_kernel(&connection, &store, "k").await.unwrap();
        drop((connection, store));
        let left = Instant::now();
        // Another one in between starts the time again; well before its end, as a busy machine is late.
        tokio::time::sleep(idle / 4).await;
        drop(served.connect().await);
        served.task.await.unwrap().unwrap();
        assert!(left.elapsed() >= idle + idle / 4);
        assert!(!served.path.exists(), "the socket is left behind");
    });
}

#[test]
fn serving_that_nobody_ever_connects_to_ends_too() {
    run(async {
        let served = Served::new(Limits::default(), Some(Idle::after(Duration::from_millis(50))));
        served.task.await.unwrap().unwrap();
    });
}

#[test]
fn serving_that_has_something_to_do_for_which_nobody_is_connected_ends_once_it_has_not() {
    run(async {
        let asked = Rc::new(Cell::new(0));
        let counts = asked.clone();
        let idle = Idle::after(Duration::from_millis(50)).unless(move || {
            counts.set(counts.get() + 1);
            std::future::ready(counts.get() < 4)
        });
        let served = Served::new(Limits::default(), Some(idle));
        served.task.await.unwrap().unwrap();
        assert_eq!(asked.get(), 4);
    });
}

#[test]
fn serving_without_an_idle_time_goes_on() {
    run(async {
        let served = Served::new(Limits::default(), None);
        drop(served.connect().await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!served.task.is_finished());
    });
}
