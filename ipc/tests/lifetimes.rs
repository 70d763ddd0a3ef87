//! Releases, ends and panics: what is dropped when, and that nobody is left waiting.

mod common;

use std::{
    io::Write,
    os::unix::net::UnixStream,
    rc::Rc,
    time::{Duration, Instant},
};

use common::*;
use ipc::{Code, Connection, Error, Limits, Peer};
use schema::kernel_store_capnp::{kernel, kernel_store};
use tokio::{sync::oneshot, task::JoinHandle};

#[test]
fn dropping_the_last_reference_drops_the_server_object() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let kernel = get_kernel(&connection, &store, "k").await.unwrap();
        let second = kernel.clone();
        drop(kernel);
        settle().await;
        assert_eq!(service.probe.kernels.get(), 1);
        drop(second);
        eventually(|| service.probe.kernels.get() == 0).await;
        assert_eq!(*service.probe.dropped.borrow(), ["k"]);
    });
}

#[test]
fn a_peer_that_dies_leaves_no_object_and_no_running_call() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let path = served.path.clone();
        let probe = &served.service.probe;
        // A runtime of its own that is dropped with everything in it: no farewell is sent.
        let peer = std::thread::spawn(move || {
            run(async {
                let connection = Connection::connect(&path).await.unwrap();
                let store = connection.bootstrap();
                let kernel = get_kernel(&connection, &store, "k").await.unwrap();
                let call = get(&store, "hang");
                settle().await;
                std::mem::forget((kernel, call));
            });
        });
        eventually(|| probe.hanging.get() == 1 && probe.kernels.get() == 1).await;
        eventually(|| probe.hanging.get() == 0 && probe.kernels.get() == 0 && probe.stores.get() == 0).await;
        peer.join().unwrap();
    });
}

#[test]
fn a_peer_that_closes_only_its_sending_side_and_never_reads_is_released_too() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        get_kernel(&connection, &store, "k").await.unwrap();
        let (mut socket, task) = serve_pair(&service, Limits::default());
        assert_eq!(service.probe.stores.get(), 2);
        // The beginning of a message, so that the end comes in its middle.
        socket.write_all(&[0, 0, 0, 0, 9, 0]).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        eventually(|| service.probe.stores.get() == 1).await;
        tokio::time::timeout(SOON, task).await.unwrap().unwrap().unwrap_err();
        get_kernel(&connection, &store, "k").await.unwrap();
    });
}

#[test]
fn a_call_to_a_service_that_dies_fails_at_once() {
    run(async {
        let service = Service::new();
        let (socket, task) = serve_pair(&service, Limits::default());
        let connection = Connection::from_fd(socket.into()).unwrap();
        let store = connection.bootstrap();
        let death = async {
            eventually(|| service.probe.hanging.get() == 1).await;
            task.abort();
        };
        // Within the time that this test has: the deadline is far behind it.
        let (answer, ()) = tokio::join!(connection.call("get", SOON * 100, get(&store, "hang")), death);
        assert_eq!(answer.map(drop).unwrap_err().code, Code::Unavailable);
        connection.closed().await;
        // And so does every later one.
        assert_eq!(get_kernel(&connection, &store, "k").await.map(drop).unwrap_err().code, Code::Unavailable);
        assert_eq!((service.probe.hanging.get(), service.probe.stores.get()), (0, 0));
    });
}

#[test]
fn a_call_to_a_mute_service_ends_at_its_deadline() {
    run(async {
        let (ours, _mute) = UnixStream::pair().unwrap();
        let connection = Connection::from_fd(ours.into()).unwrap();
        let store = connection.bootstrap();
        let (start, deadline) = (Instant::now(), Duration::from_millis(200));
        let fault = connection.call("get a kernel", deadline, get(&store, "k")).await.map(drop).unwrap_err();
        assert_eq!((fault.code, fault.tried.as_str()), (Code::Unavailable, "get a kernel"));
        assert!(start.elapsed() >= deadline);
        let fault = ipc::call("get a kernel", deadline, get(&store, "k")).await.map(drop).unwrap_err();
        assert_eq!(fault.code, Code::Unavailable);
    });
}

#[test]
fn a_call_that_passed_its_deadline_is_cancelled_at_the_service() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let calling = connection.call("get", Duration::from_secs(1), get(&store, "hang"));
        let (answer, ()) = tokio::join!(calling, eventually(|| service.probe.hanging.get() == 1));
        assert_eq!(answer.map(drop).unwrap_err().code, Code::Unavailable);
        eventually(|| service.probe.hanging.get() == 0).await;
    });
}

/// A client's own object, which panics when the service calls it.
struct Panics;

