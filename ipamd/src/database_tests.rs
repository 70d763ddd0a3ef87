//! Tests of the thread: group commit, failures, and what is done although nobody waits.

use super::*;
use crate::ledger::Limits;
use crate::store::{Binding, Leased, Reserved, Store};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

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

#[test]
fn what_waits_shares_one_commit_and_is_answered_after_it() {
    let NewLedger { mut ledger, path, dir: _dir } = NewLedger::make(Limits::default());
    let (database, mailbox) = mailbox();
    block_on(async {
        let mut asked = Vec::new();
        for n in 0..100 {
            let handle = database.clone();
            asked.push(tokio::task::spawn_local(async move {
                handle
                    .ask(move |ledger| {
                        let pool = ledger.define(CONFIG)?;
                        ledger.allocate(pool, &format!("vm-{n}"), &quota())
                    })
                    .await
            }));
        }
        // Every task has asked.
        while database.messages.asked() < 100 {
            tokio::task::yield_now().await;
        }
        let mut due = Due::default();
        let turn = turn(&mut ledger, &mailbox, None, &mut due).unwrap();
        assert_eq!(turn.answered, 0, "a turn without a message does what is due only");
        let first = mailbox.0.receive().unwrap();
        let turn = super::turn(&mut ledger, &mailbox, Some(first), &mut due).unwrap();
        assert_eq!((turn.answered, turn.committed), (100, true));
        for answer in asked {
            answer.await.unwrap().unwrap();
        }
    });
    drop(ledger);
    let ledger = Ledger::open(Store::open(&path).unwrap(), Limits::default(), Now::read()).unwrap();
    assert_eq!(ledger.leases(1, "").unwrap().len(), 100);
}

/// Runs the thread on a new ledger, for a test that asks it things.
fn with_thread(test: impl AsyncFnOnce(Database, PathBuf)) {
    let NewLedger { ledger, path, dir: _dir } = NewLedger::make(Limits::default());
    let (database, mailbox) = mailbox();
    let thread = std::thread::spawn(move || run(ledger, mailbox));
    block_on(test(database, path));
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
fn a_panic_fails_its_group_and_the_next_request_is_served() {
    with_thread(async |database, _| {
        let pool = database.ask(|ledger| ledger.define(CONFIG)).await.unwrap();
        let panicked = database
            .ask(move |ledger| -> Result<(), Fault> {
                ledger.allocate(pool, "vm-a", &quota())?;
                panic!("on purpose")
            })
            .await;
        assert_eq!(panicked.unwrap_err().code, Code::Internal);
        assert_eq!(database.ask(move |ledger| ledger.leases(pool, "")).await.unwrap(), []);
        database.ask(move |ledger| ledger.allocate(pool, "vm-a", &quota())).await.unwrap();
    });
}

#[test]
fn an_answer_that_nobody_awaits_any_more_is_dropped_and_gives_back_what_it_holds() {
    struct Guard(Database, LeaseId);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.tell(Told::Abandoned(self.1));
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
    let NewLedger { mut ledger, dir: _dir, .. } = NewLedger::make(Limits::default());
    let (_database, mailbox) = mailbox();
    ledger.store().run("BEGIN").unwrap();
    let pool = ledger.define(CONFIG).unwrap();
    let lease = ledger.allocate(pool, "vm-a", &quota()).unwrap();
    ledger.store().run("COMMIT").unwrap();
    let mut due = Due::default();
    // As on a disk that cannot be written to.
    ledger.store().run("PRAGMA query_only = ON").unwrap();
    let failed = turn(&mut ledger, &mailbox, Some(Message::Told(Told::Abandoned(lease))), &mut due).unwrap();
    assert!(!failed.committed && !due.is_empty());
    assert!(ledger.lease_info(lease).unwrap().binding.lease.unwrap().grace_until.is_none());
    ledger.store().run("PRAGMA query_only = OFF").unwrap();
    let done = turn(&mut ledger, &mailbox, None, &mut due).unwrap();
    assert!(done.committed && due.is_empty());
    assert!(ledger.lease_info(lease).unwrap().binding.lease.unwrap().grace_until.is_some());
}

/// A request that is asked for in a task, and its answer.
fn asked<T: Send + 'static>(
    database: &Database,
    f: impl FnOnce(&mut Ledger) -> Result<T, Fault> + Send + 'static,
) -> tokio::task::JoinHandle<Result<T, Fault>> {
    let handle = database.clone();
    tokio::task::spawn_local(async move { handle.ask(f).await })
}

