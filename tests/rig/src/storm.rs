//! A real service under messages that make sense now and then: calls of every method on whatever it has given out, with any arguments, and
//! bytes of them changed. Speaks to a socket by hand; knows nothing of the service but its schema.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use capnp::{
    Result, Word,
    private::layout::{ElementSize, PointerBuilder, StructSize},
    traits::FromPointerBuilder,
};
use capnp_rpc::rpc_capnp::message as rpc;

use crate::interfaces::{Kind, Method, count, schema};

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

const TEXTS: [&str; 10] = [
    "",
    "volt0",
    "vm-a",
    "vm-b",
    "10.42.0.1",
    "0.0.0.0",
    "\u{1f4a5}\0 ../../etc/passwd",
    r#"{"network":"volt0","subnet":"10.42.0.0/24"}"#,
    "10.42.0.9",
    "fd00::9",
];

const NUMBERS: [u64; 10] = [0, 1, 2, 8, 16, 24, 32, 255, 65_537, u64::MAX];

/// What makes sense in a field of that name. Where there is nothing, anything might.
const SENSIBLE: [(&str, &str); 7] = [
    ("name", TEXTS[1]),
    ("network", TEXTS[1]),
    ("workload", TEXTS[2]),
    ("gateway", TEXTS[4]),
    ("config", TEXTS[7]),
    ("parent", ""),
    ("ipv6", ""),
];
const SENSIBLE_NUMBERS: [(&str, u64); 6] =
    [("prefixLength", 24), ("mtu", 0), ("maxPorts", 16), ("maxLeases", 16), ("vlan", 0), ("kind", 0)];

/// What was asked for, and might be called: the question, the pointer in its answer, and the interface.
type Object = (u32, Option<u16>, u64);

/// A call's bytes, and which method of which interface it is if it is one that the object has.
type Call = (Vec<u8>, Option<(u64, u16)>);

/// A pointer to fill as the schema says, which only generated code gets otherwise.
struct Blank<'a>(PointerBuilder<'a>);

impl<'a> FromPointerBuilder<'a> for Blank<'a> {
    fn init_pointer(pointer: PointerBuilder<'a>, _: u32) -> Self {
        Blank(pointer)
    }

    fn get_from_pointer(pointer: PointerBuilder<'a>, _: Option<&'a [Word]>) -> Result<Self> {
        Ok(Blank(pointer))
    }
}

/// Makes a struct of that number, with anything in it.
fn fill(random: &mut Random, pointer: PointerBuilder<'_>, of: u64) {
    let of = &schema().structs[&of];
    let mut made = pointer.init_struct(StructSize { data: of.data, pointers: of.pointers });
    for field in &of.fields {
        let at = field.offset as usize;
        let makes_sense = random.below(4) > 0;
        match field.kind {
            Kind::Number(bits) => {
                let known = SENSIBLE_NUMBERS.iter().find(|(name, _)| makes_sense && *name == field.name);
                let number = known.map_or_else(|| random.of(&NUMBERS), |(_, number)| *number);
                match bits {
                    1 => made.set_bool_field(at, number & 1 == 1),
                    8 => made.set_data_field(at, number as u8),
                    16 => made.set_data_field(at, number as u16),
                    32 => made.set_data_field(at, number as u32),
                    _ => made.set_data_field(at, number),
                }
            }
            Kind::Text => {
                let known = SENSIBLE.iter().find(|(name, _)| makes_sense && *name == field.name);
                let text = known.map_or_else(|| random.of(&TEXTS), |(_, text)| *text);
                made.reborrow().get_pointer_field(at).set_text(text.into());
            }
            Kind::Data => {
                let bytes = vec![u8::try_from(random.below(256)).unwrap(); random.of(&[0, 6, 16, 32, 1000])];
                made.reborrow().get_pointer_field(at).set_data(&bytes);
            }
            Kind::Struct(id) => fill(random, made.reborrow().get_pointer_field(at), id),
            Kind::Texts => {
                // Most often none, with which a call that has all else succeeds.
                let length = random.of(&[0, 0, 0, 1, 2, 40]);
                let mut list = made.reborrow().get_pointer_field(at).init_list(ElementSize::Pointer, length);
                for at in 0..length {
                    list.reborrow().get_pointer_element(at).set_text(random.of(&TEXTS).into());
                }
            }
            // There is nothing that the caller has; and a list of structs, which only generated code fills, is empty.
            Kind::Capability(_) | Kind::Structs(_) | Kind::Other => {}
        }
    }
}

