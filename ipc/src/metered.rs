//! capnp-rpc's two-party network with the [`Meter`] between: each message is booked as it passes, and a message past the limits
//! is held, with everything behind it left in the socket. Looks at the RPC envelope (`rpc.capnp`), never at a payload.
//!
//! A call that may not be is answered here, and capnp-rpc never sees it. An answer that is more than its peer may hold is replaced by an
//! exception; capnp-rpc, which knows nothing of that, is told as from the peer that the peer needs the answer no more.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use crate::{
    Code, Fault,
    meter::{Meter, Received, Sent},
    stream::{self, Incoming, Socket},
};
use capnp::{Error, ErrorKind, any_pointer, capability::Promise, message};
use capnp_rpc::{
    Connection, IncomingMessage, OutgoingMessage, VatNetwork,
    rpc_capnp::{cap_descriptor, exception, message as rpc, message_target, payload, resolve, return_},
    rpc_twoparty_capnp::Side,
    twoparty,
};

/// The network of one connection.
pub(crate) struct Metered {
    inner: twoparty::VatNetwork<Incoming>,
    meter: Rc<Meter>,
    socket: Rc<Socket>,
}

impl Metered {
    pub(crate) fn new(socket: Rc<Socket>, side: Side, meter: Rc<Meter>) -> Metered {
        let (incoming, outgoing) = stream::split(&socket, &meter);
        let mut options = message::ReaderOptions::new();
        options.traversal_limit_in_words(Some(meter.limits.message_words));
        Metered { inner: twoparty::VatNetwork::new(incoming, outgoing, side, options), meter, socket }
    }
}

impl VatNetwork<Side> for Metered {
    fn connect(&mut self, side: Side) -> Option<Box<dyn Connection<Side>>> {
        let inner = self.inner.connect(side)?;
        Some(Box::new(MeteredConnection::new(inner, self.meter.clone(), self.socket.clone())))
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, Error> {
        let accepted = self.inner.accept();
        let (meter, socket) = (self.meter.clone(), self.socket.clone());
        Promise::from_future(async move {
            Ok(Box::new(MeteredConnection::new(accepted.await?, meter, socket)) as Box<dyn Connection<Side>>)
        })
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        self.inner.drive_until_shutdown()
    }
}

type Inner = Rc<RefCell<Box<dyn Connection<Side>>>>;
type Reading = Promise<Option<Box<dyn IncomingMessage>>, Error>;

struct MeteredConnection {
    inner: Inner,
    shared: Shared,
    socket: Rc<Socket>,
    /// A message that is being read.
    reading: Rc<RefCell<Option<Reading>>>,
    /// Whether the peer has asked for the bootstrap capability.
    bootstrapped: Rc<Cell<bool>>,
}

/// What a message needs of its connection. It keeps no connection: that ends by being dropped.
#[derive(Clone)]
struct Shared {
    inner: Weak<RefCell<Box<dyn Connection<Side>>>>,
    meter: Rc<Meter>,
}

impl Shared {
    /// Answers question `id` in place of capnp-rpc, which never hears of it.
    fn refuse(&self, id: u32, fault: Fault) {
        let _ = self.exception(id, fault).map(OutgoingMessage::send);
    }

    /// An answer that the peer need not finish, and that gives back the capabilities which came with the question.
    fn exception(&self, id: u32, fault: Fault) -> Option<Box<dyn OutgoingMessage>> {
        self.meter.refused(id, fault.clone());
        let inner = self.inner.upgrade()?;
        let message = inner.borrow_mut().new_outgoing_message(64);
        let mut message = Box::new(Out { inner: message, shared: self.clone() });
        let mut answer = message.get_body().ok()?.init_as::<rpc::Builder<'_>>().init_return();
        answer.set_answer_id(id);
        answer.set_no_finish_needed(true);
        write_exception(fault, answer.init_exception());
        Some(message)
    }
}

/// Writes a fault as the exception that it travels in.
pub(crate) fn write_exception(fault: Fault, mut to: exception::Builder<'_>) {
    let error = Error::from(fault);
    to.set_reason(&error.extra[..]);
    to.set_type(match error.kind {
        ErrorKind::Overloaded => exception::Type::Overloaded,
        _ => exception::Type::Failed,
    });
}

impl MeteredConnection {
    fn new(inner: Box<dyn Connection<Side>>, meter: Rc<Meter>, socket: Rc<Socket>) -> MeteredConnection {
        let inner = Rc::new(RefCell::new(inner));
        let shared = Shared { inner: Rc::downgrade(&inner), meter };
        MeteredConnection { inner, shared, socket, reading: Rc::default(), bootstrapped: Rc::default() }
    }
}

impl Connection<Side> for MeteredConnection {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.borrow().get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        let inner = self.inner.borrow_mut().new_outgoing_message(first_segment_words);
        Box::new(Out { inner, shared: self.shared.clone() })
    }

