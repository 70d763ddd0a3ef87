//! The meter of one connection: keeps the book of what its peer makes this process hold, from the RPC messages as they pass. Decides
//! whether the next call may begin and whether the connection must end; touches no socket and no message content.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use capnp::Error;
use tokio::{sync::Notify, time::Instant};

use crate::{
    Code, Fault, Limits,
    book::{Book, Call},
};

/// Words that an entry in capnp-rpc's tables costs beside its message, generously.
const OVERHEAD: usize = 128;
/// Questions that were refused which are remembered.
const REFUSED: usize = 64;

/// A message that came in, as far as the book needs it.
pub(crate) enum Received {
    /// A call or a bootstrap request, with the question's number.
    Call { id: u32 },
    /// The peer needs no more of that answer, nor of the capabilities in it if `release`.
    Finish { id: u32, release: bool },
    /// The peer dropped references.
    Release { count: u32 },
    /// An answer to a question of ours. Always taken: whatever follows from it is bounded by what we asked.
    Return,
    /// Anything else; it may make capnp-rpc answer.
    Other,
}

/// A message that goes out.
pub(crate) enum Sent {
    /// An answer with so many capabilities of ours; `last` if the peer need not finish it.
    Return { id: u32, capabilities: u32, last: bool },
    /// Anything else, with so many capabilities of ours.
    Other { capabilities: u32 },
}

/// The book, and the signals that go with it.
pub(crate) struct Meter {
    pub(crate) limits: Limits,
    book: RefCell<Book>,
    read: Cell<usize>,
    changed: Notify,
    settling: Notify,
    reason: RefCell<Option<Error>>,
    unwritable: Notify,
    failed: Notify,
    /// Answers that capnp-rpc gave and that were kept from the peer: it has to be told that the peer needs them no more.
    withheld: RefCell<VecDeque<u32>>,
    withholding: Notify,
    /// The questions that were refused last, for calls that are pipelined on them.
    refused: RefCell<VecDeque<(u32, Fault)>>,
    ending: Notify,
    closed: Cell<bool>,
    closing: Notify,
}

fn broken(why: String) -> Error {
    Fault::new(Code::Exhausted, "serve this connection", why, "Connect again, and ask for less at a time").into()
}

