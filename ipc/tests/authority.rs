//! A peer that holds one narrow capability and speaks the protocol by hand: nothing it says reaches what it was not handed,
//! takes from others what is theirs, or widens what it has. Beside it, in the same process, others hold more.

mod common;

use std::os::unix::net::UnixStream;

use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{cap_descriptor, exception::Type, message_target};
use common::{
    raw::{Random, Raw, Said, any_message, message},
    *,
};
use ipc::{Code, Connection, Limits, Peer};
use proptest::prelude::*;
use schema::kernel_store_capnp::{kernel, kernel_store};
use testrig::{handed::foreign, interfaces::schema};

/// Somebody who holds the whole store and one kernel of it, which is export 0 and 1 of *that* connection.
struct Rich {
    service: Service,
    connection: Connection,
    store: kernel_store::Client,
    hidden: kernel::Client,
}

impl Rich {
    async fn new() -> Rich {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let hidden = get_kernel(&connection, &store, "hidden").await.unwrap();
        Rich { service, connection, store, hidden }
    }

    /// Another one, whose link leads to the kernel "narrow" only; and that kernel's export.
    async fn narrow(&self) -> (Raw, u32) {
        let (mut raw, _task) = self.narrow_link();
        let export = raw.bootstrap(0).await;
        (raw, export)
    }

    fn narrow_link(&self) -> (Raw, tokio::task::JoinHandle<Result<(), ipc::Error>>) {
        let kernel = self.service.kernel(Peer::this_process(), "narrow");
        let (socket, task) = serve_pair_with(kernel.client, Limits::default());
        (Raw::new(socket), task)
    }

    /// That nothing but "narrow" was called, and that what the rich one holds works as before.
    async fn is_unharmed(&self) {
        let probe = &self.service.probe;
        assert_eq!(probe.store_calls.get(), 1, "somebody called the store");
        assert!(probe.called.borrow().iter().all(|name| name == "narrow"), "{:?}", probe.called.borrow());
        let info = self.connection.call("ask", SOON, self.hidden.info_request().send()).await.unwrap();
        assert_eq!(info.get().unwrap().get_info().unwrap().get_alias().unwrap(), "hidden");
        get_kernel(&self.connection, &self.store, "k").await.unwrap();
        count(&probe.store_calls, -1);
        probe.called.borrow_mut().clear();
    }
}

fn failed(question: u32) -> Said {
    Said::Exception(question, Type::Failed)
}

#[test]
fn a_call_on_an_export_that_was_not_handed_over_ends_the_connection_and_reaches_nothing() {
    run(async {
        let rich = Rich::new().await;
        for wrong in [1, 2, 3, 63, 64, 4096, 1 << 31, u32::MAX] {
            let (mut raw, export) = rich.narrow().await;
            assert_eq!(raw.info(1, export).await, Said::Results(1, vec![]));
            assert_eq!(raw.info(2, wrong).await, Said::Ended, "{wrong}");
            rich.is_unharmed().await;
        }
    });
}

#[test]
fn a_call_on_the_answer_to_a_question_that_was_never_asked_or_is_finished_fails() {
    run(async {
        let rich = Rich::new().await;
        let (mut raw, export) = rich.narrow().await;
        let info = |raw: &mut Raw, question: u32, of: u32| {
            raw.call(question, kernel::Client::TYPE_ID, 0, |target| target.init_promised_answer().set_question_id(of));
        };
        // Question 0 was the bootstrap: its answer is the kernel.
        info(&mut raw, 1, 0);
        assert_eq!(raw.receive().await, Said::Results(1, vec![]));
        for (question, of) in [(2, 7), (3, 4096), (4, u32::MAX)] {
            info(&mut raw, question, of);
            assert_eq!(raw.receive().await, failed(question));
        }
        raw.finish(0, false);
        info(&mut raw, 5, 0);
        assert_eq!(raw.receive().await, failed(5));
        // The capability itself was not released with the question.
        assert_eq!(raw.info(6, export).await, Said::Results(6, vec![]));
        rich.is_unharmed().await;
    });
}

