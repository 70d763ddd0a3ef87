//! Tests of who holds a lease: lives, over restarts, restored backups and failures.

use super::*;

#[test]
fn a_lease_whose_life_somebody_has_stays_held_without_a_holder_and_a_second_after_it_has_gone_its_grace_begins() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    let life = bench.ledger.life(lease).unwrap();
    bench.abandon(lease).unwrap();
    bench.pass(3600.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held");
    assert_eq!(bench.allocate("vm-a"), Err(Code::AlreadyExists));
    drop(life);
    assert!(bench.ledger.next_due().unwrap() <= bench.now.instant + Duration::from_secs(1));
    bench.pass(1.1);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a grace");
    bench.pass(29.9);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a grace");
    bench.pass(0.2);
    assert_eq!(bench.free(), 4);
    bench.commit();
    assert!(crate::lives::found(bench.dir.path()).unwrap().is_empty(), "its file has gone");
}

#[test]
fn a_workload_that_has_ended_gets_its_address_again_without_waiting_for_the_next_look() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    let life = bench.ledger.life(lease).unwrap();
    bench.abandon(lease).unwrap();
    assert_eq!(bench.allocate("vm-a"), Err(Code::AlreadyExists));
    drop(life);
    let again = bench.allocate("vm-a").unwrap();
    assert_eq!(bench.address(again), "10.42.0.2");
    bench.pass(60.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held", "the look at the first lease did nothing to the second");
}