fn too_much(tried: &str, why: String, remedy: &str) -> Fault {
    Fault::new(Code::Exhausted, tried, why, remedy)
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Rc<Meter> {
        Rc::new(Meter {
            limits,
            book: RefCell::default(),
            read: Cell::default(),
            changed: Notify::new(),
            settling: Notify::new(),
            reason: RefCell::default(),
            unwritable: Notify::new(),
            failed: Notify::new(),
            withheld: RefCell::default(),
            withholding: Notify::new(),
            refused: RefCell::default(),
            ending: Notify::new(),
            closed: Cell::new(false),
            closing: Notify::new(),
        })
    }

    /// The book is another: for who takes the next message, and for who waits for the last.
    fn tell(&self) {
        self.changed.notify_one();
        self.settling.notify_waiters();
    }

    /// Returns once no call waits for its answer, and every answer has reached the socket.
    pub(crate) async fn settled(&self) {
        loop {
            let settling = self.settling.notified();
            let settled = {
                let book = self.book.borrow();
                book.in_flight == 0 && book.unread.is_empty()
            };
            if settled {
                return;
            }
            settling.await;
        }
    }

    pub(crate) fn bytes_read(&self, bytes: usize) {
        self.read.set(self.read.get().saturating_add(bytes));
    }

    /// The size of the message that was just read, in words; starts the next one's.
    pub(crate) fn message_words(&self) -> usize {
        self.read.replace(0).div_ceil(8)
    }

    /// The oldest message that was sent has reached the socket.
    pub(crate) fn message_written(&self) {
        let mut book = self.book.borrow_mut();
        if let Some(words) = book.unread.pop_front() {
            book.unread_words = book.unread_words.saturating_sub(words);
        }
        drop(book);
        self.tell();
    }

    /// Waits until a message of `words` may be taken. Fails when the peer leaves its answers unread for too long.
    pub(crate) async fn may_take(&self, message: &Received, words: usize) -> Result<(), Error> {
        let is_call = match message {
            Received::Call { .. } => true,
            Received::Other => false,
            Received::Finish { .. } | Received::Release { .. } | Received::Return => return Ok(()),
        };
        let mut blocked_at: Option<(usize, Instant)> = None;
        loop {
            let changed = self.changed.notified();
            let unread = {
                let book = self.book.borrow();
                let unread = book.unread_words > self.limits.unread_words;
                let full = book.in_flight >= self.limits.calls_in_flight
                    || (book.in_flight > 0 && book.call_words.saturating_add(words) > self.limits.call_words);
                let busy = is_call && full;
                if !unread && !busy {
                    return Ok(());
                }
                unread.then_some(book.unread.len())
            };
            let Some(unread) = unread else {
                blocked_at = None;
                changed.await;
                continue;
            };
            let since = match blocked_at {
                Some((before, since)) if unread >= before => since,
                _ => Instant::now(),
            };
            blocked_at = Some((unread, since));
            if tokio::time::timeout_at(since + self.limits.stall, changed).await.is_err() {
                return Err(broken(format!("its answers were left unread for {} s", self.limits.stall.as_secs())));
            }
        }
    }

    /// Why a call with so many capabilities, or its like, may not begin, though the connection goes on.
    pub(crate) fn may_begin(&self, capabilities: u32) -> Result<(), Fault> {
        let limits = &self.limits;
        if capabilities > limits.capabilities_per_message {
            let why = format!(
                "it carries {capabilities} capabilities, and a message has {} at most",
                limits.capabilities_per_message
            );
            return Err(too_much("call", why, "Send fewer in one call"));
        }
        if self.book.borrow().cancelled >= limits.cancelled_calls {
            let why = format!("{} calls of this connection were cancelled", limits.cancelled_calls);
            return Err(too_much(
                "call",
                why,
                "What it holds stays; connect again for new calls, and let calls return",
            ));
        }
        Ok(())
    }

    /// Why an answer of so many words, with so many capabilities, is more than the peer may hold.
    pub(crate) fn may_hold(&self, words: usize, capabilities: u32) -> Result<(), Fault> {
        let (book, limits) = (self.book.borrow(), &self.limits);
        if book.held_words.saturating_add(words).saturating_add(OVERHEAD) > limits.held_words {
            let why = format!("the answers that this connection has not finished hold {} words", book.held_words);
            return Err(too_much("answer a call", why, "Finish some: drop their responses"));
        }
        if book.capabilities.saturating_add(capabilities) > limits.capabilities {
            let why = format!("this connection holds {} capabilities", book.capabilities);
            return Err(too_much("answer a call", why, "Release some, or use another connection"));
        }
        Ok(())
    }

    /// Question `id` was refused, for that reason: what is pipelined on it is refused for the same.
    pub(crate) fn refused(&self, id: u32, fault: Fault) {
        let mut refused = self.refused.borrow_mut();
        refused.retain(|(refused, _)| *refused != id);
        if refused.len() >= REFUSED {
            refused.pop_front();
        }
        refused.push_back((id, fault));
    }

    /// Why question `id` was refused, if it was, not long ago.
    pub(crate) fn why_refused(&self, id: u32) -> Option<Fault> {
        self.refused.borrow().iter().find(|(refused, _)| *refused == id).map(|(_, fault)| fault.clone())
    }

    /// An answer was kept from the peer.
    pub(crate) fn withhold(&self, id: u32) {
        self.withheld.borrow_mut().push_back(id);
        self.withholding.notify_one();
    }

    /// Returns the next answer that was kept from the peer.
    pub(crate) async fn withheld(&self) -> u32 {
        loop {
            let withholding = self.withholding.notified();
            if let Some(id) = self.withheld.borrow_mut().pop_front() {
                return id;
            }
            withholding.await;
        }
    }

    /// Whether a question has that number, so that no other may.
    pub(crate) fn check_unused(&self, id: u32) -> Result<(), Error> {
        match self.book.borrow().calls.contains_key(&id) {
            true => Err(Error::failed(format!("question {id} is in use"))),
            false => Ok(()),
        }
    }

    /// Books a message that came in; a call whose number is not in use. The number of a call's entry comes back, for [`Meter::unloaded`].
    pub(crate) fn received(&self, message: &Received, words: usize) -> u64 {
        if let Received::Call { id } | Received::Finish { id, .. } = *message {
            self.refused.borrow_mut().retain(|(refused, _)| *refused != id);
        }
        let mut book = self.book.borrow_mut();
        match *message {
            Received::Call { id } => {
                book.serial = book.serial.wrapping_add(1);
                let serial = book.serial;
                let call = Call {
                    serial,
                    words,
                    returned: false,
                    finished: false,
                    loaded: true,
                    held_words: 0,
                    held_capabilities: 0,
                };
                book.calls.insert(id, call);
                book.in_flight = book.in_flight.saturating_add(1);
                book.call_words = book.call_words.saturating_add(words);
                return serial;
            }
            Received::Finish { id, release } => {
                let mut released = 0;
                book.update(id, |call| {
                    call.finished = true;
                    if release {
                        released = std::mem::take(&mut call.held_capabilities);
                    }
                });
                book.capabilities = book.capabilities.saturating_sub(released);
            }
            Received::Release { count } => book.capabilities = book.capabilities.saturating_sub(count),
            Received::Return | Received::Other => {}
        }
        drop(book);
        self.tell();
        0
    }

    /// The parameters of call `id` are no longer in memory, if `serial` still is its entry.
    pub(crate) fn unloaded(&self, id: u32, serial: u64) {
        let mut book = self.book.borrow_mut();
        if book.calls.get(&id).is_some_and(|call| call.serial == serial) {
            book.update(id, |call| call.loaded = false);
        }
        drop(book);
        self.tell();
    }

    /// Books a message that is about to be queued. Ends the connection where that is too much and is no answer, which [`Meter::may_hold`]
    /// is asked of before.
    pub(crate) fn sent(&self, message: &Sent, words: usize) {
        let mut book = self.book.borrow_mut();
        let cost = words.saturating_add(OVERHEAD);
        book.unread.push_back(cost);
        book.unread_words = book.unread_words.saturating_add(cost);
        let (Sent::Return { capabilities, .. } | Sent::Other { capabilities }) = *message;
        book.capabilities = book.capabilities.saturating_add(capabilities);
        let answers = matches!(message, Sent::Return { .. });
        if let Sent::Return { id, last, .. } = *message {
            book.update(id, |call| {
                call.returned = true;
                call.finished |= last;
                (call.held_words, call.held_capabilities) = (cost, capabilities);
            });
        }
        let capabilities = book.capabilities;
        drop(book);
        if !answers && capabilities > self.limits.capabilities {
            self.fail(broken(format!("it holds {capabilities} capabilities")));
        }
        self.tell();
    }

    /// Nothing more can be written. What the peer said last may still be there to read, and may say why.
    pub(crate) fn unwritable(&self) {
        self.unwritable.notify_one();
    }

    /// Has the next read of a message fail, so that capnp-rpc tells the peer the reason and disconnects. The first reason given stays.
    fn fail(&self, reason: Error) {
        self.reason.borrow_mut().get_or_insert(reason);
        self.failed.notify_one();
    }

    /// Returns when reading has to fail, with the reason.
    pub(crate) async fn failed(&self) -> Error {
        self.failed.notified().await;
        self.reason().unwrap_or_else(|| Error::failed("the connection failed".into()))
    }

    /// Asks for the end of the connection. The first reason given stays.
    pub(crate) fn end(&self, reason: Error) {
        self.reason.borrow_mut().get_or_insert(reason);
        self.ending.notify_one();
    }

    /// Returns when the connection should end: when that was asked for, or `linger` after nothing more could be written.
    pub(crate) async fn ending(&self, linger: Duration) {
        tokio::select! {
            () = self.ending.notified() => {}
            () = async { self.unwritable.notified().await; tokio::time::sleep(linger).await } => {}
        }
    }

    pub(crate) fn reason(&self) -> Option<Error> {
        self.reason.borrow().clone()
    }

    /// The connection has ended, and everything on it is released.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.closing.notify_waiters();
    }

    /// Returns once the connection has ended.
    pub(crate) async fn closed(&self) {
        let closing = self.closing.notified();
        if !self.closed.get() {
            closing.await;
        }
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
