//! The service is killed at any instant: nothing that was acknowledged is lost, nothing is allocated twice.

mod common;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use common::*;
use schema::addresses_capnp::lease_info::State;

/// What was acknowledged of a workload: its address, and the life of its lease if that was asked for.
type Acknowledged = (String, Option<OwnedFd>);

/// Allocates with many clients at once until the service dies; what was acknowledged, by workload, each counted when it is.
async fn allocate_until_it_dies(
    socket: &std::path::Path,
    round: usize,
    count: &Rc<Cell<usize>>,
) -> BTreeMap<String, Acknowledged> {
    let mut tasks = Vec::new();
    for client in 0..8 {
        let (socket, count) = (socket.to_owned(), count.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let mut acknowledged = BTreeMap::new();
            let Ok(client_) = Client::connect(&socket).await else { return acknowledged };
            let Ok(pool) = client_.pool("wide").await else { return acknowledged };
            let Ok(allocator) = client_.allocator(&pool, 65_536).await else { return acknowledged };
            let mut held = Vec::new();
            for n in 0.. {
                count.set(count.get() + 1);
                let workload = format!("vm-{round}-{client}-{n}");
                let Ok(lease) = client_.allocate(&allocator, &workload).await else { break };
                let Ok(info) = client_.info(&lease).await else { break };
                match n % 6 {
                    // Released for good: may be gone or not when the service dies, but nobody counts on it.
                    0 => drop(client_.release(&lease).await),
                    3 => {
                        let _life = client_.life(&lease).await;
                        let _ = client_.release(&lease).await;
                    }
                    // Held by its life alone.
                    1 => {
                        let Ok(life) = client_.life(&lease).await else { break };
                        acknowledged.insert(workload, (info.address, Some(life)));
                    }
                    _ => {
                        acknowledged.insert(workload, (info.address, None));
                        held.push(lease);
                    }
                }
            }
            acknowledged
        }));
    }
    let mut all = BTreeMap::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all
}