#[test]
fn a_connection_gets_the_bootstrap_capability_once() {
    run(async {
        let rich = Rich::new().await;
        for let_go in [false, true] {
            let (mut raw, export) = rich.narrow().await;
            assert_eq!(raw.info(1, export).await, Said::Results(1, vec![]));
            if let_go {
                raw.finish(0, true);
            }
            raw.send(|message| message.init_bootstrap().set_question_id(9));
            assert_eq!(raw.receive().await, Said::Exception(9, Type::Failed));
            raw.call(10, kernel::Client::TYPE_ID, 0, |target| target.init_promised_answer().set_question_id(9));
            assert_eq!(raw.receive().await, Said::Exception(10, Type::Failed));
            // The call failed, and nothing else: what it holds it goes on holding.
            if !let_go {
                assert_eq!(raw.info(11, export).await, Said::Results(11, vec![]));
            }
            rich.is_unharmed().await;
        }
    });
}

/// A connection to a store that holds one kernel of it, with a second hand on its socket: whoever takes the process over.
struct TakenOver {
    service: Service,
    connection: Connection,
    kernel: kernel::Client,
    socket: UnixStream,
}

impl TakenOver {
    async fn new(narrow: bool) -> TakenOver {
        let service = Service::new();
        let (ours, _task) = serve_pair(&service, Limits::default());
        let socket = ours.try_clone().unwrap();
        let connection = Connection::from_fd(ours.into()).unwrap();
        let kernel = get_kernel(&connection, &connection.bootstrap(), "narrow").await.unwrap();
        if narrow {
            connection.narrow();
        }
        settle().await;
        TakenOver { service, connection, kernel, socket }
    }

    /// How many calls reach the store if this is sent.
    async fn attack(&self, messages: impl IntoIterator<Item = Vec<u8>>) -> usize {
        use std::io::Write;
        let before = self.service.probe.store_calls.get();
        messages.into_iter().for_each(|bytes| drop((&self.socket).write_all(&bytes)));
        settle().await;
        self.service.probe.store_calls.get() - before
    }
}

