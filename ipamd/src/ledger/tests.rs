//! Tests of the rules, on a database in a temporary directory and a clock that the test moves.

mod holders;

use super::*;
use crate::database::tests::NewLedger;
use crate::store::Reserved;
use proptest::prelude::*;

const CONFIG: &str = r#"{"network":"volt0","subnet":"10.42.0.0/24","pool":{"start":"10.42.0.2","end":"10.42.0.6"},"reservations":{"vm-web":"10.42.0.3","vm-db":"10.42.0.20"}}"#;

/// A ledger in a transaction that is never committed, and its clock.
struct Bench {
    ledger: Ledger,
    now: Now,
    pool: PoolId,
    quota: Quota,
    /// Of every lease that was not abandoned.
    holds: HashMap<LeaseId, Hold>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(CONFIG, Limits::default())
    }

    fn with(config: &str, limits: Limits) -> Bench {
        let NewLedger { mut ledger, dir, .. } = NewLedger::make(limits);
        ledger.store().run("BEGIN IMMEDIATE").unwrap();
        let now = Now::read();
        ledger.pass_time(now).unwrap();
        let pool = ledger.define(config).unwrap();
        Bench { ledger, now, pool, quota: Arc::new(Semaphore::new(100)), holds: HashMap::new(), dir }
    }

    fn allocate(&mut self, workload: &str) -> Result<LeaseId, Code> {
        let quota = self.quota.clone();
        let lease = self.ledger.allocate(self.pool, workload, &quota).map_err(|fault| fault.code)?;
        self.holds.insert(lease, self.ledger.hold(lease));
        Ok(lease)
    }

    fn abandon(&mut self, lease: LeaseId) -> Answer<()> {
        self.holds.remove(&lease);
        self.ledger.abandon(lease)
    }

    /// Ends the transaction, as the thread does.
    fn commit(&mut self) {
        self.ledger.store().run("COMMIT").unwrap();
        self.ledger.committed();
        self.ledger.store().run("BEGIN IMMEDIATE").unwrap();
    }

    fn roll_back(&mut self) {
        self.ledger.store().run("ROLLBACK").unwrap();
        self.ledger.load().unwrap();
        self.ledger.store().run("BEGIN IMMEDIATE").unwrap();
    }

    /// As if the process had been killed and started again.
    fn restart(self) -> Bench {
        self.ledger.store().run("COMMIT").unwrap();
        let Bench { ledger, now, pool, quota, dir, .. } = self;
        drop(ledger);
        let store = Store::open(&dir.path().join("ipamd.sqlite")).unwrap();
        let mut ledger = Ledger::open(store, Limits::default(), now).unwrap();
        ledger.sweep(&crate::lives::found(dir.path()).unwrap());
        ledger.store().run("BEGIN IMMEDIATE").unwrap();
        Bench { ledger, now, pool, quota, holds: HashMap::new(), dir }
    }

    fn address(&self, lease: LeaseId) -> String {
        self.ledger.lease_info(lease).unwrap().binding.address.to_string()
    }

    fn free(&self) -> u64 {
        self.ledger.pool(self.pool).unwrap().2
    }

    fn pass(&mut self, seconds: f64) {
        let passed = Duration::from_secs_f64(seconds);
        self.now = Now { instant: self.now.instant + passed, wall: self.now.wall + passed.as_millis() as i64 };
        self.ledger.pass_time(self.now).unwrap();
    }

    fn states(&self) -> Vec<String> {
        let rows = self.ledger.leases(self.pool, "").unwrap();
        rows.iter()
            .map(|Info { binding: row, .. }| {
                let state =
                    row.lease.map_or("idle", |lease| if lease.grace_until.is_some() { "grace" } else { "held" });
                format!(
                    "{} {} {state}{}",
                    row.address,
                    row.workload,
                    if row.reserved == Reserved::No { "" } else { " reserved" }
                )
            })
            .collect()
    }
}

fn hash(n: u8) -> RefHash {
    [n; 32]
}

