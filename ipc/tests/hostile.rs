//! Peers that speak the RPC protocol and mean harm: whatever they send, the process and other connections go on.

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use capnp_rpc::rpc_capnp::cap_descriptor;
use common::{
    raw::{Random, any_message, message},
    *,
};
use ipc::Limits;
use schema::kernel_store_capnp::kernel_store;

#[test]
fn any_sequence_of_messages_hurts_its_own_connection_at_most() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let mut random = Random(20_261_123);
        for round in 0..600 {
            let (mut socket, task) = serve_pair(&service, Limits { calls_in_flight: 3, ..Limits::default() });
            socket.set_nonblocking(true).unwrap();
            let _ = socket.write_all(&message(|message| message.init_bootstrap().set_question_id(0)));
            for _ in 0..random.below(30) {
                if socket.write_all(&any_message(&mut random)).is_err() {
                    break;
                }
                if random.below(4) == 0 {
                    tokio::task::yield_now().await;
                    let _ = socket.read(&mut [0; 4096]);
                }
            }
            tokio::task::yield_now().await;
            drop(socket);
            let _ = tokio::time::timeout(SOON, task).await.expect("a connection outlives its peer").unwrap();
            if round % 20 == 0 {
                get_kernel(&connection, &store, "k").await.unwrap();
            }
        }
        let probe = &service.probe;
        drop((connection, store));
        eventually(|| probe.stores.get() == 0 && probe.kernels.get() == 0 && probe.hanging.get() == 0).await;
    });
}

#[test]
fn a_call_on_something_that_is_no_capability_hurts_its_own_connection_at_most() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let (mut socket, task) = serve_pair(&service, Limits::default());
        socket.write_all(&message(|message| message.init_bootstrap().set_question_id(0))).unwrap();
        // The store as the answer to a question is not a structure with a field 2.
        for id in 1..3 {
            let call = message(|message| {
                let mut call = message.init_call();
                call.set_question_id(id);
                let mut answer = call.reborrow().init_target().init_promised_answer();
                answer.set_question_id(0);
                answer.init_transform(1).get(0).set_get_pointer_field(2);
                call.init_params();
            });
            let _ = socket.write_all(&call);
        }
        get_kernel(&connection, &store, "k").await.unwrap();
        drop(socket);
        let _ = tokio::time::timeout(SOON, task).await.unwrap();
        eventually(|| service.probe.stores.get() == 1).await;
    });
}

#[test]
fn a_client_survives_whatever_its_service_says() {
    run(async {
        let mut random = Random(42);
        for _ in 0..300 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let connection = ipc::Connection::from_fd(ours.into()).unwrap();
            let store: kernel_store::Client = connection.bootstrap();
            let talk = async {
                for _ in 0..random.below(12) {
                    tokio::task::yield_now().await;
                    let _ = theirs.write_all(&any_message(&mut random));
                }
                tokio::task::yield_now().await;
                drop(theirs);
            };
            let (answer, ()) = tokio::join!(connection.call("get", SOON * 100, get(&store, "k")), talk);
            let _ = answer.map(drop);
            tokio::time::timeout(SOON, connection.closed()).await.expect("the connection outlives its service");
        }
    });
}

#[test]
fn a_promise_may_resolve_to_what_is_settled_and_one_that_resolves_to_a_promise_ends_the_connection() {
    run(async {
        let service = Service::new();
        let resolve = |fill: fn(cap_descriptor::Builder<'_>)| {
            message(|message| {
                let mut resolve = message.init_resolve();
                resolve.set_promise_id(7);
                fill(resolve.init_cap());
            })
        };
        let settled: [fn(cap_descriptor::Builder<'_>); 2] =
            [|mut to| to.set_sender_hosted(1), |mut to| to.set_receiver_hosted(0)];
        let promises: [fn(cap_descriptor::Builder<'_>); 2] =
            [|mut to| to.set_sender_promise(7), |to| to.init_receiver_answer().set_question_id(0)];
        for (to, ends) in settled.map(|to| (to, false)).into_iter().chain(promises.map(|to| (to, true))) {
            let (mut socket, task) = serve_pair(&service, Limits::default());
            socket.write_all(&message(|message| message.init_bootstrap().set_question_id(0))).unwrap();
            socket.write_all(&resolve(to)).unwrap();
            settle().await;
            assert_eq!(task.is_finished(), ends);
            drop(socket);
            eventually(|| service.probe.stores.get() == 0).await;
        }
    });
}