/// `KernelStore.get`.
fn call_store(question: u32, target: impl FnOnce(message_target::Builder<'_>)) -> Vec<u8> {
    message(|message| {
        let mut call = message.init_call();
        call.set_question_id(question);
        call.set_interface_id(kernel_store::Client::TYPE_ID);
        call.set_method_id(1);
        target(call.reborrow().init_target());
        call.init_params().init_content().init_as::<kernel_store::get_params::Builder<'_>>().set_ref("stolen");
    })
}

#[test]
fn who_has_given_up_the_bootstrap_capability_cannot_have_it_back_by_any_message() {
    run(async {
        let imported = |id: u32| call_store(1000 + id, move |mut target| target.set_imported_cap(id));
        let answer = |id: u32| call_store(2000 + id, move |target| target.init_promised_answer().set_question_id(id));
        let again = || {
            let ask = message(|message| message.init_bootstrap().set_question_id(3000));
            [ask, call_store(3001, |target| target.init_promised_answer().set_question_id(3000))]
        };
        // Who still holds it, as the answer to its first question, is one that can.
        assert_eq!(TakenOver::new(false).await.attack([answer(0)]).await, 1);

        for export in 0..8 {
            assert_eq!(TakenOver::new(true).await.attack([imported(export)]).await, 0, "export {export}");
        }
        assert_eq!(TakenOver::new(true).await.attack((0..64).map(answer)).await, 0);
        assert_eq!(TakenOver::new(true).await.attack(again()).await, 0);

        // What it got before goes on being good; what it gave up says so.
        let narrow = TakenOver::new(true).await;
        narrow.connection.call("ask", SOON, narrow.kernel.info_request().send()).await.unwrap();
        let refused = get_kernel(&narrow.connection, &narrow.connection.bootstrap(), "k").await.err().unwrap();
        assert_eq!(refused.code, Code::PermissionDenied);
        narrow.connection.call("ask", SOON, narrow.kernel.info_request().send()).await.unwrap();
    });
}

#[test]
fn a_service_gets_nothing_from_its_client_by_asking_it_for_a_bootstrap_capability() {
    run(async {
        let rich = Rich::new().await;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection::from_fd(ours.into()).unwrap();
        let mut raw = Raw::new(theirs);
        // The client's own question.
        assert_eq!(raw.receive().await, Said::Other);
        raw.send(|message| message.init_bootstrap().set_question_id(0));
        let export = match raw.receive().await {
            Said::Results(0, exports) => exports[0],
            said => panic!("{said:?}"),
        };
        for (question, (interface, method)) in (1..).zip(schema().methods()) {
            raw.call(question, interface, method, |mut target| target.set_imported_cap(export));
            assert_eq!(raw.receive().await, failed(question));
        }
        assert_eq!(raw.info(9999, export + 1).await, Said::Ended);
        drop(connection);
        rich.is_unharmed().await;
    });
}

#[test]
fn the_methods_of_every_other_interface_are_unknown_to_a_narrow_object() {
    run(async {
        let rich = Rich::new().await;
        let (mut raw, export) = rich.narrow().await;
        for (question, (interface, method)) in (1..).zip(foreign(kernel::Client::TYPE_ID)) {
            raw.call(question, interface, method, |mut target| target.set_imported_cap(export));
            assert_eq!(raw.receive().await, Said::Exception(question, Type::Unimplemented), "{interface:x} {method}");
            raw.finish(question, true);
        }
        assert_eq!(raw.info(9999, export).await, Said::Results(9999, vec![]));
        rich.is_unharmed().await;
    });
}

#[test]
fn releasing_what_one_does_not_hold_ends_the_connection_and_releases_nothing_of_others() {
    run(async {
        let rich = Rich::new().await;
        let kernels = || rich.service.probe.kernels.get();
        // The rich one's kernel has the number 1 on its own connection.
        for (export, references) in [(1, 1), (2, 1), (u32::MAX, 1), (0, 2), (0, u32::MAX)] {
            let (mut raw, own) = rich.narrow().await;
            assert_eq!((own, kernels()), (0, 2));
            raw.release(export, references);
            assert_eq!(raw.receive().await, Said::Ended, "{export} {references}");
            drop(raw);
            eventually(|| kernels() == 1).await;
            rich.is_unharmed().await;
            eventually(|| kernels() == 1).await;
        }
    });
}

#[test]
fn a_capability_that_was_released_is_gone_for_whoever_released_it_and_for_nobody_else() {
    run(async {
        let rich = Rich::new().await;
        let narrow = rich.service.kernel(Peer::this_process(), "narrow");
        let link = || Raw::new(serve_pair_with(narrow.clone().client, Limits::default()).0);
        let (mut first, mut second) = (link(), link());
        let (export, other) = (first.bootstrap(0).await, second.bootstrap(0).await);
        // The question is finished, and its capability is kept.
        first.finish(0, false);
        assert_eq!(first.info(2, export).await, Said::Results(2, vec![]));
        first.release(export, 1);
        assert_eq!(first.info(3, export).await, Said::Ended);
        assert_eq!(second.info(1, other).await, Said::Results(1, vec![]));
        rich.is_unharmed().await;
    });
}

#[test]
fn finishing_a_question_that_one_did_not_ask_cancels_nobody_elses() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let hanging = connection.call("hang", SOON, get(&store, "hang"));
        let attack = async {
            eventually(|| service.probe.hanging.get() == 1).await;
            let kernel = service.kernel(Peer::this_process(), "narrow");
            let mut raw = Raw::new(serve_pair_with(kernel.client, Limits::default()).0);
            let export = raw.bootstrap(70_000).await;
            (0..200).chain([u32::MAX]).for_each(|question| raw.finish(question, true));
            // It hurts not even itself.
            assert_eq!(raw.info(1, export).await, Said::Results(1, vec![]));
            assert_eq!(service.probe.hanging.get(), 1);
            service.probe.release.notify_one();
        };
        let (answer, ()) = tokio::join!(hanging, attack);
        answer.unwrap();
    });
}