#[test]
fn over_a_restart_a_lease_is_held_by_its_life_and_given_back_where_that_was_closed_meanwhile() {
    let mut bench = Bench::new();
    let [a, b, c] = ["vm-a", "vm-b", "vm-c"].map(|workload| bench.allocate(workload).unwrap());
    let life = bench.ledger.life(a).unwrap();
    drop(bench.ledger.life(b).unwrap());
    let mut bench = bench.restart();
    assert_eq!(
        bench.states()[..4],
        ["10.42.0.2 vm-a held", "10.42.0.3 vm-web idle reserved", "10.42.0.4 vm-b grace", "10.42.0.5 vm-c grace"]
    );
    bench.pass(31.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held");
    assert_eq!(bench.free(), 3);
    let mut bench = bench.restart();
    bench.pass(31.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held", "over any number of restarts");
    // Names are not used again, though the highest have ended.
    assert!(bench.allocate("vm-d").unwrap() > c);
    let hold = bench.ledger.resume(bench.pool, &life).unwrap();
    assert_eq!(hold.lease, a);
    drop(life);
    bench.pass(60.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held", "by who took it back");
    drop(hold);
    bench.ledger.abandon(a).unwrap();
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a grace");
}

/// What a backup holds: the database as it was at one time, without the files beside it.
fn backup(bench: &mut Bench) -> Vec<u8> {
    bench.ledger.store().run("COMMIT").unwrap();
    bench.ledger.store().checkpoint().unwrap();
    let bytes = std::fs::read(bench.dir.path().join("ipamd.sqlite")).unwrap();
    bench.ledger.store().run("BEGIN IMMEDIATE").unwrap();
    bytes
}

/// As if the process had been killed, an older database put in the place of its own, and started again.
fn restore(bench: Bench, bytes: &[u8]) -> Bench {
    bench.ledger.store().run("COMMIT").unwrap();
    let Bench { ledger, now, pool, quota, dir, .. } = bench;
    drop(ledger);
    std::fs::write(dir.path().join("ipamd.sqlite"), bytes).unwrap();
    let store = Store::open(&dir.path().join("ipamd.sqlite")).unwrap();
    let mut ledger = Ledger::open(store, Limits::default(), now).unwrap();
    ledger.sweep(&crate::lives::found(dir.path()).unwrap());
    ledger.store().run("BEGIN IMMEDIATE").unwrap();
    Bench { ledger, now, pool, quota, holds: HashMap::new(), dir }
}

#[test]
fn over_a_restored_backup_no_address_of_who_lives_is_given_to_another() {
    let mut bench = Bench::new();
    let old = bench.allocate("vm-old").unwrap();
    let before = backup(&mut bench);
    // Since then: the one has ended, and another has its address; and one more has a free one, and one that is reserved.
    bench.ledger.release(old).unwrap();
    let lives = ["vm-a", "vm-b", "vm-c", "vm-web"].map(|workload| {
        let lease = bench.allocate(workload).unwrap();
        (bench.address(lease), bench.ledger.life(lease).unwrap())
    });
    let [a, b, c, web] = lives;
    assert_eq!([&a.0, &b.0, &c.0, &web.0], ["10.42.0.4", "10.42.0.5", "10.42.0.6", "10.42.0.3"]);
    drop(c);
    let mut bench = restore(bench, &before);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-old grace");
    assert_eq!(bench.free(), 1, "of .4, .5 and .6 two are used by strays");
    // Over what makes memory again as well, and over another restart, and a definition.
    bench.roll_back();
    bench.pass(31.0);
    let mut bench = bench.restart();
    bench.ledger.define(&CONFIG.replace(".20", ".21")).unwrap();
    let got = ["vm-d", "vm-e"].map(|workload| {
        let lease = bench.allocate(workload).unwrap();
        bench.address(lease)
    });
    assert_eq!(got, ["10.42.0.6", "10.42.0.2"]);
    assert_eq!(bench.allocate("vm-f"), Err(Code::Exhausted));
    assert_eq!(bench.allocate("vm-web"), Err(Code::AlreadyExists), "its address is used by the one that runs");
    // Who has gone leaves it to others.
    drop((a, web));
    bench.pass(1.1);
    assert_eq!(bench.free(), 1);
    bench.allocate("vm-web").unwrap();
    let lease = bench.allocate("vm-f").unwrap();
    assert_eq!(bench.address(lease), "10.42.0.4");
    assert_eq!(bench.allocate("vm-g"), Err(Code::Exhausted));
    drop(b);
    bench.pass(1.1);
    let lease = bench.allocate("vm-g").unwrap();
    assert_eq!(bench.address(lease), "10.42.0.5");
}

#[test]
fn over_a_restored_backup_who_comes_back_does_not_get_what_another_has_meanwhile() {
    let mut bench = Bench::with(&CONFIG.replace(r#""end":"10.42.0.6""#, r#""end":"10.42.0.2""#), Limits::default());
    let old = bench.allocate("vm-old").unwrap();
    let before = backup(&mut bench);
    bench.ledger.release(old).unwrap();
    let lease = bench.allocate("vm-new").unwrap();
    let life = bench.ledger.life(lease).unwrap();
    let mut bench = restore(bench, &before);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-old grace");
    assert_eq!(bench.allocate("vm-old"), Err(Code::AlreadyExists));
    bench.pass(31.0);
    assert_eq!(bench.allocate("vm-old"), Err(Code::Exhausted));
    drop(life);
    bench.pass(1.1);
    bench.allocate("vm-old").unwrap();
}

#[test]
fn a_life_takes_back_its_own_lease_and_no_other() {
    let mut bench = Bench::new();
    let other = bench.ledger.define(r#"{"network":"other","subnet":"10.43.0.0/24"}"#).unwrap();
    let (a, b) = (bench.allocate("vm-a").unwrap(), bench.allocate("vm-b").unwrap());
    let (life, older) = (bench.ledger.life(a).unwrap(), bench.ledger.life(b).unwrap());
    let newer = bench.ledger.life(b).unwrap();
    let refused = |bench: &mut Bench, pool, life: &std::os::fd::OwnedFd| {
        assert_eq!(bench.ledger.resume(pool, life).unwrap_err().code, Code::NotFound);
    };
    let pool = bench.pool;
    refused(&mut bench, other, &life);
    refused(&mut bench, pool, &older);
    refused(&mut bench, pool, &std::io::pipe().unwrap().0.into());
    assert_eq!(bench.ledger.resume(pool, &newer).unwrap().lease, b);
    bench.ledger.release(b).unwrap();
    refused(&mut bench, pool, &newer);
    bench.commit();
    refused(&mut bench, pool, &newer);
    // Beside its holder, who may go.
    let hold = bench.ledger.resume(pool, &life).unwrap();
    bench.abandon(a).unwrap();
    drop(life);
    bench.pass(60.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held");
    drop(hold);
}

#[test]
fn who_lost_and_took_its_lock_again_is_let_back_within_the_grace_period() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    let life = bench.ledger.life(lease).unwrap();
    rustix::fs::flock(&life, rustix::fs::FlockOperation::Unlock).unwrap();
    bench.abandon(lease).unwrap();
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a grace");
    assert_eq!(bench.ledger.resume(bench.pool, &life).unwrap_err().code, Code::NotFound);
    rustix::fs::flock(&life, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let _hold = bench.ledger.resume(bench.pool, &life).unwrap();
    bench.pass(60.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held");
}

#[test]
fn a_transaction_that_fails_leaves_holds_lives_and_quotas_as_they_were() {
    let mut bench = Bench::new();
    bench.quota = Arc::new(Semaphore::new(3));
    let [a, b, c] = ["vm-a", "vm-b", "vm-c"].map(|workload| bench.allocate(workload).unwrap());
    let life = bench.ledger.life(b).unwrap();
    bench.abandon(b).unwrap();
    bench.abandon(c).unwrap();
    bench.commit();
    bench.ledger.release(a).unwrap();
    bench.ledger.release(b).unwrap();
    let again = bench.allocate("vm-c").unwrap();
    bench.roll_back();
    bench.holds.remove(&again);
    assert_eq!(bench.allocate("vm-a"), Err(Code::AlreadyExists));
    assert_eq!(bench.allocate("vm-b"), Err(Code::AlreadyExists));
    assert_eq!(bench.allocate("vm-d"), Err(Code::Exhausted), "three leases count still");
    bench.pass(60.0);
    assert_eq!(bench.states()[2], "10.42.0.4 vm-b held");
    drop(life);
    bench.pass(1.1);
    bench.pass(31.0);
    assert_eq!(bench.quota.available_permits(), 2);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held");
}

#[test]
fn lives_are_looked_at_a_few_at_a_time_and_each_in_its_turn() {
    let mut bench = Bench::with(r#"{"network":"w","subnet":"10.0.0.0/8"}"#, Limits::default());
    bench.quota = Arc::new(Semaphore::new(2000));
    let many = 2 * life::LOOK_AT_ONCE + 10;
    let mut lives = Vec::new();
    for n in 0..many {
        let lease = bench.allocate(&format!("vm-{n}")).unwrap();
        // Fewer files than leases are open at one time.
        lives.truncate(100);
        lives.push(bench.ledger.life(lease).unwrap());
        bench.abandon(lease).unwrap();
    }
    let held = lives.len();
    let in_grace = |bench: &Bench| bench.ledger.due.len();
    let before = in_grace(&bench);
    bench.pass(1.1);
    assert!(in_grace(&bench) - before <= life::LOOK_AT_ONCE);
    assert!(bench.ledger.next_due().unwrap() > bench.now.instant, "others are served meanwhile");
    for _ in 0..8 {
        bench.pass(0.06);
    }
    assert_eq!(in_grace(&bench), many - held);
    drop(lives);
    for _ in 0..8 {
        bench.pass(0.5);
    }
    assert_eq!(in_grace(&bench), many);
}
