//! Peers that speak the RPC protocol by hand: one message at a time, well formed or not.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::{cap_descriptor, exception, message as rpc, message_target, return_};
use schema::kernel_store_capnp::{kernel, kernel_store};

use super::SOON;

/// A peer's end of one connection.
pub struct Raw {
    socket: UnixStream,
    read: Vec<u8>,
}

/// What the other side says, as far as a test asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// The answer to a question, with the exports in it.
    Results(u32, Vec<u32>),
    /// A question failed.
    Exception(u32, exception::Type),
    /// It does not know that kind of message.
    Unimplemented,
    /// The connection has ended, or is about to.
    Ended,
    Other,
}

impl Raw {
    pub fn new(socket: UnixStream) -> Raw {
        socket.set_nonblocking(true).unwrap();
        Raw { socket, read: Vec::new() }
    }

    pub fn send(&mut self, fill: impl FnOnce(rpc::Builder<'_>)) {
        // One that has ended is seen when its answer is awaited.
        let _ = self.socket.write_all(&message(fill));
    }

    /// Sends what is a message, or is none.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// Asks for the bootstrap capability; its export.
    pub async fn bootstrap(&mut self, question: u32) -> u32 {
        self.send(|message| message.init_bootstrap().set_question_id(question));
        match self.receive().await {
            Said::Results(id, exports) if id == question && exports.len() == 1 => exports[0],
            said => panic!("{said:?}"),
        }
    }

    /// Calls a method without parameters.
    pub fn call(
        &mut self,
        question: u32,
        interface: u64,
        method: u16,
        target: impl FnOnce(message_target::Builder<'_>),
    ) {
        self.send(|message| {
            let mut call = message.init_call();
            call.set_question_id(question);
            call.set_interface_id(interface);
            call.set_method_id(method);
            target(call.reborrow().init_target());
            call.init_params();
        });
    }

    /// Whether `Kernel.info` on an export is answered.
    pub async fn info(&mut self, question: u32, export: u32) -> Said {
        self.call(question, kernel::Client::TYPE_ID, 0, |mut target| target.set_imported_cap(export));
        self.receive().await
    }

    pub fn finish(&mut self, question: u32, release: bool) {
        self.send(|message| {
            let mut finish = message.init_finish();
            finish.set_question_id(question);
            finish.set_release_result_caps(release);
        });
    }

    pub fn release(&mut self, export: u32, count: u32) {
        self.send(|message| {
            let mut release = message.init_release();
            release.set_id(export);
            release.set_reference_count(count);
        });
    }

    /// The next message.
    pub async fn receive(&mut self) -> Said {
        let start = std::time::Instant::now();
        loop {
            let mut rest = &self.read[..];
            if let Ok(message) = capnp::serialize::read_message(&mut rest, capnp::message::ReaderOptions::new()) {
                let said = look_at(message.get_root().unwrap());
                self.read = rest.to_vec();
                return said;
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Said::Ended,
                Ok(more) => self.read.extend_from_slice(&bytes[..more]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < SOON, "no answer");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(_) => return Said::Ended,
            }
        }
    }
}

fn look_at(message: rpc::Reader<'_>) -> Said {
    match message.which().unwrap() {
        rpc::Return(answer) => {
            let answer = answer.unwrap();
            match answer.which().unwrap() {
                return_::Results(results) => {
                    let exports =
                        results.unwrap().get_cap_table().unwrap().iter().map(|cap| match cap.which().unwrap() {
                            cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => id,
                            _ => panic!("a capability that is not the service's"),
                        });
                    Said::Results(answer.get_answer_id(), exports.collect())
                }
                return_::Exception(e) => Said::Exception(answer.get_answer_id(), e.unwrap().get_type().unwrap()),
                _ => Said::Other,
            }
        }
        rpc::Unimplemented(_) => Said::Unimplemented,
        rpc::Abort(_) => Said::Ended,
        _ => Said::Other,
    }
}

/// Numbers that differ from run to run of a loop, and are the same in each run of the test.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(n)).unwrap()
    }
}

pub fn message(fill: impl FnOnce(rpc::Builder<'_>)) -> Vec<u8> {
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
pub fn any_message(random: &mut Random) -> Vec<u8> {
    message(|message| match random.below(13) {
        0..5 => {
            let mut call = message.init_call();
            call.set_question_id(random.below(6));
            let store = random.below(2) == 0;
            call.set_interface_id(if store { kernel_store::Client::TYPE_ID } else { kernel::Client::TYPE_ID });
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
        // The first one there is was sent before; another ends the connection.
        11 if random.below(8) == 0 => message.init_bootstrap().set_question_id(random.below(6)),
        11 => message.init_release().set_id(random.below(4)),
        _ => match random.below(4) {
            0 => message.init_provide().set_question_id(random.below(6)),
            1 => message.init_unimplemented().init_release().set_id(random.below(3)),
            2 => message.init_abort().set_reason("because"),
            _ => message.init_join().set_question_id(random.below(6)),
        },
    })
}