#[test]
fn messages_about_third_parties_are_not_understood_and_the_connection_goes_on() {
    run(async {
        let rich = Rich::new().await;
        let (mut raw, export) = rich.narrow().await;
        raw.send(|message| {
            let mut provide = message.init_provide();
            provide.set_question_id(1);
            provide.init_target().set_imported_cap(export);
        });
        assert_eq!(raw.receive().await, Said::Unimplemented);
        raw.send(|message| message.init_accept().set_question_id(2));
        assert_eq!(raw.receive().await, Said::Unimplemented);
        raw.send(|message| {
            let mut join = message.init_join();
            join.set_question_id(3);
            join.init_target().set_imported_cap(1);
        });
        assert_eq!(raw.receive().await, Said::Unimplemented);
        assert_eq!(raw.info(4, export).await, Said::Results(4, vec![]));
        rich.is_unharmed().await;
    });
}

#[test]
fn a_forged_resolve_return_or_disembargo_reaches_nothing() {
    run(async {
        let rich = Rich::new().await;
        // Resolving a promise that was never made is ignored, whatever to: it may have been dropped meanwhile.
        let (mut raw, export) = rich.narrow().await;
        for (promise, hosted) in [(0, 0), (1, 1), (7, u32::MAX)] {
            raw.send(|message| {
                let mut resolve = message.init_resolve();
                resolve.set_promise_id(promise);
                resolve.init_cap().set_receiver_hosted(hosted);
            });
        }
        assert_eq!(raw.info(1, export).await, Said::Results(1, vec![]));
        // The others end the connection: embargoes and questions that do not exist, and an object that leads nowhere else.
        let forged: [fn(capnp_rpc::rpc_capnp::message::Builder<'_>); 5] = [
            |message| message.init_disembargo().init_context().set_receiver_loopback(0),
            |message| {
                let mut disembargo = message.init_disembargo();
                disembargo.reborrow().init_target().set_imported_cap(0);
                disembargo.init_context().set_sender_loopback(0);
            },
            |message| {
                let mut disembargo = message.init_disembargo();
                disembargo.reborrow().init_target().set_imported_cap(1);
                disembargo.init_context().set_sender_loopback(0);
            },
            |message| message.init_return().init_results().init_cap_table(1).get(0).set_receiver_hosted(0),
            |message| message.init_return().set_take_from_other_question(0),
        ];
        for forged in forged {
            let (mut raw, _) = rich.narrow().await;
            raw.send(forged);
            assert_eq!(raw.receive().await, Said::Ended);
            rich.is_unharmed().await;
        }
    });
}

#[test]
fn a_capability_that_was_never_exported_cannot_be_passed_as_ones_own() {
    run(async {
        let rich = Rich::new().await;
        // `list` calls `info` of the kernel that it is given.
        let pass = |raw: &mut Raw, question: u32, export: u32, fill: &dyn Fn(cap_descriptor::Builder<'_>)| {
            raw.send(|message| {
                let mut call = message.init_call();
                call.set_question_id(question);
                call.set_interface_id(kernel_store::Client::TYPE_ID);
                call.set_method_id(2);
                call.reborrow().init_target().set_imported_cap(export);
                let mut params = call.init_params();
                fill(params.reborrow().init_cap_table(1).get(0));
                // A pointer to capability 0 of the table; which one stands for it here goes nowhere.
                let mut table = Vec::new();
                let mut content = params.reborrow().init_content();
                content.imbue_mut(&mut table);
                content.set_as_capability(rich.hidden.clone().client.hook);
            });
        };
        let (socket, _task) = serve_pair(&rich.service, Limits::default());
        let mut raw = Raw::new(socket);
        let store = raw.bootstrap(0).await;
        raw.call(1, kernel_store::Client::TYPE_ID, 1, |mut target| target.set_imported_cap(store));
        let Said::Results(1, exports) = raw.receive().await else { panic!("no kernel") };
        // Its own kernel it may pass back.
        pass(&mut raw, 2, store, &|mut to| to.set_receiver_hosted(exports[0]));
        assert_eq!(raw.receive().await, Said::Results(2, vec![]));
        assert_eq!(rich.service.probe.infos.get(), 1);
        for (question, wrong) in [(3, 2), (4, 3), (5, 4096), (6, u32::MAX)] {
            pass(&mut raw, question, store, &|mut to| to.set_receiver_hosted(wrong));
            assert_eq!(raw.receive().await, failed(question), "{wrong}");
        }
        for (question, wrong) in [(7, 99), (8, u32::MAX)] {
            pass(&mut raw, question, store, &|to| to.init_receiver_answer().set_question_id(wrong));
            assert_eq!(raw.receive().await, failed(question), "{wrong}");
        }
        assert_eq!(rich.service.probe.infos.get(), 1, "a forged capability led somewhere");
        drop(raw);
        // Its calls on the store were its own.
        rich.service.probe.store_calls.set(1);
        rich.service.probe.called.borrow_mut().clear();
        rich.is_unharmed().await;
    });
}

/// What a peer may send: well-formed messages about small numbers, the same with some bytes changed, and any bytes.
fn bytes(seed: u64, damage: &[(prop::sample::Index, u8)], raw: Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = raw.unwrap_or_else(|| any_message(&mut Random(seed)));
    for (at, to) in damage {
        // Not the segment table, or the message would only be of another length: that is what the raw bytes are for.
        if let Some(byte) = bytes.get_mut(8..).filter(|rest| !rest.is_empty()).map(|rest| at.get_mut(rest)) {
            *byte = *to;
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    /// Whatever a peer sends that was handed one kernel: nobody else's object is called or released, and the process goes on.
    #[test]
    fn no_sequence_of_messages_reaches_an_object_that_was_not_exported(
        messages in prop::collection::vec(
            (
                any::<u64>(),
                prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
                prop::option::weighted(0.05, prop::collection::vec(any::<u8>(), 0..64)),
            ),
            1..40,
        ),
        passed_on in any::<bool>(),
    ) {
        use std::io::{Read, Write};
        run(async {
            let rich = Rich::new().await;
            // Of this vat, or what the rich one has from elsewhere and passes on.
            let narrow = if passed_on {
                get_kernel(&rich.connection, &rich.store, "narrow").await.unwrap()
            } else {
                rich.service.kernel(Peer::this_process(), "narrow")
            };
            let (mut socket, task) = serve_pair_with(narrow.clone().client, Limits::default());
            socket.set_nonblocking(true).unwrap();
            let _ = socket.write_all(&message(|message| message.init_bootstrap().set_question_id(0)));
            for (at, (seed, damage, raw)) in messages.into_iter().enumerate() {
                if socket.write_all(&bytes(seed, &damage, raw)).is_err() {
                    break;
                }
                if at % 3 == 0 {
                    tokio::task::yield_now().await;
                    let _ = socket.read(&mut [0; 4096]);
                }
            }
            tokio::task::yield_now().await;
            drop(socket);
            let _ = tokio::time::timeout(SOON, task).await.expect("a connection outlives its peer").unwrap();
            // "narrow" itself is not lost to who offered it, "hidden" was not touched, the store was not called.
            assert_eq!(rich.service.probe.kernels.get(), 2);
            count(&rich.service.probe.store_calls, -isize::from(passed_on));
            rich.is_unharmed().await;
        });
    }
}
