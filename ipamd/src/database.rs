//! What the thread that has the file owns, and group commit: what was asked for while the last commit went to the disk is done in one
//! transaction, and answered once that one is on the disk. What is asked for here is done even if nobody waits for the answer any more; the
//! answer's `Drop` then gives back what it held.
//!
//! What nobody waits for is done in batches beside what is asked for, so that the end of one who held much costs others little. What takes
//! no space, and above all what gives some back, is tried once more if its group fails, without the others and with the space that is
//! kept for it: it has to succeed on a full disk.
//!
//! After a panic, memory is made anew from the database, as after a failed commit. Whoever asked for what panicked is told so; for the others
//! of its group it is as any failure of theirs. Where their commit was on the disk by then, each is told what became of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ipc::{ClientId, Code, Fault, Room};
use service::{Answer, Lost, Owner, State, Unserved};

use crate::fault::{database, fault};
use crate::ledger::{Ledger, Now};
use crate::store::{LeaseId, RefHash};

/// Requests that share one commit at most.
const GROUP: usize = 512;
/// Leases whose holders have gone that one commit has, beside as many as there are requests in it: no request makes more than one
/// such, so that they never pile up.
const BATCH: usize = 256;
/// How soon to try again what must be done although nobody waits for it.
const RETRY: Duration = Duration::from_secs(1);

/// A handle on the thread for one client.
#[derive(Clone)]
pub struct Database(Owner<Group>);

impl From<Owner<Group>> for Database {
    fn from(owner: Owner<Group>) -> Database {
        Database(owner)
    }
}

impl Database {
    /// A handle for that client, whose turns are fair with the others'.
    pub fn of(&self, client: impl Into<ClientId>) -> Database {
        Database(self.0.of(client))
    }

    /// Has `f` done in a transaction and gives its answer once that is on the disk. What `f` wrote is undone if it fails.
    ///
    /// # Errors
    /// Those of `f`; `exhausted` if the disk is full; `overloaded` if too many requests of this client wait; `internal` if the database fails.
    pub async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Ledger) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.0.ask_later(|group, answer| group.add(once(f), false, answer)).await
    }

    /// As [`Database::ask`], for what looks at something or gives it back: it is also done where the disk is full.
    ///
    /// # Errors
    /// As [`Database::ask`].
    pub async fn ask_always<T: Send + 'static>(
        &self,
        f: impl FnMut(&mut Ledger) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.0.ask_later(|group, answer| group.add(f, true, answer)).await
    }

    /// For `Drop`: the holder of a lease has gone. Never waits.
    pub fn abandon(&self, lease: LeaseId) {
        self.0.tell(move |group| group.due.abandoned.push_back(lease));
    }

    /// For `Drop`: nobody ever got the SturdyRef of this reservation. Never waits.
    pub fn cancel_unclaimed(&self, hash: RefHash) {
        self.0.tell(move |group| group.due.unclaimed.push(hash));
    }
}

/// What a client asks for.
trait Request: Send {
    /// Does it, in a transaction.
    fn run(&mut self, ledger: &mut Ledger);
    /// Whether to do it once more where that transaction fails. No second time.
    fn again(&mut self) -> bool;
    /// Tells what became of it, and of the transaction.
    fn answer(self: Box<Self>, committed: Result<(), Fault>);
}

struct Asked<F, T> {
    work: F,
    again: bool,
    result: Result<T, Fault>,
    answer: Answer<T, Fault>,
}

impl<T: Send, F: FnMut(&mut Ledger) -> Result<T, Fault> + Send> Request for Asked<F, T> {
    fn run(&mut self, ledger: &mut Ledger) {
        self.result = in_savepoint(ledger, &mut self.work);
    }

    fn again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    fn answer(self: Box<Self>, committed: Result<(), Fault>) {
        // Nobody waits if this fails: the answer's own Drop sees to what it holds.
        let _ = self.answer.send(committed.and(self.result));
    }
}

fn once<T>(f: impl FnOnce(&mut Ledger) -> Result<T, Fault>) -> impl FnMut(&mut Ledger) -> Result<T, Fault> {
    let mut f = Some(f);
    move |ledger| f.take().map_or_else(|| Err(Unserved::Lost.into()), |f| f(ledger))
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

/// What was told, and is not done yet. It stays due until a commit has it.
#[derive(Default)]
struct Due {
    /// Reservations whose SturdyRef nobody ever got.
    unclaimed: Vec<RefHash>,
    /// Leases whose holders have gone.
    abandoned: VecDeque<LeaseId>,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.unclaimed.is_empty() && self.abandoned.is_empty()
    }
}

