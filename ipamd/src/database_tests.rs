//! Tests of the group and its thread: group commit, failures, and what is done although nobody waits.

use super::*;
use crate::ledger::Limits;
use crate::store::{Binding, Leased, PoolId, Reserved, Store};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ipc::Peer;
use service::owner;
use tokio::sync::Semaphore;
use tokio::sync::oneshot::{self, error::TryRecvError};

const CONFIG: &str = r#"{"network":"volt0","subnet":"10.42.0.0/24"}"#;

/// A ledger on a new file.
pub(crate) struct NewLedger {
    pub(crate) ledger: Ledger,
    pub(crate) path: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl NewLedger {
    pub(crate) fn make(limits: Limits) -> NewLedger {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipamd.sqlite");
        let ledger = Ledger::open(Store::open(&path).unwrap(), limits, Now::read()).unwrap();
        NewLedger { ledger, path, dir }
    }
}

fn quota() -> crate::ledger::Quota {
    Arc::new(Semaphore::new(1000))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    ipc::run(future).unwrap()
}

/// A ledger with one pool and a lease of it.
fn with_lease() -> (Group, PoolId, LeaseId, tempfile::TempDir) {
    let NewLedger { mut ledger, dir, .. } = NewLedger::make(Limits::default());
    ledger.store().run("BEGIN").unwrap();
    let pool = ledger.define(CONFIG).unwrap();
    let lease = ledger.allocate(pool, "vm-a", &quota()).unwrap();
    ledger.store().run("COMMIT").unwrap();
    (Group::new(ledger), pool, lease, dir)
}

/// What a group is asked for; the answer comes with its turn.
fn ask<T: Send + 'static>(
    group: &mut Group,
    f: impl FnOnce(&mut Ledger) -> Result<T, Fault> + Send + 'static,
) -> oneshot::Receiver<Result<T, Fault>> {
    let (answer, answered) = oneshot::channel();
    group.add(once(f), false, answer);
    answered
}

/// As [`ask`], of what is tried again.
fn ask_always<T: Send + 'static>(
    group: &mut Group,
    f: impl FnMut(&mut Ledger) -> Result<T, Fault> + Send + 'static,
) -> oneshot::Receiver<Result<T, Fault>> {
    let (answer, answered) = oneshot::channel();
    group.add(f, true, answer);
    answered
}

fn is_in_grace(group: &Group, lease: LeaseId) -> bool {
    group.ledger.lease_info(lease).unwrap().binding.lease.unwrap().grace_until.is_some()
}

