//! The book of one connection: what its peer makes this process hold, from the RPC messages as they pass. Decides whether the
//! next call may begin and whether the connection must end; touches no socket and no message content.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use capnp::Error;
use tokio::{sync::Notify, time::Instant};

use crate::{Code, Fault, Limits};

/// Words that an entry in capnp-rpc's tables costs beside its message, generously.
const OVERHEAD: usize = 128;

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

struct Call {
    serial: u64,
    words: usize,
    /// Its answer went out.
    returned: bool,
    /// The peer needs it no more; before `returned`, that cancels it.
    finished: bool,
    /// Its parameters are in memory.
    loaded: bool,
    held_words: usize,
    held_capabilities: u32,
}

impl Call {
    /// Whether it counts as in flight. A cancelled call does for as long as something (a call pipelined on it) keeps its parameters.
    fn in_flight(&self) -> bool {
        !self.returned && (!self.finished || self.loaded)
    }
}

#[derive(Default)]
struct Book {
    calls: HashMap<u32, Call>,
    serial: u64,
    in_flight: u32,
    call_words: usize,
    held_words: usize,
    capabilities: u32,
    cancelled: u32,
    unread: VecDeque<usize>,
    unread_words: usize,
}

impl Book {
    /// Applies `change` to a call and settles what it means for the totals.
    fn update(&mut self, id: u32, change: impl FnOnce(&mut Call)) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let was_in_flight = call.in_flight();
        change(call);
        if was_in_flight && !call.in_flight() {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.call_words = self.call_words.saturating_sub(call.words);
        }
        if call.finished && !call.in_flight() {
            self.held_words = self.held_words.saturating_sub(call.held_words);
            self.calls.remove(&id);
        }
    }
}

/// The book, and the signals that go with it.
pub(crate) struct Meter {
    pub(crate) limits: Limits,
    book: RefCell<Book>,
    read: Cell<usize>,
    changed: Notify,
    reason: RefCell<Option<Error>>,
    unwritable: Notify,
    failed: Notify,
    ending: Notify,
    closed: Cell<bool>,
    closing: Notify,
}