    fn receive_incoming_message(&mut self) -> Reading {
        let (shared, socket) = (self.shared.clone(), self.socket.clone());
        let (reading, bootstrapped) = (self.reading.clone(), self.bootstrapped.clone());
        Promise::from_future(async move {
            let meter = shared.meter.clone();
            loop {
                let begun = reading.take();
                let mut next = match begun {
                    Some(begun) => begun,
                    None => match shared.inner.upgrade() {
                        Some(inner) => inner.borrow_mut().receive_incoming_message(),
                        None => return Ok(None),
                    },
                };
                let next = tokio::select! {
                    biased;
                    id = meter.withheld() => {
                        reading.replace(Some(next));
                        return Ok(Some(Box::new(Finished::new(id)) as Box<dyn IncomingMessage>));
                    }
                    next = &mut next => next?,
                    reason = meter.failed() => return Err(reason),
                };
                let Some(message) = next else { return Ok(None) };
                let words = meter.message_words();
                let Looked { received, capabilities, on } = look_at_received(message.as_ref())?;
                tokio::select! {
                    biased;
                    may = meter.may_take(&received, words) => may?,
                    reason = meter.failed() => return Err(reason),
                    // A peer that has gone wants none of its calls. Without this its capabilities would outlive it.
                    () = socket.hung_up() => return Ok(None),
                }
                if let Received::Call { id } = received {
                    meter.check_unused(id)?;
                    let may = match is_bootstrap(message.as_ref())? {
                        // A peer that has let go of it must not have it back: letting go is how a process narrows itself.
                        true if bootstrapped.replace(true) => Err(bootstrapped_twice()),
                        _ => match on.and_then(|on| meter.why_refused(on)) {
                            Some(fault) => Err(fault),
                            None => meter.may_begin(capabilities),
                        },
                    };
                    if let Err(fault) = may {
                        shared.refuse(id, fault);
                        continue;
                    }
                } else if capabilities > meter.limits.capabilities_per_message {
                    return Err(Error::failed(format!("an answer carries {capabilities} capabilities")));
                }
                let serial = meter.received(&received, words);
                let Received::Call { id } = received else { return Ok(Some(message)) };
                return Ok(Some(Box::new(In { inner: message, meter, id, serial }) as Box<dyn IncomingMessage>));
            }
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        let reason = result.clone().err().unwrap_or_else(|| Error::disconnected("the connection was closed".into()));
        self.shared.meter.end(reason);
        self.inner.borrow_mut().shutdown(result)
    }
}

/// A call's message: it lives for as long as its parameters do.
struct In {
    inner: Box<dyn IncomingMessage>,
    meter: Rc<Meter>,
    id: u32,
    serial: u64,
}

impl IncomingMessage for In {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.inner.get_body()
    }
}

impl Drop for In {
    fn drop(&mut self) {
        self.meter.unloaded(self.id, self.serial);
    }
}

/// What the peer would say of an answer that was kept from it: that it needs neither it nor the capabilities in it.
struct Finished(message::Builder<message::HeapAllocator>);

impl Finished {
    fn new(id: u32) -> Finished {
        let mut message = message::Builder::new_default();
        let mut finish = message.init_root::<rpc::Builder<'_>>().init_finish();
        finish.set_question_id(id);
        finish.set_release_result_caps(true);
        Finished(message)
    }
}

impl IncomingMessage for Finished {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.0.get_root_as_reader()
    }
}

struct Out {
    inner: Box<dyn OutgoingMessage>,
    shared: Shared,
}

impl OutgoingMessage for Out {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.inner.get_body()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.inner.get_body_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<message::Builder<message::HeapAllocator>>) {
        let meter = &self.shared.meter;
        // What capnp-rpc built is well formed; were it not, it would still count as a message.
        let sent = look_at_sent(self.inner.as_ref()).unwrap_or(Sent::Other { capabilities: 0 });
        let words = self.inner.size_in_words();
        if let Sent::Return { id, capabilities, last: false } = sent
            && let Err(fault) = meter.may_hold(words, capabilities)
            && let Some(exception) = self.shared.exception(id, fault)
        {
            let (sent, _) = exception.send();
            meter.withhold(id);
            // The results themselves go on being what calls that are pipelined on them are for.
            return (sent, Rc::new(self.inner.take()));
        }
        meter.sent(&sent, words);
        self.inner.send()
    }

    fn take(self: Box<Self>) -> message::Builder<message::HeapAllocator> {
        self.inner.take()
    }

    fn size_in_words(&self) -> usize {
        self.inner.size_in_words()
    }
}

