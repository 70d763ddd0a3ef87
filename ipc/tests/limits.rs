//! What one peer may cost, each limit from both sides.

mod common;

use std::{
    io::Write,
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use capnp::capability::RemotePromise as Promise;
use capnp_rpc::rpc_capnp::{exception::Type, message as rpc};
use common::*;
use ipc::{Code, Connection, Error, Fault, Limits};
use schema::kernel_store_capnp::{kernel::info_results, kernel_store, kernel_store::get_results};

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

/// Bytes of one RPC message.
fn message(fill: impl FnOnce(rpc::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// Bytes of a call on the bootstrap capability, with `capabilities` null capabilities in its table.
fn call(id: u32, capabilities: u32) -> Vec<u8> {
    message(|message| {
        let mut call = message.init_call();
        call.set_question_id(id);
        call.reborrow().init_target().set_imported_cap(0);
        let mut table = call.init_params().init_cap_table(capabilities);
        (0..capabilities).for_each(|i| table.reborrow().get(i).set_none(()));
    })
}

fn bootstrap(id: u32) -> Vec<u8> {
    message(|message| message.init_bootstrap().set_question_id(id))
}

#[test]
fn a_message_within_the_limit_is_read_and_a_larger_one_ends_the_connection() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        // The limit is 64 Ki words, envelope included.
        let kernel = get_kernel(&connection, &store, &"k".repeat(65_536 * 8 - 1024)).await.unwrap();
        assert_eq!(service.probe.kernels.get(), 1);
        drop(kernel);

        let fault = get_kernel(&connection, &store, &"k".repeat(65_536 * 8)).await.map(drop).unwrap_err();
        assert!(fault.to_string().contains("too large"), "{fault}");
        connection.closed().await;
        eventually(|| service.probe.stores.get() == 0).await;
    });
}

#[test]
fn as_many_calls_as_the_limit_run_at_one_time_and_the_next_waits_for_one_to_return() {
    run(async {
        let service = Service::new();
        let (_connection, store) = connect_pair(&service, limits(|l| l.calls_in_flight = 4));
        let calls: Vec<_> = (0..6).map(|_| get(&store, "hang")).collect();
        eventually(|| service.probe.hanging.get() == 4).await;
        settle().await;
        assert_eq!(service.probe.most_hanging.get(), 4);

        service.probe.release.notify_one();
        let mut answers: Vec<_> = calls.into_iter().map(|call| call.promise).collect();
        let (first, _, rest) = futures::future::select_all(answers.drain(..)).await;
        first.unwrap();
        eventually(|| service.probe.hanging.get() == 4).await;
        settle().await;
        assert_eq!(service.probe.most_hanging.get(), 4);
        for _ in rest {
            service.probe.release.notify_one();
            settle().await;
        }
        eventually(|| service.probe.hanging.get() == 0).await;
    });
}

#[test]
fn the_default_is_sixty_four_calls() {
    run(async {
        let service = Service::new();
        let (_connection, store) = connect_pair(&service, Limits::default());
        let _calls: Vec<_> = (0..80).map(|_| get(&store, "hang")).collect();
        eventually(|| service.probe.hanging.get() == 64).await;
        settle().await;
        assert_eq!(service.probe.most_hanging.get(), 64);
    });
}

#[test]
fn a_cancelled_call_gives_its_place_to_another() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, limits(|l| l.calls_in_flight = 2));
        let mut calls: Vec<_> = (0..2).map(|_| get(&store, "hang")).collect();
        eventually(|| service.probe.hanging.get() == 2).await;
        calls.pop();
        eventually(|| service.probe.hanging.get() == 1).await;
        get_kernel(&connection, &store, "linux").await.unwrap();
    });
}

