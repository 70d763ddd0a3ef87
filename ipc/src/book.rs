//! The book of one connection: the calls whose parameters or answers this process holds for its peer, and their totals. Touches nothing
//! but itself; what follows from it is for the meter to say.

use std::collections::{HashMap, VecDeque};

/// A question of the peer's that is on the book.
pub(crate) struct Call {
    pub serial: u64,
    pub words: usize,
    /// Its answer went out.
    pub returned: bool,
    /// The peer needs it no more; before `returned`, that cancels it, unless calls that are pipelined on it want its result.
    pub finished: bool,
    /// Its parameters are in memory.
    pub loaded: bool,
    /// What the answer holds, from `returned` to `finished`.
    pub held_words: usize,
    pub held_capabilities: u32,
}

impl Call {
    /// Whether it counts as in flight. A cancelled call does for as long as something (a call pipelined on it) keeps its parameters.
    pub fn in_flight(&self) -> bool {
        !self.returned && (!self.finished || self.loaded)
    }

    /// Whether the peer has given it up before it was answered. It may never be: capnp-rpc answers it only if something waits for it.
    pub fn cancelled(&self) -> bool {
        self.finished && !self.returned
    }
}

/// Every total follows from the calls that are on the book, but for `capabilities`: a peer keeps those beyond the answer they came with.
#[derive(Default)]
pub(crate) struct Book {
    pub calls: HashMap<u32, Call>,
    pub serial: u64,
    pub in_flight: u32,
    pub call_words: usize,
    pub held_words: usize,
    pub capabilities: u32,
    pub cancelled: u32,
    pub unread: VecDeque<usize>,
    pub unread_words: usize,
}

impl Book {
    /// Applies `change` to a call and settles what it means for the totals. A call leaves the book once it is answered and finished,
    /// in whatever order: then capnp-rpc forgets it as well.
    pub fn update(&mut self, id: u32, change: impl FnOnce(&mut Call)) {
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