#[test]
fn free_addresses_are_handed_out_in_order_and_reserved_ones_only_to_their_workload() {
    let mut bench = Bench::new();
    assert_eq!(bench.free(), 4);
    let addresses: Vec<String> = ["vm-a", "vm-b", "vm-web", "vm-db", "vm-c", "vm-d"]
        .map(|workload| bench.allocate(workload).map(|lease| bench.address(lease)).unwrap())
        .into();
    assert_eq!(addresses, ["10.42.0.2", "10.42.0.4", "10.42.0.3", "10.42.0.20", "10.42.0.5", "10.42.0.6"]);
    assert_eq!(bench.allocate("vm-e"), Err(Code::Exhausted));
    assert_eq!(bench.allocate("vm-a"), Err(Code::AlreadyExists));
    assert_eq!(bench.allocate("VM"), Err(Code::InvalidArgument));
}

#[test]
fn an_abandoned_lease_is_kept_for_its_workload_for_thirty_seconds_and_not_longer() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    bench.abandon(lease).unwrap();
    bench.pass(29.9);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a grace");
    let again = bench.allocate("vm-a").unwrap();
    assert_eq!(bench.address(again), "10.42.0.2");
    // The first lease has ended with the second one's beginning, and its grace period with it.
    assert!(bench.ledger.lease_info(lease).is_err() && bench.ledger.release(lease).is_err());
    bench.abandon(lease).unwrap();
    bench.pass(60.0);
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held");
    bench.abandon(again).unwrap();
    bench.pass(30.1);
    assert_eq!(bench.free(), 4);
    assert_eq!(bench.states(), ["10.42.0.3 vm-web idle reserved", "10.42.0.20 vm-db idle reserved"]);
    assert!(bench.ledger.lease_info(again).is_err());
}

#[test]
fn nobody_else_gets_an_address_in_its_grace_period() {
    let mut bench = Bench::new();
    let leases = ["vm-a", "vm-b", "vm-c", "vm-d"].map(|workload| bench.allocate(workload).unwrap());
    bench.abandon(leases[1]).unwrap();
    assert_eq!(bench.allocate("vm-e"), Err(Code::Exhausted));
    bench.pass(30.0);
    let lease = bench.allocate("vm-e").unwrap();
    assert_eq!(bench.address(lease), "10.42.0.4");
}

#[test]
fn a_released_lease_is_free_at_once_and_revoked() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    bench.ledger.release(lease).unwrap();
    assert_eq!(bench.free(), 4);
    assert_eq!(bench.ledger.release(lease).unwrap_err().code, Code::Revoked);
    assert_eq!(bench.ledger.lease_info(lease).unwrap_err().code, Code::Revoked);
}

#[test]
fn an_address_given_back_rests_also_over_restarts_failures_and_new_definitions() {
    let mut bench = Bench::new();
    let mut got = Vec::new();
    for round in 0..8 {
        let lease = bench.allocate(&format!("vm-{round}")).unwrap();
        got.push(bench.address(lease).strip_prefix("10.42.0.").unwrap().to_owned());
        bench.ledger.release(lease).unwrap();
        bench.commit();
        match round % 4 {
            1 => bench = bench.restart(),
            2 => bench.roll_back(),
            3 => drop(bench.ledger.define(&CONFIG.replace(".20", &format!(".3{round}"))).unwrap()),
            _ => {}
        }
    }
    assert_eq!(got, ["2", "4", "5", "6", "2", "4", "5", "6"]);
}

#[test]
fn a_quota_counts_grace_periods_too_and_a_workload_reclaims_within_it() {
    let mut bench = Bench::new();
    let quota: Quota = Arc::new(Semaphore::new(1));
    let lease = bench.ledger.allocate(bench.pool, "vm-a", &quota).unwrap();
    bench.abandon(lease).unwrap();
    assert_eq!(bench.ledger.allocate(bench.pool, "vm-b", &quota).unwrap_err().code, Code::Exhausted);
    let lease = bench.ledger.allocate(bench.pool, "vm-a", &quota).unwrap();
    bench.abandon(lease).unwrap();
    bench.pass(31.0);
    let lease = bench.ledger.allocate(bench.pool, "vm-b", &quota).unwrap();
    bench.ledger.release(lease).unwrap();
    bench.ledger.allocate(bench.pool, "vm-c", &quota).unwrap();
    assert_eq!(bench.ledger.allocate(bench.pool, "vm-d", &quota).unwrap_err().code, Code::Exhausted);
    // Another allocator takes a workload's address over, and the first one's place is free again.
    let lease = bench.ledger.by_workload("vm-c", bench.pool);
    bench.abandon(lease).unwrap();
    bench.allocate("vm-c").unwrap();
    bench.ledger.allocate(bench.pool, "vm-d", &quota).unwrap();
}

