//! A real service under messages that make sense now and then: calls of any method on whatever it has given out, with any arguments, and
//! bytes of them changed. Speaks to a socket by hand; knows nothing of the service.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use capnp_rpc::rpc_capnp::message as rpc;
use schema::{host_capnp::host, network_capnp::port_info};

use crate::handed::INTERFACES;

/// Numbers that are the same in each run of the test.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(n)).unwrap()
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(u32::try_from(all.len()).unwrap()) as usize]
    }
}

const TEXTS: [&str; 8] = [
    "",
    "volt0",
    "vm-a",
    "vm-b",
    "10.42.0.1",
    "0.0.0.0",
    "\u{1f4a5}\0 ../../etc/passwd",
    r#"{"network":"volt0","subnet":"10.42.0.0/24"}"#,
];

fn call(random: &mut Random, question: u32, first: (u64, u16)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut call = message.init_root::<rpc::Builder<'_>>().init_call();
    call.set_question_id(question);
    // Mostly a method that the bootstrap capability has, on that one.
    let (of, (interface, methods)) = match random.below(2) {
        0 => (0, first),
        _ => (random.below(question), random.of(&INTERFACES)),
    };
    call.set_interface_id(interface);
    call.set_method_id(u16::try_from(random.below(u32::from(methods) + 1)).unwrap());
    let mut target = call.reborrow().init_target();
    if random.below(64) == 0 {
        target.set_imported_cap(random.below(4));
    } else {
        let mut answer = target.init_promised_answer();
        answer.set_question_id(of);
        if of > 0 {
            answer.init_transform(1).get(0).set_get_pointer_field(0);
        }
    }
    let content = call.init_params().init_content();
    if random.below(4) == 0 {
        let mut config = content.init_as::<host::define_network_params::Builder<'_>>().init_config();
        config.set_name(random.of(&TEXTS));
        config.set_gateway(random.of(&TEXTS));
        config.set_prefix_length(random.of(&[0, 8, 24, 24, 24, 30, 32, 255]));
    } else {
        // Numbers and texts: what every other method takes, whatever they are called there.
        let mut info = content.init_as::<port_info::Builder<'_>>();
        info.set_index(random.of(&[0, 1, 2, 16, 65_537, u32::MAX]));
        info.set_workload(random.of(&TEXTS));
        info.set_interface_name(random.of(&TEXTS));
    }
    capnp::serialize::write_message_to_words(&message)
}

fn message(fill: impl FnOnce(rpc::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// So many connections to the service at `socket`, whose bootstrap capability has the interface `first`, each with some dozens of messages. That it lives is for the test to see.
pub fn storm(socket: &Path, first: u64, connections: u32) {
    let first = INTERFACES.into_iter().find(|(id, _)| *id == first).unwrap();
    let mut random = Random(20_261_125);
    for _ in 0..connections {
        let mut link = UnixStream::connect(socket).unwrap();
        link.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        link.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let _ = link.write_all(&message(|message| message.init_bootstrap().set_question_id(0)));
        for question in 1..40 {
            let mut bytes = match random.below(8) {
                0 => message(|message| message.init_finish().set_question_id(random.below(question))),
                _ => call(&mut random, question, first),
            };
            if random.below(40) == 0 {
                // Behind the segment table, or it would be a message of another length.
                let at = 8 + random.below(u32::try_from(bytes.len() - 8).unwrap()) as usize;
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            if link.write_all(&bytes).is_err() {
                break;
            }
            if question % 8 == 0 {
                let _ = link.read(&mut [0; 65_536]);
            }
        }
    }
}