impl kernel::Server for Panics {
    async fn info(self: Rc<Self>, _: kernel::InfoParams, _: kernel::InfoResults) -> capnp::Result<()> {
        panic!("a test asked for this panic")
    }
}

#[test]
fn a_panic_on_the_own_side_ends_that_connection_and_every_wait_on_it() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let (other, other_store) = connect_pair(&service, Limits::default());
        let waiting = connection.call("wait", SOON * 100, get(&store, "hang"));
        let panicking = async {
            eventually(|| service.probe.hanging.get() == 1).await;
            let ours: kernel::Client = capnp_rpc::new_client(Panics);
            let mut request = store.client.new_call::<capnp::any_pointer::Owned, kernel_store::list_results::Owned>(
                <kernel_store::Client as capnp::traits::HasTypeId>::TYPE_ID,
                2,
                None,
            );
            request.get().set_as_capability(ours.client.hook);
            connection.call("call back", SOON * 100, request.send()).await.map(drop)
        };
        let (waited, panicked) = tokio::join!(waiting, panicking);
        assert_eq!(waited.map(drop).unwrap_err().code, Code::Unavailable);
        assert_eq!(panicked.unwrap_err().code, Code::Unavailable);
        get_kernel(&other, &other_store, "k").await.unwrap();
        eventually(|| service.probe.stores.get() == 1 && service.probe.hanging.get() == 0).await;
    });
}

#[test]
fn dropping_the_own_connection_fails_the_calls_that_wait_on_it() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        // A bare promise, without `call`.
        let waiting = tokio::task::spawn_local(get(&store, "hang").promise);
        eventually(|| service.probe.hanging.get() == 1).await;
        drop(connection);
        let answer = tokio::time::timeout(SOON, waiting).await.expect("the caller waits for ever").unwrap();
        assert!(answer.is_err());
        let later = tokio::time::timeout(SOON, get(&store, "k").promise).await.expect("the caller waits for ever");
        assert!(later.is_err());
        eventually(|| service.probe.hanging.get() == 0 && service.probe.stores.get() == 0).await;
    });
}

#[test]
fn a_clone_of_a_connection_keeps_it_open() {
    run(async {
        let (connection, store) = connect_pair(&Service::new(), Limits::default());
        let clone = connection.clone();
        drop(connection);
        settle().await;
        get_kernel(&clone, &store, "k").await.unwrap();
    });
}

#[test]
fn a_panic_in_one_connection_ends_that_one_and_no_other() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let probe = &served.service.probe;
        let (bad, bad_store) = served.connect().await;
        let (good, good_store) = served.connect().await;
        let _kernel = get_kernel(&bad, &bad_store, "held").await.unwrap();
        let kernel = get_kernel(&good, &good_store, "kept").await.unwrap();
        let waiting = bad.call("get", SOON, get(&bad_store, "hang"));
        let panicking = bad.call("get", SOON, get(&bad_store, "panic"));
        let (waited, panicked) = tokio::join!(waiting, panicking);
        assert_eq!(waited.map(drop).unwrap_err().code, Code::Unavailable);
        assert_eq!(panicked.map(drop).unwrap_err().code, Code::Unavailable);
        bad.closed().await;
        // What the bad one held is released, running calls included; the good one has what it had.
        eventually(|| probe.kernels.get() == 1 && probe.stores.get() == 1 && probe.hanging.get() == 0).await;
        good.call("ask", SOON, kernel.info_request().send()).await.unwrap();
        let (again, store) = served.connect().await;
        get_kernel(&again, &store, "k").await.unwrap();
    });
}

#[test]
fn a_panic_is_reported_to_whoever_serves_a_link() {
    run(async {
        let (socket, task) = serve_pair(&Service::new(), Limits::default());
        let connection = Connection::from_fd(socket.into()).unwrap();
        let store = connection.bootstrap();
        get_kernel(&connection, &store, "panic").await.map(drop).unwrap_err();
        assert!(matches!(task.await.unwrap(), Err(Error::Panicked)));
    });
}

#[test]
fn a_panic_while_an_object_is_dropped_ends_its_own_connection_at_most() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let probe = &served.service.probe;
        let (good, good_store) = served.connect().await;
        // Once when the peer releases it, and once when the connection ends with it.
        for leaves in [false, true] {
            let (bad, bad_store) = served.connect().await;
            let kernel = get_kernel(&bad, &bad_store, "panic-in-drop").await.unwrap();
            if leaves {
                drop((bad, bad_store));
            }
            drop(kernel);
            eventually(|| probe.kernels.get() == 0 && probe.stores.get() == 1).await;
            get_kernel(&good, &good_store, "k").await.unwrap();
            eventually(|| probe.kernels.get() == 0).await;
        }
    });
}