#[test]
fn a_peer_that_goes_while_a_call_of_it_is_held_back_is_noticed() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, limits(|l| l.calls_in_flight = 2));
        let calls: Vec<_> = (0..5).map(|_| get(&store, "hang")).collect();
        eventually(|| service.probe.hanging.get() == 2).await;
        settle().await;
        drop((calls, store, connection));
        eventually(|| service.probe.hanging.get() == 0 && service.probe.stores.get() == 0).await;
        assert_eq!(service.probe.most_hanging.get(), 2);
    });
}

#[test]
fn large_calls_share_a_budget_of_memory_and_one_always_runs() {
    run(async {
        let service = Service::new();
        let (_connection, store) = connect_pair(&service, limits(|l| l.call_words = 100));
        let first = get(&store, "hang");
        eventually(|| service.probe.hanging.get() == 1).await;
        let second = get(&store, &"k".repeat(4000));
        settle().await;
        assert_eq!(service.probe.kernels.get(), 0);
        service.probe.release.notify_one();
        first.promise.await.unwrap();
        second.promise.await.unwrap();
    });
}

#[test]
fn a_peer_that_leaves_its_answers_unread_is_served_no_more_and_then_disconnected() {
    run(async {
        let service = Service::new();
        let stall = Duration::from_millis(400);
        let limits = limits(|l| (l.unread_words, l.calls_in_flight, l.stall) = (20_000, 1000, stall));
        let (mut socket, task) = serve_pair(&service, limits);
        socket.set_nonblocking(true).unwrap();
        let mut requests = bootstrap(0);
        // Each wants a kernel of a long name, and then of its many bytes of information.
        let name = "k".repeat(40_000);
        for id in 1..1000 {
            requests.extend(message(|message| {
                let mut call = message.init_call();
                call.set_question_id(2 * id);
                call.set_interface_id(interface::<schema::kernel_store_capnp::kernel_store::Client>());
                call.set_method_id(1);
                call.reborrow().init_target().init_promised_answer().set_question_id(0);
                let params = call.init_params().init_content();
                params
                    .init_as::<schema::kernel_store_capnp::kernel_store::get_params::Builder<'_>>()
                    .set_ref(&name[..]);
            }));
            requests.extend(message(|message| {
                let mut call = message.init_call();
                call.set_question_id(2 * id + 1);
                call.set_interface_id(interface::<schema::kernel_store_capnp::kernel::Client>());
                call.set_method_id(0);
                let mut answer = call.reborrow().init_target().init_promised_answer();
                answer.set_question_id(2 * id);
                answer.init_transform(1).get(0).set_get_pointer_field(0);
                call.init_params();
            }));
        }
        let mut sent = 0;
        let start = Instant::now();
        while !task.is_finished() && start.elapsed() < SOON {
            sent += socket.write(&requests[sent..]).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // 20 000 words are four answers of 40 000 bytes; the kernel's socket buffers hold a few more.
        assert!((1..30).contains(&service.probe.infos.get()), "{} answers were made", service.probe.infos.get());
        let Error::Connection(fault) = task.await.unwrap().unwrap_err() else { panic!("another error") };
        assert_eq!(fault.code, Code::Exhausted);
        assert!(fault.why.contains("unread"), "{fault}");
        assert_eq!((service.probe.kernels.get(), service.probe.stores.get()), (0, 0));
    });
}

fn interface<C: capnp::traits::HasTypeId>() -> u64 {
    C::TYPE_ID
}

#[test]
fn a_slow_reader_within_the_stall_time_gets_every_answer() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, limits(|l| l.unread_words = 1));
        for _ in 0..3 {
            let kernel = get_kernel(&connection, &store, &"k".repeat(100_000)).await.unwrap();
            let calls: Vec<_> = (0..20).map(|_| kernel.info_request().send()).collect();
            for call in calls {
                connection.call("ask", SOON, call).await.unwrap();
            }
        }
    });
}