fn broken(why: String) -> Error {
    Fault::new(Code::Exhausted, "serve this connection", why, "Connect again, and ask for less at a time").into()
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Rc<Meter> {
        Rc::new(Meter {
            limits,
            book: RefCell::default(),
            read: Cell::default(),
            changed: Notify::new(),
            reason: RefCell::default(),
            unwritable: Notify::new(),
            failed: Notify::new(),
            ending: Notify::new(),
            closed: Cell::new(false),
            closing: Notify::new(),
        })
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
        self.changed.notify_one();
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

    /// Books a message that came in. The number of a call's entry comes back, for [`Meter::unloaded`].
    pub(crate) fn received(&self, message: &Received, words: usize) -> Result<u64, Error> {
        let mut book = self.book.borrow_mut();
        match *message {
            Received::Call { id } => {
                if book.calls.contains_key(&id) {
                    return Err(Error::failed(format!("question {id} is in use")));
                }
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
                return Ok(serial);
            }
            Received::Finish { id, release } => {
                let mut released = 0;
                let mut cancels = false;
                book.update(id, |call| {
                    call.finished = true;
                    cancels = !call.returned;
                    if release {
                        released = std::mem::take(&mut call.held_capabilities);
                    }
                });
                book.capabilities = book.capabilities.saturating_sub(released);
                book.cancelled = book.cancelled.saturating_add(cancels.into());
                if book.cancelled > self.limits.cancelled_calls {
                    return Err(broken(format!("{} of its calls were cancelled", self.limits.cancelled_calls)));
                }
            }
            Received::Release { count } => book.capabilities = book.capabilities.saturating_sub(count),
            Received::Return | Received::Other => {}
        }
        drop(book);
        self.changed.notify_one();
        Ok(0)
    }

    /// The parameters of call `id` are no longer in memory, if `serial` still is its entry.
    pub(crate) fn unloaded(&self, id: u32, serial: u64) {
        let mut book = self.book.borrow_mut();
        if book.calls.get(&id).is_some_and(|call| call.serial == serial) {
            book.update(id, |call| call.loaded = false);
        }
        drop(book);
        self.changed.notify_one();
    }

    /// Books a message that is about to be queued. Ends the connection where that is too much.
    pub(crate) fn sent(&self, message: &Sent, words: usize) {
        let mut book = self.book.borrow_mut();
        let cost = words.saturating_add(OVERHEAD);
        book.unread.push_back(cost);
        book.unread_words = book.unread_words.saturating_add(cost);
        let (Sent::Return { capabilities, .. } | Sent::Other { capabilities }) = *message;
        book.capabilities = book.capabilities.saturating_add(capabilities);
        if let Sent::Return { id, last, .. } = *message {
            if !last {
                book.held_words = book.held_words.saturating_add(cost);
            }
            book.update(id, |call| {
                call.returned = true;
                call.finished |= last;
                if !last {
                    call.held_words = cost;
                    call.held_capabilities = capabilities;
                }
            });
        }
        let (held, capabilities) = (book.held_words, book.capabilities);
        drop(book);
        if held > self.limits.held_words {
            self.fail(broken(format!("its unfinished answers hold more than {} words", self.limits.held_words)));
        } else if capabilities > self.limits.capabilities {
            self.fail(broken(format!("it holds more than {} capabilities", self.limits.capabilities)));
        }
        self.changed.notify_one();
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
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn meter() -> Rc<Meter> {
        Meter::new(Limits { calls_in_flight: 2, call_words: 100, ..Limits::default() })
    }

    fn call(meter: &Meter, id: u32, words: usize) -> u64 {
        meter.received(&Received::Call { id }, words).unwrap()
    }

    fn may_call(meter: &Meter, words: usize) -> bool {
        meter.may_take(&Received::Call { id: 99 }, words).now_or_never().is_some()
    }

    #[test]
    fn a_cancelled_call_counts_for_as_long_as_its_parameters_are_in_memory() {
        let meter = meter();
        // The first waits for something; the second is pipelined on it. Then the peer needs the second no more, but capnp-rpc
        // keeps it queued.
        call(&meter, 0, 10);
        let serial = call(&meter, 1, 10);
        assert!(!may_call(&meter, 10));
        meter.received(&Received::Finish { id: 1, release: true }, 4).unwrap();
        assert!(!may_call(&meter, 10));
        meter.unloaded(1, serial);
        assert!(may_call(&meter, 10));
    }

    #[test]
    fn parameters_that_are_freed_early_do_not_end_a_call() {
        let meter = meter();
        for id in 0..2 {
            let serial = call(&meter, id, 10);
            meter.unloaded(id, serial);
        }
        assert!(!may_call(&meter, 10));
        meter.sent(&Sent::Return { id: 0, capabilities: 0, last: true }, 10);
        assert!(may_call(&meter, 10));
    }

    #[test]
    fn an_entry_of_the_same_number_is_not_touched_by_the_one_before() {
        let meter = meter();
        let old = call(&meter, 0, 10);
        meter.sent(&Sent::Return { id: 0, capabilities: 0, last: true }, 10);
        call(&meter, 0, 10);
        meter.received(&Received::Finish { id: 0, release: false }, 4).unwrap();
        call(&meter, 1, 10);
        meter.unloaded(0, old);
        assert!(!may_call(&meter, 10));
    }

    #[test]
    fn call_words_up_to_the_budget_may_run_and_one_more_waits() {
        let meter = meter();
        call(&meter, 0, 60);
        assert!(may_call(&meter, 40));
        assert!(!may_call(&meter, 41));
        meter.sent(&Sent::Return { id: 0, capabilities: 0, last: false }, 10);
        assert!(may_call(&meter, 1000));
    }

    #[test]
    fn while_answers_are_unread_only_what_makes_none_is_taken() {
        crate::run(async {
            let meter = Meter::new(Limits { unread_words: 200, ..Limits::default() });
            let takes = |message: &Received| meter.may_take(message, 4).now_or_never().is_some();
            let all = [Received::Call { id: 9 }, Received::Other, Received::Return, Received::Release { count: 1 }];
            meter.sent(&Sent::Other { capabilities: 0 }, 200 - OVERHEAD);
            assert!(all.iter().all(takes));
            meter.sent(&Sent::Other { capabilities: 0 }, 1);
            assert_eq!(all.each_ref().map(takes), [false, false, true, true]);
            meter.message_written();
            assert!(all.iter().all(takes));
        })
        .unwrap();
    }

    #[test]
    fn a_number_that_is_in_use_is_refused() {
        let meter = meter();
        call(&meter, 7, 1);
        assert!(meter.received(&Received::Call { id: 7 }, 1).is_err());
    }

    proptest! {
        /// However a peer orders its messages, the book balances: once all its calls have ended, nothing is left on it.
        #[test]
        fn the_book_balances_whatever_the_order(steps in prop::collection::vec((0..4_u32, 0..6_u8), 0..200)) {
            let meter = Meter::new(Limits::default());
            let mut serials = HashMap::new();
            for (id, step) in steps {
                match step {
                    0 | 1 => if let Ok(serial) = meter.received(&Received::Call { id }, 10) {
                        serials.entry(id).or_insert_with(Vec::new).push(serial);
                    },
                    2 => meter.sent(&Sent::Return { id, capabilities: 1, last: false }, 10),
                    3 => meter.sent(&Sent::Return { id, capabilities: 0, last: true }, 10),
                    4 => drop(meter.received(&Received::Finish { id, release: true }, 4)),
                    _ => if let Some(serial) = serials.get_mut(&id).and_then(Vec::pop) { meter.unloaded(id, serial) },
                }
            }
            for id in 0..4 {
                let _ = meter.received(&Received::Finish { id, release: true }, 4);
                serials.remove(&id).into_iter().flatten().for_each(|serial| meter.unloaded(id, serial));
            }
            let book = meter.book.borrow();
            prop_assert_eq!((book.calls.len(), book.in_flight, book.call_words), (0, 0, 0));
        }
    }
}