#[test]
fn what_was_acknowledged_survives_being_killed_and_nothing_is_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path());
    run(async { drop(service.connect().await.define(r#"{"network":"wide","subnet":"10.0.0.0/8"}"#).await.unwrap()) });
    let mut total = 0;
    // Of every round: whoever lives keeps what it has.
    let mut living: BTreeMap<String, (String, OwnedFd)> = BTreeMap::new();
    for round in 0..6 {
        let mut acknowledged = BTreeMap::new();
        run(async {
            let socket = service.socket.clone();
            let begun = Rc::new(Cell::new(0));
            let counted = begun.clone();
            let work = tokio::task::spawn_local(async move { allocate_until_it_dies(&socket, round, &counted).await });
            // In the midst of it, wherever that is: so many were begun, of which the one before is acknowledged.
            eventually(async || begun.get() > 60 + 17 * round).await;
            tokio::time::sleep(Duration::from_millis(7 * round as u64)).await;
            service.kill();
            acknowledged = work.await.unwrap();
        });
        total += acknowledged.len();
        drop(std::mem::replace(&mut service, Service::start(dir.path())));
        run(async {
            let client = service.connect().await;
            let pool = client.pool("wide").await.unwrap();
            let rows = client.leases(&pool).await;
            let addresses: BTreeSet<_> = rows.iter().map(|info| &info.address).collect();
            assert_eq!(addresses.len(), rows.len(), "an address was allocated twice");
            let now: BTreeMap<_, _> = rows.iter().map(|info| (&info.workload, info)).collect();
            assert_eq!(now.len(), rows.len(), "a workload has two leases");
            for (workload, (address, life)) in &acknowledged {
                let info = now.get(workload).unwrap_or_else(|| panic!("{workload} had {address}, and it is lost"));
                assert_eq!(&info.address, address);
                let state = if life.is_some() { State::Held } else { State::Grace };
                assert_eq!(info.state, state, "its holder's connection has ended, and who has its life has not");
            }
            for (workload, (address, _)) in &living {
                assert_eq!(now.get(workload).map(|info| (&info.address, info.state)), Some((address, State::Held)));
            }
            // A restarted holder gets its address back, and one that lives its lease.
            let allocator = client.allocator(&pool, 10).await.unwrap();
            let restarted = || acknowledged.iter().filter(|(_, (_, life))| life.is_none()).take(5);
            for (workload, (address, _)) in restarted() {
                let lease = client.allocate(&allocator, workload).await.unwrap();
                assert_eq!(&client.info(&lease).await.unwrap().address, address);
            }
            for (workload, (address, life)) in living.iter().take(5) {
                let lease = client.resume(&pool, life.as_fd()).await.unwrap();
                let info = client.info(&lease).await.unwrap();
                assert_eq!((&info.workload, &info.address), (workload, address));
            }
            for (workload, (address, life)) in acknowledged {
                living.extend(life.map(|life| (workload, (address, life))));
            }
        });
    }
    assert!(total > 100 && living.len() > 20, "only {total} allocations: the test proves little");
    // Those whose lives were closed, and no others, are given back.
    let held = living.split_off(&living.keys().nth(living.len() / 2).unwrap().clone());
    let closed: BTreeSet<String> = std::mem::take(&mut living).into_keys().collect();
    run(async {
        let client = service.connect().await;
        let pool = client.pool("wide").await.unwrap();
        eventually(async || {
            let rows = client.leases(&pool).await;
            rows.iter().filter(|info| closed.contains(&info.workload)).all(|info| info.state == State::Grace)
        })
        .await;
        let rows = client.leases(&pool).await;
        let of_held = rows.iter().filter(|info| held.contains_key(&info.workload));
        assert_eq!(of_held.filter(|info| info.state == State::Held).count(), held.len());
    });
}

/// Transactions in the database's log. (SQLite's file format, 4.1: of a header of 32 bytes and frames of 24 and a page, those that begin
/// with the same salt are good, and those that tell the database's size end a transaction.)
fn commits(dir: &std::path::Path) -> usize {
    let log = std::fs::read(dir.join("state/ipamd.sqlite-wal")).unwrap();
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    assert_eq!(word(12), 0, "the log was begun anew: what was before is not in it");
    let frame = 24 + word(8) as usize;
    let whole = (32..log.len()).step_by(frame).filter(|at| at + frame <= log.len());
    let good = whole.take_while(|at| log[at + 8..at + 16] == log[16..24]);
    good.filter(|at| word(at + 4) > 0).count()
}

#[test]
fn concurrent_clients_share_commits() {
    const ALONE: usize = 30;
    const MANY: usize = 400;
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(r#"{"network":"wide","subnet":"10.0.0.0/8"}"#).await.unwrap();
        let allocator = client.allocator(&pool, 65_536).await.unwrap();
        let mut held = Vec::new();
        let before = commits(dir.path());
        for n in 0..ALONE {
            held.push(client.allocate(&allocator, &format!("vm-s-{n}")).await.unwrap());
        }
        let alone = commits(dir.path()) - before;
        assert_eq!(alone, ALONE, "each is answered when it is on the disk, and not before");
        let mut clients = Vec::new();
        for _ in 0..4 {
            let client = service.connect().await;
            let pool = client.pool("wide").await.unwrap();
            clients.push((client.allocator(&pool, 65_536).await.unwrap(), client));
        }
        let many = (0..MANY).map(|n| {
            let (allocator, client) = &clients[n % clients.len()];
            async move { client.allocate(allocator, &format!("vm-p-{n}")).await.unwrap() }
        });
        held.extend(futures::future::join_all(many).await);
        let shared = commits(dir.path()) - before - alone;
        assert!((1..MANY / 2).contains(&shared), "{shared} commits for {MANY} at once");
        let addresses: BTreeSet<_> = client.leases(&pool).await.into_iter().map(|info| info.address).collect();
        assert_eq!(addresses.len(), ALONE + MANY);
    });
}