#[test]
fn what_waits_shares_one_commit_and_is_answered_after_it() {
    /// Notes that it is dropped, which an answer is at once that nobody awaits.
    struct Answered(Arc<Mutex<String>>);
    impl Drop for Answered {
        fn drop(&mut self) {
            self.0.lock().unwrap().push('a');
        }
    }
    let NewLedger { ledger, path, dir: _dir } = NewLedger::make(Limits::default());
    let (owner, inbox) = owner::<Group>();
    let seen = Arc::new(Mutex::new(String::new()));
    block_on(async {
        for n in 0..GROUP + 10 {
            let seen = Answered(seen.clone());
            // No client has room for so many.
            let of = Peer { pid: (n / 100) as i32, ..Peer::this_process() };
            let database = Database::from(owner.of(of));
            let mut asked = Box::pin(database.ask(move |ledger| {
                let pool = ledger.define(r#"{"network":"w","subnet":"10.0.0.0/8"}"#)?;
                ledger.allocate(pool, &format!("vm-{n}"), &quota())?;
                seen.0.lock().unwrap().push('r');
                Ok(seen)
            }));
            assert!(futures::poll!(&mut asked).is_pending());
        }
    });
    drop(owner);
    inbox.run(Group::new(ledger)).unwrap();
    let expected = [GROUP, 10].map(|group| "r".repeat(group) + &"a".repeat(group)).concat();
    assert!(*seen.lock().unwrap() == expected, "{}", seen.lock().unwrap());
    let ledger = Ledger::open(Store::open(&path).unwrap(), Limits::default(), Now::read()).unwrap();
    assert_eq!(ledger.pool(1).unwrap().2, (1 << 24) - 3 - (GROUP as u64 + 10));
}

/// Runs the thread on a new ledger, for a test that asks it things.
fn with_thread(test: impl AsyncFnOnce(Database, PathBuf)) {
    let NewLedger { ledger, path, dir: _dir } = NewLedger::make(Limits::default());
    let (owner, inbox) = owner();
    let thread = std::thread::spawn(move || inbox.run(Group::new(ledger)));
    block_on(test(owner.into(), path));
    thread.join().unwrap().unwrap();
}

#[test]
fn a_request_that_fails_undoes_its_own_writes_and_no_others() {
    with_thread(async |database, _| {
        let pool = database.ask(|ledger| ledger.define(CONFIG)).await.unwrap();
        let good = database.ask(move |ledger| ledger.allocate(pool, "vm-a", &quota()));
        let bad = database.ask(move |ledger| -> Result<(), Fault> {
            let address = "10.42.0.99".parse().unwrap();
            let lease = Some(Leased { id: 77, grace_until: None });
            ledger
                .store()
                .insert(&Binding { pool, address, workload: "vm-x".into(), lease, reserved: Reserved::No })
                .unwrap();
            Err(fault(Code::Conflict, "", "on purpose", ""))
        });
        let (good, bad) = futures::join!(good, bad);
        assert!(good.is_ok());
        assert_eq!(bad.unwrap_err().why, "on purpose");
        let rows = database.ask(move |ledger| ledger.leases(pool, "")).await.unwrap();
        assert_eq!(rows.iter().map(|info| info.binding.workload.as_str()).collect::<Vec<_>>(), ["vm-a"]);
    });
}

#[test]
fn a_group_whose_commit_fails_fails_as_a_whole_and_leaves_no_trace() {
    with_thread(async |database, _| {
        let pool = database.ask(|ledger| ledger.define(CONFIG)).await.unwrap();
        let kept = database.ask(move |ledger| ledger.allocate(pool, "vm-a", &quota())).await.unwrap();
        let lost = database.ask(move |ledger| {
            let lease = ledger.allocate(pool, "vm-b", &quota());
            // As SQLite does by itself on a full disk.
            ledger.store().run("ROLLBACK").unwrap();
            lease
        });
        let after = database.ask(move |ledger| ledger.allocate(pool, "vm-c", &quota()));
        let (lost, after) = futures::join!(lost, after);
        assert_eq!(lost.unwrap_err().code, Code::Internal);
        // In the same group or, if the thread was quick, in the next one.
        let expected = 1 + usize::from(after.is_ok());
        let (rows, free) =
            database.ask(move |ledger| Ok((ledger.leases(pool, "")?, ledger.pool(pool)?.2))).await.unwrap();
        assert_eq!(rows.len(), expected);
        assert_eq!(rows[0].binding.lease.unwrap().id, kept);
        assert_eq!(free, 253 - expected as u64);
    });
}

#[test]
fn a_panic_leaves_no_trace_and_its_caller_is_told_and_the_next_request_is_served() {
    with_thread(async |database, _| {
        let pool = database.ask(|ledger| ledger.define(CONFIG)).await.unwrap();
        let kept = database.ask(move |ledger| ledger.allocate(pool, "vm-k", &quota())).await.unwrap();
        let panicked = database
            .ask(move |ledger| -> Result<(), Fault> {
                ledger.allocate(pool, "vm-a", &quota())?;
                ledger.release(kept)?;
                panic!("on purpose")
            })
            .await;
        assert_eq!(panicked.unwrap_err().why, "its handler panicked");
        let rows = database.ask(move |ledger| ledger.leases(pool, "")).await.unwrap();
        assert_eq!(rows.iter().map(|info| info.binding.workload.as_str()).collect::<Vec<_>>(), ["vm-k"]);
        assert_eq!(database.ask(move |ledger| ledger.pool(pool)).await.unwrap().2, 252);
        database.ask(move |ledger| ledger.allocate(pool, "vm-a", &quota())).await.unwrap();
    });
}

#[test]
fn others_of_a_group_in_which_one_panics_are_told_so_or_done_once_more_and_what_is_due_stays_so() {
    let (mut group, pool, lease, _dir) = with_lease();
    let mut before = ask(&mut group, move |ledger| ledger.allocate(pool, "vm-b", &quota()));
    let mut given = ask_always(&mut group, move |ledger| ledger.lease_info(lease));
    let mut panics = ask_always(&mut group, |_| -> Result<(), Fault> { panic!("on purpose") });
    let mut after = ask(&mut group, move |ledger| ledger.allocate(pool, "vm-c", &quota()));
    group.due.abandoned.push_back(lease);
    // As the thread does.
    catch_unwind(AssertUnwindSafe(|| group.tidy())).unwrap_err();
    group.renew().unwrap();
    assert_eq!(panics.try_recv(), Err(TryRecvError::Closed), "who asked for what panicked hears no more of it");
    for other in [&mut before, &mut after] {
        let Err(fault) = other.try_recv().unwrap() else { panic!("it was done") };
        assert_eq!((fault.code, &*fault.remedy), (Code::Internal, "Try again"));
    }
    assert_eq!(given.try_recv().unwrap_err(), TryRecvError::Empty);
    assert!(!is_in_grace(&group, lease) && group.due().unwrap() <= Instant::now());
    // Whatever the thread does next, that is done once more.
    assert!(!group.tidy().unwrap());
    assert!(given.try_recv().unwrap().is_ok() && is_in_grace(&group, lease) && group.due.is_empty());
    assert_eq!(group.ledger.leases(pool, "").unwrap().len(), 1);
}

#[test]
fn a_panic_that_is_none_of_a_request_s_is_rested_after_and_fails_what_was_done_once_more() {
    let (mut group, _, lease, _dir) = with_lease();
    let mut given = ask_always(&mut group, move |ledger| ledger.lease_info(lease));
    group.renew().unwrap();
    assert_eq!(given.try_recv().unwrap_err(), TryRecvError::Empty);
    group.renew().unwrap();
    assert_eq!(given.try_recv().unwrap().unwrap_err().code, Code::Internal);
    group.due.abandoned.push_back(lease);
    assert!(group.due().unwrap() > Instant::now());
}

#[test]
fn a_panic_behind_the_commit_leaves_the_others_the_answers_that_are_true() {
    struct PanicsWhereNobodyAwaitsIt;
    impl Drop for PanicsWhereNobodyAwaitsIt {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let (mut group, pool, lease, _dir) = with_lease();
    let mut before = ask(&mut group, move |ledger| ledger.allocate(pool, "vm-before", &quota()));
    drop(ask(&mut group, |_| Ok(PanicsWhereNobodyAwaitsIt)));
    let mut given = ask(&mut group, move |ledger| ledger.allocate(pool, "vm-b", &quota()));
    let mut failed = ask(&mut group, |ledger| ledger.define("no configuration"));
    let runs = Arc::new(Mutex::new(0));
    let counted = runs.clone();
    let mut again = ask_always(&mut group, move |ledger| {
        *counted.lock().unwrap() += 1;
        ledger.lease_info(lease)
    });
    group.due.abandoned.push_back(lease);
    catch_unwind(AssertUnwindSafe(|| group.tidy())).unwrap_err();
    group.renew().unwrap();
    let [before, given] = [&mut before, &mut given].map(|answer| answer.try_recv().unwrap().unwrap());
    for (lease, workload) in [(before, "vm-before"), (given, "vm-b")] {
        assert_eq!(group.ledger.lease_info(lease).unwrap().binding.workload, workload);
    }
    assert_eq!(failed.try_recv().unwrap().unwrap_err().code, Code::InvalidArgument);
    again.try_recv().unwrap().unwrap();
    assert_eq!(*runs.lock().unwrap(), 1);
    assert!(group.due.is_empty() && is_in_grace(&group, lease));
    // The next group is its own: what it did is undone again.
    let mut undone = ask(&mut group, move |ledger| ledger.allocate(pool, "vm-c", &quota()));
    drop(ask(&mut group, |_| -> Result<(), Fault> { panic!("on purpose") }));
    catch_unwind(AssertUnwindSafe(|| group.tidy())).unwrap_err();
    group.renew().unwrap();
    assert_eq!(undone.try_recv().unwrap().unwrap_err().code, Code::Internal);
}

#[test]
fn a_ledger_that_cannot_be_made_anew_ends_the_thread() {
    let NewLedger { ledger, dir: _dir, .. } = NewLedger::make(Limits::default());
    let (owner, inbox) = owner();
    let thread = std::thread::spawn(move || inbox.run(Group::new(ledger)));
    let database = Database::from(owner);
    let lost = block_on(database.ask(|ledger| -> Result<(), Fault> {
        ledger.define(CONFIG)?;
        ledger.store().run("COMMIT").unwrap();
        ledger.store().run("DROP TABLE binding").unwrap();
        panic!("on purpose")
    }));
    assert_eq!(lost.unwrap_err().why, "its handler panicked");
    assert!(thread.join().unwrap().unwrap_err().to_string().contains("no such table"));
    assert_eq!(block_on(database.ask(|_| Ok(()))).unwrap_err().code, Code::Internal);
}

#[test]
fn an_answer_that_nobody_awaits_any_more_is_dropped_and_gives_back_what_it_holds() {
    struct Guard(Database, LeaseId);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.abandon(self.1);
        }
    }
    with_thread(async |database, _| {
        let pool = database.ask(|ledger| ledger.define(CONFIG)).await.unwrap();
        let handle = database.clone();
        let mut asked = Box::pin(database.ask(move |ledger| {
            std::thread::sleep(Duration::from_millis(50));
            ledger.allocate(pool, "vm-a", &quota()).map(|id| Guard(handle, id))
        }));
        assert!(futures::poll!(&mut asked).is_pending());
        drop(asked);
        let rows = database.ask(move |ledger| ledger.leases(pool, "")).await.unwrap();
        assert_eq!(rows.len(), 1, "what was asked for is done all the same");
        let rows = database.ask(move |ledger| ledger.leases(pool, "")).await.unwrap();
        assert!(rows[0].binding.lease.unwrap().grace_until.is_some(), "{rows:?}");
    });
}