#[test]
fn holders_that_go_at_once_are_done_in_batches_beside_which_others_are_served_and_both_get_on() {
    let NewLedger { mut ledger, dir: _dir, .. } = NewLedger::make(Limits::default());
    let (database, mailbox) = mailbox();
    let many = 4 * BATCH;
    ledger.store().run("BEGIN").unwrap();
    let pool = ledger.define(r#"{"network":"w","subnet":"10.0.0.0/8"}"#).unwrap();
    let quota: crate::ledger::Quota = Arc::new(Semaphore::new(2 * many));
    let leases: Vec<_> = (0..many).map(|n| ledger.allocate(pool, &format!("vm-{n}"), &quota).unwrap()).collect();
    ledger.store().run("COMMIT").unwrap();
    let in_grace = |ledger: &Ledger| {
        let state = |lease: &LeaseId| ledger.lease_info(*lease).unwrap().binding.lease.unwrap();
        leases.iter().filter(|lease| state(lease).grace_until.is_some()).count()
    };
    for lease in &leases {
        database.tell(Told::Abandoned(*lease));
    }
    block_on(async {
        let mut due = Due::default();
        for round in 1..=3 {
            let other = asked(&database, |_| Ok(()));
            while database.messages.asked() < 1 {
                tokio::task::yield_now().await;
            }
            let first = mailbox.0.receive().unwrap();
            let turn = turn(&mut ledger, &mailbox, Some(first), &mut due).unwrap();
            assert_eq!((turn.committed, turn.answered), (true, 1), "it waits for one batch, and not for all");
            other.await.unwrap().unwrap();
            assert_eq!(in_grace(&ledger), round * (BATCH + 1));
        }
        // A lease of one that has gone, and was not come to yet, is as one in its grace period to who asks for it.
        let last = leases[many - 1];
        let quota = quota.clone();
        let again = asked(&database, move |ledger| ledger.allocate(pool, &format!("vm-{}", many - 1), &quota));
        while database.messages.asked() < 1 {
            tokio::task::yield_now().await;
        }
        let address = ledger.lease_info(last).unwrap().binding.address;
        let first = mailbox.0.receive().unwrap();
        turn(&mut ledger, &mailbox, Some(first), &mut due).unwrap();
        let again = again.await.unwrap().unwrap();
        assert_eq!(ledger.lease_info(again).unwrap().binding.address, address);
        assert!(due.is_empty(), "and the batches come to an end");
    });
}

#[test]
fn what_gives_something_back_is_done_alone_where_its_group_fails_and_its_space_is_there_again_after() {
    let NewLedger { mut ledger, dir, .. } = NewLedger::make(Limits::default());
    let (database, mailbox) = mailbox();
    ledger.store().run("BEGIN").unwrap();
    let pool = ledger.define(CONFIG).unwrap();
    let lease = ledger.allocate(pool, "vm-a", &quota()).unwrap();
    ledger.store().run("COMMIT").unwrap();
    block_on(async {
        let fails = asked(&database, move |ledger| {
            let lease = ledger.allocate(pool, "vm-b", &quota());
            ledger.store().run("ROLLBACK").unwrap();
            lease
        });
        let handle = database.clone();
        let given =
            tokio::task::spawn_local(async move { handle.ask_always(move |ledger| ledger.release(lease)).await });
        while database.messages.asked() < 2 {
            tokio::task::yield_now().await;
        }
        let first = mailbox.0.receive().unwrap();
        let turn = turn(&mut ledger, &mailbox, Some(first), &mut Due::default()).unwrap();
        assert_eq!((turn.committed, turn.answered), (true, 2));
        given.await.unwrap().unwrap();
        assert!(fails.await.unwrap().is_err());
    });
    assert_eq!(ledger.leases(pool, "").unwrap(), []);
    assert_eq!(std::fs::metadata(dir.path().join("reserve")).unwrap().len(), crate::reserve::BYTES);
}

#[test]
fn a_client_has_so_many_requests_waiting_and_no_more_and_is_in_front_of_no_other() {
    let NewLedger { mut ledger, dir: _dir, .. } = NewLedger::make(Limits::default());
    let (database, mailbox) = mailbox();
    block_on(async {
        let mut waiting: Vec<_> = (0..ROOM.per_client).map(|_| Box::pin(database.ask(|_| Ok(())))).collect();
        for one in &mut waiting {
            assert!(futures::poll!(one).is_pending());
        }
        assert_eq!(database.ask(|_| Ok(())).await.unwrap_err().code, Code::Overloaded);
        let other = database.of(ipc::Peer::this_process());
        let mut other = Box::pin(other.ask(|_| Ok(())));
        assert!(futures::poll!(&mut other).is_pending());
        // Of two, one is the other client's.
        let jobs: Vec<_> = std::iter::from_fn(|| mailbox.0.asked_now()).take(2).collect();
        ledger.store().run("BEGIN").unwrap();
        for job in jobs {
            match job {
                Message::Asked(mut request) => {
                    request.run(&mut ledger);
                    request.answer(Ok(()));
                }
                Message::Told(_) => unreachable!("nothing was told"),
            }
        }
        assert_eq!(other.await, Ok(()));
    });
}