/// What a message is, how many capabilities come with it, and the question that a call is pipelined on.
struct Looked {
    received: Received,
    capabilities: u32,
    on: Option<u32>,
}

fn look_at_received(message: &dyn IncomingMessage) -> capnp::Result<Looked> {
    let (mut capabilities, mut on) = (0, None);
    let mut look = |payload: payload::Reader<'_>| payload.get_cap_table().map(|table| capabilities = table.len());
    let received = match message.get_body()?.get_as::<rpc::Reader<'_>>()?.which() {
        Ok(rpc::Bootstrap(bootstrap)) => Received::Call { id: bootstrap?.get_question_id() },
        Ok(rpc::Call(call)) => {
            let call = call?;
            look(call.get_params()?)?;
            if let message_target::PromisedAnswer(answer) = call.get_target()?.which()? {
                on = Some(answer?.get_question_id());
            }
            Received::Call { id: call.get_question_id() }
        }
        Ok(rpc::Return(answer)) => {
            if let return_::Results(results) = answer?.which()? {
                look(results?)?;
            }
            Received::Return
        }
        Ok(rpc::Resolve(resolve)) => {
            // capnp-rpc keeps a promise that is resolved to itself, by whatever detour, for ever, and with it the connection's
            // state. Only what is settled can be no detour.
            if let resolve::Cap(capability) = resolve?.which()? {
                match capability?.which()? {
                    cap_descriptor::SenderHosted(_) | cap_descriptor::ReceiverHosted(_) | cap_descriptor::None(()) => {}
                    _ => return Err(Error::unimplemented("a promise is resolved to another promise".into())),
                }
            }
            Received::Other
        }
        Ok(rpc::Finish(finish)) => {
            let finish = finish?;
            Received::Finish { id: finish.get_question_id(), release: finish.get_release_result_caps() }
        }
        Ok(rpc::Release(release)) => Received::Release { count: release?.get_reference_count() },
        // A peer that knows no Resolve sends it back: capnp-rpc takes the capability in it as released.
        Ok(rpc::Unimplemented(returned)) => match returned?.which() {
            Ok(rpc::Resolve(resolve)) => match resolve?.which()? {
                resolve::Cap(capability) if is_ours(&capability.clone()?)? => Received::Release { count: 1 },
                _ => Received::Other,
            },
            _ => Received::Other,
        },
        _ => Received::Other,
    };
    Ok(Looked { received, capabilities, on })
}

fn is_bootstrap(message: &dyn IncomingMessage) -> capnp::Result<bool> {
    Ok(matches!(message.get_body()?.get_as::<rpc::Reader<'_>>()?.which(), Ok(rpc::Bootstrap(_))))
}

fn bootstrapped_twice() -> Fault {
    let why = "a connection gets it once";
    Fault::new(Code::PermissionDenied, "give the bootstrap capability", why, "Keep it, or connect again")
}

fn look_at_sent(message: &dyn OutgoingMessage) -> capnp::Result<Sent> {
    Ok(match message.get_body_as_reader()?.get_as::<rpc::Reader<'_>>()?.which()? {
        rpc::Return(answer) => {
            let answer = answer?;
            let capabilities = match answer.which()? {
                return_::Results(results) => ours(results?)?,
                _ => 0,
            };
            Sent::Return { id: answer.get_answer_id(), capabilities, last: answer.get_no_finish_needed() }
        }
        rpc::Call(call) => Sent::Other { capabilities: ours(call?.get_params()?)? },
        rpc::Resolve(resolve) => match resolve?.which()? {
            resolve::Cap(capability) => Sent::Other { capabilities: is_ours(&capability?)?.into() },
            resolve::Exception(_) => Sent::Other { capabilities: 0 },
        },
        _ => Sent::Other { capabilities: 0 },
    })
}

/// Capabilities in a payload that the receiver has to release.
fn ours(payload: payload::Reader<'_>) -> capnp::Result<u32> {
    let mut count: u32 = 0;
    for capability in payload.get_cap_table()? {
        count = count.saturating_add(is_ours(&capability)?.into());
    }
    Ok(count)
}

fn is_ours(capability: &cap_descriptor::Reader<'_>) -> capnp::Result<bool> {
    Ok(matches!(capability.which()?, cap_descriptor::SenderHosted(_) | cap_descriptor::SenderPromise(_)))
}
