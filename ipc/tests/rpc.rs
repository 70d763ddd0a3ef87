//! Serving and connecting: named sockets, inherited ones, who the peer is, and faults.

mod common;

use common::*;
use ipc::{Code, Connection, Fault, Limits, Peer};
use schema::kernel_store_capnp::kernel_store;

#[test]
fn a_vat_serves_its_bootstrap_capability_on_a_named_socket() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let kernel = get_kernel(&connection, &store, "linux").await.unwrap();
        let answer = connection.call("ask", SOON, kernel.info_request().send()).await.unwrap();
        assert_eq!(answer.get().unwrap().get_info().unwrap().get_size(), 5);
    });
}

#[test]
fn a_vat_serves_its_bootstrap_capability_on_an_inherited_socket() {
    run(async {
        let service = Service::new();
        let (socket, task) = serve_pair(&service, Limits::default());
        let connection = Connection::from_fd(socket.into()).unwrap();
        let store = connection.bootstrap();
        get_kernel(&connection, &store, "linux").await.unwrap();
        drop((connection, store));
        task.await.unwrap().unwrap();
    });
}

#[test]
fn the_bootstrap_function_and_its_objects_know_the_peer() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let path = served.path.clone();
        let other = as_user(4711, move || async move {
            let connection = Connection::connect(&path).await.unwrap();
            let store: kernel_store::Client = connection.bootstrap();
            let why = connection.call("ask", SOON, get(&store, "uid")).await.map(drop).unwrap_err().why;
            (rustix::process::geteuid().as_raw(), why)
        });
        eventually(|| other.is_finished()).await;
        let (uid, seen) = other.join().unwrap();
        assert_eq!(seen, uid.to_string());

        let (connection, _store) = served.connect().await;
        let (again, _store) = served.connect().await;
        assert_ne!(connection.peer().connection, again.peer().connection);
        assert_eq!(Peer { connection: 0, ..connection.peer() }, Peer::this_process());
    });
}

#[test]
fn a_fault_keeps_its_code_and_words_over_a_connection() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let fault = get_kernel(&connection, &store, "absent").await.map(drop).unwrap_err();
        assert_eq!(fault, Fault::new(Code::NotFound, "get kernel absent", "there is none", "Import it"));
    });
}

#[test]
fn a_peer_that_the_bootstrap_function_refuses_learns_why() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let endpoint = ipc::Endpoint::bind(&path, 0o600).unwrap();
        tokio::task::spawn_local(ipc::serve(endpoint, clients(), ipc::Lane::new(), Limits::default(), None, |peer| {
            Err(Fault::new(Code::PermissionDenied, "connect", format!("user {} may not", peer.uid), "Be root"))
        }));
        let connection = Connection::connect(&path).await.unwrap();
        let store: kernel_store::Client = connection.bootstrap();
        let fault = get_kernel(&connection, &store, "x").await.map(drop).unwrap_err();
        assert_eq!(fault.code, Code::PermissionDenied);
        connection.closed().await;
        let fault = get_kernel(&connection, &store, "x").await.map(drop).unwrap_err();
        assert_eq!(fault.code, Code::PermissionDenied);
    });
}

#[test]
fn a_connection_to_nobody_fails_with_the_path_and_a_remedy() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.sock");
        let fault = Connection::connect(&path).await.map(drop).unwrap_err();
        assert_eq!(fault.code, Code::Unavailable);
        assert!(fault.tried.contains("none.sock") && !fault.remedy.is_empty(), "{fault}");

        let (dead, _) = ipc::Endpoint::bind(&path, 0o600).unwrap().into_fds();
        drop(dead);
        let fault = Connection::connect(&path).await.map(drop).unwrap_err();
        assert_eq!((fault.code, fault.why.as_str()), (Code::Unavailable, "nobody serves there"));
    });
}

#[test]
fn clients_of_one_vat_are_served_side_by_side() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (first, store) = served.connect().await;
        let hanging = first.call("hang", SOON, get(&store, "hang"));
        let (second, other) = served.connect().await;
        let work = async {
            eventually(|| served.service.probe.hanging.get() == 1).await;
            get_kernel(&second, &other, "linux").await.unwrap();
            served.service.probe.release.notify_one();
        };
        let (answer, ()) = tokio::join!(hanging, work);
        answer.unwrap();
    });
}

#[test]
fn serial_calls_are_answered_however_many_there_are() {
    run(async {
        let (connection, store) = connect_pair(&Service::new(), Limits::default());
        for _ in 0..500 {
            get_kernel(&connection, &store, "k").await.unwrap();
        }
    });
}
