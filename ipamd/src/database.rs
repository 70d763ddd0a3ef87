//! The thread that owns the ledger, and group commit: what was asked for while the last commit went to the disk is done in one transaction,
//! and answered once that one is on the disk. What is asked for here is done even if nobody waits for the answer any more; the answer's
//! `Drop` then gives back what it held.
//!
//! What nobody waits for is done in batches beside what is asked for, so that the end of one who held much costs others little. What takes
//! no space, and above all what gives some back, is tried once more if its group fails, without the others and with the space that is
//! kept for it: it has to succeed on a full disk.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use ipc::{ClientId, Code, Fault, Gone, Receiver, Refused, Room, Sender};
use tokio::sync::oneshot;

use crate::fault::{database, fault};
use crate::ledger::{Ledger, Now};
use crate::store::{LeaseId, RefHash};

/// Requests that may wait for the thread at one time.
const ROOM: Room = Room { per_client: 256, total: 4096 };
/// Requests that share one commit at most.
const GROUP: usize = 512;
/// Leases whose holders have gone that one commit has, beside as many as there are requests in it: no request makes more than one
/// such, so that they never pile up.
const BATCH: usize = 256;
/// How soon to try again what must be done although nobody waits for it.
const RETRY: Duration = Duration::from_secs(1);

/// What has to be done although nobody waits for it. It stays due until a commit has it.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// The holder of a lease has gone.
    Abandoned(LeaseId),
    /// Nobody ever got the SturdyRef of this reservation.
    Unclaimed(RefHash),
}

enum Message {
    Asked(Box<dyn Request>),
    Told(Told),
}

/// What a client asks for.
trait Request: Send {
    /// Does it, in a transaction; [again](Request::again) in a later one if that fails.
    fn run(&mut self, ledger: &mut Ledger);
    fn again(&self) -> bool;
    /// Tells what became of it, and of the transaction.
    fn answer(self: Box<Self>, committed: Result<(), Fault>);
}

struct Asked<F, T> {
    work: F,
    again: bool,
    result: Result<T, Fault>,
    sender: oneshot::Sender<Result<T, Fault>>,
}

impl<T: Send, F: FnMut(&mut Ledger) -> Result<T, Fault> + Send> Request for Asked<F, T> {
    fn run(&mut self, ledger: &mut Ledger) {
        self.result = in_savepoint(ledger, &mut self.work);
    }

    fn again(&self) -> bool {
        self.again
    }

    fn answer(self: Box<Self>, committed: Result<(), Fault>) {
        // Nobody waits if this fails: the answer's own Drop sees to what it holds.
        let _ = self.sender.send(committed.and(self.result));
    }
}

/// What was told, and is not done yet.
#[derive(Default)]
struct Due {
    unclaimed: Vec<RefHash>,
    abandoned: VecDeque<LeaseId>,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.unclaimed.is_empty() && self.abandoned.is_empty()
    }

    fn add(&mut self, told: Told) {
        match told {
            Told::Abandoned(lease) => self.abandoned.push_back(lease),
            Told::Unclaimed(hash) => self.unclaimed.push(hash),
        }
    }
}

/// A handle on the thread for one client.
#[derive(Clone)]
pub struct Database {
    messages: Sender<Message>,
    client: ClientId,
}

/// The thread's end of it.
pub struct Mailbox(Receiver<Message>);

/// A handle of this process's own, and what [`run`] needs to serve it.
pub fn mailbox() -> (Database, Mailbox) {
    let (messages, mailbox) = ipc::mailbox(ROOM);
    (Database { messages, client: ClientId::OWN }, Mailbox(mailbox))
}

impl Database {
    /// A handle for that client, whose turns are fair with the others'.
    pub fn of(&self, client: impl Into<ClientId>) -> Database {
        Database { messages: self.messages.clone(), client: client.into() }
    }

    /// Has `f` done in a transaction and gives its answer once that is on the disk. What `f` wrote is undone if it fails.
    ///
    /// # Errors
    /// Those of `f`; `exhausted` if too many requests of this client wait or the disk is full; `internal` if the database fails.
    pub async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Ledger) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let mut f = Some(f);
        let work = move |ledger: &mut Ledger| f.take().map_or_else(|| Err(lost()), |f| f(ledger));
        self.send(work, false).await
    }

    /// As [`Database::ask`], for what looks at something or gives it back: it is also done where the disk is full.
    ///
    /// # Errors
    /// As [`Database::ask`].
    pub async fn ask_always<T: Send + 'static>(
        &self,
        f: impl FnMut(&mut Ledger) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.send(f, true).await
    }

    async fn send<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Ledger) -> Result<T, Fault> + Send + 'static,
        again: bool,
    ) -> Result<T, Fault> {
        let (sender, receiver) = oneshot::channel();
        let request = Box::new(Asked { work, again, result: Err(lost()), sender });
        self.messages.ask(self.client, Message::Asked(request)).map_err(|refused| match refused {
            Refused::Gone => lost(),
            Refused::Full(fault) => fault,
        })?;
        receiver.await.map_err(|_| lost())?
    }

    /// For `Drop`: has something done without waiting. There is no limit but the number of objects that are alive.
    pub fn tell(&self, told: Told) {
        // Fails only when the thread has ended, and the process with it.
        let _ = self.messages.send(Message::Told(told));
    }
}

