//! The thread that owns the ledger, and group commit: what was asked for while the last commit went to the disk is done in one transaction,
//! and answered once that one is on the disk. What is asked for here is done even if nobody waits for the answer any more; the answer's
//! `Drop` then gives back what it held.

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
/// How soon to try again what must be done although nobody waits for it.
const RETRY: Duration = Duration::from_secs(1);

type Answer = Box<dyn FnOnce(Result<(), Fault>) + Send>;
type Job = Box<dyn FnOnce(&mut Ledger) -> Answer + Send>;

/// What has to be done although nobody waits for it. It stays due until a commit has it.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// The holder of a lease has gone.
    Abandoned(LeaseId),
    /// Nobody ever got the SturdyRef of this reservation.
    Unclaimed(RefHash),
}

enum Message {
    Asked(Job),
    Told(Told),
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
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |ledger| {
            let result = in_savepoint(ledger, f);
            Box::new(move |committed| {
                // Nobody waits if this fails: the answer's own Drop sees to what it holds.
                let _ = sender.send(committed.and(result));
            })
        });
        let lost = || fault(Code::Internal, "serve a request", "its handler panicked", "Report this as a defect");
        self.messages.ask(self.client, Message::Asked(job)).map_err(|refused| match refused {
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
    let mut told = Vec::new();
    let mut rest = None;
    loop {
        // What nobody waits for is due at once, but for a rest after a failure.
        let due = if told.is_empty() { ledger.next_due() } else { Some(Instant::now()) };
        let first = match due.map(|at| rest.map_or(at, |rest| at.max(rest))) {
            None => mailbox.0.receive().map(Some),
            Some(at) => mailbox.0.receive_until(at),
        };
        let first = match first {
            Ok(first) => first,
            Err(Gone) => return Ok(()),
        };
        let Turn { committed, .. } = turn(&mut ledger, &mailbox, first, &mut told)?;
        rest = (!committed).then(|| Instant::now() + RETRY);
    }
}

/// What became of one transaction.
struct Turn {
    committed: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests see by it what shared a commit"))]
    answered: usize,
}

/// One transaction: whatever waits, committed together, then answered.
fn turn(ledger: &mut Ledger, mailbox: &Mailbox, first: Option<Message>, told: &mut Vec<Told>) -> Result<Turn, Fault> {
    let mut jobs = Vec::new();
    let room = if first.is_some() { GROUP } else { 0 };
    let asked = std::iter::from_fn(|| mailbox.0.asked_now()).take(room);
    // Told before a request was made is done before that request, at the latest: so it is looked for after them.
    for message in first.into_iter().chain(asked).chain(std::iter::from_fn(|| mailbox.0.sent_now())) {
        match message {
            Message::Asked(job) => jobs.push(job),
            Message::Told(one) => told.push(one),
        }
    }
    let mut answers = Vec::with_capacity(jobs.len());
    // A panic leaves memory in doubt, as a failed commit does; the unanswered are told by the drop of their senders.
    let outcome = catch_unwind(AssertUnwindSafe(|| transaction(ledger, told, jobs, &mut answers)));
    let outcome = outcome.unwrap_or_else(|_| {
        Err(fault(
            Code::Internal,
            "serve a group of requests",
            "one of them panicked, none was done",
            "Report this as a defect",
        ))
    });
    match &outcome {
        Ok(()) => {
            told.clear();
            ledger.committed();
        }
        Err(_) => {
            if ledger.store().in_transaction() {
                ledger.store().run("ROLLBACK").map_err(database("undo a failed transaction"))?;
            }
            ledger.load()?;
        }
    }
    let turn = Turn { committed: outcome.is_ok(), answered: answers.len() };
    for answer in answers {
        answer(outcome.clone());
    }
    Ok(turn)
}

fn transaction(ledger: &mut Ledger, told: &[Told], jobs: Vec<Job>, answers: &mut Vec<Answer>) -> Result<(), Fault> {
    const TRIED: &str = "commit a group of requests";
    ledger.store().run("BEGIN IMMEDIATE").map_err(database(TRIED))?;
    ledger.pass_time(Now::read())?;
    for one in told {
        match one {
            Told::Abandoned(lease) => ledger.abandon(*lease)?,
            Told::Unclaimed(hash) => match ledger.cancel(hash) {
                Err(fault) if fault.code != Code::Revoked => return Err(fault),
                _ => {}
            },
        }
    }
    // All of them, even after SQLite gave up the transaction: each has to be answered.
    answers.extend(jobs.into_iter().map(|job| job(ledger)));
    ledger.store().run("COMMIT").map_err(database(TRIED))
}

#[cfg(test)]
#[path = "database_tests.rs"]
pub(crate) mod tests;