#[test]
fn a_wall_clock_that_jumps_neither_shortens_nor_prolongs_a_running_grace_period() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    bench.abandon(lease).unwrap();
    for wall in [0, i64::MAX] {
        bench.ledger.pass_time(Now { instant: bench.now.instant + Duration::from_secs(29), wall }).unwrap();
        assert_eq!(bench.states()[0], "10.42.0.2 vm-a grace");
    }
    bench.ledger.pass_time(Now { instant: bench.now.instant + Duration::from_secs(31), wall: 0 }).unwrap();
    assert_eq!(bench.free(), 4);
}

#[test]
fn a_stored_grace_period_lasts_between_nothing_and_its_full_length() {
    let now = Now { instant: Instant::now(), wall: 1_000_000 };
    for (until, left) in
        [(1_012_000, 12), (1_030_000, 30), (9_000_000, 30), (i64::MAX, 30), (999_000, 0), (i64::MIN, 0)]
    {
        assert_eq!(now.due(until), now.instant + Duration::from_secs(left), "{until}");
    }
}

#[test]
fn a_reservation_is_kept_restored_and_cancelled() {
    let mut bench = Bench::new();
    bench.ledger.reserve(bench.pool, "vm-a", "10.42.0.5", &hash(1)).unwrap();
    bench.ledger.reserve(bench.pool, "vm-b", "", &hash(2)).unwrap();
    bench.ledger.reserve(bench.pool, "vm-c", "10.42.0.100", &hash(3)).unwrap();
    assert_eq!(bench.free(), 2);
    for (workload, address, code) in [
        ("vm-d", "10.42.0.5", Code::AlreadyExists),
        ("vm-d", "10.42.0.3", Code::AlreadyExists),
        ("vm-a", "10.42.0.6", Code::AlreadyExists),
        ("vm-web", "", Code::AlreadyExists),
        ("vm-d", "10.42.0.1", Code::InvalidArgument),
        ("vm-d", "10.42.0.255", Code::InvalidArgument),
        ("vm-d", "10.43.0.5", Code::InvalidArgument),
        ("vm-d", "x", Code::InvalidArgument),
        ("", "", Code::InvalidArgument),
    ] {
        assert_eq!(
            bench.ledger.reserve(bench.pool, workload, address, &hash(9)).unwrap_err().code,
            code,
            "{workload} {address}"
        );
    }
    let lease = bench.allocate("vm-c").unwrap();
    assert_eq!(bench.address(lease), "10.42.0.100");
    bench.ledger.restore(bench.pool, &hash(3)).unwrap();
    assert_eq!(bench.ledger.restore(bench.pool, &hash(9)).unwrap_err().code, Code::NotFound);
    bench.ledger.cancel(&hash(3)).unwrap();
    assert_eq!(bench.ledger.cancel(&hash(3)).unwrap_err().code, Code::Revoked);
    assert_eq!(bench.ledger.reservation_info(&hash(3)).unwrap_err().code, Code::Revoked);
    assert!(bench.states().contains(&"10.42.0.100 vm-c held".into()), "the lease lives on: {:?}", bench.states());
    bench.ledger.cancel(&hash(1)).unwrap();
    assert_eq!(bench.free(), 3);
}

