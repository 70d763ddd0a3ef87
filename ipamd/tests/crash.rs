//! The service is killed at any instant: nothing that was acknowledged is lost, nothing is allocated twice.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::*;
use schema::addresses_capnp::lease_info::State;

/// What was acknowledged of a workload: its address, and the life of its lease if that was asked for.
type Acknowledged = (String, Option<OwnedFd>);

/// Allocates with many clients at once until the service dies; what was acknowledged, by workload.
async fn allocate_until_it_dies(socket: &std::path::Path, round: usize) -> BTreeMap<String, Acknowledged> {
    let mut tasks = Vec::new();
    for client in 0..8 {
        let socket = socket.to_owned();
        tasks.push(tokio::task::spawn_local(async move {
            let mut acknowledged = BTreeMap::new();
            let Ok(client_) = Client::connect(&socket).await else { return acknowledged };
            let Ok(pool) = client_.pool("wide").await else { return acknowledged };
            let Ok(allocator) = client_.allocator(&pool, 65_536).await else { return acknowledged };
            let mut held = Vec::new();
            for n in 0.. {
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
            let work = tokio::task::spawn_local(async move { allocate_until_it_dies(&socket, round).await });
            tokio::time::sleep(Duration::from_millis(150 + 70 * round as u64)).await;
            service.process.kill().unwrap();
            service.process.wait().unwrap();
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

#[test]
fn concurrent_clients_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    run(async {
        let client = service.connect().await;
        let pool = client.define(r#"{"network":"wide","subnet":"10.0.0.0/8"}"#).await.unwrap();
        let allocator = client.allocator(&pool, 65_536).await.unwrap();
        let mut held = Vec::new();
        let begun = Instant::now();
        for n in 0..200 {
            held.push(client.allocate(&allocator, &format!("vm-s-{n}")).await.unwrap());
        }
        let serial = begun.elapsed() / 200;
        let begun = Instant::now();
        let many = (0..2000).map(|n| {
            let (client, allocator) = (&client, &allocator);
            async move { client.allocate(allocator, &format!("vm-p-{n}")).await.unwrap() }
        });
        held.extend(futures::future::join_all(many).await);
        let shared = begun.elapsed() / 2000;
        println!("one at a time {serial:?}, many at once {shared:?} an allocation");
        let addresses: BTreeSet<_> = client.leases(&pool).await.into_iter().map(|info| info.address).collect();
        assert_eq!(addresses.len(), 2200);
    });
}
