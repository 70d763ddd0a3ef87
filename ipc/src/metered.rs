//! capnp-rpc's two-party network with the [`Meter`] between: each message is booked as it passes, and a message past the limits
//! is held, with everything behind it left in the socket. Looks at the RPC envelope (`rpc.capnp`), never at a payload.

use std::{cell::Cell, rc::Rc};

use crate::{
    Code, Fault,
    meter::{Meter, Received, Sent},
    stream::{self, Incoming, Socket},
};
use capnp::{Error, any_pointer, capability::Promise, message};
use capnp_rpc::{
    Connection, IncomingMessage, OutgoingMessage, VatNetwork,
    rpc_capnp::{cap_descriptor, message as rpc, payload, resolve, return_},
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
        Some(Box::new(Link::new(inner, self.meter.clone(), self.socket.clone())))
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, Error> {
        let accepted = self.inner.accept();
        let (meter, socket) = (self.meter.clone(), self.socket.clone());
        Promise::from_future(async move {
            Ok(Box::new(Link::new(accepted.await?, meter, socket)) as Box<dyn Connection<Side>>)
        })
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        self.inner.drive_until_shutdown()
    }
}

struct Link {
    inner: Box<dyn Connection<Side>>,
    meter: Rc<Meter>,
    socket: Rc<Socket>,
    /// Whether the peer has asked for the bootstrap capability.
    bootstrapped: Rc<Cell<bool>>,
}

impl Link {
    fn new(inner: Box<dyn Connection<Side>>, meter: Rc<Meter>, socket: Rc<Socket>) -> Link {
        Link { inner, meter, socket, bootstrapped: Rc::default() }
    }
}

impl Connection<Side> for Link {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        Box::new(Out { inner: self.inner.new_outgoing_message(first_segment_words), meter: self.meter.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, Error> {
        let next = self.inner.receive_incoming_message();
        let (meter, socket) = (self.meter.clone(), self.socket.clone());
        let bootstrapped = self.bootstrapped.clone();
        Promise::from_future(async move {
            let next = tokio::select! {
                biased;
                next = next => next?,
                reason = meter.failed() => return Err(reason),
            };
            let Some(message) = next else { return Ok(None) };
            let words = meter.message_words();
            let received = look_at_received(message.as_ref(), meter.limits.capabilities_per_message)?;
            // A peer that has let go of it must not have it back: letting go is how a process narrows itself.
            if is_bootstrap(message.as_ref())? && bootstrapped.replace(true) {
                return Err(bootstrapped_twice());
            }
            tokio::select! {
                biased;
                may = meter.may_take(&received, words) => may?,
                reason = meter.failed() => return Err(reason),
                // A peer that has gone wants none of its calls. Without this its capabilities would outlive it.
                () = socket.hung_up() => return Ok(None),
            }
            let serial = meter.received(&received, words)?;
            let Received::Call { id } = received else { return Ok(Some(message)) };
            Ok(Some(Box::new(In { inner: message, meter, id, serial }) as Box<dyn IncomingMessage>))
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        let reason = result.clone().err().unwrap_or_else(|| Error::disconnected("the connection was closed".into()));
        self.meter.end(reason);
        self.inner.shutdown(result)
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

struct Out {
    inner: Box<dyn OutgoingMessage>,
    meter: Rc<Meter>,
}

impl OutgoingMessage for Out {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.inner.get_body()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.inner.get_body_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<message::Builder<message::HeapAllocator>>) {
        // What capnp-rpc built is well formed; were it not, it would still count as a message.
        let sent = look_at_sent(self.inner.as_ref()).unwrap_or(Sent::Other { capabilities: 0 });
        self.meter.sent(&sent, self.inner.size_in_words());
        self.inner.send()
    }

    fn take(self: Box<Self>) -> message::Builder<message::HeapAllocator> {
        self.inner.take()
    }

    fn size_in_words(&self) -> usize {
        self.inner.size_in_words()
    }
}

fn look_at_received(message: &dyn IncomingMessage, most_capabilities: u32) -> capnp::Result<Received> {
    let check = |payload: payload::Reader<'_>| match payload.get_cap_table()?.len() {
        n if n > most_capabilities => Err(Error::failed(format!("a message carries {n} capabilities"))),
        _ => Ok(()),
    };
    Ok(match message.get_body()?.get_as::<rpc::Reader<'_>>()?.which() {
        Ok(rpc::Bootstrap(bootstrap)) => Received::Call { id: bootstrap?.get_question_id() },
        Ok(rpc::Call(call)) => {
            let call = call?;
            check(call.get_params()?)?;
            Received::Call { id: call.get_question_id() }
        }
        Ok(rpc::Return(answer)) => {
            if let return_::Results(results) = answer?.which()? {
                check(results?)?;
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
        _ => Received::Other,
    })
}

fn is_bootstrap(message: &dyn IncomingMessage) -> capnp::Result<bool> {
    Ok(matches!(message.get_body()?.get_as::<rpc::Reader<'_>>()?.which(), Ok(rpc::Bootstrap(_))))
}

fn bootstrapped_twice() -> Error {
    let why = "a connection gets it once";
    Fault::new(Code::PermissionDenied, "give the bootstrap capability", why, "Keep it, or connect again").into()
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