#[test]
fn a_bootstrap_function_that_panics_refuses_that_peer_only() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let (service, calls) = (Service::new(), std::cell::Cell::new(0));
        let endpoint = ipc::Endpoint::bind(&path, 0o600).unwrap();
        tokio::task::spawn_local(ipc::serve(
            endpoint,
            clients(),
            ipc::Lane::new(),
            Limits::default(),
            None,
            move |peer: Peer| {
                calls.set(calls.get() + 1);
                assert_ne!(calls.get(), 1, "a test asked for this panic");
                Ok(service.store(peer))
            },
        ));
        for expected in [Err(Code::Internal), Ok(())] {
            let connection = Connection::connect(&path).await.unwrap();
            let store = connection.bootstrap();
            let code = get_kernel(&connection, &store, "k").await.map(drop).map_err(|fault| fault.code);
            assert_eq!(code, expected);
        }
    });
}

#[test]
fn dropping_the_serving_future_ends_every_connection() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let _kernel = get_kernel(&connection, &store, "k").await.unwrap();
        let waiting = tokio::task::spawn_local(get(&store, "hang").promise);
        eventually(|| served.service.probe.hanging.get() == 1).await;
        served.task.abort();
        tokio::time::timeout(SOON, connection.closed()).await.unwrap();
        assert!(tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().is_err());
        let probe = &served.service.probe;
        eventually(|| probe.kernels.get() == 0 && probe.stores.get() == 0 && probe.hanging.get() == 0).await;
    });
}

/// A store that is served until the sender is dropped.
async fn stoppable(service: &Service) -> (oneshot::Sender<()>, JoinHandle<Result<(), Error>>, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let endpoint = ipc::Endpoint::bind(&path, 0o600).unwrap();
    let (served, (stop, stopped)) = (service.clone(), oneshot::channel());
    let task = tokio::task::spawn_local(ipc::serve_until(
        endpoint,
        clients(),
        service.lane.clone(),
        Limits::default(),
        None,
        async { drop(stopped.await) },
        move |peer| Ok(served.store(peer)),
    ));
    (stop, task, Connection::connect(&path).await.unwrap())
}

#[test]
fn whoever_waits_as_a_vat_stops_is_answered_before_its_connection_ends() {
    run(async {
        let service = Service::new();
        let (stop, task, connection) = stoppable(&service).await;
        let store = connection.bootstrap();
        let waiting: Vec<_> = (0..3).map(|_| tokio::task::spawn_local(get(&store, "hang").promise)).collect();
        eventually(|| service.probe.hanging.get() == 3).await;
        // In one go: none of them has run since.
        service.probe.release.notify_waiters();
        drop(stop);
        for answer in waiting {
            answer.await.unwrap().unwrap();
        }
        connection.closed().await;
        task.await.unwrap().unwrap();
        assert_eq!(service.probe.stores.get(), 0);
    });
}

#[test]
fn vat_that_stops_does_not_wait_for_ever_for_a_call_that_is_not_answered() {
    run(async {
        let service = Service::new();
        let (stop, task, connection) = stoppable(&service).await;
        let store = connection.bootstrap();
        let waiting = tokio::task::spawn_local(get(&store, "hang").promise);
        eventually(|| service.probe.hanging.get() == 1).await;
        drop(stop);
        task.await.unwrap().unwrap();
        assert!(waiting.await.unwrap().is_err());
        connection.closed().await;
        assert_eq!((service.probe.hanging.get(), service.probe.stores.get()), (0, 0));
    });
}

#[test]
fn a_link_ends_without_error_when_its_peer_leaves() {
    run(async {
        let (socket, task) = serve_pair(&Service::new(), Limits::default());
        drop(socket);
        tokio::time::timeout(SOON, task).await.unwrap().unwrap().unwrap();
    });
}

#[test]
fn what_runs_on_the_runtime_is_dropped_with_it() {
    let service = std::rc::Rc::new(());
    let held = service.clone();
    ipc::run(async {
        tokio::task::spawn_local(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        settle().await;
    })
    .unwrap();
    assert_eq!(std::rc::Rc::strong_count(&service), 1);
}

#[test]
fn a_peer_that_closes_only_its_receiving_side_is_released_too() {
    run(async {
        let service = Service::new();
        let (socket, task) = serve_pair(&service, Limits::default());
        socket.shutdown(std::net::Shutdown::Read).unwrap();
        let connection = Connection::from_fd(socket.into()).unwrap();
        let store = connection.bootstrap();
        let _hanging = get(&store, "hang");
        let _answered = get(&store, "k");
        eventually(|| service.probe.stores.get() == 0 && service.probe.hanging.get() == 0).await;
        let _ = tokio::time::timeout(SOON, task).await.unwrap();
    });
}