#[test]
fn a_workload_may_reserve_the_address_it_leases_and_moves_to_another_when_it_allocates_again() {
    let mut bench = Bench::new();
    let lease = bench.allocate("vm-a").unwrap();
    bench.ledger.reserve(bench.pool, "vm-a", "", &hash(1)).unwrap();
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a held reserved");
    bench.ledger.release(lease).unwrap();
    assert_eq!(bench.states()[0], "10.42.0.2 vm-a idle reserved");

    let lease = bench.allocate("vm-b").unwrap();
    bench.ledger.reserve(bench.pool, "vm-b", "10.42.0.50", &hash(2)).unwrap();
    assert_eq!(bench.address(lease), "10.42.0.4");
    bench.abandon(lease).unwrap();
    let lease = bench.allocate("vm-b").unwrap();
    assert_eq!(bench.address(lease), "10.42.0.50");
    assert_eq!(bench.free(), 3);
}

#[test]
fn a_pool_changes_unless_something_in_use_would_fall_outside() {
    let mut bench = Bench::new();
    let change = |bench: &mut Bench, from: &str, to: &str| {
        let text = CONFIG.replace(from, to);
        assert_ne!(text, CONFIG);
        let (before, pools) = (bench.states(), bench.ledger.list().unwrap());
        let checked = bench.ledger.check(&text).map(|(_, text, _)| text).map_err(|fault| (fault.code, fault.why));
        assert_eq!((bench.states(), bench.ledger.list().unwrap()), (before, pools), "a check changes nothing");
        bench.ledger.store().run("SAVEPOINT request").unwrap();
        let result = bench.ledger.define(&text).map_err(|fault| (fault.code, fault.why));
        let defined = result.clone().map(|pool| bench.ledger.pool(pool).unwrap().1);
        assert_eq!(checked, defined, "a check says what would be defined, or the same error");
        if result.is_err() {
            bench.ledger.store().run("ROLLBACK TO request").unwrap();
        }
        bench.ledger.store().run("RELEASE request").unwrap();
        result
    };
    let lease = bench.allocate("vm-a").unwrap();
    bench.ledger.reserve(bench.pool, "vm-b", "10.42.0.60", &hash(1)).unwrap();
    let before = bench.states();
    for (from, to, named) in [
        ("10.42.0.2\"", "10.42.0.3\"", "10.42.0.2"),
        ("10.42.0.0/24", "10.42.0.0/27", "10.42.0.60"),
        ("\"vm-web\":\"10.42.0.3\"", "\"vm-web\":\"10.42.0.2\"", "vm-a"),
        ("\"vm-web\":\"10.42.0.3\"", "\"vm-web\":\"10.42.0.60\"", "vm-b"),
        ("\"vm-web\":\"10.42.0.3\"", "\"vm-b\":\"10.42.0.3\"", "10.42.0.60"),
        ("\"pool\"", "\"gateway\":\"10.42.0.2\",\"pool\"", "10.42.0.2"),
    ] {
        let (code, why) = change(&mut bench, from, to).unwrap_err();
        assert_eq!(code, Code::Conflict);
        assert!(why.contains(named), "{why}");
        assert_eq!(bench.states(), before);
        assert_eq!(bench.free(), 3);
    }
    let same = bench.ledger.define(CONFIG).unwrap();
    assert_eq!(same, bench.pool);
    // Swapped reservations and a wider range are no trouble.
    assert_eq!(
        change(
            &mut bench,
            r#""vm-web":"10.42.0.3","vm-db":"10.42.0.20""#,
            r#""vm-web":"10.42.0.20","vm-db":"10.42.0.3""#
        ),
        Ok(same)
    );
    assert_eq!(change(&mut bench, "10.42.0.6", "10.42.0.9"), Ok(same));
    assert_eq!(bench.free(), 6);
    // What only the old text reserved is free again; a lease on it lives on.
    let web = bench.allocate("vm-web").unwrap();
    assert_eq!(change(&mut bench, r#""vm-web":"10.42.0.3","vm-db":"10.42.0.20""#, ""), Ok(same));
    assert_eq!(bench.states(), ["10.42.0.2 vm-a held", "10.42.0.3 vm-web held", "10.42.0.60 vm-b idle reserved"]);
    bench.ledger.release(web).unwrap();
    bench.ledger.release(lease).unwrap();
    assert_eq!(bench.free(), 5);
}

#[test]
fn pools_do_not_overlap_and_are_found_and_listed_by_network() {
    let mut bench = Bench::new();
    let overlapping = r#"{"network":"other","subnet":"10.0.0.0/8"}"#;
    assert_eq!(bench.ledger.define(overlapping).unwrap_err().code, Code::Conflict);
    let other = bench.ledger.define(r#"{"network":"other","subnet":"10.43.0.0/24"}"#).unwrap();
    let listed: Vec<_> = bench.ledger.list().unwrap().into_iter().map(|(config, ..)| config.network).collect();
    assert_eq!(listed, ["other", "volt0"]);
    assert_eq!(bench.ledger.find("volt0"), Ok(bench.pool));
    assert_eq!(bench.ledger.find("x").unwrap_err().code, Code::NotFound);
    assert_eq!(bench.ledger.define("{}").unwrap_err().code, Code::InvalidArgument);
    // One workload has an address on each network.
    bench.allocate("vm-a").unwrap();
    let quota = bench.quota.clone();
    bench.ledger.allocate(other, "vm-a", &quota).unwrap();
}

#[test]
fn pools_do_not_share_an_ipv6_subnet_and_each_may_have_one_that_follows_from_its_name() {
    let mut bench = Bench::new();
    let mut define = |name: &str, keys: &str| {
        let third = name.len();
        bench.ledger.define(&format!(r#"{{"network":"{name}","subnet":"10.43.{third}.0/24",{keys}}}"#))
    };
    define("a", r#""subnet6":"fd00::/64""#).unwrap();
    let error = define("bb", r#""subnet6":"fd00::/64","gateway6":"fd00::2""#).unwrap_err();
    assert_eq!(error.code, Code::Conflict);
    assert!(error.why.contains("fd00::/64 is that of network a"), "{error}");
    define("bb", r#""subnet6":"fd00:0:0:1::/64""#).unwrap();
    define("ccc", r#""ipv6":true"#).unwrap();
    define("dddd", r#""ipv6":true"#).unwrap();
    // Another gateway in its own.
    define("a", r#""subnet6":"fd00::/64","gateway6":"fd00::2""#).unwrap();
}

#[test]
fn the_built_in_network_is_listed_and_is_defined_by_the_first_who_asks_for_it() {
    let mut bench = Bench::with(r#"{"network":"other","subnet":"10.43.0.0/24"}"#, Limits::default());
    let list = |bench: &Bench| {
        let row = |(config, _, free): (PoolConfig, String, u64)| (config.network, config.subnet.to_string(), free);
        bench.ledger.list().unwrap().into_iter().map(row).collect::<Vec<_>>()
    };
    let listed = list(&bench);
    assert_eq!(listed[1], ("volt0".to_owned(), "10.42.0.0/24".to_owned(), 253));
    assert_eq!(bench.ledger.pools.len(), 1, "a list defines nothing");
    bench.pool = bench.ledger.find("volt0").unwrap();
    assert_eq!(bench.ledger.find("volt0"), Ok(bench.pool));
    assert_eq!(list(&bench), listed);
    let lease = bench.allocate("vm-a").unwrap();
    assert_eq!(bench.address(lease), "10.42.0.2");
    assert_eq!(list(&bench)[1].2, 252);
}

#[test]
fn the_built_in_network_gives_way_to_one_that_has_its_subnet() {
    let mut bench = Bench::with(r#"{"network":"mine","subnet":"10.42.0.0/16"}"#, Limits::default());
    assert_eq!(bench.ledger.list().unwrap().len(), 1);
    let refused = bench.ledger.find("volt0").unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    assert!(refused.why.contains("10.42.0.0/16 of network mine"), "{refused}");
    // The remedy works.
    bench.ledger.define(r#"{"network":"volt0","subnet":"10.43.0.0/24"}"#).unwrap();
    assert!(bench.ledger.find("volt0").is_ok());
}

#[test]
fn the_number_of_pools_their_texts_and_bindings_is_limited() {
    let mut bench = Bench::with(CONFIG, Limits { pools: 2, bindings: 3, ..Limits::default() });
    bench.ledger.define(r#"{"network":"b","subnet":"10.43.0.0/24"}"#).unwrap();
    assert_eq!(bench.ledger.define(r#"{"network":"c","subnet":"10.44.0.0/24"}"#).unwrap_err().code, Code::Exhausted);
    bench.ledger.define(r#"{"network":"b","subnet":"10.44.0.0/24"}"#).unwrap();
    bench.allocate("vm-a").unwrap();
    assert_eq!(bench.allocate("vm-b"), Err(Code::Exhausted));
    assert_eq!(bench.ledger.reserve(bench.pool, "vm-b", "10.42.0.70", &hash(1)).unwrap_err().code, Code::Exhausted);
    assert!(bench.allocate("vm-web").is_ok(), "has its binding already");

    let used = bench.ledger.pool(bench.pool).unwrap().1.len();
    let longer = r#"{"network":"b","subnet":"10.43.0.0/24","gateway":"10.43.0.1","pool":{"start":"10.43.0.2","end":"10.43.0.3"},"reservations":{}}"#;
    let mut bench = Bench::with(CONFIG, Limits { config_bytes: used + longer.len(), ..Limits::default() });
    let one_more = longer.replace(r#""b""#, r#""bc""#);
    assert_eq!(bench.ledger.define(&one_more).unwrap_err().code, Code::Exhausted);
    bench.ledger.define(longer).unwrap();
}

#[test]
fn leases_are_listed_by_address_a_page_at_a_time() {
    let wide = r#"{"network":"w","subnet":"10.0.0.0/8"}"#;
    let mut bench = Bench::with(wide, Limits::default());
    bench.quota = Arc::new(Semaphore::new(1000));
    for n in 0..PAGE + 5 {
        bench.allocate(&format!("vm-{n}")).unwrap();
    }
    let first = bench.ledger.leases(bench.pool, "").unwrap();
    assert_eq!(first.len(), PAGE as usize);
    let last = first.last().unwrap().binding.address.to_string();
    let rest = bench.ledger.leases(bench.pool, &last).unwrap();
    assert_eq!(
        rest.iter().map(|info| info.binding.workload.as_str()).collect::<Vec<_>>(),
        ["vm-512", "vm-513", "vm-514", "vm-515", "vm-516"]
    );
    assert_eq!(bench.ledger.leases(bench.pool, "x").unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn a_pool_of_sixteen_million_allocates_without_looking_at_each_address() {
    let mut bench = Bench::with(r#"{"network":"w","subnet":"10.0.0.0/8"}"#, Limits::default());
    bench.quota = Arc::new(Semaphore::new(1 << 20));
    assert_eq!(bench.free(), (1 << 24) - 3);
    // Three thousand times sixteen million looks are more than a test may take.
    for n in 0..3000 {
        let lease = bench.allocate(&format!("vm-{n}")).unwrap();
        if n % 2 == 0 {
            bench.ledger.release(lease).unwrap();
        }
    }
}

#[test]
fn no_more_than_so_many_grace_periods_end_in_one_transaction() {
    let mut bench = Bench::with(r#"{"network":"w","subnet":"10.0.0.0/8"}"#, Limits::default());
    bench.quota = Arc::new(Semaphore::new(2000));
    for n in 0..EXPIRE_AT_ONCE + 10 {
        let lease = bench.allocate(&format!("vm-{n}")).unwrap();
        bench.abandon(lease).unwrap();
    }
    bench.pass(31.0);
    assert_eq!(bench.ledger.due.len(), 10);
    assert!(bench.ledger.next_due().unwrap() < bench.now.instant);
    bench.pass(0.0);
    assert_eq!(bench.ledger.due.len(), 0);
    assert_eq!(bench.free(), (1 << 24) - 3);
}

#[test]
fn a_pool_that_nobody_uses_is_removed_and_what_was_given_on_it_leads_nowhere() {
    let mut bench = Bench::new();
    let code = |bench: &mut Bench| bench.ledger.remove("volt0").map_err(|fault| fault.code);
    let lease = bench.allocate("vm-a").unwrap();
    assert_eq!(code(&mut bench), Err(Code::WrongState));
    bench.abandon(lease).unwrap();
    assert_eq!(code(&mut bench), Err(Code::WrongState), "its grace period runs");
    bench.pass(31.0);
    bench.ledger.reserve(bench.pool, "vm-a", "", &hash(1)).unwrap();
    assert_eq!(code(&mut bench), Err(Code::WrongState));
    bench.ledger.cancel(&hash(1)).unwrap();
    code(&mut bench).unwrap();
    assert_eq!(code(&mut bench), Err(Code::NotFound));
    let old = bench.pool;
    assert!(bench.ledger.pools.is_empty());
    // Its subnet is free for another, and the old capabilities do not lead there.
    bench.pool = bench.ledger.define(&CONFIG.replace("volt0", "volt1")).unwrap();
    assert_ne!(bench.pool, old);
    bench.allocate("vm-a").unwrap();
    let quota = bench.quota.clone();
    let revoked = Some(Code::Revoked);
    assert_eq!(bench.ledger.allocate(old, "vm-b", &quota).err().map(|fault| fault.code), revoked);
    assert_eq!(bench.ledger.allocate(old, "vm-web", &quota).err().map(|fault| fault.code), revoked);
    assert_eq!(bench.ledger.reserve(old, "vm-b", "", &hash(2)).err().map(|fault| fault.code), revoked);
    assert_eq!(bench.ledger.pool(old).err().map(|fault| fault.code), revoked);
    assert_eq!(bench.ledger.leases(old, "").err().map(|fault| fault.code), revoked);
    let bench = bench.restart();
    assert!(!bench.ledger.by_network.contains_key("volt0"));
}

#[test]
fn a_pool_whose_name_is_taken_no_more_is_found_and_can_be_removed() {
    let mut bench = Bench::new();
    let text = r#"{"network":"all","subnet":"10.43.0.0/24"}"#;
    assert_eq!(bench.ledger.define(text).unwrap_err().code, Code::InvalidArgument);
    bench.ledger.store().add_pool(2, "all", text).unwrap();
    let mut bench = bench.restart();
    bench.ledger.find("all").unwrap();
    bench.ledger.remove("all").unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is asked in whatever order: memory is what the database says, and no address has two owners.
    #[test]
    fn memory_follows_from_the_database(steps in prop::collection::vec((0u8..7, 0usize..8, 0u8..12), 1..80)) {
        let mut bench = Bench::new();
        let mut leases = Vec::new();
        for (step, who, what) in steps {
            let workload = ["vm-a", "vm-b", "vm-c", "vm-d", "vm-e", "vm-web", "vm-db", "vm-f"][who];
            match step {
                0 | 1 => leases.extend(bench.allocate(workload)),
                2 => { if let Some(lease) = leases.get(who) { let _ = bench.ledger.release(*lease); } }
                3 => { if let Some(lease) = leases.get(who) { bench.abandon(*lease).unwrap(); } }
                4 => {
                    let address = if what == 0 { String::new() } else { format!("10.42.0.{what}") };
                    let _ = bench.ledger.reserve(bench.pool, workload, &address, &hash(what));
                }
                5 => { let _ = bench.ledger.cancel(&hash(what)); }
                _ => bench.pass(f64::from(what) * 3.0),
            }
            let (free, bindings) = { let pool = &bench.ledger.pools[&bench.pool]; (pool.free.clone(), pool.bindings) };
            let due: Vec<LeaseId> = bench.ledger.due.iter().map(|(_, lease)| *lease).collect();
            bench.ledger.load().unwrap();
            let pool = &bench.ledger.pools[&bench.pool];
            prop_assert_eq!(pool.bindings, bindings);
            prop_assert_eq!(pool.free.count(), free.count());
            let differs = (0x0a2a_0000..=0x0a2a_00ff).find(|address| pool.free.contains(*address) != free.contains(*address));
            prop_assert_eq!(differs, None);
            let mut again: Vec<LeaseId> = bench.ledger.due.iter().map(|(_, lease)| *lease).collect();
            let mut due = due;
            due.sort();
            again.sort();
            prop_assert_eq!(due, again);
        }
    }
}

impl Ledger {
    fn by_workload(&self, workload: &str, pool: PoolId) -> LeaseId {
        self.store.leased_by(pool, workload).unwrap().unwrap().lease.unwrap().id
    }
}
