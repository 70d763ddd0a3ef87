//! Tests of the meter: what counts until when, and the limits on both sides.

use super::*;

use futures::FutureExt;
use proptest::prelude::*;
use std::collections::HashMap;

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