#[test]
fn a_peer_may_hold_answers_up_to_the_limit_and_one_more_fails_alone() {
    run(async {
        let service = Service::new();
        // Each unfinished answer costs 128 words on top of its own size, here 12.
        let (connection, store) = connect_pair(&service, limits(|l| l.held_words = 10 * 140));
        let mut held = Vec::new();
        // The answer to the bootstrap question is the tenth.
        for _ in 0..9 {
            held.push(connection.call("get", SOON, get(&store, "k")).await.unwrap());
        }
        for _ in 0..100 {
            let fault = connection.call("get", SOON, get(&store, "k")).await.map(drop).unwrap_err();
            assert_eq!(fault.code, Code::Exhausted);
            assert!(fault.why.contains("not finished"), "{fault}");
        }
        // What was made for those has gone again; what is held is as it was, and a finished one makes room.
        eventually(|| service.probe.kernels.get() == 9).await;
        for answer in &held {
            let kernel = answer.get().unwrap().get_kernel().unwrap();
            connection.call("look", SOON, kernel.info_request().send()).await.unwrap();
        }
        held.pop();
        held.push(connection.call("get", SOON, get(&store, "k")).await.unwrap());
    });
}

#[test]
fn answers_that_are_finished_are_not_held() {
    run(async {
        let (connection, store) = connect_pair(&Service::new(), limits(|l| l.held_words = 3 * 140));
        for _ in 0..100 {
            get_kernel(&connection, &store, "k").await.unwrap();
        }
    });
}

#[test]
fn a_peer_may_hold_as_many_capabilities_as_the_limit_and_one_more_fails_its_call_alone() {
    run(async {
        let service = Service::new();
        // capnp-rpc releases its reference to the store and goes on calling it as the answer to its bootstrap question.
        let (connection, store) = connect_pair(&service, limits(|l| l.capabilities = 8));
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(get_kernel(&connection, &store, "k").await.unwrap());
        }
        for _ in 0..20 {
            // Released ones do not count.
            held.pop();
            settle_briefly().await;
            held.push(get_kernel(&connection, &store, "k").await.unwrap());
        }
        for _ in 0..100 {
            let fault = get_kernel(&connection, &store, "k").await.map(drop).unwrap_err();
            assert_eq!(fault.code, Code::Exhausted);
            assert!(fault.why.contains("8 capabilities"), "{fault}");
        }
        // What was made for those has gone again, and calls that take no more capabilities are as before.
        eventually(|| service.probe.kernels.get() == 8).await;
        for kernel in &held {
            connection.call("look", SOON, kernel.info_request().send()).await.unwrap();
        }
    });
}

/// `count` calls that wait, and a call on the answer of each; the first ones' promises, if they are kept.
async fn pipelined(
    service: &Service,
    store: &kernel_store::Client,
    count: usize,
) -> (Vec<Promise<get_results::Owned>>, Vec<Promise<info_results::Owned>>) {
    let pair = || {
        let first = get(store, "hang");
        let second = first.pipeline.get_kernel().info_request().send();
        (first, second)
    };
    let pairs = (0..count).map(|_| pair()).unzip();
    eventually(|| service.probe.hanging.get() == count).await;
    settle_briefly().await;
    pairs
}

#[test]
fn a_call_on_an_answer_that_is_too_much_is_done_if_it_came_before_that() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, limits(|l| l.capabilities = 2));
        let _held = get_kernel(&connection, &store, "k").await.unwrap();
        settle_briefly().await;
        let _too = get_kernel(&connection, &store, "k").await.unwrap();
        let (mut first, mut second) = pipelined(&service, &store, 1).await;
        service.probe.release.notify_one();
        let first = connection.call("get", SOON, first.remove(0)).await.map(drop).unwrap_err();
        assert_eq!(first.code, Code::Exhausted);
        connection.call("look", SOON, second.remove(0)).await.unwrap();
        eventually(|| service.probe.kernels.get() == 2).await;
        // One that comes after that is told the same as the first.
        let first = get(&store, "k");
        settle_briefly().await;
        let late = first.pipeline.get_kernel().info_request().send();
        let fault = connection.call("look", SOON, late).await.map(drop).unwrap_err();
        assert!(fault.code == Code::Exhausted && fault.why.contains("2 capabilities"), "{fault}");
    });
}

