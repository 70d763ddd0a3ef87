//! Peers that speak the RPC protocol and mean harm: whatever they send, the process and other connections go on.

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use capnp_rpc::rpc_capnp::{cap_descriptor, message as rpc, message_target};
use common::*;
use ipc::Limits;
use schema::kernel_store_capnp::{kernel, kernel_store};

/// Numbers that differ from run to run of a loop, and are the same in each run of the test.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(n)).unwrap()
    }
}

fn message(fill: impl FnOnce(rpc::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

fn target(random: &mut Random, target: message_target::Builder<'_>) {
    if random.below(3) == 0 {
        return target_import(random, target);
    }
    let mut answer = target.init_promised_answer();
    answer.set_question_id(random.below(6));
    let steps = random.below(3);
    let mut transform = answer.init_transform(steps);
    for i in 0..steps {
        transform.reborrow().get(i).set_get_pointer_field(u16::try_from(random.below(3)).unwrap());
    }
}

fn target_import(random: &mut Random, mut target: message_target::Builder<'_>) {
    target.set_imported_cap(random.below(4));
}

fn descriptor(random: &mut Random, mut descriptor: cap_descriptor::Builder<'_>) {
    let id = random.below(4);
    match random.below(6) {
        0 => descriptor.set_none(()),
        1 => descriptor.set_sender_hosted(id),
        2 => descriptor.set_sender_promise(id),
        3 => descriptor.set_receiver_hosted(id),
        4 => {
            let mut answer = descriptor.init_receiver_answer();
            answer.set_question_id(id);
            answer.init_transform(1).get(0).set_get_pointer_field(0);
        }
        _ => descriptor.init_third_party_hosted().set_vine_id(id),
    }
}

/// One well-formed message that makes sense now and then.
fn any_message(random: &mut Random) -> Vec<u8> {
    message(|message| match random.below(13) {
        0..5 => {
            let mut call = message.init_call();
            call.set_question_id(random.below(6));
            let store = random.below(2) == 0;
            call.set_interface_id(if store {
                interface::<kernel_store::Client>()
            } else {
                interface::<kernel::Client>()
            });
            call.set_method_id(u16::try_from(random.below(5)).unwrap());
            if random.below(5) == 0 {
                call.reborrow().init_send_results_to().set_yourself(());
            }
            target(random, call.reborrow().init_target());
            let mut params = call.init_params();
            let capabilities = random.below(3);
            let mut table = params.reborrow().init_cap_table(capabilities);
            (0..capabilities).for_each(|i| descriptor(random, table.reborrow().get(i)));
            if store {
                let name = ["hang", "k", "absent", "panic"][random.below(4) as usize];
                params.init_content().init_as::<kernel_store::get_params::Builder<'_>>().set_ref(name);
            }
        }
        5 | 6 => {
            let mut finish = message.init_finish();
            finish.set_question_id(random.below(6));
            finish.set_release_result_caps(random.below(2) == 0);
        }
        7 => {
            let mut release = message.init_release();
            release.set_id(random.below(4));
            release.set_reference_count(random.below(3));
        }
        8 => {
            let mut answer = message.init_return();
            answer.set_answer_id(random.below(4));
            match random.below(5) {
                0 => answer.set_canceled(()),
                1 => answer.init_exception().set_reason("because"),
                2 => answer.set_take_from_other_question(random.below(4)),
                3 => answer.set_results_sent_elsewhere(()),
                _ => descriptor(random, answer.init_results().init_cap_table(1).get(0)),
            }
        }
        9 => {
            let mut resolve = message.init_resolve();
            resolve.set_promise_id(random.below(4));
            match random.below(2) {
                0 => resolve.init_exception().set_reason("because"),
                _ => descriptor(random, resolve.init_cap()),
            }
        }
        10 => {
            let mut disembargo = message.init_disembargo();
            target(random, disembargo.reborrow().init_target());
            match random.below(4) {
                0 => disembargo.init_context().set_receiver_loopback(random.below(3)),
                1 => disembargo.init_context().set_accept(()),
                _ => disembargo.init_context().set_sender_loopback(random.below(3)),
            }
        }
        11 => message.init_bootstrap().set_question_id(random.below(6)),
        _ => match random.below(4) {
            0 => message.init_provide().set_question_id(random.below(6)),
            1 => message.init_unimplemented().init_release().set_id(random.below(3)),
            2 => message.init_abort().set_reason("because"),
            _ => message.init_join().set_question_id(random.below(6)),
        },
    })
}

fn interface<C: capnp::traits::HasTypeId>() -> u64 {
    C::TYPE_ID
}

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