/// The ledger, and what the next transaction is to do with it.
pub struct Group {
    ledger: Ledger,
    requests: VecDeque<Box<dyn Request>>,
    due: Due,
    /// The transaction of the requests that are left is on the disk: all that is missing is to answer them.
    on_disk: bool,
    /// Nothing is done before this that nobody waits for: it has just failed.
    rest: Option<Instant>,
}

impl State for Group {
    const ROOM: Room = Room { per_client: 256, total: 4096 };
    const JOBS: usize = GROUP;

    /// From the database, but for who holds a lease and which quotas count: that is nowhere else, and as true as before.
    fn renew(&mut self) -> Result<(), Lost> {
        self.undo()?;
        self.rest = Some(Instant::now() + RETRY);
        if self.on_disk {
            self.answer_all(&Ok(()));
            return Ok(());
        }
        let why = "another of its group panicked, and none was done";
        self.answer_all_but_again(&fault(Code::Internal, "serve a group of requests", why, "Try again"));
        Ok(())
    }

    fn tidy(&mut self) -> Result<bool, Lost> {
        let committed = self.turn()?;
        self.rest = (!committed).then(|| Instant::now() + RETRY);
        Ok(committed && !self.due.is_empty())
    }

    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        if !self.requests.is_empty() {
            // There was a panic, after which these are done once more.
            return Some(now);
        }
        let next = if self.due.is_empty() { self.ledger.next_due() } else { Some(now) };
        next.map(|at| self.rest.map_or(at, |rest| at.max(rest)))
    }
}

impl Group {
    /// Of a ledger that nothing was asked of yet.
    pub fn new(ledger: Ledger) -> Group {
        Group { ledger, requests: VecDeque::new(), due: Due::default(), on_disk: false, rest: None }
    }

    fn add<T: Send + 'static>(
        &mut self,
        work: impl FnMut(&mut Ledger) -> Result<T, Fault> + Send + 'static,
        again: bool,
        answer: Answer<T, Fault>,
    ) {
        self.requests.push_back(Box::new(Asked { work, again, result: Err(Unserved::Lost.into()), answer }));
    }

    /// One transaction, or two where the first fails: whatever waits, committed together, then answered. Whether it was committed.
    fn turn(&mut self) -> Result<bool, Fault> {
        let batch = BATCH.saturating_add(self.requests.len()).min(self.due.abandoned.len());
        let mut outcome = self.attempt(batch)?;
        if let Err(fault) = &outcome {
            self.answer_all_but_again(fault);
            if !self.requests.is_empty() || !self.due.is_empty() || self.ledger.is_due() {
                self.ledger.give_up_reserve();
                outcome = self.attempt(batch)?;
                self.ledger.regain_space();
            }
        }
        self.answer_all(&outcome);
        self.ledger.fill_reserve();
        Ok(outcome.is_ok())
    }

    fn answer_all(&mut self, outcome: &Result<(), Fault>) {
        // One by one: where one panics as it is dropped, the others are left.
        while let Some(request) = self.requests.pop_front() {
            request.answer(outcome.clone());
        }
        self.on_disk = false;
    }

    /// What is left are requests that are to be done once more.
    fn answer_all_but_again(&mut self, fault: &Fault) {
        for mut request in std::mem::take(&mut self.requests) {
            if request.again() {
                self.requests.push_back(request);
            } else {
                request.answer(Err(fault.clone()));
            }
        }
    }

    /// Does it in a transaction. Where that fails, the ledger is as it was before.
    fn attempt(&mut self, batch: usize) -> Result<Result<(), Fault>, Fault> {
        let outcome = self.transaction(batch);
        match outcome {
            Ok(()) => self.ledger.committed(),
            Err(_) => self.undo()?,
        }
        Ok(outcome)
    }

    fn undo(&mut self) -> Result<(), Fault> {
        if self.ledger.store().in_transaction() {
            self.ledger.store().run("ROLLBACK").map_err(database("undo a failed transaction"))?;
        }
        self.ledger.load()
    }

    fn transaction(&mut self, batch: usize) -> Result<(), Fault> {
        const TRIED: &str = "commit a group of requests";
        let Group { ledger, requests, due, on_disk, .. } = self;
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
        for _ in 0..requests.len() {
            if let Some(mut request) = requests.pop_front() {
                // Where this panics, the request goes, and its caller is told by that.
                request.run(ledger);
                requests.push_back(request);
            }
        }
        ledger.store().run("COMMIT").map_err(database(TRIED))?;
        *on_disk = true;
        due.unclaimed.clear();
        due.abandoned.drain(..batch);
        Ok(())
    }
}

#[cfg(test)]
#[path = "database_tests.rs"]
pub(crate) mod tests;