/// What `allocate().getLease().release()` is in C++: the first answer is dropped while the call on it is under way.
#[test]
fn a_peer_that_pipelines_and_drops_its_first_answer_early_is_served_without_end() {
    run(async {
        let service = Service::new();
        // Any one that stayed on the book would soon be one too many.
        let tight = limits(|l| (l.held_words, l.capabilities, l.cancelled_calls) = (8 * 140, 8, 8));
        let (connection, store) = connect_pair(&service, tight);
        for _ in 0..100 {
            let (first, second) = pipelined(&service, &store, 4).await;
            drop(first);
            settle_briefly().await;
            (0..4).for_each(|_| service.probe.release.notify_one());
            for call in second {
                connection.call("look", SOON, call).await.unwrap();
            }
        }
        eventually(|| service.probe.kernels.get() == 0).await;
    });
}

async fn settle_briefly() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

#[test]
fn a_call_with_as_many_capabilities_as_the_limit_is_taken_and_one_with_more_fails_alone() {
    run(async {
        let service = Service::new();
        let (socket, _task) = serve_pair(&service, Limits::default());
        let mut raw = raw::Raw::new(socket);
        raw.bootstrap(0).await;
        for (id, capabilities, type_) in
            [(1, 64, Type::Unimplemented), (2, 65, Type::Overloaded), (3, 64, Type::Unimplemented)]
        {
            raw.send_bytes(&call(id, capabilities));
            assert_eq!(raw.receive().await, raw::Said::Exception(id, type_));
        }
    });
}

#[test]
fn as_many_calls_as_the_limit_may_be_cancelled_and_after_that_calls_fail_and_what_is_held_stays() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, limits(|l| l.cancelled_calls = 10));
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(get_kernel(&connection, &store, "k").await.unwrap());
            let call = get(&store, "hang");
            eventually(|| service.probe.hanging.get() == 1).await;
            drop(call);
            eventually(|| service.probe.hanging.get() == 0).await;
        }
        for _ in 0..100 {
            let fault = get_kernel(&connection, &store, "k").await.map(drop).unwrap_err();
            assert_eq!(fault.code, Code::Exhausted);
            assert!(fault.why.contains("10 calls of this connection were cancelled"), "{fault}");
        }
        assert_eq!(service.probe.kernels.get(), 10);
        held.pop();
        eventually(|| service.probe.kernels.get() == 9).await;
    });
}

#[test]
fn garbage_ends_its_own_connection_and_no_other() {
    run(async {
        let served = Served::new(Limits::default(), None);
        let (connection, store) = served.connect().await;
        let mut seed = 1_u32;
        for length in [1, 8, 9, 16, 64, 333, 4096] {
            for _ in 0..20 {
                let mut socket = UnixStream::connect(&served.path).unwrap();
                let bytes: Vec<u8> = (0..length)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        seed.to_be_bytes()[0]
                    })
                    .collect();
                socket.write_all(&bytes).unwrap();
                drop(socket);
            }
            get_kernel(&connection, &store, "k").await.unwrap();
        }
    });
}

/// Whether a connection of this process is served, and it.
async fn try_connect(path: &std::path::Path) -> (Connection, Result<(), Fault>) {
    let connection = Connection::connect(path).await.unwrap();
    let store = connection.bootstrap();
    let served = get_kernel(&connection, &store, "k").await.map(drop);
    (connection, served)
}