fn lost() -> Fault {
    fault(Code::Internal, "serve a request", "its handler panicked", "Report this as a defect")
}

fn in_savepoint<T>(ledger: &mut Ledger, f: impl FnOnce(&mut Ledger) -> Result<T, Fault>) -> Result<T, Fault> {
    let tried = "serve a request";
    // SQLite gave the transaction up for a request before this one. A savepoint would now be a transaction of its own.
    if !ledger.store().in_transaction() {
        return Err(fault(Code::Internal, tried, "the database failed a request of the same group", "Try again"));
    }
    ledger.store().run("SAVEPOINT request").map_err(database(tried))?;
    let result = f(ledger);
    if ledger.store().in_transaction() {
        if result.is_err() {
            ledger.store().run("ROLLBACK TO request").map_err(database(tried))?;
        }
        ledger.store().run("RELEASE request").map_err(database(tried))?;
    }
    result
}

/// Serves the mailbox until its last handle is gone.
///
/// # Errors
/// Where the ledger cannot be read again after a failure: the process had better end and start over from the disk.
pub fn run(mut ledger: Ledger, mailbox: Mailbox) -> Result<(), Fault> {
    let mut due = Due::default();
    let mut rest = None;
    loop {
        // What nobody waits for is due at once, but for a rest after a failure.
        let next = if due.is_empty() { ledger.next_due() } else { Some(Instant::now()) };
        let first = match next.map(|at| rest.map_or(at, |rest| at.max(rest))) {
            None => mailbox.0.receive().map(Some),
            Some(at) => mailbox.0.receive_until(at),
        };
        let first = match first {
            Ok(first) => first,
            Err(Gone) => return Ok(()),
        };
        let Turn { committed, .. } = turn(&mut ledger, &mailbox, first, &mut due)?;
        rest = (!committed).then(|| Instant::now() + RETRY);
    }
}

/// What became of what was due.
struct Turn {
    committed: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests see by it what shared a commit"))]
    answered: usize,
}

/// One transaction, or two where the first fails: whatever waits, committed together, then answered.
fn turn(ledger: &mut Ledger, mailbox: &Mailbox, first: Option<Message>, due: &mut Due) -> Result<Turn, Fault> {
    let mut requests = Vec::new();
    let room = if first.is_some() { GROUP } else { 0 };
    let asked = std::iter::from_fn(|| mailbox.0.asked_now()).take(room);
    // What was told before a request was made is known before that request is done: so it is looked for after them.
    for message in first.into_iter().chain(asked).chain(std::iter::from_fn(|| mailbox.0.sent_now())) {
        match message {
            Message::Asked(request) => requests.push(request),
            Message::Told(one) => due.add(one),
        }
    }
    let answered = requests.len();
    let batch = BATCH.saturating_add(answered).min(due.abandoned.len());
    let mut outcome = attempt(ledger, due, batch, &mut requests)?;
    if outcome.is_err() {
        let (again, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| request.again());
        others.into_iter().for_each(|request| request.answer(outcome.clone()));
        requests = again;
        if !requests.is_empty() || !due.is_empty() || ledger.is_due() {
            ledger.give_up_reserve();
            outcome = attempt(ledger, due, batch, &mut requests)?;
            ledger.regain_space();
        }
    }
    if outcome.is_ok() {
        due.unclaimed.clear();
        due.abandoned.drain(..batch);
    }
    requests.into_iter().for_each(|request| request.answer(outcome.clone()));
    ledger.fill_reserve();
    Ok(Turn { committed: outcome.is_ok(), answered })
}

/// Does it in a transaction. Where that fails, the ledger is as it was before.
fn attempt(
    ledger: &mut Ledger,
    due: &Due,
    batch: usize,
    requests: &mut [Box<dyn Request>],
) -> Result<Result<(), Fault>, Fault> {
    // A panic leaves memory in doubt, as a failed commit does.
    let outcome = catch_unwind(AssertUnwindSafe(|| transaction(ledger, due, batch, requests))).unwrap_or_else(|_| {
        Err(fault(
            Code::Internal,
            "serve a group of requests",
            "one of them panicked, none was done",
            "Report this as a defect",
        ))
    });
    match &outcome {
        Ok(()) => ledger.committed(),
        Err(_) => {
            if ledger.store().in_transaction() {
                ledger.store().run("ROLLBACK").map_err(database("undo a failed transaction"))?;
            }
            ledger.load()?;
        }
    }
    Ok(outcome)
}

fn transaction(ledger: &mut Ledger, due: &Due, batch: usize, requests: &mut [Box<dyn Request>]) -> Result<(), Fault> {
    const TRIED: &str = "commit a group of requests";
    ledger.store().run("BEGIN IMMEDIATE").map_err(database(TRIED))?;
    ledger.pass_time(Now::read())?;
    for hash in &due.unclaimed {
        match ledger.cancel(hash) {
            Err(fault) if fault.code != Code::Revoked => return Err(fault),
            _ => {}
        }
    }
    for lease in due.abandoned.iter().take(batch) {
        ledger.abandon(*lease)?;
    }
    // All of them, even after SQLite gave up the transaction: each has to be answered.
    requests.iter_mut().for_each(|request| request.run(ledger));
    ledger.store().run("COMMIT").map_err(database(TRIED))
}

#[cfg(test)]
#[path = "database_tests.rs"]
pub(crate) mod tests;
