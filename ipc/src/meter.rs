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

struct Call {
    serial: u64,
    words: usize,
    /// Its answer went out.
    returned: bool,
    /// The peer needs it no more; before `returned`, that cancels it, unless calls that are pipelined on it want its result.
    finished: bool,
    /// Its parameters are in memory.
    loaded: bool,
    /// What the answer holds, from `returned` to `finished`.
    held_words: usize,
    held_capabilities: u32,
}

impl Call {
    /// Whether it counts as in flight. A cancelled call does for as long as something (a call pipelined on it) keeps its parameters.
    fn in_flight(&self) -> bool {
        !self.returned && (!self.finished || self.loaded)
    }

    /// Whether the peer has given it up before it was answered. It may never be: capnp-rpc answers it only if something waits for it.
    fn cancelled(&self) -> bool {
        self.finished && !self.returned
    }
}

/// Every total follows from the calls that are on the book, but for `capabilities`: a peer keeps those beyond the answer they came with.
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
    /// Applies `change` to a call and settles what it means for the totals. A call leaves the book once it is answered and finished,
    /// in whatever order: then capnp-rpc forgets it as well.
    fn update(&mut self, id: u32, change: impl FnOnce(&mut Call)) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (was_in_flight, was_cancelled, held) = (call.in_flight(), call.cancelled(), call.held_words);
        change(call);
        if call.finished {
            call.held_words = 0;
        }
        self.held_words = self.held_words.saturating_sub(held).saturating_add(call.held_words);
        if was_in_flight && !call.in_flight() {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.call_words = self.call_words.saturating_sub(call.words);
        }
        self.cancelled = self.cancelled.saturating_sub(was_cancelled.into()).saturating_add(call.cancelled().into());
        if call.finished && call.returned {
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
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn meter() -> Rc<Meter> {
        Meter::new(Limits { calls_in_flight: 2, call_words: 100, ..Limits::default() })
    }

    fn call(meter: &Meter, id: u32, words: usize) -> u64 {
        meter.received(&Received::Call { id }, words)
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
        meter.received(&Received::Finish { id: 1, release: true }, 4);
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
        meter.received(&Received::Finish { id: 0, release: false }, 4);
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
        assert!(meter.check_unused(7).is_err() && meter.check_unused(8).is_ok());
    }

    #[test]
    fn an_answer_to_a_call_that_was_given_up_before_holds_nothing() {
        let meter = meter();
        for id in 0..1000 {
            let serial = call(&meter, id, 1);
            meter.received(&Received::Finish { id, release: true }, 4);
            meter.unloaded(id, serial);
            meter.sent(&Sent::Return { id, capabilities: 0, last: false }, 10);
        }
        let book = meter.book.borrow();
        assert_eq!((book.calls.len(), book.held_words, book.cancelled), (0, 0, 0));
    }

    #[test]
    fn answers_may_be_held_up_to_the_limits_and_not_past_them() {
        let meter = Meter::new(Limits { held_words: 1000, capabilities: 3, ..Limits::default() });
        call(&meter, 0, 1);
        meter.sent(&Sent::Return { id: 0, capabilities: 2, last: false }, 100);
        assert!(meter.may_hold(1000 - 2 * OVERHEAD - 100, 1).is_ok());
        let fault = meter.may_hold(1001 - 2 * OVERHEAD - 100, 1).unwrap_err();
        assert!(fault.code == Code::Exhausted && fault.why.contains("228 words"), "{fault}");
        let fault = meter.may_hold(1, 2).unwrap_err();
        assert!(fault.code == Code::Exhausted && fault.why.contains("2 capabilities"), "{fault}");
        meter.received(&Received::Finish { id: 0, release: false }, 4);
        assert!(meter.may_hold(1000 - OVERHEAD, 1).is_ok());
        assert!(meter.may_hold(1, 2).is_err());
        meter.received(&Received::Release { count: 1 }, 4);
        assert!(meter.may_hold(1, 2).is_ok());
    }

    #[test]
    fn calls_may_begin_until_so_many_were_cancelled() {
        let meter = Meter::new(Limits { cancelled_calls: 2, ..Limits::default() });
        for id in 0..2 {
            assert!(meter.may_begin(64).is_ok());
            assert!(meter.may_begin(65).is_err());
            call(&meter, id, 1);
            meter.received(&Received::Finish { id, release: true }, 4);
        }
        assert_eq!(meter.may_begin(0).unwrap_err().code, Code::Exhausted);
        // One of them is answered after all.
        meter.sent(&Sent::Return { id: 0, capabilities: 0, last: false }, 10);
        assert!(meter.may_begin(0).is_ok());
    }

    proptest! {
        /// However a peer orders its messages, and whatever it drops before it is answered, the book balances in words and in
        /// capabilities: once all calls have ended and all that was given is released, nothing is left on it but the calls that were
        /// cancelled and never answered.
        #[test]
        fn the_book_balances_whatever_the_order(steps in prop::collection::vec((0..4_u32, 0..8_u8), 0..300)) {
            let meter = Meter::new(Limits::default());
            let mut peer = Peer::default();
            for (id, step) in steps {
                peer.step(&meter, id, step)?;
                let book = meter.book.borrow();
                prop_assert_eq!(book.capabilities, peer.capabilities());
                prop_assert_eq!(book.in_flight as usize, book.calls.values().filter(|call| call.in_flight()).count());
                prop_assert_eq!(book.cancelled as usize, book.calls.values().filter(|call| call.cancelled()).count());
                prop_assert_eq!(book.held_words, book.calls.values().map(|call| call.held_words).sum::<usize>());
            }
            for id in 0..4 {
                // Finished, answered and unloaded, in that order.
                for step in [4, 2, 6] {
                    peer.step(&meter, id, step)?;
                }
            }
            while peer.owned > 0 {
                peer.step(&meter, 0, 7)?;
            }
            let book = meter.book.borrow();
            prop_assert_eq!((book.calls.len(), book.in_flight, book.call_words, book.cancelled), (0, 0, 0, 0));
            prop_assert_eq!((book.held_words, book.capabilities), (0, 0));
        }
    }

    /// What a peer and capnp-rpc do with four questions: the messages that there can be, in any order.
    #[derive(Default)]
    struct Peer {
        /// Its entry; whether it was answered, and finished; what its answer holds.
        calls: HashMap<u32, Question>,
        /// Capabilities that it keeps beyond their answers.
        owned: u32,
    }

    struct Question {
        serial: u64,
        loaded: bool,
        returned: bool,
        finished: bool,
        held: u32,
    }

    impl Peer {
        fn capabilities(&self) -> u32 {
            self.owned + self.calls.values().map(|question| question.held).sum::<u32>()
        }

        fn step(&mut self, meter: &Meter, id: u32, step: u8) -> Result<(), TestCaseError> {
            let Some(question) = self.calls.get_mut(&id) else {
                if step <= 1 {
                    let serial = meter.received(&Received::Call { id }, 10);
                    let question = Question { serial, loaded: true, returned: false, finished: false, held: 0 };
                    self.calls.insert(id, question);
                } else if step == 7 && self.owned > 0 {
                    self.owned -= 1;
                    meter.received(&Received::Release { count: 1 }, 4);
                }
                return Ok(());
            };
            match step {
                0 | 1 => prop_assert!(meter.check_unused(id).is_err()),
                // A call that was given up before is answered without results, if it is at all.
                2 | 3 if !question.returned => {
                    question.returned = true;
                    let capabilities = if question.finished { 0 } else { 2 };
                    let last = step == 3 && !question.finished;
                    let capabilities = if last { 0 } else { capabilities };
                    question.held = capabilities;
                    question.finished |= last;
                    meter.sent(&Sent::Return { id, capabilities, last }, 10);
                }
                4 | 5 if !question.finished => {
                    question.finished = true;
                    let release = step == 4;
                    let held = std::mem::take(&mut question.held);
                    self.owned += if release { 0 } else { held };
                    meter.received(&Received::Finish { id, release }, 4);
                }
                6 if question.loaded => {
                    question.loaded = false;
                    meter.unloaded(id, question.serial);
                }
                _ => {}
            }
            if question.finished && question.returned {
                // Its parameters may be in memory longer, and count for nothing.
                let question = self.calls.remove(&id).unwrap();
                meter.unloaded(id, question.serial);
            }
            Ok(())
        }
    }
}