#[test]
fn connections_past_the_total_are_refused_at_once_and_told_who_has_them() {
    run(async {
        let served = Served::new(limits(|l| (l.connections, l.connections_reserved) = (2, 0)), None);
        let (first, second) = (try_connect(&served.path).await, try_connect(&served.path).await);
        assert_eq!((first.1, second.1), (Ok(()), Ok(())));
        let (third, refused) = try_connect(&served.path).await;
        let fault = refused.unwrap_err();
        let pid = std::process::id();
        assert_eq!(fault.code, Code::Exhausted);
        assert!(fault.why.contains("2 connections") && fault.why.contains(&format!("process {pid}")), "{fault}");
        // Its lane as well, and that says so.
        let lane = third.deposit(memfd(b"").as_fd()).await.map(drop).unwrap_err();
        assert!(lane.code == Code::Exhausted && lane.why.contains("lanes"), "{lane}");
        drop(first.0);
        settle().await;
        assert_eq!(try_connect(&served.path).await.1, Ok(()));
    });
}

#[test]
fn the_last_connections_are_for_processes_that_have_none() {
    run(async {
        let served = Served::new(limits(|l| (l.connections, l.connections_reserved) = (3, 1)), None);
        let (first, second) = (try_connect(&served.path).await, try_connect(&served.path).await);
        assert_eq!((first.1, second.1), (Ok(()), Ok(())));
        assert_eq!(try_connect(&served.path).await.1.unwrap_err().code, Code::Exhausted);
        // Another process is served: python3 asks for the bootstrap capability and gets an answer rather than an Abort.
        let ask = message(|message| message.init_bootstrap().set_question_id(7));
        let answer = another_process(&served.path, &ask).await;
        let answer = capnp::serialize::read_message(&answer[..], capnp::message::ReaderOptions::new()).unwrap();
        assert!(matches!(answer.get_root::<rpc::Reader<'_>>().unwrap().which(), Ok(rpc::Return(_))));
    });
}

/// What another process hears that connects and says `bytes`.
async fn another_process(path: &std::path::Path, bytes: &[u8]) -> Vec<u8> {
    const SCRIPT: &str = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.settimeout(10)\ns.connect(sys.argv[1])\n\
        s.send(bytes.fromhex(sys.argv[2]))\nprint(s.recv(4096).hex())";
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut child = std::process::Command::new("python3");
    let child = child.args(["-c", SCRIPT]).arg(path).arg(hex).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let output = std::thread::spawn(move || child.wait_with_output().unwrap());
    eventually(|| output.is_finished()).await;
    let text = String::from_utf8(output.join().unwrap().stdout).unwrap();
    let digits = text.trim().as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_process_has_as_many_connections_as_the_limit_and_the_next_is_refused_until_one_ends_root_s_too() {
    run(async {
        let served = Served::new(limits(|l| l.connections_per_process = 2), None);
        let (first, second) = (try_connect(&served.path).await, try_connect(&served.path).await);
        assert_eq!((first.1, second.1), (Ok(()), Ok(())));
        let fault = try_connect(&served.path).await.1.unwrap_err();
        assert_eq!(fault.code, Code::Exhausted);
        assert!(fault.why.contains(&format!("process {} has 2 connections", std::process::id())), "{fault}");
        drop(first.0);
        settle().await;
        assert_eq!(try_connect(&served.path).await.1, Ok(()));
    });
}

#[test]
fn a_user_has_as_many_connections_as_the_limit_and_the_next_is_refused_until_one_ends() {
    run(async {
        let served = Served::new(limits(|l| l.connections_per_user = 2), None);
        let path = served.path.clone();
        let other = as_user(4712, move || async move {
            let (first, second) = (try_connect(&path).await, try_connect(&path).await);
            assert_eq!((first.1, second.1), (Ok(()), Ok(())));
            assert_eq!(try_connect(&path).await.1.unwrap_err().code, Code::Exhausted);
            drop(first.0);
            settle().await;
            assert_eq!(try_connect(&path).await.1, Ok(()));
        });
        eventually(|| other.is_finished()).await;
        other.join().unwrap();

        // Root is exempt.
        if rustix::process::geteuid().is_root() {
            let mut held = Vec::new();
            for _ in 0..4 {
                let (connection, served) = try_connect(&served.path).await;
                assert_eq!(served, Ok(()));
                held.push(connection);
            }
        }
    });
}