#[test]
fn what_nobody_waits_for_stays_due_until_a_commit_has_it() {
    let (mut group, _, lease, _dir) = with_lease();
    group.due.abandoned.push_back(lease);
    // As on a disk that cannot be written to.
    group.ledger.store().run("PRAGMA query_only = ON").unwrap();
    assert!(!group.tidy().unwrap() && !group.due.is_empty() && !is_in_grace(&group, lease));
    assert!(group.due().unwrap() > Instant::now(), "it is tried again after a rest");
    group.ledger.store().run("PRAGMA query_only = OFF").unwrap();
    assert!(!group.tidy().unwrap() && group.due.is_empty() && is_in_grace(&group, lease));
}

#[test]
fn holders_that_go_at_once_are_done_in_batches_beside_which_others_are_served_and_both_get_on() {
    let NewLedger { mut ledger, dir: _dir, .. } = NewLedger::make(Limits::default());
    let many = 4 * BATCH;
    ledger.store().run("BEGIN").unwrap();
    let pool = ledger.define(r#"{"network":"w","subnet":"10.0.0.0/8"}"#).unwrap();
    let quota: crate::ledger::Quota = Arc::new(Semaphore::new(2 * many));
    let leases: Vec<_> = (0..many).map(|n| ledger.allocate(pool, &format!("vm-{n}"), &quota).unwrap()).collect();
    ledger.store().run("COMMIT").unwrap();
    let mut group = Group::new(ledger);
    let in_grace = |group: &Group| leases.iter().filter(|lease| is_in_grace(group, **lease)).count();
    group.due.abandoned.extend(&leases);
    for round in 1..=3 {
        let mut other = ask(&mut group, |_| Ok(()));
        assert!(group.tidy().unwrap(), "there is more to be done at once");
        other.try_recv().expect("it waits for one batch, and not for all").unwrap();
        assert_eq!(in_grace(&group), round * (BATCH + 1));
    }
    // A lease of one that has gone, and was not come to yet, is as one in its grace period to who asks for it.
    let address = group.ledger.lease_info(leases[many - 1]).unwrap().binding.address;
    let mut again = ask(&mut group, move |ledger| ledger.allocate(pool, &format!("vm-{}", many - 1), &quota));
    assert!(!group.tidy().unwrap() && group.due.is_empty(), "and the batches come to an end");
    let again = again.try_recv().unwrap().unwrap();
    assert_eq!(group.ledger.lease_info(again).unwrap().binding.address, address);
}

#[test]
fn what_gives_something_back_is_done_alone_where_its_group_fails_and_its_space_is_there_again_after() {
    let (mut group, pool, lease, dir) = with_lease();
    let mut fails = ask(&mut group, move |ledger| {
        let lease = ledger.allocate(pool, "vm-b", &quota());
        ledger.store().run("ROLLBACK").unwrap();
        lease
    });
    let mut given = ask_always(&mut group, move |ledger| ledger.release(lease));
    group.tidy().unwrap();
    assert_eq!(group.rest, None, "it was committed");
    given.try_recv().unwrap().unwrap();
    fails.try_recv().unwrap().unwrap_err();
    assert_eq!(group.ledger.leases(pool, "").unwrap(), []);
    assert_eq!(std::fs::metadata(dir.path().join("reserve")).unwrap().len(), crate::reserve::BYTES);
}

#[test]
fn a_client_has_so_many_requests_waiting_and_no_more_and_is_in_front_of_no_other() {
    let NewLedger { ledger, dir: _dir, .. } = NewLedger::make(Limits::default());
    let (owner, inbox) = owner::<Group>();
    let database = Database::from(owner);
    let served = Arc::new(Mutex::new(String::new()));
    let note = |name| {
        let served = served.clone();
        move |_: &mut Ledger| {
            served.lock().unwrap().push(name);
            Ok(())
        }
    };
    block_on(async {
        let mut waiting: Vec<_> = (0..Group::ROOM.per_client).map(|_| Box::pin(database.ask(note('m')))).collect();
        for one in &mut waiting {
            assert!(futures::poll!(one).is_pending());
        }
        assert_eq!(database.ask(note('x')).await.unwrap_err().code, Code::Overloaded);
        let of_other = database.of(Peer::this_process());
        let mut other = Box::pin(of_other.ask(note('o')));
        assert!(futures::poll!(&mut other).is_pending());
    });
    drop(database);
    inbox.run(Group::new(ledger)).unwrap();
    // Of the first two, one is the other client's.
    assert!(served.lock().unwrap().starts_with("mo"), "{}", served.lock().unwrap());
}