/// A call of a method of `of`'s interface, or of any where that is to be, with arguments that `fill` makes.
fn call(
    random: &mut Random,
    question: u32,
    (of, pointer, interface): Object,
    number: u16,
    method: Option<&Method>,
) -> Vec<u8> {
    message(|message| {
        let mut call = message.init_call();
        call.set_question_id(question);
        call.set_interface_id(interface);
        call.set_method_id(number);
        let mut target = call.reborrow().init_target();
        if random.below(64) == 0 {
            target.set_imported_cap(random.below(4));
        } else {
            let mut answer = target.init_promised_answer();
            answer.set_question_id(of);
            if let Some(pointer) = pointer {
                answer.init_transform(1).get(0).set_get_pointer_field(pointer);
            }
        }
        let structs = &schema().structs;
        let params = match method {
            Some(method) if random.below(8) > 0 => method.params,
            _ => *structs.keys().nth(random.below(u32::try_from(structs.len()).unwrap()) as usize).unwrap(),
        };
        fill(random, call.init_params().init_content().init_as::<Blank<'_>>().0, params);
    })
}

fn message(fill: impl FnOnce(rpc::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// One connection's questions, and what it may have got for them.
struct Asking<'a> {
    random: &'a mut Random,
    leave: &'a [&'a str],
    objects: Vec<Object>,
}

impl Asking<'_> {
    /// The next call.
    fn next(&mut self, question: u32) -> Option<Call> {
        // What it has been given last leads furthest.
        let object = match self.random.below(2) {
            0 => self.random.of(&self.objects),
            _ => *self.objects.last().unwrap(),
        };
        if self.random.below(8) == 0 {
            let of =
                &schema().interfaces[self.random.below(u32::try_from(schema().interfaces.len()).unwrap()) as usize];
            let number = u16::try_from(self.random.below(u32::from(count(of)) + 1)).unwrap();
            let method = of.methods.get(usize::from(number));
            if method.is_some_and(|method| self.leave.contains(&method.name.as_str())) {
                return None;
            }
            return Some((call(self.random, question, (object.0, object.1, of.id), number, method), None));
        }
        let methods = &schema().interface(object.2).methods;
        let number = self.random.below(u32::try_from(methods.len()).unwrap());
        let method = &methods[number as usize];
        if self.leave.contains(&method.name.as_str()) {
            return None;
        }
        for field in &schema().structs[&method.results].fields {
            if let Kind::Capability(interface) = field.kind {
                self.objects.push((question, Some(u16::try_from(field.offset).unwrap()), interface));
            }
        }
        let number = u16::try_from(number).unwrap();
        Some((call(self.random, question, object, number, Some(method)), Some((object.2, number))))
    }
}

/// So many connections to the service at `socket`, whose bootstrap capability has the interface `first`, each with some dozens of messages.
/// That it lives is for the test to see.
///
/// # Panics
/// If a method of an interface that is to be had there was not called on an object that has it, unless its name is in `leave`.
pub fn storm(socket: &Path, first: u64, connections: u32, leave: &[&str]) {
    let mut random = Random(20_261_125);
    let mut called = BTreeSet::new();
    for _ in 0..connections {
        let mut link = UnixStream::connect(socket).unwrap();
        link.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        link.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let _ = link.write_all(&message(|message| message.init_bootstrap().set_question_id(0)));
        let mut asking = Asking { random: &mut random, leave, objects: vec![(0, None, first)] };
        for question in 1..40 {
            let (mut bytes, mut asked) = match asking.random.below(8) {
                0 => (message(|message| message.init_finish().set_question_id(asking.random.below(question))), None),
                _ => match asking.next(question) {
                    Some(next) => next,
                    None => continue,
                },
            };
            if asking.random.below(40) == 0 {
                // Behind the segment table, or it would be a message of another length.
                let at = 8 + asking.random.below(u32::try_from(bytes.len() - 8).unwrap()) as usize;
                bytes[at] = u8::try_from(asking.random.below(256)).unwrap();
                asked = None;
            }
            if link.write_all(&bytes).is_err() {
                break;
            }
            called.extend(asked);
            if question % 8 == 0 {
                let _ = link.read(&mut [0; 65_536]);
            }
        }
    }
    for id in schema().reachable(first) {
        let of = schema().interface(id);
        for (number, method) in (0..).zip(&of.methods) {
            let made = called.contains(&(id, number)) || leave.contains(&method.name.as_str());
            assert!(made, "{}.{} was not called: it is beyond the first dozens of messages", of.name, method.name);
        }
    }
}
